/* SPDX-License-Identifier: MIT */
/* sys_wrap.c - what the library calls instead of the system, by means of the
 * linker's --wrap.  Files are real ones, but what they can do is up to the
 * scenario: the same on every machine, whatever lies under the folder. */
#ifdef __linux__
#define _GNU_SOURCE
#endif
#include "sys.h"

#include <fcntl.h>
#include <linux/falloc.h>
#include <linux/fs.h>
#include <linux/magic.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <stdarg.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/uio.h>
#include <unistd.h>

/* With 64-bit offsets glibc calls them by other names. */
#ifdef __GLIBC__
#define WRAP(name) __wrap_##name##64
#define REAL(name) __real_##name##64
typedef unsigned long ioctl_request;
#else
#define WRAP(name) __wrap_##name
#define REAL(name) __real_##name
typedef int ioctl_request;
#endif

/* pread2 and its like are named after the 64 as well. */
#ifdef __GLIBC__
#define WRAP_PREADV2 __wrap_preadv64v2
#define WRAP_PWRITEV2 __wrap_pwritev64v2
#else
#define WRAP_PREADV2 __wrap_preadv2
#define WRAP_PWRITEV2 __wrap_pwritev2
#endif

int REAL(open)(const char *path, int flags, ...);
int REAL(fcntl)(int fd, int command, ...);
int REAL(fstat)(int fd, struct stat *st);
int REAL(stat)(const char *path, struct stat *st);
int REAL(fstatfs)(int fd, struct statfs *st);
int REAL(ftruncate)(int fd, off_t bytes);
off_t REAL(lseek)(int fd, off_t offset, int whence);
int REAL(fallocate)(int fd, int mode, off_t offset, off_t bytes);
ssize_t REAL(preadv)(int fd, const struct iovec *iov, int count, off_t offset);
ssize_t REAL(pwritev)(int fd, const struct iovec *iov, int count, off_t offset);
ssize_t REAL(pwrite)(int fd, const void *data, size_t bytes, off_t offset);
int __real_close(int fd);
ssize_t __real_read(int fd, void *out, size_t bytes);
ssize_t __real_write(int fd, const void *data, size_t bytes);
int __real_poll(struct pollfd *fds, nfds_t count, int timeout_ms);
int __real_eventfd(unsigned start, int flags);
int __real_pthread_create(pthread_t *thread, const pthread_attr_t *attr, void *(*run)(void *),
                          void *arg);
int __real_pthread_mutex_init(pthread_mutex_t *mutex, const pthread_mutexattr_t *attr);
int __real_pthread_cond_init(pthread_cond_t *cond, const pthread_condattr_t *attr);
int __real_sched_getaffinity(pid_t pid, size_t bytes, cpu_set_t *set);

int WRAP(open)(const char *path, int flags, ...);
int WRAP(fcntl)(int fd, int command, ...);
int WRAP(fstat)(int fd, struct stat *st);
int WRAP(stat)(const char *path, struct stat *st);
int WRAP(fstatfs)(int fd, struct statfs *st);
int WRAP(ftruncate)(int fd, off_t bytes);
off_t WRAP(lseek)(int fd, off_t offset, int whence);
int WRAP(fallocate)(int fd, int mode, off_t offset, off_t bytes);
ssize_t WRAP(preadv)(int fd, const struct iovec *iov, int count, off_t offset);
ssize_t WRAP(pwritev)(int fd, const struct iovec *iov, int count, off_t offset);
ssize_t WRAP(pwrite)(int fd, const void *data, size_t bytes, off_t offset);
ssize_t WRAP_PREADV2(int fd, const struct iovec *iov, int count, off_t offset, int flags);
ssize_t WRAP_PWRITEV2(int fd, const struct iovec *iov, int count, off_t offset, int flags);
ssize_t __wrap_copy_file_range(int in, off_t *in_offset, int out, off_t *out_offset, size_t bytes,
                               unsigned flags);
