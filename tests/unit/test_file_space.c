/* SPDX-License-Identifier: MIT */
#ifdef __linux__
#define _GNU_SOURCE
#endif
#include "block/file_space.h"

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <sys/stat.h>
#ifdef __linux__
#include <linux/falloc.h>
#include <linux/fs.h>
#include <sys/ioctl.h>
#endif

#include "block/file_status.h"
#include "unit/backend_io.h"
#include "unit/fault.h"

#define BYTES (1024u * 1024)

struct fixture {
    struct file file;
    char path[64];
    unsigned char model[BYTES];
    unsigned char data[BYTES];
};

static void set_up(struct fixture *f, bool in_memory)
{
    uint64_t seed = 3;

    memset(f, 0, sizeof *f);
    if (io_path(in_memory, "file-space", f->path, sizeof f->path) == NULL) {
        skip();
    }
    f->file.fd = open(f->path, O_RDWR | O_CREAT | O_EXCL, 0600);
    assert_true(f->file.fd >= 0);
    f->file.in_memory = in_memory;
    f->file.sector_bytes = 512;
    io_fill(&seed, f->model, BYTES);
    assert_int_equal(pwrite(f->file.fd, f->model, BYTES, 0), BYTES);
    pthread_mutex_init(&f->file.seen.lock, NULL);
    assert_int_equal(blkrepl__file_measure(&f->file), 0);
    assert_int_equal(f->file.bytes, BYTES);
}

static void tear_down(struct fixture *f)
{
    close(f->file.fd);
    unlink(f->path);
    pthread_mutex_destroy(&f->file.seen.lock);
}

static int zero(struct fixture *f, uint64_t offset, uint64_t bytes, uint32_t flags)
{
    blkrepl_io io = {.opcode = BLKREPL_OP_ZEROES, .offset = offset, .bytes = bytes, .flags = flags};

    return blkrepl__file_zeroes(&f->file, &io);
}

static int discard(struct fixture *f, uint64_t offset, uint64_t bytes)
{
    blkrepl_io io = {.opcode = BLKREPL_OP_DISCARD, .offset = offset, .bytes = bytes};

    return blkrepl__file_discard(&f->file, &io);
}

static void check_content(struct fixture *f)
{
    struct stat st;

    assert_int_equal(pread(f->file.fd, f->data, BYTES, 0), BYTES);
    assert_memory_equal(f->data, f->model, BYTES);
    assert_int_equal(fstat(f->file.fd, &st), 0);
    assert_int_equal(st.st_size, BYTES);
}

static uint64_t blocks_used(const struct fixture *f)
{
    struct stat st;

    assert_int_equal(fstat(f->file.fd, &st), 0);
    return (uint64_t)st.st_blocks;
}

#ifdef __linux__

/* ---- The system, as far as a device needs it --------------------------------- */

static struct {
    bool device; /* what is done to a file is done as to a device of this kind: */
    int sector_bytes;
    uint64_t bytes;
    size_t pwrite_most; /* 0: no limit */
    struct fault ioctl;
    struct fault fallocate;
    struct fault pwrite;
    struct fault lseek;
    /* What was asked for. */
    unsigned punches;
    unsigned zeroouts;
    unsigned discards;
    uint64_t range[2];
    int pwrite_fd; /* the last one */
} fake;

ssize_t pwrite(int fd, const void *data, size_t bytes, off_t offset)
{
    ssize_t (*real)(int fd, const void *data, size_t bytes, off_t offset);

    if (fault_due(&fake.pwrite)) {
        return fake.pwrite.err == 0 ? 0 : -1;
    }
    fake.pwrite_fd = fd;
    if (fake.pwrite_most != 0 && bytes > fake.pwrite_most) {
        bytes = fake.pwrite_most;
    }
    fault_real(&real, "pwrite64", "pwrite");
    return real(fd, data, bytes, offset);
}

int fallocate(int fd, int mode, off_t offset, off_t bytes)
{
    int (*real)(int fd, int mode, off_t offset, off_t bytes);

    if (fault_due(&fake.fallocate)) {
        return -1;
    }
    fake.punches += (mode & FALLOC_FL_PUNCH_HOLE) != 0;
    fake.range[0] = (uint64_t)offset;
    fake.range[1] = (uint64_t)bytes;
    fault_real(&real, "fallocate64", "fallocate");
    return real(fd, mode, offset, bytes);
}

