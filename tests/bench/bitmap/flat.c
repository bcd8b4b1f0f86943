/* SPDX-License-Identifier: MIT */
/* flat.c - words and nothing else: the least that a set can cost, and the most that
 * looking for something in it can.  To set and to test a bit is a call, as it is of
 * any bitmap that is in a library. */
#include "kinds.h"

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

struct flat {
    uint64_t bits; /* a multiple of 64 */
    uint64_t *words;
};

static void *flat_create(uint64_t bits)
{
    struct flat *flat = malloc(sizeof *flat);

    if (flat == NULL || (flat->words = calloc((size_t)(bits / 64), 8)) == NULL) {
        bench_die("no memory");
    }
    flat->bits = bits;
    return flat;
}

static void flat_free(void *map)
{
    struct flat *flat = map;

    free(flat->words);
    free(flat);
}

static void flat_clear(void *map)
{
    struct flat *flat = map;

    memset(flat->words, 0, (size_t)(flat->bits / 8));
}

static void flat_set(void *map, uint64_t first, uint64_t count)
{
    struct flat *flat = map;
    uint64_t last = first + count - 1;
    uint64_t head = UINT64_MAX << first % 64;
    uint64_t tail = UINT64_MAX >> (63 - last % 64);

    if (first / 64 == last / 64) {
        flat->words[first / 64] |= head & tail;
        return;
    }
    flat->words[first / 64] |= head;
    memset(flat->words + first / 64 + 1, 0xff, (size_t)(last / 64 - first / 64 - 1) * 8);
    flat->words[last / 64] |= tail;
}

static void flat_set_one(struct flat *flat, uint64_t bit)
{
    flat->words[bit / 64] |= UINT64_C(1) << bit % 64;
}

static uint64_t flat_test_one(const struct flat *flat, uint64_t bit)
{
    return flat->words[bit / 64] >> bit % 64 & 1;
}

/* So that they stay calls. */
static void (*volatile set_one)(struct flat *, uint64_t) = flat_set_one;
static uint64_t (*volatile test_one)(const struct flat *, uint64_t) = flat_test_one;

static void flat_set_each(void *map, struct order order, uint64_t count)
{
    for (uint64_t i = 0; i < count; i++) {
        set_one(map, order_next(&order));
    }
}

static uint64_t flat_test_each(void *map, struct order order, uint64_t count)
{
    uint64_t set = 0;

    for (uint64_t i = 0; i < count; i++) {
        set += test_one(map, order_next(&order));
    }
    return set;
}

static struct found flat_iterate(void *map, uint64_t most)
{
    const struct flat *flat = map;
    struct found found = {0, 0};

    for (uint64_t w = 0; w < flat->bits / 64 && found.count < most; w++) {
        for (uint64_t word = flat->words[w]; word != 0; word &= word - 1) {
            found.sum += w * 64 + (uint32_t)__builtin_ctzll(word);
            found.count++;
        }
    }
    return found;
}

/* The first bit from `from` on that is set, or clear where flip is all ones. */
static uint64_t flat_next(const struct flat *flat, uint64_t from, uint64_t flip)
{
    uint64_t w = from / 64;
    uint64_t word;

    if (from >= flat->bits) {
        return flat->bits;
    }
    word = (flat->words[w] ^ flip) & UINT64_MAX << from % 64;
    while (word == 0) {
        if (++w == flat->bits / 64) {
            return flat->bits;
        }
        word = flat->words[w] ^ flip;
    }
    return w * 64 + (uint32_t)__builtin_ctzll(word);
}

static struct found flat_areas(void *map, uint64_t most)
{
    const struct flat *flat = map;
    struct found found = {0, 0};
    uint64_t start = flat_next(flat, 0, 0);

    while (start < flat->bits && found.count < most) {
        uint64_t end = flat_next(flat, start, UINT64_MAX);

        found.sum += start ^ (end - start);
        found.count++;
        start = flat_next(flat, end, 0);
    }
    return found;
}

static void flat_merge(void *map, void *other)
{
    uint64_t *words = ((struct flat *)map)->words;
    const uint64_t *more = ((struct flat *)other)->words;

    for (uint64_t w = 0; w < ((struct flat *)map)->bits / 64; w++) {
        words[w] |= more[w];
    }
}

static uint64_t flat_count(void *map)
{
    const struct flat *flat = map;
    uint64_t count = 0;

    for (uint64_t w = 0; w < flat->bits / 64; w++) {
        uint64_t x = flat->words[w];

        x -= x >> 1 & UINT64_C(0x5555555555555555);
        x = (x & UINT64_C(0x3333333333333333)) + (x >> 2 & UINT64_C(0x3333333333333333));
        x = (x + (x >> 4)) & UINT64_C(0x0f0f0f0f0f0f0f0f);
        count += (x * UINT64_C(0x0101010101010101)) >> 56;
    }
    return count;
}

static uint64_t flat_save(void *map, unsigned char *data)
{
    const struct flat *flat = map;

    memcpy(data, flat->words, (size_t)(flat->bits / 8));
    return flat->bits / 8;
}

static bool big_endian(void)
{
    static const uint16_t one = 1;

    return *(const unsigned char *)&one == 0;
}

static void flat_load(void *map, const unsigned char *data, uint64_t bytes)
{
    memcpy(((struct flat *)map)->words, data, (size_t)bytes);
}

static void flat_fill(void *map, const unsigned char *bits, uint64_t bytes)
{
    struct flat *flat = map;

    flat_load(map, bits, bytes);
    for (uint64_t w = 0; big_endian() && w < flat->bits / 64; w++) {
        flat->words[w] = __builtin_bswap64(flat->words[w]);
    }
}

const struct kind kind_flat = {.name = "flat words",
                               .create = flat_create,
                               .free = flat_free,
                               .clear = flat_clear,
                               .set = flat_set,
                               .set_each = flat_set_each,
                               .test_each = flat_test_each,
                               .iterate = flat_iterate,
                               .areas = flat_areas,
                               .merge = flat_merge,
                               .count = flat_count,
                               .fill = flat_fill,
                               .save = flat_save,
                               .load = flat_load};
