/* SPDX-License-Identifier: MIT */
/* live.c - one run with real threads: guests, each on a lane, and the control thread.
 *
 * The same steps are taken by a single thread in some runs, which then have one
 * order of everything and must replay to exactly the same answers. */
#include "marks.h"
#include "shared.h"
#include "threads.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

/* ---- Control ------------------------------------------------------------------- */

static int live_free(void)
{
    struct entry *entry = record_call(ENTRY_FREE, 0, 0, 0, 0, 0);
    int answer;

    atomic_store(&world.shut, true);
    me->polls_lane = LANE_ANY;
    answer = record_answer(entry, blkrepl_context_free(world.ctx));
    me->polls_lane = UINT32_MAX;
    MUST(answer == 0 || answer == -EBUSY, "context_free answered %d", answer);
    return answer;
}

/* An image that nobody else uses comes and goes. */
static void open_and_close(void)
{
    blkrepl_image *image;
    int answer = blkrepl_image_open_memory(world.ctx, 65536, NULL, &image);

    MUST(answer == 0 || (answer == -ESHUTDOWN && atomic_load(&world.shut)), "open answered %d",
         answer);
    blkrepl_image_close(image);
}

static void control_step(bool wait)
{
    uint64_t *rng = &me->rng;
    uint64_t draw = dice_below(rng, 100);

    if (world.plan.host_clock) {
        atomic_fetch_add_explicit(&world.now_ns, dice_below(rng, 200000), memory_order_relaxed);
    }
    if (draw < 8) {
        job_create(rng);
    } else if (draw < 20) {
        job_verb(rng);
    } else if (draw < 22) {
        live_wake((uint32_t)dice_below(rng, world.plan.lanes + 1));
    } else if (draw < 23 && !world.plan.one_thread) {
        open_and_close();
    } else if (draw < 24 && world.plan.shut_early && dice_chance(rng, 10)) {
        live_free();
    } else if (draw < 34 && world.plan.one_thread) {
        marks_step(rng);
    } else if (draw < 30 && wait) {
        live_sleep(0, 1);
        live_poll(0, 0);
    } else {
        live_poll(0, wait && !world.plan.host_clock ? 1000000 : 0);
    }
}

static void close_images(void)
{
    for (uint32_t i = 0; i < world.plan.disks; i++) {
        struct entry *entry = record_call(ENTRY_CLOSE, 0, i, 0, 0, 0);

        blkrepl_image_close(world.disks[i].image);
        record_answer(entry, 0);
    }
}

static void wind_up(bool one)
{
    for (uint32_t i = 0; !job_wind_up(); i++) {
        if (world.plan.host_clock) {
            atomic_fetch_add_explicit(&world.now_ns, 100000, memory_order_relaxed);
        }
        if (one) {
            vdisk_complete_one(&me->rng);
        }
        live_poll(0, world.plan.host_clock ? 0 : 1000000);
        /* Reads that a guest's write needed may still be on their lanes. */
        live_poll(i % (world.plan.lanes + 1), 0);
    }
    marks_finish();
    close_images();
    marks_free_last();
    while (live_free() != 0) {
        if (one) {
            vdisk_complete_one(&me->rng);
        }
        live_poll(0, world.plan.host_clock ? 0 : 1000000);
    }
}

/* ---- The run ------------------------------------------------------------------- */

static uint64_t host_clock(void *user)
{
    (void)user;
    return atomic_load_explicit(&world.now_ns, memory_order_relaxed);
}

static void sink_release(void *user)
{
    (void)user;
    atomic_fetch_add(&world.sink_releases, 1);
}

static void open_world(void)
{
    blkrepl_hooks hooks = {.struct_size = sizeof hooks};
    blkrepl_context_options options = world.plan.context;
    int answer;

    hooks.clock_ns = world.plan.host_clock ? host_clock : NULL;
    options.hooks = &hooks;
    options.on_event = (blkrepl_event_sink){.fn = job_event, .release = sink_release};
    answer = blkrepl_context_create(&options, &world.ctx);
    MUST(answer == 0, "context_create answered %d: %s", answer, blkrepl_error_message());
    for (uint32_t i = 0; i < world.plan.disks; i++) {
        vdisk_reset(&world.disks[i], i, &world.plan.disk[i]);
        answer = vdisk_open(&world.disks[i]);
        MUST(answer == 0, "open answered %d: %s", answer, blkrepl_error_message());
    }
    marks_reset();
}

static void reset(void)
{
    for (uint32_t i = 0; i < OPS_MAX; i++) {
        struct op *op = &world.ops[i];

        free(op->buffer);
        memset(op, 0, sizeof *op);
        op->cancel_answer = NOT_CANCELLED;
        atomic_init(&op->state, OP_NONE);
        atomic_init(&op->keep, KEEP_NONE);
        atomic_init(&op->callbacks, 0);
        atomic_init(&op->releases, 0);
    }
    for (uint32_t i = 0; i < JOBS_MAX; i++) {
        free(world.jobs[i].content);
        memset(&world.jobs[i], 0, sizeof world.jobs[i]);
        atomic_init(&world.jobs[i].done, false);
        atomic_init(&world.jobs[i].releases, 0);
    }
    world.job_count = 0;
    world.op_count = world.plan.guests * world.plan.ops;
    atomic_store(&world.stamps, 1);
    atomic_store(&world.now_ns, UINT64_C(1000000000000));
    atomic_store(&world.guests_left, world.plan.guests);
    atomic_store(&world.shut, false);
    atomic_store(&world.policy, false);
    atomic_store(&world.sink_releases, 0);
    guest_reset();
}

/* All that happens is done by this thread. */
static void run_alone(void)
{
    bool over[GUESTS_MAX] = {false};
    uint32_t left = world.plan.guests;

    while (left > 0) {
        uint64_t draw = dice_below(&me->rng, 10);
        uint32_t guest = (uint32_t)dice_below(&me->rng, world.plan.guests);

        if (draw < 5 && !over[guest]) {
            over[guest] = !guest_step(guest, false);
            left -= over[guest];
        } else if (draw < 7) {
            vdisk_complete_one(&me->rng);
        } else {
            control_step(false);
        }
    }
    wind_up(true);
}

static void run_threads(void)
{
    pthread_t threads[GUESTS_MAX + COMPLETERS + 1];
    uint32_t guests = world.plan.guests;

    for (uint32_t i = 0; i < COMPLETERS; i++) {
        MUST(pthread_create(&threads[guests + i], NULL, vdisk_completer,
                            record_actor(guests + 1 + i)) == 0,
             "no thread");
    }
    for (uint32_t i = 0; i < guests; i++) {
        MUST(pthread_create(&threads[i], NULL, guest_thread, (void *)(uintptr_t)i) == 0,
             "no thread");
    }
    MUST(pthread_create(&threads[guests + COMPLETERS], NULL, marks_thread,
                        record_actor(guests + 1 + COMPLETERS)) == 0,
         "no thread");
    while (atomic_load(&world.guests_left) > 0) {
        control_step(true);
    }
    for (uint32_t i = 0; i < guests; i++) {
        pthread_join(threads[i], NULL);
    }
    pthread_join(threads[guests + COMPLETERS], NULL);
    wind_up(false);
    vdisk_completer_stop();
    for (uint32_t i = 0; i < COMPLETERS; i++) {
        pthread_join(threads[guests + i], NULL);
    }
}

void live_run(void)
{
    reset();
    record_begin(&world.plan);
    me = record_actor(world.plan.guests);
    open_world();
    if (world.plan.one_thread) {
        run_alone();
    } else {
        run_threads();
    }
    me = NULL;
}
