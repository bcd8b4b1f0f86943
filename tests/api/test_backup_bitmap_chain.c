/* SPDX-License-Identifier: MIT */
/* A chain of backups, full and then incremental ones, each to a target of its own,
 * while a guest writes by seed and some of them fail or are cancelled: restored up to
 * any of them it is the image of that point in time. */
#include "stage.h"

#define STEPS 7
#define SIZE_MAX_HERE (24 * CLUSTER + 4097)
#define GUESTS 4
#define WRITE_MAX 30000

static struct env env;
static struct part disk;
static blkrepl_bitmap *bitmap;

struct guest {
    struct req req;
    uint8_t data[WRITE_MAX];
    bool busy;
};

struct link {
    struct part copy;
    uint8_t *image; /* the source at its point in time */
};

struct world {
    struct rng rng;
    uint64_t seed;
    uint64_t bytes;
    uint64_t cluster;
    uint64_t granularity;
    uint64_t target_cluster;
    unsigned stamp;
    size_t links;
};

static struct guest guests[GUESTS];
static struct link chain[STEPS];

static void lost(const struct world *w, const char *what, uint64_t at)
{
    fail_msg("%s at %llu; seed %llu, %llu bytes, cluster %llu, granularity %llu, target's %llu",
             what, (unsigned long long)at, (unsigned long long)w->seed,
             (unsigned long long)w->bytes, (unsigned long long)w->cluster,
             (unsigned long long)w->granularity, (unsigned long long)w->target_cluster);
}

/* ---- The guest -------------------------------------------------------------------------- */

static void guest_step(struct world *w)
{
    struct guest *g = &guests[rng_below(&w->rng, GUESTS)];
    uint64_t most = rng_percent(&w->rng, 70) ? 600 : WRITE_MAX;
    uint64_t len = rng_below(&w->rng, (most < w->bytes ? most : w->bytes) + 1);
    uint64_t at = rng_below(&w->rng, w->bytes - len + 1);

    if (g->busy && REQ_PENDING(&g->req)) {
        return;
    }
    g->busy = true;
    fill(g->data, sizeof g->data, at, ++w->stamp);
    switch (rng_below(&w->rng, 8)) {
    case 0: ASSERT_CODE(req_zeroes(&g->req, disk.image, at, len), 0); break;
    case 1: ASSERT_CODE(req_discard(&g->req, disk.image, at, len), 0); break;
    default: ASSERT_CODE(req_write(&g->req, disk.image, at, g->data, (size_t)len), 0); break;
    }
}

static void some_finish(struct world *w, struct tape *t)
{
    size_t pending = tape_pending(t, 0);

    if (pending) {
        ASSERT_CODE(tape_finish(t, (int)rng_below(&w->rng, pending), 0), 0);
    }
}

static void stir(struct world *w, struct part *copy, unsigned steps)
{
    disk.tape.hold = OPS_ALL;
    if (copy) {
        copy->tape.hold = OPS_ALL;
    }
    while (steps-- > 0) {
        switch (rng_below(&w->rng, 5)) {
        case 0: some_finish(w, &disk.tape); break;
        case 1:
            if (copy) {
                some_finish(w, &copy->tape);
            }
            break;
        case 2: guest_step(w); break;
        default: blkrepl_poll(env.ctx, 0, 0); break;
        }
    }
}

/* ---- One link ------------------------------------------------------------------------------ */

static blkrepl_job *link_start(struct world *w, struct link *link, bool full)
{
    blkrepl_job *job = NULL;
    blkrepl_backup_options o = {.struct_size = sizeof o,
                                .sync = full ? BLKREPL_SYNC_FULL : BLKREPL_SYNC_INCREMENTAL,
                                .bitmap = bitmap,
                                .bitmap_mode = BLKREPL_BITMAP_ON_SUCCESS,
                                .cluster_bytes = w->cluster,
                                .workers_max = 1 + (uint32_t)rng_below(&w->rng, 3),
                                .chunk_bytes_max = rng_percent(&w->rng, 50) ? 1 : 0,
                                .on_cbw_error = 1 + (uint32_t)rng_below(&w->rng, 2),
                                .flags =
                                    rng_percent(&w->rng, 30) ? BLKREPL_BACKUP_DETECT_ZEROES : 0};

    tape_init(&link->copy.tape, w->bytes + rng_below(&w->rng, 3) * 5000);
    link->copy.tape.info.cluster_bytes = (uint32_t)w->target_cluster;
    part_open_prepared(&link->copy, &env);
    ASSERT_CODE(blkrepl_backup_create(disk.image, link->copy.image, &o, &job), 0);
    free(link->image);
    part_note(&disk); /* nothing is in flight */
    link->image = disk.start;
    disk.start = NULL;
    ASSERT_CODE(blkrepl_job_start(job), 0);
    return job;
}

