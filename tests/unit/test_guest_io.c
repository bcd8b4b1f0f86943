/* SPDX-License-Identifier: MIT */
#include "block/guest.h"

#include "unit/rig.h"

#define BYTES 10000

struct bench {
    struct rig rig;
    struct script disk;
    blkrepl_image *image;
};

static unsigned char memory[BYTES];
static blkrepl_extent extent;

static void bench_open(struct bench *b, uint32_t requests)
{
    memset(b, 0, sizeof *b);
    rig_open(&b->rig, &(blkrepl_context_options){.requests_max = requests});
    script_init(&b->disk, BYTES);
    b->image = script_open(&b->disk, &b->rig);
}

static void bench_close(struct bench *b)
{
    blkrepl_image_close(b->image);
    rig_close(&b->rig);
    script_fini(&b->disk);
}

/* One request of any kind. */
static int call(blkrepl_image *image, uint32_t opcode, uint32_t lane, uint64_t offset,
                uint64_t bytes, uint32_t flags, const blkrepl_completion *c)
{
    blkrepl_iovec iov = {memory, (size_t)bytes};

    switch (opcode) {
    case BLKREPL_OP_READ: return blkrepl_image_read(image, lane, offset, &iov, 1, flags, c);
    case BLKREPL_OP_WRITE: return blkrepl_image_write(image, lane, offset, &iov, 1, flags, c);
    case BLKREPL_OP_ZEROES: return blkrepl_image_write_zeroes(image, lane, offset, bytes, flags, c);
    case BLKREPL_OP_DISCARD: return blkrepl_image_discard(image, lane, offset, bytes, flags, c);
    case BLKREPL_OP_FLUSH: return blkrepl_image_flush(image, lane, c);
    default: return blkrepl_image_status(image, lane, offset, bytes, &extent, 1, c);
    }
}

static void refuse(struct bench *b, int code, uint32_t opcode, uint32_t lane, uint64_t offset,
                   uint64_t bytes, uint32_t flags)
{
    struct done done;
    blkrepl_completion c = done_of(&done);

    assert_int_equal(call(b->image, opcode, lane, offset, bytes, flags, &c), code);
    done_assert_rejected(&done);
    assert_int_equal(b->image->requests, 0);
}

static void request_is_refused_whole_when_it_is_not_inside(void **state)
{
    struct bench b;

    (void)state;
    bench_open(&b, 4);
    for (uint32_t op = BLKREPL_OP_READ; op <= BLKREPL_OP_STATUS; op++) {
        refuse(&b, -EINVAL, op, 1, 0, 1, 0); /* no such lane */
        if (op == BLKREPL_OP_FLUSH) {
            continue;
        }
        refuse(&b, -EINVAL, op, 0, BYTES, 1, 0);
        refuse(&b, -EINVAL, op, 0, BYTES - 1, 2, 0);
        refuse(&b, -EINVAL, op, 0, BYTES + 1, 0, 0);
        refuse(&b, -EINVAL, op, 0, UINT64_MAX, 2, 0); /* nor by wrapping */
    }
    assert_int_equal(script_count(&b.disk, 0), 0);
    bench_close(&b);
}

static void request_flags_are_those_of_its_kind(void **state)
{
    static const uint32_t known[] = {[BLKREPL_OP_READ] = 0,
                                     [BLKREPL_OP_WRITE] = BLKREPL_IO_FUA,
                                     [BLKREPL_OP_ZEROES] = BLKREPL_IO_FUA | BLKREPL_IO_MAY_UNMAP |
                                                           BLKREPL_IO_NO_FALLBACK,
                                     [BLKREPL_OP_DISCARD] = 0};
    struct bench b;

    (void)state;
    bench_open(&b, 4);
    for (uint32_t op = BLKREPL_OP_READ; op <= BLKREPL_OP_DISCARD; op++) {
        for (uint32_t flag = 1; flag <= 16; flag <<= 1) {
            if ((known[op] & flag) == 0) {
                refuse(&b, -EINVAL, op, 0, 0, 1, flag);
                continue;
            }
            assert_int_equal(call(b.image, op, 0, 0, 1, flag, NULL), 0);
            rig_poll(&b.rig);
        }
    }
    bench_close(&b);
}

static void request_of_no_bytes_succeeds_without_the_backend(void **state)
{
    struct bench b;

    (void)state;
    bench_open(&b, 8);
    for (uint32_t op = BLKREPL_OP_READ; op <= BLKREPL_OP_STATUS; op++) {
        struct done done;
        blkrepl_completion c = done_of(&done);

        if (op != BLKREPL_OP_FLUSH) {
            assert_int_equal(call(b.image, op, 0, BYTES, 0, 0, &c), 0);
            rig_poll(&b.rig);
            done_assert(&done, 0);
        }
    }
    assert_int_equal(script_count(&b.disk, 0), 0);
    bench_close(&b);
}

static void request_that_writes_needs_an_image_that_may_be_written(void **state)
{
    struct bench b;

    (void)state;
    bench_open(&b, 8);
    for (uint32_t op = BLKREPL_OP_READ; op <= BLKREPL_OP_STATUS; op++) {
        bool writes = op >= BLKREPL_OP_WRITE && op <= BLKREPL_OP_DISCARD;

        b.image->read_only = true;
        if (writes) {
            refuse(&b, -EROFS, op, 0, 0, 1, 0);
        } else {
            assert_int_equal(call(b.image, op, 0, 0, 1, 0, NULL), 0);
        }
        b.image->read_only = false;
        b.image->jobs_writing = 1; /* the target of a job */
        rig_poll(&b.rig);
        if (writes) {
            refuse(&b, -EBUSY, op, 0, 0, 1, 0);
        } else {
            assert_int_equal(call(b.image, op, 0, 0, 1, 0, NULL), 0);
        }
        b.image->jobs_writing = 0;
        rig_poll(&b.rig);
    }
    bench_close(&b);
}

