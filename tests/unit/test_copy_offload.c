/* SPDX-License-Identifier: MIT */
/* Copies that the backends do among themselves: copy_task.c, the states OFFLOAD,
 * VOID and HELD. */
#include "unit/copy_rig.h"

#define TIMEOUT (10 * SECOND)

static char domain;
static char other_domain;

static void prepare(struct copy_rig *r, uint64_t bytes)
{
    copy_rig_init(r, bytes);
    r->source.info.opcodes &= ~OP(STATUS);
    r->source.info.copy_domain = &domain;
    r->target.info.copy_domain = &domain;
    r->target.info.opcodes |= OP(COPY_FROM);
}

/* Four clusters of 4 KiB are a chunk; two workers, eight clusters of reserve. */
static void rig_with(struct copy_rig *r, const struct copy_config *config)
{
    struct copy_config c = *config;

    prepare(r, 64 * KIB);
    r->target.hold = OP(COPY_FROM);
    c.reserve_bytes = c.reserve_bytes != 0 ? c.reserve_bytes : 8 * CLUSTER;
    copy_rig_open(r, &c);
    copy_rig_start(r);
}

static void end(struct copy_rig *r, struct script *script, uint32_t opcode, uint64_t offset,
                int result)
{
    script_end(script, script_find(script, opcode, offset), result);
    rig_poll(&r->rig);
    copy_rig_check(r);
}

/* Let all that is left be copied. */
static void finish(struct copy_rig *r)
{
    r->source.hold = r->target.hold = 0;
    for (int i = 0; i < 50; i++) {
        script_end_all(&r->source);
        script_end_all(&r->target);
        copy_rig_pump(r);
    }
    assert_true(copy_idle(&r->copy));
    copy_rig_assert_copied(r);
}

static void offload_copies_without_a_read(void **state)
{
    struct copy_rig r;
    struct copy_task *task;
    const blkrepl_io *io;

    (void)state;
    rig_with(&r, &(struct copy_config){.workers = 2});
    task = copy_rig_task(&r, 4, 4, false);
    assert_int_equal(task->state, COPY_OFFLOAD);
    io = r.target.waiting[0];
    assert_int_equal(io->opcode, BLKREPL_OP_COPY_FROM);
    assert_int_equal(io->flags, BLKREPL_IO_BACKGROUND);
    assert_ptr_equal(io->source_user, &r.source);
    assert_int_equal(io->offset, 16 * KIB);
    assert_int_equal(io->source_offset, 16 * KIB);
    assert_int_equal(io->bytes, 16 * KIB);
    end(&r, &r.target, BLKREPL_OP_COPY_FROM, 16 * KIB, 0);
    assert_int_equal(task->state, COPY_FREE);
    assert_int_equal(r.copy.offloaded_bytes, 16 * KIB);
    assert_int_equal(r.copy.bytes_done, 16 * KIB);
    assert_int_equal(script_count(&r.source, 0), 0);
    finish(&r);
    assert_int_equal(r.copy.offloaded_bytes, 64 * KIB);
    assert_int_equal(script_count(&r.target, BLKREPL_OP_WRITE), 0);
    copy_rig_close(&r);
}

static void offload_follows_a_status_that_says_data(void **state)
{
    struct copy_rig r;

    (void)state;
    prepare(&r, 64 * KIB);
    r.source.info.opcodes |= OP(STATUS);
    r.source.map[0] = (blkrepl_extent){.bytes = 8 * KIB, .flags = BLKREPL_EXTENT_DATA};
    r.source.map[1] = (blkrepl_extent){.bytes = 8 * KIB, .flags = BLKREPL_EXTENT_ZERO};
    memset(r.source.disk + 8 * KIB, 0, 8 * KIB);
    copy_rig_open(&r, NULL);
    copy_rig_start(&r);
    copy_rig_task(&r, 0, 4, false);
    assert_int_equal(r.copy.offloaded_bytes, 8 * KIB); /* the rest has to be looked at */
    finish(&r);
    assert_int_equal(r.copy.offloaded_bytes, 56 * KIB);
    assert_int_equal(r.copy.zero_bytes, 8 * KIB);
    assert_int_equal(script_count(&r.source, BLKREPL_OP_READ), 0);
    copy_rig_close(&r);
}

