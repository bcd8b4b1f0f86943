/* SPDX-License-Identifier: MIT */
#define _GNU_SOURCE
#include "core/wait.h"

#include "unit/rig.h"

#include "block/image.h"
#include "core/lane.h"
#include "unit/fault.h"

static struct fault cond_fault;

int pthread_cond_init(pthread_cond_t *cond, const pthread_condattr_t *attributes)
{
    int (*real)(pthread_cond_t * cond, const pthread_condattr_t *attributes);

    if (fault_due(&cond_fault)) {
        return cond_fault.err;
    }
    fault_real(&real, "pthread_cond_init", "pthread_cond_init");
    return real(cond, attributes);
}

struct bench {
    struct rig rig;
    struct script disk;
    blkrepl_image *image;
    struct lane *lane;
};

static void bench_open(struct bench *b, uint32_t requests_max)
{
    blkrepl_context_options o = {.struct_size = sizeof o, .requests_max = requests_max};

    memset(b, 0, sizeof *b);
    b->rig.real_clock = true;
    rig_open(&b->rig, &o);
    script_init(&b->disk, MIB);
    b->image = script_open(&b->disk, &b->rig);
    b->lane = &b->rig.ctx->lanes[0];
}

static void bench_close(struct bench *b)
{
    blkrepl_image_close(b->image);
    rig_close(&b->rig);
    script_fini(&b->disk);
}

static void waiter_make(struct bench *b, struct waiter *waiter)
{
    assert_int_equal(blkrepl__waiter_init(waiter, b->rig.ctx, 0), 0);
}

/* It stands in line for room, as a thread would that sleeps. */
static void waiter_line_up(struct bench *b, struct waiter *waiter)
{
    waiter_make(b, waiter);
    pthread_mutex_lock(&b->lane->lock);
    list_append(&b->lane->room_waiters, &waiter->room);
    pthread_mutex_unlock(&b->lane->lock);
}

static void end_bracket(struct bench *b, uint64_t token)
{
    assert_int_equal(blkrepl_write_end(b->rig.ctx, token, 0, NULL, 0, NULL), 0);
}

static uint64_t begin_bracket(struct bench *b)
{
    blkrepl_bracket what = {.struct_size = sizeof what, .opcode = BLKREPL_OP_FLUSH};
    uint64_t token = 0;

    assert_int_equal(blkrepl_write_begin_wait(b->image, &what, &token), 0);
    return token;
}

static void who_waits_is_counted(void **state)
{
    struct bench b;
    struct waiter waiter;

    (void)state;
    bench_open(&b, 0);
    waiter_make(&b, &waiter);
    assert_int_equal(atomic_load(&b.lane->blocked), 1);
    blkrepl__waiter_fini(&waiter);
    assert_int_equal(atomic_load(&b.lane->blocked), 0);
    assert_int_equal(blkrepl__waiter_init(&waiter, b.rig.ctx, 1), -EINVAL);
    cond_fault = (struct fault){.err = ENOMEM, .times = 1};
    assert_int_equal(blkrepl__waiter_init(&waiter, b.rig.ctx, 0), -ENOMEM);
    assert_int_equal(atomic_load(&b.lane->blocked), 0);
    bench_close(&b);
}

/* Room, or a result, that has come between the call and the wait. */
static void what_is_there_is_not_waited_for(void **state)
{
    struct bench b;
    struct waiter waiter;

    (void)state;
    bench_open(&b, 1);
    waiter_make(&b, &waiter);
    blkrepl__wait_room(&waiter);
    assert_false(waiter.done);
    blkrepl__waiter_done(&waiter, -ENOSPC);
    assert_int_equal(blkrepl__wait(&waiter), -ENOSPC);
    assert_true(list_empty(&b.lane->waiters));
    blkrepl__waiter_fini(&waiter);
    bench_close(&b);
}

static void room_is_given_one_by_one_in_order(void **state)
{
    struct bench b;
    struct waiter first, second;

    (void)state;
    bench_open(&b, 1);
    uint64_t token = begin_bracket(&b);
    waiter_line_up(&b, &first);
    waiter_line_up(&b, &second);
    end_bracket(&b, token);
    assert_true(first.done && !second.done);
    assert_false(b.lane->lead_over); /* nobody leads */
    token = begin_bracket(&b);
    end_bracket(&b, token);
    assert_true(second.done);
    assert_true(list_empty(&b.lane->room_waiters));
    blkrepl__waiter_fini(&first);
    blkrepl__waiter_fini(&second);
    bench_close(&b);
}

static void the_leader_is_told_of_room(void **state)
{
    struct bench b;
    struct waiter leader;

    (void)state;
    bench_open(&b, 1);
    uint64_t token = begin_bracket(&b);
    waiter_line_up(&b, &leader);
    b.lane->leader = &leader;
    end_bracket(&b, token);
    assert_true(leader.done && b.lane->lead_over);
    assert_true(blkrepl__lane_busy(b.rig.ctx, 0)); /* its poll does not sleep */
    b.lane->lead_over = false;
    blkrepl__waiter_fini(&leader);
    bench_close(&b);
}

/* Room that is refused is passed on if it is still there and somebody wants it. */
static void refused_room_is_passed_on(void **state)
{
    struct bench b;
    struct waiter refused, next;

    (void)state;
    bench_open(&b, 1);
    waiter_make(&b, &refused);
    blkrepl__wait_room_refused(&refused); /* nobody wants it */
    uint64_t token = begin_bracket(&b);
    waiter_line_up(&b, &next);
    blkrepl__wait_room_refused(&refused); /* it is gone */
    assert_false(next.done);
    pthread_mutex_lock(&b.lane->lock);
    list_remove(&next.room);
    pthread_mutex_unlock(&b.lane->lock);
    end_bracket(&b, token);
    pthread_mutex_lock(&b.lane->lock);
    list_append(&b.lane->room_waiters, &next.room);
    pthread_mutex_unlock(&b.lane->lock);
    blkrepl__wait_room_refused(&refused);
    assert_true(next.done);
    blkrepl__waiter_fini(&next);
    blkrepl__waiter_fini(&refused);
    bench_close(&b);
}

/* Of those who sleep the first that is not done leads next; the lane is free in any case. */
static void the_end_of_a_poll_frees_the_lane(void **state)
{
    struct bench b;
    struct waiter done, waits;

    (void)state;
    bench_open(&b, 0);
    waiter_make(&b, &done);
    waiter_make(&b, &waits);
    done.done = true;
    for (int count = 0; count <= 2; count++) {
        pthread_mutex_lock(&b.lane->lock);
        if (count > 0) {
            list_append(&b.lane->waiters, count == 1 ? &done.link : &waits.link);
        }
        blkrepl__lane_poll_begin(b.lane);
        pthread_mutex_unlock(&b.lane->lock);
        assert_int_equal(atomic_load(&b.lane->polling), count ? LANE_AWAITED : LANE_POLLED);
        blkrepl__lane_poll_end(b.lane);
        assert_int_equal(atomic_load(&b.lane->polling), LANE_FREE);
    }
    list_remove(&done.link);
    list_remove(&waits.link);
    blkrepl__waiter_fini(&done);
    blkrepl__waiter_fini(&waits);
    bench_close(&b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(who_waits_is_counted),
        cmocka_unit_test(what_is_there_is_not_waited_for),
        cmocka_unit_test(room_is_given_one_by_one_in_order),
        cmocka_unit_test(the_leader_is_told_of_room),
        cmocka_unit_test(refused_room_is_passed_on),
        cmocka_unit_test(the_end_of_a_poll_frees_the_lane),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
