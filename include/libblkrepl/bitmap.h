/* SPDX-License-Identifier: MIT */
/**
 * @file bitmap.h
 * Dirty bitmaps: which parts of a disk may have changed.
 *
 * A bitmap divides its `bytes` into granules of granularity_bytes, the last of
 * which may be shorter.  Dirty means "may differ": setting a range makes every
 * granule dirty that it touches; resetting takes whole granules only.
 *
 * A named bitmap belongs to an image and records its guest I/O: a granule is
 * dirty when a write, zeroes or discard of any part of it completes, before that
 * is told to the guest, also when it failed.  Through and beside are recorded
 * alike, and so is what a job writes to the image.  Recording never fails and
 * takes no memory: all of it is taken when the bitmap is made (pages that are
 * never touched cost nothing).  A range is recorded as it was rounded to the
 * image's request alignment, that of a discard inward.  What the library leaves
 * undone is not recorded: a discard that the backend does not know, or the part of
 * it below the alignment; a request that is refused, or fails, before the backend
 * has it; a bracket that is cancelled.
 *
 * A flush that fails makes doubtful what was written since the last good one: it is
 * recorded again, by regions of a 2048th of the disk, perhaps with what was written
 * just before that (the last good one: that had ended when the one that fails was
 * accepted); and everything is, as long as the image has had no good flush
 * since its first bitmap was added.
 *
 * A free-standing bitmap belongs to a context only; the host sets its bits.
 *
 * What concerns the content of a bitmap (dirty, clean, changed since) is exact at
 * one instant inside the call: a write that was told to the guest before the call
 * is before that instant.  Writes in flight at the instant count for both sides
 * of it: disabling, freezing or removing a bitmap marks their ranges at once, and
 * when they end they are recorded by whoever records then.  Of a job's writes that
 * is true if they were given to the backend while the bitmap recorded.
 *
 * Busy: a job or the host (blkrepl_bitmap_freeze()) uses the content.  It stands
 * still then, a successor inside the bitmap records on, and verbs that would
 * change the content answer -EBUSY.  Afterwards the successor takes the content's
 * place (abdicate: the content has been used up) or is added to it (reclaim: it
 * has not).
 *
 * Inconsistent: a load was begun and has not been finished.  Only loading,
 * removing, freeing, querying and validating the bitmap are allowed.
 *
 * When both apply to one bitmap, busy goes before inconsistent.
 */
#ifndef LIBBLKREPL_BITMAP_H
#define LIBBLKREPL_BITMAP_H

#include <libblkrepl/base.h>

BLKREPL_BEGIN_DECLS

/** The longest name of a bitmap, without its terminating zero. */
#define BLKREPL_BITMAP_NAME_MAX 1023
/** The granularity of a named bitmap: default, least, largest. */
#define BLKREPL_BITMAP_GRANULARITY_DEFAULT 65536
#define BLKREPL_BITMAP_GRANULARITY_MIN 512
#define BLKREPL_BITMAP_GRANULARITY_MAX 2147483648

/** In the options and in what is known of a bitmap. */
enum blkrepl_bitmap_flags {
    /** Options, named: does not record until it is enabled. */
    BLKREPL_BITMAP_DISABLED = 1,
    /** Info: the writes of the image are recorded, by it or by its successor. */
    BLKREPL_BITMAP_RECORDING = 2,
    /** Info: a job, or the host, uses the content. */
    BLKREPL_BITMAP_BUSY = 4,
    /** Info: a load has not been finished. */
    BLKREPL_BITMAP_INCONSISTENT = 8
};

/** Options of a bitmap. */
typedef struct blkrepl_bitmap_options {
    uint32_t struct_size;       /* sizeof *this */
    uint32_t flags;             /* BLKREPL_BITMAP_DISABLED (named only) */
    uint64_t bytes;             /* free-standing: its size, up to BLKREPL_IMAGE_BYTES_MAX;
                                 * named: 0, or the size of the image */
    uint64_t granularity_bytes; /* power of two; 0: 64 KiB.  Named: 512 B to 2 GiB;
                                 * free-standing: from 1 B to 2^63 B */
    const char *name;           /* named: 1 to BLKREPL_BITMAP_NAME_MAX bytes, unique in the
                                 * image; free-standing: the same, or NULL; copied */
    void *user;                 /* the host's; see blkrepl_bitmap_query() */
} blkrepl_bitmap_options;

