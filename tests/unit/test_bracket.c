/* SPDX-License-Identifier: MIT */
#include "block/guest.h"

#include "core/context.h"
#include "unit/rig.h"

#define BYTES 10000 /* the last block of 512 is 272 bytes long */

struct bench {
    struct rig rig;
    struct script disk;
    blkrepl_image *image;
    struct tap tap;
    enum tap_answer answer;
    int error;
    struct guest *parked;
    bool inline_wake; /* the tap wakes the guest before begin returns */
    void *user;
};

static enum tap_answer fake_before(struct tap *tap, struct guest *guest, uint64_t start,
                                   uint64_t end)
{
    struct bench *b = CONTAINER_OF(tap, struct bench, tap);

    (void)start;
    (void)end;
    if (b->inline_wake) {
        b->inline_wake = false;
        blkrepl__guest_wake(guest);
        return TAP_WAIT;
    }
    b->parked = guest;
    guest->tap_error = b->error;
    return b->answer;
}

static void fake_forget(struct tap *tap, struct guest *guest)
{
    (void)tap;
    (void)guest;
}

static void bench_open(struct bench *b)
{
    memset(b, 0, sizeof *b);
    rig_open(&b->rig, &(blkrepl_context_options){.requests_max = 4});
    script_init(&b->disk, BYTES);
    b->disk.info.request_alignment = 512;
    b->image = script_open(&b->disk, &b->rig);
    b->tap.before = fake_before;
    b->tap.forget = fake_forget;
    b->answer = TAP_PASS;
    blkrepl__image_attach(b->image, &b->tap);
}

static void bench_close(struct bench *b)
{
    blkrepl__image_detach(&b->tap);
    blkrepl_image_close(b->image);
    rig_close(&b->rig);
    script_fini(&b->disk);
}

static blkrepl_bracket bracket(uint32_t opcode, uint64_t offset, uint64_t bytes)
{
    return (blkrepl_bracket){
        .struct_size = sizeof(blkrepl_bracket), .opcode = opcode, .offset = offset, .bytes = bytes};
}

static int begin(struct bench *b, const blkrepl_bracket *what, struct done *go, uint64_t *token)
{
    blkrepl_completion c = done_of(go);

    *token = 99;
    return blkrepl_write_begin(b->image, what, &c, token);
}

static int end(struct bench *b, uint64_t token)
{
    return blkrepl_write_end(b->rig.ctx, token, 0, NULL, 0, NULL);
}

static void refuse(struct bench *b, blkrepl_bracket what, int code)
{
    struct done go;
    uint64_t token;

    assert_int_equal(begin(b, &what, &go, &token), code);
    assert_int_equal(token, 0);
    done_assert_rejected(&go);
    assert_int_equal(b->image->requests, 0);
}

static void accept(struct bench *b, blkrepl_bracket what)
{
    struct done go;
    uint64_t token;

    assert_int_equal(begin(b, &what, &go, &token), 0);
    assert_true(token != 0);
    done_assert_rejected(&go); /* answered at once: released, never run */
    assert_int_equal(end(b, token), 0);
    assert_int_equal(end(b, token), -ENOENT);
    assert_int_equal(b->image->requests, 0);
}

static void bracket_takes_aligned_ranges_up_to_the_very_end(void **state)
{
    static const uint32_t ops[] = {BLKREPL_OP_WRITE, BLKREPL_OP_ZEROES, BLKREPL_OP_DISCARD};
    struct bench b;

    (void)state;
    bench_open(&b);
    for (size_t i = 0; i < ARRAY_COUNT(ops); i++) {
        accept(&b, bracket(ops[i], 512, 1024));
        accept(&b, bracket(ops[i], 9728, 272));
        accept(&b, bracket(ops[i], 0, BYTES));
        accept(&b, bracket(ops[i], 512, 0));
        refuse(&b, bracket(ops[i], 1, 511), -EINVAL);
        refuse(&b, bracket(ops[i], 0, 511), -EINVAL);
        refuse(&b, bracket(ops[i], 9728, 271), -EINVAL);
        refuse(&b, bracket(ops[i], 9728, 512), -EINVAL);
        refuse(&b, bracket(ops[i], 10240, 0), -EINVAL);
        refuse(&b, bracket(ops[i], UINT64_MAX - 511, 1024), -EINVAL);
    }
    accept(&b, bracket(BLKREPL_OP_FLUSH, 0, 0));
    refuse(&b, bracket(BLKREPL_OP_FLUSH, 512, 0), -EINVAL);
    refuse(&b, bracket(BLKREPL_OP_FLUSH, 0, 512), -EINVAL);
    refuse(&b, bracket(BLKREPL_OP_READ, 0, 512), -EINVAL);
    refuse(&b, bracket(BLKREPL_OP_STATUS, 0, 512), -EINVAL);
    refuse(&b, bracket(0, 0, 512), -EINVAL);
    bench_close(&b);
}

