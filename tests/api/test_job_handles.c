/* SPDX-License-Identifier: MIT */
/* Handles of jobs: finding them, listing them, dropping and dismissing them; how
 * long a name is taken, and when the host's `user` is let go. */
#include "stage.h"

#define SIZE (4 * CLUSTER)
#define JOBS 3

static struct env env;
static struct part disk[JOBS], copy[JOBS];
static struct part *const all[] = {&disk[0], &copy[0], &disk[1], &copy[1], &disk[2], &copy[2]};
static blkrepl_job *jobs[JOBS];
static uint64_t ids[JOBS];
static int released;

static void count(void *user)
{
    (*(int *)user)++;
}

static int set_up(void **state)
{
    (void)state;
    env_open(&env, NULL, 0);
    for (int i = 0; i < JOBS; i++) {
        part_open(&disk[i], &env, SIZE, 1);
        part_open(&copy[i], &env, SIZE, 0);
        jobs[i] = NULL;
    }
    released = 0;
    return 0;
}

static void run(void)
{
    parts_run(&env, all, ARRAY_COUNT(all));
}

static int tear_down(void **state)
{
    (void)state;
    run();
    for (int i = 0; i < JOBS; i++) {
        blkrepl_job_free(jobs[i]);
    }
    parts_close(&env, all, ARRAY_COUNT(all));
    return 0;
}

static int try_create(int i, const char *name, uint32_t job_flags)
{
    blkrepl_backup_options o = {.struct_size = sizeof o,
                                .name = name,
                                .job_flags = job_flags,
                                .user = &released,
                                .release = count};
    int rc = blkrepl_backup_create(disk[i].image, copy[i].image, &o, &jobs[i]);

    ids[i] = rc == 0 ? job_info(jobs[i]).id : 0;
    return rc;
}

static void create(int i, const char *name, uint32_t job_flags)
{
    ASSERT_CODE(try_create(i, name, job_flags), 0);
}

static void start_and_hold(int i)
{
    copy[i].tape.hold = OPS_ALL;
    ASSERT_CODE(blkrepl_job_start(jobs[i]), 0);
    env_drain(&env);
    ASSERT_STATE(jobs[i], BLKREPL_JOB_RUNNING);
}

static void drop(int i)
{
    job_drop(&env, &jobs[i]);
}

/* The job that is found by this name has this id; 0: none is found. */
static void finds(const char *name, uint64_t id)
{
    blkrepl_job *found = (blkrepl_job *)&env;
    int rc = blkrepl_job_find(env.ctx, name, &found);

    ASSERT_CODE(rc, id ? 0 : -ENOENT);
    if (id) {
        assert_int_equal(job_info(found).id, id);
        blkrepl_job_free(found);
    } else {
        assert_null(found);
    }
}

/* All jobs of the context, as digits: their place in ids[]. */
static void lists(const char *want)
{
    blkrepl_job *job = NULL;
    char seen[JOBS + 2] = "";
    uint64_t after = 0;
    size_t n = 0;
    int rc;

    while ((rc = blkrepl_job_next(env.ctx, after, &job)) == 0) {
        uint64_t id = job_info(job).id;

        assert_true(id > after && n < JOBS);
        after = id;
        seen[n] = '?';
        for (int i = 0; i < JOBS; i++) {
            seen[n] = ids[i] == id ? (char)('0' + i) : seen[n];
        }
        n++;
        blkrepl_job_free(job);
    }
    ASSERT_CODE(rc, -ENOENT);
    assert_null(job);
    assert_string_equal(seen, want);
}

/* ---- Finding and listing -------------------------------------------------------------- */

static void jobs_are_found_by_their_names(void **state)
{
    char name[64];

    (void)state;
    create(0, "alpha", 0);
    create(1, NULL, 0);
    finds("alpha", ids[0]);
    finds("alph", 0);
    finds("alphabet", 0);
    finds("", 0);
    snprintf(name, sizeof name, "backup-%llu", (unsigned long long)ids[1]);
    assert_string_equal(job_info(jobs[1]).name, name);
    finds(name, ids[1]);
    start_and_hold(0);
    finds("alpha", ids[0]);
    run();
    finds("alpha", ids[0]); /* concluded, and a handle is there */
}

