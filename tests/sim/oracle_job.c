/* SPDX-License-Identifier: MIT */
/* oracle_job.c - what a job tells of itself, in queries and events, is true.
 *
 * Progress is compared with what is on the target, counters with what the guest has
 * done, errors with what the disks have answered, the condition with what the host
 * has asked for. */
#include "sim.h"

#include <errno.h>
#include <string.h>

typedef unsigned long long ull;

static ull number(const struct backup *backup)
{
    return (ull)(backup - sim.backups);
}

/* ---- Errors --------------------------------------------------------------------- */

static bool target_op(uint32_t op)
{
    return op == BLKREPL_OP_WRITE || op == BLKREPL_OP_ZEROES;
}

/* Has the disk answered such a request with an error?  code 0: with any. */
static bool has_failed(const struct backup *b, const struct disk *disk, const blkrepl_event *error)
{
    for (uint32_t i = 0; i < disk->failure_count && i < FAILURES_MAX; i++) {
        const struct failure *f = &disk->failures[i];
        bool flush = f->op == BLKREPL_OP_FLUSH && error->offset == 0 && !job_is_verify(b) &&
                     (error->bytes == (b->partial ? oracle_sync_bytes(b) : b->source->bytes) ||
                      job_sync(b) == BLKREPL_SYNC_NONE);
        bool source = f->op == BLKREPL_OP_READ;
        bool spill = disk == b->spill && (source || target_op(f->op));
        bool target = job_is_verify(b) ? source : target_op(f->op);

        if ((error->error == 0 || f->code == error->error) &&
            (f->op != BLKREPL_OP_ZEROES || f->code != -ENOTSUP) &&
            (flush ||
             ((disk == b->source ? source : target || spill) && f->offset == error->offset &&
              f->bytes == error->bytes) ||
             (job_is_verify(b) && source &&
              overlaps(f->offset, f->bytes, error->offset, error->bytes)))) {
            return true;
        }
    }
    return disk->failure_count > FAILURES_MAX;
}

/* May a guest write of that range have waited for too long? */
static bool has_timed_out(const struct backup *b, const blkrepl_event *error)
{
    uint64_t timeout = b->options.cbw_timeout_ns == 0 ? 30 * SECOND_NS : b->options.cbw_timeout_ns;
    bool found = false;

    for (uint32_t i = 0; !found && i < sim.request_count; i++) {
        const struct request *r = &sim.requests[i];

        found = r->disk == b->source && is_write(r->op) && r->offset == error->offset &&
                r->bytes == error->bytes;
    }
    return found && (error->error == 0 || error->error == -ETIMEDOUT) &&
           timeout != BLKREPL_FOREVER &&
           (sim.options.clock_jumps || sim.last_now_ns - b->start_ns >= timeout);
}

static void check_error(const struct backup *b, const blkrepl_event *error, const char *where)
{
    const struct disk *disk = error->side == BLKREPL_SIDE_SOURCE  ? b->source
                              : error->side == BLKREPL_SIDE_SPILL ? b->spill
                                                                  : b->target;

    EXPECT(error->side >= BLKREPL_SIDE_SOURCE && error->side <= BLKREPL_SIDE_SPILL && disk != NULL,
           "%s of backup %llu: side %u", where, number(b), error->side);
    if (b->through != NULL || b->through2 != NULL) {
        return;
    }
    EXPECT(has_failed(b, disk, error) || has_timed_out(b, error) ||
               (job_is_verify(b) && (error->error == -ETIMEDOUT || error->error == 0)),
           "%s of backup %llu: error %d of side %u at %llu+%llu, which no disk answered", where,
           number(b), error->error, error->side, (ull)error->offset, (ull)error->bytes);
}

/* How many requests may have failed for the job, by now.  What reads a snapshot may
 * fail without its disks. */