/* Ends it somehow; whether it has succeeded. */
static bool link_end(struct world *w, struct link *link, blkrepl_job *job)
{
    unsigned fate = (unsigned)rng_below(&w->rng, 4);

    stir(w, &link->copy, 30 + (unsigned)rng_below(&w->rng, 150));
    if (fate == 0) {
        part_fail(&link->copy, BLKREPL_OP_WRITE, rng_below(&w->rng, w->bytes), 4096, -EIO);
    } else if (fate == 1 && job_state(job) != BLKREPL_JOB_CONCLUDED) {
        ASSERT_CODE(blkrepl_job_cancel(job, 0), 0);
    }
    stir(w, &link->copy, 50);
    parts_run(&env, (struct part *const[]){&disk, &link->copy}, 2);
    ASSERT_STATE(job, BLKREPL_JOB_CONCLUDED);
    bool done = job_info(job).result == BLKREPL_RESULT_DONE;
    blkrepl_job_free(job);
    env_drain(&env);
    return done;
}

static void link_drop(struct link *link)
{
    part_close(&link->copy);
    env_drain(&env);
    part_end(&link->copy);
}

/* What one link has written, over what is there. */
static void restore(const struct world *w, uint8_t *out, const struct link *link)
{
    const struct tape *t = &link->copy.tape;

    for (size_t i = 0; i < t->log_count; i++) {
        const struct tape_record *r = &t->log[i];
        bool wrote = r->opcode == BLKREPL_OP_WRITE || r->opcode == BLKREPL_OP_ZEROES;

        if (wrote && r->offset < w->bytes) {
            uint64_t len = r->bytes < w->bytes - r->offset ? r->bytes : w->bytes - r->offset;

            memcpy(out + r->offset, t->data + r->offset, (size_t)len);
        }
    }
}

static void compare_all(const struct world *w)
{
    uint8_t *out = calloc(1, (size_t)w->bytes + 1);

    assert_non_null(out);
    for (size_t n = 0; n < w->links; n++) {
        restore(w, out, &chain[n]);
        uint64_t at = first_difference(out, chain[n].image, w->bytes);
        if (at != UINT64_MAX) {
            print_error("link %zu of %zu\n", n, w->links);
            lost(w, "what was restored differs", at);
        }
    }
    free(out);
}

/* ---- One chain ---------------------------------------------------------------- */

static void world_open(struct world *w, uint64_t seed)
{
    static const uint64_t sizes[] = {1, 4096, 65537, 20 * CLUSTER, SIZE_MAX_HERE};

    memset(w, 0, sizeof *w);
    memset(guests, 0, sizeof guests);
    w->seed = seed;
    w->rng.state = seed * 7919;
    w->bytes = sizes[seed % ARRAY_COUNT(sizes)];
    w->cluster = UINT64_C(4096) << rng_below(&w->rng, 6);
    w->granularity = UINT64_C(512) << rng_below(&w->rng, 10);
    if (rng_percent(&w->rng, 40)) { /* clusters are those of the target */
        w->target_cluster = UINT64_C(4096) << rng_below(&w->rng, 7);
        w->cluster = 0;
    }
    env_open(&env, NULL, 0);
    part_open(&disk, &env, w->bytes, (unsigned)seed);
    bitmap = bitmap_put(disk.image, "chain", w->granularity, 0);
}

static void world_close(struct world *w)
{
    for (size_t n = 0; n < w->links; n++) {
        part_close(&chain[n].copy);
    }
    blkrepl_bitmap_free(bitmap);
    part_close(&disk);
    env_close(&env);
    part_end(&disk);
    for (size_t n = 0; n < STEPS; n++) {
        if (n < w->links) {
            part_end(&chain[n].copy);
        }
        free(chain[n].image);
        chain[n].image = NULL;
    }
}

static void one_chain(uint64_t seed)
{
    struct world w;

    world_open(&w, seed);
    for (int tries = 0; w.links < STEPS && tries < 20; tries++) {
        struct link *link = &chain[w.links];

        stir(&w, NULL, 60);
        parts_run(&env, (struct part *const[]){&disk}, 1);
        blkrepl_job *job = link_start(&w, link, w.links == 0);
        if (link_end(&w, link, job)) {
            w.links++;
        } else {
            link_drop(link);
        }
    }
    assert_true(w.links > 1);
    compare_all(&w);
    world_close(&w);
}

static void a_chain_restores_every_point_in_time(void **state)
{
    (void)state;
    for (uint64_t seed = 1; seed <= (quick() ? 10 : 60); seed++) {
        one_chain(seed);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_chain_restores_every_point_in_time),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
