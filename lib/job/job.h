/* SPDX-License-Identifier: MIT */
/* job.h - what all jobs have in common: verbs, public state, result, events.
 *
 * refs: the host's handle, and the job itself from its start until it has
 * concluded.  A job that is not started lives by its handle alone. */
#ifndef BLKREPL_JOB_JOB_H
#define BLKREPL_JOB_JOB_H

#include "core/context.h"
#include "core/step.h"
#include <libblkrepl/job.h>

struct blkrepl_job;

/* What a kind of job supplies; all are called with the lock held. */
struct job_ops {
    /* The point in time. */
    void (*start)(struct blkrepl_job *job);
    /* One step of its machine; called by polls of lane 0. */
    enum step (*step)(struct blkrepl_job *job);
    /* job->cancel was set; the speed limit has changed. */
    void (*cancelled)(struct blkrepl_job *job);
    void (*speed_changed)(struct blkrepl_job *job);
    /* Fill in what the kind knows. */
    void (*query)(const struct blkrepl_job *job, blkrepl_job_info *info);
    /* Give the images back; once, when the job concludes or is freed. */
    void (*let_go)(struct blkrepl_job *job);
    /* Free the memory. */
    void (*destroy)(struct blkrepl_job *job);
};

struct job_error {
    int code;
    uint32_t side;
    uint64_t offset;
    uint64_t bytes;
    const char *what; /* "read", "write", ... */
};

struct blkrepl_job {
    /* Set once. */
    struct blkrepl_context *ctx;
    const struct job_ops *ops;
    uint64_t id;
    uint32_t kind;
    void *user;
    void (*release)(void *user);
    char name[BLKREPL_NAME_MAX + 1];
    /* Changed under the lock by job.c only. */
    struct machine machine;
    enum blkrepl_job_state state;
    uint32_t result;
    uint32_t refs;
    bool handle; /* the host has one: events are wanted */
    bool paused;
    bool cancel;
    bool images_held;
    struct job_error cause; /* the first error, or the one that ended it; code 0: none yet */
    uint64_t error_count;
    char message[256];
    struct event_slot state_event;
    struct event_slot error_event;
    struct event_slot done_event;
    struct callback gone;
    /* Changed by job.c, read by the kind. */
    uint64_t speed_bytes_per_sec;
};

struct job_identity {
    const char *name;
    const char *kind_name;
    void *user;
    void (*release)(void *user);
};

/* Whether the name is legal and free; with the lock held.
 * Returns: 0; -EINVAL too long; -EEXIST. */
int blkrepl__job_check_name(struct blkrepl_context *ctx, const char *name);

/* A job enters the context in state CREATED, with the lock held. */
void blkrepl__job_publish(struct blkrepl_job *job, struct blkrepl_context *ctx,
                          const struct job_identity *identity);

/* Start it, with the lock held.
 * Returns: 0; BLKREPL_ERR_STATE; -ESHUTDOWN. */
int blkrepl__job_start(struct blkrepl_job *job);

/* A request of the job has failed: count, keep the first, tell the host. */
void blkrepl__job_error(struct blkrepl_job *job, const struct job_error *error);
/* The same for the error that ends the job: this is the one that is told. */
void blkrepl__job_fail(struct blkrepl_job *job, const struct job_error *error);

/* The job has ended; `result` is BLKREPL_RESULT_*. */
void blkrepl__job_conclude(struct blkrepl_job *job, uint32_t result);

/* Drop a reference that was taken with refs++. */
void blkrepl__job_put(struct blkrepl_job *job);

/* Let the machine take a step in the next poll of lane 0. */
static inline void job_wake(struct blkrepl_job *job)
{
    blkrepl__machine_wake(job->ctx, &job->machine);
}

#endif
