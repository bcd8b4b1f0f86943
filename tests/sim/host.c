/* SPDX-License-Identifier: MIT */
/* host.c - the host: its hooks, its context, its clock, its polls. */
#include "sim.h"

#include "base/hook.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef unsigned long long ull;

/* ---- Hooks ------------------------------------------------------------------- */

static bool allocation_fails(void)
{
    EXPECT(!sim.gone && sim.may_allocate, "memory is asked for outside of a create, open or start");
    if (!rng_chance(sim.options.alloc_fail_percent)) {
        sim.live_blocks++;
        return false;
    }
    sim.alloc_failed = true;
    sim.counts.alloc_failures++;
    return true;
}

static void *hook_alloc(void *user, size_t bytes)
{
    (void)user;
    return allocation_fails() ? NULL : malloc(bytes > 0 ? bytes : 1);
}

static void *hook_zalloc(void *user, size_t bytes)
{
    (void)user;
    return allocation_fails() ? NULL : calloc(1, bytes > 0 ? bytes : 1);
}

/* What is freed is spoiled first: who still reads it is found out. */
static void hook_free(void *user, void *memory)
{
    (void)user;
    EXPECT(!sim.gone, "memory is freed after context_free");
    sim.live_blocks -= memory != NULL;
    free(memory);
}

static void *hook_realloc(void *user, void *memory, size_t bytes)
{
    (void)user;
    if (allocation_fails()) {
        return NULL;
    }
    sim.live_blocks -= memory != NULL;
    return realloc(memory, bytes > 0 ? bytes : 1);
}

static void *hook_buffer_alloc(void *user, size_t align, size_t bytes)
{
    void *memory = NULL;

    (void)user;
    align = align < sizeof(void *) ? sizeof(void *) : align;
    if (allocation_fails() || posix_memalign(&memory, align, bytes > 0 ? bytes : 1) != 0) {
        return NULL;
    }
    return memory;
}

static void hook_buffer_free(void *user, void *memory, size_t bytes)
{
    (void)bytes;
    hook_free(user, memory);
}

static uint64_t hook_clock(void *user)
{
    (void)user;
    if (sim.options.clock_jumps && rng_chance(10)) {
        return sim.now_ns - rng_below(sim.now_ns);
    }
    sim.last_now_ns = sim.now_ns;
    return sim.now_ns;
}

static int hook_entropy(void *user, void *out, size_t bytes)
{
    uint8_t *byte = out;

    (void)user;
    while (bytes-- > 0) {
        *byte++ = (uint8_t)rng_next();
    }
    return 0;
}

static void hook_log(void *user, uint32_t level, const char *line)
{
    (void)user;
    EXPECT(!sim.gone && level >= BLKREPL_LOG_ERROR && level <= BLKREPL_LOG_DEBUG &&
               lanes_in_poll(0),
           "a bad log line");
    if (sim.trace) {
        printf("        log: %s\n", line);
    }
    inside(INSIDE_LOG);
}

static void sink_event(void *user, const blkrepl_event *event)
{
    struct being outer;

    EXPECT(user == &sim && !sim.gone && sim.depth > 0, "an event at the wrong time");
    EVENT("event %e of %k %n: %r", event->type, event->object_kind, event->object_id,
          NEGATED(event->error));
    sim.callbacks++;
    sim.callback_depth++;
    outer = lanes_enter(DOING_HOST, 0);
    if (event->type == BLKREPL_EVENT_ROOM) {
        EXPECT(event->object_kind == BLKREPL_OBJECT_LANE &&
                   event->object_id < sim.options.context.lane_count &&
                   lanes_in_poll((uint32_t)event->object_id),
               "a bad ROOM");
        sim.room_expected[event->object_id] = false;
    } else {
        EXPECT(event->object_kind == BLKREPL_OBJECT_JOB && lanes_in_poll(0), "a bad event");
        backup_event(event);
    }
    sim_reenter();
    sim.entry = outer;
    sim.callback_depth--;
}

static void sink_release(void *user)
{
    (void)user;
    EXPECT(!sim.gone && sim.sink_releases == 0, "the sink is released twice");
    sim.sink_releases++;
}

