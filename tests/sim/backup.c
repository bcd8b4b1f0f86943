/* SPDX-License-Identifier: MIT */
/* jobs.c - backups: their options, their verbs, and what is known of them. */
#include "sim.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

typedef unsigned long long ull;

static ull number(const struct backup *backup)
{
    return (ull)(backup - sim.backups);
}

static void backup_release(void *user)
{
    struct backup *backup = user;

    EVENT("backup %n is released", number(backup));
    EXPECT(!sim.gone && backup->release_count == 0, "backup %llu: a wrong release", number(backup));
    EXPECT(!backup->created || backup->freed, "backup %llu released before its handle was",
           number(backup));
    backup->release_count++;
}

static blkrepl_job_info query(struct backup *backup)
{
    blkrepl_job_info info = {.struct_size = sizeof info};
    int answer = blkrepl_job_query(backup->job, &info);

    EXPECT(answer == 0 && info.user == backup && info.kind == BLKREPL_KIND_BACKUP,
           "query of backup %llu answered %d", number(backup), answer);
    return info;
}

/* ---- Start ------------------------------------------------------------------ */

static void draw_options(struct backup *backup)
{
    blkrepl_backup_options *o = &backup->options;
    uint64_t cluster = rng_chance(65) ? 4096 : UINT64_C(4096) << rng_below(5);

    *o = (blkrepl_backup_options){.struct_size = sizeof *o, .user = backup};
    o->release = backup_release;
    o->flags = rng_chance(40) ? BLKREPL_BACKUP_DETECT_ZEROES : 0;
    o->cluster_bytes = rng_chance(8) ? 0 : cluster;
    o->chunk_bytes_max = rng_chance(30) ? 0 : cluster * rng_between(1, 8);
    o->reserve_bytes = rng_chance(2) ? 0 : cluster * rng_between(1, rng_chance(50) ? 2 : 40);
    o->workers_max = rng_chance(30) ? 0 : (uint32_t)rng_between(1, 8);
    o->on_cbw_error = (uint32_t)rng_below(3);
    o->speed_bytes_per_sec = rng_chance(20) ? rng_between(5000, 5000000) : 0;
    if (rng_chance(40)) {
        o->cbw_timeout_ns = rng_chance(30) ? BLKREPL_FOREVER : rng_between(1, 5 * SECOND_NS);
    }
    if (sim_without(FAULT_TUNING)) {
        o->workers_max = 0;
        o->speed_bytes_per_sec = 0;
        o->cbw_timeout_ns = 0;
        o->chunk_bytes_max = 0;
        o->reserve_bytes = cluster * 40;
    }
    if (o->cluster_bytes == 0) {
        o->chunk_bytes_max = 0;
        o->reserve_bytes = rng_chance(90) ? 65536 * rng_between(1, 4) : o->reserve_bytes;
    }
}

static bool target_in_use(const struct backup *but, const struct disk *target)
{
    for (uint32_t i = 0; i < sim.backup_count; i++) {
        const struct backup *b = &sim.backups[i];

        if (b != but && b->target == target &&
            (b->calling || (b->created && (b->freed ? b->release_count == 0 : !b->done)))) {
            return true;
        }
    }
    return false;
}

static void check_alone(const struct backup *but)
{
    for (uint32_t i = 0; i < sim.backup_count; i++) {
        struct backup *b = &sim.backups[i];

        EXPECT(b == but || b->target != but->target || b->job == NULL ||
                   query(b).state == BLKREPL_JOB_CONCLUDED,
               "two jobs have one target");
    }
}

