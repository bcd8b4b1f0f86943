/* SPDX-License-Identifier: MIT */
/* snapshot.c - images of the point in time of a job, opened and closed at any time.
 *
 * To the guest's part such an image is a disk that nobody has: its requests are like
 * others, but what they may end with is told by oracle_snapshot.c. */
#include "sim.h"

#include <errno.h>
#include <string.h>

typedef unsigned long long ull;

static ull number(const struct snapshot *snapshot)
{
    return (ull)(snapshot - sim.snapshots);
}

static void snapshot_release(void *user)
{
    struct snapshot *s = user;

    EVENT("snapshot %n is released", number(s));
    EXPECT(!sim.gone && !s->released && s->disk.image == NULL, "a wrong release of snapshot %llu",
           number(s));
    EXPECT(!s->disk.opened || lanes_in_poll(0), "snapshot %llu released outside of polls of lane 0",
           number(s));
    s->released = true;
    inside(INSIDE_IMAGE_RELEASE);
}

/* ---- Opening --------------------------------------------------------------------------- */

static bool has_requests(const struct snapshot *s)
{
    for (uint32_t i = 0; i < sim.active_count; i++) {
        if (sim.requests[sim.active[i]].snapshot == s) {
            return true;
        }
    }
    return false;
}

static bool has_jobs(const struct snapshot *s)
{
    for (uint32_t i = 0; i < sim.backup_count; i++) {
        const struct backup *b = &sim.backups[i];

        if ((b->through == s || b->through2 == s) && (b->calling || b->release_count == 0)) {
            return true;
        }
    }
    return false;
}

static struct snapshot *slot(void)
{
    for (uint32_t i = 0; i < SNAPSHOTS_MAX; i++) {
        struct snapshot *s = &sim.snapshots[i];

        if (!s->used || (s->released && !s->calling && !has_requests(s) && !has_jobs(s))) {
            return s;
        }
    }
    return NULL;
}

/* A disk like the source, which nobody has. */
static void prepare(struct snapshot *s, struct backup *of)
{
    memset(s, 0, sizeof *s);
    s->used = true;
    s->calling = true;
    s->of = of;
    s->disk.index = DISKS_MAX + (uint32_t)number(s);
    s->disk.bytes = of->source->bytes;
    s->disk.medium = of->start;
    s->disk.align = 1;
    s->disk.read_only = true;
}

/* What the open must answer; 1: who knows. */
static int expected(const struct backup *b, const blkrepl_job_info *info)
{
    uint32_t ending = BLKREPL_JOB_FLAG_CANCELLING | BLKREPL_JOB_FLAG_COMPLETING;

    if (job_is_verify(b) || job_sync(b) != BLKREPL_SYNC_NONE) {
        return -EINVAL;
    }
    if (info->state != BLKREPL_JOB_READY) {
        return info->state == BLKREPL_JOB_RUNNING ? 1 : BLKREPL_ERR_STATE;
    }
    return (info->flags & ending) != 0 ? 1 : 0;
}

static int open_it(struct snapshot *s, struct backup *b)
{
    blkrepl_snapshot_options options = {.struct_size = sizeof options,
                                        .queue_depth =
                                            rng_chance(50) ? 0 : (uint32_t)rng_between(1, 8),
                                        .user = s,
                                        .release = snapshot_release};
    bool may_allocate = sim.may_allocate;
    bool failed = sim.alloc_failed;
    blkrepl_image *image = NULL;
    int answer;

    sim.may_allocate = true;
    sim.alloc_failed = false;
    inside_calls(CALL_SNAPSHOT_OPEN);
    answer = blkrepl_snapshot_open(b->job, &options, &image);
    s->alloc_failed = sim.alloc_failed;
    sim.may_allocate = may_allocate;
    sim.alloc_failed = sim.alloc_failed || failed;
    s->disk.image = image;
    s->disk.opened = answer == 0;
    return answer;
}

