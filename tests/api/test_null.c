/* SPDX-License-Identifier: MIT */
/* NULL where an object is due: the documented code, and no crash. */
#include "tape.h"

static struct env env;
static struct tape disk;
static blkrepl_image *image;

static int set_up(void **state)
{
    (void)state;
    env_open(&env, NULL, 0);
    tape_init(&disk, 16384);
    image = tape_open(&disk, &env);
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    blkrepl_image_close(image);
    env_close(&env);
    tape_close(&disk);
    return 0;
}

static void context_functions_refuse_null(void **state)
{
    uint64_t deadline = 0;

    (void)state;
    assert_int_equal(blkrepl_context_now(NULL), 0);
    ASSERT_CODE(blkrepl_poll(NULL, 0, 0), -EINVAL);
    ASSERT_CODE(blkrepl_poll_arm(NULL, 0, &deadline), -EINVAL);
    ASSERT_CODE(blkrepl_poll_arm(env.ctx, 0, NULL), -EINVAL);
    ASSERT_CODE(blkrepl_poll_fd(NULL, 0), -EINVAL);
    ASSERT_CODE(blkrepl_poll_wake(NULL, 0), -EINVAL);
    ASSERT_CODE(blkrepl_io_complete(NULL, 1, 0), -EINVAL);
    ASSERT_CODE(blkrepl_write_end(NULL, 1, 0, NULL, 0, NULL), -EINVAL);
    ASSERT_CODE(blkrepl_write_cancel(NULL, 1), -EINVAL);
}

static void lanes_that_do_not_exist_are_refused(void **state)
{
    uint64_t deadline = 0;
    uint8_t byte = 0;
    blkrepl_iovec iov = {&byte, 1};
    struct req req = {0};
    blkrepl_completion done = req_completion(&req);

    (void)state;
    ASSERT_CODE(blkrepl_poll(env.ctx, 1, 0), -EINVAL);
    ASSERT_CODE(blkrepl_poll_arm(env.ctx, 1, &deadline), -EINVAL);
    ASSERT_CODE(blkrepl_poll_fd(env.ctx, 1), -EINVAL);
    ASSERT_CODE(blkrepl_poll_wake(env.ctx, UINT32_MAX), -EINVAL);
    ASSERT_CODE(blkrepl_image_read(image, 1, 0, &iov, 1, 0, &done), -EINVAL);
    req_assert_rejected(&req);
    req_reset(&req);
    ASSERT_CODE(blkrepl_image_write(image, UINT32_MAX, 0, &iov, 1, 0, &done), -EINVAL);
    req_assert_rejected(&req);
    ASSERT_CODE(blkrepl_image_flush(image, 1, NULL), -EINVAL);
}

static void opening_refuses_null_and_the_caller_keeps_the_backend(void **state)
{
    blkrepl_image *out = image;
    blkrepl_backend_ops ops = tape_ops;

    (void)state;
    ASSERT_CODE(blkrepl_image_open(NULL, &tape_ops, &disk, NULL, &out), -EINVAL);
    assert_null(out);
    ASSERT_CODE(blkrepl_image_open(env.ctx, NULL, &disk, NULL, &out), -EINVAL);
    ASSERT_CODE(blkrepl_image_open(env.ctx, &tape_ops, &disk, NULL, NULL), -EINVAL);
    ops.get_info = NULL;
    out = image;
    ASSERT_CODE(blkrepl_image_open(env.ctx, &ops, &disk, NULL, &out), -EINVAL);
    assert_null(out);
    ops = tape_ops;
    ops.submit = NULL;
    ASSERT_CODE(blkrepl_image_open(env.ctx, &ops, &disk, NULL, &out), -EINVAL);
    assert_int_equal(disk.closes, 0);
    disk.get_infos = 1; /* how many of the refused opens asked is of no matter */

    ASSERT_CODE(blkrepl_image_open_file(NULL, "x", NULL, NULL, &out), -EINVAL);
    ASSERT_CODE(blkrepl_image_open_file(env.ctx, NULL, NULL, NULL, &out), -EINVAL);
    ASSERT_CODE(blkrepl_image_open_file(env.ctx, "x", NULL, NULL, NULL), -EINVAL);
    ASSERT_CODE(blkrepl_image_open_memory(NULL, 1, NULL, &out), -EINVAL);
    ASSERT_CODE(blkrepl_image_open_memory(env.ctx, 1, NULL, NULL), -EINVAL);
}

