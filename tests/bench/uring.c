/* SPDX-License-Identifier: MIT */
/* uring.c - the file backend and its pool of threads, against io_uring.
 *
 * Random 4 KiB reads and writes at several depths, then a copy in chunks, all of
 * it through the library: by the bundled backend with the pool as it comes, by
 * the same with as many threads as requests, and by the backend of
 * examples/uring.h.  Files: on tmpfs, on a disk and in the page cache, on a disk
 * and past it.  The three take turns in every round.
 *
 *     uring [--dir DIR] [--mib N] [--rounds N] [--ms N]
 *
 * DIR (.) is on a disk.  Where there is no io_uring the figures of the pool
 * remain. */
#ifdef __linux__
#define _GNU_SOURCE
#endif
#include "../../examples/uring.h"

#include <limits.h>

#include "bench.h"

#define ROUNDS_MAX 51
#define DEPTH_MAX 32u
#define CHUNK_MAX (1u << 20)
#define COPY_DEPTH 8u
#define BLOCK 4096u

enum engine {
    POOL,
    POOL_WIDE,
    RING,
    ENGINE_COUNT
};
static const char *const engine_name[ENGINE_COUNT] = {"pool", "pool of 32", "io_uring"};

enum medium {
    TMPFS,
    DISK_CACHED,
    DISK_DIRECT,
    MEDIUM_COUNT
};
static const char *const medium_name[MEDIUM_COUNT] = {"tmpfs", "disk, page cache",
                                                      "disk, O_DIRECT"};

static const char *dir = ".";
static uint64_t mib = 256;
static int rounds = 5;
static uint64_t phase_ns = 250000000;
static bool available[ENGINE_COUNT] = {true, true, true};

struct bench {
    blkrepl_context *ctx;
    struct uring *ring;
    blkrepl_image *from;
    blkrepl_image *to;
    uint64_t seed;
    uint64_t ended;
    uint64_t next; /* of a copy */
    uint64_t most; /* requests to start; UINT64_MAX until the time is over */
    uint64_t started;
    uint32_t in_flight;
    uint32_t chunk;
    bool write;
};

struct slot {
    struct bench *bench;
    uint64_t offset;
    bool writing;
    blkrepl_iovec iov;
};

static void check(int rc, const char *what)
{
    if (rc < 0) {
        fprintf(stderr, "uring: %s: %s (%s)\n", what, blkrepl_error_text(rc),
                blkrepl_error_message());
        exit(1);
    }
}

static uint64_t draw(uint64_t *seed)
{
    *seed ^= *seed << 13;
    *seed ^= *seed >> 7;
    *seed ^= *seed << 17;
    return *seed;
}

/* ---- Random requests ---------------------------------------------------------- */

static void random_ended(void *user, int result);

static void random_start(struct slot *slot)
{
    struct bench *b = slot->bench;
    blkrepl_completion done = {.fn = random_ended, .user = slot};

    slot->offset = draw(&b->seed) % (mib << 20 >> 12) * BLOCK;
    b->in_flight++;
    check(b->write ? blkrepl_image_write(b->from, 0, slot->offset, &slot->iov, 1, 0, &done)
                   : blkrepl_image_read(b->from, 0, slot->offset, &slot->iov, 1, 0, &done),
          "request");
}

static void random_ended(void *user, int result)
{
    struct slot *slot = user;
    struct bench *b = slot->bench;

    check(result, "random request");
    b->in_flight--;
    b->ended++;
    if (b->most != 0) {
        random_start(slot);
    }
}

/* Requests per second. */
static double random_run(struct bench *b, struct slot *slots, uint32_t depth)
{
    uint64_t start = bench_now_ns();
    uint64_t spent = 0;
    double rate;

    b->ended = 0;
    b->most = UINT64_MAX;
    for (uint32_t i = 0; i < depth; i++) {
        random_start(&slots[i]);
    }
    while (spent < phase_ns) {
        check(uring_poll(b->ctx, b->ring), "poll");
        spent = bench_now_ns() - start;
    }
    rate = (double)b->ended * 1e9 / (double)spent;
    b->most = 0;
    while (b->in_flight > 0) {
        check(uring_poll(b->ctx, b->ring), "poll");
    }
    return rate;
}

/* ---- A copy -------------------------------------------------------------------- */

static void copy_ended(void *user, int result);

static void copy_start(struct slot *slot)
{
    struct bench *b = slot->bench;
    blkrepl_completion done = {.fn = copy_ended, .user = slot};

    if (!slot->writing) {
        if (b->next >= mib << 20) {
            return;
        }
        slot->offset = b->next;
        b->next += b->chunk;
        b->in_flight++;
    }
    slot->iov.len = b->chunk;
    check(slot->writing ? blkrepl_image_write(b->to, 0, slot->offset, &slot->iov, 1, 0, &done)
                        : blkrepl_image_read(b->from, 0, slot->offset, &slot->iov, 1, 0, &done),
          "copy");
}

static void copy_ended(void *user, int result)
{
    struct slot *slot = user;

    check(result, "copy");
    slot->bench->in_flight -= slot->writing ? 1 : 0;
    slot->writing = !slot->writing;
    copy_start(slot);
}

