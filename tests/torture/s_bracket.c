/* SPDX-License-Identifier: MIT */
/* s_bracket.c - the beside form. */
#include "api.h"

static struct image *one(struct world *w, const blkrepl_context_options *base)
{
    struct image *image = image_disk(w, NULL, FILL_DATA);

    return world_open(w, base) && image_open(image, NULL) ? image : NULL;
}

static void bracket_plain(struct world *w)
{
    struct image *image = one(w, NULL);

    if (!image) {
        return;
    }
    op_begin(image, BLKREPL_OP_WRITE, 0, 2 * CLUSTER, false);
    op_begin(image, BLKREPL_OP_ZEROES, CLUSTER, CLUSTER, false);
    op_begin(image, BLKREPL_OP_DISCARD, 3 * CLUSTER, CLUSTER, false);
    op_begin(image, BLKREPL_OP_FLUSH, 0, 0, false);
    op_begin(image, BLKREPL_OP_WRITE, 100, 0, false);
    struct op *op = op_begin(image, BLKREPL_OP_WRITE, 7, 999, true);
    op_write(image, 5 * CLUSTER, 100, 0);
    op_perform(op);
    op_cancel(op);
    world_settle(w);
}

/* What op_begin() cannot say wrong. */
static void begin_refused(struct image *image)
{
    blkrepl_bracket good = {.struct_size = sizeof good, .opcode = BLKREPL_OP_WRITE, .bytes = 512};
    blkrepl_bracket small = good;
    blkrepl_completion go = {.fn = NULL};
    uint64_t token = 5;

    api_must(-EINVAL);
    api_write_begin(image->handle, &good, &go, &token);
    api_must(-EINVAL);
    api_write_begin(image->handle, NULL, &go, &token);
    small.struct_size = 4;
    api_must(-EINVAL);
    api_write_begin(image->handle, &small, &go, &token);
    api_must(-EINVAL);
    api_write_begin(image->handle, &good, NULL, &token);
}

static void bracket_refused(struct world *w)
{
    struct image *image =
        image_disk(w, &(blkrepl_backend_info){.request_alignment = 512}, FILL_DATA);

    if (!world_open(w, NULL) || !image_open(image, NULL)) {
        return;
    }
    uint64_t size = image_bytes(image);
    begin_refused(image);
    api_must(-EINVAL);
    op_begin(image, BLKREPL_OP_READ, 0, 512, false);
    api_must(-EINVAL);
    op_begin(image, BLKREPL_OP_WRITE, 100, 512, false);
    api_must(-EINVAL);
    op_begin(image, BLKREPL_OP_WRITE, 0, 100, false);
    api_must(-EINVAL);
    op_begin(image, BLKREPL_OP_WRITE, size, 512, false);
    api_must(-EINVAL);
    op_begin(image, BLKREPL_OP_FLUSH, 512, 0, false);
    api_must(-ENOENT);
    api_write_end(w->ctx, 77, 0, NULL, 0, NULL);
    api_must(-ENOENT);
    api_write_cancel(w->ctx, 77);
    struct op *op = op_begin(image, BLKREPL_OP_WRITE, 0, 512, true);
    api_must(-EINVAL);
    api_write_end(w->ctx, op->token, 512, NULL, 0, NULL);
    op_perform(op);
}

/* Each waits for the one before; some give up, before and after their GO. */
static void bracket_wait(struct world *w)
{
    struct image *image = one(w, NULL);

    if (!image) {
        return;
    }
    struct op *first = op_begin(image, BLKREPL_OP_WRITE, 0, CLUSTER, true);
    struct op *second = op_begin(image, BLKREPL_OP_ZEROES, 100, CLUSTER, true);
    struct op *third = op_begin(image, BLKREPL_OP_WRITE, 200, CLUSTER, true);
    struct op *fourth = op_begin(image, BLKREPL_OP_WRITE, 300, CLUSTER, false);
    op_write(image, 400, CLUSTER, 0);
    op_begin(image, BLKREPL_OP_DISCARD, 300, 50, false);
    op_cancel(third);
    world_settle(w);
    op_perform(first);
    world_poll(w);
    op_cancel(second); /* it has its GO by now */
    world_settle(w);
    REQUIRE(op_over(third) && op_over(fourth), "brackets are stuck");
}

