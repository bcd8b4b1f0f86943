/* SPDX-License-Identifier: MIT */
/* lanes.c - queue threads, each on a lane of its own, all on one image: what a
 * request costs them, and whether they get in each other's way.
 *
 * 1, 2, 4 and 8 threads on lanes 1 to n of a context with n + 1 lanes; lane 0
 * is polled by one more thread, which sleeps.  4 KiB requests at random places
 * of a region that no other thread uses, over a backend that completes inside
 * submit.  Three kinds: a write through the library and a poll of the own lane;
 * a read likewise; begin and end of a bracketed write.  Each over an idle image
 * and over one with a backup attached that is paused and has saved all clusters
 * of these regions already, so nothing is copied while the clock runs (checked).
 *
 * The alternatives, by as many threads in the same round: the backend called
 * directly, and a plain mutex around a counter, taken twice per request.
 *
 * Of each phase the part counts during which all threads ran: rates are read
 * off the threads' counters, not off their ends.  "ns" is what one thread needs
 * for a request by the clock (with more threads than CPUs it waits for its turn
 * in that), "cpu ns" is without waiting, "CPUs" is how many of them the threads had:
 * where that is less than there are and "sleeps" (voluntary context switches per
 * 1000 requests) is small too, somebody else had the rest, and the figures of
 * that run say little.  Ratios are taken round by round.
 *
 *     lanes [--rounds N] [--ms N] [--threads N] [--quick] */
#define _DEFAULT_SOURCE
#include <pthread.h>
#include <stdalign.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <string.h>

#include <libblkrepl/libblkrepl.h>

#include "bench.h"

#define ROUNDS_MAX 51
#define THREADS_MAX 8
#define SIZES 4
#define REGION_BYTES (UINT64_C(4) << 20)
#define CLUSTER_BYTES 65536
#define BLOCK_BYTES 4096
#define DISK_BYTES (UINT64_C(1) << 30)

static int rounds = 11;
static int phase_ms = 40;
static int threads_max = THREADS_MAX;

static void check(int rc, const char *what)
{
    if (rc < 0) {
        fprintf(stderr, "lanes: %s: %s\n", what, blkrepl_error_message());
        exit(1);
    }
}

static void require(bool ok, const char *what)
{
    if (!ok) {
        fprintf(stderr, "lanes: %s\n", what);
        exit(1);
    }
}

/* --- the backend: it completes at once, and counts for each lane apart ---------------- */

struct tally {
    alignas(128) uint64_t count;
};

struct disk {
    blkrepl_context *ctx;
    struct tally lanes[THREADS_MAX + 1];
};

static int disk_info(void *user, blkrepl_backend_info *info)
{
    (void)user;
    info->bytes = DISK_BYTES;
    info->opcodes = 1u << BLKREPL_OP_READ | 1u << BLKREPL_OP_WRITE;
    return 0;
}

static void disk_submit(void *user, uint32_t lane, blkrepl_io *const *ios, uint32_t count)
{
    struct disk *disk = user;

    disk->lanes[lane].count += count;
    for (uint32_t i = 0; i < count; i++) {
        blkrepl_io_complete(disk->ctx, ios[i]->id, 0);
    }
}

/* --- a context with n + 1 lanes, an image, and perhaps a backup of it ------------------ */

struct world {
    blkrepl_context *ctx;
    blkrepl_image *image;
    blkrepl_image *target;
    blkrepl_job *job;
    struct disk disks[2];
    uint64_t saved; /* clusters, by the time the backup is looked at for the first time */
};

static blkrepl_job_info world_job_info(const struct world *world)
{
    blkrepl_job_info info = {.struct_size = sizeof info};

    check(blkrepl_job_query(world->job, &info), "query");
    return info;
}

static void touched(void *user, int result)
{
    check(result, "guest request");
    ++*(uint64_t *)user;
}

/* Have every cluster of the threads' regions saved. */
static void world_touch(struct world *world, int threads)
{
    static char data[BLOCK_BYTES];
    blkrepl_iovec iov = {data, sizeof data};
    uint64_t bytes = (uint64_t)threads * REGION_BYTES;
    uint64_t done = 0;
    blkrepl_completion completion = {.fn = touched, .user = &done};

    for (uint64_t at = 0; at < bytes; at += CLUSTER_BYTES) {
        check(blkrepl_image_write(world->image, 0, at, &iov, 1, 0, &completion), "first touch");
        while (done <= at / CLUSTER_BYTES) {
            check(blkrepl_poll(world->ctx, 0, 0), "poll");
        }
    }
    while (world_job_info(world).bytes_done < bytes) {
        check(blkrepl_poll(world->ctx, 0, 0), "poll");
    }
    world->saved = world_job_info(world).guest_copies_count;
    require(world->saved == bytes / CLUSTER_BYTES, "not every cluster was saved");
}

