/* SPDX-License-Identifier: MIT */
/* ratelimit.h - a leaky bucket: how long to wait so that a rate is kept.
 *
 * Work is taken first and paid afterwards: a piece larger than the bucket is
 * let through and makes the next one wait longer, so the average holds for any
 * piece size.  After idleness a burst may come, of a tenth of a second's worth
 * or of what was set. */
#ifndef BLKREPL_DATA_RATELIMIT_H
#define BLKREPL_DATA_RATELIMIT_H

#include "base/compiler.h"

struct ratelimit {
    uint64_t speed;    /* units per second; 0: unlimited */
    uint64_t free_ns;  /* the instant at which everything taken is paid */
    uint64_t fraction; /* and so many speed-ths of a ns, so no rounding adds up */
    uint64_t burst;    /* units; 0: a tenth of a second's worth */
};

/* Change the speed at `now_ns`; debt is forgiven, so that a raised limit acts
 * at once. */
void blkrepl__ratelimit_set(struct ratelimit *limit, uint64_t speed, uint64_t now_ns);

/* Change how much idleness earns at most, before or after a speed is set; 0: a
 * tenth of a second's worth, whatever the speed. */
void blkrepl__ratelimit_set_burst(struct ratelimit *limit, uint64_t units);

/* The earliest instant at which a piece may be taken: <= now_ns means now. */
uint64_t blkrepl__ratelimit_next(const struct ratelimit *limit, uint64_t now_ns);

/* Account for a piece. Overflow saturates. */
void blkrepl__ratelimit_take(struct ratelimit *limit, uint64_t units, uint64_t now_ns);

#endif
