/* SPDX-License-Identifier: MIT */
/* bitmap_content.c - the public functions that read and change what is in a
 * bitmap. */
#include <errno.h>
#include <inttypes.h>
#include <limits.h>

#include "base/checked.h"
#include "block/bitmap.h"
#include "core/error.h"

static int content_null(void)
{
    return blkrepl__fail(-EINVAL, "bitmap: an argument is NULL");
}

/* A range that does not lie inside. */
static int content_outside(const struct blkrepl_bitmap *bitmap, uint64_t offset, uint64_t bytes)
{
    return blkrepl__fail(
        -EINVAL, "bitmap \"%.100s\": %" PRIu64 "+%" PRIu64 " is not inside %" PRIu64 " bytes",
        blkrepl__bitmap_called(bitmap), offset, bytes, bitmap->map.bytes);
}

/* ---- Changing ------------------------------------------------------------------- */

int blkrepl_bitmap_set(blkrepl_bitmap *bitmap, uint64_t offset, uint64_t bytes)
{
    int rc;

    if (bitmap == NULL) {
        return content_null();
    }
    pthread_mutex_lock(&bitmap->lock);
    rc = blkrepl__bitmap_readable(bitmap, "set");
    if (rc == 0 && !range_inside(offset, bytes, bitmap->map.bytes)) {
        rc = content_outside(bitmap, offset, bytes);
    }
    if (rc == 0 && bitmap->for_image) {
        blkrepl__dirtymap_mark(bitmap->marks, offset, bytes);
    } else if (rc == 0) {
        blkrepl__dirtymap_set(bitmap->marks, offset, bytes);
    }
    pthread_mutex_unlock(&bitmap->lock);
    return rc;
}

int blkrepl_bitmap_reset(blkrepl_bitmap *bitmap, uint64_t offset, uint64_t bytes)
{
    int rc;

    if (bitmap == NULL) {
        return content_null();
    }
    blkrepl__bitmap_hold(bitmap);
    rc = blkrepl__bitmap_changeable(bitmap, "reset");
    if (rc == 0 && !range_inside(offset, bytes, bitmap->map.bytes)) {
        rc = content_outside(bitmap, offset, bytes);
    } else if (rc == 0 && !blkrepl__dirtymap_whole(&bitmap->map, offset, bytes)) {
        rc = blkrepl__fail(-EINVAL,
                           "bitmap \"%.100s\": reset of %" PRIu64 "+%" PRIu64
                           ", which is not whole granules",
                           blkrepl__bitmap_called(bitmap), offset, bytes);
    }
    if (rc == 0) {
        blkrepl__dirtymap_reset(&bitmap->map, offset, bytes);
    }
    blkrepl__bitmap_let_go(bitmap);
    return rc;
}

int blkrepl_bitmap_invert(blkrepl_bitmap *bitmap)
{
    int rc;

    if (bitmap == NULL) {
        return content_null();
    }
    blkrepl__bitmap_hold(bitmap);
    rc = blkrepl__bitmap_changeable(bitmap, "invert");
    if (rc == 0) {
        blkrepl__dirtymap_invert(&bitmap->map);
    }
    blkrepl__bitmap_let_go(bitmap);
    return rc;
}

static int content_check_pair(const struct blkrepl_bitmap *bitmap,
                              const struct blkrepl_bitmap *other, const char *verb)
{
    int rc = blkrepl__bitmap_changeable(bitmap, verb);

    if (rc == 0) {
        rc = blkrepl__bitmap_changeable(other, verb);
    }
    if (rc == 0 && bitmap->map.bytes != other->map.bytes) {
        rc = blkrepl__fail(-EINVAL, "bitmap \"%.100s\": %s: the other one is of another size",
                           blkrepl__bitmap_called(bitmap), verb);
    }
    return rc;
}

static int content_combine(struct blkrepl_bitmap *bitmap, struct blkrepl_bitmap *other,
                           const char *verb,
                           void (*combine)(struct dirtymap *map, const struct dirtymap *other))
{
    int rc;

    if (bitmap == NULL || other == NULL) {
        return content_null();
    }
    if (bitmap->ctx != other->ctx) {
        return blkrepl__fail(-EINVAL, "bitmap: the other one is of another context");
    }
    blkrepl__enter(bitmap->ctx);
    blkrepl__bitmap_stop_marks(bitmap);
    blkrepl__bitmap_stop_marks(other);
    blkrepl__bitmap_lock_both(bitmap, other);
    rc = content_check_pair(bitmap, other, verb);
    if (rc == 0) {
        combine(&bitmap->map, &other->map);
    }
    blkrepl__bitmap_unlock_both(bitmap, other);
    blkrepl__leave(bitmap->ctx, 0);
    return rc;
}

int blkrepl_bitmap_intersect(blkrepl_bitmap *bitmap, blkrepl_bitmap *other)
{
    return content_combine(bitmap, other, "intersect", blkrepl__dirtymap_intersect);
}

int blkrepl_bitmap_subtract(blkrepl_bitmap *bitmap, blkrepl_bitmap *other)
{
    return content_combine(bitmap, other, "subtract", blkrepl__dirtymap_subtract);
}

