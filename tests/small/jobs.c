/* SPDX-License-Identifier: MIT */
/* jobs.c - backups, their verbs, and how they may end. */
#include "small.h"

#include <errno.h>
#include <string.h>

static ull number(const struct job *job)
{
    return (ull)(job - state.jobs) + 1;
}

/* The youngest job. */
struct job *job_last(void)
{
    for (uint32_t i = JOBS_MAX; i-- > 0;) {
        if (state.jobs[i].made) {
            return &state.jobs[i];
        }
    }
    return NULL;
}

/* Is it running, as far as the host can know? */
bool job_live(const struct job *job)
{
    return job->started && !job->over && job->release_count == 0;
}

bool job_holds_target(void)
{
    for (uint32_t i = 0; i < JOBS_MAX; i++) {
        const struct job *job = &state.jobs[i];

        if (job->made && !job->over && job->release_count == 0) {
            return true;
        }
    }
    return false;
}

/* It has concluded: what only a running job needs is forgotten. */
static void job_over(struct job *job)
{
    job->over = 1;
    job->read_mask = 0;
    job->saved_mask = 0;
    job->guest_mask = 0;
    memset(job->class, 0, sizeof job->class);
    memset(job->start, 0, sizeof job->start);
}

static void job_release(void *user)
{
    struct job *job = user;

    TRACE("    job %llu is released", number(job));
    EXPECT(!state.gone && job->release_count == 0, "job %llu is released twice", number(job));
    EXPECT(!job->made || job->freed, "a job is released while its handle is open");
    job->release_count++;
    if (job->made && !job->over) {
        /* Nobody is told how it went; if nothing was in its way, it is done. */
        if (job->started && !state.fault.used && !job->cancel_asked && !state.shutdown) {
            oracle_target(job);
        }
        job_over(job);
    }
}

/* ---- Create and start --------------------------------------------------------- */

static void fill_options(blkrepl_backup_options *o, const struct op *op, struct job *job)
{
    static const char *const names[JOBS_MAX] = {"first", "second"};
    const struct world *world = run.world;

    *o = (blkrepl_backup_options){.struct_size = sizeof *o, .user = job, .release = job_release};
    o->flags = world->detect ? BLKREPL_BACKUP_DETECT_ZEROES : 0;
    o->name = names[job - state.jobs];
    o->cluster_bytes = CLUSTER_BYTES;
    o->chunk_bytes_max = (uint64_t)world->chunk * CLUSTER_BYTES;
    o->reserve_bytes = CLUSTER_BYTES;
    o->workers_max = world->workers;
    o->cbw_timeout_ns = TIMEOUT_NS;
    o->on_cbw_error = (op->flags & OP_HOLD) != 0 ? BLKREPL_CBW_GUEST_WRITE_FAILS : 0;
}

void backup_apply(const struct op *op)
{
    struct job *last = job_last();
    struct job *job = last == NULL ? &state.jobs[0] : last + 1;
    bool start = (op->flags & OP_DEFER) == 0;
    bool held = job_holds_target();
    bool written = false;
    blkrepl_backup_options o;
    int answer;

    for (uint32_t i = 0; i < OPS_MAX; i++) {
        const struct request *r = &state.requests[i];

        written = written || (r->state == REQUEST_PENDING && r->op->disk == 1 &&
                              is_write(r->op->opcode) && r->start < r->end);
    }
    fill_options(&o, op, job);
    job->hold = (op->flags & OP_HOLD) != 0;
    if (start) {
        oracle_start(job);
    }
    state.may_allocate = 1;
    answer = (start ? blkrepl_backup_start : blkrepl_backup_create)(
        state.disks[0].image, state.disks[1].image, &o, &job->job);
    state.may_allocate = 0;
    TRACE("    answer %d", answer);
    if (answer < 0) {
        EXPECT(answer == -EBUSY && (held || written), "backup refused with %d: %s", answer,
               blkrepl_error_message());
        EXPECT(job->job == NULL && job->release_count == 1, "refused, but something is left");
        memset(job, 0, sizeof *job);
        return;
    }
    EXPECT(!held && job->release_count == 0, "a second job has the target");
    job->made = 1;
}

/* ---- Verbs ---------------------------------------------------------------------- */

static bool verb_legal(const struct op *op, const struct job *job)
{
    switch ((uint32_t)op->kind) {
    case OP_START: return !job->started && !job->over;
    case OP_PAUSE: return !job->over && (!job->paused || job->cancel_asked);
    case OP_RESUME: return !job->over && (job->paused || job->cancel_asked);
    default: return !job->over;
    }
}

