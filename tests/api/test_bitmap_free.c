/* SPDX-License-Identifier: MIT */
/* Free-standing bitmaps: what may be made, and every look at what is set in them.
 * Saving and loading is in test_bitmap_saved.c. */
#include "bits.h"

#define GRANULES_MAX (UINT64_C(1) << 38)

static struct env env;
static blkrepl_bitmap_options o;

static void fresh(void)
{
    o = (blkrepl_bitmap_options){
        .struct_size = sizeof o, .bytes = 10 * KIB, .granularity_bytes = KIB};
}

static int set_up(void **state)
{
    (void)state;
    env_open(&env, NULL, 0);
    fresh();
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    env_close(&env);
    return 0;
}

/* ---- Options ------------------------------------------------------------------- */

static void refused(int code)
{
    blkrepl_bitmap *out = (blkrepl_bitmap *)&env;
    uint64_t live = env.heap.live;

    ASSERT_CODE(blkrepl_bitmap_create(env.ctx, &o, &out), code);
    assert_null(out);
    assert_true(strlen(blkrepl_error_message()) > 0);
    assert_int_equal(env.heap.live, live);
    fresh();
}

static blkrepl_bitmap_info accepted(void)
{
    blkrepl_bitmap *out = NULL;

    ASSERT_CODE(blkrepl_bitmap_create(env.ctx, &o, &out), 0);
    assert_non_null(out);
    blkrepl_bitmap_info info = bitmap_info(out);
    assert_int_equal(info.flags, 0);
    assert_int_equal(info.image_id, 0);
    assert_int_equal(info.dirty_granules, 0);
    assert_int_equal(info.dirty_bytes, 0);
    assert_int_equal(info.since_bytes, 0);
    assert_true(info.id != 0);
    ASSERT_CODE(blkrepl_bitmap_validate(out), 0);
    blkrepl_bitmap_free(out);
    fresh();
    return info;
}

static void null_options_mean_all_defaults(void **state)
{
    blkrepl_bitmap *out = NULL;

    (void)state;
    ASSERT_CODE(blkrepl_bitmap_create(env.ctx, NULL, &out), 0);
    assert_int_equal(bitmap_info(out).bytes, 0);
    assert_int_equal(bitmap_info(out).granularity_bytes, BLKREPL_BITMAP_GRANULARITY_DEFAULT);
    assert_string_equal(bitmap_info(out).name, "");
    blkrepl_bitmap_free(out);
}

static void the_options_of_other_releases_are_understood_or_refused(void **state)
{
    struct {
        blkrepl_bitmap_options known;
        uint64_t unknown[2];
    } newer = {.known = o};
    blkrepl_bitmap *out = NULL;

    (void)state;
    for (uint32_t size = 0; size < sizeof o; size++) {
        o.struct_size = size;
        refused(-EINVAL);
    }
    newer.known.struct_size = sizeof newer;
    ASSERT_CODE(blkrepl_bitmap_create(env.ctx, &newer.known, &out), 0);
    blkrepl_bitmap_free(out);
    newer.unknown[1] = 1;
    out = (blkrepl_bitmap *)&env;
    ASSERT_CODE(blkrepl_bitmap_create(env.ctx, &newer.known, &out), BLKREPL_ERR_VERSION);
    assert_null(out);
}

static void flags_are_refused(void **state)
{
    (void)state;
    for (unsigned bit = 0; bit < 32; bit++) {
        o.flags = UINT32_C(1) << bit; /* DISABLED is for named ones only */
        refused(-EINVAL);
    }
}

static void every_power_of_two_is_a_granularity_and_nothing_else(void **state)
{
    (void)state;
    for (unsigned shift = 0; shift < 64; shift++) {
        uint64_t granularity = UINT64_C(1) << shift;

        o.granularity_bytes = granularity;
        assert_true(accepted().granularity_bytes == granularity);
        o.granularity_bytes = granularity + 1;
        if (granularity > 1) {
            refused(-EINVAL);
            o.granularity_bytes = granularity - 1;
            if (granularity > 2) {
                refused(-EINVAL);
            }
        }
        fresh();
    }
    o.granularity_bytes = UINT64_MAX;
    refused(-EINVAL);
    o.granularity_bytes = 0;
    assert_int_equal(accepted().granularity_bytes, BLKREPL_BITMAP_GRANULARITY_DEFAULT);
}

