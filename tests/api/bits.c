/* SPDX-License-Identifier: MIT */
#include "bits.h"

/* ---- The simple way --------------------------------------------------------- */

void map_init(struct map *map, uint64_t bytes, uint64_t granularity)
{
    memset(map, 0, sizeof *map);
    map->bytes = bytes;
    map->granularity = granularity;
    map->count = (size_t)(bytes / granularity + (bytes % granularity != 0));
    assert_true(map->count <= MAP_MAX);
}

uint64_t map_end(const struct map *map, size_t granule)
{
    uint64_t start = granule * map->granularity;

    return map->bytes - start < map->granularity ? map->bytes : start + map->granularity;
}

void map_set(struct map *map, uint64_t offset, uint64_t bytes)
{
    for (size_t i = 0; i < map->count && bytes; i++) {
        bool touched = i * map->granularity < offset + bytes && map_end(map, i) > offset;

        map->dirty[i] = map->dirty[i] || touched;
    }
}

void map_reset(struct map *map, uint64_t offset, uint64_t bytes)
{
    for (size_t i = 0; i < map->count; i++) {
        bool inside = i * map->granularity >= offset && map_end(map, i) <= offset + bytes;

        map->dirty[i] = map->dirty[i] && !inside;
    }
}

void map_invert(struct map *map)
{
    for (size_t i = 0; i < map->count; i++) {
        map->dirty[i] = !map->dirty[i];
    }
}

/* Whether any part, or all, of a granule of `map` is dirty in the other one. */
static bool map_other(const struct map *map, size_t granule, const struct map *other, bool all)
{
    uint64_t start = granule * map->granularity;
    uint64_t end = map_end(map, granule);

    for (size_t i = (size_t)(start / other->granularity);
         i < other->count && i * other->granularity < end; i++) {
        if (other->dirty[i] != all) {
            return !all;
        }
    }
    return all;
}

void map_merge(struct map *map, const struct map *other)
{
    for (size_t i = 0; i < map->count; i++) {
        map->dirty[i] = map->dirty[i] || map_other(map, i, other, false);
    }
}

void map_intersect(struct map *map, const struct map *other)
{
    for (size_t i = 0; i < map->count; i++) {
        map->dirty[i] = map->dirty[i] && map_other(map, i, other, false);
    }
}

void map_subtract(struct map *map, const struct map *other)
{
    for (size_t i = 0; i < map->count; i++) {
        map->dirty[i] = map->dirty[i] && !map_other(map, i, other, true);
    }
}

void map_resize(struct map *map, uint64_t bytes)
{
    struct map old = *map;

    map_init(map, bytes, old.granularity);
    memcpy(map->dirty, old.dirty, (old.count < map->count ? old.count : map->count) * sizeof(bool));
}

size_t map_dirty_count(const struct map *map)
{
    size_t n = 0;

    for (size_t i = 0; i < map->count; i++) {
        n += map->dirty[i];
    }
    return n;
}

/* ---- Comparing --------------------------------------------------------------- */

struct place {
    const char *file;
    int line;
};

static void differ(const struct place *place, const struct map *map, const char *what, uint64_t got,
                   uint64_t want)
{
    print_error("%s is %llu, not %llu (a map of %zu granules of %llu, %zu of them dirty)\n", what,
                (unsigned long long)got, (unsigned long long)want, map->count,
                (unsigned long long)map->granularity, map_dirty_count(map));
    _fail(place->file, place->line);
}

static void same(const struct place *place, const struct map *map, const char *what, uint64_t got,
                 uint64_t want)
{
    if (got != want) {
        differ(place, map, what, got, want);
    }
}

static void counts_agree(const struct place *place, const struct map *map, blkrepl_bitmap *bitmap)
{
    blkrepl_bitmap_info info = bitmap_info(bitmap);
    uint64_t dirty_bytes = 0;

    for (size_t i = 0; i < map->count; i++) {
        dirty_bytes += map->dirty[i] ? map_end(map, i) - i * map->granularity : 0;
    }
    same(place, map, "bytes", info.bytes, map->bytes);
    same(place, map, "granularity_bytes", info.granularity_bytes, map->granularity);
    same(place, map, "dirty_granules", info.dirty_granules, map_dirty_count(map));
    same(place, map, "dirty_bytes", info.dirty_bytes, dirty_bytes);
}

static void gets_agree(const struct place *place, const struct map *map, blkrepl_bitmap *bitmap)
{
    for (size_t i = 0; i < map->count; i++) {
        int first = blkrepl_bitmap_get(bitmap, i * map->granularity);
        int last = blkrepl_bitmap_get(bitmap, map_end(map, i) - 1);

        if (first != map->dirty[i] || last != map->dirty[i]) {
            print_error("granule %zu: first byte %d, last byte %d\n", i, first, last);
            differ(place, map, "get", (uint64_t)first, map->dirty[i]);
        }
    }
}

