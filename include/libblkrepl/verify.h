/* SPDX-License-Identifier: MIT */
/**
 * @file verify.h
 * Verify: compare two images while guests use them.
 */
#ifndef LIBBLKREPL_VERIFY_H
#define LIBBLKREPL_VERIFY_H

#include <libblkrepl/base.h>
#include <libblkrepl/job.h>

BLKREPL_BEGIN_DECLS

/** Unusual behaviour of a verify job. */
enum blkrepl_verify_flags {
    /** Conclude (as done) at the first difference. */
    BLKREPL_VERIFY_FIRST = 1
};

/** Options of a verify job. */
typedef struct blkrepl_verify_options {
    uint32_t struct_size;         /* sizeof *this */
    uint32_t flags;               /* BLKREPL_VERIFY_* */
    const char *name;             /* as in blkrepl_backup_options; NULL: "verify-<id>" */
    void *user;                   /* the same */
    void (*release)(void *user);  /* the same */
    blkrepl_bitmap *only;         /* compare what is dirty in it when the job is started,
                                   * in whole chunks of 64 KiB; of the size of the first
                                   * image; NULL: everything */
    blkrepl_bitmap *differing;    /* gets dirty where the images differ; of the size of
                                   * the first image; NULL: the job only counts */
    blkrepl_throttle *throttle;   /* see throttle.h; NULL: none */
    uint64_t speed_bytes_per_sec; /* of each image; 0: unlimited */
    uint64_t chunk_bytes_max;     /* compared at once: 64 KiB to 64 MiB, rounded down to
                                   * 64 KiB; 0: 256 KiB */
    uint32_t workers_max;         /* chunks at once, at most 256; 0: 4 */
    uint32_t on_error;            /* BLKREPL_ON_ERROR_*, for both images; 0: REPORT */
    uint32_t job_flags;           /* BLKREPL_JOB_MANUAL_* */
    uint32_t reserved0;           /* 0 */
    uint64_t guest_timeout_ns;    /* 0: 30 s; BLKREPL_FOREVER: none */
} blkrepl_verify_options;

/**
 * Create a job that compares two images.
 *
 * The first image's size is what is compared; the second may be longer.  Each chunk
 * is compared as both images are at one instant: guest writes in flight over it are
 * waited for, and others wait until both have been read.  So images that are the same
 * at any time, by whatever keeps them so, do not differ; what the guest does to one
 * of them alone shows as a difference if it is done before its chunk's turn.
 *
 * Guest writes over a chunk that is being read wait, to either image, at most until
 * guest_timeout_ns after the first of them came; cancelling the job lets them go at once.
 * They wait too while the images are asked what reads as zero, which is done for up to
 * 64 MiB at a time.  If an image has not answered by then the writes go on, and the range
 * counts as one that cannot be read: an error -ETIMEDOUT of that image (of the first, if
 * of both), for on_error.  The job ends when the image has answered.
 * A bracket never waits for a comparison that itself waits for a bracket, so a host may
 * begin the next one, in either image, before it ends the first; as long as brackets over
 * a chunk follow each other without a gap it is not compared.
 *
 * An image against a backup of its bitmap: compare a snapshot of it, or with the guest
 * stopped, and give the bitmap as `only`.
 *
 * Done means: everything was compared; blkrepl_job_info.differing_bytes and the bitmap
 * tell what was found (in granules of the bitmap, without one of 64 KiB).  The bitmap
 * must not be busy or inconsistent at the start, which makes it all clean; it is busy
 * until the job concludes, can be read meanwhile, and keeps what was found however that
 * ends; if it records, what was written meanwhile is added.  `only` is read at the start
 * and free afterwards; it may be busy.  What cannot be read counts as differing; under
 * BLKREPL_ON_ERROR_IGNORE the job goes on, and fails at the end.
 *
 * Ownership:  images, bitmaps and throttle are held until the job has concluded; *out
 *             belongs to the caller; options are copied.
 * Thread:     any.
 * States:     context open.
 * Returns:    0; -EINVAL bad option, NULL, of different contexts or sizes, or twice the
 *             same image or bitmap; -EBUSY an image is the target of a job; -EEXIST name
 *             in use; -ENOMEM, also when memory_bytes_max or job_requests_max of the
 *             context are used up; -EFBIG more than 16 PiB; BLKREPL_ERR_STATE a bitmap
 *             is inconsistent; -ESHUTDOWN; BLKREPL_ERR_VERSION.
 * Since:      0.1
 */
BLKREPL_API int blkrepl_verify_create(blkrepl_image *image, blkrepl_image *other,
                                      const blkrepl_verify_options *options, blkrepl_job **out);

/**
 * Create a verify job and start it.
 *
 * Ownership:  as blkrepl_verify_create().
 * Callbacks:  BLKREPL_EVENT_JOB_STATE, later BLKREPL_EVENT_JOB_DONE.
 * Thread:     any.
 * States:     context open.
 * Returns:    as blkrepl_verify_create() and blkrepl_job_start().
 * Since:      0.1
 */
BLKREPL_API int blkrepl_verify_start(blkrepl_image *image, blkrepl_image *other,
                                     const blkrepl_verify_options *options, blkrepl_job **out);

BLKREPL_END_DECLS

#endif
