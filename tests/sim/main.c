/* SPDX-License-Identifier: MIT */
/* main.c - blkrepl-sim, the program: many seeds, or one, or one made small. */
#include "sim.h"

#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define JOBS_MAX 64

static const char usage[] =
    "usage: blkrepl-sim --seeds N [--base S] [--jobs J] [--no-shrink]\n"
    "                              N runs, in J processes; the first that fails is shrunk\n"
    "       blkrepl-sim --seed S [--trace] [--without F,...] [--leave-out A-B,...]   one run\n"
    "       blkrepl-sim --shrink S [...]                     a failing run, made small\n"
    "       blkrepl-sim --list-options S                     what is drawn for a seed\n"
    "       blkrepl-sim --check-determinism N [--base S]     each seed twice, same hash\n"
    "       blkrepl-sim --print-faults                       what --without knows\n";

static struct sim_plan plan;
static char *program;

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

/* "errors,torn,hangs" */
static void read_faults(const char *text)
{
    while (text != NULL && *text != '\0') {
        size_t length = strcspn(text, ",");
        uint32_t n = 0;

        while (n < FAULT_COUNT &&
               (strlen(fault_names[n]) != length || strncmp(text, fault_names[n], length) != 0)) {
            n++;
        }
        if (n == FAULT_COUNT) {
            fprintf(stderr, "--without: no fault is called %.*s\n", (int)length, text);
            exit(2);
        }
        plan.without |= UINT64_C(1) << n;
        text += length + (text[length] == ',');
    }
}

/* "0-17,20,31-399" */
static void read_steps(const char *text)
{
    while (text != NULL && *text != '\0') {
        char *end;
        unsigned long first = strtoul(text, &end, 10);
        unsigned long last = *end == '-' ? strtoul(end + 1, &end, 10) : first;

        if (end == text || last >= STEPS_MAX || (*end != ',' && *end != '\0')) {
            fprintf(stderr, "--leave-out: not a list of steps: %s\n", text);
            exit(2);
        }
        for (; first <= last; first++) {
            plan.left_out[first] = 1;
        }
        text = *end == ',' ? end + 1 : end;
    }
}

static void on_signal(int received)
{
    signal(SIGABRT, SIG_DFL);
    sim_fail("signal %d%s", received, received == SIGALRM ? " (no end)" : "");
}

/* In a process of its own: this one may be spoiled. */
static void shrink_failure(const char *format)
{
    char seed[32];

    (void)format;
    snprintf(seed, sizeof seed, "%" PRIu64, plan.seed);
    execl("/proc/self/exe", program, "--shrink", seed, (char *)NULL);
    _Exit(1);
}

static void exit_failure(const char *format)
{
    (void)format;
    _Exit(1);
}

static void print_jobs(const struct counts *c)
{
    uint32_t hit = 0;

    for (uint32_t verb = 0; verb < VERB_COUNT; verb++) {
        for (uint32_t state = BLKREPL_JOB_CREATED; state <= BLKREPL_JOB_CONCLUDED; state++) {
            hit += c->verbs[verb][state] > 0;
        }
    }
    printf("jobs: full=%" PRIu64 " bitmap=%" PRIu64 " incremental=%" PRIu64 " none=%" PRIu64
           " links=%" PRIu64 " settled=%" PRIu64 " always=%" PRIu64 " stops=%" PRIu64
           " ignored=%" PRIu64 " compressed=%" PRIu64 " spills=%" PRIu64 "\n",
           c->syncs[0], c->syncs[1], c->syncs[2], c->syncs[3], c->links, c->settled, c->always,
           c->stops, c->ignored, c->compressed, c->spills);
    printf("jobs: finalized=%" PRIu64 " dismissed=%" PRIu64 " found=%" PRIu64 " groups=%" PRIu64
           " groups done=%" PRIu64 " failed=%" PRIu64 " verbs in states: %u of %u\n",
           c->finalized, c->dismissed, c->found, c->groups, c->groups_done, c->groups_failed, hit,
           VERB_COUNT * BLKREPL_JOB_CONCLUDED);
    printf("jobs: snapshots=%" PRIu64 " reads=%" PRIu64 " discards=%" PRIu64 " through=%" PRIu64
           " verifies=%" PRIu64 " differences=%" PRIu64 " throttles=%" PRIu64 " delayed=%" PRIu64
           "\n",
           c->snapshots, c->snapshot_reads, c->snapshot_discards, c->through, c->verifies,
           c->differences, c->throttles, c->delayed);
}

static void summary(double seconds)
{
    const struct counts *c = &sim.counts;

    printf("seeds=%" PRIu64 " events=%" PRIu64 " seeds/s=%.0f\n", c->seeds, c->events,
           seconds > 0 ? (double)c->seeds / seconds : 0.0);
    printf("faults: errors=%" PRIu64 " torn=%" PRIu64 " hung=%" PRIu64 " inline=%" PRIu64
           " cancelled=%" PRIu64 " memory=%" PRIu64 " misuse=%" PRIu64 " reentry=%" PRIu64
           " stretched=%" PRIu64 "\n",
           c->errors, c->torn, c->hung, c->inline_completions, c->cancelled_io, c->alloc_failures,
           c->misuses, c->reentries, c->stretches);
    printf("guest: requests=%" PRIu64 " refused=%" PRIu64 " brackets=%" PRIu64
           " backups: done=%" PRIu64 " failed=%" PRIu64 " cancelled=%" PRIu64 " dropped=%" PRIu64
           "\n",
           c->requests, c->refused, c->brackets, c->backups_done, c->backups_failed,
           c->backups_cancelled, c->backups_dropped);
    printf("power: cuts=%" PRIu64 " guarantees=%" PRIu64 " reboots=%" PRIu64
           " contract: breaches=%" PRIu64 " ghosts=%" PRIu64 " targets: busy=%" PRIu64
           " offloads=%" PRIu64 "\n",
           c->cuts, c->survivors, c->reboots, c->breaches, c->ghosts, c->busy, c->copies);
    printf("lanes: runs with several=%" PRIu64 " with one unpolled=%" PRIu64 " hastened=%" PRIu64
           " slept=%" PRIu64 "\n",
           c->lanes, c->unpolled, c->hastened, c->sleeps);
    printf("bitmaps: made=%" PRIu64 " marks_checked=%" PRIu64 " freezes=%" PRIu64 " merges=%" PRIu64
           " transacts=%" PRIu64 " refused=%" PRIu64 " loads=%" PRIu64 "\n",
           c->bitmaps, c->marks, c->freezes, c->merges, c->transacts, c->bitmaps_refused, c->loads);
    print_jobs(c);
    inside_print();
}

