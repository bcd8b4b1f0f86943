/* SPDX-License-Identifier: MIT */
/* bitmap.c - a bitmap of the source: what it must and may tell, after every step.
 *
 * Sound: a write that has ended is dirty for whoever recorded at that moment, and
 * one that was in flight when the recorder changed is dirty on both sides.  Tight:
 * what is dirty was written, or is being written, since that recorder began, or lost
 * by a flush that failed.  Frozen content stands still.
 *
 * Whether a write has ended is known when it is told.  Between its completion at
 * the disk and that, which only a late step can be longer than nothing, it may be
 * on either side of a change. */
#include "small.h"

#include <errno.h>

#define GRANULES_MAX 32

static uint32_t granules(void)
{
    return (run.world->bytes + run.world->bitmap - 1) / run.world->bitmap;
}

static uint32_t all(void)
{
    return (UINT32_C(1) << granules()) - 1;
}

/* The granules that a range touches, as it was rounded to the image's alignment. */
static uint32_t mask_of(uint32_t start, uint32_t end)
{
    uint32_t align = run.world->alignment;

    if (start >= end) {
        return 0;
    }
    end = (end + align - 1) / align * align;
    end = end < run.world->bytes ? end : run.world->bytes;
    start = start / align * align / run.world->bitmap;
    end = (end - 1) / run.world->bitmap + 1;
    return (UINT32_C(1) << end) - (UINT32_C(1) << start);
}

static uint32_t bytes_of(uint32_t mask)
{
    uint32_t bytes = 0;

    for (uint32_t g = 0; g < granules(); g++) {
        uint32_t left = run.world->bytes - g * run.world->bitmap;

        bytes += (mask >> g & 1) == 0 ? 0 : left < run.world->bitmap ? left : run.world->bitmap;
    }
    return bytes;
}

static bool is_pending(const struct request *r)
{
    return (r->state == REQUEST_PENDING || r->state == REQUEST_GO) && r->op != NULL &&
           r->op->disk == 0;
}

/* What is under way may be dirty already. */
static uint32_t pending_mask(void)
{
    uint32_t mask = 0;

    for (uint32_t i = 0; i < OPS_MAX; i++) {
        const struct request *r = &state.requests[i];

        if (is_pending(r) && is_write(r->op->opcode)) {
            mask |= mask_of(r->start, r->end);
        } else if (is_pending(r) && r->op->opcode == BLKREPL_OP_FLUSH) {
            mask |= all(); /* it may have failed */
        }
    }
    return mask;
}

/* ---- The recorder changes ------------------------------------------------------ */

/* Is something of it at the disk still? */
static bool is_at_disk(const struct request *r)
{
    const struct disk *disk = &state.disks[0];

    for (uint32_t i = 0; i < disk->in_flight; i++) {
        const struct queued *q = &disk->queue[i];
        bool flush = q->opcode == BLKREPL_OP_FLUSH && r->op->opcode == BLKREPL_OP_FLUSH;

        if (q->owner == OWNER_GUEST &&
            (flush || (is_write(r->op->opcode) && q->start < r->end && r->start < q->end))) {
            return true;
        }
    }
    return false;
}

/* What is known right before a call that may change the recorder. */
struct instant {
    uint32_t given;  /* granules of what is in flight: what the host may write, and
                      * what a disk has got                                     */
    uint32_t unsure; /* requests that may have ended and are not told yet       */
};

static struct instant look(void)
{
    struct instant now = {0};

    for (uint32_t i = 0; i < OPS_MAX; i++) {
        const struct request *r = &state.requests[i];
        bool flush, begun;

        if (!is_pending(r)) {
            continue;
        }
        flush = r->op->opcode == BLKREPL_OP_FLUSH;
        begun = r->state == REQUEST_PENDING && (flush || r->wrote);
        now.unsure |= (UINT32_C(1) << i) * (begun && !is_at_disk(r));
        if (is_write(r->op->opcode) && (r->state == REQUEST_GO || r->sure)) {
            now.given |= mask_of(r->start, r->end);
        }
    }
    return now;
}

