/* SPDX-License-Identifier: MIT */
/* bitmap.c - what the host does with bitmaps: of its images, and free-standing.
 *
 * After each step of the world, and inside what the library calls.  Each deed is
 * judged, done and compared by oracle_bitmap.c; those with several bitmaps or
 * several calls are in bitmap_more.c. */
#include "sim.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

typedef unsigned long long ull;

static ull number(const struct bitmap *bitmap)
{
    return (ull)(bitmap - sim.bitmaps);
}

/* ---- Slots and handles ------------------------------------------------------------ */

/* Nobody who is called inside touches it, until the act is over. */
static void hold(struct bitmap *b)
{
    if (b->holder == 0) {
        b->holder = sim.reenter_depth + 1;
        b->calling++;
    }
}

static void let_go(void)
{
    for (uint32_t i = 0; i < sim.bitmap_count; i++) {
        if (sim.bitmaps[i].holder == sim.reenter_depth + 1) {
            sim.bitmaps[i].holder = 0;
            sim.bitmaps[i].calling--;
        }
    }
}

struct bitmap *bitmap_slot(void)
{
    for (uint32_t i = 0; i < BITMAPS_MAX; i++) {
        struct bitmap *b = &sim.bitmaps[i];

        if (!b->used && b->calling == 0) {
            b->used = true;
            b->handle_count = 0;
            b->for_jobs = false;
            sim.bitmap_count = i >= sim.bitmap_count ? i + 1 : sim.bitmap_count;
            hold(b);
            return b;
        }
    }
    return NULL;
}

/* One that nobody is busy with. */
struct bitmap *bitmap_pick(void)
{
    for (uint32_t tries = 0; tries < 4 && sim.bitmap_count > 0; tries++) {
        struct bitmap *b = &sim.bitmaps[rng_below(sim.bitmap_count)];
        bool ours = b->holder == sim.reenter_depth + 1;

        if (b->used && b->for_jobs && !rng_chance(15)) {
            continue;
        }
        if (!ours) {
            oracle_bitmap_check(b);
        }
        if (b->used && (b->calling == 0 || ours) && (!ours || b->handle_count > 0)) {
            hold(b);
            return b;
        }
    }
    return NULL;
}

static void take_handle(struct bitmap *b, blkrepl_bitmap *handle)
{
    if (b->handle_count < HANDLES_MAX) {
        b->handles[b->handle_count++] = handle;
    } else {
        blkrepl_bitmap_free(handle);
    }
}

static void find_one(struct bitmap *b)
{
    blkrepl_bitmap *handle = NULL;
    int answer;

    if (b->now.disk == NULL || b->now.disk->image == NULL) {
        return;
    }
    inside_calls(CALL_BITMAP_FIND);
    answer = blkrepl_bitmap_find(b->now.disk->image, b->name, &handle);
    EXPECT(answer == 0, "bitmap %llu is not found: %d", number(b), answer);
    take_handle(b, handle);
}

/* A handle of it is there afterwards; false: it went with its image. */
bool bitmap_has_handle(struct bitmap *b)
{
    if (b->handle_count == 0) {
        find_one(b);
    }
    return b->handle_count > 0;
}

blkrepl_bitmap *bitmap_handle(const struct bitmap *b)
{
    return b->handles[rng_below(b->handle_count)];
}

static void drop_handle(struct bitmap *b)
{
    blkrepl_bitmap *handle = b->handles[--b->handle_count];

    EVENT("a handle of bitmap %n is freed, %n are left", number(b), b->handle_count);
    b->used = b->handle_count > 0 || (b->now.disk != NULL && b->now.disk->image != NULL);
    b->for_jobs = b->for_jobs && b->used;
    inside_calls(CALL_BITMAP_FREE);
    blkrepl_bitmap_free(handle);
}

/* A job has it, or is made for it: a handle is kept, to look at it. */
static bool has_job(const struct bitmap *b)
{
    for (uint32_t i = 0; i < sim.backup_count; i++) {
        const struct backup *job = &sim.backups[i];

        if ((job->bitmap == b || job->differing == b) && job->release_count == 0) {
            return true;
        }
    }
    return false;
}

