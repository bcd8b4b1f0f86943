/* SPDX-License-Identifier: MIT */
/* Every operation is followed by a comparison with an array of bools. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "data/hbitmap.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include <cmocka.h>

#define SMALL_MAX 130
#define SEEDS 6

/* An allocator that counts what is live and can fail at a given call. */
struct heap {
    blkrepl_allocator hooks;
    unsigned calls;
    unsigned fail_at; /* 0: never */
    unsigned live;
};

static void *heap_zalloc(void *user, size_t bytes)
{
    struct heap *heap = user;
    void *memory = ++heap->calls == heap->fail_at ? NULL : calloc(1, bytes);

    heap->live += memory != NULL;
    return memory;
}

static void *heap_realloc(void *user, void *memory, size_t bytes)
{
    (void)user;
    return realloc(memory, bytes);
}

static void heap_free(void *user, void *memory)
{
    struct heap *heap = user;

    heap->live--;
    free(memory);
}

static void *heap_buffer_alloc(void *user, size_t align, size_t bytes)
{
    (void)align;
    return heap_zalloc(user, bytes);
}

static void heap_buffer_free(void *user, void *memory, size_t bytes)
{
    (void)bytes;
    heap_free(user, memory);
}

static void heap_init(struct heap *heap, struct alloc *alloc)
{
    memset(heap, 0, sizeof *heap);
    heap->hooks = (blkrepl_allocator){
        .struct_size = sizeof heap->hooks,
        .user = heap,
        .alloc = heap_zalloc,
        .zalloc = heap_zalloc,
        .realloc = heap_realloc,
        .free = heap_free,
        .buffer_alloc = heap_buffer_alloc,
        .buffer_free = heap_buffer_free,
    };
    assert_int_equal(blkrepl__alloc_init(alloc, &heap->hooks), 0);
}

/* The bitmap under test beside its oracle. */
struct pair {
    struct alloc alloc;
    struct hbitmap map;
    unsigned char *bits;
    uint64_t count;
    uint64_t seed; /* of the run; printed when something differs */
    uint64_t random;
};

static uint64_t pair_random(struct pair *p, uint64_t below)
{
    p->random = p->random * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
    return below != 0 ? (p->random >> 24) % below : 0;
}

static void pair_open(struct pair *p, uint64_t count, uint64_t seed)
{
    memset(p, 0, sizeof *p);
    p->count = count;
    p->seed = seed;
    p->random = seed;
    assert_int_equal(blkrepl__alloc_init(&p->alloc, NULL), 0);
    assert_int_equal(blkrepl__hbitmap_init(&p->map, &p->alloc, count), 0);
    p->bits = calloc(1, (size_t)count + 1);
    assert_non_null(p->bits);
}

static void pair_close(struct pair *p)
{
    blkrepl__hbitmap_fini(&p->map);
    free(p->bits);
}

static void pair_fail(const struct pair *p, const char *what, uint64_t at)
{
    fail_msg("%s at %llu; %llu bits, seed %llu", what, (unsigned long long)at,
             (unsigned long long)p->count, (unsigned long long)p->seed);
}

static void pair_compare(const struct pair *p)
{
    const char *reason = "";
    uint64_t set_count = 0;

    for (uint64_t bit = 0; bit < p->count; bit++) {
        if (blkrepl__hbitmap_test(&p->map, bit) != p->bits[bit]) {
            pair_fail(p, "a bit differs", bit);
        }
        set_count += p->bits[bit];
    }
    if (p->map.set_count != set_count) {
        pair_fail(p, "set_count differs", p->map.set_count);
    }
    if (!blkrepl__hbitmap_validate(&p->map, &reason)) {
        pair_fail(p, reason, 0);
    }
}

static uint64_t naive_next(const struct pair *p, uint64_t from, uint64_t end, unsigned char value)
{
    while (from < end && p->bits[from] != value) {
        from++;
    }
    return from;
}

