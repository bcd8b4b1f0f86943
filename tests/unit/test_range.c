/* SPDX-License-Identifier: MIT */
#include "block/range.h"

#include "unit/rig.h"

#include "base/checked.h"

#define RANGES 40

struct bench {
    struct blkrepl_context ctx;
    struct ranges ranges;
};

static struct bench *bench_open(void)
{
    struct bench *b = calloc(1, sizeof *b);

    assert_non_null(b);
    list_init(&b->ctx.ready);
    b->ctx.seed = 42;
    blkrepl__ranges_init(&b->ranges, &b->ctx);
    return b;
}

static void add(struct bench *b, struct range *range, enum range_kind kind, uint64_t start,
                uint64_t end)
{
    *range = (struct range){.kind = kind};
    blkrepl__range_add(&b->ranges, range, start, end);
}

/* A write becomes given, at the next (even) instant if it was not given before;
 * odd ones are for points in time, so that none is both. */
static void give(struct bench *b, struct range *range)
{
    range->given = true;
    if (range->given_at == 0) {
        b->ctx.instant += 2;
        range->given_at = b->ctx.instant;
    }
}

static void range_write_waits_for_every_earlier_write_that_overlaps_given_or_not(void **state)
{
    struct bench *b = bench_open();
    struct range first;
    struct range second;
    struct range third;
    struct range beside;

    (void)state;
    add(b, &first, RANGE_WRITE, 0, 100);
    assert_null(blkrepl__range_earlier_write(&b->ranges, &first));
    add(b, &second, RANGE_WRITE, 50, 150);
    add(b, &beside, RANGE_WRITE, 150, 200);
    add(b, &third, RANGE_WRITE, 0, 200);
    give(b, &first);
    assert_ptr_equal(blkrepl__range_earlier_write(&b->ranges, &second), &first);
    assert_null(blkrepl__range_earlier_write(&b->ranges, &beside)); /* it only touches */
    assert_ptr_equal(blkrepl__range_earlier_write(&b->ranges, &third), &beside); /* the latest */
    blkrepl__range_end(&b->ranges, &beside);
    assert_ptr_equal(blkrepl__range_earlier_write(&b->ranges, &third), &second);
    blkrepl__range_end(&b->ranges, &second);
    assert_ptr_equal(blkrepl__range_earlier_write(&b->ranges, &third), &first);
    blkrepl__range_end(&b->ranges, &first);
    assert_null(blkrepl__range_earlier_write(&b->ranges, &third));
    blkrepl__range_end(&b->ranges, &third);
    free(b);
}

static void range_write_does_not_take_a_copy_for_a_write(void **state)
{
    struct bench *b = bench_open();
    struct range copy;
    struct range write;

    (void)state;
    add(b, &copy, RANGE_COPY, 0, 100);
    add(b, &write, RANGE_WRITE, 0, 100);
    copy.given = true;
    assert_null(blkrepl__range_earlier_write(&b->ranges, &write));
    free(b);
}

static void range_write_waits_for_active_copies_only(void **state)
{
    struct bench *b = bench_open();
    struct range copy;
    struct range write;

    (void)state;
    add(b, &write, RANGE_WRITE, 0, 100);
    give(b, &write);
    assert_null(blkrepl__range_active_copy(&b->ranges, 0, 100)); /* itself does not count */
    add(b, &copy, RANGE_COPY, 90, 200);
    assert_null(blkrepl__range_active_copy(&b->ranges, 0, 100));
    copy.given = true;
    assert_ptr_equal(blkrepl__range_active_copy(&b->ranges, 0, 100), &copy);
    assert_null(blkrepl__range_active_copy(&b->ranges, 0, 90));
    assert_null(blkrepl__range_active_copy(&b->ranges, 200, 300));
    free(b);
}

