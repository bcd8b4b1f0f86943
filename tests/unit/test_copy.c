/* SPDX-License-Identifier: MIT */
#include "unit/copy_rig.h"

#include "base/checked.h"

#define DATA BLKREPL_EXTENT_DATA
#define ZERO BLKREPL_EXTENT_ZERO

static void copy_moves_the_whole_image_whatever_its_size(void **state)
{
    static const uint64_t sizes[] = {1, 4095, 4096, 4097, 16384, 65536, 100001, 262144};

    (void)state;
    for (size_t i = 0; i < ARRAY_COUNT(sizes); i++) {
        struct copy_rig r;

        copy_rig_init(&r, sizes[i]);
        r.pumps = true;
        copy_rig_open(&r, NULL);
        copy_rig_start(&r);
        assert_int_equal(r.copy.todo.bit_count, (sizes[i] + 4095) / 4096);
        copy_rig_pump(&r);
        copy_rig_assert_copied(&r);
        assert_true(copy_idle(&r.copy));
        copy_rig_close(&r);
    }
}

static void copy_of_random_extents_and_a_writing_guest_is_the_point_in_time(void **state)
{
    struct rng rng = {1};

    (void)state;
    for (int round = 0; round < (quick() ? 10 : 40); round++) {
        struct copy_rig r;
        uint64_t size = 50000 + rng_below(&rng, 100000);
        uint64_t at = 0;

        copy_rig_init(&r, size);
        r.pumps = true;
        for (unsigned i = 0; i < 30 && at < size; i++) {
            uint64_t bytes = min_u64(1 + rng_below(&rng, 12000), size - at);
            bool zero = rng_below(&rng, 2) == 0;

            r.source.map[i] = (blkrepl_extent){.bytes = bytes, .flags = zero ? ZERO : DATA};
            memset(r.source.disk + at, zero ? 0 : 0x31 + (int)i, (size_t)bytes);
            at += bytes;
        }
        r.source.extents_most = (uint32_t)rng_below(&rng, 5);
        copy_rig_open(&r, &(struct copy_config){.hold_until_written = round & 1});
        copy_rig_start(&r);
        for (int i = 0; i < 20; i++) {
            uint64_t start = rng_below(&rng, size);
            struct done done;

            copy_rig_write(&r, start, min_u64(size, start + 1 + rng_below(&rng, 9000)), &done);
            done_assert(&done, 0);
            if (i == 10) {
                copy_rig_pump(&r);
            }
        }
        copy_rig_assert_copied(&r);
        copy_rig_close(&r);
    }
}

static void copy_claims_at_most_a_chunk_and_stops_at_what_is_done(void **state)
{
    struct copy_rig r;

    (void)state;
    copy_rig_init(&r, 100000); /* 25 clusters, the last is 1696 bytes long */
    r.source.info.opcodes &= ~OP(STATUS);
    r.source.hold = OP(READ);
    copy_rig_open(&r, &(struct copy_config){.workers = 5});
    copy_rig_start(&r);
    blkrepl__hbitmap_clear(&r.copy.todo, 6, 1);
    blkrepl__hbitmap_clear(&r.copy.todo, 16, 7);
    r.copy.bytes_done = 8 * CLUSTER;
    copy_rig_pump(&r);
    assert_int_equal(r.source.note_count, 5);
    assert_int_equal(r.source.notes[0].bytes, 4 * CLUSTER);
    assert_int_equal(r.source.notes[1].offset, 4 * CLUSTER);
    assert_int_equal(r.source.notes[1].bytes, 2 * CLUSTER);
    assert_int_equal(r.source.notes[2].offset, 7 * CLUSTER);
    assert_int_equal(r.source.notes[2].bytes, 4 * CLUSTER);
    assert_int_equal(r.source.notes[3].bytes, 4 * CLUSTER);
    assert_int_equal(r.source.notes[4].offset, 15 * CLUSTER);
    assert_int_equal(r.source.notes[4].bytes, 1 * CLUSTER);
    script_end(&r.source, 0, 0);
    rig_poll(&r.rig);
    copy_rig_pump(&r);
    assert_int_equal(r.source.notes[5].offset, 23 * CLUSTER);
    assert_int_equal(r.source.notes[5].bytes, 100000 - 23 * CLUSTER); /* the partial cluster */
    copy_rig_close(&r);
}

