/* SPDX-License-Identifier: MIT */
#include "block/guest.h"

#include "unit/rig.h"

#define REQUESTS 8
#define DISK (16 * MIB)
#define EVERY 0x7eu

/* A tap that answers what the test says. */
struct fake_tap {
    struct tap tap;
    enum tap_answer answer;
    int error;
    unsigned asked;
    unsigned forgotten;
    uint64_t start; /* of the last question */
    uint64_t end;
    struct guest *guest;
};

struct bench {
    struct rig rig;
    struct script disk;
    blkrepl_image *image;
    struct fake_tap tap;
};

static enum tap_answer fake_before(struct tap *tap, struct guest *guest, uint64_t start,
                                   uint64_t end)
{
    struct fake_tap *fake = CONTAINER_OF(tap, struct fake_tap, tap);

    fake->asked++;
    fake->start = start;
    fake->end = end;
    fake->guest = guest;
    guest->tap_error = fake->error;
    if (fake->answer == TAP_WAIT) {
        guest->tap_parked = tap;
    } else if (guest->tap_parked == tap) {
        guest->tap_parked = NULL;
    }
    return fake->answer;
}

static void fake_forget(struct tap *tap, struct guest *guest)
{
    assert_ptr_equal(guest->tap_parked, tap);
    guest->tap_parked = NULL;
    CONTAINER_OF(tap, struct fake_tap, tap)->forgotten++;
}

static struct guest *guest_at(const struct bench *b, uint32_t index)
{
    return (struct guest *)b->rig.ctx->guests + index;
}

/* Invariants 1 to 3 of guest.c, of every guest. */
static void check(const struct bench *b)
{
    for (uint32_t i = 0; i < REQUESTS; i++) {
        const struct guest *g = guest_at(b, i);
        bool on_its_way = g->phase >= GUEST_QUEUED && g->phase <= GUEST_GO;
        bool write = guest_writes(g) && g->bytes > 0;

        assert_int_equal(range_live(&g->range), on_its_way && write);
        assert_int_equal(
            range_live(&g->range) && g->range.given,
            write && (g->phase == GUEST_GIVEN || g->phase == GUEST_GO_DUE || g->phase == GUEST_GO));
        assert_int_equal(list_linked(&g->callback.link),
                         g->phase == GUEST_GO_DUE || g->phase == GUEST_ENDED);
    }
}

/* All lanes together have REQUESTS. */
static void bench_open_lanes(struct bench *b, uint32_t lanes, uint32_t depth)
{
    memset(b, 0, sizeof *b);
    rig_open(&b->rig,
             &(blkrepl_context_options){.lane_count = lanes, .requests_max = REQUESTS / lanes});
    script_init(&b->disk, DISK);
    b->disk.info.queue_depth = depth;
    b->disk.info.request_alignment = 512;
    b->image = script_open(&b->disk, &b->rig);
    b->tap.tap.before = fake_before;
    b->tap.tap.forget = fake_forget;
    b->tap.answer = TAP_PASS;
}

static void bench_open(struct bench *b)
{
    bench_open_lanes(b, 1, 0);
}

static void bench_close(struct bench *b)
{
    check(b);
    blkrepl_image_close(b->image);
    rig_close(&b->rig);
    script_fini(&b->disk);
}

static void attach(struct bench *b)
{
    blkrepl__enter(b->rig.ctx);
    blkrepl__image_attach(b->image, &b->tap.tap);
    blkrepl__leave(b->rig.ctx, 0);
}

static void detach(struct bench *b)
{
    blkrepl__enter(b->rig.ctx);
    blkrepl__image_detach(&b->tap.tap);
    blkrepl__leave(b->rig.ctx, 0);
}

static void wake(struct bench *b, struct guest *guest)
{
    blkrepl__enter(b->rig.ctx);
    blkrepl__guest_wake(guest);
    blkrepl__leave(b->rig.ctx, 0);
}

static struct ranges *ranges(struct bench *b)
{
    return &b->image->leaf->ranges;
}

static unsigned char memory[64 * 1024];

static void write_on(struct bench *b, uint32_t lane, uint64_t offset, uint64_t bytes,
                     struct done *done)
{
    static blkrepl_iovec iovs[64];
    static unsigned next;
    blkrepl_iovec *iov = &iovs[next++ % 64];
    blkrepl_completion completion = done_of(done);

    *iov = (blkrepl_iovec){.base = memory, .len = (size_t)bytes};
    assert_int_equal(blkrepl_image_write(b->image, lane, offset, iov, 1, 0, &completion), 0);
    check(b);
}

static void write_at(struct bench *b, uint64_t offset, uint64_t bytes, struct done *done)
{
    write_on(b, 0, offset, bytes, done);
}

static uint64_t begin_waits_on(struct bench *b, uint32_t lane, uint32_t opcode, uint64_t offset,
                               uint64_t bytes, struct done *go)
{
    blkrepl_completion completion = done_of(go);
    blkrepl_bracket what = {.struct_size = sizeof what,
                            .opcode = opcode,
                            .offset = offset,
                            .bytes = bytes,
                            .lane = lane};
    uint64_t token = 0;

    assert_int_equal(blkrepl_write_begin(b->image, &what, &completion, &token), BLKREPL_WAIT);
    assert_true(token != 0);
    check(b);
    return token;
}

