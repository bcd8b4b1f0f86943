/* SPDX-License-Identifier: MIT */
/* What a guest request is refused for, and what becomes of it at the backend. */
#include "tape.h"

#define SIZE (256 * KIB)

static struct env env;
static struct tape disk;
static blkrepl_image *image;
static uint8_t buffer[SIZE];

static int set_up(void **state)
{
    (void)state;
    env_open(&env, NULL, 0);
    tape_init(&disk, SIZE);
    tape_fill(&disk, 1);
    return 0;
}

static void open_it(void)
{
    image = tape_open(&disk, &env);
}

static int tear_down(void **state)
{
    (void)state;
    blkrepl_image_close(image);
    env_close(&env);
    tape_close(&disk);
    return 0;
}

/* ---- Refusals ------------------------------------------------------------------- */

static void ranges_that_do_not_lie_inside_are_refused(void **state)
{
    static const struct {
        uint64_t offset;
        uint64_t bytes;
    } bad[] = {
        {SIZE, 1},
        {SIZE - 1, 2},
        {0, SIZE + 1},
        {SIZE + 1, 0},
        {UINT64_C(1) << 63, 1},
        {(UINT64_C(1) << 63) - 1, 1},
        {UINT64_MAX, 1},
        {UINT64_MAX - 4095, 4096},
        {UINT64_MAX, 0},
        {1, (UINT64_C(1) << 63) - 1},
    };
    struct req req = {0};
    blkrepl_extent extent;

    (void)state;
    open_it();
    for (size_t i = 0; i < ARRAY_COUNT(bad); i++) {
        uint64_t at = bad[i].offset, len = bad[i].bytes;

        ASSERT_CODE(req_read(&req, image, at, buffer, (size_t)len), -EINVAL);
        req_assert_rejected(&req);
        ASSERT_CODE(req_write(&req, image, at, buffer, (size_t)len), -EINVAL);
        req_assert_rejected(&req);
        ASSERT_CODE(req_zeroes(&req, image, at, len), -EINVAL);
        req_assert_rejected(&req);
        ASSERT_CODE(req_discard(&req, image, at, len), -EINVAL);
        req_assert_rejected(&req);
        ASSERT_CODE(blkrepl_image_status(image, 0, at, len, &extent, 1, NULL), -EINVAL);
    }
    ASSERT_CODE(req_zeroes(&req, image, 1, UINT64_MAX), -EINVAL);
    ASSERT_CODE(req_discard(&req, image, 4096, UINT64_MAX - 4095), -EINVAL);
    env_drain(&env);
    assert_int_equal(tape_submitted(&disk, 0), 0);
}

static void iovecs_whose_sum_overflows_are_refused(void **state)
{
    blkrepl_iovec iov[3] = {{buffer, SIZE_MAX}, {buffer, 2}, {buffer, 510}};
    blkrepl_iovec many[2] = {{buffer, SIZE_MAX / 2 + 1}, {buffer, SIZE_MAX / 2 + 1}};

    (void)state;
    open_it();
    ASSERT_CODE(blkrepl_image_read(image, 0, 0, iov, 3, 0, NULL), -EINVAL);
    ASSERT_CODE(blkrepl_image_write(image, 0, 0, iov, 3, 0, NULL), -EINVAL);
    ASSERT_CODE(blkrepl_image_write(image, 0, 0, many, 2, 0, NULL), -EINVAL);
    env_drain(&env);
    assert_int_equal(tape_submitted(&disk, 0), 0);
}

static void empty_requests_are_accepted_and_complete(void **state)
{
    struct req req = {0};
    blkrepl_iovec none[3] = {{NULL, 0}, {buffer, 0}, {NULL, 0}};
    blkrepl_completion done;

    (void)state;
    open_it();
    ASSERT_CODE(req_read(&req, image, 0, buffer, 0), 0);
    env_drain(&env);
    req_assert_done(&req, 0);
    ASSERT_CODE(req_write(&req, image, SIZE, buffer, 0), 0);
    env_drain(&env);
    req_assert_done(&req, 0);
    req_reset(&req);
    done = req_completion(&req);
    ASSERT_CODE(blkrepl_image_write(image, 0, 7, NULL, 0, 0, &done), 0);
    env_drain(&env);
    req_assert_done(&req, 0);
    req_reset(&req);
    ASSERT_CODE(blkrepl_image_read(image, 0, 7, none, 3, 0, &done), 0);
    env_drain(&env);
    req_assert_done(&req, 0);
    ASSERT_CODE(req_zeroes(&req, image, 100, 0), 0);
    env_drain(&env);
    req_assert_done(&req, 0);
    ASSERT_CODE(req_discard(&req, image, 100, 0), 0);
    env_drain(&env);
    req_assert_done(&req, 0);
    assert_int_equal(tape_submitted(&disk, BLKREPL_OP_WRITE), 0);
}

