/* SPDX-License-Identifier: MIT */
/* backup.c - backups: their options and their verbs. */
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
    EXPECT(!backup->created || lanes_in_poll(0), "backup %llu released outside of polls of lane 0",
           number(backup));
    backup->release_count++;
    oracle_bitmap_job_over(backup);
    inside(INSIDE_JOB_RELEASE);
}

blkrepl_job_info backup_query(struct backup *backup)
{
    blkrepl_job_info info = {.struct_size = sizeof info};
    int answer = blkrepl_job_query(backup->job, &info);

    EXPECT(answer == 0 && info.user == backup && info.kind == BLKREPL_KIND_BACKUP,
           "query of backup %llu answered %d", number(backup), answer);
    return info;
}

/* ---- Start ------------------------------------------------------------------ */

static uint64_t draw_speed(void)
{
    return rng_chance(90) ? rng_between(5000, 5000000) : rng_chance(50) ? 1 : UINT64_MAX;
}

static void draw_options(struct backup *backup)
{
    static const char *const names[] = {"a", "b", "backup-3",
                                        "one that is rather long, but not too"};
    blkrepl_backup_options *o = &backup->options;
    uint64_t cluster = rng_chance(65) ? 4096 : UINT64_C(4096) << rng_below(5);

    *o = (blkrepl_backup_options){.struct_size = sizeof *o, .user = backup};
    o->release = backup_release;
    o->flags = rng_chance(25) ? (uint32_t)rng_between(1, 3) : 0;
    o->cluster_bytes = rng_chance(8) ? 0 : cluster;
    o->chunk_bytes_max = rng_chance(30) ? 0 : cluster * rng_between(1, 8);
    o->chunk_bytes_max = rng_chance(3) ? rng_between(1, cluster) : o->chunk_bytes_max;
    o->name = rng_chance(30) ? names[rng_below(4)] : NULL;
    o->reserve_bytes = rng_chance(2) ? 0 : cluster * rng_between(1, rng_chance(50) ? 2 : 40);
    o->workers_max = rng_chance(30) ? 0 : (uint32_t)rng_between(1, 8);
    o->on_cbw_error = (uint32_t)rng_below(3);
    o->speed_bytes_per_sec = rng_chance(20) ? draw_speed() : 0;
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

/* Has another job this name? */
static enum hold name_hold(const struct backup *but)
{
    const char *name = but->options.name;
    enum hold hold = HOLD_NONE;

    for (uint32_t i = 0; name != NULL && i < sim.backup_count; i++) {
        const struct backup *b = &sim.backups[i];

        bool known = b->job_name[0] != '\0';

        if (b == but || (known && strcmp(b->job_name, name) != 0)) {
            continue;
        }
        if (known && !b->freed) {
            return HOLD_SURE;
        }
        if (b->calling || (b->created && !b->done && b->release_count == 0)) {
            hold = HOLD_MAYBE;
        }
    }
    return hold;
}

enum hold backup_hold(const struct disk *target)
{
    enum hold hold = HOLD_NONE;

    for (uint32_t i = 0; i < sim.backup_count; i++) {
        struct backup *b = &sim.backups[i];

        if (b->target != target) {
            continue;
        }
        if (b->created && !b->freed) {
            if (backup_query(b).state != BLKREPL_JOB_CONCLUDED) {
                return HOLD_SURE;
            }
        } else if (b->calling || (b->freed && !b->done && b->release_count == 0)) {
            hold = HOLD_MAYBE;
        }
    }
    return hold;
}

static int make(struct backup *backup, bool start)
{
    bool may_allocate = sim.may_allocate;
    bool failed = sim.alloc_failed;
    int answer;

    sim.may_allocate = true;
    sim.alloc_failed = false;
    backup->calling = true;
    backup->speed_bytes_per_sec = backup->options.speed_bytes_per_sec;
    inside_calls(start ? CALL_BACKUP_START : CALL_CREATE);
    answer = (start ? blkrepl_backup_start : blkrepl_backup_create)(
        backup->source->image, backup->target->image, &backup->options, &backup->job);
    backup->calling = false;
    backup->alloc_failed = sim.alloc_failed;
    sim.may_allocate = may_allocate;
    sim.alloc_failed = sim.alloc_failed || failed;
    EVENT("backup %n of disk %n to disk %n, started %n: %r", number(backup), backup->source->index,
          backup->target->index, start, NEGATED(answer));
    return answer;
}

/* Of two jobs the later one has the larger id. */
static void learn_id(struct backup *backup)
{
    blkrepl_job_info info = backup_query(backup);

    for (uint32_t i = 0; i < sim.backup_count; i++) {
        EXPECT(&sim.backups[i] == backup || sim.backups[i].job_id != info.id, "id %llu twice",
               (ull)info.id);
    }
    backup->job_id = info.id;
    memcpy(backup->job_name, info.name, sizeof backup->job_name);
}

static int create(struct backup *backup, bool start)
{
    bool idle = sim.depth == 0 && sim.reenter_depth == 0 &&
                backup->source->in_flight < backup->source->info.queue_depth;
    enum hold target = backup_hold(backup->target);
    enum hold guest = guest_hold(backup->target);
    enum hold name = name_hold(backup);
    uint32_t requests = sim.request_count;
    int answer;

    /* A call from inside those that we have just made may have closed one: no create
     * then, and nothing that it would release. */
    if (backup->source->image == NULL || backup->target->image == NULL) {
        backup->release_count = 1;
        return -EBADF;
    }
    if (start) {
        oracle_backup_start(backup);
    }
    answer = make(backup, start);
    if (answer == 0) {
        EXPECT(target != HOLD_SURE && guest != HOLD_SURE, "two write to one target");
        EXPECT(name != HOLD_SURE, "two jobs have one name");
        backup->created = true;
        if (backup->job != NULL) { /* not freed by a call from inside this one */
            learn_id(backup);
        }
        if (start) {
            oracle_backup_started(backup, requests, idle);
            backup->state_changes++;
        }
        return 0;
    }
    backup->started = false;
    EXPECT(backup->job == NULL && backup->release_count == 1, "a failed create: %u releases",
           backup->release_count);
    EXPECT(
        (answer == -ENOMEM && (sim.options.context.job_requests_max > 0 ||
                               sim.options.context.memory_bytes_max > 0 || backup->alloc_failed)) ||
            (answer == -ESHUTDOWN && sim.shutdown) ||
            (answer == -EBUSY && (target != HOLD_NONE || guest != HOLD_NONE)) ||
            (answer == -EEXIST && name != HOLD_NONE),
        "create of backup %llu answered %d: %s", number(backup), answer, blkrepl_error_message());
    return answer;
}

/* Create a backup, and mostly start it. */
static void backup_do(bool start)
{
    struct disk *source = &sim.disks[rng_below(sim.options.sources)];
    struct disk *target = &sim.disks[rng_between(sim.options.sources, sim.options.disks - 1)];
    struct backup *backup;
    int answer;

    oracle_job_watch(); /* who is done with the target is compared before it changes */
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
        if (answer != -ENOMEM || !backup->alloc_failed || source->image == NULL ||
            target->image == NULL) {
            return;
        }
    }
}

