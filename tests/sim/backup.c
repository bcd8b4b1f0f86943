/* SPDX-License-Identifier: MIT */
/* backup.c - backups: how they are made; their verbs are in verb.c, what they do beyond
 * a plain copy in jobs.c. */
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

void job_release(void *user)
{
    struct backup *backup = user;

    EVENT("backup %n is released", number(backup));
    EXPECT(!sim.gone && backup->release_count == 0, "backup %llu: a wrong release", number(backup));
    EXPECT(!backup->created || backup->freed, "backup %llu released before its handle was",
           number(backup));
    EXPECT(!backup->created || lanes_in_poll(0), "backup %llu released outside of polls of lane 0",
           number(backup));
    EXPECT(sim.shutdown || !backup->created || !backup->started || backup->dismissed ||
               backup->verbs > 0 || (backup->job_flags & BLKREPL_JOB_MANUAL_DISMISS) == 0,
           "backup %llu is released, but was not dismissed", number(backup));
    backup->release_count++;
    oracle_bitmap_job_over(backup);
    inside(INSIDE_JOB_RELEASE);
}

blkrepl_job_info backup_query(struct backup *backup)
{
    blkrepl_job_info info = {.struct_size = sizeof info};
    int answer = blkrepl_job_query(backup->job, &info);

    EXPECT(answer == 0 && info.user == backup &&
               info.kind == (backup->kind == 0 ? BLKREPL_KIND_BACKUP : backup->kind),
           "query of backup %llu answered %d", number(backup), answer);
    return info;
}

/* ---- Start ------------------------------------------------------------------ */

uint64_t draw_speed(void)
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
    o->release = job_release;
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
    jobs_draw_backup(backup);
}

/* Is the name of this one free again? */
static enum hold keeps_name(const struct backup *b)
{
    bool concludes = b->started || b->cancel_asked; /* a job that did neither is just gone */
    bool manual = concludes && (b->job_flags & BLKREPL_JOB_MANUAL_DISMISS) != 0;

    if (b->dismissed || b->release_count > 0) {
        return HOLD_NONE;
    }
    if (b->calling || b->unsure || b->verbs > 0) {
        return HOLD_MAYBE;
    }
    return !b->created           ? HOLD_NONE
           : !b->freed || manual ? HOLD_SURE
           : !b->done            ? HOLD_MAYBE
                                 : HOLD_NONE;
}

enum hold job_name_hold(const struct backup *but, const char *name)
{
    enum hold hold = HOLD_NONE;

    for (uint32_t i = 0; name != NULL && i < sim.backup_count; i++) {
        const struct backup *b = &sim.backups[i];
        bool known = b->job_name[0] != '\0';
        enum hold one;

        if (b == but || (known && strcmp(b->job_name, name) != 0)) {
            continue;
        }
        one = keeps_name(b);
        one = one == HOLD_SURE && !known ? HOLD_MAYBE : one;
        hold = one > hold ? one : hold;
    }
    return hold;
}

/* Does one of these jobs still live? */
static enum hold lives(struct backup *b)
{
    if (b->created && !b->freed) {
        return backup_query(b).state != BLKREPL_JOB_CONCLUDED ? HOLD_SURE : HOLD_NONE;
    }
    return b->calling || (b->freed && !b->done && b->release_count == 0) ? HOLD_MAYBE : HOLD_NONE;
}

static enum hold hold_of(const struct disk *disk, bool readers)
{
    enum hold hold = HOLD_NONE;

    for (uint32_t i = 0; i < sim.backup_count; i++) {
        struct backup *b = &sim.backups[i];
        bool reads = job_is_verify(b) && ((b->source == disk && b->through == NULL) ||
                                          (b->target == disk && b->through2 == NULL));

        if (job_writes_to(b, disk) || (readers && reads)) {
            enum hold one = lives(b);

            if (one == HOLD_SURE) {
                return one;
            }
            hold = one > hold ? one : hold;
        }
    }
    return hold;
}

enum hold backup_hold(const struct disk *target)
{
    return hold_of(target, false);
}

/* A snapshot that outlives its job may still read. */
enum hold backup_use(const struct disk *target)
{
    enum hold hold = hold_of(target, true);

    for (uint32_t i = 0; hold == HOLD_NONE && i < SNAPSHOTS_MAX; i++) {
        const struct snapshot *s = &sim.snapshots[i];

        if (s->used && !s->released && s->of->target == target && target->in_flight > 0) {
            hold = HOLD_MAYBE;
        }
    }
    return hold;
}

static blkrepl_image *source_image(const struct backup *b)
{
    return b->through != NULL ? b->through->disk.image : b->source->image;
}

