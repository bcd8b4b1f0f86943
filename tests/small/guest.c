/* SPDX-License-Identifier: MIT */
/* guest.c - the operations of a guest, through the library and beside it. */
#include "small.h"

#include <errno.h>
#include <string.h>

bool is_write(uint32_t opcode)
{
    return opcode == BLKREPL_OP_WRITE || opcode == BLKREPL_OP_ZEROES ||
           opcode == BLKREPL_OP_DISCARD || opcode == BLKREPL_OP_COPY_FROM;
}

uint32_t request_tag(const struct request *r)
{
    return r->op->opcode == BLKREPL_OP_WRITE    ? TAG_OP + r->number
           : r->op->opcode == BLKREPL_OP_ZEROES ? TAG_ZERO
                                                : TAG_JUNK;
}

static bool is_pending(const struct request *r)
{
    return r->state == REQUEST_PENDING || r->state == REQUEST_GO;
}

/* Requests and brackets that have not ended; those of all disks if `disk` is 2. */
uint32_t requests_pending(uint32_t disk)
{
    uint32_t count = 0;

    for (uint32_t i = 0; i < OPS_MAX; i++) {
        const struct request *r = &state.requests[i];

        count += is_pending(r) && (disk == 2 || r->op->disk == disk);
    }
    return count;
}

/* The same of a lane. */
uint32_t requests_pending_on(uint32_t lane)
{
    uint32_t count = 0;

    for (uint32_t i = 0; i < OPS_MAX; i++) {
        count += is_pending(&state.requests[i]) && state.requests[i].op->lane == lane;
    }
    return count;
}

/* ---- Callbacks ------------------------------------------------------------------ */

static void request_over(struct request *r, int result)
{
    r->state = REQUEST_OVER;
    r->result = result;
    oracle_result(r);
    bitmap_ended(r);
    if (r->buffer != NULL) {
        if (result == 0 && r->op->opcode == BLKREPL_OP_READ) {
            oracle_read(r, r->buffer);
        } else if (result == 0) {
            oracle_status(r);
        }
        arena_buffer_free(r->buffer);
        r->buffer = NULL;
    }
}

static void request_fn(void *user, int result)
{
    struct request *r = user;

    TRACE("    operation %u (%s) is called back: %d", r->number + 1, r->op->name, result);
    EXPECT(polls_lane(r->op->lane) && !state.gone, "a callback outside of a poll of its lane");
    EXPECT(r->state == REQUEST_PENDING && r->fn_count == 0 && r->release_count == 0,
           "operation %u is called back a second time, or after its end", r->number + 1);
    r->fn_count++;
    if (r->op->kind == OP_BRACKET && result == 0) {
        EXPECT(!r->cancelled, "GO for a bracket that was given up");
        r->state = REQUEST_GO;
        r->wrote = 1;
        oracle_go(r);
    } else {
        EXPECT(!r->cancelled || result == -ECANCELED, "a bracket that was given up got %d", result);
        request_over(r, result);
    }
}

static void request_release(void *user)
{
    struct request *r = user;

    EXPECT(!state.gone && r->release_count == 0, "operation %u is released twice", r->number + 1);
    r->release_count++;
}

/* ---- Calls ---------------------------------------------------------------------- */

static uint32_t clip(const struct request *r, uint32_t position)
{
    uint32_t bytes = r->op->disk == 0 ? run.world->bytes : run.world->target_bytes;

    return position < bytes ? position : bytes;
}

/* Everything that the oracle wants to know of a request that begins. */
static struct request *request_new(const struct op *op)
{
    struct request *r = &state.requests[state.ops_used];
    const struct disk *disk = &state.disks[op->disk];

