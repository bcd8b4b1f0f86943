/* SPDX-License-Identifier: MIT */
/* cbw-latency.c - how long a guest's 4 KiB write takes while old data are being saved, and what a
 * slow target does to it, with and without spill.
 *
 * The guest is a thread that polls a lane of its own, with 1 or 16 writes under way; another
 * thread sleeps in polls of lane 0.  Disk and spill image are files, by the bundled backend.  The
 * target is a device of its own: a thread that takes one request after the other and carries it
 * out in a file; the slow one takes ten times as long for each as that file needed for as many
 * bytes in this round, asleep for the rest of it.
 *
 * All of this beside a full backup, as it comes.  First touch: right after its start the guest
 * writes once to each cluster of 64 KiB in the last eighth of the disk, where the backup gets last.
 * Second touch: the same once more, beside the slow target.  Full: the guest writes all over the
 * disk from the backup's start to its end, first and second touches as they come.
 *
 * Against bare system calls in the same round: a pwrite; and before it pread and pwrite of the
 * cluster, to a target with no delay.  After each run the target must hold the old data.
 *
 *     cbw-latency [--dir DIR] [--mib N] [--rounds N] [--quick] */
#define _DEFAULT_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <string.h>
#include <unistd.h>

#include <libblkrepl/libblkrepl.h>

#include "bench.h"

#define ROUNDS_MAX 51
#define CLUSTER 65536u
#define BLOCK 4096u
#define DEPTH_MAX 16u
#define LATENCIES_MAX (4u << 20)
#define SLOWER 10
#define GUEST_LANE 1u

static const char *dir = "/dev/shm";
static uint64_t mib = 512;
static int rounds = 7;
static char source_path[PATH_MAX];
static char target_path[PATH_MAX];
static char spill_path[PATH_MAX];
static int source_fd;
static int target_fd;
static uint64_t clusters;
static unsigned char generation; /* what the guest writes now; the disk holds the one before */
static double *latency_us;
static size_t latency_count;

static void check(int rc, const char *what)
{
    if (rc < 0) {
        fprintf(stderr, "cbw-latency: %s: %s: %s\n", what, blkrepl_error_text(rc),
                blkrepl_error_message());
        exit(1);
    }
}

static void require(bool ok, const char *what)
{
    if (!ok) {
        fprintf(stderr, "cbw-latency: %s\n", what);
        exit(1);
    }
}

static void require_moved(ssize_t moved, size_t bytes)
{
    require(moved == (ssize_t)bytes, moved < 0 ? strerror(errno) : "short transfer");
}

/* Each of the last `count` clusters once, in no particular order; count is a power of two. */
static uint64_t cluster_at(uint64_t i, uint64_t count)
{
    return clusters - count + (i * UINT64_C(0x9e3779b1) & (count - 1));
}

/* The one block of a cluster that is ever written. */
static uint64_t offset_in(uint64_t cluster)
{
    return cluster * CLUSTER + cluster * 7 % (CLUSTER / BLOCK) * BLOCK;
}

static void note(uint64_t begin)
{
    if (latency_count < LATENCIES_MAX) {
        latency_us[latency_count++] = (double)(bench_now_ns() - begin) / 1e3;
    }
}

/* ---- The target: a device that may be slow ----------------------------------------------- */

#define QUEUE 256u

static struct device {
    pthread_t thread;
    pthread_mutex_t lock;
    pthread_cond_t work;
    blkrepl_io *queue[QUEUE];
    unsigned head;
    unsigned count;
    bool stop;
    double ns_per_byte; /* at least; 0: as fast as it goes */
    double free_ns;     /* when it has done what it was given */
} device = {.lock = PTHREAD_MUTEX_INITIALIZER, .work = PTHREAD_COND_INITIALIZER};

static blkrepl_context *ctx;

static void device_transfer(const blkrepl_io *io)
{
    uint64_t at = io->offset;

    for (uint32_t i = 0; i < io->iov_count; i++) {
        ssize_t moved = io->opcode == BLKREPL_OP_READ
                            ? pread(target_fd, io->iov[i].base, io->iov[i].len, (off_t)at)
                            : pwrite(target_fd, io->iov[i].base, io->iov[i].len, (off_t)at);

        require_moved(moved, io->iov[i].len);
        at += io->iov[i].len;
    }
}

