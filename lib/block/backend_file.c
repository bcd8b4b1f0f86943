/* SPDX-License-Identifier: MIT */
/* backend_file.c - the bundled backend over a regular file or a block device.
 *
 * A request's host[2] says how many bytes of it have been moved, so that what
 * was begun without blocking goes on in the pool from where it stands. */
#ifdef __linux__
#define _GNU_SOURCE
#endif
#ifndef _FILE_OFFSET_BITS
#define _FILE_OFFSET_BITS 64
#endif
#include "block/backend_file.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/checked.h"
#include "block/file_copy.h"
#include "block/file_direct.h"
#include "block/file_space.h"
#include "block/file_status.h"

#define FILE_QUEUE_DEPTH_DEFAULT 64
#define FILE_QUEUE_DEPTH_MAX 4096
#define FILE_MODE_DEFAULT 0600
#define FILE_IOV_COUNT_MAX 1024
#define FILE_FLAGS (uint32_t)(BLKREPL_FILE_CREATE | BLKREPL_FILE_EXCLUSIVE | BLKREPL_FILE_DIRECT)
#ifdef O_DIRECT
#define FILE_O_DIRECT O_DIRECT
#else
#define FILE_O_DIRECT 0
#endif
/* The longest write of a job that is done by whoever submits it, if the file is
 * in memory. */
#define FILE_TRIFLE_BYTES (UINT64_C(64) << 10)
/* A device may carry out zeroes by writing them. */
#define FILE_DEVICE_ZEROES_BYTES_MAX (UINT64_C(1) << 30)

struct file_backend {
    /* Set at open. */
    struct pool_client client;
    blkrepl_context *ctx;
    const struct alloc *alloc;
    struct file_pool *pool;
    int (*complete)(blkrepl_context *ctx, uint64_t id, int result);
    bool read_only;
    uint32_t queue_depth;
    uint64_t identity_device;
    uint64_t identity_inode;
    /* See there. */
    struct file file;
};

/* The address is what all file backends have in common. */
static char file_copy_domain;

/* ---- Doing requests --------------------------------------------------------------- */

static int file_do_transfer(struct file_backend *fb, blkrepl_io *io, bool nowait)
{
    uint64_t done = (uintptr_t)io->host[2];
    int rc = blkrepl__file_transfer(&fb->file, io, nowait, &done);

    io->host[2] = (void *)(uintptr_t)done;
    return rc;
}

static int file_do_copy(struct file_backend *fb, const blkrepl_io *io)
{
    const struct file_backend *from = io->source_user;

    return fb->read_only ? -EROFS : blkrepl__file_copy(&fb->file, &from->file, io);
}

/* Returns the result, or FILE_WOULD_BLOCK. */
static int file_do(struct file_backend *fb, blkrepl_io *io, bool nowait)
{
    switch (io->opcode) {
    case BLKREPL_OP_READ: return file_do_transfer(fb, io, nowait);
    case BLKREPL_OP_WRITE: return fb->read_only ? -EROFS : file_do_transfer(fb, io, nowait);
    case BLKREPL_OP_ZEROES: return fb->read_only ? -EROFS : blkrepl__file_zeroes(&fb->file, io);
    case BLKREPL_OP_DISCARD: return fb->read_only ? -EROFS : blkrepl__file_discard(&fb->file, io);
    case BLKREPL_OP_FLUSH: return blkrepl__file_sync(&fb->file);
    case BLKREPL_OP_STATUS:
        return blkrepl__file_status(&fb->file, io, nowait && !fb->file.in_memory);
    case BLKREPL_OP_COPY_FROM: return file_do_copy(fb, io);
    default: return -ENOTSUP;
    }
}

/* Neither fb nor io may be touched after a true. */
static bool file_run(struct pool_client *client, blkrepl_io *io, bool may_block)
{
    struct file_backend *fb = CONTAINER_OF(client, struct file_backend, client);
    int rc = file_do(fb, io, !may_block);

    if (rc == FILE_WOULD_BLOCK) {
        return false;
    }
    (void)fb->complete(fb->ctx, io->id, rc);
    return true;
}

static bool file_both_in_memory(const struct file_backend *fb, const blkrepl_io *io)
{
    const struct file_backend *from = io->source_user;

    return fb->file.in_memory && from->file.in_memory;
}

/* Whether file_run() would, or at least might, not block. */
static bool file_may_nowait(struct file_backend *fb, const blkrepl_io *io)
{
    switch (io->opcode) {
    case BLKREPL_OP_READ:
    case BLKREPL_OP_WRITE: return blkrepl__file_may_nowait(&fb->file, io);
    case BLKREPL_OP_ZEROES:
    case BLKREPL_OP_DISCARD:
    case BLKREPL_OP_FLUSH: return fb->file.in_memory;
    case BLKREPL_OP_COPY_FROM: return file_both_in_memory(fb, io);
    default: return true;
    }
}

