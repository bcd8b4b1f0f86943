/* SPDX-License-Identifier: MIT */
/* twin.h - a map of dirty granules beside its oracle.
 *
 * The oracle is an array with one byte a granule; all it ever does is to go
 * through all granules and look which of them have a byte in common with a range. */
#ifndef TESTS_UNIT_TWIN_H
#define TESTS_UNIT_TWIN_H

#include "data/dirtymap.h"

#define TWIN_GRANULES_MAX 1024

struct twin {
    struct alloc alloc;
    struct dirtymap map;
    uint64_t bytes;
    uint32_t shift;
    uint32_t count; /* of granules */
    unsigned char dirty[TWIN_GRANULES_MAX];
    uint64_t seed; /* of the run; told when something differs */
    uint64_t random;
};

uint64_t twin_random(struct twin *twin, uint64_t below);

/* How many granules that would be, or TWIN_GRANULES_MAX + 1 if more than that. */
uint32_t twin_granules(uint64_t bytes, uint32_t shift);

void twin_open(struct twin *twin, uint64_t bytes, uint32_t shift, uint64_t seed);
void twin_close(struct twin *twin);
void twin_fail(const struct twin *twin, const char *what, uint64_t at);

/* Where granule i begins and ends. */
uint64_t twin_low(const struct twin *twin, uint32_t i);
uint64_t twin_high(const struct twin *twin, uint32_t i);

/* An offset in the map, often at or beside the edge of a granule. */
uint64_t twin_offset(struct twin *twin);

/* Whether the map is what the oracle says, by all that there is to ask without a range. */
void twin_compare(struct twin *twin);
/* Ask everything that takes a range; any range. */
void twin_read(struct twin *twin, uint64_t offset, uint64_t bytes);

/* Change both, and compare. */
void twin_set(struct twin *twin, uint64_t offset, uint64_t bytes);
void twin_reset(struct twin *twin, uint64_t offset, uint64_t bytes);
void twin_clear(struct twin *twin);
void twin_invert(struct twin *twin);
void twin_resize(struct twin *twin, uint64_t bytes);
void twin_merge(struct twin *twin, const struct twin *other);
void twin_intersect(struct twin *twin, const struct twin *other);
void twin_subtract(struct twin *twin, const struct twin *other);

/* Make exactly those granules dirty whose bits are set in `pattern`; the 64th is as the first. */
void twin_fill(struct twin *twin, uint64_t pattern);
/* Make exactly the granules first..end-1 dirty, or all but those. */
void twin_fill_run(struct twin *twin, uint32_t first, uint32_t end, bool others);
/* About one granule in `one_in`. */
void twin_scatter(struct twin *twin, uint64_t one_in);

#endif
