/* SPDX-License-Identifier: MIT */
/* oracle_verify.c - a verify job that is done has found what differs, and nothing else.
 *
 * Of bytes that nobody has touched since its start it is known whether they differ; of
 * the others it may say both. */
#include "sim.h"

#include <string.h>

typedef unsigned long long ull;

#define CHUNK 65536

static uint8_t first_media[BACKUPS_MAX][DISK_BYTES_MAX];
static uint8_t second_media[BACKUPS_MAX][DISK_BYTES_MAX];
static uint8_t touched_maps[BACKUPS_MAX][DISK_BYTES_MAX];
/* That are compared; of a bitmap that another of the group freezes at the same instant, what
 * is in flight then may be added. */
static uint8_t chunks[BACKUPS_MAX][DISK_BYTES_MAX / CHUNK + 1];
enum {
    CHUNK_NONE,
    CHUNK_MAYBE,
    CHUNK_SURE
};
static uint32_t running;

static uint32_t slot_of(const struct backup *b)
{
    return (uint32_t)(b - sim.backups);
}

/* ---- The start ------------------------------------------------------------------------- */

static void touch_concurrent(const struct backup *of, uint8_t *map, uint64_t size)
{
    for (uint32_t i = 0; i < of->concurrent_count; i++) {
        const struct request *r = &sim.requests[of->concurrent[i].request];

        for (uint64_t at = r->offset; at < r->offset + r->bytes && at < size; at++) {
            map[at] = 1;
        }
    }
}

static void draw_chunks(const struct backup *b)
{
    blkrepl_area area = {.offset = 0};
    uint8_t *map = chunks[slot_of(b)];
    uint64_t at = 0;

    memset(map,
           b->bitmap == NULL ? CHUNK_SURE
           : b->group != 0   ? CHUNK_MAYBE
                             : CHUNK_NONE,
           sizeof chunks[0]);
    while (b->bitmap != NULL && !b->bitmap->now.loading && b->bitmap->handle_count > 0 &&
           blkrepl_bitmap_next_area(b->bitmap->handles[0], at, UINT64_MAX, 0, &area) == 1) {
        at = area.offset + area.bytes;
        for (uint64_t i = area.offset / CHUNK; i * CHUNK < at; i++) {
            map[i] = CHUNK_SURE;
        }
    }
}

/* The start is about to be called. */
void oracle_verify_start(struct backup *b)
{
    uint32_t slot = slot_of(b);
    uint64_t size = b->source->bytes;

    b->start_seq = sim.seq;
    b->start_ns = sim.now_ns;
    b->failed_reads = b->source->failed_reads;
    b->failed_writes = b->target->failed_reads;
    memset(touched_maps[slot], 0, size);
    memcpy(first_media[slot], b->through != NULL ? b->through->of->start : b->source->medium, size);
    memcpy(second_media[slot], b->through2 != NULL ? b->through2->of->start : b->target->medium,
           size);
    if (b->through != NULL) {
        touch_concurrent(b->through->of, touched_maps[slot], size);
    }
    if (b->through2 != NULL) {
        touch_concurrent(b->through2->of, touched_maps[slot], size);
    }
    draw_chunks(b);
    running++;
}

/* Something was written to a medium. */
void oracle_verify_wrote(const struct disk *disk, uint64_t offset, uint64_t bytes)
{
    for (uint32_t i = 0; running > 0 && i < sim.backup_count; i++) {
        const struct backup *b = &sim.backups[i];
        bool reads =
            (b->source == disk && b->through == NULL) || (b->target == disk && b->through2 == NULL);
        uint64_t size = job_is_verify(b) ? b->source->bytes : 0;

        if (size > offset && (b->started || b->starting) && reads) {
            memset(touched_maps[i] + offset, 1, bytes < size - offset ? bytes : size - offset);
        }
    }
}

void oracle_verify_reset(void)
{
    running = 0;
}

/* ---- The end --------------------------------------------------------------------------- */

/* What may be said of a range. */
struct truth {
    bool must;
    bool may;
};

static struct truth truth_of(const struct backup *b, uint64_t from, uint64_t end)
{
    uint32_t slot = slot_of(b);
    struct truth truth = {false, false};

    for (uint64_t at = from; at < end && !truth.must; at++) {
        bool differs = first_media[slot][at] != second_media[slot][at];
        bool touched = touched_maps[slot][at] != 0;

        if (chunks[slot][at / CHUNK] != CHUNK_NONE) {
            truth.must = differs && !touched && chunks[slot][at / CHUNK] == CHUNK_SURE;
            truth.may = truth.may || differs || touched;
        }
    }
    return truth;
}

/* All that must and all that may be told, in units. */
static void sums(const struct backup *b, uint64_t unit, uint64_t *least, uint64_t *most)
{
    uint64_t size = b->source->bytes;

    *least = 0;
    *most = 0;
    for (uint64_t from = 0; from < size; from += unit) {
        uint64_t end = size - from < unit ? size : from + unit;
        struct truth truth = truth_of(b, from, end);

        *least += truth.must ? end - from : 0;
        *most += truth.must || truth.may ? end - from : 0;
    }
}

/* The job is done. */
void oracle_verify_done(struct backup *b, const blkrepl_job_info *info)
{
    uint64_t unit = b->differing != NULL ? b->differing->granularity : CHUNK;
    bool first = (b->verify.flags & BLKREPL_VERIFY_FIRST) != 0;
    uint64_t least;
    uint64_t most;

    sums(b, unit, &least, &most);
    sim.counts.differences += info->differing_bytes > 0;
    EXPECT(first ? least == 0 || info->differing_bytes > 0 : info->differing_bytes >= least,
           "verify job %llu has found %llu bytes, %llu differ", (ull)b->job_id,
           (ull)info->differing_bytes, (ull)least);
    EXPECT(info->differing_bytes <= most || info->error_count > 0,
           "verify job %llu has found %llu bytes, at most %llu differ", (ull)b->job_id,
           (ull)info->differing_bytes, (ull)most);
}

/* It has given its bitmap back, which nobody has changed since. */
void oracle_verify_bitmap(const struct backup *b, const struct bitmap *bitmap, bool errors)
{
    bool first = (b->verify.flags & BLKREPL_VERIFY_FIRST) != 0;

    for (uint64_t i = 0; i < bitmap->now.granules; i++) {
        uint64_t from = i * bitmap->granularity;
        struct truth truth = truth_of(b, from, bitmap_granule_end(bitmap, i));
        int dirty = blkrepl_bitmap_get(bitmap->handles[0], from);

        EXPECT(dirty == 1 || !truth.must || first,
               "verify job %llu: byte %llu and on differ, the bitmap is clean", (ull)b->job_id,
               (ull)from);
        EXPECT(dirty == 0 || truth.must || truth.may || errors ||
                   bitmap->now.next[i] != 0, /* the host has set it meanwhile */
               "verify job %llu: byte %llu and on do not differ, the bitmap is dirty",
               (ull)b->job_id, (ull)from);
    }
}
