/* SPDX-License-Identifier: MIT */
/* copy_task.c - the machine of one copy: a run of clusters on its way.
 *
 * Invariants:
 *   1. A task that is neither FREE nor VOID is on the active list; its clusters
 *      are not in todo.  A VOID one is on the list of void ones.
 *   2. Its range is live from the claim until the old data are saved: read, or
 *      known to be zero, or (OFFLOAD, hold_until_written) on the target.
 *   3. In STATUS, OFFLOAD, READ, WRITE, SPILL, CLEAN and VOID its request is at a port,
 *      exactly once; in VOID at the backend.
 *   4. No task in OFFLOAD or WRITE overlaps one that is VOID.
 *
 *   FREE -> CLAIMED -> STATUS -> OFFLOAD -> READ -> HELD -> WRITE -> FREE
 *              |  |      |  |     ^   |      ^ |     ^       ^ | |
 *              |  +------|--|-----+   |      | +-----|-------+ | +-> KEPT -> WRITE
 *              |  +------|--+---------|------+ |     |       | +---> CLEAN -> FREE
 *              +---------+------------|--------|-----+-------+
 *                                     |        +-> SPILL -> FREE, HELD, WRITE
 *                                     +-> VOID -> FREE
 *
 *   and each step but VOID and CLEAN may end in FREE before its time.
 *
 *   FREE    -> CLAIMED  blkrepl__copy_start_task
 *   CLAIMED -> STATUS   task_claimed   the source can tell, and no guest waits
 *   CLAIMED -> OFFLOAD  task_begin_data  the backends can, and no guest waits
 *   CLAIMED -> READ     task_begin_data  otherwise
 *   CLAIMED -> WRITE    task_begin_write  known to be zero
 *   CLAIMED -> HELD     task_begin_write  the same, and a void copy overlaps
 *   CLAIMED -> SPILL    task_begin_write  the same, for a guest
 *   CLAIMED -> FREE     blkrepl__copy_task_abandon
 *   STATUS  -> OFFLOAD  task_begin_data  there are data, and the backends can
 *   STATUS  -> READ     task_begin_data  there are data
 *   STATUS  -> WRITE    task_begin_write  it reads as zero
 *   STATUS  -> HELD     task_begin_write  the same, and a void copy overlaps
 *   STATUS  -> FREE     task_ended_late, abandoned
 *   OFFLOAD -> READ     task_offload   refused: the long way
 *   OFFLOAD -> VOID     task_make_void  a guest wants to write there
 *   OFFLOAD -> FREE     task_offload   all is on the target; or not given to the
 *                                      backend yet when it became void; abandoned
 *   READ    -> WRITE    task_begin_write  all is in the buffer
 *   READ    -> HELD     task_begin_write  the same, and a void copy overlaps
 *   READ    -> SPILL    task_begin_write  all is in the buffer, for a guest
 *   READ    -> FREE     task_ended_late, abandoned or failed
 *   HELD    -> WRITE    task_held      no void copy overlaps any more
 *   HELD    -> FREE     blkrepl__copy_task_abandon
 *   WRITE   -> FREE     task_write     all is on the target; or failed, abandoned
 *   WRITE   -> KEPT     task_failed    tried again when the job is resumed
 *   WRITE   -> CLEAN    task_write     it came from the spill image
 *   KEPT    -> WRITE    task_ready     the job is resumed
 *   KEPT    -> FREE     blkrepl__copy_task_abandon
 *   SPILL   -> FREE     task_spill     all is in the spill image; or abandoned
 *   SPILL   -> WRITE    task_begin_write  it does not take it: to the target
 *   SPILL   -> HELD     task_begin_write  the same, and a void copy overlaps
 *   CLEAN   -> FREE     task_clean     discarded, or not
 *   VOID    -> FREE     task_void      the backend is through with it
 */
#include "job/copy.h"

#include <errno.h>
#include <string.h>

#include "base/checked.h"
#include "base/hook.h"
#include "block/status.h"

