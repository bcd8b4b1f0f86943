/* SPDX-License-Identifier: MIT */
/* outbox.c - entering, advancing, and emptying the outbox.
 *
 * A call into the library is enter, some work on our state, leave.  Everything
 * that touches the host (submit, cancel, close, callbacks) happens in the
 * second half of leave or in a poll, with the lock dropped. */
#include <errno.h>

#include "base/hook.h"
#include "core/context.h"
#include "core/error.h"
#include "core/lane.h"

/* Batches and chores that one entry may give away before it leaves the rest to
 * a poll. */
#define OUTBOX_ROUNDS_MAX 64

static _Thread_local struct host_frame *host_frames;

void blkrepl__host_enter(struct host_frame *frame, const struct blkrepl_context *ctx)
{
    frame->ctx = ctx;
    frame->outer = host_frames;
    frame->submitting = false;
    frame->first = NULL;
    frame->last = NULL;
    blkrepl__error_keep(&frame->error);
    host_frames = frame;
}

void blkrepl__host_leave(struct host_frame *frame)
{
    host_frames = frame->outer;
    blkrepl__error_give_back(&frame->error);
}

bool blkrepl__host_inside(const struct blkrepl_context *ctx)
{
    const struct host_frame *frame = host_frames;

    while (frame != NULL && frame->ctx != ctx) {
        frame = frame->outer;
    }
    return frame != NULL || blkrepl__hook_depth > 0;
}

void blkrepl__host_release(const struct blkrepl_context *ctx, void (*release)(void *user),
                           void *user)
{
    struct host_frame frame;

    if (release != NULL) {
        blkrepl__host_enter(&frame, ctx);
        release(user);
        blkrepl__host_leave(&frame);
    }
}

void blkrepl__completion_release(const struct blkrepl_context *ctx, const blkrepl_completion *done)
{
    if (done != NULL) {
        blkrepl__host_release(ctx, done->release, done->user);
    }
}

void blkrepl__enter(struct blkrepl_context *ctx)
{
    blkrepl__error_begin();
    pthread_mutex_lock(&ctx->lock);
    RECORD(ENTER, 0);
    ctx->inside++;
}

/* Take what a lane's backends have completed and is not quick behind those that
 * wait. */
static void inbox_collect(struct blkrepl_context *ctx, struct lane *lane, bool attention)
{
    if (!attention && atomic_load_explicit(&lane->inbox, memory_order_relaxed) == NULL) {
        return;
    }
    blkrepl__lane_collect_slow(ctx, lane, &ctx->completed);
}

/* One of those that became ready; false if there is none. */
static bool advance_ready(struct blkrepl_context *ctx)
{
    struct list *link = list_pop(&ctx->ready);

    if (link != NULL) {
        struct ready *ready = CONTAINER_OF(link, struct ready, link);

        if (STRETCH(READY)) {
            list_append(&ctx->ready, link);
        } else {
            ready->run(ready);
        }
    }
    return link != NULL;
}

/* It was completed inside a submit of the slow way, or its image has gone back to the
 * quick way after a lane had collected it. */
static void advance_quick(struct blkrepl_context *ctx, struct request *request)
{
    struct lane *lane = &ctx->lanes[request->io.lane];

    pthread_mutex_lock(&lane->lock);
    request->quick_ended(request);
    pthread_mutex_unlock(&lane->lock);
}

/* One of the completed requests; false if there is none.  Which way it goes is decided
 * here, where nobody can turn it. */
static bool advance_completed(struct blkrepl_context *ctx)
{
    struct list *link = list_pop(&ctx->completed);

    if (link != NULL) {
        struct request *request = CONTAINER_OF(link, struct request, link);

        if (STRETCH(COMPLETED)) {
            list_append(&ctx->completed, link);
        } else if (UNLIKELY(atomic_load(&request->quick))) {
            advance_quick(ctx, request);
        } else {
            blkrepl__port_ended(request);
            request->ended(request);
        }
    }
    return link != NULL;
}

