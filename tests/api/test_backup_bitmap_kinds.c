/* SPDX-License-Identifier: MIT */
/* Which bitmaps a backup takes, and which options go together; what it copies by
 * them, and what can be done to a bitmap meanwhile. */
#include "stage.h"

#define CLUSTERS 8
#define SIZE (CLUSTERS * CLUSTER)

static struct env env;
static struct part disk, copy, other;
static struct part *const all[] = {&disk, &copy, &other};
static blkrepl_bitmap *bitmap;
static blkrepl_job *job;
static blkrepl_backup_options o;

static void fresh(void)
{
    o = (blkrepl_backup_options){.struct_size = sizeof o,
                                 .sync = BLKREPL_SYNC_BITMAP,
                                 .bitmap = bitmap,
                                 .bitmap_mode = BLKREPL_BITMAP_ON_SUCCESS};
}

static int set_up(void **state)
{
    (void)state;
    env_open(&env, NULL, 0);
    part_open(&disk, &env, SIZE, 1);
    part_open(&copy, &env, SIZE, 0);
    part_open(&other, &env, SIZE, 3);
    bitmap = bitmap_put(disk.image, "b", CLUSTER, 0);
    bitmap_draw(bitmap, ".##...#.");
    job = NULL;
    fresh();
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    parts_run(&env, all, 3);
    blkrepl_job_free(job);
    blkrepl_bitmap_free(bitmap);
    parts_close(&env, all, 3);
    return 0;
}

static void create(void)
{
    ASSERT_CODE(blkrepl_backup_create(disk.image, copy.image, &o, &job), 0);
}

static void refused(int code)
{
    ASSERT_CODE(blkrepl_backup_create(disk.image, copy.image, &o, &job), code);
    assert_null(job);
    assert_true(strlen(blkrepl_error_message()) > 0);
    ASSERT_CODE(blkrepl_backup_start(disk.image, copy.image, &o, &job), code);
    assert_null(job);
    assert_false(bitmap_flags(bitmap) & BLKREPL_BITMAP_BUSY);
    fresh();
}

static void accepted(void)
{
    create();
    job_drop(&env, &job);
    fresh();
}

/* ---- Which options go together ------------------------------------------------------------ */

static void a_bitmap_and_its_mode_need_each_other(void **state)
{
    (void)state;
    o.bitmap_mode = 0;
    refused(-EINVAL);
    o.bitmap_mode = 4;
    refused(-EINVAL);
    o.bitmap = NULL;
    refused(-EINVAL);
    o.bitmap = NULL;
    o.bitmap_mode = 0;
    refused(-EINVAL);
    o.sync = BLKREPL_SYNC_INCREMENTAL;
    o.bitmap = NULL;
    refused(-EINVAL);
    o.sync = BLKREPL_SYNC_FULL;
    o.bitmap = NULL;
    refused(-EINVAL);
    o.sync = BLKREPL_SYNC_FULL;
    o.bitmap_mode = 0;
    refused(-EINVAL);
}

static void every_sync_has_its_modes(void **state)
{
    static const struct {
        uint32_t sync, mode;
        bool good;
    } rows[] = {
        {BLKREPL_SYNC_BITMAP, BLKREPL_BITMAP_ON_SUCCESS, true},
        {BLKREPL_SYNC_BITMAP, BLKREPL_BITMAP_NEVER, true},
        {BLKREPL_SYNC_BITMAP, BLKREPL_BITMAP_ALWAYS, true},
        {BLKREPL_SYNC_INCREMENTAL, 0, true},
        {BLKREPL_SYNC_INCREMENTAL, BLKREPL_BITMAP_ON_SUCCESS, true},
        {BLKREPL_SYNC_INCREMENTAL, BLKREPL_BITMAP_NEVER, false},
        {BLKREPL_SYNC_INCREMENTAL, BLKREPL_BITMAP_ALWAYS, false},
        {BLKREPL_SYNC_FULL, BLKREPL_BITMAP_ON_SUCCESS, true},
        {BLKREPL_SYNC_FULL, BLKREPL_BITMAP_NEVER, false},
        {BLKREPL_SYNC_FULL, BLKREPL_BITMAP_ALWAYS, true},
        {0, BLKREPL_BITMAP_NEVER, false},
        {BLKREPL_SYNC_NONE, BLKREPL_BITMAP_ALWAYS, false},
        {BLKREPL_SYNC_NONE, BLKREPL_BITMAP_NEVER, true},
        {5, BLKREPL_BITMAP_ON_SUCCESS, false},
    };

    (void)state;
    for (size_t i = 0; i < ARRAY_COUNT(rows); i++) {
        o.sync = rows[i].sync;
        o.bitmap_mode = rows[i].mode;
        if (rows[i].good) {
            accepted();
        } else {
            refused(-EINVAL);
        }
    }
}

