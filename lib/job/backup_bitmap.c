/* SPDX-License-Identifier: MIT */
/* backup_bitmap.c - what a backup copies, and what becomes of its bitmap.
 *
 * From the start until the result is settled the bitmap is busy: its map stands still,
 * and what is written since goes to the successor.  A set of clusters is seen as a
 * dirtymap whose granules are the clusters, so the two may be of any sizes. */
#include "job/backup.h"

#include <inttypes.h>

#include "core/error.h"

/* A set of clusters as a dirtymap; the memory stays the set's. */
static struct dirtymap backup_view(const struct copy *copy, const struct hbitmap *clusters)
{
    struct dirtymap view = {.bits = *clusters, .bytes = copy->source_bytes};

    while (UINT64_C(1) << view.shift < copy->config.cluster_bytes) {
        view.shift++;
    }
    return view;
}

uint64_t blkrepl__backup_bytes(const struct copy *copy, const struct hbitmap *clusters)
{
    struct dirtymap view = backup_view(copy, clusters);

    return blkrepl__dirtymap_dirty_bytes(&view);
}

int blkrepl__backup_bitmap_init(struct backup *backup)
{
    const struct blkrepl_bitmap *bitmap = backup->bitmap;
    struct copy *copy = &backup->copy;
    int rc;

    if (backup->sync == BLKREPL_SYNC_FULL ||
        (backup->sync == BLKREPL_SYNC_NONE && !backup->dirty_only)) {
        blkrepl__hbitmap_set_all(&copy->todo);
        backup->bytes_total = image_bytes(copy->config.source);
    }
    if (bitmap == NULL) {
        return 0;
    }
    rc = blkrepl__dirtymap_init(&backup->since, &bitmap->ctx->alloc,
                                image_bytes(copy->config.source), bitmap->map.shift);
    return rc < 0 ? blkrepl__fail_code(rc, "backup: the successor of bitmap \"%.100s\"",
                                       blkrepl__bitmap_called(bitmap))
                  : 0;
}

static void backup_free_map(struct dirtymap *map)
{
    if (map->bits.level_count > 0) {
        blkrepl__dirtymap_fini(map);
    }
}

void blkrepl__backup_bitmap_fini(struct backup *backup)
{
    backup_free_map(&backup->since);
    backup_free_map(&backup->unused);
}

int blkrepl__backup_bitmap_prepare(struct backup *backup)
{
    struct blkrepl_bitmap *bitmap = backup->bitmap;
    int rc;

    if (bitmap == NULL || backup->announced) {
        return 0;
    }
    rc = blkrepl__bitmap_announce(bitmap, "backup");
    if (rc == 0 && bitmap->map.bytes != backup->since.bytes) {
        blkrepl__bitmap_renounce(bitmap);
        rc = blkrepl__fail(BLKREPL_ERR_STATE,
                           "bitmap \"%.100s\": backup: it has %" PRIu64
                           " bytes now, the source has %" PRIu64,
                           blkrepl__bitmap_called(bitmap), bitmap->map.bytes, backup->since.bytes);
    }
    backup->announced = rc == 0;
    return rc;
}

void blkrepl__backup_bitmap_unprepare(struct backup *backup)
{
    if (backup->announced) {
        backup->announced = false;
        blkrepl__bitmap_renounce(backup->bitmap);
    }
}

/* What is clean need not be copied; where the engine keeps account, it is absent. */
static void backup_fill_dirty(struct backup *backup)
{
    struct copy *copy = &backup->copy;
    struct dirtymap view = backup_view(copy, &copy->todo);

    blkrepl__dirtymap_merge(&view, &backup->bitmap->map);
    copy->todo = view.bits;
    backup->bytes_total = blkrepl__dirtymap_dirty_bytes(&view);
    if (copy->config.keeps_absent) {
        blkrepl__hbitmap_or(&copy->absent, &copy->todo);
        blkrepl__hbitmap_invert(&copy->absent);
    }
}

void blkrepl__backup_bitmap_start(struct backup *backup)
{
    struct blkrepl_bitmap *bitmap = backup->bitmap;

    if (bitmap == NULL) {
        return;
    }
    CHECK(backup->announced);
    blkrepl__bitmap_stop_marks(bitmap);
    pthread_mutex_lock(&bitmap->lock);
    blkrepl__bitmap_freeze(bitmap, &backup->since);
    backup->since = (struct dirtymap){.bytes = 0}; /* the bitmap has it now */
    if (backup->sync == BLKREPL_SYNC_BITMAP || backup->sync == BLKREPL_SYNC_INCREMENTAL ||
        backup->dirty_only) {
        backup_fill_dirty(backup);
    }
    pthread_mutex_unlock(&bitmap->lock);
    blkrepl__backup_bitmap_unprepare(backup);
}

/* The clusters that are not on the target, in todo; the engine has ended. */
static void backup_collect_missing(struct copy *copy)
{
    if (copy->config.spill != NULL) {
        blkrepl__hbitmap_or(&copy->todo, &copy->spilled);
    }
    if (copy->config.keeps_bad) {
        blkrepl__hbitmap_or(&copy->todo, &copy->bad);
    }
}

/* ALWAYS, and not done: the content becomes what is not on the target.  After a flush
 * that failed nothing is: it keeps what was to be copied. */
static void backup_keep_missing(struct backup *backup)
{
    struct copy *copy = &backup->copy;
    struct dirtymap *map = &backup->bitmap->map;
    struct dirtymap missing;

    if (backup->flush_failed && backup->sync == BLKREPL_SYNC_FULL) {
        blkrepl__dirtymap_set(map, 0, map->bytes);
    } else if (!backup->flush_failed) {
        backup_collect_missing(copy);
        missing = backup_view(copy, &copy->todo);
        if (backup->sync == BLKREPL_SYNC_FULL) {
            blkrepl__dirtymap_clear(map);
            blkrepl__dirtymap_merge(map, &missing);
        } else {
            blkrepl__dirtymap_intersect(map, &missing);
        }
    }
}

void blkrepl__backup_bitmap_settle(struct backup *backup)
{
    struct blkrepl_bitmap *bitmap = backup->bitmap;
    bool done = backup->job.result == BLKREPL_RESULT_DONE;

    if (bitmap == NULL) {
        return;
    }
    blkrepl__bitmap_stop_marks(bitmap);
    pthread_mutex_lock(&bitmap->lock);
    if (done && backup->bitmap_mode != BLKREPL_BITMAP_NEVER) {
        blkrepl__bitmap_abdicate(bitmap, &backup->unused);
    } else {
        if (!done && backup->bitmap_mode == BLKREPL_BITMAP_ALWAYS) {
            backup_keep_missing(backup);
        }
        blkrepl__bitmap_reclaim(bitmap, &backup->unused);
    }
    pthread_mutex_unlock(&bitmap->lock);
}
