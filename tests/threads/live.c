/* SPDX-License-Identifier: MIT */
/* live.c - one run with real threads: guests, each on a lane, and the control thread.
 *
 * The same steps are taken by a single thread in some runs, which then have one
 * order of everything and must replay to exactly the same answers. */
#include "shared.h"
#include "threads.h"

#include <errno.h>
#include <poll.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define NOT_CANCELLED 1000

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
    bool over;
    bool blocking; /* a thread that waits for each of its requests            */
    uint64_t rng;
    enum sleep_style style;
};

static struct guest guests[GUESTS_MAX];

/* ---- Callbacks ----------------------------------------------------------------- */

static struct vdisk *disk_of(const struct op *op)
{
    return &world.disks[op->disk];
}

bool op_writes(const struct op *op)
{
    return op->opcode == BLKREPL_OP_WRITE || op->opcode == BLKREPL_OP_ZEROES ||
           op->opcode == BLKREPL_OP_DISCARD;
}

static void claim(const struct op *op, bool take)
{
    if (op_writes(op)) {
        vdisk_claim(disk_of(op), op->offset, op->bytes, take);
    }
}

/* A bracket that waits: is it to be written, or to be cancelled?  A host that cancels
 * has to agree on that with its own go. */
static bool keep(struct op *op, unsigned what)
{
    unsigned none = KEEP_NONE;

    return atomic_compare_exchange_strong(&op->keep, &none, what);
}

static void op_called_back(struct op *op, int result)
{
    uint32_t number = (uint32_t)(op - world.ops);

    MUST(me != NULL && (me->polls_lane == op->lane || me->polls_lane == LANE_ANY),
         "op %u is called back outside of a poll of its lane %u", number, op->lane);
    MUST(atomic_fetch_add_explicit(&op->callbacks, 1, memory_order_relaxed) == 0 &&
             atomic_load_explicit(&op->state, memory_order_relaxed) == OP_CALLED,
         "op %u is called back twice", number);
    record_note(ENTRY_CALLBACK, op->lane, number, 0, 0, result);
}

static void op_done(void *user, int result)
{
    struct op *op = user;

    op_called_back(op, result);
    op->result = result;
    op->end = stamp();
    atomic_store_explicit(&op->state, OP_OVER, memory_order_release);
}

static void op_go(void *user, int result)
{
    struct op *op = user;

    op_called_back(op, result);
    op->result = result;
    op->end = stamp();
    if (result == 0 && keep(op, KEEP_WRITE)) {
        claim(op, true);
    }
    atomic_store_explicit(&op->state, result == 0 ? OP_GO : OP_OVER, memory_order_release);
}

static void op_release(void *user)
{
    struct op *op = user;

    atomic_fetch_add_explicit(&op->releases, 1, memory_order_relaxed);
}

static enum op_state state_of(struct op *op)
{
    return (enum op_state)atomic_load_explicit(&op->state, memory_order_acquire);
}

/* ---- Calls --------------------------------------------------------------------- */

static int live_poll(uint32_t lane, uint64_t timeout_ns)
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

static void live_wake(uint32_t lane)
{
    struct entry *entry = record_call(ENTRY_WAKE, lane, 0, 0, 0, 0);
    int answer = record_answer(entry, blkrepl_poll_wake(world.ctx, lane));

    MUST(answer == 0, "poll_wake answered %d", answer);
}

static void sleep_on_fd(uint32_t lane, int timeout_ms)
{
    struct pollfd pfd = {.fd = blkrepl_poll_fd(world.ctx, lane), .events = POLLIN};
    uint64_t deadline = 0;
    int answer = blkrepl_poll_arm(world.ctx, lane, &deadline);

    MUST(pfd.fd >= 0 && (answer == 0 || answer == 1), "poll_arm answered %d", answer);
    if (answer == 0) {
        (void)poll(&pfd, 1, timeout_ms);
    }
}

