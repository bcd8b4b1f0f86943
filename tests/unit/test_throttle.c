/* SPDX-License-Identifier: MIT */
#include "block/throttle.h"

#include "base/hook.h"
#include "block/guest.h"
#include "unit/rig.h"

#define DISK (16 * MIB)
#define EVERY 0x7eu

struct bench {
    struct rig rig;
    struct script disk[2];
    blkrepl_image *image[2];
    blkrepl_throttle *throttle;
};

/* Somebody who wants to pass, and when it did. */
struct passer {
    struct throttle_waiter waiter;
    unsigned order; /* from 1; 0: it has not run */
};

static unsigned passed;

static void passer_run(struct ready *ready)
{
    CONTAINER_OF(ready, struct passer, waiter.ready)->order = ++passed;
}

static blkrepl_throttle_options limits(uint64_t bytes_per_sec, uint64_t ops_per_sec)
{
    return (blkrepl_throttle_options){.struct_size = sizeof(blkrepl_throttle_options),
                                      .bytes_per_sec = bytes_per_sec,
                                      .ops_per_sec = ops_per_sec};
}

static void bench_open(struct bench *b, uint64_t bytes_per_sec, uint64_t ops_per_sec)
{
    blkrepl_throttle_options o = limits(bytes_per_sec, ops_per_sec);

    memset(b, 0, sizeof *b);
    passed = 0;
    rig_open(&b->rig, &(blkrepl_context_options){.lane_count = 2, .requests_max = 8});
    for (int i = 0; i < 2; i++) {
        script_init(&b->disk[i], DISK);
        b->disk[i].info.request_alignment = 512;
        b->image[i] = script_open(&b->disk[i], &b->rig);
    }
    assert_int_equal(blkrepl_throttle_create(b->rig.ctx, &o, &b->throttle), 0);
}

static void bench_close(struct bench *b)
{
    blkrepl_throttle_free(b->throttle);
    for (int i = 0; i < 2; i++) {
        blkrepl_image_close(b->image[i]);
    }
    rig_close(&b->rig);
    script_fini(&b->disk[0]);
    script_fini(&b->disk[1]);
}

static blkrepl_throttle_info query(const struct bench *b)
{
    blkrepl_throttle_info info = {.struct_size = sizeof info};

    assert_int_equal(blkrepl_throttle_query(b->throttle, &info), 0);
    return info;
}

static bool pass(struct bench *b, struct passer *passer, uint64_t bytes)
{
    bool at_once;

    *passer = (struct passer){.waiter = {.ready = {.run = passer_run}, .bytes = bytes}};
    blkrepl__enter(b->rig.ctx);
    at_once = blkrepl__throttle_pass(b->throttle, &passer->waiter);
    blkrepl__leave(b->rig.ctx, 0);
    return at_once;
}

static void leave(struct bench *b, struct passer *passer)
{
    blkrepl__enter(b->rig.ctx);
    blkrepl__throttle_leave(b->throttle, &passer->waiter);
    blkrepl__leave(b->rig.ctx, 0);
}

static bool timer_runs(const struct bench *b)
{
    return list_linked(&b->throttle->timer.link);
}

static unsigned char memory[64 * 1024];

static void write_to(struct bench *b, int image, uint32_t lane, uint64_t offset, uint64_t bytes,
                     struct done *done)
{
    static blkrepl_iovec iovs[64];
    static unsigned next;
    blkrepl_iovec *iov = &iovs[next++ % 64];
    blkrepl_completion completion = done_of(done);

    *iov = (blkrepl_iovec){.base = memory, .len = (size_t)bytes};
    assert_int_equal(blkrepl_image_write(b->image[image], lane, offset, iov, 1, 0, &completion), 0);
}

static void use(struct bench *b, int image)
{
    assert_int_equal(blkrepl_image_set_throttle(b->image[image], b->throttle), 0);
}

/* ---- Creating, asking, freeing ---------------------------------------------- */

