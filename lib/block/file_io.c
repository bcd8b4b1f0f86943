/* SPDX-License-Identifier: MIT */
/* file_io.c - moving data to and from a file.
 *
 * The caller's iovecs are never changed.  To go on after a short transfer in
 * the middle of one, the rest of that iovec is moved by itself, and then the
 * array is used again from the next one on.
 *
 * Past the page cache (O_DIRECT) each call moves whole blocks, gathered in an
 * array of its own, since iovecs may end within a block; of a short transfer
 * only whole blocks count.  What lies behind the last whole block of the file,
 * its tail, is moved through the page cache.  A page of that may also hold bytes
 * before the tail, and written back later it would bring back what they were
 * before a write past the page cache.  The kernel drops such pages before and
 * after each of these writes, but not those that are filled meanwhile: so
 * writes near the tail are done one at a time. */
#ifdef __linux__
#define _GNU_SOURCE
#endif
#ifndef _FILE_OFFSET_BITS
#define _FILE_OFFSET_BITS 64
#endif
#include "block/file_io.h"

#include <errno.h>
#include <limits.h>
#include <sys/uio.h>
#include <unistd.h>

#include "base/checked.h"

/* What Linux takes in one call; limits.h need not tell. */
#define FILE_IOV_MAX 1024

/* Iovecs of one call past the page cache: more than a block can have. */
#define FILE_GATHER_MAX 256
/* As far before the tail as a page of the page cache can reach. */
#define FILE_NEAR_BYTES (UINT64_C(2) << 20)

#if defined(__linux__) && defined(RWF_NOWAIT) && defined(RWF_DSYNC)
#define FILE_HAVE_RWF 1
#define FILE_NOWAIT RWF_NOWAIT
#define FILE_DSYNC RWF_DSYNC
#else
#define FILE_HAVE_RWF 0
#define FILE_NOWAIT 1
#define FILE_DSYNC 2
#endif

_Static_assert(sizeof(blkrepl_iovec) == sizeof(struct iovec), "blkrepl_iovec");
_Static_assert(offsetof(blkrepl_iovec, base) == offsetof(struct iovec, iov_base), "base");
_Static_assert(offsetof(blkrepl_iovec, len) == offsetof(struct iovec, iov_len), "len");

/* ---- System calls -------------------------------------------------------------- */

static ssize_t file_call_plain(int fd, uint32_t opcode, const struct iovec *iov, int count,
                               off_t offset)
{
#ifdef __linux__
    return opcode == BLKREPL_OP_READ ? preadv(fd, iov, count, offset)
                                     : pwritev(fd, iov, count, offset);
#else
    (void)count;
    return opcode == BLKREPL_OP_READ ? pread(fd, iov->iov_base, iov->iov_len, offset)
                                     : pwrite(fd, iov->iov_base, iov->iov_len, offset);
#endif
}

static ssize_t file_call(int fd, uint32_t opcode, const struct iovec *iov, int count,
                         uint64_t offset, int how)
{
    if (how == 0) {
        return file_call_plain(fd, opcode, iov, count, (off_t)offset);
    }
#if FILE_HAVE_RWF
    return opcode == BLKREPL_OP_READ ? preadv2(fd, iov, count, (off_t)offset, how)
                                     : pwritev2(fd, iov, count, (off_t)offset, how);
#else
    errno = EOPNOTSUPP;
    return -1;
#endif
}

/* The answers of kernels of all ages to a flag they do not know or that the
 * file system does not grant.  EINVAL may mean something else; then the plain
 * call says so again. */
static bool file_refused(int err)
{
    return err == EOPNOTSUPP || err == ENOTSUP || err == ENOSYS || err == EINVAL;
}

/* ---- Transfers ----------------------------------------------------------------- */

/* What is left of the iovecs after `done` bytes, as far as one call takes it:
 * their number, 0 if nothing is left, and the first in *iov.  `part` is room for
 * one that is done in part. */
static int file_rest(const blkrepl_io *io, uint64_t done, struct iovec *part,
                     const struct iovec **iov)
{
    uint32_t i = 0;

    while (i < io->iov_count && done >= io->iov[i].len) {
        done -= io->iov[i].len;
        i++;
    }
    if (i == io->iov_count) {
        return 0;
    }
    if (done > 0) {
        part->iov_base = (char *)io->iov[i].base + done;
        part->iov_len = (size_t)(io->iov[i].len - done);
        *iov = part;
        return 1;
    }
    *iov = (const struct iovec *)(const void *)&io->iov[i];
    return (int)min_u64(io->iov_count - i, FILE_IOV_MAX);
}

static atomic_bool *file_no_nowait(struct file *file, const blkrepl_io *io)
{
    return io->opcode == BLKREPL_OP_READ ? &file->no_nowait_read : &file->no_nowait_write;
}

static bool file_wants_dsync(const struct file *file, const blkrepl_io *io)
{
    return io->opcode == BLKREPL_OP_WRITE && (io->flags & BLKREPL_IO_FUA) != 0 && !file->in_memory;
}

bool blkrepl__file_may_nowait(struct file *file, const blkrepl_io *io)
{
    if (file->direct || file->in_memory) {
        return !file->direct;
    }
    return !file_wants_dsync(file, io) &&
           !atomic_load_explicit(file_no_nowait(file, io), memory_order_relaxed);
}

/* The flags of the next call. */
static int file_how(const struct file *file, const blkrepl_io *io, bool nowait)
{
    if (nowait) {
        return FILE_NOWAIT;
    }
    if (file_wants_dsync(file, io) &&
        !atomic_load_explicit(&file->no_dsync, memory_order_relaxed)) {
        return FILE_DSYNC;
    }
    return 0;
}

