/* SPDX-License-Identifier: MIT */
/* Who may join a group, and how all of it or nothing of it starts. */
#include "stage.h"

#define DISKS 3
#define SIZE (8 * CLUSTER)

static struct env env;
static struct part disk[DISKS], copy[DISKS];
static struct part *const all[] = {&disk[0], &copy[0], &disk[1], &copy[1], &disk[2], &copy[2]};
static blkrepl_bitmap *bitmap[DISKS];
static blkrepl_job *jobs[DISKS];
static blkrepl_group *group;

static void create(int i)
{
    blkrepl_backup_options o = {
        .struct_size = sizeof o, .sync = BLKREPL_SYNC_INCREMENTAL, .bitmap = bitmap[i]};

    ASSERT_CODE(blkrepl_backup_create(disk[i].image, copy[i].image, &o, &jobs[i]), 0);
}

static int set_up(void **state)
{
    (void)state;
    env_open(&env, NULL, 0);
    for (unsigned i = 0; i < DISKS; i++) {
        part_open(&disk[i], &env, SIZE, 1 + i);
        part_open(&copy[i], &env, SIZE, 0);
        bitmap[i] = bitmap_put(disk[i].image, "b", CLUSTER, 0);
        bitmap_draw(bitmap[i], "#..##...");
        create((int)i);
    }
    ASSERT_CODE(blkrepl_group_create(env.ctx, 0, &group), 0);
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    parts_run(&env, all, ARRAY_COUNT(all));
    blkrepl_group_free(group);
    for (int i = 0; i < DISKS; i++) {
        blkrepl_job_free(jobs[i]);
        blkrepl_bitmap_free(bitmap[i]);
    }
    parts_close(&env, all, ARRAY_COUNT(all));
    return 0;
}

static void add_all(void)
{
    for (int i = 0; i < DISKS; i++) {
        ASSERT_CODE(blkrepl_group_add(group, jobs[i]), 0);
    }
}

static void all_done(void)
{
    env_drain(&env);
    for (int i = 0; i < DISKS; i++) {
        ASSERT_ENDED(jobs[i], BLKREPL_RESULT_DONE, 0);
        assert_memory_equal(copy[i].tape.data, disk[i].start, CLUSTER);
        assert_memory_equal(copy[i].tape.data + 3 * CLUSTER, disk[i].start + 3 * CLUSTER, CLUSTER);
    }
}

/* Nothing has been touched: neither a job, nor a bitmap, nor a target. */
static void none_has_started(void)
{
    env_drain(&env);
    for (int i = 0; i < DISKS; i++) {
        ASSERT_STATE(jobs[i], BLKREPL_JOB_CREATED);
        assert_int_equal(tape_submitted(&copy[i].tape, 0), 0);
        assert_int_equal(env_count(&env, BLKREPL_EVENT_JOB_STATE, job_info(jobs[i]).id), 0);
    }
}

/* ---- Creating and adding ---------------------------------------------------------------- */

static void bad_arguments_are_refused(void **state)
{
    blkrepl_group *other = (blkrepl_group *)&env;

    (void)state;
    ASSERT_CODE(blkrepl_group_create(env.ctx, 2, &other), -EINVAL);
    assert_null(other);
    other = (blkrepl_group *)&env;
    ASSERT_CODE(blkrepl_group_create(NULL, 0, &other), -EINVAL);
    assert_null(other);
    ASSERT_CODE(blkrepl_group_create(env.ctx, 0, NULL), -EINVAL);
    ASSERT_CODE(blkrepl_group_add(NULL, jobs[0]), -EINVAL);
    ASSERT_CODE(blkrepl_group_add(group, NULL), -EINVAL);
    ASSERT_CODE(blkrepl_group_start(NULL), -EINVAL);
    ASSERT_CODE(blkrepl_group_cancel(NULL, 0), -EINVAL);
    blkrepl_group_free(NULL);
    assert_int_equal(job_info(jobs[0]).group_id, 0);
}

static void a_job_of_another_context_is_refused(void **state)
{
    blkrepl_context *ctx = NULL;
    blkrepl_group *other = NULL;

    (void)state;
    ASSERT_CODE(blkrepl_context_create(NULL, &ctx), 0);
    ASSERT_CODE(blkrepl_group_create(ctx, 0, &other), 0);
    ASSERT_CODE(blkrepl_group_add(other, jobs[0]), -EINVAL);
    assert_int_equal(job_info(jobs[0]).group_id, 0);
    blkrepl_group_free(other);
    ASSERT_CODE(blkrepl_context_free(ctx), 0);
}