static void advance_some(struct blkrepl_context *ctx);

/* Whether a completion was recorded in some inbox. */
static bool inbox_any(const struct blkrepl_context *ctx)
{
    for (uint32_t i = 0; i < ctx->lane_count; i++) {
        if (atomic_load_explicit(&ctx->lanes[i].inbox, memory_order_relaxed) != NULL) {
            return true;
        }
    }
    return false;
}

/* Whether every entry has something to advance. */
static bool advance_due(const struct blkrepl_context *ctx)
{
    return !list_empty(&ctx->ready) || !list_empty(&ctx->completed) ||
           !list_empty(&ctx->timers.timers);
}

void blkrepl__advance(struct blkrepl_context *ctx)
{
    if (advance_due(ctx) || inbox_any(ctx) ||
        atomic_load_explicit(&ctx->attention, memory_order_relaxed)) {
        advance_some(ctx);
    }
}

static void advance_some(struct blkrepl_context *ctx)
{
    bool attention = false;

    /* What is recorded after this calls for attention again. */
    if (atomic_load_explicit(&ctx->attention, memory_order_relaxed)) {
        /* In the other order than they are set: `recorded` is never left alone. */
        attention = atomic_exchange(&ctx->attention, ctx->shut);
        atomic_store(&ctx->recorded, false);
    }
    for (uint32_t i = 0; i < ctx->lane_count; i++) {
        inbox_collect(ctx, &ctx->lanes[i], attention);
    }
    if (UNLIKELY(blkrepl__timer_next(&ctx->timers) != BLKREPL_FOREVER) && !STRETCH(TIMER)) {
        blkrepl__timer_run(&ctx->timers, blkrepl__now(ctx), ctx->completions_max);
    }
    for (uint32_t i = 0; i < ctx->completions_max && !STRETCH(ADVANCE); i++) {
        /* In turns: what makes itself ready again does not hold up the rest. */
        bool ready = advance_ready(ctx);
        bool completed = advance_completed(ctx);

        if (!ready && !completed) {
            return;
        }
    }
}

void blkrepl__collect_frame(struct blkrepl_context *ctx, const struct host_frame *frame)
{
    struct request *request = frame->first;

    while (request != NULL) {
        struct request *next = request->inbox_next;

        list_append(&ctx->completed, &request->link);
        request = next;
    }
}

/* One call into the host; false if none is due. */
static bool outbox_one(struct blkrepl_context *ctx, uint32_t lane, bool jobs, bool closing)
{
    struct list *link;

    if (!list_empty(&ctx->lanes[lane].queues)) {
        link = ctx->lanes[lane].queues.next;
        blkrepl__port_flush(CONTAINER_OF(link, struct port_queue, link));
    } else if (!list_empty(&ctx->chores)) {
        struct chore *chore = CONTAINER_OF(list_pop(&ctx->chores), struct chore, link);

        chore->run(chore);
    } else if (jobs && !list_empty(&ctx->job_queues)) {
        link = ctx->job_queues.next;
        blkrepl__port_flush(CONTAINER_OF(link, struct port_queue, link));
    } else if (closing && !list_empty(&ctx->closing) && !STRETCH(CLOSE)) {
        link = ctx->closing.next;
        blkrepl__port_close(CONTAINER_OF(link, struct port, chore_link));
    } else {
        return false;
    }
    return true;
}

void blkrepl__empty_outbox(struct blkrepl_context *ctx, uint32_t lane, enum outbox_part part)
{
    bool jobs = part == OUTBOX_POLL && lane == 0;
    bool closing = part == OUTBOX_CLOSE || jobs;

    for (int round = 0; round < OUTBOX_ROUNDS_MAX; round++) {
        if (STRETCH(OUTBOX) || !outbox_one(ctx, lane, jobs, closing)) {
            return;
        }
        /* The backend may have completed inside submit. */
        blkrepl__advance(ctx);
    }
}

