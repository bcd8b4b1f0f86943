/* SPDX-License-Identifier: MIT */
/* copy.c - the copy engine: its memory, the pump, stopping.
 *
 * The machine of one copy is in copy_task.c, copy-before-write in copy_tap.c. */
#include "job/copy.h"

#include <errno.h>
#include <inttypes.h>

#include "base/checked.h"
#include "base/hook.h"
#include "core/error.h"

/* The longest run of zeroes that is claimed at once. */
#define ZERO_CLAIM_BYTES (UINT64_C(1) << 30)
#define BUFFER_ALIGN 4096

static uint32_t copy_reserve_count(const struct copy_config *config)
{
    uint64_t count = config->reserve_bytes / config->cluster_bytes;

    return count > 0 ? (uint32_t)count : 1;
}

static uint64_t copy_buffer_bytes(const struct copy_config *config)
{
    return config->workers * config->chunk_bytes +
           copy_reserve_count(config) * config->cluster_bytes;
}

/* Give every task its part of the memory. */
static void copy_equip_tasks(struct copy *copy)
{
    unsigned char *at = copy->memory;

    for (uint32_t i = 0; i < copy->task_count; i++) {
        struct copy_task *task = &copy->tasks[i];

        task->copy = copy;
        list_init(&task->readers);
        task->reserved = i >= copy->config.workers;
        task->buffer = at;
        task->buffer_bytes = task->reserved ? copy->config.cluster_bytes : copy->config.chunk_bytes;
        at += task->buffer_bytes;
        list_append(task->reserved ? &copy->free_reserve : &copy->free_workers, &task->link);
    }
}

/* Those that the job has no use for are empty, and stay so. */
static int copy_alloc_maps(struct copy *copy, struct blkrepl_context *ctx, uint64_t clusters)
{
    const struct copy_config *config = &copy->config;
    int rc = blkrepl__hbitmap_init(&copy->todo, &ctx->alloc, clusters);

    if (rc == 0) {
        rc = blkrepl__hbitmap_init(&copy->spilled, &ctx->alloc,
                                   config->spill != NULL ? clusters : 0);
    }
    if (rc == 0) {
        rc = blkrepl__hbitmap_init(&copy->bad, &ctx->alloc, config->keeps_bad ? clusters : 0);
    }
    if (rc == 0) {
        rc = blkrepl__hbitmap_init(&copy->absent, &ctx->alloc, config->keeps_absent ? clusters : 0);
    }
    return rc;
}

int blkrepl__copy_alloc(struct copy *copy, struct blkrepl_context *ctx,
                        const struct copy_config *config)
{
    uint64_t size = image_bytes(config->source);
    uint64_t clusters = size / config->cluster_bytes + (size % config->cluster_bytes != 0);
    int rc;

    copy->config = *config;
    copy->source_bytes = size;
    list_init(&copy->free_workers);
    list_init(&copy->free_reserve);
    list_init(&copy->active);
    list_init(&copy->voids);
    list_init(&copy->held);
    list_init(&copy->kept);
    list_init(&copy->watchers);
    rc = copy_alloc_maps(copy, ctx, clusters);
    if (rc < 0) {
        return blkrepl__fail_code(rc, "job: map of %" PRIu64 " clusters", clusters);
    }
    copy->task_count = config->workers + copy_reserve_count(config);
    copy->memory_bytes = copy_buffer_bytes(config);
    if (copy->memory_bytes <= SIZE_MAX && copy->memory_bytes <= ctx->memory_bytes_max) {
        copy->tasks = blkrepl__zalloc_array(&ctx->alloc, copy->task_count, sizeof *copy->tasks);
        copy->memory = blkrepl__buffer_alloc(&ctx->alloc, BUFFER_ALIGN, (size_t)copy->memory_bytes);
    }
    if (copy->tasks == NULL || copy->memory == NULL) {
        return blkrepl__fail(-ENOMEM, "job: no memory for %" PRIu64 " bytes of buffers",
                             copy->memory_bytes);
    }
    copy_equip_tasks(copy);
    return 0;
}

void blkrepl__copy_free(struct copy *copy, struct blkrepl_context *ctx)
{
    blkrepl__buffer_free(&ctx->alloc, copy->memory, (size_t)copy->memory_bytes);
    blkrepl__free(&ctx->alloc, copy->tasks);
    blkrepl__hbitmap_fini(&copy->todo);
    blkrepl__hbitmap_fini(&copy->spilled);
    blkrepl__hbitmap_fini(&copy->bad);
    blkrepl__hbitmap_fini(&copy->absent);
}

