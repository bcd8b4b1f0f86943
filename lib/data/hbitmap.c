/* SPDX-License-Identifier: MIT */
/* hbitmap.c - a set of bit numbers with summary levels.
 *
 * All levels lie in one piece of memory, level 0 first.  A change works from
 * level 0 upwards and stops at the first level where no word went from zero to
 * something or back, which for a single bit is nearly always level 0. */
#include "data/hbitmap_word.h"

#include <errno.h>

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

/* Set bits of one word.  Returns how many of them changed. */
static uint64_t word_set(uint64_t *word, uint64_t mask)
{
    uint64_t missing = mask & ~*word;

    if (missing == 0) {
        return 0;
    }
    *word |= mask;
    return (missing & (missing - 1)) == 0 ? 1 : word_popcount(missing);
}

/* Set all bits of `count` words.  Those that are full already are only read, and not
 * counted.  Returns how many bits changed. */
static uint64_t words_fill(uint64_t *words, uint64_t count)
{
    uint64_t changed = 0;
    uint64_t w = 0;

    for (; w + WORD_FEW <= count; w += WORD_FEW) {
        uint64_t common = WORD_ALL;

        for (uint64_t i = 0; i < WORD_FEW; i++) {
            common &= words[w + i];
        }
        if (common != WORD_ALL) {
            changed += WORD_FEW * WORD_BITS - blkrepl__words_popcount(words + w, WORD_FEW);
            memset(words + w, 0xff, WORD_FEW * sizeof *words);
        }
    }
    for (; w < count; w++) {
        changed += word_set(&words[w], WORD_ALL);
    }
    return changed;
}

/* Set bits first..last of one level.  *woke: a word of it may have been 0 before.
 * Returns how many bits changed. */
static uint64_t level_set(uint64_t *words, uint64_t first, uint64_t last, bool *woke)
{
    uint64_t low = first / WORD_BITS;
    uint64_t high = last / WORD_BITS;
    uint64_t changed;

    if (low == high) {
        *woke = words[low] == 0;
        return word_set(&words[low], word_from(first) & word_to(last));
    }
    changed = word_set(&words[low], word_from(first));
    changed += words_fill(words + low + 1, high - low - 1);
    changed += word_set(&words[high], word_to(last));
    *woke = changed != 0;
    return changed;
}

/* Set bits first..last, which lie in several words. */
static uint64_t words_set(struct hbitmap *map, uint64_t first, uint64_t last)
{
    bool woke;
    uint64_t changed = level_set(map->level[0], first, last, &woke);

    for (uint32_t n = 1; woke && n < map->level_count; n++) {
        first /= WORD_BITS;
        last /= WORD_BITS;
        level_set(map->level[n], first, last, &woke);
    }
    map->set_count += changed;
    return changed;
}

/* Word w of level 0 is not 0 any more. */
static void word_woke(struct hbitmap *map, uint64_t w)
{
    bool woke = true;

    for (uint32_t n = 1; woke && n < map->level_count; n++) {
        uint64_t *word = &map->level[n][w / WORD_BITS];

        woke = *word == 0;
        *word |= UINT64_C(1) << (w % WORD_BITS);
        w /= WORD_BITS;
    }
}