static uint64_t most_errors(const struct backup *b)
{
    uint64_t most = b->source->failed_reads - b->failed_reads;

    if (b->through != NULL || b->through2 != NULL) {
        return UINT64_MAX;
    }
    if (job_is_verify(b)) {
        /* A guest that waits for too long is let go, and its chunk given up. */
        return most + b->target->failed_reads - b->failed_writes + sim.request_count;
    }
    most += b->target->failed_writes - b->failed_writes;
    most += b->target->failed_others - b->failed_others;
    most += b->spill != NULL ? b->spill->failure_count - b->spill_failed : 0;
    return most + (b->options.cbw_timeout_ns != BLKREPL_FOREVER ? b->wait_count : 0);
}

static void check_errors(const struct backup *b, const blkrepl_job_info *info)
{
    blkrepl_event error = {.side = info->error_side,
                           .offset = info->error_offset,
                           .bytes = info->error_bytes,
                           .error = info->result == BLKREPL_RESULT_FAILED ? info->error : 0};

    EXPECT(info->source_errors + info->target_errors + info->spill_errors == info->error_count,
           "backup %llu: %llu errors, by side %llu, %llu, %llu", number(b), (ull)info->error_count,
           (ull)info->source_errors, (ull)info->target_errors, (ull)info->spill_errors);
    EXPECT(info->error_count <= (b->started ? most_errors(b) : 0),
           "backup %llu: %llu errors, at most %llu have happened", number(b),
           (ull)info->error_count, (ull)most_errors(b));
    if (info->error_count == 0) {
        EXPECT(info->error_side == 0 && info->error_offset == 0 && info->error_bytes == 0 &&
                   info->message[0] == '\0',
               "backup %llu: an error without an error: %s", number(b), info->message);
        return;
    }
    EXPECT(info->message[0] != '\0', "backup %llu: an error without a message", number(b));
    if (info->error_count != b->told.error_count || info->result != b->told.result) {
        check_error(b, &error, "the query");
    }
}

/* ---- Counters ------------------------------------------------------------------- */

static bool grows(const blkrepl_job_info *was, const blkrepl_job_info *is)
{
    return is->bytes_done >= was->bytes_done && is->zero_bytes >= was->zero_bytes &&
           is->guest_copies_count >= was->guest_copies_count &&
           is->guest_copies_bytes >= was->guest_copies_bytes &&
           is->guest_waits_count >= was->guest_waits_count && is->error_count >= was->error_count &&
           is->offloaded_bytes >= was->offloaded_bytes && is->failed_bytes >= was->failed_bytes &&
           is->spilled_bytes_total >= was->spilled_bytes_total &&
           is->differing_bytes >= was->differing_bytes;
}

static uint32_t writes_in_flight(const struct disk *disk)
{
    uint32_t count = 0;

    for (uint32_t i = 0; i < disk->in_flight; i++) {
        count += is_write(disk->queue[i].op);
    }
    return count;
}

