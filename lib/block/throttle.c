/* SPDX-License-Identifier: MIT */
/* throttle.c - a limit that images and jobs share.
 *
 * Invariants:
 *   1. The timer is set if and only if the row is not empty, to the instant at which
 *      everything taken is paid.
 *   2. Who is in the row has not been let through; who has been let through has been
 *      counted, and is on the context's ready list or runs.
 *   3. Once the context is shut the row is empty. */
#include "block/throttle.h"

#include <errno.h>

#include "base/abi.h"
#include "base/checked.h"
#include "base/hook.h"
#include "base/struct_io.h"
#include "block/guest.h"
#include "block/quick.h"

static void throttle_expired(struct timer *timer);

static bool throttle_limited(const struct blkrepl_throttle *throttle)
{
    return throttle->limits.bytes_per_sec != 0 || throttle->limits.ops_per_sec != 0;
}

/* The clock is read only where it matters. */
static uint64_t throttle_now(const struct blkrepl_throttle *throttle)
{
    return throttle_limited(throttle) ? blkrepl__now(throttle->ctx) : 0;
}

/* The earliest instant at which nothing is owed. */
static uint64_t throttle_due(const struct blkrepl_throttle *throttle)
{
    return max_u64(blkrepl__ratelimit_next(&throttle->bytes, 0),
                   blkrepl__ratelimit_next(&throttle->ops, 0));
}

static bool throttle_open(const struct blkrepl_throttle *throttle)
{
    return throttle_due(throttle) <= throttle_now(throttle) && !STRETCH(THROTTLE);
}

/* One operation passes, at this instant. */
static void throttle_count(struct blkrepl_throttle *throttle, uint64_t bytes, uint64_t at_ns)
{
    blkrepl__ratelimit_take(&throttle->bytes, bytes, at_ns);
    blkrepl__ratelimit_take(&throttle->ops, 1, at_ns);
    throttle->bytes_passed += bytes;
    throttle->ops_passed++;
}

void blkrepl__throttle_take(struct blkrepl_throttle *throttle, uint64_t bytes)
{
    throttle_count(throttle, bytes, throttle_now(throttle));
}

/* See to it that the row goes on when nothing is owed any more. */
static void throttle_watch(struct blkrepl_throttle *throttle)
{
    if (list_empty(&throttle->row)) {
        blkrepl__timer_clear(&throttle->timer);
    } else {
        blkrepl__timer_set(&throttle->ctx->timers, &throttle->timer, throttle_due(throttle));
    }
}

/* Let the first of the row through.  It counts from when it was due: if the timer is late
 * that was no idleness, of which only so much is made good, and the average holds. */
static void throttle_let_through(struct blkrepl_throttle *throttle)
{
    struct list *link = list_pop(&throttle->row);
    struct throttle_waiter *waiter = CONTAINER_OF(link, struct throttle_waiter, ready.link);

    throttle_count(throttle, waiter->bytes, max_u64(throttle_due(throttle), throttle->since_ns));
    throttle->ops_delayed++;
    throttle->waiting--;
    waiter->waits = false;
    blkrepl__ready_wake(throttle->ctx, &waiter->ready);
}

/* Let through who may go now. */
static void throttle_advance(struct blkrepl_throttle *throttle)
{
    while (!list_empty(&throttle->row) && throttle_open(throttle)) {
        throttle_let_through(throttle);
    }
    throttle_watch(throttle);
}

static void throttle_expired(struct timer *timer)
{
    throttle_advance(CONTAINER_OF(timer, struct blkrepl_throttle, timer));
}

bool blkrepl__throttle_pass(struct blkrepl_throttle *throttle, struct throttle_waiter *waiter)
{
    CHECK(!waiter->waits);
    if (throttle->ctx->shut || (list_empty(&throttle->row) && throttle_open(throttle))) {
        blkrepl__throttle_take(throttle, waiter->bytes);
        return true;
    }
    list_append(&throttle->row, &waiter->ready.link);
    waiter->waits = true;
    if (++throttle->waiting == 1) {
        throttle->since_ns = throttle_now(throttle);
        throttle_watch(throttle);
    }
    return false;
}