static void a_job_belongs_to_one_group_at_most(void **state)
{
    blkrepl_group *other = NULL;

    (void)state;
    ASSERT_CODE(blkrepl_group_create(env.ctx, 0, &other), 0);
    ASSERT_CODE(blkrepl_group_add(group, jobs[0]), 0);
    ASSERT_CODE(blkrepl_group_add(group, jobs[0]), BLKREPL_ERR_STATE);
    ASSERT_CODE(blkrepl_group_add(other, jobs[0]), BLKREPL_ERR_STATE);
    blkrepl_group_free(other);
}

static void only_created_jobs_may_join(void **state)
{
    (void)state;
    copy[0].tape.hold = OPS_ALL;
    ASSERT_CODE(blkrepl_job_start(jobs[0]), 0);
    env_drain(&env);
    ASSERT_CODE(blkrepl_group_add(group, jobs[0]), BLKREPL_ERR_STATE);
    ASSERT_CODE(blkrepl_job_cancel(jobs[1], 0), 0);
    ASSERT_CODE(blkrepl_group_add(group, jobs[1]), BLKREPL_ERR_STATE);
    ASSERT_CODE(blkrepl_group_start(group), BLKREPL_ERR_STATE); /* nobody is in it */
}

static void a_job_of_a_group_is_not_started_alone(void **state)
{
    (void)state;
    add_all();
    ASSERT_CODE(blkrepl_job_start(jobs[1]), BLKREPL_ERR_STATE);
    ASSERT_STATE(jobs[1], BLKREPL_JOB_CREATED);
    ASSERT_CODE(blkrepl_group_start(group), 0);
    all_done();
}

static void a_group_is_started_once(void **state)
{
    (void)state;
    ASSERT_CODE(blkrepl_group_start(group), BLKREPL_ERR_STATE);
    ASSERT_CODE(blkrepl_group_add(group, jobs[0]), 0);
    ASSERT_CODE(blkrepl_group_start(group), 0);
    ASSERT_CODE(blkrepl_group_start(group), BLKREPL_ERR_STATE);
    ASSERT_CODE(blkrepl_group_add(group, jobs[1]), BLKREPL_ERR_STATE);
    assert_int_equal(job_info(jobs[1]).group_id, 0);
    ASSERT_CODE(blkrepl_job_start(jobs[1]), 0);
    ASSERT_CODE(blkrepl_job_start(jobs[2]), 0);
    all_done();
    ASSERT_CODE(blkrepl_group_start(group), BLKREPL_ERR_STATE);
}

/* ---- Leaving ------------------------------------------------------------------------------ */

static void a_freed_group_lets_its_jobs_go(void **state)
{
    (void)state;
    add_all();
    blkrepl_group_free(group);
    group = NULL;
    for (int i = 0; i < DISKS; i++) {
        assert_int_equal(job_info(jobs[i]).group_id, 0);
        ASSERT_CODE(blkrepl_job_start(jobs[i]), 0);
    }
    all_done();
}

static void jobs_of_a_started_group_stay_together_without_its_handle(void **state)
{
    (void)state;
    add_all();
    copy[2].tape.hold = OPS_ALL;
    ASSERT_CODE(blkrepl_group_start(group), 0);
    blkrepl_group_free(group);
    group = NULL;
    env_drain(&env);
    ASSERT_STATE(jobs[0], BLKREPL_JOB_PENDING);
    parts_run(&env, (struct part *const[]){&copy[2]}, 1);
    all_done();
}

/* "Jobs that have been cancelled or freed meanwhile have left the group." */
static void a_job_cancelled_or_freed_before_the_start_has_left(void **state)
{
    (void)state;
    add_all();
    ASSERT_CODE(blkrepl_job_cancel(jobs[0], 0), 0);
    ASSERT_ENDED(jobs[0], BLKREPL_RESULT_CANCELLED, -ECANCELED);
    ASSERT_STATE(jobs[1], BLKREPL_JOB_CREATED); /* nothing was to be done together yet */
    blkrepl_job_free(jobs[1]);
    jobs[1] = NULL;
    ASSERT_CODE(blkrepl_group_start(group), 0);
    env_drain(&env);
    ASSERT_ENDED(jobs[2], BLKREPL_RESULT_DONE, 0);
    ASSERT_BITS(bitmap[0], "#..##...");
    ASSERT_BITS(bitmap[1], "#..##...");
    ASSERT_BITS(bitmap[2], "........");
}

static void a_group_that_all_have_left_cannot_be_started(void **state)
{
    (void)state;
    ASSERT_CODE(blkrepl_group_add(group, jobs[0]), 0);
    ASSERT_CODE(blkrepl_group_add(group, jobs[1]), 0);
    ASSERT_CODE(blkrepl_job_cancel(jobs[0], 0), 0);
    blkrepl_job_free(jobs[1]);
    jobs[1] = NULL;
    ASSERT_CODE(blkrepl_group_start(group), BLKREPL_ERR_STATE);
    ASSERT_CODE(blkrepl_group_add(group, jobs[2]), 0); /* it was not started */
    ASSERT_CODE(blkrepl_group_start(group), 0);
    env_drain(&env);
    ASSERT_ENDED(jobs[2], BLKREPL_RESULT_DONE, 0);
}

