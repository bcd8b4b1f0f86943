/* SPDX-License-Identifier: MIT */
/* Old data of guests on their way over the spill image; where data are. */
#include "unit/copy_rig.h"

static void bench(struct copy_rig *r, struct copy_config config)
{
    config.workers = 1;
    r->with_spill = true;
    copy_rig_open(r, &config);
    copy_rig_start(r);
}

static void init(struct copy_rig *r)
{
    copy_rig_init(r, 64 * KIB + 100);
    r->source.info.opcodes &= ~OP(STATUS);
    r->target.info.opcodes &= ~OP(COPY_FROM);
}

static void old_data_go_to_the_spill_image_first_and_to_the_target_later(void **state)
{
    struct copy_rig r;
    struct done write;

    (void)state;
    init(&r);
    bench(&r, (struct copy_config){0});
    r.target.hold = 0x7e;
    copy_rig_write(&r, 4096, 3 * 4096, &write);
    done_assert(&write, 0);
    assert_int_equal(script_count(&r.target, 0), 0);
    assert_memory_equal(r.spill.disk + 4096, r.old + 4096, 8192);
    assert_int_equal(r.copy.spilled.set_count, 2);
    assert_int_equal(r.copy.spill_clusters, 2);
    assert_int_equal(r.copy.spilled_bytes_total, 8192);
    assert_int_equal(r.copy.guest_copies_count, 2);
    assert_int_equal(r.copy.bytes_done, 0);
    copy_rig_pump(&r);
    assert_int_equal(r.target.waiting_count, 1); /* both in one */
    assert_int_equal(r.target.waiting[0]->offset, 4096);
    assert_int_equal(r.target.waiting[0]->bytes, 8192);
    assert_int_equal(script_count(&r.spill, BLKREPL_OP_DISCARD), 0);
    copy_rig_end(&r, &r.target, 0, 0);
    assert_int_equal(r.copy.bytes_done, 8192);
    assert_int_equal(script_count(&r.spill, BLKREPL_OP_DISCARD), 1);
    assert_int_equal(r.copy.spill_clusters, 0);
    r.target.hold = 0;
    r.pumps = true;
    copy_rig_pump(&r);
    copy_rig_assert_copied(&r);
    assert_int_equal(r.copy.guest_copies_count, 2);
    copy_rig_close(&r);
}

static void a_guest_that_may_fail_waits_for_the_spill_image_only(void **state)
{
    struct copy_rig r;
    struct done write;

    (void)state;
    init(&r);
    bench(&r, (struct copy_config){.hold_until_written = true});
    r.target.hold = 0x7e;
    r.spill.hold = OP(WRITE) | OP(ZEROES);
    copy_rig_write(&r, 0, 100, &write);
    assert_int_equal(write.calls, 0);
    assert_int_equal(script_count(&r.target, 0), 0);
    copy_rig_end(&r, &r.spill, 0, 0);
    done_assert(&write, 0);
    /* What a background copy has is saved in its buffer. */
    copy_rig_task(&r, 4, 4, false);
    assert_int_equal(copy_rig_task_at(&r, 4)->state, COPY_WRITE);
    copy_rig_write(&r, 5 * 4096, 6 * 4096, &write);
    done_assert(&write, 0);
    copy_rig_close(&r);
}

static void what_the_allowance_does_not_hold_goes_to_the_target(void **state)
{
    struct copy_rig r;
    struct done write;

    (void)state;
    init(&r);
    bench(&r, (struct copy_config){.spill_bytes_max = 2 * CLUSTER + 100});
    copy_rig_write(&r, 0, 4 * 4096, &write);
    done_assert(&write, 0);
    assert_int_equal(r.copy.spill_clusters, 2);
    assert_int_equal(r.copy.bytes_done, 8192);
    assert_memory_equal(r.target.disk + 8192, r.old + 8192, 8192);
    r.pumps = true;
    copy_rig_pump(&r);
    copy_rig_assert_copied(&r);
    assert_int_equal(r.copy.spill_clusters, 0);
    copy_rig_close(&r);
}

