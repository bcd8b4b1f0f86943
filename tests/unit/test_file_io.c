/* SPDX-License-Identifier: MIT */
#ifdef __linux__
#define _GNU_SOURCE
#endif
#include "block/file_io.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/uio.h>

#include "unit/backend_io.h"
#include "unit/fault.h"

#define BYTES (256u * 1024)
#define PIECES 3000

struct fixture {
    struct file file;
    bool in_memory;
    char path[64];
    unsigned char model[BYTES];
    unsigned char data[BYTES];
    blkrepl_iovec iov[PIECES];
    uint64_t seed;
};

#ifdef __linux__

static struct {
    struct fault flagged; /* transfers with flags */
    struct fault plain;
    struct fault sync;
    unsigned flagged_calls;
    unsigned plain_calls;
    unsigned sync_calls;
} fake;

ssize_t preadv2(int fd, const struct iovec *iov, int count, off_t offset, int flags)
{
    ssize_t (*real)(int fd, const struct iovec *iov, int count, off_t offset, int flags);

    fake.flagged_calls++;
    if (fault_due(&fake.flagged)) {
        return -1;
    }
    fault_real(&real, "preadv64v2", "preadv2");
    return real(fd, iov, count, offset, flags);
}

ssize_t pwritev2(int fd, const struct iovec *iov, int count, off_t offset, int flags)
{
    ssize_t (*real)(int fd, const struct iovec *iov, int count, off_t offset, int flags);

    fake.flagged_calls++;
    if (fault_due(&fake.flagged)) {
        return -1;
    }
    fault_real(&real, "pwritev64v2", "pwritev2");
    return real(fd, iov, count, offset, flags);
}

ssize_t preadv(int fd, const struct iovec *iov, int count, off_t offset)
{
    ssize_t (*real)(int fd, const struct iovec *iov, int count, off_t offset);

    fake.plain_calls++;
    if (fault_due(&fake.plain)) {
        return -1;
    }
    fault_real(&real, "preadv64", "preadv");
    return real(fd, iov, count, offset);
}

ssize_t pwritev(int fd, const struct iovec *iov, int count, off_t offset)
{
    ssize_t (*real)(int fd, const struct iovec *iov, int count, off_t offset);

    fake.plain_calls++;
    if (fault_due(&fake.plain)) {
        return -1;
    }
    fault_real(&real, "pwritev64", "pwritev");
    return real(fd, iov, count, offset);
}

int fdatasync(int fd)
{
    int (*real)(int fd);

    fake.sync_calls++;
    if (fault_due(&fake.sync)) {
        return -1;
    }
    fault_real(&real, "fdatasync", "fdatasync");
    return real(fd);
}

#endif

static void set_up(struct fixture *f, bool in_memory)
{
    memset(f, 0, sizeof *f);
    f->seed = 7;
    f->in_memory = in_memory;
    if (io_path(in_memory, "file-io", f->path, sizeof f->path) == NULL) {
        skip();
    }
    f->file.fd = open(f->path, O_RDWR | O_CREAT | O_EXCL, 0600);
    assert_true(f->file.fd >= 0);
    f->file.in_memory = in_memory;
    f->file.bytes = BYTES;
    pthread_mutex_init(&f->file.seen.lock, NULL);
    io_fill(&f->seed, f->model, BYTES);
    assert_int_equal(pwrite(f->file.fd, f->model, BYTES, 0), BYTES);
}

static void tear_down(struct fixture *f)
{
    close(f->file.fd);
    unlink(f->path);
    pthread_mutex_destroy(&f->file.seen.lock);
}

static blkrepl_io make_io(struct fixture *f, uint32_t opcode, uint64_t offset, size_t bytes,
                          uint32_t pieces)
{
    return (blkrepl_io){.struct_size = sizeof(blkrepl_io),
                        .opcode = opcode,
                        .offset = offset,
                        .bytes = bytes,
                        .iov = f->iov,
                        .iov_count = io_cut(&f->seed, f->data, bytes, f->iov, pieces)};
}

