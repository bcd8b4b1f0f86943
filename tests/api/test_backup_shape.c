/* SPDX-License-Identifier: MIT */
/* How a backup writes: clusters that fit the target, compressed ones, and the pace
 * that speed and burst allow. */
#include "stage.h"

#define SIZE (16 * CLUSTER + 3000)

static struct env env;
static struct part disk, copy;
static struct part *const both[] = {&disk, &copy};
static blkrepl_job *job;
static blkrepl_backup_options o;

static int set_up(void **state)
{
    (void)state;
    env_open(&env, NULL, 0);
    part_open(&disk, &env, SIZE, 1);
    tape_init(&copy.tape, SIZE);
    job = NULL;
    o = (blkrepl_backup_options){.struct_size = sizeof o, .workers_max = 2};
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    parts_run(&env, both, 2);
    blkrepl_job_free(job);
    parts_close(&env, both, 2);
    return 0;
}

static void start(void)
{
    ASSERT_CODE(blkrepl_backup_start(disk.image, copy.image, &o, &job), 0);
    env_drain(&env);
}

static void done(void)
{
    ASSERT_ENDED(job, BLKREPL_RESULT_DONE, 0);
    assert_same(copy.tape.data, disk.start, SIZE, "target");
}

/* Every write begins and ends where a cluster does, or at the end of the image. */
static void writes_are_whole(uint64_t cluster)
{
    size_t n = 0;

    for (size_t i = 0; i < copy.tape.log_count; i++) {
        const struct tape_record *r = &copy.tape.log[i];

        if (r->opcode == BLKREPL_OP_WRITE || r->opcode == BLKREPL_OP_ZEROES) {
            uint64_t end = r->offset + r->bytes;

            assert_true(r->offset % cluster == 0 && (end % cluster == 0 || end == SIZE));
            n++;
        }
    }
    assert_true(n > 0);
}

/* ---- Clusters -------------------------------------------------------------------------- */

static void clusters_are_as_large_as_the_target_needs(void **state)
{
    static const uint64_t wants[] = {64 * KIB, 128 * KIB, 256 * KIB};

    (void)state;
    copy.tape.info.cluster_bytes = 128 * KIB;
    part_open_prepared(&copy, &env);
    for (size_t i = 0; i < ARRAY_COUNT(wants); i++) {
        o.cluster_bytes = wants[i];
        if (wants[i] < 128 * KIB) {
            ASSERT_CODE(blkrepl_backup_create(disk.image, copy.image, &o, &job), -ENOTSUP);
            assert_null(job);
            o.cluster_bytes = 0;
        }
        start();
        for (uint64_t at = 0; at < SIZE; at += 100000) { /* copies for guests too */
            guest_writes(&env, &disk, at, 512, 50);
        }
        done();
        writes_are_whole(o.cluster_bytes ? wants[i] : 128 * KIB);
        blkrepl_job_free(job);
        job = NULL;
        env_drain(&env);
        part_note(&disk);
    }
}

static void a_guest_copies_whole_clusters_too(void **state)
{
    (void)state;
    copy.tape.info.cluster_bytes = 256 * KIB;
    part_open_prepared(&copy, &env);
    ASSERT_CODE(blkrepl_backup_create(disk.image, copy.image, &o, &job), 0);
    ASSERT_CODE(blkrepl_job_pause(job), 0);
    ASSERT_CODE(blkrepl_job_start(job), 0);
    guest_writes(&env, &disk, 300 * KIB, 512, 50);
    guest_writes(&env, &disk, SIZE - 1, 1, 50);
    writes_are_whole(256 * KIB);
    assert_memory_equal(copy.tape.data + 256 * KIB, disk.start + 256 * KIB, 256 * KIB);
    ASSERT_CODE(blkrepl_job_resume(job), 0);
    env_drain(&env);
    done();
}

static void clusters_are_64_kib_if_nobody_needs_more(void **state)
{
    (void)state;
    copy.tape.info.cluster_bytes = 4096;
    part_open_prepared(&copy, &env);
    start();
    done();
    writes_are_whole(64 * KIB);
}

/* ---- Compressed ---------------------------------------------------------------------------- */

