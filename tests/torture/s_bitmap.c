/* SPDX-License-Identifier: MIT */
/* s_bitmap.c - free-standing bitmaps: what is refused, arithmetic, save and load. */
#include "api.h"

#define G 512u
#define SIZE (70u * G + 100u) /* more than one part, and a short granule */

/* ---- Refused ---- */

static void null_verbs(void)
{
    static int (*const verbs[])(blkrepl_bitmap *) = {
        api_bitmap_remove,   api_bitmap_enable,      api_bitmap_disable, api_bitmap_clear,
        api_bitmap_freeze,   api_bitmap_reclaim,     api_bitmap_invert,  api_bitmap_load_begin,
        api_bitmap_abdicate, api_bitmap_load_finish, api_bitmap_validate};
    static int (*const ranges[])(blkrepl_bitmap *, uint64_t, uint64_t) = {
        api_bitmap_set, api_bitmap_reset, api_bitmap_load_zeroes, api_bitmap_load_ones};

    for (size_t i = 0; i < ARRAY_COUNT(verbs); i++) {
        api_must(-EINVAL);
        verbs[i](NULL);
    }
    for (size_t i = 0; i < ARRAY_COUNT(ranges); i++) {
        api_must(-EINVAL);
        ranges[i](NULL, 0, 0);
    }
    api_bitmap_free(NULL);
    REQUIRE(api_bitmap_part_alignment(NULL) == 0, "a part of no bitmap");
}

static void null_reads(void)
{
    blkrepl_bitmap_info info = {.struct_size = sizeof info};
    blkrepl_area area;
    uint64_t out = 7;
    uint8_t digest[32];

    api_must(-EINVAL);
    api_bitmap_query(NULL, &info);
    api_must(-EINVAL);
    api_bitmap_merge(NULL, NULL, 0);
    api_must(-EINVAL);
    api_bitmap_intersect(NULL, NULL);
    api_must(-EINVAL);
    api_bitmap_subtract(NULL, NULL);
    api_must(-EINVAL);
    api_bitmap_resize(NULL, 5);
    api_must(-EINVAL);
    api_bitmap_get(NULL, 0);
    api_must(-EINVAL);
    api_bitmap_next_dirty(NULL, 0, 1, &out);
    api_must(-EINVAL);
    api_bitmap_next_clean(NULL, 0, 1, &out);
    api_must(-EINVAL);
    api_bitmap_next_area(NULL, 0, 1, 0, &area);
    api_must(-EINVAL);
    api_bitmap_status(NULL, 0, 1, &out);
    api_must(-EINVAL);
    api_bitmap_iterate(NULL, &out, &out, 1);
    api_must(-EINVAL);
    api_bitmap_save(NULL, 0, 0, NULL, &out);
    api_must(-EINVAL);
    api_bitmap_load(NULL, 0, 0, &out, 8);
    api_must(-EINVAL);
    api_bitmap_sha256(NULL, digest);
}

/* A bitmap, and arguments that it does not take. */
static void wrong_arguments(struct bitmap *b)
{
    blkrepl_bitmap_info small = {.struct_size = 8};
    uint64_t out = 0, room = 0;
    uint8_t data[16];

    api_must(-EINVAL);
    api_bitmap_query(b->handle, &small);
    api_must(-EINVAL);
    api_bitmap_set(b->handle, SIZE, 1);
    api_must(-EINVAL);
    api_bitmap_set(b->handle, 5, UINT64_MAX);
    api_must(-EINVAL);
    api_bitmap_reset(b->handle, 1, G);
    api_must(-EINVAL);
    api_bitmap_reset(b->handle, 0, G + 1);
    api_must(-EINVAL);
    api_bitmap_get(b->handle, SIZE);
    api_must(-EINVAL);
    api_bitmap_status(b->handle, 0, 0, &out);
    api_must(-EINVAL);
    api_bitmap_status(b->handle, 1, SIZE, &out);
    api_must(-EINVAL);
    api_bitmap_next_dirty(b->handle, 0, 1, NULL);
    api_must(-EINVAL);
    api_bitmap_iterate(b->handle, &out, &out, 0);
    api_must(-EINVAL);
    api_bitmap_save(b->handle, G, SIZE - G, NULL, &room);
    api_must(-EINVAL);
    api_bitmap_save(b->handle, 0, SIZE, NULL, NULL);
    api_must(-ENOSPC);
    api_bitmap_save(b->handle, 0, SIZE, data, &room);
    REQUIRE(room == 9, "71 granules are to take %llu bytes", (unsigned long long)room);
    api_must(-EINVAL);
    api_bitmap_resize(b->handle, UINT64_C(1) << 63);
    api_must(-EFBIG);
    api_bitmap_resize(b->handle, UINT64_C(1) << 62);
}

