/* SPDX-License-Identifier: MIT */
/* How a map is written down and read back, in parts. */
#include "twin.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define BYTES_MAX ((uint64_t)INT64_MAX)

static void hb21_the_wire_form_is_the_same_everywhere(void **state)
{
    static const unsigned char expected[9] = {0x49, 0x92, 0x24, 0x49, 0x92, 0x24, 0x49, 0x92, 0x3f};
    unsigned char data[9];
    struct twin t;

    (void)state;
    twin_open(&t, 70 * 512 - 5, 9, 1);
    for (uint32_t i = 0; i < 70; i++) {
        if (i % 3 == 0 || i >= 64) {
            twin_set(&t, (uint64_t)i * 512, 1);
        }
    }
    memset(data, 0xff, sizeof data);
    assert_int_equal(blkrepl__dirtymap_part_bytes(&t.map, 0, t.bytes), 9);
    blkrepl__dirtymap_save(&t.map, 0, t.bytes, data);
    assert_memory_equal(data, expected, sizeof data);
    twin_close(&t);
}

/* Bug 42: the granularity of a part was shifted out of the word. */
static void hb21_parts_of_coarse_maps(void **state)
{
    struct dirtymap map = {.bytes = BYTES_MAX};

    (void)state;
    for (map.shift = 0; map.shift <= DIRTYMAP_SHIFT_MAX; map.shift++) {
        uint64_t alignment = blkrepl__dirtymap_part_alignment(&map);

        assert_true(alignment == (map.shift < 57 ? UINT64_C(64) << map.shift : UINT64_C(1) << 63));
        assert_true(blkrepl__dirtymap_part(&map, 0, BYTES_MAX));
        assert_int_equal(blkrepl__dirtymap_part(&map, 0, UINT64_C(1) << 62), map.shift <= 56);
        assert_false(blkrepl__dirtymap_part(&map, alignment, UINT64_MAX - alignment + 1));
        assert_false(blkrepl__dirtymap_part(&map, 0, UINT64_C(1) << 63));
        assert_true(blkrepl__dirtymap_part_bytes(&map, 0, BYTES_MAX) ==
                    (dirtymap_granules(BYTES_MAX, map.shift) + 7) / 8);
    }
}

static void hb21_which_ranges_are_parts(void **state)
{
    static const uint64_t sizes[] = {0, 1, 63, 64, 65, 127, 128, 130};

    (void)state;
    for (size_t s = 0; s < ARRAY_COUNT(sizes); s++) {
        for (uint32_t shift = 0; shift <= 1; shift++) {
            struct dirtymap map = {.bytes = sizes[s] << shift, .shift = shift};
            uint64_t alignment = UINT64_C(64) << shift;

            for (uint64_t i = 0; i < 270 * 270; i++) {
                uint64_t offset = i / 270;
                uint64_t end = offset + i % 270;
                bool part = end <= map.bytes && offset % alignment == 0 &&
                            (end % alignment == 0 || end == map.bytes);

                assert_int_equal(blkrepl__dirtymap_part(&map, offset, end - offset), part);
            }
        }
    }
}

static void hb24_the_digest_is_of_the_wire_form(void **state)
{
    static const struct {
        uint32_t granules;
        const char *digest;
    } expected[] = {
        {0, "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"},
        {1, "4bf5122f344554c53bde2ebb8cd2b7e3d1600ad631c385a5d7cce23c7785459a"},
        {70, "eef277e1285630b159c76cf789dab9aa21693c8a00b682c81621b9978d688b66"},
        {32767, "69f292af70a33beda239ebb2bc5bf053edc74a5fe54047453cd3965bec339616"},
        {32768, "9dbe19d54e3988e44e52423fd383ff286d7f12f29a6aa0fb4b874d369066878e"},
        {32769, "771f711eeb1e3d0f3f74fe09bdb987cd993bea52282c8deb53129c761880c1ec"},
        {70001, "8eae5799ce31f9d94599d2bdb4e0fe48bff853bae86aaa326e91ed8943ca94c6"},
    };
    struct twin t; /* for its allocator */

    (void)state;
    for (size_t i = 0; i < ARRAY_COUNT(expected); i++) {
        unsigned char digest[SHA256_BYTES];
        struct dirtymap map;

        assert_int_equal(blkrepl__alloc_init(&t.alloc, NULL), 0);
        assert_int_equal(blkrepl__dirtymap_init(&map, &t.alloc, expected[i].granules, 0), 0);
        for (uint32_t bit = 0; bit < expected[i].granules; bit++) {
            if (bit % 7 == 0 || bit % 64 == 63) {
                blkrepl__dirtymap_set(&map, bit, 1);
            }
        }
        blkrepl__dirtymap_sha256(&map, digest);
        for (size_t k = 0; k < SHA256_BYTES; k++) {
            char byte[3] = {expected[i].digest[2 * k], expected[i].digest[2 * k + 1], 0};

            assert_int_equal(digest[k], strtoul(byte, NULL, 16));
        }
        blkrepl__dirtymap_fini(&map);
    }
}