static void image_functions_refuse_null(void **state)
{
    uint8_t byte = 0;
    blkrepl_iovec iov = {&byte, 1};
    blkrepl_extent extent = {0};
    blkrepl_image_info info = {.struct_size = sizeof info};
    struct req req = {0};
    blkrepl_completion done = req_completion(&req);

    (void)state;
    blkrepl_image_close(NULL);
    ASSERT_CODE(blkrepl_image_query(NULL, &info), -EINVAL);
    ASSERT_CODE(blkrepl_image_query(image, NULL), -EINVAL);
    info.struct_size = sizeof info - 1;
    ASSERT_CODE(blkrepl_image_query(image, &info), -EINVAL);
    info.struct_size = 0;
    ASSERT_CODE(blkrepl_image_query(image, &info), -EINVAL);
    ASSERT_CODE(blkrepl_image_read(NULL, 0, 0, &iov, 1, 0, &done), -EINVAL);
    req_assert_rejected(&req);
    ASSERT_CODE(blkrepl_image_read(image, 0, 0, NULL, 1, 0, NULL), -EINVAL);
    ASSERT_CODE(blkrepl_image_write(NULL, 0, 0, &iov, 1, 0, NULL), -EINVAL);
    ASSERT_CODE(blkrepl_image_write(image, 0, 0, NULL, 3, 0, NULL), -EINVAL);
    ASSERT_CODE(blkrepl_image_write_zeroes(NULL, 0, 0, 1, 0, NULL), -EINVAL);
    ASSERT_CODE(blkrepl_image_discard(NULL, 0, 0, 1, 0, NULL), -EINVAL);
    ASSERT_CODE(blkrepl_image_flush(NULL, 0, NULL), -EINVAL);
    ASSERT_CODE(blkrepl_image_status(NULL, 0, 0, 1, &extent, 1, NULL), -EINVAL);
    ASSERT_CODE(blkrepl_image_status(image, 0, 0, 1, NULL, 1, NULL), -EINVAL);
    ASSERT_CODE(blkrepl_image_status(image, 0, 0, 1, &extent, 0, NULL), -EINVAL);
}

static void requests_nobody_wants_to_know_about_are_carried_out(void **state)
{
    uint8_t bytes[512], back[512];
    blkrepl_iovec iov = {bytes, sizeof bytes};
    blkrepl_completion empty = {0};
    blkrepl_extent extent;

    (void)state;
    fill(bytes, sizeof bytes, 0, 1);
    ASSERT_CODE(blkrepl_image_write(image, 0, 0, &iov, 1, 0, NULL), 0);
    ASSERT_CODE(blkrepl_image_write(image, 0, 512, &iov, 1, 0, &empty), 0);
    ASSERT_CODE(blkrepl_image_read(image, 0, 0, &iov, 1, 0, NULL), 0);
    ASSERT_CODE(blkrepl_image_flush(image, 0, NULL), 0);
    ASSERT_CODE(blkrepl_image_write_zeroes(image, 0, 2048, 1, 0, NULL), 0);
    ASSERT_CODE(blkrepl_image_discard(image, 0, 2048, 1, 0, NULL), 0);
    ASSERT_CODE(blkrepl_image_status(image, 0, 0, 512, &extent, 1, NULL), 0);
    env_drain(&env);
    ASSERT_CODE(read_now(&env, image, 512, back, sizeof back), 0);
    assert_memory_equal(back, bytes, sizeof back);
}

static void brackets_refuse_null(void **state)
{
    blkrepl_bracket what = {.struct_size = sizeof what, .opcode = BLKREPL_OP_WRITE, .bytes = 512};
    struct req req = {0};
    blkrepl_completion go = req_completion(&req);
    blkrepl_completion no_fn = {NULL, &req, go.release};
    uint64_t token = 7;

    (void)state;
    ASSERT_CODE(blkrepl_write_begin(NULL, &what, &go, &token), -EINVAL);
    assert_int_equal(token, 0);
    req_assert_rejected(&req);
    req_reset(&req);
    token = 7;
    ASSERT_CODE(blkrepl_write_begin(image, NULL, &go, &token), -EINVAL);
    assert_int_equal(token, 0);
    req_assert_rejected(&req);
    ASSERT_CODE(blkrepl_write_begin(image, &what, NULL, &token), -EINVAL);
    assert_int_equal(token, 0);
    req_reset(&req);
    ASSERT_CODE(blkrepl_write_begin(image, &what, &no_fn, &token), -EINVAL);
    req_assert_rejected(&req);
    req_reset(&req);
    ASSERT_CODE(blkrepl_write_begin(image, &what, &go, NULL), -EINVAL);
    req_assert_rejected(&req);
}

