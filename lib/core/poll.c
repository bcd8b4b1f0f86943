/* SPDX-License-Identifier: MIT */
/* poll.c - running callbacks, stepping jobs, sleeping. */
#include <errno.h>

#include "base/hook.h"
#include "core/context.h"
#include "core/error.h"
#include "core/wait.h"

#define FETCH_MAX 32
#define STEPS_MAX 64
#define DRAIN_ROUNDS_MAX 10000

/* Let the jobs that are ready take steps; a job that is ready again at once
 * waits for its next turn. */
static void poll_machines(struct blkrepl_context *ctx)
{
    struct list now;

    list_init(&now);
    list_splice(&now, &ctx->machines);
    for (int i = 0; i < STEPS_MAX && !list_empty(&now); i++) {
        struct machine *machine = CONTAINER_OF(list_pop(&now), struct machine, link);

        if (STRETCH(MACHINE)) {
            list_append(&ctx->machines, &machine->link);
        } else {
            machine->step(machine);
        }
    }
    /* What did not get its turn goes first the next time. */
    list_splice(&now, &ctx->machines);
    list_splice(&ctx->machines, &now);
}

/* Fetch callbacks that may run together. */
static int poll_fetch(struct lane *lane, struct delivery *fetched, int most)
{
    int count = 0;

    while (count < most && !list_empty(&lane->callbacks)) {
        struct callback *callback = CONTAINER_OF(lane->callbacks.next, struct callback, link);

        bool alone = callback->alone; /* deliver may free the callback */

        if (alone && count > 0) {
            break;
        }
        list_remove(&callback->link);
        callback->deliver(callback, &fetched[count++]);
        if (alone) {
            break;
        }
    }
    return count;
}

static void delivery_run(const struct delivery *delivery)
{
    if (delivery->done.fn != NULL) {
        delivery->done.fn(delivery->done.user, delivery->result);
    }
    if (delivery->done.release != NULL) {
        delivery->done.release(delivery->done.user);
    }
}

static void deliveries_run(const struct blkrepl_context *ctx, const struct delivery *fetched,
                           int count)
{
    struct host_frame frame;

    blkrepl__host_enter(&frame, ctx);
    for (int i = 0; i < count; i++) {
        delivery_run(&fetched[i]);
    }
    blkrepl__host_leave(&frame);
}

/* Run up to `most` callbacks of the lane; the lock is dropped meanwhile. */
static int poll_callbacks(struct blkrepl_context *ctx, struct lane *lane, int most)
{
    struct delivery fetched[FETCH_MAX];
    int total = 0;

    while (total < most && !(total > 0 && STRETCH(CALLBACK))) {
        int room = most - total;
        int count = poll_fetch(lane, fetched, room < FETCH_MAX ? room : FETCH_MAX);

        if (count == 0) {
            break;
        }
        pthread_mutex_unlock(&ctx->lock);
        deliveries_run(ctx, fetched, count);
        pthread_mutex_lock(&ctx->lock);
        total += count;
    }
    return total;
}

/* Deliver events one by one: what happens in one may drop the next. */
static int poll_events(struct blkrepl_context *ctx, struct lane *lane, int most)
{
    struct host_frame frame;
    blkrepl_event event;
    int count = 0;

    while (count < most && !STRETCH(EVENT) && blkrepl__event_take(&lane->events, &event)) {
        count++;
        if (ctx->sink.fn == NULL) {
            continue;
        }
        pthread_mutex_unlock(&ctx->lock);
        blkrepl__host_enter(&frame, ctx);
        ctx->sink.fn(ctx->sink.user, &event);
        blkrepl__host_leave(&frame);
        pthread_mutex_lock(&ctx->lock);
    }
    return count;
}

static void poll_log(struct blkrepl_context *ctx)
{
    struct host_frame frame;
    struct log_line line;

    for (int i = 0; i < LOG_LINES && blkrepl__log_take(&ctx->log, &line); i++) {
        pthread_mutex_unlock(&ctx->lock);
        blkrepl__host_enter(&frame, ctx);
        ctx->hooks.log(ctx->hooks.user, line.level, line.text);
        blkrepl__host_leave(&frame);
        pthread_mutex_lock(&ctx->lock);
    }
}

/* The first half of a round: advance, step jobs, give requests away. */
static void poll_work(struct blkrepl_context *ctx, uint32_t number)
{
    blkrepl__advance(ctx);
    if (number == 0 && !list_empty(&ctx->machines)) {
        poll_machines(ctx);
    }
    if (number == 0 && ctx->lane_count > 1) {
        blkrepl__port_help_lanes(ctx);
    }
    blkrepl__empty_outbox(ctx, number, OUTBOX_POLL);
    if (number == 0 && log_waiting(&ctx->log)) {
        poll_log(ctx);
    }
}

/* How many of the round's callbacks are kept for events, however busy the guest
 * is: one, or, where there is only one, every second time. */