static const uint32_t task_next[COPY_TASK_STATE_COUNT] = {
    [COPY_FREE] = TO(COPY_CLAIMED),
    [COPY_CLAIMED] = TO(COPY_STATUS) | TO(COPY_OFFLOAD) | TO(COPY_READ) | TO(COPY_HELD) |
                     TO(COPY_WRITE) | TO(COPY_SPILL) | TO(COPY_FREE),
    [COPY_STATUS] =
        TO(COPY_OFFLOAD) | TO(COPY_READ) | TO(COPY_HELD) | TO(COPY_WRITE) | TO(COPY_FREE),
    [COPY_OFFLOAD] = TO(COPY_READ) | TO(COPY_VOID) | TO(COPY_FREE),
    [COPY_READ] = TO(COPY_HELD) | TO(COPY_WRITE) | TO(COPY_SPILL) | TO(COPY_FREE),
    [COPY_HELD] = TO(COPY_WRITE) | TO(COPY_FREE),
    [COPY_WRITE] = TO(COPY_KEPT) | TO(COPY_CLEAN) | TO(COPY_FREE),
    [COPY_SPILL] = TO(COPY_HELD) | TO(COPY_WRITE) | TO(COPY_FREE),
    [COPY_KEPT] = TO(COPY_WRITE) | TO(COPY_FREE),
    [COPY_CLEAN] = TO(COPY_FREE),
    [COPY_VOID] = TO(COPY_FREE),
};

static void task_claimed(struct copy_task *task);
static void task_status(struct copy_task *task);
static void task_offload(struct copy_task *task);
static void task_read(struct copy_task *task);
static void task_held(struct copy_task *task);
static void task_write(struct copy_task *task);
static void task_spill(struct copy_task *task);
static void task_clean(struct copy_task *task);
static void task_void(struct copy_task *task);

static void task_enter(struct copy_task *task, enum copy_task_state next)
{
    CHECK(task_next[task->state] & TO(next));
    task->state = next;
}

static struct ranges *task_ranges(const struct copy_task *task)
{
    return &task->copy->config.source->leaf->ranges;
}

/* Whether the old data are saved only when they have been written.  With a spill image
 * that is so for what a guest waits for; anything else is safe in its buffer, since
 * an error of the target that matters to the guest cannot be met any more. */
static bool task_holds(const struct copy_task *task)
{
    return task->copy->config.hold_until_written &&
           (task->copy->config.spill == NULL || task->for_guest);
}

/* The guest may overwrite the old data now. */
static void task_saved(struct copy_task *task)
{
    if (range_live(&task->range)) {
        blkrepl__range_end(task_ranges(task), &task->range);
    }
}

/* Note the task's clusters from `from` on in a map. */
static void task_note(const struct copy_task *task, struct hbitmap *map, uint64_t from)
{
    uint64_t cluster = task->copy->config.cluster_bytes;
    uint64_t first = from / cluster;
    uint64_t last = (task->end + cluster - 1) / cluster;

    blkrepl__hbitmap_set(map, first, last - first);
}

/* The clusters from `from` on are to do again. */
static void task_give_back(struct copy_task *task, uint64_t from)
{
    struct copy *copy = task->copy;

    task_note(task, task->spilled ? &copy->spilled : &copy->todo, from);
    job_wake(copy->job);
}

static uint64_t task_clusters(const struct copy_task *task)
{
    uint64_t cluster = task->copy->config.cluster_bytes;

    return (task->end + cluster - 1) / cluster - task->start / cluster;
}

/* Give clusters from `end` on back to todo; whoever waits for them looks again. */
static void task_shrink(struct copy_task *task, uint64_t end)
{
    struct copy *copy = task->copy;

    task_give_back(task, end);
    task->end = end;
    if (range_live(&task->range)) {
        blkrepl__range_end(task_ranges(task), &task->range);
        blkrepl__range_add(task_ranges(task), &task->range, task->start, end);
        task->range.given = true;
    }
    copy->cursor = min_u64(copy->cursor, end / copy->config.cluster_bytes);
}