static void unknown_flags_are_refused(void **state)
{
    blkrepl_iovec iov = {buffer, 512};
    struct req req = {0};
    blkrepl_completion done = req_completion(&req);

    (void)state;
    open_it();
    ASSERT_CODE(blkrepl_image_read(image, 0, 0, &iov, 1, BLKREPL_IO_FUA, &done), -EINVAL);
    req_assert_rejected(&req);
    ASSERT_CODE(blkrepl_image_read(image, 0, 0, &iov, 1, 0x80000000u, NULL), -EINVAL);
    ASSERT_CODE(blkrepl_image_write(image, 0, 0, &iov, 1, BLKREPL_IO_MAY_UNMAP, NULL), -EINVAL);
    ASSERT_CODE(blkrepl_image_write(image, 0, 0, &iov, 1, BLKREPL_IO_BACKGROUND, NULL), -EINVAL);
    ASSERT_CODE(blkrepl_image_write_zeroes(image, 0, 0, 1, BLKREPL_IO_BACKGROUND, NULL), -EINVAL);
    ASSERT_CODE(blkrepl_image_write_zeroes(image, 0, 0, 1, 16, NULL), -EINVAL);
    ASSERT_CODE(blkrepl_image_discard(image, 0, 0, 1, BLKREPL_IO_FUA, NULL), -EINVAL);
}

static void writes_refused(void)
{
    struct req req = {0};
    struct bracket bracket = {0};

    ASSERT_CODE(req_write(&req, image, 0, buffer, 1), -EROFS);
    req_assert_rejected(&req);
    ASSERT_CODE(req_zeroes(&req, image, 0, 1), -EROFS);
    ASSERT_CODE(req_discard(&req, image, 0, 4096), -EROFS);
    ASSERT_CODE(bracket_begin(&bracket, image, BLKREPL_OP_WRITE, 0, 4096), -EROFS);
    assert_int_equal(bracket.token, 0);
    req_assert_rejected(&bracket.go);
    ASSERT_CODE(req_flush(&req, image), 0);
    env_drain(&env);
    req_assert_done(&req, 0);
    ASSERT_CODE(read_now(&env, image, 0, buffer, 512), 0);
    assert_int_equal(image_info(image).flags, BLKREPL_IMAGE_READ_ONLY);
}

static void a_read_only_image_refuses_writes(void **state)
{
    blkrepl_image_options o = {.struct_size = sizeof o, .flags = BLKREPL_IMAGE_READ_ONLY};

    (void)state;
    image = tape_open_as(&disk, &env, &tape_ops, &o);
    writes_refused();
}

static void a_read_only_backend_refuses_writes(void **state)
{
    (void)state;
    disk.info.flags = BLKREPL_BACKEND_READ_ONLY;
    disk.info.opcodes = BIT(BLKREPL_OP_READ);
    open_it();
    writes_refused();
}

/* ---- What get_info may say -------------------------------------------------------- */

static void refused_info(int code)
{
    blkrepl_image *out = (blkrepl_image *)&env;
    unsigned closes = disk.closes;

    ASSERT_CODE(blkrepl_image_open(env.ctx, &tape_ops, &disk, NULL, &out), code);
    assert_null(out);
    assert_int_equal(disk.closes, closes);
}