static double seconds_now(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + (double)now.tv_nsec / 1e9;
}

/* A time limit for a run, set once in many: it is there for runs without end. */
static void run_seeds(uint64_t base, uint64_t count, bool twice)
{
    for (uint64_t i = 0; i < count; i++) {
        uint64_t hash;

        if (i % 64 == 0) {
            alarm(60);
        }
        plan.seed = base + i;
        sim_run(&plan, false);
        hash = sim.hash;
        if (twice) {
            sim_run(&plan, false);
            EXPECT(sim.hash == hash, "the second run of the seed is another one");
        }
    }
}

/* A part of the seeds in a process of its own, which sends its counts. */
static pid_t start_job(uint64_t base, uint64_t count, int *counts_end)
{
    int ends[2];
    pid_t child;

    fflush(stdout);
    if (pipe(ends) != 0 || (child = fork()) < 0) {
        perror("blkrepl-sim");
        exit(2);
    }
    if (child == 0) {
        close(ends[0]);
        run_seeds(base, count, false);
        _Exit(write(ends[1], &sim.counts, sizeof sim.counts) == (ssize_t)sizeof sim.counts ? 0 : 2);
    }
    close(ends[1]);
    *counts_end = ends[0];
    return child;
}

/* All counts are uint64_t. */
static void add_counts(const struct counts *more)
{
    uint64_t sums[sizeof *more / sizeof(uint64_t)];
    uint64_t parts[sizeof *more / sizeof(uint64_t)];

    memcpy(sums, &sim.counts, sizeof sums);
    memcpy(parts, more, sizeof parts);
    for (size_t i = 0; i < sizeof sums / sizeof sums[0]; i++) {
        sums[i] += parts[i];
    }
    memcpy(&sim.counts, sums, sizeof sums);
}

static bool run_jobs(uint64_t base, uint64_t count, uint64_t jobs)
{
    int ends[JOBS_MAX];
    pid_t children[JOBS_MAX];
    bool good = true;

    for (uint64_t i = 0; i < jobs; i++) {
        uint64_t first = count * i / jobs;

        children[i] = start_job(base + first, count * (i + 1) / jobs - first, &ends[i]);
    }
    for (uint64_t i = 0; i < jobs; i++) {
        struct counts counts = {0};
        int status = 0;

        if (read(ends[i], &counts, sizeof counts) == (ssize_t)sizeof counts) {
            add_counts(&counts);
        }
        waitpid(children[i], &status, 0);
        good = good && status == 0;
    }
    return good;
}

int main(int argc, char **argv)
{
    uint64_t base = number(argc, argv, "--base", 1);
    uint64_t seeds = number(argc, argv, "--seeds", 0);
    uint64_t jobs = number(argc, argv, "--jobs", 1);
    double begin = seconds_now();
    uint64_t twice = number(argc, argv, "--check-determinism", 0);

    program = argv[0];
    sim_setup();
    signal(SIGABRT, on_signal);
    signal(SIGSEGV, on_signal);
    signal(SIGALRM, on_signal);
    read_faults(text_option(argc, argv, "--without"));
    read_steps(text_option(argc, argv, "--leave-out"));
    sim_on_failure = exit_failure;
    if (jobs < 1 || jobs > JOBS_MAX || (jobs > 1 && twice > 0)) {
        fputs(usage, stderr);
        return 2;
    }
    if (seeds + twice > 0) {
        sim_on_failure = flag(argc, argv, "--no-shrink") ? exit_failure : shrink_failure;
        if (jobs == 1) {
            run_seeds(base, seeds + twice, twice > 0);
        } else if (!run_jobs(base, seeds, jobs)) {
            return 1;
        }
        summary(seconds_now() - begin);
    } else if (flag(argc, argv, "--seed")) {
        plan.seed = number(argc, argv, "--seed", 1);
        alarm(30);
        sim_run(&plan, flag(argc, argv, "--trace"));
        printf("seed %" PRIu64 " hash %016" PRIx64 "\n", plan.seed, sim.hash);
    } else if (flag(argc, argv, "--shrink")) {
        plan.seed = number(argc, argv, "--shrink", 1);
        shrink(&plan);
        return 1;
    } else if (flag(argc, argv, "--list-options")) {
        plan.seed = number(argc, argv, "--list-options", 1);
        sim_run(&plan, false);
        sim_list_options();
    } else if (flag(argc, argv, "--print-faults")) {
        for (uint32_t i = 0; i < FAULT_COUNT; i++) {
            puts(fault_names[i]);
        }
    } else {
        fputs(usage, stderr);
        return 2;
    }
    return 0;
}
