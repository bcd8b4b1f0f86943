/* SPDX-License-Identifier: MIT */
/* port_quick.c - the quick way through a port. */
#include "core/port_quick.h"

#include "base/hook.h"

#define BATCH_MAX 32
/* Batches that one call gives away before it leaves the rest to a poll. */
#define ROUNDS_MAX 64
/* Places that a lane keeps at most. */
#define PLACES_KEPT 16

bool blkrepl__port_place_take(struct port_queue *queue)
{
    atomic_uint *places = &queue->port->places;
    uint32_t free = atomic_load_explicit(places, memory_order_relaxed);

    if (queue->places > 0) {
        queue->places--;
        return true;
    }
    while (free > 0 && !atomic_compare_exchange_weak_explicit(
                           places, &free, free - 1, memory_order_relaxed, memory_order_relaxed)) {
    }
    return free > 0;
}

void blkrepl__port_place_put(struct port_queue *queue)
{
    if (queue->places < queue->port->places_kept) {
        queue->places++;
    } else {
        atomic_fetch_add_explicit(&queue->port->places, 1, memory_order_relaxed);
    }
}

/* Make up to BATCH_MAX requests live. */
static uint32_t quick_take_batch(struct port_queue *queue, blkrepl_io **ios)
{
    uint32_t count = 0;

    while (count < BATCH_MAX && !list_empty(&queue->quick) && !(count > 0 && STRETCH(BATCH))) {
        struct request *request = CONTAINER_OF(list_pop(&queue->quick), struct request, link);

        request->queued = false;
        request->io.id = blkrepl__request_new_id(request);
        atomic_store_explicit(&request->live_id, request->io.id, memory_order_release);
        ios[count++] = &request->io;
    }
    return count;
}

/* One batch to the backend; drops and retakes the lane's lock. */
static void quick_flush_batch(struct blkrepl_context *ctx, struct lane *lane,
                              struct port_queue *queue)
{
    const struct port *port = queue->port;
    blkrepl_io *ios[BATCH_MAX];
    struct host_frame frame;
    uint32_t count = quick_take_batch(queue, ios);

    pthread_mutex_unlock(&lane->lock);
    blkrepl__host_enter(&frame, ctx);
    frame.submitting = true;
    port->ops.submit(port->backend, queue->lane, ios, count);
    blkrepl__host_leave(&frame);
    pthread_mutex_lock(&lane->lock);
    RECORD(BACK, queue->lane);
    blkrepl__lane_collect_frame(ctx, lane, &frame);
}

/* The image has been turned to the slow way while this thread was inside its
 * backend: it is a thread of the slow way from now on. */
static void quick_left(struct blkrepl_context *ctx, struct lane *lane, struct port_queue *queue)
{
    uint32_t number = queue->lane;

    pthread_mutex_unlock(&lane->lock);
    blkrepl__enter(ctx);
    blkrepl__port_let_go(queue);
    blkrepl__leave(ctx, number);
    pthread_mutex_lock(&lane->lock);
}

/* Give away what is queued, within the bound. */
static void quick_flush(struct blkrepl_context *ctx, struct lane *lane, struct port_queue *queue)
{
    struct port *port = queue->port;
    int round = 0;

    atomic_store(&queue->held, true);
    while (!list_empty(&queue->quick) && round++ < ROUNDS_MAX && !STRETCH(OUTBOX)) {
        quick_flush_batch(ctx, lane, queue);
    }
    if (!atomic_load(&port->quick)) {
        quick_left(ctx, lane, queue);
        return;
    }
    atomic_store(&queue->held, false);
    if (!list_empty(&queue->quick)) {
        list_append(&lane->quick_queues, &queue->quick_link);
    }
}

void blkrepl__port_submit_quick(struct blkrepl_context *ctx, struct port_queue *queue,
                                struct request *request)
{
    struct lane *lane = &ctx->lanes[queue->lane];

    CHECK(!request->queued);
    request->port = queue->port;
    request->job = false;
    request->queued = true;
    request->io.struct_size = sizeof request->io;
    request->io.lane = queue->lane;
    list_append(&queue->quick, &request->link);
    if (!atomic_load(&queue->held) && !list_linked(&queue->quick_link)) {
        quick_flush(ctx, lane, queue);
    }
}

void blkrepl__port_flush_quick(struct blkrepl_context *ctx, struct lane *lane)
{
    struct list now;
    struct list *link;

    if (LIKELY(list_empty(&lane->quick_queues))) {
        return;
    }
    list_init(&now);
    list_splice(&now, &lane->quick_queues);
    while ((link = list_pop(&now)) != NULL) {
        quick_flush(ctx, lane, CONTAINER_OF(link, struct port_queue, quick_link));
    }
}

void blkrepl__port_quick_begin(struct port *port, uint32_t in_flight)
{
    uint32_t depth = port->info.queue_depth;
    uint32_t kept = depth / (4 * port->ctx->lane_count);

    port->places_kept = kept < 1 ? 1 : kept > PLACES_KEPT ? PLACES_KEPT : kept;
    atomic_store(&port->places, depth - in_flight);
}

void blkrepl__port_quick_absorb(struct port *port, struct request *request)
{
    if (request->queued) {
        struct port_queue *queue = &port->guest[request->io.lane];

        list_remove(&request->link);
        request->queued = false;
        blkrepl__port_submit_guest(port, request, queue->lane);
    } else {
        port->guest_in_flight++;
    }
}

void blkrepl__port_quick_end(struct port_queue *queue)
{
    CHECK(list_empty(&queue->quick));
    list_unlink(&queue->quick_link);
    queue->places = 0;
}
