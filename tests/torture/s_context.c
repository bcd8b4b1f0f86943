/* SPDX-License-Identifier: MIT */
/* s_context.c - contexts: made, refused, polled, closed at any time. */
#include "api.h"

/* ---- Making one -------------------------------------------------------------------------- */

static void refused(struct world *w, const blkrepl_context_options *o, int code)
{
    blkrepl_context *ctx = NULL;

    api_must(code);
    api_context_create(o, &ctx);
    REQUIRE(ctx == NULL && w->sinks_released == w->sinks,
            "a create that fails released the sink %u times of %u", w->sinks_released, w->sinks);
}

static void *no_memory(void *user, size_t bytes)
{
    (void)user;
    (void)bytes;
    return NULL;
}

/* As a newer release might have it. */
struct newer_options {
    blkrepl_context_options known;
    uint64_t unknown;
};

static void context_refused(struct world *w)
{
    blkrepl_hooks hooks;
    blkrepl_allocator allocator, half = {.struct_size = sizeof half, .alloc = no_memory};
    blkrepl_context_options o = world_options(w, NULL, &hooks, &allocator), bad;
    struct newer_options newer = {.known = o, .unknown = 1};
    uint32_t *const limits[] = {
        &bad.requests_max, &bad.job_requests_max, &bad.callbacks_max, &bad.completions_max,
        &bad.copies_max,   &bad.pool_threads_max, &bad.reserved0,     &bad.flags};

    for (size_t i = 0; i < ARRAY_COUNT(limits); i++) {
        bad = o;
        *limits[i] = 70000;
        refused(w, &bad, -EINVAL);
        w->sinks++; /* each try gives one away */
    }
    bad = o;
    bad.lane_count = 257;
    refused(w, &bad, -EINVAL);
    w->sinks++;
    bad = o;
    bad.allocator = &half;
    refused(w, &bad, -EINVAL);
    w->sinks++;
    newer.known.struct_size = sizeof newer;
    refused(w, &newer.known, BLKREPL_ERR_VERSION);
    w->sinks++;
    api_must(-EINVAL);
    api_context_create(&o, NULL);
    bad = o;
    bad.struct_size = 12;
    api_must(-EINVAL);
    api_context_create(&bad, &w->ctx);
    api_context_free(NULL);
    newer.unknown = 0; /* what we do not know is not used */
    w->sinks++;
    if (api_context_create(&newer.known, &w->ctx) == 0) {
        return;
    }
    world_open(w, NULL);
}

/* The system's clock, entropy and memory; two tries, as elsewhere. */
static void context_default(struct world *w)
{
    blkrepl_context *ctx = NULL;

    (void)w;
    if (api_context_create(NULL, &ctx) < 0 && api_context_create(NULL, &ctx) < 0) {
        return;
    }
    api_context_now(ctx);
    api_poll(ctx, 0, 0);
    REQUIRE(api_context_free(ctx) == 0, "an empty context cannot be freed");
}

static void context_texts(struct world *w)
{
    static const int codes[] = {0,       -EIO,  -ENOMEM, BLKREPL_ERR_STATE, BLKREPL_ERR_VERSION,
                                -123456, 99999, -EXDEV};

    REQUIRE(strcmp(api_version(), "0.1.0") >= 0, "version %s", api_version());
    for (size_t i = 0; i < ARRAY_COUNT(codes); i++) {
        api_error_text(codes[i]);
    }
    api_error_message();
    if (world_open(w, NULL)) {
        api_context_now(w->ctx);
        api_context_now(NULL);
    }
}

/* ---- Polling -------------------------------------------------------------------------------- */

