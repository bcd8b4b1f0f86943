/* SPDX-License-Identifier: MIT */
/* verify.c - the verify job: compare two images while guests use them.
 *
 * What is to be compared is decided at the start, and taken in chunks by tasks
 * (verify_task.c; verify.h says why nobody waits in a circle).  What was read is compared
 * in the job's own step: in a poll of lane 0, not in a call of a guest.
 *
 * `differing` is busy from the start until the result is settled: nobody else changes its
 * map, which is marked as differences are found, and what its image records meanwhile
 * goes to the successor and is added at the end.
 *
 *   CREATED -> RUN -> DRAIN -> DONE
 *               ^       |
 *               +-------+
 *
 *   CREATED -> RUN    verify_start  what is to do is known
 *   RUN     -> DRAIN  verify_run    nothing left to take, or stopped
 *   DRAIN   -> RUN    verify_drain  granules came back: from a probe, or to be tried again
 *   DRAIN   -> DONE   verify_drain  no task is under way, and nothing is left to do
 *
 *   DONE: * nothing is in flight   * no guest waits for the job
 */
#include "job/verify.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "base/checked.h"
#include "base/hook.h"
#include "core/error.h"

/* The longest range that a probe asks for. */
#define PROBE_BYTES (UINT64_C(64) << 20)

static const uint32_t verify_next[VERIFY_STATE_COUNT] = {
    [VERIFY_CREATED] = TO(VERIFY_RUN),
    [VERIFY_RUN] = TO(VERIFY_DRAIN),
    [VERIFY_DRAIN] = TO(VERIFY_RUN) | TO(VERIFY_DONE),
};

static void verify_start(struct blkrepl_job *job);
static enum step verify_run(struct verify *verify);
static enum step verify_drain(struct verify *verify);
static enum step verify_done(struct verify *verify);
static void verify_check(const struct verify *verify);

static struct verify *verify_of(struct blkrepl_job *job)
{
    return CONTAINER_OF(job, struct verify, job);
}

static enum step verify_step(struct blkrepl_job *job)
{
    struct verify *verify = verify_of(job);

    verify_check(verify);
    switch (verify->state) {
    case VERIFY_RUN: return verify_run(verify);
    case VERIFY_DRAIN: return verify_drain(verify);
    case VERIFY_DONE: return verify_done(verify);
    case VERIFY_CREATED:
    case VERIFY_STATE_COUNT: break;
    }
    UNREACHABLE();
}

static enum step verify_enter(struct verify *verify, enum verify_state next)
{
    CHECK(verify_next[verify->state] & TO(next));
    verify->state = next;
    if (STRETCH(VERIFY_STATE)) {
        job_wake(&verify->job);
        return STEP_WAIT;
    }
    return STEP_AGAIN;
}

static bool verify_pending(const struct verify *verify)
{
    return !verify->stopped && verify->todo.bits.set_count > 0;
}

/* ---- The bitmaps ------------------------------------------------------------- */

static int verify_check_bytes(const struct verify *verify, const struct blkrepl_bitmap *bitmap)
{
    if (bitmap->map.bytes != verify->todo.bytes) {
        return blkrepl__fail(BLKREPL_ERR_STATE,
                             "bitmap \"%.100s\": verify: it has %" PRIu64
                             " bytes now, the image has %" PRIu64,
                             blkrepl__bitmap_called(bitmap), bitmap->map.bytes, verify->todo.bytes);
    }
    return 0;
}

/* From here on it is ours, so that it keeps its size and is not loaded: a bitmap that
 * belongs to no image is changed without the context's lock. */
