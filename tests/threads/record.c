/* SPDX-License-Identifier: MIT */
/* record.c - the order of entries into the library.
 *
 * A call gets its ticket when its thread first takes a lock of the library, under that
 * lock: so the tickets of calls are in the order in which the library has seen them.
 * Completions, which take no lock, get theirs right before.  Each thread records
 * for itself; nothing of it orders the threads. */
#include "shared.h"
#include "threads.h"

#include "base/hook.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define ACTORS (GUESTS_MAX + 2 + COMPLETERS)

_Thread_local struct recorder *me;

static struct recorder actors[ACTORS];
static struct entry *merged;

#ifdef BLKREPL_HOOKS
/* A request whose call may poll. */
static bool is_blocking(const struct entry *entry)
{
    struct op op;

    op_unpack(&op, entry->a);
    return entry->kind == ENTRY_REQUEST && op.blocking;
}

static void entered(enum record_entry kind, uint32_t lane)
{
    (void)lane;
    atomic_fetch_add_explicit(&world.locks, 1, memory_order_relaxed);
    if (me == NULL || me->open == NULL) {
        return;
    }
    if (kind == RECORD_PASS) {
        me->open->ticket = me->open->ticket == me->entered ? 0 : me->open->ticket;
        return;
    }
    if (me->open->ticket == 0) {
        me->open->ticket = stamp();
        me->entered = me->open->ticket;
    } else if (kind == RECORD_WOKEN || (kind == RECORD_ENTER && is_blocking(me->open))) {
        /* Not by record_call(): the call is open.  What enters twice is one entry, the first. */
        record_note(ENTRY_WOKEN, me->open->lane, 0, 0, 0, 0);
    }
}

static bool stretched(enum stretch_site site)
{
    const struct plan *plan = &world.plan;

    return me != NULL &&
           dice_chance(&me->rng, site == STRETCH_QUICK_AGAIN && plan->again_percent > 0
                                     ? plan->again_percent
                                     : plan->stretch_percent);
}
#endif

bool record_has_hook(void)
{
#ifdef BLKREPL_HOOKS
    return true;
#else
    return false;
#endif
}

static uint64_t now(void)
{
    struct timespec t;

    if (world.plan.host_clock) {
        return atomic_load_explicit(&world.now_ns, memory_order_relaxed);
    }
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000 + (uint64_t)t.tv_nsec;
}

void record_begin(struct plan *plan)
{
    for (uint32_t i = 0; i < ACTORS; i++) {
        actors[i].count = 0;
        actors[i].full = false;
        actors[i].open = NULL;
        actors[i].index = i;
        actors[i].polls_lane = UINT32_MAX;
        actors[i].rng = plan->seed * 64 + i;
        if (actors[i].entries == NULL) {
            actors[i].entries = malloc(ENTRIES_MAX * sizeof(struct entry));
            MUST(actors[i].entries != NULL, "no memory");
        }
    }
#ifdef BLKREPL_HOOKS
    blkrepl__record_hook = entered;
    blkrepl__stretch_hook = plan->stretch_percent + plan->again_percent > 0 ? stretched : NULL;
#endif
}

struct recorder *record_actor(uint32_t index)
{
    return &actors[index];
}

static struct entry *add(enum entry_kind kind, uint32_t lane, uint32_t object)
{
    struct entry *entry = &me->entries[me->count];

    if (me->count + 1 < ENTRIES_MAX) {
        me->count++;
    } else {
        me->full = true; /* the last one is overwritten */
    }
    *entry = (struct entry){
        .kind = kind, .thread = me->index, .lane = lane, .object = object, .now_ns = now()};
    return entry;
}

struct entry *record_call(enum entry_kind kind, uint32_t lane, uint32_t object, uint64_t a,
                          uint64_t b, uint64_t c)
{
    struct entry *entry = add(kind, lane, object);

    entry->a = a;
    entry->b = b;
    entry->c = c;
    if (kind == ENTRY_COMPLETE || !record_has_hook()) {
        entry->ticket = stamp();
    }
    me->open = entry;
    me->entered = 0;
    return entry;
}