/* ---- What it does at random ---------------------------------------------------- */

static void clock_advance(void)
{
    static const uint64_t steps[] = {1000, 1000000, 100000000, SECOND_NS, 40 * SECOND_NS};

    sim.now_ns += rng_below(steps[rng_below(rng_chance(10) ? 5 : 4)]);
    EVENT("clock: %n", sim.now_ns);
}

static void close_act(void)
{
    struct disk *disk = &sim.disks[rng_below(sim.options.disks)];

    if (disk->image != NULL) {
        disk_close_handle(disk);
    }
}

/* ---- Holding the library back ------------------------------------------------ */

static const char *const site_names[STRETCH_SITE_COUNT] = {
    [STRETCH_INBOX] = "inbox",
    [STRETCH_READY] = "ready",
    [STRETCH_COMPLETED] = "completed",
    [STRETCH_ADVANCE] = "advance",
    [STRETCH_TIMER] = "timer",
    [STRETCH_OUTBOX] = "outbox",
    [STRETCH_CLOSE] = "close",
    [STRETCH_BATCH] = "batch",
    [STRETCH_MACHINE] = "machine",
    [STRETCH_POLL] = "poll",
    [STRETCH_CALLBACK] = "callback",
    [STRETCH_EVENT] = "event",
    [STRETCH_QUICK] = "quick",
    [STRETCH_QUICK_AGAIN] = "quick-again",
    [STRETCH_GUEST_START] = "guest-start",
    [STRETCH_GUEST_STEP] = "guest-step",
    [STRETCH_GUEST_ALONE] = "guest-alone",
    [STRETCH_BOUNCE] = "bounce",
    [STRETCH_GO] = "go",
    [STRETCH_COPY_CLAIM] = "copy-claim",
    [STRETCH_COPY_PUMP] = "copy-pump",
    [STRETCH_COPY_PROBE] = "copy-probe",
    [STRETCH_COPY_HELD] = "copy-held",
    [STRETCH_SNAPSHOT_WAIT] = "snapshot-wait",
    [STRETCH_BACKUP_STATE] = "backup-state",
    [STRETCH_THROTTLE] = "throttle",
    [STRETCH_VERIFY_CLAIM] = "verify-claim",
    [STRETCH_VERIFY_PUMP] = "verify-pump",
    [STRETCH_VERIFY_STATE] = "verify-state",
};

/* Some of the places in some of the runs, so that depth is reached.  Drawn in
 * every build, so that a seed means the same in all of them. */
static void stretch_draw(void)
{
    bool any = rng_chance(50) && !sim_without(FAULT_STRETCH);

    for (uint32_t site = 0; site < STRETCH_SITE_COUNT; site++) {
        uint32_t percent = rng_chance(25) ? (uint32_t)rng_between(1, 60) : 0;

        sim.stretch[site] = any ? (uint8_t)percent : 0;
    }
}

#ifdef BLKREPL_HOOKS
static bool stretch(enum stretch_site site)
{
    if (sim.stretch[site] == 0 || rng_aside(100) >= sim.stretch[site]) {
        return false;
    }
    sim.counts.stretches++;
    return true;
}

static void stretch_install(void)
{
    for (uint32_t site = 0; site < STRETCH_SITE_COUNT; site++) {
        sim.stretched = sim.stretched || sim.stretch[site] > 0;
    }
    blkrepl__stretch_hook = sim.stretched ? stretch : NULL;
}
#else
static void stretch_install(void)
{
}
#endif

/* ---- The context -------------------------------------------------------------- */

