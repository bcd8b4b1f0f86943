/* SPDX-License-Identifier: MIT */
/* inside.c - calls of the library from inside what it calls.
 *
 * Every callback, release and function of a backend may call everything; a poll
 * and the freeing of the context are refused there.  Half of the calls are drawn
 * as outside, half evenly, so that each kind of call is made from inside each kind
 * of code: the matrix counts them.  All cells are possible. */
#include "sim.h"

#include <errno.h>
#include <stdio.h>

static const char *const inside_names[INSIDE_COUNT] = {
    [INSIDE_NOTHING] = "nothing",
    [INSIDE_DONE] = "completion",
    [INSIDE_RELEASE] = "release",
    [INSIDE_GO] = "go",
    [INSIDE_EVENT] = "event",
    [INSIDE_SUBMIT] = "submit",
    [INSIDE_CANCEL] = "cancel",
    [INSIDE_CLOSE] = "close",
    [INSIDE_IMAGE_RELEASE] = "image-release",
    [INSIDE_JOB_RELEASE] = "job-release",
    [INSIDE_LOG] = "log",
};

static const char *const call_names[CALL_COUNT] = {
    [CALL_READ] = "read",
    [CALL_WRITE] = "write",
    [CALL_ZEROES] = "write_zeroes",
    [CALL_DISCARD] = "discard",
    [CALL_FLUSH] = "flush",
    [CALL_STATUS] = "status",
    [CALL_BEGIN] = "write_begin",
    [CALL_END] = "write_end",
    [CALL_WRITE_CANCEL] = "write_cancel",
    [CALL_CREATE] = "backup_create",
    [CALL_BACKUP_START] = "backup_start",
    [CALL_START] = "job_start",
    [CALL_PAUSE] = "job_pause",
    [CALL_RESUME] = "job_resume",
    [CALL_SPEED] = "job_set_speed",
    [CALL_CANCEL] = "job_cancel",
    [CALL_FREE] = "job_free",
    [CALL_JOB_QUERY] = "job_query",
    [CALL_OPEN] = "image_open",
    [CALL_CLOSE] = "image_close",
    [CALL_IMAGE_QUERY] = "image_query",
    [CALL_COMPLETE] = "io_complete",
    [CALL_POLL] = "poll",
    [CALL_ARM] = "poll_arm",
    [CALL_FD] = "poll_fd",
    [CALL_WAKE] = "poll_wake",
    [CALL_NOW] = "context_now",
    [CALL_CONTEXT_FREE] = "context_free",
    [CALL_BITMAP_CREATE] = "bitmap_create",
    [CALL_BITMAP_ADD] = "bitmap_add",
    [CALL_BITMAP_FIND] = "bitmap_find",
    [CALL_BITMAP_NEXT] = "bitmap_next",
    [CALL_BITMAP_FREE] = "bitmap_free",
    [CALL_BITMAP_QUERY] = "bitmap_query",
    [CALL_BITMAP_REMOVE] = "bitmap_remove",
    [CALL_BITMAP_ENABLE] = "bitmap_enable",
    [CALL_BITMAP_DISABLE] = "bitmap_disable",
    [CALL_BITMAP_CLEAR] = "bitmap_clear",
    [CALL_BITMAP_MERGE] = "bitmap_merge",
    [CALL_BITMAP_TRANSACT] = "bitmap_transact",
    [CALL_BITMAP_FREEZE] = "bitmap_freeze",
    [CALL_BITMAP_ABDICATE] = "bitmap_abdicate",
    [CALL_BITMAP_RECLAIM] = "bitmap_reclaim",
    [CALL_BITMAP_SET] = "bitmap_set",
    [CALL_BITMAP_RESET] = "bitmap_reset",
    [CALL_BITMAP_INVERT] = "bitmap_invert",
    [CALL_BITMAP_INTERSECT] = "bitmap_intersect",
    [CALL_BITMAP_SUBTRACT] = "bitmap_subtract",
    [CALL_BITMAP_RESIZE] = "bitmap_resize",
    [CALL_BITMAP_GET] = "bitmap_get",
    [CALL_BITMAP_NEXT_DIRTY] = "bitmap_next_dirty",
    [CALL_BITMAP_NEXT_CLEAN] = "bitmap_next_clean",
    [CALL_BITMAP_NEXT_AREA] = "bitmap_next_area",
    [CALL_BITMAP_STATUS] = "bitmap_status",
    [CALL_BITMAP_ITERATE] = "bitmap_iterate",
    [CALL_BITMAP_SAVE] = "bitmap_save",
    [CALL_BITMAP_LOAD_BEGIN] = "bitmap_load_begin",
    [CALL_BITMAP_LOAD] = "bitmap_load",
    [CALL_BITMAP_LOAD_ZEROES] = "bitmap_load_zeroes",
    [CALL_BITMAP_LOAD_ONES] = "bitmap_load_ones",
    [CALL_BITMAP_LOAD_FINISH] = "bitmap_load_finish",
    [CALL_BITMAP_SHA256] = "bitmap_sha256",
    [CALL_BITMAP_VALIDATE] = "bitmap_validate",
    [CALL_JOB_COMPLETE] = "job_complete",
    [CALL_JOB_FINALIZE] = "job_finalize",
    [CALL_JOB_DISMISS] = "job_dismiss",
    [CALL_JOB_FIND] = "job_find",
    [CALL_JOB_NEXT] = "job_next",
    [CALL_GROUP_CREATE] = "group_create",
    [CALL_GROUP_ADD] = "group_add",
    [CALL_GROUP_START] = "group_start",
    [CALL_GROUP_CANCEL] = "group_cancel",
    [CALL_GROUP_FREE] = "group_free",
    [CALL_SNAPSHOT_OPEN] = "snapshot_open",
    [CALL_VERIFY_CREATE] = "verify_create",
    [CALL_VERIFY_START] = "verify_start",
    [CALL_THROTTLE_CREATE] = "throttle_create",
    [CALL_THROTTLE_SET] = "throttle_set",
    [CALL_THROTTLE_QUERY] = "throttle_query",
    [CALL_THROTTLE_FREE] = "throttle_free",
    [CALL_IMAGE_SET_THROTTLE] = "image_set_throttle",
};

