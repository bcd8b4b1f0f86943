/* SPDX-License-Identifier: MIT */
/* options_bitmap.c - bitmaps with options, infos and actions of every size. */
#include "options.h"

#include "base/abi.h"

#include <stdio.h>
#include <stdlib.h>

#define GRANULES_MOST (UINT64_C(1) << 38)

static const struct field options_fields[] = {
    FIELD(blkrepl_bitmap_options, bytes, FIELD_U64),
    FIELD(blkrepl_bitmap_options, granularity_bytes, FIELD_U64),
    FIELD(blkrepl_bitmap_options, flags, FIELD_U32),
};
static const struct field info_fields[] = {
    FIELD(blkrepl_bitmap_info, flags, FIELD_U32),
    FIELD(blkrepl_bitmap_info, bytes, FIELD_U64),
    FIELD(blkrepl_bitmap_info, user, FIELD_POINTER),
};

static const struct shape options_shape =
    SHAPE(blkrepl_bitmap_options, BLKREPL_BITMAP_OPTIONS_V1_BYTES, options_fields);
static const struct shape info_shape =
    SHAPE(blkrepl_bitmap_info, BLKREPL_BITMAP_INFO_V1_BYTES, info_fields);

/* ---- Options ----------------------------------------------------------------- */

/* Short names are often there already, long ones are at the edge. */
static char *bitmap_name_draw(void)
{
    static const uint32_t lengths[] = {0, BLKREPL_BITMAP_NAME_MAX, BLKREPL_BITMAP_NAME_MAX + 1};
    uint32_t kind = take_below(16);
    uint32_t length = kind < ARRAY_COUNT(lengths) ? lengths[kind] : 1;
    char *name;

    if (kind == 15) {
        return NULL;
    }
    name = fuzz_alloc(length + 1);
    memset(name, 'a' + (int)take_below(4), length);
    name[length] = '\0';
    return name;
}

static void draw_granularity(blkrepl_bitmap_options *o)
{
    switch (take_below(4)) {
    case 0: o->granularity_bytes = UINT64_C(512) << take_below(5); break;
    case 1: o->granularity_bytes = UINT64_C(1) << take_below(64); break;
    default: break;
    }
}

/* Judge them, and replace what is 0 by what it means. */
static void judge_options(blkrepl_bitmap_options *o, const blkrepl_image_info *image,
                          struct verdict *verdict)
{
    bool named = image != NULL;
    uint64_t unit = o->granularity_bytes != 0 ? o->granularity_bytes : 65536;
    uint64_t bytes = named ? image->bytes : o->bytes;
    bool power = (unit & (unit - 1)) == 0;

    verdict_add_if(verdict,
                   !power || (named && (unit < BLKREPL_BITMAP_GRANULARITY_MIN ||
                                        unit > BLKREPL_BITMAP_GRANULARITY_MAX)),
                   -EINVAL);
    verdict_add_if(verdict, (o->flags & ~(named ? 1u : 0u)) != 0, -EINVAL);
    verdict_add_if(verdict, named ? o->bytes != 0 && o->bytes != image->bytes : bytes > INT64_MAX,
                   -EINVAL);
    verdict_add_if(verdict,
                   o->name != NULL ? o->name[0] == '\0' || strlen(o->name) > BLKREPL_BITMAP_NAME_MAX
                                   : named,
                   -EINVAL);
    verdict_add_if(verdict, power && bytes > 0 && (bytes - 1) / unit + 1 > GRANULES_MOST, -EFBIG);
    o->granularity_bytes = unit;
    o->bytes = bytes;
}

struct bitmap_options bitmap_options_draw(const blkrepl_image_info *image, struct verdict *verdict)
{
    struct bitmap_options options = {.typed = {.struct_size = 0}};
    blkrepl_bitmap_options *o = &options.typed;

    o->bytes = image == NULL ? take_u16() : image->bytes * take_below(2);
    o->flags = image != NULL ? take_below(2) : 0;
    draw_granularity(o);
    shape_draw(&options_shape, o);
    options.name = bitmap_name_draw();
    o->name = options.name;
    o->user = &bench;
    options.packed = shape_pack(&options_shape, o, true);
    if (options.packed.packing == PACKED_NULL) {
        *o = (blkrepl_bitmap_options){.struct_size = 0};
    }
    verdict_add_packing(verdict, &options.packed);
    judge_options(o, image, verdict);
    return options;
}

void bitmap_options_drop(struct bitmap_options *options)
{
    packed_free(&options->packed);
    free(options->name);
    options->name = NULL;
}

/* ---- What is known of one ---------------------------------------------------- */

/* An info of any size says the same as one of the right size. */
static void query_any_size(blkrepl_bitmap *bitmap, const blkrepl_bitmap_info *full)
{
    struct packed packed = info_draw(&info_shape);
    int rc;

    call_begin();
    rc = blkrepl_bitmap_query(bitmap, packed.memory);
    call_end(rc, "bitmap_query");
    info_expect(&info_shape, &packed, rc, full);
    packed_free(&packed);
}