static void throttle_refuses_bad_arguments(void **state)
{
    struct bench b;
    blkrepl_throttle_options o = limits(1, 1);
    blkrepl_throttle_info info = {.struct_size = sizeof info};
    blkrepl_throttle *none = (blkrepl_throttle *)memory;
    struct {
        blkrepl_throttle_options o;
        uint64_t more;
    } newer = {.o = limits(1, 1), .more = 1};

    (void)state;
    bench_open(&b, 0, 0);
    newer.o.struct_size = sizeof newer;
    assert_int_equal(blkrepl_throttle_create(NULL, &o, &none), -EINVAL);
    assert_null(none);
    assert_int_equal(blkrepl_throttle_create(b.rig.ctx, &o, NULL), -EINVAL);
    assert_int_equal(blkrepl_throttle_create(b.rig.ctx, &newer.o, &none), BLKREPL_ERR_VERSION);
    assert_int_equal(blkrepl_throttle_set(NULL, &o), -EINVAL);
    assert_int_equal(blkrepl_throttle_query(NULL, &info), -EINVAL);
    assert_int_equal(blkrepl_throttle_query(b.throttle, NULL), -EINVAL);
    info.struct_size = sizeof info - 1;
    assert_int_equal(blkrepl_throttle_query(b.throttle, &info), -EINVAL);
    o.flags = 1;
    assert_int_equal(blkrepl_throttle_create(b.rig.ctx, &o, &none), -EINVAL);
    assert_int_equal(blkrepl_throttle_set(b.throttle, &o), -EINVAL);
    o = limits(1, 1);
    o.struct_size--;
    assert_int_equal(blkrepl_throttle_create(b.rig.ctx, &o, &none), -EINVAL);
    assert_int_equal(query(&b).bytes_per_sec, 0); /* nothing has changed */
    b.rig.heap.fail_at = b.rig.heap.calls + 1;
    assert_int_equal(blkrepl_throttle_create(b.rig.ctx, NULL, &none), -ENOMEM);
    blkrepl_throttle_free(NULL);
    assert_int_equal(blkrepl_image_set_throttle(NULL, b.throttle), -EINVAL);
    bench_close(&b);
}

static void throttle_of_another_context_is_refused(void **state)
{
    struct bench b;
    struct bench other;

    (void)state;
    bench_open(&b, 1, 0);
    bench_open(&other, 1, 0);
    assert_int_equal(blkrepl_image_set_throttle(b.image[0], other.throttle), -EINVAL);
    assert_null(b.image[0]->throttle);
    bench_close(&other);
    bench_close(&b);
}

static void throttle_tells_its_limits_and_has_an_id_of_its_own(void **state)
{
    struct bench b;
    blkrepl_throttle *second;
    blkrepl_throttle_options o = limits(1000, 10);
    blkrepl_throttle_info info;

    (void)state;
    bench_open(&b, 1, 2);
    o.burst_bytes = 77;
    o.burst_ops = 5;
    assert_int_equal(blkrepl_throttle_create(b.rig.ctx, NULL, &second), 0);
    assert_int_equal(blkrepl_throttle_set(b.throttle, &o), 0);
    info = query(&b);
    assert_int_equal(info.struct_size, sizeof info);
    assert_int_equal(info.bytes_per_sec, 1000);
    assert_int_equal(info.ops_per_sec, 10);
    assert_int_equal(info.burst_bytes, 77);
    assert_int_equal(info.burst_ops, 5);
    assert_int_equal(info.bytes + info.ops + info.delayed_ops + info.waiting, 0);
    assert_true(info.id != 0 && info.id != second->id && info.id != b.image[0]->id);
    blkrepl_throttle_free(second);
    bench_close(&b);
}

static void throttle_that_is_in_use_outlives_its_handle(void **state)
{
    struct bench b;
    struct done done[2];

    (void)state;
    bench_open(&b, 0, 1);
    use(&b, 0);
    blkrepl_throttle_free(b.throttle);
    write_to(&b, 0, 0, 0, 512, &done[0]);
    write_to(&b, 0, 0, 0, 512, &done[1]);
    rig_poll(&b.rig);
    done_assert(&done[0], 0);
    ASSERT_PENDING(&done[1]);
    rig_advance(&b.rig, SECOND);
    done_assert(&done[1], 0);
    b.throttle = NULL;
    bench_close(&b); /* the image has given it back: the heap is empty */
}

/* ---- The row ------------------------------------------------------------------ */

static void throttle_without_limits_counts_and_lets_pass(void **state)
{
    struct bench b;
    struct passer p;

    (void)state;
    bench_open(&b, 0, 0);
    for (int i = 0; i < 100; i++) {
        assert_true(pass(&b, &p, MIB));
    }
    assert_int_equal(query(&b).bytes, 100 * MIB);
    assert_int_equal(query(&b).ops, 100);
    assert_int_equal(query(&b).delayed_ops, 0);
    assert_false(timer_runs(&b));
    bench_close(&b);
}

static void throttle_lets_through_when_nothing_is_owed(void **state)
{
    struct bench b;
    struct passer p[3];

    (void)state;
    bench_open(&b, 1000, 0);
    assert_true(pass(&b, &p[0], 5000)); /* larger than any burst */
    assert_false(pass(&b, &p[1], 1000));
    assert_false(pass(&b, &p[2], 1));
    assert_int_equal(query(&b).waiting, 2);
    assert_int_equal(query(&b).ops, 1);
    rig_advance(&b.rig, 5 * SECOND - 1);
    assert_int_equal(p[1].order, 0);
    rig_advance(&b.rig, 1);
    assert_int_equal(p[1].order, 1);
    assert_int_equal(p[2].order, 0); /* the one before it is owed now */
    assert_int_equal(query(&b).bytes, 6000);
    assert_int_equal(query(&b).delayed_ops, 1);
    rig_advance(&b.rig, SECOND);
    assert_int_equal(p[2].order, 2);
    assert_int_equal(query(&b).ops, 3);
    assert_int_equal(query(&b).delayed_ops, 2);
    assert_int_equal(query(&b).waiting, 0);
    assert_false(timer_runs(&b));
    bench_close(&b);
}

