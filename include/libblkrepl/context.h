/* SPDX-License-Identifier: MIT */
/**
 * @file context.h
 * The context: owner of all objects, the poll functions, the host's hooks.
 *
 * The library starts no thread of its own (but the pool of the file backend)
 * and has no event loop: it moves when it is called.  A call records what
 * happened, advances what became ready, hands requests to backends, and
 * returns; callbacks run only in blkrepl_poll().  No lock is held while a
 * backend or a callback of the host runs.
 *
 * Threads: any thread may call any function at any time, also from inside a
 * callback or a backend's submit; only a poll of the same context is refused
 * there, with -EDEADLK, and freeing it, with -EBUSY.
 *
 * Which code of the host runs where:
 *
 *     get_info   in the call that opens the image
 *     submit     of guest requests, and of the reads that a guest write has to
 *                wait for: in any call of guest I/O or bracket (begin, end,
 *                cancel), in job_start, _cancel and the like, and in polls; of
 *                a job's other requests: in polls of lane 0
 *     cancel     in blkrepl_job_cancel() and its like, polls, context_free
 *     close      in blkrepl_image_close(), polls of lane 0, context_free
 *     callbacks, events, log    in polls of their lane
 *     release    after its callback; of a call that was rejected or answered at
 *                once, in that call; of an object's user, in a poll of lane 0
 *     hooks      anywhere, also with the library's lock held
 *
 * So do not hold a lock across a call that your own submit, cancel, close or
 * release takes.
 *
 * Lanes: requests, polls and callbacks belong to a lane.  Lane 0 is the control
 * lane: jobs, events and timers.  A host with n queue threads asks for n + 1
 * lanes and uses 1..n for guest I/O, one for each thread: a request is given to
 * the backend by the thread that makes it or by a poll of its lane, and its
 * callback runs in a poll of its lane.  So does the read of old data that a
 * guest's write needs while a backup runs; a job's other requests go out in
 * polls of lane 0.  With one lane, 0 serves guest I/O as well.  Any number of
 * threads may use one lane at once.
 *
 * A host must see to it that lane 0 is polled: by a thread that calls
 * blkrepl_poll() with a timeout, or from an event loop by means of
 * blkrepl_poll_fd() and blkrepl_poll_arm().  Until then its callbacks wait and
 * jobs make no progress.  The callbacks of another lane wait until that is
 * polled; nobody else does.  What another lane, or a job, waits for is not left
 * to a lane that may not be polled: it goes out with lane 0, and io->lane says
 * so.
 */
#ifndef LIBBLKREPL_CONTEXT_H
#define LIBBLKREPL_CONTEXT_H

#include <libblkrepl/base.h>
#include <libblkrepl/event.h>

BLKREPL_BEGIN_DECLS

/** A timeout or deadline that never comes. */
#define BLKREPL_FOREVER 0xffffffffffffffff

/**
 * The host's memory functions; all are required.
 *
 * They may be called from any thread, also with the library's lock held: they
 * must not block for long and must not call the library.  zalloc returns
 * zeroed memory; memory that is never touched should cost nothing (bitmaps are
 * allocated whole).  buffer_alloc returns I/O buffers aligned to `align`, a
 * power of two.  They return NULL when there is no memory.
 */
typedef struct blkrepl_allocator {
    uint32_t struct_size; /* sizeof *this */
    uint32_t flags;       /* 0 */
    void *user;
    void *(*alloc)(void *user, size_t bytes);
    void *(*zalloc)(void *user, size_t bytes);
    void *(*realloc)(void *user, void *memory, size_t bytes);
    void (*free)(void *user, void *memory);
    void *(*buffer_alloc)(void *user, size_t align, size_t bytes);
    void (*buffer_free)(void *user, void *memory, size_t bytes);
    void *reserved0;
} blkrepl_allocator;

/** How much a log line matters. */
enum blkrepl_log_level {
    BLKREPL_LOG_ERROR = 1,
    BLKREPL_LOG_WARNING = 2,
    BLKREPL_LOG_INFO = 3,
    BLKREPL_LOG_DEBUG = 4
};