    r->op = op;
    r->number = state.ops_used;
    r->start = clip(r, op->start);
    r->end = clip(r, op->end);
    r->order = ++state.accepted;
    r->state = REQUEST_PENDING;
    if (op->opcode == BLKREPL_OP_READ || op->opcode == BLKREPL_OP_STATUS) {
        memcpy(r->before, disk->medium, sizeof r->before);
        r->buffer = arena_buffer(r->number, op->opcode == BLKREPL_OP_READ
                                                ? r->end - r->start
                                                : CELLS_MAX * sizeof(blkrepl_extent));
    } else if (op->opcode == BLKREPL_OP_FLUSH) {
        r->flush_mask = disk->unstable;
    }
    for (uint32_t i = 0; i < OPS_MAX; i++) {
        struct request *other = &state.requests[i];

        if (is_pending(other) && other->op->disk == op->disk) {
            r->overlapped |= is_write(other->op->opcode) ? 1u << i : 0;
            other->overlapped |= is_write(op->opcode) ? 1u << r->number : 0;
        }
    }
    return r;
}

/* The memory of the request, where it has any: in two pieces if it is long. */
static uint32_t fill_iov(struct request *r)
{
    uint8_t *memory =
        r->op->opcode == BLKREPL_OP_WRITE ? patterns[request_tag(r)] + r->start : r->buffer;
    uint32_t bytes = r->end - r->start;
    uint32_t first = bytes > CLUSTER_BYTES / 2 ? CLUSTER_BYTES / 2 : bytes;

    r->iov[0] = (blkrepl_iovec){.base = memory, .len = first};
    r->iov[1] = (blkrepl_iovec){.base = memory + first, .len = bytes - first};
    return first < bytes ? 2 : 1;
}

static int through_call(struct request *r, const blkrepl_completion *done)
{
    blkrepl_image *image = state.disks[r->op->disk].image;
    uint32_t lane = r->op->lane;
    uint64_t bytes = r->end - r->start;

    switch (r->op->opcode) {
    case BLKREPL_OP_READ:
        return blkrepl_image_read(image, lane, r->start, r->iov, fill_iov(r), 0, done);
    case BLKREPL_OP_WRITE:
        return blkrepl_image_write(image, lane, r->start, r->iov, fill_iov(r), r->op->flags, done);
    case BLKREPL_OP_ZEROES:
        return blkrepl_image_write_zeroes(image, lane, r->start, bytes, r->op->flags, done);
    case BLKREPL_OP_DISCARD: return blkrepl_image_discard(image, lane, r->start, bytes, 0, done);
    case BLKREPL_OP_FLUSH: return blkrepl_image_flush(image, lane, done);
    default:
        return blkrepl_image_status(image, lane, r->start, bytes,
                                    (blkrepl_extent *)(void *)r->buffer, CELLS_MAX, done);
    }
}

static int bracket_call(struct request *r, const blkrepl_completion *go)
{
    blkrepl_bracket what = {
        .struct_size = sizeof what, .opcode = r->op->opcode, .lane = r->op->lane};
    int answer;

    if (r->op->opcode != BLKREPL_OP_FLUSH) {
        what.offset = r->start;
        what.bytes = r->end - r->start;
    }
    answer = blkrepl_write_begin(state.disks[0].image, &what, go, &r->token);
    EXPECT((r->token != 0) == (answer >= 0), "begin answered %d and left a token of %llu", answer,
           (ull)r->token);
    return answer;
}

/* A request was refused: was that right, and is nothing left of it? */
static void refused(struct request *r, int answer, uint32_t others, bool held)
{
    bool full = others == run.world->requests_max;
    bool busy = held && r->op->disk == 1 && is_write(r->op->opcode);

    EXPECT((answer == -EAGAIN && full) || (answer == -EBUSY && busy), "refused with %d: %s", answer,
           blkrepl_error_message());
    EXPECT(r->fn_count == 0 && r->release_count == 1, "refused, but called back");
    state.room_expected |= (uint32_t)(answer == -EAGAIN) << r->op->lane;
    if (r->buffer != NULL) {
        arena_buffer_free(r->buffer);
        r->buffer = NULL;
    }
    r->state = REQUEST_OVER;
    r->result = answer;
    r->fn_count = 1;
}