static void throttle_keeps_the_stricter_of_two_limits(void **state)
{
    struct bench b;
    struct passer p[3];

    (void)state;
    bench_open(&b, 1000, 10);
    assert_true(pass(&b, &p[0], 1)); /* a millisecond of bytes, a tenth of a second of ops */
    assert_false(pass(&b, &p[1], 500));
    rig_advance(&b.rig, SECOND / 10);
    assert_int_equal(p[1].order, 1);
    assert_false(pass(&b, &p[2], 1));
    rig_advance(&b.rig, SECOND / 2 - SECOND / 10 + SECOND / 1000 - 1);
    assert_int_equal(p[2].order, 0); /* now the bytes are what it waits for */
    rig_advance(&b.rig, SECOND / 10);
    assert_int_equal(p[2].order, 2);
    bench_close(&b);
}

static void throttle_burst_is_what_was_set_after_idleness(void **state)
{
    struct bench b;
    blkrepl_throttle_options o = limits(0, 10);
    struct passer p[8];
    int count = 0;

    (void)state;
    bench_open(&b, 1, 1);
    o.burst_ops = 5;
    assert_int_equal(blkrepl_throttle_set(b.throttle, &o), 0);
    rig_advance(&b.rig, 100 * SECOND);
    while (pass(&b, &p[count], MIB)) {
        count++;
    }
    assert_int_equal(count, 6); /* five on credit, and one that is paid afterwards */
    o = limits(1000, 0);
    o.burst_bytes = 5000;
    assert_int_equal(blkrepl_throttle_set(b.throttle, &o), 0);
    assert_int_equal(p[6].order, 1);
    rig_advance(&b.rig, 2000 * SECOND);
    for (count = 0; pass(&b, &p[count], 2500); count++) {
    }
    assert_int_equal(count, 3);
    leave(&b, &p[3]);
    bench_close(&b);
}

static void throttle_begins_with_nothing_saved_up(void **state)
{
    struct bench b;
    blkrepl_throttle *first;
    blkrepl_throttle_options o = limits(0, 10);
    struct passer p[8];
    int count = 0;

    (void)state;
    bench_open(&b, 0, 0);
    first = b.throttle;
    o.burst_ops = 4;
    assert_int_equal(blkrepl_throttle_create(b.rig.ctx, &o, &b.throttle), 0);
    while (pass(&b, &p[count], 1)) {
        count++;
    }
    assert_int_equal(count, 1);
    leave(&b, &p[1]);
    blkrepl_throttle_free(first);
    bench_close(&b);
}

/* The timer comes late: who waited all the time is not idle. */
static void throttle_keeps_the_average_when_the_timer_is_late(void **state)
{
    struct bench b;
    struct passer p[30];

    (void)state;
    bench_open(&b, 0, 10);
    assert_true(pass(&b, &p[0], 0));
    for (int i = 1; i < 30; i++) {
        assert_false(pass(&b, &p[i], 0));
    }
    rig_advance(&b.rig, SECOND);
    assert_int_equal(passed, 10);
    rig_advance(&b.rig, SECOND + SECOND / 2);
    assert_int_equal(passed, 25);
    rig_advance(&b.rig, 100 * SECOND);
    assert_int_equal(passed, 29);
    assert_true(pass(&b, &p[0], 0)); /* a burst of one, and one that is paid afterwards */
    assert_true(pass(&b, &p[0], 0));
    assert_false(pass(&b, &p[0], 0));
    leave(&b, &p[0]);
    bench_close(&b);
}

static void throttle_row_is_first_come_first_served(void **state)
{
    struct bench b;
    struct passer p[4];

    (void)state;
    bench_open(&b, 0, 10);
    assert_true(pass(&b, &p[0], 0));
    for (int i = 1; i < 4; i++) {
        assert_false(pass(&b, &p[i], 0));
    }
    for (unsigned i = 1; i < 4; i++) {
        rig_advance(&b.rig, SECOND / 10);
        assert_int_equal(p[i].order, i);
        assert_int_equal(passed, i);
    }
    bench_close(&b);
}

