/* SPDX-License-Identifier: MIT */
#include "unit/copy_rig.h"

#include "base/checked.h"

static struct copy_rig *rig_of(struct blkrepl_job *job)
{
    return CONTAINER_OF(job, struct copy_rig, job);
}

static enum step rig_step(struct blkrepl_job *job)
{
    struct copy_rig *r = rig_of(job);

    r->steps++;
    if (r->pumps && !r->copy.stopped && !job_held(job)) {
        blkrepl__copy_pump(&r->copy);
    }
    return STEP_WAIT;
}

static void rig_resumed(struct blkrepl_job *job)
{
    blkrepl__copy_resume(&rig_of(job)->copy);
}

static void rig_nothing(struct blkrepl_job *job)
{
    (void)job;
}

static const struct job_ops rig_ops = {.step = rig_step,
                                       .let_go = rig_nothing,
                                       .destroy = rig_nothing,
                                       .cancelled = rig_nothing,
                                       .resumed = rig_resumed};

void copy_rig_init(struct copy_rig *r, uint64_t bytes)
{
    memset(r, 0, sizeof *r);
    rig_open(&r->rig, NULL);
    script_init(&r->source, bytes);
    script_init(&r->target, bytes);
    script_init(&r->spill, bytes);
    for (uint64_t i = 0; r->source.disk != NULL && i < bytes; i++) {
        r->source.disk[i] = (unsigned char)(i / 61 + i % 7 + 1);
    }
}

void copy_rig_open(struct copy_rig *r, const struct copy_config *config)
{
    struct copy_config c = {.cluster_bytes = CLUSTER};

    if (config != NULL) {
        c = *config;
    }
    r->from = script_open(&r->source, &r->rig);
    r->to = script_open(&r->target, &r->rig);
    if (r->with_spill) {
        r->aside = script_open(&r->spill, &r->rig);
        c.spill = r->aside;
        c.spill_bytes_max = c.spill_bytes_max != 0 ? c.spill_bytes_max : r->spill.info.bytes * 2;
    }
    c.source = r->from;
    c.target = r->to;
    c.cluster_bytes = c.cluster_bytes != 0 ? c.cluster_bytes : CLUSTER;
    c.chunk_bytes = c.chunk_bytes != 0 ? c.chunk_bytes : 4 * c.cluster_bytes;
    c.reserve_bytes = c.reserve_bytes != 0 ? c.reserve_bytes : 2 * c.cluster_bytes;
    c.workers = c.workers != 0 ? c.workers : 2;
    c.cbw_timeout_ns = c.cbw_timeout_ns != 0 ? c.cbw_timeout_ns : BLKREPL_FOREVER;
    assert_int_equal(blkrepl__copy_alloc(&r->copy, r->rig.ctx, &c), 0);
    blkrepl__enter(r->rig.ctx);
    r->job.ctx = r->rig.ctx;
    assert_int_equal(blkrepl__copy_reserve(&r->copy, &r->job), 0);
    r->job.ops = &rig_ops;
    blkrepl__job_publish(&r->job, r->rig.ctx, &(struct job_identity){.name = "j"});
    r->job.state = BLKREPL_JOB_RUNNING;
    blkrepl__leave(r->rig.ctx, 0);
}

void copy_rig_start(struct copy_rig *r)
{
    uint64_t bytes = r->source.info.bytes;

    blkrepl__enter(r->rig.ctx);
    blkrepl__hbitmap_set_all(&r->copy.todo);
    blkrepl__copy_attach(&r->copy);
    blkrepl__leave(r->rig.ctx, 0);
    if (r->source.disk != NULL) {
        r->old = malloc((size_t)bytes + 1);
        assert_non_null(r->old);
        memcpy(r->old, r->source.disk, (size_t)bytes);
    }
}

