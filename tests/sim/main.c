/* SPDX-License-Identifier: MIT */
/* main.c - blkrepl-sim: one seed is one run.
 *
 * A run opens the disks, goes through a safety phase (everything at random, with
 * faults), mostly through a phase in which the guest must get on without any
 * target, then heals the disks and demands that everything ends (liveness), and
 * frees the context.
 */
#include "sim.h"

#include <errno.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

typedef unsigned long long ull;

struct sim sim;

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
    EXPECT(!sim.gone && level >= BLKREPL_LOG_ERROR && level <= BLKREPL_LOG_DEBUG, "a bad log line");
    if (sim.trace) {
        printf("        log: %s\n", line);
    }
}

static void sink_event(void *user, const blkrepl_event *event)
{
    EXPECT(user == &sim && !sim.gone && sim.depth > 0, "an event at the wrong time");
    EVENT("event %llu of %llu/%llu: -%llu", event->type, event->object_kind, event->object_id,
          (ull)-event->error);
    sim.callbacks++;
    sim.callback_depth++;
    if (event->type == BLKREPL_EVENT_ROOM) {
        EXPECT(event->object_kind == BLKREPL_OBJECT_LANE && event->object_id == 0, "a bad ROOM");
        sim.room_expected = false;
    } else {
        EXPECT(event->object_kind == BLKREPL_OBJECT_JOB, "a bad event");
        backup_event(event);
    }
    sim_reenter();
    sim.callback_depth--;
}

static void sink_release(void *user)
{
    (void)user;
    EXPECT(!sim.gone && sim.sink_releases == 0, "the sink is released twice");
    sim.sink_releases++;
}

/* ---- One run ------------------------------------------------------------------ */

static void draw_options(void)
{
    struct sim_options *o = &sim.options;
    blkrepl_context_options *c = &o->context;

    memset(o, 0, sizeof *o);
    o->steps = (uint32_t)rng_between(20, rng_chance(20) ? 400 : 150);
    o->sources = rng_chance(20) ? 2 : 1;
    o->disks = o->sources + (uint32_t)rng_between(1, DISKS_MAX - SOURCES_MAX);
    o->backups = rng_chance(5) ? 0 : (uint32_t)rng_between(1, rng_chance(70) ? 2 : BACKUPS_MAX);
    o->guest_weight = (uint32_t)rng_between(1, 30);
    o->beside_percent = rng_chance(40) ? 0 : (uint32_t)rng_between(1, 100);
    o->reenter_percent = rng_chance(60) ? 0 : (uint32_t)rng_between(1, 25);
    o->misuse_percent = rng_chance(80) ? 0 : (uint32_t)rng_between(1, 10);
    o->verb_weight = rng_chance(50) ? 0 : (uint32_t)rng_between(1, 6);
    o->clock_weight = rng_chance(30) ? 0 : (uint32_t)rng_between(1, 5);
    o->poll_weight = (uint32_t)rng_between(2, 30);
    o->disk_weight = (uint32_t)rng_between(2, 40);
    o->close_percent = rng_chance(85) ? 0 : (uint32_t)rng_between(1, 4);
    o->alloc_fail_percent = rng_chance(90) ? 0 : (uint32_t)rng_between(1, 30);
    o->long_writes_percent = rng_chance(85) ? 0 : (uint32_t)rng_between(1, 50);
    o->early_shutdown = rng_chance(10);
    o->guest_first = rng_chance(50);
    o->clock_jumps = rng_chance(10);
    c->struct_size = sizeof *c;
    c->requests_max = (uint32_t)(rng_chance(25) ? rng_between(1, 4) : rng_between(8, 64));
    c->job_requests_max = (uint32_t)(rng_chance(12) ? rng_between(1, 16) : rng_between(64, 256));
    c->callbacks_max = rng_chance(30) ? (uint32_t)rng_between(1, 4) : 0;
    c->completions_max = rng_chance(30) ? (uint32_t)rng_between(1, 4) : 0;
    c->copies_max = rng_chance(30) ? (uint32_t)rng_between(1, 4) : 0;
    c->memory_bytes_max = rng_chance(3) ? rng_between(1, 1u << 20) : 0;
}