/* Take a request slot for every task and for the flush. */
static int copy_take_requests(struct copy *copy)
{
    struct request_pool *pool = &copy->job->ctx->job_requests;

    if (pool->count - pool->used < copy->task_count + 1) {
        return blkrepl__fail(-ENOMEM,
                             "job: needs %" PRIu32 " requests, the context's "
                             "job_requests_max leaves %" PRIu32,
                             copy->task_count + 1, pool->count - pool->used);
    }
    for (uint32_t i = 0; i < copy->task_count; i++) {
        copy->tasks[i].request = blkrepl__request_take(pool);
    }
    copy->flush = blkrepl__request_take(pool);
    return 0;
}

static void copy_rate_expired(struct timer *timer)
{
    job_wake(CONTAINER_OF(timer, struct copy, rate_timer)->job);
}

/* Whether a backend should be told that the task's request is not wanted. */
static bool copy_unwanted(const struct copy *copy, const struct copy_task *task)
{
    return !task->told && task->state != COPY_FREE && (copy->stopped || task->state == COPY_VOID);
}

/* Ask the backends to cancel what they have; each call drops the lock, so look
 * by index. */
static void copy_cancel_run(struct chore *chore)
{
    struct copy *copy = CONTAINER_OF(chore, struct copy, cancel_chore);

    copy->job->refs++;
    for (uint32_t i = 0; i < copy->task_count; i++) {
        if (copy_unwanted(copy, &copy->tasks[i])) {
            copy->tasks[i].told = true;
            blkrepl__port_cancel(copy->tasks[i].request);
        }
    }
    if (copy->stopped && copy->flushing) {
        blkrepl__port_cancel(copy->flush);
    }
    blkrepl__job_put(copy->job);
}

/* The longest COPY_FROM that the target takes, in blocks of both; 0: none. */
static uint64_t copy_offload_bytes(const struct copy_config *config)
{
    const blkrepl_backend_info *source = &config->source->leaf->port.info;
    const blkrepl_backend_info *target = &config->target->leaf->port.info;

    if (config->no_offload || config->detect_zeroes || config->compress ||
        target->copy_domain == NULL || target->copy_domain != source->copy_domain ||
        !leaf_has(config->target->leaf, BLKREPL_OP_COPY_FROM)) {
        return 0;
    }
    return align_down(target->copy_bytes_max,
                      max_u64(source->request_alignment, target->request_alignment));
}

/* The throttle has let the next copy through. */
static void copy_turn_has_come(struct ready *ready)
{
    struct copy *copy = CONTAINER_OF(ready, struct copy, turn.ready);

    copy->turn_state = COPY_TURN_MINE;
    job_wake(copy->job);
}

static void copy_throttle_init(struct copy *copy)
{
    copy->turn.ready.run = copy_turn_has_come;
    if (copy->config.throttle != NULL) {
        blkrepl__throttle_ref(copy->config.throttle);
    }
}

static void copy_throttle_leave(struct copy *copy)
{
    if (copy->turn_state == COPY_TURN_WAITS) {
        blkrepl__throttle_leave(copy->config.throttle, &copy->turn);
        copy->turn_state = COPY_TURN_NONE;
    }
}

int blkrepl__copy_reserve(struct copy *copy, struct blkrepl_job *job)
{
    struct blkrepl_context *ctx = job->ctx;
    uint64_t left = ctx->memory_bytes_max - ctx->memory_used;
    int rc;

    copy->job = job;
    copy->cancel_chore.run = copy_cancel_run;
    copy->offload_bytes_max = copy_offload_bytes(&copy->config);
    blkrepl__ratelimit_set_burst(&copy->rate, copy->config.burst_bytes);
    if (copy->memory_bytes > left) {
        return blkrepl__fail(-ENOMEM,
                             "job: needs %" PRIu64 " bytes of buffers, the context's "
                             "memory_bytes_max leaves %" PRIu64,
                             copy->memory_bytes, left);
    }
    rc = copy_take_requests(copy);
    if (rc == 0) {
        ctx->memory_used += copy->memory_bytes;
        blkrepl__timer_init(&ctx->timers, &copy->rate_timer, copy_rate_expired);
        blkrepl__copy_tap_init(copy);
        copy_throttle_init(copy);
    }
    return rc;
}

void blkrepl__copy_unreserve(struct copy *copy)
{
    struct blkrepl_context *ctx = copy->job->ctx;

    CHECK(copy_idle(copy));
    blkrepl__timer_clear(&copy->rate_timer);
    blkrepl__timer_clear(&copy->cbw_timer);
    list_unlink(&copy->cancel_chore.link);
    copy_throttle_leave(copy);
    blkrepl__throttle_unref(copy->config.throttle);
    for (uint32_t i = 0; i < copy->task_count; i++) {
        blkrepl__request_put(&ctx->job_requests, copy->tasks[i].request);
    }
    blkrepl__request_put(&ctx->job_requests, copy->flush);
    ctx->memory_used -= copy->memory_bytes;
}

