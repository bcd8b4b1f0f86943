/* SPDX-License-Identifier: MIT */
#include "base/checked.h"

#include <setjmp.h>
#include <stdarg.h>

#include <cmocka.h>

#define M UINT64_MAX

static void checked_range_inside_does_not_overflow(void **state)
{
    (void)state;
    assert_true(range_inside(0, 0, 0));
    assert_true(range_inside(0, 10, 10));
    assert_true(range_inside(10, 0, 10));
    assert_true(range_inside(4, 6, 10));
    assert_false(range_inside(4, 7, 10));
    assert_false(range_inside(11, 0, 10));
    assert_false(range_inside(5, M - 2, 10));
    assert_false(range_inside(M, M, 10));
    assert_true(range_inside(M, 0, M));
    assert_true(range_inside(1, M - 1, M));
    assert_false(range_inside(1, M, M));
}

/* All pairs of ranges within ten bytes, against counting the common bytes. */
static void checked_range_overlaps_is_having_a_byte_in_common(void **state)
{
    (void)state;
    for (unsigned i = 0; i < 10000; i++) {
        uint64_t a = i % 10, b = i / 10 % 10, c = i / 100 % 10, d = i / 1000;
        bool common = false;

        if (a >= b || c >= d) {
            continue;
        }
        for (uint64_t byte = 0; byte < 10; byte++) {
            common |= a <= byte && byte < b && c <= byte && byte < d;
        }
        assert_int_equal(range_overlaps(a, b, c, d), common);
    }
}

static void checked_add_refuses_overflow_and_leaves_the_sum_alone(void **state)
{
    uint64_t sum = 42;

    (void)state;
    assert_false(checked_add(M, 1, &sum));
    assert_false(checked_add(1, M, &sum));
    assert_false(checked_add(M / 2 + 1, M / 2 + 1, &sum));
    assert_int_equal(sum, 42);
    assert_true(checked_add(M / 2 + 1, M / 2, &sum));
    assert_true(sum == M);
    assert_true(checked_add(M, 0, &sum) && sum == M);
    assert_true(checked_add(0, 0, &sum) && sum == 0);
}

static void checked_mul_refuses_overflow_and_leaves_the_product_alone(void **state)
{
    uint64_t product = 42;

    (void)state;
    assert_false(checked_mul(M, 2, &product));
    assert_false(checked_mul(2, M, &product));
    assert_false(checked_mul(UINT64_C(1) << 32, UINT64_C(1) << 32, &product));
    assert_false(checked_mul(M / 3 + 1, 3, &product));
    assert_int_equal(product, 42);
    assert_true(checked_mul(M / 3, 3, &product) && product == M);
    assert_true(checked_mul(M, 1, &product) && product == M);
    assert_true(checked_mul(0, M, &product) && product == 0);
    assert_true(checked_mul(M, 0, &product) && product == 0);
}

static void checked_powers_of_two_are_told(void **state)
{
    (void)state;
    assert_false(is_power_of_two(0));
    for (unsigned shift = 0; shift < 64; shift++) {
        uint64_t x = UINT64_C(1) << shift;

        assert_true(is_power_of_two(x));
        assert_int_equal(is_power_of_two(x + 1), x == 1);
        assert_int_equal(is_power_of_two(x | 1), x == 1);
    }
    assert_false(is_power_of_two(M));
}

static void checked_align_is_the_nearest_multiple(void **state)
{
    (void)state;
    for (uint64_t alignment = 1; alignment <= 64; alignment *= 2) {
        for (uint64_t x = 0; x < 300; x++) {
            assert_true(align_down(x, alignment) == x / alignment * alignment);
            assert_true(align_up(x, alignment) == (x + alignment - 1) / alignment * alignment);
        }
    }
    assert_true(align_down(M, UINT64_C(1) << 63) == UINT64_C(1) << 63);
    assert_true(align_up(M - 4095, 4096) == M - 4095);
}

static void checked_min_and_max(void **state)
{
    (void)state;
    assert_true(min_u64(1, M) == 1 && min_u64(M, 1) == 1 && min_u64(7, 7) == 7);
    assert_true(max_u64(1, M) == M && max_u64(M, 1) == M && max_u64(7, 7) == 7);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(checked_range_inside_does_not_overflow),
        cmocka_unit_test(checked_range_overlaps_is_having_a_byte_in_common),
        cmocka_unit_test(checked_add_refuses_overflow_and_leaves_the_sum_alone),
        cmocka_unit_test(checked_mul_refuses_overflow_and_leaves_the_product_alone),
        cmocka_unit_test(checked_powers_of_two_are_told),
        cmocka_unit_test(checked_align_is_the_nearest_multiple),
        cmocka_unit_test(checked_min_and_max),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
