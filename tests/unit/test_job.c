/* SPDX-License-Identifier: MIT */
#include "job/job.h"

#include "unit/rig.h"

struct bench {
    struct rig rig;
    struct blkrepl_job job;
    unsigned started;
    unsigned steps;
    unsigned cancelled;
    unsigned speed_changed;
    unsigned let_go;
    unsigned destroyed;
    unsigned released;
    unsigned events_at_release;
    bool conclude; /* the next step concludes */
};

static struct bench *bench_of(const struct blkrepl_job *job)
{
    return CONTAINER_OF(job, struct bench, job);
}

static void fake_start(struct blkrepl_job *job)
{
    bench_of(job)->started++;
}

static enum step fake_step(struct blkrepl_job *job)
{
    struct bench *b = bench_of(job);

    b->steps++;
    if (b->conclude || job->cancel) {
        blkrepl__job_conclude(job, job->cancel            ? BLKREPL_RESULT_CANCELLED
                                   : job->cause.code != 0 ? BLKREPL_RESULT_FAILED
                                                          : BLKREPL_RESULT_DONE);
        return STEP_DONE;
    }
    return STEP_WAIT;
}

static void fake_cancelled(struct blkrepl_job *job)
{
    bench_of(job)->cancelled++;
}

static void fake_speed_changed(struct blkrepl_job *job)
{
    bench_of(job)->speed_changed++;
}

static void fake_query(const struct blkrepl_job *job, blkrepl_job_info *info)
{
    (void)job;
    info->bytes_total = 77;
}

static void fake_let_go(struct blkrepl_job *job)
{
    bench_of(job)->let_go++;
}

static void fake_destroy(struct blkrepl_job *job)
{
    bench_of(job)->destroyed++;
}

static const struct job_ops fake_ops = {.start = fake_start,
                                        .step = fake_step,
                                        .cancelled = fake_cancelled,
                                        .speed_changed = fake_speed_changed,
                                        .query = fake_query,
                                        .let_go = fake_let_go,
                                        .destroy = fake_destroy};

static void note_release(void *user)
{
    struct bench *b = user;

    b->released++;
    b->events_at_release = b->rig.event_count;
}

static void bench_open(struct bench *b, const char *name)
{
    memset(b, 0, sizeof *b);
    rig_open(&b->rig, NULL);
    b->job.ops = &fake_ops;
    b->job.kind = BLKREPL_KIND_BACKUP;
    blkrepl__enter(b->rig.ctx);
    blkrepl__job_publish(
        &b->job, b->rig.ctx,
        &(struct job_identity){
            .name = name, .kind_name = "kind", .user = b, .release = note_release});
    blkrepl__leave(b->rig.ctx, 0);
}

/* Free the handle, if it was not, and see that everything ended once. */
static void bench_close(struct bench *b, bool freed)
{
    if (!freed) {
        blkrepl_job_free(&b->job);
    }
    rig_poll(&b->rig);
    assert_int_equal(b->let_go, 1);
    assert_int_equal(b->destroyed, 1);
    assert_int_equal(b->released, 1);
    assert_int_equal(b->events_at_release, b->rig.event_count); /* after every event */
    rig_close(&b->rig);
}

static blkrepl_job_info info_of(struct bench *b)
{
    blkrepl_job_info info = {.struct_size = sizeof info};

    assert_int_equal(blkrepl_job_query(&b->job, &info), 0);
    return info;
}

enum verb {
    START,
    PAUSE,
    RESUME,
    SET_SPEED,
    CANCEL,
    VERBS
};

static int call(struct bench *b, enum verb verb)
{
    switch (verb) {
    case START: return blkrepl_job_start(&b->job);
    case PAUSE: return blkrepl_job_pause(&b->job);
    case RESUME: return blkrepl_job_resume(&b->job);
    case SET_SPEED: return blkrepl_job_set_speed(&b->job, 5);
    case CANCEL: return blkrepl_job_cancel(&b->job, 0);
    case VERBS: break;
    }
    return 0;
}

/* The table of job.h; resume is asked of a job that is paused. */
static const bool legal[VERBS][BLKREPL_JOB_CONCLUDED + 1] = {
    [START] = {[BLKREPL_JOB_CREATED] = true},
    [PAUSE] =
        {[BLKREPL_JOB_CREATED] = true, [BLKREPL_JOB_RUNNING] = true, [BLKREPL_JOB_READY] = true},
    [RESUME] =
        {[BLKREPL_JOB_CREATED] = true, [BLKREPL_JOB_RUNNING] = true, [BLKREPL_JOB_READY] = true},
    [SET_SPEED] =
        {[BLKREPL_JOB_CREATED] = true, [BLKREPL_JOB_RUNNING] = true, [BLKREPL_JOB_READY] = true},
    [CANCEL] = {[BLKREPL_JOB_CREATED] = true,
                [BLKREPL_JOB_RUNNING] = true,
                [BLKREPL_JOB_READY] = true,
                [BLKREPL_JOB_PENDING] = true},
};

