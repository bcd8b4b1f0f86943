/* SPDX-License-Identifier: MIT */
/* backup.c - copying a file on tmpfs: a backup, with and without copy offload,
 * against cp, qemu-img convert and loops of two threads over pread and pwrite and
 * over copy_file_range.
 *
 * Every copy runs in a process of its own, onto a new file; the contestants
 * take turns within one run, and another one begins each round.  Before each
 * copy as much memory as it needs is touched and freed again: on a virtual
 * machine that gives free memory back to its host, whoever comes first would
 * otherwise pay for the pages.  Throughput, and CPU seconds per GiB.
 *
 *     backup [--dir DIR] [--mib N] [--rounds N] */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <libblkrepl/libblkrepl.h>

#include "bench.h"

#define ROUNDS_MAX 51
#define LOOP_CHUNK (256u << 10)
#define LOOP_THREADS 2

static const char *dir = "/dev/shm";
static uint64_t mib = 2048;
static int rounds = 5;
static char source[PATH_MAX];
static char target[PATH_MAX];

static void die(const char *what)
{
    fprintf(stderr, "backup: %s: %s\n", what, strerror(errno));
    exit(1);
}

/* --- the contestants; each runs in a child of its own -------------------------------- */

static int run_library(uint32_t flags)
{
    blkrepl_backup_options options = {.struct_size = sizeof options, .flags = flags};
    blkrepl_context *ctx;
    blkrepl_image *from;
    blkrepl_image *to;
    blkrepl_job *job;
    blkrepl_job_info info = {.struct_size = sizeof info};
    blkrepl_image_options read_only = {.struct_size = sizeof read_only,
                                       .flags = BLKREPL_IMAGE_READ_ONLY};
    blkrepl_file_options create = {
        .struct_size = sizeof create, .flags = BLKREPL_FILE_CREATE, .bytes = mib << 20};

    if (blkrepl_context_create(NULL, &ctx) < 0 ||
        blkrepl_image_open_file(ctx, source, NULL, &read_only, &from) < 0 ||
        blkrepl_image_open_file(ctx, target, &create, NULL, &to) < 0 ||
        blkrepl_backup_start(from, to, &options, &job) < 0) {
        fprintf(stderr, "backup: %s\n", blkrepl_error_message());
        return 1;
    }
    do {
        blkrepl_poll(ctx, 0, 100000000);
        blkrepl_job_query(job, &info);
    } while (info.state != BLKREPL_JOB_CONCLUDED);
    if ((flags & BLKREPL_BACKUP_NO_OFFLOAD) == 0 && info.offloaded_bytes < info.bytes_total) {
        fprintf(stderr, "backup: only %llu bytes were offloaded\n",
                (unsigned long long)info.offloaded_bytes);
    }
    return info.result == BLKREPL_RESULT_DONE ? 0 : 1;
}

static int run_offload(void)
{
    return run_library(0);
}

static int run_buffers(void)
{
    return run_library(BLKREPL_BACKUP_NO_OFFLOAD);
}

static int loop_from;
static int loop_to;
static atomic_ullong loop_next;

/* The next chunk to copy; false if there is none. */
static bool loop_take(off_t *offset)
{
    *offset = (off_t)atomic_fetch_add(&loop_next, LOOP_CHUNK);
    return (uint64_t)*offset < mib << 20;
}

static void *loop_thread(void *user)
{
    char *buffer = malloc(LOOP_CHUNK);
    off_t offset;

    (void)user;
    while (loop_take(&offset)) {
        if (pread(loop_from, buffer, LOOP_CHUNK, offset) != LOOP_CHUNK ||
            pwrite(loop_to, buffer, LOOP_CHUNK, offset) != LOOP_CHUNK) {
            die("loop");
        }
    }
    free(buffer);
    return NULL;
}

static void *range_thread(void *user)
{
    off_t in;

    (void)user;
    while (loop_take(&in)) {
        off_t out = in;

        for (size_t left = LOOP_CHUNK; left > 0;) {
            ssize_t moved = copy_file_range(loop_from, &in, loop_to, &out, left, 0);

            if (moved <= 0) {
                die("copy_file_range");
            }
            left -= (size_t)moved;
        }
    }
    return NULL;
}

static int loop(void *(*thread)(void *user))
{
    pthread_t threads[LOOP_THREADS];

    loop_from = open(source, O_RDONLY);
    loop_to = open(target, O_RDWR | O_CREAT, 0600);
    if (loop_from < 0 || loop_to < 0 || ftruncate(loop_to, (off_t)(mib << 20)) < 0) {
        die("loop");
    }
    for (int i = 0; i < LOOP_THREADS; i++) {
        pthread_create(&threads[i], NULL, thread, NULL);
    }
    for (int i = 0; i < LOOP_THREADS; i++) {
        pthread_join(threads[i], NULL);
    }
    return fdatasync(loop_to);
}

static int run_loop(void)
{
    return loop(loop_thread);
}

static int run_range_loop(void)
{
    return loop(range_thread);
}

