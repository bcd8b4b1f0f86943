/* SPDX-License-Identifier: MIT */
#include "unit/copy_rig.h"

#define TIMEOUT (10 * SECOND)

static void rig(struct copy_rig *r, bool hold_until_written, uint64_t reserve, uint64_t timeout)
{
    copy_rig_init(r, 400 * KIB);
    copy_rig_open(r, &(struct copy_config){.hold_until_written = hold_until_written,
                                           .reserve_bytes = reserve * CLUSTER,
                                           .workers = 1,
                                           .cbw_timeout_ns = timeout});
    copy_rig_start(r);
}

/* One completion of a disk, handled. */
static void end(struct copy_rig *r, struct script *script, unsigned nth, int result)
{
    script_end(script, nth, result);
    rig_poll(&r->rig);
    copy_rig_check(r);
}

static void tap_saves_the_old_data_before_the_guest_overwrites_them(void **state)
{
    struct copy_rig r;
    struct done write;

    (void)state;
    rig(&r, false, 4, 0);
    r.source.hold = OP(READ) | OP(WRITE);
    r.target.hold = 0x7e;
    copy_rig_write(&r, 5000, 9000, &write); /* clusters 1 and 2 */
    assert_int_equal(r.source.waiting_count, 2);
    assert_int_equal(r.source.waiting[0]->opcode, BLKREPL_OP_READ);
    end(&r, &r.source, 0, 0);
    assert_int_equal(r.source.waiting_count, 1); /* both have to be saved */
    end(&r, &r.source, 0, 0);
    assert_int_equal(r.source.waiting[0]->opcode, BLKREPL_OP_WRITE); /* in buffers: it goes */
    end(&r, &r.source, 0, 0);
    done_assert(&write, 0);
    script_end_all(&r.target);
    rig_poll(&r.rig);
    assert_memory_equal(r.target.disk + 4096, r.old + 4096, 8192);
    assert_int_equal(r.copy.guest_copies_count, 2);
    assert_int_equal(r.copy.guest_copies_bytes, 8192);
    assert_int_equal(r.copy.guest_waits_count, 1);
    copy_rig_close(&r);
}

static void tap_under_guest_write_fails_waits_until_the_target_has_them(void **state)
{
    struct copy_rig r;
    struct done write;

    (void)state;
    rig(&r, true, 4, 0);
    r.target.hold = 0x7e;
    copy_rig_write(&r, 0, 100, &write);
    assert_int_equal(script_count(&r.source, BLKREPL_OP_WRITE), 0);
    end(&r, &r.target, 0, 0);
    done_assert(&write, 0);
    copy_rig_close(&r);
}

static void tap_lets_a_write_over_saved_clusters_pass_without_a_wait(void **state)
{
    struct copy_rig r;
    struct done first;
    struct done second;

    (void)state;
    rig(&r, false, 4, 0);
    r.target.hold = 0x7e;
    copy_rig_write(&r, 0, 100, &first);
    copy_rig_write(&r, 200, 300, &second); /* in a buffer, not yet on the target */
    done_assert(&first, 0);
    done_assert(&second, 0);
    end(&r, &r.target, 0, 0);
    copy_rig_write(&r, 0, 4096, &second);
    done_assert(&second, 0);
    assert_int_equal(r.copy.guest_copies_count, 1);
    copy_rig_close(&r);
}

static void tap_write_waits_for_a_background_copy_of_its_clusters(void **state)
{
    struct copy_rig r;
    struct done write;

    (void)state;
    rig(&r, false, 4, 0);
    r.source.hold = OP(READ);
    copy_rig_task(&r, 0, 4, false);
    copy_rig_write(&r, 4096, 4100, &write);
    assert_int_equal(r.source.waiting_count, 1); /* no second copy */
    ASSERT_PENDING(&write);
    end(&r, &r.source, 0, 0);
    done_assert(&write, 0);
    assert_int_equal(r.copy.guest_copies_count, 0);
    assert_int_equal(r.copy.guest_waits_count, 1);
    copy_rig_close(&r);
}

