/* SPDX-License-Identifier: MIT */
/* What once went wrong and was found by reading, not by a test of its subject. */
#include "tape.h"

#define CLUSTERS 64
#define SIZE (CLUSTERS * CLUSTER)
#define QUEUED 16

static struct env env;
static struct tape disk, copy, copy2;
static blkrepl_image *source, *target, *target2;
static blkrepl_job *job, *job2;
static blkrepl_backup_options o;
static uint8_t data[CLUSTER];

static int set_up(void **state)
{
    (void)state;
    env_open(&env, NULL, 0);
    tape_init(&disk, SIZE);
    tape_init(&copy, SIZE);
    tape_init(&copy2, SIZE);
    tape_fill(&disk, 1);
    source = target = target2 = NULL;
    job = job2 = NULL;
    o = (blkrepl_backup_options){.struct_size = sizeof o,
                                 .cluster_bytes = CLUSTER,
                                 .chunk_bytes_max = CLUSTER,
                                 .workers_max = 1,
                                 .reserve_bytes = 4 * CLUSTER,
                                 .cbw_timeout_ns = BLKREPL_FOREVER};
    fill(data, sizeof data, 0, 200);
    return 0;
}

/* The tapes are opened by the test, which may change what they declare. */
static void open_images(void)
{
    source = tape_open(&disk, &env);
    target = tape_open(&copy, &env);
    target2 = tape_open(&copy2, &env);
}

static int tear_down(void **state)
{
    (void)state;
    for (int i = 0; i < 3; i++) {
        tape_release(&disk, &env);
        tape_release(&copy, &env);
        tape_release(&copy2, &env);
    }
    blkrepl_job_free(job);
    blkrepl_job_free(job2);
    blkrepl_image_close(source);
    blkrepl_image_close(target);
    blkrepl_image_close(target2);
    env_close(&env);
    tape_close(&disk);
    tape_close(&copy);
    tape_close(&copy2);
    return 0;
}

/* For a test that needs a context of its own. */
static int set_up_alone(void **state)
{
    (void)state;
    tape_init(&disk, SIZE);
    tape_init(&copy, SIZE);
    tape_fill(&disk, 1);
    job = NULL;
    return 0;
}

/* Started and paused: only what the guest asks for is copied. */
static void start_paused(uint32_t policy, blkrepl_image *to, blkrepl_job **out)
{
    o.on_cbw_error = policy;
    ASSERT_CODE(blkrepl_backup_create(source, to, &o, out), 0);
    ASSERT_CODE(blkrepl_job_pause(*out), 0);
    ASSERT_CODE(blkrepl_job_start(*out), 0);
    env_drain(&env);
}

/* ---- A guest that does not stop --------------------------------------------------------- */

static bool reading; /* whether the reads go on */

static void read_again(struct req *req)
{
    static uint8_t out[512];

    if (reading) {
        ASSERT_CODE(req_read(req, source, 32 * CLUSTER, out, sizeof out), 0);
    }
}

/* More reads than the disk takes: its queue is never empty. */
static void start_reading(struct req *reads, unsigned count)
{
    reading = true;
    for (unsigned i = 0; i < count; i++) {
        reads[i].then = read_again;
        read_again(&reads[i]);
    }
}

/* The background copy's read stands behind all of the guest's, until the guest
 * waits for it. */
static void write_to_claimed(uint32_t policy)
{
    static struct req reads[QUEUED];
    static struct req req;
    int steps = 0;

    disk.info.queue_depth = 8;
    disk.info.opcodes = OPS_RW | BIT(BLKREPL_OP_FLUSH);
    disk.hold = BIT(BLKREPL_OP_READ);
    open_images();
    start_reading(reads, QUEUED);
    o.on_cbw_error = policy;
    ASSERT_CODE(blkrepl_backup_start(source, target, &o, &job), 0);
    env_drain(&env);
    assert_false(tape_saw(&disk, BLKREPL_OP_READ, 0, CLUSTER));
    ASSERT_CODE(req_write(&req, source, 0, data, 4096), 0);
    for (; steps < 4 * QUEUED && REQ_PENDING(&req); steps++) {
        tape_finish(&disk, 0, 0);
        env_drain(&env);
    }
    reading = false;
    assert_true(steps < 4 * QUEUED);
    req_assert_done(&req, 0);
    assert_int_equal(job_info(job).error_count, 0);
}