/* After a call with flags `how` failed with `err`: 0 to try again. */
static int file_failed(struct file *file, const blkrepl_io *io, int how, int err)
{
    if (how == FILE_NOWAIT) {
        if (file_refused(err)) {
            atomic_store_explicit(file_no_nowait(file, io), true, memory_order_relaxed);
        }
        /* A true error will be met again by the call that may block. */
        return FILE_WOULD_BLOCK;
    }
    if (how == FILE_DSYNC && file_refused(err)) {
        atomic_store_explicit(&file->no_dsync, true, memory_order_relaxed);
        return 0;
    }
    return err == EINTR ? 0 : -err;
}

/* Where flags for single writes are refused, a sync of all does it. */
static int file_finish(struct file *file, const blkrepl_io *io)
{
    if (file_wants_dsync(file, io) && atomic_load_explicit(&file->no_dsync, memory_order_relaxed)) {
        return blkrepl__file_sync(file);
    }
    return 0;
}

/* ---- Past the page cache --------------------------------------------------------- */

/* The iovecs of `bytes` bytes from `done` on, as far as there is room in `out`;
 * returns their number, and in *gathered what they hold. */
static int file_gather(const blkrepl_io *io, uint64_t done, uint64_t bytes, struct iovec *out,
                       uint64_t *gathered)
{
    int count = 0;

    *gathered = 0;
    for (uint32_t i = 0; i < io->iov_count && *gathered < bytes && count < FILE_GATHER_MAX; i++) {
        uint64_t len = io->iov[i].len;

        if (done >= len) {
            done -= len;
            continue;
        }
        len = min_u64(len - done, bytes - *gathered);
        out[count++] =
            (struct iovec){.iov_base = (char *)io->iov[i].base + done, .iov_len = (size_t)len};
        *gathered += len;
        done = 0;
    }
    return count;
}

/* Take bytes off the end; returns how many iovecs are left. */
static int file_trim(struct iovec *iov, int count, uint64_t bytes)
{
    while (bytes > 0) {
        size_t cut = (size_t)min_u64(bytes, iov[count - 1].iov_len);

        bytes -= cut;
        iov[count - 1].iov_len -= cut;
        count -= iov[count - 1].iov_len == 0 ? 1 : 0;
    }
    return count;
}

/* One call: of whole blocks, or of the tail. */
static int file_move_direct(struct file *file, const blkrepl_io *io, uint64_t *done)
{
    struct iovec iov[FILE_GATHER_MAX];
    uint64_t at = io->offset + *done;
    uint64_t left = io->bytes - *done;
    bool tail = at >= file->tail;
    uint64_t unit = tail ? 1 : file->request_alignment;
    int how = file_how(file, io, false);
    uint64_t gathered;
    int count =
        file_gather(io, *done, tail ? left : min_u64(left, file->tail - at), iov, &gathered);
    ssize_t moved;

    count = file_trim(iov, count, gathered % unit);
    if (count == 0) {
        return -EINVAL;
    }
    moved = file_call(tail ? file->tail_fd : file->fd, io->opcode, iov, count, at, how);
    if (moved < 0) {
        return file_failed(file, io, how, errno);
    }
    if ((uint64_t)moved < unit) {
        return -EIO;
    }
    *done += align_down((uint64_t)moved, unit);
    return 0;
}

static bool file_near_tail(const struct file *file, const blkrepl_io *io)
{
    return io->opcode == BLKREPL_OP_WRITE && file->tail_fd >= 0 &&
           io->offset + io->bytes + FILE_NEAR_BYTES > file->tail;
}

static int file_transfer_direct(struct file *file, const blkrepl_io *io, uint64_t *done)
{
    bool near_tail = file_near_tail(file, io);
    int rc = 0;

    if (near_tail) {
        pthread_mutex_lock(&file->near_tail);
    }
    while (rc == 0 && *done < io->bytes) {
        rc = file_move_direct(file, io, done);
    }
    if (near_tail) {
        pthread_mutex_unlock(&file->near_tail);
    }
    return rc == 0 ? file_finish(file, io) : rc;
}

/* ---- Entry points ---------------------------------------------------------------- */

int blkrepl__file_transfer(struct file *file, const blkrepl_io *io, bool nowait, uint64_t *done)
{
    if (file->direct) {
        return nowait ? FILE_WOULD_BLOCK : file_transfer_direct(file, io, done);
    }
    nowait = nowait && !file->in_memory;
    while (*done < io->bytes) {
        struct iovec part;
        const struct iovec *iov;
        int count = file_rest(io, *done, &part, &iov);
        int how = file_how(file, io, nowait);
        ssize_t moved;
        int err;

        if (count == 0) {
            return -EINVAL;
        }
        moved = file_call(file->fd, io->opcode, iov, count, io->offset + *done, how);
        if (moved > 0) {
            *done += (uint64_t)moved;
            continue;
        }
        err = moved == 0 ? EIO : errno;
        err = file_failed(file, io, how, err);
        if (err != 0) {
            return err;
        }
    }
    return file_finish(file, io);
}

int blkrepl__file_sync(struct file *file)
{
    int rc;

    do {
#if defined(_POSIX_SYNCHRONIZED_IO) && _POSIX_SYNCHRONIZED_IO > 0
        rc = fdatasync(file->fd);
#else
        rc = fsync(file->fd);
#endif
    } while (rc < 0 && errno == EINTR);
    return rc < 0 ? -errno : 0;
}
