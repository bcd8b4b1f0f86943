/* SPDX-License-Identifier: MIT */
/* load_calls.c - the wire form: parts that are right, nearly right, and wrong. */
#include "load.h"

#include <stdlib.h>

#define PARTS_MAX 64

/* ---- Load -------------------------------------------------------------------- */

void call_begin_load(struct subject *s)
{
    struct verdict verdict = {.count = 0};
    blkrepl_bitmap *handle = handle_draw(s, &verdict);
    int rc;

    verdict_add_if(&verdict, s->frozen || s->recording, -EBUSY);
    call_begin();
    rc = blkrepl_bitmap_load_begin(handle);
    answer_expect(rc, &verdict, 0, "load_begin");
    if (rc == 0) {
        bits_fill(&s->bits, 0, s->bits.granules, false);
        s->loading = true;
        s->next = 0;
    }
}

enum part_kind {
    PART_DATA,
    PART_ZEROES,
    PART_ONES,
    PART_KINDS
};

struct part {
    enum part_kind kind;
    uint64_t offset;
    uint64_t bytes;
    uint8_t *data; /* on a block of its own                                    */
    uint64_t data_bytes;
};

static void part_make_data(const struct subject *s, struct part *part, bool valid)
{
    part->data_bytes = valid ? bits_part_bytes(&s->bits, part->offset, part->bytes) : take_u8();
    if (take_chance(8)) {
        part->data_bytes += take_chance(50) ? 1 : UINT64_MAX;
    }
    /* Nothing may be read of what is announced and is not there. */
    if (part->data_bytes <= BITS_WIRE_MAX + 1 && !take_chance(3)) {
        part->data = fuzz_alloc((size_t)part->data_bytes);
        bits_draw_data(part->data, (size_t)part->data_bytes);
    }
    if (take_chance(4)) {
        part->data_bytes = part->data == NULL ? take_number() : part->data_bytes;
    }
}

/* Give a part to the library; what follows for the subject. */
static void part_call(struct subject *s, const struct part *part)
{
    static const char *const names[] = {"load", "load_zeroes", "load_ones"};
    struct verdict verdict = {.count = 0};
    blkrepl_bitmap *handle = handle_draw(s, &verdict);
    bool valid = bits_part(&s->bits, part->offset, part->bytes);
    int rc;

    verdict_add_if(&verdict, !s->loading, BLKREPL_ERR_STATE);
    verdict_add_if(&verdict, !valid || part->offset != s->next, -EINVAL);
    if (part->kind == PART_DATA) {
        verdict_add_if(
            &verdict,
            (part->data == NULL && part->data_bytes > 0) ||
                (valid && part->data_bytes != bits_part_bytes(&s->bits, part->offset, part->bytes)),
            -EINVAL);
    }
    fuzz_note("map %u: %s %llu+%llu, %llu bytes%s", subject_number(s), names[part->kind],
              (ull)part->offset, (ull)part->bytes, (ull)part->data_bytes,
              part->data == NULL ? " of nothing" : "");
    call_begin();
    switch ((unsigned)part->kind) {
    case PART_ZEROES: rc = blkrepl_bitmap_load_zeroes(handle, part->offset, part->bytes); break;
    case PART_ONES: rc = blkrepl_bitmap_load_ones(handle, part->offset, part->bytes); break;
    default:
        rc = blkrepl_bitmap_load(handle, part->offset, part->bytes, part->data, part->data_bytes);
        break;
    }
    answer_expect(rc, &verdict, 0, names[part->kind]);
    if (rc == 0) {
        uint32_t first;
        uint32_t end;

        bits_touched(&s->bits, part->offset, part->bytes, &first, &end);
        bits_fill(&s->bits, first, end, part->kind == PART_ONES);
        if (part->kind == PART_DATA) {
            bits_load(&s->bits, part->offset, part->bytes, part->data);
        }
        s->next = part->offset + part->bytes;
    }
}

static void part_load(struct subject *s, struct part *part)
{
    part->kind = (enum part_kind)take_below(PART_KINDS + 2);
    part->kind = part->kind < PART_KINDS ? part->kind : PART_DATA;
    if (part->kind == PART_DATA) {
        part_make_data(s, part, bits_part(&s->bits, part->offset, part->bytes));
    }
    part_call(s, part);
    free(part->data);
}

/* Any part, or none at all. */
void call_load(struct subject *s)
{
    struct part part = {.data = NULL};

    switch (take_below(4)) {
    case 0: bits_draw_part(&s->bits, &part.offset, &part.bytes); break;
    case 1:
        part.offset = s->next;
        part.bytes = s->bits.bytes - s->next + take_below(3) - 1;
        break;
    case 2:
        part.offset = s->next;
        part.bytes = bits_part_alignment(&s->bits) * take_below(4) + take_below(3) - 1;
        break;
    default: any_range_draw(s, &part.offset, &part.bytes); break;
    }
    part_load(s, &part);
}

/* The part that is due. */
void call_load_next(struct subject *s)
{
    struct part part = {.offset = s->next};
    uint64_t room = s->bits.bytes - s->next;
    uint64_t units = room / bits_part_alignment(&s->bits);

    part.bytes = bits_part_alignment(&s->bits) *
                 (units > 0 ? 1 + take_below(units < 200 ? (uint32_t)units : 200) : 0);
    if (part.bytes == 0 || take_chance(25)) {
        part.bytes = room;
    }
    part_load(s, &part);
}

