/* SPDX-License-Identifier: MIT */
/* Threads: guests write, others give verbs to whatever job they find and change a
 * throttle, while two jobs of one group run: a backup that spills, and one that makes
 * a snapshot.  Both are of one instant, so the snapshot, read twice meanwhile, and the
 * backup's target hold the same bytes. */
#include "stage.h"

#include <sched.h>

#define SIZE (24 * CLUSTER)
#define WRITERS 2
#define BLOCK 4096

static struct env env;
static blkrepl_image *source, *target, *fleece, *spill;
static blkrepl_throttle *throttle;
static _Atomic bool stop_writers, stop_verbs, stop_poller;
static _Atomic unsigned written;

static blkrepl_image *memory_image(void)
{
    blkrepl_image *image = NULL;

    ASSERT_CODE(blkrepl_image_open_memory(env.ctx, SIZE, NULL, &image), 0);
    return image;
}

/* ---- Threads ----------------------------------------------------------------------------- */

struct worker {
    pthread_t thread;
    uint32_t number;
    int error;
};

static void *writer_run(void *user)
{
    struct worker *w = user;
    struct rng rng = {.state = w->number + 1};
    uint8_t block[BLOCK];

    while (!atomic_load(&stop_writers) && !w->error) {
        uint64_t at = rng_below(&rng, SIZE / BLOCK) * BLOCK;
        blkrepl_iovec iov = {block, sizeof block};

        fill(block, sizeof block, at, (unsigned)rng_below(&rng, 256));
        w->error = blkrepl_image_write_wait(source, w->number + 1, at, &iov, 1, 0);
        atomic_fetch_add(&written, 1);
    }
    return NULL;
}

/* "-" in the table, or 0. */
static bool fair(int rc)
{
    return rc == 0 || rc == BLKREPL_ERR_STATE;
}

static int some_verb(struct rng *rng, blkrepl_job *job)
{
    blkrepl_job_info info = {.struct_size = sizeof info};

    switch (rng_below(rng, 6)) {
    case 0: return blkrepl_job_pause(job);
    case 1:
    case 2: return blkrepl_job_resume(job);
    case 3: return blkrepl_job_set_speed(job, rng_below(rng, 2) * 64 * MIB);
    case 4: return blkrepl_job_dismiss(job);
    default: return blkrepl_job_query(job, &info);
    }
}

static int some_limit(struct rng *rng)
{
    blkrepl_throttle_options o = {.struct_size = sizeof o,
                                  .bytes_per_sec = rng_below(rng, 2) * 256 * MIB};

    if (rng_percent(rng, 30)) {
        return blkrepl_image_set_throttle(source, rng_percent(rng, 50) ? throttle : NULL);
    }
    return blkrepl_throttle_set(throttle, &o);
}

static void *verbs_run(void *user)
{
    struct worker *w = user;
    struct rng rng = {.state = w->number + 77};
    uint64_t after = 0;

    while (!atomic_load(&stop_verbs) && !w->error) {
        blkrepl_job *job = NULL;
        int rc = blkrepl_job_next(env.ctx, after, &job);

        if (rc == 0) {
            blkrepl_job_info info = {.struct_size = sizeof info};

            blkrepl_job_query(job, &info);
            after = info.id;
            w->error = fair(some_verb(&rng, job)) ? 0 : 1;
            blkrepl_job_free(job);
        } else {
            after = 0;
            w->error = rc == -ENOENT ? some_limit(&rng) : rc;
        }
        sched_yield();
    }
    return NULL;
}

static void *poller_run(void *user)
{
    (void)user;
    while (!atomic_load(&stop_poller)) {
        blkrepl_poll(env.ctx, 0, 1000000);
    }
    return NULL;
}

/* ---- One round ------------------------------------------------------------------------------- */

static uint8_t *read_all(blkrepl_image *image)
{
    uint8_t *data = malloc(SIZE);

    assert_non_null(data);
    for (uint64_t at = 0; at < SIZE; at += CLUSTER) {
        blkrepl_iovec iov = {data + at, CLUSTER};

        ASSERT_CODE(blkrepl_image_read_wait(image, 0, at, &iov, 1, 0), 0);
    }
    return data;
}

/* Whatever the others do to it, it gets there. */
static void until(blkrepl_job *job, uint32_t state)
{
    while (job_state(job) < state) {
        sched_yield();
    }
}

static void unpaused(blkrepl_job *job)
{
    assert_true(fair(blkrepl_job_resume(job)));
    assert_true(fair(blkrepl_job_set_speed(job, 0)));
}