static void compress_is_refused_by_a_target_that_cannot(void **state)
{
    (void)state;
    part_open_prepared(&copy, &env);
    o.flags = BLKREPL_BACKUP_COMPRESS;
    ASSERT_CODE(blkrepl_backup_create(disk.image, copy.image, &o, &job), -ENOTSUP);
    assert_null(job);
}

static void compress_is_passed_on_one_cluster_a_request(void **state)
{
    (void)state;
    memset(disk.tape.data + 6 * CLUSTER, 0, 2 * CLUSTER);
    part_note(&disk);
    copy.tape.info.flags = BLKREPL_BACKEND_COMPRESS;
    copy.tape.info.cluster_bytes = 32 * KIB;
    part_open_prepared(&copy, &env);
    o.flags = BLKREPL_BACKUP_COMPRESS;
    o.cluster_bytes = 0;
    o.chunk_bytes_max = MIB;
    start();
    guest_writes(&env, &disk, 15 * CLUSTER, 512, 50);
    done();
    for (size_t i = 0; i < copy.tape.log_count; i++) {
        const struct tape_record *r = &copy.tape.log[i];

        if (r->opcode == BLKREPL_OP_WRITE) { /* "one cluster of the backend, or its last one" */
            assert_true(r->flags & BLKREPL_IO_COMPRESS);
            assert_int_equal(r->offset % (32 * KIB), 0);
            assert_true(r->bytes == 32 * KIB || r->offset + r->bytes == SIZE);
        }
    }
    writes_are_whole(32 * KIB);
}

/* ---- Pace --------------------------------------------------------------------- */

/* After `ms` of running, this much may have been copied at most, and at least. */
static void pace(uint64_t speed, uint64_t burst)
{
    o.speed_bytes_per_sec = speed;
    o.speed_burst_bytes = burst;
    o.cluster_bytes = 4096;
    o.chunk_bytes_max = 4096;
    o.workers_max = 1;
    start();
    for (uint64_t ms = 0; job_state(job) != BLKREPL_JOB_CONCLUDED; ms += 10) {
        uint64_t bytes = job_info(job).bytes_done;

        if (bytes > burst + speed * ms / 1000 + 8192 ||
            (bytes + 8192 < speed * ms / 1000 && bytes + 4096 < SIZE)) {
            fail_msg("after %llu ms %llu bytes are copied", (unsigned long long)ms,
                     (unsigned long long)bytes);
        }
        assert_true(ms < 60000);
        env_advance(&env, SECOND / 100);
    }
    done();
}

static void the_speed_is_kept(void **state)
{
    (void)state;
    part_open_prepared(&copy, &env);
    pace(200 * KIB, 20 * KIB);
}

/* A job that was paused for long goes on with one burst, not with all that it missed. */
static void a_burst_follows_idleness(void **state)
{
    (void)state;
    part_open_prepared(&copy, &env);
    o.speed_bytes_per_sec = 64 * KIB;
    o.speed_burst_bytes = 5 * CLUSTER;
    o.cluster_bytes = CLUSTER;
    o.chunk_bytes_max = CLUSTER;
    o.workers_max = 1;
    start();
    ASSERT_CODE(blkrepl_job_pause(job), 0);
    env_drain(&env);
    uint64_t before = job_info(job).bytes_done;
    env_advance(&env, 1000 * SECOND);
    assert_int_equal(job_info(job).bytes_done, before);
    ASSERT_CODE(blkrepl_job_resume(job), 0);
    env_drain(&env);
    uint64_t passed = job_info(job).bytes_done - before;
    assert_true(passed >= 5 * CLUSTER && passed <= 6 * CLUSTER);
    ASSERT_CODE(blkrepl_job_set_speed(job, 0), 0);
    env_drain(&env);
    done();
}

int main(void)
{
#define T(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)
    const struct CMUnitTest tests[] = {
        T(clusters_are_as_large_as_the_target_needs),
        T(a_guest_copies_whole_clusters_too),
        T(clusters_are_64_kib_if_nobody_needs_more),
        T(compress_is_refused_by_a_target_that_cannot),
        T(compress_is_passed_on_one_cluster_a_request),
        T(the_speed_is_kept),
        T(a_burst_follows_idleness),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
