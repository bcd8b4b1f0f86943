/* SPDX-License-Identifier: MIT */
/* search.c - every run of a world, depth first.
 *
 * A state that was met before is not explored again; how many runs lead on from
 * it is known.  So the number of runs is that of all choice sequences, each as
 * different from the others as a replay from the beginning would see it, while
 * the work is that of the different states only. */
#include "small.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define DEPTH_MAX 160
#define TABLE_SIZE 4096 /* at first */
#define SAMPLES_MAX 64
#define SAMPLE_EVERY 4099

struct entry {
    uint64_t hash; /* 0: free */
    uint64_t runs;
};

/* A run that was met, to be replayed from the beginning. */
struct sample {
    uint64_t hash; /* of its end */
    uint32_t length;
    struct move moves[DEPTH_MAX];
};

static struct sample samples[SAMPLES_MAX];

static struct {
    struct entry *table;
    uint64_t table_size; /* a power of two */
    uint64_t table_used;
    bool merge;
    uint32_t first; /* the first two operations, in the menu */
    uint32_t second;
    uint32_t depth;
    uint32_t sample_count;
    uint64_t state_bytes;
    struct move path[DEPTH_MAX];
    struct totals *totals;
} search;

/* ---- States that were met ------------------------------------------------------------ */

static struct entry *table_slot(uint64_t hash)
{
    uint64_t at = hash & (search.table_size - 1);

    while (search.table[at].hash != 0 && search.table[at].hash != hash) {
        at = (at + 1) & (search.table_size - 1);
    }
    return &search.table[at];
}

static void table_clear(void)
{
    free(search.table);
    search.table_size = TABLE_SIZE;
    search.table_used = 0;
    search.table = calloc(search.table_size, sizeof search.table[0]);
    EXPECT(search.table != NULL, "no memory");
}

static void table_grow(void)
{
    struct entry *old = search.table;
    uint64_t size = search.table_size;

    search.table_size *= 2;
    search.table = calloc(search.table_size, sizeof search.table[0]);
    EXPECT(search.table != NULL, "no memory for %llu states", (ull)search.table_size);
    for (uint64_t i = 0; i < size; i++) {
        if (old[i].hash != 0) {
            *table_slot(old[i].hash) = old[i];
        }
    }
    free(old);
}

static void table_add(uint64_t hash, uint64_t runs)
{
    if (search.table_used * 2 > search.table_size) {
        table_grow();
    }
    *table_slot(hash) = (struct entry){.hash = hash, .runs = runs};
    search.table_used++;
}

/* ---- Depth first ----------------------------------------------------------------------- */

/* The context's descriptors are closed with it: bring them back. */
static void reopen(void)
{
    if (run.fd_closed && !state.gone) {
        for (uint32_t lane = 0; lane < world_lanes(); lane++) {
            EXPECT(dup2(run.fds_spare[lane], run.fds[lane]) == run.fds[lane], "dup2 failed");
        }
        run.fd_closed = false;
    }
}

static uint64_t explore(void);

/* One move from the present state, and back; how many runs follow.  The move
 * alone had *inline_count completions inside submit. */
static uint64_t try_move(const struct move *move, uint32_t *inline_count)
{
    uint64_t runs = 0;
    bool applied;

    search.totals->transitions++;
    search.path[search.depth] = *move;
    search.depth++;
    applied = move_apply(move);
    *inline_count = run.inline_count;
    if (applied) {
        uint64_t mark = step_keep();

        runs = explore();
        step_undo(mark);
    } else {
        step_drop();
    }
    search.depth--;
    reopen();
    return runs;
}

/* The same with each completion inside submit failing in turn. */
static uint64_t try_inline_failures(struct move move)
{
    uint64_t runs = 0;
    uint32_t count;

    do {
        move.inline_at++;
        for (move.inline_outcome = OUTCOME_FAIL; move.inline_outcome <= OUTCOME_LANDED;
             move.inline_outcome++) {
            runs += try_move(&move, &count);
        }
    } while (count >= move.inline_at);
    return runs;
}

/* The search goes from one pair of first operations to the next, which keeps the
 * table small; equal states have made as many operations, but rarely others. */
static bool is_ours(const struct move *move)
{
    return move->kind != MOVE_OP || state.ops_used > 1 ||
           move->index == (state.ops_used == 0 ? search.first : search.second);
}

/* Programs of less than two operations belong to one pair. */
static bool is_end_ours(void)
{
    return state.ops_used > 1 || (search.second == 0 && (state.ops_used == 1 || search.first == 0));
}

static bool may_fail_inline(const struct move *move)
{
    bool timeout = move->kind == MOVE_CLOCK && moves_is_timeout();
    uint32_t odd = state.faults_used + state.late_used + (move->late != LATE_NO);

    return run.world->inline_disks != 0 && !timeout && state.faults_used < run.theme->faults_max &&
           odd < run.theme->odd_max &&
           (move->outcome == OUTCOME_OK || move->outcome == OUTCOME_CANCEL);
}

/* Keep some of the runs. */
static void sample_take(void)
{
    struct sample *sample = &samples[search.sample_count];

    if (search.totals->ends % SAMPLE_EVERY == 1 && search.sample_count < SAMPLES_MAX) {
        search.sample_count++;
        sample->hash = step_hash();
        sample->length = search.depth;
        memcpy(sample->moves, search.path, search.depth * sizeof search.path[0]);
    }
}

