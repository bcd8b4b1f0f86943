/* SPDX-License-Identifier: MIT */
/* file_copy.h - copying from file to file inside the kernel. */
#ifndef BLKREPL_BLOCK_FILE_COPY_H
#define BLKREPL_BLOCK_FILE_COPY_H

#include "block/file_io.h"

/* Carry out a COPY_FROM of another file.
 * Returns: 0; -ENOTSUP the kernel has refused before; -EIO the source is shorter
 *          than it was; a negated errno, remembered if it is a refusal. */
int blkrepl__file_copy(struct file *file, const struct file *from, const blkrepl_io *io);

#endif