off_t lseek(int fd, off_t offset, int whence)
{
    off_t (*real)(int fd, off_t offset, int whence);

    if (fault_due(&fake.lseek)) {
        return -1;
    }
    fault_real(&real, "lseek64", "lseek");
    return real(fd, offset, whence);
}

static int fake_ask(bool known, void *answer, const void *value, size_t bytes)
{
    if (!known) {
        errno = EINVAL;
        return -1;
    }
    memcpy(answer, value, bytes);
    return 0;
}

static int fake_zeroout(int fd, const uint64_t *range)
{
    static const char zeroes[BYTES];

    fake.zeroouts++;
    memcpy(fake.range, range, sizeof fake.range);
    return pwrite(fd, zeroes, (size_t)range[1], (off_t)range[0]) == (ssize_t)range[1] ? 0 : -1;
}

#ifdef __GLIBC__
int ioctl(int fd, unsigned long request, ...)
#else
int ioctl(int fd, int request, ...)
#endif
{
    va_list args;
    void *arg;

    va_start(args, request);
    arg = va_arg(args, void *);
    va_end(args);
    if (!fake.device) {
        errno = ENOTTY;
        return -1;
    }
    if (fault_due(&fake.ioctl)) {
        return -1;
    }
    switch ((unsigned long)request) {
    case BLKSSZGET:
        return fake_ask(fake.sector_bytes != 0, arg, &fake.sector_bytes, sizeof fake.sector_bytes);
    case BLKGETSIZE64: return fake_ask(fake.bytes != 0, arg, &fake.bytes, sizeof fake.bytes);
    case BLKZEROOUT: return fake_zeroout(fd, arg);
    case BLKDISCARD:
        fake.discards++;
        memcpy(fake.range, arg, sizeof fake.range);
        return 0;
    default: abort();
    }
}

/* The file is a device of 4096-byte sectors from here to tear_down(). */
static void set_up_device(struct fixture *f)
{
    set_up(f, true);
    memset(&fake, 0, sizeof fake);
    fake.device = true;
    fake.sector_bytes = 4096;
    fake.bytes = BYTES;
    f->file.device = true;
    f->file.in_memory = false;
    assert_int_equal(blkrepl__file_measure(&f->file), 0);
}

static void tear_down_device(struct fixture *f)
{
    memset(&fake, 0, sizeof fake);
    tear_down(f);
}

/* ---- Tests -------------------------------------------------------------------- */

static void check_random_zeroes(struct fixture *f, uint32_t flags)
{
    uint64_t seed = 5;

    for (int round = 0; round < 30; round++) {
        uint64_t offset = io_below(&seed, BYTES);
        uint64_t bytes = io_below(&seed, (BYTES - offset) / 8 + 1);
        int rc = zero(f, offset, bytes, flags);

        if (rc == -ENOTSUP && bytes > 0) {
            /* Nothing happened, and it stays that way. */
            assert_int_equal(zero(f, offset, bytes, flags), -ENOTSUP);
        } else {
            assert_int_equal(rc, 0);
            memset(f->model + offset, 0, (size_t)bytes);
        }
        check_content(f);
    }
}

static void file_space_zeroes_exactly(void **state)
{
    static const uint32_t flags[] = {0, BLKREPL_IO_MAY_UNMAP, BLKREPL_IO_FUA,
                                     BLKREPL_IO_MAY_UNMAP | BLKREPL_IO_FUA};
    static struct fixture f;

    (void)state;
    for (unsigned i = 0; i < 2 * ARRAY_COUNT(flags); i++) {
        set_up(&f, i % 2 == 1);
        check_random_zeroes(&f, flags[i / 2]);
        tear_down(&f);
    }
}

static void file_space_unmaps_only_where_it_may(void **state)
{
    static struct fixture f;
    uint64_t before;

    (void)state;
    for (int in_memory = 0; in_memory < 2; in_memory++) {
        set_up(&f, in_memory == 1);
        fsync(f.file.fd);
        before = blocks_used(&f);
        (void)zero(&f, 0, BYTES / 2, 0);
        assert_true(blocks_used(&f) >= before);
        if (zero(&f, 0, BYTES / 2, BLKREPL_IO_MAY_UNMAP) == 0 && !f.file.no_punch) {
            assert_true(blocks_used(&f) < before);
        }
        tear_down(&f);
    }
}

