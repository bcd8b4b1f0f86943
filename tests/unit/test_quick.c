/* SPDX-License-Identifier: MIT */
#include "unit/quick_rig.h"

#include "base/checked.h"
#include "base/hook.h"

#include <poll.h>

#define DISK (128 * MIB)
#define TRANSFER (64 * KIB)

static _Alignas(4096) unsigned char memory[256 * 1024];

static void bench_open(struct quick_bench *b, uint32_t lanes, uint32_t requests)
{
    quick_init(b, &(blkrepl_context_options){.lane_count = lanes, .requests_max = requests}, DISK);
    quick_open(b);
}

static bool readable(const struct quick_bench *b, uint32_t lane)
{
    struct pollfd pfd = {.fd = blkrepl_poll_fd(b->rig.ctx, lane), .events = POLLIN};

    return poll(&pfd, 1, 0) == 1;
}

static void quick_way_takes_no_lock_of_the_context(void **state)
{
    struct quick_bench b;
    struct done done[3];
    struct done go;
    uint64_t token;

    (void)state;
    bench_open(&b, 2, 8);
    b.disk.hold = 1u << BLKREPL_OP_READ;
    pthread_mutex_lock(&b.rig.ctx->lock); /* whoever takes it now sleeps for ever */
    quick_read(&b, 1, 512, 512, &done[0]);
    quick_write(&b, 1, 512, 1024, &done[1]);
    quick_flush_call(&b, 1, &done[2]);
    assert_int_equal(quick_bracket(&b, 1, BLKREPL_OP_WRITE, MIB, 512, &go, &token), 0);
    script_end(&b.disk, 0, -EIO);
    assert_int_equal(blkrepl_poll(b.rig.ctx, 1, 0), 3);
    assert_int_equal(blkrepl_poll(b.rig.ctx, 1, 0), 0);
    assert_int_equal(blkrepl_write_end(b.rig.ctx, token, 0, NULL, 0, NULL), 0);
    pthread_mutex_unlock(&b.rig.ctx->lock);
    done_assert(&done[0], -EIO);
    done_assert(&done[1], 0);
    done_assert(&done[2], 0);
    done_assert_rejected(&go); /* GO is the answer of begin */
    assert_int_equal(b.disk.note_count, 3);
    assert_int_equal(b.disk.notes[1].bytes, 1024);
    assert_int_equal(blkrepl_poll(b.rig.ctx, 0, 0), 0);
    quick_close(&b);
}

static void look_unlocked(struct script *script)
{
    quick_unlocked(CONTAINER_OF(script, struct quick_bench, disk));
}

static void quick_submit_runs_without_a_lock(void **state)
{
    struct quick_bench b;
    struct done done;

    (void)state;
    bench_open(&b, 2, 8);
    b.disk.inside = look_unlocked;
    quick_write(&b, 1, 0, 512, &done);
    assert_null(b.disk.inside);
    quick_poll_all(&b);
    done_assert(&done, 0);
    assert_true(is_quick(&b));
    quick_close(&b);
}

/* ---- What is quick ---------------------------------------------------------- */

struct fit {
    uint32_t opcode;
    uint64_t offset;
    uint64_t lens[3]; /* of its iovecs, up to the first 0 */
    uint32_t flags;
    uint32_t skew; /* of the memory of the first */
    bool quick;
};

#define END (DISK + 100) /* the last block is short */

