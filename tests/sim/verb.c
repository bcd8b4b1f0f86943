/* SPDX-License-Identifier: MIT */
/* verb.c - the verbs of jobs, at any time, and what they answer.
 *
 * The table in job.h says which verb is good in which state; the state is asked for
 * before and after each call. */
#include "sim.h"

#include <errno.h>
#include <string.h>

typedef unsigned long long ull;

static ull number(const struct backup *backup)
{
    return (ull)(backup - sim.backups);
}

/* ---- Start ------------------------------------------------------------------------ */

static bool is_free(const struct bitmap *b)
{
    return b == NULL || (b->used && b->calling == 0 && b->handle_count > 0);
}

bool job_may_start(const struct backup *b)
{
    return is_free(b->bitmap) && is_free(b->differing);
}

/* A job is about to take this bitmap. */
static void freeze_one(struct backup *b, struct bitmap *bitmap)
{
    oracle_bitmap_begin(bitmap);
    oracle_bitmap_instant();
    if (bitmap->now.frozen || bitmap->now.loading || bitmap->now.bytes != b->source->bytes) {
        b->start_code = bitmap->now.frozen ? -EBUSY : BLKREPL_ERR_STATE;
    } else {
        oracle_bitmap_apply(&(struct deed){.call = CALL_BITMAP_FREEZE, .bitmap = bitmap});
    }
}

/* What this job freezes: a verify job the one that it fills. */
static struct bitmap *frozen_by(const struct backup *b)
{
    return job_is_verify(b) ? b->differing : b->bitmap;
}

void job_freeze(struct backup *b)
{
    struct bitmap *bitmap = frozen_by(b);
    struct chance_outer outer = chance_jobs_begin();

    b->start_code = 0;
    if (bitmap != NULL) {
        freeze_one(b, bitmap);
    }
    if (job_is_verify(b) && b->bitmap != NULL) {
        oracle_bitmap_check(b->bitmap);
        b->start_code = b->bitmap->now.loading || b->bitmap->now.bytes != b->source->bytes
                            ? BLKREPL_ERR_STATE
                            : b->start_code;
    }
    chance_jobs_end(outer);
}

void job_frozen(struct backup *b, bool started, bool sure)
{
    struct bitmap *bitmap = frozen_by(b);
    struct chance_outer outer;

    EXPECT(!started || !sure || b->start_code == 0,
           "backup %llu has started, its bitmap is not free", number(b));
    b->start_code = sure ? b->start_code : 1;
    if (bitmap == NULL) {
        return;
    }
    outer = chance_jobs_begin();
    if (started) {
        bitmap->now.job = b;
        b->frozen = true;
    } else {
        oracle_bitmap_refused(bitmap);
    }
    oracle_bitmap_settle(bitmap, sure);
    chance_jobs_end(outer);
}

static int job_start(struct backup *b)
{
    bool idle = sim.depth == 0 && sim.reenter_depth == 0 &&
                b->source->in_flight < b->source->info.queue_depth;
    uint32_t requests = sim.request_count;
    uint64_t reentries = sim.counts.reentries;
    int answer;

    if (b->started || b->starting || b->group != 0 || !job_may_start(b)) {
        b->start_code = BLKREPL_ERR_STATE;
        return b->started || b->starting || b->group != 0 ? blkrepl_job_start(b->job)
                                                          : BLKREPL_ERR_STATE;
    }
    job_freeze(b);
    oracle_backup_start(b);
    answer = blkrepl_job_start(b->job);
    b->started = answer == 0;
    job_frozen(b, answer == 0, sim.counts.reentries == reentries);
    oracle_backup_started(b, requests, idle);
    b->state_changes += answer == 0;
    return answer;
}

/* ---- Verbs -------------------------------------------------------------------------- */

