/* SPDX-License-Identifier: MIT */
/* port.c - the door to one backend. */
#include "core/port.h"

#include "base/hook.h"
#include "core/context.h"

#define BATCH_MAX 32
/* For how many polls a job leaves the only place at a backend to guests. */
#define YIELDS_MAX 64

static void port_queue_init(struct port_queue *queue, struct port *port, struct list *ready_list)
{
    queue->port = port;
    queue->ready_list = ready_list;
    list_init(&queue->waiting);
    list_init(&queue->first);
    list_init(&queue->quick);
}

void blkrepl__port_init(struct port *port, struct blkrepl_context *ctx, struct port_queue *guest)
{
    port->ctx = ctx;
    port->guest = guest;
    for (uint32_t lane = 0; lane < ctx->lane_count; lane++) {
        port_queue_init(&guest[lane], port, &ctx->lanes[lane].queues);
        guest[lane].lane = lane;
    }
    port_queue_init(&port->job, port, &ctx->job_queues);
    port->job.job = true;
    ctx->ports++;
}

static uint32_t port_in_flight(const struct port *port)
{
    return port->guest_in_flight + port->job_in_flight;
}

static bool port_queue_waiting(const struct port_queue *queue)
{
    return !list_empty(&queue->waiting) || !list_empty(&queue->first);
}

/* Whether jobs leave the only place to a guest of another lane. */
static bool port_yields(const struct port *port)
{
    return port->guest_waiting > 0 && port->info.queue_depth == 1 && port->yields < YIELDS_MAX;
}

/* How many more requests of this queue the backend may get now. */
static uint32_t port_room(const struct port_queue *queue)
{
    const struct port *port = queue->port;
    uint32_t depth = port->info.queue_depth;
    uint32_t room = depth - port_in_flight(port);
    uint32_t share;

    if (!queue->job) {
        return room;
    }
    if (port_queue_waiting(&port->guest[0]) || port_yields(port)) {
        return 0;
    }
    share = port->guest_in_flight + port->guest_waiting > 0 && depth > 1 ? depth / 2 : depth;
    if (port->job_in_flight >= share) {
        return 0;
    }
    return room < share - port->job_in_flight ? room : share - port->job_in_flight;
}

/* Put a link on a list, or take it off. */
static void port_place(struct list *link, struct list *list, bool there)
{
    if (there && !list_linked(link)) {
        list_append(list, link);
    } else if (!there) {
        list_unlink(link);
    }
}

/* Who completes a request wakes a sleeper of lane 0 while some queue waits for a
 * place. */
static void port_count_starved(struct port_queue *queue, bool starved)
{
    if (queue->starved != starved) {
        queue->starved = starved;
        atomic_fetch_add(&queue->port->ctx->starved, starved ? 1u : UINT32_MAX);
    }
}

/* Put the queue on the lists where invariant 4 wants it. */
static void port_kick(struct port_queue *queue)
{
    const struct port *port = queue->port;
    bool waits = !atomic_load(&queue->held) && port_queue_waiting(queue);
    bool ready = waits && port_room(queue) > 0;

    port_place(&queue->link, queue->ready_list, ready);
    port_count_starved(queue, waits && !ready);
    if (queue->job) {
        port_place(&queue->aside, &port->ctx->yielding,
                   waits && !ready && port_yields(port) && port_in_flight(port) == 0);
    } else if (queue->lane > 0) {
        port_place(&queue->aside, &port->ctx->strays, ready && !list_empty(&queue->first));
    }
}

/* The same for all queues; those that are empty are off their lists already. */
static void port_kick_all(struct port *port)
{
    for (uint32_t lane = 0; port->guest_waiting > 0 && lane < port->ctx->lane_count; lane++) {
        port_kick(&port->guest[lane]);
    }
    if (port_queue_waiting(&port->job)) {
        port_kick(&port->job);
    }
}