/* Bring a job into a state that the fake never reaches by itself. */
static void enter_state(struct bench *b, enum blkrepl_job_state state)
{
    if (state == BLKREPL_JOB_CREATED) {
        return;
    }
    assert_int_equal(blkrepl_job_start(&b->job), 0);
    b->conclude = state == BLKREPL_JOB_CONCLUDED;
    rig_poll(&b->rig);
    if (state != BLKREPL_JOB_CONCLUDED) {
        b->job.state = state;
    }
}

static void job_verbs_are_legal_in_the_states_of_the_table(void **state)
{
    (void)state;
    for (enum verb verb = START; verb < VERBS; verb++) {
        for (enum blkrepl_job_state s = BLKREPL_JOB_CREATED; s <= BLKREPL_JOB_CONCLUDED; s++) {
            struct bench b;
            blkrepl_job_info before;
            blkrepl_job_info after;
            int rc;

            bench_open(&b, "b0");
            enter_state(&b, s);
            b.job.paused = verb == RESUME;
            before = info_of(&b);
            rc = call(&b, verb);
            if (rc != (legal[verb][s] ? 0 : BLKREPL_ERR_STATE)) {
                fail_msg("verb %d in state %d: %d", (int)verb, (int)s, rc);
            }
            if (rc != 0) {
                after = info_of(&b);
                assert_memory_equal(&before, &after, sizeof before); /* changes nothing */
                assert_non_null(strstr(blkrepl_error_message(), "job \"b0\": cannot "));
            }
            if (b.job.state != BLKREPL_JOB_CONCLUDED && b.job.state != BLKREPL_JOB_CREATED) {
                b.conclude = true;
                blkrepl__machine_wake(b.rig.ctx, &b.job.machine);
                rig_poll(&b.rig);
            }
            bench_close(&b, false);
        }
    }
}

static void job_is_paused_and_resumed_once(void **state)
{
    struct bench b;

    (void)state;
    bench_open(&b, NULL);
    assert_int_equal(blkrepl_job_resume(&b.job), BLKREPL_ERR_STATE);
    assert_int_equal(blkrepl_job_pause(&b.job), 0);
    assert_int_equal(blkrepl_job_pause(&b.job), BLKREPL_ERR_STATE);
    assert_string_equal(blkrepl_error_message(), "job \"kind-1\": cannot pause: it is paused "
                                                 "already");
    assert_int_equal(info_of(&b).flags, BLKREPL_JOB_FLAG_PAUSED);
    assert_int_equal(blkrepl_job_resume(&b.job), 0);
    assert_int_equal(b.speed_changed, 0);
    rig_poll(&b.rig);
    assert_int_equal(rig_event(&b.rig, BLKREPL_EVENT_JOB_STATE, 0)->count, 2);
    bench_close(&b, false);
}

static void job_start_is_the_point_in_time_and_wakes_the_machine(void **state)
{
    struct bench b;

    (void)state;
    bench_open(&b, "b0");
    blkrepl__machine_wake(b.rig.ctx, &b.job.machine);
    rig_poll(&b.rig);
    assert_int_equal(b.steps, 0); /* not yet started */
    assert_int_equal(blkrepl_job_start(&b.job), 0);
    assert_int_equal(b.started, 1);
    assert_int_equal(b.steps, 0); /* only polls step */
    rig_poll(&b.rig);
    assert_int_equal(b.steps, 1);
    assert_int_equal(info_of(&b).state, BLKREPL_JOB_RUNNING);
    assert_int_equal(blkrepl_job_cancel(&b.job, 0), 0);
    rig_poll(&b.rig);
    bench_close(&b, false);
}