/* What has to be the case for a COPY_FROM. */
static void offload_needs_a_common_domain_and_the_opcode(void **state)
{
    (void)state;
    for (int i = 0; i < 8; i++) {
        struct copy_config config = {.detect_zeroes = i == 5, .no_offload = i == 6};
        struct copy_rig r;

        prepare(&r, 64 * KIB);
        switch (i) {
        case 0: r.source.info.copy_domain = NULL; break;
        case 1: r.target.info.copy_domain = NULL; break;
        case 2: r.source.info.copy_domain = r.target.info.copy_domain = NULL; break;
        case 3: r.source.info.copy_domain = &other_domain; break;
        case 4: r.target.info.opcodes &= ~OP(COPY_FROM); break;
        default: break;
        }
        copy_rig_open(&r, &config);
        copy_rig_start(&r);
        finish(&r);
        assert_int_equal(r.copy.offloaded_bytes, i == 7 ? 64 * KIB : 0);
        assert_int_equal(script_count(&r.target, BLKREPL_OP_COPY_FROM), i == 7 ? 4 : 0);
        copy_rig_close(&r);
    }
}

static void offload_is_cut_to_what_the_target_takes(void **state)
{
    /* limit, alignments of source and target, requests for 16 KiB */
    static const uint32_t cases[][4] = {{6000, 1, 1, 3},
                                        {6000, 512, 1, 3}, /* 5632 */
                                        {6000, 1, 4096, 4},
                                        {6000, 4096, 1, 4},
                                        {3000, 4096, 1, 0}}; /* none of the source's blocks */

    (void)state;
    for (int i = 0; i < 5; i++) {
        struct copy_rig r;

        prepare(&r, 64 * KIB);
        r.target.info.copy_bytes_max = cases[i][0];
        r.source.info.request_alignment = cases[i][1];
        r.target.info.request_alignment = cases[i][2];
        copy_rig_open(&r, NULL);
        copy_rig_start(&r);
        copy_rig_task(&r, 4, 4, false);
        assert_int_equal(script_count(&r.target, BLKREPL_OP_COPY_FROM), cases[i][3]);
        assert_int_equal(r.copy.offloaded_bytes, cases[i][3] > 0 ? 16 * KIB : 0);
        finish(&r);
        copy_rig_close(&r);
    }
}

/* The last block has to be filled up with zeroes, which a COPY_FROM does not. */
static void offload_leaves_a_last_block_that_is_not_whole_to_buffers(void **state)
{
    static const uint32_t align[] = {1, 512};

    (void)state;
    for (int i = 0; i < 2; i++) {
        struct copy_rig r;

        prepare(&r, 10000);
        script_fini(&r.target);
        script_init(&r.target, 20000);
        r.target.info.copy_domain = &domain;
        r.target.info.opcodes |= OP(COPY_FROM);
        r.target.info.request_alignment = align[i];
        memset(r.target.disk, 0x77, 20000);
        copy_rig_open(&r, NULL);
        copy_rig_start(&r);
        copy_rig_task(&r, 2, 1, false);
        assert_int_equal(r.copy.offloaded_bytes, i == 0 ? 1808 : 0);
        assert_int_equal(r.target.disk[10001], i == 0 ? 0x77 : 0);
        finish(&r);
        copy_rig_close(&r);
    }
}

/* Whatever a backend answers: it is done by reading and writing, and not asked
 * again. */
static void offload_that_is_refused_goes_through_the_buffer_and_is_the_last(void **state)
{
    static const int codes[] = {-ENOTSUP, -EXDEV, -EINVAL, -EIO, -ENOSPC, -ECANCELED, -4096};

    (void)state;
    for (int i = 0; i < 7; i++) {
        struct copy_rig r;
        struct copy_task *task;

        rig_with(&r, &(struct copy_config){.workers = 2});
        r.source.hold = OP(READ);
        task = copy_rig_task(&r, 0, 4, false);
        r.target.disk[100] = 0x55; /* a failed one may leave anything */
        end(&r, &r.target, BLKREPL_OP_COPY_FROM, 0, codes[i]);
        assert_int_equal(task->state, COPY_READ);
        assert_true(range_live(&task->range));
        end(&r, &r.source, BLKREPL_OP_READ, 0, 0);
        assert_int_equal(task->state, COPY_FREE);
        finish(&r);
        assert_int_equal(script_count(&r.target, BLKREPL_OP_COPY_FROM), 1);
        assert_int_equal(r.copy.offloaded_bytes, 0);
        assert_int_equal(r.job.error_count, 0);
        copy_rig_close(&r);
    }
}