/* What a free-standing one that nobody has frozen or begun to load refuses. */
static void wrong_states(struct bitmap *b)
{
    static int (*const of_image[])(blkrepl_bitmap *) = {api_bitmap_remove, api_bitmap_enable,
                                                        api_bitmap_disable};

    for (size_t i = 0; i < ARRAY_COUNT(of_image); i++) {
        api_must(-EINVAL);
        of_image[i](b->handle);
    }
    api_must(BLKREPL_ERR_STATE);
    api_bitmap_abdicate(b->handle);
    api_must(BLKREPL_ERR_STATE);
    api_bitmap_reclaim(b->handle);
    api_must(BLKREPL_ERR_STATE);
    api_bitmap_load_finish(b->handle);
    api_must(BLKREPL_ERR_STATE);
    api_bitmap_load_zeroes(b->handle, 0, SIZE);
}

static void wrong_options(struct world *w)
{
    static const blkrepl_bitmap_options bad[] = {
        {.struct_size = 8, .bytes = 5},
        {.bytes = 5, .granularity_bytes = 3},
        {.bytes = 5, .flags = BLKREPL_BITMAP_DISABLED},
        {.bytes = 5, .name = ""},
        {.bytes = UINT64_C(1) << 63},
    };
    blkrepl_bitmap_options o;
    blkrepl_bitmap *none = NULL;

    for (size_t i = 0; i < ARRAY_COUNT(bad); i++) {
        o = bad[i];
        o.struct_size = o.struct_size ? o.struct_size : sizeof o;
        api_must(-EINVAL);
        api_bitmap_create(w->ctx, &o, &none);
    }
    o = (blkrepl_bitmap_options){
        .struct_size = sizeof o, .bytes = UINT64_C(1) << 62, .granularity_bytes = 1};
    api_must(-EFBIG);
    api_bitmap_create(w->ctx, &o, &none);
    api_must(-EINVAL);
    api_bitmap_create(NULL, &o, &none);
    api_must(-EINVAL);
    api_bitmap_create(w->ctx, &o, NULL);
}

static void bitmap_refused(struct world *w)
{
    if (!world_open(w, NULL)) {
        return;
    }
    null_verbs();
    null_reads();
    wrong_options(w);
    struct bitmap *b = bitmap_create(w, SIZE, G);
    if (b) {
        wrong_arguments(b);
        wrong_states(b);
        bitmap_check(b);
    }
}

/* ---- Arithmetic ---- */

/* The searches say the same as the list. */
static void check_searches(struct bitmap *b)
{
    uint64_t at = 0, run = 0, found = 0;
    blkrepl_area area;

    for (; at < b->bytes; at += run) {
        int dirty = api_bitmap_status(b->handle, at, b->bytes - at, &run);

        REQUIRE(dirty == b->must[at / b->granularity], "status: %d at %llu", dirty,
                (unsigned long long)at);
        REQUIRE((dirty ? api_bitmap_next_dirty : api_bitmap_next_clean)(b->handle, at, UINT64_MAX,
                                                                        &found) == 1 &&
                    found == at,
                "a run begins at %llu, and is not found there", (unsigned long long)at);
        found = b->bytes;
        (dirty ? api_bitmap_next_clean : api_bitmap_next_dirty)(b->handle, at, UINT64_MAX, &found);
        REQUIRE(found == at + run, "a run from %llu ends at %llu, not %llu", (unsigned long long)at,
                (unsigned long long)found, (unsigned long long)(at + run));
        int any = api_bitmap_next_area(b->handle, at, run, 0, &area);
        REQUIRE(any == dirty && (!any || (area.offset == at && area.bytes == run)),
                "an area of %llu bytes", (unsigned long long)area.bytes);
    }
}

