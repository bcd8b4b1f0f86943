/* SPDX-License-Identifier: MIT */
/* copy_tap.c - copy-before-write: guest writes over clusters that are still to
 * do.
 *
 * A guest that has to wait is in one of two places: on the waiters of a task's
 * range (its old data are being saved), or on `starved` (no buffer is free).
 * All of them are on `waiting` as well, in the order of their deadlines, which
 * are all equally long from the last copy that ended for them. */
#include <errno.h>

#include "job/copy.h"

#include "base/checked.h"

/* Whether the guest is on the list of this engine; another job of the image may
 * be what it waits for. */
static bool tap_parked(const struct copy *copy, const struct guest *guest)
{
    return guest->tap_parked == &copy->tap;
}

static void tap_unpark(struct copy *copy, struct guest *guest)
{
    if (tap_parked(copy, guest)) {
        list_remove(&guest->tap_link);
        guest->tap_parked = NULL;
        guest->tap_starved = false;
    }
}

/* Aim the timer at the first deadline. */
static void tap_set_timer(struct copy *copy)
{
    const struct guest *first;

    if (list_empty(&copy->waiting)) {
        blkrepl__timer_clear(&copy->cbw_timer);
        return;
    }
    first = CONTAINER_OF(copy->waiting.next, struct guest, tap_link);
    if (!list_linked(&copy->cbw_timer.link) ||
        copy->cbw_timer.deadline_ns != first->tap_deadline_ns) {
        blkrepl__timer_set(&copy->job->ctx->timers, &copy->cbw_timer, first->tap_deadline_ns);
    }
}

/* The guest goes from another engine's list to ours; if it had been woken for a
 * buffer there, the next one may have it. */
static void tap_leave(struct guest *guest)
{
    struct copy *other = CONTAINER_OF(guest->tap_parked, struct copy, tap);

    tap_unpark(other, guest);
    tap_set_timer(other);
    blkrepl__copy_kick_starved(other);
}

/* The guest waits from now on, or goes on waiting with its old deadline. */
static enum tap_answer tap_park(struct copy *copy, struct guest *guest)
{
    uint64_t timeout = copy->config.cbw_timeout_ns;

    if (tap_parked(copy, guest)) {
        return TAP_WAIT;
    }
    if (timeout == BLKREPL_FOREVER) {
        guest->tap_deadline_ns = BLKREPL_FOREVER;
    } else {
        uint64_t now = blkrepl__now(copy->job->ctx);

        guest->tap_deadline_ns = timeout < BLKREPL_FOREVER - now ? now + timeout : BLKREPL_FOREVER;
    }
    if (guest->tap_parked != NULL) {
        tap_leave(guest); /* it waits for us now, not for another job */
    }
    list_append(&copy->waiting, &guest->tap_link);
    guest->tap_parked = &copy->tap;
    guest->tap_starved = false; /* unless the caller says so */
    tap_set_timer(copy);
    return TAP_WAIT;
}

/* Whether anything in these clusters is still to be saved. */
static bool tap_unsaved(const struct copy *copy, uint64_t start, uint64_t end)
{
    uint64_t cluster = copy->config.cluster_bytes;
    uint64_t first = start / cluster;
    uint64_t last = (end + cluster - 1) / cluster;

    return blkrepl__hbitmap_next_set(&copy->todo, first, last) < last ||
           blkrepl__range_copy_of(&copy->config.source->leaf->ranges, copy, start, end) != NULL;
}

/* Start copies of the clusters that are to do; false if the buffers are used
 * up.  A buffer that it got means that a copy has ended for it: its time starts
 * anew. */
static bool tap_claim(struct copy *copy, struct guest *guest, uint64_t start, uint64_t end)
{
    uint64_t cluster = copy->config.cluster_bytes;
    uint64_t last = (end + cluster - 1) / cluster;
    uint64_t bit = blkrepl__hbitmap_next_set(&copy->todo, start / cluster, last);

    while (bit < last) {
        struct copy_task *task = blkrepl__copy_reserve_task(copy);

        if (task == NULL) {
            return false;
        }
        tap_unpark(copy, guest);
        blkrepl__copy_start_task(copy, task, bit, 1, true, guest->lane);
        bit = blkrepl__hbitmap_next_set(&copy->todo, bit, last);
    }
    return true;
}

