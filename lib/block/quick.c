/* SPDX-License-Identifier: MIT */
/* quick.c - the quick way of guest requests through an image that no job uses. */
#include "block/quick.h"

#include "base/checked.h"
#include "base/hook.h"
#include "core/lane.h"
#include "core/port_quick.h"

/* A stripe's part of the disk, again and again. */
#define STRIPE_SHIFT 20
/* Slow requests before the image may go back to the quick way, and before the
 * next try when something stood against it. */
#define SLOW_FIRST 256
#define SLOW_AGAIN 64

bool blkrepl__quick_init(struct blkrepl_image *image)
{
    image->stripes =
        blkrepl__zalloc_array(&image->ctx->alloc, QUICK_STRIPES, sizeof *image->stripes);
    if (image->stripes == NULL) {
        return false;
    }
    for (; image->stripes_made < QUICK_STRIPES; image->stripes_made++) {
        struct quick_stripe *stripe = &image->stripes[image->stripes_made];

        list_init(&stripe->writes);
        if (pthread_mutex_init(&stripe->lock, NULL) != 0) {
            blkrepl__quick_fini(image);
            return false;
        }
    }
    return true;
}

void blkrepl__quick_fini(struct blkrepl_image *image)
{
    while (image->stripes_made > 0) {
        pthread_mutex_destroy(&image->stripes[--image->stripes_made].lock);
    }
    blkrepl__free(&image->ctx->alloc, image->stripes);
}

/* ---- Stripes ---------------------------------------------------------------- */

/* The range that a write holds. */
static void quick_range(const struct guest *guest, uint64_t *start, uint64_t *end)
{
    uint64_t alignment = guest->image->leaf->port.info.request_alignment;

    *start = align_down(guest->offset, alignment);
    *end = align_up(guest->offset + guest->bytes, alignment);
}

static bool quick_narrow(uint64_t start, uint64_t end)
{
    return start < end && start >> STRIPE_SHIFT == (end - 1) >> STRIPE_SHIFT;
}

static struct quick_stripe *stripe_lock(const struct guest *guest)
{
    uint64_t part = guest->offset >> STRIPE_SHIFT;
    struct quick_stripe *stripe = &guest->image->stripes[part % QUICK_STRIPES];

    if (guest->ctx->lane_count > 1) {
        pthread_mutex_lock(&stripe->lock);
    }
    return stripe;
}

static void stripe_unlock(const struct guest *guest, struct quick_stripe *stripe)
{
    if (guest->ctx->lane_count > 1) {
        pthread_mutex_unlock(&stripe->lock);
    }
}

static bool stripe_overlaps(const struct quick_stripe *stripe, uint64_t start, uint64_t end)
{
    for (const struct list *link = stripe->writes.next; link != &stripe->writes;
         link = link->next) {
        uint64_t from;
        uint64_t to;

        quick_range(CONTAINER_OF(link, struct guest, stripe_link), &from, &to);
        if (from < end && start < to) {
            return true;
        }
    }
    return false;
}

/* Put a write into its stripe; false if an earlier one overlaps. */
static bool stripe_add(struct guest *guest)
{
    struct quick_stripe *stripe;
    uint64_t start;
    uint64_t end;
    bool alone;

    quick_range(guest, &start, &end);
    stripe = stripe_lock(guest);
    alone = !stripe_overlaps(stripe, start, end);
    if (alone) {
        list_append(&stripe->writes, &guest->stripe_link);
    }
    stripe_unlock(guest, stripe);
    guest->in_stripe = alone;
    return alone;
}

static void stripe_remove(struct guest *guest)
{
    if (guest->in_stripe) {
        struct quick_stripe *stripe = stripe_lock(guest);

        list_remove(&guest->stripe_link);
        stripe_unlock(guest, stripe);
        guest->in_stripe = false;
    }
}

/* ---- The way of a quick request, with the lane's lock ----------------------- */

static struct port_queue *quick_queue(const struct guest *guest)
{
    return &guest->image->leaf->port.guest[guest->lane];
}

