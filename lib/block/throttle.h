/* SPDX-License-Identifier: MIT */
/* throttle.h - a limit that images and jobs share, and the row of those who wait.
 *
 * All with the context's lock; once the context is shut nobody waits.  Who wants to do
 * something asks with throttle_pass(): if it may, what it is about to do has been taken;
 * otherwise it is in the row, as the struct ready that it gave, and is woken when it comes
 * to be the first and nothing is owed: what it wanted has been taken for it by then.
 *
 * refs: the handle, images, jobs. */
#ifndef BLKREPL_BLOCK_THROTTLE_H
#define BLKREPL_BLOCK_THROTTLE_H

#include "core/context.h"
#include "data/ratelimit.h"
#include <libblkrepl/throttle.h>

struct throttle_waiter {
    struct ready ready; /* in the row, or on the context's ready list */
    uint64_t bytes;
    bool waits; /* in the row; changed by throttle.c only, false at first */
};

struct blkrepl_throttle {
    /* Set once. */
    struct blkrepl_context *ctx;
    uint64_t id;
    struct list link; /* on the context's throttles */
    /* Changed under the lock. */
    uint32_t refs;
    blkrepl_throttle_options limits;
    struct ratelimit bytes;
    struct ratelimit ops;
    struct list row; /* struct throttle_waiter.ready.link */
    uint32_t waiting;
    uint64_t since_ns; /* when the row came to be: nobody in it was due before */
    struct timer timer;
    uint64_t bytes_passed;
    uint64_t ops_passed;
    uint64_t ops_delayed;
};

void blkrepl__throttle_ref(struct blkrepl_throttle *throttle);
void blkrepl__throttle_unref(struct blkrepl_throttle *throttle); /* NULL: nothing */

/* Whether one operation of waiter->bytes may be done now; otherwise the waiter (ready.run
 * set) is in the row, and runs when it may. */
bool blkrepl__throttle_pass(struct blkrepl_throttle *throttle, struct throttle_waiter *waiter);
/* One operation that is not delayed. */
void blkrepl__throttle_take(struct blkrepl_throttle *throttle, uint64_t bytes);
/* The waiter waits no more (it may not be in the row at all, and the throttle may be
 * NULL then): it does not run.  If it was let through already, that stays counted. */
void blkrepl__throttle_leave(struct blkrepl_throttle *throttle, struct throttle_waiter *waiter);

#endif
