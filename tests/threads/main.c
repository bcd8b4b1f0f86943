/* SPDX-License-Identifier: MIT */
/* main.c - blkrepl-threads, the program: many runs, or one that was recorded. */
#include "marks.h"
#include "shared.h"
#include "threads.h"

#include <inttypes.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const char usage[] =
    "usage: blkrepl-threads [--seed S] [--runs N] [--threads T] [--lanes L] [--one-thread | "
    "--many]\n"
    "                       [--no-replay] [--keep FILE] [--log FILE]\n"
    "                              N runs (60) from seed S on, of T guests (8) on L lanes (8, 8, "
    "3\n"
    "                              or 1) and a lane for control\n"
    "       blkrepl-threads --replay FILE         a run that was recorded, once more\n"
    "  --one-thread: one thread for all (else every fourth run; --many: none); then the replay\n"
    "                must be the same in everything\n"
    "  --keep FILE: the log of a run that fails (blkrepl-threads.log); --log FILE: of the last "
    "run\n";

struct world world = {.verbs = PTHREAD_MUTEX_INITIALIZER};
void (*on_failure)(void);

#define LANES_MAX 15

static const char *keep;
static bool replaying;

/* ---- Chance ---------------------------------------------------------------------- */

uint64_t dice(uint64_t *state)
{
    uint64_t z = (*state += UINT64_C(0x9e3779b97f4a7c15));

    z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
    return z ^ (z >> 31);
}

uint64_t dice_below(uint64_t *state, uint64_t limit)
{
    return limit > 1 ? dice(state) % limit : 0;
}

bool dice_chance(uint64_t *state, uint32_t percent)
{
    return percent != 0 && dice_below(state, 100) < percent;
}

uint64_t stamp(void)
{
    return atomic_fetch_add_explicit(&world.stamps, 1, memory_order_relaxed);
}

uint64_t op_pack(const struct op *op)
{
    return (uint64_t)op->opcode | (uint64_t)op->disk << 8 | (uint64_t)op->flags << 16 |
           (uint64_t)op->iov_count << 24 | (uint64_t)op->bracket << 32 |
           (uint64_t)op->blocking << 33;
}

void op_unpack(struct op *op, uint64_t packed)
{
    op->opcode = packed & 255;
    op->disk = packed >> 8 & 255;
    op->flags = packed >> 16 & 255;
    op->iov_count = packed >> 24 & 255;
    op->bracket = (packed >> 32 & 1) != 0;
    op->blocking = (packed >> 33 & 1) != 0;
}

/* ---- The plan -------------------------------------------------------------------- */

static void disk_draw_plan(struct vdisk_plan *disk, uint64_t *rng, bool source)
{
    blkrepl_backend_info *info = &disk->info;

    info->bytes = VDISK_BYTES_MAX - (source ? 4096 * dice_below(rng, 16) : 0);
    info->opcodes = 1u << BLKREPL_OP_READ | 1u << BLKREPL_OP_WRITE | 1u << BLKREPL_OP_FLUSH;
    info->opcodes |= dice_chance(rng, 70) ? 1u << BLKREPL_OP_ZEROES : 0;
    info->opcodes |= dice_chance(rng, 70) ? 1u << BLKREPL_OP_DISCARD : 0;
    info->opcodes |= dice_chance(rng, 50) ? 1u << BLKREPL_OP_STATUS : 0;
    info->flags = dice_chance(rng, 50) ? BLKREPL_BACKEND_FUA : 0;
    info->queue_depth = dice_chance(rng, 30) ? (uint32_t)dice_below(rng, 4) + 1 : 32;
    info->request_alignment = dice_chance(rng, 50) ? 512 : dice_chance(rng, 50) ? 8 : 4096;
    info->memory_alignment = dice_chance(rng, 20) ? 512 : 8;
    if (info->request_alignment < info->memory_alignment) {
        info->request_alignment = info->memory_alignment;
    }
    info->transfer_bytes_max = dice_chance(rng, 20) ? 16384 : 0;
    disk->inline_percent = (uint32_t)dice_below(rng, 101);
    disk->error_permille = dice_chance(rng, 15) ? (uint32_t)dice_below(rng, 20) : 0;
    disk->cancel_percent = (uint32_t)dice_below(rng, 101);
    disk->discard_zeroes = dice_chance(rng, 50);
    disk->has_cancel = dice_chance(rng, 60);
}

