/* SPDX-License-Identifier: MIT */
/* idle.c - what one guest write through an idle image costs, over a backend that
 * does nothing, against calling that backend directly.
 *
 * One thread, one lane, an awake poller.  Both forms alternate within one run.
 *
 * "Recorded": the same writes, through and beside, to an image with a dirty bitmap
 * at 64 KiB that records them; to random places of 1 TiB, most of them clean, and to
 * those of one GiB again and again, as a guest with a working set would.
 *
 *     idle [ROUNDS [WRITES]] */
#include <libblkrepl/libblkrepl.h>

#include "bench.h"

#define ROUNDS_MAX 101
#define DISK_BYTES (UINT64_C(1) << 40)
#define HOT_BYTES (UINT64_C(1) << 30)

static blkrepl_context *ctx;
static uint64_t submitted;
static uint64_t completed;

static int null_info(void *user, blkrepl_backend_info *info)
{
    (void)user;
    info->bytes = DISK_BYTES;
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

/* Of the first `bytes`, a power of two. */
static uint64_t next_offset(uint64_t *state, uint64_t bytes)
{
    *state = *state * UINT64_C(6364136223846793005) + 1442695040888963407u;
    return (*state >> 12) & (bytes - 4096);
}

static double run_direct(uint64_t writes)
{
    static char data[4096];
    blkrepl_iovec iov = {data, sizeof data};
    uint64_t state = 1;
    uint64_t start = bench_now_ns();

    for (uint64_t i = 0; i < writes; i++) {
        blkrepl_io io = {.opcode = BLKREPL_OP_WRITE,
                         .offset = next_offset(&state, DISK_BYTES),
                         .bytes = sizeof data,
                         .iov = &iov,
                         .iov_count = 1};
        blkrepl_io *list[1] = {&io};

        direct_backend(NULL, 0, list, 1);
    }
    return (double)(bench_now_ns() - start) / (double)writes;
}

static double run_library(blkrepl_image *image, uint64_t bytes, uint64_t writes)
{
    static char data[4096];
    blkrepl_iovec iov = {data, sizeof data};
    blkrepl_completion done = {.fn = direct_done};
    uint64_t state = 1;
    uint64_t start = bench_now_ns();

    for (uint64_t i = 0; i < writes; i++) {
        if (blkrepl_image_write(image, 0, next_offset(&state, bytes), &iov, 1, 0, &done) < 0 ||
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
        if (blkrepl_image_write(image, 0, next_offset(&state, DISK_BYTES), &iov, 1, 0, &done) < 0) {
            exit(1);
        }
        if (i % 16 == 15) {
            blkrepl_poll(ctx, 0, 0);
        }
    }
    blkrepl_poll(ctx, 0, 0);
    return (double)(bench_now_ns() - start) / (double)writes;
}

static double run_bracket(blkrepl_image *image, uint64_t bytes, uint64_t writes)
{
    blkrepl_completion go = {.fn = direct_done};
    uint64_t state = 1;
    uint64_t start = bench_now_ns();

    for (uint64_t i = 0; i < writes; i++) {
        blkrepl_bracket what = {.struct_size = sizeof what,
                                .opcode = BLKREPL_OP_WRITE,
                                .offset = next_offset(&state, bytes),
                                .bytes = 4096};
        uint64_t token;

        if (blkrepl_write_begin(image, &what, &go, &token) != 0 ||
            blkrepl_write_end(ctx, token, 0, NULL, 0, NULL) != 0) {
            exit(1);
        }
    }
    return (double)(bench_now_ns() - start) / (double)writes;
}

enum form {
    DIRECT,
    THROUGH,
    BURST,
    BESIDE,
    THROUGH_TIB,
    THROUGH_GIB,
    BESIDE_TIB,
    BESIDE_GIB,
    FORMS
};

static void check(int rc)
{
    if (rc < 0) {
        fprintf(stderr, "idle: %s\n", blkrepl_error_message());
        exit(1);
    }
}

static void run_round(double ns[FORMS][ROUNDS_MAX], int round, blkrepl_image *const images[2],
                      blkrepl_bitmap *bitmap, uint64_t writes)
{
    ns[DIRECT][round] = run_direct(writes);
    ns[THROUGH][round] = run_library(images[0], DISK_BYTES, writes);
    ns[BURST][round] = run_burst(images[0], writes);
    ns[BESIDE][round] = run_bracket(images[0], DISK_BYTES, writes);
    check(blkrepl_bitmap_clear(bitmap));
    ns[THROUGH_TIB][round] = run_library(images[1], DISK_BYTES, writes);
    ns[THROUGH_GIB][round] = run_library(images[1], HOT_BYTES, writes);
    check(blkrepl_bitmap_clear(bitmap));
    ns[BESIDE_TIB][round] = run_bracket(images[1], DISK_BYTES, writes);
    ns[BESIDE_GIB][round] = run_bracket(images[1], HOT_BYTES, writes);
}

static void print(double ns[FORMS][ROUNDS_MAX], int rounds)
{
    double median[FORMS];

    for (int form = 0; form < FORMS; form++) {
        median[form] = bench_median(ns[form], rounds);
    }
    printf("idle image, null backend, ns per 4 KiB write, median of %d interleaved rounds\n",
           rounds);
    printf("  backend called directly          %7.1f\n", median[DIRECT]);
    printf("  through, write + poll each       %7.1f\n", median[THROUGH]);
    printf("  through, 16 writes a poll        %7.1f\n", median[BURST]);
    printf("  beside, begin + end              %7.1f\n", median[BESIDE]);
    printf("  added by the library             %7.1f  (target: <= 100)\n",
           median[THROUGH] - median[DIRECT]);
    printf("the same, recorded in a dirty bitmap                added\n");
    printf("  through, all over 1 TiB          %7.1f         %7.1f\n", median[THROUGH_TIB],
           median[THROUGH_TIB] - median[THROUGH]);
    printf("  through, in one GiB              %7.1f         %7.1f\n", median[THROUGH_GIB],
           median[THROUGH_GIB] - median[THROUGH]);
    printf("  beside, all over 1 TiB           %7.1f         %7.1f\n", median[BESIDE_TIB],
           median[BESIDE_TIB] - median[BESIDE]);
    printf("  beside, in one GiB               %7.1f         %7.1f\n", median[BESIDE_GIB],
           median[BESIDE_GIB] - median[BESIDE]);
}

/* Was anything recorded? */
static int bitmap_is_used(blkrepl_bitmap *bitmap)
{
    blkrepl_bitmap_info info = {.struct_size = sizeof info};

    return blkrepl_bitmap_query(bitmap, &info) == 0 && info.dirty_granules > 0;
}

int main(int argc, char **argv)
{
    static const blkrepl_backend_ops ops = {
        .struct_size = sizeof ops, .get_info = null_info, .submit = null_submit};
    static const blkrepl_bitmap_options named = {.struct_size = sizeof named, .name = "record"};
    static double ns[FORMS][ROUNDS_MAX];
    int rounds = argc > 1 ? atoi(argv[1]) : 11;
    uint64_t writes = argc > 2 ? strtoull(argv[2], NULL, 0) : 1000000;
    blkrepl_image *images[2];
    blkrepl_bitmap *bitmap;
    int recorded;

    if (rounds < 1 || rounds > ROUNDS_MAX || writes == 0) {
        fprintf(stderr, "usage: idle [ROUNDS [WRITES]]\n");
        return 2;
    }
    check(blkrepl_context_create(NULL, &ctx));
    check(blkrepl_image_open(ctx, &ops, NULL, NULL, &images[0]));
    check(blkrepl_image_open(ctx, &ops, NULL, NULL, &images[1]));
    check(blkrepl_bitmap_add(images[1], &named, &bitmap));
    for (int i = 0; i < rounds; i++) {
        run_round(ns, i, images, bitmap, writes);
    }
    print(ns, rounds);
    recorded = bitmap_is_used(bitmap);
    blkrepl_bitmap_free(bitmap);
    blkrepl_image_close(images[0]);
    blkrepl_image_close(images[1]);
    return blkrepl_context_free(ctx) == 0 && recorded && submitted > 0 && completed > 0 ? 0 : 1;
}
