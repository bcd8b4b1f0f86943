/* SPDX-License-Identifier: MIT */
/* alloc.h - the context's memory functions: the host's, or libc's.
 *
 * The only place of the library that calls malloc and friends.  While one of
 * the host's functions runs, blkrepl__hook_depth of this thread is above 0, so
 * that a poll from inside can be refused. */
#ifndef BLKREPL_BASE_ALLOC_H
#define BLKREPL_BASE_ALLOC_H

#include "base/compiler.h"
#include <libblkrepl/context.h>

struct alloc {
    blkrepl_allocator hooks;
};

extern _Thread_local unsigned blkrepl__hook_depth;

/* Take over the host's functions, or libc's if `hooks` is NULL.
 * Returns: 0; -EINVAL a function is missing; BLKREPL_ERR_VERSION. */
int blkrepl__alloc_init(struct alloc *alloc, const blkrepl_allocator *hooks);

/* All return NULL when there is no memory; freeing NULL does nothing. */
void *blkrepl__alloc(const struct alloc *alloc, size_t bytes);
void *blkrepl__zalloc(const struct alloc *alloc, size_t bytes);
/* Zeroed memory for `count` elements; NULL also if the product overflows. */
void *blkrepl__zalloc_array(const struct alloc *alloc, uint64_t count, size_t element_bytes);
void blkrepl__free(const struct alloc *alloc, void *memory);
void *blkrepl__buffer_alloc(const struct alloc *alloc, size_t align, size_t bytes);
void blkrepl__buffer_free(const struct alloc *alloc, void *memory, size_t bytes);

#endif