static void poll_refused(struct world *w)
{
    uint64_t deadline;

    api_must(-EINVAL);
    api_poll(NULL, 0, 0);
    api_must(-EINVAL);
    api_poll_arm(NULL, 0, &deadline);
    api_must(-EINVAL);
    api_poll_fd(NULL, 0);
    api_must(-EINVAL);
    api_poll_wake(NULL, 0);
    if (!world_open(w, NULL)) {
        return;
    }
    api_must(-EINVAL);
    api_poll(w->ctx, 1, 0);
    api_must(-EINVAL);
    api_poll(w->ctx, 0, 5); /* with a clock hook */
    api_must(-EINVAL);
    api_poll_arm(w->ctx, 1, &deadline);
    api_must(-EINVAL);
    api_poll_arm(w->ctx, 0, NULL);
    api_must(-EINVAL);
    api_poll_fd(w->ctx, 1);
    api_must(-EINVAL);
    api_poll_wake(w->ctx, 1);
}

/* A signal, or a drain, that fails may be missing. */
static bool lost(void)
{
    return fault_plan()->domain == FAULT_SYS && fault_fired() > 0;
}

/* Armed: readable at the next event, and not before. */
static void poll_armed(struct world *w)
{
    struct image *image = image_disk(w, NULL, FILL_DATA);

    if (!world_open(w, NULL) || !image_open(image, NULL)) {
        return;
    }
    int fd = api_poll_fd(w->ctx, 0);
    image->disk->hold = OPS_ALL;
    op_read(image, 0, CLUSTER);
    uint64_t deadline = world_settle(w);
    REQUIRE(deadline == BLKREPL_FOREVER && !sys_readable(fd), "readable before anything happened");
    disk_finish(image->disk, 0);
    REQUIRE(lost() || sys_readable(fd), "armed, and a completion does not make it readable");
    world_settle(w);
    api_poll_wake(w->ctx, 0);
    REQUIRE(lost() || sys_readable(fd), "armed, and wake does not make it readable");
    world_settle(w);
    REQUIRE(lost() || !sys_readable(fd), "readable after the poll");
}

static void poll_blocking(struct world *w)
{
    w->real_clock = true;
    struct image *image = image_disk(w, NULL, FILL_DATA);

    if (!world_open(w, NULL) || !image_open(image, NULL)) {
        return;
    }
    op_write(image, 0, CLUSTER, 0);
    api_poll(w->ctx, 0, SECOND / 1000);
    api_poll(w->ctx, 0, SECOND / 10000); /* sleeps */
    api_poll_wake(w->ctx, 0);
    api_poll(w->ctx, 0, BLKREPL_FOREVER);
    op_flush(image);
    world_settle(w);
}

static void *poll_elsewhere(void *arg)
{
    struct world *w = arg;

    api_must(-EBUSY);
    api_poll(w->ctx, 0, 0);
    api_must(-EBUSY);
    api_context_free(w->ctx);
    return NULL;
}

static void poll_twice(struct op *op)
{
    sys_elsewhere(poll_elsewhere, op->world);
}

/* One thread polls a lane at a time; while it does, the context is not freed. */
static void poll_busy(struct world *w)
{
    struct image *image = image_disk(w, NULL, FILL_DATA);

    if (world_open(w, NULL) && image_open(image, NULL)) {
        op_start(image, &(struct op){.opcode = BLKREPL_OP_READ, .bytes = 10, .then = poll_twice});
        op_write(image, CLUSTER, 10, 0);
        w->closed = true; /* by the other thread */
        world_settle(w);
    }
}

/* ---- Closing one ------------------------------------------------------------------------ */

/* What a closed context refuses, and what it does not. */
static void closed_refuses(struct image *image, struct image *target)
{
    struct world *w = image->world;
    blkrepl_image *none = NULL;
    blkrepl_job *job = NULL;
    uint64_t deadline;

    api_must(-ESHUTDOWN);
    op_write(image, 0, 512, 0);
    api_must(-ESHUTDOWN);
    op_read(image, 0, 512);
    api_must(-ESHUTDOWN);
    op_zeroes(image, 0, 512, 0);
    api_must(-ESHUTDOWN);
    op_discard(image, 0, 512);
    api_must(-ESHUTDOWN);
    op_flush(image);
    api_must(-ESHUTDOWN);
    op_status(image, 0, 512, 1);
    api_must(-ESHUTDOWN);
    op_begin(image, BLKREPL_OP_WRITE, 0, 512, false);
    api_must(-ESHUTDOWN);
    api_image_open_memory(w->ctx, 100, NULL, &none);
    api_must(-ESHUTDOWN);
    api_backup_create(image->handle, target->handle, NULL, &job);
    api_context_now(w->ctx);
    api_poll_arm(w->ctx, 0, &deadline);
    api_poll_wake(w->ctx, 0);
    api_image_query(image->handle,
                    &(blkrepl_image_info){.struct_size = sizeof(blkrepl_image_info)});
}

