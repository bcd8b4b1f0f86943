/* SPDX-License-Identifier: MIT */
/* hbitmap_ops.c - what changes many words of a set at once.
 *
 * Everything goes run by run: the words of a run are changed, the bits that this
 * set or cleared are counted while the words are near, and the run's summary is
 * put in its place, from where it tells the levels above.  Runs that are empty are
 * found by the summary and not touched. */
#include "data/hbitmap_word.h"

#include <errno.h>

/* The words of run r are map->level[0] + r * RUN_WORDS and the following. */
static uint64_t run_words(const struct hbitmap *map, uint64_t r)
{
    return min_u64(RUN_WORDS, level_words(map, 0) - r * RUN_WORDS);
}

static uint64_t run_count(const struct hbitmap *map)
{
    return (level_words(map, 0) + RUN_WORDS - 1) / RUN_WORDS;
}

/* The first run, at or after r, that has a bit; the number of runs or more if there
 * is none.  A set of one word has no summary: that word is its only run. */
static uint64_t run_next(const struct hbitmap *map, uint64_t r)
{
    return blkrepl__hbitmap_next_word(map, map->level_count > 1 ? 1 : 0, r);
}

static uint64_t run_summary(const struct hbitmap *map, uint64_t r)
{
    return map->level_count > 1 ? map->level[1][r] : map->level[0][0] != 0;
}

/* The words of run r have become what `summary` tells of them. */
static void run_put(struct hbitmap *map, uint64_t r, uint64_t summary)
{
    for (uint32_t n = 1; n < map->level_count; n++) {
        uint64_t old = map->level[n][r];

        map->level[n][r] = summary;
        if ((old != 0) == (summary != 0) || n + 1 == map->level_count) {
            return;
        }
        summary = map->level[n + 1][r / WORD_BITS] ^ UINT64_C(1) << (r % WORD_BITS);
        r /= WORD_BITS;
    }
}

/* Clear what lies beyond the last bit in words that end with the set. */
static void words_cut(uint64_t *words, uint64_t count, uint64_t bit_count)
{
    if (bit_count % WORD_BITS != 0) {
        words[count - 1] &= word_to(bit_count - 1);
    }
}

void blkrepl__hbitmap_or(struct hbitmap *map, const struct hbitmap *other)
{
    uint64_t runs = run_count(map);

    CHECK(map->bit_count == other->bit_count);
    for (uint64_t r = run_next(other, 0); r < runs; r = run_next(other, r + 1)) {
        const uint64_t *from = other->level[0] + r * RUN_WORDS;
        uint64_t *words = map->level[0] + r * RUN_WORDS;
        uint64_t count = run_words(map, r);
        uint64_t added[RUN_WORDS];

        for (uint64_t w = 0; w < count; w++) {
            added[w] = from[w] & ~words[w];
            words[w] |= from[w];
        }
        map->set_count += blkrepl__words_popcount(added, count);
        run_put(map, r, run_summary(map, r) | run_summary(other, r));
    }
}

/* words &= keep; *removed: how many bits that cleared.  Returns the summary. */
static uint64_t words_keep(uint64_t *words, const uint64_t *keep, uint64_t flip, uint64_t count,
                           uint64_t *removed)
{
    uint64_t gone[RUN_WORDS];

    for (uint64_t w = 0; w < count; w++) {
        uint64_t mask = keep[w] ^ flip;

        gone[w] = words[w] & ~mask;
        words[w] &= mask;
    }
    *removed = blkrepl__words_popcount(gone, count);
    return blkrepl__words_summary(words, count);
}

/* Keep of run r what `other` has (flip 0) or has not (flip WORD_ALL). */
static void run_keep(struct hbitmap *map, const struct hbitmap *other, uint64_t flip, uint64_t r)
{
    uint64_t removed;
    uint64_t summary;

    summary = words_keep(map->level[0] + r * RUN_WORDS, other->level[0] + r * RUN_WORDS, flip,
                         run_words(map, r), &removed);
    map->set_count -= removed;
    run_put(map, r, summary);
}

void blkrepl__hbitmap_and(struct hbitmap *map, const struct hbitmap *other)
{
    uint64_t runs = run_count(map);

    CHECK(map->bit_count == other->bit_count);
    for (uint64_t r = run_next(map, 0); r < runs; r = run_next(map, r + 1)) {
        run_keep(map, other, 0, r);
    }
}

void blkrepl__hbitmap_subtract(struct hbitmap *map, const struct hbitmap *other)
{
    uint64_t runs = run_count(map);

    CHECK(map->bit_count == other->bit_count);
    for (uint64_t r = run_next(other, 0); r < runs; r = run_next(other, r + 1)) {
        if (run_summary(map, r) != 0) {
            run_keep(map, other, WORD_ALL, r);
        }
    }
}

void blkrepl__hbitmap_invert(struct hbitmap *map)
{
    uint64_t runs = run_count(map);

    if (map->bit_count == 0) {
        return;
    }
    for (uint64_t r = 0; r < runs; r++) {
        uint64_t *words = map->level[0] + r * RUN_WORDS;
        uint64_t count = run_words(map, r);

        for (uint64_t w = 0; w < count; w++) {
            words[w] = ~words[w];
        }
        if (r + 1 == runs) {
            words_cut(words, count, map->bit_count);
        }
        run_put(map, r, blkrepl__words_summary(words, count));
    }
    map->set_count = map->bit_count - map->set_count;
}

