/* SPDX-License-Identifier: MIT */
#ifdef __linux__
#define _GNU_SOURCE
#endif
#include "block/file_status.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/stat.h>

#include "unit/backend_io.h"
#include "unit/fault.h"

#define BLOCK 65536u
#define DATA (BLKREPL_EXTENT_DATA | BLKREPL_EXTENT_ALLOCATED)

struct fixture {
    struct file file;
    char path[64];
    blkrepl_extent extents[16];
};

#ifdef __linux__

static struct {
    struct fault fstat;
    struct file *changes; /* another thread makes a hole while this file is asked */
    bool backwards;       /* SEEK_HOLE finds what lies behind us */
} fake;

int fstat(int fd, struct stat *st)
{
    int (*real)(int fd, struct stat *st);

    if (fault_due(&fake.fstat)) {
        return -1;
    }
    fault_real(&real, "fstat64", "fstat");
    return real(fd, st);
}

off_t lseek(int fd, off_t offset, int whence)
{
    off_t (*real)(int fd, off_t offset, int whence);

    if (whence == SEEK_HOLE && fake.changes != NULL) {
        blkrepl__file_status_forget(fake.changes);
    }
    if (whence == SEEK_HOLE && fake.backwards) {
        return 0;
    }
    fault_real(&real, "lseek64", "lseek");
    return real(fd, offset, whence);
}

#endif

/* 16 blocks, all holes. */
static void set_up(struct fixture *f, bool in_memory)
{
    memset(f, 0, sizeof *f);
    if (io_path(in_memory, "file-status", f->path, sizeof f->path) == NULL) {
        skip();
    }
    f->file.fd = open(f->path, O_RDWR | O_CREAT | O_EXCL, 0600);
    assert_true(f->file.fd >= 0);
    f->file.in_memory = in_memory;
    f->file.bytes = 16 * BLOCK;
    assert_int_equal(ftruncate(f->file.fd, 16 * BLOCK), 0);
    pthread_mutex_init(&f->file.seen.lock, NULL);
}

static void tear_down(struct fixture *f)
{
    close(f->file.fd);
    unlink(f->path);
    pthread_mutex_destroy(&f->file.seen.lock);
}

static void put(struct fixture *f, unsigned block, unsigned count)
{
    static unsigned char data[BLOCK];

    memset(data, 1, sizeof data);
    for (; count > 0; count--, block++) {
        assert_int_equal(pwrite(f->file.fd, data, BLOCK, (off_t)block * BLOCK), BLOCK);
    }
}

static int ask(struct fixture *f, uint64_t offset, uint64_t bytes, uint32_t most, bool known_only)
{
    blkrepl_io io = {.opcode = BLKREPL_OP_STATUS,
                     .offset = offset,
                     .bytes = bytes,
                     .extents = f->extents,
                     .extents_max = most};

    memset(f->extents, 0xee, sizeof f->extents);
    return blkrepl__file_status(&f->file, &io, known_only);
}

static void expect_extent(const struct fixture *f, unsigned i, uint64_t bytes, uint32_t flags)
{
    assert_int_equal(f->extents[i].bytes, bytes);
    assert_int_equal(f->extents[i].flags, bytes == 0 ? 0 : flags);
    assert_int_equal(f->extents[i].reserved0, 0);
}

static void check_holes(struct fixture *f)
{
    assert_int_equal(ask(f, 0, 16 * BLOCK, 16, false), 0);
    expect_extent(f, 0, 16 * BLOCK, BLKREPL_EXTENT_ZERO);
    expect_extent(f, 1, 0, 0);
    put(f, 2, 3);
    put(f, 8, 1);
    assert_int_equal(ask(f, 0, 16 * BLOCK, 16, false), 0);
    expect_extent(f, 0, 2 * BLOCK, BLKREPL_EXTENT_ZERO);
    expect_extent(f, 1, 3 * BLOCK, DATA);
    expect_extent(f, 2, 3 * BLOCK, BLKREPL_EXTENT_ZERO);
    expect_extent(f, 3, BLOCK, DATA);
    expect_extent(f, 4, 7 * BLOCK, BLKREPL_EXTENT_ZERO);
    expect_extent(f, 5, 0, 0);
    /* A list that is too short, and is filled exactly. */
    assert_int_equal(ask(f, 0, 16 * BLOCK, 2, false), 0);
    expect_extent(f, 1, 3 * BLOCK, DATA);
    assert_int_equal(f->extents[2].flags, 0xeeeeeeee);
    /* From the middle to the middle. */
    assert_int_equal(ask(f, 3 * BLOCK + 5, 2 * BLOCK, 16, false), 0);
    expect_extent(f, 0, 2 * BLOCK - 5, DATA);
    expect_extent(f, 1, 5, BLKREPL_EXTENT_ZERO);
    expect_extent(f, 2, 0, 0);
    assert_int_equal(ask(f, 0, 0, 16, false), 0);
    expect_extent(f, 0, 0, 0);
    assert_int_equal(ask(f, 0, 0, 16, true), 0);
}

static void file_status_tells_holes(void **state)
{
    static struct fixture f;

    (void)state;
    for (int in_memory = 0; in_memory < 2; in_memory++) {
        set_up(&f, in_memory == 1);
        assert_true(blkrepl__file_status_supported(&f.file));
        check_holes(&f);
        f.file.device = true;
        assert_false(blkrepl__file_status_supported(&f.file));
        tear_down(&f);
    }
}

