/* SPDX-License-Identifier: MIT */
/* What the verbs do where they are accepted; which are is in test_job_table.c. */
#include "stage.h"

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

static void every_verb_of_the_living_is_refused(void)
{
    blkrepl_job_info before = job_info(job);

    refused(blkrepl_job_start(job));
    refused(blkrepl_job_pause(job));
    refused(blkrepl_job_resume(job));
    refused(blkrepl_job_set_speed(job, 1));
    refused(blkrepl_job_cancel(job, 0));
    refused(blkrepl_job_cancel(job, BLKREPL_CANCEL_FORCE));
    refused(blkrepl_job_complete(job));
    refused(blkrepl_job_finalize(job));
    env_drain(&env);
    blkrepl_job_info after = job_info(job);
    assert_memory_equal(&before, &after, sizeof before);
}

static void a_job_that_is_done_refuses_every_verb(void **state)
{
    (void)state;
    make_done();
    every_verb_of_the_living_is_refused();
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
    every_verb_of_the_living_is_refused();
}

static void a_cancelled_job_refuses_every_verb(void **state)
{
    (void)state;
    ASSERT_CODE(blkrepl_job_cancel(job, 0), 0);
    env_drain(&env);
    every_verb_of_the_living_is_refused();
}

/* ---- Pause of the host, and of an error ------------------------------------------------ */

/* A job that an error has paused: its writes fail until they are mended. */
static void make_error_paused(void)
{
    blkrepl_backup_options o = {
        .struct_size = sizeof o, .name = "b0", .on_target_error = BLKREPL_ON_ERROR_STOP};

    blkrepl_job_free(job);
    env_drain(&env);
    copy.fail[BLKREPL_OP_WRITE] = -EIO;
    ASSERT_CODE(blkrepl_backup_start(source, target, &o, &job), 0);
    env_drain(&env);
    assert_true(job_has(job, BLKREPL_JOB_FLAG_ERROR_PAUSED));
    assert_false(paused());
    ASSERT_STATE(job, BLKREPL_JOB_RUNNING);
}

static void the_host_may_pause_what_an_error_has_paused(void **state)
{
    (void)state;
    make_error_paused();
    ASSERT_CODE(blkrepl_job_pause(job), 0);
    assert_true(paused());
    assert_true(job_has(job, BLKREPL_JOB_FLAG_ERROR_PAUSED));
    refused(blkrepl_job_pause(job));
    copy.fail[BLKREPL_OP_WRITE] = 0;
    size_t writes = tape_submitted(&copy, 0);
    env_advance(&env, 100 * SECOND);
    assert_int_equal(tape_submitted(&copy, 0), writes);
    ASSERT_CODE(blkrepl_job_resume(job), 0); /* both at once */
    assert_int_equal(job_info(job).flags, 0);
    env_drain(&env);
    ASSERT_ENDED(job, BLKREPL_RESULT_DONE, 0);
}

static void an_error_may_pause_what_the_host_has_paused(void **state)
{
    blkrepl_backup_options o = {
        .struct_size = sizeof o, .name = "b0", .on_target_error = BLKREPL_ON_ERROR_STOP};

    (void)state;
    blkrepl_job_free(job);
    env_drain(&env);
    copy.hold = OPS_ALL;
    ASSERT_CODE(blkrepl_backup_start(source, target, &o, &job), 0);
    env_drain(&env);
    ASSERT_CODE(blkrepl_job_pause(job), 0);
    tape_finish_all(&copy, BLKREPL_OP_WRITE, -EIO);
    env_drain(&env);
    assert_int_equal(job_info(job).flags, BLKREPL_JOB_FLAG_PAUSED | BLKREPL_JOB_FLAG_ERROR_PAUSED);
    copy.hold = 0;
    ASSERT_CODE(blkrepl_job_resume(job), 0);
    refused(blkrepl_job_resume(job));
    env_drain(&env);
    ASSERT_ENDED(job, BLKREPL_RESULT_DONE, 0);
}

static void a_resume_tries_again_and_an_error_pauses_again(void **state)
{
    (void)state;
    make_error_paused();
    for (int i = 0; i < 3; i++) {
        uint64_t errors = job_info(job).error_count;

        ASSERT_CODE(blkrepl_job_resume(job), 0);
        env_drain(&env);
        assert_true(job_has(job, BLKREPL_JOB_FLAG_ERROR_PAUSED));
        assert_true(job_info(job).error_count > errors);
    }
    copy.fail[BLKREPL_OP_WRITE] = 0;
    ASSERT_CODE(blkrepl_job_resume(job), 0);
    env_drain(&env);
    ASSERT_ENDED(job, BLKREPL_RESULT_DONE, 0);
    assert_same(copy.data, disk.data, SIZE, "target");
}