/* Who is under way ends with the next recorder, unless it is only not told yet. */
static void turn(struct instant then)
{
    for (uint32_t i = 0; i < OPS_MAX; i++) {
        state.requests[i].unsure = then.unsure >> i & 1;
    }
}

/* One that stops marks what is in flight. */
static void stop(struct instant then)
{
    state.bitmap.may |= then.given | pending_mask();
    state.bitmap.must |= then.given;
    turn(then);
}

static void record(uint32_t must, uint32_t may)
{
    struct bitmap *b = &state.bitmap;

    if (b->recording) {
        *(b->frozen ? &b->since_must : &b->must) |= must;
        *(b->frozen ? &b->since_may : &b->may) |= must | may;
    }
}

/* Granules of what was written before the flush and is not durable now: writes that
 * had ended, as far as it can be told. */
static uint32_t lost_mask(const struct request *flush)
{
    uint32_t mask = 0;
    uint32_t cells = flush->flush_mask;

    for (uint32_t i = 0; i < OPS_MAX; i++) {
        const struct request *r = &state.requests[i];

        if (is_pending(r) && is_write(r->op->opcode) && r->start < r->end) {
            cells &= ~cell_mask(r->start, r->end);
        }
    }
    for (uint32_t cell = 0; run.cells[cell] < run.world->bytes; cell++) {
        mask |= (cells >> cell & 1) != 0 ? mask_of(run.cells[cell], run.cells[cell + 1]) : 0;
    }
    return mask;
}

/* A request has ended: it is about to be told, or the host has said so. */
void bitmap_ended(const struct request *r)
{
    uint32_t mask;

    if (run.world->bitmap == 0 || r->op->disk != 0) {
        return;
    }
    mask = mask_of(r->start, r->end);
    if (is_write(r->op->opcode)) {
        bool given = r->result == 0 || r->wrote;
        bool sure = given && !r->unsure && r->op->opcode != BLKREPL_OP_DISCARD;

        record(sure ? mask : 0, mask);
    } else if (r->op->opcode == BLKREPL_OP_FLUSH && r->result < 0) {
        record(r->unsure ? 0 : lost_mask(r), all());
    }
}

/* ---- Verbs ----------------------------------------------------------------------- */

static int verb_call(const struct op *op)
{
    blkrepl_bitmap *bitmap = state.bitmap.handle;
    int answer;

    switch ((uint32_t)op->kind) {
    case OP_ABDICATE: return blkrepl_bitmap_abdicate(bitmap);
    case OP_RECLAIM: return blkrepl_bitmap_reclaim(bitmap);
    case OP_DISABLE: return blkrepl_bitmap_disable(bitmap);
    case OP_ENABLE: return blkrepl_bitmap_enable(bitmap);
    case OP_CLEAR: return blkrepl_bitmap_clear(bitmap);
    default: break;
    }
    state.may_allocate = 1;
    answer = blkrepl_bitmap_freeze(bitmap);
    state.may_allocate = 0;
    return answer;
}

static uint32_t content(void)
{
    uint64_t offsets[GRANULES_MAX];
    uint64_t position = 0;
    uint32_t mask = 0;
    int count = blkrepl_bitmap_iterate(state.bitmap.handle, &position, offsets, GRANULES_MAX);

    EXPECT(count >= 0 && position == run.world->bytes, "iterate answered %d", count);
    for (int i = 0; i < count; i++) {
        mask |= UINT32_C(1) << offsets[i] / run.world->bitmap;
    }
    return mask;
}