/** What is known of a bitmap. */
typedef struct blkrepl_bitmap_info {
    uint32_t struct_size; /* in: sizeof *this */
    uint32_t flags;       /* BLKREPL_BITMAP_RECORDING, _BUSY, _INCONSISTENT */
    uint64_t id;          /* never reused within the context */
    uint64_t image_id;    /* 0: free-standing, or removed, or the image is gone */
    uint64_t bytes;
    uint64_t granularity_bytes;
    uint64_t dirty_granules; /* of the content; 0 while inconsistent */
    uint64_t dirty_bytes;    /* the same in bytes, never more than `bytes` */
    uint64_t since_bytes;    /* busy: what the successor has recorded */
    void *user;
    char name[1024]; /* "" if it has none */
} blkrepl_bitmap_info;

/** A run of bytes of a bitmap. */
typedef struct blkrepl_area {
    uint64_t offset;
    uint64_t bytes;
} blkrepl_area;

/**
 * Make a free-standing bitmap, all clean.
 *
 * It needs one bit a granule and a 64th of that for its summary: 2.1 MB per TiB
 * at 64 KiB.
 *
 * Ownership:  *out belongs to the caller.
 * Thread:     any.
 * Returns:    0; -EINVAL bad option; -EFBIG more than 2^38 granules; -ENOMEM;
 *             -ESHUTDOWN; BLKREPL_ERR_VERSION.
 * Since:      0.1
 */
BLKREPL_API int blkrepl_bitmap_create(blkrepl_context *ctx, const blkrepl_bitmap_options *options,
                                      blkrepl_bitmap **out);

/**
 * Add a named bitmap to an image, all clean.
 *
 * Unless it is disabled it records from this call on.  It lives until it is
 * removed or the image is gone, whether or not there is a handle of it; with a
 * handle it stays as a free-standing one.
 *
 * Ownership:  *out is a handle of it for the caller.
 * Thread:     any.
 * Returns:    as blkrepl_bitmap_create(); -EEXIST the image has one of this name.
 * Since:      0.1
 */
BLKREPL_API int blkrepl_bitmap_add(blkrepl_image *image, const blkrepl_bitmap_options *options,
                                   blkrepl_bitmap **out);

/**
 * Get a handle of an image's bitmap of this name.
 *
 * Ownership:  *out is one more handle, to be freed like any other.
 * Thread:     any.
 * Returns:    0; -ENOENT there is none; -EINVAL NULL.
 * Since:      0.1
 */
BLKREPL_API int blkrepl_bitmap_find(blkrepl_image *image, const char *name, blkrepl_bitmap **out);

/**
 * Get a handle of the next bitmap of an image, in the order of their ids.
 *
 * after_id 0 gives the first one; to list all go on with the id of what was
 * returned last until the answer is -ENOENT.
 *
 * Ownership:  *out is one more handle, to be freed like any other.
 * Thread:     any.
 * Returns:    0; -ENOENT there is no further one; -EINVAL NULL.
 * Since:      0.1
 */
BLKREPL_API int blkrepl_bitmap_next(blkrepl_image *image, uint64_t after_id, blkrepl_bitmap **out);

/**
 * Drop a handle of a bitmap.
 *
 * Never blocks and never fails.  A bitmap of an image stays with it, frozen if it
 * is; one without an image is freed with its last handle, frozen or not.  With NULL
 * it does nothing.
 *
 * Ownership:  takes the handle; it must not be used any more.
 * Thread:     any, also inside callbacks.
 * Returns:    nothing.
 * Since:      0.1
 */
BLKREPL_API void blkrepl_bitmap_free(blkrepl_bitmap *bitmap);

/**
 * Tell what is known of a bitmap.
 *
 * Thread:     any.
 * Returns:    0; -EINVAL NULL or info->struct_size smaller than in 0.1.
 * Since:      0.1
 */
BLKREPL_API int blkrepl_bitmap_query(blkrepl_bitmap *bitmap, blkrepl_bitmap_info *info);

/**
 * Take a bitmap away from its image.
 *
 * It records no more, and its name is free.  The handle stays good: content and
 * all is there as a free-standing bitmap until it is freed.
 *
 * Thread:     any.
 * States:     not busy; inconsistent is allowed.
 * Returns:    0; -EBUSY; -EINVAL NULL or it has no image.
 * Since:      0.1
 */
BLKREPL_API int blkrepl_bitmap_remove(blkrepl_bitmap *bitmap);

