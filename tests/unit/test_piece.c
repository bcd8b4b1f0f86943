/* SPDX-License-Identifier: MIT */
#include "block/guest.h"

#include "unit/rig.h"

#include "base/checked.h"

#define DISK_MOST 40000
#define BUFFERS 6
#define EVERY 0x7eu

/* What a backend asks for. */
struct shape {
    uint64_t bytes;
    uint32_t alignment;
    uint32_t memory;
    uint32_t iovs;
    uint64_t transfer;
    uint64_t zeroes;
    uint32_t depth;
};

struct bench {
    struct rig rig;
    struct script disk;
    blkrepl_image *image;
    struct shape shape;
    unsigned char oracle[DISK_MOST];
    unsigned char *memory; /* the guest's, and where its iovecs point */
    blkrepl_iovec iov[BUFFERS];
    uint32_t iov_count;
};

static void bench_open(struct bench *b, const struct shape *shape)
{
    memset(b, 0, sizeof *b);
    b->shape = *shape;
    rig_open(&b->rig, &(blkrepl_context_options){.lane_count = 2, .requests_max = 32});
    script_init(&b->disk, shape->bytes);
    b->disk.info.queue_depth = shape->depth;
    b->disk.info.request_alignment = shape->alignment;
    b->disk.info.memory_alignment = shape->memory;
    b->disk.info.iov_count_max = shape->iovs;
    b->disk.info.transfer_bytes_max = shape->transfer;
    b->disk.info.zeroes_bytes_max = shape->zeroes;
    b->image = script_open(&b->disk, &b->rig);
    for (uint64_t i = 0; i < shape->bytes; i++) {
        b->oracle[i] = b->disk.disk[i] = (unsigned char)(i * 7 + i / 256);
    }
    assert_int_equal(posix_memalign((void **)&b->memory, 4096, 4 * DISK_MOST), 0);
}

static void bench_close(struct bench *b)
{
    blkrepl_image_close(b->image);
    rig_close(&b->rig);
    script_fini(&b->disk);
    free(b->memory);
}

/* The unit in which the backend is asked. */
static uint64_t unit(const struct bench *b)
{
    uint64_t alignment = b->shape.alignment != 0 ? b->shape.alignment : 1;

    return max_u64(alignment, b->shape.memory);
}

/* Cut `bytes` of guest memory into iovecs; `aligned` ones can be given away. */
static void make_iov(struct bench *b, struct rng *rng, uint64_t bytes, bool aligned)
{
    unsigned char *at = b->memory + (aligned ? 0 : rng_below(rng, 5));
    uint64_t step = aligned ? max_u64(b->shape.memory, 1) : 1;

    b->iov_count = 0;
    while (bytes > 0) {
        uint64_t len = b->iov_count + 1 == BUFFERS ? bytes : 1 + rng_below(rng, bytes);

        len = min_u64(align_up(len, step), bytes);
        b->iov[b->iov_count++] = (blkrepl_iovec){.base = at, .len = (size_t)len};
        at += align_up(len + rng_below(rng, 3) * step, step);
        bytes -= len;
    }
}

/* Copy between the iovecs and flat memory. */
static void iov_copy(struct bench *b, unsigned char *flat, bool to_iov)
{
    for (uint32_t i = 0; i < b->iov_count; i++) {
        if (to_iov) {
            memcpy(b->iov[i].base, flat, b->iov[i].len);
        } else {
            memcpy(flat, b->iov[i].base, b->iov[i].len);
        }
        flat += b->iov[i].len;
    }
}

/* The requests of this opcode are next to each other and cover start..end. */
static void assert_covers(const struct bench *b, uint32_t opcode, uint64_t start, uint64_t end)
{
    for (unsigned i = 0; i < b->disk.note_count; i++) {
        const struct note *note = &b->disk.notes[i];

        if (note->opcode == opcode) {
            assert_int_equal(note->offset, start);
            start += note->bytes;
        }
    }
    assert_int_equal(start, end);
}

/* Only the first and the last block may be read for a write, and only where it
 * covers them in part. */
