/* SPDX-License-Identifier: MIT */
/* guest_io.c - the public functions of the through form. */
#include <errno.h>
#include <inttypes.h>

#include "base/checked.h"
#include "block/quick.h"
#include "core/error.h"

static bool call_changes(const struct guest_call *call)
{
    return call->opcode == BLKREPL_OP_WRITE || call->opcode == BLKREPL_OP_ZEROES ||
           call->opcode == BLKREPL_OP_DISCARD;
}

/* What can be checked without the lock. */
static int call_check(const struct blkrepl_image *image, const struct guest_call *call)
{
    if (image == NULL) {
        return blkrepl__fail(-EINVAL, "image is NULL");
    }
    if (!blkrepl__lane_valid(image->ctx, call->lane)) {
        return -EINVAL;
    }
    if ((call->flags & ~call->flags_known) != 0) {
        return blkrepl__fail(-EINVAL, "image \"%s\": unknown flags 0x%" PRIx32, image->name,
                             call->flags & ~call->flags_known);
    }
    if (!range_inside(call->offset, call->bytes, image_bytes(image))) {
        return blkrepl__fail(
            -EINVAL, "image \"%s\": %" PRIu64 "+%" PRIu64 " is not inside its %" PRIu64 " bytes",
            image->name, call->offset, call->bytes, image_bytes(image));
    }
    if (image->read_only && call_changes(call) &&
        !(image->discards && call->opcode == BLKREPL_OP_DISCARD)) {
        return blkrepl__fail(-EROFS, "image \"%s\": read-only", image->name);
    }
    return 0;
}

void blkrepl__guest_take_call(struct guest *guest, const struct guest_call *call,
                              const blkrepl_completion *done)
{
    guest->opcode = call->opcode;
    guest->flags = call->flags;
    guest->offset = call->offset;
    guest->bytes = call->bytes;
    guest->beside = false;
    guest->extents = call->extents;
    guest->extents_max = call->extents_max;
    guest->cursor = (struct iov_cursor){.iov = call->iov, .count = call->iov_count};
    guest->done = done != NULL ? *done : (blkrepl_completion){.fn = NULL};
}

/* Accept the request, with the lock held. */
static int call_accept(struct blkrepl_image *image, const struct guest_call *call,
                       const blkrepl_completion *done)
{
    struct guest *guest;

    if (UNLIKELY(image->ctx->shut)) {
        return blkrepl__fail(-ESHUTDOWN, "image \"%s\": the context is being freed", image->name);
    }
    if (UNLIKELY(image->jobs_writing > 0) && call_changes(call)) {
        return blkrepl__fail(-EBUSY, "image \"%s\": it is the target of a job", image->name);
    }
    guest = blkrepl__guest_take(image, call->lane);
    if (guest == NULL) {
        return blkrepl__guest_no_room(image, call->lane, done);
    }
    blkrepl__guest_take_call(guest, call, done);
    blkrepl__guest_start(guest);
    return 0;
}

static int call_submit(struct blkrepl_image *image, const struct guest_call *call,
                       const blkrepl_completion *done)
{
    struct blkrepl_context *ctx = image != NULL ? image->ctx : NULL;
    int rc = call_check(image, call);

    if (rc == 0 && !blkrepl__quick_call(image, call, done)) {
        blkrepl__enter(ctx);
        rc = call_accept(image, call, done);
        blkrepl__leave(ctx, call->lane);
    }
    if (rc < 0) {
        blkrepl__completion_release(ctx, done);
    }
    return rc;
}

/* Take over the iovecs of a read or write. */
static int call_iov(const struct blkrepl_image *image, struct guest_call *call,
                    const blkrepl_iovec *iov, uint32_t iov_count, const blkrepl_completion *done)
{
    if ((iov == NULL && iov_count > 0) || !blkrepl__iov_bytes(iov, iov_count, &call->bytes)) {
        blkrepl__completion_release(image != NULL ? image->ctx : NULL, done);
        return blkrepl__fail(-EINVAL, "image: an iovec is NULL, or they are too long together");
    }
    call->iov = iov;
    call->iov_count = iov_count;
    return 0;
}

int blkrepl_image_read(blkrepl_image *image, uint32_t lane, uint64_t offset,
                       const blkrepl_iovec *iov, uint32_t iov_count, uint32_t flags,
                       const blkrepl_completion *done)
{
    struct guest_call call = {
        .lane = lane, .opcode = BLKREPL_OP_READ, .flags = flags, .offset = offset};
    int rc = call_iov(image, &call, iov, iov_count, done);

    return rc < 0 ? rc : call_submit(image, &call, done);
}

int blkrepl_image_write(blkrepl_image *image, uint32_t lane, uint64_t offset,
                        const blkrepl_iovec *iov, uint32_t iov_count, uint32_t flags,
                        const blkrepl_completion *done)
{
    struct guest_call call = {.lane = lane,
                              .opcode = BLKREPL_OP_WRITE,
                              .flags = flags,
                              .flags_known = BLKREPL_IO_FUA,
                              .offset = offset};
    int rc = call_iov(image, &call, iov, iov_count, done);

    return rc < 0 ? rc : call_submit(image, &call, done);
}

int blkrepl_image_write_zeroes(blkrepl_image *image, uint32_t lane, uint64_t offset, uint64_t bytes,
                               uint32_t flags, const blkrepl_completion *done)
{
    struct guest_call call = {.lane = lane,
                              .opcode = BLKREPL_OP_ZEROES,
                              .flags = flags,
                              .flags_known =
                                  BLKREPL_IO_FUA | BLKREPL_IO_MAY_UNMAP | BLKREPL_IO_NO_FALLBACK,
                              .offset = offset,
                              .bytes = bytes};

    return call_submit(image, &call, done);
}

int blkrepl_image_discard(blkrepl_image *image, uint32_t lane, uint64_t offset, uint64_t bytes,
                          uint32_t flags, const blkrepl_completion *done)
{
    struct guest_call call = {.lane = lane,
                              .opcode = BLKREPL_OP_DISCARD,
                              .flags = flags,
                              .offset = offset,
                              .bytes = bytes};

    return call_submit(image, &call, done);
}

int blkrepl_image_flush(blkrepl_image *image, uint32_t lane, const blkrepl_completion *done)
{
    struct guest_call call = {.lane = lane, .opcode = BLKREPL_OP_FLUSH};

    return call_submit(image, &call, done);
}

int blkrepl_image_status(blkrepl_image *image, uint32_t lane, uint64_t offset, uint64_t bytes,
                         blkrepl_extent *extents, uint32_t extents_max,
                         const blkrepl_completion *done)
{
    struct guest_call call = {.lane = lane,
                              .opcode = BLKREPL_OP_STATUS,
                              .offset = offset,
                              .bytes = bytes,
                              .extents = extents,
                              .extents_max = extents_max};

    if (extents == NULL || extents_max == 0) {
        blkrepl__completion_release(image != NULL ? image->ctx : NULL, done);
        return blkrepl__fail(-EINVAL, "image: no room for extents");
    }
    return call_submit(image, &call, done);
}
