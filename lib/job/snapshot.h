/* SPDX-License-Identifier: MIT */
/* snapshot.h - an image of the point in time of a backup: the backend behind it.
 *
 * snapshot.c opens and closes it, snapshot_io.c is the machine of one request.
 *
 * The backend has no threads and no memory of its own: each request that the library
 * hands to it is done piece by piece, by requests to the job's source or target, as
 * blkrepl__copy_where() says.  Several snapshots of one job know nothing of each other;
 * what they must not do together is told by ranges, in those of the target too:
 *   source  an active range while it is read: guest writes wait
 *   target  a range while it is read, which only discards look at; an active one
 *           while a part is discarded */
#ifndef BLKREPL_JOB_SNAPSHOT_H
#define BLKREPL_JOB_SNAPSHOT_H

#include "block/iov.h"
#include "job/copy.h"
#include <libblkrepl/snapshot.h>

/* A request of more entries is cut by the image. */
#define SNAPSHOT_IOVS 64

enum snapshot_read_state {
    SNAPSHOT_FREE,
    SNAPSHOT_WAIT,    /* until the next piece can be had */
    SNAPSHOT_SOURCE,  /* a piece comes from the source */
    SNAPSHOT_TARGET,  /* a piece comes from the target */
    SNAPSHOT_HELD,    /* a discard waits for those who still read it from the target */
    SNAPSHOT_DISCARD, /* a piece is discarded in the target */
    SNAPSHOT_STATE_COUNT
};

struct snapshot;

/* One request to the snapshot: a READ, STATUS or DISCARD. */
struct snapshot_read {
    /* Set once. */
    struct snapshot *snapshot;
    struct request *request;
    /* Changed by the machine. */
    struct list link; /* on free or busy */
    struct ready ready;
    enum snapshot_read_state state;
    blkrepl_io *io;
    uint64_t at;   /* what lies before it is done */
    uint64_t last; /* where the request ends */
    uint64_t end;  /* where the piece ends */
    uint64_t sent; /* bytes of the piece that the request is about */
    struct iov_cursor cursor;
    uint32_t extents; /* found so far */
    int code;         /* not 0: given up, this will be told */
    bool told;        /* the backend knows that it is not wanted any more */
    bool hastened;    /* a guest waits for the range of the piece */
    struct range range;
    blkrepl_iovec iov[SNAPSHOT_IOVS];
};

struct snapshot {
    /* Set once. */
    struct blkrepl_context *ctx;
    struct blkrepl_job *job;
    struct copy *copy;
    struct blkrepl_image *source;
    struct blkrepl_image *target;
    struct blkrepl_image *image; /* it has no reference, but each request has */
    uint32_t queue_depth;
    struct snapshot_read *reads;
    uint64_t tail_at;    /* the last block, where the target wants it whole; else none */
    uint64_t tail_bytes; /* of the block */
    unsigned char *tail; /* a buffer for it */
    /* Changed under the lock. */
    uint32_t requests; /* of the reads that have one: all, when it is open */
    struct list free;  /* struct snapshot_read */
    struct list busy;
    const struct snapshot_read *tail_user;
    struct list tail_waiters; /* struct ready */
    struct ready stopped;     /* on the engine's watchers */
    struct chore cancel_chore;
};

/* All with the lock held. */

/* The library has handed over a request. */
void blkrepl__snapshot_accept(struct snapshot *snapshot, blkrepl_io *io);
/* It is not wanted any more: it ends with `code`, at once or when the backend is through
 * with it. */
void blkrepl__snapshot_give_up(struct snapshot_read *read, int code);
/* Tell the backend so, if it has it.  Drops and retakes the lock. */
void blkrepl__snapshot_tell(struct snapshot_read *read);

/* Why requests fail now; 0: they do not. */
int blkrepl__snapshot_code(const struct snapshot *snapshot);

#endif
