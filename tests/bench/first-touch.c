/* SPDX-License-Identifier: MIT */
/* first-touch.c - copy-before-write in process: what a guest's write costs when
 * the cluster below it was not saved yet, and when it was.
 *
 * First touch: 4 KiB guest writes, one at a time, each into another cluster of
 * 64 KiB, until every cluster of the disk is saved; source and target are files
 * on tmpfs.  The backup is paused before it starts, so all copies are made for
 * the guest.  The clock runs until the last cluster is on the target, so what
 * the guest does not wait for is counted as well; the guest's own waits are in
 * the columns "median" and "99 %".  Against bare system calls for the same
 * clusters in the same order: pread of the cluster, pwrite to the target, pwrite
 * of the 4 KiB; by one thread, and by two that share the clusters' target writes
 * as the library does (the guest reads, the other thread writes).
 *
 * Contestants of the library:
 *     one lane, poll(0)   one thread submits and polls lane 0 without sleeping
 *     one lane, poll(inf) the same, but each poll may sleep, hence may help
 *     one lane, beside    begin, own pwrite, end; poll(0) of lane 0 after each
 *     two lanes           the guest on lane 1; another thread sleeps in polls of
 *                         lane 0 and does the target writes
 *
 * After each run the target is looked at: it holds what the disk held before.
 *
 * Second touch: the same writes once more, over clusters that are saved, in turns
 * with writes to another image of the context that no job looks at, and with a
 * bare pwrite.
 *
 *     first-touch [--dir DIR] [--mib N] [--rounds N] [--fresh] [--quick]
 *
 * --fresh: each run writes to a new target file, so memory is taken and zeroed
 * while the clock runs; otherwise the targets have their memory. */
#define _DEFAULT_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <string.h>
#include <unistd.h>

#include <libblkrepl/libblkrepl.h>

#include "bench.h"

#define ROUNDS_MAX 51
#define CLUSTER 65536
#define BLOCK 4096
/* Second touch: writes in a row before it is another's turn, few enough to be
 * over before the scheduler turns to something else, and the number of turns. */
#define BATCH 48
#define TURNS 1024

static const char *dir = "/dev/shm";
static uint64_t mib = 256;
static int rounds = 11;
static bool fresh;
static char source[PATH_MAX];
static char target[PATH_MAX];
static char other[PATH_MAX];
static int source_fd;
static int target_fd;
static uint64_t clusters;
static unsigned char run_number; /* what the guest writes in this run */
static char data[BLOCK];
static double *wait_us;

static void check(int rc, const char *what)
{
    if (rc < 0) {
        fprintf(stderr, "first-touch: %s: %s\n", what, blkrepl_error_message());
        exit(1);
    }
}

static void require(bool ok, const char *what)
{
    if (!ok) {
        fprintf(stderr, "first-touch: %s\n", what);
        exit(1);
    }
}

static void require_moved(ssize_t moved, size_t bytes)
{
    if (moved != (ssize_t)bytes) {
        fprintf(stderr, "first-touch: %s\n", moved < 0 ? strerror(errno) : "short transfer");
        exit(1);
    }
}

static double cpu_us(void)
{
    struct timespec cpu;

    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &cpu);
    return (double)cpu.tv_sec * 1e6 + (double)cpu.tv_nsec / 1e3;
}

/* Each cluster once, in no particular order: the number of clusters is a power
 * of two. */
static uint64_t cluster_at(uint64_t i)
{
    return i * UINT64_C(0x9e3779b1) & (clusters - 1);
}

/* The block that is written in a cluster, the same in all runs. */
static uint64_t offset_at(uint64_t i)
{
    uint64_t cluster = cluster_at(i);

    return cluster * CLUSTER + cluster * 7 % (CLUSTER / BLOCK) * BLOCK;
}

/* --- the bare system calls ---------------------------------------- */

static char bare_buffer[CLUSTER];

static void bare_one(uint64_t i)
{
    off_t start = (off_t)(cluster_at(i) * CLUSTER);

    require_moved(pread(source_fd, bare_buffer, CLUSTER, start), CLUSTER);
    require_moved(pwrite(target_fd, bare_buffer, CLUSTER, start), CLUSTER);
    require_moved(pwrite(source_fd, data, BLOCK, (off_t)offset_at(i)), BLOCK);
}