static void dirty_only_needs_sync_none_and_a_bitmap(void **state)
{
    (void)state;
    o.flags = BLKREPL_BACKUP_DIRTY_ONLY;
    refused(-EINVAL);
    o.flags = BLKREPL_BACKUP_DIRTY_ONLY;
    o.sync = BLKREPL_SYNC_NONE;
    o.bitmap = NULL;
    o.bitmap_mode = 0;
    refused(-EINVAL);
    o.flags = BLKREPL_BACKUP_DIRTY_ONLY;
    o.sync = BLKREPL_SYNC_NONE;
    accepted();
}

static void a_bitmap_of_another_size_or_context_is_refused(void **state)
{
    blkrepl_context *ctx = NULL;
    blkrepl_bitmap_options there = {.struct_size = sizeof there, .bytes = SIZE};

    (void)state;
    o.bitmap = bitmap_make(&env, SIZE + 1, CLUSTER);
    blkrepl_bitmap *wrong = o.bitmap;
    refused(-EINVAL);
    blkrepl_bitmap_free(wrong);
    ASSERT_CODE(blkrepl_context_create(NULL, &ctx), 0);
    ASSERT_CODE(blkrepl_bitmap_create(ctx, &there, &wrong), 0);
    o.bitmap = wrong;
    refused(-EINVAL);
    blkrepl_bitmap_free(wrong);
    ASSERT_CODE(blkrepl_context_free(ctx), 0);
}

static void an_inconsistent_bitmap_is_refused_by_create_and_by_start(void **state)
{
    blkrepl_bitmap *named = bitmap;

    (void)state;
    bitmap = bitmap_make(&env, SIZE, CLUSTER);
    ASSERT_CODE(blkrepl_bitmap_load_begin(bitmap), 0);
    fresh();
    refused(BLKREPL_ERR_STATE);
    ASSERT_CODE(blkrepl_bitmap_load_ones(bitmap, 0, SIZE), 0);
    ASSERT_CODE(blkrepl_bitmap_load_finish(bitmap), 0);
    create();
    ASSERT_CODE(blkrepl_bitmap_load_begin(bitmap), 0);
    ASSERT_CODE(blkrepl_job_start(job), BLKREPL_ERR_STATE);
    ASSERT_STATE(job, BLKREPL_JOB_CREATED);
    ASSERT_CODE(blkrepl_bitmap_load_ones(bitmap, 0, SIZE), 0);
    ASSERT_CODE(blkrepl_bitmap_load_finish(bitmap), 0);
    ASSERT_CODE(blkrepl_job_start(job), 0);
    env_drain(&env);
    ASSERT_ENDED(job, BLKREPL_RESULT_DONE, 0);
    assert_same(copy.tape.data, disk.start, SIZE, "target");
    blkrepl_bitmap_free(bitmap);
    bitmap = named;
}

static void a_busy_bitmap_is_refused_by_start_which_may_be_tried_again(void **state)
{
    (void)state;
    ASSERT_CODE(blkrepl_bitmap_freeze(bitmap), 0);
    create();
    ASSERT_CODE(blkrepl_job_start(job), -EBUSY);
    ASSERT_STATE(job, BLKREPL_JOB_CREATED);
    env_drain(&env);
    assert_int_equal(env.event_count, 0);
    guest_writes(&env, &disk, 7 * CLUSTER, 512, 9);
    assert_int_equal(tape_submitted(&copy.tape, 0), 0);
    ASSERT_CODE(blkrepl_bitmap_reclaim(bitmap), 0);
    part_note(&disk);
    ASSERT_CODE(blkrepl_job_start(job), 0);
    env_drain(&env);
    ASSERT_ENDED(job, BLKREPL_RESULT_DONE, 0);
    part_assert_holds(&copy, &disk, ".##...##");
}

