/* SPDX-License-Identifier: MIT */
/* oracle_bitmap_look.c - what a bitmap tells of itself, in all the ways in which it
 * can be asked, compared with what is known of it. */
#include "sim.h"

#include <errno.h>
#include <string.h>

typedef unsigned long long ull;

static ull number(const struct bitmap *bitmap)
{
    return (ull)(bitmap - sim.bitmaps);
}

/* ---- Reading ---------------------------------------------------------------------- */

static uint8_t bits_read[GRANULES_MAX];

static void set_run(const struct bitmap *b, uint64_t offset, uint64_t bytes)
{
    EXPECT(offset < b->now.bytes && bytes > 0 && bytes <= b->now.bytes - offset,
           "bitmap %llu tells of %llu+%llu", number(b), (ull)offset, (ull)bytes);
    bitmap_mark(b, bits_read, offset, bytes, GRANULE_DIRTY);
}

static void read_by_status(const struct bitmap *b, blkrepl_bitmap *handle)
{
    for (uint64_t at = 0; at < b->now.bytes;) {
        uint64_t left = b->now.bytes - at;
        uint64_t run = 0;
        int answer = blkrepl_bitmap_status(handle, at, left, &run);

        EXPECT((answer == 0 || answer == 1) && run > 0 && run <= left,
               "status of bitmap %llu answered %d, %llu", number(b), answer, (ull)run);
        if (answer == 1) {
            set_run(b, at, run);
        }
        at += run;
    }
}

static void read_by_area(const struct bitmap *b, blkrepl_bitmap *handle)
{
    uint64_t most = rng_chance(50) ? 0 : b->granularity + rng_below(b->granularity);
    blkrepl_area area = {.offset = 0};
    uint64_t at = 0;
    int answer;

    while ((answer = blkrepl_bitmap_next_area(handle, at, UINT64_MAX, most, &area)) == 1) {
        EXPECT(area.offset >= at && (most == 0 || area.bytes <= most),
               "next_area of bitmap %llu told %llu+%llu", number(b), (ull)area.offset,
               (ull)area.bytes);
        set_run(b, area.offset, area.bytes);
        at = area.offset + area.bytes;
    }
    EXPECT(answer == 0, "next_area of bitmap %llu answered %d", number(b), answer);
}

static void read_by_iterate(const struct bitmap *b, blkrepl_bitmap *handle)
{
    uint64_t offsets[7];
    uint32_t most = (uint32_t)rng_between(1, 7);
    uint64_t position = 0;
    uint64_t least = 0;
    int count;

    while ((count = blkrepl_bitmap_iterate(handle, &position, offsets, most)) > 0) {
        EXPECT((uint32_t)count <= most, "iterate of bitmap %llu answered %d", number(b), count);
        for (int i = 0; i < count; i++) {
            EXPECT(offsets[i] >= least && offsets[i] % b->granularity == 0,
                   "iterate of bitmap %llu told %llu", number(b), (ull)offsets[i]);
            set_run(b, offsets[i], 1);
            least = offsets[i] + 1;
        }
        EXPECT(position >= least, "iterate of bitmap %llu goes to %llu", number(b), (ull)position);
    }
    EXPECT(count == 0 && position == b->now.bytes, "iterate of bitmap %llu answered %d, at %llu",
           number(b), count, (ull)position);
}

static void read_by_next(const struct bitmap *b, blkrepl_bitmap *handle)
{
    uint64_t at = 0;
    uint64_t end;
    int answer;

    while ((answer = blkrepl_bitmap_next_dirty(handle, at, b->now.bytes - at, &at)) == 1) {
        end = b->now.bytes;
        answer = blkrepl_bitmap_next_clean(handle, at, UINT64_MAX, &end);
        EXPECT((answer == 1) == (end < b->now.bytes), "next_clean of bitmap %llu answered %d",
               number(b), answer);
        set_run(b, at, end - at);
        at = end;
    }
    EXPECT(answer == 0, "next_dirty of bitmap %llu answered %d", number(b), answer);
}

