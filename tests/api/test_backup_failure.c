/* SPDX-License-Identifier: MIT */
/* A backup that cannot keep its promise fails, says why, and spares the guest. */
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

static void start_paused(uint32_t policy)
{
    o.on_cbw_error = policy;
    ASSERT_CODE(blkrepl_backup_create(source, target, &o, &job), 0);
    ASSERT_CODE(blkrepl_job_pause(job), 0);
    ASSERT_CODE(blkrepl_job_start(job), 0);
    env_drain(&env);
}

static void fail_range(struct tape *t, uint32_t opcode, unsigned cluster, int code)
{
    t->fail_opcode = opcode;
    t->fail_offset = cluster * CLUSTER;
    t->fail_bytes = CLUSTER;
    t->fail_result = code;
}

static void assert_failed(int error, uint32_t side, unsigned cluster)
{
    blkrepl_job_info info = job_info(job);
    uint64_t at = cluster * CLUSTER;

    assert_int_equal(info.state, BLKREPL_JOB_CONCLUDED);
    assert_int_equal(info.result, BLKREPL_RESULT_FAILED);
    ASSERT_CODE(info.error, error);
    assert_int_equal(info.error_side, side);
    assert_true(info.error_offset < at + CLUSTER && info.error_offset + info.error_bytes > at);
    assert_non_null(strstr(info.message, info.name));
    assert_true(info.bytes_done < info.bytes_total);
    assert_int_equal(info.requests_in_flight, 0);
}

/* ---- A copy that a guest waits for ---------------------------------------------------------- */

static void a_target_error_fails_the_backup_and_not_the_guest(void **state)
{
    struct req req = {0};

    (void)state;
    start_paused(BLKREPL_CBW_BACKUP_FAILS);
    fail_range(&copy, BLKREPL_OP_WRITE, 7, -ENOSPC);
    ASSERT_CODE(req_write(&req, source, 7 * CLUSTER, data, sizeof data), 0);
    env_drain(&env);
    req_assert_done(&req, 0);
    assert_memory_equal(disk.data + 7 * CLUSTER, data, sizeof data);
    assert_failed(-ENOSPC, BLKREPL_SIDE_TARGET, 7);
}

static void a_source_error_fails_the_backup_and_not_the_guest(void **state)
{
    struct req req = {0};
    struct bracket b = {0};

    (void)state;
    start_paused(BLKREPL_CBW_BACKUP_FAILS);
    fail_range(&disk, BLKREPL_OP_READ, 7, -EIO);
    ASSERT_CODE(req_write(&req, source, 7 * CLUSTER, data, sizeof data), 0);
    env_drain(&env);
    req_assert_done(&req, 0);
    assert_memory_equal(disk.data + 7 * CLUSTER, data, sizeof data);
    assert_failed(-EIO, BLKREPL_SIDE_SOURCE, 7);
    ASSERT_CODE(bracket_begin(&b, source, BLKREPL_OP_WRITE, 9 * CLUSTER, 512), 0);
    ASSERT_CODE(blkrepl_write_end(env.ctx, b.token, 0, NULL, 0, NULL), 0);
}

/* The write fails, nothing is written, the backup goes on and a retry succeeds. */
static void guest_write_fails(struct tape *t, uint32_t opcode, int code)
{
    struct req req = {0};
    struct bracket b = {0};

    start_paused(BLKREPL_CBW_GUEST_WRITE_FAILS);
    fail_range(t, opcode, 7, code);
    ASSERT_CODE(req_write(&req, source, 7 * CLUSTER, data, sizeof data), 0);
    env_drain(&env);
    req_assert_done(&req, code);
    assert_same(disk.data, start, SIZE, "source");
    assert_int_equal(job_info(job).state, BLKREPL_JOB_RUNNING);
    int rc = bracket_begin(&b, source, BLKREPL_OP_WRITE, 7 * CLUSTER + 4096, 512);
    env_drain(&env);
    if (rc == BLKREPL_WAIT) {
        req_assert_done(&b.go, code);
    } else {
        ASSERT_CODE(rc, code);
        assert_int_equal(b.token, 0);
        req_assert_rejected(&b.go);
    }
    t->fail_opcode = 0;
    ASSERT_CODE(req_write(&req, source, 7 * CLUSTER, data, sizeof data), 0);
    env_drain(&env);
    req_assert_done(&req, 0);
    assert_memory_equal(disk.data + 7 * CLUSTER, data, sizeof data);
    ASSERT_CODE(blkrepl_job_resume(job), 0);
    env_drain(&env);
    assert_int_equal(job_info(job).result, BLKREPL_RESULT_DONE);
    assert_same(copy.data, start, SIZE, "target");
}

