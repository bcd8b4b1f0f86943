/* SPDX-License-Identifier: MIT */
/* jobs.c - what jobs do beyond plain backups: which of it a run has, and when.
 *
 * All chance about it comes from a stream of its own, so that with these classes left
 * out a seed is what it was before there were any. */
#include "sim.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

typedef unsigned long long ull;

/* ---- Options of a backup ---------------------------------------------------------- */

static void draw_policy(struct backup *b)
{
    blkrepl_backup_options *o = &b->options;

    o->on_source_error = (uint32_t)rng_below(5);
    o->on_target_error = (uint32_t)rng_below(5);
    if (rng_chance(30)) {
        o->on_source_error = o->on_target_error =
            rng_chance(50) ? BLKREPL_ON_ERROR_STOP : BLKREPL_ON_ERROR_IGNORE;
    }
}

static void learn_policy(struct backup *b)
{
    b->on_error[BLKREPL_SIDE_SOURCE] = b->options.on_source_error;
    b->on_error[BLKREPL_SIDE_TARGET] = b->options.on_target_error;
    b->on_error[BLKREPL_SIDE_SPILL] = b->options.on_source_error;
    b->job_flags = b->options.job_flags;
}

static bool fits(const struct bitmap *bitmap, const struct disk *source)
{
    return bitmap->used && bitmap->calling == 0 && bitmap->handle_count > 0 &&
           bitmap->now.bytes == source->bytes;
}

/* Mostly the one that was made for the source. */
static struct bitmap *draw_bitmap(const struct disk *source)
{
    bool ours = rng_chance(85);

    for (uint32_t tries = 0; tries < 8 && sim.bitmap_count > 0; tries++) {
        struct bitmap *bitmap = &sim.bitmaps[rng_below(sim.bitmap_count)];

        if (fits(bitmap, source) && (!ours || (bitmap->for_jobs && bitmap->now.disk == source))) {
            return bitmap;
        }
    }
    return NULL;
}

/* A chain goes on, or another one begins. */
static void draw_sync(struct backup *b)
{
    blkrepl_backup_options *o = &b->options;
    struct bitmap *bitmap = draw_bitmap(b->source);

    if (bitmap == NULL) {
        return;
    }
    b->bitmap = bitmap;
    o->bitmap = bitmap_handle(bitmap);
    if (bitmap->chain != NULL && bitmap->chain->image != NULL && rng_chance(90)) {
        b->target = bitmap->chain;
    }
    if (bitmap->chain == NULL ? rng_chance(90) : rng_chance(8)) {
        o->sync = rng_chance(50) ? 0 : BLKREPL_SYNC_FULL;
        o->bitmap_mode = rng_chance(50) ? BLKREPL_BITMAP_ON_SUCCESS : BLKREPL_BITMAP_ALWAYS;
    } else if (rng_chance(60)) {
        o->sync = BLKREPL_SYNC_INCREMENTAL;
        o->bitmap_mode = rng_chance(50) ? 0 : BLKREPL_BITMAP_ON_SUCCESS;
    } else {
        o->sync = BLKREPL_SYNC_BITMAP;
        o->bitmap_mode = (uint32_t)rng_between(1, 3);
    }
}

static void draw_none(struct backup *b)
{
    blkrepl_backup_options *o = &b->options;

    o->sync = BLKREPL_SYNC_NONE;
    b->bitmap = rng_chance(30) ? draw_bitmap(b->source) : NULL;
    if (b->bitmap != NULL) {
        o->bitmap = bitmap_handle(b->bitmap);
        o->bitmap_mode = rng_chance(50) ? BLKREPL_BITMAP_ON_SUCCESS : BLKREPL_BITMAP_NEVER;
        o->flags |= rng_chance(60) ? BLKREPL_BACKUP_DIRTY_ONLY : 0;
    }
}

static void draw_spill(struct backup *b)
{
    uint64_t cluster = b->options.cluster_bytes == 0 ? 65536 : b->options.cluster_bytes;
    struct disk *disk = &sim.disks[rng_between(sim.options.sources, sim.options.disks - 1)];

    if (disk == b->target || disk->image == NULL) {
        return;
    }
    b->spill = disk;
    b->options.spill = disk->image;
    b->options.spill_bytes_max = rng_chance(40) ? 0 : cluster * rng_between(1, 6);
    b->options.spill_bytes_max += rng_chance(15) ? rng_below(cluster) : 0;
}

