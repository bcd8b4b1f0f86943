/* SPDX-License-Identifier: MIT */
/* bitmap_load.c - the content of a bitmap as bytes, and back.
 *
 * What is loaded is never trusted: each part is judged before anything is touched,
 * and its bits cannot reach beyond the bitmap.  The parts have to follow each other
 * from the first byte to the last, so nothing is left out by mistake. */
#include <errno.h>
#include <inttypes.h>

#include "block/bitmap.h"
#include "core/error.h"

uint64_t blkrepl_bitmap_part_alignment(blkrepl_bitmap *bitmap)
{
    uint64_t alignment;

    if (bitmap == NULL) {
        return 0;
    }
    pthread_mutex_lock(&bitmap->lock);
    alignment = blkrepl__dirtymap_part_alignment(&bitmap->map);
    pthread_mutex_unlock(&bitmap->lock);
    return alignment;
}

static int load_no_part(const struct blkrepl_bitmap *bitmap, uint64_t offset, uint64_t bytes)
{
    return blkrepl__fail(-EINVAL,
                         "bitmap \"%.100s\": %" PRIu64 "+%" PRIu64 " is not a part of %" PRIu64
                         " bytes by %" PRIu64,
                         blkrepl__bitmap_called(bitmap), offset, bytes, bitmap->map.bytes,
                         blkrepl__dirtymap_part_alignment(&bitmap->map));
}

/* With the bitmap held. */
static int save_part(const struct blkrepl_bitmap *bitmap, uint64_t offset, uint64_t bytes,
                     void *data, uint64_t *data_bytes)
{
    uint64_t room = *data_bytes;
    int rc = blkrepl__bitmap_readable(bitmap, "save");

    if (rc < 0) {
        return rc;
    }
    if (!blkrepl__dirtymap_part(&bitmap->map, offset, bytes)) {
        return load_no_part(bitmap, offset, bytes);
    }
    *data_bytes = blkrepl__dirtymap_part_bytes(&bitmap->map, offset, bytes);
    if (data == NULL) {
        return 0;
    }
    if (room < *data_bytes) {
        return blkrepl__fail(-ENOSPC, "bitmap \"%.100s\": save: %" PRIu64 " bytes are needed",
                             blkrepl__bitmap_called(bitmap), *data_bytes);
    }
    blkrepl__dirtymap_save(&bitmap->map, offset, bytes, data);
    return 0;
}

int blkrepl_bitmap_save(blkrepl_bitmap *bitmap, uint64_t offset, uint64_t bytes, void *data,
                        uint64_t *data_bytes)
{
    int rc;

    if (bitmap == NULL || data_bytes == NULL) {
        return blkrepl__fail(-EINVAL, "bitmap: save with NULL");
    }
    blkrepl__bitmap_hold(bitmap);
    rc = save_part(bitmap, offset, bytes, data, data_bytes);
    blkrepl__bitmap_let_go(bitmap);
    return rc;
}

int blkrepl_bitmap_sha256(blkrepl_bitmap *bitmap, uint8_t *digest)
{
    int rc;

    if (bitmap == NULL || digest == NULL) {
        return blkrepl__fail(-EINVAL, "bitmap: sha256 with NULL");
    }
    blkrepl__bitmap_hold(bitmap);
    rc = blkrepl__bitmap_readable(bitmap, "sha256");
    if (rc == 0) {
        blkrepl__dirtymap_sha256(&bitmap->map, digest);
    }
    blkrepl__bitmap_let_go(bitmap);
    return rc;
}

int blkrepl_bitmap_load_begin(blkrepl_bitmap *bitmap)
{
    int rc = 0;

    if (bitmap == NULL) {
        return blkrepl__fail(-EINVAL, "bitmap: NULL");
    }
    blkrepl__enter(bitmap->ctx);
    pthread_mutex_lock(&bitmap->lock);
    if (bitmap->busy || bitmap->enabled) {
        rc = blkrepl__fail(-EBUSY, "bitmap \"%.100s\": load: it is %s",
                           blkrepl__bitmap_called(bitmap), bitmap->busy ? "busy" : "recording");
    } else {
        blkrepl__dirtymap_clear(&bitmap->map);
        bitmap->loading = true;
        bitmap->loaded_bytes = 0;
    }
    pthread_mutex_unlock(&bitmap->lock);
    blkrepl__leave(bitmap->ctx, 0);
    return rc;
}

