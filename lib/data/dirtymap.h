/* SPDX-License-Identifier: MIT */
/* dirtymap.h - which bytes of a disk may differ: a set of granules.
 *
 * Granule i is the bytes from i << shift to (i + 1) << shift, the last one up to
 * the end.  Setting rounds outward; resetting takes whole granules.  Arithmetic is
 * by division and never overflows: bytes may be up to 2^63 - 1 and shift up to 63.
 *
 * Threads: as in hbitmap.h; the concurrent functions are mark, get, next_*,
 * status, iterate and dirty_bytes. */
#ifndef BLKREPL_DATA_DIRTYMAP_H
#define BLKREPL_DATA_DIRTYMAP_H

#include "data/hbitmap.h"
#include "data/sha256.h"

#define DIRTYMAP_SHIFT_MAX 63

struct dirtymap {
    struct hbitmap bits;
    uint64_t bytes;
    uint32_t shift;
};

/* How many granules there are. */
static inline uint64_t dirtymap_granules(uint64_t bytes, uint32_t shift)
{
    return bytes == 0 ? 0 : ((bytes - 1) >> shift) + 1;
}

/* Make an empty map; bytes <= 2^63 - 1 and shift <= DIRTYMAP_SHIFT_MAX (CHECK).
 * Returns: 0; -EFBIG more granules than HBITMAP_BITS_MAX; -ENOMEM. */
int blkrepl__dirtymap_init(struct dirtymap *map, const struct alloc *alloc, uint64_t bytes,
                           uint32_t shift);
void blkrepl__dirtymap_fini(struct dirtymap *map);

/* Every granule that the range touches; the range lies inside (CHECK); bytes 0 does
 * nothing.  mark() is concurrent. */
void blkrepl__dirtymap_set(struct dirtymap *map, uint64_t offset, uint64_t bytes);
void blkrepl__dirtymap_mark(struct dirtymap *map, uint64_t offset, uint64_t bytes);
/* Whether the range is whole granules (it may end where the map ends), inside. */
bool blkrepl__dirtymap_whole(const struct dirtymap *map, uint64_t offset, uint64_t bytes);
/* The range is whole (CHECK). */
void blkrepl__dirtymap_reset(struct dirtymap *map, uint64_t offset, uint64_t bytes);
void blkrepl__dirtymap_clear(struct dirtymap *map);

/* offset < bytes of the map (CHECK). */
bool blkrepl__dirtymap_get(const struct dirtymap *map, uint64_t offset);
/* The first dirty (clean) byte of the range; what lies beyond the end is ignored.
 * False, and *found is left alone, if there is none. */
bool blkrepl__dirtymap_next_dirty(const struct dirtymap *map, uint64_t offset, uint64_t bytes,
                                  uint64_t *found);
bool blkrepl__dirtymap_next_clean(const struct dirtymap *map, uint64_t offset, uint64_t bytes,
                                  uint64_t *found);
/* The first dirty run of the range, at most `most` bytes of it (0: any).  False, and
 * *start and *length are left alone, if there is none. */
bool blkrepl__dirtymap_next_area(const struct dirtymap *map, uint64_t offset, uint64_t bytes,
                                 uint64_t most, uint64_t *start, uint64_t *length);
/* Whether the range begins dirty; *run: for how many of its bytes it stays so.  The
 * range is not empty and lies inside (CHECK). */
bool blkrepl__dirtymap_status(const struct dirtymap *map, uint64_t offset, uint64_t bytes,
                              uint64_t *run);
/* Write the first bytes of dirty granules, from the one that *position lies in, into
 * `offsets`, at most `max` (> 0), and move *position behind the last of them, or to
 * the end of the map.  Returns how many. */
uint32_t blkrepl__dirtymap_iterate(const struct dirtymap *map, uint64_t *position,
                                   uint64_t *offsets, uint32_t max);
/* The bytes of all dirty granules, at most those of the map. */
uint64_t blkrepl__dirtymap_dirty_bytes(const struct dirtymap *map);

/* The same number of bytes (CHECK), any shift; they may be one and the same.
 * merge: every granule that a dirty one of `other` touches becomes dirty.
 * intersect: a granule stays dirty if any byte of it is dirty in `other`.
 * subtract: a granule becomes clean if every byte of it is dirty in `other`. */
void blkrepl__dirtymap_merge(struct dirtymap *map, const struct dirtymap *other);
void blkrepl__dirtymap_intersect(struct dirtymap *map, const struct dirtymap *other);
void blkrepl__dirtymap_subtract(struct dirtymap *map, const struct dirtymap *other);
void blkrepl__dirtymap_invert(struct dirtymap *map);

/* Returns: 0; -EFBIG; -ENOMEM, and nothing has changed. */
int blkrepl__dirtymap_resize(struct dirtymap *map, uint64_t bytes);

/* Where parts begin and end: 64 granules, or 2^63 if that is less. */
uint64_t blkrepl__dirtymap_part_alignment(const struct dirtymap *map);
/* Whether the range is a part: begins at a multiple of the alignment, ends at one or
 * where the map ends, lies inside. */
bool blkrepl__dirtymap_part(const struct dirtymap *map, uint64_t offset, uint64_t bytes);
/* How many bytes a part (CHECK) has in the wire form: (granules + 7) / 8. */
uint64_t blkrepl__dirtymap_part_bytes(const struct dirtymap *map, uint64_t offset, uint64_t bytes);
/* Write a part (CHECK) down, and read it back: see hbitmap.h. */
void blkrepl__dirtymap_save(const struct dirtymap *map, uint64_t offset, uint64_t bytes,
                            unsigned char *data);
void blkrepl__dirtymap_load(struct dirtymap *map, uint64_t offset, uint64_t bytes,
                            const unsigned char *data);

/* SHA-256 of the whole map's wire form. */
void blkrepl__dirtymap_sha256(const struct dirtymap *map, unsigned char digest[SHA256_BYTES]);

/* Whether the invariants hold; *reason says which does not. */
bool blkrepl__dirtymap_validate(const struct dirtymap *map, const char **reason);

#endif
