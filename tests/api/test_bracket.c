/* SPDX-License-Identifier: MIT */
/* Brackets: GO or WAIT, in order, and every token once. */
#include "tape.h"

#define SIZE (4 * CLUSTER + 100)
#define WRITE BLKREPL_OP_WRITE

static struct env env;
static struct tape disk;
static blkrepl_image *image;
static uint8_t buffer[SIZE];

static int set_up(void **state)
{
    (void)state;
    env_open(&env, NULL, 0);
    tape_init(&disk, SIZE);
    tape_fill(&disk, 1);
    disk.info.request_alignment = 512;
    image = tape_open(&disk, &env);
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    blkrepl_image_close(image);
    env_close(&env);
    tape_close(&disk);
    return 0;
}

static int end(const struct bracket *b, int result)
{
    return blkrepl_write_end(env.ctx, b->token, result, NULL, 0, NULL);
}

static int cancel(const struct bracket *b)
{
    return blkrepl_write_cancel(env.ctx, b->token);
}

/* GO at once: no callback, but the release, before the call has returned. */
static void assert_go(const struct bracket *b)
{
    ASSERT_CODE(b->answer, 0);
    assert_true(b->token != 0 && b->token != UINT64_MAX);
    assert_int_equal(b->go.calls, 0);
    assert_int_equal(b->go.released, 1);
}

static void assert_waits(const struct bracket *b)
{
    ASSERT_CODE(b->answer, BLKREPL_WAIT);
    assert_true(b->token != 0 && b->token != UINT64_MAX);
    assert_int_equal(b->go.calls, 0);
    assert_int_equal(b->go.released, 0);
}

static void assert_refused(const struct bracket *b, int code)
{
    ASSERT_CODE(b->answer, code);
    assert_int_equal(b->token, 0);
    req_assert_rejected(&b->go);
}

/* ---- GO and WAIT ------------------------------------------------------------------ */

static void an_idle_image_says_go_at_once(void **state)
{
    static const uint32_t opcodes[] = {WRITE, BLKREPL_OP_ZEROES, BLKREPL_OP_DISCARD};
    struct bracket b = {0};

    (void)state;
    for (size_t i = 0; i < ARRAY_COUNT(opcodes); i++) {
        bracket_begin(&b, image, opcodes[i], 512, 4096);
        assert_go(&b);
        ASSERT_CODE(end(&b, 0), 0);
    }
    bracket_begin(&b, image, BLKREPL_OP_FLUSH, 0, 0);
    assert_go(&b);
    ASSERT_CODE(end(&b, 0), 0);
    env_drain(&env);
    assert_int_equal(b.go.calls, 0);
    assert_int_equal(tape_submitted(&disk, 0), 0);
}

static void a_second_bracket_waits_for_the_end_of_the_first(void **state)
{
    struct bracket a = {0}, b = {0}, beside = {0};

    (void)state;
    bracket_begin(&a, image, WRITE, 0, 4096);
    bracket_begin(&b, image, WRITE, 3584, 4096);
    bracket_begin(&beside, image, WRITE, 65536, 512);
    assert_go(&a);
    assert_waits(&b);
    assert_go(&beside);
    assert_true(a.token != b.token);
    env_drain(&env);
    assert_waits(&b);
    ASSERT_CODE(end(&a, 0), 0);
    assert_int_equal(b.go.calls, 0); /* callbacks run in polls */
    env_drain(&env);
    req_assert_done(&b.go, 0);
    ASSERT_CODE(end(&b, 0), 0);
    ASSERT_CODE(end(&beside, 0), 0);
}

static void a_failed_end_lets_the_next_one_go(void **state)
{
    struct bracket a = {0}, b = {0};

    (void)state;
    bracket_begin(&a, image, WRITE, 0, 4096);
    bracket_begin(&b, image, WRITE, 0, 4096);
    ASSERT_CODE(end(&a, -EIO), 0);
    env_drain(&env);
    req_assert_done(&b.go, 0);
    ASSERT_CODE(end(&b, -EIO), 0);
}

