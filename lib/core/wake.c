/* SPDX-License-Identifier: MIT */
/* wake.c - an eventfd, or a pipe where there is none. */
#ifdef __linux__
#define _GNU_SOURCE
#endif
#include "core/wake.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <unistd.h>
#ifdef __linux__
#include <sys/eventfd.h>
#endif

#include <libblkrepl/context.h>

#ifdef __linux__

int blkrepl__wake_init(struct wake *wake)
{
    int fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);

    wake->read_fd = fd;
    wake->write_fd = fd;
    return fd < 0 ? -errno : 0;
}

#else

static int wake_set_up(int fd)
{
    return fcntl(fd, F_SETFL, O_NONBLOCK) < 0 || fcntl(fd, F_SETFD, FD_CLOEXEC) < 0 ? -errno : 0;
}

int blkrepl__wake_init(struct wake *wake)
{
    int fds[2];
    int rc;

    if (pipe(fds) < 0) {
        return -errno;
    }
    wake->read_fd = fds[0];
    wake->write_fd = fds[1];
    rc = wake_set_up(fds[0]);
    if (rc == 0) {
        rc = wake_set_up(fds[1]);
    }
    if (rc < 0) {
        blkrepl__wake_fini(wake);
    }
    return rc;
}

#endif

void blkrepl__wake_fini(struct wake *wake)
{
    close(wake->read_fd);
    if (wake->write_fd != wake->read_fd) {
        close(wake->write_fd);
    }
}

void blkrepl__wake_signal(struct wake *wake)
{
    uint64_t one = 1;
    ssize_t done;

    /* A full pipe or counter is readable already, so EAGAIN is success. */
    do {
        done = write(wake->write_fd, &one, sizeof one);
    } while (done < 0 && errno == EINTR);
}

void blkrepl__wake_drain(struct wake *wake)
{
    char bytes[64];
    ssize_t done;

    do {
        done = read(wake->read_fd, bytes, sizeof bytes);
    } while (done == (ssize_t)sizeof bytes || (done < 0 && errno == EINTR));
}

void blkrepl__wake_wait(struct wake *wake, uint64_t timeout_ns)
{
    struct pollfd pfd = {.fd = wake->read_fd, .events = POLLIN};
    int timeout_ms = -1;

    /* Round up: waking before the deadline would only make the caller spin. */
    if (timeout_ns != BLKREPL_FOREVER) {
        uint64_t ms = timeout_ns / 1000000 + (timeout_ns % 1000000 != 0);

        timeout_ms = ms > INT_MAX ? INT_MAX : (int)ms;
    }
    (void)poll(&pfd, 1, timeout_ms);
}