static void impossible_backends_are_refused(void **state)
{
    blkrepl_backend_info good = disk.info;

    (void)state;
    disk.info.bytes = UINT64_C(1) << 63;
    refused_info(-EINVAL);
    disk.info = good;
    disk.info.opcodes = BIT(BLKREPL_OP_WRITE);
    refused_info(-EINVAL);
    disk.info.opcodes = BIT(BLKREPL_OP_READ);
    refused_info(-EINVAL);
    disk.info = good;
    disk.info.request_alignment = 3;
    refused_info(-EINVAL);
    disk.info.request_alignment = 131072;
    refused_info(-EINVAL);
    disk.info = good;
    disk.info.memory_alignment = 8192;
    refused_info(-EINVAL);
    disk.info.memory_alignment = 24;
    refused_info(-EINVAL);
    disk.info = good;
    disk.info.cluster_bytes = 32 * MIB;
    refused_info(-EINVAL);
    disk.info.cluster_bytes = 3000;
    refused_info(-EINVAL);
    disk.info = good;
    disk.get_info_result = -ENXIO;
    refused_info(-ENXIO);
    disk.get_info_result = 0;
    disk.get_infos = 0;
    disk.info.request_alignment = 65536;
    disk.info.memory_alignment = 4096;
    disk.info.cluster_bytes = 16 * MIB;
    open_it();
    assert_int_equal(image_info(image).request_alignment, 65536);
    assert_int_equal(image_info(image).memory_alignment, 4096);
    assert_int_equal(image_info(image).cluster_bytes, 16 * MIB);
    ASSERT_CODE(write_now(&env, image, 77777, "abc", 3), 0);
    assert_memory_equal(disk.data + 77777, "abc", 3);
}

/* ---- Room ------------------------------------------------------------------------- */

static void beyond_requests_max_it_is_eagain_and_room_follows(void **state)
{
    blkrepl_context_options o = {.struct_size = sizeof o, .requests_max = 4};
    struct req req[6] = {0};
    struct bracket bracket = {0};

    (void)state;
    env_close(&env);
    env_open(&env, &o, 0);
    open_it();
    disk.hold = OPS_ALL;
    for (size_t i = 0; i < 4; i++) {
        ASSERT_CODE(req_read(&req[i], image, i * 512, buffer, 512), 0);
    }
    ASSERT_CODE(req_read(&req[4], image, 0, buffer, 512), -EAGAIN);
    req_assert_rejected(&req[4]);
    ASSERT_CODE(req_write(&req[5], image, 0, buffer, 512), -EAGAIN);
    ASSERT_CODE(bracket_begin(&bracket, image, BLKREPL_OP_WRITE, 0, 512), -EAGAIN);
    assert_int_equal(bracket.token, 0);
    req_assert_rejected(&bracket.go);
    env_drain(&env);
    assert_int_equal(env_count(&env, BLKREPL_EVENT_ROOM, 0), 0);
    tape_finish(&disk, 0, 0);
    env_drain(&env);
    const blkrepl_event *room = env_event(&env, BLKREPL_EVENT_ROOM, 0, 0);
    assert_non_null(room);
    assert_int_equal(room->object_kind, BLKREPL_OBJECT_LANE);
    assert_null(room->user);
    assert_true(room->struct_size >= sizeof *room);
    assert_true(room->count >= 1);
    assert_int_equal(env_count(&env, BLKREPL_EVENT_ROOM, 0), 1);
    ASSERT_CODE(req_read(&req[4], image, 0, buffer, 512), 0);
    ASSERT_CODE(req_read(&req[5], image, 0, buffer, 512), -EAGAIN);
    tape_release(&disk, &env);
    assert_int_equal(env_count(&env, BLKREPL_EVENT_ROOM, 0), 2);
    req_assert_done(&req[4], 0);
}

static void without_a_refusal_there_is_no_room_event(void **state)
{
    struct req req[6] = {0};

    (void)state;
    open_it();
    for (size_t i = 0; i < 6; i++) {
        ASSERT_CODE(req_read(&req[i], image, i, buffer, 1), 0);
    }
    env_drain(&env);
    assert_int_equal(env.event_count, 0);
}

/* A ROOM callback that tries again gets through in the end. */
static struct req retry;
static int retry_answer;

static void try_again(struct env *e, const blkrepl_event *event)
{
    (void)e;
    if (event->type == BLKREPL_EVENT_ROOM && retry_answer == -EAGAIN) {
        retry_answer = req_read(&retry, image, 0, buffer, 512);
    }
}