static const struct fit fits[] = {
    {BLKREPL_OP_READ, 0, {512}, .quick = true},
    {BLKREPL_OP_READ, 512, {512, TRANSFER - 512}, .quick = true},
    {BLKREPL_OP_READ, MIB - 512, {1024}, .quick = true}, /* two stripes, but it is no write */
    {BLKREPL_OP_READ, DISK, {100}, .quick = true},
    {BLKREPL_OP_WRITE, DISK - 512, {612}, .quick = false},
    {BLKREPL_OP_WRITE, DISK, {100}, .quick = true},
    {BLKREPL_OP_WRITE, MIB - 512, {512}, .quick = true},
    {BLKREPL_OP_WRITE, 0, {512}, .flags = BLKREPL_IO_FUA, .quick = true},
    {BLKREPL_OP_FLUSH, 0, {0}, .quick = true},
    {BLKREPL_OP_READ, 256, {512}, .quick = false},
    {BLKREPL_OP_READ, 0, {256}, .quick = false},
    {BLKREPL_OP_READ, 0, {0}, .quick = false},
    {BLKREPL_OP_READ, 0, {512, TRANSFER}, .quick = false},
    {BLKREPL_OP_READ, 0, {512, 512, 512}, .quick = false},
    {BLKREPL_OP_READ, 0, {512}, .skew = 2},
    {BLKREPL_OP_READ, 0, {510, 514}, .quick = false},
    {BLKREPL_OP_WRITE, 0, {512}, .skew = 2},
    {BLKREPL_OP_WRITE, MIB - 512, {1024}, .quick = false},
    {BLKREPL_OP_ZEROES, 0, {512}, .quick = false},
    {BLKREPL_OP_DISCARD, 0, {512}, .quick = false},
    {BLKREPL_OP_STATUS, 0, {512}, .quick = false},
};

static void fit_call(struct quick_bench *b, const struct fit *fit, struct done *done)
{
    blkrepl_completion c = done_of(done);
    blkrepl_extent extent;
    blkrepl_iovec iov[3];
    uint32_t count = 0;
    int rc = -1;

    for (; count < 3 && fit->lens[count] > 0; count++) {
        iov[count] = (blkrepl_iovec){.base = memory + (count == 0 ? fit->skew : 4096 * count),
                                     .len = (size_t)fit->lens[count]};
    }
    switch (fit->opcode) {
    case BLKREPL_OP_READ:
        rc = blkrepl_image_read(b->image, 0, fit->offset, iov, count, 0, &c);
        break;
    case BLKREPL_OP_WRITE:
        rc = blkrepl_image_write(b->image, 0, fit->offset, iov, count, fit->flags, &c);
        break;
    case BLKREPL_OP_ZEROES:
        rc = blkrepl_image_write_zeroes(b->image, 0, fit->offset, fit->lens[0], 0, &c);
        break;
    case BLKREPL_OP_DISCARD:
        rc = blkrepl_image_discard(b->image, 0, fit->offset, fit->lens[0], 0, &c);
        break;
    case BLKREPL_OP_FLUSH: rc = blkrepl_image_flush(b->image, 0, &c); break;
    default:
        rc = blkrepl_image_status(b->image, 0, fit->offset, fit->lens[0], &extent, 1, &c);
        break;
    }
    assert_int_equal(rc, 0);
    quick_check(b);
    quick_poll_all(b);
    done_assert(done, 0);
}

static void fit_open(struct quick_bench *b, uint32_t flags, uint32_t opcodes)
{
    quick_init(b, NULL, END);
    b->disk.info.transfer_bytes_max = TRANSFER;
    b->disk.info.iov_count_max = 2;
    b->disk.info.memory_alignment = 4;
    b->disk.info.flags = flags;
    b->disk.info.opcodes = opcodes;
    quick_open(b);
}

static void quick_is_what_is_one_aligned_piece(void **state)
{
    struct quick_bench b;
    struct done done;

    (void)state;
    fit_open(&b, BLKREPL_BACKEND_FUA, EVERY);
    for (size_t i = 0; i < ARRAY_COUNT(fits); i++) {
        fit_call(&b, &fits[i], &done);
        if (is_quick(&b) != fits[i].quick) {
            fail_msg("row %zu", i);
        }
        assert_true(is_quick(&b) || quick_back(&b));
    }
    quick_close(&b);
}

