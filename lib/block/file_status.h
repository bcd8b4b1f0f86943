/* SPDX-License-Identifier: MIT */
/* file_status.h - where a file has data and where holes. */
#ifndef BLKREPL_BLOCK_FILE_STATUS_H
#define BLKREPL_BLOCK_FILE_STATUS_H

#include "block/file_io.h"

/* Whether STATUS can tell more than that all is data. */
bool blkrepl__file_status_supported(const struct file *file);

/* Carry out a STATUS; with `known_only`, only if the file need not be asked.
 * Returns: 0; FILE_WOULD_BLOCK it would have to be asked. */
int blkrepl__file_status(struct file *file, const blkrepl_io *io, bool known_only);

/* To be called before and after holes are made: so that neither what was seen
 * before stays, nor what was seen meanwhile. */
void blkrepl__file_status_forget(struct file *file);

#endif
