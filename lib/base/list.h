/* SPDX-License-Identifier: MIT */
/* list.h - an intrusive doubly linked list with a head; FIFO by convention.
 *
 * A link that is on no list has next == NULL. */
#ifndef BLKREPL_BASE_LIST_H
#define BLKREPL_BASE_LIST_H

#include "base/compiler.h"

struct list {
    struct list *next;
    struct list *prev;
};

static inline void list_init(struct list *head)
{
    head->next = head;
    head->prev = head;
}

static inline bool list_empty(const struct list *head)
{
    return head->next == head;
}

static inline bool list_linked(const struct list *link)
{
    return link->next != NULL;
}

static inline void list_append(struct list *head, struct list *link)
{
    CHECK(!list_linked(link));
    link->next = head;
    link->prev = head->prev;
    head->prev->next = link;
    head->prev = link;
}

static inline void list_prepend(struct list *head, struct list *link)
{
    list_append(head->next, link);
}

static inline void list_remove(struct list *link)
{
    CHECK(list_linked(link));
    link->prev->next = link->next;
    link->next->prev = link->prev;
    link->next = NULL;
    link->prev = NULL;
}

/* Take a link off its list if it is on one. */
static inline void list_unlink(struct list *link)
{
    if (list_linked(link)) {
        list_remove(link);
    }
}

/* The first link, taken off; NULL if there is none. */
static inline struct list *list_pop(struct list *head)
{
    struct list *first = head->next;

    if (first == head) {
        return NULL;
    }
    list_remove(first);
    return first;
}

/* Move all links of `from` to the end of `to`. */
static inline void list_splice(struct list *to, struct list *from)
{
    if (list_empty(from)) {
        return;
    }
    from->next->prev = to->prev;
    to->prev->next = from->next;
    from->prev->next = to;
    to->prev = from->prev;
    list_init(from);
}

#endif
