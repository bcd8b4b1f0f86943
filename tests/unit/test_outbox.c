/* SPDX-License-Identifier: MIT */
#include "core/context.h"

#include "unit/rig.h"

#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>

#include "block/image.h"

#define EVERY 0x7eu

struct bench {
    struct rig rig;
    struct script disk;
    blkrepl_image *image;
};

static void bench_open(struct bench *b, const blkrepl_context_options *base)
{
    memset(b, 0, sizeof *b);
    rig_open(&b->rig, base);
    script_init(&b->disk, MIB);
    b->image = script_open(&b->disk, &b->rig);
}

static void bench_close(struct bench *b)
{
    blkrepl_image_close(b->image);
    rig_close(&b->rig);
    script_fini(&b->disk);
}

static void flush(struct bench *b, struct done *done)
{
    blkrepl_completion c = done_of(done);

    assert_int_equal(blkrepl_image_flush(b->image, 0, &c), 0);
}

static void io_complete_refuses_what_is_not_in_flight(void **state)
{
    struct bench b;
    struct done done;
    blkrepl_context *ctx;
    uint64_t id;

    (void)state;
    bench_open(&b, NULL);
    ctx = b.rig.ctx;
    b.disk.hold = EVERY;
    flush(&b, &done);
    id = b.disk.waiting[0]->id;
    assert_int_equal(blkrepl_io_complete(NULL, id, 0), -EINVAL);
    assert_int_equal(blkrepl_io_complete(ctx, id, 1), -EINVAL); /* it stays in flight */
    assert_int_equal(blkrepl_io_complete(ctx, 0, 0), -ENOENT);
    assert_int_equal(blkrepl_io_complete(ctx, id + 1, 0), -ENOENT);
    assert_int_equal(blkrepl_io_complete(ctx, REQUEST_INDEX_MASK, 0), -ENOENT);
    assert_int_equal(blkrepl_io_complete(ctx, UINT64_MAX, 0), -ENOENT);
    assert_int_equal(blkrepl_io_complete(ctx, id + REQUEST_INDEX_MASK + 1, 0), -ENOENT);
    script_end(&b.disk, 0, -EIO);
    assert_int_equal(blkrepl_io_complete(ctx, id, 0), -ENOENT); /* a second time */
    rig_poll(&b.rig);
    done_assert(&done, -EIO);
    flush(&b, &done); /* the same slot again */
    assert_int_equal(b.disk.waiting[0]->id & REQUEST_INDEX_MASK, id & REQUEST_INDEX_MASK);
    assert_int_equal(blkrepl_io_complete(ctx, id, 0), -ENOENT); /* the stale id */
    ASSERT_PENDING(&done);
    script_end(&b.disk, 0, 0);
    rig_poll(&b.rig);
    done_assert(&done, 0);
    bench_close(&b);
}

static void io_complete_runs_nothing_and_takes_no_memory(void **state)
{
    struct bench b;
    struct done done;
    uint64_t calls;

    (void)state;
    bench_open(&b, NULL);
    b.disk.hold = EVERY;
    flush(&b, &done);
    calls = b.rig.heap.calls;
    script_end(&b.disk, 0, 0);
    ASSERT_PENDING(&done);
    assert_int_equal(b.image->requests, 1); /* recorded only */
    rig_poll(&b.rig);
    done_assert(&done, 0);
    assert_int_equal(b.rig.heap.calls, calls);
    bench_close(&b);
}

#define CROWD 4
#define CROWD_REQUESTS 64

struct member {
    pthread_t thread;
    pthread_barrier_t *barrier;
    atomic_uint *finished;
    blkrepl_context *ctx;
    uint64_t ids[CROWD_REQUESTS];
    unsigned refused;
};