/* Begin a bracket that has to wait. */
static uint64_t begin_waits(struct bench *b, uint32_t opcode, uint64_t offset, uint64_t bytes,
                            struct done *go)
{
    return begin_waits_on(b, 0, opcode, offset, bytes, go);
}

static void guest_write_passes_through_all_phases(void **state)
{
    struct bench b;
    struct done first;
    struct done second;

    (void)state;
    bench_open(&b);
    b.disk.hold = EVERY;
    write_at(&b, 0, 4096, &first);
    assert_int_equal(guest_at(&b, 0)->phase, GUEST_GIVEN);
    write_at(&b, 0, 512, &second);
    assert_int_equal(guest_at(&b, 1)->phase, GUEST_QUEUED);
    attach(&b);
    b.tap.answer = TAP_WAIT;
    script_end(&b.disk, 0, 0);
    blkrepl__enter(b.rig.ctx);
    blkrepl__advance(b.rig.ctx);
    assert_int_equal(guest_at(&b, 0)->phase, GUEST_ENDED);
    assert_int_equal(guest_at(&b, 1)->phase, GUEST_TAPPED);
    blkrepl__leave(b.rig.ctx, 0);
    check(&b);
    b.tap.answer = TAP_PASS;
    wake(&b, guest_at(&b, 1));
    assert_int_equal(guest_at(&b, 1)->phase, GUEST_GIVEN);
    check(&b);
    script_end_all(&b.disk);
    rig_poll(&b.rig);
    assert_int_equal(guest_at(&b, 0)->phase, GUEST_FREE);
    assert_int_equal(guest_at(&b, 1)->phase, GUEST_FREE);
    done_assert(&first, 0);
    done_assert(&second, 0);
    detach(&b);
    bench_close(&b);
}

static void guest_request_that_does_not_write_goes_straight_to_the_backend(void **state)
{
    struct bench b;
    struct done done[4];
    blkrepl_completion c[4];
    blkrepl_iovec iov = {memory, 512};
    blkrepl_extent extent;

    (void)state;
    bench_open(&b);
    attach(&b);
    b.tap.answer = TAP_WAIT;
    b.disk.hold = EVERY;
    for (int i = 0; i < 4; i++) {
        c[i] = done_of(&done[i]);
    }
    assert_int_equal(blkrepl_image_read(b.image, 0, 0, &iov, 1, 0, &c[0]), 0);
    assert_int_equal(blkrepl_image_flush(b.image, 0, &c[1]), 0);
    assert_int_equal(blkrepl_image_status(b.image, 0, 0, 512, &extent, 1, &c[2]), 0);
    assert_int_equal(blkrepl_image_write(b.image, 0, DISK, NULL, 0, 0, &c[3]), 0);
    for (uint32_t i = 0; i < 3; i++) {
        assert_int_equal(guest_at(&b, i)->phase, GUEST_GIVEN);
    }
    assert_int_equal(guest_at(&b, 3)->phase, GUEST_ENDED); /* 0 bytes */
    check(&b);
    assert_int_equal(b.tap.asked, 0);
    assert_int_equal(b.disk.waiting_count, 3);
    script_end_all(&b.disk);
    rig_poll(&b.rig);
    for (int i = 0; i < 4; i++) {
        done_assert(&done[i], 0);
    }
    detach(&b);
    bench_close(&b);
}

static void guest_write_waits_for_the_latest_earlier_write_that_overlaps(void **state)
{
    struct bench b;
    struct done done[4];

    (void)state;
    bench_open(&b);
    b.disk.hold = EVERY;
    write_at(&b, 0, 1024, &done[0]);
    write_at(&b, 512, 1024, &done[1]);  /* waits for 0 */
    write_at(&b, 1024, 1024, &done[2]); /* waits for 1, not for 0 */
    write_at(&b, 4096, 512, &done[3]);  /* for nobody */
    assert_int_equal(b.disk.waiting_count, 2);
    script_end(&b.disk, script_find(&b.disk, BLKREPL_OP_WRITE, 4096), 0);
    rig_poll(&b.rig);
    done_assert(&done[3], 0);
    assert_int_equal(b.disk.waiting_count, 1);
    script_end(&b.disk, 0, -EIO); /* how it ends does not matter */
    rig_poll(&b.rig);
    assert_int_equal(b.disk.waiting_count, 1);
    assert_int_equal(b.disk.waiting[0]->offset, 512);
    script_end(&b.disk, 0, 0);
    rig_poll(&b.rig);
    assert_int_equal(b.disk.waiting[0]->offset, 1024);
    script_end(&b.disk, 0, 0);
    rig_poll(&b.rig);
    done_assert(&done[0], -EIO);
    done_assert(&done[1], 0);
    done_assert(&done[2], 0);
    bench_close(&b);
}

