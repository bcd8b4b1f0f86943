/* SPDX-License-Identifier: MIT */
/* Ranges of bytes on granules: changing, asking, resizing.  Each change is followed
 * by a comparison with the oracle of twin.h.  Names with hbNN are the rows of the
 * bitmap section of semantics.md.  Two maps at once: test_dirtymap_sets.c; how they
 * are written down: test_dirtymap_parts.c. */
#include "twin.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define BYTES_MAX ((uint64_t)INT64_MAX)
#define KIB UINT64_C(1024)

static void hb03_set_rounds_outward(void **state)
{
    struct twin t;

    (void)state;
    twin_open(&t, 100, 3, 1);
    twin_set(&t, 15, 2);
    assert_false(blkrepl__dirtymap_get(&t.map, 7));
    assert_true(blkrepl__dirtymap_get(&t.map, 8));
    assert_true(blkrepl__dirtymap_get(&t.map, 23));
    assert_false(blkrepl__dirtymap_get(&t.map, 24));
    twin_set(&t, 99, 1);
    assert_true(blkrepl__dirtymap_get(&t.map, 96));
    twin_close(&t);
}

static void hb03_a_range_of_no_bytes_does_nothing(void **state)
{
    static const uint64_t offsets[] = {0, 1, 8, 99, 100};
    struct twin t;

    (void)state;
    for (unsigned full = 0; full < 2; full++) {
        twin_open(&t, 100, 3, 1);
        twin_fill(&t, full ? UINT64_MAX : 0);
        for (size_t i = 0; i < ARRAY_COUNT(offsets); i++) {
            blkrepl__dirtymap_set(&t.map, offsets[i], 0);
            twin_compare(&t);
            blkrepl__dirtymap_mark(&t.map, offsets[i], 0);
            twin_compare(&t);
        }
        twin_reset(&t, 0, 0);
        twin_reset(&t, 96, 0);
        twin_close(&t);
    }
}

/* All ranges of small maps, and those that would overflow. */
static void hb04_whole_are_granules_and_the_tail(void **state)
{
    (void)state;
    for (uint32_t shift = 0; shift <= 4; shift++) {
        uint64_t g = UINT64_C(1) << shift;

        for (uint64_t bytes = 0; bytes <= 40; bytes++) {
            struct dirtymap map = {.bytes = bytes, .shift = shift};

            for (uint64_t i = 0; i <= 44 * 44; i++) {
                uint64_t offset = i / 44;
                uint64_t end = offset + i % 44;
                bool whole = end <= bytes && offset % g == 0 && (end % g == 0 || end == bytes);

                assert_int_equal(blkrepl__dirtymap_whole(&map, offset, end - offset), whole);
            }
            assert_false(blkrepl__dirtymap_whole(&map, g, UINT64_MAX));
            assert_false(blkrepl__dirtymap_whole(&map, g, UINT64_MAX - g + 1));
            assert_false(blkrepl__dirtymap_whole(&map, UINT64_MAX - g + 1, g));
        }
    }
}

static void hb04_reset_may_stop_at_the_end_only(void **state)
{
    struct twin t;

    (void)state;
    twin_open(&t, 200000, 16, 1);
    twin_fill(&t, UINT64_MAX);
    assert_true(blkrepl__dirtymap_whole(&t.map, 196608, 3392));
    assert_false(blkrepl__dirtymap_whole(&t.map, 196608, 3391));
    assert_false(blkrepl__dirtymap_whole(&t.map, 196608, 65536));
    assert_false(blkrepl__dirtymap_whole(&t.map, 196609, 3391));
    twin_reset(&t, 196608, 3392);
    assert_int_equal(blkrepl__dirtymap_dirty_bytes(&t.map), 196608);
    twin_close(&t);
}

static void hb05_dirty_bytes_knows_the_tail(void **state)
{
    struct twin t;

    (void)state;
    twin_open(&t, 200000, 16, 1);
    twin_set(&t, 199999, 1);
    assert_int_equal(blkrepl__dirtymap_dirty_bytes(&t.map), 3392);
    twin_set(&t, 0, 1);
    assert_int_equal(blkrepl__dirtymap_dirty_bytes(&t.map), 65536 + 3392);
    twin_set(&t, 0, 200000);
    assert_int_equal(blkrepl__dirtymap_dirty_bytes(&t.map), 200000);
    twin_close(&t);
}

