/* SPDX-License-Identifier: MIT */
/* blkrepl_context_free(): it names what remains, and loses nothing. */
#include "tape.h"

static struct env env;
static struct tape disk, copy;

static void busy_naming(const char *what)
{
    ASSERT_CODE(blkrepl_context_free(env.ctx), -EBUSY);
    if (!strstr(blkrepl_error_message(), what)) {
        fail_msg("\"%s\" does not name \"%s\"", blkrepl_error_message(), what);
    }
}

static void an_open_image_is_named(void **state)
{
    blkrepl_image_options o = {.struct_size = sizeof o, .name = "the-disk"};
    blkrepl_image *image = NULL;

    (void)state;
    env_open(&env, NULL, 0);
    ASSERT_CODE(blkrepl_image_open_memory(env.ctx, 4096, &o, &image), 0);
    busy_naming("image");
    busy_naming("image");
    blkrepl_image_close(image);
    env_close(&env);
}

static void an_open_job_is_named(void **state)
{
    blkrepl_image *source = NULL, *target = NULL;
    blkrepl_job *job = NULL;

    (void)state;
    env_open(&env, NULL, 0);
    ASSERT_CODE(blkrepl_image_open_memory(env.ctx, 4096, NULL, &source), 0);
    ASSERT_CODE(blkrepl_image_open_memory(env.ctx, 4096, NULL, &target), 0);
    ASSERT_CODE(blkrepl_backup_create(source, target, NULL, &job), 0);
    blkrepl_image_close(source);
    blkrepl_image_close(target);
    busy_naming("job");
    assert_int_equal(job_info(job).state, BLKREPL_JOB_CONCLUDED);
    assert_int_equal(job_info(job).result, BLKREPL_RESULT_CANCELLED);
    blkrepl_job_free(job);
    env_close(&env);
}

static void an_open_bitmap_is_named(void **state)
{
    blkrepl_bitmap_options o = {.struct_size = sizeof o, .name = "the-map"};
    blkrepl_image *image = NULL;
    blkrepl_bitmap *bitmap = NULL;

    (void)state;
    for (int of_image = 0; of_image < 2; of_image++) {
        env_open(&env, NULL, 0);
        ASSERT_CODE(blkrepl_image_open_memory(env.ctx, 4096, NULL, &image), 0);
        ASSERT_CODE(of_image ? blkrepl_bitmap_add(image, &o, &bitmap)
                             : blkrepl_bitmap_create(env.ctx, &o, &bitmap),
                    0);
        blkrepl_image_close(image);
        busy_naming("bitmap");
        busy_naming("bitmap");
        blkrepl_bitmap_free(bitmap);
        env_close(&env);
    }
}

static void bitmaps_without_a_handle_go_with_their_image(void **state)
{
    blkrepl_bitmap_options o = {.struct_size = sizeof o, .name = "the-map"};
    blkrepl_image *image = NULL;
    blkrepl_bitmap *bitmap = NULL;

    (void)state;
    env_open(&env, NULL, 0);
    ASSERT_CODE(blkrepl_image_open_memory(env.ctx, 4096, NULL, &image), 0);
    ASSERT_CODE(blkrepl_bitmap_add(image, &o, &bitmap), 0);
    blkrepl_bitmap_free(bitmap);
    busy_naming("image");
    blkrepl_image_close(image);
    env_close(&env);
}

static void bitmaps_are_shut_down_but_for_query_and_free(void **state)
{
    blkrepl_bitmap_options o = {.struct_size = sizeof o, .name = "the-map"};
    blkrepl_bitmap_info info = {.struct_size = sizeof info};
    blkrepl_image *image = NULL;
    blkrepl_bitmap *bitmap = NULL, *none = NULL;

    (void)state;
    env_open(&env, NULL, 0);
    ASSERT_CODE(blkrepl_image_open_memory(env.ctx, 4096, NULL, &image), 0);
    ASSERT_CODE(blkrepl_bitmap_add(image, &o, &bitmap), 0);
    blkrepl_bitmap_action action = {
        .struct_size = sizeof action, .type = BLKREPL_BITMAP_CLEAR, .bitmap = bitmap};
    const blkrepl_bitmap_action *const actions[] = {&action};
    ASSERT_CODE(blkrepl_bitmap_set(bitmap, 0, 1), 0);
    ASSERT_CODE(blkrepl_context_free(env.ctx), -EBUSY);
    none = bitmap;
    ASSERT_CODE(blkrepl_bitmap_create(env.ctx, &o, &none), -ESHUTDOWN);
    assert_null(none);
    o.name = "another";
    none = bitmap;
    ASSERT_CODE(blkrepl_bitmap_add(image, &o, &none), -ESHUTDOWN);
    assert_null(none);
    ASSERT_CODE(blkrepl_bitmap_transact(env.ctx, actions, 1), -ESHUTDOWN);
    ASSERT_CODE(blkrepl_bitmap_query(bitmap, &info), 0);
    assert_int_equal(info.dirty_bytes, 4096);
    blkrepl_bitmap_free(bitmap);
    blkrepl_image_close(image);
    env_close(&env);
}