static void what_the_spill_image_refuses_goes_to_the_target(void **state)
{
    struct copy_rig r;
    struct done write;

    (void)state;
    for (int hold = 0; hold < 2; hold++) {
        init(&r);
        r.spill.result[BLKREPL_OP_WRITE] = -ENOSPC;
        bench(&r, (struct copy_config){.hold_until_written = hold});
        copy_rig_write(&r, 0, 4096, &write);
        done_assert(&write, 0);
        assert_int_equal(r.copy.spill_clusters, 0);
        assert_int_equal(r.job.side_errors[BLKREPL_SIDE_SPILL], 1);
        assert_int_equal(r.job.cause.side, BLKREPL_SIDE_SPILL);
        assert_int_equal(r.copy.bytes_done, 4096);
        assert_false(r.copy.failed);
        r.pumps = true;
        copy_rig_pump(&r);
        copy_rig_assert_copied(&r);
        copy_rig_close(&r);
    }
}

/* The source's last block is part of one of the spill image's, and zeroes are holes. */
static void tail_and_zeroes_are_kept(void **state)
{
    struct copy_rig r;
    struct done write;

    (void)state;
    init(&r);
    script_fini(&r.spill);
    script_init(&r.spill, 80 * KIB);
    r.spill.info.request_alignment = 512;
    r.spill.info.memory_alignment = 512;
    memset(r.source.disk + 4096, 0, 4096);
    bench(&r, (struct copy_config){0});
    memset(r.spill.disk, 0x77, 80 * KIB);
    copy_rig_write(&r, 64 * KIB, 64 * KIB + 100, &write);
    copy_rig_write(&r, 4096, 4100, &write);
    done_assert(&write, 0);
    assert_int_equal(script_count(&r.spill, BLKREPL_OP_ZEROES), 1);
    assert_int_equal(script_count(&r.spill, BLKREPL_OP_WRITE), 1);
    assert_int_equal(r.spill.disk[64 * KIB + 511], 0);
    assert_int_equal(r.spill.disk[64 * KIB + 512], 0x77);
    script_forget(&r.target);
    copy_rig_pump(&r);
    assert_int_equal(script_count(&r.target, BLKREPL_OP_ZEROES), 1);
    r.pumps = true;
    copy_rig_pump(&r);
    copy_rig_assert_copied(&r);
    copy_rig_close(&r);
}

static void a_spill_image_without_zeroes_gets_buffers(void **state)
{
    struct copy_rig r;
    struct done write;

    (void)state;
    init(&r);
    memset(r.source.disk, 0, 8192);
    r.spill.result[BLKREPL_OP_ZEROES] = -ENOTSUP;
    bench(&r, (struct copy_config){0});
    copy_rig_write(&r, 0, 8192, &write);
    done_assert(&write, 0);
    assert_int_equal(script_count(&r.spill, BLKREPL_OP_WRITE), 2);
    assert_true(r.copy.spill_zeroes_refused);
    assert_false(r.copy.zeroes_refused);
    r.pumps = true;
    copy_rig_pump(&r);
    copy_rig_assert_copied(&r);
    copy_rig_close(&r);
}