static int verb_call(const struct op *op, struct job *job)
{
    switch ((uint32_t)op->kind) {
    case OP_START: return blkrepl_job_start(job->job);
    case OP_PAUSE: return blkrepl_job_pause(job->job);
    case OP_RESUME: return blkrepl_job_resume(job->job);
    case OP_SPEED: return blkrepl_job_set_speed(job->job, op->speed);
    default: return blkrepl_job_cancel(job->job, op->flags);
    }
}

/* An error that the library has not seen by now may come after the cancel. */
static void cancel_asked(struct job *job)
{
    job->cancel_asked = 1;
    if (!state.fault.seen) {
        state.fault.before_cancel = 0;
    }
}

void job_drop(struct job *job)
{
    blkrepl_job *handle = job->job;

    job->job = NULL;
    job->freed = 1;
    if (!job->started) {
        job_over(job); /* one that was never started is gone */
    }
    blkrepl_job_free(handle);
}

void verb_apply(const struct op *op)
{
    struct job *job = job_last();
    bool legal = verb_legal(op, job);
    int answer;

    if (op->kind == OP_FREE) {
        job_drop(job);
        return;
    }
    if (op->kind == OP_START && legal) {
        oracle_start(job);
    } else if (op->kind == OP_CANCEL && legal) {
        cancel_asked(job);
    }
    answer = verb_call(op, job);
    TRACE("    answer %d", answer);
    EXPECT(answer == (legal ? 0 : BLKREPL_ERR_STATE), "%s answered %d: %s", op->name, answer,
           blkrepl_error_message());
    if (!legal) {
        return;
    }
    if (!job->cancel_asked && (op->kind == OP_PAUSE || op->kind == OP_RESUME)) {
        job->paused = op->kind == OP_PAUSE;
    } else if (op->kind == OP_CANCEL && !job->started) {
        job_over(job);
    }
}

/* ---- How they end ----------------------------------------------------------------- */

/* Was the error one that the job has to end with? */
static bool must_fail(const struct job *job)
{
    const struct fault *fault = &state.fault;

    return fault->used && fault->owner == OWNER_JOB && fault->opcode != BLKREPL_OP_STATUS &&
           fault->job == (uint32_t)number(job) && fault->before_cancel;
}

/* With guest-write-fails an error may be that of a guest, who is told; or of one
 * that was given up while it waited. */
static bool may_survive(const struct job *job)
{
    return job->hold && state.fault.opcode != BLKREPL_OP_FLUSH &&
           (job->guests_failed > 0 || job->given_up > 0);
}

static void check_failed(const struct job *job, const blkrepl_job_info *info)
{
    const struct fault *fault = &state.fault;
    uint32_t side = fault->disk == 0 ? BLKREPL_SIDE_SOURCE : BLKREPL_SIDE_TARGET;
    bool timeout = fault->code == -ETIMEDOUT;
    bool flush = fault->opcode == BLKREPL_OP_FLUSH;
    uint64_t end = flush ? run.world->bytes : fault->end;

    EXPECT(fault->used && fault->owner == OWNER_JOB && fault->job == (uint32_t)number(job) &&
               info->error == fault->code,
           "failed with %d: %s", info->error, info->message);
    EXPECT(!job->hold || !fault->for_guest, "failed because of a copy that was the guest's");
    EXPECT(timeout ? info->error_side != 0 : info->error_side == side, "failed on side %u",
           info->error_side);
    EXPECT(timeout || (info->error_offset == fault->start &&
                       info->error_offset + info->error_bytes == end),
           "failed at %llu+%llu, the error was at %u..%u", (ull)info->error_offset,
           (ull)info->error_bytes, fault->start, fault->end);
}

static void check_concluded(struct job *job, const blkrepl_job_info *info)
{
    EXPECT(info->requests_in_flight == 0, "concluded with %u requests", info->requests_in_flight);
    switch (info->result) {
    case BLKREPL_RESULT_DONE:
        EXPECT(info->error == 0 && info->bytes_done == run.world->bytes &&
                   info->bytes_total == run.world->bytes,
               "done, with error %d and %llu bytes", info->error, (ull)info->bytes_done);
        EXPECT(!must_fail(job) || may_survive(job), "done in spite of error %d", state.fault.code);
        break;
    case BLKREPL_RESULT_FAILED:
        EXPECT(info->error < 0 && info->message[0] != '\0', "failed without a reason");
        check_failed(job, info);
        break;
    case BLKREPL_RESULT_CANCELLED:
        EXPECT(info->error == -ECANCELED && (job->cancel_asked || state.shutdown),
               "cancelled, but nobody asked");
        EXPECT(!must_fail(job) || may_survive(job), "cancelled in spite of error %d",
               state.fault.code);
        break;
    default: small_fail("concluded with result %u", info->result);
    }
}