uint32_t iov_cut(uint8_t *buffer, uint64_t bytes, uint32_t count, blkrepl_iovec *iov)
{
    uint64_t at = 0;

    for (uint32_t i = 0; i < count; i++) {
        uint64_t part = i + 1 == count ? bytes - at : (bytes - at) / 16 * 8;

        iov[i] = (blkrepl_iovec){.base = buffer + at, .len = part};
        at += part;
    }
    return count;
}

int request_call(blkrepl_image *image, struct op *op, const blkrepl_completion *done)
{
    switch (op->opcode) {
    case BLKREPL_OP_READ:
        return blkrepl_image_read(image, op->lane, op->offset, op->iov, op->iov_count, 0, done);
    case BLKREPL_OP_WRITE:
        return blkrepl_image_write(image, op->lane, op->offset, op->iov, op->iov_count, op->flags,
                                   done);
    case BLKREPL_OP_ZEROES:
        return blkrepl_image_write_zeroes(image, op->lane, op->offset, op->bytes, op->flags, done);
    case BLKREPL_OP_DISCARD:
        return blkrepl_image_discard(image, op->lane, op->offset, op->bytes, 0, done);
    case BLKREPL_OP_FLUSH: return blkrepl_image_flush(image, op->lane, done);
    default: break;
    }
    return blkrepl_image_status(image, op->lane, op->offset, op->bytes, op->extents, 4, done);
}

static int wait_call(struct op *op, const blkrepl_bracket *what)
{
    blkrepl_image *image = disk_of(op)->image;

    if (op->bracket) {
        return blkrepl_write_begin_wait(image, what, &op->token);
    }
    switch (op->opcode) {
    case BLKREPL_OP_READ:
        return blkrepl_image_read_wait(image, op->lane, op->offset, op->iov, op->iov_count, 0);
    case BLKREPL_OP_WRITE:
        return blkrepl_image_write_wait(image, op->lane, op->offset, op->iov, op->iov_count,
                                        op->flags);
    case BLKREPL_OP_ZEROES:
        return blkrepl_image_write_zeroes_wait(image, op->lane, op->offset, op->bytes, op->flags);
    case BLKREPL_OP_DISCARD:
        return blkrepl_image_discard_wait(image, op->lane, op->offset, op->bytes, 0);
    case BLKREPL_OP_FLUSH: return blkrepl_image_flush_wait(image, op->lane);
    default: break;
    }
    return blkrepl_image_status_wait(image, op->lane, op->offset, op->bytes, op->extents, 4);
}

static int op_call(struct op *op)
{
    blkrepl_completion done = {
        .fn = op->bracket ? op_go : op_done, .user = op, .release = op_release};
    blkrepl_bracket what = {.struct_size = sizeof what,
                            .opcode = op->opcode,
                            .offset = op->offset,
                            .bytes = op->bytes,
                            .lane = op->lane,
                            .flags = op->flags};

    if (op->blocking) {
        return wait_call(op, &what);
    }
    return op->bracket ? blkrepl_write_begin(disk_of(op)->image, &what, &done, &op->token)
                       : request_call(disk_of(op)->image, op, &done);
}

/* The call has answered: a request is over or goes on in its callback. */
static void op_answered(struct op *op)
{
    uint32_t number = (uint32_t)(op - world.ops);
    int answer = op->answer;

    if (answer == 0 && op->bracket) {
        claim(op, true);
        atomic_store_explicit(&op->state, OP_GO, memory_order_release);
    }
    if (answer >= 0) {
        MUST(answer == 0 || (answer == BLKREPL_WAIT && op->bracket), "op %u answered %d", number,
             answer);
        return;
    }
    MUST(answer == -EAGAIN || (answer == -ESHUTDOWN && atomic_load(&world.shut)),
         "op %u answered %d: %s", number, answer, blkrepl_error_message());
    MUST(atomic_load(&op->releases) == 1 && atomic_load(&op->callbacks) == 0,
         "op %u was refused, %u releases", number, atomic_load(&op->releases));
    op->result = answer;
    op->end = stamp();
    atomic_store_explicit(&op->state, OP_OVER, memory_order_release);
}