static void quick_needs_what_the_backend_declares(void **state)
{
    struct fit fua = {BLKREPL_OP_WRITE, 0, {512}, .flags = BLKREPL_IO_FUA};
    struct fit flush = {.opcode = BLKREPL_OP_FLUSH};
    struct quick_bench b;
    struct done done;

    (void)state;
    fit_open(&b, 0, EVERY & ~(1u << BLKREPL_OP_FLUSH));
    fit_call(&b, &flush, &done);
    assert_false(is_quick(&b));
    assert_true(quick_back(&b));
    fit_call(&b, &fua, &done);
    assert_false(is_quick(&b));
    assert_int_equal(script_count(&b.disk, 0), 1); /* no flush */
    quick_close(&b);
}

/* What goes on elsewhere, with a job for instance, does not turn an image. */
static void quick_call_attends_to_others_first(void **state)
{
    struct quick_bench b;
    struct script disk;
    blkrepl_image *slow;
    struct done done[2];
    struct done go;
    blkrepl_completion c;
    uint64_t token;

    (void)state;
    bench_open(&b, 2, 8);
    script_init(&disk, DISK);
    disk.hold = EVERY;
    slow = script_open(&disk, &b.rig);
    for (int i = 0; i < 4; i++) {
        c = done_of(&done[0]);
        assert_int_equal(blkrepl_image_flush(slow, 1, &c), 0);
        script_end_all(&disk);
        assert_true(atomic_load(&b.rig.ctx->attention));
        if (i % 2 == 0) {
            quick_read(&b, 0, 0, 512, &done[1]);
        } else {
            assert_int_equal(quick_bracket(&b, 0, BLKREPL_OP_WRITE, 0, 512, &go, &token), 0);
        }
        assert_true(is_quick(&b));
        assert_false(atomic_load(&b.rig.ctx->attention));
        assert_int_equal(i % 2 == 1 ? blkrepl_write_end(b.rig.ctx, token, 0, NULL, 0, NULL) : 0, 0);
        quick_poll_all(&b);
        done_assert(&done[0], 0);
        done_assert(&done[1], 0);
    }
    blkrepl_image_close(slow);
    quick_close(&b);
    script_fini(&disk);
}

#ifdef BLKREPL_HOOKS
static struct quick_bench *racing;

static void race_attention(enum record_entry entry, uint32_t lane)
{
    (void)entry;
    (void)lane;
    blkrepl__record_hook = NULL;
    atomic_store(&racing->rig.ctx->attention, true);
}

/* But what comes up after that does. */
static void quick_is_nothing_while_there_is_attention(void **state)
{
    struct quick_bench b;
    struct done done;
    struct done go;
    uint64_t token;

    (void)state;
    bench_open(&b, 1, 8);
    racing = &b;
    blkrepl__record_hook = race_attention;
    quick_read(&b, 0, 0, 512, &done);
    assert_false(is_quick(&b));
    assert_false(atomic_load(&b.rig.ctx->attention));
    quick_poll_all(&b);
    done_assert(&done, 0);
    assert_true(quick_back(&b));
    blkrepl__record_hook = race_attention;
    assert_int_equal(quick_bracket(&b, 0, BLKREPL_OP_WRITE, 0, 512, &go, &token), 0);
    assert_false(is_quick(&b));
    atomic_store(&b.rig.ctx->attention, true); /* an image that is slow attends later */
    quick_read(&b, 0, 4096, 512, &done);
    assert_int_equal(blkrepl_write_end(b.rig.ctx, token, 0, NULL, 0, NULL), 0);
    quick_poll_all(&b);
    quick_close(&b);
}
#endif

/* Who comes by the quick way lets what needs attention advance. */
static void attend_inside(struct script *script)
{
    atomic_store(&script->ctx->attention, true);
}

static void quick_call_attends(void **state)
{
    struct quick_bench b;
    struct done done;

    (void)state;
    bench_open(&b, 1, 8);
    b.disk.inside = attend_inside;
    quick_read(&b, 0, 0, 512, &done);
    assert_true(is_quick(&b));
    assert_false(atomic_load(&b.rig.ctx->attention));
    quick_poll_all(&b);
    done_assert(&done, 0);
    quick_close(&b);
}

