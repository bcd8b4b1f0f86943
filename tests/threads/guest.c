/* SPDX-License-Identifier: MIT */
/* guest.c - guests: what they ask for, and how they wait for it. */
#include "marks.h"
#include "shared.h"
#include "threads.h"

#include <errno.h>
#include <poll.h>
#include <sched.h>
#include <stdlib.h>

enum sleep_style {
    SLEEP_NOT,     /* poll with timeout 0, and yield                          */
    SLEEP_SHORT,   /* a blocking poll, of a millisecond                       */
    SLEEP_FOREVER, /* one without end: a lost wake-up hangs                   */
    SLEEP_FD,      /* arm, and wait for the descriptor                        */
    SLEEP_STYLES
};

struct guest {
    uint32_t number;
    uint32_t lane;
    uint32_t made;
    uint32_t depth; /* requests at once                                       */
    bool alone;     /* on its lane                                            */
    bool blocking;  /* a thread that waits for each of its requests            */
    uint64_t rng;
    enum sleep_style style;
};

static struct guest guests[GUESTS_MAX];

/* ---- Lanes --------------------------------------------------------------------- */

int live_poll(uint32_t lane, uint64_t timeout_ns)
{
    struct entry *entry = record_call(ENTRY_POLL, lane, 0, timeout_ns, 0, 0);
    int answer;

    me->polls_lane = lane;
    answer = blkrepl_poll(world.ctx, lane, timeout_ns);
    me->polls_lane = UINT32_MAX;
    MUST(answer >= 0 || answer == -EBUSY, "poll answered %d", answer);
    record_answer(entry, answer);
    if (answer == -EBUSY) {
        (void)poll(NULL, 0, 1);
    }
    return answer;
}

void live_wake(uint32_t lane)
{
    struct entry *entry = record_call(ENTRY_WAKE, lane, 0, 0, 0, 0);
    int answer = record_answer(entry, blkrepl_poll_wake(world.ctx, lane));

    MUST(answer == 0, "poll_wake answered %d", answer);
}

void live_sleep(uint32_t lane, int timeout_ms)
{
    struct pollfd pfd = {.fd = blkrepl_poll_fd(world.ctx, lane), .events = POLLIN};
    uint64_t deadline = 0;
    int answer = blkrepl_poll_arm(world.ctx, lane, &deadline);

    MUST(pfd.fd >= 0 && (answer == 0 || answer == 1), "poll_arm answered %d", answer);
    if (answer == 0) {
        (void)poll(&pfd, 1, timeout_ms);
    }
}

/* They are not recorded: nothing that is promised depends on them. */
void live_inside(void)
{
    uint64_t deadline;
    uint32_t lane;
    int answer;

    if (me == NULL || !dice_chance(&me->rng, world.plan.inside_percent)) {
        return;
    }
    lane = (uint32_t)dice_below(&me->rng, world.plan.lanes + 1);
    switch (dice_below(&me->rng, 4)) {
    case 0: answer = blkrepl_poll_wake(world.ctx, lane); break;
    case 1: answer = blkrepl_poll_arm(world.ctx, lane, &deadline) < 0; break;
    case 2: answer = blkrepl_poll(world.ctx, lane, 0) != -EDEADLK; break;
    default: answer = blkrepl_context_free(world.ctx) != -EBUSY; break;
    }
    MUST(answer == 0, "a call from inside a callback or a submit has answered otherwise");
}

/* ---- Guests -------------------------------------------------------------------- */

uint64_t word_of(uint32_t op, uint64_t word)
{
    return (uint64_t)(op + 1) << 32 | word;
}

static void draw_range(struct op *op, uint64_t *rng)
{
    const blkrepl_backend_info *info = &world.plan.disk[op->disk].info;
    uint64_t unit =
        op->bracket || world.plan.quick || dice_chance(rng, 60) ? info->request_alignment : 8;
    uint64_t most = dice_chance(rng, 20) ? OP_BYTES_MAX : 4096 * (dice_below(rng, 3) + 1);
    uint64_t hot = dice_chance(rng, 50) ? 65536 : info->bytes; /* many meet there */

    if (op->opcode == BLKREPL_OP_FLUSH) {
        return;
    }
    op->offset = dice_below(rng, hot / unit) * unit;
    op->bytes = (dice_below(rng, most / unit) + 1) * unit;
    if (op->bytes > info->bytes - op->offset) {
        op->bytes = info->bytes - op->offset;
    }
}

static void op_prepare(struct op *op, uint64_t *rng)
{
    uint32_t number = (uint32_t)(op - world.ops);

    if (op->bracket || (op->opcode != BLKREPL_OP_READ && op->opcode != BLKREPL_OP_WRITE)) {
        return;
    }
    op->buffer = aligned_alloc(4096, (op->bytes + 4095) / 4096 * 4096);
    MUST(op->buffer != NULL, "no memory");
    for (uint64_t i = 0; i < op->bytes / 8; i++) {
        op->buffer[i] =
            op->opcode == BLKREPL_OP_WRITE ? word_of(number, op->offset / 8 + i) : UINT64_MAX;
    }
    op->iov_count = (uint32_t)dice_below(rng, 3) + 1;
    iov_cut((uint8_t *)op->buffer, op->bytes, op->iov_count, op->iov);
}

