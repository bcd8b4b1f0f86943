/* SPDX-License-Identifier: MIT */
#include "unit/copy_rig.h"

#define DATA BLKREPL_EXTENT_DATA
#define ZERO BLKREPL_EXTENT_ZERO

static void task_goes_from_claim_to_status_read_write_and_is_free(void **state)
{
    struct copy_rig r;
    struct copy_task *task;

    (void)state;
    copy_rig_init(&r, 64 * KIB);
    r.source.hold = r.target.hold = 0x7e;
    copy_rig_open(&r, NULL);
    copy_rig_start(&r);
    task = copy_rig_task(&r, 0, 4, false);
    assert_int_equal(task->state, COPY_STATUS);
    assert_int_equal(r.source.waiting[0]->flags, BLKREPL_IO_BACKGROUND);
    assert_int_equal(r.source.waiting[0]->bytes, 16 * KIB); /* its own range, no look ahead */
    script_end(&r.source, 0, 0);
    rig_poll(&r.rig);
    assert_int_equal(task->state, COPY_READ);
    copy_rig_check(&r);
    script_end(&r.source, 0, 0);
    rig_poll(&r.rig);
    assert_int_equal(task->state, COPY_WRITE);
    assert_int_equal(r.target.waiting[0]->flags, BLKREPL_IO_BACKGROUND);
    copy_rig_check(&r);
    script_end(&r.target, 0, 0);
    rig_poll(&r.rig);
    assert_int_equal(task->state, COPY_FREE);
    assert_int_equal(r.copy.bytes_done, 16 * KIB);
    assert_int_equal(r.copy.zero_bytes, 0);
    assert_int_equal(r.copy.guest_copies_count, 0);
    assert_memory_equal(r.target.disk, r.source.disk, 16 * KIB);
    copy_rig_close(&r);
}

static void task_without_a_status_reads_at_once(void **state)
{
    struct copy_rig r;

    (void)state;
    copy_rig_init(&r, 64 * KIB);
    r.source.info.opcodes &= ~OP(STATUS);
    r.source.hold = 0x7e;
    copy_rig_open(&r, NULL);
    copy_rig_start(&r);
    assert_int_equal(copy_rig_task(&r, 0, 1, false)->state, COPY_READ);
    copy_rig_close(&r);
}

static void task_over_what_is_known_to_be_zero_writes_at_once(void **state)
{
    struct copy_rig r;
    struct copy_task *task;

    (void)state;
    copy_rig_init(&r, 64 * KIB);
    r.target.hold = 0x7e;
    copy_rig_open(&r, NULL);
    copy_rig_start(&r);
    r.copy.known[0] = (struct copy_known){.start = 0, .end = 10 * KIB, .zero = true};
    r.copy.known[1] = (struct copy_known){.start = 10 * KIB, .end = 32 * KIB, .zero = true};
    r.copy.known_count = 2;
    task = copy_rig_task(&r, 0, 8, false);
    assert_int_equal(task->state, COPY_WRITE);
    assert_int_equal(r.target.waiting[0]->opcode, BLKREPL_OP_ZEROES);
    assert_int_equal(r.target.waiting[0]->flags,
                     BLKREPL_IO_BACKGROUND | BLKREPL_IO_MAY_UNMAP | BLKREPL_IO_NO_FALLBACK);
    assert_int_equal(script_count(&r.source, 0), 0);
    script_end(&r.target, 0, 0);
    rig_poll(&r.rig);
    assert_int_equal(r.copy.zero_bytes, 32 * KIB);
    copy_rig_close(&r);
}

/* What a STATUS answers over a task, and what the task makes of it. */
struct answer {
    const char *what;
    uint64_t size;     /* of the source */
    uint64_t clusters; /* of the task */
    blkrepl_extent extents[5];
    bool zero;
    uint64_t end;
};

