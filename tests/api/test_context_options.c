/* SPDX-License-Identifier: MIT */
/* What blkrepl_context_create() accepts, and how it refuses the rest. */
#include "tape.h"

static struct env env;
static struct tape disk, copy;

/* A struct as a newer release might have it. */
struct newer_options {
    blkrepl_context_options known;
    uint64_t unknown[4];
};

struct newer_allocator {
    blkrepl_allocator known;
    uint64_t unknown;
};

struct newer_hooks {
    blkrepl_hooks known;
    uint64_t unknown;
};

static blkrepl_hooks hooks;
static blkrepl_allocator allocator;

static blkrepl_context_options fresh(const blkrepl_context_options *base)
{
    memset(&env, 0, sizeof env);
    pthread_mutex_init(&env.heap.lock, NULL);
    return env_options(&env, base, 0, &hooks, &allocator);
}

static void refused(const blkrepl_context_options *o, int code)
{
    blkrepl_context *out = (blkrepl_context *)&env;

    ASSERT_CODE(blkrepl_context_create(o, &out), code);
    assert_null(out);
    assert_int_equal(env.sink_released, 1);
    assert_int_equal(env.heap.live, 0);
    assert_true(strlen(blkrepl_error_message()) > 0);
}

static void accepted(const blkrepl_context_options *o)
{
    ASSERT_CODE(blkrepl_context_create(o, &env.ctx), 0);
    assert_non_null(env.ctx);
    assert_int_equal(env.sink_released, 0);
    env_close(&env);
}

static void null_options_mean_all_defaults(void **state)
{
    blkrepl_context *ctx = NULL;

    (void)state;
    ASSERT_CODE(blkrepl_context_create(NULL, &ctx), 0);
    assert_non_null(ctx);
    ASSERT_CODE(blkrepl_poll(ctx, 0, 0), 0);
    ASSERT_CODE(blkrepl_context_free(ctx), 0);
}

static void only_a_size_means_all_defaults(void **state)
{
    blkrepl_context_options o = {.struct_size = sizeof o};
    blkrepl_context *ctx = NULL;

    (void)state;
    ASSERT_CODE(blkrepl_context_create(&o, &ctx), 0);
    ASSERT_CODE(blkrepl_context_free(ctx), 0);
}

static void out_null_is_refused_and_the_sink_released(void **state)
{
    blkrepl_context_options o = fresh(NULL);

    (void)state;
    ASSERT_CODE(blkrepl_context_create(&o, NULL), -EINVAL);
    assert_int_equal(env.sink_released, 1);
    ASSERT_CODE(blkrepl_context_create(NULL, NULL), -EINVAL);
}

static void a_struct_smaller_than_the_first_release_is_refused(void **state)
{
    blkrepl_context_options o = fresh(NULL);
    blkrepl_context *out = (blkrepl_context *)&env;

    (void)state;
    /* Whether the sink lies within so small a struct is the library's to say. */
    o.struct_size = 0;
    ASSERT_CODE(blkrepl_context_create(&o, &out), -EINVAL);
    assert_null(out);
    o.struct_size = sizeof o - 1;
    out = (blkrepl_context *)&env;
    ASSERT_CODE(blkrepl_context_create(&o, &out), -EINVAL);
    assert_null(out);

    o = fresh(NULL);
    allocator.struct_size = sizeof allocator - 1;
    refused(&o, -EINVAL);
    o = fresh(NULL);
    allocator.struct_size = 0;
    refused(&o, -EINVAL);
    o = fresh(NULL);
    hooks.struct_size = sizeof hooks - 1;
    refused(&o, -EINVAL);
}

static void a_larger_struct_with_a_zero_tail_is_accepted(void **state)
{
    struct newer_options newer = {.known = fresh(NULL)};
    struct newer_allocator newer_allocator = {.known = allocator};
    struct newer_hooks newer_hooks = {.known = hooks};

    (void)state;
    newer.known.struct_size = sizeof newer;
    newer_allocator.known.struct_size = sizeof newer_allocator;
    newer_hooks.known.struct_size = sizeof newer_hooks;
    newer.known.allocator = &newer_allocator.known;
    newer.known.hooks = &newer_hooks.known;
    accepted(&newer.known);
}