/* Whether a poll of the lane has something to do that the context's lock guards. */
static bool lane_slow_waits(const struct blkrepl_context *ctx, uint32_t number)
{
    const struct lane *lane = &ctx->lanes[number];

    if (!list_empty(&lane->events) || !list_empty(&lane->queues) || (lane->kicked && !lane->led)) {
        return true;
    }
    return number == 0 &&
           (!list_empty(&ctx->machines) || !list_empty(&ctx->job_queues) ||
            !list_empty(&ctx->yielding) || !list_empty(&ctx->strays) || !list_empty(&ctx->ready) ||
            !list_empty(&ctx->completed) || !list_empty(&ctx->chores) ||
            !list_empty(&ctx->closing) || log_waiting(&ctx->log) || atomic_load(&ctx->recorded));
}

bool blkrepl__lane_busy(struct blkrepl_context *ctx, uint32_t number)
{
    struct lane *lane = &ctx->lanes[number];
    bool quick;

    pthread_mutex_lock(&lane->lock);
    quick = lane_quick_waits(lane);
    pthread_mutex_unlock(&lane->lock);
    return quick || lane_slow_waits(ctx, number);
}

/* Whether somebody sleeps who should not; disarms, so that one thread wakes. */
static bool lane_must_wake(struct blkrepl_context *ctx, uint32_t number)
{
    struct lane *lane = &ctx->lanes[number];

    if (LIKELY(!atomic_load_explicit(&lane->armed, memory_order_relaxed))) {
        return false;
    }
    /* Timers are lane 0's: another lane has not been told of any deadline. */
    if (!blkrepl__lane_busy(ctx, number) &&
        (number > 0 || blkrepl__timer_next(&ctx->timers) >= lane->armed_deadline_ns)) {
        return false;
    }
    return atomic_exchange(&lane->armed, false);
}

void blkrepl__leave(struct blkrepl_context *ctx, uint32_t lane)
{
    blkrepl__advance(ctx);
    blkrepl__empty_outbox(ctx, lane, OUTBOX_CALL);
    blkrepl__leave_quietly(ctx);
}

/* Tell the quick way what it has to leave to the slow one. */
static void leave_word(struct blkrepl_context *ctx, uint32_t number)
{
    struct lane *lane = &ctx->lanes[number];
    bool due = lane_slow_waits(ctx, number);

    if (due != atomic_load_explicit(&lane->slow_due, memory_order_relaxed)) {
        pthread_mutex_lock(&lane->lock);
        atomic_store(&lane->slow_due, due || lane->room_due);
        pthread_mutex_unlock(&lane->lock);
    }
}

void blkrepl__wake_sleepers(struct blkrepl_context *ctx)
{
    if (UNLIKELY(advance_due(ctx) || !list_empty(&ctx->chores))) {
        atomic_store(&ctx->attention, true);
    }
    for (uint32_t i = 0; i < ctx->lane_count; i++) {
        leave_word(ctx, i);
        if (UNLIKELY(lane_must_wake(ctx, i))) {
            pthread_mutex_unlock(&ctx->lock);
            blkrepl__wake_signal(&ctx->lanes[i].wake);
            pthread_mutex_lock(&ctx->lock);
            RECORD(BACK, i);
        }
    }
}

void blkrepl__leave_quietly(struct blkrepl_context *ctx)
{
    blkrepl__wake_sleepers(ctx);
    ctx->inside--;
    pthread_mutex_unlock(&ctx->lock);
}

/* The backend completes inside submit: this thread collects what it completes
 * and handles it when it is back. */
static int io_complete_inside(struct host_frame *frame, struct request *request, uint64_t id,
                              int result)
{
    uint64_t expected = id;

    if (!atomic_compare_exchange_strong_explicit(&request->live_id, &expected, 0,
                                                 memory_order_acq_rel, memory_order_relaxed)) {
        return blkrepl__fail(-ENOENT, "io: the request is not in flight");
    }
    request->io_result = result;
    request->inbox_next = NULL;
    if (frame->last != NULL) {
        frame->last->inbox_next = request;
    } else {
        frame->first = request;
    }
    frame->last = request;
    return 0;
}