/* Late is late: what oversleeps makes the next one shorter, so the rate is the one wanted. */
static void device_take_time(const blkrepl_io *io)
{
    double now = (double)bench_now_ns();

    device.free_ns = (device.free_ns > now - 1e6 ? device.free_ns : now) +
                     device.ns_per_byte * (double)io->bytes;
    if (device.free_ns > now) {
        uint64_t wait = (uint64_t)(device.free_ns - now);

        nanosleep(&(struct timespec){.tv_sec = (time_t)(wait / 1000000000u),
                                     .tv_nsec = (long)(wait % 1000000000u)},
                  NULL);
    }
}

static void *device_main(void *user)
{
    pthread_mutex_lock(&device.lock);
    for (;;) {
        while (device.count == 0 && !device.stop) {
            pthread_cond_wait(&device.work, &device.lock);
        }
        if (device.count == 0) {
            break;
        }
        blkrepl_io *io = device.queue[device.head];
        device.head = (device.head + 1) % QUEUE;
        device.count--;
        pthread_mutex_unlock(&device.lock);
        uint64_t id = io->id;
        device_transfer(io);
        if (device.ns_per_byte > 0) {
            device_take_time(io);
        }
        check(blkrepl_io_complete(ctx, id, 0), "complete");
        pthread_mutex_lock(&device.lock);
    }
    pthread_mutex_unlock(&device.lock);
    return user;
}

static int device_get_info(void *user, blkrepl_backend_info *info)
{
    (void)user;
    info->bytes = mib << 20;
    info->opcodes = 1u << BLKREPL_OP_READ | 1u << BLKREPL_OP_WRITE;
    info->queue_depth = QUEUE;
    return 0;
}

static void device_submit(void *user, uint32_t lane, blkrepl_io *const *ios, uint32_t count)
{
    (void)user;
    (void)lane;
    pthread_mutex_lock(&device.lock);
    for (uint32_t i = 0; i < count; i++) {
        device.queue[(device.head + device.count++) % QUEUE] = ios[i];
    }
    pthread_cond_signal(&device.work);
    pthread_mutex_unlock(&device.lock);
}

/* What 64 KiB writes to the target's file take, one after the other. */
static double target_ns_per_byte(void)
{
    static char cluster[CLUSTER];
    uint64_t count = clusters < 1024 ? clusters : 1024;
    uint64_t begin = bench_now_ns();

    memset(cluster, generation, sizeof cluster);
    for (uint64_t i = 0; i < count; i++) {
        require_moved(
            pwrite(target_fd, cluster, CLUSTER, (off_t)(cluster_at(i, clusters) * CLUSTER)),
            CLUSTER);
    }
    return (double)(bench_now_ns() - begin) / (double)(count * CLUSTER);
}

/* ---- The guest --------------------------------------------------------------------------- */

static blkrepl_image *disk;

static struct write {
    uint64_t begin;
    blkrepl_iovec iov;
    bool busy;
} writes[DEPTH_MAX];

static unsigned in_flight;

static void write_done(void *user, int result)
{
    struct write *w = user;

    check(result, "guest write");
    note(w->begin);
    w->busy = false;
    in_flight--;
}

static void write_begin(uint64_t offset)
{
    struct write *w = writes;

    while (w->busy) {
        w++;
    }
    blkrepl_completion done = {.fn = write_done, .user = w};
    w->busy = true;
    in_flight++;
    w->begin = bench_now_ns();
    check(blkrepl_image_write(disk, GUEST_LANE, offset, &w->iov, 1, 0, &done), "write");
}

/* The last `count` clusters of the disk once, or, until `over`, again and again. */
static void guest_run(unsigned depth, uint64_t count, const atomic_bool *over)
{
    for (uint64_t i = 0; over ? !atomic_load(over) : i < count; i++) {
        while (in_flight == depth) {
            check(blkrepl_poll(ctx, GUEST_LANE, 0), "poll");
        }
        write_begin(offset_in(cluster_at(i, count)));
    }
    while (in_flight > 0) {
        check(blkrepl_poll(ctx, GUEST_LANE, 0), "poll");
    }
}

static void next_generation(void)
{
    generation++;
    for (unsigned i = 0; i < DEPTH_MAX; i++) {
        memset(writes[i].iov.base, generation, BLOCK);
    }
}

