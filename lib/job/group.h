/* SPDX-License-Identifier: MIT */
/* group.h - jobs that start at one instant and, unless INDIVIDUAL, end together; and what
 * the files about jobs share among themselves.
 *
 * refs: the handle, the members, and who walks the list of members.  A job is a member
 * from blkrepl_group_add() until it concludes, or leaves before the start. */
#ifndef BLKREPL_JOB_GROUP_H
#define BLKREPL_JOB_GROUP_H

#include "job/job.h"

struct blkrepl_group {
    /* Set once. */
    struct blkrepl_context *ctx;
    uint64_t id;
    bool individual;
    /* Changed under the lock. */
    uint32_t refs;
    bool started;
    bool aborted;        /* one has failed or was cancelled: none will be done */
    struct list members; /* struct blkrepl_job.group_link, as they were added */
};

/* The group whose fate the job shares; NULL: none. */
static inline struct blkrepl_group *group_bond(const struct blkrepl_job *job)
{
    struct blkrepl_group *group = job->group;

    return group != NULL && group->started && !group->individual ? group : NULL;
}

/* Drop a reference that was taken with refs++. */
void blkrepl__group_put(struct blkrepl_group *group);
/* The job is no member any more; the group may be gone afterwards. */
void blkrepl__group_leave(struct blkrepl_job *job);

/* Of groups with grouped completion: whether a member has not got so far as PENDING;
 * whether the host wants to finalize. */
bool blkrepl__group_waits(const struct blkrepl_group *group);
bool blkrepl__group_manual(const struct blkrepl_group *group);
/* All may be finalized now: say so. */
void blkrepl__group_finalizable(struct blkrepl_group *group);
/* All conclude as done.  All that are left are cancelled.  Members may be gone
 * afterwards, and the group. */
void blkrepl__group_done(struct blkrepl_group *group);
void blkrepl__group_abort(struct blkrepl_group *group);

/* --- between job.c, job_verb.c and group.c ---------------------------------- */

/* Returns: 0; BLKREPL_ERR_STATE; -ESHUTDOWN. */
int blkrepl__job_may_join(const struct blkrepl_job *job);
/* What was prepared starts now. */
void blkrepl__job_launch(struct blkrepl_job *job);
void blkrepl__job_post_state(struct blkrepl_job *job);
/* This one alone, perhaps once more.  It may be gone afterwards. */
void blkrepl__job_cancel(struct blkrepl_job *job);
/* It and all whose fate it shares; they may be gone afterwards. */
void blkrepl__job_cancel_bound(struct blkrepl_job *job);
/* This one's end: the result is settled, the images are free, the host is told.  It may
 * be gone afterwards. */
void blkrepl__job_conclude(struct blkrepl_job *job, uint32_t result);
/* It and all whose fate it shares are done, and nobody waits for anything. */
void blkrepl__job_end_well(struct blkrepl_job *job);
void blkrepl__job_dismiss(struct blkrepl_job *job);
/* What the host is told of the result. */
int blkrepl__job_result_code(const struct blkrepl_job *job);
/* One that was not dismissed; NULL: none. */
struct blkrepl_job *blkrepl__job_by_name(const struct blkrepl_context *ctx, const char *name);

/* What may still be refused. */
static inline int job_prepare(struct blkrepl_job *job)
{
    return job->ops->prepare != NULL ? job->ops->prepare(job) : 0;
}

/* Another of the kind's operations. */
static inline void job_tell(struct blkrepl_job *job, void (*op)(struct blkrepl_job *job))
{
    if (op != NULL) {
        op(job);
    }
}

#endif