static void tap_takes_the_reserve_then_workers_then_starves(void **state)
{
    struct copy_rig r;
    struct done write;

    (void)state;
    rig(&r, false, 2, 0);
    r.target.hold = 0x7e;
    copy_rig_write(&r, 0, 5 * CLUSTER, &write); /* five clusters; 2 + 1 buffers */
    assert_int_equal(r.target.waiting_count, 3);
    assert_false(list_empty(&r.copy.starved));
    assert_int_equal(r.copy.todo.set_count, 97);
    ASSERT_PENDING(&write);
    end(&r, &r.target, 0, 0);
    assert_int_equal(r.target.waiting_count, 3); /* the fourth has the buffer */
    ASSERT_PENDING(&write);
    end(&r, &r.target, 0, 0);
    done_assert(&write, 0); /* the fifth is in a buffer */
    assert_int_equal(r.copy.guest_waits_count, 1);
    copy_rig_close(&r);
}

/* The last buffer that was freed is the next one used, being in the cache. */
static void tap_takes_the_buffer_that_is_warm(void **state)
{
    struct copy_rig r;
    struct done write;
    void *buffer;

    (void)state;
    rig(&r, false, 4, 0);
    r.target.hold = 0x7e;
    copy_rig_write(&r, 0, 100, &write);
    assert_int_equal(r.target.waiting[0]->opcode, BLKREPL_OP_WRITE);
    buffer = r.target.waiting[0]->iov[0].base;
    end(&r, &r.target, 0, 0);
    copy_rig_write(&r, CLUSTER, CLUSTER + 100, &write);
    assert_ptr_equal(r.target.waiting[0]->iov[0].base, buffer);
    end(&r, &r.target, 0, 0);
    copy_rig_close(&r);
}

static void tap_pump_leaves_the_buffers_to_starved_guests(void **state)
{
    struct copy_rig r;
    struct done write;

    (void)state;
    rig(&r, false, 1, 0);
    r.target.hold = 0x7e;
    copy_rig_write(&r, 0, 3 * CLUSTER, &write);
    assert_int_equal(r.target.waiting_count, 2);
    script_end(&r.target, 0, 0);
    blkrepl__enter(r.rig.ctx);
    r.copy.job->ctx->completions_max = 1; /* the buffer is free, the guest not yet woken */
    blkrepl__advance(r.rig.ctx);
    assert_false(list_empty(&r.copy.free_reserve) && list_empty(&r.copy.free_workers));
    r.copy.job->ctx->completions_max = 256;
    blkrepl__leave(r.rig.ctx, 0);
    rig_poll(&r.rig);
    done_assert(&write, 0);
    copy_rig_close(&r);
}

static void tap_serves_starved_guests_in_their_order(void **state)
{
    struct copy_rig r;
    struct done done[5];

    (void)state;
    rig(&r, false, 1, 0);
    r.target.hold = 0x7e;
    for (unsigned i = 0; i < 5; i++) {
        copy_rig_write(&r, i * CLUSTER, i * CLUSTER + 100, &done[i]);
    }
    done_assert(&done[0], 0);
    done_assert(&done[1], 0);
    for (unsigned i = 2; i < 5; i++) {
        ASSERT_PENDING(&done[i]);
        end(&r, &r.target, 0, 0);
        done_assert(&done[i], 0);
    }
    assert_int_equal(r.copy.guest_waits_count, 5);
    copy_rig_close(&r);
}

static void tap_guest_that_needs_no_buffer_any_more_passes_the_turn_on(void **state)
{
    struct copy_rig r;
    struct done done[5];

    (void)state;
    rig(&r, false, 1, 0);
    r.target.hold = 0x7e;
    copy_rig_write(&r, 0, 100, &done[0]);
    copy_rig_write(&r, CLUSTER, CLUSTER + 100, &done[1]);
    copy_rig_write(&r, 2 * CLUSTER, 2 * CLUSTER + 100, &done[2]);
    copy_rig_write(&r, 2 * CLUSTER + 200, 2 * CLUSTER + 300, &done[3]); /* the same cluster */
    copy_rig_write(&r, 5 * CLUSTER, 5 * CLUSTER + 100, &done[4]);
    ASSERT_PENDING(&done[3]);
    end(&r, &r.target, 0, 0); /* one buffer: it serves both */
    done_assert(&done[2], 0);
    ASSERT_PENDING(&done[3]); /* it is woken when the next buffer is free */
    end(&r, &r.target, 0, 0);
    done_assert(&done[3], 0); /* it does not need it: the next one has it */
    done_assert(&done[4], 0);
    assert_true(list_empty(&r.copy.starved));
    copy_rig_close(&r);
}