static void a_bitmap_is_as_large_as_an_image_may_be(void **state)
{
    (void)state;
    o.granularity_bytes = UINT64_C(1) << 63;
    o.bytes = SIZE_MAX_OF_IMAGES;
    assert_true(accepted().bytes == SIZE_MAX_OF_IMAGES);
    o.granularity_bytes = UINT64_C(1) << 50;
    o.bytes = SIZE_MAX_OF_IMAGES;
    assert_true(accepted().bytes == SIZE_MAX_OF_IMAGES);
    o.granularity_bytes = UINT64_C(1) << 63;
    o.bytes = SIZE_MAX_OF_IMAGES + 1;
    refused(-EINVAL);
    o.bytes = UINT64_MAX;
    refused(-EINVAL);
}

static void more_granules_than_2_to_the_38th_are_refused(void **state)
{
    (void)state;
    for (unsigned shift = 0; shift < 25; shift += 4) {
        uint64_t most = GRANULES_MAX << shift;

        o.granularity_bytes = UINT64_C(1) << shift;
        o.bytes = most + 1;
        refused(-EFBIG);
        env.heap.fail_at = 1;
        env.heap.fail_on = true;
        o.granularity_bytes = UINT64_C(1) << shift;
        o.bytes = most;
        refused(-ENOMEM); /* the size is good, the memory is not there */
        env.heap.fail_on = false;
        env.heap.fail_at = 0;
    }
}

static void a_name_may_be_left_out_long_and_not_the_only_one(void **state)
{
    char name[BLKREPL_BITMAP_NAME_MAX + 2];
    blkrepl_bitmap *first = NULL, *second = NULL;

    (void)state;
    memset(name, 'n', sizeof name);
    name[BLKREPL_BITMAP_NAME_MAX + 1] = '\0';
    o.name = name;
    refused(-EINVAL);
    o.name = "";
    refused(-EINVAL);
    name[BLKREPL_BITMAP_NAME_MAX] = '\0';
    o.name = name;
    o.user = &env;
    ASSERT_CODE(blkrepl_bitmap_create(env.ctx, &o, &first), 0);
    ASSERT_CODE(blkrepl_bitmap_create(env.ctx, &o, &second), 0);
    memset(name, 'x', BLKREPL_BITMAP_NAME_MAX); /* it was copied */
    blkrepl_bitmap_info info = bitmap_info(second);
    assert_int_equal(strlen(info.name), BLKREPL_BITMAP_NAME_MAX);
    assert_int_equal(strspn(info.name, "n"), BLKREPL_BITMAP_NAME_MAX);
    assert_ptr_equal(info.user, &env);
    assert_true(info.id != bitmap_info(first).id);
    blkrepl_bitmap_free(first);
    blkrepl_bitmap_free(second);
    fresh();
    assert_string_equal(accepted().name, "");
}

static void what_is_known_fits_the_callers_struct(void **state)
{
    struct {
        blkrepl_bitmap_info known;
        uint64_t unknown[3];
    } newer;
    blkrepl_bitmap *b = bitmap_drawn(&env, KIB, "#.");

    (void)state;
    for (uint32_t size = 0; size < sizeof newer.known; size += 8) {
        newer.known.struct_size = size;
        ASSERT_CODE(blkrepl_bitmap_query(b, &newer.known), -EINVAL);
    }
    memset(&newer, 0xee, sizeof newer);
    newer.known.struct_size = sizeof newer;
    ASSERT_CODE(blkrepl_bitmap_query(b, &newer.known), 0);
    assert_int_equal(newer.known.struct_size, sizeof newer);
    assert_int_equal(newer.known.dirty_bytes, KIB);
    assert_true(all_zero(newer.unknown, sizeof newer.unknown));
    blkrepl_bitmap_free(b);
}

/* ---- Ranges --------------------------------------------------------------------- */

static void set_rounds_outward(void **state)
{
    blkrepl_bitmap *b = bitmap_make(&env, 10 * KIB - 100, KIB);

    (void)state;
    ASSERT_CODE(blkrepl_bitmap_set(b, 2 * KIB - 1, 2), 0);
    ASSERT_BITS(b, ".##.......");
    ASSERT_CODE(blkrepl_bitmap_set(b, 4 * KIB, KIB), 0);
    ASSERT_BITS(b, ".##.#.....");
    ASSERT_CODE(blkrepl_bitmap_set(b, 10 * KIB - 101, 1), 0);
    ASSERT_BITS(b, ".##.#....#");
    assert_int_equal(bitmap_info(b).dirty_bytes, 4 * KIB - 100);
    ASSERT_CODE(blkrepl_bitmap_set(b, 0, 10 * KIB - 100), 0);
    ASSERT_BITS(b, "##########");
    assert_int_equal(bitmap_info(b).dirty_bytes, 10 * KIB - 100);
    blkrepl_bitmap_free(b);
}

