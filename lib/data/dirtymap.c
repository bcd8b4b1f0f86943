/* SPDX-License-Identifier: MIT */
/* dirtymap.c - byte ranges on top of a set of granule numbers.
 *
 * Nothing here overflows: bytes are below 2^63, so is the end of every range once
 * it is clamped to the map, and so is the first byte of every granule.  Only the
 * end of the last granule may lie beyond the map, at 2^63 at most. */
#include "data/dirtymap.h"

#include "base/checked.h"

#include <string.h>

#define BYTES_MAX ((uint64_t)INT64_MAX)
#define PART_SHIFT 6 /* 64 granules are a word of the set below */
#define HASH_PIECE_BYTES 4096

/* Granules first..end-1. */
struct granules {
    uint64_t first;
    uint64_t end;
};

/* Those that the bytes start..end-1, inside the map, touch. */
static struct granules granules_touched(const struct dirtymap *map, uint64_t start, uint64_t end)
{
    if (start == end) {
        return (struct granules){start >> map->shift, start >> map->shift};
    }
    return (struct granules){start >> map->shift, ((end - 1) >> map->shift) + 1};
}

/* Where granule n begins; that behind the last one: where the map ends. */
static uint64_t granule_start(const struct dirtymap *map, uint64_t n)
{
    return min_u64(n << map->shift, map->bytes);
}

/* Whether a granule begins at this byte, or the map ends there. */
static bool granule_edge(const struct dirtymap *map, uint64_t at)
{
    return at == map->bytes || (at >> map->shift) << map->shift == at;
}

/* The first granule edge at or after this byte, which is not behind the end. */
static uint64_t granule_edge_from(const struct dirtymap *map, uint64_t at)
{
    return granule_edge(map, at) ? at : granule_start(map, (at >> map->shift) + 1);
}

/* The last granule edge at or before it. */
static uint64_t granule_edge_to(const struct dirtymap *map, uint64_t at)
{
    return granule_edge(map, at) ? at : granule_start(map, at >> map->shift);
}

int blkrepl__dirtymap_init(struct dirtymap *map, const struct alloc *alloc, uint64_t bytes,
                           uint32_t shift)
{
    CHECK(bytes <= BYTES_MAX && shift <= DIRTYMAP_SHIFT_MAX);
    map->bytes = bytes;
    map->shift = shift;
    return blkrepl__hbitmap_init(&map->bits, alloc, dirtymap_granules(bytes, shift));
}

void blkrepl__dirtymap_fini(struct dirtymap *map)
{
    blkrepl__hbitmap_fini(&map->bits);
    memset(map, 0, sizeof *map);
}

void blkrepl__dirtymap_set(struct dirtymap *map, uint64_t offset, uint64_t bytes)
{
    struct granules touched = granules_touched(map, offset, offset + bytes);

    CHECK(range_inside(offset, bytes, map->bytes));
    blkrepl__hbitmap_set(&map->bits, touched.first, touched.end - touched.first);
}

void blkrepl__dirtymap_mark(struct dirtymap *map, uint64_t offset, uint64_t bytes)
{
    struct granules touched = granules_touched(map, offset, offset + bytes);

    CHECK(range_inside(offset, bytes, map->bytes));
    blkrepl__hbitmap_mark(&map->bits, touched.first, touched.end - touched.first);
}

bool blkrepl__dirtymap_whole(const struct dirtymap *map, uint64_t offset, uint64_t bytes)
{
    return range_inside(offset, bytes, map->bytes) &&
           (offset >> map->shift) << map->shift == offset && granule_edge(map, offset + bytes);
}

/* Both are granule edges. */
static void dirtymap_clear_between(struct dirtymap *map, uint64_t start, uint64_t end)
{
    struct granules touched = granules_touched(map, start, end);

    blkrepl__hbitmap_clear(&map->bits, touched.first, touched.end - touched.first);
}

void blkrepl__dirtymap_reset(struct dirtymap *map, uint64_t offset, uint64_t bytes)
{
    CHECK(blkrepl__dirtymap_whole(map, offset, bytes));
    dirtymap_clear_between(map, offset, offset + bytes);
}

