/* SPDX-License-Identifier: MIT */
/* Guests in several threads, completers in others, one poller, and a backup. */
#include <sched.h>

#include "tape.h"

#define BLOCK 4096
#define WRITERS 4
#define BLOCKS 256 /* block b belongs to writer b % WRITERS */
#define SIZE ((uint64_t)BLOCKS * BLOCK)

static struct env env;
static struct tape disk, copy;
static blkrepl_image *source, *target;
static _Atomic bool stop_writers, stop_poller, stop_completers;
static _Atomic uint32_t acked[BLOCKS];  /* newest version that was acknowledged */
static _Atomic uint32_t issued[BLOCKS]; /* newest version that was begun        */
static _Atomic unsigned errors;

/* What a thread that issues one request at a time waits on. */
struct waiter {
    pthread_mutex_t lock;
    pthread_cond_t cond;
    bool done;
    int result;
};

static void waiter_done(void *user, int result)
{
    struct waiter *w = user;

    pthread_mutex_lock(&w->lock);
    w->done = true;
    w->result = result;
    pthread_cond_signal(&w->cond);
    pthread_mutex_unlock(&w->lock);
}

static int waiter_wait(struct waiter *w)
{
    pthread_mutex_lock(&w->lock);
    while (!w->done) {
        pthread_cond_wait(&w->cond, &w->lock);
    }
    w->done = false;
    int result = w->result;
    pthread_mutex_unlock(&w->lock);
    return result;
}

static void stamp(uint8_t *block, uint32_t index, uint32_t version)
{
    for (size_t i = 0; i < BLOCK; i += 8) {
        memcpy(block + i, &index, 4);
        memcpy(block + i + 4, &version, 4);
    }
}

/* The version that fills the block, or UINT32_MAX when it is torn. */
static uint32_t version_of(const uint8_t *block, uint32_t index)
{
    uint8_t want[BLOCK];
    uint32_t version;

    memcpy(&version, block + 4, 4);
    stamp(want, index, version);
    return memcmp(block, want, BLOCK) == 0 ? version : UINT32_MAX;
}

static int write_through(struct waiter *w, uint32_t index, uint8_t *block)
{
    blkrepl_iovec iov = {block, BLOCK};
    blkrepl_completion done = {waiter_done, w, NULL};
    int rc = blkrepl_image_write(source, 0, (uint64_t)index * BLOCK, &iov, 1, 0, &done);

    return rc == 0 ? waiter_wait(w) : rc;
}

static int write_beside(struct waiter *w, uint32_t index, uint8_t *block)
{
    blkrepl_bracket what = {.struct_size = sizeof what,
                            .opcode = BLKREPL_OP_WRITE,
                            .offset = (uint64_t)index * BLOCK,
                            .bytes = BLOCK};
    blkrepl_completion go = {waiter_done, w, NULL};
    uint64_t token = 0;
    int rc = blkrepl_write_begin(source, &what, &go, &token);

    if (rc == BLKREPL_WAIT) {
        rc = waiter_wait(w);
    }
    if (rc == 0) {
        tape_poke(&disk, what.offset, block, BLOCK);
        rc = blkrepl_write_end(env.ctx, token, 0, NULL, 0, NULL);
    }
    return rc;
}

static void *writer(void *user)
{
    uint32_t me = *(uint32_t *)user;
    struct rng rng = {.state = me * 1000003};
    struct waiter w = {.lock = PTHREAD_MUTEX_INITIALIZER, .cond = PTHREAD_COND_INITIALIZER};
    uint8_t block[BLOCK];

    while (!atomic_load(&stop_writers)) {
        uint32_t index = (uint32_t)rng_below(&rng, BLOCKS / WRITERS) * WRITERS + me;
        uint32_t version = atomic_load(&issued[index]) + 1;

        stamp(block, index, version);
        atomic_store(&issued[index], version);
        int rc = rng_percent(&rng, 50) ? write_through(&w, index, block)
                                       : write_beside(&w, index, block);
        if (rc == 0) {
            atomic_store(&acked[index], version);
        } else {
            atomic_fetch_add(&errors, 1);
        }
    }
    return NULL;
}