/* GO is on its way, but was not delivered yet. */
static void bracket_cancel_due(struct world *w)
{
    struct image *image = one(w, NULL);

    if (!image) {
        return;
    }
    struct op *first = op_begin(image, BLKREPL_OP_WRITE, 0, CLUSTER, true);
    struct op *second = op_begin(image, BLKREPL_OP_WRITE, 0, CLUSTER, true);
    op_perform(first);
    op_cancel(second);
    op_begin(image, BLKREPL_OP_WRITE, 0, 10, false);
    world_settle(w);
}

static void next_bracket(struct op *op)
{
    if (op->offset < 3 * CLUSTER) {
        op_begin(op->image, BLKREPL_OP_WRITE, op->offset + 1000, CLUSTER, false);
        op_write(op->image, op->offset + 500, CLUSTER, 0);
    }
}

static void bracket_reenter(struct world *w)
{
    struct image *image = one(w, NULL);

    if (!image) {
        return;
    }
    struct op *first = op_begin(image, BLKREPL_OP_WRITE, 0, CLUSTER, true);
    for (unsigned i = 0; i < 3; i++) {
        struct op *op = op_begin(image, BLKREPL_OP_WRITE, i * 512, CLUSTER, false);

        op->then = next_bracket;
    }
    op_perform(first);
    world_settle(w);
}

static void bracket_room(struct world *w)
{
    struct image *image = one(w, &(blkrepl_context_options){.requests_max = 2});

    if (!image) {
        return;
    }
    struct op *first = op_begin(image, BLKREPL_OP_WRITE, 0, CLUSTER, true);
    op_begin(image, BLKREPL_OP_WRITE, 0, CLUSTER, false);
    api_must(-EAGAIN);
    op_begin(image, BLKREPL_OP_WRITE, 0, CLUSTER, false);
    op_perform(first);
    world_settle(w);
    REQUIRE(w->rooms >= 1, "refused with EAGAIN, and no ROOM follows");
    op_begin(image, BLKREPL_OP_WRITE, 0, CLUSTER, false);
    world_settle(w);
}

/* ---- Beside a backup --------------------------------------------------------------------- */

/* First touches wait for their copies; some are given up. */
static void beside(struct world *w, uint32_t policy)
{
    struct image *source, *target;
    struct job *job;

    if (!image_pair(w, NULL, NULL, &source, &target)) {
        return;
    }
    struct op *before = op_begin(source, BLKREPL_OP_WRITE, 10 * CLUSTER, CLUSTER, true);
    job = job_create(source, target, &(blkrepl_backup_options){.on_cbw_error = policy});
    if (!job) {
        return;
    }
    job_pause(job);
    job_start(job);
    op_begin(source, BLKREPL_OP_WRITE, 0, CLUSTER, false);
    op_begin(source, BLKREPL_OP_WRITE, CLUSTER - 100, 3 * CLUSTER, false);
    struct op *given_up = op_begin(source, BLKREPL_OP_ZEROES, 5 * CLUSTER, CLUSTER, true);
    op_begin(source, BLKREPL_OP_DISCARD, 7 * CLUSTER, 2 * CLUSTER, false);
    op_begin(source, BLKREPL_OP_FLUSH, 0, 0, false);
    op_cancel(given_up);
    struct op *late = op_begin(source, BLKREPL_OP_WRITE, 5 * CLUSTER, CLUSTER, true);
    world_settle(w);
    if (late->bracket == BRACKET_GO) {
        op_cancel(late);
    }
    op_perform(before);
    op_write(source, 10 * CLUSTER, 2 * CLUSTER, 0);
    job_resume(job);
    op_begin(source, BLKREPL_OP_WRITE, 9 * CLUSTER, 100, false);
    world_settle(w);
}

static void bracket_backup_fails(struct world *w)
{
    beside(w, BLKREPL_CBW_BACKUP_FAILS);
}

static void bracket_guest_fails(struct world *w)
{
    beside(w, BLKREPL_CBW_GUEST_WRITE_FAILS);
}

const struct scenario bracket_scenarios[] = {
    {"bracket-plain", bracket_plain, 0},
    {"bracket-refused", bracket_refused, SCENARIO_ONE_ORDER},
    {"bracket-wait", bracket_wait, 0},
    {"bracket-cancel-due", bracket_cancel_due, 0},
    {"bracket-reenter", bracket_reenter, 0},
    {"bracket-room", bracket_room, 0},
    {"bracket-backup-fails", bracket_backup_fails, 0},
    {"bracket-guest-fails", bracket_guest_fails, 0},
    {NULL, NULL, 0},
};