static int run_cp(void)
{
    execlp("cp", "cp", source, target, (char *)NULL);
    return 127;
}

static int run_qemu(void)
{
    execlp("qemu-img", "qemu-img", "convert", "-f", "raw", "-O", "raw", source, target,
           (char *)NULL);
    return 127;
}

/* --- measuring ------------------------------------------------------------------------ */

struct contestant {
    const char *name;
    int (*run)(void);
    bool absent;
    double rate[ROUNDS_MAX]; /* GB/s */
    double cpu[ROUNDS_MAX];  /* seconds per GiB */
};

/* Make sure that the memory for the target is the machine's. */
static void warm(void)
{
    size_t bytes = (size_t)(mib + 64) << 20;
    char *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    if (memory == MAP_FAILED) {
        die("warm");
    }
    for (size_t i = 0; i < bytes; i += 4096) {
        memory[i] = 1;
    }
    munmap(memory, bytes);
}

/* The target is new for each copy. */
static void measure(struct contestant *c, int round)
{
    struct rusage usage;
    uint64_t start;
    double seconds;
    int status = 0;
    pid_t pid;

    unlink(target);
    warm();
    start = bench_now_ns();
    pid = fork();
    if (pid == 0) {
        _exit(c->run());
    }
    if (pid < 0 || wait4(pid, &status, 0, &usage) != pid) {
        die(c->name);
    }
    seconds = (double)(bench_now_ns() - start) / 1e9;
    if (!WIFEXITED(status) || WEXITSTATUS(status) != 0) {
        c->absent = true;
        return;
    }
    c->rate[round] = (double)(mib << 20) / seconds / 1e9;
    c->cpu[round] =
        (bench_seconds(usage.ru_utime) + bench_seconds(usage.ru_stime)) / ((double)mib / 1024);
}

static void make_source(void)
{
    size_t bytes = 1u << 20;
    unsigned *block = malloc(bytes);
    unsigned random = 12345;
    int fd = open(source, O_RDWR | O_CREAT | O_TRUNC, 0600);

    if (fd < 0 || block == NULL) {
        die(source);
    }
    for (uint64_t i = 0; i < mib; i++) {
        for (size_t j = 0; j < bytes / sizeof *block; j++) {
            block[j] = random = random * 1664525 + 1013904223;
        }
        if (write(fd, block, bytes) != (ssize_t)bytes) {
            die(source);
        }
    }
    free(block);
    close(fd);
}

static int compare_files(void)
{
    char command[2 * PATH_MAX + 16];

    snprintf(command, sizeof command, "cmp '%s' '%s'", source, target);
    return system(command);
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
        fprintf(stderr, "usage: backup [--dir DIR] [--mib N] [--rounds N]\n");
        exit(2);
    }
    snprintf(source, sizeof source, "%s/blkrepl-bench-%d.src", dir, (int)getpid());
    snprintf(target, sizeof target, "%s/blkrepl-bench-%d.dst", dir, (int)getpid());
}

int main(int argc, char **argv)
{
    static struct contestant all[] = {
        {.name = "two-thread pread/pwrite loop", .run = run_loop},
        {.name = "libblkrepl backup", .run = run_offload},
        {.name = "  NO_OFFLOAD", .run = run_buffers},
        {.name = "two-thread copy_file_range loop", .run = run_range_loop},
        {.name = "cp", .run = run_cp},
        {.name = "qemu-img convert", .run = run_qemu}};
    const int count = (int)(sizeof all / sizeof all[0]);
    double loop_rate;
    double loop_cpu;
    int differs = 0;

    parse(argc, argv);
    make_source();
    for (int round = 0; round < rounds; round++) {
        for (int i = 0; i < count; i++) {
            int who = (i + round) % count;

            measure(&all[who], round);
            if ((who == 1 || who == 2) && round == 0) {
                differs += compare_files() != 0;
            }
        }
    }
    loop_rate = bench_median(all[0].rate, rounds);
    loop_cpu = bench_median(all[0].cpu, rounds);
    printf("copy of %llu MiB in %s, median of %d interleaved rounds\n", (unsigned long long)mib,
           dir, rounds);
    printf("  %-32s %8s %14s %10s %10s\n", "", "GB/s", "CPU-s per GiB", "rate/loop", "CPU/loop");
    for (int i = 0; i < count; i++) {
        if (all[i].absent) {
            printf("  %-32s not available\n", all[i].name);
            continue;
        }
        printf("  %-32s %8.2f %14.3f %10.2f %10.2f\n", all[i].name,
               bench_median(all[i].rate, rounds), bench_median(all[i].cpu, rounds),
               bench_median(all[i].rate, rounds) / loop_rate,
               bench_median(all[i].cpu, rounds) / loop_cpu);
    }
    printf("  target: libblkrepl >= 0.8 of the loop's rate at <= 1.1 of its CPU\n");
    unlink(source);
    unlink(target);
    return differs != 0 || all[1].absent || all[2].absent;
}