/* Mostly of the unit that the backend compresses. */
static void draw_compress(struct backup *b)
{
    blkrepl_backup_options *o = &b->options;
    uint64_t cluster = b->target->info.cluster_bytes;

    o->flags |= BLKREPL_BACKUP_COMPRESS;
    if (cluster >= 4096 && rng_chance(80)) {
        o->cluster_bytes = cluster;
        o->reserve_bytes = o->reserve_bytes < cluster ? cluster : o->reserve_bytes;
    }
}

static void draw_through(struct backup *b)
{
    struct snapshot *snapshot = snapshot_pick();

    if (snapshot != NULL && snapshot->of->target != b->target && snapshot->of->job_id != 0) {
        b->through = snapshot;
        b->source = snapshot->of->source;
    }
}

void jobs_draw_backup(struct backup *b)
{
    const struct sim_options *s = &sim.options;
    blkrepl_backup_options *o = &b->options;
    struct chance_outer outer;

    if (s->jobs_percent == 0) {
        return;
    }
    outer = chance_jobs_begin();
    if (rng_chance(s->none_percent)) {
        rng_chance(40) ? draw_through(b) : draw_none(b);
    } else if (rng_chance(s->sync_percent)) {
        draw_sync(b);
    }
    o->speed_burst_bytes = rng_chance(s->burst_percent) ? rng_between(1, 300000) : 0;
    o->job_flags = rng_chance(s->finale_percent) ? (uint32_t)rng_below(4) : 0;
    if (rng_chance(s->compress_percent)) {
        draw_compress(b);
    }
    if (rng_chance(s->policy_percent)) {
        draw_policy(b);
    }
    if (b->through == NULL && o->sync != BLKREPL_SYNC_NONE && rng_chance(s->spill_percent)) {
        draw_spill(b);
    }
    b->throttle = rng_chance(s->throttle_percent) ? throttle_pick() : NULL;
    o->throttle = b->throttle != NULL ? b->throttle->throttle : NULL;
    learn_policy(b);
    chance_jobs_end(outer);
}

/* What an image asks for: that of memory raises it. */
static uint64_t alignment_of(const struct disk *disk)
{
    uint64_t request = disk->info.request_alignment;
    uint64_t memory = disk->info.memory_alignment;

    return request > memory ? request : memory;
}

/* A snapshot asks for what both of its job's disks need. */
static uint64_t through_alignment(const struct backup *of)
{
    uint64_t source = alignment_of(of->source);
    uint64_t target = alignment_of(of->target);

    return source > target ? source : target;
}

bool jobs_refusal(const struct backup *b, int answer)
{
    const blkrepl_backup_options *o = &b->options;
    const struct disk *target = b->target;
    uint64_t cluster = job_cluster(b);
    uint64_t reads =
        b->through != NULL ? through_alignment(b->through->of) : alignment_of(b->source);
    bool small = cluster < target->info.cluster_bytes || cluster < alignment_of(target) ||
                 (b->spill != NULL && cluster < alignment_of(b->spill)) || cluster < reads;
    bool compress =
        (o->flags & BLKREPL_BACKUP_COMPRESS) != 0 &&
        ((target->info.flags & BLKREPL_BACKEND_COMPRESS) == 0 ||
         (target->info.transfer_bytes_max != 0 && target->info.transfer_bytes_max < cluster) ||
         (target->info.cluster_bytes != 0 && target->info.cluster_bytes != cluster));

    if (answer == -ENOTSUP) {
        return small || compress;
    }
    if (b->start_code == answer || b->start_code == 1) {
        return answer == -EBUSY || answer == BLKREPL_ERR_STATE;
    }
    return answer == BLKREPL_ERR_STATE && b->bitmap != NULL && b->bitmap->now.loading;
}

/* ---- What to do next --------------------------------------------------------------- */