static void *complete_all(void *arg)
{
    struct member *m = arg;

    pthread_barrier_wait(m->barrier);
    for (unsigned i = 0; i < CROWD_REQUESTS; i++) {
        m->refused += blkrepl_io_complete(m->ctx, m->ids[i], 0) != 0;
    }
    atomic_fetch_add(m->finished, 1);
    return NULL;
}

/* All at once, while somebody would like to sleep: each is handled once, and who
 * was told that it may sleep is woken. */
static void completions_of_many_threads_are_each_handled_once(void **state)
{
    static struct member crowd[CROWD];
    static struct done done[CROWD][CROWD_REQUESTS];
    pthread_barrier_t barrier;
    struct bench b;

    (void)state;
    bench_open(&b, NULL);
    b.disk.hold = EVERY;
    b.image->leaf->port.info.queue_depth = CROWD * CROWD_REQUESTS;
    b.disk.info.queue_depth = CROWD * CROWD_REQUESTS;
    assert_int_equal(pthread_barrier_init(&barrier, NULL, CROWD), 0);
    for (int round = 0; round < (quick() ? 5 : 300); round++) {
        struct pollfd pfd = {.fd = blkrepl_poll_fd(b.rig.ctx, 0), .events = POLLIN};
        atomic_uint finished = 0;
        uint64_t deadline;
        int armed = 1;

        for (unsigned i = 0; i < CROWD * CROWD_REQUESTS; i++) {
            flush(&b, &done[i / CROWD_REQUESTS][i % CROWD_REQUESTS]);
            crowd[i / CROWD_REQUESTS].ids[i % CROWD_REQUESTS] = b.disk.waiting[i]->id;
        }
        b.disk.waiting_count = 0;
        for (unsigned i = 0; i < CROWD; i++) {
            crowd[i].barrier = &barrier;
            crowd[i].finished = &finished;
            crowd[i].ctx = b.rig.ctx;
            assert_int_equal(pthread_create(&crowd[i].thread, NULL, complete_all, &crowd[i]), 0);
        }
        while (atomic_load(&finished) < CROWD) {
            armed = blkrepl_poll_arm(b.rig.ctx, 0, &deadline);
        }
        for (unsigned i = 0; i < CROWD; i++) {
            assert_int_equal(pthread_join(crowd[i].thread, NULL), 0);
            assert_int_equal(crowd[i].refused, 0);
        }
        assert_true(armed == 1 || poll(&pfd, 1, 0) == 1);
        assert_int_equal(rig_poll(&b.rig), CROWD * CROWD_REQUESTS);
        for (unsigned i = 0; i < CROWD * CROWD_REQUESTS; i++) {
            done_assert(&done[i / CROWD_REQUESTS][i % CROWD_REQUESTS], 0);
        }
        script_forget(&b.disk);
    }
    pthread_barrier_destroy(&barrier);
    bench_close(&b);
}

static void completions_are_handled_in_their_order(void **state)
{
    struct bench b;
    struct done done[6];

    (void)state;
    bench_open(&b, NULL);
    b.disk.hold = EVERY;
    for (int i = 0; i < 6; i++) {
        flush(&b, &done[i]);
    }
    script_end(&b.disk, 4, 0);
    script_end(&b.disk, 0, 0);
    script_end(&b.disk, 2, 0); /* number 3 by now */
    script_end_all(&b.disk);
    rig_poll(&b.rig);
    assert_true(done[4].order < done[0].order);
    assert_true(done[0].order < done[3].order);
    assert_true(done[3].order < done[1].order);
    assert_true(done[1].order < done[2].order);
    assert_true(done[2].order < done[5].order);
    bench_close(&b);
}

