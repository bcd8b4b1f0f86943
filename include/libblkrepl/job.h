/* SPDX-License-Identifier: MIT */
/**
 * @file job.h
 * Jobs: what all background operations have in common.
 *
 * A job is created by the function of its kind (e.g. blkrepl_backup_create()),
 * which checks and takes everything it needs, and started by
 * blkrepl_job_start(), or with others at one instant by blkrepl_group_start().
 *
 *     CREATED --> RUNNING --> READY --> PENDING --> CONCLUDED
 *        |           |          |          |            ^
 *        +-----------+----------+----------+------------+   cancel, failure
 *
 * READY is reached by jobs that go on until they are told to complete; PENDING
 * waits for the others of its group, or for finalize.  A job that needs neither
 * goes from RUNNING to CONCLUDED.  Pause is not a state: it is a property of the
 * live states.  The host pauses and resumes; an error pauses where the job's
 * policy says so (BLKREPL_ON_ERROR_STOP).  These are two things: resume ends
 * both, and a job runs only when neither holds it.
 *
 * Verb and state; "-" answers BLKREPL_ERR_STATE and changes nothing:
 *
 *                CREATED   RUNNING   READY     PENDING   CONCLUDED
 *     start      ok (4)    -         -         -         -
 *     pause      ok (1)    ok (1)    ok (1)    -         -
 *     resume     ok (2)    ok (2)    ok (2)    -         -
 *     set_speed  ok        ok        ok        -         -
 *     cancel     ok        ok        ok        ok        -
 *     complete   -         -         ok (3)    -         -
 *     finalize   -         -         -         ok (5)    -
 *     dismiss    -         -         -         -         ok (6)
 *     query      ok        ok        ok        ok        ok
 *     free       ok        ok        ok        ok        ok
 *
 *     (1) "-" if the host has paused it already
 *     (2) "-" if neither the host nor an error has paused it
 *     (3) "-" if it was told so before, or while it is paused
 *     (4) "-" if it belongs to a group: see blkrepl_group_start()
 *     (5) "-" as long as others of its group have not got so far
 *     (6) "-" if it was dismissed before
 *
 * cancel, once given, may be given again while the job winds up: it answers 0;
 * pause, resume, set_speed and complete are accepted then, and have no effect.
 *
 * The end of a job has an order: what it did to its bitmaps is done and its
 * images are free before BLKREPL_EVENT_JOB_DONE is posted, which is its last event.
 *
 * A job's name stays taken until it has concluded and was dismissed: by
 * blkrepl_job_dismiss(), or, without BLKREPL_JOB_MANUAL_DISMISS, when its last handle is
 * freed.
 */
#ifndef LIBBLKREPL_JOB_H
#define LIBBLKREPL_JOB_H

#include <libblkrepl/base.h>
#include <libblkrepl/event.h>

BLKREPL_BEGIN_DECLS

/** The public states of a job. */
enum blkrepl_job_state {
    BLKREPL_JOB_CREATED = 1,
    BLKREPL_JOB_RUNNING = 2,
    BLKREPL_JOB_READY = 3,
    BLKREPL_JOB_PENDING = 4,
    BLKREPL_JOB_CONCLUDED = 5
};

/** How a job ended. */
enum blkrepl_job_result {
    BLKREPL_RESULT_DONE = 1,
    BLKREPL_RESULT_FAILED = 2,
    BLKREPL_RESULT_CANCELLED = 3
};

/** What a job does. */
enum blkrepl_job_kind {
    BLKREPL_KIND_BACKUP = 1,
    BLKREPL_KIND_VERIFY = 2
};

/** How a job is to behave at its end; in the options of every kind. */
enum blkrepl_job_options_flags {
    /** When all work is done it waits in PENDING for blkrepl_job_finalize(); and
     *  so does its group. */
    BLKREPL_JOB_MANUAL_FINALIZE = 1,
    /** When it has concluded it stays in the context, with its name, until it is
     *  dismissed, whether or not there is a handle of it. */
    BLKREPL_JOB_MANUAL_DISMISS = 2
};

/**
 * What a job does when a request of its background work has failed.
 *
 * Every failure is counted and told (BLKREPL_EVENT_JOB_ERROR), whatever the policy.
 */