static void host_draw(void)
{
    struct sim_options *o = &sim.options;
    blkrepl_context_options *c = &o->context;

    o->reenter_percent = rng_chance(60) ? 0 : (uint32_t)rng_between(1, 25);
    o->misuse_percent = rng_chance(80) ? 0 : (uint32_t)rng_between(1, 10);
    o->close_percent = rng_chance(85) ? 0 : (uint32_t)rng_between(1, 4);
    o->alloc_fail_percent = rng_chance(90) ? 0 : (uint32_t)rng_between(1, 30);
    o->early_shutdown = rng_chance(10) && !sim_without(FAULT_SHUTDOWN);
    o->clock_jumps = rng_chance(10) && !sim_without(FAULT_JUMPS);
    c->struct_size = sizeof *c;
    c->requests_max = (uint32_t)(rng_chance(25) ? rng_between(1, 4) : rng_between(8, 64));
    c->job_requests_max = (uint32_t)(rng_chance(12) ? rng_between(1, 16) : rng_between(64, 256));
    c->callbacks_max = rng_chance(30) ? (uint32_t)rng_between(1, 4) : 0;
    c->completions_max = rng_chance(30) ? (uint32_t)rng_between(1, 4) : 0;
    c->copies_max = rng_chance(30) ? (uint32_t)rng_between(1, 4) : 0;
    c->memory_bytes_max = rng_chance(3) ? rng_between(1, 1u << 20) : 0;
    sim_actor(rng_chance(30) ? 0 : (uint32_t)rng_between(1, 5), false, clock_advance);
    sim_actor(sim_without(FAULT_CLOSE) ? 0 : o->close_percent, false, close_act);
    stretch_draw();
    stretch_install();
    o->reenter_percent *= !sim_without(FAULT_REENTRY);
    o->misuse_percent *= !sim_without(FAULT_MISUSE);
    o->alloc_fail_percent *= !sim_without(FAULT_MEMORY);
    c->memory_bytes_max *= !sim_without(FAULT_MEMORY);
    if (sim_without(FAULT_BOUNDS)) {
        *c = (blkrepl_context_options){.struct_size = sizeof *c, .requests_max = 64};
    }
}

static void host_open(void)
{
    blkrepl_allocator allocator = {.struct_size = sizeof allocator,
                                   .alloc = hook_alloc,
                                   .zalloc = hook_zalloc,
                                   .realloc = hook_realloc,
                                   .free = hook_free,
                                   .buffer_alloc = hook_buffer_alloc,
                                   .buffer_free = hook_buffer_free};
    blkrepl_hooks hooks = {.struct_size = sizeof hooks,
                           .clock_ns = hook_clock,
                           .entropy = hook_entropy,
                           .log = hook_log};
    blkrepl_context_options options = sim.options.context;
    int answer;

    options.allocator = &allocator;
    options.hooks = &hooks;
    options.on_event =
        (blkrepl_event_sink){.fn = sink_event, .user = &sim, .release = sink_release};
    for (;;) {
        sim.may_allocate = true;
        sim.alloc_failed = false;
        sim.sink_releases = 0;
        answer = blkrepl_context_create(&options, &sim.ctx);
        sim.may_allocate = false;
        if (answer != -ENOMEM) {
            break;
        }
        EXPECT(sim.alloc_failed && sim.live_blocks == 0 && sim.sink_releases == 1,
               "a failed context_create leaves something behind");
        sim.options.alloc_fail_percent /= 2;
    }
    EXPECT(answer == 0, "context_create answered %d: %s", answer, blkrepl_error_message());
}

static void host_list(void)
{
    const struct sim_options *o = &sim.options;

    printf(
        "host: calls from inside %u%%, misuse %u%%, memory fails %u%%, shutdown in the middle %d, "
        "clock jumps %d\n",
        o->reenter_percent, o->misuse_percent, o->alloc_fail_percent, o->early_shutdown,
        o->clock_jumps);
    for (uint32_t site = 0; site < STRETCH_SITE_COUNT; site++) {
        if (sim.stretch[site] > 0) {
            printf("stretch: %s %u%%\n", site_names[site], sim.stretch[site]);
        }
    }
    printf("context: requests_max %u, job_requests_max %u, callbacks_max %u, completions_max %u, "
           "copies_max %u, memory_bytes_max %" PRIu64 "\n",
           o->context.requests_max, o->context.job_requests_max, o->context.callbacks_max,
           o->context.completions_max, o->context.copies_max, o->context.memory_bytes_max);
}

const struct part host_part = {.draw = host_draw, .open = host_open, .list = host_list};