static void task_free(struct copy_task *task)
{
    task_saved(task);
    task_enter(task, COPY_FREE);
    blkrepl__copy_task_free(task);
}

/* The task ends, and what it took is to do again. */
static void task_drop(struct copy_task *task)
{
    task_give_back(task, task->start);
    task_free(task);
}

/* The task ends, and what it took is given up.  What was spilled keeps its place in the
 * spill image: nobody discards it. */
static void task_lose(struct copy_task *task)
{
    struct copy *copy = task->copy;

    task_note(task, &copy->bad, task->start);
    copy->failed_bytes += task->end - task->start;
    task_free(task);
}

static void task_count_guest(const struct copy_task *task)
{
    if (task->for_guest) {
        task->copy->guest_copies_count++;
        task->copy->guest_copies_bytes += task->end - task->start;
    }
}

/* What the task has done is on the target. */
static void task_settle(struct copy_task *task)
{
    struct copy *copy = task->copy;
    uint64_t bytes = task->end - task->start;

    copy->bytes_done += bytes;
    copy->zero_bytes += task->zero ? bytes : 0;
    copy->offloaded_bytes += task->state == COPY_OFFLOAD ? bytes : 0;
    task_count_guest(task);
    if (task->spilled) {
        task->moved_bytes = 0;
        task_enter(task, COPY_CLEAN);
        task_clean(task);
        return;
    }
    task_free(task);
}

static void task_begin_read(struct copy_task *task)
{
    task->moved_bytes = 0;
    task_enter(task, COPY_READ);
    blkrepl__copy_send_read(task);
}

/* A void task over this one's range, which may still change the target. */
static bool task_void_overlaps(const struct copy_task *task)
{
    const struct list *voids = &task->copy->voids;

    for (const struct list *link = voids->next; link != voids; link = link->next) {
        const struct copy_task *other = CONTAINER_OF(link, struct copy_task, link);

        if (other->start < task->end && task->start < other->end) {
            return true;
        }
    }
    return false;
}

/* Whether the backends may copy the range.  A last block that has to be filled
 * up goes through the buffer, and so does what is to be written after a void
 * copy: who is held then has the old data, so no guest waits for it. */
static bool task_may_offload(const struct copy_task *task)
{
    return task->copy->offload_bytes_max > 0 && !task->urgent && !blkrepl__copy_fills_up(task) &&
           !task_void_overlaps(task);
}

/* There are data: have them copied, or read as much as the buffer holds. */
static void task_begin_data(struct copy_task *task)
{
    if (task->end - task->start > task->buffer_bytes) {
        task_shrink(task, task->start + task->buffer_bytes);
    }
    if (!task_may_offload(task)) {
        task_begin_read(task);
        return;
    }
    task->moved_bytes = 0;
    task_enter(task, COPY_OFFLOAD);
    blkrepl__copy_send_offload(task);
}

/* Whether old data for a guest are to go to the spill image. */
static bool task_may_spill(const struct copy_task *task)
{
    const struct copy *copy = task->copy;

    return copy->config.spill != NULL && task->for_guest && task->state != COPY_SPILL &&
           (copy->spill_clusters + 1) * copy->config.cluster_bytes <= copy->config.spill_bytes_max;
}

/* What is in the buffer, or known to be zero, is to be written: where to? */
static enum copy_task_state task_way(struct copy_task *task)
{
    if (task_may_spill(task)) {
        task->copy->spill_clusters++; /* one that is claimed for a guest is one cluster */
        return COPY_SPILL;
    }
    return task_void_overlaps(task) ? COPY_HELD : COPY_WRITE;
}

static void task_begin_write(struct copy_task *task)
{
    uint64_t bytes = task->end - task->start;
    enum copy_task_state next = task_way(task);

    if (!task_holds(task)) {
        task_saved(task);
    }
    task->moved_bytes = 0;
    task_enter(task, next);
    if (!task->zero) {
        memset(task->buffer + bytes, 0, (size_t)(blkrepl__copy_write_end(task) - task->end));
    }
    if (next == COPY_HELD) {
        list_append(&task->copy->held, &task->ready.link);
        return;
    }
    blkrepl__copy_send_write(task);
}