int blkrepl_io_complete(blkrepl_context *ctx, uint64_t id, int result)
{
    uint64_t index = id & REQUEST_INDEX_MASK;
    struct host_frame *frame = host_frames;
    uint64_t expected = id;
    struct request *request;
    struct lane *lane;

    if (ctx == NULL || result > 0) {
        return blkrepl__fail(-EINVAL, "io: %s",
                             ctx == NULL ? "context is NULL"
                                         : "the result of a request is 0 or negative");
    }
    if (id == 0 || index >= ctx->slot_count) {
        return blkrepl__fail(-ENOENT, "io: no request has this id");
    }
    request = &ctx->slots[index];
    if (frame != NULL && frame->submitting && frame->ctx == ctx) {
        return io_complete_inside(frame, request, id, result);
    }
    /* The lane of the slot, which does not change; not that of the request. */
    lane = index < (uint64_t)ctx->lane_count * ctx->requests_max ? lane_of_slot(ctx, index)
                                                                 : &ctx->lanes[0];
    atomic_fetch_add_explicit(&lane->completing, 1, memory_order_acquire);
    if (!atomic_compare_exchange_strong_explicit(&request->live_id, &expected, 0,
                                                 memory_order_acq_rel, memory_order_relaxed)) {
        atomic_fetch_sub_explicit(&lane->completing, 1, memory_order_release);
        return blkrepl__fail(-ENOENT, "io: the request is not in flight");
    }
    request->io_result = result;
    blkrepl__lane_pass_on(ctx, request);
    atomic_fetch_sub_explicit(&lane->completing, 1, memory_order_release);
    return 0;
}

void blkrepl__ready_wake(struct blkrepl_context *ctx, struct ready *ready)
{
    list_unlink(&ready->link);
    list_append(&ctx->ready, &ready->link);
}

void blkrepl__machine_wake(struct blkrepl_context *ctx, struct machine *machine)
{
    if (!list_linked(&machine->link)) {
        list_append(&ctx->machines, &machine->link);
    }
}

void blkrepl__chore_add(struct blkrepl_context *ctx, struct chore *chore)
{
    if (!list_linked(&chore->link)) {
        list_append(&ctx->chores, &chore->link);
    }
}

void blkrepl__context_post(struct blkrepl_context *ctx, uint32_t lane, struct event_slot *slot,
                           const blkrepl_event *event)
{
    blkrepl__event_post(&ctx->lanes[lane].events, slot, event);
}

void blkrepl__guest_slot_put(struct blkrepl_context *ctx, uint32_t number, struct request *request)
{
    struct lane *lane = &ctx->lanes[number];

    pthread_mutex_lock(&lane->lock);
    blkrepl__lane_slot_put(lane, request);
    pthread_mutex_unlock(&lane->lock);
}

void blkrepl__lane_post_room(struct blkrepl_context *ctx, uint32_t number)
{
    struct lane *lane = &ctx->lanes[number];
    bool due;

    pthread_mutex_lock(&lane->lock);
    due = lane->room_due;
    lane->room_due = false;
    pthread_mutex_unlock(&lane->lock);
    if (UNLIKELY(due)) {
        blkrepl__context_post(ctx, number, &lane->room,
                              &(blkrepl_event){.type = BLKREPL_EVENT_ROOM,
                                               .object_kind = BLKREPL_OBJECT_LANE,
                                               .object_id = number});
    }
}

bool blkrepl__lane_valid(const struct blkrepl_context *ctx, uint32_t lane)
{
    if (lane < ctx->lane_count) {
        return true;
    }
    blkrepl__fail(-EINVAL, "lane %u does not exist; the context has %u", (unsigned)lane,
                  (unsigned)ctx->lane_count);
    return false;
}
