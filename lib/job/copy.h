/* SPDX-License-Identifier: MIT */
/* copy.h - the copy engine: moves a set of clusters from one image to another
 * while the guest writes to the source.
 *
 * `todo` holds the clusters that nobody has taken yet.  A task takes a run of
 * neighbouring clusters out of it, reads them, and writes them to the target.
 * Background tasks are started by copy_pump(); urgent ones by the tap, when a
 * guest wants to write to clusters that are still to do (copy-before-write).
 *
 * Old data are *saved* when the guest may overwrite them: once they are in a
 * task's buffer, or, with hold_until_written, once they are on the target.
 * Until then the task has a range in the source's ranges, and guest writes wait
 * for it.
 *
 * Where the backends can copy among themselves (COPY_FROM), data go this way,
 * in the background and until it is refused.  A guest that wants to write there
 * must not wait for the target: it makes the copy *void*.  A void task has no
 * range and no clusters, they are in todo again, and how it ends matters to
 * nobody.  But while it is at the backend it may still change the target, so
 * whoever wants to write there is held until it has ended.  Guests wait neither
 * for it nor for who is held, except for a buffer, when all are in use; then
 * cbw_timeout counts as ever.  With hold_until_written a guest waits for the
 * target in any case, and so for the copy; nothing becomes void.
 *
 * With a spill image the old data that guests have had saved go there first: they are
 * in `spilled`, and background tasks bring them from there to the target, before
 * anything else.  Where it takes no more they go to the target as without it.
 *
 * Errors: the job's policy decides (copy_judge in copy_task.c).  What was in todo goes back
 * there when the job stops for an error; what a guest may have overwritten meanwhile
 * is kept in the task's buffer until the job is resumed.  What is ignored is in `bad`.
 *
 * A kind of job without a background part (SYNC_NONE) never pumps; it may show what
 * it has saved (copy_where) and forget parts of it (copy_forget): they are `absent`.
 *
 * Invariants:
 *   1. A cluster is in exactly one of: todo, spilled, bad, absent, a task that is not
 *      void, or settled: on the target.  When the engine has stopped and is idle, what
 *      had been taken and is not on the target is where it was again.
 *   2. While the tap is attached, no guest write is given over a cluster that is
 *      in todo or in a task that has not saved it, unless it was given before
 *      the tap was attached; and no task reads such a write's range before it
 *      has ended.
 *   3. A stopped engine holds nobody: it has no tap, no range, no waiter.
 *   4. Nothing is allocated after copy_init.
 *   5. What is at the target, to be written there, never overlaps. */
#ifndef BLKREPL_JOB_COPY_H
#define BLKREPL_JOB_COPY_H

#include "block/guest.h"
#include "block/image.h"
#include "block/throttle.h"
#include "data/hbitmap.h"
#include "data/ratelimit.h"
#include "job/job.h"

#define COPY_EXTENTS 32
#define COPY_IOVS 8

enum copy_task_state {
    COPY_FREE,
    COPY_CLAIMED, /* waits for guest writes in flight to end */
    COPY_STATUS,  /* asks whether there are data */
    COPY_OFFLOAD, /* the target's backend copies from the source's */
    COPY_READ,
    COPY_HELD, /* waits for void copies of its range to end */
    COPY_WRITE,
    COPY_SPILL, /* old data for a guest go to the spill image */
    COPY_KEPT,  /* its write has failed: waits in its buffer until the job is resumed */
    COPY_CLEAN, /* on the target: what was spilled is discarded */
    COPY_VOID,  /* an offload that nobody wants any more */
    COPY_TASK_STATE_COUNT
};

struct copy_task {
    struct list link; /* on a free list, the active list, or the list of void ones */
    struct copy *copy;
    struct request *request;
    struct ready ready;
    unsigned char *buffer;
    uint64_t buffer_bytes;
    bool reserved; /* belongs to the reserve */
    /* From the claim on. */
    enum copy_task_state state;
    bool for_guest; /* claimed by the tap: copy-before-write */
    bool urgent;    /* somebody waits for it */
    bool probe;     /* its STATUS looks ahead for all */
    bool zero;      /* reads as zero: nothing to read, zeroes to write */
    bool spilled;   /* its data come from the spill image */
    bool told;      /* its backend knows that it is not wanted any more */
    uint32_t lane;
    uint64_t start;
    uint64_t end; /* not beyond the source's end */
    uint64_t moved_bytes;
    struct range range;  /* live until the old data are saved */
    struct list readers; /* struct ready of those who want to read it when it has ended */
    blkrepl_iovec iov[COPY_IOVS];
    blkrepl_extent extents[COPY_EXTENTS];
};

/* How the next background copy stands with the throttle. */
enum copy_turn {
    COPY_TURN_NONE,
    COPY_TURN_WAITS,
    COPY_TURN_MINE /* it has been let through, and not been started yet */
};

/* What is known of the source from here to there; holds until the end, since a
 * cluster in todo does not change. */
struct copy_known {
    uint64_t start;
    uint64_t end;
    bool zero;
};