static void port_prepare(struct port *port, struct request *request, uint32_t lane)
{
    CHECK(!request->queued);
    request->port = port;
    request->queued = true;
    request->io.struct_size = sizeof request->io;
    request->io.lane = lane;
    for (size_t i = 0; i < ARRAY_COUNT(request->io.host); i++) {
        request->io.host[i] = NULL;
    }
}

/* Put a request into a guest queue. */
static void port_queue_guest(struct port_queue *queue, struct list *list, struct request *request)
{
    struct port *port = queue->port;

    list_append(list, &request->link);
    port->guest_waiting++;
    port_kick(queue);
    if (port_queue_waiting(&port->job)) {
        port_kick(&port->job);
    }
}

void blkrepl__port_submit_guest(struct port *port, struct request *request, uint32_t lane)
{
    port_prepare(port, request, lane);
    request->job = false;
    port_queue_guest(&port->guest[lane], &port->guest[lane].waiting, request);
}

void blkrepl__port_submit_read(struct port *port, struct request *request, uint32_t lane)
{
    port_prepare(port, request, lane);
    request->job = false;
    atomic_store(&request->awaited, true);
    port_queue_guest(&port->guest[lane], &port->guest[lane].first, request);
}

void blkrepl__port_submit_job(struct port *port, struct request *request, bool urgent)
{
    port_prepare(port, request, 0);
    request->job = true;
    list_append(urgent ? &port->job.first : &port->job.waiting, &request->link);
    port_kick(&port->job);
}

void blkrepl__port_hasten(struct request *request)
{
    struct port *port = request->port;

    if (request->queued && request->io.lane > 0 && blkrepl__port_withdraw(request)) {
        request->queued = true;
        request->io.lane = 0;
        port_queue_guest(&port->guest[0], &port->guest[0].waiting, request);
    }
}

/* Reads of old data are wanted by a job too: they do not wait for their lane. */
static void port_take_strays(struct port_queue *queue)
{
    struct list reads;
    struct list *link;

    list_init(&reads);
    list_splice(&reads, &queue->first);
    while ((link = list_pop(&reads)) != NULL) {
        struct request *request = CONTAINER_OF(link, struct request, link);

        queue->port->guest_waiting--;
        request->io.lane = 0;
        port_queue_guest(&queue->port->guest[0], &queue->port->guest[0].first, request);
    }
    port_kick(queue);
}

void blkrepl__port_help_lanes(struct blkrepl_context *ctx)
{
    struct list now;
    struct list *link;

    list_init(&now);
    list_splice(&now, &ctx->yielding);
    while ((link = list_pop(&now)) != NULL) {
        struct port_queue *queue = CONTAINER_OF(link, struct port_queue, aside);

        queue->port->yields++;
        port_kick(queue);
    }
    while (!list_empty(&ctx->strays)) {
        port_take_strays(CONTAINER_OF(ctx->strays.next, struct port_queue, aside));
    }
}

/* The owner takes back what the backend has not got. */
bool blkrepl__port_withdraw(struct request *request)
{
    struct port *port = request->port;

    if (!request->queued) {
        return false;
    }
    list_remove(&request->link);
    request->queued = false;
    if (request->job) {
        port_kick(&port->job);
    } else {
        port->guest_waiting--;
        port_kick(&port->guest[request->io.lane]);
        port_kick_all(port);
    }
    return true;
}

static struct list *port_queue_pop(struct port_queue *queue)
{
    struct list *link = list_pop(&queue->first);

    return link != NULL ? link : list_pop(&queue->waiting);
}

/* Take up to BATCH_MAX requests off the queue and make them live. */
static uint32_t port_take_batch(struct port_queue *queue, blkrepl_io **ios)
{
    struct port *port = queue->port;
    uint32_t room = port_room(queue);
    uint32_t count = 0;

    while (count < BATCH_MAX && count < room && !(count > 0 && STRETCH(BATCH))) {
        struct list *link = port_queue_pop(queue);
        struct request *request;

        if (link == NULL) {
            break;
        }
        request = CONTAINER_OF(link, struct request, link);
        request->queued = false;
        request->io.id = blkrepl__request_new_id(request);
        atomic_store_explicit(&request->live_id, request->io.id, memory_order_release);
        ios[count++] = &request->io;
    }
    if (queue->job) {
        port->job_in_flight += count;
    } else {
        port->guest_in_flight += count;
        port->guest_waiting -= count;
    }
    port->yields = 0;
    return count;
}

