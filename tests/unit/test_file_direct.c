/* SPDX-License-Identifier: MIT */
/* O_DIRECT: what alignment is learned, and that it is kept to.  No file system
 * that knows it is needed: the calls are replaced by such as are as strict. */
#ifdef __linux__
#define _GNU_SOURCE
#endif
#include "block/file_direct.h"

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <sys/uio.h>
#ifdef __linux__
#include <sys/syscall.h>
#endif

#include "base/checked.h"
#include "unit/backend_io.h"

#if defined(__linux__) && defined(SYS_statx)

#include "unit/fault.h"

#define TAIL_BYTES 777u
#define BYTES ((4u << 20) + TAIL_BYTES)
#define NEAR_BYTES (2u << 20)
#define PART_BYTES (400u << 10)
#define PIECES 1500
#define DIOALIGN 0x2000u

struct fixture {
    struct alloc alloc;
    struct file file;
    char path[64];
    uint64_t seed;
    blkrepl_iovec iov[PIECES];
};

static unsigned char model[BYTES];
static unsigned char seen[BYTES];
static unsigned char memory[PART_BYTES + FILE_MEMORY_ALIGNMENT_MAX];

/* ---- The system -------------------------------------------------------------------- */

static struct {
    /* statx(2) */
    int statx_errno;
    uint32_t statx_mask;
    uint32_t request;
    uint32_t memory;
    /* Reads to try the alignment. */
    uint32_t wanted; /* EINVAL below */
    struct fault pread;
    bool sparse;
    uint64_t data; /* where it begins */
    unsigned preads;
    /* Transfers. */
    struct file *strict; /* by whose alignment they go */
    bool cut;            /* short transfers */
    uint64_t seed;
    struct fault flagged;
    unsigned moves;
    unsigned durable;
    unsigned syncs;
} fake;

long syscall(long number, ...)
{
    uint32_t *st;
    va_list args;

    va_start(args, number);
    (void)va_arg(args, int);
    (void)va_arg(args, const char *);
    (void)va_arg(args, int);
    (void)va_arg(args, unsigned);
    st = va_arg(args, void *);
    va_end(args);
    if (number != SYS_statx) {
        abort();
    }
    if (fake.statx_errno != 0) {
        errno = fake.statx_errno;
        return -1;
    }
    st[0] = fake.statx_mask;
    st[152 / 4] = fake.memory;
    st[156 / 4] = fake.request;
    return 0;
}

off_t lseek(int fd, off_t offset, int whence)
{
    (void)fd;
    (void)offset;
    if (whence != SEEK_DATA) {
        abort();
    }
    errno = ENXIO;
    return fake.sparse ? -1 : (off_t)fake.data;
}

ssize_t pread(int fd, void *data, size_t bytes, off_t offset)
{
    (void)fd;
    fake.preads++;
    if (fault_due(&fake.pread)) {
        return -1;
    }
    if ((uintptr_t)data % min_u64(fake.wanted, 4096) != 0 || bytes % fake.wanted != 0 ||
        (uint64_t)offset % fake.wanted != 0) {
        errno = EINVAL;
        return -1;
    }
    return (ssize_t)bytes;
}

static uint64_t total(const struct iovec *iov, int count)
{
    uint64_t bytes = 0;

    for (int i = 0; i < count; i++) {
        bytes += iov[i].iov_len;
    }
    return bytes;
}

static bool aligned(const struct file *file, const struct iovec *iov, int count, off_t offset)
{
    for (int i = 0; i < count; i++) {
        if (((uintptr_t)iov[i].iov_base | iov[i].iov_len) % file->memory_alignment != 0) {
            return false;
        }
    }
    return ((uint64_t)offset | total(iov, count)) % file->request_alignment == 0;
}

/* Whether it is let through; and writes near the tail are to be done alone. */
static bool admit(int fd, const struct iovec *iov, int count, off_t offset, bool write)
{
    struct file *file = fake.strict;
    uint64_t end = (uint64_t)offset + total(iov, count);
    bool locked = pthread_mutex_trylock(&file->near_tail) != 0;

    fake.moves++;
    if (!locked) {
        pthread_mutex_unlock(&file->near_tail);
    }
    if (!write || file->tail_fd < 0 || end + PART_BYTES + NEAR_BYTES <= file->tail) {
        assert_false(locked);
    } else if (end + NEAR_BYTES > file->tail) {
        assert_true(locked);
    }
    if (fd == file->tail_fd) {
        assert_true((uint64_t)offset >= file->tail);
        return true;
    }
    assert_true(end <= file->tail);
    if (!aligned(file, iov, count, offset)) {
        errno = EINVAL;
        return false;
    }
    return true;
}