/* What cannot be read back, by the policy of its side. */
static void what_is_lost_in_the_spill_image_is_told(void **state)
{
    static const uint32_t policies[] = {BLKREPL_ON_ERROR_REPORT, BLKREPL_ON_ERROR_IGNORE,
                                        BLKREPL_ON_ERROR_STOP};

    (void)state;
    for (unsigned i = 0; i < 3; i++) {
        struct copy_rig r;
        struct done write;

        init(&r);
        bench(&r, (struct copy_config){.keeps_bad = true});
        r.job.on_error[BLKREPL_SIDE_SPILL] = policies[i];
        copy_rig_write(&r, 4096, 8192, &write);
        r.spill.result[BLKREPL_OP_READ] = -EIO;
        copy_rig_pump(&r);
        assert_int_equal(r.job.cause.side, BLKREPL_SIDE_SPILL);
        assert_int_equal(r.copy.failed, i == 0);
        assert_int_equal(r.copy.bad.set_count, i == 1);
        assert_int_equal(r.copy.spill_clusters, 1); /* it keeps its place */
        assert_int_equal(r.job.error_paused, i == 2);
        if (i == 2) {
            assert_int_equal(r.copy.spilled.set_count, 1);
            r.spill.result[BLKREPL_OP_READ] = 0;
            r.pumps = true;
            copy_rig_resume(&r);
            copy_rig_pump(&r);
            copy_rig_assert_copied(&r);
        }
        copy_rig_close(&r);
    }
}

static void what_was_spilled_and_cannot_be_written_is_still_there(void **state)
{
    struct copy_rig r;
    struct done write;

    (void)state;
    init(&r);
    bench(&r, (struct copy_config){0});
    r.job.on_error[BLKREPL_SIDE_TARGET] = BLKREPL_ON_ERROR_STOP;
    copy_rig_write(&r, 0, 4096, &write);
    r.target.result[BLKREPL_OP_WRITE] = -ENOSPC;
    copy_rig_pump(&r);
    assert_true(r.job.error_paused);
    assert_int_equal(r.copy.spilled.set_count, 1);
    assert_int_equal(r.copy.spill_clusters, 1);
    r.target.result[BLKREPL_OP_WRITE] = 0;
    r.pumps = true;
    copy_rig_resume(&r);
    copy_rig_pump(&r);
    copy_rig_assert_copied(&r);
    copy_rig_close(&r);
}

/* An offload that a guest makes void may still write what is spilled meanwhile. */
static void what_was_spilled_waits_for_the_void_copy_of_its_range(void **state)
{
    struct copy_rig r;
    struct done write;
    int domain;

    (void)state;
    for (int hold = 0; hold < 2; hold++) {
        init(&r);
        r.target.info.opcodes |= OP(COPY_FROM);
        r.source.info.copy_domain = r.target.info.copy_domain = &domain;
        bench(&r, (struct copy_config){.hold_until_written = hold});
        r.target.hold = OP(COPY_FROM);
        copy_rig_task(&r, 0, 4, false);
        assert_int_equal(copy_rig_task_at(&r, 0)->state, COPY_OFFLOAD);
        copy_rig_write(&r, 0, 4096, &write);
        done_assert(&write, 0);
        assert_int_equal(r.copy.spilled.set_count, 1);
        blkrepl__enter(r.rig.ctx);
        blkrepl__copy_start_spilled(&r.copy, blkrepl__copy_reserve_task(&r.copy), 0, 1);
        blkrepl__leave(r.rig.ctx, 0);
        rig_poll(&r.rig);
        copy_rig_check(&r);
        assert_int_equal(script_count(&r.target, BLKREPL_OP_WRITE), 0);
        r.target.hold = 0;
        copy_rig_end(&r, &r.target, 0, 0);
        assert_int_equal(script_count(&r.target, BLKREPL_OP_WRITE), 1);
        r.pumps = true;
        copy_rig_pump(&r);
        copy_rig_assert_copied(&r);
        copy_rig_close(&r);
    }
}

