/* SPDX-License-Identifier: MIT */
/* range.h - the in-flight ranges of a leaf: who waits for whom.
 *
 * A range is of a write (guest write, zeroes, discard; through or beside) or of
 * a copy (a job that reads old data).  A write is GIVEN while the backend or
 * the host has it; before that it waits for its turn or for taps.  A copy is
 * active while it may be reading.
 *
 * The rules, which make the wait graph free of cycles:
 *   - a write waits for every earlier overlapping write, given or not;
 *   - a write waits for active copies that overlap;
 *   - a copy waits for overlapping writes that are given, and for writes that
 *     were given before its job's point in time until they have ended
 *     altogether; never for a write that waits itself.
 * Ranges are rounded to the request alignment. */
#ifndef BLKREPL_BLOCK_RANGE_H
#define BLKREPL_BLOCK_RANGE_H

#include "base/list.h"
#include "core/context.h"
#include "data/interval.h"

enum range_kind {
    RANGE_WRITE,
    RANGE_COPY
};

struct range {
    struct interval node;
    enum range_kind kind;
    bool given;          /* WRITE: given; COPY: active */
    uint64_t given_at;   /* WRITE: the instant when it was first given; 0: never */
    const void *owner;   /* COPY: its job's engine */
    struct list waiters; /* struct ready */
    /* COPY: a guest begins to wait for it; NULL: it cannot be hastened. */
    void (*hasten)(struct range *range);
};

struct ranges {
    struct interval_tree tree;
    struct blkrepl_context *ctx;
};

void blkrepl__ranges_init(struct ranges *ranges, struct blkrepl_context *ctx);

/* Add start..end (start < end).  kind, owner set; not given. */
void blkrepl__range_add(struct ranges *ranges, struct range *range, uint64_t start, uint64_t end);
/* Take it out and wake who waits for it. */
void blkrepl__range_end(struct ranges *ranges, struct range *range);
/* Wake who waits for it, because it is given no longer. */
void blkrepl__range_wake(struct ranges *ranges, struct range *range);

static inline bool range_live(const struct range *range)
{
    return range->node.sequence != 0;
}

/* The latest write that was added before `range`, a write, and overlaps it. */
struct range *blkrepl__range_earlier_write(const struct ranges *ranges, const struct range *range);

/* An active copy that overlaps. */
struct range *blkrepl__range_active_copy(const struct ranges *ranges, uint64_t start, uint64_t end);

/* A copy of `owner` that overlaps, active or not. */
struct range *blkrepl__range_copy_of(const struct ranges *ranges, const void *owner, uint64_t start,
                                     uint64_t end);

/* A write that a copy of a job with this point in time has to wait for. */
struct range *blkrepl__range_copy_blocker(const struct ranges *ranges, uint64_t start, uint64_t end,
                                          uint64_t attached_at);

static inline void range_wait(struct range *range, struct ready *ready)
{
    list_append(&range->waiters, &ready->link);
}

#endif
