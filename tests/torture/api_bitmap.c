/* SPDX-License-Identifier: MIT */
/* api_bitmap.c - calling the functions of bitmaps and looking at their answers. */
#include "call.h"

/* A handle comes with 0, and with nothing else. */
static int handed(const struct call *c, int rc, blkrepl_bitmap *const *out)
{
    rc = call_end_zero(c, rc);
    REQUIRE(!out || (rc == 0) == (*out != NULL), "%s: %d and *out %p", api_name(c->function), rc,
            out ? (void *)*out : NULL);
    return rc;
}

/* Yes, no, or an error. */
static int told(const struct call *c, int rc)
{
    REQUIRE(rc <= 1, "%s: answers %d", api_name(c->function), rc);
    return call_end(c, rc);
}

int api_bitmap_create(blkrepl_context *ctx, const blkrepl_bitmap_options *options,
                      blkrepl_bitmap **out)
{
    struct call c = call_begin(BITMAP_CREATE);

    return handed(&c, blkrepl_bitmap_create(ctx, options, out), out);
}

int api_bitmap_add(blkrepl_image *image, const blkrepl_bitmap_options *options,
                   blkrepl_bitmap **out)
{
    struct call c = call_begin(BITMAP_ADD);

    return handed(&c, blkrepl_bitmap_add(image, options, out), out);
}

int api_bitmap_find(blkrepl_image *image, const char *name, blkrepl_bitmap **out)
{
    struct call c = call_begin(BITMAP_FIND);

    return handed(&c, blkrepl_bitmap_find(image, name, out), out);
}

int api_bitmap_next(blkrepl_image *image, uint64_t after_id, blkrepl_bitmap **out)
{
    struct call c = call_begin(BITMAP_NEXT);

    return handed(&c, blkrepl_bitmap_next(image, after_id, out), out);
}

void api_bitmap_free(blkrepl_bitmap *bitmap)
{
    struct call c = call_begin(BITMAP_FREE);

    blkrepl_bitmap_free(bitmap);
    call_end(&c, 0);
}

int api_bitmap_query(blkrepl_bitmap *bitmap, blkrepl_bitmap_info *info)
{
    struct call c = call_begin(BITMAP_QUERY);

    return call_end_zero(&c, blkrepl_bitmap_query(bitmap, info));
}