static void a_target_error_fails_the_guest_write_when_so_told(void **state)
{
    (void)state;
    guest_write_fails(&copy, BLKREPL_OP_WRITE, -ENOSPC);
}

static void a_source_error_fails_the_guest_write_when_so_told(void **state)
{
    (void)state;
    guest_write_fails(&disk, BLKREPL_OP_READ, -EIO);
}

/* The buffer released the guest; the target's failure comes later. */
static void a_late_target_error_fails_the_backup(void **state)
{
    struct req req = {0};

    (void)state;
    start_paused(BLKREPL_CBW_BACKUP_FAILS);
    copy.hold = OPS_ALL;
    ASSERT_CODE(req_write(&req, source, 7 * CLUSTER, data, sizeof data), 0);
    env_drain(&env);
    req_assert_done(&req, 0);
    assert_int_equal(job_info(job).state, BLKREPL_JOB_RUNNING);
    tape_finish_all(&copy, 0, -EPIPE);
    env_drain(&env);
    assert_failed(-EPIPE, BLKREPL_SIDE_TARGET, 7);
}

/* ---- Background copies ------------------------------------------------------------ */

static void a_background_error_fails_the_backup_under_both_policies(void **state)
{
    static const uint32_t policy[] = {BLKREPL_CBW_BACKUP_FAILS, BLKREPL_CBW_GUEST_WRITE_FAILS};

    (void)state;
    for (size_t i = 0; i < 2; i++) {
        o.on_cbw_error = policy[i];
        fail_range(&copy, BLKREPL_OP_WRITE, 20, -EIO);
        ASSERT_CODE(blkrepl_backup_start(source, target, &o, &job), 0);
        env_drain(&env);
        assert_failed(-EIO, BLKREPL_SIDE_TARGET, 20);
        blkrepl_job_free(job);
        job = NULL;
        copy.fail_opcode = 0;
        fail_range(&disk, BLKREPL_OP_READ, 21, -EILSEQ);
        ASSERT_CODE(blkrepl_backup_start(source, target, &o, &job), 0);
        env_drain(&env);
        assert_failed(-EILSEQ, BLKREPL_SIDE_SOURCE, 21);
        blkrepl_job_free(job);
        job = NULL;
        disk.fail_opcode = 0;
    }
}

/* The first error is what is told, however many follow. */
static void the_first_error_is_the_one_that_is_told(void **state)
{
    (void)state;
    o.workers_max = 8;
    copy.hold = BIT(BLKREPL_OP_WRITE);
    ASSERT_CODE(blkrepl_backup_start(source, target, &o, &job), 0);
    env_drain(&env);
    size_t pending = tape_pending(&copy, 0);
    assert_true(pending >= 2);
    uint64_t at = copy.queue[pending - 1]->offset;
    tape_finish(&copy, (int)pending - 1, -ENOSPC);
    env_drain(&env);
    assert_int_equal(job_info(job).state, BLKREPL_JOB_RUNNING); /* others are in flight */
    tape_finish_all(&copy, 0, -EIO);
    env_drain(&env);
    assert_failed(-ENOSPC, BLKREPL_SIDE_TARGET, (unsigned)(at / CLUSTER));
    assert_true(job_info(job).error_count >= 2);
}

