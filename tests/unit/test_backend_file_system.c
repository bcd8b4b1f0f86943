/* SPDX-License-Identifier: MIT */
/* The file backend over devices, and where the system fails it. */
#ifdef __linux__
#define _GNU_SOURCE
#endif
#include "block/backend_file.h"

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <sys/stat.h>

#include "unit/backend_io.h"

#ifdef __linux__

#include <sys/syscall.h>

#include "unit/fault.h"

#define BYTES (1024u * 1024 + 777)

struct fixture {
    struct alloc alloc;
    struct file_pool *pool;
    struct file_backend *fb;
    char path[64];
};

static const blkrepl_backend_ops *const ops = &blkrepl__file_backend_ops;

/* ---- The system, where it is to do other than usual ---------------------------- */

static struct {
    struct fault open;
    struct fault fstat;
    struct fault get_flags;
    struct fault set_flags;
    struct fault ftruncate;
    struct fault mutex;
    struct fault other_inode; /* fstat() tells of another file */
    struct fault other_device;
    struct fault statx; /* O_DIRECT is not for this file */
    bool buffered;      /* O_DIRECT is granted, but not meant */
    bool device;        /* a file that is opened is a device with this number */
    dev_t number;
} fake;

int open(const char *path, int flags, ...)
{
    int (*real)(const char *path, int flags, mode_t mode);
    va_list args;
    mode_t mode;

    if (fault_due(&fake.open)) {
        return -1;
    }
    va_start(args, flags);
    mode = (flags & O_CREAT) != 0 ? va_arg(args, mode_t) : 0;
    va_end(args);
    fault_real(&real, "open64", "open");
    return real(path, fake.buffered ? flags & ~O_DIRECT : flags, mode);
}

int fstat(int fd, struct stat *st)
{
    int (*real)(int fd, struct stat *st);
    int rc;

    if (fault_due(&fake.fstat)) {
        return -1;
    }
    fault_real(&real, "fstat64", "fstat");
    rc = real(fd, st);
    if (fake.device) {
        st->st_mode = (st->st_mode & ~(mode_t)S_IFMT) | S_IFBLK;
        st->st_rdev = fake.number;
    }
    st->st_ino += fault_due(&fake.other_inode) ? 1 : 0;
    st->st_dev += fault_due(&fake.other_device) ? 1 : 0;
    return rc;
}

int fcntl(int fd, int command, ...)
{
    int (*real)(int fd, int command, int arg);
    va_list args;
    int arg;

    if (command == F_GETFL && fault_due(&fake.get_flags)) {
        return -1;
    }
    if (command == F_SETFL && fault_due(&fake.set_flags)) {
        return -1;
    }
    va_start(args, command);
    arg = command == F_SETFL || command == F_SETFD ? va_arg(args, int) : 0;
    va_end(args);
    fault_real(&real, "fcntl64", "fcntl");
    return real(fd, command, arg);
}

int ftruncate(int fd, off_t bytes)
{
    int (*real)(int fd, off_t bytes);

    if (fault_due(&fake.ftruncate)) {
        return -1;
    }
    fault_real(&real, "ftruncate64", "ftruncate");
    return real(fd, bytes);
}

int pthread_mutex_init(pthread_mutex_t *mutex, const pthread_mutexattr_t *attributes)
{
    int (*real)(pthread_mutex_t * mutex, const pthread_mutexattr_t *attributes);

    if (fault_due(&fake.mutex)) {
        return fake.mutex.err;
    }
    fault_real(&real, "pthread_mutex_init", "pthread_mutex_init");
    return real(mutex, attributes);
}

#ifdef SYS_statx
/* Of kernels that do not tell the alignment; or of a file that has none. */
long syscall(long number, ...)
{
    va_list args;
    uint32_t *st;

    va_start(args, number);
    (void)va_arg(args, int);
    (void)va_arg(args, const char *);
    (void)va_arg(args, int);
    (void)va_arg(args, unsigned);
    st = va_arg(args, void *);
    va_end(args);
    errno = ENOSYS;
    if (number != SYS_statx || !fault_due(&fake.statx)) {
        return -1;
    }
    st[0] = 0x2000; /* STATX_DIOALIGN; the fields are 0 */
    return 0;
}
#endif

