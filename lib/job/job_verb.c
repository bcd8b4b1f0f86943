/* SPDX-License-Identifier: MIT */
/* job_verb.c - what the host does with jobs: verbs, query, handles.
 *
 * Each verb looks at the table first; what it changes is in job.c. */
#include <errno.h>
#include <string.h>

#include "base/abi.h"
#include "base/struct_io.h"
#include "core/error.h"
#include "job/group.h"

enum job_verb {
    VERB_START,
    VERB_JOIN,
    VERB_PAUSE,
    VERB_RESUME,
    VERB_SET_SPEED,
    VERB_CANCEL,
    VERB_COMPLETE,
    VERB_FINALIZE,
    VERB_DISMISS,
    VERB_COUNT
};

static const char *const job_verb_name[VERB_COUNT] = {"start",    "add to a group", "pause",
                                                      "resume",   "set the speed",  "cancel",
                                                      "complete", "finalize",       "dismiss"};
static const char *const job_state_name[] = {"",      "created", "running",
                                             "ready", "pending", "concluded"};

#define LIVE_STATES (TO(BLKREPL_JOB_CREATED) | TO(BLKREPL_JOB_RUNNING) | TO(BLKREPL_JOB_READY))

/* The table in the public header. */
static const uint32_t job_verb_states[VERB_COUNT] = {
    [VERB_START] = TO(BLKREPL_JOB_CREATED),
    [VERB_JOIN] = TO(BLKREPL_JOB_CREATED),
    [VERB_PAUSE] = LIVE_STATES,
    [VERB_RESUME] = LIVE_STATES,
    [VERB_SET_SPEED] = LIVE_STATES,
    [VERB_CANCEL] = LIVE_STATES | TO(BLKREPL_JOB_PENDING),
    [VERB_COMPLETE] = TO(BLKREPL_JOB_READY),
    [VERB_FINALIZE] = TO(BLKREPL_JOB_PENDING),
    [VERB_DISMISS] = TO(BLKREPL_JOB_CONCLUDED),
};

static int job_refuse(const struct blkrepl_job *job, enum job_verb verb, const char *why)
{
    return blkrepl__fail(BLKREPL_ERR_STATE, "job \"%s\": cannot %s: %s", job->name,
                         job_verb_name[verb], why);
}

/* Whether the verb is legal now. */
static int job_allow(const struct blkrepl_job *job, enum job_verb verb)
{
    if (job->ctx->shut && verb != VERB_CANCEL && verb != VERB_DISMISS) {
        return blkrepl__fail(-ESHUTDOWN, "job \"%s\": the context is being freed", job->name);
    }
    if ((job_verb_states[verb] & TO(job->state)) == 0) {
        return job_refuse(job, verb, job_state_name[job->state]);
    }
    return 0;
}

int blkrepl__job_may_join(const struct blkrepl_job *job)
{
    int rc = job_allow(job, VERB_JOIN);

    return rc == 0 && job->group != NULL ? job_refuse(job, VERB_JOIN, "it belongs to one") : rc;
}

int blkrepl__job_start(struct blkrepl_job *job)
{
    int rc = job_allow(job, VERB_START);

    if (rc < 0) {
        return rc;
    }
    if (job->group != NULL) {
        return job_refuse(job, VERB_START, "it belongs to a group");
    }
    rc = job_prepare(job);
    if (rc == 0) {
        blkrepl__job_launch(job);
    }
    return rc;
}

/* A verb that needs nothing but the job. */
static int job_call(struct blkrepl_job *job, int (*verb)(struct blkrepl_job *job))
{
    struct blkrepl_context *ctx;
    int rc;

    if (job == NULL) {
        return blkrepl__fail(-EINVAL, "job is NULL");
    }
    ctx = job->ctx;
    blkrepl__enter(ctx);
    rc = verb(job);
    blkrepl__leave(ctx, 0);
    return rc;
}

int blkrepl_job_start(blkrepl_job *job)
{
    return job_call(job, blkrepl__job_start);
}

static int job_do_pause(struct blkrepl_job *job)
{
    int rc = job_allow(job, VERB_PAUSE);

    if (rc < 0 || job->cancel) {
        return rc; /* one that winds up accepts it, without effect */
    }
    if (job->paused) {
        return job_refuse(job, VERB_PAUSE, "it is paused already");
    }
    job->paused = true;
    blkrepl__job_post_state(job);
    job_wake(job);
    return 0;
}

int blkrepl_job_pause(blkrepl_job *job)
{
    return job_call(job, job_do_pause);
}