/* The write in flight that the copy has to wait for; brackets whose host has not
 * been told yet make way. */
static struct range *task_blocker(const struct copy_task *task)
{
    const struct copy *copy = task->copy;
    struct range *write;

    do {
        write = blkrepl__range_copy_blocker(task_ranges(task), task->start, task->end,
                                            copy->tap.attached_at);
        if (write != NULL) {
            blkrepl__guest_make_way(guest_of_range(write));
        }
    } while (write != NULL && write->given_at == 0);
    return write;
}

/* HELD: a void copy has ended. */
static void task_held(struct copy_task *task)
{
    if (STRETCH(COPY_HELD)) {
        blkrepl__ready_wake(task->copy->job->ctx, &task->ready);
    } else if (task_void_overlaps(task)) {
        list_append(&task->copy->held, &task->ready.link);
    } else {
        task_enter(task, COPY_WRITE);
        blkrepl__copy_send_write(task);
    }
}

/* KEPT: the job has been resumed. */
static void task_kept(struct copy_task *task)
{
    if (STRETCH(COPY_HELD)) {
        blkrepl__ready_wake(task->copy->job->ctx, &task->ready);
        return;
    }
    task_enter(task, COPY_WRITE);
    blkrepl__copy_send_write(task);
}

/* CLAIMED: wait for guest writes that are in flight over the range. */
static void task_claimed(struct copy_task *task)
{
    struct copy *copy = task->copy;
    struct range *write;

    if (STRETCH(COPY_CLAIM)) {
        blkrepl__ready_wake(copy->job->ctx, &task->ready);
        return;
    }
    write = task_blocker(task);
    if (write != NULL) {
        range_wait(write, &task->ready);
        return;
    }
    task->range.given = true;
    if (blkrepl__copy_known_zero(copy, task->start, task->end)) {
        task->zero = true;
        task_begin_write(task);
    } else if (!task->urgent && leaf_has(copy->config.source->leaf, BLKREPL_OP_STATUS) &&
               !blkrepl__copy_known(copy, task->start, task->end)) {
        task_enter(task, COPY_STATUS);
        blkrepl__copy_send_status(task);
    } else {
        task_begin_data(task);
    }
}

static void task_ready(struct ready *ready)
{
    struct copy_task *task = CONTAINER_OF(ready, struct copy_task, ready);

    if (task->state == COPY_HELD) {
        task_held(task);
    } else if (task->state == COPY_KEPT) {
        task_kept(task);
    } else {
        task_claimed(task);
    }
}

/* STATUS has ended: it is data or zero; the part that differs goes back. */
static void task_status(struct copy_task *task)
{
    struct copy *copy = task->copy;
    bool zero = false;
    uint64_t end = task->end;

    if (task->request->io_result == 0 && blkrepl__status_valid(&task->request->io)) {
        end = blkrepl__copy_same_until(task, &zero);
        if (task->probe) {
            blkrepl__copy_remember(task);
        }
    } /* a status that failed or makes no sense: it is all data */
    if (task->probe) {
        copy->probing = false;
        job_wake(copy->job); /* the pump was waiting for the answer */
    }
    if (end < task->end) {
        task_shrink(task, end);
    }
    task->zero = zero;
    if (zero) {
        task_begin_write(task);
    } else {
        task_begin_data(task);
    }
}

/* OFFLOAD: a part is on the target; or it was refused, to this task or, between
 * two parts of this one, to another: then the long way. */
static void task_offload(struct copy_task *task)
{
    struct copy *copy = task->copy;

    if (task->request->io_result < 0) {
        copy->offload_bytes_max = 0;
        task_begin_read(task);
        return;
    }
    task->moved_bytes += task->request->io.bytes;
    if (task->moved_bytes == task->end - task->start) {
        task_settle(task);
    } else if (copy->offload_bytes_max == 0) {
        task_begin_read(task);
    } else {
        blkrepl__copy_send_offload(task);
    }
}

