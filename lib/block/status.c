/* SPDX-License-Identifier: MIT */
/* status.c - what a backend's STATUS has answered. */
#include "block/status.h"

bool blkrepl__status_valid(const blkrepl_io *io)
{
    const uint32_t known = BLKREPL_EXTENT_DATA | BLKREPL_EXTENT_ZERO | BLKREPL_EXTENT_ALLOCATED;
    uint64_t left = io->bytes;

    for (uint32_t i = 0; i < io->extents_max && io->extents[i].bytes > 0; i++) {
        if (io->extents[i].bytes > left || (io->extents[i].flags & ~known) != 0) {
            return false;
        }
        left -= io->extents[i].bytes;
    }
    return left < io->bytes;
}
