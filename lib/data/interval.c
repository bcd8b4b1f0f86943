/* SPDX-License-Identifier: MIT */
/* interval.c - a set of half-open ranges, as a treap.
 *
 * In order of (start, sequence) the tree is a search tree; by priority it is a
 * heap, no child above its parent.  Priorities are random, so the expected
 * depth, and with it the depth of the recursions below, is O(log n) whatever
 * the order of insertion. */
#include "data/interval.h"

#include "base/checked.h"

#include <string.h>

static bool interval_less(const struct interval *a, const struct interval *b)
{
    return a->start != b->start ? a->start < b->start : a->sequence < b->sequence;
}

/* Work out end_max again after a change below. */
static void interval_refresh(struct interval *node)
{
    node->end_max = node->end;
    if (node->left != NULL) {
        node->end_max = max_u64(node->end_max, node->left->end_max);
    }
    if (node->right != NULL) {
        node->end_max = max_u64(node->end_max, node->right->end_max);
    }
}

/* A step of a Weyl sequence, mixed so that all its bits are good. */
static uint32_t interval_random(struct interval_tree *tree)
{
    uint64_t x = tree->random += UINT64_C(0x9e3779b97f4a7c15);

    x = (x ^ (x >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    x = (x ^ (x >> 27)) * UINT64_C(0x94d049bb133111eb);
    return (uint32_t)(x >> 32);
}

/* Divide a tree into what comes before `key` and what comes after it. */
static void interval_split(struct interval *root, const struct interval *key,
                           struct interval **before, struct interval **after)
{
    if (root == NULL) {
        *before = NULL;
        *after = NULL;
        return;
    }
    if (interval_less(root, key)) {
        *before = root;
        interval_split(root->right, key, &root->right, after);
    } else {
        *after = root;
        interval_split(root->left, key, before, &root->left);
    }
    interval_refresh(root);
}

/* Make one tree of two, where all of `before` comes before all of `after`. */
static struct interval *interval_join(struct interval *before, struct interval *after)
{
    struct interval *root;

    if (before == NULL || after == NULL) {
        return before != NULL ? before : after;
    }
    if (before->priority >= after->priority) {
        root = before;
        root->right = interval_join(before->right, after);
    } else {
        root = after;
        root->left = interval_join(before, after->left);
    }
    interval_refresh(root);
    return root;
}

/* Take `node` out of the tree below `root`; the new root of that tree. */
static struct interval *interval_without(struct interval *root, const struct interval *node)
{
    ALWAYS_CHECK(root != NULL);
    if (root == node) {
        return interval_join(root->left, root->right);
    }
    if (interval_less(node, root)) {
        root->left = interval_without(root->left, node);
    } else {
        root->right = interval_without(root->right, node);
    }
    interval_refresh(root);
    return root;
}

void blkrepl__interval_tree_init(struct interval_tree *tree, uint64_t seed)
{
    memset(tree, 0, sizeof *tree);
    tree->random = seed;
}

void blkrepl__interval_insert(struct interval_tree *tree, struct interval *node)
{
    struct interval **link = &tree->root;

    CHECK(node->start < node->end);
    CHECK(node->sequence == 0);
    node->sequence = ++tree->sequence;
    node->priority = interval_random(tree);
    while (*link != NULL && (*link)->priority >= node->priority) {
        struct interval *above = *link;

        above->end_max = max_u64(above->end_max, node->end);
        link = interval_less(node, above) ? &above->left : &above->right;
    }
    interval_split(*link, node, &node->left, &node->right);
    interval_refresh(node);
    *link = node;
    tree->count++;
}

void blkrepl__interval_remove(struct interval_tree *tree, struct interval *node)
{
    CHECK(node->sequence != 0);
    tree->root = interval_without(tree->root, node);
    node->sequence = 0;
    node->left = NULL;
    node->right = NULL;
    tree->count--;
}

struct interval_query {
    uint64_t start;
    uint64_t end;
    bool (*visit)(struct interval *node, void *arg);
    void *arg;
};

static struct interval *interval_search(struct interval *node, const struct interval_query *query)
{
    /* Nothing at or below a node can overlap if all of it ends before. */
    while (node != NULL && node->end_max > query->start) {
        struct interval *found = interval_search(node->left, query);

        if (found != NULL) {
            return found;
        }
        if (node->start >= query->end) {
            return NULL; /* nor can anything further to the right */
        }
        if (node->end > query->start && !query->visit(node, query->arg)) {
            return node;
        }
        node = node->right;
    }
    return NULL;
}

struct interval *blkrepl__interval_visit(const struct interval_tree *tree, uint64_t start,
                                         uint64_t end,
                                         bool (*visit)(struct interval *node, void *arg), void *arg)
{
    struct interval_query query = {start, end, visit, arg};

    return start < end ? interval_search(tree->root, &query) : NULL;
}

/* What is wrong with one node, seen from it and its children; NULL if nothing. */
static const char *interval_wrong(const struct interval_tree *tree, const struct interval *node)
{
    const struct interval *child[2] = {node->left, node->right};
    uint64_t end_max = node->end;

    if (node->start >= node->end) {
        return "a range is empty";
    }
    if (node->sequence == 0 || node->sequence > tree->sequence) {
        return "a sequence number was never given";
    }
    for (size_t i = 0; i < ARRAY_COUNT(child); i++) {
        if (child[i] != NULL && child[i]->priority > node->priority) {
            return "a child is above its parent";
        }
        end_max = child[i] != NULL ? max_u64(end_max, child[i]->end_max) : end_max;
    }
    return end_max != node->end_max ? "end_max is not the largest end" : NULL;
}

/* Look at all nodes in order, counting them; *last is the node before. */
static const char *interval_walk(const struct interval_tree *tree, const struct interval *node,
                                 const struct interval **last, uint64_t *count)
{
    const char *wrong = NULL;

    for (; node != NULL && wrong == NULL; node = node->right) {
        wrong = interval_walk(tree, node->left, last, count);
        if (wrong == NULL) {
            wrong = interval_wrong(tree, node);
        }
        if (wrong == NULL && *last != NULL && !interval_less(*last, node)) {
            wrong = "the nodes are not in order";
        }
        *last = node;
        (*count)++;
    }
    return wrong;
}

bool blkrepl__interval_validate(const struct interval_tree *tree, const char **reason)
{
    const struct interval *last = NULL;
    uint64_t count = 0;
    const char *wrong = interval_walk(tree, tree->root, &last, &count);

    if (wrong == NULL && count != tree->count) {
        wrong = "count is not the number of nodes";
    }
    if (wrong != NULL) {
        *reason = wrong;
    }
    return wrong == NULL;
}