static void a_request_in_flight_is_named_and_cancelled(void **state)
{
    uint8_t data[512] = {1};
    struct req req = {0};

    (void)state;
    env_open(&env, NULL, 0);
    tape_init(&disk, 4096);
    blkrepl_image *image = tape_open(&disk, &env);
    disk.hold = BIT(BLKREPL_OP_WRITE);
    ASSERT_CODE(req_write(&req, image, 0, data, sizeof data), 0);
    blkrepl_image_close(image);
    busy_naming("request");
    assert_true(disk.cancels >= 1);
    assert_int_equal(disk.closes, 0);
    assert_int_equal(req.calls, 0);
    assert_int_equal(tape_finish_all(&disk, 0, -ECANCELED), 1);
    env_close(&env);
    req_assert_done(&req, -ECANCELED);
    tape_close(&disk);
}

static void an_open_bracket_is_named_and_may_end_afterwards(void **state)
{
    struct bracket bracket = {0};

    (void)state;
    env_open(&env, NULL, 0);
    tape_init(&disk, 4096);
    blkrepl_image *image = tape_open(&disk, &env);
    ASSERT_CODE(bracket_begin(&bracket, image, BLKREPL_OP_WRITE, 0, 512), 0);
    blkrepl_image_close(image);
    busy_naming("bracket");
    assert_int_equal(disk.closes, 0);
    ASSERT_CODE(blkrepl_write_end(env.ctx, bracket.token, 0, NULL, 0, NULL), 0);
    env_close(&env);
    tape_close(&disk);
}

static void null_does_nothing(void **state)
{
    (void)state;
    ASSERT_CODE(blkrepl_context_free(NULL), 0);
}

static void free_in_callback(struct req *req)
{
    *(int *)req->then_user = blkrepl_context_free(env.ctx);
}

static void inside_a_callback_it_is_busy_and_does_not_crash(void **state)
{
    blkrepl_image *image = NULL;
    int answer = 1;
    struct req req = {.then = free_in_callback, .then_user = &answer};
    uint8_t byte = 0;

    (void)state;
    env_open(&env, NULL, 0);
    ASSERT_CODE(blkrepl_image_open_memory(env.ctx, 4096, NULL, &image), 0);
    ASSERT_CODE(req_read(&req, image, 0, &byte, 1), 0);
    env_drain(&env);
    ASSERT_CODE(answer, -EBUSY);
    req_assert_done(&req, 0);
    blkrepl_image_close(image);
    env_close(&env);
}

static int answer_of_hook;

static void free_in_submit(void *user, const blkrepl_io *io)
{
    (void)user;
    (void)io;
    answer_of_hook = blkrepl_context_free(env.ctx);
}

static void inside_submit_it_is_busy(void **state)
{
    struct req req = {0};
    uint8_t byte = 0;

    (void)state;
    env_open(&env, NULL, 0);
    tape_init(&disk, 4096);
    blkrepl_image *image = tape_open(&disk, &env);
    disk.on_submit = free_in_submit;
    answer_of_hook = 1;
    ASSERT_CODE(req_read(&req, image, 0, &byte, 1), 0);
    ASSERT_CODE(answer_of_hook, -EBUSY);
    disk.on_submit = NULL;
    env_drain(&env);
    req_assert_done(&req, 0);
    blkrepl_image_close(image);
    env_close(&env);
    tape_close(&disk);
}

static void waiting_callbacks_run_inside_it(void **state)
{
    blkrepl_image *image = NULL;
    struct req req = {0};
    uint8_t byte = 0;

    (void)state;
    env_open(&env, NULL, 0);
    ASSERT_CODE(blkrepl_image_open_memory(env.ctx, 4096, NULL, &image), 0);
    ASSERT_CODE(req_read(&req, image, 0, &byte, 1), 0);
    blkrepl_image_close(image);
    assert_int_equal(req.calls, 0);
    int rc = -EBUSY;
    for (int i = 0; i < 100 && rc == -EBUSY; i++) {
        rc = blkrepl_context_free(env.ctx);
    }
    ASSERT_CODE(rc, 0);
    req_assert_done(&req, 0);
    assert_int_equal(env.sink_released, 1);
    assert_int_equal(env.heap.live, 0);
}

