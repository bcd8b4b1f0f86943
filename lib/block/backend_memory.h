/* SPDX-License-Identifier: MIT */
/* backend_memory.h - the bundled backend that keeps a disk in memory.
 *
 * Sparse: pages of 64 KiB, taken when they are first written and given back
 * when they are zeroed or discarded whole.  Every request is completed inside
 * submit.  A write that finds no memory fails with -ENOMEM; what comes before
 * the missing page has been written then. */
#ifndef BLKREPL_BLOCK_BACKEND_MEMORY_H
#define BLKREPL_BLOCK_BACKEND_MEMORY_H

#include "base/alloc.h"
#include <libblkrepl/backend.h>

struct memory_backend;

/* With the memory backend's functions, `user` is a struct memory_backend. */
extern const blkrepl_backend_ops blkrepl__memory_backend_ops;

/* A disk of `bytes` zeroes; alloc outlives it.
 * Returns: 0; -EINVAL bytes is more than 2^63-1; -ENOMEM. */
int blkrepl__memory_backend_create(blkrepl_context *ctx, const struct alloc *alloc, uint64_t bytes,
                                   struct memory_backend **out);

/* Free one that no image was made of.  NULL: nothing. */
void blkrepl__memory_backend_discard(struct memory_backend *mb);

/* For unit tests: what is called instead of blkrepl_io_complete(). */
void blkrepl__memory_backend_set_complete(struct memory_backend *mb,
                                          int (*complete)(blkrepl_context *ctx, uint64_t id,
                                                          int result));

#endif
