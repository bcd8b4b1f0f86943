/* SPDX-License-Identifier: MIT */
/* guest_slot.c - the array of guests: taking one, finding it, giving it back. */
#include <errno.h>
#include <inttypes.h>

#include "block/quick.h"
#include "core/error.h"
#include "core/lane.h"
#include "core/wait.h"

static void guests_free(struct blkrepl_context *ctx)
{
    blkrepl__free(&ctx->alloc, ctx->guests);
}

int blkrepl__guests_prepare(struct blkrepl_context *ctx)
{
    uint64_t count = (uint64_t)ctx->lane_count * ctx->requests_max;
    int rc = 0;

    blkrepl__enter(ctx);
    if (ctx->guests == NULL) {
        ctx->guests = blkrepl__zalloc_array(&ctx->alloc, count, sizeof(struct guest));
        ctx->guests_free = guests_free;
        ctx->quick_stop = blkrepl__quick_stop_all;
        rc = ctx->guests != NULL ? 0 : blkrepl__fail(-ENOMEM, "image: no memory");
    }
    blkrepl__leave(ctx, 0);
    return rc;
}

struct guest *blkrepl__guest_of_slot(struct blkrepl_context *ctx, uint32_t index)
{
    return (struct guest *)ctx->guests + index;
}

struct guest *blkrepl__guest_take(struct blkrepl_image *image, uint32_t number)
{
    struct lane *lane = &image->ctx->lanes[number];
    struct request *request;
    struct guest *guest;

    pthread_mutex_lock(&lane->lock);
    request = blkrepl__lane_slot_take(lane);
    pthread_mutex_unlock(&lane->lock);
    if (request == NULL) {
        return NULL;
    }
    blkrepl__quick_stop(image);
    guest = blkrepl__guest_reset(image, number, request);
    atomic_store_explicit(&request->quick, false, memory_order_relaxed);
    blkrepl__guest_count(guest);
    return guest;
}

int blkrepl__guest_no_room(struct blkrepl_image *image, uint32_t lane,
                           const blkrepl_completion *done)
{
    struct blkrepl_context *ctx = image->ctx;

    /* A blocking call waits for room by itself. */
    if (done == NULL || done->fn != blkrepl__waiter_done) {
        blkrepl__lane_want_room(&ctx->lanes[lane]);
    }
    return blkrepl__fail(-EAGAIN, "image \"%s\": all %" PRIu32 " requests are in use", image->name,
                         ctx->requests_max);
}

void blkrepl__guest_put(struct guest *guest)
{
    struct blkrepl_image *image = guest->image;

    CHECK(!range_live(&guest->range) && !list_linked(&guest->ready.link));
    CHECK(!list_linked(&guest->tap_link) && !list_linked(&guest->turn.ready.link));
    blkrepl__guest_enter(guest, GUEST_FREE);
    guest->token = 0;
    image->requests--;
    list_remove(&guest->image_link);
    blkrepl__guest_slot_put(guest->ctx, guest->lane, guest->request);
    blkrepl__quick_resume(image);
    blkrepl__image_unref(image);
}

void blkrepl__guest_count(struct guest *guest)
{
    guest->image->requests++;
    blkrepl__image_ref(guest->image);
    list_append(&guest->image->guests, &guest->image_link);
}

void blkrepl__guest_uncount(struct guest *guest)
{
    struct blkrepl_image *image = guest->image;

    CHECK(image->open && image->refs > 1);
    image->requests--;
    image->refs--;
    list_remove(&guest->image_link);
}

struct guest *blkrepl__guest_of_token(struct blkrepl_context *ctx, uint64_t token)
{
    uint64_t index = token & REQUEST_INDEX_MASK;
    struct guest *guest;

    if (token == 0 || ctx->guests == NULL ||
        index >= (uint64_t)ctx->lane_count * ctx->requests_max) {
        return NULL;
    }
    guest = blkrepl__guest_of_slot(ctx, (uint32_t)index);
    return !atomic_load(&ctx->slots[index].quick) && guest->token == token ? guest : NULL;
}
