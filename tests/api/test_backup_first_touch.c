/* SPDX-License-Identifier: MIT */
/* Copy-before-write: when a guest write waits for a backup, and for what. */
#include "tape.h"

#define CLUSTERS 64
#define SIZE (CLUSTERS * CLUSTER)
#define TIMEOUT (2 * SECOND)
#define WRITES (BIT(BLKREPL_OP_WRITE) | BIT(BLKREPL_OP_ZEROES))

static struct env env;
static struct tape disk, copy;
static blkrepl_image *source, *target;
static blkrepl_job *job;
static blkrepl_backup_options o;
static uint8_t *start;
static uint8_t data[CLUSTER];

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
                                 .workers_max = 1,
                                 .reserve_bytes = 4 * CLUSTER,
                                 .cbw_timeout_ns = TIMEOUT};
    fill(data, sizeof data, 0, 200);
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    tape_release(&disk, &env);
    tape_release(&copy, &env);
    tape_release(&disk, &env);
    blkrepl_job_free(job);
    blkrepl_image_close(source);
    blkrepl_image_close(target);
    env_close(&env);
    tape_close(&disk);
    tape_close(&copy);
    free(start);
    return 0;
}

/* Started and paused: only what the guest asks for is copied. */
static void start_paused(uint32_t policy)
{
    o.on_cbw_error = policy;
    ASSERT_CODE(blkrepl_backup_create(source, target, &o, &job), 0);
    ASSERT_CODE(blkrepl_job_pause(job), 0);
    ASSERT_CODE(blkrepl_job_start(job), 0);
    env_drain(&env);
    assert_int_equal(tape_submitted(&copy, 0), 0);
}

static void finish_and_compare(void)
{
    if (job_info(job).flags & BLKREPL_JOB_FLAG_PAUSED) {
        ASSERT_CODE(blkrepl_job_resume(job), 0);
    }
    for (int i = 0; i < 4; i++) {
        tape_release(&disk, &env);
        tape_release(&copy, &env);
    }
    blkrepl_job_info info = job_info(job);
    if (info.result != BLKREPL_RESULT_DONE) {
        fail_msg("the backup ended with %d: %s", info.error, info.message);
    }
    assert_same(copy.data, start, SIZE, "target");
}

static int write_cluster(struct req *req, unsigned cluster)
{
    return req_write(req, source, cluster * CLUSTER, data, 4096);
}

static bool given(unsigned cluster)
{
    return tape_saw(&disk, BLKREPL_OP_WRITE, cluster * CLUSTER, CLUSTER);
}

static void finish_read(unsigned cluster)
{
    int at = tape_find(&disk, BLKREPL_OP_READ, cluster * CLUSTER, CLUSTER);

    assert_true(at >= 0);
    ASSERT_CODE(tape_finish(&disk, at, 0), 0);
    env_drain(&env);
}

/* ---- What a first touch waits for ------------------------------------------------------- */

static void backup_fails_policy_waits_for_the_read_only(void **state)
{
    struct req req = {0};

    (void)state;
    start_paused(BLKREPL_CBW_BACKUP_FAILS);
    disk.hold = BIT(BLKREPL_OP_READ);
    copy.hold = OPS_ALL; /* the target hangs */
    ASSERT_CODE(write_cluster(&req, 40), 0);
    env_drain(&env);
    assert_false(given(40));
    finish_read(40);
    assert_true(given(40));
    req_assert_done(&req, 0);
    assert_memory_equal(disk.data + 40 * CLUSTER, data, 4096);
    finish_and_compare();
}

static void guest_write_fails_policy_waits_for_the_target(void **state)
{
    struct req req = {0};

    (void)state;
    start_paused(BLKREPL_CBW_GUEST_WRITE_FAILS);
    disk.hold = BIT(BLKREPL_OP_READ);
    copy.hold = OPS_ALL;
    ASSERT_CODE(write_cluster(&req, 40), 0);
    env_drain(&env);
    assert_false(given(40));
    finish_read(40);
    assert_false(given(40));
    int at = tape_find(&copy, BLKREPL_OP_WRITE, 40 * CLUSTER, CLUSTER);
    assert_true(at >= 0);
    tape_finish(&copy, at, 0);
    env_drain(&env);
    assert_true(given(40));
    req_assert_done(&req, 0);
    assert_memory_equal(copy.data + 40 * CLUSTER, start + 40 * CLUSTER, 4096);
    finish_and_compare();
}

