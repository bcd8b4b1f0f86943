/* SPDX-License-Identifier: MIT */
/* marks.c - one more thread, which does with the bitmaps of images what hosts do. */
#include "marks.h"

#include <errno.h>
#include <string.h>
#include <time.h>

/* What is known of a bitmap; of the thread that turns them over. */
struct known {
    bool frozen;
    bool disabled;
    bool by_target; /* all that was ever dirty in it is to be seen             */
    uint32_t look;  /* frozen: what was seen at that instant                    */
};

struct look looks[LOOKS_MAX];
uint32_t look_count;
struct marks live_marks[MARKS_MAX];

static struct known known[MARKS_MAX];
static struct bits seen[MARKS_MAX];
static uint32_t group;
static atomic_bool opened;

/* ---- What was seen --------------------------------------------------------------------- */

static void note(uint32_t number, enum look_kind kind, uint64_t begin, uint64_t end)
{
    struct look *look = &looks[look_count++];

    *look = (struct look){.kind = kind,
                          .marks = number,
                          .group = group,
                          .begin = begin,
                          .end = end,
                          .bits = seen[number]};
}

static void note_frozen(uint32_t number, uint64_t begin, uint64_t end)
{
    known[number].frozen = true;
    known[number].look = look_count;
    note(number, LOOK_PEEK, begin, end);
}

/* What was frozen has been used up: it began anew when it was frozen. */
static void note_thawed(uint32_t number, bool used)
{
    known[number].frozen = false;
    looks[known[number].look].kind = used ? LOOK_TURN : LOOK_PEEK;
}

/* What several have been through at one instant. */
static void note_all(uint64_t which, bool freeze, uint64_t begin, uint64_t end)
{
    for (uint32_t i = 0; i < world.plan.marks; i++) {
        if ((which >> i & 1) == 0) {
            continue;
        }
        if (freeze) {
            note_frozen(i, begin, end);
        } else {
            note(i, LOOK_TURN, begin, end);
        }
    }
}

/* Frozen content stands still. */
static void check_still(uint32_t number)
{
    MUST(memcmp(&seen[number], &looks[known[number].look].bits, sizeof seen[number]) == 0,
         "bitmap %u: frozen content has changed", number);
}

static void note_set(uint32_t number, uint64_t offset, uint64_t bytes, uint64_t begin, uint64_t end)
{
    uint64_t granularity = live_marks[number].granularity;

    for (uint64_t g = offset / granularity; g <= (offset + bytes - 1) / granularity; g++) {
        bits_set(&seen[number], g);
    }
    note(number, LOOK_SET, begin, end);
}

static void noted(uint32_t number, enum marks_verb verb, uint64_t a, uint64_t b, uint64_t begin)
{
    uint64_t end = stamp();

    switch (verb) {
    case MARKS_FREEZE: note_frozen(number, begin, end); break;
    case MARKS_ABDICATE: note_thawed(number, true); break;
    case MARKS_RECLAIM: note_thawed(number, false); break;
    case MARKS_OPEN: /* what came before it is not known */
    case MARKS_CLEAR:
    case MARKS_RESET: note(number, LOOK_CLEAR, begin, end); break;
    case MARKS_DISABLE:
    case MARKS_ENABLE:
        known[number].disabled = verb == MARKS_DISABLE;
        note(number, known[number].disabled ? LOOK_STOP : LOOK_START, begin, end);
        break;
    case MARKS_SET: note_set(number, a, b, begin, end); break;
    case MARKS_ITERATE:
    case MARKS_SAVE:
    case MARKS_MERGE:
    case MARKS_PASS:
        if (known[number].frozen) {
            check_still(number);
        } else {
            note(number, LOOK_PEEK, begin, end);
        }
        break;
    case MARKS_SHIFT: note_all(a, false, begin, end); break;
    case MARKS_FREEZE_ALL: note_all(a, true, begin, end); break;
    case MARKS_KEEP:
    case MARKS_QUERY:
    case MARKS_FREE: break;
    }
}

/* ---- Doing it ---------------------------------------------------------------------------- */

