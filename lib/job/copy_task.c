/* SPDX-License-Identifier: MIT */
/* copy_task.c - the machine of one copy: a run of clusters on its way.
 *
 * Invariants:
 *   1. A task that is neither FREE nor VOID is on the active list; its clusters
 *      are not in todo.  A VOID one is on the list of void ones.
 *   2. Its range is live from the claim until the old data are saved: read, or
 *      known to be zero, or (OFFLOAD, hold_until_written) on the target.
 *   3. In STATUS, OFFLOAD, READ, WRITE and VOID its request is at a port, exactly
 *      once; in VOID at the backend.
 *   4. No task in OFFLOAD or WRITE overlaps one that is VOID.
 *
 *   FREE -> CLAIMED -> STATUS -> OFFLOAD -> READ -> HELD -> WRITE -> FREE
 *              |  |      |  |     ^   |      ^ |     ^       ^
 *              |  +------|--|-----+   |      | +-----|-------+
 *              |  +------|--+---------|------+       |       |
 *              +---------+------------|--------------+-------+
 *                                     +-> VOID -> FREE
 *
 *   and each step but VOID may end in FREE.
 *
 *   FREE    -> CLAIMED  blkrepl__copy_start_task
 *   CLAIMED -> STATUS   task_claimed   the source can tell, and no guest waits
 *   CLAIMED -> OFFLOAD  task_begin_data  the backends can, and no guest waits
 *   CLAIMED -> READ     task_begin_data  otherwise
 *   CLAIMED -> WRITE    task_begin_write  known to be zero
 *   CLAIMED -> HELD     task_begin_write  the same, and a void copy overlaps
 *   CLAIMED -> FREE     blkrepl__copy_task_abandon
 *   STATUS  -> OFFLOAD  task_begin_data  there are data, and the backends can
 *   STATUS  -> READ     task_begin_data  there are data
 *   STATUS  -> WRITE    task_begin_write  it reads as zero
 *   STATUS  -> HELD     task_begin_write  the same, and a void copy overlaps
 *   STATUS  -> FREE     task_ended, abandoned
 *   OFFLOAD -> READ     task_offload   refused: the long way
 *   OFFLOAD -> VOID     task_make_void  a guest wants to write there
 *   OFFLOAD -> FREE     task_offload   all is on the target; or not given to the
 *                                      backend yet when it became void; abandoned
 *   READ    -> WRITE    task_begin_write  all is in the buffer
 *   READ    -> HELD     task_begin_write  the same, and a void copy overlaps
 *   READ    -> FREE     task_ended, abandoned or failed
 *   HELD    -> WRITE    task_held      no void copy overlaps any more
 *   HELD    -> FREE     blkrepl__copy_task_abandon
 *   WRITE   -> FREE     task_write     all is on the target; or failed, abandoned
 *   VOID    -> FREE     task_void      the backend is through with it
 */
#include "job/copy.h"

#include <errno.h>
#include <string.h>

#include "base/checked.h"
#include "base/hook.h"

/* How far ahead the status is asked. */
#define PROBE_BYTES (UINT64_C(1) << 30)

static const uint32_t task_next[COPY_TASK_STATE_COUNT] = {
    [COPY_FREE] = TO(COPY_CLAIMED),
    [COPY_CLAIMED] = TO(COPY_STATUS) | TO(COPY_OFFLOAD) | TO(COPY_READ) | TO(COPY_HELD) |
                     TO(COPY_WRITE) | TO(COPY_FREE),
    [COPY_STATUS] =
        TO(COPY_OFFLOAD) | TO(COPY_READ) | TO(COPY_HELD) | TO(COPY_WRITE) | TO(COPY_FREE),
    [COPY_OFFLOAD] = TO(COPY_READ) | TO(COPY_VOID) | TO(COPY_FREE),
    [COPY_READ] = TO(COPY_HELD) | TO(COPY_WRITE) | TO(COPY_FREE),
    [COPY_HELD] = TO(COPY_WRITE) | TO(COPY_FREE),
    [COPY_WRITE] = TO(COPY_FREE),
    [COPY_VOID] = TO(COPY_FREE),
};

static void task_claimed(struct copy_task *task);
static void task_status(struct copy_task *task);
static void task_offload(struct copy_task *task);
static void task_read(struct copy_task *task);
static void task_held(struct copy_task *task);
static void task_write(struct copy_task *task);
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

/* The guest may overwrite the old data now. */
static void task_saved(struct copy_task *task)
{
    if (range_live(&task->range)) {
        blkrepl__range_end(task_ranges(task), &task->range);
    }
}