/**
 * Let a bitmap of an image record from now on.
 *
 * Nothing tells that it has been off meanwhile.  On one that records it does
 * nothing.
 *
 * Thread:     any.
 * States:     neither busy nor inconsistent.
 * Returns:    0; -EBUSY; BLKREPL_ERR_STATE it is inconsistent; -EINVAL NULL or it
 *             has no image.
 * Since:      0.1
 */
BLKREPL_API int blkrepl_bitmap_enable(blkrepl_bitmap *bitmap);

/**
 * Let a bitmap of an image record no more.
 *
 * What is in flight at this instant is marked.
 *
 * Thread:     any.
 * States:     neither busy nor inconsistent.
 * Returns:    as blkrepl_bitmap_enable().
 * Since:      0.1
 */
BLKREPL_API int blkrepl_bitmap_disable(blkrepl_bitmap *bitmap);

/**
 * Make a bitmap all clean.
 *
 * Costs what is dirty, not what the bitmap is long.
 *
 * Thread:     any.
 * States:     neither busy nor inconsistent.
 * Returns:    0; -EBUSY; BLKREPL_ERR_STATE it is inconsistent; -EINVAL NULL.
 * Since:      0.1
 */
BLKREPL_API int blkrepl_bitmap_clear(blkrepl_bitmap *bitmap);

/**
 * Add the dirty granules of other bitmaps: all of them or, refused, none.
 *
 * The sources stay as they are and may be of any image of the context, or of
 * none; the bitmap itself may be among them.  Granularities may differ: what a
 * dirty granule of a source touches becomes dirty.
 *
 * Thread:     any.
 * States:     neither the bitmap nor a source is busy or inconsistent.
 * Returns:    0; -EBUSY; BLKREPL_ERR_STATE one is inconsistent; -EINVAL NULL, a
 *             source is of another size or of another context.
 * Since:      0.1
 */
BLKREPL_API int blkrepl_bitmap_merge(blkrepl_bitmap *bitmap, blkrepl_bitmap *const *sources,
                                     uint32_t source_count);

/** What one action of blkrepl_bitmap_transact() does. */
enum blkrepl_bitmap_action_type {
    /** Add a bitmap to `image`, with `options`; it starts with the content of
     *  `sources`, if there are any.  *out gets a handle. */
    BLKREPL_BITMAP_ADD = 1,
    /** As blkrepl_bitmap_remove(), and so on. */
    BLKREPL_BITMAP_REMOVE = 2,
    BLKREPL_BITMAP_ENABLE = 3,
    BLKREPL_BITMAP_DISABLE = 4,
    BLKREPL_BITMAP_CLEAR = 5,
    BLKREPL_BITMAP_MERGE = 6,
    BLKREPL_BITMAP_FREEZE = 7
};

/** One action; what its type does not use must be 0. */
typedef struct blkrepl_bitmap_action {
    uint32_t struct_size;                  /* sizeof *this */
    uint32_t type;                         /* BLKREPL_BITMAP_ADD and so on */
    blkrepl_bitmap *bitmap;                /* all but ADD */
    blkrepl_image *image;                  /* ADD */
    const blkrepl_bitmap_options *options; /* ADD */
    blkrepl_bitmap *const *sources;        /* MERGE, ADD */
    blkrepl_bitmap **out;                  /* ADD */
    uint32_t source_count;                 /* MERGE, ADD */
    uint32_t reserved0;                    /* 0 */
} blkrepl_bitmap_action;

/**
 * Do several things to bitmaps, of any images of the context, at one instant.
 *
 * All or nothing: when an action is refused none is done, no bitmap has lost or
 * gained a bit, and the message tells the action's number, counted from 0.  They
 * are done in their order, and each is judged as the earlier ones have left
 * things.
 *
 * Ownership:  *out of each ADD is a handle for the caller; NULL when refused.
 *             The array, its actions and what they point to are borrowed.
 * Thread:     any.
 * Returns:    0; what the refused action returns by itself; -EINVAL NULL, an
 *             unknown type, or a field that the type does not use is not 0;
 *             -ENOMEM; -ESHUTDOWN; BLKREPL_ERR_VERSION.
 * Since:      0.1
 */
BLKREPL_API int blkrepl_bitmap_transact(blkrepl_context *ctx,
                                        const blkrepl_bitmap_action *const *actions,
                                        uint32_t action_count);