static void bitmap_model_invert(struct bitmap *b)
{
    for (uint64_t g = 0; g * b->granularity < b->bytes; g++) {
        b->must[g] = b->may[g] = !b->must[g];
    }
}

/* With the same granules. */
static void bitmap_model_and(struct bitmap *b, const struct bitmap *other, bool with)
{
    for (size_t g = 0; g < BITMAP_GRANULES_MAX; g++) {
        b->must[g] = b->may[g] = b->must[g] && other->must[g] == with;
    }
}

/* The size changes; or, without memory, nothing does. */
static void resize(struct bitmap *b, uint64_t bytes)
{
    if (api_bitmap_resize(b->handle, bytes) < 0) {
        bitmap_check(b);
        if (api_bitmap_resize(b->handle, bytes) < 0) {
            return;
        }
    }
    b->bytes = bytes;
    for (uint64_t g = (bytes + b->granularity - 1) / b->granularity; g < BITMAP_GRANULES_MAX; g++) {
        b->must[g] = b->may[g] = false;
    }
    bitmap_check(b);
}

static void bitmap_plain(struct world *w)
{
    struct bitmap *a, *b;

    if (!world_open(w, NULL) || !(a = bitmap_create(w, SIZE, G)) ||
        !(b = bitmap_create(w, SIZE, G))) {
        return;
    }
    bitmap_set(a, 3 * G + 5, 10 * G);
    bitmap_set(a, SIZE - 1, 1);
    bitmap_set(b, 0, 7 * G);
    bitmap_reset(a, 5 * G, 2 * G);
    check_searches(a);
    bitmap_merge(b, a);
    bitmap_check(b);
    api_bitmap_intersect(a->handle, b->handle);
    bitmap_model_and(a, b, true);
    bitmap_check(a);
    api_bitmap_subtract(b->handle, a->handle);
    bitmap_model_and(b, a, false);
    bitmap_check(b);
    api_bitmap_invert(b->handle);
    bitmap_model_invert(b);
    bitmap_check(b);
    check_searches(b);
    resize(b, SIZE + 100 * G);
    resize(b, 13 * G + 1);
    resize(b, SIZE);
    check_searches(b);
    bitmap_clear(a);
    bitmap_check(a);
    check_searches(a);
}

/* Granules of three sizes; what fits none of them is refused, and nothing merged. */
static void bitmap_merge_many(struct world *w)
{
    struct bitmap *fine, *coarse, *short_one, *sum;

    if (!world_open(w, NULL) || !(fine = bitmap_create(w, SIZE, G)) ||
        !(coarse = bitmap_create(w, SIZE, 8 * G)) || !(sum = bitmap_create(w, SIZE, 2 * G)) ||
        !(short_one = bitmap_create(w, SIZE - 1, G))) {
        return;
    }
    bitmap_set(fine, 5 * G, 1);
    bitmap_set(fine, SIZE - 1, 1);
    bitmap_set(coarse, 20 * G, 1);
    blkrepl_bitmap *const good[] = {fine->handle, coarse->handle, sum->handle};
    blkrepl_bitmap *const bad[] = {fine->handle, coarse->handle, short_one->handle};
    blkrepl_bitmap *const null[] = {coarse->handle, NULL};
    api_must(-EINVAL);
    api_bitmap_merge(sum->handle, bad, 3);
    bitmap_check(sum);
    api_must(-EINVAL);
    api_bitmap_merge(sum->handle, null, 2);
    bitmap_check(sum);
    REQUIRE(api_bitmap_merge(sum->handle, good, 3) == 0, "merge fails");
    bitmap_merged(sum, fine);
    bitmap_merged(sum, coarse);
    bitmap_check(sum);
    bitmap_merge(fine, sum);
    bitmap_check(fine);
    bitmap_check(coarse);
}

