/* SPDX-License-Identifier: MIT */
/* The completion contract: each request once, whatever the backend does. */
#include "tape.h"

#define SIZE (64 * KIB)

static struct env env;
static struct tape disk, copy;
static blkrepl_image *image;
static uint8_t buffer[SIZE];

static int set_up(void **state)
{
    (void)state;
    env_open(&env, NULL, 0);
    tape_init(&disk, SIZE);
    disk.hold = OPS_ALL;
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

static void double_completion_is_refused_and_harmless(void **state)
{
    struct req req = {0};

    (void)state;
    ASSERT_CODE(req_read(&req, image, 0, buffer, 512), 0);
    env_drain(&env);
    uint64_t id = tape_forget(&disk, 0);
    ASSERT_CODE(blkrepl_io_complete(env.ctx, id, 0), 0);
    ASSERT_CODE(blkrepl_io_complete(env.ctx, id, -EIO), -ENOENT);
    env_drain(&env);
    ASSERT_CODE(blkrepl_io_complete(env.ctx, id, -EIO), -ENOENT);
    env_drain(&env);
    req_assert_done(&req, 0);
}

static void unknown_ids_are_refused_and_harmless(void **state)
{
    struct req req = {0};

    (void)state;
    ASSERT_CODE(blkrepl_io_complete(env.ctx, 0, 0), -ENOENT);
    ASSERT_CODE(blkrepl_io_complete(env.ctx, 12345, 0), -ENOENT);
    ASSERT_CODE(blkrepl_io_complete(env.ctx, UINT64_MAX, 0), -ENOENT);
    ASSERT_CODE(req_read(&req, image, 0, buffer, 512), 0);
    env_drain(&env);
    uint64_t id = disk.queue[0]->id;
    for (unsigned bit = 0; bit < 64; bit++) {
        ASSERT_CODE(blkrepl_io_complete(env.ctx, id ^ (UINT64_C(1) << bit), 0), -ENOENT);
    }
    env_drain(&env);
    assert_int_equal(req.calls, 0);
    tape_finish(&disk, 0, 0);
    env_drain(&env);
    req_assert_done(&req, 0);
}

/* Ids of the past stay dead however often their slots are used again. */
static void stale_ids_are_refused_and_harmless(void **state)
{
    uint64_t old[200];
    struct req req = {0};

    (void)state;
    for (size_t i = 0; i < ARRAY_COUNT(old); i++) {
        ASSERT_CODE(req_read(&req, image, 0, buffer, 512), 0);
        env_drain(&env);
        old[i] = disk.queue[0]->id;
        for (size_t k = 0; k < i; k++) {
            assert_true(old[k] != old[i]);
            ASSERT_CODE(blkrepl_io_complete(env.ctx, old[k], -EIO), -ENOENT);
        }
        env_drain(&env);
        assert_int_equal(req.calls, 0);
        tape_finish(&disk, 0, 0);
        env_drain(&env);
        req_assert_done(&req, 0);
    }
}

static void a_positive_result_is_refused_and_the_request_stays_in_flight(void **state)
{
    struct req req = {0};

    (void)state;
    ASSERT_CODE(req_read(&req, image, 0, buffer, 512), 0);
    env_drain(&env);
    uint64_t id = disk.queue[0]->id;
    ASSERT_CODE(blkrepl_io_complete(env.ctx, id, 512), -EINVAL);
    ASSERT_CODE(blkrepl_io_complete(env.ctx, id, 1), -EINVAL);
    env_drain(&env);
    assert_int_equal(req.calls, 0);
    tape_finish(&disk, 0, 0);
    env_drain(&env);
    req_assert_done(&req, 0);
}

static void completion_inside_submit_counts_once(void **state)
{
    struct req req[40] = {0};

    (void)state;
    disk.hold = 0;
    for (size_t i = 0; i < ARRAY_COUNT(req); i++) {
        ASSERT_CODE(req_write(&req[i], image, 0, buffer, 512), 0);
        assert_int_equal(req[i].calls, 0); /* callbacks run in polls */
    }
    env_drain(&env);
    for (size_t i = 0; i < ARRAY_COUNT(req); i++) {
        req_assert_done(&req[i], 0);
        assert_true(i == 0 || req[i].order > req[i - 1].order);
    }
}

/* A chain of overlapping writes on a backend that completes at once. */
static void a_long_queue_on_an_inline_backend_does_not_recurse(void **state)
{
    static struct req req[1000];

    (void)state;
    for (size_t i = 0; i < ARRAY_COUNT(req); i++) {
        ASSERT_CODE(req_write(&req[i], image, 0, buffer, 512), 0);
    }
    disk.hold = 0;
    tape_finish_all(&disk, 0, 0);
    env_drain(&env);
    for (size_t i = 0; i < ARRAY_COUNT(req); i++) {
        req_assert_done(&req[i], 0);
    }
}

static void *finish_one(void *user)
{
    (void)user;
    tape_finish(&disk, 0, -EIO);
    return NULL;
}

static void completion_from_another_thread_counts_once(void **state)
{
    struct req req[8] = {0};
    pthread_t thread[8];

    (void)state;
    for (size_t i = 0; i < 8; i++) {
        ASSERT_CODE(req_read(&req[i], image, i * 512, buffer + i * 512, 512), 0);
    }
    env_drain(&env);
    for (size_t i = 0; i < 8; i++) {
        assert_int_equal(pthread_create(&thread[i], NULL, finish_one, NULL), 0);
    }
    for (size_t i = 0; i < 8; i++) {
        pthread_join(thread[i], NULL);
    }
    env_drain(&env);
    for (size_t i = 0; i < 8; i++) {
        req_assert_done(&req[i], -EIO);
    }
}

static void a_refused_request_releases_and_never_calls_back(void **state)
{
    struct req req = {0};

    (void)state;
    ASSERT_CODE(req_read(&req, image, SIZE, buffer, 1), -EINVAL);
    req_assert_rejected(&req);
    env_drain(&env);
    req_assert_rejected(&req);
}

static void missing_parts_of_a_completion_are_left_out(void **state)
{
    struct req req = {0};
    blkrepl_completion full = req_completion(&req);
    blkrepl_completion fn_only = {full.fn, &req, NULL};
    blkrepl_completion release_only = {NULL, &req, full.release};
    blkrepl_iovec iov = {buffer, 512};

    (void)state;
    disk.hold = 0;
    ASSERT_CODE(blkrepl_image_read(image, 0, 0, &iov, 1, 0, &fn_only), 0);
    env_drain(&env);
    assert_int_equal(req.calls, 1);
    assert_int_equal(req.released, 0);
    ASSERT_CODE(blkrepl_image_read(image, 0, 0, &iov, 1, 0, &release_only), 0);
    env_drain(&env);
    assert_int_equal(req.calls, 1);
    assert_int_equal(req.released, 1);
}

/* ---- Calls from inside ----------------------------------------------------------- */

static struct req chain[50];

static void read_again(struct req *req)
{
    int *answer = req->then_user;

    if (req + 1 < chain + ARRAY_COUNT(chain)) {
        req[1].then = read_again;
        req[1].then_user = answer;
        *answer = req_read(req + 1, image, 0, buffer, 512);
    }
}

static void a_callback_may_issue_requests(void **state)
{
    int answer = 0;

    (void)state;
    disk.hold = 0;
    chain[0].then = read_again;
    chain[0].then_user = &answer;
    ASSERT_CODE(req_read(&chain[0], image, 0, buffer, 512), 0);
    env_drain(&env);
    ASSERT_CODE(answer, 0);
    for (size_t i = 0; i < ARRAY_COUNT(chain); i++) {
        req_assert_done(&chain[i], 0);
    }
}

static struct req inner;
static int inner_answer;

static void write_in_submit(void *user, const blkrepl_io *io)
{
    (void)user;
    if (io->opcode == BLKREPL_OP_READ && inner_answer == 1) {
        inner_answer = req_write(&inner, image, 8192, buffer, 512);
    }
}

static void submit_may_issue_requests(void **state)
{
    struct req req = {0};

    (void)state;
    disk.hold = 0;
    disk.on_submit = write_in_submit;
    inner_answer = 1;
    ASSERT_CODE(req_read(&req, image, 0, buffer, 512), 0);
    env_drain(&env);
    ASSERT_CODE(inner_answer, 0);
    req_assert_done(&req, 0);
    req_assert_done(&inner, 0);
}

/* ---- After a cancel ---------------------------------------------------------------- */

static void late_answers_after_a_cancel_are_taken_once(void **state)
{
    blkrepl_job *job = NULL;

    (void)state;
    tape_init(&copy, SIZE);
    blkrepl_image *target = tape_open(&copy, &env);
    disk.hold = 0;
    copy.hold = OPS_ALL;
    fill(disk.data, SIZE, 0, 1);
    ASSERT_CODE(blkrepl_backup_start(image, target, NULL, &job), 0);
    env_drain(&env);
    assert_true(tape_pending(&copy, 0) > 0);
    ASSERT_CODE(blkrepl_job_cancel(job, 0), 0);
    env_drain(&env);
    assert_true(copy.cancels > 0);
    assert_int_equal(job_info(job).state, BLKREPL_JOB_RUNNING);
    while (tape_pending(&copy, 0) > 0) {
        uint64_t id = tape_forget(&copy, 0);

        ASSERT_CODE(blkrepl_io_complete(env.ctx, id, -ECANCELED), 0);
        ASSERT_CODE(blkrepl_io_complete(env.ctx, id, 0), -ENOENT);
        env_drain(&env);
    }
    assert_int_equal(job_info(job).state, BLKREPL_JOB_CONCLUDED);
    assert_int_equal(job_info(job).result, BLKREPL_RESULT_CANCELLED);
    blkrepl_job_free(job);
    blkrepl_image_close(target);
    env_drain(&env);
    tape_close(&copy);
}

int main(void)
{
#define T(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)
    const struct CMUnitTest tests[] = {
        T(double_completion_is_refused_and_harmless),
        T(unknown_ids_are_refused_and_harmless),
        T(stale_ids_are_refused_and_harmless),
        T(a_positive_result_is_refused_and_the_request_stays_in_flight),
        T(completion_inside_submit_counts_once),
        T(a_long_queue_on_an_inline_backend_does_not_recurse),
        T(completion_from_another_thread_counts_once),
        T(a_refused_request_releases_and_never_calls_back),
        T(missing_parts_of_a_completion_are_left_out),
        T(a_callback_may_issue_requests),
        T(submit_may_issue_requests),
        T(late_answers_after_a_cancel_are_taken_once),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
