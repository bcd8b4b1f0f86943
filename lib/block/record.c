/* SPDX-License-Identifier: MIT */
/* record.c - how the writes of an image get into its dirty bitmaps. */
#include "block/record.h"

#include <errno.h>

#include "base/checked.h"
#include "block/bitmap.h"

void blkrepl__record_init(struct record *record)
{
    list_init(&record->bitmaps);
    atomic_init(&record->epoch, 1);
    atomic_init(&record->good, 0);
}

int blkrepl__record_prepare(struct record *record, const struct alloc *alloc, uint64_t image_bytes)
{
    _Atomic uint64_t *regions;

    if (record->regions != NULL) {
        return 0;
    }
    regions = blkrepl__zalloc_array(alloc, RECORD_REGIONS, sizeof *regions);
    if (regions == NULL) {
        return -ENOMEM;
    }
    while (image_bytes > 0 && (image_bytes - 1) >> record->region_shift >= RECORD_REGIONS) {
        record->region_shift++;
    }
    record->image_bytes = image_bytes;
    record->regions = regions;
    return 0;
}

void blkrepl__record_fini(struct record *record, const struct alloc *alloc)
{
    blkrepl__free(alloc, (void *)record->regions);
}

/* Make a range dirty in every bitmap that records. */
static void record_mark(struct record *record, uint64_t start, uint64_t end)
{
    struct list *link;

    for (link = record->bitmaps.next; link != &record->bitmaps; link = link->next) {
        struct dirtymap *map = CONTAINER_OF(link, struct blkrepl_bitmap, record_link)->marks;

        blkrepl__dirtymap_mark(map, start, min_u64(end, map->bytes) - start);
    }
}

/* Raise a number that others may be raising too. */
static void record_raise(_Atomic uint64_t *number, uint64_t to)
{
    uint64_t seen = atomic_load(number);

    while (seen < to && !atomic_compare_exchange_weak(number, &seen, to)) {
    }
}

void blkrepl__record_write(struct record *record, uint64_t start, uint64_t end)
{
    uint64_t last = min_u64(end - 1, record->image_bytes - 1) >> record->region_shift;
    uint64_t epoch = atomic_load(&record->epoch) + 1;

    for (uint64_t i = start >> record->region_shift; i <= last; i++) {
        record_raise(&record->regions[i], epoch);
    }
    record_mark(record, start, end);
}

/* Mark what was written in the epochs from `good` on. */
static void record_unflushed(struct record *record, uint64_t good)
{
    uint64_t region = UINT64_C(1) << record->region_shift;
    uint64_t start = 0;

    for (uint64_t i = 0; start < record->image_bytes; i++, start += region) {
        if (atomic_load(&record->regions[i]) >= good) {
            record_mark(record, start, min_u64(start + region, record->image_bytes));
        }
    }
}

void blkrepl__record_flush_ended(struct record *record, const struct record_flush *flush,
                                 int result)
{
    if (record->regions == NULL) {
        return;
    }
    if (result < 0) {
        record_unflushed(record, flush->good);
    } else if (flush->epoch > 0) {
        record_raise(&record->good, flush->epoch + 1);
    }
}
