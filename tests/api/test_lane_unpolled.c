/* SPDX-License-Identifier: MIT */
/* A lane that nobody polls: its callbacks wait, and nothing else does.  Here it is
 * lane 2; lanes 0 and 1 are polled. */
#include <poll.h>

#include "tape.h"

#define LANES 3
#define BLOCK 4096
#define CLUSTERS 16
#define SIZE (CLUSTERS * CLUSTER)
#define WRITE BLKREPL_OP_WRITE
#define READ BLKREPL_OP_READ
#define WRITES (BIT(BLKREPL_OP_WRITE) | BIT(BLKREPL_OP_ZEROES))

static struct env env;
static struct tape disk, copy;
static blkrepl_image *image, *target;
static blkrepl_job *job;
static uint8_t *start;
static uint8_t data[CLUSTER];
static uint8_t other_data[CLUSTER];
static uint8_t read_data[2][BLOCK];
static struct req held[2];

static void open_disk_bounded(uint32_t depth, uint32_t align, uint32_t completions_max)
{
    const blkrepl_context_options base = {.lane_count = LANES, .completions_max = completions_max};

    env_open(&env, &base, 0);
    tape_init(&disk, SIZE);
    tape_init(&copy, SIZE);
    disk.lanes = LANES;
    disk.info.queue_depth = depth;
    disk.info.request_alignment = align;
    tape_fill(&disk, 1);
    start = tape_copy(&disk);
    image = tape_open(&disk, &env);
    target = tape_open(&copy, &env);
    job = NULL;
    fill(data, sizeof data, 0, 200);
    fill(other_data, sizeof other_data, 0, 201);
}

static void open_disk(uint32_t depth, uint32_t align)
{
    open_disk_bounded(depth, align, 0);
}

static void close_all(void)
{
    disk.hold = 0;
    copy.hold = 0;
    tape_finish_all(&disk, 0, 0);
    blkrepl_job_free(job);
    blkrepl_image_close(image);
    blkrepl_image_close(target);
    env_close(&env);
    tape_close(&disk);
    tape_close(&copy);
    free(start);
}

static void drain_polled(void)
{
    for (int i = 0; i < 3; i++) {
        lane_drain(&env, 1);
        lane_drain(&env, 0);
    }
}

/* Reads of lane 1 take all places at the backend. */
static void fill_depth(uint32_t depth)
{
    disk.hold |= BIT(READ);
    for (uint32_t i = 0; i < depth; i++) {
        ASSERT_CODE(lane_read(&held[i], image, 1, SIZE - BLOCK, read_data[i], BLOCK), 0);
    }
    assert_int_equal(tape_pending(&disk, READ), depth);
}

static void empty_depth(void)
{
    disk.hold &= ~BIT(READ);
    tape_finish_all(&disk, READ, 0);
}

/* ---- Guests wait for what it has queued ----------------------------------------- */

static void a_queued_write_that_another_write_waits_for_goes_out(void **state)
{
    (void)state;
    for (uint32_t depth = 1; depth <= 2; depth++) {
        struct req first = {0}, second = {0}, alone = {0};

        open_disk(depth, 1);
        fill_depth(depth);
        ASSERT_CODE(lane_write(&first, image, 2, 0, data, BLOCK), 0);
        ASSERT_CODE(lane_write(&alone, image, 2, CLUSTER, data, BLOCK), 0);
        ASSERT_CODE(lane_write(&second, image, 1, 0, other_data, BLOCK), 0);
        empty_depth();
        drain_polled();
        req_assert_done(&second, 0);
        assert_memory_equal(disk.data, other_data, BLOCK);
        assert_true(disk.log[depth].lane == 0 && disk.log[depth].opcode == WRITE);
        assert_int_equal(first.calls, 0);                     /* its callback is that of its lane */
        assert_false(tape_saw(&disk, WRITE, CLUSTER, BLOCK)); /* nobody waits for it */
        assert_int_equal(lane_drain(&env, 2), 2);
        req_assert_done(&first, 0);
        req_assert_done(&alone, 0);
        close_all();
    }
}

