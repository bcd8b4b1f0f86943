/* SPDX-License-Identifier: MIT */
/* Blocking calls, and threads that are inside one. */
#ifndef TESTS_API_CALL_H
#define TESTS_API_CALL_H

#include "tape.h"

enum call_kind {
    CALL_READ,
    CALL_WRITE,
    CALL_ZEROES,
    CALL_DISCARD,
    CALL_FLUSH,
    CALL_STATUS,
    CALL_BEGIN, /* of a write bracket */
    CALL_KINDS
};

/* One blocking call, made by call_make() or by a thread of its own. */
struct call {
    blkrepl_image *image;
    enum call_kind kind;
    uint32_t lane;
    uint32_t flags;
    uint64_t offset;
    uint64_t bytes;
    void *memory;             /* of reads and writes                        */
    blkrepl_extent extent[2]; /* what a status answered                     */
    uint64_t token;           /* of a bracket                               */
    int result;
    /* Of its thread. */
    pthread_t thread;
    _Atomic int tid;
    _Atomic bool returned;
};

/* The answer, also in call->result. */
int call_make(struct call *call);
/* Make it in a thread of its own. */
void call_start(struct call *call);
/* Until its thread sleeps in the kernel, or has returned. */
void call_until_asleep(struct call *call);
/* Until it has returned; its result. */
int call_join(struct call *call);

/* A thread of the host that polls a lane, over and over. */
struct poller {
    blkrepl_context *ctx;
    uint32_t lane;
    pthread_t thread;
    _Atomic bool stop, stopped;
    unsigned errors; /* answers but -EBUSY */
};

/* Until it polls. */
void poller_start(struct poller *poller, blkrepl_context *ctx, uint32_t lane);
/* Until it has stopped.  It is woken more than once: a call that leads may take
 * the wake meant for it. */
void poller_stop(struct poller *poller);

/* Until so many requests wait at the tape. */
void tape_await(struct tape *t, size_t count);
/* Until the image has so many guest requests and brackets. */
void image_await(blkrepl_image *image, uint32_t count);

#endif
