/* SPDX-License-Identifier: MIT */
/**
 * @file throttle.h
 * Throttles: limits of bytes and operations per second that images and jobs share.
 *
 * Reads, writes, zeroes and discards of a guest, through or beside, count as one
 * operation each and with their bytes; flushes and STATUS pass.  Of a job each copy or
 * comparison of its background work counts, once, as one operation; what a guest waits
 * for is counted, and never delayed.
 *
 * A request is let through when nothing is owed for earlier ones, and paid afterwards:
 * so one that is larger than a burst passes too, and the average holds.  A throttle that
 * is new, or whose limits have changed, has no burst saved up.  Who has to wait does so
 * in one row for all images and jobs of the throttle, first come, first served; their
 * turns come by timers, which are lane 0's.  A write that waits holds up nobody but those
 * behind it.
 */
#ifndef LIBBLKREPL_THROTTLE_H
#define LIBBLKREPL_THROTTLE_H

#include <libblkrepl/base.h>

BLKREPL_BEGIN_DECLS

/** The limits of a throttle. */
typedef struct blkrepl_throttle_options {
    uint32_t struct_size; /* sizeof *this */
    uint32_t flags;       /* 0 */
    uint64_t bytes_per_sec;
    uint64_t ops_per_sec;
    uint64_t burst_bytes;   /* after idleness so much at once; 0: a tenth of a second's
                           * worth */
    uint64_t burst_ops;     /* the same */
} blkrepl_throttle_options; /* 0 per second: unlimited */

/** What is known of a throttle. */
typedef struct blkrepl_throttle_info {
    uint32_t struct_size; /* in: sizeof *this */
    uint32_t waiting;     /* requests and jobs in the row */
    uint64_t id;          /* never reused within the context */
    uint64_t bytes;       /* let through so far */
    uint64_t ops;
    uint64_t delayed_ops; /* of these, how many had to wait */
    uint64_t bytes_per_sec;
    uint64_t ops_per_sec;
    uint64_t burst_bytes;
    uint64_t burst_ops;
} blkrepl_throttle_info;

/**
 * Make a throttle.
 *
 * Ownership:  *out belongs to the caller.
 * Thread:     any.
 * Returns:    0; -EINVAL NULL or bad option; -ENOMEM; -ESHUTDOWN; BLKREPL_ERR_VERSION.
 * Since:      0.1
 */
BLKREPL_API int blkrepl_throttle_create(blkrepl_context *ctx,
                                        const blkrepl_throttle_options *options,
                                        blkrepl_throttle **out);

/**
 * Change the limits; what is owed is forgiven, so that a raised limit acts at once.
 *
 * Thread:     any.
 * Returns:    0; -EINVAL NULL or bad option; BLKREPL_ERR_VERSION.
 * Since:      0.1
 */
BLKREPL_API int blkrepl_throttle_set(blkrepl_throttle *throttle,
                                     const blkrepl_throttle_options *options);

/**
 * Tell what is known of a throttle.
 *
 * Thread:     any.
 * Returns:    0; -EINVAL NULL or info->struct_size smaller than in 0.1.
 * Since:      0.1
 */
BLKREPL_API int blkrepl_throttle_query(blkrepl_throttle *throttle, blkrepl_throttle_info *info);

/**
 * Drop the handle of a throttle.
 *
 * Images and jobs that use it go on doing so, under its last limits.  With NULL it
 * does nothing.
 *
 * Ownership:  takes the handle; it must not be used any more.
 * Thread:     any, also inside callbacks.
 * Returns:    nothing.
 * Since:      0.1
 */
BLKREPL_API void blkrepl_throttle_free(blkrepl_throttle *throttle);

/**
 * Have the guest I/O of an image pass a throttle; NULL: none any more.
 *
 * Requests that wait for another one pass at once.  An image with a throttle does not
 * go the quick way: a request costs a lock more.
 *
 * Ownership:  the image holds the throttle until it is taken away or the image is gone.
 * Thread:     any.
 * Returns:    0; -EINVAL image NULL, or of another context; -ESHUTDOWN.
 * Since:      0.1
 */
BLKREPL_API int blkrepl_image_set_throttle(blkrepl_image *image, blkrepl_throttle *throttle);

BLKREPL_END_DECLS

#endif
