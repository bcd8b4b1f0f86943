/* SPDX-License-Identifier: MIT */
/* A throttle's life: limits that change, throttles that are taken away, jobs that
 * share one with guests, bad arguments, and a context that closes. */
#include "stage.h"

#define SIZE (32 * CLUSTER)
#define RATE (4 * CLUSTER) /* per second */

static struct env env;
static struct part disk, copy;
static struct part *const both[] = {&disk, &copy};
static blkrepl_throttle *throttle;
static blkrepl_job *job;
static uint8_t memory[SIZE];
static struct req reqs[16];

static int set_up(void **state)
{
    (void)state;
    env_open(&env, NULL, 0);
    part_open(&disk, &env, SIZE, 1);
    part_open(&copy, &env, SIZE, 0);
    throttle = NULL;
    job = NULL;
    memset(reqs, 0, sizeof reqs);
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    parts_run(&env, both, 2);
    blkrepl_job_free(job);
    blkrepl_throttle_free(throttle);
    parts_close(&env, both, 2);
    return 0;
}

static blkrepl_throttle_options limits(uint64_t bytes)
{
    return (blkrepl_throttle_options){.struct_size = sizeof(blkrepl_throttle_options),
                                      .bytes_per_sec = bytes};
}

static void make(uint64_t bytes)
{
    blkrepl_throttle_options o = limits(bytes);

    ASSERT_CODE(blkrepl_throttle_create(env.ctx, &o, &throttle), 0);
}

static void set(uint64_t bytes)
{
    blkrepl_throttle_options o = limits(bytes);

    ASSERT_CODE(blkrepl_throttle_set(throttle, &o), 0);
}

static blkrepl_throttle_info throttle_info(void)
{
    blkrepl_throttle_info info = {.struct_size = sizeof info};

    ASSERT_CODE(blkrepl_throttle_query(throttle, &info), 0);
    return info;
}

/* The image has the throttle, and of these writes all but the first wait. */
static void writes_that_wait(size_t count)
{
    ASSERT_CODE(blkrepl_image_set_throttle(disk.image, throttle), 0);
    for (size_t i = 0; i < count; i++) {
        ASSERT_CODE(req_write(&reqs[i], disk.image, i * CLUSTER, memory, CLUSTER), 0);
    }
    env_drain(&env);
    req_assert_done(&reqs[0], 0);
    for (size_t i = 1; i < count; i++) {
        assert_true(REQ_PENDING(&reqs[i]));
    }
    assert_int_equal(throttle_info().waiting, count - 1);
}

static void all_done(size_t count)
{
    for (size_t i = 0; i < count; i++) {
        req_assert_done(&reqs[i], 0);
    }
}

/* ---- Changes ---------------------------------------------------------------------------- */

static void a_raised_limit_acts_at_once(void **state)
{
    (void)state;
    make(1000);
    writes_that_wait(5);
    set(1000 * MIB);
    env_advance(&env, SECOND / 1000); /* and not the minutes that were owed */
    all_done(5);
    assert_int_equal(throttle_info().bytes_per_sec, 1000 * MIB);
}

static void without_limits_everything_passes(void **state)
{
    (void)state;
    make(1000);
    writes_that_wait(5);
    set(0);
    env_drain(&env);
    all_done(5);
    assert_int_equal(throttle_info().ops, 5);
}

static void a_lowered_limit_holds_from_now_on(void **state)
{
    struct req first = {0}, second = {0};

    (void)state;
    make(0);
    ASSERT_CODE(blkrepl_image_set_throttle(disk.image, throttle), 0);
    for (int i = 0; i < 10; i++) {
        ASSERT_CODE(write_now(&env, disk.image, 0, memory, CLUSTER), 0);
    }
    set(CLUSTER);
    ASSERT_CODE(req_write(&first, disk.image, 0, memory, CLUSTER), 0);
    ASSERT_CODE(req_write(&second, disk.image, CLUSTER, memory, CLUSTER), 0);
    env_drain(&env);
    req_assert_done(&first, 0);
    assert_true(REQ_PENDING(&second));
    env_advance(&env, 2 * SECOND);
    req_assert_done(&second, 0);
}