static void bracket_refuses_bad_arguments(void **state)
{
    struct bench b;
    blkrepl_bracket what = bracket(BLKREPL_OP_WRITE, 0, 512);
    struct done go;
    blkrepl_completion c = done_of(&go);
    uint64_t token;

    (void)state;
    bench_open(&b);
    assert_int_equal(blkrepl_write_begin(NULL, &what, &c, &token), -EINVAL);
    assert_int_equal(go.released, 1);
    assert_int_equal(blkrepl_write_begin(b.image, NULL, &c, &token), -EINVAL);
    assert_int_equal(blkrepl_write_begin(b.image, &what, &c, NULL), -EINVAL);
    assert_int_equal(blkrepl_write_begin(b.image, &what, NULL, &token), -EINVAL);
    c.fn = NULL;
    assert_int_equal(blkrepl_write_begin(b.image, &what, &c, &token), -EINVAL);
    what.lane = 1;
    refuse(&b, what, -EINVAL);
    what.lane = 0;
    what.flags = BLKREPL_IO_NO_FALLBACK;
    refuse(&b, what, -EINVAL);
    what.flags = BLKREPL_IO_FUA | BLKREPL_IO_MAY_UNMAP;
    accept(&b, what);
    what.struct_size = 8;
    refuse(&b, what, -EINVAL);
    bench_close(&b);
}

static void bracket_needs_an_image_that_may_be_written(void **state)
{
    struct bench b;

    (void)state;
    bench_open(&b);
    b.image->read_only = true;
    refuse(&b, bracket(BLKREPL_OP_WRITE, 0, 512), -EROFS);
    accept(&b, bracket(BLKREPL_OP_FLUSH, 0, 0));
    b.image->read_only = false;
    b.image->jobs_writing = 1;
    refuse(&b, bracket(BLKREPL_OP_WRITE, 0, 512), -EBUSY);
    accept(&b, bracket(BLKREPL_OP_FLUSH, 0, 0));
    b.image->jobs_writing = 0;
    bench_close(&b);
}

static void bracket_that_waits_gets_its_go_in_a_poll_once(void **state)
{
    struct bench b;
    blkrepl_bracket what = bracket(BLKREPL_OP_WRITE, 0, 512);
    struct done go;
    uint64_t token;

    (void)state;
    bench_open(&b);
    b.answer = TAP_WAIT;
    assert_int_equal(begin(&b, &what, &go, &token), BLKREPL_WAIT);
    assert_int_equal(end(&b, token), -ENOENT); /* no GO yet */
    b.answer = TAP_PASS;
    blkrepl__enter(b.rig.ctx);
    blkrepl__guest_wake(b.parked);
    blkrepl__leave(b.rig.ctx, 0);
    ASSERT_PENDING(&go);
    assert_int_equal(end(&b, token), -ENOENT); /* not told yet */
    rig_poll(&b.rig);
    done_assert(&go, 0);
    assert_int_equal(end(&b, token), 0);
    bench_close(&b);
}

static void bracket_that_gets_its_go_inside_begin_is_answered_at_once(void **state)
{
    struct bench b;
    blkrepl_bracket what = bracket(BLKREPL_OP_WRITE, 0, 512);
    struct done go;
    uint64_t token;

    (void)state;
    bench_open(&b);
    b.inline_wake = true;
    accept(&b, what);
    b.inline_wake = true;
    b.answer = TAP_FAIL;
    b.error = -EDOM;
    assert_int_equal(begin(&b, &what, &go, &token), BLKREPL_WAIT);
    rig_poll(&b.rig);
    done_assert(&go, -EDOM); /* a failure is always told by go */
    b.answer = TAP_WAIT;
    b.error = 0;
    b.inline_wake = true;
    assert_int_equal(begin(&b, &what, &go, &token), BLKREPL_WAIT);
    assert_int_equal(blkrepl_write_cancel(b.rig.ctx, token), BLKREPL_WAIT);
    rig_poll(&b.rig);
    done_assert(&go, -ECANCELED);
    bench_close(&b);
}

/* Another thread polls, and its callback ends the bracket, before begin is back. */
struct overtaker {
    struct chore chore;
    struct bench *b;
    struct done go;
    uint64_t token;
    int polled;
    int ended;
    int ended_again;
};

