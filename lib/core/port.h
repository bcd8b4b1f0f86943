/* SPDX-License-Identifier: MIT */
/* port.h - the door to one backend: submission queues, what is in flight, close.
 *
 * A port has one queue of guest requests per lane and one of job requests for
 * lane 0.  Whoever leaves the library submits what is queued; one thread at a
 * time holds a queue, others append and leave, so order within a queue is kept
 * and nothing recurses.
 *
 * Invariants:
 *   1. in_flight <= the backend's queue_depth.
 *   2. Job requests are offered only when no guest request of lane 0 waits, and
 *      hold at most half of the depth while guest requests are about.  Where
 *      there is no half, they let guests of other lanes go first for a number
 *      of polls: no job depends on a lane that nobody polls.
 *   3. A request is queued, or at the backend (live_id != 0), or completed and
 *      not yet handled, or with its owner: one of these.
 *   4. A queue is on its ready list if and only if it has something to submit,
 *      the port has room for it, and nobody holds it.  A guest queue of another
 *      lane than 0 that has reads is then on the list of strays as well: polls
 *      of lane 0 take them over.
 *   5. The backend's close runs when nothing is queued or in flight, nobody is
 *      inside the backend, and the owner has dropped the port. */
#ifndef BLKREPL_CORE_PORT_H
#define BLKREPL_CORE_PORT_H

#include "core/pool.h"

struct blkrepl_context;
struct port;

struct port_queue {
    struct list link;    /* on the lane's (or the jobs') ready list */
    struct list aside;   /* on the context's list of strays; jobs: of the yielding */
    struct list waiting; /* requests */
    struct list first;   /* requests that go before the others: a guest queue's
                          * reads of old data, a job queue's urgent ones */
    struct port *port;
    struct list *ready_list;
    uint32_t lane;
    bool job;
    bool starved;     /* waits for a place, and is counted by the context */
    atomic_bool held; /* somebody is submitting from it */
    /* Changed under the lane's lock: see port_quick.h. */
    struct list quick;      /* requests */
    struct list quick_link; /* on the lane's quick_queues */
    uint32_t places;        /* at the backend, kept for the next requests */
    APART;
};

struct port {
    /* Set once. */
    struct blkrepl_context *ctx;
    blkrepl_backend_ops ops;
    void *backend;
    blkrepl_backend_info info;        /* defaults filled in */
    struct port_queue *guest;         /* one per lane */
    void (*freed)(struct port *port); /* called when the backend is closed */
    /* Changed under the lock. */
    struct port_queue job;
    struct list chore_link; /* on the context's closing list */
    uint32_t guest_waiting; /* in the guest queues */
    uint32_t guest_in_flight;
    uint32_t job_in_flight;
    uint32_t yields; /* polls in which jobs let guests of other lanes go first */
    uint32_t inside; /* threads inside the backend */
    bool dropped;
    uint32_t places_kept; /* see port_quick.h */
    /* Changed under the lock, read under a lane's. */
    atomic_bool quick; /* requests may go the quick way, and none goes the slow one */
    /* Changed without a lock. */
    atomic_uint places; /* free places at the backend, while it is quick */
};

/* Set up a port over a backend; the queues of `guest` (one per lane) are the
 * caller's memory. */
void blkrepl__port_init(struct port *port, struct blkrepl_context *ctx, struct port_queue *guest);

/* Queue a request.  request->io is complete but for id, lane and struct_size;
 * request->ended and owner are set.  It goes to the guest queue of `lane`. */
void blkrepl__port_submit_guest(struct port *port, struct request *request, uint32_t lane);
/* The same for a job's read that a guest of this lane waits for. */
void blkrepl__port_submit_read(struct port *port, struct request *request, uint32_t lane);
/* The same for the job queue; urgent ones go before the others. */
void blkrepl__port_submit_job(struct port *port, struct request *request, bool urgent);

/* Take a request back that was not given to the backend yet; false if it is
 * not queued any more. */
bool blkrepl__port_withdraw(struct request *request);

/* Somebody waits for this guest request: if it is still queued on another lane,
 * lane 0 takes it over. */
void blkrepl__port_hasten(struct request *request);

/* What a poll of lane 0 does for jobs that others hold up: count their yielding,
 * and take over the strays. */
void blkrepl__port_help_lanes(struct blkrepl_context *ctx);

/* Tell the backend that a request is not wanted any more, if it has it.  Drops
 * and retakes the lock. */
void blkrepl__port_cancel(struct request *request);

/* The thread that held the queue from the quick way holds it no longer. */
void blkrepl__port_let_go(struct port_queue *queue);

/* Whether nothing waits or is in flight, and nobody is inside: the quick way may
 * begin. */
bool blkrepl__port_calm(const struct port *port, uint32_t in_flight);

/* Give one batch of a ready queue to the backend.  Drops and retakes the lock. */
void blkrepl__port_flush(struct port_queue *queue);

/* Account for a request that the backend has completed. */
void blkrepl__port_ended(struct request *request);

/* The owner needs the port no more: the backend is closed when that is possible
 * and then port->freed runs, without the lock. */
void blkrepl__port_drop(struct port *port);

/* Put a dropped port on the context's closing list if it is idle. */
void blkrepl__port_check_close(struct port *port);

/* Close the backend.  Drops and retakes the lock. */
void blkrepl__port_close(struct port *port);

#endif
