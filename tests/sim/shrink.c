/* SPDX-License-Identifier: MIT */
/* shrink.c - a failing run made small, and told as a short story.
 *
 * First whole classes of faults are left out, then steps; whatever still breaks
 * the same promise is kept.  Every try is a process of its own, so that crashes
 * and runs without end are failures like others. */
#include "sim.h"

#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define TRIES_MAX 5000
#define SECONDS_MAX 60
#define RUN_SECONDS_MAX 10

const char *const fault_names[FAULT_COUNT] = {
    [FAULT_ERRORS] = "errors",       [FAULT_TORN] = "torn",           [FAULT_HANGS] = "hangs",
    [FAULT_ORDER] = "order",         [FAULT_INLINE] = "inline",       [FAULT_LIMITS] = "limits",
    [FAULT_OPCODES] = "opcodes",     [FAULT_DISCARDS] = "discards",   [FAULT_REENTRY] = "reentry",
    [FAULT_MISUSE] = "misuse",       [FAULT_MEMORY] = "memory",       [FAULT_BOUNDS] = "bounds",
    [FAULT_JUMPS] = "jumps",         [FAULT_CLOSE] = "close",         [FAULT_SHUTDOWN] = "shutdown",
    [FAULT_BESIDE] = "beside",       [FAULT_LONG] = "long",           [FAULT_VERBS] = "verbs",
    [FAULT_TUNING] = "tuning",       [FAULT_STRETCH] = "stretch",     [FAULT_POWER] = "power",
    [FAULT_CONTRACT] = "contract",   [FAULT_LANES] = "lanes",         [FAULT_UNPOLLED] = "unpolled",
    [FAULT_SLEEP] = "sleep",         [FAULT_OFFLOAD] = "offload",     [FAULT_BITMAPS] = "bitmaps",
    [FAULT_SYNC] = "sync",           [FAULT_POLICY] = "policy",       [FAULT_FINALE] = "finale",
    [FAULT_COMPRESS] = "compress",   [FAULT_SPILL] = "spill",         [FAULT_BURST] = "burst",
    [FAULT_GROUPS] = "groups",       [FAULT_SNAPSHOTS] = "snapshots", [FAULT_VERIFY] = "verify",
    [FAULT_THROTTLES] = "throttles",
};

/* How a run has ended; as it goes through the pipe. */
struct verdict {
    const char *promise; /* the format of the message; NULL: none was broken   */
    uint64_t events;
    uint32_t steps;
};

static int verdict_pipe;
static uint32_t tries;
static time_t shrink_began;

static void tell_verdict(const char *format)
{
    struct verdict verdict = {.promise = format, .events = sim.seq, .steps = sim.options.steps};
    ssize_t written = write(verdict_pipe, &verdict, sizeof verdict);

    _Exit(written == (ssize_t)sizeof verdict ? 1 : 3);
}

static void tell_story(const char *format)
{
    (void)format;
    printf("\n");
    sim_list_options();
    fflush(stdout);
    _Exit(1);
}

static void run_quietly(const struct sim_plan *plan, int out)
{
    FILE *null = freopen("/dev/null", "w", stdout);

    verdict_pipe = out;
    sim_on_failure = tell_verdict;
    alarm(RUN_SECONDS_MAX);
    if (null != NULL) {
        sim_run(plan, false);
    }
    _Exit(0);
}

/* Run it; what killed the process without a word is a promise of its own. */
static struct verdict try_plan(const struct sim_plan *plan)
{
    static const char died[] = "the process died";
    struct verdict verdict = {0};
    int ends[2];
    int status = 0;
    pid_t child;

    tries++;
    fflush(stdout);
    if (pipe(ends) != 0 || (child = fork()) < 0) {
        perror("shrink");
        _Exit(2);
    }
    if (child == 0) {
        close(ends[0]);
        run_quietly(plan, ends[1]);
    }
    close(ends[1]);
    if (read(ends[0], &verdict, sizeof verdict) != (ssize_t)sizeof verdict) {
        verdict = (struct verdict){0};
    }
    close(ends[0]);
    waitpid(child, &status, 0);
    if (verdict.promise == NULL && status != 0) {
        verdict = (struct verdict){.promise = died, .steps = STEPS_MAX};
    }
    return verdict;
}