static void read_by_get(const struct bitmap *b, blkrepl_bitmap *handle)
{
    for (uint64_t i = 0; i < b->now.granules; i++) {
        uint64_t start = i * b->granularity;
        int answer =
            blkrepl_bitmap_get(handle, start + rng_below(bitmap_granule_end(b, i) - start));

        EXPECT(answer == 0 || answer == 1, "get of bitmap %llu answered %d", number(b), answer);
        bits_read[i] = answer == 1 ? GRANULE_DIRTY : 0;
    }
}

static void read_by_save(const struct bitmap *b, blkrepl_bitmap *handle)
{
    uint8_t saved[GRANULES_MAX / 8] = {0};
    uint64_t bytes = sizeof saved;
    int answer = blkrepl_bitmap_save(handle, 0, b->now.bytes, saved, &bytes);

    EXPECT(answer == 0 && bytes == (b->now.granules + 7) / 8, "save of bitmap %llu answered %d",
           number(b), answer);
    for (uint64_t i = 0; i < bytes * 8; i++) {
        bool dirty = (saved[i / 8] >> i % 8 & 1) != 0;

        EXPECT(!dirty || i < b->now.granules, "bitmap %llu is saved with bit %llu behind its end",
               number(b), (ull)i);
        bits_read[i] = dirty ? GRANULE_DIRTY : 0;
    }
}

/* Read all of it in one of the ways that there are, which have to agree. */
static bool read_bits(const struct bitmap *b, blkrepl_bitmap *handle)
{
    static void (*const ways[])(const struct bitmap *, blkrepl_bitmap *) = {
        read_by_status, read_by_area, read_by_iterate, read_by_next, read_by_get, read_by_save};
    uint64_t reentries = sim.counts.reentries;

    memset(bits_read, 0, b->now.granules);
    ways[rng_below(6)](b, handle);
    return sim.counts.reentries == reentries;
}

/* ---- Comparing ---------------------------------------------------------------------- */

/* The image has gone, and so its bitmaps are free-standing. */
static void learn_image(struct bitmap *b, const blkrepl_bitmap_info *info)
{
    struct disk *disk = b->now.disk;

    if (disk == NULL || disk->image != NULL || info->image_id != 0) {
        return;
    }
    bitmap_mark_going_on(b, b->now.frozen ? b->now.next : b->now.content);
    b->now.disk = NULL;
    b->now.enabled = false;
}

static void check_info(const struct bitmap *b, const blkrepl_bitmap_info *info)
{
    uint32_t flags = (bitmap_is_recording(b) ? BLKREPL_BITMAP_RECORDING : 0u) |
                     (b->now.frozen ? BLKREPL_BITMAP_BUSY : 0u) |
                     (b->now.loading ? BLKREPL_BITMAP_INCONSISTENT : 0u);

    EXPECT(info->flags == flags, "bitmap %llu has flags %x, not %x", number(b), info->flags, flags);
    EXPECT(info->id == b->id && info->bytes == b->now.bytes &&
               info->granularity_bytes == b->granularity && info->user == b &&
               (info->image_id != 0) == (b->now.disk != NULL) && strcmp(info->name, b->name) == 0,
           "query tells other things of bitmap %llu", number(b));
}

static uint64_t bytes_of(const struct bitmap *b, const uint8_t *bits, uint8_t least)
{
    uint64_t bytes = 0;

    for (uint64_t i = 0; i < b->now.granules; i++) {
        bytes += bits[i] >= least ? bitmap_granule_end(b, i) - i * b->granularity : 0;
    }
    return bytes;
}