static void check_running(struct job *job, const blkrepl_job_info *info)
{
    uint64_t saved = 0;

    for (uint32_t cell = 0; run.cells[cell] < run.world->bytes; cell++) {
        saved += (job->saved_mask >> cell & 1) != 0 ? run.cells[cell + 1] - run.cells[cell] : 0;
    }
    EXPECT(info->state == (job->started ? BLKREPL_JOB_RUNNING : BLKREPL_JOB_CREATED),
           "job %llu is in state %u", number(job), info->state);
    EXPECT(info->result == 0 && info->error == 0, "a result before the end");
    EXPECT(info->bytes_done >= job->bytes_done && info->bytes_done <= saved,
           "%llu bytes done, %llu are on the target", (ull)info->bytes_done, (ull)saved);
    EXPECT(info->bytes_done < info->bytes_total || info->bytes_total == 0, "all done too early");
    job->bytes_done = info->bytes_done;
}

/* Look at every job; nothing is left to poll for. */
void jobs_check(void)
{
    for (uint32_t i = 0; i < JOBS_MAX; i++) {
        struct job *job = &state.jobs[i];
        blkrepl_job_info info = {.struct_size = sizeof info};
        int answer;

        if (job->job == NULL) {
            continue;
        }
        answer = blkrepl_job_query(job->job, &info);
        EXPECT(answer == 0 && info.user == job && info.bytes_total == run.world->bytes,
               "query answered %d", answer);
        EXPECT(job->id == 0 || info.id == job->id, "the id has changed");
        job->id = info.id;
        EXPECT(info.error_count == job->error_events, "%llu errors, %u events",
               (ull)info.error_count, job->error_events);
        EXPECT(((info.flags & BLKREPL_JOB_FLAG_PAUSED) != 0) == (job->paused && !job->over),
               "paused: %u", info.flags);
        EXPECT((info.state == BLKREPL_JOB_CONCLUDED) == (job->over != 0), "state %u, JOB_DONE: %u",
               info.state, job->done_events);
        if (job->over && !job->checked) {
            job->checked = 1;
            job->bytes_done = 0;
            EXPECT(job->done_events == 1, "%u times JOB_DONE", job->done_events);
            check_concluded(job, &info);
        } else if (!job->over) {
            check_running(job, &info);
        }
    }
}

/* An error that has had its effect is forgotten, so that worlds become the same
 * again. */
void fault_check(void)
{
    struct fault *fault = &state.fault;
    const struct job *job = fault->job > 0 ? &state.jobs[fault->job - 1] : NULL;

    fault->seen = fault->used;
    if (fault->owner == OWNER_GUEST ? fault->guest_failures == 1 : job != NULL && job->over) {
        memset(fault, 0, sizeof *fault);
        fault->used = 1;
        fault->seen = 1;
        fault->told = 1;
    }
}

/* Nothing can happen any more. */
void jobs_check_end(void)
{
    for (uint32_t i = 0; i < JOBS_MAX; i++) {
        const struct job *job = &state.jobs[i];
        bool waits = job->paused && !job->cancel_asked;

        EXPECT(!job->made || job->over || !job->started || waits, "job %llu goes on for ever",
               number(job));
        EXPECT(!job->freed || job->release_count == 1 || waits, "job %llu was freed, not released",
               number(job));
    }
}

/* ---- Events ------------------------------------------------------------------------ */

void job_event(const blkrepl_event *event)
{
    struct job *job = event->user;

    TRACE("    event %u of job %llu, error %d", event->type, number(job), event->error);
    EXPECT(job != NULL && job->job != NULL && (job->id == 0 || event->object_id == job->id),
           "an event of no known job");
    EXPECT(job->done_events == 0, "an event after JOB_DONE");
    if (event->type == BLKREPL_EVENT_JOB_ERROR) {
        EXPECT(state.fault.used && event->error == state.fault.code, "JOB_ERROR tells %d",
               event->error);
        job->error_events += (uint32_t)event->count;
    }
    if (event->type != BLKREPL_EVENT_JOB_DONE) {
        return;
    }
    job->done_events++;
    if (event->error == 0) {
        EXPECT(job->started && !job->over, "done, but not started");
        oracle_target(job);
    }
    job_over(job);
}
