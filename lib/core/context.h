/* SPDX-License-Identifier: MIT */
/* context.h - the context: the lock, the lanes, and what waits to be done.
 *
 * Inbox -> core -> outbox.  Every entry takes the lock (blkrepl__enter), records
 * what happened, and leaves (blkrepl__leave).  Leaving advances: recorded
 * completions are handed to their owners, which move and mark others ready.
 * Then it empties the outbox: requests go to backends with the lock dropped.
 * Callbacks wait for a poll of their lane.
 *
 * Three kinds of things become ready:
 *   struct ready    something that waited (for a range, a buffer) may look
 *                   again; handled by any entry;
 *   struct machine  a job may take its next step; handled by polls of lane 0;
 *   struct chore    a call into the host that any leaving thread makes.
 */
#ifndef BLKREPL_CORE_CONTEXT_H
#define BLKREPL_CORE_CONTEXT_H

#include <pthread.h>

#include "base/alloc.h"
#include "core/error.h"
#include "core/event.h"
#include "core/log.h"
#include "core/pool.h"
#include "core/port.h"
#include "core/timer.h"
#include "core/wake.h"

/* Something that waits on a list, to be looked at again when woken. */
struct ready {
    struct list link;
    void (*run)(struct ready *ready);
};

/* A job as the core sees it. */
struct machine {
    struct list link; /* on the ready list */
    struct list all;  /* on the list of all machines */
    void (*step)(struct machine *machine);
    void (*shut_down)(struct machine *machine); /* the context is closing */
};

/* A call into the host; run may drop and retake the lock. */
struct chore {
    struct list link;
    void (*run)(struct chore *chore);
};

/* A callback with its arguments, ready to run without the lock. */
struct delivery {
    blkrepl_completion done;
    int result;
};

/* A callback that waits for its lane.  deliver is called with the context's lock
 * held; it takes what it needs, frees what it can, and fills *out. */
struct callback {
    struct list link;
    void (*deliver)(struct callback *callback, struct delivery *out);
    bool alone; /* decided at the last moment: not fetched ahead with others */
    bool quick; /* deliver is called with the lane's lock held, and needs no other */
};

/* What helps while a blocking poll has nothing else to do, and is freed with
 * the context. */
struct helper {
    void *user;
    bool (*help)(void *user);
    void (*free)(void *user);
};

/* Who polls a lane. */
enum lane_polling {
    LANE_FREE,
    LANE_POLLED,
    LANE_AWAITED /* and somebody sleeps who would lead if nobody polled */
};

struct waiter;

struct lane {
    pthread_mutex_t lock; /* taken after the context's, if both are */
    /* Changed under the lane's lock. */
    struct request_pool requests;
    struct list callbacks;    /* struct callback */
    struct list quick;        /* block's quick requests that have not been told yet */
    struct list quick_queues; /* struct port_queue with quick requests left over */
    struct list arrived;      /* completed requests, taken from the inbox */
    struct list returned;     /* of these, the ones that are not quick */
    struct list waiters;      /* struct waiter: threads in a blocking call */
    struct list room_waiters; /* of these, the ones that want a request slot */
    uint32_t inside;          /* threads on the quick way */
    bool room_wanted;
    bool room_due;         /* the event ROOM is to be posted */
    struct waiter *leader; /* who polls the lane in a blocking call, or has just done so */
    bool lead_over;        /* there is room for that one */
    /* Changed under the context's lock. */
    struct list events; /* struct event_slot */
    struct list queues; /* guest queues ready to be submitted */
    struct event_slot room;
    uint64_t armed_deadline_ns;
    bool event_turn; /* with callbacks_max 1: the next one is an event */
    bool kicked;     /* a blocking poll of the host must return */
    bool led;        /* the poll that goes on is not the host's, but of a waiter */
    struct wake wake;
    /* Changed without the context's lock. */
    _Atomic(struct request *) inbox; /* completed requests, newest first */
    atomic_uint polling;             /* LANE_*; freed by a poll's last act */
    atomic_bool arm_pending;         /* armed since the last poll: the descriptor needs draining */
    atomic_bool armed;               /* somebody sleeps until the next event */
    atomic_bool slow_due;            /* a poll of the lane has to take the context's lock */
    atomic_uint completing;          /* threads inside blkrepl_io_complete */
    atomic_uint blocked;             /* threads inside a blocking call */
    APART;
};