void blkrepl__copy_attach(struct copy *copy)
{
    blkrepl__image_attach(copy->config.source, &copy->tap);
}

/* Whether every write that was given before the point in time has ended. */
static bool copy_old_write(struct interval *node, void *arg)
{
    const struct range *range = CONTAINER_OF(node, struct range, node);
    const struct copy *copy = arg;

    return range->kind != RANGE_WRITE || range->given_at == 0 ||
           range->given_at > copy->tap.attached_at;
}

static void copy_check_settled(struct copy *copy)
{
    const struct interval_tree *tree = &copy->config.source->leaf->ranges.tree;

    if (!copy->settled_writes) {
        copy->settled_writes =
            blkrepl__interval_visit(tree, 0, UINT64_MAX, copy_old_write, copy) == NULL;
    }
}

/* How many clusters from `first` on to claim: a chunk, or a long run of what is
 * known to be zero. */
static uint64_t copy_claim_count(const struct copy *copy, uint64_t first)
{
    uint64_t cluster = copy->config.cluster_bytes;
    uint64_t size = image_bytes(copy->config.source);
    uint64_t offset = first * cluster;
    const struct copy_known *known = blkrepl__copy_known_at(copy, offset);
    uint64_t most = copy->config.chunk_bytes / cluster;

    if (known != NULL && known->zero && !copy_background_holds(copy)) {
        uint64_t end =
            known->end == size ? align_up(size, cluster) : align_down(known->end, cluster);
        uint64_t zeroes = end > offset ? (end - offset) / cluster : 0;

        most = min_u64(max_u64(zeroes, 1), max_u64(ZERO_CLAIM_BYTES / cluster, 1));
    } else if (known != NULL) {
        most = min_u64(most, (align_up(known->end, cluster) - offset) / cluster);
    }
    most = min_u64(most, copy->todo.bit_count - first);
    return blkrepl__hbitmap_next_clear(&copy->todo, first, first + most) - first;
}

/* The next cluster in a map, from the cursor on and around. */
static uint64_t copy_next(const struct copy *copy, const struct hbitmap *map)
{
    uint64_t count = map->bit_count;
    uint64_t bit = blkrepl__hbitmap_next_set(map, copy->cursor, count);

    return bit < count ? bit : blkrepl__hbitmap_next_set(map, 0, count);
}

/* What the next background copy will take: what has been spilled goes first, for guests
 * may need the place. */
static bool copy_choose(const struct copy *copy, uint64_t *first, uint64_t *count)
{
    bool spilled = copy->spilled.set_count > 0;
    uint64_t most;

    *first = copy_next(copy, spilled ? &copy->spilled : &copy->todo);
    if (!spilled) {
        *count = copy_claim_count(copy, *first);
        return false;
    }
    most = min_u64(*first + copy->config.chunk_bytes / copy->config.cluster_bytes,
                   copy->spilled.bit_count);
    *count = blkrepl__hbitmap_next_clear(&copy->spilled, *first, most) - *first;
    return true;
}

/* Whether the speed limit lets a copy start now; otherwise a timer is set. */
static bool copy_in_time(struct copy *copy)
{
    struct blkrepl_context *ctx = copy->job->ctx;
    uint64_t next;

    if (copy->job->speed_bytes_per_sec == 0) {
        return true;
    }
    next = blkrepl__ratelimit_next(&copy->rate, blkrepl__now(ctx));
    if (next <= ctx->now_ns) {
        return true;
    }
    blkrepl__timer_set(&ctx->timers, &copy->rate_timer, next);
    return false;
}

/* Whether the throttle does; otherwise we are in its row.  What is known to be zero
 * moves nothing, and passes; what is spilled has been let through. */
static bool copy_has_turn(struct copy *copy, uint64_t first, uint64_t count)
{
    uint64_t start = first * copy->config.cluster_bytes;
    uint64_t end =
        min_u64((first + count) * copy->config.cluster_bytes, image_bytes(copy->config.source));

    if (copy->config.throttle == NULL || copy->turn_state == COPY_TURN_MINE ||
        blkrepl__copy_known_zero(copy, start, end)) {
        copy->turn_state = copy->turn_state == COPY_TURN_MINE ? COPY_TURN_NONE : copy->turn_state;
        return true;
    }
    if (copy->turn_state == COPY_TURN_WAITS) {
        return false;
    }
    copy->turn.bytes = end - start;
    if (blkrepl__throttle_pass(copy->config.throttle, &copy->turn)) {
        return true;
    }
    copy->turn_state = COPY_TURN_WAITS;
    return false;
}

