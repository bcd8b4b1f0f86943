/* SPDX-License-Identifier: MIT */
/* bitmap_more.c - what the host does with several bitmaps at one instant, what it
 * saves and loads, and what it does wrongly. */
#include "sim.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

typedef unsigned long long ull;

#define ACTIONS_MAX 6

static ull number(const struct bitmap *bitmap)
{
    return (ull)(bitmap - sim.bitmaps);
}

/* ---- Transactions ------------------------------------------------------------------ */

struct transaction {
    uint32_t count;
    uint32_t refused; /* the first that is; `count`: none                     */
    uint32_t refusals;
    bool malformed;
    struct deed deeds[ACTIONS_MAX];
    blkrepl_bitmap_action actions[ACTIONS_MAX];
    const blkrepl_bitmap_action *list[ACTIONS_MAX];
    blkrepl_bitmap *sources[ACTIONS_MAX][3];
    blkrepl_bitmap *out[ACTIONS_MAX];
};

static const struct {
    enum call call;
    uint32_t type;
} kinds[] = {
    {CALL_BITMAP_ADD, BLKREPL_BITMAP_ADD},       {CALL_BITMAP_REMOVE, BLKREPL_BITMAP_REMOVE},
    {CALL_BITMAP_ENABLE, BLKREPL_BITMAP_ENABLE}, {CALL_BITMAP_DISABLE, BLKREPL_BITMAP_DISABLE},
    {CALL_BITMAP_CLEAR, BLKREPL_BITMAP_CLEAR},   {CALL_BITMAP_MERGE, BLKREPL_BITMAP_MERGE},
    {CALL_BITMAP_FREEZE, BLKREPL_BITMAP_FREEZE}, {CALL_BITMAP_CLEAR, BLKREPL_BITMAP_CLEAR},
    {CALL_BITMAP_MERGE, BLKREPL_BITMAP_MERGE}};

static void draw_sources(struct deed *d, uint64_t bytes)
{
    for (uint64_t i = rng_below(3); i > 0; i--) {
        struct bitmap *b = bitmap_pick();

        if (b != NULL && (b->now.bytes == bytes || rng_chance(10)) && bitmap_has_handle(b)) {
            d->sources[d->source_count++] = b;
        }
    }
}

static bool draw_add(struct deed *d)
{
    d->disk = &sim.disks[rng_below(sim.options.disks)];
    if (d->disk->image == NULL) {
        return false;
    }
    draw_sources(d, d->disk->bytes);
    d->bitmap = bitmap_slot();
    if (d->bitmap != NULL) {
        d->bitmap->calling++;
        d->bitmap->begun++;
        d->bitmap->now.disk = NULL; /* its turn comes */
        bitmap_draw_options(d);
    }
    return d->bitmap != NULL;
}

static bool draw_other(struct deed *d)
{
    d->bitmap = bitmap_pick();
    if (d->bitmap == NULL || !bitmap_has_handle(d->bitmap)) {
        return false;
    }
    if (d->call == CALL_BITMAP_MERGE) {
        draw_sources(d, d->bitmap->now.bytes);
    }
    return true;
}

static void draw_action(struct transaction *t)
{
    uint32_t kind = (uint32_t)rng_below(sizeof kinds / sizeof kinds[0]);
    uint32_t at = t->count;
    struct deed *d = &t->deeds[at];
    blkrepl_bitmap_action *a = &t->actions[at];
    bool adds = kinds[kind].call == CALL_BITMAP_ADD;

    *d = (struct deed){.call = kinds[kind].call};
    if (adds ? !draw_add(d) : !draw_other(d)) {
        return;
    }
    *a = (blkrepl_bitmap_action){.struct_size = sizeof *a, .type = kinds[kind].type};
    t->list[t->count++] = a;
}

/* What the actions point to; images may have been closed meanwhile: then false. */
static bool bind_action(struct transaction *t, uint32_t at)
{
    const struct deed *d = &t->deeds[at];
    blkrepl_bitmap_action *a = &t->actions[at];

    a->source_count = d->source_count;
    a->sources = d->source_count > 0 ? t->sources[at] : NULL;
    for (uint32_t i = 0; i < d->source_count; i++) {
        t->sources[at][i] = bitmap_handle(d->sources[i]);
    }
    if (d->call != CALL_BITMAP_ADD) {
        a->bitmap = bitmap_handle(d->bitmap);
        return d->bitmap->now.disk == NULL || d->bitmap->now.disk->image != NULL;
    }
    a->image = d->disk->image;
    a->options = &d->options;
    a->out = &t->out[at];
    t->out[at] = (blkrepl_bitmap *)(void *)t;
    return a->image != NULL;
}

