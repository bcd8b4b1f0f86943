/* SPDX-License-Identifier: MIT */
/* options_throttle.c - throttles with options and infos of every size, and an image that
 * goes through one; groups. */
#include "options.h"

#include "base/abi.h"

#define PASSES_MAX 4
#define WAITS_MAX 100
/* Beyond it what is owed may never be paid in the clock's life. */
#define CLOCK_LATE (UINT64_MAX / 2)

static const struct field options_fields[] = {
    FIELD(blkrepl_throttle_options, flags, FIELD_U32),
    FIELD(blkrepl_throttle_options, bytes_per_sec, FIELD_U64),
    FIELD(blkrepl_throttle_options, ops_per_sec, FIELD_U64),
    FIELD(blkrepl_throttle_options, burst_bytes, FIELD_U64),
    FIELD(blkrepl_throttle_options, burst_ops, FIELD_U64),
};
static const struct field info_fields[] = {
    FIELD(blkrepl_throttle_info, waiting, FIELD_U32),
    FIELD(blkrepl_throttle_info, bytes, FIELD_U64),
};
static const struct shape options_shape =
    SHAPE(blkrepl_throttle_options, BLKREPL_THROTTLE_OPTIONS_V1_BYTES, options_fields);
static const struct shape info_shape =
    SHAPE(blkrepl_throttle_info, BLKREPL_THROTTLE_INFO_V1_BYTES, info_fields);

/* ---- Throttles ----------------------------------------------------------------- */

static struct packed draw(blkrepl_throttle_options *o, struct verdict *verdict)
{
    struct packed packed;

    *o = (blkrepl_throttle_options){.bytes_per_sec = take_u16()};
    shape_draw(&options_shape, o);
    o->flags = take_chance(80) ? 0 : o->flags;
    packed = shape_pack(&options_shape, o, true);
    shape_cut(&options_shape, o, &packed);
    verdict_add_packing(verdict, &packed);
    verdict_add_if(verdict, packed.packing != PACKED_SHORT && o->flags != 0, -EINVAL);
    return packed;
}

/* A query of any size says what one of the right size does. */
static void query_any(blkrepl_throttle *throttle, const blkrepl_throttle_info *full)
{
    struct packed packed = info_draw(&info_shape);
    int rc;

    call_begin();
    rc = blkrepl_throttle_query(throttle, packed.memory);
    call_end(rc, "throttle_query");
    info_expect(&info_shape, &packed, rc, full);
    packed_free(&packed);
}

static void expect_info(blkrepl_throttle *throttle, const blkrepl_throttle_options *o, uint64_t ops,
                        uint64_t bytes)
{
    blkrepl_throttle_info info = {.struct_size = sizeof info};
    int rc = blkrepl_throttle_query(throttle, &info);

    EXPECT(rc == 0 && info.id != 0 && info.waiting == 0, "a query, got %d", rc);
    EXPECT(info.bytes_per_sec == o->bytes_per_sec && info.ops_per_sec == o->ops_per_sec &&
               info.burst_bytes == o->burst_bytes && info.burst_ops == o->burst_ops,
           "the limits that were set");
    EXPECT(info.ops == ops && info.bytes == bytes && info.delayed_ops <= ops,
           "%llu requests with %llu bytes, got %llu with %llu", (ull)ops, (ull)bytes, (ull)info.ops,
           (ull)info.bytes);
    query_any(throttle, &info);
}

/* One request; time passes until it is through. */
static void pass(blkrepl_image *image, uint64_t bytes)
{
    struct release *user = release_new();
    blkrepl_completion done = {.fn = release_called, .user = user, .release = release_run};

    EXPECT(user != NULL, "a user for a request");
    EXPECT(blkrepl_image_write_zeroes(image, 0, 0, bytes, 0, &done) == 0, "a plain request");
    for (int i = 0; user->calls == 0; i++) {
        uint64_t deadline = bench_drain();

        EXPECT(user->calls > 0 || (deadline != BLKREPL_FOREVER && i < WAITS_MAX),
               "a request to get through");
        clock_now = user->calls == 0 && deadline > clock_now ? deadline : clock_now;
    }
    EXPECT(user->result == 0, "a plain request to succeed");
}

static void use(blkrepl_throttle *throttle, blkrepl_throttle_options *o)
{
    blkrepl_image *image = bench_image(BENCH_SOURCE);
    blkrepl_throttle_options changed;
    struct verdict verdict = {.count = 0};
    struct packed packed;
    uint64_t bytes = 0;
    uint64_t ops = 0;
    int rc;

    EXPECT(blkrepl_image_set_throttle(image, throttle) == 0, "a plain set_throttle");
    for (uint32_t passes = take_below(PASSES_MAX); passes > 0 && clock_now < CLOCK_LATE; passes--) {
        uint64_t count = take_below(8 * KIB);

        pass(image, count);
        bytes += count;
        ops++;
    }
    expect_info(throttle, o, ops, bytes);
    packed = draw(&changed, &verdict);
    call_begin();
    rc = blkrepl_throttle_set(throttle, packed.memory);
    call_end_as(rc, &verdict, "throttle_set");
    packed_free(&packed);
    expect_info(throttle, rc == 0 ? &changed : o, ops, bytes);
    /* The image holds it: the handle may go first. */
    if (take_chance(50)) {
        EXPECT(blkrepl_image_set_throttle(image, NULL) == 0, "a plain set_throttle");
        blkrepl_throttle_free(throttle);
    } else {
        blkrepl_throttle_free(throttle);
        EXPECT(blkrepl_image_set_throttle(image, NULL) == 0, "a plain set_throttle");
    }
}

