/* SPDX-License-Identifier: MIT */
#include "unit/quick_rig.h"

#include "base/hook.h"

#define DISK (4 * MIB)
#define MANY 200

static void bench_open(struct quick_bench *b, uint32_t lanes, uint32_t depth)
{
    quick_init(b, &(blkrepl_context_options){.lane_count = lanes, .requests_max = 4 * MANY}, DISK);
    b->disk.info.queue_depth = depth;
    quick_open(b);
}

static struct quick_bench *bench_of(struct script *script)
{
    return CONTAINER_OF(script, struct quick_bench, disk);
}

/* ---- Places ----------------------------------------------------------------- */

static void places_are_kept_by_lanes_within_a_bound(void **state)
{
    static const struct {
        uint32_t lanes;
        uint32_t depth;
        uint32_t kept;
    } rows[] = {{1, 1, 1}, {1, 2, 1}, {1, 8, 2}, {3, 2, 1}, {2, 64, 8}, {1, 64, 16}, {1, 256, 16}};

    (void)state;
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        struct quick_bench b;
        struct port_queue *queue;

        bench_open(&b, rows[i].lanes, rows[i].depth);
        queue = &quick_port(&b)->guest[rows[i].lanes - 1];
        for (uint32_t n = 0; n < rows[i].depth; n++) {
            assert_true(blkrepl__port_place_take(queue));
        }
        assert_false(blkrepl__port_place_take(queue));
        assert_int_equal(atomic_load(&quick_port(&b)->places), 0);
        for (uint32_t n = 0; n < rows[i].depth; n++) {
            blkrepl__port_place_put(queue);
        }
        assert_int_equal(queue->places, rows[i].kept);
        assert_int_equal(atomic_load(&quick_port(&b)->places), rows[i].depth - rows[i].kept);
        assert_true(blkrepl__port_place_take(queue)); /* its own first */
        assert_int_equal(queue->places, rows[i].kept - 1);
        blkrepl__port_place_put(queue);
        quick_close(&b);
    }
}

static void places_that_another_lane_keeps_are_not_to_be_had(void **state)
{
    struct quick_bench b;
    struct done done;

    (void)state;
    bench_open(&b, 2, 1);
    quick_read(&b, 0, 0, 512, &done);
    quick_poll_all(&b);
    assert_int_equal(quick_port(&b)->guest[0].places, 1);
    quick_read(&b, 0, 0, 512, &done);
    assert_true(is_quick(&b));
    quick_poll_all(&b);
    quick_read(&b, 1, 0, 512, &done);
    assert_false(is_quick(&b));
    assert_int_equal(quick_port(&b)->guest[0].places, 0);
    quick_poll_all(&b);
    done_assert(&done, 0);
    assert_true(quick_back(&b));
    quick_read(&b, 1, 0, 512, &done);
    assert_true(is_quick(&b));
    quick_poll_all(&b);
    quick_close(&b);
}

/* The script sees to the depth; here it is seen that all of it is used. */
static void places_used_up_turn_the_image(void **state)
{
    (void)state;
    for (uint32_t depth = 1; depth <= 3; depth++) {
        struct quick_bench b;
        struct done done[4];

        bench_open(&b, 2, depth);
        b.disk.hold = EVERY;
        for (uint32_t i = 0; i < depth; i++) {
            quick_write(&b, i % 2, 512 * i, 512, &done[i]);
            assert_true(is_quick(&b));
        }
        quick_read(&b, 1, 0, 512, &done[depth]);
        assert_false(is_quick(&b));
        assert_int_equal(b.disk.waiting_count, depth);
        assert_false(quick_back(&b)); /* one waits */
        script_end(&b.disk, 0, 0);
        quick_poll_all(&b);
        assert_int_equal(b.disk.waiting_count, depth);
        assert_true(quick_back(&b));
        assert_int_equal(atomic_load(&quick_port(&b)->places), 0);
        script_end_all(&b.disk);
        quick_poll_all(&b);
        for (uint32_t i = 0; i <= depth; i++) {
            done_assert(&done[i], 0);
        }
        quick_close(&b);
    }
}

/* ---- One thread at a time is inside the submit of a lane -------------------- */

static struct done made[4 * MANY];
static unsigned made_count;
static unsigned left;
static unsigned submits_at_once;

static void make_one(struct quick_bench *b)
{
    unsigned before = b->disk.note_count;

    quick_read(b, 0, 512 * (made_count % 64), 512, &made[made_count]);
    made_count++;
    submits_at_once += b->disk.note_count != before;
}

static void make_many(struct script *script)
{
    while (left > 0) {
        left--;
        make_one(bench_of(script));
    }
}

static void make_next(struct script *script)
{
    if (left > 0) {
        left--;
        script->inside = make_next;
        make_one(bench_of(script));
    }
}

static void made_reset(unsigned count)
{
    made_count = 0;
    submits_at_once = 0;
    left = count;
}

static void made_assert(unsigned count)
{
    assert_int_equal(made_count, count);
    for (unsigned i = 0; i < count; i++) {
        done_assert(&made[i], 0);
    }
}