static void job_that_is_cancelled_twice_is_cancelled_once(void **state)
{
    struct bench b;

    (void)state;
    bench_open(&b, "b0");
    assert_int_equal(blkrepl_job_cancel(&b.job, 2), -EINVAL);
    assert_int_equal(blkrepl_job_start(&b.job), 0);
    assert_int_equal(blkrepl_job_cancel(&b.job, 0), 0);
    assert_int_equal(blkrepl_job_cancel(&b.job, BLKREPL_CANCEL_FORCE), 0);
    assert_int_equal(b.cancelled, 1);
    assert_int_equal(info_of(&b).flags, BLKREPL_JOB_FLAG_CANCELLING);
    assert_int_equal(info_of(&b).error, 0);
    rig_poll(&b.rig);
    assert_int_equal(info_of(&b).flags, 0);
    assert_int_equal(info_of(&b).error, -ECANCELED);
    assert_int_equal(info_of(&b).result, BLKREPL_RESULT_CANCELLED);
    bench_close(&b, false);
}

static void job_that_was_never_started_concludes_inside_cancel(void **state)
{
    struct bench b;

    (void)state;
    bench_open(&b, "b0");
    assert_int_equal(blkrepl_job_cancel(&b.job, 0), 0);
    assert_int_equal(info_of(&b).state, BLKREPL_JOB_CONCLUDED);
    assert_int_equal(b.let_go, 1);
    assert_int_equal(b.cancelled, 0);
    rig_poll(&b.rig);
    assert_int_equal(rig_event(&b.rig, BLKREPL_EVENT_JOB_DONE, 0)->error, -ECANCELED);
    bench_close(&b, false);
}

static void fail_once(struct bench *b, int code, uint64_t offset, const char *what)
{
    blkrepl__enter(b->rig.ctx);
    blkrepl__job_error(&b->job, &(struct job_error){.code = code,
                                                    .side = BLKREPL_SIDE_TARGET,
                                                    .offset = offset,
                                                    .bytes = 512,
                                                    .what = what});
    blkrepl__leave(b->rig.ctx, 0);
}

static void job_keeps_its_first_error_and_counts_them_all(void **state)
{
    struct bench b;
    blkrepl_job_info info;

    (void)state;
    bench_open(&b, "b0");
    assert_int_equal(blkrepl_job_start(&b.job), 0);
    fail_once(&b, -ENOSPC, 1048576, "write");
    fail_once(&b, -EIO, 0, "flush");
    info = info_of(&b);
    assert_string_equal(info.message,
                        "job \"b0\": target write at 1048576+512: No space left on device");
    assert_int_equal(info.error_count, 2);
    assert_int_equal(info.error_side, BLKREPL_SIDE_TARGET);
    assert_int_equal(info.error_offset, 1048576);
    assert_int_equal(info.error_bytes, 512);
    assert_int_equal(info.error, 0); /* not concluded */
    assert_int_equal(info.bytes_total, 77);
    b.conclude = true;
    rig_poll(&b.rig);
    assert_int_equal(info_of(&b).error, -ENOSPC);
    assert_int_equal(rig_event(&b.rig, BLKREPL_EVENT_JOB_ERROR, 0)->count, 2);
    assert_int_equal(rig_event(&b.rig, BLKREPL_EVENT_JOB_ERROR, 0)->error, -EIO); /* newest */
    assert_string_equal(b.rig.lines[1], info.message);
    assert_int_equal(b.rig.levels[1], BLKREPL_LOG_ERROR);
    bench_close(&b, false);
}

static void job_events_come_in_order_and_done_is_the_last(void **state)
{
    struct bench b;

    (void)state;
    bench_open(&b, "b0");
    assert_int_equal(blkrepl_job_start(&b.job), 0);
    fail_once(&b, -EIO, 0, "read");
    b.conclude = true;
    rig_poll(&b.rig);
    assert_int_equal(b.rig.event_count, 3);
    assert_int_equal(b.rig.events[0].type, BLKREPL_EVENT_JOB_STATE);
    assert_int_equal(b.rig.events[1].type, BLKREPL_EVENT_JOB_ERROR);
    assert_int_equal(b.rig.events[2].type, BLKREPL_EVENT_JOB_DONE);
    for (int i = 0; i < 3; i++) {
        assert_int_equal(b.rig.events[i].object_kind, BLKREPL_OBJECT_JOB);
        assert_int_equal(b.rig.events[i].object_id, b.job.id);
        assert_ptr_equal(b.rig.events[i].user, &b);
    }
    assert_int_equal(b.rig.events[2].error, -EIO);
    bench_close(&b, false);
}

static void job_without_a_handle_runs_on_without_events(void **state)
{
    struct bench b;

    (void)state;
    bench_open(&b, "b0");
    assert_int_equal(blkrepl_job_start(&b.job), 0);
    blkrepl_job_free(&b.job); /* its STATE event waits: dropped */
    rig_poll(&b.rig);
    assert_int_equal(b.steps, 1);
    assert_int_equal(b.destroyed, 0);
    assert_int_equal(b.released, 0);
    b.conclude = true;
    blkrepl__machine_wake(b.rig.ctx, &b.job.machine);
    rig_poll(&b.rig);
    assert_int_equal(b.rig.event_count, 0);
    bench_close(&b, true);
}

