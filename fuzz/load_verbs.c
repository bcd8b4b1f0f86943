/* SPDX-License-Identifier: MIT */
/* load_verbs.c - everything else that a bitmap can be asked or told, refused
 * while a load goes on or the content is in use. */
#include "load.h"

#include <stdlib.h>

#define UNTOUCHED UINT64_C(0x5a5a5a5a5a5a5a5a)
#define LIST_MAX 40

/* ---- Questions --------------------------------------------------------------- */

static void question_get(struct subject *s, blkrepl_bitmap *handle, struct verdict *verdict)
{
    uint64_t offset;
    uint64_t bytes;
    int must = 0;
    int rc;

    any_range_draw(s, &offset, &bytes);
    verdict_add_if(verdict, offset >= s->bits.bytes, -EINVAL);
    if (offset < s->bits.bytes) {
        must = bits_get(&s->bits, (uint32_t)(offset >> s->bits.shift));
    }
    call_begin();
    rc = blkrepl_bitmap_get(handle, offset);
    answer_expect(rc, verdict, must, "get");
}

static void question_next(struct subject *s, blkrepl_bitmap *handle, struct verdict *verdict)
{
    bool dirty = take_chance(50);
    bool nowhere = take_chance(2);
    uint64_t found = UNTOUCHED;
    uint64_t must = UNTOUCHED;
    uint64_t offset;
    uint64_t bytes;
    uint64_t length;
    bool is;
    int rc;

    any_range_draw(s, &offset, &bytes);
    verdict_add_if(verdict, nowhere, -EINVAL);
    is = bits_next(&s->bits, offset, bytes, dirty, &must, &length);
    call_begin();
    rc = (dirty ? blkrepl_bitmap_next_dirty : blkrepl_bitmap_next_clean)(handle, offset, bytes,
                                                                         nowhere ? NULL : &found);
    answer_expect(rc, verdict, is, dirty ? "next_dirty" : "next_clean");
    EXPECT(found == (rc == 1 ? must : UNTOUCHED), "next of %llu+%llu: %llu, got %llu", (ull)offset,
           (ull)bytes, (ull)must, (ull)found);
}

static void question_area(struct subject *s, blkrepl_bitmap *handle, struct verdict *verdict)
{
    bool nowhere = take_chance(2);
    blkrepl_area area = {.offset = UNTOUCHED, .bytes = UNTOUCHED};
    blkrepl_area must = area;
    uint64_t most = take_chance(50) ? take_number() : 0;
    uint64_t offset;
    uint64_t bytes;
    bool is;
    int rc;

    any_range_draw(s, &offset, &bytes);
    verdict_add_if(verdict, nowhere, -EINVAL);
    is = verdict->count == 0 && bits_next(&s->bits, offset, bytes, true, &must.offset, &must.bytes);
    if (is && most > 0 && must.bytes > most) {
        must.bytes = most;
    }
    call_begin();
    rc = blkrepl_bitmap_next_area(handle, offset, bytes, most, nowhere ? NULL : &area);
    answer_expect(rc, verdict, is, "next_area");
    EXPECT(area.offset == must.offset && area.bytes == must.bytes,
           "area of %llu+%llu: %llu+%llu, got %llu+%llu", (ull)offset, (ull)bytes, (ull)must.offset,
           (ull)must.bytes, (ull)area.offset, (ull)area.bytes);
}

static void question_status(struct subject *s, blkrepl_bitmap *handle, struct verdict *verdict)
{
    bool nowhere = take_chance(2);
    uint64_t run = UNTOUCHED;
    uint64_t offset;
    uint64_t bytes;
    uint64_t start;
    uint64_t length = 0;
    bool dirty = false;
    bool valid;
    int rc;

    any_range_draw(s, &offset, &bytes);
    valid = bytes > 0 && bits_inside(&s->bits, offset, bytes);
    verdict_add_if(verdict, !valid || nowhere, -EINVAL);
    if (valid) {
        dirty = bits_get(&s->bits, (uint32_t)(offset >> s->bits.shift));
        (void)bits_next(&s->bits, offset, bytes, dirty, &start, &length);
    }
    call_begin();
    rc = blkrepl_bitmap_status(handle, offset, bytes, nowhere ? NULL : &run);
    answer_expect(rc, verdict, dirty, "status");
    EXPECT(rc < 0 || run == length, "status of %llu+%llu: for %llu, got %llu", (ull)offset,
           (ull)bytes, (ull)length, (ull)run);
}

