/* SPDX-License-Identifier: MIT */
/* s_request.c - requests of the through form. */
#include "api.h"

#define FUA BLKREPL_IO_FUA
#define UNMAP BLKREPL_IO_MAY_UNMAP

/* One image over a disk like `info`; NULL if it cannot be had. */
static struct image *one(struct world *w, const blkrepl_backend_info *info,
                         const blkrepl_context_options *base)
{
    struct image *image = image_disk(w, info, FILL_HOLES);

    return world_open(w, base) && image_open(image, NULL) ? image : NULL;
}

static void rest(struct world *w, bool settle)
{
    if (settle) {
        world_settle(w);
    }
}

/* Something of everything, one after the other or all at once. */
void request_mix(struct image *image, bool settle)
{
    struct world *w = image->world;
    uint64_t size = image_bytes(image);

    op_write(image, 0, 2 * CLUSTER, 0);
    rest(w, settle);
    op_write(image, 5000, 3333, 0);
    rest(w, settle);
    op_zeroes(image, 3 * CLUSTER, 3 * CLUSTER, UNMAP);
    rest(w, settle);
    op_zeroes(image, 4 * CLUSTER - 100, 777, 0);
    rest(w, settle);
    op_discard(image, 7 * CLUSTER - 5, 2 * CLUSTER + 10);
    rest(w, settle);
    op_write(image, size - 700, 700, FUA);
    rest(w, settle);
    op_zeroes(image, size - 3 * CLUSTER, CLUSTER, FUA);
    rest(w, settle);
    op_flush(image);
    op_status(image, 100, size - 100, 3);
    op_status(image, 0, size, 16);
    op_read(image, 0, 6 * CLUSTER);
    rest(w, settle);
    op_read(image, 4097, 3000);
    op_read(image, size, 0);
    op_write(image, size, 0, 0);
    op_zeroes(image, 0, 0, 0);
    op_discard(image, 7, 0);
    world_settle(w);
    op_read(image, 0, size);
    world_settle(w);
}

static void request_plain(struct world *w)
{
    struct image *image = one(w, NULL, NULL);

    if (image) {
        request_mix(image, true);
        request_mix(image, false);
    }
}

static void request_unaligned(struct world *w)
{
    struct image *image =
        one(w,
            &(blkrepl_backend_info){
                .bytes = 12 * CLUSTER + 300, .request_alignment = 1024, .memory_alignment = 512},
            NULL);

    if (image) {
        for (uint64_t at = 0; at < 4 * CLUSTER; at += 700) {
            op_status(image, at, 300, 3);
        }
        request_mix(image, true);
        w->parts = 4;
        w->skew = 1;
        request_mix(image, true);
        request_mix(image, false);
    }
}

/* Memory in blocks, requests of any length: the library makes one of the other. */
static void request_memory_aligned(struct world *w)
{
    struct image *image = one(w, &(blkrepl_backend_info){.memory_alignment = 512}, NULL);

    w->parts = 3;
    w->skew = 7;
    if (image) {
        request_mix(image, true);
        op_status(image, 3 * CLUSTER + 600, 100, 4);
        op_status(image, 3 * CLUSTER + 100, 2 * CLUSTER, 1);
        op_status(image, CLUSTER + 1, 100, 2);
        world_settle(w);
    }
}

static void request_many_iovecs(struct world *w)
{
    struct image *image =
        one(w, &(blkrepl_backend_info){.iov_count_max = 2, .flags = BLKREPL_BACKEND_FUA}, NULL);

    w->parts = 20;
    w->skew = 3;
    if (image) {
        request_mix(image, true);
        request_mix(image, false);
    }
}

static void request_split(struct world *w)
{
    struct image *image = one(w,
                              &(blkrepl_backend_info){.transfer_bytes_max = CLUSTER,
                                                      .zeroes_bytes_max = 2 * CLUSTER,
                                                      .request_alignment = 512,
                                                      .queue_depth = 2},
                              NULL);

    if (image) {
        request_mix(image, true);
        request_mix(image, false);
    }
}

/* A backend that can read and write, and no more. */
static void request_poor(struct world *w)
{
    struct image *image =
        one(w, &(blkrepl_backend_info){.opcodes = OPS_RW, .transfer_bytes_max = CLUSTER}, NULL);

    if (image) {
        request_mix(image, true);
        struct op *op = op_zeroes(image, 0, CLUSTER, BLKREPL_IO_NO_FALLBACK);
        world_settle(w);
        REQUIRE(op->answer < 0 || op->result == -ENOTSUP, "NO_FALLBACK: %d", op->result);
    }
}

