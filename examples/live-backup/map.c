/* SPDX-License-Identifier: MIT */
/* map.c - the file: a line with size, granularity and SHA-256, then the bits.  It is the same that
 * track-changes saves, which can show it. */
#include "map.h"

#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

char map_error[512];

__attribute__((format(printf, 1, 2))) static bool fail(const char *format, ...)
{
    va_list args;

    va_start(args, format);
    vsnprintf(map_error, sizeof map_error, format, args);
    va_end(args);
    return false;
}

static bool digest_text(blkrepl_bitmap *bitmap, char hex[65])
{
    uint8_t digest[32];

    if (blkrepl_bitmap_sha256(bitmap, digest) < 0) {
        return fail("%s", blkrepl_error_message());
    }
    for (int i = 0; i < 32; i++) {
        snprintf(hex + 2 * i, 3, "%02x", digest[i]);
    }
    return true;
}

/* The file is trusted in nothing: what is wrong with it is told, and the map is of no use. */
static bool map_read(blkrepl_bitmap *bitmap, FILE *file, const char *path)
{
    blkrepl_bitmap_info info = {.struct_size = sizeof info};
    uint64_t bytes, granularity, length = 0;
    char wanted[65], hex[65], newline;
    unsigned char *data;

    if (fscanf(file, "blkmap1 %19" SCNu64 " %19" SCNu64 " %64[0-9a-f]%c", &bytes, &granularity,
               wanted, &newline) != 4 ||
        newline != '\n') {
        return fail("%s: not a saved map", path);
    }
    blkrepl_bitmap_query(bitmap, &info);
    if (bytes != info.bytes || granularity != info.granularity_bytes) {
        return fail("%s: the map of another disk", path);
    }
    blkrepl_bitmap_save(bitmap, 0, bytes, NULL, &length);
    data = malloc((size_t)length + 1);
    if (data == NULL) {
        return fail("%s: no memory", path);
    }
    bool good = fread(data, 1, (size_t)length + 1, file) == length;
    if (good && length > 0) {
        good = blkrepl_bitmap_load_begin(bitmap) == 0 &&
               blkrepl_bitmap_load(bitmap, 0, bytes, data, length) == 0 &&
               blkrepl_bitmap_load_finish(bitmap) == 0;
    }
    free(data);
    if (!good || !digest_text(bitmap, hex) || strcmp(hex, wanted) != 0) {
        return fail("%s: the map is damaged", path);
    }
    return true;
}

/* Loaded while it does not record, and enabled then: nobody writes before that. */
bool map_open(struct map *map, blkrepl_image *disk, const char *path)
{
    const blkrepl_bitmap_options options = {
        .struct_size = sizeof options, .flags = BLKREPL_BITMAP_DISABLED, .name = "live-backup"};
    FILE *file = fopen(path, "rb");
    bool good = true;

    if (file == NULL && errno != ENOENT) {
        return fail("%s: %s", path, strerror(errno));
    }
    if (blkrepl_bitmap_add(disk, &options, &map->bitmap) < 0) {
        good = fail("%s", blkrepl_error_message());
    } else if (file != NULL) {
        good = map_read(map->bitmap, file, path);
        map->loaded = good;
    }
    if (file != NULL) {
        fclose(file);
    }
    if (good && blkrepl_bitmap_enable(map->bitmap) < 0) {
        good = fail("%s", blkrepl_error_message());
    }
    if (good && map->loaded && remove(path) != 0) {
        good = fail("%s: %s", path, strerror(errno));
    }
    return good;
}

/* All bits, to be freed; NULL: there are none to be had. */
static unsigned char *map_data(const struct map *map, uint64_t bytes, uint64_t *length)
{
    unsigned char *data = NULL;

    blkrepl_bitmap_save(map->bitmap, 0, bytes, NULL, length);
    data = malloc((size_t)*length + 1);
    if (data == NULL) {
        fail("no memory");
    } else if (blkrepl_bitmap_save(map->bitmap, 0, bytes, data, length) < 0) {
        fail("%s", blkrepl_error_message());
        free(data);
        data = NULL;
    }
    return data;
}

bool map_save(const struct map *map, const char *path)
{
    blkrepl_bitmap_info info = {.struct_size = sizeof info};
    unsigned char *data;
    uint64_t length = 0;
    char hex[65];
    FILE *file;

    blkrepl_bitmap_query(map->bitmap, &info);
    if (!digest_text(map->bitmap, hex) || !(data = map_data(map, info.bytes, &length))) {
        return false;
    }
    file = fopen(path, "wb");
    if (file == NULL) {
        free(data);
        return fail("%s: %s", path, strerror(errno));
    }
    fprintf(file, "blkmap1 %" PRIu64 " %" PRIu64 " %s\n", info.bytes, info.granularity_bytes, hex);
    fwrite(data, 1, (size_t)length, file);
    free(data);
    bool good = !ferror(file);
    if (fclose(file) != 0 || !good) {
        remove(path);
        return fail("%s: cannot be written", path);
    }
    return true;
}
