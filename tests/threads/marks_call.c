/* SPDX-License-Identifier: MIT */
/* marks_call.c - calls of bitmaps, as a run and its replay make them. */
#include "marks.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#define SAVED_MAX (MARKS_WORDS * 8)

bool bits_get(const struct bits *bits, uint64_t granule)
{
    return (bits->word[granule / 64] >> granule % 64 & 1) != 0;
}

void bits_set(struct bits *bits, uint64_t granule)
{
    bits->word[granule / 64] |= UINT64_C(1) << granule % 64;
}

static int bits_hash(const struct bits *bits)
{
    uint64_t sum = 0;

    for (uint32_t i = 0; i < MARKS_WORDS; i++) {
        sum = (sum ^ bits->word[i]) * UINT64_C(0x9e3779b97f4a7c15);
        sum ^= sum >> 29;
    }
    return (int)(sum >> 33);
}

/* ---- Making them ------------------------------------------------------------------ */

void marks_draw(const struct plan *plan, uint32_t number, struct marks *marks)
{
    uint64_t rng = plan->seed * 53 + number;

    *marks = (struct marks){.disk = plan->marks_disk[number]};
    marks->bytes = plan->disk[marks->disk].info.bytes;
    marks->granularity = UINT64_C(512) << dice_below(&rng, 6);
}

int marks_open(struct marks *all, uint32_t number)
{
    struct marks *m = &all[number];
    char name[32];
    blkrepl_bitmap_options options = {
        .struct_size = sizeof options, .granularity_bytes = m->granularity, .name = name};
    int answer;

    snprintf(name, sizeof name, "marks %u", number);
    answer = blkrepl_bitmap_add(m->image, &options, &m->named);
    options.bytes = m->bytes;
    options.name = NULL;
    answer = answer < 0 ? answer : blkrepl_bitmap_create(m->ctx, &options, &m->scratch);
    if (answer < 0) {
        blkrepl_bitmap_free(m->named);
        m->named = NULL;
    }
    return answer;
}

/* ---- Looking ------------------------------------------------------------------------ */

static int read_list(const struct marks *m, uint64_t most, struct bits *out)
{
    uint64_t offsets[64];
    uint64_t position = 0;
    uint64_t next = 0;
    int count;

    while ((count = blkrepl_bitmap_iterate(m->named, &position, offsets,
                                           (uint32_t)(most < 64 ? most : 64))) > 0) {
        for (int i = 0; i < count; i++) {
            MUST(offsets[i] >= next && offsets[i] % m->granularity == 0 && offsets[i] < m->bytes,
                 "iterate lists %llu", (unsigned long long)offsets[i]);
            next = offsets[i] + m->granularity;
            bits_set(out, offsets[i] / m->granularity);
        }
    }
    MUST(count == 0 && position == m->bytes, "iterate ends with %d at %llu", count,
         (unsigned long long)position);
    return bits_hash(out);
}

/* The form on the wire is the bits themselves. */
static int read_saved(const struct marks *m, struct bits *out)
{
    unsigned char data[SAVED_MAX];
    uint64_t bytes = sizeof data;
    uint64_t granules = (m->bytes - 1) / m->granularity + 1;
    int answer = blkrepl_bitmap_save(m->named, 0, m->bytes, data, &bytes);

    MUST(answer == 0 && bytes == (granules + 7) / 8, "save answered %d: %llu bytes", answer,
         (unsigned long long)bytes);
    for (uint64_t i = 0; i < bytes * 8; i++) {
        if ((data[i / 8] >> i % 8 & 1) != 0) {
            MUST(i < granules, "save wrote a bit beyond the end");
            bits_set(out, i);
        }
    }
    return bits_hash(out);
}

/* Of a free-standing one: run by run. */
static int read_areas(blkrepl_bitmap *bitmap, const struct marks *m, struct bits *out)
{
    blkrepl_area area = {0, 0};

    while (blkrepl_bitmap_next_area(bitmap, area.offset + area.bytes, UINT64_MAX, 0, &area) == 1) {
        MUST(area.bytes > 0 && area.offset % m->granularity == 0 &&
                 area.bytes <= m->bytes - area.offset,
             "an area of %llu bytes", (unsigned long long)area.bytes);
        for (uint64_t at = area.offset; at < area.offset + area.bytes; at += m->granularity) {
            bits_set(out, at / m->granularity);
        }
    }
    return bits_hash(out);
}

static int look_around(const struct marks *m)
{
    blkrepl_bitmap_info info = {.struct_size = sizeof info};
    uint8_t digest[32];
    int answer = blkrepl_bitmap_query(m->named, &info);

    MUST(answer == 0 && info.bytes == m->bytes && info.granularity_bytes == m->granularity &&
             info.dirty_bytes <= m->bytes && info.since_bytes <= m->bytes,
         "bitmap_query answered %d: %llu dirty bytes", answer,
         (unsigned long long)info.dirty_bytes);
    answer = blkrepl_bitmap_validate(m->named);
    MUST(answer == 0, "bitmap_validate answered %d: %s", answer, blkrepl_error_message());
    answer = blkrepl_bitmap_sha256(m->named, digest);
    MUST(answer == 0, "bitmap_sha256 answered %d", answer);
    return (int)(info.dirty_granules << 2 | info.flags >> 1);
}

/* ---- Several calls ------------------------------------------------------------------- */

static int merge(const struct marks *m, struct bits *out)
{
    int answer = blkrepl_bitmap_clear(m->scratch);

    answer = answer < 0 ? answer : blkrepl_bitmap_merge(m->scratch, &m->named, 1);
    return answer < 0 ? answer : read_areas(m->scratch, m, out);
}

