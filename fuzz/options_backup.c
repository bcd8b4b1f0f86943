/* SPDX-License-Identifier: MIT */
/* options_backup.c - backups with options from the input. */
#include "options.h"

#include "base/abi.h"

#include <stdlib.h>

#define CLUSTERS_MOST (UINT64_C(1) << 38)
#define MEDIUM_BYTES (8 * KIB)
#define CBW_TIMEOUT_DEFAULT_NS UINT64_C(30000000000)

static const struct field backup_fields[] = {
    FIELD(blkrepl_backup_options, cluster_bytes, FIELD_U64),
    FIELD(blkrepl_backup_options, chunk_bytes_max, FIELD_U64),
    FIELD(blkrepl_backup_options, reserve_bytes, FIELD_U64),
    FIELD(blkrepl_backup_options, workers_max, FIELD_U32),
    FIELD(blkrepl_backup_options, speed_bytes_per_sec, FIELD_U64),
    FIELD(blkrepl_backup_options, cbw_timeout_ns, FIELD_U64),
    FIELD(blkrepl_backup_options, sync, FIELD_U32),
    FIELD(blkrepl_backup_options, on_cbw_error, FIELD_U32),
    FIELD(blkrepl_backup_options, flags, FIELD_U32),
    FIELD(blkrepl_backup_options, reserved0, FIELD_U32),
    FIELD(blkrepl_backup_options, reserved1, FIELD_POINTER),
    FIELD(blkrepl_backup_options, on_source_error, FIELD_U32),
    FIELD(blkrepl_backup_options, on_target_error, FIELD_U32),
    FIELD(blkrepl_backup_options, job_flags, FIELD_U32),
    FIELD(blkrepl_backup_options, bitmap_mode, FIELD_U32),
    FIELD(blkrepl_backup_options, spill_bytes_max, FIELD_U64),
    FIELD(blkrepl_backup_options, speed_burst_bytes, FIELD_U64),
};
/* Never garbage, so they are not drawn with the others. */
static const struct field backup_pointers[] = {
    FIELD(blkrepl_backup_options, bitmap, FIELD_POINTER),
    FIELD(blkrepl_backup_options, spill, FIELD_POINTER),
    FIELD(blkrepl_backup_options, throttle, FIELD_POINTER),
};

static const struct shape backup_shape =
    SHAPE(blkrepl_backup_options, BLKREPL_BACKUP_OPTIONS_V1_BYTES, backup_fields);
static const struct shape backup_cut_shape =
    SHAPE(blkrepl_backup_options, BLKREPL_BACKUP_OPTIONS_V1_BYTES, backup_pointers);

/* A backup under examination. */
struct subject {
    blkrepl_backup_options o; /* as the library must understand them         */
    struct packed packed;
    struct release *release;
    char *name;
    int source; /* of enum bench_disk, or -1                                  */
    int target;
    int spill;
    struct given_bitmap bitmap;
    blkrepl_throttle *throttle;
    bool start;
    int start_code; /* what a start answers that is allowed                      */
    bool started;
    uint8_t before[MEDIUM_BYTES]; /* the target's medium                         */
    struct verdict verdict;
    blkrepl_job *job;
};

/* What the options mean for these images. */
struct sizes {
    uint64_t cluster;
    uint64_t chunk;
    uint64_t workers;
    uint64_t reserves; /* buffers of one cluster                             */
};

/* ---- What the header says ---------------------------------------------------- */

static uint64_t larger(uint64_t a, uint64_t b)
{
    return a > b ? a : b;
}

static struct sizes sizes_of(const struct subject *s)
{
    const struct disk *source = &bench.disks[s->source];
    const struct disk *target = &bench.disks[s->target];
    const blkrepl_backup_options *o = &s->o;
    uint64_t chunk = o->chunk_bytes_max != 0 ? o->chunk_bytes_max : 256 * KIB;
    uint64_t reserve = o->reserve_bytes != 0 ? o->reserve_bytes : 16 * KIB * KIB;
    struct sizes sizes = {.cluster = o->cluster_bytes};
    bool compress = (o->flags & BLKREPL_BACKUP_COMPRESS) != 0;