static void a_bracket_waits_as_a_through_write_does(void **state)
{
    static const uint32_t policy[] = {BLKREPL_CBW_BACKUP_FAILS, BLKREPL_CBW_GUEST_WRITE_FAILS};

    (void)state;
    for (size_t i = 0; i < 2; i++) {
        struct bracket b = {0};
        uint64_t at = (10 + i) * CLUSTER;

        start_paused(policy[i]);
        disk.hold = BIT(BLKREPL_OP_READ);
        copy.hold = OPS_ALL;
        ASSERT_CODE(bracket_begin(&b, source, BLKREPL_OP_WRITE, at, 4096), BLKREPL_WAIT);
        env_drain(&env);
        assert_int_equal(b.go.calls, 0);
        finish_read((unsigned)(10 + i));
        assert_int_equal(b.go.calls, i == 0 ? 1 : 0);
        tape_finish_all(&copy, 0, 0);
        env_drain(&env);
        req_assert_done(&b.go, 0);
        tape_poke(&disk, at, data, 4096);
        ASSERT_CODE(blkrepl_write_end(env.ctx, b.token, 0, NULL, 0, NULL), 0);
        finish_and_compare();
        blkrepl_job_free(job);
        job = NULL;
        free(start);
        start = tape_copy(&disk);
        copy.log_count = 0;
    }
}

static void a_second_touch_does_not_wait(void **state)
{
    struct req first = {0}, second = {0}, third = {0};
    struct bracket b = {0};

    (void)state;
    start_paused(BLKREPL_CBW_GUEST_WRITE_FAILS);
    ASSERT_CODE(write_cluster(&first, 5), 0);
    env_drain(&env);
    req_assert_done(&first, 0);
    disk.hold = BIT(BLKREPL_OP_READ);
    copy.hold = OPS_ALL;
    size_t reads = tape_submitted(&disk, BLKREPL_OP_READ);
    ASSERT_CODE(write_cluster(&second, 5), 0);
    ASSERT_CODE(req_write(&third, source, 5 * CLUSTER + 40000, data, 100), 0);
    ASSERT_CODE(bracket_begin(&b, source, BLKREPL_OP_ZEROES, 5 * CLUSTER + 8192, 4096), 0);
    env_drain(&env);
    req_assert_done(&second, 0);
    req_assert_done(&third, 0);
    ASSERT_CODE(blkrepl_write_end(env.ctx, b.token, -EIO, NULL, 0, NULL), 0);
    assert_int_equal(tape_submitted(&disk, BLKREPL_OP_READ), reads);
    assert_int_equal(job_info(job).guest_copies_count, 1);
    finish_and_compare();
}

static void a_write_over_several_clusters_waits_for_all_of_them(void **state)
{
    static uint8_t wide[3 * CLUSTER];
    struct req req = {0};

    (void)state;
    start_paused(BLKREPL_CBW_BACKUP_FAILS);
    disk.hold = BIT(BLKREPL_OP_READ);
    ASSERT_CODE(req_write(&req, source, 20 * CLUSTER + 100, wide, 2 * CLUSTER), 0);
    for (int i = 0; i < 10 && tape_pending(&disk, BLKREPL_OP_READ) != 1; i++) {
        env_drain(&env);
        if (tape_pending(&disk, BLKREPL_OP_READ) > 1) {
            tape_finish(&disk, 0, 0);
        }
    }
    env_drain(&env);
    assert_false(given(20) || given(21) || given(22));
    for (int i = 0; i < 10 && REQ_PENDING(&req); i++) {
        tape_finish_all(&disk, 0, 0);
        env_drain(&env);
    }
    req_assert_done(&req, 0);
    finish_and_compare();
}

