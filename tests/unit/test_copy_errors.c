/* SPDX-License-Identifier: MIT */
/* What the engine makes of errors, by the job's policy. */
#include "unit/copy_rig.h"

static void bench(struct copy_rig *r, struct copy_config config, uint32_t side, uint32_t policy)
{
    config.keeps_bad = policy == BLKREPL_ON_ERROR_IGNORE;
    config.workers = config.workers != 0 ? config.workers : 1;
    copy_rig_init(r, 64 * KIB);
    r->source.info.opcodes &= ~OP(STATUS);
    r->target.info.opcodes &= ~OP(COPY_FROM);
    copy_rig_open(r, &config);
    r->job.on_error[side] = policy;
    copy_rig_start(r);
}

static void a_failed_read_that_stops_the_job_is_to_do_again(void **state)
{
    struct copy_rig r;

    (void)state;
    bench(&r, (struct copy_config){0}, BLKREPL_SIDE_SOURCE, BLKREPL_ON_ERROR_STOP);
    r.pumps = true;
    r.source.hold = OP(READ);
    copy_rig_pump(&r);
    copy_rig_end(&r, &r.source, 0, -EIO);
    assert_true(r.job.error_paused);
    assert_int_equal(r.copy.todo.set_count, 16);
    assert_true(copy_idle(&r.copy));
    assert_int_equal(r.job.side_errors[BLKREPL_SIDE_SOURCE], 1);
    r.source.hold = 0;
    rig_poll(&r.rig);
    assert_int_equal(r.copy.todo.set_count, 16); /* it really pauses */
    copy_rig_resume(&r);
    copy_rig_assert_copied(&r);
    copy_rig_close(&r);
}

/* Without a guest waiting a write that has failed waits with its data, for the guest may
 * have changed the source since. */
static void a_failed_write_keeps_its_data_until_the_job_is_resumed(void **state)
{
    struct copy_rig r;
    struct copy_task *task;
    struct done write;

    (void)state;
    bench(&r, (struct copy_config){0}, BLKREPL_SIDE_TARGET, BLKREPL_ON_ERROR_ENOSPC);
    r.target.hold = OP(WRITE) | OP(ZEROES);
    task = copy_rig_task(&r, 0, 2, false);
    copy_rig_write(&r, 0, 4096, &write);
    done_assert(&write, 0); /* its old data are in the buffer */
    copy_rig_end(&r, &r.target, 0, -ENOSPC);
    assert_int_equal(task->state, COPY_KEPT);
    assert_true(r.job.error_paused);
    assert_false(copy_idle(&r.copy));
    copy_rig_resume(&r);
    assert_int_equal(task->state, COPY_WRITE);
    copy_rig_end(&r, &r.target, 0, -ENOSPC); /* once more */
    assert_int_equal(task->state, COPY_KEPT);
    assert_int_equal(r.job.side_errors[BLKREPL_SIDE_TARGET], 2);
    copy_rig_resume(&r);
    r.pumps = true;
    r.target.hold = 0;
    script_end_all(&r.target);
    copy_rig_pump(&r);
    copy_rig_assert_copied(&r);
    copy_rig_close(&r);
}

static void enospc_reports_everything_else(void **state)
{
    struct copy_rig r;

    (void)state;
    bench(&r, (struct copy_config){0}, BLKREPL_SIDE_TARGET, BLKREPL_ON_ERROR_ENOSPC);
    r.target.hold = OP(WRITE) | OP(ZEROES);
    copy_rig_task(&r, 0, 2, false);
    copy_rig_end(&r, &r.target, 0, -EIO);
    assert_true(r.copy.failed);
    assert_false(r.job.error_paused);
    assert_int_equal(r.copy.todo.set_count, 16); /* what is not on the target is told */
    copy_rig_close(&r);
}