static void a_retry_inside_the_room_event_is_accepted(void **state)
{
    blkrepl_context_options o = {.struct_size = sizeof o, .requests_max = 1};
    struct req req = {0};

    (void)state;
    env_close(&env);
    env_open(&env, &o, 0);
    env.on_event = try_again;
    open_it();
    disk.hold = OPS_ALL;
    ASSERT_CODE(req_write(&req, image, 0, buffer, 512), 0);
    retry_answer = req_read(&retry, image, 0, buffer, 512);
    ASSERT_CODE(retry_answer, -EAGAIN);
    tape_release(&disk, &env);
    ASSERT_CODE(retry_answer, 0);
    req_assert_done(&retry, 0);
}

/* ---- Results ---------------------------------------------------------------------- */

static void the_backends_code_is_passed_on(void **state)
{
    static const int codes[] = {-EIO, -ENOSPC, -ETIMEDOUT, -EPERM, -4095, -ECANCELED};
    struct req req = {0};
    blkrepl_extent extent[2];
    blkrepl_completion done;

    (void)state;
    open_it();
    for (size_t i = 0; i < ARRAY_COUNT(codes); i++) {
        for (int op = BLKREPL_OP_READ; op <= BLKREPL_OP_STATUS; op++) {
            disk.fail[op] = codes[i];
        }
        ASSERT_CODE(read_now(&env, image, 0, buffer, 512), codes[i]);
        ASSERT_CODE(write_now(&env, image, 0, buffer, 512), codes[i]);
        ASSERT_CODE(req_zeroes(&req, image, 0, 512), 0);
        env_drain(&env);
        req_assert_done(&req, codes[i]);
        ASSERT_CODE(req_discard(&req, image, 0, 512), 0);
        env_drain(&env);
        req_assert_done(&req, codes[i]);
        ASSERT_CODE(req_flush(&req, image), 0);
        env_drain(&env);
        req_assert_done(&req, codes[i]);
        req_reset(&req);
        done = req_completion(&req);
        ASSERT_CODE(blkrepl_image_status(image, 0, 0, 512, extent, 2, &done), 0);
        env_drain(&env);
        req_assert_done(&req, codes[i]);
    }
}

static void one_failing_piece_fails_a_split_write_once(void **state)
{
    struct req req = {0};

    (void)state;
    disk.info.transfer_bytes_max = 4096;
    open_it();
    disk.fail_opcode = BLKREPL_OP_WRITE;
    disk.fail_offset = 3 * 4096;
    disk.fail_bytes = 1;
    disk.fail_result = -EIO;
    disk.hold = BIT(BLKREPL_OP_WRITE);
    ASSERT_CODE(req_write(&req, image, 0, buffer, 8 * 4096), 0);
    for (int i = 0; i < 100 && REQ_PENDING(&req); i++) {
        env_drain(&env);
        tape_finish_all(&disk, 0, 0);
    }
    req_assert_done(&req, -EIO);
    assert_int_equal(tape_pending(&disk, 0), 0);
}

/* A failed read-modify-write must not write what it could not read. */
static void an_unaligned_write_whose_read_fails_writes_nothing(void **state)
{
    (void)state;
    disk.info.request_alignment = 4096;
    open_it();
    disk.fail[BLKREPL_OP_READ] = -EIO;
    uint8_t *before = tape_copy(&disk);
    ASSERT_CODE(write_now(&env, image, 100, "hello", 5), -EIO);
    assert_int_equal(tape_submitted(&disk, BLKREPL_OP_WRITE), 0);
    assert_same(disk.data, before, SIZE, "disk");
    free(before);
}

/* ---- FUA and flush ------------------------------------------------------------------ */

static int write_fua(struct req *req, uint64_t offset, size_t bytes)
{
    req_reset(req);
    req->iov = (blkrepl_iovec){buffer, bytes};
    blkrepl_completion done = req_completion(req);
    return blkrepl_image_write(image, 0, offset, &req->iov, 1, BLKREPL_IO_FUA, &done);
}

