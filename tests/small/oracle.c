/* SPDX-License-Identifier: MIT */
/* oracle.c - what must hold.
 *
 * The guest: every cell that a write changes is explained by a request that has
 * not ended; what is acknowledged is on the medium, and durable where that was
 * asked for; a read returns what was there during the read.
 *
 * A backup: no guest write reaches the source (or its host gets a GO) over
 * cells whose old data are not saved, that is read by the job or, where the
 * guest's write is to fail, on the target; only data of the point in time go to
 * the target; and when the job is done, all of them are there. */
#include "small.h"

#include <errno.h>
#include <string.h>

static bool covers(const struct request *r, uint32_t cell)
{
    return is_write(r->op->opcode) && run.cells[cell] >= r->start && run.cells[cell + 1] <= r->end;
}

static bool overlaps(uint32_t a, uint32_t a_end, uint32_t b, uint32_t b_end)
{
    return a < a_end && b < b_end && (a > b ? a : b) < (a_end < b_end ? a_end : b_end);
}

static bool is_pending(const struct request *r)
{
    return r->state == REQUEST_PENDING || r->state == REQUEST_GO;
}

/* Has nothing happened yet that may make this job end early? */
static bool is_calm(const struct job *job)
{
    return !state.fault.used && !job->cancel_asked && !state.shutdown;
}

/* Old data are lost for a job: a failure, unless the job is ending anyway. */
static void lose(struct job *job, const char *what, uint32_t cell)
{
    EXPECT(!is_calm(job), "%s, at %u", what, run.cells[cell]);
    TRACE("    the job must not end as done: %s, at %u", what, run.cells[cell]);
    job->doubtful = 1;
}

/* A write that came after the start is about to change these cells. */
static void given(uint32_t start, uint32_t end, const uint8_t *tags, uint32_t by)
{
    const struct disk *source = &state.disks[0];

    for (uint32_t i = 0; i < JOBS_MAX; i++) {
        struct job *job = &state.jobs[i];
        uint32_t safe = job->hold ? job->saved_mask : job->read_mask;

        if (!job_live(job) || job->cancel_asked) {
            continue;
        }
        for (uint32_t n = 0; n < OPS_MAX; n++) {
            if ((by >> n & 1) != 0 && job->class[n] != CLASS_AFTER) {
                return;
            }
        }
        for (uint32_t cell = cell_of(start); run.cells[cell] < end; cell++) {
            if (tags[cell] != source->medium[cell] && (safe >> cell & 1) == 0) {
                lose(job,
                     job->hold ? "a guest write goes over data that are not on the target"
                               : "a guest write goes over data that were not read",
                     cell);
            }
        }
    }
}

/* No write overlaps one that has not ended. */
static void check_alone(uint32_t start, uint32_t end, const struct request *but, const char *what)
{
    const struct disk *source = &state.disks[0];

    for (uint32_t i = 0; i < source->in_flight; i++) {
        const struct queued *q = &source->queue[i];

        EXPECT(!is_write(q->opcode) || !overlaps(q->start, q->end, start, end),
               "%s %u..%u while a write of %u..%u is in flight", what, start, end, q->start,
               q->end);
    }
    for (uint32_t i = 0; i < OPS_MAX; i++) {
        const struct request *r = &state.requests[i];

        EXPECT(r == but || r->state != REQUEST_GO || !is_write(r->op->opcode) ||
                   !overlaps(r->start, r->end, start, end),
               "%s %u..%u while a bracket of %u..%u is open", what, start, end, r->start, r->end);
    }
}

/* The requests, one bit each, that want all of what they cover to become so. */
static uint32_t find_owners(const struct disk *disk, const struct queued *q)
{
    uint32_t owners = 0;

    for (uint32_t i = 0; i < OPS_MAX; i++) {
        struct request *r = &state.requests[i];
        bool fits = is_pending(r) && r->op->kind == OP_THROUGH && r->op->disk == disk->number &&
                    is_write(r->op->opcode) && overlaps(r->start, r->end, q->start, q->end) &&
                    (q->opcode == BLKREPL_OP_DISCARD) == (r->op->opcode == BLKREPL_OP_DISCARD);

        for (uint32_t cell = cell_of(q->start); fits && run.cells[cell] < q->end; cell++) {
            fits = !covers(r, cell) || q->tags[cell] == request_tag(r);
        }
        if (fits) {
            r->wrote = 1;
            owners |= 1u << i;
        }
    }
    if ((owners & (owners - 1)) == 0 && owners != 0) {
        for (uint32_t i = 0; i < OPS_MAX; i++) {
            state.requests[i].sure |= owners >> i & 1;
        }
    }
    return owners;
}