/* Mostly not the last one of what is frozen. */
static void free_one(struct bitmap *b)
{
    uint32_t keep = b->now.frozen && !rng_chance(10);

    if (b->handle_count > (has_job(b) || b->for_jobs ? 1 : keep)) {
        drop_handle(b);
    }
}

/* The bitmaps of an image are those that are known, in the order of their ids. */
static void list_all(const struct disk *disk)
{
    uint64_t reentries = sim.counts.reentries;
    uint64_t last = 0;
    uint32_t expected = 0;
    uint32_t count = 0;
    blkrepl_bitmap *handle = NULL;

    if (disk->image == NULL) {
        return;
    }
    for (uint32_t i = 0; i < sim.bitmap_count; i++) {
        expected += sim.bitmaps[i].used && sim.bitmaps[i].now.disk == disk;
        if (sim.bitmaps[i].calling > 0) {
            return; /* inside a deed: who knows */
        }
    }
    inside_calls(CALL_BITMAP_NEXT);
    while (blkrepl_bitmap_next(disk->image, last, &handle) == 0) {
        blkrepl_bitmap_info info = {.struct_size = sizeof info};

        blkrepl_bitmap_query(handle, &info);
        EXPECT(info.id > last, "next told %llu after %llu", (ull)info.id, (ull)last);
        last = info.id;
        count++;
        blkrepl_bitmap_free(handle);
    }
    EXPECT(handle == NULL && (count == expected || sim.counts.reentries != reentries),
           "image %u has %u bitmaps, %u are listed", disk->index, expected, count);
}

/* ---- Making ------------------------------------------------------------------------ */

static void draw_name(struct bitmap *b)
{
    static const char *const names[] = {"a", "b", "c", "backup", "a name with spaces \xc3\xa4"};
    size_t length;

    if (rng_chance(10)) {
        length = rng_chance(50) ? BLKREPL_BITMAP_NAME_MAX : rng_between(1, 1000);
        memset(b->name, 'x', length);
        b->name[length] = '\0';
        return;
    }
    snprintf(b->name, sizeof b->name, "%s", names[rng_below(5)]);
}

static uint64_t draw_bytes(void)
{
    switch (rng_below(4)) {
    case 0: return rng_below(100000);
    case 1: return (UINT64_C(1) << rng_below(63)) + rng_below(3) - 1;
    default: return sim.disks[rng_below(sim.options.disks)].bytes;
    }
}

static uint64_t draw_granularity(uint64_t bytes, uint32_t least, uint32_t most)
{
    uint32_t shift = (uint32_t)rng_between(least, rng_chance(60) && most > 17 ? 17 : most);

    while (granules_of(bytes, UINT64_C(1) << shift) > GRANULES_MAX) {
        shift++;
    }
    return UINT64_C(1) << shift;
}

/* What a bitmap of an image, or a free-standing one, will be like. */
void bitmap_draw_options(struct deed *d)
{
    blkrepl_bitmap_options *o = &d->options;
    bool named = d->disk != NULL;
    uint64_t bytes = named ? d->disk->bytes : draw_bytes();
    uint64_t g;

    bytes = bytes < BLKREPL_IMAGE_BYTES_MAX ? bytes : BLKREPL_IMAGE_BYTES_MAX;
    draw_name(d->bitmap);
    g = draw_granularity(bytes, named ? 9 : 0, named ? 31 : 63);
    *o = (blkrepl_bitmap_options){.struct_size = sizeof *o, .user = d->bitmap, .bytes = bytes};
    o->granularity_bytes = g;
    o->name = d->bitmap->name;
    if (named) {
        o->bytes = rng_chance(50) ? bytes : 0;
        o->flags = rng_chance(20) ? BLKREPL_BITMAP_DISABLED : 0;
    } else if (rng_chance(50)) {
        d->bitmap->name[0] = '\0';
        o->name = NULL;
    }
    if (rng_chance(15) && granules_of(bytes, 65536) <= GRANULES_MAX) {
        g = 65536;
        o->granularity_bytes = 0;
    }
    d->bitmap->granularity = g;
}