/* Of a chain all go, also those whose turn comes later. */
static void a_chain_of_writes_of_that_lane_goes_out(void **state)
{
    struct req chain[3] = {{0}}, last = {0};

    (void)state;
    open_disk(1, 1);
    fill_depth(1);
    for (size_t i = 0; i < 3; i++) {
        ASSERT_CODE(lane_write(&chain[i], image, 2, i * BLOCK, data, 2 * BLOCK), 0);
    }
    ASSERT_CODE(lane_write(&last, image, 1, 3 * BLOCK, other_data, BLOCK), 0);
    empty_depth();
    drain_polled();
    req_assert_done(&last, 0);
    assert_int_equal(tape_submitted(&disk, WRITE), 4);
    assert_int_equal(lane_drain(&env, 2), 3);
    close_all();
}

/* Each piece of it, when it was cut. */
static void a_write_in_pieces_goes_out(void **state)
{
    struct req first = {0}, second = {0};

    (void)state;
    open_disk(1, 512);
    fill_depth(1);
    /* 100 bytes at either end are read, patched and written. */
    ASSERT_CODE(lane_write(&first, image, 2, 412, data, BLOCK + 200), 0);
    ASSERT_CODE(lane_write(&second, image, 1, 0, other_data, 512), 0);
    empty_depth();
    drain_polled();
    req_assert_done(&second, 0);
    assert_int_equal(tape_submitted(&disk, WRITE), 4);
    assert_int_equal(lane_drain(&env, 2), 1);
    req_assert_done(&first, 0);
    assert_memory_equal(disk.data, other_data, 512);
    assert_memory_equal(disk.data + 512, data + 100, BLOCK + 100);
    close_all();
}

static void buffers_that_others_wait_for_are_given_back(void **state)
{
    static struct req users[40];
    struct req waiter = {0};

    (void)state;
    open_disk(1, 512);
    fill_depth(1);
    for (size_t i = 0; i < ARRAY_COUNT(users); i++) {
        ASSERT_CODE(lane_read(&users[i], image, 2, 1, other_data, 100), 0);
    }
    ASSERT_CODE(lane_read(&waiter, image, 1, CLUSTER + 1, data, 100), 0);
    empty_depth();
    drain_polled();
    req_assert_done(&waiter, 0);
    assert_memory_equal(data, start + CLUSTER + 1, 100);
    assert_int_equal(lane_drain(&env, 2), ARRAY_COUNT(users));
    close_all();
}

/* ---- Jobs do not wait for it ---------------------------------------------------- */

static void start_backup(bool paused)
{
    const blkrepl_backup_options o = {.struct_size = sizeof o,
                                      .cluster_bytes = CLUSTER,
                                      .chunk_bytes_max = CLUSTER,
                                      .workers_max = 2};

    ASSERT_CODE(blkrepl_backup_create(image, target, &o, &job), 0);
    if (paused) {
        ASSERT_CODE(blkrepl_job_pause(job), 0);
    }
    ASSERT_CODE(blkrepl_job_start(job), 0);
}

/* With lanes 0 and 1 alone. */
static void finish_backup(const uint8_t *expected)
{
    for (int i = 0; i < 100000 && job_info(job).state != BLKREPL_JOB_CONCLUDED; i++) {
        blkrepl_poll(env.ctx, i % 2 == 0 ? 0 : 1, 0);
    }
    if (job_info(job).result != BLKREPL_RESULT_DONE) {
        fail_msg("the backup has not ended as done: state %u, error %d, %llu of %llu bytes",
                 job_info(job).state, job_info(job).error,
                 (unsigned long long)job_info(job).bytes_done,
                 (unsigned long long)job_info(job).bytes_total);
    }
    assert_same(copy.data, expected, SIZE, "target");
}

static void end(const struct bracket *bracket)
{
    ASSERT_CODE(blkrepl_write_end(env.ctx, bracket->token, 0, NULL, 0, NULL), 0);
}