static void expect_as_asked(blkrepl_bitmap *bitmap, const struct bitmap_options *options,
                            const blkrepl_image_info *image)
{
    const blkrepl_bitmap_options *o = &options->typed;
    blkrepl_bitmap_info info = {.struct_size = sizeof info};
    uint32_t flags = image != NULL && o->flags == 0 ? BLKREPL_BITMAP_RECORDING : 0;
    int rc = blkrepl_bitmap_query(bitmap, &info);

    EXPECT(rc == 0 && info.flags == flags && info.user == o->user, "a query, got %d, 0x%x", rc,
           (unsigned)info.flags);
    EXPECT(info.bytes == o->bytes && info.granularity_bytes == o->granularity_bytes,
           "%llu bytes by %llu, got %llu by %llu", (ull)o->bytes, (ull)o->granularity_bytes,
           (ull)info.bytes, (ull)info.granularity_bytes);
    EXPECT(info.dirty_granules == 0 && info.dirty_bytes == 0 && info.since_bytes == 0,
           "a clean bitmap");
    EXPECT(info.image_id == (image != NULL ? image->id : 0) && info.id != 0, "ids");
    EXPECT(strcmp(info.name, o->name != NULL ? o->name : "") == 0, "the name that was given");
    query_any_size(bitmap, &info);
}

/* It is found by its name and in the list, and goes, or stays with its image. */
static void bitmap_use(blkrepl_bitmap *bitmap, const struct bitmap_options *options,
                       blkrepl_image *image)
{
    blkrepl_bitmap *found;
    uint64_t found_bytes;

    if (options->typed.bytes > 0) {
        EXPECT(blkrepl_bitmap_set(bitmap, options->typed.bytes - 1, 1) == 0, "a set");
        EXPECT(blkrepl_bitmap_next_dirty(bitmap, 0, UINT64_MAX, &found_bytes) == 1 &&
                   found_bytes == (options->typed.bytes - 1) / options->typed.granularity_bytes *
                                      options->typed.granularity_bytes,
               "the last granule to be dirty");
    }
    EXPECT(blkrepl_bitmap_validate(bitmap) == 0, "a valid bitmap");
    if (image != NULL) {
        EXPECT(blkrepl_bitmap_find(image, options->typed.name, &found) == 0 && found == bitmap,
               "to be found");
        blkrepl_bitmap_free(found);
    }
    if (image != NULL && take_chance(60)) {
        EXPECT(blkrepl_bitmap_remove(bitmap) == 0, "to be removed");
    }
    blkrepl_bitmap_free(bitmap);
}

bool bitmap_exists(blkrepl_image *image, const char *name)
{
    blkrepl_bitmap *found;

    if (image == NULL || name == NULL || blkrepl_bitmap_find(image, name, &found) != 0) {
        return false;
    }
    blkrepl_bitmap_free(found);
    return true;
}

void act_bitmap(void)
{
    static const enum bench_disk disks[] = {BENCH_SOURCE, BENCH_READ_ONLY, BENCH_SMALL, BENCH_HUGE};
    blkrepl_image *image =
        take_chance(60) ? bench_image(disks[take_below(ARRAY_COUNT(disks))]) : NULL;
    blkrepl_image_info info = {.struct_size = sizeof info};
    struct verdict verdict = {.count = 0};
    struct bitmap_options options;
    blkrepl_bitmap *bitmap = (blkrepl_bitmap *)&options;
    int rc;

    EXPECT(image == NULL || blkrepl_image_query(image, &info) == 0, "a query");
    options = bitmap_options_draw(image != NULL ? &info : NULL, &verdict);
    verdict_add_if(&verdict, bitmap_exists(image, options.typed.name), -EEXIST);
    call_begin();
    heap_watch(take_chance(5) ? 1u + take_below(8) : 0);
    rc = image != NULL ? blkrepl_bitmap_add(image, options.packed.memory, &bitmap)
                       : blkrepl_bitmap_create(bench.ctx, options.packed.memory, &bitmap);
    verdict_add_if(&verdict,
                   rc != 0 && heap_lacks(options.typed.bytes / options.typed.granularity_bytes / 8),
                   -ENOMEM);
    heap_watch(0);
    call_end_as(rc, &verdict, image != NULL ? "bitmap_add" : "bitmap_create");
    packed_free(&options.packed);
    EXPECT((bitmap != NULL) == (rc == 0), "a bitmap exactly if the answer is 0, got %d", rc);
    if (rc == 0) {
        expect_as_asked(bitmap, &options, image != NULL ? &info : NULL);
        bitmap_use(bitmap, &options, image);
    } else {
        bench_refused();
    }
    bitmap_options_drop(&options);
}
