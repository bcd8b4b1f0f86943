/* SPDX-License-Identifier: MIT */
/* world.c - one run.
 *
 * A run opens the disks, goes through a safety phase (everything at random, with
 * faults), mostly through a phase in which the guest must get on without any
 * target, then heals the disks and demands that everything ends (liveness), and
 * frees the context. */
#include "sim.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef unsigned long long ull;

struct sim sim;
void (*sim_on_failure)(const char *format);

/* The contract before the disks: while these are opened, a ghost may be. */
static const struct part *const parts[] = {
    &host_part,  &lanes_part,  &contract_part, &disk_part,     &guest_part, &backup_part,
    &power_part, &misuse_part, &bitmap_part,   &throttle_part, &jobs_part,  &snapshot_part};

#define PARTS (sizeof parts / sizeof parts[0])

/* Streams of chance that are not those of a step. */
enum stream {
    STREAM_DRAW = STEPS_MAX,
    STREAM_LATE,
    STREAM_ASIDE
};

bool sim_without(enum fault fault)
{
    return (sim.plan.without >> fault & 1) != 0;
}

void sim_actor(uint32_t weight, bool outside, void (*act)(void))
{
    EXPECT(sim.actor_count < ACTORS_MAX, "too many actors");
    sim.actors[sim.actor_count++] =
        (struct actor){.weight = weight, .outside = outside, .act = act};
}

void world_act(bool inside)
{
    uint32_t total = 0;
    uint64_t draw;

    for (uint32_t i = 0; i < sim.actor_count; i++) {
        total += inside && sim.actors[i].outside ? 0 : sim.actors[i].weight;
    }
    draw = rng_below(total);
    for (uint32_t i = 0; i < sim.actor_count; i++) {
        uint32_t weight = inside && sim.actors[i].outside ? 0 : sim.actors[i].weight;

        if (draw < weight) {
            sim.actors[i].act();
            return;
        }
        draw -= weight;
    }
}

/* ---- What every part does ------------------------------------------------------ */

static void watch(void)
{
    for (size_t i = 0; i < PARTS; i++) {
        if (parts[i]->watch != NULL) {
            parts[i]->watch();
        }
    }
}

/* The parts of the host go on, without faults; false: there is nothing to do. */
static bool move(void)
{
    bool moved = false;

    for (size_t i = 0; i < PARTS; i++) {
        moved = (parts[i]->move != NULL && parts[i]->move()) || moved;
    }
    moved = lanes_poll_all() > 0 || moved;
    watch();
    return moved;
}

/* Is anything left that must end by itself? */
static bool unfinished(void)
{
    for (size_t i = 0; i < PARTS; i++) {
        if (parts[i]->unfinished != NULL && parts[i]->unfinished()) {
            return true;
        }
    }
    return false;
}

static void close_handles(uint32_t percent)
{
    for (size_t i = PARTS; i-- > 0;) {
        if (parts[i]->close != NULL) {
            parts[i]->close(percent);
        }
    }
}

/* ---- The phases ----------------------------------------------------------------- */

static void phase_safety(void)
{
    for (uint32_t i = 0; i < sim.options.steps; i++) {
        if (sim.plan.left_out[i] != 0) {
            continue;
        }
        chance_stream(i);
        chance_bitmaps_stream(i);
        chance_jobs_stream(i);
        world_act(false);
        bitmap_step();
        jobs_step();
        watch();
        EXPECT(blkrepl_context_now(sim.ctx) <= sim.now_ns, "the clock is ahead");
    }
}

/* It has to do with guests: a source, or a spill image. */
static bool is_local(const struct disk *disk)
{
    const struct backup *user = disk_is_source(disk) ? NULL : oracle_user_of(disk);

    return disk_is_source(disk) || (user != NULL && user->spill == disk);
}

