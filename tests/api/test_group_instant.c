/* SPDX-License-Identifier: MIT */
/* One instant over several disks.  A guest writes a number to disk 0, and only
 * when that was acknowledged the same number to disk 1, and so on: whatever the
 * backup of a later disk holds, that of an earlier one holds too. */
#include "stage.h"

#include <sched.h>

#define DISKS 3
#define CLUSTERS 16
#define SIZE (CLUSTERS * CLUSTER)
#define BLOCK 512

static struct env env;
static struct part disk[DISKS], copy[DISKS];
static struct part *const all[] = {&disk[0], &copy[0], &disk[1], &copy[1], &disk[2], &copy[2]};

/* ---- The guest: one chain of writes in each slot ------------------------------------- */

#define SLOTS 4

struct chain {
    struct req req;
    uint8_t block[BLOCK];
    uint64_t number;
    unsigned at; /* the disk that is being written */
    bool busy;
};

static struct chain chains[SLOTS];

static uint64_t slot_offset(unsigned slot)
{
    return slot * 5 * CLUSTER + 3 * BLOCK;
}

static uint64_t number_at(const uint8_t *data, unsigned slot)
{
    uint64_t number = 0;

    memcpy(&number, data + slot_offset(slot), sizeof number);
    return number;
}

static void chain_write(unsigned slot)
{
    struct chain *c = &chains[slot];

    memcpy(c->block, &c->number, sizeof c->number);
    ASSERT_CODE(req_write(&c->req, disk[c->at].image, slot_offset(slot), c->block, BLOCK), 0);
    c->busy = true;
}

static void chain_step(unsigned slot)
{
    struct chain *c = &chains[slot];

    if (!c->busy) {
        c->number++;
        c->at = 0;
        chain_write(slot);
    } else if (!REQ_PENDING(&c->req)) {
        req_assert_done(&c->req, 0);
        c->busy = ++c->at < DISKS;
        if (c->busy) {
            chain_write(slot);
        }
    }
}

/* ---- By seed, one thread --------------------------------------------------------------- */

static void world_open(void)
{
    env_open(&env, NULL, 0);
    memset(chains, 0, sizeof chains);
    for (unsigned i = 0; i < DISKS; i++) {
        part_open(&disk[i], &env, SIZE, 1 + i);
        part_open(&copy[i], &env, SIZE, 0);
        for (unsigned slot = 0; slot < SLOTS; slot++) {
            memset(disk[i].tape.data + slot_offset(slot), 0, BLOCK);
        }
        disk[i].tape.hold = OPS_ALL;
        copy[i].tape.hold = OPS_ALL;
    }
}

static void world_close(void)
{
    parts_close(&env, all, ARRAY_COUNT(all));
}

static void run_all(void)
{
    parts_run(&env, all, ARRAY_COUNT(all));
}

static void some_step(struct rng *rng)
{
    unsigned i = (unsigned)rng_below(rng, DISKS);
    struct tape *t = rng_percent(rng, 60) ? &disk[i].tape : &copy[i].tape;
    size_t pending = tape_pending(t, 0);

    switch (rng_below(rng, 3)) {
    case 0:
        if (pending) {
            ASSERT_CODE(tape_finish(t, (int)rng_below(rng, pending), 0), 0);
        }
        break;
    case 1: chain_step((unsigned)rng_below(rng, SLOTS)); break;
    default: blkrepl_poll(env.ctx, 0, 0); break;
    }
}

static void check_cut(uint64_t seed, unsigned slot)
{
    for (unsigned i = 1; i < DISKS; i++) {
        uint64_t earlier = number_at(copy[i - 1].tape.data, slot);
        uint64_t later = number_at(copy[i].tape.data, slot);

        if (later > earlier || earlier > later + 1) {
            fail_msg("seed %llu, slot %u: backup %u holds %llu, backup %u %llu",
                     (unsigned long long)seed, slot, i - 1, (unsigned long long)earlier, i,
                     (unsigned long long)later);
        }
    }
}

/* What had been acknowledged at the start is in the backup, what was in flight too, since
 * it succeeded, and nothing that began later. */
static void check_numbers(const struct chain *then, unsigned slot)
{
    for (unsigned i = 0; i < DISKS; i++) {
        bool begun = !then->busy || i <= then->at;

        assert_int_equal(number_at(copy[i].tape.data, slot), then->number - !begun);
    }
}

static void one_world(uint64_t seed)
{
    struct rng rng = {.state = seed};
    struct chain then[SLOTS];
    blkrepl_group *group = NULL;
    blkrepl_job *jobs[DISKS] = {NULL};

    world_open();
    ASSERT_CODE(blkrepl_group_create(env.ctx, 0, &group), 0);
    for (unsigned i = 0; i < DISKS; i++) {
        blkrepl_backup_options o = {.struct_size = sizeof o,
                                    .workers_max = 1,
                                    .chunk_bytes_max = CLUSTER,
                                    .on_cbw_error = 1 + (uint32_t)rng_below(&rng, 2)};

        ASSERT_CODE(blkrepl_backup_create(disk[i].image, copy[i].image, &o, &jobs[i]), 0);
        ASSERT_CODE(blkrepl_group_add(group, jobs[i]), 0);
    }
    for (uint64_t n = rng_below(&rng, 300); n > 0; n--) {
        some_step(&rng);
    }
    memcpy(then, chains, sizeof then);
    ASSERT_CODE(blkrepl_group_start(group), 0);
    for (int n = 0; n < 300; n++) {
        some_step(&rng);
    }
    run_all();
    for (unsigned i = 0; i < DISKS; i++) {
        ASSERT_ENDED(jobs[i], BLKREPL_RESULT_DONE, 0);
        blkrepl_job_free(jobs[i]);
    }
    for (unsigned slot = 0; slot < SLOTS; slot++) {
        check_cut(seed, slot);
        check_numbers(&then[slot], slot);
    }
    blkrepl_group_free(group);
    world_close();
}