/* From anywhere in the middle, with any iovecs, and these stay as they are. */
static void transfer_round_trips(struct fixture *f, bool nowait)
{
    static blkrepl_iovec before[PIECES];

    for (int round = 0; round < 200; round++) {
        uint64_t offset = io_below(&f->seed, BYTES);
        size_t bytes = (size_t)io_below(&f->seed, BYTES - offset + 1);
        uint32_t most = 1 + (uint32_t)io_below(&f->seed, round % 10 == 0 ? PIECES : 20);
        bool write = io_below(&f->seed, 2) == 0;
        blkrepl_io io = make_io(f, write ? BLKREPL_OP_WRITE : BLKREPL_OP_READ, offset, bytes, most);
        uint64_t done = io_below(&f->seed, 2) * io_below(&f->seed, bytes + 1);
        uint64_t from = done;
        int rc;

        io_fill(&f->seed, f->data, bytes);
        memcpy(before, f->iov, sizeof before);
        rc = blkrepl__file_transfer(&f->file, &io, nowait, &done);
        if (rc == FILE_WOULD_BLOCK) {
            assert_true(nowait && done < bytes);
            rc = blkrepl__file_transfer(&f->file, &io, false, &done);
        }
        assert_int_equal(rc, 0);
        assert_int_equal(done, bytes);
        assert_memory_equal(before, f->iov, sizeof before);
        if (write) {
            memcpy(f->model + offset + from, f->data + from, bytes - (size_t)from);
            assert_int_equal(pread(f->file.fd, f->data, BYTES, 0), BYTES);
            assert_memory_equal(f->data, f->model, BYTES);
        } else {
            assert_memory_equal(f->data + from, f->model + offset + from, bytes - (size_t)from);
        }
    }
}

static void file_io_round_trips(void **state)
{
    static struct fixture f;

    (void)state;
    for (int how = 0; how < 4; how++) {
        set_up(&f, how % 2 == 1);
        transfer_round_trips(&f, how / 2 == 1);
        tear_down(&f);
    }
}

static void file_io_past_the_end_is_an_error(void **state)
{
    static struct fixture f;
    uint64_t done = 0;
    blkrepl_io io;

    (void)state;
    set_up(&f, false);
    assert_int_equal(ftruncate(f.file.fd, 1000), 0);
    io = make_io(&f, BLKREPL_OP_READ, 500, 1000, 5);
    if (blkrepl__file_transfer(&f.file, &io, true, &done) != FILE_WOULD_BLOCK) {
        fail();
    }
    assert_int_equal(blkrepl__file_transfer(&f.file, &io, false, &done), -EIO);
    assert_int_equal(done, 500);
    assert_memory_equal(f.data, f.model + 500, 500);
    tear_down(&f);
}

/* Whether the descriptor is good for it is known only when it is tried. */
static void file_io_reports_what_the_system_says(void **state)
{
    static struct fixture f;
    uint64_t done = 0;
    blkrepl_io io;

    (void)state;
    set_up(&f, false);
    close(f.file.fd);
    f.file.fd = open(f.path, O_RDONLY);
    io = make_io(&f, BLKREPL_OP_WRITE, 0, 10, 1);
    assert_int_equal(blkrepl__file_transfer(&f.file, &io, true, &done), FILE_WOULD_BLOCK);
    assert_int_equal(blkrepl__file_transfer(&f.file, &io, false, &done), -EBADF);
    io.iov_count = 0;
    assert_int_equal(blkrepl__file_transfer(&f.file, &io, false, &done), -EINVAL);
    io.bytes = 0;
    assert_int_equal(blkrepl__file_transfer(&f.file, &io, false, &done), 0);
    assert_int_equal(done, 0);
    tear_down(&f);
}

/* The system cuts a write at the limit on the size of files, in the middle of an
 * iovec, and then refuses the rest. */
