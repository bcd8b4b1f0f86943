/* SPDX-License-Identifier: MIT */
/* hbitmap.c - QEMU's HBitmap, used as QEMU's dirty bitmaps use it: items are bytes.
 *
 * Built only when QEMU's source is at hand (BLKREPL_QEMU_SOURCE); nothing of it is here. */
#include "qemu/osdep.h"

#include "qemu/hbitmap.h"

#include "bitmap/kinds.h"

#define OFFSET(bit) ((uint64_t)(bit) << GRANULARITY_SHIFT)

struct peer {
    HBitmap *map;
    uint64_t bytes;
};

static HBitmap *peer_map(void *map)
{
    return ((struct peer *)map)->map;
}

static void *peer_create(uint64_t bits)
{
    struct peer *peer = malloc(sizeof *peer);

    if (peer == NULL) {
        bench_die("no memory");
    }
    peer->bytes = OFFSET(bits);
    peer->map = hbitmap_alloc(peer->bytes, GRANULARITY_SHIFT);
    return peer;
}

static void peer_free(void *map)
{
    hbitmap_free(peer_map(map));
    free(map);
}

static void peer_clear(void *map)
{
    hbitmap_reset_all(peer_map(map));
}

static void peer_set(void *map, uint64_t first, uint64_t count)
{
    hbitmap_set(peer_map(map), OFFSET(first), OFFSET(count));
}

static void peer_set_each(void *map, struct order order, uint64_t count)
{
    HBitmap *m = peer_map(map);

    for (uint64_t i = 0; i < count; i++) {
        hbitmap_set(m, OFFSET(order_next(&order)), OFFSET(1));
    }
}

static uint64_t peer_test_each(void *map, struct order order, uint64_t count)
{
    const HBitmap *m = peer_map(map);
    uint64_t set = 0;

    for (uint64_t i = 0; i < count; i++) {
        set += hbitmap_get(m, OFFSET(order_next(&order)));
    }
    return set;
}

static struct found peer_iterate(void *map, uint64_t most)
{
    struct found found = {0, 0};
    HBitmapIter it;
    int64_t offset;

    hbitmap_iter_init(&it, peer_map(map), 0);
    while (found.count < most && (offset = hbitmap_iter_next(&it)) >= 0) {
        found.sum += (uint64_t)offset >> GRANULARITY_SHIFT;
        found.count++;
    }
    return found;
}

static struct found peer_areas(void *map, uint64_t most)
{
    int64_t end = (int64_t)((struct peer *)map)->bytes;
    struct found found = {0, 0};
    int64_t start = 0;
    int64_t bytes = 0;

    while (found.count < most &&
           hbitmap_next_dirty_area(peer_map(map), start + bytes, end, INT64_MAX, &start, &bytes)) {
        found.sum += (uint64_t)start >> GRANULARITY_SHIFT ^ (uint64_t)bytes >> GRANULARITY_SHIFT;
        found.count++;
    }
    return found;
}

static void peer_merge(void *map, void *other)
{
    hbitmap_merge(peer_map(map), peer_map(other), peer_map(map));
}

static uint64_t peer_count(void *map)
{
    return hbitmap_count(peer_map(map)) >> GRANULARITY_SHIFT;
}

static uint64_t peer_save(void *map, unsigned char *data)
{
    uint64_t bytes = ((struct peer *)map)->bytes;

    hbitmap_serialize_part(peer_map(map), data, 0, bytes);
    return hbitmap_serialization_size(peer_map(map), 0, bytes);
}

static void peer_load(void *map, const unsigned char *data, uint64_t bytes)
{
    (void)bytes;
    hbitmap_deserialize_part(peer_map(map), (unsigned char *)data, 0, ((struct peer *)map)->bytes,
                             true);
}

const struct kind kind_hbitmap = {.name = "HBitmap",
                                  .create = peer_create,
                                  .free = peer_free,
                                  .clear = peer_clear,
                                  .set = peer_set,
                                  .set_each = peer_set_each,
                                  .test_each = peer_test_each,
                                  .iterate = peer_iterate,
                                  .areas = peer_areas,
                                  .merge = peer_merge,
                                  .count = peer_count,
                                  .fill = peer_load,
                                  .save = peer_save,
                                  .load = peer_load};
