/* SPDX-License-Identifier: MIT */
/* Every operation is followed by a comparison with a plain list. */
#include "data/interval.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define NODES_MAX 300
#define SMALL 5

/* The tree under test beside its oracle: the members, in no order. */
struct pair {
    struct interval_tree tree;
    struct interval node[NODES_MAX];
    bool member[NODES_MAX];
    uint64_t inserted[NODES_MAX]; /* when: the oracle's own sequence */
    uint64_t clock;
    size_t node_count;
    uint64_t seed;
    uint64_t random;
};

/* The nodes that a visit saw, in its order. */
struct seen {
    struct interval *node[NODES_MAX];
    size_t count;
    size_t stop_at; /* return false at this call, from 1; 0: never */
};

static uint64_t pair_random(struct pair *p, uint64_t below)
{
    p->random = p->random * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
    return (p->random >> 24) % below;
}

static void pair_init(struct pair *p, size_t node_count, uint64_t seed)
{
    memset(p, 0, sizeof *p);
    blkrepl__interval_tree_init(&p->tree, seed);
    p->node_count = node_count;
    p->seed = seed;
    p->random = seed;
}

static void pair_fail(const struct pair *p, const char *what)
{
    fail_msg("%s; %zu nodes, seed %llu", what, p->node_count, (unsigned long long)p->seed);
}

static bool note(struct interval *node, void *arg)
{
    struct seen *seen = arg;

    assert_true(seen->count < NODES_MAX);
    seen->node[seen->count++] = node;
    return seen->count != seen->stop_at;
}

/* Whether node a comes before node b, by the oracle's own clock. */
static bool naive_before(const struct pair *p, size_t a, size_t b)
{
    if (p->node[a].start != p->node[b].start) {
        return p->node[a].start < p->node[b].start;
    }
    return p->inserted[a] < p->inserted[b];
}

static bool naive_touches(const struct interval *node, uint64_t start, uint64_t end)
{
    uint64_t from = node->start > start ? node->start : start;
    uint64_t to = node->end < end ? node->end : end;

    return from < to; /* the common part is not empty */
}

/* A visit of start..end sees all members that touch it, each once, in order. */
static void pair_visit(const struct pair *p, uint64_t start, uint64_t end)
{
    struct seen seen = {.count = 0};
    size_t expected = 0;

    if (blkrepl__interval_visit(&p->tree, start, end, note, &seen) != NULL) {
        pair_fail(p, "a visit that was never stopped returned a node");
    }
    for (size_t i = 0; i < p->node_count; i++) {
        expected += p->member[i] && naive_touches(&p->node[i], start, end);
    }
    if (seen.count != expected) {
        pair_fail(p, "a visit saw too many or too few");
    }
    for (size_t i = 0; i < seen.count; i++) {
        size_t at = (size_t)(seen.node[i] - p->node);

        if (!p->member[at] || !naive_touches(seen.node[i], start, end)) {
            pair_fail(p, "a visit saw a wrong node");
        }
        if (i > 0 && !naive_before(p, (size_t)(seen.node[i - 1] - p->node), at)) {
            pair_fail(p, "a visit was out of order");
        }
    }
}

static void pair_compare(const struct pair *p)
{
    const char *reason = "";
    uint64_t members = 0;

    if (!blkrepl__interval_validate(&p->tree, &reason)) {
        pair_fail(p, reason);
    }
    for (size_t i = 0; i < p->node_count; i++) {
        members += p->member[i];
        if (p->member[i] != (p->node[i].sequence != 0)) {
            pair_fail(p, "a sequence number does not tell membership");
        }
    }
    if (members != p->tree.count) {
        pair_fail(p, "count differs");
    }
    pair_visit(p, 0, UINT64_MAX);
}

static void pair_insert(struct pair *p, size_t i, uint64_t start, uint64_t end)
{
    p->node[i].start = start;
    p->node[i].end = end;
    p->member[i] = true;
    p->inserted[i] = ++p->clock;
    blkrepl__interval_insert(&p->tree, &p->node[i]);
    if (p->node[i].sequence != p->clock) {
        pair_fail(p, "sequence numbers are not given in order");
    }
    pair_compare(p);
}

