/* SPDX-License-Identifier: MIT */
/* verify_task.c - the machine of one comparison: a run of granules of both images.
 *
 *   FREE -> CLAIMED -> HOLDING -> READ -> FILLED -> FREE
 *              ^        |  |       |
 *              +--------+  |       +--> VOID -> FREE  (guests have waited too long)
 *                          |       |
 *                          +-> STATUS -> FREE         (probe)
 *
 *   and each step may end in FREE.
 *
 *   FREE    -> CLAIMED  blkrepl__verify_start_task
 *   CLAIMED -> HOLDING  task_claimed   no write from before the start is left there
 *   CLAIMED -> FREE     blkrepl__verify_abandon
 *   HOLDING -> CLAIMED  task_hasten    a guest has come to wait
 *   HOLDING -> STATUS   task_holding   no write is given there; a probe
 *   HOLDING -> READ     task_holding   no write is given there
 *   HOLDING -> FREE     blkrepl__verify_expire, blkrepl__verify_abandon
 *   STATUS  -> VOID     blkrepl__verify_expire
 *   STATUS  -> FREE     task_status    both have answered; or expired, or abandoned
 *   READ    -> VOID     blkrepl__verify_expire
 *   READ    -> FILLED   task_read      both are in the buffers
 *   READ    -> FREE     task_give_up, task_ended_late, blkrepl__verify_abandon
 *   VOID    -> FREE     task_ended_late  its requests have come back
 *   FILLED  -> FREE     blkrepl__verify_free_task, blkrepl__verify_abandon
 */
#include "job/verify.h"

#include <errno.h>
#include <string.h>

#include "base/checked.h"
#include "base/hook.h"
#include "block/status.h"

/* How often a task makes way for guests before it begins to read. */
#define TRIES_MAX 64

static const uint32_t task_next[VERIFY_TASK_STATE_COUNT] = {
    [VERIFY_FREE] = TO(VERIFY_CLAIMED),
    [VERIFY_CLAIMED] = TO(VERIFY_HOLDING) | TO(VERIFY_FREE),
    [VERIFY_HOLDING] = TO(VERIFY_CLAIMED) | TO(VERIFY_STATUS) | TO(VERIFY_READ) | TO(VERIFY_FREE),
    [VERIFY_STATUS] = TO(VERIFY_VOID) | TO(VERIFY_FREE),
    [VERIFY_READ] = TO(VERIFY_FILLED) | TO(VERIFY_VOID) | TO(VERIFY_FREE),
    [VERIFY_FILLED] = TO(VERIFY_FREE),
    [VERIFY_VOID] = TO(VERIFY_FREE),
};

static void task_claimed(struct verify_task *task);
static void task_holding(struct verify_task *task);
static void task_status(struct verify_task *task);
static void task_read(struct verify_task *task);

static void task_enter(struct verify_task *task, enum verify_task_state next)
{
    CHECK(task_next[task->state] & TO(next));
    task->state = next;
}

static bool task_busy(const struct verify_task *task)
{
    return task->side[0].busy || task->side[1].busy;
}

/* Guests may write there again. */
static void task_release(struct verify_task *task)
{
    for (int i = 0; i < 2; i++) {
        if (range_live(&task->side[i].range)) {
            blkrepl__range_end(&verify_leaf(task, i)->ranges, &task->side[i].range);
        }
    }
    task->hastened = false;
    task->deadline_ns = BLKREPL_FOREVER;
}

/* Another one may be the probe. */
static void task_end_probe(struct verify_task *task)
{
    if (task->probe) {
        task->probe = false;
        task->verify->probing = false;
    }
}

void blkrepl__verify_free_task(struct verify_task *task)
{
    struct verify *verify = task->verify;

    task_release(task);
    task_enter(task, VERIFY_FREE);
    task_end_probe(task);
    list_remove(&task->link);
    list_prepend(&verify->free, &task->link); /* its memory is in the cache */
    job_wake(&verify->job);
}

/* The granules from `start` on are to do again. */
static void task_give_back(struct verify_task *task, uint64_t start)
{
    struct verify *verify = task->verify;

    blkrepl__dirtymap_set(&verify->todo, start, task->end - start);
    verify->cursor = min_u64(verify->cursor, start);
}

/* ---- Waiting for writes ------------------------------------------------------ */

enum task_wanted {
    TASK_BEFORE_START, /* writes that were given before the job's start */
    TASK_GIVEN,        /* those that are given now */
    TASK_BRACKET       /* the brackets of these */
};

struct task_search {
    const struct verify_task *task;
    enum task_wanted wanted;
};

