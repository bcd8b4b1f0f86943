/* SPDX-License-Identifier: MIT */
#include "core/event.h"

#include "unit/rig.h"

static struct list queue;

static void post(struct event_slot *slot, uint32_t type, uint64_t offset)
{
    /* What the poster leaves in count and struct_size does not matter. */
    blkrepl__event_post(&queue, slot,
                        &(blkrepl_event){.type = type, .offset = offset, .count = 99});
}

static void event_is_delivered_with_its_size_and_a_count_of_one(void **state)
{
    struct event_slot slot = {.event = {.count = 0}};
    blkrepl_event event;

    (void)state;
    list_init(&queue);
    post(&slot, BLKREPL_EVENT_JOB_ERROR, 7);
    assert_true(blkrepl__event_take(&queue, &event));
    assert_int_equal(event.struct_size, sizeof event);
    assert_int_equal(event.type, BLKREPL_EVENT_JOB_ERROR);
    assert_int_equal(event.offset, 7);
    assert_int_equal(event.count, 1);
    assert_false(blkrepl__event_take(&queue, &event));
}

static void event_that_repeats_is_merged_and_has_the_newest_contents(void **state)
{
    struct event_slot slot = {.event = {.count = 0}};
    blkrepl_event event;

    (void)state;
    list_init(&queue);
    for (uint64_t i = 1; i <= 5; i++) {
        post(&slot, BLKREPL_EVENT_ROOM, i);
    }
    assert_true(blkrepl__event_take(&queue, &event));
    assert_int_equal(event.count, 5);
    assert_int_equal(event.offset, 5);
    assert_false(blkrepl__event_take(&queue, &event));
    post(&slot, BLKREPL_EVENT_ROOM, 6); /* delivered: it counts from 1 again */
    assert_true(blkrepl__event_take(&queue, &event));
    assert_int_equal(event.count, 1);
}

static void events_come_in_the_order_of_their_first_occurrence(void **state)
{
    struct event_slot slots[3] = {{.event = {.count = 0}}};
    blkrepl_event event;

    (void)state;
    list_init(&queue);
    post(&slots[2], 3, 0);
    post(&slots[0], 1, 0);
    post(&slots[1], 2, 0);
    post(&slots[2], 3, 9);
    assert_true(blkrepl__event_take(&queue, &event) && event.type == 3 && event.offset == 9);
    assert_true(blkrepl__event_take(&queue, &event) && event.type == 1);
    assert_true(blkrepl__event_take(&queue, &event) && event.type == 2);
}

static void event_that_is_dropped_is_not_delivered_nor_counted_later(void **state)
{
    struct event_slot slots[2] = {{.event = {.count = 0}}};
    blkrepl_event event;

    (void)state;
    list_init(&queue);
    blkrepl__event_drop(&slots[0]); /* nothing waits */
    post(&slots[0], 1, 0);
    post(&slots[0], 1, 0);
    post(&slots[1], 2, 0);
    blkrepl__event_drop(&slots[0]);
    assert_true(blkrepl__event_take(&queue, &event) && event.type == 2);
    assert_false(blkrepl__event_take(&queue, &event));
    post(&slots[0], 1, 0);
    assert_true(blkrepl__event_take(&queue, &event));
    assert_int_equal(event.count, 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(event_is_delivered_with_its_size_and_a_count_of_one),
        cmocka_unit_test(event_that_repeats_is_merged_and_has_the_newest_contents),
        cmocka_unit_test(events_come_in_the_order_of_their_first_occurrence),
        cmocka_unit_test(event_that_is_dropped_is_not_delivered_nor_counted_later),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
