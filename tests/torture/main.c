/* SPDX-License-Identifier: MIT */
/* main.c - which runs there are, and what came of them. */
#ifdef __linux__
#define _GNU_SOURCE
#endif
#include "api.h"

#ifdef __GLIBC__
#include <malloc.h>
#endif
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

/* A run that takes longer hangs. */
#define RUN_SECONDS_MAX 30
/* From each scenario; then it is left alone. */
#define FAILURES_MAX 3
/* Runs with threads have more calls now and then. */
#define THREADS_MORE 40
/* Processes that share the scenarios. */
#define WORKERS_MAX 16

/* What the processes share. */
struct report {
    uint64_t runs;
    uint64_t failed[FAULT_DOMAINS]; /* calls that were made to fail */
    uint64_t counted[FAULT_DOMAINS];
    uint64_t covered[128];
    uint64_t run; /* number of the present one within its scenario */
    char repeat[160];
    unsigned scenarios;
};

/* What all of them share. */
struct shared {
    atomic_uint next; /* scenario to be taken */
    atomic_bool failed;
    struct report reports[WORKERS_MAX];
};

struct arguments {
    const char *scenario;
    const char *exports;
    const char *fault;
    const char *order;
    uint64_t stride;
    unsigned workers; /* 0: one for each processor */
    bool list;
    bool stop; /* at the first scenario that fails */
};

static struct shared *shared;
static struct report *report; /* this process's */
static struct arguments arguments = {.stride = 1};
static char folder[128];
static const char *const order_names[ORDER_COUNT] = {"inline", "fifo", "lifo"};
static const char *const domain_names[FAULT_DOMAINS] = {"none", "alloc", "disk", "sys"};
static const unsigned domain_codes[FAULT_DOMAINS] = {1, 1, 3, FAULT_CODES_MAX};

/* ---- One run ------------------------------------------------------------------------------ */

_Noreturn void torture_fail(const char *format, ...)
{
    va_list args;

    fflush(stdout);
    fprintf(stderr, "FAIL ");
    va_start(args, format);
    vfprintf(stderr, format, args);
    va_end(args);
    fprintf(stderr, "\n");
    _exit(3);
}

void torture_cover(unsigned function)
{
    report->covered[function]++;
}

const char *torture_folder(void)
{
    return folder;
}

static void run_one(const struct scenario *s, enum order order, const struct fault_plan *plan)
{
    char fault[64] = "";

    if (plan->domain != FAULT_NONE) {
        snprintf(fault, sizeof fault, " --fail %s:%llu:%s:%u", domain_names[plan->domain],
                 (unsigned long long)plan->nth, plan->on ? "on" : "once", plan->code);
    }
    snprintf(report->repeat, sizeof report->repeat, "blkrepl-torture --scenario %s --order %s%s",
             s->name, order_names[order], fault);
    alarm(RUN_SECONDS_MAX);
    fault_start(plan);
    world_run(s, order);
    report->runs++;
    report->failed[plan->domain] += fault_fired();
}

/* ---- All runs of a scenario ----------------------------------------------------------------- */

/* Skips what an earlier process has done. */
struct walk {
    const struct scenario *scenario;
    enum order order;
    uint64_t first;
};

static bool walk_next(struct walk *walk, const struct fault_plan *plan)
{
    if (report->run++ < walk->first) {
        return false;
    }
    run_one(walk->scenario, walk->order, plan);
    return true;
}

static void walk_domain(struct walk *walk, struct fault_plan *plan, uint64_t count)
{
    bool threads = (walk->scenario->flags & SCENARIO_THREADS) != 0;
    uint64_t last = count + (threads ? THREADS_MORE : 0);

    for (uint64_t n = 1 + plan->code % arguments.stride; n <= last; n += arguments.stride) {
        plan->nth = n;
        if (plan->domain == FAULT_SYS && !plan->on && !sys_code_fits(n, plan->code)) {
            continue;
        }
        if (walk_next(walk, plan) && fault_fired() == 0) {
            REQUIRE(threads || plan->domain == FAULT_SYS,
                    "call %llu of %llu did not come: the scenario is not deterministic",
                    (unsigned long long)n, (unsigned long long)count);
        }
    }
}

