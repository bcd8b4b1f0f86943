/* SPDX-License-Identifier: MIT */
/* status.h - what a backend's STATUS has answered. */
#ifndef BLKREPL_BLOCK_STATUS_H
#define BLKREPL_BLOCK_STATUS_H

#include "base/compiler.h"
#include <libblkrepl/backend.h>

/* Whether the list in io->extents makes sense: at least one extent, none with flags that
 * nobody knows, together no more than was asked for.  Otherwise all is to be taken for
 * data. */
bool blkrepl__status_valid(const blkrepl_io *io);

#endif