static const struct answer answers[] = {
    {"all zero", 65536, 4, {{16384, ZERO, 0}}, true, 16384},
    {"all data", 65536, 4, {{16384, DATA, 0}}, false, 16384},
    {"allocated zeroes", 65536, 4, {{16384, ZERO | BLKREPL_EXTENT_ALLOCATED, 0}}, true, 16384},
    {"no flag at all is data", 65536, 4, {{16384, 0, 0}}, false, 16384},
    {"a zero cluster", 65536, 4, {{4096, ZERO, 0}, {12288, DATA, 0}}, true, 4096},
    {"one byte short", 65536, 4, {{4095, ZERO, 0}, {12289, DATA, 0}}, false, 16384},
    {"and some zeroes more", 65536, 4, {{5000, ZERO, 0}, {11384, DATA, 0}}, true, 4096},
    {"a data cluster", 65536, 4, {{4096, DATA, 0}, {12288, ZERO, 0}}, false, 4096},
    {"data by one byte", 65536, 4, {{4097, DATA, 0}, {12287, ZERO, 0}}, false, 8192},
    {"one byte of data", 65536, 4, {{1, DATA, 0}, {16383, ZERO, 0}}, false, 4096},
    {"a byte in zeroes", 65536, 4, {{9, ZERO, 0}, {1, DATA, 0}, {16374, ZERO, 0}}, false, 4096},
    {"two runs of zeroes", 65536, 4, {{100, ZERO, 0}, {16284, ZERO, 0}}, true, 16384},
    {"two of data", 65536, 4, {{100, DATA, 0}, {9000, 0, 0}, {7284, ZERO, 0}}, false, 12288},
    {"short, data", 65536, 4, {{4096, DATA, 0}}, false, 4096},
    {"short within a cluster", 65536, 4, {{100, DATA, 0}}, false, 4096},
    {"short, zero", 65536, 4, {{8192, ZERO, 0}}, true, 8192},
    {"short zero within a cluster", 65536, 4, {{100, ZERO, 0}}, false, 4096},
    {"an unknown flag", 65536, 4, {{16384, ZERO | 8, 0}}, false, 16384},
    {"nothing", 65536, 4, {{0, 0, 0}}, false, 16384},
    {"too much", 65536, 4, {{16385, ZERO, 0}}, false, 16384},
    {"too much by wrapping", 65536, 4, {{1, ZERO, 0}, {UINT64_MAX, ZERO, 0}}, false, 16384},
    {"the tail is zero", 10000, 3, {{10000, ZERO, 0}}, true, 10000},
    {"the tail is data", 10000, 3, {{10000, DATA, 0}}, false, 10000},
    {"only the tail is zero", 10000, 3, {{8192, DATA, 0}, {1808, ZERO, 0}}, false, 8192},
    {"only the tail is data", 10000, 3, {{8192, ZERO, 0}, {1808, DATA, 0}}, true, 8192},
    {"data inside the tail", 10000, 3, {{9999, ZERO, 0}, {1, DATA, 0}}, true, 8192},
    {"a tail on its own", 100, 1, {{99, ZERO, 0}, {1, DATA, 0}}, false, 100},
};

static void task_takes_zero_for_whole_clusters_only_and_gives_the_rest_back(void **state)
{
    (void)state;
    for (size_t i = 0; i < ARRAY_COUNT(answers); i++) {
        const struct answer *a = &answers[i];
        uint64_t end = a->end;
        struct copy_rig r;
        struct copy_task *task;

        copy_rig_init(&r, a->size);
        memcpy(r.source.map, a->extents, sizeof a->extents);
        r.source.map_raw = true;
        r.source.hold = OP(READ);
        r.target.hold = 0x7e;
        copy_rig_open(&r, NULL);
        copy_rig_start(&r);
        task = copy_rig_task(&r, 0, a->clusters, false);
        if (task->zero != a->zero || task->end != end) {
            fail_msg("%s: zero %d, end %u", a->what, task->zero, (unsigned)task->end);
        }
        assert_int_equal(task->state, a->zero ? COPY_WRITE : COPY_READ);
        assert_int_equal(r.copy.todo.set_count,
                         r.copy.todo.bit_count - (end + CLUSTER - 1) / CLUSTER);
        copy_rig_close(&r);
    }
}

static void task_whose_status_fails_takes_it_all_for_data(void **state)
{
    struct copy_rig r;
    struct copy_task *task;

    (void)state;
    copy_rig_init(&r, 64 * KIB);
    r.source.hold = 0x7e;
    copy_rig_open(&r, NULL);
    copy_rig_start(&r);
    task = copy_rig_task(&r, 0, 4, false);
    script_end(&r.source, 0, -EIO);
    rig_poll(&r.rig);
    assert_int_equal(task->state, COPY_READ);
    assert_int_equal(task->end, 16 * KIB);
    assert_int_equal(r.job.error_count, 0);
    copy_rig_close(&r);
}