static void bare_run(bool first_touch)
{
    static char cluster[CLUSTER];

    for (uint64_t i = 0; i < clusters; i++) {
        off_t start = (off_t)(cluster_at(i, clusters) * CLUSTER);
        uint64_t begin = bench_now_ns();

        if (first_touch) {
            require_moved(pread(source_fd, cluster, CLUSTER, start), CLUSTER);
            require_moved(pwrite(target_fd, cluster, CLUSTER, start), CLUSTER);
        }
        require_moved(
            pwrite(source_fd, writes[0].iov.base, BLOCK, (off_t)offset_in(cluster_at(i, clusters))),
            BLOCK);
        note(begin);
    }
}

/* ---- The job ----------------------------------------------------------------------------- */

static atomic_bool stop;
static atomic_bool concluded;

static void on_event(void *user, const blkrepl_event *event)
{
    (void)user;
    if (event->type == BLKREPL_EVENT_JOB_DONE) {
        atomic_store(&concluded, true);
    }
}

static void *control_main(void *user)
{
    while (!atomic_load(&stop)) {
        check(blkrepl_poll(ctx, 0, BLKREPL_FOREVER), "poll of lane 0");
    }
    return user;
}

static struct {
    blkrepl_image *target;
    blkrepl_image *spill;
    blkrepl_job *job;
} run;

static blkrepl_job_info job_info(void)
{
    blkrepl_job_info info = {.struct_size = sizeof info};

    check(blkrepl_job_query(run.job, &info), "query");
    return info;
}

static void job_start(bool spill)
{
    static const blkrepl_backend_ops ops = {
        .struct_size = sizeof ops, .get_info = device_get_info, .submit = device_submit};
    const blkrepl_file_options create = {
        .struct_size = sizeof create, .flags = BLKREPL_FILE_CREATE, .bytes = mib << 20};
    blkrepl_backup_options options = {.struct_size = sizeof options,
                                      .cbw_timeout_ns = BLKREPL_FOREVER};

    check(blkrepl_image_open(ctx, &ops, &device, NULL, &run.target), "target");
    run.spill = NULL;
    if (spill) {
        check(blkrepl_image_open_file(ctx, spill_path, &create, NULL, &run.spill), "spill");
        unlink(spill_path);
    }
    options.spill = run.spill;
    atomic_store(&concluded, false);
    check(blkrepl_backup_start(disk, run.target, &options, &run.job), "backup");
}

/* Each block that the guest has written, as it was before. */
static void check_target(unsigned char wanted)
{
    for (uint64_t i = 0; i < clusters; i++) {
        unsigned char byte;

        require_moved(pread(target_fd, &byte, 1, (off_t)offset_in(cluster_at(i, clusters))), 1);
        require(byte == wanted, "the target does not hold the old data");
    }
}

/* Then the guest goes where it has not been, so that the disk is alike all over again. */
static void job_finish(unsigned char wanted)
{
    while (!atomic_load(&concluded)) {
        usleep(1000);
    }
    require(job_info().result == BLKREPL_RESULT_DONE, job_info().message);
    blkrepl_job_free(run.job);
    blkrepl_image_close(run.target);
    blkrepl_image_close(run.spill);
    check_target(wanted);
    guest_run(DEPTH_MAX, clusters, NULL);
    latency_count = 0;
}

/* ---- Measuring --------------------------------------------------------------------------- */

enum row {
    BARE,
    BARE_FIRST,
    IDLE,
    SECOND,
    FIRST,
    FIRST_SLOW,
    FIRST_SLOW_SPILL,
    FIRST_SPILL,
    FULL,
    FULL_SLOW,
    FULL_SLOW_SPILL,
    ROW_COUNT
};

static const struct {
    const char *name;
    enum row anchor; /* of what it is a multiple */
    bool slow;
    bool spill;
} kinds[ROW_COUNT] = {
    [BARE] = {"bare: pwrite", IDLE, false, false},
    [BARE_FIRST] = {"bare: first touch", IDLE, false, false},
    [IDLE] = {"idle", IDLE, false, false},
    [SECOND] = {"second touch", IDLE, false, false},
    [FIRST] = {"first touch", IDLE, false, false},
    [FIRST_SLOW] = {"first touch, slow target", FIRST, true, false},
    [FIRST_SLOW_SPILL] = {"first touch, slow target, spill", FIRST, true, true},
    [FIRST_SPILL] = {"first touch, spill", FIRST, false, true},
    [FULL] = {"full backup", IDLE, false, false},
    [FULL_SLOW] = {"full backup, slow target", FULL, true, false},
    [FULL_SLOW_SPILL] = {"full backup, slow target, spill", FULL, true, true},
};