static void request_arguments_may_not_be_missing(void **state)
{
    struct bench b;
    struct done done;
    blkrepl_completion c = done_of(&done);
    blkrepl_iovec iov = {NULL, 1};

    (void)state;
    bench_open(&b, 4);
    for (uint32_t op = BLKREPL_OP_READ; op <= BLKREPL_OP_STATUS; op++) {
        c = done_of(&done);
        assert_int_equal(call(NULL, op, 0, 0, 1, 0, &c), -EINVAL);
        done_assert_rejected(&done);
    }
    c = done_of(&done);
    assert_int_equal(blkrepl_image_read(b.image, 0, 0, NULL, 1, 0, &c), -EINVAL);
    done_assert_rejected(&done);
    c = done_of(&done);
    assert_int_equal(blkrepl_image_write(b.image, 0, 0, &iov, 1, 0, &c), -EINVAL);
    done_assert_rejected(&done);
    c = done_of(&done);
    assert_int_equal(blkrepl_image_status(b.image, 0, 0, 1, NULL, 1, &c), -EINVAL);
    done_assert_rejected(&done);
    c = done_of(&done);
    assert_int_equal(blkrepl_image_status(b.image, 0, 0, 1, &extent, 0, &c), -EINVAL);
    done_assert_rejected(&done);
    bench_close(&b);
}

static void request_beyond_requests_max_is_told_to_come_again(void **state)
{
    struct bench b;
    struct done done;
    blkrepl_completion c;

    (void)state;
    bench_open(&b, 2);
    for (uint32_t op = BLKREPL_OP_READ; op <= BLKREPL_OP_STATUS; op++) {
        b.disk.hold = 1u << BLKREPL_OP_FLUSH;
        assert_int_equal(blkrepl_image_flush(b.image, 0, NULL), 0);
        assert_int_equal(blkrepl_image_flush(b.image, 0, NULL), 0);
        c = done_of(&done);
        assert_int_equal(call(b.image, op, 0, 0, 1, 0, &c), -EAGAIN);
        done_assert_rejected(&done);
        script_end_all(&b.disk);
        rig_poll(&b.rig);
        assert_int_equal(rig_events(&b.rig, BLKREPL_EVENT_ROOM), op);
        b.disk.hold = 0;
        assert_int_equal(call(b.image, op, 0, 0, 1, 0, NULL), 0);
        rig_poll(&b.rig);
    }
    bench_close(&b);
}

static void request_to_a_context_that_is_being_freed_is_refused(void **state)
{
    struct bench b;

    (void)state;
    bench_open(&b, 4);
    assert_int_equal(blkrepl_context_free(b.rig.ctx), -EBUSY);
    for (uint32_t op = BLKREPL_OP_READ; op <= BLKREPL_OP_STATUS; op++) {
        refuse(&b, -ESHUTDOWN, op, 0, 0, 1, 0);
    }
    bench_close(&b);
}

static void request_without_data_has_no_iovecs_whatever_its_slot_was_used_for(void **state)
{
    struct bench b;

    (void)state;
    bench_open(&b, 1);
    for (uint32_t op = BLKREPL_OP_ZEROES; op <= BLKREPL_OP_STATUS; op++) {
        assert_int_equal(call(b.image, BLKREPL_OP_WRITE, 0, 0, 512, 0, NULL), 0);
        rig_poll(&b.rig);
        assert_int_equal(call(b.image, op, 0, 0, 512, 0, NULL), 0); /* the script looks at it */
        rig_poll(&b.rig);
    }
    bench_close(&b);
}

static void request_data_go_to_the_backend_and_come_from_it(void **state)
{
    struct bench b;

    (void)state;
    bench_open(&b, 4);
    memset(memory, 0xab, sizeof memory);
    assert_int_equal(call(b.image, BLKREPL_OP_WRITE, 0, 100, 900, 0, NULL), 0);
    assert_int_equal(call(b.image, BLKREPL_OP_ZEROES, 0, 200, 100, 0, NULL), 0);
    rig_poll(&b.rig);
    assert_int_equal(b.disk.disk[99], 0);
    assert_int_equal(b.disk.disk[100], 0xab);
    assert_int_equal(b.disk.disk[200], 0);
    assert_int_equal(b.disk.disk[999], 0xab);
    assert_int_equal(call(b.image, BLKREPL_OP_READ, 0, 199, 2, 0, NULL), 0);
    rig_poll(&b.rig);
    assert_int_equal(memory[0], 0xab);
    assert_int_equal(memory[1], 0);
    bench_close(&b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(request_is_refused_whole_when_it_is_not_inside),
        cmocka_unit_test(request_flags_are_those_of_its_kind),
        cmocka_unit_test(request_of_no_bytes_succeeds_without_the_backend),
        cmocka_unit_test(request_that_writes_needs_an_image_that_may_be_written),
        cmocka_unit_test(request_arguments_may_not_be_missing),
        cmocka_unit_test(request_beyond_requests_max_is_told_to_come_again),
        cmocka_unit_test(request_to_a_context_that_is_being_freed_is_refused),
        cmocka_unit_test(request_without_data_has_no_iovecs_whatever_its_slot_was_used_for),
        cmocka_unit_test(request_data_go_to_the_backend_and_come_from_it),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
