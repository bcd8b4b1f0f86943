/* SPDX-License-Identifier: MIT */
/* roaring.c - CRoaring, as Debian packages it; left out where that is not installed. */
#ifdef BENCH_ROARING
#include "kinds.h"

#include <roaring/roaring.h>
#include <stdlib.h>

struct roaring {
    roaring_bitmap_t *map; /* another one after each load */
};

static roaring_bitmap_t *roaring_or_die(roaring_bitmap_t *map)
{
    if (map == NULL) {
        bench_die("roaring: no memory");
    }
    return map;
}

static roaring_bitmap_t *roaring_of(void *map)
{
    return ((struct roaring *)map)->map;
}

static void *roaring_create(uint64_t bits)
{
    struct roaring *roaring = malloc(sizeof *roaring);

    if (roaring == NULL || bits > UINT64_C(1) << 32) {
        bench_die("roaring: no memory, or too many bits");
    }
    roaring->map = roaring_or_die(roaring_bitmap_create());
    return roaring;
}

static void roaring_free(void *map)
{
    roaring_bitmap_free(roaring_of(map));
    free(map);
}

static void roaring_clear(void *map)
{
    roaring_bitmap_clear(roaring_of(map));
}

static void roaring_set(void *map, uint64_t first, uint64_t count)
{
    roaring_bitmap_add_range_closed(roaring_of(map), (uint32_t)first,
                                    (uint32_t)(first + count - 1));
}

static void roaring_set_each(void *map, struct order order, uint64_t count)
{
    roaring_bitmap_t *r = roaring_of(map);

    for (uint64_t i = 0; i < count; i++) {
        roaring_bitmap_add(r, (uint32_t)order_next(&order));
    }
}

static uint64_t roaring_test_each(void *map, struct order order, uint64_t count)
{
    const roaring_bitmap_t *r = roaring_of(map);
    uint64_t set = 0;

    for (uint64_t i = 0; i < count; i++) {
        set += roaring_bitmap_contains(r, (uint32_t)order_next(&order));
    }
    return set;
}

static struct found roaring_each(void *map, uint64_t most)
{
    roaring_uint32_iterator_t it;
    uint32_t bits[BATCH];
    uint32_t count = BATCH;
    struct found found = {0, 0};

    roaring_init_iterator(roaring_of(map), &it);
    while (found.count < most && count == BATCH) {
        count = roaring_read_uint32_iterator(&it, bits, BATCH);
        for (uint32_t i = 0; i < count; i++) {
            found.sum += bits[i];
        }
        found.count += count;
    }
    return found;
}

/* This release has no call for runs. */
static struct found roaring_areas(void *map, uint64_t most)
{
    roaring_uint32_iterator_t it;
    struct found found = {0, 0};

    roaring_init_iterator(roaring_of(map), &it);
    while (it.has_value && found.count < most) {
        uint32_t start = it.current_value;
        uint32_t end = start;

        do {
            end++;
        } while (roaring_advance_uint32_iterator(&it) && it.current_value == end);
        found.sum += start ^ (end - start);
        found.count++;
    }
    return found;
}

static void roaring_merge(void *map, void *other)
{
    roaring_bitmap_or_inplace(roaring_of(map), roaring_of(other));
}

static uint64_t roaring_count(void *map)
{
    return roaring_bitmap_get_cardinality(roaring_of(map));
}

static void roaring_fill(void *map, const unsigned char *data, uint64_t bytes)
{
    roaring_bitmap_t *r = roaring_of(map);
    uint32_t bits[BATCH];
    uint32_t count = 0;

    for (uint64_t i = 0; i < bytes; i++) {
        for (uint32_t byte = data[i]; byte != 0; byte &= byte - 1) {
            bits[count++] = (uint32_t)(i * 8) + (uint32_t)__builtin_ctz(byte);
        }
        if (count > BATCH - 8 || i + 1 == bytes) {
            roaring_bitmap_add_many(r, count, bits);
            count = 0;
        }
    }
}

static uint64_t roaring_save(void *map, unsigned char *data)
{
    return roaring_bitmap_portable_serialize(roaring_of(map), (char *)data);
}

static void roaring_load(void *map, const unsigned char *data, uint64_t bytes)
{
    struct roaring *roaring = map;

    roaring_bitmap_free(roaring->map);
    roaring->map =
        roaring_or_die(roaring_bitmap_portable_deserialize_safe((const char *)data, (size_t)bytes));
}

const struct kind kind_roaring = {.name = "CRoaring",
                                  .create = roaring_create,
                                  .free = roaring_free,
                                  .clear = roaring_clear,
                                  .set = roaring_set,
                                  .set_each = roaring_set_each,
                                  .test_each = roaring_test_each,
                                  .iterate = roaring_each,
                                  .areas = roaring_areas,
                                  .merge = roaring_merge,
                                  .count = roaring_count,
                                  .fill = roaring_fill,
                                  .save = roaring_save,
                                  .load = roaring_load};
#else
typedef int roaring_is_not_there; /* a file must not be empty */
#endif