static void file_io_goes_on_after_a_short_write(void **state)
{
    static struct fixture f;
    struct rlimit before;
    struct rlimit limit;
    uint64_t done = 0;
    blkrepl_io io;

    (void)state;
    set_up(&f, false);
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &before), 0);
    limit = before;
    limit.rlim_cur = 5000;
    assert_ptr_not_equal(signal(SIGXFSZ, SIG_IGN), SIG_ERR);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &limit), 0);
    io = make_io(&f, BLKREPL_OP_WRITE, 0, 10000, 3);
    assert_int_equal(blkrepl__file_transfer(&f.file, &io, false, &done), -EFBIG);
    assert_int_equal(done, 5000);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &before), 0);
    signal(SIGXFSZ, SIG_DFL);
    assert_int_equal(blkrepl__file_transfer(&f.file, &io, false, &done), 0);
    assert_int_equal(done, 10000);
    tear_down(&f);
}

static void file_io_remembers_what_is_refused(void **state)
{
    static struct fixture f;
    uint64_t done = 0;
    blkrepl_io io;

    (void)state;
    set_up(&f, true);
    /* Treated like any other file: the kernel says what it grants. */
    f.file.in_memory = false;
    io = make_io(&f, BLKREPL_OP_READ, 0, 100, 1);
    assert_true(blkrepl__file_may_nowait(&f.file, &io));
    if (blkrepl__file_transfer(&f.file, &io, true, &done) == FILE_WOULD_BLOCK) {
        assert_true(f.file.no_nowait_read);
        assert_false(blkrepl__file_may_nowait(&f.file, &io));
    }
    assert_false(f.file.no_nowait_write);
    io.opcode = BLKREPL_OP_WRITE;
    assert_true(blkrepl__file_may_nowait(&f.file, &io));
    f.file.no_nowait_write = true;
    assert_false(blkrepl__file_may_nowait(&f.file, &io));
    f.file.no_nowait_write = false;
    io.flags = BLKREPL_IO_FUA;
    assert_false(blkrepl__file_may_nowait(&f.file, &io));
    f.file.in_memory = true;
    assert_true(blkrepl__file_may_nowait(&f.file, &io));
    tear_down(&f);
}

static void file_io_writes_durably(void **state)
{
    static struct fixture f;

    (void)state;
    for (int how = 0; how < 4; how++) {
        uint64_t done = 0;
        blkrepl_io io;

        set_up(&f, how % 2 == 1);
        f.file.no_dsync = how / 2 == 1; /* then by a sync of all */
        io_fill(&f.seed, f.data, 5000);
        io = make_io(&f, BLKREPL_OP_WRITE, 77, 5000, 4);
        io.flags = BLKREPL_IO_FUA;
        assert_int_equal(blkrepl__file_transfer(&f.file, &io, false, &done), 0);
        assert_int_equal(pread(f.file.fd, f.model, 5000, 77), 5000);
        assert_memory_equal(f.model, f.data, 5000);
        assert_int_equal(blkrepl__file_sync(&f.file), 0);
        tear_down(&f);
    }
}

static void file_io_sync_fails_as_the_system_says(void **state)
{
    struct file file = {.fd = -1};

    (void)state;
    assert_int_equal(blkrepl__file_sync(&file), -EBADF);
}

#ifdef __linux__

/* What is refused is not asked again; a true error says nothing about what the
 * file can do, and comes up in the call that may block. */
