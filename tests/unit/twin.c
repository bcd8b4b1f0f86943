/* SPDX-License-Identifier: MIT */
#include "twin.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

uint64_t twin_random(struct twin *twin, uint64_t below)
{
    uint64_t x;

    twin->random += UINT64_C(0x9e3779b97f4a7c15);
    x = twin->random;
    x = (x ^ (x >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    x = (x ^ (x >> 27)) * UINT64_C(0x94d049bb133111eb);
    x ^= x >> 31;
    return below != 0 ? x % below : x;
}

uint32_t twin_granules(uint64_t bytes, uint32_t shift)
{
    uint32_t count = 0;

    while (count <= TWIN_GRANULES_MAX && (uint64_t)count << shift < bytes) {
        count++;
    }
    return count;
}

void twin_open(struct twin *twin, uint64_t bytes, uint32_t shift, uint64_t seed)
{
    memset(twin, 0, sizeof *twin);
    twin->bytes = bytes;
    twin->shift = shift;
    twin->count = twin_granules(bytes, shift);
    twin->seed = seed;
    twin->random = seed;
    assert_true(twin->count <= TWIN_GRANULES_MAX);
    assert_int_equal(blkrepl__alloc_init(&twin->alloc, NULL), 0);
    assert_int_equal(blkrepl__dirtymap_init(&twin->map, &twin->alloc, bytes, shift), 0);
}

void twin_close(struct twin *twin)
{
    blkrepl__dirtymap_fini(&twin->map);
}

void twin_fail(const struct twin *twin, const char *what, uint64_t at)
{
    fail_msg("%s at %llu; %llu bytes, shift %u, seed %llu", what, (unsigned long long)at,
             (unsigned long long)twin->bytes, (unsigned)twin->shift,
             (unsigned long long)twin->seed);
}

uint64_t twin_low(const struct twin *twin, uint32_t i)
{
    return (uint64_t)i << twin->shift;
}

uint64_t twin_high(const struct twin *twin, uint32_t i)
{
    uint64_t granularity = UINT64_C(1) << twin->shift;
    uint64_t left = twin->bytes - twin_low(twin, i);

    return twin_low(twin, i) + (left < granularity ? left : granularity);
}

uint64_t twin_offset(struct twin *twin)
{
    uint64_t at = twin->bytes;

    if (twin->count != 0 && twin_random(twin, 8) != 0) {
        at = twin_low(twin, (uint32_t)twin_random(twin, twin->count));
    }
    switch (twin_random(twin, 4)) {
    case 0: return at < twin->bytes ? at + 1 : at;
    case 1: return at > 0 ? at - 1 : at;
    case 2: return at < twin->bytes ? at + twin_random(twin, twin->bytes - at) : at;
    default: return at;
    }
}

/* The part of granule i that lies in offset..end-1; false if there is none. */
static bool twin_common(const struct twin *twin, uint32_t i, uint64_t offset, uint64_t end,
                        uint64_t *low, uint64_t *high)
{
    *low = twin_low(twin, i) > offset ? twin_low(twin, i) : offset;
    *high = twin_high(twin, i) < end ? twin_high(twin, i) : end;
    return *low < *high;
}

/* The first run of granules of this value, as far as it lies in the range. */
static bool naive_area(const struct twin *twin, bool dirty, uint64_t offset, uint64_t end,
                       uint64_t *start, uint64_t *stop)
{
    bool found = false;

    for (uint32_t i = 0; i < twin->count; i++) {
        uint64_t low;
        uint64_t high;

        if (!twin_common(twin, i, offset, end, &low, &high)) {
            continue;
        }
        if (twin->dirty[i] == dirty) {
            *start = found ? *start : low;
            *stop = high;
            found = true;
        } else if (found) {
            return true;
        }
    }
    return found;
}

/* List everything from `position` on, `max` at a time. */
static void twin_list(const struct twin *twin, uint64_t position, uint32_t max)
{
    uint64_t offsets[8] = {0};
    uint64_t last = position;
    uint32_t count = 0;
    uint32_t next = 0;

    for (uint32_t i = 0; i < twin->count; i++) {
        if (!twin->dirty[i] || twin_high(twin, i) <= position) {
            continue;
        }
        if (next == count) {
            count = blkrepl__dirtymap_iterate(&twin->map, &last, offsets, max);
            next = 0;
            if (count == 0 || count > max) {
                twin_fail(twin, "the list has a wrong length", i);
            }
            if (last <= offsets[count - 1]) {
                twin_fail(twin, "the list does not go on", last);
            }
        }
        if (offsets[next++] != twin_low(twin, i)) {
            twin_fail(twin, "the list has something else", twin_low(twin, i));
        }
        if (next == count && last != twin_high(twin, i) && last != twin->bytes) {
            twin_fail(twin, "the list goes on elsewhere", last);
        }
    }
    if (next != count || blkrepl__dirtymap_iterate(&twin->map, &last, offsets, max) != 0 ||
        last != twin->bytes) {
        twin_fail(twin, "the list does not end", last);
    }
}

void twin_compare(struct twin *twin)
{
    const char *reason = "";
    uint64_t granules = 0;
    uint64_t bytes = 0;

    if (!blkrepl__dirtymap_validate(&twin->map, &reason)) {
        twin_fail(twin, reason, 0);
    }
    if (twin->map.bytes != twin->bytes || twin->map.shift != twin->shift ||
        twin->map.bits.bit_count != twin->count ||
        dirtymap_granules(twin->bytes, twin->shift) != twin->count) {
        twin_fail(twin, "the shape differs", twin->map.bytes);
    }
    for (uint32_t i = 0; i < twin->count; i++) {
        if (blkrepl__dirtymap_get(&twin->map, twin_low(twin, i)) != twin->dirty[i] ||
            blkrepl__dirtymap_get(&twin->map, twin_high(twin, i) - 1) != twin->dirty[i]) {
            twin_fail(twin, "a granule differs", twin_low(twin, i));
        }
        granules += twin->dirty[i];
        bytes += twin->dirty[i] ? twin_high(twin, i) - twin_low(twin, i) : 0;
    }
    if (blkrepl__hbitmap_count(&twin->map.bits) != granules) {
        twin_fail(twin, "the count differs", granules);
    }
    if (blkrepl__dirtymap_dirty_bytes(&twin->map) != bytes) {
        twin_fail(twin, "the dirty bytes differ", bytes);
    }
    twin_list(twin, 0, 1 + (uint32_t)twin_random(twin, 8));
}

static void twin_read_next(const struct twin *twin, bool dirty, uint64_t offset, uint64_t bytes,
                           uint64_t end)
{
    uint64_t start = 0;
    uint64_t stop = 0;
    uint64_t found = 4711;
    bool expected = naive_area(twin, dirty, offset, end, &start, &stop);
    bool answer = dirty ? blkrepl__dirtymap_next_dirty(&twin->map, offset, bytes, &found)
                        : blkrepl__dirtymap_next_clean(&twin->map, offset, bytes, &found);

    if (answer != expected || found != (expected ? start : 4711)) {
        twin_fail(twin, dirty ? "next_dirty differs" : "next_clean differs", offset);
    }
}

static void twin_read_area(const struct twin *twin, uint64_t offset, uint64_t bytes, uint64_t end,
                           uint64_t most)
{
    uint64_t start = 0;
    uint64_t stop = 0;
    uint64_t found = 4711;
    uint64_t length = 4712;
    bool expected = naive_area(twin, true, offset, end, &start, &stop);
    bool answer = blkrepl__dirtymap_next_area(&twin->map, offset, bytes, most, &found, &length);

    if (most != 0 && stop - start > most) {
        stop = start + most;
    }
    if (answer != expected || found != (expected ? start : 4711) ||
        length != (expected ? stop - start : 4712)) {
        twin_fail(twin, "next_area differs", offset);
    }
}

void twin_read(struct twin *twin, uint64_t offset, uint64_t bytes)
{
    uint64_t room = offset < twin->bytes ? twin->bytes - offset : 0;
    uint64_t end = offset + (bytes < room ? bytes : room);
    uint64_t start = 0;
    uint64_t stop = 0;
    uint64_t run = 0;

    twin_read_next(twin, true, offset, bytes, end);
    twin_read_next(twin, false, offset, bytes, end);
    twin_read_area(twin, offset, bytes, end, 0);
    twin_read_area(twin, offset, bytes, end, 1);
    twin_read_area(twin, offset, bytes, end, 1 + twin_random(twin, end - offset + 1));
    twin_read_area(twin, offset, bytes, end, UINT64_MAX);
    if (bytes != 0 && bytes <= room) {
        bool dirty = blkrepl__dirtymap_status(&twin->map, offset, bytes, &run);

        if (!naive_area(twin, dirty, offset, end, &start, &stop) || start != offset ||
            run != stop - start) {
            twin_fail(twin, "the status differs", offset);
        }
    }
    if (offset <= twin->bytes) {
        twin_list(twin, offset, 1 + (uint32_t)twin_random(twin, 8));
    }
}

void twin_set(struct twin *twin, uint64_t offset, uint64_t bytes)
{
    uint64_t low;
    uint64_t high;

    for (uint32_t i = 0; i < twin->count; i++) {
        twin->dirty[i] |= twin_common(twin, i, offset, offset + bytes, &low, &high);
    }
    if (twin_random(twin, 2) != 0) {
        blkrepl__dirtymap_set(&twin->map, offset, bytes);
    } else {
        blkrepl__dirtymap_mark(&twin->map, offset, bytes);
    }
    twin_compare(twin);
}

void twin_reset(struct twin *twin, uint64_t offset, uint64_t bytes)
{
    uint64_t low;
    uint64_t high;

    for (uint32_t i = 0; i < twin->count; i++) {
        twin->dirty[i] &= !twin_common(twin, i, offset, offset + bytes, &low, &high);
    }
    blkrepl__dirtymap_reset(&twin->map, offset, bytes);
    twin_compare(twin);
}

void twin_clear(struct twin *twin)
{
    memset(twin->dirty, 0, sizeof twin->dirty);
    blkrepl__dirtymap_clear(&twin->map);
    twin_compare(twin);
}

void twin_invert(struct twin *twin)
{
    for (uint32_t i = 0; i < twin->count; i++) {
        twin->dirty[i] = !twin->dirty[i];
    }
    blkrepl__dirtymap_invert(&twin->map);
    twin_compare(twin);
}

void twin_resize(struct twin *twin, uint64_t bytes)
{
    uint32_t count = twin_granules(bytes, twin->shift);

    assert_true(count <= TWIN_GRANULES_MAX);
    for (uint32_t i = count; i < twin->count; i++) {
        twin->dirty[i] = 0;
    }
    assert_int_equal(blkrepl__dirtymap_resize(&twin->map, bytes), 0);
    twin->bytes = bytes;
    twin->count = count;
    twin_compare(twin);
}

/* What granule i has in common with the other map: something, and nothing but dirt. */
static void twin_touched(const struct twin *twin, uint32_t i, const struct twin *other,
                         bool *something, bool *everything)
{
    uint64_t low;
    uint64_t high;

    *something = false;
    *everything = true;
    for (uint32_t k = 0; k < other->count; k++) {
        if (twin_common(other, k, twin_low(twin, i), twin_high(twin, i), &low, &high)) {
            *something |= other->dirty[k];
            *everything &= other->dirty[k];
        }
    }
}

enum twin_operation {
    TWIN_MERGE,
    TWIN_INTERSECT,
    TWIN_SUBTRACT
};

/* The oracle's part, in a copy first: the other one may be the same. */
static void twin_combine(struct twin *twin, const struct twin *other, enum twin_operation operation)
{
    unsigned char dirty[TWIN_GRANULES_MAX];
    bool something;
    bool everything;

    memcpy(dirty, twin->dirty, sizeof dirty);
    for (uint32_t i = 0; i < twin->count; i++) {
        twin_touched(twin, i, other, &something, &everything);
        switch (operation) {
        case TWIN_MERGE: dirty[i] |= something; break;
        case TWIN_INTERSECT: dirty[i] &= something; break;
        case TWIN_SUBTRACT: dirty[i] &= !everything; break;
        }
    }
    memcpy(twin->dirty, dirty, sizeof dirty);
}

void twin_merge(struct twin *twin, const struct twin *other)
{
    twin_combine(twin, other, TWIN_MERGE);
    blkrepl__dirtymap_merge(&twin->map, &other->map);
    twin_compare(twin);
}

void twin_intersect(struct twin *twin, const struct twin *other)
{
    twin_combine(twin, other, TWIN_INTERSECT);
    blkrepl__dirtymap_intersect(&twin->map, &other->map);
    twin_compare(twin);
}

void twin_subtract(struct twin *twin, const struct twin *other)
{
    twin_combine(twin, other, TWIN_SUBTRACT);
    blkrepl__dirtymap_subtract(&twin->map, &other->map);
    twin_compare(twin);
}

/* Straight into the set of granule numbers, which has tests of its own. */
static void twin_put(struct twin *twin)
{
    blkrepl__hbitmap_clear_all(&twin->map.bits);
    for (uint32_t i = 0; i < twin->count; i++) {
        blkrepl__hbitmap_set(&twin->map.bits, i, twin->dirty[i]);
    }
}

void twin_fill(struct twin *twin, uint64_t pattern)
{
    for (uint32_t i = 0; i < twin->count; i++) {
        twin->dirty[i] = pattern >> (i % 64) & 1;
    }
    twin_put(twin);
}

void twin_fill_run(struct twin *twin, uint32_t first, uint32_t end, bool others)
{
    for (uint32_t i = 0; i < twin->count; i++) {
        twin->dirty[i] = (first <= i && i < end) != others;
    }
    twin_put(twin);
}

void twin_scatter(struct twin *twin, uint64_t one_in)
{
    for (uint32_t i = 0; i < twin->count; i++) {
        twin->dirty[i] = twin_random(twin, one_in) == 0;
    }
    twin_put(twin);
}
