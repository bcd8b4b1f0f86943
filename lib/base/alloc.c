/* SPDX-License-Identifier: MIT */
/* alloc.c - the context's memory functions: the host's, or libc's.
 *
 * A request for 0 bytes asks for 1, since allocators differ in whether they
 * answer it with NULL, and NULL means here that there is no memory. */
#ifndef _POSIX_C_SOURCE
#define _POSIX_C_SOURCE 200809L
#endif

#include "base/alloc.h"

#include "base/abi.h"
#include "base/checked.h"
#include "base/struct_io.h"

#include <errno.h>
#include <stdlib.h>

_Thread_local unsigned blkrepl__hook_depth;

static void *libc_alloc(void *user, size_t bytes)
{
    (void)user;
    return malloc(bytes);
}

static void *libc_zalloc(void *user, size_t bytes)
{
    (void)user;
    return calloc(1, bytes);
}

static void *libc_realloc(void *user, void *memory, size_t bytes)
{
    (void)user;
    return realloc(memory, bytes);
}

static void libc_free(void *user, void *memory)
{
    (void)user;
    free(memory);
}

static void *libc_buffer_alloc(void *user, size_t align, size_t bytes)
{
    void *memory = NULL;

    (void)user;
    if (align < sizeof(void *)) {
        align = sizeof(void *);
    }
    return posix_memalign(&memory, align, bytes) == 0 ? memory : NULL;
}

static void libc_buffer_free(void *user, void *memory, size_t bytes)
{
    (void)user;
    (void)bytes;
    free(memory);
}

static const blkrepl_allocator libc_hooks = {
    .struct_size = sizeof(blkrepl_allocator),
    .alloc = libc_alloc,
    .zalloc = libc_zalloc,
    .realloc = libc_realloc,
    .free = libc_free,
    .buffer_alloc = libc_buffer_alloc,
    .buffer_free = libc_buffer_free,
};

static bool alloc_complete(const blkrepl_allocator *hooks)
{
    return hooks->alloc != NULL && hooks->zalloc != NULL && hooks->realloc != NULL &&
           hooks->free != NULL && hooks->buffer_alloc != NULL && hooks->buffer_free != NULL;
}

int blkrepl__alloc_init(struct alloc *alloc, const blkrepl_allocator *hooks)
{
    blkrepl_allocator ours;
    int err = blkrepl__struct_in(&ours, sizeof ours, BLKREPL_ALLOCATOR_V1_BYTES,
                                 hooks != NULL ? hooks : &libc_hooks);

    if (err < 0) {
        return err;
    }
    if (!alloc_complete(&ours) || ours.flags != 0 || ours.reserved0 != NULL) {
        return -EINVAL;
    }
    alloc->hooks = ours;
    return 0;
}

void *blkrepl__alloc(const struct alloc *alloc, size_t bytes)
{
    void *memory;

    blkrepl__hook_depth++;
    memory = alloc->hooks.alloc(alloc->hooks.user, bytes != 0 ? bytes : 1);
    blkrepl__hook_depth--;
    return memory;
}

void *blkrepl__zalloc(const struct alloc *alloc, size_t bytes)
{
    void *memory;

    blkrepl__hook_depth++;
    memory = alloc->hooks.zalloc(alloc->hooks.user, bytes != 0 ? bytes : 1);
    blkrepl__hook_depth--;
    return memory;
}

void *blkrepl__zalloc_array(const struct alloc *alloc, uint64_t count, size_t element_bytes)
{
    uint64_t bytes;

    if (!checked_mul(count, element_bytes, &bytes) || (size_t)bytes != bytes) {
        return NULL;
    }
    return blkrepl__zalloc(alloc, (size_t)bytes);
}

void blkrepl__free(const struct alloc *alloc, void *memory)
{
    if (memory == NULL) {
        return;
    }
    blkrepl__hook_depth++;
    alloc->hooks.free(alloc->hooks.user, memory);
    blkrepl__hook_depth--;
}

void *blkrepl__buffer_alloc(const struct alloc *alloc, size_t align, size_t bytes)
{
    void *memory;

    CHECK(is_power_of_two(align));
    blkrepl__hook_depth++;
    memory = alloc->hooks.buffer_alloc(alloc->hooks.user, align, bytes != 0 ? bytes : 1);
    blkrepl__hook_depth--;
    return memory;
}

void blkrepl__buffer_free(const struct alloc *alloc, void *memory, size_t bytes)
{
    if (memory == NULL) {
        return;
    }
    blkrepl__hook_depth++;
    alloc->hooks.buffer_free(alloc->hooks.user, memory, bytes != 0 ? bytes : 1);
    blkrepl__hook_depth--;
}