static void throttle_nobody_overtakes_the_row(void **state)
{
    struct bench b;
    struct passer p[3];

    (void)state;
    bench_open(&b, 0, 10);
    assert_true(pass(&b, &p[0], 0));
    assert_false(pass(&b, &p[1], 0));
    b.rig.now += SECOND; /* all is paid, the timer has not run yet */
    blkrepl__enter(b.rig.ctx);
    p[2] = (struct passer){.waiter = {.ready = {.run = passer_run}}};
    assert_false(blkrepl__throttle_pass(b.throttle, &p[2].waiter));
    blkrepl__leave(b.rig.ctx, 0);
    rig_poll(&b.rig);
    assert_int_equal(p[1].order, 1);
    assert_int_equal(p[2].order, 2); /* on credit */
    bench_close(&b);
}

static void throttle_take_is_never_delayed_and_is_owed(void **state)
{
    struct bench b;
    struct passer p[2];

    (void)state;
    bench_open(&b, 0, 10);
    assert_true(pass(&b, &p[0], 0));
    assert_false(pass(&b, &p[1], 0));
    blkrepl__enter(b.rig.ctx);
    blkrepl__throttle_take(b.throttle, 7);
    blkrepl__leave(b.rig.ctx, 0);
    assert_int_equal(query(&b).ops, 2);
    assert_int_equal(query(&b).bytes, 7);
    rig_advance(&b.rig, SECOND / 10);
    assert_int_equal(p[1].order, 0);
    rig_advance(&b.rig, SECOND / 10);
    assert_int_equal(p[1].order, 1);
    bench_close(&b);
}

static void throttle_set_lets_the_row_go_by_the_new_limits(void **state)
{
    struct bench b;
    struct passer p[4];
    blkrepl_throttle_options o = limits(0, 10);

    (void)state;
    bench_open(&b, 1, 0);
    assert_true(pass(&b, &p[0], UINT64_MAX)); /* owed for ever */
    for (int i = 1; i < 4; i++) {
        assert_false(pass(&b, &p[i], 1));
    }
    rig_advance(&b.rig, 1000000 * SECOND);
    assert_int_equal(passed, 0);
    assert_int_equal(blkrepl_throttle_set(b.throttle, &o), 0);
    assert_int_equal(passed, 1); /* forgiven: the first goes at once */
    rig_advance(&b.rig, SECOND / 10);
    assert_int_equal(passed, 2);
    assert_int_equal(blkrepl_throttle_set(b.throttle, NULL), 0);
    assert_int_equal(p[3].order, 3);
    assert_false(timer_runs(&b));
    bench_close(&b);
}

static void throttle_who_leaves_does_not_run_and_is_not_counted(void **state)
{
    struct bench b;
    struct passer p[4];

    (void)state;
    bench_open(&b, 0, 10);
    assert_true(pass(&b, &p[0], 0));
    leave(&b, &p[0]); /* was never in the row */
    for (int i = 1; i < 4; i++) {
        assert_false(pass(&b, &p[i], 1));
    }
    leave(&b, &p[1]);
    leave(&b, &p[1]);
    leave(&b, &p[2]);
    assert_int_equal(query(&b).waiting, 1);
    assert_true(timer_runs(&b));
    rig_advance(&b.rig, SECOND / 10);
    assert_int_equal(p[3].order, 1);
    assert_int_equal(query(&b).bytes, 1);
    assert_false(pass(&b, &p[1], 1));
    leave(&b, &p[1]);
    assert_false(timer_runs(&b));
    assert_int_equal(query(&b).waiting, 0);
    blkrepl__throttle_leave(NULL, &p[1].waiter);
    bench_close(&b);
}

static void throttle_who_leaves_after_it_was_let_through_stays_counted(void **state)
{
    struct bench b;
    struct passer p[2];

    (void)state;
    bench_open(&b, 0, 10);
    assert_true(pass(&b, &p[0], 0));
    assert_false(pass(&b, &p[1], 9));
    blkrepl__enter(b.rig.ctx);
    b.throttle->timer.expired(&b.throttle->timer); /* too early */
    assert_true(p[1].waiter.waits);
    b.rig.now += SECOND;
    b.throttle->timer.expired(&b.throttle->timer);
    assert_false(p[1].waiter.waits);
    blkrepl__throttle_leave(b.throttle, &p[1].waiter);
    blkrepl__leave(b.rig.ctx, 0);
    rig_poll(&b.rig);
    assert_int_equal(p[1].order, 0);
    assert_int_equal(query(&b).ops, 2);
    assert_int_equal(query(&b).bytes, 9);
    bench_close(&b);
}

/* ---- Guests --------------------------------------------------------------------- */

