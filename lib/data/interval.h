/* SPDX-License-Identifier: MIT */
/* interval.h - a set of half-open ranges that may overlap; finds all that touch
 * a given range.
 *
 * An intrusive treap ordered by (start, sequence), each node knowing the
 * largest end below it.  Equal ranges are allowed.  Nodes belong to the caller.
 * Insert, remove and find are O(log n) expected; O(1) for an empty tree.
 * Priorities come from a seeded generator, so equal calls give equal trees. */
#ifndef BLKREPL_DATA_INTERVAL_H
#define BLKREPL_DATA_INTERVAL_H

#include "base/compiler.h"

struct interval {
    uint64_t start;
    uint64_t end; /* > start */
    /* Changed by the tree only. */
    uint64_t sequence; /* order of insertion, from 1; 0: in no tree */
    uint64_t end_max;
    struct interval *left;
    struct interval *right;
    uint32_t priority;
};

struct interval_tree {
    struct interval *root;
    uint64_t sequence;
    uint64_t random;
    uint64_t count;
};

void blkrepl__interval_tree_init(struct interval_tree *tree, uint64_t seed);

/* node->start < node->end, set by the caller; gets the next sequence number. */
void blkrepl__interval_insert(struct interval_tree *tree, struct interval *node);
void blkrepl__interval_remove(struct interval_tree *tree, struct interval *node);

/* Call visit for every range that overlaps start..end, in the order of the
 * tree, until it returns false.  visit must not change the tree.
 * Returns: the node at which visit returned false; NULL if none did. */
struct interval *blkrepl__interval_visit(const struct interval_tree *tree, uint64_t start,
                                         uint64_t end,
                                         bool (*visit)(struct interval *node, void *arg),
                                         void *arg);

bool blkrepl__interval_validate(const struct interval_tree *tree, const char **reason);

#endif