int record_answer(struct entry *entry, int answer)
{
    if (entry->ticket == 0) {
        entry->ticket = stamp();
    }
    entry->answer = answer;
    me->open = NULL;
    return answer;
}

void record_note(enum entry_kind kind, uint32_t lane, uint32_t object, uint64_t a, uint64_t b,
                 int answer)
{
    struct entry *entry = add(kind, lane, object);

    entry->ticket = stamp();
    entry->a = a;
    entry->b = b;
    entry->answer = answer;
}

static int by_ticket(const void *left, const void *right)
{
    const struct entry *a = left;
    const struct entry *b = right;

    return a->ticket < b->ticket ? -1 : a->ticket > b->ticket;
}

bool record_merge(struct entry **entries, uint32_t *count)
{
    bool whole = true;

    *count = 0;
    free(merged);
    merged = malloc(ACTORS * ENTRIES_MAX * sizeof *merged);
    MUST(merged != NULL, "no memory");
    for (uint32_t i = 0; i < ACTORS; i++) {
        memcpy(merged + *count, actors[i].entries, actors[i].count * sizeof *merged);
        *count += actors[i].count;
        whole = whole && !actors[i].full;
    }
    qsort(merged, *count, sizeof *merged, by_ticket);
    *entries = merged;
    return whole;
}

/* ---- Files ------------------------------------------------------------------- */

static const char *const kinds[ENTRY_KINDS] = {
    "request", "end",  "write_cancel", "poll", "woken",    "wake",  "complete",
    "backup",  "verb", "close",        "free", "callback", "event", "marks"};

void record_save(const char *path, const struct plan *plan, const struct entry *entries,
                 uint32_t count)
{
    FILE *file = fopen(path, "w");

    if (file == NULL) {
        perror(path);
        return;
    }
    fprintf(file, "blkrepl-threads seed %" PRIu64 " one %d guests %u lanes %u\n", plan->seed,
            plan->one_thread, plan->guests, plan->lanes);
    for (uint32_t i = 0; i < count; i++) {
        const struct entry *e = &entries[i];

        fprintf(file,
                "%s thread %u lane %u object %u: %" PRIu64 " %" PRIu64 " %" PRIu64 " at %" PRIu64
                " answered %d\n",
                kinds[e->kind], e->thread, e->lane, e->object, e->a, e->b, e->c, e->now_ns,
                e->answer);
    }
    fclose(file);
}

static bool read_entry(FILE *file, struct entry *e)
{
    char kind[16];
    int fields =
        fscanf(file,
               " %15s thread %" SCNu32 " lane %" SCNu32 " object %" SCNu32 ": %" SCNu64 " %" SCNu64
               " %" SCNu64 " at %" SCNu64 " answered %d",
               kind, &e->thread, &e->lane, &e->object, &e->a, &e->b, &e->c, &e->now_ns, &e->answer);

    for (e->kind = 0; e->kind < ENTRY_KINDS && strcmp(kind, kinds[e->kind]) != 0; e->kind++) {
    }
    return fields == 9 && e->kind < ENTRY_KINDS;
}

struct entry *record_load(const char *path, struct plan *plan, uint32_t *count)
{
    FILE *file = fopen(path, "r");
    uint64_t seed;
    uint32_t guests;
    uint32_t lanes;
    int one;
    struct entry *entries = malloc(ACTORS * ENTRIES_MAX * sizeof *entries);

    MUST(file != NULL && entries != NULL, "%s cannot be read", path);
    MUST(fscanf(file, "blkrepl-threads seed %" SCNu64 " one %d guests %" SCNu32 " lanes %" SCNu32,
                &seed, &one, &guests, &lanes) == 4,
         "%s is no log of this program", path);
    plan_draw(plan, seed, one != 0, guests, lanes);
    for (*count = 0; *count < ACTORS * ENTRIES_MAX && read_entry(file, &entries[*count]);) {
        entries[*count].ticket = *count + 1;
        ++*count;
    }
    fclose(file);
    return entries;
}
