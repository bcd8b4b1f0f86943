/* SPDX-License-Identifier: MIT */
/* Backups that copy only what guests overwrite, errors by policy, spill, compression,
 * and the options of all that. */
#include "unit/backup_rig.h"

#include "base/checked.h"

/* ---- SYNC_NONE --------------------------------------------------------------------- */

static blkrepl_backup_options none_options(struct bench *b)
{
    blkrepl_backup_options o = options_of(b);

    o.sync = BLKREPL_SYNC_NONE;
    return o;
}

static void assert_cluster_copied(const struct bench *b, unsigned cluster, bool copied)
{
    static const unsigned char nothing[CLUSTER];
    size_t at = (size_t)cluster * CLUSTER;

    assert_memory_equal(b->target.disk + at, copied ? b->old + at : nothing, CLUSTER);
}

static void none_is_ready_at_once_and_saves_what_guests_overwrite(void **state)
{
    struct bench *b = *state;
    struct done done;
    blkrepl_backup_options o = none_options(b);
    blkrepl_job *job = create(b, &o);

    assert_int_equal(blkrepl_job_complete(job), BLKREPL_ERR_STATE);
    assert_int_equal(blkrepl_job_start(job), 0);
    assert_int_equal(info_of(job).state, BLKREPL_JOB_READY);
    rig_poll(&b->rig);
    assert_int_equal(script_count(&b->target, 0), 0);
    assert_int_equal(info_of(job).bytes_total, BYTES);
    guest_write(b, 3, &done);
    done_assert(&done, 0);
    assert_cluster_copied(b, 3, true);
    assert_cluster_copied(b, 4, false);
    assert_int_equal(info_of(job).bytes_done, CLUSTER);
    assert_int_equal(info_of(job).state, BLKREPL_JOB_READY);
    assert_int_equal(blkrepl_job_complete(job), 0);
    rig_poll(&b->rig);
    assert_int_equal(script_count(&b->target, BLKREPL_OP_WRITE), 1);
    assert_int_equal(script_count(&b->target, BLKREPL_OP_FLUSH), 1);
    assert_int_equal(info_of(job).bytes_total, CLUSTER);
    assert_concluded(b, job, BLKREPL_RESULT_DONE, 0);
}

static void none_that_has_saved_everything_is_not_done(void **state)
{
    struct bench *b = *state;
    blkrepl_backup_options o = none_options(b);
    blkrepl_job *job = start(b, &o);

    assert_int_equal(blkrepl_image_write_zeroes(b->from, 0, 0, BYTES, 0, NULL), 0);
    rig_poll(&b->rig);
    assert_memory_equal(b->target.disk, b->old, BYTES);
    assert_int_equal(info_of(job).state, BLKREPL_JOB_READY);
    assert_int_equal(info_of(job).bytes_done, BYTES - 1);
    assert_int_equal(info_of(job).bytes_total, BYTES);
    assert_int_equal(blkrepl_job_complete(job), 0);
    rig_poll(&b->rig);
    assert_int_equal(info_of(job).bytes_done, BYTES);
    assert_concluded(b, job, BLKREPL_RESULT_DONE, 0);
}

/* Told to complete, it takes nothing any more; what has been saved gets to the target,
 * and who waits for a buffer needs none. */
static void none_completes_when_what_was_saved_is_on_the_target(void **state)
{
    struct bench *b = *state;
    struct done done[6];
    blkrepl_backup_options o = none_options(b);
    blkrepl_job *job;

    b->target.hold = OP(WRITE) | OP(FLUSH);
    job = start(b, &o);
    for (unsigned i = 0; i < 5; i++) {
        guest_write(b, i, &done[i]); /* there are four buffers */
    }
    ASSERT_PENDING(&done[4]);
    assert_int_equal(b->target.waiting_count, 4);
    assert_int_equal(blkrepl_job_complete(job), 0);
    guest_write(b, 5, &done[5]);
    done_assert(&done[5], 0);
    assert_int_equal(info_of(job).guest_waits_count, 5);
    while (b->target.waiting_count > 0) {
        assert_int_equal(script_count(&b->target, BLKREPL_OP_FLUSH), 0);
        script_end(&b->target, 0, 0);
        rig_poll(&b->rig);
        if (script_count(&b->target, BLKREPL_OP_FLUSH) > 0) {
            break;
        }
    }
    done_assert(&done[4], 0);
    assert_cluster_copied(b, 3, true);
    assert_cluster_copied(b, 4, false);
    assert_int_equal(script_count(&b->target, BLKREPL_OP_WRITE), 4);
    assert_int_equal(info_of(job).state, BLKREPL_JOB_READY);
    script_end(&b->target, 0, 0);
    rig_poll(&b->rig);
    assert_concluded(b, job, BLKREPL_RESULT_DONE, 0);
}