static int load_check_state(const struct blkrepl_bitmap *bitmap)
{
    return bitmap->loading
               ? 0
               : blkrepl__fail(BLKREPL_ERR_STATE, "bitmap \"%.100s\": no load was begun",
                               blkrepl__bitmap_called(bitmap));
}

/* Whether this is the next part; with the bitmap's lock. */
static int load_check(const struct blkrepl_bitmap *bitmap, uint64_t offset, uint64_t bytes)
{
    int rc = load_check_state(bitmap);

    if (rc < 0) {
        return rc;
    }
    if (!blkrepl__dirtymap_part(&bitmap->map, offset, bytes)) {
        return load_no_part(bitmap, offset, bytes);
    }
    if (offset != bitmap->loaded_bytes) {
        return blkrepl__fail(-EINVAL,
                             "bitmap \"%.100s\": load: the next part begins at %" PRIu64
                             ", not at %" PRIu64,
                             blkrepl__bitmap_called(bitmap), bitmap->loaded_bytes, offset);
    }
    return 0;
}

int blkrepl_bitmap_load(blkrepl_bitmap *bitmap, uint64_t offset, uint64_t bytes, const void *data,
                        uint64_t data_bytes)
{
    int rc;

    if (bitmap == NULL || (data == NULL && data_bytes > 0)) {
        return blkrepl__fail(-EINVAL, "bitmap: load with NULL");
    }
    pthread_mutex_lock(&bitmap->lock);
    rc = load_check(bitmap, offset, bytes);
    if (rc == 0 && data_bytes != blkrepl__dirtymap_part_bytes(&bitmap->map, offset, bytes)) {
        rc = blkrepl__fail(
            -EINVAL, "bitmap \"%.100s\": load: the part has %" PRIu64 " bytes instead of %" PRIu64,
            blkrepl__bitmap_called(bitmap), data_bytes,
            blkrepl__dirtymap_part_bytes(&bitmap->map, offset, bytes));
    }
    if (rc == 0) {
        if (data_bytes > 0) {
            blkrepl__dirtymap_load(&bitmap->map, offset, bytes, data);
        }
        bitmap->loaded_bytes = offset + bytes;
    }
    pthread_mutex_unlock(&bitmap->lock);
    return rc;
}

static int load_fill(blkrepl_bitmap *bitmap, uint64_t offset, uint64_t bytes, bool dirty)
{
    int rc;

    if (bitmap == NULL) {
        return blkrepl__fail(-EINVAL, "bitmap: NULL");
    }
    pthread_mutex_lock(&bitmap->lock);
    rc = load_check(bitmap, offset, bytes);
    if (rc == 0) {
        if (dirty) { /* it was cleared at the beginning */
            blkrepl__dirtymap_set(&bitmap->map, offset, bytes);
        }
        bitmap->loaded_bytes = offset + bytes;
    }
    pthread_mutex_unlock(&bitmap->lock);
    return rc;
}

int blkrepl_bitmap_load_zeroes(blkrepl_bitmap *bitmap, uint64_t offset, uint64_t bytes)
{
    return load_fill(bitmap, offset, bytes, false);
}

int blkrepl_bitmap_load_ones(blkrepl_bitmap *bitmap, uint64_t offset, uint64_t bytes)
{
    return load_fill(bitmap, offset, bytes, true);
}

int blkrepl_bitmap_load_finish(blkrepl_bitmap *bitmap)
{
    int rc;

    if (bitmap == NULL) {
        return blkrepl__fail(-EINVAL, "bitmap: NULL");
    }
    blkrepl__enter(bitmap->ctx);
    pthread_mutex_lock(&bitmap->lock);
    rc = load_check_state(bitmap);
    if (rc == 0 && bitmap->loaded_bytes != bitmap->map.bytes) {
        rc = blkrepl__fail(-EINVAL,
                           "bitmap \"%.100s\": load: %" PRIu64 " of %" PRIu64 " bytes have come",
                           blkrepl__bitmap_called(bitmap), bitmap->loaded_bytes, bitmap->map.bytes);
    }
    if (rc == 0) {
        bitmap->loading = false;
    }
    pthread_mutex_unlock(&bitmap->lock);
    blkrepl__leave(bitmap->ctx, 0);
    return rc;
}
