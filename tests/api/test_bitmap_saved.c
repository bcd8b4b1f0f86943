/* SPDX-License-Identifier: MIT */
/* Bitmaps written down, read again, and read from somebody who means no good. */
#include "bits.h"

#define GRANULE KIB
#define PART (64 * GRANULE)

static struct env env;
static uint8_t data[MAP_MAX];

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

static bool inconsistent(blkrepl_bitmap *b)
{
    return bitmap_flags(b) == BLKREPL_BITMAP_INCONSISTENT;
}

/* ---- Save ---------------------------------------------------------------------------- */

static void a_part_is_64_granules(void **state)
{
    (void)state;
    assert_int_equal(blkrepl_bitmap_part_alignment(NULL), 0);
    for (unsigned shift = 0; shift < 64; shift++) {
        blkrepl_bitmap *b = bitmap_make(&env, 100, UINT64_C(1) << shift);

        assert_true(blkrepl_bitmap_part_alignment(b) == UINT64_C(1)
                                                            << (shift + 6 < 63 ? shift + 6 : 63));
        blkrepl_bitmap_free(b);
    }
}

static void the_form_is_bits_from_the_lowest(void **state)
{
    static const uint8_t want[] = {0x09, 0x80, 0x05};
    blkrepl_bitmap *b = bitmap_drawn(&env, 1, "#..#...........##.#");
    uint64_t data_bytes = sizeof data;

    (void)state;
    memset(data, 0xee, sizeof data);
    ASSERT_CODE(blkrepl_bitmap_save(b, 0, 19, data, &data_bytes), 0);
    assert_int_equal(data_bytes, 3);
    assert_memory_equal(data, want, 3);
    assert_int_equal(data[3], 0xee);
    blkrepl_bitmap_free(b);
}

static void save_says_how_much_room_it_needs(void **state)
{
    blkrepl_bitmap *b = bitmap_make(&env, 3 * PART + 9 * GRANULE - 1, GRANULE);
    uint64_t need = 0;

    (void)state;
    ASSERT_CODE(blkrepl_bitmap_set(b, 0, 3 * PART), 0);
    memset(data, 0xee, sizeof data);
    ASSERT_CODE(blkrepl_bitmap_save(b, PART, PART, NULL, &need), 0);
    assert_int_equal(need, 8);
    ASSERT_CODE(blkrepl_bitmap_save(b, 0, 3 * PART + 9 * GRANULE - 1, NULL, &need), 0);
    assert_int_equal(need, 26);
    ASSERT_CODE(blkrepl_bitmap_save(b, 3 * PART, 9 * GRANULE - 1, NULL, &need), 0);
    assert_int_equal(need, 2);
    need = 7;
    ASSERT_CODE(blkrepl_bitmap_save(b, PART, PART, data, &need), -ENOSPC);
    assert_int_equal(need, 8);
    need = 0;
    ASSERT_CODE(blkrepl_bitmap_save(b, PART, PART, data, &need), -ENOSPC);
    assert_int_equal(need, 8);
    for (size_t i = 0; i < sizeof data; i++) {
        assert_int_equal(data[i], 0xee);
    }
    ASSERT_CODE(blkrepl_bitmap_save(b, PART, PART, data, &need), 0);
    assert_int_equal(data[7], 0xff);
    assert_int_equal(data[8], 0xee);
    blkrepl_bitmap_free(b);
}

/* Ranges that are no parts of this size. */
#define BYTES (3 * PART + 9 * GRANULE - 1)
static const uint64_t no_parts[][2] = {{GRANULE, PART},
                                       {PART - 1, PART + 1},
                                       {0, GRANULE},
                                       {0, PART + 1},
                                       {PART, PART - GRANULE},
                                       {3 * PART, 9 * GRANULE},
                                       {3 * PART, 8 * GRANULE},
                                       {3 * PART, PART},
                                       {4 * PART, PART},
                                       {0, UINT64_MAX},
                                       {PART, UINT64_MAX - PART + 1},
                                       {UINT64_MAX - PART + 1, PART},
                                       {UINT64_C(1) << 63, UINT64_C(1) << 63}};