/* The sources have none, one or two each; the first target may have one. */
static void marks_draw_plan(struct plan *plan, uint64_t *rng)
{
    if (dice_chance(rng, 30)) {
        return;
    }
    for (uint32_t i = 0; i < plan->sources; i++) {
        plan->marks_disk[plan->marks++] = i;
        plan->marks_disk[plan->marks] = i;
        plan->marks += dice_chance(rng, 50);
    }
    plan->marks_disk[plan->marks] = plan->sources;
    plan->marks += dice_chance(rng, 40);
    plan->again_percent = plan->one_thread ? 0 : (uint32_t)dice_below(rng, 3) * 45;
    plan->quick = dice_chance(rng, 30) && !plan->one_thread;
    plan->jobs = plan->quick ? 0 : plan->jobs;
    plan->marks_late = dice_chance(rng, 30);
}

void plan_draw(struct plan *plan, uint64_t seed, bool one_thread, uint32_t guests, uint32_t lanes)
{
    uint64_t rng = seed;
    blkrepl_context_options *c = &plan->context;

    memset(plan, 0, sizeof *plan);
    plan->seed = seed;
    plan->one_thread = one_thread;
    plan->guests = guests;
    plan->lanes = lanes;
    plan->sources = dice_chance(&rng, 25) ? 2 : 1;
    plan->disks = plan->sources + 1 + (uint32_t)dice_below(&rng, 3);
    plan->jobs = (uint32_t)dice_below(&rng, JOBS_MAX + 1);
    plan->ops = OPS_MAX / guests < 60 ? OPS_MAX / guests : 60;
    plan->beside_percent = (uint32_t)dice_below(&rng, 3) * 35;
    plan->host_clock = dice_chance(&rng, 20) || one_thread;
    plan->shut_early = dice_chance(&rng, 10) && !one_thread;
    plan->stretch_percent =
        dice_chance(&rng, 40) && !one_thread ? (uint32_t)dice_below(&rng, 20) : 0;
    plan->inside_percent =
        dice_chance(&rng, 30) && !one_thread ? (uint32_t)dice_below(&rng, 30) : 0;
    plan->blocking_percent =
        plan->host_clock || dice_chance(&rng, 50) ? 0 : (uint32_t)dice_below(&rng, 101);
    c->struct_size = sizeof *c;
    c->lane_count = lanes + 1;
    c->requests_max = dice_chance(&rng, 20) ? (uint32_t)dice_below(&rng, 6) + 1 : 32;
    c->job_requests_max = dice_chance(&rng, 20) ? 64 : 256;
    c->callbacks_max = dice_chance(&rng, 20) ? (uint32_t)dice_below(&rng, 4) + 1 : 0;
    c->completions_max = dice_chance(&rng, 20) ? (uint32_t)dice_below(&rng, 4) + 1 : 0;
    c->copies_max = dice_chance(&rng, 20) ? (uint32_t)dice_below(&rng, 4) + 1 : 0;
    for (uint32_t i = 0; i < plan->disks; i++) {
        disk_draw_plan(&plan->disk[i], &rng, i < plan->sources);
    }
    marks_draw_plan(plan, &rng);
}

/* ---- Failures -------------------------------------------------------------------- */

/* The other threads may go on writing: the log is complete up to here, no more. */
static void keep_log(void)
{
    struct entry *entries;
    uint32_t count;

    if (!replaying && keep != NULL) {
        record_merge(&entries, &count);
        record_save(keep, &world.plan, entries, count);
        printf("its log is in %s: blkrepl-threads --replay %s\n", keep, keep);
    }
}

void fail(const char *format, ...)
{
    static atomic_flag failing = ATOMIC_FLAG_INIT;
    va_list args;

    if (atomic_flag_test_and_set(&failing)) {
        for (;;) {
            pause();
        }
    }
    printf("FAILED seed %" PRIu64 "%s: ", world.plan.seed, replaying ? ", replayed" : "");
    va_start(args, format);
    vprintf(format, args);
    va_end(args);
    putchar('\n');
    keep_log();
    fflush(stdout);
    _Exit(1);
}

static void on_alarm(int number)
{
    fail("signal %d%s", number, number == SIGALRM ? " (no end)" : "");
}

