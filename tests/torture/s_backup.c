/* SPDX-License-Identifier: MIT */
/* s_backup.c - backups, with a guest that goes on. */
#include "api.h"

#define GUEST_FAILS BLKREPL_CBW_GUEST_WRITE_FAILS

static const blkrepl_backup_options guest_fails = {.on_cbw_error = GUEST_FAILS};

/* One request of a kind, somewhere. */
static void guest_one(struct image *source, uint64_t at, uint64_t bytes, bool beside)
{
    uint64_t kind = world_random(source->world, 8);

    if (kind >= 6) {
        op_read(source, at, bytes);
    } else if (kind == 5) {
        op_flush(source);
    } else if (beside) {
        uint32_t opcode = kind < 3    ? BLKREPL_OP_WRITE
                          : kind == 3 ? BLKREPL_OP_ZEROES
                                      : BLKREPL_OP_DISCARD;

        op_begin(source, opcode, at, bytes, false);
    } else if (kind < 3) {
        op_write(source, at, bytes, kind == 1 ? BLKREPL_IO_FUA : 0);
    } else if (kind == 3) {
        op_zeroes(source, at, bytes, BLKREPL_IO_MAY_UNMAP);
    } else {
        op_discard(source, at, bytes);
    }
}

/* A guest that does not wait for much. */
static void guest(struct image *source, unsigned count, bool beside)
{
    struct world *w = source->world;
    uint64_t size = image_bytes(source);

    for (unsigned i = 0; i < count; i++) {
        uint64_t at = world_random(w, size), bytes = 1 + world_random(w, 2 * CLUSTER);

        guest_one(source, at, bytes < size - at ? bytes : size - at, beside && i % 3 != 0);
        if (i % 3 == 1) {
            api_poll(w->ctx, 0, 0);
        } else if (i % 5 == 4) {
            world_settle(w);
        }
    }
    world_settle(w);
}

static void backup(struct world *w, const blkrepl_backup_options *o, bool beside)
{
    struct image *source, *target;

    if (image_pair(w, NULL, NULL, &source, &target) && job_create_started(source, target, o)) {
        guest(source, 16, beside);
    }
}

static void backup_through(struct world *w)
{
    backup(w, NULL, false);
}

static void backup_through_guest_fails(struct world *w)
{
    backup(w, &guest_fails, false);
}

static void backup_beside(struct world *w)
{
    backup(w, NULL, true);
}

static void backup_beside_guest_fails(struct world *w)
{
    backup(w, &guest_fails, true);
}

/* The disks copy from each other, in parts; `cancels`: and give up at once what a
 * guest has made void. */
static void offload(struct world *w, const blkrepl_backup_options *o, bool cancels)
{
    blkrepl_backend_info info = {.opcodes = OPS_ALL | BIT(BLKREPL_OP_COPY_FROM),
                                 .copy_domain = w,
                                 .copy_bytes_max = 3 * CLUSTER};
    struct image *source, *target;

    if (!image_pair(w, &info, &info, &source, &target)) {
        return;
    }
    target->disk->cancel_ends = cancels;
    if (job_create_started(source, target, o)) {
        guest(source, 16, false);
    }
}

static void backup_offload(struct world *w)
{
    offload(w, NULL, false);
}

static void backup_offload_cancels(struct world *w)
{
    offload(w, NULL, true);
}

static void backup_offload_guest_fails(struct world *w)
{
    offload(w, &guest_fails, false);
}

/* Created, tried again, started later; nobody writes. */
static void backup_quiet(struct world *w)
{
    struct image *source, *target;
    struct job *job;

    if (!image_pair(w, NULL, NULL, &source, &target) || !(job = job_create(source, target, NULL))) {
        return;
    }
    op_write(source, 0, 2 * CLUSTER, 0);
    world_settle(w);
    api_must(-EBUSY);
    op_write(target, 0, 512, 0);
    api_must(-EBUSY);
    op_begin(target, BLKREPL_OP_ZEROES, 0, 512, false);
    op_read(target, 0, 512);
    op_flush(target);
    job_start(job);
    world_settle(w);
    job_check(job);
    op_write(target, 0, 512, 0); /* it is free again */
    world_settle(w);
}