    if (sizes.cluster == 0 && compress && target->info.cluster_bytes != 0) {
        sizes.cluster = target->info.cluster_bytes;
    } else if (sizes.cluster == 0) {
        sizes.cluster = larger(64 * KIB, larger(disk_alignment(source), disk_alignment(target)));
        sizes.cluster =
            larger(sizes.cluster, larger(source->info.cluster_bytes, target->info.cluster_bytes));
    }
    sizes.chunk = compress ? sizes.cluster : larger(chunk / sizes.cluster, 1) * sizes.cluster;
    sizes.workers = o->workers_max != 0 ? o->workers_max : 8;
    sizes.reserves = larger(reserve / sizes.cluster, 1);
    return sizes;
}

/* What the images need of a cluster. */
static void judge_cluster(struct subject *s, uint64_t cluster)
{
    const blkrepl_backend_info *target = &bench.disks[s->target].info;
    uint64_t need =
        larger(disk_alignment(&bench.disks[s->source]), disk_alignment(&bench.disks[s->target]));

    if (s->o.spill != NULL) {
        need = larger(need, disk_alignment(&bench.disks[s->spill]));
    }
    verdict_add_if(&s->verdict, cluster < larger(need, target->cluster_bytes), -ENOTSUP);
    verdict_add_if(
        &s->verdict,
        (s->o.flags & BLKREPL_BACKUP_COMPRESS) != 0 &&
            ((target->flags & BLKREPL_BACKEND_COMPRESS) == 0 || cluster != target->cluster_bytes),
        -ENOTSUP);
}

/* Errors that the images, the memory and the requests of the context lead to. */
static void judge_budget(struct subject *s)
{
    const struct disk *source = &bench.disks[s->source];
    struct sizes sizes = sizes_of(s);
    uint64_t clusters =
        source->info.bytes / sizes.cluster + (source->info.bytes % sizes.cluster != 0);

    judge_cluster(s, sizes.cluster);
    verdict_add_if(&s->verdict, clusters > CLUSTERS_MOST, -EFBIG);
    verdict_add_if(&s->verdict,
                   sizes.workers * sizes.chunk + sizes.reserves * sizes.cluster >
                       bench.memory_bytes_max,
                   -ENOMEM);
    /* A request for each buffer, and for the flush. */
    verdict_add_if(&s->verdict, sizes.workers + sizes.reserves + 1 > bench.job_requests_max,
                   -ENOMEM);
}

static void judge_images(struct subject *s)
{
    const struct disk *source = &bench.disks[s->source];
    const struct disk *target = &bench.disks[s->target];
    bool spill = s->o.spill != NULL;

    verdict_add_if(&s->verdict,
                   s->source == s->target ||
                       (spill && (s->spill == s->source || s->spill == s->target)),
                   -EINVAL);
    verdict_add_if(&s->verdict,
                   target->info.bytes < source->info.bytes ||
                       (spill && bench.disks[s->spill].info.bytes < source->info.bytes),
                   -ENOSPC);
    verdict_add_if(&s->verdict,
                   s->target == BENCH_READ_ONLY || (spill && s->spill == BENCH_READ_ONLY), -EROFS);
    if (s->o.bitmap != NULL) {
        given_bitmap_judge(&s->bitmap, source->info.bytes, &s->verdict);
        s->start_code = s->bitmap.frozen ? -EBUSY : 0;
        verdict_add_if(&s->verdict, s->start && s->bitmap.frozen, -EBUSY);
    }
    if (backup_options_valid(&s->o)) {
        judge_budget(s);
    }
}