static void bare_run(void)
{
    uint64_t now = bench_now_ns();

    for (uint64_t i = 0; i < clusters; i++) {
        uint64_t begin = now;

        bare_one(i);
        now = bench_now_ns();
        wait_us[i] = (double)(now - begin) / 1e3;
    }
}

/* Two threads: a ring of buffers between them, which both watch without sleeping. */
#define RING 16

static char ring[RING][CLUSTER];
static _Atomic uint64_t ring_read;
static _Atomic uint64_t ring_written;

static void *bare_writer(void *arg)
{
    (void)arg;
    for (uint64_t i = 0; i < clusters; i++) {
        while (atomic_load_explicit(&ring_read, memory_order_acquire) == i) {
            sched_yield();
        }
        require_moved(pwrite(target_fd, ring[i % RING], CLUSTER, (off_t)(cluster_at(i) * CLUSTER)),
                      CLUSTER);
        atomic_store_explicit(&ring_written, i + 1, memory_order_release);
    }
    return NULL;
}

static void bare_pair_one(uint64_t i)
{
    while (i - atomic_load_explicit(&ring_written, memory_order_acquire) == RING) {
        sched_yield();
    }
    require_moved(pread(source_fd, ring[i % RING], CLUSTER, (off_t)(cluster_at(i) * CLUSTER)),
                  CLUSTER);
    atomic_store_explicit(&ring_read, i + 1, memory_order_release);
    require_moved(pwrite(source_fd, data, BLOCK, (off_t)offset_at(i)), BLOCK);
}

static void bare_pair_run(void)
{
    pthread_t writer;
    uint64_t now = bench_now_ns();

    atomic_store(&ring_read, 0);
    atomic_store(&ring_written, 0);
    require(pthread_create(&writer, NULL, bare_writer, NULL) == 0, "no thread");
    for (uint64_t i = 0; i < clusters; i++) {
        uint64_t begin = now;

        bare_pair_one(i);
        now = bench_now_ns();
        wait_us[i] = (double)(now - begin) / 1e3;
    }
    pthread_join(writer, NULL);
}

/* --- the library ---------------------------------------- */

static blkrepl_context *ctx;
static blkrepl_image *image;    /* the guest's disk */
static blkrepl_image *idle_one; /* one that no job looks at */
static blkrepl_image *saved;
static blkrepl_job *job;

static void guest_done(void *user, int result)
{
    check(result, "guest write");
    *(bool *)user = true;
}

static blkrepl_job_info job_info(void)
{
    blkrepl_job_info info = {.struct_size = sizeof info};

    check(blkrepl_job_query(job, &info), "query");
    return info;
}

/* Open the target and attach a backup that only copies what the guest touches. */
static void backup_attach(void)
{
    check(blkrepl_image_open_file(ctx, target, NULL, NULL, &saved), "target");
    check(blkrepl_backup_create(image, saved, NULL, &job), "backup");
    check(blkrepl_job_pause(job), "pause");
    check(blkrepl_job_start(job), "start");
    check(blkrepl_poll(ctx, 0, 0), "poll");
}

static void backup_end(void)
{
    check(blkrepl_job_cancel(job, 0), "cancel");
    while (job_info().state != BLKREPL_JOB_CONCLUDED) {
        check(blkrepl_poll(ctx, 0, 0), "poll");
    }
    blkrepl_job_free(job);
    blkrepl_image_close(saved);
    check(blkrepl_poll(ctx, 0, 0), "poll");
}

static void write_through(blkrepl_image *to, uint32_t lane, uint64_t offset, uint64_t timeout_ns)
{
    blkrepl_iovec iov = {data, BLOCK};
    bool done = false;
    blkrepl_completion completion = {.fn = guest_done, .user = &done};

    check(blkrepl_image_write(to, lane, offset, &iov, 1, 0, &completion), "write");
    while (!done) {
        check(blkrepl_poll(ctx, lane, timeout_ns), "poll");
    }
}