static void range_copy_waits_for_given_writes_never_for_one_that_waits(void **state)
{
    struct bench *b = bench_open();
    struct range write;

    (void)state;
    add(b, &write, RANGE_WRITE, 0, 100);
    assert_null(blkrepl__range_copy_blocker(&b->ranges, 0, 100, 5));
    b->ctx.instant = 10;
    give(b, &write);
    assert_ptr_equal(blkrepl__range_copy_blocker(&b->ranges, 0, 100, 5), &write);
    assert_null(blkrepl__range_copy_blocker(&b->ranges, 100, 200, 5));
    write.given = false; /* between two pieces, given after the point in time */
    assert_null(blkrepl__range_copy_blocker(&b->ranges, 0, 100, 5));
    assert_null(blkrepl__range_copy_blocker(&b->ranges, 0, 100, 10));
    free(b);
}

static void range_copy_waits_for_a_write_from_before_its_point_in_time_to_the_end(void **state)
{
    struct bench *b = bench_open();
    struct range write;

    (void)state;
    add(b, &write, RANGE_WRITE, 0, 100);
    b->ctx.instant = 6;
    give(b, &write); /* at 8 */
    write.given = false;
    assert_ptr_equal(blkrepl__range_copy_blocker(&b->ranges, 0, 100, 9), &write);
    assert_null(blkrepl__range_copy_blocker(&b->ranges, 0, 100, 7));
    blkrepl__range_end(&b->ranges, &write);
    assert_null(blkrepl__range_copy_blocker(&b->ranges, 0, 100, 9));
    free(b);
}

static void range_copy_never_waits_for_a_copy(void **state)
{
    struct bench *b = bench_open();
    struct range copy;

    (void)state;
    add(b, &copy, RANGE_COPY, 0, 100);
    copy.given = true;
    assert_null(blkrepl__range_copy_blocker(&b->ranges, 0, 100, UINT64_MAX));
    free(b);
}

static void range_copy_of_finds_the_owner_s_copies_active_or_not(void **state)
{
    struct bench *b = bench_open();
    struct range mine;
    struct range other;
    struct range write;
    int me;
    int you;

    (void)state;
    add(b, &mine, RANGE_COPY, 100, 200);
    add(b, &other, RANGE_COPY, 0, 300);
    add(b, &write, RANGE_WRITE, 0, 300);
    mine.owner = &me;
    other.owner = &you;
    write.owner = &me;
    assert_ptr_equal(blkrepl__range_copy_of(&b->ranges, &me, 0, 300), &mine);
    assert_null(blkrepl__range_copy_of(&b->ranges, &me, 0, 100));
    mine.given = true;
    assert_ptr_equal(blkrepl__range_copy_of(&b->ranges, &me, 199, 200), &mine);
    assert_ptr_equal(blkrepl__range_copy_of(&b->ranges, &you, 0, 1), &other);
    free(b);
}

static void range_that_ends_wakes_who_waits_in_their_order(void **state)
{
    struct bench *b = bench_open();
    struct range range;
    struct ready waits[3];

    (void)state;
    memset(waits, 0, sizeof waits);
    add(b, &range, RANGE_WRITE, 0, 1);
    assert_true(range_live(&range));
    give(b, &range);
    for (int i = 0; i < 3; i++) {
        range_wait(&range, &waits[i]);
    }
    blkrepl__range_wake(&b->ranges, &range);
    assert_true(range_live(&range));
    for (int i = 0; i < 3; i++) {
        assert_ptr_equal(list_pop(&b->ctx.ready), &waits[i].link);
        range_wait(&range, &waits[i]);
    }
    blkrepl__range_end(&b->ranges, &range);
    assert_false(range_live(&range));
    assert_false(range.given);
    for (int i = 0; i < 3; i++) {
        assert_ptr_equal(list_pop(&b->ctx.ready), &waits[i].link);
    }
    free(b);
}

/* ---- The same by a naive search ---------------------------------------------- */