static void hb06_get_takes_bytes(void **state)
{
    struct twin t;

    (void)state;
    twin_open(&t, 64 * KIB * 10, 16, 1);
    twin_set(&t, 64 * KIB * 5, 1);
    assert_false(blkrepl__dirtymap_get(&t.map, 5));
    assert_false(blkrepl__dirtymap_get(&t.map, 64 * KIB * 5 - 1));
    assert_true(blkrepl__dirtymap_get(&t.map, 64 * KIB * 5));
    assert_true(blkrepl__dirtymap_get(&t.map, 64 * KIB * 6 - 1));
    assert_false(blkrepl__dirtymap_get(&t.map, 64 * KIB * 6));
    twin_close(&t);
}

static void hb07_setting_twice_counts_once(void **state)
{
    struct twin t;

    (void)state;
    twin_open(&t, 1000, 3, 1);
    for (unsigned i = 0; i < 4; i++) {
        twin_set(&t, 100, 100);
        twin_set(&t, 150, 100);
        assert_int_equal(blkrepl__dirtymap_dirty_bytes(&t.map), 256 - 96);
    }
    twin_close(&t);
}

static void hb08_clearing_ends_a_list(void **state)
{
    uint64_t offsets[4];
    uint64_t position = 0;
    struct twin t;

    (void)state;
    twin_open(&t, 8000, 3, 1);
    twin_set(&t, 0, 8000);
    assert_int_equal(blkrepl__dirtymap_iterate(&t.map, &position, offsets, 4), 4);
    assert_int_equal(position, 32);
    twin_clear(&t);
    assert_int_equal(blkrepl__dirtymap_iterate(&t.map, &position, offsets, 4), 0);
    assert_int_equal(position, 8000);
    twin_close(&t);
}

static void hb09_a_list_begins_with_the_granule_it_is_in(void **state)
{
    uint64_t offsets[4];
    uint64_t position = 64 * KIB * 3 + 1;
    struct twin t;

    (void)state;
    twin_open(&t, 64 * KIB * 10 - 1, 16, 1);
    twin_set(&t, 64 * KIB * 3, 1);
    twin_set(&t, 64 * KIB * 9, 1);
    assert_int_equal(blkrepl__dirtymap_iterate(&t.map, &position, offsets, 1), 1);
    assert_int_equal(offsets[0], 64 * KIB * 3);
    assert_int_equal(position, 64 * KIB * 4);
    assert_int_equal(blkrepl__dirtymap_iterate(&t.map, &position, offsets, 4), 1);
    assert_int_equal(offsets[0], 64 * KIB * 9);
    assert_int_equal(position, 64 * KIB * 10 - 1);
    assert_int_equal(blkrepl__dirtymap_iterate(&t.map, &position, offsets, 4), 0);
    position = UINT64_MAX;
    assert_int_equal(blkrepl__dirtymap_iterate(&t.map, &position, offsets, 4), 0);
    assert_int_equal(position, 64 * KIB * 10 - 1);
    twin_close(&t);
}

static void hb10_next_dirty_never_answers_below_its_start(void **state)
{
    uint64_t found = 0;
    struct twin t;

    (void)state;
    twin_open(&t, 64 * KIB * 10, 16, 1);
    twin_set(&t, 64 * KIB * 3, 1);
    assert_true(blkrepl__dirtymap_next_dirty(&t.map, 64 * KIB * 3 + 7, 1, &found));
    assert_int_equal(found, 64 * KIB * 3 + 7);
    assert_true(blkrepl__dirtymap_next_dirty(&t.map, 64 * KIB * 2 + 7, UINT64_MAX, &found));
    assert_int_equal(found, 64 * KIB * 3);
    assert_true(blkrepl__dirtymap_next_clean(&t.map, 64 * KIB * 2 + 7, 1, &found));
    assert_int_equal(found, 64 * KIB * 2 + 7);
    twin_close(&t);
}