static void a_larger_struct_with_something_in_its_tail_is_of_another_version(void **state)
{
    struct newer_options newer = {.known = fresh(NULL), .unknown = {0, 0, 0, 1}};

    (void)state;
    newer.known.struct_size = sizeof newer;
    refused(&newer.known, BLKREPL_ERR_VERSION);

    struct newer_allocator newer_allocator = {.unknown = 1};
    blkrepl_context_options o = fresh(NULL);
    newer_allocator.known = allocator;
    newer_allocator.known.struct_size = sizeof newer_allocator;
    o.allocator = &newer_allocator.known;
    refused(&o, BLKREPL_ERR_VERSION);

    struct newer_hooks newer_hooks = {.unknown = 1};
    o = fresh(NULL);
    newer_hooks.known = hooks;
    newer_hooks.known.struct_size = sizeof newer_hooks;
    o.hooks = &newer_hooks.known;
    refused(&o, BLKREPL_ERR_VERSION);
}

static void unknown_flags_and_reserved_fields_are_refused(void **state)
{
    blkrepl_context_options o = fresh(NULL);

    (void)state;
    o.flags = 1;
    refused(&o, -EINVAL);
    o = fresh(NULL);
    o.flags = 0x80000000u;
    refused(&o, -EINVAL);
    o = fresh(NULL);
    o.reserved0 = 1;
    refused(&o, -EINVAL);
    o = fresh(NULL);
    o.reserved1 = &o;
    refused(&o, -EINVAL);
    o = fresh(NULL);
    allocator.flags = 1;
    refused(&o, -EINVAL);
    o = fresh(NULL);
    allocator.reserved0 = &o;
    refused(&o, -EINVAL);
    o = fresh(NULL);
    hooks.flags = 1;
    refused(&o, -EINVAL);
}

static void one_to_256_lanes_are_accepted(void **state)
{
    blkrepl_context_options o = fresh(NULL);

    (void)state;
    o.lane_count = 1;
    accepted(&o);
    o = fresh(NULL);
    o.lane_count = 2;
    accepted(&o);
    o = fresh(NULL);
    o.lane_count = 257;
    refused(&o, -EINVAL);
    o = fresh(NULL);
    o.lane_count = UINT32_MAX;
    refused(&o, -EINVAL);
    o = fresh(NULL);
    o.lane_count = 256; /* 2^24 requests of guests leave none for jobs */
    o.requests_max = 65536;
    refused(&o, -EINVAL);
}

static void every_allocator_function_is_required(void **state)
{
    (void)state;
    for (int i = 0; i < 6; i++) {
        blkrepl_context_options o = fresh(NULL);

        switch (i) {
        case 0: allocator.alloc = NULL; break;
        case 1: allocator.zalloc = NULL; break;
        case 2: allocator.realloc = NULL; break;
        case 3: allocator.free = NULL; break;
        case 4: allocator.buffer_alloc = NULL; break;
        case 5: allocator.buffer_free = NULL; break;
        default: break;
        }
        refused(&o, -EINVAL);
    }
}

static void every_hook_may_be_missing(void **state)
{
    (void)state;
    for (int i = 0; i < 3; i++) {
        blkrepl_context_options o = fresh(NULL);

        if (i == 0) {
            hooks.clock_ns = NULL;
        } else if (i == 1) {
            hooks.entropy = NULL;
        } else {
            o.hooks = NULL;
        }
        accepted(&o);
    }
}

static void limits_are_checked(void **state)
{
    blkrepl_context_options o = fresh(NULL);

    (void)state;
    o.requests_max = 65536;
    o.job_requests_max = 65536;
    o.pool_threads_max = 64;
    accepted(&o);
    o = fresh(NULL);
    o.requests_max = 65537;
    refused(&o, -EINVAL);
    o = fresh(NULL);
    o.job_requests_max = 65537;
    refused(&o, -EINVAL);
    o = fresh(NULL);
    o.pool_threads_max = 65;
    refused(&o, -EINVAL);
}

static void hooks_and_allocator_are_copied(void **state)
{
    blkrepl_context_options o = fresh(NULL);

    (void)state;
    ASSERT_CODE(blkrepl_context_create(&o, &env.ctx), 0);
    memset(&hooks, 0xff, sizeof hooks);
    memset(&allocator, 0xff, sizeof allocator);
    memset(&o, 0xff, sizeof o);

    blkrepl_image *image = NULL;
    ASSERT_CODE(blkrepl_image_open_memory(env.ctx, 100, NULL, &image), 0);
    ASSERT_CODE(write_now(&env, image, 0, "x", 1), 0);
    blkrepl_image_close(image);
    env_close(&env);
}

