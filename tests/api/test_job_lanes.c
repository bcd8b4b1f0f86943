/* SPDX-License-Identifier: MIT */
/* Throttles, snapshots and verify with guests on several lanes, one of which nobody
 * polls: its callbacks wait, and nobody else does. */
#include "stage.h"

#define SIZE (16 * CLUSTER)
#define DEAF 1 /* the lane that nobody polls */

static struct env env;
static struct part disk, other;
static struct part *const both[] = {&disk, &other};
static blkrepl_job *job;
static uint8_t memory[SIZE];
static struct req deaf, heard;

static int set_up(void **state)
{
    const blkrepl_context_options o = {.struct_size = sizeof o, .lane_count = 3};

    (void)state;
    env_open(&env, &o, 0);
    tape_init(&disk.tape, SIZE);
    tape_init(&other.tape, SIZE);
    tape_fill(&disk.tape, 1);
    disk.tape.lanes = 3;
    other.tape.lanes = 3;
    part_open_prepared(&disk, &env);
    part_open_prepared(&other, &env);
    job = NULL;
    memset(&deaf, 0, sizeof deaf);
    memset(&heard, 0, sizeof heard);
    return 0;
}

/* Lanes 0 and 2, until nothing moves. */
static void poll_some(void)
{
    while (lane_drain(&env, 0) + lane_drain(&env, 2) > 0) {
    }
}

static void pass_time(uint64_t ns)
{
    for (uint64_t t = 0; t < ns; t += SECOND / 100) {
        atomic_fetch_add(&env.now, SECOND / 100);
        poll_some();
    }
}

static void finish_held(struct part *part)
{
    part->tape.hold = 0;
    do {
        poll_some();
    } while (tape_finish_all(&part->tape, 0, 0) > 0);
}

static int tear_down(void **state)
{
    (void)state;
    finish_held(&disk);
    finish_held(&other);
    if (job && job_state(job) != BLKREPL_JOB_CONCLUDED) {
        ASSERT_CODE(blkrepl_job_cancel(job, 0), 0);
    }
    poll_some();
    lane_drain(&env, DEAF);
    blkrepl_job_free(job);
    parts_close(&env, both, 2);
    return 0;
}

/* The request of the deaf lane has been carried out, and is told when that is polled. */
static void told_when_polled(int result)
{
    assert_true(REQ_PENDING(&deaf));
    lane_drain(&env, DEAF);
    req_assert_done(&deaf, result);
}

/* ---- Throttles ------------------------------------------------------------------------- */

static blkrepl_throttle *slow(void)
{
    blkrepl_throttle_options o = {.struct_size = sizeof o, .bytes_per_sec = CLUSTER};
    blkrepl_throttle *throttle = NULL;

    ASSERT_CODE(blkrepl_throttle_create(env.ctx, &o, &throttle), 0);
    ASSERT_CODE(blkrepl_image_set_throttle(disk.image, throttle), 0);
    ASSERT_CODE(lane_write(&heard, disk.image, 2, 0, memory, CLUSTER), 0);
    poll_some();
    req_assert_done(&heard, 0);
    return throttle;
}

/* The one behind it in the row comes to its turn. */
static void the_row_goes_on_past_a_lane_that_is_not_polled(void **state)
{
    blkrepl_throttle *throttle = slow();

    (void)state;
    ASSERT_CODE(lane_write(&deaf, disk.image, DEAF, 4 * CLUSTER, memory, 512), 0);
    ASSERT_CODE(lane_write(&heard, disk.image, 2, 8 * CLUSTER, memory, 512), 0);
    poll_some();
    assert_true(REQ_PENDING(&heard));
    pass_time(2 * SECOND);
    req_assert_done(&heard, 0);
    blkrepl_throttle_free(throttle);
    told_when_polled(0);
}