/* What leaves the content as it is, and does not know. */
static int keep(const struct marks *m, uint64_t which)
{
    int answer = blkrepl_bitmap_clear(m->scratch);

    if (which == 0) {
        answer = blkrepl_bitmap_invert(m->scratch);
    }
    MUST(answer == 0, "a free-standing bitmap answered %d", answer);
    switch (which) {
    case 0: return blkrepl_bitmap_intersect(m->named, m->scratch);
    case 1: return blkrepl_bitmap_subtract(m->named, m->scratch);
    case 2: return blkrepl_bitmap_merge(m->named, &m->named, 1);
    default: return blkrepl_bitmap_merge(m->named, &m->scratch, 1);
    }
}

/* One more bitmap of the image, that begins with the content and records. */
static int pass(const struct marks *m, struct bits *out)
{
    blkrepl_bitmap *passing = NULL;
    blkrepl_bitmap_options options = {
        .struct_size = sizeof options, .granularity_bytes = m->granularity, .name = "passing"};
    const blkrepl_bitmap_action add = {.struct_size = sizeof add,
                                       .type = BLKREPL_BITMAP_ADD,
                                       .image = m->image,
                                       .options = &options,
                                       .sources = &m->named,
                                       .source_count = 1,
                                       .out = &passing};
    const blkrepl_bitmap_action *actions[] = {&add};
    int answer = blkrepl_bitmap_transact(m->ctx, actions, 1);

    if (answer < 0) {
        return answer;
    }
    answer = blkrepl_bitmap_remove(passing);
    MUST(answer == 0 && blkrepl_bitmap_validate(passing) == 0, "bitmap_remove answered %d", answer);
    answer = read_areas(passing, m, out);
    blkrepl_bitmap_free(passing);
    return answer;
}

static uint32_t add_shift(const struct marks *m, blkrepl_bitmap_action *action)
{
    action[0] = (blkrepl_bitmap_action){.type = BLKREPL_BITMAP_CLEAR, .bitmap = m->scratch};
    action[1] = (blkrepl_bitmap_action){.type = BLKREPL_BITMAP_MERGE,
                                        .bitmap = m->scratch,
                                        .sources = &m->named,
                                        .source_count = 1};
    action[2] = (blkrepl_bitmap_action){.type = BLKREPL_BITMAP_CLEAR, .bitmap = m->named};
    return 3;
}

/* The same to several bitmaps at one instant. */
static int transact(struct marks *all, uint64_t which, bool freeze, struct bits *out)
{
    blkrepl_bitmap_action actions[3 * MARKS_MAX];
    const blkrepl_bitmap_action *list[3 * MARKS_MAX];
    uint32_t count = 0;
    int answer;

    for (uint32_t i = 0; i < MARKS_MAX; i++) {
        if ((which >> i & 1) == 0) {
            continue;
        }
        if (freeze) {
            actions[count++] =
                (blkrepl_bitmap_action){.type = BLKREPL_BITMAP_FREEZE, .bitmap = all[i].named};
        } else {
            count += add_shift(&all[i], &actions[count]);
        }
    }
    for (uint32_t i = 0; i < count; i++) {
        actions[i].struct_size = sizeof actions[i];
        list[i] = &actions[i];
    }
    answer = blkrepl_bitmap_transact(all->ctx, list, count);
    for (uint32_t i = 0; i < MARKS_MAX && answer >= 0; i++) {
        if ((which >> i & 1) != 0) {
            answer ^= freeze ? read_list(&all[i], 7, &out[i])
                             : read_areas(all[i].scratch, &all[i], &out[i]);
        }
    }
    return answer;
}

static int free_handles(struct marks *m)
{
    blkrepl_bitmap_free(m->named);
    blkrepl_bitmap_free(m->scratch);
    m->named = m->scratch = NULL;
    return 0;
}

int marks_call(struct marks *all, uint32_t number, enum marks_verb verb, uint64_t a, uint64_t b,
               struct bits *out)
{
    struct marks *m = &all[number];
    int answer;

    memset(out, 0, MARKS_MAX * sizeof *out);
    switch (verb) {
    case MARKS_FREEZE:
        answer = blkrepl_bitmap_freeze(m->named);
        return answer < 0 ? answer : read_list(m, 64, &out[number]);
    case MARKS_ABDICATE: return blkrepl_bitmap_abdicate(m->named);
    case MARKS_RECLAIM: return blkrepl_bitmap_reclaim(m->named);
    case MARKS_CLEAR: return blkrepl_bitmap_clear(m->named);
    case MARKS_DISABLE: return blkrepl_bitmap_disable(m->named);
    case MARKS_ENABLE: return blkrepl_bitmap_enable(m->named);
    case MARKS_RESET: return blkrepl_bitmap_reset(m->named, 0, m->bytes);
    case MARKS_KEEP: return keep(m, a);
    case MARKS_SET: return blkrepl_bitmap_set(m->named, a, b);
    case MARKS_ITERATE: return read_list(m, a, &out[number]);
    case MARKS_SAVE: return read_saved(m, &out[number]);
    case MARKS_MERGE: return merge(m, &out[number]);
    case MARKS_PASS: return pass(m, &out[number]);
    case MARKS_QUERY: return look_around(m);
    case MARKS_SHIFT: return transact(all, a, false, out);
    case MARKS_FREEZE_ALL: return transact(all, a, true, out);
    case MARKS_OPEN: return marks_open(all, number);
    case MARKS_FREE: return free_handles(m);
    }
    return 0;
}
