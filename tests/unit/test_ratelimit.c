/* SPDX-License-Identifier: MIT */
#include "data/ratelimit.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>

#include <cmocka.h>

#define SEC UINT64_C(1000000000)
#define BURST (SEC / 10)
#define START (1000 * SEC)

static uint64_t random_seed = 1;

static uint64_t random_next(void)
{
    random_seed = random_seed * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
    return random_seed ^ random_seed >> 29;
}

/* The oracle: 128-bit arithmetic in its plainest form. */
struct wide {
    uint64_t high;
    uint64_t low;
};

/* a * b + add, for b below 2^32. */
static struct wide wide_mul_add(uint64_t a, uint64_t b, uint64_t add)
{
    uint64_t low = (a & UINT32_MAX) * b;
    uint64_t high = (a >> 32) * b + (low >> 32);
    struct wide w = {high >> 32, high << 32 | (low & UINT32_MAX)};

    w.low += add;
    w.high += w.low < add ? 1 : 0;
    return w;
}

/* Schoolbook, one bit at a time over all 128. */
static uint64_t wide_div(struct wide w, uint64_t divisor, uint64_t *rest)
{
    uint64_t quotient = 0;
    uint64_t left = 0;

    for (int bit = 127; bit >= 0; bit--) {
        uint64_t digit = (bit >= 64 ? w.high >> (bit - 64) : w.low >> bit) & 1;
        bool carry = left >> 63;

        left = left << 1 | digit;
        quotient <<= 1;
        if (carry || left >= divisor) {
            left -= divisor;
            quotient |= 1;
        }
    }
    *rest = left;
    return quotient;
}

static void ratelimit_without_a_speed_never_waits(void **state)
{
    struct ratelimit limit = {.speed = 0};

    (void)state;
    blkrepl__ratelimit_set(&limit, 0, START);
    for (int i = 0; i < 100; i++) {
        blkrepl__ratelimit_take(&limit, UINT64_MAX, START);
        assert_true(blkrepl__ratelimit_next(&limit, START) <= START);
        assert_true(blkrepl__ratelimit_next(&limit, START - 1) <= START - 1); /* read before */
    }
}

static void ratelimit_piece_is_let_through_and_paid_afterwards(void **state)
{
    struct ratelimit limit = {.speed = 0};

    (void)state;
    blkrepl__ratelimit_set(&limit, 1000, START);
    assert_true(blkrepl__ratelimit_next(&limit, START) <= START);
    blkrepl__ratelimit_take(&limit, 5000, START); /* ten times the bucket */
    assert_true(blkrepl__ratelimit_next(&limit, START) == START + 5 * SEC);
    blkrepl__ratelimit_take(&limit, 1, START + 5 * SEC);
    assert_true(blkrepl__ratelimit_next(&limit, START) == START + 5 * SEC + SEC / 1000);
}

static void ratelimit_idleness_earns_a_tenth_of_a_second(void **state)
{
    struct ratelimit limit = {.speed = 0};
    uint64_t now = START + 3600 * SEC;
    uint64_t taken = 0;

    (void)state;
    blkrepl__ratelimit_set(&limit, 1000, START);
    for (; blkrepl__ratelimit_next(&limit, now) <= now; taken++) {
        blkrepl__ratelimit_take(&limit, 1, now);
    }
    assert_int_equal(taken, 101); /* 100 on credit, and the one that is paid afterwards */
    assert_true(blkrepl__ratelimit_next(&limit, now) == now + SEC / 1000);
}

static void ratelimit_short_idleness_earns_no_more_than_it_lasted(void **state)
{
    struct ratelimit limit = {.speed = 0};

    (void)state;
    blkrepl__ratelimit_set(&limit, 1000, START);
    blkrepl__ratelimit_take(&limit, 40, START + BURST / 2);
    assert_true(blkrepl__ratelimit_next(&limit, START) == START + SEC * 40 / 1000);
    blkrepl__ratelimit_set(&limit, 1000, 5);
    blkrepl__ratelimit_take(&limit, 1, 10); /* the clock is younger than the burst */
    assert_true(blkrepl__ratelimit_next(&limit, 10) == 5 + SEC / 1000);
}

/* How many single units go at once after an hour of idleness. */
static uint64_t burst_after_an_hour(struct ratelimit *limit, uint64_t *now)
{
    uint64_t taken = 0;

    for (*now += 3600 * SEC; blkrepl__ratelimit_next(limit, *now) <= *now; taken++) {
        blkrepl__ratelimit_take(limit, 1, *now);
    }
    return taken;
}

