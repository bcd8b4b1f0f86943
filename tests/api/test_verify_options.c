/* SPDX-License-Identifier: MIT */
/* What blkrepl_verify_create() takes and refuses, and what verify jobs hold. */
#include "stage.h"

#define SIZE (4 * CLUSTER + 100)

static struct env env;
static struct part one, two;
static struct part *const both[] = {&one, &two};
static blkrepl_verify_options o;
static blkrepl_job *job;
static int released;

static void count(void *user)
{
    (*(int *)user)++;
}

static void fresh(void)
{
    released = 0;
    o = (blkrepl_verify_options){.struct_size = sizeof o, .user = &released, .release = count};
}

static int set_up(void **state)
{
    (void)state;
    env_open(&env, NULL, 0);
    part_open(&one, &env, SIZE, 1);
    part_open(&two, &env, SIZE, 1);
    job = NULL;
    fresh();
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    parts_run(&env, both, 2);
    blkrepl_job_free(job);
    parts_close(&env, both, 2);
    return 0;
}

static void refused_between(blkrepl_image *image, blkrepl_image *other, int code)
{
    job = (blkrepl_job *)&env;
    ASSERT_CODE(blkrepl_verify_create(image, other, &o, &job), code);
    assert_null(job);
    assert_int_equal(released, 1);
    ASSERT_CODE(blkrepl_verify_start(image, other, &o, &job), code);
    assert_null(job);
    assert_int_equal(released, 2);
    assert_true(strlen(blkrepl_error_message()) > 0);
    fresh();
}

static void refused(int code)
{
    refused_between(one.image, two.image, code);
}

static void accepted(void)
{
    ASSERT_CODE(blkrepl_verify_create(one.image, two.image, &o, &job), 0);
    assert_int_equal(released, 0);
    job_drop(&env, &job);
    assert_int_equal(released, 1);
    fresh();
}

static void bad_options_are_refused(void **state)
{
    char name[65];

    (void)state;
    o.flags = 2;
    refused(-EINVAL);
    o.job_flags = 4;
    refused(-EINVAL);
    o.reserved0 = 1;
    refused(-EINVAL);
    o.on_error = 5;
    refused(-EINVAL);
    o.workers_max = 257;
    refused(-EINVAL);
    o.chunk_bytes_max = 64 * KIB - 1;
    refused(-EINVAL);
    o.chunk_bytes_max = 64 * MIB + 1;
    refused(-EINVAL);
    memset(name, 'n', sizeof name);
    name[64] = 0;
    o.name = name;
    refused(-EINVAL);
    o.name = "";
    refused(-EINVAL);
    o.workers_max = 256;
    o.chunk_bytes_max = 100000;
    o.on_error = BLKREPL_ON_ERROR_ENOSPC;
    o.flags = BLKREPL_VERIFY_FIRST;
    o.job_flags = BLKREPL_JOB_MANUAL_DISMISS | BLKREPL_JOB_MANUAL_FINALIZE;
    accepted();
}

static void null_and_struct_size_are_checked(void **state)
{
    struct {
        blkrepl_verify_options known;
        uint64_t unknown;
    } newer;

    (void)state;
    refused_between(NULL, two.image, -EINVAL);
    refused_between(one.image, NULL, -EINVAL);
    ASSERT_CODE(blkrepl_verify_create(one.image, two.image, &o, NULL), -EINVAL);
    fresh();
    ASSERT_CODE(blkrepl_verify_create(one.image, two.image, NULL, &job), 0);
    blkrepl_job_free(job);
    o.struct_size = 8;
    ASSERT_CODE(blkrepl_verify_create(one.image, two.image, &o, &job), -EINVAL);
    assert_null(job);
    fresh();
    newer.known = o;
    newer.known.struct_size = sizeof newer;
    newer.unknown = 1;
    ASSERT_CODE(blkrepl_verify_create(one.image, two.image, &newer.known, &job),
                BLKREPL_ERR_VERSION);
    assert_null(job);
    newer.unknown = 0;
    ASSERT_CODE(blkrepl_verify_create(one.image, two.image, &newer.known, &job), 0);
}