struct blkrepl_context {
    pthread_mutex_t lock;
    /* Set once. */
    struct alloc alloc;
    blkrepl_hooks hooks;
    blkrepl_event_sink sink;
    uint32_t lane_count;
    uint32_t lanes_made; /* while it is created and freed */
    uint32_t callbacks_max;
    uint32_t completions_max;
    uint32_t copies_max;
    uint32_t requests_max;
    uint32_t pool_threads_max;
    uint64_t memory_bytes_max;
    uint64_t seed; /* from the entropy hook */
    struct request *slots;
    uint32_t slot_count;
    struct lane *lanes;
    /* Changed under the lock. */
    struct request_pool job_requests;
    struct list ready;     /* struct ready */
    struct list completed; /* requests taken from the inboxes */
    struct list machines;  /* ready ones */
    struct list jobs;      /* all machines */
    struct list chores;
    struct list job_queues; /* job queues ready to be submitted */
    struct list yielding;   /* job queues that let guests of other lanes go first */
    struct list strays;     /* guest queues of other lanes with reads that lane 0 may take */
    struct list closing;    /* dropped ports whose backend can be closed */
    struct list throttles;  /* block's */
    struct timer_list timers;
    struct log_ring log;
    struct helper helper;
    void *guests; /* block's array, one per guest slot */
    void (*guests_free)(struct blkrepl_context *ctx);
    uint64_t now_ns;
    uint64_t memory_used;
    uint64_t instant;     /* counts points in time: GO of writes, start of jobs */
    uint64_t last_id;     /* of images, bitmaps, jobs and groups */
    uint32_t images_open; /* handles */
    uint32_t bitmaps_open;
    uint32_t jobs_open;
    uint32_t groups_open;
    uint32_t throttles_open;
    uint32_t ports;                                  /* not yet closed */
    uint32_t inside;                                 /* threads inside a call */
    bool shut;                                       /* context_free was called */
    void (*quick_stop)(struct blkrepl_context *ctx); /* block's: turn every image to the slow way */
    void (*throttles_shut_down)(struct blkrepl_context *ctx); /* the same: nobody waits for one */
    /* Changed without the lock. */
    atomic_bool attention; /* every entry has to advance something: nobody goes the quick way */
    atomic_bool recorded;  /* of that: completions of requests that are not quick */
    atomic_uint starved;   /* queues that wait for a place at their backend */
};

void blkrepl__enter(struct blkrepl_context *ctx);
/* Advance, submit what waits for `lane`, wake whom it concerns, unlock. */
void blkrepl__leave(struct blkrepl_context *ctx, uint32_t lane);
/* The same when there is nothing to advance or submit. */
void blkrepl__leave_quietly(struct blkrepl_context *ctx);
/* Wake who sleeps on a lane that has something to do; the lock is dropped meanwhile. */
void blkrepl__wake_sleepers(struct blkrepl_context *ctx);

/* Handle completions, timers and what became ready, within the context's
 * bound. */
void blkrepl__advance(struct blkrepl_context *ctx);
/* Give requests to backends and run chores, within a bound. */
enum outbox_part {
    OUTBOX_CALL,  /* what any call may give away: the lane's guest requests, chores */
    OUTBOX_CLOSE, /* and close backends */
    OUTBOX_POLL   /* on lane 0 also the jobs' requests */
};
void blkrepl__empty_outbox(struct blkrepl_context *ctx, uint32_t lane, enum outbox_part part);
/* Whether a poll of this lane has something to do now.  With the context's lock;
 * takes the lane's. */
bool blkrepl__lane_busy(struct blkrepl_context *ctx, uint32_t lane);

/* Poll until something happens, for a thread that has the lock of the lane, which
 * nobody polls; it has it again afterwards. */
void blkrepl__poll_lead(struct blkrepl_context *ctx, uint32_t lane);
/* Poll without waiting until nothing is left to do; used while closing. */
void blkrepl__drain(struct blkrepl_context *ctx);

/* Core time; reads the clock. */
uint64_t blkrepl__now(struct blkrepl_context *ctx);

void blkrepl__ready_wake(struct blkrepl_context *ctx, struct ready *ready);
void blkrepl__machine_wake(struct blkrepl_context *ctx, struct machine *machine);
void blkrepl__chore_add(struct blkrepl_context *ctx, struct chore *chore);

/* Post an event unless the host has no sink. */
void blkrepl__context_post(struct blkrepl_context *ctx, uint32_t lane, struct event_slot *slot,
                           const blkrepl_event *event);

/* Turn a lane's room_due into an event.  With the context's lock held. */
void blkrepl__lane_post_room(struct blkrepl_context *ctx, uint32_t lane);

/* Give a guest slot back; a lane that had no room says so. */
void blkrepl__guest_slot_put(struct blkrepl_context *ctx, uint32_t lane, struct request *request);

/* Whether the lane exists.  Records an error message if not. */
bool blkrepl__lane_valid(const struct blkrepl_context *ctx, uint32_t lane);

/* Mark that this thread is inside the host's code on behalf of ctx, so that a
 * poll from there can be refused.  What a backend completes inside submit is
 * collected here, which spares the inbox's atomics. */
struct host_frame {
    const struct blkrepl_context *ctx;
    struct host_frame *outer;
    bool submitting;
    struct request *first; /* completed inside this frame, oldest first */
    struct request *last;
    struct error_kept error; /* what the host's own calls do not overwrite */
};
void blkrepl__host_enter(struct host_frame *frame, const struct blkrepl_context *ctx);
void blkrepl__host_leave(struct host_frame *frame);
bool blkrepl__host_inside(const struct blkrepl_context *ctx);
/* Take over what was completed inside a frame that has been left. */
void blkrepl__collect_frame(struct blkrepl_context *ctx, const struct host_frame *frame);

/* Run a release that no poll runs; ctx may be NULL, and release too. */
void blkrepl__host_release(const struct blkrepl_context *ctx, void (*release)(void *user),
                           void *user);
void blkrepl__completion_release(const struct blkrepl_context *ctx, const blkrepl_completion *done);

#endif
