/* SPDX-License-Identifier: MIT */
/* uring.h - files as disks of the host's own, driven by io_uring, by bare system
 * calls: no liburing.  Used by uring-backend.c and by tests/bench/uring.c.
 *
 * One ring serves all files of a host.  submit() puts the requests on it and
 * enters the kernel once; what that could do at once (cached data) is completed
 * there and then.  The rest is reported by uring_reap(), which the host calls
 * whenever the ring's descriptor is readable, as it calls blkrepl_poll() for the
 * lane's: see uring_poll(), which waits for both.  No thread is needed.
 *
 *   READ, WRITE  a short transfer goes on from where it stands; what ends before
 *                it should is -EIO; FUA is a write with RWF_DSYNC;
 *   FLUSH        fdatasync;
 *   ZEROES       fallocate; a file system that cannot answers -EOPNOTSUPP, and
 *                the library writes zeroes;
 *   DISCARD      fallocate; where it cannot be, nothing happens.
 *
 * STATUS is left out: there is no asking for holes by io_uring, and lseek(2)
 * would block submit.  So a copy of a sparse file reads its holes.
 *
 * Direct files (O_DIRECT) ask for 4 KiB, and their size has to be a multiple of
 * it; the library does what the guest's requests need for that. */
#ifndef EXAMPLES_URING_H
#define EXAMPLES_URING_H

#include <libblkrepl/libblkrepl.h>

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

struct uring;

/* All return 0, or a negative errno; -ENOSYS: this system has no io_uring. */
static inline int uring_create(blkrepl_context *ctx, struct uring **out);
static inline void uring_free(struct uring *ring);
/* Open a file and an image over it.  bytes > 0: create the file, or grow it. */
static inline int uring_open(struct uring *ring, const char *path, uint64_t bytes, bool direct,
                             const blkrepl_image_options *options, blkrepl_image **out);
/* Sleep until something happens, at most for a tenth of a second; then do what
 * blkrepl_poll() does, for lane 0 and for the ring (NULL: none). */
static inline int uring_poll(blkrepl_context *ctx, struct uring *ring);

#if defined(__linux__) && defined(__has_include)
#if __has_include(<linux/io_uring.h>)
#define URING_HEADERS 1
#endif
#endif

#ifdef URING_HEADERS

#include <linux/falloc.h>
#include <linux/io_uring.h>
#include <pthread.h>
#include <stdatomic.h>
#include <sys/mman.h>
#include <sys/syscall.h>

/* The requests of all files together; the ring never holds more. */
#define URING_ENTRIES 256u
#define URING_FILE_DEPTH 64u
#define URING_ALIGNMENT 4096u

/* What the kernel and we share. */
struct uring_queue {
    _Atomic uint32_t *head;
    _Atomic uint32_t *tail;
    uint32_t mask;
};

struct uring {
    blkrepl_context *ctx;
    int fd;
    uint32_t depth_left; /* for more files */
    void *rings;
    size_t rings_bytes;
    struct io_uring_sqe *sqes;
    size_t sqes_bytes;
    struct uring_queue sq, cq;
    uint32_t *sq_array;
    struct io_uring_cqe *cqes;
    pthread_mutex_t submit_lock; /* submit may run in several threads */
    pthread_mutex_t reap_lock;
};

struct uring_file {
    struct uring *ring;
    int fd;
    bool direct;
    uint64_t bytes;
};

/* The scratch of a request: how much of it is done, and whose it is. */
static inline uint64_t uring_done(const blkrepl_io *io)
{
    return (uintptr_t)io->host[0];
}

static inline struct uring_file *uring_file_of(const blkrepl_io *io)
{
    return io->host[1];
}

/* ---- Requests ---------------------------------------------------------------- */

/* What is left of a transfer.  A READ or WRITE begins with all iovecs; after a
 * short one the rest of an iovec goes by itself, then the next ones. */
static inline void uring_fill_transfer(const blkrepl_io *io, struct io_uring_sqe *sqe)
{
    bool read = io->opcode == BLKREPL_OP_READ;
    uint64_t skip = uring_done(io);
    uint32_t i = 0;

    while (i + 1 < io->iov_count && skip >= io->iov[i].len) {
        skip -= io->iov[i++].len;
    }
    if (skip > 0) {
        sqe->opcode = read ? IORING_OP_READ : IORING_OP_WRITE;
        sqe->addr = (uintptr_t)((char *)io->iov[i].base + skip);
        sqe->len = (uint32_t)(io->iov[i].len - skip);
    } else {
        sqe->opcode = read ? IORING_OP_READV : IORING_OP_WRITEV;
        sqe->addr = (uintptr_t)&io->iov[i]; /* a blkrepl_iovec is a struct iovec */
        sqe->len = io->iov_count - i;
    }
    sqe->off = io->offset + uring_done(io);
    sqe->rw_flags = !read && (io->flags & BLKREPL_IO_FUA) != 0 ? RWF_DSYNC : 0;
}