static void tap_that_is_forgotten_passes_the_turn_on(void **state)
{
    struct copy_rig r;
    struct done done[3];
    struct done go;
    uint64_t token;

    (void)state;
    rig(&r, false, 1, 0);
    r.target.hold = 0x7e;
    copy_rig_write(&r, 0, 100, &done[0]);
    copy_rig_write(&r, CLUSTER, CLUSTER + 100, &done[1]);
    assert_int_equal(copy_rig_begin(&r, BLKREPL_OP_WRITE, 2 * CLUSTER, 3 * CLUSTER, &go, &token),
                     BLKREPL_WAIT);
    copy_rig_write(&r, 4 * CLUSTER, 4 * CLUSTER + 100, &done[2]);
    script_end(&r.target, 0, 0);
    r.rig.ctx->completions_max = 1; /* it is woken, and cancelled before its turn */
    blkrepl__enter(r.rig.ctx);
    blkrepl__advance(r.rig.ctx);
    blkrepl__leave_quietly(r.rig.ctx);
    assert_int_equal(blkrepl_write_cancel(r.rig.ctx, token), BLKREPL_WAIT);
    rig_poll(&r.rig);
    done_assert(&go, -ECANCELED);
    done_assert(&done[2], 0);
    assert_true(list_empty(&r.copy.waiting));
    assert_false(list_linked(&r.copy.cbw_timer.link));
    copy_rig_close(&r);
}

static void tap_skips_a_discard_of_what_is_not_saved(void **state)
{
    struct copy_rig r;
    struct done done;
    blkrepl_completion c = done_of(&done);

    (void)state;
    rig(&r, false, 1, 0);
    r.source.hold = OP(READ);
    assert_int_equal(blkrepl_image_discard(r.from, 0, 0, 8192, 0, &c), 0);
    rig_poll(&r.rig);
    done_assert(&done, 0); /* at once, and nothing was copied for it */
    assert_int_equal(script_count(&r.source, 0), 0);
    copy_rig_task(&r, 0, 1, false); /* under way: not saved either */
    script_forget(&r.source);
    c = done_of(&done);
    assert_int_equal(blkrepl_image_discard(r.from, 0, 0, 4096, 0, &c), 0);
    rig_poll(&r.rig);
    done_assert(&done, 0);
    assert_int_equal(script_count(&r.source, BLKREPL_OP_DISCARD), 0);
    end(&r, &r.source, 0, 0);
    c = done_of(&done);
    assert_int_equal(blkrepl_image_discard(r.from, 0, 0, 4096, 0, &c), 0);
    rig_poll(&r.rig);
    done_assert(&done, 0);
    assert_int_equal(script_count(&r.source, BLKREPL_OP_DISCARD), 1);
    copy_rig_close(&r);
}

static void tap_holds_a_bracketed_discard_until_its_data_are_saved(void **state)
{
    struct copy_rig r;
    struct done go;
    uint64_t token;

    (void)state;
    rig(&r, false, 4, 0);
    r.source.hold = OP(READ);
    assert_int_equal(copy_rig_begin(&r, BLKREPL_OP_DISCARD, 0, 4096, &go, &token), BLKREPL_WAIT);
    end(&r, &r.source, 0, 0);
    done_assert(&go, 0);
    assert_int_equal(blkrepl_write_end(r.rig.ctx, token, 0, NULL, 0, NULL), 0);
    copy_rig_close(&r);
}

static void tap_answers_a_bracket_at_once_when_the_data_are_saved_inline(void **state)
{
    struct copy_rig r;
    struct done go;
    uint64_t token;

    (void)state;
    rig(&r, false, 4, 0);
    r.target.hold = 0x7e;
    assert_int_equal(copy_rig_begin(&r, BLKREPL_OP_WRITE, 0, 4096, &go, &token), 0);
    done_assert_rejected(&go);
    assert_int_equal(blkrepl_write_end(r.rig.ctx, token, 0, NULL, 0, NULL), 0);
    copy_rig_close(&r);
}

static void tap_copies_the_tail_of_an_image_that_is_not_whole(void **state)
{
    struct copy_rig r;
    struct done write;

    (void)state;
    copy_rig_init(&r, 10001);
    r.source.info.request_alignment = 512;
    copy_rig_open(&r, NULL);
    copy_rig_start(&r);
    copy_rig_write(&r, 10000, 10001, &write);
    done_assert(&write, 0);
    assert_memory_equal(r.target.disk + 8192, r.old + 8192, 10001 - 8192);
    assert_int_equal(r.copy.guest_copies_bytes, 10001 - 8192);
    copy_rig_close(&r);
}

/* ---- Time --------------------------------------------------------------------- */