static void jobs_are_listed_in_the_order_of_their_ids(void **state)
{
    (void)state;
    lists("");
    create(0, "c", 0);
    create(1, "a", 0);
    create(2, "b", 0);
    lists("012");
    drop(1);
    lists("02");
    ASSERT_CODE(blkrepl_job_cancel(jobs[0], 0), 0);
    lists("02"); /* concluded ones too */
    ASSERT_CODE(blkrepl_job_dismiss(jobs[0]), 0);
    lists("2");
}

static void a_list_goes_on_behind_an_id_that_is_gone(void **state)
{
    blkrepl_job *job = NULL;

    (void)state;
    create(0, "a", 0);
    create(1, "b", 0);
    create(2, "c", 0);
    drop(1);
    ASSERT_CODE(blkrepl_job_next(env.ctx, ids[1], &job), 0);
    assert_int_equal(job_info(job).id, ids[2]);
    blkrepl_job_free(job);
    ASSERT_CODE(blkrepl_job_next(env.ctx, ids[2], &job), -ENOENT);
    ASSERT_CODE(blkrepl_job_next(env.ctx, UINT64_MAX, &job), -ENOENT);
    assert_null(job);
}

static void null_is_refused(void **state)
{
    blkrepl_job *job = (blkrepl_job *)&env;

    (void)state;
    ASSERT_CODE(blkrepl_job_find(NULL, "a", &job), -EINVAL);
    assert_null(job);
    job = (blkrepl_job *)&env;
    ASSERT_CODE(blkrepl_job_find(env.ctx, NULL, &job), -EINVAL);
    assert_null(job);
    ASSERT_CODE(blkrepl_job_find(env.ctx, "a", NULL), -EINVAL);
    job = (blkrepl_job *)&env;
    ASSERT_CODE(blkrepl_job_next(NULL, 0, &job), -EINVAL);
    assert_null(job);
    ASSERT_CODE(blkrepl_job_next(env.ctx, 0, NULL), -EINVAL);
    blkrepl_job_free(NULL);
}

/* ---- Several handles -------------------------------------------------------------------- */

static void every_handle_is_as_good_as_the_first(void **state)
{
    blkrepl_job *second = NULL;

    (void)state;
    create(0, "a", 0);
    start_and_hold(0);
    ASSERT_CODE(blkrepl_job_find(env.ctx, "a", &second), 0);
    drop(0);
    ASSERT_CODE(blkrepl_job_pause(second), 0);
    assert_true(job_has(second, BLKREPL_JOB_FLAG_PAUSED));
    ASSERT_CODE(blkrepl_job_resume(second), 0);
    run();
    ASSERT_ENDED(second, BLKREPL_RESULT_DONE, 0);
    assert_int_equal(env_count(&env, BLKREPL_EVENT_JOB_DONE, ids[0]), 1);
    assert_int_equal(released, 0);
    blkrepl_job_free(second);
    env_drain(&env);
    assert_int_equal(released, 1);
}

/* "one that was never started is gone" with its last handle, and not before. */
static void a_created_job_lives_as_long_as_it_has_a_handle(void **state)
{
    blkrepl_job *second = NULL;

    (void)state;
    create(0, "a", 0);
    ASSERT_CODE(blkrepl_job_next(env.ctx, 0, &second), 0);
    drop(0);
    assert_int_equal(released, 0);
    ASSERT_STATE(second, BLKREPL_JOB_CREATED);
    ASSERT_CODE(try_create(1, "a", 0), -EEXIST);
    released = 0;
    blkrepl_job_free(second);
    env_drain(&env);
    assert_int_equal(released, 1);
    create(1, "a", 0);
    ASSERT_CODE(write_now(&env, copy[0].image, 0, "x", 1), 0);
}

static void a_created_job_is_gone_with_its_handle_even_if_dismiss_is_manual(void **state)
{
    (void)state;
    create(0, "a", BLKREPL_JOB_MANUAL_DISMISS);
    drop(0);
    assert_int_equal(released, 1);
    finds("a", 0);
    lists("");
}