static void make_one(struct disk *disk)
{
    struct deed deed = {.call = disk != NULL ? CALL_BITMAP_ADD : CALL_BITMAP_CREATE, .disk = disk};

    if ((disk != NULL && disk->image == NULL) || (deed.bitmap = bitmap_slot()) == NULL) {
        return;
    }
    bitmap_draw_options(&deed);
    bitmap_try(&deed);
}

void bitmap_for_jobs(struct disk *disk, uint64_t bytes)
{
    struct deed deed = {.call = disk != NULL ? CALL_BITMAP_ADD : CALL_BITMAP_CREATE, .disk = disk};
    blkrepl_bitmap_options *o = &deed.options;

    if ((disk != NULL && disk->image == NULL) || (deed.bitmap = bitmap_slot()) == NULL) {
        return;
    }
    *o = (blkrepl_bitmap_options){.struct_size = sizeof *o, .user = deed.bitmap, .bytes = bytes};
    snprintf(deed.bitmap->name, sizeof deed.bitmap->name, "jobs");
    o->name = deed.bitmap->name;
    o->granularity_bytes = draw_granularity(bytes, 9, 17);
    deed.bitmap->granularity = o->granularity_bytes;
    bitmap_try(&deed);
    deed.bitmap->for_jobs = deed.bitmap->used;
    let_go();
}

/* ---- One deed ---------------------------------------------------------------------- */

/* There is a new one. */
void bitmap_made(struct bitmap *b, blkrepl_bitmap *handle)
{
    blkrepl_bitmap_info info = {.struct_size = sizeof info};

    blkrepl_bitmap_query(handle, &info);
    b->id = info.id;
    b->handles[b->handle_count++] = handle;
    sim.counts.bitmaps++;
}

static int make_it(const struct deed *d)
{
    blkrepl_bitmap *handle = NULL;
    int answer = d->disk != NULL ? blkrepl_bitmap_add(d->disk->image, &d->options, &handle)
                                 : blkrepl_bitmap_create(sim.ctx, &d->options, &handle);

    EXPECT((answer == 0) == (handle != NULL), "a bitmap: %d, and a handle", answer);
    if (answer == 0) {
        bitmap_made(d->bitmap, handle);
    }
    return answer;
}

static int call_sources(const struct deed *d, blkrepl_bitmap *handle)
{
    blkrepl_bitmap *sources[3];

    for (uint32_t i = 0; i < d->source_count; i++) {
        sources[i] = bitmap_handle(d->sources[i]);
    }
    switch ((uint32_t)d->call) {
    case CALL_BITMAP_INTERSECT: return blkrepl_bitmap_intersect(handle, sources[0]);
    case CALL_BITMAP_SUBTRACT: return blkrepl_bitmap_subtract(handle, sources[0]);
    default: break;
    }
    return blkrepl_bitmap_merge(handle, sources, d->source_count);
}

static int call_it(const struct deed *d, blkrepl_bitmap *handle)
{
    switch ((uint32_t)d->call) {
    case CALL_BITMAP_REMOVE: return blkrepl_bitmap_remove(handle);
    case CALL_BITMAP_ENABLE: return blkrepl_bitmap_enable(handle);
    case CALL_BITMAP_DISABLE: return blkrepl_bitmap_disable(handle);
    case CALL_BITMAP_CLEAR: return blkrepl_bitmap_clear(handle);
    case CALL_BITMAP_FREEZE: return blkrepl_bitmap_freeze(handle);
    case CALL_BITMAP_ABDICATE: return blkrepl_bitmap_abdicate(handle);
    case CALL_BITMAP_RECLAIM: return blkrepl_bitmap_reclaim(handle);
    case CALL_BITMAP_SET: return blkrepl_bitmap_set(handle, d->offset, d->bytes);
    case CALL_BITMAP_RESET: return blkrepl_bitmap_reset(handle, d->offset, d->bytes);
    case CALL_BITMAP_INVERT: return blkrepl_bitmap_invert(handle);
    case CALL_BITMAP_RESIZE: return blkrepl_bitmap_resize(handle, d->bytes);
    case CALL_BITMAP_LOAD_BEGIN: return blkrepl_bitmap_load_begin(handle);
    case CALL_BITMAP_LOAD:
        return blkrepl_bitmap_load(handle, d->offset, d->bytes, d->data, d->data_bytes);
    case CALL_BITMAP_LOAD_ZEROES: return blkrepl_bitmap_load_zeroes(handle, d->offset, d->bytes);
    case CALL_BITMAP_LOAD_ONES: return blkrepl_bitmap_load_ones(handle, d->offset, d->bytes);
    case CALL_BITMAP_LOAD_FINISH: return blkrepl_bitmap_load_finish(handle);
    default: break;
    }
    return call_sources(d, handle);
}

