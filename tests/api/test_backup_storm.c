/* SPDX-License-Identifier: MIT */
/* By seed: backups whose requests fail now and then on every side, with and without a
 * spill image, paused by errors and by the host and resumed again, slow and fast, while
 * guests write, zero and discard.  Whatever is told as done holds the point in time. */
#include "stage.h"

#define SIZE_MOST (20 * CLUSTER + 5)
#define GUESTS 6
#define LEN_MAX 90000

static struct env env;
static struct part disk, copy, spill;
static struct part *const all[] = {&disk, &copy, &spill};
static blkrepl_job *job;

struct guest {
    struct req req;
    bool busy;
    uint8_t data[LEN_MAX];
};

static struct guest guests[GUESTS];

struct world {
    struct rng rng;
    uint64_t seed;
    uint64_t bytes;
    unsigned error_percent;
    bool guests_may_fail;
    blkrepl_backup_options o;
};

static void lost(const struct world *w, const char *what)
{
    blkrepl_job_info info = job_info(job);

    fail_msg("%s: seed %llu, state %u, result %u, error %d, flags %u, side %u: %s", what,
             (unsigned long long)w->seed, info.state, info.result, info.error, info.flags,
             info.error_side, info.message);
}

static void world_open(struct world *w, uint64_t seed)
{
    static const uint64_t sizes[] = {4096, 3 * CLUSTER + 1, 8 * CLUSTER, SIZE_MOST};

    memset(w, 0, sizeof *w);
    memset(guests, 0, sizeof guests);
    w->seed = seed;
    w->rng.state = seed * 104729;
    w->bytes = sizes[rng_below(&w->rng, ARRAY_COUNT(sizes))];
    w->guests_may_fail = rng_percent(&w->rng, 50);
    w->error_percent = rng_percent(&w->rng, 30) ? 0 : 8;
    env_open(&env, NULL, 0);
    part_open(&disk, &env, w->bytes, 1 + (unsigned)(seed % 50));
    part_open(&copy, &env, w->bytes, 0);
    part_open(&spill, &env, w->bytes, 77);
    w->o =
        (blkrepl_backup_options){.struct_size = sizeof w->o,
                                 .on_source_error = BLKREPL_ON_ERROR_STOP,
                                 .on_target_error = BLKREPL_ON_ERROR_STOP,
                                 .cbw_timeout_ns = BLKREPL_FOREVER,
                                 .on_cbw_error = w->guests_may_fail ? BLKREPL_CBW_GUEST_WRITE_FAILS
                                                                    : BLKREPL_CBW_BACKUP_FAILS};
    w->o.cluster_bytes = UINT64_C(4096) << rng_below(&w->rng, 6);
    w->o.chunk_bytes_max = rng_percent(&w->rng, 50) ? 1 : 0;
    w->o.workers_max = 1 + (uint32_t)rng_below(&w->rng, 5);
    w->o.reserve_bytes = 4 * CLUSTER;
    w->o.flags = rng_percent(&w->rng, 30) ? BLKREPL_BACKUP_DETECT_ZEROES : 0;
    if (rng_percent(&w->rng, 60)) {
        w->o.spill = spill.image;
        w->o.spill_bytes_max = rng_below(&w->rng, 5) * w->o.cluster_bytes;
    }
}

static void world_close(void)
{
    blkrepl_job_free(job);
    parts_close(&env, all, 3);
}

static void guest_step(struct world *w)
{
    struct guest *g = &guests[rng_below(&w->rng, GUESTS)];
    uint64_t most = rng_percent(&w->rng, 60) ? 700 : LEN_MAX;
    uint64_t len = rng_below(&w->rng, (most < w->bytes ? most : w->bytes) + 1);
    uint64_t at = rng_below(&w->rng, w->bytes - len + 1);

    if (g->busy && REQ_PENDING(&g->req)) {
        return;
    }
    if (g->busy && g->req.result != 0 && !w->guests_may_fail) {
        lost(w, "a guest's write has failed");
    }
    g->busy = true;
    fill(g->data, (size_t)len, at, 100 + (unsigned)rng_below(&w->rng, 100));
    switch (rng_below(&w->rng, 8)) {
    case 0: ASSERT_CODE(req_zeroes(&g->req, disk.image, at, len), 0); break;
    case 1: ASSERT_CODE(req_discard(&g->req, disk.image, at, len), 0); break;
    default: ASSERT_CODE(req_write(&g->req, disk.image, at, g->data, (size_t)len), 0); break;
    }
}