static void ranges_must_lie_inside(void **state)
{
    static const uint64_t wrong[][2] = {{10 * KIB + 1, 0},
                                        {10 * KIB, 1},
                                        {9 * KIB, KIB + 1},
                                        {0, 10 * KIB + 1},
                                        {KIB, UINT64_MAX},
                                        {KIB, UINT64_MAX - KIB + 1},
                                        {UINT64_MAX, 1},
                                        {UINT64_MAX - KIB + 1, 2 * KIB},
                                        {UINT64_C(1) << 63, UINT64_C(1) << 63}};
    blkrepl_bitmap *b = bitmap_drawn(&env, KIB, "#.#.#.#.#.");
    uint64_t run = 77;

    (void)state;
    for (size_t i = 0; i < ARRAY_COUNT(wrong); i++) {
        ASSERT_CODE(blkrepl_bitmap_set(b, wrong[i][0], wrong[i][1]), -EINVAL);
        ASSERT_CODE(blkrepl_bitmap_reset(b, wrong[i][0], wrong[i][1]), -EINVAL);
        ASSERT_CODE(blkrepl_bitmap_status(b, wrong[i][0], wrong[i][1], &run), -EINVAL);
    }
    ASSERT_CODE(blkrepl_bitmap_get(b, 10 * KIB), -EINVAL);
    ASSERT_CODE(blkrepl_bitmap_get(b, UINT64_MAX), -EINVAL);
    ASSERT_CODE(blkrepl_bitmap_set(b, 10 * KIB, 0), 0);
    ASSERT_CODE(blkrepl_bitmap_set(b, KIB + 1, 0), 0);
    ASSERT_CODE(blkrepl_bitmap_reset(b, 10 * KIB, 0), 0);
    ASSERT_CODE(blkrepl_bitmap_reset(b, 2 * KIB, 0), 0);
    ASSERT_CODE(blkrepl_bitmap_status(b, 0, 0, &run), -EINVAL);
    ASSERT_BITS(b, "#.#.#.#.#.");
    blkrepl_bitmap_free(b);
}

static void reset_takes_whole_granules_and_the_short_last_one(void **state)
{
    blkrepl_bitmap *b = bitmap_make(&env, 4 * KIB - 1, KIB);

    (void)state;
    bitmap_draw(b, "####");
    ASSERT_CODE(blkrepl_bitmap_reset(b, 1, KIB), -EINVAL);
    ASSERT_CODE(blkrepl_bitmap_reset(b, 0, KIB - 1), -EINVAL);
    ASSERT_CODE(blkrepl_bitmap_reset(b, 0, KIB + 1), -EINVAL);
    ASSERT_CODE(blkrepl_bitmap_reset(b, 3 * KIB, KIB - 2), -EINVAL);
    ASSERT_CODE(blkrepl_bitmap_reset(b, 3 * KIB, KIB), -EINVAL); /* not inside */
    ASSERT_BITS(b, "####");
    ASSERT_CODE(blkrepl_bitmap_reset(b, KIB, KIB), 0);
    ASSERT_BITS(b, "#.##");
    ASSERT_CODE(blkrepl_bitmap_reset(b, 3 * KIB, KIB - 1), 0);
    ASSERT_BITS(b, "#.#.");
    ASSERT_CODE(blkrepl_bitmap_reset(b, 0, 4 * KIB - 1), 0);
    ASSERT_BITS(b, "....");
    blkrepl_bitmap_free(b);
}