static void what_is_ignored_is_bad_and_nothing_else(void **state)
{
    struct copy_rig r;

    (void)state;
    bench(&r, (struct copy_config){.chunk_bytes = 2 * CLUSTER}, BLKREPL_SIDE_SOURCE,
          BLKREPL_ON_ERROR_IGNORE);
    r.source.hold = OP(READ);
    copy_rig_task(&r, 2, 2, false);
    copy_rig_end(&r, &r.source, 0, -EIO);
    r.source.hold = 0;
    r.pumps = true;
    for (int i = 0; i < 10; i++) {
        copy_rig_pump(&r);
    }
    assert_int_equal(r.copy.todo.set_count, 0);
    assert_int_equal(r.copy.bad.set_count, 2);
    assert_true(blkrepl__hbitmap_test(&r.copy.bad, 2) && blkrepl__hbitmap_test(&r.copy.bad, 3));
    assert_int_equal(r.copy.failed_bytes, 2 * CLUSTER);
    assert_int_equal(r.copy.bytes_done, 64 * KIB - 2 * CLUSTER);
    assert_false(r.copy.failed); /* that is the kind's to say, at the end */
    assert_memory_equal(r.target.disk + 4 * CLUSTER, r.old + 4 * CLUSTER, 12 * CLUSTER);
    copy_rig_close(&r);
}

static void a_write_to_the_target_that_is_ignored_is_bad(void **state)
{
    struct copy_rig r;

    (void)state;
    bench(&r, (struct copy_config){0}, BLKREPL_SIDE_TARGET, BLKREPL_ON_ERROR_IGNORE);
    r.target.hold = OP(WRITE) | OP(ZEROES);
    copy_rig_task(&r, 15, 1, false);
    copy_rig_end(&r, &r.target, 0, -EIO);
    assert_true(blkrepl__hbitmap_test(&r.copy.bad, 15));
    copy_rig_close(&r);
}

/* A guest's copy that fails before the old data are saved. */
static void a_guest_is_not_held_by_a_policy(void **state)
{
    static const uint32_t policies[] = {0, BLKREPL_ON_ERROR_REPORT, BLKREPL_ON_ERROR_IGNORE,
                                        BLKREPL_ON_ERROR_STOP, BLKREPL_ON_ERROR_ENOSPC};

    (void)state;
    for (unsigned i = 0; i < 5; i++) {
        struct copy_rig r;
        struct done write;
        bench(&r, (struct copy_config){0}, BLKREPL_SIDE_SOURCE, policies[i]);
        r.source.hold = OP(READ);
        copy_rig_write(&r, 0, 4096, &write);
        assert_int_equal(write.calls, 0);
        copy_rig_end(&r, &r.source, 0, -ENOSPC);
        done_assert(&write, 0);
        assert_true(r.copy.failed);
        assert_int_equal(r.copy.bad.set_count, 0);
        assert_false(r.job.error_paused);
        copy_rig_close(&r);
    }
}

static void under_guest_write_fails_the_guest_has_the_error_whatever_the_policy(void **state)
{
    static const uint32_t policies[] = {BLKREPL_ON_ERROR_IGNORE, BLKREPL_ON_ERROR_STOP};

    (void)state;
    for (unsigned i = 0; i < 2; i++) {
        struct copy_rig r;
        struct done write;

        bench(&r, (struct copy_config){.hold_until_written = true}, BLKREPL_SIDE_TARGET,
              policies[i]);
        r.target.hold = OP(WRITE) | OP(ZEROES);
        copy_rig_write(&r, 0, 4096, &write);
        copy_rig_end(&r, &r.target, 0, -EIO);
        done_assert(&write, -EIO);
        assert_int_equal(r.copy.todo.set_count, 16);
        assert_int_equal(r.copy.bad.set_count, 0);
        assert_false(r.job.error_paused);
        copy_rig_close(&r);
    }
}

/* With guest-write-fails the source still holds what a background copy could not write. */
static void a_background_write_that_holds_guests_is_to_do_again(void **state)
{
    struct copy_rig r;

    (void)state;
    bench(&r, (struct copy_config){.hold_until_written = true}, BLKREPL_SIDE_TARGET,
          BLKREPL_ON_ERROR_STOP);
    r.target.hold = OP(WRITE) | OP(ZEROES);
    copy_rig_task(&r, 0, 2, false);
    copy_rig_end(&r, &r.target, 0, -EIO);
    assert_true(r.job.error_paused);
    assert_true(copy_idle(&r.copy));
    assert_int_equal(r.copy.todo.set_count, 16);
    copy_rig_close(&r);
}

