/* SPDX-License-Identifier: MIT */
/* An image turns to the slow way, and back, with all that is in flight. */
#include "unit/quick_rig.h"

#include "base/hook.h"

#define DISK (4 * MIB)

static void bench_open(struct quick_bench *b, uint32_t lanes, uint32_t depth)
{
    quick_init(b, &(blkrepl_context_options){.lane_count = lanes, .requests_max = 8}, DISK);
    b->disk.info.queue_depth = depth;
    quick_open(b);
}

/* Whether it goes back now, and nothing else. */
static bool try_back(struct quick_bench *b)
{
    blkrepl__enter(b->rig.ctx);
    b->image->slow_left = 0;
    blkrepl__quick_resume(b->image);
    b->rig.ctx->inside--;
    pthread_mutex_unlock(&b->rig.ctx->lock);
    return is_quick(b);
}

/* ---- To the slow way -------------------------------------------------------- */

static void turn_takes_what_the_backend_has(void **state)
{
    struct quick_bench b;
    struct done done[3];
    struct guest *write;

    (void)state;
    bench_open(&b, 2, 4);
    b.disk.hold = EVERY;
    quick_read(&b, 0, 0, 512, &done[0]);
    quick_write(&b, 1, 512, 1024, &done[1]);
    quick_flush_call(&b, 1, &done[2]);
    write = quick_guest(&b, 8);
    quick_turn(&b);
    assert_int_equal(b.image->requests, 3);
    assert_int_equal(b.image->refs, 4);
    assert_int_equal(b.image->writes, 1);
    assert_int_equal(quick_port(&b)->guest_in_flight, 3);
    assert_int_equal(write->phase, GUEST_GIVEN);
    assert_true(range_live(&write->range) && write->range.given && write->range.given_at > 0);
    assert_int_equal(write->range.node.start, 512);
    assert_int_equal(write->range.node.end, 1536);
    assert_false(range_live(&quick_guest(&b, 0)->range));
    script_end(&b.disk, 1, -EIO);
    script_end_all(&b.disk);
    quick_poll_all(&b);
    done_assert(&done[0], 0);
    done_assert(&done[1], -EIO);
    done_assert(&done[2], 0);
    assert_int_equal(b.image->requests + b.image->writes, 0);
    assert_int_equal(quick_port(&b)->guest_in_flight, 0);
    assert_true(quick_back(&b));
    quick_close(&b);
}

static void turn_takes_what_was_completed_and_not_collected(void **state)
{
    struct quick_bench b;
    struct done done[2];

    (void)state;
    bench_open(&b, 2, 4);
    b.disk.hold = EVERY;
    quick_write(&b, 1, 0, 512, &done[0]);
    quick_write(&b, 1, 512, 512, &done[1]);
    script_end(&b.disk, 0, 0); /* before */
    blkrepl__enter(b.rig.ctx);
    blkrepl__quick_stop(b.image);
    assert_int_equal(b.image->requests, 2);
    script_end(&b.disk, 0, -ENOSPC); /* after */
    blkrepl__leave(b.rig.ctx, 0);
    quick_check(&b);
    assert_int_equal(quick_guest(&b, 8)->phase, GUEST_ENDED);
    assert_int_equal(quick_guest(&b, 9)->phase, GUEST_ENDED);
    quick_poll_all(&b);
    done_assert(&done[0], 0);
    done_assert(&done[1], -ENOSPC);
    quick_close(&b);
}

/* Some of them are in the lane's hands already. */
static void turn_takes_what_was_completed_and_left_over(void **state)
{
    struct quick_bench b;
    struct done done[3];

    (void)state;
    quick_init(&b, &(blkrepl_context_options){.lane_count = 2, .completions_max = 1}, DISK);
    quick_open(&b);
    b.disk.hold = EVERY;
    for (uint64_t i = 0; i < 3; i++) {
        quick_write(&b, 1, 512 * i, 512, &done[i]);
    }
    script_end_all(&b.disk);
    pthread_mutex_lock(&b.rig.ctx->lanes[1].lock);
    blkrepl__lane_collect(b.rig.ctx, &b.rig.ctx->lanes[1]);
    pthread_mutex_unlock(&b.rig.ctx->lanes[1].lock);
    assert_false(list_empty(&b.rig.ctx->lanes[1].arrived));
    quick_turn(&b);
    quick_poll_all(&b);
    for (int i = 0; i < 3; i++) {
        done_assert(&done[i], 0);
    }
    assert_int_equal(quick_port(&b)->guest_in_flight, 0);
    quick_close(&b);
}