static void offload_that_is_refused_in_the_middle_begins_anew(void **state)
{
    struct copy_rig r;

    (void)state;
    prepare(&r, 64 * KIB);
    r.target.info.copy_bytes_max = 8 * KIB;
    r.target.hold = OP(COPY_FROM);
    copy_rig_open(&r, NULL);
    copy_rig_start(&r);
    copy_rig_task(&r, 0, 4, false);
    end(&r, &r.target, BLKREPL_OP_COPY_FROM, 0, 0);
    end(&r, &r.target, BLKREPL_OP_COPY_FROM, 8 * KIB, -ENOTSUP);
    assert_memory_equal(r.target.disk, r.old, 16 * KIB);
    assert_int_equal(r.copy.offloaded_bytes, 0);
    assert_int_equal(r.copy.bytes_done, 16 * KIB);
    finish(&r);
    copy_rig_close(&r);
}

/* A copy in two parts is between them when another one is refused. */
static void offload_that_was_refused_to_another_goes_on_through_the_buffer(void **state)
{
    struct copy_rig r;
    struct copy_task *task;

    (void)state;
    prepare(&r, 64 * KIB);
    r.target.info.copy_bytes_max = 8 * KIB;
    r.target.hold = OP(COPY_FROM);
    copy_rig_open(&r, NULL);
    copy_rig_start(&r);
    task = copy_rig_task(&r, 0, 4, false);
    copy_rig_task(&r, 4, 2, false);
    end(&r, &r.target, BLKREPL_OP_COPY_FROM, 16 * KIB, -ENOTSUP);
    assert_int_equal(task->state, COPY_OFFLOAD); /* the backend has it */
    end(&r, &r.target, BLKREPL_OP_COPY_FROM, 0, 0);
    assert_int_equal(task->state, COPY_FREE);
    assert_int_equal(script_count(&r.target, BLKREPL_OP_COPY_FROM), 2);
    assert_int_equal(script_count(&r.source, BLKREPL_OP_READ), 2);
    assert_int_equal(r.copy.offloaded_bytes, 0);
    finish(&r);
    copy_rig_close(&r);
}

/* The rule of all: the guest waits for a read of the source, not for the target. */
static void offload_is_void_where_a_guest_writes(void **state)
{
    struct copy_rig r;
    struct copy_task *task;
    struct done write;

    (void)state;
    rig_with(&r, &(struct copy_config){.workers = 2});
    task = copy_rig_task(&r, 0, 4, false);
    r.source.hold = OP(READ);
    copy_rig_write(&r, 5000, 5010, &write);
    assert_int_equal(task->state, COPY_VOID);
    assert_false(range_live(&task->range));
    assert_int_equal(r.target.cancels, 1); /* it is told that nobody wants it */
    assert_int_equal(r.target.cancelled, task->request->io.id);
    assert_int_equal(r.copy.todo.set_count, 15); /* the guest's is taken, three are back */
    ASSERT_PENDING(&write);
    end(&r, &r.source, BLKREPL_OP_READ, 4096, 0);
    done_assert(&write, 0); /* and the target has done nothing yet */
    assert_int_equal(copy_rig_task_at(&r, 1)->state, COPY_VOID);
    assert_int_equal(r.target.waiting_count, 1);
    assert_false(copy_idle(&r.copy));
    finish(&r);
    assert_int_equal(r.copy.guest_copies_bytes, CLUSTER);
    assert_int_equal(r.job.error_count, 0);
    copy_rig_close(&r);
}

/* It may have read what the guest has written: its range is written again, after
 * it has ended, whatever it answers. */
static void offload_that_is_void_is_overwritten_after_its_end(void **state)
{
    static const int codes[] = {0, -ECANCELED, -EIO, -ENOTSUP};

    (void)state;
    for (int i = 0; i < 4; i++) {
        struct copy_rig r;
        struct copy_task *task;
        struct done write;

        rig_with(&r, &(struct copy_config){.workers = 2});
        task = copy_rig_task(&r, 0, 4, false);
        copy_rig_write(&r, 5000, 5010, &write);
        done_assert(&write, 0);
        assert_int_equal(script_count(&r.target, BLKREPL_OP_WRITE), 0); /* held */
        assert_int_equal(r.copy.bytes_done, 0);
        memcpy(r.target.disk, r.source.disk, 16 * KIB); /* the guest's new data, too */
        end(&r, &r.target, BLKREPL_OP_COPY_FROM, 0, codes[i]);
        assert_int_equal(task->state, COPY_FREE);
        assert_int_equal(script_count(&r.target, BLKREPL_OP_WRITE), 1);
        assert_memory_equal(r.target.disk + 4096, r.old + 4096, 4096);
        assert_int_equal(r.copy.bytes_done, CLUSTER); /* the guest's; not what was void */
        assert_int_equal(r.copy.offloaded_bytes, 0);
        assert_int_equal(r.job.error_count, 0);
        finish(&r);
        assert_int_equal(r.copy.offloaded_bytes, 60 * KIB); /* it was not refused */
        copy_rig_close(&r);
    }
}