static uint64_t draw_size(void)
{
    uint32_t kind = (uint32_t)rng_below(20);

    if (kind == 0) {
        return rng_chance(30) ? 0 : rng_below(4096);
    }
    if (kind < 12) {
        return rng_below(2) * rng_below(4096) + 4096 * rng_below(9);
    }
    return kind < 19 || rng_chance(80) ? rng_below(24 * 4096) : rng_below(DISK_BYTES_MAX - 65536);
}

static void draw_disks(void)
{
    uint64_t largest = 0;

    for (uint32_t i = 0; i < sim.options.disks; i++) {
        uint64_t bytes = draw_size();

        if (i < sim.options.sources) {
            largest = bytes > largest ? bytes : largest;
        } else {
            bytes = largest + (rng_chance(50) ? rng_below(20000) : 0);
        }
        memset(&sim.disks[i], 0, offsetof(struct disk, volatile_writes));
        disk_draw(&sim.disks[i], i, bytes);
    }
}

static void context_open(void)
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

static int poll_once(void)
{
    int answer;

    sim.callbacks = 0;
    sim.depth++;
    answer = blkrepl_poll(sim.ctx, 0, 0);
    sim.depth--;
    EVENT("poll: %llu", (ull)(uint32_t)answer);
    EXPECT(answer >= 0 && (uint32_t)answer >= sim.callbacks, "poll answered %d, %u callbacks",
           answer, sim.callbacks);
    EXPECT(sim.options.context.callbacks_max == 0 ||
               sim.callbacks <= sim.options.context.callbacks_max,
           "%u callbacks in one poll", sim.callbacks);
    return answer;
}

static void clock_advance(void)
{
    static const uint64_t steps[] = {1000, 1000000, 100000000, SECOND_NS, 40 * SECOND_NS};

    sim.now_ns += rng_below(steps[rng_below(rng_chance(10) ? 5 : 4)]);
    EVENT("clock: %llu", sim.now_ns);
}

static void close_image(struct disk *disk)
{
    blkrepl_image *image = disk->image;

    EVENT("image %llu: close", disk->index);
    disk->image = NULL;
    blkrepl_image_close(image);
}

static void any_act(bool inside)
{
    const struct sim_options *o = &sim.options;
    uint32_t weights[] = {o->guest_weight,
                          o->beside_percent / 4,
                          o->disk_weight,
                          o->verb_weight,
                          o->clock_weight,
                          2,
                          inside ? 0 : o->poll_weight};
    uint32_t total = 0;
    uint32_t kind = 0;
    uint64_t draw;

    for (uint32_t i = 0; i < 7; i++) {
        total += weights[i];
    }
    for (draw = rng_below(total); draw >= weights[kind]; kind++) {
        draw -= weights[kind];
    }
    switch (kind) {
    case 0: guest_act(); break;
    case 1: guest_bracket_act(); break;
    case 2: disk_progress(&sim.disks[rng_below(o->disks)]); break;
    case 3:
        if (sim.backup_count > 0) {
            backup_verb(&sim.backups[rng_below(sim.backup_count)]);
        }
        break;
    case 4: clock_advance(); break;
    case 5: backup_act(); break;
    default: poll_once(); break;
    }
    if (rng_chance(o->close_percent)) {
        struct disk *disk = &sim.disks[rng_below(o->disks)];

        if (disk->image != NULL) {
            close_image(disk);
        }
    }
}