static ssize_t move(bool write, int fd, const struct iovec *iov, int count, off_t offset)
{
    ssize_t (*real)(int fd, const struct iovec *iov, int count, off_t offset);
    struct iovec some[PIECES];
    uint64_t room = UINT64_MAX;

    if (!admit(fd, iov, count, offset, write)) {
        return -1;
    }
    if (fake.cut) {
        room = fd == fake.strict->tail_fd ? 1 : fake.strict->request_alignment;
        room += io_below(&fake.seed, 3 * room);
    }
    for (int i = 0; i < count; i++) {
        some[i] = iov[i];
        some[i].iov_len = (size_t)min_u64(iov[i].iov_len, room);
        room -= some[i].iov_len;
    }
    fault_real(&real, write ? "pwritev64" : "preadv64", write ? "pwritev" : "preadv");
    return real(fd, some, count, offset);
}

ssize_t preadv(int fd, const struct iovec *iov, int count, off_t offset)
{
    return move(false, fd, iov, count, offset);
}

ssize_t pwritev(int fd, const struct iovec *iov, int count, off_t offset)
{
    return move(true, fd, iov, count, offset);
}

ssize_t pwritev2(int fd, const struct iovec *iov, int count, off_t offset, int flags)
{
    assert_int_equal(flags, RWF_DSYNC);
    fake.durable++;
    return fault_due(&fake.flagged) ? -1 : move(true, fd, iov, count, offset);
}

int fdatasync(int fd)
{
    assert_int_equal(fd, fake.strict->fd);
    fake.syncs++;
    return 0;
}

/* ---- What is learned --------------------------------------------------------------- */

static int learn(struct fixture *f, bool device, uint32_t sector_bytes, uint64_t bytes)
{
    memset(f, 0, sizeof *f);
    assert_int_equal(blkrepl__alloc_init(&f->alloc, NULL), 0);
    f->file = (struct file){.fd = -1, .device = device, .sector_bytes = sector_bytes};
    f->file.bytes = bytes;
    return blkrepl__file_direct_learn(&f->file, &f->alloc);
}

static void assert_learned(const struct fixture *f, uint32_t request, uint32_t memory_alignment)
{
    assert_int_equal(f->file.request_alignment, request);
    assert_int_equal(f->file.memory_alignment, memory_alignment);
    assert_int_equal(f->file.tail, f->file.bytes - f->file.bytes % request);
}

/* "alignment that images do not have (64 KiB of requests, 4 KiB of memory)" */
static void file_direct_is_told_by_the_system(void **state)
{
    static const struct {
        uint32_t said_request;
        uint32_t said_memory;
        uint32_t request; /* 0: -ENOTSUP */
        uint32_t memory;
    } cases[] = {
        {512, 512, 512, 512},
        {4096, 512, 4096, 512},
        {512, 4, 512, 512},
        {1, 1, 512, 512},
        {512, 4096, 4096, 4096},
        {65536, 4096, 65536, 4096},
        {131072, 512, 0, 0},
        {4096, 8192, 0, 0},
        {3000, 512, 0, 0},
        {65536, 3000, 0, 0},
        {0, 0, 0, 0},
        {0, 512, 0, 0},
        {512, 0, 0, 0},
    };
    struct fixture f;

    (void)state;
    memset(&fake, 0, sizeof fake);
    fake.statx_mask = 0x7ff | DIOALIGN;
    for (unsigned i = 0; i < ARRAY_COUNT(cases); i++) {
        fake.request = cases[i].said_request;
        fake.memory = cases[i].said_memory;
        assert_int_equal(learn(&f, false, 0, 1000001), cases[i].request == 0 ? -ENOTSUP : 0);
        if (cases[i].request != 0) {
            assert_learned(&f, cases[i].request, cases[i].memory);
        }
    }
    assert_int_equal(fake.preads, 0);
}

/* Of a device it is the sectors; and never less, whatever else is told. */
static void file_direct_of_a_device_is_its_sectors(void **state)
{
    struct fixture f;

    (void)state;
    memset(&fake, 0, sizeof fake);
    fake.statx_errno = ENOSYS;
    assert_int_equal(learn(&f, true, 512, 1 << 20), 0);
    assert_learned(&f, 512, 512);
    assert_int_equal(learn(&f, true, 4096, 1 << 20), 0);
    assert_learned(&f, 4096, 4096);
    assert_int_equal(learn(&f, true, 65536, 1 << 20), 0);
    assert_learned(&f, 65536, 4096);
    assert_int_equal(learn(&f, true, 131072, 1 << 20), -ENOTSUP);
    memset(&fake, 0, sizeof fake);
    fake.statx_mask = DIOALIGN;
    fake.request = 512;
    fake.memory = 512;
    assert_int_equal(learn(&f, true, 4096, 1 << 20), 0);
    assert_learned(&f, 4096, 512);
    assert_int_equal(fake.preads, 0);
}