static void dependent_writes_are_cut_at_one_instant(void **state)
{
    (void)state;
    for (uint64_t seed = 1; seed <= (quick() ? 20 : 150); seed++) {
        one_world(seed);
    }
}

/* ---- With threads ------------------------------------------------------------------------ */

struct writer {
    pthread_t thread;
    blkrepl_image *image[DISKS];
    uint32_t lane;
    unsigned slot;
    uint64_t number; /* written by the thread, read after it was joined */
    _Atomic bool *stop;
    _Atomic unsigned *going;
    int error;
};

static void *writer_run(void *user)
{
    struct writer *w = user;
    uint8_t block[BLOCK] = {0};
    blkrepl_iovec iov = {block, sizeof block};

    while (!atomic_load(w->stop) && !w->error) {
        uint64_t number = w->number + 1;

        memcpy(block, &number, sizeof number);
        for (unsigned i = 0; i < DISKS && !w->error; i++) {
            w->error =
                blkrepl_image_write_wait(w->image[i], w->lane, slot_offset(w->slot), &iov, 1, 0);
        }
        w->number = number;
        if (number == 3) {
            atomic_fetch_add(w->going, 1);
        }
    }
    return NULL;
}

static void *poller_run(void *user)
{
    _Atomic bool *stop = user;

    while (!atomic_load(stop)) {
        blkrepl_poll(env.ctx, 0, 1000000);
    }
    return NULL;
}

static void wait_until_concluded(blkrepl_job *job)
{
    while (job_state(job) != BLKREPL_JOB_CONCLUDED) {
        sched_yield();
    }
    ASSERT_ENDED(job, BLKREPL_RESULT_DONE, 0);
}

static blkrepl_image *memory_image(void)
{
    blkrepl_image *image = NULL;

    ASSERT_CODE(blkrepl_image_open_memory(env.ctx, SIZE, NULL, &image), 0);
    return image;
}

static void check_copies(blkrepl_image *const *to)
{
    for (unsigned slot = 0; slot < 2; slot++) {
        uint64_t before = UINT64_MAX;

        for (unsigned i = 0; i < DISKS; i++) {
            uint64_t number = 0;

            ASSERT_CODE(read_now(&env, to[i], slot_offset(slot), &number, sizeof number), 0);
            if (number > before) {
                fail_msg("slot %u: backup %u holds %llu, the one before %llu", slot, i,
                         (unsigned long long)number, (unsigned long long)before);
            }
            assert_true(number >= 2); /* three had been written when it was started */
            before = number;
        }
    }
}

static void one_race(void)
{
    const blkrepl_context_options o = {.struct_size = sizeof o, .lane_count = 3};
    blkrepl_image *from[DISKS], *to[DISKS];
    blkrepl_job *jobs[DISKS] = {NULL};
    struct writer writers[2] = {{0}};
    _Atomic bool stop = false;
    _Atomic unsigned going = 0;
    blkrepl_group *group = NULL;
    pthread_t poller;

    env_open(&env, &o, ENV_REAL_CLOCK);
    ASSERT_CODE(blkrepl_group_create(env.ctx, 0, &group), 0);
    for (unsigned i = 0; i < DISKS; i++) {
        from[i] = memory_image();
        to[i] = memory_image();
        ASSERT_CODE(blkrepl_backup_create(from[i], to[i], NULL, &jobs[i]), 0);
        ASSERT_CODE(blkrepl_group_add(group, jobs[i]), 0);
    }
    for (unsigned i = 0; i < 2; i++) {
        writers[i] = (struct writer){.lane = i + 1, .slot = i, .stop = &stop, .going = &going};
        memcpy(writers[i].image, from, sizeof from);
        assert_int_equal(pthread_create(&writers[i].thread, NULL, writer_run, &writers[i]), 0);
    }
    assert_int_equal(pthread_create(&poller, NULL, poller_run, &stop), 0);
    while (atomic_load(&going) < 2) {
        sched_yield();
    }
    ASSERT_CODE(blkrepl_group_start(group), 0);
    for (unsigned i = 0; i < DISKS; i++) {
        wait_until_concluded(jobs[i]);
    }
    atomic_store(&stop, true);
    for (unsigned i = 0; i < 2; i++) {
        pthread_join(writers[i].thread, NULL);
        ASSERT_CODE(writers[i].error, 0);
    }
    pthread_join(poller, NULL);
    check_copies(to);
    for (unsigned i = 0; i < DISKS; i++) {
        blkrepl_job_free(jobs[i]);
        blkrepl_image_close(from[i]);
        blkrepl_image_close(to[i]);
    }
    blkrepl_group_free(group);
    env_close(&env);
}

static void threads_that_write_on_see_one_instant(void **state)
{
    (void)state;
    for (int i = 0; i < (quick() ? 5 : 40); i++) {
        one_race();
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(dependent_writes_are_cut_at_one_instant),
        cmocka_unit_test(threads_that_write_on_see_one_instant),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