static void one_round(void)
{
    blkrepl_backup_options full = {.struct_size = sizeof full,
                                   .name = "full",
                                   .spill = spill,
                                   .spill_bytes_max = 8 * CLUSTER,
                                   .throttle = throttle};
    blkrepl_backup_options none = {.struct_size = sizeof none, .sync = BLKREPL_SYNC_NONE};
    blkrepl_job *backup = NULL, *fleecing = NULL;
    blkrepl_image *snapshot = NULL;
    blkrepl_group *group = NULL;

    ASSERT_CODE(blkrepl_backup_create(source, target, &full, &backup), 0);
    ASSERT_CODE(blkrepl_backup_create(source, fleece, &none, &fleecing), 0);
    ASSERT_CODE(blkrepl_group_create(env.ctx, BLKREPL_GROUP_INDIVIDUAL, &group), 0);
    ASSERT_CODE(blkrepl_group_add(group, backup), 0);
    ASSERT_CODE(blkrepl_group_add(group, fleecing), 0);
    ASSERT_CODE(blkrepl_group_start(group), 0);
    until(fleecing, BLKREPL_JOB_READY);
    ASSERT_CODE(blkrepl_snapshot_open(fleecing, NULL, &snapshot), 0);
    uint8_t *first = read_all(snapshot);
    while (job_state(backup) != BLKREPL_JOB_CONCLUDED) {
        unpaused(backup);
        sched_yield();
    }
    ASSERT_ENDED(backup, BLKREPL_RESULT_DONE, 0);
    uint8_t *second = read_all(snapshot);
    uint8_t *copied = read_all(target);
    assert_same(first, second, SIZE, "the snapshot, read again");
    assert_same(copied, second, SIZE, "the backup beside the snapshot");
    blkrepl_image_close(snapshot);
    ASSERT_CODE(blkrepl_group_cancel(group, 0), 0);
    until(fleecing, BLKREPL_JOB_CONCLUDED);
    ASSERT_ENDED(fleecing, BLKREPL_RESULT_CANCELLED, -ECANCELED);
    assert_true(fair(blkrepl_job_dismiss(backup))); /* its name is used again */
    blkrepl_job_free(backup);
    blkrepl_job_free(fleecing);
    blkrepl_group_free(group);
    free(first);
    free(second);
    free(copied);
}

static void what_is_of_one_instant_is_the_same(void **state)
{
    const blkrepl_context_options o = {.struct_size = sizeof o, .lane_count = WRITERS + 1};
    const blkrepl_throttle_options l = {.struct_size = sizeof l};
    struct worker writers[WRITERS] = {{0}}, verbs[2] = {{0}};
    pthread_t poller;

    (void)state;
    env_open(&env, &o, ENV_REAL_CLOCK);
    source = memory_image();
    target = memory_image();
    fleece = memory_image();
    spill = memory_image();
    ASSERT_CODE(blkrepl_throttle_create(env.ctx, &l, &throttle), 0);
    assert_int_equal(pthread_create(&poller, NULL, poller_run, NULL), 0);
    for (uint32_t i = 0; i < WRITERS; i++) {
        writers[i].number = i;
        assert_int_equal(pthread_create(&writers[i].thread, NULL, writer_run, &writers[i]), 0);
    }
    for (uint32_t i = 0; i < 2; i++) {
        verbs[i].number = i;
        assert_int_equal(pthread_create(&verbs[i].thread, NULL, verbs_run, &verbs[i]), 0);
    }
    for (int round = 0; round < (quick() ? 3 : 20); round++) {
        one_round();
    }
    atomic_store(&stop_verbs, true);
    for (int i = 0; i < 2; i++) {
        pthread_join(verbs[i].thread, NULL);
        ASSERT_CODE(verbs[i].error, 0);
    }
    atomic_store(&stop_writers, true);
    for (int i = 0; i < WRITERS; i++) {
        pthread_join(writers[i].thread, NULL);
        ASSERT_CODE(writers[i].error, 0);
    }
    assert_true(atomic_load(&written) > 0);
    atomic_store(&stop_poller, true);
    pthread_join(poller, NULL);
    blkrepl_throttle_free(throttle);
    blkrepl_image_close(source);
    blkrepl_image_close(target);
    blkrepl_image_close(fleece);
    blkrepl_image_close(spill);
    env_close(&env);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_is_of_one_instant_is_the_same),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
