/* SPDX-License-Identifier: MIT */
/* oracle_bitmap_deed.c - what a deed makes of a bitmap, and what it is refused for. */
#include "sim.h"

#include <string.h>

/* ---- What may be refused --------------------------------------------------------- */

static bool name_is_taken(const struct bitmap *but)
{
    for (uint32_t i = 0; i < sim.bitmap_count; i++) {
        const struct bitmap *b = &sim.bitmaps[i];

        if (b != but && b->used && b->now.disk == but->now.disk &&
            strcmp(b->name, but->name) == 0) {
            return true;
        }
    }
    return false;
}

static uint32_t refuse_states(const struct bitmap *b)
{
    return (b->now.frozen ? REFUSE_BUSY : 0u) | (b->now.loading ? REFUSE_STATE : 0u);
}

static uint32_t refuse_sources(const struct deed *d)
{
    uint32_t set = 0;

    for (uint32_t i = 0; i < d->source_count; i++) {
        set |= refuse_states(d->sources[i]);
        set |= d->sources[i]->now.bytes != d->bitmap->now.bytes ? REFUSE_INVAL : 0u;
    }
    return set;
}

static bool lies_inside(const struct deed *d)
{
    return d->offset <= d->bitmap->now.bytes && d->bytes <= d->bitmap->now.bytes - d->offset;
}

static bool is_whole(const struct deed *d, uint64_t unit)
{
    uint64_t end = d->offset + d->bytes;

    return lies_inside(d) && d->offset % unit == 0 &&
           (end % unit == 0 || end == d->bitmap->now.bytes);
}

static uint32_t refuse_part(const struct deed *d)
{
    const struct bitmap *b = d->bitmap;
    uint64_t unit = b->granularity >> 57 != 0 ? UINT64_C(1) << 63 : b->granularity * 64;
    bool good = is_whole(d, unit) && d->offset == b->now.load_next &&
                (d->call != CALL_BITMAP_LOAD ||
                 d->data_bytes == (granules_of(d->bytes, b->granularity) + 7) / 8);

    return !b->now.loading ? REFUSE_STATE : good ? 0u : REFUSE_INVAL;
}

static uint32_t refuse_range(const struct deed *d, bool whole)
{
    return (whole ? is_whole(d, d->bitmap->granularity) : lies_inside(d)) ? 0u : REFUSE_INVAL;
}

static uint32_t refuse_without_image(const struct bitmap *b)
{
    return b->now.disk == NULL ? REFUSE_INVAL : 0u;
}

/* What it may be refused for; 0: it must be done. */
uint32_t oracle_bitmap_refusals(const struct deed *d)
{
    const struct bitmap *b = d->bitmap;
    uint32_t states = refuse_states(b);

    if (d->malformed) {
        return REFUSE_INVAL;
    }
    switch ((uint32_t)d->call) {
    case CALL_BITMAP_CREATE: return 0;
    case CALL_BITMAP_ADD: return (name_is_taken(b) ? REFUSE_EXIST : 0u) | refuse_sources(d);
    case CALL_BITMAP_REMOVE: return (states & REFUSE_BUSY) | refuse_without_image(b);
    case CALL_BITMAP_ENABLE:
    case CALL_BITMAP_DISABLE: return states | refuse_without_image(b);
    case CALL_BITMAP_MERGE:
    case CALL_BITMAP_INTERSECT:
    case CALL_BITMAP_SUBTRACT: return states | refuse_sources(d);
    case CALL_BITMAP_ABDICATE:
    case CALL_BITMAP_RECLAIM: return b->now.frozen && b->now.job == NULL ? 0u : REFUSE_STATE;
    case CALL_BITMAP_SET: return (states & REFUSE_STATE) | refuse_range(d, false);
    case CALL_BITMAP_RESET: return states | refuse_range(d, true);
    case CALL_BITMAP_RESIZE: return states | (b->now.disk != NULL ? REFUSE_INVAL : 0u);
    case CALL_BITMAP_LOAD_BEGIN:
        return (states & REFUSE_BUSY) | (bitmap_is_recording(b) ? REFUSE_BUSY : 0u);
    case CALL_BITMAP_LOAD:
    case CALL_BITMAP_LOAD_ZEROES:
    case CALL_BITMAP_LOAD_ONES: return refuse_part(d);
    case CALL_BITMAP_LOAD_FINISH:
        return !b->now.loading ? REFUSE_STATE : b->now.load_next < b->now.bytes ? REFUSE_INVAL : 0u;
    default: return states;
    }
}

/* ---- What is done --------------------------------------------------------------------- */

/* It is about to be made. */
void oracle_bitmap_init(const struct deed *d)
{
    struct bitmap *b = d->bitmap;
    uint64_t bytes = d->disk != NULL ? d->disk->bytes : d->options.bytes;

    b->now.disk = d->disk;
    b->now.bytes = bytes;
    b->now.granules = granules_of(bytes, b->granularity);
    b->now.enabled = d->disk != NULL && (d->options.flags & BLKREPL_BITMAP_DISABLED) == 0;
    b->now.frozen = false;
    b->now.job = NULL;
    b->chain = NULL;
    b->for_jobs = false;
    b->now.loading = false;
    b->now.since = sim.instant;
    b->now.load_next = 0;
    memset(b->now.content, 0, b->now.granules);
}

/* Granules that any (or, all: each) granule of the other one in their range has. */
static void spread(const struct bitmap *to, uint8_t *out, const struct bitmap *from, bool all)
{
    for (uint64_t i = 0; i < to->now.granules; i++) {
        uint64_t first = i * to->granularity / from->granularity;
        uint64_t last = (bitmap_granule_end(to, i) - 1) / from->granularity;
        uint8_t bits = all ? GRANULE_DIRTY : 0;

        for (; first <= last; first++) {
            uint8_t one = from->now.content[first];

            bits = all ? bits & one : bits | one;
        }
        out[i] = bits;
    }
}

