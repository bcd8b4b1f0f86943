/* SPDX-License-Identifier: MIT */
/* guest.c - the way of a guest request through an image.
 *
 * Reads, writes, zeroes and discards pass the image's throttle first.  Reads,
 * flushes and status then go straight to the backend.  A write waits for its turn,
 * which it has from here on, passes the taps (jobs save old data), and is given to the backend, or
 * to the host when it is a bracket.  Zeroes and discards of the through form
 * pass the taps piece by piece.
 *
 * Invariants:
 *   1. A write has a live range in all phases from QUEUED to GO; a request of
 *      another kind never has one.
 *   2. The range is `given` in GIVEN, GO_DUE and GO, and nowhere else.
 *   3. The callback is on its lane's list in GO_DUE and ENDED, and nowhere else.
 *
 *   FREE -> THROTTLED -> as from FREE, or ENDED
 *
 *   FREE -> QUEUED -> TAPPED -> GIVEN -> ENDED -> FREE         (through)
 *                       ^  |      |        ^
 *                       |  +------|--------+   a tap fails it
 *                       +---------+            next piece of zeroes, discard
 *   FREE -> QUEUED -> TAPPED -> GO_DUE -> GO -> FREE            (bracket)
 *
 * The quick way (quick.c) takes FREE -> GIVEN -> ENDED -> FREE and FREE -> GO ->
 * FREE; it keeps writes in stripes, so that invariants 1 and 2 begin to hold when
 * the guest is turned to the slow way.
 *
 *   FREE   -> THROTTLED  blkrepl__guest_start  the image has a throttle
 *   FREE   -> QUEUED   guest_begin            a write or a bracket
 *   FREE   -> GIVEN    guest_begin            anything else
 *   FREE   -> GO       blkrepl__guest_enter   a bracket of the quick way
 *   THROTTLED -> QUEUED  guest_begin          let through, a write or a bracket
 *   THROTTLED -> GIVEN   guest_begin          let through, anything else
 *   THROTTLED -> ENDED   blkrepl__guest_cancel_wait
 *   QUEUED -> TAPPED   guest_queued           no earlier write overlaps
 *   QUEUED -> ENDED    blkrepl__guest_cancel_wait
 *   TAPPED -> GIVEN    guest_tapped           through, taps and copies let it pass
 *   TAPPED -> GO_DUE   guest_tapped           bracket, the same
 *   TAPPED -> ENDED    guest_tapped, blkrepl__guest_cancel_wait
 *   GIVEN  -> TAPPED   guest_given            next piece of zeroes or discard
 *   GIVEN  -> ENDED    guest_given            nothing left, or the backend failed
 *   GO_DUE -> GO       guest_deliver_go       the host is told, or asked in begin
 *   GO_DUE -> TAPPED   blkrepl__guest_make_way  a copy goes first
 *   GO_DUE -> ENDED    blkrepl__guest_cancel_wait
 *   GO     -> FREE     blkrepl__guest_end_bracket
 *   ENDED  -> FREE     guest_deliver          the host is told
 */
#include "block/guest.h"

#include <errno.h>

#include "base/checked.h"
#include "base/hook.h"
#include "block/quick.h"
#include "core/lane.h"
#include "core/step.h"

/* Pieces that a discard leaves out at once. */
#define SKIPS_MAX 16

static const uint32_t guest_next[GUEST_PHASE_COUNT] = {
    [GUEST_FREE] = TO(GUEST_THROTTLED) | TO(GUEST_QUEUED) | TO(GUEST_GIVEN) | TO(GUEST_GO),
    [GUEST_THROTTLED] = TO(GUEST_QUEUED) | TO(GUEST_GIVEN) | TO(GUEST_ENDED),
    [GUEST_QUEUED] = TO(GUEST_TAPPED) | TO(GUEST_ENDED),
    [GUEST_TAPPED] = TO(GUEST_GIVEN) | TO(GUEST_GO_DUE) | TO(GUEST_ENDED),
    [GUEST_GIVEN] = TO(GUEST_TAPPED) | TO(GUEST_ENDED),
    [GUEST_GO_DUE] = TO(GUEST_GO) | TO(GUEST_TAPPED) | TO(GUEST_ENDED),
    [GUEST_GO] = TO(GUEST_FREE),
    [GUEST_ENDED] = TO(GUEST_FREE),
};