static void a_bitmap_of_0_bytes_can_be_used(void **state)
{
    blkrepl_bitmap *b = bitmap_make(&env, 0, KIB);
    uint64_t found = 77, position = 0, list[1];
    blkrepl_area area = {7, 7};

    (void)state;
    ASSERT_BITS(b, "");
    ASSERT_CODE(blkrepl_bitmap_set(b, 0, 0), 0);
    ASSERT_CODE(blkrepl_bitmap_set(b, 0, 1), -EINVAL);
    ASSERT_CODE(blkrepl_bitmap_reset(b, 0, 0), 0);
    ASSERT_CODE(blkrepl_bitmap_get(b, 0), -EINVAL);
    ASSERT_CODE(blkrepl_bitmap_next_dirty(b, 0, UINT64_MAX, &found), 0);
    ASSERT_CODE(blkrepl_bitmap_next_clean(b, 0, UINT64_MAX, &found), 0);
    ASSERT_CODE(blkrepl_bitmap_next_area(b, 0, UINT64_MAX, 0, &area), 0);
    ASSERT_CODE(blkrepl_bitmap_status(b, 0, 1, &found), -EINVAL);
    ASSERT_CODE(blkrepl_bitmap_iterate(b, &position, list, 1), 0);
    assert_true(found == 77 && area.offset == 7 && area.bytes == 7);
    ASSERT_CODE(blkrepl_bitmap_invert(b), 0);
    ASSERT_CODE(blkrepl_bitmap_clear(b), 0);
    ASSERT_CODE(bitmap_merge_one(b, b), 0);
    ASSERT_BITS(b, "");
    ASSERT_CODE(blkrepl_bitmap_resize(b, 2 * KIB), 0);
    ASSERT_BITS(b, "..");
    ASSERT_CODE(blkrepl_bitmap_set(b, 0, 1), 0);
    ASSERT_CODE(blkrepl_bitmap_resize(b, 0), 0);
    ASSERT_BITS(b, "");
    blkrepl_bitmap_free(b);
}

/* ---- Looking ----------------------------------------------------------------------- */

static void next_dirty_and_next_clean_are_never_below_the_range(void **state)
{
    blkrepl_bitmap *b = bitmap_make(&env, 8 * KIB - 10, KIB);
    uint64_t found = 77;

    (void)state;
    bitmap_draw(b, "..##..#.");
    ASSERT_CODE(blkrepl_bitmap_next_dirty(b, 0, UINT64_MAX, &found), 1);
    assert_int_equal(found, 2 * KIB);
    ASSERT_CODE(blkrepl_bitmap_next_dirty(b, 2 * KIB + 5, UINT64_MAX, &found), 1);
    assert_int_equal(found, 2 * KIB + 5);
    ASSERT_CODE(blkrepl_bitmap_next_clean(b, 2 * KIB + 5, UINT64_MAX, &found), 1);
    assert_int_equal(found, 4 * KIB);
    ASSERT_CODE(blkrepl_bitmap_next_clean(b, 7, 1, &found), 1);
    assert_int_equal(found, 7);
    ASSERT_CODE(blkrepl_bitmap_next_dirty(b, 0, 2 * KIB + 1, &found), 1);
    assert_int_equal(found, 2 * KIB);
    found = 77;
    ASSERT_CODE(blkrepl_bitmap_next_dirty(b, 0, 2 * KIB, &found), 0);
    ASSERT_CODE(blkrepl_bitmap_next_clean(b, 2 * KIB, 2 * KIB, &found), 0);
    ASSERT_CODE(blkrepl_bitmap_next_dirty(b, 7 * KIB, UINT64_MAX, &found), 0);
    ASSERT_CODE(blkrepl_bitmap_next_dirty(b, 2 * KIB, 0, &found), 0);
    ASSERT_CODE(blkrepl_bitmap_next_clean(b, 0, 0, &found), 0);
    ASSERT_CODE(blkrepl_bitmap_next_clean(b, 8 * KIB - 10, UINT64_MAX, &found), 0);
    ASSERT_CODE(blkrepl_bitmap_next_clean(b, UINT64_MAX, UINT64_MAX, &found), 0);
    ASSERT_CODE(blkrepl_bitmap_next_dirty(b, UINT64_MAX, 1, &found), 0);
    assert_int_equal(found, 77);
    blkrepl_bitmap_free(b);
}

static void assert_area(blkrepl_bitmap *b, const uint64_t range[2], uint64_t max_bytes,
                        uint64_t offset, uint64_t bytes)
{
    blkrepl_area area = {77, 78};

    ASSERT_CODE(blkrepl_bitmap_next_area(b, range[0], range[1], max_bytes, &area), bytes > 0);
    assert_true(area.offset == (bytes ? offset : 77));
    assert_true(area.bytes == (bytes ? bytes : 78));
}

#define RANGE(offset, bytes) ((const uint64_t[2]){(offset), (bytes)})