static void an_error_pause_is_told(void **state)
{
    (void)state;
    make_error_paused();
    uint64_t id = job_info(job).id;
    assert_true(env_count(&env, BLKREPL_EVENT_JOB_ERROR, id) >= 1);
    size_t states = env_count(&env, BLKREPL_EVENT_JOB_STATE, id);
    assert_true(states >= 1);
    ASSERT_CODE(blkrepl_job_resume(job), 0);
    env_drain(&env);
    assert_true(env_count(&env, BLKREPL_EVENT_JOB_STATE, id) > states);
}

/* ---- READY ----------------------------------------------------------------------------- */

static void make_ready(uint32_t job_flags)
{
    blkrepl_backup_options o = {
        .struct_size = sizeof o, .name = "b0", .sync = BLKREPL_SYNC_NONE, .job_flags = job_flags};

    blkrepl_job_free(job);
    env_drain(&env);
    ASSERT_CODE(blkrepl_backup_start(source, target, &o, &job), 0);
    env_drain(&env);
    ASSERT_STATE(job, BLKREPL_JOB_READY);
}

static void a_ready_job_goes_on_until_it_is_told_to_complete(void **state)
{
    (void)state;
    make_ready(0);
    uint64_t id = job_info(job).id;
    env_advance(&env, 1000 * SECOND);
    ASSERT_STATE(job, BLKREPL_JOB_READY);
    assert_int_equal(tape_submitted(&copy, BLKREPL_OP_WRITE), 0);
    ASSERT_CODE(blkrepl_job_complete(job), 0);
    env_drain(&env);
    ASSERT_ENDED(job, BLKREPL_RESULT_DONE, 0);
    ASSERT_CODE(env_event(&env, BLKREPL_EVENT_JOB_DONE, id, 0)->error, 0);
}

static void a_paused_ready_job_does_not_complete(void **state)
{
    (void)state;
    make_ready(0);
    ASSERT_CODE(blkrepl_job_pause(job), 0);
    refused(blkrepl_job_complete(job));
    ASSERT_STATE(job, BLKREPL_JOB_READY);
    ASSERT_CODE(blkrepl_job_resume(job), 0);
    ASSERT_CODE(blkrepl_job_complete(job), 0);
    env_drain(&env);
    ASSERT_ENDED(job, BLKREPL_RESULT_DONE, 0);
}

/* "a backup is cancelled either way" */
static void a_ready_backup_is_cancelled_by_either_cancel(void **state)
{
    (void)state;
    for (uint32_t flags = 0; flags <= BLKREPL_CANCEL_FORCE; flags++) {
        make_ready(0);
        ASSERT_CODE(blkrepl_job_cancel(job, flags), 0);
        env_drain(&env);
        ASSERT_ENDED(job, BLKREPL_RESULT_CANCELLED, -ECANCELED);
    }
}

/* "pause, resume, set_speed and complete are accepted then, and have no effect." */
static void a_ready_job_that_winds_up_accepts_a_complete(void **state)
{
    struct req req = {0};

    (void)state;
    make_ready(0);
    copy.hold = OPS_ALL;
    ASSERT_CODE(req_write(&req, source, 0, "x", 1), 0);
    env_drain(&env);
    assert_true(tape_pending(&copy, 0) > 0);
    ASSERT_CODE(blkrepl_job_cancel(job, 0), 0);
    assert_true(job_has(job, BLKREPL_JOB_FLAG_CANCELLING));
    ASSERT_CODE(blkrepl_job_complete(job), 0);
    ASSERT_CODE(blkrepl_job_set_speed(job, 1), 0);
    ASSERT_CODE(blkrepl_job_cancel(job, BLKREPL_CANCEL_FORCE), 0);
    tape_release(&copy, &env);
    ASSERT_ENDED(job, BLKREPL_RESULT_CANCELLED, -ECANCELED);
    req_assert_done(&req, 0);
}

/* ---- PENDING --------------------------------------------------------------------------- */

static void make_pending(void)
{
    blkrepl_backup_options o = {
        .struct_size = sizeof o, .name = "b0", .job_flags = BLKREPL_JOB_MANUAL_FINALIZE};

    blkrepl_job_free(job);
    env_drain(&env);
    ASSERT_CODE(blkrepl_backup_start(source, target, &o, &job), 0);
    env_drain(&env);
    ASSERT_STATE(job, BLKREPL_JOB_PENDING);
    assert_true(job_has(job, BLKREPL_JOB_FLAG_FINALIZABLE));
}

