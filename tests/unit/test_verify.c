/* SPDX-License-Identifier: MIT */
#include "job/verify.h"

#include "base/abi.h"
#include "base/checked.h"
#include "base/hook.h"
#include "unit/rig.h"

#define G VERIFY_GRANULE
#define BYTES (20 * G + 700)
#define OP(opcode) (1u << BLKREPL_OP_##opcode)
#define NO_STATUS (0x7eu & ~OP(STATUS))

struct bench {
    struct rig rig;
    struct script disk[2];
    blkrepl_image *image[2];
    blkrepl_verify_options o;
    blkrepl_job *job;
    unsigned released;
};

static void released(void *user)
{
    ((struct bench *)user)->released++;
}

/* Two disks with the same content; the test may change what their backends say. */
static void bench_init(struct bench *b, uint64_t bytes, uint64_t other_bytes)
{
    memset(b, 0, sizeof *b);
    rig_open(&b->rig, NULL);
    script_init(&b->disk[0], bytes);
    script_init(&b->disk[1], other_bytes);
    for (uint64_t i = 0; i < other_bytes; i++) {
        b->disk[1].disk[i] = (unsigned char)(i / 13 + i % 5 + i / 70000);
    }
    memcpy(b->disk[0].disk, b->disk[1].disk, (size_t)bytes);
    for (int i = 0; i < 2; i++) {
        b->disk[i].info.opcodes = NO_STATUS;
    }
    b->o = (blkrepl_verify_options){.struct_size = sizeof b->o,
                                    .name = "v0",
                                    .user = b,
                                    .release = released,
                                    .chunk_bytes_max = 2 * G,
                                    .workers_max = 2};
}

static void bench_images(struct bench *b)
{
    for (int i = 0; i < 2; i++) {
        b->image[i] = script_open(&b->disk[i], &b->rig);
    }
}

static void bench_open(struct bench *b)
{
    bench_init(b, BYTES, BYTES);
    bench_images(b);
}

static void bench_close(struct bench *b)
{
    for (int i = 0; i < 2; i++) {
        blkrepl_image_close(b->image[i]);
    }
    rig_close(&b->rig);
    script_fini(&b->disk[0]);
    script_fini(&b->disk[1]);
}

static struct verify *verify_of(const struct bench *b)
{
    return CONTAINER_OF(b->job, struct verify, job);
}

static void create(struct bench *b)
{
    assert_int_equal(blkrepl_verify_create(b->image[0], b->image[1], &b->o, &b->job), 0);
}

static void start(struct bench *b)
{
    assert_int_equal(blkrepl_verify_start(b->image[0], b->image[1], &b->o, &b->job), 0);
}

static blkrepl_job_info info_of(const struct bench *b)
{
    blkrepl_job_info info = {.struct_size = sizeof info};

    assert_int_equal(blkrepl_job_query(b->job, &info), 0);
    return info;
}

/* Invariants 2 to 4 of verify.h. */
static void check(const struct bench *b)
{
    const struct verify *verify = verify_of(b);
    uint32_t busy = 0;

    for (uint32_t n = 0; n < verify->task_count; n++) {
        const struct verify_task *task = &verify->tasks[n];
        bool reads = task->state == VERIFY_STATUS || task->state == VERIFY_READ;
        bool holds = !verify->stopped && (reads || task->state == VERIFY_HOLDING);
        bool requests = reads || task->state == VERIFY_VOID;

        for (int i = 0; i < 2; i++) {
            assert_int_equal(range_live(&task->side[i].range), holds);
            assert_true(!holds || task->side[i].range.given);
            busy += task->side[i].busy;
        }
        assert_int_equal(requests, task->side[0].busy || task->side[1].busy);
        assert_true(!verify->stopped || task->state == VERIFY_FREE || requests);
    }
    assert_int_equal(busy, verify->in_flight);
}

/* The job has concluded so, and let go of everything. */
static blkrepl_job_info conclude(struct bench *b, uint32_t result, int error)
{
    blkrepl_job_info info = info_of(b);

    assert_int_equal(info.state, BLKREPL_JOB_CONCLUDED);
    assert_int_equal(info.kind, BLKREPL_KIND_VERIFY);
    assert_int_equal(info.result, result);
    assert_int_equal(info.error, error);
    assert_int_equal(info.requests_in_flight, 0);
    assert_int_equal(rig_events(&b->rig, BLKREPL_EVENT_JOB_DONE), 1);
    for (int i = 0; i < 2; i++) {
        assert_int_equal(b->image[i]->jobs_reading, 0);
        assert_int_equal(b->image[i]->leaf->ranges.tree.count, 0);
    }
    assert_int_equal(b->rig.ctx->memory_used, 0);
    assert_int_equal(b->rig.ctx->job_requests.used, 0);
    blkrepl_job_free(b->job);
    rig_poll(&b->rig);
    assert_int_equal(b->released, 1);
    return info;
}

static blkrepl_job_info run(struct bench *b, uint32_t result, int error)
{
    start(b);
    rig_poll(&b->rig);
    return conclude(b, result, error);
}

static blkrepl_bitmap *bitmap(struct bench *b, uint64_t bytes, uint64_t granularity)
{
    blkrepl_bitmap_options o = {
        .struct_size = sizeof o, .bytes = bytes, .granularity_bytes = granularity};
    blkrepl_bitmap *out;

    assert_int_equal(blkrepl_bitmap_create(b->rig.ctx, &o, &out), 0);
    return out;
}

static blkrepl_bitmap_info bitmap_info(blkrepl_bitmap *map)
{
    blkrepl_bitmap_info info = {.struct_size = sizeof info};

    assert_int_equal(blkrepl_bitmap_query(map, &info), 0);
    return info;
}

static bool dirty(blkrepl_bitmap *map, uint64_t offset)
{
    int rc = blkrepl_bitmap_get(map, offset);

    assert_true(rc >= 0);
    return rc != 0;
}

/* ---- What is found --------------------------------------------------------------- */

static void verify_of_the_same_content_finds_nothing(void **state)
{
    struct bench b;
    blkrepl_job_info info;

    (void)state;
    bench_open(&b);
    create(&b);
    assert_int_equal(info_of(&b).bytes_total, BYTES);
    assert_int_equal(blkrepl_job_start(b.job), 0);
    rig_poll(&b.rig);
    info = conclude(&b, BLKREPL_RESULT_DONE, 0);
    assert_int_equal(info.bytes_done, BYTES);
    assert_int_equal(info.bytes_total, BYTES);
    assert_int_equal(info.differing_bytes + info.zero_bytes + info.failed_bytes, 0);
    assert_int_equal(script_count(&b.disk[0], BLKREPL_OP_READ), 11);
    assert_int_equal(script_count(&b.disk[1], BLKREPL_OP_READ), 11);
    bench_close(&b);
}

static void verify_with_no_options_has_defaults(void **state)
{
    struct bench b;
    blkrepl_job_info info;

    (void)state;
    bench_open(&b);
    b.disk[1].disk[BYTES - 1]++;
    assert_int_equal(blkrepl_verify_start(b.image[0], b.image[1], NULL, &b.job), 0);
    assert_int_equal(verify_of(&b)->chunk_bytes, 4 * G);
    assert_int_equal(verify_of(&b)->task_count, 4);
    rig_poll(&b.rig);
    b.released = 1;
    info = conclude(&b, BLKREPL_RESULT_DONE, 0);
    assert_string_equal(info.name, "verify-3");
    assert_int_equal(info.differing_bytes, 700);
    bench_close(&b);
}

static void verify_of_nothing_is_done(void **state)
{
    struct bench b;

    (void)state;
    bench_init(&b, 0, 0);
    bench_images(&b);
    assert_int_equal(run(&b, BLKREPL_RESULT_DONE, 0).bytes_total, 0);
    bench_close(&b);
}

/* Any granularity, any chunk: what is dirty is what an oracle says, byte by byte. */
static void differences_case(uint64_t granularity, uint64_t chunk, uint32_t workers,
                             struct rng *rng)
{
    struct bench b;
    uint64_t expected = 0;
    blkrepl_bitmap *map;
    blkrepl_job_info info;

