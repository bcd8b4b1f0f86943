/* SPDX-License-Identifier: MIT */
/* range.c - the in-flight ranges of a leaf. */
#include "block/range.h"

void blkrepl__ranges_init(struct ranges *ranges, struct blkrepl_context *ctx)
{
    ranges->ctx = ctx;
    blkrepl__interval_tree_init(&ranges->tree, ctx->seed);
}

void blkrepl__range_add(struct ranges *ranges, struct range *range, uint64_t start, uint64_t end)
{
    range->node.start = start;
    range->node.end = end;
    range->given = false;
    range->given_at = 0;
    list_init(&range->waiters);
    blkrepl__interval_insert(&ranges->tree, &range->node);
}

void blkrepl__range_wake(struct ranges *ranges, struct range *range)
{
    list_splice(&ranges->ctx->ready, &range->waiters);
}

void blkrepl__range_end(struct ranges *ranges, struct range *range)
{
    blkrepl__interval_remove(&ranges->tree, &range->node);
    range->given = false;
    blkrepl__range_wake(ranges, range);
}

struct range_search {
    const struct range *self;
    const void *owner;
    uint64_t attached_at;
    struct range *best;
};

static struct range *range_of(struct interval *node)
{
    return CONTAINER_OF(node, struct range, node);
}

static bool range_keep_latest(struct interval *node, void *arg)
{
    struct range_search *search = arg;
    struct range *other = range_of(node);

    if (other->kind == RANGE_WRITE && node->sequence < search->self->node.sequence &&
        (search->best == NULL || node->sequence > search->best->node.sequence)) {
        search->best = other;
    }
    return true;
}

struct range *blkrepl__range_earlier_write(const struct ranges *ranges, const struct range *range)
{
    struct range_search search = {.self = range};

    if (LIKELY(ranges->tree.count == 1)) {
        return NULL;
    }
    blkrepl__interval_visit(&ranges->tree, range->node.start, range->node.end, range_keep_latest,
                            &search);
    return search.best;
}

static bool range_not_active_copy(struct interval *node, void *arg)
{
    const struct range *range = range_of(node);

    (void)arg;
    return range->kind != RANGE_COPY || !range->given;
}

struct range *blkrepl__range_active_copy(const struct ranges *ranges, uint64_t start, uint64_t end)
{
    struct interval *node;

    if (LIKELY(ranges->tree.count == 1)) {
        return NULL; /* the asking write itself */
    }
    node = blkrepl__interval_visit(&ranges->tree, start, end, range_not_active_copy, NULL);
    return node != NULL ? range_of(node) : NULL;
}

static bool range_not_copy_of(struct interval *node, void *arg)
{
    const struct range_search *search = arg;
    const struct range *range = range_of(node);

    return range->kind != RANGE_COPY || range->owner != search->owner;
}

struct range *blkrepl__range_copy_of(const struct ranges *ranges, const void *owner, uint64_t start,
                                     uint64_t end)
{
    struct range_search search = {.owner = owner};
    struct interval *node;

    node = blkrepl__interval_visit(&ranges->tree, start, end, range_not_copy_of, &search);
    return node != NULL ? range_of(node) : NULL;
}

static bool range_lets_copy_pass(struct interval *node, void *arg)
{
    const struct range_search *search = arg;
    const struct range *range = range_of(node);

    if (range->kind != RANGE_WRITE) {
        return true;
    }
    return !range->given && (range->given_at == 0 || range->given_at > search->attached_at);
}

struct range *blkrepl__range_copy_blocker(const struct ranges *ranges, uint64_t start, uint64_t end,
                                          uint64_t attached_at)
{
    struct range_search search = {.attached_at = attached_at};
    struct interval *node;

    node = blkrepl__interval_visit(&ranges->tree, start, end, range_lets_copy_pass, &search);
    return node != NULL ? range_of(node) : NULL;
}