/* Background copies of what was void, of data and of zeroes: they do not go out
 * while it is at the backend, and are no COPY_FROM. */
static void offload_holds_the_copies_that_follow_it(void **state)
{
    struct copy_rig r;
    struct copy_task *data;
    struct copy_task *zeroes;
    struct done write;

    (void)state;
    rig_with(&r, &(struct copy_config){.workers = 4});
    memset(r.source.disk + 12288, 0, 4096);
    memset(r.old + 12288, 0, 4096);
    copy_rig_task(&r, 0, 4, false);
    copy_rig_write(&r, 0, 10, &write);
    data = copy_rig_task(&r, 1, 2, false);
    assert_int_equal(data->state, COPY_HELD);
    assert_false(range_live(&data->range)); /* no guest waits for it */
    r.copy.known[0] = (struct copy_known){.start = 12288, .end = 16384, .zero = true};
    r.copy.known_count = 1;
    zeroes = copy_rig_task(&r, 3, 1, false);
    assert_int_equal(zeroes->state, COPY_HELD);
    assert_int_equal(copy_rig_task(&r, 4, 4, false)->state, COPY_OFFLOAD); /* beside it */
    copy_rig_write(&r, 4096, 4100, &write);
    done_assert(&write, 0);
    end(&r, &r.target, BLKREPL_OP_COPY_FROM, 16 * KIB, 0); /* not what they wait for */
    assert_int_equal(data->state, COPY_HELD);
    assert_int_equal(zeroes->state, COPY_HELD);
    end(&r, &r.target, BLKREPL_OP_COPY_FROM, 0, 0);
    assert_int_equal(data->state, COPY_FREE);
    assert_int_equal(zeroes->state, COPY_FREE);
    assert_memory_equal(r.target.disk, r.old, 32 * KIB);
    finish(&r);
    copy_rig_close(&r);
}

/* Two void copies; each task waits for the one that it overlaps. */
static void offload_wakes_those_whose_range_is_free(void **state)
{
    struct copy_rig r;
    struct done first;
    struct done second;

    (void)state;
    rig_with(&r, &(struct copy_config){.workers = 2});
    copy_rig_task(&r, 0, 4, false);
    copy_rig_task(&r, 4, 4, false);
    r.source.hold = OP(READ);
    copy_rig_write(&r, 15 * KIB, 17 * KIB, &first); /* the last of one, the first of the other */
    assert_int_equal(r.target.cancels, 2);
    assert_int_equal(r.source.waiting_count, 2); /* both at once */
    r.source.hold = 0;
    script_end_all(&r.source);
    rig_poll(&r.rig);
    done_assert(&first, 0);
    copy_rig_write(&r, 0, 10, &second);
    done_assert(&second, 0);
    assert_int_equal(r.target.waiting_count, 2);
    end(&r, &r.target, BLKREPL_OP_COPY_FROM, 16 * KIB, 0);
    assert_int_equal(script_count(&r.target, BLKREPL_OP_WRITE), 1);
    end(&r, &r.target, BLKREPL_OP_COPY_FROM, 0, 0);
    assert_int_equal(script_count(&r.target, BLKREPL_OP_WRITE), 3);
    finish(&r);
    copy_rig_close(&r);
}