static void a_backup_ends_whatever_waits_on_it(void **state)
{
    (void)state;
    for (uint32_t depth = 1; depth <= 2; depth++) {
        struct req over = {0}, queued_write = {0}, queued_read = {0};
        struct bracket before = {0}, bracket = {0};
        uint8_t *expected;

        open_disk(depth, 1);
        ASSERT_CODE(lane_write(&over, image, 2, 9 * CLUSTER, data, BLOCK), 0);
        expected = tape_copy(&disk);
        fill_depth(depth);
        ASSERT_CODE(lane_write(&queued_write, image, 2, 3 * CLUSTER, data, BLOCK), 0);
        ASSERT_CODE(lane_read(&queued_read, image, 2, 5 * CLUSTER, other_data, BLOCK), 0);
        ASSERT_CODE(lane_begin(&before, image, 1, WRITE, 7 * CLUSTER, BLOCK), 0);
        ASSERT_CODE(lane_begin(&bracket, image, 2, WRITE, 7 * CLUSTER, BLOCK), BLKREPL_WAIT);
        end(&before); /* now the GO waits for a poll of lane 2 */
        start_backup(false);
        empty_depth();
        memcpy(expected + 3 * CLUSTER, data, BLOCK); /* in flight at the start */
        finish_backup(expected);
        assert_int_equal(bracket.go.calls + queued_write.calls + over.calls + queued_read.calls, 0);
        assert_int_equal(lane_drain(&env, 2), 4);
        req_assert_done(&bracket.go, 0);
        req_assert_done(&queued_write, 0);
        req_assert_done(&queued_read, 0);
        assert_memory_equal(other_data, start + 5 * CLUSTER, BLOCK);
        end(&bracket);
        free(expected);
        close_all();
    }
}

/* What the host does after its GO came too late for the point in time. */
static void a_go_that_made_way_for_a_copy_comes_after_it(void **state)
{
    struct bracket before = {0}, bracket = {0};

    (void)state;
    open_disk(2, 1);
    ASSERT_CODE(lane_begin(&before, image, 1, WRITE, 7 * CLUSTER, BLOCK), 0);
    ASSERT_CODE(lane_begin(&bracket, image, 2, WRITE, 7 * CLUSTER, BLOCK), BLKREPL_WAIT);
    end(&before);
    disk.hold = BIT(READ);
    start_backup(false);
    for (int i = 0; i < 50 && tape_find(&disk, READ, 7 * CLUSTER, BLOCK) < 0; i++) {
        drain_polled();
        if (tape_find(&disk, READ, 7 * CLUSTER, BLOCK) < 0) {
            tape_finish(&disk, 0, 0);
        }
    }
    assert_true(tape_find(&disk, READ, 7 * CLUSTER, BLOCK) >= 0);
    assert_int_equal(lane_drain(&env, 2), 0); /* the copy is reading: no GO */
    disk.hold = 0;
    tape_finish_all(&disk, READ, 0);
    assert_int_equal(lane_drain(&env, 2), 1);
    req_assert_done(&bracket.go, 0);
    tape_poke(&disk, 7 * CLUSTER, data, BLOCK);
    end(&bracket);
    finish_backup(start);
    close_all();
}

/* A bracket that has made way may be given up like any other. */
static void a_bracket_that_made_way_may_be_cancelled(void **state)
{
    struct bracket before = {0}, bracket = {0};

    (void)state;
    open_disk(2, 1);
    ASSERT_CODE(lane_begin(&before, image, 1, WRITE, 0, BLOCK), 0);
    ASSERT_CODE(lane_begin(&bracket, image, 2, WRITE, 0, BLOCK), BLKREPL_WAIT);
    end(&before);
    disk.hold = BIT(READ);
    start_backup(false);
    drain_polled();
    ASSERT_CODE(blkrepl_write_cancel(env.ctx, bracket.token), BLKREPL_WAIT);
    disk.hold = 0;
    tape_finish_all(&disk, READ, 0);
    finish_backup(start);
    assert_int_equal(lane_drain(&env, 2), 1);
    req_assert_done(&bracket.go, -ECANCELED);
    close_all();
}