static void assert_patches(const struct bench *b, uint64_t offset, uint64_t bytes)
{
    uint64_t u = unit(b);
    uint64_t end = offset + bytes;
    uint64_t first = align_down(offset, u);
    uint64_t last = align_down(end - 1, u);
    bool end_fits = end % u == 0 || end == b->shape.bytes;
    bool tail = !end_fits && (last != first || offset % u == 0);
    unsigned want = (offset % u != 0 ? 1u : 0u) + (tail ? 1u : 0u);

    assert_int_equal(script_count(&b->disk, BLKREPL_OP_READ), want);
    for (unsigned i = 0; i < b->disk.note_count; i++) {
        const struct note *note = &b->disk.notes[i];

        if (note->opcode == BLKREPL_OP_READ) {
            assert_true((note->offset == first && offset % u != 0) ||
                        (note->offset == last && !end_fits));
            assert_true(note->bytes <= u);
        }
    }
}

static int run(struct bench *b, uint32_t opcode, uint64_t offset, uint64_t bytes, uint32_t flags)
{
    struct done done;
    blkrepl_completion c = done_of(&done);
    int rc = -1;

    script_forget(&b->disk);
    switch (opcode) {
    case BLKREPL_OP_READ:
        rc = blkrepl_image_read(b->image, 0, offset, b->iov, b->iov_count, flags, &c);
        break;
    case BLKREPL_OP_WRITE:
        rc = blkrepl_image_write(b->image, 0, offset, b->iov, b->iov_count, flags, &c);
        break;
    case BLKREPL_OP_ZEROES:
        rc = blkrepl_image_write_zeroes(b->image, 0, offset, bytes, flags, &c);
        break;
    case BLKREPL_OP_DISCARD:
        rc = blkrepl_image_discard(b->image, 0, offset, bytes, flags, &c);
        break;
    }
    assert_int_equal(rc, 0);
    rig_poll(&b->rig);
    assert_int_equal(done.calls, 1);
    return done.result;
}

static void one_write(struct bench *b, struct rng *rng, uint64_t offset, uint64_t bytes,
                      bool aligned)
{
    uint64_t u = unit(b);

    for (uint64_t i = 0; i < bytes; i++) {
        b->oracle[offset + i] = (unsigned char)rng_below(rng, 256);
    }
    make_iov(b, rng, bytes, aligned);
    iov_copy(b, b->oracle + offset, true);
    assert_int_equal(run(b, BLKREPL_OP_WRITE, offset, bytes, 0), 0);
    assert_covers(b, BLKREPL_OP_WRITE, align_down(offset, u),
                  min_u64(align_up(offset + bytes, u), b->shape.bytes));
    assert_patches(b, offset, bytes);
}

static void one_read(struct bench *b, struct rng *rng, uint64_t offset, uint64_t bytes,
                     bool aligned)
{
    static unsigned char got[DISK_MOST];
    uint64_t u = unit(b);

    make_iov(b, rng, bytes, aligned);
    memset(b->memory, 0x11, 4 * DISK_MOST);
    assert_int_equal(run(b, BLKREPL_OP_READ, offset, bytes, 0), 0);
    iov_copy(b, got, false);
    assert_memory_equal(got, b->oracle + offset, bytes);
    assert_covers(b, BLKREPL_OP_READ, align_down(offset, u),
                  min_u64(align_up(offset + bytes, u), b->shape.bytes));
    assert_int_equal(script_count(&b->disk, BLKREPL_OP_WRITE), 0);
}

static void one_zeroes(struct bench *b, uint64_t offset, uint64_t bytes)
{
    uint64_t u = unit(b);
    uint64_t end = offset + bytes;
    uint64_t whole = align_up(offset, u);
    uint64_t whole_end = end == b->shape.bytes ? end : align_down(end, u);

    memset(b->oracle + offset, 0, (size_t)bytes);
    assert_int_equal(run(b, BLKREPL_OP_ZEROES, offset, bytes, 0), 0);
    assert_patches(b, offset, bytes);
    if (whole < whole_end && (b->disk.info.opcodes >> BLKREPL_OP_ZEROES & 1) != 0) {
        assert_covers(b, BLKREPL_OP_ZEROES, whole, whole_end);
    }
}