/* What a busy bitmap refuses. */
static bool is_refused(uint32_t number, enum marks_verb verb)
{
    return known[number].frozen &&
           (verb == MARKS_FREEZE || verb == MARKS_CLEAR || verb == MARKS_DISABLE ||
            verb == MARKS_ENABLE || verb == MARKS_RESET || verb == MARKS_KEEP ||
            verb == MARKS_MERGE || verb == MARKS_PASS);
}

/* What a closed context refuses. */
static bool adds(enum marks_verb verb)
{
    return verb == MARKS_PASS || verb == MARKS_SHIFT || verb == MARKS_FREEZE_ALL ||
           verb == MARKS_OPEN;
}

static void marks_do(uint32_t number, enum marks_verb verb, uint64_t a, uint64_t b)
{
    struct entry *entry = record_call(ENTRY_MARKS, 0, number, verb, a, b);
    uint64_t begin = stamp();
    int answer = record_answer(entry, marks_call(live_marks, number, verb, a, b, seen));

    group = look_count;
    if (answer == -ESHUTDOWN && adds(verb) && atomic_load(&world.shut)) {
        return;
    }
    MUST(is_refused(number, verb) ? answer == -EBUSY : answer >= 0,
         "verb %d of bitmap %u answered %d: %s", (int)verb, number, answer,
         blkrepl_error_message());
    if (answer >= 0) {
        noted(number, verb, a, b, begin);
    }
}

static enum marks_verb draw_verb(const struct known *k, uint64_t *rng)
{
    static const uint8_t verbs[] = {
        MARKS_FREEZE,  MARKS_FREEZE,     MARKS_FREEZE, MARKS_FREEZE,     MARKS_SHIFT, MARKS_SHIFT,
        MARKS_SHIFT,   MARKS_FREEZE_ALL, MARKS_MERGE,  MARKS_FREEZE_ALL, MARKS_MERGE, MARKS_ITERATE,
        MARKS_ITERATE, MARKS_SAVE,       MARKS_PASS,   MARKS_SET,        MARKS_QUERY, MARKS_CLEAR,
        MARKS_RESET,   MARKS_KEEP,       MARKS_KEEP,   MARKS_DISABLE};
    static const uint8_t frozen[] = {MARKS_ABDICATE, MARKS_ABDICATE, MARKS_ABDICATE, MARKS_RECLAIM,
                                     MARKS_RECLAIM,  MARKS_ITERATE,  MARKS_SAVE,     MARKS_SET,
                                     MARKS_QUERY,    MARKS_CLEAR,    MARKS_DISABLE,  MARKS_RESET,
                                     MARKS_KEEP,     MARKS_MERGE};
    enum marks_verb verb;

    verb = (enum marks_verb)(k->frozen ? frozen[dice_below(rng, sizeof frozen)]
                                       : verbs[dice_below(rng, sizeof verbs)]);
    if (k->by_target && (verb == MARKS_CLEAR || verb == MARKS_RESET || verb == MARKS_DISABLE ||
                         verb == MARKS_SET)) {
        return MARKS_ITERATE;
    }
    return k->disabled && !k->frozen && dice_chance(rng, 60) ? MARKS_ENABLE : verb;
}

/* Some of those that are not busy, among them this one. */
static uint64_t draw_several(uint32_t number, uint64_t *rng)
{
    uint64_t which = UINT64_C(1) << number;

    for (uint32_t i = 0; i < world.plan.marks; i++) {
        which |= (uint64_t)(!known[i].frozen && dice_chance(rng, 70)) << i;
    }
    return which;
}

static bool is_open(void)
{
    return atomic_load_explicit(&opened, memory_order_acquire);
}

/* All of them, or, if the context is closed in the middle of it, none. */
static void open_all(void)
{
    bool all = true;

    for (uint32_t i = 0; i < world.plan.marks && all; i++) {
        marks_do(i, MARKS_OPEN, 0, 0);
        all = live_marks[i].named != NULL;
    }
    atomic_store_explicit(&opened, all, memory_order_release);
}

