/* SPDX-License-Identifier: MIT */
/* world.c - a context under watch, and the end of every run. */
#include "api.h"

#include <sched.h>

#define ROUNDS_MAX 20000
#define WAITS_MAX 200000

static struct world the_world;

/* ---- Hooks --------------------------------------------------------------------------- */

static uint64_t world_clock(void *user)
{
    const struct world *w = user;

    return w->now;
}

static int world_entropy(void *user, void *out, size_t bytes)
{
    (void)user;
    memset(out, 7, bytes);
    if (!fault_due(FAULT_DISK)) {
        return 0;
    }
    fault_note();
    failure_add(&(struct failure){.medium = -1, .code = -EPROTO, .hard = true});
    return -EPROTO;
}

static void world_log(void *user, uint32_t level, const char *line)
{
    struct world *w = user;

    w->log_lines++;
    REQUIRE(level >= BLKREPL_LOG_ERROR && level <= BLKREPL_LOG_DEBUG, "log: level %u", level);
    api_check_text(line, "log");
    if (w->ctx) {
        api_must(-EDEADLK);
        api_poll(w->ctx, 0, 0);
    }
}

static void world_event(void *user, const blkrepl_event *event)
{
    struct world *w = user;

    REQUIRE(event->struct_size == sizeof *event && event->count > 0, "event: %u bytes, count %llu",
            event->struct_size, (unsigned long long)event->count);
    if (event->type == BLKREPL_EVENT_ROOM) {
        REQUIRE(event->object_kind == BLKREPL_OBJECT_LANE && event->object_id == 0 && !event->user,
                "event: ROOM of kind %u, id %llu", event->object_kind,
                (unsigned long long)event->object_id);
        w->rooms++;
    } else {
        job_event(w, event);
    }
    if (w->on_event) {
        w->on_event(w, event);
    }
}

static void world_sink_release(void *user)
{
    struct world *w = user;

    w->sinks_released++;
}

blkrepl_context_options world_options(struct world *w, const blkrepl_context_options *base,
                                      blkrepl_hooks *hooks, blkrepl_allocator *allocator)
{
    blkrepl_context_options o = {.struct_size = sizeof o};

    if (base) {
        o = *base;
        o.struct_size = sizeof o;
    }
    *allocator = heap_hooks();
    *hooks = (blkrepl_hooks){
        .struct_size = sizeof *hooks, .user = w, .entropy = world_entropy, .log = world_log};
    if (!w->real_clock) {
        hooks->clock_ns = world_clock;
    }
    o.requests_max = o.requests_max ? o.requests_max : 40;
    o.job_requests_max = o.job_requests_max ? o.job_requests_max : 60;
    o.pool_threads_max = w->default_pool ? 0 : 2;
    o.hooks = hooks;
    o.allocator = allocator;
    o.on_event = (blkrepl_event_sink){world_event, w, world_sink_release};
    if (w->silent) {
        hooks->log = NULL;
        o.on_event.fn = NULL;
    }
    w->sinks++;
    return o;
}

bool world_open(struct world *w, const blkrepl_context_options *base)
{
    for (int attempt = 0; attempt < 2; attempt++) {
        blkrepl_hooks hooks;
        blkrepl_allocator allocator;
        blkrepl_context_options o = world_options(w, base, &hooks, &allocator);

        if (api_context_create(&o, &w->ctx) == 0) {
            return true;
        }
        REQUIRE(w->sinks_released == w->sinks, "create failed and released the sink %u times of %u",
                w->sinks_released, w->sinks);
        heap_check_empty();
    }
    return false;
}

uint64_t world_random(struct world *w, uint64_t below)
{
    w->random = w->random * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
    return (w->random >> 33) % below;
}

/* ---- Time passes ---------------------------------------------------------------------- */

/* The next held request, by the order of this run, that may end. */
static bool world_finish_one(struct world *w)
{
    struct disk *best = NULL;
    size_t index = 0;
    uint64_t sequence = 0;

    for (unsigned i = 0; i < w->image_count; i++) {
        struct disk *d = &w->disks[i];

        for (size_t k = 0; k < d->queue_count; k++) {
            bool better = !best || (w->order == ORDER_LIFO ? d->queue[k].sequence > sequence
                                                           : d->queue[k].sequence < sequence);

            if (better && (d->hold & BIT(d->queue[k].io->opcode)) == 0) {
                best = d;
                index = k;
                sequence = d->queue[k].sequence;
            }
        }
    }
    if (best) {
        disk_finish(best, index);
    }
    return best != NULL;
}

