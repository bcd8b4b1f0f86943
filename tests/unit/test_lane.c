/* SPDX-License-Identifier: MIT */
#include "core/lane.h"

#include "unit/quick_rig.h"

#include "base/hook.h"

#include <poll.h>

#define DISK MIB

static void bench_open(struct quick_bench *b, const blkrepl_context_options *options)
{
    quick_init(b, options, DISK);
    quick_open(b);
    b->disk.hold = EVERY;
}

static bool readable(const struct quick_bench *b, uint32_t lane)
{
    struct pollfd pfd = {.fd = blkrepl_poll_fd(b->rig.ctx, lane), .events = POLLIN};

    return poll(&pfd, 1, 0) == 1;
}

static int arm(const struct quick_bench *b, uint32_t lane)
{
    uint64_t deadline;

    return blkrepl_poll_arm(b->rig.ctx, lane, &deadline);
}

static void collect(struct quick_bench *b, uint32_t number)
{
    struct lane *lane = &b->rig.ctx->lanes[number];

    pthread_mutex_lock(&lane->lock);
    blkrepl__lane_collect(b->rig.ctx, lane);
    pthread_mutex_unlock(&lane->lock);
}

/* ---- Completions ------------------------------------------------------------ */

static void lane_collects_within_the_bound_and_in_order(void **state)
{
    struct quick_bench b;
    struct blkrepl_context *ctx;
    struct done done[5];

    (void)state;
    bench_open(&b, &(blkrepl_context_options){.completions_max = 2});
    ctx = b.rig.ctx;
    for (int i = 0; i < 5; i++) {
        quick_flush_call(&b, 0, &done[i]);
    }
    script_end_all(&b.disk);
    assert_false(atomic_load(&ctx->attention));
    collect(&b, 0);
    assert_int_equal(quick_guest(&b, 1)->phase, GUEST_ENDED);
    assert_int_equal(quick_guest(&b, 2)->phase, GUEST_GIVEN);
    assert_true(atomic_load(&ctx->attention)); /* the next entry goes on */
    collect(&b, 0);
    collect(&b, 0);
    assert_int_equal(quick_guest(&b, 4)->phase, GUEST_ENDED);
    assert_true(atomic_load(&ctx->recorded)); /* if need be that of a poll of lane 0 */
    atomic_store(&ctx->recorded, false);
    atomic_store(&ctx->attention, false);
    atomic_store(&ctx->recorded, false);
    collect(&b, 0);
    assert_false(atomic_load(&ctx->attention));
    quick_poll_all(&b);
    for (int i = 0; i < 5; i++) {
        done_assert(&done[i], 0);
        assert_true(i == 0 || done[i - 1].order < done[i].order);
    }
    assert_true(is_quick(&b));
    quick_close(&b);
}

/* The same by polls and calls alone. */
static void lane_that_is_bounded_comes_to_the_end(void **state)
{
    struct quick_bench b;
    struct done done[6];

    (void)state;
    bench_open(&b, &(blkrepl_context_options){.completions_max = 1, .lane_count = 2});
    for (int i = 0; i < 5; i++) {
        quick_flush_call(&b, 1, &done[i]);
    }
    script_end_all(&b.disk);
    quick_flush_call(&b, 1, &done[5]); /* sees that the bound was reached */
    assert_false(is_quick(&b));
    script_end_all(&b.disk);
    quick_poll_all(&b);
    for (int i = 0; i < 6; i++) {
        done_assert(&done[i], 0);
    }
    quick_close(&b);
}

