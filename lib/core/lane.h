/* SPDX-License-Identifier: MIT */
/* lane.h - what a lane can do with its own lock alone.
 *
 * A context has one lock for all that jobs and images share, and each lane has
 * one for its own slots, callbacks and quick requests.  Order: context, lane,
 * stripe of an image (block/quick.h).
 *
 * A quick request is one that touches nothing but its lane, because its image
 * is used by no job and it waits for nobody.  It is accepted, given to the
 * backend, ended and told under the lane's lock; the context's lock is not
 * taken.  Everything else goes the slow way.  Who holds the context's lock can
 * turn an image to the slow way at any moment: see block/quick.h.
 *
 * A lane's thread needs the slow way when
 *   ctx->attention  something is to be advanced that every entry advances, or
 *                   the context is closing;
 *   lane->slow_due  the next poll of the lane has to do more than run quick
 *                   callbacks;
 *   a request or callback of its own is not quick. */
#ifndef BLKREPL_CORE_LANE_H
#define BLKREPL_CORE_LANE_H

#include "core/context.h"

/* Returns: 0; -ENOMEM; an errno when there is no descriptor. */
int blkrepl__lane_init(struct lane *lane, struct request *slots, uint32_t first, uint32_t count);
void blkrepl__lane_fini(struct lane *lane);

/* The lane that a guest slot belongs to. */
static inline struct lane *lane_of_slot(const struct blkrepl_context *ctx, uint64_t index)
{
    return &ctx->lanes[index / ctx->requests_max];
}

/* Queue a callback; take it back.  With the context's lock held. */
void blkrepl__lane_callback(struct lane *lane, struct callback *callback);
void blkrepl__lane_uncallback(struct lane *lane, struct callback *callback);
/* Take the first callback off and make its delivery, unless it wants to be alone
 * and is not the `first` of those that run together.  With the context's lock. */
enum lane_deliver {
    DELIVER_NONE,
    DELIVER_ONE,
    DELIVER_ALONE /* no other may run with it */
};
enum lane_deliver blkrepl__lane_deliver(struct lane *lane, struct delivery *out, bool first);
/* The same for the quick ones in front, up to `most`.  With the lane's lock.
 * Returns how many. */
int blkrepl__lane_deliver_quick(struct lane *lane, struct delivery *out, int most);

/* A slot of the lane; NULL if all are used.  With the lane's lock. */
struct request *blkrepl__lane_slot_take(struct lane *lane);
/* Give it back, and see to those who want one.  With the lane's lock. */
void blkrepl__lane_slot_put(struct lane *lane, struct request *request);
/* There was none: ROOM is posted when there is.  With the context's lock; takes
 * the lane's. */
void blkrepl__lane_want_room(struct lane *lane);

/* End the quick requests that were completed; others are put on `returned`, and
 * attention is called for.  With the lane's lock. */
void blkrepl__lane_collect(struct blkrepl_context *ctx, struct lane *lane);
/* The same for an entry of the slow way, which takes the others.  With the context's
 * lock; takes the lane's. */
void blkrepl__lane_collect_slow(struct blkrepl_context *ctx, struct lane *lane,
                                struct list *returned);
/* The first for what was completed inside a submit of this lane's thread. */
void blkrepl__lane_collect_frame(struct blkrepl_context *ctx, struct lane *lane,
                                 const struct host_frame *frame);

/* Put a completed request into its lane's inbox, and wake who sleeps on it.
 * Without a lock, or with the context's. */
void blkrepl__lane_pass_on(struct blkrepl_context *ctx, struct request *request);

/* Whether there is something for a poll that only the lane's lock guards. */
static inline bool lane_quick_waits(const struct lane *lane)
{
    return !list_empty(&lane->callbacks) || !list_empty(&lane->quick_queues) || lane->room_due ||
           lane->lead_over || !list_empty(&lane->arrived) || atomic_load(&lane->inbox) != NULL;
}

/* Wake the thread that sleeps on the lane; false if none does.  Without a lock. */
static inline bool lane_wake(struct lane *lane)
{
    bool sleeps = UNLIKELY(atomic_load(&lane->armed)) && atomic_exchange(&lane->armed, false);

    if (sleeps) {
        blkrepl__wake_signal(&lane->wake);
    }
    return sleeps;
}

#endif
