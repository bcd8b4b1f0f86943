/* SPDX-License-Identifier: MIT */
/* What a backup does when its background work fails: each policy, by side; what is
 * counted and kept; and the guests, who go on meanwhile. */
#include "stage.h"

#define CLUSTERS 16
#define SIZE (CLUSTERS * CLUSTER)

static struct env env;
static struct part disk, copy;
static struct part *const both[] = {&disk, &copy};
static blkrepl_job *job;
static blkrepl_backup_options o;
static uint64_t id;

static int set_up(void **state)
{
    (void)state;
    env_open(&env, NULL, 0);
    part_open(&disk, &env, SIZE, 1);
    part_open(&copy, &env, SIZE, 0);
    job = NULL;
    o = (blkrepl_backup_options){.struct_size = sizeof o,
                                 .cluster_bytes = CLUSTER,
                                 .chunk_bytes_max = CLUSTER,
                                 .workers_max = 1};
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    part_mend(&disk);
    part_mend(&copy);
    parts_run(&env, both, 2);
    blkrepl_job_free(job);
    parts_close(&env, both, 2);
    return 0;
}

static void start(void)
{
    ASSERT_CODE(blkrepl_backup_start(disk.image, copy.image, &o, &job), 0);
    id = job_info(job).id;
    env_drain(&env);
}

static void drop(void)
{
    job_drop(&env, &job);
    part_mend(&disk);
    part_mend(&copy);
}

static void resume(void)
{
    ASSERT_CODE(blkrepl_job_resume(job), 0);
    env_drain(&env);
}

static bool error_paused(void)
{
    return job_has(job, BLKREPL_JOB_FLAG_ERROR_PAUSED);
}

/* The error that the query tells is this one, of the given cluster. */
static void tells(int error, uint32_t side, uint64_t cluster)
{
    blkrepl_job_info info = job_info(job);
    uint64_t at = cluster * CLUSTER;

    assert_int_equal(info.error_side, side);
    assert_true(info.error_offset < at + CLUSTER && info.error_offset + info.error_bytes > at);
    assert_true(strlen(info.message) > 0);
    if (info.result == BLKREPL_RESULT_FAILED) {
        ASSERT_CODE(info.error, error);
    }
}

static void done_and_right(void)
{
    ASSERT_ENDED(job, BLKREPL_RESULT_DONE, 0);
    assert_same(copy.tape.data, disk.start, SIZE, "target");
    assert_int_equal(job_info(job).bytes_done, job_info(job).bytes_total);
}

struct side {
    uint32_t side;
    struct part *part;
    uint32_t opcode;
};

static const struct side sides[] = {{BLKREPL_SIDE_SOURCE, &disk, BLKREPL_OP_READ},
                                    {BLKREPL_SIDE_TARGET, &copy, BLKREPL_OP_WRITE}};

/* The policy for one side; the other one's is REPORT. */
static void policy(const struct side *s, uint32_t on_error)
{
    o.on_source_error = s->side == BLKREPL_SIDE_SOURCE ? on_error : 0;
    o.on_target_error = s->side == BLKREPL_SIDE_TARGET ? on_error : 0;
}

static void counts(const struct side *s, uint64_t least)
{
    blkrepl_job_info info = job_info(job);
    bool source = s->side == BLKREPL_SIDE_SOURCE;

    assert_true(info.error_count >= least);
    assert_int_equal(source ? info.source_errors : info.target_errors, info.error_count);
    assert_int_equal(source ? info.target_errors : info.source_errors, 0);
    assert_int_equal(info.spill_errors, 0);
}

/* The first event of an error says all of it. */
static void told_by_event(const struct side *s, uint64_t cluster, int error)
{
    const blkrepl_event *e = env_event(&env, BLKREPL_EVENT_JOB_ERROR, id, 0);

    assert_non_null(e);
    assert_int_equal(e->side, s->side);
    ASSERT_CODE(e->error, error);
    assert_true(e->offset < (cluster + 1) * CLUSTER && e->offset + e->bytes > cluster * CLUSTER);
}