void blkrepl__throttle_leave(struct blkrepl_throttle *throttle, struct throttle_waiter *waiter)
{
    list_unlink(&waiter->ready.link);
    if (waiter->waits) {
        waiter->waits = false;
        throttle->waiting--;
        throttle_watch(throttle);
    }
}

/* The context is shut: nobody waits any more. */
static void throttles_shut_down(struct blkrepl_context *ctx)
{
    for (struct list *link = ctx->throttles.next; link != &ctx->throttles; link = link->next) {
        struct blkrepl_throttle *throttle = CONTAINER_OF(link, struct blkrepl_throttle, link);

        while (!list_empty(&throttle->row)) {
            throttle_let_through(throttle);
        }
        throttle_watch(throttle);
    }
}

void blkrepl__throttle_ref(struct blkrepl_throttle *throttle)
{
    throttle->refs++;
}

void blkrepl__throttle_unref(struct blkrepl_throttle *throttle)
{
    if (throttle != NULL && --throttle->refs == 0) {
        CHECK(list_empty(&throttle->row));
        blkrepl__timer_clear(&throttle->timer);
        list_remove(&throttle->link);
        blkrepl__free(&throttle->ctx->alloc, throttle);
    }
}

/* ---- The public functions --------------------------------------------------- */

static int throttle_check_options(const blkrepl_throttle_options *options,
                                  blkrepl_throttle_options *o)
{
    int rc = blkrepl__struct_in(o, sizeof *o, BLKREPL_THROTTLE_OPTIONS_V1_BYTES, options);

    if (rc < 0) {
        return blkrepl__fail_code(rc, "throttle: options");
    }
    return o->flags != 0 ? blkrepl__fail(-EINVAL, "throttle: unknown flags") : 0;
}

/* New limits; nothing is owed, and nothing saved up. */
static void throttle_limit(struct blkrepl_throttle *throttle, const blkrepl_throttle_options *o)
{
    uint64_t now = blkrepl__now(throttle->ctx);

    throttle->limits = *o;
    blkrepl__ratelimit_set(&throttle->bytes, o->bytes_per_sec, now);
    blkrepl__ratelimit_set_burst(&throttle->bytes, o->burst_bytes);
    blkrepl__ratelimit_set(&throttle->ops, o->ops_per_sec, now);
    blkrepl__ratelimit_set_burst(&throttle->ops, o->burst_ops);
}

/* It enters the context, with the lock held. */
static int throttle_publish(struct blkrepl_throttle *throttle, const blkrepl_throttle_options *o)
{
    struct blkrepl_context *ctx = throttle->ctx;

    if (ctx->shut) {
        return blkrepl__fail(-ESHUTDOWN, "throttle: the context is being freed");
    }
    throttle->id = ++ctx->last_id;
    throttle->refs = 1;
    list_init(&throttle->row);
    blkrepl__timer_init(&ctx->timers, &throttle->timer, throttle_expired);
    throttle_limit(throttle, o);
    list_append(&ctx->throttles, &throttle->link);
    ctx->throttles_shut_down = throttles_shut_down;
    ctx->throttles_open++;
    return 0;
}

static int throttle_make(struct blkrepl_context *ctx, const blkrepl_throttle_options *o,
                         blkrepl_throttle **out)
{
    struct blkrepl_throttle *throttle = blkrepl__zalloc(&ctx->alloc, sizeof *throttle);
    int rc;

    if (throttle == NULL) {
        return blkrepl__fail(-ENOMEM, "throttle: no memory");
    }
    throttle->ctx = ctx;
    blkrepl__enter(ctx);
    rc = throttle_publish(throttle, o);
    blkrepl__leave(ctx, 0);
    if (rc < 0) {
        blkrepl__free(&ctx->alloc, throttle);
        return rc;
    }
    *out = throttle;
    return 0;
}