static void job_functions_refuse_null(void **state)
{
    blkrepl_job_info info = {.struct_size = sizeof info};
    blkrepl_job *job = (blkrepl_job *)&env;

    (void)state;
    ASSERT_CODE(blkrepl_job_start(NULL), -EINVAL);
    ASSERT_CODE(blkrepl_job_pause(NULL), -EINVAL);
    ASSERT_CODE(blkrepl_job_resume(NULL), -EINVAL);
    ASSERT_CODE(blkrepl_job_cancel(NULL, 0), -EINVAL);
    ASSERT_CODE(blkrepl_job_set_speed(NULL, 1), -EINVAL);
    ASSERT_CODE(blkrepl_job_query(NULL, &info), -EINVAL);
    blkrepl_job_free(NULL);
    ASSERT_CODE(blkrepl_backup_create(NULL, image, NULL, &job), -EINVAL);
    assert_null(job);
    ASSERT_CODE(blkrepl_backup_create(image, NULL, NULL, &job), -EINVAL);
    ASSERT_CODE(blkrepl_backup_start(NULL, NULL, NULL, &job), -EINVAL);
    ASSERT_CODE(blkrepl_backup_create(image, image, NULL, NULL), -EINVAL);
    ASSERT_CODE(blkrepl_backup_start(image, image, NULL, NULL), -EINVAL);
}

static void job_query_checks_its_struct(void **state)
{
    blkrepl_image *target = NULL;
    blkrepl_job *job = NULL;
    blkrepl_job_info info;

    (void)state;
    memset(&info, 0x77, sizeof info);
    info.struct_size = offsetof(blkrepl_job_info, offloaded_bytes) - 1;
    ASSERT_CODE(blkrepl_image_open_memory(env.ctx, 16384, NULL, &target), 0);
    ASSERT_CODE(blkrepl_backup_create(image, target, NULL, &job), 0);
    ASSERT_CODE(blkrepl_job_query(job, NULL), -EINVAL);
    ASSERT_CODE(blkrepl_job_query(job, &info), -EINVAL);
    /* A host of the first release gets what it knows, and no byte more. */
    info.struct_size = offsetof(blkrepl_job_info, offloaded_bytes);
    ASSERT_CODE(blkrepl_job_query(job, &info), 0);
    assert_int_equal(info.state, BLKREPL_JOB_CREATED);
    assert_true(info.offloaded_bytes == UINT64_C(0x7777777777777777));
    ASSERT_CODE(blkrepl_backup_create(image, target, NULL, NULL), -EINVAL);
    blkrepl_job_free(job);
    blkrepl_image_close(target);
}

static blkrepl_bitmap *some_bitmap(uint64_t bytes)
{
    blkrepl_bitmap_options o = {.struct_size = sizeof o, .bytes = bytes, .granularity_bytes = 512};
    blkrepl_bitmap *bitmap = NULL;

    ASSERT_CODE(blkrepl_bitmap_create(env.ctx, &o, &bitmap), 0);
    return bitmap;
}

