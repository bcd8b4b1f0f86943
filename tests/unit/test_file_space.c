/* SPDX-License-Identifier: MIT */
#ifdef __linux__
#define _GNU_SOURCE
#endif
#include "block/file_space.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/stat.h>

#include "block/file_status.h"
#include "unit/backend_io.h"

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
#endif
        cmocka_unit_test(file_space_knows_memory),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