static void none_is_cancelled_at_any_time(void **state)
{
    struct bench b;
    struct done done;
    blkrepl_backup_options o;
    blkrepl_job *job;

    (void)state;
    for (int completing = 0; completing < 2; completing++) {
        bench_open(&b, BYTES);
        o = none_options(&b);
        b.target.hold = OP(WRITE);
        job = start(&b, &o);
        guest_write(&b, 0, &done);
        if (completing) {
            assert_int_equal(blkrepl_job_complete(job), 0);
            rig_poll(&b.rig);
        }
        assert_int_equal(blkrepl_job_cancel(job, 0), 0);
        rig_poll(&b.rig);
        script_end(&b.target, 0, -ECANCELED);
        rig_poll(&b.rig);
        assert_concluded(&b, job, BLKREPL_RESULT_CANCELLED, -ECANCELED);
        bench_close(&b);
    }
}

/* The parts that are clean are neither saved nor to be found. */
static void none_with_dirty_only_leaves_out_what_is_clean(void **state)
{
    struct bench *b = *state;
    struct done done;
    struct copy_task *task;
    uint64_t end;
    blkrepl_backup_options o;
    blkrepl_job *job;

    bench_add_bitmap(b, 2 * CLUSTER);
    assert_int_equal(blkrepl_bitmap_set(b->bitmap, 4 * CLUSTER, 1), 0);
    o = none_options(b);
    o.flags = BLKREPL_BACKUP_DIRTY_ONLY;
    o.bitmap = b->bitmap;
    o.bitmap_mode = BLKREPL_BITMAP_NEVER;
    job = start(b, &o);
    assert_int_equal(info_of(job).bytes_total, 2 * CLUSTER);
    guest_write(b, 3, &done);
    guest_write(b, 5, &done);
    assert_cluster_copied(b, 3, false);
    assert_cluster_copied(b, 5, true);
    assert_int_equal(info_of(job).guest_waits_count, 1);
    assert_int_equal(blkrepl__copy_where(copy_of(job), 0, &end, &task), COPY_NOWHERE);
    assert_int_equal(end, 4 * CLUSTER);
    assert_int_equal(blkrepl__copy_where(copy_of(job), 4 * CLUSTER, &end, &task), COPY_AT_SOURCE);
    assert_int_equal(end, 5 * CLUSTER);
    assert_int_equal(blkrepl__copy_where(copy_of(job), 5 * CLUSTER, &end, &task), COPY_AT_TARGET);
    assert_int_equal(blkrepl__copy_where(copy_of(job), BYTES - 1, &end, &task), COPY_NOWHERE);
    assert_int_equal(blkrepl_job_complete(job), 0);
    assert_int_equal(blkrepl__copy_where(copy_of(job), 4 * CLUSTER, &end, &task), COPY_NOWHERE);
    rig_poll(&b->rig);
    assert_concluded(b, job, BLKREPL_RESULT_DONE, 0);
}

/* A host that pulls what is dirty: all of it is there, and the bitmap has been used up
 * or not. */
static void none_settles_its_bitmap(void **state)
{
    struct bench b;
    struct done done;
    blkrepl_backup_options o;
    blkrepl_job *job;

    (void)state;
    for (int cancel = 0; cancel < 2; cancel++) {
        bench_open(&b, 4 * CLUSTER);
        bench_add_bitmap(&b, CLUSTER);
        assert_int_equal(blkrepl_bitmap_set(b.bitmap, 0, 1), 0);
        o = none_options(&b);
        o.bitmap = b.bitmap;
        o.bitmap_mode = BLKREPL_BITMAP_ON_SUCCESS;
        job = start(&b, &o);
        assert_int_equal(info_of(job).bytes_total, 4 * CLUSTER);
        guest_write(&b, 2, &done);
        assert_cluster_copied(&b, 2, true);
        assert_dirty(&b, "#...");
        assert_int_equal(cancel ? blkrepl_job_cancel(job, 0) : blkrepl_job_complete(job), 0);
        rig_poll(&b.rig);
        assert_dirty(&b, cancel ? "#.#." : "..#.");
        assert_concluded(&b, job, cancel ? BLKREPL_RESULT_CANCELLED : BLKREPL_RESULT_DONE,
                         cancel ? -ECANCELED : 0);
        bench_close(&b);
    }
}