static void throttle_is_shared_by_images_and_jobs(void **state)
{
    struct bench b;
    struct passer job;
    struct done done[4];

    (void)state;
    bench_open(&b, 0, 10);
    use(&b, 0);
    use(&b, 1);
    write_to(&b, 0, 0, 0, 512, &done[0]);
    write_to(&b, 1, 0, 0, 512, &done[1]);
    assert_false(pass(&b, &job, 100));
    write_to(&b, 0, 0, 0, 512, &done[2]);
    write_to(&b, 1, 0, 0, 512, &done[3]);
    rig_poll(&b.rig);
    done_assert(&done[0], 0);
    ASSERT_PENDING(&done[1]);
    assert_int_equal(query(&b).waiting, 4);
    rig_advance(&b.rig, SECOND / 10);
    done_assert(&done[1], 0);
    assert_int_equal(job.order, 0);
    rig_advance(&b.rig, SECOND / 10);
    assert_int_equal(job.order, 1);
    ASSERT_PENDING(&done[2]);
    rig_advance(&b.rig, SECOND / 10);
    done_assert(&done[2], 0);
    ASSERT_PENDING(&done[3]);
    rig_advance(&b.rig, SECOND / 10);
    done_assert(&done[3], 0);
    assert_int_equal(query(&b).bytes, 4 * 512 + 100);
    assert_int_equal(query(&b).delayed_ops, 4);
    bench_close(&b);
}

static void throttle_delays_reads_writes_zeroes_and_discards_alone(void **state)
{
    struct bench b;
    struct done done[7];
    blkrepl_completion c[7];
    blkrepl_iovec iov = {memory, 1000};
    blkrepl_extent extent;

    (void)state;
    bench_open(&b, 0, 1);
    use(&b, 0);
    write_to(&b, 0, 0, 0, 512, &done[0]);
    for (int i = 1; i < 7; i++) {
        c[i] = done_of(&done[i]);
    }
    assert_int_equal(blkrepl_image_read(b.image[0], 0, 0, &iov, 1, 0, &c[1]), 0);
    assert_int_equal(blkrepl_image_write_zeroes(b.image[0], 0, 0, 2000, 0, &c[2]), 0);
    assert_int_equal(blkrepl_image_discard(b.image[0], 0, 512, 1024, 0, &c[3]), 0);
    assert_int_equal(blkrepl_image_write(b.image[0], 0, 0, NULL, 0, 0, &c[4]), 0);
    assert_int_equal(blkrepl_image_flush(b.image[0], 0, &c[5]), 0);
    assert_int_equal(blkrepl_image_status(b.image[0], 0, 0, 512, &extent, 1, &c[6]), 0);
    rig_poll(&b.rig);
    done_assert(&done[0], 0);
    done_assert(&done[5], 0);
    done_assert(&done[6], 0);
    for (int i = 1; i < 5; i++) {
        ASSERT_PENDING(&done[i]);
        rig_advance(&b.rig, SECOND);
        done_assert(&done[i], 0);
    }
    assert_int_equal(query(&b).bytes, 512 + 1000 + 2000 + 1024);
    assert_int_equal(query(&b).ops, 5);
    assert_int_equal(query(&b).delayed_ops, 4);
    bench_close(&b);
}

static void throttle_does_not_count_what_is_refused(void **state)
{
    struct bench b;
    struct done done;
    blkrepl_completion c = done_of(&done);

    (void)state;
    bench_open(&b, 0, 1);
    blkrepl_image_close(b.image[0]);
    rig_poll(&b.rig);
    script_fini(&b.disk[0]);
    script_init(&b.disk[0], DISK);
    b.disk[0].info.opcodes &= ~(1u << BLKREPL_OP_ZEROES);
    b.image[0] = script_open(&b.disk[0], &b.rig);
    use(&b, 0);
    assert_int_equal(blkrepl_image_write_zeroes(b.image[0], 0, 0, 512, BLKREPL_IO_NO_FALLBACK, &c),
                     0);
    rig_poll(&b.rig);
    done_assert(&done, -ENOTSUP);
    assert_int_equal(query(&b).ops, 0);
    bench_close(&b);
}

/* A write that waits here has no place among those that overlap; but it is one of the
 * image's writes: nobody makes the image a target meanwhile. */
static void throttle_holds_a_write_without_a_range(void **state)
{
    struct bench b;
    struct done done[2];

    (void)state;
    bench_open(&b, 0, 1);
    use(&b, 0);
    write_to(&b, 0, 0, 0, 512, &done[0]);
    rig_poll(&b.rig);
    write_to(&b, 0, 0, 0, 512, &done[1]);
    assert_int_equal(b.image[0]->leaf->ranges.tree.count, 0);
    assert_int_equal(b.image[0]->writes, 1);
    b.disk[0].hold = EVERY;
    rig_advance(&b.rig, SECOND);
    assert_int_equal(b.image[0]->leaf->ranges.tree.count, 1);
    assert_int_equal(b.image[0]->writes, 1);
    script_end_all(&b.disk[0]);
    rig_poll(&b.rig);
    done_assert(&done[1], 0);
    assert_int_equal(b.image[0]->writes, 0);
    bench_close(&b);
}