/* The guest comes first: no target answers any more, yet its requests end. */
static void phase_guest_first(void)
{
    uint32_t idle = 0;
    bool clock = false;
    bool target = false;

    backup_guest_needs(&clock, &target);
    if ((clock && target) || !throttle_raise()) {
        return;
    }
    EVENT("no target answers any more, clock %n", clock);
    for (uint32_t i = 0; i < sim.options.disks; i++) {
        if (is_local(&sim.disks[i])) {
            disk_heal(&sim.disks[i]);
        }
    }
    while (lanes_must_end(true) > 0) {
        uint64_t inside_submit = sim.counts.inline_completions;
        bool moved = guest_bracket_finish();

        for (uint32_t i = 0; i < sim.options.disks; i++) {
            moved = (is_local(&sim.disks[i]) && disk_progress(&sim.disks[i])) || moved;
        }
        moved = lanes_poll_all() > 0 || moved;
        moved = moved || sim.counts.inline_completions != inside_submit;
        watch();
        idle = moved ? 0 : idle + 1;
        sim.now_ns += !moved && clock ? 2 * SECOND_NS : 0;
        EXPECT(idle < 400, "no target answers: %u guest requests do not end either",
               lanes_must_end(true));
    }
}

static bool disks_busy(void)
{
    for (uint32_t i = 0; i < sim.options.disks; i++) {
        if (sim.disks[i].in_flight > 0) {
            return true;
        }
    }
    return false;
}

/* Nothing moves: go to the next deadline, if there is one. */
static void clock_to_deadline(uint32_t idle)
{
    uint64_t deadline = lanes_deadline();

    if (deadline == 0) {
        EXPECT(idle < 200, "liveness: poll_arm promises work, polls find none");
        return;
    }
    EXPECT(deadline != BLKREPL_FOREVER && idle < 5000,
           "liveness: stuck with %u guest requests of %u", lanes_must_end(false), sim.pending);
    EVENT("clock: %n, deadline %n", sim.now_ns, deadline);
    sim.now_ns = deadline > sim.now_ns ? deadline : sim.now_ns + 1;
}

/* No more faults, no more work: everything must end. */
static void phase_liveness(void)
{
    uint32_t idle = 0;

    for (size_t i = 0; i < PARTS; i++) {
        if (parts[i]->resume != NULL) {
            parts[i]->resume();
        }
    }
    for (uint32_t polls = 0; unfinished(); polls++) {
        uint64_t inside_submit = sim.counts.inline_completions;
        bool moved = move() || sim.counts.inline_completions != inside_submit;

        idle = moved || disks_busy() ? 0 : idle + 1;
        if (idle > 3) {
            clock_to_deadline(idle);
        }
        EXPECT(polls < (sim.unpolled == LANE_NONE ? 100000 : 2000000), "liveness: no end");
    }
}

static bool context_try_free(void)
{
    struct being outer = lanes_enter(DOING_FREE, 0);
    int answer;

    sim.shutdown = true;
    sim.freeing = true;
    sim.depth++;
    answer = blkrepl_context_free(sim.ctx);
    sim.depth--;
    sim.freeing = false;
    sim.entry = outer;
    EVENT("context_free: %r", NEGATED(answer));
    EXPECT(answer == 0 || blkrepl_error_message()[0] != '\0', "context_free answered %d", answer);
    return answer == 0;
}

static void heal(void)
{
    for (uint32_t i = 0; i < sim.options.disks; i++) {
        disk_heal(&sim.disks[i]);
    }
}

/* Free the context, whatever is still going on in it; all lanes are polled now, or
 * one of them is by the free only. */
static void phase_free(void)
{
    uint32_t unpolled = sim.unpolled;

    sim.unpolled = rng_chance(50) ? LANE_NONE : unpolled;
    for (uint32_t tries = 0; !context_try_free(); tries++) {
        bool moved = move();

        close_handles(tries > 20 ? 100 : 30);
        sim.now_ns += moved ? 0 : 1000;
        if (tries > 10) {
            heal();
        }
        EXPECT(tries < 20000, "context_free: -EBUSY for ever: %s", blkrepl_error_message());
    }
    sim.unpolled = unpolled;
    sim.gone = true;
}

static void phase_end(void)
{
    EXPECT(sim.live_blocks == 0, "%lld blocks of memory leak", (long long)sim.live_blocks);
    EXPECT(sim.sink_releases == 1, "the sink is not released");
    for (size_t i = 0; i < PARTS; i++) {
        if (parts[i]->end != NULL) {
            parts[i]->end();
        }
    }
}

