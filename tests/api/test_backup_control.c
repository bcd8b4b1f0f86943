/* SPDX-License-Identifier: MIT */
/* Cancel, pause and speed of a running backup. */
#include "tape.h"

#define SIZE (32 * CLUSTER)

static struct env env;
static struct tape disk, copy;
static blkrepl_image *source, *target;
static blkrepl_job *job;
static blkrepl_backup_options o;
static uint8_t *start;
static uint8_t data[4096];

static int set_up(void **state)
{
    (void)state;
    env_open(&env, NULL, 0);
    tape_init(&disk, SIZE);
    tape_init(&copy, SIZE);
    tape_fill(&disk, 1);
    start = tape_copy(&disk);
    source = tape_open(&disk, &env);
    target = tape_open(&copy, &env);
    job = NULL;
    o = (blkrepl_backup_options){.struct_size = sizeof o,
                                 .cluster_bytes = CLUSTER,
                                 .chunk_bytes_max = CLUSTER,
                                 .workers_max = 2};
    fill(data, sizeof data, 0, 200);
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
    free(start);
    return 0;
}

/* ---- Cancel ------------------------------------------------------------------------------ */

/* The backend is told; the guest is free at once; the job concludes when what
 * is in flight has returned. */
static void cancel_while_held(struct tape *t, uint32_t opcodes)
{
    struct req waiting = {0}, later = {0};
    struct bracket bracket = {0};

    o.on_cbw_error = BLKREPL_CBW_GUEST_WRITE_FAILS;
    t->hold = opcodes;
    ASSERT_CODE(blkrepl_backup_start(source, target, &o, &job), 0);
    env_drain(&env);
    uint64_t id = job_info(job).id;
    assert_true(tape_pending(t, 0) > 0);
    ASSERT_CODE(req_write(&waiting, source, 30 * CLUSTER, data, sizeof data), 0);
    bracket_begin(&bracket, source, BLKREPL_OP_WRITE, 29 * CLUSTER, 4096);
    env_drain(&env);
    unsigned cancels = t->cancels;
    ASSERT_CODE(blkrepl_job_cancel(job, 0), 0);
    env_drain(&env);
    assert_true(t->cancels > cancels);
    req_assert_done(&waiting, 0);
    assert_memory_equal(disk.data + 30 * CLUSTER, data, sizeof data);
    assert_true(bracket_may_go(&bracket));
    ASSERT_CODE(blkrepl_write_end(env.ctx, bracket.token, 0, NULL, 0, NULL), 0);
    ASSERT_CODE(req_write(&later, source, 28 * CLUSTER, data, sizeof data), 0);
    env_drain(&env);
    req_assert_done(&later, 0);
    assert_int_equal(job_info(job).state, BLKREPL_JOB_RUNNING);
    assert_int_equal(env_count(&env, BLKREPL_EVENT_JOB_DONE, id), 0);
    size_t submitted = tape_submitted(&copy, 0) + tape_submitted(&disk, BLKREPL_OP_READ);
    tape_finish_all(t, 0, -ECANCELED);
    env_drain(&env);
    assert_int_equal(tape_submitted(&copy, 0) + tape_submitted(&disk, BLKREPL_OP_READ), submitted);
    blkrepl_job_info info = job_info(job);
    assert_int_equal(info.state, BLKREPL_JOB_CONCLUDED);
    assert_int_equal(info.result, BLKREPL_RESULT_CANCELLED);
    ASSERT_CODE(info.error, -ECANCELED);
    assert_true(info.bytes_done < info.bytes_total);
    assert_int_equal(env_count(&env, BLKREPL_EVENT_JOB_DONE, id), 1);
    ASSERT_CODE(env_event(&env, BLKREPL_EVENT_JOB_DONE, id, 0)->error, -ECANCELED);
}

static void cancel_frees_the_guest_while_status_hangs(void **state)
{
    (void)state;
    cancel_while_held(&disk, BIT(BLKREPL_OP_STATUS));
}

static void cancel_frees_the_guest_while_source_reads_hang(void **state)
{
    (void)state;
    cancel_while_held(&disk, BIT(BLKREPL_OP_READ));
}

static void cancel_frees_the_guest_while_target_writes_hang(void **state)
{
    (void)state;
    cancel_while_held(&copy, BIT(BLKREPL_OP_WRITE));
}

