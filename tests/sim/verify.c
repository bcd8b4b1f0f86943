/* SPDX-License-Identifier: MIT */
/* verify.c - jobs that compare two images: how they are made.  The second image is the
 * job's target here, though nothing is written to it. */
#include "sim.h"

#include <errno.h>
#include <string.h>

typedef unsigned long long ull;

static ull number(const struct backup *b)
{
    return (ull)(b - sim.backups);
}

static blkrepl_image *first_image(const struct backup *b)
{
    return b->through != NULL ? b->through->disk.image : b->source->image;
}

static blkrepl_image *second_image(const struct backup *b)
{
    return b->through2 != NULL ? b->through2->disk.image : b->target->image;
}

/* Two images that go together: disks, or the snapshot of one. */
static bool draw_images(struct backup *b)
{
    struct snapshot *snapshot = rng_chance(40) ? snapshot_pick() : NULL;

    b->source = &sim.disks[rng_below(sim.options.disks)];
    b->target = &sim.disks[rng_below(sim.options.disks)];
    if (snapshot != NULL && rng_chance(50)) {
        b->through = snapshot;
        b->source = snapshot->of->source;
    } else if (snapshot != NULL) {
        b->through2 = snapshot;
        b->target = snapshot->of->source;
        b->source = rng_chance(60) ? b->target : b->source;
    }
    return first_image(b) != NULL && second_image(b) != NULL && first_image(b) != second_image(b) &&
           b->target->bytes >= b->source->bytes;
}

static struct bitmap *draw_bitmap(const struct backup *b, bool standing)
{
    for (uint32_t tries = 0; tries < 6 && sim.bitmap_count > 0; tries++) {
        struct bitmap *bitmap = &sim.bitmaps[rng_below(sim.bitmap_count)];

        if (bitmap->used && bitmap->calling == 0 && bitmap->handle_count > 0 &&
            bitmap->now.bytes == b->source->bytes && bitmap != b->bitmap &&
            (!standing || bitmap->now.disk == NULL)) {
            return bitmap;
        }
    }
    return NULL;
}

static void draw_options(struct backup *b)
{
    static const char *const names[] = {"a", "b", "verify-3", "v"};
    const struct sim_options *s = &sim.options;
    blkrepl_verify_options *o = &b->verify;

    *o = (blkrepl_verify_options){.struct_size = sizeof *o, .user = b, .release = job_release};
    o->flags = rng_chance(15) ? BLKREPL_VERIFY_FIRST : 0;
    o->name = rng_chance(30) ? names[rng_below(4)] : NULL;
    b->options.name = o->name;
    b->bitmap = rng_chance(30) ? draw_bitmap(b, false) : NULL;
    b->differing = rng_chance(70) ? draw_bitmap(b, true) : NULL;
    o->speed_bytes_per_sec = rng_chance(15) ? draw_speed() : 0;
    o->chunk_bytes_max = rng_chance(50) ? 0 : 65536 * rng_between(1, 5);
    o->workers_max = rng_chance(50) ? 0 : (uint32_t)rng_between(1, 5);
    o->on_error = rng_chance(s->policy_percent) ? (uint32_t)rng_below(5) : 0;
    o->job_flags = rng_chance(s->finale_percent) ? (uint32_t)rng_below(4) : 0;
    b->on_error[BLKREPL_SIDE_SOURCE] = o->on_error;
    b->on_error[BLKREPL_SIDE_TARGET] = o->on_error;
    b->job_flags = o->job_flags;
    b->speed_bytes_per_sec = o->speed_bytes_per_sec;
    b->throttle = rng_chance(s->throttle_percent) ? throttle_pick() : NULL;
}

static int make(struct backup *b, bool start)
{
    blkrepl_verify_options *o = &b->verify;
    bool may_allocate = sim.may_allocate;
    bool failed = sim.alloc_failed;
    int answer;

    if (first_image(b) == NULL || second_image(b) == NULL) {
        b->release_count = 1; /* closed by a call from inside those just made */
        return -EBADF;
    }
    o->only = b->bitmap != NULL ? b->bitmap->handles[0] : NULL;
    o->differing = b->differing != NULL ? b->differing->handles[0] : NULL;
    o->throttle = b->throttle != NULL ? b->throttle->throttle : NULL;
    sim.may_allocate = true;
    sim.alloc_failed = false;
    b->calling = true;
    inside_calls(start ? CALL_VERIFY_START : CALL_VERIFY_CREATE);
    answer = (start ? blkrepl_verify_start : blkrepl_verify_create)(first_image(b), second_image(b),
                                                                    o, &b->job);
    b->calling = false;
    b->alloc_failed = sim.alloc_failed;
    sim.may_allocate = may_allocate;
    sim.alloc_failed = sim.alloc_failed || failed;
    EVENT("verify %n of disk %n and disk %n, started %n: %r", number(b), b->source->index,
          b->target->index, start, NEGATED(answer));
    return answer;
}

static bool is_loading(const struct bitmap *bitmap)
{
    return bitmap != NULL && bitmap->now.loading;
}

static bool may_refuse(const struct backup *b, int answer, enum hold busy, enum hold name)
{
    bool code = b->start_code == answer || b->start_code == 1;

    switch (answer) {
    case -ENOMEM:
        return sim.options.context.job_requests_max > 0 ||
               sim.options.context.memory_bytes_max > 0 || b->alloc_failed;
    case -ESHUTDOWN: return sim.shutdown;
    case -EBUSY: return busy != HOLD_NONE || code;
    case -EEXIST: return name != HOLD_NONE;
    case -EBADF: return first_image(b) == NULL || second_image(b) == NULL;
    case BLKREPL_ERR_STATE: return is_loading(b->bitmap) || is_loading(b->differing) || code;
    default: return false;
    }
}

static void create(struct backup *b, bool start)
{
    uint64_t reentries = sim.counts.reentries;
    enum hold first = b->through == NULL ? backup_hold(b->source) : HOLD_NONE;
    enum hold second = b->through2 == NULL ? backup_hold(b->target) : HOLD_NONE;
    enum hold name = job_name_hold(b, b->options.name);
    int answer;

    b->release_count = 0;
    if (!job_may_start(b)) {
        b->release_count = 1;
        return;
    }
    if (start) {
        job_freeze(b);
        oracle_backup_start(b);
    }
    answer = make(b, start);
    if (sim.counts.reentries != reentries) {
        first = second = name = HOLD_MAYBE;
    }
    if (answer == 0) {
        EXPECT(first != HOLD_SURE && second != HOLD_SURE && name != HOLD_SURE,
               "a verify job of a job's target, or of the name of another one");
        backup_made(b);
    }
    if (start) {
        job_frozen(b, answer == 0, sim.counts.reentries == reentries);
        b->started = answer == 0;
        oracle_backup_started(b, sim.request_count, false);
        b->state_changes += answer == 0;
    }
    EXPECT(answer == 0 || (b->job == NULL && b->release_count == 1 &&
                           may_refuse(b, answer, first > second ? first : second, name)),
           "create of verify job %llu answered %d: %s", number(b), answer, blkrepl_error_message());
}

void verify_do(bool start)
{
    struct backup *b;

    oracle_job_watch();
    if (sim.backup_count >= sim.options.backups || sim_without(FAULT_VERIFY) ||
        sim.options.verify_percent == 0) {
        return;
    }
    b = backup_new(NULL, NULL);
    b->kind = BLKREPL_KIND_VERIFY;
    b->release_count = 1;
    if (!draw_images(b)) {
        sim.backup_count--;
        return;
    }
    draw_options(b);
    create(b, start);
}
