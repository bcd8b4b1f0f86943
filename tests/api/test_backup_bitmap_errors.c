/* SPDX-License-Identifier: MIT */
/* Bitmaps of backups that meet errors: given up, paused and tried again, spilled;
 * and bitmaps of backups that copy nothing by themselves. */
#include "stage.h"

#define CLUSTERS 12
#define SIZE (CLUSTERS * CLUSTER)

static struct env env;
static struct part disk, copy, spill;
static struct part *const all[] = {&disk, &copy, &spill};
static blkrepl_bitmap *bitmap;
static blkrepl_job *job;
static blkrepl_backup_options o;

static int set_up(void **state)
{
    (void)state;
    env_open(&env, NULL, 0);
    part_open(&disk, &env, SIZE, 1);
    part_open(&copy, &env, SIZE, 0);
    part_open(&spill, &env, SIZE, 9);
    bitmap = bitmap_put(disk.image, "b", CLUSTER, 0);
    bitmap_draw(bitmap, "##..####..##");
    job = NULL;
    o = (blkrepl_backup_options){.struct_size = sizeof o,
                                 .sync = BLKREPL_SYNC_BITMAP,
                                 .bitmap = bitmap,
                                 .bitmap_mode = BLKREPL_BITMAP_ALWAYS,
                                 .cluster_bytes = CLUSTER,
                                 .chunk_bytes_max = CLUSTER,
                                 .workers_max = 1};
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    parts_mend(all, 3);
    parts_run(&env, all, 3);
    blkrepl_job_free(job);
    blkrepl_bitmap_free(bitmap);
    parts_close(&env, all, 3);
    return 0;
}

static void start(void)
{
    ASSERT_CODE(blkrepl_backup_start(disk.image, copy.image, &o, &job), 0);
    env_drain(&env);
}

/* ---- IGNORE ------------------------------------------------------------------------------- */

/* What was given up is exactly what is left to do; one more backup does it. */
static void with_always_what_was_given_up_is_left_to_do(void **state)
{
    (void)state;
    for (int side = 0; side < 2; side++) {
        struct part *part = all[side];
        uint32_t opcode = side ? BLKREPL_OP_WRITE : BLKREPL_OP_READ;

        memset(copy.tape.data, 0, SIZE);
        o.on_source_error = BLKREPL_ON_ERROR_IGNORE;
        o.on_target_error = BLKREPL_ON_ERROR_IGNORE;
        part_fail(part, opcode, 5 * CLUSTER - 100, 200, -EIO);
        start();
        ASSERT_ENDED(job, BLKREPL_RESULT_FAILED, -EIO);
        assert_int_equal(job_info(job).failed_bytes, 2 * CLUSTER);
        ASSERT_BITS(bitmap, "....##......");
        part_assert_holds(&copy, &disk, "##....##..##");
        part_mend(part);
        job_drop(&env, &job);
        o.on_source_error = 0;
        o.on_target_error = 0;
        start();
        ASSERT_ENDED(job, BLKREPL_RESULT_DONE, 0);
        ASSERT_BITS(bitmap, "............");
        part_assert_holds(&copy, &disk, "##..####..##");
        bitmap_draw(bitmap, "##..####..##");
        job_drop(&env, &job);
    }
}

static void with_on_success_all_is_left_to_do(void **state)
{
    (void)state;
    o.bitmap_mode = BLKREPL_BITMAP_ON_SUCCESS;
    o.on_target_error = BLKREPL_ON_ERROR_IGNORE;
    part_fail(&copy, BLKREPL_OP_WRITE, 11 * CLUSTER, 512, -ENOSPC);
    start();
    ASSERT_ENDED(job, BLKREPL_RESULT_FAILED, -ENOSPC);
    ASSERT_BITS(bitmap, "##..####..##");
}

/* "If the target's flush has failed, nothing has got there": also under IGNORE. */
static void a_failed_flush_leaves_all_to_do(void **state)
{
    (void)state;
    o.on_target_error = BLKREPL_ON_ERROR_IGNORE;
    copy.tape.fail[BLKREPL_OP_FLUSH] = -EIO;
    start();
    ASSERT_ENDED(job, BLKREPL_RESULT_FAILED, -EIO);
    ASSERT_BITS(bitmap, "##..####..##");
    job_drop(&env, &job);
    o.sync = BLKREPL_SYNC_FULL;
    start();
    ASSERT_BITS(bitmap, "############");
}

/* ---- STOP --------------------------------------------------------------------- */