/* From inside a callback or a backend: call the library again. */
void sim_reenter(void)
{
    if (sim.quiet || sim.reenter_depth > 1 || !rng_chance(sim.options.reenter_percent)) {
        return;
    }
    sim.reenter_depth++;
    sim.counts.reentries++;
    EVENT("inside: depth %llu", sim.reenter_depth);
    for (uint64_t i = rng_between(1, 3); i > 0; i--) {
        any_act(true);
    }
    if (rng_chance(5)) {
        EXPECT(blkrepl_poll(sim.ctx, 0, 0) == -EDEADLK, "a poll inside a callback");
    }
    sim.reenter_depth--;
}

static void phase_safety(void)
{
    for (uint32_t i = 0; i < sim.options.steps; i++) {
        uint64_t now;

        any_act(false);
        backup_watch();
        now = blkrepl_context_now(sim.ctx);
        EXPECT(now <= sim.now_ns, "the clock is ahead");
    }
}

/* A job that is being cancelled has told its target's backend. */
static void check_cancelled(void)
{
    for (int i = 0; i < 5; i++) {
        poll_once();
    }
    for (uint32_t i = 0; i < sim.backup_count; i++) {
        const struct backup *b = &sim.backups[i];

        bool latest = true;

        for (uint32_t n = i + 1; n < sim.backup_count; n++) {
            latest &= sim.backups[n].target != b->target || !sim.backups[n].started;
        }
        for (uint32_t n = 0; latest && b->started && b->cancel_asked && b->job != NULL &&
                             !b->done && b->target->has_cancel && n < b->target->in_flight;
             n++) {
            EXPECT(b->target->queue[n].told, "backup %u: id %llu was not cancelled", i,
                   (ull)b->target->queue[n].id);
        }
    }
}

/* Is anything left that must end by itself? */
static bool unfinished(void)
{
    bool left = sim.pending > 0;

    for (uint32_t i = 0; i < sim.backup_count; i++) {
        left |= !backup_over(&sim.backups[i]);
    }
    return left || sim.room_expected;
}

/* May a guest write have to wait for a target, or for ever? */
static void guest_needs(bool *clock, bool *target)
{
    for (uint32_t i = 0; i < sim.backup_count; i++) {
        const struct backup *b = &sim.backups[i];
        const blkrepl_backup_options *o = &b->options;
        uint64_t cluster = o->cluster_bytes == 0 ? 65536 : o->cluster_bytes;
        bool wide =
            b->source->info.cluster_bytes > cluster || b->target->info.cluster_bytes > cluster;

        if (!b->created || b->release_count > 0) {
            continue;
        }
        *clock |= o->on_cbw_error == BLKREPL_CBW_GUEST_WRITE_FAILS || wide ||
                  o->reserve_bytes < b->source->bytes + cluster || o->reserve_bytes == 0 ||
                  sim.options.context.job_requests_max < 64;
        *target |= o->cbw_timeout_ns == BLKREPL_FOREVER;
    }
}

/* The guest comes first: no target answers any more, yet its requests end. */
static void phase_guest_first(void)
{
    uint32_t idle = 0;
    bool clock = false;
    bool target = false;

    guest_needs(&clock, &target);
    if (clock && target) {
        return;
    }
    EVENT("guest first, clock %llu", clock);
    for (uint32_t i = 0; i < sim.options.sources; i++) {
        disk_heal(&sim.disks[i]);
    }
    while (sim.pending > 0) {
        bool moved = guest_bracket_finish();

        for (uint32_t i = 0; i < sim.options.sources; i++) {
            moved |= disk_progress(&sim.disks[i]);
        }
        moved |= poll_once() > 0;
        backup_watch();
        idle = moved ? 0 : idle + 1;
        sim.now_ns += !moved && clock ? 2 * SECOND_NS : 0;
        EXPECT(idle < 400, "no target answers: %u guest requests do not end either", sim.pending);
    }
}

static bool disks_move(void)
{
    bool moved = false;

    for (uint32_t i = 0; i < sim.options.disks; i++) {
        moved |= disk_progress(&sim.disks[i]);
    }
    return moved;
}

static bool disks_busy(void)
{
    bool busy = false;

    for (uint32_t i = 0; i < sim.options.disks; i++) {
        busy |= sim.disks[i].in_flight > 0;
    }
    return busy;
}