static bool bind(struct transaction *t)
{
    bool good = true;

    for (uint32_t i = 0; i < t->count; i++) {
        good = bind_action(t, i) && good;
    }
    return good;
}

/* Make one of them none. */
static void spoil(struct transaction *t)
{
    uint32_t at = (uint32_t)rng_below(t->count);
    blkrepl_bitmap_action *a = &t->actions[at];

    t->malformed = true;
    t->deeds[at].malformed = true;
    switch (rng_below(4)) {
    case 0: a->type = rng_chance(50) ? 0 : 99; return;
    case 1: a->reserved0 = 1; return;
    case 2: t->list[at] = NULL; return;
    default: break;
    }
    if (a->type == BLKREPL_BITMAP_ADD) {
        a->options = NULL;
    } else {
        a->options = &t->deeds[at].options;
    }
}

static void begin(const struct transaction *t)
{
    for (uint32_t i = 0; i < t->count; i++) {
        const struct deed *d = &t->deeds[i];

        if (d->call != CALL_BITMAP_ADD) {
            oracle_bitmap_begin(d->bitmap);
        }
        for (uint32_t n = 0; n < d->source_count; n++) {
            oracle_bitmap_begin(d->sources[n]);
        }
    }
    oracle_bitmap_instant();
}

/* Each as the earlier ones have left things. */
static void judge(struct transaction *t)
{
    for (t->refused = 0; t->refused < t->count; t->refused++) {
        const struct deed *d = &t->deeds[t->refused];

        if (d->call == CALL_BITMAP_ADD) {
            oracle_bitmap_init(d);
        }
        t->refusals = oracle_bitmap_refusals(d);
        if (t->refusals != 0) {
            return;
        }
        oracle_bitmap_apply(d);
    }
}

static void settle(const struct transaction *t, bool sure)
{
    for (uint32_t i = 0; i < t->count; i++) {
        const struct deed *d = &t->deeds[i];

        for (uint32_t n = 0; n < d->source_count; n++) {
            oracle_bitmap_settle(d->sources[n], sure);
        }
        oracle_bitmap_settle(d->bitmap, sure);
    }
}

static void done(const struct transaction *t)
{
    for (uint32_t i = 0; i < t->count; i++) {
        const struct deed *d = &t->deeds[i];

        if (d->call == CALL_BITMAP_ADD) {
            EXPECT(t->out[i] != NULL, "a transaction made a bitmap without a handle");
            bitmap_made(d->bitmap, t->out[i]);
        }
        oracle_sync_deed(d);
        sim.counts.freezes += d->call == CALL_BITMAP_FREEZE;
        sim.counts.merges += d->call == CALL_BITMAP_MERGE;
    }
    sim.counts.transacts++;
}

static void undone(const struct transaction *t)
{
    sim.counts.bitmaps_refused++;
    for (uint32_t i = 0; i < t->count; i++) {
        const struct deed *d = &t->deeds[i];

        if (d->call == CALL_BITMAP_ADD) {
            EXPECT(t->out[i] == NULL || t->list[i] == NULL, "a refused transaction gives a handle");
            d->bitmap->used = false;
        } else {
            oracle_bitmap_refused(d->bitmap);
        }
    }
}

/* It is not made after all. */
static void give_up(const struct transaction *t)
{
    for (uint32_t i = 0; i < t->count; i++) {
        t->deeds[i].bitmap->used = t->deeds[i].bitmap->used && t->deeds[i].call != CALL_BITMAP_ADD;
    }
    settle(t, true);
}

static void check_answer(const struct transaction *t, int answer)
{
    struct deed all = {.call = CALL_BITMAP_TRANSACT};
    char wanted[32];

    EXPECT(bitmap_is_right(&all, answer, t->refusals) || (t->malformed && answer == -EINVAL),
           "transact answered %d, refusals %x of action %u: %s", answer, t->refusals, t->refused,
           blkrepl_error_message());
    if (answer == 0 || answer == -ENOMEM || answer == -ESHUTDOWN || t->malformed) {
        return;
    }
    snprintf(wanted, sizeof wanted, "action %u", t->refused);
    EXPECT(strstr(blkrepl_error_message(), wanted) != NULL, "%s is refused: %s", wanted,
           blkrepl_error_message());
}