static bool verb_legal(const struct backup *b, enum verb verb, const blkrepl_job_info *info)
{
    uint32_t held = BLKREPL_JOB_FLAG_PAUSED | BLKREPL_JOB_FLAG_ERROR_PAUSED;
    bool live = info->state == BLKREPL_JOB_CREATED || info->state == BLKREPL_JOB_RUNNING ||
                info->state == BLKREPL_JOB_READY;
    bool ending = (info->flags & BLKREPL_JOB_FLAG_CANCELLING) != 0;
    uint32_t flags = info->flags;

    switch (verb) {
    case VERB_START: return info->state == BLKREPL_JOB_CREATED && b->group == 0;
    case VERB_PAUSE: return live && ((flags & BLKREPL_JOB_FLAG_PAUSED) == 0 || ending);
    case VERB_RESUME: return live && ((flags & held) != 0 || ending);
    case VERB_SPEED: return live;
    case VERB_CANCEL: return info->state != BLKREPL_JOB_CONCLUDED;
    case VERB_COMPLETE:
        return info->state == BLKREPL_JOB_READY &&
               ((flags & (held | BLKREPL_JOB_FLAG_COMPLETING)) == 0 || ending);
    case VERB_FINALIZE:
        return info->state == BLKREPL_JOB_PENDING && (flags & BLKREPL_JOB_FLAG_FINALIZABLE) != 0;
    case VERB_DISMISS:
        return info->state == BLKREPL_JOB_CONCLUDED && (flags & BLKREPL_JOB_FLAG_DISMISSED) == 0;
    case VERB_COUNT: break;
    }
    return false;
}

static enum call call_of(enum verb verb)
{
    return verb <= VERB_CANCEL ? (enum call)(CALL_START + (uint32_t)verb)
                               : (enum call)(CALL_JOB_COMPLETE + (uint32_t)(verb - VERB_COMPLETE));
}

static int cancel(struct backup *b)
{
    uint32_t flags = rng_chance(50) ? BLKREPL_CANCEL_FORCE : 0;

    b->cancel_asked = true;
    return blkrepl_job_cancel(b->job, flags);
}

static int verb_call(struct backup *backup, enum verb verb, uint64_t speed)
{
    inside_calls(call_of(verb));
    switch (verb) {
    case VERB_START: return job_start(backup);
    case VERB_PAUSE: return blkrepl_job_pause(backup->job);
    case VERB_RESUME: return blkrepl_job_resume(backup->job);
    case VERB_SPEED: return blkrepl_job_set_speed(backup->job, speed);
    case VERB_CANCEL: return cancel(backup);
    case VERB_COMPLETE: backup->complete_asked = true; return blkrepl_job_complete(backup->job);
    case VERB_FINALIZE: backup->finalize_asked = true; return blkrepl_job_finalize(backup->job);
    case VERB_DISMISS: return blkrepl_job_dismiss(backup->job);
    case VERB_COUNT: break;
    }
    return 0;
}

/* What it should have changed. */
static void verb_done(struct backup *backup, enum verb verb, uint64_t speed, bool cancelling)
{
    if (verb == VERB_SPEED) {
        backup->speed_bytes_per_sec = speed;
    } else if ((verb == VERB_PAUSE || verb == VERB_RESUME) && !cancelling) {
        backup->paused = verb == VERB_PAUSE;
        backup->state_changes++;
    } else if (verb == VERB_DISMISS) {
        backup->dismissed = true;
        sim.counts.dismissed++;
    }
    sim.counts.finalized += verb == VERB_FINALIZE;
}

static bool start_refused(const struct backup *b, int answer)
{
    return (answer == -EBUSY || answer == BLKREPL_ERR_STATE) &&
           (b->start_code == answer || b->start_code == 1);
}

/* What the verb itself changes; and an error may pause the job meanwhile. */
#define OWN_FLAGS                                                                                  \
    (uint32_t)(BLKREPL_JOB_FLAG_PAUSED | BLKREPL_JOB_FLAG_ERROR_PAUSED |                           \
               BLKREPL_JOB_FLAG_COMPLETING | BLKREPL_JOB_FLAG_DISMISSED)

static void check_answer(const struct backup *b, enum verb verb, int answer,
                         const blkrepl_job_info *before, const blkrepl_job_info *after)
{
    bool legal = verb_legal(b, verb, before);
    bool same = after->state == before->state &&
                (after->flags & ~OWN_FLAGS) == (before->flags & ~OWN_FLAGS);
    bool error = before->error_count != after->error_count ||
                 ((before->flags ^ after->flags) & BLKREPL_JOB_FLAG_ERROR_PAUSED) != 0;

    EXPECT(answer == 0 || answer == BLKREPL_ERR_STATE ||
               (verb == VERB_START && start_refused(b, answer)),
           "verb %d answered %d", (int)verb, answer);
    if (error && (verb != VERB_RESUME || answer == 0)) {
        return; /* an error has paused it in between */
    }
    EXPECT(!same || (answer == 0) == legal || verb == VERB_START,
           "verb %d answered %d in state %u/%u", (int)verb, answer, before->state, before->flags);
    EXPECT(answer != 0 || legal || verb_legal(b, verb, after), "verb %d accepted in state %u/%u",
           (int)verb, before->state, before->flags);
    EXPECT(verb != VERB_START || answer == 0 || !legal || start_refused(b, answer),
           "start answered %d in state %u", answer, before->state);
    EXPECT(verb != VERB_CANCEL || answer != 0 || before->state != BLKREPL_JOB_CREATED ||
               after->state == BLKREPL_JOB_CONCLUDED,
           "a job that was never started is still there after cancel");
}