static void none_pauses_for_an_error_and_tries_again(void **state)
{
    struct bench *b = *state;
    struct done done;
    blkrepl_backup_options o = none_options(b);
    blkrepl_job *job;

    o.on_target_error = BLKREPL_ON_ERROR_STOP;
    b->target.result[BLKREPL_OP_WRITE] = -EIO;
    job = start(b, &o);
    guest_write(b, 7, &done);
    done_assert(&done, 0); /* saved in the buffer */
    assert_int_equal(info_of(job).flags, BLKREPL_JOB_FLAG_ERROR_PAUSED);
    assert_int_equal(info_of(job).state, BLKREPL_JOB_READY);
    assert_int_equal(blkrepl_job_complete(job), BLKREPL_ERR_STATE);
    b->target.result[BLKREPL_OP_WRITE] = 0;
    assert_int_equal(blkrepl_job_resume(job), 0);
    assert_int_equal(blkrepl_job_complete(job), 0);
    rig_poll(&b->rig);
    assert_cluster_copied(b, 7, true);
    assert_int_equal(info_of(job).target_errors, 1);
    assert_concluded(b, job, BLKREPL_RESULT_DONE, 0);
}

static void only_none_has_a_copy_that_others_read(void **state)
{
    struct bench *b = *state;
    struct blkrepl_job stranger = {.kind = BLKREPL_KIND_VERIFY};
    blkrepl_backup_options o = none_options(b);
    blkrepl_job *job = create(b, &o);

    assert_ptr_equal(blkrepl__backup_copy_of(job), copy_of(job));
    assert_true(copy_of(job)->config.keeps_absent);
    blkrepl_job_free(job);
    rig_poll(&b->rig);
    o = options_of(b);
    job = create(b, &o);
    assert_null(blkrepl__backup_copy_of(job));
    assert_null(blkrepl__backup_copy_of(&stranger));
    blkrepl_job_free(job);
}

/* ---- Errors -------------------------------------------------------------------------- */

/* Let a backup of one worker run over a disk whose clusters 2 and 4 cannot be read. */
static blkrepl_job *start_over_bad_source(struct bench *b, uint32_t on_source_error)
{
    blkrepl_backup_options o = options_of(b);
    blkrepl_job *job;

    o.on_source_error = on_source_error;
    o.workers_max = 1;
    o.chunk_bytes_max = CLUSTER;
    b->source.hold = OP(READ);
    job = run(b, &o);
    while (b->source.waiting_count > 0) {
        uint64_t at = b->source.waiting[0]->offset;

        script_end(&b->source, 0, at == 2 * CLUSTER || at == 4 * CLUSTER ? -EIO : 0);
        rig_poll(&b->rig);
    }
    return job;
}

static void errors_that_are_ignored_fail_the_job_at_the_end(void **state)
{
    struct bench *b = *state;
    blkrepl_job *job;
    blkrepl_job_info info;

    job = start_over_bad_source(b, BLKREPL_ON_ERROR_IGNORE);
    info = info_of(job);
    assert_int_equal(info.error_offset, 2 * CLUSTER); /* the first */
    assert_int_equal(info.error_side, BLKREPL_SIDE_SOURCE);
    assert_int_equal(info.error_count, 2);
    assert_int_equal(info.source_errors, 2);
    assert_int_equal(info.failed_bytes, 2 * CLUSTER);
    assert_int_equal(info.bytes_done, BYTES - 2 * CLUSTER);
    assert_cluster_copied(b, 2, false);
    assert_cluster_copied(b, 3, true);
    assert_cluster_copied(b, 4, false);
    assert_cluster_copied(b, 39, true);
    assert_int_equal(script_count(&b->target, BLKREPL_OP_FLUSH), 1);
    assert_concluded(b, job, BLKREPL_RESULT_FAILED, -EIO);
}