/* Completes what is queued at one tape, in no order. */
static void *completer(void *user)
{
    struct tape *t = user;
    struct rng rng = {.state = (uintptr_t)1};

    for (;;) {
        pthread_mutex_lock(&t->lock);
        while (t->queue_count == 0 && !atomic_load(&stop_completers)) {
            pthread_cond_wait(&t->more, &t->lock);
        }
        size_t n = t->queue_count;
        pthread_mutex_unlock(&t->lock);
        if (n == 0) {
            return NULL;
        }
        /* Two of them may go for the last one: only one owns a tape here. */
        if (tape_finish(t, (int)rng_below(&rng, n), 0) != 0) {
            atomic_fetch_add(&errors, 1);
        }
    }
}

static void *poller(void *user)
{
    (void)user;
    while (!atomic_load(&stop_poller)) {
        if (blkrepl_poll(env.ctx, 0, SECOND) < 0) {
            atomic_fetch_add(&errors, 1);
        }
    }
    return NULL;
}

/* ---- The scene --------------------------------------------------------------------- */

static pthread_t writers[WRITERS], completers[2], poller_thread;
static uint32_t numbers[WRITERS] = {0, 1, 2, 3};

static void begin_threads(void)
{
    atomic_store(&stop_writers, false);
    atomic_store(&stop_poller, false);
    atomic_store(&stop_completers, false);
    atomic_store(&errors, 0);
    assert_int_equal(pthread_create(&poller_thread, NULL, poller, NULL), 0);
    assert_int_equal(pthread_create(&completers[0], NULL, completer, &disk), 0);
    assert_int_equal(pthread_create(&completers[1], NULL, completer, &copy), 0);
    for (size_t i = 0; i < WRITERS; i++) {
        assert_int_equal(pthread_create(&writers[i], NULL, writer, &numbers[i]), 0);
    }
}

static void wake(struct tape *t)
{
    pthread_mutex_lock(&t->lock);
    pthread_cond_broadcast(&t->more);
    pthread_mutex_unlock(&t->lock);
}

static void end_threads(void)
{
    atomic_store(&stop_writers, true);
    for (size_t i = 0; i < WRITERS; i++) {
        pthread_join(writers[i], NULL);
    }
    atomic_store(&stop_poller, true);
    blkrepl_poll_wake(env.ctx, 0);
    pthread_join(poller_thread, NULL);
    atomic_store(&stop_completers, true);
    wake(&disk);
    wake(&copy);
    pthread_join(completers[0], NULL);
    pthread_join(completers[1], NULL);
}

static void open_scene(void)
{
    env_open(&env, NULL, ENV_REAL_CLOCK);
    tape_init(&disk, SIZE);
    tape_init(&copy, SIZE);
    disk.info.opcodes = copy.info.opcodes = OPS_RW | BIT(BLKREPL_OP_FLUSH);
    disk.info.request_alignment = 512;
    disk.hold = copy.hold = OPS_ALL;
    for (uint32_t i = 0; i < BLOCKS; i++) {
        stamp(disk.data + (size_t)i * BLOCK, i, 1);
        atomic_store(&issued[i], 1);
        atomic_store(&acked[i], 1);
    }
    source = tape_open(&disk, &env);
    target = tape_open(&copy, &env);
}

static void close_scene(void)
{
    blkrepl_image_close(source);
    blkrepl_image_close(target);
    env_close(&env);
    tape_close(&disk);
    tape_close(&copy);
}

/* Wait for the job without sleeping on the clock: yield to the others. */
static blkrepl_job_info wait_for(blkrepl_job *job)
{
    blkrepl_job_info info;

    do {
        info = job_info(job);
        sched_yield();
    } while (info.state != BLKREPL_JOB_CONCLUDED);
    return info;
}