/* The state may change inside the call, so either of two answers may be right. */
void verb_do(struct backup *backup, enum verb verb)
{
    uint64_t reentries = sim.counts.reentries;
    blkrepl_job_info before = backup_query(backup);
    bool was_asked[] = {backup->cancel_asked, backup->complete_asked, backup->finalize_asked};
    uint64_t speed = rng_chance(50) ? 0 : draw_speed();
    blkrepl_job_info after;
    int answer;

    if (backup->job == NULL) {
        return; /* freed by a call from inside the query */
    }
    EVENT("backup %n: %v, in state %s, flags %n", number(backup), verb, before.state, before.flags);
    sim.counts.verbs[verb][before.state]++;
    backup->verbs++;
    answer = verb_call(backup, verb, speed);
    backup->verbs--;
    if (verb == VERB_CANCEL && answer == 0 && before.state == BLKREPL_JOB_CREATED) {
        group_left(backup);
    }
    if (sim.counts.reentries != reentries || backup->job == NULL) {
        backup->unsure = true; /* calls from inside this one have changed what is right */
        backup->dismissed |= verb == VERB_DISMISS && answer == 0;
        return;
    }
    if (answer == 0) {
        verb_done(backup, verb, speed, (before.flags & BLKREPL_JOB_FLAG_CANCELLING) != 0);
    }
    after = backup_query(backup);
    if (answer != 0) {
        backup->cancel_asked = verb == VERB_CANCEL ? was_asked[0] : backup->cancel_asked;
        backup->complete_asked = verb == VERB_COMPLETE ? was_asked[1] : backup->complete_asked;
        backup->finalize_asked = verb == VERB_FINALIZE ? was_asked[2] : backup->finalize_asked;
    }
    if (answer == -ESHUTDOWN && sim.shutdown && verb != VERB_CANCEL && verb != VERB_DISMISS) {
        return;
    }
    check_answer(backup, verb, answer, &before, &after);
    if (verb == VERB_FINALIZE && answer == 0) {
        oracle_group_finalized(backup);
    }
}

/* ---- Handles -------------------------------------------------------------------------- */

/* Is it paused?  What is called inside the query may change that. */
static void learn_paused(struct backup *backup)
{
    uint64_t seq;

    do {
        seq = sim.seq;
        backup->paused = (backup_query(backup).flags & BLKREPL_JOB_FLAG_PAUSED) != 0;
    } while (sim.seq != seq && backup->job != NULL);
}

void job_drop(struct backup *backup)
{
    blkrepl_job *job = backup->job;

    EVENT("backup %n: its handle is freed", number(backup));
    learn_paused(backup);
    if (backup->job == NULL) { /* freed by a call from inside the query */
        return;
    }
    if (!backup->started && !backup->starting) {
        group_left(backup);
    }
    backup->job = NULL;
    backup->freed = true;
    backup->missed = true;
    sim.counts.backups_dropped += !backup->done;
    inside_calls(CALL_FREE);
    blkrepl_job_free(job);
}

/* A handle that was found: whose is it?  `reentries`: as many there were before; a call
 * from inside the one that found it may have dismissed it since. */
static struct backup *owner_of(blkrepl_job *job, uint64_t reentries)
{
    blkrepl_job_info info = {.struct_size = sizeof info};
    struct backup *b;
    int answer = blkrepl_job_query(job, &info);