/* Nothing moves: go to the next deadline, if there is one. */
static void clock_to_deadline(uint32_t idle, const char *what)
{
    uint64_t deadline = 0;
    int answer = blkrepl_poll_arm(sim.ctx, 0, &deadline);

    EXPECT(answer == 0 || answer == 1, "poll_arm answered %d", answer);
    if (answer == 1) {
        EXPECT(idle < 200, "%s: poll_arm promises work, polls find none", what);
        return;
    }
    EXPECT(deadline != BLKREPL_FOREVER && idle < 5000,
           "%s: stuck with %u guest requests, ROOM owed: %d", what, sim.pending, sim.room_expected);
    EVENT("clock: %llu, deadline %llu", sim.now_ns, deadline);
    sim.now_ns = deadline > sim.now_ns ? deadline : sim.now_ns + 1;
}

/* No more faults, no more work: everything must end. */
static void phase_liveness(void)
{
    uint32_t idle = 0;

    for (uint32_t i = 0; i < sim.backup_count; i++) {
        struct backup *b = &sim.backups[i];
        bool live = b->job != NULL && b->started && !b->done;

        if (live) {
            blkrepl_job_resume(b->job);
        }
        if (live && rng_chance(50)) {
            blkrepl_job_set_speed(b->job, 0);
        }
    }
    for (uint32_t polls = 0; unfinished(); polls++) {
        bool moved = guest_bracket_finish();

        moved |= disks_move();
        moved |= poll_once() > 0;
        backup_watch();
        idle = moved || disks_busy() ? 0 : idle + 1;
        if (idle > 3) {
            clock_to_deadline(idle, "liveness");
        }
        EXPECT(polls < 100000, "liveness: no end");
    }
}

static void handles_close(uint32_t percent)
{
    for (uint32_t i = 0; i < sim.backup_count; i++) {
        if (sim.backups[i].job != NULL && rng_chance(percent)) {
            backup_drop(&sim.backups[i]);
        }
    }
    for (uint32_t i = 0; i < sim.options.disks; i++) {
        if (sim.disks[i].image != NULL && rng_chance(percent)) {
            close_image(&sim.disks[i]);
        }
    }
}

static bool context_try_free(void)
{
    int answer;

    sim.shutdown = true;
    sim.depth++;
    answer = blkrepl_context_free(sim.ctx);
    sim.depth--;
    EVENT("context_free: -%llu", (ull)-answer);
    EXPECT(answer == 0 || (answer == -EBUSY && blkrepl_error_message()[0] != '\0'),
           "context_free answered %d", answer);
    return answer == 0;
}

/* Free the context, whatever is still going on in it. */
static void phase_free(void)
{
    uint32_t tries = 0;

    for (; !context_try_free(); tries++) {
        bool moved = tries > 5 && guest_bracket_finish();

        moved |= disks_move();
        moved |= poll_once() > 0;
        backup_watch();
        handles_close(tries > 20 ? 100 : 30);
        sim.now_ns += moved ? 0 : 1000;
        if (tries > 10) {
            for (uint32_t i = 0; i < sim.options.disks; i++) {
                disk_heal(&sim.disks[i]);
            }
        }
        EXPECT(tries < 20000, "context_free: -EBUSY for ever: %s", blkrepl_error_message());
    }
    sim.gone = true;
}

static void check_end(void)
{
    EXPECT(sim.live_blocks == 0, "%lld blocks of memory leak", (long long)sim.live_blocks);
    EXPECT(sim.sink_releases == 1, "the sink is not released");
    EXPECT(sim.pending == 0, "%u requests have not ended", sim.pending);
    for (uint32_t i = 0; i < sim.options.disks; i++) {
        EXPECT(sim.disks[i].closed && sim.disks[i].released, "disk %u is not closed", i);
    }
    for (uint32_t i = 0; i < sim.backup_count; i++) {
        EXPECT(sim.backups[i].release_count == 1, "backup %u is not released", i);
    }
    for (uint32_t i = 0; i < sim.request_count; i++) {
        const struct request *r = &sim.requests[i];

        EXPECT(!r->accepted || (r->release_count == (r->no_release ? 0u : 1u) &&
                                (r->bracket || r->fn_count == 1)),
               "request %u: %u callbacks, %u releases", i, r->fn_count, r->release_count);
    }
}

