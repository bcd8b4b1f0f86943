/* SPDX-License-Identifier: MIT */
/* main.c - blkrepl-small: every run of small worlds.
 *
 * The simulator draws runs; this program leaves none out.  What it explores is
 * a product, and it prints how large it was:
 *
 * World    a context with a source and a target of 3 clusters of 4 KiB (or of
 *          2 and a part of one, or of 0 bytes), copies of one cluster by one or
 *          two workers, one buffer in reserve; queues of 1 or 3; requests that
 *          complete when this program lets them, or inside submit, on either
 *          disk or on both; alignment 1 or 512; two of them with two lanes, and two
 *          with a bitmap that records the source, for menus of their own:
 *          `worlds` in world.c.
 *
 * Program  up to `ops_max` operations from the menu of a `theme`, in any order
 *          and with repetition, each after any step of what is under way: guest
 *          requests through and beside, backups of both policies, their verbs,
 *          verbs of the bitmap, closing images, closing the context.  In each world: programs of up
 *          to 2 of all operations, and of up to 3 of three smaller menus; with
 *          --long of up to 3 of all, of up to 3 with a fault and a late step in
 *          one run, and, in a world of 4 clusters, of up to 4.
 *
 * Step     the next operation; the completion of any one request at a disk; the
 *          end of a bracket that got its GO (the host has written), or its
 *          cancel at any time; time passes until the next deadline.
 *
 * Odd      in each run at most `odd_max` of the following.  A fault, at most
 *          `faults_max`: a request, also one that completes inside submit, or a
 *          bracket fails, with nothing or with all of a write landed, or copy-
 *          before-write times out.  A late step, at most `late_max`: polls
 *          follow each step until there is nothing to poll for, a late step is
 *          followed by one poll, of either lane, or by none.  A request that was told to cancel
 *          may complete with -ECANCELED at any time; that is not a fault.
 *
 * Not in it: writes that land in part; reads that see the medium at any time but
 * their completion (no job may read what a guest is writing, so it makes no
 * difference, and that is checked); calls from inside callbacks; threads;
 * allocation failures.  The simulator and the torture test do these.
 *
 * A run is a sequence of such steps until nothing more can happen by itself and
 * the program does not go on; then everything is closed and freed.  Runs share
 * their beginnings: after each step the world is saved, and put back to try the
 * next one (arena.c).  What is left out, and no more, are steps from a state
 * that equals one met before in every byte, of the library's memory too; such
 * states have the same future, and the runs from there on are counted again.  No
 * assumption is made about steps that do not depend on each other.  That merging
 * does not change the number of runs is tested at each start, with a part of the
 * space; and some runs of every world are replayed from the beginning and must
 * reach the same state to the last bit.
 *
 * After every step: each accepted request ends exactly once and is released
 * once; what is acknowledged is on the medium; reads return what was there; no
 * guest write goes over data that are not saved; only the data of the point in
 * time go to the target, all of them if the backup is done; progress is true; an
 * error ends what it has to, with its code, side and range; the bitmap is dirty
 * where it must be and nowhere else.  At the end nothing waits, and all memory is
 * free.  See oracle.c, jobs.c and bitmap.c.
 *
 * On failure the steps are printed; --choices runs them again and tells what
 * happens:
 *
 *     W1, K, pause ...   the operation; --list names those of each theme
 *     s0, t1             request 0 of the source's queue, 1 of the target's completes
 *     end2, drop2        the bracket that is operation 2 ends, or is given up
 *     clock, poll        time passes; polls
 *     e, E, c behind it  it fails; it fails and has landed; -ECANCELED
 *     /2e, /2E           the second completion inside submit during it fails
 *     +, -, =            late: no poll follows; one poll follows; one of lane 1
 */
#include "small.h"

#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static const char *program;

/* ---- Failure ---------------------------------------------------------------------------- */

void trace_line(const char *format, ...)
{
    va_list args;

    va_start(args, format);
    vprintf(format, args);
    va_end(args);
    putchar('\n');
}

/* Tell which choices have led here, then show it all in a fresh process. */
static _Noreturn void reproduce(void)
{
    static char path[8192];

    search_path(path, sizeof path);
    printf("after %llu steps, in world %s, theme %s\nreproduce: %s --world %s --choices '%s'\n",
           (ull)run.events, run.world->name, run.theme->name, program, run.world->name, path);
    fflush(stdout);
    execl(program, program, "--world", run.world->name, "--choices", path, (char *)NULL);
    _exit(1);
}

void small_fail(const char *format, ...)
{
    va_list args;

    printf("FAIL: ");
    va_start(args, format);
    vprintf(format, args);
    va_end(args);
    putchar('\n');
    if (run.searching) {
        reproduce();
    }
    exit(1);
}