static void reads_never_wait_for_a_backup(void **state)
{
    struct req req = {0};
    uint8_t byte = 0;

    (void)state;
    start_paused(BLKREPL_CBW_GUEST_WRITE_FAILS);
    copy.hold = OPS_ALL;
    ASSERT_CODE(req_read(&req, source, 33 * CLUSTER, &byte, 1), 0);
    env_drain(&env);
    req_assert_done(&req, 0);
    assert_int_equal(tape_submitted(&copy, 0), 0);
    finish_and_compare();
}

static void a_discard_over_unsaved_clusters_does_not_wait(void **state)
{
    struct req req = {0};

    (void)state;
    start_paused(BLKREPL_CBW_GUEST_WRITE_FAILS);
    disk.hold = BIT(BLKREPL_OP_READ);
    copy.hold = OPS_ALL;
    ASSERT_CODE(req_discard(&req, source, 10 * CLUSTER, 4 * CLUSTER), 0);
    env_drain(&env);
    req_assert_done(&req, 0);
    assert_false(tape_saw(&disk, BLKREPL_OP_DISCARD, 0, SIZE));
    assert_int_equal(job_info(job).guest_waits_count, 0);
    finish_and_compare();
    ASSERT_CODE(req_discard(&req, source, 10 * CLUSTER, 4 * CLUSTER), 0);
    env_drain(&env);
    req_assert_done(&req, 0);
    assert_true(tape_saw(&disk, BLKREPL_OP_DISCARD, 10 * CLUSTER, 4 * CLUSTER));
}

/* Longer than the reserve: only pieces can get through. */
static void long_zeroes_pass_in_pieces(void **state)
{
    struct req req = {0};

    (void)state;
    start_paused(BLKREPL_CBW_BACKUP_FAILS);
    ASSERT_CODE(req_zeroes(&req, source, 1000, SIZE - 3000), 0);
    env_drain(&env);
    req_assert_done(&req, 0);
    assert_true(all_zero(disk.data + 1000, SIZE - 3000));
    finish_and_compare();
}

static void a_write_longer_than_the_reserve_gets_through(void **state)
{
    static uint8_t wide[16 * CLUSTER];
    static const uint32_t policy[] = {BLKREPL_CBW_BACKUP_FAILS, BLKREPL_CBW_GUEST_WRITE_FAILS};
    struct req req = {0};

    (void)state;
    for (size_t i = 0; i < 2; i++) {
        start_paused(policy[i]);
        fill(wide, sizeof wide, i, 77);
        ASSERT_CODE(req_write(&req, source, 8 * CLUSTER + 512, wide, sizeof wide), 0);
        env_drain(&env);
        req_assert_done(&req, 0);
        assert_memory_equal(disk.data + 8 * CLUSTER + 512, wide, sizeof wide);
        finish_and_compare();
        blkrepl_job_free(job);
        job = NULL;
        free(start);
        start = tape_copy(&disk);
        copy.log_count = 0;
    }
}

/* ---- A target that hangs ------------------------------------------------------------------ */

/* Touch cluster after cluster until one has to wait; its number. */
static unsigned use_up_the_reserve(struct req *req)
{
    unsigned n = 0;

    for (; n < CLUSTERS; n++) {
        ASSERT_CODE(write_cluster(&req[n], n), 0);
        env_drain(&env);
        if (REQ_PENDING(&req[n])) {
            break;
        }
        req_assert_done(&req[n], 0);
    }
    return n;
}

static void the_reserve_releases_the_guest_when_the_target_hangs(void **state)
{
    static struct req req[CLUSTERS];

    (void)state;
    start_paused(BLKREPL_CBW_BACKUP_FAILS);
    copy.hold = OPS_ALL;
    unsigned n = use_up_the_reserve(req);
    assert_true(n >= 4);     /* the reserve */
    assert_true(n <= 4 + 2); /* and at most what the one worker has */
    assert_false(given(n));
    env_advance(&env, TIMEOUT - 1);
    assert_int_equal(req[n].calls, 0);
    tape_finish(&copy, 0, 0); /* one buffer comes back */
    env_drain(&env);
    req_assert_done(&req[n], 0);
    finish_and_compare();
}