void blkrepl__dirtymap_clear(struct dirtymap *map)
{
    blkrepl__hbitmap_clear_all(&map->bits);
}

bool blkrepl__dirtymap_get(const struct dirtymap *map, uint64_t offset)
{
    CHECK(offset < map->bytes);
    return blkrepl__hbitmap_test(&map->bits, offset >> map->shift);
}

/* The end of a range of which nothing counts that lies beyond the map's; its start
 * if nothing is left of it. */
static uint64_t dirtymap_clamp(const struct dirtymap *map, uint64_t offset, uint64_t bytes)
{
    return offset < map->bytes ? offset + min_u64(bytes, map->bytes - offset) : offset;
}

typedef uint64_t search(const struct hbitmap *map, uint64_t from, uint64_t end);

typedef uint64_t search(const struct hbitmap *map, uint64_t from, uint64_t end);

/* The first byte of the range, of the granule that `next` finds. */
static bool dirtymap_next(const struct dirtymap *map, uint64_t offset, uint64_t bytes,
                          uint64_t *found, search *next)
{
    uint64_t end = dirtymap_clamp(map, offset, bytes);
    struct granules touched;
    uint64_t granule;

    if (offset == end) {
        return false;
    }
    touched = granules_touched(map, offset, end);
    granule = next(&map->bits, touched.first, touched.end);
    if (granule == touched.end) {
        return false;
    }
    *found = max_u64(offset, granule_start(map, granule));
    return true;
}

bool blkrepl__dirtymap_next_dirty(const struct dirtymap *map, uint64_t offset, uint64_t bytes,
                                  uint64_t *found)
{
    return dirtymap_next(map, offset, bytes, found, blkrepl__hbitmap_next_set);
}

bool blkrepl__dirtymap_next_clean(const struct dirtymap *map, uint64_t offset, uint64_t bytes,
                                  uint64_t *found)
{
    return dirtymap_next(map, offset, bytes, found, blkrepl__hbitmap_next_clear);
}

/* How far it is dirty from `start`, which is known to be, at most until `end`.  That
 * byte is not asked again, so the run is never empty. */
static uint64_t dirtymap_run_end(const struct dirtymap *map, uint64_t start, uint64_t end)
{
    struct granules touched = granules_touched(map, start, end);
    uint64_t granule = blkrepl__hbitmap_next_clear(&map->bits, touched.first + 1, touched.end);

    return min_u64(end, granule_start(map, granule));
}

/* With a bound on its length the run is not looked at beyond that. */
static bool dirtymap_next_bounded(const struct dirtymap *map, uint64_t offset, uint64_t end,
                                  uint64_t most, uint64_t *start, uint64_t *length)
{
    uint64_t found;

    if (!blkrepl__dirtymap_next_dirty(map, offset, end - offset, &found)) {
        return false;
    }
    if (most < end - found) {
        end = found + most;
    }
    *start = found;
    *length = dirtymap_run_end(map, found, end) - found;
    return true;
}

bool blkrepl__dirtymap_next_area(const struct dirtymap *map, uint64_t offset, uint64_t bytes,
                                 uint64_t most, uint64_t *start, uint64_t *length)
{
    uint64_t end = dirtymap_clamp(map, offset, bytes);
    struct granules touched;
    struct granules run;

    if (offset == end) {
        return false;
    }
    touched = granules_touched(map, offset, end);
    if (most != 0) {
        return dirtymap_next_bounded(map, offset, end, most, start, length);
    }
    run.first = blkrepl__hbitmap_next_run(&map->bits, touched.first, touched.end, &run.end);
    if (run.first == touched.end) {
        return false;
    }
    *start = max_u64(offset, run.first << map->shift);
    *length = min_u64(end, granule_start(map, run.end)) - *start;
    return true;
}

