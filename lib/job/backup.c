/* SPDX-License-Identifier: MIT */
/* backup.c - point-in-time copy of one image to another.
 *
 * A policy over the copy engine: what is to do is decided at the start, which is the
 * point in time, and the target is flushed at the end.  With SYNC_NONE nothing is copied
 * but what guests overwrite, until the job is told to complete.
 *
 * Invariants:
 *   1. The tap is attached from the start until the engine stops or the job
 *      ends; the target takes no guest writes from the creation on.
 *   2. The job is done only if every cluster that was to do is on the target (SYNC_NONE:
 *      every one that a guest has overwritten) and the flush that followed has succeeded.
 *   3. The bitmap is busy from the start until the result is settled.
 *
 *   CREATED -> COPY -> DRAIN -> FLUSH -> DONE
 *      |         ^      |^ |     | |       ^
 *      |         +------+| |     | +-------+
 *      +-> SERVE --------+ |               |
 *                          +---------------+  error, cancel
 *
 *   CREATED -> SERVE  backup_start  the point in time, with SYNC_NONE
 *   CREATED -> COPY   backup_start  the point in time
 *   SERVE   -> DRAIN  backup_serve  told to complete, or the engine stopped
 *   COPY    -> DRAIN  backup_copy   nothing left to claim, or the engine stopped
 *   DRAIN   -> COPY   backup_drain  clusters came back (a guest's copy failed), or
 *                                   were spilled
 *   DRAIN   -> FLUSH  backup_drain  nothing in flight, all is on the target; or the engine
 *                                   stopped, and the bitmap is to tell what is there
 *   DRAIN   -> DONE   backup_drain  nothing in flight, the engine stopped
 *   FLUSH   -> DONE   backup_flush  the flush has ended
 *
 *   FLUSH: * no copy is in flight   * nothing is left to copy, unless the engine stopped
 *   DONE:  * nothing is in flight   * no guest waits for the job
 */
#include <errno.h>

#include "base/checked.h"
#include "base/hook.h"
#include "job/backup.h"

static const uint32_t backup_next[BACKUP_STATE_COUNT] = {
    [BACKUP_CREATED] = TO(BACKUP_SERVE) | TO(BACKUP_COPY),
    [BACKUP_SERVE] = TO(BACKUP_DRAIN),
    [BACKUP_COPY] = TO(BACKUP_DRAIN),
    [BACKUP_DRAIN] = TO(BACKUP_COPY) | TO(BACKUP_FLUSH) | TO(BACKUP_DONE),
    [BACKUP_FLUSH] = TO(BACKUP_DONE),
};

static void backup_start(struct blkrepl_job *job);
static void backup_complete(struct blkrepl_job *job);
static enum step backup_serve(struct backup *backup);
static enum step backup_copy(struct backup *backup);
static enum step backup_drain(struct backup *backup);
static enum step backup_flush(struct backup *backup);
static enum step backup_done(struct backup *backup);
static void backup_check(const struct backup *backup);

static struct backup *backup_of(struct blkrepl_job *job)
{
    return CONTAINER_OF(job, struct backup, job);
}

static enum step backup_step(struct blkrepl_job *job)
{
    struct backup *backup = backup_of(job);

    backup_check(backup);
    switch (backup->state) {
    case BACKUP_SERVE: return backup_serve(backup);
    case BACKUP_COPY: return backup_copy(backup);
    case BACKUP_DRAIN: return backup_drain(backup);
    case BACKUP_FLUSH: return backup_flush(backup);
    case BACKUP_DONE: return backup_done(backup);
    case BACKUP_CREATED:
    case BACKUP_STATE_COUNT: break;
    }
    UNREACHABLE();
}

static enum step backup_enter(struct backup *backup, enum backup_state next)
{
    CHECK(backup_next[backup->state] & TO(next));
    backup->state = next;
    if (STRETCH(BACKUP_STATE)) {
        job_wake(&backup->job);
        return STEP_WAIT;
    }
    return STEP_AGAIN;
}

/* Whether there is work for the pump. */
static bool backup_pending(const struct backup *backup)
{
    return backup->sync != BLKREPL_SYNC_NONE && copy_pending(&backup->copy);
}

/* The point in time. */
static void backup_start(struct blkrepl_job *job)
{
    struct backup *backup = backup_of(job);

    if (job->speed_bytes_per_sec != 0) {
        blkrepl__copy_set_speed(&backup->copy);
    }
    blkrepl__backup_bitmap_start(backup);
    blkrepl__copy_attach(&backup->copy);
    if (backup->sync == BLKREPL_SYNC_NONE) {
        backup_enter(backup, BACKUP_SERVE);
        blkrepl__job_ready(job);
    } else {
        backup_enter(backup, BACKUP_COPY);
    }
}

