/* SPDX-License-Identifier: MIT */
/* Memory of jobs: all of it is taken by create, which gives everything back when it
 * cannot have it; from the start to the end nothing is allocated. */
#include "stage.h"

#define SIZE (16 * CLUSTER)

static struct env env;
static struct part disk, copy, spill;
static struct part *const all[] = {&disk, &copy, &spill};
static blkrepl_bitmap *bitmap;
static blkrepl_throttle *throttle;
static blkrepl_job *job;

static int set_up_with(const blkrepl_context_options *o)
{
    blkrepl_throttle_options l = {.struct_size = sizeof l, .bytes_per_sec = 1000 * MIB};

    env_open(&env, o, 0);
    part_open(&disk, &env, SIZE, 1);
    part_open(&copy, &env, SIZE, 0);
    part_open(&spill, &env, SIZE, 9);
    bitmap = bitmap_put(disk.image, "b", 4096, 0);
    ASSERT_CODE(blkrepl_bitmap_set(bitmap, 0, SIZE), 0);
    ASSERT_CODE(blkrepl_throttle_create(env.ctx, &l, &throttle), 0);
    job = NULL;
    return 0;
}

static int set_up(void **state)
{
    (void)state;
    return set_up_with(NULL);
}

static int tear_down(void **state)
{
    (void)state;
    parts_run(&env, all, 3);
    blkrepl_job_free(job);
    blkrepl_throttle_free(throttle);
    blkrepl_bitmap_free(bitmap);
    parts_close(&env, all, 3);
    return 0;
}

static int create_backup(blkrepl_job **out)
{
    blkrepl_backup_options o = {.struct_size = sizeof o,
                                .sync = BLKREPL_SYNC_BITMAP,
                                .bitmap = bitmap,
                                .bitmap_mode = BLKREPL_BITMAP_ALWAYS,
                                .spill = spill.image,
                                .throttle = throttle,
                                .on_source_error = BLKREPL_ON_ERROR_STOP,
                                .on_target_error = BLKREPL_ON_ERROR_STOP,
                                .cluster_bytes = 16 * KIB,
                                .reserve_bytes = CLUSTER,
                                .workers_max = 4};

    return blkrepl_backup_create(disk.image, copy.image, &o, out);
}

static int create_verify(blkrepl_job **out)
{
    blkrepl_verify_options o = {.struct_size = sizeof o,
                                .differing = bitmap,
                                .throttle = throttle,
                                .on_error = BLKREPL_ON_ERROR_IGNORE};

    return blkrepl_verify_create(disk.image, copy.image, &o, out);
}

static int create_fleecing(blkrepl_job **out)
{
    blkrepl_backup_options o = {.struct_size = sizeof o, .sync = BLKREPL_SYNC_NONE};

    return blkrepl_backup_create(disk.image, copy.image, &o, out);
}

/* ---- Nothing on the way ----------------------------------------------------------------- */

static uint64_t allocations(void)
{
    return env.heap.calls;
}

static void guests_everywhere(void)
{
    for (uint64_t at = 0; at + 20000 < SIZE; at += 70000) {
        guest_writes(&env, &disk, at, 20000, 50);
    }
}

static void a_backup_allocates_nothing_from_its_start_to_its_end(void **state)
{
    (void)state;
    ASSERT_CODE(create_backup(&job), 0);
    part_note(&disk);
    uint64_t before = allocations();
    env.heap.fail_at = before + 1; /* and it would not get anything */
    env.heap.fail_on = true;
    copy.tape.hold = BIT(BLKREPL_OP_WRITE);
    ASSERT_CODE(blkrepl_job_start(job), 0);
    guests_everywhere();
    tape_finish_all(&copy.tape, 0, -EIO);
    env_drain(&env);
    assert_true(job_has(job, BLKREPL_JOB_FLAG_ERROR_PAUSED));
    guests_everywhere();
    copy.tape.hold = 0;
    tape_finish_all(&copy.tape, 0, 0);
    ASSERT_CODE(blkrepl_job_resume(job), 0);
    for (int i = 0; i < 100; i++) {
        env_advance(&env, SECOND / 100);
    }
    env.heap.fail_at = 0;
    ASSERT_ENDED(job, BLKREPL_RESULT_DONE, 0);
    assert_int_equal(allocations(), before);
    assert_same(copy.tape.data, disk.start, SIZE, "target");
}