/* Random requests of one backend against a byte array. */
static void agree(const struct shape *shape, uint64_t seed, unsigned rounds)
{
    struct bench b;
    struct rng rng = {seed};

    bench_open(&b, shape);
    for (unsigned i = 0; i < rounds; i++) {
        uint64_t offset = rng_below(&rng, shape->bytes);
        uint64_t bytes = 1 + rng_below(&rng, shape->bytes - offset);
        bool aligned = rng_below(&rng, 2) == 0;

        if (rng_below(&rng, 3) == 0) {
            offset = align_down(offset, unit(&b));
        }
        if (rng_below(&rng, 3) == 0) {
            bytes = 1 + rng_below(&rng, min_u64(1200, shape->bytes - offset));
        }
        switch (rng_below(&rng, 3)) {
        case 0: one_write(&b, &rng, offset, bytes, aligned); break;
        case 1: one_read(&b, &rng, offset, bytes, aligned); break;
        default: one_zeroes(&b, offset, bytes); break;
        }
        assert_memory_equal(b.disk.disk, b.oracle, shape->bytes);
    }
    bench_close(&b);
}

static void piece_data_agree_with_a_byte_array_for_every_alignment_and_limit(void **state)
{
    static const struct shape shapes[] = {
        {.bytes = 30000},
        {.bytes = 30000, .transfer = 1000, .zeroes = 700},
        {.bytes = 30000, .iovs = 1},
        {.bytes = 30001, .iovs = 3, .transfer = 4096},
        {.bytes = 32768, .alignment = 512},
        {.bytes = 30001, .alignment = 512}, /* the tail is shorter than a block */
        {.bytes = 30001, .alignment = 512, .memory = 512},
        {.bytes = 32768, .alignment = 4096, .memory = 512, .transfer = 8192, .zeroes = 4096},
        {.bytes = 39999, .alignment = 512, .memory = 8, .iovs = 2, .transfer = 1024},
        {.bytes = 20000, .memory = 64, .zeroes = 128},        /* memory raises the request's */
        {.bytes = 300, .alignment = 4096},                    /* less than a block in all */
        {.bytes = 9000, .alignment = 1024, .transfer = 1500}, /* a limit that is not whole */
    };

    (void)state;
    for (size_t i = 0; i < ARRAY_COUNT(shapes); i++) {
        agree(&shapes[i], i + 1, quick() ? 40 : 150);
    }
}

static void piece_of_an_aligned_request_is_the_request_as_it_is(void **state)
{
    struct bench b;
    struct rng rng = {5};

    (void)state;
    bench_open(&b, &(struct shape){.bytes = 32768, .alignment = 512, .memory = 16});
    for (int i = 0; i < 50; i++) {
        uint64_t offset = rng_below(&rng, 60) * 512;
        uint64_t bytes = 512 * (1 + rng_below(&rng, (32768 - offset) / 512));

        make_iov(&b, &rng, bytes, true);
        assert_int_equal(run(&b, i & 1 ? BLKREPL_OP_READ : BLKREPL_OP_WRITE, offset, bytes, 0), 0);
        assert_int_equal(script_count(&b.disk, 0), 1);
        assert_int_equal(b.disk.notes[0].bytes, bytes);
        assert_int_equal(b.disk.notes[0].iov_count, b.iov_count);
    }
    bench_close(&b);
}

static void piece_that_fails_ends_the_request_and_gives_its_buffer_back(void **state)
{
    struct bench b;
    struct rng rng = {5};

    (void)state;
    bench_open(&b, &(struct shape){.bytes = 32768, .alignment = 512});
    make_iov(&b, &rng, 5000, false);
    b.disk.result[BLKREPL_OP_READ] = -EIO;
    assert_int_equal(run(&b, BLKREPL_OP_WRITE, 100, 5000, 0), -EIO);
    assert_int_equal(script_count(&b.disk, 0), 1);
    b.disk.result[BLKREPL_OP_READ] = 0;
    b.disk.result[BLKREPL_OP_WRITE] = -ENOSPC;
    assert_int_equal(run(&b, BLKREPL_OP_WRITE, 100, 5000, 0), -ENOSPC);
    assert_int_equal(b.image->leaf->bounce_free, 0xffff);
    assert_memory_equal(b.disk.disk, b.oracle, 32768);
    bench_close(&b);
}