static void pair_search(const struct pair *p, uint64_t from, uint64_t end)
{
    uint64_t first;
    uint64_t stop;

    if (blkrepl__hbitmap_next_set(&p->map, from, end) != naive_next(p, from, end, 1)) {
        pair_fail(p, "next_set differs", from);
    }
    if (blkrepl__hbitmap_next_clear(&p->map, from, end) != naive_next(p, from, end, 0)) {
        pair_fail(p, "next_clear differs", from);
    }
    first = blkrepl__hbitmap_next_run(&p->map, from, end, &stop);
    if (first != naive_next(p, from, end, 1) || stop != naive_next(p, first, end, 0)) {
        pair_fail(p, "next_run differs", from);
    }
}

static void pair_change(struct pair *p, bool set, uint64_t first, uint64_t count)
{
    uint64_t changed = 0;
    uint64_t answer;

    for (uint64_t bit = first; bit < first + count; bit++) {
        changed += p->bits[bit] != set;
        p->bits[bit] = set;
    }
    answer = set ? blkrepl__hbitmap_set(&p->map, first, count)
                 : blkrepl__hbitmap_clear(&p->map, first, count);
    if (answer != changed) {
        pair_fail(p, set ? "set counts wrongly" : "clear counts wrongly", first);
    }
    pair_compare(p);
}

static void pair_set_all(struct pair *p)
{
    memset(p->bits, 1, (size_t)p->count);
    blkrepl__hbitmap_set_all(&p->map);
    pair_compare(p);
}

/* Set about one bit in `one_in`. */
static void pair_scatter(struct pair *p, uint64_t one_in)
{
    for (uint64_t bit = 0; bit < p->count; bit++) {
        if (pair_random(p, one_in) == 0) {
            p->bits[bit] = 1;
            blkrepl__hbitmap_set(&p->map, bit, 1);
        }
    }
    pair_compare(p);
}

static void hbitmap_of_no_bits_is_legal(void **state)
{
    struct pair p;

    (void)state;
    pair_open(&p, 0, 0);
    assert_int_equal(p.map.level_count, 1);
    pair_change(&p, true, 0, 0);
    pair_change(&p, false, 0, 0);
    pair_set_all(&p);
    pair_search(&p, 0, 0);
    assert_int_equal(p.map.level[0][0], 0);
    pair_close(&p);
}

static void hbitmap_has_the_levels_it_needs(void **state)
{
    static const struct {
        uint64_t bit_count;
        uint32_t level_count;
    } expected[] = {
        {0, 1},      {1, 1},      {64, 1},     {65, 2},       {4096, 2},     {4097, 3},
        {262143, 3}, {262144, 3}, {262145, 4}, {16777216, 4}, {16777217, 5},
    };

    (void)state;
    for (size_t i = 0; i < ARRAY_COUNT(expected); i++) {
        struct pair p;

        pair_open(&p, expected[i].bit_count, 0);
        assert_int_equal(p.map.level_count, expected[i].level_count);
        pair_close(&p);
    }
}

static void hbitmap_set_rounds_nothing_and_counts_changes(void **state)
{
    struct pair p;

    (void)state;
    pair_open(&p, 1000, 0);
    assert_int_equal(blkrepl__hbitmap_set(&p.map, 63, 2), 2);
    assert_int_equal(blkrepl__hbitmap_set(&p.map, 60, 10), 8);
    assert_int_equal(blkrepl__hbitmap_set(&p.map, 60, 10), 0);
    assert_int_equal(blkrepl__hbitmap_set(&p.map, 60, 0), 0);
    assert_int_equal(p.map.set_count, 10);
    assert_false(blkrepl__hbitmap_test(&p.map, 59));
    assert_true(blkrepl__hbitmap_test(&p.map, 60));
    assert_true(blkrepl__hbitmap_test(&p.map, 69));
    assert_false(blkrepl__hbitmap_test(&p.map, 70));
    assert_int_equal(blkrepl__hbitmap_clear(&p.map, 0, 65), 5);
    assert_int_equal(blkrepl__hbitmap_clear(&p.map, 0, 65), 0);
    assert_int_equal(blkrepl__hbitmap_clear(&p.map, 65, 0), 0);
    assert_int_equal(p.map.set_count, 5);
    pair_close(&p);
}

