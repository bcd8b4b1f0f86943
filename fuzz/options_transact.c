/* SPDX-License-Identifier: MIT */
/* options_transact.c - groups of actions of every size and content, on a few
 * bitmaps of which everything is known.
 *
 * Whether a group is done or refused, and where, is worked out on a copy of what
 * is known; what a granule is here is 512 bytes, a bit of a mask. */
#include "options.h"

#include "base/abi.h"

#include <stdio.h>
#include <stdlib.h>

#define KNOWN_MAX 12
#define ACTIONS_MAX 5
#define SOURCES_MAX 3
#define GROUPS_MAX 4
#define NAME_BYTES 8

static const struct field action_fields[] = {
    FIELD(blkrepl_bitmap_action, type, FIELD_U32),
    FIELD(blkrepl_bitmap_action, reserved0, FIELD_U32),
};
static const struct shape action_shape =
    SHAPE(blkrepl_bitmap_action, BLKREPL_BITMAP_ACTION_V1_BYTES, action_fields);

struct known {
    blkrepl_bitmap *handle;
    blkrepl_image *image; /* NULL: free-standing                                */
    char name[NAME_BYTES];
    uint64_t bytes;
    uint32_t unit; /* granules of the mask in one of its own                      */
    uint32_t dirty;
    uint32_t since;
    bool enabled;
    bool frozen;
    bool loading;
};

/* One action, and what belongs to it. */
struct given {
    blkrepl_bitmap_action typed;
    struct packed packed;
    struct bitmap_options options;
    uint32_t target; /* of known; ADD: what it becomes                           */
    uint32_t source[SOURCES_MAX];
    blkrepl_bitmap *sources[SOURCES_MAX];
    blkrepl_bitmap *out;
    struct verdict read; /* what is wrong with it, whatever the bitmaps are       */
};

static struct known known[KNOWN_MAX];
static uint32_t known_count;
static struct given givens[ACTIONS_MAX];

/* ---- What is known ----------------------------------------------------------- */

/* Rounded outward to granules of `unit`. */
static uint32_t widened(uint32_t mask, uint32_t unit)
{
    uint32_t wide = 0;

    for (uint32_t i = 0; i < 16; i++) {
        for (uint32_t j = i - i % unit; (mask >> i & 1) != 0 && j < i - i % unit + unit; j++) {
            wide |= j < 16 ? 1u << j : 0;
        }
    }
    return wide;
}

static uint32_t ones(uint32_t mask)
{
    uint32_t count = 0;

    for (; mask != 0; mask &= mask - 1) {
        count++;
    }
    return count;
}

static void known_check(const struct known *k)
{
    blkrepl_bitmap_info info = {.struct_size = sizeof info};
    uint32_t flags = (k->enabled ? BLKREPL_BITMAP_RECORDING : 0u) |
                     (k->frozen ? BLKREPL_BITMAP_BUSY : 0u) |
                     (k->loading ? BLKREPL_BITMAP_INCONSISTENT : 0u);
    int rc = blkrepl_bitmap_query(k->handle, &info);

    EXPECT(rc == 0 && info.flags == flags && (info.image_id != 0) == (k->image != NULL),
           "bitmap %u: flags 0x%x, got %d, 0x%x", (unsigned)(k - known), (unsigned)flags, rc,
           (unsigned)info.flags);
    EXPECT(info.dirty_bytes == (k->loading ? 0 : ones(k->dirty) * 512) &&
               info.since_bytes == (k->frozen ? ones(k->since) * 512 : 0),
           "bitmap %u: mask 0x%x and since 0x%x, got %llu and %llu", (unsigned)(k - known),
           (unsigned)k->dirty, (unsigned)k->since, (ull)info.dirty_bytes, (ull)info.since_bytes);
    for (uint32_t i = 0; i < k->bytes / 512 && !k->loading; i++) {
        EXPECT(blkrepl_bitmap_get(k->handle, i * UINT64_C(512)) == (int)(k->dirty >> i & 1),
               "bitmap %u: granule %u to be %u", (unsigned)(k - known), (unsigned)i,
               (unsigned)(k->dirty >> i & 1));
    }
    EXPECT(blkrepl_bitmap_validate(k->handle) == 0, "a valid bitmap");
}