static void pool_up(struct fixture *f)
{
    memset(f, 0, sizeof *f);
    assert_int_equal(blkrepl__alloc_init(&f->alloc, NULL), 0);
    assert_int_equal(blkrepl__file_pool_create(&f->alloc, 2, &f->pool), 0);
}

static int open_as(struct fixture *f, uint32_t flags, uint64_t bytes, bool read_only)
{
    blkrepl_file_options options = {.struct_size = sizeof options, .flags = flags, .bytes = bytes};
    int rc = blkrepl__file_backend_open(io_context(), &f->alloc, f->pool, f->path, &options,
                                        read_only, &f->fb);

    if (rc == 0) {
        blkrepl__file_backend_set_complete(f->fb, io_done);
    }
    return rc;
}

static void set_up(struct fixture *f, bool in_memory, uint64_t bytes)
{
    pool_up(f);
    if (io_path(in_memory, "backend-file", f->path, sizeof f->path) == NULL) {
        blkrepl__file_pool_free(f->pool);
        skip();
    }
    assert_int_equal(open_as(f, BLKREPL_FILE_CREATE | BLKREPL_FILE_EXCLUSIVE, bytes, false), 0);
}

static void tear_down(struct fixture *f)
{
    if (f->fb != NULL) {
        ops->close(f->fb);
    }
    blkrepl__file_pool_free(f->pool);
    remove(f->path);
}

/* ---- Tests ------------------------------------------------------------------ */

/* The number of the next descriptor: the same as before if none was left open. */
static int next_fd(void)
{
    int fd = dup(STDIN_FILENO);

    assert_true(fd >= 0);
    close(fd);
    return fd;
}

/* A device is known by its number, whatever its node is; it tells no holes, and
 * may carry out zeroes by writing them, so not without limit. */
static void backend_file_of_a_device(void **state)
{
    blkrepl_backend_info info = {.struct_size = sizeof info};
    struct file_backend *first;
    struct fixture f;
    uint64_t a[2];
    uint64_t b[2];

    (void)state;
    set_up(&f, true, BYTES);
    blkrepl__file_backend_identity(f.fb, &b[0], &b[1]);
    assert_int_not_equal(b[1], 0);
    ops->close(f.fb);
    fake.device = true;
    fake.number = 0x803;
    assert_int_equal(open_as(&f, 0, 0, false), 0);
    first = f.fb;
    assert_int_equal(ops->get_info(f.fb, &info), 0);
    assert_int_equal(info.bytes, BYTES);
    assert_int_equal(info.opcodes >> BLKREPL_OP_STATUS & 1, 0);
    assert_int_equal(info.opcodes >> BLKREPL_OP_ZEROES & 1, 1);
    assert_int_equal(info.zeroes_bytes_max, 1 << 30);
    blkrepl__file_backend_identity(f.fb, &a[0], &a[1]);
    assert_int_equal(a[0], 0x803);
    assert_int_equal(a[1], 0); /* never that of a file */

    assert_int_equal(open_as(&f, 0, 0, true), 0);
    blkrepl__file_backend_identity(f.fb, &b[0], &b[1]);
    assert_memory_equal(a, b, sizeof a);
    ops->close(f.fb);
    fake.number = 0x804;
    assert_int_equal(open_as(&f, 0, 0, false), 0);
    blkrepl__file_backend_identity(f.fb, &b[0], &b[1]);
    assert_memory_not_equal(a, b, sizeof a);
    ops->close(first);
    tear_down(&f);
    memset(&fake, 0, sizeof fake);
}