static void completion_of_a_quick_request_concerns_its_lane_only(void **state)
{
    struct quick_bench b;
    struct blkrepl_context *ctx;
    struct done done;

    (void)state;
    bench_open(&b, &(blkrepl_context_options){.lane_count = 3});
    ctx = b.rig.ctx;
    quick_flush_call(&b, 1, &done);
    for (uint32_t lane = 0; lane < 3; lane++) {
        assert_int_equal(arm(&b, lane), 0);
    }
    atomic_store(&ctx->starved, 1); /* whoever is: it is not this one's concern */
    script_end_all(&b.disk);
    atomic_store(&ctx->starved, 0);
    assert_true(readable(&b, 1));
    assert_false(readable(&b, 0) || readable(&b, 2));
    assert_false(atomic_load(&ctx->attention) || atomic_load(&ctx->recorded));
    quick_poll(&b, 1);
    done_assert(&done, 0);
    quick_close(&b);
}

/* One of the slow way calls for attention; who may be waiting for it wakes. */
static void slow_completion(bool armed, bool awaited, bool starved, bool wakes_lane_0)
{
    struct quick_bench b;
    struct blkrepl_context *ctx;
    struct done done;

    bench_open(&b, &(blkrepl_context_options){.lane_count = 2});
    ctx = b.rig.ctx;
    quick_flush_call(&b, 1, &done);
    quick_turn(&b);
    assert_int_equal(arm(&b, 0), 0);
    assert_true(!armed || arm(&b, 1) == 0);
    atomic_store(&quick_guest(&b, 1024)->request->awaited, awaited);
    atomic_store(&ctx->starved, starved);
    script_end_all(&b.disk);
    atomic_store(&ctx->starved, 0);
    assert_true(atomic_load(&ctx->attention) && atomic_load(&ctx->recorded));
    assert_int_equal(readable(&b, 1), armed);
    assert_int_equal(readable(&b, 0), wakes_lane_0);
    quick_poll_all(&b);
    done_assert(&done, 0);
    quick_close(&b);
}

static void completion_of_a_slow_request_wakes_who_waits_for_it(void **state)
{
    (void)state;
    slow_completion(false, false, false, false);
    slow_completion(false, true, false, true);
    slow_completion(false, false, true, true);
    slow_completion(true, true, true, false); /* one thread is enough */
}

static void completion_that_is_not_quick_is_returned(void **state)
{
    struct quick_bench b;
    struct blkrepl_context *ctx;
    struct done done;

    (void)state;
    bench_open(&b, &(blkrepl_context_options){.lane_count = 2});
    ctx = b.rig.ctx;
    quick_flush_call(&b, 1, &done);
    quick_turn(&b);
    script_end_all(&b.disk);
    atomic_store(&ctx->attention, false);
    collect(&b, 1);
    assert_true(atomic_load(&ctx->attention));
    assert_false(list_empty(&ctx->lanes[1].returned));
    assert_null(atomic_load(&ctx->lanes[1].inbox));
    quick_poll_all(&b);
    done_assert(&done, 0);
    assert_true(list_empty(&ctx->lanes[1].returned));
    quick_close(&b);
}

/* ---- Callbacks -------------------------------------------------------------- */

static int delivered;

static void deliver_fake(struct callback *callback, struct delivery *out)
{
    (void)callback;
    *out = (struct delivery){.result = ++delivered};
}

static void lane_delivers_what_may_run_together(void **state)
{
    struct quick_bench b;
    struct lane *lane;
    struct delivery out;
    struct callback callbacks[4] = {{.deliver = deliver_fake},
                                    {.deliver = deliver_fake, .quick = true},
                                    {.deliver = deliver_fake, .alone = true},
                                    {.deliver = deliver_fake}};

    (void)state;
    bench_open(&b, NULL);
    lane = &b.rig.ctx->lanes[0];
    delivered = 0;
    assert_int_equal(blkrepl__lane_deliver(lane, &out, true), DELIVER_NONE);
    for (int i = 0; i < 4; i++) {
        blkrepl__lane_callback(lane, &callbacks[i]);
    }
    blkrepl__lane_uncallback(lane, &callbacks[3]);
    blkrepl__lane_uncallback(lane, &callbacks[3]); /* it is off already */
    blkrepl__lane_callback(lane, &callbacks[3]);
    assert_int_equal(blkrepl__lane_deliver(lane, &out, true), DELIVER_ONE);
    assert_int_equal(out.result, 1);
    assert_int_equal(blkrepl__lane_deliver(lane, &out, false), DELIVER_ONE);
    assert_int_equal(blkrepl__lane_deliver(lane, &out, false), DELIVER_NONE);
    assert_int_equal(blkrepl__lane_deliver(lane, &out, true), DELIVER_ALONE);
    assert_int_equal(blkrepl__lane_deliver(lane, &out, false), DELIVER_ONE);
    assert_int_equal(delivered, 4);
    assert_true(list_empty(&lane->callbacks));
    quick_close(&b);
}