enum blkrepl_on_error {
    /** The job fails. */
    BLKREPL_ON_ERROR_REPORT = 1,
    /** The job goes on with the rest, and fails at the end: what could not be
     *  done is never told as done. */
    BLKREPL_ON_ERROR_IGNORE = 2,
    /** The job pauses (BLKREPL_JOB_FLAG_ERROR_PAUSED); resume tries again. */
    BLKREPL_ON_ERROR_STOP = 3,
    /** STOP if there is no space left (-ENOSPC, -EDQUOT), otherwise REPORT. */
    BLKREPL_ON_ERROR_ENOSPC = 4
};

/** Details of a job's condition, in blkrepl_job_info.flags. */
enum blkrepl_job_flags {
    /** The host has paused it; guest writes are still tracked and saved.  Like all
     *  of a pause only in the states in which it can be resumed. */
    BLKREPL_JOB_FLAG_PAUSED = 1,
    /** It is being cancelled. */
    BLKREPL_JOB_FLAG_CANCELLING = 2,
    /** An error has paused it, and it is not being cancelled; the same holds. */
    BLKREPL_JOB_FLAG_ERROR_PAUSED = 4,
    /** PENDING: it waits for blkrepl_job_finalize(), not for others. */
    BLKREPL_JOB_FLAG_FINALIZABLE = 8,
    /** It was told to complete, and has not concluded. */
    BLKREPL_JOB_FLAG_COMPLETING = 16,
    /** CONCLUDED: it was dismissed. */
    BLKREPL_JOB_FLAG_DISMISSED = 32
};

/** How to cancel. */
enum blkrepl_cancel_flags {
    /** End it now.  Without this a job of a kind that says so may end as done when
     *  it is READY; a backup is cancelled either way. */
    BLKREPL_CANCEL_FORCE = 1
};

/** What is known of a job. */
typedef struct blkrepl_job_info {
    uint32_t struct_size;        /* in: sizeof *this */
    uint32_t kind;               /* BLKREPL_KIND_* */
    uint32_t state;              /* BLKREPL_JOB_CREATED ... _CONCLUDED */
    uint32_t result;             /* CONCLUDED: BLKREPL_RESULT_*; else 0 */
    uint32_t flags;              /* BLKREPL_JOB_FLAG_* */
    int32_t error;               /* FAILED: why; CANCELLED: -ECANCELED; else 0 */
    uint32_t error_side;         /* of the error that ended it, else of the
                                  * first one: BLKREPL_SIDE_*; 0: none */
    uint32_t requests_in_flight; /* of the job, at the backends or on their way */
    uint64_t id;                 /* never reused within the context */
    uint64_t error_offset;       /* of the same error */
    uint64_t error_bytes;
    uint64_t error_count;         /* failed requests */
    uint64_t bytes_done;          /* settled: on the target, or known to need no copy */
    uint64_t bytes_total;         /* equal to bytes_done only at the end of success */
    uint64_t speed_bytes_per_sec; /* limit; 0: unlimited */
    uint64_t guest_copies_count;  /* copied because the guest wrote there */
    uint64_t guest_copies_bytes;
    uint64_t guest_waits_count; /* guest writes whose old data had to be saved first */
    uint64_t zero_bytes;        /* of bytes_done: holes and zeroes */
    void *user;
    void *reserved0;
    char name[64];
    char message[256];        /* of the same error; "" if there was none */
    uint64_t offloaded_bytes; /* of bytes_done: copied by the backends themselves */
    uint64_t source_errors;   /* of error_count, by side */
    uint64_t target_errors;
    uint64_t spill_errors;
    uint64_t failed_bytes;  /* given up under BLKREPL_ON_ERROR_IGNORE */
    uint64_t spilled_bytes; /* now in the spill image, not yet on the target */
    uint64_t spilled_bytes_total;
    uint64_t differing_bytes; /* verify: found so far */
    uint64_t group_id;        /* stays when it has concluded; 0: it belongs to no group */
} blkrepl_job_info;

/**
 * Start a job: the point in time is now, inside this call.
 *
 * It may be refused for what has changed since it was created; it is CREATED then,
 * and may be started again.
 *
 * Writes that were acknowledged before this call are before the point in time;
 * writes that begin after it returns are after it.
 *
 * Callbacks:  BLKREPL_EVENT_JOB_STATE, later BLKREPL_EVENT_JOB_DONE.
 * Thread:     any.
 * States:     CREATED, in no group.
 * Returns:    0; BLKREPL_ERR_STATE, also for a bitmap of the job that is inconsistent;
 *             -EBUSY a bitmap of the job is busy; -EINVAL NULL; -ESHUTDOWN.
 * Since:      0.1
 */
BLKREPL_API int blkrepl_job_start(blkrepl_job *job);