/* Its read of old data is wanted by the job, and by a write of another lane. */
static void a_queued_read_of_old_data_goes_out(void **state)
{
    (void)state;
    for (uint32_t depth = 1; depth <= 2; depth++) {
        struct req first = {0}, second = {0};

        open_disk(depth, 1);
        start_backup(true);
        drain_polled();
        fill_depth(depth);
        ASSERT_CODE(lane_write(&first, image, 2, 4 * CLUSTER, data, BLOCK), 0);
        ASSERT_CODE(lane_write(&second, image, 1, 5 * CLUSTER - BLOCK, data, BLOCK), 0);
        empty_depth();
        drain_polled();
        req_assert_done(&second, 0);
        assert_true(tape_saw(&copy, WRITE, 4 * CLUSTER, CLUSTER));
        ASSERT_CODE(blkrepl_job_resume(job), 0);
        finish_backup(start);
        lane_drain(&env, 2);
        req_assert_done(&first, 0);
        close_all();
    }
}

/* ---- Nobody sleeps through what it has done ---------------------------------------- */

static bool readable(uint32_t lane)
{
    struct pollfd p = {.fd = blkrepl_poll_fd(env.ctx, lane), .events = POLLIN};

    assert_true(p.fd >= 0);
    return poll(&p, 1, 0) == 1 && (p.revents & POLLIN);
}

static void arm_polled(void)
{
    uint64_t deadline;

    drain_polled();
    ASSERT_CODE(blkrepl_poll_arm(env.ctx, 0, &deadline), 0);
    ASSERT_CODE(blkrepl_poll_arm(env.ctx, 1, &deadline), 0);
    assert_false(readable(0) || readable(1));
}

static void a_sleeper_is_woken_when_its_write_may_go(void **state)
{
    struct req first = {0}, second = {0};

    (void)state;
    open_disk(8, 1);
    disk.hold = BIT(WRITE);
    ASSERT_CODE(lane_write(&first, image, 2, 0, data, BLOCK), 0);
    ASSERT_CODE(lane_write(&second, image, 1, 0, other_data, BLOCK), 0);
    arm_polled();
    disk.hold = 0;
    tape_finish_all(&disk, WRITE, 0); /* the backend's thread: nothing else moves */
    assert_true(readable(0) || readable(1));
    drain_polled();
    req_assert_done(&second, 0);
    lane_drain(&env, 2);
    close_all();
}

static void a_sleeper_is_woken_when_there_is_room_at_the_backend(void **state)
{
    struct req first = {0}, second = {0};

    (void)state;
    open_disk(1, 1);
    disk.hold = BIT(READ);
    ASSERT_CODE(lane_read(&first, image, 2, 0, data, BLOCK), 0);
    ASSERT_CODE(lane_read(&second, image, 1, 0, other_data, BLOCK), 0);
    arm_polled();
    disk.hold = 0;
    tape_finish_all(&disk, READ, 0);
    assert_true(readable(0) || readable(1));
    drain_polled();
    req_assert_done(&second, 0);
    lane_drain(&env, 2);
    close_all();
}

static void a_sleeper_is_woken_when_a_copy_may_go(void **state)
{
    struct req write = {0};
    uint8_t *expected;

    (void)state;
    open_disk(8, 1);
    disk.hold = BIT(WRITE);
    ASSERT_CODE(lane_write(&write, image, 2, 0, data, BLOCK), 0);
    start_backup(false);
    arm_polled();
    assert_true(job_info(job).state != BLKREPL_JOB_CONCLUDED);
    expected = tape_copy(&disk);
    memcpy(expected, data, BLOCK);
    tape_finish_all(&disk, WRITE, 0);
    assert_true(readable(0));
    finish_backup(expected);
    lane_drain(&env, 2);
    free(expected);
    close_all();
}