/* One look decides: a second one could see what was marked between the two. */
bool blkrepl__dirtymap_status(const struct dirtymap *map, uint64_t offset, uint64_t bytes,
                              uint64_t *run)
{
    uint64_t end = offset + bytes;
    uint64_t found = end;
    bool dirty;

    CHECK(bytes != 0 && range_inside(offset, bytes, map->bytes));
    dirty = blkrepl__dirtymap_next_dirty(map, offset, bytes, &found) && found == offset;
    *run = (dirty ? dirtymap_run_end(map, offset, end) : found) - offset;
    return dirty;
}

uint32_t blkrepl__dirtymap_iterate(const struct dirtymap *map, uint64_t *position,
                                   uint64_t *offsets, uint32_t max)
{
    uint64_t granules = map->bits.bit_count;
    uint64_t from;
    uint32_t count;

    if (*position >= map->bytes) {
        *position = map->bytes;
        return 0;
    }
    from = *position >> map->shift;
    count = blkrepl__hbitmap_list(&map->bits, &from, granules, map->shift, offsets, max);
    *position = granule_start(map, from);
    return count;
}

/* The last granule may be marked between the two looks. */
uint64_t blkrepl__dirtymap_dirty_bytes(const struct dirtymap *map)
{
    uint64_t granules = map->bits.bit_count;
    uint64_t count = blkrepl__hbitmap_count(&map->bits);
    uint64_t bytes = count << map->shift;

    if (count != 0 && blkrepl__hbitmap_test(&map->bits, granules - 1)) {
        bytes -= (granules << map->shift) - map->bytes;
    }
    return min_u64(bytes, map->bytes);
}

/* After a run of `other`, all of the granule is dirty that the run ends in. */
static void dirtymap_merge_runs(struct dirtymap *map, const struct dirtymap *other)
{
    uint64_t at = 0;
    uint64_t start;
    uint64_t length;

    while (blkrepl__dirtymap_next_area(other, at, map->bytes - at, 0, &start, &length)) {
        blkrepl__dirtymap_set(map, start, length);
        at = granule_edge_from(map, start + length);
    }
}

void blkrepl__dirtymap_merge(struct dirtymap *map, const struct dirtymap *other)
{
    CHECK(map->bytes == other->bytes);
    if (map->shift == other->shift) {
        blkrepl__hbitmap_or(&map->bits, &other->bits);
    } else {
        dirtymap_merge_runs(map, other);
    }
}

/* Keep of the run start..end-1, which is dirty, the granules that `other` touches. */
static void dirtymap_intersect_run(struct dirtymap *map, const struct dirtymap *other,
                                   uint64_t start, uint64_t end)
{
    uint64_t dirty;
    uint64_t length;

    while (blkrepl__dirtymap_next_area(other, start, end - start, 0, &dirty, &length)) {
        dirtymap_clear_between(map, start, granule_edge_to(map, dirty));
        start = granule_edge_from(map, dirty + length);
    }
    dirtymap_clear_between(map, start, end);
}

void blkrepl__dirtymap_intersect(struct dirtymap *map, const struct dirtymap *other)
{
    uint64_t at = 0;
    uint64_t start;
    uint64_t length;

    CHECK(map->bytes == other->bytes);
    if (map->shift == other->shift) {
        blkrepl__hbitmap_and(&map->bits, &other->bits);
        return;
    }
    while (blkrepl__dirtymap_next_area(map, at, map->bytes - at, 0, &start, &length)) {
        at = start + length;
        dirtymap_intersect_run(map, other, start, at);
    }
}

/* Clear what is dirty of whole granules; what is clean costs nothing. */
static void dirtymap_clear_runs(struct dirtymap *map, uint64_t at, uint64_t end)
{
    uint64_t start;
    uint64_t length;

    while (blkrepl__dirtymap_next_area(map, at, end - at, 0, &start, &length)) {
        at = start + length;
        dirtymap_clear_between(map, start, at);
    }
}

/* `other` is clean where a run of it ends, so that granule stays as it is. */
static void dirtymap_subtract_runs(struct dirtymap *map, const struct dirtymap *other)
{
    uint64_t at = 0;
    uint64_t start;
    uint64_t length;

    while (blkrepl__dirtymap_next_area(other, at, map->bytes - at, 0, &start, &length)) {
        uint64_t first = granule_edge_from(map, start);
        uint64_t end = granule_edge_to(map, start + length);

        if (first < end) {
            dirtymap_clear_runs(map, first, end);
        }
        at = granule_edge_from(map, start + length);
    }
}