/* ---- What can be done to it meanwhile ----------------------------------------- */

static bool busy_at_done;

static void look_at_done(struct env *e, const blkrepl_event *event)
{
    (void)e;
    if (event->type == BLKREPL_EVENT_JOB_DONE) {
        busy_at_done =
            bitmap_flags(bitmap) & BLKREPL_BITMAP_BUSY || blkrepl_bitmap_clear(bitmap) != 0;
    }
}

static void it_is_busy_from_the_start_to_the_end(void **state)
{
    (void)state;
    create();
    assert_false(bitmap_flags(bitmap) & BLKREPL_BITMAP_BUSY);
    bitmap_draw(bitmap, "#......."); /* what counts is the content at the start */
    copy.tape.hold = OPS_ALL;
    ASSERT_CODE(blkrepl_job_start(job), 0);
    env_drain(&env);
    assert_true(bitmap_flags(bitmap) & BLKREPL_BITMAP_BUSY);
    ASSERT_CODE(blkrepl_bitmap_clear(bitmap), -EBUSY);
    ASSERT_CODE(blkrepl_bitmap_remove(bitmap), -EBUSY);
    ASSERT_CODE(blkrepl_bitmap_disable(bitmap), -EBUSY);
    ASSERT_CODE(blkrepl_bitmap_freeze(bitmap), -EBUSY);
    ASSERT_CODE(blkrepl_bitmap_abdicate(bitmap), BLKREPL_ERR_STATE);
    ASSERT_CODE(blkrepl_bitmap_reclaim(bitmap), BLKREPL_ERR_STATE);
    guest_writes(&env, &disk, 5 * CLUSTER, 512, 9);
    ASSERT_CODE(blkrepl_bitmap_set(bitmap, 7 * CLUSTER, 1), 0); /* the successor gets it */
    ASSERT_BITS(bitmap, "###...#.");
    assert_int_equal(bitmap_info(bitmap).since_bytes, 2 * CLUSTER);
    busy_at_done = true;
    env.on_event = look_at_done;
    parts_run(&env, all, 3);
    env.on_event = NULL;
    ASSERT_ENDED(job, BLKREPL_RESULT_DONE, 0);
    assert_false(busy_at_done);
    part_assert_holds(&copy, &disk, "###...#.");
}

static void two_jobs_cannot_use_one_bitmap_at_once(void **state)
{
    blkrepl_job *second = NULL;
    static struct part spare;

    (void)state;
    part_open(&spare, &env, SIZE, 0);
    copy.tape.hold = OPS_ALL;
    create();
    ASSERT_CODE(blkrepl_job_start(job), 0);
    ASSERT_CODE(blkrepl_backup_create(other.image, spare.image, &o, &second), 0);
    ASSERT_CODE(blkrepl_job_start(second), -EBUSY);
    parts_run(&env, all, 3);
    ASSERT_BITS(bitmap, "........");
    ASSERT_CODE(blkrepl_job_start(second), 0);
    env_drain(&env);
    ASSERT_ENDED(second, BLKREPL_RESULT_DONE, 0);
    blkrepl_job_free(second);
    part_close(&spare);
    env_drain(&env);
    part_end(&spare);
}

static void its_handle_may_be_dropped_while_the_job_runs(void **state)
{
    blkrepl_bitmap *loose = bitmap_make(&env, SIZE, CLUSTER);

    (void)state;
    bitmap_draw(loose, "##......");
    o.bitmap = loose;
    create();
    copy.tape.hold = OPS_ALL;
    ASSERT_CODE(blkrepl_job_start(job), 0);
    blkrepl_bitmap_free(loose);
    parts_run(&env, all, 3);
    ASSERT_ENDED(job, BLKREPL_RESULT_DONE, 0);
    part_assert_holds(&copy, &disk, "##......");
}

/* ---- Whose bitmap it is ------------------------------------------------------- */