/* READ: a part has come. */
static void task_read(struct copy_task *task)
{
    task->moved_bytes += task->request->io.bytes;
    if (task->moved_bytes < blkrepl__copy_read_end(task) - task->start) {
        blkrepl__copy_send_read(task);
        return;
    }
    /* A guest does not wait for a STATUS, nor did what was spilled for it; looking at the
     * data keeps a hole a hole and ends at the first byte of most others. */
    if (task->copy->config.detect_zeroes || task->urgent || task->spilled) {
        task->zero = blkrepl__is_zero(task->buffer, (size_t)(task->end - task->start));
    }
    task_begin_write(task);
}

/* WRITE: a part is on the target. */
static void task_write(struct copy_task *task)
{
    task->moved_bytes += task->request->io.bytes;
    if (task->moved_bytes < blkrepl__copy_write_end(task) - task->start) {
        blkrepl__copy_send_write(task);
        return;
    }
    task_settle(task);
}

static const char *task_doing(const struct copy_task *task)
{
    switch (task->request->io.opcode) {
    case BLKREPL_OP_READ: return "read";
    case BLKREPL_OP_ZEROES: return "write of zeroes";
    default: return "write";
    }
}

static uint32_t task_side(const struct copy_task *task)
{
    if (task->state == COPY_WRITE) {
        return BLKREPL_SIDE_TARGET;
    }
    return task->spilled || task->state == COPY_SPILL ? BLKREPL_SIDE_SPILL : BLKREPL_SIDE_SOURCE;
}

static struct job_error task_error(const struct copy_task *task)
{
    const blkrepl_io *io = &task->request->io;

    return (struct job_error){.code = task->request->io_result,
                              .side = task_side(task),
                              .offset = io->offset,
                              .bytes = io->bytes,
                              .what = task_doing(task)};
}

/* SPILL: a part is in the spill image; or it does not take it. */
static void task_spill(struct copy_task *task)
{
    struct copy *copy = task->copy;

    if (task->request->io_result < 0) {
        struct job_error error = task_error(task);

        copy->spill_clusters--;
        blkrepl__job_error(copy->job, &error);
        task_begin_write(task);
        return;
    }
    task->moved_bytes += task->request->io.bytes;
    if (task->moved_bytes < blkrepl__copy_write_end(task) - task->start) {
        blkrepl__copy_send_write(task);
        return;
    }
    task_count_guest(task);
    copy->spilled_bytes_total += task->end - task->start;
    task_note(task, &copy->spilled, task->start);
    task_free(task);
}

/* CLEAN: discard the next part of what was spilled, as far as it can be. */
static void task_clean(struct copy_task *task)
{
    struct copy *copy = task->copy;

    if (leaf_has(copy->config.spill->leaf, BLKREPL_OP_DISCARD) && !copy->stopped &&
        task->moved_bytes < blkrepl__copy_write_end(task) - task->start) {
        blkrepl__copy_send_discard(task);
        return;
    }
    copy->spill_clusters -= task_clusters(task);
    task_free(task);
}

/* A discard of what was spilled has ended; a bad one is as if there were none. */
static void task_cleaned(struct copy_task *task)
{
    uint64_t end = blkrepl__copy_write_end(task) - task->start;

    task->moved_bytes =
        task->request->io_result < 0 ? end : task->moved_bytes + task->request->io.bytes;
    task_clean(task);
}

/* VOID: the backend is through with it; whoever was held looks again. */
static void task_void(struct copy_task *task)
{
    struct copy *copy = task->copy;

    task_free(task);
    list_splice(&copy->job->ctx->ready, &copy->held);
}

