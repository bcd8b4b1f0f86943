/* SPDX-License-Identifier: MIT */
/* The table of job.h: every verb in every state that a backup can be in. */
#include "tape.h"

#define SIZE (16 * CLUSTER)

static struct env env;
static struct tape disk, copy;
static blkrepl_image *source, *target;
static blkrepl_job *job;

static int set_up(void **state)
{
    blkrepl_backup_options o = {.struct_size = sizeof o, .name = "b0"};

    (void)state;
    env_open(&env, NULL, 0);
    tape_init(&disk, SIZE);
    tape_init(&copy, SIZE);
    tape_fill(&disk, 1);
    source = tape_open(&disk, &env);
    target = tape_open(&copy, &env);
    ASSERT_CODE(blkrepl_backup_create(source, target, &o, &job), 0);
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    tape_release(&disk, &env);
    tape_release(&copy, &env);
    blkrepl_job_free(job);
    blkrepl_image_close(source);
    blkrepl_image_close(target);
    env_close(&env);
    tape_close(&disk);
    tape_close(&copy);
    return 0;
}

static void make_running(void)
{
    copy.hold = OPS_ALL;
    ASSERT_CODE(blkrepl_job_start(job), 0);
    env_drain(&env);
    assert_int_equal(job_info(job).state, BLKREPL_JOB_RUNNING);
}

static void make_done(void)
{
    ASSERT_CODE(blkrepl_job_start(job), 0);
    env_drain(&env);
    assert_int_equal(job_info(job).state, BLKREPL_JOB_CONCLUDED);
    assert_int_equal(job_info(job).result, BLKREPL_RESULT_DONE);
}

/* Refused, by name, and nothing has changed. */
static void refused(int rc)
{
    ASSERT_CODE(rc, BLKREPL_ERR_STATE);
    if (!strstr(blkrepl_error_message(), "b0")) {
        fail_msg("\"%s\" does not name the job", blkrepl_error_message());
    }
}

static bool paused(void)
{
    return job_info(job).flags & BLKREPL_JOB_FLAG_PAUSED;
}

/* ---- CREATED ----------------------------------------------------------------------- */

static void created_job_starts_once(void **state)
{
    (void)state;
    assert_int_equal(job_info(job).state, BLKREPL_JOB_CREATED);
    copy.hold = OPS_ALL;
    ASSERT_CODE(blkrepl_job_start(job), 0);
    assert_int_equal(job_info(job).state, BLKREPL_JOB_RUNNING);
    refused(blkrepl_job_start(job));
}

static void created_job_does_nothing_until_it_is_started(void **state)
{
    (void)state;
    env_drain(&env);
    env_advance(&env, 100 * SECOND);
    assert_int_equal(tape_submitted(&disk, 0), 0);
    assert_int_equal(tape_submitted(&copy, 0), 0);
    assert_int_equal(env.event_count, 0);
}

static void created_job_pauses_and_resumes_once_each(void **state)
{
    (void)state;
    refused(blkrepl_job_resume(job));
    ASSERT_CODE(blkrepl_job_pause(job), 0);
    assert_true(paused());
    assert_int_equal(job_info(job).state, BLKREPL_JOB_CREATED);
    refused(blkrepl_job_pause(job));
    assert_true(paused());
    ASSERT_CODE(blkrepl_job_resume(job), 0);
    assert_false(paused());
    refused(blkrepl_job_resume(job));
}

static void a_job_started_while_paused_waits_for_the_resume(void **state)
{
    (void)state;
    ASSERT_CODE(blkrepl_job_pause(job), 0);
    ASSERT_CODE(blkrepl_job_start(job), 0);
    env_drain(&env);
    assert_int_equal(job_info(job).state, BLKREPL_JOB_RUNNING);
    assert_true(paused());
    assert_int_equal(tape_submitted(&copy, 0), 0);
    ASSERT_CODE(blkrepl_job_resume(job), 0);
    env_drain(&env);
    assert_int_equal(job_info(job).result, BLKREPL_RESULT_DONE);
}