static void turn_takes_what_has_ended_and_is_not_told(void **state)
{
    struct quick_bench b;
    struct done done;

    (void)state;
    bench_open(&b, 2, 4);
    quick_write(&b, 1, 0, 512, &done);
    assert_int_equal(quick_guest(&b, 8)->phase, GUEST_ENDED);
    quick_turn(&b);
    assert_int_equal(b.image->requests, 1);
    assert_int_equal(b.image->writes, 0);
    ASSERT_PENDING(&done);
    quick_poll_all(&b);
    done_assert(&done, 0);
    assert_int_equal(b.image->requests, 0);
    assert_int_equal(b.image->refs, 1);
    quick_close(&b);
}

static enum tap_answer fake_before(struct tap *tap, struct guest *guest, uint64_t start,
                                   uint64_t end)
{
    (void)start;
    (void)end;
    (void)guest;
    tap->bit++; /* counts */
    return TAP_PASS;
}

/* A point in time: the tap sees what is given after it was attached, and no more. */
static void turn_is_a_point_in_time(void **state)
{
    struct quick_bench b;
    struct tap tap = {.before = fake_before};
    struct done done[2];
    struct done go;
    uint64_t token;

    (void)state;
    bench_open(&b, 2, 4);
    b.disk.hold = EVERY;
    quick_write(&b, 1, 0, 512, &done[0]);
    assert_int_equal(quick_bracket(&b, 1, BLKREPL_OP_WRITE, 4096, 512, &go, &token), 0);
    blkrepl__enter(b.rig.ctx);
    blkrepl__image_attach(b.image, &tap);
    assert_false(is_quick(&b));
    assert_true(quick_guest(&b, 8)->range.given_at < tap.attached_at);
    assert_true(quick_guest(&b, 9)->range.given_at < tap.attached_at);
    assert_true(quick_guest(&b, 9)->range.given_at > 0);
    tap.bit = 0;
    blkrepl__leave(b.rig.ctx, 0);
    quick_write(&b, 0, 1024, 512, &done[1]);
    assert_int_equal(tap.bit, 1);
    assert_false(try_back(&b));
    assert_int_equal(blkrepl_write_end(b.rig.ctx, token, 0, NULL, 0, NULL), 0);
    script_end_all(&b.disk);
    quick_poll_all(&b);
    assert_int_equal(tap.bit, 1);
    blkrepl__enter(b.rig.ctx);
    blkrepl__image_detach(&tap);
    blkrepl__leave(b.rig.ctx, 0);
    assert_true(quick_back(&b));
    done_assert(&done[0], 0);
    done_assert(&done[1], 0);
    quick_close(&b);
}

static void turn_and_back_leaves_brackets_theirs(void **state)
{
    struct quick_bench b;
    struct done go[4];
    uint64_t tokens[4];

    (void)state;
    bench_open(&b, 2, 4);
    for (uint64_t i = 0; i < 4; i++) {
        assert_int_equal(quick_bracket(&b, 1, BLKREPL_OP_WRITE, 512 * i, 512, &go[i], &tokens[i]),
                         0);
    }
    quick_turn(&b);
    assert_int_equal(b.image->requests, 4);
    assert_int_equal(b.image->writes, 4);
    assert_int_equal(quick_port(&b)->guest_in_flight, 0);
    assert_int_equal(blkrepl_write_end(b.rig.ctx, tokens[0], 0, NULL, 0, NULL), 0);
    assert_int_equal(blkrepl_write_cancel(b.rig.ctx, tokens[1]), 0);
    assert_true(quick_back(&b));
    assert_int_equal(b.image->requests, 0);
    assert_int_equal(blkrepl_write_end(b.rig.ctx, tokens[0], 0, NULL, 0, NULL), -ENOENT);
    assert_int_equal(blkrepl_write_cancel(b.rig.ctx, tokens[1]), -ENOENT);
    assert_int_equal(blkrepl_write_end(b.rig.ctx, tokens[2], 0, NULL, 0, NULL), 0);
    assert_int_equal(blkrepl_write_cancel(b.rig.ctx, tokens[3]), 0);
    assert_int_equal(blkrepl_write_end(b.rig.ctx, tokens[2], 0, NULL, 0, NULL), -ENOENT);
    assert_true(is_quick(&b));
    quick_close(&b);
}