static void verbs_act(void)
{
    static const uint8_t calls[] = {
        CALL_START,       CALL_START,       CALL_PAUSE,        CALL_RESUME,       CALL_RESUME,
        CALL_SPEED,       CALL_CANCEL,      CALL_JOB_COMPLETE, CALL_JOB_COMPLETE, CALL_JOB_FINALIZE,
        CALL_JOB_DISMISS, CALL_JOB_DISMISS, CALL_JOB_FIND,     CALL_JOB_NEXT};
    struct backup *b = rng_chance(5) ? job_pick() : NULL;

    if (b != NULL) {
        job_drop(b);
    } else {
        job_call((enum call)calls[rng_below(sizeof calls)]);
    }
}

/* A while in which disks work: so jobs come to an end, and others follow them. */
static void go_on(void)
{
    for (uint64_t i = rng_between(2, 12); i > 0; i--) {
        for (uint32_t n = 0; n < sim.options.disks; n++) {
            disk_progress(&sim.disks[n]);
        }
        lanes_poll_all();
    }
    if (rng_chance(50)) {
        guest_bracket_finish();
    }
}

static void jobs_act(void)
{
    const struct sim_options *o = &sim.options;

    if (sim.depth == 0 && sim.reenter_depth == 0 && rng_chance(20)) {
        go_on();
    } else if (rng_chance(o->sync_percent > 0 ? 50 : 30)) {
        backup_call(rng_chance(75) ? CALL_BACKUP_START : CALL_CREATE);
    } else if (rng_chance(o->verify_percent / 4)) {
        verify_do(rng_chance(75));
    } else if (rng_chance(o->none_percent)) {
        snapshot_act();
    } else if (rng_chance(o->group_percent)) {
        group_act();
    } else if (rng_chance(o->throttle_percent / 2)) {
        throttle_act();
    } else if (!sim_without(FAULT_VERBS)) {
        verbs_act();
    }
}

void jobs_step(void)
{
    struct chance_outer outer;

    if (sim.options.jobs_percent == 0) {
        return;
    }
    outer = chance_jobs_begin();
    if (rng_chance(sim.options.jobs_percent)) {
        jobs_act();
    }
    chance_jobs_end(outer);
}

bool jobs_want_inside(uint32_t factor)
{
    uint32_t percent = sim.options.jobs_inside_percent * factor;
    struct chance_outer outer;
    bool wants;

    if (percent == 0) {
        return false;
    }
    outer = chance_jobs_begin();
    wants = rng_chance(percent);
    chance_jobs_end(outer);
    return wants;
}

static void one_call(enum call call)
{
    const struct sim_options *o = &sim.options;

    if ((call > CALL_JOB_NEXT && call <= CALL_GROUP_FREE && o->group_percent == 0) ||
        (call == CALL_SNAPSHOT_OPEN && o->none_percent == 0) ||
        (call >= CALL_THROTTLE_CREATE && o->throttle_percent == 0)) {
        return;
    }
    if (call <= CALL_JOB_NEXT) {
        if (call != CALL_JOB_DISMISS || rng_chance(50)) {
            job_call(call);
        }
    } else if (call <= CALL_GROUP_FREE) {
        group_call(call);
    } else if (call == CALL_SNAPSHOT_OPEN) {
        snapshot_call(call);
    } else if (call <= CALL_VERIFY_START) {
        verify_do(call == CALL_VERIFY_START);
    } else {
        throttle_call(call);
    }
}

void jobs_inside(void)
{
    struct chance_outer outer = chance_jobs_begin();

    if (rng_chance(40)) {
        jobs_act();
    } else {
        one_call((enum call)rng_between(CALL_JOB_FIRST, CALL_COUNT - 1));
    }
    chance_jobs_end(outer);
}

/* ---- The part ---------------------------------------------------------------------- */

static uint32_t some(uint32_t percent, enum fault fault)
{
    uint32_t value = rng_chance(percent) ? (uint32_t)rng_between(10, 100) : 0;

    return sim_without(fault) ? 0 : value;
}