static void cancel_while_the_flush_hangs_concludes_when_it_returns(void **state)
{
    (void)state;
    copy.hold = BIT(BLKREPL_OP_FLUSH);
    ASSERT_CODE(blkrepl_backup_start(source, target, &o, &job), 0);
    env_drain(&env);
    assert_int_equal(tape_pending(&copy, BLKREPL_OP_FLUSH), 1);
    ASSERT_CODE(blkrepl_job_cancel(job, 0), 0);
    env_drain(&env);
    assert_true(copy.cancels > 0);
    assert_int_equal(job_info(job).state, BLKREPL_JOB_RUNNING);
    tape_finish_all(&copy, 0, -ECANCELED);
    env_drain(&env);
    assert_int_equal(job_info(job).result, BLKREPL_RESULT_CANCELLED);
}

static void cancel_of_a_sleeping_job_does_not_wait_for_the_timer(void **state)
{
    (void)state;
    o.speed_bytes_per_sec = 1;
    ASSERT_CODE(blkrepl_backup_start(source, target, &o, &job), 0);
    env_drain(&env);
    assert_int_equal(job_info(job).state, BLKREPL_JOB_RUNNING);
    ASSERT_CODE(blkrepl_job_cancel(job, 0), 0);
    env_drain(&env);
    assert_int_equal(job_info(job).result, BLKREPL_RESULT_CANCELLED);
    assert_true(env_deadline(&env) == BLKREPL_FOREVER);
}

/* A backend without cancel is waited for. */
static void cancel_works_without_a_cancel_function(void **state)
{
    static struct tape plain;

    (void)state;
    tape_init(&plain, SIZE);
    plain.hold = OPS_ALL;
    blkrepl_image *other = tape_open_as(&plain, &env, &tape_ops_no_cancel, NULL);
    ASSERT_CODE(blkrepl_backup_start(source, other, &o, &job), 0);
    env_drain(&env);
    ASSERT_CODE(blkrepl_job_cancel(job, 0), 0);
    env_drain(&env);
    assert_int_equal(job_info(job).state, BLKREPL_JOB_RUNNING);
    tape_release(&plain, &env);
    assert_int_equal(job_info(job).result, BLKREPL_RESULT_CANCELLED);
    blkrepl_image_close(other);
    env_drain(&env);
    tape_close(&plain);
}

static void a_failure_before_the_cancel_is_seen_stands(void **state)
{
    (void)state;
    copy.hold = BIT(BLKREPL_OP_WRITE);
    ASSERT_CODE(blkrepl_backup_start(source, target, &o, &job), 0);
    env_drain(&env);
    tape_finish(&copy, 0, -EIO);
    env_drain(&env); /* it has failed, another write is still out */
    assert_true(tape_pending(&copy, 0) > 0);
    ASSERT_CODE(blkrepl_job_cancel(job, 0), 0);
    tape_release(&copy, &env);
    assert_int_equal(job_info(job).result, BLKREPL_RESULT_FAILED);
    ASSERT_CODE(job_info(job).error, -EIO);
}

/* ---- Pause ---------------------------------------------------------------------------------- */

static void a_paused_backup_starts_nothing_but_still_saves(void **state)
{
    struct req req = {0};

    (void)state;
    copy.hold = BIT(BLKREPL_OP_WRITE);
    ASSERT_CODE(blkrepl_backup_start(source, target, &o, &job), 0);
    env_drain(&env);
    ASSERT_CODE(blkrepl_job_pause(job), 0);
    tape_release(&copy, &env); /* what was in flight finishes */
    size_t writes = tape_submitted(&copy, BLKREPL_OP_WRITE);
    uint64_t done = job_info(job).bytes_done;
    env_advance(&env, 100 * SECOND);
    assert_int_equal(tape_submitted(&copy, BLKREPL_OP_WRITE), writes);
    assert_int_equal(job_info(job).bytes_done, done);
    assert_true(done < SIZE);
    ASSERT_CODE(req_write(&req, source, 31 * CLUSTER, data, sizeof data), 0);
    env_drain(&env);
    req_assert_done(&req, 0);
    assert_memory_equal(copy.data + 31 * CLUSTER, start + 31 * CLUSTER, sizeof data);
    assert_int_equal(job_info(job).requests_in_flight, 0);
    ASSERT_CODE(blkrepl_job_resume(job), 0);
    env_drain(&env);
    assert_int_equal(job_info(job).result, BLKREPL_RESULT_DONE);
    assert_same(copy.data, start, SIZE, "target");
}

/* ---- Speed ---------------------------------------------------------------------------------- */

/* Copied so far, in whole target writes. */
static uint64_t copied(void)
{
    return copy.settled_bytes;
}

/* Never ahead of rate x time by more than a second's worth and the chunks that
 * may be in flight; never so far behind that the limit is not used. */
