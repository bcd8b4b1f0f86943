/* SPDX-License-Identifier: MIT */
/* Random walks over an image that turns to the slow way and back all the time. */
#include "unit/quick_rig.h"

#include "base/checked.h"

#define DISK (4 * MIB)
#define BRACKETS 8
#define STEPS_MAX 8000

struct walk {
    struct quick_bench b;
    struct rng rng;
    struct done *done; /* one per step */
    unsigned steps;
    unsigned turns;
    bool tapped;
    struct tap tap;
    struct {
        uint64_t token;
        uint64_t start;
        uint64_t end;
        struct done *go; /* NULL: it has its GO */
    } brackets[BRACKETS];
};

static uint64_t below(struct walk *w, uint64_t limit)
{
    return rng_below(&w->rng, limit);
}

/* A few blocks on both sides of the borders of parts. */
static uint64_t some_offset(struct walk *w)
{
    return MIB * (1 + below(w, 3)) - 8192 + 512 * below(w, 32);
}

static enum tap_answer walk_before(struct tap *tap, struct guest *guest, uint64_t start,
                                   uint64_t end)
{
    (void)tap;
    (void)guest;
    (void)start;
    (void)end;
    return TAP_PASS;
}

static void walk_request(struct walk *w, struct done *done)
{
    static unsigned char memory[4096];
    static blkrepl_iovec iovs[STEPS_MAX];
    static blkrepl_extent extent;
    blkrepl_iovec *iov = &iovs[w->steps];
    blkrepl_image *image = w->b.image;
    uint32_t lane = (uint32_t)below(w, w->b.rig.ctx->lane_count);
    uint64_t offset = some_offset(w);
    uint64_t what = below(w, 40);
    blkrepl_completion c = done_of(done);
    int rc;

    *iov = (blkrepl_iovec){.base = memory, .len = (size_t)(512 * (1 + below(w, 4)))};
    if (what < 18) {
        rc = blkrepl_image_write(image, lane, offset, iov, 1, 0, &c);
    } else if (what < 30) {
        rc = blkrepl_image_read(image, lane, offset, iov, 1, 0, &c);
    } else if (what < 35) {
        rc = blkrepl_image_flush(image, lane, &c);
    } else if (what == 35) {
        rc = blkrepl_image_status(image, lane, 0, 512, &extent, 1, &c);
    } else if (what == 36) {
        rc = blkrepl_image_write_zeroes(image, lane, offset, 700, 0, &c);
    } else if (what == 37) {
        rc = blkrepl_image_discard(image, lane, offset, 1024, 0, &c);
    } else {
        rc = blkrepl_image_write(image, lane, offset + 100, iov, 1, 0, &c);
    }
    if (rc != 0) {
        assert_int_equal(rc, -EAGAIN);
        done_assert_rejected(done);
        done->calls = 1; /* over */
    }
}

static void walk_begin(struct walk *w, struct done *go)
{
    unsigned at = (unsigned)below(w, BRACKETS);
    uint64_t offset = some_offset(w);
    uint64_t bytes = 512 * (1 + below(w, 3));
    int rc;

    go->calls = 1;
    if (w->brackets[at].token != 0) {
        return;
    }
    rc = quick_bracket(&w->b, (uint32_t)below(w, w->b.rig.ctx->lane_count), BLKREPL_OP_ZEROES,
                       offset, bytes, go, &w->brackets[at].token);
    w->brackets[at].start = offset;
    w->brackets[at].end = offset + bytes;
    w->brackets[at].go = rc == BLKREPL_WAIT ? go : NULL;
    if (rc != BLKREPL_WAIT) {
        assert_true(rc == 0 || rc == -EAGAIN);
        done_assert_rejected(go);
        go->calls = 1;
    }
}

/* Whether a bracket has its GO. */
static bool walk_go(const struct walk *w, unsigned at)
{
    return w->brackets[at].token != 0 &&
           (w->brackets[at].go == NULL || w->brackets[at].go->calls > 0);
}

static void walk_end_bracket(struct walk *w, unsigned at)
{
    if (w->brackets[at].token == 0) {
        return;
    }
    if (walk_go(w, at)) {
        int rc = below(w, 2) == 0
                     ? blkrepl_write_cancel(w->b.rig.ctx, w->brackets[at].token)
                     : blkrepl_write_end(w->b.rig.ctx, w->brackets[at].token, 0, NULL, 0, NULL);

        assert_int_equal(rc, 0);
        w->brackets[at].token = 0;
    } else if (below(w, 4) == 0) {
        assert_int_equal(blkrepl_write_cancel(w->b.rig.ctx, w->brackets[at].token), BLKREPL_WAIT);
        w->brackets[at].token = 0;
    }
}

