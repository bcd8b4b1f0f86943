/* SPDX-License-Identifier: MIT */
/* verify.h - inside of the verify job: compares two images while guests use them.
 *
 * `todo` holds the granules of 64 KiB that nobody has taken yet.  A task takes a run of
 * them, holds the range in both images, and reads both; then they are compared.  Where
 * both images can tell what reads as zero, one task at a time, a probe, asks first, for
 * more than a chunk: what is zero in both is equal, and what is not is known not to be
 * worth asking for (the hint).
 *
 * To hold a range means: no guest write is given there any more, in either image, and
 * those that had been given have ended.  So both are read as they are at one instant.
 *
 * Why nobody waits in a circle.  Guest writes wait for who holds; so who holds must not
 * wait for a write that waits.
 *   1. A task begins to hold in both images at once, and waits for nothing but writes
 *      that are given (who waits for nobody, see range.h) and for its own requests.  It
 *      never holds one image while it wants another, so the order of the images, and
 *      other jobs over the same two, do not matter.
 *      But the host may wait: with the GO of a bracket in one image it wants to begin
 *      one in the other.  So a task that waits for writes holds only until somebody
 *      comes to wait for it: then it lets go, in both images, and tries again when the
 *      write that it waits for has ended.  Others than brackets end by themselves; if
 *      it has only these to wait for it holds after a number of tries, for otherwise a
 *      stream of writes would keep it from ever reading.
 *   2. Requests to a snapshot are not the backend's alone: they wait for copies of the
 *      snapshot's job, and these for writes that had been given before its point in time
 *      until they have ended altogether, even between two pieces, when they may wait for
 *      who holds.  The snapshot was there before the verify job was started.  So, before
 *      it begins to hold, a task waits until all writes have ended that were given before
 *      the job's start (it holds nothing then).  A write that such a copy waits for may
 *      still wait for a task of an older verify job: one that was started before that
 *      write was given, so before the snapshot's point in time; this task in turn can
 *      wait only for snapshots that are older still.  Each step leads to an older start.
 *   3. What does not end all the same (an image that has hung) holds a guest no longer
 *      than guest_timeout_ns after the first one came to wait for the task: that is given
 *      up, and VOID until its requests have come back.  What a guest waits for goes to
 *      the backends with the guests' requests, so that these do not keep it waiting.
 *
 * Invariants:
 *   1. A granule is in exactly one of: todo, a task that is neither FREE nor VOID, or
 *      settled: compared, zero in both, or given up.
 *   2. A task has its two ranges, active, in HOLDING, STATUS and READ, unless the job has
 *      stopped, and in no other state.
 *   3. In STATUS, READ and VOID at least one side is busy: its request is at a port.
 *   4. A job that has stopped holds nobody.
 *   5. A task has a deadline only if guests may be waiting for it; the timer is due by
 *      the first one of all tasks. */
#ifndef BLKREPL_JOB_VERIFY_H
#define BLKREPL_JOB_VERIFY_H

#include "base/checked.h"
#include "block/bitmap.h"
#include "block/guest.h"
#include "block/throttle.h"
#include "data/ratelimit.h"
#include "job/job.h"
#include <libblkrepl/verify.h>

#define VERIFY_SHIFT 16
#define VERIFY_GRANULE (UINT64_C(1) << VERIFY_SHIFT)
#define VERIFY_EXTENTS 32

enum verify_task_state {
    VERIFY_FREE,
    VERIFY_CLAIMED, /* waits for writes; holds nothing */
    VERIFY_HOLDING, /* waits for writes that are given */
    VERIFY_STATUS,  /* a probe: asks both what reads as zero */
    VERIFY_READ,    /* reads both */
    VERIFY_FILLED,  /* both are in the buffers, to be compared */
    VERIFY_VOID,    /* what its requests bring is wanted no more */
    VERIFY_TASK_STATE_COUNT
};

/* A task's part in one image. */
struct verify_side {
    struct verify_task *task;
    struct request *request;
    struct range range;
    unsigned char *buffer;
    blkrepl_iovec iov;
    blkrepl_extent extents[VERIFY_EXTENTS];
    uint64_t moved_bytes;
    bool busy; /* the request is at a port */
    bool told; /* its backend knows that it is not wanted any more */
    int error; /* of a read */
};

struct verify_task {
    struct list link; /* on the free or the active list */
    struct verify *verify;
    struct ready ready;
    enum verify_task_state state;
    bool probe;
    uint64_t start;
    uint64_t end;         /* not beyond the first image's end */
    uint32_t tries;       /* how often it has made way for guests */
    uint64_t deadline_ns; /* FOREVER: none */
    bool hastened;
    struct verify_side side[2];
};