static bool task_passes(struct interval *node, void *arg)
{
    const struct range *range = CONTAINER_OF(node, struct range, node);
    const struct task_search *search = arg;

    if (range->kind != RANGE_WRITE) {
        return true;
    }
    if (search->wanted == TASK_BEFORE_START) {
        return range->given_at == 0 || range->given_at > search->task->verify->started_at;
    }
    return !range->given || (search->wanted == TASK_BRACKET &&
                             !CONTAINER_OF(range, const struct guest, range)->beside);
}

/* Such a write of one image. */
static struct range *task_find(const struct verify_task *task, int i, enum task_wanted wanted)
{
    const struct interval_tree *tree = &verify_leaf(task, i)->ranges.tree;
    struct task_search search = {.task = task, .wanted = wanted};
    struct interval *node =
        blkrepl__interval_visit(tree, task->start, task->end, task_passes, &search);

    return node != NULL ? CONTAINER_OF(node, struct range, node) : NULL;
}

/* A write of either image that the task has to wait for; brackets whose host has not
 * been told yet make way, and are looked for once more. */
static struct range *task_blocker(const struct verify_task *task, enum task_wanted wanted)
{
    for (int i = 0; i < 2; i++) {
        struct range *write;

        while ((write = task_find(task, i, wanted)) != NULL) {
            blkrepl__guest_make_way(guest_of_range(write));
            if (write->given_at != 0) {
                return write;
            }
        }
    }
    return NULL;
}

static void task_hasten(struct range *range);

static void task_hold(struct verify_task *task)
{
    for (int i = 0; i < 2; i++) {
        struct range *range = &task->side[i].range;

        range->kind = RANGE_COPY;
        range->owner = task;
        range->hasten = task_hasten;
        blkrepl__range_add(&verify_leaf(task, i)->ranges, range, task->start, task->end);
        range->given = true;
    }
}

/* CLAIMED: wait for writes that were given before the job's start. */
static void task_claimed(struct verify_task *task)
{
    struct range *write;

    if (STRETCH(VERIFY_CLAIM)) {
        blkrepl__ready_wake(task->verify->job.ctx, &task->ready);
        return;
    }
    write = task_blocker(task, TASK_BEFORE_START);
    if (write != NULL) {
        range_wait(write, &task->ready);
        return;
    }
    task_hold(task);
    task_enter(task, VERIFY_HOLDING);
    task_holding(task);
}

static void task_send_status(struct verify_task *task, int i);
static void task_send_read(struct verify_task *task, int i);

/* HOLDING: wait for writes that are given. */
static void task_holding(struct verify_task *task)
{
    struct range *write = task_blocker(task, TASK_GIVEN);

    if (write != NULL) {
        range_wait(write, &task->ready);
        return;
    }
    task_enter(task, task->probe ? VERIFY_STATUS : VERIFY_READ);
    for (int i = 0; i < 2; i++) {
        task->side[i].moved_bytes = 0;
        task->side[i].error = 0;
        if (task->probe) {
            task_send_status(task, i);
        } else {
            task_send_read(task, i);
        }
    }
}

static void task_run(struct ready *ready)
{
    struct verify_task *task = CONTAINER_OF(ready, struct verify_task, ready);

    if (task->state == VERIFY_CLAIMED) {
        task_claimed(task);
    } else {
        task_holding(task);
    }
}

/* ---- Requests ---------------------------------------------------------------- */

static void task_ended(struct request *request);

/* To its backend: what a guest waits for goes with the guests' own requests, those of lane
 * 0, which somebody polls. */
static void task_queue(struct verify_task *task, int i)
{
    struct request *request = task->side[i].request;
    struct port *port = &verify_leaf(task, i)->port;

    if (task->hastened) {
        request->io.flags = 0;
        blkrepl__port_submit_read(port, request, 0);
    } else {
        request->io.flags = BLKREPL_IO_BACKGROUND;
        blkrepl__port_submit_job(port, request, false);
    }
}

static void task_submit(struct verify_task *task, int i, uint32_t opcode, uint64_t offset,
                        uint64_t bytes)
{
    struct verify_side *side = &task->side[i];
    blkrepl_io *io = &side->request->io;

    io->opcode = opcode;
    io->offset = offset;
    io->bytes = bytes;
    side->request->ended = task_ended;
    side->request->owner = side;
    side->busy = true;
    side->told = false;
    task->verify->in_flight++;
    task_queue(task, i);
}

static void task_send_status(struct verify_task *task, int i)
{
    struct verify_side *side = &task->side[i];
    blkrepl_io *io = &side->request->io;

    memset(side->extents, 0, sizeof side->extents);
    io->iov_count = 0;
    io->extents = side->extents;
    io->extents_max = VERIFY_EXTENTS;
    task_submit(task, i, BLKREPL_OP_STATUS, task->start, verify_request_end(task, i) - task->start);
}