int blkrepl_throttle_create(blkrepl_context *ctx, const blkrepl_throttle_options *options,
                            blkrepl_throttle **out)
{
    blkrepl_throttle_options o;
    int rc;

    if (out != NULL) {
        *out = NULL;
    }
    if (ctx == NULL || out == NULL) {
        return blkrepl__fail(-EINVAL, "throttle: context or out is NULL");
    }
    rc = throttle_check_options(options, &o);
    return rc < 0 ? rc : throttle_make(ctx, &o, out);
}

int blkrepl_throttle_set(blkrepl_throttle *throttle, const blkrepl_throttle_options *options)
{
    blkrepl_throttle_options o;
    int rc;

    if (throttle == NULL) {
        return blkrepl__fail(-EINVAL, "throttle: set with NULL");
    }
    rc = throttle_check_options(options, &o);
    if (rc == 0) {
        blkrepl__enter(throttle->ctx);
        throttle_limit(throttle, &o);
        throttle_advance(throttle);
        blkrepl__leave(throttle->ctx, 0);
    }
    return rc;
}

int blkrepl_throttle_query(blkrepl_throttle *throttle, blkrepl_throttle_info *info)
{
    blkrepl_throttle_info ours = {.struct_size = sizeof ours};
    int rc;

    if (throttle == NULL || info == NULL) {
        return blkrepl__fail(-EINVAL, "throttle: query with NULL");
    }
    blkrepl__enter(throttle->ctx);
    ours.waiting = throttle->waiting;
    ours.id = throttle->id;
    ours.bytes = throttle->bytes_passed;
    ours.ops = throttle->ops_passed;
    ours.delayed_ops = throttle->ops_delayed;
    ours.bytes_per_sec = throttle->limits.bytes_per_sec;
    ours.ops_per_sec = throttle->limits.ops_per_sec;
    ours.burst_bytes = throttle->limits.burst_bytes;
    ours.burst_ops = throttle->limits.burst_ops;
    blkrepl__leave(throttle->ctx, 0);
    rc = blkrepl__struct_out(info, BLKREPL_THROTTLE_INFO_V1_BYTES, &ours, sizeof ours);
    return rc < 0 ? blkrepl__fail(rc, "throttle: query: struct_size is too small") : 0;
}

void blkrepl_throttle_free(blkrepl_throttle *throttle)
{
    struct blkrepl_context *ctx;

    if (throttle == NULL) {
        return;
    }
    ctx = throttle->ctx;
    blkrepl__enter(ctx);
    ctx->throttles_open--;
    blkrepl__throttle_unref(throttle);
    blkrepl__leave(ctx, 0);
}

/* With the lock held, the image turned to the slow way. */
static void throttle_assign(struct blkrepl_image *image, struct blkrepl_throttle *throttle)
{
    struct blkrepl_throttle *old = image->throttle;

    if (throttle == old) {
        return;
    }
    if (throttle != NULL) {
        blkrepl__throttle_ref(throttle);
    }
    blkrepl__guests_pass(image);
    image->throttle = throttle;
    blkrepl__throttle_unref(old);
}

int blkrepl_image_set_throttle(blkrepl_image *image, blkrepl_throttle *throttle)
{
    int rc = 0;

    if (image == NULL || (throttle != NULL && throttle->ctx != image->ctx)) {
        return blkrepl__fail(-EINVAL, "image: set_throttle with %s",
                             image == NULL ? "NULL" : "a throttle of another context");
    }
    blkrepl__enter(image->ctx);
    if (image->ctx->shut) {
        rc = blkrepl__fail(-ESHUTDOWN, "image \"%s\": the context is being freed", image->name);
    } else {
        blkrepl__quick_stop(image);
        throttle_assign(image, throttle);
    }
    blkrepl__leave(image->ctx, 0);
    return rc;
}