static void copy_claims_a_long_run_that_is_known_to_be_zero_at_once(void **state)
{
    struct copy_rig r;

    (void)state;
    copy_rig_init(&r, UINT64_C(3) << 30);
    r.pumps = true;
    r.source.map[0] = (blkrepl_extent){.bytes = UINT64_C(3) << 30, .flags = ZERO};
    copy_rig_open(&r, NULL);
    copy_rig_start(&r);
    copy_rig_pump(&r);
    /* A look of 1 GiB, which settles its chunk; then what is known, in one. */
    assert_int_equal(script_count(&r.source, BLKREPL_OP_READ), 0);
    assert_true(script_count(&r.source, BLKREPL_OP_STATUS) <= 6);
    assert_true(script_count(&r.target, BLKREPL_OP_ZEROES) <= 12);
    assert_int_equal(r.target.notes[1].bytes, (UINT64_C(1) << 30) - 16384);
    assert_true(r.copy.zero_bytes == UINT64_C(3) << 30);
    copy_rig_close(&r);
}

static void copy_cuts_a_claim_where_known_data_end(void **state)
{
    struct copy_rig r;

    (void)state;
    copy_rig_init(&r, 100000);
    r.source.hold = OP(READ);
    r.target.hold = 0x7e;
    copy_rig_open(&r, &(struct copy_config){.workers = 8});
    copy_rig_start(&r);
    r.copy.known[0] = (struct copy_known){.start = 0, .end = 5000, .zero = false};
    r.copy.known[1] = (struct copy_known){.start = 5000, .end = 30000, .zero = true};
    r.copy.known[2] = (struct copy_known){.start = 30000, .end = 100000, .zero = false};
    r.copy.known_count = 3;
    copy_rig_pump(&r);
    assert_int_equal(script_count(&r.source, BLKREPL_OP_STATUS), 0); /* it is known */
    assert_int_equal(r.source.notes[0].bytes, 2 * CLUSTER);          /* up to 5000, rounded up */
    assert_int_equal(r.target.notes[0].opcode, BLKREPL_OP_ZEROES);
    assert_int_equal(r.target.notes[0].offset, 2 * CLUSTER);
    assert_int_equal(r.target.notes[0].bytes, 5 * CLUSTER); /* up to 30000, rounded down */
    /* The mixed cluster begins in a run of zeroes: it goes alone, and is read. */
    assert_int_equal(r.source.notes[1].offset, 7 * CLUSTER);
    assert_int_equal(r.source.notes[1].bytes, 1 * CLUSTER);
    assert_int_equal(r.source.notes[2].offset, 8 * CLUSTER);
    copy_rig_close(&r);
}

static void copy_known_zero_up_to_the_end_covers_the_partial_cluster(void **state)
{
    struct copy_rig r;

    (void)state;
    copy_rig_init(&r, 10000);
    r.pumps = true;
    r.source.map[0] = (blkrepl_extent){.bytes = 4096, .flags = DATA};
    r.source.map[1] = (blkrepl_extent){.bytes = 5904, .flags = ZERO};
    memset(r.source.disk + 4096, 0, 5904);
    copy_rig_open(&r, NULL);
    copy_rig_start(&r);
    copy_rig_pump(&r);
    copy_rig_assert_copied(&r);
    assert_int_equal(script_count(&r.source, BLKREPL_OP_READ), 1);
    assert_int_equal(script_count(&r.target, BLKREPL_OP_ZEROES), 1); /* in one */
    assert_int_equal(r.copy.zero_bytes, 5904);
    copy_rig_close(&r);
}

static void copy_knows_a_range_only_if_runs_cover_all_of_it(void **state)
{
    struct copy_rig r;

    (void)state;
    copy_rig_init(&r, 100000);
    copy_rig_open(&r, NULL);
    assert_false(blkrepl__copy_known(&r.copy, 0, 1));
    r.copy.known[0] = (struct copy_known){.start = 100, .end = 200, .zero = true};
    r.copy.known[1] = (struct copy_known){.start = 200, .end = 300, .zero = false};
    r.copy.known[2] = (struct copy_known){.start = 300, .end = 400, .zero = true};
    r.copy.known_count = 3;
    assert_true(blkrepl__copy_known(&r.copy, 100, 400));
    assert_false(blkrepl__copy_known(&r.copy, 99, 400));
    assert_false(blkrepl__copy_known(&r.copy, 100, 401));
    assert_true(blkrepl__copy_known_zero(&r.copy, 100, 200));
    assert_false(blkrepl__copy_known_zero(&r.copy, 100, 201));
    assert_false(blkrepl__copy_known_zero(&r.copy, 199, 301));
    assert_true(blkrepl__copy_known_zero(&r.copy, 300, 400));
    copy_rig_close(&r);
}

