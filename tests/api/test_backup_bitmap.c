/* SPDX-License-Identifier: MIT */
/* What becomes of a bitmap: each sync with each bitmap mode, for each way a backup
 * can end, and with granules smaller than, as large as, and larger than clusters. */
#include "stage.h"

#define CLUSTERS 12
#define SIZE (CLUSTERS * CLUSTER - 3 * 4096) /* the last one is short */

enum outcome {
    SUCCESS,
    TARGET_FAILS,
    SOURCE_FAILS,
    FLUSH_FAILS,
    CANCEL,
    CANCEL_CREATED,
    CANCEL_PENDING,
    OUTCOMES
};

static const char *const outcome_names[OUTCOMES] = {
    "success", "failure of the target",   "failure of the source", "failure of the flush",
    "cancel",  "cancel before its start", "cancel in PENDING",
};

static struct env env;
static struct part disk, copy;
static struct part *const both[] = {&disk, &copy};
static blkrepl_bitmap *bitmap;
static blkrepl_job *job;

/* ---- One world --------------------------------------------------------------------------- */

struct world {
    uint32_t sync;
    uint32_t mode;
    enum outcome outcome;
    uint64_t granularity;
    struct map old;     /* what the bitmap held at the start                      */
    struct map since;   /* and what was written after that                        */
    struct map arrived; /* clusters that were on the target when it began to fail */
};

static void lost(const struct world *w, const char *what)
{
    fail_msg("%s: sync %u, bitmap mode %u, %s, granularity %llu", what, w->sync, w->mode,
             outcome_names[w->outcome], (unsigned long long)w->granularity);
}

static void world_open(struct world *w)
{
    env_open(&env, NULL, 0);
    part_open(&disk, &env, SIZE, 1);
    part_open(&copy, &env, SIZE, 0);
    bitmap = bitmap_put(disk.image, "b", w->granularity, 0);
    map_init(&w->old, SIZE, w->granularity);
    map_init(&w->since, SIZE, w->granularity);
}

static void world_close(void)
{
    blkrepl_job_free(job);
    blkrepl_bitmap_free(bitmap);
    parts_close(&env, both, 2);
}

static void touch(struct map *map, uint64_t offset, uint64_t bytes, unsigned tag)
{
    guest_writes(&env, &disk, offset, bytes, tag);
    map_set(map, offset, bytes);
}

/* The guest before the point in time: clusters 1, 4 to 6, 9 and the last one. */
static void write_before(struct world *w)
{
    touch(&w->old, 1 * CLUSTER + 512, 4096, 40);
    touch(&w->old, 5 * CLUSTER - 4096, CLUSTER + 8192, 41);
    touch(&w->old, 9 * CLUSTER, CLUSTER, 42);
    touch(&w->old, SIZE - 1, 1, 43);
}

/* And after it: parts that are dirty, parts that are clean, copied or not. */
static void write_after(struct world *w)
{
    touch(&w->since, 1 * CLUSTER, 512, 50);
    touch(&w->since, 2 * CLUSTER + 8192, 512, 51);
    touch(&w->since, 6 * CLUSTER + 4096, 512, 52);
    touch(&w->since, 10 * CLUSTER, 512, 53);
}

static void create(struct world *w)
{
    blkrepl_backup_options o = {.struct_size = sizeof o,
                                .sync = w->sync,
                                .bitmap = bitmap,
                                .bitmap_mode = w->mode,
                                .cluster_bytes = CLUSTER,
                                .chunk_bytes_max = CLUSTER,
                                .workers_max = 1,
                                .job_flags =
                                    w->outcome == CANCEL_PENDING ? BLKREPL_JOB_MANUAL_FINALIZE : 0};

    job = NULL;
    ASSERT_CODE(blkrepl_backup_create(disk.image, copy.image, &o, &job), 0);
}

/* The next three copies arrive, one after the other. */
static void three_arrive(void)
{
    for (int i = 0; i < 3; i++) {
        env_drain(&env);
        assert_true(tape_pending(&copy.tape, BLKREPL_OP_WRITE) > 0);
        ASSERT_CODE(tape_finish(&copy.tape, 0, 0), 0);
    }
    env_drain(&env);
}