/* ---- REPORT --------------------------------------------------------------------------- */

static void report_fails_the_job(void **state)
{
    static const uint32_t policies[] = {0, BLKREPL_ON_ERROR_REPORT, BLKREPL_ON_ERROR_ENOSPC};

    (void)state;
    for (size_t i = 0; i < ARRAY_COUNT(sides) * ARRAY_COUNT(policies); i++) {
        const struct side *s = &sides[i % 2];

        env.event_count = 0;
        policy(s, policies[i / 2]);
        part_fail(s->part, s->opcode, 7 * CLUSTER, 512, -EIO);
        start();
        ASSERT_ENDED(job, BLKREPL_RESULT_FAILED, -EIO);
        tells(-EIO, s->side, 7);
        counts(s, 1);
        told_by_event(s, 7, -EIO);
        assert_int_equal(job_info(job).failed_bytes, 0);
        ASSERT_CODE(env_event(&env, BLKREPL_EVENT_JOB_DONE, id, 0)->error, -EIO);
        drop();
    }
}

/* ---- IGNORE ----------------------------------------------------------------------------- */

static void ignore_goes_on_and_fails_at_the_end(void **state)
{
    (void)state;
    for (size_t i = 0; i < ARRAY_COUNT(sides); i++) {
        const struct side *s = &sides[i];

        env.event_count = 0;
        memset(copy.tape.data, 0, SIZE);
        policy(s, BLKREPL_ON_ERROR_IGNORE);
        part_fail(s->part, s->opcode, 7 * CLUSTER + 4096, 512, -EILSEQ);
        start();
        ASSERT_ENDED(job, BLKREPL_RESULT_FAILED, -EILSEQ);
        tells(-EILSEQ, s->side, 7);
        counts(s, 1);
        told_by_event(s, 7, -EILSEQ);
        assert_memory_equal(copy.tape.data, disk.start, 7 * CLUSTER);
        assert_memory_equal(copy.tape.data + 8 * CLUSTER, disk.start + 8 * CLUSTER, 8 * CLUSTER);
        blkrepl_job_info info = job_info(job);
        assert_int_equal(info.failed_bytes, CLUSTER);
        assert_true(info.bytes_done < info.bytes_total);
        drop();
    }
}

/* "a job goes on with the rest": all of it may fail, and it still comes to its end. */
static void ignore_ends_though_everything_fails(void **state)
{
    (void)state;
    o.on_target_error = BLKREPL_ON_ERROR_IGNORE;
    part_fail(&copy, BLKREPL_OP_WRITE, 0, SIZE, -EIO);
    start();
    ASSERT_ENDED(job, BLKREPL_RESULT_FAILED, -EIO);
    tells(-EIO, BLKREPL_SIDE_TARGET, 0);
    assert_int_equal(job_info(job).failed_bytes, SIZE);
    assert_int_equal(job_info(job).bytes_done, 0);
}

/* The first one is kept with its side and place, whatever fails later. */
static void the_first_error_is_kept(void **state)
{
    (void)state;
    o.on_source_error = BLKREPL_ON_ERROR_IGNORE;
    o.on_target_error = BLKREPL_ON_ERROR_IGNORE;
    part_fail(&disk, BLKREPL_OP_READ, 3 * CLUSTER, 512, -EILSEQ);
    part_fail(&copy, BLKREPL_OP_WRITE, 9 * CLUSTER, 512, -ENOSPC);
    start();
    ASSERT_ENDED(job, BLKREPL_RESULT_FAILED, -EILSEQ);
    tells(-EILSEQ, BLKREPL_SIDE_SOURCE, 3);
    blkrepl_job_info info = job_info(job);
    assert_true(info.source_errors >= 1 && info.target_errors >= 1);
    assert_int_equal(info.error_count, info.source_errors + info.target_errors);
    assert_int_equal(info.failed_bytes, 2 * CLUSTER);
}