/* One of everything still gets through. */
static void the_smallest_limits_still_finish_a_backup(void **state)
{
    blkrepl_context_options o = {.struct_size = sizeof o,
                                 .requests_max = 1,
                                 .callbacks_max = 1,
                                 .completions_max = 1,
                                 .copies_max = 1};
    blkrepl_backup_options b = {.struct_size = sizeof b, .workers_max = 1};
    blkrepl_job *job = NULL;

    (void)state;
    env_open(&env, &o, 0);
    tape_init(&disk, 10 * CLUSTER + 77);
    tape_init(&copy, 10 * CLUSTER + 77);
    tape_fill(&disk, 1);
    blkrepl_image *source = tape_open(&disk, &env);
    blkrepl_image *target = tape_open(&copy, &env);
    uint8_t *start = tape_copy(&disk);

    ASSERT_CODE(blkrepl_backup_start(source, target, &b, &job), 0);
    for (unsigned i = 0; i < 20; i++) {
        uint8_t block[100];

        fill(block, sizeof block, i * 20000, 9);
        ASSERT_CODE(write_now(&env, source, i * 20000, block, sizeof block), 0);
    }
    env_drain(&env);
    assert_int_equal(job_info(job).result, BLKREPL_RESULT_DONE);
    assert_same(copy.data, start, disk.info.bytes, "target");
    free(start);
    blkrepl_job_free(job);
    blkrepl_image_close(source);
    blkrepl_image_close(target);
    env_close(&env);
    tape_close(&disk);
    tape_close(&copy);
}

static void texts_are_never_null(void **state)
{
    int major = 0, minor = 0, patch = 0;

    (void)state;
    assert_int_equal(sscanf(blkrepl_version(), "%d.%d.%d", &major, &minor, &patch), 3);
    assert_int_equal(major, BLKREPL_VERSION_MAJOR);
    assert_int_equal(minor, BLKREPL_VERSION_MINOR);
    assert_int_equal(patch, BLKREPL_VERSION_PATCH);
    assert_string_equal(blkrepl_error_text(-123456), "unknown error");
    assert_non_null(blkrepl_error_text(0));
    assert_true(strlen(blkrepl_error_text(-EIO)) > 0);
    assert_string_not_equal(blkrepl_error_text(BLKREPL_ERR_STATE), "unknown error");
    assert_string_not_equal(blkrepl_error_text(BLKREPL_ERR_VERSION), "unknown error");
    assert_non_null(blkrepl_error_text(INT32_MIN));
    assert_non_null(blkrepl_error_text(INT32_MAX));
}

static void the_text_of_a_code_stays_as_it_is(void **state)
{
    char first[200];
    const char *text = blkrepl_error_text(-EIO);

    (void)state;
    snprintf(first, sizeof first, "%s", text);
    for (int code = 0; code > -140; code--) {
        blkrepl_error_text(code);
    }
    assert_string_equal(text, first);
}

static void *message_elsewhere(void *user)
{
    snprintf(user, 100, "%s", blkrepl_error_message());
    return NULL;
}

static void the_message_belongs_to_the_thread_and_outlives_a_success(void **state)
{
    blkrepl_context_options o = fresh(NULL);
    char other[100] = "?", before[400];
    pthread_t thread;

    (void)state;
    o.lane_count = 2000;
    refused(&o, -EINVAL);
    snprintf(before, sizeof before, "%s", blkrepl_error_message());
    o = fresh(NULL);
    accepted(&o);
    assert_string_equal(blkrepl_error_message(), before);
    assert_int_equal(pthread_create(&thread, NULL, message_elsewhere, other), 0);
    pthread_join(thread, NULL);
    assert_string_equal(other, "");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(null_options_mean_all_defaults),
        cmocka_unit_test(only_a_size_means_all_defaults),
        cmocka_unit_test(out_null_is_refused_and_the_sink_released),
        cmocka_unit_test(a_struct_smaller_than_the_first_release_is_refused),
        cmocka_unit_test(a_larger_struct_with_a_zero_tail_is_accepted),
        cmocka_unit_test(a_larger_struct_with_something_in_its_tail_is_of_another_version),
        cmocka_unit_test(unknown_flags_and_reserved_fields_are_refused),
        cmocka_unit_test(one_to_256_lanes_are_accepted),
        cmocka_unit_test(every_allocator_function_is_required),
        cmocka_unit_test(every_hook_may_be_missing),
        cmocka_unit_test(limits_are_checked),
        cmocka_unit_test(hooks_and_allocator_are_copied),
        cmocka_unit_test(the_smallest_limits_still_finish_a_backup),
        cmocka_unit_test(texts_are_never_null),
        cmocka_unit_test(the_text_of_a_code_stays_as_it_is),
        cmocka_unit_test(the_message_belongs_to_the_thread_and_outlives_a_success),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