static enum step guest_queued(struct guest *guest);
static enum step guest_tapped(struct guest *guest);
static enum step guest_given(struct guest *guest);
static void guest_deliver_go(struct callback *callback, struct delivery *out);
static void guest_deliver(struct callback *callback, struct delivery *out);

static enum step guest_step(struct guest *guest)
{
    switch (guest->phase) {
    case GUEST_QUEUED: return guest_queued(guest);
    case GUEST_TAPPED: return guest_tapped(guest);
    case GUEST_GIVEN: return guest_given(guest);
    case GUEST_FREE:
    case GUEST_THROTTLED:
    case GUEST_GO_DUE:
    case GUEST_GO:
    case GUEST_ENDED: return STEP_DONE;
    case GUEST_PHASE_COUNT: break;
    }
    UNREACHABLE();
}

static void guest_run(struct ready *ready)
{
    struct guest *guest = CONTAINER_OF(ready, struct guest, ready);

    do {
        if (STRETCH(GUEST_STEP)) {
            blkrepl__guest_wake(guest);
            return;
        }
    } while (guest_step(guest) == STEP_AGAIN);
}

static struct ranges *guest_ranges(const struct guest *guest)
{
    return &guest->image->leaf->ranges;
}

static void guest_queue_callback(struct guest *guest,
                                 void (*deliver)(struct callback *, struct delivery *), bool alone)
{
    guest->callback.deliver = deliver;
    guest->callback.alone = alone;
    guest->callback.quick = false;
    blkrepl__lane_callback(&guest->ctx->lanes[guest->lane], &guest->callback);
}

enum step blkrepl__guest_enter(struct guest *guest, enum guest_phase next)
{
    CHECK(guest_next[guest->phase] & TO(next));
    guest->phase = next;
    return STEP_AGAIN;
}

/* QUEUED: wait for the latest earlier write that overlaps; the earlier ones it
 * waits for itself. */
static enum step guest_queued(struct guest *guest)
{
    struct range *earlier = NULL;

    if (range_live(&guest->range)) {
        earlier = blkrepl__range_earlier_write(guest_ranges(guest), &guest->range);
    }
    if (earlier != NULL) {
        range_wait(earlier, &guest->ready);
        blkrepl__guest_hasten(guest_of_range(earlier));
        return STEP_WAIT;
    }
    return blkrepl__guest_enter(guest, GUEST_TAPPED);
}

/* Ask every tap that was attached before this write was first given. */
static enum tap_answer guest_ask_taps(struct guest *guest, uint64_t start, uint64_t end)
{
    struct list *taps = &guest->image->taps;
    uint64_t given_at = guest->range.given_at;

    for (struct list *link = taps->next; link != taps; link = link->next) {
        struct tap *tap = CONTAINER_OF(link, struct tap, link);
        enum tap_answer answer;

        if (given_at != 0 && given_at < tap->attached_at) {
            continue;
        }
        answer = tap->before(tap, guest, start, end);
        if (answer != TAP_PASS) {
            return answer;
        }
    }
    return TAP_PASS;
}

static enum step guest_end(struct guest *guest, int result);

/* The write may go: through to the backend, beside to the host. */
static enum step guest_give(struct guest *guest)
{
    if (range_live(&guest->range)) {
        guest->range.given = true;
        if (guest->range.given_at == 0) {
            guest->range.given_at = ++guest->ctx->instant;
        }
    }
    if (!guest->beside) {
        return blkrepl__guest_enter(guest, GUEST_GIVEN);
    }
    blkrepl__guest_enter(guest, GUEST_GO_DUE);
    guest_queue_callback(guest, guest_deliver_go, true);
    return STEP_WAIT;
}

/* A piece of a discard was left out; after some of them let others have a turn. */
static enum step guest_skipped(struct guest *guest)
{
    if (guest->done_bytes == guest->bytes) {
        return guest_end(guest, 0);
    }
    if (++guest->skips % SKIPS_MAX != 0) {
        return STEP_AGAIN;
    }
    blkrepl__ready_wake(guest->ctx, &guest->ready);
    return STEP_WAIT;
}

/* TAPPED: jobs save the old data, then copies that are reading finish.  Whoever
 * waited asks the taps again, for a new one may have been attached. */
static enum step guest_tapped(struct guest *guest)
{
    struct range *copy;
    uint64_t start;
    uint64_t end;