static void errors_are_reported_without_a_policy(void **state)
{
    struct bench *b = *state;
    blkrepl_job *job = start_over_bad_source(b, 0);

    assert_int_equal(info_of(job).error_count, 1);
    assert_int_equal(script_count(&b->target, BLKREPL_OP_FLUSH), 0);
    assert_concluded(b, job, BLKREPL_RESULT_FAILED, -EIO);
}

static void errors_that_stop_the_job_are_met_again_when_it_is_resumed(void **state)
{
    struct bench *b = *state;
    blkrepl_backup_options o = options_of(b);
    blkrepl_job *job;

    o.on_target_error = BLKREPL_ON_ERROR_ENOSPC;
    b->target.result[BLKREPL_OP_WRITE] = -ENOSPC;
    job = run(b, &o);
    assert_int_equal(info_of(job).state, BLKREPL_JOB_RUNNING);
    assert_int_equal(info_of(job).flags, BLKREPL_JOB_FLAG_ERROR_PAUSED);
    assert_int_equal(info_of(job).requests_in_flight, 0);
    b->target.result[BLKREPL_OP_WRITE] = 0;
    rig_poll(&b->rig);
    assert_int_equal(info_of(job).bytes_done, 0); /* not by itself */
    assert_int_equal(blkrepl_job_resume(job), 0);
    rig_poll(&b->rig);
    assert_memory_equal(b->target.disk, b->old, BYTES);
    assert_int_equal(info_of(job).error_side, BLKREPL_SIDE_TARGET); /* is still told */
    assert_concluded(b, job, BLKREPL_RESULT_DONE, 0);
}

/* What a flush that failed has lost, a second one that succeeds does not bring back. */
static void flush_that_fails_is_not_tried_again(void **state)
{
    struct bench *b = *state;
    blkrepl_backup_options o = options_of(b);
    blkrepl_job *job;

    o.on_target_error = BLKREPL_ON_ERROR_STOP;
    b->target.result[BLKREPL_OP_FLUSH] = -EIO;
    job = run(b, &o);
    assert_int_equal(script_count(&b->target, BLKREPL_OP_FLUSH), 1);
    assert_int_equal(info_of(job).target_errors, 1);
    assert_concluded(b, job, BLKREPL_RESULT_FAILED, -EIO);
}

static void flush_that_is_ignored_fails_the_job_all_the_same(void **state)
{
    struct bench *b = *state;
    blkrepl_backup_options o = options_of(b);
    blkrepl_job *job;

    o.on_target_error = BLKREPL_ON_ERROR_IGNORE;
    b->target.result[BLKREPL_OP_FLUSH] = -EIO;
    job = run(b, &o);
    assert_int_equal(info_of(job).error_count, 1);
    assert_concluded(b, job, BLKREPL_RESULT_FAILED, -EIO);
}

/* A flush that ends after the cancel: called off it says nothing, failed it has. */
static void flush_that_ends_after_the_cancel_is_looked_at(void **state)
{
    static const int results[] = {0, -ECANCELED, -EIO};
    struct bench b;
    blkrepl_backup_options o;
    blkrepl_job *job;

    (void)state;
    for (size_t i = 0; i < ARRAY_COUNT(results); i++) {
        bench_open(&b, 4 * CLUSTER);
        bench_add_bitmap(&b, CLUSTER);
        o = options_of(&b);
        o.bitmap = b.bitmap;
        o.bitmap_mode = BLKREPL_BITMAP_ALWAYS;
        b.target.hold = OP(FLUSH);
        job = run(&b, &o);
        assert_int_equal(blkrepl_job_cancel(job, 0), 0);
        rig_poll(&b.rig);
        script_end(&b.target, 0, results[i]);
        rig_poll(&b.rig);
        assert_dirty(&b, results[i] < 0 ? "####" : "...."); /* given up, or failed */
        assert_concluded(&b, job, BLKREPL_RESULT_CANCELLED, -ECANCELED);
        bench_close(&b);
    }
}

/* ---- Finalize ------------------------------------------------------------------------- */

