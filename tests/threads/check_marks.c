/* SPDX-License-Identifier: MIT */
/* check_marks.c - what must hold of bitmaps, however the threads were interleaved.
 *
 * A touch is something that makes granules dirty at an instant of its interval: a
 * write of a guest (when it ends), a set of the host, or a flush that fails, which
 * does so for what it should have made durable.  The content of a bitmap begins
 * anew from time to time, so what is seen in it belongs to one of its spans.
 *
 *   sound    a touch is seen in one of the spans that its interval meets, if all of
 *            these were seen in the end and recording was on; and by every look
 *            that came after it in the same span;
 *   tight    what is seen was touched, before the look and not before its span;
 *   at once  looks of one group are of one instant: what is seen in one of them of
 *            a touch obliges all to show what had ended before that touch began. */
#include "marks.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

typedef unsigned long long ull;

#define TOUCHES_MAX (OPS_MAX * 4 + LOOKS_MAX)
#define GRANULES_MAX (MARKS_WORDS * 64)

struct touch {
    uint64_t begin;
    uint64_t end;
    uint32_t first; /* granules */
    uint32_t last;
    bool sure;   /* it has to be seen */
    bool always; /* recording or not  */
};

/* Of the bitmap that is looked at. */
static struct {
    uint32_t number;
    const struct marks *marks;
    struct touch touches[TOUCHES_MAX];
    uint32_t touch_count;
    uint16_t near[GRANULES_MAX][TOUCHES_MAX];
    uint16_t near_count[GRANULES_MAX];
    const struct look *looks[LOOKS_MAX];
    uint32_t look_count;
    uint64_t opened; /* flushes before that count for nothing */
} at;

/* Of each group, the latest begin of a touch that is needed to explain what is seen. */
static uint64_t low[LOOKS_MAX];

/* ---- Touches ------------------------------------------------------------------------ */

static void touch(uint64_t begin, uint64_t end, uint64_t offset, uint64_t bytes, bool sure)
{
    struct touch *t = &at.touches[at.touch_count++];

    MUST(at.touch_count < TOUCHES_MAX && bytes > 0, "too many touches");
    *t = (struct touch){.begin = begin,
                        .end = end,
                        .first = (uint32_t)(offset / at.marks->granularity),
                        .last = (uint32_t)((offset + bytes - 1) / at.marks->granularity),
                        .sure = sure};
    for (uint32_t g = t->first; g <= t->last; g++) {
        at.near[g][at.near_count[g]++] = (uint16_t)(at.touch_count - 1);
    }
}

/* The range in whole units of the disk. */
static void touch_rounded(const struct op *op, uint64_t begin, uint64_t end, bool sure)
{
    const blkrepl_backend_info *info = &world.plan.disk[op->disk].info;
    uint64_t unit = info->request_alignment;
    uint64_t from = op->offset / unit * unit;
    uint64_t to = (op->offset + op->bytes + unit - 1) / unit * unit;

    touch(begin, end, from, (to < info->bytes ? to : info->bytes) - from, sure);
}

static bool was_made(const struct op *op)
{
    return atomic_load(&op->state) != OP_NONE && op->answer != -ESHUTDOWN &&
           (op->answer >= 0 || op->blocking);
}

static bool writes_here(const struct op *op)
{
    return was_made(op) && op->disk == at.marks->disk && op_writes(op) && op->bytes > 0;
}

/* What ended with an error of the disk has ended; what a policy or a cancel refused
 * has not begun, and a discard may be ignored in part or whole. */
static bool is_sure(const struct op *op)
{
    if (op->bracket) {
        return op->result != -ECANCELED && (op->result == 0 || !atomic_load(&world.policy));
    }
    return op->opcode != BLKREPL_OP_DISCARD &&
           (op->result == 0 || (op->result == -EIO && !atomic_load(&world.policy)));
}

static bool flushes_here(const struct op *op, bool good)
{
    bool flush = op->opcode == BLKREPL_OP_FLUSH;

    return was_made(op) && op->disk == at.marks->disk &&
           (good ? flush && op->result == 0
                 : op->result < 0 && (flush || (op->flags & BLKREPL_IO_FUA) != 0));
}

/* Whether a good flush may, or must, have come between. */
static bool flushed_between(uint64_t after, uint64_t before, bool surely)
{
    for (uint32_t i = 0; i < world.op_count; i++) {
        const struct op *op = &world.ops[i];

        if (flushes_here(op, true) && (surely ? op->begin : op->end) > after &&
            (surely ? op->end : op->begin) < before) {
            return true;
        }
    }
    return false;
}

/* Whether what had been written by `after` is not lost when a flush fails that began at
 * `before`: a good flush has come between, and one more before that, for the library
 * counts what ended right before a flush among what came after it. */