static void file_io_tells_a_refusal_from_an_error(void **state)
{
    static const int refusals[] = {EOPNOTSUPP, ENOTSUP, ENOSYS, EINVAL};
    static struct fixture f;

    (void)state;
    set_up(&f, false);
    for (unsigned i = 0; i <= ARRAY_COUNT(refusals); i++) {
        bool refused = i < ARRAY_COUNT(refusals);
        uint64_t done = 0;
        blkrepl_io io = make_io(&f, BLKREPL_OP_READ, 0, 100, 1);

        f.file.no_nowait_read = false;
        memset(&fake, 0, sizeof fake);
        fake.flagged = (struct fault){.err = refused ? refusals[i] : EIO, .times = 1};
        assert_int_equal(blkrepl__file_transfer(&f.file, &io, true, &done), FILE_WOULD_BLOCK);
        assert_int_equal(blkrepl__file_may_nowait(&f.file, &io), !refused);
        assert_false(f.file.no_nowait_write);
        fake.plain = (struct fault){.err = ENXIO, .times = 1};
        assert_int_equal(blkrepl__file_transfer(&f.file, &io, false, &done), -ENXIO);
        assert_int_equal(blkrepl__file_transfer(&f.file, &io, false, &done), 0);
        assert_int_equal(done, 100);
    }
    tear_down(&f);
}

/* A write that must be durable and cannot be by itself is so by a sync of all,
 * and an error of either is the write's. */
static void file_io_without_durable_writes_syncs(void **state)
{
    static struct fixture f;
    uint64_t done = 0;
    blkrepl_io io;

    (void)state;
    set_up(&f, false);
    memset(&fake, 0, sizeof fake);
    io = make_io(&f, BLKREPL_OP_WRITE, 0, 100, 1);
    io.flags = BLKREPL_IO_FUA;
    fake.flagged = (struct fault){.err = EIO, .times = 1};
    assert_int_equal(blkrepl__file_transfer(&f.file, &io, false, &done), -EIO);
    assert_false(f.file.no_dsync);
    fake.flagged = (struct fault){.err = EOPNOTSUPP, .times = 1};
    assert_int_equal(blkrepl__file_transfer(&f.file, &io, false, &done), 0);
    assert_true(f.file.no_dsync);
    assert_int_equal(fake.flagged_calls, 2);
    assert_int_equal(fake.plain_calls, 1);
    assert_int_equal(fake.sync_calls, 1);
    done = 0;
    fake.sync = (struct fault){.err = ENOSPC, .times = 1};
    assert_int_equal(blkrepl__file_transfer(&f.file, &io, false, &done), -ENOSPC);
    assert_int_equal(fake.flagged_calls, 2);
    /* A write that need not be durable does not wait for that. */
    done = 0;
    io.flags = 0;
    assert_int_equal(blkrepl__file_transfer(&f.file, &io, false, &done), 0);
    assert_int_equal(fake.sync_calls, 2);
    tear_down(&f);
}

static void file_io_goes_on_after_a_signal(void **state)
{
    static struct fixture f;
    uint64_t done = 0;
    blkrepl_io io;

    (void)state;
    set_up(&f, false);
    memset(&fake, 0, sizeof fake);
    io = make_io(&f, BLKREPL_OP_WRITE, 0, 5000, 4);
    fake.plain = (struct fault){.err = EINTR, .times = 3};
    assert_int_equal(blkrepl__file_transfer(&f.file, &io, false, &done), 0);
    assert_int_equal(done, 5000);
    assert_int_equal(fake.plain_calls, 4);
    fake.sync = (struct fault){.err = EINTR, .times = 2};
    assert_int_equal(blkrepl__file_sync(&f.file), 0);
    assert_int_equal(fake.sync_calls, 3);
    tear_down(&f);
}

#endif

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(file_io_round_trips),
        cmocka_unit_test(file_io_past_the_end_is_an_error),
        cmocka_unit_test(file_io_reports_what_the_system_says),
        cmocka_unit_test(file_io_goes_on_after_a_short_write),
        cmocka_unit_test(file_io_remembers_what_is_refused),
        cmocka_unit_test(file_io_writes_durably),
        cmocka_unit_test(file_io_sync_fails_as_the_system_says),
#ifdef __linux__
        cmocka_unit_test(file_io_tells_a_refusal_from_an_error),
        cmocka_unit_test(file_io_without_durable_writes_syncs),
        cmocka_unit_test(file_io_goes_on_after_a_signal),
#endif
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