/* The engine stops with a cluster in each place on the way. */
static void stopping_leaves_what_was_spilled_where_it_is(void **state)
{
    struct copy_rig r;
    struct done write;

    (void)state;
    init(&r);
    bench(&r, (struct copy_config){0});
    r.spill.hold = OP(DISCARD);
    copy_rig_write(&r, 0, 4096, &write);
    copy_rig_pump(&r); /* cluster 0 is on the target and being discarded */
    assert_int_equal(copy_rig_task_at(&r, 0)->state, COPY_CLEAN);
    copy_rig_write(&r, 4096, 8192, &write);
    r.spill.hold |= OP(WRITE) | OP(ZEROES);
    copy_rig_write(&r, 8192, 8192 + 4096, &write);
    assert_int_equal(copy_rig_task_at(&r, 2)->state, COPY_SPILL);
    blkrepl__enter(r.rig.ctx);
    blkrepl__copy_stop(&r.copy);
    blkrepl__leave(r.rig.ctx, 0);
    script_end_all(&r.spill);
    rig_poll(&r.rig);
    assert_true(copy_idle(&r.copy));
    assert_false(blkrepl__hbitmap_test(&r.copy.todo, 0));
    assert_false(blkrepl__hbitmap_test(&r.copy.spilled, 0));
    assert_true(blkrepl__hbitmap_test(&r.copy.spilled, 1));
    assert_true(blkrepl__hbitmap_test(&r.copy.todo, 2));
    assert_int_equal(r.copy.todo.set_count, 15);
    copy_rig_close(&r);
}

static void a_discard_of_what_was_spilled_may_fail(void **state)
{
    struct copy_rig r;
    struct done write;

    (void)state;
    init(&r);
    r.spill.result[BLKREPL_OP_DISCARD] = -EIO;
    bench(&r, (struct copy_config){0});
    copy_rig_write(&r, 0, 4096, &write);
    r.pumps = true;
    copy_rig_pump(&r);
    copy_rig_assert_copied(&r);
    assert_int_equal(r.copy.spill_clusters, 0);
    assert_int_equal(r.job.error_count, 0);
    copy_rig_close(&r);
}

static void a_spill_image_without_discard_is_fine(void **state)
{
    struct copy_rig r;
    struct done write;

    (void)state;
    init(&r);
    r.spill.info.opcodes &= ~OP(DISCARD);
    bench(&r, (struct copy_config){0});
    copy_rig_write(&r, 0, 4096, &write);
    r.pumps = true;
    copy_rig_pump(&r);
    copy_rig_assert_copied(&r);
    assert_int_equal(script_count(&r.spill, BLKREPL_OP_DISCARD), 0);
    copy_rig_close(&r);
}

static void a_hung_spill_image_is_named_when_time_is_over(void **state)
{
    struct copy_rig r;
    struct done write;

    (void)state;
    init(&r);
    bench(&r, (struct copy_config){.hold_until_written = true, .cbw_timeout_ns = SECOND});
    r.spill.hold = OP(WRITE) | OP(ZEROES);
    copy_rig_write(&r, 0, 4096, &write);
    rig_advance(&r.rig, SECOND);
    done_assert(&write, -ETIMEDOUT);
    assert_int_equal(r.job.cause.side, BLKREPL_SIDE_SPILL);
    copy_rig_close(&r);
}

/* So it is for a guest that finds no buffer, because all are on their way there. */
static void a_hung_spill_image_is_named_by_who_finds_no_buffer(void **state)
{
    struct copy_rig r;
    struct done write;

    (void)state;
    init(&r);
    bench(&r, (struct copy_config){.hold_until_written = true, .cbw_timeout_ns = SECOND});
    r.spill.hold = OP(WRITE) | OP(ZEROES);
    copy_rig_write(&r, 0, 8 * 4096, &write);
    assert_false(list_empty(&r.copy.starved));
    rig_advance(&r.rig, SECOND);
    done_assert(&write, -ETIMEDOUT);
    assert_int_equal(r.job.cause.side, BLKREPL_SIDE_SPILL);
    assert_string_equal(r.job.cause.what, "write");
    copy_rig_close(&r);
}

/* The spill image is full, so old data that a guest waits for go to the target, and have
 * to wait there for a void copy that has hung. */
