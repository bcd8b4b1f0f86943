/* SPDX-License-Identifier: MIT */
/* port_quick.h - the quick way through a port: requests of a lane that go to the
 * backend under the lane's lock alone (see core/lane.h).
 *
 * While port->quick is set nothing goes the slow way: its queues are empty, and
 * what is in flight is counted by the places that lanes have taken from
 * port->places.  A lane keeps some places for its next requests, so that lanes
 * which do not need many do not meet at the counter.
 *
 * Both ways share port_queue.held: one thread at a time is inside the backend's
 * submit for a lane. */
#ifndef BLKREPL_CORE_PORT_QUICK_H
#define BLKREPL_CORE_PORT_QUICK_H

#include "core/lane.h"

/* A place at the backend for one request; false if none is free.  With the
 * lane's lock, like all that follow but the last two. */
bool blkrepl__port_place_take(struct port_queue *queue);
void blkrepl__port_place_put(struct port_queue *queue);

/* Give a request that has a place to the backend, or leave it to the thread that
 * is inside.  Drops and retakes the lane's lock. */
void blkrepl__port_submit_quick(struct blkrepl_context *ctx, struct port_queue *queue,
                                struct request *request);
/* Give away what earlier calls of the lane have left, within their bound.  Drops
 * and retakes the lane's lock. */
void blkrepl__port_flush_quick(struct blkrepl_context *ctx, struct lane *lane);

/* The quick way begins, with `in_flight` requests at the backend that hold a
 * place each; with the context's lock, before port->quick is set. */
void blkrepl__port_quick_begin(struct port *port, uint32_t in_flight);
/* It is over for a lane: count a request of its own, which has a place, for the
 * slow way.  With both locks, after port->quick is cleared. */
void blkrepl__port_quick_absorb(struct port *port, struct request *request);
/* The lane's places are void.  With both locks. */
void blkrepl__port_quick_end(struct port_queue *queue);

#endif
