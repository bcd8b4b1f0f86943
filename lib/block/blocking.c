/* SPDX-License-Identifier: MIT */
/* blocking.c - the public functions that return when the request has ended. */
#include <libblkrepl/blocking.h>

#include <errno.h>

#include "base/abi.h"
#include "base/struct_io.h"
#include "block/image.h"
#include "core/error.h"
#include "core/wait.h"

/* A request and the thread that waits for it. */
struct blocking {
    struct waiter waiter;
    blkrepl_completion done;
    bool had_room; /* it has waited for room */
};

/* Returns: 0; a code with which the call is refused. */
static int blocking_begin(struct blocking *blocking, const struct blkrepl_image *image,
                          uint32_t lane)
{
    struct blkrepl_context *ctx = image != NULL ? image->ctx : NULL;
    int rc = blkrepl__wait_allowed(ctx);

    blocking->done = (blkrepl_completion){.fn = blkrepl__waiter_done, .user = &blocking->waiter};
    blocking->had_room = false;
    return rc < 0 ? rc : blkrepl__waiter_init(&blocking->waiter, ctx, lane);
}

/* The call has been made.  True: make it again, there may be room now; false: it
 * is over, with the result in *rc. */
static bool blocking_again(struct blocking *blocking, int *rc)
{
    if (*rc == -EAGAIN) {
        blkrepl__wait_room(&blocking->waiter);
        blocking->had_room = true;
        return true;
    }
    if (*rc >= 0) {
        *rc = blkrepl__wait(&blocking->waiter);
    } else if (blocking->had_room) {
        blkrepl__wait_room_refused(&blocking->waiter);
    }
    blkrepl__waiter_fini(&blocking->waiter);
    return false;
}

int blkrepl_image_read_wait(blkrepl_image *image, uint32_t lane, uint64_t offset,
                            const blkrepl_iovec *iov, uint32_t iov_count, uint32_t flags)
{
    struct blocking blocking;
    int rc = blocking_begin(&blocking, image, lane);

    if (rc < 0) {
        return rc;
    }
    do {
        rc = blkrepl_image_read(image, lane, offset, iov, iov_count, flags, &blocking.done);
    } while (blocking_again(&blocking, &rc));
    return rc;
}

int blkrepl_image_write_wait(blkrepl_image *image, uint32_t lane, uint64_t offset,
                             const blkrepl_iovec *iov, uint32_t iov_count, uint32_t flags)
{
    struct blocking blocking;
    int rc = blocking_begin(&blocking, image, lane);

    if (rc < 0) {
        return rc;
    }
    do {
        rc = blkrepl_image_write(image, lane, offset, iov, iov_count, flags, &blocking.done);
    } while (blocking_again(&blocking, &rc));
    return rc;
}

int blkrepl_image_write_zeroes_wait(blkrepl_image *image, uint32_t lane, uint64_t offset,
                                    uint64_t bytes, uint32_t flags)
{
    struct blocking blocking;
    int rc = blocking_begin(&blocking, image, lane);

    if (rc < 0) {
        return rc;
    }
    do {
        rc = blkrepl_image_write_zeroes(image, lane, offset, bytes, flags, &blocking.done);
    } while (blocking_again(&blocking, &rc));
    return rc;
}

int blkrepl_image_discard_wait(blkrepl_image *image, uint32_t lane, uint64_t offset, uint64_t bytes,
                               uint32_t flags)
{
    struct blocking blocking;
    int rc = blocking_begin(&blocking, image, lane);

    if (rc < 0) {
        return rc;
    }
    do {
        rc = blkrepl_image_discard(image, lane, offset, bytes, flags, &blocking.done);
    } while (blocking_again(&blocking, &rc));
    return rc;
}

int blkrepl_image_flush_wait(blkrepl_image *image, uint32_t lane)
{
    struct blocking blocking;
    int rc = blocking_begin(&blocking, image, lane);

    if (rc < 0) {
        return rc;
    }
    do {
        rc = blkrepl_image_flush(image, lane, &blocking.done);
    } while (blocking_again(&blocking, &rc));
    return rc;
}

int blkrepl_image_status_wait(blkrepl_image *image, uint32_t lane, uint64_t offset, uint64_t bytes,
                              blkrepl_extent *extents, uint32_t extents_max)
{
    struct blocking blocking;
    int rc = blocking_begin(&blocking, image, lane);

    if (rc < 0) {
        return rc;
    }
    do {
        rc = blkrepl_image_status(image, lane, offset, bytes, extents, extents_max, &blocking.done);
    } while (blocking_again(&blocking, &rc));
    return rc;
}

int blkrepl_write_begin_wait(blkrepl_image *image, const blkrepl_bracket *what, uint64_t *token)
{
    struct blocking blocking;
    blkrepl_bracket copy;
    int rc;

    if (token != NULL) {
        *token = 0;
    }
    rc = blkrepl__struct_in(&copy, sizeof copy, BLKREPL_BRACKET_V1_BYTES, what);
    if (rc < 0 || what == NULL) {
        return blkrepl__fail_code(what == NULL ? -EINVAL : rc, "write_begin");
    }
    rc = blocking_begin(&blocking, image, copy.lane);
    if (rc < 0) {
        return rc;
    }
    do {
        rc = blkrepl_write_begin(image, &copy, &blocking.done, token);
        if (rc == 0) {
            blkrepl__waiter_done(&blocking.waiter, 0); /* its GO, at once */
        }
    } while (blocking_again(&blocking, &rc));
    if (rc < 0 && token != NULL) {
        *token = 0;
    }
    return rc;
}
