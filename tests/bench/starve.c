/* SPDX-License-Identifier: MIT */
/* starve.c - a guest that writes at full speed, with and without a default
 * backup running beside it.
 *
 * One thread is the guest: 4 KiB random writes through the library, one at a
 * time, polling for its callback.  Idle and backup phases alternate; an idle
 * phase lasts as long as the backup before it.
 *
 *     starve [--dir DIR] [--mib N] [--rounds N] */
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
static char data[4096];

struct phase {
    double seconds;
    double iops;
    double p999_ms;
    double slowest_ms;
    double writes;
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

/* Write until the job has concluded, or for `seconds` when there is none. */
static struct phase guest_run(blkrepl_context *ctx, blkrepl_image *image, blkrepl_job *job,
                              double seconds)
{
    static uint64_t state = 1;
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

        state = state * UINT64_C(6364136223846793005) + 1442695040888963407u;
        check(blkrepl_image_write(image, 0, (state >> 20) % (mib << 8) << 12, &iov, 1, 0,
                                  &completion),
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
    phase.iops = count / phase.seconds;
    count = count < LATENCIES_MAX ? count : LATENCIES_MAX;
    qsort(latency_us, count, sizeof *latency_us, bench_compare);
    phase.p999_ms = latency_us[(uint64_t)count * 999 / 1000] / 1e3;
    phase.slowest_ms = latency_us[count - 1] / 1e3;
    return phase;
}

static struct phase backup_phase(blkrepl_context *ctx, blkrepl_image *image)
{
    blkrepl_file_options create = {
        .struct_size = sizeof create, .flags = BLKREPL_FILE_CREATE, .bytes = mib << 20};
    blkrepl_image *to;
    blkrepl_job *job;
    struct phase phase;

    unlink(target);
    check(blkrepl_image_open_file(ctx, target, &create, NULL, &to), "target");
    check(blkrepl_backup_start(image, to, NULL, &job), "backup");
    phase = guest_run(ctx, image, job, 0);
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
        } else if (strcmp(argv[i], "--rounds") == 0) {
            rounds = atoi(argv[i + 1]);
        }
    }
    if (argc % 2 == 0 || mib == 0 || rounds < 1 || rounds > ROUNDS_MAX) {
        fprintf(stderr, "usage: starve [--dir DIR] [--mib N] [--rounds N]\n");
        exit(2);
    }
    snprintf(source, sizeof source, "%s/blkrepl-starve-%d.src", dir, (int)getpid());
    snprintf(target, sizeof target, "%s/blkrepl-starve-%d.dst", dir, (int)getpid());
}

int main(int argc, char **argv)
{
    double idle_iops[ROUNDS_MAX];
    double busy_iops[ROUNDS_MAX];
    double ratio[ROUNDS_MAX];
    double p999[ROUNDS_MAX];
    double slowest[ROUNDS_MAX];
    double seconds[ROUNDS_MAX];
    blkrepl_context *ctx;
    blkrepl_image *image;

    parse(argc, argv);
    latency_us = malloc(LATENCIES_MAX * sizeof *latency_us);
    make_source();
    check(blkrepl_context_create(NULL, &ctx), "context");
    check(blkrepl_image_open_file(ctx, source, NULL, NULL, &image), "source");
    guest_run(ctx, image, NULL, 0.2);
    for (int i = 0; i < rounds; i++) {
        struct phase busy = backup_phase(ctx, image);
        struct phase idle = guest_run(ctx, image, NULL, busy.seconds);

        busy_iops[i] = busy.iops;
        idle_iops[i] = idle.iops;
        ratio[i] = busy.iops / idle.iops;
        p999[i] = busy.p999_ms;
        slowest[i] = busy.slowest_ms;
        seconds[i] = busy.seconds;
    }
    printf("guest 4 KiB random writes, qd 1, %llu MiB in %s, median of %d interleaved rounds\n",
           (unsigned long long)mib, dir, rounds);
    printf("  idle                        %10.0f IOPS\n", bench_median(idle_iops, rounds));
    printf("  during a default backup     %10.0f IOPS  (backup: %.2f s)\n",
           bench_median(busy_iops, rounds), bench_median(seconds, rounds));
    printf("  ratio                       %10.2f       (target: >= 0.5)\n",
           bench_median(ratio, rounds));
    printf("  99.9 %% of writes within     %10.3f ms    (target: <= 20)\n",
           bench_median(p999, rounds));
    printf("  slowest write (longest gap) %10.3f ms    (target: <= 200)\n",
           bench_median(slowest, rounds));
    blkrepl_image_close(image);
    unlink(source);
    unlink(target);
    return blkrepl_context_free(ctx) == 0 ? 0 : 1;
}
