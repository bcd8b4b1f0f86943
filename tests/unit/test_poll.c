/* SPDX-License-Identifier: MIT */
#include "core/context.h"

#include "unit/rig.h"

#include <poll.h>
#include <pthread.h>
#include <time.h>

#define EVERY 0x7eu

struct bench {
    struct rig rig;
    struct script disk;
    blkrepl_image *image;
};

static void bench_open(struct bench *b, const blkrepl_context_options *base, bool real_clock)
{
    memset(b, 0, sizeof *b);
    b->rig.real_clock = real_clock;
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

static bool readable(const struct bench *b)
{
    struct pollfd pfd = {.fd = blkrepl_poll_fd(b->rig.ctx, 0), .events = POLLIN};

    return poll(&pfd, 1, 0) == 1;
}

static int arm(const struct bench *b, uint64_t *deadline_ns)
{
    return blkrepl_poll_arm(b->rig.ctx, 0, deadline_ns);
}

static void poll_runs_at_most_callbacks_max_and_says_how_many(void **state)
{
    struct bench b;
    struct done done[7];

    (void)state;
    bench_open(&b, &(blkrepl_context_options){.callbacks_max = 3}, false);
    for (int i = 0; i < 7; i++) {
        flush(&b, &done[i]);
    }
    assert_int_equal(blkrepl_poll(b.rig.ctx, 0, 0), 3);
    done_assert(&done[2], 0);
    ASSERT_PENDING(&done[3]);
    assert_int_equal(blkrepl_poll(b.rig.ctx, 0, 0), 3);
    assert_int_equal(blkrepl_poll(b.rig.ctx, 0, 0), 1);
    assert_int_equal(blkrepl_poll(b.rig.ctx, 0, 0), 0);
    for (int i = 1; i < 7; i++) {
        assert_true(done[i - 1].order < done[i].order);
    }
    bench_close(&b);
}

static void poll_counts_events_among_its_callbacks(void **state)
{
    struct bench b;
    struct event_slot slots[3];

    (void)state;
    bench_open(&b, &(blkrepl_context_options){.callbacks_max = 2}, false);
    memset(slots, 0, sizeof slots);
    blkrepl__enter(b.rig.ctx);
    for (uint64_t i = 0; i < 3; i++) {
        blkrepl__context_post(b.rig.ctx, 0, &slots[i], &(blkrepl_event){.type = 1, .offset = i});
    }
    blkrepl__leave(b.rig.ctx, 0);
    assert_int_equal(blkrepl_poll(b.rig.ctx, 0, 0), 2);
    assert_int_equal(blkrepl_poll(b.rig.ctx, 0, 0), 1);
    assert_int_equal(b.rig.event_count, 3);
    assert_int_equal(b.rig.events[2].offset, 2);
    bench_close(&b);
}

static struct bench *inside;
static int inside_rc[4];

static void poll_inside(void *user, int result)
{
    uint64_t deadline;

    (void)user;
    (void)result;
    inside_rc[0] = blkrepl_poll(inside->rig.ctx, 0, 0);
    inside_rc[1] = blkrepl_poll_wake(inside->rig.ctx, 0);
    inside_rc[2] = blkrepl_context_free(inside->rig.ctx);
    inside_rc[3] = blkrepl_poll_arm(inside->rig.ctx, 0, &deadline);
}

static void submit_inside(struct script *script)
{
    (void)script;
    poll_inside(NULL, 0);
}

static void poll_is_refused_inside_the_host_s_code(void **state)
{
    struct bench b;
    blkrepl_completion c = {.fn = poll_inside};

    (void)state;
    bench_open(&b, NULL, false);
    inside = &b;
    for (int i = 0; i < 2; i++) {
        memset(inside_rc, 0x55, sizeof inside_rc);
        if (i == 0) {
            assert_int_equal(blkrepl_image_flush(b.image, 0, &c), 0);
            rig_poll(&b.rig);
        } else {
            b.disk.inside = submit_inside;
            assert_int_equal(blkrepl_image_flush(b.image, 0, NULL), 0);
        }
        assert_int_equal(inside_rc[0], -EDEADLK);
        assert_int_equal(inside_rc[1], 0);
        assert_int_equal(inside_rc[2], -EBUSY);
    }
    rig_poll(&b.rig);
    bench_close(&b);
}

static void poll_refuses_bad_arguments(void **state)
{
    struct bench b;
    uint64_t deadline;

    (void)state;
    bench_open(&b, NULL, false);
    assert_int_equal(blkrepl_poll(NULL, 0, 0), -EINVAL);
    assert_int_equal(blkrepl_poll(b.rig.ctx, 1, 0), -EINVAL);
    assert_int_equal(blkrepl_poll(b.rig.ctx, 0, 1), -EINVAL); /* the host has the clock */
    assert_int_equal(blkrepl_poll_arm(NULL, 0, &deadline), -EINVAL);
    assert_int_equal(blkrepl_poll_arm(b.rig.ctx, 1, &deadline), -EINVAL);
    assert_int_equal(blkrepl_poll_arm(b.rig.ctx, 0, NULL), -EINVAL);
    assert_int_equal(blkrepl_poll_fd(NULL, 0), -EINVAL);
    assert_int_equal(blkrepl_poll_fd(b.rig.ctx, 1), -EINVAL);
    assert_int_equal(blkrepl_poll_wake(NULL, 0), -EINVAL);
    assert_int_equal(blkrepl_poll_wake(b.rig.ctx, 1), -EINVAL);
    bench_close(&b);
}

static void poll_by_a_second_thread_is_busy(void **state)
{
    struct bench b;

    (void)state;
    bench_open(&b, NULL, false);
    atomic_store(&b.rig.ctx->lanes[0].polling, true);
    assert_int_equal(blkrepl_poll(b.rig.ctx, 0, 0), -EBUSY);
    atomic_store(&b.rig.ctx->lanes[0].polling, false);
    assert_int_equal(blkrepl_poll(b.rig.ctx, 0, 0), 0);
    assert_false(atomic_load(&b.rig.ctx->lanes[0].polling));
    bench_close(&b);
}

static void arm_says_poll_when_there_is_work(void **state)
{
    struct bench b;
    struct done done;
    uint64_t deadline = 0;

    (void)state;
    bench_open(&b, NULL, false);
    flush(&b, &done);
    assert_int_equal(arm(&b, &deadline), 1);
    assert_true(deadline == b.rig.now);
    assert_false(readable(&b));
    assert_int_equal(blkrepl_poll(b.rig.ctx, 0, 0), 1);
    assert_int_equal(arm(&b, &deadline), 0);
    assert_true(deadline == BLKREPL_FOREVER);
    b.disk.hold = EVERY;
    flush(&b, &done);
    assert_int_equal(arm(&b, &deadline), 0);
    script_end(&b.disk, 0, 0);
    assert_int_equal(arm(&b, &deadline), 1); /* only recorded, but it is work */
    rig_poll(&b.rig);
    bench_close(&b);
}

static void descriptor_is_signalled_only_when_armed_and_until_the_next_poll(void **state)
{
    struct bench b;
    struct done done[3];
    uint64_t deadline;

    (void)state;
    bench_open(&b, NULL, false);
    b.disk.hold = EVERY;
    for (int i = 0; i < 3; i++) {
        flush(&b, &done[i]);
    }
    script_end(&b.disk, 0, 0);
    assert_false(readable(&b)); /* nobody sleeps */
    rig_poll(&b.rig);
    assert_int_equal(arm(&b, &deadline), 0);
    assert_int_equal(arm(&b, &deadline), 0); /* again does no harm */
    script_end(&b.disk, 0, 0);
    assert_true(readable(&b));
    assert_true(readable(&b)); /* it stays so */
    assert_int_equal(blkrepl_poll(b.rig.ctx, 0, 0), 1);
    assert_false(readable(&b));
    assert_int_equal(arm(&b, &deadline), 0);
    assert_int_equal(blkrepl_poll(b.rig.ctx, 0, 0), 0);
    script_end(&b.disk, 0, 0); /* the poll has disarmed */
    assert_false(readable(&b));
    rig_poll(&b.rig);
    bench_close(&b);
}

static void descriptor_is_signalled_for_what_a_call_leaves_to_the_poll(void **state)
{
    struct bench b;
    struct done done;
    uint64_t deadline;

    (void)state;
    bench_open(&b, NULL, false);
    assert_int_equal(arm(&b, &deadline), 0);
    flush(&b, &done); /* done inline: its callback waits */
    assert_true(readable(&b));
    rig_poll(&b.rig);
    done_assert(&done, 0);
    bench_close(&b);
}

static void nothing_expires(struct timer *timer)
{
    (void)timer;
}

static void descriptor_is_signalled_when_an_earlier_deadline_appears(void **state)
{
    struct bench b;
    struct timer timer;
    blkrepl_context *ctx;
    uint64_t deadline;

    (void)state;
    bench_open(&b, NULL, false);
    ctx = b.rig.ctx;
    blkrepl__timer_init(&ctx->timers, &timer, nothing_expires);
    blkrepl__timer_set(&ctx->timers, &timer, 100 * SECOND);
    assert_int_equal(arm(&b, &deadline), 0);
    assert_true(deadline == 100 * SECOND);
    blkrepl__enter(ctx);
    blkrepl__timer_set(&ctx->timers, &timer, 200 * SECOND); /* later: let it sleep */
    blkrepl__leave(ctx, 0);
    assert_false(readable(&b));
    blkrepl__enter(ctx);
    blkrepl__timer_set(&ctx->timers, &timer, 50 * SECOND);
    blkrepl__leave(ctx, 0);
    assert_true(readable(&b));
    blkrepl__timer_clear(&timer);
    rig_poll(&b.rig);
    bench_close(&b);
}

static void descriptor_that_was_signalled_late_costs_one_idle_round(void **state)
{
    struct bench b;
    uint64_t deadline;

    (void)state;
    bench_open(&b, NULL, false);
    assert_int_equal(arm(&b, &deadline), 0);
    assert_int_equal(blkrepl_poll(b.rig.ctx, 0, 0), 0);
    blkrepl__wake_signal(&b.rig.ctx->lanes[0].wake); /* by one who had seen the arming */
    assert_int_equal(arm(&b, &deadline), 0);
    assert_true(readable(&b));
    assert_int_equal(blkrepl_poll(b.rig.ctx, 0, 0), 0);
    assert_false(readable(&b));
    bench_close(&b);
}

static void wake_makes_this_or_the_next_poll_return(void **state)
{
    struct bench b;
    uint64_t deadline;

    (void)state;
    bench_open(&b, NULL, true);
    assert_int_equal(arm(&b, &deadline), 0);
    assert_int_equal(blkrepl_poll_wake(b.rig.ctx, 0), 0);
    assert_true(readable(&b));
    assert_int_equal(arm(&b, &deadline), 1);
    assert_int_equal(blkrepl_poll(b.rig.ctx, 0, BLKREPL_FOREVER), 0); /* does not sleep */
    assert_int_equal(arm(&b, &deadline), 0);
    blkrepl_poll(b.rig.ctx, 0, 0);
    bench_close(&b);
}

static void *wake_later(void *user)
{
    struct bench *b = user;

    nanosleep(&(struct timespec){.tv_nsec = 5000000}, NULL);
    script_end(&b->disk, 0, 0);
    return NULL;
}

static void blocking_poll_returns_with_the_completion_or_at_its_time(void **state)
{
    struct bench b;
    struct done done;
    pthread_t thread;
    uint64_t before;

    (void)state;
    bench_open(&b, NULL, true);
    b.disk.hold = EVERY;
    flush(&b, &done);
    assert_int_equal(pthread_create(&thread, NULL, wake_later, &b), 0);
    while (done.calls == 0) {
        assert_true(blkrepl_poll(b.rig.ctx, 0, BLKREPL_FOREVER) >= 0);
    }
    pthread_join(thread, NULL);
    before = blkrepl_context_now(b.rig.ctx);
    assert_int_equal(blkrepl_poll(b.rig.ctx, 0, 3000000), 0);
    assert_true(blkrepl_context_now(b.rig.ctx) - before >= 3000000);
    bench_close(&b);
}

static unsigned steps[100];
static unsigned step_count;
static bool step_again;

struct numbered {
    struct machine machine;
    struct blkrepl_context *ctx;
    unsigned number;
};

static void note_step(struct machine *machine)
{
    struct numbered *numbered = CONTAINER_OF(machine, struct numbered, machine);

    steps[numbered->number]++;
    step_count++;
    if (step_again) {
        blkrepl__machine_wake(numbered->ctx, machine);
    }
}

static void poll_steps_machines_in_turn_and_a_bounded_number(void **state)
{
    static struct numbered machines[100];
    struct bench b;

    (void)state;
    bench_open(&b, NULL, false);
    memset(steps, 0, sizeof steps);
    memset(machines, 0, sizeof machines);
    step_count = 0;
    step_again = true;
    blkrepl__enter(b.rig.ctx);
    for (unsigned i = 0; i < 100; i++) {
        machines[i].machine.step = note_step;
        machines[i].ctx = b.rig.ctx;
        machines[i].number = i;
        blkrepl__machine_wake(b.rig.ctx, &machines[i].machine);
    }
    blkrepl__leave(b.rig.ctx, 0);
    blkrepl_poll(b.rig.ctx, 0, 0);
    assert_true(step_count < 200); /* however eager they are */
    while (step_count < 1000) {
        blkrepl_poll(b.rig.ctx, 0, 0);
        for (unsigned i = 1; i < 100; i++) { /* nobody is passed over */
            assert_true(steps[i] <= steps[0] && steps[i] + 1 >= steps[0]);
        }
    }
    step_again = false;
    rig_poll(&b.rig);
    bench_close(&b);
}

static void poll_delivers_log_lines_before_it_returns(void **state)
{
    struct bench b;

    (void)state;
    bench_open(&b, NULL, false);
    blkrepl__enter(b.rig.ctx);
    blkrepl__log_add(&b.rig.ctx->log, BLKREPL_LOG_INFO, "one");
    blkrepl__log_add(&b.rig.ctx->log, BLKREPL_LOG_ERROR, "two");
    blkrepl__leave(b.rig.ctx, 0);
    assert_true(blkrepl__lane_busy(b.rig.ctx, 0));
    assert_int_equal(blkrepl_poll(b.rig.ctx, 0, 0), 0);
    assert_int_equal(b.rig.line_count, 2);
    assert_string_equal(b.rig.lines[0], "one");
    assert_int_equal(b.rig.levels[1], BLKREPL_LOG_ERROR);
    bench_close(&b);
}

static struct bench *chatty;

static void log_more(void *user, uint32_t level, const char *line)
{
    (void)level;
    (void)line;
    ++*(unsigned *)user;
    blkrepl__enter(chatty->rig.ctx);
    blkrepl__log_add(&chatty->rig.ctx->log, BLKREPL_LOG_INFO, "more");
    blkrepl__leave(chatty->rig.ctx, 0);
}

/* A hook that makes the library log something for every line it gets does not
 * keep the poll for ever. */
static void poll_delivers_a_bounded_number_of_log_lines(void **state)
{
    struct bench b;
    blkrepl_hooks before;
    unsigned lines = 0;

    (void)state;
    bench_open(&b, NULL, false);
    chatty = &b;
    before = b.rig.ctx->hooks;
    b.rig.ctx->hooks.log = log_more;
    b.rig.ctx->hooks.user = &lines;
    b.rig.ctx->hooks.clock_ns = NULL;
    blkrepl__enter(b.rig.ctx);
    blkrepl__log_add(&b.rig.ctx->log, BLKREPL_LOG_INFO, "one");
    blkrepl__leave(b.rig.ctx, 0);
    assert_int_equal(blkrepl_poll(b.rig.ctx, 0, 0), 0);
    assert_in_range(lines, 1, 2 * LOG_LINES);
    assert_true(blkrepl__lane_busy(b.rig.ctx, 0)); /* the rest is not forgotten */
    b.rig.ctx->hooks = before;
    rig_poll(&b.rig);
    bench_close(&b);
}

static int alone_fetched;

static void deliver_late(struct callback *callback, struct delivery *out)
{
    (void)callback;
    alone_fetched++;
    *out = (struct delivery){.done = {.fn = NULL}};
}

static void count_fetched(void *user, int result)
{
    (void)result;
    *(int *)user = alone_fetched;
}

static void callback_that_is_alone_is_decided_after_those_before_it_ran(void **state)
{
    struct bench b;
    int seen = -1;
    blkrepl_completion c = {.fn = count_fetched, .user = &seen};
    struct callback late = {.deliver = deliver_late, .alone = true};

    (void)state;
    bench_open(&b, NULL, false);
    alone_fetched = 0;
    assert_int_equal(blkrepl_image_flush(b.image, 0, &c), 0);
    list_append(&b.rig.ctx->lanes[0].callbacks, &late.link);
    rig_poll(&b.rig);
    assert_int_equal(seen, 0);
    assert_int_equal(alone_fetched, 1);
    bench_close(&b);
}

static unsigned helped;

static bool help(void *user)
{
    struct bench *b = user;

    helped++;
    if (helped == 3) {
        script_end(&b->disk, 0, 0);
    }
    return true;
}

static void poll_that_would_sleep_helps_first(void **state)
{
    struct bench b;
    struct done done;

    (void)state;
    bench_open(&b, NULL, true);
    b.disk.hold = EVERY;
    b.rig.ctx->helper = (struct helper){.user = &b, .help = help};
    helped = 0;
    flush(&b, &done);
    assert_int_equal(blkrepl_poll(b.rig.ctx, 0, 0), 0);
    assert_int_equal(helped, 0); /* it was not going to sleep */
    assert_int_equal(blkrepl_poll(b.rig.ctx, 0, BLKREPL_FOREVER), 1);
    assert_int_equal(helped, 3);
    done_assert(&done, 0);
    bench_close(&b);
}

static bool help_by_completing(void *user)
{
    struct bench *b = user;

    if (b->disk.waiting_count > 0) {
        script_end(&b->disk, 0, 0);
    }
    return false;
}

/* What happens after the last look, before the poll sleeps, is not slept over. */
static void poll_does_not_sleep_over_what_came_at_the_last_moment(void **state)
{
    struct bench b;
    struct done done;

    (void)state;
    bench_open(&b, NULL, true);
    b.disk.hold = EVERY;
    b.rig.ctx->helper = (struct helper){.user = &b, .help = help_by_completing};
    flush(&b, &done);
    assert_int_equal(blkrepl_poll(b.rig.ctx, 0, BLKREPL_FOREVER), 1);
    done_assert(&done, 0);
    bench_close(&b);
}

struct alarm {
    struct timer timer;
    struct event_slot slot;
    blkrepl_context *ctx;
};

static void alarm_expired(struct timer *timer)
{
    struct alarm *alarm = CONTAINER_OF(timer, struct alarm, timer);

    blkrepl__context_post(alarm->ctx, 0, &alarm->slot, &(blkrepl_event){.type = 1});
}

static void alarm_set(struct alarm *alarm, struct bench *b, uint64_t after_ns)
{
    memset(alarm, 0, sizeof *alarm);
    alarm->ctx = b->rig.ctx;
    pthread_mutex_lock(&alarm->ctx->lock);
    blkrepl__timer_init(&alarm->ctx->timers, &alarm->timer, alarm_expired);
    blkrepl__timer_set(&alarm->ctx->timers, &alarm->timer, blkrepl__now(alarm->ctx) + after_ns);
    pthread_mutex_unlock(&alarm->ctx->lock);
}

/* A job's deadline ends the sleep, however long the host would have waited. */
static void blocking_poll_wakes_for_a_deadline(void **state)
{
    static const uint64_t timeouts[] = {BLKREPL_FOREVER, BLKREPL_FOREVER - 1, 1000 * SECOND};
    struct alarm alarm;
    struct bench b;

    (void)state;
    bench_open(&b, NULL, true);
    for (unsigned i = 0; i < 3; i++) {
        uint64_t before;

        alarm_set(&alarm, &b, 3000000);
        before = alarm.timer.deadline_ns;
        assert_int_equal(blkrepl_poll(b.rig.ctx, 0, timeouts[i]), 1);
        assert_true(blkrepl_context_now(b.rig.ctx) >= before);
        assert_int_equal(b.rig.event_count, i + 1);
    }
    bench_close(&b);
}

static struct alarm late;

static bool help_too_long(void *user)
{
    if (late.ctx == NULL) {
        alarm_set(&late, user, 0);
    }
    return false;
}

/* While it helped, the deadline went by. */
static void poll_does_not_sleep_when_the_deadline_is_past(void **state)
{
    struct bench b;

    (void)state;
    bench_open(&b, NULL, true);
    b.rig.ctx->helper = (struct helper){.user = &b, .help = help_too_long};
    memset(&late, 0, sizeof late);
    assert_int_equal(blkrepl_poll(b.rig.ctx, 0, BLKREPL_FOREVER), 1);
    assert_int_equal(b.rig.event_count, 1);
    bench_close(&b);
}

/* A job that never comes to rest does not keep context_free. */
static void drain_of_what_never_ends_gives_up(void **state)
{
    struct bench b;
    struct numbered eager = {.machine = {.step = note_step}};

    (void)state;
    bench_open(&b, NULL, false);
    eager.ctx = b.rig.ctx;
    step_again = true;
    step_count = 0;
    blkrepl__machine_wake(b.rig.ctx, &eager.machine);
    assert_int_equal(blkrepl_context_free(b.rig.ctx), -EBUSY);
    assert_in_range(step_count, 2, 1000000);
    step_again = false;
    rig_poll(&b.rig);
    bench_close(&b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(poll_runs_at_most_callbacks_max_and_says_how_many),
        cmocka_unit_test(poll_counts_events_among_its_callbacks),
        cmocka_unit_test(poll_is_refused_inside_the_host_s_code),
        cmocka_unit_test(poll_refuses_bad_arguments),
        cmocka_unit_test(poll_by_a_second_thread_is_busy),
        cmocka_unit_test(arm_says_poll_when_there_is_work),
        cmocka_unit_test(descriptor_is_signalled_only_when_armed_and_until_the_next_poll),
        cmocka_unit_test(descriptor_is_signalled_for_what_a_call_leaves_to_the_poll),
        cmocka_unit_test(descriptor_is_signalled_when_an_earlier_deadline_appears),
        cmocka_unit_test(descriptor_that_was_signalled_late_costs_one_idle_round),
        cmocka_unit_test(wake_makes_this_or_the_next_poll_return),
        cmocka_unit_test(blocking_poll_returns_with_the_completion_or_at_its_time),
        cmocka_unit_test(poll_steps_machines_in_turn_and_a_bounded_number),
        cmocka_unit_test(poll_delivers_log_lines_before_it_returns),
        cmocka_unit_test(poll_delivers_a_bounded_number_of_log_lines),
        cmocka_unit_test(callback_that_is_alone_is_decided_after_those_before_it_ran),
        cmocka_unit_test(poll_that_would_sleep_helps_first),
        cmocka_unit_test(poll_does_not_sleep_over_what_came_at_the_last_moment),
        cmocka_unit_test(blocking_poll_wakes_for_a_deadline),
        cmocka_unit_test(poll_does_not_sleep_when_the_deadline_is_past),
        cmocka_unit_test(drain_of_what_never_ends_gives_up),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