static void copy_looks_far_ahead_only_when_no_old_write_is_left(void **state)
{
    struct copy_rig r;
    struct done old;

    (void)state;
    copy_rig_init(&r, 400 * KIB);
    r.source.hold = OP(WRITE) | OP(STATUS);
    copy_rig_open(&r, NULL);
    copy_rig_write(&r, 390 * KIB, 391 * KIB, &old);
    copy_rig_start(&r);
    copy_rig_pump(&r);
    assert_false(r.copy.settled_writes);
    assert_int_equal(r.source.notes[1].bytes, 16 * KIB);
    assert_int_equal(r.source.notes[2].bytes, 16 * KIB); /* two at once */
    script_end(&r.source, 0, 0);
    rig_poll(&r.rig);
    script_end_all(&r.source);
    rig_poll(&r.rig);
    done_assert(&old, 0);
    copy_rig_pump(&r);
    assert_true(r.copy.settled_writes);
    assert_int_equal(r.source.waiting_count, 1); /* nobody starts while one looks */
    assert_int_equal(r.source.waiting[0]->bytes, 400 * KIB - 32 * KIB);
    copy_rig_close(&r);
}

static void copy_pump_starts_a_bounded_number_and_goes_on_in_the_next_poll(void **state)
{
    struct copy_rig r;

    (void)state;
    copy_rig_init(&r, 400 * KIB);
    r.source.info.opcodes &= ~OP(STATUS);
    r.source.hold = OP(READ);
    copy_rig_open(&r, &(struct copy_config){.workers = 8});
    r.rig.ctx->copies_max = 3;
    copy_rig_start(&r);
    blkrepl__enter(r.rig.ctx);
    assert_true(blkrepl__copy_pump(&r.copy));
    assert_int_equal(r.copy.in_flight, 3);
    assert_true(list_linked(&r.job.machine.link)); /* woken */
    blkrepl__leave(r.rig.ctx, 0);
    r.pumps = true;
    rig_poll(&r.rig);
    assert_int_equal(r.copy.in_flight, 8); /* all workers */
    copy_rig_close(&r);
}

static void copy_pump_goes_around_to_what_came_back(void **state)
{
    struct copy_rig r;

    (void)state;
    copy_rig_init(&r, 64 * KIB);
    r.pumps = true;
    copy_rig_open(&r, NULL);
    copy_rig_start(&r);
    r.copy.cursor = 16; /* beyond the last */
    copy_rig_pump(&r);
    copy_rig_assert_copied(&r);
    assert_false(copy_rig_pump(&r)); /* nothing left */
    copy_rig_close(&r);
}

static void copy_keeps_to_the_speed_limit_and_a_new_limit_acts_at_once(void **state)
{
    struct copy_rig r;

    (void)state;
    copy_rig_init(&r, 400 * KIB);
    r.pumps = true;
    copy_rig_open(&r, NULL);
    copy_rig_start(&r);
    r.job.speed_bytes_per_sec = 16 * KIB; /* one chunk a second */
    blkrepl__copy_set_speed(&r.copy);
    copy_rig_pump(&r);
    assert_int_equal(r.copy.bytes_done, 16 * KIB); /* taken first, paid afterwards */
    assert_true(list_linked(&r.copy.rate_timer.link));
    rig_advance(&r.rig, SECOND / 2);
    assert_int_equal(r.copy.bytes_done, 16 * KIB);
    rig_advance(&r.rig, SECOND / 2);
    assert_int_equal(r.copy.bytes_done, 32 * KIB);
    r.job.speed_bytes_per_sec = 0;
    blkrepl__enter(r.rig.ctx);
    blkrepl__copy_set_speed(&r.copy);
    assert_false(list_linked(&r.copy.rate_timer.link));
    blkrepl__leave(r.rig.ctx, 0);
    copy_rig_pump(&r);
    copy_rig_assert_copied(&r);
    copy_rig_close(&r);
}