static void holes(struct world *w, const blkrepl_backup_options *o, uint32_t source_opcodes,
                  uint32_t target_opcodes)
{
    blkrepl_backend_info t = {.opcodes = target_opcodes};
    blkrepl_backend_info s = {.opcodes = source_opcodes, .bytes = 12 * CLUSTER - 100};
    struct image *source = image_disk(w, &s, FILL_HOLES), *target = image_disk(w, &t, FILL_DATA);

    if (world_open(w, NULL) && image_open(source, NULL) && image_open(target, NULL) &&
        job_create_started(source, target, o)) {
        guest(source, 8, false);
    }
}

static void backup_holes(struct world *w)
{
    holes(w, NULL, OPS_ALL, OPS_ALL);
}

static void backup_holes_guest_fails(struct world *w)
{
    holes(w, &guest_fails, OPS_ALL, OPS_RW);
}

static void backup_detect_zeroes(struct world *w)
{
    holes(w, &(blkrepl_backup_options){.flags = BLKREPL_BACKUP_DETECT_ZEROES},
          OPS_RW | BIT(BLKREPL_OP_FLUSH), OPS_ALL);
}

static void backup_status_lies(struct world *w)
{
    struct image *source = image_disk(w, NULL, FILL_HOLES),
                 *target = image_disk(w, NULL, FILL_DATA);

    source->disk->status = STATUS_TOO_LONG;
    if (world_open(w, NULL) && image_open(source, NULL) && image_open(target, NULL) &&
        job_create_started(source, target, NULL)) {
        api_poll(w->ctx, 0, 0);
        source->disk->status = STATUS_EMPTY;
        world_settle(w);
    }
}

/* One request at a time, shorter than a cluster, whole blocks only. */
static void small_target(struct world *w, const blkrepl_backup_options *o)
{
    blkrepl_backend_info s = {.bytes = 9 * CLUSTER + 700, .transfer_bytes_max = CLUSTER};
    blkrepl_backend_info t = {.bytes = 10 * CLUSTER,
                              .queue_depth = 1,
                              .transfer_bytes_max = 1024,
                              .zeroes_bytes_max = 2048,
                              .request_alignment = 1024,
                              .memory_alignment = 512,
                              .iov_count_max = 1};
    struct image *source, *target;

    if (image_pair(w, &s, &t, &source, &target) && job_create_started(source, target, o)) {
        op_write(source, 9 * CLUSTER, 700, 0);
        op_write(source, 3 * CLUSTER + 5, CLUSTER, 0);
        world_settle(w);
    }
}

static void backup_small_target(struct world *w)
{
    small_target(w, NULL);
}

static void backup_small_target_guest_fails(struct world *w)
{
    small_target(w, &guest_fails);
}

/* Read-modify-write on a source with blocks, while it is copied. */
static void backup_unaligned(struct world *w)
{
    blkrepl_backend_info s = {
        .bytes = 9 * CLUSTER, .request_alignment = 512, .memory_alignment = 512};
    struct image *source, *target;

    w->parts = 3;
    w->skew = 1;
    if (image_pair(w, &s, NULL, &source, &target) && job_create_started(source, target, NULL)) {
        guest(source, 10, false);
    }
}

/* A guest write that needs five buffers where there are two. */
static void reserve_one(struct world *w, uint32_t policy)
{
    blkrepl_backup_options o = {
        .on_cbw_error = policy, .reserve_bytes = 1, .workers_max = 1, .chunk_bytes_max = CLUSTER};
    struct image *source, *target;
    struct job *job;

    if (!image_pair(w, NULL, NULL, &source, &target) || !(job = job_create(source, target, &o))) {
        return;
    }
    job_pause(job);
    job_start(job);
    op_write(source, CLUSTER / 2, 5 * CLUSTER, 0);
    op_write(source, 3 * CLUSTER, 5 * CLUSTER, 0);
    op_zeroes(source, 7 * CLUSTER + 100, 4 * CLUSTER, 0);
    op_begin(source, BLKREPL_OP_WRITE, 11 * CLUSTER, CLUSTER, false);
    op_discard(source, 0, 12 * CLUSTER);
    world_settle(w);
    job_resume(job);
    world_settle(w);
}