void call_finish(struct subject *s)
{
    struct verdict verdict = {.count = 0};
    blkrepl_bitmap *handle = handle_draw(s, &verdict);
    int rc;

    verdict_add_if(&verdict, !s->loading, BLKREPL_ERR_STATE);
    verdict_add_if(&verdict, s->loading && s->next < s->bits.bytes, -EINVAL);
    call_begin();
    rc = blkrepl_bitmap_load_finish(handle);
    answer_expect(rc, &verdict, 0, "load_finish");
    if (rc == 0) {
        s->loading = false;
    }
}

/* ---- Save -------------------------------------------------------------------- */

struct save {
    uint64_t offset;
    uint64_t bytes;
    uint64_t needed; /* 0 if it is not a part                                   */
    uint64_t room;
    uint8_t *data;
    bool asks; /* with data NULL                                               */
};

static void save_draw(const struct subject *s, struct save *save)
{
    if (take_chance(70)) {
        bits_draw_part(&s->bits, &save->offset, &save->bytes);
    } else {
        any_range_draw(s, &save->offset, &save->bytes);
    }
    if (bits_part(&s->bits, save->offset, save->bytes)) {
        save->needed = bits_part_bytes(&s->bits, save->offset, save->bytes);
    }
    save->room = save->needed;
    switch (take_below(8)) {
    case 1: save->room -= save->room > 0; break;
    case 2: save->room += take_u8(); break;
    case 3: save->room = take_below((uint32_t)save->needed); break;
    default: break;
    }
    save->asks = take_chance(15);
    save->data = save->asks ? NULL : fuzz_alloc((size_t)save->room);
    if (!save->asks) {
        memset(save->data, 0xa5, (size_t)save->room);
    }
}

/* What has been written is the part, and nothing else was. */
static void save_check(const struct subject *s, const struct save *save, int rc)
{
    const uint8_t *must = s->bits.wire;
    uint64_t written = rc == 0 ? save->needed : 0;

    if (rc == 0 && save->needed > 0) {
        must += (save->offset >> s->bits.shift) / 8;
    }
    for (uint64_t i = 0; i < save->room && !save->asks; i++) {
        uint8_t byte = i < written ? must[i] : 0xa5;

        EXPECT(save->data[i] == byte, "map %u: save of %llu+%llu: 0x%02x at %llu, got 0x%02x",
               subject_number(s), (ull)save->offset, (ull)save->bytes, byte, (ull)i, save->data[i]);
    }
}

void call_save(struct subject *s)
{
    struct verdict verdict = {.count = 0};
    blkrepl_bitmap *handle = handle_draw(s, &verdict);
    struct save save = {.needed = 0};
    uint64_t *data_bytes = &save.room;
    uint64_t room;
    bool valid;
    int rc;

    save_draw(s, &save);
    valid = bits_part(&s->bits, save.offset, save.bytes);
    room = save.room;
    data_bytes = take_chance(2) ? NULL : &room;
    verdict_add_loading(&verdict, s);
    verdict_add_if(&verdict, !valid || data_bytes == NULL, -EINVAL);
    verdict_add_if(&verdict, verdict.count == 0 && !save.asks && room < save.needed, -ENOSPC);
    fuzz_note("map %u: save %llu+%llu", subject_number(s), (ull)save.offset, (ull)save.bytes);
    call_begin();
    rc = blkrepl_bitmap_save(handle, save.offset, save.bytes, save.data, data_bytes);
    answer_expect(rc, &verdict, 0, "save");
    save_check(s, &save, rc);
    if (rc == 0 || rc == -ENOSPC) {
        EXPECT(room == save.needed, "save: %llu bytes to be needed, got %llu", (ull)save.needed,
               (ull)room);
    } else {
        EXPECT(room == save.room, "a refused save to leave data_bytes alone");
    }
    free(save.data);
}

/* ---- From one bitmap to the other -------------------------------------------- */

static void transfer_part(struct subject *s, struct subject *other, uint64_t bytes)
{
    struct part part = {.offset = s->next, .bytes = bytes};
    int rc;

    part.data_bytes = bits_part_bytes(&s->bits, part.offset, part.bytes);
    part.data = fuzz_alloc((size_t)part.data_bytes);
    rc = blkrepl_bitmap_save(other->handle, part.offset, part.bytes, part.data, &part.data_bytes);
    EXPECT(rc == 0, "a plain save, got %d", rc);
    /* What is behind the last granule must not matter. */
    if (part.data_bytes > 0 && other->bits.granules % 8 != 0 &&
        part.offset + part.bytes == s->bits.bytes) {
        part.data[part.data_bytes - 1] |= (uint8_t)(take_u8() << other->bits.granules % 8);
    }
    part_call(s, &part);
    free(part.data);
}

/* All of the other one's, part by part. */
void call_transfer(struct subject *s)
{
    struct subject *other = &bench.subjects[1 - subject_number(s)];
    uint64_t unit = bits_part_alignment(&s->bits);
    uint64_t units = s->bits.bytes / unit / PARTS_MAX + 1;

    if (other->handle == NULL || other->loading || s->frozen || s->recording ||
        other->bits.bytes != s->bits.bytes || other->bits.shift != s->bits.shift) {
        return;
    }
    units += take_below(3);
    EXPECT(blkrepl_bitmap_load_begin(s->handle) == 0, "a plain load_begin");
    bits_fill(&s->bits, 0, s->bits.granules, false);
    s->loading = true;
    s->next = 0;
    for (int i = 0; i < 2 * PARTS_MAX && s->next < s->bits.bytes; i++) {
        uint64_t room = s->bits.bytes - s->next;

        transfer_part(s, other, room / unit < units ? room : units * unit);
        subject_check(s);
    }
    if (s->next == s->bits.bytes) {
        call_finish(s);
        EXPECT(memcmp(s->bits.wire, other->bits.wire, bits_wire_bytes(&s->bits)) == 0,
               "the same content");
    }
}
