/* SPDX-License-Identifier: MIT */
#include "block/pool_queue.h"

#include <setjmp.h>
#include <stdarg.h>

#include <cmocka.h>

#define ITEMS 5

static void expect(const struct pool_queue *queue, const char *ids)
{
    const blkrepl_io *io = queue->first;
    const blkrepl_io *last = NULL;
    uint32_t count = 0;

    for (; ids[count] != '\0'; count++) {
        assert_non_null(io);
        assert_int_equal(io->id, ids[count]);
        last = io;
        io = io->host[0];
    }
    assert_null(io);
    assert_ptr_equal(queue->last, last);
    assert_int_equal(queue->count, count);
}

static void setup(struct pool_queue *queue, blkrepl_io *ios)
{
    *queue = (struct pool_queue){.first = NULL};
    for (int i = 0; i < ITEMS; i++) {
        ios[i] = (blkrepl_io){.id = (uint64_t)('a' + i)};
        blkrepl__pool_queue_append(queue, &ios[i]);
    }
}

static bool has_id(const blkrepl_io *io, const void *key)
{
    return io->id == (uint64_t) * (const char *)key;
}

static bool take(struct pool_queue *queue, uint32_t scan_max, const char *id)
{
    return blkrepl__pool_queue_take(queue, scan_max, has_id, id) != NULL;
}

static void pool_queue_is_first_in_first_out(void **state)
{
    struct pool_queue queue;
    blkrepl_io ios[ITEMS];

    (void)state;
    setup(&queue, ios);
    expect(&queue, "abcde");
    for (int i = 0; i < ITEMS; i++) {
        assert_ptr_equal(blkrepl__pool_queue_pop(&queue), &ios[i]);
    }
    assert_null(blkrepl__pool_queue_pop(&queue));
    expect(&queue, "");
}

static void pool_queue_prepends(void **state)
{
    struct pool_queue queue = {.first = NULL};
    blkrepl_io ios[2] = {{.id = 'x'}, {.id = 'y'}};

    (void)state;
    blkrepl__pool_queue_prepend(&queue, &ios[0]);
    expect(&queue, "x");
    blkrepl__pool_queue_prepend(&queue, &ios[1]);
    expect(&queue, "yx");
}

static void pool_queue_takes_from_anywhere(void **state)
{
    struct pool_queue queue;
    blkrepl_io ios[ITEMS];

    (void)state;
    setup(&queue, ios);
    assert_true(take(&queue, UINT32_MAX, "c"));
    expect(&queue, "abde");
    assert_true(take(&queue, UINT32_MAX, "a"));
    expect(&queue, "bde");
    assert_true(take(&queue, UINT32_MAX, "e"));
    expect(&queue, "bd");
    assert_false(take(&queue, UINT32_MAX, "e"));
    blkrepl__pool_queue_append(&queue, &ios[0]);
    expect(&queue, "bda");
    assert_true(take(&queue, UINT32_MAX, "b"));
    assert_true(take(&queue, UINT32_MAX, "a"));
    assert_true(take(&queue, UINT32_MAX, "d"));
    expect(&queue, "");
    assert_false(take(&queue, UINT32_MAX, "d"));
}

static void pool_queue_scans_no_further_than_told(void **state)
{
    struct pool_queue queue;
    blkrepl_io ios[ITEMS];

    (void)state;
    setup(&queue, ios);
    assert_false(take(&queue, 2, "c"));
    assert_false(take(&queue, 0, "a"));
    assert_true(take(&queue, 3, "c"));
    expect(&queue, "abde");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(pool_queue_is_first_in_first_out),
        cmocka_unit_test(pool_queue_prepends),
        cmocka_unit_test(pool_queue_takes_from_anywhere),
        cmocka_unit_test(pool_queue_scans_no_further_than_told),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