static void advance_handles_a_bounded_number_of_completions(void **state)
{
    struct bench b;
    struct done done[7];

    (void)state;
    bench_open(&b, &(blkrepl_context_options){.completions_max = 3});
    b.disk.hold = EVERY;
    for (int i = 0; i < 7; i++) {
        flush(&b, &done[i]);
    }
    script_end_all(&b.disk);
    blkrepl__enter(b.rig.ctx);
    blkrepl__advance(b.rig.ctx);
    assert_int_equal(b.rig.ctx->lanes[0].requests.used, 7); /* slots go with the callbacks */
    assert_false(list_empty(&b.rig.ctx->lanes[0].arrived));
    blkrepl__advance(b.rig.ctx);
    blkrepl__advance(b.rig.ctx);
    assert_true(list_empty(&b.rig.ctx->lanes[0].arrived) && list_empty(&b.rig.ctx->completed));
    blkrepl__leave(b.rig.ctx, 0);
    rig_poll(&b.rig);
    for (int i = 0; i < 7; i++) {
        done_assert(&done[i], 0);
    }
    bench_close(&b);
}

static unsigned ran[8];
static unsigned ran_count;

static void note_ready(struct ready *ready)
{
    ran[ran_count++] = ready->link.next == NULL ? 1 : 2;
}

static void ready_is_taken_off_whatever_it_waited_on_and_runs_once(void **state)
{
    struct bench b;
    struct ready ready = {.run = note_ready};
    struct list waiters;

    (void)state;
    bench_open(&b, NULL);
    list_init(&waiters);
    list_append(&waiters, &ready.link);
    ran_count = 0;
    blkrepl__enter(b.rig.ctx);
    blkrepl__ready_wake(b.rig.ctx, &ready);
    assert_true(list_empty(&waiters));
    blkrepl__ready_wake(b.rig.ctx, &ready);
    blkrepl__leave(b.rig.ctx, 0);
    assert_int_equal(ran_count, 1);
    assert_int_equal(ran[0], 1); /* it may wait again */
    bench_close(&b);
}

static void note_step(struct machine *machine)
{
    (void)machine;
    ran_count++;
}

static void note_chore(struct chore *chore)
{
    (void)chore;
    ran_count++;
}

static void machine_is_stepped_by_polls_and_a_chore_run_by_any_call(void **state)
{
    struct bench b;
    struct machine machine = {.step = note_step};
    struct chore chore = {.run = note_chore};

    (void)state;
    bench_open(&b, NULL);
    ran_count = 0;
    blkrepl__enter(b.rig.ctx);
    blkrepl__machine_wake(b.rig.ctx, &machine);
    blkrepl__machine_wake(b.rig.ctx, &machine);
    blkrepl__leave(b.rig.ctx, 0);
    assert_int_equal(ran_count, 0);
    assert_true(blkrepl__lane_busy(b.rig.ctx, 0));
    rig_poll(&b.rig);
    assert_int_equal(ran_count, 1);
    blkrepl__enter(b.rig.ctx);
    blkrepl__chore_add(b.rig.ctx, &chore);
    blkrepl__chore_add(b.rig.ctx, &chore);
    blkrepl__leave(b.rig.ctx, 0);
    assert_int_equal(ran_count, 2);
    bench_close(&b);
}

static void job_ended(struct request *request)
{
    (void)request;
    ran_count++;
}

static void requests_of_jobs_go_out_in_polls_only(void **state)
{
    struct bench b;
    struct request *request;
    blkrepl_context *ctx;

    (void)state;
    bench_open(&b, NULL);
    ctx = b.rig.ctx;
    ran_count = 0;
    blkrepl__enter(ctx);
    request = blkrepl__request_take(&ctx->job_requests);
    request->io.opcode = BLKREPL_OP_FLUSH;
    request->ended = job_ended;
    blkrepl__port_submit_job(&b.image->leaf->port, request, false);
    blkrepl__leave(ctx, 0);
    assert_int_equal(b.disk.submits, 0);
    rig_poll(&b.rig);
    assert_int_equal(b.disk.submits, 1);
    assert_int_equal(ran_count, 1);
    blkrepl__request_put(&ctx->job_requests, request);
    bench_close(&b);
}

static struct bench *endless;