static void when_the_reserve_is_used_up_the_backup_fails_not_the_guest(void **state)
{
    static struct req req[CLUSTERS];
    struct req later = {0};

    (void)state;
    start_paused(BLKREPL_CBW_BACKUP_FAILS);
    copy.hold = OPS_ALL;
    unsigned n = use_up_the_reserve(req);
    env_advance(&env, TIMEOUT - 1);
    assert_int_equal(req[n].calls, 0);
    env_advance(&env, 1);
    req_assert_done(&req[n], 0);
    assert_memory_equal(disk.data + n * CLUSTER, data, 4096);
    ASSERT_CODE(write_cluster(&later, 63), 0);
    env_drain(&env);
    req_assert_done(&later, 0); /* nothing waits for it any more */
    uint64_t id = job_info(job).id;
    assert_int_equal(env_count(&env, BLKREPL_EVENT_JOB_DONE, id), 0);
    assert_true(tape_pending(&copy, 0) > 0);
    tape_finish_all(&copy, 0, -EIO);
    env_drain(&env);
    blkrepl_job_info info = job_info(job);
    assert_int_equal(info.result, BLKREPL_RESULT_FAILED);
    ASSERT_CODE(info.error, -ETIMEDOUT); /* the root cause, not what came later */
    assert_int_equal(env_count(&env, BLKREPL_EVENT_JOB_DONE, id), 1);
    ASSERT_CODE(env_event(&env, BLKREPL_EVENT_JOB_DONE, id, 0)->error, -ETIMEDOUT);
    assert_true(strlen(info.message) > 0);
}

/* A write longer than the reserve needs several copies, one after the other. */
static void the_timeout_counts_from_the_last_copy_that_ended(void **state)
{
    static uint8_t wide[16 * CLUSTER];
    struct req req = {0};
    int copies = 0;

    (void)state;
    start_paused(BLKREPL_CBW_GUEST_WRITE_FAILS);
    copy.hold = WRITES;
    ASSERT_CODE(req_write(&req, source, 8 * CLUSTER, wide, sizeof wide), 0);
    for (int i = 0; i < 100 && REQ_PENDING(&req); i++) {
        env_advance(&env, TIMEOUT - 1);
        assert_true(tape_pending(&copy, 0) > 0);
        tape_finish(&copy, 0, 0);
        copies++;
        env_drain(&env);
    }
    req_assert_done(&req, 0);
    assert_true(copies >= 3);
    finish_and_compare();
}

static void a_hung_target_fails_the_write_and_the_backup_goes_on(void **state)
{
    struct req req = {0};
    struct bracket b = {0};

    (void)state;
    start_paused(BLKREPL_CBW_GUEST_WRITE_FAILS);
    copy.hold = OPS_ALL;
    ASSERT_CODE(write_cluster(&req, 12), 0);
    ASSERT_CODE(bracket_begin(&b, source, BLKREPL_OP_WRITE, 14 * CLUSTER, 4096), BLKREPL_WAIT);
    env_advance(&env, TIMEOUT - 1);
    assert_int_equal(req.calls, 0);
    env_advance(&env, 1);
    req_assert_done(&req, -ETIMEDOUT);
    req_assert_done(&b.go, -ETIMEDOUT);
    ASSERT_CODE(blkrepl_write_end(env.ctx, b.token, 0, NULL, 0, NULL), -ENOENT);
    assert_false(given(12));
    assert_same(disk.data, start, SIZE, "source");
    assert_int_equal(job_info(job).state, BLKREPL_JOB_RUNNING);
    finish_and_compare();
}