static void only_parts_are_saved(void **state)
{
    blkrepl_bitmap *b = bitmap_make(&env, BYTES, GRANULE);

    (void)state;
    for (size_t i = 0; i < ARRAY_COUNT(no_parts); i++) {
        uint64_t need = sizeof data;

        ASSERT_CODE(blkrepl_bitmap_save(b, no_parts[i][0], no_parts[i][1], data, &need), -EINVAL);
        ASSERT_CODE(blkrepl_bitmap_save(b, no_parts[i][0], no_parts[i][1], NULL, &need), -EINVAL);
    }
    blkrepl_bitmap_free(b);
}

/* ---- Load ---------------------------------------------------------------------------- */

static void random_parts(blkrepl_bitmap *from, blkrepl_bitmap *to, struct rng *rng)
{
    uint64_t bytes = bitmap_info(from).bytes, at = 0;
    uint64_t align = blkrepl_bitmap_part_alignment(from);

    ASSERT_CODE(blkrepl_bitmap_load_begin(to), 0);
    while (at < bytes) {
        uint64_t part = align * (1 + rng_below(rng, 4)), run = 0, need = sizeof data;

        part = part < bytes - at ? part : bytes - at;
        assert_true(inconsistent(to));
        int dirty = blkrepl_bitmap_status(from, at, part, &run);
        if (run == part && rng_percent(rng, 80)) {
            ASSERT_CODE(dirty ? blkrepl_bitmap_load_ones(to, at, part)
                              : blkrepl_bitmap_load_zeroes(to, at, part),
                        0);
        } else {
            ASSERT_CODE(blkrepl_bitmap_save(from, at, part, data, &need), 0);
            ASSERT_CODE(blkrepl_bitmap_load(to, at, part, data, need), 0);
        }
        at += part;
    }
    ASSERT_CODE(blkrepl_bitmap_load_finish(to), 0);
}

static void what_was_saved_in_parts_is_loaded_in_parts(void **state)
{
    static const uint64_t sizes[] = {1, 63, 64, 65, 1000, 2048, 4095, 4096};
    struct rng rng = {.state = 17};
    static struct map map;

    (void)state;
    for (int round = 0; round < (quick() ? 20 : 200); round++) {
        unsigned shift = (unsigned)rng_below(&rng, 50);
        uint64_t granularity = UINT64_C(1) << shift;
        uint64_t bytes = granularity * sizes[rng_below(&rng, 8)] - rng_below(&rng, granularity);
        blkrepl_bitmap *from = bitmap_make(&env, bytes, granularity);
        blkrepl_bitmap *to = bitmap_make(&env, bytes, granularity);

        map_init(&map, bytes, granularity);
        for (int i = 0; i < 3; i++) {
            uint64_t at = rng_below(&rng, bytes), length = rng_below(&rng, bytes - at);

            map_set(&map, at, length);
            ASSERT_CODE(blkrepl_bitmap_set(from, at, length), 0);
            ASSERT_CODE(blkrepl_bitmap_set(to, rng_below(&rng, bytes), 1), 0); /* is cleared */
        }
        random_parts(from, to, &rng);
        assert_int_equal(bitmap_flags(to), 0);
        ASSERT_MAP(to, &map);
        blkrepl_bitmap_free(from);
        blkrepl_bitmap_free(to);
    }
}

static void an_all_dirty_part_may_be_the_largest_bitmap(void **state)
{
    blkrepl_bitmap *b = bitmap_make(&env, SIZE_MAX_OF_IMAGES, UINT64_C(1) << 58);

    (void)state;
    ASSERT_CODE(blkrepl_bitmap_load_begin(b), 0);
    ASSERT_CODE(blkrepl_bitmap_load_ones(b, 0, SIZE_MAX_OF_IMAGES), 0);
    ASSERT_CODE(blkrepl_bitmap_load_finish(b), 0);
    ASSERT_BITS(b, "################################");
    assert_true(bitmap_info(b).dirty_bytes == SIZE_MAX_OF_IMAGES);
    blkrepl_bitmap_free(b);
}