/* A guest wants to write to what the task has the backends copy. */
static void task_make_void(struct copy_task *task)
{
    struct copy *copy = task->copy;

    task_give_back(task, task->start);
    if (blkrepl__port_withdraw(task->request)) {
        copy->in_flight--;
        task_free(task);
        return;
    }
    task_saved(task);
    task_enter(task, COPY_VOID);
    list_remove(&task->link);
    list_append(&copy->voids, &task->link);
    blkrepl__chore_add(copy->job->ctx, &copy->cancel_chore);
}

void blkrepl__copy_void(struct copy *copy, uint64_t start, uint64_t end)
{
    const struct ranges *ranges = &copy->config.source->leaf->ranges;

    while (start < end) {
        struct range *range = blkrepl__range_copy_of(ranges, copy, start, end);
        struct copy_task *task;

        if (range == NULL) {
            return;
        }
        task = CONTAINER_OF(range, struct copy_task, range);
        start = task->end;
        if (task->state == COPY_OFFLOAD) {
            task_make_void(task);
        }
    }
}

/* An urgent copy under guest-write-fails: the guest's write fails, the clusters
 * are to be done again. */
static void task_fail_guest(struct copy_task *task, const struct job_error *error)
{
    struct copy *copy = task->copy;

    blkrepl__job_error(copy->job, error);
    task_give_back(task, task->start);
    blkrepl__copy_tap_fail(copy, task->start, task->end, error->code);
    task_free(task);
}

/* The job pauses: what may be changed by a guest by now, and is nowhere else, stays in
 * its buffer; the rest is to do again. */
static void task_stop(struct copy_task *task, const struct job_error *error)
{
    struct copy *copy = task->copy;

    blkrepl__job_error(copy->job, error);
    blkrepl__job_error_pause(copy->job);
    if (task->spilled || range_live(&task->range)) {
        task_drop(task);
        return;
    }
    task_enter(task, COPY_KEPT);
    list_append(&copy->kept, &task->ready.link);
}

/* The job cannot end as done any more: the first time that is the cause of it. */
static void copy_give_up(struct copy *copy, const struct job_error *error)
{
    if (copy->bad.set_count == 0) {
        blkrepl__job_fail(copy->job, error);
    } else {
        blkrepl__job_error(copy->job, error);
    }
}

static void task_failed(struct copy_task *task)
{
    struct copy *copy = task->copy;
    struct job_error error = task_error(task);
    bool unsaved = task->for_guest && range_live(&task->range);
    enum job_action action = blkrepl__job_judge(copy->job, &error);

    if (unsaved && copy->config.hold_until_written) {
        task_fail_guest(task, &error);
    } else if (action == JOB_IGNORE && !unsaved) {
        copy_give_up(copy, &error);
        task_lose(task);
    } else if (action == JOB_STOP && !unsaved) {
        task_stop(task, &error);
    } else {
        blkrepl__copy_fail(copy, &error);
        task_drop(task);
    }
}

/* The engine has stopped meanwhile: nothing matters but that an error is told. */
static void task_ended_late(struct copy_task *task)
{
    int result = task->request->io_result;
    bool refused = (result == -ENOTSUP && task->request->io.opcode == BLKREPL_OP_ZEROES) ||
                   task->state == COPY_OFFLOAD;

    if (task->state == COPY_CLEAN) {
        task_cleaned(task);
        return;
    }
    if (result < 0 && result != -ECANCELED && !refused && task->state != COPY_STATUS) {
        struct job_error error = task_error(task);

        blkrepl__job_error(task->copy->job, &error);
    }
    task_drop(task);
}

