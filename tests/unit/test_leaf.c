/* SPDX-License-Identifier: MIT */
#include "block/leaf.h"

#include "unit/rig.h"

struct bench {
    struct rig rig;
    struct script disk;
};

static void bench_open(struct bench *b)
{
    memset(b, 0, sizeof *b);
    rig_open(&b->rig, NULL);
    script_init(&b->disk, MIB);
}

static void bench_close(struct bench *b)
{
    rig_close(&b->rig);
    script_fini(&b->disk);
}

/* What becomes of an info; NULL if it is refused with this code. */
static struct leaf *make(struct bench *b, const blkrepl_backend_info *info, int code)
{
    struct leaf *leaf = NULL;

    b->disk.info = *info;
    assert_int_equal(blkrepl__leaf_create(b->rig.ctx, &script_ops, &b->disk, &leaf), code);
    return leaf;
}

static void refuse(struct bench *b, blkrepl_backend_info info)
{
    assert_null(make(b, &info, -EINVAL));
}

static void leaf_fills_in_the_defaults(void **state)
{
    struct bench b;
    blkrepl_backend_info info = {.bytes = MIB, .opcodes = 0xfffffffe};
    struct leaf *leaf;

    (void)state;
    bench_open(&b);
    leaf = make(&b, &info, 0);
    assert_int_equal(leaf->port.info.queue_depth, 64);
    assert_int_equal(leaf->port.info.request_alignment, 1);
    assert_int_equal(leaf->port.info.memory_alignment, 1);
    assert_int_equal(leaf->port.info.iov_count_max, 1024);
    assert_true(leaf->port.info.transfer_bytes_max == BLKREPL_IMAGE_BYTES_MAX);
    assert_true(leaf->port.info.zeroes_bytes_max == BLKREPL_IMAGE_BYTES_MAX);
    assert_true(leaf->port.info.copy_bytes_max == BLKREPL_IMAGE_BYTES_MAX);
    assert_null(leaf->port.info.copy_domain);        /* a backend that does not know of it */
    assert_int_equal(leaf->port.info.opcodes, 0xfe); /* what it knows */
    assert_null(leaf->bounce_memory);                /* never needed */
    assert_false(leaf_aligned(leaf));
    assert_true(leaf_has(leaf, BLKREPL_OP_STATUS));
    assert_false(leaf_has(leaf, BLKREPL_OP_RESIZE));
    blkrepl__leaf_free(leaf);
    bench_close(&b);
}

static void leaf_rounds_limits_to_the_alignment_which_memory_raises(void **state)
{
    struct bench b;
    blkrepl_backend_info info = {.bytes = 1000,
                                 .opcodes = 6,
                                 .request_alignment = 512,
                                 .memory_alignment = 4096,
                                 .transfer_bytes_max = 10000,
                                 .zeroes_bytes_max = 4097,
                                 .copy_bytes_max = 12289};
    struct leaf *leaf;

    (void)state;
    bench_open(&b);
    leaf = make(&b, &info, 0);
    assert_int_equal(leaf->port.info.request_alignment, 4096);
    assert_int_equal(leaf->port.info.transfer_bytes_max, 8192);
    assert_int_equal(leaf->port.info.zeroes_bytes_max, 4096);
    assert_int_equal(leaf->port.info.copy_bytes_max, 12288);
    assert_true(leaf_aligned(leaf));
    blkrepl__leaf_free(leaf);
    bench_close(&b);
}

static void leaf_refuses_an_info_that_is_out_of_bounds(void **state)
{
    struct bench b;
    const blkrepl_backend_info good = {.bytes = MIB, .opcodes = 6};
    blkrepl_backend_info info;

    (void)state;
    bench_open(&b);
    info = good;
    info.bytes = UINT64_C(1) << 63;
    refuse(&b, info);
    info = good;
    info.opcodes = 2; /* no WRITE */
    refuse(&b, info);
    info.opcodes = 4; /* no READ */
    refuse(&b, info);
    info = good;
    info.flags = 8;
    refuse(&b, info);
    info = good;
    info.request_alignment = 3;
    refuse(&b, info);
    info.request_alignment = 131072;
    refuse(&b, info);
    info = good;
    info.memory_alignment = 8192;
    refuse(&b, info);
    info = good;
    info.cluster_bytes = 3;
    refuse(&b, info);
    info.cluster_bytes = 1u << 25;
    refuse(&b, info);
    info = good;
    info.request_alignment = 512;
    info.transfer_bytes_max = 511;
    refuse(&b, info);
    info.transfer_bytes_max = 0;
    info.zeroes_bytes_max = 511;
    refuse(&b, info);
    info.zeroes_bytes_max = 512;
    info.copy_bytes_max = 511;
    refuse(&b, info);
    info.copy_bytes_max = 512;
    info.reserved0 = &b;
    refuse(&b, info);
    info.reserved0 = NULL;
    blkrepl__leaf_free(make(&b, &info, 0));
    info = (blkrepl_backend_info){.opcodes = 2, .flags = BLKREPL_BACKEND_READ_ONLY};
    blkrepl__leaf_free(make(&b, &info, 0));
    b.disk.info_result = -ENXIO; /* passed on */
    assert_null(make(&b, &good, -ENXIO));
    bench_close(&b);
}

