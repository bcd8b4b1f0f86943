/* SPDX-License-Identifier: MIT */
/* Groups: who may join, how all or none start, and how they end, together or each
 * by itself. */
#include "stage.h"

#define DISKS 3
#define CLUSTERS 8
#define SIZE (CLUSTERS * CLUSTER)

static struct env env;
static struct part disk[DISKS], copy[DISKS];
static struct part *const all[] = {&disk[0], &copy[0], &disk[1], &copy[1], &disk[2], &copy[2]};
static blkrepl_bitmap *bitmap[DISKS];
static blkrepl_job *jobs[DISKS];
static blkrepl_group *group;

static int set_up(void **state)
{
    (void)state;
    env_open(&env, NULL, 0);
    for (unsigned i = 0; i < DISKS; i++) {
        part_open(&disk[i], &env, SIZE, 1 + i);
        part_open(&copy[i], &env, SIZE, 0);
        bitmap[i] = bitmap_put(disk[i].image, "b", CLUSTER, 0);
        bitmap_draw(bitmap[i], "#..##...");
        jobs[i] = NULL;
    }
    group = NULL;
    return 0;
}

static void run(void)
{
    parts_run(&env, all, ARRAY_COUNT(all));
}

static void run_copy(int i)
{
    parts_run(&env, (struct part *const[]){&copy[i]}, 1);
}

static int tear_down(void **state)
{
    (void)state;
    run();
    blkrepl_group_free(group);
    for (int i = 0; i < DISKS; i++) {
        blkrepl_job_free(jobs[i]);
        blkrepl_bitmap_free(bitmap[i]);
    }
    parts_close(&env, all, ARRAY_COUNT(all));
    return 0;
}

/* An incremental backup of disk i. */
static void create_with(int i, uint32_t job_flags)
{
    blkrepl_backup_options o = {.struct_size = sizeof o,
                                .sync = BLKREPL_SYNC_INCREMENTAL,
                                .bitmap = bitmap[i],
                                .workers_max = 1,
                                .chunk_bytes_max = CLUSTER,
                                .job_flags = job_flags};

    ASSERT_CODE(blkrepl_backup_create(disk[i].image, copy[i].image, &o, &jobs[i]), 0);
}

static void group_up(uint32_t flags)
{
    ASSERT_CODE(blkrepl_group_create(env.ctx, flags, &group), 0);
    for (int i = 0; i < DISKS; i++) {
        if (!jobs[i]) {
            create_with(i, 0);
        }
        ASSERT_CODE(blkrepl_group_add(group, jobs[i]), 0);
    }
}

/* Started, with targets that do not answer, and a write to cluster 1 of each. */
static void start_and_hold(void)
{
    for (int i = 0; i < DISKS; i++) {
        copy[i].tape.hold = OPS_ALL;
    }
    ASSERT_CODE(blkrepl_group_start(group), 0);
    env_drain(&env);
    for (int i = 0; i < DISKS; i++) {
        ASSERT_STATE(jobs[i], BLKREPL_JOB_RUNNING);
        guest_writes(&env, &disk[i], CLUSTER, 512, 70);
    }
}

static void all_are(uint32_t state)
{
    for (int i = 0; i < DISKS; i++) {
        ASSERT_STATE(jobs[i], state);
    }
}

static void bitmaps_are(const char *picture)
{
    for (int i = 0; i < DISKS; i++) {
        assert_false(bitmap_flags(bitmap[i]) & BLKREPL_BITMAP_BUSY);
        ASSERT_BITS(bitmap[i], picture);
    }
}

static const char used[] = ".#......";     /* what was written since                */
static const char restored[] = "##.##..."; /* as if there had been no backup        */

/* ---- Success together ------------------------------------------------------------------ */