/* A guest that writes there saves nothing, and waits for nothing. */
static void given_up_parts_do_not_bother_the_guest(void **state)
{
    (void)state;
    o.on_source_error = BLKREPL_ON_ERROR_IGNORE;
    part_fail(&disk, BLKREPL_OP_READ, 3 * CLUSTER, 512, -EILSEQ);
    copy.tape.decide = NULL;
    ASSERT_CODE(blkrepl_backup_create(disk.image, copy.image, &o, &job), 0);
    ASSERT_CODE(blkrepl_job_set_speed(job, CLUSTER), 0);
    ASSERT_CODE(blkrepl_job_start(job), 0);
    for (int i = 0; i < 8; i++) {
        env_advance(&env, SECOND);
    }
    assert_int_equal(job_info(job).failed_bytes, CLUSTER);
    ASSERT_STATE(job, BLKREPL_JOB_RUNNING);
    disk.tape.hold = BIT(BLKREPL_OP_READ);
    guest_writes(&env, &disk, 3 * CLUSTER, 512, 60);
    ASSERT_CODE(blkrepl_job_set_speed(job, 0), 0);
    parts_run(&env, both, 2);
    ASSERT_ENDED(job, BLKREPL_RESULT_FAILED, -EILSEQ);
}

/* ---- STOP --------------------------------------------------------------------------------- */

static void stop_pauses_and_resume_tries_again(void **state)
{
    (void)state;
    for (size_t i = 0; i < ARRAY_COUNT(sides); i++) {
        const struct side *s = &sides[i];

        env.event_count = 0;
        memset(copy.tape.data, 0, SIZE);
        policy(s, BLKREPL_ON_ERROR_STOP);
        part_fail(s->part, s->opcode, 7 * CLUSTER, 512, -EIO);
        start();
        ASSERT_STATE(job, BLKREPL_JOB_RUNNING);
        assert_true(error_paused());
        assert_false(job_has(job, BLKREPL_JOB_FLAG_PAUSED));
        tells(-EIO, s->side, 7);
        told_by_event(s, 7, -EIO);
        uint64_t errors = job_info(job).error_count;
        size_t requests = tape_submitted(&s->part->tape, 0);
        env_advance(&env, 1000 * SECOND);
        assert_int_equal(tape_submitted(&s->part->tape, 0), requests);
        resume(); /* it is still broken */
        assert_true(error_paused());
        assert_true(job_info(job).error_count > errors);
        part_mend(s->part);
        resume();
        done_and_right();
        counts(s, 2);
        tells(0, s->side, 7); /* kept though it ended well */
        assert_int_equal(job_info(job).failed_bytes, 0);
        drop();
    }
}

static void stop_with_several_workers_loses_nothing(void **state)
{
    (void)state;
    o.on_target_error = BLKREPL_ON_ERROR_STOP;
    o.on_source_error = BLKREPL_ON_ERROR_STOP;
    o.workers_max = 5;
    copy.tape.hold = BIT(BLKREPL_OP_WRITE);
    start();
    for (int round = 0; round < 20 && job_state(job) != BLKREPL_JOB_CONCLUDED; round++) {
        int n = 0;

        while (tape_pending(&copy.tape, 0) > 0) {
            ASSERT_CODE(tape_finish(&copy.tape, 0, n++ % 3 == 1 ? -EIO : 0), 0);
        }
        env_drain(&env);
        if (error_paused()) {
            resume();
        }
    }
    copy.tape.hold = 0;
    parts_run(&env, both, 2);
    if (error_paused()) {
        resume();
    }
    done_and_right();
    assert_true(job_info(job).target_errors >= 3);
}

static void enospc_stops_for_want_of_space_only(void **state)
{
    static const struct {
        int code;
        bool stops;
    } rows[] = {{-ENOSPC, true}, {-EDQUOT, true}, {-EIO, false}, {-EFBIG, false}};

    (void)state;
    o.on_target_error = BLKREPL_ON_ERROR_ENOSPC;
    for (size_t i = 0; i < ARRAY_COUNT(rows); i++) {
        memset(copy.tape.data, 0, SIZE);
        part_fail(&copy, BLKREPL_OP_WRITE, 5 * CLUSTER, 512, rows[i].code);
        start();
        if (rows[i].stops) {
            assert_true(error_paused());
            tells(rows[i].code, BLKREPL_SIDE_TARGET, 5);
            part_mend(&copy);
            resume();
            done_and_right();
        } else {
            ASSERT_ENDED(job, BLKREPL_RESULT_FAILED, rows[i].code);
        }
        drop();
    }
}

