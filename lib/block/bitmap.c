/* SPDX-License-Identifier: MIT */
/* bitmap.c - dirty bitmaps: making, finding and freeing them, recording, and the
 * successor. */
#include "block/bitmap.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "base/abi.h"
#include "base/checked.h"
#include "base/struct_io.h"
#include "block/guest.h"
#include "block/quick.h"
#include "core/error.h"

/* ---- Making ----------------------------------------------------------------- */

static bool bitmap_granularity_valid(uint64_t granularity, bool for_image)
{
    return is_power_of_two(granularity) &&
           (!for_image || (granularity >= BLKREPL_BITMAP_GRANULARITY_MIN &&
                           granularity <= BLKREPL_BITMAP_GRANULARITY_MAX));
}

static int bitmap_check_name(const char *name, bool for_image)
{
    if (name == NULL) {
        return for_image ? blkrepl__fail(-EINVAL, "bitmap: one of an image needs a name") : 0;
    }
    if (name[0] == '\0' || strlen(name) > BLKREPL_BITMAP_NAME_MAX) {
        return blkrepl__fail(-EINVAL, "bitmap: the name must have 1 to %d bytes",
                             BLKREPL_BITMAP_NAME_MAX);
    }
    return 0;
}

static int bitmap_check_options(const blkrepl_bitmap_options *options,
                                const struct blkrepl_image *image, blkrepl_bitmap_options *copy)
{
    bool for_image = image != NULL;
    int rc = blkrepl__struct_in(copy, sizeof *copy, BLKREPL_BITMAP_OPTIONS_V1_BYTES, options);

    if (rc < 0) {
        return blkrepl__fail_code(rc, "bitmap: options");
    }
    if ((copy->flags & ~(uint32_t)(for_image ? BLKREPL_BITMAP_DISABLED : 0)) != 0) {
        return blkrepl__fail(-EINVAL, "bitmap: unknown flags");
    }
    copy->granularity_bytes =
        copy->granularity_bytes == 0 ? BLKREPL_BITMAP_GRANULARITY_DEFAULT : copy->granularity_bytes;
    if (!bitmap_granularity_valid(copy->granularity_bytes, for_image)) {
        return blkrepl__fail(-EINVAL, "bitmap: bad granularity %" PRIu64, copy->granularity_bytes);
    }
    if (for_image && copy->bytes != 0 && copy->bytes != image_bytes(image)) {
        return blkrepl__fail(-EINVAL, "bitmap: its size is not that of image \"%s\"", image->name);
    }
    if (for_image) {
        copy->bytes = image_bytes(image);
    }
    if (copy->bytes > BLKREPL_IMAGE_BYTES_MAX) {
        return blkrepl__fail(-EINVAL, "bitmap: size %" PRIu64 " is too large", copy->bytes);
    }
    return bitmap_check_name(copy->name, for_image);
}

static uint32_t bitmap_shift(uint64_t granularity)
{
    uint32_t shift = 0;

    while (granularity >> shift > 1) {
        shift++;
    }
    return shift;
}

static struct blkrepl_bitmap *bitmap_alloc(struct blkrepl_context *ctx, const char *name)
{
    size_t bytes = name != NULL ? strlen(name) + 1 : 1;
    struct blkrepl_bitmap *bitmap = blkrepl__zalloc(&ctx->alloc, sizeof *bitmap + bytes);

    if (bitmap == NULL || pthread_mutex_init(&bitmap->lock, NULL) != 0) {
        blkrepl__free(&ctx->alloc, bitmap);
        return NULL;
    }
    bitmap->ctx = ctx;
    bitmap->name = (char *)(bitmap + 1);
    if (name != NULL) {
        memcpy(bitmap->name, name, bytes);
    }
    return bitmap;
}

int blkrepl__bitmap_make(struct blkrepl_context *ctx, struct blkrepl_image *image,
                         const blkrepl_bitmap_options *options, struct blkrepl_bitmap **out)
{
    blkrepl_bitmap_options copy;
    struct blkrepl_bitmap *bitmap;
    int rc = bitmap_check_options(options, image, &copy);

    if (rc < 0) {
        return rc;
    }
    bitmap = bitmap_alloc(ctx, copy.name);
    if (bitmap == NULL) {
        return blkrepl__fail(-ENOMEM, "bitmap: no memory");
    }
    rc = blkrepl__dirtymap_init(&bitmap->map, &ctx->alloc, copy.bytes,
                                bitmap_shift(copy.granularity_bytes));
    if (rc < 0) {
        pthread_mutex_destroy(&bitmap->lock);
        blkrepl__free(&ctx->alloc, bitmap);
        return blkrepl__fail_code(
            rc, "bitmap of %" PRIu64 " granules",
            dirtymap_granules(copy.bytes, bitmap_shift(copy.granularity_bytes)));
    }
    bitmap->marks = &bitmap->map;
    bitmap->user = copy.user;
    bitmap->for_image = image != NULL;
    bitmap->enabled = image != NULL && (copy.flags & BLKREPL_BITMAP_DISABLED) == 0;
    *out = bitmap;
    return 0;
}