/* ---- Options --------------------------------------------------------------------- */

static const char *text_option(int argc, char **argv, const char *name)
{
    for (int i = 1; i + 1 < argc; i++) {
        if (strcmp(argv[i], name) == 0) {
            return argv[i + 1];
        }
    }
    return NULL;
}

static bool flag(int argc, char **argv, const char *name)
{
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], name) == 0) {
            return true;
        }
    }
    return false;
}

static uint64_t number(int argc, char **argv, const char *name, uint64_t otherwise)
{
    const char *text = text_option(argc, argv, name);

    return text != NULL ? strtoull(text, NULL, 0) : otherwise;
}

/* ---- Runs ------------------------------------------------------------------------ */

static void run(const char *log, bool replay)
{
    struct entry *entries;
    uint32_t count;
    bool whole;

    alarm(60);
    atomic_store(&world.locks, 0);
    live_run();
    check_run();
    check_marks();
    whole = record_merge(&entries, &count);
    world.counts.runs++;
    world.counts.entries += count;
    world.counts.locks += atomic_load(&world.locks);
    if (log != NULL) {
        record_save(log, &world.plan, entries, count);
    }
    if (replay && whole) {
        replay_run(&world.plan, entries, count, &world.counts);
    }
}

static void summary(void)
{
    const struct tally *c = &world.counts;

    printf("requests=%" PRIu64 " waited=%" PRIu64 " blocking=%" PRIu64 " backups: done=%" PRIu64
           " failed=%" PRIu64 " cancelled=%" PRIu64 "\n",
           c->requests, c->waits, c->blocking, c->done, c->failed, c->cancelled);
    printf("replays=%" PRIu64 " exact=%" PRIu64 " backups: done=%" PRIu64
           " answers: compared=%" PRIu64 " different=%" PRIu64 " completions: early=%" PRIu64 "\n",
           c->replays, c->exact, c->replayed_done, c->compared, c->differ, c->early);
    printf("looks=%" PRIu64 " into bitmaps, begun anew=%" PRIu64 "\n", c->looks, c->turns);
    printf("runs=%" PRIu64 " recorded=%" PRIu64 " locks=%" PRIu64 "\n", c->runs, c->entries,
           c->locks);
}

static int replay_file(const char *path)
{
    struct plan plan;
    uint32_t count;
    struct entry *entries = record_load(path, &plan, &count);

    replaying = true;
    alarm(60);
    world.plan = plan;
    replay_run(&plan, entries, count, &world.counts);
    free(entries);
    printf("%u entries of seed %" PRIu64 ": no promise is broken\n", count, plan.seed);
    return 0;
}

static const uint32_t some_lanes[] = {8, 8, 3, 1};

static void run_all(int argc, char **argv)
{
    uint64_t seed = number(argc, argv, "--seed", 1);
    uint64_t runs = number(argc, argv, "--runs", 60);
    uint32_t guests = (uint32_t)number(argc, argv, "--threads", 8);
    bool replay = !flag(argc, argv, "--no-replay");

    for (uint64_t i = seed; i < seed + runs; i++) {
        uint32_t lanes = (uint32_t)number(argc, argv, "--lanes", some_lanes[i / 4 % 4]);
        bool one = flag(argc, argv, "--one-thread") || (i % 4 == 0 && !flag(argc, argv, "--many"));

        if (guests < 1 || guests > GUESTS_MAX || lanes < 1 || lanes > LANES_MAX) {
            fputs(usage, stderr);
            exit(2);
        }
        plan_draw(&world.plan, i, one, guests, lanes);
        /* Without the hook the order of what several threads do is not known. */
        run(text_option(argc, argv, "--log"), replay && (one || record_has_hook()));
    }
}

int main(int argc, char **argv)
{
    if (flag(argc, argv, "--help")) {
        fputs(usage, stdout);
        return 0;
    }
    signal(SIGALRM, on_alarm);
    on_failure = keep_log;
    keep = text_option(argc, argv, "--keep");
    keep = keep != NULL ? keep : "blkrepl-threads.log";
    if (text_option(argc, argv, "--replay") != NULL) {
        return replay_file(text_option(argc, argv, "--replay"));
    }
    run_all(argc, argv);
    summary();
    return 0;
}