/* Each range set on the empty set and cleared from the full one. */
static void hbitmap_all_ranges_of_small_sizes_on_empty_and_full(void **state)
{
    (void)state;
    for (uint64_t n = 0; n <= SMALL_MAX; n++) {
        struct pair p;

        pair_open(&p, n, 0);
        for (uint64_t first = 0; first <= n; first++) {
            for (uint64_t count = 0; count <= n - first; count++) {
                pair_change(&p, true, first, count);
                pair_change(&p, false, first, count);
                blkrepl__hbitmap_set_all(&p.map);
                memset(p.bits, 1, (size_t)n);
                pair_change(&p, false, first, count);
                blkrepl__hbitmap_clear(&p.map, 0, n);
                memset(p.bits, 0, (size_t)n);
            }
        }
        pair_close(&p);
    }
}

/* Each range set and cleared on sets that are neither. */
static void hbitmap_all_ranges_of_small_sizes_on_mixed_bits(void **state)
{
    (void)state;
    for (uint64_t n = 1; n <= SMALL_MAX; n++) {
        struct pair p;

        pair_open(&p, n, n);
        for (uint64_t first = 0; first < n; first++) {
            for (uint64_t count = 1; count <= n - first; count++) {
                pair_change(&p, pair_random(&p, 2), first, count);
                pair_change(&p, pair_random(&p, 2), pair_random(&p, n), 1);
            }
        }
        pair_close(&p);
    }
}

static void hbitmap_all_searches_of_small_sizes(void **state)
{
    static const uint64_t one_in[] = {1000000, 60, 8, 2, 1};

    (void)state;
    for (uint64_t n = 0; n <= SMALL_MAX; n++) {
        for (size_t i = 0; i < ARRAY_COUNT(one_in); i++) {
            struct pair p;

            pair_open(&p, n, n + i);
            pair_scatter(&p, one_in[i]);
            if (i == 4 && n > 0) {
                pair_change(&p, false, pair_random(&p, n), 1);
            }
            for (uint64_t from = 0; from <= n; from++) {
                for (uint64_t end = from; end <= n; end++) {
                    pair_search(&p, from, end);
                }
            }
            pair_close(&p);
        }
    }
}

static void hbitmap_set_all_fixes_the_tail_of_every_level(void **state)
{
    static const uint64_t middle[] = {64, 128, 4096, 8192, 64 * 64 * 64};

    (void)state;
    for (size_t i = 0; i < ARRAY_COUNT(middle); i++) {
        for (uint64_t n = middle[i] - 1; n <= middle[i] + 1; n++) {
            struct pair p;

            pair_open(&p, n, 0);
            pair_change(&p, true, n - 1, 1);
            pair_set_all(&p);
            pair_search(&p, 0, n);
            pair_change(&p, false, 0, n);
            pair_search(&p, 0, n);
            pair_close(&p);
        }
    }
}

/* A range somewhere, often at a border of words or of the set; often short. */
static void random_range(struct pair *p, uint64_t *first, uint64_t *count)
{
    static const uint64_t unit[] = {1, 1, 64, 4096};

    *first = pair_random(p, p->count);
    *first -= *first % unit[pair_random(p, ARRAY_COUNT(unit))];
    *count = pair_random(p, p->count - *first + 1);
    switch (pair_random(p, 4)) {
    case 0: *count = *count % 3; break;
    case 1: *count = *count % 200; break;
    case 2: *count -= *count % unit[pair_random(p, ARRAY_COUNT(unit))]; break;
    default: break;
    }
}

static void random_run(uint64_t bit_count, uint64_t seed, unsigned operations)
{
    struct pair p;

    pair_open(&p, bit_count, seed);
    for (unsigned i = 0; i < operations; i++) {
        uint64_t first;
        uint64_t count;

        random_range(&p, &first, &count);
        if (pair_random(&p, 50) == 0) {
            pair_set_all(&p);
        } else {
            pair_change(&p, pair_random(&p, 2), first, count);
        }
        for (int search = 0; search < 4; search++) {
            random_range(&p, &first, &count);
            pair_search(&p, first, first + count);
        }
    }
    pair_close(&p);
}

