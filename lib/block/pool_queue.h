/* SPDX-License-Identifier: MIT */
/* pool_queue.h - requests in a row, linked through their own scratch.
 *
 * While a request is queued:
 *   host[0]  the next one
 *   host[1]  who does it (struct pool_client)
 *   host[2]  the client's; 0 when the request comes from the library
 *   host[3]  POOL_HELP_REFUSED when it would have blocked a helper
 */
#ifndef BLKREPL_BLOCK_POOL_QUEUE_H
#define BLKREPL_BLOCK_POOL_QUEUE_H

#include "base/compiler.h"
#include <libblkrepl/backend.h>

/* An empty one is all zero. */
struct pool_queue {
    blkrepl_io *first;
    blkrepl_io *last;
    uint32_t count;
};

struct pool_client;

void blkrepl__pool_queue_append(struct pool_queue *queue, blkrepl_io *io);
void blkrepl__pool_queue_prepend(struct pool_queue *queue, blkrepl_io *io);

/* Take the first; NULL if there is none. */
blkrepl_io *blkrepl__pool_queue_pop(struct pool_queue *queue);

/* Take the first, of the first `scan_max`, for which match() is true; NULL if
 * there is none. */
blkrepl_io *blkrepl__pool_queue_take(struct pool_queue *queue, uint32_t scan_max,
                                     bool (*match)(const blkrepl_io *io, const void *key),
                                     const void *key);

#endif