static unsigned char *heap_of(size_t bytes)
{
    unsigned char *data = malloc(bytes + (bytes == 0));

    assert_non_null(data);
    memset(data, 0xa5, bytes);
    return data;
}

/* Granules from..end-1 of the oracle, one bit after the other. */
static void naive_save(const struct twin *t, uint32_t from, uint32_t end, unsigned char *data)
{
    memset(data, 0, (end - from + 7) / 8);
    for (uint32_t i = from; i < end; i++) {
        data[(i - from) / 8] |= (unsigned char)(t->dirty[i] << (i - from) % 8);
    }
}

/* Save a part and load it into the other map, with garbage behind its last bit. */
static void part_copy(struct twin *from, struct twin *to, uint32_t first, uint32_t end)
{
    uint64_t offset = twin_low(from, first);
    uint64_t bytes = end == from->count ? from->bytes - offset : twin_low(from, end) - offset;
    size_t size = (end - first + 7) / 8;
    unsigned char *saved = heap_of(size);
    unsigned char *expected = heap_of(size);

    if (!blkrepl__dirtymap_part(&from->map, offset, bytes) ||
        blkrepl__dirtymap_part_bytes(&from->map, offset, bytes) != size) {
        twin_fail(from, "this is a part", offset);
    }
    naive_save(from, first, end, expected);
    blkrepl__dirtymap_save(&from->map, offset, bytes, saved);
    if (memcmp(saved, expected, size) != 0) {
        twin_fail(from, "a saved part differs", offset);
    }
    if ((end - first) % 8 != 0) {
        saved[size - 1] |= (unsigned char)(0xff << (end - first) % 8);
    }
    blkrepl__dirtymap_load(&to->map, offset, bytes, saved);
    memcpy(to->dirty + first, from->dirty + first, end - first);
    twin_compare(to);
    free(saved);
    free(expected);
}

/* Cut at those multiples of 64 granules whose bits are set in `cuts`; from the last
 * part to the first if `backward`. */
static void parts_copy(struct twin *from, struct twin *to, uint32_t cuts, bool backward)
{
    uint32_t edges[TWIN_GRANULES_MAX / 64 + 2] = {0};
    uint32_t count = 1;

    for (uint32_t i = 1; i * 64 < from->count; i++) {
        if (cuts >> i & 1) {
            edges[count++] = i * 64;
        }
    }
    edges[count] = from->count;
    for (uint32_t i = 0; i < count; i++) {
        uint32_t part = backward ? count - 1 - i : i;

        part_copy(from, to, edges[part], edges[part + 1]);
    }
}

static void parts_cut_everywhere(uint64_t bytes, uint32_t shift, uint64_t one_in)
{
    uint32_t words = (twin_granules(bytes, shift) + 63) / 64;

    for (uint32_t cuts = 0; cuts < UINT32_C(1) << words; cuts += 2) {
        struct twin from;
        struct twin to;

        twin_open(&from, bytes, shift, cuts);
        twin_open(&to, bytes, shift, cuts + 1);
        twin_scatter(&from, one_in);
        twin_scatter(&to, 2);
        parts_copy(&from, &to, cuts, cuts & 2);
        if (memcmp(from.dirty, to.dirty, sizeof from.dirty) != 0) {
            twin_fail(&from, "a copy in parts differs", cuts);
        }
        twin_close(&from);
        twin_close(&to);
    }
}

/* Bugs 38 and 49 in our form, too: the copy is compared with its count after each part. */
static void hb22_hb23_parts_at_every_cut_with_garbage_behind_them(void **state)
{
    static const uint64_t granules[] = {1, 7, 8, 9, 63, 64, 65, 127, 128, 129, 200, 257, 300};

    (void)state;
    for (uint32_t shift = 0; shift <= DIRTYMAP_SHIFT_MAX; shift++) {
        for (size_t i = 0; i < ARRAY_COUNT(granules); i++) {
            uint64_t bytes = granules[i] << shift;

            if (bytes >> shift == granules[i] && bytes <= BYTES_MAX) {
                parts_cut_everywhere(bytes, shift, 1 + i % 3);
                parts_cut_everywhere(bytes - (bytes > 1), shift, 1 + (i + 1) % 3);
            }
        }
        if (shift >= 55) {
            parts_cut_everywhere(BYTES_MAX, shift, 2);
        }
    }
    parts_cut_everywhere(0, 16, 2);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(hb21_the_wire_form_is_the_same_everywhere),
        cmocka_unit_test(hb21_parts_of_coarse_maps),
        cmocka_unit_test(hb21_which_ranges_are_parts),
        cmocka_unit_test(hb24_the_digest_is_of_the_wire_form),
        cmocka_unit_test(hb22_hb23_parts_at_every_cut_with_garbage_behind_them),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
