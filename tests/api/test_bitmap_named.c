/* SPDX-License-Identifier: MIT */
/* Bitmaps of images: names, lists, lives.  What they record is in
 * test_bitmap_records.c. */
#include "bits.h"

#define SIZE (8 * CLUSTER)

static struct env env;
static struct tape disk, other_disk;
static blkrepl_image *image, *other;
static blkrepl_bitmap_options o;

static void fresh(void)
{
    o = (blkrepl_bitmap_options){.struct_size = sizeof o, .name = "one"};
}

static int set_up(void **state)
{
    (void)state;
    env_open(&env, NULL, 0);
    tape_init(&disk, SIZE);
    tape_init(&other_disk, SIZE);
    image = tape_open(&disk, &env);
    other = tape_open(&other_disk, &env);
    fresh();
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    blkrepl_image_close(image);
    blkrepl_image_close(other);
    env_close(&env);
    tape_close(&disk);
    tape_close(&other_disk);
    return 0;
}

static void close_image(void)
{
    blkrepl_image_close(image);
    image = NULL;
    env_drain(&env);
    assert_int_equal(disk.closes, 1);
}

static size_t listed(blkrepl_image *of)
{
    blkrepl_bitmap *b = NULL;
    uint64_t id = 0;
    size_t n = 0;

    while (blkrepl_bitmap_next(of, id, &b) == 0) {
        assert_true(bitmap_info(b).id > id);
        id = bitmap_info(b).id;
        blkrepl_bitmap_free(b);
        n++;
    }
    assert_null(b);
    return n;
}

static void absent(blkrepl_image *of, const char *name)
{
    blkrepl_bitmap *b = (blkrepl_bitmap *)&env;

    ASSERT_CODE(blkrepl_bitmap_find(of, name, &b), -ENOENT);
    assert_null(b);
}

static blkrepl_bitmap *found(blkrepl_image *of, const char *name)
{
    blkrepl_bitmap *b = NULL;

    ASSERT_CODE(blkrepl_bitmap_find(of, name, &b), 0);
    assert_non_null(b);
    return b;
}

/* ---- Options ------------------------------------------------------------------- */

static void refused(int code)
{
    blkrepl_bitmap *out = (blkrepl_bitmap *)&env;
    size_t before = listed(image);
    uint64_t live = env.heap.live;

    ASSERT_CODE(blkrepl_bitmap_add(image, &o, &out), code);
    assert_null(out);
    assert_true(strlen(blkrepl_error_message()) > 0);
    assert_int_equal(listed(image), before);
    assert_int_equal(env.heap.live, live);
    fresh();
}

/* Added and removed again. */
static blkrepl_bitmap_info accepted(void)
{
    blkrepl_bitmap *out = NULL;

    ASSERT_CODE(blkrepl_bitmap_add(image, &o, &out), 0);
    blkrepl_bitmap_info info = bitmap_info(out);
    ASSERT_CODE(blkrepl_bitmap_remove(out), 0);
    blkrepl_bitmap_free(out);
    fresh();
    return info;
}

static void a_new_one_is_clean_records_and_tells_what_it_is(void **state)
{
    blkrepl_bitmap *b = NULL;

    (void)state;
    o.user = &o;
    ASSERT_CODE(blkrepl_bitmap_add(image, &o, &b), 0);
    blkrepl_bitmap_info info = bitmap_info(b);
    assert_int_equal(info.struct_size, sizeof info);
    assert_int_equal(info.flags, BLKREPL_BITMAP_RECORDING);
    assert_true(info.id != 0);
    assert_true(info.image_id == image_info(image).id);
    assert_int_equal(info.bytes, SIZE);
    assert_int_equal(info.granularity_bytes, BLKREPL_BITMAP_GRANULARITY_DEFAULT);
    assert_int_equal(info.dirty_granules, 0);
    assert_int_equal(info.dirty_bytes, 0);
    assert_int_equal(info.since_bytes, 0);
    assert_ptr_equal(info.user, &o);
    assert_string_equal(info.name, "one");
    ASSERT_BITS(b, "........");
    blkrepl_bitmap_free(b);
    o.name = "two";
    o.flags = BLKREPL_BITMAP_DISABLED;
    o.bytes = SIZE;
    assert_int_equal(accepted().flags, 0);
}