static void a_stop_and_a_resume_leave_nothing_to_do(void **state)
{
    (void)state;
    o.on_target_error = BLKREPL_ON_ERROR_STOP;
    part_fail(&copy, BLKREPL_OP_WRITE, 5 * CLUSTER, 512, -ENOSPC);
    start();
    assert_true(job_has(job, BLKREPL_JOB_FLAG_ERROR_PAUSED));
    assert_true(bitmap_flags(bitmap) & BLKREPL_BITMAP_BUSY);
    guest_writes(&env, &disk, 6 * CLUSTER, 512, 50);
    guest_writes(&env, &disk, 2 * CLUSTER, 512, 50);
    part_mend(&copy);
    ASSERT_CODE(blkrepl_job_resume(job), 0);
    env_drain(&env);
    ASSERT_ENDED(job, BLKREPL_RESULT_DONE, 0);
    ASSERT_BITS(bitmap, "..#...#.....");
    part_assert_holds(&copy, &disk, "##..####..##");
}

static void a_cancel_while_an_error_pauses_it_leaves_the_rest_to_do(void **state)
{
    (void)state;
    o.on_target_error = BLKREPL_ON_ERROR_STOP;
    part_fail(&copy, BLKREPL_OP_WRITE, 5 * CLUSTER, 512, -ENOSPC);
    start();
    ASSERT_CODE(blkrepl_job_cancel(job, 0), 0);
    part_mend(&copy);
    parts_run(&env, all, 3);
    ASSERT_ENDED(job, BLKREPL_RESULT_CANCELLED, -ECANCELED);
    ASSERT_BITS(bitmap, ".....###..##");
}

/* ---- Copies for guests -------------------------------------------------------- */

/* Saved in a buffer, or in the spill image, is not on the target yet.  With granules
 * smaller than clusters it shows: the guest wrote one of them, the copy has them all. */
static void saved_is_not_arrived(void **state)
{
    (void)state;
    for (int spilled = 0; spilled < 2; spilled++) {
        blkrepl_bitmap *fine = bitmap_make(&env, SIZE, 4096);
        struct map want;

        map_init(&want, SIZE, 4096);
        ASSERT_CODE(bitmap_merge_one(fine, bitmap), 0);
        map_content(&want, fine);
        o.bitmap = fine;
        o.spill = spilled ? spill.image : NULL;
        ASSERT_CODE(blkrepl_backup_create(disk.image, copy.image, &o, &job), 0);
        ASSERT_CODE(blkrepl_job_pause(job), 0);
        ASSERT_CODE(blkrepl_job_start(job), 0);
        copy.tape.hold = OPS_ALL;
        guest_writes(&env, &disk, 4 * CLUSTER, 512, 50);
        guest_writes(&env, &disk, 10 * CLUSTER, 512, 50);
        ASSERT_CODE(blkrepl_job_cancel(job, 0), 0);
        tape_finish_all(&copy.tape, 0, -ECANCELED);
        parts_run(&env, all, 3);
        ASSERT_ENDED(job, BLKREPL_RESULT_CANCELLED, -ECANCELED);
        ASSERT_MAP(fine, &want);
        job_drop(&env, &job);
        blkrepl_bitmap_free(fine);
    }
}

/* The guest's write that failed for want of a copy may have left its mark or not; but
 * nothing that was to be copied is forgotten. */
static void a_guest_write_that_fails_forgets_nothing(void **state)
{
    struct req req = {0};

    (void)state;
    o.on_cbw_error = BLKREPL_CBW_GUEST_WRITE_FAILS;
    o.bitmap_mode = BLKREPL_BITMAP_ON_SUCCESS;
    ASSERT_CODE(blkrepl_backup_create(disk.image, copy.image, &o, &job), 0);
    ASSERT_CODE(blkrepl_job_pause(job), 0);
    ASSERT_CODE(blkrepl_job_start(job), 0);
    part_fail(&copy, BLKREPL_OP_WRITE, 4 * CLUSTER, 512, -ENOSPC);
    guest_write(&req, &disk, 4 * CLUSTER, 512, 50);
    env_drain(&env);
    req_assert_done(&req, -ENOSPC);
    part_mend(&copy);
    ASSERT_CODE(blkrepl_job_resume(job), 0);
    env_drain(&env);
    ASSERT_ENDED(job, BLKREPL_RESULT_DONE, 0);
    part_assert_holds(&copy, &disk, "##..####..##");
    ASSERT_BITS(bitmap, "............"); /* "a request that ... fails, before the backend has it" */
}

/* ---- SYNC_NONE ---------------------------------------------------------------- */

