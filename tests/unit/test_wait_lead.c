/* SPDX-License-Identifier: MIT */
#include "core/wait.h"

#include "unit/quick_rig.h"

#include <sched.h>

#define DISK MIB

static void bench_open(struct quick_bench *b, uint32_t requests)
{
    memset(b, 0, sizeof *b);
    b->rig.real_clock = true;
    rig_open(&b->rig, &(blkrepl_context_options){.lane_count = 2, .requests_max = requests});
    script_init(&b->disk, DISK);
    quick_open(b);
}

static struct lane *lane_of(const struct quick_bench *b)
{
    return &b->rig.ctx->lanes[1];
}

static void waiter_open(struct quick_bench *b, struct waiter *waiter)
{
    assert_int_equal(blkrepl__waiter_init(waiter, b->rig.ctx, 1), 0);
}

static void flush_of(struct quick_bench *b, struct waiter *waiter)
{
    blkrepl_completion done = {.fn = blkrepl__waiter_done, .user = waiter};

    assert_int_equal(blkrepl_image_flush(b->image, 1, &done), 0);
}

static void wait_is_refused_where_nothing_could_end_it(void **state)
{
    struct quick_bench b;
    struct host_frame frame;
    struct waiter waiter;
    struct rig rig = {.real_clock = false};

    (void)state;
    bench_open(&b, 4);
    assert_int_equal(blkrepl__wait_allowed(NULL), -EINVAL);
    assert_int_equal(blkrepl__wait_allowed(b.rig.ctx), 0);
    blkrepl__host_enter(&frame, b.rig.ctx);
    assert_int_equal(blkrepl__wait_allowed(b.rig.ctx), -EDEADLK);
    blkrepl__host_leave(&frame);
    rig_open(&rig, NULL);
    assert_int_equal(blkrepl__wait_allowed(rig.ctx), -EINVAL);
    rig_close(&rig);
    assert_int_equal(blkrepl__waiter_init(&waiter, b.rig.ctx, 2), -EINVAL);
    assert_int_equal(atomic_load(&lane_of(&b)->blocked), 0);
    quick_close(&b);
}

static void wait_returns_the_result(void **state)
{
    struct quick_bench b;
    struct waiter waiter;

    (void)state;
    bench_open(&b, 4);
    b.disk.result[BLKREPL_OP_FLUSH] = -EIO;
    waiter_open(&b, &waiter);
    assert_int_equal(atomic_load(&lane_of(&b)->blocked), 1);
    flush_of(&b, &waiter);
    assert_int_equal(blkrepl__wait(&waiter), -EIO); /* by a poll of its own */
    assert_false(lane_of(&b)->leader != NULL || lane_of(&b)->lead_over);
    assert_true(list_empty(&lane_of(&b)->waiters));
    assert_int_equal(atomic_load(&lane_of(&b)->polling), LANE_FREE);
    blkrepl__waiter_fini(&waiter);
    assert_int_equal(atomic_load(&lane_of(&b)->blocked), 0);
    quick_close(&b);
}

static void wait_for_what_is_over_polls_nothing(void **state)
{
    struct quick_bench b;
    struct waiter waiter;
    struct done done;

    (void)state;
    bench_open(&b, 4);
    waiter_open(&b, &waiter);
    quick_flush_call(&b, 1, &done);
    blkrepl__waiter_done(&waiter, -7);
    assert_int_equal(blkrepl__wait(&waiter), -7);
    ASSERT_PENDING(&done);
    blkrepl__waiter_fini(&waiter);
    quick_poll_all(&b);
    quick_close(&b);
}

static void *wait_thread(void *user)
{
    struct waiter *waiter = user;

    blkrepl__wait(waiter);
    return NULL;
}

static void *wait_room_thread(void *user)
{
    struct waiter *waiter = user;

    blkrepl__wait_room(waiter);
    return NULL;
}

