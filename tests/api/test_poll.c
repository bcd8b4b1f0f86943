/* SPDX-License-Identifier: MIT */
/* Polling: who may, when it sleeps, and what wakes it. */
#include <poll.h>

#include "tape.h"

static struct env env, other;
static struct tape disk, copy;

static void open_disk(unsigned flags)
{
    env_open(&env, NULL, flags);
    tape_init(&disk, 8 * CLUSTER);
}

static bool readable(int timeout_ms)
{
    struct pollfd p = {.fd = blkrepl_poll_fd(env.ctx, 0), .events = POLLIN};

    assert_true(p.fd >= 0);
    return poll(&p, 1, timeout_ms) == 1 && (p.revents & POLLIN);
}

/* Poll and arm until there is nothing to do and the lane is armed. */
static uint64_t arm(void)
{
    return env_deadline(&env);
}

/* ---- Where it is refused ------------------------------------------------------- */

static int answer, answer_other, answer_free;

static void poll_here(void)
{
    answer = blkrepl_poll(env.ctx, 0, 0);
    answer_other = other.ctx ? blkrepl_poll(other.ctx, 0, 0) : 0;
}

static void poll_in_callback(struct req *req)
{
    (void)req;
    poll_here();
}

static void poll_in_submit(void *user, const blkrepl_io *io)
{
    (void)user;
    (void)io;
    poll_here();
}

static void poll_in_cancel(void *user, uint64_t id)
{
    (void)user;
    (void)id;
    poll_here();
    answer_free = blkrepl_context_free(env.ctx);
}

static void poll_in_close(void *user)
{
    (void)user;
    poll_here();
    answer_free = blkrepl_context_free(env.ctx);
}

static void poll_in_event(struct env *e, const blkrepl_event *event)
{
    (void)e;
    (void)event;
    poll_here();
    answer_free = blkrepl_context_free(env.ctx);
}

static void reset_answers(void)
{
    answer = answer_other = answer_free = 99;
}

static void inside_a_callback_it_would_deadlock_but_not_on_another_context(void **state)
{
    struct req req = {.then = poll_in_callback}, in_other = {0};
    blkrepl_image *image, *elsewhere = NULL;
    uint8_t byte = 0;

    (void)state;
    open_disk(0);
    env_open(&other, NULL, 0);
    image = tape_open(&disk, &env);
    ASSERT_CODE(blkrepl_image_open_memory(other.ctx, 10, NULL, &elsewhere), 0);
    ASSERT_CODE(req_read(&in_other, elsewhere, 0, &byte, 1), 0);
    reset_answers();
    ASSERT_CODE(req_read(&req, image, 0, &byte, 1), 0);
    env_drain(&env);
    ASSERT_CODE(answer, -EDEADLK);
    assert_true(answer_other >= 0);
    env_drain(&other);
    req_assert_done(&in_other, 0);
    blkrepl_image_close(elsewhere);
    blkrepl_image_close(image);
    env_close(&env);
    env_close(&other);
    other.ctx = NULL;
    tape_close(&disk);
}

static void inside_submit_it_would_deadlock(void **state)
{
    struct req req = {0};
    uint8_t byte = 0;

    (void)state;
    open_disk(0);
    blkrepl_image *image = tape_open(&disk, &env);
    reset_answers();
    disk.on_submit = poll_in_submit;
    ASSERT_CODE(req_read(&req, image, 0, &byte, 1), 0);
    env_drain(&env);
    ASSERT_CODE(answer, -EDEADLK);
    req_assert_done(&req, 0);
    blkrepl_image_close(image);
    env_close(&env);
    tape_close(&disk);
}

static void inside_events_cancel_and_close_it_would_deadlock(void **state)
{
    blkrepl_job *job = NULL;

    (void)state;
    open_disk(0);
    tape_init(&copy, 8 * CLUSTER);
    blkrepl_image *source = tape_open(&disk, &env);
    blkrepl_image *target = tape_open(&copy, &env);
    disk.hold = BIT(BLKREPL_OP_READ) | BIT(BLKREPL_OP_STATUS);
    disk.on_cancel = poll_in_cancel;
    disk.on_close = poll_in_close;
    env.on_event = poll_in_event;
    reset_answers();
    ASSERT_CODE(blkrepl_backup_start(source, target, NULL, &job), 0);
    env_drain(&env);
    assert_true(env.event_count > 0);
    ASSERT_CODE(answer, -EDEADLK);
    ASSERT_CODE(answer_free, -EBUSY);
    env.on_event = NULL;

    reset_answers();
    assert_true(tape_pending(&disk, 0) > 0);
    ASSERT_CODE(blkrepl_job_cancel(job, 0), 0);
    env_drain(&env);
    assert_true(disk.cancels > 0);
    ASSERT_CODE(answer, -EDEADLK);
    ASSERT_CODE(answer_free, -EBUSY);
    tape_release(&disk, &env);
    blkrepl_job_free(job);

    reset_answers();
    blkrepl_image_close(source);
    env_drain(&env);
    assert_int_equal(disk.closes, 1);
    ASSERT_CODE(answer, -EDEADLK);
    ASSERT_CODE(answer_free, -EBUSY);
    blkrepl_image_close(target);
    env_close(&env);
    tape_close(&disk);
    tape_close(&copy);
}

