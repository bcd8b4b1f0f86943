/* SPDX-License-Identifier: MIT */
/* pool_queue.c - requests in a row, linked through their own scratch. */
#include "block/pool_queue.h"

void blkrepl__pool_queue_append(struct pool_queue *queue, blkrepl_io *io)
{
    io->host[0] = NULL;
    if (queue->last != NULL) {
        queue->last->host[0] = io;
    } else {
        queue->first = io;
    }
    queue->last = io;
    queue->count++;
}

void blkrepl__pool_queue_prepend(struct pool_queue *queue, blkrepl_io *io)
{
    io->host[0] = queue->first;
    queue->first = io;
    if (queue->last == NULL) {
        queue->last = io;
    }
    queue->count++;
}

/* Take out `io`, which stands behind `before` (NULL: at the front). */
static void queue_unlink(struct pool_queue *queue, blkrepl_io *before, blkrepl_io *io)
{
    if (before != NULL) {
        before->host[0] = io->host[0];
    } else {
        queue->first = io->host[0];
    }
    if (queue->last == io) {
        queue->last = before;
    }
    io->host[0] = NULL;
    queue->count--;
}

blkrepl_io *blkrepl__pool_queue_pop(struct pool_queue *queue)
{
    blkrepl_io *io = queue->first;

    if (io != NULL) {
        queue_unlink(queue, NULL, io);
    }
    return io;
}

blkrepl_io *blkrepl__pool_queue_take(struct pool_queue *queue, uint32_t scan_max,
                                     bool (*match)(const blkrepl_io *io, const void *key),
                                     const void *key)
{
    blkrepl_io *before = NULL;
    blkrepl_io *io = queue->first;

    while (io != NULL && scan_max-- > 0) {
        if (match(io, key)) {
            queue_unlink(queue, before, io);
            return io;
        }
        before = io;
        io = io->host[0];
    }
    return NULL;
}