static int job_do_resume(struct blkrepl_job *job)
{
    int rc = job_allow(job, VERB_RESUME);

    if (rc < 0 || job->cancel) {
        return rc;
    }
    if (!job_held(job)) {
        return job_refuse(job, VERB_RESUME, "it is not paused");
    }
    job->paused = false;
    job->error_paused = false;
    blkrepl__job_post_state(job);
    if (job->state != BLKREPL_JOB_CREATED) {
        job_tell(job, job->ops->resumed);
    }
    job_wake(job);
    return 0;
}

int blkrepl_job_resume(blkrepl_job *job)
{
    return job_call(job, job_do_resume);
}

static int job_do_complete(struct blkrepl_job *job)
{
    int rc = job_allow(job, VERB_COMPLETE);

    if (rc < 0 || job->cancel) {
        return rc;
    }
    if (job->complete || job_held(job)) {
        return job_refuse(job, VERB_COMPLETE,
                          job->complete ? "it was told so before" : "it is paused");
    }
    job->complete = true;
    blkrepl__job_post_state(job);
    job_tell(job, job->ops->complete);
    job_wake(job);
    return 0;
}

int blkrepl_job_complete(blkrepl_job *job)
{
    return job_call(job, job_do_complete);
}

static bool job_finalizable(const struct blkrepl_job *job)
{
    const struct blkrepl_group *group = group_bond(job);

    return job->state == BLKREPL_JOB_PENDING && (group == NULL || !blkrepl__group_waits(group));
}

static int job_do_finalize(struct blkrepl_job *job)
{
    int rc = job_allow(job, VERB_FINALIZE);

    if (rc < 0) {
        return rc;
    }
    if (!job_finalizable(job)) {
        return job_refuse(job, VERB_FINALIZE, "others of its group have not got so far");
    }
    blkrepl__job_end_well(job);
    return 0;
}

int blkrepl_job_finalize(blkrepl_job *job)
{
    return job_call(job, job_do_finalize);
}

static int job_do_dismiss(struct blkrepl_job *job)
{
    int rc = job_allow(job, VERB_DISMISS);

    if (rc < 0) {
        return rc;
    }
    if (job->dismissed) {
        return job_refuse(job, VERB_DISMISS, "it was dismissed before");
    }
    blkrepl__job_dismiss(job);
    return 0;
}

int blkrepl_job_dismiss(blkrepl_job *job)
{
    return job_call(job, job_do_dismiss);
}

static int job_do_cancel(struct blkrepl_job *job)
{
    int rc = job_allow(job, VERB_CANCEL);

    if (rc == 0) {
        blkrepl__job_cancel_bound(job);
    }
    return rc;
}

int blkrepl_job_cancel(blkrepl_job *job, uint32_t flags)
{
    if ((flags & ~(uint32_t)BLKREPL_CANCEL_FORCE) != 0) {
        return blkrepl__fail(-EINVAL, "job: unknown cancel flags");
    }
    return job_call(job, job_do_cancel);
}

int blkrepl_job_set_speed(blkrepl_job *job, uint64_t speed_bytes_per_sec)
{
    struct blkrepl_context *ctx;
    int rc;

    if (job == NULL) {
        return blkrepl__fail(-EINVAL, "job is NULL");
    }
    ctx = job->ctx;
    blkrepl__enter(ctx);
    rc = job_allow(job, VERB_SET_SPEED);
    if (rc == 0) {
        job->speed_bytes_per_sec = speed_bytes_per_sec;
        job_tell(job, job->ops->speed_changed);
        job_wake(job);
    }
    blkrepl__leave(ctx, 0);
    return rc;
}

static uint32_t job_info_flags(const struct blkrepl_job *job)
{
    bool concluded = job->state == BLKREPL_JOB_CONCLUDED;
    bool live = (LIVE_STATES & TO(job->state)) != 0; /* a pause may come too late to matter */

    return (job->paused && live ? (uint32_t)BLKREPL_JOB_FLAG_PAUSED : 0) |
           (job->error_paused && live ? (uint32_t)BLKREPL_JOB_FLAG_ERROR_PAUSED : 0) |
           (job->cancel && !concluded ? (uint32_t)BLKREPL_JOB_FLAG_CANCELLING : 0) |
           (job->complete && !concluded ? (uint32_t)BLKREPL_JOB_FLAG_COMPLETING : 0) |
           (job_finalizable(job) ? (uint32_t)BLKREPL_JOB_FLAG_FINALIZABLE : 0) |
           (job->dismissed ? (uint32_t)BLKREPL_JOB_FLAG_DISMISSED : 0);
}