void blkrepl__bitmap_destroy(struct blkrepl_bitmap *bitmap)
{
    blkrepl__dirtymap_fini(&bitmap->map);
    if (bitmap->busy) {
        blkrepl__dirtymap_fini(&bitmap->since);
    }
    pthread_mutex_destroy(&bitmap->lock);
    blkrepl__free(&bitmap->ctx->alloc, bitmap);
}

/* ---- Who holds it ------------------------------------------------------------ */

void blkrepl__bitmap_give_handle(struct blkrepl_bitmap *bitmap)
{
    bitmap->handles++;
    bitmap->ctx->bitmaps_open++;
    bitmap->refs++;
}

void blkrepl__bitmap_ref(struct blkrepl_bitmap *bitmap)
{
    bitmap->refs++;
}

void blkrepl__bitmap_unref(struct blkrepl_bitmap *bitmap)
{
    CHECK(bitmap->refs > 0);
    if (--bitmap->refs == 0) {
        blkrepl__bitmap_destroy(bitmap);
    }
}

struct blkrepl_bitmap *blkrepl__bitmap_named(const struct blkrepl_image *image, const char *name)
{
    for (const struct list *link = image->bitmaps.next; link != &image->bitmaps;
         link = link->next) {
        struct blkrepl_bitmap *bitmap = CONTAINER_OF(link, struct blkrepl_bitmap, image_link);

        if (!bitmap->leaving && strcmp(bitmap->name, name) == 0) {
            return bitmap;
        }
    }
    return NULL;
}

struct blkrepl_bitmap *blkrepl__bitmap_after(const struct blkrepl_image *image, uint64_t id)
{
    for (const struct list *link = image->bitmaps.next; link != &image->bitmaps;
         link = link->next) {
        struct blkrepl_bitmap *bitmap = CONTAINER_OF(link, struct blkrepl_bitmap, image_link);

        if (bitmap->id > id) {
            return bitmap;
        }
    }
    return NULL;
}

void blkrepl__bitmaps_orphan(struct blkrepl_image *image)
{
    struct list *link;

    while ((link = list_pop(&image->bitmaps)) != NULL) {
        struct blkrepl_bitmap *bitmap = CONTAINER_OF(link, struct blkrepl_bitmap, image_link);

        pthread_mutex_lock(&bitmap->lock);
        list_unlink(&bitmap->record_link);
        bitmap->enabled = false;
        bitmap->image = NULL;
        pthread_mutex_unlock(&bitmap->lock);
        blkrepl__bitmap_unref(bitmap);
    }
}

/* ---- Holding still ----------------------------------------------------------- */

void blkrepl__bitmap_stop_marks(const struct blkrepl_bitmap *bitmap)
{
    if (list_linked(&bitmap->record_link)) {
        blkrepl__quick_stop(bitmap->image);
    }
}

void blkrepl__bitmap_hold(struct blkrepl_bitmap *bitmap)
{
    if (bitmap->for_image) {
        blkrepl__enter(bitmap->ctx);
        blkrepl__bitmap_stop_marks(bitmap);
    }
    pthread_mutex_lock(&bitmap->lock);
}

void blkrepl__bitmap_let_go(struct blkrepl_bitmap *bitmap)
{
    pthread_mutex_unlock(&bitmap->lock);
    if (bitmap->for_image) {
        blkrepl__leave(bitmap->ctx, 0);
    }
}

void blkrepl__bitmap_lock_both(struct blkrepl_bitmap *a, struct blkrepl_bitmap *b)
{
    pthread_mutex_lock(a->id < b->id ? &a->lock : &b->lock);
    if (a != b) {
        pthread_mutex_lock(a->id < b->id ? &b->lock : &a->lock);
    }
}

void blkrepl__bitmap_unlock_both(struct blkrepl_bitmap *a, struct blkrepl_bitmap *b)
{
    pthread_mutex_unlock(&a->lock);
    if (a != b) {
        pthread_mutex_unlock(&b->lock);
    }
}