int __wrap_close(int fd);
ssize_t __wrap_read(int fd, void *out, size_t bytes);
ssize_t __wrap_write(int fd, const void *data, size_t bytes);
int __wrap_poll(struct pollfd *fds, nfds_t count, int timeout_ms);
int __wrap_eventfd(unsigned start, int flags);
int __wrap_fdatasync(int fd);
int __wrap_fsync(int fd);
int __wrap_ioctl(int fd, ioctl_request request, ...);
int __wrap_pthread_create(pthread_t *thread, const pthread_attr_t *attr, void *(*run)(void *),
                          void *arg);
int __wrap_pthread_mutex_init(pthread_mutex_t *mutex, const pthread_mutexattr_t *attr);
int __wrap_pthread_cond_init(pthread_cond_t *cond, const pthread_condattr_t *attr);
int __wrap_sched_getaffinity(pid_t pid, size_t bytes, cpu_set_t *set);

static int refuse(int err)
{
    errno = err;
    return -1;
}

/* ---- Opening and looking ----------------------------------------------------------- */

int WRAP(open)(const char *path, int flags, ...)
{
    bool seed = strcmp(path, "/dev/urandom") == 0;
    int err = sys_verdict(seed ? SYS_OPEN_SEED : SYS_OPEN, -1);
    mode_t mode = 0;

    if (err != 0) {
        return refuse(err);
    }
    if ((flags & O_CREAT) != 0) {
        va_list args;

        va_start(args, flags);
        mode = va_arg(args, mode_t);
        va_end(args);
    }
    /* What can go wrong is the same, and no file system has to be able to. */
    int fd = REAL(open)(path, flags & ~O_DIRECT, mode);
    sys_opened(path, fd);
    return fd;
}

/* The descriptor is gone in any case, as on Linux. */
int __wrap_close(int fd)
{
    int err = sys_verdict(SYS_CLOSE, fd);

    sys_closed(fd);
    int rc = __real_close(fd);
    return err != 0 ? refuse(err) : rc;
}

int WRAP(fcntl)(int fd, int command, ...)
{
    int err = sys_verdict(SYS_FCNTL, fd);
    va_list args;

    if (err != 0) {
        return refuse(err);
    }
    va_start(args, command);
    int argument = command == F_SETFL || command == F_SETFD ? va_arg(args, int) : 0;
    va_end(args);
    return REAL(fcntl)(fd, command, argument);
}

static int disguise(int rc, struct stat *st)
{
    if (rc == 0 && sys_files_now()->device && S_ISREG(st->st_mode)) {
        st->st_mode = S_IFBLK | 0600;
        st->st_rdev = (dev_t)st->st_ino;
        st->st_size = 0;
    }
    return rc;
}

int WRAP(fstat)(int fd, struct stat *st)
{
    int err = sys_verdict(SYS_FSTAT, fd);

    return err != 0 ? refuse(err) : disguise(REAL(fstat)(fd, st), st);
}

int WRAP(stat)(const char *path, struct stat *st)
{
    int err = sys_verdict(SYS_STAT, -1);

    return err != 0 ? refuse(err) : disguise(REAL(stat)(path, st), st);
}

int WRAP(fstatfs)(int fd, struct statfs *st)
{
    int err = sys_verdict(SYS_FSTATFS, fd);

    if (err != 0) {
        return refuse(err);
    }
    int rc = REAL(fstatfs)(fd, st);
    if (rc == 0) {
        st->f_type = sys_files_now()->tmpfs ? TMPFS_MAGIC : EXT4_SUPER_MAGIC;
    }
    return rc;
}

int WRAP(ftruncate)(int fd, off_t bytes)
{
    int err = sys_verdict(SYS_FTRUNCATE, fd);

    return err != 0 ? refuse(err) : REAL(ftruncate)(fd, bytes);
}

off_t WRAP(lseek)(int fd, off_t offset, int whence)
{
    int err = sys_verdict(SYS_LSEEK, fd);

    if (err == 0 && sys_files_now()->no_seek && whence != SEEK_END) {
        err = EINVAL;
    }
    return err != 0 ? refuse(err) : REAL(lseek)(fd, offset, whence);
}