static void world_open(struct world *world, int threads, bool attached)
{
    static const blkrepl_backend_ops ops = {
        .struct_size = sizeof ops, .get_info = disk_info, .submit = disk_submit};
    blkrepl_context_options options = {.struct_size = sizeof options,
                                       .lane_count = (uint32_t)threads + 1};

    check(blkrepl_context_create(&options, &world->ctx), "context");
    world->disks[0].ctx = world->disks[1].ctx = world->ctx;
    check(blkrepl_image_open(world->ctx, &ops, &world->disks[0], NULL, &world->image), "image");
    check(blkrepl_image_open(world->ctx, &ops, &world->disks[1], NULL, &world->target), "target");
    if (attached) {
        check(blkrepl_backup_create(world->image, world->target, NULL, &world->job), "backup");
        check(blkrepl_job_pause(world->job), "pause");
        check(blkrepl_job_start(world->job), "start");
        world_touch(world, threads);
    }
}

static void world_close(struct world *world)
{
    int rc = -1;

    if (world->job != NULL) {
        blkrepl_job_info info = world_job_info(world);

        require(info.state == BLKREPL_JOB_RUNNING && info.guest_copies_count == world->saved,
                "the backup did not stay attached, or copied while the clock ran");
        check(blkrepl_job_cancel(world->job, 0), "cancel");
        blkrepl_job_free(world->job);
    }
    blkrepl_image_close(world->image);
    blkrepl_image_close(world->target);
    for (int i = 0; i < 1000 && rc != 0; i++) {
        rc = blkrepl_context_free(world->ctx);
    }
    require(rc == 0, "the context cannot be freed");
}

/* --- threads that make requests --------------------------------------------------------- */

struct worker {
    alignas(128) _Atomic uint64_t made;
    struct world *world;
    const struct contestant *contestant;
    uint32_t lane;
    uint64_t random;
    uint64_t done;
    char data[BLOCK_BYTES];
};

struct contestant {
    const char *name;
    void (*one)(struct worker *worker);
    int world; /* which of a size's worlds */
};

enum {
    IDLE,
    ATTACHED,
    WORLDS
};

static struct worker workers[THREADS_MAX];
static pthread_barrier_t barrier;
static atomic_bool stop;

static struct disk direct_disk;

static void direct_submit(void *user, uint32_t lane, blkrepl_io *const *ios, uint32_t count)
{
    struct disk *disk = user;

    disk->lanes[lane].count += count;
    for (uint32_t i = 0; i < count; i++) {
        touched(ios[i]->host[0], 0);
    }
}

static void (*volatile direct_backend)(void *, uint32_t, blkrepl_io *const *,
                                       uint32_t) = direct_submit;

static uint64_t worker_offset(struct worker *worker)
{
    worker->random = worker->random * UINT64_C(6364136223846793005) + 1442695040888963407u;
    return (worker->lane - 1) * REGION_BYTES +
           (worker->random >> 33) % (REGION_BYTES / BLOCK_BYTES) * BLOCK_BYTES;
}

static void one_direct(struct worker *worker)
{
    blkrepl_iovec iov = {worker->data, BLOCK_BYTES};
    blkrepl_io io = {.opcode = BLKREPL_OP_WRITE,
                     .offset = worker_offset(worker),
                     .bytes = BLOCK_BYTES,
                     .iov = &iov,
                     .iov_count = 1,
                     .host = {&worker->done}};
    blkrepl_io *list[1] = {&io};

    direct_backend(&direct_disk, worker->lane, list, 1);
}

static struct {
    alignas(128) pthread_mutex_t lock;
    uint64_t count;
} shared = {.lock = PTHREAD_MUTEX_INITIALIZER};

static void one_mutex(struct worker *worker)
{
    for (int i = 0; i < 2; i++) {
        pthread_mutex_lock(&shared.lock);
        shared.count++;
        pthread_mutex_unlock(&shared.lock);
    }
    worker->done++;
}

static void worker_poll(struct worker *worker, uint64_t before)
{
    while (worker->done == before) {
        check(blkrepl_poll(worker->world->ctx, worker->lane, 0), "poll");
    }
}

static void one_write(struct worker *worker)
{
    blkrepl_iovec iov = {worker->data, BLOCK_BYTES};
    blkrepl_completion completion = {.fn = touched, .user = &worker->done};
    uint64_t before = worker->done;

    check(blkrepl_image_write(worker->world->image, worker->lane, worker_offset(worker), &iov, 1, 0,
                              &completion),
          "write");
    worker_poll(worker, before);
}