static void guest_writes_into_one_block_do_not_run_together(void **state)
{
    struct bench b;
    struct done done[2];

    (void)state;
    bench_open(&b);
    b.disk.hold = 1u << BLKREPL_OP_WRITE;
    write_at(&b, 10, 5, &done[0]);
    write_at(&b, 100, 5, &done[1]); /* another part of the block */
    assert_int_equal(guest_at(&b, 1)->phase, GUEST_QUEUED);
    script_end(&b.disk, 0, 0);
    rig_poll(&b.rig);
    script_end(&b.disk, 0, 0);
    rig_poll(&b.rig);
    bench_close(&b);
}

static void guest_whose_tap_fails_it_ends_with_that_code_and_writes_nothing(void **state)
{
    struct bench b;
    struct done done;

    (void)state;
    bench_open(&b);
    attach(&b);
    b.tap.answer = TAP_FAIL;
    b.tap.error = -EDOM;
    write_at(&b, 0, 4096, &done);
    assert_int_equal(guest_at(&b, 0)->phase, GUEST_ENDED);
    rig_poll(&b.rig);
    done_assert(&done, -EDOM);
    assert_int_equal(script_count(&b.disk, 0), 0);
    detach(&b);
    bench_close(&b);
}

/* Two jobs of one image: what one of them fails, the other must not go on
 * counting among those that wait for it. */
static void guest_that_one_tap_fails_is_forgotten_by_the_one_where_it_waits(void **state)
{
    struct bench b;
    struct fake_tap second = {.tap = {.before = fake_before, .forget = fake_forget}};
    struct done done;

    (void)state;
    bench_open(&b);
    attach(&b);
    blkrepl__enter(b.rig.ctx);
    blkrepl__image_attach(b.image, &second.tap);
    blkrepl__leave(b.rig.ctx, 0);
    second.answer = TAP_WAIT;
    write_at(&b, 0, 4096, &done);
    assert_int_equal(b.tap.asked, 1);
    assert_int_equal(second.asked, 1);
    b.tap.answer = TAP_FAIL;
    b.tap.error = -EDOM;
    wake(&b, b.tap.guest);
    assert_int_equal(second.asked, 1);
    assert_int_equal(second.forgotten, 1);
    rig_poll(&b.rig);
    done_assert(&done, -EDOM);
    detach(&b);
    blkrepl__enter(b.rig.ctx);
    blkrepl__image_detach(&second.tap);
    blkrepl__leave(b.rig.ctx, 0);
    bench_close(&b);
}

static void guest_that_waited_for_a_copy_asks_its_taps_again(void **state)
{
    struct bench b;
    struct range copy = {.kind = RANGE_COPY};
    struct done done;

    (void)state;
    bench_open(&b);
    blkrepl__range_add(ranges(&b), &copy, 0, 4096);
    copy.given = true;
    write_at(&b, 0, 4096, &done);
    assert_int_equal(guest_at(&b, 0)->phase, GUEST_TAPPED);
    attach(&b); /* a new job, while it waits */
    assert_int_equal(b.tap.asked, 0);
    b.tap.answer = TAP_WAIT;
    blkrepl__enter(b.rig.ctx);
    blkrepl__range_end(ranges(&b), &copy);
    blkrepl__leave(b.rig.ctx, 0);
    assert_int_equal(b.tap.asked, 1);
    assert_int_equal(guest_at(&b, 0)->phase, GUEST_TAPPED);
    b.tap.answer = TAP_PASS;
    wake(&b, guest_at(&b, 0));
    rig_poll(&b.rig);
    done_assert(&done, 0);
    detach(&b);
    bench_close(&b);
}

static void guest_does_not_wait_for_a_copy_that_is_not_active(void **state)
{
    struct bench b;
    struct range copy = {.kind = RANGE_COPY};
    struct done done;

    (void)state;
    bench_open(&b);
    blkrepl__range_add(ranges(&b), &copy, 0, 4096);
    write_at(&b, 0, 4096, &done);
    rig_poll(&b.rig);
    done_assert(&done, 0);
    blkrepl__range_end(ranges(&b), &copy);
    bench_close(&b);
}

static void guest_write_shows_its_taps_its_whole_blocks_once(void **state)
{
    struct bench b;
    struct done done;

    (void)state;
    bench_open(&b);
    attach(&b);
    write_at(&b, 700, 10000, &done);
    rig_poll(&b.rig);
    assert_int_equal(b.tap.asked, 1);
    assert_int_equal(b.tap.start, 512);
    assert_int_equal(b.tap.end, 10752);
    done_assert(&done, 0);
    detach(&b);
    bench_close(&b);
}