/* The host is about to be told; the slot is free for the next. */
static void quick_deliver(struct callback *callback, struct delivery *out)
{
    struct guest *guest = CONTAINER_OF(callback, struct guest, callback);

    *out = (struct delivery){.done = guest->done, .result = guest->result};
    blkrepl__guest_enter(guest, GUEST_FREE);
    list_remove(&guest->quick_link);
    blkrepl__lane_slot_put(&guest->ctx->lanes[guest->lane], guest->request);
}

/* It has ended: its bitmaps learn of it before anybody else does. */
static void quick_record(struct guest *guest, int result)
{
    struct record *record = &guest->image->record;

    if (guest->in_stripe) {
        uint64_t start;
        uint64_t end;

        quick_range(guest, &start, &end);
        record_write(record, start, end);
    } else if (guest->opcode == BLKREPL_OP_FLUSH) {
        blkrepl__record_flush_ended(record, &guest->flush, result);
    }
}

/* The backend has completed it. */
static void quick_ended(struct request *request)
{
    struct guest *guest = request->owner;

    blkrepl__port_place_put(quick_queue(guest));
    quick_record(guest, request->io_result);
    stripe_remove(guest);
    guest->result = request->io_result;
    blkrepl__guest_enter(guest, GUEST_ENDED);
    guest->callback.deliver = quick_deliver;
    guest->callback.quick = true;
    guest->callback.alone = false;
    list_append(&guest->ctx->lanes[guest->lane].callbacks, &guest->callback.link);
}

/* Whether the image goes the quick way now. */
static bool quick_open(const struct blkrepl_image *image)
{
    return !atomic_load(&image->ctx->attention) && atomic_load(&image->leaf->port.quick) &&
           !STRETCH(QUICK);
}

/* A slot for a quick request. */
static struct guest *quick_take(struct blkrepl_image *image, uint32_t number)
{
    struct lane *lane = &image->ctx->lanes[number];
    struct request *request = blkrepl__lane_slot_take(lane);
    struct guest *guest;

    if (request == NULL) {
        return NULL;
    }
    guest = blkrepl__guest_reset(image, number, request);
    request->quick_ended = quick_ended;
    return guest;
}

/* It is accepted. */
static void quick_keep(struct guest *guest, enum guest_phase phase)
{
    if (guest->opcode == BLKREPL_OP_FLUSH) {
        record_flush(&guest->image->record, &guest->flush);
    }
    atomic_store(&guest->request->quick, true);
    list_append(&guest->ctx->lanes[guest->lane].quick, &guest->quick_link);
    blkrepl__guest_enter(guest, phase);
}

/* It is not: as if nothing had happened. */
static void quick_give_up(struct guest *guest)
{
    guest->token = 0;
    blkrepl__request_put(&guest->ctx->lanes[guest->lane].requests, guest->request);
}

static struct guest *quick_accept(struct blkrepl_image *image, const struct guest_call *call,
                                  const blkrepl_completion *done)
{
    struct guest *guest = quick_open(image) ? quick_take(image, call->lane) : NULL;

    if (guest == NULL) {
        return NULL;
    }
    blkrepl__guest_take_call(guest, call, done);
    if (!blkrepl__port_place_take(quick_queue(guest))) {
        quick_give_up(guest);
        return NULL;
    }
    if (guest_writes(guest) && !stripe_add(guest)) {
        blkrepl__port_place_put(quick_queue(guest));
        quick_give_up(guest);
        return NULL;
    }
    quick_keep(guest, GUEST_GIVEN);
    return guest;
}

/* ---- Entries ---------------------------------------------------------------- */

void blkrepl__quick_attend(struct blkrepl_context *ctx, uint32_t lane)
{
    if (UNLIKELY(atomic_load(&ctx->attention))) {
        blkrepl__enter(ctx);
        blkrepl__leave(ctx, lane);
    }
}

/* What needs attention concerns other images as a rule: it is advanced before the
 * lane is entered, so that this image need not turn.  Returns whether there was
 * something. */
