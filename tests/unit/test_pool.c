/* SPDX-License-Identifier: MIT */
#include "core/pool.h"

#include "unit/rig.h"

#define SLOTS 16

static void pool_hands_out_every_slot_once_and_then_none(void **state)
{
    struct request slots[SLOTS];
    struct request_pool low;
    struct request_pool high;
    bool seen[SLOTS] = {false};

    (void)state;
    memset(slots, 0, sizeof slots);
    blkrepl__request_pool_init(&low, slots, 0, 6);
    blkrepl__request_pool_init(&high, slots, 6, SLOTS - 6);
    for (uint32_t i = 0; i < SLOTS; i++) {
        struct request *request = blkrepl__request_take(i < 6 ? &low : &high);

        assert_non_null(request);
        assert_ptr_equal(request, &slots[request->index]); /* the index leads to the slot */
        assert_int_equal(request->index < 6, i < 6);
        assert_false(seen[request->index]);
        seen[request->index] = true;
    }
    assert_null(blkrepl__request_take(&low));
    assert_null(blkrepl__request_take(&high));
    assert_int_equal(low.used, 6);
    assert_int_equal(high.used, SLOTS - 6);
}

static void pool_without_slots_has_none(void **state)
{
    struct request slot;
    struct request_pool pool;

    (void)state;
    blkrepl__request_pool_init(&pool, &slot, 0, 0);
    assert_null(blkrepl__request_take(&pool));
}

static void pool_prefers_the_slot_that_was_used_last(void **state)
{
    struct request slots[SLOTS];
    struct request_pool pool;
    struct request *a;
    struct request *b;

    (void)state;
    memset(slots, 0, sizeof slots);
    blkrepl__request_pool_init(&pool, slots, 0, SLOTS);
    a = blkrepl__request_take(&pool);
    b = blkrepl__request_take(&pool);
    blkrepl__request_put(&pool, a);
    blkrepl__request_put(&pool, b);
    assert_int_equal(pool.used, 0);
    assert_ptr_equal(blkrepl__request_take(&pool), b);
    assert_ptr_equal(blkrepl__request_take(&pool), a);
    assert_int_equal(pool.touched, 2); /* fresh memory was left alone */
}

static void pool_slot_comes_with_a_zero_io_whatever_it_was_used_for(void **state)
{
    static const blkrepl_io zero;
    struct request slot;
    struct request_pool pool;
    struct request *request;

    (void)state;
    memset(&slot, 0, sizeof slot);
    blkrepl__request_pool_init(&pool, &slot, 0, 1);
    request = blkrepl__request_take(&pool);
    memset(&request->io, 0x55, sizeof request->io);
    blkrepl__request_put(&pool, request);
    assert_memory_equal(&blkrepl__request_take(&pool)->io, &zero, sizeof zero);
}

static void pool_ids_are_never_zero_and_never_repeat(void **state)
{
    enum {
        ROUNDS = 500
    };
    static uint64_t ids[ROUNDS * 2];
    struct request slots[3];
    struct request_pool pool;
    unsigned count = 0;

    (void)state;
    memset(slots, 0, sizeof slots);
    blkrepl__request_pool_init(&pool, slots, 0, 3);
    for (unsigned i = 0; i < ROUNDS; i++) {
        struct request *request = blkrepl__request_take(&pool);
        struct request *other = i % 3 == 0 ? blkrepl__request_take(&pool) : NULL;

        ids[count++] = blkrepl__request_new_id(request);
        assert_int_equal(ids[count - 1] & REQUEST_INDEX_MASK, request->index);
        if (other != NULL) {
            ids[count++] = blkrepl__request_new_id(other);
            blkrepl__request_put(&pool, other);
        }
        blkrepl__request_put(&pool, request);
    }
    for (unsigned i = 0; i < count; i++) {
        assert_true(ids[i] != 0);
        for (unsigned j = 0; j < i; j++) {
            assert_true(ids[i] != ids[j]);
        }
    }
}

static void pool_ids_of_one_use_differ_too(void **state)
{
    struct request slot;
    struct request_pool pool;
    struct request *request;

    (void)state;
    memset(&slot, 0, sizeof slot);
    blkrepl__request_pool_init(&pool, &slot, 0, 1);
    request = blkrepl__request_take(&pool);
    /* A bracket's token and the request of a second piece. */
    assert_true(blkrepl__request_new_id(request) != blkrepl__request_new_id(request));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(pool_hands_out_every_slot_once_and_then_none),
        cmocka_unit_test(pool_without_slots_has_none),
        cmocka_unit_test(pool_prefers_the_slot_that_was_used_last),
        cmocka_unit_test(pool_slot_comes_with_a_zero_io_whatever_it_was_used_for),
        cmocka_unit_test(pool_ids_are_never_zero_and_never_repeat),
        cmocka_unit_test(pool_ids_of_one_use_differ_too),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