/**
 * Let the content of a bitmap stand still, to be used by the host.
 *
 * For a host that copies what is dirty by itself, or lets another program pull
 * it: read the content, copy, then blkrepl_bitmap_abdicate() if all of it is safe
 * or blkrepl_bitmap_reclaim() if it is not.  A successor records meanwhile, if
 * the bitmap was recording; blkrepl_bitmap_set() sets in the successor.
 *
 * Thread:     any.
 * States:     neither busy nor inconsistent.
 * Returns:    0; -EBUSY; BLKREPL_ERR_STATE it is inconsistent; -ENOMEM; -EINVAL
 *             NULL.
 * Since:      0.1
 */
BLKREPL_API int blkrepl_bitmap_freeze(blkrepl_bitmap *bitmap);

/**
 * Say that the frozen content has been used up: the successor takes its place.
 *
 * The content is then what was written since the freeze.
 *
 * Thread:     any.
 * States:     frozen by blkrepl_bitmap_freeze().
 * Returns:    0; BLKREPL_ERR_STATE the host has not frozen it; -EINVAL NULL.
 * Since:      0.1
 */
BLKREPL_API int blkrepl_bitmap_abdicate(blkrepl_bitmap *bitmap);

/**
 * Say that the frozen content is still needed: the successor is added to it.
 *
 * The content is then what it would have been without the freeze.
 *
 * Thread:     any.
 * States:     frozen by blkrepl_bitmap_freeze().
 * Returns:    0; BLKREPL_ERR_STATE the host has not frozen it; -EINVAL NULL.
 * Since:      0.1
 */
BLKREPL_API int blkrepl_bitmap_reclaim(blkrepl_bitmap *bitmap);

/**
 * Make every granule dirty that a range touches.
 *
 * Thread:     any.
 * States:     not inconsistent; while it is busy the successor gets it.
 * Returns:    0; -EINVAL NULL or the range does not lie inside the bitmap;
 *             BLKREPL_ERR_STATE it is inconsistent.
 * Since:      0.1
 */
BLKREPL_API int blkrepl_bitmap_set(blkrepl_bitmap *bitmap, uint64_t offset, uint64_t bytes);

/**
 * Make granules clean.
 *
 * The range must be whole granules; it may end where the bitmap ends.
 *
 * Thread:     any.
 * States:     neither busy nor inconsistent.
 * Returns:    0; -EINVAL NULL, the range does not lie inside the bitmap or is not
 *             whole granules; -EBUSY; BLKREPL_ERR_STATE it is inconsistent.
 * Since:      0.1
 */
BLKREPL_API int blkrepl_bitmap_reset(blkrepl_bitmap *bitmap, uint64_t offset, uint64_t bytes);

/**
 * Make what is clean dirty, and what is dirty clean.
 *
 * Thread:     any.
 * States:     neither busy nor inconsistent.
 * Returns:    as blkrepl_bitmap_clear().
 * Since:      0.1
 */
BLKREPL_API int blkrepl_bitmap_invert(blkrepl_bitmap *bitmap);

/**
 * Keep dirty only what is dirty in the other bitmap too.
 *
 * A granule stays dirty if any part of it is dirty in the other one, so where
 * granularities differ the result may be too large, never too small.
 *
 * Thread:     any.
 * States:     neither of them is busy or inconsistent.
 * Returns:    as blkrepl_bitmap_merge().
 * Since:      0.1
 */
BLKREPL_API int blkrepl_bitmap_intersect(blkrepl_bitmap *bitmap, blkrepl_bitmap *other);

/**
 * Make clean what is dirty in the other bitmap.
 *
 * A granule becomes clean if all of it is dirty in the other one, so where
 * granularities differ the result may be too large, never too small.
 *
 * Thread:     any.
 * States:     neither of them is busy or inconsistent.
 * Returns:    as blkrepl_bitmap_merge().
 * Since:      0.1
 */
BLKREPL_API int blkrepl_bitmap_subtract(blkrepl_bitmap *bitmap, blkrepl_bitmap *other);

/**
 * Change the size of a free-standing bitmap.
 *
 * What is added is clean, apart from the rest of a dirty granule; granules that
 * are wholly cut off are gone.
 *
 * Thread:     any.
 * States:     neither busy nor inconsistent.
 * Returns:    0; -EINVAL NULL, a bitmap of an image, or a size above
 *             BLKREPL_IMAGE_BYTES_MAX; -EFBIG; -ENOMEM, and nothing has changed;
 *             -EBUSY; BLKREPL_ERR_STATE it is inconsistent.
 * Since:      0.1
 */
