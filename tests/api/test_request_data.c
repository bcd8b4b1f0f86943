/* SPDX-License-Identifier: MIT */
/* Any byte range, any buffers, any backend: what is written is what is read. */
#include "tape.h"

#define IOVS_MAX 9
#define REQUESTS_MAX 12
#define PIECE_MAX 9000

static struct env env;
static struct tape disk;

/* The naive disk beside the real one. */
struct world {
    struct rng rng;
    uint64_t seed;
    uint64_t bytes;
    uint8_t *model;
    blkrepl_image *image;
    unsigned stamp;
};

/* A request under way, with buffers in pieces. */
struct guest {
    struct req req;
    uint8_t memory[IOVS_MAX][PIECE_MAX + 64];
    blkrepl_iovec iov[IOVS_MAX];
    uint32_t iov_count;
    uint64_t offset;
    uint64_t bytes;
    uint8_t *want; /* of a read */
    bool busy;
};

static struct guest guests[REQUESTS_MAX];

static void lost(const struct world *w, const char *what)
{
    fail_msg("%s; seed %llu, size %llu, alignment %u, memory %u, iovs %u, transfer %llu", what,
             (unsigned long long)w->seed, (unsigned long long)w->bytes, disk.info.request_alignment,
             disk.info.memory_alignment, disk.info.iov_count_max,
             (unsigned long long)disk.info.transfer_bytes_max);
}

static const uint64_t sizes[] = {0, 1, 511, 512, 4097, 8192, 65536, 70001};
static const uint32_t request_alignments[] = {0, 1, 512, 4096};
static const uint32_t memory_alignments[] = {0, 1, 512};

static void world_open(struct world *w, uint64_t seed)
{
    memset(w, 0, sizeof *w);
    w->seed = seed;
    w->rng.state = seed * 977;
    w->bytes = sizes[rng_below(&w->rng, ARRAY_COUNT(sizes))];
    env_open(&env, NULL, 0);
    tape_init(&disk, w->bytes);
    uint32_t align = request_alignments[rng_below(&w->rng, ARRAY_COUNT(request_alignments))];
    disk.info.request_alignment = align;
    disk.info.memory_alignment =
        memory_alignments[rng_below(&w->rng, ARRAY_COUNT(memory_alignments))];
    disk.info.iov_count_max = rng_percent(&w->rng, 40) ? 1 + (uint32_t)rng_below(&w->rng, 3) : 0;
    if (rng_percent(&w->rng, 40)) {
        disk.info.transfer_bytes_max = 4096 * (1 + rng_below(&w->rng, 3));
    }
    if (rng_percent(&w->rng, 40)) {
        disk.info.zeroes_bytes_max = 4096 * (1 + rng_below(&w->rng, 3));
    }
    disk.info.queue_depth = rng_percent(&w->rng, 40) ? 1 + (uint32_t)rng_below(&w->rng, 4) : 0;
    if (rng_percent(&w->rng, 30)) {
        disk.info.opcodes = OPS_RW;
    }
    if (rng_percent(&w->rng, 50)) {
        disk.info.flags = BLKREPL_BACKEND_FUA;
    }
    tape_fill(&disk, (unsigned)seed);
    w->model = tape_copy(&disk);
    disk.hold = rng_percent(&w->rng, 70) ? OPS_ALL : 0;
    w->image = tape_open(&disk, &env);
}

static void world_close(struct world *w)
{
    blkrepl_image_close(w->image);
    env_close(&env);
    if (first_difference(disk.data, w->model, w->bytes) != UINT64_MAX) {
        lost(w, "the disk differs from the model");
    }
    tape_close(&disk);
    free(w->model);
}

/* Some range, often an aligned one or one at the very end. */
static void guest_range(struct world *w, struct guest *g)
{
    uint64_t max = w->bytes < 20000 ? w->bytes : 20000;

    g->bytes = rng_below(&w->rng, max + 1);
    g->offset = rng_below(&w->rng, w->bytes - g->bytes + 1);
    if (rng_percent(&w->rng, 20)) {
        g->offset = w->bytes - g->bytes;
    } else if (rng_percent(&w->rng, 20)) {
        g->offset = g->offset / 4096 * 4096;
    }
}