/* ---- Zeroes ------------------------------------------------------------------------- */

static int write_zeroes(int fd, off_t offset, off_t bytes)
{
    static const char zeroes[4096];

    while (bytes > 0) {
        size_t piece = bytes < (off_t)sizeof zeroes ? (size_t)bytes : sizeof zeroes;

        REQUIRE(REAL(pwrite)(fd, zeroes, piece, offset) == (ssize_t)piece,
                "this machine cannot write to its files");
        offset += (off_t)piece;
        bytes -= (off_t)piece;
    }
    return 0;
}

/* The same whether the file system knows it or not. */
int WRAP(fallocate)(int fd, int mode, off_t offset, off_t bytes)
{
    const struct sys_files *f = sys_files_now();
    bool punch = (mode & FALLOC_FL_PUNCH_HOLE) != 0;
    int err = sys_verdict(SYS_FALLOCATE, fd);

    if (err == 0 && (punch ? f->no_punch : f->no_zero_range)) {
        err = EOPNOTSUPP;
        sys_refuses(fd, err);
    }
    if (err == EIO || err == ENOSPC) {
        write_zeroes(fd, offset, bytes / 2); /* it had got as far as that */
    }
    if (err != 0) {
        return refuse(err);
    }
    durable_wrote(sys_medium_of(fd), (uint64_t)offset, (uint64_t)bytes, false);
    if (punch && REAL(fallocate)(fd, mode, offset, bytes) == 0) {
        return 0;
    }
    return write_zeroes(fd, offset, bytes);
}

int __wrap_ioctl(int fd, ioctl_request request, ...)
{
    bool asks = request == (ioctl_request)BLKSSZGET || request == (ioctl_request)BLKGETSIZE64;
    int err = sys_verdict(asks ? SYS_MEASURE : SYS_IOCTL, fd);
    va_list args;
    struct stat st;

    va_start(args, request);
    void *out = va_arg(args, void *);
    va_end(args);
    if (err != 0) {
        return refuse(err);
    }
    if (request == (ioctl_request)BLKSSZGET) {
        *(int *)out = 512;
        return 0;
    }
    if (request == (ioctl_request)BLKGETSIZE64) {
        int rc = REAL(fstat)(fd, &st);

        *(uint64_t *)out = (uint64_t)st.st_size;
        return rc;
    }
    const uint64_t *range = out;
    durable_wrote(sys_medium_of(fd), range[0], range[1], false);
    return write_zeroes(fd, (off_t)range[0], (off_t)range[1]);
}

/* ---- Data --------------------------------------------------------------------------- */

/* The first part of the iovecs, `bytes` of them, one call each. */
static ssize_t move_part(int fd, const struct iovec *iov, off_t offset, size_t bytes, bool reads)
{
    ssize_t total = 0;

    for (int i = 0; bytes > 0; i++) {
        struct iovec part = iov[i];
        ssize_t moved;

        part.iov_len = part.iov_len < bytes ? part.iov_len : bytes;
        moved = reads ? REAL(preadv)(fd, &part, 1, offset) : REAL(pwritev)(fd, &part, 1, offset);
        if (moved <= 0) {
            return total > 0 ? total : moved;
        }
        total += moved;
        offset += moved;
        bytes -= (size_t)moved < bytes ? (size_t)moved : bytes;
        if ((size_t)moved < part.iov_len) {
            break;
        }
    }
    return total;
}

/* Past the page cache a transfer is cut between blocks only. */
static uint64_t half_of(uint64_t bytes)
{
    uint64_t half = (bytes + 1) / 2;

    if (sys_files_now()->direct) {
        half = (half + 4095) / 4096 * 4096;
    }
    return half < bytes ? half : bytes;
}