static void copy_for_a_guest_is_counted_but_not_delayed(void **state)
{
    struct copy_rig r;
    struct done done;

    (void)state;
    copy_rig_init(&r, 400 * KIB);
    copy_rig_open(&r, NULL);
    copy_rig_start(&r);
    r.job.speed_bytes_per_sec = 4 * KIB;
    blkrepl__copy_set_speed(&r.copy);
    copy_rig_write(&r, 0, 8 * KIB, &done); /* two clusters */
    done_assert(&done, 0);
    assert_true(blkrepl__ratelimit_next(&r.copy.rate, r.rig.now) == r.rig.now + 2 * SECOND);
    copy_rig_close(&r);
}

static void copy_stop_releases_everybody_and_asks_backends_to_cancel(void **state)
{
    struct copy_rig r;
    struct done waits;
    struct done starved;

    (void)state;
    copy_rig_init(&r, 64 * KIB);
    r.source.hold = OP(READ);
    r.source.info.queue_depth = 3;
    copy_rig_open(&r, &(struct copy_config){.reserve_bytes = CLUSTER, .workers = 1});
    copy_rig_start(&r);
    copy_rig_write(&r, 0, 100, &waits);
    copy_rig_write(&r, 16384, 30000, &starved); /* four clusters; one buffer is left */
    assert_int_equal(r.source.waiting_count, 2);
    blkrepl__enter(r.rig.ctx);
    blkrepl__copy_stop(&r.copy);
    blkrepl__copy_stop(&r.copy); /* twice is once */
    blkrepl__leave(r.rig.ctx, 0);
    copy_rig_check(&r);
    assert_int_equal(r.source.cancels, 2);
    rig_poll(&r.rig);
    done_assert(&waits, 0);
    done_assert(&starved, 0);
    assert_true(list_empty(&r.copy.starved));
    assert_false(copy_idle(&r.copy));
    script_end_all(&r.source);
    rig_poll(&r.rig);
    assert_true(copy_idle(&r.copy));
    assert_int_equal(script_count(&r.target, 0), 0);
    copy_rig_close(&r);
}

static void copy_fail_keeps_the_first_error_and_stops(void **state)
{
    struct copy_rig r;

    (void)state;
    copy_rig_init(&r, 64 * KIB);
    copy_rig_open(&r, NULL);
    copy_rig_start(&r);
    blkrepl__enter(r.rig.ctx);
    blkrepl__copy_fail(&r.copy, &(struct job_error){.code = -EIO, .what = "read"});
    blkrepl__copy_fail(&r.copy, &(struct job_error){.code = -ENOSPC, .what = "write"});
    blkrepl__leave(r.rig.ctx, 0);
    assert_true(r.copy.failed && r.copy.stopped);
    assert_int_equal(r.job.cause.code, -EIO);
    assert_int_equal(r.job.error_count, 1);
    copy_rig_close(&r);
}

static void flush(struct copy_rig *r)
{
    blkrepl__enter(r->rig.ctx);
    blkrepl__copy_flush(&r->copy);
    blkrepl__leave(r->rig.ctx, 0);
    rig_poll(&r->rig);
}

static void copy_flush_tells_when_and_how_it_ended(void **state)
{
    struct copy_rig r;
    unsigned steps;

    (void)state;
    copy_rig_init(&r, 64 * KIB);
    r.target.hold = OP(FLUSH);
    copy_rig_open(&r, NULL);
    flush(&r);
    assert_true(r.copy.flushing && !r.copy.flushed && !copy_idle(&r.copy));
    steps = r.steps;
    script_end(&r.target, 0, -EIO);
    rig_poll(&r.rig);
    assert_true(!r.copy.flushing && r.copy.flushed);
    assert_int_equal(r.copy.flush_result, -EIO);
    assert_int_equal(r.copy.in_flight, 0);
    assert_true(r.steps > steps); /* the job was woken */
    copy_rig_close(&r);
}

static void copy_flush_of_a_target_that_needs_none_has_ended(void **state)
{
    struct copy_rig r;
    unsigned steps;

    (void)state;
    copy_rig_init(&r, 64 * KIB);
    r.target.info.opcodes &= ~OP(FLUSH);
    copy_rig_open(&r, NULL);
    steps = r.steps;
    flush(&r);
    assert_true(r.copy.flushed && !r.copy.flushing);
    assert_int_equal(r.copy.flush_result, 0);
    assert_true(r.steps > steps);
    assert_int_equal(script_count(&r.target, 0), 0);
    copy_rig_close(&r);
}