/**
 * Stop a job's background work until it is resumed.
 *
 * Requests in flight finish.  What a job promised goes on being kept: a paused
 * backup still saves the old data of guest writes.
 *
 * Callbacks:  BLKREPL_EVENT_JOB_STATE.
 * Thread:     any.
 * States:     CREATED, RUNNING, READY; not paused.
 * Returns:    0; BLKREPL_ERR_STATE; -EINVAL NULL; -ESHUTDOWN.
 * Since:      0.1
 */
BLKREPL_API int blkrepl_job_pause(blkrepl_job *job);

/**
 * Let a paused job go on.
 *
 * Ends the host's pause and that of an error; what had failed is tried again.
 *
 * Callbacks:  BLKREPL_EVENT_JOB_STATE.
 * Thread:     any.
 * States:     CREATED, RUNNING, READY; paused.
 * Returns:    0; BLKREPL_ERR_STATE; -EINVAL NULL; -ESHUTDOWN.
 * Since:      0.1
 */
BLKREPL_API int blkrepl_job_resume(blkrepl_job *job);

/**
 * End a job before its time.
 *
 * Takes effect at once for the guest: nothing waits for the job any more.  The
 * job concludes as CANCELLED when its requests have returned; backends that
 * have cancel are told.  A job that was never started concludes inside this
 * call.  A job that fails, or is done, before the cancel is seen ends so; done
 * only if it need not wait in PENDING for anything.  In PENDING it is not too
 * late: the job ends as CANCELLED, and its bitmaps are given back as after a
 * failure, though the data are all there.  The others of a group with grouped
 * completion are cancelled as well, and none of it is done.
 *
 * flags: 0 or BLKREPL_CANCEL_FORCE.
 *
 * Callbacks:  BLKREPL_EVENT_JOB_DONE.
 * Thread:     any.
 * States:     all but CONCLUDED.
 * Returns:    0; BLKREPL_ERR_STATE; -EINVAL NULL or unknown flag.
 * Since:      0.1
 */
BLKREPL_API int blkrepl_job_cancel(blkrepl_job *job, uint32_t flags);

/**
 * Tell a job that is READY to come to its end.
 *
 * Callbacks:  BLKREPL_EVENT_JOB_STATE, later BLKREPL_EVENT_JOB_DONE.
 * Thread:     any.
 * States:     READY; not paused.
 * Returns:    0; BLKREPL_ERR_STATE; -EINVAL NULL; -ESHUTDOWN.
 * Since:      0.1
 */
BLKREPL_API int blkrepl_job_complete(blkrepl_job *job);

/**
 * Let a job that has done its work conclude, and its whole group with it.
 *
 * Only what was created with BLKREPL_JOB_MANUAL_FINALIZE waits for it; one such
 * job holds all of its group, and one call lets all of them go.
 *
 * Callbacks:  BLKREPL_EVENT_JOB_DONE, of each.
 * Thread:     any.
 * States:     PENDING, with BLKREPL_JOB_FLAG_FINALIZABLE.
 * Returns:    0; BLKREPL_ERR_STATE; -EINVAL NULL; -ESHUTDOWN.
 * Since:      0.1
 */
BLKREPL_API int blkrepl_job_finalize(blkrepl_job *job);

/**
 * Let go of a job that has concluded: its name is free, and nobody finds it.
 *
 * A handle stays good: what is known of the job can be asked until it is freed.
 *
 * Thread:     any.
 * States:     CONCLUDED; not dismissed.
 * Returns:    0; BLKREPL_ERR_STATE; -EINVAL NULL.
 * Since:      0.1
 */
BLKREPL_API int blkrepl_job_dismiss(blkrepl_job *job);

/**
 * Limit the speed of a job's background work.
 *
 * In bytes per second; 0: unlimited.  Takes effect at once, also if the job
 * sleeps because of the old limit.  Copies made for guest writes are counted
 * but never delayed.
 *
 * Thread:     any.
 * States:     CREATED, RUNNING, READY.
 * Returns:    0; BLKREPL_ERR_STATE; -EINVAL NULL; -ESHUTDOWN.
 * Since:      0.1
 */
BLKREPL_API int blkrepl_job_set_speed(blkrepl_job *job, uint64_t speed_bytes_per_sec);

/**
 * Tell what is known of a job.
 *
 * Thread:     any.
 * States:     all.
 * Returns:    0; -EINVAL NULL or info->struct_size smaller than in 0.1.
 * Since:      0.1
 */
