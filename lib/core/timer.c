/* SPDX-License-Identifier: MIT */
/* timer.c - a sorted list of deadlines. */
#include "core/timer.h"

#include <libblkrepl/context.h>

void blkrepl__timer_list_init(struct timer_list *list)
{
    list_init(&list->timers);
    list->last_id = 0;
}

void blkrepl__timer_init(struct timer_list *list, struct timer *timer,
                         void (*expired)(struct timer *timer))
{
    *timer = (struct timer){.id = ++list->last_id, .expired = expired};
}

static bool timer_before(const struct timer *a, const struct timer *b)
{
    return a->deadline_ns != b->deadline_ns ? a->deadline_ns < b->deadline_ns : a->id < b->id;
}

void blkrepl__timer_set(struct timer_list *list, struct timer *timer, uint64_t deadline_ns)
{
    struct list *at;

    blkrepl__timer_clear(timer);
    timer->deadline_ns = deadline_ns;
    at = list->timers.next;
    while (at != &list->timers && timer_before(CONTAINER_OF(at, struct timer, link), timer)) {
        at = at->next;
    }
    list_append(at, &timer->link); /* before `at` */
}

void blkrepl__timer_clear(struct timer *timer)
{
    list_unlink(&timer->link);
}

uint64_t blkrepl__timer_next(const struct timer_list *list)
{
    if (list_empty(&list->timers)) {
        return BLKREPL_FOREVER;
    }
    return CONTAINER_OF(list->timers.next, struct timer, link)->deadline_ns;
}

void blkrepl__timer_run(struct timer_list *list, uint64_t now_ns, uint32_t most)
{
    while (most-- > 0) {
        uint64_t next = blkrepl__timer_next(list);
        struct timer *timer;

        /* FOREVER, or no timer at all, is never due, whatever the clock says. */
        if (next == BLKREPL_FOREVER || next > now_ns) {
            return;
        }
        timer = CONTAINER_OF(list->timers.next, struct timer, link);
        blkrepl__timer_clear(timer);
        timer->expired(timer);
    }
}