/* Nothing is copied, so only how it ends decides. */
static void a_bitmap_of_sync_none_follows_its_mode(void **state)
{
    static const struct {
        uint32_t mode;
        bool complete;
        const char *then;
    } rows[] = {
        {BLKREPL_BITMAP_ON_SUCCESS, true, "..#.#......."},
        {BLKREPL_BITMAP_ON_SUCCESS, false, "###.####..##"},
        {BLKREPL_BITMAP_NEVER, true, "###.####..##"},
        {BLKREPL_BITMAP_NEVER, false, "###.####..##"},
    };

    (void)state;
    o.sync = BLKREPL_SYNC_NONE;
    for (size_t i = 0; i < ARRAY_COUNT(rows); i++) {
        o.bitmap_mode = rows[i].mode;
        start();
        ASSERT_STATE(job, BLKREPL_JOB_READY);
        assert_true(bitmap_flags(bitmap) & BLKREPL_BITMAP_BUSY);
        guest_writes(&env, &disk, 2 * CLUSTER, 512, 50);
        guest_writes(&env, &disk, 4 * CLUSTER, 512, 50);
        ASSERT_BITS(bitmap, "##..####..##");
        ASSERT_CODE(rows[i].complete ? blkrepl_job_complete(job) : blkrepl_job_cancel(job, 0), 0);
        env_drain(&env);
        ASSERT_STATE(job, BLKREPL_JOB_CONCLUDED);
        ASSERT_BITS(bitmap, rows[i].then);
        ASSERT_CODE(blkrepl_bitmap_clear(bitmap), 0);
        bitmap_draw(bitmap, "##..####..##");
        job_drop(&env, &job);
    }
}

/* ---- Flush and marks ---------------------------------------------------------- */

/* A granule that was written before, during and after is dirty afterwards, whatever
 * became of the copies in between. */
static void nothing_that_was_written_is_lost_by_seed(void **state)
{
    (void)state;
    for (uint64_t seed = 1; seed <= (quick() ? 20 : 200); seed++) {
        struct rng rng = {.state = seed};
        struct map since, got;

        ASSERT_CODE(blkrepl_bitmap_clear(bitmap), 0);
        bitmap_draw(bitmap, "##..####..##");
        map_init(&since, SIZE, CLUSTER);
        o.sync = rng_percent(&rng, 50) ? BLKREPL_SYNC_BITMAP : BLKREPL_SYNC_FULL;
        o.bitmap_mode = rng_percent(&rng, 50) ? BLKREPL_BITMAP_ALWAYS : BLKREPL_BITMAP_ON_SUCCESS;
        o.workers_max = 1 + (uint32_t)rng_below(&rng, 4);
        copy.tape.hold = OPS_ALL;
        start();
        for (int n = 0; n < 20; n++) {
            uint64_t at = rng_below(&rng, SIZE - 512);
            size_t pending = tape_pending(&copy.tape, 0);

            if (rng_percent(&rng, 30)) {
                guest_writes(&env, &disk, at, 512, (unsigned)n);
                map_set(&since, at, 512);
            } else if (pending) {
                int result = rng_percent(&rng, 5) ? -EIO : 0;

                ASSERT_CODE(tape_finish(&copy.tape, (int)rng_below(&rng, pending), result), 0);
                env_drain(&env);
            }
        }
        if (rng_percent(&rng, 30) && job_state(job) != BLKREPL_JOB_CONCLUDED) {
            ASSERT_CODE(blkrepl_job_cancel(job, 0), 0);
        }
        parts_run(&env, all, 3);
        ASSERT_STATE(job, BLKREPL_JOB_CONCLUDED);
        map_content(&got, bitmap);
        for (size_t i = 0; i < got.count; i++) {
            assert_true(got.dirty[i] || !since.dirty[i]);
            if (job_info(job).result == BLKREPL_RESULT_DONE) {
                assert_int_equal(got.dirty[i], since.dirty[i]);
            }
        }
        job_drop(&env, &job);
    }
}

int main(void)
{
#define T(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)
    const struct CMUnitTest tests[] = {
        T(with_always_what_was_given_up_is_left_to_do),
        T(with_on_success_all_is_left_to_do),
        T(a_failed_flush_leaves_all_to_do),
        T(a_stop_and_a_resume_leave_nothing_to_do),
        T(a_cancel_while_an_error_pauses_it_leaves_the_rest_to_do),
        T(saved_is_not_arrived),
        T(a_guest_write_that_fails_forgets_nothing),
        T(a_bitmap_of_sync_none_follows_its_mode),
        T(nothing_that_was_written_is_lost_by_seed),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