/* A name that no other act uses. */
static void known_name(struct known *k)
{
    snprintf(k->name, sizeof k->name, "t%u", (unsigned)take_below(KNOWN_MAX));
}

static void known_make(void)
{
    struct known *k = &known[known_count];
    blkrepl_bitmap_options options = {.struct_size = sizeof options};
    int rc;

    memset(k, 0, sizeof *k);
    k->unit = 1u << take_below(4);
    k->bytes = 8 * KIB;
    options.granularity_bytes = k->unit * UINT64_C(512);
    if (take_chance(25)) {
        k->bytes = take_chance(25) ? 4 * KIB : k->bytes;
        options.bytes = k->bytes;
        rc = blkrepl_bitmap_create(bench.ctx, &options, &k->handle);
    } else {
        k->image = bench_image(take_chance(50) ? BENCH_TARGET : BENCH_SOURCE);
        snprintf(k->name, sizeof k->name, "t%u", (unsigned)known_count);
        k->enabled = take_chance(50);
        options.name = k->name;
        options.flags = k->enabled ? 0 : BLKREPL_BITMAP_DISABLED;
        rc = blkrepl_bitmap_add(k->image, &options, &k->handle);
    }
    EXPECT(rc == 0, "a plain bitmap, got %d \"%s\"", rc, blkrepl_error_message());
    known_count++;
}

/* What only the host does to it, between groups. */
static void known_change(struct known *k)
{
    uint64_t at = take_below((uint32_t)k->bytes);
    uint32_t mask = widened(1u << at / 512, k->unit);

    switch (take_below(8)) {
    case 0:
        if (k->frozen) {
            EXPECT(blkrepl_bitmap_reclaim(k->handle) == 0, "a plain reclaim");
            k->dirty |= k->since;
            k->frozen = false;
        }
        break;
    case 1:
        if (!k->frozen && !k->enabled) {
            EXPECT(blkrepl_bitmap_load_begin(k->handle) == 0, "a plain load_begin");
            k->dirty = 0;
            k->loading = true;
        }
        break;
    case 2:
        if (k->loading) {
            EXPECT(blkrepl_bitmap_load_begin(k->handle) == 0 &&
                       blkrepl_bitmap_load_ones(k->handle, 0, k->bytes) == 0 &&
                       blkrepl_bitmap_load_finish(k->handle) == 0,
                   "a plain load");
            k->dirty = k->bytes == 8 * KIB ? 0xffff : 0xff;
            k->loading = false;
        }
        break;
    default:
        if (!k->loading) {
            EXPECT(blkrepl_bitmap_set(k->handle, at, 1) == 0, "a plain set");
            *(k->frozen ? &k->since : &k->dirty) |= mask;
        }
        break;
    }
}

/* ---- Actions ----------------------------------------------------------------- */

static bool takes_sources(uint32_t type)
{
    return type == BLKREPL_BITMAP_ADD || type == BLKREPL_BITMAP_MERGE;
}

static void given_draw_sources(struct given *g)
{
    uint32_t count = take_below(SOURCES_MAX + 1);

    for (uint32_t i = 0; i < count; i++) {
        g->source[i] = take_below(known_count);
        g->sources[i] = known[g->source[i]].handle;
        if (take_chance(3)) {
            g->source[i] = KNOWN_MAX;
            g->sources[i] = NULL;
        }
    }
    g->typed.source_count = count;
    g->typed.sources = count > 0 || take_chance(50) ? g->sources : NULL;
}

