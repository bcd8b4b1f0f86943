/* SPDX-License-Identifier: MIT */
/* event.h - events on their way to the host: one slot per object and type. */
#ifndef BLKREPL_CORE_EVENT_H
#define BLKREPL_CORE_EVENT_H

#include "base/list.h"
#include <libblkrepl/event.h>

struct event_slot {
    struct list link; /* on its lane's list while the event waits */
    blkrepl_event event;
};

/* Queue `event`, or merge it with the one that waits in the slot. */
void blkrepl__event_post(struct list *queue, struct event_slot *slot, const blkrepl_event *event);

/* Take the first event off the queue; false if there is none. */
bool blkrepl__event_take(struct list *queue, blkrepl_event *out);

/* Drop what waits in the slot. */
void blkrepl__event_drop(struct event_slot *slot);

#endif
