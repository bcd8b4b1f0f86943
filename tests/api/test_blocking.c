/* SPDX-License-Identifier: MIT */
/* Threads in blocking calls: who leads, who sleeps, who waits for room, and that
 * nobody is left behind. */
#include "call.h"

#define BLOCK 512
#define BLOCKS 256
#define SIZE ((uint64_t)BLOCKS * BLOCK)
#define LANES 9
#define THREADS 8

static struct env env;
static struct tape disk;
static blkrepl_image *image;
static uint8_t buffers[THREADS][BLOCK];

static void open_scene(uint32_t requests_max)
{
    blkrepl_context_options o = {
        .struct_size = sizeof o, .lane_count = LANES, .requests_max = requests_max};

    env_open(&env, &o, ENV_REAL_CLOCK);
    tape_init(&disk, SIZE);
    tape_fill(&disk, 1);
    disk.lanes = LANES;
    disk.info.request_alignment = BLOCK;
    image = tape_open(&disk, &env);
}

static void close_scene(void)
{
    blkrepl_image_close(image);
    env_close(&env);
    tape_close(&disk);
}

static int set_up(void **state)
{
    (void)state;
    open_scene(0);
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    close_scene();
    return 0;
}

/* A call about the block of this number, with memory of its own. */
static struct call call_of(enum call_kind kind, uint32_t lane, unsigned number)
{
    return (struct call){.image = image,
                         .kind = kind,
                         .lane = lane,
                         .offset = (uint64_t)number * BLOCK,
                         .bytes = BLOCK,
                         .memory = buffers[number % THREADS]};
}

/* Start it, and go on when its request is at the tape and its thread sleeps. */
static void start_asleep(struct call *call)
{
    size_t pending = tape_pending(&disk, 0);

    call_start(call);
    tape_await(&disk, pending + 1);
    call_until_asleep(call);
}

static void finish_at(uint64_t offset)
{
    assert_int_equal(tape_finish(&disk, tape_find(&disk, 0, offset, BLOCK), 0), 0);
}

/* ---- Leading ------------------------------------------------------------------------- */

static void the_lead_passes_on(void **state)
{
    struct call calls[4];

    (void)state;
    disk.hold = OPS_ALL;
    for (unsigned i = 0; i < 4; i++) {
        calls[i] = call_of(CALL_READ, 1, i);
        start_asleep(&calls[i]);
    }
    /* The first leads.  Who is woken has to see to those that are left. */
    for (unsigned i = 0; i < 4; i++) {
        finish_at(calls[i].offset);
        ASSERT_CODE(call_join(&calls[i]), 0);
    }
}

static void sleepers_return_while_another_leads(void **state)
{
    struct call calls[4];

    (void)state;
    disk.hold = OPS_ALL;
    for (unsigned i = 0; i < 4; i++) {
        calls[i] = call_of(CALL_READ, 1, i);
        start_asleep(&calls[i]);
    }
    for (unsigned i = 4; i-- > 0;) {
        finish_at(calls[i].offset);
        ASSERT_CODE(call_join(&calls[i]), 0);
    }
}

static void the_host_cannot_poll_while_a_call_leads(void **state)
{
    struct call read = call_of(CALL_READ, 1, 0);

    (void)state;
    disk.hold = OPS_ALL;
    start_asleep(&read);
    ASSERT_CODE(blkrepl_poll(env.ctx, 1, 0), -EBUSY);
    ASSERT_CODE(blkrepl_poll(env.ctx, 1, SECOND), -EBUSY);
    ASSERT_CODE(blkrepl_poll(env.ctx, 2, 0), 0); /* another lane */
    finish_at(0);
    ASSERT_CODE(call_join(&read), 0);
    ASSERT_CODE(blkrepl_poll(env.ctx, 1, 0), 0);
}