static void backup_reserve_one(struct world *w)
{
    reserve_one(w, BLKREPL_CBW_BACKUP_FAILS);
}

static void backup_reserve_one_guest_fails(struct world *w)
{
    reserve_one(w, GUEST_FAILS);
}

/* Nobody waits any more for what does not answer. */
static void all_over(const struct world *w)
{
    for (unsigned i = 0; i < w->op_count; i++) {
        REQUIRE(op_over(w->ops[i]), "a guest write at %llu still waits after its time is over",
                (unsigned long long)w->ops[i]->offset);
    }
}

/* A target that does not answer, until long after the time is over. */
static void timeout(struct world *w, uint32_t policy, bool beside)
{
    blkrepl_backup_options o = {.on_cbw_error = policy,
                                .reserve_bytes = CLUSTER,
                                .workers_max = 1,
                                .cbw_timeout_ns = SECOND};
    struct image *source, *target;
    struct job *job;

    if (!image_pair(w, NULL, NULL, &source, &target) || !(job = job_create(source, target, &o))) {
        return;
    }
    job->timeouts = source->timeouts = true;
    target->disk->hold = OPS_ALL;
    job_start(job);
    for (unsigned i = 0; i < 6; i++) {
        uint64_t at = (2 * i + 1) * CLUSTER - 50;

        if (beside) {
            op_begin(source, BLKREPL_OP_WRITE, at, 100, false);
        } else {
            op_write(source, at, 100, 0);
        }
        world_settle(w);
    }
    world_advance(w, SECOND / 2);
    op_write(source, 0, 100, 0);
    world_advance(w, SECOND);
    world_advance(w, 2 * SECOND);
    all_over(w);
    world_release(w);
    world_advance(w, SECOND);
}

static void backup_timeout(struct world *w)
{
    timeout(w, BLKREPL_CBW_BACKUP_FAILS, false);
}

static void backup_timeout_guest_fails(struct world *w)
{
    timeout(w, GUEST_FAILS, false);
}

static void backup_timeout_beside(struct world *w)
{
    timeout(w, GUEST_FAILS, true);
}

/* Two of one source, with different policies. */
static void backup_two(struct world *w)
{
    struct image *source, *target, *other = NULL;

    if (!image_pair(w, NULL, NULL, &source, &target)) {
        return;
    }
    image_disk(w, NULL, FILL_DATA); /* sources have even numbers */
    other = image_disk(w, NULL, FILL_DATA);
    if (!image_open(other, NULL) || !job_create_started(source, target, NULL)) {
        return;
    }
    op_write(source, 0, CLUSTER, 0);
    op_write(source, 5 * CLUSTER, CLUSTER, 0);
    api_poll(w->ctx, 0, 0);
    if (job_create_started(source, other, &guest_fails)) {
        guest(source, 12, false);
    }
}

/* Writes that are under way at the start, and one that waits behind them. */
static void backup_in_flight(struct world *w)
{
    struct image *source, *target;

    if (!image_pair(w, NULL, NULL, &source, &target)) {
        return;
    }
    source->disk->hold = BIT(BLKREPL_OP_WRITE);
    op_write(source, 0, CLUSTER, 0);
    op_write(source, 5 * CLUSTER + 100, CLUSTER, BLKREPL_IO_FUA);
    op_write(source, 100, 3 * CLUSTER, 0);
    struct op *beside = op_begin(source, BLKREPL_OP_ZEROES, 9 * CLUSTER, CLUSTER, true);
    if (job_create_started(source, target, NULL)) {
        op_write(source, 8 * CLUSTER, 3 * CLUSTER, 0);
        world_settle(w);
    }
    op_perform(beside);
    world_release(w);
}

/* With the default sizes there are thousands of clusters less to do than buffers. */
static void backup_defaults(struct world *w)
{
    struct image *source, *target;
    blkrepl_context_options base = {.job_requests_max = 8192};
    blkrepl_job *handle = NULL;

    if (!world_open(w, &base) || !image_pair(w, NULL, NULL, &source, &target)) {
        return;
    }
    if (api_backup_start(source->handle, target->handle, NULL, &handle) < 0 &&
        api_backup_start(source->handle, target->handle, NULL, &handle) < 0) {
        return;
    }
    target->unmodelled = true;
    w->job_dropped = true;
    api_job_free(handle);
    world_settle(w);
}