/* Twice without a fault, which must give the same counts; then each call fails. */
static void walk_order(struct walk *walk)
{
    uint64_t counts[FAULT_DOMAINS];

    run_one(walk->scenario, walk->order, &(struct fault_plan){.domain = FAULT_NONE});
    for (int i = 0; i < FAULT_DOMAINS; i++) {
        counts[i] = fault_calls((enum fault_domain)i);
        report->counted[i] += walk->first == 0 ? counts[i] : 0;
    }
    run_one(walk->scenario, walk->order, &(struct fault_plan){.domain = FAULT_NONE});
    for (int i = 0; i < FAULT_DOMAINS; i++) {
        REQUIRE((walk->scenario->flags & SCENARIO_THREADS) != 0 ||
                    counts[i] == fault_calls((enum fault_domain)i),
                "the scenario is not deterministic: %llu and then %llu calls of kind %s",
                (unsigned long long)counts[i],
                (unsigned long long)fault_calls((enum fault_domain)i), domain_names[i]);
    }
    for (unsigned domain = FAULT_ALLOC; domain < FAULT_DOMAINS; domain++) {
        if (domain == FAULT_SYS && walk->order != ORDER_INLINE) {
            continue; /* the system does not know of the order */
        }
        for (unsigned code = 0; code < domain_codes[domain]; code++) {
            for (int on = 0; on < 2; on++) {
                struct fault_plan plan = {
                    .domain = (enum fault_domain)domain, .on = on != 0, .code = code};

                walk_domain(walk, &plan, counts[domain]);
            }
        }
    }
}

static void walk_scenario(const struct scenario *scenario, uint64_t first)
{
    struct walk walk = {.scenario = scenario, .first = first};
    int orders = (scenario->flags & SCENARIO_ONE_ORDER) != 0 ? 1 : ORDER_COUNT;

    report->run = 0;
    for (int order = 0; order < orders; order++) {
        walk.order = (enum order)order;
        walk_order(&walk);
    }
}

/* In a process of its own; true if all went well.  What fails is told, and the
 * rest is done by the next process. */
static bool scenario_run(const struct scenario *scenario)
{
    uint64_t first = 0;

    for (int failures = 0; failures < FAILURES_MAX; failures++) {
        int status = 0;

        fflush(NULL);
        pid_t pid = fork();
        if (pid == 0) {
            walk_scenario(scenario, first);
            exit(0);
        }
        if (pid < 0 || waitpid(pid, &status, 0) != pid) {
            fprintf(stderr, "FAIL cannot fork\n");
            return false;
        }
        if (WIFEXITED(status) && WEXITSTATUS(status) == 0) {
            return failures == 0;
        }
        if (WIFSIGNALED(status)) {
            fprintf(stderr, "FAIL ended by signal %d%s\n", WTERMSIG(status),
                    WTERMSIG(status) == SIGALRM ? ": it hangs" : "");
        }
        fprintf(stderr, "     repeat: %s\n", report->repeat);
        if (report->run == 0 || report->run <= first) {
            return false; /* not even the clean run */
        }
        first = report->run;
    }
    fprintf(stderr, "     more of scenario %s is not tried\n", scenario->name);
    return false;
}

/* ---- The program --------------------------------------------------------------------------- */

static const struct scenario *scenario_find(const char *name)
{
    for (const struct scenario *const *group = scenario_groups; *group; group++) {
        for (const struct scenario *s = *group; s->name; s++) {
            if (strcmp(s->name, name) == 0) {
                return s;
            }
        }
    }
    fprintf(stderr, "no scenario \"%s\"; --list names them\n", name);
    exit(2);
}

static int name_index(const char *name, size_t length, const char *const *names, int count)
{
    for (int i = 0; i < count; i++) {
        if (strlen(names[i]) == length && strncmp(names[i], name, length) == 0) {
            return i;
        }
    }
    fprintf(stderr, "unknown: \"%.*s\"\n", (int)length, name);
    exit(2);
}

/* DOMAIN:N:once|on[:CODE] */
static struct fault_plan plan_parse(const char *text)
{
    struct fault_plan plan = {.domain = FAULT_NONE};
    char domain[16], mode[16];
    unsigned long long nth = 0;
    unsigned code = 0;

    if (sscanf(text, "%15[a-z]:%llu:%15[a-z]:%u", domain, &nth, mode, &code) < 3) {
        fprintf(stderr, "--fail DOMAIN:N:once|on[:CODE]\n");
        exit(2);
    }
    plan.domain =
        (enum fault_domain)name_index(domain, strlen(domain), domain_names, FAULT_DOMAINS);
    plan.on = strcmp(mode, "on") == 0;
    plan.nth = nth;
    plan.code = code;
    return plan;
}