static void hb11_a_list_sees_what_is_reset_and_set_ahead_of_it(void **state)
{
    uint64_t offsets[4];
    uint64_t position = 0;
    struct twin t;

    (void)state;
    twin_open(&t, 8000, 3, 1);
    twin_set(&t, 0, 80);
    assert_int_equal(blkrepl__dirtymap_iterate(&t.map, &position, offsets, 2), 2);
    twin_reset(&t, 16, 8);
    twin_reset(&t, 40, 40);
    twin_set(&t, 7992, 1);
    twin_set(&t, 0, 1);
    assert_int_equal(blkrepl__dirtymap_iterate(&t.map, &position, offsets, 4), 3);
    assert_int_equal(offsets[0], 24);
    assert_int_equal(offsets[1], 32);
    assert_int_equal(offsets[2], 7992);
    twin_close(&t);
}

static void hb12_what_lies_beyond_the_end_is_ignored(void **state)
{
    static const uint64_t ends[] = {0, 1, 99, 100, 101, 104, BYTES_MAX, UINT64_MAX};
    struct twin t;

    (void)state;
    for (unsigned full = 0; full < 2; full++) {
        twin_open(&t, 100, 3, 1);
        twin_fill(&t, full ? UINT64_MAX : 0);
        for (size_t i = 0; i < ARRAY_COUNT(ends) * ARRAY_COUNT(ends); i++) {
            twin_read(&t, ends[i / ARRAY_COUNT(ends)], ends[i % ARRAY_COUNT(ends)]);
        }
        twin_close(&t);
        twin_open(&t, 0, 3, 1);
        twin_read(&t, 0, UINT64_MAX);
        twin_close(&t);
    }
}

static void hb13_the_clean_granule_at_the_end_of_a_long_run(void **state)
{
    struct twin t;

    (void)state;
    twin_open(&t, 8000 - 1, 3, 1);
    for (uint32_t clean = 0; clean < t.count; clean += 37) {
        uint64_t found = 0;

        twin_fill_run(&t, clean, clean + 1, true);
        assert_true(blkrepl__dirtymap_next_clean(&t.map, 0, UINT64_MAX, &found));
        assert_int_equal(found, twin_low(&t, clean));
        twin_read(&t, 0, found);
        twin_read(&t, 0, found + 1);
        twin_read(&t, found + 8, UINT64_MAX);
    }
    twin_close(&t);
}

static void hb14_an_area_is_bounded_thrice(void **state)
{
    uint64_t start = 1;
    uint64_t length = 2;
    struct twin t;

    (void)state;
    twin_open(&t, 100, 3, 1);
    assert_false(blkrepl__dirtymap_next_area(&t.map, 0, 100, 0, &start, &length));
    assert_int_equal(start, 1);
    assert_int_equal(length, 2);
    twin_set(&t, 50, 50);
    assert_true(blkrepl__dirtymap_next_area(&t.map, 0, UINT64_MAX, 0, &start, &length));
    assert_int_equal(start, 48);
    assert_int_equal(length, 52);
    assert_true(blkrepl__dirtymap_next_area(&t.map, 49, UINT64_MAX, 7, &start, &length));
    assert_int_equal(start, 49);
    assert_int_equal(length, 7);
    assert_true(blkrepl__dirtymap_next_area(&t.map, 0, 51, 7, &start, &length));
    assert_int_equal(start, 48);
    assert_int_equal(length, 3);
    twin_close(&t);
}

/* Bug 41: clean was said at the first dirty byte. */
static void hb15_status_at_the_first_and_at_the_last_byte(void **state)
{
    uint64_t run = 0;
    struct twin t;

    (void)state;
    twin_open(&t, 100, 3, 1);
    twin_set(&t, 8, 8);
    assert_true(blkrepl__dirtymap_status(&t.map, 8, 1, &run));
    assert_int_equal(run, 1);
    assert_true(blkrepl__dirtymap_status(&t.map, 8, 92, &run));
    assert_int_equal(run, 8);
    assert_true(blkrepl__dirtymap_status(&t.map, 15, 85, &run));
    assert_int_equal(run, 1);
    assert_false(blkrepl__dirtymap_status(&t.map, 7, 93, &run));
    assert_int_equal(run, 1);
    assert_false(blkrepl__dirtymap_status(&t.map, 16, 84, &run));
    assert_int_equal(run, 84);
    assert_false(blkrepl__dirtymap_status(&t.map, 99, 1, &run));
    assert_int_equal(run, 1);
    twin_close(&t);
}