static void a_load_of_nothing_is_a_load(void **state)
{
    blkrepl_bitmap *b = bitmap_make(&env, 0, GRANULE);

    (void)state;
    ASSERT_CODE(blkrepl_bitmap_load_begin(b), 0);
    assert_true(inconsistent(b));
    ASSERT_CODE(blkrepl_bitmap_load_finish(b), 0);
    ASSERT_BITS(b, "");
    blkrepl_bitmap_free(b);
}

static void until_its_end_a_load_shows_nothing(void **state)
{
    blkrepl_bitmap *b = bitmap_make(&env, BYTES, GRANULE);

    (void)state;
    ASSERT_CODE(blkrepl_bitmap_set(b, 0, BYTES), 0);
    ASSERT_CODE(blkrepl_bitmap_load_begin(b), 0);
    assert_true(inconsistent(b));
    ASSERT_CODE(blkrepl_bitmap_load_ones(b, 0, PART), 0);
    assert_true(inconsistent(b));
    assert_int_equal(bitmap_info(b).dirty_granules, 0);
    assert_int_equal(bitmap_info(b).dirty_bytes, 0);
    ASSERT_CODE(blkrepl_bitmap_load_finish(b), -EINVAL); /* parts are missing */
    assert_true(inconsistent(b));
    ASSERT_CODE(blkrepl_bitmap_load_zeroes(b, PART, 2 * PART), 0);
    ASSERT_CODE(blkrepl_bitmap_load_finish(b), -EINVAL);
    ASSERT_CODE(blkrepl_bitmap_load_zeroes(b, 3 * PART, 9 * GRANULE - 1), 0);
    assert_true(inconsistent(b));
    ASSERT_CODE(blkrepl_bitmap_load_finish(b), 0);
    assert_int_equal(bitmap_flags(b), 0);
    assert_int_equal(bitmap_info(b).dirty_bytes, PART);
    ASSERT_CODE(blkrepl_bitmap_load_finish(b), BLKREPL_ERR_STATE);
    ASSERT_CODE(blkrepl_bitmap_load_ones(b, 0, PART), BLKREPL_ERR_STATE);
    assert_int_equal(bitmap_info(b).dirty_bytes, PART);
    blkrepl_bitmap_free(b);
}

static void a_load_may_be_begun_anew(void **state)
{
    blkrepl_bitmap *b = bitmap_make(&env, 2 * PART, GRANULE);

    (void)state;
    ASSERT_CODE(blkrepl_bitmap_load_begin(b), 0);
    ASSERT_CODE(blkrepl_bitmap_load_ones(b, 0, 2 * PART), 0);
    ASSERT_CODE(blkrepl_bitmap_load_begin(b), 0);
    ASSERT_CODE(blkrepl_bitmap_load_finish(b), -EINVAL);
    ASSERT_CODE(blkrepl_bitmap_load_ones(b, PART, PART), -EINVAL);
    ASSERT_CODE(blkrepl_bitmap_load_zeroes(b, 0, PART), 0);
    ASSERT_CODE(blkrepl_bitmap_load_ones(b, PART, PART), 0);
    ASSERT_CODE(blkrepl_bitmap_load_finish(b), 0);
    assert_int_equal(bitmap_info(b).dirty_bytes, PART);
    ASSERT_CODE(blkrepl_bitmap_get(b, PART - 1), 0);
    ASSERT_CODE(blkrepl_bitmap_validate(b), 0);
    blkrepl_bitmap_free(b);
}

/* ---- Input of somebody else ------------------------------------------------------------- */