static int verify_take_differing(struct verify *verify)
{
    struct blkrepl_bitmap *bitmap = verify->differing;
    int rc;

    blkrepl__bitmap_stop_marks(bitmap);
    pthread_mutex_lock(&bitmap->lock);
    rc = blkrepl__bitmap_announce(bitmap, "verify");
    if (rc == 0) {
        blkrepl__bitmap_renounce(bitmap);
        rc = verify_check_bytes(verify, bitmap);
    }
    if (rc == 0) {
        blkrepl__bitmap_freeze(bitmap, &verify->since);
        verify->since = (struct dirtymap){.bytes = 0}; /* the bitmap has it now */
        verify->frozen = true;
    }
    pthread_mutex_unlock(&bitmap->lock);
    return rc;
}

/* It is the host's again, with what was recorded meanwhile. */
static void verify_return_differing(struct verify *verify)
{
    struct blkrepl_bitmap *bitmap = verify->differing;

    if (verify->frozen) {
        verify->frozen = false;
        blkrepl__bitmap_stop_marks(bitmap);
        pthread_mutex_lock(&bitmap->lock);
        blkrepl__bitmap_reclaim(bitmap, &verify->since);
        pthread_mutex_unlock(&bitmap->lock);
        blkrepl__dirtymap_clear(&verify->since); /* to be used once more, or freed */
    }
}

/* What is to be compared: what is dirty in `only`, at this instant.  It may have changed
 * since it was looked at (not one that belongs to an image): then everything is. */
static void verify_fill(struct verify *verify)
{
    struct blkrepl_bitmap *only = verify->only;
    struct dirtymap *todo = &verify->todo;

    if (only == NULL) {
        blkrepl__dirtymap_set(todo, 0, todo->bytes);
        return;
    }
    blkrepl__bitmap_stop_marks(only);
    pthread_mutex_lock(&only->lock);
    if (only->loading || only->map.bytes != todo->bytes) {
        blkrepl__dirtymap_set(todo, 0, todo->bytes);
    } else {
        blkrepl__dirtymap_merge(todo, &only->map);
    }
    pthread_mutex_unlock(&only->lock);
    verify->bytes_total = blkrepl__dirtymap_dirty_bytes(todo);
}

void blkrepl__verify_mark(struct verify *verify, uint64_t start, uint64_t end)
{
    struct blkrepl_bitmap *bitmap = verify->differing;

    if (bitmap == NULL) {
        verify->differing_bytes += end - start;
        return;
    }
    pthread_mutex_lock(&bitmap->lock);
    blkrepl__dirtymap_set(&bitmap->map, start, end - start);
    verify->differing_bytes = blkrepl__dirtymap_dirty_bytes(&bitmap->map);
    pthread_mutex_unlock(&bitmap->lock);
}

static int verify_prepare(struct blkrepl_job *job)
{
    struct verify *verify = verify_of(job);
    int rc = 0;

    if (verify->prepared) {
        return 0;
    }
    if (verify->only != NULL) {
        pthread_mutex_lock(&verify->only->lock);
        rc = blkrepl__bitmap_readable(verify->only, "verify");
        if (rc == 0) {
            rc = verify_check_bytes(verify, verify->only);
        }
        pthread_mutex_unlock(&verify->only->lock);
    }
    if (rc == 0 && verify->differing != NULL) {
        rc = verify_take_differing(verify);
    }
    verify->prepared = rc == 0;
    return rc;
}

static void verify_unprepare(struct blkrepl_job *job)
{
    verify_of(job)->prepared = false;
    verify_return_differing(verify_of(job));
}

/* ---- The machine ------------------------------------------------------------- */

/* The start: what is to do is known. */
static void verify_start(struct blkrepl_job *job)
{
    struct verify *verify = verify_of(job);

    if (verify->differing != NULL) {
        pthread_mutex_lock(&verify->differing->lock);
        blkrepl__dirtymap_clear(&verify->differing->map);
        pthread_mutex_unlock(&verify->differing->lock);
    }
    verify_fill(verify);
    verify->started_at = ++job->ctx->instant;
    if (job->speed_bytes_per_sec != 0) {
        blkrepl__ratelimit_set(&verify->rate, job->speed_bytes_per_sec, blkrepl__now(job->ctx));
    }
    verify_enter(verify, VERIFY_RUN);
}