static void guest_apply(const struct op *op)
{
    uint32_t others = requests_pending_on(op->lane);
    bool held = job_holds_target();
    struct request *r = request_new(op);
    blkrepl_completion done = {.fn = request_fn, .user = r, .release = request_release};
    int answer;

    run.calling = true;
    answer = op->kind == OP_BRACKET ? bracket_call(r, &done) : through_call(r, &done);
    run.calling = false;
    TRACE("    answer %d", answer);
    if (answer < 0) {
        refused(r, answer, others, held);
        return;
    }
    EXPECT(others < run.world->requests_max, "accepted, though requests_max are in use");
    EXPECT(op->disk == 0 || !is_write(op->opcode) || !held,
           "a write to a job's target is accepted");
    if (op->kind == OP_BRACKET && answer == 0) {
        EXPECT(r->fn_count == 0 && r->release_count == 1, "GO at once, but called back");
        r->fn_count = 1;
        r->state = REQUEST_GO;
        r->wrote = 1;
        oracle_go(r);
    } else {
        EXPECT(answer == (op->kind == OP_BRACKET ? BLKREPL_WAIT : 0), "answered %d", answer);
    }
}

bool op_enabled(const struct op *op)
{
    const struct job *job = job_last();

    if (state.shutdown) {
        return false;
    }
    switch (op->kind) {
    case OP_THROUGH:
    case OP_BRACKET:
    case OP_CLOSE: return state.disks[op->disk].image != NULL;
    case OP_BACKUP:
        return state.disks[0].image != NULL && state.disks[1].image != NULL &&
               !state.jobs[JOBS_MAX - 1].made;
    case OP_START:
    case OP_PAUSE:
    case OP_RESUME:
    case OP_CANCEL:
    case OP_SPEED:
    case OP_FREE: return job != NULL && job->job != NULL;
    case OP_SHUTDOWN: return true;
    case OP_FREEZE:
    case OP_ABDICATE:
    case OP_RECLAIM:
    case OP_DISABLE:
    case OP_ENABLE:
    case OP_CLEAR: return state.bitmap.handle != NULL;
    }
    return false;
}

static void close_apply(const struct op *op)
{
    struct disk *disk = &state.disks[op->disk];
    blkrepl_image *image = disk->image;

    disk->image = NULL;
    blkrepl_image_close(image);
}

void op_apply(const struct op *op)
{
    TRACE("operation %u: %s", state.ops_used + 1, op->name);
    switch (op->kind) {
    case OP_THROUGH:
    case OP_BRACKET: guest_apply(op); break;
    case OP_BACKUP: backup_apply(op); break;
    case OP_CLOSE: close_apply(op); break;
    case OP_SHUTDOWN: world_shut_down(); break;
    case OP_START:
    case OP_PAUSE:
    case OP_RESUME:
    case OP_CANCEL:
    case OP_SPEED:
    case OP_FREE: verb_apply(op); break;
    case OP_FREEZE:
    case OP_ABDICATE:
    case OP_RECLAIM:
    case OP_DISABLE:
    case OP_ENABLE:
    case OP_CLEAR: bitmap_apply(op); break;
    }
    state.ops_used++;
}

/* ---- Brackets ------------------------------------------------------------------- */

/* The host has written by itself, or tried to. */
void bracket_end(struct request *r, enum outcome outcome)
{
    int result = outcome == OUTCOME_OK ? 0 : -2999;
    int answer;

    if (result != 0) {
        struct queued q = {.owner = OWNER_GUEST, .opcode = r->op->opcode};

        disk_fault(&state.disks[0], &q, result);
    }
    if (outcome != OUTCOME_FAIL && is_write(r->op->opcode) && r->start < r->end) {
        disk_land(&state.disks[0], r->start, r->end, request_tag(r));
    } else if (outcome == OUTCOME_OK && r->op->opcode == BLKREPL_OP_FLUSH) {
        state.disks[0].unstable = 0;
    }
    request_over(r, result);
    answer = blkrepl_write_end(state.ctx, r->token, result, NULL, 0, NULL);
    EXPECT(answer == 0, "end answered %d: %s", answer, blkrepl_error_message());
}