static blkrepl_bracket bracket(uint32_t opcode, uint64_t bytes)
{
    return (blkrepl_bracket){
        .struct_size = sizeof(blkrepl_bracket), .opcode = opcode, .bytes = bytes};
}

static void throttle_makes_brackets_wait(void **state)
{
    struct bench b;
    blkrepl_bracket write = bracket(BLKREPL_OP_WRITE, 1024);
    blkrepl_bracket flush = bracket(BLKREPL_OP_FLUSH, 0);
    struct done go[4];
    blkrepl_completion c[4];
    uint64_t token[4];

    (void)state;
    bench_open(&b, 0, 1);
    use(&b, 0);
    for (int i = 0; i < 4; i++) {
        c[i] = done_of(&go[i]);
    }
    assert_int_equal(blkrepl_write_begin(b.image[0], &write, &c[0], &token[0]), 0);
    assert_int_equal(blkrepl_write_end(b.rig.ctx, token[0], 0, NULL, 0, NULL), 0);
    assert_int_equal(blkrepl_write_begin(b.image[0], &write, &c[1], &token[1]), BLKREPL_WAIT);
    assert_int_equal(blkrepl_write_begin(b.image[0], &write, &c[2], &token[2]), BLKREPL_WAIT);
    assert_int_equal(blkrepl_write_begin(b.image[0], &flush, &c[3], &token[3]), 0);
    assert_int_equal(blkrepl_write_end(b.rig.ctx, token[3], 0, NULL, 0, NULL), 0);
    assert_int_equal(b.image[0]->writes, 2);
    assert_int_equal(blkrepl_write_cancel(b.rig.ctx, token[1]), BLKREPL_WAIT);
    assert_int_equal(b.image[0]->writes, 1);
    rig_poll(&b.rig);
    done_assert(&go[1], -ECANCELED);
    ASSERT_PENDING(&go[2]);
    rig_advance(&b.rig, SECOND);
    done_assert(&go[2], 0);
    assert_int_equal(blkrepl_write_end(b.rig.ctx, token[2], 0, NULL, 0, NULL), 0);
    assert_int_equal(query(&b).ops, 2); /* what was cancelled has not passed */
    assert_int_equal(query(&b).bytes, 2048);
    bench_close(&b);
}

static void throttle_lets_a_lane_go_that_another_polls_for(void **state)
{
    struct bench b;
    struct done done[2];

    (void)state;
    bench_open(&b, 0, 1);
    use(&b, 0);
    write_to(&b, 0, 1, 0, 512, &done[0]);
    write_to(&b, 0, 1, 0, 512, &done[1]);
    blkrepl_poll(b.rig.ctx, 1, 0);
    done_assert(&done[0], 0);
    b.rig.now += SECOND;
    blkrepl_poll(b.rig.ctx, 0, 0);
    blkrepl_poll(b.rig.ctx, 1, 0);
    blkrepl_poll(b.rig.ctx, 1, 0);
    done_assert(&done[1], 0);
    bench_close(&b);
}

static void throttle_taken_away_lets_all_of_the_image_pass_in_order(void **state)
{
    struct bench b;
    struct done done[6];

    (void)state;
    bench_open(&b, 0, 1);
    use(&b, 0);
    use(&b, 1);
    for (int i = 0; i < 4; i++) {
        write_to(&b, 0, 0, 0, 512, &done[i]);
    }
    write_to(&b, 1, 0, 0, 512, &done[4]);
    write_to(&b, 1, 0, 0, 512, &done[5]);
    use(&b, 0); /* the same again: nothing changes */
    rig_poll(&b.rig);
    ASSERT_PENDING(&done[1]);
    assert_int_equal(blkrepl_image_set_throttle(b.image[0], NULL), 0);
    rig_poll(&b.rig);
    for (int i = 0; i < 4; i++) {
        done_assert(&done[i], 0);
        assert_true(i == 0 || done[i].order == done[i - 1].order + 1);
    }
    ASSERT_PENDING(&done[4]); /* of another image */
    assert_int_equal(query(&b).waiting, 2);
    assert_int_equal(query(&b).ops, 1);
    rig_advance(&b.rig, SECOND);
    done_assert(&done[4], 0);
    rig_advance(&b.rig, SECOND);
    done_assert(&done[5], 0);
    bench_close(&b);
}

