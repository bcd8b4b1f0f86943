/* SPDX-License-Identifier: MIT */
/* oracle_group.c - the jobs of a group have one instant, and are done together or not.
 *
 * With grouped completion none is done unless all are, at any moment; who is cancelled
 * without having been asked to has one in its group that failed or was cancelled.  And no
 * backup of a group holds a write that began after another one had ended which a backup
 * beside it does not hold. */
#include "sim.h"

#include <string.h>

typedef unsigned long long ull;

static ull number(const struct group *group)
{
    return (ull)(group - sim.groups);
}

/* What is known of the members. */
struct outcome {
    uint32_t done;
    uint32_t failed;
    uint32_t cancelled;
    uint32_t alive;
    uint32_t unknown;
    uint32_t asked;
};

/* None is asked twice, so that who is done first is the first to be seen so. */
static struct outcome ask(struct group *g)
{
    struct outcome o = {0};

    for (uint32_t i = 0; i < g->members; i++) {
        struct backup *b = g->list[i];
        blkrepl_job_info info = {.result = 0};

        o.asked += b->cancel_asked;
        if (b->job == NULL) {
            o.unknown++;
            continue;
        }
        info = backup_query(b);
        o.alive += info.state != BLKREPL_JOB_CONCLUDED;
        o.done += info.result == BLKREPL_RESULT_DONE;
        o.failed += info.result == BLKREPL_RESULT_FAILED;
        o.cancelled += info.result == BLKREPL_RESULT_CANCELLED;
    }
    return o;
}

/* ---- One instant ---------------------------------------------------------------------- */

/* Does the target hold the write, as far as one can see?  -1: nobody can say. */
static int holds(const struct backup *b, const struct request *r)
{
    uint32_t old_count = 0;
    uint32_t new_count = 0;

    if (r->op != BLKREPL_OP_WRITE || r->state != REQUEST_OVER || r->result != 0) {
        return -1;
    }
    for (uint64_t at = r->offset; at < r->offset + r->bytes; at++) {
        uint8_t value = request_byte(r, at);

        if (value != b->start[at]) {
            old_count += b->target->medium[at] == b->start[at];
            new_count += b->target->medium[at] == value;
        }
    }
    return old_count > 0 && new_count == 0 ? 0 : new_count > 0 && old_count == 0 ? 1 : -1;
}

static bool is_whole(const struct backup *b)
{
    return !job_is_verify(b) && job_sync(b) == BLKREPL_SYNC_FULL && b->through == NULL &&
           oracle_backup_is_kept(b);
}

static void check_pair(const struct backup *a, const struct backup *b)
{
    for (uint32_t i = 0; i < a->concurrent_count; i++) {
        const struct request *first = &sim.requests[a->concurrent[i].request];

        if (a->concurrent[i].class != CONCURRENT_MAYBE || holds(a, first) != 0) {
            continue;
        }
        for (uint32_t n = 0; n < b->concurrent_count; n++) {
            const struct request *second = &sim.requests[b->concurrent[n].request];

            EXPECT(second->accept_seq <= first->done_seq || holds(b, second) != 1,
                   "backup %llu holds write %d, backup %llu of its group not the earlier %d",
                   (ull)b->job_id, b->concurrent[n].request, (ull)a->job_id,
                   a->concurrent[i].request);
        }
    }
}

static void check_instant(const struct group *g)
{
    for (uint32_t i = 0; i < g->members; i++) {
        for (uint32_t n = 0; n < g->members; n++) {
            if (i != n && is_whole(g->list[i]) && is_whole(g->list[n])) {
                check_pair(g->list[i], g->list[n]);
            }
        }
    }
}

/* ---- All or none ---------------------------------------------------------------------- */

static void check_group(struct group *g)
{
    uint64_t seq = sim.seq;
    uint64_t reentries = sim.counts.reentries;
    struct outcome o = ask(g);
    bool together = (g->flags & BLKREPL_GROUP_INDIVIDUAL) == 0;

    if (sim.seq != seq || sim.counts.reentries != reentries) {
        return;
    }
    EXPECT(!together || o.done == 0 || o.failed + o.cancelled + o.alive == 0,
           "group %llu: %u are done, %u failed, %u cancelled, %u go on", number(g), o.done,
           o.failed, o.cancelled, o.alive);
    EXPECT(o.cancelled == 0 || o.asked > 0 || o.unknown > 0 || sim.shutdown ||
               (together && o.failed > 0),
           "group %llu: %u are cancelled, and nobody has asked for it", number(g), o.cancelled);
    if (o.alive + o.unknown == 0 && !g->checked) {
        g->checked = true;
        sim.counts.groups_done += o.done == g->members;
        sim.counts.groups_failed += o.done < g->members;
        check_instant(g);
    }
}

void oracle_group_watch(void)
{
    for (uint32_t i = 0; i < sim.group_count; i++) {
        struct group *g = &sim.groups[i];

        if (g->started && !g->calling && !g->checked && g->members > 0) {
            check_group(g);
        }
    }
}

/* One call has let all of them go. */
void oracle_group_finalized(const struct backup *b)
{
    struct group *g = b->group != 0 ? &sim.groups[b->group - 1] : NULL;
    uint64_t seq = sim.seq;

    if (g == NULL || (g->flags & BLKREPL_GROUP_INDIVIDUAL) != 0) {
        return;
    }
    for (uint32_t i = 0; i < g->members; i++) {
        struct backup *member = g->list[i];
        uint32_t flags = member->job != NULL ? backup_query(member).flags : 0;

        EXPECT((flags & BLKREPL_JOB_FLAG_FINALIZABLE) == 0 || sim.seq != seq,
               "group %llu was finalized, one of it waits on", number(g));
    }
}