static void backup_that_is_pending_holds_its_images_but_no_guest(void **state)
{
    struct bench *b = *state;
    struct done done;
    blkrepl_backup_options o = options_of(b);
    blkrepl_job *job;

    o.job_flags = BLKREPL_JOB_MANUAL_FINALIZE;
    job = run(b, &o);
    assert_int_equal(info_of(job).state, BLKREPL_JOB_PENDING);
    assert_int_equal(info_of(job).bytes_done, BYTES - 1);
    assert_int_equal(b->from->jobs_reading, 1);
    assert_int_equal(b->to->jobs_writing, 1);
    assert_true(list_empty(&b->from->taps));
    guest_write(b, 1, &done);
    done_assert(&done, 0);
    assert_int_equal(blkrepl_job_finalize(job), 0);
    rig_poll(&b->rig);
    assert_memory_equal(b->target.disk, b->old, BYTES);
    assert_concluded(b, job, BLKREPL_RESULT_DONE, 0);
}

/* ---- Spill ---------------------------------------------------------------------------- */

static void backup_spills_what_a_guest_overwrites(void **state)
{
    struct bench *b = *state;
    struct done done;
    blkrepl_backup_options o;
    blkrepl_job *job;

    bench_open_third(b, BYTES + CLUSTER);
    o = options_of(b);
    o.spill = b->spill;
    o.on_cbw_error = BLKREPL_CBW_GUEST_WRITE_FAILS;
    job = create(b, &o);
    assert_int_equal(b->spill->jobs_writing, 1);
    assert_int_equal(blkrepl_image_discard(b->spill, 0, 0, 1, 0, NULL), -EBUSY);
    assert_int_equal(blkrepl_job_pause(job), 0);
    assert_int_equal(blkrepl_job_start(job), 0);
    b->target.hold = OP(WRITE);
    guest_write(b, 3, &done);
    done_assert(&done, 0);
    assert_int_equal(b->target.waiting_count, 0);
    assert_memory_equal(b->third.disk + 3 * CLUSTER, b->old + 3 * CLUSTER, CLUSTER);
    assert_int_equal(info_of(job).spilled_bytes, CLUSTER);
    assert_int_equal(info_of(job).bytes_done, 0);
    b->target.hold = 0;
    assert_int_equal(blkrepl_job_resume(job), 0);
    rig_poll(&b->rig);
    assert_memory_equal(b->target.disk, b->old, BYTES);
    assert_int_equal(info_of(job).spilled_bytes, 0);
    assert_int_equal(info_of(job).spilled_bytes_total, CLUSTER);
    assert_concluded(b, job, BLKREPL_RESULT_DONE, 0);
}

/* What is in the spill image only is not on the target. */
static void backup_that_is_cancelled_counts_what_was_spilled_as_missing(void **state)
{
    struct bench *b = *state;
    struct done done;
    blkrepl_backup_options o;
    blkrepl_job *job;

    bench_open_third(b, 4 * CLUSTER);
    bench_add_bitmap(b, CLUSTER);
    assert_int_equal(blkrepl_bitmap_set(b->bitmap, 0, 4 * CLUSTER), 0);
    o = options_of(b);
    o.spill = b->spill;
    o.sync = BLKREPL_SYNC_BITMAP;
    o.bitmap = b->bitmap;
    o.bitmap_mode = BLKREPL_BITMAP_ALWAYS;
    b->target.hold = OP(WRITE);
    job = start_paused(b, &o);
    guest_write(b, 2, &done);
    assert_int_equal(info_of(job).spilled_bytes, CLUSTER);
    blkrepl__hbitmap_clear(&copy_of(job)->todo, 0, 4); /* as if all else had got there, */
    b->bitmap->since.bits.set_count = 0;               /* and nothing been written */
    b->bitmap->since.bits.level[0][0] = 0;
    assert_int_equal(blkrepl_job_cancel(job, 0), 0);
    rig_poll(&b->rig);
    assert_dirty(b, "..#.");
    blkrepl_bitmap_free(b->bitmap);
    b->bitmap = NULL;
    blkrepl_image_close(b->from); /* the job can be asked when its images are gone */
    b->from = NULL;
    rig_poll(&b->rig);
    assert_int_equal(b->source.closed, 1);
    assert_int_equal(info_of(job).result, BLKREPL_RESULT_CANCELLED);
    assert_int_equal(info_of(job).spilled_bytes, CLUSTER);
    blkrepl_job_free(job);
}