/* Every size of a small map to every other, with each pattern. */
static void hb16_resize_from_any_size_to_any(void **state)
{
    static const uint64_t patterns[] = {0, UINT64_MAX, 0x5555555555555555, 0x8888888888888888};

    (void)state;
    for (uint64_t from = 0; from <= 20; from++) {
        for (uint64_t to = 0; to <= 20; to++) {
            for (uint32_t i = 0; i < 4 * 4; i++) {
                struct twin t;

                twin_open(&t, from, i / 4, i);
                twin_fill(&t, patterns[i % 4]);
                twin_resize(&t, to);
                twin_resize(&t, from);
                twin_close(&t);
            }
        }
    }
}

static void hb16_resize_keeps_a_granule_of_which_something_is_left(void **state)
{
    struct twin t;

    (void)state;
    twin_open(&t, 64 * KIB * 100, 16, 1);
    twin_set(&t, 0, 64 * KIB * 100);
    twin_resize(&t, 64 * KIB * 70 + 1);
    assert_true(blkrepl__dirtymap_get(&t.map, 64 * KIB * 70));
    assert_int_equal(blkrepl__dirtymap_dirty_bytes(&t.map), 64 * KIB * 70 + 1);
    twin_resize(&t, 64 * KIB * 70 + 5);
    assert_int_equal(blkrepl__dirtymap_dirty_bytes(&t.map), 64 * KIB * 70 + 5);
    twin_resize(&t, 64 * KIB * 200);
    assert_int_equal(blkrepl__dirtymap_dirty_bytes(&t.map), 64 * KIB * 71);
    twin_resize(&t, 0);
    twin_resize(&t, 64 * KIB * 200);
    assert_int_equal(blkrepl__dirtymap_dirty_bytes(&t.map), 0);
    twin_close(&t);
}

/* ---- Small sizes, all of it ---- */

static void every_range_of_small_sizes(void **state)
{
    static const uint64_t patterns[] = {0, UINT64_MAX, 0x5555555555555555, 0x6666666666666666};

    (void)state;
    for (uint32_t i = 0; i < 19 * 4 * 4; i++) {
        uint64_t bytes = i / 16;
        uint32_t shift = i / 4 % 4;
        struct twin t;

        twin_open(&t, bytes, shift, i);
        for (uint64_t offset = 0; offset <= bytes; offset++) {
            for (uint64_t count = 0; count <= bytes - offset; count++) {
                twin_fill(&t, patterns[i % 4]);
                twin_set(&t, offset, count);
                twin_fill(&t, patterns[i % 4]);
                if (blkrepl__dirtymap_whole(&t.map, offset, count)) {
                    twin_reset(&t, offset, count);
                }
                twin_read(&t, offset, count);
            }
        }
        twin_close(&t);
    }
}

static void every_question_to_every_pattern_of_small_sizes(void **state)
{
    (void)state;
    for (uint32_t shift = 0; shift <= 3; shift++) {
        for (uint64_t bytes = 0; twin_granules(bytes, shift) <= 6; bytes++) {
            struct twin t;

            twin_open(&t, bytes, shift, 1);
            for (uint64_t pattern = 0; pattern < UINT64_C(1) << t.count; pattern++) {
                twin_fill(&t, pattern);
                twin_compare(&t);
                for (uint64_t offset = 0; offset <= bytes + 1; offset += 1 + shift / 3) {
                    for (uint64_t count = 0; count <= bytes - offset / 2 + 1; count++) {
                        twin_read(&t, offset, count);
                    }
                    twin_read(&t, offset, UINT64_MAX);
                }
            }
            twin_close(&t);
        }
    }
}

/* ---- Every granularity ---- */