static bool flushed_twice(uint64_t after, uint64_t before)
{
    after = after > at.opened ? after : at.opened;
    for (uint32_t i = 0; i < world.op_count; i++) {
        const struct op *op = &world.ops[i];
        bool flush = was_made(op) && op->disk == at.marks->disk && op->opcode == BLKREPL_OP_FLUSH;

        if (flush && op->begin > after && op->end < before &&
            flushed_between(op->end, before, true)) {
            return true;
        }
    }
    return false;
}

/* A flush has failed: what had been written and not been flushed is touched. */
static void touch_lost(const struct op *flush)
{
    bool ever = flushed_between(at.opened, flush->begin, true);
    bool sure = flush->opcode == BLKREPL_OP_FLUSH && flush->result == -EIO;

    if (!ever) {
        touch(flush->begin, flush->end, 0, at.marks->bytes, false);
    }
    for (uint32_t i = 0; i < world.op_count; i++) {
        const struct op *op = &world.ops[i];

        if (!writes_here(op) || op->begin > flush->end || flushed_twice(op->end, flush->begin)) {
            continue;
        }
        touch_rounded(op, flush->begin, flush->end,
                      sure && is_sure(op) && op->end < flush->begin &&
                          !flushed_between(op->begin, flush->end, false));
    }
}

static void find_touches(void)
{
    at.touch_count = 0;
    memset(at.near_count, 0, sizeof at.near_count);
    for (uint32_t i = 0; i < world.op_count; i++) {
        const struct op *op = &world.ops[i];

        if (writes_here(op)) {
            touch_rounded(op, op->begin, op->end, is_sure(op));
        }
    }
    for (uint32_t i = 0; i < at.look_count; i++) {
        const struct look *look = at.looks[i];

        for (uint32_t g = 0; look->kind == LOOK_SET && g < GRANULES_MAX; g++) {
            if (bits_get(&look->bits, g)) {
                touch(look->begin, look->end, g * at.marks->granularity, 1, true);
                at.touches[at.touch_count - 1].always = true;
            }
        }
    }
    for (uint32_t i = 0; i < world.op_count; i++) {
        const struct op *op = &world.ops[i];

        if (!flushes_here(op, false)) {
            continue;
        }
        if (at.touch_count + 2 * OPS_MAX < TOUCHES_MAX) {
            touch_lost(op);
        } else { /* a disk on which every flush fails: no more room than for this */
            touch(op->begin, op->end, 0, at.marks->bytes, false);
        }
    }
}

/* ---- Spans -------------------------------------------------------------------------- */

static bool ends_span(const struct look *look)
{
    return look->kind == LOOK_TURN || look->kind == LOOK_CLEAR;
}

/* The look with which the span of this one has begun; NULL: with the bitmap. */
static const struct look *span_begin(uint32_t index)
{
    while (index-- > 0) {
        if (ends_span(at.looks[index])) {
            return at.looks[index];
        }
    }
    return NULL;
}

/* Was recording off at some time of the interval? */
static bool was_off(uint64_t begin, uint64_t end)
{
    uint64_t off = UINT64_MAX;

    for (uint32_t i = 0; i < at.look_count; i++) {
        const struct look *look = at.looks[i];

        if (look->kind == LOOK_STOP && off == UINT64_MAX) {
            off = look->begin;
        } else if (look->kind == LOOK_START) {
            if (off < end && begin < look->end) {
                return true;
            }
            off = UINT64_MAX;
        }
    }
    return off < end;
}

static bool shows(const struct look *look, const struct touch *t)
{
    for (uint32_t g = t->first; g <= t->last; g++) {
        if (!bits_get(&look->bits, g)) {
            return false;
        }
    }
    return true;
}

/* ---- Sound ---------------------------------------------------------------------------- */

/* It is in one of the spans that it meets; nothing is known of what was cleared. */
static void check_kept(const struct touch *t)
{
    struct bits left = {{0}};
    bool any = false;

    for (uint32_t i = 0; i < at.look_count; i++) {
        const struct look *look = at.looks[i];
        const struct look *begin = span_begin(i);

        if (!ends_span(look) || look->end < t->begin || (begin != NULL && begin->begin > t->end)) {
            continue;
        }
        if (look->kind == LOOK_CLEAR) {
            return;
        }
        any = true;
        for (uint32_t g = t->first; g <= t->last; g++) {
            if (bits_get(&look->bits, g)) {
                bits_set(&left, g);
            }
        }
    }
    for (uint32_t g = t->first; g <= t->last; g++) {
        MUST(any && bits_get(&left, g),
             "bitmap %u: granule %u was touched from %llu to %llu (%s), "
             "and no look shows it",
             at.number, g, (ull)t->begin, (ull)t->end, t->always ? "by the host" : "by a guest");
    }
}