/* While it was read, more may have been recorded: the counts of before and after. */
static void check_counts(const struct bitmap *b, const blkrepl_bitmap_info *before,
                         const blkrepl_bitmap_info *after)
{
    static uint8_t next[GRANULES_MAX];
    uint64_t bytes = bytes_of(b, bits_read, GRANULE_DIRTY);
    uint64_t count = 0;

    for (uint64_t i = 0; i < b->now.granules; i++) {
        count += bits_read[i] == GRANULE_DIRTY;
    }
    EXPECT(before->dirty_granules <= count && before->dirty_bytes <= bytes &&
               after->dirty_granules >= count && after->dirty_bytes >= bytes,
           "bitmap %llu: %llu dirty granules, %llu bytes; %llu are", number(b),
           (ull)after->dirty_granules, (ull)after->dirty_bytes, (ull)count);
    memcpy(next, b->now.next, b->now.granules);
    bitmap_mark_going_on(b, next);
    EXPECT(b->now.frozen ? after->since_bytes >= bytes_of(b, next, GRANULE_DIRTY) &&
                               after->since_bytes <= bytes_of(b, next, GRANULE_MAY)
                         : after->since_bytes == 0,
           "bitmap %llu has %llu bytes since its freeze", number(b), (ull)after->since_bytes);
}

/* What was read is all that must be there, and nothing that may not. */
static void check_content(const struct bitmap *b)
{
    static uint8_t most[GRANULES_MAX];

    if (memcmp(bits_read, b->now.content, b->now.granules) == 0) {
        return;
    }
    memcpy(most, b->now.content, b->now.granules);
    if (!b->now.frozen) {
        bitmap_mark_going_on(b, most);
    }
    for (uint64_t i = 0; i < b->now.granules; i++) {
        EXPECT(bits_read[i] == GRANULE_DIRTY || b->now.content[i] != GRANULE_DIRTY,
               "bitmap %llu: byte %llu is not dirty", number(b), (ull)(i * b->granularity));
        EXPECT(bits_read[i] == 0 || most[i] != 0, "bitmap %llu: byte %llu is dirty for no reason",
               number(b), (ull)(i * b->granularity));
    }
}

/* A handle, which is found if the host has none. */
struct looked {
    blkrepl_bitmap *handle;
    bool found;
};

static struct looked get_handle(const struct bitmap *b)
{
    struct looked looked = {.found = b->handle_count == 0};
    int answer;

    if (!looked.found) {
        looked.handle = b->handles[rng_below(b->handle_count)];
        return looked;
    }
    answer = blkrepl_bitmap_find(b->now.disk->image, b->name, &looked.handle);
    EXPECT(answer == 0, "bitmap %llu is not found: %d", number(b), answer);
    return looked;
}

static void put_handle(struct looked looked)
{
    if (looked.found) {
        blkrepl_bitmap_free(looked.handle);
    }
}

static blkrepl_bitmap_info query(const struct bitmap *b, blkrepl_bitmap *handle)
{
    blkrepl_bitmap_info info = {.struct_size = sizeof info};
    int answer = blkrepl_bitmap_query(handle, &info);

    EXPECT(answer == 0, "query of bitmap %llu answered %d", number(b), answer);
    return info;
}

/* Read and compare; false: others were called meanwhile, or it cannot be read. */
static bool look(struct bitmap *b, blkrepl_bitmap *handle)
{
    uint64_t reentries = sim.counts.reentries;
    blkrepl_bitmap_info info = query(b, handle);
    blkrepl_bitmap_info after;
    int answer = blkrepl_bitmap_validate(handle);

    EXPECT(answer == 0, "bitmap %llu is not valid: %s", number(b), blkrepl_error_message());
    if (b->now.job != NULL && (info.flags & BLKREPL_BITMAP_BUSY) == 0) {
        oracle_sync_settled(b);
    }
    if (sim.counts.reentries != reentries) {
        return false;
    }
    learn_image(b, &info);
    check_info(b, &info);
    if (b->now.loading) {
        answer = blkrepl_bitmap_get(handle, 0);
        EXPECT(info.dirty_granules == 0 && (answer == BLKREPL_ERR_STATE || answer == -EINVAL),
               "bitmap %llu is inconsistent, get answered %d", number(b), answer);
        return false;
    }
    if (b->now.job != NULL && job_is_verify(b->now.job)) {
        memset(b->now.content, GRANULE_MAY, b->now.granules); /* it is being filled */
    }
    if (!read_bits(b, handle)) {
        return false;
    }
    after = query(b, handle);
    check_counts(b, &info, &after);
    check_content(b);
    return true;
}