static const unsigned depths[2] = {1, DEPTH_MAX};

static struct series {
    double median[ROUNDS_MAX];
    double p99[ROUNDS_MAX];
    double mean[ROUNDS_MAX];
    double slowest[ROUNDS_MAX];
    double touches[ROUNDS_MAX]; /* first ones, per write */
} results[2][ROW_COUNT];

static void take_down(struct series *s, int round, uint64_t began, unsigned depth)
{
    double wall_us = (double)(bench_now_ns() - began) / 1e3;

    require(latency_count > 0, "no write was made");
    s->mean[round] = wall_us * depth / (double)latency_count;
    qsort(latency_us, latency_count, sizeof *latency_us, bench_compare);
    s->median[round] = latency_us[latency_count / 2];
    s->p99[round] = latency_us[latency_count * 99 / 100];
    s->slowest[round] = latency_us[latency_count - 1];
    latency_count = 0;
}

/* The second touch beside the slow target, where the backup is still far from its end. */
static void measure_first(struct series *rows, enum row row, int round, unsigned depth)
{
    unsigned char before = generation;
    uint64_t began = bench_now_ns();

    next_generation();
    job_start(kinds[row].spill);
    guest_run(depth, clusters / 8, NULL);
    take_down(&rows[row], round, began, depth);
    rows[row].touches[round] = (double)job_info().guest_waits_count / ((double)clusters / 8);
    if (row == FIRST_SLOW) {
        uint64_t waits = job_info().guest_waits_count;

        began = bench_now_ns();
        guest_run(depth, clusters / 8, NULL);
        take_down(&rows[SECOND], round, began, depth);
        require(job_info().guest_waits_count == waits, "a second touch was a first one");
    }
    job_finish(before);
}

static void measure_full(struct series *rows, enum row row, int round, unsigned depth)
{
    unsigned char before = generation;
    uint64_t began = bench_now_ns();
    size_t count;

    next_generation();
    job_start(kinds[row].spill);
    guest_run(depth, clusters, &concluded);
    count = latency_count;
    take_down(&rows[row], round, began, depth);
    rows[row].touches[round] = (double)job_info().guest_waits_count / (double)count;
    job_finish(before);
}