static void task_moves_in_pieces_that_both_backends_take(void **state)
{
    struct copy_rig r;

    (void)state;
    copy_rig_init(&r, 64 * KIB);
    r.source.info.transfer_bytes_max = 5000; /* with alignment 512: 4608 */
    r.source.info.request_alignment = 512;
    r.target.info.transfer_bytes_max = 8192;
    copy_rig_open(&r, NULL);
    copy_rig_start(&r);
    copy_rig_task(&r, 0, 4, false);
    assert_int_equal(script_count(&r.source, BLKREPL_OP_READ), 4);
    assert_int_equal(script_count(&r.target, BLKREPL_OP_WRITE), 2);
    assert_memory_equal(r.target.disk, r.source.disk, 16 * KIB);
    copy_rig_close(&r);
}

static void task_fills_the_last_block_of_the_target_with_zeroes(void **state)
{
    static const uint64_t target_bytes[] = {10000, 10240, 20000};
    static const uint64_t want_end[] = {10000, 10240, 10240};

    (void)state;
    for (int i = 0; i < 3; i++) {
        struct copy_rig r;

        copy_rig_init(&r, 10000);
        script_fini(&r.target);
        script_init(&r.target, target_bytes[i]);
        memset(r.target.disk, 0x77, (size_t)target_bytes[i]);
        r.target.info.request_alignment = 512;
        copy_rig_open(&r, NULL);
        copy_rig_start(&r);
        memset(r.copy.memory, 0x99, (size_t)r.copy.memory_bytes);
        copy_rig_task(&r, 2, 1, false);
        assert_int_equal(r.target.notes[0].bytes, want_end[i] - 8192);
        assert_memory_equal(r.target.disk + 8192, r.source.disk + 8192, 1808);
        for (uint64_t at = 10000; at < target_bytes[i]; at++) {
            assert_int_equal(r.target.disk[at], at < want_end[i] ? 0 : 0x77);
        }
        copy_rig_close(&r);
    }
}

static void task_writes_zeroes_by_buffers_once_they_were_refused(void **state)
{
    struct copy_rig r;

    (void)state;
    copy_rig_init(&r, 64 * KIB);
    r.source.map[0] = (blkrepl_extent){.bytes = 64 * KIB, .flags = ZERO};
    r.target.result[BLKREPL_OP_ZEROES] = -ENOTSUP;
    memset(r.target.disk, 0x77, 64 * KIB);
    copy_rig_open(&r, NULL);
    copy_rig_start(&r);
    copy_rig_task(&r, 0, 4, false);
    assert_int_equal(script_count(&r.target, BLKREPL_OP_ZEROES), 1);
    assert_int_equal(script_count(&r.target, BLKREPL_OP_WRITE), 1);
    copy_rig_task(&r, 4, 4, false);
    assert_int_equal(script_count(&r.target, BLKREPL_OP_ZEROES), 1); /* not asked again */
    assert_int_equal(r.copy.zero_bytes, 32 * KIB);
    for (int i = 0; i < 32768; i++) {
        assert_int_equal(r.target.disk[i], 0);
    }
    assert_int_equal(r.target.disk[32768], 0x77);
    copy_rig_close(&r);
}

static void task_of_zeroes_is_cut_to_what_the_target_takes(void **state)
{
    struct copy_rig r;

    (void)state;
    copy_rig_init(&r, 2 * MIB);
    r.source.map[0] = (blkrepl_extent){.bytes = 2 * MIB, .flags = ZERO};
    r.target.info.zeroes_bytes_max = 300 * KIB;
    copy_rig_open(&r, NULL);
    copy_rig_start(&r);
    copy_rig_task(&r, 0, 256, false);
    assert_int_equal(script_count(&r.target, BLKREPL_OP_ZEROES), 4); /* of 1 MiB */
    r.to->leaf->port.info.opcodes &= ~OP(ZEROES);
    copy_rig_task(&r, 256, 256, false);
    assert_int_equal(script_count(&r.target, BLKREPL_OP_WRITE), 2); /* 8 zero iovecs each */
    assert_int_equal(r.copy.zero_bytes, 2 * MIB);
    copy_rig_close(&r);
}