static void a_write_to_a_claimed_cluster_does_not_wait_behind_the_guest(void **state)
{
    (void)state;
    write_to_claimed(BLKREPL_CBW_BACKUP_FAILS);
}

static void nor_if_the_guests_write_may_fail(void **state)
{
    (void)state;
    write_to_claimed(BLKREPL_CBW_GUEST_WRITE_FAILS);
}

/* Every callback makes the next one, so a poll always has callbacks_max of them. */
static void events_pass(uint32_t callbacks_max)
{
    static struct req reads[2];
    blkrepl_context_options base = {.callbacks_max = callbacks_max};

    env_open(&env, &base, 0);
    source = tape_open(&disk, &env);
    target = tape_open(&copy, &env);
    start_reading(reads, 2);
    ASSERT_CODE(blkrepl_backup_start(source, target, NULL, &job), 0);
    uint64_t id = job_info(job).id;
    for (int i = 0; i < 2000; i++) {
        assert_true(blkrepl_poll(env.ctx, 0, 0) >= 0);
    }
    assert_int_equal(job_info(job).result, BLKREPL_RESULT_DONE);
    assert_int_equal(env_count(&env, BLKREPL_EVENT_JOB_STATE, id), 1);
    assert_int_equal(env_count(&env, BLKREPL_EVENT_JOB_DONE, id), 1);
    reading = false;
    env_drain(&env);
    blkrepl_job_free(job);
    blkrepl_image_close(source);
    blkrepl_image_close(target);
    env_close(&env);
    tape_close(&disk);
    tape_close(&copy);
}

static void events_come_though_callbacks_keep_coming(void **state)
{
    (void)state;
    events_pass(0);
}

static void and_callbacks_though_events_come_one_at_a_time(void **state)
{
    (void)state;
    events_pass(1);
}

/* ---- Holes ------------------------------------------------------------------------------ */

static void a_write_into_a_hole_waits_for_a_chunk_of_it(void **state)
{
    static struct req req;
    int writes = 0;

    (void)state;
    memset(disk.data, 0, SIZE);
    copy.info.opcodes = OPS_RW | BIT(BLKREPL_OP_FLUSH);
    copy.hold = BIT(BLKREPL_OP_WRITE);
    open_images();
    o.on_cbw_error = BLKREPL_CBW_GUEST_WRITE_FAILS;
    ASSERT_CODE(blkrepl_backup_start(source, target, &o, &job), 0);
    for (int i = 0; i < 3; i++) {
        env_drain(&env);
        assert_int_equal(tape_pending(&copy, BLKREPL_OP_WRITE), 1);
        tape_finish(&copy, 0, 0);
    }
    env_drain(&env);
    ASSERT_CODE(req_write(&req, source, 40 * CLUSTER, data, 4096), 0);
    env_drain(&env);
    for (; writes < 4 && REQ_PENDING(&req); writes++) {
        tape_finish(&copy, 0, 0);
        env_drain(&env);
    }
    assert_int_not_equal(writes, 0);
    req_assert_done(&req, 0);
}

/* ---- Limits of a context ---------------------------------------------------------------- */

static void create_with(const blkrepl_context_options *base, int want)
{
    blkrepl_hooks hooks;
    blkrepl_allocator allocator;

    memset(&env, 0, sizeof env);
    pthread_mutex_init(&env.heap.lock, NULL);
    blkrepl_context_options options = env_options(&env, base, 0, &hooks, &allocator);
    ASSERT_CODE(blkrepl_context_create(&options, &env.ctx), want);
    if (want == 0) {
        env_close(&env);
        return;
    }
    assert_null(env.ctx);
    assert_int_equal(env.sink_released, 1);
    assert_int_equal(env.heap.live, 0);
    pthread_mutex_destroy(&env.heap.lock);
}