static void close_busy(struct world *w)
{
    struct image *source, *target;

    if (image_pair(w, NULL, NULL, &source, &target)) {
        world_shut(w);
        closed_refuses(source, target);
    }
}

/* In the middle of everything: requests at the backend and behind others, brackets
 * with and without GO, a running job and one that was never started. */
static void close_at_work(struct world *w, bool cancel_ends, bool no_cancel)
{
    struct image *source = image_disk(w, NULL, FILL_DATA), *target = image_disk(w, NULL, FILL_DATA);
    struct image *third = image_disk(w, NULL, FILL_DATA);
    struct job *job, *idle;

    source->disk->cancel_ends = target->disk->cancel_ends = cancel_ends;
    source->disk->no_cancel = no_cancel;
    if (!world_open(w, NULL) || !image_open(source, NULL) || !image_open(target, NULL) ||
        !image_open(third, NULL) || !(job = job_create_started(source, target, NULL)) ||
        !(idle = job_create(source, third, NULL))) {
        return;
    }
    source->disk->hold = target->disk->hold = OPS_ALL;
    op_write(source, 9 * CLUSTER, CLUSTER, 0);
    op_begin(source, BLKREPL_OP_WRITE, 5 * CLUSTER, CLUSTER, true);
    op_begin(source, BLKREPL_OP_WRITE, 5 * CLUSTER, CLUSTER, true);
    op_write(source, 9 * CLUSTER, 10, 0);
    op_read(source, 0, CLUSTER);
    op_flush(source);
    api_poll(w->ctx, 0, 0);
    op_zeroes(source, 7 * CLUSTER, 2 * CLUSTER, 0);
    world_shut(w);
    api_may(BLKREPL_ERR_STATE);
    api_job_cancel(job->handle, BLKREPL_CANCEL_FORCE);
    api_must(-ESHUTDOWN);
    api_job_start(idle->handle);
    api_must(-ESHUTDOWN);
    api_job_pause(job->handle);
    world_settle(w);
    for (unsigned i = 0; i < w->image_count; i++) {
        w->disks[i].hold = 0;
    }
    world_settle(w);
    job_check(job);
    job_check(idle);
}

static void close_with_cancel(struct world *w)
{
    close_at_work(w, true, false);
}

static void close_waiting(struct world *w)
{
    close_at_work(w, false, false);
}

static void close_no_cancel(struct world *w)
{
    close_at_work(w, false, true);
}

const struct scenario context_scenarios[] = {
    {"context-refused", context_refused, SCENARIO_ONE_ORDER},
    {"context-default", context_default, SCENARIO_ONE_ORDER},
    {"context-texts", context_texts, SCENARIO_ONE_ORDER},
    {"poll-refused", poll_refused, SCENARIO_ONE_ORDER},
    {"poll-armed", poll_armed, SCENARIO_ONE_ORDER},
    {"poll-busy", poll_busy, 0},
    {"poll-blocking", poll_blocking, SCENARIO_ONE_ORDER | SCENARIO_THREADS},
    {"close-busy", close_busy, SCENARIO_ONE_ORDER},
    {"close-with-cancel", close_with_cancel, 0},
    {"close-waiting", close_waiting, 0},
    {"close-no-cancel", close_no_cancel, 0},
    {NULL, NULL, 0},
};
