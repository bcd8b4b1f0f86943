/* SPDX-License-Identifier: MIT */
/* pool.c - request slots.
 *
 * Fresh slots are handed out in order and freed ones are preferred, last in
 * first out: memory that was never needed is never touched. */
#include "core/pool.h"

void blkrepl__request_pool_init(struct request_pool *pool, struct request *slots, uint32_t first,
                                uint32_t count)
{
    *pool = (struct request_pool){.slots = slots + first, .first = first, .count = count};
    list_init(&pool->free);
    CHECK(first + (uint64_t)count <= REQUEST_INDEX_MASK + 1);
}

struct request *blkrepl__request_take(struct request_pool *pool)
{
    struct list *link = list_pop(&pool->free);
    struct request *request;

    if (link != NULL) {
        request = CONTAINER_OF(link, struct request, link);
    } else if (pool->touched < pool->count) {
        request = &pool->slots[pool->touched];
        request->index = pool->first + pool->touched++;
    } else {
        return NULL;
    }
    pool->used++;
    request->io = (blkrepl_io){.opcode = 0};
    atomic_store_explicit(&request->awaited, false, memory_order_relaxed);
    return request;
}

void blkrepl__request_put(struct request_pool *pool, struct request *request)
{
    CHECK(atomic_load_explicit(&request->live_id, memory_order_relaxed) == 0);
    CHECK(!request->queued);
    pool->used--;
    list_prepend(&pool->free, &request->link);
}

uint64_t blkrepl__request_new_id(struct request *request)
{
    request->generation++;
    return request->generation << REQUEST_INDEX_BITS | request->index;
}