static void counts_per_call_have_a_limit(void **state)
{
    static const uint32_t over[] = {65537, 0x80000000, UINT32_MAX};

    (void)state;
    create_with(&(blkrepl_context_options){.callbacks_max = 65536,
                                           .completions_max = 65536,
                                           .copies_max = 65536},
                0);
    for (size_t i = 0; i < ARRAY_COUNT(over); i++) {
        create_with(&(blkrepl_context_options){.callbacks_max = over[i]}, -EINVAL);
        create_with(&(blkrepl_context_options){.completions_max = over[i]}, -EINVAL);
        create_with(&(blkrepl_context_options){.copies_max = over[i]}, -EINVAL);
    }
}

static void count_release(void *user)
{
    unsigned *released = user;

    ++*released;
}

static void context_free_is_not_done_before_every_release_has_run(void **state)
{
    unsigned released = 0;
    blkrepl_context_options base = {.callbacks_max = 1};
    blkrepl_image_options options = {
        .struct_size = sizeof options, .user = &released, .release = count_release};
    blkrepl_image *images[QUEUED];

    (void)state;
    env_open(&env, &base, 0);
    for (size_t i = 0; i < QUEUED; i++) {
        ASSERT_CODE(blkrepl_image_open_memory(env.ctx, MIB, &options, &images[i]), 0);
    }
    for (size_t i = 0; i < QUEUED; i++) {
        blkrepl_image_close(images[i]);
    }
    env_close(&env);
    assert_int_equal(released, QUEUED);
}

/* ---- Who waits for a job holds nothing that others need --------------------------------- */

static void zeroes_that_wait_hold_no_bounce_buffer(void **state)
{
    static struct req zeroes[QUEUED], stuck[2];
    static uint8_t out[4096];
    static struct req even, odd, write;

    (void)state;
    disk.info.request_alignment = 4096;
    copy.info.request_alignment = 4096;
    open_images();
    o.reserve_bytes = CLUSTER;
    start_paused(BLKREPL_CBW_BACKUP_FAILS, target, &job);
    for (unsigned i = 0; i < QUEUED; i++) {
        ASSERT_CODE(write_now(&env, source, 2 * i * CLUSTER, data, 4096), 0);
    }
    copy.hold = OPS_ALL; /* these two use up the buffers */
    for (unsigned i = 0; i < 2; i++) {
        ASSERT_CODE(req_write(&stuck[i], source, (50 + i) * CLUSTER, data, 4096), 0);
        env_drain(&env);
    }
    for (unsigned i = 0; i < QUEUED; i++) { /* from a saved cluster into one that is not */
        uint64_t at = (2 * i + 1) * CLUSTER - 2048;

        ASSERT_CODE(req_zeroes(&zeroes[i], source, at, 2048 + 8192), 0);
    }
    env_drain(&env);
    assert_int_equal(zeroes[0].calls, 0);
    ASSERT_CODE(req_read(&even, source, 60 * CLUSTER, out, sizeof out), 0);
    env_drain(&env);
    ASSERT_CODE(req_read(&odd, source, 61 * CLUSTER + 512, out, 512), 0);
    ASSERT_CODE(req_write(&write, source, 512, data, 512), 0);
    env_drain(&env);
    req_assert_done(&even, 0);
    req_assert_done(&odd, 0);
    req_assert_done(&write, 0);
    assert_memory_equal(out, disk.data + 61 * CLUSTER + 512, 512);
    for (int i = 0; i < 3; i++) {
        tape_release(&copy, &env);
    }
    for (unsigned i = 0; i < QUEUED; i++) {
        req_assert_done(&zeroes[i], 0);
    }
}