static void crashed(int number)
{
    signal(number, SIG_DFL);
    printf("FAIL: signal %d (%s)\n", number, number == SIGABRT ? "abort: a CHECK?" : "crash");
    if (run.searching) {
        reproduce();
    }
    fflush(stdout);
    _exit(1);
}

/* ---- Replay ------------------------------------------------------------------------------- */

static const struct world *world_named(const char *name)
{
    for (const struct world *world = worlds; world->name != NULL; world++) {
        if (strcmp(world->name, name) == 0) {
            return world;
        }
    }
    fprintf(stderr, "%s: no world is called %s\n", program, name);
    exit(2);
}

static bool is_listed(const struct move *move)
{
    static struct move moves[MOVES_MAX];
    uint32_t count = moves_list(moves);

    for (uint32_t i = 0; i < count; i++) {
        if (moves[i].kind == move->kind && moves[i].index == move->index &&
            moves[i].disk == move->disk && moves[i].outcome == move->outcome &&
            moves[i].late == move->late) {
            return true;
        }
    }
    return false;
}

/* Run these choices from the beginning, telling what happens. */
static int replay(const struct world *world, char *choices)
{
    static struct move moves[MOVES_MAX];
    struct theme theme = themes_short[0]; /* the wide menu, but where a world has its own */

    for (const struct theme *own = themes_short; own->name != NULL; own++) {
        if (own->world != NULL && strcmp(own->world, world->name) == 0) {
            theme = *own;
        }
    }
    theme.ops_max = OPS_MAX;
    theme.faults_max = theme.late_max = theme.odd_max = UINT32_MAX;
    setvbuf(stdout, NULL, _IOLBF, 0);
    world_set(world, &theme);
    run.trace = true;
    world_begin();
    for (char *word = strtok(choices, " "); word != NULL; word = strtok(NULL, " ")) {
        struct move move;

        if (!move_parse(word, &move) || !is_listed(&move)) {
            printf("%s cannot happen now\n", word);
            return 2;
        }
        move_apply(&move);
    }
    if (state.gone || moves_quiescent(moves, moves_list(moves))) {
        world_finish();
    }
    puts("no failure");
    return 0;
}

/* ---- Search ------------------------------------------------------------------------------- */

struct arguments {
    bool longer;
    bool list;
    bool merge;
    uint32_t part;
    uint32_t parts;
    struct theme limits; /* 0 or NULL: those of the theme */
    const char *world;
    const char *theme;
    char *choices;
};

static double seconds(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + (double)now.tv_nsec / 1e9;
}

static void print_totals(const char *world, const char *theme, const struct totals *t, double took)
{
    printf("%-8s %-6s programs=%llu runs=%llu states=%llu transitions=%llu merged=%llu ends=%llu "
           "faults=%llu late=%llu longest=%u bytes=%llu replayed=%llu %.1f s\n",
           world, theme, (ull)t->programs, (ull)t->runs, (ull)t->states, (ull)t->transitions,
           (ull)t->merged, (ull)t->ends, (ull)t->faults, (ull)t->late, t->longest,
           (ull)t->state_bytes, (ull)t->replayed, took);
    fflush(stdout);
}

static void add_totals(struct totals *all, const struct totals *t)
{
    all->programs += t->programs;
    all->runs += t->runs;
    all->states += t->states;
    all->transitions += t->transitions;
    all->merged += t->merged;
    all->ends += t->ends;
    all->faults += t->faults;
    all->late += t->late;
    all->replayed += t->replayed;
    all->longest = t->longest > all->longest ? t->longest : all->longest;
    all->state_bytes = t->state_bytes > all->state_bytes ? t->state_bytes : all->state_bytes;
}

static uint32_t limit(uint32_t value, uint32_t most)
{
    return most > 0 && most - 1 < value ? most - 1 : value;
}

static void search_one(const struct arguments *a, const struct world *world,
                       const struct theme *theme, struct totals *all)
{
    struct theme copy = *theme;
    struct totals t = {0};
    double start = seconds();

    copy.ops_max = limit(copy.ops_max, a->limits.ops_max);
    copy.faults_max = limit(copy.faults_max, a->limits.faults_max);
    copy.late_max = limit(copy.late_max, a->limits.late_max);
    copy.menu = a->limits.menu != NULL ? a->limits.menu : copy.menu;
    if (!world_set(world, &copy)) {
        fprintf(stderr, "%s: the menu of %s names something unknown\n", program, theme->name);
        exit(2);
    }
    search_world(a->part, a->parts, a->merge, &t);
    print_totals(world->name, theme->name, &t, seconds() - start);
    add_totals(all, &t);
}

