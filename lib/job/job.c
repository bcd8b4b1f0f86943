/* SPDX-License-Identifier: MIT */
/* job.c - the life of jobs: public state, result, events.
 *
 * A job is held by its handles, by itself while it runs, and by the context until it
 * is dismissed; group.c binds several to one end.  The kind's own machine runs in
 * RUNNING and READY only.
 *
 *   CREATED -> RUNNING -> READY -> PENDING -> CONCLUDED
 *
 *   CREATED        -> RUNNING    blkrepl__job_launch    the point in time
 *   RUNNING        -> READY      blkrepl__job_ready     it goes on until it is told to complete
 *   RUNNING, READY -> PENDING    blkrepl__job_finish    all work is done
 *   CREATED        -> CONCLUDED  blkrepl__job_conclude  cancelled before the start
 *   RUNNING, READY -> CONCLUDED  blkrepl__job_conclude  done with nothing to wait for, failed or
 *                                                       cancelled
 *   PENDING        -> CONCLUDED  blkrepl__job_conclude  all others have got so far, or one of
 *                                                       them has not; finalize; cancel */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "core/error.h"
#include "core/lane.h"
#include "job/group.h"

static const uint32_t job_next[] = {
    [BLKREPL_JOB_CREATED] = TO(BLKREPL_JOB_RUNNING) | TO(BLKREPL_JOB_CONCLUDED),
    [BLKREPL_JOB_RUNNING] =
        TO(BLKREPL_JOB_READY) | TO(BLKREPL_JOB_PENDING) | TO(BLKREPL_JOB_CONCLUDED),
    [BLKREPL_JOB_READY] = TO(BLKREPL_JOB_PENDING) | TO(BLKREPL_JOB_CONCLUDED),
    [BLKREPL_JOB_PENDING] = TO(BLKREPL_JOB_CONCLUDED),
    [BLKREPL_JOB_CONCLUDED] = 0,
};

static void job_enter(struct blkrepl_job *job, enum blkrepl_job_state next)
{
    CHECK(job_next[job->state] & TO(next));
    job->state = next;
}

static void job_post(struct blkrepl_job *job, struct event_slot *slot, blkrepl_event *event)
{
    if (job->handles == 0) {
        return;
    }
    event->object_kind = BLKREPL_OBJECT_JOB;
    event->object_id = job->id;
    event->user = job->user;
    blkrepl__context_post(job->ctx, 0, slot, event);
}

void blkrepl__job_post_state(struct blkrepl_job *job)
{
    job_post(job, &job->state_event, &(blkrepl_event){.type = BLKREPL_EVENT_JOB_STATE});
}

struct blkrepl_job *blkrepl__job_by_name(const struct blkrepl_context *ctx, const char *name)
{
    for (struct list *link = ctx->jobs.next; link != &ctx->jobs; link = link->next) {
        struct blkrepl_job *job = CONTAINER_OF(link, struct blkrepl_job, machine.all);

        if (!job->dismissed && strcmp(job->name, name) == 0) {
            return job;
        }
    }
    return NULL;
}

int blkrepl__job_check_name(struct blkrepl_context *ctx, const char *name)
{
    if (name == NULL) {
        return 0;
    }
    if (name[0] == '\0' || strlen(name) > BLKREPL_NAME_MAX) {
        return blkrepl__fail(-EINVAL, "job: a name has 1 to %d bytes", BLKREPL_NAME_MAX);
    }
    return blkrepl__job_by_name(ctx, name) != NULL
               ? blkrepl__fail(-EEXIST, "job \"%s\": the name is in use", name)
               : 0;
}

/* A name of ours; the host may have given the first choice to another job. */
static void job_make_name(struct blkrepl_job *job, const char *kind)
{
    char name[sizeof job->name] = {0}; /* all of it is handed to the host */
    int tries = 0;

    snprintf(name, sizeof name, "%s-%" PRIu64, kind, job->id);
    while (blkrepl__job_by_name(job->ctx, name) != NULL) {
        snprintf(name, sizeof name, "%s-%" PRIu64 ".%d", kind, job->id, ++tries);
    }
    memcpy(job->name, name, sizeof name);
}

static void job_step(struct machine *machine)
{
    struct blkrepl_job *job = CONTAINER_OF(machine, struct blkrepl_job, machine);
    uint32_t states = TO(BLKREPL_JOB_RUNNING) | TO(BLKREPL_JOB_READY);

    if ((states & TO(job->state)) == 0 || job->ops->step == NULL) {
        return;
    }
    while (job->ops->step(job) == STEP_AGAIN) {
    }
}

void blkrepl__job_cancel(struct blkrepl_job *job)
{
    job->cancel = true;
    job->error_paused = false;
    if (job->state == BLKREPL_JOB_CREATED || job->state == BLKREPL_JOB_PENDING) {
        blkrepl__job_conclude(job, BLKREPL_RESULT_CANCELLED);
        return;
    }
    job->refs++; /* it may end at once */
    job_tell(job, job->ops->cancelled);
    job_wake(job);
    blkrepl__job_put(job);
}