static void *poll_once(void *user)
{
    *(int *)user = blkrepl_poll(env.ctx, 0, 0);
    return NULL;
}

static void second_poller(struct req *req)
{
    pthread_t thread;

    if (pthread_create(&thread, NULL, poll_once, req->then_user) == 0) {
        pthread_join(thread, NULL);
    }
}

static void a_second_poller_is_busy(void **state)
{
    int result = 99;
    struct req req = {.then = second_poller, .then_user = &result};
    uint8_t byte = 0;

    (void)state;
    open_disk(0);
    blkrepl_image *image = tape_open(&disk, &env);
    ASSERT_CODE(req_read(&req, image, 0, &byte, 1), 0);
    env_drain(&env);
    ASSERT_CODE(result, -EBUSY);
    blkrepl_image_close(image);
    env_close(&env);
    tape_close(&disk);
}

/* ---- What it returns ----------------------------------------------------------- */

static void it_returns_the_number_of_callbacks_at_most_callbacks_max(void **state)
{
    blkrepl_context_options o = {.struct_size = sizeof o, .callbacks_max = 3};
    struct req req[10] = {0};
    uint8_t byte = 0;
    int sum = 0;

    (void)state;
    env_open(&env, &o, 0);
    tape_init(&disk, 4096);
    blkrepl_image *image = tape_open(&disk, &env);
    for (size_t i = 0; i < ARRAY_COUNT(req); i++) {
        ASSERT_CODE(req_read(&req[i], image, i, &byte, 1), 0);
    }
    for (int i = 0; i < 20; i++) {
        int n = blkrepl_poll(env.ctx, 0, 0);

        assert_true(n >= 0 && n <= 3);
        sum += n;
    }
    assert_int_equal(sum, 10);
    blkrepl_image_close(image);
    env_close(&env);
    tape_close(&disk);
}

static void callbacks_run_in_polls_only(void **state)
{
    struct req req = {0};
    uint8_t byte = 0;

    (void)state;
    open_disk(0);
    blkrepl_image *image = tape_open(&disk, &env);
    ASSERT_CODE(req_read(&req, image, 0, &byte, 1), 0);
    ASSERT_CODE(req_flush(&(struct req){0}, image), 0);
    assert_true(blkrepl_context_now(env.ctx) > 0);
    image_info(image);
    assert_int_equal(req.calls, 0);
    assert_true(blkrepl_poll(env.ctx, 0, 0) >= 1);
    req_assert_done(&req, 0);
    blkrepl_image_close(image);
    env_close(&env);
    tape_close(&disk);
}

/* ---- Arming -------------------------------------------------------------------- */

static void arm_says_whether_there_is_work(void **state)
{
    struct req req = {0};
    uint8_t byte = 0;
    uint64_t deadline = 0;

    (void)state;
    open_disk(0);
    blkrepl_image *image = tape_open(&disk, &env);
    assert_true(arm() == BLKREPL_FOREVER);
    disk.hold = BIT(BLKREPL_OP_READ);
    ASSERT_CODE(req_read(&req, image, 0, &byte, 1), 0);
    env_drain(&env);
    ASSERT_CODE(blkrepl_poll_arm(env.ctx, 0, &deadline), 0);
    assert_true(deadline == BLKREPL_FOREVER);
    tape_finish_all(&disk, 0, 0);
    ASSERT_CODE(blkrepl_poll_arm(env.ctx, 0, &deadline), 1);
    env_drain(&env);
    req_assert_done(&req, 0);
    ASSERT_CODE(blkrepl_poll_arm(env.ctx, 0, &deadline), 0);
    ASSERT_CODE(blkrepl_poll_arm(env.ctx, 0, &deadline), 0);
    blkrepl_image_close(image);
    env_close(&env);
    tape_close(&disk);
}