static int create(struct backup *backup, bool start)
{
    bool may_allocate = sim.may_allocate;
    bool idle = sim.depth == 0 && sim.reenter_depth == 0 &&
                backup->source->in_flight < backup->source->info.queue_depth;
    uint32_t requests = sim.request_count;
    int answer;

    if (start) {
        oracle_backup_start(backup);
    }
    sim.may_allocate = true;
    sim.alloc_failed = false;
    backup->calling = true;
    answer = (start ? blkrepl_backup_start : blkrepl_backup_create)(
        backup->source->image, backup->target->image, &backup->options, &backup->job);
    sim.may_allocate = may_allocate;
    backup->calling = false;
    EVENT("backup %n of disk %n to disk %n, started %n: %r", number(backup), backup->source->index,
          backup->target->index, start, (ull)-answer);
    if (answer == 0) {
        backup->created = true;
        if (backup->job != NULL) { /* not freed by a call from inside this one */
            backup->job_id = query(backup).id;
        }
        check_alone(backup);
        if (start) {
            oracle_backup_started(backup, requests, idle);
        }
        return 0;
    }
    backup->started = false;
    EXPECT(backup->job == NULL && backup->release_count == 1, "a failed create: %u releases",
           backup->release_count);
    return answer;
}

static void check_refusal(const struct backup *backup, int answer)
{
    const struct sim_options *o = &sim.options;
    bool small = o->context.job_requests_max > 0 || o->context.memory_bytes_max > 0;

    EXPECT((answer == -ENOMEM && (small || sim.alloc_failed)) ||
               (answer == -ESHUTDOWN && sim.shutdown) ||
               (answer == -EBUSY && target_in_use(backup, backup->target)),
           "create of backup %llu answered %d: %s", number(backup), answer,
           blkrepl_error_message());
}

static void backup_watch(void);

/* Create a backup, and mostly start it. */
static void backup_act(void)
{
    struct disk *source = &sim.disks[rng_below(sim.options.sources)];
    struct disk *target = &sim.disks[rng_between(sim.options.sources, sim.options.disks - 1)];
    bool start = rng_chance(70);
    struct backup *backup;
    int answer;

    backup_watch(); /* who is done with the target is compared before it changes */
    if (sim.backup_count == sim.options.backups || source->image == NULL || target->image == NULL) {
        return;
    }
    backup = &sim.backups[sim.backup_count++];
    memset(backup, 0, sizeof *backup);
    backup->source = source;
    backup->target = target;
    draw_options(backup);
    for (int tries = 0; tries < 8; tries++) {
        backup->release_count = 0;
        answer = create(backup, start);
        if (answer == 0) {
            return;
        }
        check_refusal(backup, answer);
        if (answer != -ENOMEM || !sim.alloc_failed || source->image == NULL ||
            target->image == NULL) {
            return;
        }
    }
}

static int job_start(struct backup *backup)
{
    bool idle = sim.depth == 0 && sim.reenter_depth == 0 &&
                backup->source->in_flight < backup->source->info.queue_depth;
    uint32_t requests = sim.request_count;
    int answer;

    if (backup->started || backup->starting) {
        return blkrepl_job_start(backup->job);
    }
    oracle_backup_start(backup);
    answer = blkrepl_job_start(backup->job);
    oracle_backup_started(backup, requests, idle);
    backup->started = answer == 0;
    return answer;
}

/* ---- Verbs ------------------------------------------------------------------ */

enum verb {
    VERB_START,
    VERB_PAUSE,
    VERB_RESUME,
    VERB_SPEED,
    VERB_CANCEL,
    VERB_COUNT
};

static bool verb_legal(enum verb verb, const blkrepl_job_info *info)
{
    bool live = info->state == BLKREPL_JOB_CREATED || info->state == BLKREPL_JOB_RUNNING;
    bool paused = (info->flags & BLKREPL_JOB_FLAG_PAUSED) != 0;
    bool ending = (info->flags & BLKREPL_JOB_FLAG_CANCELLING) != 0;

    switch (verb) {
    case VERB_START: return info->state == BLKREPL_JOB_CREATED;
    case VERB_PAUSE: return live && (!paused || ending);
    case VERB_RESUME: return live && (paused || ending);
    case VERB_SPEED: return live;
    case VERB_CANCEL: return info->state != BLKREPL_JOB_CONCLUDED;
    case VERB_COUNT: break;
    }
    return false;
}

