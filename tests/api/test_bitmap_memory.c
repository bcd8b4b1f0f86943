/* SPDX-License-Identifier: MIT */
/* Bitmaps when memory runs out: each allocation fails in turn, nothing has changed,
 * and nothing is lost; recording needs none. */
#include "bits.h"

#define SIZE (8 * CLUSTER)

static struct env env;
static struct tape disk, other_disk;
static blkrepl_image *image, *other;
static blkrepl_bitmap *a, *b;

static int set_up(void **state)
{
    (void)state;
    env_open(&env, NULL, 0);
    tape_init(&disk, SIZE);
    tape_init(&other_disk, SIZE);
    image = tape_open(&disk, &env);
    other = tape_open(&other_disk, &env);
    a = bitmap_put(image, "a", CLUSTER, 0);
    b = bitmap_put(other, "b", CLUSTER, 0);
    bitmap_draw(a, "##......");
    bitmap_draw(b, "....##..");
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    blkrepl_bitmap_free(a);
    blkrepl_bitmap_free(b);
    blkrepl_image_close(image);
    blkrepl_image_close(other);
    env_close(&env);
    tape_close(&disk);
    tape_close(&other_disk);
    return 0;
}

static void assert_untouched(void)
{
    ASSERT_BITS(a, "##......");
    ASSERT_BITS(b, "....##..");
    assert_int_equal(bitmap_flags(a), BLKREPL_BITMAP_RECORDING);
    assert_int_equal(bitmap_flags(b), BLKREPL_BITMAP_RECORDING);
    assert_int_equal(bitmap_info(a).since_bytes, 0);
}

static size_t listed(void)
{
    blkrepl_bitmap *bitmap = NULL;
    uint64_t id = 0;
    size_t n = 0;

    for (; blkrepl_bitmap_next(image, id, &bitmap) == 0; n++) {
        id = bitmap_info(bitmap).id;
        blkrepl_bitmap_free(bitmap);
    }
    return n;
}

/* Every failure twice: what stays allocated after the first is a table that has
 * grown, what comes on top of it in the second is lost. */
static void with_each_allocation_failing(int (*call)(void))
{
    unsigned failures = 0;

    for (uint64_t i = 0, live = 0;; i++) {
        size_t before = listed();

        env.heap.fail_at = env.heap.calls + 1 + i / 2;
        int rc = call();
        env.heap.fail_at = 0;
        if (rc == 0) {
            break;
        }
        failures++;
        ASSERT_CODE(rc, -ENOMEM);
        assert_true(strlen(blkrepl_error_message()) > 0);
        assert_untouched();
        assert_int_equal(listed(), before);
        env_drain(&env);
        if (i % 2) {
            assert_int_equal(env.heap.live, live);
        }
        live = env.heap.live;
        assert_true(i < 10000);
    }
    assert_true(failures > 0);
}

/* ---- The calls ------------------------------------------------------------------- */

static blkrepl_bitmap *out, *second_out;
static blkrepl_bitmap_options options;

static int create(void)
{
    out = (blkrepl_bitmap *)&env;
    int rc = blkrepl_bitmap_create(env.ctx, &options, &out);

    assert_true((rc == 0) == (out != NULL));
    return rc;
}

static void create_survives_every_failing_allocation(void **state)
{
    static char name[BLKREPL_BITMAP_NAME_MAX + 1];

    (void)state;
    memset(name, 'n', sizeof name - 1);
    options = (blkrepl_bitmap_options){
        .struct_size = sizeof options, .bytes = 100000, .granularity_bytes = 1, .name = name};
    with_each_allocation_failing(create);
    assert_int_equal(bitmap_info(out).bytes, 100000);
    blkrepl_bitmap_free(out);
}

static int add(void)
{
    out = (blkrepl_bitmap *)&env;
    int rc = blkrepl_bitmap_add(image, &options, &out);

    assert_true((rc == 0) == (out != NULL));
    return rc;
}