static void guest_zeroes_pass_the_taps_piece_by_piece(void **state)
{
    struct bench b;
    struct done done;
    blkrepl_completion completion = done_of(&done);

    (void)state;
    bench_open(&b);
    attach(&b);
    b.disk.hold = EVERY;
    assert_int_equal(blkrepl_image_write_zeroes(b.image, 0, 0, 10 * MIB, 0, &completion), 0);
    assert_int_equal(b.tap.asked, 1);
    assert_int_equal(b.tap.end, 4 * MIB);
    assert_int_equal(guest_at(&b, 0)->phase, GUEST_GIVEN);
    b.tap.answer = TAP_WAIT; /* for the next piece */
    script_end(&b.disk, 0, 0);
    rig_poll(&b.rig);
    assert_int_equal(guest_at(&b, 0)->phase, GUEST_TAPPED);
    assert_int_equal(b.tap.start, 4 * MIB);
    assert_int_equal(b.tap.end, 8 * MIB);
    check(&b);
    b.tap.answer = TAP_PASS;
    wake(&b, guest_at(&b, 0));
    script_end(&b.disk, 0, 0);
    rig_poll(&b.rig);
    assert_int_equal(b.tap.start, 8 * MIB);
    assert_int_equal(b.tap.end, 10 * MIB);
    script_end(&b.disk, 0, 0);
    rig_poll(&b.rig);
    done_assert(&done, 0);
    assert_int_equal(script_count(&b.disk, BLKREPL_OP_ZEROES), 3);
    detach(&b);
    bench_close(&b);
}

static void guest_between_two_pieces_lets_copies_of_its_range_go(void **state)
{
    struct bench b;
    struct done done;
    blkrepl_completion completion = done_of(&done);

    (void)state;
    bench_open(&b);
    attach(&b);
    b.disk.hold = EVERY;
    assert_int_equal(blkrepl_image_write_zeroes(b.image, 0, 0, 6 * MIB, 0, &completion), 0);
    assert_non_null(blkrepl__range_copy_blocker(ranges(&b), 0, 512, b.tap.tap.attached_at));
    b.tap.answer = TAP_WAIT;
    script_end(&b.disk, 0, 0);
    rig_poll(&b.rig);
    /* It waits itself now; a copy must not wait for it. */
    assert_null(blkrepl__range_copy_blocker(ranges(&b), 0, 512, b.tap.tap.attached_at));
    b.tap.answer = TAP_PASS;
    wake(&b, guest_at(&b, 0));
    script_end(&b.disk, 0, 0);
    rig_poll(&b.rig);
    done_assert(&done, 0);
    detach(&b);
    bench_close(&b);
}

static void guest_given_before_a_tap_was_attached_does_not_pass_it(void **state)
{
    struct bench b;
    struct done done;
    blkrepl_completion completion = done_of(&done);

    (void)state;
    bench_open(&b);
    b.disk.info.zeroes_bytes_max = 0;
    b.image->leaf->port.info.zeroes_bytes_max = MIB;
    b.disk.hold = EVERY;
    assert_int_equal(blkrepl_image_write_zeroes(b.image, 0, 0, 3 * MIB, 0, &completion), 0);
    attach(&b);
    b.tap.answer = TAP_FAIL;
    b.tap.error = -EDOM;
    for (int i = 0; i < 3; i++) {
        script_end(&b.disk, 0, 0);
        rig_poll(&b.rig);
    }
    done_assert(&done, 0);
    assert_int_equal(b.tap.asked, 0);
    detach(&b);
    bench_close(&b);
}

static void guest_discard_skips_the_pieces_that_a_tap_wants_skipped(void **state)
{
    struct bench b;
    struct done done;
    blkrepl_completion completion = done_of(&done);

    (void)state;
    bench_open(&b);
    attach(&b);
    b.tap.answer = TAP_SKIP;
    assert_int_equal(blkrepl_image_discard(b.image, 0, 0, 10 * MIB, 0, &completion), 0);
    assert_int_equal(guest_at(&b, 0)->phase, GUEST_ENDED);
    check(&b);
    rig_poll(&b.rig);
    done_assert(&done, 0);
    assert_int_equal(b.tap.asked, 3);
    assert_int_equal(script_count(&b.disk, 0), 0);
    detach(&b);
    bench_close(&b);
}

/* What a discard of this range asks of the backend. */
static void discard(struct bench *b, uint64_t offset, uint64_t bytes, uint64_t want,
                    uint64_t want_bytes)
{
    struct done done;
    blkrepl_completion completion = done_of(&done);

    script_forget(&b->disk);
    assert_int_equal(blkrepl_image_discard(b->image, 0, offset, bytes, 0, &completion), 0);
    rig_poll(&b->rig);
    done_assert(&done, 0);
    assert_int_equal(script_count(&b->disk, 0), want_bytes > 0);
    if (want_bytes > 0) {
        assert_int_equal(b->disk.notes[0].offset, want);
        assert_int_equal(b->disk.notes[0].bytes, want_bytes);
    }
}

static void guest_discard_shrinks_to_whole_blocks(void **state)
{
    struct bench b;

    (void)state;
    memset(&b, 0, sizeof b);
    rig_open(&b.rig, &(blkrepl_context_options){.requests_max = REQUESTS});
    script_init(&b.disk, 10000); /* the last block is 272 bytes long */
    b.disk.info.request_alignment = 512;
    b.image = script_open(&b.disk, &b.rig);
    discard(&b, 0, 512, 0, 512);
    discard(&b, 1, 511, 0, 0);
    discard(&b, 0, 511, 0, 0);
    discard(&b, 1, 1023, 512, 512);
    discard(&b, 511, 1026, 512, 1024);
    discard(&b, 600, 100, 0, 0);
    discard(&b, 9728, 272, 9728, 272); /* up to the end of the image */
    discard(&b, 9000, 1000, 9216, 784);
    discard(&b, 9728, 271, 0, 0);
    discard(&b, 9800, 200, 0, 0);
    discard(&b, 5000, 0, 0, 0);
    bench_close(&b);
}

