/* SPDX-License-Identifier: MIT */
/* file_direct.h - what a file wants kept to that is open past the page cache.
 *
 * O_DIRECT moves whole blocks only.  A file may end within one, and the bytes
 * behind its last whole block cannot be written that way without making it
 * longer.  This end, the tail, goes through a second descriptor and the page
 * cache (see file_io.c). */
#ifndef BLKREPL_BLOCK_FILE_DIRECT_H
#define BLKREPL_BLOCK_FILE_DIRECT_H

#include "base/alloc.h"
#include "block/file_io.h"

/* What a backend may ask for (blkrepl_backend_info). */
#define FILE_REQUEST_ALIGNMENT_MAX (64u << 10)
#define FILE_MEMORY_ALIGNMENT_MAX 4096u
/* Nothing tells that less will do. */
#define FILE_ALIGNMENT_DEFAULT 4096u

/* Fill in the alignment of a file that is open with O_DIRECT and was measured,
 * and where its tail begins: from statx(2), of a device from its sectors, else
 * by trying.
 * Returns: 0; -ENOTSUP not without the page cache, or only with an alignment
 *          beyond what a backend may ask for; -ENOMEM. */
int blkrepl__file_direct_learn(struct file *file, const struct alloc *alloc);

#endif