static void tap_timeout_breaks_the_backup_not_the_guest(void **state)
{
    struct copy_rig r;
    struct done write;

    (void)state;
    rig(&r, false, 4, TIMEOUT);
    r.source.hold = OP(READ);
    copy_rig_write(&r, 100, 200, &write);
    rig_advance(&r.rig, TIMEOUT - 1);
    ASSERT_PENDING(&write);
    rig_advance(&r.rig, 1);
    done_assert(&write, 0);
    assert_true(r.copy.failed);
    assert_int_equal(r.job.cause.code, -ETIMEDOUT);
    assert_int_equal(r.job.cause.side, BLKREPL_SIDE_SOURCE); /* the read is missing */
    assert_int_equal(r.job.cause.offset, 100);
    assert_int_equal(r.job.cause.bytes, 100);
    assert_string_equal(r.job.cause.what, "read");
    copy_rig_close(&r);
}

static void tap_timeout_of_a_starved_guest_blames_the_target(void **state)
{
    struct copy_rig r;
    struct done done[3];

    (void)state;
    rig(&r, false, 1, TIMEOUT);
    r.target.hold = 0x7e;
    for (unsigned i = 0; i < 3; i++) {
        copy_rig_write(&r, i * CLUSTER, i * CLUSTER + 100, &done[i]);
    }
    rig_advance(&r.rig, TIMEOUT);
    done_assert(&done[2], 0);
    assert_true(r.copy.failed);
    assert_int_equal(r.job.cause.side, BLKREPL_SIDE_TARGET);
    copy_rig_close(&r);
}

/* A write longer than the reserve: every buffer waits for the source, which has hung. */
static void tap_timeout_of_a_starved_guest_names_a_source_that_has_hung(void **state)
{
    struct copy_rig r;
    struct done write;

    (void)state;
    rig(&r, false, 1, TIMEOUT);
    r.source.hold = OP(READ);
    copy_rig_write(&r, 0, 5 * CLUSTER, &write);
    assert_int_equal(r.source.waiting_count, 2);
    assert_false(list_empty(&r.copy.starved));
    rig_advance(&r.rig, TIMEOUT);
    done_assert(&write, 0);
    assert_true(r.copy.failed);
    assert_int_equal(r.job.cause.code, -ETIMEDOUT);
    assert_int_equal(r.job.cause.side, BLKREPL_SIDE_SOURCE);
    assert_string_equal(r.job.cause.what, "read");
    copy_rig_close(&r);
}

/* One buffer waits for the target, the other one for the source: who is late is not
 * known, and the target is what a guest waits for that finds no buffer. */
static void tap_timeout_of_a_starved_guest_blames_the_target_if_it_has_a_buffer(void **state)
{
    struct copy_rig r;
    struct done first;
    struct done write;

    (void)state;
    rig(&r, false, 1, TIMEOUT);
    r.target.hold = 0x7e;
    copy_rig_write(&r, 9 * CLUSTER, 10 * CLUSTER, &first);
    done_assert(&first, 0);
    r.source.hold = OP(READ);
    copy_rig_write(&r, 0, 5 * CLUSTER, &write);
    assert_false(list_empty(&r.copy.starved));
    rig_advance(&r.rig, TIMEOUT);
    done_assert(&write, 0);
    assert_int_equal(r.job.cause.side, BLKREPL_SIDE_TARGET);
    copy_rig_close(&r);
}

static void tap_timeout_under_guest_write_fails_fails_the_write_only(void **state)
{
    struct copy_rig r;
    struct done early;
    struct done late;

    (void)state;
    rig(&r, true, 4, TIMEOUT);
    r.target.hold = 0x7e;
    copy_rig_write(&r, 0, 100, &early);
    rig_advance(&r.rig, TIMEOUT / 2);
    copy_rig_write(&r, CLUSTER, CLUSTER + 100, &late);
    rig_advance(&r.rig, TIMEOUT / 2);
    done_assert(&early, -ETIMEDOUT);
    ASSERT_PENDING(&late); /* its own time is not over */
    assert_false(r.copy.stopped);
    assert_int_equal(r.job.error_count, 1);
    assert_int_equal(script_count(&r.source, BLKREPL_OP_WRITE), 0); /* nothing was written */
    script_end_all(&r.target);
    rig_poll(&r.rig);
    done_assert(&late, 0);
    assert_false(list_linked(&r.copy.cbw_timer.link));
    copy_rig_close(&r);
}

