/* SPDX-License-Identifier: MIT */
/* guest_io.h - a request of the through form as its caller has put it. */
#ifndef BLKREPL_BLOCK_GUEST_IO_H
#define BLKREPL_BLOCK_GUEST_IO_H

#include "block/guest.h"

struct guest_call {
    uint32_t lane;
    uint32_t opcode;
    uint32_t flags;
    uint32_t flags_known;
    uint64_t offset;
    uint64_t bytes;
    const blkrepl_iovec *iov;
    uint32_t iov_count;
    blkrepl_extent *extents;
    uint32_t extents_max;
};

/* Copy it into a guest that has just been taken. */
void blkrepl__guest_take_call(struct guest *guest, const struct guest_call *call,
                              const blkrepl_completion *done);
/* The same for a bracket. */
void blkrepl__guest_take_bracket(struct guest *guest, const blkrepl_bracket *what,
                                 const blkrepl_completion *go);

#endif