static void walk_tap(struct walk *w)
{
    blkrepl__enter(w->b.rig.ctx);
    if (w->tapped) {
        blkrepl__image_detach(&w->tap);
    } else {
        w->tap = (struct tap){.before = walk_before};
        blkrepl__image_attach(w->b.image, &w->tap);
    }
    w->tapped = !w->tapped;
    blkrepl__leave(w->b.rig.ctx, 0);
}

static void walk_step(struct walk *w, struct done *done)
{
    uint64_t what = below(w, 32);

    done->calls = 1; /* over, unless it is a request */
    if (what < 10) {
        walk_request(w, done);
    } else if (what < 12) {
        walk_begin(w, done);
    } else if (what < 17) {
        walk_end_bracket(w, (unsigned)below(w, BRACKETS));
    } else if (what < 23) {
        if (w->b.disk.waiting_count > 0) {
            script_end(&w->b.disk, (unsigned)below(w, w->b.disk.waiting_count), 0);
        }
    } else if (what < 27) {
        assert_true(blkrepl_poll(w->b.rig.ctx, (uint32_t)below(w, w->b.rig.ctx->lane_count), 0) >=
                    0);
    } else if (what < 30) {
        if (w->tapped) {
            walk_tap(w);
        }
        w->turns += !is_quick(&w->b) && quick_back(&w->b);
    } else if (what == 30) {
        w->b.disk.hold = (uint32_t)below(w, 3) == 0 ? 0 : EVERY;
    } else if (below(w, 3) == 0) {
        walk_tap(w);
    } else {
        quick_turn(&w->b);
    }
}

/* Writes that have been given and brackets with their GO never overlap. */
static void walk_check(struct walk *w)
{
    quick_check(&w->b);
    for (unsigned i = 0; i < BRACKETS; i++) {
        for (unsigned k = 0; k < i && walk_go(w, i); k++) {
            assert_false(walk_go(w, k) && range_overlaps(w->brackets[i].start, w->brackets[i].end,
                                                         w->brackets[k].start, w->brackets[k].end));
        }
        for (unsigned k = 0; k < w->b.disk.waiting_count && walk_go(w, i); k++) {
            const blkrepl_io *io = w->b.disk.waiting[k];

            assert_false(io->opcode != BLKREPL_OP_READ && io->opcode != BLKREPL_OP_STATUS &&
                         range_overlaps(w->brackets[i].start, w->brackets[i].end, io->offset,
                                        io->offset + io->bytes));
        }
    }
}

/* Everything ends, and was told once. */
static void walk_finish(struct walk *w)
{
    if (w->tapped) {
        walk_tap(w);
    }
    w->b.disk.hold = 0;
    for (unsigned round = 0; round < 100; round++) {
        for (unsigned i = 0; i < BRACKETS; i++) {
            walk_end_bracket(w, i);
        }
        script_end_all(&w->b.disk);
        quick_poll_all(&w->b);
        walk_check(w);
    }
    for (unsigned i = 0; i < w->steps; i++) {
        assert_int_equal(w->done[i].calls, 1);
    }
    assert_int_equal(w->b.image->requests, 0);
    assert_true(is_quick(&w->b) || quick_back(&w->b));
    quick_close(&w->b);
}

static void walk(uint64_t seed, uint32_t lanes, uint32_t depth, unsigned steps, unsigned *turns)
{
    struct walk w = {.rng = {seed}};

    w.done = calloc(steps, sizeof *w.done);
    assert_non_null(w.done);
    quick_init(&w.b, &(blkrepl_context_options){.lane_count = lanes, .requests_max = 8}, DISK);
    w.b.disk.info.queue_depth = depth;
    quick_open(&w.b);
    for (; w.steps < steps; w.steps++) {
        walk_step(&w, &w.done[w.steps]);
        walk_check(&w);
        if (w.b.disk.note_count > SCRIPT_NOTES / 2) {
            script_forget(&w.b.disk);
        }
    }
    walk_finish(&w);
    *turns += w.turns;
    free(w.done);
}

static void quick_invariants_hold_on_random_walks(void **state)
{
    static const uint32_t depths[] = {1, 2, 3, 64};
    unsigned steps = quick() ? STEPS_MAX / 8 : STEPS_MAX;
    unsigned turns = 0;

    (void)state;
    for (uint64_t i = 0; i < 8; i++) {
        walk(i + 1, i < 4 ? 1 : 3, depths[i % 4], steps, &turns);
    }
    assert_true(turns > steps / 20); /* it does go back and forth */
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(quick_invariants_hold_on_random_walks),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
