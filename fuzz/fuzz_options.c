/* SPDX-License-Identifier: MIT */
/* fuzz_options.c - structs of every size and content, given to every function
 * that takes one.
 *
 * For each call the harness knows from the headers which answers are right.
 * What was accepted must be as it was asked for; what was refused must have left
 * a message and nothing else: the bench works on, releases have run exactly
 * once, and at the end all memory is back. */
#include "options.h"

#include <stdio.h>
#include <stdlib.h>

#define ACTS_MAX 16
#define POLLS_MAX 1000
#define NAME_BYTES_MAX 80
#define SMALL_BYTES (8 * KIB)

struct bench bench;

/* ---- The bench --------------------------------------------------------------- */

static blkrepl_backend_info bench_info(enum bench_disk which)
{
    blkrepl_backend_info info = {.bytes = SMALL_BYTES, .opcodes = 0x7e};

    switch (which) {
    case BENCH_READ_ONLY: info.flags = BLKREPL_BACKEND_READ_ONLY; break;
    case BENCH_SMALL: info.bytes = SMALL_BYTES - 1; break;
    case BENCH_COARSE: info.request_alignment = 64 * KIB; break;
    case BENCH_CLUSTER: info.cluster_bytes = 1u << 20; break;
    case BENCH_COMPRESS:
        info.flags = BLKREPL_BACKEND_COMPRESS;
        info.cluster_bytes = 8 * KIB;
        break;
    case BENCH_HUGE:
    case BENCH_HUGE_TOO: info.bytes = INT64_MAX; break;
    case BENCH_SOURCE:
    case BENCH_TARGET:
    case BENCH_SOUND_SOURCE:
    case BENCH_SOUND_TARGET:
    case BENCH_ALL: break;
    }
    return info;
}

blkrepl_image *bench_image(enum bench_disk which)
{
    struct disk *disk = &bench.disks[which];
    int rc;

    if (bench.images[which] != NULL) {
        return bench.images[which];
    }
    disk_init(disk, bench.ctx, 0, SMALL_BYTES);
    disk->info = bench_info(which);
    memset(disk->medium, 0x40 + (int)which, (size_t)disk->window);
    memset(disk->medium + disk->window / 2, 0, (size_t)disk->window / 4);
    rc = blkrepl_image_open(bench.ctx, &disk_ops, disk, NULL, &bench.images[which]);
    EXPECT(rc == 0, "a plain open to answer 0, got %d \"%s\"", rc, blkrepl_error_message());
    return bench.images[which];
}

static void bench_open(void)
{
    blkrepl_allocator allocator = heap_allocator();
    blkrepl_hooks hooks = fuzz_hooks();
    blkrepl_context_options options = {
        .struct_size = sizeof options, .allocator = &allocator, .hooks = &hooks};
    int rc;

    memset(bench.images, 0, sizeof bench.images);
    bench.refused = 0;
    bench.job = false;
    bench.memory_bytes_max = take_chance(25) ? take_below(64) * 4 * KIB + 16 * KIB : 0;
    bench.requests_max = take_chance(5) ? 0 : 2 + take_below(30);
    bench.job_requests_max = take_chance(5) ? 0 : 4 + take_below(60);
    options.memory_bytes_max = bench.memory_bytes_max;
    options.requests_max = bench.requests_max;
    options.job_requests_max = bench.job_requests_max;
    bench.memory_bytes_max =
        bench.memory_bytes_max != 0 ? bench.memory_bytes_max : UINT64_C(1) << 30;
    bench.requests_max = bench.requests_max != 0 ? bench.requests_max : 1024;
    bench.job_requests_max = bench.job_requests_max != 0 ? bench.job_requests_max : 8192;
    rc = blkrepl_context_create(&options, &bench.ctx);
    EXPECT(rc == 0, "a plain context to answer 0, got %d \"%s\"", rc, blkrepl_error_message());
}

uint64_t bench_drain(void)
{
    uint64_t deadline = 0;
    int polls = 0;

    while (blkrepl_poll_arm(bench.ctx, 0, &deadline) != 0 || deadline <= clock_now) {
        int rc = blkrepl_poll(bench.ctx, 0, 0);

        EXPECT(rc >= 0 && ++polls < POLLS_MAX, "polls to come to an end, got %d", rc);
    }
    return deadline;
}

void context_expect_freed(blkrepl_context *ctx)
{
    int rc = -EBUSY;

    for (int i = 0; i < POLLS_MAX && rc == -EBUSY; i++) {
        rc = blkrepl_context_free(ctx);
        if (rc == -EBUSY) {
            (void)blkrepl_poll(ctx, 0, 0);
        }
    }
    EXPECT(rc == 0, "context_free: 0, got %d \"%s\"", rc, blkrepl_error_message());
}

static void bench_close(void)
{
    for (unsigned i = 0; i < BENCH_ALL; i++) {
        blkrepl_image_close(bench.images[i]);
    }
    context_expect_freed(bench.ctx);
    for (unsigned i = 0; i < BENCH_ALL; i++) {
        EXPECT(bench.images[i] == NULL || bench.disks[i].closes == 1, "disk %u closed", i);
    }
}

/* ---- What must work always --------------------------------------------------- */

static void wait_for(blkrepl_context *ctx, const unsigned *calls)
{
    for (int i = 0; *calls == 0; i++) {
        int rc = blkrepl_poll(ctx, 0, 0);

        EXPECT(rc >= 0 && i < POLLS_MAX, "a poll that ends a request, got %d", rc);
    }
}

struct waiter {
    unsigned calls;
    int result;
};