static void source_submit(const struct disk *disk, const struct queued *q)
{
    uint32_t owners;

    check_alone(q->start, q->end, NULL, "a write to");
    owners = find_owners(disk, q);
    EXPECT(q->opcode != BLKREPL_OP_DISCARD || owners != 0, "a discard that nobody asked for");
    for (uint32_t cell = cell_of(q->start); run.cells[cell] < q->end; cell++) {
        bool wanted = q->tags[cell] == disk->medium[cell];

        for (uint32_t i = 0; !wanted && i < OPS_MAX; i++) {
            wanted = (owners >> i & 1) != 0 && covers(&state.requests[i], cell);
        }
        EXPECT(wanted, "a write of %u..%u changes %u, which nobody wants changed", q->start, q->end,
               run.cells[cell]);
    }
    given(q->start, q->end, q->tags, owners);
}

/* May the backup hold this, as far as it can be told now? */
static bool may_hold(const struct job *job, uint32_t cell, uint32_t tag)
{
    for (uint32_t i = 0; i < OPS_MAX; i++) {
        const struct request *r = &state.requests[i];

        if (job->class[i] != CLASS_AFTER && covers(r, cell) && request_tag(r) == tag) {
            return true;
        }
    }
    return tag == job->start[cell];
}

static void target_submit(const struct queued *q)
{
    uint32_t align = run.world->alignment;
    uint32_t fill_end = (run.world->bytes + align - 1) / align * align;
    struct job *job = NULL;

    for (uint32_t i = 0; i < JOBS_MAX; i++) {
        job = job_live(&state.jobs[i]) ? &state.jobs[i] : job;
    }
    if (q->owner == OWNER_GUEST) {
        EXPECT(!job_holds_target(), "a guest write to the target of a job");
        EXPECT(find_owners(&state.disks[1], q) != 0, "a write to the target that nobody wants");
        return;
    }
    EXPECT(job != NULL && q->opcode != BLKREPL_OP_DISCARD, "a write to a target without a job");
    for (uint32_t cell = cell_of(q->start); run.cells[cell] < q->end; cell++) {
        if (run.cells[cell] >= run.world->bytes) {
            EXPECT(run.cells[cell] < fill_end && q->tags[cell] == TAG_ZERO,
                   "the target is written at %u, beyond the source", run.cells[cell]);
        } else if (!may_hold(job, cell, q->tags[cell])) {
            lose(job, "data that are not of the point in time go to the target", cell);
        }
    }
}

/* A job's own copies are submitted by polls.  What it reads inside the call of a
 * guest, with nothing that could have held it back before, is for the guest. */
static void note_guest_copy(const struct disk *disk, const struct queued *q)
{
    if (run.calling && state.late_used == 0 && disk->in_flight == 0) {
        for (uint32_t i = 0; i < JOBS_MAX; i++) {
            state.jobs[i].guest_mask |=
                job_live(&state.jobs[i]) && state.jobs[i].hold ? cell_mask(q->start, q->end) : 0;
        }
    }
}

void oracle_submit(struct disk *disk, struct queued *q)
{
    if (is_write(q->opcode)) {
        if (disk->number == 0) {
            source_submit(disk, q);
        } else {
            target_submit(q);
        }
    } else if (q->opcode == BLKREPL_OP_READ && q->owner == OWNER_JOB) {
        check_alone(q->start, q->end, NULL, "a job reads");
        note_guest_copy(disk, q);
    }
}

/* What was there at the start is safe now; other cells were written by a guest
 * meanwhile, and are to be copied again. */
void oracle_copied(const struct queued *q)
{
    for (uint32_t i = 0; i < JOBS_MAX; i++) {
        struct job *job = &state.jobs[i];

        for (uint32_t cell = cell_of(q->start); job_live(job) && run.cells[cell] < q->end; cell++) {
            if (may_hold(job, cell, state.disks[1].medium[cell])) {
                job->read_mask |= 1u << cell;
                job->saved_mask |= 1u << cell;
            }
        }
    }
}

void oracle_disk_done(struct disk *disk, const struct queued *q, const blkrepl_extent *extents,
                      uint32_t count)
{
    uint32_t at = q->start;

    if (q->owner != OWNER_JOB) {
        return;
    }
    for (uint32_t i = 0; i < JOBS_MAX; i++) {
        struct job *job = &state.jobs[i];

        if (!job_live(job)) {
            continue;
        }
        if (q->opcode == BLKREPL_OP_READ) {
            job->read_mask |= cell_mask(q->start, q->end);
        } else if (disk->number == 1 && is_write(q->opcode) && q->opcode != BLKREPL_OP_COPY_FROM) {
            job->saved_mask |= cell_mask(q->start, q->end);
        }
        for (uint32_t n = 0; n < count; at += (uint32_t)extents[n++].bytes) {
            if ((extents[n].flags & BLKREPL_EXTENT_ZERO) != 0) {
                job->read_mask |= cell_mask(at, at + (uint32_t)extents[n].bytes);
            }
        }
    }
}