/* The library is about to be called. */
void inside_calls(enum call call)
{
    sim.counts.matrix[sim.inside][call]++;
}

/* ---- Calls that need no object of the world ------------------------------------- */

static void open_one(void)
{
    bool may_allocate = sim.may_allocate;
    bool failed = sim.alloc_failed;
    struct being outer;
    blkrepl_image *image;
    int answer;

    sim.may_allocate = true;
    sim.alloc_failed = false;
    answer = blkrepl_image_open_memory(sim.ctx, rng_below(100000), NULL, &image);
    EXPECT(answer == 0 || (answer == -ENOMEM && sim.alloc_failed) ||
               (answer == -ESHUTDOWN && sim.shutdown),
           "open_memory answered %d", answer);
    sim.may_allocate = may_allocate;
    sim.alloc_failed = sim.alloc_failed || failed;
    outer = lanes_enter(DOING_CLOSE, 0);
    blkrepl_image_close(image);
    sim.entry = outer;
}

static void arm_one(void)
{
    uint64_t deadline = 0;
    int answer = blkrepl_poll_arm(sim.ctx, lanes_draw_polled(), &deadline);

    EXPECT(answer == 0 || answer == 1, "poll_arm answered %d", answer);
}

static void refuse(enum call call)
{
    bool poll = call == CALL_POLL;
    int answer;

    inside_calls(call);
    answer = poll ? blkrepl_poll(sim.ctx, lanes_draw(), 0) : blkrepl_context_free(sim.ctx);
    EXPECT(answer == (poll ? -EDEADLK : -EBUSY) && blkrepl_error_message()[0] != '\0',
           "%s from inside %s answered %d", call_names[call], inside_names[sim.inside], answer);
}

static void plain_call(enum call call)
{
    if (call == CALL_POLL || call == CALL_CONTEXT_FREE) {
        refuse(call);
        return;
    }
    inside_calls(call);
    if (call == CALL_OPEN) {
        open_one();
    } else if (call == CALL_ARM) {
        arm_one();
    } else if (call == CALL_FD) {
        EXPECT(blkrepl_poll_fd(sim.ctx, lanes_draw()) >= 0, "no descriptor");
    } else if (call == CALL_WAKE) {
        EXPECT(blkrepl_poll_wake(sim.ctx, lanes_draw()) == 0, "poll_wake fails");
    } else {
        uint64_t now = blkrepl_context_now(sim.ctx);

        EXPECT(now >= sim.heard_ns && now <= sim.now_ns, "the clock runs backwards, or ahead");
        sim.heard_ns = now;
    }
}