/* The tapes have data for their first clusters only; nothing else is touched. */
static void a_vast_discard_is_done_in_steps(void **state)
{
    static uint8_t out[512];
    static struct req discard, read;
    int polls = 0;

    (void)state;
    disk.info.bytes = UINT64_C(1) << 42;
    copy.info.bytes = UINT64_C(1) << 42;
    open_images();
    o.cluster_bytes = o.chunk_bytes_max = o.reserve_bytes = 16 * MIB;
    start_paused(BLKREPL_CBW_BACKUP_FAILS, target, &job);
    ASSERT_CODE(req_discard(&discard, source, 0, disk.info.bytes), 0);
    ASSERT_CODE(req_read(&read, source, 512, out, sizeof out), 0);
    assert_true(blkrepl_poll(env.ctx, 0, 0) >= 0);
    assert_int_equal(discard.calls, 0); /* neither the call nor a poll does all of it */
    assert_int_equal(tape_submitted(&disk, BLKREPL_OP_READ), 1);
    for (; polls < 1000 && (REQ_PENDING(&discard) || REQ_PENDING(&read)); polls++) {
        assert_true(blkrepl_poll(env.ctx, 0, 0) >= 0);
    }
    req_assert_done(&discard, 0);
    req_assert_done(&read, 0);
    assert_true(read.order < discard.order);
    assert_int_equal(tape_submitted(&disk, BLKREPL_OP_DISCARD), 0);
}

/* ---- What a job tells ------------------------------------------------------------------- */

static void failed_tells_the_error_that_ended_the_job(void **state)
{
    struct req req = {0};

    (void)state;
    open_images();
    start_paused(BLKREPL_CBW_GUEST_WRITE_FAILS, target, &job);
    copy.fail[BLKREPL_OP_WRITE] = -ENOSPC;
    ASSERT_CODE(req_write(&req, source, 5 * CLUSTER, data, 4096), 0);
    env_drain(&env);
    req_assert_done(&req, -ENOSPC);
    blkrepl_job_info info = job_info(job);
    assert_int_equal(info.state, BLKREPL_JOB_RUNNING);
    assert_int_equal(info.error_side, BLKREPL_SIDE_TARGET);
    assert_int_equal(info.error_offset, 5 * CLUSTER);

    copy.fail[BLKREPL_OP_WRITE] = 0;
    disk.fail[BLKREPL_OP_READ] = -EIO;
    ASSERT_CODE(blkrepl_job_resume(job), 0);
    env_drain(&env);
    info = job_info(job);
    assert_int_equal(info.result, BLKREPL_RESULT_FAILED);
    ASSERT_CODE(info.error, -EIO);
    assert_int_equal(info.error_side, BLKREPL_SIDE_SOURCE);
    assert_non_null(strstr(info.message, "source read"));
    ASSERT_CODE(env_event(&env, BLKREPL_EVENT_JOB_DONE, info.id, 0)->error, -EIO);
    disk.fail[BLKREPL_OP_READ] = 0;
}

/* Each job's reads come back one by one, so the write asks both jobs again and again. */
static void a_write_is_counted_once_by_each_job_it_waits_for(void **state)
{
    static uint8_t wide[10 * CLUSTER];
    static struct req req;

    (void)state;
    open_images();
    o.reserve_bytes = 2 * CLUSTER;
    start_paused(BLKREPL_CBW_GUEST_WRITE_FAILS, target, &job);
    start_paused(BLKREPL_CBW_GUEST_WRITE_FAILS, target2, &job2);
    disk.hold = BIT(BLKREPL_OP_READ);
    copy.hold = copy2.hold = OPS_ALL;
    ASSERT_CODE(req_write(&req, source, CLUSTER, wide, sizeof wide), 0);
    for (int i = 0; i < 1000 && REQ_PENDING(&req); i++) {
        struct tape *tapes[] = {&disk, &copy, &copy2};
        struct tape *next = tapes[i % 3];

        env_drain(&env);
        if (tape_pending(next, 0) > 0) {
            tape_finish(next, 0, 0);
        }
        env_drain(&env);
    }
    req_assert_done(&req, 0);
    assert_int_equal(job_info(job).guest_copies_count, 10);
    assert_int_equal(job_info(job2).guest_copies_count, 10);
    assert_int_equal(job_info(job).guest_waits_count, 1);
    assert_int_equal(job_info(job2).guest_waits_count, 1);
}