const char *blkrepl__bitmap_called(const struct blkrepl_bitmap *bitmap)
{
    return bitmap->name[0] != '\0' ? bitmap->name : "(no name)";
}

int blkrepl__bitmap_readable(const struct blkrepl_bitmap *bitmap, const char *verb)
{
    if (bitmap->loading) {
        return blkrepl__fail(BLKREPL_ERR_STATE,
                             "bitmap \"%.100s\": %s: it is inconsistent, a load was not finished",
                             blkrepl__bitmap_called(bitmap), verb);
    }
    return 0;
}

int blkrepl__bitmap_changeable(const struct blkrepl_bitmap *bitmap, const char *verb)
{
    if (bitmap->busy) {
        return blkrepl__fail(-EBUSY, "bitmap \"%.100s\": %s: it is busy",
                             blkrepl__bitmap_called(bitmap), verb);
    }
    return blkrepl__bitmap_readable(bitmap, verb);
}

/* ---- Recording --------------------------------------------------------------- */

/* Mark what is in flight, at this instant, on the image. */
static void bitmap_mark_in_flight(struct blkrepl_bitmap *bitmap)
{
    const struct list *guests = &bitmap->image->guests;

    for (const struct list *link = guests->next; link != guests; link = link->next) {
        const struct guest *guest = CONTAINER_OF(link, struct guest, image_link);

        if (range_live(&guest->range) && guest->range.given_at != 0) {
            uint64_t start = guest->range.node.start;
            uint64_t end = min_u64(guest->range.node.end, bitmap->map.bytes);

            blkrepl__dirtymap_mark(bitmap->marks, start, end - start);
        }
    }
}

void blkrepl__bitmap_record(struct blkrepl_bitmap *bitmap, bool on)
{
    CHECK(bitmap->image != NULL);
    if (on && !list_linked(&bitmap->record_link)) {
        list_append(&bitmap->image->record.bitmaps, &bitmap->record_link);
    } else if (!on && list_linked(&bitmap->record_link)) {
        bitmap_mark_in_flight(bitmap);
        list_remove(&bitmap->record_link);
    }
    bitmap->enabled = on;
}

int blkrepl__bitmap_announce(struct blkrepl_bitmap *bitmap, const char *verb)
{
    int rc = blkrepl__bitmap_changeable(bitmap, verb);

    if (rc == 0 && bitmap->freezing) {
        rc = blkrepl__fail(-EBUSY, "bitmap \"%.100s\": %s: it is busy",
                           blkrepl__bitmap_called(bitmap), verb);
    }
    bitmap->freezing = bitmap->freezing || rc == 0;
    return rc;
}

void blkrepl__bitmap_renounce(struct blkrepl_bitmap *bitmap)
{
    bitmap->freezing = false;
}

void blkrepl__bitmap_freeze(struct blkrepl_bitmap *bitmap, const struct dirtymap *since)
{
    CHECK(!bitmap->busy);
    if (list_linked(&bitmap->record_link)) {
        bitmap_mark_in_flight(bitmap);
    }
    bitmap->since = *since;
    bitmap->marks = &bitmap->since;
    bitmap->busy = true;
}

static void bitmap_end_busy(struct blkrepl_bitmap *bitmap)
{
    bitmap->marks = &bitmap->map;
    bitmap->busy = false;
    bitmap->frozen = false;
}

void blkrepl__bitmap_abdicate(struct blkrepl_bitmap *bitmap, struct dirtymap *unused)
{
    CHECK(bitmap->busy);
    *unused = bitmap->map;
    bitmap->map = bitmap->since;
    bitmap_end_busy(bitmap);
}

void blkrepl__bitmap_reclaim(struct blkrepl_bitmap *bitmap, struct dirtymap *unused)
{
    CHECK(bitmap->busy);
    blkrepl__dirtymap_merge(&bitmap->map, &bitmap->since);
    *unused = bitmap->since;
    bitmap_end_busy(bitmap);
}

/* ---- The public functions ---------------------------------------------------- */