/* Only zeroes have another way: elsewhere a refusal is an error like others. */
static void piece_of_data_that_is_refused_fails(void **state)
{
    struct bench b;
    struct rng rng = {5};

    (void)state;
    bench_open(&b, &(struct shape){.bytes = 32768});
    b.disk.result[BLKREPL_OP_READ] = b.disk.result[BLKREPL_OP_WRITE] = -ENOTSUP;
    make_iov(&b, &rng, 1000, false);
    assert_int_equal(run(&b, BLKREPL_OP_READ, 0, 1000, 0), -ENOTSUP);
    assert_int_equal(run(&b, BLKREPL_OP_WRITE, 0, 1000, 0), -ENOTSUP);
    assert_int_equal(script_count(&b.disk, 0), 1);
    assert_false(b.image->leaf->zeroes_refused);
    b.disk.result[BLKREPL_OP_READ] = b.disk.result[BLKREPL_OP_WRITE] = 0;
    bench_close(&b);
}

static void piece_waits_for_a_buffer_and_the_first_that_waits_gets_it(void **state)
{
    struct bench b;
    struct done done[LEAF_BOUNCE_COUNT + 2];

    (void)state;
    bench_open(&b, &(struct shape){.bytes = 32768, .alignment = 512});
    b.disk.hold = EVERY;
    b.iov[0] = (blkrepl_iovec){b.memory, 10};
    for (unsigned i = 0; i < LEAF_BOUNCE_COUNT + 2; i++) {
        blkrepl_completion c = done_of(&done[i]);

        assert_int_equal(blkrepl_image_write(b.image, 0, i * 512, b.iov, 1, 0, &c), 0);
    }
    assert_int_equal(b.disk.waiting_count, LEAF_BOUNCE_COUNT);
    script_end(&b.disk, 5, 0); /* the read of the sixth; its write needs the same buffer */
    rig_poll(&b.rig);
    assert_int_equal(b.disk.waiting_count, LEAF_BOUNCE_COUNT);
    script_end(&b.disk, script_find(&b.disk, BLKREPL_OP_WRITE, 5 * 512), 0);
    rig_poll(&b.rig);
    script_find(&b.disk, BLKREPL_OP_READ, LEAF_BOUNCE_COUNT * 512);
    while (b.disk.waiting_count > 0) {
        script_end(&b.disk, 0, 0);
        rig_poll(&b.rig);
    }
    for (unsigned i = 0; i < LEAF_BOUNCE_COUNT + 2; i++) {
        done_assert(&done[i], 0);
    }
    bench_close(&b);
}

/* All that have a buffer are told, and those that get one while others wait. */
static void piece_with_a_buffer_that_others_wait_for_goes_out_with_lane_0(void **state)
{
    struct bench b;
    struct done done[LEAF_BOUNCE_COUNT + 3];
    struct guest *guests;

    (void)state;
    bench_open(&b, &(struct shape){.bytes = 32768, .alignment = 512, .depth = 1});
    guests = b.rig.ctx->guests;
    b.disk.hold = EVERY;
    b.iov[0] = (blkrepl_iovec){b.memory, 10};
    for (unsigned i = 0; i < LEAF_BOUNCE_COUNT + 3; i++) {
        blkrepl_completion c = done_of(&done[i]);

        assert_int_equal(blkrepl_image_read(b.image, 1, i * 512, b.iov, 1, 0, &c), 0);
        if (i < LEAF_BOUNCE_COUNT) {
            assert_false(guests[32 + i].hastened);
        }
    }
    for (unsigned i = 0; i < LEAF_BOUNCE_COUNT + 3; i++) {
        assert_int_equal(guests[32 + i].hastened, i < LEAF_BOUNCE_COUNT);
    }
    while (b.disk.waiting_count > 0) { /* by polls of lane 0 */
        bool first = b.disk.note_count == 1;

        assert_int_equal(b.disk.waiting[0]->lane, first ? 1 : 0);
        script_end(&b.disk, 0, 0);
        rig_poll(&b.rig);
    }
    assert_int_equal(guests[32 + LEAF_BOUNCE_COUNT].hastened, true);
    assert_int_equal(guests[32 + LEAF_BOUNCE_COUNT + 1].hastened, true);
    assert_false(guests[32 + LEAF_BOUNCE_COUNT + 2].hastened); /* nobody waits any more */
    while (blkrepl_poll(b.rig.ctx, 1, 0) > 0 || b.disk.waiting_count > 0) {
        script_end_all(&b.disk);
    }
    for (unsigned i = 0; i < LEAF_BOUNCE_COUNT + 3; i++) {
        done_assert(&done[i], 0);
    }
    bench_close(&b);
}