/* Each wrong part, then the right one; nothing of the wrong ones may show. */
static void a_refused_part_changes_nothing_and_the_right_one_may_follow(void **state)
{
    uint64_t right[][2] = {{0, 2 * PART}, {2 * PART, PART}, {3 * PART, 9 * GRANULE - 1}};
    blkrepl_bitmap *b = bitmap_make(&env, BYTES, GRANULE);

    (void)state;
    ASSERT_CODE(blkrepl_bitmap_load_begin(b), 0);
    for (size_t step = 0; step < ARRAY_COUNT(right); step++) {
        uint64_t at = right[step][0], bytes = right[step][1];
        uint64_t need = (bytes / GRANULE + (bytes % GRANULE != 0) + 7) / 8;

        memset(data, 0xff, sizeof data);
        for (size_t i = 0; i < ARRAY_COUNT(no_parts); i++) {
            uint64_t o = no_parts[i][0], n = no_parts[i][1];

            ASSERT_CODE(blkrepl_bitmap_load(b, o, n, data, n / GRANULE / 8), -EINVAL);
            ASSERT_CODE(blkrepl_bitmap_load(b, o, n, data, 8), -EINVAL);
            ASSERT_CODE(blkrepl_bitmap_load_ones(b, o, n), -EINVAL);
            ASSERT_CODE(blkrepl_bitmap_load_zeroes(b, o, n), -EINVAL);
        }
        for (uint64_t o = 0; o < 4 * PART; o += PART) {
            if (o != at) { /* a part, but not the next one */
                ASSERT_CODE(blkrepl_bitmap_load_ones(b, o, o < 3 * PART ? PART : 9 * GRANULE - 1),
                            -EINVAL);
            }
        }
        ASSERT_CODE(blkrepl_bitmap_load(b, at, bytes, data, need - 1), -EINVAL);
        ASSERT_CODE(blkrepl_bitmap_load(b, at, bytes, data, need + 1), -EINVAL);
        ASSERT_CODE(blkrepl_bitmap_load(b, at, bytes, data, 0), -EINVAL);
        ASSERT_CODE(blkrepl_bitmap_load(b, at, bytes, data, UINT64_MAX), -EINVAL);
        ASSERT_CODE(blkrepl_bitmap_load(b, at, bytes, NULL, need), -EINVAL);
        assert_true(inconsistent(b));
        memset(data, 0, sizeof data);
        data[0] = 1;
        ASSERT_CODE(blkrepl_bitmap_load(b, at, bytes, data, need), 0);
    }
    ASSERT_CODE(blkrepl_bitmap_load_finish(b), 0);
    assert_int_equal(bitmap_info(b).dirty_granules, 3);
    for (size_t step = 0; step < ARRAY_COUNT(right); step++) {
        ASSERT_CODE(blkrepl_bitmap_get(b, right[step][0]), 1);
    }
    ASSERT_CODE(blkrepl_bitmap_validate(b), 0);
    blkrepl_bitmap_free(b);
}

static void bits_behind_the_last_granule_are_ignored(void **state)
{
    uint64_t found = 0, need = sizeof data;
    blkrepl_bitmap *b = bitmap_make(&env, 13 * GRANULE, GRANULE);

    (void)state;
    for (int ones = 0; ones < 2; ones++) {
        ASSERT_CODE(blkrepl_bitmap_load_begin(b), 0);
        ASSERT_CODE(ones ? blkrepl_bitmap_load_ones(b, 0, 13 * GRANULE)
                         : blkrepl_bitmap_load(b, 0, 13 * GRANULE, "\xff\xff", 2),
                    0);
        ASSERT_CODE(blkrepl_bitmap_load_finish(b), 0);
        ASSERT_BITS(b, "#############");
        ASSERT_CODE(blkrepl_bitmap_next_clean(b, 0, UINT64_MAX, &found), 0);
        ASSERT_CODE(blkrepl_bitmap_save(b, 0, 13 * GRANULE, data, &need), 0);
        assert_memory_equal(data, "\xff\x1f", 2);
        ASSERT_CODE(blkrepl_bitmap_resize(b, 20 * GRANULE), 0);
        ASSERT_BITS(b, "#############.......");
        ASSERT_CODE(blkrepl_bitmap_resize(b, 13 * GRANULE), 0);
    }
    blkrepl_bitmap_free(b);
}

