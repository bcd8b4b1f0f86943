/* SPDX-License-Identifier: MIT */
/* Queue threads, each with a lane of its own, over the same blocks, while backups
 * run: whose thread submits and calls back, in which order writes end, and that
 * nobody sleeps for ever.
 *
 * Every write has a number, which is in each of its blocks.  A block may hold a
 * write if no other one that began after its end has ended. */
#include <poll.h>
#include <sched.h>

#include "tape.h"

#define BLOCK 4096
#define BLOCKS 32
#define SIZE ((uint64_t)BLOCKS * BLOCK)
#define QUEUES 3 /* lanes 1 to 3 */
#define STRANGER (QUEUES + 1)
#define LANES (STRANGER + 1)
#define OPS 16
#define WRITES_MAX 16384

struct write {
    uint32_t first;
    uint32_t count;
    _Atomic uint64_t began; /* 0: not yet                                            */
    _Atomic uint64_t ended;
};

struct op {
    struct queue *queue;
    uint32_t number; /* of the write; 0: a read                                       */
    uint32_t first;
    uint32_t count;
    bool busy;
    bool beside;
    uint64_t token;
    blkrepl_iovec iov;
    uint8_t data[3 * BLOCK];
};

struct queue {
    uint32_t lane;
    pthread_t thread;
    struct rng rng;
    uint32_t left; /* requests to make                                                */
    uint32_t busy;
    struct op ops[OPS];
};

static struct env env;
static struct tape disk, copy;
static blkrepl_image *source, *target;
static struct queue queues[LANES];
static struct write history[WRITES_MAX];
static _Atomic uint32_t write_count;
static _Atomic uint64_t now;
static _Atomic unsigned errors;
static _Atomic bool stop_lane_0, stop_completers;
static _Atomic uint32_t queues_running;
static bool threads_known; /* from then on the threads are what they are */

static void wrong(const char *what, uint32_t lane)
{
    if (atomic_fetch_add(&errors, 1) == 0) {
        fprintf(stderr, "%s, lane %u\n", what, lane);
    }
}

/* ---- Blocks ------------------------------------------------------------------------- */

static void stamp(uint8_t *block, uint32_t index, uint32_t number)
{
    for (size_t i = 0; i < BLOCK; i += 8) {
        memcpy(block + i, &index, 4);
        memcpy(block + i + 4, &number, 4);
    }
}

/* The number of the write that fills the block, or UINT32_MAX when it is torn. */
static uint32_t number_of(const uint8_t *block, uint32_t index)
{
    uint8_t want[BLOCK];
    uint32_t number;

    memcpy(&number, block + 4, 4);
    stamp(want, index, number);
    return memcmp(block, want, BLOCK) == 0 ? number : UINT32_MAX;
}

static bool covers(const struct write *write, uint32_t block)
{
    return block >= write->first && block - write->first < write->count;
}

/* May the block have held this at some time between the two? */
static bool may_hold(uint32_t number, uint32_t block, uint64_t from, uint64_t until)
{
    uint32_t count = atomic_load(&write_count);
    uint64_t began;
    uint64_t ended;

    if (number >= count) {
        return false;
    }
    began = atomic_load(&history[number].began); /* the range is written before that */
    if (number > 0 && (began == 0 || began > until || !covers(&history[number], block))) {
        return false;
    }
    ended = atomic_load(&history[number].ended);
    for (uint32_t i = 1; ended != 0 && i < count; i++) {
        uint64_t later = atomic_load(&history[i].ended);

        if (later != 0 && later < from && atomic_load(&history[i].began) > ended &&
            covers(&history[i], block)) {
            return false;
        }
    }
    return true;
}

static void check_blocks(const uint8_t *data, uint64_t from, uint64_t until, const char *what)
{
    for (uint32_t i = 0; i < BLOCKS; i++) {
        if (!may_hold(number_of(data + (size_t)i * BLOCK, i), i, from, until)) {
            wrong(what, i);
        }
    }
}

/* ---- A queue thread ------------------------------------------------------------------ */

