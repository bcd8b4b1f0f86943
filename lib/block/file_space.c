/* SPDX-License-Identifier: MIT */
/* file_space.c - the space of a file: its size, zeroes and discards. */
#ifdef __linux__
#define _GNU_SOURCE
#endif
#ifndef _FILE_OFFSET_BITS
#define _FILE_OFFSET_BITS 64
#endif
#include "block/file_space.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>
#ifdef __linux__
#include <linux/falloc.h>
#include <linux/fs.h>
#include <linux/magic.h>
#include <sys/ioctl.h>
#include <sys/statfs.h>
#endif

#include "base/checked.h"
#include "block/file_status.h"

/* The request of ioctl(2): libcs differ. */
#ifdef __GLIBC__
typedef unsigned long space_request;
#else
typedef int space_request;
#endif

/* ---- Size ---------------------------------------------------------------------- */

static int space_measure_device(struct file *file)
{
    off_t end;

    file->sector_bytes = 512;
#ifdef __linux__
    int sector = 0;

    if (ioctl(file->fd, (space_request)BLKSSZGET, &sector) == 0 &&
        is_power_of_two((uint64_t)sector)) {
        file->sector_bytes = (uint32_t)sector;
    }
    if (ioctl(file->fd, (space_request)BLKGETSIZE64, &file->bytes) == 0) {
        return 0;
    }
#endif
    end = lseek(file->fd, 0, SEEK_END);
    if (end < 0) {
        return -errno;
    }
    file->bytes = (uint64_t)end;
    return 0;
}

int blkrepl__file_measure(struct file *file)
{
    struct stat st;

    if (file->device) {
        return space_measure_device(file);
    }
    if (fstat(file->fd, &st) < 0) {
        return -errno;
    }
    file->bytes = (uint64_t)st.st_size;
    return 0;
}

bool blkrepl__file_is_in_memory(int fd)
{
#ifdef __linux__
    struct statfs st;

    return fstatfs(fd, &st) == 0 && st.f_type == TMPFS_MAGIC;
#else
    (void)fd;
    return false;
#endif
}

/* ---- Zeroes and discards ----------------------------------------------------------- */

#ifdef __linux__

static bool space_unsupported(int err)
{
    return err == EOPNOTSUPP || err == ENOSYS || err == ENOTTY;
}

/* -ENOTSUP once and for all when the file cannot do it. */
static int space_fallocate(struct file *file, int mode, atomic_bool *refused, uint64_t offset,
                           uint64_t bytes)
{
    int rc;

    if (atomic_load_explicit(refused, memory_order_relaxed)) {
        return -ENOTSUP;
    }
    do {
        rc = fallocate(file->fd, mode | FALLOC_FL_KEEP_SIZE, (off_t)offset, (off_t)bytes);
    } while (rc < 0 && errno == EINTR);
    if (rc == 0) {
        return 0;
    }
    if (!space_unsupported(errno)) {
        return -errno;
    }
    atomic_store_explicit(refused, true, memory_order_relaxed);
    return -ENOTSUP;
}

static int space_punch(struct file *file, uint64_t offset, uint64_t bytes)
{
    return space_fallocate(file, FALLOC_FL_PUNCH_HOLE, &file->no_punch, offset, bytes);
}

static int space_ioctl(const struct file *file, space_request request, uint64_t offset,
                       uint64_t bytes)
{
    uint64_t range[2] = {offset, bytes};
    int rc;

    do {
        rc = ioctl(file->fd, request, range);
    } while (rc < 0 && errno == EINTR);
    if (rc == 0) {
        return 0;
    }
    return space_unsupported(errno) ? -ENOTSUP : -errno;
}

/* The part of a sector that a range of a device begins or ends in.  Past the
 * page cache that can only be in the tail. */
