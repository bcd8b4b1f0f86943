/* SPDX-License-Identifier: MIT */
#include "base/alloc.h"

#include <errno.h>
#include <libblkrepl/error.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static bool system_refuses;

/* The system's, which can be told to have no memory. */
int posix_memalign(void **memory, size_t align, size_t bytes)
{
    if (system_refuses) {
        return ENOMEM;
    }
    *memory = aligned_alloc(align, (bytes + align - 1) / align * align);
    return *memory != NULL ? 0 : ENOMEM;
}

/* What the host's functions were called with last, and how often. */
struct host {
    unsigned calls;
    unsigned depth;
    size_t bytes;
    size_t align;
    void *freed;
    bool refuse;
};

static void *host_note(struct host *host, size_t align, size_t bytes)
{
    host->calls++;
    host->depth = blkrepl__hook_depth;
    host->align = align;
    host->bytes = bytes;
    return host->refuse ? NULL : calloc(1, bytes);
}

static void *host_alloc(void *user, size_t bytes)
{
    return host_note(user, 0, bytes);
}

static void *host_zalloc(void *user, size_t bytes)
{
    return host_note(user, 1, bytes);
}

static void *host_realloc(void *user, void *memory, size_t bytes)
{
    (void)user;
    return realloc(memory, bytes);
}

static void host_free(void *user, void *memory)
{
    struct host *host = user;

    host->calls++;
    host->depth = blkrepl__hook_depth;
    host->freed = memory;
    free(memory);
}

static void *host_buffer_alloc(void *user, size_t align, size_t bytes)
{
    return host_note(user, align, bytes);
}

static void host_buffer_free(void *user, void *memory, size_t bytes)
{
    struct host *host = user;

    host->bytes = bytes;
    host_free(user, memory);
}

static blkrepl_allocator host_hooks(struct host *host)
{
    memset(host, 0, sizeof *host);
    return (blkrepl_allocator){
        .struct_size = sizeof(blkrepl_allocator),
        .user = host,
        .alloc = host_alloc,
        .zalloc = host_zalloc,
        .realloc = host_realloc,
        .free = host_free,
        .buffer_alloc = host_buffer_alloc,
        .buffer_free = host_buffer_free,
    };
}

static void alloc_default_gives_usable_memory(void **state)
{
    struct alloc alloc;
    unsigned char *plain;
    unsigned char *zeroed;

    (void)state;
    assert_int_equal(blkrepl__alloc_init(&alloc, NULL), 0);
    plain = blkrepl__alloc(&alloc, 100);
    zeroed = blkrepl__zalloc(&alloc, 100);
    assert_non_null(plain);
    assert_non_null(zeroed);
    memset(plain, 1, 100);
    for (int i = 0; i < 100; i++) {
        assert_int_equal(zeroed[i], 0);
    }
    blkrepl__free(&alloc, plain);
    blkrepl__free(&alloc, zeroed);
    plain = alloc.hooks.realloc(alloc.hooks.user, NULL, 10);
    assert_non_null(plain);
    blkrepl__free(&alloc, plain);
}

static void alloc_default_buffers_are_aligned(void **state)
{
    struct alloc alloc;

    (void)state;
    assert_int_equal(blkrepl__alloc_init(&alloc, NULL), 0);
    for (size_t align = 1; align <= 65536; align *= 2) {
        unsigned char *buffer = blkrepl__buffer_alloc(&alloc, align, 3 * align);

        assert_non_null(buffer);
        assert_int_equal((uintptr_t)buffer % align, 0);
        memset(buffer, 1, 3 * align);
        blkrepl__buffer_free(&alloc, buffer, 3 * align);
    }
}

static void alloc_default_buffer_without_memory_is_null(void **state)
{
    struct alloc alloc;

    (void)state;
    assert_int_equal(blkrepl__alloc_init(&alloc, NULL), 0);
    system_refuses = true;
    assert_null(blkrepl__buffer_alloc(&alloc, 4096, 4096));
    system_refuses = false;
}

static void alloc_of_nothing_is_not_out_of_memory(void **state)
{
    struct host host;
    blkrepl_allocator hooks = host_hooks(&host);
    struct alloc alloc;
    void *memory[4];

    (void)state;
    assert_int_equal(blkrepl__alloc_init(&alloc, &hooks), 0);
    memory[0] = blkrepl__alloc(&alloc, 0);
    assert_int_equal(host.bytes, 1);
    memory[1] = blkrepl__zalloc(&alloc, 0);
    assert_int_equal(host.bytes, 1);
    memory[2] = blkrepl__zalloc_array(&alloc, 0, 8);
    assert_int_equal(host.bytes, 1);
    for (int i = 0; i < 3; i++) {
        assert_non_null(memory[i]);
        blkrepl__free(&alloc, memory[i]);
    }
    memory[3] = blkrepl__buffer_alloc(&alloc, 512, 0);
    assert_non_null(memory[3]);
    assert_int_equal(host.bytes, 1);
    blkrepl__buffer_free(&alloc, memory[3], 0);
    assert_int_equal(host.bytes, 1);
}

static void alloc_free_of_null_does_not_reach_the_host(void **state)
{
    struct host host;
    blkrepl_allocator hooks = host_hooks(&host);
    struct alloc alloc;

    (void)state;
    assert_int_equal(blkrepl__alloc_init(&alloc, &hooks), 0);
    blkrepl__free(&alloc, NULL);
    blkrepl__buffer_free(&alloc, NULL, 4096);
    assert_int_equal(host.calls, 0);
}

