/* SPDX-License-Identifier: MIT */
/* idle.c - what one guest write through an idle image costs, over a backend that
 * does nothing, against calling that backend directly.
 *
 * One thread, one lane, an awake poller.  Both forms alternate within one run.
 *
 *     idle [ROUNDS [WRITES]] */
#include <libblkrepl/libblkrepl.h>

#include "bench.h"

#define ROUNDS_MAX 101

static blkrepl_context *ctx;
static uint64_t submitted;
static uint64_t completed;

static int null_info(void *user, blkrepl_backend_info *info)
{
    (void)user;
    info->bytes = UINT64_C(1) << 40;
    info->opcodes = 1u << BLKREPL_OP_READ | 1u << BLKREPL_OP_WRITE;
    return 0;
}

static void null_submit(void *user, uint32_t lane, blkrepl_io *const *ios, uint32_t count)
{
    (void)user;
    (void)lane;
    for (uint32_t i = 0; i < count; i++) {
        submitted++;
        blkrepl_io_complete(ctx, ios[i]->id, 0);
    }
}

/* The same backend without a library: it counts and calls back. */
static void direct_done(void *user, int result)
{
    (void)user;
    completed += result == 0;
}

static void (*volatile direct_callback)(void *user, int result) = direct_done;

static void direct_submit(void *user, uint32_t lane, blkrepl_io *const *ios, uint32_t count)
{
    (void)lane;
    for (uint32_t i = 0; i < count; i++) {
        submitted += ios[i]->bytes != 0;
        direct_callback(user, 0);
    }
}

static void (*volatile direct_backend)(void *, uint32_t, blkrepl_io *const *,
                                       uint32_t) = direct_submit;

static uint64_t next_offset(uint64_t *state)
{
    *state = *state * UINT64_C(6364136223846793005) + 1442695040888963407u;
    return (*state >> 24 & ((UINT64_C(1) << 28) - 1)) << 12;
}

static double run_direct(uint64_t writes)
{
    static char data[4096];
    blkrepl_iovec iov = {data, sizeof data};
    uint64_t state = 1;
    uint64_t start = bench_now_ns();

    for (uint64_t i = 0; i < writes; i++) {
        blkrepl_io io = {.opcode = BLKREPL_OP_WRITE,
                         .offset = next_offset(&state),
                         .bytes = sizeof data,
                         .iov = &iov,
                         .iov_count = 1};
        blkrepl_io *list[1] = {&io};

        direct_backend(NULL, 0, list, 1);
    }
    return (double)(bench_now_ns() - start) / (double)writes;
}

static double run_library(blkrepl_image *image, uint64_t writes)
{
    static char data[4096];
    blkrepl_iovec iov = {data, sizeof data};
    blkrepl_completion done = {.fn = direct_done};
    uint64_t state = 1;
    uint64_t start = bench_now_ns();

    for (uint64_t i = 0; i < writes; i++) {
        if (blkrepl_image_write(image, 0, next_offset(&state), &iov, 1, 0, &done) < 0 ||
            blkrepl_poll(ctx, 0, 0) != 1) {
            fprintf(stderr, "idle: %s\n", blkrepl_error_message());
            exit(1);
        }
    }
    return (double)(bench_now_ns() - start) / (double)writes;
}

/* The same with bursts of 16 requests before each poll. */
static double run_burst(blkrepl_image *image, uint64_t writes)
{
    static char data[4096];
    blkrepl_iovec iov = {data, sizeof data};
    blkrepl_completion done = {.fn = direct_done};
    uint64_t state = 1;
    uint64_t start = bench_now_ns();

    for (uint64_t i = 0; i < writes; i++) {
        if (blkrepl_image_write(image, 0, next_offset(&state), &iov, 1, 0, &done) < 0) {
            exit(1);
        }
        if (i % 16 == 15) {
            blkrepl_poll(ctx, 0, 0);
        }
    }
    blkrepl_poll(ctx, 0, 0);
    return (double)(bench_now_ns() - start) / (double)writes;
}

static double run_bracket(blkrepl_image *image, uint64_t writes)
{
    blkrepl_completion go = {.fn = direct_done};
    uint64_t state = 1;
    uint64_t start = bench_now_ns();

    for (uint64_t i = 0; i < writes; i++) {
        blkrepl_bracket what = {.struct_size = sizeof what,
                                .opcode = BLKREPL_OP_WRITE,
                                .offset = next_offset(&state),
                                .bytes = 4096};
        uint64_t token;

        if (blkrepl_write_begin(image, &what, &go, &token) != 0 ||
            blkrepl_write_end(ctx, token, 0, NULL, 0, NULL) != 0) {
            exit(1);
        }
    }
    return (double)(bench_now_ns() - start) / (double)writes;
}

int main(int argc, char **argv)
{
    static const blkrepl_backend_ops ops = {
        .struct_size = sizeof ops, .get_info = null_info, .submit = null_submit};
    int rounds = argc > 1 ? atoi(argv[1]) : 11;
    uint64_t writes = argc > 2 ? strtoull(argv[2], NULL, 0) : 1000000;
    double direct[ROUNDS_MAX];
    double library[ROUNDS_MAX];
    double burst[ROUNDS_MAX];
    double bracket[ROUNDS_MAX];
    blkrepl_image *image;

    if (rounds < 1 || rounds > ROUNDS_MAX || blkrepl_context_create(NULL, &ctx) < 0 ||
        blkrepl_image_open(ctx, &ops, NULL, NULL, &image) < 0) {
        fprintf(stderr, "usage: idle [ROUNDS [WRITES]]\n");
        return 2;
    }
    for (int i = 0; i < rounds; i++) {
        direct[i] = run_direct(writes);
        library[i] = run_library(image, writes);
        burst[i] = run_burst(image, writes);
        bracket[i] = run_bracket(image, writes);
    }
    printf("idle image, null backend, ns per 4 KiB write, median of %d interleaved rounds\n",
           rounds);
    printf("  backend called directly          %7.1f\n", bench_median(direct, rounds));
    printf("  through, write + poll each       %7.1f\n", bench_median(library, rounds));
    printf("  through, 16 writes a poll        %7.1f\n", bench_median(burst, rounds));
    printf("  beside, begin + end              %7.1f\n", bench_median(bracket, rounds));
    printf("  added by the library             %7.1f  (target: <= 100)\n",
           library[rounds / 2] - direct[rounds / 2]);
    blkrepl_image_close(image);
    return blkrepl_context_free(ctx) == 0 && submitted > 0 && completed > 0 ? 0 : 1;
}