static void judge(struct subject *s)
{
    verdict_add_packing(&s->verdict, &s->packed);
    verdict_add_if(&s->verdict,
                   s->source < 0 || s->target < 0 || !backup_options_valid(&s->o) ||
                       !job_name_valid(s->o.name),
                   -EINVAL);
    if (s->source >= 0 && s->target >= 0) {
        judge_images(s);
    }
}

/* ---- Drawing ----------------------------------------------------------------- */

static void draw_disks(struct subject *s)
{
    s->source = BENCH_SOURCE;
    s->target = BENCH_TARGET;
    s->spill = -1;
    if (take_chance(40)) {
        s->source = (int)take_below(BENCH_DISKS + 1) - 1;
        s->target = (int)take_below(BENCH_DISKS + 1) - 1;
    } else if (take_chance(15)) {
        s->target = BENCH_COMPRESS;
    }
    if (take_chance(20)) {
        s->spill = take_chance(50) ? (int)take_below(BENCH_DISKS) : (int)BENCH_COARSE;
    }
    for (int i = 0; i < 3; i++) {
        int which = i == 0 ? s->source : i == 1 ? s->target : s->spill;

        if (which >= 0) {
            bench_image((enum bench_disk)which);
        }
    }
}

/* Of the newer fields what mostly fits together. */
static void draw_use(struct subject *s)
{
    blkrepl_backup_options *o = &s->o;
    uint64_t bytes = s->source >= 0 ? bench.disks[s->source].info.bytes : MEDIUM_BYTES;
    bool by_bitmap;

    o->sync = take_below(5);
    o->flags = take_chance(30) ? take_below(16) : 0;
    o->job_flags = take_below(4);
    o->on_source_error = take_below(5);
    o->on_target_error = take_below(5);
    o->spill_bytes_max = s->spill >= 0 ? take_u16() : 0;
    o->speed_burst_bytes = take_u16();
    by_bitmap = o->sync == BLKREPL_SYNC_BITMAP || o->sync == BLKREPL_SYNC_INCREMENTAL ||
                (o->flags & BLKREPL_BACKUP_DIRTY_ONLY) != 0;
    if (take_chance(by_bitmap ? 95 : 30)) {
        given_bitmap_draw(&s->bitmap, bytes);
        o->bitmap_mode = o->sync == BLKREPL_SYNC_INCREMENTAL ? take_below(2) : 1 + take_below(3);
    }
    s->throttle = given_throttle_draw();
}

static void draw_options(struct subject *s)
{
    blkrepl_backup_options *o = &s->o;

    if (!take_chance(10)) {
        o->cluster_bytes = (4 * KIB) << take_below(4);
        o->chunk_bytes_max = (1 + take_below(4)) * o->cluster_bytes;
        o->chunk_bytes_max -= take_below(2);
        o->reserve_bytes = 1 + take_below(8) * 2 * KIB;
        o->workers_max = 1 + take_below(4);
        o->on_cbw_error = take_below(3);
    }
    draw_use(s);
    if (take_chance(40)) {
        shape_draw(&backup_shape, o);
    }
    s->name = take_chance(40) ? name_draw() : NULL;
    s->release = release_new();
    o->name = s->name;
    o->user = s->release;
    o->release = s->release != NULL ? release_run : NULL;
    o->bitmap = s->bitmap.handle;
    o->spill = s->spill >= 0 ? bench.images[s->spill] : NULL;
    o->throttle = s->throttle;
    s->packed = shape_pack(&backup_shape, o, true);
    shape_cut(&backup_cut_shape, o, &s->packed);
}

/* ---- A job that was made is as it was asked for ------------------------------ */