uint64_t blkrepl__hbitmap_set(struct hbitmap *map, uint64_t first, uint64_t count)
{
    uint64_t last = first + count - 1;
    uint64_t *word = &map->level[0][first / WORD_BITS];
    uint64_t old;
    uint64_t changed;

    CHECK(range_inside(first, count, map->bit_count));
    if (count == 0) {
        return 0;
    }
    if (first / WORD_BITS != last / WORD_BITS) {
        return words_set(map, first, last);
    }
    old = *word;
    changed = word_set(word, word_from(first) & word_to(last));
    if (old == 0) {
        word_woke(map, first / WORD_BITS);
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

/* From level 0 upwards, so that the summary shows the way until the end. */
void blkrepl__hbitmap_clear_all(struct hbitmap *map)
{
    for (uint32_t n = 0; n < map->level_count; n++) {
        uint64_t words = level_words(map, n);
        uint64_t w = blkrepl__hbitmap_next_word(map, n, 0);

        while (w < words) {
            uint64_t run = min_u64(RUN_WORDS - w % RUN_WORDS, words - w);

            memset(map->level[n] + w, 0, (size_t)run * sizeof(uint64_t));
            w = blkrepl__hbitmap_next_word(map, n, w + run);
        }
    }
    map->set_count = 0;
}

/* Set bits of a word that other threads set bits of too.  Returns how many changed. */
static uint64_t word_mark(uint64_t *word, uint64_t mask)
{
    uint64_t old = word_load(word);

    if ((old & mask) == mask) {
        return 0;
    }
    old = atomic_fetch_or_explicit(word_shared(word), mask, memory_order_release);
    return word_popcount(mask & ~old);
}

static uint64_t level_mark(uint64_t *words, uint64_t first, uint64_t last)
{
    uint64_t high = last / WORD_BITS;
    uint64_t mask = word_from(first);
    uint64_t changed = 0;

    for (uint64_t w = first / WORD_BITS; w < high; w++, mask = WORD_ALL) {
        changed += word_mark(&words[w], mask);
    }
    return changed + word_mark(&words[high], mask & word_to(last));
}

/* Words first..last of level 0 are not 0.  All levels are looked at, also where a bit
 * was there before: who has set it may not have come to the level above yet, and what
 * we mark must be found when we return. */
static void words_mark(struct hbitmap *map, uint64_t first, uint64_t last)
{
    for (uint32_t n = 1; n < map->level_count; n++) {
        if (first == last) {
            word_mark(&map->level[n][first / WORD_BITS], UINT64_C(1) << (first % WORD_BITS));
        } else {
            level_mark(map->level[n], first, last);
        }
        first /= WORD_BITS;
        last /= WORD_BITS;
    }
}

void blkrepl__hbitmap_mark(struct hbitmap *map, uint64_t first, uint64_t count)
{
    uint64_t last = first + count - 1;
    uint64_t changed;

    CHECK(range_inside(first, count, map->bit_count));
    if (count == 0) {
        return;
    }
    changed = level_mark(map->level[0], first, last);
    words_mark(map, first / WORD_BITS, last / WORD_BITS);
    if (changed != 0) {
        atomic_fetch_add_explicit(word_shared(&map->set_count), changed, memory_order_relaxed);
    }
}

uint64_t blkrepl__hbitmap_count(const struct hbitmap *map)
{
    return word_load(&map->set_count);
}

bool blkrepl__hbitmap_test(const struct hbitmap *map, uint64_t bit)
{
    CHECK(bit < map->bit_count);
    return (word_load(&map->level[0][bit / WORD_BITS]) >> (bit % WORD_BITS)) & 1;
}

/* The first set bit of level n at or after `at` and not after `last`; more than `last`
 * if there is none.  Go up until a word has a bit at or after our place, then down to
 * that bit.  `last` goes up with us, so no level is read beyond the search range. */
static uint64_t level_next(const struct hbitmap *map, uint32_t n, uint64_t at, uint64_t last)
{
    uint32_t up = n;
    uint64_t word;

    while ((word = word_acquire(&map->level[up][at / WORD_BITS]) & word_from(at)) == 0) {
        at = at / WORD_BITS + 1;
        last /= WORD_BITS;
        if (++up == map->level_count || at > last) {
            return UINT64_MAX;
        }
    }
    at = (at & ~UINT64_C(63)) | word_lowest(word);
    while (up > n) {
        at = at * WORD_BITS + word_lowest(word_acquire(&map->level[--up][at]));
    }
    return at;
}

uint64_t blkrepl__hbitmap_next_word(const struct hbitmap *map, uint32_t n, uint64_t from)
{
    uint64_t words = level_words(map, n);

    if (from >= words) {
        return words;
    }
    if (n + 1 == map->level_count) {
        return map->level[n][0] != 0 ? 0 : 1;
    }
    return min_u64(level_next(map, n + 1, from, words - 1), words);
}

/* The words of the run of word w, from that word on, that have a bit. */
static inline uint64_t run_rest(const struct hbitmap *map, uint64_t w)
{
    if (UNLIKELY(map->level_count == 1)) {
        return 1;
    }
    return word_acquire(&map->level[1][w / RUN_WORDS]) & word_from(w);
}

/* The first bit of the first run after that of bit `at` that has one. */
static uint64_t run_after(const struct hbitmap *map, uint64_t at)
{
    uint64_t r = at / RUN_BITS + 1;

    return RUN_BITS * (map->level_count > 2 ? blkrepl__hbitmap_next_word(map, 1, r) : r);
}

/* The next word behind word w, of its run or of the next one, that has a bit and begins
 * before bit `end`; 0 if neither run has one.  Which of the two it is cannot be
 * guessed, so it is computed rather than decided. */
static inline uint64_t word_behind(const struct hbitmap *map, uint64_t w, uint64_t end)
{
    uint64_t run = w / RUN_WORDS;
    uint64_t rest = word_acquire(&map->level[1][run]) & word_from(w) << 1;

    if (run < (end - 1) / RUN_BITS) {
        uint64_t next = word_acquire(&map->level[1][run + 1]);

        run += rest == 0;
        rest = rest == 0 ? next : rest;
    }
    return rest == 0 ? 0 : run * RUN_WORDS + word_lowest(rest);
}

/* The first set bit, from < end.  In a word, near by, or far away: the first two are
 * what happens nearly always.  *word is the bit's word, as far as it was looked at. */
static inline uint64_t find_set(const struct hbitmap *map, uint64_t from, uint64_t end,
                                uint64_t *word)
{
    uint64_t w = from / WORD_BITS;

    *word = word_load(&map->level[0][w]) & word_from(from);
    if (*word == 0) {
        if (w == (end - 1) / WORD_BITS) {
            return end;
        }
        w = word_behind(map, w, end);
        if (UNLIKELY(w == 0)) {
            w = level_next(map, 0, from, end - 1) / WORD_BITS;
            if (w >= (end + WORD_BITS - 1) / WORD_BITS) {
                return end;
            }
        }
        *word = word_load(&map->level[0][w]);
    }
    return min_u64(w * WORD_BITS + word_lowest(*word), end);
}

uint64_t blkrepl__hbitmap_next_set(const struct hbitmap *map, uint64_t from, uint64_t end)
{
    uint64_t word;

    CHECK(from <= end && end <= map->bit_count);
    return from == end ? end : find_set(map, from, end, &word);
}

uint64_t blkrepl__hbitmap_next_run(const struct hbitmap *map, uint64_t from, uint64_t end,
                                   uint64_t *stop)
{
    uint64_t word = 0;
    uint64_t first;

    CHECK(from <= end && end <= map->bit_count);
    first = from == end ? end : find_set(map, from, end, &word);
    if (first == end) {
        *stop = end;
        return end;
    }
    /* Most runs end in the word where they begin. */
    word = ~word & word_from(first);
    if (word != 0) {
        *stop = min_u64((first & ~UINT64_C(63)) + word_lowest(word), end);
    } else {
        *stop = blkrepl__hbitmap_next_clear(map, first + 1, end);
    }
    return first;
}

/* Full words are not summarised; they are passed one by one. */
uint64_t blkrepl__hbitmap_next_clear(const struct hbitmap *map, uint64_t from, uint64_t end)
{
    uint64_t mask = word_from(from);

    CHECK(from <= end && end <= map->bit_count);
    for (uint64_t at = from & ~UINT64_C(63); at < end; at += WORD_BITS, mask = WORD_ALL) {
        uint64_t word = ~word_load(&map->level[0][at / WORD_BITS]) & mask;

        if (word != 0) {
            return min_u64(at + word_lowest(word), end);
        }
    }
    return end;
}

/* What list() does for one word, whose bits are those from `base` on.  *behind: where
 * to go on if `max` were listed. */
static inline uint32_t word_list(uint64_t word, uint64_t base, uint32_t shift, uint64_t *bits,
                                 uint32_t max, uint64_t *behind)
{
    uint64_t at = base;
    uint32_t listed = 0;

    if (max > WORD_BITS) {
        for (; word != 0; word &= word - 1) {
            bits[listed++] = (base + word_lowest(word)) << shift;
        }
        return listed;
    }
    for (; word != 0 && listed < max; word &= word - 1) {
        at = base + word_lowest(word);
        bits[listed++] = at << shift;
    }
    *behind = at + 1;
    return listed;
}

/* The same for one run, from *from on. */
static uint32_t run_list(const struct hbitmap *map, uint64_t *from, uint64_t end, uint32_t shift,
                         uint64_t *bits, uint32_t max)
{
    uint64_t base = *from & ~(RUN_BITS - 1);
    uint64_t rest = run_rest(map, *from / WORD_BITS);
    uint64_t mask = word_from(*from);
    uint64_t behind = end;
    uint32_t listed = 0;

    if ((rest >> (*from / WORD_BITS % WORD_BITS) & 1) == 0) {
        mask = WORD_ALL;
    }
    for (; rest != 0 && listed < max; rest &= rest - 1, mask = WORD_ALL) {
        uint64_t low = base + (uint64_t)word_lowest(rest) * WORD_BITS;

        if (low + WORD_BITS > end) {
            if (low >= end) {
                break;
            }
            mask &= word_to(end - 1);
        }
        mask &= word_load(&map->level[0][low / WORD_BITS]);
        listed += word_list(mask, low, shift, bits + listed, max - listed, &behind);
    }
    *from = listed == max ? behind : min_u64(base + RUN_BITS, end);
    return listed;
}

uint32_t blkrepl__hbitmap_list(const struct hbitmap *map, uint64_t *from, uint64_t end,
                               uint32_t shift, uint64_t *bits, uint32_t max)
{
    uint64_t at = *from;
    uint32_t listed = 0;

    CHECK(max > 0 && at <= end && end <= map->bit_count);
    while (listed < max && at < end) {
        if (run_rest(map, at / WORD_BITS) == 0) {
            at = min_u64(run_after(map, at), end);
        } else {
            listed += run_list(map, &at, end, shift, bits + listed, max - listed);
        }
    }
    *from = at;
    return listed;
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
