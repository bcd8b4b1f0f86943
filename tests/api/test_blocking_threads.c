/* SPDX-License-Identifier: MIT */
/* Brackets in blocking calls, and many threads in all of them at once. */
#include "call.h"

#include <semaphore.h>

#define BLOCK 4096
#define THREADS 8
#define OWNED 16 /* blocks of each thread */
#define BLOCKS (THREADS * OWNED)
#define SIZE ((uint64_t)BLOCKS * BLOCK)
#define LANES (THREADS + 1)

static struct env env;
static struct tape disk;
static blkrepl_image *image, *copy;

static void open_scene(uint32_t requests_max)
{
    blkrepl_context_options o = {
        .struct_size = sizeof o, .lane_count = LANES, .requests_max = requests_max};

    env_open(&env, &o, ENV_REAL_CLOCK);
    tape_init(&disk, SIZE);
    disk.lanes = LANES;
    disk.info.request_alignment = 512;
    image = tape_open(&disk, &env);
    ASSERT_CODE(blkrepl_image_open_memory(env.ctx, SIZE, NULL, &copy), 0);
}

static void close_scene(void)
{
    blkrepl_image_close(copy);
    blkrepl_image_close(image);
    env_close(&env);
    tape_close(&disk);
}

static int set_up(void **state)
{
    (void)state;
    open_scene(0);
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    close_scene();
    return 0;
}

/* ---- Brackets --------------------------------------------------------------------------- */

static struct call begin_of(uint64_t offset)
{
    return (struct call){
        .image = image, .kind = CALL_BEGIN, .lane = 1, .offset = offset, .bytes = BLOCK};
}

static int end(uint64_t token)
{
    return blkrepl_write_end(env.ctx, token, 0, NULL, 0, NULL);
}

static void go_comes_with_the_end_of_another_bracket(void **state)
{
    struct call first = begin_of(0), second = begin_of(512), third = begin_of(BLOCK);

    (void)state;
    ASSERT_CODE(call_make(&first), 0);
    call_start(&second);
    call_until_asleep(&second);
    call_start(&third);
    call_until_asleep(&third);
    image_await(image, 3);
    assert_false(atomic_load(&second.returned) || atomic_load(&third.returned));
    ASSERT_CODE(end(first.token), 0);
    ASSERT_CODE(call_join(&second), 0);
    assert_true(second.token != 0 && second.token != first.token);
    assert_false(atomic_load(&third.returned));
    ASSERT_CODE(end(second.token), 0);
    ASSERT_CODE(call_join(&third), 0);
    ASSERT_CODE(end(third.token), 0);
}

static void another_thread_may_cancel(void **state)
{
    struct call first = begin_of(0), second = begin_of(0);

    (void)state;
    ASSERT_CODE(call_make(&first), 0);
    call_start(&second);
    image_await(image, 2); /* its token is there */
    uint64_t token = second.token;
    assert_true(token != 0);
    ASSERT_CODE(blkrepl_write_cancel(env.ctx, token), BLKREPL_WAIT);
    ASSERT_CODE(call_join(&second), -ECANCELED);
    assert_int_equal(second.token, 0);
    ASSERT_CODE(end(token), -ENOENT);
    ASSERT_CODE(end(first.token), 0);
}

static blkrepl_job *start_backup(uint32_t on_cbw_error)
{
    blkrepl_backup_options o = {
        .struct_size = sizeof o, .cluster_bytes = BLOCK, .on_cbw_error = on_cbw_error};
    blkrepl_job *job = NULL;

    ASSERT_CODE(blkrepl_backup_start(image, copy, &o, &job), 0);
    return job;
}

/* Polls lane 0 and lets the disk work until the job has concluded. */
static void finish_backup(blkrepl_job *job, uint32_t result)
{
    while (job_info(job).state != BLKREPL_JOB_CONCLUDED) {
        tape_finish_all(&disk, 0, 0);
        blkrepl_poll(env.ctx, 0, SECOND / 1000);
    }
    assert_int_equal(job_info(job).result, result);
    blkrepl_job_free(job);
}