/* blkrepl_image_open_file(): "-ENOSPC with CREATE: a block device is smaller". */
static void backend_file_of_a_device_does_not_grow(void **state)
{
    struct fixture f;
    int fd;

    (void)state;
    set_up(&f, true, BYTES);
    ops->close(f.fb);
    f.fb = NULL;
    fake.device = true;
    fd = next_fd();
    assert_int_equal(open_as(&f, BLKREPL_FILE_CREATE, BYTES + 1, false), -ENOSPC);
    assert_int_equal(next_fd(), fd);
    assert_int_equal(open_as(&f, BLKREPL_FILE_CREATE, BYTES, false), 0);
    tear_down(&f);
    memset(&fake, 0, sizeof fake);
}

/* What is neither file nor device may fail to open in many ways: all are
 * -ENOTSUP.  The same codes of a file mean what they say. */
static void backend_file_tells_why_it_is_not_opened(void **state)
{
    static const int codes[] = {EISDIR, ENXIO, ENODEV, EOPNOTSUPP};
    struct fixture f;

    (void)state;
    pool_up(&f);
    for (unsigned i = 0; i < ARRAY_COUNT(codes); i++) {
        assert_non_null(io_path(false, "backend-file", f.path, sizeof f.path));
        fake.open = (struct fault){.err = codes[i], .times = 3};
        assert_int_equal(open_as(&f, 0, 0, false), -codes[i]); /* there is nothing */
        assert_int_equal(mkfifo(f.path, 0600), 0);
        assert_int_equal(open_as(&f, 0, 0, false), -ENOTSUP);
        assert_int_equal(unlink(f.path), 0);
        assert_int_equal(mknod(f.path, S_IFREG | 0600, 0), 0);
        assert_int_equal(open_as(&f, 0, 0, false), -codes[i]);
        fake.open = (struct fault){.err = EACCES, .times = 1};
        assert_int_equal(open_as(&f, 0, 0, false), -EACCES);
        assert_int_equal(unlink(f.path), 0);
    }
    assert_null(f.fb);
    tear_down(&f);
}

static void backend_file_that_cannot_be_examined_is_closed(void **state)
{
    struct fault *const faults[] = {&fake.fstat, &fake.get_flags, &fake.set_flags};
    struct fixture f;
    int fd;

    (void)state;
    set_up(&f, true, 100);
    ops->close(f.fb);
    f.fb = NULL;
    fd = next_fd();
    for (unsigned i = 0; i < ARRAY_COUNT(faults); i++) {
        *faults[i] = (struct fault){.err = EIO, .times = 1};
        assert_int_equal(open_as(&f, 0, 0, false), -EIO);
        assert_null(f.fb);
        assert_int_equal(next_fd(), fd);
    }
    fake.ftruncate = (struct fault){.err = ENOSPC, .times = 1};
    assert_int_equal(open_as(&f, BLKREPL_FILE_CREATE, 200, false), -ENOSPC);
    for (unsigned i = 0; i < 2; i++) {
        fake.mutex = (struct fault){.err = ENOMEM, .after = i, .times = 1};
        assert_int_equal(open_as(&f, 0, 0, false), -ENOMEM);
        assert_null(f.fb);
    }
    assert_int_equal(next_fd(), fd);
    tear_down(&f);
}

/* A signal while opening or growing is no error. */
static void backend_file_opens_in_spite_of_signals(void **state)
{
    blkrepl_backend_info info = {.struct_size = sizeof info};
    struct fixture f;

    (void)state;
    fake.open = (struct fault){.err = EINTR, .after = 1, .times = 2};
    fake.ftruncate = (struct fault){.err = EINTR, .times = 2};
    set_up(&f, false, BYTES);
    assert_int_equal(ops->get_info(f.fb, &info), 0);
    assert_int_equal(info.bytes, BYTES);
    ops->close(f.fb);
    assert_int_equal(open_as(&f, 0, 0, false), 0);
    assert_int_equal(fake.open.times + fake.ftruncate.times, 0);
    tear_down(&f);
}

/* What is refused is neither ignored nor left open: a file system that does not
 * know O_DIRECT, and all that can go wrong with the second descriptor. */