struct copy_config {
    struct blkrepl_image *source;
    struct blkrepl_image *target;
    uint64_t cluster_bytes;
    uint64_t chunk_bytes;
    uint64_t reserve_bytes;
    uint64_t cbw_timeout_ns;
    uint32_t workers;
    bool hold_until_written;
    bool detect_zeroes;
    bool no_offload;
    bool compress;
    bool keeps_bad;                    /* errors may be ignored */
    bool keeps_absent;                 /* parts may be forgotten */
    struct blkrepl_image *spill;       /* NULL: none */
    uint64_t spill_bytes_max;          /* not 0 */
    uint64_t burst_bytes;              /* 0: default */
    struct blkrepl_throttle *throttle; /* NULL: none */
};

struct copy {
    /* Set once. */
    struct blkrepl_job *job;
    struct copy_config config;
    uint64_t source_bytes; /* also when the images are let go */
    struct copy_task *tasks;
    uint32_t task_count;
    unsigned char *memory;
    uint64_t memory_bytes;
    struct request *flush;
    /* Changed by the engine. */
    struct hbitmap todo;
    struct hbitmap spilled;  /* with a spill image */
    struct hbitmap bad;      /* with keeps_bad */
    struct hbitmap absent;   /* with keeps_absent */
    uint64_t spill_clusters; /* in use: spilled, on the way there, or being discarded */
    bool spill_zeroes_refused;
    struct list kept; /* struct ready of tasks in KEPT */
    uint64_t cursor;  /* the next cluster that the pump looks at */
    struct list free_workers;
    struct list free_reserve;
    struct list active;
    struct list voids;  /* tasks that are void */
    struct list held;   /* struct ready of tasks that wait for void ones */
    uint32_t in_flight; /* requests given to ports */
    bool stopped;
    bool failed; /* stopped because of an error that is the job's result */
    bool flushing;
    bool flushed;
    int flush_result;
    struct record_flush flush_record;
    bool settled_writes;        /* no write from before the point in time is left */
    bool probing;               /* a task asks the status of more than its own range */
    bool zeroes_refused;        /* the target has answered -ENOTSUP to ZEROES */
    uint64_t offload_bytes_max; /* longest COPY_FROM; 0: none, or refused */
    struct copy_known known[COPY_EXTENTS];
    uint32_t known_count;
    struct ratelimit rate;
    struct timer rate_timer;
    struct throttle_waiter turn; /* at the throttle */
    enum copy_turn turn_state;
    struct chore cancel_chore;
    struct list watchers; /* struct ready: of those who look on; woken when it stops */
    /* Changed by the tap. */
    struct tap tap;
    struct list starved; /* struct ready of guests: no buffer is free */
    struct list waiting; /* struct guest.tap_link, by deadline */
    struct timer cbw_timer;
    /* Counters for the query. */
    uint64_t bytes_done;
    uint64_t zero_bytes;
    uint64_t offloaded_bytes;
    uint64_t guest_copies_count;
    uint64_t guest_copies_bytes;
    uint64_t guest_waits_count;
    uint64_t failed_bytes;
    uint64_t spilled_bytes_total;
};

/* Take all memory; the maps are empty.  The lock is not held: this may take a while
 * for a large image.  On failure call copy_free.
 * Returns: 0; -EFBIG; -ENOMEM. */
int blkrepl__copy_alloc(struct copy *copy, struct blkrepl_context *ctx,
                        const struct copy_config *config);
void blkrepl__copy_free(struct copy *copy, struct blkrepl_context *ctx);

/* Count the memory against the context's budget and take request slots; with
 * the lock held, all or nothing.
 * Returns: 0; -ENOMEM. */
int blkrepl__copy_reserve(struct copy *copy, struct blkrepl_job *job);
void blkrepl__copy_unreserve(struct copy *copy);

/* The point in time: the tap is live from here on. */
void blkrepl__copy_attach(struct copy *copy);

/* Start background copies, a bounded number; what cannot go on now will wake
 * the job.  Returns false when nothing is left in todo. */
bool blkrepl__copy_pump(struct copy *copy);

/* Stop for good: release every guest, take back what is queued, ask backends to
 * cancel.  Tasks at the backends are still active afterwards.  One that has stopped
 * already gives up the flush that was asked for since. */
void blkrepl__copy_stop(struct copy *copy);

/* Make the target durable, also when the engine has stopped and is idle; copy->flushed is
 * set, and the job woken, when it has ended with copy->flush_result. */
void blkrepl__copy_flush(struct copy *copy);

/* The speed limit has changed. */
void blkrepl__copy_set_speed(struct copy *copy);

/* Nothing holds the job any more: what failed is tried again. */
void blkrepl__copy_resume(struct copy *copy);

/* Whether background work is left that nobody has taken. */
static inline bool copy_pending(const struct copy *copy)
{
    return copy->todo.set_count > 0 || copy->spilled.set_count > 0;
}

/* Whether guests may have to wait for what background copies write. */
static inline bool copy_background_holds(const struct copy *copy)
{
    return copy->config.hold_until_written && copy->config.spill == NULL;
}