static bool has_images(const struct backup *b)
{
    return source_image(b) != NULL && b->target->image != NULL &&
           (b->spill == NULL || b->spill->image != NULL);
}

/* The handles that the host has now. */
static void take_handles(struct backup *b)
{
    b->options.spill = b->spill != NULL ? b->spill->image : NULL;
    b->options.bitmap = b->bitmap != NULL ? b->bitmap->handles[0] : NULL;
    b->options.throttle = b->throttle != NULL ? b->throttle->throttle : NULL;
}

static int make(struct backup *backup, bool start)
{
    bool may_allocate = sim.may_allocate;
    bool failed = sim.alloc_failed;
    int answer;

    /* A call from inside those that we have just made may have closed one: no create
     * then, and nothing that it would release. */
    if (!has_images(backup)) {
        backup->release_count = 1;
        return -EBADF;
    }
    sim.may_allocate = true;
    sim.alloc_failed = false;
    backup->calling = true;
    take_handles(backup);
    backup->speed_bytes_per_sec = backup->options.speed_bytes_per_sec;
    inside_calls(start ? CALL_BACKUP_START : CALL_CREATE);
    answer = (start ? blkrepl_backup_start : blkrepl_backup_create)(
        source_image(backup), backup->target->image, &backup->options, &backup->job);
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

/* It was created. */
void backup_made(struct backup *backup)
{
    backup->created = true;
    if (backup->job != NULL) { /* not freed by a call from inside this one */
        learn_id(backup);
    }
}

/* Who holds what the backup needs. */
struct holds {
    enum hold target;
    enum hold spill;
    enum hold guest;
    enum hold name;
};

static void may_be_refused(const struct backup *backup, int answer, const struct holds *holds)
{
    bool busy =
        holds->target != HOLD_NONE || holds->spill != HOLD_NONE || holds->guest != HOLD_NONE;

    EXPECT(backup->job == NULL && backup->release_count == 1, "a failed create: %u releases",
           backup->release_count);
    EXPECT(
        (answer == -ENOMEM && (sim.options.context.job_requests_max > 0 ||
                               sim.options.context.memory_bytes_max > 0 || backup->alloc_failed)) ||
            (answer == -ESHUTDOWN && sim.shutdown) || (answer == -EBUSY && busy) ||
            (answer == -EBADF && !has_images(backup)) ||
            (answer == -EEXIST && holds->name != HOLD_NONE) || jobs_refusal(backup, answer),
        "create of backup %llu answered %d: %s", number(backup), answer, blkrepl_error_message());
}

static struct holds get_holds(struct backup *backup)
{
    struct holds holds = {.target = backup_use(backup->target),
                          .guest = guest_hold(backup->target),
                          .name = job_name_hold(backup, backup->options.name)};

    if (backup->spill != NULL) {
        enum hold guest = guest_hold(backup->spill);

        holds.spill = backup_use(backup->spill);
        holds.guest = guest > holds.guest ? guest : holds.guest;
    }
    return holds;
}

static int create(struct backup *backup, bool start)
{
    bool idle = sim.depth == 0 && sim.reenter_depth == 0 &&
                backup->source->in_flight < backup->source->info.queue_depth;
    uint64_t reentries = sim.counts.reentries;
    struct holds holds = get_holds(backup);
    uint32_t requests = sim.request_count;
    int answer;

    if (start) {
        job_freeze(backup);
        oracle_backup_start(backup);
    }
    answer = make(backup, start);
    if (sim.counts.reentries != reentries) { /* it may be another one's by now, or nobody's */
        holds = (struct holds){HOLD_MAYBE, HOLD_MAYBE, HOLD_MAYBE, HOLD_MAYBE};
    }
    if (answer == 0) {
        EXPECT(holds.target != HOLD_SURE && holds.spill != HOLD_SURE && holds.guest != HOLD_SURE,
               "two write to one target");
        EXPECT(holds.name != HOLD_SURE, "two jobs have one name");
        EXPECT(!jobs_refusal(backup, -ENOTSUP), "a backup that cannot be was created");
        backup_made(backup);
    }
    if (start) {
        job_frozen(backup, answer == 0, sim.counts.reentries == reentries);
    }
    if (answer == 0 && start) {
        oracle_backup_started(backup, requests, idle);
        backup->state_changes++;
    }
    if (answer != 0) {
        backup->started = false;
        may_be_refused(backup, answer, &holds);
    }
    return answer;
}

/* One more; images and slots have been looked at. */
struct backup *backup_new(struct disk *source, struct disk *target)
{
    struct backup *backup = &sim.backups[sim.backup_count++];

    memset(backup, 0, sizeof *backup);
    backup->source = source;
    backup->target = target;
    return backup;
}

/* Nothing has come of it: the next one takes its place. */
static int give_up_slot(void)
{
    sim.backup_count--;
    return -EBADF;
}

/* Create a backup, and mostly start it. */
static void backup_do(bool start)
{
    struct disk *source = &sim.disks[rng_below(sim.options.sources)];
    struct disk *target = &sim.disks[rng_between(sim.options.sources, sim.options.disks - 1)];
    struct backup *backup;
    int answer;

    oracle_job_watch(); /* who is done with the target is compared before it changes */
    if (sim.backup_count >= sim.options.backups || source->image == NULL || target->image == NULL) {
        return;
    }
    if (sim.chance_is_aside && rng_chance(80) && backup_use(target) != HOLD_NONE) {
        return;
    }
    backup = backup_new(source, target);
    draw_options(backup);
    start = start && job_may_start(backup);
    for (int tries = 0; tries < 8; tries++) {
        backup->release_count = 0;
        answer = create(backup, start);
        if (answer != 0 && sim.chance_is_aside && backup + 1 == sim.backups + sim.backup_count) {
            answer = answer == -ENOMEM && backup->alloc_failed ? answer : give_up_slot();
        }
        if (answer != -ENOMEM || !backup->alloc_failed || !has_images(backup) ||
            !job_may_start(backup)) {
            return;
        }
    }
}

static void backup_act(void)
{
    backup_do(rng_chance(70));
}

/* For the matrix: one call about a job. */
void backup_call(enum call call)
{
    if (call == CALL_CREATE || call == CALL_BACKUP_START) {
        backup_do(call == CALL_BACKUP_START);
    } else {
        job_call(call);
    }
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
        bool winds_up = !job_is_verify(b) && b->started && b->cancel_asked && b->job != NULL &&
                        !b->done && backup_query(b).state != BLKREPL_JOB_CONCLUDED;

        for (uint32_t n = i + 1; n < sim.backup_count; n++) {
            winds_up &= sim.backups[n].target != b->target || !sim.backups[n].started;
        }
        for (uint32_t n = 0; winds_up && b->target->has_cancel && n < b->target->in_flight; n++) {
            EXPECT(b->target->queue[n].told || !is_write(b->target->queue[n].op),
                   "backup %u: id %llu was not cancelled", i, (ull)b->target->queue[n].id);
        }
    }
}

