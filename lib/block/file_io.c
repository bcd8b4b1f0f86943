/* SPDX-License-Identifier: MIT */
/* file_io.c - moving data to and from a file.
 *
 * The caller's iovecs are never changed.  To go on after a short transfer in
 * the middle of one, the rest of that iovec is moved by itself, and then the
 * array is used again from the next one on. */
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

static ssize_t file_call_plain(const struct file *file, uint32_t opcode, const struct iovec *iov,
                               int count, off_t offset)
{
#ifdef __linux__
    return opcode == BLKREPL_OP_READ ? preadv(file->fd, iov, count, offset)
                                     : pwritev(file->fd, iov, count, offset);
#else
    (void)count;
    return opcode == BLKREPL_OP_READ ? pread(file->fd, iov->iov_base, iov->iov_len, offset)
                                     : pwrite(file->fd, iov->iov_base, iov->iov_len, offset);
#endif
}

static ssize_t file_call(const struct file *file, uint32_t opcode, const struct iovec *iov,
                         int count, uint64_t offset, int how)
{
    if (how == 0) {
        return file_call_plain(file, opcode, iov, count, (off_t)offset);
    }
#if FILE_HAVE_RWF
    return opcode == BLKREPL_OP_READ ? preadv2(file->fd, iov, count, (off_t)offset, how)
                                     : pwritev2(file->fd, iov, count, (off_t)offset, how);
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
    if (file->in_memory) {
        return true;
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

int blkrepl__file_transfer(struct file *file, const blkrepl_io *io, bool nowait, uint64_t *done)
{
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
        moved = file_call(file, io->opcode, iov, count, io->offset + *done, how);
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