    bench_open(&b);
    map = bitmap(&b, BYTES, granularity);
    b.o.differing = map;
    b.o.chunk_bytes_max = chunk;
    b.o.workers_max = workers;
    for (int n = 0; n < 6; n++) {
        uint64_t at = rng_below(rng, BYTES);
        uint64_t end = min_u64(at + 1 + rng_below(rng, n < 3 ? 3 : 2 * G), BYTES);

        memset(b.disk[n % 2].disk + at, 0x77, (size_t)(end - at));
    }
    info = run(&b, BLKREPL_RESULT_DONE, 0);
    for (uint64_t at = 0; at < BYTES; at += granularity) {
        uint64_t bytes = min_u64(granularity, BYTES - at);
        bool differs = memcmp(b.disk[0].disk + at, b.disk[1].disk + at, (size_t)bytes) != 0;

        expected += differs ? bytes : 0;
        assert_int_equal(dirty(map, at), differs);
    }
    assert_int_equal(info.differing_bytes, expected);
    assert_int_equal(bitmap_info(map).dirty_bytes, expected);
    assert_int_equal(info.bytes_done, BYTES);
    blkrepl_bitmap_free(map);
    bench_close(&b);
}

static void verify_marks_the_granules_that_differ(void **state)
{
    static const uint64_t granularities[] = {1, 512, 4096, G, 4 * G, 32 * G, UINT64_C(1) << 62};
    struct rng rng = {.state = 7};

    (void)state;
    for (size_t i = 0; i < ARRAY_COUNT(granularities); i++) {
        differences_case(granularities[i], G, 1, &rng);
        differences_case(granularities[i], 3 * G + 5, 3, &rng);
        differences_case(granularities[i], 64 * MIB, 2, &rng);
    }
}

static void verify_without_a_bitmap_counts_in_64_kib(void **state)
{
    struct bench b;

    (void)state;
    bench_open(&b);
    b.disk[0].disk[0]++;
    b.disk[1].disk[1]++;
    b.disk[0].disk[5 * G - 1]++;
    b.disk[0].disk[BYTES - 700]++;
    assert_int_equal(run(&b, BLKREPL_RESULT_DONE, 0).differing_bytes, 2 * G + 700);
    bench_close(&b);
}

static void verify_first_ends_at_the_first_difference(void **state)
{
    struct bench b;
    blkrepl_job_info info;

    (void)state;
    bench_open(&b);
    b.o.flags = BLKREPL_VERIFY_FIRST;
    b.disk[0].disk[6 * G]++;
    b.disk[0].disk[18 * G]++;
    info = run(&b, BLKREPL_RESULT_DONE, 0);
    assert_int_equal(info.differing_bytes, G);
    assert_true(info.bytes_done >= 8 * G && info.bytes_done < 18 * G);
    bench_close(&b);
}

static void verify_first_of_the_same_content_compares_all(void **state)
{
    struct bench b;

    (void)state;
    bench_open(&b);
    b.o.flags = BLKREPL_VERIFY_FIRST;
    assert_int_equal(run(&b, BLKREPL_RESULT_DONE, 0).bytes_done, BYTES);
    bench_close(&b);
}

static void verify_compares_as_far_as_the_first_image_goes(void **state)
{
    struct bench b;

    (void)state;
    bench_init(&b, 3 * G + 700, 9 * G);
    b.disk[1].disk[3 * G + 700]++; /* behind the end of the first */
    b.disk[0].info.request_alignment = 1;
    b.disk[1].info.request_alignment = 4096; /* the last block goes beyond it */
    b.disk[1].info.transfer_bytes_max = 8192;
    bench_images(&b);
    assert_int_equal(run(&b, BLKREPL_RESULT_DONE, 0).differing_bytes, 0);
    assert_int_equal(script_count(&b.disk[0], BLKREPL_OP_READ), 2);
    assert_int_equal(script_count(&b.disk[1], BLKREPL_OP_READ), 3 * 8 + 1);
    bench_close(&b);
}

/* ---- Only what is dirty --------------------------------------------------------- */

static void verify_only_compares_the_dirty_chunks_of_64_kib(void **state)
{
    struct bench b;
    blkrepl_job_info info;

    (void)state;
    bench_open(&b);
    b.o.only = bitmap(&b, BYTES, 512);
    assert_int_equal(blkrepl_bitmap_set(b.o.only, 3 * G + 1024, 512), 0);
    assert_int_equal(blkrepl_bitmap_set(b.o.only, BYTES - 1, 1), 0);
    b.disk[0].disk[2 * G]++;
    b.disk[0].disk[3 * G + 5]++;
    create(&b);
    assert_int_equal(blkrepl_bitmap_set(b.o.only, 8 * G - 1, 2), 0); /* before the start */
    assert_int_equal(blkrepl_job_start(b.job), 0);
    assert_int_equal(blkrepl_bitmap_clear(b.o.only), 0); /* it is not busy */
    rig_poll(&b.rig);
    info = conclude(&b, BLKREPL_RESULT_DONE, 0);
    assert_int_equal(info.bytes_total, 3 * G + 700);
    assert_int_equal(info.bytes_done, 3 * G + 700);
    assert_int_equal(info.differing_bytes, G);
    assert_int_equal(script_count(&b.disk[0], BLKREPL_OP_READ), 3);
    blkrepl_bitmap_free(b.o.only);
    bench_close(&b);
}

static void verify_only_of_a_clean_bitmap_is_done(void **state)
{
    struct bench b;

    (void)state;
    bench_open(&b);
    b.o.only = bitmap(&b, BYTES, G);
    b.disk[0].disk[0]++;
    assert_int_equal(run(&b, BLKREPL_RESULT_DONE, 0).bytes_total, 0);
    assert_int_equal(script_count(&b.disk[0], 0), 0);
    blkrepl_bitmap_free(b.o.only);
    bench_close(&b);
}

static void verify_only_may_be_busy_and_must_be_consistent(void **state)
{
    struct bench b;

    (void)state;
    bench_open(&b);
    b.o.only = bitmap(&b, BYTES, G);
    assert_int_equal(blkrepl_bitmap_set(b.o.only, 0, 1), 0);
    create(&b);
    assert_int_equal(blkrepl_bitmap_load_begin(b.o.only), 0);
    assert_int_equal(blkrepl_job_start(b.job), BLKREPL_ERR_STATE);
    assert_int_equal(info_of(&b).state, BLKREPL_JOB_CREATED);
    assert_int_equal(blkrepl_bitmap_load_ones(b.o.only, 0, BYTES), 0);
    assert_int_equal(blkrepl_bitmap_load_finish(b.o.only), 0);
    assert_int_equal(blkrepl_bitmap_resize(b.o.only, BYTES + 1), 0);
    assert_int_equal(blkrepl_job_start(b.job), BLKREPL_ERR_STATE);
    assert_int_equal(blkrepl_bitmap_resize(b.o.only, BYTES), 0);
    assert_int_equal(blkrepl_bitmap_freeze(b.o.only), 0);
    assert_int_equal(blkrepl_job_start(b.job), 0);
    rig_poll(&b.rig);
    assert_int_equal(conclude(&b, BLKREPL_RESULT_DONE, 0).bytes_total, BYTES);
    blkrepl_bitmap_free(b.o.only);
    bench_close(&b);
}

/* One that belongs to no image is changed without the context's lock. */
static void verify_only_that_changes_at_the_last_moment_means_everything(void **state)
{
    (void)state;
    for (int how = 0; how < 2; how++) {
        struct bench b;

        bench_open(&b);
        b.o.only = bitmap(&b, BYTES, G);
        create(&b);
        assert_int_equal(blkrepl__verify_ops.prepare(b.job), 0);
        if (how == 0) {
            assert_int_equal(blkrepl_bitmap_resize(b.o.only, BYTES + 1), 0);
        } else {
            assert_int_equal(blkrepl_bitmap_load_begin(b.o.only), 0);
        }
        assert_int_equal(blkrepl_job_start(b.job), 0);
        rig_poll(&b.rig);
        assert_int_equal(conclude(&b, BLKREPL_RESULT_DONE, 0).bytes_total, BYTES);
        blkrepl_bitmap_free(b.o.only);
        bench_close(&b);
    }
}

/* ---- The bitmap that gets what is found ------------------------------------------- */

static void verify_has_its_bitmap_busy_from_start_to_end(void **state)
{
    struct bench b;
    blkrepl_bitmap *map;

    (void)state;
    bench_open(&b);
    map = b.o.differing = bitmap(&b, BYTES, G);
    assert_int_equal(blkrepl_bitmap_set(map, 9 * G, 1), 0);
    b.disk[0].hold = OP(READ);
    b.disk[0].disk[0]++;
    create(&b);
    assert_int_equal(blkrepl_bitmap_set(map, 10 * G, 1), 0);
    assert_int_equal(blkrepl_job_start(b.job), 0);
    assert_int_equal(blkrepl_bitmap_clear(map), -EBUSY);
    assert_true((bitmap_info(map).flags & BLKREPL_BITMAP_BUSY) != 0);
    assert_int_equal(bitmap_info(map).dirty_bytes, 0); /* all clean */
    rig_poll(&b.rig);
    b.disk[0].hold = 0;
    script_end_all(&b.disk[0]);
    rig_poll(&b.rig);
    conclude(&b, BLKREPL_RESULT_DONE, 0);
    assert_int_equal(bitmap_info(map).flags & BLKREPL_BITMAP_BUSY, 0);
    assert_int_equal(bitmap_info(map).dirty_bytes, G);
    blkrepl_bitmap_free(map);
    bench_close(&b);
}