static int call(const struct transaction *t)
{
    bool may_allocate = sim.may_allocate;
    int answer;

    sim.may_allocate = true;
    sim.alloc_failed = false;
    inside_calls(CALL_BITMAP_TRANSACT);
    answer = blkrepl_bitmap_transact(sim.ctx, t->list, t->count);
    sim.may_allocate = may_allocate;
    return answer;
}

/* All or nothing. */
void bitmap_transact(void)
{
    struct transaction t = {.count = 0};
    bool failed = sim.alloc_failed;
    uint64_t reentries;
    bool sure;
    int answer;

    for (uint64_t i = rng_between(1, ACTIONS_MAX); i > 0; i--) {
        draw_action(&t);
    }
    begin(&t);
    if (!bind(&t)) {
        give_up(&t);
        return;
    }
    if (t.count > 0 && rng_chance(5)) {
        spoil(&t);
    }
    judge(&t);
    for (uint32_t i = 0; i < t.count; i++) {
        EVENT("action %n: bitmap %n, %c, with %n others", i, number(t.deeds[i].bitmap),
              t.deeds[i].call, t.deeds[i].source_count);
    }
    reentries = sim.counts.reentries;
    answer = call(&t);
    sure = sim.counts.reentries == reentries;
    EVENT("transact of %n actions, refused from %n: %r", t.count, t.refused, NEGATED(answer));
    if (sure) {
        check_answer(&t, answer);
    }
    (answer == 0 ? done : undone)(&t);
    settle(&t, sure);
    sim.alloc_failed = sim.alloc_failed || failed;
}

/* ---- Saving and loading -------------------------------------------------------------- */

struct saved {
    struct bitmap *from;
    uint8_t data[GRANULES_MAX / 8];
    uint64_t data_bytes;
    uint8_t digest[32];
    bool intact; /* nothing was recorded while it was saved                   */
};

static uint64_t alignment(const struct bitmap *b)
{
    uint64_t unit = blkrepl_bitmap_part_alignment(b->handles[0]);

    EXPECT(unit == (b->granularity >> 57 != 0 ? UINT64_C(1) << 63 : 64 * b->granularity),
           "bitmap %llu: parts of %llu", number(b), (ull)unit);
    return unit;
}

/* Write a part down behind what is there. */
static void save_part(struct saved *s, blkrepl_bitmap *handle, uint64_t offset, uint64_t bytes)
{
    struct bitmap *b = s->from;
    uint64_t room = 0;
    int answer = blkrepl_bitmap_save(handle, offset, bytes, NULL, &room);

    EXPECT(answer == 0 && room == (granules_of(bytes, b->granularity) + 7) / 8 &&
               room <= sizeof s->data - s->data_bytes,
           "save of bitmap %llu answered %d, %llu bytes", number(b), answer, (ull)room);
    answer = blkrepl_bitmap_save(handle, offset, bytes, s->data + s->data_bytes, &room);
    EXPECT(answer == 0, "save of bitmap %llu answered %d", number(b), answer);
    s->data_bytes += room;
}

/* Write it down, whole or in parts; false: others were called meanwhile. */
static bool save(struct saved *s, blkrepl_bitmap *handle)
{
    uint64_t reentries = sim.counts.reentries;
    uint64_t size = s->from->now.bytes;
    uint64_t unit = rng_chance(50) ? size : alignment(s->from);
    uint8_t before[32];

    inside_calls(CALL_BITMAP_SHA256);
    EXPECT(blkrepl_bitmap_sha256(handle, before) == 0, "no sha256 of bitmap %llu", number(s->from));
    inside_calls(CALL_BITMAP_SAVE);
    for (uint64_t at = 0; at < size;) {
        uint64_t part = size - at < unit ? size - at : unit;

        save_part(s, handle, at, part);
        at += part;
    }
    EXPECT(blkrepl_bitmap_sha256(handle, s->digest) == 0, "no sha256 of bitmap %llu",
           number(s->from));
    s->intact = memcmp(before, s->digest, sizeof before) == 0;
    return sim.counts.reentries == reentries;
}

static void try_load(struct bitmap *b, enum call what, uint64_t offset, uint64_t bytes,
                     const uint8_t *data, uint64_t data_bytes)
{
    struct deed deed = {.call = what,
                        .bitmap = b,
                        .offset = offset,
                        .bytes = bytes,
                        .data = data,
                        .data_bytes = data_bytes};

    if (b->used && b->handle_count > 0 &&
        (b->now.load_next != UINT64_MAX || what == CALL_BITMAP_LOAD_BEGIN)) {
        bitmap_try(&deed);
    }
}