static int poll_event_share(struct lane *lane, int most)
{
    if (list_empty(&lane->events)) {
        return 0;
    }
    lane->event_turn = !lane->event_turn;
    return most > 1 || lane->event_turn ? 1 : 0;
}

/* One round of a poll: work, then callbacks and events.  Returns how many ran;
 * *news says that something happened that a query would show. */
static int poll_round(struct blkrepl_context *ctx, uint32_t number, bool *news)
{
    struct lane *lane = &ctx->lanes[number];
    int most = (int)ctx->callbacks_max;
    int callbacks;
    int events;

    poll_work(ctx, number);
    callbacks = poll_callbacks(ctx, lane, most - poll_event_share(lane, most));
    events = poll_events(ctx, lane, most - callbacks);
    *news = callbacks + events > 0;
    return callbacks + (ctx->sink.fn != NULL ? events : 0);
}

/* Undo lane_arm.  Who has seen `armed` may still be about to signal: the
 * descriptor then stays readable for one idle round, which is harmless. */
static void lane_disarm(struct lane *lane)
{
    if (lane->arm_pending) {
        lane->arm_pending = false;
        atomic_store(&lane->armed, false);
        blkrepl__wake_drain(&lane->wake);
    }
}

/* Promise to wake whoever sleeps on the lane's descriptor; false if there is
 * something to do instead. */
static bool lane_arm(struct blkrepl_context *ctx, uint32_t number)
{
    struct lane *lane = &ctx->lanes[number];

    lane->armed_deadline_ns = number == 0 ? blkrepl__timer_next(&ctx->timers) : BLKREPL_FOREVER;
    lane->arm_pending = true;
    atomic_store(&lane->armed, true);
    /* A completion from here on sees that we are armed; look once more for one
     * that came before. */
    if (blkrepl__lane_busy(ctx, number)) {
        atomic_store(&lane->armed, false);
        return false;
    }
    return true;
}

/* Sleep until something happens or the clock reaches until_ns. */
static void poll_sleep(struct blkrepl_context *ctx, uint32_t number, uint64_t until_ns)
{
    struct lane *lane = &ctx->lanes[number];
    uint64_t timeout_ns = BLKREPL_FOREVER;

    if (!lane_arm(ctx, number)) {
        return;
    }
    if (lane->armed_deadline_ns < until_ns) {
        until_ns = lane->armed_deadline_ns;
    }
    if (until_ns != BLKREPL_FOREVER) {
        uint64_t now = blkrepl__now(ctx);

        timeout_ns = until_ns > now ? until_ns - now : 0;
    }
    pthread_mutex_unlock(&ctx->lock);
    blkrepl__wake_wait(&lane->wake, timeout_ns);
    pthread_mutex_lock(&ctx->lock);
    lane_disarm(lane);
}

/* Nothing to report: take part in background work, or sleep. */
static void poll_idle(struct blkrepl_context *ctx, uint32_t lane, uint64_t until_ns)
{
    bool helped = false;

    if (blkrepl__lane_busy(ctx, lane)) {
        return;
    }
    if (lane == 0 && ctx->helper.help != NULL) {
        struct helper helper = ctx->helper;

        pthread_mutex_unlock(&ctx->lock);
        helped = helper.help(helper.user);
        pthread_mutex_lock(&ctx->lock);
    }
    if (!helped) {
        poll_sleep(ctx, lane, until_ns);
    }
}

static int poll_loop(struct blkrepl_context *ctx, uint32_t number, uint64_t timeout_ns)
{
    uint64_t until_ns = BLKREPL_FOREVER;
    struct lane *lane = &ctx->lanes[number];
    bool news = false;
    int ran;

    if (timeout_ns != 0 && timeout_ns != BLKREPL_FOREVER) {
        uint64_t now = blkrepl__now(ctx);

        until_ns = timeout_ns < BLKREPL_FOREVER - now ? now + timeout_ns : BLKREPL_FOREVER;
    }
    for (;;) {
        ran = poll_round(ctx, number, &news);
        if (news || lane->kicked || timeout_ns == 0 ||
            (until_ns != BLKREPL_FOREVER && blkrepl__now(ctx) >= until_ns)) {
            lane->kicked = false;
            return ran;
        }
        poll_idle(ctx, number, until_ns);
    }
}

static int poll_check(const struct blkrepl_context *ctx, uint32_t lane, uint64_t timeout_ns)
{
    if (ctx == NULL) {
        return blkrepl__fail(-EINVAL, "poll: context is NULL");
    }
    if (blkrepl__host_inside(ctx)) {
        return blkrepl__fail(-EDEADLK, "poll: called from inside a callback, backend or hook");
    }
    if (!blkrepl__lane_valid(ctx, lane)) {
        return -EINVAL;
    }
    if (timeout_ns > 0 && ctx->hooks.clock_ns != NULL) {
        return blkrepl__fail(-EINVAL, "poll: with a clock of the host the timeout must be 0");
    }
    return 0;
}