void marks_step(uint64_t *rng)
{
    uint32_t number = (uint32_t)dice_below(rng, world.plan.marks);
    enum marks_verb verb;
    uint64_t a = 0;
    uint64_t b = 0;

    if (world.plan.marks == 0 || look_count + 3 * MARKS_MAX > LOOKS_MAX) {
        return;
    }
    if (!is_open()) {
        if (dice_chance(rng, 5)) {
            open_all();
        }
        return;
    }
    verb = draw_verb(&known[number], rng);
    if (verb == MARKS_SHIFT || verb == MARKS_FREEZE_ALL) {
        a = draw_several(number, rng);
    } else if (verb == MARKS_KEEP) {
        a = dice_below(rng, 4);
    } else if (verb == MARKS_ITERATE) {
        a = dice_below(rng, 64) + 1;
    } else if (verb == MARKS_SET) {
        a = dice_below(rng, live_marks[number].bytes);
        b = dice_below(rng,
                       live_marks[number].bytes - a < 4096 ? live_marks[number].bytes - a : 4096) +
            1;
    }
    marks_do(number, verb, a, b);
}

/* ---- The thread, and what others do ------------------------------------------------------- */

void *marks_thread(void *actor)
{
    me = actor;
    while (world.plan.marks > 0 && atomic_load(&world.guests_left) > 0) {
        marks_step(&me->rng);
        if (dice_chance(&me->rng, 50)) {
            nanosleep(&(struct timespec){.tv_nsec = (long)dice_below(&me->rng, 300000)}, NULL);
        }
    }
    return NULL;
}

static int glance_list(const struct marks *m)
{
    blkrepl_bitmap_info info = {.struct_size = sizeof info};
    blkrepl_bitmap *next;
    int answer;

    while ((answer = blkrepl_bitmap_next(m->image, info.id, &next)) == 0) {
        blkrepl_bitmap_query(next, &info);
        blkrepl_bitmap_free(next);
    }
    return answer == -ENOENT ? 0 : answer;
}

void marks_glance(uint64_t *rng)
{
    const struct marks *m = &live_marks[dice_below(rng, world.plan.marks)];
    blkrepl_bitmap_info info = {.struct_size = sizeof info};
    uint64_t offsets[8];
    uint64_t position = 0;
    uint8_t digest[32];
    int answer = 0;

    if (world.plan.marks == 0 || !is_open()) {
        return;
    }
    switch (dice_below(rng, 8)) {
    case 0: answer = blkrepl_bitmap_query(m->named, &info); break;
    case 1: answer = blkrepl_bitmap_get(m->named, dice_below(rng, m->bytes)); break;
    case 2: answer = blkrepl_bitmap_next_clean(m->named, 0, UINT64_MAX, &position); break;
    case 3: answer = blkrepl_bitmap_next_dirty(m->named, 0, UINT64_MAX, &position); break;
    case 4: answer = blkrepl_bitmap_status(m->named, 0, m->bytes, &position); break;
    case 5: answer = blkrepl_bitmap_iterate(m->named, &position, offsets, 8); break;
    case 6: answer = blkrepl_bitmap_sha256(m->named, digest); break;
    default: answer = glance_list(m); break;
    }
    MUST(answer >= 0, "a look at a bitmap answered %d: %s", answer, blkrepl_error_message());
}

void marks_reset(void)
{
    look_count = 0;
    for (uint32_t i = 0; i < world.plan.marks; i++) {
        marks_draw(&world.plan, i, &live_marks[i]);
        live_marks[i].ctx = world.ctx;
        live_marks[i].image = world.disks[live_marks[i].disk].image;
        known[i] = (struct known){.by_target = live_marks[i].disk >= world.plan.sources};
    }
    atomic_store(&opened, false);
    if (!world.plan.marks_late) {
        open_all();
    }
}

/* The last look, with nothing under way. */
void marks_finish(void)
{
    for (uint32_t i = 0; i < world.plan.marks && is_open(); i++) {
        if (known[i].frozen) {
            marks_do(i, MARKS_RECLAIM, 0, 0);
        }
        marks_do(i, MARKS_QUERY, 0, 0);
        marks_do(i, MARKS_FREEZE, 0, 0);
        marks_do(i, MARKS_ABDICATE, 0, 0);
        marks_do(i, MARKS_QUERY, 0, 0);
        if (i % 2 == 0) {
            marks_do(i, MARKS_FREE, 0, 0);
        }
    }
}

void marks_free_last(void)
{
    for (uint32_t i = 0; i < world.plan.marks; i++) {
        if (live_marks[i].named != NULL) {
            marks_do(i, MARKS_FREE, 0, 0);
        }
    }
}