/* Is a part the same all over?  Then there is another way to load it. */
static enum call way(const uint8_t *data, uint64_t granules)
{
    bool zeroes = true;
    bool ones = true;

    for (uint64_t i = 0; i < granules; i++) {
        bool dirty = (data[i / 8] >> i % 8 & 1) != 0;

        zeroes = zeroes && !dirty;
        ones = ones && dirty;
    }
    return rng_chance(40) ? CALL_BITMAP_LOAD
           : zeroes       ? CALL_BITMAP_LOAD_ZEROES
           : ones         ? CALL_BITMAP_LOAD_ONES
                          : CALL_BITMAP_LOAD;
}

/* Something that no good stream holds. */
static void hostile(struct bitmap *b, const uint8_t *data)
{
    uint64_t unit = alignment(b);
    uint64_t next = b->now.load_next;

    switch (rng_below(6)) {
    case 0: try_load(b, CALL_BITMAP_LOAD, next, b->now.bytes - next, data, rng_below(600)); return;
    case 1: try_load(b, CALL_BITMAP_LOAD_ONES, next + unit, unit, NULL, 0); return;
    case 2: try_load(b, CALL_BITMAP_LOAD, rng_next(), rng_next(), data, rng_next()); return;
    case 3: try_load(b, CALL_BITMAP_LOAD_ZEROES, next, rng_next(), NULL, 0); return;
    case 4: try_load(b, CALL_BITMAP_LOAD_ONES, 0, UINT64_MAX, NULL, 0); return;
    default: try_load(b, CALL_BITMAP_LOAD_FINISH, 0, 0, NULL, 0); return;
    }
}

/* The last part may have anything behind its last bit. */
static void litter(const struct bitmap *b, uint8_t *data)
{
    for (uint64_t i = b->now.granules; i % 8 != 0; i++) {
        data[i / 8] |= (uint8_t)(rng_below(2) << i % 8);
    }
}

/* The parts; false: it is left unfinished. */
static bool load_parts(struct bitmap *b, struct saved *s)
{
    uint64_t unit = alignment(b);
    uint64_t size = b->now.bytes;

    litter(b, s->data);
    while (b->used && b->now.loading && b->now.load_next < size) {
        uint64_t at = b->now.load_next;
        uint64_t most = (size - at - 1) / unit + 1;
        uint64_t parts = rng_between(1, most);
        uint64_t bytes = parts == most ? size - at : parts * unit;
        uint64_t granules = granules_of(bytes, b->granularity);
        const uint8_t *data = s->data + at / b->granularity / 8;

        if (rng_chance(5)) {
            return false;
        }
        if (rng_chance(20)) {
            hostile(b, data);
        } else {
            try_load(b, way(data, granules), at, bytes, data, (granules + 7) / 8);
        }
    }
    return b->used && b->now.loading;
}

static void compare(const struct bitmap *b, const struct saved *s)
{
    uint8_t digest[32];

    if (!b->used || b->now.loading || b->handle_count == 0 || !s->intact) {
        return;
    }
    EXPECT(blkrepl_bitmap_sha256(b->handles[0], digest) == 0 &&
               memcmp(digest, s->digest, sizeof digest) == 0,
           "bitmap %llu is loaded from bitmap %llu, and another one", number(b), number(s->from));
}

/* Save one, and load it into a free-standing one. */
static void copy_one(struct bitmap *from)
{
    struct saved s = {.from = from};
    struct deed deed = {.call = CALL_BITMAP_CREATE};

    if (from->now.loading || !save(&s, from->handles[0])) {
        return;
    }
    deed.bitmap = bitmap_slot();
    if (deed.bitmap == NULL) {
        return;
    }
    bitmap_draw_options(&deed);
    deed.options.bytes = from->now.bytes;
    deed.options.granularity_bytes = from->granularity;
    deed.bitmap->granularity = from->granularity;
    bitmap_try(&deed);
    try_load(deed.bitmap, CALL_BITMAP_LOAD_BEGIN, 0, 0, NULL, 0);
    if (deed.bitmap->used && load_parts(deed.bitmap, &s)) {
        try_load(deed.bitmap, CALL_BITMAP_LOAD_FINISH, 0, 0, NULL, 0);
        compare(deed.bitmap, &s);
    }
}