static bool takes_memory(enum call call)
{
    return call == CALL_BITMAP_CREATE || call == CALL_BITMAP_ADD || call == CALL_BITMAP_FREEZE ||
           call == CALL_BITMAP_RESIZE || call == CALL_BITMAP_TRANSACT;
}

/* Is the answer one of those that are right? */
bool bitmap_is_right(const struct deed *d, int answer, uint32_t refusals)
{
    switch (answer) {
    case 0: return refusals == 0;
    case -EBUSY: return (refusals & REFUSE_BUSY) != 0;
    case BLKREPL_ERR_STATE: return (refusals & REFUSE_STATE) != 0;
    case -EINVAL: return (refusals & REFUSE_INVAL) != 0;
    case -EEXIST: return (refusals & REFUSE_EXIST) != 0;
    case -ENOMEM: return takes_memory(d->call) && sim.alloc_failed;
    case -ESHUTDOWN:
        return sim.shutdown && (d->call == CALL_BITMAP_ADD || d->call == CALL_BITMAP_CREATE ||
                                d->call == CALL_BITMAP_TRANSACT);
    default: return false;
    }
}

static int call_with_memory(struct deed *d)
{
    bool makes = d->call == CALL_BITMAP_ADD || d->call == CALL_BITMAP_CREATE;
    blkrepl_bitmap *handle = makes ? NULL : bitmap_handle(d->bitmap);
    bool may_allocate = sim.may_allocate;
    int answer;

    sim.may_allocate = sim.may_allocate || takes_memory(d->call);
    sim.alloc_failed = false;
    inside_calls(d->call);
    answer = makes ? make_it(d) : call_it(d, handle);
    sim.may_allocate = may_allocate;
    return answer;
}

static void settle_all(const struct deed *d, bool sure)
{
    for (uint32_t i = 0; i < d->source_count; i++) {
        oracle_bitmap_settle(d->sources[i], sure);
    }
    oracle_bitmap_settle(d->bitmap, sure);
}

static void count(const struct deed *d, int answer)
{
    sim.counts.bitmaps_refused += answer != 0;
    sim.counts.freezes += answer == 0 && d->call == CALL_BITMAP_FREEZE;
    sim.counts.merges += answer == 0 && d->call == CALL_BITMAP_MERGE;
    sim.counts.loads += answer == 0 && d->call == CALL_BITMAP_LOAD_FINISH;
}

/* It has answered. */
static void answered(struct deed *d, int answer, uint32_t refusals, bool sure)
{
    bool makes = d->call == CALL_BITMAP_ADD || d->call == CALL_BITMAP_CREATE;

    EVENT("bitmap %n: %c answered %r", number(d->bitmap), d->call, NEGATED(answer));
    EXPECT(!sure || bitmap_is_right(d, answer, refusals),
           "bitmap %llu: %s answered %d, refusals %x: %s", number(d->bitmap), call_name(d->call),
           answer, refusals, blkrepl_error_message());
    EXPECT(answer == 0 || blkrepl_error_message()[0] != '\0', "a refusal without a message");
    count(d, answer);
    if (answer == 0 || !sure) {
        oracle_sync_deed(d);
    }
    if (answer != 0 && makes) {
        d->bitmap->used = false;
    } else if (answer != 0) {
        oracle_bitmap_refused(d->bitmap);
    }
    settle_all(d, sure);
}