static void op_draw(struct op *op, const struct guest *g, uint64_t *rng)
{
    static const uint8_t ops[] = {BLKREPL_OP_WRITE,   BLKREPL_OP_WRITE,  BLKREPL_OP_WRITE,
                                  BLKREPL_OP_WRITE,   BLKREPL_OP_WRITE,  BLKREPL_OP_READ,
                                  BLKREPL_OP_READ,    BLKREPL_OP_ZEROES, BLKREPL_OP_ZEROES,
                                  BLKREPL_OP_DISCARD, BLKREPL_OP_FLUSH,  BLKREPL_OP_STATUS};

    op->opcode = ops[dice_below(rng, world.plan.quick ? 7 : 12)];
    op->disk = (uint32_t)dice_below(rng, world.plan.sources);
    op->lane = g->lane;
    op->blocking = g->blocking;
    op->bracket = op->opcode != BLKREPL_OP_READ && op->opcode != BLKREPL_OP_STATUS &&
                  dice_chance(rng, world.plan.beside_percent);
    if (op->opcode == BLKREPL_OP_WRITE || op->opcode == BLKREPL_OP_ZEROES) {
        op->flags = dice_chance(rng, 15) ? BLKREPL_IO_FUA : 0;
    }
    draw_range(op, rng);
    op_prepare(op, rng);
}

/* Go on with one of those that can; the number of those that are not over. */
static uint32_t guest_look(struct guest *g, bool *acted)
{
    uint32_t open = 0;

    for (uint32_t i = 0; i < g->made; i++) {
        struct op *op = &world.ops[g->number * world.plan.ops + i];
        enum op_state state = op_state_of(op);

        open += state != OP_OVER;
        if (*acted || state == OP_OVER) {
            continue;
        }
        if (state == OP_GO) {
            bracket_finish(op, &g->rng);
            *acted = true;
        } else if (op->bracket && state == OP_CALLED && op->cancel_answer == NOT_CANCELLED &&
                   dice_chance(&g->rng, 3)) {
            bracket_cancel(op);
            *acted = true;
        }
    }
    return open;
}

static void guest_wait(const struct guest *g, uint32_t open)
{
    enum sleep_style style = world.plan.host_clock && g->style != SLEEP_FD ? SLEEP_NOT : g->style;

    /* What is called back in another thread's poll wakes nobody here. */
    if (style == SLEEP_FOREVER && (!g->alone || open == 0 || world.plan.shut_early)) {
        style = SLEEP_SHORT;
    }
    if (style == SLEEP_FD) {
        live_sleep(g->lane, 1);
    }
    live_poll(g->lane, style == SLEEP_FOREVER ? BLKREPL_FOREVER
                       : style == SLEEP_SHORT ? 1000000
                                              : 0);
    if (style == SLEEP_NOT) {
        sched_yield();
    }
}

/* One step of a guest; wait: it may sleep.  False: it is over. */
bool guest_step(uint32_t number, bool wait)
{
    struct guest *g = &guests[number];
    bool acted = false;
    uint32_t open = guest_look(g, &acted);
    uint64_t draw = dice_below(&g->rng, 100);

    if (g->made == world.plan.ops && open == 0) {
        return false;
    }
    if (acted) {
        return true;
    }
    if (draw < 3) {
        job_verb(&g->rng);
    } else if (draw < 5) {
        live_wake((uint32_t)dice_below(&g->rng, world.plan.lanes + 1));
    } else if (draw < 7 && !world.plan.one_thread) {
        marks_glance(&g->rng);
    } else if (draw < 65 && g->made < world.plan.ops && open < g->depth) {
        struct op *op = &world.ops[g->number * world.plan.ops + g->made++];

        op_draw(op, g, &g->rng);
        op_make(op);
    } else if (wait) {
        guest_wait(g, open);
    } else {
        live_poll(g->lane, 0);
    }
    return true;
}

void *guest_thread(void *user)
{
    uint32_t number = (uint32_t)(uintptr_t)user;

    me = record_actor(number);
    while (guest_step(number, true)) {
    }
    atomic_fetch_sub(&world.guests_left, 1);
    return NULL;
}

void guest_reset(void)
{
    for (uint32_t i = 0; i < world.plan.guests; i++) {
        guests[i] = (struct guest){.number = i, .rng = world.plan.seed * 977 + i};
        guests[i].lane = 1 + i % world.plan.lanes;
        guests[i].alone = world.plan.lanes >= world.plan.guests;
        guests[i].blocking = dice_chance(&guests[i].rng, world.plan.blocking_percent);
        guests[i].depth = guests[i].blocking ? 1 : (uint32_t)dice_below(&guests[i].rng, 12) + 1;
        guests[i].style = (enum sleep_style)dice_below(&guests[i].rng, SLEEP_STYLES);
    }
}