static void until_awaited(const struct quick_bench *b)
{
    while (atomic_load(&lane_of(b)->polling) != LANE_AWAITED) {
        sched_yield();
    }
}

/* Whoever stops polling wakes one of those who wait, who goes on. */
static void who_waits_while_the_lane_is_polled_leads_afterwards(void **state)
{
    struct quick_bench b;
    struct lane *lane;
    struct waiter waiters[2];
    pthread_t threads[2];

    (void)state;
    bench_open(&b, 4);
    lane = lane_of(&b);
    pthread_mutex_lock(&lane->lock);
    blkrepl__lane_poll_begin(lane);
    pthread_mutex_unlock(&lane->lock);
    assert_int_equal(atomic_load(&lane->polling), LANE_POLLED);
    for (int i = 0; i < 2; i++) {
        waiter_open(&b, &waiters[i]);
        flush_of(&b, &waiters[i]);
        assert_int_equal(pthread_create(&threads[i], NULL, wait_thread, &waiters[i]), 0);
    }
    until_awaited(&b);
    blkrepl__lane_poll_end(lane);
    for (int i = 0; i < 2; i++) {
        assert_int_equal(pthread_join(threads[i], NULL), 0);
        assert_true(waiters[i].done);
        blkrepl__waiter_fini(&waiters[i]);
    }
    assert_int_equal(atomic_load(&lane->polling), LANE_FREE);
    quick_close(&b);
}

static void poll_knows_whether_somebody_waits(void **state)
{
    struct quick_bench b;
    struct lane *lane;
    struct waiter waiters[2];

    (void)state;
    bench_open(&b, 4);
    lane = lane_of(&b);
    for (int i = 0; i < 2; i++) {
        waiter_open(&b, &waiters[i]);
        list_append(&lane->waiters, &waiters[i].link);
    }
    for (int over = 0; over <= 2; over++) { /* nobody, one, both: who is left leads */
        for (int i = 0; i < over; i++) {
            waiters[i].done = true;
        }
        pthread_mutex_lock(&lane->lock);
        blkrepl__lane_poll_begin(lane);
        pthread_mutex_unlock(&lane->lock);
        assert_int_equal(atomic_load(&lane->polling), LANE_AWAITED);
        blkrepl__lane_poll_end(lane);
        assert_int_equal(atomic_load(&lane->polling), LANE_FREE);
    }
    for (int i = 0; i < 2; i++) {
        list_remove(&waiters[i].link);
        blkrepl__waiter_fini(&waiters[i]);
    }
    quick_close(&b);
}

static void room_goes_to_the_first_who_wants_it(void **state)
{
    struct quick_bench b;
    struct lane *lane;
    struct waiter waiters[3];

    (void)state;
    bench_open(&b, 4);
    lane = lane_of(&b);
    for (int i = 0; i < 3; i++) {
        waiter_open(&b, &waiters[i]);
        list_append(&lane->room_waiters, &waiters[i].room);
    }
    lane->leader = &waiters[1];
    pthread_mutex_lock(&lane->lock);
    blkrepl__lane_slot_put(lane, blkrepl__lane_slot_take(lane));
    assert_true(waiters[0].done && !waiters[1].done);
    assert_false(lane->lead_over);
    atomic_store(&lane->armed, true);
    blkrepl__lane_slot_put(lane, blkrepl__lane_slot_take(lane));
    assert_true(waiters[1].done && !waiters[2].done);
    assert_true(lane->lead_over);
    assert_false(atomic_load(&lane->armed)); /* it sleeps in its poll */
    lane->lead_over = false;
    pthread_mutex_unlock(&lane->lock);
    blkrepl__wait_room_refused(&waiters[0]); /* who could not use it passes it on */
    assert_true(waiters[2].done);
    blkrepl__wait_room_refused(&waiters[0]); /* to nobody */
    for (int i = 0; i < 3; i++) {
        blkrepl__waiter_fini(&waiters[i]);
    }
    quick_poll_all(&b);
    quick_close(&b);
}