static void task_detects_zeroes_only_when_told(void **state)
{
    (void)state;
    for (int detect = 0; detect < 2; detect++) {
        struct copy_rig r;

        copy_rig_init(&r, 64 * KIB);
        memset(r.source.disk, 0, 16 * KIB);
        copy_rig_open(&r, &(struct copy_config){.detect_zeroes = detect != 0});
        copy_rig_start(&r);
        copy_rig_task(&r, 0, 4, false);
        assert_int_equal(script_count(&r.target, BLKREPL_OP_ZEROES), detect);
        assert_int_equal(r.copy.zero_bytes, detect ? 16 * KIB : 0);
        r.source.disk[32767] = 1; /* the very last byte */
        r.source.disk[0] = 1;
        copy_rig_task(&r, 4, 4, false);
        assert_int_equal(script_count(&r.target, BLKREPL_OP_ZEROES), detect);
        copy_rig_close(&r);
    }
}

static void task_that_is_urgent_reads_as_a_guest_and_writes_before_other_copies(void **state)
{
    struct copy_rig r;
    struct copy_task *task;

    (void)state;
    copy_rig_init(&r, 64 * KIB);
    r.source.hold = r.target.hold = 0x7e;
    copy_rig_open(&r, NULL);
    copy_rig_start(&r);
    task = copy_rig_task(&r, 3, 1, true);
    assert_int_equal(task->state, COPY_READ); /* no time for a status */
    assert_false(task->request->job);
    assert_int_equal(r.source.waiting[0]->flags, 0);
    script_end(&r.source, 0, 0);
    blkrepl__enter(r.rig.ctx);
    blkrepl__advance(r.rig.ctx);
    assert_true(task->request->job);
    assert_ptr_equal(r.to->leaf->port.job.first.next, &task->request->link);
    blkrepl__leave(r.rig.ctx, 0);
    assert_int_equal(r.target.waiting_count, 0); /* only a poll gives it away */
    rig_poll(&r.rig);
    assert_int_equal(r.target.waiting[0]->flags, BLKREPL_IO_BACKGROUND); /* saved already */
    script_end(&r.target, 0, 0);
    rig_poll(&r.rig);
    assert_int_equal(r.copy.guest_copies_count, 1);
    assert_int_equal(r.copy.guest_copies_bytes, CLUSTER);
    copy_rig_close(&r);
}

static void task_holds_its_range_until_read_or_until_written(void **state)
{
    (void)state;
    for (int hold = 0; hold < 2; hold++) {
        struct copy_rig r;
        struct copy_task *task;

        copy_rig_init(&r, 64 * KIB);
        r.source.hold = OP(READ);
        r.target.hold = 0x7e;
        copy_rig_open(&r, &(struct copy_config){.hold_until_written = hold != 0});
        copy_rig_start(&r);
        task = copy_rig_task(&r, 0, 1, false);
        assert_true(range_live(&task->range) && task->range.given);
        script_end(&r.source, 0, 0);
        rig_poll(&r.rig);
        assert_int_equal(task->state, COPY_WRITE);
        assert_int_equal(range_live(&task->range), hold);
        if (hold) { /* a guest may wait for this write */
            copy_rig_task(&r, 1, 1, true);
            script_end(&r.source, 0, 0);
            rig_poll(&r.rig);
            assert_int_equal(r.target.waiting[1]->flags, 0);
        }
        script_end(&r.target, 0, 0);
        rig_poll(&r.rig);
        assert_false(range_live(&task->range));
        copy_rig_close(&r);
    }
}

static void task_waits_for_a_write_from_before_the_point_in_time(void **state)
{
    struct copy_rig r;
    struct copy_task *task;
    struct done write;

    (void)state;
    copy_rig_init(&r, 64 * KIB);
    r.source.hold = OP(WRITE);
    copy_rig_open(&r, NULL);
    copy_rig_write(&r, 100, 200, &write);
    copy_rig_start(&r);
    task = copy_rig_task(&r, 0, 1, false);
    assert_int_equal(task->state, COPY_CLAIMED);
    assert_false(task->range.given);
    assert_int_equal(copy_rig_task(&r, 1, 1, false)->state, COPY_FREE); /* beside it */
    script_end(&r.source, 0, 0);
    rig_poll(&r.rig);
    assert_int_equal(task->state, COPY_FREE);
    done_assert(&write, 0);
    assert_int_equal(r.target.disk[100], 0xee); /* it was concurrent with the point in time */
    copy_rig_close(&r);
}