static void question_sha256(blkrepl_bitmap *handle, struct verdict *verdict)
{
    bool nowhere = take_chance(2);
    uint8_t digest[32];
    int rc;

    verdict_add_if(verdict, nowhere, -EINVAL);
    call_begin();
    rc = blkrepl_bitmap_sha256(handle, nowhere ? NULL : digest);
    answer_expect(rc, verdict, 0, "sha256");
}

void call_question(struct subject *s)
{
    struct verdict verdict = {.count = 0};
    blkrepl_bitmap *handle = handle_draw(s, &verdict);

    verdict_add_loading(&verdict, s);
    switch (take_below(5)) {
    case 0: question_get(s, handle, &verdict); break;
    case 1: question_next(s, handle, &verdict); break;
    case 2: question_area(s, handle, &verdict); break;
    case 3: question_status(s, handle, &verdict); break;
    default: question_sha256(handle, &verdict); break;
    }
}

/* What was listed is the next dirty granules, and the position is behind them. */
static void list_check(struct subject *s, uint64_t before, const uint64_t *offsets, uint32_t count,
                       uint32_t most)
{
    uint32_t granules = s->bits.granules;
    uint32_t from = before < s->bits.bytes ? (uint32_t)(before >> s->bits.shift) : granules;
    uint64_t behind = s->bits.bytes;

    for (uint32_t i = 0; i < count; i++) {
        from = bits_find(&s->bits, from, granules, true);
        EXPECT(from < granules && offsets[i] == bits_start(&s->bits, from),
               "another granule to be listed than that at %llu", (ull)offsets[i]);
        behind = bits_end(&s->bits, from++);
    }
    from = bits_find(&s->bits, from, granules, true);
    EXPECT(count == most || from == granules, "the granule at %llu to be listed",
           (ull)bits_start(&s->bits, from));
    EXPECT(count < most
               ? s->position == s->bits.bytes || before > s->bits.bytes
               : s->position == behind || (from == granules && s->position == s->bits.bytes),
           "position %llu, got %llu", (ull)behind, (ull)s->position);
}

void call_iterate(struct subject *s)
{
    struct verdict verdict = {.count = 0};
    blkrepl_bitmap *handle = handle_draw(s, &verdict);
    uint32_t most = take_below(LIST_MAX);
    uint64_t *offsets = most > 0 ? fuzz_alloc(most * sizeof *offsets) : NULL;
    uint64_t before;
    uint32_t count = 0;
    int rc;

    if (take_chance(30)) {
        s->position = take_chance(50) ? 0 : take_number();
    }
    before = s->position;
    verdict_add_loading(&verdict, s);
    verdict_add_if(&verdict, most == 0, -EINVAL);
    call_begin();
    rc = blkrepl_bitmap_iterate(handle, &s->position, offsets, most);
    if (rc > 0 && verdict.count == 0) {
        count = (uint32_t)rc;
        EXPECT(count <= most, "at most %u, got %u", (unsigned)most, (unsigned)count);
    }
    answer_expect(rc, &verdict, (int)count, "iterate");
    if (rc >= 0) {
        list_check(s, before, offsets, count, most);
    } else {
        EXPECT(s->position == before, "a refused iterate to leave the position alone");
    }
    free(offsets);
}

/* ---- Changes ----------------------------------------------------------------- */

void call_set(struct subject *s)
{
    struct verdict verdict = {.count = 0};
    blkrepl_bitmap *handle = handle_draw(s, &verdict);
    uint64_t offset;
    uint64_t bytes;
    int rc;

    any_range_draw(s, &offset, &bytes);
    verdict_add_loading(&verdict, s);
    verdict_add_if(&verdict, !bits_inside(&s->bits, offset, bytes), -EINVAL);
    fuzz_note("map %u: set %llu+%llu", subject_number(s), (ull)offset, (ull)bytes);
    call_begin();
    rc = blkrepl_bitmap_set(handle, offset, bytes);
    answer_expect(rc, &verdict, 0, "set");
    if (rc == 0) {
        uint32_t first;
        uint32_t end;

        bits_touched(&s->bits, offset, bytes, &first, &end);
        bits_fill(s->frozen ? &s->since : &s->bits, first, end, true);
    }
}