static void file_space_remembers_what_is_refused(void **state)
{
    static struct fixture f;

    (void)state;
    set_up(&f, true);
    if (zero(&f, 0, 65536, 0) != -ENOTSUP) {
        skip(); /* a tmpfs of a later age */
    }
    assert_true(f.file.no_zero_range);
    assert_false(f.file.no_punch);
    f.file.no_punch = true;
    assert_int_equal(zero(&f, 0, 65536, BLKREPL_IO_MAY_UNMAP), -ENOTSUP);
    assert_int_equal(discard(&f, 0, 65536), 0);
    check_content(&f);
    tear_down(&f);
}

static void file_space_discards(void **state)
{
    static struct fixture f;
    uint64_t before;

    (void)state;
    for (int in_memory = 0; in_memory < 2; in_memory++) {
        set_up(&f, in_memory == 1);
        fsync(f.file.fd);
        before = blocks_used(&f);
        assert_int_equal(discard(&f, BYTES / 2, BYTES / 2), 0);
        assert_int_equal(discard(&f, 0, 0), 0);
        assert_true(f.file.no_punch || blocks_used(&f) < before);
        assert_int_equal(pread(f.file.fd, f.data, BYTES / 2, 0), BYTES / 2);
        assert_memory_equal(f.data, f.model, BYTES / 2);
        tear_down(&f);
    }
}

/* Holes that we made must not hide behind data that we saw. */
static void file_space_makes_status_forget(void **state)
{
    static struct fixture f;
    blkrepl_extent extents[4];
    blkrepl_io io = {
        .opcode = BLKREPL_OP_STATUS, .bytes = BYTES, .extents = extents, .extents_max = 4};

    (void)state;
    for (int how = 0; how < 2; how++) {
        set_up(&f, true);
        assert_int_equal(blkrepl__file_status(&f.file, &io, false), 0);
        assert_int_equal(extents[0].bytes, BYTES);
        if (how == 0) {
            assert_int_equal(discard(&f, 0, BYTES / 2), 0);
        } else {
            assert_int_equal(zero(&f, 0, BYTES / 2, BLKREPL_IO_MAY_UNMAP), 0);
        }
        assert_int_equal(blkrepl__file_status(&f.file, &io, false), 0);
        assert_int_equal(extents[0].bytes, BYTES / 2);
        assert_int_equal(extents[0].flags, BLKREPL_EXTENT_ZERO);
        tear_down(&f);
    }
}

static void file_space_reports_errors(void **state)
{
    static struct fixture f;

    (void)state;
    set_up(&f, false);
    close(f.file.fd);
    f.file.fd = open(f.path, O_RDONLY);
    assert_int_equal(zero(&f, 0, 4096, BLKREPL_IO_MAY_UNMAP), -EBADF);
    assert_int_equal(discard(&f, 0, 4096), -EBADF);
    assert_int_equal(zero(&f, 0, 0, 0), 0);
    tear_down(&f);
    f.file.fd = -1;
    assert_int_equal(blkrepl__file_measure(&f.file), -EBADF);
    assert_false(blkrepl__file_is_in_memory(-1));
}

/* A regular file stands in for a device: it refuses what only devices know, and
 * less than a sector is never asked for. */
static void file_space_of_a_device_goes_by_sectors(void **state)
{
    static struct fixture f;

    (void)state;
    set_up(&f, true);
    f.file.device = true;
    assert_int_equal(blkrepl__file_measure(&f.file), 0);
    assert_int_equal(f.file.bytes, BYTES);
    assert_int_equal(f.file.sector_bytes, 512);
    assert_int_equal(zero(&f, 10, 600, BLKREPL_IO_MAY_UNMAP), -ENOTSUP);
    assert_int_equal(zero(&f, 0, 4096, 0), -ENOTSUP);
    assert_int_equal(zero(&f, 0, 4096, BLKREPL_IO_NO_FALLBACK), -ENOTSUP);
    assert_int_equal(discard(&f, 10, 600), 0);
    assert_int_equal(discard(&f, 0, 4096), 0);
    check_content(&f);
    /* The edges are written, the middle is punched. */
    assert_int_equal(zero(&f, 1000, 10000, BLKREPL_IO_MAY_UNMAP), 0);
    memset(f.model + 1000, 0, 10000);
    check_content(&f);
    f.file.sector_bytes = 4096;
    assert_int_equal(zero(&f, 20001, 30000, BLKREPL_IO_MAY_UNMAP | BLKREPL_IO_FUA), 0);
    memset(f.model + 20001, 0, 30000);
    check_content(&f);
    tear_down(&f);
}