static void guest_ends_with_the_first_error_of_the_backend(void **state)
{
    struct bench b;
    struct done done;
    blkrepl_completion completion = done_of(&done);

    (void)state;
    bench_open(&b);
    b.image->leaf->port.info.zeroes_bytes_max = MIB;
    b.disk.result[BLKREPL_OP_ZEROES] = -ENOSPC;
    assert_int_equal(blkrepl_image_write_zeroes(b.image, 0, 0, 3 * MIB, 0, &completion), 0);
    rig_poll(&b.rig);
    done_assert(&done, -ENOSPC);
    assert_int_equal(script_count(&b.disk, 0), 1); /* the rest is not done */
    bench_close(&b);
}

static void guest_with_fua_is_flushed_where_the_backend_has_no_fua(void **state)
{
    struct bench b;
    struct done done;
    blkrepl_completion completion = done_of(&done);
    blkrepl_iovec iov = {memory, 512};

    (void)state;
    bench_open(&b);
    assert_int_equal(blkrepl_image_write(b.image, 0, 0, &iov, 1, BLKREPL_IO_FUA, &completion), 0);
    rig_poll(&b.rig);
    done_assert(&done, 0);
    assert_int_equal(script_count(&b.disk, 0), 2);
    assert_int_equal(b.disk.notes[0].flags, 0);
    assert_int_equal(b.disk.notes[1].opcode, BLKREPL_OP_FLUSH);
    script_forget(&b.disk);
    b.disk.result[BLKREPL_OP_FLUSH] = -EIO;
    completion = done_of(&done);
    assert_int_equal(blkrepl_image_write_zeroes(b.image, 0, 0, 512, BLKREPL_IO_FUA, &completion),
                     0);
    rig_poll(&b.rig);
    done_assert(&done, -EIO);
    script_forget(&b.disk);
    b.disk.info.flags = BLKREPL_BACKEND_FUA;
    b.image->leaf->port.info.flags = BLKREPL_BACKEND_FUA;
    completion = done_of(&done);
    assert_int_equal(blkrepl_image_write(b.image, 0, 0, &iov, 1, BLKREPL_IO_FUA, &completion), 0);
    rig_poll(&b.rig);
    done_assert(&done, 0);
    assert_int_equal(script_count(&b.disk, 0), 1);
    assert_int_equal(b.disk.notes[0].flags, BLKREPL_IO_FUA);
    bench_close(&b);
}

static void guest_zeroes_without_fallback_are_refused_where_there_are_none(void **state)
{
    struct bench b;
    struct done done;
    blkrepl_completion completion = done_of(&done);

    (void)state;
    bench_open(&b);
    b.image->leaf->port.info.opcodes &= ~(1u << BLKREPL_OP_ZEROES);
    assert_int_equal(
        blkrepl_image_write_zeroes(b.image, 0, 0, 512, BLKREPL_IO_NO_FALLBACK, &completion), 0);
    ASSERT_PENDING(&done);
    rig_poll(&b.rig);
    done_assert(&done, -ENOTSUP);
    assert_int_equal(script_count(&b.disk, 0), 0);
    bench_close(&b);
}

static void guest_bracket_waits_in_every_phase_and_goes_to_the_host(void **state)
{
    struct bench b;
    struct done write;
    struct done go;
    uint64_t token;

    (void)state;
    bench_open(&b);
    b.disk.hold = EVERY;
    attach(&b);
    write_at(&b, 0, 4096, &write);
    token = begin_waits(&b, BLKREPL_OP_WRITE, 512, 512, &go);
    assert_int_equal(guest_at(&b, 1)->phase, GUEST_QUEUED);
    b.tap.answer = TAP_WAIT;
    script_end(&b.disk, 0, 0);
    rig_poll(&b.rig);
    assert_int_equal(guest_at(&b, 1)->phase, GUEST_TAPPED);
    check(&b);
    b.tap.answer = TAP_PASS;
    wake(&b, guest_at(&b, 1));
    assert_int_equal(guest_at(&b, 1)->phase, GUEST_GO_DUE);
    check(&b);
    ASSERT_PENDING(&go);
    rig_poll(&b.rig);
    done_assert(&go, 0);
    assert_int_equal(guest_at(&b, 1)->phase, GUEST_GO);
    check(&b);
    assert_int_equal(b.disk.note_count, 1); /* the host has it, not the backend */
    assert_int_equal(blkrepl_write_end(b.rig.ctx, token, 0, NULL, 0, NULL), 0);
    assert_int_equal(guest_at(&b, 1)->phase, GUEST_FREE);
    detach(&b);
    bench_close(&b);
}