/* The token of a bracket that has ended means nothing to who has its slot next. */
static void token_of_the_quick_way_is_over_with_its_bracket(void **state)
{
    struct quick_bench b;
    struct done go;
    struct done done;
    uint64_t tokens[2];

    (void)state;
    quick_init(&b, &(blkrepl_context_options){.requests_max = 2}, DISK);
    quick_open(&b);
    b.disk.hold = EVERY;
    for (uint64_t i = 0; i < 2; i++) {
        assert_int_equal(quick_bracket(&b, 0, BLKREPL_OP_WRITE, 512 * i, 512, &go, &tokens[i]), 0);
    }
    assert_int_equal(blkrepl_write_end(b.rig.ctx, tokens[0], 0, NULL, 0, NULL), 0);
    quick_write(&b, 0, 512, 512, &done); /* waits for the other bracket */
    assert_false(is_quick(&b));
    assert_int_equal(blkrepl_write_cancel(b.rig.ctx, tokens[0]), -ENOENT);
    assert_int_equal(blkrepl_write_end(b.rig.ctx, tokens[1], 0, NULL, 0, NULL), 0);
    script_end_all(&b.disk);
    quick_poll_all(&b);
    done_assert(&done, 0);
    quick_close(&b);
}

#ifdef BLKREPL_HOOKS
static struct quick_bench *racing;

/* Another thread was here first, and the image has gone back. */
static void race_back(enum record_entry entry, uint32_t lane)
{
    (void)entry;
    (void)lane;
    blkrepl__record_hook = NULL;
    racing->image->slow_left = 0;
    blkrepl__quick_resume(racing->image);
}

static struct request *turning;

/* Another thread has turned the image while this one waited for the lane's lock. */
static void race_turn(enum record_entry entry, uint32_t lane)
{
    (void)entry;
    (void)lane;
    atomic_store(&turning->quick, false);
}

static void turn_between_two_looks_at_a_bracket(void **state)
{
    struct quick_bench b;
    struct done go;
    uint64_t token;

    (void)state;
    bench_open(&b, 2, 4);
    assert_int_equal(quick_bracket(&b, 1, BLKREPL_OP_WRITE, 0, 512, &go, &token), 0);
    turning = quick_guest(&b, 8)->request;
    blkrepl__record_hook = race_turn;
    assert_false(blkrepl__quick_end(b.rig.ctx, token, NULL));
    blkrepl__record_hook = NULL;
    atomic_store(&turning->quick, true);
    assert_true(blkrepl__quick_end(b.rig.ctx, token, NULL));
    quick_close(&b);
}

static void back_between_two_looks_at_a_bracket(void **state)
{
    struct quick_bench b;
    struct done go[2];
    uint64_t tokens[2];

    (void)state;
    bench_open(&b, 2, 4);
    for (uint64_t i = 0; i < 2; i++) {
        assert_int_equal(quick_bracket(&b, 1, BLKREPL_OP_WRITE, 512 * i, 512, &go[i], &tokens[i]),
                         0);
    }
    racing = &b;
    quick_turn(&b);
    blkrepl__record_hook = race_back;
    assert_int_equal(blkrepl_write_end(b.rig.ctx, tokens[0], 0, NULL, 0, NULL), 0);
    assert_true(is_quick(&b));
    quick_turn(&b);
    blkrepl__record_hook = race_back;
    assert_int_equal(blkrepl_write_cancel(b.rig.ctx, tokens[1]), 0);
    assert_true(is_quick(&b));
    quick_check(&b);
    quick_close(&b);
}
#endif