static int space_zero_edge(const struct file *file, uint64_t offset, uint64_t bytes)
{
    static const char zeroes[512];
    int fd = file->direct ? file->tail_fd : file->fd;

    while (bytes > 0) {
        size_t piece = (size_t)min_u64(bytes, sizeof zeroes);
        ssize_t moved = pwrite(fd, zeroes, piece, (off_t)offset);

        if (moved <= 0 && !(moved < 0 && errno == EINTR)) {
            return moved == 0 ? -EIO : -errno;
        }
        moved = moved > 0 ? moved : 0;
        offset += (uint64_t)moved;
        bytes -= (uint64_t)moved;
    }
    return 0;
}

/* Whole sectors by punching (which on a device does promise zeroes) if allowed,
 * else by BLKZEROOUT, behind which may be plain writes. */
static int space_zero_sectors(struct file *file, uint32_t flags, uint64_t offset, uint64_t bytes)
{
    int rc = -ENOTSUP;

    if ((flags & BLKREPL_IO_MAY_UNMAP) != 0) {
        rc = space_punch(file, offset, bytes);
    }
    if (rc == -ENOTSUP && (flags & BLKREPL_IO_NO_FALLBACK) == 0) {
        rc = space_ioctl(file, (space_request)BLKZEROOUT, offset, bytes);
    }
    return rc;
}

static int space_zero_device(struct file *file, const blkrepl_io *io)
{
    uint64_t end = io->offset + io->bytes;
    uint64_t first = align_up(io->offset, file->sector_bytes);
    uint64_t last = align_down(end, file->sector_bytes);
    int rc;

    if (first >= last) {
        return -ENOTSUP;
    }
    rc = space_zero_sectors(file, io->flags, first, last - first);
    if (rc == 0) {
        rc = space_zero_edge(file, io->offset, first - io->offset);
    }
    if (rc == 0) {
        rc = space_zero_edge(file, last, end - last);
    }
    return rc;
}

/* Where only punching is known (tmpfs) and the space must stay, we say no:
 * punching and allocating again could lose the space to somebody else. */
static int space_zero_file(struct file *file, const blkrepl_io *io)
{
    int rc = -ENOTSUP;

    if ((io->flags & BLKREPL_IO_MAY_UNMAP) != 0) {
        rc = space_punch(file, io->offset, io->bytes);
    }
    if (rc == -ENOTSUP) {
        rc = space_fallocate(file, FALLOC_FL_ZERO_RANGE, &file->no_zero_range, io->offset,
                             io->bytes);
    }
    return rc;
}

static int space_zero(struct file *file, const blkrepl_io *io)
{
    int rc = file->device ? space_zero_device(file, io) : space_zero_file(file, io);

    if (rc == 0 && (io->flags & BLKREPL_IO_FUA) != 0 && !file->in_memory) {
        rc = blkrepl__file_sync(file);
    }
    return rc;
}

static int space_discard(struct file *file, const blkrepl_io *io)
{
    uint64_t first;
    uint64_t last;

    if (!file->device) {
        return space_punch(file, io->offset, io->bytes);
    }
    first = align_up(io->offset, file->sector_bytes);
    last = align_down(io->offset + io->bytes, file->sector_bytes);
    return first < last ? space_ioctl(file, (space_request)BLKDISCARD, first, last - first) : 0;
}

#else

static int space_zero(struct file *file, const blkrepl_io *io)
{
    (void)file;
    (void)io;
    return -ENOTSUP;
}

static int space_discard(struct file *file, const blkrepl_io *io)
{
    (void)file;
    (void)io;
    return -ENOTSUP;
}

#endif

int blkrepl__file_zeroes(struct file *file, const blkrepl_io *io)
{
    int rc;

    if (io->bytes == 0) {
        return 0;
    }
    blkrepl__file_status_forget(file);
    rc = space_zero(file, io);
    blkrepl__file_status_forget(file);
    return rc;
}

int blkrepl__file_discard(struct file *file, const blkrepl_io *io)
{
    int rc;

    if (io->bytes == 0) {
        return 0;
    }
    blkrepl__file_status_forget(file);
    rc = space_discard(file, io);
    blkrepl__file_status_forget(file);
    return rc == -ENOTSUP ? 0 : rc;
}