enum verify_state {
    VERIFY_CREATED, /* nothing has happened yet */
    VERIFY_RUN,     /* there are granules to take */
    VERIFY_DRAIN,   /* tasks are under way */
    VERIFY_DONE,    /* the job has ended */
    VERIFY_STATE_COUNT
};

enum verify_turn {
    VERIFY_TURN_NONE,
    VERIFY_TURN_WAITS, /* in the throttle's row */
    VERIFY_TURN_MINE   /* let through, not used yet */
};

struct verify {
    struct blkrepl_job job;
    /* Set once. */
    struct blkrepl_image *image[2];
    struct blkrepl_bitmap *only;      /* NULL: everything */
    struct blkrepl_bitmap *differing; /* NULL: only count */
    struct blkrepl_throttle *throttle;
    bool first;       /* BLKREPL_VERIFY_FIRST */
    bool asks_status; /* both images can tell */
    uint64_t chunk_bytes;
    uint64_t guest_timeout_ns; /* FOREVER: none */
    uint32_t task_count;
    struct verify_task *tasks;
    unsigned char *memory;
    uint64_t memory_bytes;
    /* Changed under the lock. */
    enum verify_state state;
    bool prepared;
    bool frozen;           /* `differing` is busy because of us */
    struct dirtymap since; /* memory for its successor, or what came back of it */
    struct dirtymap todo;
    uint64_t started_at; /* instant */
    uint64_t cursor;     /* nothing before it is in todo */
    uint64_t hint_start; /* not worth asking for its status: from here, */
    uint64_t hint_end;   /* to here */
    struct list free;
    struct list active;
    uint32_t in_flight; /* requests given to ports */
    bool probing;
    bool stopped;
    bool failed; /* stopped because of an error that is the job's result */
    bool found;  /* stopped because of a difference, which was asked for */
    struct ratelimit rate;
    struct timer rate_timer;
    struct timer guest_timer; /* the first task's deadline */
    struct throttle_waiter turn;
    enum verify_turn turn_state;
    struct chore cancel_chore;
    uint64_t bytes_total;
    uint64_t bytes_done;
    uint64_t zero_bytes;
    uint64_t failed_bytes;
    uint64_t differing_bytes;
};

static inline struct leaf *verify_leaf(const struct verify_task *task, int i)
{
    return task->verify->image[i]->leaf;
}

/* Where requests about the task's range end: in whole blocks, up to the image's end. */
static inline uint64_t verify_request_end(const struct verify_task *task, int i)
{
    const blkrepl_backend_info *info = &verify_leaf(task, i)->port.info;

    return min_u64(align_up(task->end, info->request_alignment), info->bytes);
}

extern const struct job_ops blkrepl__verify_ops;

/* --- verify.c --- */

/* Stop for good: guests go on, what is queued is taken back, backends are asked to cancel. */
void blkrepl__verify_stop(struct verify *verify);
/* The images differ there, or may; within one task's range. */
void blkrepl__verify_mark(struct verify *verify, uint64_t start, uint64_t end);
/* A guest has come to wait for the task: from now on it has so much time. */
void blkrepl__verify_set_deadline(struct verify_task *task);
/* guest_timer has expired. */
void blkrepl__verify_guest_expired(struct timer *timer);

/* --- verify_task.c --- */

/* Take start..end, in todo, into a free task; a probe asks first, the other reads. */
void blkrepl__verify_start_task(struct verify *verify, struct verify_task *task, uint64_t start,
                                uint64_t end, bool probe);
/* It has done its work. */
void blkrepl__verify_free_task(struct verify_task *task);
/* HOLDING, STATUS or READ: guests have waited for it too long.  It lets them go. */
void blkrepl__verify_expire(struct verify_task *task);
/* Drop the task's part in ranges and queues because the job has stopped. */
void blkrepl__verify_abandon(struct verify_task *task);

/* --- verify_zero.c --- */

/* STATUS: how far from the task's start on both read as zero, or else not both. */
uint64_t blkrepl__verify_same_until(const struct verify_task *task, bool zero);

/* --- verify_create.c --- */

/* Give back what the creation has taken under the lock: slots, budget, images, bitmaps,
 * throttle. */
void blkrepl__verify_let_go(struct verify *verify);
void blkrepl__verify_free(struct verify *verify);

#endif
