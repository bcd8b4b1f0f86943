/* SPDX-License-Identifier: MIT */
/* null.c - what a backup itself costs: from a disk that is read in no time to
 * one that is written in no time.
 *
 * The alternative in the same run: a bare loop that calls the two backends for
 * the same chunks.
 *
 *     null [ROUNDS [GIB]] */
#include <libblkrepl/libblkrepl.h>

#include "bench.h"

#define ROUNDS_MAX 101
#define CHUNK_BYTES (UINT64_C(256) << 10)

static blkrepl_context *ctx;
static uint64_t disk_bytes;
static uint64_t moved_bytes;

static int null_info(void *user, blkrepl_backend_info *info)
{
    (void)user;
    info->bytes = disk_bytes;
    info->opcodes = 1u << BLKREPL_OP_READ | 1u << BLKREPL_OP_WRITE;
    return 0;
}

static void null_submit(void *user, uint32_t lane, blkrepl_io *const *ios, uint32_t count)
{
    (void)user;
    (void)lane;
    for (uint32_t i = 0; i < count; i++) {
        moved_bytes += ios[i]->bytes;
        blkrepl_io_complete(ctx, ios[i]->id, 0);
    }
}

static const blkrepl_backend_ops null_ops = {
    .struct_size = sizeof null_ops, .get_info = null_info, .submit = null_submit};

static void check(int rc)
{
    if (rc < 0) {
        fprintf(stderr, "null: %s\n", blkrepl_error_message());
        exit(1);
    }
}

/* Microseconds per MiB of a backup. */
static double run_backup(blkrepl_image *from, blkrepl_image *to)
{
    blkrepl_job_info info = {.struct_size = sizeof info};
    uint64_t start = bench_now_ns();
    blkrepl_job *job;

    moved_bytes = 0;
    check(blkrepl_backup_start(from, to, NULL, &job));
    do {
        for (int i = 0; i < 64; i++) {
            check(blkrepl_poll(ctx, 0, 0));
        }
        blkrepl_job_query(job, &info);
    } while (info.state != BLKREPL_JOB_CONCLUDED);
    blkrepl_job_free(job);
    if (info.result != BLKREPL_RESULT_DONE || moved_bytes != 2 * disk_bytes) {
        fprintf(stderr, "null: not everything was copied\n");
        exit(1);
    }
    return (double)(bench_now_ns() - start) / 1e3 / (double)(disk_bytes >> 20);
}

static void (*volatile bare_submit)(void *, uint32_t, blkrepl_io *const *, uint32_t) = null_submit;

static double run_bare(void)
{
    uint64_t start = bench_now_ns();

    for (uint64_t offset = 0; offset < disk_bytes; offset += CHUNK_BYTES) {
        blkrepl_io io = {.opcode = BLKREPL_OP_READ, .offset = offset, .bytes = CHUNK_BYTES};
        blkrepl_io *list[1] = {&io};

        bare_submit(NULL, 0, list, 1);
        io.opcode = BLKREPL_OP_WRITE;
        bare_submit(NULL, 0, list, 1);
    }
    return (double)(bench_now_ns() - start) / 1e3 / (double)(disk_bytes >> 20);
}

int main(int argc, char **argv)
{
    int rounds = argc > 1 ? atoi(argv[1]) : 11;
    double backup[ROUNDS_MAX];
    double bare[ROUNDS_MAX];
    blkrepl_image *from;
    blkrepl_image *to;

    disk_bytes = (argc > 2 ? strtoull(argv[2], NULL, 0) : 64) << 30;
    if (rounds < 1 || rounds > ROUNDS_MAX || disk_bytes == 0) {
        fprintf(stderr, "usage: null [ROUNDS [GIB]]\n");
        return 2;
    }
    check(blkrepl_context_create(NULL, &ctx));
    check(blkrepl_image_open(ctx, &null_ops, NULL, NULL, &from));
    check(blkrepl_image_open(ctx, &null_ops, NULL, NULL, &to));
    for (int i = 0; i < rounds; i++) {
        backup[i] = run_backup(from, to);
        bare[i] = run_bare();
    }
    printf("backup of %llu GiB, null to null, us per MiB, median of %d interleaved rounds\n",
           (unsigned long long)(disk_bytes >> 30), rounds);
    printf("  bare calls of the two backends   %7.3f\n", bench_median(bare, rounds));
    printf("  libblkrepl backup                %7.3f  (target: <= 1.3, a quarter of QEMU's 5.2)\n",
           bench_median(backup, rounds));
    blkrepl_image_close(from);
    blkrepl_image_close(to);
    return blkrepl_context_free(ctx) == 0 ? 0 : 1;
}