BLKREPL_API int blkrepl_bitmap_resize(blkrepl_bitmap *bitmap, uint64_t bytes);

/**
 * Tell whether the granule of this byte is dirty.
 *
 * This and the functions below read the content: of a busy bitmap the one that
 * stands still.
 *
 * Thread:     any.
 * States:     not inconsistent.
 * Returns:    1 dirty; 0 clean; -EINVAL NULL or offset does not lie inside the
 *             bitmap; BLKREPL_ERR_STATE it is inconsistent.
 * Since:      0.1
 */
BLKREPL_API int blkrepl_bitmap_get(blkrepl_bitmap *bitmap, uint64_t offset);

/**
 * Find the first dirty byte of a range.
 *
 * *found is never below offset.  Bytes beyond the end of the bitmap are ignored,
 * so UINT64_MAX means "to the end".
 *
 * Thread:     any.
 * States:     not inconsistent.
 * Returns:    1 found; 0 there is none, and *found is left alone; -EINVAL NULL;
 *             BLKREPL_ERR_STATE it is inconsistent.
 * Since:      0.1
 */
BLKREPL_API int blkrepl_bitmap_next_dirty(blkrepl_bitmap *bitmap, uint64_t offset, uint64_t bytes,
                                          uint64_t *found);

/**
 * Find the first clean byte of a range; otherwise as blkrepl_bitmap_next_dirty().
 *
 * Costs a word for each 64 dirty granules that it passes.
 *
 * Thread:     any.
 * States:     not inconsistent.
 * Returns:    as blkrepl_bitmap_next_dirty().
 * Since:      0.1
 */
BLKREPL_API int blkrepl_bitmap_next_clean(blkrepl_bitmap *bitmap, uint64_t offset, uint64_t bytes,
                                          uint64_t *found);

/**
 * Find the first dirty run of a range.
 *
 * It begins at or after offset, lies inside the range and the bitmap, and is at
 * most max_bytes long (0: any length).  Bytes beyond the end are ignored.
 *
 * Thread:     any.
 * States:     not inconsistent.
 * Returns:    1 found; 0 there is none, and *area is left alone; -EINVAL NULL;
 *             BLKREPL_ERR_STATE it is inconsistent.
 * Since:      0.1
 */
BLKREPL_API int blkrepl_bitmap_next_area(blkrepl_bitmap *bitmap, uint64_t offset, uint64_t bytes,
                                         uint64_t max_bytes, blkrepl_area *area);

/**
 * Tell whether a range begins dirty or clean, and for how long that goes on.
 *
 * *run_bytes is at least 1 and at most `bytes`.
 *
 * Thread:     any.
 * States:     not inconsistent.
 * Returns:    1 dirty; 0 clean; -EINVAL NULL, or the range is empty or does not
 *             lie inside the bitmap; BLKREPL_ERR_STATE it is inconsistent.
 * Since:      0.1
 */
BLKREPL_API int blkrepl_bitmap_status(blkrepl_bitmap *bitmap, uint64_t offset, uint64_t bytes,
                                      uint64_t *run_bytes);

/**
 * List dirty granules, in rising order.
 *
 * Fills `offsets` with the first byte of dirty granules from the one that
 * *position lies in, and moves *position behind the last of them, or to the end
 * of the bitmap.  Begin with 0 and go on until the answer is 0.
 *
 * The bitmap may change (but for its size) between the calls and meanwhile: a granule that is dirty
 * all the time is listed exactly once, one that is clean all the time never, and
 * no granule twice.
 *
 * Thread:     any.
 * States:     not inconsistent.
 * Returns:    how many, at most INT_MAX; 0 there are no more; -EINVAL NULL, or
 *             offsets_max 0; BLKREPL_ERR_STATE it is inconsistent.
 * Since:      0.1
 */
BLKREPL_API int blkrepl_bitmap_iterate(blkrepl_bitmap *bitmap, uint64_t *position,
                                       uint64_t *offsets, uint32_t offsets_max);

/**
 * Tell where parts for save and load may begin and end.
 *
 * A part begins at a multiple of this many bytes, and ends at one or at the end
 * of the bitmap.
 *
 * Thread:     any.
 * Returns:    64 granules in bytes, or 2^63 if that is less; 0 for NULL.
 * Since:      0.1
 */
BLKREPL_API uint64_t blkrepl_bitmap_part_alignment(blkrepl_bitmap *bitmap);

