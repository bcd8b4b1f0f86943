/* SPDX-License-Identifier: MIT */
/* Bitmaps with each other: merge, intersect and subtract across granularities;
 * other sizes; and lists of what changes while it is listed. */
#include "bits.h"

static struct env env;

static int set_up(void **state)
{
    (void)state;
    env_open(&env, NULL, 0);
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    env_close(&env);
    return 0;
}

/* ---- Merge ------------------------------------------------------------------------ */

static void merge_adds_and_leaves_the_sources_alone(void **state)
{
    blkrepl_bitmap *a = bitmap_drawn(&env, KIB, "#..#....");
    blkrepl_bitmap *b = bitmap_drawn(&env, KIB, ".#.#....");
    blkrepl_bitmap *c = bitmap_drawn(&env, KIB, "......##");
    blkrepl_bitmap *const sources[] = {b, c, b};

    (void)state;
    ASSERT_CODE(blkrepl_bitmap_merge(a, sources, 0), 0);
    ASSERT_BITS(a, "#..#....");
    ASSERT_CODE(blkrepl_bitmap_merge(a, sources, 3), 0);
    ASSERT_BITS(a, "##.#..##");
    ASSERT_BITS(b, ".#.#....");
    ASSERT_BITS(c, "......##");
    blkrepl_bitmap_free(a);
    blkrepl_bitmap_free(b);
    blkrepl_bitmap_free(c);
}

static void a_bitmap_may_be_its_own_source(void **state)
{
    blkrepl_bitmap *a = bitmap_drawn(&env, KIB, "#..#....");
    blkrepl_bitmap *b = bitmap_drawn(&env, KIB, ".#......");
    blkrepl_bitmap *const sources[] = {a, b, a};

    (void)state;
    ASSERT_CODE(blkrepl_bitmap_merge(a, sources, 3), 0);
    ASSERT_BITS(a, "##.#....");
    ASSERT_CODE(blkrepl_bitmap_intersect(a, a), 0);
    ASSERT_BITS(a, "##.#....");
    ASSERT_CODE(blkrepl_bitmap_subtract(a, a), 0);
    ASSERT_BITS(a, "........");
    blkrepl_bitmap_free(a);
    blkrepl_bitmap_free(b);
}

/* The bad one last, so that the others were at hand. */
static void a_refused_merge_adds_nothing(void **state)
{
    struct env other;
    blkrepl_bitmap *a = bitmap_drawn(&env, KIB, "#.......");
    blkrepl_bitmap *b = bitmap_drawn(&env, KIB, "########");
    blkrepl_bitmap *longer = bitmap_make(&env, 8 * KIB + 1, KIB);
    blkrepl_bitmap *shorter = bitmap_make(&env, 8 * KIB - 1, KIB);

    (void)state;
    env_open(&other, NULL, 0);
    blkrepl_bitmap *foreign = bitmap_make(&other, 8 * KIB, KIB);
    blkrepl_bitmap *const bad[] = {longer, shorter, foreign, NULL};

    for (size_t i = 0; i < ARRAY_COUNT(bad); i++) {
        blkrepl_bitmap *const sources[] = {b, bad[i]};

        ASSERT_CODE(blkrepl_bitmap_merge(a, sources, 2), -EINVAL);
        ASSERT_CODE(blkrepl_bitmap_intersect(b, bad[i]), -EINVAL);
        ASSERT_CODE(blkrepl_bitmap_subtract(b, bad[i]), -EINVAL);
        ASSERT_BITS(a, "#.......");
        ASSERT_BITS(b, "########");
    }
    blkrepl_bitmap_free(a);
    blkrepl_bitmap_free(b);
    blkrepl_bitmap_free(longer);
    blkrepl_bitmap_free(shorter);
    blkrepl_bitmap_free(foreign);
    env_close(&other);
}

/* ---- Granularities ------------------------------------------------------------------ */

