/* SPDX-License-Identifier: MIT */
/* starve.c - a guest that writes at full speed, with and without a default
 * backup running beside it.
 *
 * One thread is the guest: 4 KiB writes through the library, one at a time,
 * polling for its callback.  Idle and backup phases alternate; an idle phase
 * lasts as long as the backup before it.  Three guests: one that writes all over
 * the disk (each cluster is touched for the first time sooner or later, and its
 * 64 KiB of old data are read in the guest's way), one with a working set of a
 * sixteenth of the disk, and one that writes one block after the other.
 *
 * The bound for the first guest is measured in the same run: bare system calls,
 * a pread of the cluster before the first pwrite to it, as many first touches
 * per write as the library had, and no copy going on beside them.
 *
 *     starve [--dir DIR] [--mib N] [--rounds N] [--cluster BYTES] [--flags N] */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <libblkrepl/libblkrepl.h>

#include "bench.h"

#define ROUNDS_MAX 51
#define LATENCIES_MAX (8u << 20)

static const char *dir = "/dev/shm";
static uint64_t mib = 2048;
static int rounds = 5;
static char source[PATH_MAX];
static char target[PATH_MAX];
static double *latency_us;
static uint64_t cluster_bytes;
static uint32_t flags; /* of the backup */
static char data[4096];

enum pattern {
    EVERYWHERE,
    HOT,
    SEQUENTIAL,
    PATTERN_COUNT
};
static const char *const pattern_name[PATTERN_COUNT] = {"random, whole disk", "random, hot 1/16",
                                                        "sequential"};

struct phase {
    double seconds;
    double iops;
    double p999_ms;
    double slowest_ms;
    double writes;
    double first_touches; /* per write */
};

static void check(int rc, const char *what)
{
    if (rc < 0) {
        fprintf(stderr, "starve: %s: %s\n", what, blkrepl_error_message());
        exit(1);
    }
}

static void guest_done(void *user, int result)
{
    *(int *)user = 1;
    check(result, "guest write");
}

static uint64_t next_offset(enum pattern pattern)
{
    static uint64_t state = 1;
    static uint64_t position;
    uint64_t blocks = mib << 8;

    state = state * UINT64_C(6364136223846793005) + 1442695040888963407u;
    switch (pattern) {
    case HOT: return (state >> 20) % (blocks / 16) << 12;
    case SEQUENTIAL: return position++ % blocks << 12;
    case EVERYWHERE:
    case PATTERN_COUNT: break;
    }
    return (state >> 20) % blocks << 12;
}

/* Write until the job has concluded, or for `seconds` when there is none. */
static struct phase guest_run(blkrepl_context *ctx, blkrepl_image *image, blkrepl_job *job,
                              enum pattern pattern, double seconds)
{
    blkrepl_job_info info = {.struct_size = sizeof info};
    blkrepl_iovec iov = {data, sizeof data};
    uint64_t begin = bench_now_ns();
    uint64_t now = begin;
    uint32_t count = 0;
    struct phase phase;

    for (;;) {
        int done = 0;
        blkrepl_completion completion = {.fn = guest_done, .user = &done};
        uint64_t start = now;

        check(blkrepl_image_write(image, 0, next_offset(pattern), &iov, 1, 0, &completion),
              "write");
        while (!done) {
            check(blkrepl_poll(ctx, 0, 0), "poll");
        }
        now = bench_now_ns();
        latency_us[count++ % LATENCIES_MAX] = (double)(now - start) / 1e3;
        if (job == NULL && (double)(now - begin) / 1e9 >= seconds) {
            break;
        }
        if (job != NULL && count % 16 == 0) {
            blkrepl_job_query(job, &info);
            if (info.state == BLKREPL_JOB_CONCLUDED) {
                break;
            }
        }
    }
    if (job != NULL && info.result != BLKREPL_RESULT_DONE) {
        fprintf(stderr, "starve: %s\n", info.message);
        exit(1);
    }
    phase.seconds = (double)(now - begin) / 1e9;
    phase.writes = count;
    phase.first_touches = (double)info.guest_copies_count / count;
    phase.iops = count / phase.seconds;
    count = count < LATENCIES_MAX ? count : LATENCIES_MAX;
    qsort(latency_us, count, sizeof *latency_us, bench_compare);
    phase.p999_ms = latency_us[(uint64_t)count * 999 / 1000] / 1e3;
    phase.slowest_ms = latency_us[count - 1] / 1e3;
    return phase;
}

static struct phase backup_phase(blkrepl_context *ctx, blkrepl_image *image, enum pattern pattern)
{
    blkrepl_backup_options options = {
        .struct_size = sizeof options, .flags = flags, .cluster_bytes = cluster_bytes};
    blkrepl_file_options create = {
        .struct_size = sizeof create, .flags = BLKREPL_FILE_CREATE, .bytes = mib << 20};
    blkrepl_image *to;
    blkrepl_job *job;
    struct phase phase;

    unlink(target);
    check(blkrepl_image_open_file(ctx, target, &create, NULL, &to), "target");
    check(blkrepl_backup_start(image, to, &options, &job), "backup");
    phase = guest_run(ctx, image, job, pattern, 0);
    blkrepl_job_free(job);
    blkrepl_image_close(to);
    return phase;
}

static void make_source(void)
{
    char *block = malloc(1u << 20);
    int fd = open(source, O_RDWR | O_CREAT | O_TRUNC, 0600);

    memset(block, 0x5a, 1u << 20);
    for (uint64_t i = 0; fd >= 0 && i < mib; i++) {
        if (write(fd, block, 1u << 20) != 1 << 20) {
            perror(source);
            exit(1);
        }
    }
    free(block);
    close(fd);
}

