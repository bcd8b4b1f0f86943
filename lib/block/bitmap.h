/* SPDX-License-Identifier: MIT */
/* bitmap.h - a dirty bitmap: a map, who owns it, and what it may be used for.
 *
 * Locks, in this order: the context's, a lane's, a bitmap's.
 *   state    (image, enabled, busy, loading, which map is marked): changed with the
 *            context's lock and the bitmap's, so read with either;
 *   content  of a bitmap that was made for an image: changed with both, and with
 *            the image turned to the slow way if it records; of any other: with the
 *            bitmap's.  Read with the bitmap's.
 * Several bitmaps' locks are taken in the order of their ids.
 * Recording holds none of the two on the quick way: it marks (hbitmap.h), which may
 * run beside the functions that dirtymap.h calls concurrent.  The others need what
 * changing needs: bitmap_hold().
 *
 * Successor: while the bitmap is busy, `map` stands still and `since` is marked.
 *
 * refs: handles, its image, jobs that use it. */
#ifndef BLKREPL_BLOCK_BITMAP_H
#define BLKREPL_BLOCK_BITMAP_H

#include "block/image.h"
#include "data/dirtymap.h"
#include <libblkrepl/bitmap.h>

struct blkrepl_bitmap {
    /* Set once. */
    struct blkrepl_context *ctx;
    uint64_t id;
    void *user;
    char *name; /* behind this struct */
    bool for_image;
    pthread_mutex_t lock;
    /* State. */
    struct blkrepl_image *image; /* NULL: none, or no more */
    struct list image_link;      /* on its image's bitmaps, in the order of ids */
    struct list record_link;     /* on those who record */
    bool enabled;
    bool busy;
    bool frozen; /* by the host */
    bool loading;
    struct dirtymap *marks; /* `map`; while it is busy `since` */
    uint32_t refs;          /* the context's lock alone */
    uint32_t handles;
    bool leaving;     /* inside a transaction: it is about to be removed, */
    bool freezing;    /* or, also for a job, frozen */
    struct list held; /* its lock is taken, or about to be */
    /* Content. */
    struct dirtymap map;
    struct dirtymap since;
    uint64_t loaded_bytes; /* loading: so far */
};

/* Make a bitmap without a handle; no lock is held.  image NULL: free-standing.
 * Returns: 0; -EINVAL; -EFBIG; -ENOMEM; BLKREPL_ERR_VERSION. */
int blkrepl__bitmap_make(struct blkrepl_context *ctx, struct blkrepl_image *image,
                         const blkrepl_bitmap_options *options, struct blkrepl_bitmap **out);
void blkrepl__bitmap_destroy(struct blkrepl_bitmap *bitmap);

/* With the context's lock.  The bitmap may be gone after unref. */
void blkrepl__bitmap_give_handle(struct blkrepl_bitmap *bitmap);
void blkrepl__bitmap_ref(struct blkrepl_bitmap *bitmap);
void blkrepl__bitmap_unref(struct blkrepl_bitmap *bitmap);

/* The image's bitmap of this name, the first with a greater id; NULL if there is
 * none.  With the context's lock. */
struct blkrepl_bitmap *blkrepl__bitmap_named(const struct blkrepl_image *image, const char *name);
struct blkrepl_bitmap *blkrepl__bitmap_after(const struct blkrepl_image *image, uint64_t id);

/* The image is gone: its bitmaps have none any more.  With the context's lock. */
void blkrepl__bitmaps_orphan(struct blkrepl_image *image);

/* Turn its image to the slow way if it records, with the context's lock: nobody
 * marks it before the lock is dropped. */
void blkrepl__bitmap_stop_marks(const struct blkrepl_bitmap *bitmap);

/* Hold a bitmap so that nobody else touches its content or state; let it go. */
void blkrepl__bitmap_hold(struct blkrepl_bitmap *bitmap);
void blkrepl__bitmap_let_go(struct blkrepl_bitmap *bitmap);

/* Whether its content may be changed, or read if it is used.
 * Returns: 0; -EBUSY (changed only); BLKREPL_ERR_STATE. */
int blkrepl__bitmap_changeable(const struct blkrepl_bitmap *bitmap, const char *verb);
int blkrepl__bitmap_readable(const struct blkrepl_bitmap *bitmap, const char *verb);
/* How messages call it. */
const char *blkrepl__bitmap_called(const struct blkrepl_bitmap *bitmap);

/* With the context's lock and the bitmap's, the image turned to the slow way: start and
 * stop recording.  What is in flight is marked when it stops. */
void blkrepl__bitmap_record(struct blkrepl_bitmap *bitmap, bool on);

/* Say that a bitmap is about to be frozen: nobody else may use it any more.  Take it
 * back, or let the freeze follow.  With the context's lock.
 * Returns: 0; -EBUSY; BLKREPL_ERR_STATE. */
int blkrepl__bitmap_announce(struct blkrepl_bitmap *bitmap, const char *verb);
void blkrepl__bitmap_renounce(struct blkrepl_bitmap *bitmap);

/* The successor, with the locks that recording needs.  freeze takes over the memory of
 * `since`; the other two give memory back that is to be freed (blkrepl__dirtymap_fini)
 * when no lock is held. */
void blkrepl__bitmap_freeze(struct blkrepl_bitmap *bitmap, const struct dirtymap *since);
void blkrepl__bitmap_abdicate(struct blkrepl_bitmap *bitmap, struct dirtymap *unused);
void blkrepl__bitmap_reclaim(struct blkrepl_bitmap *bitmap, struct dirtymap *unused);

/* Lock two bitmaps' own locks, which may be one and the same; unlock them. */
void blkrepl__bitmap_lock_both(struct blkrepl_bitmap *a, struct blkrepl_bitmap *b);
void blkrepl__bitmap_unlock_both(struct blkrepl_bitmap *a, struct blkrepl_bitmap *b);

#endif