/* "Without a handle a job that runs goes on to its end, without events" */
static void a_job_without_handles_goes_on_and_can_be_found_again(void **state)
{
    (void)state;
    create(0, "a", 0);
    start_and_hold(0);
    drop(0);
    size_t events = env.event_count;
    ASSERT_CODE(try_create(1, "a", 0), -EEXIST);
    released = 0;
    ASSERT_CODE(blkrepl_job_find(env.ctx, "a", &jobs[0]), 0);
    assert_int_equal(job_info(jobs[0]).id, ids[0]);
    drop(0);
    run();
    assert_int_equal(env.event_count, events);
    assert_int_equal(released, 1);
    finds("a", 0);
    assert_same(copy[0].tape.data, disk[0].start, SIZE, "target");
}

/* "Events of an object whose handle was dropped are dropped with it." */
static void what_was_not_told_yet_is_dropped_with_the_last_handle(void **state)
{
    (void)state;
    create(0, "a", 0);
    create(1, "b", BLKREPL_JOB_MANUAL_DISMISS);
    ASSERT_CODE(blkrepl_job_pause(jobs[0]), 0);
    ASSERT_CODE(blkrepl_job_cancel(jobs[0], 0), 0);
    ASSERT_CODE(blkrepl_job_cancel(jobs[1], 0), 0);
    blkrepl_job_free(jobs[0]);
    blkrepl_job_free(jobs[1]);
    jobs[0] = NULL;
    jobs[1] = NULL;
    env_drain(&env);
    assert_int_equal(env.event_count, 0);
}

static void a_job_that_is_found_again_tells_its_end(void **state)
{
    (void)state;
    create(0, "a", 0);
    start_and_hold(0);
    drop(0);
    ASSERT_CODE(blkrepl_job_find(env.ctx, "a", &jobs[0]), 0);
    run();
    ASSERT_ENDED(jobs[0], BLKREPL_RESULT_DONE, 0);
    assert_int_equal(env_count(&env, BLKREPL_EVENT_JOB_DONE, ids[0]), 1);
}

/* ---- Dismiss --------------------------------------------------------------------------- */

static void a_dismissed_job_leaves_its_name_and_can_be_asked(void **state)
{
    (void)state;
    create(0, "a", 0);
    start_and_hold(0);
    ASSERT_CODE(blkrepl_job_dismiss(jobs[0]), BLKREPL_ERR_STATE);
    run();
    ASSERT_CODE(try_create(1, "a", 0), -EEXIST);
    ASSERT_CODE(blkrepl_job_dismiss(jobs[0]), 0);
    finds("a", 0);
    create(1, "a", 0);
    finds("a", ids[1]);
    ASSERT_ENDED(jobs[0], BLKREPL_RESULT_DONE, 0);
    assert_string_equal(job_info(jobs[0]).name, "a");
    assert_true(job_has(jobs[0], BLKREPL_JOB_FLAG_DISMISSED));
    ASSERT_CODE(blkrepl_job_dismiss(jobs[0]), BLKREPL_ERR_STATE);
    finds("a", ids[1]);
}

static void manual_dismiss_keeps_a_job_that_has_no_handle(void **state)
{
    (void)state;
    create(0, "a", BLKREPL_JOB_MANUAL_DISMISS);
    ASSERT_CODE(blkrepl_job_start(jobs[0]), 0);
    env_drain(&env);
    ASSERT_ENDED(jobs[0], BLKREPL_RESULT_DONE, 0);
    drop(0);
    assert_int_equal(released, 0);
    ASSERT_CODE(try_create(1, "a", 0), -EEXIST);
    released = 0;
    finds("a", ids[0]);
    lists("0");
    ASSERT_CODE(blkrepl_job_find(env.ctx, "a", &jobs[0]), 0);
    ASSERT_ENDED(jobs[0], BLKREPL_RESULT_DONE, 0);
    ASSERT_CODE(blkrepl_job_dismiss(jobs[0]), 0);
    assert_int_equal(released, 0); /* there is a handle */
    drop(0);
    assert_int_equal(released, 1);
    lists("");
}