static void piece_takes_the_data_of_a_write_when_it_patches_not_before(void **state)
{
    struct bench b;
    struct done done;
    blkrepl_completion c = done_of(&done);

    (void)state;
    bench_open(&b, &(struct shape){.bytes = 4096, .alignment = 512});
    b.disk.hold = 1u << BLKREPL_OP_READ;
    b.iov[0] = (blkrepl_iovec){b.memory, 10};
    memset(b.memory, 0xaa, 10);
    assert_int_equal(blkrepl_image_write(b.image, 0, 700, b.iov, 1, 0, &c), 0);
    b.disk.disk[699] = 1; /* what is there when the read is carried out counts */
    script_end(&b.disk, 0, 0);
    rig_poll(&b.rig);
    done_assert(&done, 0);
    assert_int_equal(b.disk.disk[699], 1);
    assert_int_equal(b.disk.disk[700], 0xaa);
    assert_int_equal(b.disk.disk[709], 0xaa);
    assert_int_equal(b.disk.disk[710], b.oracle[710]);
    bench_close(&b);
}

static void piece_of_zeroes_that_is_refused_goes_by_buffers_from_then_on(void **state)
{
    struct bench b;

    (void)state;
    bench_open(&b, &(struct shape){.bytes = 30001, .alignment = 512, .zeroes = 8192});
    b.disk.result[BLKREPL_OP_ZEROES] = -ENOTSUP;
    memset(b.oracle + 100, 0, 20000);
    assert_int_equal(run(&b, BLKREPL_OP_ZEROES, 100, 20000, 0), 0);
    assert_memory_equal(b.disk.disk, b.oracle, 30001);
    assert_covers(&b, BLKREPL_OP_WRITE, 0, 20480);
    assert_int_equal(script_count(&b.disk, BLKREPL_OP_ZEROES), 1);
    assert_true(b.image->leaf->zeroes_refused);
    assert_int_equal(run(&b, BLKREPL_OP_ZEROES, 0, 30001, 0), 0);
    assert_int_equal(script_count(&b.disk, BLKREPL_OP_ZEROES), 0);
    assert_covers(&b, BLKREPL_OP_WRITE, 0, 30001);
    assert_int_equal(run(&b, BLKREPL_OP_ZEROES, 0, 512, BLKREPL_IO_NO_FALLBACK), -ENOTSUP);
    assert_int_equal(script_count(&b.disk, 0), 0);
    bench_close(&b);
}

static void piece_of_zeroes_without_fallback_is_refused_as_the_backend_does(void **state)
{
    struct bench b;

    (void)state;
    bench_open(&b, &(struct shape){.bytes = 32768, .alignment = 512});
    b.disk.result[BLKREPL_OP_ZEROES] = -ENOTSUP;
    assert_int_equal(run(&b, BLKREPL_OP_ZEROES, 0, 512, BLKREPL_IO_NO_FALLBACK), -ENOTSUP);
    assert_int_equal(b.disk.notes[0].flags, BLKREPL_IO_NO_FALLBACK);
    assert_false(b.image->leaf->zeroes_refused);
    b.disk.result[BLKREPL_OP_ZEROES] = -EINVAL; /* another error is an error */
    assert_int_equal(run(&b, BLKREPL_OP_ZEROES, 0, 512, BLKREPL_IO_MAY_UNMAP), -EINVAL);
    assert_int_equal(b.disk.notes[0].flags, BLKREPL_IO_MAY_UNMAP);
    bench_close(&b);
}