static void the_limit_is_honoured_over_time(void **state)
{
    uint64_t rate = 2 * CLUSTER;
    uint64_t burst = rate + 2 * CLUSTER;
    uint64_t begun = atomic_load(&env.now);

    (void)state;
    o.speed_bytes_per_sec = rate;
    ASSERT_CODE(blkrepl_backup_start(source, target, &o, &job), 0);
    env_drain(&env);
    for (int i = 0; i < 400 && job_info(job).state == BLKREPL_JOB_RUNNING; i++) {
        env_advance(&env, SECOND / 10);
        uint64_t spent = atomic_load(&env.now) - begun;
        uint64_t due = rate * (spent / (SECOND / 10)) / 10;

        assert_true(copied() <= due + burst);
        assert_true(copied() + burst >= due || copied() == SIZE);
    }
    assert_int_equal(job_info(job).result, BLKREPL_RESULT_DONE);
    uint64_t took = atomic_load(&env.now) - begun;
    assert_true(took >= 13 * SECOND && took <= 18 * SECOND); /* 16 s, less the burst */
}

static void lifting_the_limit_wakes_the_job(void **state)
{
    (void)state;
    o.speed_bytes_per_sec = 1;
    ASSERT_CODE(blkrepl_backup_start(source, target, &o, &job), 0);
    env_drain(&env);
    assert_true(copied() <= 4 * CLUSTER);
    ASSERT_CODE(blkrepl_job_set_speed(job, 0), 0);
    env_drain(&env);
    assert_int_equal(job_info(job).result, BLKREPL_RESULT_DONE);
}

static void raising_the_limit_takes_effect_at_once(void **state)
{
    (void)state;
    o.speed_bytes_per_sec = 1;
    ASSERT_CODE(blkrepl_backup_start(source, target, &o, &job), 0);
    env_drain(&env);
    uint64_t before = copied();
    ASSERT_CODE(blkrepl_job_set_speed(job, 4 * CLUSTER), 0);
    env_drain(&env);
    for (int i = 0; i < 20; i++) {
        env_advance(&env, SECOND / 10);
    }
    assert_true(copied() >= before + 4 * CLUSTER);
    assert_true(copied() < SIZE);
}

static void lowering_the_limit_slows_it_down(void **state)
{
    (void)state;
    o.speed_bytes_per_sec = 4 * CLUSTER;
    ASSERT_CODE(blkrepl_backup_start(source, target, &o, &job), 0);
    env_advance(&env, SECOND);
    ASSERT_CODE(blkrepl_job_set_speed(job, 1), 0);
    env_drain(&env);
    uint64_t before = copied();
    for (int i = 0; i < 100; i++) {
        env_advance(&env, SECOND);
    }
    assert_true(copied() <= before + 2 * CLUSTER);
    ASSERT_CODE(blkrepl_job_set_speed(job, 0), 0);
    env_drain(&env);
    assert_int_equal(job_info(job).result, BLKREPL_RESULT_DONE);
}

static void copies_for_the_guest_are_never_delayed_by_the_limit(void **state)
{
    (void)state;
    o.speed_bytes_per_sec = 1;
    o.on_cbw_error = BLKREPL_CBW_GUEST_WRITE_FAILS;
    ASSERT_CODE(blkrepl_backup_start(source, target, &o, &job), 0);
    env_drain(&env);
    for (unsigned i = 8; i < 32; i++) {
        struct req req = {0};

        ASSERT_CODE(req_write(&req, source, i * CLUSTER, data, sizeof data), 0);
        env_drain(&env); /* time stands still */
        req_assert_done(&req, 0);
    }
    ASSERT_CODE(blkrepl_job_set_speed(job, 0), 0);
    env_drain(&env);
    assert_same(copy.data, start, SIZE, "target");
}

int main(void)
{
#define T(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)
    const struct CMUnitTest tests[] = {
        T(cancel_frees_the_guest_while_status_hangs),
        T(cancel_frees_the_guest_while_source_reads_hang),
        T(cancel_frees_the_guest_while_target_writes_hang),
        T(cancel_while_the_flush_hangs_concludes_when_it_returns),
        T(cancel_of_a_sleeping_job_does_not_wait_for_the_timer),
        T(cancel_works_without_a_cancel_function),
        T(a_failure_before_the_cancel_is_seen_stands),
        T(a_paused_backup_starts_nothing_but_still_saves),
        T(the_limit_is_honoured_over_time),
        T(lifting_the_limit_wakes_the_job),
        T(raising_the_limit_takes_effect_at_once),
        T(lowering_the_limit_slows_it_down),
        T(copies_for_the_guest_are_never_delayed_by_the_limit),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