static void guest_calls_are_shut_down(blkrepl_image *image)
{
    struct req req = {0};
    struct bracket bracket = {0};
    uint8_t byte = 0;
    blkrepl_extent extent;

    ASSERT_CODE(req_read(&req, image, 0, &byte, 1), -ESHUTDOWN);
    req_assert_rejected(&req);
    ASSERT_CODE(req_write(&req, image, 0, &byte, 1), -ESHUTDOWN);
    req_assert_rejected(&req);
    ASSERT_CODE(req_zeroes(&req, image, 0, 1), -ESHUTDOWN);
    req_assert_rejected(&req);
    ASSERT_CODE(req_discard(&req, image, 0, 1), -ESHUTDOWN);
    req_assert_rejected(&req);
    ASSERT_CODE(req_flush(&req, image), -ESHUTDOWN);
    req_assert_rejected(&req);
    ASSERT_CODE(blkrepl_image_status(image, 0, 0, 1, &extent, 1, NULL), -ESHUTDOWN);
    ASSERT_CODE(bracket_begin(&bracket, image, BLKREPL_OP_WRITE, 0, 512), -ESHUTDOWN);
    assert_int_equal(bracket.token, 0);
    req_assert_rejected(&bracket.go);
}

static void after_the_first_call_all_else_is_shut_down(void **state)
{
    blkrepl_image *image = NULL, *target = NULL, *none = NULL;
    blkrepl_job *job = NULL, *no_job = NULL;
    blkrepl_job_info info = {.struct_size = sizeof info};
    uint64_t deadline = 0;

    (void)state;
    env_open(&env, NULL, 0);
    ASSERT_CODE(blkrepl_image_open_memory(env.ctx, 4096, NULL, &image), 0);
    ASSERT_CODE(blkrepl_image_open_memory(env.ctx, 4096, NULL, &target), 0);
    ASSERT_CODE(blkrepl_backup_create(image, target, NULL, &job), 0);
    ASSERT_CODE(blkrepl_context_free(env.ctx), -EBUSY);

    guest_calls_are_shut_down(image);
    none = image;
    ASSERT_CODE(blkrepl_image_open_memory(env.ctx, 4096, NULL, &none), -ESHUTDOWN);
    assert_null(none);
    ASSERT_CODE(blkrepl_image_open_file(env.ctx, "no-such-file", NULL, NULL, &none), -ESHUTDOWN);
    tape_init(&disk, 4096);
    ASSERT_CODE(blkrepl_image_open(env.ctx, &tape_ops, &disk, NULL, &none), -ESHUTDOWN);
    assert_int_equal(disk.closes, 0);
    free(disk.data);
    ASSERT_CODE(blkrepl_backup_create(image, target, NULL, &no_job), -ESHUTDOWN);
    ASSERT_CODE(blkrepl_backup_start(image, target, NULL, &no_job), -ESHUTDOWN);
    ASSERT_CODE(blkrepl_job_start(job), -ESHUTDOWN);
    ASSERT_CODE(blkrepl_job_pause(job), -ESHUTDOWN);
    ASSERT_CODE(blkrepl_job_resume(job), -ESHUTDOWN);
    ASSERT_CODE(blkrepl_job_set_speed(job, 1), -ESHUTDOWN);

    ASSERT_CODE(blkrepl_job_query(job, &info), 0);
    assert_int_equal(image_info(image).bytes, 4096);
    assert_true(blkrepl_context_now(env.ctx) > 0);
    assert_true(blkrepl_poll(env.ctx, 0, 0) >= 0);
    assert_true(blkrepl_poll_arm(env.ctx, 0, &deadline) >= 0);
    assert_true(blkrepl_poll_fd(env.ctx, 0) >= 0);
    ASSERT_CODE(blkrepl_poll_wake(env.ctx, 0), 0);
    ASSERT_CODE(blkrepl_write_end(env.ctx, 99, 0, NULL, 0, NULL), -ENOENT);
    ASSERT_CODE(blkrepl_write_cancel(env.ctx, 99), -ENOENT);
    ASSERT_CODE(blkrepl_io_complete(env.ctx, 99, 0), -ENOENT);
    blkrepl_job_free(job);
    blkrepl_image_close(image);
    blkrepl_image_close(target);
    env_close(&env);
}