static void bitmaps_are_made_and_found_with_objects_only(void **state)
{
    blkrepl_bitmap_options o = {.struct_size = sizeof o, .name = "b"};
    blkrepl_bitmap *out = (blkrepl_bitmap *)&env;

    (void)state;
    ASSERT_CODE(blkrepl_bitmap_create(NULL, NULL, &out), -EINVAL);
    assert_null(out);
    ASSERT_CODE(blkrepl_bitmap_create(env.ctx, NULL, NULL), -EINVAL);
    out = (blkrepl_bitmap *)&env;
    ASSERT_CODE(blkrepl_bitmap_add(NULL, &o, &out), -EINVAL);
    assert_null(out);
    ASSERT_CODE(blkrepl_bitmap_add(image, &o, NULL), -EINVAL);
    ASSERT_CODE(blkrepl_bitmap_find(image, "b", &out), -ENOENT); /* it was not made */
    out = (blkrepl_bitmap *)&env;
    ASSERT_CODE(blkrepl_bitmap_find(NULL, "b", &out), -EINVAL);
    assert_null(out);
    out = (blkrepl_bitmap *)&env;
    ASSERT_CODE(blkrepl_bitmap_find(image, NULL, &out), -EINVAL);
    assert_null(out);
    ASSERT_CODE(blkrepl_bitmap_find(image, "b", NULL), -EINVAL);
    out = (blkrepl_bitmap *)&env;
    ASSERT_CODE(blkrepl_bitmap_next(NULL, 0, &out), -EINVAL);
    assert_null(out);
    ASSERT_CODE(blkrepl_bitmap_next(image, 0, NULL), -EINVAL);
    blkrepl_bitmap_free(NULL);
}

static void bitmap_verbs_refuse_null(void **state)
{
    blkrepl_bitmap *bitmap = some_bitmap(16384);
    blkrepl_bitmap *sources[] = {bitmap, NULL};

    (void)state;
    ASSERT_CODE(blkrepl_bitmap_remove(NULL), -EINVAL);
    ASSERT_CODE(blkrepl_bitmap_enable(NULL), -EINVAL);
    ASSERT_CODE(blkrepl_bitmap_disable(NULL), -EINVAL);
    ASSERT_CODE(blkrepl_bitmap_clear(NULL), -EINVAL);
    ASSERT_CODE(blkrepl_bitmap_merge(NULL, sources, 1), -EINVAL);
    ASSERT_CODE(blkrepl_bitmap_merge(bitmap, NULL, 1), -EINVAL);
    ASSERT_CODE(blkrepl_bitmap_merge(bitmap, sources, 2), -EINVAL);
    ASSERT_CODE(blkrepl_bitmap_freeze(NULL), -EINVAL);
    ASSERT_CODE(blkrepl_bitmap_abdicate(NULL), -EINVAL);
    ASSERT_CODE(blkrepl_bitmap_reclaim(NULL), -EINVAL);
    ASSERT_CODE(blkrepl_bitmap_set(NULL, 0, 1), -EINVAL);
    ASSERT_CODE(blkrepl_bitmap_reset(NULL, 0, 512), -EINVAL);
    ASSERT_CODE(blkrepl_bitmap_invert(NULL), -EINVAL);
    ASSERT_CODE(blkrepl_bitmap_intersect(NULL, bitmap), -EINVAL);
    ASSERT_CODE(blkrepl_bitmap_intersect(bitmap, NULL), -EINVAL);
    ASSERT_CODE(blkrepl_bitmap_subtract(NULL, bitmap), -EINVAL);
    ASSERT_CODE(blkrepl_bitmap_subtract(bitmap, NULL), -EINVAL);
    ASSERT_CODE(blkrepl_bitmap_resize(NULL, 512), -EINVAL);
    blkrepl_bitmap_free(bitmap);
}

static void looks_into_a_bitmap_refuse_null(void **state)
{
    blkrepl_bitmap *bitmap = some_bitmap(16384);
    blkrepl_bitmap_info info = {.struct_size = sizeof info};
    uint64_t number = 0, list[2];
    blkrepl_area area;

    (void)state;
    ASSERT_CODE(blkrepl_bitmap_query(NULL, &info), -EINVAL);
    ASSERT_CODE(blkrepl_bitmap_query(bitmap, NULL), -EINVAL);
    ASSERT_CODE(blkrepl_bitmap_get(NULL, 0), -EINVAL);
    ASSERT_CODE(blkrepl_bitmap_next_dirty(NULL, 0, 1, &number), -EINVAL);
    ASSERT_CODE(blkrepl_bitmap_next_dirty(bitmap, 0, 1, NULL), -EINVAL);
    ASSERT_CODE(blkrepl_bitmap_next_clean(NULL, 0, 1, &number), -EINVAL);
    ASSERT_CODE(blkrepl_bitmap_next_clean(bitmap, 0, 1, NULL), -EINVAL);
    ASSERT_CODE(blkrepl_bitmap_next_area(NULL, 0, 1, 0, &area), -EINVAL);
    ASSERT_CODE(blkrepl_bitmap_next_area(bitmap, 0, 1, 0, NULL), -EINVAL);
    ASSERT_CODE(blkrepl_bitmap_status(NULL, 0, 1, &number), -EINVAL);
    ASSERT_CODE(blkrepl_bitmap_status(bitmap, 0, 1, NULL), -EINVAL);
    ASSERT_CODE(blkrepl_bitmap_iterate(NULL, &number, list, 2), -EINVAL);
    ASSERT_CODE(blkrepl_bitmap_iterate(bitmap, NULL, list, 2), -EINVAL);
    ASSERT_CODE(blkrepl_bitmap_iterate(bitmap, &number, NULL, 2), -EINVAL);
    ASSERT_CODE(blkrepl_bitmap_iterate(bitmap, &number, list, 0), -EINVAL);
    ASSERT_CODE(blkrepl_bitmap_sha256(NULL, (uint8_t *)list), -EINVAL);
    ASSERT_CODE(blkrepl_bitmap_sha256(bitmap, NULL), -EINVAL);
    ASSERT_CODE(blkrepl_bitmap_validate(NULL), -EINVAL);
    assert_int_equal(blkrepl_bitmap_part_alignment(NULL), 0);
    blkrepl_bitmap_free(bitmap);
}