/* The GO of a bracket was decided, its host not told: the copy goes first. */
static void task_goes_before_brackets_that_have_not_been_told(void **state)
{
    struct copy_rig r;
    struct copy_task *task;
    struct done go[3];
    uint64_t token[3];

    (void)state;
    copy_rig_init(&r, 64 * KIB);
    r.source.hold = OP(STATUS) | OP(READ);
    copy_rig_open(&r, NULL);
    assert_int_equal(copy_rig_begin(&r, BLKREPL_OP_WRITE, 0, 4096, &go[0], &token[0]), 0);
    assert_int_equal(copy_rig_begin(&r, BLKREPL_OP_WRITE, 0, 512, &go[1], &token[1]), 1);
    assert_int_equal(copy_rig_begin(&r, BLKREPL_OP_WRITE, 512, 1024, &go[2], &token[2]), 1);
    assert_int_equal(blkrepl_write_end(r.rig.ctx, token[0], 0, NULL, 0, NULL), 0);
    copy_rig_start(&r);
    task = copy_rig_task(&r, 0, 1, false);
    rig_poll(&r.rig);
    assert_true(task->state == COPY_STATUS || task->state == COPY_READ);
    ASSERT_PENDING(&go[1]);
    ASSERT_PENDING(&go[2]);
    while (r.source.waiting_count > 0) {
        script_end(&r.source, 0, 0);
        rig_poll(&r.rig);
    }
    done_assert(&go[1], 0);
    done_assert(&go[2], 0);
    assert_int_equal(blkrepl_write_end(r.rig.ctx, token[1], 0, NULL, 0, NULL), 0);
    assert_int_equal(blkrepl_write_end(r.rig.ctx, token[2], 0, NULL, 0, NULL), 0);
    copy_rig_close(&r);
}

/* Let one step of a background copy fail. */
static void fail_step(uint32_t opcode, bool zero, uint32_t side, const char *text)
{
    struct copy_rig r;

    copy_rig_init(&r, 64 * KIB);
    if (zero) {
        r.source.map[0] = (blkrepl_extent){.bytes = 64 * KIB, .flags = ZERO};
    }
    (side == BLKREPL_SIDE_SOURCE ? &r.source : &r.target)->result[opcode] = -ENOSPC;
    copy_rig_open(&r, NULL);
    copy_rig_start(&r);
    copy_rig_task(&r, 2, 2, false);
    assert_true(r.copy.failed && r.copy.stopped);
    assert_int_equal(r.job.cause.code, -ENOSPC);
    assert_int_equal(r.job.cause.side, side);
    assert_int_equal(r.job.cause.offset, 8192);
    assert_int_equal(r.job.cause.bytes, 8192);
    assert_string_equal(r.job.message, text);
    assert_int_equal(r.copy.bytes_done, 0);
    copy_rig_close(&r);
}

/* A run that waits was claimed as zeroes; nobody knows that any more, and a guest
 * waits for it: it saves what its buffer holds, the rest is to do again. */
static void task_that_is_longer_than_its_buffer_gives_the_rest_back(void **state)
{
    struct copy_rig r;
    struct copy_task *task;
    struct done old;
    struct done write;

    (void)state;
    copy_rig_init(&r, 64 * KIB);
    r.source.hold = OP(WRITE);
    r.target.hold = 0x7e;
    copy_rig_open(&r, NULL); /* buffers of 4 clusters */
    copy_rig_write(&r, 100, 200, &old);
    copy_rig_start(&r);
    task = copy_rig_task(&r, 0, 8, false);
    assert_int_equal(task->state, COPY_CLAIMED);
    copy_rig_write(&r, 3 * CLUSTER, 4 * CLUSTER, &write);
    assert_true(task->urgent);
    r.source.hold = 0;
    script_end(&r.source, 0, 0);
    rig_poll(&r.rig);
    copy_rig_check(&r);
    assert_int_equal(script_count(&r.source, BLKREPL_OP_STATUS), 0); /* a guest waits */
    assert_int_equal(task->state, COPY_WRITE);
    assert_int_equal(task->end, 4 * CLUSTER);
    assert_int_equal(r.copy.todo.set_count, 12);
    assert_int_equal(blkrepl__hbitmap_next_set(&r.copy.todo, 0, 16), 4);
    done_assert(&old, 0);
    done_assert(&write, 0);
    script_end_all(&r.target);
    rig_poll(&r.rig);
    assert_memory_equal(r.target.disk + 200, r.old + 200, 4 * CLUSTER - 200);
    copy_rig_close(&r);
}

