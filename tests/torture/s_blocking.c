/* SPDX-License-Identifier: MIT */
/* s_blocking.c - calls that return when the request has ended.  The disks answer
 * inside submit: there is nobody else to wait for. */
#include "api.h"

#define FUA BLKREPL_IO_FUA

static uint8_t data[4 * CLUSTER];

static struct image *one(struct world *w, const blkrepl_backend_info *info)
{
    struct image *image = image_disk(w, info, FILL_DATA);

    w->real_clock = true;
    return world_open(w, NULL) && image_open(image, NULL) ? image : NULL;
}

static void settle(struct image *image, unsigned tag, int rc)
{
    if (rc == 0) {
        model_done(&image->model, tag);
    } else {
        model_failed(&image->model, tag);
    }
}

static void write_wait(struct image *image, uint64_t offset, uint64_t bytes, uint32_t flags)
{
    unsigned tag = model_begin(&image->model, MODEL_DATA, offset, bytes);
    blkrepl_iovec iov = {.base = data, .len = (size_t)bytes};

    for (uint64_t i = 0; i < bytes; i++) {
        data[i] = model_byte(&image->model, offset + i, tag);
    }
    settle(image, tag, api_image_write_wait(image->handle, 0, offset, &iov, 1, flags));
}

static void zeroes_wait(struct image *image, uint64_t offset, uint64_t bytes, uint32_t flags)
{
    unsigned tag = model_begin(&image->model, MODEL_ZERO, offset, bytes);

    settle(image, tag, api_image_write_zeroes_wait(image->handle, 0, offset, bytes, flags));
}

static void discard_wait(struct image *image, uint64_t offset, uint64_t bytes)
{
    unsigned tag = model_begin(&image->model, MODEL_ANY, offset, bytes);

    settle(image, tag, api_image_discard_wait(image->handle, 0, offset, bytes, 0));
}

static void read_wait(struct image *image, uint64_t offset, uint64_t bytes)
{
    blkrepl_iovec iov = {.base = data, .len = (size_t)bytes};

    memset(data, 0x77, sizeof data);
    if (api_image_read_wait(image->handle, 0, offset, &iov, 1, 0) == 0) {
        model_check(&image->model, offset, data, bytes, NULL, "a blocking read");
    }
}

static void status_wait(struct image *image, uint64_t offset, uint64_t bytes)
{
    blkrepl_extent extents[3] = {{.bytes = 0}};
    uint64_t sum = 0;

    if (api_image_status_wait(image->handle, 0, offset, bytes, extents, 3) == 0) {
        for (unsigned i = 0; i < 3; i++) {
            sum += extents[i].bytes;
        }
        REQUIRE(sum > 0 && sum <= bytes, "status of %llu bytes tells of %llu",
                (unsigned long long)bytes, (unsigned long long)sum);
    }
}

static void bracket_wait(struct image *image, uint64_t offset, bool cancel)
{
    blkrepl_bracket what = {.struct_size = sizeof what, .opcode = BLKREPL_OP_FLUSH};
    uint64_t token = 5;

    if (api_write_begin_wait(image->handle, &what, &token) == 0) {
        api_write_end(image->world->ctx, token, 0, NULL, 0, NULL);
    }
    what.opcode = BLKREPL_OP_WRITE;
    what.offset = offset;
    what.bytes = CLUSTER;
    if (api_write_begin_wait(image->handle, &what, &token) != 0) {
        return;
    }
    if (cancel) {
        api_write_cancel(image->world->ctx, token);
    } else {
        api_write_end(image->world->ctx, token, -EIO, NULL, 0, NULL);
    }
}

static void mix(struct image *image)
{
    write_wait(image, 0, 2 * CLUSTER, 0);
    write_wait(image, 700, 900, FUA);
    zeroes_wait(image, CLUSTER + 10, 3 * CLUSTER, BLKREPL_IO_MAY_UNMAP);
    zeroes_wait(image, CLUSTER, CLUSTER, FUA);
    discard_wait(image, 5 * CLUSTER, 2 * CLUSTER);
    api_image_flush_wait(image->handle, 0);
    status_wait(image, 0, 8 * CLUSTER);
    status_wait(image, 100, 50);
    read_wait(image, 0, 4 * CLUSTER);
    read_wait(image, 1000, 3000);
    bracket_wait(image, 0, false);
    bracket_wait(image, 0, true);
    read_wait(image, 0, 0);
}

static void blocking_plain(struct world *w)
{
    struct image *image = one(w, NULL);

    if (image) {
        mix(image);
        mix(image);
        world_settle(w);
    }
}

static void blocking_unaligned(struct world *w)
{
    struct image *image =
        one(w, &(blkrepl_backend_info){.request_alignment = 512, .transfer_bytes_max = CLUSTER});

    if (image) {
        mix(image);
        world_settle(w);
    }
}

/* A backup goes on: what the guest writes is saved first. */
static void blocking_beside_a_backup(struct world *w)
{
    struct image *image = one(w, NULL);
    struct image *target = image_disk(w, NULL, FILL_HOLES);

    if (!image || !image_open(target, NULL) || !job_create_started(image, target, NULL)) {
        return;
    }
    mix(image);
    world_finish(w);
}

static void refused(struct image *image, int code)
{
    blkrepl_bracket what = {.struct_size = sizeof what, .opcode = BLKREPL_OP_WRITE};
    uint64_t token = 5;
    blkrepl_extent extent;

    api_must(code);
    api_image_read_wait(image->handle, 0, 0, NULL, 0, 0);
    api_must(code);
    api_image_write_wait(image->handle, 0, 0, NULL, 0, 0);
    api_must(code);
    api_image_write_zeroes_wait(image->handle, 0, 0, 0, 0);
    api_must(code);
    api_image_discard_wait(image->handle, 0, 0, 0, 0);
    api_must(code);
    api_image_flush_wait(image->handle, 0);
    api_must(code);
    api_image_status_wait(image->handle, 0, 0, 0, &extent, 1);
    api_must(code);
    api_write_begin_wait(image->handle, &what, &token);
}

static void refused_inside(struct op *op)
{
    refused(op->image, -EDEADLK);
}

static void blocking_inside(struct world *w)
{
    struct image *image = one(w, NULL);

    if (image) {
        op_start(image, &(struct op){.opcode = BLKREPL_OP_FLUSH, .then = refused_inside});
        world_settle(w);
    }
}

/* With the clock of this world nothing can be waited for. */
static void blocking_clock(struct world *w)
{
    struct image *image = image_disk(w, NULL, FILL_DATA);

    if (world_open(w, NULL) && image_open(image, NULL)) {
        refused(image, -EINVAL);
        refused(&(struct image){.handle = NULL}, -EINVAL);
    }
}

const struct scenario blocking_scenarios[] = {
    {"blocking-plain", blocking_plain, SCENARIO_ONE_ORDER},
    {"blocking-unaligned", blocking_unaligned, SCENARIO_ONE_ORDER},
    {"blocking-beside-a-backup", blocking_beside_a_backup, SCENARIO_ONE_ORDER},
    {"blocking-inside", blocking_inside, SCENARIO_ONE_ORDER},
    {"blocking-clock", blocking_clock, SCENARIO_ONE_ORDER},
    {NULL, NULL, 0},
};
