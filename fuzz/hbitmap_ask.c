/* SPDX-License-Identifier: MIT */
/* hbitmap_ask.c - what a bitmap says about itself, against the naive one. */
#include "hbitmap.h"

#include <stdlib.h>

#define WALK_STEPS 8
#define LIST_MAX 40

unsigned subject_number(const struct subject *s)
{
    return (unsigned)(s - bench.subjects);
}

/* ---- The same question to both ----------------------------------------------- */

/* An answer that must be left alone has this in it. */
#define UNTOUCHED UINT64_C(0x5a5a5a5a5a5a5a5a)

static void expect_next(const struct subject *s, uint64_t offset, uint64_t bytes, bool dirty)
{
    uint64_t found = UNTOUCHED;
    uint64_t start = UNTOUCHED;
    uint64_t length;
    bool is = dirty ? blkrepl__dirtymap_next_dirty(&s->map, offset, bytes, &found)
                    : blkrepl__dirtymap_next_clean(&s->map, offset, bytes, &found);
    bool must = bits_next(&s->bits, offset, bytes, dirty, &start, &length);

    EXPECT(is == must && found == start, "map %u: next_%s of %llu+%llu: %d at %llu, got %d at %llu",
           subject_number(s), dirty ? "dirty" : "clean", (ull)offset, (ull)bytes, must, (ull)start,
           is, (ull)found);
}

static void expect_area(const struct subject *s, uint64_t offset, uint64_t bytes, uint64_t most)
{
    uint64_t start[2] = {UNTOUCHED, UNTOUCHED};
    uint64_t length[2] = {UNTOUCHED, UNTOUCHED};
    bool is = blkrepl__dirtymap_next_area(&s->map, offset, bytes, most, &start[0], &length[0]);
    bool must = bits_next(&s->bits, offset, bytes, true, &start[1], &length[1]);

    if (must && most > 0 && length[1] > most) {
        length[1] = most;
    }
    EXPECT(is == must && start[0] == start[1] && length[0] == length[1],
           "map %u: next_area of %llu+%llu, at most %llu: %d, %llu+%llu, got %d, %llu+%llu",
           subject_number(s), (ull)offset, (ull)bytes, (ull)most, must, (ull)start[1],
           (ull)length[1], is, (ull)start[0], (ull)length[0]);
}

static uint64_t expect_status(const struct subject *s, uint64_t offset, uint64_t bytes)
{
    bool must = bits_get(&s->bits, (uint32_t)(offset >> s->bits.shift));
    uint64_t run = UNTOUCHED;
    bool is = blkrepl__dirtymap_status(&s->map, offset, bytes, &run);
    uint64_t start;
    uint64_t length;

    EXPECT(bits_next(&s->bits, offset, bytes, must, &start, &length) && start == offset,
           "a run that begins where it begins");
    EXPECT(is == must && run == length, "map %u: status of %llu+%llu: %d for %llu, got %d for %llu",
           subject_number(s), (ull)offset, (ull)bytes, must, (ull)length, is, (ull)run);
    return run;
}

static void expect_get(const struct subject *s, uint64_t offset)
{
    bool must = bits_get(&s->bits, (uint32_t)(offset >> s->bits.shift));

    EXPECT(blkrepl__dirtymap_get(&s->map, offset) == must, "map %u: get of %llu: %d",
           subject_number(s), (ull)offset, must);
}

/* A part into a block of just its size. */
static void expect_part(const struct subject *s, uint64_t offset, uint64_t bytes)
{
    size_t count = bits_part_bytes(&s->bits, offset, bytes);
    uint64_t needed = blkrepl__dirtymap_part_bytes(&s->map, offset, bytes);
    const uint8_t *must = s->bits.wire + (offset >> s->bits.shift) / 8;
    uint8_t *data;

    EXPECT(needed == count, "map %u: %llu+%llu to need %llu bytes, got %llu", subject_number(s),
           (ull)offset, (ull)bytes, (ull)count, (ull)needed);
    data = fuzz_alloc(count);
    memset(data, 0xa5, count);
    blkrepl__dirtymap_save(&s->map, offset, bytes, data);
    for (size_t i = 0; i < count; i++) {
        EXPECT(data[i] == must[i], "map %u: save of %llu+%llu: 0x%02x at byte %llu, got 0x%02x",
               subject_number(s), (ull)offset, (ull)bytes, must[i], (ull)i, data[i]);
    }
    free(data);
}

/* ---- The whole --------------------------------------------------------------- */

static uint64_t walk_random(void)
{
    bench.walk_state = bench.walk_state * UINT64_C(6364136223846793005) + 1442695040888963407u;
    return bench.walk_state >> 29;
}

