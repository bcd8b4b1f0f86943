/* SPDX-License-Identifier: MIT */
/* wait.c - threads that sleep until something of theirs is over. */
#include "core/wait.h"

#include <errno.h>

#include "core/error.h"
#include "core/lane.h"

int blkrepl__wait_allowed(const struct blkrepl_context *ctx)
{
    if (ctx == NULL) {
        return blkrepl__fail(-EINVAL, "image is NULL");
    }
    if (blkrepl__host_inside(ctx)) {
        return blkrepl__fail(-EDEADLK, "wait: called from inside a callback, backend or hook");
    }
    if (ctx->hooks.clock_ns != NULL) {
        return blkrepl__fail(-EINVAL, "wait: with a clock of the host nothing can be waited for");
    }
    return 0;
}

int blkrepl__waiter_init(struct waiter *waiter, struct blkrepl_context *ctx, uint32_t lane)
{
    if (!blkrepl__lane_valid(ctx, lane)) {
        return -EINVAL;
    }
    *waiter = (struct waiter){.ctx = ctx, .lane = &ctx->lanes[lane]};
    if (pthread_cond_init(&waiter->wake, NULL) != 0) {
        return blkrepl__fail(-ENOMEM, "wait: no memory");
    }
    atomic_fetch_add_explicit(&waiter->lane->blocked, 1, memory_order_acquire);
    return 0;
}

void blkrepl__waiter_fini(struct waiter *waiter)
{
    pthread_cond_destroy(&waiter->wake);
    /* The last touch: from here on the context may be freed. */
    atomic_fetch_sub_explicit(&waiter->lane->blocked, 1, memory_order_release);
}

void blkrepl__waiter_done(void *user, int result)
{
    struct waiter *waiter = user;
    struct lane *lane = waiter->lane;

    pthread_mutex_lock(&lane->lock);
    waiter->result = result;
    waiter->done = true;
    pthread_cond_signal(&waiter->wake);
    pthread_mutex_unlock(&lane->lock);
}

/* Its poll is over, and another waiter may lead already: what that one is told stays. */
static void wait_lead_end(const struct waiter *waiter)
{
    struct lane *lane = waiter->lane;

    if (lane->leader == waiter) {
        lane->leader = NULL;
        lane->lead_over = false;
    }
}

/* Sleep while somebody polls, poll while nobody does; with the lane's lock. */
static void wait_until_done(struct waiter *waiter)
{
    struct lane *lane = waiter->lane;
    uint32_t number = (uint32_t)(lane - waiter->ctx->lanes);

    list_append(&lane->waiters, &waiter->link);
    while (!waiter->done) {
        unsigned polled = LANE_POLLED;

        if (atomic_load(&lane->polling) == LANE_FREE) {
            /* The lane's lock is kept until this poll has begun: nobody else's may
             * end what this thread then sleeps for. */
            lane->leader = waiter;
            lane->lead_over = false;
            blkrepl__poll_lead(waiter->ctx, number);
            wait_lead_end(waiter);
        } else if (atomic_compare_exchange_strong(&lane->polling, &polled, LANE_AWAITED) ||
                   polled == LANE_AWAITED) {
            pthread_cond_wait(&waiter->wake, &lane->lock);
        }
    }
    list_remove(&waiter->link);
}

int blkrepl__wait(struct waiter *waiter)
{
    pthread_mutex_lock(&waiter->lane->lock);
    wait_until_done(waiter);
    pthread_mutex_unlock(&waiter->lane->lock);
    return waiter->result;
}

void blkrepl__wait_room(struct waiter *waiter)
{
    struct lane *lane = waiter->lane;

    pthread_mutex_lock(&lane->lock);
    waiter->done = lane->requests.used < lane->requests.count;
    if (!waiter->done) {
        list_append(&lane->room_waiters, &waiter->room);
        wait_until_done(waiter);
    }
    waiter->done = false;
    pthread_mutex_unlock(&lane->lock);
}

void blkrepl__waiter_room(struct lane *lane)
{
    struct waiter *waiter = CONTAINER_OF(list_pop(&lane->room_waiters), struct waiter, room);

    waiter->done = true;
    pthread_cond_signal(&waiter->wake);
    if (lane->leader == waiter) { /* the slot may be freed outside of its poll */
        lane->lead_over = true;
        lane_wake(lane);
    }
}

void blkrepl__wait_room_refused(struct waiter *waiter)
{
    struct lane *lane = waiter->lane;

    pthread_mutex_lock(&lane->lock);
    if (lane->requests.used < lane->requests.count && !list_empty(&lane->room_waiters)) {
        blkrepl__waiter_room(lane);
    }
    pthread_mutex_unlock(&lane->lock);
}

void blkrepl__lane_poll_begin(struct lane *lane)
{
    atomic_store(&lane->polling, list_empty(&lane->waiters) ? LANE_POLLED : LANE_AWAITED);
}

/* The first who still waits. */
static void wait_wake_leader(struct lane *lane)
{
    struct list *link = lane->waiters.next;

    while (link != &lane->waiters && CONTAINER_OF(link, struct waiter, link)->done) {
        link = link->next;
    }
    if (link != &lane->waiters) {
        pthread_cond_signal(&CONTAINER_OF(link, struct waiter, link)->wake);
    }
}

void blkrepl__lane_poll_end(struct lane *lane)
{
    unsigned polled = LANE_POLLED;

    if (LIKELY(atomic_compare_exchange_strong_explicit(
            &lane->polling, &polled, LANE_FREE, memory_order_acq_rel, memory_order_acquire))) {
        return; /* from here on the context may be freed */
    }
    pthread_mutex_lock(&lane->lock);
    atomic_store(&lane->polling, LANE_FREE);
    wait_wake_leader(lane);
    pthread_mutex_unlock(&lane->lock);
}