static blkrepl_job_info info_of(const struct subject *s)
{
    blkrepl_job_info info = job_info(s->job);

    EXPECT(info.kind == BLKREPL_KIND_BACKUP && info.group_id == 0 && info.differing_bytes == 0,
           "a backup in no group");
    EXPECT(info.spilled_bytes <= info.spilled_bytes_total &&
               (s->o.spill != NULL || info.spilled_bytes_total == 0),
           "bytes in a spill image, %llu of %llu", (ull)info.spilled_bytes,
           (ull)info.spilled_bytes_total);
    return info;
}

static void expect_created(const struct subject *s)
{
    blkrepl_job_info info = info_of(s);
    bool full = backup_sync_of(&s->o) == BLKREPL_SYNC_FULL;
    uint64_t bytes = bench.disks[s->source].info.bytes;

    EXPECT(name_matches(s->name, "backup", info.id, info.name) || s->packed.packing == PACKED_NULL,
           "the name that was given, got \"%s\"", info.name);
    EXPECT(info.user == s->o.user, "the user that was given");
    EXPECT(info.speed_bytes_per_sec == s->o.speed_bytes_per_sec, "a speed of %llu, got %llu",
           (ull)s->o.speed_bytes_per_sec, (ull)info.speed_bytes_per_sec);
    EXPECT((info.bytes_total == bytes || (!full && info.bytes_total < bytes)) &&
               info.bytes_done == 0 && info.error == 0 && info.error_count == 0 &&
               info.message[0] == '\0' && info.result == 0 && info.flags == 0,
           "a job that has done nothing yet");
    EXPECT(info.state == (s->start ? BLKREPL_JOB_RUNNING : BLKREPL_JOB_CREATED) ||
               (s->start && !full && info.state == BLKREPL_JOB_READY),
           "a job that is %s, got %u", s->start ? "running" : "created", (unsigned)info.state);
}

/* While it exists, neither its name nor what it writes to can be had. */
static void expect_taken(const struct subject *s, int which)
{
    blkrepl_backup_options o = {.struct_size = sizeof o, .name = s->name};
    blkrepl_job *job = s->job;
    int rc;

    o.cluster_bytes = larger(4 * KIB, disk_alignment(&bench.disks[which]));
    o.cluster_bytes = larger(o.cluster_bytes, bench.disks[which].info.cluster_bytes);
    o.reserve_bytes = o.cluster_bytes;
    o.chunk_bytes_max = o.cluster_bytes;
    o.workers_max = 1;
    call_begin();
    rc = blkrepl_backup_create(bench_image(BENCH_SOURCE), bench.images[which], &o, &job);
    call_end(rc, "backup_create to a busy target");
    EXPECT(job == NULL && (rc == -EBUSY || rc == -EINVAL || (rc == -EEXIST && s->name != NULL) ||
                           (rc == -ENOMEM && 2 * o.cluster_bytes > bench.memory_bytes_max)),
           "a target that is busy, got %d", rc);
}

/* A second job gets what the first has left of memory and requests, and no more. */
static void probe_budget(const struct sizes *sizes)
{
    uint64_t used = sizes->workers * sizes->chunk + sizes->reserves * sizes->cluster;
    uint64_t left = bench.memory_bytes_max - used;
    uint64_t requests = bench.job_requests_max - (sizes->workers + sizes->reserves + 1);
    uint64_t reserves = left / (4 * KIB) + take_below(4);
    blkrepl_backup_options o = {.struct_size = sizeof o,
                                .cluster_bytes = 4 * KIB,
                                .chunk_bytes_max = 4 * KIB,
                                .workers_max = 1};
    struct verdict verdict = {.count = 0};
    blkrepl_job *job;
    int rc;

    reserves = larger(reserves, 3) - 2;
    if (reserves * 4 * KIB > HEAP_BLOCK_MAX / 2) {
        reserves = 1 + take_below(64);
    }
    o.reserve_bytes = reserves * 4 * KIB;
    verdict_add_if(&verdict, (1 + reserves) * 4 * KIB > left, -ENOMEM);
    verdict_add_if(&verdict, 2 + reserves > requests, -ENOMEM);
    call_begin();
    rc = blkrepl_backup_create(bench_image(BENCH_SOUND_SOURCE), bench_image(BENCH_SOUND_TARGET), &o,
                               &job);
    call_end_as(rc, &verdict, "backup_create of a second job");
    blkrepl_job_free(job);
}