static void hbitmap_random_operations_match_the_oracle(void **state)
{
    static const struct {
        uint64_t bit_count;
        unsigned operations;
    } run[] = {
        {1, 50},      {63, 300},    {64, 300},    {65, 300},    {127, 300},
        {4095, 1000}, {4096, 1000}, {4097, 1000}, {12345, 300}, {262143, 25},
        {262144, 25}, {262145, 25}, {300001, 25},
    };

    (void)state;
    for (size_t i = 0; i < ARRAY_COUNT(run); i++) {
        for (uint64_t seed = 1; seed <= SEEDS; seed++) {
            random_run(run[i].bit_count, seed, run[i].operations);
        }
    }
}

/* Few bits far apart: the searches have to climb and come down again. */
static void hbitmap_search_finds_lone_bits_of_a_big_set(void **state)
{
    const uint64_t n = 64 * 64 * 64 + 4097;
    struct pair p;

    (void)state;
    pair_open(&p, n, 3);
    for (int round = 0; round < 40; round++) {
        uint64_t bit = round == 0 ? n - 1 : pair_random(&p, n);

        pair_change(&p, true, bit, 1);
        for (int i = 0; i < 20; i++) {
            uint64_t from = pair_random(&p, n + 1);

            pair_search(&p, from, n);
            pair_search(&p, from, from + pair_random(&p, n - from + 1));
        }
        pair_search(&p, bit, bit);
        pair_search(&p, bit, bit + 1);
        pair_search(&p, bit + 1, n);
        pair_search(&p, 0, bit);
        if (round % 2 == 1) {
            pair_change(&p, false, bit, 1);
        }
    }
    pair_close(&p);
}

static void hbitmap_validate_notices_each_kind_of_damage(void **state)
{
    struct pair p;
    const char *reason = NULL;

    (void)state;
    pair_open(&p, 5000, 0);
    pair_change(&p, true, 100, 1);
    p.map.set_count++;
    assert_false(blkrepl__hbitmap_validate(&p.map, &reason));
    assert_string_equal(reason, "set_count is not the number of set bits");
    p.map.set_count--;
    for (uint32_t n = 0; n < 3; n++) {
        uint64_t last = n == 0 ? 5000 / 64 : n == 1 ? 1 : 0;

        p.map.level[n][last] ^= UINT64_C(1) << 63;
        assert_false(blkrepl__hbitmap_validate(&p.map, &reason));
        assert_string_equal(reason, "a bit beyond the end is set");
        p.map.level[n][last] ^= UINT64_C(1) << 63;
    }
    for (uint32_t n = 1; n < 3; n++) {
        for (int bit = 0; bit < 2; bit++) { /* one missing, one too many */
            p.map.level[n][0] ^= UINT64_C(1) << bit;
            assert_false(blkrepl__hbitmap_validate(&p.map, &reason));
            assert_string_equal(reason, "a summary bit is wrong");
            p.map.level[n][0] ^= UINT64_C(1) << bit;
        }
    }
    pair_compare(&p);
    pair_close(&p);
}

static void hbitmap_init_beyond_the_largest_size_is_efbig(void **state)
{
    struct heap heap;
    struct alloc alloc;
    struct hbitmap map;

    (void)state;
    heap_init(&heap, &alloc);
    assert_int_equal(blkrepl__hbitmap_init(&map, &alloc, HBITMAP_BITS_MAX + 1), -EFBIG);
    assert_int_equal(blkrepl__hbitmap_init(&map, &alloc, UINT64_MAX), -EFBIG);
    assert_int_equal(heap.calls, 0);
    blkrepl__hbitmap_fini(&map);
    heap.fail_at = 1;
    assert_int_equal(blkrepl__hbitmap_init(&map, &alloc, HBITMAP_BITS_MAX), -ENOMEM);
    blkrepl__hbitmap_fini(&map);
    assert_int_equal(heap.live, 0);
}

