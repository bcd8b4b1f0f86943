/* SPDX-License-Identifier: MIT */
/* guest.h - a guest request or bracket on its way through an image.
 *
 * There is one struct guest per guest slot of the context, with the same index
 * as the slot; a bracket's token is an id of that slot. */
#ifndef BLKREPL_BLOCK_GUEST_H
#define BLKREPL_BLOCK_GUEST_H

#include "block/image.h"
#include "block/iov.h"
#include "block/throttle.h"
#include "core/step.h"

#define GUEST_IOVS 8

enum guest_phase {
    GUEST_FREE,      /* the slot is not in use */
    GUEST_THROTTLED, /* waits for the image's throttle */
    GUEST_QUEUED,    /* waits for earlier overlapping writes */
    GUEST_TAPPED,    /* waits for its taps, or for active copies */
    GUEST_GIVEN,     /* the backend has it, or will get it */
    GUEST_GO_DUE,    /* bracket: the callback with its GO waits for a poll */
    GUEST_GO,        /* bracket: the host has it */
    GUEST_ENDED,     /* its callback waits for a poll */
    GUEST_PHASE_COUNT
};

/* How the next piece of a request goes to the backend. */
enum piece_kind {
    PIECE_DIRECT,       /* as it is, from the caller's memory */
    PIECE_READ,         /* bounced read, or the read of a read-modify-write */
    PIECE_WRITE,        /* bounced write */
    PIECE_ZEROES,       /* ZEROES or DISCARD */
    PIECE_ZERO_BUFFERS, /* ZEROES by writing */
    PIECE_FLUSH         /* the flush after a write with FUA */
};

struct guest {
    /* Set once. */
    struct blkrepl_context *ctx;
    struct request *request;
    /* Which list it is on tells which way it goes: see quick.h. */
    struct list image_link;  /* the slow way: on the image's guests */
    struct list quick_link;  /* the quick way: on the lane's quick */
    struct list stripe_link; /* the quick way, a write: on its stripe's writes */
    bool in_stripe;          /* whether it is; its neighbours there change the link */
    /* Set when it is accepted. */
    struct blkrepl_image *image;
    uint64_t offset;
    uint64_t bytes;
    uint32_t opcode;
    uint32_t flags;
    uint32_t lane;
    bool beside;
    bool hastened; /* others wait for it: lane 0 submits what its lane cannot at once */
    blkrepl_extent *extents;
    uint32_t extents_max;
    blkrepl_completion done; /* bracket: go */
    uint64_t token;          /* bracket */
    bool cancelled;          /* bracket: its host has asked for it */
    /* Changed by the machine in guest.c. */
    enum guest_phase phase;
    int result;
    struct ready ready;
    struct throttle_waiter turn; /* THROTTLED */
    struct callback callback;
    struct range range;
    /* Changed by piece.c: where we are. */
    uint64_t done_bytes; /* of the request */
    struct iov_cursor cursor;
    enum piece_kind piece;
    uint64_t piece_bytes; /* of the request, this piece */
    unsigned char *bounce;
    blkrepl_iovec piece_iov[GUEST_IOVS];
    uint32_t skips;            /* pieces of a discard that were left out */
    struct record_flush flush; /* FLUSH, and FUA by a flush */
    bool flush_due;            /* a FLUSH has to follow, or is the request itself */
    bool patch_due;            /* the buffer holds the old block, to be patched and written */
    /* Changed by the tap that it waits for. */
    struct list tap_link;
    struct tap *tap_parked; /* for whom it waits; on whose list tap_link is */
    uint64_t tap_counted;   /* bits of the taps that have counted it */
    uint64_t tap_start;     /* what it was asked about last */
    uint64_t tap_end;
    uint64_t tap_deadline_ns;
    bool tap_starved;
    int tap_error;
};

/* The only writer of phase. */
enum step blkrepl__guest_enter(struct guest *guest, enum guest_phase next);

/* Make the array of guests when the first image is opened.
 * Returns: 0; -ENOMEM. */
int blkrepl__guests_prepare(struct blkrepl_context *ctx);