/* The next part of one side into its buffer. */
static void task_send_read(struct verify_task *task, int i)
{
    struct verify_side *side = &task->side[i];
    uint64_t offset = task->start + side->moved_bytes;
    uint64_t bytes = min_u64(verify_request_end(task, i) - offset,
                             verify_leaf(task, i)->port.info.transfer_bytes_max);

    side->iov = (blkrepl_iovec){.base = side->buffer + side->moved_bytes, .len = (size_t)bytes};
    side->request->io.iov = &side->iov;
    side->request->io.iov_count = 1;
    task_submit(task, i, BLKREPL_OP_READ, offset, bytes);
}

/* ---- What a probe has told --------------------------------------------------- */

/* STATUS: both have answered.  What is zero in both is equal, the rest is to do. */
static void task_status(struct verify_task *task)
{
    struct verify *verify = task->verify;
    uint64_t end = blkrepl__verify_same_until(task, true);

    if (end < task->end) {
        end = align_down(end, VERIFY_GRANULE);
    }
    if (end == task->start) {
        verify->hint_start = task->start;
        verify->hint_end =
            max_u64(align_up(blkrepl__verify_same_until(task, false), VERIFY_GRANULE),
                    task->start + VERIFY_GRANULE);
    }
    verify->bytes_done += end - task->start;
    verify->zero_bytes += end - task->start;
    if (end < task->end) {
        task_give_back(task, end);
    }
    blkrepl__verify_free_task(task);
}

/* ---- Reading and comparing --------------------------------------------------- */

static struct job_error task_error(const struct verify_side *side)
{
    const blkrepl_io *io = &side->request->io;
    bool other = side == &side->task->side[1];

    return (struct job_error){.code = side->error,
                              .side = other ? BLKREPL_SIDE_TARGET : BLKREPL_SIDE_SOURCE,
                              .offset = io->offset,
                              .bytes = io->bytes,
                              .what = "read"};
}

/* Tell of an error; returns what is to be done about it.  The job fails but once. */
static enum job_action task_tell_one(struct verify_task *task, const struct job_error *error,
                                     bool fails)
{
    struct blkrepl_job *job = &task->verify->job;
    enum job_action action = blkrepl__job_judge(job, error);

    if (action == JOB_FAIL && !fails) {
        blkrepl__job_fail(job, error);
    } else {
        blkrepl__job_error(job, error);
    }
    return action;
}

/* Tell of what has failed; returns what is to be done about the worse of the two. */
static enum job_action task_tell(struct verify_task *task)
{
    enum job_action all = JOB_IGNORE;

    for (int i = 0; i < 2; i++) {
        struct job_error error = task_error(&task->side[i]);
        enum job_action action;

        if (error.code == 0) {
            continue;
        }
        action = task_tell_one(task, &error, all == JOB_FAIL);
        all = action == JOB_FAIL || (action == JOB_STOP && all == JOB_IGNORE) ? action : all;
    }
    return all;
}

/* The task has no more to do with its granules; it is free when its requests are. */
static void task_leave(struct verify_task *task)
{
    if (!task_busy(task)) {
        blkrepl__verify_free_task(task);
        return;
    }
    task_release(task);
    task_enter(task, VERIFY_VOID);
    task_end_probe(task);
    blkrepl__chore_add(task->verify->job.ctx, &task->verify->cancel_chore);
    job_wake(&task->verify->job);
}

/* It could not be read.  Unless it is tried again it counts as differing. */
static void task_give_up(struct verify_task *task, enum job_action action)
{
    struct verify *verify = task->verify;

    switch (action) {
    case JOB_STOP:
        task_give_back(task, task->start);
        task_leave(task);
        blkrepl__job_error_pause(&verify->job);
        return;
    case JOB_IGNORE:
        verify->failed_bytes += task->end - task->start;
        blkrepl__verify_mark(verify, task->start, task->end);
        task_leave(task);
        return;
    case JOB_FAIL: break;
    }
    verify->failed = true;
    blkrepl__verify_mark(verify, task->start, task->end);
    task_leave(task);
    blkrepl__verify_stop(verify);
}

/* READ: both have come, or one of them cannot. */
static void task_read(struct verify_task *task)
{
    if (task->side[0].error < 0 || task->side[1].error < 0) {
        task_give_up(task, task_tell(task));
        return;
    }
    task_release(task);
    task_enter(task, VERIFY_FILLED);
    job_wake(&task->verify->job);
}

/* The job has stopped meanwhile: nothing matters but that errors are told, also that of
 * a side that had ended before; or what it brings is wanted no more. */
