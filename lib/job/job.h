/* SPDX-License-Identifier: MIT */
/* job.h - what all jobs have in common: verbs, public state, result, events.
 *
 * refs: the host's handles; the job itself from its start until it has concluded; with
 * MANUAL_DISMISS the context, from there until it is dismissed.  A job that is not
 * started lives by its handles alone.  A group does not hold its jobs; they leave it. */
#ifndef BLKREPL_JOB_JOB_H
#define BLKREPL_JOB_JOB_H

#include "core/context.h"
#include "core/step.h"
#include <libblkrepl/job.h>

struct blkrepl_job;

/* What a kind of job supplies; all are called with the lock held.  NULL: nothing to do. */
struct job_ops {
    /* Before the start: what may still be refused is checked and taken; and given back
     * because another of the group was refused.  A kind that has done so before it
     * published the job says 0 here. */
    int (*prepare)(struct blkrepl_job *job);
    void (*unprepare)(struct blkrepl_job *job);
    /* The point in time; cannot fail, and does not end the job. */
    void (*start)(struct blkrepl_job *job);
    /* One step of its machine; called by polls of lane 0.  Not in CREATED, PENDING and
     * CONCLUDED. */
    enum step (*step)(struct blkrepl_job *job);
    /* job->cancel was set, or would have been once more; job->complete was set; nothing
     * holds the job any more; the speed limit has changed.  Only the last is also called
     * in CREATED; none from PENDING on. */
    void (*cancelled)(struct blkrepl_job *job);
    void (*complete)(struct blkrepl_job *job);
    void (*resumed)(struct blkrepl_job *job);
    void (*speed_changed)(struct blkrepl_job *job);
    /* Fill in what the kind knows. */
    void (*query)(const struct blkrepl_job *job, blkrepl_job_info *info);
    /* job->result is what it will be: settle what depends on it (bitmaps).  Once, of a job
     * that was started, before let_go. */
    void (*settle)(struct blkrepl_job *job);
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

/* What is to be done about an error, by the job's policy. */
enum job_action {
    JOB_FAIL,
    JOB_IGNORE, /* go on without, and fail at the end */
    JOB_STOP    /* pause, and try again when resumed */
};

struct blkrepl_group;

struct blkrepl_job {
    /* Set once. */
    struct blkrepl_context *ctx;
    const struct job_ops *ops;
    uint64_t id;
    uint32_t kind;
    void *user;
    void (*release)(void *user);
    char name[BLKREPL_NAME_MAX + 1];
    uint32_t flags;                            /* BLKREPL_JOB_MANUAL_* */
    uint32_t on_error[BLKREPL_SIDE_SPILL + 1]; /* BLKREPL_ON_ERROR_*, by side; 0: REPORT */
    /* Changed under the lock by job.c only. */
    struct machine machine;
    enum blkrepl_job_state state;
    uint32_t result;
    uint32_t refs;
    uint32_t handles; /* > 0: events are wanted */
    bool paused;      /* by the host; read job_held() */
    bool error_paused;
    bool cancel; /* set with no way back; nothing holds the job any more */
    bool complete;
    bool dismissed; /* nobody finds it, its name is free */
    bool kept;      /* the context has a reference: MANUAL_DISMISS */
    bool images_held;
    struct job_error cause; /* the first error, or the one that ended it; code 0: none yet */
    uint64_t error_count;
    uint64_t side_errors[BLKREPL_SIDE_SPILL + 1];
    struct blkrepl_group *group; /* NULL: none, or no more */
    uint64_t group_id;           /* stays when it has concluded */
    struct list group_link;
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
    uint32_t flags;
};

/* Whether the name is legal and free; with the lock held.
 * Returns: 0; -EINVAL too long; -EEXIST. */
int blkrepl__job_check_name(struct blkrepl_context *ctx, const char *name);

/* A job enters the context in state CREATED, with the lock held. */
void blkrepl__job_publish(struct blkrepl_job *job, struct blkrepl_context *ctx,
                          const struct job_identity *identity);

/* Start it, with the lock held.
 * Returns: 0; BLKREPL_ERR_STATE; what the kind's prepare() says; -ESHUTDOWN. */
int blkrepl__job_start(struct blkrepl_job *job);

/* What the job's policy says about an error; nothing is counted. */
enum job_action blkrepl__job_judge(const struct blkrepl_job *job, const struct job_error *error);
/* A request of the job has failed: count, keep the first, tell the host.  Nothing when it
 * has concluded: DONE was the last event. */
void blkrepl__job_error(struct blkrepl_job *job, const struct job_error *error);
/* The same for the error that ends the job: this is the one that is told. */
void blkrepl__job_fail(struct blkrepl_job *job, const struct job_error *error);
/* The error just counted pauses the job, unless it is being cancelled. */
void blkrepl__job_error_pause(struct blkrepl_job *job);

/* RUNNING -> READY. */
void blkrepl__job_ready(struct blkrepl_job *job);

/* The job's machine has ended, nothing of it is in flight; `result` is BLKREPL_RESULT_*.
 * A job that is DONE may have to wait in PENDING for others or for the host, and ends as
 * CANCELLED if they are given up by then; any other concludes.  FAILED: an error was
 * counted.  The machine takes no step any more, and the job may be gone afterwards. */
void blkrepl__job_finish(struct blkrepl_job *job, uint32_t result);

/* Whether the host or an error has paused it; who is being cancelled is held by nothing. */
static inline bool job_held(const struct blkrepl_job *job)
{
    return (job->paused || job->error_paused) && !job->cancel;
}

/* Drop a reference that was taken with refs++. */
void blkrepl__job_put(struct blkrepl_job *job);

/* Let the machine take a step in the next poll of lane 0. */
static inline void job_wake(struct blkrepl_job *job)
{
    blkrepl__machine_wake(job->ctx, &job->machine);
}

#endif
