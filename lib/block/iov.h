/* SPDX-License-Identifier: MIT */
/* iov.h - walking over the host's iovecs without changing them. */
#ifndef BLKREPL_BLOCK_IOV_H
#define BLKREPL_BLOCK_IOV_H

#include "base/compiler.h"
#include <libblkrepl/base.h>

struct iov_cursor {
    const blkrepl_iovec *iov;
    uint32_t count;
    uint32_t index;
    size_t skip; /* bytes of iov[index] that are behind us */
};

/* The length of all entries together; false if it exceeds 2^63-1, or if an
 * entry that is not empty has no memory. */
bool blkrepl__iov_bytes(const blkrepl_iovec *iov, uint32_t count, uint64_t *bytes);

/* Move on by `bytes`, copying to or from flat memory on the way (either may be
 * done with NULL to skip).  There are at least `bytes` left (CHECK). */
void blkrepl__iov_skip(struct iov_cursor *at, uint64_t bytes);
void blkrepl__iov_gather(struct iov_cursor *at, void *out, uint64_t bytes);
void blkrepl__iov_scatter(struct iov_cursor *at, const void *from, uint64_t bytes);

/* Describe what lies ahead of the cursor, without moving it, in at most `most`
 * entries of at most `bytes` together; stops before an entry that is not a
 * multiple of `alignment` in address or length.  Returns the bytes described;
 * *used entries. */
uint64_t blkrepl__iov_slice(const struct iov_cursor *at, uint64_t bytes, uint32_t alignment,
                            blkrepl_iovec *out, uint32_t most, uint32_t *used);

/* Whether every entry is a multiple of `alignment` in address and length. */
bool blkrepl__iov_aligned(const blkrepl_iovec *iov, uint32_t count, uint32_t alignment);

/* Memory that is zero, for reading only: fill `out` with up to `most` entries of
 * it.  Returns the bytes described, at most `bytes`. */
uint64_t blkrepl__iov_zeroes(blkrepl_iovec *out, uint32_t most, uint64_t bytes, uint32_t *used);

/* Whether `bytes` at `memory` are all zero. */
bool blkrepl__is_zero(const void *memory, size_t bytes);

#endif