static void a_void_copy_that_has_hung_is_the_targets_fault(void **state)
{
    static char domain;
    struct copy_rig r;
    struct done write;

    (void)state;
    init(&r);
    r.source.info.copy_domain = &domain;
    r.target.info.copy_domain = &domain;
    r.target.info.opcodes |= OP(COPY_FROM);
    bench(&r, (struct copy_config){
                  .hold_until_written = true, .spill_bytes_max = 1, .cbw_timeout_ns = SECOND});
    r.target.hold = OP(COPY_FROM);
    copy_rig_task(&r, 0, 4, false);
    copy_rig_write(&r, 0, 4096, &write);
    assert_false(list_empty(&r.copy.held));
    rig_advance(&r.rig, SECOND);
    done_assert(&write, -ETIMEDOUT);
    assert_int_equal(r.job.cause.side, BLKREPL_SIDE_TARGET);
    assert_string_equal(r.job.cause.what, "write");
    copy_rig_close(&r);
}

/* ---- Places ------------------------------------------------------------------ */

static enum copy_place where(struct copy_rig *r, uint64_t offset, uint64_t *end)
{
    struct copy_task *task = NULL;
    enum copy_place place = blkrepl__copy_where(&r->copy, offset, end, &task);

    assert_int_equal(place == COPY_AT_TASK, task != NULL);
    assert_true(*end > offset && *end <= r->source.info.bytes);
    return place;
}

static void places_tell_where_the_old_data_are(void **state)
{
    struct copy_rig r;
    struct done write;
    uint64_t end;

    (void)state;
    copy_rig_init(&r, 64 * KIB + 100);
    copy_rig_open(&r, &(struct copy_config){.keeps_absent = true});
    copy_rig_start(&r);
    assert_int_equal(where(&r, 100, &end), COPY_AT_SOURCE);
    assert_int_equal(end, 64 * KIB + 100);
    copy_rig_write(&r, 4096, 8192, &write); /* cluster 1 is saved */
    r.target.hold = OP(WRITE) | OP(ZEROES);
    copy_rig_write(&r, 3 * 4096, 4 * 4096, &write); /* 3 is on its way */
    assert_int_equal(where(&r, 0, &end), COPY_AT_SOURCE);
    assert_int_equal(end, 4096);
    assert_int_equal(where(&r, 5000, &end), COPY_AT_TARGET);
    assert_int_equal(end, 8192);
    assert_int_equal(where(&r, 3 * 4096 + 1, &end), COPY_AT_TASK);
    assert_int_equal(end, 4 * 4096);
    script_end_all(&r.target);
    rig_poll(&r.rig);
    assert_int_equal(where(&r, 3 * 4096 + 1, &end), COPY_AT_TARGET);
    assert_int_equal(end, 4 * 4096);
    copy_rig_close(&r);
}

static void a_settled_run_ends_where_a_task_begins(void **state)
{
    struct copy_rig r;
    struct done write;
    uint64_t end;

    (void)state;
    copy_rig_init(&r, 64 * KIB);
    copy_rig_open(&r, &(struct copy_config){.keeps_absent = true, .reserve_bytes = 8 * CLUSTER});
    copy_rig_start(&r);
    copy_rig_write(&r, 0, 3 * 4096, &write);
    r.target.hold = OP(WRITE) | OP(ZEROES);
    copy_rig_write(&r, 3 * 4096, 4 * 4096, &write);
    copy_rig_write(&r, 4 * 4096, 5 * 4096, &write);
    assert_int_equal(where(&r, 4096, &end), COPY_AT_TARGET);
    assert_int_equal(end, 3 * 4096);
    copy_rig_close(&r);
}