static void file_direct_is_tried_where_it_is_not_told(void **state)
{
    static const uint32_t wanted[] = {512, 1024, 4096, 65536};
    struct fixture f;

    (void)state;
    memset(&fake, 0, sizeof fake);
    fake.data = 12 * 512; /* statx is there, but does not know this field */
    fake.statx_mask = 0x7ff;
    fake.request = 8;
    fake.memory = 8;
    for (unsigned i = 0; i < ARRAY_COUNT(wanted); i++) {
        fake.wanted = wanted[i];
        assert_int_equal(learn(&f, false, 0, 1000001), 0);
        assert_learned(&f, wanted[i], (uint32_t)min_u64(wanted[i], 4096));
    }
    fake.statx_errno = EPERM;
    fake.wanted = 131072;
    assert_int_equal(learn(&f, false, 0, 1000001), -ENOTSUP);
    /* Holes say nothing about less than the default. */
    fake.sparse = true;
    fake.wanted = 512;
    assert_int_equal(learn(&f, false, 0, 1000001), 0);
    assert_learned(&f, 4096, 4096);
    fake.wanted = 16384;
    assert_int_equal(learn(&f, false, 0, 1000001), 0);
    assert_learned(&f, 16384, 4096);
}

/* Data that cannot be read was still asked for in the right way. */
static void file_direct_is_tried_in_spite_of_errors(void **state)
{
    struct fixture f;

    (void)state;
    memset(&fake, 0, sizeof fake);
    fake.statx_errno = ENOSYS;
    fake.wanted = 2048;
    fake.pread = (struct fault){.err = EINTR, .after = 1, .times = 3};
    assert_int_equal(learn(&f, false, 0, 1000001), 0);
    assert_learned(&f, 2048, 2048);
    assert_int_equal(fake.preads, 6);
    fake.pread = (struct fault){.err = EIO, .times = 1};
    assert_int_equal(learn(&f, false, 0, 1000001), 0);
    assert_learned(&f, 512, 512);
}

static void *no_buffer(void *user, size_t align, size_t bytes)
{
    (void)user;
    (void)align;
    (void)bytes;
    return NULL;
}

static void file_direct_without_memory_is_not_tried(void **state)
{
    struct fixture f;

    (void)state;
    memset(&fake, 0, sizeof fake);
    fake.statx_errno = ENOSYS;
    fake.wanted = 512;
    assert_int_equal(learn(&f, false, 0, 4096), 0);
    f.alloc.hooks.buffer_alloc = no_buffer;
    assert_int_equal(blkrepl__file_direct_learn(&f.file, &f.alloc), -ENOMEM);
}

/* ---- That it is kept to ------------------------------------------------------------ */

static void set_up(struct fixture *f, uint32_t request, uint32_t memory_alignment, uint64_t bytes)
{
    memset(&fake, 0, sizeof fake);
    memset(f, 0, sizeof *f);
    f->seed = 11;
    assert_non_null(io_path(false, "file-direct", f->path, sizeof f->path));
    f->file.fd = open(f->path, O_RDWR | O_CREAT | O_EXCL, 0600);
    assert_true(f->file.fd >= 0);
    f->file.direct = true;
    f->file.bytes = bytes;
    f->file.request_alignment = request;
    f->file.memory_alignment = memory_alignment;
    f->file.tail = bytes - bytes % request;
    f->file.tail_fd = f->file.tail < bytes ? open(f->path, O_RDWR) : -1;
    pthread_mutex_init(&f->file.near_tail, NULL);
    pthread_mutex_init(&f->file.seen.lock, NULL);
    io_fill(&f->seed, model, bytes);
    assert_int_equal(pwrite(f->file.fd, model, bytes, 0), bytes);
    fake.strict = &f->file;
    fake.seed = 5;
}

static void tear_down(struct fixture *f)
{
    close(f->file.fd);
    if (f->file.tail_fd >= 0) {
        close(f->file.tail_fd);
    }
    pthread_mutex_destroy(&f->file.near_tail);
    pthread_mutex_destroy(&f->file.seen.lock);
    unlink(f->path);
}

/* As the library cuts it: pieces of a multiple of the memory alignment, some of
 * them empty, the last one as long as it happens to be. */