/* Whoever looks after it, in the same span, sees it. */
static void check_shown(const struct touch *t)
{
    for (uint32_t i = 0; i < at.look_count; i++) {
        const struct look *look = at.looks[i];
        const struct look *begin = span_begin(i);

        if ((look->kind != LOOK_PEEK && look->kind != LOOK_TURN) ||
            (begin != NULL && begin->end > t->begin)) {
            continue;
        }
        MUST(look->begin <= t->end || shows(look, t),
             "bitmap %u: granules %u to %u were touched from %llu to %llu; the look from %llu to "
             "%llu does not show it",
             at.number, t->first, t->last, (ull)t->begin, (ull)t->end, (ull)look->begin,
             (ull)look->end);
        MUST(low[look->group] <= t->end || shows(look, t),
             "bitmap %u: granules %u to %u were touched from %llu to %llu; a look shows what came "
             "after that, at %llu, but not this",
             at.number, t->first, t->last, (ull)t->begin, (ull)t->end, (ull)low[look->group]);
    }
}

/* ---- Tight ---------------------------------------------------------------------------- */

/* The earliest touch that explains a dirty granule of a look. */
static uint64_t explained(const struct look *look, const struct look *begin, uint32_t g)
{
    uint64_t earliest = UINT64_MAX;

    for (uint32_t i = 0; i < at.near_count[g]; i++) {
        const struct touch *t = &at.touches[at.near[g][i]];

        if (t->begin < look->end && (begin == NULL || t->end > begin->begin) &&
            t->begin < earliest) {
            earliest = t->begin;
        }
    }
    return earliest;
}

static void check_look(uint32_t index)
{
    const struct look *look = at.looks[index];
    const struct look *begin = span_begin(index);

    if (look->kind != LOOK_PEEK && look->kind != LOOK_TURN) {
        return;
    }
    world.counts.looks++;
    world.counts.turns += look->kind == LOOK_TURN;
    for (uint32_t g = 0; g < GRANULES_MAX; g++) {
        uint64_t earliest;

        if (!bits_get(&look->bits, g)) {
            continue;
        }
        earliest = explained(look, begin, g);
        MUST(earliest != UINT64_MAX,
             "bitmap %u: the look from %llu to %llu shows granule %u, which nobody has touched "
             "since %llu",
             at.number, (ull)look->begin, (ull)look->end, g,
             (ull)(begin != NULL ? begin->begin : 0));
        low[look->group] = earliest > low[look->group] ? earliest : low[look->group];
    }
}

/* ---- Bitmaps of targets ------------------------------------------------------------------ */

/* What is on the disk now and was not in the beginning has been seen; and nothing was if
 * no backup has ever written. */
static void check_target(void)
{
    const struct vdisk *disk = &world.disks[at.marks->disk];
    struct bits all = {{0}};
    bool written = false;

    for (uint32_t i = 0; i < at.look_count; i++) {
        for (uint32_t n = 0; n < MARKS_WORDS; n++) {
            all.word[n] |= at.looks[i]->bits.word[n];
        }
    }
    for (uint32_t i = 0; i < world.job_count; i++) {
        written = written || (world.jobs[i].target == at.marks->disk && world.jobs[i].started);
    }
    for (uint64_t word = 0; word < at.marks->bytes / 8; word++) {
        MUST(atomic_load(&disk->words[word]) == 0 || world.plan.marks_late ||
                 bits_get(&all, word * 8 / at.marks->granularity),
             "bitmap %u: word %llu of the target was written and is clean", at.number, (ull)word);
    }
    for (uint32_t n = 0; n < MARKS_WORDS; n++) {
        MUST(all.word[n] == 0 || written, "bitmap %u: dirty, and nobody has written", at.number);
    }
}

/* ---- All of it ------------------------------------------------------------------------------ */

static void find_looks(uint32_t number)
{
    at.number = number;
    at.marks = &live_marks[number];
    at.look_count = 0;
    for (uint32_t i = 0; i < look_count; i++) {
        if (looks[i].marks == number) {
            at.looks[at.look_count++] = &looks[i];
        }
    }
    at.opened = at.look_count > 0 ? at.looks[0]->end : 0;
    find_touches();
}

static void check_sound(void)
{
    for (uint32_t i = 0; i < at.touch_count; i++) {
        const struct touch *t = &at.touches[i];

        if (t->sure && (t->always || !was_off(t->begin, t->end))) {
            check_kept(t);
            check_shown(t);
        }
    }
}

/* It did come, and was looked at in the end. */
static bool was_used(void)
{
    return at.look_count > 0 && at.looks[at.look_count - 1]->kind == LOOK_TURN;
}

void check_marks(void)
{
    memset(low, 0, sizeof low);
    for (uint32_t i = 0; i < world.plan.marks; i++) {
        find_looks(i);
        if (at.marks->disk >= world.plan.sources) {
            check_target();
            continue;
        }
        for (uint32_t n = 0; n < at.look_count; n++) {
            check_look(n);
        }
    }
    for (uint32_t i = 0; i < world.plan.marks; i++) {
        find_looks(i);
        if (at.marks->disk < world.plan.sources && was_used()) {
            check_sound();
        }
    }
}
