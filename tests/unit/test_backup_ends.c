/* SPDX-License-Identifier: MIT */
/* What a reader of backups has found: each of these has failed once. */
#include "unit/backup_rig.h"

static blkrepl_backup_options none_of(struct bench *b)
{
    blkrepl_backup_options o = options_of(b);

    o.sync = BLKREPL_SYNC_NONE;
    o.on_cbw_error = BLKREPL_CBW_GUEST_WRITE_FAILS;
    return o;
}

/* A copy for a guest that fails after the job was told to complete puts its cluster back;
 * the next guest that writes there must not begin one beside the flush. */
static void nothing_is_copied_beside_the_last_flush(void **state)
{
    struct bench *b = *state;
    struct done first;
    struct done second;
    blkrepl_job *job;
    blkrepl_backup_options o = none_of(b);

    b->target.hold = OP(WRITE) | OP(ZEROES) | OP(FLUSH);
    job = run(b, &o);
    guest_write(b, 3, &first);
    assert_int_equal(b->target.waiting_count, 1);
    assert_int_equal(blkrepl_job_complete(job), 0);
    script_end(&b->target, 0, -EIO);
    rig_poll(&b->rig);
    assert_int_equal(b->target.waiting_count, 1);
    assert_int_equal(b->target.waiting[0]->opcode, BLKREPL_OP_FLUSH);
    guest_write(b, 3, &second);
    assert_true(list_empty(&copy_of(job)->active));
    done_assert(&second, 0);
    script_end_all(&b->target);
    rig_poll(&b->rig);
    assert_concluded(b, job, BLKREPL_RESULT_DONE, 0);
}

/* The bug 28 of the table: compressed writes are one cluster each, zeroes or not. */
static void compressed_zeroes_are_one_cluster_a_request(void **state)
{
    struct bench *b = *state;
    blkrepl_job *job;
    blkrepl_backup_options o;

    b->source.map[0] = (blkrepl_extent){.bytes = BYTES, .flags = BLKREPL_EXTENT_ZERO};
    memset(b->source.disk, 0, BYTES);
    b->target.info.flags |= BLKREPL_BACKEND_COMPRESS;
    b->target.info.opcodes &= ~OP(ZEROES);
    b->target.info.cluster_bytes = CLUSTER;
    bench_open_images(b);
    o = options_of(b);
    o.flags = BLKREPL_BACKUP_COMPRESS;
    job = run(b, &o);
    for (unsigned i = 0; i < b->target.note_count; i++) {
        if (b->target.notes[i].opcode == BLKREPL_OP_WRITE) {
            assert_true((b->target.notes[i].flags & BLKREPL_IO_COMPRESS) == 0 ||
                        b->target.notes[i].bytes <= CLUSTER);
        }
    }
    assert_concluded(b, job, BLKREPL_RESULT_DONE, 0);
}

/* And never a part of one, but at the end of the source. */
static void compressed_data_are_one_cluster_a_request(void **state)
{
    struct bench *b = *state;
    blkrepl_job *job = NULL;
    blkrepl_backup_options o;
    int rc;

    b->target.info.flags |= BLKREPL_BACKEND_COMPRESS;
    b->target.info.cluster_bytes = CLUSTER;
    b->target.info.transfer_bytes_max = CLUSTER / 2;
    bench_open_images(b);
    o = options_of(b);
    o.flags = BLKREPL_BACKUP_COMPRESS;
    rc = blkrepl_backup_start(b->from, b->to, &o, &job);
    if (rc == 0) { /* it may be refused */
        rig_poll(&b->rig);
        for (unsigned i = 0; i < b->target.note_count; i++) {
            assert_true((b->target.notes[i].flags & BLKREPL_IO_COMPRESS) == 0 ||
                        b->target.notes[i].offset % CLUSTER == 0);
        }
        assert_concluded(b, job, BLKREPL_RESULT_DONE, 0);
    } else {
        assert_int_equal(rc, -ENOTSUP);
    }
}