/* Cancel a bracket in the phase that `prepare` has brought it to. */
static void cancel_in(struct bench *b, uint64_t token, struct done *go, enum guest_phase phase)
{
    struct guest *guest = blkrepl__guest_of_token(b->rig.ctx, token);

    assert_int_equal(guest->phase, phase);
    assert_int_equal(blkrepl_write_cancel(b->rig.ctx, token), BLKREPL_WAIT);
    assert_int_equal(guest->phase, GUEST_ENDED);
    check(b);
    assert_int_equal(blkrepl_write_cancel(b->rig.ctx, token), -ENOENT);
    ASSERT_PENDING(go);
    rig_poll(&b->rig);
    done_assert(go, -ECANCELED);
    assert_null(blkrepl__guest_of_token(b->rig.ctx, token));
}

static void guest_bracket_may_be_cancelled_in_every_phase_before_its_go(void **state)
{
    struct bench b;
    struct done write;
    struct done go;
    uint64_t token;

    (void)state;
    bench_open(&b);
    b.disk.hold = EVERY;
    write_at(&b, 0, 4096, &write);
    token = begin_waits(&b, BLKREPL_OP_ZEROES, 0, 512, &go);
    cancel_in(&b, token, &go, GUEST_QUEUED);
    attach(&b);
    b.tap.answer = TAP_WAIT;
    token = begin_waits(&b, BLKREPL_OP_WRITE, 8192, 512, &go);
    cancel_in(&b, token, &go, GUEST_TAPPED);
    assert_int_equal(b.tap.forgotten, 1);
    token = begin_waits(&b, BLKREPL_OP_DISCARD, 8192, 512, &go);
    b.tap.answer = TAP_PASS;
    wake(&b, b.tap.guest);
    cancel_in(&b, token, &go, GUEST_GO_DUE);
    script_end_all(&b.disk);
    rig_poll(&b.rig);
    done_assert(&write, 0);
    detach(&b);
    bench_close(&b);
}

/* A backend may answer -ECANCELED of its own accord: that is no cancel of ours. */
static void guest_bracket_that_failed_as_cancelled_may_still_be_cancelled_once(void **state)
{
    struct bench b;
    struct done go;
    uint64_t token;

    (void)state;
    bench_open(&b);
    attach(&b);
    b.tap.answer = TAP_FAIL;
    b.tap.error = -ECANCELED;
    token = begin_waits(&b, BLKREPL_OP_WRITE, 0, 512, &go);
    cancel_in(&b, token, &go, GUEST_ENDED);
    detach(&b);
    bench_close(&b);
}

static void guest_that_waits_for_a_write_goes_on_when_it_is_cancelled(void **state)
{
    struct bench b;
    struct done first;
    struct done go;
    struct done last;
    uint64_t token;

    (void)state;
    bench_open(&b);
    b.disk.hold = EVERY;
    write_at(&b, 0, 512, &first);
    token = begin_waits(&b, BLKREPL_OP_WRITE, 0, 1024, &go);
    write_at(&b, 512, 512, &last); /* waits for the bracket */
    assert_int_equal(b.disk.waiting_count, 1);
    assert_int_equal(blkrepl_write_cancel(b.rig.ctx, token), BLKREPL_WAIT);
    assert_int_equal(b.disk.waiting_count, 2);
    script_end_all(&b.disk);
    rig_poll(&b.rig);
    done_assert(&first, 0);
    done_assert(&go, -ECANCELED);
    done_assert(&last, 0);
    bench_close(&b);
}

static void guest_token_is_an_id_that_goes_stale(void **state)
{
    struct bench b;
    blkrepl_bracket what = {.struct_size = sizeof what, .opcode = BLKREPL_OP_WRITE, .bytes = 512};
    struct done go;
    blkrepl_completion completion = done_of(&go);
    uint64_t first;
    uint64_t second;

    (void)state;
    bench_open(&b);
    assert_int_equal(blkrepl_write_begin(b.image, &what, &completion, &first), 0);
    assert_non_null(blkrepl__guest_of_token(b.rig.ctx, first));
    assert_int_equal(blkrepl_write_end(b.rig.ctx, first, 0, NULL, 0, NULL), 0);
    completion = done_of(&go);
    assert_int_equal(blkrepl_write_begin(b.image, &what, &completion, &second), 0);
    assert_int_equal(first & REQUEST_INDEX_MASK, second & REQUEST_INDEX_MASK);
    assert_null(blkrepl__guest_of_token(b.rig.ctx, first)); /* the same slot, another id */
    assert_null(blkrepl__guest_of_token(b.rig.ctx, 0));
    assert_null(blkrepl__guest_of_token(b.rig.ctx, REQUESTS));
    assert_null(blkrepl__guest_of_token(b.rig.ctx, UINT64_MAX));
    assert_int_equal(blkrepl_write_end(b.rig.ctx, second, 0, NULL, 0, NULL), 0);
    bench_close(&b);
}