/* It was not given away yet: then nothing is void, it is taken back. */
static void offload_that_is_queued_is_taken_back(void **state)
{
    struct copy_rig r;
    struct copy_task *task;
    struct done write;

    (void)state;
    prepare(&r, 64 * KIB);
    r.target.info.queue_depth = 1;
    r.target.hold = OP(COPY_FROM);
    copy_rig_open(&r, NULL);
    copy_rig_start(&r);
    copy_rig_task(&r, 8, 4, false);
    task = copy_rig_task(&r, 0, 4, false);
    assert_int_equal(task->state, COPY_OFFLOAD);
    assert_true(task->request->queued);
    copy_rig_write(&r, 100, 200, &write);
    done_assert(&write, 0);
    assert_int_equal(task->state, COPY_FREE);
    assert_int_equal(r.target.cancels, 0);
    assert_true(list_empty(&r.copy.voids));
    end(&r, &r.target, BLKREPL_OP_COPY_FROM, 32 * KIB, 0);
    assert_int_equal(script_count(&r.target, BLKREPL_OP_COPY_FROM), 1);
    finish(&r);
    copy_rig_close(&r);
}

static void offload_is_not_for_a_guest_nor_for_what_one_waits_for(void **state)
{
    struct copy_rig r;
    struct copy_task *task;
    struct done write;

    (void)state;
    prepare(&r, 64 * KIB);
    r.source.info.opcodes |= OP(STATUS);
    r.source.hold = OP(STATUS) | OP(READ);
    copy_rig_open(&r, &(struct copy_config){.reserve_bytes = 8 * CLUSTER});
    copy_rig_start(&r);
    assert_int_equal(copy_rig_task(&r, 8, 1, true)->state, COPY_READ);
    task = copy_rig_task(&r, 0, 4, false);
    copy_rig_write(&r, 0, 10, &write); /* waits for the background copy, which has not begun */
    assert_int_equal(task->state, COPY_STATUS);
    end(&r, &r.source, BLKREPL_OP_STATUS, 0, 0);
    assert_int_equal(task->state, COPY_READ);
    ASSERT_PENDING(&write);
    end(&r, &r.source, BLKREPL_OP_READ, 0, 0);
    done_assert(&write, 0);
    finish(&r);
    copy_rig_close(&r);
}

/* The reserve is used up by copies that are held: the guest waits for a buffer,
 * and the timeout counts against the target. */
static void offload_that_never_ends_breaks_the_backup_not_the_guest(void **state)
{
    struct copy_rig r;
    struct done first;
    struct done second;

    (void)state;
    rig_with(&r, &(struct copy_config){
                     .workers = 1, .reserve_bytes = CLUSTER, .cbw_timeout_ns = TIMEOUT});
    copy_rig_task(&r, 0, 4, false);
    copy_rig_write(&r, 0, 10, &first);
    done_assert(&first, 0);
    copy_rig_write(&r, 4096, 4100, &second);
    ASSERT_PENDING(&second);
    rig_advance(&r.rig, TIMEOUT);
    done_assert(&second, 0);
    assert_true(r.copy.failed);
    assert_int_equal(r.job.cause.code, -ETIMEDOUT);
    assert_int_equal(r.job.cause.side, BLKREPL_SIDE_TARGET);
    assert_false(copy_idle(&r.copy)); /* the job ends when the backend is through */
    end(&r, &r.target, BLKREPL_OP_COPY_FROM, 0, -ECANCELED);
    assert_true(copy_idle(&r.copy));
    copy_rig_close(&r);
}

/* The engine stops with a copy at the backend, one void, and one held. */
static void offload_is_abandoned_in_every_state(void **state)
{
    static const int codes[] = {0, -EIO};

    (void)state;
    for (int i = 0; i < 2; i++) {
        struct copy_rig r;
        struct done write;
        struct copy_task *held;

        rig_with(&r, &(struct copy_config){.workers = 2});
        copy_rig_task(&r, 0, 4, false);
        copy_rig_task(&r, 8, 4, false);
        copy_rig_write(&r, 0, 10, &write);
        done_assert(&write, 0);
        held = CONTAINER_OF(r.copy.held.next, struct copy_task, ready.link);
        assert_int_equal(held->state, COPY_HELD);
        blkrepl__enter(r.rig.ctx);
        blkrepl__copy_stop(&r.copy);
        blkrepl__leave(r.rig.ctx, 0);
        copy_rig_check(&r);
        assert_int_equal(held->state, COPY_FREE);
        assert_true(list_empty(&r.copy.held));
        assert_int_equal(copy_rig_task_at(&r, 0)->state, COPY_VOID);
        assert_int_equal(copy_rig_task_at(&r, 8)->state, COPY_OFFLOAD);
        end(&r, &r.target, BLKREPL_OP_COPY_FROM, i == 0 ? 0 : 32 * KIB, codes[i]);
        assert_false(copy_idle(&r.copy));
        end(&r, &r.target, BLKREPL_OP_COPY_FROM, i == 0 ? 32 * KIB : 0, codes[i]);
        assert_true(copy_idle(&r.copy));
        assert_int_equal(r.job.error_count, 0); /* a refusal is no error */
        assert_int_equal(r.copy.bytes_done, 0);
        copy_rig_close(&r);
    }
}