/* One run, in this process, for a debugger. */
static int repeat_one(void)
{
    const struct scenario *s = scenario_find(arguments.scenario);
    const char *order = arguments.order ? arguments.order : order_names[0];
    struct fault_plan none = {.domain = FAULT_NONE};
    struct fault_plan plan = plan_parse(arguments.fault);
    enum order which = (enum order)name_index(order, strlen(order), order_names, ORDER_COUNT);

    run_one(s, which, &none);
    run_one(s, which, &plan);
    printf("nothing was found; %llu calls failed\n", (unsigned long long)fault_fired());
    return 0;
}

/* Whether it is asked for, and nobody else has it. */
static bool scenario_is_mine(const struct scenario *s, unsigned number, unsigned *mine)
{
    if (arguments.scenario && strcmp(arguments.scenario, s->name) != 0) {
        return false;
    }
    if (arguments.scenario) {
        return true;
    }
    if (number > *mine) {
        *mine = atomic_fetch_add(&shared->next, 1);
    }
    return number == *mine;
}

/* This process's share of them. */
static bool scenarios_run(void)
{
    unsigned number = 1, mine = 0;
    bool good = true;

    for (const struct scenario *const *group = scenario_groups; *group; group++) {
        for (const struct scenario *s = *group; s->name; s++, number++) {
            if (!scenario_is_mine(s, number, &mine)) {
                continue;
            }
            if (arguments.stop && atomic_load(&shared->failed)) {
                return false;
            }
            report->scenarios++;
            if (!scenario_run(s)) {
                good = false;
                atomic_store(&shared->failed, true);
            }
        }
    }
    return good;
}

static void scenarios_list(void)
{
    for (const struct scenario *const *group = scenario_groups; *group; group++) {
        for (const struct scenario *s = *group; s->name; s++) {
            printf("%s\n", s->name);
        }
    }
}

/* Every name in the file of exports was called, and is known here. */
static bool exports_covered(unsigned *covered)
{
    FILE *file = arguments.exports ? fopen(arguments.exports, "r") : NULL;
    char line[128];
    bool good = !arguments.exports || file;

    *covered = 0;
    for (unsigned i = 0; i < api_count(); i++) {
        *covered += report->covered[i] > 0;
        if (report->covered[i] == 0 && !arguments.scenario) {
            fprintf(stderr, "FAIL %s is never called\n", api_name(i));
            good = false;
        }
    }
    while (file && fgets(line, sizeof line, file)) {
        bool known = false;

        line[strcspn(line, " \n")] = '\0';
        for (unsigned i = 0; i < api_count(); i++) {
            known = known || strcmp(api_name(i), line) == 0;
        }
        if (!known) {
            fprintf(stderr, "FAIL %s is exported and no scenario calls it\n", line);
            good = false;
        }
    }
    if (file) {
        fclose(file);
    }
    return good;
}

static void usage(void)
{
    fprintf(stderr,
            "blkrepl-torture [--exports FILE] [--stride K] [--workers N] [--stop] [--list]\n"
            "blkrepl-torture --scenario NAME [--order inline|fifo|lifo]\n"
            "                [--fail alloc|disk|sys:N:once|on[:CODE]]\n");
    exit(2);
}

static void parse(int argc, char **argv)
{
    for (int i = 1; i < argc; i++) {
        const char *value = i + 1 < argc ? argv[i + 1] : NULL;

        if (strcmp(argv[i], "--list") == 0 || strcmp(argv[i], "--stop") == 0) {
            arguments.list = arguments.list || argv[i][2] == 'l';
            arguments.stop = arguments.stop || argv[i][2] == 's';
            continue;
        }
        if (!value) {
            usage();
        }
        i++;
        if (strcmp(argv[i - 1], "--scenario") == 0) {
            arguments.scenario = value;
        } else if (strcmp(argv[i - 1], "--exports") == 0) {
            arguments.exports = value;
        } else if (strcmp(argv[i - 1], "--fail") == 0) {
            arguments.fault = value;
        } else if (strcmp(argv[i - 1], "--order") == 0) {
            arguments.order = value;
        } else if (strcmp(argv[i - 1], "--workers") == 0) {
            arguments.workers = (unsigned)strtoul(value, NULL, 10);
        } else if (strcmp(argv[i - 1], "--stride") == 0 && strtoull(value, NULL, 10) > 0) {
            arguments.stride = strtoull(value, NULL, 10);
        } else {
            usage();
        }
    }
    if (arguments.fault && !arguments.scenario) {
        usage();
    }
}