static void fua_is_passed_to_a_backend_that_has_it(void **state)
{
    struct req req = {0};
    blkrepl_completion done = req_completion(&req);

    (void)state;
    disk.info.flags = BLKREPL_BACKEND_FUA;
    open_it();
    ASSERT_CODE(write_fua(&req, 0, 4096), 0);
    env_drain(&env);
    req_assert_done(&req, 0);
    assert_int_equal(tape_submitted(&disk, BLKREPL_OP_FLUSH), 0);
    assert_int_equal(disk.log[disk.log_count - 1].opcode, BLKREPL_OP_WRITE);
    assert_true(disk.log[disk.log_count - 1].flags & BLKREPL_IO_FUA);
    req_reset(&req);
    ASSERT_CODE(blkrepl_image_write_zeroes(image, 0, 0, 4096, BLKREPL_IO_FUA, &done), 0);
    env_drain(&env);
    req_assert_done(&req, 0);
    assert_true(disk.log[disk.log_count - 1].flags & BLKREPL_IO_FUA);
    ASSERT_CODE(write_now(&env, image, 0, buffer, 512), 0);
    assert_false(disk.log[disk.log_count - 1].flags & BLKREPL_IO_FUA);
}

static void without_fua_a_flush_follows_every_fua_write(void **state)
{
    struct req req = {0};

    (void)state;
    open_it();
    disk.hold = OPS_ALL;
    ASSERT_CODE(write_fua(&req, 0, 4096), 0);
    env_drain(&env);
    assert_int_equal(tape_pending(&disk, BLKREPL_OP_WRITE), 1);
    assert_int_equal(tape_pending(&disk, BLKREPL_OP_FLUSH), 0);
    tape_finish_all(&disk, BLKREPL_OP_WRITE, 0);
    env_drain(&env);
    assert_int_equal(req.calls, 0);
    assert_int_equal(tape_pending(&disk, BLKREPL_OP_FLUSH), 1);
    tape_finish_all(&disk, BLKREPL_OP_FLUSH, 0);
    env_drain(&env);
    req_assert_done(&req, 0);

    ASSERT_CODE(write_fua(&req, 0, 4096), 0);
    env_drain(&env);
    tape_finish_all(&disk, BLKREPL_OP_WRITE, 0);
    env_drain(&env);
    tape_finish_all(&disk, BLKREPL_OP_FLUSH, -EIO);
    env_drain(&env);
    req_assert_done(&req, -EIO);
}

static void a_backend_without_flush_lets_flush_and_fua_succeed(void **state)
{
    struct req req = {0};

    (void)state;
    disk.info.opcodes = OPS_RW;
    open_it();
    ASSERT_CODE(req_flush(&req, image), 0);
    env_drain(&env);
    req_assert_done(&req, 0);
    ASSERT_CODE(write_fua(&req, 0, 512), 0);
    env_drain(&env);
    req_assert_done(&req, 0);
    assert_int_equal(tape_submitted(&disk, 0), 1);
}

static void every_flush_reaches_the_backend_after_the_writes_before_it(void **state)
{
    struct req write = {0}, flush = {0};

    (void)state;
    open_it();
    disk.hold = OPS_ALL;
    ASSERT_CODE(req_write(&write, image, 0, buffer, 512), 0);
    env_drain(&env);
    tape_finish_all(&disk, BLKREPL_OP_WRITE, 0);
    env_drain(&env);
    req_assert_done(&write, 0);
    ASSERT_CODE(req_flush(&flush, image), 0);
    env_drain(&env);
    assert_int_equal(flush.calls, 0);
    assert_int_equal(tape_pending(&disk, BLKREPL_OP_FLUSH), 1);
    tape_finish_all(&disk, 0, 0);
    env_drain(&env);
    req_assert_done(&flush, 0);
}

/* ---- Zeroes, discard, status --------------------------------------------------------- */

static void zeroes_are_written_as_buffers_when_not_supported(void **state)
{
    struct req req = {0};

    (void)state;
    disk.info.opcodes = OPS_RW;
    disk.info.transfer_bytes_max = 16384;
    open_it();
    ASSERT_CODE(req_zeroes(&req, image, 1000, 150000), 0);
    env_drain(&env);
    req_assert_done(&req, 0);
    assert_true(tape_submitted(&disk, BLKREPL_OP_WRITE) > 0);
    uint8_t *want = malloc(SIZE);
    fill(want, SIZE, 0, 1);
    memset(want + 1000, 0, 150000);
    assert_same(disk.data, want, SIZE, "disk");
    free(want);
}