static void verify_bitmap_keeps_what_was_found_when_it_is_cancelled(void **state)
{
    struct bench b;
    blkrepl_bitmap *map;

    (void)state;
    bench_open(&b);
    map = b.o.differing = bitmap(&b, BYTES, G);
    b.disk[0].disk[0]++;
    b.disk[0].disk[19 * G]++;
    b.o.workers_max = 1;
    b.disk[0].hold = OP(READ);
    start(&b);
    rig_poll(&b.rig);
    script_end(&b.disk[0], 0, 0);
    rig_poll(&b.rig);
    assert_int_equal(info_of(&b).differing_bytes, G);
    assert_true(dirty(map, 0)); /* seen while it runs */
    assert_int_equal(blkrepl_job_cancel(b.job, 0), 0);
    rig_poll(&b.rig);
    script_end(&b.disk[0], 0, -ECANCELED);
    rig_poll(&b.rig);
    conclude(&b, BLKREPL_RESULT_CANCELLED, -ECANCELED);
    assert_int_equal(bitmap_info(map).dirty_bytes, G);
    blkrepl_bitmap_free(map);
    bench_close(&b);
}

static void verify_bitmap_that_is_busy_or_inconsistent_is_refused_at_the_start(void **state)
{
    struct bench b;
    blkrepl_bitmap *map;
    blkrepl_job *none;

    (void)state;
    bench_open(&b);
    map = b.o.differing = bitmap(&b, BYTES, G);
    create(&b);
    assert_int_equal(blkrepl_bitmap_freeze(map), 0);
    assert_int_equal(blkrepl_job_start(b.job), -EBUSY);
    b.o.name = NULL;
    b.o.release = NULL;
    assert_int_equal(blkrepl_verify_start(b.image[0], b.image[1], &b.o, &none), -EBUSY);
    assert_null(none);
    assert_int_equal(blkrepl_bitmap_reclaim(map), 0);
    assert_int_equal(blkrepl_bitmap_load_begin(map), 0);
    assert_int_equal(blkrepl_job_start(b.job), BLKREPL_ERR_STATE);
    assert_int_equal(blkrepl_bitmap_load_ones(map, 0, BYTES), 0);
    assert_int_equal(blkrepl_bitmap_load_finish(map), 0);
    assert_int_equal(blkrepl_bitmap_resize(map, BYTES - 1), 0);
    assert_int_equal(blkrepl_job_start(b.job), BLKREPL_ERR_STATE);
    assert_int_equal(bitmap_info(map).flags, 0);
    assert_int_equal(blkrepl_bitmap_resize(map, BYTES), 0);
    assert_int_equal(blkrepl_job_start(b.job), 0);
    rig_poll(&b.rig);
    conclude(&b, BLKREPL_RESULT_DONE, 0);
    blkrepl_bitmap_free(map);
    bench_close(&b);
}

static unsigned char memory[64 * 1024];

static void write_to(struct bench *b, int image, uint64_t offset, uint64_t bytes, struct done *done)
{
    static blkrepl_iovec iovs[64];
    static unsigned next;
    blkrepl_iovec *iov = &iovs[next++ % 64];
    blkrepl_completion completion = done_of(done);

    *iov = (blkrepl_iovec){.base = memory, .len = (size_t)bytes};
    assert_int_equal(blkrepl_image_write(b->image[image], 0, offset, iov, 1, 0, &completion), 0);
}

static void verify_bitmap_that_records_gets_the_writes_too(void **state)
{
    struct bench b;
    struct done done;
    blkrepl_bitmap_options o = {.struct_size = sizeof o, .name = "d", .granularity_bytes = 4096};
    blkrepl_bitmap *map;

    (void)state;
    bench_open(&b);
    assert_int_equal(blkrepl_bitmap_add(b.image[0], &o, &map), 0);
    b.o.differing = map;
    b.o.workers_max = 1;
    b.disk[0].disk[0]++;
    b.disk[0].hold = OP(READ);
    start(&b);
    rig_poll(&b.rig);
    write_to(&b, 0, 8 * G, 4096, &done);
    write_to(&b, 1, 8 * G, 4096, &done);
    rig_poll(&b.rig);
    b.disk[0].hold = 0;
    script_end_all(&b.disk[0]);
    rig_poll(&b.rig);
    assert_int_equal(conclude(&b, BLKREPL_RESULT_DONE, 0).differing_bytes, 4096);
    assert_true(dirty(map, 0) && dirty(map, 8 * G));
    assert_int_equal(bitmap_info(map).dirty_bytes, 8192);
    blkrepl_bitmap_free(map);
    bench_close(&b);
}

/* ---- Guests -------------------------------------------------------------------- */

static void verify_waits_for_writes_in_flight_over_either_image(void **state)
{
    (void)state;
    for (int i = 0; i < 2; i++) {
        struct bench b;
        struct done done[3];

        bench_open(&b);
        b.o.workers_max = 1;
        b.disk[i].hold = OP(WRITE);
        write_to(&b, i, 100, 512, &done[0]); /* before the start */
        start(&b);
        rig_poll(&b.rig);
        check(&b);
        assert_int_equal(verify_of(&b)->tasks[0].state, VERIFY_CLAIMED);
        write_to(&b, i, 2 * G - 512, 512, &done[1]); /* nobody holds it back yet */
        assert_int_equal(b.disk[i].waiting_count, 2);
        script_end(&b.disk[i], 0, 0);
        rig_poll(&b.rig);
        assert_int_equal(verify_of(&b)->tasks[0].state, VERIFY_HOLDING);
        check(&b);
        write_to(&b, 1 - i, 0, 4096, &done[2]); /* goes first, for nothing is read yet */
        rig_poll(&b.rig);
        done_assert(&done[2], 0);
        assert_int_equal(verify_of(&b)->tasks[0].state, VERIFY_CLAIMED);
        check(&b);
        assert_int_equal(script_count(&b.disk[0], BLKREPL_OP_READ), 0);
        script_end(&b.disk[i], 0, 0);
        b.disk[i].hold = 0;
        rig_poll(&b.rig);
        done_assert(&done[0], 0);
        done_assert(&done[1], 0);
        conclude(&b, BLKREPL_RESULT_DONE, 0);
        bench_close(&b);
    }
}

static void verify_holds_writes_until_both_have_been_read(void **state)
{
    struct bench b;
    struct done done[2];

    (void)state;
    bench_open(&b);
    b.o.workers_max = 1;
    b.disk[1].hold = OP(READ);
    start(&b);
    rig_poll(&b.rig);
    check(&b);
    memset(memory, 0x99, sizeof memory);
    write_to(&b, 0, 0, 512, &done[0]);
    write_to(&b, 1, 0, 512, &done[1]);
    rig_poll(&b.rig);
    ASSERT_PENDING(&done[0]);
    ASSERT_PENDING(&done[1]);
    assert_int_equal(script_count(&b.disk[0], BLKREPL_OP_WRITE), 0);
    b.disk[1].hold = 0;
    script_end_all(&b.disk[1]);
    rig_poll(&b.rig);
    done_assert(&done[0], 0);
    done_assert(&done[1], 0);
    assert_int_equal(conclude(&b, BLKREPL_RESULT_DONE, 0).differing_bytes, 0);
    bench_close(&b);
}

static blkrepl_bracket bracket(uint64_t offset, uint64_t bytes)
{
    return (blkrepl_bracket){.struct_size = sizeof(blkrepl_bracket),
                             .opcode = BLKREPL_OP_WRITE,
                             .offset = offset,
                             .bytes = bytes};
}

/* A bracket that has its GO is waited for; one whose host has not been told gives it
 * back. */