static bool hits(const struct range *range, uint64_t start, uint64_t end)
{
    return range_live(range) && range_overlaps(range->node.start, range->node.end, start, end);
}

static const struct range *naive_earlier(const struct range *ranges, const struct range *self)
{
    const struct range *best = NULL;

    for (int i = 0; i < RANGES; i++) {
        const struct range *r = &ranges[i];

        if (hits(r, self->node.start, self->node.end) && r->kind == RANGE_WRITE &&
            r->node.sequence < self->node.sequence &&
            (best == NULL || r->node.sequence > best->node.sequence)) {
            best = r;
        }
    }
    return best;
}

static bool naive_blocks(const struct range *r, uint64_t start, uint64_t end, uint64_t attached_at)
{
    return hits(r, start, end) && r->kind == RANGE_WRITE &&
           (r->given || (r->given_at != 0 && r->given_at < attached_at));
}

static void compare(struct bench *b, const struct range *ranges, uint64_t start, uint64_t end,
                    uint64_t attached_at)
{
    const struct range *blocker = blkrepl__range_copy_blocker(&b->ranges, start, end, attached_at);
    const struct range *copy = blkrepl__range_active_copy(&b->ranges, start, end);
    bool blocks = false;
    bool copies = false;

    for (int i = 0; i < RANGES; i++) {
        blocks = blocks || naive_blocks(&ranges[i], start, end, attached_at);
        copies = copies ||
                 (hits(&ranges[i], start, end) && ranges[i].kind == RANGE_COPY && ranges[i].given);
    }
    assert_int_equal(blocker != NULL, blocks);
    assert_true(blocker == NULL || naive_blocks(blocker, start, end, attached_at));
    if (b->ranges.tree.count != 1) { /* alone it is the asking write itself */
        assert_int_equal(copy != NULL, copies);
        assert_true(copy == NULL || (hits(copy, start, end) && copy->kind == RANGE_COPY));
    }
}

static void range_rules_agree_with_a_naive_search(void **state)
{
    struct bench *b = bench_open();
    static struct range ranges[RANGES];
    struct rng rng = {11};

    (void)state;
    memset(ranges, 0, sizeof ranges);
    for (int i = 0; i < (quick() ? 3000 : 20000); i++) {
        struct range *range = &ranges[rng_below(&rng, RANGES)];
        uint64_t start = rng_below(&rng, 200);
        uint64_t end = start + 1 + rng_below(&rng, 30);

        if (!range_live(range)) {
            add(b, range, rng_below(&rng, 2) ? RANGE_WRITE : RANGE_COPY, start, end);
        } else if (rng_below(&rng, 3) == 0) {
            blkrepl__range_end(&b->ranges, range);
        } else if (range->kind == RANGE_COPY || range->given) {
            range->given = !range->given;
        } else {
            give(b, range);
        }
        if (range_live(range) && range->kind == RANGE_WRITE) {
            assert_ptr_equal(blkrepl__range_earlier_write(&b->ranges, range),
                             naive_earlier(ranges, range));
        }
        compare(b, ranges, start, end,
                (b->ctx.instant + 1) - 2 * rng_below(&rng, 1 + b->ctx.instant / 4));
    }
    free(b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(range_write_waits_for_every_earlier_write_that_overlaps_given_or_not),
        cmocka_unit_test(range_write_does_not_take_a_copy_for_a_write),
        cmocka_unit_test(range_write_waits_for_active_copies_only),
        cmocka_unit_test(range_copy_waits_for_given_writes_never_for_one_that_waits),
        cmocka_unit_test(range_copy_waits_for_a_write_from_before_its_point_in_time_to_the_end),
        cmocka_unit_test(range_copy_never_waits_for_a_copy),
        cmocka_unit_test(range_copy_of_finds_the_owner_s_copies_active_or_not),
        cmocka_unit_test(range_that_ends_wakes_who_waits_in_their_order),
        cmocka_unit_test(range_rules_agree_with_a_naive_search),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