/* May a guest write have to wait for the clock? */
static bool needs_clock(const struct backup *b)
{
    const blkrepl_backup_options *o = &b->options;
    uint64_t cluster = o->cluster_bytes == 0 ? 65536 : o->cluster_bytes;
    bool wide = b->source->info.cluster_bytes > cluster || b->target->info.cluster_bytes > cluster;

    if (sim.options.context.job_requests_max < 64) {
        return true;
    }
    if (oracle_spill_has_room(b) && !wide) {
        return false;
    }
    return o->on_cbw_error == BLKREPL_CBW_GUEST_WRITE_FAILS || wide ||
           o->reserve_bytes < b->source->bytes + cluster || o->reserve_bytes == 0;
}

/* May a guest write have to wait for a target, or for ever? */
void backup_guest_needs(bool *clock, bool *target)
{
    for (uint32_t i = 0; i < sim.backup_count; i++) {
        const struct backup *b = &sim.backups[i];

        if (!b->created || b->release_count > 0 || b->done || !b->started) {
            continue;
        }
        if (job_is_verify(b)) { /* it holds who writes until both images are read */
            *clock = true;
            *target = true;
        }
        if (b->cancel_asked || !job_taps(b)) {
            continue;
        }
        *clock |= needs_clock(b);
        *target |= b->options.cbw_timeout_ns == BLKREPL_FOREVER;
    }
}

static void backup_draw(void)
{
    struct sim_options *o = &sim.options;

    o->backups = rng_chance(5) ? 0 : (uint32_t)rng_between(1, rng_chance(70) ? 2 : BACKUPS_DRAWN);
    sim_actor(2, false, backup_act);
    sim_actor(rng_chance(50) || sim_without(FAULT_VERBS) ? 0 : (uint32_t)rng_between(1, 6), false,
              verb_act);
}

static bool backup_unfinished(void)
{
    for (uint32_t i = 0; i < sim.backup_count; i++) {
        if (!job_over(&sim.backups[i])) {
            return true;
        }
    }
    return false;
}

static void backup_close(uint32_t percent)
{
    for (uint32_t i = 0; i < sim.backup_count; i++) {
        if (sim.backups[i].job != NULL && rng_chance(percent)) {
            job_drop(&sim.backups[i]);
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
                                 .resume = job_resume_all,
                                 .move = job_drive,
                                 .unfinished = backup_unfinished,
                                 .close = backup_close,
                                 .end = backup_end,
                                 .list = backup_list};