/* A failed read of the source may be one for a guest, which fails the backup unless
 * guests may fail; a failed flush fails it always: these succeed. */
static int some_result(struct world *w, const struct part *part, uint32_t opcode)
{
    bool never = opcode == BLKREPL_OP_FLUSH ||
                 (part == &disk && (opcode != BLKREPL_OP_READ || !w->guests_may_fail));

    if (never || !rng_percent(&w->rng, w->error_percent)) {
        return 0;
    }
    return rng_percent(&w->rng, 50) ? -EIO : -ENOSPC;
}

static void some_finish(struct world *w)
{
    struct part *part = all[rng_below(&w->rng, 3)];
    size_t pending = tape_pending(&part->tape, 0);

    if (pending) {
        size_t at = (size_t)rng_below(&w->rng, pending);
        int result = some_result(w, part, part->tape.queue[at]->opcode);

        ASSERT_CODE(
            tape_finish_as(&part->tape, (int)at, result, result == 0 || rng_percent(&w->rng, 30)),
            0);
    }
}

static void some_verb(struct world *w)
{
    switch (rng_below(&w->rng, 6)) {
    case 0: blkrepl_job_pause(job); break;
    case 1: blkrepl_job_set_speed(job, rng_below(&w->rng, 2) * 100 * CLUSTER); break;
    case 2: env_advance(&env, SECOND / 50); break;
    default: blkrepl_job_resume(job); break;
    }
}

/* No more errors: it gets to its end. */
static void calm(struct world *w)
{
    blkrepl_job_set_speed(job, 0);
    for (int i = 0; i < 50 && job_state(job) != BLKREPL_JOB_CONCLUDED; i++) {
        parts_run(&env, all, 3);
        blkrepl_job_resume(job);
    }
    parts_run(&env, all, 3);
    for (int i = 0; i < GUESTS; i++) {
        if (guests[i].busy && REQ_PENDING(&guests[i].req)) {
            lost(w, "a guest's write has not ended");
        }
    }
}

static void one_world(uint64_t seed)
{
    struct world w;

    world_open(&w, seed);
    for (int i = 0; i < 3; i++) {
        all[i]->tape.hold = OPS_ALL;
    }
    ASSERT_CODE(blkrepl_backup_start(disk.image, copy.image, &w.o, &job), 0);
    for (int n = 0; n < 700; n++) {
        switch (rng_below(&w.rng, 8)) {
        case 0: guest_step(&w); break;
        case 1: rng_percent(&w.rng, 30) ? some_verb(&w) : guest_step(&w); break;
        case 2:
        case 3: blkrepl_poll(env.ctx, 0, 0); break;
        default: some_finish(&w); break;
        }
    }
    calm(&w);
    blkrepl_job_info info = job_info(job);
    if (info.result != BLKREPL_RESULT_DONE) {
        lost(&w, "it is not done");
    }
    if (first_difference(copy.tape.data, disk.start, w.bytes) != UINT64_MAX) {
        lost(&w, "the target differs");
    }
    assert_int_equal(info.bytes_done, info.bytes_total);
    assert_int_equal(info.spilled_bytes, 0);
    assert_int_equal(info.failed_bytes, 0);
    assert_int_equal(info.error_count, info.source_errors + info.target_errors + info.spill_errors);
    world_close();
}

static void what_is_done_holds_the_point_in_time(void **state)
{
    (void)state;
    for (uint64_t seed = 1; seed <= (quick() ? 30 : 300); seed++) {
        one_world(seed);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_is_done_holds_the_point_in_time),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