static void bad_options_are_refused(void **state)
{
    blkrepl_bitmap *out = (blkrepl_bitmap *)&env;

    (void)state;
    ASSERT_CODE(blkrepl_bitmap_add(image, NULL, &out), -EINVAL); /* no name */
    assert_null(out);
    o.name = NULL;
    refused(-EINVAL);
    o.name = "";
    refused(-EINVAL);
    for (unsigned bit = 1; bit < 32; bit++) {
        o.flags = UINT32_C(1) << bit;
        refused(-EINVAL);
    }
    o.bytes = SIZE - 1;
    refused(-EINVAL);
    o.bytes = SIZE + 1;
    refused(-EINVAL);
    o.bytes = UINT64_MAX;
    refused(-EINVAL);
    for (uint32_t size = 0; size < sizeof o; size++) {
        o.struct_size = size;
        refused(-EINVAL);
    }
}

static void the_options_of_a_newer_release_are_understood_or_refused(void **state)
{
    struct {
        blkrepl_bitmap_options known;
        uint64_t unknown;
    } newer = {.known = o, .unknown = 1};
    blkrepl_bitmap *out = (blkrepl_bitmap *)&env;

    (void)state;
    newer.known.struct_size = sizeof newer;
    ASSERT_CODE(blkrepl_bitmap_add(image, &newer.known, &out), BLKREPL_ERR_VERSION);
    assert_null(out);
    newer.unknown = 0;
    ASSERT_CODE(blkrepl_bitmap_add(image, &newer.known, &out), 0);
    blkrepl_bitmap_free(out);
}

static void granularities_are_powers_of_two_from_512_to_2_gib(void **state)
{
    (void)state;
    for (unsigned shift = 0; shift < 64; shift++) {
        o.granularity_bytes = UINT64_C(1) << shift;
        if (o.granularity_bytes >= BLKREPL_BITMAP_GRANULARITY_MIN &&
            o.granularity_bytes <= BLKREPL_BITMAP_GRANULARITY_MAX) {
            assert_true(accepted().granularity_bytes == UINT64_C(1) << shift);
        } else {
            refused(-EINVAL);
        }
        o.granularity_bytes = (UINT64_C(1) << shift) + (UINT64_C(1) << shift) / 2;
        if (shift > 0) {
            refused(-EINVAL);
        }
        fresh();
    }
}

static void an_image_too_large_for_the_granularity_is_refused(void **state)
{
    blkrepl_image *huge = NULL;
    blkrepl_bitmap *out = (blkrepl_bitmap *)&env;

    (void)state;
    ASSERT_CODE(blkrepl_image_open_memory(env.ctx, (UINT64_C(512) << 38) + 1, NULL, &huge), 0);
    o.granularity_bytes = 512;
    ASSERT_CODE(blkrepl_bitmap_add(huge, &o, &out), -EFBIG);
    assert_null(out);
    o.granularity_bytes = BLKREPL_BITMAP_GRANULARITY_MAX;
    ASSERT_CODE(blkrepl_bitmap_add(huge, &o, &out), 0);
    blkrepl_bitmap_free(out);
    blkrepl_image_close(huge);
}

/* ---- Names ----------------------------------------------------------------------- */

static void a_name_has_up_to_1023_bytes(void **state)
{
    char name[BLKREPL_BITMAP_NAME_MAX + 2], copy[BLKREPL_BITMAP_NAME_MAX + 2];
    blkrepl_bitmap *b = NULL, *again = NULL;

    (void)state;
    memset(name, 0xc3, sizeof name); /* bytes, not characters */
    name[BLKREPL_BITMAP_NAME_MAX + 1] = '\0';
    o.name = name;
    refused(-EINVAL);
    absent(image, name);
    name[BLKREPL_BITMAP_NAME_MAX] = '\0';
    strcpy(copy, name);
    o.name = name;
    ASSERT_CODE(blkrepl_bitmap_add(image, &o, &b), 0);
    name[7] = 'x'; /* it was copied */
    assert_string_equal(bitmap_info(b).name, copy);
    absent(image, name);
    again = found(image, copy);
    assert_true(bitmap_info(again).id == bitmap_info(b).id);
    copy[BLKREPL_BITMAP_NAME_MAX - 1] = '\0'; /* one byte less is another name */
    absent(image, copy);
    absent(image, "");
    blkrepl_bitmap_free(again);
    blkrepl_bitmap_free(b);
}