/* A guest that has timed out waits without a deadline until it has looked; no clock
 * reaches that. */
static void tap_timeout_ends_with_a_clock_at_its_limit(void **state)
{
    struct copy_rig r;
    struct done write;

    (void)state;
    rig(&r, true, 4, TIMEOUT);
    r.target.hold = 0x7e;
    copy_rig_write(&r, 0, 100, &write);
    r.rig.now = UINT64_MAX;
    rig_poll(&r.rig);
    done_assert(&write, -ETIMEDOUT);
    assert_int_equal(r.job.error_count, 1);
    copy_rig_close(&r);
}

static void tap_time_starts_anew_when_a_copy_has_ended_for_the_guest(void **state)
{
    struct copy_rig r;
    struct done write;

    (void)state;
    rig(&r, false, 4, TIMEOUT);
    r.source.hold = OP(READ);
    copy_rig_write(&r, 0, 2 * CLUSTER, &write);
    rig_advance(&r.rig, TIMEOUT - 1);
    end(&r, &r.source, script_find(&r.source, BLKREPL_OP_READ, 0), 0);
    end(&r, &r.source, 0, 0);
    done_assert(&write, 0);
    copy_rig_write(&r, 2 * CLUSTER, 5 * CLUSTER, &write); /* three copies, one after the other */
    for (unsigned i = 0; i < 3; i++) {
        rig_advance(&r.rig, TIMEOUT - 1);
        assert_false(r.copy.failed);
        end(&r, &r.source, 0, 0);
    }
    done_assert(&write, 0);
    copy_rig_close(&r);
}

static void tap_time_of_a_starved_guest_runs_on(void **state)
{
    struct copy_rig r;
    struct done done[4];

    (void)state;
    rig(&r, false, 1, TIMEOUT);
    r.target.hold = 0x7e;
    for (unsigned i = 0; i < 4; i++) {
        copy_rig_write(&r, i * CLUSTER, i * CLUSTER + 100, &done[i]);
    }
    rig_advance(&r.rig, TIMEOUT - 1);
    end(&r, &r.target, 0, 0); /* serves the third; the fourth still starves */
    done_assert(&done[2], 0);
    blkrepl__enter(r.rig.ctx); /* to be woken in vain does not count */
    blkrepl__guest_wake(CONTAINER_OF(r.copy.waiting.next, struct guest, tap_link));
    blkrepl__leave(r.rig.ctx, 0);
    ASSERT_PENDING(&done[3]);
    rig_advance(&r.rig, 1);
    assert_true(r.copy.failed);
    done_assert(&done[3], 0);
    copy_rig_close(&r);
}

static void tap_without_a_timeout_waits_for_ever(void **state)
{
    struct copy_rig r;
    struct done write;

    (void)state;
    rig(&r, false, 4, BLKREPL_FOREVER);
    r.source.hold = OP(READ);
    copy_rig_write(&r, 0, 100, &write);
    rig_advance(&r.rig, UINT64_C(1) << 62);
    ASSERT_PENDING(&write);
    assert_false(r.copy.failed);
    end(&r, &r.source, 0, 0);
    done_assert(&write, 0);
    copy_rig_close(&r);
}

/* A time so long that its end cannot be told does not wrap around. */
static void tap_with_a_timeout_beyond_time_waits_for_ever(void **state)
{
    struct copy_rig r;
    struct done write;

    (void)state;
    rig(&r, false, 4, BLKREPL_FOREVER - 1);
    r.source.hold = OP(READ);
    copy_rig_write(&r, 0, 100, &write);
    rig_advance(&r.rig, UINT64_C(1) << 63);
    ASSERT_PENDING(&write);
    assert_false(r.copy.failed);
    end(&r, &r.source, 0, 0);
    done_assert(&write, 0);
    copy_rig_close(&r);
}

static void tap_timer_is_off_when_nobody_waits(void **state)
{
    struct copy_rig r;
    struct done write;

    (void)state;
    rig(&r, false, 4, TIMEOUT);
    r.source.hold = OP(READ);
    copy_rig_write(&r, 0, 100, &write);
    assert_true(list_linked(&r.copy.cbw_timer.link));
    end(&r, &r.source, 0, 0);
    assert_false(list_linked(&r.copy.cbw_timer.link));
    assert_true(list_empty(&r.copy.waiting));
    rig_advance(&r.rig, 2 * TIMEOUT);
    assert_false(r.copy.failed);
    copy_rig_close(&r);
}