/* A failed copy for a guest gives its clusters back while others are in flight: they
 * are claimed again at once. */
static void backup_goes_back_from_draining_as_soon_as_there_is_work(void **state)
{
    struct bench *b = *state;
    struct done done;
    blkrepl_backup_options o;
    blkrepl_job *job;

    bench_open_third(b, 3 * CLUSTER);
    o = options_of(b);
    o.spill = b->spill;
    o.chunk_bytes_max = CLUSTER;
    b->target.hold = OP(WRITE);
    b->third.hold = OP(WRITE);
    job = start_paused(b, &o);
    guest_write(b, 0, &done);
    done_assert(&done, 0);
    assert_int_equal(blkrepl_job_resume(job), 0);
    rig_poll(&b->rig);
    assert_int_equal(b->target.waiting_count, 2); /* 1 and 2: nothing is left in todo */
    script_end(&b->target, 0, 0);
    script_end(&b->third, 0, 0);
    rig_poll(&b->rig);
    (void)script_find(&b->target, BLKREPL_OP_WRITE, 0); /* while the other is in flight */
    assert_int_equal(b->target.waiting_count, 2);
    b->target.hold = 0;
    script_end_all(&b->target);
    rig_poll(&b->rig);
    assert_memory_equal(b->target.disk, b->old, 3 * CLUSTER);
    assert_concluded(b, job, BLKREPL_RESULT_DONE, 0);
}

static void backup_refuses_a_spill_image_that_does_not_fit(void **state)
{
    struct bench *b = *state;
    struct rig other;
    struct script stranger;
    blkrepl_image *strange;
    blkrepl_backup_options o;

    bench_open_third(b, BYTES);
    o = options_of(b);
    o.spill_bytes_max = CLUSTER;
    refused(b, &o, -EINVAL); /* without an image */
    o.spill = b->spill;
    o.sync = BLKREPL_SYNC_NONE;
    refused(b, &o, -EINVAL);
    o.sync = 0;
    b->spill->leaf->port.info.bytes = BYTES - 1;
    refused(b, &o, -ENOSPC);
    b->spill->leaf->port.info.bytes = BYTES;
    b->spill->read_only = true;
    refused(b, &o, -EROFS);
    b->spill->read_only = false;
    b->spill->leaf->port.info.request_alignment = 2 * CLUSTER;
    refused(b, &o, -ENOTSUP);
    b->spill->leaf->port.info.request_alignment = 1;
    b->spill->writes = 1;
    refused(b, &o, -EBUSY);
    b->spill->writes = 0;
    b->spill->jobs_reading = 1;
    refused(b, &o, -EBUSY);
    b->spill->jobs_reading = 0;
    b->spill->jobs_writing = 1;
    refused(b, &o, -EBUSY);
    b->spill->jobs_writing = 0;
    b->from->leaf->identified = b->spill->leaf->identified = true;
    refused(b, &o, -EINVAL);
    b->from->leaf->identified = false;
    b->to->leaf->identified = true;
    refused(b, &o, -EINVAL);
    b->spill->leaf->identified = b->to->leaf->identified = false;

    memset(&other, 0, sizeof other);
    rig_open(&other, NULL);
    script_init(&stranger, BYTES);
    strange = script_open(&stranger, &other);
    o.spill = strange;
    refused(b, &o, -EINVAL);
    blkrepl_image_close(strange);
    rig_close(&other);
    script_fini(&stranger);
}

/* ---- Clusters and compression ---------------------------------------------------------- */

static void backup_never_leaves_a_target_cluster_half_filled(void **state)
{
    struct bench *b = *state;
    blkrepl_backup_options o;
    blkrepl_job *job;

    b->to->leaf->port.info.cluster_bytes = 2 * CLUSTER;
    o = options_of(b);
    refused(b, &o, -ENOTSUP);
    o.cluster_bytes = 2 * CLUSTER;
    job = create(b, &o);
    assert_int_equal(copy_of(job)->config.cluster_bytes, 2 * CLUSTER);
    blkrepl_job_free(job);
    rig_poll(&b->rig);
    b->from->leaf->port.info.cluster_bytes = 1u << 24; /* the source's does not matter */
    job = create(b, &o);
    blkrepl_job_free(job);
}