static void request_no_fallback(struct world *w)
{
    struct image *image = one(w, &(blkrepl_backend_info){.flags = BLKREPL_BACKEND_FUA}, NULL);

    if (image) {
        op_zeroes(image, 100, 3 * CLUSTER, BLKREPL_IO_NO_FALLBACK | FUA);
        world_settle(w);
        op_zeroes(image, CLUSTER, 3 * CLUSTER, BLKREPL_IO_NO_FALLBACK | UNMAP);
        world_settle(w);
        op_zeroes(image, 2 * CLUSTER, 3 * CLUSTER, 0);
        world_settle(w);
    }
}

static void request_read_only(struct world *w)
{
    struct image *image = one(w,
                              &(blkrepl_backend_info){.opcodes = BIT(BLKREPL_OP_READ),
                                                      .flags = BLKREPL_BACKEND_READ_ONLY},
                              NULL);
    struct image *other = image_disk(w, NULL, FILL_DATA);

    if (!image || !image_open(other, &(blkrepl_image_options){.flags = BLKREPL_IMAGE_READ_ONLY})) {
        return;
    }
    for (int i = 0; i < 2; i++, image = other) {
        api_must(-EROFS);
        op_write(image, 0, 512, 0);
        api_must(-EROFS);
        op_zeroes(image, 0, 512, 0);
        api_must(-EROFS);
        op_discard(image, 0, 512);
        api_must(-EROFS);
        op_begin(image, BLKREPL_OP_WRITE, 0, 512, false);
        op_flush(image);
        op_read(image, 0, 512);
        op_status(image, 0, CLUSTER, 2);
        world_settle(w);
    }
}

static void refuse_nulls(struct image *image)
{
    blkrepl_extent extent;
    blkrepl_iovec nothing = {.base = NULL, .len = 5};

    api_must(-EINVAL);
    api_image_read(NULL, 0, 0, NULL, 0, 0, NULL);
    api_must(-EINVAL);
    api_image_write(NULL, 0, 0, NULL, 0, 0, NULL);
    api_must(-EINVAL);
    api_image_write_zeroes(NULL, 0, 0, 0, 0, NULL);
    api_must(-EINVAL);
    api_image_discard(NULL, 0, 0, 0, 0, NULL);
    api_must(-EINVAL);
    api_image_flush(NULL, 0, NULL);
    api_must(-EINVAL);
    api_image_status(NULL, 0, 0, 0, &extent, 1, NULL);
    api_must(-EINVAL);
    api_image_query(NULL, NULL);
    api_must(-EINVAL);
    api_image_query(image->handle, NULL);
    api_must(-EINVAL);
    api_image_query(image->handle, &(blkrepl_image_info){.struct_size = 8});
    api_must(-EINVAL);
    api_image_read(image->handle, 0, 0, &nothing, 1, 0, NULL);
    api_must(-EINVAL);
    api_image_status(image->handle, 0, 0, 5, NULL, 1, NULL);
    api_must(-EINVAL);
    api_write_begin(NULL, NULL, NULL, NULL);
    api_must(-EINVAL);
    api_write_end(NULL, 1, 0, NULL, 0, NULL);
    api_must(-EINVAL);
    api_write_cancel(NULL, 1);
}

static void request_refused(struct world *w)
{
    struct image *image = one(w, NULL, NULL);

    if (!image) {
        return;
    }
    uint64_t size = image_bytes(image);
    refuse_nulls(image);
    api_must(-EINVAL);
    api_image_read(image->handle, 1, 0, NULL, 0, 0, NULL);
    api_must(-EINVAL);
    api_image_read(image->handle, 0, 0, NULL, 0, 1, NULL);
    api_must(-EINVAL);
    api_image_read(image->handle, 0, size + 1, NULL, 0, 0, NULL);
    api_must(-EINVAL);
    api_image_write(image->handle, 0, 0, NULL, 0, BLKREPL_IO_MAY_UNMAP, NULL);
    api_must(-EINVAL);
    api_image_write_zeroes(image->handle, 0, size - 1, 2, 0, NULL);
    api_must(-EINVAL);
    api_image_discard(image->handle, 0, UINT64_MAX, 2, 0, NULL);
    api_must(-EINVAL);
    api_image_discard(image->handle, 0, 0, 2, 1, NULL);
    api_must(-EINVAL);
    api_image_flush(image->handle, 7, NULL);
    api_must(-EINVAL);
    api_io_complete(w->ctx, 1, 5);
    api_must(-ENOENT);
    api_io_complete(w->ctx, 12345678, 0);
    api_must(-EINVAL);
    api_io_complete(NULL, 1, 0);
    op_read(image, 0, size);
    world_settle(w);
}