/* ---- Cancelling ------------------------------------------------------------------------- */

/* A backend whose requests end only when they are cancelled. */
static void end_the_cancelled(void *user, uint64_t id)
{
    struct tape *t = user;

    for (size_t i = 0; i < t->queue_count; i++) {
        if (t->queue[i]->id == id) {
            ASSERT_CODE(tape_finish_as(t, (int)i, -ECANCELED, false), 0);
            return;
        }
    }
}

static void context_free_cancels_what_was_submitted_after_its_first_call(void **state)
{
    static struct req reads[10];
    static uint8_t out[10][512];

    (void)state;
    env_open(&env, NULL, 0);
    tape_init(&disk, SIZE);
    disk.info.queue_depth = 4;
    disk.hold = BIT(BLKREPL_OP_READ);
    disk.on_cancel = end_the_cancelled;
    disk.hook_user = &disk;
    source = tape_open(&disk, &env);
    for (unsigned i = 0; i < 10; i++) {
        ASSERT_CODE(req_read(&reads[i], source, i * 512, out[i], 512), 0);
    }
    assert_int_equal(tape_pending(&disk, BLKREPL_OP_READ), 4);
    blkrepl_image_close(source);
    env_close(&env);
    for (unsigned i = 0; i < 10; i++) {
        req_assert_done(&reads[i], -ECANCELED);
    }
    tape_close(&disk);
}

static struct bracket bracket;
static int cancel_answer;

static void cancel_in_submit(void *user, const blkrepl_io *io)
{
    (void)user;
    if (io->opcode == BLKREPL_OP_READ && cancel_answer == INT32_MIN) {
        cancel_answer = blkrepl_write_cancel(env.ctx, bracket.token);
    }
}

static void a_begin_that_is_cancelled_in_submit_answers_wait(void **state)
{
    (void)state;
    open_images();
    start_paused(BLKREPL_CBW_BACKUP_FAILS, target, &job);
    disk.on_submit = cancel_in_submit;
    cancel_answer = INT32_MIN;
    bracket = (struct bracket){0};
    ASSERT_CODE(bracket_begin(&bracket, source, BLKREPL_OP_WRITE, 0, 4096), BLKREPL_WAIT);
    ASSERT_CODE(cancel_answer, BLKREPL_WAIT);
    assert_int_equal(bracket.go.released, 0);
    env_drain(&env);
    req_assert_done(&bracket.go, -ECANCELED);
    ASSERT_CODE(blkrepl_write_end(env.ctx, bracket.token, 0, NULL, 0, NULL), -ENOENT);
    disk.on_submit = NULL;
}

static void a_begin_that_fails_at_once_answers_wait(void **state)
{
    (void)state;
    open_images();
    start_paused(BLKREPL_CBW_GUEST_WRITE_FAILS, target, &job);
    disk.fail[BLKREPL_OP_READ] = -EIO;
    bracket = (struct bracket){0};
    ASSERT_CODE(bracket_begin(&bracket, source, BLKREPL_OP_WRITE, 0, 4096), BLKREPL_WAIT);
    assert_true(bracket.token != 0 && bracket.token != UINT64_MAX);
    env_drain(&env);
    req_assert_done(&bracket.go, -EIO);
    ASSERT_CODE(blkrepl_write_end(env.ctx, bracket.token, 0, NULL, 0, NULL), -ENOENT);
    disk.fail[BLKREPL_OP_READ] = 0;
}