static void it_waits_for_a_through_write_in_flight(void **state)
{
    struct req req = {0};
    struct bracket b = {0};

    (void)state;
    disk.hold = OPS_ALL;
    ASSERT_CODE(req_write(&req, image, 1000, buffer, 100), 0);
    bracket_begin(&b, image, WRITE, 0, 4096);
    assert_waits(&b);
    for (int i = 0; i < 10 && REQ_PENDING(&req); i++) {
        env_drain(&env);
        assert_int_equal(b.go.calls, 0);
        tape_finish_all(&disk, 0, 0);
        env_drain(&env);
    }
    req_assert_done(&req, 0);
    req_assert_done(&b.go, 0);
    ASSERT_CODE(end(&b, 0), 0);
}

static void a_through_write_waits_for_its_end(void **state)
{
    struct req req = {0}, other = {0};
    struct bracket b = {0};

    (void)state;
    bracket_begin(&b, image, WRITE, 0, 4096);
    assert_go(&b);
    fill(buffer, 100, 0, 9);
    ASSERT_CODE(req_write(&req, image, 1000, buffer, 100), 0);
    ASSERT_CODE(req_write(&other, image, 8192, buffer, 512), 0);
    env_drain(&env);
    assert_false(tape_saw(&disk, 0, 0, 4096));
    req_assert_done(&other, 0);
    assert_int_equal(req.calls, 0);
    memset(buffer + 4096, 0x77, 4096);
    tape_poke(&disk, 0, buffer + 4096, 4096);
    ASSERT_CODE(end(&b, 0), 0);
    env_drain(&env);
    req_assert_done(&req, 0);
    assert_int_equal(disk.data[999], 0x77);
    assert_memory_equal(disk.data + 1000, buffer, 100);
    assert_int_equal(disk.data[1100], 0x77);
}

/* through, beside, through, beside over the same bytes: as they were accepted. */
static void order_is_that_of_acceptance(void **state)
{
    struct req first = {0}, third = {0};
    struct bracket second = {0}, fourth = {0};

    (void)state;
    disk.hold = BIT(WRITE);
    ASSERT_CODE(req_write(&first, image, 0, buffer, 512), 0);
    bracket_begin(&second, image, WRITE, 0, 512);
    ASSERT_CODE(req_write(&third, image, 0, buffer, 512), 0);
    bracket_begin(&fourth, image, WRITE, 0, 512);
    assert_waits(&second);
    assert_waits(&fourth);
    env_drain(&env);
    assert_int_equal(tape_pending(&disk, 0), 1);
    tape_finish_all(&disk, 0, 0);
    env_drain(&env);
    req_assert_done(&second.go, 0);
    assert_int_equal(tape_pending(&disk, 0), 0);
    assert_int_equal(fourth.go.calls, 0);
    ASSERT_CODE(end(&second, 0), 0);
    env_drain(&env);
    assert_int_equal(tape_pending(&disk, 0), 1);
    assert_int_equal(fourth.go.calls, 0);
    tape_finish_all(&disk, 0, 0);
    env_drain(&env);
    req_assert_done(&third, 0);
    req_assert_done(&fourth.go, 0);
    ASSERT_CODE(end(&fourth, 0), 0);
}

static void flush_brackets_wait_for_nobody(void **state)
{
    struct bracket a = {0}, flush = {0}, bad = {0};

    (void)state;
    bracket_begin(&a, image, WRITE, 0, 4096);
    bracket_begin(&flush, image, BLKREPL_OP_FLUSH, 0, 0);
    assert_go(&flush);
    ASSERT_CODE(end(&flush, 0), 0);
    ASSERT_CODE(end(&a, 0), 0);
    bracket_begin(&bad, image, BLKREPL_OP_FLUSH, 0, 512);
    assert_refused(&bad, -EINVAL);
    bracket_begin(&bad, image, BLKREPL_OP_FLUSH, 512, 0);
    assert_refused(&bad, -EINVAL);
    assert_int_equal(tape_submitted(&disk, 0), 0);
}

