/* SPDX-License-Identifier: MIT */
/* What blkrepl_backup_create() refuses, and with which code. */
#include "tape.h"

#define SIZE (4 * CLUSTER)

static struct env env;
static struct tape disk, copy, third;
static blkrepl_image *source, *target;
static blkrepl_backup_options o;
static int released;

static void count(void *user)
{
    (*(int *)user)++;
}

static void fresh(void)
{
    released = 0;
    o = (blkrepl_backup_options){.struct_size = sizeof o, .user = &released, .release = count};
}

static int set_up(void **state)
{
    (void)state;
    env_open(&env, NULL, 0);
    tape_init(&disk, SIZE);
    tape_init(&copy, SIZE);
    source = tape_open(&disk, &env);
    target = tape_open(&copy, &env);
    fresh();
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    blkrepl_image_close(source);
    blkrepl_image_close(target);
    env_close(&env);
    tape_close(&disk);
    tape_close(&copy);
    return 0;
}

/* Refused by create and by start alike, before anything happened. */
static void refused_between(blkrepl_image *from, blkrepl_image *to, int code)
{
    blkrepl_job *job = (blkrepl_job *)&env;

    ASSERT_CODE(blkrepl_backup_create(from, to, &o, &job), code);
    assert_null(job);
    assert_int_equal(released, 1);
    assert_true(strlen(blkrepl_error_message()) > 0);
    job = (blkrepl_job *)&env;
    ASSERT_CODE(blkrepl_backup_start(from, to, &o, &job), code);
    assert_null(job);
    assert_int_equal(released, 2);
    env_drain(&env);
    assert_int_equal(released, 2);
    fresh();
}

static void refused(int code)
{
    refused_between(source, target, code);
    assert_int_equal(env.event_count, 0);
}

static void accepted(void)
{
    blkrepl_job *job = NULL;

    ASSERT_CODE(blkrepl_backup_create(source, target, &o, &job), 0);
    assert_non_null(job);
    assert_int_equal(released, 0);
    blkrepl_job_free(job);
    env_drain(&env);
    assert_int_equal(released, 1);
    fresh();
}

static void null_options_mean_all_defaults(void **state)
{
    blkrepl_job *job = NULL;

    (void)state;
    ASSERT_CODE(blkrepl_backup_create(source, target, NULL, &job), 0);
    blkrepl_job_free(job);
    accepted();
}

static void struct_size_is_checked(void **state)
{
    struct {
        blkrepl_backup_options known;
        uint64_t unknown;
    } newer;
    blkrepl_job *job = (blkrepl_job *)&env;

    (void)state;
    o.struct_size = 0;
    ASSERT_CODE(blkrepl_backup_create(source, target, &o, &job), -EINVAL);
    assert_null(job);
    o.struct_size = offsetof(blkrepl_backup_options, on_source_error) - 1; /* less than in 0.1 */
    ASSERT_CODE(blkrepl_backup_create(source, target, &o, &job), -EINVAL);
    fresh();
    newer.known = o;
    newer.unknown = 0;
    newer.known.struct_size = sizeof newer;
    ASSERT_CODE(blkrepl_backup_create(source, target, &newer.known, &job), 0);
    blkrepl_job_free(job);
    newer.unknown = 1;
    ASSERT_CODE(blkrepl_backup_create(source, target, &newer.known, &job), BLKREPL_ERR_VERSION);
    assert_null(job);
    env_drain(&env);
    assert_int_equal(released, 2);
}

static void unknown_and_reserved_are_refused(void **state)
{
    (void)state;
    o.flags = 16;
    refused(-EINVAL);
    o.flags = 0x80000000u;
    refused(-EINVAL);
    o.reserved0 = 1;
    refused(-EINVAL);
    o.reserved1 = &o;
    refused(-EINVAL);
    o.sync = 5;
    refused(-EINVAL);
    o.on_cbw_error = 3;
    refused(-EINVAL);
    o.flags = BLKREPL_BACKUP_DETECT_ZEROES | BLKREPL_BACKUP_NO_OFFLOAD;
    o.sync = BLKREPL_SYNC_FULL;
    o.on_cbw_error = BLKREPL_CBW_GUEST_WRITE_FAILS;
    o.cbw_timeout_ns = BLKREPL_FOREVER;
    accepted();
}

