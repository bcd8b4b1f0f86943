/* SPDX-License-Identifier: MIT */
/* hbitmap.c - a set of bit numbers with summary levels.
 *
 * All levels lie in one piece of memory, level 0 first.  A change works from
 * level 0 upwards and stops at the first level where no word went from zero to
 * something or back, which for a single bit is nearly always level 0. */
#include "data/hbitmap.h"

#include "base/checked.h"

#include <errno.h>
#include <string.h>

#define WORD_BITS 64
#define WORD_SHIFT 6
#define WORD_ALL UINT64_MAX

/* Bits from..63 and 0..to of a word; only the low six bits of both count. */
static uint64_t word_from(uint64_t from)
{
    return WORD_ALL << (from % WORD_BITS);
}

static uint64_t word_to(uint64_t to)
{
    return WORD_ALL >> (WORD_BITS - 1 - to % WORD_BITS);
}

/* How many bits are set.  Without the processor's instruction the compiler's
 * builtin is a call with a table; this form is inlined everywhere. */
static uint32_t word_popcount(uint64_t word)
{
    word -= (word >> 1) & UINT64_C(0x5555555555555555);
    word = (word & UINT64_C(0x3333333333333333)) + ((word >> 2) & UINT64_C(0x3333333333333333));
    word = (word + (word >> 4)) & UINT64_C(0x0f0f0f0f0f0f0f0f);
    return (uint32_t)((word * UINT64_C(0x0101010101010101)) >> 56);
}

/* The number of the lowest set bit; word is not 0. */
static uint32_t word_lowest(uint64_t word)
{
#if defined(__GNUC__) || defined(__clang__)
    return (uint32_t)__builtin_ctzll(word);
#else
    return word_popcount(~word & (word - 1));
#endif
}

/* How many bits level n has: those of the set, or the words of the level below. */
static uint64_t level_bits(const struct hbitmap *map, uint32_t n)
{
    uint32_t shift = n * WORD_SHIFT;

    return (map->bit_count + ((UINT64_C(1) << shift) - 1)) >> shift;
}

/* At least one, so that the empty set of 0 bits needs no special case. */
static uint64_t level_words(const struct hbitmap *map, uint32_t n)
{
    return max_u64(1, (level_bits(map, n) + WORD_BITS - 1) / WORD_BITS);
}

int blkrepl__hbitmap_init(struct hbitmap *map, const struct alloc *alloc, uint64_t bit_count)
{
    uint64_t words = 0;
    uint64_t *memory;

    memset(map, 0, sizeof *map);
    if (bit_count > HBITMAP_BITS_MAX) {
        return -EFBIG;
    }
    map->alloc = alloc;
    map->bit_count = bit_count;
    do {
        words += level_words(map, map->level_count++);
    } while (level_words(map, map->level_count - 1) > 1);
    memory = blkrepl__zalloc_array(alloc, words, sizeof *memory);
    if (memory == NULL) {
        return -ENOMEM;
    }
    for (uint32_t n = 0; n < map->level_count; n++) {
        map->level[n] = memory;
        memory += level_words(map, n);
    }
    return 0;
}

void blkrepl__hbitmap_fini(struct hbitmap *map)
{
    if (map->level[0] != NULL) {
        blkrepl__free(map->alloc, map->level[0]);
    }
    memset(map, 0, sizeof *map);
}

/* Set bits first..last of one level.  *woke: a word of it was 0 before.
 * Returns how many bits changed. */
static uint64_t level_set(uint64_t *words, uint64_t first, uint64_t last, bool *woke)
{
    uint64_t mask = word_from(first);
    uint64_t changed = 0;

    *woke = false;
    for (uint64_t w = first / WORD_BITS; w <= last / WORD_BITS; w++, mask = WORD_ALL) {
        uint64_t old = words[w];

        if (w == last / WORD_BITS) {
            mask &= word_to(last);
        }
        words[w] = old | mask;
        changed += word_popcount(mask & ~old);
        *woke |= old == 0;
    }
    return changed;
}

uint64_t blkrepl__hbitmap_set(struct hbitmap *map, uint64_t first, uint64_t count)
{
    uint64_t last = first + count - 1;
    uint64_t changed;
    bool woke;

    CHECK(range_inside(first, count, map->bit_count));
    if (count == 0) {
        return 0;
    }
    changed = level_set(map->level[0], first, last, &woke);
    for (uint32_t n = 1; woke && n < map->level_count; n++) {
        first /= WORD_BITS;
        last /= WORD_BITS;
        level_set(map->level[n], first, last, &woke);
    }
    map->set_count += changed;
    return changed;
}

/* Clear bits *first..*last of one level, and make the range that of the words
 * that have become 0, which are the bits to clear in the level above; false if
 * there are none.  *changed: how many bits of this level changed. */