static void backup_compresses_cluster_by_cluster(void **state)
{
    struct bench *b = *state;
    blkrepl_backup_options o;
    blkrepl_job *job;

    b->target.info.flags = BLKREPL_BACKEND_COMPRESS;
    b->target.info.cluster_bytes = 2 * CLUSTER;
    bench_open_images(b);
    o = options_of(b);
    o.flags = BLKREPL_BACKUP_COMPRESS;
    o.cluster_bytes = 0;
    job = start(b, &o);
    assert_int_equal(copy_of(job)->config.cluster_bytes, 2 * CLUSTER);
    assert_int_equal(copy_of(job)->config.chunk_bytes, 2 * CLUSTER);
    rig_poll(&b->rig);
    assert_memory_equal(b->target.disk, b->old, BYTES);
    for (unsigned i = 0; i < b->target.note_count; i++) {
        const struct note *note = &b->target.notes[i];

        if (note->opcode == BLKREPL_OP_WRITE) {
            assert_true(note->flags & BLKREPL_IO_COMPRESS);
            assert_int_equal(note->offset % (2 * CLUSTER), 0);
            assert_true(note->bytes == 2 * CLUSTER || note->offset + note->bytes == BYTES);
        }
    }
    assert_concluded(b, job, BLKREPL_RESULT_DONE, 0);
}

static void backup_compresses_only_what_the_target_can(void **state)
{
    struct bench *b = *state;
    blkrepl_backend_info *info;
    blkrepl_backup_options o;
    blkrepl_job *job;

    info = &b->to->leaf->port.info;
    o = options_of(b);
    o.flags = BLKREPL_BACKUP_COMPRESS;
    refused(b, &o, -ENOTSUP);
    info->flags |= BLKREPL_BACKEND_COMPRESS;
    info->cluster_bytes = CLUSTER;
    o.cluster_bytes = 2 * CLUSTER; /* more than one cluster of the target */
    refused(b, &o, -ENOTSUP);
    o.cluster_bytes = CLUSTER;
    b->from->leaf->port.info.cluster_bytes = 1u << 20;
    job = create(b, &o);
    blkrepl_job_free(job);
    rig_poll(&b->rig);
    o.cluster_bytes = 0;
    info->cluster_bytes = 0;
    b->from->leaf->port.info.cluster_bytes = 0;
    job = create(b, &o);
    assert_int_equal(copy_of(job)->config.cluster_bytes, 65536);
    assert_int_equal(copy_of(job)->config.chunk_bytes, 65536);
    blkrepl_job_free(job);
}

/* ---- The other options ------------------------------------------------------------------ */

static void backup_hands_its_options_on(void **state)
{
    struct bench *b = *state;
    blkrepl_throttle_options limits = {.struct_size = sizeof limits, .bytes_per_sec = MIB};
    blkrepl_throttle *throttle;
    blkrepl_backup_options o;
    const struct copy_config *config;
    blkrepl_job *job;

    bench_open_third(b, BYTES);
    assert_int_equal(blkrepl_throttle_create(b->rig.ctx, &limits, &throttle), 0);
    o = options_of(b);
    o.on_source_error = BLKREPL_ON_ERROR_STOP;
    o.on_target_error = BLKREPL_ON_ERROR_ENOSPC;
    o.job_flags = BLKREPL_JOB_MANUAL_DISMISS;
    o.speed_burst_bytes = 12345;
    o.spill = b->spill;
    o.throttle = throttle;
    job = create(b, &o);
    config = &copy_of(job)->config;
    assert_int_equal(job->on_error[BLKREPL_SIDE_SOURCE], BLKREPL_ON_ERROR_STOP);
    assert_int_equal(job->on_error[BLKREPL_SIDE_TARGET], BLKREPL_ON_ERROR_ENOSPC);
    assert_int_equal(job->on_error[BLKREPL_SIDE_SPILL], BLKREPL_ON_ERROR_STOP);
    assert_int_equal(job->flags, BLKREPL_JOB_MANUAL_DISMISS);
    assert_int_equal(config->burst_bytes, 12345);
    assert_true(config->spill_bytes_max == UINT64_MAX);
    assert_ptr_equal(config->throttle, throttle);
    assert_false(config->keeps_bad || config->keeps_absent || config->compress);
    assert_int_equal(throttle->refs, 2);
    blkrepl_throttle_free(throttle); /* the job has it */
    blkrepl_job_free(job);
    rig_poll(&b->rig);
    o.job_flags = 0;
    o.throttle = NULL;
    o.on_source_error = 0;
    o.on_target_error = BLKREPL_ON_ERROR_IGNORE;
    o.spill_bytes_max = 3 * CLUSTER;
    job = create(b, &o);
    config = &copy_of(job)->config;
    assert_true(config->keeps_bad);
    assert_int_equal(config->spill_bytes_max, 3 * CLUSTER);
    blkrepl_job_free(job);
}

