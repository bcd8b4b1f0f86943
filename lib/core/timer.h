/* SPDX-License-Identifier: MIT */
/* timer.h - deadlines, ordered by (deadline, order of creation).
 *
 * There are few of them (one or two a job), so a sorted list serves. */
#ifndef BLKREPL_CORE_TIMER_H
#define BLKREPL_CORE_TIMER_H

#include "base/list.h"

struct timer {
    struct list link;
    uint64_t deadline_ns;
    uint64_t id; /* sequential; breaks ties */
    void (*expired)(struct timer *timer);
};

struct timer_list {
    struct list timers;
    uint64_t last_id;
};

void blkrepl__timer_list_init(struct timer_list *list);
void blkrepl__timer_init(struct timer_list *list, struct timer *timer,
                         void (*expired)(struct timer *timer));

/* Set, or set anew. */
void blkrepl__timer_set(struct timer_list *list, struct timer *timer, uint64_t deadline_ns);
void blkrepl__timer_clear(struct timer *timer);

/* The first deadline; BLKREPL_FOREVER if there is none. */
uint64_t blkrepl__timer_next(const struct timer_list *list);

/* Run what has expired by now_ns, at most `most` of them.  A timer is off
 * before it runs. */
void blkrepl__timer_run(struct timer_list *list, uint64_t now_ns, uint32_t most);

#endif
