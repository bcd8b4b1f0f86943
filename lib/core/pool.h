/* SPDX-License-Identifier: MIT */
/* pool.h - requests: the slots that everything in flight lives in.
 *
 * All slots of a context are one array, made at creation, so that an id leads
 * to its slot without a lock: id = generation << REQUEST_INDEX_BITS | index.
 * Each lane has a pool of its own over a part of the array, and jobs have one.
 *
 * live_id is the one field that is shared with threads that do not hold the
 * lock: it is the request's id while the backend owns it, and 0 otherwise.
 * Whoever swaps it from the id to 0 has completed the request; so a second
 * completion, or a stale id, finds nothing to swap. */
#ifndef BLKREPL_CORE_POOL_H
#define BLKREPL_CORE_POOL_H

#include <stdatomic.h>

#include "base/list.h"
#include <libblkrepl/backend.h>

#define REQUEST_INDEX_BITS 24
#define REQUEST_INDEX_MASK ((UINT64_C(1) << REQUEST_INDEX_BITS) - 1)

struct port;
struct request;

/* What the owner of a request does when the backend has completed it; called
 * with the lock held, while the context is being advanced. */
typedef void request_ended_fn(struct request *request);

struct request {
    /* For the backend; set before it is given away. */
    blkrepl_io io;
    /* Changed without the lock, by whoever completes the request. */
    _Atomic uint64_t live_id;
    struct request *inbox_next;
    int io_result;
    /* Changed under the lane's lock, read by whoever completes the request. */
    atomic_bool quick;             /* see core/lane.h */
    atomic_bool awaited;           /* others wait for it: lane 0 hears of its completion */
    request_ended_fn *quick_ended; /* the same as ended, with the lane's lock held */
    /* Set when the slot is first used. */
    uint32_t index;
    /* Changed under the lock by the pool, the port and the owner. */
    uint64_t generation;
    struct list link; /* on the pool, a port's queue, or the completed list */
    struct port *port;
    bool job;              /* counts as a job's request at the port */
    bool queued;           /* waits in a queue of the port */
    uint64_t cancelled_id; /* the id for which the backend was told to cancel */
    request_ended_fn *ended;
    void *owner;
};

/* The slots of one lane, or of the jobs. */
struct request_pool {
    struct request *slots;
    uint32_t first; /* index of slots[0] */
    uint32_t count;
    uint32_t touched; /* slots 0..touched-1 have been used; the rest is fresh */
    uint32_t used;
    struct list free;
};

void blkrepl__request_pool_init(struct request_pool *pool, struct request *slots, uint32_t first,
                                uint32_t count);

/* Take a slot, its io zero; NULL if all are used. */
struct request *blkrepl__request_take(struct request_pool *pool);
void blkrepl__request_put(struct request_pool *pool, struct request *request);

/* Make the next id of this slot: never 0, never used before. */
uint64_t blkrepl__request_new_id(struct request *request);

#endif