/* Do it, and compare. */
void bitmap_try(struct deed *d)
{
    bool makes = d->call == CALL_BITMAP_ADD || d->call == CALL_BITMAP_CREATE;
    bool failed = sim.alloc_failed;
    uint32_t refusals;
    uint64_t reentries;
    int answer;

    if (makes) {
        d->bitmap->calling++;
        d->bitmap->begun++;
    } else {
        oracle_bitmap_begin(d->bitmap);
    }
    for (uint32_t i = 0; i < d->source_count; i++) {
        oracle_bitmap_begin(d->sources[i]);
    }
    oracle_bitmap_instant();
    if (makes) {
        oracle_bitmap_init(d);
    }
    refusals = oracle_bitmap_refusals(d);
    if (refusals == 0) {
        oracle_bitmap_apply(d);
    }
    EVENT("bitmap %n: %c %n+%n, granularity %n", number(d->bitmap), d->call, d->offset, d->bytes,
          d->bitmap->granularity);
    reentries = sim.counts.reentries;
    answer = call_with_memory(d);
    answered(d, answer, refusals, sim.counts.reentries == reentries);
    sim.alloc_failed = sim.alloc_failed || failed;
}

/* ---- What to do next ------------------------------------------------------------- */

static void draw_range(struct deed *d)
{
    const struct bitmap *b = d->bitmap;
    uint64_t g = b->granularity;

    d->offset = rng_below(b->now.bytes + 1);
    d->bytes = rng_below((b->now.bytes - d->offset) / (rng_chance(50) ? 16 : 1) + 1);
    if (d->call == CALL_BITMAP_RESET && !rng_chance(20)) {
        d->offset = d->offset / g * g;
        d->bytes = rng_chance(30) ? b->now.bytes - d->offset : d->bytes / g * g;
    } else if (rng_chance(5)) {
        d->bytes = rng_chance(50) ? UINT64_MAX : b->now.bytes - d->offset + 1;
    }
    d->bytes += d->bytes == 0; /* empty ranges: tests/api */
}

static void draw_sources(struct deed *d)
{
    uint32_t most = d->call == CALL_BITMAP_MERGE ? (uint32_t)rng_below(4) : 1;

    while (d->source_count < most) {
        struct bitmap *b = rng_chance(10) ? d->bitmap : bitmap_pick();

        if (b == NULL || (b->now.bytes != d->bitmap->now.bytes && !rng_chance(30)) ||
            !bitmap_has_handle(b)) {
            b = d->bitmap;
        }
        d->sources[d->source_count++] = b;
    }
}

static void draw_size(struct deed *d)
{
    uint64_t most = GRANULES_MAX * d->bitmap->granularity;

    most = d->bitmap->granularity >> 51 != 0 ? BLKREPL_IMAGE_BYTES_MAX : most;
    d->bytes = rng_chance(40) ? d->bitmap->now.bytes + rng_below(3 * d->bitmap->granularity)
                              : draw_bytes();
    d->bytes = d->bytes < most ? d->bytes : most;
}

static void deed_call(enum call call)
{
    struct deed deed = {.call = call, .bitmap = bitmap_pick()};

    if (deed.bitmap == NULL || !bitmap_has_handle(deed.bitmap)) {
        return;
    }
    if (call == CALL_BITMAP_SET || call == CALL_BITMAP_RESET) {
        draw_range(&deed);
    } else if (call == CALL_BITMAP_RESIZE) {
        draw_size(&deed);
    } else if (call == CALL_BITMAP_MERGE || call == CALL_BITMAP_INTERSECT ||
               call == CALL_BITMAP_SUBTRACT) {
        draw_sources(&deed);
    }
    bitmap_try(&deed);
}

/* Calls that only read, all of which the oracle compares; these count. */
static void read_call(enum call call)
{
    struct bitmap *b = bitmap_pick();
    blkrepl_bitmap *handle;
    blkrepl_bitmap_info info = {.struct_size = sizeof info};
    blkrepl_area area;
    uint64_t position = 0;
    uint64_t at;
    uint64_t run;

    if (b == NULL || !bitmap_has_handle(b) || b->now.bytes == 0) {
        return;
    }
    handle = bitmap_handle(b);
    at = rng_below(b->now.bytes);
    inside_calls(call);
    switch ((uint32_t)call) {
    case CALL_BITMAP_QUERY: blkrepl_bitmap_query(handle, &info); break;
    case CALL_BITMAP_GET: blkrepl_bitmap_get(handle, at); break;
    case CALL_BITMAP_NEXT_DIRTY: blkrepl_bitmap_next_dirty(handle, at, at, &run); break;
    case CALL_BITMAP_NEXT_CLEAN: blkrepl_bitmap_next_clean(handle, at, at, &run); break;
    case CALL_BITMAP_NEXT_AREA: blkrepl_bitmap_next_area(handle, at, at, 0, &area); break;
    case CALL_BITMAP_STATUS: blkrepl_bitmap_status(handle, at, 1, &run); break;
    case CALL_BITMAP_ITERATE: blkrepl_bitmap_iterate(handle, &position, &run, 1); break;
    default: blkrepl_bitmap_validate(handle); break;
    }
}

