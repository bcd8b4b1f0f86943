/* SPDX-License-Identifier: MIT */
/* bitmap.c - dirty bitmaps, each with a model of what it must and may tell. */
#include "api.h"

/* ---- Ranges and granules ---- */

/* Do something to each granule that the range touches. */
static void each(const struct bitmap *b, uint64_t offset, uint64_t bytes, bool *first, bool *second)
{
    if (bytes == 0) {
        return;
    }
    for (uint64_t g = offset / b->granularity; g <= (offset + bytes - 1) / b->granularity; g++) {
        first[g] = true;
        second[g] = true;
    }
}

static size_t granules(const struct bitmap *b)
{
    return (size_t)((b->bytes + b->granularity - 1) / b->granularity);
}

/* A range in whole units of the disk: outward, or inward. */
static void rounded(const struct op *op, bool outward, uint64_t *offset, uint64_t *bytes)
{
    uint32_t unit = op->world->disks[op->image->medium].info.request_alignment;
    uint64_t end = op->offset + op->bytes, size = image_bytes(op->image);
    uint64_t more;

    unit = unit > 0 ? unit : 1;
    more = unit - 1;
    *offset = (op->offset + (outward ? 0 : more)) / unit * unit;
    end = end == size ? size : (end + (outward ? more : 0)) / unit * unit;
    end = end < size ? end : size;
    *bytes = end > *offset ? end - *offset : 0;
}

/* What is recorded of a request for sure.  The parts of a discard that are no whole
 * units are not done, and a backup may have ignored all of it. */
static void surely(const struct op *op, uint64_t *offset, uint64_t *bytes)
{
    const struct world *w = op->world;

    rounded(op, op->opcode != BLKREPL_OP_DISCARD, offset, bytes);
    for (unsigned i = 0; i < w->job_count; i++) {
        if (op->opcode == BLKREPL_OP_DISCARD && w->jobs[i].source == op->image) {
            *bytes = 0;
        }
    }
}

/* It has failed, and may have been, or ended with, a flush. */
static bool op_may_flush(const struct op *op)
{
    return op->result < 0 && (op->opcode == BLKREPL_OP_FLUSH || (op->flags & BLKREPL_IO_FUA) != 0);
}

static bool changes(const struct op *op)
{
    return op->bytes > 0 && (op->opcode == BLKREPL_OP_WRITE || op->opcode == BLKREPL_OP_ZEROES ||
                             op->opcode == BLKREPL_OP_DISCARD);
}

/* ---- The model ---- */

static void bitmap_note(struct bitmap *b, const struct op *op, bool sure)
{
    bool ignored[BITMAP_GRANULES_MAX];
    bool *may = b->frozen ? b->since_may : b->may;
    uint64_t offset, bytes;

    rounded(op, true, &offset, &bytes);
    each(b, offset, bytes, ignored, may);
    surely(op, &offset, &bytes);
    bytes = sure ? bytes : 0;
    if (op->number >= b->epoch) {
        each(b, offset, bytes, b->frozen ? b->since_must : b->must, may);
    } else {
        /* It was under way when the recorder changed: one of the two has it. */
        each(b, offset, bytes, b->frozen ? b->either : ignored, b->may);
    }
}

/* A flush has failed: what was written since the last good one may be lost. */
static void bitmap_unsure(struct bitmap *b)
{
    each(b, 0, b->bytes, b->frozen ? b->since_may : b->may, b->may);
}

void bitmaps_note(const struct op *op, bool sure)
{
    struct world *w = op->world;

    for (unsigned i = 0; i < w->bitmap_count && op_may_flush(op); i++) {
        if (w->bitmaps[i].image == op->image && w->bitmaps[i].recording) {
            bitmap_unsure(&w->bitmaps[i]);
        }
    }

    for (unsigned i = 0; i < w->bitmap_count && changes(op); i++) {
        struct bitmap *b = &w->bitmaps[i];

        if (b->image == op->image && b->recording) {
            bitmap_note(b, op, sure);
        }
    }
}

/* The recorder changes: what is under way may be in both. */
static void bitmap_turn(struct bitmap *b)
{
    b->epoch = b->world->op_count;
}

/* What has not ended may be seen already. */
static void add_pending(const struct bitmap *b, bool *may)
{
    const struct world *w = b->world;

    for (unsigned i = 0; i < w->op_count; i++) {
        uint64_t offset, bytes;

        if (w->ops[i]->image == b->image && changes(w->ops[i]) && !op_over(w->ops[i])) {
            rounded(w->ops[i], true, &offset, &bytes);
            each(b, offset, bytes, may, may);
        }
    }
}

/* ---- Looking at it ---- */