/* From run to run, in every way there is, from anywhere. */
static void subject_walk(const struct subject *s)
{
    uint64_t end = s->bits.bytes;
    uint64_t at = bits_start(&s->bits, (uint32_t)(walk_random() % s->bits.granules));

    at = walk_random() % 2 == 0 ? at : at + walk_random() % (end - at);
    for (int i = 0; i < WALK_STEPS && at < end; i++) {
        expect_get(s, at);
        expect_next(s, at, UINT64_MAX, true);
        expect_next(s, at, UINT64_MAX, false);
        expect_area(s, at, end - at, 0);
        at += expect_status(s, at, end - at);
    }
}

void subject_check(struct subject *s)
{
    const char *reason = "";
    uint64_t count = blkrepl__hbitmap_count(&s->map.bits);
    uint64_t dirty = blkrepl__dirtymap_dirty_bytes(&s->map);

    EXPECT(blkrepl__dirtymap_validate(&s->map, &reason), "map %u: to be valid, but: %s",
           subject_number(s), reason);
    EXPECT(blkrepl__hbitmap_validate(&s->map.bits, &reason), "map %u: valid bits, but: %s",
           subject_number(s), reason);
    EXPECT(s->map.bytes == s->bits.bytes && s->map.shift == s->bits.shift &&
               s->map.bits.bit_count == s->bits.granules &&
               dirtymap_granules(s->map.bytes, s->map.shift) == s->bits.granules,
           "map %u: %llu bytes with shift %u, %u granules, got %llu, %u, %llu", subject_number(s),
           (ull)s->bits.bytes, (unsigned)s->bits.shift, (unsigned)s->bits.granules,
           (ull)s->map.bytes, (unsigned)s->map.shift, (ull)s->map.bits.bit_count);
    EXPECT(count == bits_count(&s->bits), "map %u: %u dirty granules, got %llu", subject_number(s),
           (unsigned)bits_count(&s->bits), (ull)count);
    EXPECT(dirty == bits_dirty_bytes(&s->bits), "map %u: %llu dirty bytes, got %llu",
           subject_number(s), (ull)bits_dirty_bytes(&s->bits), (ull)dirty);
    EXPECT(blkrepl__dirtymap_part_alignment(&s->map) == bits_part_alignment(&s->bits),
           "map %u: parts of %llu", subject_number(s), (ull)bits_part_alignment(&s->bits));
    expect_part(s, 0, s->bits.bytes);
}

void subject_check_well(struct subject *s)
{
    subject_check(s);
    if (s->bits.bytes > 0) {
        subject_walk(s);
    }
}

/* ---- From the input ---------------------------------------------------------- */

/* A range that may begin and end anywhere, also beyond the end. */
static void draw_any_range(const struct subject *s, uint64_t *offset, uint64_t *bytes)
{
    bits_draw_range(&s->bits, offset, bytes);
    if (take_chance(20)) {
        *offset = take_number();
    }
    if (take_chance(20)) {
        *bytes = take_number();
    }
}

void ask_get(struct subject *s)
{
    uint64_t offset = bits_draw_place(&s->bits);

    if (offset < s->bits.bytes) {
        expect_get(s, offset);
    }
}

void ask_next(struct subject *s)
{
    uint64_t offset;
    uint64_t bytes;

    draw_any_range(s, &offset, &bytes);
    expect_next(s, offset, bytes, true);
    expect_next(s, offset, bytes, false);
}

void ask_area(struct subject *s)
{
    uint64_t offset;
    uint64_t bytes;

    draw_any_range(s, &offset, &bytes);
    expect_area(s, offset, bytes, take_chance(50) ? take_number() : 0);
}

void ask_status(struct subject *s)
{
    uint64_t offset;
    uint64_t bytes;

    bits_draw_range(&s->bits, &offset, &bytes);
    if (bytes > 0) {
        (void)expect_status(s, offset, bytes);
    }
}

/* How many of granules from .. end-1 are dirty, up to `most`, each told to `check`. */
static void expect_listed(const struct subject *s, uint32_t *from, uint32_t end, uint32_t shift,
                          const uint64_t *listed, uint32_t count, uint32_t most)
{
    for (uint32_t i = 0; i < most; i++) {
        uint32_t granule = bits_find(&s->bits, *from, end, true);

        if (granule == end) {
            EXPECT(count == i, "map %u: %u to be listed, got %u", subject_number(s), (unsigned)i,
                   (unsigned)count);
            *from = end;
            return;
        }
        EXPECT(i < count && listed[i] == (uint64_t)granule << shift,
               "map %u: %llu to be listed as number %u of %u, got %llu", subject_number(s),
               (ull)((uint64_t)granule << shift), (unsigned)i, (unsigned)count,
               (ull)(i < count ? listed[i] : 0));
        *from = granule + 1;
    }
    EXPECT(count == most, "map %u: at most %u listed, got %u", subject_number(s), (unsigned)most,
           (unsigned)count);
}