static void guest_slots_that_are_all_in_use_announce_room(void **state)
{
    struct bench b;
    struct done done[REQUESTS + 1];
    blkrepl_completion completion;

    (void)state;
    bench_open(&b);
    b.disk.hold = EVERY;
    for (uint32_t i = 0; i < REQUESTS; i++) {
        write_at(&b, i * 4096, 4096, &done[i]);
    }
    completion = done_of(&done[REQUESTS]);
    assert_int_equal(blkrepl_image_flush(b.image, 0, &completion), -EAGAIN);
    done_assert_rejected(&done[REQUESTS]);
    rig_poll(&b.rig);
    assert_int_equal(rig_events(&b.rig, BLKREPL_EVENT_ROOM), 0);
    script_end(&b.disk, 3, 0);
    rig_poll(&b.rig);
    assert_int_equal(rig_events(&b.rig, BLKREPL_EVENT_ROOM), 1);
    script_end_all(&b.disk);
    rig_poll(&b.rig);
    assert_int_equal(rig_events(&b.rig, BLKREPL_EVENT_ROOM), 1); /* nobody was refused since */
    bench_close(&b);
}

static void guest_counts_keep_the_image_and_its_writes(void **state)
{
    struct bench b;
    struct done write;
    struct done flush;
    blkrepl_completion completion = done_of(&flush);

    (void)state;
    bench_open(&b);
    b.disk.hold = EVERY;
    write_at(&b, 0, 512, &write);
    assert_int_equal(blkrepl_image_flush(b.image, 0, &completion), 0);
    assert_int_equal(b.image->refs, 3);
    assert_int_equal(b.image->requests, 2);
    assert_int_equal(b.image->writes, 1);
    script_end_all(&b.disk);
    rig_poll(&b.rig);
    assert_int_equal(b.image->refs, 1);
    assert_int_equal(b.image->requests, 0);
    assert_int_equal(b.image->writes, 0);
    bench_close(&b);
}

/* ---- Lanes that nobody polls -------------------------------------------------- */

#define LANE_1 (REQUESTS / 2) /* its first slot, of two lanes */

static void guest_that_another_waits_for_goes_out_with_lane_0(void **state)
{
    struct bench b;
    struct done first;
    struct done waits;
    struct done next;
    struct done last;

    (void)state;
    bench_open_lanes(&b, 2, 1);
    b.disk.hold = EVERY;
    write_at(&b, 0, 512, &first); /* all that the backend takes */
    write_on(&b, 1, 4096, 512, &waits);
    write_on(&b, 1, 4096, 512, &next); /* not given yet when it is waited for */
    assert_true(guest_at(&b, LANE_1)->hastened);
    assert_int_equal(guest_at(&b, LANE_1)->request->io.lane, 0);
    assert_false(guest_at(&b, LANE_1 + 1)->hastened);
    write_at(&b, 4096, 512, &last);
    assert_true(guest_at(&b, LANE_1 + 1)->hastened);
    assert_false(guest_at(&b, 1)->hastened);
    for (int i = 0; i < 4; i++) {
        assert_int_equal(b.disk.waiting[0]->lane, 0);
        script_end(&b.disk, 0, 0);
        rig_poll(&b.rig);
    }
    done_assert(&first, 0);
    done_assert(&last, 0);
    ASSERT_PENDING(&waits);
    assert_int_equal(blkrepl_poll(b.rig.ctx, 1, 0), 2);
    done_assert(&waits, 0);
    done_assert(&next, 0);
    bench_close(&b);
}

static void make_way(struct bench *b, struct guest *guest)
{
    blkrepl__enter(b->rig.ctx);
    blkrepl__guest_make_way(guest);
    check(b);
    blkrepl__leave(b->rig.ctx, 0);
    check(b);
}

/* A bracket of lane 1 whose GO waits for a poll of its lane. */
static struct guest *go_due(struct bench *b, struct done *go)
{
    struct done write;
    struct guest *guest;
    uint32_t hold = b->disk.hold;

    b->disk.hold = EVERY;
    write_at(b, 0, 4096, &write);
    guest =
        blkrepl__guest_of_token(b->rig.ctx, begin_waits_on(b, 1, BLKREPL_OP_WRITE, 0, 4096, go));
    script_end(&b->disk, 0, 0);
    rig_poll(&b->rig);
    done_assert(&write, 0);
    b->disk.hold = hold;
    assert_int_equal(guest->phase, GUEST_GO_DUE);
    return guest;
}

static void guest_bracket_makes_way_for_a_copy_and_passes_the_taps_again(void **state)
{
    struct bench b;
    struct done go;
    struct guest *guest;
    uint64_t token;

    (void)state;
    bench_open_lanes(&b, 2, 0);
    guest = go_due(&b, &go);
    token = guest->token;
    assert_true(guest->range.given_at != 0);
    attach(&b); /* it was given before that */
    b.tap.answer = TAP_WAIT;
    make_way(&b, guest);
    assert_int_equal(guest->phase, GUEST_TAPPED);
    assert_int_equal(b.tap.asked, 1);
    assert_true(guest->range.given_at == 0);
    assert_int_equal(blkrepl_poll(b.rig.ctx, 1, 0), 0);
    make_way(&b, guest); /* it has */
    assert_int_equal(guest->phase, GUEST_TAPPED);
    b.tap.answer = TAP_PASS;
    wake(&b, guest);
    assert_int_equal(guest->phase, GUEST_GO_DUE);
    assert_true(guest->range.given_at > b.tap.tap.attached_at);
    assert_int_equal(blkrepl_poll(b.rig.ctx, 1, 0), 1);
    done_assert(&go, 0);
    make_way(&b, guest); /* the host has it: too late */
    assert_int_equal(guest->phase, GUEST_GO);
    assert_int_equal(blkrepl_write_end(b.rig.ctx, token, 0, NULL, 0, NULL), 0);
    detach(&b);
    bench_close(&b);
}