static void a_group_that_was_not_started_can_be_cancelled(void **state)
{
    (void)state;
    ASSERT_CODE(blkrepl_group_cancel(group, 0), BLKREPL_ERR_STATE); /* nobody is in it */
    add_all();
    ASSERT_CODE(blkrepl_group_cancel(group, 0), 0);
    for (int i = 0; i < DISKS; i++) {
        ASSERT_ENDED(jobs[i], BLKREPL_RESULT_CANCELLED, -ECANCELED);
    }
    ASSERT_CODE(blkrepl_group_cancel(group, 0), BLKREPL_ERR_STATE);
}

/* A running job whose handles are gone is still one of its group. */
static void a_job_without_handle_keeps_its_place_in_the_group(void **state)
{
    (void)state;
    add_all();
    copy[1].tape.hold = OPS_ALL;
    ASSERT_CODE(blkrepl_group_start(group), 0);
    env_drain(&env);
    blkrepl_job_free(jobs[1]);
    jobs[1] = NULL;
    env_drain(&env);
    ASSERT_STATE(jobs[0], BLKREPL_JOB_PENDING);
    ASSERT_CODE(tape_finish(&copy[1].tape, 0, -EIO), 0);
    parts_run(&env, (struct part *const[]){&copy[1]}, 1);
    ASSERT_ENDED(jobs[0], BLKREPL_RESULT_CANCELLED, -ECANCELED);
    ASSERT_ENDED(jobs[2], BLKREPL_RESULT_CANCELLED, -ECANCELED);
    ASSERT_BITS(bitmap[1], "#..##...");
}

/* ---- All or none -------------------------------------------------------------- */

static void a_busy_bitmap_of_one_keeps_all_from_starting(void **state)
{
    (void)state;
    for (int who = 0; who < DISKS; who++) {
        ASSERT_CODE(blkrepl_bitmap_freeze(bitmap[who]), 0);
        if (who == 0) {
            add_all();
        }
        ASSERT_CODE(blkrepl_group_start(group), -EBUSY);
        none_has_started();
        for (int i = 0; i < DISKS; i++) {
            bool busy = bitmap_flags(bitmap[i]) & BLKREPL_BITMAP_BUSY;

            assert_int_equal(busy, i == who);
        }
        ASSERT_CODE(blkrepl_bitmap_reclaim(bitmap[who]), 0);
        ASSERT_BITS(bitmap[who], "#..##...");
    }
    guest_writes(&env, &disk[1], 6 * CLUSTER, 512, 80); /* nobody watches */
    assert_int_equal(tape_submitted(&copy[1].tape, 0), 0);
    ASSERT_CODE(blkrepl_group_start(group), 0);
    all_done();
}

/* What a group has let go others may take. */
static void a_group_that_did_not_start_holds_nothing(void **state)
{
    blkrepl_verify_options o = {.struct_size = sizeof o, .differing = bitmap[0]};
    blkrepl_job *verify = NULL;

    (void)state;
    add_all();
    ASSERT_CODE(blkrepl_bitmap_freeze(bitmap[2]), 0);
    ASSERT_CODE(blkrepl_group_start(group), -EBUSY);
    none_has_started();
    ASSERT_CODE(blkrepl_bitmap_clear(bitmap[1]), 0);
    ASSERT_CODE(blkrepl_bitmap_remove(bitmap[1]), 0);
    ASSERT_CODE(blkrepl_verify_start(disk[0].image, disk[1].image, &o, &verify), 0);
    env_drain(&env);
    ASSERT_ENDED(verify, BLKREPL_RESULT_DONE, 0);
    blkrepl_job_free(verify);
    ASSERT_BITS(bitmap[0], "########");
    ASSERT_CODE(blkrepl_bitmap_abdicate(bitmap[2]), 0);
    ASSERT_CODE(blkrepl_group_start(group), 0);
    env_drain(&env);
    for (int i = 0; i < DISKS; i++) {
        ASSERT_ENDED(jobs[i], BLKREPL_RESULT_DONE, 0);
    }
    assert_same(copy[0].tape.data, disk[0].start, SIZE, "target");
}

static void an_inconsistent_bitmap_of_one_keeps_all_from_starting(void **state)
{
    (void)state;
    add_all();
    ASSERT_CODE(blkrepl_bitmap_disable(bitmap[2]), 0);
    ASSERT_CODE(blkrepl_bitmap_load_begin(bitmap[2]), 0);
    ASSERT_CODE(blkrepl_group_start(group), BLKREPL_ERR_STATE);
    none_has_started();
    ASSERT_CODE(blkrepl_bitmap_load_ones(bitmap[2], 0, SIZE), 0);
    ASSERT_CODE(blkrepl_bitmap_load_finish(bitmap[2]), 0);
    ASSERT_CODE(blkrepl_group_start(group), 0);
    all_done();
}