static void file_status_remembers_data(void **state)
{
    static struct fixture f;

    (void)state;
    set_up(&f, false);
    put(&f, 2, 4);
    assert_int_equal(ask(&f, 2 * BLOCK, BLOCK, 16, true), FILE_WOULD_BLOCK);
    assert_int_equal(ask(&f, 2 * BLOCK, BLOCK, 16, false), 0);
    expect_extent(&f, 0, BLOCK, DATA);
    assert_int_equal(ask(&f, 3 * BLOCK, 10 * BLOCK, 16, true), 0);
    expect_extent(&f, 0, 3 * BLOCK, DATA);
    expect_extent(&f, 1, 0, 0);
    assert_int_equal(ask(&f, 0, BLOCK, 16, true), FILE_WOULD_BLOCK);
    assert_int_equal(ask(&f, 6 * BLOCK, BLOCK, 16, true), FILE_WOULD_BLOCK);
    /* What asks no file is not asked: also without a descriptor. */
    close(f.file.fd);
    assert_int_equal(ask(&f, 2 * BLOCK, 4 * BLOCK, 16, false), 0);
    expect_extent(&f, 0, 4 * BLOCK, DATA);
    blkrepl__file_status_forget(&f.file);
    assert_int_equal(ask(&f, 2 * BLOCK, BLOCK, 16, true), FILE_WOULD_BLOCK);
    tear_down(&f);
}

static void file_status_that_cannot_be_told_is_data(void **state)
{
    static struct fixture f;

    (void)state;
    set_up(&f, false);
    f.file.no_seek = true;
    assert_int_equal(ask(&f, BLOCK, 2 * BLOCK, 16, false), 0);
    expect_extent(&f, 0, 2 * BLOCK, DATA);
    f.file.no_seek = false;
    close(f.file.fd);
    assert_int_equal(ask(&f, BLOCK, 2 * BLOCK, 16, false), 0);
    expect_extent(&f, 0, 2 * BLOCK, DATA);
    assert_true(f.file.no_seek);
    tear_down(&f);
}

static void file_status_of_a_shortened_file_is_data(void **state)
{
    static struct fixture f;

    (void)state;
    set_up(&f, true);
    put(&f, 0, 2);
    assert_int_equal(ftruncate(f.file.fd, 3 * BLOCK), 0);
    assert_int_equal(ask(&f, 0, 16 * BLOCK, 16, false), 0);
    expect_extent(&f, 0, 2 * BLOCK, DATA);
    assert_int_equal(f.extents[1].bytes, 14 * BLOCK);
    assert_int_equal(f.extents[1].flags, BLKREPL_EXTENT_DATA);
    /* Up to the end there is nothing missing. */
    assert_int_equal(ask(&f, 2 * BLOCK, BLOCK, 16, false), 0);
    expect_extent(&f, 0, BLOCK, BLKREPL_EXTENT_ZERO);
    assert_int_equal(ask(&f, 8 * BLOCK, BLOCK, 16, false), 0);
    expect_extent(&f, 0, BLOCK, BLKREPL_EXTENT_DATA);
    tear_down(&f);
}

#ifdef __linux__

/* Between our question and the answer a hole was made: the answer may already be
 * wrong, so it is given, but not remembered. */
static void file_status_does_not_remember_what_changes_meanwhile(void **state)
{
    static struct fixture f;

    (void)state;
    set_up(&f, true);
    put(&f, 2, 4);
    fake.changes = &f.file;
    assert_int_equal(ask(&f, 2 * BLOCK, BLOCK, 16, false), 0);
    expect_extent(&f, 0, BLOCK, DATA);
    assert_int_equal(ask(&f, 2 * BLOCK, BLOCK, 16, true), FILE_WOULD_BLOCK);
    fake.changes = NULL;
    assert_int_equal(ask(&f, 2 * BLOCK, BLOCK, 16, false), 0);
    assert_int_equal(ask(&f, 2 * BLOCK, BLOCK, 16, true), 0);
    tear_down(&f);
}

/* In doubt it is data: of a system that contradicts itself, and of a file whose
 * length cannot be known. */
static void file_status_in_doubt_is_data(void **state)
{
    static struct fixture f;

    (void)state;
    set_up(&f, true);
    put(&f, 2, 4);
    fake.backwards = true;
    assert_int_equal(ask(&f, 2 * BLOCK, 8 * BLOCK, 16, false), 0);
    fake.backwards = false;
    expect_extent(&f, 0, 8 * BLOCK, DATA);
    expect_extent(&f, 1, 0, 0);
    fake.fstat = (struct fault){.err = EIO, .times = 1};
    assert_int_equal(ask(&f, 8 * BLOCK, 8 * BLOCK, 16, false), 0);
    expect_extent(&f, 0, 8 * BLOCK, BLKREPL_EXTENT_DATA);
    tear_down(&f);
}

#endif

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(file_status_tells_holes),
        cmocka_unit_test(file_status_remembers_data),
        cmocka_unit_test(file_status_that_cannot_be_told_is_data),
        cmocka_unit_test(file_status_of_a_shortened_file_is_data),
#ifdef __linux__
        cmocka_unit_test(file_status_does_not_remember_what_changes_meanwhile),
        cmocka_unit_test(file_status_in_doubt_is_data),
#endif
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