static void leaf_refuses_a_table_that_is_not_whole(void **state)
{
    struct bench b;
    blkrepl_backend_ops ops;
    struct leaf *leaf;

    (void)state;
    bench_open(&b);
    assert_int_equal(blkrepl__leaf_create(b.rig.ctx, NULL, &b.disk, &leaf), -EINVAL);
    ops = script_ops;
    ops.get_info = NULL;
    assert_int_equal(blkrepl__leaf_create(b.rig.ctx, &ops, &b.disk, &leaf), -EINVAL);
    ops = script_ops;
    ops.submit = NULL;
    assert_int_equal(blkrepl__leaf_create(b.rig.ctx, &ops, &b.disk, &leaf), -EINVAL);
    ops = script_ops;
    ops.flags = 1;
    assert_int_equal(blkrepl__leaf_create(b.rig.ctx, &ops, &b.disk, &leaf), -EINVAL);
    ops = script_ops;
    ops.struct_size = 8;
    assert_int_equal(blkrepl__leaf_create(b.rig.ctx, &ops, &b.disk, &leaf), -EINVAL);
    ops = script_ops;
    ops.cancel = NULL;
    ops.close = NULL;
    assert_int_equal(blkrepl__leaf_create(b.rig.ctx, &ops, &b.disk, &leaf), 0);
    blkrepl__leaf_free(leaf);
    bench_close(&b);
}

static void leaf_that_gets_no_memory_leaks_none(void **state)
{
    struct bench b;
    struct leaf *leaf = NULL;
    int rc = -ENOMEM;

    (void)state;
    bench_open(&b);
    b.disk.info.request_alignment = 512;
    for (uint64_t n = 1; rc == -ENOMEM && n < 10; n++) {
        uint64_t live = b.rig.heap.live;

        b.rig.heap.fail_at = b.rig.heap.calls + n;
        rc = blkrepl__leaf_create(b.rig.ctx, &script_ops, &b.disk, &leaf);
        b.rig.heap.fail_at = 0;
        if (rc == 0) {
            assert_int_equal(n, 4);
            blkrepl__leaf_free(leaf);
        }
        assert_int_equal(b.rig.heap.live, live);
    }
    assert_int_equal(rc, 0);
    bench_close(&b);
}

static void note_run(struct ready *ready)
{
    (void)ready;
}

static void leaf_buffers_are_each_their_own_and_the_first_that_waits_is_woken(void **state)
{
    struct bench b;
    unsigned char *buffers[LEAF_BOUNCE_COUNT];
    struct ready waits[2] = {{.run = note_run}, {.run = note_run}};
    struct leaf *leaf;

    (void)state;
    bench_open(&b);
    b.disk.info.request_alignment = 512;
    assert_int_equal(blkrepl__leaf_create(b.rig.ctx, &script_ops, &b.disk, &leaf), 0);
    for (int i = 0; i < LEAF_BOUNCE_COUNT; i++) {
        buffers[i] = blkrepl__leaf_bounce_take(leaf, NULL);
        assert_non_null(buffers[i]);
        assert_int_equal((uintptr_t)buffers[i] % LEAF_BOUNCE_BYTES, 0);
        memset(buffers[i], i, LEAF_BOUNCE_BYTES);
    }
    for (int i = 0; i < LEAF_BOUNCE_COUNT; i++) {
        assert_int_equal(buffers[i][0], i);
        assert_int_equal(buffers[i][LEAF_BOUNCE_BYTES - 1], i);
    }
    assert_null(blkrepl__leaf_bounce_take(leaf, NULL));
    list_append(&leaf->bounce_waiters, &waits[0].link);
    list_append(&leaf->bounce_waiters, &waits[1].link);
    blkrepl__leaf_bounce_put(leaf, buffers[7]);
    assert_ptr_equal(list_pop(&b.rig.ctx->ready), &waits[0].link);
    assert_true(list_empty(&b.rig.ctx->ready));
    assert_ptr_equal(blkrepl__leaf_bounce_take(leaf, NULL), buffers[7]);
    blkrepl__leaf_free(leaf);
    bench_close(&b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(leaf_fills_in_the_defaults),
        cmocka_unit_test(leaf_rounds_limits_to_the_alignment_which_memory_raises),
        cmocka_unit_test(leaf_refuses_an_info_that_is_out_of_bounds),
        cmocka_unit_test(leaf_refuses_a_table_that_is_not_whole),
        cmocka_unit_test(leaf_that_gets_no_memory_leaks_none),
        cmocka_unit_test(leaf_buffers_are_each_their_own_and_the_first_that_waits_is_woken),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