static void calls_inside_submit_only_append(void **state)
{
    struct quick_bench b;
    struct done done;

    (void)state;
    bench_open(&b, 1, 100);
    made_reset(40);
    b.disk.inside = make_many;
    quick_read(&b, 0, 0, 512, &done);
    assert_int_equal(submits_at_once, 0);
    assert_int_equal(b.disk.note_count, 41);
    assert_int_equal(b.disk.submits, 3); /* of 1, 32 and 8 */
    for (unsigned i = 0; i < 40; i++) {
        assert_int_equal(b.disk.notes[i + 1].offset, UINT64_C(512) * (i % 64));
    }
    assert_true(is_quick(&b));
    quick_check(&b);
    quick_poll_all(&b);
    made_assert(40);
    done_assert(&done, 0);
    quick_close(&b);
}

static void one_call_gives_away_a_number_of_batches_and_a_poll_the_rest(void **state)
{
    struct quick_bench b;
    struct lane *lane;
    struct done done;
    unsigned submits;

    (void)state;
    bench_open(&b, 1, 4);
    lane = &b.rig.ctx->lanes[0];
    made_reset(MANY);
    b.disk.inside = make_next;
    quick_read(&b, 0, 0, 512, &done);
    submits = b.disk.submits;
    assert_true(submits > 1 && submits < MANY);
    assert_false(list_empty(&lane->quick_queues));
    assert_true(is_quick(&b) && blkrepl__lane_busy(b.rig.ctx, 0));
    quick_check(&b);
    left = 0;
    make_one(&b); /* goes behind the others */
    assert_int_equal(b.disk.submits, submits);
    quick_poll_all(&b);
    assert_true(list_empty(&lane->quick_queues) && is_quick(&b));
    made_assert(made_count);
    quick_close(&b);
}

/* The same, and the image turns: the rest goes the slow way. */
static void turn_takes_what_was_left_over(void **state)
{
    struct quick_bench b;
    struct done done;

    (void)state;
    bench_open(&b, 1, 4);
    made_reset(MANY);
    b.disk.inside = make_next;
    quick_read(&b, 0, 0, 512, &done);
    assert_false(list_empty(&b.rig.ctx->lanes[0].quick_queues));
    left = 0;
    blkrepl__enter(b.rig.ctx);
    blkrepl__quick_stop(b.image);
    assert_true(list_empty(&b.rig.ctx->lanes[0].quick_queues));
    assert_int_equal(quick_port(&b)->guest_waiting, 1);
    blkrepl__leave(b.rig.ctx, 0);
    assert_int_equal(quick_port(&b)->guest_waiting, 0);
    quick_poll_all(&b);
    made_assert(made_count);
    quick_close(&b);
}

static int polled_rc;

static void *poll_thread(void *user)
{
    polled_rc = blkrepl_poll(((struct quick_bench *)user)->rig.ctx, 0, 0);
    return NULL;
}

static void poll_elsewhere(struct script *script)
{
    pthread_t thread;

    assert_int_equal(pthread_create(&thread, NULL, poll_thread, bench_of(script)), 0);
    assert_int_equal(pthread_join(thread, NULL), 0);
}

static void poll_that_gives_away_the_rest_has_its_lane(void **state)
{
    struct quick_bench b;
    struct done done;

    (void)state;
    bench_open(&b, 1, 4);
    made_reset(MANY);
    b.disk.inside = make_next;
    quick_read(&b, 0, 0, 512, &done);
    assert_false(list_empty(&b.rig.ctx->lanes[0].quick_queues));
    left = 0;
    b.disk.inside = poll_elsewhere;
    polled_rc = 1;
    assert_true(blkrepl_poll(b.rig.ctx, 0, 0) > 0);
    assert_int_equal(polled_rc, -EBUSY);
    quick_poll_all(&b);
    made_assert(made_count);
    quick_close(&b);
}

/* ---- A thread is inside submit while the image turns ------------------------ */

static struct done slow_done;

/* One request is queued behind this submit when the image turns. */
static void turn_inside(struct script *script)
{
    struct quick_bench *b = bench_of(script);
    struct port_queue *queue = &quick_port(b)->guest[0];

    make_one(b);
    quick_slow(b, 0, &slow_done);
    assert_false(is_quick(b));
    assert_true(atomic_load(&queue->held));
    assert_true(list_empty(&queue->quick));
    assert_int_equal(quick_port(b)->guest_waiting, 2); /* held: nobody gives them away */
    assert_int_equal(script->note_count, 1);
    b->image->slow_left = 0;
    blkrepl__enter(b->rig.ctx);
    blkrepl__quick_resume(b->image);
    assert_false(is_quick(b)); /* nor back as long as somebody is inside */
    blkrepl__leave(b->rig.ctx, 0);
}