/* Bytes per nanosecond. */
static double copy_run(struct bench *b, struct slot *slots, uint32_t chunk)
{
    uint64_t start = bench_now_ns();

    b->next = 0;
    b->chunk = chunk;
    for (uint32_t i = 0; i < COPY_DEPTH; i++) {
        slots[i].writing = false;
        copy_start(&slots[i]);
    }
    while (b->in_flight > 0) {
        check(uring_poll(b->ctx, b->ring), "poll");
    }
    return (double)(mib << 20) / (double)(bench_now_ns() - start);
}

/* ---- One medium, one engine ---------------------------------------------------- */

static void file_path(char *path, enum medium medium, const char *name)
{
    snprintf(path, PATH_MAX, "%s/blkrepl-uring-%ld-%s", medium == TMPFS ? "/dev/shm" : dir,
             (long)getpid(), name);
}

static blkrepl_image *open_image(struct bench *b, enum medium medium, const char *name)
{
    blkrepl_file_options options = {.struct_size = sizeof options,
                                    .flags = medium == DISK_DIRECT ? BLKREPL_FILE_DIRECT : 0};
    char path[PATH_MAX];
    blkrepl_image *image;

    file_path(path, medium, name);
    check(b->ring != NULL ? uring_open(b->ring, path, 0, medium == DISK_DIRECT, NULL, &image)
                          : blkrepl_image_open_file(b->ctx, path, &options, NULL, &image),
          path);
    return image;
}

static void bench_up(struct bench *b, enum engine engine, enum medium medium)
{
    blkrepl_context_options options = {.struct_size = sizeof options,
                                       .pool_threads_max = engine == POOL_WIDE ? 32 : 0};

    memset(b, 0, sizeof *b);
    b->seed = 88172645463325252u;
    check(blkrepl_context_create(&options, &b->ctx), "context");
    if (engine == RING) {
        check(uring_create(b->ctx, &b->ring), "ring");
    }
    b->from = open_image(b, medium, "a");
    b->to = open_image(b, medium, "b");
}

static void bench_down(struct bench *b)
{
    blkrepl_image_close(b->from);
    blkrepl_image_close(b->to);
    while (blkrepl_context_free(b->ctx) < 0) {
        blkrepl_poll(b->ctx, 0, 1000000);
    }
    uring_free(b->ring);
}

/* What is measured of each medium. */
#define MEASURE_COUNT 9
static const struct measure {
    const char *name;
    uint32_t depth; /* 0: a copy */
    uint32_t bytes;
    bool write;
} measures[MEASURE_COUNT] = {
    {"4 KiB reads, depth 1", 1, BLOCK, false},    {"4 KiB reads, depth 8", 8, BLOCK, false},
    {"4 KiB reads, depth 32", 32, BLOCK, false},  {"4 KiB writes, depth 1", 1, BLOCK, true},
    {"4 KiB writes, depth 8", 8, BLOCK, true},    {"4 KiB writes, depth 32", 32, BLOCK, true},
    {"copy, 64 KiB chunks", 0, 64u << 10, false}, {"copy, 256 KiB chunks", 0, 256u << 10, false},
    {"copy, 1 MiB chunks", 0, CHUNK_MAX, false},
};

static double rates[MEASURE_COUNT][ENGINE_COUNT][ROUNDS_MAX];
static double cpu[MEASURE_COUNT][ENGINE_COUNT][ROUNDS_MAX];

static void run_engine(enum engine engine, enum medium medium, unsigned char *memory, int round)
{
    static struct slot slots[DEPTH_MAX];
    struct bench b;

    bench_up(&b, engine, medium);
    for (uint32_t i = 0; i < DEPTH_MAX; i++) {
        slots[i] = (struct slot){.bench = &b};
    }
    for (int m = 0; m < MEASURE_COUNT; m++) {
        const struct measure *what = &measures[m];
        double before = bench_cpu_seconds();
        uint64_t start = bench_now_ns();

        for (uint32_t i = 0; i < DEPTH_MAX; i++) {
            slots[i].iov.base = memory + (size_t)i % COPY_DEPTH * CHUNK_MAX +
                                (what->depth != 0 ? (size_t)i * BLOCK : 0);
            slots[i].iov.len = what->bytes;
        }
        b.write = what->write;
        rates[m][engine][round] = what->depth != 0 ? random_run(&b, slots, what->depth) / 1e3
                                                   : copy_run(&b, slots, what->bytes);
        cpu[m][engine][round] =
            (bench_cpu_seconds() - before) * 1e9 / (double)(bench_now_ns() - start);
    }
    bench_down(&b);
}

/* ---- All of it ------------------------------------------------------------------- */

/* Two files full of data. */
static bool files_make(enum medium medium, unsigned char *memory)
{
    char path[PATH_MAX];

    for (int i = 0; i < 2; i++) {
        int fd;

        file_path(path, medium, i == 0 ? "a" : "b");
        fd = open(path, O_RDWR | O_CREAT | O_TRUNC, 0600);
        if (fd < 0) {
            return false;
        }
        for (uint64_t at = 0; at < mib; at++) {
            if (write(fd, memory, CHUNK_MAX) != (ssize_t)CHUNK_MAX) {
                close(fd);
                return false;
            }
        }
        (void)fsync(fd);
        close(fd);
    }
    return true;
}

