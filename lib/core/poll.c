/* SPDX-License-Identifier: MIT */
/* poll.c - running callbacks, stepping jobs, sleeping. */
#include <errno.h>

#include "base/hook.h"
#include "core/context.h"
#include "core/error.h"
#include "core/lane.h"
#include "core/port_quick.h"
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

    while (count < most) {
        enum lane_deliver answer = blkrepl__lane_deliver(lane, &fetched[count], count == 0);

        count += answer != DELIVER_NONE;
        if (answer != DELIVER_ONE) {
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
        RECORD(BACK, 0);
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
        RECORD(BACK, 0);
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

/* What an earlier call of the lane has left of its quick requests. */
static void poll_left(struct blkrepl_context *ctx, struct lane *lane)
{
    bool left;

    pthread_mutex_lock(&lane->lock);
    left = !list_empty(&lane->quick_queues);
    pthread_mutex_unlock(&lane->lock);
    if (UNLIKELY(left)) {
        pthread_mutex_unlock(&ctx->lock);
        pthread_mutex_lock(&lane->lock);
        blkrepl__port_flush_quick(ctx, lane);
        pthread_mutex_unlock(&lane->lock);
        pthread_mutex_lock(&ctx->lock);
        RECORD(BACK, 0);
    }
}

/* The first half of a round: advance, step jobs, give requests away. */
static void poll_work(struct blkrepl_context *ctx, uint32_t number)
{
    blkrepl__advance(ctx);
    if (number == 0 && !list_empty(&ctx->machines)) {
        poll_machines(ctx);
    }
    blkrepl__lane_post_room(ctx, number);
    if (number == 0 && ctx->lane_count > 1) {
        blkrepl__port_help_lanes(ctx);
    }
    blkrepl__empty_outbox(ctx, number, OUTBOX_POLL);
    poll_left(ctx, &ctx->lanes[number]);
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
    if (atomic_load_explicit(&lane->arm_pending, memory_order_relaxed)) {
        atomic_store_explicit(&lane->arm_pending, false, memory_order_relaxed);
        atomic_store(&lane->armed, false);
        blkrepl__wake_drain(&lane->wake);
    }
}

/* Promise to wake whoever sleeps on the lane's descriptor; false if there is
 * something to do instead. */
static bool lane_arm(struct blkrepl_context *ctx, uint32_t number)
{
    struct lane *lane = &ctx->lanes[number];
    bool sleeper;

    lane->armed_deadline_ns = number == 0 ? blkrepl__timer_next(&ctx->timers) : BLKREPL_FOREVER;
    atomic_store_explicit(&lane->arm_pending, true, memory_order_relaxed);
    sleeper = atomic_exchange(&lane->armed, true);
    /* A completion from here on sees that we are armed; look once more for one
     * that came before.  Who sleeps already is not robbed of the signal: whoever made
     * the lane busy may still be on its way to send it. */
    if (blkrepl__lane_busy(ctx, number)) {
        if (!sleeper) {
            atomic_store(&lane->armed, false);
        }
        return false;
    }
    return true;
}

/* Sleep until something happens or the clock reaches until_ns. */
static void poll_sleep(struct blkrepl_context *ctx, uint32_t number, uint64_t until_ns)
{
    struct lane *lane = &ctx->lanes[number];
    uint64_t timeout_ns = BLKREPL_FOREVER;

    blkrepl__wake_sleepers(ctx); /* what was done so far may be work for other lanes */
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
    RECORD(WOKEN, number);
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
        RECORD(WOKEN, lane);
    }
    if (!helped) {
        poll_sleep(ctx, lane, until_ns);
    }
}

/* Whether the leader, who polls, has got what it waits for other than by a
 * callback. */
static bool poll_lead_over(struct lane *lane)
{
    bool over;

    pthread_mutex_lock(&lane->lock);
    over = lane->lead_over;
    pthread_mutex_unlock(&lane->lock);
    return over;
}

/* The poll ends.  A wake that comes while a waiter leads is for the host's next one. */
static void poll_unkick(struct lane *lane)
{
    lane->kicked = lane->kicked && lane->led;
    lane->led = false;
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
        if (news || (lane->kicked && !lane->led) || poll_lead_over(lane) || timeout_ns == 0 ||
            (until_ns != BLKREPL_FOREVER && blkrepl__now(ctx) >= until_ns)) {
            poll_unkick(lane);
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
        poll_unkick(lane);
        blkrepl__leave_quietly(ctx);
    }
    return count;
}

/* Whether the lane's thread has to take the context's lock. */
static bool poll_slow_due(const struct blkrepl_context *ctx, const struct lane *lane)
{
    return atomic_load(&ctx->attention) || atomic_load(&lane->slow_due);
}

/* Handle what is quick and fetch its callbacks, with the lane's lock held; nobody
 * else polls the lane.  Returns how many; -1: the lane needs a poll of the slow
 * way. */
static int poll_quick_fetch(struct blkrepl_context *ctx, struct lane *lane,
                            struct delivery *fetched)
{
    int most = ctx->callbacks_max < FETCH_MAX ? (int)ctx->callbacks_max : FETCH_MAX;
    int count;

    if (poll_slow_due(ctx, lane) || STRETCH(POLL)) {
        return -1;
    }
    blkrepl__lane_collect(ctx, lane);
    blkrepl__port_flush_quick(ctx, lane);
    count = blkrepl__lane_deliver_quick(lane, fetched, most);
    if (count > 0) {
        return count;
    }
    return poll_slow_due(ctx, lane) || !list_empty(&lane->callbacks) ? -1 : 0;
}

/* A poll that needs nothing but its lane.  Returns how many callbacks ran; -1:
 * it has to be one of the slow way. */
static int poll_quick(struct blkrepl_context *ctx, uint32_t number, uint64_t timeout_ns)
{
    struct delivery fetched[FETCH_MAX];
    struct lane *lane = &ctx->lanes[number];
    int count = -1;
    bool ours;

    pthread_mutex_lock(&lane->lock);
    RECORD(ENTER, number);
    ours = atomic_load(&lane->polling) == LANE_FREE && !poll_slow_due(ctx, lane);
    if (ours) {
        blkrepl__lane_poll_begin(lane); /* what follows drops the lane's lock inside submit */
        count = poll_quick_fetch(ctx, lane, fetched);
    }
    pthread_mutex_unlock(&lane->lock);
    if (count == 0 && timeout_ns > 0) {
        count = -1;
    }
    if (count >= 0) {
        lane_disarm(lane);
        deliveries_run(ctx, fetched, count);
    }
    if (ours) {
        blkrepl__lane_poll_end(lane);
    }
    return count;
}

/* A poll of the slow way that has begun. */
static int poll_entered(struct blkrepl_context *ctx, uint32_t number, uint64_t timeout_ns)
{
    struct delivery fetched[FETCH_MAX];
    struct lane *lane = &ctx->lanes[number];
    int rc;

    lane_disarm(lane);
    rc = poll_fetch_last(ctx, number, fetched);
    if (rc > 0) {
        deliveries_run(ctx, fetched, rc);
    } else {
        rc = poll_loop(ctx, number, timeout_ns);
        blkrepl__leave(ctx, number);
    }
    blkrepl__lane_poll_end(lane);
    return rc;
}

static int poll_slow(struct blkrepl_context *ctx, uint32_t number, uint64_t timeout_ns)
{
    struct lane *lane = &ctx->lanes[number];
    bool busy;

    blkrepl__enter(ctx);
    pthread_mutex_lock(&lane->lock);
    busy = atomic_load_explicit(&lane->polling, memory_order_relaxed) != LANE_FREE;
    if (!busy) {
        blkrepl__lane_poll_begin(lane);
    }
    pthread_mutex_unlock(&lane->lock);
    if (busy) {
        blkrepl__leave(ctx, number);
        return blkrepl__fail(-EBUSY, "poll: another thread polls lane %u", (unsigned)number);
    }
    return poll_entered(ctx, number, timeout_ns);
}

void blkrepl__poll_lead(struct blkrepl_context *ctx, uint32_t number)
{
    struct delivery fetched[FETCH_MAX];
    struct lane *lane = &ctx->lanes[number];
    int count;

    blkrepl__lane_poll_begin(lane);
    count = poll_quick_fetch(ctx, lane, fetched);
    pthread_mutex_unlock(&lane->lock);
    if (count > 0) {
        lane_disarm(lane);
        deliveries_run(ctx, fetched, count);
        blkrepl__lane_poll_end(lane);
    } else {
        blkrepl__enter(ctx);
        lane->led = true;
        poll_entered(ctx, number, BLKREPL_FOREVER);
    }
    pthread_mutex_lock(&lane->lock);
}

int blkrepl_poll(blkrepl_context *ctx, uint32_t number, uint64_t timeout_ns)
{
    int rc = poll_check(ctx, number, timeout_ns);

    if (rc < 0) {
        return rc;
    }
    rc = poll_quick(ctx, number, timeout_ns);
    return rc >= 0 ? rc : poll_slow(ctx, number, timeout_ns);
}

/* Arm a lane that has no timers, without the context's lock; false if there is
 * something to do, or it is to be asked for with that lock. */
static bool arm_quick(struct blkrepl_context *ctx, struct lane *lane)
{
    bool sleeper;
    bool waits;

    if (lane == &ctx->lanes[0] || poll_slow_due(ctx, lane)) {
        return false;
    }
    pthread_mutex_lock(&lane->lock);
    atomic_store_explicit(&lane->arm_pending, true, memory_order_relaxed);
    RECORD(ENTER, (uint32_t)(lane - ctx->lanes));
    sleeper = atomic_exchange(&lane->armed, true);
    waits = lane_quick_waits(lane) || poll_slow_due(ctx, lane);
    pthread_mutex_unlock(&lane->lock);
    if (waits && !sleeper) {
        atomic_store(&lane->armed, false);
    }
    return !waits;
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
    if (arm_quick(ctx, &ctx->lanes[lane])) {
        *deadline_ns = BLKREPL_FOREVER;
        return 0;
    }
    pthread_mutex_lock(&ctx->lock);
    RECORD(ENTER, lane);
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
    blkrepl__advance(ctx);
    blkrepl__leave_quietly(ctx); /* what waits for the lane is given away by its poll */
    return 0;
}

/* The same for one lane; a lane that a thread polls is left to that thread.
 * Returns whether callbacks or events ran. */
static bool drain_lane(struct blkrepl_context *ctx, uint32_t number)
{
    struct lane *lane = &ctx->lanes[number];
    bool ran = false;
    bool news = true;
    bool ours;

    pthread_mutex_lock(&lane->lock);
    ours = atomic_load_explicit(&lane->polling, memory_order_acquire) == LANE_FREE;
    if (ours) {
        blkrepl__lane_poll_begin(lane);
    }
    pthread_mutex_unlock(&lane->lock);
    if (!ours) {
        return false;
    }
    lane->kicked = false; /* nobody sleeps */
    for (int i = 0; i < DRAIN_ROUNDS_MAX && (news || blkrepl__lane_busy(ctx, number)); i++) {
        poll_round(ctx, number, &news);
        ran = ran || news;
    }
    blkrepl__lane_poll_end(lane);
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