/* The policy of one side does not hold for the other. */
static void each_side_has_its_own_policy(void **state)
{
    (void)state;
    o.on_source_error = BLKREPL_ON_ERROR_STOP;
    part_fail(&disk, BLKREPL_OP_READ, 3 * CLUSTER, 512, -EIO);
    part_fail(&copy, BLKREPL_OP_WRITE, 9 * CLUSTER, 512, -ENOSPC);
    start();
    assert_true(error_paused());
    part_mend(&disk);
    resume();
    ASSERT_ENDED(job, BLKREPL_RESULT_FAILED, -ENOSPC); /* the one that ended it is told */
    tells(-ENOSPC, BLKREPL_SIDE_TARGET, 9);
    assert_true(job_info(job).source_errors >= 1);
}

static void an_error_paused_job_can_be_cancelled(void **state)
{
    (void)state;
    o.on_target_error = BLKREPL_ON_ERROR_STOP;
    part_fail(&copy, BLKREPL_OP_WRITE, 0, SIZE, -EIO);
    start();
    assert_true(error_paused());
    ASSERT_CODE(blkrepl_job_cancel(job, 0), 0);
    env_drain(&env);
    ASSERT_ENDED(job, BLKREPL_RESULT_CANCELLED, -ECANCELED);
}

/* ---- Guests --------------------------------------------------------------------------------- */

/* While an error pauses the job guests write everywhere, and their old data are kept. */
static void guests_go_on_while_an_error_pauses_the_job(void **state)
{
    (void)state;
    for (uint32_t side = 0; side < 2; side++) {
        const struct side *s = &sides[side];

        memset(copy.tape.data, 0, SIZE);
        part_note(&disk);
        policy(s, BLKREPL_ON_ERROR_STOP);
        part_fail(s->part, s->opcode, 2 * CLUSTER, 512, -EIO);
        start();
        assert_true(error_paused());
        for (uint64_t at = 3; at < CLUSTERS; at++) {
            guest_writes(&env, &disk, at * CLUSTER + 512, 512, 60 + side);
        }
        ASSERT_STATE(job, BLKREPL_JOB_RUNNING);
        part_mend(s->part);
        resume();
        done_and_right();
        drop();
    }
}

/* "With STOP what a guest has had saved stays in its buffer until the job is resumed." */
static void what_a_guest_has_had_saved_survives_an_error_of_the_target(void **state)
{
    (void)state;
    o.on_target_error = BLKREPL_ON_ERROR_STOP;
    ASSERT_CODE(blkrepl_backup_create(disk.image, copy.image, &o, &job), 0);
    ASSERT_CODE(blkrepl_job_pause(job), 0);
    ASSERT_CODE(blkrepl_job_start(job), 0);
    part_fail(&copy, BLKREPL_OP_WRITE, 0, SIZE, -ENOSPC);
    guest_writes(&env, &disk, 9 * CLUSTER, 4096, 61);
    guest_writes(&env, &disk, 4 * CLUSTER, 4096, 61);
    assert_int_equal(job_info(job).flags, BLKREPL_JOB_FLAG_PAUSED | BLKREPL_JOB_FLAG_ERROR_PAUSED);
    tells(-ENOSPC, BLKREPL_SIDE_TARGET, 9);
    guest_writes(&env, &disk, 9 * CLUSTER, CLUSTER, 62); /* saved once is saved */
    resume();
    assert_true(error_paused());
    part_mend(&copy);
    resume();
    done_and_right();
}