static bool file_helpable(struct pool_client *client, const blkrepl_io *io)
{
    struct file_backend *fb = CONTAINER_OF(client, struct file_backend, client);

    /* In a long file in memory even a STATUS can take milliseconds. */
    return io->opcode != BLKREPL_OP_STATUS && io->bytes <= FILE_INLINE_BYTES &&
           file_may_nowait(fb, io);
}

/* ---- The backend's functions -------------------------------------------------------- */

static int file_get_info(void *user, blkrepl_backend_info *info)
{
    const struct file_backend *fb = user;
    uint32_t writing = 1u << BLKREPL_OP_WRITE | 1u << BLKREPL_OP_ZEROES | 1u << BLKREPL_OP_DISCARD |
                       1u << BLKREPL_OP_COPY_FROM;

    info->bytes = fb->file.bytes;
    info->flags = BLKREPL_BACKEND_FUA;
    info->transfer_bytes_max = FILE_TRANSFER_BYTES_MAX;
    info->zeroes_bytes_max = fb->file.device ? FILE_DEVICE_ZEROES_BYTES_MAX : 0;
    info->opcodes = 1u << BLKREPL_OP_READ | 1u << BLKREPL_OP_FLUSH | writing;
    if (blkrepl__file_status_supported(&fb->file)) {
        info->opcodes |= 1u << BLKREPL_OP_STATUS;
    }
    info->queue_depth = fb->queue_depth;
    info->request_alignment = fb->file.request_alignment;
    info->memory_alignment = fb->file.memory_alignment;
    info->iov_count_max = FILE_IOV_COUNT_MAX;
    info->cluster_bytes = 0;
    info->copy_bytes_max = FILE_TRANSFER_BYTES_MAX;
    info->copy_domain = fb->file.direct ? NULL : &file_copy_domain;
    if (fb->read_only) {
        info->flags = BLKREPL_BACKEND_READ_ONLY;
        info->opcodes &= ~writing;
    }
    return 0;
}

static uint64_t file_cost(const blkrepl_io *io)
{
    return io->opcode == BLKREPL_OP_STATUS || io->opcode == BLKREPL_OP_FLUSH ? 0 : io->bytes;
}

/* Unlike data, an answer that is at hand costs less than to queue it. */
static bool file_answer_known(struct file_backend *fb, blkrepl_io *io)
{
    if (io->opcode != BLKREPL_OP_STATUS ||
        blkrepl__file_status(&fb->file, io, true) == FILE_WOULD_BLOCK) {
        return false;
    }
    (void)fb->complete(fb->ctx, io->id, 0);
    return true;
}

/* Whether a request of a job is so short that to hand it over would cost more
 * than to do it: a copy made for a guest, as a rule, whose data are still in
 * this CPU's cache. */
static bool file_is_trifle(const struct file_backend *fb, const blkrepl_io *io)
{
    return fb->file.in_memory && io->opcode == BLKREPL_OP_WRITE && io->bytes <= FILE_TRIFLE_BYTES;
}

/* Do a request in the submitter's thread if that is right; *room is what may be
 * moved yet. */
static bool file_inline(struct file_backend *fb, blkrepl_io *io, uint64_t *room)
{
    if ((io->flags & BLKREPL_IO_BACKGROUND) != 0 && !file_is_trifle(fb, io)) {
        return file_answer_known(fb, io);
    }
    if (file_cost(io) > *room || !file_may_nowait(fb, io)) {
        return false;
    }
    *room -= file_cost(io);
    return file_run(&fb->client, io, false);
}

static void file_submit(void *user, uint32_t lane, blkrepl_io *const *ios, uint32_t count)
{
    struct file_backend *fb = user;
    struct pool_queue batch = {.first = NULL};
    uint64_t room = FILE_INLINE_BYTES;
    bool guest = false;

    (void)lane;
    for (uint32_t i = 0; i < count; i++) {
        blkrepl_io *io = ios[i];

        guest = guest || (io->flags & BLKREPL_IO_BACKGROUND) == 0;
        if (!file_inline(fb, io, &room)) {
            blkrepl__file_pool_batch(&batch, &fb->client, io);
        }
    }
    if (guest) {
        blkrepl__file_pool_note_guest(fb->pool);
    }
    if (batch.count > 0) {
        blkrepl__file_pool_add(fb->pool, &batch);
    }
}

