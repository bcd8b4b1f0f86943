/* SPDX-License-Identifier: MIT */
#ifdef __linux__
#define _GNU_SOURCE
#endif
#include "block/file_copy.h"

#include <errno.h>
#include <fcntl.h>

#include "unit/backend_io.h"
#include "unit/fault.h"

#ifdef __linux__

#define BYTES (1024u * 1024)

struct fixture {
    struct file from;
    struct file to;
    char from_path[64];
    char to_path[64];
    unsigned char old[BYTES];
    unsigned char model[BYTES];
    unsigned char data[BYTES];
};

static struct {
    struct fault fault;
    size_t most;   /* bytes of a call; 0: no limit */
    unsigned ends; /* from this call on, 0 is moved; 0: never */
    unsigned calls;
} fake;

ssize_t copy_file_range(int in, off_t *in_offset, int out, off_t *out_offset, size_t bytes,
                        unsigned flags)
{
    static unsigned char data[BYTES];
    ssize_t moved;

    fake.calls++;
    if (fault_due(&fake.fault)) {
        return -1;
    }
    if (fake.ends != 0 && fake.calls >= fake.ends) {
        return 0;
    }
    bytes = fake.most != 0 && bytes > fake.most ? fake.most : bytes;
    assert_int_equal(flags, 0);
    moved = pread(in, data, bytes, *in_offset);
    if (moved > 0) {
        assert_int_equal(pwrite(out, data, (size_t)moved, *out_offset), moved);
        *in_offset += moved;
        *out_offset += moved;
    }
    return moved;
}

static void open_one(struct file *file, const char *name, char *path, size_t room,
                     const unsigned char *data)
{
    io_path(false, name, path, room);
    file->fd = open(path, O_RDWR | O_CREAT | O_EXCL, 0600);
    assert_true(file->fd >= 0);
    file->bytes = BYTES;
    pthread_mutex_init(&file->seen.lock, NULL);
    assert_int_equal(pwrite(file->fd, data, BYTES, 0), BYTES);
}

static void set_up(struct fixture *f)
{
    uint64_t seed = 5;

    memset(f, 0, sizeof *f);
    memset(&fake, 0, sizeof fake);
    io_fill(&seed, f->old, BYTES);
    io_fill(&seed, f->model, BYTES);
    open_one(&f->from, "file-copy-from", f->from_path, sizeof f->from_path, f->old);
    open_one(&f->to, "file-copy-to", f->to_path, sizeof f->to_path, f->model);
}

static void close_one(struct file *file, const char *path)
{
    close(file->fd);
    unlink(path);
    pthread_mutex_destroy(&file->seen.lock);
}

static void tear_down(struct fixture *f)
{
    close_one(&f->from, f->from_path);
    close_one(&f->to, f->to_path);
}

static int copy(struct fixture *f, uint64_t from, uint64_t to, uint64_t bytes)
{
    blkrepl_io io = {
        .opcode = BLKREPL_OP_COPY_FROM, .source_offset = from, .offset = to, .bytes = bytes};

    return blkrepl__file_copy(&f->to, &f->from, &io);
}

static void check_content(struct fixture *f)
{
    assert_int_equal(pread(f->to.fd, f->data, BYTES, 0), BYTES);
    assert_memory_equal(f->data, f->model, BYTES);
    assert_int_equal(pread(f->from.fd, f->data, BYTES, 0), BYTES);
    assert_memory_equal(f->data, f->old, BYTES);
}

static void file_copy_copies_a_range_also_in_pieces(void **state)
{
    static struct fixture f;

    (void)state;
    set_up(&f);
    assert_int_equal(copy(&f, 1000, 70000, 12345), 0);
    memcpy(f.model + 70000, f.old + 1000, 12345);
    assert_int_equal(fake.calls, 1);
    fake.most = 5000;
    fake.fault = (struct fault){.err = EINTR, .after = 1, .times = 2};
    assert_int_equal(copy(&f, BYTES - 12000, 3, 12000), 0);
    memcpy(f.model + 3, f.old + BYTES - 12000, 12000);
    assert_int_equal(fake.calls, 1 + 3 + 2);
    assert_int_equal(copy(&f, 0, 0, 0), 0);
    check_content(&f);
    tear_down(&f);
}

static void file_copy_remembers_a_refusal(void **state)
{
    static const int refusals[] = {EXDEV, EOPNOTSUPP, ENOSYS, EINVAL, EPERM, ETXTBSY, EBADF};
    static struct fixture f;

    (void)state;
    for (size_t i = 0; i < sizeof refusals / sizeof refusals[0]; i++) {
        set_up(&f);
        fake.fault = (struct fault){.err = refusals[i], .times = 1};
        assert_int_equal(copy(&f, 0, 0, 4096), -refusals[i]);
        assert_int_equal(copy(&f, 0, 0, 4096), -ENOTSUP);
        assert_int_equal(fake.calls, 1); /* not asked again */
        check_content(&f);
        tear_down(&f);
    }
}

static void file_copy_tells_errors_that_are_no_refusal(void **state)
{
    static const int errors[] = {EIO, ENOSPC, EDQUOT, EFBIG, ENOMEM};
    static struct fixture f;

    (void)state;
    for (size_t i = 0; i < sizeof errors / sizeof errors[0]; i++) {
        set_up(&f);
        fake.fault = (struct fault){.err = errors[i], .times = 1};
        assert_int_equal(copy(&f, 0, 0, 4096), -errors[i]);
        assert_int_equal(copy(&f, 0, 0, 4096), 0);
        tear_down(&f);
    }
}

static void file_copy_of_a_source_that_was_shortened_is_eio(void **state)
{
    static struct fixture f;

    (void)state;
    set_up(&f);
    fake.ends = 2;
    fake.most = 1000;
    assert_int_equal(copy(&f, 0, 0, 4096), -EIO);
    assert_int_equal(fake.calls, 2);
    fake.ends = 0;
    assert_int_equal(copy(&f, 0, 0, 4096), 0);
    tear_down(&f);
}

/* Where blocks are shared, holes are, too. */
static void file_copy_forgets_what_was_seen(void **state)
{
    static struct fixture f;
    uint64_t changes;

    (void)state;
    set_up(&f);
    f.to.seen.end = BYTES;
    changes = f.to.seen.changes;
    assert_int_equal(copy(&f, 0, 0, 4096), 0);
    assert_int_equal(f.to.seen.end, 0);
    assert_true(f.to.seen.changes > changes);
    tear_down(&f);
}

#endif

int main(void)
{
#ifdef __linux__
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(file_copy_copies_a_range_also_in_pieces),
        cmocka_unit_test(file_copy_remembers_a_refusal),
        cmocka_unit_test(file_copy_tells_errors_that_are_no_refusal),
        cmocka_unit_test(file_copy_of_a_source_that_was_shortened_is_eio),
        cmocka_unit_test(file_copy_forgets_what_was_seen),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
#else
    return 0;
#endif
}