/* Do it as the verdict wants: a write that fails has landed in part. */
static ssize_t move_as(int fd, const struct iovec *iov, int count, off_t offset, bool reads,
                       int err)
{
    size_t bytes = 0;

    for (int i = 0; i < count; i++) {
        bytes += iov[i].iov_len;
    }
    if (err == 0) {
        return reads ? REAL(preadv)(fd, iov, count, offset) : REAL(pwritev)(fd, iov, count, offset);
    }
    if (err == SYS_ZERO) {
        return 0;
    }
    if (err == SYS_SHORT) {
        return move_part(fd, iov, offset, half_of(bytes), reads);
    }
    if (!reads && (err == EIO || err == ENOSPC)) {
        move_part(fd, iov, offset, bytes / 2, false);
    }
    return refuse(err);
}

static ssize_t move(int fd, const struct iovec *iov, int count, off_t offset, bool reads, int err)
{
    ssize_t moved = move_as(fd, iov, count, offset, reads, err);

    if (!reads && moved > 0) {
        durable_wrote(sys_medium_of(fd), (uint64_t)offset, (uint64_t)moved, false);
    }
    return moved;
}

ssize_t WRAP(preadv)(int fd, const struct iovec *iov, int count, off_t offset)
{
    return move(fd, iov, count, offset, true, sys_verdict(SYS_PREADV, fd));
}

ssize_t WRAP(pwritev)(int fd, const struct iovec *iov, int count, off_t offset)
{
    return move(fd, iov, count, offset, false, sys_verdict(SYS_PWRITEV, fd));
}

#if defined(RWF_NOWAIT) && defined(RWF_DSYNC)

static ssize_t move_nowait(int fd, const struct iovec *iov, int count, off_t offset, bool reads)
{
    const struct sys_files *f = sys_files_now();
    int err = sys_verdict(reads ? SYS_NOWAIT_READ : SYS_NOWAIT_WRITE, fd);

    if (err == 0 && f->nowait == NOWAIT_REFUSED) {
        err = EOPNOTSUPP;
    } else if (err == 0 && f->nowait == NOWAIT_SOMETIMES) {
        static const int answers[] = {0, EAGAIN, SYS_SHORT};

        err = answers[fault_calls(FAULT_SYS) % ARRAY_COUNT(answers)];
    }
    return move(fd, iov, count, offset, reads, err);
}

ssize_t WRAP_PREADV2(int fd, const struct iovec *iov, int count, off_t offset, int flags)
{
    REQUIRE(flags == RWF_NOWAIT, "preadv2 with flags %d", flags);
    return move_nowait(fd, iov, count, offset, true);
}

ssize_t WRAP_PWRITEV2(int fd, const struct iovec *iov, int count, off_t offset, int flags)
{
    if (flags == RWF_NOWAIT) {
        return move_nowait(fd, iov, count, offset, false);
    }
    REQUIRE(flags == RWF_DSYNC, "pwritev2 with flags %d", flags);
    int err = sys_verdict(SYS_DSYNC, fd);
    if (err == 0 && sys_files_now()->no_dsync) {
        err = EOPNOTSUPP;
    }
    ssize_t moved = move_as(fd, iov, count, offset, false, err);
    if (moved > 0) {
        durable_wrote(sys_medium_of(fd), (uint64_t)offset, (uint64_t)moved, true);
    }
    return moved;
}

#endif

ssize_t WRAP(pwrite)(int fd, const void *data, size_t bytes, off_t offset)
{
    struct iovec iov = {.iov_base = (void *)(uintptr_t)data, .iov_len = bytes};

    return move(fd, &iov, 1, offset, false, sys_verdict(SYS_PWRITE, fd));
}