static void op_over(struct op *op, int result)
{
    struct queue *q = op->queue;

    if (result != 0) {
        wrong("a request has failed", q->lane);
    }
    if (op->number > 0) {
        atomic_store(&history[op->number].ended, atomic_fetch_add(&now, 1));
    }
    for (uint32_t i = 0; op->number == 0 && i < op->count; i++) {
        if (number_of(op->data + (size_t)i * BLOCK, op->first + i) == UINT32_MAX) {
            wrong("a read is torn", q->lane);
        }
    }
    op->busy = false;
    q->busy--;
}

static void op_go(struct op *op)
{
    tape_poke(&disk, (uint64_t)op->first * BLOCK, op->data, (size_t)op->count * BLOCK);
    op_over(op, blkrepl_write_end(env.ctx, op->token, 0, NULL, 0, NULL));
}

static void op_done(void *user, int result)
{
    struct op *op = user;

    if (!pthread_equal(pthread_self(), op->queue->thread)) {
        wrong("a callback in another thread", op->queue->lane);
    }
    if (op->beside && result == 0) {
        op_go(op);
    } else {
        op_over(op, result);
    }
}

static int op_call(struct op *op)
{
    blkrepl_completion done = {op_done, op, NULL};
    blkrepl_bracket what = {.struct_size = sizeof what,
                            .opcode = BLKREPL_OP_WRITE,
                            .offset = (uint64_t)op->first * BLOCK,
                            .bytes = (uint64_t)op->count * BLOCK,
                            .lane = op->queue->lane};

    op->iov = (blkrepl_iovec){op->data, (size_t)what.bytes};
    if (op->number == 0) {
        return blkrepl_image_read(source, what.lane, what.offset, &op->iov, 1, 0, &done);
    }
    if (!op->beside) {
        return blkrepl_image_write(source, what.lane, what.offset, &op->iov, 1, 0, &done);
    }
    int rc = blkrepl_write_begin(source, &what, &done, &op->token);
    if (rc == 0) {
        op_go(op);
    }
    return rc == BLKREPL_WAIT ? 0 : rc;
}

static struct op *op_take(struct queue *q)
{
    for (size_t i = 0; i < OPS; i++) {
        if (!q->ops[i].busy) {
            return &q->ops[i];
        }
    }
    return NULL;
}

/* Make one request; nobody tells a stranger his GO, so he has no brackets. */
static void queue_request(struct queue *q)
{
    struct op *op = op_take(q);
    bool write = rng_percent(&q->rng, 80);

    if (op == NULL) {
        return;
    }
    q->left--;
    q->busy++;
    op->queue = q;
    op->busy = true;
    op->beside = write && q->lane != STRANGER && rng_percent(&q->rng, 30);
    op->first = (uint32_t)rng_below(&q->rng, BLOCKS - 2);
    op->count = 1 + (uint32_t)rng_below(&q->rng, 3);
    op->number = 0;
    if (write) {
        uint32_t number = atomic_fetch_add(&write_count, 1);
        struct write *w = &history[number];

        if (number >= WRITES_MAX) {
            abort();
        }
        op->number = number;
        w->first = op->first;
        w->count = op->count;
        for (uint32_t i = 0; i < op->count; i++) {
            stamp(op->data + (size_t)i * BLOCK, op->first + i, number);
        }
        atomic_store(&w->began, atomic_fetch_add(&now, 1));
    }
    if (op_call(op) != 0) {
        wrong("a request was refused", q->lane);
    }
}

/* An event loop, or polls that block. */
static void queue_sleep(struct queue *q)
{
    struct pollfd fd = {.fd = blkrepl_poll_fd(env.ctx, q->lane), .events = POLLIN};
    uint64_t deadline;

    if (q->lane % 2 == 1) {
        blkrepl_poll(env.ctx, q->lane, BLKREPL_FOREVER);
    } else if (blkrepl_poll(env.ctx, q->lane, 0) == 0 &&
               blkrepl_poll_arm(env.ctx, q->lane, &deadline) == 0) {
        poll(&fd, 1, -1);
    }
}

static void *queue_thread(void *user)
{
    struct queue *q = user;

    while (q->left > 0 || q->busy > 0) {
        for (uint64_t i = rng_below(&q->rng, 6); i > 0 && q->left > 0; i--) {
            queue_request(q);
        }
        if (q->busy > 0) {
            queue_sleep(q);
        }
    }
    atomic_fetch_sub(&queues_running, 1);
    return NULL;
}