/* The device is asked first; what it does not tell, or what makes no sense, is
 * found out otherwise. */
static void file_space_measures_a_device(void **state)
{
    static struct fixture f;

    (void)state;
    set_up_device(&f);
    assert_int_equal(f.file.sector_bytes, 4096);
    assert_int_equal(f.file.bytes, BYTES);
    fake.bytes = UINT64_C(5) << 40;
    fake.sector_bytes = 520;
    assert_int_equal(blkrepl__file_measure(&f.file), 0);
    assert_int_equal(f.file.sector_bytes, 512);
    assert_int_equal(f.file.bytes, UINT64_C(5) << 40);
    fake.bytes = 0;
    fake.sector_bytes = 0;
    assert_int_equal(blkrepl__file_measure(&f.file), 0);
    assert_int_equal(f.file.sector_bytes, 512);
    assert_int_equal(f.file.bytes, BYTES); /* where the end is */
    fake.lseek = (struct fault){.err = EIO, .times = 1};
    assert_int_equal(blkrepl__file_measure(&f.file), -EIO);
    tear_down_device(&f);
}

/* Whole sectors by the device, the rest by writes, nothing else touched. */
static void file_space_zeroes_a_device_exactly(void **state)
{
    static struct fixture f;

    (void)state;
    for (int may_unmap = 0; may_unmap < 2; may_unmap++) {
        set_up_device(&f);
        assert_int_equal(
            zero(&f, 8192 - 700, 4096 + 700 + 30, may_unmap == 1 ? BLKREPL_IO_MAY_UNMAP : 0), 0);
        memset(f.model + 8192 - 700, 0, 4096 + 700 + 30);
        check_content(&f);
        assert_int_equal(fake.punches, may_unmap);
        assert_int_equal(fake.zeroouts, 1 - may_unmap);
        assert_int_equal(fake.range[0], 8192);
        assert_int_equal(fake.range[1], 4096);
        tear_down_device(&f);
    }
}

/* Past the page cache the end that is no whole sector is written through it. */
static void file_space_zeroes_the_tail_of_a_direct_device(void **state)
{
    static struct fixture f;

    (void)state;
    set_up_device(&f);
    f.file.direct = true;
    f.file.tail_fd = dup(f.file.fd);
    assert_int_equal(zero(&f, 8192, 8192 + 512, 0), 0);
    memset(f.model + 8192, 0, 8192 + 512);
    check_content(&f);
    assert_int_equal(fake.pwrite_fd, f.file.tail_fd);
    assert_int_equal(close(f.file.tail_fd), 0);
    tear_down_device(&f);
}

/* A signal or a write that is cut short is no error. */
static void file_space_goes_on_after_an_interruption(void **state)
{
    static struct fixture f;

    (void)state;
    set_up_device(&f);
    fake.ioctl = (struct fault){.err = EINTR, .times = 2};
    assert_int_equal(zero(&f, 4096, 4096, 0), 0);
    assert_int_equal(fake.zeroouts, 1);
    fake.pwrite = (struct fault){.err = EINTR, .after = 1, .times = 2};
    fake.pwrite_most = 4096;
    assert_int_equal(zero(&f, 8192 - 300, 4096 + 300, 0), 0);
    fake.pwrite_most = 100;
    fake.fallocate = (struct fault){.err = EINTR, .times = 3};
    assert_int_equal(zero(&f, 65536, 4096 + 4000, BLKREPL_IO_MAY_UNMAP), 0);
    fake.pwrite_most = 0;
    assert_int_equal(fake.punches, 1);
    memset(f.model + 4096, 0, 8192);
    memset(f.model + 65536, 0, 8096);
    check_content(&f);
    fake.ioctl = (struct fault){.err = EINTR, .times = 1};
    assert_int_equal(discard(&f, 0, 4096), 0);
    assert_int_equal(fake.discards, 1);
    tear_down_device(&f);
}