static void what_is_forgotten_is_nowhere(void **state)
{
    struct copy_rig r;
    struct done write;
    uint64_t end;

    (void)state;
    copy_rig_init(&r, 64 * KIB);
    copy_rig_open(&r, &(struct copy_config){.keeps_absent = true});
    copy_rig_start(&r);
    copy_rig_write(&r, 4096, 8192, &write);
    r.target.hold = OP(WRITE) | OP(ZEROES);
    copy_rig_write(&r, 2 * 4096, 3 * 4096, &write);
    blkrepl__enter(r.rig.ctx);
    blkrepl__copy_forget(&r.copy, 0, 6);
    blkrepl__leave(r.rig.ctx, 0);
    copy_rig_check(&r);
    assert_int_equal(where(&r, 0, &end), COPY_NOWHERE);
    assert_int_equal(end, 8192);
    assert_int_equal(where(&r, 8192, &end), COPY_AT_TASK); /* left as it is */
    assert_int_equal(where(&r, 3 * 4096, &end), COPY_NOWHERE);
    assert_int_equal(end, 6 * 4096);
    assert_int_equal(where(&r, 6 * 4096, &end), COPY_AT_SOURCE);
    script_forget(&r.source);
    copy_rig_write(&r, 0, 4096, &write); /* nobody wants the old data any more */
    done_assert(&write, 0);
    assert_int_equal(script_count(&r.source, BLKREPL_OP_READ), 0);
    copy_rig_close(&r);
}

struct reader {
    struct ready ready;
    int woken;
};

static void reader_run(struct ready *ready)
{
    CONTAINER_OF(ready, struct reader, ready)->woken++;
}

static void readers_of_a_task_are_woken_however_it_ends(void **state)
{
    struct copy_rig r;
    struct done write;
    struct reader readers[2] = {{.ready.run = reader_run}, {.ready.run = reader_run}};

    (void)state;
    for (int stop = 0; stop < 2; stop++) {
        copy_rig_init(&r, 64 * KIB);
        copy_rig_open(&r, &(struct copy_config){.keeps_absent = true});
        copy_rig_start(&r);
        r.target.hold = OP(WRITE) | OP(ZEROES);
        copy_rig_write(&r, 0, 4096, &write);
        blkrepl__enter(r.rig.ctx);
        blkrepl__copy_await(copy_rig_task_at(&r, 0), &readers[0].ready);
        blkrepl__copy_await(copy_rig_task_at(&r, 0), &readers[1].ready);
        if (stop) {
            blkrepl__copy_stop(&r.copy);
        }
        blkrepl__leave(r.rig.ctx, 0);
        assert_int_equal(readers[0].woken, stop);
        script_end_all(&r.target);
        rig_poll(&r.rig);
        assert_int_equal(readers[0].woken, stop + 1);
        assert_int_equal(readers[1].woken, stop + 1);
        copy_rig_close(&r);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(old_data_go_to_the_spill_image_first_and_to_the_target_later),
        cmocka_unit_test(a_guest_that_may_fail_waits_for_the_spill_image_only),
        cmocka_unit_test(what_the_allowance_does_not_hold_goes_to_the_target),
        cmocka_unit_test(what_the_spill_image_refuses_goes_to_the_target),
        cmocka_unit_test(tail_and_zeroes_are_kept),
        cmocka_unit_test(a_spill_image_without_zeroes_gets_buffers),
        cmocka_unit_test(what_is_lost_in_the_spill_image_is_told),
        cmocka_unit_test(what_was_spilled_and_cannot_be_written_is_still_there),
        cmocka_unit_test(what_was_spilled_waits_for_the_void_copy_of_its_range),
        cmocka_unit_test(stopping_leaves_what_was_spilled_where_it_is),
        cmocka_unit_test(a_discard_of_what_was_spilled_may_fail),
        cmocka_unit_test(a_spill_image_without_discard_is_fine),
        cmocka_unit_test(a_hung_spill_image_is_named_when_time_is_over),
        cmocka_unit_test(a_hung_spill_image_is_named_by_who_finds_no_buffer),
        cmocka_unit_test(a_void_copy_that_has_hung_is_the_targets_fault),
        cmocka_unit_test(places_tell_where_the_old_data_are),
        cmocka_unit_test(a_settled_run_ends_where_a_task_begins),
        cmocka_unit_test(what_is_forgotten_is_nowhere),
        cmocka_unit_test(readers_of_a_task_are_woken_however_it_ends),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