/* ---- And back --------------------------------------------------------------- */

static void back_takes_what_is_in_flight(void **state)
{
    struct quick_bench b;
    struct done done[3];
    struct done go;
    uint64_t token;

    (void)state;
    bench_open(&b, 2, 4);
    b.disk.hold = EVERY;
    quick_turn(&b);
    quick_slow(&b, 0, &done[2]);
    script_end_all(&b.disk); /* ends it, and is not told */
    quick_write(&b, 1, 0, 512, &done[0]);
    quick_read(&b, 0, 0, 512, &done[1]);
    assert_int_equal(quick_bracket(&b, 0, BLKREPL_OP_ZEROES, 4096, 512, &go, &token), 0);
    assert_int_equal(b.image->requests, 4);
    assert_true(quick_back(&b));
    assert_int_equal(b.image->requests, 1); /* the one that has ended */
    assert_int_equal(b.image->writes, 0);
    assert_int_equal(blkrepl__quick_count(b.image), 3);
    assert_int_equal(atomic_load(&quick_port(&b)->places), 2);
    script_end_all(&b.disk);
    quick_poll_all(&b);
    for (int i = 0; i < 3; i++) {
        done_assert(&done[i], 0);
    }
    assert_int_equal(b.image->requests, 0);
    assert_int_equal(blkrepl_write_end(b.rig.ctx, token, 0, NULL, 0, NULL), 0);
    assert_true(is_quick(&b));
    quick_close(&b);
}

static void back_comes_after_some_slow_requests(void **state)
{
    struct quick_bench b;
    struct done done;
    unsigned i = 0;

    (void)state;
    bench_open(&b, 1, 4);
    quick_slow(&b, 0, &done);
    assert_false(is_quick(&b));
    quick_poll_all(&b);
    for (; i < 1000 && !is_quick(&b); i++) {
        quick_read(&b, 0, 0, 512, &done); /* goes the slow way as long as that lasts */
        quick_poll_all(&b);
        done_assert(&done, 0);
    }
    assert_true(i > 1 && i < 1000);
    quick_close(&b);
}

static void back_that_was_refused_is_tried_again(void **state)
{
    struct quick_bench b;
    struct done done;
    unsigned i = 0;

    (void)state;
    bench_open(&b, 1, 4);
    quick_turn(&b);
    b.image->jobs_reading = 1;
    assert_false(try_back(&b));
    assert_true(b.image->slow_left > 0);
    b.image->jobs_reading = 0;
    for (; i < 1000 && !is_quick(&b); i++) {
        quick_read(&b, 0, 0, 512, &done);
        quick_poll_all(&b);
    }
    assert_true(i > 1 && i < 1000);
    assert_true(try_back(&b)); /* it has gone back already: nothing happens */
    assert_true(b.image->slow_left > 0);
    quick_close(&b);
}

/* One thing at a time that stands against it; `on` again takes it away. */
enum {
    AGAINST_GUEST = 12,
    AGAINST = 26
};

static void against_image(struct quick_bench *b, int what, bool on)
{
    static struct tap tap;
    static struct ready ready;
    struct port *port = quick_port(b);

    switch (what) {
    case 0: b->image->open = !on; break;
    case 1: b->rig.ctx->shut = on; break;
    case 2: b->image->jobs_reading = on; break;
    case 3: b->image->jobs_writing = on; break;
    case 4: on ? list_append(&b->image->taps, &tap.link) : list_remove(&tap.link); break;
    case 5:
        on ? list_append(&b->image->leaf->bounce_waiters, &ready.link) : list_remove(&ready.link);
        break;
    case 6: port->inside = on; break;
    case 7: port->guest_waiting = on; break;
    case 8: port->job_in_flight = on; break;
    case 9: atomic_store(&port->guest[1].held, on); break;
    case 10: on ? list_append(&port->job.first, &ready.link) : list_remove(&ready.link); break;
    default: on ? list_append(&port->job.waiting, &ready.link) : list_remove(&ready.link); break;
    }
}