static void with_no_fallback_unsupported_zeroes_fail(void **state)
{
    struct req req = {0};
    blkrepl_completion done = req_completion(&req);

    (void)state;
    disk.info.opcodes = OPS_RW;
    open_it();
    /* image.h does not say whether by the call or by the callback. */
    int rc = blkrepl_image_write_zeroes(image, 0, 0, 4096, BLKREPL_IO_NO_FALLBACK, &done);
    env_drain(&env);
    if (rc == 0) {
        req_assert_done(&req, -ENOTSUP);
    } else {
        ASSERT_CODE(rc, -ENOTSUP);
        req_assert_rejected(&req);
    }
    assert_int_equal(tape_submitted(&disk, BLKREPL_OP_WRITE), 0);
}

static void long_zeroes_go_in_pieces_and_stop_at_a_failure(void **state)
{
    struct req req = {0};

    (void)state;
    disk.info.zeroes_bytes_max = 8192;
    disk.info.queue_depth = 1;
    open_it();
    ASSERT_CODE(req_zeroes(&req, image, 0, 8 * 8192), 0);
    env_drain(&env);
    req_assert_done(&req, 0);
    assert_true(all_zero(disk.data, 8 * 8192));
    tape_fill(&disk, 2);
    disk.fail_opcode = BLKREPL_OP_ZEROES;
    disk.fail_offset = 2 * 8192;
    disk.fail_bytes = 1;
    disk.fail_result = -EIO;
    ASSERT_CODE(req_zeroes(&req, image, 0, 20 * 8192), 0);
    env_drain(&env);
    req_assert_done(&req, -EIO);
    fill(buffer, 8192, 19 * 8192, 2);
    assert_memory_equal(disk.data + 19 * 8192, buffer, 8192);
}

static void discard_is_advice(void **state)
{
    struct req req = {0};

    (void)state;
    disk.info.opcodes = OPS_RW;
    open_it();
    ASSERT_CODE(req_discard(&req, image, 5, 100000), 0);
    env_drain(&env);
    req_assert_done(&req, 0);
    assert_int_equal(tape_submitted(&disk, 0), 0);
}

static void discard_never_grows_to_the_alignment(void **state)
{
    struct req req = {0};

    (void)state;
    disk.info.request_alignment = 4096;
    disk.info.zeroes_bytes_max = 16384;
    open_it();
    ASSERT_CODE(req_discard(&req, image, 5000, 50000), 0);
    env_drain(&env);
    req_assert_done(&req, 0);
    assert_true(tape_saw(&disk, BLKREPL_OP_DISCARD, 8192, 4096));
    assert_false(tape_saw(&disk, 0, 0, 5000));
    assert_false(tape_saw(&disk, 0, 55000, SIZE - 55000));
    ASSERT_CODE(req_discard(&req, image, 4097, 4000), 0);
    size_t before = tape_submitted(&disk, 0);
    env_drain(&env);
    req_assert_done(&req, 0);
    assert_int_equal(tape_submitted(&disk, 0), before);
}

static int status(struct req *req, uint64_t offset, uint64_t bytes, blkrepl_extent *extent,
                  uint32_t max)
{
    req_reset(req);
    memset(extent, 0xee, max * sizeof *extent);
    blkrepl_completion done = req_completion(req);
    return blkrepl_image_status(image, 0, offset, bytes, extent, max, &done);
}

static void without_status_all_is_data(void **state)
{
    struct req req = {0};
    blkrepl_extent extent[3];
    uint64_t at = 0;

    (void)state;
    disk.info.opcodes = OPS_RW;
    open_it();
    while (at < SIZE) {
        ASSERT_CODE(status(&req, at, SIZE - at, extent, 3), 0);
        env_drain(&env);
        req_assert_done(&req, 0);
        assert_true(extent[0].bytes > 0);
        for (size_t i = 0; i < 3 && extent[i].bytes; i++) {
            assert_true(extent[i].flags & BLKREPL_EXTENT_DATA);
            assert_false(extent[i].flags & BLKREPL_EXTENT_ZERO);
            assert_true(extent[i].bytes <= SIZE - at);
            at += extent[i].bytes;
        }
    }
}

