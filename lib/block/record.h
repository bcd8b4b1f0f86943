/* SPDX-License-Identifier: MIT */
/* record.h - how the writes of an image get into its dirty bitmaps.
 *
 * A write is recorded when it ends, before anybody is told, whatever its result:
 * on the slow way with the context's lock held, on the quick way with its lane's.
 * The list of those who record changes only with the context's lock held and the
 * image turned to the slow way (quick.h), so both may walk it.
 *
 * Failed flushes: what was written since the last good one may be lost, so it is
 * recorded again.  The disk is divided into regions, each of which knows in which
 * epoch it was last written.  An epoch begins when a flush is accepted.
 *   1. A write that ended before a flush was accepted has left an epoch in its
 *      regions that is at most one above that flush's.
 *   2. A region whose epoch is at least `good` may have been written since the
 *      last good flush; all may, as far as is known when recording first begins.
 *   3. Flushes may overlap, and a system may tell only one of them what was lost:
 *      one that fails counts from what was good when it was accepted. */
#ifndef BLKREPL_BLOCK_RECORD_H
#define BLKREPL_BLOCK_RECORD_H

#include <stdatomic.h>

#include "base/list.h"
#include "data/dirtymap.h"

#define RECORD_REGIONS 2048

/* A flush on its way; all 0: accepted when there were no regions. */
struct record_flush {
    uint64_t epoch;
    uint64_t good; /* the record's, when it was accepted */
};

struct record {
    struct list bitmaps; /* those who record: struct blkrepl_bitmap.record_link */
    /* Made with the first bitmap, kept from then on; without a lock. */
    _Atomic uint64_t *regions; /* the epoch of the last write, and one */
    uint64_t image_bytes;
    uint32_t region_shift;
    _Atomic uint64_t epoch; /* of the next flush */
    _Atomic uint64_t good;  /* the last good flush's, and one */
};

void blkrepl__record_init(struct record *record);
/* Take the memory for regions, once.  With the context's lock, the image turned to the
 * slow way.
 * Returns: 0; -ENOMEM. */
int blkrepl__record_prepare(struct record *record, const struct alloc *alloc, uint64_t image_bytes);
void blkrepl__record_fini(struct record *record, const struct alloc *alloc);

/* A write of start..end has ended (start < end; end may lie beyond the image). */
void blkrepl__record_write(struct record *record, uint64_t start, uint64_t end);

static inline void record_write(struct record *record, uint64_t start, uint64_t end)
{
    if (UNLIKELY(record->regions != NULL)) {
        blkrepl__record_write(record, start, end);
    }
}

/* A flush is accepted. */
static inline void record_flush(struct record *record, struct record_flush *flush)
{
    *flush = (struct record_flush){.epoch = 0};
    if (UNLIKELY(record->regions != NULL)) {
        flush->good = atomic_load(&record->good);
        flush->epoch = atomic_fetch_add(&record->epoch, 1);
    }
}

/* It has ended. */
void blkrepl__record_flush_ended(struct record *record, const struct record_flush *flush,
                                 int result);

#endif