static void created_job_takes_a_speed(void **state)
{
    (void)state;
    ASSERT_CODE(blkrepl_job_set_speed(job, 12345), 0);
    assert_int_equal(job_info(job).speed_bytes_per_sec, 12345);
    assert_int_equal(job_info(job).state, BLKREPL_JOB_CREATED);
}

static void created_job_concludes_inside_the_cancel(void **state)
{
    (void)state;
    ASSERT_CODE(blkrepl_job_cancel(job, 0), 0);
    blkrepl_job_info info = job_info(job);
    assert_int_equal(info.state, BLKREPL_JOB_CONCLUDED);
    assert_int_equal(info.result, BLKREPL_RESULT_CANCELLED);
    ASSERT_CODE(info.error, -ECANCELED);
    env_drain(&env);
    const blkrepl_event *e = env_event(&env, BLKREPL_EVENT_JOB_DONE, info.id, 0);
    assert_non_null(e);
    ASSERT_CODE(e->error, -ECANCELED);
    assert_int_equal(env.event_count, 1);
    assert_int_equal(tape_submitted(&disk, 0), 0);
    ASSERT_CODE(write_now(&env, target, 0, "x", 1), 0); /* it holds no image */
}

static void created_and_paused_job_concludes_inside_the_cancel(void **state)
{
    (void)state;
    ASSERT_CODE(blkrepl_job_pause(job), 0);
    ASSERT_CODE(blkrepl_job_cancel(job, BLKREPL_CANCEL_FORCE), 0);
    assert_int_equal(job_info(job).result, BLKREPL_RESULT_CANCELLED);
}

/* ---- RUNNING ------------------------------------------------------------------------ */

static void running_job_pauses_and_resumes_once_each(void **state)
{
    (void)state;
    make_running();
    refused(blkrepl_job_resume(job));
    ASSERT_CODE(blkrepl_job_pause(job), 0);
    assert_true(paused());
    refused(blkrepl_job_pause(job));
    assert_int_equal(job_info(job).state, BLKREPL_JOB_RUNNING);
    refused(blkrepl_job_start(job));
    assert_true(paused());
    ASSERT_CODE(blkrepl_job_resume(job), 0);
    assert_false(paused());
    refused(blkrepl_job_resume(job));
    tape_release(&copy, &env);
    assert_int_equal(job_info(job).result, BLKREPL_RESULT_DONE);
}

static void running_job_takes_a_speed(void **state)
{
    (void)state;
    make_running();
    ASSERT_CODE(blkrepl_job_set_speed(job, 777), 0);
    assert_int_equal(job_info(job).speed_bytes_per_sec, 777);
    ASSERT_CODE(blkrepl_job_set_speed(job, 0), 0);
    assert_int_equal(job_info(job).speed_bytes_per_sec, 0);
    ASSERT_CODE(blkrepl_job_set_speed(job, UINT64_MAX), 0);
    tape_release(&copy, &env);
    assert_int_equal(job_info(job).result, BLKREPL_RESULT_DONE);
}

static void running_job_is_cancelled_once_though_it_may_be_said_twice(void **state)
{
    (void)state;
    make_running();
    uint64_t id = job_info(job).id;
    ASSERT_CODE(blkrepl_job_cancel(job, 0), 0);
    blkrepl_job_info info = job_info(job);
    assert_int_equal(info.state, BLKREPL_JOB_RUNNING);
    assert_true(info.flags & BLKREPL_JOB_FLAG_CANCELLING);
    assert_int_equal(info.result, 0);
    ASSERT_CODE(blkrepl_job_cancel(job, BLKREPL_CANCEL_FORCE), 0);
    ASSERT_CODE(blkrepl_job_cancel(job, 0), 0);
    tape_release(&copy, &env);
    info = job_info(job);
    assert_int_equal(info.state, BLKREPL_JOB_CONCLUDED);
    assert_int_equal(info.result, BLKREPL_RESULT_CANCELLED);
    assert_int_equal(env_count(&env, BLKREPL_EVENT_JOB_DONE, id), 1);
    ASSERT_CODE(env_event(&env, BLKREPL_EVENT_JOB_DONE, id, 0)->error, -ECANCELED);
}