/* ---- The guest beside a job whose reads do not come back --------------------- */

static void go_called(void *user, int result)
{
    release_called(user, result);
}

/* cbw_timeout_ns is neither cut nor stretched: the guest waits as long as that,
 * and no longer. */
static void probe_timeout(const struct subject *s)
{
    uint64_t timeout = s->o.cbw_timeout_ns != 0 ? s->o.cbw_timeout_ns : CBW_TIMEOUT_DEFAULT_NS;
    uint64_t end = timeout > UINT64_MAX - clock_now ? BLKREPL_FOREVER : clock_now + timeout;
    blkrepl_bracket what = {
        .struct_size = sizeof what, .opcode = BLKREPL_OP_WRITE, .bytes = 4 * KIB};
    struct release *go_user = release_new();
    blkrepl_completion go = {.fn = go_called, .user = go_user, .release = release_run};
    bool fails = s->o.on_cbw_error == BLKREPL_CBW_GUEST_WRITE_FAILS;
    bool limited =
        info_of(s).speed_bytes_per_sec != 0 || s->o.throttle != NULL; /* has deadlines of its own */
    uint64_t token;
    uint64_t deadline;
    int rc;

    if (go_user == NULL) {
        return;
    }
    rc = blkrepl_write_begin(bench.images[s->source], &what, &go, &token);
    EXPECT(rc == BLKREPL_WAIT, "a write to what is not saved to wait, got %d", rc);
    deadline = bench_drain();
    EXPECT(deadline == end || limited, "a deadline at %llu, got %llu", (ull)end, (ull)deadline);
    if (end != BLKREPL_FOREVER && !limited) {
        clock_now = end - 1;
        (void)bench_drain();
        EXPECT(go_user->calls == 0, "the write to wait until its time is over");
        clock_now = end;
        (void)bench_drain();
        EXPECT(go_user->calls == 1 && go_user->result == (fails ? -ETIMEDOUT : 0),
               "the write to be released, got %u calls, %d", go_user->calls, go_user->result);
        EXPECT(fails || blkrepl_write_end(bench.ctx, token, 0, NULL, 0, NULL) == 0,
               "the bracket to end");
    } else {
        rc = blkrepl_write_cancel(bench.ctx, token);
        EXPECT(rc == BLKREPL_WAIT, "a write that waits to be cancelled, got %d", rc);
        (void)bench_drain();
        EXPECT(go_user->calls == 1 && go_user->result == -ECANCELED, "the write to be cancelled");
    }
}

/* ---- To the end -------------------------------------------------------------- */

/* Whether the target has the source's data in a range. */
static bool on_target(const struct subject *s, uint64_t start, uint64_t end)
{
    return memcmp(bench.disks[s->source].medium + start, bench.disks[s->target].medium + start,
                  (size_t)(end - start)) == 0;
}

/* What the job was to copy is there, and nothing else has changed. */
static void expect_copied(const struct subject *s, uint64_t cluster)
{
    uint64_t bytes = bench.disks[s->source].info.bytes;
    const uint8_t *target = bench.disks[s->target].medium;
    bool full = backup_sync_of(&s->o) == BLKREPL_SYNC_FULL;

    for (uint64_t at = 0; at < bytes; at += cluster) {
        uint64_t end = at + cluster < bytes ? at + cluster : bytes;

        if (full || given_bitmap_any(&s->bitmap, at, cluster)) {
            EXPECT(on_target(s, at, end), "a copy of the cluster at %llu", (ull)at);
        } else {
            EXPECT(memcmp(target + at, s->before + at, (size_t)(end - at)) == 0,
                   "the clean cluster at %llu to be left alone", (ull)at);
        }
    }
}