static void open_one(struct backup *b)
{
    uint64_t seq;
    blkrepl_job_info info;
    struct snapshot *s;
    int wanted;
    int answer;

    if (b == NULL || !b->started || b->starting) {
        return;
    }
    info = backup_query(b);
    wanted = expected(b, &info);
    seq = sim.seq;
    s = slot(); /* the query may have led to another one */
    if (s == NULL || b->job == NULL) {
        return;
    }
    prepare(s, b);
    answer = open_it(s, b);
    s->calling = false;
    EVENT("snapshot %n of backup %n: %r", number(s), (ull)(b - sim.backups), NEGATED(answer));
    EXPECT((answer == 0) == (s->disk.image != NULL) && (answer == 0) != s->released,
           "snapshot_open answered %d, released %d", answer, s->released);
    EXPECT(answer == wanted || (wanted == 1 && answer == BLKREPL_ERR_STATE) ||
               (wanted == 1 && answer == 0) || sim.seq != seq + 1 ||
               (answer == -ENOMEM && (s->alloc_failed || sim.options.context.job_requests_max > 0 ||
                                      sim.options.context.memory_bytes_max > 0)) ||
               (answer == -ESHUTDOWN && sim.shutdown),
           "snapshot_open answered %d, expected %d: %s", answer, wanted, blkrepl_error_message());
    s->used = answer == 0;
    sim.counts.snapshots += answer == 0;
}

static void close_one(struct snapshot *s)
{
    blkrepl_image *image = s->disk.image;
    struct being outer;

    EVENT("snapshot %n is closed", number(s));
    s->disk.image = NULL;
    inside_calls(CALL_CLOSE);
    outer = lanes_enter(DOING_CLOSE, 0);
    blkrepl_image_close(image);
    sim.entry = outer;
}

/* ---- What to do next --------------------------------------------------------------------- */

struct snapshot *snapshot_pick(void)
{
    uint32_t from = (uint32_t)rng_below(SNAPSHOTS_MAX);

    for (uint32_t i = 0; i < SNAPSHOTS_MAX; i++) {
        struct snapshot *s = &sim.snapshots[(from + i) % SNAPSHOTS_MAX];

        if (s->used && s->disk.image != NULL && !s->calling) {
            return s;
        }
    }
    return NULL;
}

/* One that is of some use. */
static struct backup *pick_job(void)
{
    struct backup *b = NULL;

    for (uint32_t tries = 0; tries < 4; tries++) {
        b = job_pick();
        if (b != NULL && !job_is_verify(b) && job_sync(b) == BLKREPL_SYNC_NONE) {
            return b;
        }
    }
    return rng_chance(10) ? b : NULL;
}

void snapshot_call(enum call call)
{
    (void)call;
    open_one(pick_job());
}

void snapshot_act(void)
{
    static const uint8_t ops[] = {BLKREPL_OP_READ,    BLKREPL_OP_READ,  BLKREPL_OP_READ,
                                  BLKREPL_OP_READ,    BLKREPL_OP_READ,  BLKREPL_OP_STATUS,
                                  BLKREPL_OP_DISCARD, BLKREPL_OP_WRITE, BLKREPL_OP_FLUSH};
    struct snapshot *s = snapshot_pick();
    uint32_t op = ops[rng_below(sizeof ops)];

    if (s == NULL || rng_chance(12)) {
        open_one(pick_job());
    } else if (rng_chance(5)) {
        close_one(s);
    } else if (op != BLKREPL_OP_DISCARD || rng_chance(30)) {
        guest_snapshot(s, op);
    }
}

/* ---- The part ---------------------------------------------------------------------------- */

static void snapshot_draw(void)
{
}

static void snapshot_close(uint32_t percent)
{
    for (uint32_t i = 0; i < SNAPSHOTS_MAX; i++) {
        struct snapshot *s = &sim.snapshots[i];

        if (s->used && s->disk.image != NULL && !s->calling && rng_chance(percent)) {
            close_one(s);
        }
    }
}

static void snapshot_end(void)
{
    for (uint32_t i = 0; i < SNAPSHOTS_MAX; i++) {
        EXPECT(!sim.snapshots[i].used || sim.snapshots[i].released, "snapshot %u is not released",
               i);
        sim.snapshots[i].used = false;
    }
}

const struct part snapshot_part = {
    .draw = snapshot_draw, .close = snapshot_close, .end = snapshot_end};