static void job_names_are_legal_and_unique_until_the_handle_is_freed(void **state)
{
    struct bench b;
    char name[BLKREPL_NAME_MAX + 2];

    (void)state;
    bench_open(&b, "b0");
    memset(name, 'x', sizeof name);
    name[BLKREPL_NAME_MAX + 1] = '\0';
    assert_int_equal(blkrepl__job_check_name(b.rig.ctx, NULL), 0);
    assert_int_equal(blkrepl__job_check_name(b.rig.ctx, ""), -EINVAL);
    assert_int_equal(blkrepl__job_check_name(b.rig.ctx, name), -EINVAL);
    name[BLKREPL_NAME_MAX] = '\0';
    assert_int_equal(blkrepl__job_check_name(b.rig.ctx, name), 0);
    assert_int_equal(blkrepl__job_check_name(b.rig.ctx, "b0"), -EEXIST);
    assert_int_equal(blkrepl__job_check_name(b.rig.ctx, "b"), 0);
    assert_int_equal(blkrepl_job_cancel(&b.job, 0), 0); /* concluded: still taken */
    assert_int_equal(blkrepl__job_check_name(b.rig.ctx, "b0"), -EEXIST);
    blkrepl_job_free(&b.job);
    assert_int_equal(blkrepl__job_check_name(b.rig.ctx, "b0"), 0);
    bench_close(&b, true);
}

static void job_query_checks_its_arguments(void **state)
{
    struct bench b;
    blkrepl_job_info info = {.struct_size = 8};

    (void)state;
    bench_open(&b, "b0");
    assert_int_equal(blkrepl_job_query(&b.job, &info), -EINVAL);
    assert_int_equal(blkrepl_job_query(&b.job, NULL), -EINVAL);
    assert_int_equal(blkrepl_job_query(NULL, &info), -EINVAL);
    assert_int_equal(blkrepl_job_start(NULL), -EINVAL);
    assert_int_equal(blkrepl_job_pause(NULL), -EINVAL);
    assert_int_equal(blkrepl_job_resume(NULL), -EINVAL);
    assert_int_equal(blkrepl_job_set_speed(NULL, 1), -EINVAL);
    assert_int_equal(blkrepl_job_cancel(NULL, 0), -EINVAL);
    blkrepl_job_free(NULL);
    assert_int_equal(blkrepl_job_set_speed(&b.job, 1234), 0);
    info = info_of(&b);
    assert_int_equal(info.speed_bytes_per_sec, 1234);
    assert_int_equal(b.speed_changed, 1);
    assert_string_equal(info.name, "b0");
    assert_ptr_equal(info.user, &b);
    assert_int_equal(info.kind, BLKREPL_KIND_BACKUP);
    bench_close(&b, false);
}

static void job_is_cancelled_when_its_context_is_freed(void **state)
{
    struct bench b;

    (void)state;
    bench_open(&b, "b0");
    assert_int_equal(blkrepl_job_start(&b.job), 0);
    assert_int_equal(blkrepl_context_free(b.rig.ctx), -EBUSY);
    assert_int_equal(b.cancelled, 1);
    assert_int_equal(info_of(&b).result, BLKREPL_RESULT_CANCELLED);
    assert_int_equal(blkrepl_job_start(&b.job), -ESHUTDOWN);
    assert_int_equal(blkrepl_job_pause(&b.job), -ESHUTDOWN);
    bench_close(&b, false);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(job_verbs_are_legal_in_the_states_of_the_table),
        cmocka_unit_test(job_is_paused_and_resumed_once),
        cmocka_unit_test(job_start_is_the_point_in_time_and_wakes_the_machine),
        cmocka_unit_test(job_that_is_cancelled_twice_is_cancelled_once),
        cmocka_unit_test(job_that_was_never_started_concludes_inside_cancel),
        cmocka_unit_test(job_keeps_its_first_error_and_counts_them_all),
        cmocka_unit_test(job_events_come_in_order_and_done_is_the_last),
        cmocka_unit_test(job_without_a_handle_runs_on_without_events),
        cmocka_unit_test(job_names_are_legal_and_unique_until_the_handle_is_freed),
        cmocka_unit_test(job_query_checks_its_arguments),
        cmocka_unit_test(job_is_cancelled_when_its_context_is_freed),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