static void one_read(struct worker *worker)
{
    blkrepl_iovec iov = {worker->data, BLOCK_BYTES};
    blkrepl_completion completion = {.fn = touched, .user = &worker->done};
    uint64_t before = worker->done;

    check(blkrepl_image_read(worker->world->image, worker->lane, worker_offset(worker), &iov, 1, 0,
                             &completion),
          "read");
    worker_poll(worker, before);
}

static void one_bracket(struct worker *worker)
{
    blkrepl_completion go = {.fn = touched, .user = &worker->done};
    blkrepl_bracket what = {.struct_size = sizeof what,
                            .opcode = BLKREPL_OP_WRITE,
                            .offset = worker_offset(worker),
                            .bytes = BLOCK_BYTES,
                            .lane = worker->lane};
    uint64_t before = worker->done;
    uint64_t token;
    int rc = blkrepl_write_begin(worker->world->image, &what, &go, &token);

    check(rc, "begin");
    if (rc == BLKREPL_WAIT) {
        worker_poll(worker, before);
    } else {
        worker->done++;
    }
    check(blkrepl_write_end(worker->world->ctx, token, 0, NULL, 0, NULL), "end");
}

static void *worker_thread(void *arg)
{
    struct worker *worker = arg;
    uint64_t made = 0;

    pthread_barrier_wait(&barrier);
    while (!atomic_load_explicit(&stop, memory_order_relaxed)) {
        worker->contestant->one(worker);
        atomic_store_explicit(&worker->made, ++made, memory_order_relaxed);
    }
    require(worker->done == made, "a request was lost");
    return NULL;
}

/* The host's thread for lane 0: asleep as long as nothing happens there. */
static void *control_thread(void *arg)
{
    struct world *world = arg;

    while (!atomic_load_explicit(&stop, memory_order_relaxed)) {
        check(blkrepl_poll(world->ctx, 0, BLKREPL_FOREVER), "poll of lane 0");
    }
    return NULL;
}

/* --- phases ------------------------------------------------------------------------------ */

struct reading {
    double made;
    double clock_ns;
    double cpu_ns;
    double sleeps;
};

static struct reading reading_take(int threads)
{
    struct reading reading = {.clock_ns = (double)bench_now_ns()};
    struct timespec cpu;
    struct rusage usage;

    for (int i = 0; i < threads; i++) {
        reading.made += (double)atomic_load_explicit(&workers[i].made, memory_order_relaxed);
    }
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &cpu);
    getrusage(RUSAGE_SELF, &usage);
    reading.cpu_ns = (double)cpu.tv_sec * 1e9 + (double)cpu.tv_nsec;
    reading.sleeps = (double)usage.ru_nvcsw;
    return reading;
}

static void phase_sleep(double ms)
{
    struct timespec time = {.tv_nsec = (long)(ms * 1e6)};

    nanosleep(&time, NULL);
}

/* Let `threads` threads make requests for a while; what they did. */
static struct reading phase_run(const struct contestant *contestant, struct world *world,
                                int threads)
{
    pthread_t ids[THREADS_MAX + 1];
    struct reading before;
    struct reading after;

    atomic_store(&stop, false);
    pthread_barrier_init(&barrier, NULL, (unsigned)threads + 1);
    for (int i = 0; i < threads; i++) {
        workers[i].world = world;
        workers[i].contestant = contestant;
        workers[i].lane = (uint32_t)i + 1;
        workers[i].random = workers[i].random * 31 + (uint64_t)i;
        workers[i].done = 0;
        atomic_store(&workers[i].made, 0);
        require(pthread_create(&ids[i], NULL, worker_thread, &workers[i]) == 0, "no thread");
    }
    require(pthread_create(&ids[threads], NULL, control_thread, world) == 0, "no thread");
    pthread_barrier_wait(&barrier);
    phase_sleep(phase_ms / 8.0);
    before = reading_take(threads);
    phase_sleep(phase_ms);
    after = reading_take(threads);
    atomic_store(&stop, true);
    check(blkrepl_poll_wake(world->ctx, 0), "wake");
    for (int i = 0; i <= threads; i++) {
        pthread_join(ids[i], NULL);
    }
    pthread_barrier_destroy(&barrier);
    return (struct reading){.made = after.made - before.made,
                            .clock_ns = after.clock_ns - before.clock_ns,
                            .cpu_ns = after.cpu_ns - before.cpu_ns,
                            .sleeps = after.sleeps - before.sleeps};
}

/* --- the table ---------------------------------------------------------------------------- */

enum {
    DIRECT,
    MUTEX,
    FIRST_OF_LIBRARY,
    CONTESTANTS = 8
};