static void write_beside(uint64_t offset)
{
    bool done = false;
    blkrepl_completion go = {.fn = guest_done, .user = &done};
    blkrepl_bracket what = {
        .struct_size = sizeof what, .opcode = BLKREPL_OP_WRITE, .offset = offset, .bytes = BLOCK};
    uint64_t token;
    int rc = blkrepl_write_begin(image, &what, &go, &token);

    check(rc, "begin");
    while (rc == BLKREPL_WAIT && !done) {
        check(blkrepl_poll(ctx, 0, 0), "poll");
    }
    require_moved(pwrite(source_fd, data, BLOCK, (off_t)offset), BLOCK);
    check(blkrepl_write_end(ctx, token, 0, NULL, 0, NULL), "end");
    check(blkrepl_poll(ctx, 0, 0), "poll");
}

enum form {
    SPIN,
    SLEEP,
    BESIDE,
    TWO_LANES
};

static void guest_loop(enum form form)
{
    uint64_t now = bench_now_ns();

    for (uint64_t i = 0; i < clusters; i++) {
        uint64_t begin = now;

        switch (form) {
        case SPIN: write_through(image, 0, offset_at(i), 0); break;
        case SLEEP: write_through(image, 0, offset_at(i), BLKREPL_FOREVER); break;
        case BESIDE: write_beside(offset_at(i)); break;
        case TWO_LANES: write_through(image, 1, offset_at(i), 0); break;
        }
        now = bench_now_ns();
        wait_us[i] = (double)(now - begin) / 1e3;
    }
}

static bool all_saved(void)
{
    return job_info().guest_copies_count == clusters; /* counted when they are on the target */
}

static atomic_bool stop;

static void *control_thread(void *arg)
{
    (void)arg;
    while (!atomic_load(&stop)) {
        check(blkrepl_poll(ctx, 0, BLKREPL_FOREVER), "poll of lane 0");
    }
    return NULL;
}

static void one_lane_run(enum form form)
{
    guest_loop(form);
    while (!all_saved()) {
        /* A poll with nothing to report sleeps on; ask now and then. */
        check(blkrepl_poll(ctx, 0, form == SLEEP ? 20000 : 0), "poll");
    }
}

static void two_lanes_run(void)
{
    pthread_t control;

    atomic_store(&stop, false);
    require(pthread_create(&control, NULL, control_thread, NULL) == 0, "no thread");
    guest_loop(TWO_LANES);
    while (!all_saved()) {
        sched_yield();
    }
    atomic_store(&stop, true);
    check(blkrepl_poll_wake(ctx, 0), "wake");
    pthread_join(control, NULL);
}

static void spin_run(void)
{
    one_lane_run(SPIN);
}

static void sleep_run(void)
{
    one_lane_run(SLEEP);
}

static void beside_run(void)
{
    one_lane_run(BESIDE);
}

/* --- second touch ---------------------------------------- */

enum {
    TOUCH_BARE,
    TOUCH_IDLE,
    TOUCH_SAVED,
    TOUCHES
};

static double touch_ns[TOUCHES][ROUNDS_MAX];

static double touch_batch(int who, uint64_t from)
{
    uint64_t begin = bench_now_ns();

    for (uint64_t i = from; i < from + BATCH; i++) {
        uint64_t offset = offset_at(i % clusters);

        if (who == TOUCH_BARE) {
            require_moved(pwrite(source_fd, data, BLOCK, (off_t)offset), BLOCK);
        } else {
            write_through(who == TOUCH_IDLE ? idle_one : image, 0, offset, 0);
        }
    }
    return (double)(bench_now_ns() - begin) / BATCH;
}

/* In short turns, so that whatever else the machine does hits all alike; each in
 * another part of the disk, so that nobody finds in the cache what another one
 * has just written. */
static void second_touch(int round)
{
    static double turn_ns[TOUCHES][TURNS];
    uint64_t copies = job_info().guest_copies_count;

    for (uint64_t turn = 0; turn < TURNS; turn++) {
        for (uint64_t i = 0; i < TOUCHES; i++) {
            int who = (int)((i + turn) % TOUCHES);

            turn_ns[who][turn] = touch_batch(who, turn * BATCH + i * clusters / TOUCHES);
        }
    }
    for (int who = 0; who < TOUCHES; who++) {
        touch_ns[who][round] = bench_median(turn_ns[who], TURNS);
    }
    require(job_info().guest_copies_count == copies, "a second touch was a first one");
}