static void coarse_into_fine_and_back(void **state)
{
    blkrepl_bitmap *fine = bitmap_make(&env, 8 * KIB - 1, KIB);
    blkrepl_bitmap *coarse = bitmap_make(&env, 8 * KIB - 1, 4 * KIB);

    (void)state;
    bitmap_draw(fine, ".#......");
    ASSERT_CODE(bitmap_merge_one(coarse, fine), 0);
    ASSERT_BITS(coarse, "#.");
    bitmap_draw(coarse, ".#");
    ASSERT_CODE(bitmap_merge_one(fine, coarse), 0);
    ASSERT_BITS(fine, "########");

    ASSERT_CODE(blkrepl_bitmap_reset(fine, KIB, KIB), 0); /* "#.######" */
    ASSERT_CODE(blkrepl_bitmap_subtract(coarse, fine), 0);
    ASSERT_BITS(coarse, "#."); /* the first is not wholly dirty in it */
    ASSERT_CODE(blkrepl_bitmap_intersect(fine, coarse), 0);
    ASSERT_BITS(fine, "#.##....");
    ASSERT_CODE(blkrepl_bitmap_intersect(coarse, fine), 0);
    ASSERT_BITS(coarse, "#.");
    ASSERT_CODE(blkrepl_bitmap_subtract(fine, coarse), 0);
    ASSERT_BITS(fine, "........");
    ASSERT_CODE(blkrepl_bitmap_intersect(coarse, fine), 0);
    ASSERT_BITS(coarse, "..");
    blkrepl_bitmap_free(fine);
    blkrepl_bitmap_free(coarse);
}

static void scatter(struct map *map, blkrepl_bitmap *b, struct rng *rng)
{
    static const unsigned chances[] = {0, 2, 50, 97, 100};
    unsigned chance = chances[rng_below(rng, 5)];

    ASSERT_CODE(blkrepl_bitmap_clear(b), 0);
    map_reset(map, 0, map->bytes);
    for (size_t i = 0; i < map->count; i++) {
        if (rng_percent(rng, chance)) {
            ASSERT_CODE(blkrepl_bitmap_set(b, i * map->granularity, 1), 0);
            map->dirty[i] = true;
        }
    }
}

/* Every operation with these two, from random contents. */
static void operations(uint64_t bytes, uint64_t granularity, uint64_t other_granularity)
{
    struct rng rng = {.state = bytes ^ granularity * 31 ^ other_granularity};
    blkrepl_bitmap *a = bitmap_make(&env, bytes, granularity);
    blkrepl_bitmap *b = bitmap_make(&env, bytes, other_granularity);
    static struct map map, other;

    map_init(&map, bytes, granularity);
    map_init(&other, bytes, other_granularity);
    for (int i = 0; i < (quick() ? 4 : 20); i++) {
        scatter(&map, a, &rng);
        scatter(&other, b, &rng);
        switch (rng_below(&rng, 3)) {
        case 0:
            ASSERT_CODE(bitmap_merge_one(a, b), 0);
            map_merge(&map, &other);
            break;
        case 1:
            ASSERT_CODE(blkrepl_bitmap_intersect(a, b), 0);
            map_intersect(&map, &other);
            break;
        default:
            ASSERT_CODE(blkrepl_bitmap_subtract(a, b), 0);
            map_subtract(&map, &other);
            break;
        }
        ASSERT_MAP(a, &map);
        ASSERT_MAP(b, &other);
    }
    blkrepl_bitmap_free(a);
    blkrepl_bitmap_free(b);
}

