/* SPDX-License-Identifier: MIT */
/* The host's clock, entropy, memory and log, when they misbehave or run out. */
#include <unistd.h>

#include "tape.h"

static struct env env;
static struct tape disk, copy;
static blkrepl_hooks hooks;
static blkrepl_allocator allocator;

static blkrepl_context_options fresh(unsigned flags)
{
    memset(&env, 0, sizeof env);
    pthread_mutex_init(&env.heap.lock, NULL);
    atomic_store(&env.now, 1000);
    return env_options(&env, NULL, flags, &hooks, &allocator);
}

/* ---- Clock ----------------------------------------------------------------------- */

static void now_is_the_hooks_time(void **state)
{
    (void)state;
    env_open(&env, NULL, 0);
    assert_int_equal(blkrepl_context_now(env.ctx), SECOND);
    atomic_store(&env.now, 5 * SECOND);
    assert_int_equal(blkrepl_context_now(env.ctx), 5 * SECOND);
    env_close(&env);
}

static void time_never_runs_backwards(void **state)
{
    (void)state;
    env_open(&env, NULL, 0);
    atomic_store(&env.now, 5 * SECOND);
    assert_int_equal(blkrepl_context_now(env.ctx), 5 * SECOND);
    atomic_store(&env.now, 2 * SECOND);
    assert_true(blkrepl_context_now(env.ctx) >= 5 * SECOND);
    blkrepl_poll(env.ctx, 0, 0);
    assert_true(blkrepl_context_now(env.ctx) >= 5 * SECOND);
    atomic_store(&env.now, 0);
    assert_true(blkrepl_context_now(env.ctx) >= 5 * SECOND);
    atomic_store(&env.now, 6 * SECOND);
    assert_int_equal(blkrepl_context_now(env.ctx), 6 * SECOND);
    env_close(&env);
}

static void with_a_clock_hook_poll_does_not_sleep(void **state)
{
    (void)state;
    env_open(&env, NULL, 0);
    ASSERT_CODE(blkrepl_poll(env.ctx, 0, 1), -EINVAL);
    ASSERT_CODE(blkrepl_poll(env.ctx, 0, BLKREPL_FOREVER), -EINVAL);
    ASSERT_CODE(blkrepl_poll(env.ctx, 0, 0), 0);
    env_close(&env);
}

static void without_a_hook_the_clock_is_monotonic(void **state)
{
    (void)state;
    env_open(&env, NULL, ENV_REAL_CLOCK);
    uint64_t a = blkrepl_context_now(env.ctx);
    uint64_t b = blkrepl_context_now(env.ctx);
    assert_true(a > 0);
    assert_true(b >= a);
    env_close(&env);
}

/* ---- Entropy --------------------------------------------------------------------- */

static int no_entropy(void *user, void *out, size_t bytes)
{
    (void)user;
    (void)out;
    (void)bytes;
    return -EIO;
}

static void the_entropy_hooks_code_is_that_of_create(void **state)
{
    blkrepl_context_options o = fresh(0);
    blkrepl_context *out = (blkrepl_context *)&env;

    (void)state;
    hooks.entropy = no_entropy;
    ASSERT_CODE(blkrepl_context_create(&o, &out), -EIO);
    assert_null(out);
    assert_int_equal(env.sink_released, 1);
    assert_int_equal(env.heap.live, 0);
}

/* ---- Memory ---------------------------------------------------------------------- */

static void create_survives_every_failing_allocation(void **state)
{
    uint64_t n = 0;
    int rc = -ENOMEM;

    (void)state;
    while (rc == -ENOMEM) {
        blkrepl_context_options o = fresh(0);
        blkrepl_context *out = (blkrepl_context *)&env;

        env.heap.fail_at = ++n;
        rc = blkrepl_context_create(&o, &out);
        if (rc == 0) {
            env.ctx = out;
            break;
        }
        ASSERT_CODE(rc, -ENOMEM);
        assert_null(out);
        assert_int_equal(env.heap.live, 0);
        assert_int_equal(env.sink_released, 1);
        assert_true(n < 10000);
    }
    assert_true(n > 1);
    env_close(&env);
}

enum opening {
    OPEN_HOST,
    OPEN_MEMORY,
    OPEN_FILE
};