/* Everything in the smallest steps that there are. */
static void backup_small_steps(struct world *w)
{
    blkrepl_context_options base = {.callbacks_max = 1, .completions_max = 1, .copies_max = 1};
    struct image *source, *target;

    if (world_open(w, &base) && image_pair(w, NULL, NULL, &source, &target) &&
        job_create_started(source, target, &guest_fails)) {
        guest(source, 12, false);
    }
}

/* Nothing, a byte, less than a block, less than a cluster: each with a guest. */
static void backup_tiny(struct world *w)
{
    static const uint64_t sizes[] = {1, 513, CLUSTER - 1};

    if (!world_open(w, NULL)) {
        return;
    }
    for (size_t i = 0; i < ARRAY_COUNT(sizes); i++) {
        blkrepl_backend_info info = {.bytes = sizes[i]};
        struct image *source, *target;

        if (!image_pair(w, &info, &info, &source, &target) ||
            !job_create_started(source, target, NULL)) {
            return;
        }
        op_write(source, 0, sizes[i], 0);
        op_discard(source, 0, sizes[i]);
        op_zeroes(source, sizes[i] / 2, 1, 0);
        world_settle(w);
    }
}

static void backup_empty(struct world *w)
{
    struct image *source = image_disk(w, NULL, FILL_DATA), *target = image_disk(w, NULL, FILL_DATA);

    source->disk->info.bytes = 0;
    source->model.bytes = 0;
    if (world_open(w, NULL) && image_open(source, NULL) && image_open(target, NULL) &&
        job_create_started(source, target, NULL)) {
        op_write(source, 0, 0, 0);
        op_flush(source);
        world_settle(w);
    }
}

/* Larger chunks than the backends take at once, neighbours that merge. */
static void backup_chunks(struct world *w)
{
    blkrepl_backend_info s = {.bytes = 30 * CLUSTER, .transfer_bytes_max = 3 * CLUSTER};
    blkrepl_backend_info t = {
        .bytes = 31 * CLUSTER, .transfer_bytes_max = CLUSTER / 2, .cluster_bytes = 2 * CLUSTER};
    blkrepl_backup_options o = {
        .cluster_bytes = 2 * CLUSTER, .chunk_bytes_max = 9 * CLUSTER, .workers_max = 3};
    struct image *source, *target;

    if (image_pair(w, &s, &t, &source, &target) && job_create_started(source, target, &o)) {
        guest(source, 8, true);
    }
}

/* Two jobs with few buffers and wide writes: who waits for one comes to wait for
 * the other. */
static void backup_two_wide(struct world *w)
{
    blkrepl_backup_options o = {.on_cbw_error = GUEST_FAILS,
                                .reserve_bytes = 2 * CLUSTER,
                                .workers_max = 1,
                                .chunk_bytes_max = CLUSTER,
                                .cbw_timeout_ns = BLKREPL_FOREVER};
    struct image *source, *targets[2];

    if (!image_pair(w, NULL, NULL, &source, &targets[0])) {
        return;
    }
    image_disk(w, NULL, FILL_DATA);
    targets[1] = image_disk(w, NULL, FILL_DATA);
    if (!image_open(targets[1], NULL)) {
        return;
    }
    for (int i = 0; i < 2; i++) {
        struct job *job = job_create(source, targets[i], &o);

        if (!job) {
            return;
        }
        job_pause(job);
        job_start(job);
    }
    op_write(source, CLUSTER, 7 * CLUSTER, 0);
    op_write(source, 9 * CLUSTER, 2 * CLUSTER, 0);
    op_begin(source, BLKREPL_OP_WRITE, 3 * CLUSTER, 6 * CLUSTER, false);
    world_settle(w);
    job_resume(&w->jobs[1]);
    world_settle(w);
}