#ifdef BLKREPL_HOOKS
static enum stretch_site stretched;

static bool stretch_one(enum stretch_site site)
{
    return site == stretched;
}

static void quick_way_can_be_held_back(void **state)
{
    struct quick_bench b;
    struct done done;

    (void)state;
    bench_open(&b, 1, 8);
    stretched = STRETCH_QUICK;
    blkrepl__stretch_hook = stretch_one;
    quick_read(&b, 0, 0, 512, &done);
    assert_false(is_quick(&b));
    stretched = STRETCH_QUICK_AGAIN; /* it goes back with the first that is told */
    quick_poll_all(&b);
    assert_true(is_quick(&b));
    blkrepl__stretch_hook = NULL;
    done_assert(&done, 0);
    quick_close(&b);
}
#endif

/* ---- Stripes ---------------------------------------------------------------- */

static void quick_writes_that_do_not_overlap_do_not_meet(void **state)
{
    struct quick_bench b;
    struct done done[6];

    (void)state;
    bench_open(&b, 3, 8);
    b.disk.hold = EVERY;
    quick_write(&b, 0, MIB, 4096, &done[0]);
    quick_write(&b, 1, MIB + 4096, 512, &done[1]); /* beside it */
    quick_write(&b, 2, MIB - 512, 512, &done[2]);
    quick_write(&b, 1, 65 * MIB, 4096, &done[3]); /* another part, the same stripe */
    quick_read(&b, 2, MIB, 4096, &done[4]);
    quick_flush_call(&b, 0, &done[5]);
    assert_true(is_quick(&b));
    quick_check(&b);
    script_end_all(&b.disk);
    quick_poll_all(&b);
    for (int i = 0; i < 6; i++) {
        done_assert(&done[i], 0);
    }
    quick_close(&b);
}

/* A write over start..end, from a lane, meets one of MIB..MIB + 4096. */
static void overlap(uint32_t lane, uint64_t start, uint64_t end)
{
    struct quick_bench b;
    struct done first;
    struct done second;

    bench_open(&b, 2, 8);
    b.disk.hold = EVERY;
    quick_write(&b, 0, MIB, 4096, &first);
    quick_write(&b, lane, start, end - start, &second);
    assert_false(is_quick(&b));
    quick_check(&b);
    assert_int_equal(b.disk.note_count, 1); /* the second waits */
    assert_int_equal(b.image->requests, 2);
    script_end_all(&b.disk);
    quick_poll_all(&b);
    done_assert(&first, 0);
    assert_int_equal(b.disk.note_count, 2);
    script_end_all(&b.disk);
    quick_poll_all(&b);
    done_assert(&second, 0);
    assert_true(quick_back(&b));
    quick_write(&b, 1, MIB, 4096, &first); /* and the stripe is free again */
    assert_true(is_quick(&b));
    script_end_all(&b.disk);
    quick_poll_all(&b);
    quick_close(&b);
}

static void quick_write_that_overlaps_turns_the_image_and_waits(void **state)
{
    (void)state;
    overlap(0, MIB, MIB + 4096);
    overlap(1, MIB, MIB + 4096);
    overlap(1, MIB + 512, MIB + 1024);
    overlap(0, MIB + 3584, MIB + 8192);
    overlap(1, MIB - 512, MIB + 512);
}

/* ---- Brackets --------------------------------------------------------------- */