/* ---- One call of any kind ------------------------------------------------------- */

static void call_one(enum call call)
{
    bool final = call == CALL_CANCEL || call == CALL_FREE || call == CALL_CLOSE;

    if (final && !rng_chance(25)) {
        return; /* or nothing would be left to call */
    }
    if (call <= CALL_WRITE_CANCEL) {
        guest_call(call);
    } else if (call <= CALL_JOB_QUERY) {
        backup_call(call);
    } else if (call == CALL_CLOSE || call == CALL_IMAGE_QUERY || call == CALL_COMPLETE) {
        disk_call(call);
    } else {
        plain_call(call);
    }
}

/* Few of these happen: each of them counts for more. */
static bool is_rare(enum inside where)
{
    return where == INSIDE_CANCEL || where == INSIDE_CLOSE || where == INSIDE_IMAGE_RELEASE ||
           where == INSIDE_JOB_RELEASE || where == INSIDE_LOG;
}

static bool is_backend(enum inside where)
{
    return where == INSIDE_SUBMIT || where == INSIDE_CANCEL || where == INSIDE_CLOSE;
}

static bool stays_outside(void)
{
    return (sim.quiet && !sim.shutdown) || sim.dead || sim.reenter_depth > 1;
}

static void some_calls(void)
{
    for (uint64_t i = rng_between(1, 3); i > 0; i--) {
        if (rng_chance(50)) {
            world_act(true);
        } else {
            call_one((enum call)rng_below(CALL_PLAIN_COUNT));
        }
    }
}

static void call_inside(enum inside where, void (*calls)(void))
{
    enum inside outer = sim.inside;
    struct being entry;

    sim.inside = where;
    entry = lanes_enter(DOING_HOST, 0);
    sim.backend_depth += is_backend(where);
    sim.reenter_depth++;
    sim.counts.reentries++;
    EVENT("calls from inside %i, depth %n", where, sim.reenter_depth);
    calls();
    sim.reenter_depth--;
    sim.backend_depth -= is_backend(where);
    sim.inside = outer;
    sim.entry = entry;
}

/* The library has called the host: the host may call the library.  When the context
 * is being freed as well, though it refuses most. */
void inside(enum inside where)
{
    uint32_t factor = is_rare(where) ? 4 : 1;

    if (!stays_outside() && rng_chance(sim.options.reenter_percent * factor)) {
        call_inside(where, some_calls);
    }
    if (!stays_outside() && bitmap_wants_inside(factor)) {
        call_inside(where, bitmap_inside);
    }
    if (!stays_outside() && jobs_want_inside(factor)) {
        call_inside(where, jobs_inside);
    }
}

void sim_reenter(void)
{
    inside(INSIDE_EVENT);
}

const char *inside_name(unsigned long long number)
{
    return number < INSIDE_COUNT ? inside_names[number] : "?";
}

const char *call_name(unsigned long long number)
{
    return number < CALL_COUNT ? call_names[number] : "?";
}

/* How much of the matrix was filled; after many runs, what was not. */
void inside_print(void)
{
    uint32_t hit = 0;
    uint32_t missing = 0;

    for (uint32_t where = INSIDE_DONE; where < INSIDE_COUNT; where++) {
        for (uint32_t call = 0; call < CALL_COUNT; call++) {
            hit += sim.counts.matrix[where][call] > 0;
        }
    }
    printf("matrix: %u of %u cells hit", hit, (INSIDE_COUNT - INSIDE_DONE) * CALL_COUNT);
    for (uint32_t i = INSIDE_DONE * CALL_COUNT; i < INSIDE_COUNT * CALL_COUNT && missing < 8; i++) {
        if (sim.counts.seeds >= 10000 && sim.counts.matrix[i / CALL_COUNT][i % CALL_COUNT] == 0) {
            printf("%s %s in %s", missing++ > 0 ? "," : "; not:", call_names[i % CALL_COUNT],
                   inside_names[i / CALL_COUNT]);
        }
    }
    printf("\n");
}