/* "pause, resume and set_speed are accepted then, and have no effect." */
static void a_job_that_winds_up_accepts_the_verbs_of_the_living(void **state)
{
    (void)state;
    make_running();
    ASSERT_CODE(blkrepl_job_cancel(job, 0), 0);
    ASSERT_CODE(blkrepl_job_set_speed(job, 1), 0);
    ASSERT_CODE(blkrepl_job_pause(job), 0);
    ASSERT_CODE(blkrepl_job_resume(job), 0);
    refused(blkrepl_job_start(job));
    ASSERT_CODE(blkrepl_job_pause(job), 0);
    tape_release(&copy, &env);
    assert_int_equal(job_info(job).result, BLKREPL_RESULT_CANCELLED);
}

static void a_paused_job_can_be_cancelled(void **state)
{
    (void)state;
    make_running();
    ASSERT_CODE(blkrepl_job_pause(job), 0);
    ASSERT_CODE(blkrepl_job_cancel(job, 0), 0);
    tape_release(&copy, &env);
    assert_int_equal(job_info(job).result, BLKREPL_RESULT_CANCELLED);
}

static void unknown_flags_of_a_cancel_change_nothing(void **state)
{
    (void)state;
    make_running();
    ASSERT_CODE(blkrepl_job_cancel(job, 2), -EINVAL);
    ASSERT_CODE(blkrepl_job_cancel(job, UINT32_MAX), -EINVAL);
    assert_int_equal(job_info(job).flags, 0);
    tape_release(&copy, &env);
    assert_int_equal(job_info(job).result, BLKREPL_RESULT_DONE);
}

/* ---- CONCLUDED ---------------------------------------------------------------------- */

static void every_verb_but_query_is_refused(void)
{
    blkrepl_job_info before = job_info(job);

    refused(blkrepl_job_start(job));
    refused(blkrepl_job_pause(job));
    refused(blkrepl_job_resume(job));
    refused(blkrepl_job_set_speed(job, 1));
    refused(blkrepl_job_cancel(job, 0));
    refused(blkrepl_job_cancel(job, BLKREPL_CANCEL_FORCE));
    env_drain(&env);
    blkrepl_job_info after = job_info(job);
    assert_memory_equal(&before, &after, sizeof before);
}

static void a_job_that_is_done_refuses_every_verb(void **state)
{
    (void)state;
    make_done();
    every_verb_but_query_is_refused();
    assert_int_equal(job_info(job).bytes_done, SIZE);
}

static void a_job_that_failed_refuses_every_verb(void **state)
{
    (void)state;
    copy.fail[BLKREPL_OP_WRITE] = -ENOSPC;
    ASSERT_CODE(blkrepl_job_start(job), 0);
    env_drain(&env);
    assert_int_equal(job_info(job).result, BLKREPL_RESULT_FAILED);
    ASSERT_CODE(job_info(job).error, -ENOSPC);
    every_verb_but_query_is_refused();
}

static void a_cancelled_job_refuses_every_verb(void **state)
{
    (void)state;
    ASSERT_CODE(blkrepl_job_cancel(job, 0), 0);
    env_drain(&env);
    every_verb_but_query_is_refused();
}

int main(void)
{
#define T(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)
    const struct CMUnitTest tests[] = {
        T(created_job_starts_once),
        T(created_job_does_nothing_until_it_is_started),
        T(created_job_pauses_and_resumes_once_each),
        T(a_job_started_while_paused_waits_for_the_resume),
        T(created_job_takes_a_speed),
        T(created_job_concludes_inside_the_cancel),
        T(created_and_paused_job_concludes_inside_the_cancel),
        T(running_job_pauses_and_resumes_once_each),
        T(running_job_takes_a_speed),
        T(running_job_is_cancelled_once_though_it_may_be_said_twice),
        T(a_job_that_winds_up_accepts_the_verbs_of_the_living),
        T(a_paused_job_can_be_cancelled),
        T(unknown_flags_of_a_cancel_change_nothing),
        T(a_job_that_is_done_refuses_every_verb),
        T(a_job_that_failed_refuses_every_verb),
        T(a_cancelled_job_refuses_every_verb),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
