/* SPDX-License-Identifier: MIT */
/* bracket.c - the public functions of the beside form. */
#include <errno.h>
#include <inttypes.h>

#include "base/abi.h"
#include "base/checked.h"
#include "base/hook.h"
#include "base/struct_io.h"
#include "block/quick.h"
#include "core/error.h"
#include "core/lane.h"

static bool bracket_opcode_valid(const blkrepl_bracket *what)
{
    switch (what->opcode) {
    case BLKREPL_OP_WRITE:
    case BLKREPL_OP_ZEROES:
    case BLKREPL_OP_DISCARD: return true;
    case BLKREPL_OP_FLUSH: return what->offset == 0 && what->bytes == 0;
    default: return false;
    }
}

static bool bracket_range_valid(const struct blkrepl_image *image, const blkrepl_bracket *what)
{
    uint64_t mask = image->leaf->port.info.request_alignment - 1;
    uint64_t size = image_bytes(image);

    return range_inside(what->offset, what->bytes, size) && (what->offset & mask) == 0 &&
           ((what->bytes & mask) == 0 || what->offset + what->bytes == size);
}

static int bracket_check(const struct blkrepl_image *image, const blkrepl_bracket *what)
{
    if (!blkrepl__lane_valid(image->ctx, what->lane)) {
        return -EINVAL;
    }
    if (!bracket_opcode_valid(what) ||
        (what->flags & ~(uint32_t)(BLKREPL_IO_FUA | BLKREPL_IO_MAY_UNMAP)) != 0) {
        return blkrepl__fail(-EINVAL, "image \"%s\": bad opcode or flags of a bracket",
                             image->name);
    }
    if (!bracket_range_valid(image, what)) {
        return blkrepl__fail(-EINVAL,
                             "image \"%s\": bracket %" PRIu64 "+%" PRIu64
                             " is not aligned to %" PRIu32 " or not inside %" PRIu64 " bytes",
                             image->name, what->offset, what->bytes,
                             image->leaf->port.info.request_alignment, image_bytes(image));
    }
    if (image->read_only && what->opcode != BLKREPL_OP_FLUSH) {
        return blkrepl__fail(-EROFS, "image \"%s\": read-only", image->name);
    }
    return 0;
}

void blkrepl__guest_take_bracket(struct guest *guest, const blkrepl_bracket *what,
                                 const blkrepl_completion *go)
{
    guest->opcode = what->opcode;
    guest->flags = 0;
    guest->offset = what->offset;
    guest->bytes = what->bytes;
    guest->beside = true;
    guest->done = *go;
    guest->token = blkrepl__request_new_id(guest->request);
}

/* If the bracket got its GO meanwhile, that is the answer of begin.
 * `token` tells whether the slot is still ours: another thread's poll may have
 * run the callback, and the host may have ended the bracket. */
static int bracket_answer(struct guest *guest, uint64_t token)
{
    struct delivery unused;

    if (guest->token != token || guest->phase != GUEST_GO_DUE || STRETCH(GO)) {
        return BLKREPL_WAIT; /* also if it has failed: the callback says so */
    }
    blkrepl__lane_uncallback(&guest->ctx->lanes[guest->lane], &guest->callback);
    guest->callback.deliver(&guest->callback, &unused);
    return 0;
}

/* Begin with the lock held; what is saved inline lets it answer GO at once. */
static int bracket_begin(struct blkrepl_image *image, const blkrepl_bracket *what,
                         const blkrepl_completion *go, uint64_t *token)
{
    struct blkrepl_context *ctx = image->ctx;
    struct guest *guest;
    uint64_t mine;

    if (ctx->shut) {
        return blkrepl__fail(-ESHUTDOWN, "image \"%s\": the context is being freed", image->name);
    }
    if (image->jobs_writing > 0 && what->opcode != BLKREPL_OP_FLUSH) {
        return blkrepl__fail(-EBUSY, "image \"%s\": it is the target of a job", image->name);
    }
    guest = blkrepl__guest_take(image, what->lane);
    if (guest == NULL) {
        return blkrepl__guest_no_room(image, what->lane, go);
    }
    blkrepl__guest_take_bracket(guest, what, go);
    mine = guest->token;
    *token = mine;
    blkrepl__guest_start(guest);
    if (guest->phase != GUEST_GO_DUE) {
        blkrepl__advance(ctx);
        blkrepl__empty_outbox(ctx, what->lane, OUTBOX_CALL);
    }
    return bracket_answer(guest, mine);
}