/* The image and options of an ADD. */
static void given_draw_add(struct given *g)
{
    blkrepl_image_info info = {.struct_size = sizeof info};
    struct known *k = &known[g->target];

    memset(k, 0, sizeof *k);
    k->image = bench_image(take_chance(50) ? BENCH_TARGET : BENCH_SOURCE);
    EXPECT(blkrepl_image_query(k->image, &info) == 0, "a query");
    g->typed.image = k->image;
    g->typed.out = &g->out;
    g->options.name = NULL;
    if (take_chance(10)) {
        g->options = bitmap_options_draw(&info, &g->read);
        if (g->options.typed.name != NULL) {
            snprintf(k->name, sizeof k->name, "%.7s", g->options.typed.name);
        }
    } else {
        known_name(k);
        g->options.typed =
            (blkrepl_bitmap_options){.struct_size = sizeof g->options.typed,
                                     .granularity_bytes = UINT64_C(512) << take_below(5),
                                     .flags = take_below(2),
                                     .name = k->name};
        g->options.packed.memory = fuzz_alloc(sizeof g->options.typed);
        memcpy(g->options.packed.memory, &g->options.typed, sizeof g->options.typed);
    }
    g->typed.options = g->options.packed.memory;
    k->bytes = 8 * KIB;
    k->unit = (uint32_t)(g->options.typed.granularity_bytes / 512);
    k->unit = k->unit == 0 || k->unit > 16 ? 16 : k->unit;
    k->enabled = g->options.typed.flags == 0;
}

/* Something that its type does not use, or that it needs and does not get. */
static void given_spoil(struct given *g)
{
    bool adds = g->typed.type == BLKREPL_BITMAP_ADD;

    switch (take_below(40)) {
    case 1: g->typed.bitmap = adds ? known[0].handle : NULL; break;
    case 2: g->typed.image = adds ? NULL : bench_image(BENCH_SOURCE); break;
    case 3: g->typed.out = adds ? NULL : &g->out; break;
    case 4:
        if (takes_sources(g->typed.type)) {
            g->typed.source_count = 1;
            g->typed.sources = NULL;
        } else {
            g->typed.sources = g->sources;
            g->typed.source_count = take_below(2);
        }
        break;
    case 5:
        if (!adds) {
            g->typed.options = &g->options.typed;
            break;
        }
        return;
    case 6: g->typed.type = take_chance(50) ? 0 : BLKREPL_BITMAP_FREEZE + 1 + take_u8(); break;
    case 7: g->typed.reserved0 = 1u + take_u16(); break;
    default: return;
    }
    verdict_add(&g->read, -EINVAL);
}

static void given_draw(struct given *g, uint32_t *adds)
{
    memset(g, 0, sizeof *g);
    g->out = (blkrepl_bitmap *)g;
    g->typed.type = 1 + take_below(BLKREPL_BITMAP_FREEZE);
    if (g->typed.type == BLKREPL_BITMAP_ADD && known_count + *adds == KNOWN_MAX) {
        g->typed.type = BLKREPL_BITMAP_CLEAR;
    }
    g->target = take_below(known_count);
    if (takes_sources(g->typed.type)) {
        given_draw_sources(g);
    }
    if (g->typed.type == BLKREPL_BITMAP_ADD) {
        g->target = known_count + (*adds)++;
        given_draw_add(g);
    } else {
        g->typed.bitmap = known[g->target].handle;
    }
    given_spoil(g);
    g->packed = shape_pack(&action_shape, &g->typed, true);
    verdict_add_packing(&g->read, &g->packed);
    verdict_add_if(&g->read, g->packed.packing == PACKED_NULL, -EINVAL);
}

/* ---- What must come of it ---------------------------------------------------- */

static void judge_use(const struct known *k, struct verdict *verdict)
{
    if (k->frozen) {
        verdict_add(verdict, -EBUSY);
    } else {
        verdict_add_if(verdict, k->loading, BLKREPL_ERR_STATE);
    }
}