/* What a thread has begun is waited for. */
static void file_cancel(void *user, uint64_t id)
{
    struct file_backend *fb = user;
    blkrepl_io *io = blkrepl__file_pool_cancel(fb->pool, &fb->client, id);

    if (io != NULL) {
        (void)fb->complete(fb->ctx, id, -ECANCELED);
    }
}

static void file_close(void *user)
{
    struct file_backend *fb = user;

    if (fb->file.fd >= 0) {
        close(fb->file.fd);
    }
    if (fb->file.tail_fd >= 0) {
        close(fb->file.tail_fd);
    }
    pthread_mutex_destroy(&fb->file.near_tail);
    pthread_mutex_destroy(&fb->file.seen.lock);
    blkrepl__free(fb->alloc, fb);
}

const blkrepl_backend_ops blkrepl__file_backend_ops = {
    .struct_size = sizeof(blkrepl_backend_ops),
    .get_info = file_get_info,
    .submit = file_submit,
    .cancel = file_cancel,
    .close = file_close,
};

/* ---- Opening ------------------------------------------------------------------------ */

static int file_check_options(const blkrepl_file_options *options, bool read_only)
{
    bool create = (options->flags & BLKREPL_FILE_CREATE) != 0;

    if ((options->flags & ~FILE_FLAGS) != 0 || options->bytes > BLKREPL_IMAGE_BYTES_MAX ||
        options->mode > 07777 || options->queue_depth > FILE_QUEUE_DEPTH_MAX) {
        return -EINVAL;
    }
    if (!create && (options->bytes != 0 || (options->flags & BLKREPL_FILE_EXCLUSIVE) != 0)) {
        return -EINVAL;
    }
#ifndef O_DIRECT
    if ((options->flags & BLKREPL_FILE_DIRECT) != 0) {
        return -ENOTSUP;
    }
#endif
    return create && read_only ? -EINVAL : 0;
}

static bool file_is_disk(const struct stat *st)
{
    return S_ISREG(st->st_mode) || S_ISBLK(st->st_mode);
}

/* Why open(2) failed: what is no disk often fails with a code of its own, and a
 * file system that does not know O_DIRECT with EINVAL. */
static int file_open_error(const char *path, int flags, int err)
{
    struct stat st;

    if (err == EINVAL && (flags & FILE_O_DIRECT) != 0) {
        return -ENOTSUP;
    }
    if ((err == EISDIR || err == ENXIO || err == ENODEV || err == EOPNOTSUPP) &&
        stat(path, &st) == 0 && !file_is_disk(&st)) {
        return -ENOTSUP;
    }
    return -err;
}

/* A fifo must not make us wait, hence O_NONBLOCK until we know what it is.
 * Returns: a descriptor or a negated errno. */
static int file_open_fd(const char *path, const blkrepl_file_options *options, bool read_only)
{
    int flags = O_CLOEXEC | O_NOCTTY | O_NONBLOCK | (read_only ? O_RDONLY : O_RDWR);
    mode_t mode = (mode_t)(options->mode != 0 ? options->mode : FILE_MODE_DEFAULT);
    int fd;

    if ((options->flags & BLKREPL_FILE_CREATE) != 0) {
        flags |= O_CREAT;
    }
    if ((options->flags & BLKREPL_FILE_EXCLUSIVE) != 0) {
        flags |= O_EXCL;
    }
    if ((options->flags & BLKREPL_FILE_DIRECT) != 0) {
        flags |= FILE_O_DIRECT;
    }
    do {
        fd = open(path, flags, mode);
    } while (fd < 0 && errno == EINTR);
    return fd >= 0 ? fd : file_open_error(path, flags, errno);
}

static int file_let_block(int fd)
{
    int flags = fcntl(fd, F_GETFL);

    return flags < 0 || fcntl(fd, F_SETFL, flags & ~O_NONBLOCK) < 0 ? -errno : 0;
}

/* No file has the inode number 0, so it can stand for "a device". */
static void file_identify(const struct stat *st, uint64_t *device, uint64_t *inode)
{
    *device = (uint64_t)(S_ISBLK(st->st_mode) ? st->st_rdev : st->st_dev);
    *inode = S_ISBLK(st->st_mode) ? 0 : (uint64_t)st->st_ino;
}

/* Learn what was opened. */
static int file_examine(struct file_backend *fb)
{
    struct stat st;
    int rc;

    if (fstat(fb->file.fd, &st) < 0) {
        return -errno;
    }
    if (!file_is_disk(&st)) {
        return -ENOTSUP;
    }
    rc = file_let_block(fb->file.fd);
    if (rc < 0) {
        return rc;
    }
    fb->file.device = S_ISBLK(st.st_mode);
    file_identify(&st, &fb->identity_device, &fb->identity_inode);
    fb->file.in_memory = !fb->file.device && blkrepl__file_is_in_memory(fb->file.fd);
    return blkrepl__file_measure(&fb->file);
}