static void *finish_elsewhere(void *user)
{
    (void)user;
    tape_finish_all(&disk, 0, 0);
    return NULL;
}

static void finish_in_a_thread(void)
{
    pthread_t thread;

    assert_int_equal(pthread_create(&thread, NULL, finish_elsewhere, NULL), 0);
    pthread_join(thread, NULL);
}

static void a_completion_makes_an_armed_descriptor_readable_until_the_next_poll(void **state)
{
    struct req req = {0};
    uint8_t byte = 0;

    (void)state;
    open_disk(0);
    blkrepl_image *image = tape_open(&disk, &env);
    disk.hold = BIT(BLKREPL_OP_READ);
    ASSERT_CODE(req_read(&req, image, 0, &byte, 1), 0);
    arm();
    assert_false(readable(0));
    finish_in_a_thread();
    assert_true(readable(5000));
    assert_true(readable(0));
    while (blkrepl_poll(env.ctx, 0, 0) > 0) {
    }
    req_assert_done(&req, 0);
    assert_false(readable(0));
    blkrepl_image_close(image);
    env_close(&env);
    tape_close(&disk);
}

static void without_arming_it_is_not_signalled(void **state)
{
    struct req req[2] = {0};
    uint8_t byte = 0;

    (void)state;
    open_disk(0);
    blkrepl_image *image = tape_open(&disk, &env);
    disk.hold = BIT(BLKREPL_OP_READ);
    ASSERT_CODE(req_read(&req[0], image, 0, &byte, 1), 0);
    assert_int_equal(blkrepl_poll(env.ctx, 0, 0), 0);
    finish_in_a_thread();
    assert_false(readable(0));
    /* A poll disarms, even when nothing had happened. */
    while (blkrepl_poll(env.ctx, 0, 0) > 0) {
    }
    arm();
    assert_int_equal(blkrepl_poll(env.ctx, 0, 0), 0);
    ASSERT_CODE(req_read(&req[1], image, 0, &byte, 1), 0);
    assert_int_equal(blkrepl_poll(env.ctx, 0, 0), 0);
    finish_in_a_thread();
    assert_false(readable(0));
    env_drain(&env);
    req_assert_done(&req[1], 0);
    blkrepl_image_close(image);
    env_close(&env);
    tape_close(&disk);
}

static void wake_makes_an_armed_descriptor_readable(void **state)
{
    (void)state;
    open_disk(0);
    free(disk.data);
    arm();
    ASSERT_CODE(blkrepl_poll_wake(env.ctx, 0), 0);
    assert_true(readable(5000));
    assert_int_equal(blkrepl_poll(env.ctx, 0, 0), 0);
    assert_false(readable(0));
    arm();
    assert_false(readable(0));
    env_close(&env);
}

/* ---- Deadlines ------------------------------------------------------------------- */

static void a_waiting_guest_write_gives_the_deadline_of_its_timeout(void **state)
{
    blkrepl_backup_options o = {.struct_size = sizeof o, .cbw_timeout_ns = 3 * SECOND};
    blkrepl_job *job = NULL;
    struct req req = {0};
    uint8_t data[512] = {1};

    (void)state;
    open_disk(0);
    tape_init(&copy, 8 * CLUSTER);
    blkrepl_image *source = tape_open(&disk, &env);
    blkrepl_image *target = tape_open(&copy, &env);
    disk.hold = BIT(BLKREPL_OP_READ) | BIT(BLKREPL_OP_STATUS);
    ASSERT_CODE(blkrepl_backup_start(source, target, &o, &job), 0);
    assert_true(arm() == BLKREPL_FOREVER);
    atomic_fetch_add(&env.now, SECOND);
    assert_false(readable(0));
    ASSERT_CODE(req_write(&req, source, 5 * CLUSTER, data, sizeof data), 0);
    assert_true(readable(5000)); /* an earlier deadline has appeared */
    uint64_t deadline = arm();
    assert_int_equal(deadline, atomic_load(&env.now) + 3 * SECOND);
    atomic_store(&env.now, deadline - 1);
    assert_true(arm() == deadline);
    assert_int_equal(req.calls, 0);
    atomic_store(&env.now, deadline);
    env_drain(&env);
    req_assert_done(&req, 0); /* the backup has failed instead */
    tape_release(&disk, &env);
    assert_int_equal(job_info(job).error, -ETIMEDOUT);
    blkrepl_job_free(job);
    blkrepl_image_close(source);
    blkrepl_image_close(target);
    env_close(&env);
    tape_close(&disk);
    tape_close(&copy);
}