static void jobs_of_a_group_wait_for_each_other(void **state)
{
    (void)state;
    group_up(0);
    start_and_hold();
    run_copy(1);
    ASSERT_STATE(jobs[1], BLKREPL_JOB_PENDING);
    assert_false(job_has(jobs[1], BLKREPL_JOB_FLAG_FINALIZABLE));
    ASSERT_CODE(blkrepl_job_finalize(jobs[1]), BLKREPL_ERR_STATE);
    assert_true(bitmap_flags(bitmap[1]) & BLKREPL_BITMAP_BUSY);
    run_copy(0);
    ASSERT_STATE(jobs[0], BLKREPL_JOB_PENDING);
    ASSERT_STATE(jobs[1], BLKREPL_JOB_PENDING);
    ASSERT_STATE(jobs[2], BLKREPL_JOB_RUNNING);
    env_advance(&env, 1000 * SECOND);
    ASSERT_STATE(jobs[0], BLKREPL_JOB_PENDING);
    run_copy(2);
    for (int i = 0; i < DISKS; i++) {
        ASSERT_ENDED(jobs[i], BLKREPL_RESULT_DONE, 0);
    }
    bitmaps_are(used);
}

static void they_conclude_in_the_order_in_which_they_were_added(void **state)
{
    static const int order[DISKS] = {2, 0, 1};
    int seen = 0;

    (void)state;
    ASSERT_CODE(blkrepl_group_create(env.ctx, 0, &group), 0);
    for (int i = 0; i < DISKS; i++) {
        create_with(i, 0);
    }
    for (int i = 0; i < DISKS; i++) {
        ASSERT_CODE(blkrepl_group_add(group, jobs[order[i]]), 0);
    }
    start_and_hold();
    run_copy(1);
    run_copy(2);
    run_copy(0);
    for (size_t i = 0; i < env.event_count; i++) {
        if (env.events[i].type == BLKREPL_EVENT_JOB_DONE) {
            assert_true(seen < DISKS);
            assert_int_equal(env.events[i].object_id, job_info(jobs[order[seen]]).id);
            seen++;
        }
    }
    assert_int_equal(seen, DISKS);
}

static void a_group_of_one_ends_like_a_job(void **state)
{
    (void)state;
    create_with(0, 0);
    ASSERT_CODE(blkrepl_group_create(env.ctx, 0, &group), 0);
    ASSERT_CODE(blkrepl_group_add(group, jobs[0]), 0);
    ASSERT_CODE(blkrepl_group_start(group), 0);
    env_drain(&env);
    ASSERT_ENDED(jobs[0], BLKREPL_RESULT_DONE, 0);
    ASSERT_BITS(bitmap[0], "........");
}

static void a_group_tells_its_id(void **state)
{
    (void)state;
    create_with(0, 0);
    assert_int_equal(job_info(jobs[0]).group_id, 0);
    group_up(0);
    uint64_t id = job_info(jobs[0]).group_id;
    assert_true(id != 0);
    assert_int_equal(job_info(jobs[2]).group_id, id);
}

/* ---- Failing and cancelling together ------------------------------------------------------- */

/* Job `who` has ended with this result, all others as cancelled. */
static void only(int who, uint32_t result, int error)
{
    for (int i = 0; i < DISKS; i++) {
        if (i == who) {
            ASSERT_ENDED(jobs[i], result, error);
        } else {
            ASSERT_ENDED(jobs[i], BLKREPL_RESULT_CANCELLED, -ECANCELED);
        }
    }
    bitmaps_are(restored);
}

static void one_that_fails_cancels_the_rest(void **state)
{
    (void)state;
    group_up(0);
    start_and_hold();
    run_copy(1);
    ASSERT_STATE(jobs[1], BLKREPL_JOB_PENDING); /* too early to be glad */
    ASSERT_CODE(tape_finish(&copy[0].tape, 0, -ENOSPC), 0);
    env_drain(&env);
    run();
    only(0, BLKREPL_RESULT_FAILED, -ENOSPC);
    assert_int_equal(job_info(jobs[0]).error_side, BLKREPL_SIDE_TARGET);
    for (int i = 0; i < DISKS; i++) {
        assert_int_equal(env_count(&env, BLKREPL_EVENT_JOB_DONE, job_info(jobs[i]).id), 1);
        ASSERT_CODE(write_now(&env, copy[i].image, 0, "x", 1), 0); /* it is free */
    }
}

static void one_that_is_cancelled_cancels_the_rest(void **state)
{
    (void)state;
    for (int who = 0; who < 2; who++) { /* RUNNING; PENDING */
        group_up(0);
        start_and_hold();
        run_copy(1);
        ASSERT_CODE(blkrepl_job_cancel(jobs[who], 0), 0);
        run();
        only(who, BLKREPL_RESULT_CANCELLED, -ECANCELED);
        blkrepl_group_free(group);
        for (int i = 0; i < DISKS; i++) {
            blkrepl_job_free(jobs[i]);
            jobs[i] = NULL;
        }
    }
    group = NULL;
}