static uint8_t inverted(uint8_t bits)
{
    return bits == GRANULE_MAY ? GRANULE_MAY : bits ^ GRANULE_DIRTY;
}

static void apply_resize(struct bitmap *b, uint64_t bytes)
{
    uint64_t before = b->now.granules;

    b->now.bytes = bytes;
    b->now.granules = granules_of(bytes, b->granularity);
    if (b->now.granules > before) {
        memset(b->now.content + before, 0, b->now.granules - before);
    }
}

static void apply_load(const struct deed *d)
{
    struct bitmap *b = d->bitmap;
    uint64_t first = d->offset / b->granularity;

    for (uint64_t i = 0; i < granules_of(d->bytes, b->granularity); i++) {
        bool dirty = d->call == CALL_BITMAP_LOAD ? (d->data[i / 8] >> i % 8 & 1) != 0
                                                 : d->call == CALL_BITMAP_LOAD_ONES;

        b->now.content[first + i] = dirty ? GRANULE_DIRTY : 0;
    }
    b->now.load_next = d->offset + d->bytes;
}

/* Bits of `other` with an operation. */
static void apply_with(struct bitmap *b, const struct bitmap *other, enum call call)
{
    static uint8_t bits[GRANULES_MAX];
    uint8_t *content = b->now.content;

    spread(b, bits, other, call == CALL_BITMAP_SUBTRACT);
    for (uint64_t i = 0; i < b->now.granules; i++) {
        content[i] = call == CALL_BITMAP_INTERSECT  ? content[i] & bits[i]
                     : call == CALL_BITMAP_SUBTRACT ? content[i] & inverted(bits[i])
                                                    : content[i] | bits[i];
    }
}

/* For the verbs of the content alone. */
static void apply_content(const struct deed *d)
{
    struct bitmap *b = d->bitmap;
    uint8_t *content = b->now.content;

    for (uint32_t i = 0; i < d->source_count; i++) {
        apply_with(b, d->sources[i], d->call);
    }
    if (d->call == CALL_BITMAP_INVERT) {
        for (uint64_t i = 0; i < b->now.granules; i++) {
            content[i] = inverted(content[i]);
        }
    } else if (d->call == CALL_BITMAP_SET) {
        bitmap_mark(b, b->now.frozen ? b->now.next : content, d->offset, d->bytes, GRANULE_DIRTY);
    } else if (d->call == CALL_BITMAP_CLEAR || d->call == CALL_BITMAP_LOAD_BEGIN) {
        memset(content, 0, b->now.granules);
    } else if (d->call == CALL_BITMAP_RESET && d->bytes > 0) {
        memset(content + d->offset / b->granularity, 0, granules_of(d->bytes, b->granularity));
    }
    if (d->call != CALL_BITMAP_MERGE && d->call != CALL_BITMAP_SET) {
        b->now.since = sim.instant;
    }
}

static void apply_freeze(struct bitmap *b)
{
    if (bitmap_is_recording(b)) {
        bitmap_mark_in_flight(b, b->now.content, b->now.since);
    }
    memset(b->now.next, 0, b->now.granules);
    b->now.frozen = true;
    b->now.job = NULL;
    b->now.since_next = sim.instant;
}

static void apply_thaw(struct bitmap *b, bool reclaim)
{
    for (uint64_t i = 0; i < b->now.granules; i++) {
        b->now.content[i] = b->now.next[i] | (reclaim ? b->now.content[i] : 0);
    }
    b->now.since = reclaim ? b->now.since : b->now.since_next;
    b->now.frozen = false;
}

static void apply_switch(struct bitmap *b, bool on)
{
    if (!on && b->now.enabled) {
        bitmap_mark_in_flight(b, b->now.content, b->now.since);
    } else if (on && !b->now.enabled) {
        b->now.since = sim.instant;
    }
    b->now.enabled = on;
}

/* What goes on may be marked, or not: it is nobody's any more. */
static void apply_remove(struct bitmap *b)
{
    bitmap_mark_going_on(b, b->now.content);
    b->now.disk = NULL;
    b->now.enabled = false;
}

/* The deed is done. */
void oracle_bitmap_apply(const struct deed *d)
{
    struct bitmap *b = d->bitmap;

    switch ((uint32_t)d->call) {
    case CALL_BITMAP_REMOVE: apply_remove(b); return;
    case CALL_BITMAP_ENABLE: apply_switch(b, true); return;
    case CALL_BITMAP_DISABLE: apply_switch(b, false); return;
    case CALL_BITMAP_FREEZE: apply_freeze(b); return;
    case CALL_BITMAP_ABDICATE: apply_thaw(b, false); return;
    case CALL_BITMAP_RECLAIM: apply_thaw(b, true); return;
    case CALL_BITMAP_RESIZE: apply_resize(b, d->bytes); return;
    case CALL_BITMAP_LOAD:
    case CALL_BITMAP_LOAD_ZEROES:
    case CALL_BITMAP_LOAD_ONES: apply_load(d); return;
    case CALL_BITMAP_LOAD_FINISH: b->now.loading = false; return;
    default: break;
    }
    apply_content(d);
    b->now.loading = d->call == CALL_BITMAP_LOAD_BEGIN || b->now.loading;
    b->now.load_next = d->call == CALL_BITMAP_LOAD_BEGIN ? 0 : b->now.load_next;
}