static void clusters_are_powers_of_two_from_4_kib_to_16_mib(void **state)
{
    static const uint64_t bad[] = {1, 2048, 4095, 4097, 5000, 12288, 32 * MIB, 1ull << 63};
    static const uint64_t good[] = {4096, 8192, 64 * KIB, MIB, 16 * MIB};

    (void)state;
    for (size_t i = 0; i < ARRAY_COUNT(bad); i++) {
        o.cluster_bytes = bad[i];
        refused(-EINVAL);
    }
    for (size_t i = 0; i < ARRAY_COUNT(good); i++) {
        o.cluster_bytes = good[i];
        accepted();
    }
}

static void names_are_unique_until_the_handle_is_freed(void **state)
{
    blkrepl_job *job = NULL;
    blkrepl_image *other = NULL;
    char name[65];

    (void)state;
    memset(name, 'n', sizeof name);
    name[64] = 0;
    o.name = name;
    refused(-EINVAL);
    name[63] = 0;
    o.name = name;
    ASSERT_CODE(blkrepl_backup_start(source, target, &o, &job), 0);
    assert_string_equal(job_info(job).name, name);
    ASSERT_CODE(blkrepl_image_open_memory(env.ctx, SIZE, NULL, &other), 0);
    fresh();
    o.name = name;
    refused_between(source, other, -EEXIST);
    env_drain(&env);
    assert_int_equal(job_info(job).state, BLKREPL_JOB_CONCLUDED);
    fresh();
    o.name = name;
    refused_between(source, other, -EEXIST);
    blkrepl_job_free(job);
    env_drain(&env);
    fresh();
    o.name = name;
    accepted();
    blkrepl_image_close(other);
}

static void the_name_is_copied(void **state)
{
    char name[] = "copied";
    blkrepl_job *job = NULL;

    (void)state;
    o.name = name;
    ASSERT_CODE(blkrepl_backup_create(source, target, &o, &job), 0);
    strcpy(name, "......");
    assert_string_equal(job_info(job).name, "copied");
    blkrepl_job_free(job);
}

/* ---- Images ------------------------------------------------------------------------------ */

static void an_image_cannot_be_its_own_target(void **state)
{
    (void)state;
    refused_between(source, source, -EINVAL);
}

static void a_smaller_target_is_refused(void **state)
{
    blkrepl_image *small = NULL, *large = NULL;
    blkrepl_job *job = NULL;

    (void)state;
    ASSERT_CODE(blkrepl_image_open_memory(env.ctx, SIZE - 1, NULL, &small), 0);
    ASSERT_CODE(blkrepl_image_open_memory(env.ctx, SIZE + 1, NULL, &large), 0);
    refused_between(source, small, -ENOSPC);
    ASSERT_CODE(blkrepl_backup_create(source, large, NULL, &job), 0);
    blkrepl_job_free(job);
    blkrepl_image_close(small);
    blkrepl_image_close(large);
}

static void images_of_different_contexts_are_refused(void **state)
{
    blkrepl_context *other = NULL;
    blkrepl_image *there = NULL;

    (void)state;
    ASSERT_CODE(blkrepl_context_create(NULL, &other), 0);
    ASSERT_CODE(blkrepl_image_open_memory(other, SIZE, NULL, &there), 0);
    refused_between(source, there, -EINVAL);
    refused_between(there, target, -EINVAL);
    blkrepl_image_close(there);
    ASSERT_CODE(blkrepl_context_free(other), 0);
}

static void a_read_only_target_is_refused_a_read_only_source_is_not(void **state)
{
    blkrepl_image_options ro = {.struct_size = sizeof ro, .flags = BLKREPL_IMAGE_READ_ONLY};
    blkrepl_image *fixed = NULL;
    blkrepl_job *job = NULL;

    (void)state;
    ASSERT_CODE(blkrepl_image_open_memory(env.ctx, SIZE, &ro, &fixed), 0);
    refused_between(source, fixed, -EROFS);
    ASSERT_CODE(blkrepl_backup_create(fixed, target, NULL, &job), 0);
    blkrepl_job_free(job);
    blkrepl_image_close(fixed);
}