/* Under guest-write-fails a guest waits for the target in any case: so also for
 * the copy that is under way, which nothing makes void. */
static void offload_under_guest_write_fails_is_waited_for(void **state)
{
    static const int codes[] = {0, -ENOTSUP};

    (void)state;
    for (int i = 0; i < 2; i++) {
        struct copy_rig r;
        struct copy_task *task;
        struct done write;

        rig_with(&r, &(struct copy_config){.workers = 2, .hold_until_written = true});
        task = copy_rig_task(&r, 0, 4, false);
        copy_rig_write(&r, 0, 10, &write);
        assert_int_equal(task->state, COPY_OFFLOAD);
        ASSERT_PENDING(&write);
        end(&r, &r.target, BLKREPL_OP_COPY_FROM, 0, codes[i]);
        done_assert(&write, 0);
        assert_int_equal(r.copy.bytes_done, 16 * KIB);
        assert_int_equal(r.target.cancels, 0);
        finish(&r);
        copy_rig_close(&r);
    }
}

static void offload_under_guest_write_fails_times_out_on_the_target(void **state)
{
    struct copy_rig r;
    struct done write;

    (void)state;
    rig_with(&r, &(struct copy_config){
                     .workers = 1, .hold_until_written = true, .cbw_timeout_ns = TIMEOUT});
    copy_rig_task(&r, 0, 4, false);
    copy_rig_write(&r, 0, 10, &write);
    rig_advance(&r.rig, TIMEOUT);
    done_assert(&write, -ETIMEDOUT);
    assert_int_equal(r.job.cause.side, BLKREPL_SIDE_TARGET);
    finish(&r);
    copy_rig_close(&r);
}

/* A discard is skipped, and needs nothing to be void. */
static void offload_is_not_void_for_a_discard_that_is_skipped(void **state)
{
    struct copy_rig r;
    struct copy_task *task;
    struct done discard;
    blkrepl_completion done = done_of(&discard);

    (void)state;
    rig_with(&r, &(struct copy_config){.workers = 1});
    task = copy_rig_task(&r, 0, 4, false);
    assert_int_equal(blkrepl_image_discard(r.from, 0, 0, 4096, 0, &done), 0);
    rig_poll(&r.rig);
    done_assert(&discard, 0);
    assert_int_equal(task->state, COPY_OFFLOAD);
    finish(&r);
    copy_rig_close(&r);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(offload_copies_without_a_read),
        cmocka_unit_test(offload_follows_a_status_that_says_data),
        cmocka_unit_test(offload_needs_a_common_domain_and_the_opcode),
        cmocka_unit_test(offload_is_cut_to_what_the_target_takes),
        cmocka_unit_test(offload_leaves_a_last_block_that_is_not_whole_to_buffers),
        cmocka_unit_test(offload_that_is_refused_goes_through_the_buffer_and_is_the_last),
        cmocka_unit_test(offload_that_is_refused_in_the_middle_begins_anew),
        cmocka_unit_test(offload_that_was_refused_to_another_goes_on_through_the_buffer),
        cmocka_unit_test(offload_is_void_where_a_guest_writes),
        cmocka_unit_test(offload_that_is_void_is_overwritten_after_its_end),
        cmocka_unit_test(offload_holds_the_copies_that_follow_it),
        cmocka_unit_test(offload_wakes_those_whose_range_is_free),
        cmocka_unit_test(offload_that_is_queued_is_taken_back),
        cmocka_unit_test(offload_is_not_for_a_guest_nor_for_what_one_waits_for),
        cmocka_unit_test(offload_that_never_ends_breaks_the_backup_not_the_guest),
        cmocka_unit_test(offload_is_abandoned_in_every_state),
        cmocka_unit_test(offload_under_guest_write_fails_is_waited_for),
        cmocka_unit_test(offload_under_guest_write_fails_times_out_on_the_target),
        cmocka_unit_test(offload_is_not_void_for_a_discard_that_is_skipped),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