static void end_it(struct world *w)
{
    map_init(&w->arrived, SIZE, CLUSTER);
    map_arrived(&w->arrived, &copy.tape);
    switch (w->outcome) {
    case TARGET_FAILS: ASSERT_CODE(tape_finish(&copy.tape, 0, -ENOSPC), 0); break;
    case SOURCE_FAILS: part_fail(&disk, BLKREPL_OP_READ, 9 * CLUSTER, CLUSTER, -EIO); break;
    case FLUSH_FAILS: copy.tape.fail[BLKREPL_OP_FLUSH] = -EIO; break;
    case CANCEL:
        ASSERT_CODE(blkrepl_job_cancel(job, 0), 0);
        tape_finish_all(&copy.tape, 0, -ECANCELED);
        break;
    case SUCCESS:
    case CANCEL_CREATED:
    case CANCEL_PENDING:
    case OUTCOMES: break;
    }
    parts_run(&env, both, 2);
    if (w->outcome == CANCEL_PENDING) {
        ASSERT_STATE(job, BLKREPL_JOB_PENDING);
        ASSERT_CODE(blkrepl_job_cancel(job, 0), 0);
        env_drain(&env);
    }
}

static void check_result(const struct world *w)
{
    static const int error[OUTCOMES] = {0, -ENOSPC, -EIO, -EIO, -ECANCELED, -ECANCELED, -ECANCELED};
    uint32_t result = w->outcome == SUCCESS  ? BLKREPL_RESULT_DONE
                      : w->outcome >= CANCEL ? BLKREPL_RESULT_CANCELLED
                                             : BLKREPL_RESULT_FAILED;

    ASSERT_ENDED(job, result, error[w->outcome]);
}

/* ---- What the headers promise ---------------------------------------------------------------- */

/* What is not on the target, of what was to get there; in granules. */
static void map_missing(const struct world *w, const struct map *arrived, struct map *missing)
{
    struct map clusters = *arrived;

    if (w->outcome == FLUSH_FAILS) {
        memset(clusters.dirty, 0, sizeof clusters.dirty);
    }
    map_invert(&clusters);
    map_init(missing, SIZE, w->granularity);
    map_merge(missing, &clusters);
    if (w->sync != BLKREPL_SYNC_FULL) {
        map_intersect(missing, &w->old);
    }
}

/* What the bitmap holds, if these clusters have arrived. */
static void expected(const struct world *w, const struct map *arrived, struct map *want)
{
    bool done = w->outcome == SUCCESS;
    struct map missing;

    *want = w->since;
    if (w->mode == BLKREPL_BITMAP_NEVER || (w->mode == BLKREPL_BITMAP_ON_SUCCESS && !done) ||
        w->outcome == CANCEL_CREATED) {
        map_merge(want, &w->old);
    } else if (!done) {
        map_missing(w, arrived, &missing);
        map_merge(want, &missing);
    }
}

/* A copy that was on its way when the job began to fail, and succeeded, may be taken for
 * one that has not got there; all else is exact. */
static void check_bitmap(const struct world *w)
{
    struct map most, least, got, arrived;

    map_init(&arrived, SIZE, CLUSTER);
    map_arrived(&arrived, &copy.tape);
    expected(w, &arrived, &least);
    expected(w, w->outcome == TARGET_FAILS ? &w->arrived : &arrived, &most);
    map_content(&got, bitmap);
    for (size_t i = 0; i < got.count; i++) {
        if (got.dirty[i] ? !most.dirty[i] : least.dirty[i]) {
            print_error("granule %zu is %s\n", i, got.dirty[i] ? "dirty" : "clean");
            lost(w, "the bitmap is wrong");
        }
    }
    ASSERT_MAP(bitmap, &got);
    assert_int_equal(bitmap_flags(bitmap), BLKREPL_BITMAP_RECORDING);
}

/* The target holds the point in time wherever something was to be copied, and nothing
 * elsewhere. */
static void check_target(const struct world *w)
{
    static uint8_t want[SIZE];
    struct map clusters;

    map_init(&clusters, SIZE, CLUSTER);
    map_merge(&clusters, &w->old);
    memset(want, 0, sizeof want);
    for (size_t i = 0; i < clusters.count; i++) {
        if (clusters.dirty[i] || w->sync == BLKREPL_SYNC_FULL) {
            memcpy(want + i * CLUSTER, disk.start + i * CLUSTER,
                   (size_t)(map_end(&clusters, i) - i * CLUSTER));
        }
    }
    assert_same(copy.tape.data, want, SIZE, "target");
}