/* What a host does to its own pollers does not end a call before its time. */
static void a_wake_does_a_leader_no_harm(void **state)
{
    struct call read = call_of(CALL_READ, 1, 0);

    (void)state;
    disk.hold = OPS_ALL;
    start_asleep(&read);
    for (int i = 0; i < 100; i++) {
        ASSERT_CODE(blkrepl_poll_wake(env.ctx, 1), 0);
    }
    call_until_asleep(&read);
    assert_false(atomic_load(&read.returned));
    finish_at(0);
    ASSERT_CODE(call_join(&read), 0);
}

/* A wake is for the host's polls: the call that leads meanwhile does not use it up. */
static void a_leader_leaves_the_wake_to_the_host(void **state)
{
    struct call read = call_of(CALL_READ, 1, 0);

    (void)state;
    disk.hold = OPS_ALL;
    start_asleep(&read);
    ASSERT_CODE(blkrepl_poll_wake(env.ctx, 1), 0);
    finish_at(0);
    ASSERT_CODE(call_join(&read), 0);
    ASSERT_CODE(blkrepl_poll(env.ctx, 1, BLKREPL_FOREVER), 0); /* returns */
}

static void who_sleeps_leads_when_the_host_stops_polling(void **state)
{
    struct call calls[3];
    struct poller poller;

    (void)state;
    disk.hold = OPS_ALL;
    poller_start(&poller, env.ctx, 1);
    for (unsigned i = 0; i < 3; i++) {
        calls[i] = call_of(CALL_READ, 1, i);
        start_asleep(&calls[i]);
    }
    finish_at(0); /* the host's poll ends this one */
    ASSERT_CODE(call_join(&calls[0]), 0);
    poller_stop(&poller);
    for (unsigned i = 1; i < 3; i++) {
        finish_at(calls[i].offset);
        ASSERT_CODE(call_join(&calls[i]), 0);
    }
}

/* Callbacks of others run in the call that leads, and are none of its business. */
static void callbacks_of_others_run_in_the_call_that_leads(void **state)
{
    struct req plain = {.iov = {buffers[7], BLOCK}};
    blkrepl_completion done = req_completion(&plain);
    struct call read = call_of(CALL_READ, 1, 0);

    (void)state;
    disk.hold = OPS_ALL;
    ASSERT_CODE(blkrepl_image_read(image, 1, 7 * BLOCK, &plain.iov, 1, 0, &done), 0);
    start_asleep(&read);
    finish_at(7 * BLOCK);
    image_await(image, 1);
    finish_at(0);
    ASSERT_CODE(call_join(&read), 0);
    blkrepl_poll(env.ctx, 1, 0);
    req_assert_done(&plain, 0);
}

/* ---- Room ----------------------------------------------------------------------------- */

static void those_without_room_wait_for_it(void **state)
{
    (void)state;
    for (uint32_t most = 1; most <= 2; most++) {
        struct call calls[THREADS];

        open_scene(most);
        disk.hold = OPS_ALL;
        for (unsigned i = 0; i < THREADS; i++) {
            calls[i] = call_of(CALL_READ, 1, i);
            call_start(&calls[i]);
        }
        for (unsigned i = 0; i < THREADS; i++) {
            call_until_asleep(&calls[i]);
        }
        for (unsigned i = 0; i < THREADS; i++) {
            tape_await(&disk, 1);
            tape_finish(&disk, 0, 0);
        }
        for (unsigned i = 0; i < THREADS; i++) {
            ASSERT_CODE(call_join(&calls[i]), 0);
        }
        assert_int_equal(disk.in_flight_max, most);
        blkrepl_poll(env.ctx, 1, 0);
        assert_int_equal(env.event_count, 0);
        close_scene();
    }
}

/* The slot is freed by another thread, outside of any poll, while the one who
 * waits for it sleeps. */
static void the_end_of_a_bracket_makes_room(void **state)
{
    (void)state;
    for (int cancel = 0; cancel <= 1; cancel++) {
        struct call begin, reads[2];

        open_scene(1);
        begin = call_of(CALL_BEGIN, 1, 7);
        ASSERT_CODE(call_make(&begin), 0);
        for (unsigned i = 0; i < 2; i++) {
            reads[i] = call_of(CALL_READ, 1, i);
            call_start(&reads[i]);
            call_until_asleep(&reads[i]);
        }
        assert_int_equal(tape_submitted(&disk, 0), 0);
        ASSERT_CODE(cancel ? blkrepl_write_cancel(env.ctx, begin.token)
                           : blkrepl_write_end(env.ctx, begin.token, 0, NULL, 0, NULL),
                    0);
        ASSERT_CODE(call_join(&reads[0]), 0);
        ASSERT_CODE(call_join(&reads[1]), 0);
        close_scene();
    }
}