/* Never more than the buffer holds; of a failure, half of that lands. */
ssize_t __wrap_copy_file_range(int in, off_t *in_offset, int out, off_t *out_offset, size_t bytes,
                               unsigned flags)
{
    char buffer[3 * CLUSTER];
    struct iovec iov = {.iov_base = buffer};
    int err = sys_verdict(SYS_COPY, out);

    REQUIRE(flags == 0, "copy_file_range with flags %u", flags);
    if (err == 0 && sys_files_now()->device) {
        err = EINVAL;
    }
    if (err == SYS_ZERO || err == EINVAL || err == EINTR || err == EXDEV) {
        return err == SYS_ZERO ? 0 : refuse(err);
    }
    bytes = bytes < sizeof buffer ? bytes : sizeof buffer;
    iov.iov_len = err == 0 ? bytes : (bytes + 1) / 2;
    ssize_t moved = REAL(preadv)(in, &iov, 1, *in_offset);
    if (moved > 0) {
        iov.iov_len = (size_t)moved;
        REQUIRE(move(out, &iov, 1, *out_offset, false, 0) == moved, "scenario: a short write");
    }
    if (err > 0) {
        return refuse(err);
    }
    *in_offset += moved;
    *out_offset += moved;
    return moved;
}

/* Nothing has to outlive the test. */
int __wrap_fdatasync(int fd)
{
    uint64_t clock = durable_clock(sys_medium_of(fd));
    int err = sys_verdict(SYS_FDATASYNC, fd);

    if (err != 0) {
        return refuse(err);
    }
    durable_flushed(sys_medium_of(fd), clock);
    return 0;
}

/* Where the system does not promise the other one. */
int __wrap_fsync(int fd)
{
    return __wrap_fdatasync(fd);
}

/* ---- Waking and threads -------------------------------------------------------------- */

/* Eight bytes are the seed from /dev/urandom; more drain the wake-up descriptor. */
ssize_t __wrap_read(int fd, void *out, size_t bytes)
{
    int err = sys_verdict(bytes == 8 ? SYS_SEED : SYS_READ, fd);

    if (err == SYS_ZERO) {
        return 0;
    }
    return err != 0 ? refuse(err) : __real_read(fd, out, bytes);
}

ssize_t __wrap_write(int fd, const void *data, size_t bytes)
{
    int err = sys_verdict(SYS_WRITE, fd);

    return err != 0 ? refuse(err) : __real_write(fd, data, bytes);
}

int __wrap_poll(struct pollfd *fds, nfds_t count, int timeout_ms)
{
    int err = sys_verdict(SYS_POLL, -1);

    return err != 0 ? refuse(err) : __real_poll(fds, count, timeout_ms);
}

bool sys_readable(int fd)
{
    struct pollfd pfd = {.fd = fd, .events = POLLIN};

    return __real_poll(&pfd, 1, 0) == 1;
}

int __wrap_eventfd(unsigned start, int flags)
{
    int err = sys_verdict(SYS_EVENTFD, -1);
    int fd = err != 0 ? refuse(err) : __real_eventfd(start, flags);

    sys_opened("", fd);
    return fd;
}

int __wrap_pthread_create(pthread_t *thread, const pthread_attr_t *attr, void *(*run)(void *),
                          void *arg)
{
    int err = sys_verdict(SYS_THREAD, -1);

    if (err == 0 && !sys_files_now()->threads) {
        err = EAGAIN;
    }
    return err != 0 ? err : __real_pthread_create(thread, attr, run, arg);
}

void sys_elsewhere(void *(*run)(void *arg), void *arg)
{
    pthread_t thread;

    REQUIRE(__real_pthread_create(&thread, NULL, run, arg) == 0, "this machine has no thread");
    pthread_join(thread, NULL);
}

int __wrap_pthread_mutex_init(pthread_mutex_t *mutex, const pthread_mutexattr_t *attr)
{
    int err = sys_verdict(SYS_MUTEX, -1);

    return err != 0 ? err : __real_pthread_mutex_init(mutex, attr);
}

int __wrap_pthread_cond_init(pthread_cond_t *cond, const pthread_condattr_t *attr)
{
    int err = sys_verdict(SYS_COND, -1);

    return err != 0 ? err : __real_pthread_cond_init(cond, attr);
}

int __wrap_sched_getaffinity(pid_t pid, size_t bytes, cpu_set_t *set)
{
    int err = sys_verdict(SYS_CPUS, -1);

    return err != 0 ? refuse(err) : __real_sched_getaffinity(pid, bytes, set);
}