static void one_world(struct world *w)
{
    world_open(w);
    write_before(w);
    part_note(&disk);
    create(w);
    if (w->outcome == CANCEL_CREATED) {
        ASSERT_CODE(blkrepl_job_cancel(job, 0), 0);
    } else {
        copy.tape.hold = OPS_ALL;
        ASSERT_CODE(blkrepl_job_start(job), 0);
        assert_true(bitmap_flags(bitmap) & BLKREPL_BITMAP_BUSY);
        three_arrive();
    }
    write_after(w);
    end_it(w);
    check_result(w);
    check_bitmap(w);
    if (w->outcome == SUCCESS || w->outcome == CANCEL_PENDING) {
        check_target(w);
    }
    world_close();
}

/* ---- All of them -------------------------------------------------------------- */

static void every_outcome(uint32_t sync, uint32_t mode, uint64_t granularity)
{
    for (enum outcome outcome = 0; outcome < OUTCOMES; outcome++) {
        one_world(&(struct world){
            .sync = sync, .mode = mode, .outcome = outcome, .granularity = granularity});
    }
}

/* Granules and clusters of one size; ALWAYS is exact then in both senses. */
static void every_mode_and_outcome(void **state)
{
    (void)state;
    every_outcome(BLKREPL_SYNC_BITMAP, BLKREPL_BITMAP_ON_SUCCESS, CLUSTER);
    every_outcome(BLKREPL_SYNC_BITMAP, BLKREPL_BITMAP_NEVER, CLUSTER);
    every_outcome(BLKREPL_SYNC_BITMAP, BLKREPL_BITMAP_ALWAYS, CLUSTER);
    every_outcome(BLKREPL_SYNC_INCREMENTAL, BLKREPL_BITMAP_ON_SUCCESS, CLUSTER);
    every_outcome(BLKREPL_SYNC_FULL, BLKREPL_BITMAP_ON_SUCCESS, CLUSTER);
    every_outcome(BLKREPL_SYNC_FULL, BLKREPL_BITMAP_ALWAYS, CLUSTER);
}

static void granules_smaller_than_clusters(void **state)
{
    (void)state;
    every_outcome(BLKREPL_SYNC_BITMAP, BLKREPL_BITMAP_ON_SUCCESS, 4096);
    every_outcome(BLKREPL_SYNC_BITMAP, BLKREPL_BITMAP_NEVER, 512);
    every_outcome(BLKREPL_SYNC_BITMAP, BLKREPL_BITMAP_ALWAYS, 4096);
    every_outcome(BLKREPL_SYNC_FULL, BLKREPL_BITMAP_ALWAYS, 4096);
}

static void granules_larger_than_clusters(void **state)
{
    (void)state;
    every_outcome(BLKREPL_SYNC_BITMAP, BLKREPL_BITMAP_ON_SUCCESS, 4 * CLUSTER);
    every_outcome(BLKREPL_SYNC_BITMAP, BLKREPL_BITMAP_NEVER, 2 * CLUSTER);
    every_outcome(BLKREPL_SYNC_BITMAP, BLKREPL_BITMAP_ALWAYS, 4 * CLUSTER);
    every_outcome(BLKREPL_SYNC_BITMAP, BLKREPL_BITMAP_ALWAYS, BLKREPL_BITMAP_GRANULARITY_MAX);
    every_outcome(BLKREPL_SYNC_FULL, BLKREPL_BITMAP_ALWAYS, 4 * CLUSTER);
}

/* With INCREMENTAL the mode need not be told. */
static void incremental_is_on_success_by_itself(void **state)
{
    (void)state;
    for (enum outcome outcome = 0; outcome < OUTCOMES; outcome++) {
        struct world w = {
            .sync = BLKREPL_SYNC_INCREMENTAL, .outcome = outcome, .granularity = CLUSTER};

        world_open(&w);
        write_before(&w);
        part_note(&disk);
        create(&w);
        w.mode = BLKREPL_BITMAP_ON_SUCCESS;
        if (outcome == CANCEL_CREATED) {
            ASSERT_CODE(blkrepl_job_cancel(job, 0), 0);
        } else {
            copy.tape.hold = OPS_ALL;
            ASSERT_CODE(blkrepl_job_start(job), 0);
            three_arrive();
        }
        write_after(&w);
        end_it(&w);
        check_bitmap(&w);
        world_close();
    }
}

/* ---- ALWAYS goes on where it stopped ------------------------------------------ */

/* Again and again onto the same target, each time failing a bit later, the guest
 * writing on: the one that succeeds has completed it. */