static void add_survives_every_failing_allocation(void **state)
{
    char name[] = "new-a";

    (void)state;
    options = (blkrepl_bitmap_options){
        .struct_size = sizeof options, .granularity_bytes = 512, .name = name};
    for (; name[4] < 'a' + 20; name[4]++) { /* a table may grow with any of them */
        with_each_allocation_failing(add);
        blkrepl_bitmap_free(out);
    }
    ASSERT_CODE(blkrepl_bitmap_find(image, "new-t", &out), 0);
    ASSERT_CODE(write_now(&env, image, 0, "x", 1), 0);
    ASSERT_CODE(blkrepl_bitmap_get(out, 0), 1);
    blkrepl_bitmap_free(out);
}

static int freeze(void)
{
    return blkrepl_bitmap_freeze(a);
}

/* It may have its memory since it was made: then there is nothing to fail. */
static void freeze_survives_every_failing_allocation(void **state)
{
    (void)state;
    for (uint64_t n = 1; n < 100; n++) {
        env.heap.fail_at = env.heap.calls + n;
        int rc = freeze();
        bool all = env.heap.calls < env.heap.fail_at;
        env.heap.fail_at = 0;
        if (rc == 0) {
            assert_true(all); /* a failure was not hidden */
            break;
        }
        ASSERT_CODE(rc, -ENOMEM);
        assert_untouched();
    }
    assert_int_equal(bitmap_flags(a), BLKREPL_BITMAP_RECORDING | BLKREPL_BITMAP_BUSY);
    ASSERT_CODE(write_now(&env, image, 7 * CLUSTER, "x", 1), 0);
    ASSERT_CODE(blkrepl_bitmap_reclaim(a), 0);
    ASSERT_BITS(a, "##.....#");
}

static blkrepl_bitmap *resized;

static int resize(void)
{
    int rc = blkrepl_bitmap_resize(resized, 1000 * KIB);

    if (rc != 0) {
        ASSERT_BITS(resized, "#..#");
    }
    return rc;
}

static void resize_survives_every_failing_allocation(void **state)
{
    (void)state;
    resized = bitmap_drawn(&env, 64, "#..#");
    with_each_allocation_failing(resize);
    assert_int_equal(bitmap_info(resized).bytes, 1000 * KIB);
    assert_int_equal(bitmap_info(resized).dirty_granules, 2);
    ASSERT_CODE(blkrepl_bitmap_get(resized, 3 * 64), 1);
    ASSERT_CODE(blkrepl_bitmap_set(resized, 0, 1000 * KIB), 0);
    ASSERT_CODE(blkrepl_bitmap_validate(resized), 0);
    blkrepl_bitmap_free(resized);
}

static void a_smaller_size_without_memory_is_done_or_refused(void **state)
{
    (void)state;
    resized = bitmap_drawn(&env, 64, "#..#");
    env.heap.fail_at = env.heap.calls + 1;
    env.heap.fail_on = true;
    int rc = blkrepl_bitmap_resize(resized, 64);
    env.heap.fail_on = false;
    env.heap.fail_at = 0;
    assert_true(rc == 0 || rc == -ENOMEM);
    ASSERT_BITS(resized, rc == 0 ? "#" : "#..#");
    blkrepl_bitmap_free(resized);
}

static int transact(void)
{
    blkrepl_bitmap *const sources[] = {b};
    blkrepl_bitmap_options first = {.struct_size = sizeof first, .name = "x"};
    blkrepl_bitmap_options second = {.struct_size = sizeof second, .name = "y"};
    blkrepl_bitmap_action list[] = {
        {.type = BLKREPL_BITMAP_MERGE, .bitmap = a, .sources = sources, .source_count = 1},
        {.type = BLKREPL_BITMAP_CLEAR, .bitmap = b},
        {.type = BLKREPL_BITMAP_ADD, .image = image, .options = &first, .out = &out},
        {.type = BLKREPL_BITMAP_ADD,
         .image = other,
         .options = &second,
         .sources = sources,
         .source_count = 1,
         .out = &second_out},
        {.type = BLKREPL_BITMAP_DISABLE, .bitmap = b},
        {.type = BLKREPL_BITMAP_FREEZE, .bitmap = a},
    };
    const blkrepl_bitmap_action *actions[ARRAY_COUNT(list)];

    for (size_t i = 0; i < ARRAY_COUNT(list); i++) {
        list[i].struct_size = sizeof list[i];
        actions[i] = &list[i];
    }
    out = second_out = (blkrepl_bitmap *)&env;
    int rc = blkrepl_bitmap_transact(env.ctx, actions, ARRAY_COUNT(list));
    assert_true((rc == 0) == (out != NULL) && (rc == 0) == (second_out != NULL));
    return rc;
}

