/* SPDX-License-Identifier: MIT */
/* options_backup.c - backups with options from the input. */
#include "options.h"

#include "base/abi.h"

#include <stdlib.h>

#define CLUSTERS_MOST (UINT64_C(1) << 38)
#define ROUNDS_MAX 400
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
};
static const struct field job_info_fields[] = {
    FIELD(blkrepl_job_info, kind, FIELD_U32),
    FIELD(blkrepl_job_info, id, FIELD_U64),
    FIELD(blkrepl_job_info, bytes_total, FIELD_U64),
};

static const struct shape backup_shape =
    SHAPE(blkrepl_backup_options, BLKREPL_BACKUP_OPTIONS_V1_BYTES, backup_fields);
static const struct shape job_info_shape =
    SHAPE(blkrepl_job_info, BLKREPL_JOB_INFO_V1_BYTES, job_info_fields);

/* A backup under examination. */
struct subject {
    blkrepl_backup_options o; /* as the library must understand them         */
    struct packed packed;
    struct release *release;
    char *name;
    int source; /* of enum bench_disk, or -1                                  */
    int target;
    bool start;
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

static bool cluster_valid(uint64_t bytes)
{
    return bytes == 0 ||
           ((bytes & (bytes - 1)) == 0 && bytes >= 4 * KIB && bytes <= 16 * KIB * KIB);
}

static bool options_valid(const blkrepl_backup_options *o)
{
    uint32_t flags = BLKREPL_BACKUP_DETECT_ZEROES | BLKREPL_BACKUP_NO_OFFLOAD;

    return (o->flags & ~flags) == 0 && o->reserved0 == 0 && o->reserved1 == NULL &&
           o->sync <= BLKREPL_SYNC_FULL && o->on_cbw_error <= BLKREPL_CBW_GUEST_WRITE_FAILS &&
           cluster_valid(o->cluster_bytes) && o->workers_max <= 1024 &&
           o->chunk_bytes_max <= UINT64_C(1) << 30 && o->reserve_bytes <= UINT64_C(1) << 40;
}

static bool name_valid(const char *name)
{
    return name == NULL || (name[0] != '\0' && strlen(name) <= BLKREPL_NAME_MAX);
}

static struct sizes sizes_of(const struct subject *s)
{
    const struct disk *source = &bench.disks[s->source];
    const struct disk *target = &bench.disks[s->target];
    const blkrepl_backup_options *o = &s->o;
    uint64_t chunk = o->chunk_bytes_max != 0 ? o->chunk_bytes_max : 256 * KIB;
    uint64_t reserve = o->reserve_bytes != 0 ? o->reserve_bytes : 16 * KIB * KIB;
    struct sizes sizes = {.cluster = o->cluster_bytes};