static void backend_file_direct_is_refused(void **state)
{
    static const struct {
        struct fault *fault;
        unsigned after; /* calls for the first descriptor */
        int err;
        int code;
    } cases[] = {{&fake.open, 1, EACCES, -EACCES},   {&fake.fstat, 2, EIO, -EIO},
                 {&fake.other_inode, 2, 0, -ESTALE}, {&fake.other_device, 2, 0, -ESTALE},
                 {&fake.statx, 0, 0, -ENOTSUP},      {&fake.get_flags, 1, EIO, -EIO},
                 {&fake.set_flags, 1, EIO, -EIO}};
    struct fixture f;
    int fd;

    (void)state;
    set_up(&f, false, BYTES);
    ops->close(f.fb);
    f.fb = NULL;
    fd = next_fd();
    fake.buffered = true;
    fake.open = (struct fault){.err = EINVAL, .times = 2};
    assert_int_equal(open_as(&f, BLKREPL_FILE_DIRECT, 0, false), -ENOTSUP);
    assert_int_equal(open_as(&f, 0, 0, false), -EINVAL);
    for (unsigned i = 0; i < ARRAY_COUNT(cases); i++) {
        *cases[i].fault = (struct fault){.err = cases[i].err, .after = cases[i].after, .times = 1};
        assert_int_equal(open_as(&f, BLKREPL_FILE_DIRECT, 0, false), cases[i].code);
        assert_int_equal(cases[i].fault->times, 0);
        assert_null(f.fb);
        assert_int_equal(next_fd(), fd);
    }
    tear_down(&f);
    memset(&fake, 0, sizeof fake);
}

/* A second descriptor only where there is a tail; nothing in the submitter's
 * thread, not even on tmpfs; and no descriptor is left. */
static void backend_file_direct_goes_to_the_pool(void **state)
{
    static unsigned char data[8192];
    static unsigned char back[8192];
    blkrepl_backend_info info = {.struct_size = sizeof info};
    struct file_pool_stats stats;
    struct fixture f;
    int fd = next_fd();

    (void)state;
    fake.buffered = true;
    set_up(&f, true, BYTES);
    ops->close(f.fb);
    for (int round = 0; round < 3; round++) {
        uint64_t bytes = round == 0 ? BYTES : 2u << 20;

        assert_int_equal(
            open_as(&f, BLKREPL_FILE_CREATE | (round < 2 ? BLKREPL_FILE_DIRECT : 0), bytes, false),
            0);
        assert_int_equal(next_fd(), round == 0 ? fd + 2 : fd + 1);
        assert_int_equal(ops->get_info(f.fb, &info), 0);
        assert_true(round < 2 ? info.request_alignment >= 512 : info.request_alignment == 1);
        assert_true(round < 2 ? info.memory_alignment >= 512 : info.memory_alignment == 1);
        memset(data, 'a' + round, sizeof data);
        assert_int_equal(io_data(ops, f.fb, BLKREPL_OP_WRITE, 0, data, sizeof data), 0);
        assert_int_equal(io_data(ops, f.fb, BLKREPL_OP_READ, 0, back, sizeof back), 0);
        assert_memory_equal(data, back, sizeof data);
        ops->close(f.fb);
        assert_int_equal(next_fd(), fd);
        blkrepl__file_pool_query(f.pool, &stats);
        assert_int_equal(stats.threads > 0, round < 2);
        blkrepl__file_pool_free(f.pool);
        assert_int_equal(blkrepl__file_pool_create(&f.alloc, 2, &f.pool), 0);
    }
    f.fb = NULL;
    tear_down(&f);
    memset(&fake, 0, sizeof fake);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(backend_file_direct_is_refused),
        cmocka_unit_test(backend_file_direct_goes_to_the_pool),
        cmocka_unit_test(backend_file_of_a_device),
        cmocka_unit_test(backend_file_of_a_device_does_not_grow),
        cmocka_unit_test(backend_file_tells_why_it_is_not_opened),
        cmocka_unit_test(backend_file_that_cannot_be_examined_is_closed),
        cmocka_unit_test(backend_file_opens_in_spite_of_signals),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}

#else

int main(void)
{
    return 0;
}

#endif