static void queue_that_is_held_is_let_go(void **state)
{
    struct quick_bench b;
    struct done done;

    (void)state;
    bench_open(&b, 2, 4);
    made_reset(0);
    b.disk.inside = turn_inside;
    b.disk.hold = 1u << BLKREPL_OP_WRITE; /* so that no completion does it */
    quick_write(&b, 0, 0, 512, &done);
    assert_false(atomic_load(&quick_port(&b)->guest[0].held));
    assert_int_equal(b.disk.note_count, 3);
    script_end_all(&b.disk);
    assert_int_equal(b.disk.notes[1].opcode, BLKREPL_OP_READ);
    assert_int_equal(b.disk.notes[2].opcode, BLKREPL_OP_STATUS);
    quick_check(&b);
    quick_poll_all(&b);
    done_assert(&done, 0);
    done_assert(&slow_done, 0);
    made_assert(1);
    assert_true(quick_back(&b));
    quick_close(&b);
}

static void close_inside(struct script *script)
{
    blkrepl_image_close(bench_of(script)->image);
}

static void image_closed_inside_its_submit_is_closed_after_it(void **state)
{
    struct quick_bench b;
    struct done done;

    (void)state;
    bench_open(&b, 2, 4);
    b.disk.inside = close_inside;
    quick_read(&b, 1, 0, 512, &done);
    assert_int_equal(b.disk.closed, 0);
    quick_poll_all(&b);
    done_assert(&done, 0);
    assert_int_equal(b.disk.closed, 1);
    rig_close(&b.rig);
    script_fini(&b.disk);
}

/* ---- What is completed inside a submit of others ----------------------------- */

static void end_all_inside(struct script *script)
{
    script_end_all(script);
}

static void submit_of_one_lane_completes_requests_of_another(void **state)
{
    struct quick_bench b;
    struct done done[3];

    (void)state;
    bench_open(&b, 2, 4);
    b.disk.hold = EVERY;
    quick_write(&b, 1, 0, 512, &done[0]);
    quick_write(&b, 0, 512, 512, &done[1]);
    b.disk.inside = end_all_inside;
    quick_write(&b, 0, 1024, 512, &done[2]);
    assert_non_null(atomic_load(&b.rig.ctx->lanes[1].inbox));
    assert_true(is_quick(&b));
    quick_check(&b);
    assert_int_equal(blkrepl_poll(b.rig.ctx, 0, 0), 2);
    done_assert(&done[1], 0);
    done_assert(&done[2], 0);
    ASSERT_PENDING(&done[0]);
    assert_int_equal(blkrepl_poll(b.rig.ctx, 1, 0), 1);
    done_assert(&done[0], 0);
    quick_close(&b);
}

static struct script *other;

static void end_others_inside(struct script *script)
{
    (void)script;
    script_end_all(other);
}

/* A quick submit completes what a slow image has in flight, and the other way round. */
static void submit_completes_requests_of_another_image(void **state)
{
    struct quick_bench b;
    struct script disk;
    blkrepl_image *slow;
    struct done done[4];
    blkrepl_completion c;

    (void)state;
    bench_open(&b, 2, 4);
    script_init(&disk, DISK);
    slow = script_open(&disk, &b.rig);
    for (uint32_t lane = 0; lane < 2; lane++) {
        disk.hold = EVERY;
        b.disk.hold = 0;
        c = done_of(&done[0]);
        assert_int_equal(blkrepl_image_flush(slow, lane, &c), 0);
        other = &disk;
        b.disk.inside = end_others_inside;
        quick_read(&b, 0, 0, 512, &done[1]);
        b.disk.hold = EVERY;
        disk.hold = 0;
        other = &b.disk;
        disk.inside = end_others_inside;
        assert_true(is_quick(&b));
        quick_poll_all(&b);
        done_assert(&done[0], 0);
        done_assert(&done[1], 0);
        quick_read(&b, lane, 0, 512, &done[2]);
        c = done_of(&done[3]);
        assert_int_equal(blkrepl_image_flush(slow, 0, &c), 0);
        assert_true(is_quick(&b));
        assert_int_equal(quick_port(&b)->guest_in_flight, 0);
        quick_poll_all(&b);
        done_assert(&done[2], 0);
        done_assert(&done[3], 0);
        quick_check(&b);
    }
    blkrepl_image_close(slow);
    quick_close(&b);
    script_fini(&disk);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(places_are_kept_by_lanes_within_a_bound),
        cmocka_unit_test(places_that_another_lane_keeps_are_not_to_be_had),
        cmocka_unit_test(places_used_up_turn_the_image),
        cmocka_unit_test(calls_inside_submit_only_append),
        cmocka_unit_test(one_call_gives_away_a_number_of_batches_and_a_poll_the_rest),
        cmocka_unit_test(turn_takes_what_was_left_over),
        cmocka_unit_test(poll_that_gives_away_the_rest_has_its_lane),
        cmocka_unit_test(queue_that_is_held_is_let_go),
        cmocka_unit_test(image_closed_inside_its_submit_is_closed_after_it),
        cmocka_unit_test(submit_of_one_lane_completes_requests_of_another),
        cmocka_unit_test(submit_completes_requests_of_another_image),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
