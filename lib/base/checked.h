/* SPDX-License-Identifier: MIT */
/* checked.h - arithmetic on sizes that come from outside. */
#ifndef BLKREPL_BASE_CHECKED_H
#define BLKREPL_BASE_CHECKED_H

#include "base/compiler.h"

/* Whether offset..offset+bytes lies inside 0..limit, without overflow. */
static inline bool range_inside(uint64_t offset, uint64_t bytes, uint64_t limit)
{
    return offset <= limit && bytes <= limit - offset;
}

/* Whether two half-open ranges, neither of them empty, have a byte in common. */
static inline bool range_overlaps(uint64_t start_a, uint64_t end_a, uint64_t start_b,
                                  uint64_t end_b)
{
    return start_a < end_b && start_b < end_a;
}

/* *sum = a + b; false if that overflows (then *sum is left alone). */
static inline bool checked_add(uint64_t a, uint64_t b, uint64_t *sum)
{
    if (b > UINT64_MAX - a) {
        return false;
    }
    *sum = a + b;
    return true;
}

/* *product = a * b; false if that overflows (then *product is left alone). */
static inline bool checked_mul(uint64_t a, uint64_t b, uint64_t *product)
{
    if (a != 0 && b > UINT64_MAX / a) {
        return false;
    }
    *product = a * b;
    return true;
}

static inline bool is_power_of_two(uint64_t x)
{
    return x != 0 && (x & (x - 1)) == 0;
}

/* Round down or up to a power of two; the caller knows that up fits. */
static inline uint64_t align_down(uint64_t x, uint64_t alignment)
{
    return x & ~(alignment - 1);
}

static inline uint64_t align_up(uint64_t x, uint64_t alignment)
{
    return align_down(x + (alignment - 1), alignment);
}

static inline uint64_t min_u64(uint64_t a, uint64_t b)
{
    return a < b ? a : b;
}

static inline uint64_t max_u64(uint64_t a, uint64_t b)
{
    return a > b ? a : b;
}

#endif
