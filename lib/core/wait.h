/* SPDX-License-Identifier: MIT */
/* wait.h - threads that sleep until something of theirs is over.
 *
 * Whoever waits polls the lane if nobody does (leads); the others sleep.  Who
 * stops polling a lane wakes the first sleeper, who leads from then on. */
#ifndef BLKREPL_CORE_WAIT_H
#define BLKREPL_CORE_WAIT_H

#include "core/context.h"

struct waiter {
    struct list link; /* on its lane's list of waiters */
    struct list room; /* on its lane's list of those who want a request slot */
    struct blkrepl_context *ctx;
    struct lane *lane;
    pthread_cond_t wake; /* with the lane's lock */
    bool done;
    int result;
};

/* Whether this thread may wait in this context.
 * Returns: 0; -EDEADLK; -EINVAL the host's clock would have to be waited for, or
 *          ctx is NULL. */
int blkrepl__wait_allowed(const struct blkrepl_context *ctx);

/* Returns: 0; -ENOMEM. */
int blkrepl__waiter_init(struct waiter *waiter, struct blkrepl_context *ctx, uint32_t lane);
void blkrepl__waiter_fini(struct waiter *waiter);

/* What the waiter waits for is over; a completion's function. */
void blkrepl__waiter_done(void *waiter, int result);

/* Wait until it is over.
 * Returns: the result. */
int blkrepl__wait(struct waiter *waiter);
/* Wait until the lane may have a free request slot. */
void blkrepl__wait_room(struct waiter *waiter);
/* It has waited for room and was refused after all: the room is the next one's. */
void blkrepl__wait_room_refused(struct waiter *waiter);
/* The lane has a slot for the first who waits for one.  With the lane's lock. */
void blkrepl__waiter_room(struct lane *lane);

/* This thread begins to poll the lane, which is free.  With the lane's lock. */
void blkrepl__lane_poll_begin(struct lane *lane);
/* It stops.  Without the lane's lock; unless the context's is held, this is the
 * last touch of the context. */
void blkrepl__lane_poll_end(struct lane *lane);

#endif