/* Where the data of a cluster are, at the point in time. */
enum copy_place {
    COPY_AT_SOURCE, /* not taken yet: whoever reads there holds a range (RANGE_COPY) */
    COPY_AT_TARGET, /* on the target, and will stay there */
    COPY_AT_TASK,   /* on their way: wait for it */
    COPY_NOWHERE    /* forgotten, never wanted, or lost */
};
/* Of the cluster that `offset` lies in; *end: how far the answer holds, not beyond the
 * source's end (AT_TASK: the task's end).  *task: AT_TASK only. */
enum copy_place blkrepl__copy_where(const struct copy *copy, uint64_t offset, uint64_t *end,
                                    struct copy_task **task);
/* Wake when the task has ended, however: then ask again. */
void blkrepl__copy_await(struct copy_task *task, struct ready *ready);
/* Nobody wants these clusters any more; those in a task or lost are left as they are.
 * Needs keeps_absent. */
void blkrepl__copy_forget(struct copy *copy, uint64_t first, uint64_t count);

/* The same of all that nobody has taken. */
void blkrepl__copy_forget_rest(struct copy *copy);

/* Whether nothing of the engine is at a backend or waits for it. */
static inline bool copy_idle(const struct copy *copy)
{
    return list_empty(&copy->active) && list_empty(&copy->voids) && !copy->flushing;
}

/* --- between the files of the engine --------------------------------------- */

/* Take clusters from bit `first` on, at most `most`, into a task and start it. */
void blkrepl__copy_start_task(struct copy *copy, struct copy_task *task, uint64_t first,
                              uint64_t count, bool urgent, uint32_t lane);
/* The same with clusters that are in the spill image. */
void blkrepl__copy_start_spilled(struct copy *copy, struct copy_task *task, uint64_t first,
                                 uint64_t count);
/* A request of a task has ended. */
void blkrepl__copy_task_ended(struct request *request);

/* copy_send.c: the next request of a task, from moved_bytes on.  A status is asked of the
 * task's range, or far ahead when no write from before the point in time can change
 * what we learn. */
void blkrepl__copy_send_status(struct copy_task *task);
void blkrepl__copy_send_read(struct copy_task *task);
void blkrepl__copy_send_write(struct copy_task *task);
void blkrepl__copy_send_offload(struct copy_task *task);
void blkrepl__copy_send_discard(struct copy_task *task);
/* Put its request into the queue where it belongs: reads that a guest waits for go
 * with the guest's own requests. */
void blkrepl__copy_queue(struct copy_task *task, struct port *port);
/* What changes an image is recorded by its bitmaps when it sets out, for those that are
 * frozen meanwhile, and when it has ended. */
void blkrepl__copy_record(const struct copy_task *task);
/* Where its reads, its writes end: with whole blocks, if the image asks for them. */
uint64_t blkrepl__copy_read_end(const struct copy_task *task);
uint64_t blkrepl__copy_write_end(const struct copy_task *task);
/* Whether the target's last block has to be filled up with zeroes. */
bool blkrepl__copy_fills_up(const struct copy_task *task);
/* Whether the image that it writes to now has answered -ENOTSUP to ZEROES. */
bool *blkrepl__copy_zeroes_refused(const struct copy_task *task);

/* A task for a guest: from the reserve, else a free worker; NULL if none. */
struct copy_task *blkrepl__copy_reserve_task(struct copy *copy);
/* A guest has come to wait for a background task: it is urgent from now on. */
void blkrepl__copy_promote(struct copy_task *task, uint32_t lane);
/* Guests want to write to start..end: what backends copy there is void. */
void blkrepl__copy_void(struct copy *copy, uint64_t start, uint64_t end);
/* Put a task back and let others have it. */
void blkrepl__copy_task_free(struct copy_task *task);
/* Drop a task's part in ranges and queues because the engine stops. */
void blkrepl__copy_task_abandon(struct copy_task *task);
/* How far from its start on it says the same about whole clusters: zero only if
 * every byte of the cluster reads as zero. */
uint64_t blkrepl__copy_same_until(const struct copy_task *task, bool *zero);
/* Keep what a look far ahead has told. */
void blkrepl__copy_remember(const struct copy_task *task);
/* The known run that holds `offset`; NULL: none. */
const struct copy_known *blkrepl__copy_known_at(const struct copy *copy, uint64_t offset);
/* Whether the status of all of start..end is known. */
bool blkrepl__copy_known(const struct copy *copy, uint64_t start, uint64_t end);
/* Whether all of start..end is known to read as zero. */
bool blkrepl__copy_known_zero(const struct copy *copy, uint64_t start, uint64_t end);
/* A request of a task has failed and the engine cannot go on. */
void blkrepl__copy_fail(struct copy *copy, const struct job_error *error);

void blkrepl__copy_tap_init(struct copy *copy);
/* Release every guest that waits for this engine. */
void blkrepl__copy_tap_release(struct copy *copy);
/* The old data of start..end could not be saved: every guest that needs them
 * fails with `code`, whatever it waits for at the moment. */
void blkrepl__copy_tap_fail(struct copy *copy, uint64_t start, uint64_t end, int code);
/* A buffer is free: let the first starved guest try again. */
void blkrepl__copy_kick_starved(struct copy *copy);

#endif