/**
 * Write down a part of a bitmap.
 *
 * The form is the same on every machine: one bit a granule, the lowest bit of the
 * first byte for the first granule of the part, the bits behind the last granule
 * zero, (granules + 7) / 8 bytes.  It holds neither size nor granularity.
 * *data_bytes says how much room there is at data, and is set to what is needed;
 * with data NULL that is all that is done.
 *
 * Parts that are saved one by one are each of their own instant; to save one
 * instant freeze or disable the bitmap.
 *
 * Thread:     any.
 * States:     not inconsistent.
 * Returns:    0; -ENOSPC not enough room; -EINVAL NULL, or not a part (see
 *             blkrepl_bitmap_part_alignment()); BLKREPL_ERR_STATE it is
 *             inconsistent.
 * Since:      0.1
 */
BLKREPL_API int blkrepl_bitmap_save(blkrepl_bitmap *bitmap, uint64_t offset, uint64_t bytes,
                                    void *data, uint64_t *data_bytes);

/**
 * Begin to load a bitmap from its parts.
 *
 * It is cleared, and inconsistent until blkrepl_bitmap_load_finish().  The parts
 * follow from the first to the last without a gap.  A load may be begun anew at
 * any time.
 *
 * Thread:     any.
 * States:     not recording, not busy.
 * Returns:    0; -EBUSY it is busy, or recording: disable it first; -EINVAL NULL.
 * Since:      0.1
 */
BLKREPL_API int blkrepl_bitmap_load_begin(blkrepl_bitmap *bitmap);

/**
 * Load a part that blkrepl_bitmap_save() wrote.
 *
 * Bits behind the last granule are ignored.  A refused part changes nothing, and
 * the right one may follow.
 *
 * Thread:     any.
 * States:     a load was begun.
 * Returns:    0; -EINVAL NULL, not a part, not the next one, or data_bytes is not
 *             what the part needs; BLKREPL_ERR_STATE no load was begun.
 * Since:      0.1
 */
BLKREPL_API int blkrepl_bitmap_load(blkrepl_bitmap *bitmap, uint64_t offset, uint64_t bytes,
                                    const void *data, uint64_t data_bytes);

/**
 * Load a part that is all clean.
 *
 * Thread:     any.
 * States:     a load was begun.
 * Returns:    as blkrepl_bitmap_load().
 * Since:      0.1
 */
BLKREPL_API int blkrepl_bitmap_load_zeroes(blkrepl_bitmap *bitmap, uint64_t offset, uint64_t bytes);

/**
 * Load a part that is all dirty.
 *
 * Thread:     any.
 * States:     a load was begun.
 * Returns:    as blkrepl_bitmap_load().
 * Since:      0.1
 */
BLKREPL_API int blkrepl_bitmap_load_ones(blkrepl_bitmap *bitmap, uint64_t offset, uint64_t bytes);

/**
 * Say that all parts are loaded: the bitmap is good to use.
 *
 * Thread:     any.
 * States:     a load was begun.
 * Returns:    0; -EINVAL NULL, or parts are missing (it stays inconsistent, and
 *             they may follow); BLKREPL_ERR_STATE no load was begun.
 * Since:      0.1
 */
BLKREPL_API int blkrepl_bitmap_load_finish(blkrepl_bitmap *bitmap);

/**
 * Compute the SHA-256 of the content as blkrepl_bitmap_save() writes it.
 *
 * The whole bitmap as one part, of one instant; the same on every machine.  On
 * the recording bitmap of an image guests wait meanwhile.
 *
 * Ownership:  digest has room for 32 bytes.
 * Thread:     any.
 * States:     not inconsistent.
 * Returns:    0; -EINVAL NULL; BLKREPL_ERR_STATE it is inconsistent.
 * Since:      0.1
 */
BLKREPL_API int blkrepl_bitmap_sha256(blkrepl_bitmap *bitmap, uint8_t *digest);

/**
 * Check that a bitmap is what it should be inside: count, summary and tail.
 *
 * For tests, and for a host that distrusts its memory.
 *
 * Thread:     any.
 * Returns:    0; -EINVAL NULL; BLKREPL_ERR_CORRUPT, the message says what is
 *             wrong.
 * Since:      0.1
 */
BLKREPL_API int blkrepl_bitmap_validate(blkrepl_bitmap *bitmap);

BLKREPL_END_DECLS

#endif