static void piece_of_a_discard_is_cut_to_the_limit_and_may_be_refused(void **state)
{
    struct bench b;

    (void)state;
    bench_open(&b, &(struct shape){.bytes = 32768, .alignment = 512, .zeroes = 4096 + 100});
    assert_int_equal(run(&b, BLKREPL_OP_DISCARD, 512, 16384, 0), 0);
    assert_int_equal(script_count(&b.disk, 0), 4);
    assert_covers(&b, BLKREPL_OP_DISCARD, 512, 512 + 16384);
    b.disk.result[BLKREPL_OP_DISCARD] = -ENOTSUP;
    assert_int_equal(run(&b, BLKREPL_OP_DISCARD, 0, 512, 0), 0); /* advice */
    b.disk.result[BLKREPL_OP_DISCARD] = -EIO;
    assert_int_equal(run(&b, BLKREPL_OP_DISCARD, 0, 512, 0), -EIO);
    b.image->leaf->port.info.opcodes &= ~(1u << BLKREPL_OP_DISCARD);
    assert_int_equal(run(&b, BLKREPL_OP_DISCARD, 0, 512, 0), 0);
    assert_int_equal(script_count(&b.disk, 0), 0);
    bench_close(&b);
}

static void piece_of_a_flush_needs_a_backend_that_can(void **state)
{
    struct bench b;
    struct done done;
    blkrepl_completion c = done_of(&done);

    (void)state;
    bench_open(&b, &(struct shape){.bytes = 32768});
    b.image->leaf->port.info.opcodes &= ~(1u << BLKREPL_OP_FLUSH);
    assert_int_equal(blkrepl_image_flush(b.image, 0, &c), 0);
    rig_poll(&b.rig);
    done_assert(&done, 0);
    b.iov[0] = (blkrepl_iovec){b.memory, 10};
    b.iov_count = 1;
    assert_int_equal(run(&b, BLKREPL_OP_WRITE, 0, 10, BLKREPL_IO_FUA), 0);
    assert_int_equal(script_count(&b.disk, 0), 1);
    bench_close(&b);
}

/* Ask for the status and compare with what was put into the map. */
static int status(struct bench *b, uint64_t offset, uint64_t bytes, blkrepl_extent *extents,
                  uint32_t most)
{
    struct done done;
    blkrepl_completion c = done_of(&done);

    memset(extents, 0xff, most * sizeof *extents);
    assert_int_equal(blkrepl_image_status(b->image, 0, offset, bytes, extents, most, &c), 0);
    rig_poll(&b->rig);
    assert_int_equal(done.calls, 1);
    return done.result;
}

static uint32_t truth(const struct bench *b, uint64_t at)
{
    uint64_t end = 0;

    for (int i = 0; b->disk.map[i].bytes > 0; i++) {
        end += b->disk.map[i].bytes;
        if (at < end) {
            return b->disk.map[i].flags;
        }
    }
    return BLKREPL_EXTENT_DATA | BLKREPL_EXTENT_ALLOCATED;
}

static void piece_of_a_status_is_cut_to_what_was_asked_and_tells_the_truth(void **state)
{
    struct bench b;
    struct rng rng = {9};
    blkrepl_extent extents[8];

    (void)state;
    bench_open(&b, &(struct shape){.bytes = 30001, .alignment = 512});
    for (int i = 0; i < 12; i++) {
        b.disk.map[i] =
            (blkrepl_extent){.bytes = 1 + rng_below(&rng, 3000),
                             .flags = i & 1 ? BLKREPL_EXTENT_ZERO : BLKREPL_EXTENT_DATA};
    }
    for (int round = 0; round < 300; round++) {
        uint64_t offset = rng_below(&rng, 30001);
        uint64_t bytes = 1 + rng_below(&rng, 30001 - offset);
        uint32_t most = 1 + (uint32_t)rng_below(&rng, 8);
        uint64_t at = offset;

        b.disk.extents_most = (uint32_t)rng_below(&rng, 3);
        assert_int_equal(status(&b, offset, bytes, extents, most), 0);
        for (uint32_t i = 0; i < most && extents[i].bytes > 0; i++) {
            uint64_t last = at + extents[i].bytes - 1;

            assert_true(last < offset + bytes);
            /* An answer that was used up by what lies before: data is the safe one. */
            if ((extents[i].flags & BLKREPL_EXTENT_ZERO) != 0) {
                assert_int_equal(truth(&b, at), extents[i].flags);
                assert_int_equal(truth(&b, last), extents[i].flags);
            }
            at = last + 1;
        }
        assert_true(at > offset);
    }
    bench_close(&b);
}