static void waiter_called(void *user, int result)
{
    struct waiter *waiter = user;

    waiter->calls++;
    waiter->result = result;
}

static void expect_done(blkrepl_context *ctx, int rc, const struct waiter *waiter, const char *what)
{
    EXPECT(rc == 0, "%s: 0, got %d \"%s\"", what, rc, blkrepl_error_message());
    wait_for(ctx, &waiter->calls);
    EXPECT(waiter->calls == 1 && waiter->result == 0, "%s: to end once with 0, got %d", what,
           waiter->result);
}

void image_round_trip(blkrepl_context *ctx, blkrepl_image *image, uint64_t offset, size_t bytes)
{
    static uint8_t tag;
    uint8_t *written = fuzz_alloc(bytes);
    uint8_t *read = fuzz_alloc(bytes);
    blkrepl_iovec out = {.base = written, .len = bytes};
    blkrepl_iovec in = {.base = read, .len = bytes};
    struct waiter waits[2] = {{.calls = 0}, {.calls = 0}};
    blkrepl_completion dones[2] = {{.fn = waiter_called, .user = &waits[0]},
                                   {.fn = waiter_called, .user = &waits[1]}};
    int rc;

    tag++;
    for (size_t i = 0; i < bytes; i++) {
        written[i] = (uint8_t)(tag + i * 7);
    }
    memset(read, ~tag, bytes);
    rc = blkrepl_image_write(image, 0, offset, &out, 1, 0, &dones[0]);
    expect_done(ctx, rc, &waits[0], "a plain write");
    rc = blkrepl_image_read(image, 0, offset, &in, 1, 0, &dones[1]);
    expect_done(ctx, rc, &waits[1], "a plain read");
    EXPECT(bytes == 0 || memcmp(written, read, bytes) == 0, "to read what was written at %llu",
           (ull)offset);
    free(written);
    free(read);
}

static void bench_backup(void)
{
    blkrepl_backup_options options = {.struct_size = sizeof options,
                                      .cluster_bytes = 4096,
                                      .chunk_bytes_max = 4096,
                                      .reserve_bytes = 4096,
                                      .workers_max = 1};
    blkrepl_job_info info = {.struct_size = sizeof info};
    blkrepl_job *job;
    int rc;

    rc = blkrepl_backup_start(bench_image(BENCH_SOUND_SOURCE), bench_image(BENCH_SOUND_TARGET),
                              &options, &job);
    EXPECT(rc == 0, "a plain backup: 0, got %d \"%s\"", rc, blkrepl_error_message());
    (void)bench_drain();
    rc = blkrepl_job_query(job, &info);
    EXPECT(rc == 0 && info.state == BLKREPL_JOB_CONCLUDED && info.result == BLKREPL_RESULT_DONE,
           "a plain backup to be done, got %d, state %u, \"%s\"", rc, (unsigned)info.state,
           info.message);
    EXPECT(memcmp(bench.disks[BENCH_SOUND_SOURCE].medium, bench.disks[BENCH_SOUND_TARGET].medium,
                  SMALL_BYTES) == 0,
           "a plain backup to be a copy");
    blkrepl_job_free(job);
}

void bench_expect_sound(void)
{
    image_round_trip(bench.ctx, bench_image(BENCH_SOUND_SOURCE), 100 + bench.refused % 4000, 600);
    if (!bench.job) {
        bench_backup();
    }
}

void bench_refused(void)
{
    uint64_t fail_call = heap.fail_call;

    heap.fail_call = 0;
    bench.refused++;
    bench_expect_sound();
    heap.fail_call = fail_call;
}

/* ---- Names ------------------------------------------------------------------- */

char *name_draw(void)
{
    static const uint32_t lengths[] = {63, 64, 0, 1, 79};
    uint32_t kind = take_below(8);
    uint32_t length = kind < ARRAY_COUNT(lengths) ? lengths[kind] : take_below(64);
    char *name;

    if (kind == 7) {
        return NULL;
    }
    name = fuzz_alloc(length + 1);
    for (uint32_t i = 0; i < length; i++) {
        name[i] = (char)('a' + i % 26);
    }
    for (uint32_t i = 0; i < length && i < 4; i++) {
        uint8_t byte = take_u8();

        name[i] = (char)(byte < ' ' ? '%' : byte);
    }
    name[length] = '\0';
    return name;
}

bool name_matches(const char *asked, const char *kind, uint64_t id, const char *got)
{
    char otherwise[64];

    if (asked != NULL) {
        return strcmp(asked, got) == 0;
    }
    snprintf(otherwise, sizeof otherwise, "%s-%llu", kind, (ull)id);
    return strncmp(got, otherwise, strlen(otherwise)) == 0;
}

/* ---- An execution ------------------------------------------------------------ */

static void (*const acts[])(void) = {
    act_context,  act_open_backend, act_open_memory, act_backup,    act_bracket, act_request,
    act_status,   act_query_image,  act_null,        act_open_file, act_bitmap,  act_backup,
    act_transact, act_bracket,      act_verify,      act_throttle,  act_group,   act_backup,
};

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
    (void)argc;
    (void)argv;
    atexit(open_file_clean);
    return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    fuzz_begin(data, size);
    bench_open();
    for (int i = 0; i < ACTS_MAX && !input_empty(); i++) {
        acts[take_below(ARRAY_COUNT(acts))]();
        heap_watch(0);
    }
    bench_expect_sound();
    if (take_chance(15)) {
        bench_shut();
    }
    bench_close();
    releases_expect_all(1);
    fuzz_end();
    return 0;
}