static void next_area_is_clipped_by_range_bound_and_end(void **state)
{
    blkrepl_bitmap *b = bitmap_make(&env, 8 * KIB - 10, KIB);

    (void)state;
    bitmap_draw(b, ".###..##");
    assert_area(b, RANGE(0, UINT64_MAX), 0, KIB, 3 * KIB);
    assert_area(b, RANGE(0, UINT64_MAX), UINT64_MAX, KIB, 3 * KIB);
    assert_area(b, RANGE(0, UINT64_MAX), 5, KIB, 5);
    assert_area(b, RANGE(0, UINT64_MAX), KIB + 1, KIB, KIB + 1);
    assert_area(b, RANGE(KIB + 3, UINT64_MAX), 0, KIB + 3, 3 * KIB - 3);
    assert_area(b, RANGE(KIB + 3, 9), 0, KIB + 3, 9);
    assert_area(b, RANGE(0, KIB + 1), 0, KIB, 1);
    assert_area(b, RANGE(4 * KIB, UINT64_MAX), 0, 6 * KIB, 2 * KIB - 10);
    assert_area(b, RANGE(0, KIB), 0, 0, 0);
    assert_area(b, RANGE(4 * KIB, 2 * KIB), 0, 0, 0);
    assert_area(b, RANGE(2 * KIB, 0), 0, 0, 0);
    assert_area(b, RANGE(8 * KIB - 10, UINT64_MAX), 0, 0, 0);
    assert_area(b, RANGE(UINT64_MAX, UINT64_MAX), 1, 0, 0);
    blkrepl_bitmap_free(b);
}

static void assert_status(blkrepl_bitmap *b, uint64_t offset, uint64_t bytes, int dirty,
                          uint64_t run)
{
    uint64_t got = 77;

    ASSERT_CODE(blkrepl_bitmap_status(b, offset, bytes, &got), dirty);
    assert_int_equal(got, run);
}

static void status_tells_how_long_it_goes_on(void **state)
{
    blkrepl_bitmap *b = bitmap_make(&env, 8 * KIB - 10, KIB);

    (void)state;
    bitmap_draw(b, ".###..##");
    assert_status(b, 0, 8 * KIB - 10, 0, KIB);
    assert_status(b, KIB - 1, 100, 0, 1);
    assert_status(b, KIB, 7 * KIB - 10, 1, 3 * KIB);
    assert_status(b, KIB + 1, 7, 1, 7);
    assert_status(b, 6 * KIB, 2 * KIB - 10, 1, 2 * KIB - 10);
    assert_status(b, 8 * KIB - 11, 1, 1, 1);
    blkrepl_bitmap_free(b);
}

/* A map and its bitmap, compared at one random place with every look there is. */
static void looks_agree(const struct map *map, blkrepl_bitmap *b, struct rng *rng)
{
    uint64_t offset = rng_below(rng, map->bytes);
    uint64_t bytes = 1 + rng_below(rng, map->bytes - offset), max = rng_below(rng, bytes);
    uint64_t dirty = 0, clean = 0, run = 0;
    size_t first = (size_t)(offset / map->granularity), at = first;
    blkrepl_area area = {0, 0};

    while (at < map->count && map->dirty[at] == map->dirty[first]) {
        at++;
    }
    uint64_t turn = at < map->count ? at * map->granularity : map->bytes;
    uint64_t length = turn - offset < bytes ? turn - offset : bytes;
    ASSERT_CODE(blkrepl_bitmap_get(b, offset), map->dirty[first]);
    ASSERT_CODE(blkrepl_bitmap_status(b, offset, bytes, &run), map->dirty[first]);
    assert_true(run == length);
    bool turns = length < bytes;
    ASSERT_CODE(blkrepl_bitmap_next_dirty(b, offset, bytes, &dirty), map->dirty[first] || turns);
    ASSERT_CODE(blkrepl_bitmap_next_clean(b, offset, bytes, &clean), !map->dirty[first] || turns);
    if (map->dirty[first]) {
        assert_true(dirty == offset && (!turns || clean == turn));
        ASSERT_CODE(blkrepl_bitmap_next_area(b, offset, bytes, max, &area), 1);
        assert_true(area.offset == offset);
        assert_true(area.bytes == (max && max < length ? max : length));
    } else {
        assert_true(clean == offset && (!turns || dirty == turn));
    }
}