static void throttle_exchanged_counts_nothing_of_who_waited(void **state)
{
    struct bench b;
    blkrepl_throttle *second;
    blkrepl_throttle_options o = limits(0, 1);
    blkrepl_throttle_info info = {.struct_size = sizeof info};
    struct done done[3];

    (void)state;
    bench_open(&b, 0, 1);
    assert_int_equal(blkrepl_throttle_create(b.rig.ctx, &o, &second), 0);
    use(&b, 0);
    write_to(&b, 0, 0, 0, 512, &done[0]);
    write_to(&b, 0, 0, 0, 512, &done[1]);
    /* Twice before anybody runs. */
    blkrepl__enter(b.rig.ctx);
    blkrepl__guests_pass(b.image[0]);
    blkrepl__guests_pass(b.image[0]);
    blkrepl__leave(b.rig.ctx, 0);
    assert_int_equal(blkrepl_image_set_throttle(b.image[0], second), 0);
    blkrepl_throttle_free(second);
    write_to(&b, 0, 0, 0, 512, &done[2]);
    rig_poll(&b.rig);
    for (int i = 0; i < 3; i++) {
        done_assert(&done[i], 0);
    }
    assert_int_equal(blkrepl_throttle_query(second, &info), 0); /* the image has it still */
    assert_int_equal(info.ops, 1);
    assert_int_equal(query(&b).ops, 1);
    bench_close(&b);
}

static void throttle_keeps_the_image_from_the_quick_way(void **state)
{
    struct bench b;
    struct script disk;
    blkrepl_image *image;
    struct done done;
    blkrepl_iovec iov = {memory, 512};
    blkrepl_completion c = done_of(&done);

    (void)state;
    bench_open(&b, 0, 0);
    script_init(&disk, DISK);
    image = script_open_quick(&disk, &b.rig);
    assert_true(atomic_load(&image->leaf->port.quick));
    assert_int_equal(blkrepl_image_set_throttle(image, b.throttle), 0);
    for (int i = 0; i < 1000; i++) {
        assert_false(atomic_load(&image->leaf->port.quick));
        assert_int_equal(blkrepl_image_read(image, 0, 0, &iov, 1, 0, &c), 0);
        rig_poll(&b.rig);
    }
    assert_int_equal(query(&b).ops, 1000);
    assert_int_equal(blkrepl_image_set_throttle(image, NULL), 0);
    for (int i = 0; i < 1000; i++) {
        assert_int_equal(blkrepl_image_read(image, 0, 0, &iov, 1, 0, &c), 0);
        rig_poll(&b.rig);
    }
    assert_true(atomic_load(&image->leaf->port.quick));
    blkrepl_image_close(image);
    rig_poll(&b.rig);
    script_fini(&disk);
    bench_close(&b);
}

static void throttle_holds_nobody_when_the_context_is_shut(void **state)
{
    struct bench b;
    struct passer p[2];
    struct done done[3];
    struct done go;
    blkrepl_completion c = done_of(&go);
    blkrepl_bracket write = bracket(BLKREPL_OP_WRITE, 1024);
    blkrepl_throttle_options o = limits(1, 1);
    blkrepl_throttle *none;
    uint64_t token;

    (void)state;
    bench_open(&b, 0, 1);
    use(&b, 0);
    for (int i = 0; i < 3; i++) {
        write_to(&b, 0, 0, 0, 512, &done[i]);
    }
    assert_int_equal(blkrepl_write_begin(b.image[0], &write, &c, &token), BLKREPL_WAIT);
    assert_false(pass(&b, &p[0], 1));
    assert_int_equal(blkrepl_context_free(b.rig.ctx), -EBUSY);
    rig_poll(&b.rig);
    for (int i = 0; i < 3; i++) {
        done_assert(&done[i], 0);
    }
    assert_int_equal(go.calls, 1);
    assert_int_equal(blkrepl_write_end(b.rig.ctx, token, 0, NULL, 0, NULL), 0);
    assert_int_equal(p[0].order, 1);
    assert_int_equal(query(&b).waiting, 0);
    assert_int_equal(query(&b).ops, 5);
    assert_false(timer_runs(&b));
    assert_true(pass(&b, &p[1], 1)); /* from now on */
    assert_int_equal(blkrepl_throttle_create(b.rig.ctx, &o, &none), -ESHUTDOWN);
    assert_null(none);
    assert_int_equal(blkrepl_image_set_throttle(b.image[0], NULL), -ESHUTDOWN);
    assert_int_equal(blkrepl_throttle_set(b.throttle, &o), 0);
    bench_close(&b);
}

static void throttle_handle_keeps_the_context(void **state)
{
    struct bench b;

    (void)state;
    bench_open(&b, 0, 1);
    blkrepl_image_close(b.image[0]);
    blkrepl_image_close(b.image[1]);
    b.image[0] = b.image[1] = NULL;
    rig_poll(&b.rig);
    assert_int_equal(blkrepl_context_free(b.rig.ctx), -EBUSY);
    assert_non_null(strstr(blkrepl_error_message(), "1 throttle handles"));
    bench_close(&b);
}

#ifdef BLKREPL_HOOKS
static unsigned stretched;

static bool stretch_throttle(enum stretch_site site)
{
    return site == STRETCH_THROTTLE && stretched++ % 3 < 2;
}