static void bitmap_read(const struct bitmap *b, bool *dirty)
{
    uint64_t position = 0, offsets[7], last = 0;
    bool any = false;
    int count;

    memset(dirty, 0, BITMAP_GRANULES_MAX * sizeof *dirty);
    while ((count = api_bitmap_iterate(b->handle, &position, offsets, 7)) > 0) {
        for (int i = 0; i < count; i++) {
            REQUIRE(offsets[i] % b->granularity == 0 && offsets[i] < b->bytes &&
                        (!any || offsets[i] > last),
                    "bitmap %u: lists %llu after %llu", b->number, (unsigned long long)offsets[i],
                    (unsigned long long)last);
            last = offsets[i];
            any = true;
            dirty[offsets[i] / b->granularity] = true;
        }
    }
}

static uint64_t bytes_of(const struct bitmap *b, const bool *dirty)
{
    uint64_t bytes = 0;

    for (size_t g = 0; g < granules(b); g++) {
        uint64_t left = b->bytes - g * b->granularity;

        bytes += !dirty[g] ? 0 : left < b->granularity ? left : b->granularity;
    }
    return bytes;
}

blkrepl_bitmap_info bitmap_info(const struct bitmap *b)
{
    blkrepl_bitmap_info info = {.struct_size = sizeof info};

    api_bitmap_query(b->handle, &info);
    return info;
}

static void bitmap_check_info(const struct bitmap *b, const bool *dirty)
{
    blkrepl_bitmap_info info = bitmap_info(b);
    uint32_t flags =
        (b->recording ? BLKREPL_BITMAP_RECORDING : 0u) | (b->frozen ? BLKREPL_BITMAP_BUSY : 0u);
    bool since[BITMAP_GRANULES_MAX];
    uint64_t least = bytes_of(b, b->since_must);

    memcpy(since, b->since_may, sizeof since);
    add_pending(b, since);
    REQUIRE(info.flags == flags && info.bytes == b->bytes && info.user == b &&
                info.granularity_bytes == b->granularity,
            "bitmap %u: query tells flags %u, not %u; %llu bytes", b->number, info.flags, flags,
            (unsigned long long)info.bytes);
    REQUIRE(info.dirty_bytes == bytes_of(b, dirty),
            "bitmap %u: query tells %llu dirty bytes of %llu", b->number,
            (unsigned long long)info.dirty_bytes, (unsigned long long)bytes_of(b, dirty));
    REQUIRE(b->frozen ? info.since_bytes >= least && info.since_bytes <= bytes_of(b, since)
                      : info.since_bytes == 0,
            "bitmap %u: since the freeze %llu bytes, at least %llu", b->number,
            (unsigned long long)info.since_bytes, (unsigned long long)least);
}

void bitmap_check(struct bitmap *b)
{
    bool dirty[BITMAP_GRANULES_MAX], may[BITMAP_GRANULES_MAX];

    if (!b->handle) {
        return;
    }
    memcpy(may, b->may, sizeof may);
    add_pending(b, may);
    bitmap_read(b, dirty);
    for (size_t g = 0; g < granules(b); g++) {
        REQUIRE(dirty[g] || !b->must[g], "bitmap %u: granule %zu is clean, and was written",
                b->number, g);
        REQUIRE(!dirty[g] || may[g], "bitmap %u: granule %zu is dirty, and nobody wrote there",
                b->number, g);
        REQUIRE(api_bitmap_get(b->handle, g * b->granularity) == dirty[g],
                "bitmap %u: granule %zu is listed as %d", b->number, g, dirty[g]);
        b->since_must[g] = b->since_must[g] || (b->either[g] && !dirty[g]);
        b->either[g] = false;
    }
    bitmap_check_info(b, dirty);
    api_bitmap_validate(b->handle);
}

/* ---- Making them ---- */

static struct bitmap *bitmap_new(struct world *w, struct image *image, uint64_t bytes,
                                 uint64_t granularity)
{
    struct bitmap *b = &w->bitmaps[w->bitmap_count];

    REQUIRE(w->bitmap_count < BITMAPS_MAX &&
                (bytes + granularity - 1) / granularity <= BITMAP_GRANULES_MAX,
            "scenario: too many bitmaps, or too large");
    *b = (struct bitmap){.world = w,
                         .number = w->bitmap_count++,
                         .image = image,
                         .bytes = bytes,
                         .granularity = granularity};
    bitmap_turn(b);
    return b;
}

struct bitmap *bitmap_add(struct image *image, const char *name, uint64_t granularity,
                          uint32_t flags)
{
    struct bitmap *b = bitmap_new(image->world, image, image_bytes(image), granularity);
    blkrepl_bitmap_options o = {.struct_size = sizeof o,
                                .flags = flags,
                                .granularity_bytes = granularity,
                                .name = name,
                                .user = b};

    if (api_bitmap_add(image->handle, &o, &b->handle) < 0 &&
        api_bitmap_add(image->handle, &o, &b->handle) < 0) {
        return NULL;
    }
    b->recording = (flags & BLKREPL_BITMAP_DISABLED) == 0;
    return b;
}

struct bitmap *bitmap_create(struct world *w, uint64_t bytes, uint64_t granularity)
{
    struct bitmap *b = bitmap_new(w, NULL, bytes, granularity);
    blkrepl_bitmap_options o = {
        .struct_size = sizeof o, .bytes = bytes, .granularity_bytes = granularity, .user = b};