/* A guest came to wait for a background read that fails and stops the job: it tries by
 * itself, and what becomes of that is a matter of on_cbw_error. */
static void a_guest_on_a_stopped_read_tries_by_itself(void **state)
{
    struct copy_rig r;
    struct done write;

    (void)state;
    bench(&r, (struct copy_config){0}, BLKREPL_SIDE_SOURCE, BLKREPL_ON_ERROR_STOP);
    r.source.hold = OP(READ);
    copy_rig_task(&r, 0, 4, false);
    copy_rig_write(&r, 4096, 8192, &write);
    copy_rig_end(&r, &r.source, 0, -EIO);
    assert_true(r.job.error_paused);
    assert_int_equal(r.source.waiting_count, 1); /* its own cluster */
    assert_int_equal(r.source.waiting[0]->bytes, 4096);
    copy_rig_end(&r, &r.source, 0, 0);
    done_assert(&write, 0);
    assert_false(r.copy.failed);
    copy_rig_close(&r);
}

static void what_is_kept_when_the_engine_stops_is_told_as_not_done(void **state)
{
    struct copy_rig r;

    (void)state;
    bench(&r, (struct copy_config){0}, BLKREPL_SIDE_TARGET, BLKREPL_ON_ERROR_STOP);
    r.target.hold = OP(WRITE) | OP(ZEROES);
    copy_rig_task(&r, 3, 2, false);
    copy_rig_end(&r, &r.target, 0, -EIO);
    blkrepl__enter(r.rig.ctx);
    blkrepl__copy_stop(&r.copy);
    blkrepl__leave(r.rig.ctx, 0);
    assert_true(copy_idle(&r.copy));
    assert_int_equal(r.copy.todo.set_count, 16);
    copy_rig_close(&r);
}

/* Whatever the engine has when it stops is where it was again. */
static void what_is_in_flight_when_the_engine_stops_is_told_as_not_done(void **state)
{
    struct copy_rig r;

    (void)state;
    bench(&r, (struct copy_config){.workers = 2}, BLKREPL_SIDE_TARGET, 0);
    r.target.hold = OP(WRITE) | OP(ZEROES);
    r.source.hold = OP(READ);
    copy_rig_task(&r, 0, 2, false);
    copy_rig_end(&r, &r.source, 0, 0);
    copy_rig_task(&r, 4, 2, false);
    blkrepl__enter(r.rig.ctx);
    blkrepl__copy_stop(&r.copy);
    blkrepl__leave(r.rig.ctx, 0);
    script_end_all(&r.source);
    script_end_all(&r.target);
    rig_poll(&r.rig);
    assert_true(copy_idle(&r.copy));
    assert_int_equal(r.copy.todo.set_count, 16);
    assert_int_equal(r.copy.bytes_done, 0);
    copy_rig_close(&r);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_failed_read_that_stops_the_job_is_to_do_again),
        cmocka_unit_test(a_failed_write_keeps_its_data_until_the_job_is_resumed),
        cmocka_unit_test(enospc_reports_everything_else),
        cmocka_unit_test(what_is_ignored_is_bad_and_nothing_else),
        cmocka_unit_test(a_write_to_the_target_that_is_ignored_is_bad),
        cmocka_unit_test(a_guest_is_not_held_by_a_policy),
        cmocka_unit_test(under_guest_write_fails_the_guest_has_the_error_whatever_the_policy),
        cmocka_unit_test(a_background_write_that_holds_guests_is_to_do_again),
        cmocka_unit_test(a_guest_on_a_stopped_read_tries_by_itself),
        cmocka_unit_test(what_is_kept_when_the_engine_stops_is_told_as_not_done),
        cmocka_unit_test(what_is_in_flight_when_the_engine_stops_is_told_as_not_done),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