static void a_verify_allocates_nothing_from_its_start_to_its_end(void **state)
{
    (void)state;
    ASSERT_CODE(create_verify(&job), 0);
    uint64_t before = allocations();
    env.heap.fail_at = before + 1;
    env.heap.fail_on = true;
    part_fail(&disk, BLKREPL_OP_READ, 5 * CLUSTER, 512, -EIO);
    ASSERT_CODE(blkrepl_job_start(job), 0);
    guests_everywhere();
    for (int i = 0; i < 100; i++) {
        env_advance(&env, SECOND / 100);
    }
    env.heap.fail_at = 0;
    ASSERT_ENDED(job, BLKREPL_RESULT_FAILED, -EIO);
    assert_int_equal(allocations(), before);
    part_mend(&disk);
}

static void a_group_and_a_snapshot_allocate_nothing_on_the_way(void **state)
{
    blkrepl_image *snapshot = NULL;
    blkrepl_group *group = NULL;
    static uint8_t out[SIZE];

    (void)state;
    ASSERT_CODE(create_fleecing(&job), 0);
    ASSERT_CODE(blkrepl_group_create(env.ctx, 0, &group), 0);
    ASSERT_CODE(blkrepl_group_add(group, job), 0);
    part_note(&disk);
    uint64_t before = allocations();
    ASSERT_CODE(blkrepl_group_start(group), 0);
    env_drain(&env);
    assert_int_equal(allocations(), before);
    ASSERT_CODE(blkrepl_snapshot_open(job, NULL, &snapshot), 0);
    before = allocations();
    guests_everywhere();
    ASSERT_CODE(read_now(&env, snapshot, 0, out, SIZE), 0);
    assert_same(out, disk.start, SIZE, "snapshot");
    ASSERT_CODE(blkrepl_job_complete(job), 0);
    env_drain(&env);
    ASSERT_ENDED(job, BLKREPL_RESULT_DONE, 0);
    assert_int_equal(allocations(), before);
    blkrepl_image_close(snapshot);
    blkrepl_group_free(group);
}

/* ---- Nothing left of what failed ----------------------------------------------------------- */

/* Every allocation of a create fails once: refused, and nothing is taken. */
static void each_allocation_fails(int (*create)(blkrepl_job **out))
{
    blkrepl_bitmap_info then = bitmap_info(bitmap);
    bool made = false;

    for (uint64_t n = 1; !made; n++) {
        uint64_t live = env.heap.live;

        assert_true(n < 1000);
        job = (blkrepl_job *)&env;
        env.heap.fail_at = allocations() + n;
        int rc = create(&job);
        env.heap.fail_at = 0;
        made = rc == 0;
        if (!made) {
            ASSERT_CODE(rc, -ENOMEM);
            assert_null(job);
            env_drain(&env);
            assert_int_equal(env.heap.live, live);
            ASSERT_CODE(write_now(&env, copy.image, 0, "x", 1), 0);
            ASSERT_CODE(write_now(&env, spill.image, 0, "x", 1), 0);
            assert_int_equal(bitmap_flags(bitmap), then.flags);
        }
    }
    job_drop(&env, &job);
}

static void a_create_that_gets_no_memory_takes_nothing(void **state)
{
    (void)state;
    each_allocation_fails(create_backup);
    each_allocation_fails(create_fleecing);
    each_allocation_fails(create_verify);
    ASSERT_CODE(create_backup(&job), 0);
}

static void a_snapshot_that_gets_no_memory_is_refused(void **state)
{
    blkrepl_image *snapshot = NULL;
    bool made = false;

    (void)state;
    ASSERT_CODE(create_fleecing(&job), 0);
    ASSERT_CODE(blkrepl_job_start(job), 0);
    env_drain(&env);
    for (uint64_t n = 1; !made; n++) {
        uint64_t live = env.heap.live;

        assert_true(n < 1000);
        env.heap.fail_at = allocations() + n;
        int rc = blkrepl_snapshot_open(job, NULL, &snapshot);
        env.heap.fail_at = 0;
        made = rc == 0;
        if (!made) {
            ASSERT_CODE(rc, -ENOMEM);
            assert_null(snapshot);
            env_drain(&env);
            assert_int_equal(env.heap.live, live);
        }
    }
    blkrepl_image_close(snapshot);
    ASSERT_CODE(blkrepl_job_cancel(job, 0), 0);
    env_drain(&env);
}