    if (!range_live(&guest->range) ||
        (LIKELY(list_empty(&guest->image->taps)) && LIKELY(guest_ranges(guest)->tree.count == 1) &&
         !STRETCH(GUEST_ALONE))) {
        return guest_give(guest);
    }
    blkrepl__piece_range(guest, &start, &end);
    switch (guest_ask_taps(guest, start, end)) {
    case TAP_WAIT: return STEP_WAIT;
    case TAP_FAIL: return guest_end(guest, guest->tap_error);
    case TAP_SKIP: blkrepl__piece_skip(guest); return guest_skipped(guest);
    case TAP_PASS: break;
    }
    copy = blkrepl__range_active_copy(guest_ranges(guest), start, end);
    if (copy != NULL) {
        range_wait(copy, &guest->ready);
        if (copy->hasten != NULL) {
            copy->hasten(copy);
        }
        return STEP_WAIT;
    }
    return guest_give(guest);
}

/* GIVEN: the backend has a piece, or will get the next one. */
static enum step guest_given(struct guest *guest)
{
    switch (blkrepl__piece_send(guest)) {
    case PIECE_SENT:
    case PIECE_WAIT: return STEP_WAIT;
    case PIECE_NONE: break;
    }
    return guest_end(guest, 0);
}

/* The backend has completed a piece. */
static void guest_io_ended(struct request *request)
{
    struct guest *guest = request->owner;
    int rc = blkrepl__piece_ended(guest, request->io_result);

    if (rc < 0) {
        if (guest->piece == PIECE_FLUSH && guest->opcode != BLKREPL_OP_FLUSH) {
            blkrepl__record_flush_ended(&guest->image->record, &guest->flush, rc); /* FUA */
        }
        guest_end(guest, rc);
        return;
    }
    if (range_live(&guest->range) && guest_pieces_tapped(guest) && !guest->patch_due &&
        guest->done_bytes < guest->bytes) {
        guest->range.given = false;
        blkrepl__piece_drop(guest); /* who waits for a job holds no buffer */
        blkrepl__guest_enter(guest, GUEST_TAPPED);
        blkrepl__range_wake(guest_ranges(guest), &guest->range);
    }
    guest_run(&guest->ready);
}

/* A request of the through form has ended: its bitmaps learn of it before anybody
 * else does. */
static void guest_record(struct guest *guest, int result)
{
    struct record *record = &guest->image->record;

    if (range_live(&guest->range) && guest->range.given_at != 0) {
        record_write(record, guest->range.node.start, guest->range.node.end);
    }
    /* Where there is no FLUSH, others may flush by brackets, and this says nothing. */
    if (guest->opcode == BLKREPL_OP_FLUSH && leaf_has(guest->image->leaf, BLKREPL_OP_FLUSH)) {
        blkrepl__record_flush_ended(record, &guest->flush, result);
    }
}

static void guest_leave_throttle(struct guest *guest);

/* Leave whatever it waited for, and its range. */
static void guest_withdraw(struct guest *guest)
{
    list_unlink(&guest->ready.link);
    if (guest->phase == GUEST_THROTTLED) {
        guest_leave_throttle(guest);
    }
    /* Not always the tap that was asked last: another one may fail the write. */
    if (guest->tap_parked != NULL) {
        guest->tap_parked->forget(guest->tap_parked, guest);
    }
    CHECK(guest->tap_parked == NULL && !list_linked(&guest->tap_link));
    if (range_live(&guest->range)) {
        blkrepl__range_end(guest_ranges(guest), &guest->range);
        guest->image->writes--;
    }
    blkrepl__piece_drop(guest);
}

static enum step guest_end(struct guest *guest, int result)
{
    if (!guest->beside) {
        guest_record(guest, result);
    }
    guest_withdraw(guest);
    guest->result = result;
    blkrepl__guest_enter(guest, GUEST_ENDED);
    /* A bracket may be cancelled until its callback runs: not fetched ahead. */
    guest_queue_callback(guest, guest_deliver, guest->beside);
    return STEP_DONE;
}

/* GO_DUE: a poll is about to tell the host. */
static void guest_deliver_go(struct callback *callback, struct delivery *out)
{
    struct guest *guest = CONTAINER_OF(callback, struct guest, callback);

    *out = (struct delivery){.done = guest->done};
    blkrepl__guest_enter(guest, GUEST_GO);
}

/* ENDED: a poll is about to tell the host; the slot is free for the next. */
static void guest_deliver(struct callback *callback, struct delivery *out)
{
    struct guest *guest = CONTAINER_OF(callback, struct guest, callback);

    *out = (struct delivery){.done = guest->done, .result = guest->result};
    blkrepl__guest_put(guest);
}

