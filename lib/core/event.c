/* SPDX-License-Identifier: MIT */
/* event.c - events on their way to the host. */
#include "core/event.h"

void blkrepl__event_post(struct list *queue, struct event_slot *slot, const blkrepl_event *event)
{
    uint64_t count = 1;

    if (list_linked(&slot->link)) {
        count += slot->event.count;
    } else {
        list_append(queue, &slot->link);
    }
    slot->event = *event;
    slot->event.struct_size = sizeof slot->event;
    slot->event.count = count;
}

bool blkrepl__event_take(struct list *queue, blkrepl_event *out)
{
    struct list *link = list_pop(queue);

    if (link == NULL) {
        return false;
    }
    *out = CONTAINER_OF(link, struct event_slot, link)->event;
    return true;
}

void blkrepl__event_drop(struct event_slot *slot)
{
    list_unlink(&slot->link);
}