/* Random calls with random numbers: whatever they are answered, what is there in
 * the end is sound. */
static void random_input_leaves_a_sound_bitmap(void **state)
{
    struct rng rng = {.state = 23};
    blkrepl_bitmap *b = bitmap_make(&env, BYTES, GRANULE);

    (void)state;
    for (int i = 0; i < (quick() ? 3000 : 30000); i++) {
        uint64_t at = rng_below(&rng, 5) * PART + (rng_percent(&rng, 10) ? rng_below(&rng, 99) : 0);
        uint64_t bytes = rng_percent(&rng, 50) ? BYTES - at : rng_below(&rng, 5) * PART;

        for (size_t k = 0; k < 32; k++) {
            data[k] = (uint8_t)rng_below(&rng, 256);
        }
        switch (rng_below(&rng, 8)) {
        case 0:
        case 1: blkrepl_bitmap_load(b, at, bytes, data, rng_below(&rng, 30)); break;
        case 2:
        case 3: blkrepl_bitmap_load(b, at, bytes, data, (bytes / GRANULE + 8) / 8); break;
        case 4: blkrepl_bitmap_load_ones(b, at, bytes); break;
        case 5: blkrepl_bitmap_load_zeroes(b, at, bytes); break;
        case 6:
            if (rng_percent(&rng, 30)) {
                ASSERT_CODE(blkrepl_bitmap_load_begin(b), 0);
            }
            break;
        default:
            if (blkrepl_bitmap_load_finish(b) == 0) {
                assert_int_equal(bitmap_flags(b), 0);
            }
            break;
        }
        ASSERT_CODE(blkrepl_bitmap_validate(b), 0);
        assert_true(bitmap_info(b).dirty_bytes <= BYTES);
    }
    blkrepl_bitmap_free(b);
}

/* ---- Digest -------------------------------------------------------------------------------- */

static void assert_digest(blkrepl_bitmap *b, const char *want)
{
    uint8_t digest[33];
    char got[65] = "";

    digest[32] = 0xee;
    ASSERT_CODE(blkrepl_bitmap_sha256(b, digest), 0);
    assert_int_equal(digest[32], 0xee);
    for (size_t i = 0; i < 32; i++) {
        snprintf(got + 2 * i, 3, "%02x", digest[i]);
    }
    assert_string_equal(got, want);
}

/* One with these bytes as its content, loaded in parts of `step` bytes. */
static blkrepl_bitmap *bitmap_of(const uint8_t *bytes, uint64_t count, uint64_t step)
{
    blkrepl_bitmap *b = bitmap_make(&env, 8 * count, 1);

    ASSERT_CODE(blkrepl_bitmap_load_begin(b), 0);
    for (uint64_t at = 0; at < count; at += step) {
        uint64_t n = count - at < step ? count - at : step;

        ASSERT_CODE(blkrepl_bitmap_load(b, 8 * at, 8 * n, bytes + at, n), 0);
    }
    ASSERT_CODE(blkrepl_bitmap_load_finish(b), 0);
    return b;
}