/* ---- Refusals ---------------------------------------------------------------------- */

static void ranges_must_be_aligned_and_inside(void **state)
{
    static const uint64_t bad[][2] = {
        {1, 512},
        {0, 513},
        {512, 100},
        {SIZE, 512},
        {SIZE - 100, 512},
        {0, SIZE + 1},
        {UINT64_MAX - 511, 512},
        {UINT64_MAX - 511, 1024},
        {512, UINT64_MAX - 511},
        {UINT64_C(1) << 63, 512},
    };
    struct bracket b = {0};

    (void)state;
    for (size_t i = 0; i < ARRAY_COUNT(bad); i++) {
        bracket_begin(&b, image, WRITE, bad[i][0], bad[i][1]);
        assert_refused(&b, -EINVAL);
    }
    bracket_begin(&b, image, WRITE, SIZE - 100, 100); /* up to the very end */
    assert_go(&b);
    ASSERT_CODE(end(&b, 0), 0);
    bracket_begin(&b, image, BLKREPL_OP_DISCARD, 0, SIZE);
    assert_go(&b);
    ASSERT_CODE(end(&b, 0), 0);
}

static int begin(struct bracket *b, const blkrepl_bracket *what)
{
    req_reset(&b->go);
    blkrepl_completion go = req_completion(&b->go);
    b->token = UINT64_MAX;
    b->answer = blkrepl_write_begin(image, what, &go, &b->token);
    return b->answer;
}

static void bad_opcodes_flags_lanes_and_sizes_are_refused(void **state)
{
    struct {
        blkrepl_bracket known;
        uint64_t unknown;
    } newer = {.unknown = 0};
    blkrepl_bracket good = {.struct_size = sizeof good, .opcode = WRITE, .bytes = 512};
    blkrepl_bracket what = good;
    struct bracket b = {0};

    (void)state;
    static const uint32_t opcodes[] = {0, BLKREPL_OP_READ, BLKREPL_OP_STATUS, 7, 8, 9, 1000};
    for (size_t i = 0; i < ARRAY_COUNT(opcodes); i++) {
        what.opcode = opcodes[i];
        begin(&b, &what);
        assert_refused(&b, -EINVAL);
    }
    static const uint32_t flags[] = {BLKREPL_IO_NO_FALLBACK, BLKREPL_IO_BACKGROUND, 16, 1u << 31};
    what = good;
    for (size_t i = 0; i < ARRAY_COUNT(flags); i++) {
        what.flags = flags[i];
        begin(&b, &what);
        assert_refused(&b, -EINVAL);
    }
    what = good;
    what.flags = BLKREPL_IO_FUA;
    begin(&b, &what);
    assert_go(&b);
    ASSERT_CODE(end(&b, 0), 0);
    what.flags = BLKREPL_IO_FUA | BLKREPL_IO_MAY_UNMAP;
    what.opcode = BLKREPL_OP_ZEROES;
    begin(&b, &what);
    assert_go(&b);
    ASSERT_CODE(end(&b, 0), 0);
    what = good;
    what.lane = 1;
    begin(&b, &what);
    assert_refused(&b, -EINVAL);
    what = good;
    what.struct_size = sizeof what - 1;
    begin(&b, &what);
    assert_refused(&b, -EINVAL);
    newer.known = good;
    newer.known.struct_size = sizeof newer;
    begin(&b, &newer.known);
    assert_go(&b);
    ASSERT_CODE(end(&b, 0), 0);
    newer.unknown = 1;
    begin(&b, &newer.known);
    assert_refused(&b, BLKREPL_ERR_VERSION);
}