/* All of these take a bitmap and answer 0 or an error. */
#define VERB(name, NAME)                                                                           \
    int api_bitmap_##name(blkrepl_bitmap *bitmap)                                                  \
    {                                                                                              \
        struct call c = call_begin(BITMAP_##NAME);                                                 \
                                                                                                   \
        return call_end_zero(&c, blkrepl_bitmap_##name(bitmap));                                   \
    }

VERB(remove, REMOVE)
VERB(enable, ENABLE)
VERB(disable, DISABLE)
VERB(clear, CLEAR)
VERB(freeze, FREEZE)
VERB(abdicate, ABDICATE)
VERB(reclaim, RECLAIM)
VERB(invert, INVERT)
VERB(load_begin, LOAD_BEGIN)
VERB(load_finish, LOAD_FINISH)
VERB(validate, VALIDATE)

/* And these a range. */
#define RANGE(name, NAME)                                                                          \
    int api_bitmap_##name(blkrepl_bitmap *bitmap, uint64_t offset, uint64_t bytes)                 \
    {                                                                                              \
        struct call c = call_begin(BITMAP_##NAME);                                                 \
                                                                                                   \
        return call_end_zero(&c, blkrepl_bitmap_##name(bitmap, offset, bytes));                    \
    }

RANGE(set, SET)
RANGE(reset, RESET)
RANGE(load_zeroes, LOAD_ZEROES)
RANGE(load_ones, LOAD_ONES)

int api_bitmap_merge(blkrepl_bitmap *bitmap, blkrepl_bitmap *const *sources, uint32_t source_count)
{
    struct call c = call_begin(BITMAP_MERGE);

    return call_end_zero(&c, blkrepl_bitmap_merge(bitmap, sources, source_count));
}

int api_bitmap_intersect(blkrepl_bitmap *bitmap, blkrepl_bitmap *other)
{
    struct call c = call_begin(BITMAP_INTERSECT);

    return call_end_zero(&c, blkrepl_bitmap_intersect(bitmap, other));
}

int api_bitmap_subtract(blkrepl_bitmap *bitmap, blkrepl_bitmap *other)
{
    struct call c = call_begin(BITMAP_SUBTRACT);

    return call_end_zero(&c, blkrepl_bitmap_subtract(bitmap, other));
}

int api_bitmap_resize(blkrepl_bitmap *bitmap, uint64_t bytes)
{
    struct call c = call_begin(BITMAP_RESIZE);

    return call_end_zero(&c, blkrepl_bitmap_resize(bitmap, bytes));
}

int api_bitmap_transact(blkrepl_context *ctx, const blkrepl_bitmap_action *const *actions,
                        uint32_t action_count)
{
    struct call c = call_begin(BITMAP_TRANSACT);
    int rc = call_end_zero(&c, blkrepl_bitmap_transact(ctx, actions, action_count));

    for (uint32_t i = 0; actions && i < action_count; i++) {
        const blkrepl_bitmap_action *a = actions[i];

        REQUIRE(!a || a->type != BLKREPL_BITMAP_ADD || !a->out || (rc == 0) == (*a->out != NULL),
                "%s: %d and *out of action %u %p", api_name(c.function), rc, i, (void *)*a->out);
    }
    return rc;
}

int api_bitmap_get(blkrepl_bitmap *bitmap, uint64_t offset)
{
    struct call c = call_begin(BITMAP_GET);

    return told(&c, blkrepl_bitmap_get(bitmap, offset));
}

int api_bitmap_next_dirty(blkrepl_bitmap *bitmap, uint64_t offset, uint64_t bytes, uint64_t *found)
{
    struct call c = call_begin(BITMAP_NEXT_DIRTY);

    return told(&c, blkrepl_bitmap_next_dirty(bitmap, offset, bytes, found));
}

int api_bitmap_next_clean(blkrepl_bitmap *bitmap, uint64_t offset, uint64_t bytes, uint64_t *found)
{
    struct call c = call_begin(BITMAP_NEXT_CLEAN);

    return told(&c, blkrepl_bitmap_next_clean(bitmap, offset, bytes, found));
}

int api_bitmap_next_area(blkrepl_bitmap *bitmap, uint64_t offset, uint64_t bytes,
                         uint64_t max_bytes, blkrepl_area *area)
{
    struct call c = call_begin(BITMAP_NEXT_AREA);

    return told(&c, blkrepl_bitmap_next_area(bitmap, offset, bytes, max_bytes, area));
}

int api_bitmap_status(blkrepl_bitmap *bitmap, uint64_t offset, uint64_t bytes, uint64_t *run_bytes)
{
    struct call c = call_begin(BITMAP_STATUS);

    return told(&c, blkrepl_bitmap_status(bitmap, offset, bytes, run_bytes));
}

int api_bitmap_iterate(blkrepl_bitmap *bitmap, uint64_t *position, uint64_t *offsets,
                       uint32_t offsets_max)
{
    struct call c = call_begin(BITMAP_ITERATE);
    int rc = call_end(&c, blkrepl_bitmap_iterate(bitmap, position, offsets, offsets_max));

    REQUIRE(rc <= (int)offsets_max, "%s: answers %d, of %u", api_name(c.function), rc, offsets_max);
    return rc;
}

uint64_t api_bitmap_part_alignment(blkrepl_bitmap *bitmap)
{
    struct call c = call_begin(BITMAP_PART_ALIGNMENT);
    uint64_t bytes = blkrepl_bitmap_part_alignment(bitmap);

    call_end(&c, 0);
    return bytes;
}

int api_bitmap_save(blkrepl_bitmap *bitmap, uint64_t offset, uint64_t bytes, void *data,
                    uint64_t *data_bytes)
{
    struct call c = call_begin(BITMAP_SAVE);

    return call_end_zero(&c, blkrepl_bitmap_save(bitmap, offset, bytes, data, data_bytes));
}

int api_bitmap_load(blkrepl_bitmap *bitmap, uint64_t offset, uint64_t bytes, const void *data,
                    uint64_t data_bytes)
{
    struct call c = call_begin(BITMAP_LOAD);

    return call_end_zero(&c, blkrepl_bitmap_load(bitmap, offset, bytes, data, data_bytes));
}

int api_bitmap_sha256(blkrepl_bitmap *bitmap, uint8_t *digest)
{
    struct call c = call_begin(BITMAP_SHA256);

    return call_end_zero(&c, blkrepl_bitmap_sha256(bitmap, digest));
}