/**
 * The host's clock, entropy and log; each may be NULL.
 *
 * clock_ns: a clock in nanoseconds, by default CLOCK_MONOTONIC.  Time never
 *   runs backwards inside the library whatever this returns.  With a clock of
 *   the host, blkrepl_poll() takes timeout 0 only.
 * entropy: fill `bytes` random bytes, return 0 or a negative code; by default
 *   the system's.  Same calls, completions, clock and entropy give the same
 *   outcome.
 * log: one line, without a line feed; called by polls of lane 0, no lock held;
 *   it may call the library.  By default nothing is logged.
 *
 * clock_ns and entropy may be called with the library's lock held: they must
 * not block and must not call the library.
 */
typedef struct blkrepl_hooks {
    uint32_t struct_size; /* sizeof *this */
    uint32_t flags;       /* 0 */
    void *user;
    uint64_t (*clock_ns)(void *user);
    int (*entropy)(void *user, void *out, size_t bytes);
    void (*log)(void *user, uint32_t level, const char *line);
} blkrepl_hooks;

/** Options of a context. */
typedef struct blkrepl_context_options {
    uint32_t struct_size;               /* sizeof *this */
    uint32_t flags;                     /* 0 */
    uint32_t lane_count;                /* 0: 1; at most 256 */
    uint32_t requests_max;              /* guest requests and brackets at once, per
                                         * lane; 0: 1024; at most 65536 */
    uint32_t job_requests_max;          /* requests of all jobs at once; 0: 8192; at
                                         * most 65536 */
    uint32_t callbacks_max;             /* callbacks per poll; 0: 256; at most 65536 */
    uint32_t completions_max;           /* completions handled per call; 0: 256; at
                                         * most 65536 */
    uint32_t copies_max;                /* copies started per poll; 0: 16; at most
                                         * 65536 */
    uint32_t pool_threads_max;          /* of the file backend; 0: one per CPU, at
                                         * most 4; at most 64 */
    uint32_t reserved0;                 /* 0 */
    uint64_t memory_bytes_max;          /* buffers of all jobs together; 0: 1 GiB */
    const blkrepl_allocator *allocator; /* NULL: malloc; copied */
    const blkrepl_hooks *hooks;         /* NULL: defaults; copied */
    blkrepl_event_sink on_event;        /* fn NULL: events are discarded */
    void *reserved1;                    /* 0 */
} blkrepl_context_options;

/**
 * Create a context.
 *
 * Ownership:  *out belongs to the caller until blkrepl_context_free() returns
 *             0; option structs are copied.  What the hooks' `user` points to
 *             must live as long.
 * Callbacks:  on_event and hooks->log, from polls.
 * Thread:     any.
 * Returns:    0; -EINVAL bad option (a hook struct without a required
 *             function, a limit out of range, more than 2^24 requests of all
 *             lanes and jobs together, out is NULL); -ENOMEM; -EMFILE or
 *             another errno when no file
 *             descriptor can be had; the entropy hook's code;
 *             BLKREPL_ERR_VERSION.
 * Since:      0.1
 */
BLKREPL_API int blkrepl_context_create(const blkrepl_context_options *options,
                                       blkrepl_context **out);

/**
 * Close a context and free it when nothing is left in it.
 *
 * The first call closes: from then on only polls and their like,
 * blkrepl_context_now(), blkrepl_io_complete(), blkrepl_write_end(),
 * blkrepl_write_cancel(), blkrepl_job_cancel(), queries, blkrepl_image_close(),
 * blkrepl_job_free(), the functions of bitmap.h but create, add and transact, those
 * of throttle.h but create and blkrepl_image_set_throttle(), and this function are
 * accepted; everything else answers -ESHUTDOWN.
 * Jobs are cancelled, the backends' cancel is called for requests
 * in flight, and blocking polls return.  Guest requests and brackets that wait
 * go on; those that waited for a job or a throttle are released.
 *
 * If nobody polls, this call also polls, so waiting callbacks run inside it.
 *
 * While something remains (an open handle, a request or bracket that has not
 * ended, another thread inside a call) it answers -EBUSY and
 * blkrepl_error_message() names what; call it again, polling between, for as
 * long as you are willing to wait for your backends:
 *
 *     for (int i = 0; i < 10000 && blkrepl_context_free(ctx) == -EBUSY; i++) {
 *         blkrepl_poll(ctx, 0, 1000000);
 *     }
 *
 * It never waits for a backend itself.  A host that gives up leaks the context
 * and must keep the memory of its backends and buffers.  Only threads that are
 * already inside a call are noticed: stop your own pollers and submitters
 * first.  A backend may be inside blkrepl_io_complete().  With NULL it does
 * nothing.
 *
 * Ownership:  takes the context when it returns 0.
 * Callbacks:  what waits: completions, events, releases.
 * Thread:     any; not inside a callback, submit, cancel, close or hook.
 * Returns:    0; -EBUSY something remains, or called from inside a callback.
 * Since:      0.1
 */