/* The host has just learned that it may write. */
void oracle_go(const struct request *r)
{
    uint8_t tags[CELLS_MAX];

    if (is_write(r->op->opcode) && r->start < r->end) {
        memset(tags, (int)request_tag(r), sizeof tags);
        check_alone(r->start, r->end, r, "GO for");
        given(r->start, r->end, tags, 1u << r->number);
    }
}

/* ---- Backups ------------------------------------------------------------------- */

static enum class class_of(const struct request *r, uint32_t first) {
    if (r->state == REQUEST_NONE || r->op == NULL || r->op->disk != 0 || !is_write(r->op->opcode) ||
        r->start == r->end){return CLASS_AFTER;
}
if (r->state == REQUEST_OVER)
{ /* after one that is not: it has the last word */
    return r->order > first && r->result == 0 && r->wrote ? CLASS_GIVEN : CLASS_AFTER;
}
if (r->op->kind == OP_BRACKET) {
    return r->state == REQUEST_GO ? CLASS_GIVEN : CLASS_MAYBE;
}
return r->sure && r->op->opcode != BLKREPL_OP_DISCARD ? CLASS_GIVEN : CLASS_MAYBE;
}

/* The start is about to be called. */
void oracle_start(struct job *job)
{
    uint32_t first = UINT32_MAX;

    memcpy(job->start, state.disks[0].medium, sizeof job->start);
    for (uint32_t i = 0; i < OPS_MAX; i++) {
        const struct request *r = &state.requests[i];

        if (is_pending(r) && r->order < first) {
            first = r->order;
        }
    }
    for (uint32_t i = 0; i < OPS_MAX; i++) {
        job->class[i] = (uint8_t)class_of(&state.requests[i], first);
    }
    job->started = 1;
}

/* The tags that a cell of the target may have, one bit each. */
static uint32_t allowed_tags(const struct job *job, uint32_t cell)
{
    uint32_t allowed = 1u << job->start[cell];

    for (uint32_t order = 1; order <= state.accepted; order++) {
        for (uint32_t i = 0; i < OPS_MAX; i++) {
            const struct request *r = &state.requests[i];
            bool over = r->state == REQUEST_OVER;

            if (r->order != order || job->class[i] == CLASS_AFTER || !covers(r, cell) ||
                (over && !r->wrote)) {
                continue;
            }
            if (over && r->result == 0 && job->class[i] == CLASS_GIVEN &&
                r->op->opcode != BLKREPL_OP_DISCARD) {
                allowed = 0;
            }
            allowed |= 1u << request_tag(r);
        }
    }
    return allowed;
}

/* A write that may have been in flight or not is in the backup whole or not at
 * all; told where no other write of that time overlaps it. */
static void check_whole(const struct job *job, uint32_t number)
{
    const struct request *r = &state.requests[number];
    uint32_t old_cells = 0;
    uint32_t new_cells = 0;

    if (job->class[number] != CLASS_MAYBE || r->state != REQUEST_OVER || r->result != 0 ||
        r->op->opcode == BLKREPL_OP_DISCARD) {
        return;
    }
    for (uint32_t i = 0; i < OPS_MAX; i++) {
        if (i != number && job->class[i] != CLASS_AFTER &&
            overlaps(r->start, r->end, state.requests[i].start, state.requests[i].end)) {
            return;
        }
    }
    for (uint32_t cell = cell_of(r->start); run.cells[cell] < r->end; cell++) {
        uint32_t tag = state.disks[1].medium[cell];

        if (job->start[cell] != request_tag(r)) {
            old_cells += tag == job->start[cell];
            new_cells += tag == request_tag(r);
        }
    }
    EXPECT(old_cells == 0 || new_cells == 0, "the backup holds a part of a write (operation %u)",
           number + 1);
}

/* The library says that the backup is done. */
void oracle_target(struct job *job)
{
    const struct disk *target = &state.disks[1];

    EXPECT(!job->doubtful, "the backup is done, though old data were lost");
    for (uint32_t cell = 0; run.cells[cell] < run.world->bytes; cell++) {
        EXPECT((allowed_tags(job, cell) >> target->medium[cell] & 1) != 0,
               "the backup is done, but at %u the target has %u, not %u", run.cells[cell],
               target->medium[cell], job->start[cell]);
    }
    for (uint32_t i = 0; i < OPS_MAX; i++) {
        check_whole(job, i);
    }
    EXPECT(target->unstable == 0, "the backup is done and not durable");
    EXPECT(target->in_flight == 0, "the backup is done with requests in flight");
}