uint64_t world_settle(struct world *w)
{
    for (int i = 0; i < ROUNDS_MAX; i++) {
        uint64_t deadline = 0;
        int ran = api_poll(w->ctx, 0, 0);
        int busy = api_poll_arm(w->ctx, 0, &deadline);
        bool finished = world_finish_one(w);

        if (ran == 0 && busy == 0 && !finished) {
            return deadline;
        }
    }
    torture_fail("after %d polls there is still work", ROUNDS_MAX);
}

void world_poll(struct world *w)
{
    uint64_t deadline = 0;

    for (int i = 0; i < ROUNDS_MAX; i++) {
        if (api_poll(w->ctx, 0, 0) == 0 && api_poll_arm(w->ctx, 0, &deadline) == 0) {
            return;
        }
    }
    torture_fail("after %d polls there is still work", ROUNDS_MAX);
}

void world_advance(struct world *w, uint64_t ns)
{
    w->now += ns;
    world_settle(w);
}

void world_release(struct world *w)
{
    for (unsigned i = 0; i < w->image_count; i++) {
        w->disks[i].hold = 0;
    }
    world_settle(w);
}

void world_wait(struct world *w, bool (*done)(void *arg), void *arg)
{
    for (int i = 0; i < WAITS_MAX && !done(arg); i++) {
        if (w->real_clock) {
            api_poll(w->ctx, 0, SECOND / 100);
        } else {
            api_poll(w->ctx, 0, 0);
            sched_yield();
        }
    }
    REQUIRE(done(arg), "waited for long, and what was to happen did not");
}

/* ---- The end --------------------------------------------------------------------------- */

static void world_drop_handles(struct world *w)
{
    for (unsigned i = 0; i < w->job_count; i++) {
        if (w->jobs[i].handle) {
            job_free(&w->jobs[i]);
        }
    }
    for (unsigned i = 0; i < w->bitmap_count; i++) {
        if (w->bitmaps[i].handle) {
            bitmap_free(&w->bitmaps[i]);
        }
    }
    for (unsigned i = 0; i < w->image_count; i++) {
        if (w->images[i].handle) {
            image_close(&w->images[i]);
        }
    }
}

/* Brackets that have their GO are ended; whether there were any. */
static bool world_end_brackets(struct world *w)
{
    bool any = false;

    for (unsigned i = 0; i < w->op_count; i++) {
        if (w->ops[i]->bracket == BRACKET_GO) {
            op_perform(w->ops[i]);
            any = true;
        }
    }
    return any;
}

void world_shut(struct world *w)
{
    w->closed = true;
    for (unsigned i = 0; i < w->job_count; i++) {
        w->jobs[i].cancelled = true;
    }
    api_must(-EBUSY);
    api_context_free(w->ctx);
}

void world_close(struct world *w)
{
    char why[256] = "";
    int rc = -EBUSY;

    world_drop_handles(w);
    for (int i = 0; i < ROUNDS_MAX && rc == -EBUSY; i++) {
        w->closed = true;
        api_may(-EBUSY);
        rc = api_context_free(w->ctx);
        if (rc == -EBUSY) {
            snprintf(why, sizeof why, "%s", api_error_message());
            for (unsigned k = 0; k < w->image_count; k++) {
                w->disks[k].hold = 0;
            }
            world_finish_one(w);
            world_end_brackets(w);
            api_poll(w->ctx, 0, w->real_clock ? SECOND / 1000 : 0);
        }
    }
    REQUIRE(rc == 0, "the context cannot be freed: %s", why);
    w->ctx = NULL;
}

/* Nothing is left to wait for but what the scenario has to do. */
static bool world_idle(void *arg)
{
    const struct world *w = arg;
    bool idle = true;

    for (unsigned i = 0; i < w->op_count; i++) {
        idle = idle && (op_over(w->ops[i]) || w->ops[i]->bracket == BRACKET_GO);
    }
    for (unsigned i = 0; i < w->job_count; i++) {
        const struct job *job = &w->jobs[i];

        if (job->handle && job->started) {
            idle = idle &&
                   (job_concluded(job) || (job_info(job).flags & BLKREPL_JOB_FLAG_PAUSED) != 0);
        }
    }
    return idle;
}

void world_finish(struct world *w)
{
    world_release(w);
    if (w->real_clock) {
        world_wait(w, world_idle, w);
        world_settle(w);
    }
}