static bool quick_attend_first(struct blkrepl_image *image)
{
    struct blkrepl_context *ctx = image->ctx;

    if (LIKELY(!atomic_load(&ctx->attention)) || !atomic_load(&image->leaf->port.quick)) {
        return false;
    }
    /* Nothing of the host runs before the request is accepted: what there is to give
     * away is left to polls. */
    blkrepl__enter(ctx);
    blkrepl__advance(ctx);
    blkrepl__leave_quietly(ctx);
    return true;
}

/* With the lane's lock: the call begins. */
static void quick_entered(uint32_t lane, bool attended)
{
    (void)lane;
    if (attended) {
        RECORD(PASS, lane);
    }
    RECORD(ENTER, lane);
}

/* Whether the request is one that a backend takes in one piece, and that waits
 * for nobody if no job looks on. */
static bool quick_fits(const struct blkrepl_image *image, const struct guest_call *call)
{
    const struct leaf *leaf = image->leaf;
    const blkrepl_backend_info *info = &leaf->port.info;
    uint64_t mask = info->request_alignment - 1;
    uint64_t end = call->offset + call->bytes;

    if (call->opcode == BLKREPL_OP_FLUSH) {
        return leaf_has(leaf, BLKREPL_OP_FLUSH);
    }
    if ((call->opcode != BLKREPL_OP_READ && call->opcode != BLKREPL_OP_WRITE) || call->bytes == 0 ||
        call->bytes > info->transfer_bytes_max || call->iov_count > info->iov_count_max ||
        (call->offset & mask) != 0 || ((end & mask) != 0 && end != info->bytes) ||
        ((call->flags & BLKREPL_IO_FUA) != 0 && (info->flags & BLKREPL_BACKEND_FUA) == 0)) {
        return false;
    }
    return (call->opcode == BLKREPL_OP_READ ||
            quick_narrow(call->offset, align_up(end, info->request_alignment))) &&
           blkrepl__iov_aligned(call->iov, call->iov_count, info->memory_alignment);
}

bool blkrepl__quick_call(struct blkrepl_image *image, const struct guest_call *call,
                         const blkrepl_completion *done)
{
    struct blkrepl_context *ctx = image->ctx;
    struct lane *lane = &ctx->lanes[call->lane];
    struct guest *guest;
    bool tell = false;
    bool attended;

    if (!quick_fits(image, call)) {
        return false;
    }
    blkrepl__error_begin();
    attended = quick_attend_first(image);
    pthread_mutex_lock(&lane->lock);
    quick_entered(call->lane, attended);
    blkrepl__lane_collect(ctx, lane);
    guest = quick_accept(image, call, done);
    if (guest != NULL) {
        blkrepl__piece_send_quick(guest);
        lane->inside++;
        blkrepl__port_submit_quick(ctx, quick_queue(guest), guest->request);
        lane->inside--;
        tell = lane_quick_waits(lane);
    } else {
        RECORD(PASS, call->lane);
    }
    pthread_mutex_unlock(&lane->lock);
    if (tell) {
        lane_wake(lane);
    }
    if (guest != NULL) {
        blkrepl__quick_attend(ctx, call->lane);
    }
    return guest != NULL;
}

bool blkrepl__quick_begin(struct blkrepl_image *image, const blkrepl_bracket *what, uint64_t *token)
{
    struct lane *lane = &image->ctx->lanes[what->lane];
    struct guest *guest = NULL;
    bool attended;

    if (what->opcode != BLKREPL_OP_FLUSH &&
        !quick_narrow(what->offset, what->offset + what->bytes)) {
        return false;
    }
    blkrepl__error_begin();
    attended = quick_attend_first(image);
    pthread_mutex_lock(&lane->lock);
    quick_entered(what->lane, attended);
    blkrepl__lane_collect(image->ctx, lane);
    if (quick_open(image)) {
        guest = quick_take(image, what->lane);
    }
    if (guest != NULL) {
        blkrepl__guest_take_bracket(guest, what, &(blkrepl_completion){.fn = NULL});
        if (guest_writes(guest) && !stripe_add(guest)) {
            quick_give_up(guest);
            guest = NULL;
        } else {
            quick_keep(guest, GUEST_GO);
            *token = guest->token;
        }
    }
    if (guest == NULL) {
        RECORD(PASS, what->lane);
    }
    pthread_mutex_unlock(&lane->lock);
    if (guest != NULL) {
        blkrepl__quick_attend(image->ctx, what->lane);
    }
    return guest != NULL;
}