static inline void uring_fill_space(const blkrepl_io *io, struct io_uring_sqe *sqe)
{
    bool hole = io->opcode == BLKREPL_OP_DISCARD || (io->flags & BLKREPL_IO_MAY_UNMAP) != 0;

    sqe->opcode = IORING_OP_FALLOCATE;
    sqe->off = io->offset;
    sqe->addr = io->bytes;
    sqe->len = FALLOC_FL_KEEP_SIZE | (hole ? FALLOC_FL_PUNCH_HOLE : FALLOC_FL_ZERO_RANGE);
}

static inline void uring_fill(blkrepl_io *io, struct io_uring_sqe *sqe)
{
    memset(sqe, 0, sizeof *sqe);
    sqe->fd = uring_file_of(io)->fd;
    sqe->user_data = (uintptr_t)io;
    switch (io->opcode) {
    case BLKREPL_OP_READ:
    case BLKREPL_OP_WRITE: uring_fill_transfer(io, sqe); break;
    case BLKREPL_OP_ZEROES:
    case BLKREPL_OP_DISCARD: uring_fill_space(io, sqe); break;
    default:
        sqe->opcode = IORING_OP_FSYNC;
        sqe->fsync_flags = IORING_FSYNC_DATASYNC;
        break;
    }
}

/* Hand `count` requests to the kernel.  There is always room: the ring has as
 * many entries as all files together have requests. */
static inline void uring_enter(struct uring *ring, blkrepl_io *const *ios, uint32_t count)
{
    uint32_t tail;

    pthread_mutex_lock(&ring->submit_lock);
    tail = atomic_load_explicit(ring->sq.tail, memory_order_relaxed);
    for (uint32_t i = 0; i < count; i++) {
        uint32_t slot = (tail + i) & ring->sq.mask;

        uring_fill(ios[i], &ring->sqes[slot]);
        ring->sq_array[slot] = slot;
    }
    atomic_store_explicit(ring->sq.tail, tail + count, memory_order_release);
    while (count > 0) {
        long taken = syscall(SYS_io_uring_enter, ring->fd, count, 0, 0, NULL, 0);

        if (taken > 0) {
            count -= (uint32_t)taken;
        } else if (errno != EINTR && errno != EAGAIN && errno != EBUSY) {
            abort(); /* the ring is broken: what it was given is lost */
        }
    }
    pthread_mutex_unlock(&ring->submit_lock);
}

/* The result of a request; false: it goes on. */
static inline bool uring_result(blkrepl_io *io, int result, int *final)
{
    bool transfer = io->opcode == BLKREPL_OP_READ || io->opcode == BLKREPL_OP_WRITE;

    *final = result;
    if (result == -EINTR || result == -EAGAIN) {
        return false;
    }
    if (transfer && result == 0 && io->bytes > 0) {
        *final = -EIO;
    } else if (transfer && result > 0) {
        io->host[0] = (void *)(uintptr_t)(uring_done(io) + (uint32_t)result);
        *final = 0;
        return uring_done(io) == io->bytes;
    } else if (io->opcode == BLKREPL_OP_DISCARD && result == -EOPNOTSUPP) {
        *final = 0;
    }
    return true;
}

/* Report what the kernel has finished. */
static inline void uring_reap(struct uring *ring)
{
    uint32_t head;

    pthread_mutex_lock(&ring->reap_lock);
    head = atomic_load_explicit(ring->cq.head, memory_order_relaxed);
    while (head != atomic_load_explicit(ring->cq.tail, memory_order_acquire)) {
        const struct io_uring_cqe *cqe = &ring->cqes[head & ring->cq.mask];
        blkrepl_io *io = (blkrepl_io *)(uintptr_t)cqe->user_data;
        int result = cqe->res;

        atomic_store_explicit(ring->cq.head, ++head, memory_order_release);
        if (uring_result(io, result, &result)) {
            blkrepl_io_complete(ring->ctx, io->id, result);
        } else {
            uring_enter(ring, &io, 1);
        }
    }
    pthread_mutex_unlock(&ring->reap_lock);
}

/* ---- The backend's functions ------------------------------------------------- */