/* The program may end here; one run more. */
static uint64_t end_here(void)
{
    if (!is_end_ours()) {
        return 0;
    }
    search.totals->ends++;
    sample_take();
    if (search.depth > search.totals->longest) {
        search.totals->longest = search.depth;
    }
    if (step_bytes() > search.state_bytes) {
        search.state_bytes = step_bytes();
    }
    world_finish();
    step_drop();
    reopen();
    return 1;
}

static uint64_t explore_new(void)
{
    struct move moves[MOVES_MAX];
    uint32_t count = moves_list(moves);
    uint64_t runs = 0;

    EXPECT(search.depth + 1 < DEPTH_MAX, "a run that does not end");
    search.totals->states++;
    if (state.gone || moves_quiescent(moves, count)) {
        runs = end_here();
    }
    for (uint32_t i = 0; i < count; i++) {
        if (is_ours(&moves[i])) {
            uint32_t inline_count;

            runs += try_move(&moves[i], &inline_count);
            if (inline_count > 0 && may_fail_inline(&moves[i])) {
                runs += try_inline_failures(moves[i]);
            }
        }
    }
    return runs;
}

/* From the present state on; it is spoiled afterwards. */
static uint64_t explore(void)
{
    uint64_t hash;
    uint64_t runs;
    struct entry *entry;

    if (!search.merge) {
        return explore_new();
    }
    hash = step_hash() | 1;
    entry = table_slot(hash);
    if (entry->hash != 0) {
        search.totals->merged++;
        return entry->runs;
    }
    runs = explore_new();
    table_add(hash, runs);
    return runs;
}

/* ---- How many programs ------------------------------------------------------------------- */

struct handles {
    bool images[2];
    bool job;
    bool shut;
};

static bool program_may(const struct handles *h, const struct op *op)
{
    switch (op->kind) {
    case OP_THROUGH:
    case OP_BRACKET:
    case OP_CLOSE: return !h->shut && h->images[op->disk];
    case OP_BACKUP: return !h->shut && h->images[0] && h->images[1];
    case OP_SHUTDOWN:
    case OP_FREEZE:
    case OP_ABDICATE:
    case OP_RECLAIM:
    case OP_DISABLE:
    case OP_ENABLE:
    case OP_CLEAR: return !h->shut;
    case OP_START:
    case OP_PAUSE:
    case OP_RESUME:
    case OP_CANCEL:
    case OP_SPEED:
    case OP_FREE: break;
    }
    return !h->shut && h->job;
}

/* The sequences of operations that go on from here: each needs its handles. */
static uint64_t count_programs(struct handles h, uint32_t used)
{
    uint64_t count = used > 1 || (search.second == 0 && (used == 1 || search.first == 0));

    for (uint32_t i = 0; i < run.menu_count && used < run.theme->ops_max; i++) {
        const struct op *op = run.menu[i];
        struct handles after = h;

        if (!program_may(&h, op) || (used == 0 && i != search.first) ||
            (used == 1 && i != search.second)) {
            continue;
        }
        after.job = op->kind == OP_BACKUP || (h.job && op->kind != OP_FREE);
        after.shut = op->kind == OP_SHUTDOWN;
        if (op->kind == OP_CLOSE) {
            after.images[op->disk] = false;
        }
        count += count_programs(after, used + 1);
    }
    return count;
}

/* ---- A world ------------------------------------------------------------------------------- */

static void world_close(void)
{
    if (!state.gone) {
        world_finish();
    }
    for (uint32_t lane = 0; lane < world_lanes(); lane++) {
        close(run.fds_spare[lane]);
    }
    EXPECT(arena_canary(), "a bounce buffer was used beyond its window");
}

/* What was reached by saving and undoing must be what a run from the beginning
 * reaches, to the last bit. */
static void samples_replay(void)
{
    for (uint32_t i = 0; i < search.sample_count; i++) {
        world_begin();
        step_keep();
        for (search.depth = 0; search.depth < samples[i].length;) {
            search.path[search.depth] = samples[i].moves[search.depth];
            move_apply(&search.path[search.depth++]);
            step_keep();
        }
        EXPECT(step_hash() == samples[i].hash, "a replay ends in another state");
        world_close();
    }
    search.totals->replayed += search.sample_count;
}

void search_world(uint32_t part, uint32_t parts, bool merge, struct totals *totals)
{
    uint64_t faults = run.faults;
    uint64_t late = run.late;

    search.merge = merge;
    search.totals = totals;
    search.depth = 0;
    search.sample_count = 0;
    search.state_bytes = 0;
    run.searching = true;
    world_begin();
    step_keep();
    for (uint32_t pair = part; pair < run.menu_count * run.menu_count; pair += parts) {
        search.first = pair / run.menu_count;
        search.second = pair % run.menu_count;
        table_clear();
        totals->runs += explore_new();
        totals->programs += count_programs((struct handles){.images = {true, true}}, 0);
    }
    world_close();
    totals->faults += run.faults - faults;
    totals->late += run.late - late;
    totals->state_bytes = search.state_bytes;
    samples_replay();
    run.searching = false;
}

/* The moves that have led here, as --choices takes them. */
void search_path(char *out, size_t bytes)
{
    size_t used = 0;

    out[0] = '\0';
    for (uint32_t i = 0; i < search.depth && used + 32 < bytes; i++) {
        char text[32];

        move_print(&search.path[i], text, sizeof text);
        used += (size_t)snprintf(out + used, bytes - used, "%s%s", i == 0 ? "" : " ", text);
    }
}