static void verify_and_brackets(void **state)
{
    struct bench b;
    struct done go[3];
    struct done write;
    blkrepl_completion c[3];
    blkrepl_bracket what = bracket(0, 4096);
    uint64_t token[3];

    (void)state;
    bench_open(&b);
    for (int i = 0; i < 3; i++) {
        c[i] = done_of(&go[i]);
    }
    b.o.workers_max = 1;
    assert_int_equal(blkrepl_write_begin(b.image[1], &what, &c[0], &token[0]), 0);
    assert_int_equal(blkrepl_write_begin(b.image[1], &what, &c[1], &token[1]), BLKREPL_WAIT);
    b.disk[0].hold = OP(WRITE) | OP(READ);
    write_to(&b, 0, 0, 512, &write);
    start(&b);
    rig_poll(&b.rig);
    assert_int_equal(verify_of(&b)->tasks[0].state, VERIFY_CLAIMED);
    script_end(&b.disk[0], 0, 0);
    rig_poll(&b.rig);
    assert_int_equal(verify_of(&b)->tasks[0].state, VERIFY_CLAIMED);
    /* Its end gives the next one its GO, which is not told yet: that makes way. */
    assert_int_equal(blkrepl_write_end(b.rig.ctx, token[0], 0, NULL, 0, NULL), 0);
    assert_true(verify_of(&b)->tasks[0].state == VERIFY_HOLDING ||
                verify_of(&b)->tasks[0].state == VERIFY_READ);
    rig_poll(&b.rig);
    assert_int_equal(verify_of(&b)->tasks[0].state, VERIFY_READ);
    ASSERT_PENDING(&go[1]);
    check(&b);
    b.disk[0].hold = 0;
    script_end_all(&b.disk[0]);
    rig_poll(&b.rig);
    done_assert(&go[1], 0);
    assert_int_equal(blkrepl_write_end(b.rig.ctx, token[1], 0, NULL, 0, NULL), 0);
    rig_poll(&b.rig);
    conclude(&b, BLKREPL_RESULT_DONE, 0);
    bench_close(&b);
}

/* Zeroes in pieces that were under way at the start end altogether before anybody holds
 * their range; later ones are waited for only while they are given. */
static void verify_waits_for_old_writes_to_end_altogether(void **state)
{
    (void)state;
    for (int old = 0; old < 2; old++) {
        struct bench b;
        struct done done;
        blkrepl_completion c = done_of(&done);
        const struct verify_task *task;

        bench_init(&b, BYTES, BYTES);
        b.disk[0].info.zeroes_bytes_max = G;
        b.disk[0].hold = OP(ZEROES);
        b.disk[1].hold = OP(READ);
        bench_images(&b);
        b.o.workers_max = 1;
        if (old == 0) { /* while the job is at 0, from 1 G on in later pieces */
            start(&b);
            rig_poll(&b.rig);
            assert_int_equal(script_count(&b.disk[1], BLKREPL_OP_READ), 1);
        }
        assert_int_equal(blkrepl_image_write_zeroes(b.image[0], 0, G, 5 * G, 0, &c), 0);
        if (old == 1) {
            start(&b);
        }
        rig_poll(&b.rig);
        task = &verify_of(&b)->tasks[0];
        if (old == 0) {
            assert_int_equal(b.disk[0].waiting_count, 0); /* the first piece is held */
            script_end(&b.disk[1], 0, 0);
            rig_poll(&b.rig); /* the job is at 2 G, the write's first piece is given */
            assert_int_equal(task->start, 2 * G);
            assert_int_equal(task->state, VERIFY_HOLDING);
            script_end(&b.disk[0], 0, 0);
            rig_poll(&b.rig); /* the next piece waits, and nobody waits for that */
            assert_int_equal(b.disk[0].waiting_count, 0);
            assert_int_equal(task->state, VERIFY_READ);
            b.disk[0].hold = 0;
        } else {
            for (int piece = 0; piece < 5; piece++) {
                assert_int_equal(task->state, VERIFY_CLAIMED);
                assert_int_equal(b.disk[0].waiting_count, 1);
                script_end(&b.disk[0], 0, 0);
                rig_poll(&b.rig);
            }
            done_assert(&done, 0);
            assert_int_equal(task->state, VERIFY_READ);
        }
        check(&b);
        b.disk[1].hold = 0;
        script_end_all(&b.disk[1]);
        rig_poll(&b.rig);
        done_assert(&done, 0);
        conclude(&b, BLKREPL_RESULT_DONE, 0);
        bench_close(&b);
    }
}

/* A snapshot waits for zeroes that were under way at its point in time, these wait
 * between two pieces for who holds their range, and who holds it reads the snapshot. */
static void verify_of_an_image_and_its_snapshot_does_not_wait_in_a_circle(void **state)
{
    struct bench b;
    struct script fleece;
    struct done done;
    blkrepl_completion c = done_of(&done);
    blkrepl_backup_options o = {.struct_size = sizeof o, .sync = BLKREPL_SYNC_NONE};
    blkrepl_image *target;
    blkrepl_image *snapshot;
    blkrepl_job *backup;

    (void)state;
    bench_init(&b, BYTES, BYTES);
    b.disk[0].info.zeroes_bytes_max = G;
    b.disk[0].hold = OP(ZEROES);
    bench_images(&b);
    script_init(&fleece, BYTES);
    target = script_open(&fleece, &b.rig);
    assert_int_equal(blkrepl_image_write_zeroes(b.image[0], 0, 0, 6 * G, 0, &c), 0);
    assert_int_equal(blkrepl_backup_start(b.image[0], target, &o, &backup), 0);
    assert_int_equal(blkrepl_snapshot_open(backup, NULL, &snapshot), 0);
    b.o.workers_max = 3;
    assert_int_equal(blkrepl_verify_start(b.image[0], snapshot, &b.o, &b.job), 0);
    for (int i = 0; i < 100; i++) {
        rig_poll(&b.rig);
        script_end_all(&b.disk[0]);
    }
    rig_poll(&b.rig);
    done_assert(&done, 0);
    assert_int_equal(info_of(&b).state, BLKREPL_JOB_CONCLUDED);
    assert_int_equal(info_of(&b).result, BLKREPL_RESULT_DONE);
    blkrepl_job_free(b.job);
    assert_int_equal(blkrepl_job_cancel(backup, 0), 0);
    rig_poll(&b.rig);
    blkrepl_job_free(backup);
    blkrepl_image_close(snapshot);
    blkrepl_image_close(target);
    rig_poll(&b.rig);
    b.disk[0].hold = 0;
    bench_close(&b);
    script_fini(&fleece);
}

/* ---- Zeroes --------------------------------------------------------------------- */

static void say(struct script *disk, int n, uint64_t bytes, bool zero)
{
    uint64_t at = 0;

    for (int i = 0; i < n; i++) {
        at += disk->map[i].bytes;
    }
    disk->map[n] =
        (blkrepl_extent){.bytes = bytes, .flags = zero ? BLKREPL_EXTENT_ZERO : BLKREPL_EXTENT_DATA};
    if (zero) {
        memset(disk->disk + at, 0, (size_t)bytes);
    }
}

static void bench_with_status(struct bench *b)
{
    bench_init(b, BYTES, BYTES);
    b->disk[0].info.opcodes = b->disk[1].info.opcodes = 0x7e;
    bench_images(b);
}

static uint64_t bytes_read(const struct script *disk)
{
    uint64_t sum = 0;

    for (unsigned i = 0; i < disk->note_count; i++) {
        sum += disk->notes[i].opcode == BLKREPL_OP_READ ? disk->notes[i].bytes : 0;
    }
    return sum;
}

static void verify_does_not_read_what_is_zero_in_both(void **state)
{
    struct bench b;
    blkrepl_job_info info;

    (void)state;
    bench_with_status(&b);
    say(&b.disk[0], 0, 6 * G + 5000, true);
    say(&b.disk[0], 1, 4 * G, false);
    say(&b.disk[0], 2, BYTES - 10 * G - 5000, true);
    say(&b.disk[1], 0, 4 * G, true);
    say(&b.disk[1], 1, 7 * G, false);
    say(&b.disk[1], 2, BYTES - 11 * G, true);
    info = run(&b, BLKREPL_RESULT_DONE, 0);
    assert_int_equal(info.bytes_done, BYTES);
    assert_int_equal(info.zero_bytes, 4 * G + BYTES - 11 * G);
    assert_int_equal(bytes_read(&b.disk[0]), 7 * G);
    assert_int_equal(info.differing_bytes, 4 * G); /* where one of them has data */
    bench_close(&b);
}

static void verify_of_two_empty_disks_reads_nothing(void **state)
{
    struct bench b;

    (void)state;
    bench_with_status(&b);
    say(&b.disk[0], 0, BYTES, true);
    say(&b.disk[1], 0, BYTES, true);
    b.disk[0].hold = OP(STATUS);
    start(&b);
    rig_poll(&b.rig);
    check(&b);
    assert_true(verify_of(&b)->probing);
    script_end_all(&b.disk[0]);
    rig_poll(&b.rig);
    assert_int_equal(conclude(&b, BLKREPL_RESULT_DONE, 0).zero_bytes, BYTES);
    assert_int_equal(script_count(&b.disk[0], BLKREPL_OP_READ), 0);
    assert_int_equal(script_count(&b.disk[0], BLKREPL_OP_STATUS), 1);
    bench_close(&b);
}

