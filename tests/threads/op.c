/* SPDX-License-Identifier: MIT */
/* op.c - guest requests and brackets: their calls, and what becomes of them. */
#include "shared.h"
#include "threads.h"

#include <errno.h>
#include <sched.h>

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
    live_inside();
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

    live_inside();
    atomic_fetch_add_explicit(&op->releases, 1, memory_order_relaxed);
}

enum op_state op_state_of(struct op *op)
{
    return (enum op_state)atomic_load_explicit(&op->state, memory_order_acquire);
}

/* ---- Calls --------------------------------------------------------------------- */

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

void op_make(struct op *op)
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

/* ---- Brackets ------------------------------------------------------------------ */

/* It has got its GO: write, or give it up. */
void bracket_finish(struct op *op, uint64_t *rng)
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

void bracket_cancel(struct op *op)
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
    while (op_state_of(op) != OP_GO) { /* go was entered, by another thread */
        sched_yield();
    }
    op->result = -ECANCELED;
    op->end = stamp();
    atomic_store_explicit(&op->state, OP_OVER, memory_order_release);
}