/* A guest write that waits for a copy goes on, the job ends as cancelled. */
static void jobs_are_cancelled_and_what_waited_for_them_is_released(void **state)
{
    uint8_t data[512];
    struct req req = {0};
    blkrepl_job *job = NULL;

    (void)state;
    env_open(&env, NULL, 0);
    tape_init(&disk, 4 * CLUSTER);
    tape_init(&copy, 4 * CLUSTER);
    blkrepl_image *source = tape_open(&disk, &env);
    blkrepl_image *target = tape_open(&copy, &env);
    disk.hold = BIT(BLKREPL_OP_READ) | BIT(BLKREPL_OP_STATUS);
    ASSERT_CODE(blkrepl_backup_start(source, target, NULL, &job), 0);
    fill(data, sizeof data, 0, 3);
    ASSERT_CODE(req_write(&req, source, 3 * CLUSTER, data, sizeof data), 0);
    env_drain(&env);
    assert_false(tape_saw(&disk, BLKREPL_OP_WRITE, 0, 4 * CLUSTER));

    ASSERT_CODE(blkrepl_context_free(env.ctx), -EBUSY);
    env_drain(&env);
    req_assert_done(&req, 0);
    assert_memory_equal(disk.data + 3 * CLUSTER, data, sizeof data);
    tape_release(&disk, &env);
    assert_int_equal(job_info(job).result, BLKREPL_RESULT_CANCELLED);
    blkrepl_job_free(job);
    blkrepl_image_close(source);
    blkrepl_image_close(target);
    env_close(&env);
    tape_close(&disk);
    tape_close(&copy);
}

static void a_guest_write_behind_another_goes_on_after_it(void **state)
{
    uint8_t a[512], b[512];
    struct req first = {0}, second = {0};

    (void)state;
    env_open(&env, NULL, 0);
    tape_init(&disk, 4096);
    blkrepl_image *image = tape_open(&disk, &env);
    disk.hold = BIT(BLKREPL_OP_WRITE);
    memset(a, 1, sizeof a);
    memset(b, 2, sizeof b);
    ASSERT_CODE(req_write(&first, image, 0, a, sizeof a), 0);
    ASSERT_CODE(req_write(&second, image, 0, b, sizeof b), 0);
    ASSERT_CODE(blkrepl_context_free(env.ctx), -EBUSY);
    blkrepl_image_close(image);
    tape_release(&disk, &env);
    req_assert_done(&first, 0);
    req_assert_done(&second, 0);
    assert_memory_equal(disk.data, b, sizeof b);
    env_close(&env);
    tape_close(&disk);
}

/* ---- A blocking poll returns ---------------------------------------------------- */

static _Atomic int poller_out;

static void *poll_long(void *user)
{
    (void)user;
    do {
        blkrepl_poll(env.ctx, 0, 60 * SECOND);
    } while (!atomic_load(&poller_out));
    return NULL;
}

static void a_blocking_poll_returns(void **state)
{
    blkrepl_image *image = NULL;
    pthread_t thread;

    (void)state;
    env_open(&env, NULL, ENV_REAL_CLOCK);
    ASSERT_CODE(blkrepl_image_open_memory(env.ctx, 4096, NULL, &image), 0);
    assert_int_equal(pthread_create(&thread, NULL, poll_long, NULL), 0);
    /* The poller has the lane when a poll here answers -EBUSY. */
    while (blkrepl_poll(env.ctx, 0, 0) != -EBUSY) {
    }
    atomic_store(&poller_out, 1);
    uint64_t before = blkrepl_context_now(env.ctx);
    ASSERT_CODE(blkrepl_context_free(env.ctx), -EBUSY);
    pthread_join(thread, NULL);
    assert_true(blkrepl_context_now(env.ctx) - before < 30 * SECOND);
    blkrepl_image_close(image);
    env_close(&env);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(an_open_image_is_named),
        cmocka_unit_test(an_open_job_is_named),
        cmocka_unit_test(an_open_bitmap_is_named),
        cmocka_unit_test(bitmaps_without_a_handle_go_with_their_image),
        cmocka_unit_test(bitmaps_are_shut_down_but_for_query_and_free),
        cmocka_unit_test(a_request_in_flight_is_named_and_cancelled),
        cmocka_unit_test(an_open_bracket_is_named_and_may_end_afterwards),
        cmocka_unit_test(null_does_nothing),
        cmocka_unit_test(inside_a_callback_it_is_busy_and_does_not_crash),
        cmocka_unit_test(inside_submit_it_is_busy),
        cmocka_unit_test(waiting_callbacks_run_inside_it),
        cmocka_unit_test(after_the_first_call_all_else_is_shut_down),
        cmocka_unit_test(jobs_are_cancelled_and_what_waited_for_them_is_released),
        cmocka_unit_test(a_guest_write_behind_another_goes_on_after_it),
        cmocka_unit_test(a_blocking_poll_returns),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