static void a_group_is_cancelled_as_a_whole(void **state)
{
    (void)state;
    group_up(0);
    start_and_hold();
    run_copy(2);
    ASSERT_CODE(blkrepl_group_cancel(group, 2), -EINVAL);
    ASSERT_STATE(jobs[2], BLKREPL_JOB_PENDING);
    assert_false(job_has(jobs[0], BLKREPL_JOB_FLAG_CANCELLING));
    ASSERT_CODE(blkrepl_group_cancel(group, BLKREPL_CANCEL_FORCE), 0);
    run();
    only(0, BLKREPL_RESULT_CANCELLED, -ECANCELED);
    ASSERT_CODE(blkrepl_group_cancel(group, 0), BLKREPL_ERR_STATE);
}

/* A failure and a cancel in the same tick. */
static void two_that_fail_at_once_both_end_once(void **state)
{
    (void)state;
    group_up(0);
    start_and_hold();
    ASSERT_CODE(tape_finish(&copy[0].tape, 0, -EIO), 0);
    ASSERT_CODE(blkrepl_job_cancel(jobs[1], 0), 0);
    run();
    for (int i = 0; i < DISKS; i++) {
        all_are(BLKREPL_JOB_CONCLUDED);
        assert_true(job_info(jobs[i]).result != BLKREPL_RESULT_DONE);
        assert_int_equal(env_count(&env, BLKREPL_EVENT_JOB_DONE, job_info(jobs[i]).id), 1);
    }
    bitmaps_are(restored);
}

static void a_paused_job_holds_its_group_and_is_cancelled_with_it(void **state)
{
    (void)state;
    group_up(0);
    start_and_hold();
    ASSERT_CODE(blkrepl_job_pause(jobs[1]), 0);
    run();
    ASSERT_STATE(jobs[0], BLKREPL_JOB_PENDING);
    ASSERT_STATE(jobs[1], BLKREPL_JOB_RUNNING);
    ASSERT_CODE(blkrepl_job_cancel(jobs[2], 0), 0);
    run();
    only(2, BLKREPL_RESULT_CANCELLED, -ECANCELED);
}

/* ---- Each by itself ----------------------------------------------------------- */

static void individual_jobs_end_each_by_itself(void **state)
{
    (void)state;
    group_up(BLKREPL_GROUP_INDIVIDUAL);
    start_and_hold();
    run_copy(1);
    ASSERT_ENDED(jobs[1], BLKREPL_RESULT_DONE, 0);
    ASSERT_BITS(bitmap[1], used);
    ASSERT_CODE(tape_finish(&copy[0].tape, 0, -EIO), 0);
    env_drain(&env);
    run_copy(0);
    ASSERT_ENDED(jobs[0], BLKREPL_RESULT_FAILED, -EIO);
    ASSERT_BITS(bitmap[0], restored);
    ASSERT_STATE(jobs[2], BLKREPL_JOB_RUNNING);
    run();
    ASSERT_ENDED(jobs[2], BLKREPL_RESULT_DONE, 0);
    ASSERT_BITS(bitmap[2], used);
}

static void individual_jobs_are_cancelled_each_by_itself_or_all(void **state)
{
    (void)state;
    group_up(BLKREPL_GROUP_INDIVIDUAL);
    start_and_hold();
    ASSERT_CODE(blkrepl_job_cancel(jobs[1], 0), 0);
    run_copy(1);
    ASSERT_ENDED(jobs[1], BLKREPL_RESULT_CANCELLED, -ECANCELED);
    ASSERT_STATE(jobs[0], BLKREPL_JOB_RUNNING);
    run_copy(0);
    ASSERT_ENDED(jobs[0], BLKREPL_RESULT_DONE, 0);
    ASSERT_CODE(blkrepl_group_cancel(group, 0), 0);
    run();
    ASSERT_ENDED(jobs[0], BLKREPL_RESULT_DONE, 0);
    ASSERT_ENDED(jobs[2], BLKREPL_RESULT_CANCELLED, -ECANCELED);
}