/* Makes requests on a lane that nobody polls. */
static void *stranger_thread(void *user)
{
    struct queue *q = user;

    while (q->left > 0 && q->busy < OPS) {
        queue_request(q);
        sched_yield();
    }
    atomic_fetch_sub(&queues_running, 1);
    return NULL;
}

/* ---- The others ----------------------------------------------------------------------- */

static void *lane_0_thread(void *user)
{
    (void)user;
    while (!atomic_load(&stop_lane_0)) {
        if (blkrepl_poll(env.ctx, 0, BLKREPL_FOREVER) < 0) {
            wrong("a poll was refused", 0);
        }
    }
    return NULL;
}

static void *completer(void *user)
{
    struct tape *t = user;
    struct rng rng = {.state = 1};

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
        if (tape_finish(t, (int)rng_below(&rng, n), 0) != 0) {
            wrong("a completion was refused", 0);
        }
    }
}

/* Some are done inside submit. */
static int decide(void *user, const blkrepl_io *io)
{
    static _Atomic uint64_t turn;

    (void)user;
    (void)io;
    return atomic_fetch_add(&turn, 1) % 3 == 0 ? 0 : TAPE_HOLD;
}

/* Requests of a lane are given away by its thread. */
static void source_submit(void *user, const blkrepl_io *io)
{
    (void)user;
    if (threads_known && io->lane > 0 && !pthread_equal(pthread_self(), queues[io->lane].thread)) {
        wrong("a submit in another thread", io->lane);
    }
}

static void target_submit(void *user, const blkrepl_io *io)
{
    (void)user;
    if (threads_known && (io->lane > 0 || !pthread_equal(pthread_self(), queues[0].thread))) {
        wrong("a target's submit in another thread", io->lane);
    }
}

static pthread_mutex_t done_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t done_cond = PTHREAD_COND_INITIALIZER;
static bool job_done;

static void on_event(struct env *e, const blkrepl_event *event)
{
    (void)e;
    if (!pthread_equal(pthread_self(), queues[0].thread)) {
        wrong("an event in another thread", 0);
    }
    if (event->type == BLKREPL_EVENT_JOB_DONE) {
        pthread_mutex_lock(&done_lock);
        job_done = true;
        pthread_cond_signal(&done_cond);
        pthread_mutex_unlock(&done_lock);
    }
}

/* Without a call of the library, which might move what nobody else moves. */
static void wait_for_done(void)
{
    pthread_mutex_lock(&done_lock);
    while (!job_done) {
        pthread_cond_wait(&done_cond, &done_lock);
    }
    pthread_mutex_unlock(&done_lock);
}

/* ---- The scene -------------------------------------------------------------------------- */

static pthread_t completers[2];

static void open_scene(uint32_t depth)
{
    const blkrepl_context_options base = {.lane_count = LANES};

    env_open(&env, &base, ENV_REAL_CLOCK);
    tape_init(&disk, SIZE);
    tape_init(&copy, SIZE);
    disk.lanes = copy.lanes = LANES;
    disk.info.queue_depth = depth;
    disk.info.opcodes = copy.info.opcodes = OPS_RW | BIT(BLKREPL_OP_FLUSH);
    disk.decide = copy.decide = decide;
    env.on_event = on_event;
    disk.on_submit = source_submit;
    copy.on_submit = target_submit;
    for (uint32_t i = 0; i < BLOCKS; i++) {
        stamp(disk.data + (size_t)i * BLOCK, i, 0);
    }
    source = tape_open(&disk, &env);
    target = tape_open(&copy, &env);
    memset(queues, 0, sizeof queues);
    memset(history, 0, sizeof history);
    atomic_store(&write_count, 1);
    atomic_store(&now, 1);
    atomic_store(&errors, 0);
    atomic_store(&stop_lane_0, false);
    atomic_store(&stop_completers, false);
    threads_known = false;
}

static void begin(uint32_t lane, uint32_t requests, void *(*run)(void *))
{
    queues[lane].lane = lane;
    queues[lane].left = requests;
    queues[lane].rng.state = lane * 7919 + requests;
    assert_int_equal(pthread_create(&queues[lane].thread, NULL, run, &queues[lane]), 0);
}