/* Each block of the backup holds one whole version, no older than the one that
 * was acknowledged before the start and no newer than what had been begun when
 * the start returned. */
static void a_backup_among_threads_holds_one_point_in_time(void **state)
{
    static uint32_t oldest[BLOCKS], newest[BLOCKS];
    int rounds = quick() ? 3 : 25;

    (void)state;
    open_scene();
    begin_threads();
    unsigned wrong = 0, failed = 0;
    for (int round = 0; round < rounds; round++) {
        blkrepl_backup_options o = {.struct_size = sizeof o,
                                    .cluster_bytes = 4096u << (round % 5),
                                    .on_cbw_error = 1 + (uint32_t)round % 2};
        blkrepl_job *job = NULL;

        failed += blkrepl_backup_create(source, target, &o, &job) != 0;
        if (!job) {
            break;
        }
        for (size_t i = 0; i < BLOCKS; i++) {
            oldest[i] = atomic_load(&acked[i]);
        }
        failed += blkrepl_job_start(job) != 0;
        for (size_t i = 0; i < BLOCKS; i++) {
            newest[i] = atomic_load(&issued[i]);
        }
        failed += wait_for(job).result != BLKREPL_RESULT_DONE;
        for (uint32_t i = 0; i < BLOCKS; i++) {
            uint8_t block[BLOCK];

            tape_peek(&copy, (uint64_t)i * BLOCK, block, BLOCK);
            uint32_t version = version_of(block, i);
            wrong += version < oldest[i] || version > newest[i];
        }
        blkrepl_job_free(job);
    }
    end_threads();
    assert_int_equal(failed, 0);
    assert_int_equal(wrong, 0);
    assert_int_equal(atomic_load(&errors), 0);
    close_scene();
}

static void what_was_acknowledged_is_on_the_disk(void **state)
{
    blkrepl_job *job = NULL;

    (void)state;
    open_scene();
    begin_threads();
    for (int i = 0; i < (quick() ? 3 : 20); i++) {
        if (blkrepl_backup_start(source, target, NULL, &job) != 0) {
            atomic_fetch_add(&errors, 1);
            break;
        }
        if (i % 2) {
            blkrepl_job_pause(job);
            blkrepl_job_cancel(job, 0);
        }
        wait_for(job);
        blkrepl_job_free(job);
    }
    end_threads();
    assert_int_equal(atomic_load(&errors), 0);
    for (uint32_t i = 0; i < BLOCKS; i++) {
        assert_int_equal(version_of(disk.data + (size_t)i * BLOCK, i), atomic_load(&acked[i]));
    }
    close_scene();
}

/* Cancels and completions that meet: each job ends once, nothing hangs. */
static void jobs_may_be_ended_from_any_thread(void **state)
{
    (void)state;
    open_scene();
    begin_threads();
    for (int i = 0; i < (quick() ? 20 : 200); i++) {
        blkrepl_job *job = NULL;

        int rc = blkrepl_backup_start(source, target, NULL, &job);
        if (rc == -EBUSY) { /* the last one, freed while it ran, still winds up */
            sched_yield();
            continue;
        }
        if (rc != 0) {
            atomic_fetch_add(&errors, 1);
            break;
        }
        if (i % 3) {
            blkrepl_job_cancel(job, BLKREPL_CANCEL_FORCE);
        }
        if (i % 2) {
            wait_for(job);
        }
        blkrepl_job_free(job);
    }
    end_threads();
    assert_int_equal(atomic_load(&errors), 0);
    disk.hold = copy.hold = 0;
    for (int i = 0; i < 100000 && blkrepl_poll(env.ctx, 0, 0) >= 0; i++) {
        if (tape_finish_all(&disk, 0, 0) + tape_finish_all(&copy, 0, 0) == 0 && i > 100) {
            break;
        }
    }
    close_scene();
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_backup_among_threads_holds_one_point_in_time),
        cmocka_unit_test(what_was_acknowledged_is_on_the_disk),
        cmocka_unit_test(jobs_may_be_ended_from_any_thread),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