/* A blocking call has returned: its answer is the result, or the GO. */
static void op_waited(struct op *op)
{
    bool go = op->answer == 0 && op->bracket;

    MUST(op->answer <= 0 && (op->token == 0) == !go, "op %u answered %d, token %llu",
         (uint32_t)(op - world.ops), op->answer, (unsigned long long)op->token);
    if (go) {
        claim(op, true);
    }
    op->result = op->answer;
    op->end = stamp();
    atomic_store_explicit(&op->state, go ? OP_GO : OP_OVER, memory_order_release);
}

static void op_make(struct op *op)
{
    struct entry *entry;

    atomic_store_explicit(&op->state, OP_CALLED, memory_order_relaxed);
    entry = record_call(ENTRY_REQUEST, op->lane, (uint32_t)(op - world.ops), op_pack(op),
                        op->offset, op->bytes);
    op->begin = stamp();
    if (op->blocking) {
        me->polls_lane = op->lane;
        op->answer = record_answer(entry, op_call(op));
        me->polls_lane = UINT32_MAX;
        op_waited(op);
    } else {
        op->answer = record_answer(entry, op_call(op));
        op_answered(op);
    }
}

/* ---- Guests -------------------------------------------------------------------- */

uint64_t word_of(uint32_t op, uint64_t word)
{
    return (uint64_t)(op + 1) << 32 | word;
}