static void judge_sources(const struct known *now, const struct given *g, struct verdict *verdict)
{
    for (uint32_t i = 0; i < g->typed.source_count; i++) {
        if (g->source[i] == KNOWN_MAX) {
            verdict_add(verdict, -EINVAL);
        } else {
            verdict_add_if(verdict, now[g->source[i]].bytes != now[g->target].bytes, -EINVAL);
            judge_use(&now[g->source[i]], verdict);
        }
    }
}

static bool name_taken(const struct known *now, uint32_t count, const struct given *g)
{
    const struct known *k = &now[g->target];

    for (uint32_t i = 0; i < count; i++) {
        if (i != g->target && now[i].image == k->image && strcmp(now[i].name, k->name) == 0) {
            return true;
        }
    }
    /* Left behind by another act. */
    return k->name[0] != 't' && bitmap_exists(k->image, g->options.typed.name);
}

/* Judge an action by what is known now, which has `count` bitmaps. */
static void judge(const struct known *now, uint32_t count, const struct given *g,
                  struct verdict *verdict)
{
    const struct known *k = &now[g->target];

    switch (g->typed.type) {
    case BLKREPL_BITMAP_ADD:
        verdict_add_if(verdict, name_taken(now, count, g), -EEXIST);
        judge_sources(now, g, verdict);
        break;
    case BLKREPL_BITMAP_REMOVE:
        verdict_add_if(verdict, k->image == NULL, -EINVAL);
        verdict_add_if(verdict, k->frozen, -EBUSY);
        break;
    case BLKREPL_BITMAP_ENABLE:
    case BLKREPL_BITMAP_DISABLE:
        verdict_add_if(verdict, k->image == NULL, -EINVAL);
        judge_use(k, verdict);
        break;
    default:
        judge_use(k, verdict);
        judge_sources(now, g, verdict);
        break;
    }
}

static void perform(struct known *now, const struct given *g)
{
    struct known *k = &now[g->target];

    for (uint32_t i = 0; i < g->typed.source_count; i++) {
        k->dirty |= widened(now[g->source[i]].dirty, k->unit);
    }
    switch (g->typed.type) {
    case BLKREPL_BITMAP_REMOVE:
        k->image = NULL;
        k->enabled = false;
        break;
    case BLKREPL_BITMAP_ENABLE: k->enabled = true; break;
    case BLKREPL_BITMAP_DISABLE: k->enabled = false; break;
    case BLKREPL_BITMAP_CLEAR: k->dirty = 0; break;
    case BLKREPL_BITMAP_FREEZE:
        k->frozen = true;
        k->since = 0;
        break;
    default: break;
    }
}

/* How the group ends: the first action that is refused, and for what, once for what
 * it says and once for what the bitmaps are; both are right. */
struct outcome {
    uint32_t number[2];
    struct verdict verdict[2];
    struct known after[KNOWN_MAX];
    uint32_t count;
};

static void foresee(struct outcome *outcome, uint32_t actions)
{
    uint32_t i = 0;

    memset(outcome, 0, sizeof *outcome);
    memcpy(outcome->after, known, sizeof known);
    outcome->count = known_count;
    while (i < actions && givens[i].read.count == 0) {
        i++;
    }
    outcome->number[0] = i;
    outcome->verdict[0] = i < actions ? givens[i].read : outcome->verdict[0];
    for (i = 0; i < outcome->number[0] && outcome->verdict[1].count == 0; i++) {
        struct given *g = &givens[i];

        judge(outcome->after, outcome->count, g, &outcome->verdict[1]);
        if (outcome->verdict[1].count > 0) {
            outcome->number[1] = i;
        } else {
            perform(outcome->after, g);
            outcome->count += g->typed.type == BLKREPL_BITMAP_ADD;
        }
    }
}