/* Take over what the first bits of `old` are into the new and empty `map`. */
static void resize_copy(struct hbitmap *map, const struct hbitmap *old)
{
    uint64_t bit_count = min_u64(map->bit_count, old->bit_count);
    uint64_t all = (bit_count + WORD_BITS - 1) / WORD_BITS;
    uint64_t runs = (all + RUN_WORDS - 1) / RUN_WORDS;

    for (uint64_t r = run_next(old, 0); r < runs; r = run_next(old, r + 1)) {
        uint64_t *words = map->level[0] + r * RUN_WORDS;
        uint64_t count = min_u64(RUN_WORDS, all - r * RUN_WORDS);

        memcpy(words, old->level[0] + r * RUN_WORDS, (size_t)count * sizeof *words);
        if (r + 1 == runs) {
            words_cut(words, count, bit_count);
        }
        map->set_count += blkrepl__words_popcount(words, count);
        run_put(map, r, blkrepl__words_summary(words, count));
    }
}

int blkrepl__hbitmap_resize(struct hbitmap *map, uint64_t bit_count)
{
    struct hbitmap resized;
    int err;

    if (bit_count == map->bit_count) {
        return 0;
    }
    err = blkrepl__hbitmap_init(&resized, map->alloc, bit_count);
    if (err != 0) {
        return err;
    }
    resize_copy(&resized, map);
    blkrepl__hbitmap_fini(map);
    *map = resized;
    return 0;
}

/* The word whose bytes in memory are those of this one, the lowest first; and back. */
static uint64_t word_order(uint64_t word)
{
#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
    return word;
#else
    unsigned char bytes[8];

    for (uint32_t i = 0; i < 8; i++) {
        bytes[i] = (unsigned char)(word >> (8 * i));
    }
    memcpy(&word, bytes, sizeof word);
    return word;
#endif
}

void blkrepl__hbitmap_save(const struct hbitmap *map, uint64_t first, uint64_t count,
                           unsigned char *data)
{
    const uint64_t *words = map->level[0] + first / WORD_BITS;
    uint64_t whole = count / WORD_BITS;

    CHECK(range_inside(first, count, map->bit_count) && first % WORD_BITS == 0);
    CHECK(count % WORD_BITS == 0 || first + count == map->bit_count);
    for (uint64_t w = 0; w < whole; w++) {
        uint64_t word = word_order(words[w]);

        memcpy(data + 8 * w, &word, sizeof word);
    }
    for (uint64_t i = whole * 8; i < (count + 7) / 8; i++) {
        data[i] = (unsigned char)(words[whole] >> (8 * (i % 8)));
    }
}

/* Words of one run become `fresh`; `low` is the number in the run of the first. */
static void run_replace(struct hbitmap *map, uint64_t r, uint64_t low, const uint64_t *fresh,
                        uint64_t count)
{
    uint64_t *words = map->level[0] + r * RUN_WORDS + low;
    uint64_t summary = run_summary(map, r);
    uint64_t range = word_to(count - 1) << low;

    if ((summary & range) != 0) {
        map->set_count -= blkrepl__words_popcount(words, count);
    }
    map->set_count += blkrepl__words_popcount(fresh, count);
    memcpy(words, fresh, (size_t)count * sizeof *words);
    run_put(map, r, (summary & ~range) | blkrepl__words_summary(fresh, count) << low);
}

/* Read `count` (> 0) bits, at most those of a run; the rest of the last word becomes 0. */
static void bits_get(uint64_t *words, uint64_t count, const unsigned char *data)
{
    uint64_t whole = count / WORD_BITS;

    for (uint64_t w = 0; w < whole; w++) {
        uint64_t word;

        memcpy(&word, data + 8 * w, sizeof word);
        words[w] = word_order(word);
    }
    if (count % WORD_BITS != 0) {
        words[whole] = 0;
        for (uint64_t i = whole * 8; i < (count + 7) / 8; i++) {
            words[whole] |= (uint64_t)data[i] << (8 * (i % 8));
        }
        words_cut(words, whole + 1, count);
    }
}

void blkrepl__hbitmap_load(struct hbitmap *map, uint64_t first, uint64_t count,
                           const unsigned char *data)
{
    CHECK(range_inside(first, count, map->bit_count) && first % WORD_BITS == 0);
    CHECK(count % WORD_BITS == 0 || first + count == map->bit_count);
    while (count > 0) {
        uint64_t low = first / WORD_BITS % RUN_WORDS;
        uint64_t taken = min_u64(count, (RUN_WORDS - low) * WORD_BITS);
        uint64_t fresh[RUN_WORDS];

        bits_get(fresh, taken, data);
        run_replace(map, first / WORD_BITS / RUN_WORDS, low, fresh,
                    (taken + WORD_BITS - 1) / WORD_BITS);
        first += taken;
        count -= taken;
        data += taken / 8;
    }
}