static void verify_asks_once_where_all_is_data(void **state)
{
    struct bench b;

    (void)state;
    bench_with_status(&b);
    assert_int_equal(run(&b, BLKREPL_RESULT_DONE, 0).zero_bytes, 0);
    assert_int_equal(script_count(&b.disk[1], BLKREPL_OP_STATUS), 1);
    bench_close(&b);
}

/* Whatever they answer: only what both say is believed, and all ends. */
static void verify_survives_any_answer(void **state)
{
    struct rng rng = {.state = 3};

    (void)state;
    for (int n = 0; n < 300; n++) {
        struct bench b;
        uint64_t expected = 0;

        bench_with_status(&b);
        for (int i = 0; i < 2; i++) {
            struct script *disk = &b.disk[i];
            uint64_t at = 0;

            for (int e = 0; e < 30 && at < BYTES; e++) {
                uint64_t bytes = min_u64(1 + rng_below(&rng, 3 * G), BYTES - at);

                say(disk, e, bytes, rng_below(&rng, 2) == 0);
                at += bytes;
            }
            disk->extents_most = (uint32_t)rng_below(&rng, 5);
            disk->result[BLKREPL_OP_STATUS] = rng_below(&rng, 20) == 0 ? -EIO : 0;
        }
        for (uint64_t at = 0; at < BYTES; at += G) {
            uint64_t bytes = min_u64(G, BYTES - at);

            expected +=
                memcmp(b.disk[0].disk + at, b.disk[1].disk + at, (size_t)bytes) != 0 ? bytes : 0;
        }
        b.o.workers_max = 1 + (uint32_t)rng_below(&rng, 4);
        assert_int_equal(run(&b, BLKREPL_RESULT_DONE, 0).differing_bytes, expected);
        bench_close(&b);
    }
}

static void verify_does_not_believe_nonsense(void **state)
{
    struct bench b;

    (void)state;
    bench_with_status(&b);
    b.disk[0].map_raw = b.disk[1].map_raw = true;
    b.disk[0].disk[5]++;
    for (int i = 0; i < 2; i++) { /* longer than what was asked for */
        b.disk[i].map[0] = (blkrepl_extent){.bytes = BYTES + 1, .flags = BLKREPL_EXTENT_ZERO};
    }
    assert_int_equal(run(&b, BLKREPL_RESULT_DONE, 0).differing_bytes, G);
    bench_close(&b);
}

/* ---- Errors --------------------------------------------------------------------- */

static void verify_that_cannot_read_fails(void **state)
{
    struct bench b;
    blkrepl_job_info info;

    (void)state;
    bench_open(&b);
    b.o.differing = bitmap(&b, BYTES, 4096);
    b.o.workers_max = 1;
    b.disk[1].result[BLKREPL_OP_READ] = -EIO;
    info = run(&b, BLKREPL_RESULT_FAILED, -EIO);
    assert_int_equal(info.error_side, BLKREPL_SIDE_TARGET);
    assert_int_equal(info.error_offset, 0);
    assert_int_equal(info.error_bytes, 2 * G);
    assert_int_equal(info.target_errors, 1);
    assert_int_equal(info.source_errors, 0);
    assert_int_equal(info.bytes_done, 0);
    assert_int_equal(info.differing_bytes, 2 * G); /* it counts as differing */
    assert_int_equal(bitmap_info(b.o.differing).dirty_bytes, 2 * G);
    blkrepl_bitmap_free(b.o.differing);
    bench_close(&b);
}

static void verify_whose_both_reads_fail_tells_both_and_ends_for_the_first(void **state)
{
    struct bench b;
    blkrepl_job_info info;

    (void)state;
    bench_open(&b);
    b.o.workers_max = 1;
    b.disk[0].result[BLKREPL_OP_READ] = -EIO;
    b.disk[1].result[BLKREPL_OP_READ] = -EDOM;
    info = run(&b, BLKREPL_RESULT_FAILED, -EIO);
    assert_int_equal(info.error_side, BLKREPL_SIDE_SOURCE);
    assert_int_equal(info.source_errors, 1);
    assert_int_equal(info.target_errors, 1);
    bench_close(&b);
}

static void verify_that_ignores_errors_goes_on_and_fails_at_the_end(void **state)
{
    struct bench b;
    blkrepl_job_info info;

    (void)state;
    bench_open(&b);
    b.o.on_error = BLKREPL_ON_ERROR_IGNORE;
    b.o.flags = BLKREPL_VERIFY_FIRST; /* what was not read is not a difference found */
    b.disk[0].hold = OP(READ);
    start(&b);
    rig_poll(&b.rig);
    script_end(&b.disk[0], script_find(&b.disk[0], BLKREPL_OP_READ, 0), -EIO);
    b.disk[0].hold = 0;
    script_end_all(&b.disk[0]);
    rig_poll(&b.rig);
    info = conclude(&b, BLKREPL_RESULT_FAILED, -EIO);
    assert_int_equal(info.failed_bytes, 2 * G);
    assert_int_equal(info.bytes_done, BYTES - 2 * G);
    assert_int_equal(info.differing_bytes, 2 * G);
    assert_int_equal(rig_events(&b.rig, BLKREPL_EVENT_JOB_ERROR), 1);
    bench_close(&b);
}

static void verify_that_stops_for_errors_tries_again(void **state)
{
    struct bench b;
    blkrepl_job_info info;

    (void)state;
    bench_open(&b);
    b.o.on_error = BLKREPL_ON_ERROR_STOP;
    b.o.workers_max = 1;
    b.disk[0].disk[0]++;
    b.disk[1].result[BLKREPL_OP_READ] = -EIO;
    start(&b);
    rig_poll(&b.rig);
    info = info_of(&b);
    assert_int_equal(info.flags, BLKREPL_JOB_FLAG_ERROR_PAUSED);
    assert_int_equal(info.differing_bytes, 0);
    assert_int_equal(info.error_count, 1);
    check(&b);
    b.disk[1].result[BLKREPL_OP_READ] = 0;
    assert_int_equal(blkrepl_job_resume(b.job), 0);
    rig_poll(&b.rig);
    info = conclude(&b, BLKREPL_RESULT_DONE, 0);
    assert_int_equal(info.bytes_done, BYTES);
    assert_int_equal(info.differing_bytes, G);
    bench_close(&b);
}

static void verify_that_stops_for_lack_of_space_alone(void **state)
{
    struct bench b;

    (void)state;
    bench_open(&b);
    b.o.on_error = BLKREPL_ON_ERROR_ENOSPC;
    b.o.workers_max = 1;
    b.disk[0].result[BLKREPL_OP_READ] = -ENOSPC;
    start(&b);
    rig_poll(&b.rig);
    assert_int_equal(info_of(&b).flags, BLKREPL_JOB_FLAG_ERROR_PAUSED);
    b.disk[1].result[BLKREPL_OP_READ] = -EIO; /* the worse of the two decides */
    assert_int_equal(blkrepl_job_resume(b.job), 0);
    rig_poll(&b.rig);
    assert_int_equal(conclude(&b, BLKREPL_RESULT_FAILED, -EIO).error_count, 3);
    bench_close(&b);
}

/* A part fails: the other side's next part is not asked for any more. */
static void verify_gives_up_the_other_side_of_what_failed(void **state)
{
    struct bench b;

    (void)state;
    bench_init(&b, BYTES, BYTES);
    b.disk[0].info.transfer_bytes_max = b.disk[1].info.transfer_bytes_max = 4096;
    b.disk[1].hold = OP(READ);
    bench_images(&b);
    b.o.workers_max = 1;
    b.disk[0].result[BLKREPL_OP_READ] = -EIO;
    start(&b);
    rig_poll(&b.rig);
    script_end_all(&b.disk[1]);
    rig_poll(&b.rig);
    assert_int_equal(conclude(&b, BLKREPL_RESULT_FAILED, -EIO).error_bytes, 4096);
    assert_int_equal(script_count(&b.disk[1], BLKREPL_OP_READ), 1);
    bench_close(&b);
}

/* ---- Pause, cancel, limits --------------------------------------------------------- */