static inline int uring_get_info(void *user, blkrepl_backend_info *info)
{
    const struct uring_file *file = user;

    info->bytes = file->bytes;
    info->flags = BLKREPL_BACKEND_FUA;
    info->transfer_bytes_max = UINT64_C(1) << 30; /* results are 32 bits wide */
    info->opcodes = 1u << BLKREPL_OP_READ | 1u << BLKREPL_OP_WRITE | 1u << BLKREPL_OP_ZEROES |
                    1u << BLKREPL_OP_DISCARD | 1u << BLKREPL_OP_FLUSH;
    info->queue_depth = URING_FILE_DEPTH;
    info->request_alignment = file->direct ? URING_ALIGNMENT : 1;
    info->memory_alignment = file->direct ? URING_ALIGNMENT : 1;
    return 0;
}

static inline void uring_submit(void *user, uint32_t lane, blkrepl_io *const *ios, uint32_t count)
{
    struct uring_file *file = user;

    (void)lane;
    for (uint32_t i = 0; i < count; i++) {
        ios[i]->host[1] = file;
    }
    uring_enter(file->ring, ios, count);
    uring_reap(file->ring);
}

static inline void uring_close(void *user)
{
    struct uring_file *file = user;

    file->ring->depth_left += URING_FILE_DEPTH;
    close(file->fd);
    free(file);
}

/* ---- Opening ------------------------------------------------------------------- */

static inline int uring_open_fd(const char *path, bool create, bool direct)
{
    int flags = O_RDWR | O_CLOEXEC | (create ? O_CREAT : 0);

#ifdef O_DIRECT
    flags |= direct ? O_DIRECT : 0;
#else
    if (direct) {
        return -ENOTSUP;
    }
#endif
    int fd = open(path, flags, 0600);
    return fd >= 0 ? fd : -errno;
}

/* Its size, grown to `bytes`. */
static inline int uring_measure(struct uring_file *file, uint64_t bytes)
{
    struct stat st;

    if (fstat(file->fd, &st) < 0) {
        return -errno;
    }
    if (!S_ISREG(st.st_mode)) {
        return -ENOTSUP;
    }
    file->bytes = (uint64_t)st.st_size;
    if (file->bytes < bytes && ftruncate(file->fd, (off_t)bytes) < 0) {
        return -errno;
    }
    file->bytes = file->bytes < bytes ? bytes : file->bytes;
    return file->direct && file->bytes % URING_ALIGNMENT != 0 ? -EINVAL : 0;
}

static inline int uring_open(struct uring *ring, const char *path, uint64_t bytes, bool direct,
                             const blkrepl_image_options *options, blkrepl_image **out)
{
    static const blkrepl_backend_ops ops = {.struct_size = sizeof ops,
                                            .get_info = uring_get_info,
                                            .submit = uring_submit,
                                            .close = uring_close};
    struct uring_file *file = calloc(1, sizeof *file);
    int rc;

    if (file == NULL || ring->depth_left < URING_FILE_DEPTH) {
        free(file);
        return -ENOMEM;
    }
    *file = (struct uring_file){.ring = ring, .direct = direct};
    file->fd = uring_open_fd(path, bytes > 0, direct);
    rc = file->fd < 0 ? file->fd : uring_measure(file, bytes);
    if (rc == 0) {
        ring->depth_left -= URING_FILE_DEPTH;
        rc = blkrepl_image_open(ring->ctx, &ops, file, options, out);
        ring->depth_left += rc < 0 ? URING_FILE_DEPTH : 0;
    }
    if (rc < 0) {
        if (file->fd >= 0) {
            close(file->fd);
        }
        free(file);
    }
    return rc;
}

/* ---- The ring ------------------------------------------------------------------ */

static inline struct uring_queue uring_queue_at(char *rings, uint32_t head, uint32_t tail,
                                                uint32_t mask)
{
    return (struct uring_queue){.head = (_Atomic uint32_t *)(void *)(rings + head),
                                .tail = (_Atomic uint32_t *)(void *)(rings + tail),
                                .mask = *(const uint32_t *)(void *)(rings + mask)};
}

static inline void *uring_map(const struct uring *ring, size_t bytes, off_t what)
{
    void *map =
        mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, ring->fd, what);

    return map != MAP_FAILED ? map : NULL;
}