/* ---- Busy ---- */

/* All that a frozen bitmap refuses, and what it does not. */
static void refused_busy(struct bitmap *b)
{
    static int (*const verbs[])(blkrepl_bitmap *) = {api_bitmap_clear, api_bitmap_freeze,
                                                     api_bitmap_invert, api_bitmap_load_begin};

    for (size_t i = 0; i < ARRAY_COUNT(verbs); i++) {
        api_must(-EBUSY);
        verbs[i](b->handle);
    }
    api_must(-EBUSY);
    api_bitmap_reset(b->handle, 0, G);
    api_must(-EBUSY);
    api_bitmap_resize(b->handle, SIZE);
    api_must(-EBUSY);
    api_bitmap_merge(b->handle, &(blkrepl_bitmap *const){b->handle}, 1);
    api_must(-EBUSY);
    api_bitmap_intersect(b->handle, b->handle);
    api_must(-EBUSY);
    api_bitmap_subtract(b->handle, b->handle);
    bitmap_check(b);
}

static void bitmap_busy(struct world *w)
{
    struct bitmap *b;

    if (!world_open(w, NULL) || !(b = bitmap_create(w, SIZE, G))) {
        return;
    }
    bitmap_set(b, 0, 3 * G);
    if (!bitmap_freeze(b)) {
        return;
    }
    bitmap_set(b, 2 * G, 3 * G);
    refused_busy(b);
    bitmap_reclaim(b);
    bitmap_check(b);
    if (!bitmap_freeze(b)) {
        return;
    }
    bitmap_set(b, SIZE - 1, 1);
    bitmap_check(b);
    bitmap_abdicate(b);
    bitmap_check(b);
    if (bitmap_freeze(b)) {
        bitmap_free(b); /* busy, and nobody can end that any more */
    }
}

/* ---- Save and load ---- */

/* An inconsistent bitmap does what it may and no more. */
static void refused_inconsistent(struct bitmap *b)
{
    static int (*const verbs[])(blkrepl_bitmap *) = {api_bitmap_clear, api_bitmap_freeze,
                                                     api_bitmap_invert};
    uint64_t out = 0, one = 0;
    uint8_t digest[32];

    for (size_t i = 0; i < ARRAY_COUNT(verbs); i++) {
        api_must(BLKREPL_ERR_STATE);
        verbs[i](b->handle);
    }
    api_must(BLKREPL_ERR_STATE);
    api_bitmap_set(b->handle, 0, 1);
    api_must(BLKREPL_ERR_STATE);
    api_bitmap_resize(b->handle, G);
    api_must(BLKREPL_ERR_STATE);
    api_bitmap_get(b->handle, 0);
    api_must(BLKREPL_ERR_STATE);
    api_bitmap_iterate(b->handle, &out, &one, 1);
    api_must(BLKREPL_ERR_STATE);
    api_bitmap_next_area(b->handle, 0, G, 0, &(blkrepl_area){0, 0});
    api_must(BLKREPL_ERR_STATE);
    api_bitmap_save(b->handle, 0, b->bytes, NULL, &out);
    api_must(BLKREPL_ERR_STATE);
    api_bitmap_sha256(b->handle, digest);
    REQUIRE((bitmap_info(b).flags & BLKREPL_BITMAP_INCONSISTENT) != 0, "a load is told of nowhere");
}