static void run(uint64_t seed, bool trace)
{
    struct counts counts = sim.counts;
    uint8_t *arena = sim.arena;

    memset(&sim, 0, offsetof(struct sim, disks));
    sim.request_count = 0;
    sim.active_count = 0;
    sim.backup_count = 0;
    sim.arena_used = 0;
    sim.arena = arena;
    sim.counts = counts;
    sim.seed = seed;
    sim.rng = seed;
    sim.trace = trace;
    sim.now_ns = 1000 * SECOND_NS;
    draw_options();
    context_open();
    draw_disks();
    for (uint32_t i = 0; i < sim.options.disks; i++) {
        disk_open(&sim.disks[i]);
    }
    phase_safety();
    sim.quiet = true;
    if (!sim.options.early_shutdown) {
        check_cancelled();
        if (sim.options.guest_first) {
            phase_guest_first();
        }
        for (uint32_t i = 0; i < sim.options.disks; i++) {
            disk_heal(&sim.disks[i]);
        }
        phase_liveness();
        handles_close(100);
    }
    phase_free();
    check_end();
    sim.counts.seeds++;
    sim.counts.events += sim.seq;
}

/* ---- The program --------------------------------------------------------------- */

static void on_signal(int number)
{
    signal(SIGABRT, SIG_DFL);
    sim_fail("signal %d%s", number, number == SIGALRM ? " (no end)" : "");
}

static void list_options(uint64_t seed)
{
    const struct sim_options *o = &sim.options;

    run(seed, false);
    printf(
        "steps %u sources %u disks %u backups %u/%u guest %u beside %u%% reenter %u%% misuse %u%%\n"
        "verbs %u clock %u poll %u disk %u close %u%% alloc %u%% long %u%% early-shutdown %d "
        "guest-first %d clock-jumps %d\n",
        o->steps, o->sources, o->disks, sim.backup_count, o->backups, o->guest_weight,
        o->beside_percent, o->reenter_percent, o->misuse_percent, o->verb_weight, o->clock_weight,
        o->poll_weight, o->disk_weight, o->close_percent, o->alloc_fail_percent,
        o->long_writes_percent, o->early_shutdown, o->guest_first, o->clock_jumps);
    printf("requests_max %u job_requests_max %u callbacks_max %u completions_max %u copies_max %u "
           "memory_bytes_max %" PRIu64 "\n",
           o->context.requests_max, o->context.job_requests_max, o->context.callbacks_max,
           o->context.completions_max, o->context.copies_max, o->context.memory_bytes_max);
    for (uint32_t i = 0; i < o->disks; i++) {
        const struct disk *d = &sim.disks[i];
        const blkrepl_backend_info *n = &d->info;

        printf("disk %u: %" PRIu64 " bytes, align %u/%u, depth %u, iov %u, transfer %" PRIu64
               ", zeroes %" PRIu64 ", cluster %u, opcodes %x, flags %x, order %d, inline %u%%, "
               "errors %u/1000%s, hang %u%%, tear %u%%, discard %u, status unit %u, cancel %d\n",
               i, d->bytes, n->request_alignment, n->memory_alignment, n->queue_depth,
               n->iov_count_max, n->transfer_bytes_max, n->zeroes_bytes_max, n->cluster_bytes,
               n->opcodes, n->flags, (int)d->order, d->inline_percent, d->error_permille,
               d->sticky ? " sticky" : "", d->hang_percent, d->tear_percent, d->discard_mode,
               d->status_unit, d->has_cancel);
    }
    for (uint32_t i = 0; i < sim.backup_count; i++) {
        const blkrepl_backup_options *b = &sim.backups[i].options;

        printf("backup %u: disk %u to %u, cluster %" PRIu64 ", chunk %" PRIu64 ", reserve %" PRIu64
               ", workers %u, on_cbw_error %u, timeout %" PRIu64 ", speed %" PRIu64 ", flags %u\n",
               i, sim.backups[i].source->index, sim.backups[i].target->index, b->cluster_bytes,
               b->chunk_bytes_max, b->reserve_bytes, b->workers_max, b->on_cbw_error,
               b->cbw_timeout_ns, b->speed_bytes_per_sec, b->flags);
    }
}