static void file_space_passes_a_device_s_errors_on(void **state)
{
    static struct fixture f;

    (void)state;
    set_up_device(&f);
    fake.ioctl = (struct fault){.err = EIO, .times = 1};
    assert_int_equal(zero(&f, 0, 4096, 0), -EIO);
    fake.ioctl = (struct fault){.err = ENOSPC, .times = 1};
    assert_int_equal(discard(&f, 0, 4096), -ENOSPC);
    fake.fallocate = (struct fault){.err = EPERM, .times = 1};
    assert_int_equal(zero(&f, 0, 4096, BLKREPL_IO_MAY_UNMAP), -EPERM);
    assert_false(f.file.no_punch);
    check_content(&f);
    /* The edge before the first sector, then the one behind the last. */
    fake.pwrite = (struct fault){.err = EROFS, .times = 1};
    assert_int_equal(zero(&f, 4000, 4192, BLKREPL_IO_MAY_UNMAP), -EROFS);
    fake.pwrite = (struct fault){.err = ENXIO, .times = 1};
    assert_int_equal(zero(&f, 4096, 5000, BLKREPL_IO_MAY_UNMAP), -ENXIO);
    fake.pwrite = (struct fault){.err = 0, .times = 1}; /* takes no more */
    assert_int_equal(zero(&f, 4096, 5000, BLKREPL_IO_MAY_UNMAP), -EIO);
    tear_down_device(&f);
}

/* Sectors are discarded whole, and not being able to is no error. */
static void file_space_discards_whole_sectors_of_a_device(void **state)
{
    static struct fixture f;

    (void)state;
    set_up_device(&f);
    assert_int_equal(discard(&f, 4095, 8194), 0);
    assert_int_equal(fake.discards, 1);
    assert_int_equal(fake.range[0], 4096);
    assert_int_equal(fake.range[1], 8192);
    assert_int_equal(discard(&f, 1, 4095), 0); /* no whole sector */
    assert_int_equal(discard(&f, 4096, 4095), 0);
    assert_int_equal(fake.discards, 1);
    fake.ioctl = (struct fault){.err = EOPNOTSUPP, .times = 1};
    assert_int_equal(discard(&f, 0, 4096), 0);
    assert_int_equal(fake.discards, 1);
    check_content(&f);
    tear_down_device(&f);
}

/* Kernels of all ages: none of these is an error, and each is met once. */
static void file_space_knows_the_ways_to_refuse(void **state)
{
    static const int ways[] = {EOPNOTSUPP, ENOSYS, ENOTTY};
    static struct fixture f;

    (void)state;
    for (unsigned i = 0; i < ARRAY_COUNT(ways); i++) {
        set_up(&f, true);
        fake.fallocate = (struct fault){.err = ways[i], .times = 1};
        assert_int_equal(discard(&f, 0, 4096), 0);
        assert_true(f.file.no_punch);
        check_content(&f);
        tear_down(&f);
        set_up_device(&f);
        fake.ioctl = (struct fault){.err = ways[i], .times = 1};
        assert_int_equal(zero(&f, 0, 4096, 0), -ENOTSUP);
        check_content(&f);
        tear_down_device(&f);
    }
}

#endif

static void file_space_knows_memory(void **state)
{
    static struct fixture f;
    int fds[2];

    (void)state;
    assert_int_equal(pipe(fds), 0);
    assert_false(blkrepl__file_is_in_memory(fds[0]));
    close(fds[0]);
    close(fds[1]);
    set_up(&f, true);
#ifdef __linux__
    assert_true(blkrepl__file_is_in_memory(f.file.fd));
#endif
    check_content(&f);
    assert_true(blocks_used(&f) > 0);
    assert_int_equal(discard(&f, 0, 0), 0);
    assert_int_equal(zero(&f, 0, 0, 0), 0);
    tear_down(&f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
#ifdef __linux__
        cmocka_unit_test(file_space_zeroes_exactly),
        cmocka_unit_test(file_space_unmaps_only_where_it_may),
        cmocka_unit_test(file_space_remembers_what_is_refused),
        cmocka_unit_test(file_space_discards),
        cmocka_unit_test(file_space_makes_status_forget),
        cmocka_unit_test(file_space_reports_errors),
        cmocka_unit_test(file_space_of_a_device_goes_by_sectors),
        cmocka_unit_test(file_space_measures_a_device),
        cmocka_unit_test(file_space_zeroes_a_device_exactly),
        cmocka_unit_test(file_space_zeroes_the_tail_of_a_direct_device),
        cmocka_unit_test(file_space_goes_on_after_an_interruption),
        cmocka_unit_test(file_space_passes_a_device_s_errors_on),
        cmocka_unit_test(file_space_discards_whole_sectors_of_a_device),
        cmocka_unit_test(file_space_knows_the_ways_to_refuse),
#endif
        cmocka_unit_test(file_space_knows_memory),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