static const struct contestant contestants[CONTESTANTS] = {
    {"backend called directly", one_direct, IDLE},  {"mutex around a counter, 2x", one_mutex, IDLE},
    {"idle: write + poll", one_write, IDLE},        {"idle: begin + end", one_bracket, IDLE},
    {"idle: read + poll", one_read, IDLE},          {"backup: write + poll", one_write, ATTACHED},
    {"backup: begin + end", one_bracket, ATTACHED}, {"backup: read + poll", one_read, ATTACHED},
};

struct series {
    double rate[ROUNDS_MAX];   /* requests per us, of all threads */
    double cpu_ns[ROUNDS_MAX]; /* per request */
    double cpus[ROUNDS_MAX];
    double sleeps[ROUNDS_MAX]; /* per 1000 requests */
};

static const int sizes[SIZES] = {1, 2, 4, 8};
static struct world worlds[SIZES][WORLDS];
static struct series results[SIZES][CONTESTANTS];

static void measure(int size, int who, int round)
{
    const struct contestant *contestant = &contestants[who];
    struct reading reading = phase_run(contestant, &worlds[size][contestant->world], sizes[size]);
    double made = reading.made > 0 ? reading.made : 1; /* a phase may be too short for one */

    results[size][who].rate[round] = made / reading.clock_ns * 1e3;
    results[size][who].cpu_ns[round] = reading.cpu_ns / made;
    results[size][who].cpus[round] = reading.cpu_ns / reading.clock_ns;
    results[size][who].sleeps[round] = reading.sleeps / made * 1e3;
}

/* The median of a[i] / b[i]. */
static double median_ratio(const double *a, const double *b)
{
    double ratio[ROUNDS_MAX];

    for (int i = 0; i < rounds; i++) {
        ratio[i] = a[i] / b[i];
    }
    return bench_median(ratio, rounds);
}

static double median_of(const double *values)
{
    double copy[ROUNDS_MAX];

    memcpy(copy, values, (size_t)rounds * sizeof *copy);
    return bench_median(copy, rounds);
}

static void print_size(int size)
{
    printf("%d thread%s\n  %-28s %8s %8s %8s %6s %8s %9s %9s\n", sizes[size],
           sizes[size] > 1 ? "s" : "", "", "ns", "cpu ns", "M/s", "CPUs", "sleeps", "of mutex",
           "of 1 thr");
    for (int who = 0; who < CONTESTANTS; who++) {
        struct series *s = &results[size][who];
        double rate = median_of(s->rate);

        printf("  %-28s %8.1f %8.1f %8.2f %6.2f %8.2f %9.2f %9.2f\n", contestants[who].name,
               sizes[size] * 1e3 / rate, median_of(s->cpu_ns), rate, median_of(s->cpus),
               median_of(s->sleeps), median_ratio(s->rate, results[size][MUTEX].rate),
               median_ratio(s->rate, results[0][who].rate));
    }
}

static int parse(int argc, char **argv)
{
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--quick") == 0) {
            rounds = 1;
            phase_ms = 2;
        } else if (strcmp(argv[i], "--rounds") == 0 && i + 1 < argc) {
            rounds = atoi(argv[++i]);
        } else if (strcmp(argv[i], "--ms") == 0 && i + 1 < argc) {
            phase_ms = atoi(argv[++i]);
        } else if (strcmp(argv[i], "--threads") == 0 && i + 1 < argc) {
            threads_max = atoi(argv[++i]);
        } else {
            return -1;
        }
    }
    return rounds < 1 || rounds > ROUNDS_MAX || phase_ms < 1 || phase_ms > 999 || threads_max < 1
               ? -1
               : 0;
}

int main(int argc, char **argv)
{
    int count = 0;

    if (parse(argc, argv) < 0) {
        fprintf(stderr, "usage: lanes [--rounds N] [--ms N] [--threads N] [--quick]\n");
        return 2;
    }
    while (count < SIZES && sizes[count] <= threads_max) {
        world_open(&worlds[count][IDLE], sizes[count], false);
        world_open(&worlds[count][ATTACHED], sizes[count], true);
        count++;
    }
    for (int round = 0; round < rounds; round++) {
        for (int i = 0; i < count * CONTESTANTS; i++) {
            /* Another one begins each round. */
            int at = (i + round * 5) % (count * CONTESTANTS);

            measure(at / CONTESTANTS, at % CONTESTANTS, round);
        }
    }
    printf("4 KiB requests, a lane for each thread, null backend; median of %d interleaved\n"
           "rounds of %d ms.  of mutex: rate / rate of the mutex by as many threads;\n"
           "of 1 thr: rate / own rate with one thread\n",
           rounds, phase_ms);
    for (int size = 0; size < count; size++) {
        print_size(size);
        world_close(&worlds[size][IDLE]);
        world_close(&worlds[size][ATTACHED]);
    }
    return 0;
}