/* ---- Small things ----------------------------------------------------------------------- */

static void the_status_of_nothing_is_an_empty_list(void **state)
{
    static const uint64_t at[] = {0, 512, SIZE};

    (void)state;
    open_images();
    for (size_t i = 0; i < ARRAY_COUNT(at); i++) {
        blkrepl_extent extents[2] = {{.bytes = 99, .flags = 99}, {.bytes = 99, .flags = 99}};
        struct req req = {0};
        blkrepl_completion done = req_completion(&req);

        ASSERT_CODE(blkrepl_image_status(source, 0, at[i], 0, extents, 2, &done), 0);
        env_drain(&env);
        req_assert_done(&req, 0);
        assert_int_equal(extents[0].bytes, 0);
    }
}

static int arm_answer;

static void arm(struct req *req)
{
    uint64_t deadline = 0;

    (void)req;
    arm_answer = blkrepl_poll_arm(env.ctx, 0, &deadline);
}

static void poll_arm_works_inside_a_callback(void **state)
{
    struct req req = {.then = arm};

    (void)state;
    open_images();
    arm_answer = INT32_MIN;
    ASSERT_CODE(req_flush(&req, source), 0);
    env_drain(&env);
    req_assert_done(&req, 0);
    assert_true(arm_answer == 0 || arm_answer == 1);
}

static void no_result(void *user, int result)
{
    (void)user;
    (void)result;
}

static int poll_answer;
static int free_answer;

static void poll_and_free(void *user)
{
    (void)user;
    poll_answer = blkrepl_poll(env.ctx, 0, 0);
    free_answer = blkrepl_context_free(env.ctx);
}

static void the_release_of_a_refused_call_is_inside_a_callback(void **state)
{
    blkrepl_completion done = {.fn = no_result, .release = poll_and_free};
    blkrepl_backup_options backup = {
        .struct_size = sizeof backup, .cluster_bytes = 1, .release = poll_and_free};
    blkrepl_job *none;

    (void)state;
    open_images();
    ASSERT_CODE(blkrepl_image_discard(source, 7, 0, 512, 0, &done), -EINVAL);
    ASSERT_CODE(poll_answer, -EDEADLK);
    ASSERT_CODE(free_answer, -EBUSY);
    poll_answer = free_answer = 0;
    ASSERT_CODE(blkrepl_backup_create(source, target, &backup, &none), -EINVAL);
    ASSERT_CODE(poll_answer, -EDEADLK);
    ASSERT_CODE(free_answer, -EBUSY);
    ASSERT_CODE(blkrepl_image_flush(source, 0, NULL), 0); /* nothing was shut */
    env_drain(&env);
}

int main(void)
{
#define T(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)
    const struct CMUnitTest tests[] = {
        T(a_write_to_a_claimed_cluster_does_not_wait_behind_the_guest),
        T(nor_if_the_guests_write_may_fail),
        cmocka_unit_test_setup(events_come_though_callbacks_keep_coming, set_up_alone),
        cmocka_unit_test_setup(and_callbacks_though_events_come_one_at_a_time, set_up_alone),
        T(a_write_into_a_hole_waits_for_a_chunk_of_it),
        cmocka_unit_test(counts_per_call_have_a_limit),
        cmocka_unit_test(context_free_is_not_done_before_every_release_has_run),
        T(zeroes_that_wait_hold_no_bounce_buffer),
        T(a_vast_discard_is_done_in_steps),
        T(failed_tells_the_error_that_ended_the_job),
        T(a_write_is_counted_once_by_each_job_it_waits_for),
        cmocka_unit_test(context_free_cancels_what_was_submitted_after_its_first_call),
        T(a_begin_that_is_cancelled_in_submit_answers_wait),
        T(a_begin_that_fails_at_once_answers_wait),
        T(the_status_of_nothing_is_an_empty_list),
        T(poll_arm_works_inside_a_callback),
        T(the_release_of_a_refused_call_is_inside_a_callback),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