static void go_comes_when_the_backup_has_the_old_data(void **state)
{
    struct call begin = begin_of(SIZE - BLOCK), write = begin_of(SIZE - 2 * BLOCK);
    static uint8_t data[BLOCK];

    (void)state;
    memset(disk.data, 0x11, SIZE);
    disk.hold = BIT(BLKREPL_OP_READ);
    blkrepl_job *job = start_backup(0);
    write.kind = CALL_WRITE;
    write.memory = memset(data, 0x22, sizeof data);
    call_start(&begin);
    call_start(&write);
    tape_await(&disk, 2);
    image_await(image, 2);
    assert_false(atomic_load(&begin.returned) || atomic_load(&write.returned));
    finish_backup(job, BLKREPL_RESULT_DONE);
    ASSERT_CODE(call_join(&write), 0);
    ASSERT_CODE(call_join(&begin), 0);
    tape_poke(&disk, begin.offset, data, BLOCK);
    ASSERT_CODE(end(begin.token), 0);

    struct call read = {.image = copy, .offset = write.offset, .bytes = BLOCK, .memory = data};
    ASSERT_CODE(call_make(&read), 0);
    assert_int_equal(data[0], 0x11);
    read.offset = begin.offset;
    ASSERT_CODE(call_make(&read), 0);
    assert_int_equal(data[0], 0x11);
}

/* What the guest's write fails with is told; there is nothing to end. */
static void a_backup_may_fail_the_write(void **state)
{
    struct call begin = begin_of(SIZE - BLOCK), write = begin_of(SIZE - 2 * BLOCK);
    static uint8_t data[BLOCK];

    (void)state;
    disk.fail[BLKREPL_OP_READ] = -ENXIO;
    blkrepl_job *job = start_backup(BLKREPL_CBW_GUEST_WRITE_FAILS);
    write.kind = CALL_WRITE;
    write.memory = data;
    ASSERT_CODE(call_make(&begin), -ENXIO);
    assert_int_equal(begin.token, 0);
    ASSERT_CODE(call_make(&write), -ENXIO);
    assert_int_equal(tape_submitted(&disk, BLKREPL_OP_WRITE), 0);
    assert_int_equal(image_info(image).requests_in_flight, 0);
    ASSERT_CODE(blkrepl_job_cancel(job, 0), 0);
    disk.fail[BLKREPL_OP_READ] = 0;
    while (job_info(job).state != BLKREPL_JOB_CONCLUDED) {
        blkrepl_poll(env.ctx, 0, SECOND / 1000);
    }
    blkrepl_job_free(job);
}

/* ---- All at once --------------------------------------------------------------------------- */

static _Atomic unsigned errors;
static _Atomic bool stop_completer, stop_backups;
static uint32_t workers_lane; /* LANES: each its own */

static uint32_t lane_of(unsigned worker)
{
    return workers_lane < LANES ? workers_lane : 1 + worker;
}

/* One block: written in one of three ways, and read again. */
static int write_and_read(struct rng *rng, struct call *call, uint8_t *want, uint8_t *got)
{
    int rc;

    memset(want, (int)rng_below(rng, 255) + 1, BLOCK);
    call->memory = want;
    call->kind = (enum call_kind[]){CALL_WRITE, CALL_ZEROES, CALL_BEGIN}[rng_below(rng, 3)];
    rc = call_make(call);
    if (rc == 0 && call->kind == CALL_ZEROES) {
        memset(want, 0, BLOCK);
    } else if (rc == 0 && call->kind == CALL_BEGIN) {
        tape_poke(&disk, call->offset, want, BLOCK);
        rc = end(call->token);
    }
    call->kind = CALL_READ;
    call->memory = got;
    rc = rc ? rc : call_make(call);
    return rc ? rc : memcmp(want, got, BLOCK);
}