static pthread_mutex_t gate = PTHREAD_MUTEX_INITIALIZER;
static void *(*gate_run[LANES])(void *);

/* Nobody runs before it is known who is who. */
static void *gated(void *user)
{
    struct queue *q = user;

    pthread_mutex_lock(&gate);
    pthread_mutex_unlock(&gate);
    return gate_run[q->lane](q);
}

static void begin_threads(uint32_t requests, bool stranger)
{
    uint32_t last = stranger ? STRANGER : QUEUES;

    pthread_mutex_lock(&gate);
    atomic_store(&queues_running, last);
    for (uint32_t lane = 0; lane <= last; lane++) {
        gate_run[lane] = lane == 0          ? lane_0_thread
                         : lane == STRANGER ? stranger_thread
                                            : queue_thread;
        begin(lane, requests, gated);
    }
    assert_int_equal(pthread_create(&completers[0], NULL, completer, &disk), 0);
    assert_int_equal(pthread_create(&completers[1], NULL, completer, &copy), 0);
    threads_known = true;
    pthread_mutex_unlock(&gate);
}

static void wake(struct tape *t)
{
    pthread_mutex_lock(&t->lock);
    pthread_cond_broadcast(&t->more);
    pthread_mutex_unlock(&t->lock);
}

static void end_threads(bool stranger)
{
    uint32_t last = stranger ? STRANGER : QUEUES;

    for (uint32_t lane = 1; lane <= last; lane++) {
        pthread_join(queues[lane].thread, NULL);
    }
    atomic_store(&stop_lane_0, true);
    blkrepl_poll_wake(env.ctx, 0);
    pthread_join(queues[0].thread, NULL);
    for (uint32_t lane = 0; lane < LANES; lane++) {
        queues[lane].thread = pthread_self(); /* whoever is left */
    }
    while (queues[STRANGER].busy > 0) {
        blkrepl_poll(env.ctx, STRANGER, SECOND / 1000);
    }
    atomic_store(&stop_completers, true);
    wake(&disk);
    wake(&copy);
    pthread_join(completers[0], NULL);
    pthread_join(completers[1], NULL);
}

static void close_scene(void)
{
    blkrepl_image_close(source);
    blkrepl_image_close(target);
    env_close(&env);
    tape_close(&disk);
    tape_close(&copy);
}

static void one_backup(uint32_t round)
{
    const blkrepl_backup_options o = {.struct_size = sizeof o,
                                      .cluster_bytes = 4096u << (round % 4),
                                      .on_cbw_error = 1 + round % 2,
                                      .cbw_timeout_ns = BLKREPL_FOREVER};
    uint64_t from = atomic_fetch_add(&now, 1);
    blkrepl_job *job = NULL;
    uint64_t until;
    uint8_t *data;

    job_done = false;
    if (blkrepl_backup_start(source, target, &o, &job) != 0) {
        wrong("a start was refused", 0);
        return;
    }
    until = atomic_fetch_add(&now, 1);
    wait_for_done();
    if (job_info(job).result != BLKREPL_RESULT_DONE) {
        wrong("a backup has failed", 0);
    }
    blkrepl_job_free(job);
    data = tape_copy(&copy);
    check_blocks(data, from, until, "a block of a backup");
    free(data);
}

static void run_scene(uint32_t depth, bool stranger)
{
    uint32_t rounds = 0;

    open_scene(depth);
    begin_threads(quick() ? 200 : 1200, stranger);
    do {
        one_backup(rounds++);
    } while (atomic_load(&queues_running) > 0);
    end_threads(stranger);
    check_blocks(disk.data, UINT64_MAX, UINT64_MAX, "a block of the disk");
    assert_int_equal(atomic_load(&errors), 0);
    close_scene();
}

static void queue_threads_write_to_the_same_blocks_while_backups_run(void **state)
{
    (void)state;
    run_scene(1, false);
    run_scene(3, false);
    run_scene(64, false);
}

static void a_stranger_whose_lane_is_not_polled_holds_nobody_up(void **state)
{
    (void)state;
    run_scene(1, true);
    run_scene(4, true);
    run_scene(64, true);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(queue_threads_write_to_the_same_blocks_while_backups_run),
        cmocka_unit_test(a_stranger_whose_lane_is_not_polled_holds_nobody_up),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