static bool folder_make(void)
{
    const char *top = getenv("TMPDIR");

    snprintf(folder, sizeof folder, "%.90s/blkrepl-torture-XXXXXX", top && *top ? top : "/tmp");
    return mkdtemp(folder) != NULL;
}

static void folder_remove(void)
{
    char path[160];

    for (int i = 0; i < MEDIA_MAX; i++) {
        snprintf(path, sizeof path, "%s/%d", folder, i);
        unlink(path);
    }
    rmdir(folder);
}

static double seconds_now(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + (double)now.tv_nsec / 1e9;
}

/* Each in a folder of its own. */
static pid_t worker_start(unsigned worker)
{
    bool good;
    pid_t pid;

    fflush(NULL);
    pid = fork();
    if (pid != 0) {
        return pid;
    }
    report = &shared->reports[worker];
    if (!folder_make()) {
        fprintf(stderr, "FAIL no folder for files\n");
        _exit(1);
    }
    good = scenarios_run();
    folder_remove();
    fflush(NULL);
    _exit(good ? 0 : 1);
}

static void report_add(const struct report *other)
{
    report->runs += other->runs;
    report->scenarios += other->scenarios;
    for (int i = 0; i < FAULT_DOMAINS; i++) {
        report->failed[i] += other->failed[i];
        report->counted[i] += other->counted[i];
    }
    for (size_t i = 0; i < ARRAY_COUNT(report->covered); i++) {
        report->covered[i] += other->covered[i];
    }
}

static bool workers_run(void)
{
    long processors = sysconf(_SC_NPROCESSORS_ONLN);
    unsigned count = arguments.workers ? arguments.workers
                     : processors > 0  ? (unsigned)processors
                                       : 1;
    pid_t pids[WORKERS_MAX];
    bool good = true;

    count = arguments.scenario ? 1 : count < WORKERS_MAX ? count : WORKERS_MAX;
    atomic_store(&shared->next, 1);
    for (unsigned i = 0; i < count; i++) {
        pids[i] = worker_start(i);
    }
    for (unsigned i = 0; i < count; i++) {
        int status = 1;

        good = pids[i] > 0 && waitpid(pids[i], &status, 0) == pids[i] && status == 0 && good;
    }
    for (unsigned i = 1; i < count; i++) {
        report_add(&shared->reports[i]);
    }
    return good;
}

static int run_all(void)
{
    double begin = seconds_now();
    unsigned covered = 0;
    bool good = workers_run();

    if (report->scenarios == 0) {
        scenario_find(arguments.scenario);
    }
    good = exports_covered(&covered) && good;
    printf("scenarios=%u functions=%u/%u runs=%llu seconds=%.1f\n", report->scenarios, covered,
           api_count(), (unsigned long long)report->runs, seconds_now() - begin);
    for (int i = FAULT_ALLOC; i < FAULT_DOMAINS; i++) {
        printf("%s: %llu calls in the clean runs, %llu failed\n", domain_names[i],
               (unsigned long long)report->counted[i], (unsigned long long)report->failed[i]);
    }
    printf("%s\n", good ? "ok" : "FAILED");
    return good ? 0 : 1;
}

/* In this process, with a folder. */
static int run_repeat(void)
{
    int rc;

    if (!folder_make()) {
        fprintf(stderr, "FAIL no folder for files\n");
        return 1;
    }
    rc = repeat_one();
    folder_remove();
    return rc;
}

int main(int argc, char **argv)
{
    parse(argc, argv);
#ifdef __GLIBC__
    mallopt(M_MMAP_THRESHOLD, 64 << 20); /* else half of the time goes into page faults */
    mallopt(M_TRIM_THRESHOLD, 256 << 20);
#endif
    if (arguments.list) {
        scenarios_list();
        return 0;
    }
    shared = mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (shared == MAP_FAILED) {
        fprintf(stderr, "FAIL no memory\n");
        return 1;
    }
    report = &shared->reports[0];
    return arguments.fault ? run_repeat() : run_all();
}