static int open_one(enum opening kind, const blkrepl_image_options *o, blkrepl_image **out)
{
    blkrepl_file_options file = {
        .struct_size = sizeof file, .flags = BLKREPL_FILE_CREATE, .bytes = 5000};

    switch (kind) {
    case OPEN_HOST: return blkrepl_image_open(env.ctx, &tape_ops, &disk, o, out);
    case OPEN_MEMORY: return blkrepl_image_open_memory(env.ctx, 5000, o, out);
    case OPEN_FILE: return blkrepl_image_open_file(env.ctx, "hooks.tmp", &file, o, out);
    }
    return 0;
}

static void count_release(void *user)
{
    (*(int *)user)++;
}

/* Every failure twice: what stays allocated after the first is a table that has
 * grown, what comes on top of it in the second is lost. */
static void opening(enum opening kind)
{
    int released = 0;
    blkrepl_image_options o = {
        .struct_size = sizeof o, .user = &released, .release = count_release};
    blkrepl_image *image = NULL;
    int failures = 0;

    env_open(&env, NULL, 0);
    tape_init(&disk, 5000);
    disk.ctx = env.ctx;
    for (uint64_t i = 0, live = 0;; i++) {
        image = (blkrepl_image *)&env;
        env.heap.fail_at = env.heap.calls + 1 + i / 2;
        int rc = open_one(kind, &o, &image);
        env.heap.fail_at = 0;
        if (rc == 0) {
            break;
        }
        ASSERT_CODE(rc, -ENOMEM);
        assert_null(image);
        env_drain(&env);
        if (i % 2) {
            assert_int_equal(env.heap.live, live);
        }
        live = env.heap.live;
        assert_int_equal(disk.closes, 0);
        assert_int_equal(released, ++failures);
        assert_true(i < 10000);
    }
    assert_true(failures > 0);
    blkrepl_image_close(image);
    env_close(&env);
    assert_int_equal(released, failures + 1);
    assert_int_equal(disk.closes, kind == OPEN_HOST);
    free(disk.data);
    unlink("hooks.tmp");
}

static void open_survives_every_failing_allocation(void **state)
{
    (void)state;
    opening(OPEN_HOST);
}

static void open_memory_survives_every_failing_allocation(void **state)
{
    (void)state;
    opening(OPEN_MEMORY);
}

static void open_file_survives_every_failing_allocation(void **state)
{
    (void)state;
    opening(OPEN_FILE);
}

static void backup_create_survives_every_failing_allocation(void **state)
{
    int released = 0, failures = 0;
    blkrepl_backup_options o = {.struct_size = sizeof o,
                                .name = "same",
                                .user = &released,
                                .release = count_release,
                                .reserve_bytes = 4 * CLUSTER};
    blkrepl_image *source = NULL, *target = NULL;
    blkrepl_job *job = NULL;

    (void)state;
    env_open(&env, NULL, 0);
    tape_init(&disk, 10 * CLUSTER);
    tape_init(&copy, 10 * CLUSTER);
    tape_fill(&disk, 3);
    source = tape_open(&disk, &env);
    target = tape_open(&copy, &env);
    for (uint64_t n = 1;; n++) {
        uint64_t live = env.heap.live;

        job = (blkrepl_job *)&env;
        env.heap.fail_at = env.heap.calls + n;
        int rc = blkrepl_backup_create(source, target, &o, &job);
        env.heap.fail_at = 0;
        if (rc == 0) {
            break;
        }
        ASSERT_CODE(rc, -ENOMEM);
        assert_null(job);
        assert_int_equal(env.heap.live, live);
        assert_int_equal(released, ++failures);
        assert_true(n < 100000);
    }
    assert_true(failures > 0);
    ASSERT_CODE(write_now(&env, target, 0, "x", 1), -EBUSY);
    ASSERT_CODE(blkrepl_job_start(job), 0);
    env_drain(&env);
    assert_int_equal(job_info(job).result, BLKREPL_RESULT_DONE);
    assert_same(copy.data, disk.data, disk.info.bytes, "target");
    blkrepl_job_free(job);
    blkrepl_image_close(source);
    blkrepl_image_close(target);
    env_close(&env);
    assert_int_equal(released, failures + 1);
    tape_close(&disk);
    tape_close(&copy);
}