static void a_failing_job_holds_its_images_until_all_has_returned(void **state)
{
    struct req req = {0};

    (void)state;
    o.workers_max = 8;
    copy.hold = BIT(BLKREPL_OP_WRITE);
    ASSERT_CODE(blkrepl_backup_start(source, target, &o, &job), 0);
    env_drain(&env);
    tape_finish(&copy, 0, -EIO);
    env_drain(&env);
    assert_true(tape_pending(&copy, 0) > 0);
    ASSERT_CODE(req_write(&req, target, 0, data, 512), -EBUSY);
    ASSERT_CODE(req_write(&req, source, 31 * CLUSTER, data, 512), 0);
    env_drain(&env);
    req_assert_done(&req, 0); /* the guest is free already */
    tape_release(&copy, &env);
    assert_int_equal(job_info(job).result, BLKREPL_RESULT_FAILED);
    ASSERT_CODE(write_now(&env, target, 0, data, 512), 0);
}

/* ---- Flush -------------------------------------------------------------------------- */

static void the_target_is_flushed_before_it_is_done(void **state)
{
    (void)state;
    copy.hold = BIT(BLKREPL_OP_FLUSH);
    ASSERT_CODE(blkrepl_backup_start(source, target, &o, &job), 0);
    env_drain(&env);
    assert_int_equal(job_info(job).state, BLKREPL_JOB_RUNNING);
    assert_int_equal(tape_pending(&copy, BLKREPL_OP_FLUSH), 1);
    for (size_t i = 0; i < copy.log_count; i++) { /* after every write */
        assert_true(copy.log[i].opcode == BLKREPL_OP_FLUSH || copy.log[i].done);
    }
    assert_int_equal(copy.log[copy.log_count - 1].opcode, BLKREPL_OP_FLUSH);
    tape_finish_all(&copy, 0, 0);
    env_drain(&env);
    assert_int_equal(job_info(job).result, BLKREPL_RESULT_DONE);
    assert_int_equal(tape_submitted(&copy, BLKREPL_OP_FLUSH), 1);
}

static void a_failed_flush_fails_the_backup(void **state)
{
    (void)state;
    copy.fail[BLKREPL_OP_FLUSH] = -EIO;
    ASSERT_CODE(blkrepl_backup_start(source, target, &o, &job), 0);
    env_drain(&env);
    blkrepl_job_info info = job_info(job);
    assert_int_equal(info.result, BLKREPL_RESULT_FAILED);
    ASSERT_CODE(info.error, -EIO);
    assert_int_equal(info.error_side, BLKREPL_SIDE_TARGET);
    assert_true(strlen(info.message) > 0);
    assert_true(info.bytes_done < info.bytes_total);
}

static void a_target_without_flush_is_done_without(void **state)
{
    static struct tape plain;

    (void)state;
    tape_init(&plain, SIZE);
    plain.info.opcodes = OPS_RW;
    blkrepl_image *other = tape_open(&plain, &env);
    ASSERT_CODE(blkrepl_backup_start(source, other, &o, &job), 0);
    env_drain(&env);
    assert_int_equal(job_info(job).result, BLKREPL_RESULT_DONE);
    assert_same(plain.data, start, SIZE, "target");
    blkrepl_image_close(other);
    env_drain(&env);
    tape_close(&plain);
}

int main(void)
{
#define T(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)
    const struct CMUnitTest tests[] = {
        T(a_target_error_fails_the_backup_and_not_the_guest),
        T(a_source_error_fails_the_backup_and_not_the_guest),
        T(a_target_error_fails_the_guest_write_when_so_told),
        T(a_source_error_fails_the_guest_write_when_so_told),
        T(a_late_target_error_fails_the_backup),
        T(a_background_error_fails_the_backup_under_both_policies),
        T(the_first_error_is_the_one_that_is_told),
        T(a_failing_job_holds_its_images_until_all_has_returned),
        T(the_target_is_flushed_before_it_is_done),
        T(a_failed_flush_fails_the_backup),
        T(a_target_without_flush_is_done_without),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