static void lane_delivers_quick_ones_up_to_the_first_that_is_not(void **state)
{
    struct quick_bench b;
    struct lane *lane;
    struct delivery out[8];
    struct callback callbacks[5] = {{.deliver = deliver_fake, .quick = true},
                                    {.deliver = deliver_fake, .quick = true},
                                    {.deliver = deliver_fake, .quick = true},
                                    {.deliver = deliver_fake},
                                    {.deliver = deliver_fake, .quick = true}};

    (void)state;
    bench_open(&b, NULL);
    lane = &b.rig.ctx->lanes[0];
    assert_int_equal(blkrepl__lane_deliver_quick(lane, out, 8), 0);
    for (int i = 0; i < 5; i++) {
        blkrepl__lane_callback(lane, &callbacks[i]);
    }
    assert_int_equal(blkrepl__lane_deliver_quick(lane, out, 2), 2);
    assert_int_equal(blkrepl__lane_deliver_quick(lane, out, 8), 1);
    assert_int_equal(blkrepl__lane_deliver_quick(lane, out, 8), 0);
    /* The poll sees that as well, and does the rest. */
    assert_int_equal(blkrepl_poll(b.rig.ctx, 0, 0), 2);
    assert_true(list_empty(&lane->callbacks));
    quick_close(&b);
}

/* ---- Polls and sleepers of one lane ------------------------------------------- */

static void poll_of_a_lane_that_is_polled_is_refused(void **state)
{
    struct quick_bench b;
    struct done done;

    (void)state;
    bench_open(&b, &(blkrepl_context_options){.lane_count = 2});
    quick_flush_call(&b, 1, &done);
    script_end_all(&b.disk);
    atomic_store(&b.rig.ctx->lanes[1].polling, LANE_POLLED);
    assert_int_equal(blkrepl_poll(b.rig.ctx, 1, 0), -EBUSY);
    ASSERT_PENDING(&done);
    atomic_store(&b.rig.ctx->lanes[1].polling, LANE_FREE);
    assert_int_equal(blkrepl_poll(b.rig.ctx, 1, 0), 1);
    done_assert(&done, 0);
    assert_int_equal(atomic_load(&b.rig.ctx->lanes[1].polling), LANE_FREE);
    quick_close(&b);
}

static void poll_of_a_lane_that_has_more_to_do_is_a_slow_one(void **state)
{
    struct quick_bench b;
    struct lane *lane;

    (void)state;
    bench_open(&b, &(blkrepl_context_options){.lane_count = 2});
    lane = &b.rig.ctx->lanes[1];
    atomic_store(&lane->slow_due, true);
    assert_int_equal(blkrepl_poll(b.rig.ctx, 1, 0), 0);
    assert_false(atomic_load(&lane->slow_due)); /* it has looked, and there was nothing */
    assert_int_equal(blkrepl_poll_wake(b.rig.ctx, 1), 0);
    assert_true(atomic_load(&lane->slow_due));
    quick_poll(&b, 1);
    assert_false(atomic_load(&lane->slow_due) || lane->kicked);
    quick_close(&b);
}