/* The source does not answer: not even a buffer can be filled. */
static void source_hangs(struct world *w, uint32_t policy)
{
    blkrepl_backup_options o = {.on_cbw_error = policy, .cbw_timeout_ns = SECOND};
    struct image *source, *target;
    struct job *job;

    if (!image_pair(w, NULL, NULL, &source, &target) || !(job = job_create(source, target, &o))) {
        return;
    }
    job->timeouts = source->timeouts = true;
    source->disk->hold = BIT(BLKREPL_OP_READ);
    job_pause(job);
    job_start(job);
    op_write(source, 0, 100, 0);
    op_write(source, 5 * CLUSTER, 2 * CLUSTER, 0);
    op_begin(source, BLKREPL_OP_WRITE, 5 * CLUSTER, 100, false);
    world_settle(w);
    world_advance(w, 2 * SECOND);
    world_advance(w, 2 * SECOND); /* for the bracket, which waited for a write */
    all_over(w);
    world_release(w);
    job_resume(job);
    world_settle(w);
}

static void backup_source_hangs(struct world *w)
{
    source_hangs(w, BLKREPL_CBW_BACKUP_FAILS);
}

static void backup_source_hangs_guest_fails(struct world *w)
{
    source_hangs(w, GUEST_FAILS);
}

/* Zeroes and discards in many pieces; one of them is half done at the start. */
static void backup_pieces(struct world *w)
{
    blkrepl_backend_info s = {.zeroes_bytes_max = 1024};
    struct image *source, *target;

    if (!image_pair(w, &s, NULL, &source, &target)) {
        return;
    }
    source->disk->hold = BIT(BLKREPL_OP_ZEROES);
    op_zeroes(source, 2 * CLUSTER, CLUSTER, 0);
    world_settle(w);
    struct job *job = job_create(source, target, &guest_fails);
    if (!job) {
        return;
    }
    job_pause(job);
    job_start(job);
    op_discard(source, 4 * CLUSTER, 8 * CLUSTER);
    op_write(source, 6 * CLUSTER, 100, 0);
    world_settle(w);
    world_release(w);
    op_zeroes(source, 6 * CLUSTER - 3, 2 * CLUSTER, 0);
    op_discard(source, 4 * CLUSTER, 8 * CLUSTER);
    world_settle(w);
    job_resume(job);
    world_settle(w);
}

const struct scenario backup_scenarios[] = {
    {"backup-through", backup_through, 0},
    {"backup-through-guest-fails", backup_through_guest_fails, 0},
    {"backup-beside", backup_beside, 0},
    {"backup-beside-guest-fails", backup_beside_guest_fails, 0},
    {"backup-offload", backup_offload, 0},
    {"backup-offload-cancels", backup_offload_cancels, 0},
    {"backup-offload-guest-fails", backup_offload_guest_fails, 0},
    {"backup-quiet", backup_quiet, 0},
    {"backup-holes", backup_holes, 0},
    {"backup-holes-guest-fails", backup_holes_guest_fails, 0},
    {"backup-detect-zeroes", backup_detect_zeroes, 0},
    {"backup-status-lies", backup_status_lies, 0},
    {"backup-small-target", backup_small_target, 0},
    {"backup-small-target-guest-fails", backup_small_target_guest_fails, 0},
    {"backup-unaligned", backup_unaligned, 0},
    {"backup-reserve-one", backup_reserve_one, 0},
    {"backup-reserve-one-guest-fails", backup_reserve_one_guest_fails, 0},
    {"backup-timeout", backup_timeout, 0},
    {"backup-timeout-guest-fails", backup_timeout_guest_fails, 0},
    {"backup-timeout-beside", backup_timeout_beside, 0},
    {"backup-two", backup_two, 0},
    {"backup-in-flight", backup_in_flight, 0},
    {"backup-two-wide", backup_two_wide, 0},
    {"backup-source-hangs", backup_source_hangs, 0},
    {"backup-source-hangs-guest-fails", backup_source_hangs_guest_fails, 0},
    {"backup-pieces", backup_pieces, 0},
    {"backup-small-steps", backup_small_steps, 0},
    {"backup-tiny", backup_tiny, 0},
    {"backup-empty", backup_empty, SCENARIO_ONE_ORDER},
    {"backup-chunks", backup_chunks, 0},
    {"backup-defaults", backup_defaults, SCENARIO_ONE_ORDER},
    {NULL, NULL, 0},
};