/* One look ahead at a time: the answer of the other would be thrown away. */
static void task_beside_a_look_ahead_asks_for_its_own_range(void **state)
{
    struct copy_rig r;
    struct copy_task *first;
    struct copy_task *second;

    (void)state;
    copy_rig_init(&r, 64 * KIB);
    r.source.hold = OP(STATUS);
    copy_rig_open(&r, NULL);
    copy_rig_start(&r);
    r.copy.settled_writes = true;
    first = copy_rig_task(&r, 0, 2, false);
    second = copy_rig_task(&r, 2, 2, false);
    assert_true(first->probe && !second->probe);
    assert_int_equal(r.source.waiting[0]->bytes, 64 * KIB);
    assert_int_equal(r.source.waiting[1]->bytes, 2 * CLUSTER);
    script_end(&r.source, 1, 0);
    rig_poll(&r.rig);
    assert_true(r.copy.probing);
    assert_int_equal(r.copy.known_count, 0);
    script_end(&r.source, 0, 0);
    rig_poll(&r.rig);
    assert_false(r.copy.probing);
    assert_int_equal(r.copy.known_count, 1);
    copy_rig_close(&r);
}

/* A list that is full to the last extent says nothing about what comes after. */
static void task_believes_a_full_list_as_far_as_it_goes(void **state)
{
    (void)state;
    for (int zero = 0; zero < 2; zero++) {
        struct copy_rig r;
        struct copy_task *task;

        copy_rig_init(&r, 64 * KIB);
        for (unsigned i = 0; i < SCRIPT_EXTENTS; i++) {
            r.source.map[i] =
                (blkrepl_extent){.bytes = 2 * CLUSTER / COPY_EXTENTS, .flags = zero ? ZERO : DATA};
        }
        r.source.hold = OP(READ);
        r.target.hold = 0x7e;
        copy_rig_open(&r, NULL);
        copy_rig_start(&r);
        task = copy_rig_task(&r, 0, 4, false);
        assert_int_equal(task->zero, zero);
        assert_int_equal(task->end, 2 * CLUSTER);
        assert_int_equal(r.copy.todo.set_count, 14);
        copy_rig_close(&r);
    }
}

static void task_that_fails_stops_the_engine_and_says_where(void **state)
{
    (void)state;
    fail_step(BLKREPL_OP_READ, false, BLKREPL_SIDE_SOURCE,
              "job \"j\": source read at 8192+8192: No space left on device");
    fail_step(BLKREPL_OP_WRITE, false, BLKREPL_SIDE_TARGET,
              "job \"j\": target write at 8192+8192: No space left on device");
    fail_step(BLKREPL_OP_ZEROES, true, BLKREPL_SIDE_TARGET,
              "job \"j\": target write of zeroes at 8192+8192: No space left on device");
}

/* Only zeroes have another way: elsewhere a refusal is an error like others. */
static void task_whose_data_are_refused_fails(void **state)
{
    (void)state;
    for (int at_target = 0; at_target < 2; at_target++) {
        struct copy_rig r;

        copy_rig_init(&r, 64 * KIB);
        r.source.result[BLKREPL_OP_READ] = at_target == 0 ? -ENOTSUP : 0;
        r.target.result[BLKREPL_OP_WRITE] = -ENOTSUP;
        copy_rig_open(&r, NULL);
        copy_rig_start(&r);
        copy_rig_task(&r, 0, 2, false);
        assert_true(r.copy.failed && !r.copy.zeroes_refused);
        assert_int_equal(r.job.cause.code, -ENOTSUP);
        assert_int_equal(r.job.cause.side,
                         at_target == 0 ? BLKREPL_SIDE_SOURCE : BLKREPL_SIDE_TARGET);
        assert_int_equal(script_count(&r.target, 0), at_target);
        copy_rig_close(&r);
    }
}

static void task_for_a_guest_that_fails_under_guest_write_fails_is_to_do_again(void **state)
{
    struct copy_rig r;

    (void)state;
    copy_rig_init(&r, 64 * KIB);
    r.target.result[BLKREPL_OP_WRITE] = -ENOSPC;
    copy_rig_open(&r, &(struct copy_config){.hold_until_written = true});
    copy_rig_start(&r);
    copy_rig_task(&r, 5, 1, true);
    assert_false(r.copy.stopped);
    assert_true(blkrepl__hbitmap_test(&r.copy.todo, 5));
    assert_int_equal(r.job.error_count, 1);
    copy_rig_task(&r, 5, 1, false); /* nobody waits for this one */
    assert_true(r.copy.failed);
    copy_rig_close(&r);
}