static void busy_images_are_refused_while_they_are(void **state)
{
    blkrepl_image *other = NULL;
    blkrepl_job *job = NULL, *second = NULL;

    (void)state;
    ASSERT_CODE(blkrepl_image_open_memory(env.ctx, SIZE, NULL, &other), 0);
    ASSERT_CODE(blkrepl_backup_create(source, target, NULL, &job), 0);
    refused_between(other, target, -EBUSY);  /* target of a job */
    refused_between(other, source, -EBUSY);  /* source of a job */
    refused_between(target, other, -EBUSY);  /* source is the target of one */
    refused_between(source, target, -EBUSY); /* target of the same job */
    ASSERT_CODE(blkrepl_backup_create(source, other, NULL, &second), 0); /* two of one source */
    blkrepl_job_free(second);
    blkrepl_job_free(job);
    env_drain(&env);
    accepted();
    ASSERT_CODE(blkrepl_backup_create(other, source, NULL, &job), 0);
    blkrepl_job_free(job);
    blkrepl_image_close(other);
}

static void a_concluded_job_no_longer_makes_its_images_busy(void **state)
{
    blkrepl_job *job = NULL, *back = NULL;

    (void)state;
    ASSERT_CODE(blkrepl_backup_start(source, target, NULL, &job), 0);
    env_drain(&env);
    assert_int_equal(job_info(job).state, BLKREPL_JOB_CONCLUDED);
    ASSERT_CODE(blkrepl_backup_create(target, source, NULL, &back), 0);
    blkrepl_job_free(back);
    blkrepl_job_free(job);
}

static void guest_writes_make_a_target_busy(void **state)
{
    uint8_t data[512] = {0};
    struct req req = {0};
    struct bracket bracket = {0};

    (void)state;
    copy.hold = OPS_ALL;
    ASSERT_CODE(req_write(&req, target, 0, data, sizeof data), 0);
    refused(-EBUSY);
    tape_release(&copy, &env);
    bracket_begin(&bracket, target, BLKREPL_OP_WRITE, 0, 512);
    refused(-EBUSY);
    ASSERT_CODE(blkrepl_write_end(env.ctx, bracket.token, 0, NULL, 0, NULL), 0);
    accepted();
}

static void a_target_is_closed_to_guest_writes_from_the_create_on(void **state)
{
    blkrepl_job *job = NULL;
    struct req req = {0};
    struct bracket bracket = {0};
    uint8_t byte = 0;

    (void)state;
    ASSERT_CODE(blkrepl_backup_create(source, target, &o, &job), 0);
    ASSERT_CODE(req_write(&req, target, 0, &byte, 1), -EBUSY);
    req_assert_rejected(&req);
    ASSERT_CODE(req_zeroes(&req, target, 0, 1), -EBUSY);
    ASSERT_CODE(req_discard(&req, target, 0, 1), -EBUSY);
    bracket_begin(&bracket, target, BLKREPL_OP_WRITE, 0, 512);
    ASSERT_CODE(bracket.answer, -EBUSY);
    assert_int_equal(bracket.token, 0);
    req_assert_rejected(&bracket.go);
    ASSERT_CODE(read_now(&env, target, 0, &byte, 1), 0);
    ASSERT_CODE(write_now(&env, source, 0, &byte, 1), 0);
    blkrepl_job_free(job);
    env_drain(&env);
    ASSERT_CODE(write_now(&env, target, 0, &byte, 1), 0);
}

/* ---- Limits -------------------------------------------------------------------------------- */

static void a_target_that_needs_more_than_a_cluster_is_not_supported(void **state)
{
    (void)state;
    tape_init(&third, SIZE);
    third.info.request_alignment = 8192;
    blkrepl_image *coarse = tape_open(&third, &env);
    o.cluster_bytes = 4096;
    refused_between(source, coarse, -ENOTSUP);
    blkrepl_job *job = NULL;
    o.cluster_bytes = 8192;
    ASSERT_CODE(blkrepl_backup_create(source, coarse, &o, &job), 0);
    blkrepl_job_free(job);
    blkrepl_image_close(coarse);
    env_drain(&env);
    tape_close(&third);
}

static void too_many_clusters_are_too_big(void **state)
{
    blkrepl_image *a = NULL, *b = NULL;

    (void)state;
    ASSERT_CODE(blkrepl_image_open_memory(env.ctx, BLKREPL_IMAGE_BYTES_MAX, NULL, &a), 0);
    ASSERT_CODE(blkrepl_image_open_memory(env.ctx, BLKREPL_IMAGE_BYTES_MAX, NULL, &b), 0);
    refused_between(a, b, -EFBIG);
    o.cluster_bytes = 4096;
    refused_between(a, b, -EFBIG);
    blkrepl_image_close(a);
    blkrepl_image_close(b);
}

