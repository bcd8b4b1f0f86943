/* SPDX-License-Identifier: MIT */
#include "core/timer.h"

#include "unit/rig.h"

#define TIMERS 12

static struct timer *ran[256];
static unsigned ran_count;

static void note_expired(struct timer *timer)
{
    assert_false(list_linked(&timer->link)); /* a timer is off before it runs */
    ran[ran_count++] = timer;
}

static struct timer_list list;
static struct timer timers[TIMERS];

static void set_up(void)
{
    ran_count = 0;
    blkrepl__timer_list_init(&list);
    for (int i = 0; i < TIMERS; i++) {
        blkrepl__timer_init(&list, &timers[i], note_expired);
    }
}

static void timer_list_without_timers_has_no_deadline(void **state)
{
    (void)state;
    set_up();
    assert_true(blkrepl__timer_next(&list) == BLKREPL_FOREVER);
    blkrepl__timer_run(&list, UINT64_MAX - 1, 10);
    blkrepl__timer_set(&list, &timers[0], 5);
    assert_true(blkrepl__timer_next(&list) == 5);
    blkrepl__timer_clear(&timers[0]);
    blkrepl__timer_clear(&timers[0]); /* twice does no harm */
    assert_true(blkrepl__timer_next(&list) == BLKREPL_FOREVER);
    assert_int_equal(ran_count, 0);
}

static void timer_runs_at_its_deadline_and_once(void **state)
{
    (void)state;
    set_up();
    blkrepl__timer_set(&list, &timers[0], 100);
    blkrepl__timer_run(&list, 99, 10);
    assert_int_equal(ran_count, 0);
    blkrepl__timer_run(&list, 100, 10);
    blkrepl__timer_run(&list, 200, 10);
    assert_int_equal(ran_count, 1);
}

static void timers_run_by_deadline_then_by_creation(void **state)
{
    (void)state;
    set_up();
    blkrepl__timer_set(&list, &timers[3], 50);
    blkrepl__timer_set(&list, &timers[1], 50);
    blkrepl__timer_set(&list, &timers[2], 40);
    blkrepl__timer_set(&list, &timers[0], 60);
    blkrepl__timer_run(&list, 60, 10);
    assert_int_equal(ran_count, 4);
    assert_ptr_equal(ran[0], &timers[2]);
    assert_ptr_equal(ran[1], &timers[1]);
    assert_ptr_equal(ran[2], &timers[3]);
    assert_ptr_equal(ran[3], &timers[0]);
}

static void timer_set_anew_has_its_new_deadline_only(void **state)
{
    (void)state;
    set_up();
    blkrepl__timer_set(&list, &timers[0], 10);
    blkrepl__timer_set(&list, &timers[1], 20);
    blkrepl__timer_set(&list, &timers[0], 30);
    assert_true(blkrepl__timer_next(&list) == 20);
    blkrepl__timer_run(&list, 25, 10);
    assert_int_equal(ran_count, 1);
    blkrepl__timer_set(&list, &timers[0], 5);
    blkrepl__timer_run(&list, 25, 10);
    assert_int_equal(ran_count, 2);
}

static void timer_run_stops_at_its_bound(void **state)
{
    (void)state;
    set_up();
    for (int i = 0; i < TIMERS; i++) {
        blkrepl__timer_set(&list, &timers[i], 1);
    }
    blkrepl__timer_run(&list, 1, 0);
    assert_int_equal(ran_count, 0);
    blkrepl__timer_run(&list, 1, 5);
    assert_int_equal(ran_count, 5);
    assert_true(blkrepl__timer_next(&list) == 1);
}

static void again_expired(struct timer *timer)
{
    ran_count++;
    blkrepl__timer_set(&list, timer, timer->deadline_ns + 10);
}

static void timer_may_be_set_again_while_it_runs(void **state)
{
    (void)state;
    set_up();
    timers[0].expired = again_expired;
    blkrepl__timer_set(&list, &timers[0], 10);
    blkrepl__timer_run(&list, 35, 100);
    assert_int_equal(ran_count, 3);
    assert_true(blkrepl__timer_next(&list) == 40);
}

static void timer_for_ever_is_never_due(void **state)
{
    (void)state;
    set_up();
    blkrepl__timer_set(&list, &timers[1], BLKREPL_FOREVER);
    blkrepl__timer_set(&list, &timers[0], BLKREPL_FOREVER - 1);
    assert_true(blkrepl__timer_next(&list) == BLKREPL_FOREVER - 1);
    blkrepl__timer_run(&list, UINT64_MAX, 10);
    assert_int_equal(ran_count, 1);
    assert_ptr_equal(ran[0], &timers[0]);
    assert_true(blkrepl__timer_next(&list) == BLKREPL_FOREVER);
}

static void timer_run_ends_with_the_last_timer_whatever_the_clock(void **state)
{
    (void)state;
    set_up();
    blkrepl__timer_set(&list, &timers[0], 5);
    blkrepl__timer_run(&list, UINT64_MAX, 10);
    assert_int_equal(ran_count, 1);
    assert_true(list_empty(&list.timers));
}

/* The oracle: the one with the least (deadline, index) that is due. */
static int oracle_first(const uint64_t *deadlines, uint64_t now)
{
    int best = -1;

    for (int i = 0; i < TIMERS; i++) {
        if (deadlines[i] <= now && deadlines[i] != BLKREPL_FOREVER &&
            (best < 0 || deadlines[i] < deadlines[best])) {
            best = i;
        }
    }
    return best;
}

static void timers_agree_with_a_naive_search(void **state)
{
    uint64_t deadlines[TIMERS];
    struct rng rng = {3};
    uint64_t now = 0;

    (void)state;
    set_up();
    memset(deadlines, 0xff, sizeof deadlines);
    for (int round = 0; round < 5000; round++) {
        int at = (int)rng_below(&rng, TIMERS);
        int first;

        deadlines[at] = rng_below(&rng, 5) == 0 ? BLKREPL_FOREVER : now + rng_below(&rng, 8);
        if (deadlines[at] == BLKREPL_FOREVER) {
            blkrepl__timer_clear(&timers[at]);
        } else {
            blkrepl__timer_set(&list, &timers[at], deadlines[at]);
        }
        now += rng_below(&rng, 3);
        ran_count = 0;
        blkrepl__timer_run(&list, now, 1);
        first = oracle_first(deadlines, now);
        assert_int_equal(ran_count, first >= 0);
        if (first >= 0) {
            assert_ptr_equal(ran[0], &timers[first]);
            deadlines[first] = BLKREPL_FOREVER;
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(timer_list_without_timers_has_no_deadline),
        cmocka_unit_test(timer_runs_at_its_deadline_and_once),
        cmocka_unit_test(timers_run_by_deadline_then_by_creation),
        cmocka_unit_test(timer_set_anew_has_its_new_deadline_only),
        cmocka_unit_test(timer_run_stops_at_its_bound),
        cmocka_unit_test(timer_may_be_set_again_while_it_runs),
        cmocka_unit_test(timer_for_ever_is_never_due),
        cmocka_unit_test(timer_run_ends_with_the_last_timer_whatever_the_clock),
        cmocka_unit_test(timers_agree_with_a_naive_search),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