/* One random change of both. */
static void change(struct map *map, blkrepl_bitmap *b, struct rng *rng)
{
    uint64_t offset = rng_below(rng, map->bytes);
    uint64_t bytes = rng_below(rng, map->bytes - offset + 1) >> rng_below(rng, 12);
    size_t first = (size_t)(offset / map->granularity);
    size_t last = first + (size_t)rng_below(rng, map->count - first);

    switch (rng_below(rng, 16)) {
    case 0:
        ASSERT_CODE(blkrepl_bitmap_invert(b), 0);
        map_invert(map);
        break;
    case 1:
        ASSERT_CODE(blkrepl_bitmap_clear(b), 0);
        map_reset(map, 0, map->bytes);
        break;
    case 2:
    case 3:
    case 4:
    case 5:
    case 6:
    case 7:
        offset = first * map->granularity;
        bytes = map_end(map, last) - offset;
        ASSERT_CODE(blkrepl_bitmap_reset(b, offset, bytes), 0);
        map_reset(map, offset, bytes);
        break;
    default:
        ASSERT_CODE(blkrepl_bitmap_set(b, offset, bytes), 0);
        map_set(map, offset, bytes);
        break;
    }
}

static void random_changes(uint64_t bytes, uint64_t granularity)
{
    struct rng rng = {.state = bytes + granularity};
    blkrepl_bitmap *b = bitmap_make(&env, bytes, granularity);
    static struct map map;

    map_init(&map, bytes, granularity);
    for (int i = 0; i < (quick() ? 60 : 300); i++) {
        change(&map, b, &rng);
        for (int k = 0; k < 30; k++) {
            looks_agree(&map, b, &rng);
        }
        ASSERT_MAP(b, &map);
    }
    blkrepl_bitmap_free(b);
}

static void every_look_agrees_with_an_array_of_bools(void **state)
{
    (void)state;
    random_changes(1, 1);
    random_changes(63, 1);
    random_changes(64, 1);
    random_changes(65, 1);
    random_changes(4096, 1);
    random_changes(1000 * KIB - 7, KIB);
    random_changes(100, KIB);
    random_changes(SIZE_MAX_OF_IMAGES, UINT64_C(1) << 63);
    random_changes(SIZE_MAX_OF_IMAGES, UINT64_C(1) << 62);
    random_changes(SIZE_MAX_OF_IMAGES, UINT64_C(1) << 51);
    random_changes(SIZE_MAX_OF_IMAGES - 12345, UINT64_C(1) << 52);
}

static void the_last_byte_of_the_largest_one_is_like_any_other(void **state)
{
    uint64_t last = SIZE_MAX_OF_IMAGES - 1, found = 0;
    blkrepl_bitmap *b = bitmap_make(&env, SIZE_MAX_OF_IMAGES, UINT64_C(1) << 45);

    (void)state;
    ASSERT_CODE(blkrepl_bitmap_set(b, last, 1), 0);
    ASSERT_CODE(blkrepl_bitmap_get(b, last), 1);
    ASSERT_CODE(blkrepl_bitmap_next_dirty(b, last, UINT64_MAX, &found), 1);
    assert_true(found == last);
    ASSERT_CODE(blkrepl_bitmap_next_dirty(b, 0, UINT64_MAX, &found), 1);
    assert_true(found == SIZE_MAX_OF_IMAGES - (UINT64_C(1) << 45) + 1);
    assert_true(bitmap_info(b).dirty_bytes == (UINT64_C(1) << 45) - 1);
    ASSERT_CODE(blkrepl_bitmap_reset(b, 0, SIZE_MAX_OF_IMAGES), 0);
    assert_int_equal(bitmap_info(b).dirty_granules, 0);
    ASSERT_CODE(blkrepl_bitmap_validate(b), 0);
    blkrepl_bitmap_free(b);
}

int main(void)
{
#define T(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)
    const struct CMUnitTest tests[] = {
        T(null_options_mean_all_defaults),
        T(the_options_of_other_releases_are_understood_or_refused),
        T(flags_are_refused),
        T(every_power_of_two_is_a_granularity_and_nothing_else),
        T(a_bitmap_is_as_large_as_an_image_may_be),
        T(more_granules_than_2_to_the_38th_are_refused),
        T(a_name_may_be_left_out_long_and_not_the_only_one),
        T(what_is_known_fits_the_callers_struct),
        T(set_rounds_outward),
        T(ranges_must_lie_inside),
        T(reset_takes_whole_granules_and_the_short_last_one),
        T(a_bitmap_of_0_bytes_can_be_used),
        T(next_dirty_and_next_clean_are_never_below_the_range),
        T(next_area_is_clipped_by_range_bound_and_end),
        T(status_tells_how_long_it_goes_on),
        T(every_look_agrees_with_an_array_of_bools),
        T(the_last_byte_of_the_largest_one_is_like_any_other),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