static void parse(int argc, char **argv)
{
    for (int i = 1; i + 1 < argc; i += 2) {
        if (strcmp(argv[i], "--dir") == 0) {
            dir = argv[i + 1];
        } else if (strcmp(argv[i], "--mib") == 0) {
            mib = strtoull(argv[i + 1], NULL, 0);
        } else if (strcmp(argv[i], "--cluster") == 0) {
            cluster_bytes = strtoull(argv[i + 1], NULL, 0);
        } else if (strcmp(argv[i], "--flags") == 0) {
            flags = (uint32_t)strtoul(argv[i + 1], NULL, 0);
        } else if (strcmp(argv[i], "--rounds") == 0) {
            rounds = atoi(argv[i + 1]);
        }
    }
    if (argc % 2 == 0 || mib == 0 || rounds < 1 || rounds > ROUNDS_MAX) {
        fprintf(stderr,
                "usage: starve [--dir DIR] [--mib N] [--rounds N] [--cluster BYTES] [--flags N]\n");
        exit(2);
    }
    snprintf(source, sizeof source, "%s/blkrepl-starve-%d.src", dir, (int)getpid());
    snprintf(target, sizeof target, "%s/blkrepl-starve-%d.dst", dir, (int)getpid());
}

/* What bare system calls reach with so many first touches per write. */
static double bare_iops(double first_touches, double seconds)
{
    static char cluster[1u << 20];
    uint64_t bytes = cluster_bytes != 0 ? cluster_bytes : 65536;
    int fd = open(source, O_RDWR);
    uint64_t begin = bench_now_ns();
    uint64_t count = 0;
    double owed = 0;

    while ((double)(bench_now_ns() - begin) / 1e9 < seconds) {
        uint64_t offset = next_offset(EVERYWHERE);

        owed += first_touches;
        if (owed >= 1) {
            owed -= 1;
            if (pread(fd, cluster, bytes, (off_t)(offset / bytes * bytes)) < 0) {
                perror(source);
                exit(1);
            }
        }
        if (pwrite(fd, data, sizeof data, (off_t)offset) != sizeof data) {
            perror(source);
            exit(1);
        }
        count++;
    }
    close(fd);
    return (double)count / seconds;
}

struct series {
    double idle[ROUNDS_MAX];
    double busy[ROUNDS_MAX];
    double ratio[ROUNDS_MAX];
    double p999[ROUNDS_MAX];
    double slowest[ROUNDS_MAX];
    double seconds[ROUNDS_MAX];
    double touches[ROUNDS_MAX];
    double bound[ROUNDS_MAX];
};

static void series_round(struct series *s, int i, blkrepl_context *ctx, blkrepl_image *image,
                         enum pattern pattern)
{
    struct phase busy = backup_phase(ctx, image, pattern);
    struct phase idle = guest_run(ctx, image, NULL, pattern, busy.seconds);

    s->idle[i] = idle.iops;
    s->busy[i] = busy.iops;
    s->ratio[i] = busy.iops / idle.iops;
    s->p999[i] = busy.p999_ms;
    s->slowest[i] = busy.slowest_ms;
    s->seconds[i] = busy.seconds;
    s->touches[i] = busy.first_touches;
    s->bound[i] = bare_iops(busy.first_touches, busy.seconds) / idle.iops;
}

int main(int argc, char **argv)
{
    static struct series all[PATTERN_COUNT];
    blkrepl_context *ctx;
    blkrepl_image *image;

    parse(argc, argv);
    latency_us = malloc(LATENCIES_MAX * sizeof *latency_us);
    make_source();
    check(blkrepl_context_create(NULL, &ctx), "context");
    check(blkrepl_image_open_file(ctx, source, NULL, NULL, &image), "source");
    guest_run(ctx, image, NULL, EVERYWHERE, 0.2);
    for (int i = 0; i < rounds; i++) {
        for (int p = 0; p < PATTERN_COUNT; p++) {
            series_round(&all[p], i, ctx, image, (enum pattern)p);
        }
    }
    printf("guest 4 KiB writes, qd 1, beside a default backup of %llu MiB in %s;\n"
           "median of %d interleaved rounds\n",
           (unsigned long long)mib, dir, rounds);
    printf("  %-20s %9s %9s %6s %6s %9s %9s %8s %9s\n", "", "idle IOPS", "IOPS", "ratio", "bound",
           "99.9% ms", "slowest", "backup s", "touches");
    for (int p = 0; p < PATTERN_COUNT; p++) {
        struct series *s = &all[p];

        printf("  %-20s %9.0f %9.0f %6.2f %6.2f %9.3f %9.3f %8.2f %9.2f\n", pattern_name[p],
               bench_median(s->idle, rounds), bench_median(s->busy, rounds),
               bench_median(s->ratio, rounds), bench_median(s->bound, rounds),
               bench_median(s->p999, rounds), bench_median(s->slowest, rounds),
               bench_median(s->seconds, rounds), bench_median(s->touches, rounds));
    }
    printf("  targets: ratio >= 0.5, 99.9 %% within 20 ms, no gap above 200 ms\n"
           "  bound: bare system calls with as many first touches per write (last column)\n");
    blkrepl_image_close(image);
    unlink(source);
    unlink(target);
    return blkrepl_context_free(ctx) == 0 ? 0 : 1;
}