void blkrepl__dirtymap_subtract(struct dirtymap *map, const struct dirtymap *other)
{
    CHECK(map->bytes == other->bytes);
    if (map->shift == other->shift) {
        blkrepl__hbitmap_subtract(&map->bits, &other->bits);
    } else {
        dirtymap_subtract_runs(map, other);
    }
}

void blkrepl__dirtymap_invert(struct dirtymap *map)
{
    blkrepl__hbitmap_invert(&map->bits);
}

int blkrepl__dirtymap_resize(struct dirtymap *map, uint64_t bytes)
{
    int result;

    CHECK(bytes <= BYTES_MAX);
    result = blkrepl__hbitmap_resize(&map->bits, dirtymap_granules(bytes, map->shift));
    if (result == 0) {
        map->bytes = bytes;
    }
    return result;
}

uint64_t blkrepl__dirtymap_part_alignment(const struct dirtymap *map)
{
    return UINT64_C(1) << min_u64(map->shift + PART_SHIFT, 63);
}

bool blkrepl__dirtymap_part(const struct dirtymap *map, uint64_t offset, uint64_t bytes)
{
    uint64_t inside = blkrepl__dirtymap_part_alignment(map) - 1;
    uint64_t end = offset + bytes;

    return range_inside(offset, bytes, map->bytes) && (offset & inside) == 0 &&
           (end == map->bytes || (end & inside) == 0);
}

uint64_t blkrepl__dirtymap_part_bytes(const struct dirtymap *map, uint64_t offset, uint64_t bytes)
{
    struct granules touched = granules_touched(map, offset, offset + bytes);

    CHECK(blkrepl__dirtymap_part(map, offset, bytes));
    return (touched.end - touched.first + 7) / 8;
}

void blkrepl__dirtymap_save(const struct dirtymap *map, uint64_t offset, uint64_t bytes,
                            unsigned char *data)
{
    struct granules touched = granules_touched(map, offset, offset + bytes);

    CHECK(blkrepl__dirtymap_part(map, offset, bytes));
    blkrepl__hbitmap_save(&map->bits, touched.first, touched.end - touched.first, data);
}

void blkrepl__dirtymap_load(struct dirtymap *map, uint64_t offset, uint64_t bytes,
                            const unsigned char *data)
{
    struct granules touched = granules_touched(map, offset, offset + bytes);

    CHECK(blkrepl__dirtymap_part(map, offset, bytes));
    blkrepl__hbitmap_load(&map->bits, touched.first, touched.end - touched.first, data);
}

/* In numbers of granules: so many of them can be more bytes than a number holds. */
void blkrepl__dirtymap_sha256(const struct dirtymap *map, unsigned char digest[SHA256_BYTES])
{
    unsigned char piece[HASH_PIECE_BYTES];
    struct sha256 sha;
    uint64_t count;

    blkrepl__sha256_init(&sha);
    for (uint64_t first = 0; first < map->bits.bit_count; first += count) {
        count = min_u64(UINT64_C(8) * sizeof piece, map->bits.bit_count - first);
        blkrepl__hbitmap_save(&map->bits, first, count, piece);
        blkrepl__sha256_update(&sha, piece, (size_t)(count + 7) / 8);
    }
    blkrepl__sha256_final(&sha, digest);
}

bool blkrepl__dirtymap_validate(const struct dirtymap *map, const char **reason)
{
    if (map->shift > DIRTYMAP_SHIFT_MAX || map->bytes > BYTES_MAX) {
        *reason = "the size or the granularity is out of range";
        return false;
    }
    if (map->bits.bit_count != dirtymap_granules(map->bytes, map->shift)) {
        *reason = "the number of granules does not match the size";
        return false;
    }
    return blkrepl__hbitmap_validate(&map->bits, reason);
}