    EXPECT(answer == 0, "a job that was found cannot be asked: %d", answer);
    b = info.user;
    EXPECT(b >= sim.backups && b < sim.backups + sim.backup_count && b->release_count == 0 &&
               (!b->dismissed || b->verbs > 0 || sim.counts.reentries != reentries),
           "a job was found that is gone");
    EXPECT(b->job_name[0] == '\0' || (strcmp(b->job_name, info.name) == 0 && b->job_id == info.id),
           "job %s has another name", info.name);
    return b;
}

/* The host has none any more, and takes it. */
static bool adopt(struct backup *b, blkrepl_job *job)
{
    if (b->job != NULL || !b->created || b->calling || !b->freed || b->job_id == 0) {
        return false;
    }
    EVENT("backup %n: a handle again", number(b));
    b->adopted = true;
    b->job = job;
    b->freed = false;
    b->unsure = true;
    sim.counts.found++;
    return true;
}

/* It surely is to be found. */
static bool is_listed(const struct backup *b)
{
    return b->created && b->job != NULL && !b->dismissed && b->verbs == 0 && b->job_id != 0 &&
           b->release_count == 0 && !sim.shutdown;
}

static void find_job(struct backup *b)
{
    uint64_t reentries = sim.counts.reentries;
    bool listed = is_listed(b);
    char name[sizeof b->job_name];
    blkrepl_job *job = NULL;
    int answer;

    memcpy(name, b->job_name, sizeof name);
    if (name[0] == '\0') {
        return;
    }
    inside_calls(CALL_JOB_FIND);
    answer = blkrepl_job_find(sim.ctx, name, &job);
    EXPECT((answer == 0) == (job != NULL) && (answer == 0 || answer == -ENOENT), "find answered %d",
           answer);
    EXPECT(answer == 0 || !listed || sim.counts.reentries != reentries, "job %s is not found",
           name);
    if (answer == 0 && !adopt(owner_of(job, reentries), job)) {
        blkrepl_job_free(job);
    }
}

/* All jobs, in the order of their ids. */
static void list_jobs(void)
{
    uint64_t reentries = sim.counts.reentries;
    uint64_t last = 0;
    uint32_t expected = 0;
    uint32_t count = 0;
    blkrepl_job *job = NULL;

    for (uint32_t i = 0; i < sim.backup_count; i++) {
        expected += is_listed(&sim.backups[i]);
    }
    inside_calls(CALL_JOB_NEXT);
    while (blkrepl_job_next(sim.ctx, last, &job) == 0) {
        struct backup *b = owner_of(job, reentries);

        EXPECT(b->job_id == 0 || b->job_id > last, "next told job %llu after %llu", (ull)b->job_id,
               (ull)last);
        last = b->job_id == 0 ? UINT64_MAX - 1 : b->job_id;
        count += is_listed(b);
        blkrepl_job_free(job);
    }
    EXPECT(job == NULL &&
               (count == expected || last == UINT64_MAX - 1 || sim.counts.reentries != reentries),
           "%u jobs are listed, there are %u", count, expected);
}

/* ---- What to do next -------------------------------------------------------------------- */

struct backup *job_pick(void)
{
    for (uint32_t tries = 0; tries < 3 && sim.backup_count > 0; tries++) {
        struct backup *b = &sim.backups[rng_below(sim.backup_count)];

        if (b->job != NULL && b->created && !b->starting) {
            return b;
        }
    }
    return NULL;
}

void verb_act(void)
{
    static const uint8_t verbs[] = {VERB_START,  VERB_START,  VERB_START,  VERB_PAUSE, VERB_PAUSE,
                                    VERB_RESUME, VERB_RESUME, VERB_RESUME, VERB_SPEED, VERB_CANCEL};

    struct backup *backup;

    if (sim.backup_count == 0) {
        return;
    }
    backup = &sim.backups[rng_below(sim.backup_count)];
    if (backup->job == NULL) {
        return;
    }
    if (rng_chance(backup->done ? 30 : 2)) {
        job_drop(backup);
    } else {
        verb_do(backup, (enum verb)verbs[rng_below(10)]);
    }
}