/* Both queues lie in one mapping since Linux 5.4; with less we do not bother. */
static inline int uring_map_all(struct uring *ring, const struct io_uring_params *p)
{
    size_t sq_bytes = p->sq_off.array + p->sq_entries * sizeof(uint32_t);
    size_t cq_bytes = p->cq_off.cqes + p->cq_entries * sizeof(struct io_uring_cqe);
    char *rings;

    if ((p->features & IORING_FEAT_SINGLE_MMAP) == 0) {
        return -ENOSYS;
    }
    ring->rings_bytes = sq_bytes > cq_bytes ? sq_bytes : cq_bytes;
    ring->rings = uring_map(ring, ring->rings_bytes, (off_t)IORING_OFF_SQ_RING);
    ring->sqes_bytes = p->sq_entries * sizeof(struct io_uring_sqe);
    ring->sqes = uring_map(ring, ring->sqes_bytes, (off_t)IORING_OFF_SQES);
    if (ring->rings == NULL || ring->sqes == NULL) {
        return -ENOMEM;
    }
    rings = ring->rings;
    ring->sq = uring_queue_at(rings, p->sq_off.head, p->sq_off.tail, p->sq_off.ring_mask);
    ring->cq = uring_queue_at(rings, p->cq_off.head, p->cq_off.tail, p->cq_off.ring_mask);
    ring->sq_array = (uint32_t *)(void *)(rings + p->sq_off.array);
    ring->cqes = (struct io_uring_cqe *)(void *)(rings + p->cq_off.cqes);
    return 0;
}

static inline int uring_create(blkrepl_context *ctx, struct uring **out)
{
    struct uring *ring = calloc(1, sizeof *ring);
    struct io_uring_params params;
    int rc;

    if (ring == NULL) {
        return -ENOMEM;
    }
    memset(&params, 0, sizeof params);
    ring->ctx = ctx;
    ring->depth_left = URING_ENTRIES;
    pthread_mutex_init(&ring->submit_lock, NULL);
    pthread_mutex_init(&ring->reap_lock, NULL);
    ring->fd = (int)syscall(SYS_io_uring_setup, URING_ENTRIES, &params);
    rc = ring->fd < 0 ? -errno : uring_map_all(ring, &params);
    if (rc < 0) {
        uring_free(ring);
        return rc;
    }
    *out = ring;
    return 0;
}

/* When all its images are gone. */
static inline void uring_free(struct uring *ring)
{
    if (ring == NULL) {
        return;
    }
    if (ring->rings != NULL) {
        munmap(ring->rings, ring->rings_bytes);
    }
    if (ring->sqes != NULL) {
        munmap(ring->sqes, ring->sqes_bytes);
    }
    if (ring->fd >= 0) {
        close(ring->fd);
    }
    pthread_mutex_destroy(&ring->submit_lock);
    pthread_mutex_destroy(&ring->reap_lock);
    free(ring);
}

static inline int uring_fd(const struct uring *ring)
{
    return ring->fd;
}

#else

static inline int uring_create(blkrepl_context *ctx, struct uring **out)
{
    (void)ctx;
    (void)out;
    return -ENOSYS;
}

static inline void uring_free(struct uring *ring)
{
    (void)ring;
}

static inline int uring_open(struct uring *ring, const char *path, uint64_t bytes, bool direct,
                             const blkrepl_image_options *options, blkrepl_image **out)
{
    (void)ring;
    (void)path;
    (void)bytes;
    (void)direct;
    (void)options;
    (void)out;
    return -ENOSYS;
}

static inline void uring_reap(struct uring *ring)
{
    (void)ring;
}

static inline int uring_fd(const struct uring *ring)
{
    (void)ring;
    return -1;
}

#endif

#define URING_SLEEP_NS UINT64_C(100000000)

/* How long to sleep for a deadline of the library, in milliseconds. */
static inline int uring_timeout_ms(blkrepl_context *ctx, uint64_t deadline_ns)
{
    uint64_t now = blkrepl_context_now(ctx);
    uint64_t left = deadline_ns > now ? deadline_ns - now : 0;

    return (int)((left < URING_SLEEP_NS ? left : URING_SLEEP_NS) / 1000000) + 1;
}

static inline int uring_poll(blkrepl_context *ctx, struct uring *ring)
{
    struct pollfd fds[2] = {{.fd = blkrepl_poll_fd(ctx, 0), .events = POLLIN},
                            {.fd = ring != NULL ? uring_fd(ring) : -1, .events = POLLIN}};
    uint64_t deadline;

    if (ring == NULL) {
        return blkrepl_poll(ctx, 0, URING_SLEEP_NS);
    }
    if (blkrepl_poll_arm(ctx, 0, &deadline) == 0) {
        (void)poll(fds, 2, uring_timeout_ms(ctx, deadline));
    }
    uring_reap(ring);
    return blkrepl_poll(ctx, 0, 0);
}

#endif