static void arm_needs_only_its_lane(void **state)
{
    struct quick_bench b;
    struct lane *lane;
    struct done done;
    uint64_t deadline = 0;

    (void)state;
    bench_open(&b, &(blkrepl_context_options){.lane_count = 2});
    lane = &b.rig.ctx->lanes[1];
    quick_flush_call(&b, 1, &done);
    pthread_mutex_lock(&b.rig.ctx->lock); /* whoever takes it sleeps for ever */
    assert_int_equal(blkrepl_poll_arm(b.rig.ctx, 1, &deadline), 0);
    pthread_mutex_unlock(&b.rig.ctx->lock);
    assert_true(deadline == BLKREPL_FOREVER);
    assert_true(atomic_load(&lane->armed));
    script_end_all(&b.disk);
    assert_false(atomic_load(&lane->armed));
    assert_int_equal(arm(&b, 1), 1); /* there is something to do */
    assert_false(atomic_load(&lane->armed));
    atomic_store(&lane->armed, true); /* somebody sleeps there, and is not robbed */
    assert_int_equal(arm(&b, 1), 1);
    assert_true(atomic_load(&lane->armed));
    quick_poll(&b, 1);
    done_assert(&done, 0);
    atomic_store(&lane->slow_due, true);
    assert_int_equal(arm(&b, 1), 0); /* by the slow way, which knows better */
    quick_poll(&b, 1);
    quick_close(&b);
}

#ifdef BLKREPL_HOOKS
static struct quick_bench *racing;

static void race_attention(enum record_entry entry, uint32_t lane)
{
    (void)entry;
    (void)lane;
    blkrepl__record_hook = NULL;
    atomic_store(&racing->rig.ctx->attention, true);
}

/* Something comes up while it waits for the lane's lock: the slow way looks. */
static void arm_looks_once_more(void **state)
{
    struct quick_bench b;

    (void)state;
    bench_open(&b, &(blkrepl_context_options){.lane_count = 2});
    racing = &b;
    blkrepl__record_hook = race_attention;
    assert_int_equal(arm(&b, 1), 0); /* there is nothing for this lane */
    assert_null(blkrepl__record_hook);
    assert_true(atomic_load(&b.rig.ctx->lanes[1].armed));
    quick_poll_all(&b);
    quick_close(&b);
}
#endif

static void context_is_not_freed_under_a_thread_of_the_quick_way(void **state)
{
    struct quick_bench b;

    (void)state;
    bench_open(&b, &(blkrepl_context_options){.lane_count = 2});
    blkrepl_image_close(b.image);
    b.rig.ctx->lanes[1].inside = 1;
    assert_int_equal(blkrepl_context_free(b.rig.ctx), -EBUSY);
    b.rig.ctx->lanes[1].inside = 0;
    rig_close(&b.rig);
    script_fini(&b.disk);
}

static void lane_says_what_waits_for_it(void **state)
{
    struct quick_bench b;
    struct lane *lane;
    struct list link = {.next = NULL};
    struct request request;

    (void)state;
    bench_open(&b, NULL);
    lane = &b.rig.ctx->lanes[0];
    assert_false(lane_quick_waits(lane));
    list_append(&lane->callbacks, &link);
    assert_true(lane_quick_waits(lane));
    list_remove(&link);
    list_append(&lane->quick_queues, &link);
    assert_true(lane_quick_waits(lane));
    list_remove(&link);
    list_append(&lane->arrived, &link);
    assert_true(lane_quick_waits(lane));
    list_remove(&link);
    lane->room_due = true;
    assert_true(lane_quick_waits(lane));
    lane->room_due = false;
    lane->lead_over = true;
    assert_true(lane_quick_waits(lane));
    lane->lead_over = false;
    atomic_store(&lane->inbox, &request);
    assert_true(lane_quick_waits(lane));
    atomic_store(&lane->inbox, NULL);
    assert_false(lane_quick_waits(lane));
    quick_close(&b);
}