/* The backend has completed the task's request. */
void blkrepl__copy_task_ended(struct request *request)
{
    struct copy_task *task = request->owner;
    struct copy *copy = task->copy;
    int result = request->io_result;

    copy->in_flight--;
    blkrepl__copy_record(task);
    if (task->state == COPY_VOID) {
        task_void(task);
        return;
    }
    if (copy->stopped) {
        task_ended_late(task);
        return;
    }
    if (result == -ENOTSUP && request->io.opcode == BLKREPL_OP_ZEROES) {
        *blkrepl__copy_zeroes_refused(task) = true;
        blkrepl__copy_send_write(task);
        return;
    }
    if (result < 0 && (task->state == COPY_READ || task->state == COPY_WRITE)) {
        task_failed(task);
        return;
    }
    switch (task->state) {
    case COPY_STATUS: task_status(task); return;
    case COPY_OFFLOAD: task_offload(task); return;
    case COPY_READ: task_read(task); return;
    case COPY_WRITE: task_write(task); return;
    case COPY_SPILL: task_spill(task); return;
    case COPY_CLEAN: task_cleaned(task); return;
    case COPY_FREE:
    case COPY_CLAIMED:
    case COPY_HELD:
    case COPY_KEPT:
    case COPY_VOID:
    case COPY_TASK_STATE_COUNT: break;
    }
    UNREACHABLE();
}

/* The task takes clusters, which nobody else has any more. */
static void task_take(struct copy_task *task, uint64_t first, uint64_t count)
{
    struct copy *copy = task->copy;
    uint64_t cluster = copy->config.cluster_bytes;

    list_append(&copy->active, &task->link);
    task->ready.run = task_ready;
    task->probe = false;
    task->zero = false;
    task->told = false;
    task->start = first * cluster;
    task->end = min_u64((first + count) * cluster, image_bytes(copy->config.source));
    task_enter(task, COPY_CLAIMED);
}

/* What it moves counts against the job's speed and its throttle, once: what comes from
 * the spill image has been counted when it went there.  A guest's copies have not been
 * let through by the throttle. */
static void task_charge(const struct copy_task *task)
{
    struct copy *copy = task->copy;
    uint64_t bytes = task->end - task->start;

    if (copy->job->speed_bytes_per_sec != 0) {
        blkrepl__ratelimit_take(&copy->rate, bytes, copy->job->ctx->now_ns);
    }
    if (copy->config.throttle != NULL && task->urgent) {
        blkrepl__throttle_take(copy->config.throttle, bytes);
    }
}

void blkrepl__copy_start_task(struct copy *copy, struct copy_task *task, uint64_t first,
                              uint64_t count, bool urgent, uint32_t lane)
{
    blkrepl__hbitmap_clear(&copy->todo, first, count);
    task->for_guest = urgent;
    task->urgent = urgent;
    task->spilled = false;
    task->lane = lane;
    task_take(task, first, count);
    task->range.kind = RANGE_COPY;
    task->range.owner = copy;
    blkrepl__range_add(task_ranges(task), &task->range, task->start, task->end);
    if (!blkrepl__copy_known_zero(copy, task->start, task->end)) {
        task_charge(task);
    }
    task_claimed(task);
}

void blkrepl__copy_start_spilled(struct copy *copy, struct copy_task *task, uint64_t first,
                                 uint64_t count)
{
    blkrepl__hbitmap_clear(&copy->spilled, first, count);
    task->for_guest = false;
    task->urgent = false;
    task->spilled = true;
    task_take(task, first, count);
    task_begin_read(task);
}

void blkrepl__copy_promote(struct copy_task *task, uint32_t lane)
{
    if (task->urgent) {
        return;
    }
    task->urgent = true;
    task->lane = lane;
    if (task->state != COPY_CLAIMED && blkrepl__port_withdraw(task->request)) {
        task->request->io.flags &= ~(uint32_t)BLKREPL_IO_BACKGROUND;
        blkrepl__copy_queue(task, task->request->port);
    }
}

void blkrepl__copy_task_abandon(struct copy_task *task)
{
    task_saved(task);
    if (task->state == COPY_CLAIMED || task->state == COPY_HELD || task->state == COPY_KEPT) {
        list_unlink(&task->ready.link);
        task_drop(task);
    } else if (blkrepl__port_withdraw(task->request)) {
        task->copy->in_flight--;
        if (task->state == COPY_CLEAN) {
            task_clean(task);
        } else {
            task_drop(task);
        }
    }
}