static void alloc_array_whose_size_overflows_is_refused(void **state)
{
    struct host host;
    blkrepl_allocator hooks = host_hooks(&host);
    struct alloc alloc;
    void *memory;

    (void)state;
    assert_int_equal(blkrepl__alloc_init(&alloc, &hooks), 0);
    assert_null(blkrepl__zalloc_array(&alloc, UINT64_MAX, 2));
    assert_null(blkrepl__zalloc_array(&alloc, (UINT64_C(1) << 61) + 1, 8));
    assert_int_equal(host.calls, 0);
    memory = blkrepl__zalloc_array(&alloc, 7, 24);
    assert_non_null(memory);
    assert_int_equal(host.bytes, 7 * 24);
    assert_int_equal(host.align, 1); /* zalloc, not alloc */
    blkrepl__free(&alloc, memory);
}

static void alloc_raises_the_hook_depth_only_inside_the_host(void **state)
{
    struct host host;
    blkrepl_allocator hooks = host_hooks(&host);
    struct alloc alloc;
    void *memory;

    (void)state;
    assert_int_equal(blkrepl__alloc_init(&alloc, &hooks), 0);
    blkrepl__hook_depth = 3;
    memory = blkrepl__alloc(&alloc, 1);
    assert_int_equal(host.depth, 4);
    blkrepl__free(&alloc, memory);
    assert_int_equal(host.depth, 4);
    host.depth = 0;
    memory = blkrepl__zalloc(&alloc, 1);
    assert_int_equal(host.depth, 4);
    blkrepl__free(&alloc, memory);
    host.depth = 0;
    memory = blkrepl__buffer_alloc(&alloc, 4096, 8192);
    assert_int_equal(host.depth, 4);
    assert_int_equal(host.align, 4096);
    assert_int_equal(host.bytes, 8192);
    host.depth = 0;
    blkrepl__buffer_free(&alloc, memory, 8192);
    assert_int_equal(host.depth, 4);
    assert_int_equal(host.bytes, 8192);
    assert_ptr_equal(host.freed, memory);
    assert_int_equal(blkrepl__hook_depth, 3);
    blkrepl__hook_depth = 0;
}

static void alloc_passes_the_hosts_refusal_on(void **state)
{
    struct host host;
    blkrepl_allocator hooks = host_hooks(&host);
    struct alloc alloc;

    (void)state;
    assert_int_equal(blkrepl__alloc_init(&alloc, &hooks), 0);
    host.refuse = true;
    assert_null(blkrepl__alloc(&alloc, 1));
    assert_null(blkrepl__zalloc(&alloc, 1));
    assert_null(blkrepl__zalloc_array(&alloc, 1, 1));
    assert_null(blkrepl__buffer_alloc(&alloc, 1, 1));
    assert_int_equal(blkrepl__hook_depth, 0);
}

static void alloc_init_copies_the_hosts_struct(void **state)
{
    struct host host;
    blkrepl_allocator hooks = host_hooks(&host);
    struct alloc alloc;
    void *memory;

    (void)state;
    assert_int_equal(blkrepl__alloc_init(&alloc, &hooks), 0);
    memset(&hooks, 0, sizeof hooks);
    memory = blkrepl__alloc(&alloc, 5);
    assert_int_equal(host.calls, 1);
    blkrepl__free(&alloc, memory);
}

static void alloc_init_refuses_what_is_incomplete_or_unknown(void **state)
{
    struct host host;
    struct alloc alloc;
    struct {
        blkrepl_allocator known;
        uint64_t unknown;
    } newer;

    (void)state;
    for (int missing = 0; missing < 9; missing++) {
        blkrepl_allocator hooks = host_hooks(&host);

        switch (missing) {
        case 0: hooks.alloc = NULL; break;
        case 1: hooks.zalloc = NULL; break;
        case 2: hooks.realloc = NULL; break;
        case 3: hooks.free = NULL; break;
        case 4: hooks.buffer_alloc = NULL; break;
        case 5: hooks.buffer_free = NULL; break;
        case 6: hooks.flags = 1; break;
        case 7: hooks.reserved0 = &host; break;
        default: hooks.struct_size--; break;
        }
        assert_int_equal(blkrepl__alloc_init(&alloc, &hooks), -EINVAL);
    }
    newer.known = host_hooks(&host);
    newer.known.struct_size = sizeof newer;
    newer.unknown = 0;
    assert_int_equal(blkrepl__alloc_init(&alloc, &newer.known), 0);
    newer.unknown = 1;
    assert_int_equal(blkrepl__alloc_init(&alloc, &newer.known), BLKREPL_ERR_VERSION);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(alloc_default_gives_usable_memory),
        cmocka_unit_test(alloc_default_buffers_are_aligned),
        cmocka_unit_test(alloc_default_buffer_without_memory_is_null),
        cmocka_unit_test(alloc_of_nothing_is_not_out_of_memory),
        cmocka_unit_test(alloc_free_of_null_does_not_reach_the_host),
        cmocka_unit_test(alloc_array_whose_size_overflows_is_refused),
        cmocka_unit_test(alloc_raises_the_hook_depth_only_inside_the_host),
        cmocka_unit_test(alloc_passes_the_hosts_refusal_on),
        cmocka_unit_test(alloc_init_copies_the_hosts_struct),
        cmocka_unit_test(alloc_init_refuses_what_is_incomplete_or_unknown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