static void a_timeout_of_forever_never_ends(void **state)
{
    struct req req = {0};

    (void)state;
    o.cbw_timeout_ns = BLKREPL_FOREVER;
    start_paused(BLKREPL_CBW_GUEST_WRITE_FAILS);
    copy.hold = OPS_ALL;
    ASSERT_CODE(write_cluster(&req, 12), 0);
    assert_true(env_deadline(&env) == BLKREPL_FOREVER);
    env_advance(&env, 1000000 * SECOND);
    assert_int_equal(req.calls, 0);
    finish_and_compare();
    req_assert_done(&req, 0);
}

static void the_default_timeout_is_30_seconds(void **state)
{
    struct req req = {0};

    (void)state;
    o.cbw_timeout_ns = 0;
    start_paused(BLKREPL_CBW_GUEST_WRITE_FAILS);
    copy.hold = OPS_ALL;
    ASSERT_CODE(write_cluster(&req, 12), 0);
    env_advance(&env, 30 * SECOND - 1);
    assert_int_equal(req.calls, 0);
    env_advance(&env, 1);
    req_assert_done(&req, -ETIMEDOUT);
    finish_and_compare();
}

/* A source whose reads hang: the copy cannot even be buffered. */
static void a_hung_source_read_is_ended_by_policy_too(void **state)
{
    struct req req = {0};

    (void)state;
    start_paused(BLKREPL_CBW_GUEST_WRITE_FAILS);
    disk.hold = BIT(BLKREPL_OP_READ);
    ASSERT_CODE(write_cluster(&req, 12), 0);
    env_advance(&env, TIMEOUT);
    req_assert_done(&req, -ETIMEDOUT);
    assert_false(given(12));
    finish_and_compare();
}

/* ---- The instant of the start ---------------------------------------------------------------- */

static void a_write_in_flight_at_the_start_is_in_when_it_succeeds(void **state)
{
    struct req req = {0};

    (void)state;
    disk.hold = BIT(BLKREPL_OP_WRITE);
    ASSERT_CODE(write_cluster(&req, 3), 0);
    env_drain(&env);
    assert_true(given(3));
    ASSERT_CODE(blkrepl_backup_start(source, target, &o, &job), 0);
    env_drain(&env);
    assert_false(tape_saw(&disk, BLKREPL_OP_READ, 3 * CLUSTER, 4096)); /* not before it ended */
    assert_int_equal(job_info(job).state, BLKREPL_JOB_RUNNING);
    memcpy(start + 3 * CLUSTER, data, 4096);
    tape_finish_all(&disk, BLKREPL_OP_WRITE, 0);
    env_drain(&env);
    req_assert_done(&req, 0);
    finish_and_compare();
}

static void a_write_in_flight_at_the_start_may_be_in_when_it_fails(void **state)
{
    (void)state;
    for (int land = 0; land < 2; land++) {
        struct req req = {0};
        uint64_t at = (3 + (uint64_t)land) * CLUSTER + 512;

        disk.hold = BIT(BLKREPL_OP_WRITE);
        ASSERT_CODE(req_write(&req, source, at, data, 4096), 0);
        env_drain(&env);
        ASSERT_CODE(blkrepl_backup_start(source, target, &o, &job), 0);
        env_drain(&env);
        tape_finish_as(&disk, tape_find(&disk, BLKREPL_OP_WRITE, at, 1), -EIO, land);
        env_drain(&env);
        req_assert_done(&req, -EIO);
        disk.hold = 0;
        env_drain(&env);
        assert_int_equal(job_info(job).result, BLKREPL_RESULT_DONE);
        for (uint64_t i = 0; i < SIZE; i++) {
            bool inside = i >= at && i < at + 4096;

            if (copy.data[i] != start[i] && !(inside && copy.data[i] == data[i - at])) {
                fail_msg("at %llu neither old nor new", (unsigned long long)i);
            }
        }
        blkrepl_job_free(job);
        job = NULL;
        free(start);
        start = tape_copy(&disk);
    }
}