/* ALWAYS, not done: what is clean now and was to be copied is on the target. */
static void expect_missing(const struct subject *s)
{
    uint64_t bytes = s->bitmap.bytes;
    bool full = backup_sync_of(&s->o) == BLKREPL_SYNC_FULL;

    for (uint64_t at = 0; at < bytes; at += 512) {
        uint64_t end = at + 512 < bytes ? at + 512 : bytes;
        bool dirty = blkrepl_bitmap_get(s->bitmap.handle, at) == 1;
        bool was = given_bitmap_any(&s->bitmap, at, 1);

        EXPECT(full || was || !dirty, "nothing to become dirty at %llu", (ull)at);
        EXPECT(dirty || (!full && !was) || on_target(s, at, end),
               "what is missing to be dirty at %llu", (ull)at);
    }
}

/* The bitmap is what its mode promises. */
static void expect_bitmap(const struct subject *s, uint32_t result)
{
    uint32_t mode = backup_mode_of(&s->o);
    bool cleared = result == BLKREPL_RESULT_DONE && mode != BLKREPL_BITMAP_NEVER;

    if (s->o.bitmap == NULL) {
        return;
    }
    if (s->started && mode == BLKREPL_BITMAP_ALWAYS && !cleared) {
        expect_missing(s);
        return;
    }
    for (uint64_t at = 0; at < s->bitmap.bytes; at += 512) {
        bool dirty = !cleared && given_bitmap_any(&s->bitmap, at, 1);

        EXPECT(blkrepl_bitmap_get(s->bitmap.handle, at) == dirty, "bit %llu of the bitmap to be %d",
               (ull)at / 512, dirty);
    }
}

static void expect_result(const struct subject *s, const struct sizes *sizes)
{
    const struct disk *source = &bench.disks[s->source];
    blkrepl_job_info info = info_of(s);

    EXPECT(source->background_bytes_most <= sizes->chunk, "copies of at most %llu bytes, got %llu",
           (ull)sizes->chunk, (ull)source->background_bytes_most);
    EXPECT(source->background_reads_most <= sizes->workers, "at most %llu copies at once, got %u",
           (ull)sizes->workers, (unsigned)source->background_reads_most);
    if (info.result == BLKREPL_RESULT_DONE) {
        EXPECT(info.bytes_done == info.bytes_total && info.error == 0, "all of it done");
        EXPECT(s->started && info.spilled_bytes == 0, "all of it on the target");
        if (backup_sync_of(&s->o) != BLKREPL_SYNC_NONE) {
            expect_copied(s, sizes->cluster);
        }
    } else {
        EXPECT(info.error < 0, "a code for what went wrong");
    }
    expect_bitmap(s, info.result);
}

/* Whether the guest's write to the source would have to wait now. */
static bool may_probe(const struct subject *s)
{
    const struct disk *source = &bench.disks[s->source];
    blkrepl_job_info info = info_of(s);

    bool all = backup_sync_of(&s->o) == BLKREPL_SYNC_FULL ||
               (backup_sync_of(&s->o) == BLKREPL_SYNC_NONE &&
                (s->o.flags & BLKREPL_BACKUP_DIRTY_ONLY) == 0);

    return source->on_submit == NULL && all && info.flags == 0 && info.bytes_done == 0 &&
           (info.state == BLKREPL_JOB_RUNNING || info.state == BLKREPL_JOB_READY) &&
           source->info.bytes >= 4 * KIB && disk_alignment(source) <= 4 * KIB &&
           (source->info.flags & BLKREPL_BACKEND_READ_ONLY) == 0;
}