static int rounds(void)
{
    return quick() ? 40 : 200;
}

static void *worker_main(void *user)
{
    unsigned me = *(unsigned *)user;
    struct rng rng = {.state = me * 7919};
    uint8_t want[BLOCK], got[BLOCK];
    struct call call = {.image = image, .lane = lane_of(me), .bytes = BLOCK};

    for (int i = 0; i < rounds(); i++) {
        call.offset = (me * OWNED + rng_below(&rng, OWNED)) * BLOCK;
        atomic_fetch_add(&errors, write_and_read(&rng, &call, want, got) != 0);
        call.kind = rng_percent(&rng, 50) ? CALL_FLUSH : CALL_STATUS;
        atomic_fetch_add(&errors, call_make(&call) != 0);
    }
    return NULL;
}

/* Ends what the disk holds, in no order. */
static void *completer_main(void *user)
{
    struct rng rng = {.state = 5};

    for (;;) {
        pthread_mutex_lock(&disk.lock);
        while (disk.queue_count == 0 && !atomic_load(&stop_completer)) {
            pthread_cond_wait(&disk.more, &disk.lock);
        }
        size_t count = disk.queue_count;
        pthread_mutex_unlock(&disk.lock);
        if (count == 0) {
            return user;
        }
        tape_finish(&disk, (int)rng_below(&rng, count), 0);
    }
}

static pthread_t workers[THREADS], completer;
static unsigned numbers[THREADS] = {0, 1, 2, 3, 4, 5, 6, 7};

static void begin_threads(uint32_t lane)
{
    atomic_store(&errors, 0);
    atomic_store(&stop_completer, false);
    workers_lane = lane;
    disk.hold = OPS_ALL;
    assert_int_equal(pthread_create(&completer, NULL, completer_main, NULL), 0);
    for (unsigned i = 0; i < THREADS; i++) {
        assert_int_equal(pthread_create(&workers[i], NULL, worker_main, &numbers[i]), 0);
    }
}

static void join_workers(void)
{
    for (unsigned i = 0; i < THREADS; i++) {
        pthread_join(workers[i], NULL);
    }
}

static void join_completer(void)
{
    atomic_store(&stop_completer, true);
    pthread_mutex_lock(&disk.lock);
    pthread_cond_broadcast(&disk.more);
    pthread_mutex_unlock(&disk.lock);
    pthread_join(completer, NULL);
    assert_int_equal(atomic_load(&errors), 0);
    assert_int_equal(image_info(image).requests_in_flight, 0);
}

static void end_threads(void)
{
    join_workers();
    join_completer();
}

static void many_threads_on_one_lane_and_on_their_own(void **state)
{
    static const uint32_t lanes[] = {0, 1, LANES};

    (void)state;
    for (size_t i = 0; i < ARRAY_COUNT(lanes); i++) {
        open_scene(0);
        begin_threads(lanes[i]);
        end_threads();
        close_scene();
    }
}

static void many_threads_and_little_room(void **state)
{
    (void)state;
    for (uint32_t most = 1; most <= 3; most++) {
        open_scene(most);
        begin_threads(1);
        end_threads();
        blkrepl_poll(env.ctx, 1, 0);
        assert_int_equal(env.event_count, 0);
        assert_true(disk.in_flight_max <= most);
        close_scene();
    }
}

static void the_host_polls_now_and_then(void **state)
{
    struct poller poller;

    (void)state;
    begin_threads(1);
    for (int i = 0; i < (quick() ? 20 : 100); i++) {
        poller_start(&poller, env.ctx, 1);
        poller_stop(&poller);
    }
    end_threads();
}

/* Plain calls beside: a refused one waits for ROOM, which somebody's poll of the
 * lane must deliver. */