static void all_pairs_of_granularities_agree_with_arrays_of_bools(void **state)
{
    static const uint64_t sizes[] = {4096, 4095, 4001, 2049, 64, 1};

    (void)state;
    for (size_t i = 0; i < ARRAY_COUNT(sizes); i++) {
        for (unsigned g = 0; g <= 13; g++) {
            for (unsigned h = 0; h <= 13; h++) {
                operations(sizes[i], UINT64_C(1) << g, UINT64_C(1) << h);
            }
        }
    }
    for (unsigned g = 52; g < 64; g++) {
        for (unsigned h = 52; h < 64; h++) {
            operations(SIZE_MAX_OF_IMAGES, UINT64_C(1) << g, UINT64_C(1) << h);
            operations(SIZE_MAX_OF_IMAGES - (UINT64_C(1) << 60), UINT64_C(1) << g,
                       UINT64_C(1) << h);
        }
    }
}

/* ---- Resize ---------------------------------------------------------------------------- */

static void what_is_added_is_clean_and_what_is_cut_off_is_gone(void **state)
{
    blkrepl_bitmap *b = bitmap_drawn(&env, KIB, "#..#");

    (void)state;
    ASSERT_CODE(blkrepl_bitmap_resize(b, 6 * KIB), 0);
    ASSERT_BITS(b, "#..#..");
    ASSERT_CODE(blkrepl_bitmap_resize(b, 3 * KIB + 1), 0);
    ASSERT_BITS(b, "#..#"); /* a byte of it is left */
    assert_int_equal(bitmap_info(b).dirty_bytes, KIB + 1);
    ASSERT_CODE(blkrepl_bitmap_resize(b, 5 * KIB), 0);
    ASSERT_BITS(b, "#..#."); /* its rest is dirty with it */
    ASSERT_CODE(blkrepl_bitmap_resize(b, 3 * KIB), 0);
    ASSERT_BITS(b, "#..");
    ASSERT_CODE(blkrepl_bitmap_resize(b, 5 * KIB), 0);
    ASSERT_BITS(b, "#....");
    blkrepl_bitmap_free(b);
}

static void resize_knows_its_limits(void **state)
{
    blkrepl_bitmap *b = bitmap_drawn(&env, 1, "#..#");
    blkrepl_bitmap *wide = bitmap_make(&env, 100, UINT64_C(1) << 63);

    (void)state;
    ASSERT_CODE(blkrepl_bitmap_resize(b, SIZE_MAX_OF_IMAGES + 1), -EINVAL);
    ASSERT_CODE(blkrepl_bitmap_resize(b, UINT64_MAX), -EINVAL);
    ASSERT_CODE(blkrepl_bitmap_resize(b, SIZE_MAX_OF_IMAGES), -EFBIG);
    ASSERT_CODE(blkrepl_bitmap_resize(b, (UINT64_C(1) << 38) + 1), -EFBIG);
    env.heap.fail_at = env.heap.calls + 1;
    env.heap.fail_on = true;
    ASSERT_CODE(blkrepl_bitmap_resize(b, UINT64_C(1) << 38), -ENOMEM);
    env.heap.fail_on = false;
    ASSERT_BITS(b, "#..#");
    ASSERT_CODE(blkrepl_bitmap_resize(wide, SIZE_MAX_OF_IMAGES), 0);
    ASSERT_BITS(wide, ".");
    blkrepl_bitmap_free(b);
    blkrepl_bitmap_free(wide);
}

static void random_sizes_agree_with_an_array_of_bools(void **state)
{
    struct rng rng = {.state = 5};
    blkrepl_bitmap *b = bitmap_make(&env, 100, 4);
    static struct map map;

    (void)state;
    map_init(&map, 100, 4);
    for (int i = 0; i < (quick() ? 300 : 3000); i++) {
        uint64_t bytes = rng_below(&rng, 4 * MAP_MAX + 1) >> rng_below(&rng, 14);
        uint64_t offset = rng_below(&rng, map.bytes + 1);

        ASSERT_CODE(blkrepl_bitmap_set(b, offset, (map.bytes - offset) / 2), 0);
        map_set(&map, offset, (map.bytes - offset) / 2);
        ASSERT_CODE(blkrepl_bitmap_resize(b, bytes), 0);
        map_resize(&map, bytes);
        ASSERT_MAP(b, &map);
    }
    blkrepl_bitmap_free(b);
}