static void a_speed_limit_gives_a_deadline(void **state)
{
    blkrepl_backup_options o = {.struct_size = sizeof o,
                                .speed_bytes_per_sec = CLUSTER,
                                .cluster_bytes = CLUSTER,
                                .chunk_bytes_max = CLUSTER};
    blkrepl_job *job = NULL;

    (void)state;
    open_disk(0);
    tape_init(&copy, 8 * CLUSTER);
    tape_fill(&disk, 1);
    blkrepl_image *source = tape_open(&disk, &env);
    blkrepl_image *target = tape_open(&copy, &env);
    ASSERT_CODE(blkrepl_backup_start(source, target, &o, &job), 0);
    for (int i = 0; i < 100 && job_info(job).state == BLKREPL_JOB_RUNNING; i++) {
        uint64_t deadline = arm();

        if (job_info(job).state == BLKREPL_JOB_RUNNING) {
            assert_true(deadline != BLKREPL_FOREVER);
            assert_true(deadline > atomic_load(&env.now));
            atomic_store(&env.now, deadline);
        }
    }
    assert_int_equal(job_info(job).result, BLKREPL_RESULT_DONE);
    assert_true(arm() == BLKREPL_FOREVER);
    blkrepl_job_free(job);
    blkrepl_image_close(source);
    blkrepl_image_close(target);
    env_close(&env);
    tape_close(&disk);
    tape_close(&copy);
}

/* ---- Blocking -------------------------------------------------------------------- */

static void a_wake_before_the_poll_is_not_lost(void **state)
{
    (void)state;
    env_open(&env, NULL, ENV_REAL_CLOCK);
    ASSERT_CODE(blkrepl_poll_wake(env.ctx, 0), 0);
    ASSERT_CODE(blkrepl_poll(env.ctx, 0, 100 * SECOND), 0); /* else the test hangs */
    env_close(&env);
}

static void a_timeout_ends_a_poll(void **state)
{
    (void)state;
    env_open(&env, NULL, ENV_REAL_CLOCK);
    uint64_t end = blkrepl_context_now(env.ctx) + 20000000;
    while (blkrepl_context_now(env.ctx) < end) {
        ASSERT_CODE(blkrepl_poll(env.ctx, 0, 1000000), 0);
    }
    env_close(&env);
}

static _Atomic int stop;

static void *poll_until_stopped(void *user)
{
    struct req *req = user;

    while (req->calls == 0) {
        blkrepl_poll(env.ctx, 0, 100 * SECOND);
    }
    atomic_store(&stop, 1);
    return NULL;
}

static void a_completion_wakes_a_sleeping_poll(void **state)
{
    static struct req req;
    uint8_t byte = 0;
    pthread_t thread;

    (void)state;
    open_disk(ENV_REAL_CLOCK);
    blkrepl_image *image = tape_open(&disk, &env);
    disk.hold = BIT(BLKREPL_OP_READ);
    ASSERT_CODE(req_read(&req, image, 0, &byte, 1), 0);
    assert_int_equal(pthread_create(&thread, NULL, poll_until_stopped, &req), 0);
    while (blkrepl_poll(env.ctx, 0, 0) != -EBUSY) {
    }
    tape_finish_all(&disk, 0, 0); /* the thread sleeps, or is about to */
    pthread_join(thread, NULL);
    assert_int_equal(atomic_load(&stop), 1);
    req_assert_done(&req, 0);
    blkrepl_image_close(image);
    env_close(&env);
    tape_close(&disk);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(inside_a_callback_it_would_deadlock_but_not_on_another_context),
        cmocka_unit_test(inside_submit_it_would_deadlock),
        cmocka_unit_test(inside_events_cancel_and_close_it_would_deadlock),
        cmocka_unit_test(a_second_poller_is_busy),
        cmocka_unit_test(it_returns_the_number_of_callbacks_at_most_callbacks_max),
        cmocka_unit_test(callbacks_run_in_polls_only),
        cmocka_unit_test(arm_says_whether_there_is_work),
        cmocka_unit_test(a_completion_makes_an_armed_descriptor_readable_until_the_next_poll),
        cmocka_unit_test(without_arming_it_is_not_signalled),
        cmocka_unit_test(wake_makes_an_armed_descriptor_readable),
        cmocka_unit_test(a_waiting_guest_write_gives_the_deadline_of_its_timeout),
        cmocka_unit_test(a_speed_limit_gives_a_deadline),
        cmocka_unit_test(a_wake_before_the_poll_is_not_lost),
        cmocka_unit_test(a_timeout_ends_a_poll),
        cmocka_unit_test(a_completion_wakes_a_sleeping_poll),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