static int verb_call(struct backup *backup, enum verb verb)
{
    switch (verb) {
    case VERB_START: return job_start(backup);
    case VERB_PAUSE: return blkrepl_job_pause(backup->job);
    case VERB_RESUME: return blkrepl_job_resume(backup->job);
    case VERB_SPEED:
        return blkrepl_job_set_speed(backup->job, rng_chance(50) ? 0 : rng_between(5000, 5000000));
    case VERB_CANCEL:
        backup->cancel_asked = true;
        return blkrepl_job_cancel(backup->job, rng_chance(50) ? BLKREPL_CANCEL_FORCE : 0);
    case VERB_COUNT: break;
    }
    return 0;
}

/* The state may change inside the call, so either of two answers may be right. */
static void verb_do(struct backup *backup, enum verb verb)
{
    uint64_t reentries = sim.counts.reentries;
    blkrepl_job_info before = query(backup);
    bool was_asked = backup->cancel_asked;
    blkrepl_job_info after;
    bool legal;
    int answer;

    EVENT("backup %n: %v, in state %s, flags %n", number(backup), verb, before.state, before.flags);
    answer = verb_call(backup, verb);
    if (sim.counts.reentries != reentries || backup->job == NULL) {
        return; /* calls from inside this one have changed what is right */
    }
    after = query(backup);
    if (verb == VERB_CANCEL && answer != 0) {
        backup->cancel_asked = was_asked;
    }
    if (answer == -ESHUTDOWN && sim.shutdown && verb != VERB_CANCEL) {
        return;
    }
    legal = verb_legal(verb, &before);
    EXPECT(answer == 0 || answer == BLKREPL_ERR_STATE, "verb %d answered %d", (int)verb, answer);
    if (after.state == before.state && (after.flags & ~1u) == (before.flags & ~1u)) {
        EXPECT((answer == 0) == legal || verb == VERB_START, "verb %d answered %d in state %u/%u",
               (int)verb, answer, before.state, before.flags);
    }
    EXPECT(answer != 0 || legal || verb_legal(verb, &after), "verb %d accepted in state %u",
           (int)verb, before.state);
    EXPECT(verb != VERB_CANCEL || answer != 0 || before.state != BLKREPL_JOB_CREATED ||
               after.state == BLKREPL_JOB_CONCLUDED,
           "a job that was never started is still there after cancel");
}

static void backup_drop(struct backup *backup)
{
    blkrepl_job *job = backup->job;

    EVENT("backup %n: its handle is freed", number(backup));
    backup->paused = (query(backup).flags & BLKREPL_JOB_FLAG_PAUSED) != 0;
    if (backup->job == NULL) { /* freed by a call from inside the query */
        return;
    }
    backup->job = NULL;
    backup->freed = true;
    sim.counts.backups_dropped += !backup->done;
    blkrepl_job_free(job);
}

static void verb_act(void)
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
        backup_drop(backup);
    } else {
        verb_do(backup, (enum verb)verbs[rng_below(10)]);
    }
}

/* ---- What is known of a job --------------------------------------------------- */

static void check_concluded(struct backup *backup, const blkrepl_job_info *info)
{
    bool timed_out = info->error == -ETIMEDOUT && backup->options.cbw_timeout_ns != BLKREPL_FOREVER;
    bool answered = info->error_side == BLKREPL_SIDE_SOURCE
                        ? disk_has_answered(backup->source, info->error)
                        : disk_has_answered(backup->target, info->error);
    uint64_t timeout = backup->options.cbw_timeout_ns;

    timeout = timeout == 0 ? 30 * SECOND_NS : timeout;
    EXPECT(info->requests_in_flight == 0, "concluded with %u requests", info->requests_in_flight);
    switch (info->result) {
    case BLKREPL_RESULT_DONE:
        EXPECT(info->error == 0 && backup->started, "done with error %d", info->error);
        EXPECT(info->bytes_done == info->bytes_total && info->bytes_total == backup->source->bytes,
               "done with %llu of %llu bytes", (ull)info->bytes_done, (ull)info->bytes_total);
        if (!backup->checked) {
            oracle_backup_done(backup);
        }
        break;
    case BLKREPL_RESULT_FAILED:
        EXPECT(info->error < 0 && info->error != -ECANCELED && info->message[0] != '\0',
               "failed with error %d \"%s\"", info->error, info->message);
        EXPECT(info->error_side == BLKREPL_SIDE_SOURCE || info->error_side == BLKREPL_SIDE_TARGET,
               "failed with %d on side %u", info->error, info->error_side);
        EXPECT(answered || (timed_out && (sim.options.clock_jumps ||
                                          sim.last_now_ns - backup->start_ns >= timeout)),
               "failed with %d, side %u, which no disk answered: %s", info->error, info->error_side,
               info->message);
        break;
    case BLKREPL_RESULT_CANCELLED:
        EXPECT(info->error == -ECANCELED && (backup->cancel_asked || sim.shutdown),
               "cancelled with error %d, asked %d", info->error, backup->cancel_asked);
        break;
    default: sim_fail("concluded with result %u", info->result);
    }
}