static void a_name_is_the_only_one_of_its_image(void **state)
{
    (void)state;
    blkrepl_bitmap_free(bitmap_put(image, "one", 0, 0));
    o.name = "one";
    refused(-EEXIST); /* also without a handle of the first */
    o.name = "One";
    accepted();
    blkrepl_bitmap_free(bitmap_put(other, "one", 0, 0));
    blkrepl_bitmap *a = found(image, "one"), *b = found(other, "one");
    assert_true(bitmap_info(a).id != bitmap_info(b).id);
    assert_true(bitmap_info(b).image_id == image_info(other).id);
    ASSERT_CODE(blkrepl_bitmap_remove(a), 0);
    absent(image, "one");
    blkrepl_bitmap *fresh_one = bitmap_put(image, "one", 0, 0); /* the name is free */
    assert_true(bitmap_info(fresh_one).id > bitmap_info(b).id);
    blkrepl_bitmap_free(fresh_one);
    blkrepl_bitmap_free(a);
    blkrepl_bitmap_free(b);
}

/* ---- Lists ------------------------------------------------------------------------- */

static void next_lists_them_in_the_order_of_their_ids(void **state)
{
    blkrepl_bitmap *b = (blkrepl_bitmap *)&env;
    char name[] = "a";

    (void)state;
    ASSERT_CODE(blkrepl_bitmap_next(image, 0, &b), -ENOENT);
    assert_null(b);
    for (int i = 0; i < 20; i++, name[0]++) {
        blkrepl_bitmap_free(bitmap_put(i % 2 ? image : other, name, 0, 0));
    }
    uint64_t id = 0;
    for (name[0] = 'b'; blkrepl_bitmap_next(image, id, &b) == 0; name[0] += 2) {
        blkrepl_bitmap_info info = bitmap_info(b);

        assert_string_equal(info.name, name);
        assert_true(info.id > id);
        id = info.id;
        blkrepl_bitmap_free(b);
    }
    assert_int_equal(name[0], 'b' + 20);
    b = (blkrepl_bitmap *)&env;
    ASSERT_CODE(blkrepl_bitmap_next(image, id, &b), -ENOENT);
    assert_null(b);
    ASSERT_CODE(blkrepl_bitmap_next(image, UINT64_MAX, &b), -ENOENT);
}

static void a_list_goes_on_behind_one_that_was_removed_and_finds_what_was_added(void **state)
{
    blkrepl_bitmap *b = NULL;
    uint64_t id = 0;
    int seen = 0;
    char name[] = "a";

    (void)state;
    for (; name[0] < 'f'; name[0]++) {
        blkrepl_bitmap_free(bitmap_put(image, name, 0, 0));
    }
    while (blkrepl_bitmap_next(image, id, &b) == 0) {
        id = bitmap_info(b).id;
        ASSERT_CODE(blkrepl_bitmap_remove(b), 0);
        blkrepl_bitmap_free(b);
        if (seen++ < 10) {
            blkrepl_bitmap_free(bitmap_put(image, name, 0, 0));
            name[0]++;
        }
    }
    assert_int_equal(seen, 15);
    assert_int_equal(listed(image), 0);
}

/* ---- Handles and lives ---------------------------------------------------------------- */

static void handles_are_of_one_bitmap_and_are_freed_one_by_one(void **state)
{
    blkrepl_bitmap *a = bitmap_put(image, "one", 0, 0);
    blkrepl_bitmap *b = found(image, "one"), *c = NULL;

    (void)state;
    ASSERT_CODE(blkrepl_bitmap_next(image, 0, &c), 0);
    ASSERT_CODE(blkrepl_bitmap_set(a, 0, 1), 0);
    blkrepl_bitmap_free(a);
    ASSERT_BITS(b, "#.......");
    ASSERT_CODE(write_now(&env, image, CLUSTER, "x", 1), 0);
    blkrepl_bitmap_free(b);
    ASSERT_BITS(c, "##......");
    blkrepl_bitmap_free(c);
    ASSERT_CODE(write_now(&env, image, 2 * CLUSTER, "x", 1), 0); /* records without a handle */
    c = found(image, "one");
    ASSERT_BITS(c, "###.....");
    blkrepl_bitmap_free(c);
    blkrepl_bitmap_free(NULL);
}