static void bitmap_call(enum call call)
{
    struct bitmap *b;

    switch ((uint32_t)call) {
    case CALL_BITMAP_CREATE: make_one(NULL); return;
    case CALL_BITMAP_ADD: make_one(&sim.disks[rng_below(sim.options.disks)]); return;
    case CALL_BITMAP_NEXT: list_all(&sim.disks[rng_below(sim.options.disks)]); return;
    case CALL_BITMAP_TRANSACT: bitmap_transact(); return;
    case CALL_BITMAP_FIND:
    case CALL_BITMAP_FREE:
        b = bitmap_pick();
        if (b != NULL) {
            (call == CALL_BITMAP_FIND ? find_one : free_one)(b);
        }
        return;
    case CALL_BITMAP_SAVE:
    case CALL_BITMAP_SHA256:
    case CALL_BITMAP_LOAD_BEGIN:
    case CALL_BITMAP_LOAD:
    case CALL_BITMAP_LOAD_ZEROES:
    case CALL_BITMAP_LOAD_ONES:
    case CALL_BITMAP_LOAD_FINISH: bitmap_wire(call); return;
    case CALL_BITMAP_QUERY:
    case CALL_BITMAP_VALIDATE: read_call(call); return;
    default: break;
    }
    if (call >= CALL_BITMAP_GET && call <= CALL_BITMAP_ITERATE) {
        read_call(call);
    } else {
        deed_call(call);
    }
}

static void bitmap_act(void)
{
    static const uint8_t often[] = {CALL_BITMAP_FREEZE,   CALL_BITMAP_FREEZE,  CALL_BITMAP_ABDICATE,
                                    CALL_BITMAP_ABDICATE, CALL_BITMAP_RECLAIM, CALL_BITMAP_RECLAIM,
                                    CALL_BITMAP_ENABLE,   CALL_BITMAP_ENABLE,  CALL_BITMAP_DISABLE,
                                    CALL_BITMAP_CLEAR,    CALL_BITMAP_CLEAR,   CALL_BITMAP_MERGE,
                                    CALL_BITMAP_TRANSACT, CALL_BITMAP_TRANSACT};

    if (rng_chance(sim.options.bitmaps_misuse_percent)) {
        bitmap_misuse();
    } else if (rng_chance(60)) {
        bitmap_call((enum call)often[rng_below(sizeof often)]);
    } else {
        bitmap_call((enum call)rng_between(CALL_BITMAP_CREATE, CALL_BITMAP_LAST));
    }
}

void bitmap_step(void)
{
    struct chance_outer outer;

    if (sim.options.bitmaps_percent == 0) {
        return;
    }
    outer = chance_bitmaps_begin();
    if (rng_chance(sim.options.bitmaps_percent)) {
        bitmap_act();
        let_go();
    }
    chance_bitmaps_end(outer);
}

bool bitmap_wants_inside(uint32_t factor)
{
    uint32_t percent = sim.options.bitmaps_inside_percent * factor;
    struct chance_outer outer;
    bool wants;

    if (percent == 0) {
        return false;
    }
    outer = chance_bitmaps_begin();
    wants = rng_chance(percent);
    chance_bitmaps_end(outer);
    return wants;
}

void bitmap_inside(void)
{
    struct chance_outer outer = chance_bitmaps_begin();

    if (rng_chance(50)) {
        bitmap_act();
    } else {
        bitmap_call((enum call)rng_between(CALL_BITMAP_CREATE, CALL_BITMAP_LAST));
    }
    let_go();
    chance_bitmaps_end(outer);
}