/* FILLED: find out which granules of `differing` do; without it, of 64 KiB. */
static bool verify_differs(const struct verify_task *task)
{
    struct verify *verify = task->verify;
    uint32_t shift = verify->differing != NULL ? verify->differing->map.shift : VERIFY_SHIFT;
    const unsigned char *a = task->side[0].buffer;
    const unsigned char *b = task->side[1].buffer;
    uint64_t at = task->start;
    bool differs = memcmp(a, b, (size_t)(task->end - task->start)) != 0;

    while (differs && at < task->end) {
        uint64_t end = min_u64(((at >> shift) + 1) << shift, task->end);
        size_t from = (size_t)(at - task->start);

        if (memcmp(a + from, b + from, (size_t)(end - at)) != 0) {
            blkrepl__verify_mark(verify, at, end);
        }
        at = end;
    }
    return differs;
}

/* FILLED: compare, and be free. */
static void verify_compare(struct verify_task *task)
{
    struct verify *verify = task->verify;
    bool differs = verify_differs(task);

    verify->bytes_done += task->end - task->start;
    blkrepl__verify_free_task(task);
    if (differs && verify->first) {
        verify->found = true;
        blkrepl__verify_stop(verify);
    }
}

/* Compare what was read, a bounded number of chunks. */
static void verify_compare_filled(struct verify *verify)
{
    uint32_t most = verify->job.ctx->copies_max;
    struct list *next;

    for (struct list *link = verify->active.next; link != &verify->active; link = next) {
        struct verify_task *task = CONTAINER_OF(link, struct verify_task, link);

        next = link->next;
        if (task->state != VERIFY_FILLED) {
            continue;
        }
        if (most-- == 0) {
            job_wake(&verify->job); /* go on in the next poll */
            return;
        }
        verify_compare(task);
        if (verify->stopped) {
            return; /* the list is another one now */
        }
    }
}

/* Whether the speed limit lets a chunk be read now; otherwise a timer is set. */
static bool verify_in_time(struct verify *verify)
{
    struct blkrepl_context *ctx = verify->job.ctx;
    uint64_t next;

    if (verify->job.speed_bytes_per_sec == 0) {
        return true;
    }
    next = blkrepl__ratelimit_next(&verify->rate, blkrepl__now(ctx));
    if (next <= ctx->now_ns) {
        return true;
    }
    blkrepl__timer_set(&ctx->timers, &verify->rate_timer, next);
    return false;
}

/* Whether the throttle does; otherwise we are in its row. */
static bool verify_has_turn(struct verify *verify, uint64_t bytes)
{
    if (verify->throttle == NULL) {
        return true;
    }
    if (verify->turn_state == VERIFY_TURN_NONE) {
        verify->turn.bytes = bytes;
        verify->turn_state = blkrepl__throttle_pass(verify->throttle, &verify->turn)
                                 ? VERIFY_TURN_MINE
                                 : VERIFY_TURN_WAITS;
    }
    return verify->turn_state == VERIFY_TURN_MINE;
}

/* The next run in todo, which is not empty and has nothing before the cursor, and whether
 * its status is asked for first. */
static bool verify_choose(const struct verify *verify, uint64_t *start, uint64_t *bytes)
{
    const struct dirtymap *todo = &verify->todo;
    uint64_t found = 0;
    uint64_t most;
    bool probe;

    blkrepl__dirtymap_next_dirty(todo, verify->cursor, todo->bytes, &found);
    probe = verify->asks_status && (found < verify->hint_start || found >= verify->hint_end);
    most = probe ? PROBE_BYTES : verify->chunk_bytes;
    if (verify->asks_status && !probe) {
        most = min_u64(most, verify->hint_end - found);
    }
    blkrepl__dirtymap_status(todo, found, min_u64(most, todo->bytes - found), bytes);
    *start = found;
    return probe;
}