void copy_rig_close(struct copy_rig *r)
{
    blkrepl_context *ctx = r->rig.ctx;

    copy_rig_check(r);
    blkrepl__enter(ctx);
    blkrepl__copy_stop(&r->copy);
    blkrepl__leave(ctx, 0);
    for (int i = 0; i < 100 && !copy_idle(&r->copy); i++) {
        r->source.hold = r->target.hold = r->spill.hold = 0;
        script_end_all(&r->source);
        script_end_all(&r->target);
        script_end_all(&r->spill);
        rig_poll(&r->rig);
    }
    copy_rig_check(r);
    script_end_all(&r->source);
    rig_poll(&r->rig);
    blkrepl__enter(ctx);
    blkrepl__copy_unreserve(&r->copy);
    assert_int_equal(ctx->job_requests.used, 0);
    assert_int_equal(ctx->memory_used, 0);
    blkrepl__leave(ctx, 0);
    blkrepl__copy_free(&r->copy, ctx);
    blkrepl_job_free(&r->job);
    blkrepl_image_close(r->from);
    blkrepl_image_close(r->to);
    blkrepl_image_close(r->aside);
    rig_close(&r->rig);
    script_fini(&r->source);
    script_fini(&r->target);
    script_fini(&r->spill);
    free(r->old);
}

bool copy_rig_pump(struct copy_rig *r)
{
    bool left;

    blkrepl__enter(r->rig.ctx);
    left = blkrepl__copy_pump(&r->copy);
    blkrepl__leave(r->rig.ctx, 0);
    rig_poll(&r->rig);
    copy_rig_check(r);
    return left;
}

struct copy_task *copy_rig_task(struct copy_rig *r, uint64_t first, uint64_t count, bool urgent)
{
    struct list *link;
    struct copy_task *task;

    blkrepl__enter(r->rig.ctx);
    link = list_pop(urgent ? &r->copy.free_reserve : &r->copy.free_workers);
    assert_non_null(link);
    task = CONTAINER_OF(link, struct copy_task, link);
    blkrepl__copy_start_task(&r->copy, task, first, count, urgent, 0);
    blkrepl__leave(r->rig.ctx, 0);
    rig_poll(&r->rig);
    copy_rig_check(r);
    return task;
}

#define AT_PORT                                                                                    \
    (TO(COPY_STATUS) | TO(COPY_OFFLOAD) | TO(COPY_READ) | TO(COPY_WRITE) | TO(COPY_SPILL) |        \
     TO(COPY_CLEAN) | TO(COPY_VOID))
#define SAVED (TO(COPY_WRITE) | TO(COPY_SPILL) | TO(COPY_KEPT) | TO(COPY_HELD))

/* Whether the guest may overwrite what the task has. */
static bool task_has_saved(const struct copy_rig *r, const struct copy_task *task)
{
    const struct copy_config *config = &r->copy.config;
    bool holds = config->hold_until_written && (config->spill == NULL || task->for_guest);

    return task->spilled || task->state == COPY_VOID || (!holds && (SAVED & TO(task->state)) != 0);
}

static void check_task(const struct copy_rig *r, const struct copy_task *task)
{
    bool at_port = (AT_PORT & TO(task->state)) != 0;

    /* Between the backend's answer and its handling it is neither. */
    if (at_port && atomic_load(&task->request->live_id) == 0) {
        assert_true(task->request->queued || list_linked(&task->request->link));
    }
    if (!at_port) {
        assert_false(task->request->queued);
        assert_int_equal(atomic_load(&task->request->live_id), 0);
    }
    assert_int_equal(range_live(&task->range), !r->copy.stopped && !task_has_saved(r, task));
}

/* How many bytes of the source a map holds; no cluster is in `seen` already. */
static uint64_t check_map(const struct copy_rig *r, const struct hbitmap *map, bool *seen)
{
    uint64_t cluster = r->copy.config.cluster_bytes;
    uint64_t bytes = 0;

    for (uint64_t bit = 0; bit < map->bit_count; bit++) {
        if (blkrepl__hbitmap_test(map, bit)) {
            assert_false(seen[bit]);
            seen[bit] = true;
            bytes += min_u64(cluster, image_bytes(r->from) - bit * cluster);
        }
    }
    return bytes;
}

