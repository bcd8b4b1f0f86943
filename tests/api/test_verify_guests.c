/* SPDX-License-Identifier: MIT */
/* Verify and guests: how long a write may be held by an image that does not answer, and
 * brackets that a host holds in both images at once. */
#include "stage.h"

#define CHUNK (64 * KIB)
#define CHUNKS 8
#define SIZE (CHUNKS * CHUNK)
#define TIMEOUT (2 * SECOND)

static struct env env;
static struct part one, two;
static struct part *const both[] = {&one, &two};
static blkrepl_bitmap *differing;
static blkrepl_job *job;
static blkrepl_verify_options o;
static struct req held, later;

static int set_up(void **state)
{
    (void)state;
    env_open(&env, NULL, 0);
    part_open(&one, &env, SIZE, 1);
    part_open(&two, &env, SIZE, 1);
    differing = bitmap_make(&env, SIZE, CHUNK);
    job = NULL;
    memset(&held, 0, sizeof held);
    memset(&later, 0, sizeof later);
    o = (blkrepl_verify_options){.struct_size = sizeof o,
                                 .chunk_bytes_max = CHUNK,
                                 .workers_max = 1,
                                 .differing = differing,
                                 .guest_timeout_ns = TIMEOUT};
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    job_run_out(&env, job, both, 2);
    blkrepl_job_free(job);
    blkrepl_bitmap_free(differing);
    parts_close(&env, both, 2);
    return 0;
}

static void start(void)
{
    ASSERT_CODE(blkrepl_verify_start(one.image, two.image, &o, &job), 0);
    env_drain(&env);
}

/* The image does not answer the first chunk's read; a guest's write waits for it. */
static void hang(struct part *part)
{
    part->tape.hold = BIT(BLKREPL_OP_READ);
    start();
    assert_int_equal(tape_pending(&part->tape, BLKREPL_OP_READ), 1);
    guest_write(&held, &one, 512, 512, 40);
    env_drain(&env);
    assert_true(REQ_PENDING(&held));
}

/* ---- An image that does not answer ----------------------------------------------------- */

static void a_guest_is_held_for_a_time_only(void **state)
{
    (void)state;
    for (int side = 0; side < 2; side++) {
        hang(both[side]);
        env_advance(&env, TIMEOUT / 2);
        guest_write(&later, &two, 4096, 512, 41); /* "after the first of them came" */
        env_drain(&env);
        assert_true(REQ_PENDING(&held) && REQ_PENDING(&later));
        env_advance(&env, TIMEOUT / 2 + SECOND / 100);
        req_assert_done(&held, 0);
        req_assert_done(&later, 0);
        ASSERT_STATE(job, BLKREPL_JOB_RUNNING); /* "when the image has answered" */
        parts_run(&env, both, 2);
        ASSERT_ENDED(job, BLKREPL_RESULT_FAILED, -ETIMEDOUT);
        blkrepl_job_info info = job_info(job);
        assert_int_equal(info.error_side, side == 0 ? BLKREPL_SIDE_SOURCE : BLKREPL_SIDE_TARGET);
        assert_true(info.error_offset < CHUNK);
        blkrepl_job_free(job);
        job = NULL;
        env_drain(&env);
    }
}

static void with_ignore_the_range_counts_as_differing(void **state)
{
    (void)state;
    o.on_error = BLKREPL_ON_ERROR_IGNORE;
    hang(&two);
    env_advance(&env, TIMEOUT + SECOND / 100);
    req_assert_done(&held, 0);
    parts_run(&env, both, 2);
    ASSERT_ENDED(job, BLKREPL_RESULT_FAILED, -ETIMEDOUT);
    ASSERT_BITS(differing, "#.......");
    assert_int_equal(job_info(job).failed_bytes, CHUNK);
}

static void with_stop_it_is_compared_again_after_the_resume(void **state)
{
    (void)state;
    o.on_error = BLKREPL_ON_ERROR_STOP;
    hang(&two);
    env_advance(&env, TIMEOUT + SECOND / 100);
    req_assert_done(&held, 0);
    parts_run(&env, both, 2);
    assert_true(job_has(job, BLKREPL_JOB_FLAG_ERROR_PAUSED));
    guest_writes(&env, &two, 512, 512, 40); /* the same in both again */
    ASSERT_CODE(blkrepl_job_resume(job), 0);
    env_drain(&env);
    ASSERT_ENDED(job, BLKREPL_RESULT_DONE, 0);
    ASSERT_BITS(differing, "........");
}

static void without_a_timeout_it_waits(void **state)
{
    (void)state;
    o.guest_timeout_ns = BLKREPL_FOREVER;
    hang(&two);
    env_advance(&env, 100000 * SECOND);
    assert_true(REQ_PENDING(&held));
    parts_run(&env, both, 2);
    req_assert_done(&held, 0);
    ASSERT_ENDED(job, BLKREPL_RESULT_DONE, 0);
    ASSERT_BITS(differing, "........"); /* it came after its chunk */
}