static void files_remove(enum medium medium)
{
    char path[PATH_MAX];

    file_path(path, medium, "a");
    unlink(path);
    file_path(path, medium, "b");
    unlink(path);
}

/* "1.23 (0.45)": the rate of the pool, or a ratio to it, and CPUs that were busy. */
static void print_engine(int m, enum engine engine, double pool)
{
    double rate;

    if (!available[engine]) {
        printf("%18s", "-");
        return;
    }
    rate = bench_median(rates[m][engine], rounds);
    if (engine == POOL) {
        printf("%10.2f (%.2f)", rate, bench_median(cpu[m][engine], rounds));
    } else {
        printf("%11.2f (%.2f)", rate / pool, bench_median(cpu[m][engine], rounds));
    }
}

static void print_medium(enum medium medium)
{
    printf("%-24s%17s%18s%18s\n", medium_name[medium], engine_name[POOL], engine_name[POOL_WIDE],
           engine_name[RING]);
    for (int m = 0; m < MEASURE_COUNT; m++) {
        double pool = bench_median(rates[m][POOL], rounds);

        printf("  %-22s", measures[m].name);
        for (int e = 0; e < ENGINE_COUNT; e++) {
            print_engine(m, (enum engine)e, pool);
        }
        printf("\n");
    }
    fflush(stdout);
}

static void run_medium(enum medium medium, unsigned char *memory)
{
    blkrepl_file_options options = {.struct_size = sizeof options, .flags = BLKREPL_FILE_DIRECT};
    blkrepl_image *image;
    blkrepl_context *ctx;
    char path[PATH_MAX];
    int rc;

    if (!files_make(medium, memory)) {
        printf("%s: not available (%s)\n", medium_name[medium], strerror(errno));
        files_remove(medium);
        return;
    }
    file_path(path, medium, "a");
    check(blkrepl_context_create(NULL, &ctx), "context");
    rc = medium == DISK_DIRECT ? blkrepl_image_open_file(ctx, path, &options, NULL, &image) : 0;
    if (medium == DISK_DIRECT && rc == 0) {
        blkrepl_image_close(image);
    }
    check(blkrepl_context_free(ctx), "context");
    if (rc < 0) {
        printf("%s: not available (%s)\n", medium_name[medium], blkrepl_error_text(rc));
        files_remove(medium);
        return;
    }
    for (int round = 0; round < rounds; round++) {
        for (int e = 0; e < ENGINE_COUNT; e++) {
            if (available[e]) {
                run_engine((enum engine)e, medium, memory, round);
            }
        }
    }
    print_medium(medium);
    files_remove(medium);
}

static bool options_read(int argc, char **argv)
{
    for (int i = 1; i < argc; i += 2) {
        if (i + 1 == argc) {
            return false;
        }
        if (strcmp(argv[i], "--dir") == 0) {
            dir = argv[i + 1];
        } else if (strcmp(argv[i], "--mib") == 0) {
            mib = strtoull(argv[i + 1], NULL, 0);
        } else if (strcmp(argv[i], "--rounds") == 0) {
            rounds = atoi(argv[i + 1]);
        } else if (strcmp(argv[i], "--ms") == 0) {
            phase_ns = strtoull(argv[i + 1], NULL, 0) * 1000000u;
        } else {
            return false;
        }
    }
    return mib >= 32 && rounds >= 1 && rounds <= ROUNDS_MAX && phase_ns > 0;
}

static void look_for_ring(void)
{
    struct uring *ring = NULL;
    blkrepl_context *ctx;
    int rc;

    check(blkrepl_context_create(NULL, &ctx), "context");
    rc = uring_create(ctx, &ring);
    uring_free(ring);
    check(blkrepl_context_free(ctx), "context");
    if (rc < 0) {
        printf("io_uring: not available (%s)\n", blkrepl_error_text(rc));
        available[RING] = false;
    }
}

int main(int argc, char **argv)
{
    void *memory = NULL;

    if (!options_read(argc, argv)) {
        fprintf(stderr, "usage: uring [--dir DIR] [--mib N] [--rounds N] [--ms N]\n");
        return 2;
    }
    if (posix_memalign(&memory, BLOCK, (size_t)COPY_DEPTH * CHUNK_MAX) != 0) {
        return 1;
    }
    memset(memory, 0x5a, (size_t)COPY_DEPTH * CHUNK_MAX);
    look_for_ring();
    printf("files of %llu MiB, median of %d interleaved rounds; pool: thousand requests a second,\n"
           "copies GB/s; the others: times the pool's.  In brackets: CPUs that were busy\n",
           (unsigned long long)mib, rounds);
    for (int m = 0; m < MEDIUM_COUNT; m++) {
        run_medium((enum medium)m, memory);
    }
    free(memory);
    return 0;
}
