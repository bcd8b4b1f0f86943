/* SPDX-License-Identifier: MIT */
/**
 * @file event.h
 * What the library tells the host without being asked.
 *
 * Events are queued and delivered by polls, never from inside a call: those of
 * jobs in a poll of lane 0, BLKREPL_EVENT_ROOM in a poll of the lane it is
 * about.  Each object owns one slot per event type: an event that repeats
 * before it was delivered is merged with the one that waits, which then has a
 * higher `count` and the newest contents.  So no event is lost for want of
 * memory.
 *
 * Order: the events of one object are delivered in the order of their first
 * occurrence; BLKREPL_EVENT_JOB_DONE is the last event of a job.  Events of an
 * object whose handle was dropped are dropped with it; so an event never carries
 * the `user` of an object after its release has run.
 *
 * Without an event sink there are no events; everything can be asked for.
 *
 * ROOM: every refusal with -EAGAIN is followed by a ROOM, but it wakes nobody in
 * particular: a host with several threads retries whatever waits.
 */
#ifndef LIBBLKREPL_EVENT_H
#define LIBBLKREPL_EVENT_H

#include <libblkrepl/base.h>

BLKREPL_BEGIN_DECLS

/** The event types. */
enum blkrepl_event_type {
    /** A lane that refused a request with -EAGAIN has room again.
     *  object_kind is LANE, object_id the lane's number. */
    BLKREPL_EVENT_ROOM = 1,
    /** The public state of a job has changed (not to CONCLUDED, which is
     *  JOB_DONE), it was paused, also by an error, or resumed, or it may be
     *  finalized; ask blkrepl_job_query() for the present state. */
    BLKREPL_EVENT_JOB_STATE = 2,
    /** A request of a job has failed: side, offset, bytes and error tell which
     *  and why. */
    BLKREPL_EVENT_JOB_ERROR = 3,
    /** The job has concluded; `error` is its result (0: done, -ECANCELED:
     *  cancelled, otherwise failed).  It holds no image any more and has
     *  nothing in flight. */
    BLKREPL_EVENT_JOB_DONE = 4
};

/** What kind of object an event is about. */
enum blkrepl_object_kind {
    BLKREPL_OBJECT_LANE = 1,
    BLKREPL_OBJECT_IMAGE = 2,
    BLKREPL_OBJECT_JOB = 3
};

/** On which side of a job something happened. */
enum blkrepl_side {
    BLKREPL_SIDE_SOURCE = 1,
    BLKREPL_SIDE_TARGET = 2,
    BLKREPL_SIDE_SPILL = 3
};

/** An event; valid only while the callback runs. */
typedef struct blkrepl_event {
    uint32_t struct_size; /* set by the library */
    uint32_t type;        /* BLKREPL_EVENT_* */
    uint32_t object_kind; /* BLKREPL_OBJECT_* */
    uint32_t side;        /* BLKREPL_SIDE_*, 0: none */
    uint64_t object_id;
    uint64_t offset;
    uint64_t bytes;
    uint64_t count; /* how many occurrences this delivery stands for, >= 1 */
    int32_t error;  /* 0 or a negative code */
    uint32_t reserved0;
    void *user; /* of the object; NULL for a lane */
    void *reserved1;
} blkrepl_event;

/**
 * The host's event callback; one per context, given in its options.
 *
 * `fn` runs inside a poll.  It may call every function of the library but a
 * poll.  `release` runs last, exactly once: when the context is gone, or
 * before the call that was given the sink returns with an error.
 */
typedef struct blkrepl_event_sink {
    void (*fn)(void *user, const blkrepl_event *event);
    void *user;
    void (*release)(void *user);
} blkrepl_event_sink;

BLKREPL_END_DECLS

#endif
