/* SPDX-License-Identifier: MIT */
/* copy_place.c - where the data of the point in time are, for those who read them. */
#include "job/copy.h"

#include "base/checked.h"

/* The task that has the cluster; NULL: none.  *next: the nearest start of one behind. */
static struct copy_task *place_task(const struct copy *copy, uint64_t offset, uint64_t *next)
{
    for (struct list *link = copy->active.next; link != &copy->active; link = link->next) {
        struct copy_task *task = CONTAINER_OF(link, struct copy_task, link);

        if (task->start <= offset && offset < task->end && task->state != COPY_CLEAN) {
            return task;
        }
        if (task->start > offset) {
            *next = min_u64(*next, task->start);
        }
    }
    return NULL;
}

/* Whether the cluster is in a map, and where the run ends that is like it. */
static bool place_in(const struct hbitmap *map, uint64_t bit, uint64_t *end)
{
    bool in;

    if (map->set_count == 0) {
        return false;
    }
    in = blkrepl__hbitmap_test(map, bit);
    *end = in ? blkrepl__hbitmap_next_clear(map, bit, *end)
              : blkrepl__hbitmap_next_set(map, bit, *end);
    return in;
}

enum copy_place blkrepl__copy_where(const struct copy *copy, uint64_t offset, uint64_t *end,
                                    struct copy_task **task)
{
    uint64_t cluster = copy->config.cluster_bytes;
    uint64_t size = image_bytes(copy->config.source);
    uint64_t bit = offset / cluster;
    uint64_t stop = copy->todo.bit_count;
    enum copy_place place = COPY_AT_TARGET;

    if (place_in(&copy->absent, bit, &stop) || place_in(&copy->bad, bit, &stop)) {
        place = COPY_NOWHERE;
    } else if (place_in(&copy->todo, bit, &stop)) {
        place = COPY_AT_SOURCE;
    }
    *end = stop < copy->todo.bit_count ? stop * cluster : size;
    if (place == COPY_AT_TARGET) {
        *task = place_task(copy, offset, end);
        if (*task != NULL) {
            *end = (*task)->end;
            place = COPY_AT_TASK;
        }
    }
    return place;
}

void blkrepl__copy_await(struct copy_task *task, struct ready *ready)
{
    list_append(&task->readers, &ready->link);
}

/* Who waits for a buffer may need none any more: those of start..end look again. */
static void place_wake_starved(struct copy *copy, uint64_t start, uint64_t end)
{
    struct list *next;

    for (struct list *link = copy->starved.next; link != &copy->starved; link = next) {
        struct guest *guest = CONTAINER_OF(link, struct guest, ready.link);

        next = link->next;
        if (guest->tap_start < end && start < guest->tap_end) {
            list_remove(link);
            list_append(&copy->job->ctx->ready, link);
        }
    }
}

void blkrepl__copy_forget(struct copy *copy, uint64_t first, uint64_t count)
{
    uint64_t cluster = copy->config.cluster_bytes;
    uint64_t at = first;

    while (at < first + count) {
        struct copy_task *task;
        uint64_t end;
        enum copy_place place = blkrepl__copy_where(copy, at * cluster, &end, &task);
        uint64_t next = min_u64((end + cluster - 1) / cluster, first + count);

        if (place == COPY_AT_SOURCE) {
            blkrepl__hbitmap_clear(&copy->todo, at, next - at);
        }
        if (place == COPY_AT_SOURCE || place == COPY_AT_TARGET) {
            blkrepl__hbitmap_set(&copy->absent, at, next - at);
        }
        at = next;
    }
    place_wake_starved(copy, first * cluster, (first + count) * cluster);
}

void blkrepl__copy_forget_rest(struct copy *copy)
{
    blkrepl__hbitmap_or(&copy->absent, &copy->todo);
    blkrepl__hbitmap_clear_all(&copy->todo);
    place_wake_starved(copy, 0, UINT64_MAX);
}