static void manual_dismiss_holds_what_concludes_without_a_handle(void **state)
{
    (void)state;
    create(0, "a", BLKREPL_JOB_MANUAL_DISMISS);
    start_and_hold(0);
    drop(0);
    part_fail(&copy[0], BLKREPL_OP_WRITE, 0, SIZE, -ENOSPC);
    run();
    part_mend(&copy[0]);
    ASSERT_CODE(blkrepl_job_find(env.ctx, "a", &jobs[0]), 0);
    ASSERT_ENDED(jobs[0], BLKREPL_RESULT_FAILED, -ENOSPC);
    assert_true(strlen(job_info(jobs[0]).message) > 0);
    ASSERT_CODE(blkrepl_job_dismiss(jobs[0]), 0);
    create(1, "a", 0);
}

/* What was cancelled before its start has concluded: it stays like any other. */
static void a_job_cancelled_before_its_start_is_dismissed_like_any_other(void **state)
{
    (void)state;
    create(0, "a", BLKREPL_JOB_MANUAL_DISMISS);
    ASSERT_CODE(blkrepl_job_cancel(jobs[0], 0), 0);
    drop(0);
    ASSERT_CODE(blkrepl_job_find(env.ctx, "a", &jobs[0]), 0);
    ASSERT_ENDED(jobs[0], BLKREPL_RESULT_CANCELLED, -ECANCELED);
    ASSERT_CODE(blkrepl_job_dismiss(jobs[0]), 0);
    finds("a", 0);
}

/* Nobody has to dismiss before the context can go. */
static void a_context_goes_with_jobs_that_were_not_dismissed(void **state)
{
    (void)state;
    create(0, "a", BLKREPL_JOB_MANUAL_DISMISS);
    ASSERT_CODE(blkrepl_job_start(jobs[0]), 0);
    env_drain(&env);
    drop(0);
    assert_int_equal(released, 0);
    lists("0");
}

static void dismiss_inside_the_last_event(struct env *e, const blkrepl_event *event)
{
    (void)e;
    if (event->type == BLKREPL_EVENT_JOB_DONE) {
        ASSERT_CODE(blkrepl_job_dismiss(jobs[0]), 0);
        blkrepl_job_free(jobs[0]);
        jobs[0] = NULL;
        create(1, "a", 0);
    }
}

static void a_job_may_be_dismissed_inside_its_last_event(void **state)
{
    (void)state;
    env.on_event = dismiss_inside_the_last_event;
    create(0, "a", BLKREPL_JOB_MANUAL_DISMISS);
    ASSERT_CODE(blkrepl_job_start(jobs[0]), 0);
    env_drain(&env);
    assert_null(jobs[0]);
    assert_int_equal(released, 1);
    finds("a", ids[1]);
    env.on_event = NULL;
}

static void unknown_job_flags_are_refused(void **state)
{
    (void)state;
    ASSERT_CODE(try_create(0, "a", 4), -EINVAL);
    ASSERT_CODE(try_create(0, "a", 0x80000000u), -EINVAL);
    create(0, "a", BLKREPL_JOB_MANUAL_DISMISS | BLKREPL_JOB_MANUAL_FINALIZE);
}

int main(void)
{
#define T(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)
    const struct CMUnitTest tests[] = {
        T(jobs_are_found_by_their_names),
        T(jobs_are_listed_in_the_order_of_their_ids),
        T(a_list_goes_on_behind_an_id_that_is_gone),
        T(null_is_refused),
        T(every_handle_is_as_good_as_the_first),
        T(a_created_job_lives_as_long_as_it_has_a_handle),
        T(a_created_job_is_gone_with_its_handle_even_if_dismiss_is_manual),
        T(a_job_without_handles_goes_on_and_can_be_found_again),
        T(what_was_not_told_yet_is_dropped_with_the_last_handle),
        T(a_job_that_is_found_again_tells_its_end),
        T(a_dismissed_job_leaves_its_name_and_can_be_asked),
        T(manual_dismiss_keeps_a_job_that_has_no_handle),
        T(manual_dismiss_holds_what_concludes_without_a_handle),
        T(a_job_cancelled_before_its_start_is_dismissed_like_any_other),
        T(a_context_goes_with_jobs_that_were_not_dismissed),
        T(a_job_may_be_dismissed_inside_its_last_event),
        T(unknown_job_flags_are_refused),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