/* Also where the two overlap, so that the second one waits for the first one's end. */
static void an_overlapping_write_comes_after_one_of_such_a_lane(void **state)
{
    blkrepl_throttle *throttle = slow();
    uint8_t first[512], second[512];

    (void)state;
    fill(first, sizeof first, 0, 30);
    fill(second, sizeof second, 0, 31);
    ASSERT_CODE(lane_write(&deaf, disk.image, DEAF, 4 * CLUSTER, first, 512), 0);
    ASSERT_CODE(lane_write(&heard, disk.image, 2, 4 * CLUSTER + 256, second, 512), 0);
    pass_time(2 * SECOND);
    req_assert_done(&heard, 0);
    assert_memory_equal(disk.tape.data + 4 * CLUSTER, first, 256);
    assert_memory_equal(disk.tape.data + 4 * CLUSTER + 256, second, 512);
    blkrepl_throttle_free(throttle);
    told_when_polled(0);
}

static void taking_it_away_lets_such_a_lane_go_too(void **state)
{
    blkrepl_throttle *throttle = slow();
    uint8_t second[512];

    (void)state;
    fill(second, sizeof second, 0, 31);
    ASSERT_CODE(lane_write(&deaf, disk.image, DEAF, 4 * CLUSTER, memory, 512), 0);
    ASSERT_CODE(lane_write(&heard, disk.image, 2, 4 * CLUSTER, second, 512), 0);
    poll_some();
    ASSERT_CODE(blkrepl_image_set_throttle(disk.image, NULL), 0);
    poll_some();
    req_assert_done(&heard, 0);
    assert_memory_equal(disk.tape.data + 4 * CLUSTER, second, 512);
    blkrepl_throttle_free(throttle);
    told_when_polled(0);
}

/* ---- Snapshots --------------------------------------------------------------------------- */

static blkrepl_image *snapshot_of_disk(void)
{
    blkrepl_backup_options o = {.struct_size = sizeof o, .sync = BLKREPL_SYNC_NONE};
    blkrepl_image *snapshot = NULL;

    ASSERT_CODE(blkrepl_backup_start(disk.image, other.image, &o, &job), 0);
    poll_some();
    ASSERT_CODE(blkrepl_snapshot_open(job, NULL, &snapshot), 0);
    return snapshot;
}

/* A reader of the deaf lane holds a guest's write until it has read, not until it has
 * been told so. */
static void a_reader_of_such_a_lane_holds_a_guest_only_while_it_reads(void **state)
{
    blkrepl_image *snapshot = snapshot_of_disk();

    (void)state;
    disk.tape.hold = BIT(BLKREPL_OP_READ);
    ASSERT_CODE(lane_read(&deaf, snapshot, DEAF, 5 * CLUSTER, memory, CLUSTER), 0);
    ASSERT_CODE(lane_write(&heard, disk.image, 2, 5 * CLUSTER, "new", 3), 0);
    poll_some();
    assert_true(REQ_PENDING(&heard));
    finish_held(&disk);
    req_assert_done(&heard, 0);
    told_when_polled(0);
    assert_same(memory, disk.start + 5 * CLUSTER, CLUSTER, "snapshot");
    blkrepl_image_close(snapshot);
}

/* What it reads after it has waited for a write goes out with lane 0. */
static void a_read_of_such_a_lane_that_has_waited_holds_nobody_for_good(void **state)
{
    struct bracket b = {0};

    (void)state;
    ASSERT_CODE(lane_begin(&b, disk.image, 2, BLKREPL_OP_WRITE, 5 * CLUSTER, 512), 0);
    blkrepl_image *snapshot = snapshot_of_disk();
    ASSERT_CODE(lane_read(&deaf, snapshot, DEAF, 4 * CLUSTER, memory, 3 * CLUSTER), 0);
    poll_some();
    ASSERT_CODE(lane_write(&heard, disk.image, 2, 5 * CLUSTER, "new", 3), 0);
    poll_some();
    assert_true(REQ_PENDING(&heard));
    ASSERT_CODE(blkrepl_write_end(env.ctx, b.token, 0, NULL, 0, NULL), 0);
    poll_some();
    req_assert_done(&heard, 0);
    lane_drain(&env, DEAF);
    poll_some();
    lane_drain(&env, DEAF);
    req_assert_done(&deaf, 0);
    assert_same(memory, disk.start + 4 * CLUSTER, 3 * CLUSTER, "snapshot");
    blkrepl_image_close(snapshot);
}