void blkrepl__job_cancel_bound(struct blkrepl_job *job)
{
    struct blkrepl_group *group = group_bond(job);

    if (group == NULL) {
        blkrepl__job_cancel(job);
        return;
    }
    group->refs++;
    group->aborted = true;
    blkrepl__job_cancel(job);
    blkrepl__group_abort(group);
    blkrepl__group_put(group);
}

void blkrepl__job_dismiss(struct blkrepl_job *job)
{
    job->dismissed = true;
    if (job->kept) {
        job->kept = false;
        blkrepl__job_put(job);
    }
}

/* The context is being freed. */
static void job_shut_down(struct machine *machine)
{
    struct blkrepl_job *job = CONTAINER_OF(machine, struct blkrepl_job, machine);

    if (job->state != BLKREPL_JOB_CONCLUDED) {
        blkrepl__job_cancel_bound(job);
    } else if (job->kept) {
        blkrepl__job_dismiss(job);
    }
}

void blkrepl__job_publish(struct blkrepl_job *job, struct blkrepl_context *ctx,
                          const struct job_identity *identity)
{
    job->ctx = ctx;
    job->id = ++ctx->last_id;
    job->user = identity->user;
    job->release = identity->release;
    job->state = BLKREPL_JOB_CREATED;
    job->flags = identity->flags;
    job->refs = 1;
    job->handles = 1;
    job->images_held = true;
    job->machine.step = job_step;
    job->machine.shut_down = job_shut_down;
    if (identity->name != NULL) {
        snprintf(job->name, sizeof job->name, "%s", identity->name);
    } else {
        job_make_name(job, identity->kind_name);
    }
    list_append(&ctx->jobs, &job->machine.all);
    ctx->jobs_open++;
}

void blkrepl__job_launch(struct blkrepl_job *job)
{
    job->refs++;
    job_enter(job, BLKREPL_JOB_RUNNING);
    blkrepl__job_post_state(job);
    blkrepl__log_add(&job->ctx->log, BLKREPL_LOG_INFO, "job \"%s\": started", job->name);
    job_tell(job, job->ops->start);
    job_wake(job);
}

void blkrepl__job_ready(struct blkrepl_job *job)
{
    job_enter(job, BLKREPL_JOB_READY);
    blkrepl__job_post_state(job);
}

static void job_set_cause(struct blkrepl_job *job, const struct job_error *error)
{
    static const char *const sides[] = {"", "source ", "target ", "spill "};

    job->cause = *error;
    snprintf(job->message, sizeof job->message, "job \"%s\": %s%s at %" PRIu64 "+%" PRIu64 ": %s",
             job->name, sides[error->side], error->what, error->offset, error->bytes,
             blkrepl_error_text(error->code));
    blkrepl__log_add(&job->ctx->log, BLKREPL_LOG_ERROR, "%s", job->message);
}

enum job_action blkrepl__job_judge(const struct blkrepl_job *job, const struct job_error *error)
{
    bool full = error->code == -ENOSPC || error->code == -EDQUOT;

    switch (job->on_error[error->side]) {
    case BLKREPL_ON_ERROR_IGNORE: return JOB_IGNORE;
    case BLKREPL_ON_ERROR_STOP: return JOB_STOP;
    case BLKREPL_ON_ERROR_ENOSPC: return full ? JOB_STOP : JOB_FAIL;
    default: return JOB_FAIL;
    }
}

void blkrepl__job_error(struct blkrepl_job *job, const struct job_error *error)
{
    if (job->state == BLKREPL_JOB_CONCLUDED) {
        return;
    }
    job->error_count++;
    job->side_errors[error->side]++;
    job_post(job, &job->error_event,
             &(blkrepl_event){.type = BLKREPL_EVENT_JOB_ERROR,
                              .side = error->side,
                              .offset = error->offset,
                              .bytes = error->bytes,
                              .error = error->code});
    if (job->cause.code == 0) {
        job_set_cause(job, error);
    }
}

void blkrepl__job_fail(struct blkrepl_job *job, const struct job_error *error)
{
    bool had = job->cause.code != 0;

    blkrepl__job_error(job, error);
    if (had && job->state != BLKREPL_JOB_CONCLUDED) {
        job_set_cause(job, error);
    }
}

void blkrepl__job_error_pause(struct blkrepl_job *job)
{
    uint32_t states = TO(BLKREPL_JOB_RUNNING) | TO(BLKREPL_JOB_READY);

    if ((states & TO(job->state)) == 0 || job->cancel || job->error_paused) {
        return;
    }
    job->error_paused = true;
    blkrepl__log_add(&job->ctx->log, BLKREPL_LOG_WARNING, "job \"%s\": paused by an error",
                     job->name);
    blkrepl__job_post_state(job);
}