void act_throttle(void)
{
    blkrepl_throttle_options o;
    blkrepl_throttle *throttle = (blkrepl_throttle *)&o;
    struct verdict verdict = {.count = 0};
    struct packed packed = draw(&o, &verdict);
    int rc;

    heap_watch(take_chance(5) ? 1u : 0);
    call_begin();
    rc = blkrepl_throttle_create(bench.ctx, packed.memory, &throttle);
    verdict_add_if(&verdict, heap.refused && rc != 0, -ENOMEM);
    call_end_as(rc, &verdict, "throttle_create");
    heap_watch(0);
    EXPECT((throttle != NULL) == (rc == 0), "a throttle exactly if the answer is 0, got %d", rc);
    packed_free(&packed);
    if (rc == 0) {
        use(throttle, &o);
    }
    bench_refused();
}

/* ---- Groups -------------------------------------------------------------------- */

static blkrepl_job *member(bool backup)
{
    blkrepl_backup_options b = {.struct_size = sizeof b,
                                .cluster_bytes = 4 * KIB,
                                .chunk_bytes_max = 4 * KIB,
                                .reserve_bytes = 4 * KIB,
                                .workers_max = 1};
    blkrepl_verify_options v = {
        .struct_size = sizeof v, .chunk_bytes_max = 64 * KIB, .workers_max = 1};
    blkrepl_job *job = NULL;
    int rc;

    b.job_flags = take_below(4);
    v.job_flags = take_below(4);
    rc = backup
             ? blkrepl_backup_create(bench_image(BENCH_SOURCE), bench_image(BENCH_TARGET), &b, &job)
             : blkrepl_verify_create(bench_image(BENCH_SOURCE), bench_image(BENCH_READ_ONLY), &v,
                                     &job);
    EXPECT(rc == 0 || rc == -ENOMEM, "a plain job, got %d", rc);
    return job;
}

static void group_call(int rc, bool right, const char *what)
{
    call_end(rc, what);
    EXPECT(rc == (right ? 0 : BLKREPL_ERR_STATE), "%s: %d, got %d", what,
           right ? 0 : BLKREPL_ERR_STATE, rc);
}

/* Some calls, right or wrong, then the start. */
static void group_play(blkrepl_group *group, blkrepl_job *const jobs[2])
{
    bool in[2] = {false, false};
    bool started = false;

    for (uint32_t calls = take_below(6); calls > 0; calls--) {
        uint32_t which = take_below(2);

        call_begin();
        switch (take_below(4)) {
        case 0:
            group_call(blkrepl_group_start(group), !started && (in[0] || in[1]), "group_start");
            started = started || in[0] || in[1];
            break;
        case 1:
            if (jobs[which] != NULL && in[which]) {
                (void)job_verb(jobs[which], VERB_START, 0);
            }
            break;
        default:
            if (jobs[which] != NULL) {
                group_call(blkrepl_group_add(group, jobs[which]), !started && !in[which],
                           "group_add");
                in[which] = in[which] || !started;
            }
            break;
        }
    }
    if (!started && (in[0] || in[1]) && take_chance(70)) {
        EXPECT(blkrepl_group_start(group) == 0, "a plain start");
        started = true;
    }
    if (take_chance(20)) {
        uint32_t flags = (uint32_t)take_number();
        int rc;

        call_begin();
        rc = blkrepl_group_cancel(group, flags);
        call_end(rc, "group_cancel");
        EXPECT(rc == (flags > BLKREPL_CANCEL_FORCE ? -EINVAL
                      : in[0] || in[1]             ? 0
                                                   : BLKREPL_ERR_STATE),
               "a group to be cancelled with 0x%x, got %d", (unsigned)flags, rc);
    }
}

/* After the group's handle is gone who has not been started is on his own. */
static void group_member_end(blkrepl_job *job)
{
    if (job == NULL) {
        return;
    }
    if (job_info(job).state == BLKREPL_JOB_CREATED) {
        EXPECT(job_info(job).group_id == 0, "a job that has left its group");
        EXPECT(job_verb(job, VERB_START, 0) == 0, "a plain start");
    }
    job_run_to_end(job);
    job_query_any(job);
}

void act_group(void)
{
    uint32_t flags = take_chance(50) ? (uint32_t)take_number() : take_below(2);
    blkrepl_group *group = (blkrepl_group *)&flags;
    blkrepl_job *jobs[2];
    int rc;

    heap_watch(take_chance(5) ? 1u : 0);
    call_begin();
    rc = blkrepl_group_create(bench.ctx, flags, &group);
    call_end(rc, "group_create");
    EXPECT(rc == (flags > BLKREPL_GROUP_INDIVIDUAL ? -EINVAL
                  : heap.refused                   ? -ENOMEM
                                                   : 0),
           "a group with flags 0x%x, got %d", (unsigned)flags, rc);
    heap_watch(0);
    EXPECT((group != NULL) == (rc == 0), "a group exactly if the answer is 0, got %d", rc);
    if (rc < 0) {
        bench_refused();
        return;
    }
    jobs[0] = member(true);
    jobs[1] = member(false);
    bench.job = true;
    group_play(group, jobs);
    blkrepl_group_free(group);
    for (int i = 0; i < 2; i++) {
        group_member_end(jobs[i]);
    }
    for (int i = 0; i < 2; i++) {
        if (jobs[i] != NULL) {
            job_drop(jobs[i]);
        }
    }
    bench.job = false;
}
