/* SPDX-License-Identifier: MIT */
/* file_pool.h - a few threads that do what would block a submitter.
 *
 * One pool serves all file images of a context.  Threads start when there is
 * work for them, not before, because hosts fork; they have all signals
 * blocked.
 *
 * The items are the requests themselves, linked through their scratch (see
 * pool_queue.h), so nothing is ever allocated.
 *
 * Order: guest requests, then background writes (their data is still in a
 * cache, and they give buffers back), then background reads; first come first
 * served within each. */
#ifndef BLKREPL_BLOCK_FILE_POOL_H
#define BLKREPL_BLOCK_FILE_POOL_H

#include "base/alloc.h"
#include "block/pool_queue.h"
#include <libblkrepl/backend.h>

struct file_pool;

/* Who does the work of an item; embedded in the owner of the file. */
struct pool_client {
    /* Do the request and complete it.  If it may not block and would have to,
     * it is left incomplete, host[2] says where it stands, and the answer is
     * false.  Once completed, neither request nor client may be touched, not
     * even by the pool. */
    bool (*run)(struct pool_client *client, blkrepl_io *io, bool may_block);
    /* Whether it is worth trying run() without blocking. */
    bool (*helpable)(struct pool_client *client, const blkrepl_io *io);
};

/* What the pool is doing; for tests and traces. */
struct file_pool_stats {
    uint32_t threads; /* started */
    uint32_t sleeping;
    uint32_t queued;
    uint64_t wakes; /* sleepers woken so far */
};

/* threads_max 0: one per CPU this thread may use, at most 4.
 * Returns: 0; -ENOMEM. */
int blkrepl__file_pool_create(const struct alloc *alloc, uint32_t threads_max,
                              struct file_pool **out);

/* Stop the threads and wait for them.  Nothing may be queued or running.  With
 * NULL it does nothing. */
void blkrepl__file_pool_free(struct file_pool *pool);

/* Append a request to a batch, which is an empty queue at first. */
void blkrepl__file_pool_batch(struct pool_queue *batch, struct pool_client *client, blkrepl_io *io);

/* Queue a batch, which is empty afterwards, and wake or start as many threads
 * as it has work for.  Where no thread can be had at all, the caller's does the
 * work. */
void blkrepl__file_pool_add(struct file_pool *pool, struct pool_queue *batch);

/* Say that there was a guest request, also one that did not come to the pool:
 * for a while, half of the threads keep away from background work. */
void blkrepl__file_pool_note_guest(struct file_pool *pool);

/* Let the calling thread do one background item that does not block; false if
 * there is none.  Costs one load when there is no background work. */
bool blkrepl__file_pool_help(struct file_pool *pool);

/* Take a client's request out of the queues; NULL if it is not there (any
 * more).  The caller completes it. */
blkrepl_io *blkrepl__file_pool_cancel(struct file_pool *pool, const struct pool_client *client,
                                      uint64_t id);

void blkrepl__file_pool_query(struct file_pool *pool, struct file_pool_stats *stats);

#endif