static void try_snapshot(const struct subject *s, const struct sizes *sizes)
{
    struct snapshot_of of = {.job = s->job,
                             .source = &bench.disks[s->source],
                             .cluster = sizes->cluster,
                             .none = backup_sync_of(&s->o) == BLKREPL_SYNC_NONE};

    of.slots = bench.job_requests_max - (uint32_t)(sizes->workers + sizes->reserves + 1);
    of.readable = (s->o.flags & BLKREPL_BACKUP_DIRTY_ONLY) == 0 ||
                  given_bitmap_any(&s->bitmap, 0, sizes->cluster);
    snapshot_try(&of);
}

static void start_if_not(struct subject *s)
{
    if (info_of(s).state != BLKREPL_JOB_CREATED) {
        return;
    }
    s->started = job_verb(s->job, VERB_START, s->start_code) == 0;
    if (!s->started) {
        (void)job_verb(s->job, VERB_CANCEL, 0);
    }
}

/* What the input makes of it before it is let go. */
static void play_with_job(struct subject *s, const struct sizes *sizes)
{
    struct disk *source = &bench.disks[s->source];

    s->started = job_verbs_draw(s->job, s->start_code) || s->started;
    if (may_probe(s) && take_chance(50)) {
        probe_timeout(s);
    }
    start_if_not(s);
    (void)blkrepl_job_resume(s->job);
    if (take_chance(backup_sync_of(&s->o) == BLKREPL_SYNC_NONE ? 70 : 10)) {
        source->on_submit = disk_complete_inline;
        (void)disk_complete_all(source);
        (void)bench_drain();
        try_snapshot(s, sizes);
    }
}

static void use_job(struct subject *s)
{
    struct sizes sizes = sizes_of(s);
    struct disk *source = &bench.disks[s->source];
    bool held = take_chance(50);

    s->started = s->start;
    expect_created(s);
    expect_taken(s, s->target);
    if (s->o.spill != NULL) {
        expect_taken(s, s->spill);
    }
    job_query_any(s->job);
    /* It may have ended by now: a query that was refused has polled. */
    if (take_chance(30) && info_of(s).state < BLKREPL_JOB_CONCLUDED) {
        probe_budget(&sizes);
    }
    source->on_submit = held ? NULL : disk_complete_inline;
    source->background_bytes_most = 0;
    source->background_reads_most = 0;
    play_with_job(s, &sizes);
    job_run_to_end(s->job);
    source->on_submit = disk_complete_inline;
    expect_result(s, &sizes);
    EXPECT(s->release == NULL || s->packed.packing == PACKED_NULL || s->release->count == 0,
           "no release while there is a handle");
    job_drop(s->job);
}

void act_backup(void)
{
    static struct subject s;
    int rc;

    memset(&s, 0, sizeof s);

    draw_disks(&s);
    draw_options(&s);
    s.start = take_chance(60);
    judge(&s);
    if (s.target >= 0) {
        memcpy(s.before, bench.disks[s.target].medium, sizeof s.before);
    }
    heap_watch(take_chance(5) ? 1u + take_below(8) : 0);
    s.job = (blkrepl_job *)&s;
    call_begin();
    rc = (s.start ? blkrepl_backup_start : blkrepl_backup_create)(
        s.source >= 0 ? bench.images[s.source] : NULL,
        s.target >= 0 ? bench.images[s.target] : NULL, s.packed.memory, &s.job);
    verdict_add_if(&s.verdict, heap.refused && rc != 0, -ENOMEM);
    call_end_as(rc, &s.verdict, s.start ? "backup_start" : "backup_create");
    heap_watch(0);
    EXPECT((s.job != NULL) == (rc == 0), "a job exactly if the answer is 0, got %d", rc);
    packed_free(&s.packed);
    bench.job = rc == 0;
    if (rc == 0) {
        use_job(&s);
        bench.job = false;
    } else {
        bench_refused();
    }
    job_user_expect_released(s.release, &s.packed);
    given_bitmap_drop(&s.bitmap);
    blkrepl_throttle_free(s.throttle);
    free(s.name);
}