static void task_is_abandoned_in_every_state(void **state)
{
    static const uint32_t hold_source[] = {OP(WRITE), OP(STATUS), OP(READ), 0};
    static const enum copy_task_state want[] = {COPY_CLAIMED, COPY_STATUS, COPY_READ, COPY_WRITE};

    (void)state;
    for (int i = 0; i < 4; i++) {
        struct copy_rig r;
        struct copy_task *task;
        struct done write;

        copy_rig_init(&r, 64 * KIB);
        r.source.hold = hold_source[i];
        r.target.hold = 0x7e;
        copy_rig_open(&r, NULL);
        if (want[i] == COPY_CLAIMED) {
            copy_rig_write(&r, 0, 100, &write);
        }
        copy_rig_start(&r);
        task = copy_rig_task(&r, 0, 4, false);
        assert_int_equal(task->state, want[i]);
        blkrepl__enter(r.rig.ctx);
        blkrepl__copy_stop(&r.copy);
        blkrepl__leave(r.rig.ctx, 0);
        copy_rig_check(&r);
        /* What a backend has goes on, and it is asked to cancel. */
        assert_int_equal(task->state, want[i] == COPY_CLAIMED ? COPY_FREE : want[i]);
        assert_int_equal(r.source.cancels + r.target.cancels, want[i] != COPY_CLAIMED);
        copy_rig_close(&r);
    }
}

static void task_that_is_queued_is_taken_back(void **state)
{
    struct copy_rig r;
    struct copy_task *task;
    struct list *link;

    (void)state;
    copy_rig_init(&r, 64 * KIB);
    copy_rig_open(&r, NULL);
    copy_rig_start(&r);
    blkrepl__enter(r.rig.ctx);
    link = list_pop(&r.copy.free_workers);
    task = CONTAINER_OF(link, struct copy_task, link);
    blkrepl__copy_start_task(&r.copy, task, 0, 4, false, 0);
    assert_int_equal(task->state, COPY_STATUS);
    blkrepl__copy_stop(&r.copy);
    assert_int_equal(task->state, COPY_FREE);
    assert_int_equal(r.copy.in_flight, 0);
    assert_true(copy_idle(&r.copy));
    blkrepl__leave(r.rig.ctx, 0);
    rig_poll(&r.rig);
    assert_int_equal(script_count(&r.source, 0), 0);
    copy_rig_close(&r);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(task_goes_from_claim_to_status_read_write_and_is_free),
        cmocka_unit_test(task_without_a_status_reads_at_once),
        cmocka_unit_test(task_over_what_is_known_to_be_zero_writes_at_once),
        cmocka_unit_test(task_takes_zero_for_whole_clusters_only_and_gives_the_rest_back),
        cmocka_unit_test(task_whose_status_fails_takes_it_all_for_data),
        cmocka_unit_test(task_moves_in_pieces_that_both_backends_take),
        cmocka_unit_test(task_fills_the_last_block_of_the_target_with_zeroes),
        cmocka_unit_test(task_writes_zeroes_by_buffers_once_they_were_refused),
        cmocka_unit_test(task_of_zeroes_is_cut_to_what_the_target_takes),
        cmocka_unit_test(task_detects_zeroes_only_when_told),
        cmocka_unit_test(task_that_is_urgent_reads_as_a_guest_and_writes_before_other_copies),
        cmocka_unit_test(task_holds_its_range_until_read_or_until_written),
        cmocka_unit_test(task_waits_for_a_write_from_before_the_point_in_time),
        cmocka_unit_test(task_goes_before_brackets_that_have_not_been_told),
        cmocka_unit_test(task_that_is_longer_than_its_buffer_gives_the_rest_back),
        cmocka_unit_test(task_beside_a_look_ahead_asks_for_its_own_range),
        cmocka_unit_test(task_believes_a_full_list_as_far_as_it_goes),
        cmocka_unit_test(task_that_fails_stops_the_engine_and_says_where),
        cmocka_unit_test(task_whose_data_are_refused_fails),
        cmocka_unit_test(task_for_a_guest_that_fails_under_guest_write_fails_is_to_do_again),
        cmocka_unit_test(task_is_abandoned_in_every_state),
        cmocka_unit_test(task_that_is_queued_is_taken_back),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