static enum tap_answer tap_fail(struct copy *copy, struct guest *guest)
{
    tap_unpark(copy, guest);
    tap_set_timer(copy);
    blkrepl__copy_kick_starved(copy);
    return TAP_FAIL;
}

/* The guest may go; if it had been woken for a buffer that it did not need, the
 * next one may try. */
static enum tap_answer tap_pass(struct copy *copy, struct guest *guest)
{
    tap_unpark(copy, guest);
    tap_set_timer(copy);
    blkrepl__copy_kick_starved(copy);
    return TAP_PASS;
}

/* Count a guest once, however many pieces of it have to wait. */
static void tap_count(struct copy *copy, struct guest *guest)
{
    if ((guest->tap_counted & copy->tap.bit) == 0) {
        guest->tap_counted |= copy->tap.bit;
        copy->guest_waits_count++;
    }
}

static enum tap_answer tap_before(struct tap *tap, struct guest *guest, uint64_t start,
                                  uint64_t end)
{
    struct copy *copy = CONTAINER_OF(tap, struct copy, tap);
    bool parked = tap_parked(copy, guest);
    bool starved = parked && guest->tap_starved;
    struct range *range;

    if (guest->tap_error != 0) {
        return tap_fail(copy, guest);
    }
    if (guest->opcode == BLKREPL_OP_DISCARD && !guest->beside) {
        return tap_unsaved(copy, start, end) ? TAP_SKIP : TAP_PASS;
    }
    if (parked && !starved) {
        tap_unpark(copy, guest); /* a copy has ended for it: the time starts anew */
    }
    if (starved) {
        guest->tap_starved = false;
    }
    guest->tap_start = start;
    guest->tap_end = end;
    end = min_u64(end, image_bytes(copy->config.source));
    if (!copy_background_holds(copy)) {
        blkrepl__copy_void(copy, start, end);
    }
    if (!tap_claim(copy, guest, start, end)) {
        /* One that was woken in vain keeps its place. */
        if (starved) {
            list_prepend(&copy->starved, &guest->ready.link);
        } else {
            list_append(&copy->starved, &guest->ready.link);
        }
        tap_count(copy, guest);
        tap_park(copy, guest);
        guest->tap_starved = true;
        return TAP_WAIT;
    }
    range = blkrepl__range_copy_of(&copy->config.source->leaf->ranges, copy, start, end);
    if (range == NULL) {
        return tap_pass(copy, guest);
    }
    blkrepl__copy_promote(CONTAINER_OF(range, struct copy_task, range), guest->lane);
    range_wait(range, &guest->ready);
    tap_count(copy, guest);
    blkrepl__copy_kick_starved(copy);
    return tap_park(copy, guest);
}

static void tap_forget(struct tap *tap, struct guest *guest)
{
    struct copy *copy = CONTAINER_OF(tap, struct copy, tap);

    tap_unpark(copy, guest);
    tap_set_timer(copy);
    blkrepl__copy_kick_starved(copy);
}

/* Where the task's request is, for a guest that has waited too long; else it waits for the
 * target. */
static void tap_blame(const struct copy_task *task, struct job_error *error)
{
    uint32_t reads = TO(COPY_CLAIMED) | TO(COPY_STATUS) | TO(COPY_READ);

    if ((reads & TO(task->state)) != 0) {
        error->side = task->spilled ? BLKREPL_SIDE_SPILL : BLKREPL_SIDE_SOURCE;
        error->what = "read";
    } else if (task->state == COPY_SPILL || task->state == COPY_CLEAN) {
        error->side = BLKREPL_SIDE_SPILL;
    }
}