/* Part by part: data, zeroes or ones, whatever it is in the source. */
static void load_parts(struct bitmap *to, struct bitmap *from)
{
    uint64_t step = api_bitmap_part_alignment(from->handle);

    for (uint64_t at = 0; at < from->bytes; at += step) {
        uint64_t bytes = step < from->bytes - at ? step : from->bytes - at;
        uint8_t data[8] = {0};
        uint64_t run, room = sizeof data;

        REQUIRE(api_bitmap_save(from->handle, at, bytes, data, &room) == 0, "save fails");
        api_must(-EINVAL);
        api_bitmap_load(to->handle, at, bytes, data, room + 1);
        api_must(-EINVAL);
        api_bitmap_load_ones(to->handle, at + step, bytes);
        int dirty = api_bitmap_status(from->handle, at, bytes, &run);
        if (run == bytes) {
            (dirty ? api_bitmap_load_ones : api_bitmap_load_zeroes)(to->handle, at, bytes);
        } else {
            api_bitmap_load(to->handle, at, bytes, data, room);
        }
        if (at + bytes < from->bytes) {
            api_must(-EINVAL);
            api_bitmap_load_finish(to->handle);
        }
    }
}

static void bitmap_load(struct world *w)
{
    struct bitmap *from, *to;
    uint8_t digests[2][32];

    if (!world_open(w, NULL) || !(from = bitmap_create(w, 3 * 64 * G + 100, G)) ||
        !(to = bitmap_create(w, 3 * 64 * G + 100, G))) {
        return;
    }
    bitmap_set(from, 5 * G, 20 * G);
    bitmap_set(from, 128 * G, 64 * G + 100);
    bitmap_set(to, 0, 7);
    api_bitmap_load_begin(to->handle);
    refused_inconsistent(to);
    api_bitmap_load_begin(to->handle);
    load_parts(to, from);
    REQUIRE(api_bitmap_load_finish(to->handle) == 0, "the load cannot be finished");
    memcpy(to->must, from->must, sizeof to->must);
    memcpy(to->may, from->may, sizeof to->may);
    bitmap_check(to);
    api_bitmap_sha256(from->handle, digests[0]);
    api_bitmap_sha256(to->handle, digests[1]);
    REQUIRE(memcmp(digests[0], digests[1], 32) == 0, "what was loaded has another digest");
    api_bitmap_load_begin(to->handle);
    bitmap_free(to);
}

/* Handles, of whatever, outlive a closed context, and keep it. */
static void bitmap_shut(struct world *w)
{
    blkrepl_bitmap_options o = {.struct_size = sizeof o, .bytes = 5};
    blkrepl_bitmap *none = NULL;
    struct bitmap *b, *frozen;

    if (!world_open(w, NULL) || !(b = bitmap_create(w, SIZE, G)) ||
        !(frozen = bitmap_create(w, SIZE, G))) {
        return;
    }
    bool busy = bitmap_freeze(frozen);
    bitmap_set(b, 0, G);
    world_shut(w);
    api_must(-ESHUTDOWN);
    api_bitmap_create(w->ctx, &o, &none);
    api_must(-ESHUTDOWN);
    api_bitmap_transact(w->ctx,
                        &(const blkrepl_bitmap_action *const){&(const blkrepl_bitmap_action){
                            .struct_size = sizeof(blkrepl_bitmap_action),
                            .type = BLKREPL_BITMAP_CLEAR,
                            .bitmap = b->handle}},
                        1);
    bitmap_check(b);
    if (busy) {
        bitmap_abdicate(frozen);
    }
}

const struct scenario bitmap_scenarios[] = {
    {"bitmap-refused", bitmap_refused, SCENARIO_ONE_ORDER},
    {"bitmap-plain", bitmap_plain, SCENARIO_ONE_ORDER},
    {"bitmap-merge-many", bitmap_merge_many, SCENARIO_ONE_ORDER},
    {"bitmap-busy", bitmap_busy, SCENARIO_ONE_ORDER},
    {"bitmap-load", bitmap_load, SCENARIO_ONE_ORDER},
    {"bitmap-shut", bitmap_shut, SCENARIO_ONE_ORDER},
    {NULL, NULL, 0},
};