static void a_free_standing_bitmap_will_do(void **state)
{
    static const struct {
        uint32_t mode;
        const char *then;
    } rows[] = {{BLKREPL_BITMAP_ON_SUCCESS, "......#."},
                {BLKREPL_BITMAP_ALWAYS, "......#."},
                {BLKREPL_BITMAP_NEVER, "#..##.#."}};

    (void)state;
    for (size_t i = 0; i < ARRAY_COUNT(rows); i++) {
        blkrepl_bitmap *loose = bitmap_drawn(&env, CLUSTER, "#..##...");

        memset(copy.tape.data, 0, SIZE);
        part_note(&disk);
        o.bitmap = loose;
        o.bitmap_mode = rows[i].mode;
        copy.tape.hold = OPS_ALL;
        create();
        ASSERT_CODE(blkrepl_job_start(job), 0);
        guest_writes(&env, &disk, 3 * CLUSTER, 512, 10); /* nobody records that in it */
        ASSERT_CODE(blkrepl_bitmap_set(loose, 6 * CLUSTER, 1), 0);
        parts_run(&env, all, 3);
        ASSERT_ENDED(job, BLKREPL_RESULT_DONE, 0);
        part_assert_holds(&copy, &disk, "#..##...");
        ASSERT_BITS(loose, rows[i].then);
        job_drop(&env, &job);
        blkrepl_bitmap_free(loose);
    }
}

/* A free-standing one may have been resized before the start. */
static void a_bitmap_that_was_resized_meanwhile_does_no_harm(void **state)
{
    blkrepl_bitmap *loose = bitmap_drawn(&env, CLUSTER, "#..##...");

    (void)state;
    o.bitmap = loose;
    o.bitmap_mode = BLKREPL_BITMAP_NEVER;
    copy.tape.hold = OPS_ALL;
    create();
    ASSERT_CODE(blkrepl_bitmap_resize(loose, SIZE + 64 * CLUSTER), 0);
    int rc = blkrepl_job_start(job);
    if (rc == 0) {
        ASSERT_CODE(blkrepl_bitmap_set(loose, SIZE + 63 * CLUSTER, 1), 0);
        parts_run(&env, all, 3);
        ASSERT_ENDED(job, BLKREPL_RESULT_DONE, 0);
        part_assert_holds(&copy, &disk, "#..##...");
        assert_int_equal(blkrepl_bitmap_get(loose, SIZE + 63 * CLUSTER), 1);
    } else {
        ASSERT_STATE(job, BLKREPL_JOB_CREATED);
    }
    assert_int_equal(blkrepl_bitmap_get(loose, 0), 1);
    ASSERT_CODE(blkrepl_bitmap_validate(loose), 0);
    job_drop(&env, &job);
    blkrepl_bitmap_free(loose);
}

static void a_bitmap_of_another_image_records_what_is_written_there(void **state)
{
    blkrepl_bitmap *theirs = bitmap_put(other.image, "t", CLUSTER, 0);

    (void)state;
    bitmap_draw(theirs, "...#...#");
    o.bitmap = theirs;
    copy.tape.hold = OPS_ALL;
    create();
    ASSERT_CODE(blkrepl_job_start(job), 0);
    guest_writes(&env, &disk, 0, 512, 10);
    guest_writes(&env, &other, 2 * CLUSTER, 512, 10);
    parts_run(&env, all, 3);
    ASSERT_ENDED(job, BLKREPL_RESULT_DONE, 0);
    part_assert_holds(&copy, &disk, "...#...#");
    ASSERT_BITS(theirs, "..#.....");
    blkrepl_bitmap_free(theirs);
}

static void a_bitmap_that_does_not_record_is_used_up_all_the_same(void **state)
{
    (void)state;
    ASSERT_CODE(blkrepl_bitmap_disable(bitmap), 0);
    copy.tape.hold = OPS_ALL;
    create();
    ASSERT_CODE(blkrepl_job_start(job), 0);
    guest_writes(&env, &disk, 0, 512, 10);
    parts_run(&env, all, 3);
    part_assert_holds(&copy, &disk, ".##...#.");
    ASSERT_BITS(bitmap, "........");
    assert_int_equal(bitmap_flags(bitmap), 0);
}