/* A host that polls only what it is told to. */
static void poll_what_is_readable(void)
{
    uint64_t deadline;
    bool polled = true;

    while (polled) {
        polled = false;
        for (uint32_t lane = 0; lane < 2; lane++) {
            while (readable(lane)) {
                do {
                    blkrepl_poll(env.ctx, lane, 0);
                } while (blkrepl_poll_arm(env.ctx, lane, &deadline) == 1);
                polled = true;
            }
        }
    }
}

/* More than one entry may handle: what is left is not forgotten. */
static void a_sleeper_is_woken_for_all_that_was_completed(void **state)
{
    struct req reqs[4] = {{0}}, last = {0};

    (void)state;
    open_disk_bounded(8, 1, 1);
    disk.hold = BIT(WRITE);
    for (size_t i = 0; i < 4; i++) {
        ASSERT_CODE(lane_write(&reqs[i], image, 2, i * CLUSTER, data, BLOCK), 0);
    }
    ASSERT_CODE(lane_write(&last, image, 1, 3 * CLUSTER, other_data, BLOCK), 0);
    arm_polled();
    disk.hold = 0;
    tape_finish_all(&disk, WRITE, 0);
    poll_what_is_readable();
    req_assert_done(&last, 0);
    assert_int_equal(lane_drain(&env, 2), 4);
    close_all();
}

/* ---- The end ------------------------------------------------------------------------ */

static void free_runs_the_callbacks_of_all_lanes(void **state)
{
    struct req reqs[LANES] = {0}, queued = {0};
    struct bracket before = {0}, bracket = {0};

    (void)state;
    open_disk(1, 1);
    for (uint32_t lane = 0; lane < LANES; lane++) {
        ASSERT_CODE(lane_write(&reqs[lane], image, lane, 0, data, BLOCK), 0);
    }
    fill_depth(1);
    ASSERT_CODE(lane_write(&queued, image, 2, CLUSTER, data, BLOCK), 0);
    ASSERT_CODE(lane_begin(&before, image, 1, WRITE, 7 * CLUSTER, BLOCK), 0);
    ASSERT_CODE(lane_begin(&bracket, image, 2, WRITE, 7 * CLUSTER, BLOCK), BLKREPL_WAIT);
    end(&before);
    blkrepl_image_close(image);
    blkrepl_image_close(target);
    ASSERT_CODE(blkrepl_context_free(env.ctx), -EBUSY);
    for (uint32_t lane = 0; lane < LANES; lane++) {
        req_assert_done(&reqs[lane], 0);
    }
    req_assert_done(&bracket.go, 0);
    end(&bracket);
    assert_int_equal(held[0].calls, 0);
    empty_depth();
    ASSERT_CODE(blkrepl_context_free(env.ctx), 0);
    req_assert_done(&held[0], 0);
    req_assert_done(&queued, 0);
    assert_int_equal(env.heap.live, 0);
    tape_close(&disk);
    tape_close(&copy);
    free(start);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_queued_write_that_another_write_waits_for_goes_out),
        cmocka_unit_test(a_chain_of_writes_of_that_lane_goes_out),
        cmocka_unit_test(a_write_in_pieces_goes_out),
        cmocka_unit_test(buffers_that_others_wait_for_are_given_back),
        cmocka_unit_test(a_backup_ends_whatever_waits_on_it),
        cmocka_unit_test(a_go_that_made_way_for_a_copy_comes_after_it),
        cmocka_unit_test(a_bracket_that_made_way_may_be_cancelled),
        cmocka_unit_test(a_queued_read_of_old_data_goes_out),
        cmocka_unit_test(a_sleeper_is_woken_when_its_write_may_go),
        cmocka_unit_test(a_sleeper_is_woken_when_there_is_room_at_the_backend),
        cmocka_unit_test(a_sleeper_is_woken_when_a_copy_may_go),
        cmocka_unit_test(a_sleeper_is_woken_for_all_that_was_completed),
        cmocka_unit_test(free_runs_the_callbacks_of_all_lanes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