static void images_that_do_not_fit_are_refused(void **state)
{
    blkrepl_image *small = NULL, *large = NULL, *there = NULL;
    blkrepl_context *ctx = NULL;

    (void)state;
    refused_between(one.image, one.image, -EINVAL);
    ASSERT_CODE(blkrepl_image_open_memory(env.ctx, SIZE - 1, NULL, &small), 0);
    ASSERT_CODE(blkrepl_image_open_memory(env.ctx, SIZE + 1, NULL, &large), 0);
    refused_between(one.image, small, -EINVAL);
    ASSERT_CODE(blkrepl_verify_create(one.image, large, NULL, &job), 0); /* it may be longer */
    blkrepl_job_free(job);
    job = NULL;
    ASSERT_CODE(blkrepl_context_create(NULL, &ctx), 0);
    ASSERT_CODE(blkrepl_image_open_memory(ctx, SIZE, NULL, &there), 0);
    refused_between(one.image, there, -EINVAL);
    blkrepl_image_close(small);
    blkrepl_image_close(large);
    blkrepl_image_close(there);
    ASSERT_CODE(blkrepl_context_free(ctx), 0);
}

static void bitmaps_that_do_not_fit_are_refused(void **state)
{
    blkrepl_bitmap *good = bitmap_make(&env, SIZE, 4096);
    blkrepl_bitmap *second = bitmap_make(&env, SIZE, 4096);
    blkrepl_bitmap *wrong = bitmap_make(&env, SIZE + 1, 4096);

    (void)state;
    o.only = wrong;
    refused(-EINVAL);
    o.differing = wrong;
    refused(-EINVAL);
    o.only = good;
    o.differing = good;
    refused(-EINVAL);
    ASSERT_CODE(blkrepl_bitmap_load_begin(second), 0);
    o.only = second;
    refused(BLKREPL_ERR_STATE);
    o.differing = second;
    refused(BLKREPL_ERR_STATE);
    ASSERT_CODE(blkrepl_bitmap_load_ones(second, 0, SIZE), 0);
    ASSERT_CODE(blkrepl_bitmap_load_finish(second), 0);
    o.only = good;
    o.differing = second;
    accepted();
    blkrepl_bitmap_free(good);
    blkrepl_bitmap_free(second);
    blkrepl_bitmap_free(wrong);
}

static void the_target_of_a_job_is_refused(void **state)
{
    static struct part copy;
    blkrepl_job *backup = NULL;

    (void)state;
    part_open(&copy, &env, SIZE, 0);
    ASSERT_CODE(blkrepl_backup_create(one.image, copy.image, NULL, &backup), 0);
    refused_between(one.image, copy.image, -EBUSY);
    refused_between(copy.image, one.image, -EBUSY);
    accepted(); /* the source of one will do */
    blkrepl_job_free(backup);
    env_drain(&env);
    part_close(&copy);
    env_drain(&env);
    part_end(&copy);
}

static void names_are_those_of_jobs(void **state)
{
    blkrepl_job *backup = NULL;
    blkrepl_backup_options b = {.struct_size = sizeof b, .name = "same"};

    (void)state;
    o.name = "same";
    ASSERT_CODE(blkrepl_verify_create(one.image, two.image, &o, &job), 0);
    ASSERT_CODE(blkrepl_backup_create(one.image, two.image, &b, &backup), -EBUSY);
    job_drop(&env, &job);
    ASSERT_CODE(blkrepl_backup_create(one.image, two.image, &b, &backup), 0);
    blkrepl_job_free(backup);
    fresh();
    o.name = "same";
    accepted();
}