    if (sizes.cluster == 0) {
        sizes.cluster = larger(64 * KIB, larger(disk_alignment(source), disk_alignment(target)));
        sizes.cluster =
            larger(sizes.cluster, larger(source->info.cluster_bytes, target->info.cluster_bytes));
    }
    sizes.chunk = larger(chunk / sizes.cluster, 1) * sizes.cluster;
    sizes.workers = o->workers_max != 0 ? o->workers_max : 8;
    sizes.reserves = larger(reserve / sizes.cluster, 1);
    return sizes;
}

/* Errors that the images, the memory and the requests of the context lead to. */
static void judge_images(struct subject *s)
{
    const struct disk *source = &bench.disks[s->source];
    const struct disk *target = &bench.disks[s->target];
    struct sizes sizes;
    uint64_t clusters;

    verdict_add_if(&s->verdict, s->source == s->target, -EINVAL);
    verdict_add_if(&s->verdict, target->info.bytes < source->info.bytes, -ENOSPC);
    verdict_add_if(&s->verdict, s->target == BENCH_READ_ONLY, -EROFS);
    if (!options_valid(&s->o)) {
        return;
    }
    sizes = sizes_of(s);
    clusters = source->info.bytes / sizes.cluster + (source->info.bytes % sizes.cluster != 0);
    verdict_add_if(&s->verdict,
                   sizes.cluster < larger(disk_alignment(source), disk_alignment(target)),
                   -ENOTSUP);
    verdict_add_if(&s->verdict, clusters > CLUSTERS_MOST, -EFBIG);
    verdict_add_if(&s->verdict,
                   sizes.workers * sizes.chunk + sizes.reserves * sizes.cluster >
                       bench.memory_bytes_max,
                   -ENOMEM);
    /* A request for each buffer, and for the flush. */
    verdict_add_if(&s->verdict, sizes.workers + sizes.reserves + 1 > bench.job_requests_max,
                   -ENOMEM);
}

static void judge(struct subject *s)
{
    verdict_add_packing(&s->verdict, &s->packed);
    verdict_add_if(
        &s->verdict,
        s->source < 0 || s->target < 0 || !options_valid(&s->o) || !name_valid(s->o.name), -EINVAL);
    if (s->source >= 0 && s->target >= 0) {
        judge_images(s);
    }
}

/* ---- Drawing ----------------------------------------------------------------- */

static void draw_disks(struct subject *s)
{
    s->source = BENCH_SOURCE;
    s->target = BENCH_TARGET;
    if (take_chance(40)) {
        s->source = (int)take_below(BENCH_DISKS + 1) - 1;
        s->target = (int)take_below(BENCH_DISKS + 1) - 1;
    }
    for (int i = 0; i < 2; i++) {
        int which = i == 0 ? s->source : s->target;

        if (which >= 0) {
            bench_image((enum bench_disk)which);
        }
    }
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
    shape_draw(&backup_shape, o);
    s->name = take_chance(40) ? name_draw() : NULL;
    s->release = release_new();
    o->name = s->name;
    o->user = s->release;
    o->release = s->release != NULL ? release_run : NULL;
    s->packed = shape_pack(&backup_shape, o, true);
    if (s->packed.packing == PACKED_NULL) {
        *o = (blkrepl_backup_options){.struct_size = 0};
    }
}

/* ---- A query with a struct of any size --------------------------------------- */

void job_query_any(blkrepl_job *job)
{
    blkrepl_job_info drawn;
    blkrepl_job_info full = {.struct_size = sizeof full};
    struct packed packed;
    uint32_t size;
    unsigned char *bytes;
    int rc;

    memset(&drawn, 0xa5, sizeof drawn);
    shape_draw(&job_info_shape, &drawn);
    packed = shape_pack(&job_info_shape, &drawn, false);
    bytes = packed.memory;
    size = packed.struct_size;
    call_begin();
    rc = blkrepl_job_query(job, packed.memory);
    call_end(rc, "job_query");
    EXPECT(rc == (size < BLKREPL_JOB_INFO_V1_BYTES ? -EINVAL : 0), "a query of %u bytes, got %d",
           (unsigned)size, rc);
    if (rc == 0) {
        EXPECT(blkrepl_job_query(job, &full) == 0, "a query of the whole");
        full.struct_size = size;
        EXPECT(memcmp(bytes, &full, size < sizeof full ? size : sizeof full) == 0,
               "the same answer for any size");
        for (size_t i = sizeof full; i < size; i++) {
            EXPECT(bytes[i] == 0, "zeroes beyond what the library knows");
        }
    } else {
        bench_refused();
    }
    packed_free(&packed);
}

/* ---- A job that was made is as it was asked for ------------------------------ */

static blkrepl_job_info info_of(const struct subject *s)
{
    blkrepl_job_info info = {.struct_size = sizeof info};
    int rc = blkrepl_job_query(s->job, &info);

    EXPECT(rc == 0 && info.kind == BLKREPL_KIND_BACKUP && info.state >= BLKREPL_JOB_CREATED &&
               info.state <= BLKREPL_JOB_CONCLUDED && info.reserved0 == NULL,
           "a backup to answer a query, got %d", rc);
    EXPECT(info.bytes_done <= info.bytes_total, "progress to stay below the total");
    return info;
}

static void expect_created(const struct subject *s)
{
    blkrepl_job_info info = info_of(s);

    EXPECT(name_matches(s->name, "backup", info.id, info.name) || s->packed.memory == NULL,
           "the name that was given, got \"%s\"", info.name);
    EXPECT(info.user == s->o.user, "the user that was given");
    EXPECT(info.speed_bytes_per_sec == s->o.speed_bytes_per_sec, "a speed of %llu, got %llu",
           (ull)s->o.speed_bytes_per_sec, (ull)info.speed_bytes_per_sec);
    EXPECT(info.bytes_total == bench.disks[s->source].info.bytes && info.bytes_done == 0 &&
               info.error == 0 && info.error_count == 0 && info.message[0] == '\0' &&
               info.result == 0 && info.flags == 0,
           "a job that has done nothing yet");
    EXPECT(info.state == (s->start ? BLKREPL_JOB_RUNNING : BLKREPL_JOB_CREATED),
           "a job that is %s, got %u", s->start ? "running" : "created", (unsigned)info.state);
}

/* While it exists, neither its name nor its target can be had. */
static void expect_taken(const struct subject *s)
{
    blkrepl_backup_options o = {.struct_size = sizeof o, .name = s->name};
    blkrepl_job *job = s->job;
    int rc;

    o.cluster_bytes = larger(4 * KIB, disk_alignment(&bench.disks[s->target]));
    o.reserve_bytes = o.cluster_bytes;
    o.chunk_bytes_max = o.cluster_bytes;
    o.workers_max = 1;
    call_begin();
    rc = blkrepl_backup_create(bench_image(BENCH_SOURCE), bench.images[s->target], &o, &job);
    call_end(rc, "backup_create to a busy target");
    EXPECT(job == NULL && (rc == -EBUSY || rc == -EINVAL || (rc == -EEXIST && s->name != NULL)),
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

/* A verb, which must answer as the table of job.h has it. */
static void draw_verb(struct subject *s)
{
    blkrepl_job_info before = info_of(s);
    bool live = before.state < BLKREPL_JOB_CONCLUDED;
    bool paused = (before.flags & BLKREPL_JOB_FLAG_PAUSED) != 0;
    bool cancelling = (before.flags & BLKREPL_JOB_FLAG_CANCELLING) != 0;
    uint64_t number = take_number();
    bool ok = live;
    int rc = 0;

    call_begin();
    switch (take_below(5)) {
    case 0:
        rc = blkrepl_job_set_speed(s->job, number);
        EXPECT(rc < 0 || info_of(s).speed_bytes_per_sec == number, "the speed that was set");
        break;
    case 1:
        rc = blkrepl_job_pause(s->job);
        ok = live && (!paused || cancelling);
        break;
    case 2:
        rc = blkrepl_job_resume(s->job);
        ok = live && (paused || cancelling);
        break;
    case 3:
        rc = blkrepl_job_start(s->job);
        ok = before.state == BLKREPL_JOB_CREATED;
        break;
    default:
        rc = blkrepl_job_cancel(s->job, (uint32_t)number & (take_chance(90) ? UINT32_MAX : 1));
        if (rc == -EINVAL && (number & ~UINT64_C(1)) != 0) {
            rc = 0;
            ok = true;
            call_begin();
        }
        break;
    }
    call_end(rc, "a verb");
    EXPECT(ok ? rc == 0 : rc == BLKREPL_ERR_STATE,
           "a verb in state %u to answer as documented, got %d", (unsigned)before.state, rc);
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
    bool limited = info_of(s).speed_bytes_per_sec != 0; /* has deadlines of its own */
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

static void finish_queued(void)
{
    for (unsigned i = 0; i < BENCH_DISKS; i++) {
        if (bench.images[i] != NULL) {
            (void)disk_complete_all(&bench.disks[i]);
        }
    }
}

/* Let the job run, and time pass, until it ends; if that takes long, cancel it. */
static void run_to_end(const struct subject *s)
{
    for (int i = 0; i < 2 * ROUNDS_MAX; i++) {
        uint64_t deadline;

        finish_queued();
        deadline = bench_drain();
        if (info_of(s).state == BLKREPL_JOB_CONCLUDED) {
            return;
        }
        if (deadline != BLKREPL_FOREVER) {
            clock_now = larger(clock_now, deadline);
        }
        if (i == ROUNDS_MAX / 8) {
            (void)blkrepl_job_cancel(s->job, 0);
        }
    }
    EXPECT(false, "the job to come to its end");
}

static void expect_result(const struct subject *s, const struct sizes *sizes)
{
    const struct disk *source = &bench.disks[s->source];
    const struct disk *target = &bench.disks[s->target];
    blkrepl_job_info info = info_of(s);

    EXPECT(source->background_bytes_most <= sizes->chunk, "copies of at most %llu bytes, got %llu",
           (ull)sizes->chunk, (ull)source->background_bytes_most);
    EXPECT(source->background_reads_most <= sizes->workers, "at most %llu copies at once, got %u",
           (ull)sizes->workers, (unsigned)source->background_reads_most);
    if (info.result == BLKREPL_RESULT_DONE) {
        EXPECT(info.bytes_done == info.bytes_total && info.error == 0, "all of it done");
        EXPECT(memcmp(source->medium, target->medium, (size_t)source->info.bytes) == 0,
               "a copy that is the same");
    } else {
        EXPECT(info.error < 0, "a code for what went wrong");
    }
}

/* Whether the guest's write to the source would have to wait now. */
static bool may_probe(const struct subject *s)
{
    const struct disk *source = &bench.disks[s->source];
    blkrepl_job_info info = info_of(s);

    return source->on_submit == NULL && info.state == BLKREPL_JOB_RUNNING && info.flags == 0 &&
           info.bytes_done == 0 && source->info.bytes >= 4 * KIB &&
           disk_alignment(source) <= 4 * KIB &&
           (source->info.flags & BLKREPL_BACKEND_READ_ONLY) == 0;
}

static void use_job(struct subject *s)
{
    struct sizes sizes = sizes_of(s);
    struct disk *source = &bench.disks[s->source];
    bool held = take_chance(50);

    expect_created(s);
    expect_taken(s);
    job_query_any(s->job);
    /* It may have ended by now: a query that was refused has polled. */
    if (take_chance(30) && info_of(s).state < BLKREPL_JOB_CONCLUDED) {
        probe_budget(&sizes);
    }
    source->on_submit = held ? NULL : disk_complete_inline;
    source->background_bytes_most = 0;
    source->background_reads_most = 0;
    for (uint32_t verbs = take_below(4); verbs > 0; verbs--) {
        draw_verb(s);
    }
    if (may_probe(s) && take_chance(50)) {
        probe_timeout(s);
    }
    if (info_of(s).state == BLKREPL_JOB_CREATED) {
        (void)blkrepl_job_start(s->job);
    }
    (void)blkrepl_job_resume(s->job);
    run_to_end(s);
    source->on_submit = disk_complete_inline;
    expect_result(s, &sizes);
    EXPECT(s->release == NULL || s->packed.packing == PACKED_NULL || s->release->count == 0,
           "no release while there is a handle");
    blkrepl_job_free(s->job);
    (void)bench_drain();
}

static void subject_expect_released(const struct subject *s)
{
    if (s->release == NULL) {
        return;
    }
    if (!packed_readable(&s->packed)) {
        EXPECT(s->release->count == 0, "no release that the library cannot know");
        release_run(s->release);
    }
    EXPECT(s->release->count == 1, "the job's user to be released once, got %u", s->release->count);
}

void act_backup(void)
{
    struct subject s = {.o = {.struct_size = 0}};
    int rc;

    draw_disks(&s);
    draw_options(&s);
    s.start = take_chance(60);
    judge(&s);
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
    free(s.packed.memory);
    bench.job = rc == 0;
    if (rc == 0) {
        use_job(&s);
        bench.job = false;
    } else {
        bench_refused();
    }
    subject_expect_released(&s);
    free(s.name);
}
