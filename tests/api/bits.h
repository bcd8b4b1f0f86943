/* SPDX-License-Identifier: MIT */
/* Bitmaps, and what they should hold: an array of bools, and pictures of it. */
#ifndef TESTS_API_BITS_H
#define TESTS_API_BITS_H

#include "tape.h"

#define MAP_MAX 4096 /* granules of a map at most                             */
#define SIZE_MAX_OF_IMAGES ((uint64_t)BLKREPL_IMAGE_BYTES_MAX)

/* A bitmap done the simple way. */
struct map {
    uint64_t bytes;
    uint64_t granularity;
    size_t count;
    bool dirty[MAP_MAX];
};

void map_init(struct map *map, uint64_t bytes, uint64_t granularity);
uint64_t map_end(const struct map *map, size_t granule); /* its first byte is its number */
void map_set(struct map *map, uint64_t offset, uint64_t bytes);
void map_reset(struct map *map, uint64_t offset, uint64_t bytes); /* whole granules        */
void map_invert(struct map *map);
void map_merge(struct map *map, const struct map *other);
void map_intersect(struct map *map, const struct map *other);
void map_subtract(struct map *map, const struct map *other);
void map_resize(struct map *map, uint64_t bytes);
size_t map_dirty_count(const struct map *map);

/* The content of the bitmap is that of the map, whichever way one looks. */
#define ASSERT_MAP(bitmap, map) assert_map((bitmap), (map), __FILE__, __LINE__)
/* The same with a picture, one character a granule: '#' dirty, '.' clean. */
#define ASSERT_BITS(bitmap, picture) assert_bits((bitmap), (picture), __FILE__, __LINE__)

void assert_map(blkrepl_bitmap *bitmap, const struct map *map, const char *file, int line);
void assert_bits(blkrepl_bitmap *bitmap, const char *picture, const char *file, int line);

/* A free-standing one. */
blkrepl_bitmap *bitmap_make(struct env *env, uint64_t bytes, uint64_t granularity);
/* The same with the content of a picture. */
blkrepl_bitmap *bitmap_drawn(struct env *env, uint64_t granularity, const char *picture);
/* One of an image. */
blkrepl_bitmap *bitmap_put(blkrepl_image *image, const char *name, uint64_t granularity,
                           uint32_t flags);
void bitmap_draw(blkrepl_bitmap *bitmap, const char *picture); /* sets what is '#' */
blkrepl_bitmap_info bitmap_info(blkrepl_bitmap *bitmap);
uint32_t bitmap_flags(blkrepl_bitmap *bitmap);
/* Read so often that the image, which a change of its bitmaps has turned to the slow
 * way, has gone back to the quick one. */
void image_settle(struct env *env, blkrepl_image *image);
int bitmap_merge_one(blkrepl_bitmap *bitmap, blkrepl_bitmap *source);

#endif