/* --- measuring ---------------------------------------- */

enum {
    BARE,
    BARE_PAIR,
    FIRST_OF_LIBRARY,
    CONTESTANTS = 6
};

static const struct {
    const char *name;
    void (*run)(void);
} contestants[CONTESTANTS] = {
    {"bare calls, one thread", bare_run}, {"bare calls, two threads", bare_pair_run},
    {"one lane, poll(0)", spin_run},      {"one lane, poll(inf)", sleep_run},
    {"one lane, beside", beside_run},     {"two lanes", two_lanes_run},
};

static struct series {
    double wall_us[ROUNDS_MAX]; /* per write, until all is saved */
    double cpu_us[ROUNDS_MAX];
    double median_us[ROUNDS_MAX];
    double p99_us[ROUNDS_MAX];
} results[CONTESTANTS];

static void remove_files(void)
{
    unlink(source);
    unlink(target);
    unlink(other);
}

static int make_file(const char *path, int fill)
{
    char *block = malloc(1u << 20);
    int fd = open(path, O_RDWR | O_CREAT | O_TRUNC, 0600);

    require(fd >= 0 && block != NULL, path);
    memset(block, fill, 1u << 20);
    for (uint64_t i = 0; i < mib && fill != 0; i++) {
        require_moved(write(fd, block, 1u << 20), 1u << 20);
    }
    require(ftruncate(fd, (off_t)(mib << 20)) == 0, path);
    free(block);
    return fd;
}

/* The target holds what the disk held before the guest's writes of this run. */
static void check_target(void)
{
    for (uint64_t i = 0; i < clusters; i++) {
        unsigned char byte;
        unsigned char now;

        require_moved(pread(target_fd, &byte, 1, (off_t)offset_at(i)), 1);
        require_moved(pread(source_fd, &now, 1, (off_t)offset_at(i)), 1);
        require(byte == (unsigned char)(run_number - 1) && now == run_number,
                "the target does not hold the old data");
    }
}

static void measure(int who, int round)
{
    struct series *s = &results[who];
    bool library = who >= FIRST_OF_LIBRARY;
    uint64_t begin;
    double cpu;

    if (fresh) {
        close(target_fd);
        target_fd = make_file(target, 0);
    }
    memset(data, ++run_number, sizeof data);
    if (library) {
        backup_attach();
    }
    cpu = cpu_us();
    begin = bench_now_ns();
    contestants[who].run();
    s->wall_us[round] = (double)(bench_now_ns() - begin) / 1e3 / (double)clusters;
    s->cpu_us[round] = (cpu_us() - cpu) / (double)clusters;
    qsort(wait_us, clusters, sizeof *wait_us, bench_compare);
    s->median_us[round] = wait_us[clusters / 2];
    s->p99_us[round] = wait_us[clusters * 99 / 100];
    check_target();
    if (library) {
        require(job_info().guest_copies_count == clusters, "not every write was a first touch");
        if (who == FIRST_OF_LIBRARY) {
            second_touch(round);
        }
        backup_end();
    }
}

static double median_ratio(const double *a, const double *b)
{
    double ratio[ROUNDS_MAX];

    for (int i = 0; i < rounds; i++) {
        ratio[i] = a[i] / b[i];
    }
    return bench_median(ratio, rounds);
}

static double median_excess(const double *a, const double *b)
{
    double excess[ROUNDS_MAX];

    for (int i = 0; i < rounds; i++) {
        excess[i] = a[i] - b[i];
    }
    return bench_median(excess, rounds);
}