/* ---- Taking it away ---------------------------------------------------------------------- */

static void what_waits_passes_when_the_throttle_is_taken_away(void **state)
{
    (void)state;
    make(1000);
    writes_that_wait(5);
    ASSERT_CODE(blkrepl_image_set_throttle(disk.image, NULL), 0);
    env_drain(&env);
    all_done(5);
    assert_int_equal(throttle_info().waiting, 0);
    uint64_t ops = throttle_info().ops;
    ASSERT_CODE(write_now(&env, disk.image, 0, memory, CLUSTER), 0);
    assert_int_equal(throttle_info().ops, ops);
    ASSERT_CODE(blkrepl_image_set_throttle(disk.image, NULL), 0);
}

/* "Requests that wait for another one pass at once." */
static void what_waits_passes_when_another_throttle_comes(void **state)
{
    blkrepl_throttle_options o = limits(1000);
    blkrepl_throttle *second = NULL;

    (void)state;
    make(1000);
    writes_that_wait(5);
    ASSERT_CODE(blkrepl_throttle_create(env.ctx, &o, &second), 0);
    ASSERT_CODE(blkrepl_image_set_throttle(disk.image, second), 0);
    env_drain(&env);
    all_done(5);
    blkrepl_throttle_free(second);
}

static void a_freed_throttle_goes_on_for_those_who_use_it(void **state)
{
    (void)state;
    make(CLUSTER);
    writes_that_wait(3);
    blkrepl_throttle_free(throttle);
    throttle = NULL;
    env_advance(&env, SECOND / 2);
    assert_true(REQ_PENDING(&reqs[1]));
    env_advance(&env, SECOND);
    req_assert_done(&reqs[1], 0);
    assert_true(REQ_PENDING(&reqs[2]));
    env_advance(&env, 2 * SECOND);
    all_done(3);
}

static void an_image_may_be_closed_while_its_writes_wait(void **state)
{
    (void)state;
    make(CLUSTER);
    writes_that_wait(3);
    part_close(&disk);
    env_drain(&env);
    assert_int_equal(disk.tape.closes, 0);
    for (int i = 0; i < 5; i++) {
        env_advance(&env, SECOND);
    }
    all_done(3);
    assert_int_equal(disk.tape.closes, 1);
}

/* ---- Jobs ----------------------------------------------------------------------------------- */

static void start_backup(uint64_t workers)
{
    blkrepl_backup_options o = {.struct_size = sizeof o,
                                .cluster_bytes = CLUSTER,
                                .chunk_bytes_max = CLUSTER,
                                .workers_max = (uint32_t)workers,
                                .throttle = throttle};

    ASSERT_CODE(blkrepl_backup_start(disk.image, copy.image, &o, &job), 0);
    env_drain(&env);
}

static void a_backup_keeps_to_the_throttle(void **state)
{
    (void)state;
    for (uint64_t workers = 1; workers <= 8; workers *= 8) {
        memset(copy.tape.data, 0, SIZE);
        make(RATE);
        start_backup(workers);
        for (uint64_t s = 0; s <= 7; s++) {
            uint64_t done = job_info(job).bytes_done;

            assert_true(done >= s * RATE && done <= (s + 1) * RATE);
            assert_int_equal(throttle_info().bytes, done);
            assert_int_equal(throttle_info().ops, done / CLUSTER);
            for (int i = 0; i < 10; i++) {
                env_advance(&env, SECOND / 10);
            }
        }
        env_advance(&env, SECOND);
        ASSERT_ENDED(job, BLKREPL_RESULT_DONE, 0);
        assert_same(copy.tape.data, disk.start, SIZE, "target");
        blkrepl_job_free(job);
        job = NULL;
        blkrepl_throttle_free(throttle);
        throttle = NULL;
        env_drain(&env);
    }
}