static struct plain {
    pthread_t thread;
    sem_t done, room;
    int result;
} plains[2];

static void plain_done(void *user, int result)
{
    struct plain *plain = user;

    plain->result = result;
    sem_post(&plain->done);
}

static void plain_room(struct env *e, const blkrepl_event *event)
{
    (void)e;
    for (size_t i = 0; i < ARRAY_COUNT(plains) && event->type == BLKREPL_EVENT_ROOM; i++) {
        sem_post(&plains[i].room);
    }
}

static void *plain_main(void *user)
{
    struct plain *plain = user;
    blkrepl_completion done = {plain_done, plain, NULL};

    for (int i = 0; i < 3 * rounds(); i++) {
        int rc;

        while ((rc = blkrepl_image_flush(image, 1, &done)) == -EAGAIN) {
            sem_wait(&plain->room);
        }
        if (rc == 0) {
            sem_wait(&plain->done);
        }
        atomic_fetch_add(&errors, rc != 0 || plain->result != 0);
    }
    return NULL;
}

static void plain_and_blocking_calls_share_little_room(void **state)
{
    struct poller poller;

    (void)state;
    open_scene(2);
    env.on_event = plain_room;
    begin_threads(1);
    for (size_t i = 0; i < ARRAY_COUNT(plains); i++) {
        sem_init(&plains[i].done, 0, 0);
        sem_init(&plains[i].room, 0, 0);
        assert_int_equal(pthread_create(&plains[i].thread, NULL, plain_main, &plains[i]), 0);
    }
    poller_start(&poller, env.ctx, 1);
    for (size_t i = 0; i < ARRAY_COUNT(plains); i++) {
        pthread_join(plains[i].thread, NULL);
        sem_destroy(&plains[i].done);
    }
    poller_stop(&poller);
    end_threads();
    close_scene();
    for (size_t i = 0; i < ARRAY_COUNT(plains); i++) {
        sem_destroy(&plains[i].room);
    }
}

/* This thread polls lane 0 and backs up, again and again, until they are done. */
static void *lane_0_main(void *user)
{
    (void)user;
    for (int i = 0; !atomic_load(&stop_backups); i++) {
        blkrepl_backup_options o = {.struct_size = sizeof o, .cluster_bytes = BLOCK};
        blkrepl_job *job = NULL;

        if (blkrepl_backup_start(image, copy, &o, &job) != 0) {
            atomic_fetch_add(&errors, 1);
            return NULL;
        }
        while (job_info(job).state != BLKREPL_JOB_CONCLUDED) {
            blkrepl_poll(env.ctx, 0, SECOND);
            if (i % 4 == 3) {
                blkrepl_job_cancel(job, 0);
            }
        }
        atomic_fetch_add(&errors, i % 4 != 3 && job_info(job).result != BLKREPL_RESULT_DONE);
        blkrepl_job_free(job);
    }
    return NULL;
}

static void backups_go_on_meanwhile(void **state)
{
    pthread_t lane_0;

    (void)state;
    atomic_store(&stop_backups, false);
    begin_threads(LANES);
    assert_int_equal(pthread_create(&lane_0, NULL, lane_0_main, NULL), 0);
    join_workers();
    atomic_store(&stop_backups, true);
    pthread_join(lane_0, NULL);
    join_completer();
}

#define TEST(f) cmocka_unit_test_setup_teardown(f, set_up, tear_down)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(go_comes_with_the_end_of_another_bracket),
        TEST(another_thread_may_cancel),
        TEST(go_comes_when_the_backup_has_the_old_data),
        TEST(a_backup_may_fail_the_write),
        cmocka_unit_test(many_threads_on_one_lane_and_on_their_own),
        cmocka_unit_test(many_threads_and_little_room),
        TEST(the_host_polls_now_and_then),
        cmocka_unit_test(plain_and_blocking_calls_share_little_room),
        TEST(backups_go_on_meanwhile),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