/* For the matrix: one call about a job that the host has. */
void job_call(enum call call)
{
    struct backup *backup;

    if (call == CALL_JOB_NEXT) {
        list_jobs();
        return;
    }
    if (call == CALL_JOB_FIND) {
        if (sim.backup_count > 0) {
            find_job(&sim.backups[rng_below(sim.backup_count)]);
        }
        return;
    }
    backup = job_pick();
    if (backup == NULL) {
        return;
    }
    if (call == CALL_JOB_QUERY) {
        inside_calls(CALL_JOB_QUERY);
        backup_query(backup);
    } else if (sim_without(FAULT_VERBS)) {
        return;
    } else if (call == CALL_FREE) {
        job_drop(backup);
    } else {
        verb_do(backup, call >= CALL_JOB_COMPLETE
                            ? (enum verb)(VERB_COMPLETE + (uint32_t)(call - CALL_JOB_COMPLETE))
                            : (enum verb)(call - CALL_START));
    }
}

/* ---- Until all have ended --------------------------------------------------------------- */

/* May it stay where it is until the host does something? */
static bool may_stay(const struct backup *b)
{
    bool stops = false;

    for (uint32_t side = 1; side <= BLKREPL_SIDE_SPILL; side++) {
        stops = stops || b->on_error[side] == BLKREPL_ON_ERROR_STOP ||
                b->on_error[side] == BLKREPL_ON_ERROR_ENOSPC;
    }
    return stops || b->job_flags != 0 || b->group != 0 || b->complete_asked ||
           (!job_is_verify(b) && job_sync(b) == BLKREPL_SYNC_NONE);
}

/* One of its group is nobody's any more, and may be paused for ever. */
static bool waits_for_lost(const struct backup *b)
{
    for (uint32_t i = 0; b->group != 0 && i < sim.backup_count; i++) {
        const struct backup *other = &sim.backups[i];

        if (other->group == b->group && other->freed && other->release_count == 0) {
            return true;
        }
    }
    return false;
}

/* A job that was paused and whose handle was then freed goes on for ever. */
bool job_over(const struct backup *b)
{
    if (!b->created) {
        return true;
    }
    if (b->freed) {
        return b->release_count > 0 || b->paused || may_stay(b);
    }
    if (b->done || (!b->started && !b->cancel_asked) || waits_for_lost(b)) {
        return true;
    }
    return b->missed && b->job != NULL &&
           backup_query((struct backup *)b).state == BLKREPL_JOB_CONCLUDED;
}

static bool drive(struct backup *b)
{
    blkrepl_job_info info = backup_query(b);
    bool held = (info.flags & (BLKREPL_JOB_FLAG_ERROR_PAUSED | BLKREPL_JOB_FLAG_PAUSED)) != 0;

    if ((info.flags & BLKREPL_JOB_FLAG_CANCELLING) != 0) {
        return false;
    }
    if (held && (b->through != NULL || b->through2 != NULL)) {
        verb_do(b, VERB_CANCEL); /* what it reads may be gone for ever */
    } else if (info.state == BLKREPL_JOB_PENDING &&
               (info.flags & BLKREPL_JOB_FLAG_FINALIZABLE) != 0) {
        verb_do(b, rng_chance(80) ? VERB_FINALIZE : VERB_CANCEL);
    } else if ((info.state == BLKREPL_JOB_RUNNING || info.state == BLKREPL_JOB_READY) && held) {
        verb_do(b, VERB_RESUME);
    } else if (info.state == BLKREPL_JOB_READY && (info.flags & BLKREPL_JOB_FLAG_COMPLETING) == 0) {
        verb_do(b, rng_chance(60) ? VERB_COMPLETE : VERB_CANCEL);
    } else {
        return false;
    }
    return true;
}

bool job_drive(void)
{
    bool moved = false;

    for (uint32_t i = 0; i < sim.backup_count && !sim.shutdown && sim.quiet; i++) {
        struct backup *b = &sim.backups[i];

        if (b->job != NULL && b->started && !b->done && may_stay(b)) {
            moved = drive(b) || moved;
        }
    }
    return moved;
}

/* Whatever the host holds up it lets go on. */
void job_resume_all(void)
{
    for (uint32_t i = 0; i < sim.backup_count; i++) {
        struct backup *b = &sim.backups[i];
        bool live;

        if (b->freed && b->release_count == 0 && may_stay(b)) {
            find_job(b);
        }
        live = b->job != NULL && b->started && !b->done;
        if (live && (backup_query(b).flags & BLKREPL_JOB_FLAG_PAUSED) != 0) {
            verb_do(b, VERB_RESUME);
        }
        if (live && rng_chance(50)) {
            blkrepl_job_set_speed(b->job, 0);
            b->unsure = true;
        }
    }
}