void world_shut_down(void)
{
    phase_free();
    phase_end();
}

void world_open(void)
{
    for (size_t i = 0; i < PARTS; i++) {
        if (parts[i]->open != NULL) {
            parts[i]->open();
        }
    }
}

/* ---- One run ------------------------------------------------------------------ */

static void reset(const struct sim_plan *plan, bool trace)
{
    struct counts counts = sim.counts;
    bool story = sim.story;
    uint8_t *arena = sim.arena;
    uint64_t state = plan->seed ^ STREAM_ASIDE;

    memset(&sim, 0, offsetof(struct sim, disks));
    oracle_verify_reset();
    sim.request_count = 0;
    sim.active_count = 0;
    sim.backup_count = 0;
    sim.group_count = 0;
    memset(sim.image_throttles, 0, sizeof sim.image_throttles);
    memset(sim.snapshots, 0, sizeof sim.snapshots);
    memset(sim.throttles, 0, sizeof sim.throttles);
    sim.arena_used = 0;
    for (uint32_t i = 0; i < BITMAPS_MAX; i++) {
        sim.bitmaps[i].used = false;
        sim.bitmaps[i].for_jobs = false;
        sim.bitmaps[i].calling = 0;
        sim.bitmaps[i].begun = 0;
        sim.bitmaps[i].holder = 0;
    }
    sim.arena = arena;
    sim.counts = counts;
    sim.plan = *plan;
    sim.bytes = plan->bytes;
    sim.bytes_left = plan->byte_count;
    sim.rng_aside = state;
    sim.trace = trace;
    sim.story = story;
    sim.now_ns = 1000 * SECOND_NS;
    chance_stream(STREAM_DRAW);
    chance_bitmaps_stream(STREAM_DRAW);
    chance_jobs_stream(STREAM_DRAW);
}

static void draw(void)
{
    sim.options.steps = (uint32_t)rng_between(20, rng_chance(20) ? 400 : 150);
    sim.options.sources = rng_chance(20) ? 2 : 1;
    sim.options.disks = sim.options.sources + (uint32_t)rng_between(1, DISKS_MAX - SOURCES_MAX);
    sim.options.guest_first = rng_chance(50);
    for (size_t i = 0; i < PARTS; i++) {
        parts[i]->draw();
    }
    world_open();
}

void sim_run(const struct sim_plan *plan, bool trace)
{
    reset(plan, trace);
    draw();
    phase_safety();
    chance_stream(STREAM_LATE);
    chance_bitmaps_stream(STREAM_LATE);
    chance_jobs_stream(STREAM_LATE);
    sim.quiet = true;
    if (!sim.options.early_shutdown) {
        backup_check_cancelled();
        if (sim.options.guest_first) {
            phase_guest_first();
        }
        heal();
        lanes_sleep(sim.options.sleepy);
        phase_liveness();
        if (sim.unpolled != LANE_NONE && rng_chance(70)) {
            EVENT("lane %n is polled after all", sim.unpolled);
            sim.unpolled = LANE_NONE;
            phase_liveness();
        }
        lanes_sleep(false);
        close_handles(100);
    }
    world_shut_down();
    sim.counts.seeds++;
    sim.counts.events += sim.seq;
}

void sim_run_bytes(const uint8_t *bytes, size_t count)
{
    static struct sim_plan plan;
    uint64_t hash = UINT64_C(0xcbf29ce484222325);

    for (size_t i = 0; i < count; i++) {
        hash = (hash ^ bytes[i]) * UINT64_C(0x100000001b3);
    }
    plan = (struct sim_plan){.seed = hash, .bytes = bytes, .byte_count = count};
    sim_run(&plan, false);
}

void sim_list_options(void)
{
    printf("steps %u, then without targets: %d\n", sim.options.steps, sim.options.guest_first);
    for (size_t i = 0; i < PARTS; i++) {
        if (parts[i]->list != NULL) {
            parts[i]->list();
        }
    }
}

void sim_setup(void)
{
    sim.arena = aligned_alloc(4096, ARENA_BYTES);
    if (sim.arena == NULL) {
        fprintf(stderr, "no memory\n");
        exit(2);
    }
    pattern_init();
}