static void pair_remove(struct pair *p, size_t i)
{
    p->member[i] = false;
    blkrepl__interval_remove(&p->tree, &p->node[i]);
    pair_compare(p);
}

static void interval_empty_tree_visits_nothing(void **state)
{
    struct pair p;

    (void)state;
    pair_init(&p, 1, 0);
    pair_compare(&p);
    pair_visit(&p, 0, 1);
    pair_insert(&p, 0, 5, 6);
    pair_remove(&p, 0);
    pair_visit(&p, 5, 6);
    assert_null(p.tree.root);
}

static void interval_touching_ends_do_not_overlap(void **state)
{
    struct pair p;
    struct seen seen = {.count = 0};

    (void)state;
    pair_init(&p, 1, 0);
    pair_insert(&p, 0, 10, 20);
    blkrepl__interval_visit(&p.tree, 0, 10, note, &seen);
    blkrepl__interval_visit(&p.tree, 20, 30, note, &seen);
    assert_int_equal(seen.count, 0);
    blkrepl__interval_visit(&p.tree, 0, 11, note, &seen);
    blkrepl__interval_visit(&p.tree, 19, 30, note, &seen);
    blkrepl__interval_visit(&p.tree, 12, 13, note, &seen);
    blkrepl__interval_visit(&p.tree, 0, UINT64_MAX, note, &seen);
    assert_int_equal(seen.count, 4);
}

static void interval_visit_of_an_empty_range_sees_nothing(void **state)
{
    struct pair p;
    struct seen seen = {.count = 0};

    (void)state;
    pair_init(&p, 1, 0);
    pair_insert(&p, 0, 10, 20);
    blkrepl__interval_visit(&p.tree, 15, 15, note, &seen);
    blkrepl__interval_visit(&p.tree, 16, 15, note, &seen);
    assert_int_equal(seen.count, 0);
}

static void interval_equal_ranges_come_in_order_of_insertion(void **state)
{
    struct pair p;
    struct seen seen = {.count = 0};

    (void)state;
    pair_init(&p, 100, 7);
    for (size_t i = 0; i < 100; i++) {
        pair_insert(&p, i, 10, 20);
    }
    blkrepl__interval_visit(&p.tree, 0, 100, note, &seen);
    assert_int_equal(seen.count, 100);
    for (size_t i = 0; i < 100; i++) {
        assert_ptr_equal(seen.node[i], &p.node[i]);
    }
    pair_remove(&p, 0); /* goes to the end when it comes back */
    pair_insert(&p, 0, 10, 20);
    seen.count = 0;
    blkrepl__interval_visit(&p.tree, 0, 100, note, &seen);
    assert_ptr_equal(seen.node[0], &p.node[1]);
    assert_ptr_equal(seen.node[99], &p.node[0]);
    assert_int_equal(p.node[0].sequence, 101);
}

static void interval_visit_stops_where_it_is_told(void **state)
{
    struct pair p;

    (void)state;
    pair_init(&p, 50, 3);
    for (size_t i = 0; i < 50; i++) {
        pair_insert(&p, i, i, i + 3);
    }
    for (size_t stop_at = 1; stop_at <= 50; stop_at++) {
        struct seen seen = {.stop_at = stop_at};
        struct interval *found = blkrepl__interval_visit(&p.tree, 0, 100, note, &seen);

        assert_ptr_equal(found, &p.node[stop_at - 1]);
        assert_int_equal(seen.count, stop_at);
    }
}