/* Discards shrink to whole blocks; the rest of a block is left alone. */
static void guest_shrink_discard(struct guest *guest)
{
    uint64_t alignment = guest->image->leaf->port.info.request_alignment;
    uint64_t end = guest->offset + guest->bytes;

    if (end != image_bytes(guest->image)) {
        end = align_down(end, alignment);
    }
    guest->offset = align_up(guest->offset, alignment);
    guest->bytes = end > guest->offset ? end - guest->offset : 0;
}

/* A discard that the backend does not know has no effect: it waits for nobody. */
static bool guest_needless(const struct guest *guest)
{
    return guest->opcode == BLKREPL_OP_DISCARD && !guest->beside &&
           !leaf_has(guest->image->leaf, BLKREPL_OP_DISCARD);
}

static void guest_add_range(struct guest *guest)
{
    uint64_t alignment = guest->image->leaf->port.info.request_alignment;
    uint64_t start = align_down(guest->offset, alignment);
    uint64_t end = align_up(guest->offset + guest->bytes, alignment);

    guest->range.kind = RANGE_WRITE;
    blkrepl__range_add(guest_ranges(guest), &guest->range, start, end);
    guest->image->writes++;
}

/* The way of most writes, who wait for nothing: the same steps as guest_run()
 * takes, without a jump through its switch for each. */
static void guest_first_steps(struct guest *guest)
{
    if (STRETCH(GUEST_START)) {
        blkrepl__guest_wake(guest);
        return;
    }
    if (guest_queued(guest) != STEP_AGAIN || guest_tapped(guest) != STEP_AGAIN) {
        return;
    }
    if (LIKELY(guest->phase == GUEST_GIVEN)) {
        guest_given(guest);
    } else {
        guest_run(&guest->ready);
    }
}

/* It has passed the throttle, if there is one: it is on its way. */
static void guest_begin(struct guest *guest)
{
    if (guest->opcode == BLKREPL_OP_FLUSH ||
        ((guest->flags & BLKREPL_IO_FUA) != 0 &&
         (guest->image->leaf->port.info.flags & BLKREPL_BACKEND_FUA) == 0)) {
        record_flush(&guest->image->record, &guest->flush);
        guest->flush_due = leaf_has(guest->image->leaf, BLKREPL_OP_FLUSH);
    }
    if (guest_writes(guest) && guest->bytes > 0 && !guest_needless(guest)) {
        guest_add_range(guest);
    }
    if (range_live(&guest->range) || guest->beside) {
        blkrepl__guest_enter(guest, GUEST_QUEUED);
        guest_first_steps(guest);
    } else {
        blkrepl__guest_enter(guest, GUEST_GIVEN);
        guest_given(guest);
    }
}

/* Whether one that was accepted before it has been let through, or is about to be, and
 * has not taken its place among the image's requests yet. */
static bool guest_overtakes(const struct guest *guest)
{
    const struct list *link = guest->image_link.prev;

    while (link != &guest->image->guests &&
           CONTAINER_OF(link, const struct guest, image_link)->phase != GUEST_THROTTLED) {
        link = link->prev;
    }
    return link != &guest->image->guests;
}

/* THROTTLED: it is let through. */
static void guest_throttled(struct ready *ready)
{
    struct guest *guest = CONTAINER_OF(ready, struct guest, turn.ready);

    if (guest_overtakes(guest)) {
        blkrepl__ready_wake(guest->ctx, ready); /* the other one has been woken before it */
        return;
    }
    guest_leave_throttle(guest);
    guest_begin(guest);
}

/* A write that waits here has no range yet, but is one of the image's writes. */
static void guest_leave_throttle(struct guest *guest)
{
    blkrepl__throttle_leave(guest->image->throttle, &guest->turn);
    guest->image->writes -= guest_writes(guest);
    guest->image->throttled--;
}

/* Whether it has to wait for the image's throttle, or for others that did: it is in the
 * row then, or woken behind them. */