/* Only a callback stands between the call and its room: it runs that itself. */
static void a_call_makes_its_own_room(void **state)
{
    struct req plain = {.iov = {buffers[7], BLOCK}};
    blkrepl_completion done = req_completion(&plain);
    struct call read;

    (void)state;
    open_scene(1);
    read = call_of(CALL_READ, 1, 0);
    ASSERT_CODE(blkrepl_image_read(image, 1, 0, &plain.iov, 1, 0, &done), 0);
    ASSERT_CODE(call_make(&read), 0);
    blkrepl_poll(env.ctx, 1, 0);
    req_assert_done(&plain, 0);
    close_scene();
}

/* A plain call that was refused is told, whoever else waits for the same. */
static void a_plain_call_is_told_of_room(void **state)
{
    struct call calls[2];
    struct req plain = {.iov = {buffers[7], BLOCK}};
    blkrepl_completion done = req_completion(&plain);

    (void)state;
    open_scene(1);
    disk.hold = OPS_ALL;
    calls[0] = call_of(CALL_READ, 1, 0);
    start_asleep(&calls[0]);
    calls[1] = call_of(CALL_READ, 1, 1);
    call_start(&calls[1]);
    call_until_asleep(&calls[1]);
    ASSERT_CODE(blkrepl_image_read(image, 1, 7 * BLOCK, &plain.iov, 1, 0, &done), -EAGAIN);
    req_assert_rejected(&plain);
    for (unsigned i = 0; i < 2; i++) {
        tape_await(&disk, 1);
        tape_finish(&disk, 0, 0);
    }
    ASSERT_CODE(call_join(&calls[0]), 0);
    ASSERT_CODE(call_join(&calls[1]), 0);
    blkrepl_poll(env.ctx, 1, 0);
    assert_int_equal(env_count(&env, BLKREPL_EVENT_ROOM, 1), 1);
    assert_int_equal(env.event_count, 1);
    close_scene();
}

static void lanes_have_room_of_their_own(void **state)
{
    struct call full, other;

    (void)state;
    open_scene(1);
    disk.hold = BIT(BLKREPL_OP_READ);
    full = call_of(CALL_READ, 1, 0);
    start_asleep(&full);
    other = call_of(CALL_WRITE, 2, 1);
    ASSERT_CODE(call_make(&other), 0);
    finish_at(0);
    ASSERT_CODE(call_join(&full), 0);
    close_scene();
}

/* ---- Shutting down ---------------------------------------------------------------------- */

static void a_context_is_not_freed_under_a_call(void **state)
{
    struct call calls[2];

    (void)state;
    disk.hold = OPS_ALL;
    for (unsigned i = 0; i < 2; i++) {
        calls[i] = call_of(CALL_READ, 1, i);
        start_asleep(&calls[i]);
    }
    for (int i = 0; i < 10; i++) {
        ASSERT_CODE(blkrepl_context_free(env.ctx), -EBUSY);
        assert_true(blkrepl_error_message()[0] != '\0');
    }
    assert_false(atomic_load(&calls[0].returned) || atomic_load(&calls[1].returned));
    finish_at(0);
    ASSERT_CODE(call_join(&calls[0]), 0);
    finish_at(BLOCK);
    ASSERT_CODE(call_join(&calls[1]), 0);
}