/* ---- Lists ------------------------------------------------------------------------------- */

static void a_list_begins_with_the_granule_that_position_lies_in(void **state)
{
    blkrepl_bitmap *b = bitmap_drawn(&env, KIB, ".##..#");
    uint64_t list[8] = {0}, position = 2 * KIB + 100;

    (void)state;
    ASSERT_CODE(blkrepl_bitmap_iterate(b, &position, list, 1), 1);
    assert_int_equal(list[0], 2 * KIB);
    assert_int_equal(position, 3 * KIB);
    ASSERT_CODE(blkrepl_bitmap_iterate(b, &position, list, 8), 1);
    assert_int_equal(list[0], 5 * KIB);
    ASSERT_CODE(blkrepl_bitmap_iterate(b, &position, list, 8), 0);
    assert_int_equal(position, 6 * KIB);
    ASSERT_CODE(blkrepl_bitmap_iterate(b, &position, list, 8), 0);
    position = 3 * KIB - 1;
    ASSERT_CODE(blkrepl_bitmap_iterate(b, &position, list, 8), 2);
    position = 0;
    ASSERT_CODE(blkrepl_bitmap_iterate(b, &position, list, UINT32_MAX), 3);
    position = UINT64_MAX;
    ASSERT_CODE(blkrepl_bitmap_iterate(b, &position, list, 8), 0);
    blkrepl_bitmap_free(b);
}

/* Granules 0, 3, 6 ... stay dirty, 1, 4, 7 ... clean, the others change. */
static void a_list_of_what_changes_meanwhile_keeps_its_promise(void **state)
{
    enum {
        COUNT = 1500
    };
    struct rng rng = {.state = 8};
    blkrepl_bitmap *b = bitmap_make(&env, COUNT * KIB, KIB);

    (void)state;
    for (uint64_t i = 0; i < COUNT; i += 3) {
        ASSERT_CODE(blkrepl_bitmap_set(b, i * KIB, 1), 0);
    }
    for (int round = 0; round < (quick() ? 5 : 30); round++) {
        uint64_t position = 0, list[7], before = 0, fixed = 0;
        uint32_t most = 1 + (uint32_t)rng_below(&rng, 7);
        int n;

        while ((n = blkrepl_bitmap_iterate(b, &position, list, most)) > 0) {
            for (int i = 0; i < n; i++) {
                assert_true(before == 0 || list[i] >= before); /* so none twice */
                before = list[i] + KIB;
                assert_true(list[i] % (3 * KIB) != KIB);
                fixed += list[i] % (3 * KIB) == 0;
            }
            for (int i = 0; i < 100; i++) {
                uint64_t at = (3 * rng_below(&rng, COUNT / 3) + 2) * KIB;

                ASSERT_CODE(rng_percent(&rng, 50) ? blkrepl_bitmap_set(b, at, KIB)
                                                  : blkrepl_bitmap_reset(b, at, KIB),
                            0);
            }
        }
        ASSERT_CODE(n, 0);
        assert_int_equal(fixed, COUNT / 3);
    }
    blkrepl_bitmap_free(b);
}

int main(void)
{
#define T(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)
    const struct CMUnitTest tests[] = {
        T(merge_adds_and_leaves_the_sources_alone),
        T(a_bitmap_may_be_its_own_source),
        T(a_refused_merge_adds_nothing),
        T(coarse_into_fine_and_back),
        T(all_pairs_of_granularities_agree_with_arrays_of_bools),
        T(what_is_added_is_clean_and_what_is_cut_off_is_gone),
        T(resize_knows_its_limits),
        T(random_sizes_agree_with_an_array_of_bools),
        T(a_list_begins_with_the_granule_that_position_lies_in),
        T(a_list_of_what_changes_meanwhile_keeps_its_promise),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