static void a_removed_one_goes_on_as_a_free_standing_one(void **state)
{
    blkrepl_bitmap *b = bitmap_put(image, "one", 0, 0), *second = found(image, "one");
    uint64_t id = bitmap_info(b).id;

    (void)state;
    ASSERT_CODE(blkrepl_bitmap_set(b, CLUSTER, 1), 0);
    ASSERT_CODE(blkrepl_bitmap_resize(b, SIZE), -EINVAL); /* of an image */
    ASSERT_CODE(blkrepl_bitmap_remove(b), 0);
    ASSERT_CODE(write_now(&env, image, 0, "x", 1), 0);
    ASSERT_BITS(b, ".#......");
    blkrepl_bitmap_info info = bitmap_info(second);
    assert_int_equal(info.flags, 0);
    assert_int_equal(info.image_id, 0);
    assert_true(info.id == id);
    assert_string_equal(info.name, "one");
    ASSERT_CODE(blkrepl_bitmap_remove(b), -EINVAL);
    ASSERT_CODE(blkrepl_bitmap_enable(b), -EINVAL);
    ASSERT_CODE(blkrepl_bitmap_disable(b), -EINVAL);
    ASSERT_CODE(blkrepl_bitmap_freeze(second), 0);
    ASSERT_CODE(blkrepl_bitmap_abdicate(b), 0);
    ASSERT_CODE(blkrepl_bitmap_resize(b, SIZE / 2), 0);
    blkrepl_bitmap_free(b);
    ASSERT_BITS(second, "....");
    blkrepl_bitmap_free(second);
}

static void an_image_takes_those_without_a_handle_along(void **state)
{
    (void)state;
    blkrepl_bitmap_free(bitmap_put(image, "one", 0, 0));
    blkrepl_bitmap_free(bitmap_put(image, "two", 0, BLKREPL_BITMAP_DISABLED));
    blkrepl_bitmap *busy = bitmap_put(image, "three", 0, 0);
    ASSERT_CODE(blkrepl_bitmap_freeze(busy), 0);
    blkrepl_bitmap_free(busy);
    blkrepl_bitmap *loading = bitmap_put(image, "four", 0, BLKREPL_BITMAP_DISABLED);
    ASSERT_CODE(blkrepl_bitmap_load_begin(loading), 0);
    blkrepl_bitmap_free(loading);
    close_image(); /* and tear_down sees that nothing is left */
}

static void with_a_handle_it_outlives_its_image(void **state)
{
    blkrepl_bitmap *b = bitmap_put(image, "one", 0, 0);
    blkrepl_bitmap *busy = bitmap_put(image, "two", 0, 0);

    (void)state;
    ASSERT_CODE(write_now(&env, image, 0, "x", 1), 0);
    ASSERT_CODE(blkrepl_bitmap_freeze(busy), 0);
    ASSERT_CODE(write_now(&env, image, CLUSTER, "x", 1), 0);
    close_image();
    assert_int_equal(bitmap_info(b).image_id, 0);
    assert_int_equal(bitmap_flags(b), 0);
    assert_string_equal(bitmap_info(b).name, "one");
    ASSERT_BITS(b, "##......");
    ASSERT_CODE(blkrepl_bitmap_enable(b), -EINVAL);
    assert_int_equal(bitmap_flags(busy), BLKREPL_BITMAP_BUSY);
    assert_int_equal(bitmap_info(busy).since_bytes, CLUSTER);
    ASSERT_CODE(blkrepl_bitmap_reclaim(busy), 0);
    ASSERT_BITS(busy, "##......");
    ASSERT_CODE(blkrepl_bitmap_resize(b, 3 * CLUSTER), 0);
    blkrepl_bitmap_free(b);
    blkrepl_bitmap_free(busy);
}

/* The handle is gone and the image lives on: it stays busy, and can be had again. */
static void a_frozen_one_without_a_handle_stays_frozen(void **state)
{
    blkrepl_bitmap *b = bitmap_put(image, "one", 0, 0);

    (void)state;
    ASSERT_CODE(blkrepl_bitmap_freeze(b), 0);
    blkrepl_bitmap_free(b);
    ASSERT_CODE(write_now(&env, image, 0, "x", 1), 0);
    b = found(image, "one");
    assert_int_equal(bitmap_flags(b), BLKREPL_BITMAP_BUSY | BLKREPL_BITMAP_RECORDING);
    ASSERT_CODE(blkrepl_bitmap_remove(b), -EBUSY);
    ASSERT_CODE(blkrepl_bitmap_abdicate(b), 0);
    ASSERT_BITS(b, "#.......");
    blkrepl_bitmap_free(b);
}