static void saving_and_loading_refuse_null(void **state)
{
    blkrepl_bitmap *bitmap = some_bitmap(16384);
    uint64_t number = 4;
    uint8_t data[4] = {0};

    (void)state;
    ASSERT_CODE(blkrepl_bitmap_save(NULL, 0, 16384, data, &number), -EINVAL);
    ASSERT_CODE(blkrepl_bitmap_save(bitmap, 0, 16384, data, NULL), -EINVAL);
    ASSERT_CODE(blkrepl_bitmap_load_begin(NULL), -EINVAL);
    ASSERT_CODE(blkrepl_bitmap_load_begin(bitmap), 0);
    ASSERT_CODE(blkrepl_bitmap_load(NULL, 0, 16384, data, 4), -EINVAL);
    ASSERT_CODE(blkrepl_bitmap_load(bitmap, 0, 16384, NULL, 4), -EINVAL);
    ASSERT_CODE(blkrepl_bitmap_load_zeroes(NULL, 0, 16384), -EINVAL);
    ASSERT_CODE(blkrepl_bitmap_load_ones(NULL, 0, 16384), -EINVAL);
    ASSERT_CODE(blkrepl_bitmap_load_finish(NULL), -EINVAL);
    ASSERT_CODE(blkrepl_bitmap_load(bitmap, 0, 16384, data, 4), 0);
    ASSERT_CODE(blkrepl_bitmap_load_finish(bitmap), 0);
    blkrepl_bitmap_free(bitmap);
}

/* A caller compiled with a newer header gets zeroes for what we do not know. */
static void queries_fill_what_they_know_and_zero_the_rest(void **state)
{
    struct {
        blkrepl_image_info known;
        uint64_t unknown[3];
    } newer;

    (void)state;
    memset(&newer, 0xee, sizeof newer);
    newer.known.struct_size = sizeof newer;
    ASSERT_CODE(blkrepl_image_query(image, &newer.known), 0);
    assert_int_equal(newer.known.bytes, 16384);
    assert_true(all_zero(newer.unknown, sizeof newer.unknown));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(context_functions_refuse_null),
        cmocka_unit_test(lanes_that_do_not_exist_are_refused),
        cmocka_unit_test(opening_refuses_null_and_the_caller_keeps_the_backend),
        cmocka_unit_test(image_functions_refuse_null),
        cmocka_unit_test(requests_nobody_wants_to_know_about_are_carried_out),
        cmocka_unit_test(brackets_refuse_null),
        cmocka_unit_test(job_functions_refuse_null),
        cmocka_unit_test(job_query_checks_its_struct),
        cmocka_unit_test(bitmaps_are_made_and_found_with_objects_only),
        cmocka_unit_test(bitmap_verbs_refuse_null),
        cmocka_unit_test(looks_into_a_bitmap_refuse_null),
        cmocka_unit_test(saving_and_loading_refuse_null),
        cmocka_unit_test(queries_fill_what_they_know_and_zero_the_rest),
    };

    return cmocka_run_group_tests(tests, set_up, tear_down);
}