static void ratelimit_burst_is_what_was_set(void **state)
{
    struct ratelimit limit = {.speed = 0};
    uint64_t now = START;

    (void)state;
    blkrepl__ratelimit_set_burst(&limit, 7); /* before a speed is set */
    blkrepl__ratelimit_set(&limit, 1000, START);
    assert_int_equal(burst_after_an_hour(&limit, &now), 8);
    assert_true(blkrepl__ratelimit_next(&limit, now) == now + SEC / 1000);
    blkrepl__ratelimit_set_burst(&limit, 2500); /* more than a second's worth */
    assert_int_equal(burst_after_an_hour(&limit, &now), 2501);
    blkrepl__ratelimit_set(&limit, 3, now); /* units stay units at another speed */
    assert_int_equal(burst_after_an_hour(&limit, &now), 2501);
    blkrepl__ratelimit_set_burst(&limit, 0);
    assert_int_equal(burst_after_an_hour(&limit, &now), 1); /* a tenth of 3 is less than one */
    blkrepl__ratelimit_set(&limit, 1000, now);
    assert_int_equal(burst_after_an_hour(&limit, &now), 101);
}

static void ratelimit_burst_longer_than_the_clock_reaches_back_to_its_start(void **state)
{
    struct ratelimit limit = {.speed = 0};

    (void)state;
    blkrepl__ratelimit_set_burst(&limit, UINT64_MAX);
    blkrepl__ratelimit_set(&limit, 1, 0);
    blkrepl__ratelimit_take(&limit, 5, START);
    assert_true(blkrepl__ratelimit_next(&limit, START) == 5 * SEC);
}

static void ratelimit_set_forgives_debt_and_credit(void **state)
{
    struct ratelimit limit = {.speed = 0};

    (void)state;
    blkrepl__ratelimit_set(&limit, 1, START);
    blkrepl__ratelimit_take(&limit, 1000000, START);
    blkrepl__ratelimit_set(&limit, 3, START + 1);
    assert_true(blkrepl__ratelimit_next(&limit, START + 1) <= START + 1);
    blkrepl__ratelimit_take(&limit, 1, START + 1);
    assert_true(blkrepl__ratelimit_next(&limit, START + 1) == START + 1 + SEC / 3);
    blkrepl__ratelimit_set(&limit, 3, START + 90 * SEC);
    blkrepl__ratelimit_take(&limit, 1, START + 90 * SEC);
    assert_true(blkrepl__ratelimit_next(&limit, START) == START + 90 * SEC + SEC / 3);
}

/* A piece costs a third of a nanosecond; three million pieces a millisecond. */
static void ratelimit_rounding_does_not_add_up(void **state)
{
    struct ratelimit limit = {.speed = 0};

    (void)state;
    blkrepl__ratelimit_set(&limit, 3 * SEC, START);
    for (int i = 0; i < 3000000; i++) {
        blkrepl__ratelimit_take(&limit, 1, START);
    }
    assert_true(blkrepl__ratelimit_next(&limit, START) == START + SEC / 1000);
}

/* Pieces of random sizes, each at the first instant allowed: at the end the
 * time that passed is what they cost all together, to the nanosecond. */
static void ratelimit_average_holds_for_any_piece_size(void **state)
{
    (void)state;
    for (uint64_t speed = 7; speed < UINT64_C(1) << 40; speed *= 11) {
        struct ratelimit limit = {.speed = 0};
        uint64_t now = START;
        uint64_t sum = 0;
        uint64_t rest;

        blkrepl__ratelimit_set(&limit, speed, START);
        for (int i = 0; i < 2000; i++) {
            uint64_t units = random_next() % (2 * speed);

            now = blkrepl__ratelimit_next(&limit, now);
            blkrepl__ratelimit_take(&limit, units, now);
            sum += units;
        }
        now = blkrepl__ratelimit_next(&limit, now);
        assert_true(now - START == wide_div(wide_mul_add(sum, SEC, 0), speed, &rest));
    }
}