static blkrepl_io make_io(struct fixture *f, uint32_t opcode, uint64_t offset, uint64_t bytes)
{
    uint32_t unit = f->file.memory_alignment;
    uint64_t most = 2 * (bytes / (1 + io_below(&f->seed, PIECES)) + unit);
    unsigned char *at = memory + (unit - (uintptr_t)memory % unit) % unit;
    uint32_t count = 0;
    uint64_t left = bytes;

    while (left > 0) {
        uint64_t piece = io_below(&f->seed, most) / unit * unit;

        piece = count == PIECES - 1 ? left : min_u64(piece, left);
        f->iov[count++] = (blkrepl_iovec){.base = at, .len = (size_t)piece};
        at += piece;
        left -= piece;
    }
    return (blkrepl_io){.struct_size = sizeof(blkrepl_io),
                        .opcode = opcode,
                        .offset = offset,
                        .bytes = bytes,
                        .iov = f->iov,
                        .iov_count = count};
}

/* A range that the library may ask for; every other one to the end. */
static blkrepl_io draw_io(struct fixture *f)
{
    uint32_t unit = f->file.request_alignment;
    uint64_t end = f->file.bytes;
    uint64_t bytes;

    if (end >= unit && io_below(&f->seed, 2) == 0) {
        end = (1 + io_below(&f->seed, f->file.bytes / unit)) * unit;
    }
    bytes = min_u64(io_below(&f->seed, PART_BYTES), end);
    bytes = end - align_up(end - bytes, unit);
    bytes = bytes > PART_BYTES ? 0 : bytes;
    return make_io(f, io_below(&f->seed, 2) == 0 ? BLKREPL_OP_WRITE : BLKREPL_OP_READ, end - bytes,
                   bytes);
}

static void run_one(struct fixture *f)
{
    blkrepl_io io = draw_io(f);
    unsigned char *data = io.iov_count > 0 ? f->iov[0].base : memory;
    uint64_t done = 0;

    io_fill(&f->seed, data, io.bytes);
    if (io.opcode == BLKREPL_OP_WRITE) {
        memcpy(model + io.offset, data, io.bytes);
    }
    assert_int_equal(blkrepl__file_transfer(&f->file, &io, false, &done), 0);
    assert_int_equal(done, io.bytes);
    assert_memory_equal(data, model + io.offset, io.bytes);
}

static void assert_file(const struct fixture *f)
{
    ssize_t (*real)(int fd, void *data, size_t bytes, off_t offset);

    fault_real(&real, "pread64", "pread");
    assert_int_equal(real(f->file.fd, seen, BYTES, 0), f->file.bytes);
    assert_memory_equal(seen, model, f->file.bytes);
}

/* Any request that the library may send, in whatever pieces the system moves it,
 * is moved in whole blocks, but for the tail. */
static void file_direct_keeps_to_the_alignment(void **state)
{
    static const struct {
        uint32_t request;
        uint32_t memory;
        uint32_t bytes;
    } cases[] = {{512, 512, BYTES},
                 {4096, 512, BYTES},
                 {4096, 4096, BYTES},
                 {65536, 512, BYTES},
                 {512, 512, BYTES - TAIL_BYTES},
                 {65536, 4096, 100000},
                 {65536, 4096, 30000},
                 {512, 512, 512}};
    static struct fixture f;

    (void)state;
    for (unsigned i = 0; i < 2 * ARRAY_COUNT(cases); i++) {
        set_up(&f, cases[i / 2].request, cases[i / 2].memory, cases[i / 2].bytes);
        fake.cut = i % 2 == 1;
        for (int round = 0; round < 60; round++) {
            run_one(&f);
        }
        assert_file(&f);
        tear_down(&f);
    }
}

/* It always may block, so that whoever must not wait does not try. */
static void file_direct_is_never_tried_without_blocking(void **state)
{
    static struct fixture f;
    uint64_t done = 0;
    blkrepl_io io;

    (void)state;
    set_up(&f, 512, 512, BYTES);
    io = make_io(&f, BLKREPL_OP_READ, 0, 4096);
    assert_false(blkrepl__file_may_nowait(&f.file, &io));
    assert_int_equal(blkrepl__file_transfer(&f.file, &io, true, &done), FILE_WOULD_BLOCK);
    assert_int_equal(done, 0);
    assert_int_equal(fake.moves, 0);
    tear_down(&f);
}