    if (api_bitmap_create(w->ctx, &o, &b->handle) < 0 &&
        api_bitmap_create(w->ctx, &o, &b->handle) < 0) {
        return NULL;
    }
    return b;
}

void bitmap_free(struct bitmap *b)
{
    blkrepl_bitmap *handle = b->handle;

    b->handle = NULL;
    b->recording = false;
    api_bitmap_free(handle);
}

/* ---- Verbs: the library's, and the model's ---- */

bool bitmap_freeze(struct bitmap *b)
{
    if (api_bitmap_freeze(b->handle) < 0 && api_bitmap_freeze(b->handle) < 0) {
        bitmap_check(b);
        return false;
    }
    bitmap_frozen(b);
    return true;
}

void bitmap_frozen(struct bitmap *b)
{
    add_pending(b, b->may);
    bitmap_turn(b);
    b->frozen = true;
    memset(b->since_must, 0, sizeof b->since_must);
    memset(b->since_may, 0, sizeof b->since_may);
    memset(b->either, 0, sizeof b->either);
}

void bitmap_abdicate(struct bitmap *b)
{
    REQUIRE(api_bitmap_abdicate(b->handle) == 0, "abdicate fails");
    bitmap_used_up(b);
}

void bitmap_used_up(struct bitmap *b)
{
    b->frozen = false;
    memcpy(b->must, b->since_must, sizeof b->must);
    memcpy(b->may, b->since_may, sizeof b->may);
}

void bitmap_reclaim(struct bitmap *b)
{
    REQUIRE(api_bitmap_reclaim(b->handle) == 0, "reclaim fails");
    bitmap_not_used(b);
}

void bitmap_not_used(struct bitmap *b)
{
    b->frozen = false;
    for (size_t g = 0; g < granules(b); g++) {
        b->must[g] = b->must[g] || b->since_must[g] || b->either[g];
        b->may[g] = b->may[g] || b->since_may[g];
    }
}

void bitmap_cleared(struct bitmap *b)
{
    bitmap_turn(b);
    memset(b->must, 0, sizeof b->must);
    memset(b->may, 0, sizeof b->may);
}

void bitmap_clear(struct bitmap *b)
{
    REQUIRE(api_bitmap_clear(b->handle) == 0, "clear fails");
    bitmap_cleared(b);
}

void bitmap_recorded(struct bitmap *b, bool recording)
{
    add_pending(b, b->may);
    bitmap_turn(b);
    b->recording = recording;
}

void bitmap_enable(struct bitmap *b, bool enable)
{
    int rc = enable ? api_bitmap_enable(b->handle) : api_bitmap_disable(b->handle);

    REQUIRE(rc == 0, "enable or disable fails");
    bitmap_recorded(b, enable);
}

void bitmap_set(struct bitmap *b, uint64_t offset, uint64_t bytes)
{
    REQUIRE(api_bitmap_set(b->handle, offset, bytes) == 0, "set fails");
    each(b, offset, bytes, b->frozen ? b->since_must : b->must, b->frozen ? b->since_may : b->may);
}

void bitmap_reset(struct bitmap *b, uint64_t offset, uint64_t bytes)
{
    REQUIRE(api_bitmap_reset(b->handle, offset, bytes) == 0, "reset fails");
    bitmap_turn(b);
    for (uint64_t g = offset / b->granularity; g * b->granularity < offset + bytes; g++) {
        b->must[g] = b->may[g] = false;
    }
}

/* What a dirty granule of the other touches. */
void bitmap_merged(struct bitmap *b, const struct bitmap *other)
{
    bool ignored[BITMAP_GRANULES_MAX];

    for (size_t g = 0; g < granules(other); g++) {
        uint64_t at = g * other->granularity, left = other->bytes - at;
        uint64_t bytes = left < other->granularity ? left : other->granularity;

        each(b, at, other->must[g] ? bytes : 0, b->must, b->may);
        each(b, at, other->may[g] ? bytes : 0, ignored, b->may);
    }
}

void bitmap_merge(struct bitmap *b, const struct bitmap *other)
{
    REQUIRE(api_bitmap_merge(b->handle, &(blkrepl_bitmap *const){other->handle}, 1) == 0,
            "merge fails");
    bitmap_merged(b, other);
}

/* All is well again: every one of them still works. */
void bitmaps_live_on(struct world *w)
{
    for (unsigned i = 0; i < w->bitmap_count; i++) {
        struct bitmap *b = &w->bitmaps[i];

        bitmap_check(b);
        if (b->handle && b->frozen) {
            bitmap_reclaim(b);
        }
        bitmap_check(b);
        if (b->handle && bitmap_freeze(b)) {
            bitmap_set(b, 0, b->bytes);
            bitmap_check(b);
            bitmap_abdicate(b);
            bitmap_check(b);
        }
    }
}