/* A step of a random run: most of them set, and then the map may shrink and grow. */
static void twin_step(struct twin *t, uint64_t full_bytes)
{
    uint64_t one = twin_offset(t);
    uint64_t two = twin_offset(t);
    uint64_t offset = one < two ? one : two;
    uint64_t end = one < two ? two : one;

    switch (twin_random(t, 12)) {
    case 0: twin_clear(t); break;
    case 1: twin_invert(t); break;
    case 2: twin_resize(t, end); break;
    case 3: twin_resize(t, full_bytes); break;
    case 4:
    case 5:
        offset = offset >> t->shift << t->shift;
        end = end == t->bytes ? end : end >> t->shift << t->shift;
        twin_reset(t, offset, end > offset ? end - offset : 0);
        break;
    default: twin_set(t, offset, end - offset); break;
    }
    twin_read(t, twin_offset(t), twin_random(t, t->bytes + 2));
    twin_read(t, twin_offset(t), UINT64_MAX);
}

static void random_run(uint64_t bytes, uint32_t shift, unsigned steps)
{
    struct twin t;

    if (bytes > BYTES_MAX || twin_granules(bytes, shift) > TWIN_GRANULES_MAX) {
        return;
    }
    twin_open(&t, bytes, shift, bytes ^ shift);
    twin_compare(&t);
    for (unsigned i = 0; i < steps; i++) {
        twin_step(&t, bytes);
    }
    twin_close(&t);
}

static void random_runs_at_every_granularity(void **state)
{
    static const uint64_t granules[] = {1, 2, 63, 64, 65, 130, 1000};

    (void)state;
    for (uint32_t shift = 0; shift <= DIRTYMAP_SHIFT_MAX; shift++) {
        random_run(0, shift, 2);
        random_run(1, shift, 10);
        random_run(BYTES_MAX, shift, 60);
        for (size_t i = 0; i < ARRAY_COUNT(granules); i++) {
            uint64_t bytes = granules[i] << shift;

            if (bytes >> shift == granules[i]) {
                random_run(bytes - 1, shift, 30);
                random_run(bytes, shift, 30);
                random_run(bytes + 1, shift, 30);
            }
        }
    }
}

/* The largest size at granularities that make many granules of it. */
static void the_largest_size_at_its_end(void **state)
{
    struct twin t; /* for its allocator */

    (void)state;
    assert_int_equal(blkrepl__alloc_init(&t.alloc, NULL), 0);
    for (uint32_t shift = 41; shift <= DIRTYMAP_SHIFT_MAX; shift++) {
        uint64_t tail = (UINT64_C(1) << shift) - 1;
        uint64_t found = 0;
        uint64_t length = 0;
        struct dirtymap map;

        assert_int_equal(blkrepl__dirtymap_init(&map, &t.alloc, BYTES_MAX, shift), 0);
        assert_true(map.bits.bit_count == UINT64_C(1) << (63 - shift));
        assert_false(blkrepl__dirtymap_next_dirty(&map, 0, UINT64_MAX, &found));
        blkrepl__dirtymap_set(&map, BYTES_MAX - 1, 1);
        assert_true(blkrepl__dirtymap_dirty_bytes(&map) == tail);
        assert_true(blkrepl__dirtymap_next_area(&map, 0, UINT64_MAX, 0, &found, &length));
        assert_true(found == BYTES_MAX - tail && length == tail);
        assert_false(blkrepl__dirtymap_next_clean(&map, found, UINT64_MAX, &found));
        blkrepl__dirtymap_set(&map, 0, BYTES_MAX);
        assert_true(blkrepl__dirtymap_dirty_bytes(&map) == BYTES_MAX);
        blkrepl__dirtymap_reset(&map, BYTES_MAX - tail, tail);
        assert_true(blkrepl__dirtymap_dirty_bytes(&map) == BYTES_MAX - tail);
        assert_int_equal(blkrepl__dirtymap_status(&map, 0, BYTES_MAX, &length), shift < 63);
        assert_true(length == (shift < 63 ? BYTES_MAX - tail : BYTES_MAX));
        blkrepl__dirtymap_fini(&map);
    }
}