static void a_bracket_open_at_the_start_is_in_when_it_succeeds(void **state)
{
    struct bracket b = {0};

    (void)state;
    ASSERT_CODE(bracket_begin(&b, source, BLKREPL_OP_WRITE, 3 * CLUSTER, 4096), 0);
    ASSERT_CODE(blkrepl_backup_start(source, target, &o, &job), 0);
    env_drain(&env);
    assert_false(tape_saw(&disk, BLKREPL_OP_READ, 3 * CLUSTER, 4096));
    tape_poke(&disk, 3 * CLUSTER, data, 4096);
    memcpy(start + 3 * CLUSTER, data, 4096);
    ASSERT_CODE(blkrepl_write_end(env.ctx, b.token, 0, NULL, 0, NULL), 0);
    finish_and_compare();
}

/* Accepted before the start, but still behind another: not in flight, so after. */
static void a_write_that_was_only_queued_at_the_start_is_not_in(void **state)
{
    static uint8_t later[4096];
    struct req first = {0}, second = {0};

    (void)state;
    memset(later, 0xbb, sizeof later);
    disk.hold = BIT(BLKREPL_OP_WRITE);
    ASSERT_CODE(write_cluster(&first, 3), 0);
    ASSERT_CODE(req_write(&second, source, 3 * CLUSTER, later, sizeof later), 0);
    env_drain(&env);
    assert_int_equal(tape_pending(&disk, BLKREPL_OP_WRITE), 1);
    ASSERT_CODE(blkrepl_backup_start(source, target, &o, &job), 0);
    memcpy(start + 3 * CLUSTER, data, 4096);
    for (int i = 0; i < 20 && REQ_PENDING(&second); i++) {
        env_drain(&env);
        tape_finish_all(&disk, 0, 0);
        env_drain(&env);
    }
    req_assert_done(&first, 0);
    req_assert_done(&second, 0);
    assert_memory_equal(disk.data + 3 * CLUSTER, later, sizeof later);
    finish_and_compare();
}

static void a_write_after_the_start_in_the_same_call_chain_is_not_in(void **state)
{
    struct req req = {0};

    (void)state;
    ASSERT_CODE(blkrepl_backup_start(source, target, &o, &job), 0);
    ASSERT_CODE(write_cluster(&req, 0), 0); /* before any poll */
    finish_and_compare();
    req_assert_done(&req, 0);
}

/* CREATED is not started: writes until the start are before the point in time. */
static void writes_between_create_and_start_are_in(void **state)
{
    (void)state;
    ASSERT_CODE(blkrepl_backup_create(source, target, &o, &job), 0);
    ASSERT_CODE(write_now(&env, source, 7 * CLUSTER, data, 4096), 0);
    memcpy(start + 7 * CLUSTER, data, 4096);
    ASSERT_CODE(blkrepl_job_start(job), 0);
    finish_and_compare();
}

int main(void)
{
#define T(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)
    const struct CMUnitTest tests[] = {
        T(backup_fails_policy_waits_for_the_read_only),
        T(guest_write_fails_policy_waits_for_the_target),
        T(a_bracket_waits_as_a_through_write_does),
        T(a_second_touch_does_not_wait),
        T(a_write_over_several_clusters_waits_for_all_of_them),
        T(reads_never_wait_for_a_backup),
        T(a_discard_over_unsaved_clusters_does_not_wait),
        T(long_zeroes_pass_in_pieces),
        T(a_write_longer_than_the_reserve_gets_through),
        T(the_reserve_releases_the_guest_when_the_target_hangs),
        T(when_the_reserve_is_used_up_the_backup_fails_not_the_guest),
        T(the_timeout_counts_from_the_last_copy_that_ended),
        T(a_hung_target_fails_the_write_and_the_backup_goes_on),
        T(a_timeout_of_forever_never_ends),
        T(the_default_timeout_is_30_seconds),
        T(a_hung_source_read_is_ended_by_policy_too),
        T(a_write_in_flight_at_the_start_is_in_when_it_succeeds),
        T(a_write_in_flight_at_the_start_may_be_in_when_it_fails),
        T(a_bracket_open_at_the_start_is_in_when_it_succeeds),
        T(a_write_that_was_only_queued_at_the_start_is_not_in),
        T(a_write_after_the_start_in_the_same_call_chain_is_not_in),
        T(writes_between_create_and_start_are_in),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