static int file_grow(struct file *file, uint64_t bytes)
{
    int rc;

    if (file->bytes >= bytes) {
        return 0;
    }
    if (file->device) {
        return -ENOSPC;
    }
    if ((uint64_t)(off_t)bytes != bytes) {
        return -EFBIG;
    }
    do {
        rc = ftruncate(file->fd, (off_t)bytes);
    } while (rc < 0 && errno == EINTR);
    if (rc < 0) {
        return -errno;
    }
    file->bytes = bytes;
    return 0;
}

/* Open the file once more, for its tail.  The path may have been given to
 * another file meanwhile. */
static int file_open_tail(struct file_backend *fb, const char *path)
{
    static const blkrepl_file_options plain = {.flags = 0};
    uint64_t device;
    uint64_t inode;
    struct stat st;

    if (fb->file.tail == fb->file.bytes) {
        return 0;
    }
    fb->file.tail_fd = file_open_fd(path, &plain, fb->read_only);
    if (fb->file.tail_fd < 0) {
        return fb->file.tail_fd;
    }
    if (fstat(fb->file.tail_fd, &st) < 0) {
        return -errno;
    }
    file_identify(&st, &device, &inode);
    if (device != fb->identity_device || inode != fb->identity_inode) {
        return -ESTALE;
    }
    return file_let_block(fb->file.tail_fd);
}

static int file_go_direct(struct file_backend *fb, const char *path)
{
    int rc = blkrepl__file_direct_learn(&fb->file, fb->alloc);

    return rc < 0 ? rc : file_open_tail(fb, path);
}

/* Open and learn all that the options are about. */
static int file_open(struct file_backend *fb, const char *path, const blkrepl_file_options *options)
{
    int rc;

    fb->file.fd = file_open_fd(path, options, fb->read_only);
    rc = fb->file.fd < 0 ? fb->file.fd : file_examine(fb);
    if (rc == 0) {
        rc = file_grow(&fb->file, options->bytes);
    }
    if (rc == 0 && fb->file.direct) {
        rc = file_go_direct(fb, path);
    }
    return rc;
}

/* One that is not open yet; NULL without memory. */
static struct file_backend *file_create(const struct alloc *alloc)
{
    struct file_backend *fb = blkrepl__zalloc(alloc, sizeof *fb);

    if (fb == NULL) {
        return NULL;
    }
    if (pthread_mutex_init(&fb->file.seen.lock, NULL) != 0) {
        goto fail;
    }
    if (pthread_mutex_init(&fb->file.near_tail, NULL) != 0) {
        pthread_mutex_destroy(&fb->file.seen.lock);
        goto fail;
    }
    fb->client = (struct pool_client){.run = file_run, .helpable = file_helpable};
    fb->alloc = alloc;
    fb->complete = blkrepl_io_complete;
    fb->file.fd = -1;
    fb->file.tail_fd = -1;
    fb->file.request_alignment = 1;
    fb->file.memory_alignment = 1;
    return fb;

fail:
    blkrepl__free(alloc, fb);
    return NULL;
}

int blkrepl__file_backend_open(blkrepl_context *ctx, const struct alloc *alloc,
                               struct file_pool *pool, const char *path,
                               const blkrepl_file_options *options, bool read_only,
                               struct file_backend **out)
{
    struct file_backend *fb;
    int rc = file_check_options(options, read_only);

    if (rc < 0) {
        return rc;
    }
    fb = file_create(alloc);
    if (fb == NULL) {
        return -ENOMEM;
    }
    fb->ctx = ctx;
    fb->pool = pool;
    fb->read_only = read_only;
    fb->queue_depth = options->queue_depth != 0 ? options->queue_depth : FILE_QUEUE_DEPTH_DEFAULT;
    fb->file.direct = (options->flags & BLKREPL_FILE_DIRECT) != 0;
    rc = file_open(fb, path, options);
    if (rc < 0) {
        blkrepl__file_backend_discard(fb);
        return rc;
    }
    *out = fb;
    return 0;
}

void blkrepl__file_backend_discard(struct file_backend *fb)
{
    if (fb != NULL) {
        file_close(fb);
    }
}

void blkrepl__file_backend_identity(const struct file_backend *fb, uint64_t *device,
                                    uint64_t *inode)
{
    *device = fb->identity_device;
    *inode = fb->identity_inode;
}

void blkrepl__file_backend_set_complete(struct file_backend *fb,
                                        int (*complete)(blkrepl_context *ctx, uint64_t id,
                                                        int result))
{
    fb->complete = complete;
}