static enum tap_answer overtaken_before(struct tap *tap, struct guest *guest, uint64_t start,
                                        uint64_t end)
{
    struct bench *b = CONTAINER_OF(tap, struct bench, tap);

    (void)start;
    (void)end;
    if (!b->inline_wake) {
        return TAP_PASS;
    }
    b->inline_wake = false;
    blkrepl__chore_add(guest->ctx, &((struct overtaker *)b->user)->chore);
    blkrepl__guest_wake(guest);
    return TAP_WAIT;
}

static void *overtake(void *arg)
{
    struct overtaker *o = arg;

    o->polled = blkrepl_poll(o->b->rig.ctx, 0, 0);
    o->ended = end(o->b, o->token);
    o->ended_again = end(o->b, o->token);
    return NULL;
}

static void overtake_run(struct chore *chore)
{
    struct overtaker *o = CONTAINER_OF(chore, struct overtaker, chore);
    blkrepl_context *ctx = o->b->rig.ctx;
    pthread_t thread;

    pthread_mutex_unlock(&ctx->lock);
    if (pthread_create(&thread, NULL, overtake, o) == 0) {
        pthread_join(thread, NULL);
    }
    pthread_mutex_lock(&ctx->lock);
}

static void bracket_that_is_over_before_begin_is_back_got_its_go_in_the_callback(void **state)
{
    static struct bench b;
    struct overtaker o = {.chore = {.run = overtake_run}, .b = &b};
    blkrepl_completion c = done_of(&o.go);
    blkrepl_bracket what = bracket(BLKREPL_OP_WRITE, 0, 512);

    (void)state;
    bench_open(&b);
    b.tap.before = overtaken_before;
    b.user = &o;
    b.inline_wake = true;
    assert_int_equal(blkrepl_write_begin(b.image, &what, &c, &o.token), BLKREPL_WAIT);
    done_assert(&o.go, 0);
    assert_int_equal(o.polled, 1);
    assert_int_equal(o.ended, 0);
    assert_int_equal(o.ended_again, -ENOENT);
    assert_int_equal(b.image->requests, 0);
    assert_int_equal(rig_poll(&b.rig), 0);
    done_assert(&o.go, 0); /* still once */
    accept(&b, what);
    bench_close(&b);
}

static void bracket_that_nobody_can_have_is_not_there(void **state)
{
    struct rig rig = {.no_log = true};

    (void)state;
    rig_open(&rig, NULL); /* no image was ever opened */
    assert_int_equal(blkrepl_write_end(rig.ctx, 1, 0, NULL, 0, NULL), -ENOENT);
    assert_int_equal(blkrepl_write_cancel(rig.ctx, 1), -ENOENT);
    rig_close(&rig);
}

static void bracket_that_fails_while_it_waits_is_over_without_an_end(void **state)
{
    struct bench b;
    blkrepl_bracket what = bracket(BLKREPL_OP_WRITE, 0, 512);
    struct done go;
    uint64_t token;

    (void)state;
    bench_open(&b);
    b.answer = TAP_WAIT;
    assert_int_equal(begin(&b, &what, &go, &token), BLKREPL_WAIT);
    b.answer = TAP_FAIL;
    b.error = -ENOSPC;
    blkrepl__enter(b.rig.ctx);
    blkrepl__guest_wake(b.parked);
    blkrepl__leave(b.rig.ctx, 0);
    rig_poll(&b.rig);
    done_assert(&go, -ENOSPC);
    assert_int_equal(end(&b, token), -ENOENT);
    assert_int_equal(blkrepl_write_cancel(b.rig.ctx, token), -ENOENT);
    bench_close(&b);
}

static void bracket_cancel_before_its_failure_was_told_wins(void **state)
{
    struct bench b;
    blkrepl_bracket what = bracket(BLKREPL_OP_WRITE, 0, 512);
    struct done go;
    uint64_t token;

    (void)state;
    bench_open(&b);
    b.answer = TAP_WAIT;
    assert_int_equal(begin(&b, &what, &go, &token), BLKREPL_WAIT);
    b.answer = TAP_FAIL;
    b.error = -ENOSPC;
    blkrepl__enter(b.rig.ctx);
    blkrepl__guest_wake(b.parked);
    blkrepl__leave(b.rig.ctx, 0);
    assert_int_equal(blkrepl_write_cancel(b.rig.ctx, token), BLKREPL_WAIT);
    assert_int_equal(blkrepl_write_cancel(b.rig.ctx, token), -ENOENT);
    rig_poll(&b.rig);
    done_assert(&go, -ECANCELED);
    bench_close(&b);
}