static void a_pending_job_waits_for_finalize(void **state)
{
    (void)state;
    make_pending();
    uint64_t id = job_info(job).id;
    env_advance(&env, 1000 * SECOND);
    ASSERT_STATE(job, BLKREPL_JOB_PENDING);
    assert_int_equal(job_info(job).result, 0);
    assert_int_equal(env_count(&env, BLKREPL_EVENT_JOB_DONE, id), 0);
    ASSERT_CODE(blkrepl_job_finalize(job), 0);
    env_drain(&env);
    ASSERT_ENDED(job, BLKREPL_RESULT_DONE, 0);
    assert_int_equal(job_info(job).bytes_done, job_info(job).bytes_total);
    assert_int_equal(env_count(&env, BLKREPL_EVENT_JOB_DONE, id), 1);
}

static void in_pending_it_is_not_too_late_to_cancel(void **state)
{
    (void)state;
    for (uint32_t flags = 0; flags <= BLKREPL_CANCEL_FORCE; flags++) {
        make_pending();
        ASSERT_CODE(blkrepl_job_cancel(job, flags), 0);
        env_drain(&env);
        ASSERT_ENDED(job, BLKREPL_RESULT_CANCELLED, -ECANCELED);
        assert_same(copy.data, disk.data, SIZE, "target");
    }
}

/* Neither is a finalize after the cancel a way back. */
static void a_finalize_does_not_undo_a_cancel(void **state)
{
    (void)state;
    make_pending();
    ASSERT_CODE(blkrepl_job_cancel(job, 0), 0);
    int rc = blkrepl_job_finalize(job);
    assert_true(rc == 0 || rc == BLKREPL_ERR_STATE);
    env_drain(&env);
    ASSERT_ENDED(job, BLKREPL_RESULT_CANCELLED, -ECANCELED);
}

/* As long as it is told to be PENDING a cancel comes in time, also after a finalize. */
static void a_cancel_after_a_finalize_is_in_time_or_refused(void **state)
{
    (void)state;
    make_pending();
    ASSERT_CODE(blkrepl_job_finalize(job), 0);
    bool pending = job_state(job) == BLKREPL_JOB_PENDING;
    int rc = blkrepl_job_cancel(job, 0);
    ASSERT_CODE(rc, pending ? 0 : BLKREPL_ERR_STATE);
    env_drain(&env);
    ASSERT_ENDED(job, rc == 0 ? BLKREPL_RESULT_CANCELLED : BLKREPL_RESULT_DONE,
                 rc == 0 ? -ECANCELED : 0);
}

static void a_ready_job_may_become_pending(void **state)
{
    (void)state;
    make_ready(BLKREPL_JOB_MANUAL_FINALIZE);
    assert_false(job_has(job, BLKREPL_JOB_FLAG_FINALIZABLE));
    refused(blkrepl_job_finalize(job));
    ASSERT_CODE(blkrepl_job_complete(job), 0);
    env_drain(&env);
    ASSERT_STATE(job, BLKREPL_JOB_PENDING);
    refused(blkrepl_job_complete(job));
    ASSERT_CODE(blkrepl_job_finalize(job), 0);
    env_drain(&env);
    ASSERT_ENDED(job, BLKREPL_RESULT_DONE, 0);
}

static void bad_arguments_of_the_verbs_are_refused(void **state)
{
    (void)state;
    ASSERT_CODE(blkrepl_job_complete(NULL), -EINVAL);
    ASSERT_CODE(blkrepl_job_finalize(NULL), -EINVAL);
    ASSERT_CODE(blkrepl_job_dismiss(NULL), -EINVAL);
    make_pending();
    ASSERT_CODE(blkrepl_job_cancel(job, 2), -EINVAL);
    ASSERT_STATE(job, BLKREPL_JOB_PENDING);
    ASSERT_CODE(blkrepl_job_finalize(job), 0);
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
        T(the_host_may_pause_what_an_error_has_paused),
        T(an_error_may_pause_what_the_host_has_paused),
        T(a_resume_tries_again_and_an_error_pauses_again),
        T(an_error_pause_is_told),
        T(a_ready_job_goes_on_until_it_is_told_to_complete),
        T(a_paused_ready_job_does_not_complete),
        T(a_ready_backup_is_cancelled_by_either_cancel),
        T(a_ready_job_that_winds_up_accepts_a_complete),
        T(a_pending_job_waits_for_finalize),
        T(in_pending_it_is_not_too_late_to_cancel),
        T(a_finalize_does_not_undo_a_cancel),
        T(a_cancel_after_a_finalize_is_in_time_or_refused),
        T(a_ready_job_may_become_pending),
        T(bad_arguments_of_the_verbs_are_refused),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