int blkrepl_bitmap_create(blkrepl_context *ctx, const blkrepl_bitmap_options *options,
                          blkrepl_bitmap **out)
{
    struct blkrepl_bitmap *bitmap = NULL;
    int rc;

    if (out != NULL) {
        *out = NULL;
    }
    if (ctx == NULL || out == NULL) {
        return blkrepl__fail(-EINVAL, "bitmap: %s is NULL", ctx == NULL ? "context" : "out");
    }
    rc = blkrepl__bitmap_make(ctx, NULL, options, &bitmap);
    if (rc < 0) {
        return rc;
    }
    blkrepl__enter(ctx);
    if (ctx->shut) {
        rc = blkrepl__fail(-ESHUTDOWN, "bitmap: the context is being freed");
    } else {
        bitmap->id = ++ctx->last_id;
        blkrepl__bitmap_give_handle(bitmap);
        *out = bitmap;
    }
    if (rc < 0) {
        blkrepl__bitmap_destroy(bitmap); /* nothing keeps the context when it is left */
    }
    blkrepl__leave(ctx, 0);
    return rc;
}

/* One more handle, of what was found. */
static int bitmap_found(struct blkrepl_bitmap *bitmap, blkrepl_bitmap **out)
{
    if (bitmap == NULL) {
        return -ENOENT;
    }
    blkrepl__bitmap_give_handle(bitmap);
    *out = bitmap;
    return 0;
}

int blkrepl_bitmap_find(blkrepl_image *image, const char *name, blkrepl_bitmap **out)
{
    int rc;

    if (out != NULL) {
        *out = NULL;
    }
    if (image == NULL || name == NULL || out == NULL) {
        return blkrepl__fail(-EINVAL, "bitmap: find with NULL");
    }
    blkrepl__enter(image->ctx);
    rc = bitmap_found(blkrepl__bitmap_named(image, name), out);
    blkrepl__leave(image->ctx, 0);
    return rc < 0 ? blkrepl__fail(rc, "image \"%s\": no bitmap \"%.100s\"", image->name, name) : 0;
}

int blkrepl_bitmap_next(blkrepl_image *image, uint64_t after_id, blkrepl_bitmap **out)
{
    int rc;

    if (out != NULL) {
        *out = NULL;
    }
    if (image == NULL || out == NULL) {
        return blkrepl__fail(-EINVAL, "bitmap: next with NULL");
    }
    blkrepl__enter(image->ctx);
    rc = bitmap_found(blkrepl__bitmap_after(image, after_id), out);
    blkrepl__leave(image->ctx, 0);
    return rc < 0 ? blkrepl__fail(rc, "image \"%s\": no further bitmap", image->name) : 0;
}

void blkrepl_bitmap_free(blkrepl_bitmap *bitmap)
{
    struct blkrepl_context *ctx;

    if (bitmap == NULL) {
        return;
    }
    ctx = bitmap->ctx;
    blkrepl__enter(ctx);
    CHECK(bitmap->handles > 0);
    bitmap->handles--;
    ctx->bitmaps_open--;
    blkrepl__bitmap_unref(bitmap);
    blkrepl__leave(ctx, 0);
}

int blkrepl_bitmap_query(blkrepl_bitmap *bitmap, blkrepl_bitmap_info *info)
{
    blkrepl_bitmap_info ours = {.struct_size = sizeof ours};
    int rc;

    if (bitmap == NULL || info == NULL) {
        return blkrepl__fail(-EINVAL, "bitmap: query with NULL");
    }
    ours.id = bitmap->id;
    ours.user = bitmap->user;
    memcpy(ours.name, bitmap->name, strlen(bitmap->name));
    pthread_mutex_lock(&bitmap->lock);
    ours.flags = (bitmap->enabled ? BLKREPL_BITMAP_RECORDING : 0u) |
                 (bitmap->busy ? BLKREPL_BITMAP_BUSY : 0u) |
                 (bitmap->loading ? BLKREPL_BITMAP_INCONSISTENT : 0u);
    ours.image_id = bitmap->image != NULL ? bitmap->image->id : 0;
    ours.bytes = bitmap->map.bytes;
    ours.granularity_bytes = UINT64_C(1) << bitmap->map.shift;
    if (!bitmap->loading) {
        ours.dirty_granules = blkrepl__hbitmap_count(&bitmap->map.bits);
        ours.dirty_bytes = blkrepl__dirtymap_dirty_bytes(&bitmap->map);
    }
    if (bitmap->busy) {
        ours.since_bytes = blkrepl__dirtymap_dirty_bytes(&bitmap->since);
    }
    pthread_mutex_unlock(&bitmap->lock);
    rc = blkrepl__struct_out(info, BLKREPL_BITMAP_INFO_V1_BYTES, &ours, sizeof ours);
    return rc < 0 ? blkrepl__fail(rc, "bitmap \"%.100s\": query: struct_size is too small",
                                  blkrepl__bitmap_called(bitmap))
                  : 0;
}