/* Who waited for it looks again, and waits on. */
static void guest_that_makes_way_keeps_its_place_before_later_writes(void **state)
{
    struct bench b;
    struct done go;
    struct done later;
    struct guest *guest;
    uint64_t token;

    (void)state;
    bench_open_lanes(&b, 2, 0);
    guest = go_due(&b, &go);
    token = guest->token;
    write_at(&b, 0, 512, &later);
    make_way(&b, guest);
    rig_poll(&b.rig);
    assert_int_equal(guest->phase, GUEST_GO_DUE); /* there was no copy */
    ASSERT_PENDING(&later);
    assert_int_equal(blkrepl_poll(b.rig.ctx, 1, 0), 1);
    ASSERT_PENDING(&later);
    assert_int_equal(blkrepl_write_end(b.rig.ctx, token, 0, NULL, 0, NULL), 0);
    rig_poll(&b.rig);
    done_assert(&later, 0);
    done_assert(&go, 0);
    bench_close(&b);
}

static void guest_write_that_is_in_the_way_of_a_copy_goes_out_with_lane_0(void **state)
{
    struct bench b;
    struct done first;
    struct done write;

    (void)state;
    bench_open_lanes(&b, 2, 1);
    b.disk.hold = EVERY;
    write_at(&b, 0, 512, &first);
    write_on(&b, 1, 4096, 512, &write);
    make_way(&b, guest_at(&b, LANE_1));
    assert_int_equal(guest_at(&b, LANE_1)->phase, GUEST_GIVEN);
    assert_int_equal(guest_at(&b, LANE_1)->request->io.lane, 0);
    while (b.disk.waiting_count > 0) {
        script_end(&b.disk, 0, 0);
        rig_poll(&b.rig);
    }
    assert_int_equal(b.disk.note_count, 2);
    assert_int_equal(blkrepl_poll(b.rig.ctx, 1, 0), 1);
    done_assert(&write, 0);
    bench_close(&b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(guest_write_passes_through_all_phases),
        cmocka_unit_test(guest_request_that_does_not_write_goes_straight_to_the_backend),
        cmocka_unit_test(guest_write_waits_for_the_latest_earlier_write_that_overlaps),
        cmocka_unit_test(guest_writes_into_one_block_do_not_run_together),
        cmocka_unit_test(guest_whose_tap_fails_it_ends_with_that_code_and_writes_nothing),
        cmocka_unit_test(guest_that_one_tap_fails_is_forgotten_by_the_one_where_it_waits),
        cmocka_unit_test(guest_that_waited_for_a_copy_asks_its_taps_again),
        cmocka_unit_test(guest_does_not_wait_for_a_copy_that_is_not_active),
        cmocka_unit_test(guest_write_shows_its_taps_its_whole_blocks_once),
        cmocka_unit_test(guest_zeroes_pass_the_taps_piece_by_piece),
        cmocka_unit_test(guest_between_two_pieces_lets_copies_of_its_range_go),
        cmocka_unit_test(guest_given_before_a_tap_was_attached_does_not_pass_it),
        cmocka_unit_test(guest_discard_skips_the_pieces_that_a_tap_wants_skipped),
        cmocka_unit_test(guest_discard_shrinks_to_whole_blocks),
        cmocka_unit_test(guest_ends_with_the_first_error_of_the_backend),
        cmocka_unit_test(guest_with_fua_is_flushed_where_the_backend_has_no_fua),
        cmocka_unit_test(guest_zeroes_without_fallback_are_refused_where_there_are_none),
        cmocka_unit_test(guest_bracket_waits_in_every_phase_and_goes_to_the_host),
        cmocka_unit_test(guest_bracket_may_be_cancelled_in_every_phase_before_its_go),
        cmocka_unit_test(guest_bracket_that_failed_as_cancelled_may_still_be_cancelled_once),
        cmocka_unit_test(guest_that_waits_for_a_write_goes_on_when_it_is_cancelled),
        cmocka_unit_test(guest_token_is_an_id_that_goes_stale),
        cmocka_unit_test(guest_slots_that_are_all_in_use_announce_room),
        cmocka_unit_test(guest_counts_keep_the_image_and_its_writes),
        cmocka_unit_test(guest_that_another_waits_for_goes_out_with_lane_0),
        cmocka_unit_test(guest_bracket_makes_way_for_a_copy_and_passes_the_taps_again),
        cmocka_unit_test(guest_that_makes_way_keeps_its_place_before_later_writes),
        cmocka_unit_test(guest_write_that_is_in_the_way_of_a_copy_goes_out_with_lane_0),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