/* The usual poll of an awake host: a few callbacks and nothing else.  Fetches
 * them, and unlocks for good: what follows needs no lock.  Returns how many; 0
 * (still locked) if the poll has more to do than that. */
static int poll_fetch_last(struct blkrepl_context *ctx, uint32_t number, struct delivery *fetched)
{
    struct lane *lane = &ctx->lanes[number];
    int most = ctx->callbacks_max < FETCH_MAX ? (int)ctx->callbacks_max : FETCH_MAX;
    int count;

    poll_work(ctx, number);
    if (!list_empty(&lane->events) || STRETCH(POLL)) {
        return 0;
    }
    count = poll_fetch(lane, fetched, most);
    if (count > 0) {
        lane->kicked = false;
        blkrepl__leave_quietly(ctx);
    }
    return count;
}

int blkrepl_poll(blkrepl_context *ctx, uint32_t number, uint64_t timeout_ns)
{
    struct delivery fetched[FETCH_MAX];
    struct lane *lane;
    int rc = poll_check(ctx, number, timeout_ns);

    if (rc < 0) {
        return rc;
    }
    lane = &ctx->lanes[number];
    blkrepl__enter(ctx);
    if (atomic_load_explicit(&lane->polling, memory_order_relaxed) != LANE_FREE) {
        blkrepl__leave(ctx, number);
        return blkrepl__fail(-EBUSY, "poll: another thread polls lane %u", (unsigned)number);
    }
    blkrepl__lane_poll_begin(lane);
    lane_disarm(lane);
    rc = poll_fetch_last(ctx, number, fetched);
    if (rc > 0) {
        deliveries_run(ctx, fetched, rc);
    } else {
        rc = poll_loop(ctx, number, timeout_ns);
        blkrepl__leave(ctx, number);
    }
    blkrepl__lane_poll_end(ctx, lane);
    return rc;
}

int blkrepl_poll_arm(blkrepl_context *ctx, uint32_t lane, uint64_t *deadline_ns)
{
    int rc;

    if (ctx == NULL || deadline_ns == NULL) {
        return blkrepl__fail(-EINVAL, "poll: context or deadline_ns is NULL");
    }
    if (!blkrepl__lane_valid(ctx, lane)) {
        return -EINVAL;
    }
    pthread_mutex_lock(&ctx->lock);
    rc = lane_arm(ctx, lane) ? 0 : 1;
    *deadline_ns = rc == 0 ? ctx->lanes[lane].armed_deadline_ns : blkrepl__now(ctx);
    pthread_mutex_unlock(&ctx->lock);
    return rc;
}

int blkrepl_poll_fd(blkrepl_context *ctx, uint32_t lane)
{
    if (ctx == NULL) {
        return blkrepl__fail(-EINVAL, "poll: context is NULL");
    }
    return blkrepl__lane_valid(ctx, lane) ? ctx->lanes[lane].wake.read_fd : -EINVAL;
}

int blkrepl_poll_wake(blkrepl_context *ctx, uint32_t lane)
{
    if (ctx == NULL) {
        return blkrepl__fail(-EINVAL, "poll: context is NULL");
    }
    if (!blkrepl__lane_valid(ctx, lane)) {
        return -EINVAL;
    }
    blkrepl__enter(ctx);
    ctx->lanes[lane].kicked = true;
    blkrepl__leave(ctx, lane);
    return 0;
}

/* The same for one lane; a lane that a thread polls is left to that thread.
 * Returns whether callbacks or events ran. */
static bool drain_lane(struct blkrepl_context *ctx, uint32_t number)
{
    struct lane *lane = &ctx->lanes[number];
    bool ran = false;
    bool news = true;

    if (atomic_load_explicit(&lane->polling, memory_order_acquire) != LANE_FREE) {
        return false;
    }
    blkrepl__lane_poll_begin(lane);
    lane->kicked = false; /* nobody sleeps */
    for (int i = 0; i < DRAIN_ROUNDS_MAX && (news || blkrepl__lane_busy(ctx, number)); i++) {
        poll_round(ctx, number, &news);
        ran = ran || news;
    }
    blkrepl__lane_poll_end_locked(lane);
    return ran;
}

/* Empty everything that can be emptied without waiting, callbacks included; what
 * one lane does may be work for another. */
void blkrepl__drain(struct blkrepl_context *ctx)
{
    bool ran = true;

    for (int i = 0; i < DRAIN_ROUNDS_MAX && ran; i++) {
        ran = false;
        for (uint32_t lane = 0; lane < ctx->lane_count; lane++) {
            ran = drain_lane(ctx, lane) || ran;
        }
        ran = ran && ctx->lane_count > 1;
    }
}