/* The extents of [offset, offset + bytes) agree with the data. */
static void check_status(uint64_t offset, uint64_t bytes, uint32_t max)
{
    struct req req = {0};
    blkrepl_extent extent[4];
    uint64_t at = offset, end = offset + bytes;

    while (at < end) {
        ASSERT_CODE(status(&req, at, end - at, extent, max), 0);
        env_drain(&env);
        req_assert_done(&req, 0);
        assert_true(extent[0].bytes > 0);
        for (size_t i = 0; i < max && extent[i].bytes; i++) {
            assert_true(extent[i].bytes <= end - at);
            if (extent[i].flags & BLKREPL_EXTENT_ZERO) {
                assert_true(all_zero(disk.data + at, (size_t)extent[i].bytes));
            }
            assert_int_equal(extent[i].reserved0, 0);
            at += extent[i].bytes;
        }
    }
}

static void status_tells_the_truth_about_any_range(void **state)
{
    struct rng rng = {.state = 99};

    (void)state;
    disk.info.request_alignment = 4096;
    memset(disk.data + 8192, 0, 40000);
    memset(disk.data + 100000, 0, 50000);
    open_it();
    check_status(0, SIZE, 4);
    check_status(0, SIZE, 1);
    for (int i = 0; i < 200; i++) {
        uint64_t at = rng_below(&rng, SIZE);

        check_status(at, 1 + rng_below(&rng, SIZE - at), 1 + (uint32_t)rng_below(&rng, 4));
    }
}

static void status_lists_that_lie_do_no_harm(void **state)
{
    struct req req = {0};
    blkrepl_extent extent[3];

    (void)state;
    open_it();
    disk.status = TAPE_STATUS_EMPTY;
    ASSERT_CODE(status(&req, 512, 4096, extent, 3), 0);
    env_drain(&env);
    assert_int_equal(req.calls, 1);
    assert_true(req.result < 0 || extent[0].bytes > 0);
    disk.status = TAPE_STATUS_TOO_LONG;
    ASSERT_CODE(status(&req, 512, 4096, extent, 3), 0);
    env_drain(&env);
    assert_int_equal(req.calls, 1);
    if (req.result == 0) {
        uint64_t sum = 0;

        for (int i = 0; i < 3 && extent[i].bytes; i++) {
            assert_true(extent[i].bytes <= 4096 - sum);
            sum += extent[i].bytes;
        }
        assert_true(sum > 0);
    }
}

int main(void)
{
#define T(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)
    const struct CMUnitTest tests[] = {
        T(ranges_that_do_not_lie_inside_are_refused),
        T(iovecs_whose_sum_overflows_are_refused),
        T(empty_requests_are_accepted_and_complete),
        T(unknown_flags_are_refused),
        T(a_read_only_image_refuses_writes),
        T(a_read_only_backend_refuses_writes),
        T(impossible_backends_are_refused),
        T(beyond_requests_max_it_is_eagain_and_room_follows),
        T(without_a_refusal_there_is_no_room_event),
        T(a_retry_inside_the_room_event_is_accepted),
        T(the_backends_code_is_passed_on),
        T(one_failing_piece_fails_a_split_write_once),
        T(an_unaligned_write_whose_read_fails_writes_nothing),
        T(fua_is_passed_to_a_backend_that_has_it),
        T(without_fua_a_flush_follows_every_fua_write),
        T(a_backend_without_flush_lets_flush_and_fua_succeed),
        T(every_flush_reaches_the_backend_after_the_writes_before_it),
        T(zeroes_are_written_as_buffers_when_not_supported),
        T(with_no_fallback_unsupported_zeroes_fail),
        T(long_zeroes_go_in_pieces_and_stop_at_a_failure),
        T(discard_is_advice),
        T(discard_never_grows_to_the_alignment),
        T(without_status_all_is_data),
        T(status_tells_the_truth_about_any_range),
        T(status_lists_that_lie_do_no_harm),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
