/* SPDX-License-Identifier: MIT */
/* library.c - the library's own set of granules, as it uses it inside. */
#include "kinds.h"

#include "data/dirtymap.h"

#include <stdlib.h>

#define OFFSET(bit) ((uint64_t)(bit) << GRANULARITY_SHIFT)

static struct alloc alloc;

static void *library_create(uint64_t bits)
{
    struct dirtymap *map = malloc(sizeof *map);

    if (map == NULL || blkrepl__alloc_init(&alloc, NULL) < 0 ||
        blkrepl__dirtymap_init(map, &alloc, OFFSET(bits), GRANULARITY_SHIFT) < 0) {
        bench_die("no memory");
    }
    return map;
}

static void library_free(void *map)
{
    blkrepl__dirtymap_fini(map);
    free(map);
}

static void library_clear(void *map)
{
    blkrepl__dirtymap_clear(map);
}

static void library_set(void *map, uint64_t first, uint64_t count)
{
    blkrepl__dirtymap_set(map, OFFSET(first), OFFSET(count));
}

static void library_set_each(void *map, struct order order, uint64_t count)
{
    for (uint64_t i = 0; i < count; i++) {
        blkrepl__dirtymap_set(map, OFFSET(order_next(&order)), OFFSET(1));
    }
}

static void library_mark_each(void *map, struct order order, uint64_t count)
{
    for (uint64_t i = 0; i < count; i++) {
        blkrepl__dirtymap_mark(map, OFFSET(order_next(&order)), OFFSET(1));
    }
}

static uint64_t library_test_each(void *map, struct order order, uint64_t count)
{
    uint64_t set = 0;

    for (uint64_t i = 0; i < count; i++) {
        set += blkrepl__dirtymap_get(map, OFFSET(order_next(&order)));
    }
    return set;
}

static struct found library_iterate(void *map, uint64_t most)
{
    uint64_t offsets[BATCH];
    uint64_t position = 0;
    struct found found = {0, 0};
    uint32_t count;

    while (found.count < most &&
           (count = blkrepl__dirtymap_iterate(map, &position, offsets, BATCH)) > 0) {
        for (uint32_t i = 0; i < count; i++) {
            found.sum += offsets[i] >> GRANULARITY_SHIFT;
        }
        found.count += count;
    }
    return found;
}

static struct found library_areas(void *map, uint64_t most)
{
    uint64_t start = 0;
    uint64_t length = 0;
    struct found found = {0, 0};

    while (found.count < most &&
           blkrepl__dirtymap_next_area(map, start + length, UINT64_MAX, 0, &start, &length)) {
        found.sum += (start >> GRANULARITY_SHIFT) ^ (length >> GRANULARITY_SHIFT);
        found.count++;
    }
    return found;
}

static void library_merge(void *map, void *other)
{
    blkrepl__dirtymap_merge(map, other);
}

static uint64_t library_count(void *map)
{
    return blkrepl__dirtymap_dirty_bytes(map) >> GRANULARITY_SHIFT;
}

static uint64_t library_save(void *map, unsigned char *data)
{
    const struct dirtymap *m = map;

    blkrepl__dirtymap_save(m, 0, m->bytes, data);
    return blkrepl__dirtymap_part_bytes(m, 0, m->bytes);
}

static void library_load(void *map, const unsigned char *data, uint64_t bytes)
{
    struct dirtymap *m = map;

    (void)bytes;
    blkrepl__dirtymap_load(m, 0, m->bytes, data);
}

const struct kind kind_library = {.name = "library",
                                  .create = library_create,
                                  .free = library_free,
                                  .clear = library_clear,
                                  .set = library_set,
                                  .set_each = library_set_each,
                                  .mark_each = library_mark_each,
                                  .test_each = library_test_each,
                                  .iterate = library_iterate,
                                  .areas = library_areas,
                                  .merge = library_merge,
                                  .count = library_count,
                                  .fill = library_load,
                                  .save = library_save,
                                  .load = library_load};