static void throttle_that_is_stretched_lets_everybody_through_later(void **state)
{
    struct bench b;
    struct done done[6];

    (void)state;
    bench_open(&b, 0, 0);
    use(&b, 0);
    blkrepl__stretch_hook = stretch_throttle;
    for (int i = 0; i < 6; i++) {
        write_to(&b, 0, 0, 512u * (unsigned)i, 512, &done[i]);
    }
    rig_poll(&b.rig);
    blkrepl__stretch_hook = NULL;
    for (int i = 0; i < 6; i++) {
        done_assert(&done[i], 0);
    }
    assert_true(stretched > 0 && query(&b).delayed_ops > 0);
    bench_close(&b);
}
#endif

#define WAITING 20

/* Those that have been let through, and have not begun yet, are not overtaken: writes
 * over one range are given in the order in which they were accepted. */
static void throttle_lets_nobody_overtake(void **state)
{
    struct bench b;
    struct done done[WAITING + 2];
    blkrepl_throttle_options o = limits(0, 1);

    (void)state;
    memset(&b, 0, sizeof b);
    rig_open(&b.rig, &(blkrepl_context_options){.completions_max = 1});
    for (int i = 0; i < 2; i++) {
        script_init(&b.disk[i], DISK);
        b.image[i] = script_open(&b.disk[i], &b.rig);
    }
    assert_int_equal(blkrepl_throttle_create(b.rig.ctx, &o, &b.throttle), 0);
    use(&b, 0);
    b.disk[0].hold = EVERY;
    for (unsigned i = 0; i <= WAITING; i++) { /* the first passes, and owes a second */
        write_to(&b, 0, 0, 0, 4096 - i, &done[i]);
    }
    assert_int_equal(script_count(&b.disk[0], BLKREPL_OP_WRITE), 1);
    assert_int_equal(blkrepl_image_set_throttle(b.image[0], NULL), 0);
    assert_true(b.image[0]->throttled > 0); /* not all have begun */
    write_to(&b, 0, 0, 0, 4096 - WAITING - 1, &done[WAITING + 1]);
    for (unsigned i = 0; i < 2 * WAITING; i++) {
        script_end_all(&b.disk[0]);
        rig_poll(&b.rig);
    }
    for (unsigned i = 0; i < WAITING + 2; i++) {
        done_assert(&done[i], 0);
        assert_int_equal(b.disk[0].notes[i].bytes, 4096 - i);
    }
    bench_close(&b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(throttle_refuses_bad_arguments),
        cmocka_unit_test(throttle_of_another_context_is_refused),
        cmocka_unit_test(throttle_tells_its_limits_and_has_an_id_of_its_own),
        cmocka_unit_test(throttle_that_is_in_use_outlives_its_handle),
        cmocka_unit_test(throttle_without_limits_counts_and_lets_pass),
        cmocka_unit_test(throttle_lets_through_when_nothing_is_owed),
        cmocka_unit_test(throttle_keeps_the_stricter_of_two_limits),
        cmocka_unit_test(throttle_burst_is_what_was_set_after_idleness),
        cmocka_unit_test(throttle_begins_with_nothing_saved_up),
        cmocka_unit_test(throttle_keeps_the_average_when_the_timer_is_late),
        cmocka_unit_test(throttle_row_is_first_come_first_served),
        cmocka_unit_test(throttle_nobody_overtakes_the_row),
        cmocka_unit_test(throttle_take_is_never_delayed_and_is_owed),
        cmocka_unit_test(throttle_set_lets_the_row_go_by_the_new_limits),
        cmocka_unit_test(throttle_who_leaves_does_not_run_and_is_not_counted),
        cmocka_unit_test(throttle_who_leaves_after_it_was_let_through_stays_counted),
        cmocka_unit_test(throttle_is_shared_by_images_and_jobs),
        cmocka_unit_test(throttle_delays_reads_writes_zeroes_and_discards_alone),
        cmocka_unit_test(throttle_does_not_count_what_is_refused),
        cmocka_unit_test(throttle_holds_a_write_without_a_range),
        cmocka_unit_test(throttle_makes_brackets_wait),
        cmocka_unit_test(throttle_lets_a_lane_go_that_another_polls_for),
        cmocka_unit_test(throttle_taken_away_lets_all_of_the_image_pass_in_order),
        cmocka_unit_test(throttle_exchanged_counts_nothing_of_who_waited),
        cmocka_unit_test(throttle_keeps_the_image_from_the_quick_way),
        cmocka_unit_test(throttle_holds_nobody_when_the_context_is_shut),
        cmocka_unit_test(throttle_handle_keeps_the_context),
        cmocka_unit_test(throttle_lets_nobody_overtake),
#ifdef BLKREPL_HOOKS
        cmocka_unit_test(throttle_that_is_stretched_lets_everybody_through_later),
#endif
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
