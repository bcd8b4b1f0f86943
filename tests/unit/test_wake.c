/* SPDX-License-Identifier: MIT */
#ifdef __linux__
#define _GNU_SOURCE
#endif
#include "core/wake.h"

#include "unit/fault.h"
#include "unit/rig.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

#ifdef __linux__

static struct {
    struct fault read;
    struct fault write;
} fake;

ssize_t read(int fd, void *data, size_t bytes)
{
    ssize_t (*real)(int fd, void *data, size_t bytes);

    if (fault_due(&fake.read)) {
        return -1;
    }
    fault_real(&real, "read", "read");
    return real(fd, data, bytes);
}

ssize_t write(int fd, const void *data, size_t bytes)
{
    ssize_t (*real)(int fd, const void *data, size_t bytes);

    if (fault_due(&fake.write)) {
        return -1;
    }
    fault_real(&real, "write", "write");
    return real(fd, data, bytes);
}

#endif

static bool readable(const struct wake *wake)
{
    struct pollfd pfd = {.fd = wake->read_fd, .events = POLLIN};

    return poll(&pfd, 1, 0) == 1;
}

static uint64_t now_ns(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * SECOND + (uint64_t)now.tv_nsec;
}

static void wake_is_readable_from_the_signal_to_the_drain(void **state)
{
    struct wake wake;

    (void)state;
    assert_int_equal(blkrepl__wake_init(&wake), 0);
    assert_false(readable(&wake));
    blkrepl__wake_drain(&wake); /* nothing there: does not block */
    for (int i = 0; i < 3; i++) {
        blkrepl__wake_signal(&wake);
        blkrepl__wake_signal(&wake);
        assert_true(readable(&wake));
        blkrepl__wake_drain(&wake);
        assert_false(readable(&wake));
    }
    blkrepl__wake_fini(&wake);
}

static void wake_signal_never_blocks_when_it_is_full(void **state)
{
    struct wake wake;
    uint64_t full = UINT64_MAX - 1;
    char bytes[4096] = {0};

    (void)state;
    assert_int_equal(blkrepl__wake_init(&wake), 0);
    if (write(wake.write_fd, &full, sizeof full) != (ssize_t)sizeof full ||
        wake.read_fd != wake.write_fd) { /* a pipe */
        while (write(wake.write_fd, bytes, sizeof bytes) > 0) {
        }
    }
    blkrepl__wake_signal(&wake);
    assert_true(readable(&wake));
    blkrepl__wake_drain(&wake);
    assert_false(readable(&wake));
    blkrepl__wake_fini(&wake);
}

static void wake_wait_returns_when_signalled_or_not_before_its_time(void **state)
{
    struct wake wake;
    uint64_t before;

    (void)state;
    assert_int_equal(blkrepl__wake_init(&wake), 0);
    blkrepl__wake_wait(&wake, 0);
    before = now_ns();
    blkrepl__wake_wait(&wake, 1500001); /* rounded up: nobody spins */
    assert_true(now_ns() - before >= 1500001);
    blkrepl__wake_signal(&wake);
    blkrepl__wake_wait(&wake, BLKREPL_FOREVER);
    blkrepl__wake_wait(&wake, BLKREPL_FOREVER - 1); /* longer than poll(2) can say */
    assert_true(readable(&wake));
    blkrepl__wake_fini(&wake);
}

static void wake_descriptors_are_not_inherited(void **state)
{
    struct wake wake;

    (void)state;
    assert_int_equal(blkrepl__wake_init(&wake), 0);
    assert_true((fcntl(wake.read_fd, F_GETFD) & FD_CLOEXEC) != 0);
    assert_true((fcntl(wake.write_fd, F_GETFD) & FD_CLOEXEC) != 0);
    blkrepl__wake_fini(&wake);
    assert_int_equal(fcntl(wake.read_fd, F_GETFD), -1); /* closed */
}

/* Where there is no eventfd it is a pipe, in which signals pile up. */
static void wake_of_a_pipe_is_emptied_in_one_go(void **state)
{
    struct wake wake;
    int fds[2];

    (void)state;
    assert_int_equal(pipe(fds), 0);
    assert_int_equal(fcntl(fds[0], F_SETFL, O_NONBLOCK), 0);
    assert_int_equal(fcntl(fds[1], F_SETFL, O_NONBLOCK), 0);
    wake = (struct wake){.read_fd = fds[0], .write_fd = fds[1]};
    for (int count = 1; count < 40; count++) {
        for (int i = 0; i < count; i++) {
            blkrepl__wake_signal(&wake);
        }
        assert_true(readable(&wake));
        blkrepl__wake_drain(&wake);
        assert_false(readable(&wake));
    }
    blkrepl__wake_fini(&wake);
    assert_int_equal(fcntl(fds[0], F_GETFD), -1); /* both are closed */
    assert_int_equal(fcntl(fds[1], F_GETFD), -1);
}

#ifdef __linux__

/* A wake-up that a signal could swallow would leave somebody asleep. */
static void wake_is_not_lost_to_a_signal(void **state)
{
    struct wake wake;

    (void)state;
    assert_int_equal(blkrepl__wake_init(&wake), 0);
    fake.write = (struct fault){.err = EINTR, .times = 2};
    blkrepl__wake_signal(&wake);
    assert_true(readable(&wake));
    fake.read = (struct fault){.err = EINTR, .times = 2};
    blkrepl__wake_drain(&wake);
    assert_false(readable(&wake));
    assert_int_equal(fake.read.times + fake.write.times, 0);
    blkrepl__wake_fini(&wake);
}

#endif

static void wake_without_descriptors_says_so(void **state)
{
    struct wake wake;
    struct rlimit limit;
    struct rlimit none;

    (void)state;
    assert_int_equal(getrlimit(RLIMIT_NOFILE, &limit), 0);
    none = limit;
    none.rlim_cur = 0;
    assert_int_equal(setrlimit(RLIMIT_NOFILE, &none), 0);
    assert_int_equal(blkrepl__wake_init(&wake), -EMFILE);
    assert_int_equal(setrlimit(RLIMIT_NOFILE, &limit), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(wake_is_readable_from_the_signal_to_the_drain),
        cmocka_unit_test(wake_signal_never_blocks_when_it_is_full),
        cmocka_unit_test(wake_wait_returns_when_signalled_or_not_before_its_time),
        cmocka_unit_test(wake_descriptors_are_not_inherited),
        cmocka_unit_test(wake_of_a_pipe_is_emptied_in_one_go),
#ifdef __linux__
        cmocka_unit_test(wake_is_not_lost_to_a_signal),
#endif
        cmocka_unit_test(wake_without_descriptors_says_so),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