/* The clusters from `from` on are to do again. */
static void task_give_back(struct copy_task *task, uint64_t from)
{
    struct copy *copy = task->copy;
    uint64_t cluster = copy->config.cluster_bytes;
    uint64_t first = from / cluster;
    uint64_t last = (task->end + cluster - 1) / cluster;

    blkrepl__hbitmap_set(&copy->todo, first, last - first);
    job_wake(copy->job);
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

/* What the task has done is on the target. */
static void task_settle(struct copy_task *task)
{
    struct copy *copy = task->copy;
    uint64_t bytes = task->end - task->start;

    copy->bytes_done += bytes;
    copy->zero_bytes += task->zero ? bytes : 0;
    copy->offloaded_bytes += task->state == COPY_OFFLOAD ? bytes : 0;
    if (task->for_guest) {
        copy->guest_copies_count++;
        copy->guest_copies_bytes += bytes;
    }
    task_free(task);
}

static void task_ended(struct request *request);

/* Whether a guest waits for what the task does now. */
static bool task_awaited(const struct copy_task *task)
{
    return task->urgent && range_live(&task->range);
}

static void task_queue(struct copy_task *task, struct port *port);

/* What changes the target is recorded by its bitmaps when it sets out, for those that
 * are frozen meanwhile, and when it has ended. */
static void task_record(const struct copy_task *task)
{
    const blkrepl_io *io = &task->request->io;

    if (io->opcode == BLKREPL_OP_WRITE || io->opcode == BLKREPL_OP_ZEROES ||
        io->opcode == BLKREPL_OP_COPY_FROM) {
        record_write(&task->copy->config.target->record, io->offset, io->offset + io->bytes);
    }
}

/* Give the task's request to a port. */
static void task_submit(struct copy_task *task, struct port *port, uint32_t opcode, uint64_t offset,
                        uint64_t bytes)
{
    blkrepl_io *io = &task->request->io;

    io->opcode = opcode;
    io->flags = task_awaited(task) ? 0 : BLKREPL_IO_BACKGROUND;
    if (opcode == BLKREPL_OP_ZEROES) {
        io->flags |= BLKREPL_IO_MAY_UNMAP | BLKREPL_IO_NO_FALLBACK;
    }
    io->offset = offset;
    io->bytes = bytes;
    io->source_user = NULL;
    io->source_offset = 0;
    if (opcode == BLKREPL_OP_COPY_FROM) {
        io->source_user = task->copy->config.source->leaf->port.backend;
        io->source_offset = offset;
    }
    task->request->ended = task_ended;
    task->request->owner = task;
    task->copy->in_flight++;
    task_record(task);
    task_queue(task, port);
}

/* Into the queue where it belongs: reads that a guest waits for go with the
 * guest's own requests. */
static void task_queue(struct copy_task *task, struct port *port)
{
    if (port == &task->copy->config.source->leaf->port && task->urgent) {
        blkrepl__port_submit_read(port, task->request, task->lane);
    } else {
        blkrepl__port_submit_job(port, task->request, task->urgent);
    }
}

/* STATUS: of the task's range, or far ahead when no write from before the point
 * in time can change what we learn. */
static void task_ask_status(struct copy_task *task)
{
    struct copy *copy = task->copy;
    uint64_t size = image_bytes(copy->config.source);
    uint64_t end = task->end;

    if (copy->settled_writes && !copy->probing && !STRETCH(COPY_PROBE)) {
        end = min_u64(task->start + PROBE_BYTES, size);
        copy->probing = true;
        task->probe = true;
    }
    end = min_u64(align_up(end, copy->config.source->leaf->port.info.request_alignment), size);
    memset(task->extents, 0, sizeof task->extents);
    task->request->io.extents = task->extents;
    task->request->io.extents_max = COPY_EXTENTS;
    task->request->io.iov_count = 0;
    task_enter(task, COPY_STATUS);
    task_submit(task, &copy->config.source->leaf->port, BLKREPL_OP_STATUS, task->start,
                end - task->start);
}

/* READ: the next part of the range into the buffer. */
static void task_send_read(struct copy_task *task)
{
    struct port *port = &task->copy->config.source->leaf->port;
    uint64_t left = task->end - task->start - task->moved_bytes;
    uint64_t bytes = min_u64(left, port->info.transfer_bytes_max);

    task->iov[0] = (blkrepl_iovec){.base = task->buffer + task->moved_bytes, .len = (size_t)bytes};
    task->request->io.iov = task->iov;
    task->request->io.iov_count = 1;
    task_submit(task, port, BLKREPL_OP_READ, task->start + task->moved_bytes, bytes);
}

static void task_begin_read(struct copy_task *task)
{
    task->moved_bytes = 0;
    task_enter(task, COPY_READ);
    task_send_read(task);
}

/* Where the write to the target ends: the last block is filled up with zeroes
 * if the target asks for whole blocks. */
static uint64_t task_write_end(const struct copy_task *task)
{
    const blkrepl_backend_info *info = &task->copy->config.target->leaf->port.info;

    return min_u64(align_up(task->end, info->request_alignment), info->bytes);
}

/* WRITE: the next part to the target. */
static void task_send_write(struct copy_task *task)
{
    struct copy *copy = task->copy;
    struct leaf *leaf = copy->config.target->leaf;
    const blkrepl_backend_info *info = &leaf->port.info;
    blkrepl_io *io = &task->request->io;
    uint64_t left = task_write_end(task) - task->start - task->moved_bytes;
    uint64_t bytes = min_u64(left, info->transfer_bytes_max);
    uint32_t opcode = BLKREPL_OP_WRITE;

    io->iov = task->iov;
    if (!task->zero) {
        task->iov[0] =
            (blkrepl_iovec){.base = task->buffer + task->moved_bytes, .len = (size_t)bytes};
        io->iov_count = 1;
    } else if (leaf_has(leaf, BLKREPL_OP_ZEROES) && !copy->zeroes_refused) {
        opcode = BLKREPL_OP_ZEROES;
        bytes = min_u64(left, info->zeroes_bytes_max);
        io->iov_count = 0;
    } else {
        uint32_t most = info->iov_count_max < COPY_IOVS ? info->iov_count_max : COPY_IOVS;

        bytes = blkrepl__iov_zeroes(task->iov, most, bytes, &io->iov_count);
    }
    task_submit(task, &leaf->port, opcode, task->start + task->moved_bytes, bytes);
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

/* OFFLOAD: the next part, from backend to backend. */
static void task_send_offload(struct copy_task *task)
{
    struct copy *copy = task->copy;
    uint64_t left = task->end - task->start - task->moved_bytes;

    task->request->io.iov_count = 0;
    task_submit(task, &copy->config.target->leaf->port, BLKREPL_OP_COPY_FROM,
                task->start + task->moved_bytes, min_u64(left, copy->offload_bytes_max));
}

/* Whether the backends may copy the range.  A last block that has to be filled
 * up goes through the buffer, and so does what is to be written after a void
 * copy: who is held then has the old data, so no guest waits for it. */
static bool task_may_offload(const struct copy_task *task)
{
    return task->copy->offload_bytes_max > 0 && !task->urgent &&
           task_write_end(task) == task->end && !task_void_overlaps(task);
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
    task_send_offload(task);
}

static void task_begin_write(struct copy_task *task)
{
    uint64_t bytes = task->end - task->start;

    if (!task->zero) {
        memset(task->buffer + bytes, 0, (size_t)(task_write_end(task) - task->end));
    }
    if (!task->copy->config.hold_until_written) {
        task_saved(task);
    }
    task->moved_bytes = 0;
    if (task_void_overlaps(task)) {
        task_enter(task, COPY_HELD);
        list_append(&task->copy->held, &task->ready.link);
        return;
    }
    task_enter(task, COPY_WRITE);
    task_send_write(task);
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
        task_send_write(task);
    }
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
        task_ask_status(task);
    } else {
        task_begin_data(task);
    }
}

