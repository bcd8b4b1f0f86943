/* SPDX-License-Identifier: MIT */
/* quick.h - the quick way of guest requests through an image that no job uses.
 *
 * A quick request touches its lane and, if it writes, one stripe of the image:
 * a stripe holds the quick writes in flight over its part of the disk, so that
 * overlapping ones are seen.  It never waits: what would have to wait, or is not
 * one aligned piece, goes the slow way.
 *
 * An image goes one way at a time.  quick_stop() turns it to the slow way, with
 * all that is in flight: the requests become ordinary ones, their ranges move
 * from the stripes to the leaf's ranges, given at this instant.  So whoever
 * holds the context's lock and has called it sees everything, and a point in
 * time is cut as if there were one lock.  After a number of slow requests the
 * image goes back, with all that is in flight, when nothing stands against it.
 *
 * Invariants, while port.quick is set:
 *   1. The image has no tap, no job and no throttle, its handle is open, its leaf's ranges
 *      are empty, and its port has no request of the slow way.
 *   2. A quick guest is on its lane's list `quick`, is GIVEN, GO or ENDED, and
 *      is not counted by the image; a GIVEN or GO write is in one stripe. */
#ifndef BLKREPL_BLOCK_QUICK_H
#define BLKREPL_BLOCK_QUICK_H

#include "block/guest_io.h"

#define QUICK_STRIPES 64

struct quick_stripe {
    pthread_mutex_t lock; /* taken last; not needed where there is one lane */
    struct list writes;   /* struct guest.stripe_link */
    APART;
};

/* Set up an image's stripes; returns false if there is no memory. */
bool blkrepl__quick_init(struct blkrepl_image *image);
void blkrepl__quick_fini(struct blkrepl_image *image);

/* Accept a checked request if it can go the quick way; no lock is held.  False:
 * nothing has happened. */
bool blkrepl__quick_call(struct blkrepl_image *image, const struct guest_call *call,
                         const blkrepl_completion *done);
/* The same for a bracket, which then has its GO. */
bool blkrepl__quick_begin(struct blkrepl_image *image, const blkrepl_bracket *what,
                          uint64_t *token);
/* End a bracket that went the quick way (result NULL: nothing was done); no lock or
 * the context's is held. */
bool blkrepl__quick_end(struct blkrepl_context *ctx, uint64_t token, const int *result);
/* An entry that went the quick way advances what every entry has to; no lock is
 * held. */
void blkrepl__quick_attend(struct blkrepl_context *ctx, uint32_t lane);

/* With the context's lock held: turn the image to the slow way; give it a chance
 * to go back; count its quick requests. */
void blkrepl__quick_stop(struct blkrepl_image *image);
void blkrepl__quick_stop_all(struct blkrepl_context *ctx);
void blkrepl__quick_resume(struct blkrepl_image *image);
uint32_t blkrepl__quick_count(struct blkrepl_image *image);

#endif