/* No buffer is free: the target is late if it has one of them, else who has the oldest. */
static void tap_blame_all(const struct copy *copy, struct job_error *error)
{
    struct job_error first = *error;
    const struct list *link = copy->active.next;
    bool late = list_empty(&copy->voids) && link != &copy->active;

    if (late) {
        tap_blame(CONTAINER_OF(link, const struct copy_task, link), &first);
    }
    for (; late && link != &copy->active; link = link->next) {
        struct job_error other = *error;

        tap_blame(CONTAINER_OF(link, const struct copy_task, link), &other);
        late = other.side != BLKREPL_SIDE_TARGET;
    }
    *error = late ? first : *error;
}

/* The clusters that the guest waits for, and who makes it wait. */
static struct job_error tap_timeout_error(const struct copy *copy, const struct guest *guest)
{
    const struct ranges *ranges = &copy->config.source->leaf->ranges;
    const struct range *range;
    struct job_error error = {.code = -ETIMEDOUT,
                              .side = BLKREPL_SIDE_TARGET,
                              .offset = guest->offset,
                              .bytes = guest->bytes,
                              .what = "write"};

    if (guest->tap_starved) {
        tap_blame_all(copy, &error);
        return error;
    }
    range = blkrepl__range_copy_of(ranges, copy, guest->range.node.start, guest->range.node.end);
    if (range != NULL) {
        tap_blame(CONTAINER_OF(range, struct copy_task, range), &error);
    }
    return error;
}

/* The first guest on the list has waited too long. */
static void tap_expired(struct timer *timer)
{
    struct copy *copy = CONTAINER_OF(timer, struct copy, cbw_timer);
    uint64_t now = copy->job->ctx->now_ns;

    while (!list_empty(&copy->waiting)) {
        struct guest *guest = CONTAINER_OF(copy->waiting.next, struct guest, tap_link);
        struct job_error error = tap_timeout_error(copy, guest);

        /* FOREVER never comes, whatever the clock says. */
        if (guest->tap_deadline_ns > now || guest->tap_deadline_ns == BLKREPL_FOREVER) {
            break;
        }
        if (!copy->config.hold_until_written) {
            blkrepl__copy_fail(copy, &error);
            return;
        }
        blkrepl__job_error(copy->job, &error);
        guest->tap_error = -ETIMEDOUT;
        /* It stays on the list, without a deadline, until it has looked. */
        guest->tap_deadline_ns = BLKREPL_FOREVER;
        list_remove(&guest->tap_link);
        list_append(&copy->waiting, &guest->tap_link);
        blkrepl__guest_wake(guest);
    }
    tap_set_timer(copy);
    blkrepl__copy_kick_starved(copy);
}

void blkrepl__copy_tap_init(struct copy *copy)
{
    copy->tap.before = tap_before;
    copy->tap.forget = tap_forget;
    list_init(&copy->starved);
    list_init(&copy->waiting);
    blkrepl__timer_init(&copy->job->ctx->timers, &copy->cbw_timer, tap_expired);
}

void blkrepl__copy_kick_starved(struct copy *copy)
{
    struct list *link;

    if (list_empty(&copy->starved) ||
        (list_empty(&copy->free_reserve) && list_empty(&copy->free_workers))) {
        return;
    }
    link = list_pop(&copy->starved);
    blkrepl__ready_wake(copy->job->ctx, CONTAINER_OF(link, struct ready, link));
}

void blkrepl__copy_tap_fail(struct copy *copy, uint64_t start, uint64_t end, int code)
{
    for (struct list *link = copy->waiting.next; link != &copy->waiting; link = link->next) {
        struct guest *guest = CONTAINER_OF(link, struct guest, tap_link);

        if (guest->tap_start < end && start < guest->tap_end) {
            guest->tap_error = code;
            blkrepl__guest_wake(guest);
        }
    }
}

void blkrepl__copy_tap_release(struct copy *copy)
{
    while (!list_empty(&copy->waiting)) {
        struct guest *guest = CONTAINER_OF(copy->waiting.next, struct guest, tap_link);

        tap_unpark(copy, guest);
        guest->tap_error = 0; /* what has ended fails nobody */
        blkrepl__guest_wake(guest);
    }
    tap_set_timer(copy);
}
