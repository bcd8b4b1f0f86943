/* SPDX-License-Identifier: MIT */
/* kinds.h - the bitmaps that bench/bitmap.c compares, behind one set of functions.
 *
 * Each function does many of a thing, so that within it each one is called as its
 * users call it, and the way here costs nothing that could be measured. */
#ifndef BLKREPL_BENCH_KINDS_H
#define BLKREPL_BENCH_KINDS_H

#include <stdint.h>

#define GRANULARITY_SHIFT 16
#define BATCH 256 /* bits asked for at once where lists are made */

/* Bit numbers in an order that no processor guesses, none twice in a round of mask + 1:
 * a congruential generator of full period, its high half folded into the low one. */
struct order {
    uint64_t state;
    uint64_t mask;
    uint32_t shift;
};

static inline uint64_t order_next(struct order *order)
{
    order->state =
        (order->state * UINT64_C(6364136223846793005) + 1442695040888963407u) & order->mask;
    return order->state ^ order->state >> order->shift;
}

static inline struct order order_of(uint64_t bits, uint64_t seed)
{
    struct order order = {.state = seed, .mask = bits - 1, .shift = 1};

    while (bits >> 2 * order.shift > 1) {
        order.shift++;
    }
    return order;
}

/* What was met on the way: the same for every kind, or one of them is wrong. */
struct found {
    uint64_t count;
    uint64_t sum;
};

struct kind {
    const char *name;
    void *(*create)(uint64_t bits);
    void (*free)(void *map);
    void (*clear)(void *map);
    void (*set)(void *map, uint64_t first, uint64_t count);
    void (*set_each)(void *map, struct order order, uint64_t count);
    void (*mark_each)(void *map, struct order order, uint64_t count); /* NULL: as set_each */
    uint64_t (*test_each)(void *map, struct order order, uint64_t count);
    /* At most `most` of them, from the start. */
    struct found (*iterate)(void *map, uint64_t most);
    struct found (*areas)(void *map, uint64_t most);
    void (*merge)(void *map, void *other);
    uint64_t (*count)(void *map);
    /* Take over `bytes` of plain bits, the lowest bit of the first byte first. */
    void (*fill)(void *map, const unsigned char *bits, uint64_t bytes);
    /* To the kind's own form, and from it; returns its length. */
    uint64_t (*save)(void *map, unsigned char *data);
    void (*load)(void *map, const unsigned char *data, uint64_t bytes);
};

extern const struct kind kind_library;
extern const struct kind kind_api;
extern const struct kind kind_flat;
#ifdef BENCH_ROARING
extern const struct kind kind_roaring;
#endif
#ifdef BENCH_HBITMAP
extern const struct kind kind_hbitmap;
#endif

/* What one map with this many bits set adds to the memory of a process that has done nothing
 * else: of a child. */
double memory_kib(const struct kind *kind, uint64_t bit_count, uint64_t ones);

/* End the program with a message. */
_Noreturn void bench_die(const char *what);

#endif