static void against_guest(struct quick_bench *b, int what, bool on)
{
    static struct ready ready;
    static uint64_t id;
    struct guest *write = quick_guest(b, 8);
    struct guest *flush = quick_guest(b, 9);
    struct request *request = write->request;

    switch (what) {
    case 12: on ? list_append(&write->range.waiters, &ready.link) : list_remove(&ready.link); break;
    case 13: write->range.node.end = on ? MIB + 512 : MIB; break;
    case 14: write->phase = on ? GUEST_FREE : GUEST_GIVEN; break;
    case 15: write->phase = on ? GUEST_QUEUED : GUEST_GIVEN; break;
    case 16: write->phase = on ? GUEST_TAPPED : GUEST_GIVEN; break;
    case 17: write->phase = on ? GUEST_GO_DUE : GUEST_GIVEN; break;
    case 18: write->piece = on ? PIECE_WRITE : PIECE_DIRECT; break;
    case 19: write->piece_bytes = on ? 256 : 512; break;
    case 20: write->flush_due = on; break;
    case 21: request->queued = on; break;
    case 22: request->io.lane = !on; break;
    case 23:
        id = on ? atomic_load(&request->live_id) : id;
        atomic_store(&request->live_id, on ? 0 : id);
        break;
    case 24: write->beside = on; break;
    default: flush->piece = on ? PIECE_DIRECT : PIECE_FLUSH; break;
    }
}

static void back_is_refused_for_each_reason(void **state)
{
    struct quick_bench b;
    struct done done[2];

    (void)state;
    bench_open(&b, 2, 4);
    b.disk.hold = EVERY;
    quick_write(&b, 1, MIB - 512, 512, &done[0]);
    quick_flush_call(&b, 1, &done[1]);
    quick_turn(&b);
    for (int what = 0; what < AGAINST; what++) {
        void (*against)(struct quick_bench *, int, bool) =
            what < AGAINST_GUEST ? against_image : against_guest;

        against(&b, what, true);
        if (try_back(&b)) {
            fail_msg("reason %d", what);
        }
        against(&b, what, false);
        assert_int_equal(b.image->requests, 2);
        quick_check(&b);
    }
    assert_true(quick_back(&b));
    script_end_all(&b.disk);
    quick_poll_all(&b);
    done_assert(&done[0], 0);
    done_assert(&done[1], 0);
    quick_close(&b);
}

/* What is not one piece does not go back while the backend has one of it. */
static void back_waits_for_requests_in_pieces(void **state)
{
    struct quick_bench b;
    struct done done[3];
    blkrepl_completion c;

    (void)state;
    bench_open(&b, 1, 4);
    b.disk.hold = EVERY;
    quick_read(&b, 0, 100, 100, &done[0]); /* through a buffer */
    assert_false(try_back(&b));
    script_end_all(&b.disk);
    quick_poll_all(&b);
    c = done_of(&done[1]);
    assert_int_equal(blkrepl_image_discard(b.image, 0, 0, 512, 0, &c), 0);
    assert_false(try_back(&b));
    script_end_all(&b.disk);
    quick_poll_all(&b);
    quick_slow(&b, 0, &done[2]);
    assert_false(try_back(&b));
    script_end_all(&b.disk);
    quick_poll_all(&b);
    assert_true(quick_back(&b));
    quick_close(&b);
}

/* ---- The end ---------------------------------------------------------------- */

static unsigned released;

static void count_release(void *user)
{
    struct quick_bench *b = user;

    released++;
    assert_int_equal(b->disk.waiting_count, 0);
}