/* Look at every job: progress tells the truth. */
static void backup_watch(void)
{
    for (uint32_t i = 0; i < sim.backup_count; i++) {
        struct backup *b = &sim.backups[i];
        uint64_t least = b->bytes_done;
        blkrepl_job_info info;

        if (b->job == NULL || b->starting) {
            continue;
        }
        info = query(b);
        EXPECT(info.bytes_done >= least && info.bytes_done <= info.bytes_total,
               "backup %u: %llu of %llu bytes done, were %llu", i, (ull)info.bytes_done,
               (ull)info.bytes_total, (ull)least);
        EXPECT(info.bytes_done == 0 || info.bytes_done <= b->saved_bytes,
               "backup %u: %llu bytes done, %llu are on the target", i, (ull)info.bytes_done,
               (ull)b->saved_bytes);
        b->bytes_done = info.bytes_done > b->bytes_done ? info.bytes_done : b->bytes_done;
        if (info.state == BLKREPL_JOB_CONCLUDED) {
            check_concluded(b, &info);
        } else {
            EXPECT(info.result == 0 && !b->done, "backup %u: a result before the end", i);
        }
        EXPECT(info.bytes_total == 0 || info.bytes_done < info.bytes_total ||
                   info.result == BLKREPL_RESULT_DONE,
               "backup %u: all bytes done, result %u", i, info.result);
    }
}

void backup_event(const blkrepl_event *event)
{
    struct backup *b = event->user;
    blkrepl_job_info info;

    EXPECT(b != NULL && !b->freed && event->object_id == b->job_id, "an event of no known job");
    EXPECT(!b->done, "an event of backup %llu after JOB_DONE", number(b));
    if (event->type != BLKREPL_EVENT_JOB_DONE) {
        return;
    }
    b->result = event->error;
    info = query(b);
    EXPECT(info.state == BLKREPL_JOB_CONCLUDED && event->count == 1, "JOB_DONE in state %u",
           info.state);
    EXPECT(event->error == info.error, "JOB_DONE says %d, query %d", event->error, info.error);
    check_concluded(b, &info);
    b->done = true;
    sim.counts.backups_done += info.result == BLKREPL_RESULT_DONE;
    sim.counts.backups_failed += info.result == BLKREPL_RESULT_FAILED;
    sim.counts.backups_cancelled += info.result == BLKREPL_RESULT_CANCELLED;
}

/* Is there nothing left to wait for?  A job that was paused and whose handle was
 * then freed goes on for ever. */
static bool backup_over(const struct backup *b)
{
    if (!b->created) {
        return true;
    }
    if (b->freed) {
        return b->release_count > 0 || b->paused;
    }
    return b->done || (!b->started && !b->cancel_asked);
}

/* ---- The part ---------------------------------------------------------------- */