/* What a guest waits for is counted, and never delayed. */
static void copies_for_guests_are_counted_and_not_delayed(void **state)
{
    (void)state;
    make(CLUSTER);
    start_backup(1);
    uint64_t before = throttle_info().bytes;
    for (size_t i = 0; i < ARRAY_COUNT(reqs); i++) {
        ASSERT_CODE(req_write(&reqs[i], disk.image, (16 + i) * CLUSTER, memory, 512), 0);
    }
    env_drain(&env);
    all_done(ARRAY_COUNT(reqs));
    assert_int_equal(throttle_info().bytes, before + 16 * CLUSTER);
    uint64_t done = job_info(job).bytes_done;
    env_advance(&env, 10 * SECOND); /* they are owed for */
    assert_int_equal(job_info(job).bytes_done, done);
    blkrepl_throttle_options o = limits(0);
    ASSERT_CODE(blkrepl_throttle_set(throttle, &o), 0);
    env_drain(&env);
    ASSERT_ENDED(job, BLKREPL_RESULT_DONE, 0);
    assert_same(copy.tape.data, disk.start, SIZE, "target");
}

/* Guest and job in one row: neither starves. */
static void a_job_and_a_guest_share_one_throttle(void **state)
{
    size_t done = 0;

    (void)state;
    make(RATE);
    ASSERT_CODE(blkrepl_image_set_throttle(disk.image, throttle), 0);
    start_backup(1);
    for (size_t i = 0; i < ARRAY_COUNT(reqs); i++) {
        ASSERT_CODE(req_read(&reqs[i], disk.image, i * CLUSTER, memory + i * CLUSTER, CLUSTER), 0);
    }
    for (int i = 0; i < 40; i++) {
        env_advance(&env, SECOND / 10);
    }
    for (size_t i = 0; i < ARRAY_COUNT(reqs); i++) {
        done += !REQ_PENDING(&reqs[i]);
    }
    assert_true(done > 0);
    assert_true(job_info(job).bytes_done > 0);
    assert_true(throttle_info().bytes >= 4 * RATE && throttle_info().bytes <= 5 * RATE);
    for (int i = 0; i < 100; i++) {
        env_advance(&env, SECOND / 10);
    }
    all_done(ARRAY_COUNT(reqs));
    ASSERT_ENDED(job, BLKREPL_RESULT_DONE, 0);
    assert_int_equal(throttle_info().bytes, SIZE + 16 * CLUSTER);
}

static void a_job_that_waits_can_be_paused_and_cancelled(void **state)
{
    (void)state;
    make(1000);
    start_backup(4);
    assert_true(throttle_info().waiting > 0);
    ASSERT_CODE(blkrepl_job_pause(job), 0);
    ASSERT_CODE(blkrepl_job_resume(job), 0);
    env_drain(&env);
    ASSERT_CODE(blkrepl_job_cancel(job, 0), 0);
    env_drain(&env);
    ASSERT_ENDED(job, BLKREPL_RESULT_CANCELLED, -ECANCELED);
    assert_int_equal(throttle_info().waiting, 0);
}

/* ---- Bad arguments ------------------------------------------------------------ */

static void bad_options_are_refused(void **state)
{
    blkrepl_throttle_options o = limits(RATE);
    blkrepl_throttle *out = (blkrepl_throttle *)&env;
    blkrepl_throttle_info info = {.struct_size = sizeof info};

    (void)state;
    o.flags = 1;
    ASSERT_CODE(blkrepl_throttle_create(env.ctx, &o, &out), -EINVAL);
    assert_null(out);
    make(RATE);
    uint64_t id = throttle_info().id;
    assert_true(id != 0);
    ASSERT_CODE(blkrepl_throttle_set(throttle, &o), -EINVAL);
    o.flags = 0;
    o.struct_size = 4;
    ASSERT_CODE(blkrepl_throttle_set(throttle, &o), -EINVAL);
    out = (blkrepl_throttle *)&env;
    ASSERT_CODE(blkrepl_throttle_create(env.ctx, &o, &out), -EINVAL);
    assert_null(out);
    o = limits(RATE);
    ASSERT_CODE(blkrepl_throttle_create(NULL, &o, &out), -EINVAL);
    ASSERT_CODE(blkrepl_throttle_create(env.ctx, &o, NULL), -EINVAL);
    ASSERT_CODE(blkrepl_throttle_set(NULL, &o), -EINVAL);
    ASSERT_CODE(blkrepl_throttle_query(NULL, &info), -EINVAL);
    ASSERT_CODE(blkrepl_throttle_query(throttle, NULL), -EINVAL);
    info.struct_size = 8;
    ASSERT_CODE(blkrepl_throttle_query(throttle, &info), -EINVAL);
    ASSERT_CODE(blkrepl_image_set_throttle(NULL, throttle), -EINVAL);
    blkrepl_throttle_free(NULL);
    assert_int_equal(throttle_info().bytes_per_sec, RATE);
}