static void task_ready(struct ready *ready)
{
    struct copy_task *task = CONTAINER_OF(ready, struct copy_task, ready);

    if (task->state == COPY_HELD) {
        task_held(task);
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

    if (task->request->io_result == 0 && blkrepl__copy_status_valid(task)) {
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
        task_send_offload(task);
    }
}

/* READ: a part has come. */
static void task_read(struct copy_task *task)
{
    task->moved_bytes += task->request->io.bytes;
    if (task->moved_bytes < task->end - task->start) {
        task_send_read(task);
        return;
    }
    /* A guest does not wait for a STATUS; looking at the data keeps a hole a
     * hole and ends at the first byte of most others. */
    if (task->copy->config.detect_zeroes || task->urgent) {
        task->zero = blkrepl__is_zero(task->buffer, (size_t)(task->end - task->start));
    }
    task_begin_write(task);
}

/* WRITE: a part is on the target. */
static void task_write(struct copy_task *task)
{
    task->moved_bytes += task->request->io.bytes;
    if (task->moved_bytes < task_write_end(task) - task->start) {
        task_send_write(task);
        return;
    }
    task_settle(task);
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
    uint64_t cluster = copy->config.cluster_bytes;
    uint64_t first = task->start / cluster;
    uint64_t last = (task->end + cluster - 1) / cluster;

    blkrepl__job_error(copy->job, error);
    blkrepl__hbitmap_set(&copy->todo, first, last - first);
    blkrepl__copy_tap_fail(copy, task->start, task->end, error->code);
    task_free(task);
}

static struct job_error task_error(const struct copy_task *task)
{
    const blkrepl_io *io = &task->request->io;

    return (struct job_error){.code = task->request->io_result,
                              .side = task->state == COPY_WRITE ? BLKREPL_SIDE_TARGET
                                                                : BLKREPL_SIDE_SOURCE,
                              .offset = io->offset,
                              .bytes = io->bytes,
                              .what = io->opcode == BLKREPL_OP_READ     ? "read"
                                      : io->opcode == BLKREPL_OP_ZEROES ? "write of zeroes"
                                                                        : "write"};
}

static void task_failed(struct copy_task *task)
{
    struct job_error error = task_error(task);

    if (task->for_guest && task->copy->config.hold_until_written) {
        task_fail_guest(task, &error);
        return;
    }
    blkrepl__copy_fail(task->copy, &error);
    task_free(task);
}

/* The engine has stopped meanwhile: nothing matters but that an error is told. */
static void task_ended_late(struct copy_task *task)
{
    int result = task->request->io_result;
    bool refused = (result == -ENOTSUP && task->request->io.opcode == BLKREPL_OP_ZEROES) ||
                   task->state == COPY_OFFLOAD;

    if (result < 0 && result != -ECANCELED && !refused && task->state != COPY_STATUS) {
        struct job_error error = task_error(task);

        blkrepl__job_error(task->copy->job, &error);
    }
    task_free(task);
}

/* The backend has completed the task's request. */
static void task_ended(struct request *request)
{
    struct copy_task *task = request->owner;
    struct copy *copy = task->copy;
    int result = request->io_result;

    copy->in_flight--;
    task_record(task);
    if (task->state == COPY_VOID) {
        task_void(task);
        return;
    }
    if (copy->stopped) {
        task_ended_late(task);
        return;
    }
    if (result == -ENOTSUP && request->io.opcode == BLKREPL_OP_ZEROES) {
        copy->zeroes_refused = true;
        task_send_write(task);
        return;
    }
    if (result < 0 && task->state != COPY_STATUS && task->state != COPY_OFFLOAD) {
        task_failed(task);
        return;
    }
    switch (task->state) {
    case COPY_STATUS: task_status(task); return;
    case COPY_OFFLOAD: task_offload(task); return;
    case COPY_READ: task_read(task); return;
    case COPY_WRITE: task_write(task); return;
    case COPY_FREE:
    case COPY_CLAIMED:
    case COPY_HELD:
    case COPY_VOID:
    case COPY_TASK_STATE_COUNT: break;
    }
    UNREACHABLE();
}

void blkrepl__copy_start_task(struct copy *copy, struct copy_task *task, uint64_t first,
                              uint64_t count, bool urgent, uint32_t lane)
{
    uint64_t cluster = copy->config.cluster_bytes;

    blkrepl__hbitmap_clear(&copy->todo, first, count);
    list_append(&copy->active, &task->link);
    task->ready.run = task_ready;
    task->for_guest = urgent;
    task->urgent = urgent;
    task->probe = false;
    task->zero = false;
    task->told = false;
    task->lane = lane;
    task->start = first * cluster;
    task->end = min_u64((first + count) * cluster, image_bytes(copy->config.source));
    task_enter(task, COPY_CLAIMED);
    task->range.kind = RANGE_COPY;
    task->range.owner = copy;
    blkrepl__range_add(task_ranges(task), &task->range, task->start, task->end);
    if (copy->job->speed_bytes_per_sec != 0 &&
        !blkrepl__copy_known_zero(copy, task->start, task->end)) {
        blkrepl__ratelimit_take(&copy->rate, task->end - task->start, copy->job->ctx->now_ns);
    }
    task_claimed(task);
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
        task_queue(task, task->request->port);
    }
}

void blkrepl__copy_task_abandon(struct copy_task *task)
{
    task_saved(task);
    if (task->state == COPY_CLAIMED || task->state == COPY_HELD) {
        list_unlink(&task->ready.link);
        task_free(task);
    } else if (blkrepl__port_withdraw(task->request)) {
        task->copy->in_flight--;
        task_free(task);
    }
}
