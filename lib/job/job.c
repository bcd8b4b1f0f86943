/* SPDX-License-Identifier: MIT */
/* job.c - verbs, public state, result and events of jobs. */
#include "job/job.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/abi.h"
#include "base/struct_io.h"
#include "core/error.h"
#include "core/lane.h"

enum job_verb {
    VERB_START,
    VERB_PAUSE,
    VERB_RESUME,
    VERB_SET_SPEED,
    VERB_CANCEL,
    VERB_COUNT
};

static const char *const job_verb_name[VERB_COUNT] = {"start", "pause", "resume", "set the speed",
                                                      "cancel"};
static const char *const job_state_name[] = {"",      "created", "running",
                                             "ready", "pending", "concluded"};

#define LIVE_STATES (TO(BLKREPL_JOB_CREATED) | TO(BLKREPL_JOB_RUNNING) | TO(BLKREPL_JOB_READY))

/* The table in the public header. */
static const uint32_t job_verb_states[VERB_COUNT] = {
    [VERB_START] = TO(BLKREPL_JOB_CREATED),
    [VERB_PAUSE] = LIVE_STATES,
    [VERB_RESUME] = LIVE_STATES,
    [VERB_SET_SPEED] = LIVE_STATES,
    [VERB_CANCEL] = LIVE_STATES | TO(BLKREPL_JOB_PENDING),
};

static int job_refuse(const struct blkrepl_job *job, enum job_verb verb, const char *why)
{
    return blkrepl__fail(BLKREPL_ERR_STATE, "job \"%s\": cannot %s: %s", job->name,
                         job_verb_name[verb], why);
}

/* Whether the verb is legal now. */
static int job_allow(const struct blkrepl_job *job, enum job_verb verb)
{
    if (verb != VERB_CANCEL && job->ctx->shut) {
        return blkrepl__fail(-ESHUTDOWN, "job \"%s\": the context is being freed", job->name);
    }
    if ((job_verb_states[verb] & TO(job->state)) == 0) {
        return job_refuse(job, verb, job_state_name[job->state]);
    }
    return 0;
}

static void job_post(struct blkrepl_job *job, struct event_slot *slot, blkrepl_event *event)
{
    if (!job->handle) {
        return;
    }
    event->object_kind = BLKREPL_OBJECT_JOB;
    event->object_id = job->id;
    event->user = job->user;
    blkrepl__context_post(job->ctx, 0, slot, event);
}

static void job_post_state(struct blkrepl_job *job)
{
    job_post(job, &job->state_event, &(blkrepl_event){.type = BLKREPL_EVENT_JOB_STATE});
}

static bool job_name_taken(const struct blkrepl_context *ctx, const char *name)
{
    for (struct list *link = ctx->jobs.next; link != &ctx->jobs; link = link->next) {
        const struct blkrepl_job *job = CONTAINER_OF(link, struct blkrepl_job, machine.all);

        if (strcmp(job->name, name) == 0) {
            return true;
        }
    }
    return false;
}

int blkrepl__job_check_name(struct blkrepl_context *ctx, const char *name)
{
    if (name == NULL) {
        return 0;
    }
    if (name[0] == '\0' || strlen(name) > BLKREPL_NAME_MAX) {
        return blkrepl__fail(-EINVAL, "job: a name has 1 to %d bytes", BLKREPL_NAME_MAX);
    }
    return job_name_taken(ctx, name)
               ? blkrepl__fail(-EEXIST, "job \"%s\": the name is in use", name)
               : 0;
}

/* A name of ours; the host may have given the first choice to another job. */
static void job_make_name(struct blkrepl_job *job, const char *kind)
{
    char name[sizeof job->name] = {0}; /* all of it is handed to the host */
    int tries = 0;

    snprintf(name, sizeof name, "%s-%" PRIu64, kind, job->id);
    while (job_name_taken(job->ctx, name)) {
        snprintf(name, sizeof name, "%s-%" PRIu64 ".%d", kind, job->id, ++tries);
    }
    memcpy(job->name, name, sizeof name);
}