/* The digests were computed elsewhere; the first are those of the standard. */
static void the_digest_is_that_of_the_saved_form(void **state)
{
    static const char two_blocks[] = "abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq";
    static const struct {
        uint64_t count;
        const char *digest;
    } known[] = {
        {55, "2900465fcb533e05a158fd2b3be0e5e3b03740d83060aa3580e0d98a96bf2384"},
        {56, "31454ff48ef36af2f08fd511bdc37d9d5855ac23e992e5ff5445cb6b7674a674"},
        {63, "5f6401b96532c36de4e65beec0409b69b1d181864c8009b7a04f43e5d56350d1"},
        {64, "94eb5de4943613fd048dc93393ab06877405faa39c11f53e9386083339833e7e"},
        {65, "fc518669b6eb4b4dd91827ecacef86689c725bd5bab888fd3b26dbb196eec954"},
        {119, "b0dc41b1a384e2f1203f0351b38fbeaafceef577ce1191d5bfc25da39f721eae"},
        {120, "5df24dd802ac26132ce608dcb5f09841eef039ee0f152acf98d26d17fe4e88e6"},
        {128, "0aedd4856f8eba0963627336ad5144a9a7dbe12498e6066f0165fc97d8ddee4c"},
        {1000, "57799de80e3dd6e2ac4d40c41a150d1662f7f87d0d994776a2fdc37c39b0ea4e"},
    };
    blkrepl_bitmap *b = bitmap_of((const uint8_t *)"abc", 3, 8);

    (void)state;
    assert_digest(b, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    blkrepl_bitmap_free(b);
    b = bitmap_of((const uint8_t *)two_blocks, 56, 16);
    assert_digest(b, "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1");
    blkrepl_bitmap_free(b);
    for (size_t i = 0; i < 1000; i++) {
        data[i] = (uint8_t)(i * 37 + 11);
    }
    for (size_t i = 0; i < ARRAY_COUNT(known); i++) {
        b = bitmap_of(data, known[i].count, 8 * (1 + i));
        assert_digest(b, known[i].digest);
        blkrepl_bitmap_free(b);
    }
}

static void the_digest_knows_empty_short_and_long_ones(void **state)
{
    blkrepl_bitmap *b = bitmap_make(&env, 0, 1);

    (void)state;
    assert_digest(b, "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
    ASSERT_CODE(blkrepl_bitmap_resize(b, 1), 0);
    assert_digest(b, "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d");
    ASSERT_CODE(blkrepl_bitmap_set(b, 0, 1), 0);
    assert_digest(b, "4bf5122f344554c53bde2ebb8cd2b7e3d1600ad631c385a5d7cce23c7785459a");
    ASSERT_CODE(blkrepl_bitmap_resize(b, 13), 0);
    ASSERT_CODE(blkrepl_bitmap_set(b, 0, 13), 0);
    assert_digest(b, "03f698dbe0cd19aecf9b158f2670c6adc273a9297064dd8e64d961f9009b2019");
    ASSERT_CODE(blkrepl_bitmap_clear(b), 0);
    ASSERT_CODE(blkrepl_bitmap_resize(b, 8000000), 0);
    assert_digest(b, "d29751f2649b32ff572b5e0a9f541ea660a50f94ff0beedfb0b692b924cc8025");
    ASSERT_CODE(blkrepl_bitmap_invert(b), 0);
    assert_digest(b, "bfa872a3021d48c84643f831ee5f9358bceccf3ad6a5f8b3a7a00e0b3f22bdbc");
    blkrepl_bitmap_free(b);
}

int main(void)
{
#define T(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)
    const struct CMUnitTest tests[] = {
        T(a_part_is_64_granules),
        T(the_form_is_bits_from_the_lowest),
        T(save_says_how_much_room_it_needs),
        T(only_parts_are_saved),
        T(what_was_saved_in_parts_is_loaded_in_parts),
        T(an_all_dirty_part_may_be_the_largest_bitmap),
        T(a_load_of_nothing_is_a_load),
        T(until_its_end_a_load_shows_nothing),
        T(a_load_may_be_begun_anew),
        T(a_refused_part_changes_nothing_and_the_right_one_may_follow),
        T(bits_behind_the_last_granule_are_ignored),
        T(random_input_leaves_a_sound_bitmap),
        T(the_digest_is_that_of_the_saved_form),
        T(the_digest_knows_empty_short_and_long_ones),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