static void copy_stop_takes_a_queued_flush_back_and_cancels_a_given_one(void **state)
{
    struct copy_rig r;

    (void)state;
    copy_rig_init(&r, 64 * KIB);
    r.target.hold = OP(FLUSH);
    copy_rig_open(&r, NULL);
    blkrepl__enter(r.rig.ctx);
    blkrepl__copy_flush(&r.copy);
    blkrepl__copy_stop(&r.copy);
    assert_true(copy_idle(&r.copy));
    r.copy.stopped = false;
    blkrepl__leave(r.rig.ctx, 0);
    flush(&r);
    blkrepl__enter(r.rig.ctx);
    blkrepl__copy_stop(&r.copy);
    blkrepl__leave(r.rig.ctx, 0);
    assert_int_equal(r.target.cancels, 1);
    assert_true(r.target.cancelled == r.target.waiting[0]->id);
    copy_rig_close(&r);
}

static void copy_flush_has_no_range_whatever_its_slot_was_used_for(void **state)
{
    struct copy_rig r;
    struct request_pool *pool;
    struct request *used[16];

    (void)state;
    copy_rig_init(&r, 64 * KIB);
    pool = &r.rig.ctx->job_requests;
    for (int i = 0; i < 16; i++) {
        used[i] = blkrepl__request_take(pool);
        used[i]->io.offset = MIB;
        used[i]->io.bytes = MIB;
        used[i]->io.iov_count = 3;
        used[i]->io.flags = BLKREPL_IO_BACKGROUND;
    }
    for (int i = 0; i < 16; i++) {
        blkrepl__request_put(pool, used[i]);
    }
    copy_rig_open(&r, NULL);
    flush(&r); /* the script looks at it */
    assert_int_equal(script_count(&r.target, BLKREPL_OP_FLUSH), 1);
    copy_rig_close(&r);
}

/* ---- Memory ------------------------------------------------------------------- */

static struct copy_config plain(struct copy_rig *r)
{
    return (struct copy_config){.source = r->from,
                                .target = r->to,
                                .cluster_bytes = CLUSTER,
                                .chunk_bytes = 4 * CLUSTER,
                                .reserve_bytes = 2 * CLUSTER + 1,
                                .workers = 3};
}

static void copy_alloc_that_fails_anywhere_leaks_nothing(void **state)
{
    struct copy_rig r;
    struct copy_config config;
    uint64_t calls;

    (void)state;
    copy_rig_init(&r, 64 * KIB);
    copy_rig_open(&r, NULL);
    config = plain(&r);
    for (uint64_t n = 1; n < 20; n++) {
        struct copy copy;
        uint64_t live = r.rig.heap.live;
        int rc;

        memset(&copy, 0, sizeof copy);
        calls = r.rig.heap.calls;
        r.rig.heap.fail_at = calls + n;
        rc = blkrepl__copy_alloc(&copy, r.rig.ctx, &config);
        r.rig.heap.fail_at = 0;
        blkrepl__copy_free(&copy, r.rig.ctx);
        assert_int_equal(r.rig.heap.live, live);
        if (rc == 0) {
            assert_true(n > 3);
            break;
        }
        assert_int_equal(rc, -ENOMEM);
    }
    copy_rig_close(&r);
}

static void copy_of_an_image_with_too_many_clusters_is_refused(void **state)
{
    struct copy_rig r;
    struct copy_config config;
    struct copy copy;

    (void)state;
    copy_rig_init(&r, BLKREPL_IMAGE_BYTES_MAX);
    memset(&copy, 0, sizeof copy);
    r.from = script_open(&r.source, &r.rig);
    r.to = script_open(&r.target, &r.rig);
    config = plain(&r);
    assert_int_equal(blkrepl__copy_alloc(&copy, r.rig.ctx, &config), -EFBIG);
    blkrepl__copy_free(&copy, r.rig.ctx);
    blkrepl_image_close(r.from);
    blkrepl_image_close(r.to);
    rig_close(&r.rig);
    script_fini(&r.source);
    script_fini(&r.target);
}