static void quick_bracket_has_its_go_at_once(void **state)
{
    struct quick_bench b;
    struct done go;
    struct done done;
    uint64_t tokens[3];

    (void)state;
    bench_open(&b, 1, 4);
    assert_int_equal(quick_bracket(&b, 0, BLKREPL_OP_WRITE, 0, 512, &go, &tokens[0]), 0);
    done_assert_rejected(&go);
    assert_int_equal(quick_bracket(&b, 0, BLKREPL_OP_ZEROES, 512, 512, &go, &tokens[1]), 0);
    assert_int_equal(quick_bracket(&b, 0, BLKREPL_OP_FLUSH, 0, 0, &go, &tokens[2]), 0);
    assert_true(is_quick(&b));
    quick_check(&b);
    assert_int_equal(blkrepl__quick_count(b.image), 3);
    assert_int_equal(blkrepl_write_end(b.rig.ctx, tokens[1], 0, NULL, 0, NULL), 0);
    assert_int_equal(blkrepl_write_end(b.rig.ctx, tokens[1], 0, NULL, 0, NULL), -ENOENT);
    assert_int_equal(blkrepl_write_cancel(b.rig.ctx, tokens[2]), 0);
    assert_int_equal(blkrepl_write_cancel(b.rig.ctx, tokens[2]), -ENOENT);
    quick_write(&b, 0, 512, 512, &done); /* the stripe is free */
    assert_true(is_quick(&b));
    assert_int_equal(blkrepl_write_end(b.rig.ctx, tokens[0], -EIO, NULL, 0, NULL), 0);
    quick_poll_all(&b);
    done_assert(&done, 0);
    quick_close(&b);
}

static void quick_bracket_holds_its_range(void **state)
{
    struct quick_bench b;
    struct done go;
    struct done done;
    uint64_t token;

    (void)state;
    bench_open(&b, 2, 4);
    assert_int_equal(quick_bracket(&b, 0, BLKREPL_OP_DISCARD, 0, 4096, &go, &token), 0);
    quick_write(&b, 1, 0, 512, &done);
    assert_false(is_quick(&b));
    assert_int_equal(b.disk.note_count, 0);
    assert_int_equal(blkrepl_write_end(b.rig.ctx, token, 0, NULL, 0, NULL), 0);
    quick_poll_all(&b);
    done_assert(&done, 0);
    quick_close(&b);
}

static void quick_bracket_that_would_wait_is_not_quick(void **state)
{
    struct quick_bench b;
    struct done go[2];
    uint64_t tokens[2];

    (void)state;
    bench_open(&b, 1, 4);
    assert_int_equal(quick_bracket(&b, 0, BLKREPL_OP_WRITE, 0, 512, &go[0], &tokens[0]), 0);
    assert_int_equal(quick_bracket(&b, 0, BLKREPL_OP_WRITE, 0, 512, &go[1], &tokens[1]),
                     BLKREPL_WAIT);
    assert_false(is_quick(&b));
    assert_int_equal(blkrepl_write_end(b.rig.ctx, tokens[0], 0, NULL, 0, NULL), 0);
    quick_poll_all(&b);
    done_assert(&go[1], 0);
    assert_int_equal(blkrepl_write_end(b.rig.ctx, tokens[1], 0, NULL, 0, NULL), 0);
    quick_close(&b);
}

static void quick_bracket_lies_in_one_stripe(void **state)
{
    struct quick_bench b;
    struct done go;
    uint64_t token;

    (void)state;
    bench_open(&b, 1, 4);
    assert_int_equal(quick_bracket(&b, 0, BLKREPL_OP_WRITE, MIB - 512, 1024, &go, &token), 0);
    assert_false(is_quick(&b));
    assert_int_equal(blkrepl_write_end(b.rig.ctx, token, 0, NULL, 0, NULL), 0);
    assert_true(quick_back(&b));
    assert_int_equal(quick_bracket(&b, 0, BLKREPL_OP_WRITE, 512, 0, &go, &token), 0);
    assert_false(is_quick(&b)); /* no bytes: no range */
    assert_int_equal(blkrepl_write_end(b.rig.ctx, token, 0, NULL, 0, NULL), 0);
    quick_close(&b);
}