static void more_granules_than_there_may_be_are_efbig(void **state)
{
    struct twin t;

    (void)state;
    twin_open(&t, 1, 0, 1);
    for (uint32_t shift = 0; shift <= 24; shift++) {
        struct dirtymap map;

        assert_int_equal(blkrepl__dirtymap_init(&map, &t.alloc, BYTES_MAX, shift), -EFBIG);
        assert_int_equal(
            blkrepl__dirtymap_init(&map, &t.alloc, (HBITMAP_BITS_MAX << shift) + 1, shift), -EFBIG);
        blkrepl__dirtymap_fini(&map);
    }
    twin_set(&t, 0, 1);
    assert_int_equal(blkrepl__dirtymap_resize(&t.map, HBITMAP_BITS_MAX + 1), -EFBIG);
    twin_compare(&t);
    twin_close(&t);
}

static void *nothing_left(void *user, size_t bytes)
{
    (void)user;
    (void)bytes;
    return NULL;
}

static void without_memory_nothing_changes(void **state)
{
    struct dirtymap map;
    struct alloc empty;
    struct twin t;

    (void)state;
    twin_open(&t, 1000, 0, 1);
    twin_set(&t, 500, 500);
    empty = t.alloc;
    empty.hooks.alloc = nothing_left;
    empty.hooks.zalloc = nothing_left;
    assert_int_equal(blkrepl__dirtymap_init(&map, &empty, 1000, 0), -ENOMEM);
    blkrepl__dirtymap_fini(&map);
    t.map.bits.alloc = &empty;
    assert_int_equal(blkrepl__dirtymap_resize(&t.map, 1000000), -ENOMEM);
    t.map.bits.alloc = &t.alloc;
    twin_compare(&t);
    twin_close(&t);
}

/* ---- Damage ---- */

/* What it is must be told: further checks would take a shift of 64 for one. */
static void validate_refuses(const struct dirtymap *map, const char *expected)
{
    const char *reason = "";

    assert_false(blkrepl__dirtymap_validate(map, &reason));
    assert_non_null(strstr(reason, expected));
}

static void validate_notices_each_kind_of_damage(void **state)
{
    struct twin t;

    (void)state;
    twin_open(&t, 1000, 3, 1);
    t.map.shift = 64;
    validate_refuses(&t.map, "out of range");
    t.map.shift = 3;
    t.map.bytes = BYTES_MAX + 1;
    validate_refuses(&t.map, "out of range");
    t.map.bytes = 1001;
    validate_refuses(&t.map, "number of granules");
    t.map.bytes = 992;
    validate_refuses(&t.map, "number of granules");
    t.map.bytes = 1000;
    twin_compare(&t);
    t.map.bits.level[0][0] = 1;
    validate_refuses(&t.map, "");
    twin_close(&t);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(hb03_set_rounds_outward),
        cmocka_unit_test(hb03_a_range_of_no_bytes_does_nothing),
        cmocka_unit_test(hb04_whole_are_granules_and_the_tail),
        cmocka_unit_test(hb04_reset_may_stop_at_the_end_only),
        cmocka_unit_test(hb05_dirty_bytes_knows_the_tail),
        cmocka_unit_test(hb06_get_takes_bytes),
        cmocka_unit_test(hb07_setting_twice_counts_once),
        cmocka_unit_test(hb08_clearing_ends_a_list),
        cmocka_unit_test(hb09_a_list_begins_with_the_granule_it_is_in),
        cmocka_unit_test(hb10_next_dirty_never_answers_below_its_start),
        cmocka_unit_test(hb11_a_list_sees_what_is_reset_and_set_ahead_of_it),
        cmocka_unit_test(hb12_what_lies_beyond_the_end_is_ignored),
        cmocka_unit_test(hb13_the_clean_granule_at_the_end_of_a_long_run),
        cmocka_unit_test(hb14_an_area_is_bounded_thrice),
        cmocka_unit_test(hb15_status_at_the_first_and_at_the_last_byte),
        cmocka_unit_test(hb16_resize_from_any_size_to_any),
        cmocka_unit_test(hb16_resize_keeps_a_granule_of_which_something_is_left),
        cmocka_unit_test(every_range_of_small_sizes),
        cmocka_unit_test(every_question_to_every_pattern_of_small_sizes),
        cmocka_unit_test(random_runs_at_every_granularity),
        cmocka_unit_test(the_largest_size_at_its_end),
        cmocka_unit_test(more_granules_than_there_may_be_are_efbig),
        cmocka_unit_test(without_memory_nothing_changes),
        cmocka_unit_test(validate_notices_each_kind_of_damage),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