static void brackets_count_as_requests(void **state)
{
    blkrepl_context_options o = {.struct_size = sizeof o, .requests_max = 2};
    struct bracket b[3] = {0};

    (void)state;
    blkrepl_image_close(image);
    env_close(&env);
    disk.get_infos = disk.closes = 0;
    env_open(&env, &o, 0);
    image = tape_open(&disk, &env);
    bracket_begin(&b[0], image, WRITE, 0, 512);
    bracket_begin(&b[1], image, WRITE, 0, 512);
    assert_waits(&b[1]);
    bracket_begin(&b[2], image, WRITE, 4096, 512);
    assert_refused(&b[2], -EAGAIN);
    ASSERT_CODE(end(&b[0], 0), 0);
    env_drain(&env);
    assert_int_equal(env_count(&env, BLKREPL_EVENT_ROOM, 0), 1);
    bracket_begin(&b[2], image, WRITE, 4096, 512);
    assert_go(&b[2]);
    ASSERT_CODE(end(&b[1], 0), 0);
    ASSERT_CODE(end(&b[2], 0), 0);
}

/* ---- Tokens -------------------------------------------------------------------------- */

static void an_end_counts_once(void **state)
{
    struct bracket a = {0}, b = {0};

    (void)state;
    bracket_begin(&a, image, WRITE, 0, 512);
    ASSERT_CODE(end(&a, 0), 0);
    ASSERT_CODE(end(&a, 0), -ENOENT);
    ASSERT_CODE(cancel(&a), -ENOENT);
    for (int i = 0; i < 100; i++) { /* the slot is used again, the token is not */
        bracket_begin(&b, image, WRITE, 0, 512);
        assert_go(&b);
        assert_true(a.token != b.token);
        ASSERT_CODE(end(&a, 0), -ENOENT);
        ASSERT_CODE(cancel(&a), -ENOENT);
        ASSERT_CODE(end(&b, 0), 0);
    }
    ASSERT_CODE(blkrepl_write_end(env.ctx, 0, 0, NULL, 0, NULL), -ENOENT);
    ASSERT_CODE(blkrepl_write_end(env.ctx, UINT64_MAX, 0, NULL, 0, NULL), -ENOENT);
    ASSERT_CODE(blkrepl_write_cancel(env.ctx, 0), -ENOENT);
}

static void a_waiting_bracket_cannot_end(void **state)
{
    struct bracket a = {0}, b = {0};

    (void)state;
    bracket_begin(&a, image, WRITE, 0, 512);
    bracket_begin(&b, image, WRITE, 0, 512);
    ASSERT_CODE(end(&b, 0), -ENOENT);
    assert_waits(&b);
    ASSERT_CODE(end(&a, 0), 0);
    ASSERT_CODE(end(&b, 0), -ENOENT); /* its go has not run yet */
    env_drain(&env);
    req_assert_done(&b.go, 0);
    ASSERT_CODE(end(&b, 0), 0);
}

static void a_positive_result_leaves_it_open(void **state)
{
    struct bracket a = {0}, b = {0};

    (void)state;
    bracket_begin(&a, image, WRITE, 0, 512);
    bracket_begin(&b, image, WRITE, 0, 512);
    ASSERT_CODE(end(&a, 512), -EINVAL);
    env_drain(&env);
    assert_waits(&b);
    ASSERT_CODE(end(&a, 0), 0);
    env_drain(&env);
    ASSERT_CODE(end(&b, 0), 0);
}

/* A token is neither the id of a request nor the other way round. */
static void tokens_and_request_ids_do_not_mix(void **state)
{
    struct req req = {0};
    struct bracket a = {0};

    (void)state;
    disk.hold = OPS_ALL;
    ASSERT_CODE(req_read(&req, image, 0, buffer, 512), 0);
    bracket_begin(&a, image, WRITE, 4096, 512);
    ASSERT_CODE(blkrepl_write_end(env.ctx, disk.queue[0]->id, 0, NULL, 0, NULL), -ENOENT);
    ASSERT_CODE(blkrepl_io_complete(env.ctx, a.token, 0), -ENOENT);
    tape_release(&disk, &env);
    req_assert_done(&req, 0);
    ASSERT_CODE(end(&a, 0), 0);
}