/* Each -EAGAIN is followed by a ROOM; then there is room. */
static void request_room(struct world *w)
{
    struct image *image = one(w, NULL, &(blkrepl_context_options){.requests_max = 3});

    if (!image) {
        return;
    }
    image->disk->hold = OPS_ALL;
    for (unsigned i = 0; i < 3; i++) {
        op_write(image, i * CLUSTER, CLUSTER, 0);
    }
    api_must(-EAGAIN);
    op_write(image, 4 * CLUSTER, CLUSTER, 0);
    api_must(-EAGAIN);
    op_flush(image);
    api_must(-EAGAIN);
    op_begin(image, BLKREPL_OP_WRITE, 0, CLUSTER, false);
    world_release(w);
    REQUIRE(w->rooms >= 1, "refused with EAGAIN, and no ROOM follows");
    op_write(image, 4 * CLUSTER, CLUSTER, 0);
    op_begin(image, BLKREPL_OP_WRITE, 0, CLUSTER, false);
    op_read(image, 0, CLUSTER);
    world_settle(w);
}

static void request_overlap(struct world *w)
{
    struct image *image = one(w, &(blkrepl_backend_info){.queue_depth = 1}, NULL);

    for (unsigned i = 0; image && i < 14; i++) {
        uint64_t at = i % 4 * 1000;

        switch (i % 5) {
        case 3: op_zeroes(image, at, 3000, 0); break;
        case 4: op_discard(image, at, 2000); break;
        default: op_write(image, at, 2500, i % 2 ? FUA : 0); break;
        }
        if (i % 6 == 5) {
            world_poll(w);
        }
        op_read(image, 8 * CLUSTER, 100);
    }
    if (image) {
        world_settle(w);
    }
}

/* More requests that need a bounce buffer than there are. */
static void request_bounces(struct world *w)
{
    struct image *image =
        one(w,
            &(blkrepl_backend_info){
                .bytes = 24 * CLUSTER, .request_alignment = CLUSTER, .queue_depth = 32},
            NULL);

    for (unsigned i = 0; image && i < 24; i++) {
        switch (i % 4) {
        case 2: op_zeroes(image, i * CLUSTER + 5, 600, 0); break;
        case 3: op_read(image, i * CLUSTER + 9, 700); break;
        default: op_write(image, i * CLUSTER + 1, 500, 0); break;
        }
    }
    if (image) {
        world_settle(w);
        op_read(image, 0, image_bytes(image));
        world_settle(w);
    }
}

static void request_status_lies(struct world *w)
{
    struct image *image = one(w, NULL, NULL);

    if (image) {
        image->disk->status = STATUS_EMPTY;
        op_status(image, 0, 5 * CLUSTER, 4);
        world_settle(w);
        image->disk->status = STATUS_TOO_LONG;
        op_status(image, 0, 5 * CLUSTER, 4);
        world_settle(w);
        image->disk->status = STATUS_TRUE;
        op_status(image, 0, 5 * CLUSTER, 4);
        world_settle(w);
    }
}

/* The handle is dropped; what was accepted goes on. */
static void request_close(struct world *w)
{
    struct image *image = one(w, NULL, NULL);
    struct image *other = image_disk(w, NULL, FILL_DATA);

    if (!image || !image_open(other, NULL)) {
        return;
    }
    image->disk->hold = OPS_ALL;
    op_write(image, 0, CLUSTER, 0);
    op_write(image, 100, CLUSTER, FUA);
    op_read(image, 9 * CLUSTER, CLUSTER);
    struct op *bracket = op_begin(image, BLKREPL_OP_ZEROES, 5 * CLUSTER, CLUSTER, true);
    struct op *waits = op_begin(image, BLKREPL_OP_WRITE, 5 * CLUSTER, 100, true);
    image_close(image);
    world_settle(w);
    REQUIRE(image->disk->closes == 0, "closed while requests are under way");
    op_write(other, 0, CLUSTER, 0);
    world_release(w);
    if (bracket->bracket == BRACKET_GO) {
        op_perform(bracket);
    }
    world_settle(w);
    if (waits->bracket == BRACKET_GO) {
        op_cancel(waits);
    }
    world_settle(w);
    REQUIRE(image->disk->closes == 1, "closed %u times after the last request has ended",
            image->disk->closes);
}