void call_reset(struct subject *s)
{
    struct verdict verdict = {.count = 0};
    blkrepl_bitmap *handle = handle_draw(s, &verdict);
    uint64_t unit = UINT64_C(1) << s->bits.shift;
    uint64_t offset;
    uint64_t bytes;
    int rc;

    any_range_draw(s, &offset, &bytes);
    if (take_chance(60)) {
        offset -= offset % unit;
        bytes = bits_whole(&s->bits, offset, bytes) ? bytes : bytes - bytes % unit;
    }
    verdict_add_states(&verdict, s);
    verdict_add_if(&verdict, !bits_whole(&s->bits, offset, bytes), -EINVAL);
    fuzz_note("map %u: reset %llu+%llu", subject_number(s), (ull)offset, (ull)bytes);
    call_begin();
    rc = blkrepl_bitmap_reset(handle, offset, bytes);
    answer_expect(rc, &verdict, 0, "reset");
    if (rc == 0) {
        uint32_t first;
        uint32_t end;

        bits_touched(&s->bits, offset, bytes, &first, &end);
        bits_fill(&s->bits, first, end, false);
    }
}

/* Those without arguments. */
void call_plain(struct subject *s)
{
    struct verdict verdict = {.count = 0};
    blkrepl_bitmap *handle = handle_draw(s, &verdict);
    bool clear = take_chance(30);
    int rc;

    verdict_add_states(&verdict, s);
    call_begin();
    rc = (clear ? blkrepl_bitmap_clear : blkrepl_bitmap_invert)(handle);
    answer_expect(rc, &verdict, 0, clear ? "clear" : "invert");
    if (rc == 0 && clear) {
        bits_fill(&s->bits, 0, s->bits.granules, false);
    } else if (rc == 0) {
        bits_invert(&s->bits);
    }
}

/* Whether either stands in the way; which of the two goes first is left open. */
static void verdict_add_both(struct verdict *verdict, const struct subject *s,
                             const struct subject *other)
{
    verdict_add_if(verdict, other->bits.bytes != s->bits.bytes, -EINVAL);
    verdict_add_states(verdict, s);
    verdict_add_states(verdict, other);
}

static void call_merge(struct subject *s, struct subject *other)
{
    struct verdict verdict = {.count = 0};
    blkrepl_bitmap *handle = handle_draw(s, &verdict);
    blkrepl_bitmap *sources[] = {handle_draw(other, &verdict), s->handle, other->handle};
    uint32_t count = take_below(ARRAY_COUNT(sources) + 1);
    int rc;

    if (count == 0) {
        /* With no source only the bitmap itself counts. */
        verdict.count = 0;
        handle = s->handle;
        verdict_add_states(&verdict, s);
    } else {
        verdict_add_both(&verdict, s, other);
    }
    call_begin();
    rc = blkrepl_bitmap_merge(handle, sources, count);
    answer_expect(rc, &verdict, 0, "merge");
    if (rc == 0 && count > 0) {
        bits_combine(&s->bits, &other->bits, BITS_MERGE);
    }
}

void call_combine(struct subject *s)
{
    struct subject *other = take_chance(20) ? s : &bench.subjects[1 - subject_number(s)];
    enum bits_verb verb = (enum bits_verb)take_below(3);
    struct verdict verdict = {.count = 0};
    blkrepl_bitmap *handle;
    blkrepl_bitmap *with;
    int rc;

    if (other->handle == NULL) {
        return;
    }
    if (verb == BITS_MERGE) {
        call_merge(s, other);
        return;
    }
    handle = handle_draw(s, &verdict);
    with = handle_draw(other, &verdict);
    verdict_add_both(&verdict, s, other);
    call_begin();
    rc =
        (verb == BITS_INTERSECT ? blkrepl_bitmap_intersect : blkrepl_bitmap_subtract)(handle, with);
    answer_expect(rc, &verdict, 0, verb == BITS_INTERSECT ? "intersect" : "subtract");
    if (rc == 0) {
        bits_combine(&s->bits, &other->bits, verb);
    }
}