bool blkrepl__quick_end(struct blkrepl_context *ctx, uint64_t token, const int *result)
{
    uint64_t index = token & REQUEST_INDEX_MASK;
    bool quick = false;
    bool tell = false;
    struct lane *lane;

    if (index >= (uint64_t)ctx->lane_count * ctx->requests_max ||
        !atomic_load(&ctx->slots[index].quick)) {
        return false;
    }
    lane = lane_of_slot(ctx, index);
    pthread_mutex_lock(&lane->lock);
    RECORD(ENTER, (uint32_t)(lane - ctx->lanes));
    if (atomic_load(&ctx->slots[index].quick)) {
        struct guest *guest = blkrepl__guest_of_slot(ctx, (uint32_t)index);

        quick = token != 0 && guest->token == token && guest->phase == GUEST_GO;
        if (quick) {
            if (result != NULL) {
                quick_record(guest, *result);
            }
            stripe_remove(guest);
            guest->token = 0;
            blkrepl__guest_enter(guest, GUEST_FREE);
            list_remove(&guest->quick_link);
            blkrepl__lane_slot_put(lane, guest->request);
            tell = lane->room_due;
        }
    }
    if (!quick) {
        RECORD(PASS, (uint32_t)(lane - ctx->lanes));
    }
    pthread_mutex_unlock(&lane->lock);
    if (tell) {
        lane_wake(lane);
    }
    return quick;
}

/* ---- From one way to the other, with the context's lock --------------------- */

/* A quick guest becomes an ordinary one, with the lane's lock too. */
static void quick_absorb(struct guest *guest)
{
    struct blkrepl_image *image = guest->image;

    atomic_store(&guest->request->quick, false);
    list_remove(&guest->quick_link);
    blkrepl__guest_count(guest);
    if (guest->phase == GUEST_ENDED) {
        blkrepl__guest_await_poll(guest);
        return;
    }
    if (guest->in_stripe) {
        stripe_remove(guest);
        blkrepl__guest_hold_range(guest);
    }
    if (guest->phase == GUEST_GIVEN) {
        blkrepl__port_quick_absorb(&image->leaf->port, guest->request);
    }
}

void blkrepl__quick_stop(struct blkrepl_image *image)
{
    struct blkrepl_context *ctx = image->ctx;
    struct port *port = &image->leaf->port;

    if (LIKELY(!atomic_load(&port->quick))) {
        return;
    }
    image->slow_left = SLOW_FIRST;
    atomic_store(&port->quick, false);
    for (uint32_t i = 0; i < ctx->lane_count; i++) {
        struct lane *lane = &ctx->lanes[i];
        struct list *link;
        struct list *next;

        pthread_mutex_lock(&lane->lock);
        for (link = lane->quick.next; link != &lane->quick; link = next) {
            struct guest *guest = CONTAINER_OF(link, struct guest, quick_link);

            next = link->next;
            if (guest->image == image) {
                quick_absorb(guest);
            }
        }
        blkrepl__port_quick_end(&port->guest[i]);
        pthread_mutex_unlock(&lane->lock);
    }
    /* A completion that was recorded as a quick one meanwhile is so no more. */
    atomic_store(&ctx->attention, true);
}

/* The image of the first quick request of a lane. */
static struct blkrepl_image *quick_first_image(struct lane *lane)
{
    struct blkrepl_image *image = NULL;

    pthread_mutex_lock(&lane->lock);
    if (!list_empty(&lane->quick)) {
        image = CONTAINER_OF(lane->quick.next, struct guest, quick_link)->image;
    }
    pthread_mutex_unlock(&lane->lock);
    return image;
}

void blkrepl__quick_stop_all(struct blkrepl_context *ctx)
{
    for (uint32_t i = 0; i < ctx->lane_count; i++) {
        struct blkrepl_image *image;

        while ((image = quick_first_image(&ctx->lanes[i])) != NULL) {
            blkrepl__quick_stop(image);
        }
    }
}