static void summary(double seconds)
{
    const struct counts *c = &sim.counts;

    printf("seeds=%" PRIu64 " events=%" PRIu64 " seeds/s=%.0f\n", c->seeds, c->events,
           seconds > 0 ? (double)c->seeds / seconds : 0.0);
    printf("faults: errors=%" PRIu64 " torn=%" PRIu64 " hung=%" PRIu64 " inline=%" PRIu64
           " cancelled=%" PRIu64 " memory=%" PRIu64 " misuse=%" PRIu64 " reentry=%" PRIu64 "\n",
           c->errors, c->torn, c->hung, c->inline_completions, c->cancelled_io, c->alloc_failures,
           c->misuses, c->reentries);
    printf("guest: requests=%" PRIu64 " refused=%" PRIu64 " brackets=%" PRIu64
           " backups: done=%" PRIu64 " failed=%" PRIu64 " cancelled=%" PRIu64 " dropped=%" PRIu64
           "\n",
           c->requests, c->refused, c->brackets, c->backups_done, c->backups_failed,
           c->backups_cancelled, c->backups_dropped);
}

static uint64_t option(int argc, char **argv, const char *name, uint64_t otherwise)
{
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], name) == 0) {
            return i + 1 < argc ? strtoull(argv[i + 1], NULL, 0) : 1;
        }
    }
    return otherwise;
}

static double seconds_now(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + (double)now.tv_nsec / 1e9;
}

int main(int argc, char **argv)
{
    uint64_t base = option(argc, argv, "--base", 1);
    uint64_t seeds = option(argc, argv, "--seeds", 0);
    uint64_t twice = option(argc, argv, "--check-determinism", 0);
    uint64_t one = option(argc, argv, "--seed", UINT64_MAX);
    uint64_t listed = option(argc, argv, "--list-options", UINT64_MAX);
    bool trace = option(argc, argv, "--trace", 0) != 0 || strcmp(argv[argc - 1], "--trace") == 0;
    double begin = seconds_now();

    sim.arena = aligned_alloc(4096, ARENA_BYTES);
    if (sim.arena == NULL || seeds + twice + (one != UINT64_MAX) + (listed != UINT64_MAX) == 0) {
        fprintf(stderr, "usage: blkrepl-sim --seeds N [--base S] | --seed S [--trace] |\n"
                        "       --list-options S | --check-determinism N [--base S]\n");
        return 2;
    }
    pattern_init();
    signal(SIGABRT, on_signal);
    signal(SIGSEGV, on_signal);
    signal(SIGALRM, on_signal);
    if (listed != UINT64_MAX) {
        list_options(listed);
        return 0;
    }
    if (one != UINT64_MAX) {
        base = one;
        seeds = 1;
    }
    for (uint64_t i = 0; i < seeds + twice; i++) {
        uint64_t hash;

        alarm(30);
        run(base + i, trace);
        hash = sim.hash;
        if (twice > 0) {
            run(base + i, false);
            EXPECT(sim.hash == hash, "the second run of the seed is another one");
        }
    }
    if (one != UINT64_MAX) {
        printf("seed %" PRIu64 " hash %016" PRIx64 "\n", one, sim.hash);
    }
    summary(seconds_now() - begin);
    return 0;
}