int blkrepl_bitmap_resize(blkrepl_bitmap *bitmap, uint64_t bytes)
{
    int rc;

    if (bitmap == NULL) {
        return content_null();
    }
    if (bytes > BLKREPL_IMAGE_BYTES_MAX) {
        return blkrepl__fail(-EINVAL, "bitmap: size %" PRIu64 " is too large", bytes);
    }
    blkrepl__enter(bitmap->ctx); /* a transaction may have judged its size */
    pthread_mutex_lock(&bitmap->lock);
    rc = bitmap->image != NULL
             ? blkrepl__fail(-EINVAL, "bitmap \"%.100s\": resize: its size is that of its image",
                             blkrepl__bitmap_called(bitmap))
             : blkrepl__bitmap_changeable(bitmap, "resize");
    if (rc == 0) {
        rc = blkrepl__dirtymap_resize(&bitmap->map, bytes);
        if (rc < 0) {
            blkrepl__fail_code(rc, "bitmap \"%.100s\": resize to %" PRIu64 " bytes",
                               blkrepl__bitmap_called(bitmap), bytes);
        }
    }
    pthread_mutex_unlock(&bitmap->lock);
    blkrepl__leave(bitmap->ctx, 0);
    return rc;
}

/* ---- Reading -------------------------------------------------------------------- */

/* The bitmap is locked if it may be read. */
static int content_open(struct blkrepl_bitmap *bitmap, const char *verb)
{
    int rc;

    if (bitmap == NULL) {
        return content_null();
    }
    pthread_mutex_lock(&bitmap->lock);
    rc = blkrepl__bitmap_readable(bitmap, verb);
    if (rc < 0) {
        pthread_mutex_unlock(&bitmap->lock);
    }
    return rc;
}

int blkrepl_bitmap_get(blkrepl_bitmap *bitmap, uint64_t offset)
{
    int rc = content_open(bitmap, "get");

    if (rc < 0) {
        return rc;
    }
    rc = offset < bitmap->map.bytes ? blkrepl__dirtymap_get(&bitmap->map, offset)
                                    : content_outside(bitmap, offset, 1);
    pthread_mutex_unlock(&bitmap->lock);
    return rc;
}

typedef bool search(const struct dirtymap *map, uint64_t offset, uint64_t bytes, uint64_t *found);

static int content_next(blkrepl_bitmap *bitmap, const char *verb, uint64_t offset, uint64_t bytes,
                        uint64_t *found, search *next)
{
    int rc = found == NULL ? content_null() : content_open(bitmap, verb);

    if (rc < 0) {
        return rc;
    }
    rc = next(&bitmap->map, offset, bytes, found);
    pthread_mutex_unlock(&bitmap->lock);
    return rc;
}

int blkrepl_bitmap_next_dirty(blkrepl_bitmap *bitmap, uint64_t offset, uint64_t bytes,
                              uint64_t *found)
{
    return content_next(bitmap, "next_dirty", offset, bytes, found, blkrepl__dirtymap_next_dirty);
}

int blkrepl_bitmap_next_clean(blkrepl_bitmap *bitmap, uint64_t offset, uint64_t bytes,
                              uint64_t *found)
{
    return content_next(bitmap, "next_clean", offset, bytes, found, blkrepl__dirtymap_next_clean);
}

int blkrepl_bitmap_next_area(blkrepl_bitmap *bitmap, uint64_t offset, uint64_t bytes,
                             uint64_t max_bytes, blkrepl_area *area)
{
    int rc = area == NULL ? content_null() : content_open(bitmap, "next_area");

    if (rc < 0) {
        return rc;
    }
    rc = blkrepl__dirtymap_next_area(&bitmap->map, offset, bytes, max_bytes, &area->offset,
                                     &area->bytes);
    pthread_mutex_unlock(&bitmap->lock);
    return rc;
}

int blkrepl_bitmap_status(blkrepl_bitmap *bitmap, uint64_t offset, uint64_t bytes,
                          uint64_t *run_bytes)
{
    int rc = run_bytes == NULL ? content_null() : content_open(bitmap, "status");

    if (rc < 0) {
        return rc;
    }
    rc = bytes > 0 && range_inside(offset, bytes, bitmap->map.bytes)
             ? blkrepl__dirtymap_status(&bitmap->map, offset, bytes, run_bytes)
             : content_outside(bitmap, offset, bytes);
    pthread_mutex_unlock(&bitmap->lock);
    return rc;
}

int blkrepl_bitmap_iterate(blkrepl_bitmap *bitmap, uint64_t *position, uint64_t *offsets,
                           uint32_t offsets_max)
{
    int rc;

    if (position == NULL || offsets == NULL || offsets_max == 0) {
        return blkrepl__fail(-EINVAL, "bitmap: iterate with NULL or with room for none");
    }
    rc = content_open(bitmap, "iterate");
    if (rc < 0) {
        return rc;
    }
    rc = 0;
    if (*position < bitmap->map.bytes) {
        rc = (int)blkrepl__dirtymap_iterate(&bitmap->map, position, offsets,
                                            (uint32_t)min_u64(offsets_max, INT_MAX));
    }
    pthread_mutex_unlock(&bitmap->lock);
    return rc;
}

int blkrepl_bitmap_validate(blkrepl_bitmap *bitmap)
{
    const char *reason = "";
    bool valid;

    if (bitmap == NULL) {
        return content_null();
    }
    blkrepl__bitmap_hold(bitmap);
    valid = blkrepl__dirtymap_validate(&bitmap->map, &reason);
    if (valid && bitmap->busy) {
        valid = blkrepl__dirtymap_validate(&bitmap->since, &reason);
    }
    blkrepl__bitmap_let_go(bitmap);
    return valid ? 0
                 : blkrepl__fail(BLKREPL_ERR_CORRUPT, "bitmap \"%.100s\": %s",
                                 blkrepl__bitmap_called(bitmap), reason);
}