void bracket_drop(struct request *r)
{
    bool go = r->state == REQUEST_GO;
    int answer;

    if (go) {
        r->wrote = 0;
        r->state = REQUEST_OVER;
        r->result = -ECANCELED;
    } else {
        r->cancelled = 1;
        for (uint32_t i = 0; i < JOBS_MAX; i++) {
            state.jobs[i].given_up += job_live(&state.jobs[i]);
        }
    }
    answer = blkrepl_write_cancel(state.ctx, r->token);
    EXPECT(answer == (go ? 0 : BLKREPL_WAIT), "cancel answered %d in state %u", answer, r->state);
}

/* Does it wait for an earlier write of the guest's? */
static bool waits_for_guest(const struct request *r)
{
    for (uint32_t i = 0; i < OPS_MAX; i++) {
        const struct request *other = &state.requests[i];

        if (is_pending(other) && other->order < r->order && is_write(other->op->opcode) &&
            other->op->disk == r->op->disk && other->start < r->end && r->start < other->end) {
            return true;
        }
    }
    return false;
}

static bool is_at_disk(const struct request *r)
{
    const struct disk *disk = &state.disks[r->op->disk];
    bool there = disk->in_flight == run.world->depth;

    for (uint32_t i = 0; i < disk->in_flight; i++) {
        there = there || disk->queue[i].owner == OWNER_GUEST;
    }
    return there;
}

/* Has the job an end before it, whatever happens? */
static bool is_ending(uint32_t number)
{
    const struct job *job = &state.jobs[number];
    const struct fault *fault = &state.fault;

    return job->cancel_asked || state.shutdown ||
           (!job->hold && fault->owner == OWNER_JOB && fault->opcode != BLKREPL_OP_STATUS &&
            fault->job == number + 1);
}

/* A job that was cancelled, has failed or is over holds nobody: who has not
 * ended is at its disk, or waits for another guest, or for room at the disk. */
static void check_nobody_held(void)
{
    for (uint32_t i = 0; i < JOBS_MAX; i++) {
        if (job_live(&state.jobs[i]) && !is_ending(i)) {
            return;
        }
    }
    for (uint32_t i = 0; i < OPS_MAX; i++) {
        const struct request *r = &state.requests[i];

        EXPECT(r->state != REQUEST_PENDING || waits_for_guest(r) || is_at_disk(r),
               "operation %u waits, though no job runs", i + 1);
    }
}

/* Is what has ended told completely?  What nothing depends on is forgotten, so
 * that worlds become the same again. */
void requests_check(void)
{
    bool live = false;
    uint32_t kept = 0;

    check_nobody_held();
    for (uint32_t i = 0; i < JOBS_MAX; i++) {
        live = live || job_live(&state.jobs[i]);
    }
    for (uint32_t i = 0; i < OPS_MAX; i++) {
        struct request *r = &state.requests[i];
        bool matters = false;

        for (uint32_t n = 0; live && n < JOBS_MAX; n++) {
            matters = matters || state.jobs[n].class[i] != CLASS_AFTER;
        }
        if (r->state == REQUEST_OVER && r->op != NULL) {
            EXPECT(r->fn_count == 1 && r->release_count == 1,
                   "operation %u is over with %u callbacks and %u releases", i + 1, r->fn_count,
                   r->release_count);
        }
        kept += r->state != REQUEST_NONE && r->op != NULL && (is_pending(r) || matters);
    }
    if (kept == 0) {
        for (uint32_t i = 0; i < OPS_MAX; i++) {
            uint32_t over = state.requests[i].state;

            memset(&state.requests[i], 0, sizeof state.requests[i]);
            state.requests[i].state = over;
        }
        state.accepted = 0;
    }
}