static void continued(uint32_t sync, uint64_t granularity)
{
    struct world w = {.sync = sync, .mode = BLKREPL_BITMAP_ALWAYS, .granularity = granularity};

    world_open(&w);
    memcpy(copy.tape.data, disk.tape.data, sync == BLKREPL_SYNC_FULL ? 0 : SIZE);
    for (unsigned round = 0; round < 8; round++) {
        bool last = round == 7;

        touch(&w.old, round * 2 * CLUSTER % SIZE, 512, 100 + round);
        part_note(&disk);
        w.outcome = last ? SUCCESS : round % 2 ? CANCEL : TARGET_FAILS;
        create(&w);
        copy.tape.hold = last ? 0 : OPS_ALL;
        ASSERT_CODE(blkrepl_job_start(job), 0);
        env_drain(&env);
        for (unsigned n = 0; n < round && tape_pending(&copy.tape, BLKREPL_OP_WRITE); n++) {
            ASSERT_CODE(tape_finish(&copy.tape, 0, 0), 0);
            env_drain(&env);
        }
        touch(&w.since, (round * 3 + 1) % CLUSTERS * CLUSTER, 512, 120 + round);
        if (tape_pending(&copy.tape, BLKREPL_OP_WRITE) == 0) {
            w.outcome = SUCCESS; /* so little was left */
        }
        end_it(&w);
        parts_run(&env, both, 2);
        check_result(&w);
        blkrepl_job_free(job);
        job = NULL;
        env_drain(&env);
        w.sync = BLKREPL_SYNC_BITMAP;
    }
    assert_same(copy.tape.data, disk.start, SIZE, "target");
    world_close();
}

static void always_can_be_continued_onto_the_same_target(void **state)
{
    (void)state;
    continued(BLKREPL_SYNC_FULL, CLUSTER);
    continued(BLKREPL_SYNC_FULL, 4096);
    continued(BLKREPL_SYNC_FULL, 4 * CLUSTER);
    continued(BLKREPL_SYNC_BITMAP, CLUSTER);
    continued(BLKREPL_SYNC_BITMAP, 4096);
    continued(BLKREPL_SYNC_BITMAP, 4 * CLUSTER);
}

/* ---- What ALWAYS takes for being on the target is durable there ------------------------- */

static uint8_t durable[SIZE]; /* of the target */

static void note_flush(void *user, const blkrepl_io *io)
{
    (void)user;
    if (io->opcode == BLKREPL_OP_FLUSH && copy.tape.fail[BLKREPL_OP_FLUSH] == 0) {
        memcpy(durable, copy.tape.data, SIZE);
    }
}

/* A job of this mode ends, with this error; all is dirty that was. */
static void run_job(struct world *w, int error)
{
    create(w);
    ASSERT_CODE(blkrepl_job_start(job), 0);
    parts_run(&env, both, 2);
    ASSERT_ENDED(job, error < 0 ? BLKREPL_RESULT_FAILED : BLKREPL_RESULT_DONE, error);
    blkrepl_job_free(job);
    job = NULL;
    env_drain(&env);
}

/* One job fails half way.  Of the next one the flush fails, and the target has lost what
 * was not durable.  The one that is done has completed it all the same. */
static void a_flush_that_fails_loses_nothing_of_an_earlier_job(void **state)
{
    struct world w = {
        .sync = BLKREPL_SYNC_BITMAP, .mode = BLKREPL_BITMAP_ALWAYS, .granularity = CLUSTER};

    (void)state;
    world_open(&w);
    copy.tape.on_submit = note_flush;
    memset(durable, 0, SIZE);
    ASSERT_CODE(blkrepl_bitmap_set(bitmap, 0, SIZE), 0);
    part_fail(&disk, BLKREPL_OP_READ, 4 * CLUSTER, CLUSTER, -EIO);
    run_job(&w, -EIO);
    ASSERT_BITS(bitmap, "....########");
    part_mend(&disk);
    copy.tape.fail[BLKREPL_OP_FLUSH] = -EIO;
    run_job(&w, -EIO);
    ASSERT_BITS(bitmap, "....########");
    memcpy(copy.tape.data, durable, SIZE);
    copy.tape.fail[BLKREPL_OP_FLUSH] = 0;
    run_job(&w, 0);
    assert_same(copy.tape.data, disk.tape.data, SIZE, "target");
    world_close();
}

/* The same where the job that stops half way cannot flush: nothing has got there, and the
 * failure is told. */