BLKREPL_API int blkrepl_job_query(blkrepl_job *job, blkrepl_job_info *info);

/**
 * Get a handle of the job of this name.
 *
 * Ownership:  *out is one more handle, to be freed like any other.
 * Thread:     any.
 * Returns:    0; -ENOENT there is none; -EINVAL NULL.
 * Since:      0.1
 */
BLKREPL_API int blkrepl_job_find(blkrepl_context *ctx, const char *name, blkrepl_job **out);

/**
 * Get a handle of the next job of a context, in the order of their ids.
 *
 * after_id 0 gives the first one; to list all go on with the id of what was
 * returned last until the answer is -ENOENT.
 *
 * Ownership:  *out is one more handle, to be freed like any other.
 * Thread:     any.
 * Returns:    0; -ENOENT there is no further one; -EINVAL NULL.
 * Since:      0.1
 */
BLKREPL_API int blkrepl_job_next(blkrepl_context *ctx, uint64_t after_id, blkrepl_job **out);

/**
 * Drop a handle of a job.
 *
 * Never blocks and never fails.  Without a handle a job that runs goes on to its
 * end, without events; one that was never started is gone, and leaves its group.
 * With NULL it does nothing.
 *
 * Ownership:  takes the handle; it must not be used any more.
 * Thread:     any, also inside callbacks.
 * States:     all.
 * Returns:    nothing.
 * Since:      0.1
 */
BLKREPL_API void blkrepl_job_free(blkrepl_job *job);

/** How the jobs of a group end. */
enum blkrepl_group_flags {
    /** Each ends by itself; what they share is the instant of their start. */
    BLKREPL_GROUP_INDIVIDUAL = 1
};

/**
 * Make a group: jobs that start at one instant and, unless INDIVIDUAL, succeed
 * together or not at all.
 *
 * With grouped completion a job that has done its work waits in PENDING.  When all
 * have got so far they conclude together, in the order in which they were added
 * (if one of them has BLKREPL_JOB_MANUAL_FINALIZE, after blkrepl_job_finalize() of
 * any).  As soon as one fails or is cancelled all others are cancelled, also those
 * in PENDING: none is done, and the bitmaps of all are as after a failure.
 *
 * flags: 0 or BLKREPL_GROUP_INDIVIDUAL.
 *
 * Ownership:  *out belongs to the caller.
 * Thread:     any.
 * Returns:    0; -EINVAL NULL or unknown flag; -ENOMEM; -ESHUTDOWN.
 * Since:      0.1
 */
BLKREPL_API int blkrepl_group_create(blkrepl_context *ctx, uint32_t flags, blkrepl_group **out);

/**
 * Add a job to a group that has not been started.
 *
 * Thread:     any.
 * States:     the job CREATED, in no group; the group not started.
 * Returns:    0; BLKREPL_ERR_STATE; -EINVAL NULL or of another context; -ESHUTDOWN.
 * Since:      0.1
 */
BLKREPL_API int blkrepl_group_add(blkrepl_group *group, blkrepl_job *job);

/**
 * Start all jobs of a group: one instant is the point in time of all.
 *
 * All or none: if one cannot be started none is.  Jobs that have been cancelled
 * or freed meanwhile have left the group.
 *
 * Callbacks:  as blkrepl_job_start(), of each.
 * Thread:     any.
 * States:     not started, with at least one job.
 * Returns:    0; BLKREPL_ERR_STATE; what blkrepl_job_start() returns for one of them;
 *             -EINVAL NULL; -ESHUTDOWN.
 * Since:      0.1
 */
BLKREPL_API int blkrepl_group_start(blkrepl_group *group);

/**
 * Cancel all jobs of a group that have not concluded, as blkrepl_job_cancel() does.
 *
 * Thread:     any.
 * States:     at least one job has not concluded.
 * Returns:    0; BLKREPL_ERR_STATE; -EINVAL NULL or unknown flag.
 * Since:      0.1
 */
BLKREPL_API int blkrepl_group_cancel(blkrepl_group *group, uint32_t flags);

/**
 * Drop the handle of a group.
 *
 * The jobs go on; those that have not been started leave it, as if they had never
 * been added.  With NULL it does nothing.
 *
 * Ownership:  takes the handle; it must not be used any more.
 * Thread:     any, also inside callbacks.
 * Returns:    nothing.
 * Since:      0.1
 */
BLKREPL_API void blkrepl_group_free(blkrepl_group *group);

BLKREPL_END_DECLS

#endif