static void backup_act(void)
{
    backup_do(rng_chance(70));
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
    backup->state_changes += answer == 0;
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

static int verb_call(struct backup *backup, enum verb verb, uint64_t speed)
{
    inside_calls((enum call)(CALL_START + (uint32_t)verb));
    switch (verb) {
    case VERB_START: return job_start(backup);
    case VERB_PAUSE: return blkrepl_job_pause(backup->job);
    case VERB_RESUME: return blkrepl_job_resume(backup->job);
    case VERB_SPEED: return blkrepl_job_set_speed(backup->job, speed);
    case VERB_CANCEL:
        backup->cancel_asked = true;
        return blkrepl_job_cancel(backup->job, rng_chance(50) ? BLKREPL_CANCEL_FORCE : 0);
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
    }
}

/* The state may change inside the call, so either of two answers may be right. */
static void verb_do(struct backup *backup, enum verb verb)
{
    uint64_t reentries = sim.counts.reentries;
    blkrepl_job_info before = backup_query(backup);
    bool was_asked = backup->cancel_asked;
    uint64_t speed = rng_chance(50) ? 0 : draw_speed();
    blkrepl_job_info after;
    bool legal;
    int answer;

    EVENT("backup %n: %v, in state %s, flags %n", number(backup), verb, before.state, before.flags);
    backup->verbs++;
    answer = verb_call(backup, verb, speed);
    backup->verbs--;
    if (sim.counts.reentries != reentries || backup->job == NULL) {
        backup->unsure = true; /* calls from inside this one have changed what is right */
        return;
    }
    if (answer == 0) {
        verb_done(backup, verb, speed, (before.flags & BLKREPL_JOB_FLAG_CANCELLING) != 0);
    }
    after = backup_query(backup);
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

/* Is it paused?  What is called inside the query may change that. */
static void learn_paused(struct backup *backup)
{
    uint64_t seq;

    do {
        seq = sim.seq;
        backup->paused = (backup_query(backup).flags & BLKREPL_JOB_FLAG_PAUSED) != 0;
    } while (sim.seq != seq && backup->job != NULL);
}

static void backup_drop(struct backup *backup)
{
    blkrepl_job *job = backup->job;

    EVENT("backup %n: its handle is freed", number(backup));
    learn_paused(backup);
    if (backup->job == NULL) { /* freed by a call from inside the query */
        return;
    }
    backup->job = NULL;
    backup->freed = true;
    sim.counts.backups_dropped += !backup->done;
    inside_calls(CALL_FREE);
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

/* For the matrix: one call about a job that the host has. */
void backup_call(enum call call)
{
    struct backup *backup = NULL;

    if (call == CALL_CREATE || call == CALL_BACKUP_START) {
        backup_do(call == CALL_BACKUP_START);
        return;
    }
    for (uint32_t tries = 0; tries < 3 && sim.backup_count > 0 && backup == NULL; tries++) {
        backup = &sim.backups[rng_below(sim.backup_count)];
        backup = backup->job != NULL && backup->created && !backup->starting ? backup : NULL;
    }
    if (backup == NULL) {
        return;
    }
    if (call == CALL_JOB_QUERY) {
        inside_calls(CALL_JOB_QUERY);
        backup_query(backup);
    } else if (sim_without(FAULT_VERBS)) {
        return;
    } else if (call == CALL_FREE) {
        backup_drop(backup);
    } else {
        verb_do(backup, (enum verb)(call - CALL_START));
    }
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
        lanes_poll(0);
    }
    for (uint32_t i = 0; i < sim.backup_count; i++) {
        struct backup *b = &sim.backups[i];
        bool winds_up = b->started && b->cancel_asked && b->job != NULL && !b->done &&
                        backup_query(b).state != BLKREPL_JOB_CONCLUDED;

        for (uint32_t n = i + 1; n < sim.backup_count; n++) {
            winds_up &= sim.backups[n].target != b->target || !sim.backups[n].started;
        }
        for (uint32_t n = 0; winds_up && b->target->has_cancel && n < b->target->in_flight; n++) {
            EXPECT(b->target->queue[n].told || !is_write(b->target->queue[n].op),
                   "backup %u: id %llu was not cancelled", i, (ull)b->target->queue[n].id);
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

        if (!b->created || b->release_count > 0 || b->cancel_asked || b->done) {
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

        if (live && (backup_query(b).flags & BLKREPL_JOB_FLAG_PAUSED) != 0) {
            verb_do(b, VERB_RESUME);
        }
        if (live && rng_chance(50)) {
            blkrepl_job_set_speed(b->job, 0);
            b->unsure = true;
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
                                 .watch = oracle_job_watch,
                                 .resume = backup_resume,
                                 .unfinished = backup_unfinished,
                                 .close = backup_close,
                                 .end = backup_end,
                                 .list = backup_list};