/* Start tasks, a bounded number; what cannot go on now will wake the job. */
static void verify_pump(struct verify *verify)
{
    uint32_t most = verify->job.ctx->copies_max;

    while (verify_pending(verify) && !verify->probing && !list_empty(&verify->free)) {
        uint64_t start;
        uint64_t bytes;
        bool probe = verify_choose(verify, &start, &bytes);
        struct verify_task *task;

        if (most-- == 0 || STRETCH(VERIFY_PUMP)) {
            job_wake(&verify->job); /* go on in the next poll */
            return;
        }
        if (!probe && (!verify_in_time(verify) || !verify_has_turn(verify, bytes))) {
            return;
        }
        if (!probe) {
            blkrepl__ratelimit_take(&verify->rate, bytes, verify->job.ctx->now_ns);
            verify->turn_state = VERIFY_TURN_NONE;
        }
        task = CONTAINER_OF(list_pop(&verify->free), struct verify_task, link);
        blkrepl__verify_start_task(verify, task, start, start + bytes, probe);
    }
}

/* RUN: keep the tasks busy until nothing is left to take or we must stop. */
static enum step verify_run(struct verify *verify)
{
    verify_compare_filled(verify);
    if (!job_held(&verify->job)) {
        verify_pump(verify);
    }
    if (verify_pending(verify)) {
        return STEP_WAIT;
    }
    return verify_enter(verify, VERIFY_DRAIN);
}

/* DRAIN: tasks under way still own buffers; wait for every one. */
static enum step verify_drain(struct verify *verify)
{
    verify_compare_filled(verify);
    if (verify_pending(verify)) {
        return verify_enter(verify, VERIFY_RUN);
    }
    if (!list_empty(&verify->active) || (!verify->stopped && job_held(&verify->job))) {
        return STEP_WAIT;
    }
    return verify_enter(verify, VERIFY_DONE);
}

/* What could not be read was not compared. */
static uint32_t verify_result(const struct verify *verify)
{
    if (verify->failed) {
        return BLKREPL_RESULT_FAILED;
    }
    if (verify->stopped && !verify->found) {
        return BLKREPL_RESULT_CANCELLED;
    }
    return verify->failed_bytes > 0 ? BLKREPL_RESULT_FAILED : BLKREPL_RESULT_DONE;
}

/* DONE: tell how it went; the job may be gone afterwards. */
static enum step verify_done(struct verify *verify)
{
    uint32_t result = verify_result(verify);

    blkrepl__verify_stop(verify);
    blkrepl__job_finish(&verify->job, result);
    return STEP_DONE;
}

static void verify_check(const struct verify *verify)
{
    CHECK(verify->state != VERIFY_DONE || (list_empty(&verify->active) && verify->in_flight == 0));
    CHECK(verify->state != VERIFY_DONE || !verify_pending(verify));
    CHECK(!verify->probing || !list_empty(&verify->active));
    (void)verify;
}

static void verify_leave_throttle(struct verify *verify)
{
    if (verify->turn_state == VERIFY_TURN_WAITS) {
        blkrepl__throttle_leave(verify->throttle, &verify->turn);
    }
    verify->turn_state = VERIFY_TURN_NONE;
}

void blkrepl__verify_stop(struct verify *verify)
{
    struct list *next;

    if (verify->stopped) {
        return;
    }
    verify->stopped = true;
    blkrepl__timer_clear(&verify->rate_timer);
    blkrepl__timer_clear(&verify->guest_timer);
    verify_leave_throttle(verify);
    for (struct list *link = verify->active.next; link != &verify->active; link = next) {
        next = link->next;
        blkrepl__verify_abandon(CONTAINER_OF(link, struct verify_task, link));
    }
    if (!list_empty(&verify->active)) {
        blkrepl__chore_add(verify->job.ctx, &verify->cancel_chore);
    }
    job_wake(&verify->job);
}