static void job_fill_info(const struct blkrepl_job *job, blkrepl_job_info *info)
{
    info->kind = job->kind;
    info->state = job->state;
    info->result = job->result;
    info->flags = job_info_flags(job);
    info->error = job->state == BLKREPL_JOB_CONCLUDED ? blkrepl__job_result_code(job) : 0;
    info->id = job->id;
    info->error_side = job->cause.side;
    info->error_offset = job->cause.offset;
    info->error_bytes = job->cause.bytes;
    info->error_count = job->error_count;
    info->source_errors = job->side_errors[BLKREPL_SIDE_SOURCE];
    info->target_errors = job->side_errors[BLKREPL_SIDE_TARGET];
    info->spill_errors = job->side_errors[BLKREPL_SIDE_SPILL];
    info->speed_bytes_per_sec = job->speed_bytes_per_sec;
    info->group_id = job->group_id;
    info->user = job->user;
    memcpy(info->name, job->name, sizeof job->name);
    memcpy(info->message, job->message, sizeof job->message);
    if (job->ops->query != NULL) {
        job->ops->query(job, info);
    }
}

int blkrepl_job_query(blkrepl_job *job, blkrepl_job_info *info)
{
    blkrepl_job_info ours = {.struct_size = sizeof ours};
    int rc;

    if (job == NULL || info == NULL) {
        return blkrepl__fail(-EINVAL, "job: query with NULL");
    }
    blkrepl__enter(job->ctx);
    job_fill_info(job, &ours);
    blkrepl__leave(job->ctx, 0);
    rc = blkrepl__struct_out(info, BLKREPL_JOB_INFO_V1_BYTES, &ours, sizeof ours);
    return rc < 0 ? blkrepl__fail(rc, "job \"%s\": query: struct_size is too small", ours.name) : 0;
}

/* One more handle for the host; `job` NULL: there is none. */
static int job_hand_out(struct blkrepl_job *job, blkrepl_job **out)
{
    if (job == NULL) {
        return blkrepl__fail(-ENOENT, "job: there is none");
    }
    job->refs++;
    job->handles++;
    job->ctx->jobs_open++;
    *out = job;
    return 0;
}

int blkrepl_job_find(blkrepl_context *ctx, const char *name, blkrepl_job **out)
{
    int rc;

    if (out != NULL) {
        *out = NULL;
    }
    if (ctx == NULL || name == NULL || out == NULL) {
        return blkrepl__fail(-EINVAL, "job: find with NULL");
    }
    blkrepl__enter(ctx);
    rc = job_hand_out(blkrepl__job_by_name(ctx, name), out);
    blkrepl__leave(ctx, 0);
    return rc;
}

/* The first after this id that was not dismissed; they are in the order of their ids. */
static struct blkrepl_job *job_after(const struct blkrepl_context *ctx, uint64_t id)
{
    for (struct list *link = ctx->jobs.next; link != &ctx->jobs; link = link->next) {
        struct blkrepl_job *job = CONTAINER_OF(link, struct blkrepl_job, machine.all);

        if (job->id > id && !job->dismissed) {
            return job;
        }
    }
    return NULL;
}

int blkrepl_job_next(blkrepl_context *ctx, uint64_t after_id, blkrepl_job **out)
{
    int rc;

    if (out != NULL) {
        *out = NULL;
    }
    if (ctx == NULL || out == NULL) {
        return blkrepl__fail(-EINVAL, "job: next with NULL");
    }
    blkrepl__enter(ctx);
    rc = job_hand_out(job_after(ctx, after_id), out);
    blkrepl__leave(ctx, 0);
    return rc;
}

/* The host has none any more: no events, and what nobody keeps is as good as gone. */
static void job_forget(struct blkrepl_job *job)
{
    blkrepl__event_drop(&job->state_event);
    blkrepl__event_drop(&job->error_event);
    blkrepl__event_drop(&job->done_event);
    if (job->state == BLKREPL_JOB_CONCLUDED && !job->kept) {
        job->dismissed = true;
    }
}

void blkrepl_job_free(blkrepl_job *job)
{
    struct blkrepl_context *ctx;

    if (job == NULL) {
        return;
    }
    ctx = job->ctx;
    blkrepl__enter(ctx);
    ctx->jobs_open--;
    if (--job->handles == 0) {
        job_forget(job);
    }
    blkrepl__job_put(job);
    blkrepl__leave(ctx, 0);
}