/* What is under way comes to its end, whatever still fails. */
static void world_wind_up(struct world *w)
{
    do {
        world_finish(w);
    } while (world_end_brackets(w));
    for (unsigned i = 0; i < w->job_count; i++) {
        struct job *job = &w->jobs[i];

        if (job->handle && !job_concluded(job)) {
            job_cancel(job);
            world_finish(w);
        }
        if (job->handle && !job->checked) {
            job_check(job);
        }
    }
}

/* Whether the medium is as at the beginning: anything may be done to it. */
static bool world_usable(const struct image *image)
{
    return image->handle && !image->read_only && image->model.tags + 2 < MODEL_TAGS_MAX &&
           image->model.bytes > 0;
}

static void world_back_up(struct image *source, struct image *target)
{
    struct world *w = source->world;

    if (image_bytes(target) < image_bytes(source) || w->job_count == JOBS_MAX) {
        return;
    }
    struct job *job = job_create_started(source, target, NULL);
    op_write(source, 0, image_bytes(source), 0);
    world_finish(w);
    REQUIRE(job_info(job).result == BLKREPL_RESULT_DONE, "a new backup fails: %s",
            job_info(job).message);
    job_check(job);
}

/* All is well again: then everything works, and nothing is in anybody's way. */
static void world_live_on(struct world *w)
{
    struct image *pair[2] = {NULL, NULL};

    for (unsigned i = 0; i < w->image_count; i++) {
        struct image *image = &w->images[i];
        blkrepl_image_info info = {.struct_size = sizeof info};

        if (!world_usable(image)) {
            continue;
        }
        api_image_query(image->handle, &info);
        REQUIRE(info.requests_in_flight == 0, "medium %u has %u requests in flight for ever", i,
                info.requests_in_flight);
        image->unmodelled = false;
        op_write(image, 0, image_bytes(image), 0);
        op_flush(image);
        if (!pair[i % 2] && image->kind == IMAGE_DISK) {
            pair[i % 2] = image;
        }
    }
    world_finish(w);
    /* There and back, for what was a source has to be free as a target. */
    for (unsigned i = fault_plan()->nth % 2; i < 2 && pair[0] && pair[1]; i++) {
        world_back_up(pair[i], pair[1 - i]);
    }
}

static void world_check_left(struct world *w)
{
    const struct failure *first;

    for (unsigned i = 0; i < w->op_count; i++) {
        REQUIRE(op_over(w->ops[i]), "request %u (opcode %u at %llu) has never ended", i,
                w->ops[i]->opcode, (unsigned long long)w->ops[i]->offset);
        op_free(w->ops[i]);
    }
    for (unsigned i = 0; i < w->image_count; i++) {
        const struct image *image = &w->images[i];
        const struct disk *d = &w->disks[i];

        REQUIRE(image->released == (image->opened ? 1u : 0u), "medium %u was released %u times", i,
                image->released);
        REQUIRE(d->closes == d->opened && d->queue_count == 0 && d->in_flight == 0,
                "medium %u was opened %u times and closed %u times", i, d->opened, d->closes);
    }
    for (unsigned i = 0; i < w->job_count; i++) {
        REQUIRE(w->jobs[i].released == 1, "job %u was released %u times", i, w->jobs[i].released);
        free(w->jobs[i].start);
    }
    REQUIRE(w->sinks_released == w->sinks, "the event sink was released %u times of %u",
            w->sinks_released, w->sinks);
    heap_check_empty();
    sys_check_closed();
    size_t unclaimed = failure_unclaimed(&first);
    REQUIRE(w->job_dropped || unclaimed <= w->job_errors,
            "%zu failures that nobody was told of (jobs tell of %llu), the first: medium %d, "
            "opcode %u at %llu+%llu, code %d",
            unclaimed, (unsigned long long)w->job_errors, first ? first->medium : 0,
            first ? first->opcode : 0, (unsigned long long)(first ? first->offset : 0),
            (unsigned long long)(first ? first->bytes : 0), first ? first->code : 0);
}

static void world_check_images(struct world *w)
{
    for (unsigned i = 0; i < w->image_count; i++) {
        image_check(&w->images[i]);
    }
}

void world_run(const struct scenario *scenario, enum order order)
{
    struct world *w = &the_world;

    memset(w, 0, sizeof *w);
    w->order = order;
    w->now = SECOND;
    sys_start();
    api_memory_grows(false);
    scenario->run(w);
    if (w->ctx) {
        if (!w->closed) {
            world_wind_up(w);
            fault_pause(true);
            world_check_images(w);
            world_live_on(w);
            bitmaps_live_on(w);
            world_check_images(w);
            fault_pause(false);
        }
        world_close(w);
    }
    world_check_left(w);
}