/* Nobody wants to know. */
static void request_unwatched(struct world *w)
{
    static uint8_t data[CLUSTER];
    struct image *image = one(w, NULL, NULL);
    blkrepl_iovec iov = {.base = data, .len = sizeof data};

    if (!image) {
        return;
    }
    unsigned tag = model_begin(&image->model, MODEL_ANY, 0, CLUSTER);
    api_image_write(image->handle, 0, 0, &iov, 1, 0, NULL);
    api_image_read(image->handle, 0, CLUSTER, &iov, 1, 0, NULL);
    api_image_write_zeroes(image->handle, 0, 0, CLUSTER, 0, NULL);
    api_image_discard(image->handle, 0, 0, CLUSTER, 0, NULL);
    api_image_flush(image->handle, 0, NULL);
    world_settle(w);
    model_failed(&image->model, tag);
    for (uint32_t opcode = 1; opcode <= BLKREPL_OP_STATUS; opcode++) {
        failure_forgive_of(image->medium, opcode);
    }
}

/* ---- Calls from inside callbacks ----------------------------------------------------------- */

static void again(struct op *op)
{
    struct op next = {.opcode = op->opcode,
                      .offset = op->offset + 512,
                      .bytes = op->bytes,
                      .then = op->offset < 3 * CLUSTER ? again : NULL};

    api_must(-EDEADLK);
    api_poll(op->world->ctx, 0, 0);
    api_must(-EBUSY);
    api_context_free(op->world->ctx);
    op_start(op->image, &next);
    op_flush(op->image);
}

static void close_inside(struct op *op)
{
    op_write(op->image, 0, CLUSTER, 0);
    image_close(op->image);
    api_poll_wake(op->world->ctx, 0);
}

static void request_reenter(struct world *w)
{
    struct image *image = one(w, NULL, NULL);

    if (!image) {
        return;
    }
    op_start(image, &(struct op){.opcode = BLKREPL_OP_WRITE, .bytes = 3000, .then = again});
    op_start(
        image,
        &(struct op){.opcode = BLKREPL_OP_READ, .offset = CLUSTER, .bytes = 3000, .then = again});
    world_settle(w);
    op_start(image, &(struct op){.opcode = BLKREPL_OP_FLUSH, .then = close_inside});
    world_settle(w);
}

static void inside_submit(struct disk *d, const blkrepl_io *io)
{
    d->on_submit = NULL;
    api_must(-EDEADLK);
    api_poll(d->world->ctx, 0, 0);
    if (io->opcode != BLKREPL_OP_FLUSH) {
        op_write(&d->world->images[d->medium], 6 * CLUSTER, 100, 0);
    }
}

static void inside_close(struct disk *d)
{
    api_must(-EDEADLK);
    api_poll(d->world->ctx, 0, 0);
    api_must(-EBUSY);
    api_context_free(d->world->ctx);
}

static void request_reenter_backend(struct world *w)
{
    struct image *image = one(w, NULL, NULL);

    if (!image) {
        return;
    }
    image->disk->on_close = inside_close;
    image->disk->on_submit = inside_submit;
    op_write(image, 0, 2 * CLUSTER, FUA);
    world_settle(w);
    image->disk->on_submit = inside_submit;
    op_read(image, 0, CLUSTER);
    world_settle(w);
    image_close(image);
    world_settle(w);
}

const struct scenario request_scenarios[] = {
    {"request-plain", request_plain, 0},
    {"request-unaligned", request_unaligned, 0},
    {"request-memory-aligned", request_memory_aligned, 0},
    {"request-many-iovecs", request_many_iovecs, 0},
    {"request-split", request_split, 0},
    {"request-poor", request_poor, 0},
    {"request-no-fallback", request_no_fallback, 0},
    {"request-read-only", request_read_only, 0},
    {"request-refused", request_refused, SCENARIO_ONE_ORDER},
    {"request-room", request_room, 0},
    {"request-overlap", request_overlap, 0},
    {"request-bounces", request_bounces, 0},
    {"request-status-lies", request_status_lies, SCENARIO_ONE_ORDER},
    {"request-close", request_close, 0},
    {"request-unwatched", request_unwatched, 0},
    {"request-reenter", request_reenter, 0},
    {"request-reenter-backend", request_reenter_backend, 0},
    {NULL, NULL, 0},
};