static void nobody_who_waits_no_timeout(void **state)
{
    (void)state;
    two.tape.hold = BIT(BLKREPL_OP_READ);
    start();
    env_advance(&env, 100 * TIMEOUT);
    parts_run(&env, both, 2);
    ASSERT_ENDED(job, BLKREPL_RESULT_DONE, 0);
}

static void a_cancel_lets_the_guest_go_at_once(void **state)
{
    (void)state;
    hang(&two);
    ASSERT_CODE(blkrepl_job_cancel(job, 0), 0);
    env_drain(&env);
    req_assert_done(&held, 0);
    parts_run(&env, both, 2);
    ASSERT_ENDED(job, BLKREPL_RESULT_CANCELLED, -ECANCELED);
}

/* ---- Brackets in both images ------------------------------------------------------------- */

struct pair {
    struct bracket b[2];
    uint8_t data[8192];
    bool open[2];
    unsigned step;
};

static struct pair pairs[3];

static void pair_begin(struct rng *rng, struct pair *p, int side)
{
    if (side == 0) {
        uint64_t len = 1 + rng_below(rng, sizeof p->data - 1);

        p->b[0].offset = rng_below(rng, SIZE - len);
        p->b[0].bytes = len;
        fill(p->data, sizeof p->data, rng_below(rng, 1000), 9);
    }
    int rc = bracket_begin(&p->b[side], both[side]->image, BLKREPL_OP_WRITE, p->b[0].offset,
                           p->b[0].bytes);

    assert_true(rc == 0 || rc == BLKREPL_WAIT);
    p->open[side] = true;
}

/* Begin in one image, with the GO begin in the other, with both write, then end. */
static void pair_step(struct rng *rng, struct pair *p)
{
    switch (p->step) {
    case 0: pair_begin(rng, p, 0); break;
    case 1:
        if (!bracket_may_go(&p->b[0])) {
            return;
        }
        pair_begin(rng, p, 1);
        break;
    case 2:
        if (!bracket_may_go(&p->b[1])) {
            return;
        }
        for (int side = 0; side < 2; side++) {
            tape_poke(&both[side]->tape, p->b[0].offset, p->data, (size_t)p->b[0].bytes);
        }
        break;
    default:
        for (int side = 0; side < 2; side++) {
            ASSERT_CODE(blkrepl_write_end(env.ctx, p->b[side].token, 0, NULL, 0, NULL), 0);
        }
        break;
    }
    p->step = (p->step + 1) % 4;
}

/* A host that mirrors by itself: neither is held for good, and nothing ever differs. */
static void brackets_in_both_images_are_never_held_for_good(void **state)
{
    (void)state;
    o.guest_timeout_ns = BLKREPL_FOREVER;
    for (uint64_t seed = 1; seed <= (quick() ? 10 : 80); seed++) {
        struct rng rng = {.state = seed};

        memset(pairs, 0, sizeof pairs);
        o.workers_max = 1 + (uint32_t)rng_below(&rng, 3);
        one.tape.hold = BIT(BLKREPL_OP_READ);
        two.tape.hold = BIT(BLKREPL_OP_READ);
        start();
        for (int n = 0; n < 300; n++) {
            struct tape *t = &both[rng_below(&rng, 2)]->tape;
            size_t pending = tape_pending(t, 0);

            if (pending && rng_percent(&rng, 40)) {
                ASSERT_CODE(tape_finish(t, (int)rng_below(&rng, pending), 0), 0);
            }
            pair_step(&rng, &pairs[rng_below(&rng, ARRAY_COUNT(pairs))]);
            blkrepl_poll(env.ctx, 0, 0);
        }
        for (int round = 0; round < 100; round++) { /* all of them come to their end */
            for (size_t i = 0; i < ARRAY_COUNT(pairs); i++) {
                if (pairs[i].step != 0) {
                    pair_step(&rng, &pairs[i]);
                }
            }
            parts_run(&env, both, 2);
        }
        for (size_t i = 0; i < ARRAY_COUNT(pairs); i++) {
            if (pairs[i].step != 0) {
                fail_msg("seed %llu: a pair is held in step %u", (unsigned long long)seed,
                         pairs[i].step);
            }
        }
        ASSERT_ENDED(job, BLKREPL_RESULT_DONE, 0);
        assert_int_equal(job_info(job).differing_bytes, 0);
        blkrepl_job_free(job);
        job = NULL;
        env_drain(&env);
    }
}

int main(void)
{
#define T(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)
    const struct CMUnitTest tests[] = {
        T(a_guest_is_held_for_a_time_only),
        T(with_ignore_the_range_counts_as_differing),
        T(with_stop_it_is_compared_again_after_the_resume),
        T(without_a_timeout_it_waits),
        T(nobody_who_waits_no_timeout),
        T(a_cancel_lets_the_guest_go_at_once),
        T(brackets_in_both_images_are_never_held_for_good),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