/* Whether a guest of the slow way is at a point where a quick one could be. */
static bool quick_convertible(const struct guest *guest)
{
    const struct request *request = guest->request;

    if (range_live(&guest->range) &&
        (!list_empty(&guest->range.waiters) ||
         !quick_narrow(guest->range.node.start, guest->range.node.end))) {
        return false;
    }
    switch (guest->phase) {
    case GUEST_ENDED: return true;
    case GUEST_GO: return true;
    case GUEST_GIVEN:
        return !guest->beside && blkrepl__piece_whole(guest) && !request->queued &&
               request->io.lane == guest->lane && atomic_load(&request->live_id) != 0;
    case GUEST_FREE:
    case GUEST_THROTTLED:
    case GUEST_QUEUED:
    case GUEST_TAPPED:
    case GUEST_GO_DUE: return false;
    case GUEST_PHASE_COUNT: break;
    }
    UNREACHABLE();
}

/* Whether nothing stands against the quick way.  *in_flight: how many requests
 * are at the backend. */
static bool quick_possible(const struct blkrepl_image *image, uint32_t *in_flight)
{
    const struct list *link;

    *in_flight = 0;
    if (!image->open || image->ctx->shut || image->jobs_reading + image->jobs_writing > 0 ||
        !list_empty(&image->taps) || image->throttle != NULL ||
        !list_empty(&image->leaf->bounce_waiters)) {
        return false;
    }
    for (link = image->guests.next; link != &image->guests; link = link->next) {
        const struct guest *guest = CONTAINER_OF(link, struct guest, image_link);

        if (!quick_convertible(guest)) {
            return false;
        }
        *in_flight += guest->phase == GUEST_GIVEN;
    }
    return blkrepl__port_calm(&image->leaf->port, *in_flight);
}

/* An ordinary guest becomes a quick one; one that has ended stays what it is. */
static void quick_convert(struct guest *guest)
{
    struct lane *lane = &guest->ctx->lanes[guest->lane];
    bool writes = range_live(&guest->range);
    bool alone = true;

    if (guest->phase == GUEST_ENDED) {
        return;
    }
    blkrepl__guest_uncount(guest);
    pthread_mutex_lock(&lane->lock);
    if (writes) {
        blkrepl__guest_drop_range(guest);
        alone = stripe_add(guest); /* given writes do not overlap */
    }
    guest->request->quick_ended = quick_ended;
    atomic_store(&guest->request->quick, true);
    list_append(&lane->quick, &guest->quick_link);
    pthread_mutex_unlock(&lane->lock);
    CHECK(alone);
}

void blkrepl__quick_resume(struct blkrepl_image *image)
{
    struct port *port = &image->leaf->port;
    struct list *link;
    struct list *next;
    uint32_t in_flight;

    if (image->slow_left > 0 && !STRETCH(QUICK_AGAIN)) {
        image->slow_left--;
        return;
    }
    if (atomic_load(&port->quick) || !quick_possible(image, &in_flight)) {
        image->slow_left = SLOW_AGAIN;
        return;
    }
    port->guest_in_flight = 0;
    blkrepl__port_quick_begin(port, in_flight); /* from the first on they may end */
    for (link = image->guests.next; link != &image->guests; link = next) {
        next = link->next;
        quick_convert(CONTAINER_OF(link, struct guest, image_link));
    }
    atomic_store(&port->quick, true);
}

uint32_t blkrepl__quick_count(struct blkrepl_image *image)
{
    struct blkrepl_context *ctx = image->ctx;
    uint32_t count = 0;

    for (uint32_t i = 0; i < ctx->lane_count; i++) {
        const struct list *link;

        pthread_mutex_lock(&ctx->lanes[i].lock);
        for (link = ctx->lanes[i].quick.next; link != &ctx->lanes[i].quick; link = link->next) {
            count += CONTAINER_OF(link, struct guest, quick_link)->image == image;
        }
        pthread_mutex_unlock(&ctx->lanes[i].lock);
    }
    return count;
}