static void hbitmap_init_without_memory_is_enomem_and_leaks_nothing(void **state)
{
    static const uint64_t bit_counts[] = {0, 1, 65, 4097, 262145};

    (void)state;
    for (size_t i = 0; i < ARRAY_COUNT(bit_counts); i++) {
        int err = -ENOMEM;

        for (unsigned fail_at = 1; err != 0; fail_at++) {
            struct heap heap;
            struct alloc alloc;
            struct hbitmap map;

            heap_init(&heap, &alloc);
            heap.fail_at = fail_at;
            err = blkrepl__hbitmap_init(&map, &alloc, bit_counts[i]);
            assert_int_equal(err, heap.calls >= fail_at ? -ENOMEM : 0);
            assert_int_equal(heap.live, err == 0 ? heap.calls : 0);
            blkrepl__hbitmap_fini(&map);
            blkrepl__hbitmap_fini(&map);
            assert_int_equal(heap.live, 0);
        }
    }
}

/* 32 GiB of address space, of which a few pages are touched. */
static void *largest_zalloc(void *user, size_t bytes)
{
    void *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

    *(size_t *)user = bytes;
    return memory != MAP_FAILED ? memory : NULL;
}

static void largest_free(void *user, void *memory)
{
    munmap(memory, *(size_t *)user);
}

static void hbitmap_of_the_largest_size_works_at_both_ends(void **state)
{
    const uint64_t n = HBITMAP_BITS_MAX;
    struct heap heap;
    struct alloc alloc;
    struct hbitmap map;
    size_t bytes = 0;

    (void)state;
    heap_init(&heap, &alloc);
    alloc.hooks.user = &bytes;
    alloc.hooks.zalloc = largest_zalloc;
    alloc.hooks.free = largest_free;
    if (blkrepl__hbitmap_init(&map, &alloc, n) != 0) {
        skip();
    }
    assert_int_equal(map.level_count, HBITMAP_LEVELS_MAX);
    assert_true(blkrepl__hbitmap_next_set(&map, 0, n) == n);
    assert_int_equal(blkrepl__hbitmap_set(&map, n - 1, 1), 1);
    assert_true(blkrepl__hbitmap_next_set(&map, 0, n) == n - 1);
    assert_true(blkrepl__hbitmap_next_set(&map, 0, n - 1) == n - 1);
    assert_true(blkrepl__hbitmap_next_clear(&map, n - 1, n) == n);
    assert_int_equal(blkrepl__hbitmap_set(&map, n - 100, 100), 99);
    assert_int_equal(blkrepl__hbitmap_set(&map, 0, 1), 1);
    assert_true(blkrepl__hbitmap_next_set(&map, 1, n) == n - 100);
    assert_int_equal(blkrepl__hbitmap_clear(&map, n - 100, 100), 100);
    assert_true(blkrepl__hbitmap_next_set(&map, 1, n) == n);
    blkrepl__hbitmap_fini(&map);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(hbitmap_of_no_bits_is_legal),
        cmocka_unit_test(hbitmap_has_the_levels_it_needs),
        cmocka_unit_test(hbitmap_set_rounds_nothing_and_counts_changes),
        cmocka_unit_test(hbitmap_all_ranges_of_small_sizes_on_empty_and_full),
        cmocka_unit_test(hbitmap_all_ranges_of_small_sizes_on_mixed_bits),
        cmocka_unit_test(hbitmap_all_searches_of_small_sizes),
        cmocka_unit_test(hbitmap_set_all_fixes_the_tail_of_every_level),
        cmocka_unit_test(hbitmap_random_operations_match_the_oracle),
        cmocka_unit_test(hbitmap_search_finds_lone_bits_of_a_big_set),
        cmocka_unit_test(hbitmap_validate_notices_each_kind_of_damage),
        cmocka_unit_test(hbitmap_init_beyond_the_largest_size_is_efbig),
        cmocka_unit_test(hbitmap_init_without_memory_is_enomem_and_leaks_nothing),
        cmocka_unit_test(hbitmap_of_the_largest_size_works_at_both_ends),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