static void the_budgets_of_the_context_are_kept(void **state)
{
    blkrepl_context_options c = {.struct_size = sizeof c, .memory_bytes_max = MIB};
    blkrepl_image *a = NULL, *b[8] = {NULL};
    blkrepl_job *job[8] = {NULL};
    int made = 0;

    (void)state;
    static struct env small;
    env_open(&small, &c, 0);
    ASSERT_CODE(blkrepl_image_open_memory(small.ctx, SIZE, NULL, &a), 0);
    for (int i = 0; i < 8; i++) {
        ASSERT_CODE(blkrepl_image_open_memory(small.ctx, SIZE, NULL, &b[i]), 0);
    }
    ASSERT_CODE(blkrepl_backup_create(a, b[0], NULL, &job[0]), -ENOMEM); /* 16 MiB of reserve */
    o.reserve_bytes = 256 * KIB;
    o.chunk_bytes_max = CLUSTER;
    o.workers_max = 1;
    o.release = NULL;
    while (made < 8 && blkrepl_backup_create(a, b[made], &o, &job[made]) == 0) {
        made++;
    }
    assert_true(made >= 1 && made <= 4);
    ASSERT_CODE(blkrepl_backup_create(a, b[made], &o, &job[made]), -ENOMEM);
    blkrepl_job_free(job[--made]);
    blkrepl_poll(small.ctx, 0, 0);
    ASSERT_CODE(blkrepl_backup_create(a, b[made], &o, &job[made]), 0);
    for (int i = 0; i <= made; i++) {
        blkrepl_job_free(job[i]);
    }
    blkrepl_image_close(a);
    for (int i = 0; i < 8; i++) {
        blkrepl_image_close(b[i]);
    }
    env_close(&small);
}

static void job_requests_max_bounds_the_jobs(void **state)
{
    blkrepl_context_options c = {.struct_size = sizeof c, .job_requests_max = 8};
    blkrepl_image *a = NULL, *b[20] = {NULL};
    blkrepl_job *job[20] = {NULL};
    static struct env small;
    int made = 0;

    (void)state;
    env_open(&small, &c, 0);
    ASSERT_CODE(blkrepl_image_open_memory(small.ctx, SIZE, NULL, &a), 0);
    for (int i = 0; i < 20; i++) {
        ASSERT_CODE(blkrepl_image_open_memory(small.ctx, SIZE, NULL, &b[i]), 0);
    }
    o.release = NULL;
    o.workers_max = 1;
    while (made < 20 && blkrepl_backup_create(a, b[made], &o, &job[made]) == 0) {
        made++;
    }
    assert_true(made <= 8);
    if (made < 20) {
        ASSERT_CODE(blkrepl_backup_create(a, b[made], &o, &job[made]), -ENOMEM);
    }
    for (int i = 0; i < made; i++) {
        blkrepl_job_free(job[i]);
    }
    blkrepl_image_close(a);
    for (int i = 0; i < 20; i++) {
        blkrepl_image_close(b[i]);
    }
    env_close(&small);
}

int main(void)
{
#define T(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)
    const struct CMUnitTest tests[] = {
        T(null_options_mean_all_defaults),
        T(struct_size_is_checked),
        T(unknown_and_reserved_are_refused),
        T(clusters_are_powers_of_two_from_4_kib_to_16_mib),
        T(names_are_unique_until_the_handle_is_freed),
        T(the_name_is_copied),
        T(an_image_cannot_be_its_own_target),
        T(a_smaller_target_is_refused),
        T(images_of_different_contexts_are_refused),
        T(a_read_only_target_is_refused_a_read_only_source_is_not),
        T(busy_images_are_refused_while_they_are),
        T(a_concluded_job_no_longer_makes_its_images_busy),
        T(guest_writes_make_a_target_busy),
        T(a_target_is_closed_to_guest_writes_from_the_create_on),
        T(a_target_that_needs_more_than_a_cluster_is_not_supported),
        T(too_many_clusters_are_too_big),
        T(the_budgets_of_the_context_are_kept),
        T(job_requests_max_bounds_the_jobs),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