/* The last byte counts when the target is durable; what it is of counts before. */
static void check_counters(const struct backup *b, const blkrepl_job_info *info)
{
    EXPECT(grows(&b->told, info), "backup %llu: a counter has become smaller", number(b));
    uint64_t skipped = 0;

    EXPECT(info->bytes_total <= b->source->bytes && info->bytes_done <= info->bytes_total,
           "backup %llu: %llu of %llu bytes done", number(b), (ull)info->bytes_done,
           (ull)info->bytes_total);
    EXPECT(b->partial || info->bytes_total == b->source->bytes ||
               (job_is_verify(b) && info->result == BLKREPL_RESULT_DONE) ||
               (!job_is_verify(b) && job_sync(b) == BLKREPL_SYNC_NONE) || b->bitmap != NULL,
           "backup %llu is of %llu bytes", number(b), (ull)info->bytes_total);
    if (job_is_verify(b)) {
        return;
    }
    if (b->partial && info->bytes_total == b->source->bytes) {
        skipped = b->source->bytes - oracle_sync_bytes(b);
    }
    if (job_sync(b) == BLKREPL_SYNC_NONE) {
        skipped = b->source->bytes; /* what was discarded */
    }
    EXPECT(info->bytes_done == 0 || info->bytes_done <= b->saved_bytes + skipped,
           "backup %llu: %llu bytes done, %llu are on the target", number(b), (ull)info->bytes_done,
           (ull)b->saved_bytes);
    EXPECT(
        info->spilled_bytes <= info->spilled_bytes_total &&
            (b->spill != NULL || info->spilled_bytes_total == 0) &&
            (b->options.spill_bytes_max == 0 || info->spilled_bytes <= b->options.spill_bytes_max),
        "backup %llu: %llu bytes are spilled, %llu in all", number(b), (ull)info->spilled_bytes,
        (ull)info->spilled_bytes_total);
    EXPECT(info->bytes_total == 0 || info->bytes_done < info->bytes_total ||
               info->result == BLKREPL_RESULT_DONE,
           "backup %llu: all bytes done, result %u", number(b), info->result);
    EXPECT(info->zero_bytes <= info->bytes_done && info->guest_copies_bytes <= info->bytes_done,
           "backup %llu: %llu bytes done, %llu of them zero, %llu for the guest", number(b),
           (ull)info->bytes_done, (ull)info->zero_bytes, (ull)info->guest_copies_bytes);
    EXPECT(info->offloaded_bytes <= b->copied_bytes &&
               (b->spill != NULL || /* what was spilled for a guest counts at once */
                info->offloaded_bytes + info->guest_copies_bytes <= info->bytes_done + 1),
           "backup %llu: %llu of %llu bytes offloaded, its target has copied %llu", number(b),
           (ull)info->offloaded_bytes, (ull)info->bytes_done, (ull)b->copied_bytes);
    EXPECT(info->guest_copies_count <= b->touched_count &&
               info->guest_copies_bytes <= b->touched_bytes &&
               (info->guest_copies_count == 0
                    ? info->guest_copies_bytes == 0
                    : info->guest_copies_bytes > 0 || info->bytes_done == 0),
           "backup %llu: %llu copies of %llu bytes for the guest, who has touched %llu of %llu",
           number(b), (ull)info->guest_copies_count, (ull)info->guest_copies_bytes,
           (ull)b->touched_count, (ull)b->touched_bytes);
    EXPECT(info->guest_waits_count <= b->wait_count,
           "backup %llu: %llu guest writes have waited, %llu may have", number(b),
           (ull)info->guest_waits_count, (ull)b->wait_count);
}

/* ---- Condition ------------------------------------------------------------------ */

/* The state that it may be in, and the flags that go with it. */
static void check_state(const struct backup *b, const blkrepl_job_info *info)
{
    uint32_t state = info->state;
    bool none = !job_is_verify(b) && job_sync(b) == BLKREPL_SYNC_NONE;
    bool waits = b->group != 0 || (b->job_flags & BLKREPL_JOB_MANUAL_FINALIZE) != 0;
    bool concluded = state == BLKREPL_JOB_CONCLUDED;
    bool finalizable = (info->flags & BLKREPL_JOB_FLAG_FINALIZABLE) != 0;

    EXPECT(concluded ||
               (b->started ? state == BLKREPL_JOB_RUNNING || (state == BLKREPL_JOB_READY && none) ||
                                 (state == BLKREPL_JOB_PENDING && waits)
                           : state == BLKREPL_JOB_CREATED),
           "backup %llu is in state %u", number(b), state);
    EXPECT(!finalizable || state == BLKREPL_JOB_PENDING, "backup %llu is finalizable in state %u",
           number(b), state);
    EXPECT(state != BLKREPL_JOB_PENDING || b->group != 0 || b->unsure || b->verbs > 0 ||
               finalizable || (info->flags & BLKREPL_JOB_FLAG_CANCELLING) != 0,
           "backup %llu is pending, not finalizable", number(b));
    EXPECT((info->flags & BLKREPL_JOB_FLAG_COMPLETING) == 0 || b->complete_asked,
           "backup %llu is completing", number(b));
    EXPECT((info->flags & BLKREPL_JOB_FLAG_DISMISSED) == 0 ||
               (concluded && (b->dismissed || b->verbs > 0 || sim.shutdown)),
           "backup %llu is dismissed in state %u", number(b), state);
    EXPECT(b->told.state <= state || b->told.state == 0, "backup %llu goes from state %u to %u",
           number(b), b->told.state, state);
}