/* ---- The guest ------------------------------------------------------------------ */

static bool later_write(const struct request *r, uint32_t cell)
{
    for (uint32_t i = 0; i < OPS_MAX; i++) {
        const struct request *other = &state.requests[i];

        if (other->order > r->order && other->wrote && other->op->disk == r->op->disk &&
            covers(other, cell) && request_tag(other) == state.disks[r->op->disk].medium[cell]) {
            return true;
        }
    }
    return false;
}

static void check_policy(const struct request *r)
{
    const struct fault *fault = &state.fault;
    struct job *job = fault->job > 0 ? &state.jobs[fault->job - 1] : NULL;

    EXPECT(job != NULL && job->hold && is_write(r->op->opcode) && r->op->disk == 0,
           "a request failed with %d, an error of a job", r->result);
    EXPECT(!r->wrote || (r->op->kind == OP_THROUGH && r->op->opcode == BLKREPL_OP_ZEROES),
           "a request failed by policy after it was written");
    job->guests_failed++;
}

static void check_error(struct request *r)
{
    struct fault *fault = &state.fault;

    if (r->result == -ECANCELED) {
        EXPECT(r->cancelled || state.shutdown, "a request was cancelled that nobody gave up");
        return;
    }
    EXPECT(fault->used && r->result == fault->code, "a request failed with %d, nobody's error",
           r->result);
    if (fault->owner == OWNER_JOB) {
        check_policy(r);
    } else {
        EXPECT(++fault->guest_failures == 1, "two requests failed from one error");
    }
}

/* A request has ended. */
void oracle_result(struct request *r)
{
    const struct disk *disk = &state.disks[r->op->disk];

    if (r->result != 0) {
        check_error(r);
        return;
    }
    EXPECT((r->flush_mask & disk->unstable) == 0, "a flush succeeded, cells %x are not durable",
           r->flush_mask & disk->unstable);
    if (r->op->opcode != BLKREPL_OP_WRITE && r->op->opcode != BLKREPL_OP_ZEROES) {
        return;
    }
    for (uint32_t cell = cell_of(r->start); run.cells[cell] < r->end; cell++) {
        bool mine = disk->medium[cell] == request_tag(r);

        /* A job may have taken the target between the end and the callback. */
        mine = mine || (r->op->disk == 1 && job_last() != NULL);
        EXPECT(mine || later_write(r, cell), "a write is acknowledged, but %u holds %u",
               run.cells[cell], disk->medium[cell]);
        EXPECT(!mine || (r->op->flags & BLKREPL_IO_FUA) == 0 || (disk->unstable >> cell & 1) == 0 ||
                   later_write(r, cell),
               "a write with FUA is acknowledged, but %u is not durable", run.cells[cell]);
    }
}

static bool was_there(const struct request *r, uint32_t cell, uint32_t tag)
{
    for (uint32_t i = 0; i < OPS_MAX; i++) {
        if ((r->overlapped >> i & 1) != 0 && covers(&state.requests[i], cell) &&
            request_tag(&state.requests[i]) == tag) {
            return true;
        }
    }
    return tag == r->before[cell] || tag == state.disks[r->op->disk].medium[cell];
}

void oracle_read(const struct request *r, uint8_t *data)
{
    uint32_t cell = cell_of(r->start);

    for (; run.cells[cell] < r->end; cell++) {
        const uint8_t *bytes = data + run.cells[cell] - r->start;
        uint32_t tag = bytes[0] >> 4;

        EXPECT(tag < TAG_COUNT && memcmp(bytes, patterns[tag] + run.cells[cell],
                                         run.cells[cell + 1] - run.cells[cell]) == 0,
               "a read returned bytes for %u that were never there", run.cells[cell]);
        EXPECT(was_there(r, cell, tag), "a read returned %u for %u", tag, run.cells[cell]);
    }
}

void oracle_status(const struct request *r)
{
    const blkrepl_extent *extents = (const blkrepl_extent *)(const void *)r->buffer;
    uint32_t at = r->start;

    for (uint32_t i = 0; i < CELLS_MAX && extents[i].bytes > 0; i++) {
        uint32_t end = at + (uint32_t)extents[i].bytes;

        EXPECT(extents[i].bytes <= r->end - at, "the status goes beyond the range");
        for (uint32_t cell = cell_of(at);
             (extents[i].flags & BLKREPL_EXTENT_ZERO) != 0 && run.cells[cell] < end; cell++) {
            EXPECT(was_there(r, cell, TAG_ZERO), "the status says that %u is zero",
                   run.cells[cell]);
        }
        at = end;
    }
    EXPECT(at > r->start || r->start == r->end, "the status tells nothing");
}