/* ---- Cancel -------------------------------------------------------------------------- */

static void cancel_of_a_waiting_bracket_calls_go_with_ecanceled_once(void **state)
{
    struct bracket a = {0}, b = {0}, c = {0};

    (void)state;
    bracket_begin(&a, image, WRITE, 0, 512);
    bracket_begin(&b, image, WRITE, 0, 512);
    bracket_begin(&c, image, WRITE, 0, 512);
    ASSERT_CODE(cancel(&b), BLKREPL_WAIT);
    assert_int_equal(b.go.calls, 0);
    ASSERT_CODE(cancel(&b), -ENOENT);
    ASSERT_CODE(end(&b, 0), -ENOENT);
    env_drain(&env);
    req_assert_done(&b.go, -ECANCELED);
    ASSERT_CODE(end(&a, 0), 0);
    env_drain(&env);
    req_assert_done(&b.go, -ECANCELED);
    req_assert_done(&c.go, 0);
    ASSERT_CODE(end(&c, 0), 0);
}

static void cancel_after_go_ends_it_without_a_callback(void **state)
{
    struct bracket a = {0}, b = {0};

    (void)state;
    bracket_begin(&a, image, WRITE, 0, 512);
    bracket_begin(&b, image, WRITE, 0, 512);
    ASSERT_CODE(cancel(&a), 0);
    ASSERT_CODE(end(&a, 0), -ENOENT);
    env_drain(&env);
    assert_int_equal(a.go.calls, 0);
    req_assert_done(&b.go, 0);
    ASSERT_CODE(cancel(&b), 0); /* its go had been entered */
    env_drain(&env);
    req_assert_done(&b.go, 0);
    ASSERT_CODE(cancel(&b), -ENOENT);
}

/* The range is free and the callback is on its way, but has not been entered. */
static void cancel_between_the_grant_and_its_callback_still_says_wait(void **state)
{
    struct bracket a = {0}, b = {0}, c = {0};

    (void)state;
    bracket_begin(&a, image, WRITE, 0, 512);
    bracket_begin(&b, image, WRITE, 0, 512);
    bracket_begin(&c, image, WRITE, 0, 512);
    ASSERT_CODE(end(&a, 0), 0);
    ASSERT_CODE(cancel(&b), BLKREPL_WAIT);
    env_drain(&env);
    req_assert_done(&b.go, -ECANCELED);
    req_assert_done(&c.go, 0);
    ASSERT_CODE(end(&c, 0), 0);
}

static int answer_in_go;

static void cancel_in_go(struct req *req)
{
    answer_in_go = cancel(req->then_user);
}

static void end_in_go(struct req *req)
{
    answer_in_go = end(req->then_user, 0);
}

static void cancel_and_end_are_legal_inside_go(void **state)
{
    struct bracket a = {0}, b = {0}, c = {0};

    (void)state;
    bracket_begin(&a, image, WRITE, 0, 512);
    b.go.then = cancel_in_go;
    b.go.then_user = &b;
    bracket_begin(&b, image, WRITE, 0, 512);
    answer_in_go = 99;
    ASSERT_CODE(end(&a, 0), 0);
    env_drain(&env);
    ASSERT_CODE(answer_in_go, 0);
    req_assert_done(&b.go, 0);
    ASSERT_CODE(cancel(&b), -ENOENT);

    bracket_begin(&a, image, WRITE, 0, 512);
    c.go.then = end_in_go;
    c.go.then_user = &c;
    bracket_begin(&c, image, WRITE, 0, 512);
    answer_in_go = 99;
    ASSERT_CODE(end(&a, 0), 0);
    env_drain(&env);
    ASSERT_CODE(answer_in_go, 0);
    req_assert_done(&c.go, 0);
    ASSERT_CODE(end(&c, 0), -ENOENT);
}

