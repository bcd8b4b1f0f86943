/* SPDX-License-Identifier: MIT */
/* backend_file.h - the bundled backend over a regular file or a block device.
 *
 * Guest requests that will not block are done inside submit: everything on
 * tmpfs, elsewhere what RWF_NOWAIT grants, as found out per file; at most
 * FILE_INLINE_BYTES per submit.  So are short background writes to tmpfs: old
 * data that a guest's write made a backup save are still in this CPU's cache, and
 * a thread that is woken for 64 KiB costs more than they do.  The rest, and all
 * other background requests, goes to the context's pool of threads; so do all
 * reads and writes past the page cache (BLKREPL_FILE_DIRECT), which always may
 * block; tmpfs is no exception then.
 *
 *   READ     a file that was shortened behind our back: -EIO, not zeroes;
 *   WRITE    FUA is understood;
 *   ZEROES   punches with MAY_UNMAP, else zeroes in place; -ENOTSUP where the
 *            file system cannot (on tmpfs without MAY_UNMAP);
 *   DISCARD  punches, or nothing happens;
 *   FLUSH    fdatasync;
 *   STATUS   SEEK_DATA and SEEK_HOLE; not on devices.  Answered inside submit,
 *            also in the background, where it is known from before;
 *   COPY_FROM  any other file backend: copy_file_range, which says itself which
 *            pairs it does not do; its first refusal is remembered.  Not past
 *            the page cache, where it is slower than reading and writing.
 */
#ifndef BLKREPL_BLOCK_BACKEND_FILE_H
#define BLKREPL_BLOCK_BACKEND_FILE_H

#include "base/alloc.h"
#include "block/file_pool.h"
#include <libblkrepl/image.h>

/* Bytes moved per submit at most, and in one item by a helper of the pool. */
#define FILE_INLINE_BYTES (UINT64_C(1) << 20)

struct file_backend;

/* With the file backend's functions, `user` is a struct file_backend. */
extern const blkrepl_backend_ops blkrepl__file_backend_ops;

/* Open `path` as blkrepl_image_open_file() says.  `options` went through
 * struct_in; alloc and pool outlive the backend.  A file that this call created
 * stays when something fails later on.
 * Returns: 0; -EINVAL unknown flag, EXCLUSIVE or bytes without CREATE, CREATE of
 *          a read-only image, bytes, mode or queue_depth out of range; -ENOTSUP
 *          neither a file nor a block device, or not as DIRECT; -ESTALE with
 *          DIRECT: the path was given to another file meanwhile; -ENOMEM; an
 *          errno of open(2), fstat(2) or ftruncate(2) (-ENOSPC: a device cannot
 *          grow). */
int blkrepl__file_backend_open(blkrepl_context *ctx, const struct alloc *alloc,
                               struct file_pool *pool, const char *path,
                               const blkrepl_file_options *options, bool read_only,
                               struct file_backend **out);

/* Close one that no image was made of.  NULL: nothing. */
void blkrepl__file_backend_discard(struct file_backend *fb);

/* Two numbers that are the same for two backends over the same file or device,
 * by whatever path they were opened. */
void blkrepl__file_backend_identity(const struct file_backend *fb, uint64_t *device,
                                    uint64_t *inode);

/* For unit tests: what is called instead of blkrepl_io_complete(). */
void blkrepl__file_backend_set_complete(struct file_backend *fb,
                                        int (*complete)(blkrepl_context *ctx, uint64_t id,
                                                        int result));

#endif