/* An error has paused it: does its policy say so? */
static void check_pause(const struct backup *b, const blkrepl_job_info *info)
{
    uint64_t errors[] = {0, info->source_errors, info->target_errors, info->spill_errors};
    bool found = false;

    if ((info->flags & BLKREPL_JOB_FLAG_ERROR_PAUSED) == 0) {
        return;
    }
    for (uint32_t side = 1; side <= BLKREPL_SIDE_SPILL; side++) {
        found = found || (errors[side] > 0 && (b->on_error[side] == BLKREPL_ON_ERROR_STOP ||
                                               b->on_error[side] == BLKREPL_ON_ERROR_ENOSPC));
    }
    EXPECT(found && info->state != BLKREPL_JOB_PENDING && info->state != BLKREPL_JOB_CONCLUDED,
           "backup %llu is paused by an error in state %u, %llu/%llu errors", number(b),
           info->state, (ull)info->source_errors, (ull)info->target_errors);
    sim.counts.stops += (b->told.flags & BLKREPL_JOB_FLAG_ERROR_PAUSED) == 0;
}

static void check_condition(const struct backup *b, const blkrepl_job_info *info)
{
    bool paused = (info->flags & BLKREPL_JOB_FLAG_PAUSED) != 0;
    bool cancelling = (info->flags & BLKREPL_JOB_FLAG_CANCELLING) != 0;
    bool concluded = info->state == BLKREPL_JOB_CONCLUDED;
    const char *name = b->options.name;

    check_state(b, info);
    check_pause(b, info);
    EXPECT(concluded || (info->result == 0 && info->error == 0 && !b->done),
           "backup %llu: a result before the end", number(b));
    EXPECT(info->id == b->job_id &&
               (name != NULL
                    ? strcmp(info->name, name) == 0
                    : strncmp(info->name, job_is_verify(b) ? "verify-" : "backup-", 7) == 0),
           "backup %llu is called %s", number(b), info->name);
    EXPECT(!cancelling || (!concluded && (b->cancel_asked || sim.shutdown || b->group != 0)),
           "backup %llu is being cancelled", number(b));
    EXPECT(b->unsure || b->verbs > 0 ||
               ((cancelling || concluded || !b->cancel_asked) &&
                paused == (b->paused && info->state < BLKREPL_JOB_PENDING) &&
                info->speed_bytes_per_sec == b->speed_bytes_per_sec),
           "backup %llu: paused %d, cancelling %d, speed %llu", number(b), paused, cancelling,
           (ull)info->speed_bytes_per_sec);
    EXPECT(info->state == BLKREPL_JOB_RUNNING || info->state == BLKREPL_JOB_READY ||
               info->requests_in_flight == 0,
           "backup %llu: %u requests in state %u", number(b), info->requests_in_flight,
           info->state);
    EXPECT(concluded || !b->started || job_is_verify(b) ||
               job_sync(b) == BLKREPL_SYNC_NONE || /* a snapshot discards by itself */
               info->requests_in_flight >= writes_in_flight(b->target),
           "backup %llu: %u requests, its target has %u writes", number(b),
           info->requests_in_flight, writes_in_flight(b->target));
}

static uint64_t zeroes_in(const uint8_t *bytes, uint64_t count)
{
    uint64_t zeroes = 0;

    for (uint64_t i = 0; i < count; i++) {
        zeroes += bytes[i] == 0;
    }
    return zeroes;
}