/* Invariant 1: each cluster is in one place, and what is in none is settled. */
static void check_places(const struct copy_rig *r)
{
    const struct copy *copy = &r->copy;
    uint64_t cluster = copy->config.cluster_bytes;
    bool *seen = calloc(copy->todo.bit_count + 1, 1);
    uint64_t settled = image_bytes(r->from);

    assert_non_null(seen);
    for (uint32_t i = 0; i < copy->task_count; i++) {
        const struct copy_task *task = &copy->tasks[i];

        if (task->state == COPY_FREE || task->state == COPY_VOID || task->state == COPY_CLEAN) {
            continue;
        }
        settled -= task->end - task->start;
        for (uint64_t at = task->start; at < task->end; at += cluster) {
            assert_false(seen[at / cluster]);
            seen[at / cluster] = true;
        }
    }
    settled -= check_map(r, &copy->todo, seen);
    settled -= check_map(r, &copy->spilled, seen);
    settled -= check_map(r, &copy->bad, seen);
    settled -= check_map(r, &copy->absent, seen);
    if (!copy->stopped && list_linked(&copy->tap.link) && copy->absent.set_count == 0) {
        assert_int_equal(copy->bytes_done, settled);
    }
    free(seen);
}

void copy_rig_check(const struct copy_rig *r)
{
    const struct copy *copy = &r->copy;
    unsigned active = 0;

    for (uint32_t i = 0; i < copy->task_count; i++) {
        const struct copy_task *task = &copy->tasks[i];

        assert_true(list_linked(&task->link));
        if (task->state == COPY_FREE) {
            assert_false(range_live(&task->range));
            continue;
        }
        active++;
        check_task(r, task);
    }
    if (copy->todo.bit_count < 10000) {
        check_places(r);
    }
    assert_true(copy->config.spill == NULL ||
                copy->spill_clusters * copy->config.cluster_bytes <= copy->config.spill_bytes_max);
    if (copy->stopped) { /* invariant 3 */
        assert_false(list_linked(&copy->tap.link));
        assert_true(list_empty(&copy->waiting));
        assert_null(blkrepl__range_copy_of(&r->from->leaf->ranges, copy, 0, UINT64_MAX));
    }
    assert_true(active >= copy->in_flight - copy->flushing);
}

struct copy_task *copy_rig_task_at(struct copy_rig *r, uint64_t cluster)
{
    uint64_t at = cluster * r->copy.config.cluster_bytes;

    for (uint32_t i = 0; i < r->copy.task_count; i++) {
        struct copy_task *task = &r->copy.tasks[i];

        if (task->state != COPY_FREE && task->start <= at && at < task->end) {
            return task;
        }
    }
    return NULL;
}

void copy_rig_resume(struct copy_rig *r)
{
    assert_int_equal(blkrepl_job_resume(&r->job), 0);
    rig_poll(&r->rig);
    copy_rig_check(r);
}

void copy_rig_end(struct copy_rig *r, struct script *script, unsigned nth, int result)
{
    script_end(script, nth, result);
    rig_poll(&r->rig);
    copy_rig_check(r);
}

void copy_rig_write(struct copy_rig *r, uint64_t start, uint64_t end, struct done *done)
{
    rig_write(&r->rig, r->from, start, end, done);
    copy_rig_check(r);
}

int copy_rig_begin(struct copy_rig *r, uint32_t opcode, uint64_t start, uint64_t end,
                   struct done *go, uint64_t *token)
{
    blkrepl_bracket what = {
        .struct_size = sizeof what, .opcode = opcode, .offset = start, .bytes = end - start};
    blkrepl_completion completion = done_of(go);
    int rc = blkrepl_write_begin(r->from, &what, &completion, token);

    copy_rig_check(r);
    return rc;
}

void copy_rig_assert_copied(const struct copy_rig *r)
{
    uint64_t bytes = r->source.info.bytes;

    assert_int_equal(r->copy.todo.set_count, 0);
    assert_int_equal(r->copy.bytes_done, bytes);
    assert_memory_equal(r->target.disk, r->old, bytes);
}