/* FUA: of the blocks and of the tail; by a sync where single writes cannot. */
static void file_direct_writes_durably(void **state)
{
    static struct fixture f;
    uint64_t done = 0;
    blkrepl_io io;

    (void)state;
    set_up(&f, 512, 512, BYTES);
    io = make_io(&f, BLKREPL_OP_WRITE, BYTES - TAIL_BYTES, TAIL_BYTES);
    io.flags = BLKREPL_IO_FUA;
    assert_int_equal(blkrepl__file_transfer(&f.file, &io, false, &done), 0);
    assert_int_equal(fake.durable, 2); /* a block, and the tail */
    assert_int_equal(fake.syncs, 0);
    done = 0;
    fake.flagged = (struct fault){.err = EOPNOTSUPP, .times = 1};
    assert_int_equal(blkrepl__file_transfer(&f.file, &io, false, &done), 0);
    assert_int_equal(fake.durable, 3);
    assert_int_equal(fake.syncs, 1);
    done = 0;
    io.flags = 0;
    assert_int_equal(blkrepl__file_transfer(&f.file, &io, false, &done), 0);
    assert_int_equal(fake.syncs, 1);
    tear_down(&f);
}

/* A file that was shortened ends within a block, or within the tail. */
static void file_direct_past_the_end_is_an_error(void **state)
{
    static const uint64_t ends[] = {8192, 10000, BYTES - 100};
    static struct fixture f;

    (void)state;
    for (unsigned i = 0; i < ARRAY_COUNT(ends); i++) {
        uint64_t start = i == 2 ? align_down(BYTES, 512) : 4096;
        uint64_t done = 0;
        blkrepl_io io;

        set_up(&f, 512, 512, BYTES);
        assert_int_equal(ftruncate(f.file.fd, (off_t)ends[i]), 0);
        io = make_io(&f, BLKREPL_OP_READ, start, i == 2 ? BYTES - start : 16384);
        assert_int_equal(blkrepl__file_transfer(&f.file, &io, false, &done), -EIO);
        assert_int_equal(done, i == 2 ? ends[i] - start : align_down(ends[i] - start, 512));
        tear_down(&f);
    }
}

/* Pieces so small that a block does not fit into one call are a fault of ours,
 * and end as such. */
static void file_direct_with_crumbs_is_refused(void **state)
{
    static struct fixture f;
    uint64_t done = 0;
    blkrepl_io io;

    (void)state;
    set_up(&f, 65536, 512, BYTES);
    io = make_io(&f, BLKREPL_OP_READ, 0, 65536);
    for (uint32_t i = 0; i < PIECES; i++) {
        f.iov[i] = (blkrepl_iovec){.base = memory, .len = 64};
    }
    io.iov_count = PIECES;
    assert_int_equal(blkrepl__file_transfer(&f.file, &io, false, &done), -EINVAL);
    io.iov_count = 0;
    assert_int_equal(blkrepl__file_transfer(&f.file, &io, false, &done), -EINVAL);
    assert_int_equal(done, 0);
    assert_int_equal(fake.moves, 0);
    tear_down(&f);
}

static void file_direct_reports_what_the_system_says(void **state)
{
    static struct fixture f;
    uint64_t done = 0;
    blkrepl_io io;

    (void)state;
    set_up(&f, 512, 512, BYTES);
    close(f.file.fd);
    f.file.fd = open(f.path, O_RDONLY);
    io = make_io(&f, BLKREPL_OP_WRITE, 0, 512);
    assert_int_equal(blkrepl__file_transfer(&f.file, &io, false, &done), -EBADF);
    io = make_io(&f, BLKREPL_OP_WRITE, BYTES - BYTES % 512 - 512, 512);
    assert_int_equal(blkrepl__file_transfer(&f.file, &io, false, &done), -EBADF);
    assert_int_equal(pthread_mutex_trylock(&f.file.near_tail), 0);
    pthread_mutex_unlock(&f.file.near_tail);
    tear_down(&f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(file_direct_is_told_by_the_system),
        cmocka_unit_test(file_direct_of_a_device_is_its_sectors),
        cmocka_unit_test(file_direct_is_tried_where_it_is_not_told),
        cmocka_unit_test(file_direct_is_tried_in_spite_of_errors),
        cmocka_unit_test(file_direct_without_memory_is_not_tried),
        cmocka_unit_test(file_direct_keeps_to_the_alignment),
        cmocka_unit_test(file_direct_is_never_tried_without_blocking),
        cmocka_unit_test(file_direct_writes_durably),
        cmocka_unit_test(file_direct_past_the_end_is_an_error),
        cmocka_unit_test(file_direct_with_crumbs_is_refused),
        cmocka_unit_test(file_direct_reports_what_the_system_says),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}

#else

int main(void)
{
    return 0;
}

#endif