static void a_clean_bitmap_is_done_at_once(void **state)
{
    (void)state;
    ASSERT_CODE(blkrepl_bitmap_clear(bitmap), 0);
    create();
    ASSERT_CODE(blkrepl_job_start(job), 0);
    env_drain(&env);
    ASSERT_ENDED(job, BLKREPL_RESULT_DONE, 0);
    assert_int_equal(tape_submitted(&copy.tape, BLKREPL_OP_WRITE), 0);
    assert_int_equal(job_info(job).bytes_done, job_info(job).bytes_total);
}

/* One dirty granule makes the whole cluster of the target be written. */
static void clusters_are_those_of_the_target(void **state)
{
    static struct part large;

    (void)state;
    tape_init(&large.tape, SIZE);
    large.tape.info.cluster_bytes = 2 * CLUSTER;
    part_open_prepared(&large, &env);
    ASSERT_CODE(blkrepl_bitmap_clear(bitmap), 0);
    bitmap_draw(bitmap, "...#....");
    o.cluster_bytes = CLUSTER;
    ASSERT_CODE(blkrepl_backup_create(disk.image, large.image, &o, &job), -ENOTSUP);
    o.cluster_bytes = 0;
    ASSERT_CODE(blkrepl_backup_start(disk.image, large.image, &o, &job), 0);
    env_drain(&env);
    ASSERT_ENDED(job, BLKREPL_RESULT_DONE, 0);
    assert_memory_equal(large.tape.data + 2 * CLUSTER, disk.start + 2 * CLUSTER, 2 * CLUSTER);
    assert_true(all_zero(large.tape.data, 2 * CLUSTER));
    assert_true(all_zero(large.tape.data + 4 * CLUSTER, 4 * CLUSTER));
    part_close(&large);
    env_drain(&env);
    part_end(&large);
}

/* What is not to be copied is not saved for the guest either. */
static void a_guest_waits_only_where_the_bitmap_is_dirty(void **state)
{
    struct req free_one = {0}, caught = {0};

    (void)state;
    create();
    ASSERT_CODE(blkrepl_job_pause(job), 0);
    ASSERT_CODE(blkrepl_job_start(job), 0);
    disk.tape.hold = BIT(BLKREPL_OP_READ);
    guest_write(&free_one, &disk, 4 * CLUSTER, 512, 11);
    guest_write(&caught, &disk, 2 * CLUSTER, 512, 11);
    env_drain(&env);
    req_assert_done(&free_one, 0);
    assert_true(REQ_PENDING(&caught));
    assert_int_equal(tape_pending(&disk.tape, BLKREPL_OP_READ), 1);
    parts_run(&env, all, 3);
    req_assert_done(&caught, 0);
    ASSERT_CODE(blkrepl_job_resume(job), 0);
    env_drain(&env);
    ASSERT_ENDED(job, BLKREPL_RESULT_DONE, 0);
    part_assert_holds(&copy, &disk, ".##...#.");
    ASSERT_BITS(bitmap, "..#.#...");
}

int main(void)
{
#define T(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)
    const struct CMUnitTest tests[] = {
        T(a_bitmap_and_its_mode_need_each_other),
        T(every_sync_has_its_modes),
        T(dirty_only_needs_sync_none_and_a_bitmap),
        T(a_bitmap_of_another_size_or_context_is_refused),
        T(an_inconsistent_bitmap_is_refused_by_create_and_by_start),
        T(a_busy_bitmap_is_refused_by_start_which_may_be_tried_again),
        T(it_is_busy_from_the_start_to_the_end),
        T(two_jobs_cannot_use_one_bitmap_at_once),
        T(its_handle_may_be_dropped_while_the_job_runs),
        T(a_free_standing_bitmap_will_do),
        T(a_bitmap_that_was_resized_meanwhile_does_no_harm),
        T(a_bitmap_of_another_image_records_what_is_written_there),
        T(a_bitmap_that_does_not_record_is_used_up_all_the_same),
        T(a_clean_bitmap_is_done_at_once),
        T(clusters_are_those_of_the_target),
        T(a_guest_waits_only_where_the_bitmap_is_dirty),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