/* SERVE: the tap does all the work. */
static enum step backup_serve(struct backup *backup)
{
    if (!backup->copy.stopped && !backup->job.complete) {
        return STEP_WAIT;
    }
    return backup_enter(backup, BACKUP_DRAIN);
}

/* COPY: keep the engine busy until nothing is left to claim or we must stop. */
static enum step backup_copy(struct backup *backup)
{
    if (!backup->copy.stopped && !job_held(&backup->job)) {
        blkrepl__copy_pump(&backup->copy);
    }
    if (!backup->copy.stopped && backup_pending(backup)) {
        return STEP_WAIT;
    }
    return backup_enter(backup, BACKUP_DRAIN);
}

/* Whether the bitmap of a job that is not done will say that something is on the target:
 * then it has to be durable there, or a later flush that fails would lose it, and no
 * bitmap would know. */
static bool backup_keeps_account(const struct backup *backup)
{
    return backup->bitmap_mode == BLKREPL_BITMAP_ALWAYS && backup->copy.bytes_done > 0;
}

/* DRAIN: copies in flight still own buffers; wait for every one. */
static enum step backup_drain(struct backup *backup)
{
    if (!backup->copy.stopped && backup_pending(backup)) {
        return backup_enter(backup, BACKUP_COPY);
    }
    if (!copy_idle(&backup->copy)) {
        return STEP_WAIT;
    }
    if (backup->copy.stopped && !backup_keeps_account(backup)) {
        return backup_enter(backup, BACKUP_DONE);
    }
    if (!backup->copy.stopped && job_held(&backup->job)) {
        return STEP_WAIT;
    }
    if (backup->job.complete) {
        backup_complete(&backup->job); /* a guest's copy may have failed since */
    }
    blkrepl__copy_flush(&backup->copy);
    return backup_enter(backup, BACKUP_FLUSH);
}

/* The flush has failed, and what of it is lost nobody knows: another one that succeeds
 * would prove nothing, so no policy helps. */
static void backup_flush_failed(struct backup *backup)
{
    struct copy *copy = &backup->copy;
    struct job_error error = {.code = copy->flush_result,
                              .side = BLKREPL_SIDE_TARGET,
                              .bytes = backup->bytes_total,
                              .what = "flush"};

    if (copy->stopped) {
        blkrepl__job_error(&backup->job, &error);
    } else {
        blkrepl__copy_fail(copy, &error);
    }
}

/* FLUSH: what we wrote is durable when the flush has ended well. */
static enum step backup_flush(struct backup *backup)
{
    struct copy *copy = &backup->copy;

    if (copy->flushing) {
        return STEP_WAIT;
    }
    backup->flush_failed = !copy->flushed || copy->flush_result < 0;
    if (copy->flush_result < 0 && !(copy->stopped && copy->flush_result == -ECANCELED)) {
        backup_flush_failed(backup);
    }
    return backup_enter(backup, BACKUP_DONE);
}

/* What was given up under IGNORE is not on the target. */
static uint32_t backup_result(const struct backup *backup)
{
    const struct copy *copy = &backup->copy;

    if (copy->failed) {
        return BLKREPL_RESULT_FAILED;
    }
    if (copy->stopped) {
        return BLKREPL_RESULT_CANCELLED;
    }
    return copy->bad.set_count > 0 ? BLKREPL_RESULT_FAILED : BLKREPL_RESULT_DONE;
}

/* DONE: tell how it went; the job may be gone afterwards. */
static enum step backup_done(struct backup *backup)
{
    uint32_t result = backup_result(backup);

    blkrepl__copy_stop(&backup->copy);
    blkrepl__job_finish(&backup->job, result);
    return STEP_DONE;
}

static void backup_check(const struct backup *backup)
{
    const struct copy *copy = &backup->copy;

    CHECK(!copy->stopped || list_empty(&copy->waiting));
    CHECK(backup->state != BACKUP_FLUSH || copy->stopped ||
          (list_empty(&copy->active) && list_empty(&copy->voids) && !backup_pending(backup)));
    CHECK(backup->state != BACKUP_DONE || copy_idle(copy));
    (void)copy;
}

static int backup_prepare(struct blkrepl_job *job)
{
    return blkrepl__backup_bitmap_prepare(backup_of(job));
}