static void task_ended_late(struct verify_side *side)
{
    struct verify_task *task = side->task;
    int result = side->request->io_result;

    if (result < 0 && result != -ECANCELED && task->state == VERIFY_READ) {
        side->error = result;
    }
    if (task_busy(task)) {
        return;
    }
    for (int i = 0; i < 2 && task->state == VERIFY_READ; i++) {
        struct job_error error = task_error(&task->side[i]);

        if (error.code < 0) {
            blkrepl__job_error(&task->verify->job, &error);
        }
    }
    blkrepl__verify_free_task(task);
}

/* A part of a side has come; true: the next one is on its way. */
static bool task_goes_on(struct verify_side *side)
{
    struct verify_task *task = side->task;
    int i = side == &task->side[1];

    if (side->request->io_result < 0) {
        side->error = side->request->io_result;
        return false;
    }
    side->moved_bytes += side->request->io.bytes;
    if (task->start + side->moved_bytes == verify_request_end(task, i) ||
        task->side[1 - i].error < 0) {
        return false;
    }
    task_send_read(task, i);
    return true;
}

/* A backend has completed a request. */
static void task_ended(struct request *request)
{
    struct verify_side *side = request->owner;
    struct verify_task *task = side->task;

    task->verify->in_flight--;
    side->busy = false;
    if (task->verify->stopped || task->state == VERIFY_VOID) {
        task_ended_late(side);
        return;
    }
    if (task->state == VERIFY_STATUS) {
        if (request->io_result < 0 || !blkrepl__status_valid(&request->io)) {
            side->extents[0].bytes = 0; /* no answer: all of it is data */
        }
    } else if (task_goes_on(side)) {
        return;
    }
    if (task_busy(task)) {
        return;
    }
    if (task->state == VERIFY_STATUS) {
        task_status(task);
    } else {
        task_read(task);
    }
}

void blkrepl__verify_start_task(struct verify *verify, struct verify_task *task, uint64_t start,
                                uint64_t end, bool probe)
{
    blkrepl__dirtymap_reset(&verify->todo, start, end - start);
    verify->cursor = end;
    verify->probing = verify->probing || probe;
    list_append(&verify->active, &task->link);
    task->ready.run = task_run;
    task->probe = probe;
    task->start = start;
    task->end = end;
    task->tries = 0;
    task->hastened = false;
    task->deadline_ns = BLKREPL_FOREVER;
    task_enter(task, VERIFY_CLAIMED);
    task_claimed(task);
}

/* Take back what the backends have not got. */
static void task_withdraw(struct verify_task *task)
{
    for (int i = 0; i < 2; i++) {
        struct verify_side *side = &task->side[i];

        if (side->busy && blkrepl__port_withdraw(side->request)) {
            side->busy = false;
            task->verify->in_flight--;
        }
    }
}

void blkrepl__verify_abandon(struct verify_task *task)
{
    task_release(task);
    list_unlink(&task->ready.link);
    task_withdraw(task);
    if (!task_busy(task)) {
        blkrepl__verify_free_task(task);
    }
}

/* ---- Guests that wait for a task ---------------------------------------------- */

/* Whether it lets guests go first.  Others are let wait after some tries, so that a
 * stream of writes does not keep the task from ever reading; but the host that has a
 * bracket may begin the next one before it ends this. */
static bool task_yields(const struct verify_task *task)
{
    return task->state == VERIFY_HOLDING &&
           (task->tries < TRIES_MAX || task_find(task, 0, TASK_BRACKET) != NULL ||
            task_find(task, 1, TASK_BRACKET) != NULL);
}

/* A guest has come to wait.  Before the task reads it makes way, and waits
 * on for the same write without holding anybody; later it hurries. */
static void task_hasten(struct range *range)
{
    struct verify_task *task = CONTAINER_OF(range, struct verify_side, range)->task;

    if (task_yields(task)) {
        task->tries++;
        task_release(task);
        task_enter(task, VERIFY_CLAIMED);
        return;
    }
    if (task->hastened) {
        return;
    }
    task->hastened = true;
    blkrepl__verify_set_deadline(task);
    for (int i = 0; i < 2; i++) {
        if (task->side[i].busy && blkrepl__port_withdraw(task->side[i].request)) {
            task_queue(task, i);
        }
    }
}

/* The image that the task waits for; the first one if for both. */
static uint32_t task_culprit(const struct verify_task *task)
{
    bool first = task->side[0].busy ||
                 (task->state == VERIFY_HOLDING && task_find(task, 0, TASK_GIVEN) != NULL);

    return first ? BLKREPL_SIDE_SOURCE : BLKREPL_SIDE_TARGET;
}

void blkrepl__verify_expire(struct verify_task *task)
{
    struct job_error error = {.code = -ETIMEDOUT,
                              .side = task_culprit(task),
                              .offset = task->start,
                              .bytes = task->end - task->start,
                              .what = "read"};

    list_unlink(&task->ready.link);
    task_withdraw(task);
    task_give_up(task, task_tell_one(task, &error, false));
}