static void check_done(struct backup *b, const blkrepl_job_info *info)
{
    EXPECT(info->error == 0 && b->started, "done with error %d", info->error);
    EXPECT(info->bytes_done == info->bytes_total ||
               (job_is_verify(b) && (b->verify.flags & BLKREPL_VERIFY_FIRST) != 0),
           "done with %llu of %llu bytes", (ull)info->bytes_done, (ull)info->bytes_total);
    EXPECT(info->failed_bytes == 0, "backup %llu is done, %llu bytes were given up", number(b),
           (ull)info->failed_bytes);
    EXPECT(info->spilled_bytes == 0, "backup %llu is done, %llu bytes are still spilled", number(b),
           (ull)info->spilled_bytes);
    if (b->checked) {
        return;
    }
    if (job_is_verify(b)) {
        b->checked = true;
        oracle_verify_done(b, info);
        return;
    }
    oracle_backup_done(b);
    EXPECT(!oracle_backup_is_kept(b) || info->zero_bytes == 0 ||
               info->zero_bytes <= zeroes_in(b->target->medium, b->source->bytes),
           "backup %llu: %llu bytes are said to be zero", number(b), (ull)info->zero_bytes);
}

/* No policy helps: nobody knows what is lost. */
static bool flush_failed(const struct disk *disk)
{
    for (uint32_t i = 0; i < disk->failure_count && i < FAILURES_MAX; i++) {
        if (disk->failures[i].op == BLKREPL_OP_FLUSH) {
            return true;
        }
    }
    return disk->failure_count > FAILURES_MAX;
}

/* It may not fail for an error that its policy wants it to stop at, if there were no
 * copies for guests, which have a policy of their own. */
static void check_policy(const struct backup *b, const blkrepl_job_info *info)
{
    uint32_t side = info->error_side;
    uint32_t policy = side <= BLKREPL_SIDE_SPILL ? b->on_error[side] : 0;
    bool space = info->error == -ENOSPC || info->error == -EDQUOT;

    EXPECT(b->touched_count > 0 || b->through != NULL || b->through2 != NULL ||
               flush_failed(b->target) || (job_is_verify(b) && info->error == -ETIMEDOUT) ||
               (policy != BLKREPL_ON_ERROR_STOP && (policy != BLKREPL_ON_ERROR_ENOSPC || !space)),
           "backup %llu has failed with %d of side %u, policy %u", number(b), info->error, side,
           policy);
}

static void check_failed(const struct backup *b, const blkrepl_job_info *info)
{
    bool odd = sim.options.contract_percent > 0;

    EXPECT(info->error < 0 && (info->error != -ECANCELED || odd) && info->error_count > 0,
           "failed with error %d, %llu errors", info->error, (ull)info->error_count);
    check_policy(b, info);
    sim.counts.ignored += b->told.state != BLKREPL_JOB_CONCLUDED && info->failed_bytes > 0;
}

static void check_concluded(struct backup *b, const blkrepl_job_info *info)
{
    bool first = b->told.state != BLKREPL_JOB_CONCLUDED;

    EXPECT(!first || !b->started || job_is_verify(b) || b->adopted ||
               info->error_count >= b->target->failed_writes - b->failed_writes,
           "backup %llu: %llu errors, its target has answered %u", number(b),
           (ull)info->error_count, b->target->failed_writes - b->failed_writes);
    switch (info->result) {
    case BLKREPL_RESULT_DONE: check_done(b, info); break;
    case BLKREPL_RESULT_FAILED: check_failed(b, info); break;
    case BLKREPL_RESULT_CANCELLED:
        EXPECT(info->error == -ECANCELED && (b->cancel_asked || sim.shutdown || b->group != 0),
               "cancelled with error %d, asked %d", info->error, b->cancel_asked);
        break;
    default: sim_fail("concluded with result %u", info->result);
    }
}

static void check(struct backup *b, const blkrepl_job_info *info)
{
    check_condition(b, info);
    check_counters(b, info);
    check_errors(b, info);
    if (info->state == BLKREPL_JOB_CONCLUDED) {
        check_concluded(b, info);
        if (b->frozen) {
            oracle_sync_concluded(b);
        }
    }
    b->told = *info;
}