static void verify_that_is_paused_finishes_what_is_under_way(void **state)
{
    struct bench b;

    (void)state;
    bench_open(&b);
    b.disk[0].hold = OP(READ);
    start(&b);
    rig_poll(&b.rig);
    assert_int_equal(info_of(&b).requests_in_flight, 2);
    assert_int_equal(blkrepl_job_pause(b.job), 0);
    b.disk[0].hold = 0;
    script_end_all(&b.disk[0]);
    rig_poll(&b.rig);
    assert_int_equal(info_of(&b).bytes_done, 4 * G);
    assert_int_equal(info_of(&b).requests_in_flight, 0);
    assert_int_equal(blkrepl_job_resume(b.job), 0);
    rig_poll(&b.rig);
    conclude(&b, BLKREPL_RESULT_DONE, 0);
    bench_close(&b);
}

static void verify_that_is_paused_at_its_end_is_not_done(void **state)
{
    struct bench b;

    (void)state;
    bench_init(&b, G, G);
    bench_images(&b);
    b.disk[0].hold = OP(READ);
    start(&b);
    rig_poll(&b.rig);
    assert_int_equal(blkrepl_job_pause(b.job), 0);
    script_end_all(&b.disk[0]);
    rig_poll(&b.rig);
    assert_int_equal(info_of(&b).state, BLKREPL_JOB_RUNNING);
    assert_int_equal(info_of(&b).bytes_done, G - 1); /* not before it is done */
    assert_int_equal(blkrepl_job_resume(b.job), 0);
    rig_poll(&b.rig);
    conclude(&b, BLKREPL_RESULT_DONE, 0);
    bench_close(&b);
}

/* Cancel while the first task is in each of its states. */
static void verify_is_cancelled_in_every_state_of_a_task(void **state)
{
    static const struct {
        enum verify_task_state state;
        uint32_t hold_0;
        uint32_t hold_1;
        bool status;
    } cases[] = {{VERIFY_CLAIMED, OP(WRITE), 0, false},
                 {VERIFY_HOLDING, OP(WRITE), 0, false},
                 {VERIFY_STATUS, OP(STATUS), 0, true},
                 {VERIFY_STATUS, OP(STATUS), OP(STATUS), true},
                 {VERIFY_READ, 0, OP(READ), false},
                 {VERIFY_READ, OP(READ), OP(READ), false},
                 {VERIFY_FREE, 0, 0, false}};

    (void)state;
    for (size_t i = 0; i < ARRAY_COUNT(cases); i++) {
        struct bench b;
        struct done done[2];
        bool write = cases[i].hold_0 == OP(WRITE);
        unsigned in_flight;

        bench_init(&b, BYTES, BYTES);
        if (cases[i].status) {
            b.disk[0].info.opcodes = b.disk[1].info.opcodes = 0x7e;
        }
        bench_images(&b);
        b.o.workers_max = 1;
        b.disk[0].hold = cases[i].hold_0;
        b.disk[1].hold = cases[i].hold_1;
        if (cases[i].state == VERIFY_CLAIMED) {
            write_to(&b, 0, 0, 512, &done[0]);
        }
        start(&b);
        if (cases[i].state == VERIFY_HOLDING) {
            write_to(&b, 0, 0, 512, &done[0]);
        }
        if (cases[i].state != VERIFY_FREE) {
            rig_poll(&b.rig);
        }
        check(&b);
        assert_int_equal(verify_of(&b)->tasks[0].state, cases[i].state);
        in_flight = verify_of(&b)->in_flight;
        if (!write) {
            write_to(&b, 0, 0, 512, &done[1]);
        }
        assert_int_equal(blkrepl_job_cancel(b.job, 0), 0);
        check(&b);
        rig_poll(&b.rig);
        if (!write) {
            done_assert(&done[1], 0); /* the guest goes on at once */
        }
        assert_int_equal(b.disk[0].cancels + b.disk[1].cancels, in_flight);
        assert_int_equal(info_of(&b).state,
                         in_flight > 0 ? BLKREPL_JOB_RUNNING : BLKREPL_JOB_CONCLUDED);
        for (int n = 0; n < 2; n++) {
            b.disk[n].hold = 0;
            while (b.disk[n].waiting_count > 0) {
                script_end(&b.disk[n], 0, write ? 0 : n == 0 ? -ECANCELED : -EIO);
            }
            rig_poll(&b.rig);
        }
        /* What fails late is told. */
        assert_int_equal(conclude(&b, BLKREPL_RESULT_CANCELLED, -ECANCELED).error_count,
                         cases[i].state == VERIFY_READ ? 1 : 0);
        bench_close(&b);
    }
}

/* One side has failed, and the other one has not answered yet. */
static void verify_that_is_cancelled_tells_what_had_failed(void **state)
{
    struct bench b;
    blkrepl_job_info info;

    (void)state;
    bench_init(&b, BYTES, BYTES);
    bench_images(&b);
    b.o.workers_max = 1;
    b.disk[0].hold = b.disk[1].hold = OP(READ);
    start(&b);
    rig_poll(&b.rig);
    script_end(&b.disk[0], 0, -EIO);
    rig_poll(&b.rig);
    assert_int_equal(info_of(&b).error_count, 0);
    assert_int_equal(blkrepl_job_cancel(b.job, 0), 0);
    b.disk[0].hold = b.disk[1].hold = 0;
    script_end(&b.disk[1], 0, -ECANCELED);
    rig_poll(&b.rig);
    info = conclude(&b, BLKREPL_RESULT_CANCELLED, -ECANCELED);
    assert_int_equal(info.error_count, 1);
    assert_int_equal(info.source_errors, 1);
    bench_close(&b);
}

/* What is queued, and what was read and not compared yet. */
static void verify_that_is_cancelled_takes_back_what_is_queued(void **state)
{
    struct bench b;

    (void)state;
    bench_init(&b, BYTES, BYTES);
    b.disk[0].info.queue_depth = 1;
    b.disk[0].hold = OP(READ);
    bench_images(&b);
    b.o.workers_max = 3;
    start(&b);
    rig_poll(&b.rig);
    assert_int_equal(info_of(&b).requests_in_flight, 3);
    assert_int_equal(b.disk[0].waiting_count, 1);
    blkrepl__enter(b.rig.ctx);
    script_end(&b.disk[0], 0, 0);
    blkrepl__advance(b.rig.ctx);
    assert_int_equal(verify_of(&b)->tasks[0].state, VERIFY_FILLED);
    blkrepl__leave(b.rig.ctx, 0);
    assert_int_equal(blkrepl_job_cancel(b.job, 0), 0);
    check(&b);
    assert_int_equal(verify_of(&b)->tasks[0].state, VERIFY_FREE);
    rig_poll(&b.rig);
    b.disk[0].hold = 0;
    script_end_all(&b.disk[0]);
    rig_poll(&b.rig);
    conclude(&b, BLKREPL_RESULT_CANCELLED, -ECANCELED);
    bench_close(&b);
}

static void verify_keeps_its_speed(void **state)
{
    struct bench b;

    (void)state;
    bench_open(&b);
    b.o.speed_bytes_per_sec = 2 * G;
    create(&b);
    assert_int_equal(blkrepl_job_start(b.job), 0);
    rig_poll(&b.rig);
    assert_int_equal(info_of(&b).bytes_done, 2 * G);
    rig_advance(&b.rig, SECOND - 1);
    assert_int_equal(info_of(&b).bytes_done, 2 * G);
    rig_advance(&b.rig, 1);
    assert_int_equal(info_of(&b).bytes_done, 4 * G);
    assert_int_equal(blkrepl_job_set_speed(b.job, 4 * G), 0); /* at once */
    rig_poll(&b.rig);
    assert_int_equal(info_of(&b).bytes_done, 6 * G);
    assert_int_equal(blkrepl_job_set_speed(b.job, 0), 0);
    rig_poll(&b.rig);
    conclude(&b, BLKREPL_RESULT_DONE, 0);
    bench_close(&b);
}

static blkrepl_throttle *throttle(struct bench *b, uint64_t bytes_per_sec)
{
    blkrepl_throttle_options o = {.struct_size = sizeof o, .bytes_per_sec = bytes_per_sec};
    blkrepl_throttle *out;

    assert_int_equal(blkrepl_throttle_create(b->rig.ctx, &o, &out), 0);
    return out;
}