static void room_is_not_passed_on_where_there_is_none(void **state)
{
    struct quick_bench b;
    struct waiter waiter;
    struct done done;

    (void)state;
    bench_open(&b, 1);
    b.disk.hold = EVERY;
    quick_flush_call(&b, 1, &done);
    waiter_open(&b, &waiter);
    list_append(&lane_of(&b)->room_waiters, &waiter.room);
    blkrepl__wait_room_refused(&waiter);
    assert_false(waiter.done);
    list_remove(&waiter.room);
    script_end_all(&b.disk);
    quick_poll_all(&b);
    blkrepl__wait_room(&waiter); /* there is room */
    assert_false(waiter.done);
    blkrepl__waiter_fini(&waiter);
    quick_close(&b);
}

/* The slot is freed by a call, and not by the poll in which the waiter sleeps. */
static void who_leads_while_it_waits_for_room_is_told(void **state)
{
    struct quick_bench b;
    struct waiter waiter;
    struct done go;
    uint64_t token;
    pthread_t thread;

    (void)state;
    bench_open(&b, 1);
    assert_int_equal(quick_bracket(&b, 1, BLKREPL_OP_FLUSH, 0, 0, &go, &token), 0);
    waiter_open(&b, &waiter);
    assert_int_equal(pthread_create(&thread, NULL, wait_room_thread, &waiter), 0);
    while (!atomic_load(&lane_of(&b)->armed)) {
        sched_yield();
    }
    assert_int_equal(blkrepl_write_end(b.rig.ctx, token, 0, NULL, 0, NULL), 0);
    assert_int_equal(pthread_join(thread, NULL), 0);
    assert_false(lane_of(&b)->lead_over);
    blkrepl__waiter_fini(&waiter);
    quick_close(&b);
}

struct follower {
    struct waiter own;  /* its request ends while it leads */
    struct waiter next; /* leads by then, and gets room */
};

static void follow(void *user, int result)
{
    struct follower *f = user;
    struct lane *lane = f->own.lane;

    blkrepl__waiter_done(&f->own, result);
    pthread_mutex_lock(&lane->lock);
    lane->leader = &f->next;
    list_append(&lane->room_waiters, &f->next.room);
    blkrepl__waiter_room(lane);
    pthread_mutex_unlock(&lane->lock);
}

/* A leader's poll is over before it has the lane's lock again. */
static void who_has_led_leaves_alone_what_the_next_is_told(void **state)
{
    struct quick_bench b;
    struct follower f;
    blkrepl_completion done = {.fn = follow, .user = &f};

    (void)state;
    bench_open(&b, 4);
    waiter_open(&b, &f.own);
    waiter_open(&b, &f.next);
    assert_int_equal(blkrepl_image_flush(b.image, 1, &done), 0);
    assert_int_equal(blkrepl__wait(&f.own), 0);
    assert_true(f.next.done && lane_of(&b)->lead_over);
    lane_of(&b)->lead_over = false;
    lane_of(&b)->leader = NULL;
    blkrepl__waiter_fini(&f.own);
    blkrepl__waiter_fini(&f.next);
    quick_close(&b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(wait_is_refused_where_nothing_could_end_it),
        cmocka_unit_test(wait_returns_the_result),
        cmocka_unit_test(wait_for_what_is_over_polls_nothing),
        cmocka_unit_test(who_waits_while_the_lane_is_polled_leads_afterwards),
        cmocka_unit_test(poll_knows_whether_somebody_waits),
        cmocka_unit_test(room_goes_to_the_first_who_wants_it),
        cmocka_unit_test(room_is_not_passed_on_where_there_is_none),
        cmocka_unit_test(who_leads_while_it_waits_for_room_is_told),
        cmocka_unit_test(who_has_led_leaves_alone_what_the_next_is_told),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
