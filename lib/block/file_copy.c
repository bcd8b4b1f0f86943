/* SPDX-License-Identifier: MIT */
/* file_copy.c - copying from file to file inside the kernel.
 *
 * copy_file_range(2) has the file system share the blocks where it can
 * (reflink), has a server copy where the file is there, and copies from page
 * cache to page cache otherwise, which beats reading and writing there, too, by 5 to
 * 50 per cent on tmpfs and ext4 (docs/performance.md).  FICLONERANGE before it
 * would bring nothing: the call itself asks the file system for just that
 * first, and unlike the ioctl takes ranges that are no whole blocks. */
#ifdef __linux__
#define _GNU_SOURCE
#endif
#ifndef _FILE_OFFSET_BITS
#define _FILE_OFFSET_BITS 64
#endif
#include "block/file_copy.h"

#include <errno.h>
#include <unistd.h>

#include "block/file_status.h"

#ifdef __linux__

/* Not these two files, or no files at all: another file system, a block device,
 * a kernel or a sandbox that does not know the call, swap space. */
static bool copy_refused(int err)
{
    return err == EXDEV || err == EOPNOTSUPP || err == ENOSYS || err == EINVAL || err == EPERM ||
           err == ETXTBSY || err == EBADF;
}

static int copy_range(struct file *file, const struct file *from, const blkrepl_io *io)
{
    off_t in = (off_t)io->source_offset;
    off_t out = (off_t)io->offset;
    uint64_t left = io->bytes;

    while (left > 0) {
        ssize_t moved = copy_file_range(from->fd, &in, file->fd, &out, (size_t)left, 0);

        if (moved > 0) {
            left -= (uint64_t)moved;
        } else if (moved == 0) {
            return -EIO;
        } else if (errno != EINTR) {
            return -errno;
        }
    }
    return 0;
}

int blkrepl__file_copy(struct file *file, const struct file *from, const blkrepl_io *io)
{
    int rc;

    if (atomic_load_explicit(&file->no_copy, memory_order_relaxed)) {
        return -ENOTSUP;
    }
    blkrepl__file_status_forget(file); /* holes may be shared, too */
    rc = copy_range(file, from, io);
    blkrepl__file_status_forget(file);
    if (rc < 0 && copy_refused(-rc)) {
        atomic_store_explicit(&file->no_copy, true, memory_order_relaxed);
    }
    return rc;
}

#else

int blkrepl__file_copy(struct file *file, const struct file *from, const blkrepl_io *io)
{
    (void)file;
    (void)from;
    (void)io;
    return -ENOTSUP;
}

#endif