/* Take a slot for a request to `image`; NULL if there is none.  With the lock
 * held; so are the others. */
struct guest *blkrepl__guest_take(struct blkrepl_image *image, uint32_t lane);
/* Make a guest of a slot that was taken for a request to `image`. */
struct guest *blkrepl__guest_reset(struct blkrepl_image *image, uint32_t lane,
                                   struct request *request);
/* There is none: the caller of the request, whose completion this is, is told
 * when there is.
 * Returns: -EAGAIN. */
int blkrepl__guest_no_room(struct blkrepl_image *image, uint32_t lane,
                           const blkrepl_completion *done);

/* Set it on its way. */
void blkrepl__guest_start(struct guest *guest);
/* End a bracket that has its GO (result NULL: nothing was done), or give up one that
 * has not. */
void blkrepl__guest_end_bracket(struct guest *guest, const int *result);
void blkrepl__guest_cancel_wait(struct guest *guest);
/* Give the slot back without a callback. */
void blkrepl__guest_put(struct guest *guest);

/* The guest with this token; NULL if there is none. */
struct guest *blkrepl__guest_of_token(struct blkrepl_context *ctx, uint64_t token);

/* The guest of a slot. */
struct guest *blkrepl__guest_of_slot(struct blkrepl_context *ctx, uint32_t index);

/* The image's guests wait for its throttle no more, in the order in which they came. */
void blkrepl__guests_pass(struct blkrepl_image *image);

/* For quick.c, which takes guests from one way to the other: count a guest as
 * one of the image, or no more; hold the range of a write that has been given,
 * or hold it no more; await the poll that tells the host. */
void blkrepl__guest_count(struct guest *guest);
void blkrepl__guest_uncount(struct guest *guest);
void blkrepl__guest_hold_range(struct guest *guest);
void blkrepl__guest_drop_range(struct guest *guest);
void blkrepl__guest_await_poll(struct guest *guest);

/* Wake a guest that a tap has parked. */
void blkrepl__guest_wake(struct guest *guest);

/* Another guest waits for this one: what it still has to submit goes with lane
 * 0, since nobody may be polling its own. */
void blkrepl__guest_hasten(struct guest *guest);
/* A copy waits for this one.  As above; and a bracket that has not been told its
 * GO yet gives it back, and waits for the copy. */
void blkrepl__guest_make_way(struct guest *guest);

static inline struct guest *guest_of_range(struct range *range)
{
    return CONTAINER_OF(range, struct guest, range);
}

static inline bool guest_writes(const struct guest *guest)
{
    return guest->opcode == BLKREPL_OP_WRITE || guest->opcode == BLKREPL_OP_ZEROES ||
           guest->opcode == BLKREPL_OP_DISCARD;
}

static inline bool guest_pieces_tapped(const struct guest *guest)
{
    return !guest->beside && guest->opcode != BLKREPL_OP_WRITE;
}

/* piece.c: the next piece goes to the backend. */
enum piece_answer {
    PIECE_SENT, /* the request is at the port, its completion comes */
    PIECE_WAIT, /* for a bounce buffer */
    PIECE_NONE  /* there is nothing left to do */
};
enum piece_answer blkrepl__piece_send(struct guest *guest);
/* Whether the backend cannot do it and the caller wants no fallback. */
bool blkrepl__piece_refused(const struct guest *guest);
/* The backend is done with the piece; returns 0 to go on, or the result. */
int blkrepl__piece_ended(struct guest *guest, int result);
/* The part of the request that the next piece will be about, for taps. */
void blkrepl__piece_range(struct guest *guest, uint64_t *start, uint64_t *end);
/* A quick request, which is one piece, is made ready for the port. */
void blkrepl__piece_send_quick(struct guest *guest);
/* Whether what the backend has is the whole of the request. */
bool blkrepl__piece_whole(const struct guest *guest);
/* Leave out the next piece. */
void blkrepl__piece_skip(struct guest *guest);
/* Give back what a request holds when it ends early. */
void blkrepl__piece_drop(struct guest *guest);

#endif