static int bracket_call(blkrepl_image *image, const blkrepl_bracket *what,
                        const blkrepl_completion *go, uint64_t *token)
{
    blkrepl_bracket copy;
    int rc;

    if (image == NULL || what == NULL || go == NULL || go->fn == NULL || token == NULL) {
        return blkrepl__fail(-EINVAL, "write_begin: an argument is NULL");
    }
    rc = blkrepl__struct_in(&copy, sizeof copy, BLKREPL_BRACKET_V1_BYTES, what);
    if (rc < 0) {
        return blkrepl__fail_code(rc, "write_begin");
    }
    rc = bracket_check(image, &copy);
    if (rc < 0 || blkrepl__quick_begin(image, &copy, token)) {
        return rc;
    }
    blkrepl__enter(image->ctx);
    rc = bracket_begin(image, &copy, go, token);
    if (rc < 0) {
        *token = 0;
    }
    blkrepl__leave(image->ctx, copy.lane);
    return rc;
}

int blkrepl_write_begin(blkrepl_image *image, const blkrepl_bracket *what,
                        const blkrepl_completion *go, uint64_t *token)
{
    const struct blkrepl_context *ctx = image != NULL ? image->ctx : NULL;
    int rc;

    if (token != NULL) {
        *token = 0;
    }
    rc = bracket_call(image, what, go, token);
    if (rc != BLKREPL_WAIT) {
        blkrepl__completion_release(ctx, go);
    }
    return rc;
}

/* The lane of a bracket. */
static uint32_t bracket_lane(const struct blkrepl_context *ctx, uint64_t token)
{
    return (uint32_t)(lane_of_slot(ctx, token & REQUEST_INDEX_MASK) - ctx->lanes);
}

/* The end of a bracket that did not go the quick way when it was looked at. */
static int bracket_end(struct blkrepl_context *ctx, uint64_t token, int result)
{
    struct guest *guest;
    uint32_t lane = 0;
    int rc = 0;

    blkrepl__enter(ctx);
    guest = blkrepl__guest_of_token(ctx, token);
    if (guest != NULL && guest->phase == GUEST_GO) {
        lane = guest->lane;
        blkrepl__guest_end_bracket(guest, &result);
    } else if (!blkrepl__quick_end(ctx, token, &result)) { /* its image may have gone back to it */
        rc = blkrepl__fail(-ENOENT, "write_end: no bracket with this token has its GO");
    }
    blkrepl__leave(ctx, lane);
    return rc;
}

int blkrepl_write_end(blkrepl_context *ctx, uint64_t token, int result, const blkrepl_iovec *data,
                      uint32_t iov_count, const blkrepl_completion *done)
{
    int rc = 0;

    (void)data;
    (void)iov_count;
    if (ctx == NULL || result > 0) {
        blkrepl__completion_release(ctx, done);
        return blkrepl__fail(-EINVAL, "write_end: %s",
                             ctx == NULL ? "context is NULL" : "the result is positive");
    }
    if (blkrepl__quick_end(ctx, token, &result)) {
        blkrepl__quick_attend(ctx, bracket_lane(ctx, token));
    } else {
        rc = bracket_end(ctx, token, result);
    }
    blkrepl__completion_release(ctx, done);
    return rc;
}

int blkrepl_write_cancel(blkrepl_context *ctx, uint64_t token)
{
    struct guest *guest;
    int rc = 0;

    if (ctx == NULL) {
        return blkrepl__fail(-EINVAL, "write_cancel: context is NULL");
    }
    if (blkrepl__quick_end(ctx, token, NULL)) {
        blkrepl__quick_attend(ctx, bracket_lane(ctx, token));
        return 0;
    }
    blkrepl__enter(ctx);
    guest = blkrepl__guest_of_token(ctx, token);
    if (blkrepl__quick_end(ctx, token, NULL)) {
        rc = 0; /* its image has gone back to the quick way meanwhile */
    } else if (guest == NULL || guest->cancelled) {
        rc = blkrepl__fail(-ENOENT, "write_cancel: no bracket with this token");
    } else if (guest->phase == GUEST_GO) {
        blkrepl__guest_end_bracket(guest, NULL);
    } else {
        if (guest->phase != GUEST_ENDED) {
            blkrepl__guest_cancel_wait(guest);
        }
        guest->result = -ECANCELED;
        guest->cancelled = true;
        rc = BLKREPL_WAIT;
    }
    blkrepl__leave(ctx, 0);
    return rc;
}