static bool foreseen(const struct outcome *outcome, int rc)
{
    char prefix[32];

    if (rc == 0) {
        return outcome->verdict[0].count + outcome->verdict[1].count == 0;
    }
    for (int which = 0; which < 2; which++) {
        const struct verdict *verdict = &outcome->verdict[which];

        snprintf(prefix, sizeof prefix, "action %u:", (unsigned)outcome->number[which]);
        for (size_t i = 0; i < verdict->count; i++) {
            if (verdict->codes[i] == rc &&
                strncmp(blkrepl_error_message(), prefix, strlen(prefix)) == 0) {
                return true;
            }
        }
    }
    return rc == -ENOMEM && heap.refused;
}

/* ---- A group ----------------------------------------------------------------- */

static void group_settle(const struct outcome *outcome, uint32_t actions, int rc)
{
    uint32_t adds = 0;

    for (uint32_t i = 0; i < actions; i++) {
        struct given *g = &givens[i];

        if (rc == 0 && g->typed.type == BLKREPL_BITMAP_ADD) {
            EXPECT(g->out != NULL && g->out != (blkrepl_bitmap *)g, "a handle of what was added");
            known[g->target] = outcome->after[g->target];
            known[g->target].handle = g->out;
            adds++;
        } else if (g->typed.out == &g->out && g->packed.packing == PACKED_WELL) {
            EXPECT(g->out == NULL, "no handle from a group that was refused");
        }
        packed_free(&g->packed);
        bitmap_options_drop(&g->options);
    }
    if (rc == 0) {
        for (uint32_t i = 0; i < known_count; i++) {
            known[i] = outcome->after[i];
        }
        known_count += adds;
    }
    for (uint32_t i = 0; i < known_count; i++) {
        known_check(&known[i]);
    }
}

static void group_run(void)
{
    static struct outcome outcome;
    const blkrepl_bitmap_action *actions[ACTIONS_MAX];
    uint32_t count = take_below(ACTIONS_MAX + 1);
    uint32_t adds = 0;
    int rc;

    for (uint32_t i = 0; i < count; i++) {
        given_draw(&givens[i], &adds);
        actions[i] = givens[i].packed.memory;
        fuzz_note("action %u: type %u of %u, %u sources", (unsigned)i,
                  (unsigned)givens[i].typed.type, (unsigned)givens[i].target,
                  (unsigned)givens[i].typed.source_count);
    }
    foresee(&outcome, count);
    call_begin();
    heap_watch(take_chance(10) ? 1u + take_below(10) : 0);
    rc = blkrepl_bitmap_transact(bench.ctx, actions, count);
    call_end(rc, "bitmap_transact");
    EXPECT(foreseen(&outcome, rc), "%s: %d at %u or %d at %u, got %d \"%s\"", "bitmap_transact",
           outcome.verdict[0].codes[0], (unsigned)outcome.number[0], outcome.verdict[1].codes[0],
           (unsigned)outcome.number[1], rc, rc < 0 ? blkrepl_error_message() : "");
    heap_watch(0);
    group_settle(&outcome, count, rc);
}

void act_transact(void)
{
    known_count = 0;
    for (uint32_t i = 1 + take_below(4); i > 0; i--) {
        known_make();
    }
    for (uint32_t groups = 1 + take_below(GROUPS_MAX); groups > 0; groups--) {
        for (uint32_t i = take_below(6); i > 0; i--) {
            known_change(&known[take_below(known_count)]);
        }
        group_run();
    }
    for (uint32_t i = 0; i < known_count; i++) {
        struct known *k = &known[i];

        EXPECT(!k->frozen || blkrepl_bitmap_abdicate(k->handle) == 0, "a plain abdicate");
        EXPECT(k->image == NULL || blkrepl_bitmap_remove(k->handle) == 0, "a plain remove");
        blkrepl_bitmap_free(k->handle);
    }
    bench_refused();
}