/* A request that is submitted again as soon as it has ended. */
static void again(struct request *request)
{
    ran_count++;
    if (ran_count < 1000) {
        blkrepl__port_submit_guest(&endless->image->leaf->port, request, 0);
    }
}

static void call_gives_away_a_bounded_number_and_leaves_the_rest_to_polls(void **state)
{
    struct bench b;
    struct request *request;
    blkrepl_context *ctx;

    (void)state;
    bench_open(&b, NULL);
    ctx = b.rig.ctx;
    endless = &b;
    ran_count = 0;
    blkrepl__enter(ctx);
    request = blkrepl__request_take(&ctx->job_requests);
    request->io.opcode = BLKREPL_OP_FLUSH;
    request->ended = again;
    blkrepl__port_submit_guest(&b.image->leaf->port, request, 0);
    blkrepl__leave(ctx, 0);
    assert_true(ran_count > 0 && ran_count < 1000);
    assert_true(blkrepl__lane_busy(ctx, 0)); /* a poller is told */
    rig_poll(&b.rig);
    assert_int_equal(ran_count, 1000);
    blkrepl__request_put(&ctx->job_requests, request);
    bench_close(&b);
}

static unsigned chores_run;

static void chore_count(struct chore *chore)
{
    (void)chore;
    chores_run++;
}

/* What a call leaves undone is work for a poll: nobody may sleep over it. */
static void chores_that_a_call_leaves_keep_the_lane_busy(void **state)
{
    struct bench b;
    struct chore chores[100];
    uint64_t deadline;

    (void)state;
    bench_open(&b, NULL);
    chores_run = 0;
    blkrepl__enter(b.rig.ctx);
    for (unsigned i = 0; i < ARRAY_COUNT(chores); i++) {
        chores[i] = (struct chore){.run = chore_count};
        blkrepl__chore_add(b.rig.ctx, &chores[i]);
    }
    blkrepl__leave(b.rig.ctx, 0);
    assert_in_range(chores_run, 1, 99);
    assert_int_equal(blkrepl_poll_arm(b.rig.ctx, 0, &deadline), 1);
    rig_poll(&b.rig);
    assert_int_equal(chores_run, 100);
    assert_int_equal(blkrepl_poll_arm(b.rig.ctx, 0, &deadline), 0);
    bench_close(&b);
}

static struct bench *elsewhere;

static void complete_elsewhere(struct script *script)
{
    (void)script;
    script_end(&elsewhere->disk, 0, -EIO);
}

/* A backend that serves two contexts completes a request of one while it is given
 * one of the other: each context gets its own. */
static void completion_inside_another_context_s_submit_is_not_taken_for_its_own(void **state)
{
    struct bench one;
    struct bench two;
    struct done first;
    struct done second;

    (void)state;
    bench_open(&one, NULL);
    bench_open(&two, NULL);
    one.disk.hold = EVERY;
    flush(&one, &first);
    elsewhere = &one;
    two.disk.inside = complete_elsewhere;
    flush(&two, &second);
    assert_non_null(atomic_load(&one.rig.ctx->lanes[0].inbox));
    rig_poll(&two.rig);
    done_assert(&second, 0);
    ASSERT_PENDING(&first);
    assert_int_equal(rig_poll(&one.rig), 1);
    done_assert(&first, -EIO);
    bench_close(&one);
    bench_close(&two);
}

static void close_waits_for_a_poll_or_a_close_call(void **state)
{
    struct bench b;
    struct done done;
    blkrepl_image *other;

    (void)state;
    bench_open(&b, NULL);
    assert_int_equal(blkrepl_image_open_memory(b.rig.ctx, 1, NULL, &other), 0);
    b.disk.hold = EVERY;
    flush(&b, &done);
    blkrepl_image_close(b.image);
    script_end(&b.disk, 0, 0);
    assert_int_equal(b.disk.closed, 0);
    rig_poll(&b.rig);
    done_assert(&done, 0);
    assert_int_equal(b.disk.closed, 1);
    blkrepl_image_close(other);
    rig_close(&b.rig);
    script_fini(&b.disk);
}