static void interval_may_span_all_64_bits(void **state)
{
    struct pair p;

    (void)state;
    pair_init(&p, 4, 3);
    pair_insert(&p, 0, 0, UINT64_MAX);
    pair_insert(&p, 1, UINT64_MAX - 1, UINT64_MAX);
    pair_insert(&p, 2, 0, 1);
    pair_insert(&p, 3, UINT64_C(1) << 63, (UINT64_C(1) << 63) + 1);
    pair_visit(&p, 0, 1);
    pair_visit(&p, UINT64_MAX - 1, UINT64_MAX);
    pair_visit(&p, 1, UINT64_MAX - 1);
    pair_remove(&p, 0);
    pair_visit(&p, 0, 1);
    pair_visit(&p, UINT64_MAX - 1, UINT64_MAX);
}

/* All ranges within 0..SMALL, each three times, under all queries. */
static void interval_all_small_ranges_and_queries(void **state)
{
    struct pair p;
    size_t n = 0;

    (void)state;
    pair_init(&p, 3 * SMALL * (SMALL + 1) / 2, 11);
    for (int copy = 0; copy < 3; copy++) {
        for (uint64_t start = 0; start < SMALL; start++) {
            for (uint64_t end = start + 1; end <= SMALL; end++) {
                pair_insert(&p, n++, start, end);
            }
        }
    }
    assert_int_equal(n, p.node_count);
    while (n-- > 0) {
        for (uint64_t start = 0; start <= SMALL; start++) {
            for (uint64_t end = start; end <= SMALL + 1; end++) {
                pair_visit(&p, start, end);
            }
        }
        pair_remove(&p, n);
    }
    assert_null(p.tree.root);
}

/* Every order in which four equal or nested ranges can be removed. */
static void interval_all_orders_of_removal(void **state)
{
    (void)state;
    for (unsigned order = 0; order < 4 * 4 * 4 * 4; order++) {
        unsigned pick[4] = {order % 4, order / 4 % 4, order / 16 % 4, order / 64};

        if ((1u << pick[0] | 1u << pick[1] | 1u << pick[2] | 1u << pick[3]) != 15) {
            continue;
        }
        for (uint64_t seed = 0; seed < 24; seed++) { /* other shapes of the tree */
            struct pair p;

            pair_init(&p, 4, seed);
            pair_insert(&p, 0, 4, 8);
            pair_insert(&p, 1, 4, 8);
            pair_insert(&p, 2, 0, 20);
            pair_insert(&p, 3, 5, 6);
            for (int i = 0; i < 4; i++) {
                pair_remove(&p, pick[i]);
                pair_visit(&p, 7, 9);
            }
        }
    }
}

static void random_run(size_t node_count, uint64_t space, uint64_t seed, unsigned operations)
{
    struct pair p;

    pair_init(&p, node_count, seed);
    for (unsigned op = 0; op < operations; op++) {
        size_t i = (size_t)pair_random(&p, node_count);
        uint64_t start = pair_random(&p, space);
        uint64_t length = 1 + pair_random(&p, pair_random(&p, 8) == 0 ? space : 4);

        if (p.member[i]) {
            pair_remove(&p, i);
        } else {
            pair_insert(&p, i, start, start + length);
        }
        for (int query = 0; query < 4; query++) {
            start = pair_random(&p, space + 10);
            pair_visit(&p, start, start + pair_random(&p, query == 0 ? space : 6));
        }
    }
}

static void interval_random_operations_match_the_oracle(void **state)
{
    (void)state;
    for (uint64_t seed = 0; seed < 10; seed++) {
        random_run(3, 6, seed, 500);
        random_run(20, 30, seed, 2000);
        random_run(NODES_MAX, 400, seed, 2000);
        random_run(NODES_MAX, UINT64_C(1) << 38, seed, 1000);
    }
}

static size_t depth(const struct interval *node)
{
    size_t left;
    size_t right;

    if (node == NULL) {
        return 0;
    }
    left = depth(node->left);
    right = depth(node->right);
    return 1 + (left > right ? left : right);
}