static void two_jobs_of_a_group_cannot_share_a_bitmap(void **state)
{
    blkrepl_job *verify = NULL;
    blkrepl_verify_options o = {.struct_size = sizeof o, .differing = bitmap[0]};

    (void)state;
    ASSERT_CODE(blkrepl_verify_create(disk[0].image, disk[1].image, &o, &verify), 0);
    ASSERT_CODE(blkrepl_group_add(group, jobs[0]), 0);
    ASSERT_CODE(blkrepl_group_add(group, verify), 0);
    ASSERT_CODE(blkrepl_group_start(group), -EBUSY);
    ASSERT_STATE(jobs[0], BLKREPL_JOB_CREATED);
    ASSERT_STATE(verify, BLKREPL_JOB_CREATED);
    ASSERT_BITS(bitmap[0], "#..##...");
    assert_false(bitmap_flags(bitmap[0]) & BLKREPL_BITMAP_BUSY);
    blkrepl_job_free(verify);
    ASSERT_CODE(blkrepl_group_start(group), 0);
    env_drain(&env);
    ASSERT_ENDED(jobs[0], BLKREPL_RESULT_DONE, 0);
}

static void a_paused_job_starts_with_its_group_and_waits(void **state)
{
    (void)state;
    add_all();
    ASSERT_CODE(blkrepl_job_pause(jobs[1]), 0);
    ASSERT_CODE(blkrepl_group_start(group), 0);
    guest_writes(&env, &disk[1], 0, 4096, 90); /* its point in time is kept */
    ASSERT_STATE(jobs[1], BLKREPL_JOB_RUNNING);
    ASSERT_STATE(jobs[2], BLKREPL_JOB_PENDING);
    ASSERT_CODE(blkrepl_job_resume(jobs[1]), 0);
    all_done();
}

static void jobs_of_different_kinds_end_together(void **state)
{
    blkrepl_backup_options none = {.struct_size = sizeof none, .sync = BLKREPL_SYNC_NONE};
    blkrepl_job *verify = NULL;

    (void)state;
    blkrepl_job_free(jobs[2]);
    ASSERT_CODE(blkrepl_backup_create(disk[2].image, copy[2].image, &none, &jobs[2]), 0);
    ASSERT_CODE(blkrepl_verify_create(disk[0].image, disk[1].image, NULL, &verify), 0);
    add_all();
    ASSERT_CODE(blkrepl_group_add(group, verify), 0);
    ASSERT_CODE(blkrepl_group_start(group), 0);
    env_drain(&env);
    ASSERT_STATE(jobs[0], BLKREPL_JOB_PENDING);
    ASSERT_STATE(verify, BLKREPL_JOB_PENDING);
    ASSERT_STATE(jobs[2], BLKREPL_JOB_READY);
    ASSERT_CODE(blkrepl_job_complete(jobs[2]), 0);
    env_drain(&env);
    ASSERT_ENDED(jobs[0], BLKREPL_RESULT_DONE, 0);
    ASSERT_ENDED(jobs[1], BLKREPL_RESULT_DONE, 0);
    ASSERT_ENDED(jobs[2], BLKREPL_RESULT_DONE, 0);
    ASSERT_ENDED(verify, BLKREPL_RESULT_DONE, 0);
    assert_true(job_info(verify).differing_bytes > 0);
    blkrepl_job_free(verify);
}

int main(void)
{
#define T(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)
    const struct CMUnitTest tests[] = {
        T(bad_arguments_are_refused),
        T(a_job_of_another_context_is_refused),
        T(a_job_belongs_to_one_group_at_most),
        T(only_created_jobs_may_join),
        T(a_job_of_a_group_is_not_started_alone),
        T(a_group_is_started_once),
        T(a_freed_group_lets_its_jobs_go),
        T(jobs_of_a_started_group_stay_together_without_its_handle),
        T(a_job_cancelled_or_freed_before_the_start_has_left),
        T(a_group_that_all_have_left_cannot_be_started),
        T(a_group_that_was_not_started_can_be_cancelled),
        T(a_job_without_handle_keeps_its_place_in_the_group),
        T(a_busy_bitmap_of_one_keeps_all_from_starting),
        T(a_group_that_did_not_start_holds_nothing),
        T(an_inconsistent_bitmap_of_one_keeps_all_from_starting),
        T(two_jobs_of_a_group_cannot_share_a_bitmap),
        T(a_paused_job_starts_with_its_group_and_waits),
        T(jobs_of_different_kinds_end_together),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