static bool out_of_time(void)
{
    return tries > TRIES_MAX || time(NULL) - shrink_began > SECONDS_MAX;
}

/* Is `smaller` as bad?  Then it takes the place of `plan`. */
static bool keep_if_bad(struct sim_plan *plan, const struct sim_plan *smaller, const char *promise)
{
    if (out_of_time() || try_plan(smaller).promise != promise) {
        return false;
    }
    *plan = *smaller;
    return true;
}

static bool shrink_faults(struct sim_plan *plan, const char *promise)
{
    bool shrunk = false;

    for (uint32_t n = 0; n < FAULT_COUNT; n++) {
        struct sim_plan smaller = *plan;

        smaller.without |= UINT64_C(1) << n;
        if (smaller.without != plan->without) {
            shrunk = keep_if_bad(plan, &smaller, promise) || shrunk;
        }
    }
    return shrunk;
}

/* Leave out `length` steps at a time, then fewer. */
static bool shrink_steps(struct sim_plan *plan, uint32_t steps, const char *promise)
{
    bool shrunk = false;

    for (uint32_t length = steps; length > 0; length /= 2) {
        for (uint32_t first = 0; first < steps; first += length) {
            uint32_t last = first + length < steps ? first + length : steps;
            struct sim_plan smaller = *plan;

            memset(smaller.left_out + first, 1, last - first);
            if (memcmp(smaller.left_out, plan->left_out, sizeof plan->left_out) != 0) {
                shrunk = keep_if_bad(plan, &smaller, promise) || shrunk;
            }
        }
    }
    return shrunk;
}

static void print_command(const struct sim_plan *plan)
{
    const char *separator = " --without ";

    printf("blkrepl-sim --seed %" PRIu64 " --trace", plan->seed);
    for (uint32_t n = 0; n < FAULT_COUNT; n++) {
        if ((plan->without >> n & 1) != 0) {
            printf("%s%s", separator, fault_names[n]);
            separator = ",";
        }
    }
    separator = " --leave-out ";
    for (uint32_t first = 0; first < STEPS_MAX; first++) {
        uint32_t last = first;

        if (plan->left_out[first] == 0) {
            continue;
        }
        while (last + 1 < STEPS_MAX && plan->left_out[last + 1] != 0) {
            last++;
        }
        printf(last > first ? "%s%u-%u" : "%s%u", separator, first, last);
        separator = ",";
        first = last;
    }
    printf("\n");
}

static uint32_t steps_left(const struct sim_plan *plan, uint32_t steps)
{
    uint32_t left = 0;

    for (uint32_t i = 0; i < steps && i < STEPS_MAX; i++) {
        left += plan->left_out[i] == 0;
    }
    return left;
}

static void print_story(const struct sim_plan *plan)
{
    pid_t child;

    fflush(stdout);
    child = fork();
    if (child == 0) {
        sim_on_failure = tell_story;
        sim.story = true;
        alarm(RUN_SECONDS_MAX);
        sim_run(plan, true);
        _Exit(0);
    }
    waitpid(child, NULL, 0);
}

void shrink(const struct sim_plan *plan)
{
    struct sim_plan small = *plan;
    struct verdict first;
    struct verdict last;
    uint32_t steps;
    bool again = true;

    shrink_began = time(NULL);
    first = try_plan(&small);
    if (first.promise == NULL) {
        printf("seed %" PRIu64 " breaks no promise when it is run alone\n", plan->seed);
        return;
    }
    steps = first.steps < STEPS_MAX ? first.steps : STEPS_MAX;
    while (again && !out_of_time()) {
        again = shrink_faults(&small, first.promise);
        again = shrink_steps(&small, steps, first.promise) || again;
    }
    if (steps < STEPS_MAX) {
        memset(small.left_out + steps, 0, STEPS_MAX - steps);
    }
    last = try_plan(&small);
    printf("\nShrunk in %u runs from %u steps and %" PRIu64 " events to %u steps and %" PRIu64
           " events:\n\n",
           tries, steps_left(plan, steps), first.events, steps_left(&small, steps), last.events);
    print_story(&small);
    printf("\nTo see it again:  ");
    print_command(&small);
    fflush(stdout);
}