static void bracket_cancel_after_its_go_ends_it_silently(void **state)
{
    struct bench b;
    blkrepl_bracket what = bracket(BLKREPL_OP_WRITE, 0, 512);
    struct done go;
    uint64_t token;

    (void)state;
    bench_open(&b);
    assert_int_equal(begin(&b, &what, &go, &token), 0);
    assert_int_equal(blkrepl_write_cancel(NULL, token), -EINVAL);
    assert_int_equal(blkrepl_write_cancel(b.rig.ctx, token), 0);
    assert_int_equal(blkrepl_write_cancel(b.rig.ctx, token), -ENOENT);
    assert_int_equal(end(&b, token), -ENOENT);
    rig_poll(&b.rig);
    assert_int_equal(go.calls, 0);
    bench_close(&b);
}

static void bracket_end_with_a_positive_result_leaves_it_open(void **state)
{
    struct bench b;
    blkrepl_bracket what = bracket(BLKREPL_OP_WRITE, 0, 512);
    struct done go;
    struct done done;
    blkrepl_completion c = done_of(&done);
    uint64_t token;

    (void)state;
    bench_open(&b);
    assert_int_equal(begin(&b, &what, &go, &token), 0);
    assert_int_equal(blkrepl_write_end(b.rig.ctx, token, 512, NULL, 0, &c), -EINVAL);
    done_assert_rejected(&done);
    assert_int_equal(blkrepl_write_end(NULL, token, 0, NULL, 0, NULL), -EINVAL);
    c = done_of(&done);
    assert_int_equal(blkrepl_write_end(b.rig.ctx, token, -EIO, NULL, 0, &c), 0);
    done_assert_rejected(&done); /* ended at once */
    bench_close(&b);
}

static void bracket_holds_later_writes_until_its_end(void **state)
{
    struct bench b;
    blkrepl_bracket what = bracket(BLKREPL_OP_WRITE, 0, 1024);
    struct done go;
    struct done write;
    blkrepl_completion c = done_of(&write);
    uint64_t token;

    (void)state;
    bench_open(&b);
    assert_int_equal(begin(&b, &what, &go, &token), 0);
    assert_int_equal(blkrepl_image_write_zeroes(b.image, 0, 600, 10, 0, &c), 0);
    rig_poll(&b.rig);
    ASSERT_PENDING(&write);
    assert_int_equal(end(&b, token), 0);
    rig_poll(&b.rig);
    done_assert(&write, 0);
    bench_close(&b);
}

static void bracket_uses_a_slot_like_any_request(void **state)
{
    struct bench b;
    blkrepl_bracket what = bracket(BLKREPL_OP_FLUSH, 0, 0);
    struct done go[5];
    uint64_t tokens[5];

    (void)state;
    bench_open(&b);
    for (int i = 0; i < 4; i++) {
        assert_int_equal(begin(&b, &what, &go[i], &tokens[i]), 0);
    }
    assert_int_equal(begin(&b, &what, &go[4], &tokens[4]), -EAGAIN);
    assert_int_equal(tokens[4], 0);
    assert_int_equal(blkrepl_context_free(b.rig.ctx), -EBUSY);
    assert_int_equal(begin(&b, &what, &go[4], &tokens[4]), -ESHUTDOWN);
    for (int i = 0; i < 4; i++) {
        assert_int_equal(end(&b, tokens[i]), 0); /* still accepted */
    }
    rig_poll(&b.rig);
    assert_int_equal(rig_events(&b.rig, BLKREPL_EVENT_ROOM), 1);
    bench_close(&b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(bracket_takes_aligned_ranges_up_to_the_very_end),
        cmocka_unit_test(bracket_refuses_bad_arguments),
        cmocka_unit_test(bracket_needs_an_image_that_may_be_written),
        cmocka_unit_test(bracket_that_waits_gets_its_go_in_a_poll_once),
        cmocka_unit_test(bracket_that_gets_its_go_inside_begin_is_answered_at_once),
        cmocka_unit_test(bracket_that_is_over_before_begin_is_back_got_its_go_in_the_callback),
        cmocka_unit_test(bracket_that_nobody_can_have_is_not_there),
        cmocka_unit_test(bracket_that_fails_while_it_waits_is_over_without_an_end),
        cmocka_unit_test(bracket_cancel_before_its_failure_was_told_wins),
        cmocka_unit_test(bracket_cancel_after_its_go_ends_it_silently),
        cmocka_unit_test(bracket_end_with_a_positive_result_leaves_it_open),
        cmocka_unit_test(bracket_holds_later_writes_until_its_end),
        cmocka_unit_test(bracket_uses_a_slot_like_any_request),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