static void jobs_draw(void)
{
    struct sim_options *o = &sim.options;
    struct chance_outer outer = chance_jobs_begin();
    bool any = rng_chance(60);
    uint32_t percent = (uint32_t)rng_between(2, rng_chance(60) ? 20 : 70);

    o->jobs_inside_percent = rng_chance(65) ? 0 : (uint32_t)rng_between(1, 15);
    o->sync_percent = some(40, FAULT_SYNC);
    o->policy_percent = some(50, FAULT_POLICY);
    o->finale_percent = some(30, FAULT_FINALE);
    o->compress_percent = some(10, FAULT_COMPRESS);
    o->spill_percent = some(25, FAULT_SPILL);
    o->burst_percent = some(15, FAULT_BURST);
    o->group_percent = some(25, FAULT_GROUPS);
    o->none_percent = some(25, FAULT_SNAPSHOTS);
    o->verify_percent = some(20, FAULT_VERIFY);
    o->throttle_percent = some(20, FAULT_THROTTLES);
    o->more_backups = BACKUPS_MAX - BACKUPS_DRAWN;
    any = any && o->sync_percent + o->policy_percent + o->finale_percent + o->compress_percent +
                         o->spill_percent + o->burst_percent + o->group_percent + o->none_percent +
                         o->verify_percent + o->throttle_percent >
                     0;
    o->jobs_percent = any ? percent : 0;
    o->jobs_inside_percent *= any && !sim_without(FAULT_REENTRY);
    o->backups += any ? o->more_backups : 0;
    o->any_bitmaps = o->bitmaps_percent > 0 ||
                     (any && o->sync_percent + o->none_percent + o->verify_percent > 0);
    for (uint32_t i = 0; i < o->disks; i++) {
        bool compress = rng_chance(60) && o->compress_percent > 0 && any;

        sim.disks[i].info.flags |= compress ? BLKREPL_BACKEND_COMPRESS : 0u;
    }
    chance_jobs_end(outer);
}

static void jobs_open(void)
{
    const struct sim_options *o = &sim.options;
    struct chance_outer outer;

    if (o->jobs_percent == 0 || !o->any_bitmaps) {
        return;
    }
    outer = chance_jobs_begin();
    for (uint32_t i = 0; i < o->sources; i++) {
        if (o->sync_percent + o->none_percent > 0) {
            bitmap_for_jobs(&sim.disks[i], sim.disks[i].bytes);
        }
        if (o->verify_percent > 0) {
            bitmap_for_jobs(NULL, sim.disks[i].bytes);
        }
    }
    chance_jobs_end(outer);
}

static void jobs_watch(void)
{
    if (sim.group_count > 0) {
        oracle_group_watch();
    }
}

static void jobs_close(uint32_t percent)
{
    group_drop_all(percent);
}

static void jobs_list(void)
{
    const struct sim_options *o = &sim.options;

    printf("jobs: %u%% of the steps, %u%% inside; sync %u%%, policy %u%%, finale %u%%, compress "
           "%u%%, spill %u%%, burst %u%%, groups %u%%, snapshots %u%%, verify %u%%, throttles "
           "%u%%\n",
           o->jobs_percent, o->jobs_inside_percent, o->sync_percent, o->policy_percent,
           o->finale_percent, o->compress_percent, o->spill_percent, o->burst_percent,
           o->group_percent, o->none_percent, o->verify_percent, o->throttle_percent);
    for (uint32_t i = 0; i < sim.backup_count; i++) {
        const struct backup *b = &sim.backups[i];
        const blkrepl_backup_options *n = &b->options;

        printf("job %u: kind %u, sync %u, bitmap %d, mode %u, on errors %u/%u, flags %u, spill %d "
               "of %llu, group %u, through %d\n",
               i, b->kind, n->sync, b->bitmap != NULL ? (int)(b->bitmap - sim.bitmaps) : -1,
               n->bitmap_mode, b->on_error[1], b->on_error[2], b->job_flags,
               b->spill != NULL ? (int)b->spill->index : -1, (ull)n->spill_bytes_max, b->group,
               b->through != NULL ? (int)(b->through - sim.snapshots) : -1);
    }
}

const struct part jobs_part = {.draw = jobs_draw,
                               .open = jobs_open,
                               .watch = jobs_watch,
                               .close = jobs_close,
                               .list = jobs_list};
