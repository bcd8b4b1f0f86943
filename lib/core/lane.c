/* SPDX-License-Identifier: MIT */
/* lane.c - what a lane can do with its own lock alone. */
#include "core/lane.h"

#include <errno.h>

#include "base/hook.h"
#include "core/wait.h"

int blkrepl__lane_init(struct lane *lane, struct request *slots, uint32_t first, uint32_t count)
{
    int rc;

    blkrepl__request_pool_init(&lane->requests, slots, first, count);
    list_init(&lane->callbacks);
    list_init(&lane->events);
    list_init(&lane->queues);
    list_init(&lane->quick);
    list_init(&lane->quick_queues);
    list_init(&lane->arrived);
    list_init(&lane->returned);
    list_init(&lane->waiters);
    list_init(&lane->room_waiters);
    if (pthread_mutex_init(&lane->lock, NULL) != 0) {
        return -ENOMEM;
    }
    rc = blkrepl__wake_init(&lane->wake);
    if (rc < 0) {
        pthread_mutex_destroy(&lane->lock);
    }
    return rc;
}

void blkrepl__lane_fini(struct lane *lane)
{
    blkrepl__wake_fini(&lane->wake);
    pthread_mutex_destroy(&lane->lock);
}

void blkrepl__lane_callback(struct lane *lane, struct callback *callback)
{
    pthread_mutex_lock(&lane->lock);
    list_append(&lane->callbacks, &callback->link);
    pthread_mutex_unlock(&lane->lock);
}

void blkrepl__lane_uncallback(struct lane *lane, struct callback *callback)
{
    pthread_mutex_lock(&lane->lock);
    list_unlink(&callback->link);
    pthread_mutex_unlock(&lane->lock);
}

enum lane_deliver blkrepl__lane_deliver(struct lane *lane, struct delivery *out, bool first)
{
    struct callback *callback;
    bool alone;

    pthread_mutex_lock(&lane->lock);
    callback = CONTAINER_OF(lane->callbacks.next, struct callback, link);
    if (list_empty(&lane->callbacks) || (callback->alone && !first)) {
        pthread_mutex_unlock(&lane->lock);
        return DELIVER_NONE;
    }
    alone = callback->alone; /* deliver may free the callback */
    list_remove(&callback->link);
    if (callback->quick) {
        callback->deliver(callback, out);
        pthread_mutex_unlock(&lane->lock);
    } else {
        pthread_mutex_unlock(&lane->lock);
        callback->deliver(callback, out);
    }
    return alone ? DELIVER_ALONE : DELIVER_ONE;
}

int blkrepl__lane_deliver_quick(struct lane *lane, struct delivery *out, int most)
{
    int count = 0;

    while (count < most && !list_empty(&lane->callbacks)) {
        struct callback *callback = CONTAINER_OF(lane->callbacks.next, struct callback, link);

        if (!callback->quick) {
            break;
        }
        list_remove(&callback->link);
        callback->deliver(callback, &out[count++]);
    }
    return count;
}

struct request *blkrepl__lane_slot_take(struct lane *lane)
{
    return blkrepl__request_take(&lane->requests);
}

/* The event ROOM is to be posted by the next poll. */
static void lane_room_due(struct lane *lane)
{
    lane->room_wanted = false;
    lane->room_due = true;
    atomic_store(&lane->slow_due, true);
}

void blkrepl__lane_slot_put(struct lane *lane, struct request *request)
{
    blkrepl__request_put(&lane->requests, request);
    if (UNLIKELY(!list_empty(&lane->room_waiters))) {
        blkrepl__waiter_room(lane);
    }
    if (UNLIKELY(lane->room_wanted)) {
        lane_room_due(lane);
    }
}

void blkrepl__lane_want_room(struct lane *lane)
{
    pthread_mutex_lock(&lane->lock);
    lane->room_wanted = true;
    /* The last slots may have come free since the look, and none ever after. */
    if (lane->requests.used < lane->requests.count) {
        lane_room_due(lane);
    }
    pthread_mutex_unlock(&lane->lock);
}

/* One request that its backend has completed. */
static void lane_end_request(struct lane *lane, struct request *request)
{
    if (atomic_load_explicit(&request->quick, memory_order_relaxed)) {
        request->quick_ended(request);
    } else {
        list_append(&lane->returned, &request->link);
    }
}

/* Call for an entry that takes what is returned. */
static void lane_call_for_slow(struct blkrepl_context *ctx, const struct lane *lane)
{
    if (UNLIKELY(!list_empty(&lane->returned))) {
        atomic_store(&ctx->attention, true);
    }
}

/* Take the inbox, oldest first, behind those that wait. */
static void lane_take_inbox(struct lane *lane)
{
    struct request *request = atomic_exchange(&lane->inbox, NULL);
    struct request *oldest = NULL;

    while (request != NULL) {
        struct request *next = request->inbox_next;

        request->inbox_next = oldest;
        oldest = request;
        request = next;
    }
    for (request = oldest; request != NULL; request = request->inbox_next) {
        list_append(&lane->arrived, &request->link);
    }
}

/* End what was completed, within the bound. */
static void lane_collect(struct blkrepl_context *ctx, struct lane *lane)
{
    /* Who turns an image has cleared `quick` of its requests, and then looks here; who
     * completes one does it the other way round: one of them sees the other. */
    if (atomic_load(&lane->inbox) != NULL) {
        lane_take_inbox(lane);
    }
    for (uint32_t i = 0; !list_empty(&lane->arrived); i++) {
        if (i == ctx->completions_max || STRETCH(INBOX)) {
            atomic_store(&ctx->recorded, true);  /* a poll of lane 0, if nobody else comes */
            atomic_store(&ctx->attention, true); /* the next entry goes on */
            return;
        }
        lane_end_request(lane, CONTAINER_OF(list_pop(&lane->arrived), struct request, link));
    }
}

void blkrepl__lane_collect(struct blkrepl_context *ctx, struct lane *lane)
{
    lane_collect(ctx, lane);
    lane_call_for_slow(ctx, lane);
}

void blkrepl__lane_collect_slow(struct blkrepl_context *ctx, struct lane *lane,
                                struct list *returned)
{
    pthread_mutex_lock(&lane->lock);
    lane_collect(ctx, lane);
    list_splice(returned, &lane->returned);
    pthread_mutex_unlock(&lane->lock);
}

void blkrepl__lane_pass_on(struct blkrepl_context *ctx, struct request *request)
{
    struct lane *lane = &ctx->lanes[request->io.lane];
    bool others;

    request->inbox_next = atomic_load_explicit(&lane->inbox, memory_order_relaxed);
    while (!atomic_compare_exchange_weak(&lane->inbox, &request->inbox_next, request)) {
    }
    /* If the slot is somebody else's by now the request has been seen to. */
    others = !atomic_load(&request->quick);
    if (others) {
        atomic_store(&ctx->recorded, true);
        atomic_store(&ctx->attention, true);
        others = atomic_load(&request->awaited) || atomic_load(&ctx->starved) > 0;
    }
    if (!lane_wake(lane) && others) {
        lane_wake(&ctx->lanes[0]); /* nobody may ever come for this lane */
    }
}

void blkrepl__lane_collect_frame(struct blkrepl_context *ctx, struct lane *lane,
                                 const struct host_frame *frame)
{
    struct request *request = frame->first;

    while (request != NULL) {
        struct request *next = request->inbox_next;

        if (&ctx->lanes[request->io.lane] == lane) {
            lane_end_request(lane, request);
        } else {
            blkrepl__lane_pass_on(ctx, request);
        }
        request = next;
    }
    lane_call_for_slow(ctx, lane);
}