/* ---- Data ------------------------------------------------------------------------------ */

static void data_given_to_an_end_is_not_written(void **state)
{
    blkrepl_iovec iov = {buffer, 512};
    struct req done = {0};
    blkrepl_completion completion = req_completion(&done);
    struct bracket a = {0};

    (void)state;
    uint8_t *before = tape_copy(&disk);
    memset(buffer, 0xcc, sizeof buffer);
    bracket_begin(&a, image, WRITE, 0, 512);
    ASSERT_CODE(blkrepl_write_end(env.ctx, a.token, 0, &iov, 1, &completion), 0);
    req_assert_rejected(&done); /* answered at once: released, not called */
    env_drain(&env);
    assert_int_equal(done.calls, 0);
    assert_int_equal(tape_submitted(&disk, 0), 0);
    assert_same(disk.data, before, SIZE, "disk");
    free(before);
}

/* Random brackets and writes: only one of those that overlap may be at work. */
static void overlapping_grants_never_coincide(void **state)
{
    struct rng rng = {.state = 31};
    struct bracket b[16] = {0};
    bool open[16] = {false};
    bool ends[16] = {false};

    (void)state;
    for (int i = 0; i < (quick() ? 3000 : 30000); i++) {
        size_t n = (size_t)rng_below(&rng, 16);

        if (!open[n]) {
            uint64_t at = 512 * rng_below(&rng, 20);

            bracket_begin(&b[n], image, WRITE, at, 512 * (1 + rng_below(&rng, 8)));
            assert_true(b[n].answer >= 0);
            open[n] = true;
            ends[n] = rng_percent(&rng, 80);
        } else if (bracket_may_go(&b[n])) {
            ASSERT_CODE(ends[n] ? end(&b[n], 0) : cancel(&b[n]), 0);
            open[n] = false;
        } else {
            env_drain(&env);
        }
        for (size_t k = 0; k < 16; k++) {
            for (size_t m = k + 1; m < 16; m++) {
                if (open[k] && open[m] && bracket_may_go(&b[k]) && bracket_may_go(&b[m])) {
                    assert_false(b[k].offset < b[m].offset + b[m].bytes &&
                                 b[m].offset < b[k].offset + b[k].bytes);
                }
            }
        }
    }
    for (int round = 0; round < 16; round++) {
        env_drain(&env);
        for (size_t k = 0; k < 16; k++) {
            if (open[k] && bracket_may_go(&b[k])) {
                ASSERT_CODE(end(&b[k], 0), 0);
                open[k] = false;
            }
        }
    }
    for (size_t k = 0; k < 16; k++) {
        assert_false(open[k]);
    }
}

int main(void)
{
#define T(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)
    const struct CMUnitTest tests[] = {
        T(an_idle_image_says_go_at_once),
        T(a_second_bracket_waits_for_the_end_of_the_first),
        T(a_failed_end_lets_the_next_one_go),
        T(it_waits_for_a_through_write_in_flight),
        T(a_through_write_waits_for_its_end),
        T(order_is_that_of_acceptance),
        T(flush_brackets_wait_for_nobody),
        T(ranges_must_be_aligned_and_inside),
        T(bad_opcodes_flags_lanes_and_sizes_are_refused),
        T(brackets_count_as_requests),
        T(an_end_counts_once),
        T(a_waiting_bracket_cannot_end),
        T(a_positive_result_leaves_it_open),
        T(tokens_and_request_ids_do_not_mix),
        T(cancel_of_a_waiting_bracket_calls_go_with_ecanceled_once),
        T(cancel_after_go_ends_it_without_a_callback),
        T(cancel_between_the_grant_and_its_callback_still_says_wait),
        T(cancel_and_end_are_legal_inside_go),
        T(data_given_to_an_end_is_not_written),
        T(overlapping_grants_never_coincide),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
