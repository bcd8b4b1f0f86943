/* SPDX-License-Identifier: MIT */
/* bits.h - what a dirty bitmap must hold, the naive way: one bit a granule in a
 * flat array, which is the wire form, and no summary of anything.
 *
 * It knows bytes and granules as the library's headers define them, and shares no
 * code with it; so does the SHA-256. */
#ifndef FUZZ_BITS_H
#define FUZZ_BITS_H

#include "support.h"

/* Enough for four levels of 64. */
#define BITS_GRANULES_MAX UINT32_C(300000)
#define BITS_WIRE_MAX ((BITS_GRANULES_MAX + 7) / 8)

struct bits {
    uint64_t bytes;
    uint32_t shift;
    uint32_t granules;
    uint8_t wire[BITS_WIRE_MAX + 1];
};

/* How many granules there are, for any bytes and a shift below 64. */
uint64_t bits_granules_of(uint64_t bytes, uint32_t shift);

/* All clean; bytes and shift must give at most BITS_GRANULES_MAX. */
void bits_init(struct bits *bits, uint64_t bytes, uint32_t shift);
void bits_resize(struct bits *bits, uint64_t bytes);

bool bits_get(const struct bits *bits, uint32_t granule);
/* Granules first .. end-1; returns how many changed. */
uint32_t bits_fill(struct bits *bits, uint32_t first, uint32_t end, bool dirty);
/* The first such granule of from .. end-1, or end. */
uint32_t bits_find(const struct bits *bits, uint32_t from, uint32_t end, bool dirty);
uint32_t bits_count(const struct bits *bits);
uint64_t bits_dirty_bytes(const struct bits *bits);
size_t bits_wire_bytes(const struct bits *bits);

/* Granules of a range of bytes, rounded outward; an empty one for no bytes. */
void bits_touched(const struct bits *bits, uint64_t offset, uint64_t bytes, uint32_t *first,
                  uint32_t *end);
/* Where a granule begins and ends, inside the bitmap. */
uint64_t bits_start(const struct bits *bits, uint32_t granule);
uint64_t bits_end(const struct bits *bits, uint32_t granule);

bool bits_inside(const struct bits *bits, uint64_t offset, uint64_t bytes);
/* Whether it may be reset: whole granules, the last one up to the end. */
bool bits_whole(const struct bits *bits, uint64_t offset, uint64_t bytes);
/* Whether it may be saved and loaded. */
bool bits_part(const struct bits *bits, uint64_t offset, uint64_t bytes);
uint64_t bits_part_alignment(const struct bits *bits);
size_t bits_part_bytes(const struct bits *bits, uint64_t offset, uint64_t bytes);

enum bits_verb {
    BITS_MERGE,
    BITS_INTERSECT,
    BITS_SUBTRACT
};

/* Of the same number of bytes; they may be one and the same. */
void bits_combine(struct bits *bits, const struct bits *other, enum bits_verb verb);
void bits_invert(struct bits *bits);
/* A part in wire form, with any bits behind the last granule. */
void bits_load(struct bits *bits, uint64_t offset, uint64_t bytes, const uint8_t *data);

/* Of a range as the library is asked for it: the first run that is dirty or clean. */
bool bits_next(const struct bits *bits, uint64_t offset, uint64_t bytes, bool dirty,
               uint64_t *start, uint64_t *length);

void bits_sha256(const uint8_t *data, size_t bytes, uint8_t *digest);

/* A place in the bitmap, mostly near where a granule begins, or near a word or a
 * word of words of them; 0 .. bytes. */
uint64_t bits_draw_place(const struct bits *bits);
/* A range inside. */
void bits_draw_range(const struct bits *bits, uint64_t *offset, uint64_t *bytes);
/* A part, as bits_part() says. */
void bits_draw_part(const struct bits *bits, uint64_t *offset, uint64_t *bytes);
/* Bytes in wire form: noise, zeroes, ones or something between. */
void bits_draw_data(uint8_t *data, size_t bytes);

#endif