static void draw_range(struct op *op, uint64_t *rng)
{
    const blkrepl_backend_info *info = &world.plan.disk[op->disk].info;
    uint64_t unit = op->bracket || dice_chance(rng, 60) ? info->request_alignment : 8;
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

    op->opcode = ops[dice_below(rng, 12)];
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

/* It has got its GO: write, or give it up. */
static void bracket_finish(struct op *op, uint64_t *rng)
{
    uint32_t number = (uint32_t)(op - world.ops);
    int result = dice_chance(rng, 8) ? -EIO : 0;
    struct entry *entry;
    int answer;

    if (dice_chance(rng, 8)) {
        claim(op, false);
        op->result = -ECANCELED;
        entry = record_call(ENTRY_WRITE_CANCEL, op->lane, number, 0, 0, 0);
        answer = record_answer(entry, blkrepl_write_cancel(world.ctx, op->token));
    } else {
        if (op_writes(op)) {
            vdisk_host_writes(disk_of(op), number);
        }
        claim(op, false);
        op->result = result;
        entry = record_call(ENTRY_END, op->lane, number, (uint64_t)-result, 0, 0);
        answer =
            record_answer(entry, blkrepl_write_end(world.ctx, op->token, result, NULL, 0, NULL));
    }
    MUST(answer == 0, "the end of bracket %u answered %d", number, answer);
    op->end = stamp();
    atomic_store_explicit(&op->state, OP_OVER, memory_order_release);
}

static void bracket_cancel(struct op *op)
{
    uint32_t number = (uint32_t)(op - world.ops);
    struct entry *entry;

    if (!keep(op, KEEP_CANCEL)) {
        return; /* it has just got its GO */
    }
    entry = record_call(ENTRY_WRITE_CANCEL, op->lane, number, 0, 0, 0);
    op->cancel_answer = record_answer(entry, blkrepl_write_cancel(world.ctx, op->token));
    MUST(op->cancel_answer == 0 || op->cancel_answer == BLKREPL_WAIT ||
             op->cancel_answer == -ENOENT,
         "write_cancel answered %d", op->cancel_answer);
    if (op->cancel_answer != 0) {
        return; /* go runs */
    }
    while (state_of(op) != OP_GO) { /* go was entered, by another thread */
        sched_yield();
    }
    op->result = -ECANCELED;
    op->end = stamp();
    atomic_store_explicit(&op->state, OP_OVER, memory_order_release);
}

/* Go on with one of those that can; the number of those that are not over. */
static uint32_t guest_look(struct guest *g, bool *acted)
{
    uint32_t open = 0;

    for (uint32_t i = 0; i < g->made; i++) {
        struct op *op = &world.ops[g->number * world.plan.ops + i];
        enum op_state state = state_of(op);

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
        sleep_on_fd(g->lane, 1);
    }
    live_poll(g->lane, style == SLEEP_FOREVER ? BLKREPL_FOREVER
                       : style == SLEEP_SHORT ? 1000000
                                              : 0);
    if (style == SLEEP_NOT) {
        sched_yield();
    }
}

/* One step of a guest; wait: it may sleep.  False: it is over. */
static bool guest_step(struct guest *g, bool wait)
{
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

static void *guest_thread(void *user)
{
    struct guest *g = user;

    me = record_actor(g->number);
    while (guest_step(g, true)) {
    }
    atomic_fetch_sub(&world.guests_left, 1);
    return NULL;
}

/* ---- Control ------------------------------------------------------------------- */

static int live_free(void)
{
    struct entry *entry = record_call(ENTRY_FREE, 0, 0, 0, 0, 0);
    int answer;

    atomic_store(&world.shut, true);
    me->polls_lane = LANE_ANY;
    answer = record_answer(entry, blkrepl_context_free(world.ctx));
    me->polls_lane = UINT32_MAX;
    MUST(answer == 0 || answer == -EBUSY, "context_free answered %d", answer);
    return answer;
}

/* An image that nobody else uses comes and goes. */
static void open_and_close(void)
{
    blkrepl_image *image;
    int answer = blkrepl_image_open_memory(world.ctx, 65536, NULL, &image);

    MUST(answer == 0 || (answer == -ESHUTDOWN && atomic_load(&world.shut)), "open answered %d",
         answer);
    blkrepl_image_close(image);
}

static void control_step(bool wait)
{
    uint64_t *rng = &me->rng;
    uint64_t draw = dice_below(rng, 100);

    if (world.plan.host_clock) {
        atomic_fetch_add_explicit(&world.now_ns, dice_below(rng, 200000), memory_order_relaxed);
    }
    if (draw < 8) {
        job_create(rng);
    } else if (draw < 20) {
        job_verb(rng);
    } else if (draw < 22) {
        live_wake((uint32_t)dice_below(rng, world.plan.lanes + 1));
    } else if (draw < 23 && !world.plan.one_thread) {
        open_and_close();
    } else if (draw < 24 && world.plan.shut_early && dice_chance(rng, 10)) {
        live_free();
    } else if (draw < 30 && wait) {
        sleep_on_fd(0, 1);
        live_poll(0, 0);
    } else {
        live_poll(0, wait && !world.plan.host_clock ? 1000000 : 0);
    }
}

static void close_images(void)
{
    for (uint32_t i = 0; i < world.plan.disks; i++) {
        struct entry *entry = record_call(ENTRY_CLOSE, 0, i, 0, 0, 0);

        blkrepl_image_close(world.disks[i].image);
        record_answer(entry, 0);
    }
}

static void wind_up(bool one)
{
    for (uint32_t i = 0; !job_wind_up(); i++) {
        if (world.plan.host_clock) {
            atomic_fetch_add_explicit(&world.now_ns, 100000, memory_order_relaxed);
        }
        if (one) {
            vdisk_complete_one(&me->rng);
        }
        live_poll(0, world.plan.host_clock ? 0 : 1000000);
        /* Reads that a guest's write needed may still be on their lanes. */
        live_poll(i % (world.plan.lanes + 1), 0);
    }
    close_images();
    while (live_free() != 0) {
        if (one) {
            vdisk_complete_one(&me->rng);
        }
        live_poll(0, world.plan.host_clock ? 0 : 1000000);
    }
}

/* ---- The run ------------------------------------------------------------------- */

static uint64_t host_clock(void *user)
{
    (void)user;
    return atomic_load_explicit(&world.now_ns, memory_order_relaxed);
}

static void sink_release(void *user)
{
    (void)user;
    atomic_fetch_add(&world.sink_releases, 1);
}

static void open_world(void)
{
    blkrepl_hooks hooks = {.struct_size = sizeof hooks};
    blkrepl_context_options options = world.plan.context;
    int answer;

    hooks.clock_ns = world.plan.host_clock ? host_clock : NULL;
    options.hooks = &hooks;
    options.on_event = (blkrepl_event_sink){.fn = job_event, .release = sink_release};
    answer = blkrepl_context_create(&options, &world.ctx);
    MUST(answer == 0, "context_create answered %d: %s", answer, blkrepl_error_message());
    for (uint32_t i = 0; i < world.plan.disks; i++) {
        vdisk_reset(&world.disks[i], i, &world.plan.disk[i]);
        answer = vdisk_open(&world.disks[i]);
        MUST(answer == 0, "open answered %d: %s", answer, blkrepl_error_message());
    }
}

static void reset(void)
{
    for (uint32_t i = 0; i < OPS_MAX; i++) {
        struct op *op = &world.ops[i];

        free(op->buffer);
        memset(op, 0, sizeof *op);
        op->cancel_answer = NOT_CANCELLED;
        atomic_init(&op->state, OP_NONE);
        atomic_init(&op->keep, KEEP_NONE);
        atomic_init(&op->callbacks, 0);
        atomic_init(&op->releases, 0);
    }
    for (uint32_t i = 0; i < JOBS_MAX; i++) {
        free(world.jobs[i].content);
        memset(&world.jobs[i], 0, sizeof world.jobs[i]);
        atomic_init(&world.jobs[i].done, false);
        atomic_init(&world.jobs[i].releases, 0);
    }
    world.job_count = 0;
    world.op_count = world.plan.guests * world.plan.ops;
    atomic_store(&world.stamps, 1);
    atomic_store(&world.now_ns, UINT64_C(1000000000000));
    atomic_store(&world.guests_left, world.plan.guests);
    atomic_store(&world.shut, false);
    atomic_store(&world.policy, false);
    atomic_store(&world.sink_releases, 0);
    for (uint32_t i = 0; i < world.plan.guests; i++) {
        guests[i] = (struct guest){.number = i, .rng = world.plan.seed * 977 + i};
        guests[i].lane = 1 + i % world.plan.lanes;
        guests[i].alone = world.plan.lanes >= world.plan.guests;
        guests[i].blocking = dice_chance(&guests[i].rng, world.plan.blocking_percent);
        guests[i].depth = guests[i].blocking ? 1 : (uint32_t)dice_below(&guests[i].rng, 12) + 1;
        guests[i].style = (enum sleep_style)dice_below(&guests[i].rng, SLEEP_STYLES);
    }
}

/* All that happens is done by this thread. */
static void run_alone(void)
{
    uint32_t left = world.plan.guests;

    while (left > 0) {
        uint64_t draw = dice_below(&me->rng, 10);
        struct guest *g = &guests[dice_below(&me->rng, world.plan.guests)];

        if (draw < 5 && !g->over) {
            g->over = !guest_step(g, false);
            left -= g->over;
        } else if (draw < 7) {
            vdisk_complete_one(&me->rng);
        } else {
            control_step(false);
        }
    }
    wind_up(true);
}

static void run_threads(void)
{
    pthread_t threads[GUESTS_MAX];
    pthread_t completer;

    MUST(pthread_create(&completer, NULL, vdisk_completer, record_actor(world.plan.guests + 1)) ==
             0,
         "no thread");
    for (uint32_t i = 0; i < world.plan.guests; i++) {
        MUST(pthread_create(&threads[i], NULL, guest_thread, &guests[i]) == 0, "no thread");
    }
    while (atomic_load(&world.guests_left) > 0) {
        control_step(true);
    }
    for (uint32_t i = 0; i < world.plan.guests; i++) {
        pthread_join(threads[i], NULL);
    }
    wind_up(false);
    vdisk_completer_stop();
    pthread_join(completer, NULL);
}

void live_run(void)
{
    reset();
    record_begin(&world.plan);
    me = record_actor(world.plan.guests);
    open_world();
    if (world.plan.one_thread) {
        run_alone();
    } else {
        run_threads();
    }
    me = NULL;
}