/* ---- The part ---------------------------------------------------------------------- */

static void bitmap_draw(void)
{
    struct sim_options *o = &sim.options;
    struct chance_outer outer = chance_bitmaps_begin();
    bool any = rng_chance(50) && !sim_without(FAULT_BITMAPS);

    sim.instant = 1;
    o->bitmaps_percent = (uint32_t)rng_between(1, rng_chance(60) ? 12 : 100);
    o->bitmaps_inside_percent = rng_chance(60) ? 0 : (uint32_t)rng_between(1, 15);
    o->bitmaps_misuse_percent = rng_chance(80) ? 0 : (uint32_t)rng_between(1, 10);
    o->bitmaps_watch_percent = rng_chance(40) ? 0 : (uint32_t)rng_between(1, 20);
    o->bitmaps_percent *= any;
    o->bitmaps_inside_percent *= any && !sim_without(FAULT_REENTRY);
    o->bitmaps_misuse_percent *= any && !sim_without(FAULT_MISUSE);
    chance_bitmaps_end(outer);
}

static void bitmap_open(void)
{
    struct chance_outer outer;

    if (sim.options.bitmaps_percent == 0) {
        return;
    }
    outer = chance_bitmaps_begin();
    for (uint64_t i = rng_below(10); i > 0; i--) {
        make_one(rng_chance(80) ? &sim.disks[rng_below(sim.options.disks)] : NULL);
        let_go();
    }
    chance_bitmaps_end(outer);
}

/* Some of them at each step; a deed looks at its own, a completion at its mark. */
static void bitmap_watch(void)
{
    struct chance_outer outer;

    if (sim.bitmap_count == 0) {
        return;
    }
    outer = chance_bitmaps_begin();
    for (uint32_t i = 0; i < sim.bitmap_count; i++) {
        if (rng_chance(sim.options.bitmaps_watch_percent)) {
            oracle_bitmap_check(&sim.bitmaps[i]);
        }
    }
    chance_bitmaps_end(outer);
}

static void bitmap_close(uint32_t percent)
{
    struct chance_outer outer = chance_bitmaps_begin();

    for (uint32_t i = 0; i < sim.bitmap_count; i++) {
        oracle_bitmap_check(&sim.bitmaps[i]);
        while (sim.bitmaps[i].used && sim.bitmaps[i].handle_count > 0 && rng_chance(percent)) {
            drop_handle(&sim.bitmaps[i]);
        }
    }
    chance_bitmaps_end(outer);
}

static void bitmap_end(void)
{
    sim.bitmap_count = 0;
    for (uint32_t i = 0; i < BITMAPS_MAX; i++) {
        EXPECT(sim.bitmaps[i].calling == 0 || sim.chance_is_aside, "a call about a bitmap");
        sim.bitmaps[i].used = false;
        sim.bitmaps[i].for_jobs = false;
        sim.bitmaps[i].calling = 0;
        sim.bitmaps[i].begun = 0;
        sim.bitmaps[i].holder = 0;
    }
}

static void bitmap_list(void)
{
    printf("bitmaps: %u%% of the steps, %u%% inside, misuse %u%%\n", sim.options.bitmaps_percent,
           sim.options.bitmaps_inside_percent, sim.options.bitmaps_misuse_percent);
    for (uint32_t i = 0; i < sim.bitmap_count; i++) {
        const struct bitmap *b = &sim.bitmaps[i];

        if (b->used) {
            printf("bitmap %u: disk %d, %llu bytes, granularity %llu, enabled %d, frozen %d, "
                   "loading %d, handles %u\n",
                   i, b->now.disk != NULL ? (int)b->now.disk->index : -1, (ull)b->now.bytes,
                   (ull)b->granularity, b->now.enabled, b->now.frozen, b->now.loading,
                   b->handle_count);
        }
    }
}

const struct part bitmap_part = {.draw = bitmap_draw,
                                 .open = bitmap_open,
                                 .watch = bitmap_watch,
                                 .close = bitmap_close,
                                 .end = bitmap_end,
                                 .list = bitmap_list};