static uint64_t draw_size(const struct subject *s)
{
    const struct subject *other = &bench.subjects[1 - subject_number(s)];

    switch (take_below(4)) {
    case 0: return other->handle != NULL ? other->bits.bytes : 0;
    case 1: return take_number();
    case 2: return bits_draw_place(&s->bits);
    default: return s->bits.bytes + take_u16();
    }
}

void call_resize(struct subject *s)
{
    struct verdict verdict = {.count = 0};
    blkrepl_bitmap *handle = handle_draw(s, &verdict);
    uint64_t bytes = draw_size(s);
    uint64_t granules = bits_granules_of(bytes, s->bits.shift);
    int rc;

    if (granules > BITS_GRANULES_MAX && granules <= UINT64_C(1) << 38 && bytes <= INT64_MAX &&
        !s->named && !s->frozen && !s->loading) {
        return; /* it might succeed, and not be compared */
    }
    verdict_add_states(&verdict, s);
    verdict_add_if(&verdict, s->named || bytes > INT64_MAX, -EINVAL);
    verdict_add_if(&verdict, granules > UINT64_C(1) << 38, -EFBIG);
    fuzz_note("map %u: resize to %llu", subject_number(s), (ull)bytes);
    call_begin();
    heap_watch(take_chance(10) ? 1u + take_below(6) : 0);
    rc = blkrepl_bitmap_resize(handle, bytes);
    verdict_add_if(&verdict, heap.refused && rc != 0, -ENOMEM);
    heap_watch(0);
    answer_expect(rc, &verdict, 0, "resize");
    if (rc == 0) {
        bits_resize(&s->bits, bytes);
    }
}

/* ---- Successors -------------------------------------------------------------- */

void call_freeze(struct subject *s)
{
    struct verdict verdict = {.count = 0};
    blkrepl_bitmap *handle = handle_draw(s, &verdict);
    int rc;

    verdict_add_states(&verdict, s);
    call_begin();
    heap_watch(take_chance(10) ? 1u + take_below(6) : 0);
    rc = blkrepl_bitmap_freeze(handle);
    verdict_add_if(&verdict, heap.refused && rc != 0, -ENOMEM);
    heap_watch(0);
    answer_expect(rc, &verdict, 0, "freeze");
    if (rc == 0) {
        s->frozen = true;
        bits_init(&s->since, s->bits.bytes, s->bits.shift);
    }
}

void call_thaw(struct subject *s)
{
    struct verdict verdict = {.count = 0};
    blkrepl_bitmap *handle = handle_draw(s, &verdict);
    bool used_up = take_chance(50);
    int rc;

    verdict_add_if(&verdict, !s->frozen, BLKREPL_ERR_STATE);
    call_begin();
    rc = (used_up ? blkrepl_bitmap_abdicate : blkrepl_bitmap_reclaim)(handle);
    answer_expect(rc, &verdict, 0, used_up ? "abdicate" : "reclaim");
    if (rc == 0) {
        s->frozen = false;
        if (used_up) {
            bits_fill(&s->bits, 0, s->bits.granules, false);
        }
        bits_combine(&s->bits, &s->since, BITS_MERGE);
    }
}

/* ---- Named ones -------------------------------------------------------------- */

void call_record(struct subject *s)
{
    struct verdict verdict = {.count = 0};
    blkrepl_bitmap *handle = handle_draw(s, &verdict);
    bool enable = take_chance(40);
    int rc;

    verdict_add_if(&verdict, !s->named, -EINVAL);
    verdict_add_states(&verdict, s);
    call_begin();
    rc = (enable ? blkrepl_bitmap_enable : blkrepl_bitmap_disable)(handle);
    answer_expect(rc, &verdict, 0, enable ? "enable" : "disable");
    if (rc == 0) {
        s->recording = enable;
    }
}

void call_remove(struct subject *s)
{
    struct verdict verdict = {.count = 0};
    blkrepl_bitmap *handle = handle_draw(s, &verdict);
    int rc;

    verdict_add_if(&verdict, !s->named, -EINVAL);
    verdict_add_if(&verdict, s->frozen, -EBUSY);
    call_begin();
    rc = blkrepl_bitmap_remove(handle);
    answer_expect(rc, &verdict, 0, "remove");
    if (rc == 0) {
        s->named = false;
        s->recording = false;
    }
}