/* Cut g->bytes into pieces at odd addresses, some of them empty. */
static void guest_pieces(struct world *w, struct guest *g)
{
    uint64_t left = g->bytes;

    g->iov_count = 0;
    while (left > 0 && g->iov_count < IOVS_MAX) {
        uint32_t i = g->iov_count++;
        uint64_t len = left < PIECE_MAX ? left : PIECE_MAX;

        if (IOVS_MAX - g->iov_count > 3) {
            len = rng_percent(&w->rng, 15) ? 0 : 1 + rng_below(&w->rng, len);
        }
        if (rng_percent(&w->rng, 30)) {
            len = len / 512 * 512;
        }
        g->iov[i].base = g->memory[i] + rng_below(&w->rng, 64);
        g->iov[i].len = (size_t)len;
        left -= len;
    }
    g->bytes -= left; /* what found no room is left out */
}

static void guest_write(struct world *w, struct guest *g)
{
    uint64_t at = g->offset;
    blkrepl_completion done = req_completion(&g->req);
    uint32_t flags = rng_percent(&w->rng, 20) ? BLKREPL_IO_FUA : 0;

    w->stamp++;
    for (uint32_t i = 0; i < g->iov_count; i++) {
        fill(g->iov[i].base, g->iov[i].len, at, w->stamp);
        if (g->iov[i].len) {
            memcpy(w->model + at, g->iov[i].base, g->iov[i].len);
        }
        at += g->iov[i].len;
    }
    ASSERT_CODE(blkrepl_image_write(w->image, 0, g->offset, g->iov, g->iov_count, flags, &done), 0);
}

static void guest_zeroes(struct world *w, struct guest *g)
{
    blkrepl_completion done = req_completion(&g->req);
    uint32_t flags = rng_percent(&w->rng, 50) ? BLKREPL_IO_MAY_UNMAP : 0;

    memset(w->model + g->offset, 0, (size_t)g->bytes);
    ASSERT_CODE(blkrepl_image_write_zeroes(w->image, 0, g->offset, g->bytes, flags, &done), 0);
}

/* Reads are not ordered against writes: so they go when nothing is under way. */
static void guest_read(struct world *w, struct guest *g)
{
    uint64_t at = g->offset;
    blkrepl_completion done = req_completion(&g->req);

    ASSERT_CODE(blkrepl_image_read(w->image, 0, g->offset, g->iov, g->iov_count, 0, &done), 0);
    while (REQ_PENDING(&g->req)) {
        env_drain(&env);
        if (tape_pending(&disk, 0)) {
            tape_finish(&disk, (int)rng_below(&w->rng, tape_pending(&disk, 0)), 0);
        }
    }
    req_assert_done(&g->req, 0);
    for (uint32_t i = 0; i < g->iov_count; i++) {
        if (g->iov[i].len && memcmp(g->iov[i].base, w->model + at, g->iov[i].len) != 0) {
            lost(w, "a read got something else than was written");
        }
        at += g->iov[i].len;
    }
}

static size_t under_way(void)
{
    size_t n = 0;

    for (size_t i = 0; i < REQUESTS_MAX; i++) {
        if (guests[i].busy && !REQ_PENDING(&guests[i].req)) {
            req_assert_done(&guests[i].req, 0);
            guests[i].busy = false;
        }
        n += guests[i].busy;
    }
    return n;
}

static void quiesce(struct world *w)
{
    for (int i = 0; under_way() > 0; i++) {
        env_drain(&env);
        size_t pending = tape_pending(&disk, 0);
        if (pending) {
            ASSERT_CODE(tape_finish(&disk, (int)rng_below(&w->rng, pending), 0), 0);
        }
        if (i > 100000) {
            lost(w, "a request does not end");
        }
    }
}

static void step(struct world *w)
{
    struct guest *g = &guests[rng_below(&w->rng, REQUESTS_MAX)];

    if (g->busy) {
        size_t pending = tape_pending(&disk, 0);
        if (pending) {
            ASSERT_CODE(tape_finish(&disk, (int)rng_below(&w->rng, pending), 0), 0);
        }
        env_drain(&env);
        under_way();
        return;
    }
    req_reset(&g->req);
    guest_range(w, g);
    if (rng_percent(&w->rng, 25)) {
        quiesce(w);
        req_reset(&g->req);
        guest_pieces(w, g);
        guest_read(w, g);
        return;
    }
    g->busy = true;
    if (rng_percent(&w->rng, 20)) {
        guest_zeroes(w, g);
    } else {
        guest_pieces(w, g);
        guest_write(w, g);
    }
}