static void image_is_closed_with_quick_requests_in_flight(void **state)
{
    struct quick_bench b;
    struct done done[3];
    struct done go;
    uint64_t token;

    (void)state;
    bench_open(&b, 2, 4);
    b.image->user = &b;
    b.image->release = count_release;
    b.disk.hold = EVERY & ~(1u << BLKREPL_OP_FLUSH);
    quick_read(&b, 0, 0, 512, &done[0]);
    quick_write(&b, 1, 0, 512, &done[1]);
    quick_flush_call(&b, 1, &done[2]); /* ended, not told */
    assert_int_equal(quick_bracket(&b, 0, BLKREPL_OP_WRITE, 4096, 512, &go, &token), 0);
    blkrepl_image_close(b.image);
    quick_poll_all(&b);
    done_assert(&done[2], 0);
    ASSERT_PENDING(&done[0]);
    assert_int_equal(b.disk.closed, 0);
    script_end_all(&b.disk);
    quick_poll_all(&b);
    done_assert(&done[0], 0);
    done_assert(&done[1], 0);
    assert_int_equal(b.disk.closed + released, 0); /* the bracket */
    assert_int_equal(blkrepl_write_end(b.rig.ctx, token, 0, NULL, 0, NULL), 0);
    quick_poll_all(&b);
    assert_int_equal(b.disk.closed, 1);
    assert_int_equal(released, 1);
    rig_close(&b.rig);
    script_fini(&b.disk);
}

static void context_is_freed_with_quick_requests_in_flight(void **state)
{
    struct quick_bench b;
    struct done done[2];

    (void)state;
    bench_open(&b, 2, 4);
    b.disk.hold = EVERY;
    quick_read(&b, 0, 0, 512, &done[0]);
    quick_write(&b, 1, 0, 512, &done[1]);
    assert_int_equal(blkrepl_context_free(b.rig.ctx), -EBUSY);
    assert_false(is_quick(&b));
    assert_int_equal(b.disk.cancels, 2);
    assert_int_equal(b.image->requests, 2);
    script_end_all(&b.disk);
    blkrepl_image_close(b.image);
    rig_close(&b.rig);
    done_assert(&done[0], 0);
    done_assert(&done[1], 0);
    script_fini(&b.disk);
}

/* A lane collects what the backend has completed while its image goes back: who looked
 * whether it may had seen the request at the backend. */
static void a_request_is_collected_while_its_image_goes_back(void **state)
{
    struct quick_bench b;
    struct lane *lane;
    struct request *request;
    struct done done;
    uint64_t id;

    (void)state;
    bench_open(&b, 2, 4);
    lane = &b.rig.ctx->lanes[1];
    b.disk.hold = EVERY;
    quick_write(&b, 1, 0, 512, &done);
    request = quick_guest(&b, 8)->request;
    quick_turn(&b);
    id = atomic_load(&request->live_id);
    script_end_all(&b.disk);
    pthread_mutex_lock(&lane->lock);
    blkrepl__lane_collect(b.rig.ctx, lane);
    pthread_mutex_unlock(&lane->lock);
    assert_false(list_empty(&lane->returned));
    atomic_store(&request->live_id, id);
    assert_true(quick_back(&b));
    atomic_store(&request->live_id, 0);
    quick_poll_all(&b);
    assert_false(quick_guest(&b, 8)->in_stripe);
    assert_int_equal(done.calls, 1);
    assert_int_equal(done.result, 0);
    quick_close(&b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(turn_takes_what_the_backend_has),
        cmocka_unit_test(turn_takes_what_was_completed_and_not_collected),
        cmocka_unit_test(turn_takes_what_was_completed_and_left_over),
        cmocka_unit_test(turn_takes_what_has_ended_and_is_not_told),
        cmocka_unit_test(turn_is_a_point_in_time),
        cmocka_unit_test(turn_and_back_leaves_brackets_theirs),
        cmocka_unit_test(token_of_the_quick_way_is_over_with_its_bracket),
#ifdef BLKREPL_HOOKS
        cmocka_unit_test(turn_between_two_looks_at_a_bracket),
        cmocka_unit_test(back_between_two_looks_at_a_bracket),
#endif
        cmocka_unit_test(back_takes_what_is_in_flight),
        cmocka_unit_test(back_comes_after_some_slow_requests),
        cmocka_unit_test(back_that_was_refused_is_tried_again),
        cmocka_unit_test(back_is_refused_for_each_reason),
        cmocka_unit_test(back_waits_for_requests_in_pieces),
        cmocka_unit_test(image_is_closed_with_quick_requests_in_flight),
        cmocka_unit_test(context_is_freed_with_quick_requests_in_flight),
        cmocka_unit_test(a_request_is_collected_while_its_image_goes_back),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