static void job_step(struct machine *machine)
{
    struct blkrepl_job *job = CONTAINER_OF(machine, struct blkrepl_job, machine);

    if (job->state == BLKREPL_JOB_CREATED || job->state == BLKREPL_JOB_CONCLUDED) {
        return;
    }
    while (job->ops->step(job) == STEP_AGAIN) {
    }
}

static void job_cancel(struct blkrepl_job *job)
{
    if (job->cancel) {
        return;
    }
    job->cancel = true;
    if (job->state == BLKREPL_JOB_CREATED) {
        blkrepl__job_conclude(job, BLKREPL_RESULT_CANCELLED);
        return;
    }
    job->ops->cancelled(job);
    job_wake(job);
}

static void job_shut_down(struct machine *machine)
{
    struct blkrepl_job *job = CONTAINER_OF(machine, struct blkrepl_job, machine);

    if (job->state != BLKREPL_JOB_CONCLUDED) {
        job_cancel(job);
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
    job->refs = 1;
    job->handle = true;
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

int blkrepl__job_start(struct blkrepl_job *job)
{
    int rc = job_allow(job, VERB_START);

    if (rc < 0) {
        return rc;
    }
    job->refs++;
    job->state = BLKREPL_JOB_RUNNING;
    job->ops->start(job);
    job_post_state(job);
    blkrepl__log_add(&job->ctx->log, BLKREPL_LOG_INFO, "job \"%s\": started", job->name);
    job_wake(job);
    return 0;
}

static void job_set_cause(struct blkrepl_job *job, const struct job_error *error)
{
    job->cause = *error;
    snprintf(job->message, sizeof job->message, "job \"%s\": %s %s at %" PRIu64 "+%" PRIu64 ": %s",
             job->name, error->side == BLKREPL_SIDE_SOURCE ? "source" : "target", error->what,
             error->offset, error->bytes, blkrepl_error_text(error->code));
    blkrepl__log_add(&job->ctx->log, BLKREPL_LOG_ERROR, "%s", job->message);
}

void blkrepl__job_error(struct blkrepl_job *job, const struct job_error *error)
{
    job->error_count++;
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
    if (had) {
        job_set_cause(job, error);
    }
}

/* The host's release runs as a callback of lane 0: after every event. */
static void job_gone(struct callback *callback, struct delivery *out)
{
    struct blkrepl_job *job = CONTAINER_OF(callback, struct blkrepl_job, gone);

    *out = (struct delivery){.done = {.user = job->user, .release = job->release}};
    job->ops->destroy(job);
}

static void job_let_go(struct blkrepl_job *job)
{
    if (job->images_held) {
        job->images_held = false;
        job->ops->let_go(job);
    }
}

static void job_unref(struct blkrepl_job *job)
{
    if (--job->refs > 0) {
        return;
    }
    job_let_go(job);
    list_remove(&job->machine.all);
    list_unlink(&job->machine.link);
    if (job->release == NULL) {
        job->ops->destroy(job);
        return;
    }
    job->gone.deliver = job_gone;
    blkrepl__lane_callback(&job->ctx->lanes[0], &job->gone);
}

void blkrepl__job_put(struct blkrepl_job *job)
{
    job_unref(job);
}

static int job_result_code(const struct blkrepl_job *job)
{
    switch (job->result) {
    case BLKREPL_RESULT_FAILED: return job->cause.code;
    case BLKREPL_RESULT_CANCELLED: return -ECANCELED;
    default: return 0;
    }
}

void blkrepl__job_conclude(struct blkrepl_job *job, uint32_t result)
{
    bool started = job->state != BLKREPL_JOB_CREATED;

    job->result = result;
    job->state = BLKREPL_JOB_CONCLUDED;
    job_let_go(job);
    job_post(job, &job->done_event,
             &(blkrepl_event){.type = BLKREPL_EVENT_JOB_DONE, .error = job_result_code(job)});
    blkrepl__log_add(&job->ctx->log, BLKREPL_LOG_INFO, "job \"%s\": %s", job->name,
                     result == BLKREPL_RESULT_DONE     ? "done"
                     : result == BLKREPL_RESULT_FAILED ? "failed"
                                                       : "cancelled");
    if (started) {
        job_unref(job);
    }
}

int blkrepl_job_start(blkrepl_job *job)
{
    int rc;

    if (job == NULL) {
        return blkrepl__fail(-EINVAL, "job is NULL");
    }
    blkrepl__enter(job->ctx);
    rc = blkrepl__job_start(job);
    blkrepl__leave(job->ctx, 0);
    return rc;
}

/* Pause or resume, with the lock held. */
static int job_set_paused(struct blkrepl_job *job, bool paused)
{
    enum job_verb verb = paused ? VERB_PAUSE : VERB_RESUME;
    int rc = job_allow(job, verb);

    if (rc < 0) {
        return rc;
    }
    if (job->cancel) {
        return 0; /* it is winding up: accepted, without effect */
    }
    if (job->paused == paused) {
        return job_refuse(job, verb, paused ? "it is paused already" : "it is not paused");
    }
    job->paused = paused;
    job_post_state(job);
    job_wake(job);
    return 0;
}

int blkrepl_job_pause(blkrepl_job *job)
{
    int rc;

    if (job == NULL) {
        return blkrepl__fail(-EINVAL, "job is NULL");
    }
    blkrepl__enter(job->ctx);
    rc = job_set_paused(job, true);
    blkrepl__leave(job->ctx, 0);
    return rc;
}

int blkrepl_job_resume(blkrepl_job *job)
{
    int rc;

    if (job == NULL) {
        return blkrepl__fail(-EINVAL, "job is NULL");
    }
    blkrepl__enter(job->ctx);
    rc = job_set_paused(job, false);
    blkrepl__leave(job->ctx, 0);
    return rc;
}

int blkrepl_job_cancel(blkrepl_job *job, uint32_t flags)
{
    int rc;

    if (job == NULL || (flags & ~(uint32_t)BLKREPL_CANCEL_FORCE) != 0) {
        return blkrepl__fail(-EINVAL, job == NULL ? "job is NULL" : "job: unknown cancel flags");
    }
    blkrepl__enter(job->ctx);
    rc = job_allow(job, VERB_CANCEL);
    if (rc == 0) {
        job_cancel(job);
    }
    blkrepl__leave(job->ctx, 0);
    return rc;
}

int blkrepl_job_set_speed(blkrepl_job *job, uint64_t speed_bytes_per_sec)
{
    int rc;

    if (job == NULL) {
        return blkrepl__fail(-EINVAL, "job is NULL");
    }
    blkrepl__enter(job->ctx);
    rc = job_allow(job, VERB_SET_SPEED);
    if (rc == 0) {
        job->speed_bytes_per_sec = speed_bytes_per_sec;
        job->ops->speed_changed(job);
        job_wake(job);
    }
    blkrepl__leave(job->ctx, 0);
    return rc;
}

static void job_fill_info(const struct blkrepl_job *job, blkrepl_job_info *info)
{
    info->kind = job->kind;
    info->state = job->state;
    info->result = job->result;
    info->flags = job->paused ? BLKREPL_JOB_FLAG_PAUSED : 0;
    if (job->cancel && job->state != BLKREPL_JOB_CONCLUDED) {
        info->flags |= BLKREPL_JOB_FLAG_CANCELLING;
    }
    info->error = job->state == BLKREPL_JOB_CONCLUDED ? job_result_code(job) : 0;
    info->id = job->id;
    info->error_side = job->cause.side;
    info->error_offset = job->cause.offset;
    info->error_bytes = job->cause.bytes;
    info->error_count = job->error_count;
    info->speed_bytes_per_sec = job->speed_bytes_per_sec;
    info->user = job->user;
    memcpy(info->name, job->name, sizeof job->name);
    memcpy(info->message, job->message, sizeof job->message);
    job->ops->query(job, info);
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

void blkrepl_job_free(blkrepl_job *job)
{
    struct blkrepl_context *ctx;

    if (job == NULL) {
        return;
    }
    ctx = job->ctx;
    blkrepl__enter(ctx);
    ctx->jobs_open--;
    job->handle = false;
    blkrepl__event_drop(&job->state_event);
    blkrepl__event_drop(&job->error_event);
    blkrepl__event_drop(&job->done_event);
    job_unref(job);
    blkrepl__leave(ctx, 0);
}