void ask_iterate(struct subject *s)
{
    uint32_t most = 1 + take_below(LIST_MAX);
    uint64_t *offsets = fuzz_alloc(most * sizeof *offsets);
    uint64_t behind;
    uint32_t from;
    uint32_t count;

    if (take_chance(20)) {
        s->position = take_chance(50) ? 0 : bits_draw_place(&s->bits);
    }
    s->position = s->position < s->bits.bytes ? s->position : s->bits.bytes;
    from =
        s->position < s->bits.bytes ? (uint32_t)(s->position >> s->bits.shift) : s->bits.granules;
    count = blkrepl__dirtymap_iterate(&s->map, &s->position, offsets, most);
    expect_listed(s, &from, s->bits.granules, s->bits.shift, offsets, count, most);
    behind = from < s->bits.granules ? bits_start(&s->bits, from) : s->bits.bytes;
    EXPECT(s->position == behind ||
               (s->position == s->bits.bytes &&
                bits_find(&s->bits, from, s->bits.granules, true) == s->bits.granules),
           "map %u: position %llu after the list, got %llu", subject_number(s), (ull)behind,
           (ull)s->position);
    free(offsets);
}

void ask_predicates(struct subject *s)
{
    uint64_t offset;
    uint64_t bytes;

    switch (take_below(4)) {
    case 0: bits_draw_part(&s->bits, &offset, &bytes); break;
    case 1:
        bits_draw_part(&s->bits, &offset, &bytes);
        bytes += take_below(3) - UINT64_C(1);
        break;
    default: draw_any_range(s, &offset, &bytes); break;
    }
    EXPECT(blkrepl__dirtymap_whole(&s->map, offset, bytes) == bits_whole(&s->bits, offset, bytes),
           "map %u: whole of %llu+%llu to be %d", subject_number(s), (ull)offset, (ull)bytes,
           bits_whole(&s->bits, offset, bytes));
    EXPECT(blkrepl__dirtymap_part(&s->map, offset, bytes) == bits_part(&s->bits, offset, bytes),
           "map %u: part of %llu+%llu to be %d", subject_number(s), (ull)offset, (ull)bytes,
           bits_part(&s->bits, offset, bytes));
}

void ask_save(struct subject *s)
{
    uint64_t offset;
    uint64_t bytes;

    bits_draw_part(&s->bits, &offset, &bytes);
    if (bits_part(&s->bits, offset, bytes)) {
        expect_part(s, offset, bytes);
    }
}

void ask_sha256(struct subject *s)
{
    uint8_t must[SHA256_BYTES];
    uint8_t is[SHA256_BYTES];

    blkrepl__dirtymap_sha256(&s->map, is);
    bits_sha256(s->bits.wire, bits_wire_bytes(&s->bits), must);
    EXPECT(memcmp(is, must, sizeof is) == 0, "map %u: another SHA-256, 0x%02x.., got 0x%02x..",
           subject_number(s), must[0], is[0]);
}

/* ---- The bits below ---------------------------------------------------------- */

static void draw_bits(const struct subject *s, uint32_t *from, uint32_t *end)
{
    uint64_t offset;
    uint64_t bytes;

    bits_draw_range(&s->bits, &offset, &bytes);
    bits_touched(&s->bits, offset, bytes, from, end);
    if (*from > s->bits.granules) {
        *from = s->bits.granules;
    }
    *end = *end < *from ? *from : *end;
}

void ask_bits_next(struct subject *s)
{
    uint32_t from;
    uint32_t end;
    uint64_t set;
    uint64_t clear;

    draw_bits(s, &from, &end);
    set = blkrepl__hbitmap_next_set(&s->map.bits, from, end);
    clear = blkrepl__hbitmap_next_clear(&s->map.bits, from, end);
    EXPECT(set == bits_find(&s->bits, from, end, true), "map %u: next_set of %u to %u, got %llu",
           subject_number(s), (unsigned)from, (unsigned)end, (ull)set);
    EXPECT(clear == bits_find(&s->bits, from, end, false),
           "map %u: next_clear of %u to %u, got %llu", subject_number(s), (unsigned)from,
           (unsigned)end, (ull)clear);
    for (uint32_t i = from; i < end && i < from + 70; i++) {
        EXPECT(blkrepl__hbitmap_test(&s->map.bits, i) == bits_get(&s->bits, i),
               "map %u: bit %u to be %d", subject_number(s), (unsigned)i, bits_get(&s->bits, i));
    }
}

void ask_bits_list(struct subject *s)
{
    uint32_t shift = take_below(40);
    uint32_t most = 1 + take_below(LIST_MAX);
    uint64_t *bits = fuzz_alloc(most * sizeof *bits);
    uint64_t position;
    uint32_t from;
    uint32_t end;
    uint32_t count;

    draw_bits(s, &from, &end);
    position = from;
    count = blkrepl__hbitmap_list(&s->map.bits, &position, end, shift, bits, most);
    expect_listed(s, &from, end, shift, bits, count, most);
    EXPECT(position == from || (position == end && bits_find(&s->bits, from, end, true) == end),
           "map %u: position %u after the list, got %llu", subject_number(s), (unsigned)from,
           (ull)position);
    free(bits);
}