static void alignments_that_are_too_large_for_chunks_are_refused(void **state)
{
    static struct part coarse;
    static uint8_t memory[1];

    (void)state;
    tape_init(&coarse.tape, SIZE);
    tape_fill(&coarse.tape, 1);
    coarse.tape.info.request_alignment = 64 * KIB; /* the largest there is: it will do */
    part_open_prepared(&coarse, &env);
    ASSERT_CODE(blkrepl_verify_start(one.image, coarse.image, NULL, &job), 0);
    env_drain(&env);
    ASSERT_ENDED(job, BLKREPL_RESULT_DONE, 0);
    assert_int_equal(job_info(job).differing_bytes, 0);
    ASSERT_CODE(read_now(&env, coarse.image, 70000, memory, 1), 0);
    part_close(&coarse);
    env_drain(&env);
    part_end(&coarse);
}

static void empty_images_are_the_same(void **state)
{
    blkrepl_image *a = NULL, *b = NULL;

    (void)state;
    ASSERT_CODE(blkrepl_image_open_memory(env.ctx, 0, NULL, &a), 0);
    ASSERT_CODE(blkrepl_image_open_memory(env.ctx, 10, NULL, &b), 0);
    ASSERT_CODE(blkrepl_verify_start(a, b, NULL, &job), 0);
    env_drain(&env);
    ASSERT_ENDED(job, BLKREPL_RESULT_DONE, 0);
    assert_int_equal(job_info(job).bytes_total, 0);
    blkrepl_image_close(a);
    blkrepl_image_close(b);
}

/* Holes on both sides need not be read, and are the same as written zeroes. */
static void zeroes_are_the_same_however_they_came(void **state)
{
    static struct part plain;

    (void)state;
    tape_init(&plain.tape, SIZE);
    plain.tape.info.opcodes = OPS_RW; /* it cannot tell */
    part_open_prepared(&plain, &env);
    memset(one.tape.data, 0, SIZE);
    ASSERT_CODE(blkrepl_verify_start(one.image, plain.image, NULL, &job), 0);
    env_drain(&env);
    ASSERT_ENDED(job, BLKREPL_RESULT_DONE, 0);
    assert_int_equal(job_info(job).differing_bytes, 0);
    blkrepl_job_free(job);
    plain.tape.data[SIZE - 1] = 1;
    ASSERT_CODE(blkrepl_verify_start(one.image, plain.image, NULL, &job), 0);
    env_drain(&env);
    ASSERT_ENDED(job, BLKREPL_RESULT_DONE, 0);
    assert_int_equal(job_info(job).differing_bytes, 100);
    part_close(&plain);
    env_drain(&env);
    part_end(&plain);
}

static void it_goes_on_when_all_handles_are_dropped(void **state)
{
    blkrepl_bitmap *differing = bitmap_make(&env, SIZE, 4096);

    (void)state;
    two.tape.data[5000] ^= 1;
    o.differing = differing;
    one.tape.hold = OPS_ALL;
    ASSERT_CODE(blkrepl_verify_start(one.image, two.image, &o, &job), 0);
    blkrepl_job_free(job);
    job = NULL;
    part_close(&one);
    part_close(&two);
    parts_run(&env, both, 2);
    assert_int_equal(released, 1);
    assert_int_equal(bitmap_info(differing).dirty_bytes, 4096);
    assert_int_equal(one.tape.closes + two.tape.closes, 2);
    blkrepl_bitmap_free(differing);
}

int main(void)
{
#define T(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)
    const struct CMUnitTest tests[] = {
        T(bad_options_are_refused),
        T(null_and_struct_size_are_checked),
        T(images_that_do_not_fit_are_refused),
        T(bitmaps_that_do_not_fit_are_refused),
        T(the_target_of_a_job_is_refused),
        T(names_are_those_of_jobs),
        T(alignments_that_are_too_large_for_chunks_are_refused),
        T(empty_images_are_the_same),
        T(zeroes_are_the_same_however_they_came),
        T(it_goes_on_when_all_handles_are_dropped),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
