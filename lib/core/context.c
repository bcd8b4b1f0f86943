/* SPDX-License-Identifier: MIT */
/* context.c - creating and freeing a context, and its clock. */
#if defined(__linux__)
#define _GNU_SOURCE
#endif
#include "core/context.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "base/abi.h"
#include "base/checked.h"
#include "base/struct_io.h"
#include "core/error.h"
#include "core/lane.h"

#define LANES_MOST 256
#define REQUESTS_MOST 65536
#define COUNTS_MOST 65536
#define POOL_THREADS_MOST 64

static uint64_t context_monotonic_ns(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

uint64_t blkrepl__now(struct blkrepl_context *ctx)
{
    uint64_t now;

    if (ctx->hooks.clock_ns != NULL) {
        blkrepl__hook_depth++;
        now = ctx->hooks.clock_ns(ctx->hooks.user);
        blkrepl__hook_depth--;
    } else {
        now = context_monotonic_ns();
    }
    ctx->now_ns = max_u64(ctx->now_ns, now);
    return ctx->now_ns;
}

/* Eight random bytes, from the host or the system. */
static int context_seed(struct blkrepl_context *ctx)
{
    ssize_t done;
    int fd;
    int rc;

    if (ctx->hooks.entropy != NULL) {
        blkrepl__hook_depth++;
        rc = ctx->hooks.entropy(ctx->hooks.user, &ctx->seed, sizeof ctx->seed);
        blkrepl__hook_depth--;
        return rc < 0 ? blkrepl__fail_code(rc, "context: entropy hook") : 0;
    }
    fd = open("/dev/urandom", O_RDONLY | O_CLOEXEC);
    if (fd < 0) {
        return blkrepl__fail_code(-errno, "context: /dev/urandom");
    }
    done = read(fd, &ctx->seed, sizeof ctx->seed);
    close(fd);
    return done == (ssize_t)sizeof ctx->seed ? 0 : blkrepl__fail(-EIO, "context: /dev/urandom");
}

static uint32_t context_default(uint32_t value, uint32_t otherwise)
{
    return value != 0 ? value : otherwise;
}

/* Check the options and copy them into ctx, which is zero. */
static int context_configure(struct blkrepl_context *ctx, const blkrepl_context_options *options)
{
    blkrepl_context_options o;
    int rc;

    rc = blkrepl__struct_in(&o, sizeof o, BLKREPL_CONTEXT_OPTIONS_V1_BYTES, options);
    if (rc == 0) {
        rc = blkrepl__struct_in(&ctx->hooks, sizeof ctx->hooks, BLKREPL_HOOKS_V1_BYTES, o.hooks);
    }
    if (rc == 0) {
        rc = blkrepl__alloc_init(&ctx->alloc, o.allocator);
    }
    if (rc < 0) {
        return blkrepl__fail_code(rc, "context: options");
    }
    if (o.flags != 0 || o.reserved0 != 0 || o.reserved1 != NULL || ctx->hooks.flags != 0 ||
        o.requests_max > REQUESTS_MOST || o.job_requests_max > REQUESTS_MOST ||
        o.callbacks_max > COUNTS_MOST || o.completions_max > COUNTS_MOST ||
        o.copies_max > COUNTS_MOST || o.pool_threads_max > POOL_THREADS_MOST) {
        return blkrepl__fail(-EINVAL, "context: a flag, limit or reserved field is out of range");
    }
    ctx->sink = o.on_event;
    ctx->lane_count = context_default(o.lane_count, 1);
    ctx->requests_max = context_default(o.requests_max, 1024);
    ctx->job_requests.count = context_default(o.job_requests_max, 8192);
    if (ctx->lane_count > LANES_MOST ||
        (uint64_t)ctx->lane_count * ctx->requests_max + ctx->job_requests.count >
            REQUEST_INDEX_MASK + 1) {
        return blkrepl__fail(-EINVAL,
                             "context: %" PRIu32 " lanes of %" PRIu32 " requests each; at most %d "
                             "lanes and %" PRIu64 " requests together",
                             ctx->lane_count, ctx->requests_max, LANES_MOST,
                             REQUEST_INDEX_MASK + 1);
    }
    ctx->callbacks_max = context_default(o.callbacks_max, 256);
    ctx->completions_max = context_default(o.completions_max, 256);
    ctx->copies_max = context_default(o.copies_max, 16);
    ctx->pool_threads_max = o.pool_threads_max;
    ctx->memory_bytes_max = o.memory_bytes_max != 0 ? o.memory_bytes_max : UINT64_C(1) << 30;
    ctx->log.enabled = ctx->hooks.log != NULL;
    return 0;
}

static void context_init_lists(struct blkrepl_context *ctx)
{
    struct list *lists[] = {&ctx->ready,  &ctx->completed,  &ctx->machines, &ctx->jobs,
                            &ctx->chores, &ctx->job_queues, &ctx->closing,  &ctx->yielding,
                            &ctx->strays, &ctx->throttles};

    for (size_t i = 0; i < ARRAY_COUNT(lists); i++) {
        list_init(lists[i]);
    }
    blkrepl__timer_list_init(&ctx->timers);
}

/* Make slots and lanes; on failure the caller frees them. */
static int context_build(struct blkrepl_context *ctx)
{
    uint32_t jobs = ctx->job_requests.count;
    int rc = 0;

    ctx->slot_count = ctx->lane_count * ctx->requests_max + jobs;
    ctx->slots = blkrepl__zalloc_array(&ctx->alloc, ctx->slot_count, sizeof *ctx->slots);
    ctx->lanes = blkrepl__zalloc_array(&ctx->alloc, ctx->lane_count, sizeof *ctx->lanes);
    if (ctx->slots == NULL || ctx->lanes == NULL) {
        return blkrepl__fail(-ENOMEM, "context: no memory for %" PRIu32 " requests",
                             ctx->slot_count);
    }
    blkrepl__request_pool_init(&ctx->job_requests, ctx->slots, ctx->slot_count - jobs, jobs);
    while (rc == 0 && ctx->lanes_made < ctx->lane_count) {
        rc = blkrepl__lane_init(&ctx->lanes[ctx->lanes_made], ctx->slots,
                                ctx->lanes_made * ctx->requests_max, ctx->requests_max);
        ctx->lanes_made += rc == 0;
    }
    return rc < 0 ? blkrepl__fail_code(rc, "context: wake-up descriptor") : 0;
}

static void context_unbuild(struct blkrepl_context *ctx)
{
    struct alloc alloc = ctx->alloc;

    while (ctx->lanes_made > 0) {
        blkrepl__lane_fini(&ctx->lanes[--ctx->lanes_made]);
    }
    blkrepl__free(&alloc, ctx->lanes);
    blkrepl__free(&alloc, ctx->slots);
    blkrepl__free(&alloc, ctx);
}

/* Move the checked options into memory of the context's own allocator. */
static int context_make(const struct blkrepl_context *draft, blkrepl_context **out)
{
    struct blkrepl_context *ctx = blkrepl__zalloc(&draft->alloc, sizeof *ctx);
    int rc;

    if (ctx == NULL) {
        return blkrepl__fail(-ENOMEM, "context: no memory");
    }
    memcpy(ctx, draft, sizeof *ctx);
    context_init_lists(ctx);
    rc = context_build(ctx);
    if (rc == 0 && pthread_mutex_init(&ctx->lock, NULL) != 0) {
        rc = blkrepl__fail(-ENOMEM, "context: no mutex");
    }
    if (rc < 0) {
        context_unbuild(ctx);
        return rc;
    }
    *out = ctx;
    return 0;
}

static void sink_release(const blkrepl_event_sink *sink)
{
    if (sink->release != NULL) {
        sink->release(sink->user);
    }
}

int blkrepl_context_create(const blkrepl_context_options *options, blkrepl_context **out)
{
    struct blkrepl_context draft;
    int rc;

    memset(&draft, 0, sizeof draft);
    rc = out != NULL ? 0 : blkrepl__fail(-EINVAL, "context: out is NULL");
    if (rc == 0) {
        *out = NULL;
        rc = context_configure(&draft, options);
    }
    if (rc == 0) {
        rc = context_seed(&draft);
    }
    if (rc == 0) {
        rc = context_make(&draft, out);
    }
    /* The sink is ours to release as soon as we can read it. */
    if (rc < 0 && options != NULL && options->struct_size >= BLKREPL_CONTEXT_OPTIONS_V1_BYTES) {
        sink_release(&options->on_event);
    }
    return rc;
}

uint64_t blkrepl_context_now(blkrepl_context *ctx)
{
    uint64_t now;

    if (ctx == NULL) {
        return 0;
    }
    /* Not an entry: reading the clock advances nothing. */
    pthread_mutex_lock(&ctx->lock);
    now = blkrepl__now(ctx);
    pthread_mutex_unlock(&ctx->lock);
    return now;
}

/* Tell the backends, once, about everything in flight from this pool. */
static void context_cancel_requests(struct request_pool *pool)
{
    for (uint32_t i = 0; i < pool->touched; i++) {
        struct request *request = &pool->slots[i];

        uint64_t id = atomic_load_explicit(&request->live_id, memory_order_relaxed);

        if (id != 0 && request->cancelled_id != id) {
            blkrepl__port_cancel(request);
        }
    }
}

/* The first call: jobs end, polls return. */
static void context_shut(struct blkrepl_context *ctx)
{
    struct list told;

    list_init(&told);
    ctx->shut = true;
    atomic_store(&ctx->attention, true); /* and never false again */
    if (ctx->quick_stop != NULL) {
        ctx->quick_stop(ctx);
    }
    for (uint32_t i = 0; i < ctx->lane_count; i++) {
        ctx->lanes[i].kicked = true;
        atomic_store(&ctx->lanes[i].slow_due, true);
    }
    /* One that is told may take others with it, and itself: each moves over first. */
    while (!list_empty(&ctx->jobs)) {
        struct list *link = list_pop(&ctx->jobs);
        struct machine *machine = CONTAINER_OF(link, struct machine, all);

        list_append(&told, link);
        machine->shut_down(machine);
    }
    list_splice(&ctx->jobs, &told);
    if (ctx->throttles_shut_down != NULL) {
        ctx->throttles_shut_down(ctx);
    }
}

static uint32_t context_requests(const struct blkrepl_context *ctx)
{
    uint32_t used = ctx->job_requests.used;

    for (uint32_t i = 0; i < ctx->lane_count; i++) {
        used += ctx->lanes[i].requests.used;
    }
    return used;
}

/* Whether callbacks wait on some lane. */
static bool context_callbacks(const struct blkrepl_context *ctx)
{
    uint32_t i = 0;

    while (i < ctx->lane_count && list_empty(&ctx->lanes[i].callbacks)) {
        i++;
    }
    return i < ctx->lane_count;
}

/* Whether another thread is inside a call; this one is counted as well. */
static bool context_entered(struct blkrepl_context *ctx)
{
    bool entered = ctx->inside > 1;

    for (uint32_t i = 0; i < ctx->lane_count && !entered; i++) {
        struct lane *lane = &ctx->lanes[i];

        pthread_mutex_lock(&lane->lock);
        entered = lane->inside > 0 || atomic_load(&lane->polling) != LANE_FREE ||
                  atomic_load(&lane->completing) > 0 || atomic_load(&lane->blocked) > 0;
        pthread_mutex_unlock(&lane->lock);
    }
    return entered;
}

/* 0 if nothing is left; otherwise say what is. */
static int context_remains(struct blkrepl_context *ctx)
{
    uint32_t requests = context_requests(ctx);

    if (ctx->images_open > 0 || ctx->bitmaps_open > 0 || ctx->jobs_open > 0 ||
        ctx->groups_open > 0) {
        return blkrepl__fail(-EBUSY,
                             "context: %" PRIu32 " image, %" PRIu32 " bitmap, %" PRIu32
                             " job and %" PRIu32 " group handles are open",
                             ctx->images_open, ctx->bitmaps_open, ctx->jobs_open, ctx->groups_open);
    }
    if (ctx->throttles_open > 0) {
        return blkrepl__fail(-EBUSY, "context: %" PRIu32 " throttle handles are open",
                             ctx->throttles_open);
    }
    if (requests > 0) {
        return blkrepl__fail(-EBUSY, "context: %" PRIu32 " requests or brackets have not ended",
                             requests);
    }
    if (!list_empty(&ctx->jobs) || ctx->ports > 0 || context_callbacks(ctx)) {
        return blkrepl__fail(-EBUSY, "context: a job winds up or a backend is being closed");
    }
    if (context_entered(ctx)) {
        return blkrepl__fail(-EBUSY, "context: another thread is inside a call");
    }
    return 0;
}

static void context_destroy(struct blkrepl_context *ctx)
{
    blkrepl_event_sink sink = ctx->sink;

    if (ctx->helper.free != NULL) {
        ctx->helper.free(ctx->helper.user);
    }
    if (ctx->guests_free != NULL) {
        ctx->guests_free(ctx);
    }
    pthread_mutex_destroy(&ctx->lock);
    context_unbuild(ctx);
    sink_release(&sink);
}

int blkrepl_context_free(blkrepl_context *ctx)
{
    int rc;

    if (ctx == NULL) {
        return 0;
    }
    if (blkrepl__host_inside(ctx)) {
        return blkrepl__fail(-EBUSY, "context: freed from inside a callback of its own");
    }
    blkrepl__enter(ctx);
    if (!ctx->shut) {
        context_shut(ctx);
    }
    for (uint32_t i = 0; i < ctx->lane_count; i++) {
        context_cancel_requests(&ctx->lanes[i].requests);
    }
    context_cancel_requests(&ctx->job_requests);
    blkrepl__drain(ctx);
    rc = context_remains(ctx);
    if (rc < 0) {
        blkrepl__leave(ctx, 0);
        return rc;
    }
    ctx->inside--;
    pthread_mutex_unlock(&ctx->lock);
    context_destroy(ctx);
    return 0;
}