static void ratelimit_arithmetic_is_exact_for_all_64_bits(void **state)
{
    (void)state;
    for (int i = 0; i < 200000; i++) {
        uint64_t seed = random_seed;
        uint64_t speed = random_next() >> random_next() % 64;
        uint64_t units = random_next() >> random_next() % 64;
        struct ratelimit limit = {.speed = speed, .free_ns = START};
        struct wide product;
        uint64_t quotient;
        uint64_t rest;

        if (speed == 0) {
            continue;
        }
        limit.fraction = random_next() % speed;
        product = wide_mul_add(units, SEC, limit.fraction);
        quotient = wide_div(product, speed, &rest);
        blkrepl__ratelimit_take(&limit, units, START);
        if (product.high >= speed || quotient > UINT64_MAX - START) {
            quotient = UINT64_MAX - START; /* saturated */
            rest = limit.fraction;
        }
        if (limit.free_ns != START + quotient || limit.fraction != rest) {
            fail_msg("seed %llu: speed %llu units %llu", (unsigned long long)seed,
                     (unsigned long long)speed, (unsigned long long)units);
        }
    }
}

/* Where the long division comes out even at some step. */
static void ratelimit_arithmetic_is_exact_for_powers_of_two(void **state)
{
    (void)state;
    for (int speed = 36; speed < 64; speed++) {
        for (int units = 35; units < speed; units++) {
            struct ratelimit limit = {.speed = 0};
            uint64_t rest;
            uint64_t ns =
                wide_div(wide_mul_add(UINT64_C(1) << units, SEC, 0), UINT64_C(1) << speed, &rest);

            blkrepl__ratelimit_set(&limit, UINT64_C(1) << speed, START);
            blkrepl__ratelimit_take(&limit, UINT64_C(1) << units, START);
            assert_true(limit.free_ns == START + ns);
            assert_true(limit.fraction == rest);
        }
    }
}

static void ratelimit_overflow_saturates(void **state)
{
    struct ratelimit limit = {.speed = 0};

    (void)state;
    blkrepl__ratelimit_set(&limit, 1, START);
    blkrepl__ratelimit_take(&limit, UINT64_MAX, START);
    assert_true(blkrepl__ratelimit_next(&limit, START) == UINT64_MAX);
    blkrepl__ratelimit_take(&limit, 1, START);
    assert_true(blkrepl__ratelimit_next(&limit, START) == UINT64_MAX);
    blkrepl__ratelimit_set(&limit, 1, UINT64_MAX - 1);
    blkrepl__ratelimit_take(&limit, 1, UINT64_MAX - 1);
    assert_true(blkrepl__ratelimit_next(&limit, START) == UINT64_MAX);
    /* The price fits by whole seconds, and does not by what is over. */
    blkrepl__ratelimit_set(&limit, 10, 0);
    blkrepl__ratelimit_take(&limit, UINT64_MAX / SEC * 10 + 7, 0);
    assert_true(blkrepl__ratelimit_next(&limit, 0) == UINT64_MAX / SEC * SEC + SEC / 10 * 7);
    blkrepl__ratelimit_set(&limit, 10, 0);
    blkrepl__ratelimit_take(&limit, UINT64_MAX / SEC * 10 + 8, 0);
    assert_true(blkrepl__ratelimit_next(&limit, 0) == UINT64_MAX);
    blkrepl__ratelimit_set(&limit, UINT64_MAX, START);
    blkrepl__ratelimit_take(&limit, UINT64_MAX, START);
    assert_true(blkrepl__ratelimit_next(&limit, START) == START + SEC);
    blkrepl__ratelimit_take(&limit, UINT64_MAX / 2, START);
    assert_true(blkrepl__ratelimit_next(&limit, START) == START + SEC + SEC / 2 - 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(ratelimit_without_a_speed_never_waits),
        cmocka_unit_test(ratelimit_piece_is_let_through_and_paid_afterwards),
        cmocka_unit_test(ratelimit_idleness_earns_a_tenth_of_a_second),
        cmocka_unit_test(ratelimit_short_idleness_earns_no_more_than_it_lasted),
        cmocka_unit_test(ratelimit_burst_is_what_was_set),
        cmocka_unit_test(ratelimit_burst_longer_than_the_clock_reaches_back_to_its_start),
        cmocka_unit_test(ratelimit_set_forgives_debt_and_credit),
        cmocka_unit_test(ratelimit_rounding_does_not_add_up),
        cmocka_unit_test(ratelimit_average_holds_for_any_piece_size),
        cmocka_unit_test(ratelimit_arithmetic_is_exact_for_all_64_bits),
        cmocka_unit_test(ratelimit_arithmetic_is_exact_for_powers_of_two),
        cmocka_unit_test(ratelimit_overflow_saturates),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