static bool level_clear(uint64_t *words, uint64_t *first, uint64_t *last, uint64_t *changed)
{
    uint64_t low = *first / WORD_BITS;
    uint64_t high = *last / WORD_BITS;
    uint64_t mask = word_from(*first);

    *changed = 0;
    for (uint64_t w = low; w <= high; w++, mask = WORD_ALL) {
        if (w == high) {
            mask &= word_to(*last);
        }
        *changed += word_popcount(words[w] & mask);
        words[w] &= ~mask;
    }
    /* Only the words at the ends can have kept a bit. */
    low += words[low] != 0;
    high += words[high] == 0;
    *first = low;
    *last = high - 1;
    return low < high && *changed != 0;
}

uint64_t blkrepl__hbitmap_clear(struct hbitmap *map, uint64_t first, uint64_t count)
{
    uint64_t last = first + count - 1;
    uint64_t changed;
    uint64_t ignored;
    bool emptied;

    CHECK(range_inside(first, count, map->bit_count));
    if (count == 0) {
        return 0;
    }
    emptied = level_clear(map->level[0], &first, &last, &changed);
    for (uint32_t n = 1; emptied && n < map->level_count; n++) {
        emptied = level_clear(map->level[n], &first, &last, &ignored);
    }
    map->set_count -= changed;
    return changed;
}

void blkrepl__hbitmap_set_all(struct hbitmap *map)
{
    if (map->bit_count == 0) {
        return;
    }
    for (uint32_t n = 0; n < map->level_count; n++) {
        uint64_t words = level_words(map, n);

        memset(map->level[n], 0xff, (size_t)words * sizeof(uint64_t));
        map->level[n][words - 1] = word_to(level_bits(map, n) - 1);
    }
    map->set_count = map->bit_count;
}

bool blkrepl__hbitmap_test(const struct hbitmap *map, uint64_t bit)
{
    CHECK(bit < map->bit_count);
    return (map->level[0][bit / WORD_BITS] >> (bit % WORD_BITS)) & 1;
}

/* Go up until a word has a bit at or after our place, then down to that bit.
 * `last` goes up with us, so no level is read beyond the search range. */
uint64_t blkrepl__hbitmap_next_set(const struct hbitmap *map, uint64_t from, uint64_t end)
{
    uint64_t last = end - 1;
    uint64_t at = from;
    uint64_t word = 0;
    uint32_t n = 0;

    CHECK(from <= end && end <= map->bit_count);
    if (from == end) {
        return end;
    }
    while ((word = map->level[n][at / WORD_BITS] & word_from(at)) == 0) {
        at = at / WORD_BITS + 1;
        last /= WORD_BITS;
        if (++n == map->level_count || at > last) {
            return end;
        }
    }
    at = (at & ~UINT64_C(63)) | word_lowest(word);
    while (n > 0) {
        at = at * WORD_BITS + word_lowest(map->level[--n][at]);
    }
    return min_u64(at, end);
}

/* Full words are not summarised; they are passed one by one. */
uint64_t blkrepl__hbitmap_next_clear(const struct hbitmap *map, uint64_t from, uint64_t end)
{
    uint64_t mask = word_from(from);

    CHECK(from <= end && end <= map->bit_count);
    for (uint64_t at = from & ~UINT64_C(63); at < end; at += WORD_BITS, mask = WORD_ALL) {
        uint64_t word = ~map->level[0][at / WORD_BITS] & mask;

        if (word != 0) {
            return min_u64(at + word_lowest(word), end);
        }
    }
    return end;
}

/* Whether nothing is set beyond the end of level n. */
static bool level_tail_clear(const struct hbitmap *map, uint32_t n)
{
    uint64_t bits = level_bits(map, n);

    if (bits == 0) {
        return map->level[n][0] == 0;
    }
    return (map->level[n][(bits - 1) / WORD_BITS] & ~word_to(bits - 1)) == 0;
}

/* Whether level n + 1 has a bit for exactly those words of level n that have one. */
static bool level_summary_true(const struct hbitmap *map, uint32_t n)
{
    for (uint64_t w = 0; w < level_words(map, n); w++) {
        uint64_t summary = map->level[n + 1][w / WORD_BITS] >> (w % WORD_BITS) & 1;

        if (summary != (map->level[n][w] != 0)) {
            return false;
        }
    }
    return true;
}

bool blkrepl__hbitmap_validate(const struct hbitmap *map, const char **reason)
{
    uint64_t counted = 0;

    for (uint32_t n = 0; n < map->level_count; n++) {
        if (!level_tail_clear(map, n)) {
            *reason = "a bit beyond the end is set";
            return false;
        }
        if (n + 1 < map->level_count && !level_summary_true(map, n)) {
            *reason = "a summary bit is wrong";
            return false;
        }
    }
    for (uint64_t w = 0; w < level_words(map, 0); w++) {
        counted += word_popcount(map->level[0][w]);
    }
    if (counted != map->set_count) {
        *reason = "set_count is not the number of set bits";
        return false;
    }
    return true;
}