BLKREPL_API int blkrepl_context_free(blkrepl_context *ctx);

/**
 * Read the context's clock.
 *
 * It is the clock of deadlines: CLOCK_MONOTONIC, or the host's hook, never
 * running backwards.
 *
 * Thread:     any.
 * Returns:    nanoseconds; 0 if ctx is NULL.
 * Since:      0.1
 */
BLKREPL_API uint64_t blkrepl_context_now(blkrepl_context *ctx);

/**
 * Run the callbacks of a lane and advance the library.
 *
 * Handles recorded completions, expired timers and, on lane 0, jobs; hands the
 * lane's requests to backends; runs waiting callbacks, at most callbacks_max
 * of them.  Then it returns; with timeout_ns > 0 and nothing to report it
 * first sleeps until there is, or until the time is over.  It may also return
 * 0 early, so call it in a loop; blkrepl_poll_wake() makes it return.  While a
 * blocking poll has nothing to do it may take part in the background work of
 * the file backend, where that will not block.
 *
 * One thread polls a lane at a time; a second one gets -EBUSY at once, so a
 * host with many threads gives lane 0 a thread of its own.
 *
 * Callbacks:  completions and events of the lane; the log.
 * Thread:     any; not inside a callback, submit, cancel, close or hook.
 * Returns:    the number of callbacks run (events included, 0 or more);
 *             -EBUSY another thread polls this lane; -EDEADLK called from
 *             inside a callback, submit, cancel, close or log; -EINVAL no such
 *             lane, or timeout_ns > 0 with a clock hook.
 * Since:      0.1
 */
BLKREPL_API int blkrepl_poll(blkrepl_context *ctx, uint32_t lane, uint64_t timeout_ns);

/**
 * Prepare to sleep on the lane's file descriptor.
 *
 * Call it right before sleeping.  1 means that there is work now: poll instead.
 * 0 means: sleep until the descriptor is readable or the clock reaches
 * *deadline_ns, then poll.  After a 0 the descriptor becomes readable at the
 * next event, or when an earlier deadline appears, and stays so until the next
 * poll, which disarms and drains it.  Without arming it is not signalled, so a
 * host that polls anyway pays nothing.  To arm again without polling does no
 * harm.
 *
 * The thread that sleeps should be the one that polls the lane: a poll by
 * another thread disarms the sleeper.
 *
 * Thread:     any; not inside a hook.
 * Returns:    0 sleep; 1 poll; -EINVAL no such lane, or NULL.  *deadline_ns:
 *             absolute, by blkrepl_context_now(); BLKREPL_FOREVER if there is
 *             none.
 * Since:      0.1
 */
BLKREPL_API int blkrepl_poll_arm(blkrepl_context *ctx, uint32_t lane, uint64_t *deadline_ns);

/**
 * Get the file descriptor of a lane, for poll(2), epoll or an event loop.
 *
 * Only wait for it to become readable; do not read, write or close it.
 *
 * Ownership:  the context's; valid until blkrepl_context_free() returns 0.
 * Thread:     any.
 * Returns:    a descriptor >= 0; -EINVAL no such lane.
 * Since:      0.1
 */
BLKREPL_API int blkrepl_poll_fd(blkrepl_context *ctx, uint32_t lane);

/**
 * Make a sleeping poll of a lane return.
 *
 * The blocking poll that sleeps now, or else the next one, returns without
 * waiting; an armed descriptor becomes readable.  For a host that wants its
 * polling thread to look at something else, or to stop.
 *
 * Thread:     any, also inside callbacks, submit, cancel and close.
 * Returns:    0; -EINVAL no such lane.
 * Since:      0.1
 */
BLKREPL_API int blkrepl_poll_wake(blkrepl_context *ctx, uint32_t lane);

BLKREPL_END_DECLS

#endif
