/* SPDX-License-Identifier: MIT */
/* hbitmap.h - a set of bit numbers 0 .. bit_count-1, with summary levels.
 *
 * Level 0 holds the bits, 64 a word.  Bit i of level n+1 is set if and only if
 * word i of level n is not 0.  Levels go on until one word is left, so finding
 * the next set bit costs a few words whatever the size.  All memory is taken at
 * init, zeroed; set and clear never allocate.  Not locked.
 *
 * Invariants: bits at and beyond bit_count are 0 at every level; set_count is
 * the number of set bits; the summary rule above. */
#ifndef BLKREPL_DATA_HBITMAP_H
#define BLKREPL_DATA_HBITMAP_H

#include "base/alloc.h"

#define HBITMAP_LEVELS_MAX 7
#define HBITMAP_BITS_MAX (UINT64_C(1) << 38)

struct hbitmap {
    const struct alloc *alloc;
    uint64_t bit_count;
    uint64_t set_count;
    uint32_t level_count; /* >= 1 */
    uint64_t *level[HBITMAP_LEVELS_MAX];
};

/* Make an empty set.  bit_count 0 is legal.
 * Returns: 0; -EFBIG more than HBITMAP_BITS_MAX; -ENOMEM. */
int blkrepl__hbitmap_init(struct hbitmap *map, const struct alloc *alloc, uint64_t bit_count);
void blkrepl__hbitmap_fini(struct hbitmap *map);

/* The range must lie inside the set (CHECK); count 0 does nothing.  Return how
 * many bits changed. */
uint64_t blkrepl__hbitmap_set(struct hbitmap *map, uint64_t first, uint64_t count);
uint64_t blkrepl__hbitmap_clear(struct hbitmap *map, uint64_t first, uint64_t count);
void blkrepl__hbitmap_set_all(struct hbitmap *map);

bool blkrepl__hbitmap_test(const struct hbitmap *map, uint64_t bit);

/* The first set (clear) bit at or after `from` and below `end`; `end` if there
 * is none.  from <= end <= bit_count (CHECK). */
uint64_t blkrepl__hbitmap_next_set(const struct hbitmap *map, uint64_t from, uint64_t end);
uint64_t blkrepl__hbitmap_next_clear(const struct hbitmap *map, uint64_t from, uint64_t end);

/* Whether the invariants hold; *reason says which does not. */
bool blkrepl__hbitmap_validate(const struct hbitmap *map, const char **reason);

#endif