/* What ended the job is told, not a trouble before it that was none. */
static void the_error_that_ended_the_job_is_the_one_that_is_told(void **state)
{
    struct bench *b = *state;
    struct done write;
    blkrepl_job *job;
    blkrepl_job_info info;
    blkrepl_backup_options o;

    b->source.info.opcodes &= ~OP(STATUS);
    bench_open_images(b);
    bench_open_third(b, BYTES);
    o = options_of(b);
    o.spill = b->spill;
    o.on_target_error = BLKREPL_ON_ERROR_IGNORE;
    o.flags = BLKREPL_BACKUP_NO_OFFLOAD;
    b->third.result[BLKREPL_OP_WRITE] = -ENOSPC; /* no harm: it goes to the target */
    b->source.hold = OP(READ);
    b->target.hold = OP(WRITE);
    job = run(b, &o);
    guest_write(b, 30, &write);
    script_end(&b->source, script_find(&b->source, BLKREPL_OP_READ, 30 * CLUSTER), 0);
    rig_poll(&b->rig);
    done_assert(&write, 0);
    assert_int_equal(info_of(job).spill_errors, 1);
    b->source.hold = 0;
    script_end_all(&b->source);
    rig_poll(&b->rig);
    script_end(&b->target, script_find(&b->target, BLKREPL_OP_WRITE, 0), -EIO); /* given up */
    b->target.hold = 0;
    script_end_all(&b->target);
    rig_poll(&b->rig);
    info = info_of(job);
    assert_int_equal(info.result, BLKREPL_RESULT_FAILED);
    assert_int_equal(info.error, -EIO);
    assert_int_equal(info.error_side, BLKREPL_SIDE_TARGET);
    blkrepl_job_free(job);
    rig_poll(&b->rig);
}

/* "Now in the spill image, not yet on the target". */
static void what_is_on_its_way_from_the_spill_image_counts_as_spilled(void **state)
{
    struct bench *b = *state;
    struct done write;
    blkrepl_job *job;
    blkrepl_backup_options o;

    bench_open_third(b, BYTES);
    o = options_of(b);
    o.spill = b->spill;
    job = start_paused(b, &o);
    rig_poll(&b->rig);
    guest_write(b, 30, &write);
    done_assert(&write, 0);
    assert_int_equal(info_of(job).spilled_bytes, CLUSTER);
    b->target.hold = OP(WRITE);
    assert_int_equal(blkrepl_job_resume(job), 0);
    rig_poll(&b->rig);
    assert_int_equal(b->target.notes[b->target.note_count - 1].opcode, BLKREPL_OP_WRITE);
    assert_int_equal(info_of(job).spilled_bytes, CLUSTER);
    b->target.hold = 0;
    script_end_all(&b->target);
    rig_poll(&b->rig);
    assert_concluded(b, job, BLKREPL_RESULT_DONE, 0);
}

/* "A copy for a guest that fails before the old data are saved is a matter of
 * on_cbw_error alone", and this one says that the backup fails. */
static void a_guests_copy_that_fails_ends_the_backup_also_under_ignore(void **state)
{
    struct bench *b = *state;
    struct done write;
    blkrepl_job *job;
    blkrepl_backup_options o = options_of(b);

    o.sync = BLKREPL_SYNC_NONE;
    o.on_source_error = BLKREPL_ON_ERROR_IGNORE;
    o.on_cbw_error = BLKREPL_CBW_BACKUP_FAILS;
    b->source.result[BLKREPL_OP_READ] = -EIO;
    job = run(b, &o);
    guest_write(b, 3, &write);
    done_assert(&write, 0);
    assert_concluded(b, job, BLKREPL_RESULT_FAILED, -EIO);
}

/* A disk that forgets what it could not make durable; the next flush has nothing to do. */
static void forget_unflushed(struct script *script)
{
    memset(script->disk, 0, BYTES);
}

/* "If the target's flush has failed, nothing has got there": so the job must not be done
 * because the next flush is content. */
static void a_job_whose_flush_has_failed_is_not_done_without_the_data(void **state)
{
    struct bench *b = *state;
    blkrepl_job *job;
    blkrepl_backup_options o = options_of(b);

    o.on_target_error = BLKREPL_ON_ERROR_STOP;
    b->target.hold = OP(FLUSH);
    job = run(b, &o);
    assert_int_equal(b->target.waiting_count, 1);
    forget_unflushed(&b->target);
    script_end(&b->target, 0, -EIO);
    rig_poll(&b->rig);
    b->target.hold = 0;
    if (info_of(job).state == BLKREPL_JOB_RUNNING) {
        assert_int_equal(blkrepl_job_resume(job), 0);
    }
    rig_poll(&b->rig);
    assert_int_equal(info_of(job).state, BLKREPL_JOB_CONCLUDED);
    if (info_of(job).result == BLKREPL_RESULT_DONE) {
        assert_memory_equal(b->target.disk, b->old, BYTES);
    }
    blkrepl_job_free(job);
    rig_poll(&b->rig);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        BENCH_TEST(nothing_is_copied_beside_the_last_flush),
        BENCH_TEST_CLOSED(compressed_zeroes_are_one_cluster_a_request),
        BENCH_TEST_CLOSED(compressed_data_are_one_cluster_a_request),
        BENCH_TEST_CLOSED(the_error_that_ended_the_job_is_the_one_that_is_told),
        BENCH_TEST(what_is_on_its_way_from_the_spill_image_counts_as_spilled),
        BENCH_TEST(a_guests_copy_that_fails_ends_the_backup_also_under_ignore),
        BENCH_TEST(a_job_whose_flush_has_failed_is_not_done_without_the_data),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