static void verb_done(const struct op *op, struct instant then)
{
    struct bitmap *b = &state.bitmap;

    switch ((uint32_t)op->kind) {
    case OP_FREEZE:
        if (b->recording) {
            stop(then);
        }
        b->frozen = 1;
        b->still = content();
        break;
    case OP_ABDICATE:
        b->must = b->since_must;
        b->may = b->since_may;
        break;
    case OP_RECLAIM:
        b->must |= b->since_must;
        b->may |= b->since_may;
        break;
    case OP_DISABLE:
        if (b->recording) {
            stop(then);
        }
        b->recording = 0;
        break;
    case OP_ENABLE:
        if (!b->recording) {
            turn(then);
        }
        b->recording = 1;
        break;
    default:
        turn(then);
        b->must = b->may = 0;
        break;
    }
    if (op->kind == OP_ABDICATE || op->kind == OP_RECLAIM) {
        b->frozen = b->still = b->since_must = b->since_may = 0;
    }
}

void bitmap_apply(const struct op *op)
{
    bool ends = op->kind == OP_ABDICATE || op->kind == OP_RECLAIM;
    bool frozen = state.bitmap.frozen != 0;
    int legal = ends ? (frozen ? 0 : BLKREPL_ERR_STATE) : frozen ? -EBUSY : 0;
    struct instant then = look();
    int answer = verb_call(op);

    TRACE("    answer %d", answer);
    EXPECT(answer == legal, "%s answered %d: %s", op->name, answer, blkrepl_error_message());
    if (answer == 0) {
        verb_done(op, then);
    }
    bitmap_check();
}

/* ---- Life ------------------------------------------------------------------------ */

void bitmap_open(void)
{
    blkrepl_bitmap_options options = {
        .struct_size = sizeof options, .granularity_bytes = run.world->bitmap, .name = "bitmap"};
    int answer;

    if (run.world->bitmap == 0) {
        return;
    }
    answer = blkrepl_bitmap_add(state.disks[0].image, &options, &state.bitmap.handle);
    EXPECT(answer == 0, "bitmap_add answered %d: %s", answer, blkrepl_error_message());
    state.bitmap.recording = 1;
}

void bitmap_drop(void)
{
    blkrepl_bitmap *handle = state.bitmap.handle;

    state.bitmap = (struct bitmap){.handle = NULL};
    blkrepl_bitmap_free(handle);
}

static void check_info(uint32_t dirty, uint32_t pending)
{
    const struct bitmap *b = &state.bitmap;
    blkrepl_bitmap_info info = {.struct_size = sizeof info};
    uint32_t flags =
        (b->recording ? BLKREPL_BITMAP_RECORDING : 0u) | (b->frozen ? BLKREPL_BITMAP_BUSY : 0u);
    int answer = blkrepl_bitmap_query(b->handle, &info);

    pending = b->frozen && b->recording ? pending : 0;
    EXPECT(answer == 0 && info.flags == flags && info.dirty_bytes == bytes_of(dirty),
           "query answered %d: flags %u, %llu bytes", answer, info.flags, (ull)info.dirty_bytes);
    EXPECT(info.since_bytes >= bytes_of(b->since_must) &&
               info.since_bytes <= bytes_of(b->since_may | pending),
           "%llu bytes since the freeze, must be %x and may be %x", (ull)info.since_bytes,
           b->since_must, b->since_may | pending);
}

/* None of this enters the context: it changes nothing, and may be asked at any time. */
void bitmap_check(void)
{
    const struct bitmap *b = &state.bitmap;
    uint32_t pending, dirty;

    if (b->handle == NULL) {
        return;
    }
    dirty = content();
    pending = pending_mask();
    EXPECT((b->must & ~dirty) == 0, "granules %x are dirty, %x were written", dirty, b->must);
    EXPECT((dirty & ~(b->may | (b->recording && !b->frozen ? pending : 0))) == 0,
           "granules %x are dirty, %x may be", dirty, b->may);
    EXPECT(!b->frozen || dirty == b->still, "frozen content was %x and is %x", b->still, dirty);
    check_info(dirty, pending);
}
