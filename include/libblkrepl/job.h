/* SPDX-License-Identifier: MIT */
/**
 * @file job.h
 * Jobs: what all background operations have in common.
 *
 * A job is created by the function of its kind (e.g. blkrepl_backup_create()),
 * which checks and takes everything it needs, and started by
 * blkrepl_job_start(), alone or, in a later release, with a group.
 *
 *     CREATED --> RUNNING --> READY --> PENDING --> CONCLUDED
 *        |           |          |          |            ^
 *        +-----------+----------+----------+------------+   cancel, failure
 *
 * READY is reached by jobs that go on until they are told to complete; PENDING
 * waits for the group or for a manual finalize.  A backup passes from RUNNING
 * to CONCLUDED.  Pause is not a state: it is a property of the live states.
 *
 * Verb and state; "-" answers BLKREPL_ERR_STATE and changes nothing:
 *
 *                CREATED   RUNNING   READY     PENDING   CONCLUDED
 *     start      ok        -         -         -         -
 *     pause      ok (1)    ok (1)    ok (1)    -         -
 *     resume     ok (2)    ok (2)    ok (2)    -         -
 *     set_speed  ok        ok        ok        -         -
 *     cancel     ok        ok        ok        ok        -
 *     complete   -         -         ok        -         -          (3)
 *     finalize   -         -         -         ok        -          (3)
 *     dismiss    -         -         -         -         ok         (3)
 *     query      ok        ok        ok        ok        ok
 *     free       ok        ok        ok        ok        ok
 *
 *     (1) "-" if it is paused already   (2) "-" if it is not paused
 *     (3) verbs of later releases, listed so that the table is whole
 *
 * cancel, once given, may be given again while the job winds up: it answers 0;
 * pause, resume and set_speed are accepted then, and have no effect.
 *
 * A job's name stays taken until it has concluded and its handle is freed.
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
    BLKREPL_KIND_BACKUP = 1
};

/** Details of a job's condition, in blkrepl_job_info.flags. */
enum blkrepl_job_flags {
    /** The host has paused it; guest writes are still tracked and saved. */
    BLKREPL_JOB_FLAG_PAUSED = 1,
    /** It is being cancelled. */
    BLKREPL_JOB_FLAG_CANCELLING = 2
};

/** How to cancel. */
enum blkrepl_cancel_flags {
    /** End it now.  Without this a job that is READY may end as done; a backup
     *  is cancelled either way. */
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
} blkrepl_job_info;

/**
 * Start a job: the point in time is now, inside this call.
 *
 * Writes that were acknowledged before this call are before the point in time;
 * writes that begin after it returns are after it.
 *
 * Callbacks:  BLKREPL_EVENT_JOB_STATE, later BLKREPL_EVENT_JOB_DONE.
 * Thread:     any.
 * States:     CREATED.
 * Returns:    0; BLKREPL_ERR_STATE; -EINVAL NULL; -ESHUTDOWN.
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
 * call.  A job that fails, or is done, before the cancel is seen ends so.
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
 * Drop the caller's handle of a job.
 *
 * Never blocks and never fails.  A job that runs goes on to its end, without
 * events; one that was never started is gone.  With NULL it does nothing.
 *
 * Ownership:  takes the handle; it must not be used any more.
 * Thread:     any, also inside callbacks.
 * States:     all.
 * Returns:    nothing.
 * Since:      0.1
 */
BLKREPL_API void blkrepl_job_free(blkrepl_job *job);

BLKREPL_END_DECLS

#endif