/* A query may submit, and what is called then may change what it has told. */
static void look(struct backup *b)
{
    for (int tries = 0; tries < 3 && b->job != NULL && b->job_id != 0 && !b->starting; tries++) {
        uint64_t seq = sim.seq;
        blkrepl_job_info info = backup_query(b);

        if (sim.seq == seq) {
            check(b, &info);
            return;
        }
    }
}

/* Look at every job. */
void oracle_job_watch(void)
{
    for (uint32_t i = 0; i < sim.backup_count; i++) {
        look(&sim.backups[i]);
    }
}

/* ---- Events --------------------------------------------------------------------- */

static void count_done(const struct backup *b, const blkrepl_job_info *info)
{
    bool done = info->result == BLKREPL_RESULT_DONE && !job_is_verify(b);

    sim.counts.verifies += info->result == BLKREPL_RESULT_DONE && job_is_verify(b);
    sim.counts.through += done && b->through != NULL;
    if (done && (b->bitmap != NULL || job_sync(b) == BLKREPL_SYNC_NONE)) {
        sim.counts.syncs[job_sync(b) - BLKREPL_SYNC_FULL]++;
    }
}

/* Its state may change without a verb, and not only to its end. */
static bool changes_by_itself(const struct backup *b)
{
    bool stops = false;

    for (uint32_t side = 1; side <= BLKREPL_SIDE_SPILL; side++) {
        stops = stops || b->on_error[side] >= BLKREPL_ON_ERROR_STOP;
    }
    return stops || b->job_flags != 0 || b->group != 0 ||
           (!job_is_verify(b) && job_sync(b) == BLKREPL_SYNC_NONE);
}

static void event_done(struct backup *b, const blkrepl_event *event, const blkrepl_job_info *info)
{
    EXPECT(info->state == BLKREPL_JOB_CONCLUDED && event->count == 1, "JOB_DONE in state %u",
           info->state);
    EXPECT(event->error == info->error, "JOB_DONE says %d, query %d", event->error, info->error);
    EXPECT(b->missed || b->error_events == info->error_count,
           "backup %llu: %llu errors, %llu in events", number(b), (ull)info->error_count,
           (ull)b->error_events);
    EXPECT(b->unsure || b->verbs > 0 || b->missed || changes_by_itself(b) ||
               b->state_events == b->state_changes,
           "backup %llu: %llu changes of its state, %llu in events", number(b),
           (ull)b->state_changes, (ull)b->state_events);
    b->result = event->error;
    b->done = true;
    oracle_bitmap_job_over(b);
    count_done(b, info);
    sim.counts.backups_done += info->result == BLKREPL_RESULT_DONE;
    sim.counts.backups_failed += info->result == BLKREPL_RESULT_FAILED;
    sim.counts.backups_cancelled += info->result == BLKREPL_RESULT_CANCELLED;
}

void backup_event(const blkrepl_event *event)
{
    struct backup *b = event->user;
    blkrepl_job_info info;

    EXPECT(b != NULL && !b->freed && event->object_id == b->job_id, "an event of no known job");
    EXPECT(!b->done && event->count > 0, "an event of backup %llu after JOB_DONE", number(b));
    look(b);
    if (b->freed) {
        return; /* by a call from inside the query */
    }
    info = backup_query(b);
    if (event->type == BLKREPL_EVENT_JOB_STATE) {
        b->state_events += event->count;
        EXPECT(b->unsure || b->verbs > 0 || changes_by_itself(b) ||
                   b->state_events <= b->state_changes,
               "backup %llu: %llu changes of its state, %llu in events", number(b),
               (ull)b->state_changes, (ull)b->state_events);
    } else if (event->type == BLKREPL_EVENT_JOB_ERROR) {
        b->error_events += event->count;
        EXPECT(event->error < 0 && b->error_events <= info.error_count,
               "backup %llu: JOB_ERROR %d, %llu of %llu", number(b), event->error,
               (ull)b->error_events, (ull)info.error_count);
        check_error(b, event, "JOB_ERROR");
    } else {
        EXPECT(event->type == BLKREPL_EVENT_JOB_DONE, "event %u of a job", event->type);
        event_done(b, event, &info);
    }
}