static void a_job_that_fails_and_cannot_flush_has_done_nothing(void **state)
{
    struct world w = {
        .sync = BLKREPL_SYNC_BITMAP, .mode = BLKREPL_BITMAP_ALWAYS, .granularity = CLUSTER};

    (void)state;
    world_open(&w);
    ASSERT_CODE(blkrepl_bitmap_set(bitmap, 2 * CLUSTER, 4 * CLUSTER), 0);
    part_fail(&disk, BLKREPL_OP_READ, 4 * CLUSTER, CLUSTER, -EIO);
    copy.tape.fail[BLKREPL_OP_FLUSH] = -ENOSPC;
    create(&w);
    ASSERT_CODE(blkrepl_job_start(job), 0);
    parts_run(&env, both, 2);
    ASSERT_ENDED(job, BLKREPL_RESULT_FAILED, -EIO); /* the cause is the first one */
    assert_int_equal(job_info(job).error_side, BLKREPL_SIDE_SOURCE);
    assert_int_equal(job_info(job).target_errors, 1);
    ASSERT_BITS(bitmap, "..####......");
    world_close();
}

/* A target that has hung holds up the end of a job until it is cancelled once more. */
static void the_flush_of_a_cancelled_job_is_given_up_by_the_next_cancel(void **state)
{
    struct world w = {
        .sync = BLKREPL_SYNC_BITMAP, .mode = BLKREPL_BITMAP_ALWAYS, .granularity = CLUSTER};

    (void)state;
    for (int sent = 0; sent < 2; sent++) {
        unsigned cancels;

        world_open(&w);
        ASSERT_CODE(blkrepl_bitmap_set(bitmap, 0, SIZE), 0);
        create(&w);
        copy.tape.hold = OPS_ALL;
        ASSERT_CODE(blkrepl_job_start(job), 0);
        three_arrive();
        ASSERT_CODE(blkrepl_job_cancel(job, 0), 0);
        ASSERT_CODE(blkrepl_job_cancel(job, 0), 0); /* nothing to give up yet */
        assert_int_equal(tape_finish_all(&copy.tape, 0, -ECANCELED), 1);
        if (sent) {
            env_drain(&env);
            assert_int_equal(tape_pending(&copy.tape, BLKREPL_OP_FLUSH), 1);
            assert_true(job_has(job, BLKREPL_JOB_FLAG_CANCELLING));
        }
        cancels = copy.tape.cancels;
        ASSERT_CODE(blkrepl_job_cancel(job, 0), 0);
        if (sent) {
            assert_int_equal(copy.tape.cancels, cancels + 1);
            assert_int_equal(tape_finish_all(&copy.tape, 0, -ECANCELED), 1);
            env_drain(&env);
            ASSERT_BITS(bitmap, "############");
        } else {
            parts_run(&env, both, 2);
            ASSERT_BITS(bitmap, "...#########");
        }
        ASSERT_ENDED(job, BLKREPL_RESULT_CANCELLED, -ECANCELED);
        assert_int_equal(job_info(job).error_count, 0);
        world_close();
    }
}

/* What has not written anything has nothing to flush, and who does not keep account
 * does not wait for it. */
static void a_job_flushes_at_a_bad_end_only_what_its_bitmap_tells(void **state)
{
    (void)state;
    for (uint32_t i = 0; i < 3; i++) {
        struct world w = {.sync = BLKREPL_SYNC_BITMAP,
                          .mode = i == 0 ? BLKREPL_BITMAP_ALWAYS : i,
                          .granularity = CLUSTER};

        world_open(&w);
        ASSERT_CODE(blkrepl_bitmap_set(bitmap, 0, SIZE), 0);
        part_fail(&disk, BLKREPL_OP_READ, (i == 0 ? 0 : 4) * CLUSTER, CLUSTER, -EIO);
        run_job(&w, -EIO);
        assert_int_equal(tape_submitted(&copy.tape, BLKREPL_OP_FLUSH), 0);
        ASSERT_BITS(bitmap, "############");
        world_close();
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_mode_and_outcome),
        cmocka_unit_test(granules_smaller_than_clusters),
        cmocka_unit_test(granules_larger_than_clusters),
        cmocka_unit_test(incremental_is_on_success_by_itself),
        cmocka_unit_test(always_can_be_continued_onto_the_same_target),
        cmocka_unit_test(a_flush_that_fails_loses_nothing_of_an_earlier_job),
        cmocka_unit_test(a_job_that_fails_and_cannot_flush_has_done_nothing),
        cmocka_unit_test(the_flush_of_a_cancelled_job_is_given_up_by_the_next_cancel),
        cmocka_unit_test(a_job_flushes_at_a_bad_end_only_what_its_bitmap_tells),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