void oracle_bitmap_check(struct bitmap *b)
{
    struct chance_outer outer;
    struct looked handle;

    if (!b->used || b->calling > 0) {
        return;
    }
    if (b->handle_count == 0 && (b->now.disk == NULL || b->now.disk->image == NULL)) {
        b->used = false; /* it goes with its image */
        return;
    }
    outer = chance_bitmaps_begin();
    b->calling++; /* who is called inside leaves it alone */
    handle = get_handle(b);
    look(b, handle.handle);
    put_handle(handle);
    b->calling--;
    chance_bitmaps_end(outer);
}

/* ---- Calls come, and have answered ------------------------------------------------- */

/* The state without the bits that are not in use. */
static void copy_state(struct bitmap_state *to, const struct bitmap_state *from)
{
    memcpy(to, from, offsetof(struct bitmap_state, content));
    memcpy(to->content, from->content, from->granules);
    memcpy(to->next, from->next, from->granules);
}

/* A call comes: from now on nobody else looks. */
void oracle_bitmap_begin(struct bitmap *b)
{
    struct looked handle;

    b->calling++;
    if (b->begun++ > 0) {
        return;
    }
    handle = get_handle(b);
    if (look(b, handle.handle)) {
        memcpy(b->now.content, bits_read, b->now.granules);
    }
    put_handle(handle);
    bitmap_mark_going_on(b, b->now.frozen ? b->now.next : b->now.content);
    copy_state(&b->was, &b->now);
}

/* Nothing has changed. */
void oracle_bitmap_refused(struct bitmap *b)
{
    copy_state(&b->now, &b->was);
}

/* Others were called meanwhile: what is there now is what is known. */
static void learn(struct bitmap *b, blkrepl_bitmap *handle)
{
    blkrepl_bitmap_info info = query(b, handle);

    oracle_bitmap_instant();
    b->now.disk = info.image_id == 0 ? NULL : b->now.disk;
    b->now.bytes = info.bytes;
    b->now.granules = granules_of(info.bytes, b->granularity);
    b->now.enabled = (info.flags & BLKREPL_BITMAP_RECORDING) != 0;
    b->now.frozen = (info.flags & BLKREPL_BITMAP_BUSY) != 0;
    b->now.loading = (info.flags & BLKREPL_BITMAP_INCONSISTENT) != 0;
    b->chain = NULL;
    if (b->now.job != NULL && !b->now.frozen) {
        b->now.job->frozen = false;
        b->now.job = NULL;
    }
    b->now.load_next = UINT64_MAX;
    b->now.since = sim.instant;
    b->now.since_next = sim.instant;
    memset(b->now.content, GRANULE_MAY, b->now.granules);
    memset(b->now.next, GRANULE_MAY, b->now.granules);
}

/* The call has answered; sure: nothing was called inside of it. */
void oracle_bitmap_settle(struct bitmap *b, bool sure)
{
    struct looked handle;

    b->begun--;
    b->used = b->used && (b->handle_count > 0 || b->now.disk->image != NULL);
    if (b->begun > 0 || !b->used) {
        b->calling--;
        return;
    }
    handle = get_handle(b);
    if (!sure) {
        learn(b, handle.handle);
    }
    if (look(b, handle.handle)) {
        memcpy(b->now.content, bits_read, b->now.granules);
    }
    put_handle(handle);
    b->calling--;
}