static void host_frames_know_whose_code_this_thread_is_in(void **state)
{
    struct rig one = {.no_log = true};
    struct rig two = {.no_log = true};
    struct host_frame outer;
    struct host_frame inner;

    (void)state;
    rig_open(&one, NULL);
    rig_open(&two, NULL);
    assert_false(blkrepl__host_inside(one.ctx));
    blkrepl__host_enter(&outer, one.ctx);
    assert_true(blkrepl__host_inside(one.ctx));
    assert_false(blkrepl__host_inside(two.ctx));
    blkrepl__host_enter(&inner, two.ctx);
    assert_true(blkrepl__host_inside(one.ctx) && blkrepl__host_inside(two.ctx));
    blkrepl__host_leave(&inner);
    assert_false(blkrepl__host_inside(two.ctx));
    blkrepl__host_leave(&outer);
    blkrepl__hook_depth++; /* in a hook no context may be polled */
    assert_true(blkrepl__host_inside(two.ctx));
    blkrepl__hook_depth--;
    rig_close(&one);
    rig_close(&two);
}

static void slot_that_is_given_back_announces_room_if_it_was_wanted(void **state)
{
    struct bench b;
    struct lane *lane;
    struct request *request;

    (void)state;
    bench_open(&b, NULL);
    lane = &b.rig.ctx->lanes[0];
    for (int wanted = 0; wanted < 2; wanted++) {
        blkrepl__enter(b.rig.ctx);
        request = blkrepl__request_take(&lane->requests);
        lane->room_wanted = wanted != 0;
        blkrepl__guest_slot_put(b.rig.ctx, 0, request);
        assert_false(lane->room_wanted);
        blkrepl__leave(b.rig.ctx, 0);
        rig_poll(&b.rig);
        assert_int_equal(rig_events(&b.rig, BLKREPL_EVENT_ROOM), wanted);
    }
    assert_int_equal(b.rig.events[0].object_kind, BLKREPL_OBJECT_LANE);
    assert_null(b.rig.events[0].user);
    bench_close(&b);
}

static void lane_that_does_not_exist_is_named(void **state)
{
    struct rig rig = {.no_log = true};

    (void)state;
    rig_open(&rig, NULL);
    assert_true(blkrepl__lane_valid(rig.ctx, 0));
    assert_false(blkrepl__lane_valid(rig.ctx, 1));
    assert_non_null(strstr(blkrepl_error_message(), "lane 1"));
    rig_close(&rig);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(io_complete_refuses_what_is_not_in_flight),
        cmocka_unit_test(io_complete_runs_nothing_and_takes_no_memory),
        cmocka_unit_test(completions_of_many_threads_are_each_handled_once),
        cmocka_unit_test(completions_are_handled_in_their_order),
        cmocka_unit_test(advance_handles_a_bounded_number_of_completions),
        cmocka_unit_test(ready_is_taken_off_whatever_it_waited_on_and_runs_once),
        cmocka_unit_test(machine_is_stepped_by_polls_and_a_chore_run_by_any_call),
        cmocka_unit_test(requests_of_jobs_go_out_in_polls_only),
        cmocka_unit_test(call_gives_away_a_bounded_number_and_leaves_the_rest_to_polls),
        cmocka_unit_test(chores_that_a_call_leaves_keep_the_lane_busy),
        cmocka_unit_test(completion_inside_another_context_s_submit_is_not_taken_for_its_own),
        cmocka_unit_test(close_waits_for_a_poll_or_a_close_call),
        cmocka_unit_test(host_frames_know_whose_code_this_thread_is_in),
        cmocka_unit_test(slot_that_is_given_back_announces_room_if_it_was_wanted),
        cmocka_unit_test(lane_that_does_not_exist_is_named),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