/* Any of them that is loading goes on, or another one begins. */
static void load_some(enum call what)
{
    struct bitmap *b = bitmap_pick();
    uint8_t data[GRANULES_MAX / 8];
    uint64_t left;

    if (b == NULL || !bitmap_has_handle(b)) {
        return;
    }
    for (size_t i = 0; i < sizeof data; i++) {
        data[i] = (uint8_t)rng_next();
    }
    left = b->now.load_next < b->now.bytes ? b->now.bytes - b->now.load_next : 1;
    try_load(b, what, b->now.load_next, left, data,
             (granules_of(left, b->granularity) + 7) / 8 % sizeof data);
}

void bitmap_wire(enum call call)
{
    struct bitmap *from;

    if (call >= CALL_BITMAP_LOAD && call <= CALL_BITMAP_LOAD_FINISH && rng_chance(60)) {
        load_some(call);
        return;
    }
    from = bitmap_pick();
    if (from == NULL || !bitmap_has_handle(from)) {
        return;
    }
    if (call == CALL_BITMAP_LOAD_BEGIN && rng_chance(50)) {
        try_load(from, call, 0, 0, NULL, 0);
    } else {
        copy_one(from);
    }
}

/* ---- Wrong calls ---------------------------------------------------------------------- */

static void wrong_options(void)
{
    struct disk *disk = &sim.disks[rng_below(sim.options.disks)];
    blkrepl_bitmap_options o = {.struct_size = sizeof o, .name = "wrong"};
    blkrepl_bitmap *out = (blkrepl_bitmap *)(void *)&o;
    bool named = disk->image != NULL && rng_chance(70);

    switch (rng_below(5)) {
    case 0: o.granularity_bytes = 3; break;
    case 1: o.name = ""; break;
    case 2: o.flags = 0x40; break;
    case 3: o.bytes = named ? disk->bytes + 1 : BLKREPL_IMAGE_BYTES_MAX + UINT64_C(1); break;
    default: o.flags = BLKREPL_BITMAP_RECORDING; break;
    }
    sim.may_allocate = true;
    wrong_call_begin();
    wrong_call("a bitmap with wrong options", -EINVAL,
               named ? blkrepl_bitmap_add(disk->image, &o, &out)
                     : blkrepl_bitmap_create(sim.ctx, &o, &out));
    EXPECT(out == NULL, "a refused bitmap has a handle");
}

static void wrong_null(void)
{
    wrong_call_begin();
    switch (rng_below(6)) {
    case 0: wrong_call("bitmap_clear", -EINVAL, blkrepl_bitmap_clear(NULL)); return;
    case 1: wrong_call("bitmap_enable", -EINVAL, blkrepl_bitmap_enable(NULL)); return;
    case 2: wrong_call("bitmap_query", -EINVAL, blkrepl_bitmap_query(NULL, NULL)); return;
    case 3: wrong_call("bitmap_abdicate", -EINVAL, blkrepl_bitmap_abdicate(NULL)); return;
    case 4: wrong_call("bitmap_validate", -EINVAL, blkrepl_bitmap_validate(NULL)); return;
    default: wrong_call("bitmap_transact", -EINVAL, blkrepl_bitmap_transact(NULL, NULL, 1)); return;
    }
}

static void wrong_range(struct bitmap *b)
{
    blkrepl_bitmap *handle = b->handles[0];
    uint64_t bytes = b->now.bytes;
    uint64_t run = 77;

    if (b->now.loading) {
        return;
    }
    wrong_call_begin();
    switch (rng_below(5)) {
    case 0: wrong_call("bitmap_get", -EINVAL, blkrepl_bitmap_get(handle, bytes)); break;
    case 1:
        wrong_call("bitmap_status", -EINVAL, blkrepl_bitmap_status(handle, bytes, 1, &run));
        break;
    case 2: wrong_call("bitmap_set", -EINVAL, blkrepl_bitmap_set(handle, bytes, 1)); break;
    case 3: wrong_call("bitmap_set", -EINVAL, blkrepl_bitmap_set(handle, 1, UINT64_MAX)); break;
    default:
        wrong_call("bitmap_iterate", -EINVAL, blkrepl_bitmap_iterate(handle, &run, &run, 0));
        break;
    }
    EXPECT(run == 77, "a refused call has changed its output");
}

void bitmap_misuse(void)
{
    bool may_allocate = sim.may_allocate;
    bool misusing = sim.misusing;
    struct bitmap *b = bitmap_pick();

    if (misusing) {
        return;
    }
    sim.misusing = true;
    if (rng_chance(40)) {
        wrong_null();
    } else if (rng_chance(50) || b == NULL || !bitmap_has_handle(b)) {
        wrong_options();
    } else {
        wrong_range(b);
    }
    sim.misusing = misusing;
    sim.may_allocate = may_allocate;
}