/* The policy for guests decides when a copy for a guest fails too early. */
static void a_copy_for_a_guest_is_a_matter_of_its_own_policy(void **state)
{
    (void)state;
    for (uint32_t cbw = BLKREPL_CBW_BACKUP_FAILS; cbw <= BLKREPL_CBW_GUEST_WRITE_FAILS; cbw++) {
        struct req req = {0};

        memset(copy.tape.data, 0, SIZE);
        part_note(&disk);
        o.on_cbw_error = cbw;
        o.on_source_error = BLKREPL_ON_ERROR_STOP;
        o.on_target_error = BLKREPL_ON_ERROR_IGNORE;
        ASSERT_CODE(blkrepl_backup_create(disk.image, copy.image, &o, &job), 0);
        ASSERT_CODE(blkrepl_job_pause(job), 0);
        ASSERT_CODE(blkrepl_job_start(job), 0);
        part_fail(&disk, BLKREPL_OP_READ, 6 * CLUSTER, 512, -EIO);
        guest_write(&req, &disk, 6 * CLUSTER, 512, 63);
        env_drain(&env);
        part_mend(&disk);
        if (cbw == BLKREPL_CBW_BACKUP_FAILS) {
            req_assert_done(&req, 0);
            ASSERT_ENDED(job, BLKREPL_RESULT_FAILED, -EIO);
            tells(-EIO, BLKREPL_SIDE_SOURCE, 6);
        } else {
            req_assert_done(&req, -EIO);
            assert_int_equal(job_info(job).flags, BLKREPL_JOB_FLAG_PAUSED);
            resume();
            done_and_right();
        }
        drop();
    }
}

/* ---- Flush -------------------------------------------------------------------- */

/* "what it has lost no other one brings back", whatever the policy. */
static void a_flush_that_fails_fails_the_job(void **state)
{
    static const uint32_t policies[] = {BLKREPL_ON_ERROR_REPORT, BLKREPL_ON_ERROR_IGNORE,
                                        BLKREPL_ON_ERROR_STOP, BLKREPL_ON_ERROR_ENOSPC};

    (void)state;
    for (size_t i = 0; i < ARRAY_COUNT(policies); i++) {
        int error = i == 3 ? -ENOSPC : -EIO;

        env.event_count = 0;
        o.on_target_error = policies[i];
        copy.tape.fail[BLKREPL_OP_FLUSH] = error;
        start();
        ASSERT_ENDED(job, BLKREPL_RESULT_FAILED, error);
        blkrepl_job_info info = job_info(job);
        assert_int_equal(info.error_side, BLKREPL_SIDE_TARGET);
        assert_int_equal(info.target_errors, 1);
        assert_true(info.bytes_done < info.bytes_total);
        assert_true(strlen(info.message) > 0);
        const blkrepl_event *e = env_event(&env, BLKREPL_EVENT_JOB_ERROR, id, 0);
        assert_non_null(e);
        assert_int_equal(e->side, BLKREPL_SIDE_TARGET);
        drop();
    }
}

static void unknown_policies_are_refused(void **state)
{
    (void)state;
    o.on_source_error = 5;
    ASSERT_CODE(blkrepl_backup_create(disk.image, copy.image, &o, &job), -EINVAL);
    o.on_source_error = 0;
    o.on_target_error = UINT32_MAX;
    ASSERT_CODE(blkrepl_backup_create(disk.image, copy.image, &o, &job), -EINVAL);
    assert_null(job);
}

int main(void)
{
#define T(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)
    const struct CMUnitTest tests[] = {
        T(report_fails_the_job),
        T(ignore_goes_on_and_fails_at_the_end),
        T(ignore_ends_though_everything_fails),
        T(the_first_error_is_kept),
        T(given_up_parts_do_not_bother_the_guest),
        T(stop_pauses_and_resume_tries_again),
        T(stop_with_several_workers_loses_nothing),
        T(enospc_stops_for_want_of_space_only),
        T(each_side_has_its_own_policy),
        T(an_error_paused_job_can_be_cancelled),
        T(guests_go_on_while_an_error_pauses_the_job),
        T(what_a_guest_has_had_saved_survives_an_error_of_the_target),
        T(a_copy_for_a_guest_is_a_matter_of_its_own_policy),
        T(a_flush_that_fails_fails_the_job),
        T(unknown_policies_are_refused),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
