/* SPDX-License-Identifier: MIT */
/* group.c - jobs that start at one instant, and mostly end together. */
#include "sim.h"

#include <errno.h>
#include <string.h>

typedef unsigned long long ull;

static ull number(const struct group *group)
{
    return (ull)(group - sim.groups);
}

/* ---- Members ------------------------------------------------------------------------ */

/* It was cancelled or freed before the start: nobody of the group any more. */
void group_left(struct backup *b)
{
    struct group *g = b->group != 0 ? &sim.groups[b->group - 1] : NULL;
    uint32_t kept = 0;

    if (g == NULL || b->started) {
        return;
    }
    for (uint32_t i = 0; i < g->members; i++) {
        if (g->list[i] != b) {
            g->list[kept++] = g->list[i];
        }
    }
    g->members = kept;
    g->unsure = g->unsure || g->calling;
    b->group = 0;
}

static void all_leave(struct group *g)
{
    while (!g->started && g->members > 0) {
        g->list[--g->members]->group = 0;
    }
}

static struct group *pick(void)
{
    for (uint32_t tries = 0; tries < 3 && sim.group_count > 0; tries++) {
        struct group *g = &sim.groups[rng_below(sim.group_count)];

        if (g->group != NULL && !g->calling) {
            return g;
        }
    }
    return NULL;
}

/* ---- Calls ---------------------------------------------------------------------------- */

static struct group *make(void)
{
    bool may_allocate = sim.may_allocate;
    bool failed = sim.alloc_failed;
    struct group *g;
    int answer;

    if (sim.group_count == GROUPS_MAX) {
        return NULL;
    }
    g = &sim.groups[sim.group_count++];
    *g = (struct group){.flags = rng_chance(35) ? BLKREPL_GROUP_INDIVIDUAL : 0, .calling = true};
    sim.may_allocate = true;
    sim.alloc_failed = false;
    inside_calls(CALL_GROUP_CREATE);
    answer = blkrepl_group_create(sim.ctx, g->flags, &g->group);
    EVENT("group %n, flags %n: %r", number(g), g->flags, NEGATED(answer));
    EXPECT((answer == 0) == (g->group != NULL) &&
               (answer == 0 || (answer == -ENOMEM && sim.alloc_failed) ||
                (answer == -ESHUTDOWN && sim.shutdown)),
           "group_create answered %d", answer);
    sim.may_allocate = may_allocate;
    sim.alloc_failed = sim.alloc_failed || failed;
    g->calling = false;
    return answer == 0 ? g : NULL;
}

static void add(struct group *g, struct backup *b)
{
    uint64_t reentries = sim.counts.reentries;
    bool legal;
    int answer;

    if (b == NULL || b->job == NULL || b->starting || g->members == MEMBERS_MAX) {
        return;
    }
    legal = !g->started && b->group == 0 && backup_query(b).state == BLKREPL_JOB_CREATED;
    if (b->job == NULL || g->group == NULL || sim.counts.reentries != reentries) {
        return;
    }
    g->calling = true;
    b->starting = true;
    inside_calls(CALL_GROUP_ADD);
    answer = blkrepl_group_add(g->group, b->job);
    b->starting = false;
    g->calling = false;
    EVENT("group %n gets backup %n: %r", number(g), (ull)(b - sim.backups), NEGATED(answer));
    EXPECT(answer == (legal ? 0 : BLKREPL_ERR_STATE) || (answer == -ESHUTDOWN && sim.shutdown) ||
               sim.counts.reentries != reentries,
           "group_add answered %d, legal %d", answer, legal);
    if (answer == 0) {
        b->group = (uint32_t)number(g) + 1;
        b->group_place = g->members;
        g->list[g->members++] = b;
    }
}

static bool may_start(const struct group *g)
{
    for (uint32_t i = 0; i < g->members; i++) {
        if (!job_may_start(g->list[i]) || g->list[i]->starting || g->list[i]->verbs > 0) {
            return false;
        }
    }
    return true;
}

/* What the start may be refused with; 0: it must succeed. */
static int begin(struct group *g, bool *idle)
{
    int code = g->started || g->members == 0 ? BLKREPL_ERR_STATE : 0;

    for (uint32_t i = 0; !g->started && i < g->members; i++) {
        struct backup *b = g->list[i];

        idle[i] = sim.depth == 0 && sim.reenter_depth == 0 &&
                  b->source->in_flight < b->source->info.queue_depth;
        job_freeze(b);
        code = b->start_code != 0 ? b->start_code : code;
        oracle_backup_start(b);
    }
    return code;
}

static void end(struct group *g, int answer, bool sure, uint32_t requests, const bool *idle)
{
    for (uint32_t i = 0; i < g->members; i++) {
        struct backup *b = g->list[i];

        b->started = answer == 0;
        b->start_code = answer == 0 && sure ? 0 : b->start_code;
        job_frozen(b, answer == 0, sure);
        oracle_backup_started(b, requests, idle[i]);
        b->state_changes += answer == 0;
    }
}

