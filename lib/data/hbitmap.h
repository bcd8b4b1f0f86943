/* SPDX-License-Identifier: MIT */
/* hbitmap.h - a set of bit numbers 0 .. bit_count-1, with summary levels.
 *
 * Level 0 holds the bits, 64 a word.  Bit i of level n+1 is set if and only if
 * word i of level n is not 0.  Levels go on until one word is left, so finding
 * the next set bit costs a few words whatever the size.  All memory is taken at
 * init, zeroed; nothing but resize allocates.
 *
 * Threads: the caller locks.  Two classes of functions differ: those that say
 * "concurrent" may run while other threads run mark(), and so may mark() itself;
 * all others need the set for themselves.  What a mark() that is still going on
 * sets may be seen in part.
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
    _Alignas(8) uint64_t set_count; /* aligned on 32 bits too: threads add to it */
    uint32_t level_count;           /* >= 1 */
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
/* Costs what is set, not what the set is long. */
void blkrepl__hbitmap_clear_all(struct hbitmap *map);

/* Set like blkrepl__hbitmap_set(), concurrently. */
void blkrepl__hbitmap_mark(struct hbitmap *map, uint64_t first, uint64_t count);

/* How many bits are set; concurrent. */
uint64_t blkrepl__hbitmap_count(const struct hbitmap *map);

/* Concurrent.  bit < bit_count (CHECK). */
bool blkrepl__hbitmap_test(const struct hbitmap *map, uint64_t bit);

/* The first set (clear) bit at or after `from` and below `end`; `end` if there
 * is none.  from <= end <= bit_count (CHECK).  Concurrent. */
uint64_t blkrepl__hbitmap_next_set(const struct hbitmap *map, uint64_t from, uint64_t end);
uint64_t blkrepl__hbitmap_next_clear(const struct hbitmap *map, uint64_t from, uint64_t end);

/* The first run of set bits: returns its first one like next_set(), and *stop is the
 * first bit behind it, at most `end`.  Concurrent. */
uint64_t blkrepl__hbitmap_next_run(const struct hbitmap *map, uint64_t from, uint64_t end,
                                   uint64_t *stop);

/* Write the numbers of set bits from *from on, below `end`, into `bits`, each
 * shifted left by `shift`, at most `max` (> 0) of them, and move *from behind the
 * last one, or to `end` if there are no more.  Returns how many.  *from <= end <=
 * bit_count (CHECK).  Concurrent. */
uint32_t blkrepl__hbitmap_list(const struct hbitmap *map, uint64_t *from, uint64_t end,
                               uint32_t shift, uint64_t *bits, uint32_t max);

/* map = map | other, map & other, map & ~other.  The same bit_count (CHECK); they
 * may be one and the same.  The cost follows what is set, in `other` for or and
 * subtract, in `map` for and, down to whole runs of 64 words. */
void blkrepl__hbitmap_or(struct hbitmap *map, const struct hbitmap *other);
void blkrepl__hbitmap_and(struct hbitmap *map, const struct hbitmap *other);
void blkrepl__hbitmap_subtract(struct hbitmap *map, const struct hbitmap *other);
/* Every bit becomes the other thing. */
void blkrepl__hbitmap_invert(struct hbitmap *map);

/* Change the number of bits; new ones are clear, those beyond the end are gone.
 * Returns: 0; -EFBIG; -ENOMEM, and nothing has changed. */
int blkrepl__hbitmap_resize(struct hbitmap *map, uint64_t bit_count);

/* Bits first..first+count-1 as (count + 7) / 8 bytes, lowest bit first, the rest of
 * the last byte zero; and back.  first is a multiple of 64, and so is count unless
 * the range ends with the set (CHECK).  load() ignores what is behind the last
 * bit. */
void blkrepl__hbitmap_save(const struct hbitmap *map, uint64_t first, uint64_t count,
                           unsigned char *data);
void blkrepl__hbitmap_load(struct hbitmap *map, uint64_t first, uint64_t count,
                           const unsigned char *data);

/* Whether the invariants hold; *reason says which does not. */
bool blkrepl__hbitmap_validate(const struct hbitmap *map, const char **reason);

#endif