static bool guest_must_wait(struct guest *guest)
{
    struct blkrepl_throttle *throttle = guest->image->throttle;
    uint32_t throttled = guest->image->throttled;

    if (LIKELY(throttle == NULL && throttled == 0) ||
        (guest->opcode != BLKREPL_OP_READ && !guest_writes(guest))) {
        return false;
    }
    guest->turn.bytes = guest->bytes;
    guest->turn.ready.run = guest_throttled;
    if (throttle != NULL && !blkrepl__throttle_pass(throttle, &guest->turn)) {
        return true;
    }
    if (throttled > 0) {
        blkrepl__ready_wake(guest->ctx, &guest->turn.ready);
    }
    return throttled > 0;
}

void blkrepl__guests_pass(struct blkrepl_image *image)
{
    for (struct list *link = image->guests.next; link != &image->guests; link = link->next) {
        struct guest *guest = CONTAINER_OF(link, struct guest, image_link);

        if (guest->phase == GUEST_THROTTLED) {
            blkrepl__throttle_leave(image->throttle, &guest->turn);
            blkrepl__ready_wake(image->ctx, &guest->turn.ready);
        }
    }
}

void blkrepl__guest_start(struct guest *guest)
{
    if (guest->opcode == BLKREPL_OP_DISCARD && !guest->beside) {
        guest_shrink_discard(guest);
    }
    if (!guest->beside && blkrepl__piece_refused(guest)) {
        blkrepl__guest_enter(guest, GUEST_GIVEN);
        guest_end(guest, -ENOTSUP);
    } else if (guest_must_wait(guest)) {
        blkrepl__guest_enter(guest, GUEST_THROTTLED);
        guest->image->writes += guest_writes(guest);
        guest->image->throttled++;
    } else {
        guest_begin(guest);
    }
}

void blkrepl__guest_end_bracket(struct guest *guest, const int *result)
{
    struct record *record = &guest->image->record;

    if (result != NULL && range_live(&guest->range)) {
        record_write(record, guest->range.node.start, guest->range.node.end);
    } else if (result != NULL && guest->opcode == BLKREPL_OP_FLUSH) {
        blkrepl__record_flush_ended(record, &guest->flush, *result);
    }
    guest_withdraw(guest);
    blkrepl__guest_put(guest);
}

void blkrepl__guest_cancel_wait(struct guest *guest)
{
    blkrepl__lane_uncallback(&guest->ctx->lanes[guest->lane], &guest->callback);
    guest_end(guest, -ECANCELED);
}

struct guest *blkrepl__guest_reset(struct blkrepl_image *image, uint32_t number,
                                   struct request *request)
{
    struct blkrepl_context *ctx = image->ctx;
    struct guest *guest = blkrepl__guest_of_slot(ctx, request->index);

    guest->ctx = ctx;
    guest->request = request;
    guest->image = image;
    guest->lane = number;
    guest->ready.run = guest_run;
    guest->done_bytes = 0;
    guest->result = 0;
    guest->flush_due = false;
    guest->patch_due = false;
    guest->tap_error = 0;
    guest->skips = 0;
    guest->hastened = false;
    guest->cancelled = false;
    guest->tap_counted = 0;
    guest->range.given_at = 0;
    request->owner = guest;
    request->ended = guest_io_ended;
    return guest;
}

void blkrepl__guest_hold_range(struct guest *guest)
{
    guest_add_range(guest);
    guest->range.given = true;
    guest->range.given_at = ++guest->ctx->instant;
}

void blkrepl__guest_drop_range(struct guest *guest)
{
    blkrepl__range_end(guest_ranges(guest), &guest->range);
    guest->image->writes--;
}

void blkrepl__guest_await_poll(struct guest *guest)
{
    guest->callback.deliver = guest_deliver;
    guest->callback.quick = false;
}

void blkrepl__guest_wake(struct guest *guest)
{
    blkrepl__ready_wake(guest->ctx, &guest->ready);
}

void blkrepl__guest_hasten(struct guest *guest)
{
    guest->hastened = true;
    atomic_store(&guest->request->awaited, true);
    if (guest->phase == GUEST_GIVEN) {
        blkrepl__port_hasten(guest->request);
    }
}

void blkrepl__guest_make_way(struct guest *guest)
{
    if (guest->phase != GUEST_GO_DUE) {
        blkrepl__guest_hasten(guest);
        return;
    }
    blkrepl__lane_uncallback(&guest->ctx->lanes[guest->lane], &guest->callback);
    guest->range.given = false;
    guest->range.given_at = 0;
    blkrepl__guest_enter(guest, GUEST_TAPPED);
    blkrepl__range_wake(guest_ranges(guest), &guest->range);
    blkrepl__guest_wake(guest);
}