void blkrepl__port_flush(struct port_queue *queue)
{
    struct port *port = queue->port;
    struct blkrepl_context *ctx = port->ctx;
    blkrepl_io *ios[BATCH_MAX];
    struct host_frame frame;
    uint32_t count;

    list_unlink(&queue->link);
    list_unlink(&queue->aside);
    count = port_take_batch(queue, ios); /* a ready queue is not starved */
    if (count > 0) {
        atomic_store(&queue->held, true);
        port->inside++;
        pthread_mutex_unlock(&ctx->lock);
        blkrepl__host_enter(&frame, ctx);
        frame.submitting = true;
        port->ops.submit(port->backend, queue->lane, ios, count);
        blkrepl__host_leave(&frame);
        pthread_mutex_lock(&ctx->lock);
        RECORD(BACK, queue->lane);
        blkrepl__collect_frame(ctx, &frame);
        port->inside--;
        atomic_store(&queue->held, false);
    }
    port_kick_all(port);
    blkrepl__port_check_close(port);
}

void blkrepl__port_cancel(struct request *request)
{
    struct port *port = request->port;
    uint64_t id = atomic_load_explicit(&request->live_id, memory_order_relaxed);
    struct blkrepl_context *ctx;
    struct host_frame frame;

    if (id == 0 || port->ops.cancel == NULL) {
        return;
    }
    ctx = port->ctx;
    request->cancelled_id = id;
    port->inside++;
    pthread_mutex_unlock(&ctx->lock);
    blkrepl__host_enter(&frame, ctx);
    port->ops.cancel(port->backend, id);
    blkrepl__host_leave(&frame);
    pthread_mutex_lock(&ctx->lock);
    RECORD(BACK, 0);
    port->inside--;
    blkrepl__port_check_close(port);
}

void blkrepl__port_ended(struct request *request)
{
    struct port *port = request->port;

    if (request->job) {
        port->job_in_flight--;
    } else {
        port->guest_in_flight--;
    }
    port_kick_all(port);
    blkrepl__port_check_close(port);
}

/* Whether a thread of the quick way is inside the backend. */
static bool port_held(const struct port *port)
{
    uint32_t lane = 0;

    while (lane < port->ctx->lane_count && !atomic_load(&port->guest[lane].held)) {
        lane++;
    }
    return lane < port->ctx->lane_count;
}

bool blkrepl__port_calm(const struct port *port, uint32_t in_flight)
{
    return port_in_flight(port) == in_flight && port->inside == 0 && port->guest_waiting == 0 &&
           !port_queue_waiting(&port->job) && !port_held(port);
}

void blkrepl__port_let_go(struct port_queue *queue)
{
    atomic_store(&queue->held, false);
    port_kick_all(queue->port);
    blkrepl__port_check_close(queue->port);
}

void blkrepl__port_check_close(struct port *port)
{
    if (port->dropped && !list_linked(&port->chore_link) && blkrepl__port_calm(port, 0)) {
        list_append(&port->ctx->closing, &port->chore_link);
    }
}

void blkrepl__port_drop(struct port *port)
{
    port->dropped = true;
    blkrepl__port_check_close(port);
}

void blkrepl__port_close(struct port *port)
{
    struct blkrepl_context *ctx = port->ctx;
    struct host_frame frame;

    list_unlink(&port->chore_link);
    pthread_mutex_unlock(&ctx->lock);
    if (port->ops.close != NULL) {
        blkrepl__host_enter(&frame, ctx);
        port->ops.close(port->backend);
        blkrepl__host_leave(&frame);
    }
    port->freed(port);
    pthread_mutex_lock(&ctx->lock);
    RECORD(BACK, 0);
    ctx->ports--;
}