/* ---- Manual finalize ---------------------------------------------------------- */

static void one_that_is_manual_holds_all_and_one_call_lets_all_go(void **state)
{
    (void)state;
    for (int who = 0; who < DISKS; who++) { /* "of any" */
        create_with(1, BLKREPL_JOB_MANUAL_FINALIZE);
        group_up(0);
        ASSERT_CODE(blkrepl_group_start(group), 0);
        env_drain(&env);
        all_are(BLKREPL_JOB_PENDING);
        for (int i = 0; i < DISKS; i++) {
            assert_true(job_has(jobs[i], BLKREPL_JOB_FLAG_FINALIZABLE));
        }
        ASSERT_CODE(blkrepl_job_finalize(jobs[who]), 0);
        env_drain(&env);
        for (int i = 0; i < DISKS; i++) {
            ASSERT_ENDED(jobs[i], BLKREPL_RESULT_DONE, 0);
            blkrepl_job_free(jobs[i]);
            jobs[i] = NULL;
        }
        blkrepl_group_free(group);
    }
    group = NULL;
}

/* Job 1 waits to be finalized, and so do the others; their guests write. */
static void start_with_a_manual_one(void)
{
    create_with(1, BLKREPL_JOB_MANUAL_FINALIZE);
    group_up(0);
    ASSERT_CODE(blkrepl_group_start(group), 0);
    for (int i = 0; i < DISKS; i++) {
        guest_writes(&env, &disk[i], CLUSTER, 512, 70);
    }
}

static void a_manual_group_can_be_cancelled_when_all_is_done(void **state)
{
    (void)state;
    start_with_a_manual_one();
    all_are(BLKREPL_JOB_PENDING);
    ASSERT_CODE(blkrepl_job_cancel(jobs[2], 0), 0);
    env_drain(&env);
    only(2, BLKREPL_RESULT_CANCELLED, -ECANCELED);
}

/* A cancel, and a finalize of another one before anybody has looked. */
static void a_finalize_of_one_does_not_undo_the_cancel_of_another(void **state)
{
    (void)state;
    start_with_a_manual_one();
    ASSERT_CODE(blkrepl_job_cancel(jobs[2], 0), 0);
    int rc = blkrepl_job_finalize(jobs[0]);
    assert_true(rc == 0 || rc == BLKREPL_ERR_STATE);
    env_drain(&env);
    only(2, BLKREPL_RESULT_CANCELLED, -ECANCELED);
}

static void an_individual_manual_job_holds_nobody_else(void **state)
{
    (void)state;
    create_with(1, BLKREPL_JOB_MANUAL_FINALIZE);
    group_up(BLKREPL_GROUP_INDIVIDUAL);
    ASSERT_CODE(blkrepl_group_start(group), 0);
    env_drain(&env);
    ASSERT_ENDED(jobs[0], BLKREPL_RESULT_DONE, 0);
    ASSERT_STATE(jobs[1], BLKREPL_JOB_PENDING);
    ASSERT_ENDED(jobs[2], BLKREPL_RESULT_DONE, 0);
    ASSERT_CODE(blkrepl_job_finalize(jobs[1]), 0);
    env_drain(&env);
    ASSERT_ENDED(jobs[1], BLKREPL_RESULT_DONE, 0);
}

int main(void)
{
#define T(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)
    const struct CMUnitTest tests[] = {
        T(jobs_of_a_group_wait_for_each_other),
        T(they_conclude_in_the_order_in_which_they_were_added),
        T(a_group_of_one_ends_like_a_job),
        T(a_group_tells_its_id),
        T(one_that_fails_cancels_the_rest),
        T(one_that_is_cancelled_cancels_the_rest),
        T(a_group_is_cancelled_as_a_whole),
        T(two_that_fail_at_once_both_end_once),
        T(a_paused_job_holds_its_group_and_is_cancelled_with_it),
        T(individual_jobs_end_each_by_itself),
        T(individual_jobs_are_cancelled_each_by_itself_or_all),
        T(one_that_is_manual_holds_all_and_one_call_lets_all_go),
        T(a_manual_group_can_be_cancelled_when_all_is_done),
        T(a_finalize_of_one_does_not_undo_the_cancel_of_another),
        T(an_individual_manual_job_holds_nobody_else),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