/* The host's release runs as a callback of lane 0: after every event. */
static void job_gone(struct callback *callback, struct delivery *out)
{
    struct blkrepl_job *job = CONTAINER_OF(callback, struct blkrepl_job, gone);

    *out = (struct delivery){.done = {.user = job->user, .release = job->release}};
    job_tell(job, job->ops->destroy);
}

static void job_let_go(struct blkrepl_job *job)
{
    if (job->images_held) {
        job->images_held = false;
        job_tell(job, job->ops->let_go);
    }
}

void blkrepl__job_put(struct blkrepl_job *job)
{
    if (--job->refs > 0) {
        return;
    }
    blkrepl__group_leave(job);
    job_let_go(job);
    list_remove(&job->machine.all);
    list_unlink(&job->machine.link);
    if (job->release == NULL) {
        job_tell(job, job->ops->destroy);
        return;
    }
    job->gone.deliver = job_gone;
    blkrepl__lane_callback(&job->ctx->lanes[0], &job->gone);
}

int blkrepl__job_result_code(const struct blkrepl_job *job)
{
    switch (job->result) {
    case BLKREPL_RESULT_FAILED: return job->cause.code;
    case BLKREPL_RESULT_CANCELLED: return -ECANCELED;
    default: return 0;
    }
}

/* Nobody dismisses it, or it stays until somebody does. */
static void job_keep(struct blkrepl_job *job)
{
    if ((job->flags & BLKREPL_JOB_MANUAL_DISMISS) == 0) {
        job->dismissed = job->handles == 0;
    } else if (job->ctx->shut) {
        job->dismissed = true;
    } else {
        job->kept = true;
        job->refs++;
    }
}

void blkrepl__job_conclude(struct blkrepl_job *job, uint32_t result)
{
    bool started = job->state != BLKREPL_JOB_CREATED;

    CHECK(result != BLKREPL_RESULT_FAILED || job->cause.code != 0);
    job->result = result;
    job_enter(job, BLKREPL_JOB_CONCLUDED);
    blkrepl__group_leave(job);
    if (started) {
        job_tell(job, job->ops->settle);
    }
    job_let_go(job);
    job_post(
        job, &job->done_event,
        &(blkrepl_event){.type = BLKREPL_EVENT_JOB_DONE, .error = blkrepl__job_result_code(job)});
    blkrepl__log_add(&job->ctx->log, BLKREPL_LOG_INFO, "job \"%s\": %s", job->name,
                     result == BLKREPL_RESULT_DONE     ? "done"
                     : result == BLKREPL_RESULT_FAILED ? "failed"
                                                       : "cancelled");
    job_keep(job);
    if (started) {
        blkrepl__job_put(job);
    }
}

/* Whether a job that has done its work must not end as done all the same: it would
 * have to wait, and it or another of its group is being cancelled or has failed. */
static bool job_called_off(const struct blkrepl_job *job, const struct blkrepl_group *group)
{
    return group != NULL ? group->aborted
                         : job->cancel && (job->flags & BLKREPL_JOB_MANUAL_FINALIZE) != 0;
}

/* It has failed or was cancelled, and with it all whose fate it shares. */
static void job_end_badly(struct blkrepl_job *job, struct blkrepl_group *group, uint32_t result)
{
    if (group == NULL) {
        blkrepl__job_conclude(job, result);
        return;
    }
    group->refs++;
    group->aborted = true;
    blkrepl__job_conclude(job, result);
    blkrepl__group_abort(group);
    blkrepl__group_put(group);
}

void blkrepl__job_end_well(struct blkrepl_job *job)
{
    struct blkrepl_group *group = group_bond(job);

    if (group != NULL) {
        blkrepl__group_done(group);
    } else {
        blkrepl__job_conclude(job, BLKREPL_RESULT_DONE);
    }
}

void blkrepl__job_finish(struct blkrepl_job *job, uint32_t result)
{
    struct blkrepl_group *group = group_bond(job);

    if (result == BLKREPL_RESULT_DONE && job_called_off(job, group)) {
        result = BLKREPL_RESULT_CANCELLED;
    }
    if (result != BLKREPL_RESULT_DONE) {
        job_end_badly(job, group, result);
        return;
    }
    job_enter(job, BLKREPL_JOB_PENDING);
    if (group != NULL && blkrepl__group_waits(group)) {
        blkrepl__job_post_state(job);
    } else if (group != NULL && blkrepl__group_manual(group)) {
        blkrepl__group_finalizable(group);
    } else if ((job->flags & BLKREPL_JOB_MANUAL_FINALIZE) != 0) {
        blkrepl__job_post_state(job);
    } else {
        blkrepl__job_end_well(job);
    }
}