static void verify_waits_for_its_turn_at_a_throttle(void **state)
{
    struct bench b;
    blkrepl_throttle_info info = {.struct_size = sizeof info};
    blkrepl_throttle *t;

    (void)state;
    bench_open(&b);
    t = b.o.throttle = throttle(&b, 2 * G);
    start(&b);
    rig_poll(&b.rig);
    assert_int_equal(info_of(&b).bytes_done, 2 * G);
    rig_advance(&b.rig, SECOND);
    assert_int_equal(info_of(&b).bytes_done, 4 * G);
    assert_int_equal(blkrepl_throttle_query(t, &info), 0);
    assert_int_equal(info.ops, 2);
    assert_int_equal(info.waiting, 1);
    assert_int_equal(blkrepl_job_pause(b.job), 0);
    rig_advance(&b.rig, SECOND); /* its turn is kept */
    assert_int_equal(info_of(&b).bytes_done, 4 * G);
    assert_int_equal(blkrepl_job_resume(b.job), 0);
    rig_poll(&b.rig);
    assert_int_equal(info_of(&b).bytes_done, 6 * G);
    assert_int_equal(blkrepl_throttle_set(t, NULL), 0);
    rig_poll(&b.rig);
    conclude(&b, BLKREPL_RESULT_DONE, 0);
    assert_int_equal(blkrepl_throttle_query(t, &info), 0);
    assert_int_equal(info.bytes, BYTES);
    assert_int_equal(info.ops, 11); /* each comparison counts once */
    blkrepl_throttle_free(t);
    bench_close(&b);
}

static void verify_that_is_cancelled_leaves_the_throttle(void **state)
{
    struct bench b;
    blkrepl_throttle *t;

    (void)state;
    bench_open(&b);
    t = b.o.throttle = throttle(&b, 1);
    start(&b);
    rig_poll(&b.rig);
    assert_int_equal(t->waiting, 1);
    assert_int_equal(blkrepl_job_cancel(b.job, 0), 0);
    assert_int_equal(t->waiting, 0);
    blkrepl_throttle_free(t); /* the job has it still */
    rig_poll(&b.rig);
    conclude(&b, BLKREPL_RESULT_CANCELLED, -ECANCELED);
    bench_close(&b);
}

/* More than one step may do. */
static void verify_works_in_bounded_steps(void **state)
{
    struct bench b;

    (void)state;
    memset(&b, 0, sizeof b);
    bench_init(&b, BYTES, BYTES);
    b.rig.ctx->copies_max = 1;
    bench_images(&b);
    b.o.workers_max = 8;
    b.disk[0].disk[0]++;
    b.disk[0].hold = OP(READ);
    start(&b);
    rig_poll(&b.rig);
    assert_int_equal(b.disk[0].waiting_count, 8);
    b.disk[0].hold = 0;
    script_end_all(&b.disk[0]); /* eight are to be compared at once */
    rig_poll(&b.rig);
    assert_int_equal(conclude(&b, BLKREPL_RESULT_DONE, 0).differing_bytes, G);
    bench_close(&b);
}

/* ---- Creation ------------------------------------------------------------------- */

static void refuse(struct bench *b, int code)
{
    blkrepl_job *none = (blkrepl_job *)memory;

    b->released = 0;
    assert_int_equal(blkrepl_verify_create(b->image[0], b->image[1], &b->o, &none), code);
    assert_null(none);
    assert_int_equal(b->released, 1);
}

static void verify_refuses_bad_options(void **state)
{
    struct bench b;
    blkrepl_verify_options good;
    struct {
        blkrepl_verify_options o;
        uint64_t more;
    } newer = {.more = 1};
    blkrepl_job *none;

    (void)state;
    bench_open(&b);
    good = b.o;
#define BAD(member, value)                                                                         \
    b.o.member = value;                                                                            \
    refuse(&b, -EINVAL);                                                                           \
    b.o = good
    BAD(flags, 2);
    BAD(job_flags, 4);
    BAD(reserved0, 1);
    BAD(on_error, 5);
    BAD(workers_max, 257);
    BAD(chunk_bytes_max, G - 1);
    BAD(chunk_bytes_max, 64 * MIB + 1);
    BAD(name, "");
    newer.o = good;
    newer.o.struct_size = sizeof newer;
    assert_int_equal(blkrepl_verify_create(b.image[0], b.image[1], &newer.o, &none),
                     BLKREPL_ERR_VERSION);
    assert_int_equal(blkrepl_verify_create(b.image[0], b.image[1], &good, NULL), -EINVAL);
    assert_int_equal(blkrepl_verify_create(NULL, b.image[1], &good, &none), -EINVAL);
    assert_int_equal(blkrepl_verify_create(b.image[0], NULL, &good, &none), -EINVAL);
    assert_int_equal(blkrepl_verify_create(b.image[0], b.image[0], &good, &none), -EINVAL);
    b.o.struct_size = BLKREPL_VERIFY_OPTIONS_V1_BYTES - 1;
    assert_int_equal(blkrepl_verify_create(b.image[0], b.image[1], &b.o, &none), -EINVAL);
    bench_close(&b);
}

static void verify_refuses_images_that_do_not_fit(void **state)
{
    struct bench b;
    struct bench c;
    blkrepl_job *none;

    (void)state;
    bench_init(&b, BYTES, BYTES - 1);
    bench_images(&b);
    refuse(&b, -EINVAL);
    bench_open(&c);
    assert_int_equal(blkrepl_verify_create(b.image[0], c.image[0], NULL, &none), -EINVAL);
    c.o.throttle = throttle(&b, 1);
    refuse(&c, -EINVAL);
    blkrepl_throttle_free(c.o.throttle);
    c.o.throttle = NULL;
    c.o.only = bitmap(&b, BYTES, G);
    refuse(&c, -EINVAL);
    blkrepl_bitmap_free(c.o.only);
    bench_close(&c);
    bench_close(&b);
}

static void verify_refuses_bitmaps_that_do_not_fit(void **state)
{
    struct bench b;
    blkrepl_bitmap *map;

    (void)state;
    bench_open(&b);
    map = bitmap(&b, BYTES + 1, G);
    b.o.only = map;
    refuse(&b, -EINVAL);
    b.o.only = NULL;
    b.o.differing = map;
    refuse(&b, -EINVAL);
    assert_int_equal(blkrepl_bitmap_resize(map, BYTES), 0);
    b.o.only = map;
    refuse(&b, -EINVAL);
    b.o.only = NULL;
    assert_int_equal(blkrepl_bitmap_load_begin(map), 0);
    refuse(&b, BLKREPL_ERR_STATE);
    blkrepl_bitmap_free(map);
    bench_close(&b);
}

static void verify_refuses_targets_taken_names_and_a_closed_context(void **state)
{
    struct bench b;

    (void)state;
    bench_open(&b);
    for (int i = 0; i < 2; i++) {
        b.image[i]->jobs_writing = 1;
        refuse(&b, -EBUSY);
        b.image[i]->jobs_writing = 0;
    }
    create(&b);
    refuse(&b, -EEXIST);
    b.released = 0;
    blkrepl_job_free(b.job);
    rig_poll(&b.rig);
    assert_int_equal(b.released, 1);
    assert_int_equal(blkrepl_context_free(b.rig.ctx), -EBUSY);
    refuse(&b, -ESHUTDOWN);
    bench_close(&b);
}

static void verify_takes_no_more_than_the_budget(void **state)
{
    struct bench b;

    (void)state;
    bench_open(&b);
    b.rig.ctx->memory_bytes_max = 8 * G;
    create(&b); /* two workers, two buffers each, of two granules */
    assert_int_equal(b.rig.ctx->memory_used, 8 * G);
    assert_int_equal(b.rig.ctx->job_requests.used, 4);
    b.o.name = NULL;
    refuse(&b, -ENOMEM);
    b.rig.ctx->memory_bytes_max = 8 * G - 1; /* not even alone */
    refuse(&b, -ENOMEM);
    b.rig.ctx->memory_bytes_max = 64 * G;
    b.rig.ctx->job_requests.count = 7;
    refuse(&b, -ENOMEM);
    b.released = 0;
    blkrepl_job_free(b.job);
    rig_poll(&b.rig);
    assert_int_equal(b.rig.ctx->memory_used, 0);
    assert_int_equal(b.rig.ctx->job_requests.used, 0);
    bench_close(&b);
}

static void verify_survives_every_allocation_that_fails(void **state)
{
    struct bench b;
    blkrepl_job *none;
    uint64_t before;
    int rc = -ENOMEM;

    (void)state;
    bench_open(&b);
    b.o.differing = bitmap(&b, BYTES, 512);
    before = b.rig.heap.live;
    for (uint64_t n = 1; rc == -ENOMEM; n++) {
        b.released = 0;
        b.rig.heap.fail_at = b.rig.heap.calls + n;
        rc = blkrepl_verify_create(b.image[0], b.image[1], &b.o, &none);
        b.rig.heap.fail_at = 0;
        if (rc < 0) {
            assert_int_equal(rc, -ENOMEM);
            assert_int_equal(b.rig.heap.live, before);
            assert_int_equal(b.released, 1);
        }
    }
    assert_int_equal(rc, 0);
    blkrepl_job_free(none);
    blkrepl_bitmap_free(b.o.differing);
    rig_poll(&b.rig);
    bench_close(&b);
}

