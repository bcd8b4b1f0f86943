/* SPDX-License-Identifier: MIT */
/* throttle.c - throttles of images and jobs, made, changed and given up at any time. */
#include "sim.h"

#include <errno.h>
#include <string.h>

typedef unsigned long long ull;

static ull number(const struct throttle *throttle)
{
    return (ull)(throttle - sim.throttles);
}

/* ---- Calls ----------------------------------------------------------------------------- */

static uint64_t draw_rate(uint64_t most)
{
    return rng_chance(30) ? 0 : rng_chance(5) ? 1 : rng_between(1, most);
}

static blkrepl_throttle_options draw_limits(void)
{
    blkrepl_throttle_options o = {.struct_size = sizeof o,
                                  .bytes_per_sec = draw_rate(3000000),
                                  .ops_per_sec = draw_rate(2000)};

    o.burst_bytes = rng_chance(50) ? 0 : rng_between(1, 400000);
    o.burst_ops = rng_chance(50) ? 0 : rng_between(1, 40);
    return o;
}

static void make(void)
{
    bool may_allocate = sim.may_allocate;
    bool failed = sim.alloc_failed;
    struct throttle *t = sim.throttles;
    blkrepl_throttle *throttle = NULL;
    int answer;

    while (t < sim.throttles + THROTTLES_MAX && t->used) {
        t++;
    }
    if (t == sim.throttles + THROTTLES_MAX) {
        return;
    }
    *t = (struct throttle){.used = true, .changed = true, .limits = draw_limits()};
    sim.may_allocate = true;
    sim.alloc_failed = false;
    inside_calls(CALL_THROTTLE_CREATE);
    answer = blkrepl_throttle_create(sim.ctx, &t->limits, &throttle);
    EXPECT((answer == 0) == (throttle != NULL) &&
               (answer == 0 || (answer == -ENOMEM && sim.alloc_failed) ||
                (answer == -ESHUTDOWN && sim.shutdown)),
           "throttle_create answered %d", answer);
    sim.may_allocate = may_allocate;
    sim.alloc_failed = sim.alloc_failed || failed;
    t->throttle = throttle;
    t->used = answer == 0;
    EVENT("throttle %n, %n bytes/s, %n ops/s: %r", number(t), t->limits.bytes_per_sec,
          t->limits.ops_per_sec, NEGATED(answer));
    sim.counts.throttles += answer == 0;
}

struct throttle *throttle_pick(void)
{
    struct throttle *t = &sim.throttles[rng_below(THROTTLES_MAX)];

    return t->used && t->throttle != NULL ? t : NULL;
}

static void set(struct throttle *t, const blkrepl_throttle_options *limits)
{
    int answer;

    EVENT("throttle %n: %n bytes/s, %n ops/s", number(t), limits->bytes_per_sec,
          limits->ops_per_sec);
    t->limits = *limits;
    t->changed = true;
    inside_calls(CALL_THROTTLE_SET);
    answer = blkrepl_throttle_set(t->throttle, limits);
    EXPECT(answer == 0, "throttle_set answered %d", answer);
    t->changed = true;
}

/* Give an image one, or none. */
static void use(struct disk *disk, struct throttle *t)
{
    struct throttle *old = sim.image_throttles[disk->index];
    int answer;

    if (disk->image == NULL || disk->read_only) {
        return;
    }
    EVENT("image %n gets throttle %n", disk->index, t != NULL ? number(t) : 99);
    if (old != NULL) {
        old->changed = true;
    }
    sim.image_throttles[disk->index] = t;
    inside_calls(CALL_IMAGE_SET_THROTTLE);
    answer = blkrepl_image_set_throttle(disk->image, t != NULL ? t->throttle : NULL);
    EXPECT(answer == 0 || (answer == -ESHUTDOWN && sim.shutdown), "image_set_throttle answered %d",
           answer);
    if (old != NULL) {
        old->changed = true;
    }
}

static void drop(struct throttle *t)
{
    blkrepl_throttle *throttle = t->throttle;

    EVENT("throttle %n is freed", number(t));
    t->throttle = NULL;
    inside_calls(CALL_THROTTLE_FREE);
    blkrepl_throttle_free(throttle);
}

/* Is it in use by an image or a job? */
static bool is_used(const struct throttle *t)
{
    for (uint32_t i = 0; i < sim.options.disks; i++) {
        if (sim.image_throttles[i] == t) {
            return true;
        }
    }
    for (uint32_t i = 0; i < sim.backup_count; i++) {
        if (sim.backups[i].throttle == t && sim.backups[i].release_count == 0) {
            return true;
        }
    }
    return false;
}

void throttle_call(enum call call)
{
    struct throttle *t = throttle_pick();
    blkrepl_throttle_options limits = draw_limits();
    struct disk *disk = &sim.disks[rng_below(sim.options.disks)];

    if (call == CALL_THROTTLE_CREATE) {
        make();
    } else if (call == CALL_IMAGE_SET_THROTTLE) {
        use(disk, rng_chance(70) ? t : NULL);
    } else if (t == NULL) {
        return;
    } else if (call == CALL_THROTTLE_SET) {
        set(t, &limits);
    } else if (call == CALL_THROTTLE_QUERY) {
        oracle_throttle_look(t);
    } else if (rng_chance(15)) {
        drop(t);
    }
}

void throttle_act(void)
{
    if (!sim_without(FAULT_THROTTLES)) {
        throttle_call(rng_chance(30)
                          ? CALL_IMAGE_SET_THROTTLE
                          : (enum call)rng_between(CALL_THROTTLE_CREATE, CALL_IMAGE_SET_THROTTLE));
    }
}

/* Nobody is to wait for one; false: some whose handle is gone are beyond reach. */
bool throttle_raise(void)
{
    blkrepl_throttle_options none = {.struct_size = sizeof none};

    for (uint32_t i = 0; i < THROTTLES_MAX; i++) {
        struct throttle *t = &sim.throttles[i];

        if (t->used && t->throttle != NULL) {
            set(t, &none);
        } else if (t->used && is_used(t)) {
            return false;
        }
    }
    return true;
}

/* ---- The part ---------------------------------------------------------------------------- */

static void throttle_draw(void)
{
}

/* The next world has none. */
static void throttle_end(void)
{
    memset(sim.throttles, 0, sizeof sim.throttles);
    memset(sim.image_throttles, 0, sizeof sim.image_throttles);
}

static void throttle_watch(void)
{
    for (uint32_t i = 0; i < THROTTLES_MAX; i++) {
        if (sim.throttles[i].used && sim.throttles[i].throttle != NULL) {
            oracle_throttle_look(&sim.throttles[i]);
        }
    }
}

static void throttle_close(uint32_t percent)
{
    for (uint32_t i = 0; i < THROTTLES_MAX; i++) {
        if (sim.throttles[i].used && sim.throttles[i].throttle != NULL && rng_chance(percent)) {
            drop(&sim.throttles[i]);
        }
    }
}

const struct part throttle_part = {
    .draw = throttle_draw, .end = throttle_end, .watch = throttle_watch, .close = throttle_close};