static void copy_gives_every_task_memory_of_its_own(void **state)
{
    struct copy_rig r;
    uint64_t total = 0;

    (void)state;
    copy_rig_init(&r, 64 * KIB);
    copy_rig_open(&r, &(struct copy_config){.workers = 3, .reserve_bytes = 5 * CLUSTER + 7});
    assert_int_equal(r.copy.task_count, 8);
    for (uint32_t i = 0; i < 8; i++) {
        struct copy_task *task = &r.copy.tasks[i];

        assert_int_equal(task->reserved, i >= 3);
        assert_int_equal(task->buffer_bytes, i < 3 ? 4 * CLUSTER : CLUSTER);
        assert_ptr_equal(task->buffer, r.copy.memory + total);
        assert_int_equal((uintptr_t)task->buffer & 4095, 0);
        total += task->buffer_bytes;
        for (uint32_t j = 0; j < i; j++) {
            assert_true(task->request != r.copy.tasks[j].request);
        }
        assert_true(task->request != NULL && task->request != r.copy.flush);
    }
    assert_int_equal(total, r.copy.memory_bytes);
    copy_rig_close(&r);
}

static void copy_reserve_is_all_or_nothing(void **state)
{
    struct copy_rig r;
    struct copy_config config;
    struct copy copy;
    struct blkrepl_context *ctx;
    uint32_t used;
    uint64_t memory;

    (void)state;
    copy_rig_init(&r, 64 * KIB);
    copy_rig_open(&r, NULL);
    ctx = r.rig.ctx;
    config = plain(&r);
    memset(&copy, 0, sizeof copy);
    assert_int_equal(blkrepl__copy_alloc(&copy, ctx, &config), 0);
    used = ctx->job_requests.used;
    memory = ctx->memory_used;
    ctx->memory_bytes_max = memory + copy.memory_bytes - 1;
    assert_int_equal(blkrepl__copy_reserve(&copy, &r.job), -ENOMEM);
    ctx->memory_bytes_max = memory + copy.memory_bytes;
    ctx->job_requests.count = used + copy.task_count; /* one short: the flush */
    assert_int_equal(blkrepl__copy_reserve(&copy, &r.job), -ENOMEM);
    assert_int_equal(ctx->job_requests.used, used);
    assert_int_equal(ctx->memory_used, memory);
    ctx->job_requests.count++;
    assert_int_equal(blkrepl__copy_reserve(&copy, &r.job), 0);
    assert_int_equal(ctx->job_requests.used, used + copy.task_count + 1);
    assert_int_equal(ctx->memory_used, ctx->memory_bytes_max);
    blkrepl__copy_unreserve(&copy);
    assert_int_equal(ctx->job_requests.used, used);
    assert_int_equal(ctx->memory_used, memory);
    blkrepl__copy_free(&copy, ctx);
    copy_rig_close(&r);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(copy_moves_the_whole_image_whatever_its_size),
        cmocka_unit_test(copy_of_random_extents_and_a_writing_guest_is_the_point_in_time),
        cmocka_unit_test(copy_claims_at_most_a_chunk_and_stops_at_what_is_done),
        cmocka_unit_test(copy_claims_a_long_run_that_is_known_to_be_zero_at_once),
        cmocka_unit_test(copy_cuts_a_claim_where_known_data_end),
        cmocka_unit_test(copy_known_zero_up_to_the_end_covers_the_partial_cluster),
        cmocka_unit_test(copy_knows_a_range_only_if_runs_cover_all_of_it),
        cmocka_unit_test(copy_looks_far_ahead_only_when_no_old_write_is_left),
        cmocka_unit_test(copy_pump_starts_a_bounded_number_and_goes_on_in_the_next_poll),
        cmocka_unit_test(copy_pump_goes_around_to_what_came_back),
        cmocka_unit_test(copy_keeps_to_the_speed_limit_and_a_new_limit_acts_at_once),
        cmocka_unit_test(copy_for_a_guest_is_counted_but_not_delayed),
        cmocka_unit_test(copy_stop_releases_everybody_and_asks_backends_to_cancel),
        cmocka_unit_test(copy_fail_keeps_the_first_error_and_stops),
        cmocka_unit_test(copy_flush_tells_when_and_how_it_ended),
        cmocka_unit_test(copy_flush_of_a_target_that_needs_none_has_ended),
        cmocka_unit_test(copy_stop_takes_a_queued_flush_back_and_cancels_a_given_one),
        cmocka_unit_test(copy_flush_has_no_range_whatever_its_slot_was_used_for),
        cmocka_unit_test(copy_alloc_that_fails_anywhere_leaks_nothing),
        cmocka_unit_test(copy_of_an_image_with_too_many_clusters_is_refused),
        cmocka_unit_test(copy_gives_every_task_memory_of_its_own),
        cmocka_unit_test(copy_reserve_is_all_or_nothing),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