/* "A running backup does not allocate"; "no request needs an allocation". */
static void running_needs_no_memory(void **state)
{
    blkrepl_image *source = NULL, *target = NULL;
    blkrepl_job *job = NULL;
    uint8_t block[3000];

    (void)state;
    env_open(&env, NULL, 0);
    tape_init(&disk, 40 * CLUSTER + 5);
    tape_init(&copy, 40 * CLUSTER + 5);
    disk.info.request_alignment = 4096;
    disk.info.memory_alignment = 512;
    tape_fill(&disk, 3);
    source = tape_open(&disk, &env);
    target = tape_open(&copy, &env);
    uint8_t *start = tape_copy(&disk);
    ASSERT_CODE(blkrepl_backup_create(source, target, NULL, &job), 0);
    env.heap.fail_at = env.heap.calls + 1;
    env.heap.fail_on = true;
    ASSERT_CODE(blkrepl_job_start(job), 0);
    for (unsigned i = 0; i < 30; i++) {
        fill(block, sizeof block, i * 70001u, 77);
        ASSERT_CODE(write_now(&env, source, i * 70001u, block, sizeof block), 0);
    }
    env_drain(&env);
    assert_int_equal(job_info(job).result, BLKREPL_RESULT_DONE);
    assert_same(copy.data, start, disk.info.bytes, "target");
    free(start);
    blkrepl_job_free(job);
    blkrepl_image_close(source);
    blkrepl_image_close(target);
    env_drain(&env);
    env.heap.fail_on = false;
    env_close(&env);
    tape_close(&disk);
    tape_close(&copy);
}

static void a_write_to_a_memory_image_without_memory_fails_with_enomem(void **state)
{
    blkrepl_image *image = NULL;
    uint8_t byte = 1;

    (void)state;
    env_open(&env, NULL, 0);
    ASSERT_CODE(blkrepl_image_open_memory(env.ctx, MIB, NULL, &image), 0);
    env.heap.fail_at = env.heap.calls + 1;
    env.heap.fail_on = true;
    ASSERT_CODE(write_now(&env, image, 1000, &byte, 1), -ENOMEM);
    env.heap.fail_at = 0;
    env.heap.fail_on = false;
    ASSERT_CODE(write_now(&env, image, 1000, &byte, 1), 0);
    blkrepl_image_close(image);
    env_close(&env);
}

/* ---- Log ------------------------------------------------------------------------- */

static int log_polls, log_others, log_lines;

static void log_line(void *user, uint32_t level, const char *line)
{
    struct env *e = user;

    log_lines++;
    log_polls += blkrepl_poll(e->ctx, 0, 0) != -EDEADLK;
    log_others += blkrepl_context_now(e->ctx) == 0;
    log_others += level < BLKREPL_LOG_ERROR || level > BLKREPL_LOG_DEBUG;
    log_others += !line || strchr(line, '\n') != NULL;
}

/* What is logged is of no promise; only how. */
static void the_log_may_call_the_library_but_not_poll(void **state)
{
    blkrepl_context_options o = fresh(0);
    blkrepl_job *job = NULL;

    (void)state;
    hooks.log = log_line;
    ASSERT_CODE(blkrepl_context_create(&o, &env.ctx), 0);
    tape_init(&disk, CLUSTER);
    tape_init(&copy, CLUSTER);
    tape_fill(&disk, 1);
    blkrepl_image *source = tape_open(&disk, &env);
    blkrepl_image *target = tape_open(&copy, &env);
    copy.fail[BLKREPL_OP_WRITE] = -ENOSPC;
    ASSERT_CODE(blkrepl_backup_start(source, target, NULL, &job), 0);
    env_drain(&env);
    assert_int_equal(job_info(job).result, BLKREPL_RESULT_FAILED);
    blkrepl_job_free(job);
    blkrepl_image_close(source);
    blkrepl_image_close(target);
    env_close(&env);
    assert_int_equal(log_polls, 0);
    assert_int_equal(log_others, 0);
    tape_close(&disk);
    tape_close(&copy);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(now_is_the_hooks_time),
        cmocka_unit_test(time_never_runs_backwards),
        cmocka_unit_test(with_a_clock_hook_poll_does_not_sleep),
        cmocka_unit_test(without_a_hook_the_clock_is_monotonic),
        cmocka_unit_test(the_entropy_hooks_code_is_that_of_create),
        cmocka_unit_test(create_survives_every_failing_allocation),
        cmocka_unit_test(open_survives_every_failing_allocation),
        cmocka_unit_test(open_memory_survives_every_failing_allocation),
        cmocka_unit_test(open_file_survives_every_failing_allocation),
        cmocka_unit_test(backup_create_survives_every_failing_allocation),
        cmocka_unit_test(running_needs_no_memory),
        cmocka_unit_test(a_write_to_a_memory_image_without_memory_fails_with_enomem),
        cmocka_unit_test(the_log_may_call_the_library_but_not_poll),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