/* ---- Slots ------------------------------------------------------------------ */

static void lane_has_its_own_slots(void **state)
{
    struct quick_bench b;
    struct blkrepl_context *ctx;
    struct request *slots[2];

    (void)state;
    bench_open(&b, &(blkrepl_context_options){.lane_count = 3, .requests_max = 2});
    ctx = b.rig.ctx;
    for (int i = 0; i < 2; i++) {
        slots[i] = blkrepl__lane_slot_take(&ctx->lanes[1]);
        assert_int_equal(slots[i]->index, 2 + i);
        assert_ptr_equal(lane_of_slot(ctx, slots[i]->index), &ctx->lanes[1]);
    }
    assert_null(blkrepl__lane_slot_take(&ctx->lanes[1]));
    ctx->lanes[1].room_wanted = true;
    blkrepl__lane_slot_put(&ctx->lanes[1], slots[0]);
    assert_true(ctx->lanes[1].room_due && atomic_load(&ctx->lanes[1].slow_due));
    assert_false(ctx->lanes[1].room_wanted);
    blkrepl__lane_slot_put(&ctx->lanes[1], slots[1]);
    quick_poll(&b, 1);
    assert_int_equal(rig_events(&b.rig, BLKREPL_EVENT_ROOM), 1);
    quick_close(&b);
}

/* The last slots come free on the quick way, between the look for one and the wish. */
static void lane_tells_of_room_that_came_before_it_was_wished_for(void **state)
{
    struct quick_bench b;
    struct blkrepl_context *ctx;
    struct request *slot;

    (void)state;
    bench_open(&b, &(blkrepl_context_options){.lane_count = 2, .requests_max = 1});
    ctx = b.rig.ctx;
    slot = blkrepl__lane_slot_take(&ctx->lanes[1]);
    assert_null(blkrepl__lane_slot_take(&ctx->lanes[1]));
    blkrepl__lane_want_room(&ctx->lanes[1]); /* there is none: later */
    assert_true(ctx->lanes[1].room_wanted && !ctx->lanes[1].room_due);
    blkrepl__lane_slot_put(&ctx->lanes[1], slot);
    quick_poll(&b, 1);
    assert_int_equal(rig_events(&b.rig, BLKREPL_EVENT_ROOM), 1);
    blkrepl__lane_want_room(&ctx->lanes[1]); /* there is one by now */
    assert_false(ctx->lanes[1].room_wanted);
    quick_poll(&b, 1);
    assert_int_equal(rig_events(&b.rig, BLKREPL_EVENT_ROOM), 2);
    quick_close(&b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(lane_collects_within_the_bound_and_in_order),
        cmocka_unit_test(lane_that_is_bounded_comes_to_the_end),
        cmocka_unit_test(completion_of_a_quick_request_concerns_its_lane_only),
        cmocka_unit_test(completion_of_a_slow_request_wakes_who_waits_for_it),
        cmocka_unit_test(completion_that_is_not_quick_is_returned),
        cmocka_unit_test(lane_delivers_what_may_run_together),
        cmocka_unit_test(lane_delivers_quick_ones_up_to_the_first_that_is_not),
        cmocka_unit_test(poll_of_a_lane_that_is_polled_is_refused),
        cmocka_unit_test(poll_of_a_lane_that_has_more_to_do_is_a_slow_one),
        cmocka_unit_test(arm_needs_only_its_lane),
#ifdef BLKREPL_HOOKS
        cmocka_unit_test(arm_looks_once_more),
#endif
        cmocka_unit_test(context_is_not_freed_under_a_thread_of_the_quick_way),
        cmocka_unit_test(lane_says_what_waits_for_it),
        cmocka_unit_test(lane_has_its_own_slots),
        cmocka_unit_test(lane_tells_of_room_that_came_before_it_was_wished_for),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