static void newer_options_are_refused_if_they_are_used(void **state)
{
    struct {
        blkrepl_throttle_options known;
        uint64_t unknown;
    } newer = {.known = limits(RATE)};
    blkrepl_throttle *out = NULL;

    (void)state;
    newer.known.struct_size = sizeof newer;
    ASSERT_CODE(blkrepl_throttle_create(env.ctx, &newer.known, &throttle), 0);
    newer.unknown = 1;
    ASSERT_CODE(blkrepl_throttle_create(env.ctx, &newer.known, &out), BLKREPL_ERR_VERSION);
    assert_null(out);
    ASSERT_CODE(blkrepl_throttle_set(throttle, &newer.known), BLKREPL_ERR_VERSION);
}

static void a_throttle_of_another_context_is_refused(void **state)
{
    blkrepl_backup_options o = {.struct_size = sizeof o};
    blkrepl_throttle_options l = limits(RATE);
    blkrepl_context *ctx = NULL;

    (void)state;
    ASSERT_CODE(blkrepl_context_create(NULL, &ctx), 0);
    ASSERT_CODE(blkrepl_throttle_create(ctx, &l, &o.throttle), 0);
    ASSERT_CODE(blkrepl_image_set_throttle(disk.image, o.throttle), -EINVAL);
    ASSERT_CODE(blkrepl_backup_create(disk.image, copy.image, &o, &job), -EINVAL);
    assert_null(job);
    blkrepl_throttle_free(o.throttle);
    ASSERT_CODE(blkrepl_context_free(ctx), 0);
}

/* "those that waited for a job or a throttle are released" */
static void a_context_that_closes_releases_what_waits(void **state)
{
    static struct env mine;
    static struct part part;
    blkrepl_throttle_options o = limits(1);
    blkrepl_throttle *slow = NULL;

    (void)state;
    env_open(&mine, NULL, 0);
    part_open(&part, &mine, SIZE, 1);
    ASSERT_CODE(blkrepl_throttle_create(mine.ctx, &o, &slow), 0);
    ASSERT_CODE(blkrepl_image_set_throttle(part.image, slow), 0);
    for (size_t i = 0; i < 4; i++) {
        ASSERT_CODE(req_write(&reqs[i], part.image, i * CLUSTER, memory, CLUSTER), 0);
    }
    env_drain(&mine);
    assert_true(REQ_PENDING(&reqs[3]));
    ASSERT_CODE(blkrepl_context_free(mine.ctx), -EBUSY);
    env_drain(&mine);
    all_done(4);
    blkrepl_throttle_free(slow);
    part_close(&part);
    env_close(&mine);
    part_end(&part);
}

int main(void)
{
#define T(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)
    const struct CMUnitTest tests[] = {
        T(a_raised_limit_acts_at_once),
        T(without_limits_everything_passes),
        T(a_lowered_limit_holds_from_now_on),
        T(what_waits_passes_when_the_throttle_is_taken_away),
        T(what_waits_passes_when_another_throttle_comes),
        T(a_freed_throttle_goes_on_for_those_who_use_it),
        T(an_image_may_be_closed_while_its_writes_wait),
        T(a_backup_keeps_to_the_throttle),
        T(copies_for_guests_are_counted_and_not_delayed),
        T(a_job_and_a_guest_share_one_throttle),
        T(a_job_that_waits_can_be_paused_and_cancelled),
        T(bad_options_are_refused),
        T(newer_options_are_refused_if_they_are_used),
        T(a_throttle_of_another_context_is_refused),
        T(a_context_that_closes_releases_what_waits),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
