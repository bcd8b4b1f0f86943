/* SPDX-License-Identifier: MIT */
/* api.c - a free-standing bitmap through the public functions: each call checks what
 * it is given and makes sure that it is alone. */
#include "kinds.h"

#include <libblkrepl/libblkrepl.h>

#define OFFSET(bit) ((uint64_t)(bit) << GRANULARITY_SHIFT)

static blkrepl_context *ctx;

static void check(int rc)
{
    if (rc < 0) {
        bench_die(blkrepl_error_message());
    }
}

static uint64_t api_bytes(void *map)
{
    blkrepl_bitmap_info info = {.struct_size = sizeof info};

    check(blkrepl_bitmap_query(map, &info));
    return info.bytes;
}

static void *api_create(uint64_t bits)
{
    blkrepl_bitmap_options options = {
        .struct_size = sizeof options, .bytes = OFFSET(bits), .granularity_bytes = OFFSET(1)};
    blkrepl_bitmap *map;

    if (ctx == NULL) {
        check(blkrepl_context_create(NULL, &ctx));
    }
    check(blkrepl_bitmap_create(ctx, &options, &map));
    return map;
}

static void api_free(void *map)
{
    blkrepl_bitmap_free(map);
}

static void api_clear(void *map)
{
    check(blkrepl_bitmap_clear(map));
}

static void api_set(void *map, uint64_t first, uint64_t count)
{
    check(blkrepl_bitmap_set(map, OFFSET(first), OFFSET(count)));
}

static void api_set_each(void *map, struct order order, uint64_t count)
{
    for (uint64_t i = 0; i < count; i++) {
        check(blkrepl_bitmap_set(map, OFFSET(order_next(&order)), OFFSET(1)));
    }
}

static uint64_t api_test_each(void *map, struct order order, uint64_t count)
{
    uint64_t set = 0;

    for (uint64_t i = 0; i < count; i++) {
        set += blkrepl_bitmap_get(map, OFFSET(order_next(&order))) == 1;
    }
    return set;
}

static struct found api_iterate(void *map, uint64_t most)
{
    uint64_t offsets[BATCH];
    uint64_t position = 0;
    struct found found = {0, 0};
    int count;

    while (found.count < most &&
           (count = blkrepl_bitmap_iterate(map, &position, offsets, BATCH)) > 0) {
        for (int i = 0; i < count; i++) {
            found.sum += offsets[i] >> GRANULARITY_SHIFT;
        }
        found.count += (uint64_t)count;
    }
    return found;
}

static struct found api_areas(void *map, uint64_t most)
{
    blkrepl_area area = {0, 0};
    struct found found = {0, 0};

    while (found.count < most &&
           blkrepl_bitmap_next_area(map, area.offset + area.bytes, UINT64_MAX, 0, &area) == 1) {
        found.sum += (area.offset >> GRANULARITY_SHIFT) ^ (area.bytes >> GRANULARITY_SHIFT);
        found.count++;
    }
    return found;
}

static void api_merge(void *map, void *other)
{
    blkrepl_bitmap *source = other;

    check(blkrepl_bitmap_merge(map, &source, 1));
}

static uint64_t api_count(void *map)
{
    blkrepl_bitmap_info info = {.struct_size = sizeof info};

    check(blkrepl_bitmap_query(map, &info));
    return info.dirty_granules;
}

static uint64_t api_save(void *map, unsigned char *data)
{
    uint64_t bytes = UINT64_MAX;

    check(blkrepl_bitmap_save(map, 0, api_bytes(map), data, &bytes));
    return bytes;
}

static void api_load(void *map, const unsigned char *data, uint64_t bytes)
{
    check(blkrepl_bitmap_load_begin(map));
    check(blkrepl_bitmap_load(map, 0, api_bytes(map), data, bytes));
    check(blkrepl_bitmap_load_finish(map));
}

const struct kind kind_api = {.name = "public API",
                              .create = api_create,
                              .free = api_free,
                              .clear = api_clear,
                              .set = api_set,
                              .set_each = api_set_each,
                              .test_each = api_test_each,
                              .iterate = api_iterate,
                              .areas = api_areas,
                              .merge = api_merge,
                              .count = api_count,
                              .fill = api_load,
                              .save = api_save,
                              .load = api_load};