static void any_byte_range_reads_back_on_any_backend(void **state)
{
    struct world w;
    uint64_t seeds = quick() ? 60 : 600;

    (void)state;
    for (uint64_t seed = 1; seed <= seeds; seed++) {
        memset(guests, 0, sizeof guests);
        world_open(&w, seed);
        for (int i = 0; i < 150; i++) {
            step(&w);
        }
        quiesce(&w);
        world_close(&w);
    }
}

/* ---- Large images ----------------------------------------------------------------- */

static void ends_of_the_largest_image_are_read_and_written(void **state)
{
    blkrepl_image *image = NULL;
    uint8_t data[1000], back[1000];
    uint64_t end = BLKREPL_IMAGE_BYTES_MAX;
    struct req req = {0};

    (void)state;
    env_open(&env, NULL, 0);
    ASSERT_CODE(blkrepl_image_open_memory(env.ctx, end, NULL, &image), 0);
    assert_true(image_info(image).bytes == end);
    fill(data, sizeof data, 5, 5);
    ASSERT_CODE(write_now(&env, image, end - sizeof data, data, sizeof data), 0);
    ASSERT_CODE(write_now(&env, image, 0, data, sizeof data), 0);
    ASSERT_CODE(read_now(&env, image, end - sizeof data, back, sizeof back), 0);
    assert_memory_equal(back, data, sizeof data);
    ASSERT_CODE(read_now(&env, image, end / 2, back, sizeof back), 0);
    assert_true(all_zero(back, sizeof back));
    ASSERT_CODE(read_now(&env, image, end - 1, back, 1), 0);
    assert_int_equal(back[0], data[999]);
    ASSERT_CODE(read_now(&env, image, end - 1, back, 2), -EINVAL);
    ASSERT_CODE(read_now(&env, image, end, back, 1), -EINVAL);
    ASSERT_CODE(req_zeroes(&req, image, end - sizeof data, sizeof data), 0);
    env_drain(&env);
    req_assert_done(&req, 0);
    ASSERT_CODE(read_now(&env, image, end - sizeof data, back, sizeof back), 0);
    assert_true(all_zero(back, sizeof back));
    blkrepl_image_close(image);
    env_close(&env);
}

static void too_large_an_image_is_refused(void **state)
{
    blkrepl_image *image = NULL;

    (void)state;
    env_open(&env, NULL, 0);
    ASSERT_CODE(
        blkrepl_image_open_memory(env.ctx, (uint64_t)BLKREPL_IMAGE_BYTES_MAX + 1, NULL, &image),
        -EINVAL);
    assert_null(image);
    ASSERT_CODE(blkrepl_image_open_memory(env.ctx, UINT64_MAX, NULL, &image), -EINVAL);
    env_close(&env);
}

static void a_memory_image_behaves_as_a_disk(void **state)
{
    blkrepl_image *image = NULL;
    struct rng rng = {.state = 4711};
    uint64_t bytes = 5 * CLUSTER + 333;
    uint8_t *model = calloc(1, (size_t)bytes), *back = malloc((size_t)bytes);

    (void)state;
    env_open(&env, NULL, 0);
    ASSERT_CODE(blkrepl_image_open_memory(env.ctx, bytes, NULL, &image), 0);
    for (unsigned i = 0; i < 300; i++) {
        uint64_t len = rng_below(&rng, 100000), at = rng_below(&rng, bytes - len + 1);
        struct req req = {0};

        if (rng_percent(&rng, 30)) {
            memset(model + at, 0, (size_t)len);
            ASSERT_CODE(req_zeroes(&req, image, at, len), 0);
            env_drain(&env);
            req_assert_done(&req, 0);
        } else {
            fill(model + at, (size_t)len, at, i);
            ASSERT_CODE(write_now(&env, image, at, model + at, (size_t)len), 0);
        }
    }
    ASSERT_CODE(read_now(&env, image, 0, back, (size_t)bytes), 0);
    assert_same(back, model, bytes, "memory image, seed 4711");
    free(model);
    free(back);
    blkrepl_image_close(image);
    env_close(&env);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(any_byte_range_reads_back_on_any_backend),
        cmocka_unit_test(ends_of_the_largest_image_are_read_and_written),
        cmocka_unit_test(too_large_an_image_is_refused),
        cmocka_unit_test(a_memory_image_behaves_as_a_disk),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