static void groups_and_throttles_that_get_no_memory_are_refused(void **state)
{
    blkrepl_throttle_options l = {.struct_size = sizeof l};
    blkrepl_throttle *t = (blkrepl_throttle *)&env;
    blkrepl_group *g = (blkrepl_group *)&env;

    (void)state;
    env.heap.fail_at = allocations() + 1;
    ASSERT_CODE(blkrepl_group_create(env.ctx, 0, &g), -ENOMEM);
    assert_null(g);
    env.heap.fail_at = allocations() + 1;
    ASSERT_CODE(blkrepl_throttle_create(env.ctx, &l, &t), -ENOMEM);
    assert_null(t);
    env.heap.fail_at = 0;
}

/* ---- What the context allows -------------------------------------------------- */

static void the_memory_of_the_context_is_shared_by_all_jobs(void **state)
{
    const blkrepl_context_options o = {.struct_size = sizeof o, .memory_bytes_max = 2 * MIB};
    blkrepl_backup_options b = {.struct_size = sizeof b, .reserve_bytes = 64 * MIB};

    (void)state;
    tear_down(NULL);
    set_up_with(&o);
    ASSERT_CODE(blkrepl_backup_create(disk.image, copy.image, &b, &job), -ENOMEM);
    assert_null(job);
    b.reserve_bytes = CLUSTER;
    b.workers_max = 1;
    ASSERT_CODE(blkrepl_backup_create(disk.image, copy.image, &b, &job), 0);
    job_drop(&env, &job);
    for (int i = 0; i < 50; i++) { /* and given back by each */
        ASSERT_CODE(blkrepl_backup_create(disk.image, copy.image, &b, &job), 0);
        ASSERT_CODE(blkrepl_job_start(job), 0);
        env_drain(&env);
        ASSERT_ENDED(job, BLKREPL_RESULT_DONE, 0);
        job_drop(&env, &job);
        ASSERT_CODE(blkrepl_verify_create(
                        disk.image, copy.image,
                        &(blkrepl_verify_options){.struct_size = sizeof(blkrepl_verify_options),
                                                  .workers_max = 1,
                                                  .chunk_bytes_max = CLUSTER},
                        &job),
                    0);
        ASSERT_CODE(blkrepl_job_start(job), 0);
        env_drain(&env);
        ASSERT_ENDED(job, BLKREPL_RESULT_DONE, 0);
        assert_int_equal(job_info(job).differing_bytes, 0);
        job_drop(&env, &job);
    }
}

static void the_requests_of_the_context_are_shared_by_all_jobs(void **state)
{
    const blkrepl_context_options o = {.struct_size = sizeof o, .job_requests_max = 64};
    blkrepl_snapshot_options s = {.struct_size = sizeof s, .queue_depth = 1024};
    blkrepl_backup_options none = {
        .struct_size = sizeof none, .sync = BLKREPL_SYNC_NONE, .workers_max = 1};
    blkrepl_image *snapshot = NULL;

    (void)state;
    tear_down(NULL);
    set_up_with(&o);
    none.reserve_bytes = CLUSTER;
    ASSERT_CODE(blkrepl_backup_start(disk.image, copy.image, &none, &job), 0);
    env_drain(&env);
    ASSERT_CODE(blkrepl_snapshot_open(job, &s, &snapshot), -ENOMEM);
    assert_null(snapshot);
    s.queue_depth = 2;
    for (int i = 0; i < 100; i++) { /* given back by each that is closed */
        ASSERT_CODE(blkrepl_snapshot_open(job, &s, &snapshot), 0);
        blkrepl_image_close(snapshot);
        env_drain(&env);
    }
    ASSERT_CODE(blkrepl_job_complete(job), 0);
    env_drain(&env);
    job_drop(&env, &job);
    ASSERT_CODE(blkrepl_verify_create(
                    disk.image, copy.image,
                    &(blkrepl_verify_options){.struct_size = sizeof(blkrepl_verify_options),
                                              .workers_max = 256},
                    &job),
                -ENOMEM);
    assert_null(job);
}

int main(void)
{
#define T(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)
    const struct CMUnitTest tests[] = {
        T(a_backup_allocates_nothing_from_its_start_to_its_end),
        T(a_verify_allocates_nothing_from_its_start_to_its_end),
        T(a_group_and_a_snapshot_allocate_nothing_on_the_way),
        T(a_create_that_gets_no_memory_takes_nothing),
        T(a_snapshot_that_gets_no_memory_is_refused),
        T(groups_and_throttles_that_get_no_memory_are_refused),
        T(the_memory_of_the_context_is_shared_by_all_jobs),
        T(the_requests_of_the_context_are_shared_by_all_jobs),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