/* Of those that wait for room none is accepted any more, and all are told. */
static void those_who_wait_for_room_learn_of_the_end(void **state)
{
    struct call calls[THREADS];

    (void)state;
    open_scene(1);
    disk.hold = OPS_ALL;
    for (unsigned i = 0; i < THREADS; i++) {
        calls[i] = call_of(CALL_READ, 1, i);
        call_start(&calls[i]);
        if (i == 0) {
            tape_await(&disk, 1);
        }
        call_until_asleep(&calls[i]);
    }
    ASSERT_CODE(blkrepl_context_free(env.ctx), -EBUSY);
    finish_at(0);
    ASSERT_CODE(call_join(&calls[0]), 0);
    for (unsigned i = 1; i < THREADS; i++) {
        ASSERT_CODE(call_join(&calls[i]), -ESHUTDOWN);
    }
    close_scene();
}

/* The same at any moment of theirs: on the way in, asleep, about to lead. */
static void room_and_lead_pass_on_at_any_moment(void **state)
{
    struct call calls[THREADS];

    (void)state;
    for (int round = 0; round < (quick() ? 50 : 1000); round++) {
        open_scene(1);
        disk.hold = OPS_ALL;
        for (unsigned i = 0; i < THREADS; i++) {
            calls[i] = call_of(CALL_READ, 1, i);
            call_start(&calls[i]);
            if (i == 0) {
                tape_await(&disk, 1);
            }
            for (volatile int n = (round * 37 + (int)i * 101) % 3000; n > 0; n--) {
            }
        }
        ASSERT_CODE(blkrepl_context_free(env.ctx), -EBUSY);
        finish_at(0);
        ASSERT_CODE(call_join(&calls[0]), 0);
        for (unsigned i = 1; i < THREADS; i++) {
            ASSERT_CODE(call_join(&calls[i]), -ESHUTDOWN);
        }
        close_scene();
    }
}

static struct call leaving[2];
static _Atomic bool finished;

/* When the lane is polled: two calls that sleep, and the end of their requests. */
static void *leaving_main(void *user)
{
    while (blkrepl_poll(env.ctx, 1, 0) != -EBUSY) {
    }
    for (unsigned i = 0; i < 2; i++) {
        leaving[i] = call_of(CALL_READ, 1, i);
        start_asleep(&leaving[i]);
    }
    atomic_store(&finished, true);
    tape_finish_all(&disk, 0, 0);
    return user;
}

/* Their requests are over, but they are still inside, on their way out; the host, which
 * has polled for them, frees at once. */
static void a_context_is_not_freed_under_a_call_that_returns(void **state)
{
    pthread_t thread;

    (void)state;
    for (int round = 0; round < (quick() ? 20 : 100); round++) {
        open_scene(0);
        disk.hold = OPS_ALL;
        atomic_store(&finished, false);
        assert_int_equal(pthread_create(&thread, NULL, leaving_main, NULL), 0);
        while (!atomic_load(&finished) || image_info(image).requests_in_flight > 0) {
            blkrepl_poll(env.ctx, 1, SECOND / 100);
        }
        pthread_join(thread, NULL);
        close_scene();
        ASSERT_CODE(call_join(&leaving[0]), 0);
        ASSERT_CODE(call_join(&leaving[1]), 0);
    }
}

#define TEST(f) cmocka_unit_test_setup_teardown(f, set_up, tear_down)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(the_lead_passes_on),
        TEST(sleepers_return_while_another_leads),
        TEST(the_host_cannot_poll_while_a_call_leads),
        TEST(a_wake_does_a_leader_no_harm),
        TEST(a_leader_leaves_the_wake_to_the_host),
        TEST(who_sleeps_leads_when_the_host_stops_polling),
        TEST(callbacks_of_others_run_in_the_call_that_leads),
        cmocka_unit_test(those_without_room_wait_for_it),
        cmocka_unit_test(a_call_makes_its_own_room),
        cmocka_unit_test(a_plain_call_is_told_of_room),
        cmocka_unit_test(lanes_have_room_of_their_own),
        TEST(a_context_is_not_freed_under_a_call),
        cmocka_unit_test(a_context_is_not_freed_under_a_call_that_returns),
        cmocka_unit_test(the_end_of_a_bracket_makes_room),
        cmocka_unit_test(those_who_wait_for_room_learn_of_the_end),
        cmocka_unit_test(room_and_lead_pass_on_at_any_moment),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