/* ---- Guests that wait ---------------------------------------------------------- */

/* Aim the timer at the first deadline. */
static void verify_aim(struct verify *verify)
{
    uint64_t next = BLKREPL_FOREVER;

    for (uint32_t n = 0; n < verify->task_count; n++) {
        next = min_u64(next, verify->tasks[n].deadline_ns);
    }
    if (next == BLKREPL_FOREVER) {
        blkrepl__timer_clear(&verify->guest_timer);
    } else {
        blkrepl__timer_set(&verify->job.ctx->timers, &verify->guest_timer, next);
    }
}

void blkrepl__verify_set_deadline(struct verify_task *task)
{
    struct verify *verify = task->verify;
    uint64_t timeout = verify->guest_timeout_ns;
    uint64_t now = blkrepl__now(verify->job.ctx);

    task->deadline_ns = timeout < BLKREPL_FOREVER - now ? now + timeout : BLKREPL_FOREVER;
    verify_aim(verify);
}

/* Guests have waited for a task too long, unless it has ended since. */
void blkrepl__verify_guest_expired(struct timer *timer)
{
    struct verify *verify = CONTAINER_OF(timer, struct verify, guest_timer);
    uint64_t now = verify->job.ctx->now_ns;

    for (uint32_t n = 0; n < verify->task_count; n++) {
        struct verify_task *task = &verify->tasks[n];

        /* FOREVER never comes, whatever the clock says. */
        if (task->deadline_ns <= now && task->deadline_ns != BLKREPL_FOREVER) {
            blkrepl__verify_expire(task);
        }
    }
    verify_aim(verify);
}

/* ---- The job's verbs --------------------------------------------------------- */

static void verify_cancelled(struct blkrepl_job *job)
{
    blkrepl__verify_stop(verify_of(job));
}

static void verify_speed_changed(struct blkrepl_job *job)
{
    struct verify *verify = verify_of(job);

    blkrepl__timer_clear(&verify->rate_timer);
    blkrepl__ratelimit_set(&verify->rate, job->speed_bytes_per_sec, blkrepl__now(job->ctx));
}

static void verify_query(const struct blkrepl_job *job, blkrepl_job_info *info)
{
    const struct verify *verify = CONTAINER_OF(job, struct verify, job);

    info->bytes_done = verify->bytes_done;
    info->bytes_total = verify->bytes_total;
    if (job->result == BLKREPL_RESULT_DONE) {
        info->bytes_total = info->bytes_done; /* also at the first difference */
    }
    if (info->bytes_done == info->bytes_total && info->bytes_total > 0 &&
        job->result != BLKREPL_RESULT_DONE) {
        info->bytes_done--; /* not before it is done */
    }
    info->requests_in_flight = verify->in_flight;
    info->zero_bytes = min_u64(verify->zero_bytes, info->bytes_done);
    info->failed_bytes = verify->failed_bytes;
    info->differing_bytes = verify->differing_bytes;
}

static void verify_settle(struct blkrepl_job *job)
{
    verify_return_differing(verify_of(job));
}

static void verify_let_go(struct blkrepl_job *job)
{
    struct verify *verify = verify_of(job);

    verify_return_differing(verify);
    verify_leave_throttle(verify);
    blkrepl__verify_let_go(verify);
}

static void verify_destroy(struct blkrepl_job *job)
{
    blkrepl__verify_free(verify_of(job));
}

const struct job_ops blkrepl__verify_ops = {
    .prepare = verify_prepare,
    .unprepare = verify_unprepare,
    .start = verify_start,
    .step = verify_step,
    .cancelled = verify_cancelled,
    .speed_changed = verify_speed_changed,
    .query = verify_query,
    .settle = verify_settle,
    .let_go = verify_let_go,
    .destroy = verify_destroy,
};
