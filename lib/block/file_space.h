/* SPDX-License-Identifier: MIT */
/* file_space.h - the space of a file: its size, zeroes and discards. */
#ifndef BLKREPL_BLOCK_FILE_SPACE_H
#define BLKREPL_BLOCK_FILE_SPACE_H

#include "block/file_io.h"

/* Fill in bytes and, of a device, sector_bytes.
 * Returns: 0 or a negated errno. */
int blkrepl__file_measure(struct file *file);

/* Whether the file lies in memory only. */
bool blkrepl__file_is_in_memory(int fd);

/* Carry out a ZEROES.
 * Returns: 0; -ENOTSUP the file cannot: write buffers instead; a negated
 *          errno. */
int blkrepl__file_zeroes(struct file *file, const blkrepl_io *io);

/* Carry out a DISCARD; where it is not supported, success without effect.
 * Returns: 0 or a negated errno. */
int blkrepl__file_discard(struct file *file, const blkrepl_io *io);

#endif