/* The number of runs must be the same whether equal states are merged or not. */
static void check_merging(void)
{
    static const struct theme theme = {"check", "W1 Za B1 K Kg pause cancel shut", 2, 1, 1, 1,
                                       NULL};
    uint64_t runs = 0;

    for (const struct world *world = worlds; world->name != NULL; world++) {
        struct totals merged = {0};
        struct totals plain = {0};

        if (world->apart) {
            continue;
        }
        world_set(world, &theme);
        search_world(0, 1, true, &merged);
        search_world(0, 1, false, &plain);
        EXPECT(merged.runs == plain.runs, "%s: %llu runs, %llu without merging", world->name,
               (ull)merged.runs, (ull)plain.runs);
        runs += plain.runs;
    }
    printf("merging: %llu runs of all worlds, counted one by one and merged\n", (ull)runs);
    fflush(stdout);
}

static int search_all(const struct arguments *a)
{
    const struct theme *themes = a->longer ? themes_long : themes_short;
    struct totals all = {0};
    double start = seconds();

    check_merging();
    for (const struct theme *theme = themes; theme->name != NULL; theme++) {
        if (a->theme != NULL && strcmp(a->theme, theme->name) != 0) {
            continue;
        }
        for (const struct world *world = worlds; world->name != NULL; world++) {
            if ((a->world == NULL || strcmp(a->world, world->name) == 0) &&
                (theme->world == NULL ? !world->apart : strcmp(theme->world, world->name) == 0)) {
                search_one(a, world, theme, &all);
            }
        }
    }
    print_totals("all", "", &all, seconds() - start);
    return 0;
}

static void list(void)
{
    for (const struct world *world = worlds; world->name != NULL; world++) {
        printf("world %-8s %s\n", world->name, world->about);
    }
    for (int n = 0; n < 2; n++) {
        for (const struct theme *t = n == 0 ? themes_short : themes_long; t->name != NULL; t++) {
            printf("theme %-6s%s up to %u operations of: %s\n", t->name, n == 0 ? "" : " (--long)",
                   t->ops_max, t->menu);
        }
    }
}

static int usage(void)
{
    fprintf(stderr,
            "usage: %s [--long] [--part i/n] [--world NAME] [--theme NAME]\n"
            "           [--menu \"OPERATION...\"] [--ops N] [--faults N] [--late N] [--no-merge]\n"
            "       %s --world NAME --choices \"...\"\n"
            "       %s --list\n",
            program, program, program);
    return 2;
}

/* An option with a value; false if it is none, or the value is wrong. */
static bool parse_value(const char *name, char *value, struct arguments *a)
{
    uint32_t number = (uint32_t)strtoul(value, NULL, 10);

    if (strcmp(name, "--world") == 0) {
        a->world = value;
    } else if (strcmp(name, "--theme") == 0) {
        a->theme = value;
    } else if (strcmp(name, "--choices") == 0) {
        a->choices = value;
    } else if (strcmp(name, "--menu") == 0) {
        a->limits.menu = value;
    } else if (strcmp(name, "--ops") == 0) {
        a->limits.ops_max = number + 1;
    } else if (strcmp(name, "--faults") == 0) {
        a->limits.faults_max = number + 1;
    } else if (strcmp(name, "--late") == 0) {
        a->limits.late_max = number + 1;
    } else {
        return strcmp(name, "--part") == 0 && sscanf(value, "%u/%u", &a->part, &a->parts) == 2 &&
               a->part >= 1 && a->part <= a->parts;
    }
    return true;
}

static bool parse(int argc, char **argv, struct arguments *a)
{
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--long") == 0) {
            a->longer = true;
        } else if (strcmp(argv[i], "--list") == 0) {
            a->list = true;
        } else if (strcmp(argv[i], "--no-merge") == 0) {
            a->merge = false;
        } else if (i + 1 == argc || !parse_value(argv[i], argv[i + 1], a)) {
            return false;
        } else {
            i++;
        }
    }
    a->part--;
    return a->choices == NULL || a->world != NULL;
}

int main(int argc, char **argv)
{
    struct arguments a = {.merge = true, .part = 1, .parts = 1};

    program = argv[0];
    if (!parse(argc, argv, &a)) {
        return usage();
    }
    pattern_init();
    signal(SIGABRT, crashed);
    signal(SIGSEGV, crashed);
    signal(SIGBUS, crashed);
    signal(SIGFPE, crashed);
    if (a.list) {
        list();
        return 0;
    }
    return a.choices != NULL ? replay(world_named(a.world), a.choices) : search_all(&a);
}