/* A job that is being cancelled has told its target's backend. */
void backup_check_cancelled(void)
{
    for (int i = 0; i < 5; i++) {
        sim_poll();
    }
    for (uint32_t i = 0; i < sim.backup_count; i++) {
        const struct backup *b = &sim.backups[i];

        bool latest = true;

        for (uint32_t n = i + 1; n < sim.backup_count; n++) {
            latest &= sim.backups[n].target != b->target || !sim.backups[n].started;
        }
        for (uint32_t n = 0; latest && b->started && b->cancel_asked && b->job != NULL &&
                             !b->done && b->target->has_cancel && n < b->target->in_flight;
             n++) {
            EXPECT(b->target->queue[n].told, "backup %u: id %llu was not cancelled", i,
                   (ull)b->target->queue[n].id);
        }
    }
}

/* May a guest write have to wait for a target, or for ever? */
void backup_guest_needs(bool *clock, bool *target)
{
    for (uint32_t i = 0; i < sim.backup_count; i++) {
        const struct backup *b = &sim.backups[i];
        const blkrepl_backup_options *o = &b->options;
        uint64_t cluster = o->cluster_bytes == 0 ? 65536 : o->cluster_bytes;
        bool wide =
            b->source->info.cluster_bytes > cluster || b->target->info.cluster_bytes > cluster;

        if (!b->created || b->release_count > 0) {
            continue;
        }
        *clock |= o->on_cbw_error == BLKREPL_CBW_GUEST_WRITE_FAILS || wide ||
                  o->reserve_bytes < b->source->bytes + cluster || o->reserve_bytes == 0 ||
                  sim.options.context.job_requests_max < 64;
        *target |= o->cbw_timeout_ns == BLKREPL_FOREVER;
    }
}

static void backup_draw(void)
{
    struct sim_options *o = &sim.options;

    o->backups = rng_chance(5) ? 0 : (uint32_t)rng_between(1, rng_chance(70) ? 2 : BACKUPS_MAX);
    sim_actor(2, false, backup_act);
    sim_actor(rng_chance(50) || sim_without(FAULT_VERBS) ? 0 : (uint32_t)rng_between(1, 6), false,
              verb_act);
}

/* Whatever the host holds up it lets go on. */
static void backup_resume(void)
{
    for (uint32_t i = 0; i < sim.backup_count; i++) {
        struct backup *b = &sim.backups[i];
        bool live = b->job != NULL && b->started && !b->done;

        if (live) {
            blkrepl_job_resume(b->job);
        }
        if (live && rng_chance(50)) {
            blkrepl_job_set_speed(b->job, 0);
        }
    }
}

static bool backup_unfinished(void)
{
    for (uint32_t i = 0; i < sim.backup_count; i++) {
        if (!backup_over(&sim.backups[i])) {
            return true;
        }
    }
    return false;
}

static void backup_close(uint32_t percent)
{
    for (uint32_t i = 0; i < sim.backup_count; i++) {
        if (sim.backups[i].job != NULL && rng_chance(percent)) {
            backup_drop(&sim.backups[i]);
        }
    }
}

static void backup_end(void)
{
    for (uint32_t i = 0; i < sim.backup_count; i++) {
        EXPECT(sim.backups[i].release_count == 1, "backup %u is not released", i);
    }
}

static void backup_list(void)
{
    for (uint32_t i = 0; i < sim.backup_count; i++) {
        const blkrepl_backup_options *b = &sim.backups[i].options;

        printf("backup %u: disk %u to %u, cluster %" PRIu64 ", chunk %" PRIu64 ", reserve %" PRIu64
               ", workers %u, on_cbw_error %u, timeout %" PRIu64 ", speed %" PRIu64 ", flags %u\n",
               i, sim.backups[i].source->index, sim.backups[i].target->index, b->cluster_bytes,
               b->chunk_bytes_max, b->reserve_bytes, b->workers_max, b->on_cbw_error,
               b->cbw_timeout_ns, b->speed_bytes_per_sec, b->flags);
    }
}

const struct part backup_part = {.draw = backup_draw,
                                 .watch = backup_watch,
                                 .resume = backup_resume,
                                 .unfinished = backup_unfinished,
                                 .close = backup_close,
                                 .end = backup_end,
                                 .list = backup_list};