/* ---- Verify ---------------------------------------------------------------------------------- */

/* A write of the deaf lane has waited for a chunk, and another one waits for it. */
static void a_write_of_such_a_lane_that_a_verify_held_holds_nobody_for_good(void **state)
{
    (void)state;
    memcpy(other.tape.data, disk.tape.data, SIZE);
    other.tape.hold = BIT(BLKREPL_OP_READ);
    ASSERT_CODE(blkrepl_verify_start(disk.image, other.image, NULL, &job), 0);
    poll_some();
    ASSERT_CODE(lane_write(&deaf, disk.image, DEAF, 512, "first", 5), 0);
    ASSERT_CODE(lane_write(&heard, disk.image, 2, 514, "second", 6), 0);
    poll_some();
    assert_true(REQ_PENDING(&heard));
    finish_held(&other);
    ASSERT_ENDED(job, BLKREPL_RESULT_DONE, 0);
    assert_int_equal(job_info(job).differing_bytes, 0); /* both came after their chunk */
    req_assert_done(&heard, 0);
    assert_memory_equal(disk.tape.data + 512, "fisecond", 8);
    told_when_polled(0);
}

/* ---- Spill, and a backup ------------------------------------------------------ */

/* Copies for a guest of the deaf lane reach the spill image and the target. */
static void what_such_a_lane_has_saved_arrives(void **state)
{
    blkrepl_backup_options o = {
        .struct_size = sizeof o, .workers_max = 1, .on_cbw_error = BLKREPL_CBW_GUEST_WRITE_FAILS};
    blkrepl_image *spill = NULL;

    (void)state;
    ASSERT_CODE(blkrepl_image_open_memory(env.ctx, SIZE, NULL, &spill), 0);
    o.spill = spill;
    ASSERT_CODE(blkrepl_backup_create(disk.image, other.image, &o, &job), 0);
    ASSERT_CODE(blkrepl_job_pause(job), 0);
    ASSERT_CODE(blkrepl_job_start(job), 0);
    other.tape.hold = OPS_ALL;
    ASSERT_CODE(lane_write(&deaf, disk.image, DEAF, 5 * CLUSTER, "first", 5), 0);
    ASSERT_CODE(lane_write(&heard, disk.image, 2, 5 * CLUSTER + 2, "second", 6), 0);
    poll_some();
    req_assert_done(&heard, 0);
    assert_memory_equal(disk.tape.data + 5 * CLUSTER, "fisecond", 8);
    ASSERT_CODE(blkrepl_job_resume(job), 0);
    finish_held(&other);
    ASSERT_ENDED(job, BLKREPL_RESULT_DONE, 0);
    assert_same(other.tape.data, disk.start, SIZE, "target");
    told_when_polled(0);
    blkrepl_image_close(spill);
}

int main(void)
{
#define T(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)
    const struct CMUnitTest tests[] = {
        T(the_row_goes_on_past_a_lane_that_is_not_polled),
        T(an_overlapping_write_comes_after_one_of_such_a_lane),
        T(taking_it_away_lets_such_a_lane_go_too),
        T(a_reader_of_such_a_lane_holds_a_guest_only_while_it_reads),
        T(a_read_of_such_a_lane_that_has_waited_holds_nobody_for_good),
        T(a_write_of_such_a_lane_that_a_verify_held_holds_nobody_for_good),
        T(what_such_a_lane_has_saved_arrives),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