/* Nothing but the token of a bracket ends something. */
static void quick_end_takes_only_the_token_of_a_bracket(void **state)
{
    struct quick_bench b;
    struct done done;
    struct done go;
    uint64_t token;

    (void)state;
    bench_open(&b, 1, 2);
    b.disk.hold = EVERY;
    assert_int_equal(blkrepl_write_end(b.rig.ctx, 0, 0, NULL, 0, NULL), -ENOENT);
    quick_read(&b, 0, 0, 512, &done);
    assert_int_equal(quick_bracket(&b, 0, BLKREPL_OP_WRITE, 0, 512, &go, &token), 0);
    assert_int_equal(blkrepl_write_end(b.rig.ctx, 0, 0, NULL, 0, NULL), -ENOENT);
    assert_int_equal(blkrepl_write_end(b.rig.ctx, b.disk.waiting[0]->id, 0, NULL, 0, NULL),
                     -ENOENT); /* the id of a request */
    assert_int_equal(blkrepl_write_end(b.rig.ctx, 2, 0, NULL, 0, NULL), -ENOENT);
    assert_int_equal(
        blkrepl_write_end(b.rig.ctx, token + (UINT64_C(1) << REQUEST_INDEX_BITS), 0, NULL, 0, NULL),
        -ENOENT);                  /* a later bracket of its slot */
    quick_guest(&b, 0)->token = 7; /* not even if it had one */
    assert_false(blkrepl__quick_end(b.rig.ctx, 7 << REQUEST_INDEX_BITS, NULL));
    quick_guest(&b, 0)->token = UINT64_C(7) << REQUEST_INDEX_BITS;
    assert_false(blkrepl__quick_end(b.rig.ctx, UINT64_C(7) << REQUEST_INDEX_BITS, NULL));
    quick_guest(&b, 0)->token = 0;
    assert_true(is_quick(&b));
    assert_int_equal(blkrepl_write_end(b.rig.ctx, token, 0, NULL, 0, NULL), 0);
    script_end_all(&b.disk);
    quick_poll_all(&b);
    quick_close(&b);
}

/* ---- Slots ------------------------------------------------------------------ */

static void quick_call_without_a_slot_turns_nothing(void **state)
{
    struct quick_bench b;
    struct done done[2];
    blkrepl_completion c;
    uint64_t token;

    (void)state;
    bench_open(&b, 2, 1);
    b.disk.hold = EVERY;
    quick_flush_call(&b, 1, &done[0]);
    c = done_of(&done[1]);
    assert_int_equal(blkrepl_image_flush(b.image, 1, &c), -EAGAIN);
    done_assert_rejected(&done[1]);
    assert_int_equal(blkrepl_image_flush(b.image, 1, NULL), -EAGAIN);
    assert_int_equal(quick_bracket(&b, 1, BLKREPL_OP_FLUSH, 0, 0, &done[1], &token), -EAGAIN);
    assert_true(is_quick(&b));
    assert_int_equal(rig_events(&b.rig, BLKREPL_EVENT_ROOM), 0);
    script_end_all(&b.disk);
    quick_poll(&b, 1);
    done_assert(&done[0], 0);
    assert_int_equal(rig_events(&b.rig, BLKREPL_EVENT_ROOM), 1);
    assert_int_equal(rig_event(&b.rig, BLKREPL_EVENT_ROOM, 0)->object_id, 1);
    quick_flush_call(&b, 1, &done[0]);
    assert_true(is_quick(&b));
    script_end_all(&b.disk);
    quick_poll_all(&b);
    assert_int_equal(rig_events(&b.rig, BLKREPL_EVENT_ROOM), 1);
    quick_close(&b);
}