static void piece_of_a_status_that_makes_no_sense_fails(void **state)
{
    struct bench b;
    blkrepl_extent extents[4];

    (void)state;
    bench_open(&b, &(struct shape){.bytes = 32768, .alignment = 512});
    b.disk.map_raw = true; /* nothing at all */
    assert_int_equal(status(&b, 0, 4096, extents, 4), -EIO);
    assert_int_equal(extents[0].bytes, 0);
    b.disk.map[0] = (blkrepl_extent){.bytes = 4097, .flags = BLKREPL_EXTENT_DATA};
    assert_int_equal(status(&b, 0, 4096, extents, 4), -EIO); /* more than was asked */
    b.disk.map[0] = (blkrepl_extent){.bytes = 4000, .flags = BLKREPL_EXTENT_DATA};
    b.disk.map[1] = (blkrepl_extent){.bytes = UINT64_MAX - 3000, .flags = BLKREPL_EXTENT_DATA};
    assert_int_equal(status(&b, 0, 4096, extents, 4), -EIO); /* not even by wrapping */
    b.disk.map[1] = (blkrepl_extent){.bytes = 96, .flags = 8};
    assert_int_equal(status(&b, 0, 4096, extents, 4), -EIO); /* an unknown flag */
    b.disk.map[1].flags = BLKREPL_EXTENT_ZERO | BLKREPL_EXTENT_ALLOCATED;
    assert_int_equal(status(&b, 0, 4096, extents, 4), 0);
    assert_int_equal(extents[1].bytes, 96);
    assert_int_equal(extents[2].bytes, 0);
    bench_close(&b);
}

static void piece_of_a_status_without_one_is_all_data(void **state)
{
    struct bench b;
    blkrepl_extent extents[2];

    (void)state;
    bench_open(&b, &(struct shape){.bytes = 32768});
    b.image->leaf->port.info.opcodes &= ~(1u << BLKREPL_OP_STATUS);
    assert_int_equal(status(&b, 5, 1000, extents, 2), 0);
    assert_int_equal(extents[0].bytes, 1000);
    assert_int_equal(extents[0].flags, BLKREPL_EXTENT_DATA | BLKREPL_EXTENT_ALLOCATED);
    assert_int_equal(extents[1].bytes, 0);
    assert_int_equal(status(&b, 5, 0, extents, 1), 0);
    assert_int_equal(script_count(&b.disk, 0), 0);
    bench_close(&b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(piece_data_agree_with_a_byte_array_for_every_alignment_and_limit),
        cmocka_unit_test(piece_of_an_aligned_request_is_the_request_as_it_is),
        cmocka_unit_test(piece_that_fails_ends_the_request_and_gives_its_buffer_back),
        cmocka_unit_test(piece_of_data_that_is_refused_fails),
        cmocka_unit_test(piece_waits_for_a_buffer_and_the_first_that_waits_gets_it),
        cmocka_unit_test(piece_with_a_buffer_that_others_wait_for_goes_out_with_lane_0),
        cmocka_unit_test(piece_takes_the_data_of_a_write_when_it_patches_not_before),
        cmocka_unit_test(piece_of_zeroes_that_is_refused_goes_by_buffers_from_then_on),
        cmocka_unit_test(piece_of_zeroes_without_fallback_is_refused_as_the_backend_does),
        cmocka_unit_test(piece_of_a_discard_is_cut_to_the_limit_and_may_be_refused),
        cmocka_unit_test(piece_of_a_flush_needs_a_backend_that_can),
        cmocka_unit_test(piece_of_a_status_is_cut_to_what_was_asked_and_tells_the_truth),
        cmocka_unit_test(piece_of_a_status_that_makes_no_sense_fails),
        cmocka_unit_test(piece_of_a_status_without_one_is_all_data),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