static void backup_unprepare(struct blkrepl_job *job)
{
    blkrepl__backup_bitmap_unprepare(backup_of(job));
}

static void backup_cancelled(struct blkrepl_job *job)
{
    blkrepl__copy_stop(&backup_of(job)->copy);
}

/* Nobody wants old data any more; what guests have had saved gets to the target. */
static void backup_complete(struct blkrepl_job *job)
{
    blkrepl__copy_forget_rest(&backup_of(job)->copy);
}

static void backup_resumed(struct blkrepl_job *job)
{
    blkrepl__copy_resume(&backup_of(job)->copy);
}

static void backup_speed_changed(struct blkrepl_job *job)
{
    blkrepl__copy_set_speed(&backup_of(job)->copy);
}

/* In the spill image, whether or not it is on its way to the target. */
static uint64_t backup_spilled(const struct copy *copy)
{
    uint64_t bytes = blkrepl__backup_bytes(copy, &copy->spilled);

    for (const struct list *link = copy->active.next; link != &copy->active; link = link->next) {
        const struct copy_task *task = CONTAINER_OF(link, struct copy_task, link);

        bytes += task->spilled && task->state != COPY_CLEAN ? task->end - task->start : 0;
    }
    return bytes;
}

static void backup_query(const struct blkrepl_job *job, blkrepl_job_info *info)
{
    const struct backup *backup = CONTAINER_OF(job, struct backup, job);
    const struct copy *copy = &backup->copy;

    info->bytes_done = copy->bytes_done;
    info->bytes_total = backup->bytes_total;
    if (backup->sync == BLKREPL_SYNC_NONE && job->result == BLKREPL_RESULT_DONE) {
        info->bytes_total = info->bytes_done; /* there is no more to it */
    }
    if (info->bytes_done == info->bytes_total && info->bytes_total > 0 &&
        job->result != BLKREPL_RESULT_DONE) {
        info->bytes_done--; /* the last byte counts when the target is durable */
    }
    info->requests_in_flight = copy->in_flight;
    info->guest_copies_count = copy->guest_copies_count;
    info->guest_copies_bytes = min_u64(copy->guest_copies_bytes, info->bytes_done);
    info->guest_waits_count = copy->guest_waits_count;
    info->zero_bytes = min_u64(copy->zero_bytes, info->bytes_done);
    info->offloaded_bytes = min_u64(copy->offloaded_bytes, info->bytes_done);
    info->failed_bytes = copy->failed_bytes;
    info->spilled_bytes_total = copy->spilled_bytes_total;
    if (copy->config.spill != NULL) {
        info->spilled_bytes = backup_spilled(copy);
    }
}

static void backup_settle(struct blkrepl_job *job)
{
    blkrepl__backup_bitmap_settle(backup_of(job));
}

static void backup_let_go(struct blkrepl_job *job)
{
    struct backup *backup = backup_of(job);
    const struct copy_config *config = &backup->copy.config;

    blkrepl__backup_bitmap_unprepare(backup);
    blkrepl__copy_unreserve(&backup->copy);
    config->source->jobs_reading--;
    config->target->jobs_writing--;
    if (config->spill != NULL) {
        config->spill->jobs_writing--;
        blkrepl__image_unref(config->spill);
    }
    if (backup->bitmap != NULL) {
        blkrepl__bitmap_unref(backup->bitmap);
    }
    blkrepl__image_unref(config->source);
    blkrepl__image_unref(config->target);
}

static void backup_destroy(struct blkrepl_job *job)
{
    struct backup *backup = backup_of(job);

    blkrepl__backup_bitmap_fini(backup);
    blkrepl__copy_free(&backup->copy, job->ctx);
    blkrepl__free(&job->ctx->alloc, backup);
}

const struct job_ops blkrepl__backup_ops = {
    .prepare = backup_prepare,
    .unprepare = backup_unprepare,
    .start = backup_start,
    .step = backup_step,
    .cancelled = backup_cancelled,
    .complete = backup_complete,
    .resumed = backup_resumed,
    .speed_changed = backup_speed_changed,
    .query = backup_query,
    .settle = backup_settle,
    .let_go = backup_let_go,
    .destroy = backup_destroy,
};

struct copy *blkrepl__backup_copy_of(struct blkrepl_job *job)
{
    struct backup *backup = backup_of(job);

    return job->ops == &blkrepl__backup_ops && backup->sync == BLKREPL_SYNC_NONE ? &backup->copy
                                                                                 : NULL;
}