/* Whether a background copy can start at all. */
static bool copy_ready(const struct copy *copy)
{
    return copy_pending(copy) && !copy->probing && list_empty(&copy->starved) &&
           !list_empty(&copy->free_workers);
}

bool blkrepl__copy_pump(struct copy *copy)
{
    uint32_t most = copy->job->ctx->copies_max;

    copy_check_settled(copy);
    while (copy_ready(copy)) {
        uint64_t first;
        uint64_t count;
        bool spilled = copy_choose(copy, &first, &count);
        struct copy_task *task;

        if (most-- == 0 || STRETCH(COPY_PUMP)) {
            job_wake(copy->job); /* go on in the next poll */
            break;
        }
        if (!copy_in_time(copy) || (!spilled && !copy_has_turn(copy, first, count))) {
            break;
        }
        task = CONTAINER_OF(list_pop(&copy->free_workers), struct copy_task, link);
        copy->cursor = first + count;
        if (spilled) {
            blkrepl__copy_start_spilled(copy, task, first, count);
        } else {
            blkrepl__copy_start_task(copy, task, first, count, false, 0);
        }
    }
    return copy_pending(copy);
}

void blkrepl__copy_set_speed(struct copy *copy)
{
    struct blkrepl_context *ctx = copy->job->ctx;

    blkrepl__timer_clear(&copy->rate_timer);
    blkrepl__ratelimit_set(&copy->rate, copy->job->speed_bytes_per_sec, blkrepl__now(ctx));
}

struct copy_task *blkrepl__copy_reserve_task(struct copy *copy)
{
    struct list *link = list_pop(&copy->free_reserve);

    if (link == NULL) {
        link = list_pop(&copy->free_workers);
    }
    return link != NULL ? CONTAINER_OF(link, struct copy_task, link) : NULL;
}

void blkrepl__copy_task_free(struct copy_task *task)
{
    struct copy *copy = task->copy;

    list_remove(&task->link);
    list_splice(&copy->job->ctx->ready, &task->readers);
    /* In front: its buffer has its memory, and is in the cache. */
    list_prepend(task->reserved ? &copy->free_reserve : &copy->free_workers, &task->link);
    blkrepl__copy_kick_starved(copy);
    job_wake(copy->job);
}

/* Nobody waits for the flush any more: it is taken back, or its backend told. */
static void copy_drop_flush(struct copy *copy)
{
    if (copy->flushing && blkrepl__port_withdraw(copy->flush)) {
        copy->flushing = false;
        copy->in_flight--;
    }
    if (!copy_idle(copy)) {
        blkrepl__chore_add(copy->job->ctx, &copy->cancel_chore);
    }
    job_wake(copy->job);
}

void blkrepl__copy_stop(struct copy *copy)
{
    struct list *link;
    struct list *next;

    if (copy->stopped) {
        copy_drop_flush(copy);
        return;
    }
    copy->stopped = true;
    blkrepl__image_detach(&copy->tap);
    copy_throttle_leave(copy);
    blkrepl__timer_clear(&copy->rate_timer);
    for (link = copy->active.next; link != &copy->active; link = next) {
        next = link->next;
        blkrepl__copy_task_abandon(CONTAINER_OF(link, struct copy_task, link));
    }
    blkrepl__copy_tap_release(copy);
    list_splice(&copy->job->ctx->ready, &copy->watchers);
    copy_drop_flush(copy);
}

void blkrepl__copy_resume(struct copy *copy)
{
    list_splice(&copy->job->ctx->ready, &copy->kept);
    job_wake(copy->job);
}

void blkrepl__copy_fail(struct copy *copy, const struct job_error *error)
{
    if (!copy->stopped) {
        copy->failed = true;
        blkrepl__job_fail(copy->job, error);
        blkrepl__copy_stop(copy);
    }
}

static void copy_flush_ended(struct request *request)
{
    struct copy *copy = request->owner;

    copy->in_flight--;
    copy->flushing = false;
    copy->flushed = true;
    copy->flush_result = request->io_result;
    blkrepl__record_flush_ended(&copy->config.target->record, &copy->flush_record,
                                request->io_result);
    job_wake(copy->job);
}

void blkrepl__copy_flush(struct copy *copy)
{
    struct leaf *leaf = copy->config.target->leaf;

    if (!leaf_has(leaf, BLKREPL_OP_FLUSH)) {
        copy->flushed = true;
        job_wake(copy->job);
        return;
    }
    copy->flushing = true;
    record_flush(&copy->config.target->record, &copy->flush_record);
    copy->in_flight++;
    copy->flush->io = (blkrepl_io){.opcode = BLKREPL_OP_FLUSH};
    copy->flush->ended = copy_flush_ended;
    copy->flush->owner = copy;
    blkrepl__port_submit_job(&leaf->port, copy->flush, true);
}