/* Ratios first: bench_median() sorts what it is given. */
static void print_all(void)
{
    double ratio[CONTESTANTS][2];
    double idle = median_excess(touch_ns[TOUCH_IDLE], touch_ns[TOUCH_BARE]);
    double second = median_excess(touch_ns[TOUCH_SAVED], touch_ns[TOUCH_IDLE]);

    for (int i = 0; i < CONTESTANTS; i++) {
        ratio[i][0] = median_ratio(results[i].wall_us, results[BARE].wall_us);
        ratio[i][1] = median_ratio(results[i].cpu_us, results[BARE].cpu_us);
    }
    printf("first touch: 4 KiB writes, qd 1, each into a new cluster of 64 KiB; %llu MiB in %s,\n"
           "target %s; us per write until all is saved; median of %d interleaved rounds\n",
           (unsigned long long)mib, dir, fresh ? "a new file" : "with its memory", rounds);
    printf("  %-26s %8s %8s %10s %10s %8s %8s\n", "", "us", "of bare", "CPU us", "of bare",
           "median", "99 %");
    for (int i = 0; i < CONTESTANTS; i++) {
        struct series *s = &results[i];

        printf("  %-26s %8.2f %8.2f %10.2f %10.2f %8.2f %8.2f\n", contestants[i].name,
               bench_median(s->wall_us, rounds), ratio[i][0], bench_median(s->cpu_us, rounds),
               ratio[i][1], bench_median(s->median_us, rounds), bench_median(s->p99_us, rounds));
    }
    printf("  target: one lane <= 1.2 of the bare calls\n"
           "second touch, through one lane, ns per write\n"
           "  bare pwrite                %8.0f\n"
           "  idle image                 %8.0f  (%+.0f)\n"
           "  cluster saved              %8.0f  (%+.0f against idle; target: <= +100)\n",
           bench_median(touch_ns[TOUCH_BARE], rounds), bench_median(touch_ns[TOUCH_IDLE], rounds),
           idle, bench_median(touch_ns[TOUCH_SAVED], rounds), second);
}

static int parse(int argc, char **argv)
{
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--quick") == 0) {
            rounds = 1;
            mib = 16;
        } else if (strcmp(argv[i], "--fresh") == 0) {
            fresh = true;
        } else if (strcmp(argv[i], "--dir") == 0 && i + 1 < argc) {
            dir = argv[++i];
        } else if (strcmp(argv[i], "--mib") == 0 && i + 1 < argc) {
            mib = strtoull(argv[++i], NULL, 0);
        } else if (strcmp(argv[i], "--rounds") == 0 && i + 1 < argc) {
            rounds = atoi(argv[++i]);
        } else {
            return -1;
        }
    }
    snprintf(source, sizeof source, "%s/blkrepl-touch-%d.src", dir, (int)getpid());
    snprintf(target, sizeof target, "%s/blkrepl-touch-%d.dst", dir, (int)getpid());
    snprintf(other, sizeof other, "%s/blkrepl-touch-%d.idle", dir, (int)getpid());
    return mib == 0 || (mib & (mib - 1)) != 0 || rounds < 1 || rounds > ROUNDS_MAX ? -1 : 0;
}

static void prepare(void)
{
    blkrepl_context_options options = {.struct_size = sizeof options, .lane_count = 2};

    clusters = (mib << 20) / CLUSTER;
    wait_us = malloc(clusters * sizeof *wait_us);
    require(wait_us != NULL, "no memory");
    atexit(remove_files);
    source_fd = make_file(source, 0x5a);
    target_fd = make_file(target, 0x5a);
    close(make_file(other, 0x5a));
    run_number = 0x5a;
    check(blkrepl_context_create(&options, &ctx), "context");
    check(blkrepl_image_open_file(ctx, source, NULL, NULL, &image), "source");
    check(blkrepl_image_open_file(ctx, other, NULL, NULL, &idle_one), "idle image");
}

int main(int argc, char **argv)
{
    if (parse(argc, argv) < 0) {
        fprintf(stderr, "usage: first-touch [--dir DIR] [--mib N (a power of two)] [--rounds N]\n"
                        "                   [--fresh] [--quick]\n");
        return 2;
    }
    prepare();
    for (int round = 0; round < rounds; round++) {
        for (int i = 0; i < CONTESTANTS; i++) {
            measure((i + round) % CONTESTANTS, round); /* another one begins each round */
        }
    }
    print_all();
    blkrepl_image_close(image);
    blkrepl_image_close(idle_one);
    return blkrepl_context_free(ctx) == 0 ? 0 : 1;
}