static void transact_survives_every_failing_allocation(void **state)
{
    (void)state;
    with_each_allocation_failing(transact);
    ASSERT_BITS(a, "##..##..");
    ASSERT_BITS(b, "........");
    ASSERT_BITS(out, "........");
    ASSERT_BITS(second_out, "........");
    ASSERT_CODE(blkrepl_bitmap_abdicate(a), 0);
    blkrepl_bitmap_free(out);
    blkrepl_bitmap_free(second_out);
}

/* ---- What needs none ----------------------------------------------------------------- */

static void what_is_documented_without_enomem_needs_no_memory(void **state)
{
    blkrepl_bitmap *fine = bitmap_make(&env, SIZE, 512), *found = NULL;
    uint64_t position = 0, list[8], need = 0;
    uint8_t digest[32];

    (void)state;
    ASSERT_CODE(blkrepl_bitmap_freeze(a), 0);
    env.heap.fail_at = env.heap.calls + 1;
    env.heap.fail_on = true;
    ASSERT_CODE(write_now(&env, image, 0, "x", 1), 0);
    ASSERT_CODE(write_now(&env, other, 7 * CLUSTER, "x", 1), 0);
    ASSERT_CODE(blkrepl_bitmap_find(image, "a", &found), 0);
    blkrepl_bitmap_free(found);
    ASSERT_CODE(blkrepl_bitmap_next(image, 0, &found), 0);
    blkrepl_bitmap_free(found);
    ASSERT_CODE(blkrepl_bitmap_abdicate(a), 0);
    ASSERT_CODE(bitmap_merge_one(a, b), 0);
    ASSERT_CODE(bitmap_merge_one(fine, a), 0);
    ASSERT_CODE(bitmap_merge_one(a, fine), 0);
    ASSERT_BITS(a, "#...##.#");
    ASSERT_CODE(blkrepl_bitmap_intersect(a, fine), 0);
    ASSERT_CODE(blkrepl_bitmap_subtract(fine, b), 0);
    ASSERT_CODE(blkrepl_bitmap_invert(fine), 0);
    ASSERT_CODE(blkrepl_bitmap_iterate(fine, &position, list, 8), 8);
    ASSERT_CODE(blkrepl_bitmap_sha256(fine, digest), 0);
    ASSERT_CODE(blkrepl_bitmap_save(fine, 0, SIZE, NULL, &need), 0);
    ASSERT_CODE(blkrepl_bitmap_load_begin(fine), 0);
    ASSERT_CODE(blkrepl_bitmap_load_ones(fine, 0, SIZE), 0);
    ASSERT_CODE(blkrepl_bitmap_load_finish(fine), 0);
    ASSERT_CODE(blkrepl_bitmap_clear(fine), 0);
    ASSERT_CODE(blkrepl_bitmap_disable(b), 0);
    ASSERT_CODE(blkrepl_bitmap_enable(b), 0);
    ASSERT_CODE(blkrepl_bitmap_remove(b), 0);
    ASSERT_CODE(blkrepl_bitmap_validate(a), 0);
    env.heap.fail_on = false;
    env.heap.fail_at = 0;
    ASSERT_BITS(b, "....##.#");
    blkrepl_bitmap_free(fine);
}

int main(void)
{
#define T(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)
    const struct CMUnitTest tests[] = {
        T(create_survives_every_failing_allocation),
        T(add_survives_every_failing_allocation),
        T(freeze_survives_every_failing_allocation),
        T(resize_survives_every_failing_allocation),
        T(a_smaller_size_without_memory_is_done_or_refused),
        T(transact_survives_every_failing_allocation),
        T(what_is_documented_without_enomem_needs_no_memory),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