static void lists_agree(const struct place *place, const struct map *map, blkrepl_bitmap *bitmap)
{
    uint64_t position = 0, offsets[3];
    size_t granule = 0;
    int n;

    while ((n = blkrepl_bitmap_iterate(bitmap, &position, offsets, ARRAY_COUNT(offsets))) > 0) {
        same(place, map, "more of them", n > (int)ARRAY_COUNT(offsets), 0);
        for (int i = 0; i < n; i++, granule++) {
            while (granule < map->count && !map->dirty[granule]) {
                granule++;
            }
            same(place, map, "listed behind the last", granule >= map->count, 0);
            same(place, map, "listed", offsets[i], granule * map->granularity);
        }
    }
    same(place, map, "iterate", (uint64_t)n, 0);
    same(place, map, "position at the end", position, map->bytes);
    while (granule < map->count && !map->dirty[granule]) {
        granule++;
    }
    same(place, map, "granules that were listed", granule, map->count);
}

static void saves_agree(const struct place *place, const struct map *map, blkrepl_bitmap *bitmap)
{
    static uint8_t data[MAP_MAX / 8 + 1], want[MAP_MAX / 8 + 1];
    uint64_t data_bytes = sizeof data;

    memset(data, 0xee, sizeof data);
    memset(want, 0, sizeof want);
    for (size_t i = 0; i < map->count; i++) {
        want[i / 8] |= (uint8_t)(map->dirty[i] << i % 8);
    }
    same(place, map, "save",
         (uint64_t)blkrepl_bitmap_save(bitmap, 0, map->bytes, data, &data_bytes), 0);
    same(place, map, "data_bytes", data_bytes, (map->count + 7) / 8);
    for (size_t i = 0; i < (map->count + 7) / 8; i++) {
        same(place, map, "a byte of save", data[i], want[i]);
    }
    same(place, map, "the byte behind the data", data[(map->count + 7) / 8], 0xee);
}

void assert_map(blkrepl_bitmap *bitmap, const struct map *map, const char *file, int line)
{
    const struct place place = {file, line};

    counts_agree(&place, map, bitmap);
    gets_agree(&place, map, bitmap);
    lists_agree(&place, map, bitmap);
    saves_agree(&place, map, bitmap);
    same(&place, map, "validate", (uint64_t)blkrepl_bitmap_validate(bitmap), 0);
}

void assert_bits(blkrepl_bitmap *bitmap, const char *picture, const char *file, int line)
{
    blkrepl_bitmap_info info = bitmap_info(bitmap);
    char seen[MAP_MAX + 1] = "";
    struct map map;

    map_init(&map, info.bytes, info.granularity_bytes);
    for (size_t i = 0; i < map.count; i++) {
        seen[i] = ".#?"[blkrepl_bitmap_get(bitmap, i * map.granularity) & 3];
        map.dirty[i] = i < strlen(picture) && picture[i] == '#';
    }
    if (strcmp(seen, picture) != 0) {
        print_error("the bitmap is \"%s\", not \"%s\"\n", seen, picture);
        _fail(file, line);
    }
    assert_map(bitmap, &map, file, line);
}

/* ---- Bitmaps ------------------------------------------------------------------ */

blkrepl_bitmap *bitmap_make(struct env *env, uint64_t bytes, uint64_t granularity)
{
    blkrepl_bitmap_options o = {
        .struct_size = sizeof o, .bytes = bytes, .granularity_bytes = granularity};
    blkrepl_bitmap *bitmap = NULL;

    ASSERT_CODE(blkrepl_bitmap_create(env->ctx, &o, &bitmap), 0);
    assert_non_null(bitmap);
    return bitmap;
}

void bitmap_draw(blkrepl_bitmap *bitmap, const char *picture)
{
    uint64_t granularity = bitmap_info(bitmap).granularity_bytes;

    for (size_t i = 0; picture[i]; i++) {
        if (picture[i] == '#') {
            ASSERT_CODE(blkrepl_bitmap_set(bitmap, i * granularity, 1), 0);
        }
    }
}

blkrepl_bitmap *bitmap_drawn(struct env *env, uint64_t granularity, const char *picture)
{
    blkrepl_bitmap *bitmap = bitmap_make(env, granularity * strlen(picture), granularity);

    bitmap_draw(bitmap, picture);
    return bitmap;
}

blkrepl_bitmap *bitmap_put(blkrepl_image *image, const char *name, uint64_t granularity,
                           uint32_t flags)
{
    blkrepl_bitmap_options o = {
        .struct_size = sizeof o, .flags = flags, .granularity_bytes = granularity, .name = name};
    blkrepl_bitmap *bitmap = NULL;

    ASSERT_CODE(blkrepl_bitmap_add(image, &o, &bitmap), 0);
    assert_non_null(bitmap);
    return bitmap;
}

blkrepl_bitmap_info bitmap_info(blkrepl_bitmap *bitmap)
{
    blkrepl_bitmap_info info = {.struct_size = sizeof info};

    ASSERT_CODE(blkrepl_bitmap_query(bitmap, &info), 0);
    return info;
}

uint32_t bitmap_flags(blkrepl_bitmap *bitmap)
{
    return bitmap_info(bitmap).flags;
}

int bitmap_merge_one(blkrepl_bitmap *bitmap, blkrepl_bitmap *source)
{
    blkrepl_bitmap *const sources[] = {source};

    return blkrepl_bitmap_merge(bitmap, sources, 1);
}

void image_settle(struct env *env, blkrepl_image *image)
{
    static uint8_t block[CLUSTER];
    uint32_t bytes = image_info(image).request_alignment;

    for (int i = 0; i < 700; i++) {
        ASSERT_CODE(read_now(env, image, 0, block, bytes), 0);
    }
}