static void start(struct group *g)
{
    uint64_t reentries = sim.counts.reentries;
    uint32_t requests = sim.request_count;
    bool idle[MEMBERS_MAX] = {false};
    bool again = g->started;
    bool sure;
    int answer;
    int code;

    if (!again && !may_start(g)) {
        return;
    }
    g->calling = true;
    g->unsure = false;
    code = begin(g, idle);
    inside_calls(CALL_GROUP_START);
    answer = blkrepl_group_start(g->group);
    sure = sim.counts.reentries == reentries && !g->unsure;
    EVENT("group %n of %n starts: %r", number(g), g->members, NEGATED(answer));
    EXPECT(!sure || (code == 0 ? answer == 0 : answer != 0) ||
               (answer == -ESHUTDOWN && sim.shutdown),
           "group_start answered %d, expected %d", answer, code);
    if (!again) {
        end(g, answer, sure, requests, idle);
        g->started = answer == 0;
        sim.counts.groups += answer == 0;
    }
    g->calling = false;
}

/* Is there one that has not concluded?  2: who knows. */
static int any_alive(struct group *g)
{
    int alive = 0;

    for (uint32_t i = 0; i < g->members; i++) {
        struct backup *b = g->list[i];

        if (b->job == NULL) {
            alive = alive == 0 ? 2 : alive;
        } else if (backup_query(b).state != BLKREPL_JOB_CONCLUDED) {
            return 1;
        }
    }
    return alive;
}

static void cancel(struct group *g)
{
    uint64_t reentries = sim.counts.reentries;
    uint32_t flags = rng_chance(50) ? BLKREPL_CANCEL_FORCE : 0;
    int alive = any_alive(g);
    int answer;

    if (g->group == NULL || g->calling) {
        return; /* a call from inside those queries has freed it, or is about to start it */
    }
    for (uint32_t i = 0; i < g->members; i++) {
        g->list[i]->cancel_asked = true;
    }
    g->calling = true;
    inside_calls(CALL_GROUP_CANCEL);
    answer = blkrepl_group_cancel(g->group, flags);
    g->calling = false;
    EVENT("group %n is cancelled: %r", number(g), NEGATED(answer));
    EXPECT(alive == 2 || sim.counts.reentries != reentries ||
               answer == (alive == 1 ? 0 : BLKREPL_ERR_STATE),
           "group_cancel answered %d, alive %d", answer, alive);
    if (!g->started) {
        all_leave(g);
    }
}

static void drop(struct group *g)
{
    blkrepl_group *group = g->group;

    EVENT("group %n is freed, started %n", number(g), g->started);
    g->group = NULL;
    all_leave(g);
    inside_calls(CALL_GROUP_FREE);
    blkrepl_group_free(group);
}

/* ---- What to do next ------------------------------------------------------------------ */

static void add_new(struct group *g)
{
    uint32_t before = sim.backup_count;

    if (rng_chance(sim.options.verify_percent / 4)) {
        verify_do(false);
    } else {
        backup_call(CALL_CREATE);
    }
    if (sim.backup_count > before && g->group != NULL && !g->calling &&
        sim.backups[before].created) {
        add(g, &sim.backups[before]);
    }
}

/* Jobs of this moment, all of them. */
static void make_and_start(void)
{
    struct group *g = make();

    for (uint64_t i = rng_between(1, 3); g != NULL && i > 0; i--) {
        if (g->group != NULL && !g->calling) {
            add_new(g);
        }
    }
    if (g != NULL && g->group != NULL && !g->calling && rng_chance(85)) {
        start(g);
    }
}

void group_call(enum call call)
{
    struct group *g = call == CALL_GROUP_CREATE ? NULL : pick();

    if (call == CALL_GROUP_CREATE) {
        make();
    } else if (g == NULL) {
        return;
    } else if (call == CALL_GROUP_ADD) {
        add(g, job_pick());
    } else if (call == CALL_GROUP_START) {
        start(g);
    } else if (call == CALL_GROUP_CANCEL) {
        if (rng_chance(40)) {
            cancel(g);
        }
    } else if (rng_chance(40)) {
        drop(g);
    }
}

void group_act(void)
{
    if (sim_without(FAULT_GROUPS)) {
        return;
    }
    if (rng_chance(50)) {
        make_and_start();
    } else {
        group_call((enum call)rng_between(CALL_GROUP_CREATE, CALL_GROUP_FREE));
    }
}

void group_drop_all(uint32_t percent)
{
    for (uint32_t i = 0; i < sim.group_count; i++) {
        if (sim.groups[i].group != NULL && !sim.groups[i].calling && rng_chance(percent)) {
            drop(&sim.groups[i]);
        }
    }
}