static void interval_depth_is_logarithmic_for_sorted_and_equal_starts(void **state)
{
    const size_t n = 100000;
    struct interval *node = calloc(n, sizeof *node);

    (void)state;
    assert_non_null(node);
    for (uint64_t step = 0; step <= 1; step++) {
        struct interval_tree tree;
        const char *reason = "";

        blkrepl__interval_tree_init(&tree, 0);
        for (size_t i = 0; i < n; i++) {
            node[i] = (struct interval){.start = step * i, .end = step * i + 2};
            blkrepl__interval_insert(&tree, &node[i]);
        }
        assert_true(depth(tree.root) < 60); /* 3.5 log2 n, 17 being the least */
        for (size_t i = 0; i < n; i += 2) {
            blkrepl__interval_remove(&tree, &node[i]);
        }
        assert_true(depth(tree.root) < 60);
        assert_true(blkrepl__interval_validate(&tree, &reason));
        assert_int_equal(tree.count, n / 2);
    }
    free(node);
}

static void interval_equal_calls_give_equal_trees(void **state)
{
    struct pair a;
    struct pair b;
    struct pair c;
    bool differs = false;

    (void)state;
    pair_init(&a, 100, 5);
    pair_init(&b, 100, 5);
    pair_init(&c, 100, 6);
    for (size_t i = 0; i < 100; i++) {
        pair_insert(&a, i, i * 37 % 100, i * 37 % 100 + 5);
        pair_insert(&b, i, i * 37 % 100, i * 37 % 100 + 5);
        pair_insert(&c, i, i * 37 % 100, i * 37 % 100 + 5);
        assert_int_equal(a.node[i].priority, b.node[i].priority);
        differs |= a.node[i].priority != c.node[i].priority;
    }
    assert_int_equal(a.tree.root - a.node, b.tree.root - b.node);
    assert_true(differs);
}

static void expect_invalid(const struct pair *p, const char *expected)
{
    const char *reason = "";

    assert_false(blkrepl__interval_validate(&p->tree, &reason));
    assert_string_equal(reason, expected);
}

static void interval_validate_notices_each_kind_of_damage(void **state)
{
    struct pair p;
    struct interval *root;
    struct interval saved;

    (void)state;
    pair_init(&p, 50, 5);
    for (size_t i = 0; i < 50; i++) {
        pair_insert(&p, i, i + 1, i + 3);
    }
    root = p.tree.root;
    saved = *root;
    root->end = root->start;
    expect_invalid(&p, "a range is empty");
    *root = saved;
    root->sequence = 51;
    expect_invalid(&p, "a sequence number was never given");
    root->sequence = 0;
    expect_invalid(&p, "a sequence number was never given");
    *root = saved;
    root->priority = 0;
    expect_invalid(&p, "a child is above its parent");
    *root = saved;
    root->end_max++;
    expect_invalid(&p, "end_max is not the largest end");
    *root = saved;
    root->start = 0;
    expect_invalid(&p, "the nodes are not in order");
    *root = saved;
    /* Wherever it is. */
    for (struct interval *node = root->left; node != NULL; node = node->left) {
        saved = *node;
        node->end = node->start;
        expect_invalid(&p, "a range is empty");
        *node = saved;
    }
    p.tree.count++;
    expect_invalid(&p, "count is not the number of nodes");
    p.tree.count--;
    pair_compare(&p);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(interval_empty_tree_visits_nothing),
        cmocka_unit_test(interval_touching_ends_do_not_overlap),
        cmocka_unit_test(interval_visit_of_an_empty_range_sees_nothing),
        cmocka_unit_test(interval_equal_ranges_come_in_order_of_insertion),
        cmocka_unit_test(interval_visit_stops_where_it_is_told),
        cmocka_unit_test(interval_may_span_all_64_bits),
        cmocka_unit_test(interval_all_small_ranges_and_queries),
        cmocka_unit_test(interval_all_orders_of_removal),
        cmocka_unit_test(interval_random_operations_match_the_oracle),
        cmocka_unit_test(interval_depth_is_logarithmic_for_sorted_and_equal_starts),
        cmocka_unit_test(interval_equal_calls_give_equal_trees),
        cmocka_unit_test(interval_validate_notices_each_kind_of_damage),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
