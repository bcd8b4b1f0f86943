/* SPDX-License-Identifier: MIT */
#include "core/log.h"

#include "unit/rig.h"

static void log_without_a_hook_keeps_nothing(void **state)
{
    struct log_ring ring = {.enabled = false};
    struct log_line line;

    (void)state;
    blkrepl__log_add(&ring, BLKREPL_LOG_ERROR, "x");
    assert_false(log_waiting(&ring));
    assert_false(blkrepl__log_take(&ring, &line));
}

static void log_lines_come_in_order_also_around_the_end_of_the_ring(void **state)
{
    struct log_ring ring = {.enabled = true};
    struct log_line line;
    char want[32];
    int next = 0;

    (void)state;
    for (int i = 0; i < 10 * LOG_LINES; i++) {
        blkrepl__log_add(&ring, (uint32_t)i % 4 + 1, "line %d", i);
        if (i % 3 == 2 || ring.count == LOG_LINES) {
            while (blkrepl__log_take(&ring, &line)) {
                snprintf(want, sizeof want, "line %d", next);
                assert_string_equal(line.text, want);
                assert_int_equal(line.level, (uint32_t)next % 4 + 1);
                next++;
            }
        }
    }
    assert_int_equal(next + (int)ring.count, 10 * LOG_LINES);
}

static void log_loss_is_reported_as_a_line_with_its_number(void **state)
{
    struct log_ring ring = {.enabled = true};
    struct log_line line;
    unsigned lines = 0;

    (void)state;
    for (int i = 0; i < LOG_LINES + 7; i++) {
        blkrepl__log_add(&ring, BLKREPL_LOG_INFO, "line %d", i);
    }
    assert_true(blkrepl__log_take(&ring, &line));
    assert_string_equal(line.text, "line 0");
    while (blkrepl__log_take(&ring, &line)) {
        lines++;
    }
    assert_int_equal(lines, LOG_LINES); /* 31 that were kept, then the loss */
    assert_string_equal(line.text, "7 log lines were lost");
    assert_int_equal(line.level, BLKREPL_LOG_WARNING);
    blkrepl__log_add(&ring, BLKREPL_LOG_INFO, "after");
    assert_true(blkrepl__log_take(&ring, &line));
    assert_string_equal(line.text, "after"); /* reported once */
    assert_false(log_waiting(&ring));
}

static void log_counts_every_line_once_kept_or_lost(void **state)
{
    struct log_ring ring = {.enabled = true};
    struct log_line line;
    struct rng rng = {1};
    unsigned long long added = 0;
    unsigned long long seen = 0;
    unsigned long long lost;

    (void)state;
    for (int i = 0; i < 20000; i++) {
        if (rng_below(&rng, 100) < 60) {
            blkrepl__log_add(&ring, BLKREPL_LOG_INFO, "x");
            added++;
        } else if (blkrepl__log_take(&ring, &line)) {
            seen += sscanf(line.text, "%llu log lines", &lost) == 1 ? lost : 1;
        }
    }
    while (blkrepl__log_take(&ring, &line)) {
        seen += sscanf(line.text, "%llu log lines", &lost) == 1 ? lost : 1;
    }
    assert_true(seen == added);
}

static void log_line_that_is_too_long_is_cut_and_terminated(void **state)
{
    struct log_ring ring = {.enabled = true};
    struct log_line line;

    (void)state;
    blkrepl__log_add(&ring, BLKREPL_LOG_INFO, "%*d", 2 * LOG_LINE_BYTES, 1);
    blkrepl__log_add(&ring, BLKREPL_LOG_INFO, "next");
    assert_true(blkrepl__log_take(&ring, &line));
    assert_int_equal(strlen(line.text), LOG_LINE_BYTES - 1);
    assert_true(blkrepl__log_take(&ring, &line));
    assert_string_equal(line.text, "next");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(log_without_a_hook_keeps_nothing),
        cmocka_unit_test(log_lines_come_in_order_also_around_the_end_of_the_ring),
        cmocka_unit_test(log_loss_is_reported_as_a_line_with_its_number),
        cmocka_unit_test(log_counts_every_line_once_kept_or_lost),
        cmocka_unit_test(log_line_that_is_too_long_is_cut_and_terminated),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