static void verify_that_is_too_large_is_refused(void **state)
{
    struct bench b;
    struct script huge[2];

    (void)state;
    bench_open(&b);
    for (int i = 0; i < 2; i++) {
        blkrepl_image_close(b.image[i]);
        script_init(&huge[i], UINT64_C(1) << 62);
        b.image[i] = script_open(&huge[i], &b.rig);
    }
    refuse(&b, -EFBIG);
    bench_close(&b);
    script_fini(&huge[0]);
    script_fini(&huge[1]);
}

static void verify_cancelled_before_its_start_was_never_busy(void **state)
{
    struct bench b;

    (void)state;
    bench_open(&b);
    b.o.differing = bitmap(&b, BYTES, G);
    assert_int_equal(blkrepl_bitmap_set(b.o.differing, 0, 1), 0);
    create(&b);
    assert_int_equal(blkrepl_job_cancel(b.job, 0), 0);
    rig_poll(&b.rig);
    conclude(&b, BLKREPL_RESULT_CANCELLED, -ECANCELED);
    assert_int_equal(bitmap_info(b.o.differing).dirty_bytes, G);
    blkrepl_bitmap_free(b.o.differing);
    bench_close(&b);
}

/* Two of a group want the same bitmap: neither starts, and it is as it was. */
static void verify_in_a_group_that_does_not_start_gives_its_bitmap_back(void **state)
{
    struct bench b;
    blkrepl_group *group;
    blkrepl_job *second;
    blkrepl_bitmap *map;

    (void)state;
    bench_open(&b);
    map = b.o.differing = bitmap(&b, BYTES, G);
    assert_int_equal(blkrepl_bitmap_set(map, 7 * G, 1), 0);
    create(&b);
    b.o.name = "v1";
    b.o.release = NULL;
    assert_int_equal(blkrepl_verify_create(b.image[0], b.image[1], &b.o, &second), 0);
    assert_int_equal(blkrepl_group_create(b.rig.ctx, 0, &group), 0);
    assert_int_equal(blkrepl_group_add(group, b.job), 0);
    assert_int_equal(blkrepl_group_add(group, second), 0);
    assert_int_equal(blkrepl_group_start(group), -EBUSY);
    assert_int_equal(bitmap_info(map).flags, 0);
    assert_int_equal(bitmap_info(map).dirty_bytes, G);
    blkrepl_job_free(second);
    assert_int_equal(blkrepl_group_start(group), 0);
    blkrepl_group_free(group);
    rig_poll(&b.rig);
    conclude(&b, BLKREPL_RESULT_DONE, 0);
    assert_int_equal(bitmap_info(map).dirty_bytes, 0);
    blkrepl_bitmap_free(map);
    bench_close(&b);
}

static void verify_ends_when_the_context_is_freed(void **state)
{
    struct bench b;

    (void)state;
    bench_open(&b);
    b.o.differing = bitmap(&b, BYTES, G);
    b.disk[0].hold = OP(READ);
    start(&b);
    rig_poll(&b.rig);
    blkrepl_job_free(b.job);
    blkrepl_bitmap_free(b.o.differing);
    for (int i = 0; i < 2; i++) {
        blkrepl_image_close(b.image[i]);
        b.image[i] = NULL;
    }
    assert_int_equal(blkrepl_context_free(b.rig.ctx), -EBUSY);
    assert_true(b.disk[0].cancels >= 2);
    while (b.disk[0].waiting_count > 0) {
        script_end(&b.disk[0], 0, -ECANCELED);
    }
    rig_poll(&b.rig);
    assert_int_equal(b.released, 1);
    bench_close(&b);
}

#ifdef BLKREPL_HOOKS
static unsigned stretched;

static bool stretch_verify(enum stretch_site site)
{
    return (site == STRETCH_VERIFY_CLAIM || site == STRETCH_VERIFY_PUMP ||
            site == STRETCH_VERIFY_STATE) &&
           stretched++ % 3 != 0;
}

static void verify_that_is_stretched_does_the_same(void **state)
{
    struct bench b;

    (void)state;
    bench_with_status(&b);
    say(&b.disk[0], 0, 4 * G, true);
    say(&b.disk[1], 0, 5 * G, true);
    blkrepl__stretch_hook = stretch_verify;
    assert_int_equal(run(&b, BLKREPL_RESULT_DONE, 0).differing_bytes, G);
    blkrepl__stretch_hook = NULL;
    assert_true(stretched > 10);
    bench_close(&b);
}
#endif

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(verify_of_the_same_content_finds_nothing),
        cmocka_unit_test(verify_with_no_options_has_defaults),
        cmocka_unit_test(verify_of_nothing_is_done),
        cmocka_unit_test(verify_marks_the_granules_that_differ),
        cmocka_unit_test(verify_without_a_bitmap_counts_in_64_kib),
        cmocka_unit_test(verify_first_ends_at_the_first_difference),
        cmocka_unit_test(verify_first_of_the_same_content_compares_all),
        cmocka_unit_test(verify_compares_as_far_as_the_first_image_goes),
        cmocka_unit_test(verify_only_compares_the_dirty_chunks_of_64_kib),
        cmocka_unit_test(verify_only_of_a_clean_bitmap_is_done),
        cmocka_unit_test(verify_only_may_be_busy_and_must_be_consistent),
        cmocka_unit_test(verify_only_that_changes_at_the_last_moment_means_everything),
        cmocka_unit_test(verify_has_its_bitmap_busy_from_start_to_end),
        cmocka_unit_test(verify_bitmap_keeps_what_was_found_when_it_is_cancelled),
        cmocka_unit_test(verify_bitmap_that_is_busy_or_inconsistent_is_refused_at_the_start),
        cmocka_unit_test(verify_bitmap_that_records_gets_the_writes_too),
        cmocka_unit_test(verify_waits_for_writes_in_flight_over_either_image),
        cmocka_unit_test(verify_holds_writes_until_both_have_been_read),
        cmocka_unit_test(verify_and_brackets),
        cmocka_unit_test(verify_waits_for_old_writes_to_end_altogether),
        cmocka_unit_test(verify_of_an_image_and_its_snapshot_does_not_wait_in_a_circle),
        cmocka_unit_test(verify_does_not_read_what_is_zero_in_both),
        cmocka_unit_test(verify_of_two_empty_disks_reads_nothing),
        cmocka_unit_test(verify_asks_once_where_all_is_data),
        cmocka_unit_test(verify_survives_any_answer),
        cmocka_unit_test(verify_does_not_believe_nonsense),
        cmocka_unit_test(verify_that_cannot_read_fails),
        cmocka_unit_test(verify_whose_both_reads_fail_tells_both_and_ends_for_the_first),
        cmocka_unit_test(verify_that_ignores_errors_goes_on_and_fails_at_the_end),
        cmocka_unit_test(verify_that_stops_for_errors_tries_again),
        cmocka_unit_test(verify_that_stops_for_lack_of_space_alone),
        cmocka_unit_test(verify_gives_up_the_other_side_of_what_failed),
        cmocka_unit_test(verify_that_is_paused_finishes_what_is_under_way),
        cmocka_unit_test(verify_that_is_paused_at_its_end_is_not_done),
        cmocka_unit_test(verify_is_cancelled_in_every_state_of_a_task),
        cmocka_unit_test(verify_that_is_cancelled_tells_what_had_failed),
        cmocka_unit_test(verify_that_is_cancelled_takes_back_what_is_queued),
        cmocka_unit_test(verify_keeps_its_speed),
        cmocka_unit_test(verify_waits_for_its_turn_at_a_throttle),
        cmocka_unit_test(verify_that_is_cancelled_leaves_the_throttle),
        cmocka_unit_test(verify_works_in_bounded_steps),
        cmocka_unit_test(verify_refuses_bad_options),
        cmocka_unit_test(verify_refuses_images_that_do_not_fit),
        cmocka_unit_test(verify_refuses_bitmaps_that_do_not_fit),
        cmocka_unit_test(verify_refuses_targets_taken_names_and_a_closed_context),
        cmocka_unit_test(verify_takes_no_more_than_the_budget),
        cmocka_unit_test(verify_survives_every_allocation_that_fails),
        cmocka_unit_test(verify_that_is_too_large_is_refused),
        cmocka_unit_test(verify_cancelled_before_its_start_was_never_busy),
        cmocka_unit_test(verify_in_a_group_that_does_not_start_gives_its_bitmap_back),
        cmocka_unit_test(verify_ends_when_the_context_is_freed),
#ifdef BLKREPL_HOOKS
        cmocka_unit_test(verify_that_is_stretched_does_the_same),
#endif
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