static void measure(unsigned d, enum row row, int round)
{
    struct series *rows = results[d];
    unsigned depth = depths[d];
    uint64_t began = bench_now_ns();

    device.ns_per_byte = kinds[row].slow ? SLOWER * target_ns_per_byte() : 0;
    switch (row) {
    case BARE:
    case BARE_FIRST:
        if (depth == 1) {
            next_generation();
            bare_run(row == BARE_FIRST);
            take_down(&rows[row], round, began, 1);
        }
        break;
    case IDLE:
        next_generation();
        guest_run(depth, clusters, NULL);
        take_down(&rows[row], round, began, depth);
        break;
    case FIRST:
    case FIRST_SLOW:
    case FIRST_SLOW_SPILL:
    case FIRST_SPILL: measure_first(rows, row, round, depth); break;
    case FULL:
    case FULL_SLOW:
    case FULL_SLOW_SPILL: measure_full(rows, row, round, depth); break;
    case SECOND: /* with FIRST */
    case ROW_COUNT: break;
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

/* Ratios first: bench_median() sorts what it is given. */
static void print_depth(unsigned d)
{
    struct series *rows = results[d];
    double ratio[ROW_COUNT][3];

    for (int row = d == 0 ? BARE : IDLE; row < ROW_COUNT; row++) {
        struct series *to = &rows[kinds[row].anchor];

        ratio[row][0] = median_ratio(rows[row].median, to->median);
        ratio[row][1] = median_ratio(rows[row].p99, to->p99);
        ratio[row][2] = median_ratio(rows[row].mean, to->mean);
    }
    printf("queue depth %-21u %9s %9s %9s %9s %8s   as multiples of %10s %6s %6s\n", depths[d],
           "median us", "99 %", "mean", "slowest", "touches", "median", "99 %", "mean");
    for (int row = d == 0 ? BARE : IDLE; row < ROW_COUNT; row++) {
        struct series *s = &rows[row];

        printf("  %-31s %9.1f %9.1f %9.1f %9.0f %8.2f   %-15s %10.2f %6.2f %6.2f\n",
               kinds[row].name, bench_median(s->median, rounds), bench_median(s->p99, rounds),
               bench_median(s->mean, rounds), bench_median(s->slowest, rounds),
               bench_median(s->touches, rounds), kinds[kinds[row].anchor].name, ratio[row][0],
               ratio[row][1], ratio[row][2]);
    }
    printf("  target: with spill a slow target costs at most 1.20 times a fast one\n");
}

/* ---- Before and after -------------------------------------------------------------------- */

static void remove_files(void)
{
    unlink(source_path);
    unlink(target_path);
    unlink(spill_path);
}

static int make_file(const char *path, int fill)
{
    char *block = malloc(1u << 20);
    int fd = open(path, O_RDWR | O_CREAT | O_TRUNC, 0600);

    require(fd >= 0 && block != NULL, path);
    memset(block, fill, 1u << 20);
    for (uint64_t i = 0; i < mib; i++) {
        require_moved(write(fd, block, 1u << 20), 1u << 20);
    }
    free(block);
    return fd;
}

static int parse(int argc, char **argv)
{
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--quick") == 0) {
            rounds = 1;
            mib = 16;
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
    snprintf(source_path, sizeof source_path, "%s/blkrepl-cbw-%d.src", dir, (int)getpid());
    snprintf(target_path, sizeof target_path, "%s/blkrepl-cbw-%d.dst", dir, (int)getpid());
    snprintf(spill_path, sizeof spill_path, "%s/blkrepl-cbw-%d.spill", dir, (int)getpid());
    return mib == 0 || (mib & (mib - 1)) != 0 || rounds < 1 || rounds > ROUNDS_MAX ? -1 : 0;
}

static void prepare(void)
{
    blkrepl_context_options options = {
        .struct_size = sizeof options, .lane_count = 2, .on_event = {.fn = on_event}};

    clusters = (mib << 20) / CLUSTER;
    latency_us = malloc(LATENCIES_MAX * sizeof *latency_us);
    require(latency_us != NULL, "no memory");
    for (unsigned i = 0; i < DEPTH_MAX; i++) {
        writes[i].iov = (blkrepl_iovec){malloc(BLOCK), BLOCK};
        require(writes[i].iov.base != NULL, "no memory");
    }
    atexit(remove_files);
    source_fd = make_file(source_path, 0);
    target_fd = make_file(target_path, 0);
    check(blkrepl_context_create(&options, &ctx), "context");
    check(blkrepl_image_open_file(ctx, source_path, NULL, NULL, &disk), "source");
}

int main(int argc, char **argv)
{
    pthread_t control;

    if (parse(argc, argv) < 0) {
        fprintf(stderr, "usage: cbw-latency [--dir DIR] [--mib N (a power of two)] [--rounds N]\n"
                        "                   [--quick]\n");
        return 2;
    }
    prepare();
    require(pthread_create(&control, NULL, control_main, NULL) == 0 &&
                pthread_create(&device.thread, NULL, device_main, NULL) == 0,
            "no thread");
    for (int i = 0; i < rounds * 2 * ROW_COUNT; i++) {
        int round = i / (2 * ROW_COUNT);

        /* Another one begins each round. */
        measure((unsigned)i % 2, (enum row)((i / 2 + 3 * round) % ROW_COUNT), round);
    }
    printf("guest 4 KiB writes beside copy-before-write, clusters of 64 KiB, %llu MiB in %s;\n"
           "slow: a tenth of the speed; median of %d interleaved rounds\n",
           (unsigned long long)mib, dir, rounds);
    print_depth(0);
    print_depth(1);

    atomic_store(&stop, true);
    check(blkrepl_poll_wake(ctx, 0), "wake");
    pthread_join(control, NULL);
    blkrepl_image_close(disk);
    while (blkrepl_context_free(ctx) == -EBUSY) {
        blkrepl_poll(ctx, 0, 1000000);
    }
    pthread_mutex_lock(&device.lock);
    device.stop = true;
    pthread_cond_signal(&device.work);
    pthread_mutex_unlock(&device.lock);
    pthread_join(device.thread, NULL);
    return 0;
}