static void a_frozen_one_that_nobody_can_reach_is_not_left_behind(void **state)
{
    blkrepl_bitmap *b = bitmap_make(&env, 100, 1);

    (void)state;
    ASSERT_CODE(blkrepl_bitmap_freeze(b), 0);
    blkrepl_bitmap_free(b); /* tear_down sees */
}

/* ---- Unlike images ---------------------------------------------------------------------- */

static void a_read_only_image_may_have_bitmaps(void **state)
{
    blkrepl_image_options options = {.struct_size = sizeof options,
                                     .flags = BLKREPL_IMAGE_READ_ONLY};
    blkrepl_image *read_only = NULL;

    (void)state;
    ASSERT_CODE(blkrepl_image_open_memory(env.ctx, SIZE, &options, &read_only), 0);
    blkrepl_bitmap *b = bitmap_put(read_only, "one", 0, 0);
    ASSERT_CODE(write_now(&env, read_only, 0, "x", 1), -EROFS);
    ASSERT_BITS(b, "........"); /* a rejected write is none */
    assert_int_equal(bitmap_flags(b), BLKREPL_BITMAP_RECORDING);
    ASSERT_CODE(blkrepl_bitmap_set(b, 0, 1), 0);
    ASSERT_CODE(blkrepl_bitmap_freeze(b), 0);
    ASSERT_CODE(blkrepl_bitmap_set(b, CLUSTER, 1), 0);
    ASSERT_CODE(blkrepl_bitmap_abdicate(b), 0);
    ASSERT_BITS(b, ".#......");
    ASSERT_CODE(blkrepl_bitmap_disable(b), 0);
    ASSERT_CODE(blkrepl_bitmap_enable(b), 0);
    ASSERT_CODE(blkrepl_bitmap_remove(b), 0);
    blkrepl_bitmap_free(b);
    blkrepl_image_close(read_only);
}

static void images_of_any_size_may_have_bitmaps(void **state)
{
    static const uint64_t sizes[] = {0, 1, 511, 512, 513, CLUSTER - 1, CLUSTER + 1};

    (void)state;
    for (size_t i = 0; i < ARRAY_COUNT(sizes); i++) {
        blkrepl_image *small = NULL;

        ASSERT_CODE(blkrepl_image_open_memory(env.ctx, sizes[i], NULL, &small), 0);
        blkrepl_bitmap *b = bitmap_put(small, "one", 512, 0);
        assert_int_equal(bitmap_info(b).bytes, sizes[i]);
        if (sizes[i]) {
            ASSERT_CODE(write_now(&env, small, sizes[i] - 1, "x", 1), 0);
            assert_int_equal(bitmap_info(b).dirty_granules, 1);
            assert_int_equal(bitmap_info(b).dirty_bytes, sizes[i] % 512 ? sizes[i] % 512 : 512);
            ASSERT_CODE(blkrepl_bitmap_get(b, sizes[i] - 1), 1);
        }
        ASSERT_CODE(blkrepl_bitmap_validate(b), 0);
        blkrepl_bitmap_free(b);
        blkrepl_image_close(small);
        env_drain(&env);
    }
}

int main(void)
{
#define T(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)
    const struct CMUnitTest tests[] = {
        T(a_new_one_is_clean_records_and_tells_what_it_is),
        T(bad_options_are_refused),
        T(the_options_of_a_newer_release_are_understood_or_refused),
        T(granularities_are_powers_of_two_from_512_to_2_gib),
        T(an_image_too_large_for_the_granularity_is_refused),
        T(a_name_has_up_to_1023_bytes),
        T(a_name_is_the_only_one_of_its_image),
        T(next_lists_them_in_the_order_of_their_ids),
        T(a_list_goes_on_behind_one_that_was_removed_and_finds_what_was_added),
        T(handles_are_of_one_bitmap_and_are_freed_one_by_one),
        T(a_removed_one_goes_on_as_a_free_standing_one),
        T(an_image_takes_those_without_a_handle_along),
        T(with_a_handle_it_outlives_its_image),
        T(a_frozen_one_without_a_handle_stays_frozen),
        T(a_frozen_one_that_nobody_can_reach_is_not_left_behind),
        T(a_read_only_image_may_have_bitmaps),
        T(images_of_any_size_may_have_bitmaps),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