static void quick_end_of_a_bracket_makes_room_and_wakes(void **state)
{
    struct quick_bench b;
    struct done go[2];
    uint64_t tokens[2];
    uint64_t deadline;

    (void)state;
    bench_open(&b, 2, 1);
    assert_int_equal(quick_bracket(&b, 1, BLKREPL_OP_FLUSH, 0, 0, &go[0], &tokens[0]), 0);
    assert_int_equal(blkrepl_poll_arm(b.rig.ctx, 1, &deadline), 0);
    assert_int_equal(quick_bracket(&b, 1, BLKREPL_OP_FLUSH, 0, 0, &go[1], &tokens[1]), -EAGAIN);
    assert_false(readable(&b, 1));
    assert_int_equal(blkrepl_write_end(b.rig.ctx, tokens[0], 0, NULL, 0, NULL), 0);
    assert_true(readable(&b, 1));
    quick_poll(&b, 1);
    assert_int_equal(rig_events(&b.rig, BLKREPL_EVENT_ROOM), 1);
    assert_true(is_quick(&b));
    quick_close(&b);
}

static void quick_call_wakes_who_sleeps_on_its_lane(void **state)
{
    struct quick_bench b;
    struct done done;
    uint64_t deadline;

    (void)state;
    bench_open(&b, 2, 8);
    assert_int_equal(blkrepl_poll_arm(b.rig.ctx, 1, &deadline), 0);
    quick_flush_call(&b, 1, &done); /* completed inside */
    assert_true(readable(&b, 1));
    assert_false(readable(&b, 0));
    quick_poll(&b, 1);
    assert_false(readable(&b, 1));
    done_assert(&done, 0);
    quick_close(&b);
}

static void quick_requests_are_counted_by_the_query(void **state)
{
    struct quick_bench a;
    struct script other;
    blkrepl_image *image;
    blkrepl_image_info info = {.struct_size = sizeof info};
    struct done done[2];
    blkrepl_completion c;

    (void)state;
    bench_open(&a, 2, 8);
    script_init(&other, DISK);
    other.hold = EVERY;
    a.disk.hold = EVERY;
    image = script_open_quick(&other, &a.rig);
    quick_read(&a, 1, 0, 512, &done[0]);
    c = done_of(&done[1]);
    assert_int_equal(blkrepl_image_flush(image, 1, &c), 0);
    assert_int_equal(blkrepl_image_query(image, &info), 0);
    assert_int_equal(info.requests_in_flight, 1);
    quick_turn(&a); /* leaves the other alone */
    assert_int_equal(blkrepl__quick_count(image), 1);
    assert_int_equal(blkrepl_image_query(a.image, &info), 0);
    assert_int_equal(info.requests_in_flight, 1);
    script_end_all(&other);
    script_end_all(&a.disk);
    quick_poll_all(&a);
    blkrepl_image_close(image);
    quick_close(&a);
    script_fini(&other);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(quick_way_takes_no_lock_of_the_context),
        cmocka_unit_test(quick_submit_runs_without_a_lock),
        cmocka_unit_test(quick_is_what_is_one_aligned_piece),
        cmocka_unit_test(quick_needs_what_the_backend_declares),
        cmocka_unit_test(quick_call_attends_to_others_first),
        cmocka_unit_test(quick_call_attends),
#ifdef BLKREPL_HOOKS
        cmocka_unit_test(quick_is_nothing_while_there_is_attention),
        cmocka_unit_test(quick_way_can_be_held_back),
#endif
        cmocka_unit_test(quick_writes_that_do_not_overlap_do_not_meet),
        cmocka_unit_test(quick_write_that_overlaps_turns_the_image_and_waits),
        cmocka_unit_test(quick_bracket_has_its_go_at_once),
        cmocka_unit_test(quick_bracket_holds_its_range),
        cmocka_unit_test(quick_bracket_that_would_wait_is_not_quick),
        cmocka_unit_test(quick_bracket_lies_in_one_stripe),
        cmocka_unit_test(quick_end_takes_only_the_token_of_a_bracket),
        cmocka_unit_test(quick_call_without_a_slot_turns_nothing),
        cmocka_unit_test(quick_end_of_a_bracket_makes_room_and_wakes),
        cmocka_unit_test(quick_call_wakes_who_sleeps_on_its_lane),
        cmocka_unit_test(quick_requests_are_counted_by_the_query),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