/* A host that was built with the first release knows nothing of what has come since. */
static void backup_takes_options_of_the_first_release(void **state)
{
    struct bench *b = *state;
    blkrepl_backup_options o = options_of(b);
    blkrepl_job *job;

    memset(&o.on_source_error, 0xff, sizeof o - offsetof(blkrepl_backup_options, on_source_error));
    o.struct_size = offsetof(blkrepl_backup_options, on_source_error);
    job = run(b, &o);
    assert_memory_equal(b->target.disk, b->old, BYTES);
    assert_concluded(b, job, BLKREPL_RESULT_DONE, 0);
}

static void backup_refuses_what_it_does_not_know(void **state)
{
    struct bench *b = *state;
    struct rig other;
    blkrepl_throttle_options limits = {.struct_size = sizeof limits, .bytes_per_sec = MIB};
    blkrepl_throttle *theirs;

    REFUSED(b, job_flags, 4, -EINVAL);
    REFUSED(b, on_source_error, 5, -EINVAL);
    REFUSED(b, on_target_error, 5, -EINVAL);
    REFUSED(b, bitmap_mode, 4, -EINVAL);
    memset(&other, 0, sizeof other);
    rig_open(&other, NULL);
    assert_int_equal(blkrepl_throttle_create(other.ctx, &limits, &theirs), 0);
    REFUSED(b, throttle, theirs, -EINVAL);
    blkrepl_throttle_free(theirs);
    rig_close(&other);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        BENCH_TEST(none_is_ready_at_once_and_saves_what_guests_overwrite),
        BENCH_TEST(none_that_has_saved_everything_is_not_done),
        BENCH_TEST(none_completes_when_what_was_saved_is_on_the_target),
        cmocka_unit_test(none_is_cancelled_at_any_time),
        BENCH_TEST(none_with_dirty_only_leaves_out_what_is_clean),
        cmocka_unit_test(none_settles_its_bitmap),
        BENCH_TEST(none_pauses_for_an_error_and_tries_again),
        BENCH_TEST(only_none_has_a_copy_that_others_read),
        BENCH_TEST(errors_that_are_ignored_fail_the_job_at_the_end),
        BENCH_TEST(errors_are_reported_without_a_policy),
        BENCH_TEST(errors_that_stop_the_job_are_met_again_when_it_is_resumed),
        BENCH_TEST(flush_that_fails_is_not_tried_again),
        BENCH_TEST(flush_that_is_ignored_fails_the_job_all_the_same),
        cmocka_unit_test(flush_that_ends_after_the_cancel_is_looked_at),
        BENCH_TEST(backup_that_is_pending_holds_its_images_but_no_guest),
        BENCH_TEST(backup_spills_what_a_guest_overwrites),
        BENCH_TEST_SIZE(backup_that_is_cancelled_counts_what_was_spilled_as_missing, 4 * CLUSTER),
        BENCH_TEST_SIZE(backup_goes_back_from_draining_as_soon_as_there_is_work, 3 * CLUSTER),
        BENCH_TEST(backup_refuses_a_spill_image_that_does_not_fit),
        BENCH_TEST(backup_never_leaves_a_target_cluster_half_filled),
        BENCH_TEST_CLOSED(backup_compresses_cluster_by_cluster),
        BENCH_TEST(backup_compresses_only_what_the_target_can),
        BENCH_TEST(backup_hands_its_options_on),
        BENCH_TEST(backup_takes_options_of_the_first_release),
        BENCH_TEST(backup_refuses_what_it_does_not_know),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