/* However many copies it needs, the first that fails fails the write; it does
 * not wait for the others, and starts none anew. */
static void tap_fails_a_guest_that_waits_for_another_copy_as_well(void **state)
{
    struct copy_rig r;
    struct done both;
    struct done other;

    (void)state;
    rig(&r, true, 8, TIMEOUT);
    r.source.hold = OP(READ);
    copy_rig_write(&r, 0, 2 * CLUSTER, &both);
    copy_rig_write(&r, 4 * CLUSTER, 5 * CLUSTER, &other);
    assert_int_equal(r.source.waiting_count, 3);
    end(&r, &r.source, 1, -EIO); /* the copy of cluster 1; `both` waits for that of 0 */
    done_assert(&both, -EIO);
    ASSERT_PENDING(&other);
    assert_int_equal(script_count(&r.source, BLKREPL_OP_READ), 3);
    end(&r, &r.source, 0, 0);
    end(&r, &r.source, 0, 0);
    done_assert(&other, 0);
    copy_rig_close(&r);
}

static void tap_fails_every_guest_that_waits_for_a_copy_that_failed(void **state)
{
    struct copy_rig r;
    struct done through;
    struct done go;
    uint64_t token;

    (void)state;
    rig(&r, true, 4, TIMEOUT);
    r.target.hold = 0x7e;
    copy_rig_write(&r, 0, 100, &through);
    assert_int_equal(copy_rig_begin(&r, BLKREPL_OP_WRITE, 2048, 4096, &go, &token), BLKREPL_WAIT);
    end(&r, &r.target, 0, -ENOSPC);
    done_assert(&through, -ENOSPC);
    done_assert(&go, -ENOSPC);
    assert_int_equal(r.job.error_count, 1);
    assert_true(blkrepl__hbitmap_test(&r.copy.todo, 0)); /* to be done again */
    assert_false(r.copy.stopped);
    assert_int_equal(blkrepl_write_cancel(r.rig.ctx, token), -ENOENT);
    copy_rig_close(&r);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(tap_saves_the_old_data_before_the_guest_overwrites_them),
        cmocka_unit_test(tap_under_guest_write_fails_waits_until_the_target_has_them),
        cmocka_unit_test(tap_lets_a_write_over_saved_clusters_pass_without_a_wait),
        cmocka_unit_test(tap_write_waits_for_a_background_copy_of_its_clusters),
        cmocka_unit_test(tap_takes_the_reserve_then_workers_then_starves),
        cmocka_unit_test(tap_takes_the_buffer_that_is_warm),
        cmocka_unit_test(tap_pump_leaves_the_buffers_to_starved_guests),
        cmocka_unit_test(tap_serves_starved_guests_in_their_order),
        cmocka_unit_test(tap_guest_that_needs_no_buffer_any_more_passes_the_turn_on),
        cmocka_unit_test(tap_that_is_forgotten_passes_the_turn_on),
        cmocka_unit_test(tap_skips_a_discard_of_what_is_not_saved),
        cmocka_unit_test(tap_holds_a_bracketed_discard_until_its_data_are_saved),
        cmocka_unit_test(tap_answers_a_bracket_at_once_when_the_data_are_saved_inline),
        cmocka_unit_test(tap_copies_the_tail_of_an_image_that_is_not_whole),
        cmocka_unit_test(tap_timeout_breaks_the_backup_not_the_guest),
        cmocka_unit_test(tap_timeout_of_a_starved_guest_blames_the_target),
        cmocka_unit_test(tap_timeout_of_a_starved_guest_names_a_source_that_has_hung),
        cmocka_unit_test(tap_timeout_of_a_starved_guest_blames_the_target_if_it_has_a_buffer),
        cmocka_unit_test(tap_timeout_under_guest_write_fails_fails_the_write_only),
        cmocka_unit_test(tap_timeout_ends_with_a_clock_at_its_limit),
        cmocka_unit_test(tap_time_starts_anew_when_a_copy_has_ended_for_the_guest),
        cmocka_unit_test(tap_time_of_a_starved_guest_runs_on),
        cmocka_unit_test(tap_without_a_timeout_waits_for_ever),
        cmocka_unit_test(tap_with_a_timeout_beyond_time_waits_for_ever),
        cmocka_unit_test(tap_timer_is_off_when_nobody_waits),
        cmocka_unit_test(tap_fails_a_guest_that_waits_for_another_copy_as_well),
        cmocka_unit_test(tap_fails_every_guest_that_waits_for_a_copy_that_failed),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
