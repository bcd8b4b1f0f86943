/* SPDX-License-Identifier: MIT */
/* replay_guest.c - the guest of a replay: the calls of the log, the simulator's oracles. */
#include "replay.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

typedef unsigned long long ull;

static struct op ops[OPS_MAX];        /* as the log has them                      */
static struct request *made[OPS_MAX]; /* what became of them; NULL: not called    */

static struct op *op_of(const struct request *r)
{
    uint32_t number = 0;

    while (made[number] != r) {
        number++;
    }
    return &ops[number];
}

void replay_guest_reset(void)
{
    for (uint32_t i = 0; i < OPS_MAX; i++) {
        free(ops[i].buffer);
        memset(&ops[i], 0, sizeof ops[i]);
        made[i] = NULL;
    }
}

/* ---- The life of a request, as in the simulator's guest.c ------------------------- */

static struct request *request_new(const struct op *op, uint32_t number)
{
    struct request *r = &sim.requests[sim.request_count];

    memset(r, 0, sizeof *r);
    r->disk = &sim.disks[op->disk];
    r->op = op->opcode;
    r->lane = op->lane;
    r->offset = op->offset;
    r->bytes = op->bytes;
    r->flags = op->flags;
    r->bracket = op->bracket;
    r->tag = number % 251 + 1;
    sim.active[sim.active_count++] = (int)sim.request_count++;
    r->others = sim.lane_pending[r->lane]++;
    r->alone = sim.pending++ == 0;
    return r;
}

static void request_over(struct request *r, int result)
{
    uint32_t kept = 0;

    for (uint32_t i = 0; i < sim.active_count; i++) {
        if (&sim.requests[sim.active[i]] != r) {
            sim.active[kept++] = sim.active[i];
        }
    }
    sim.active_count = kept;
    sim.pending--;
    sim.lane_pending[r->lane]--;
    r->state = REQUEST_OVER;
    r->result = result;
    r->done_seq = sim.seq;
}

static void called_back(struct request *r, int result)
{
    const struct op *op = op_of(r);

    EVENT("request %n is called back: %r", (ull)(op - ops), NEGATED(result));
    EXPECT(!sim.gone && sim.depth > 0 && r->accepted && r->state == REQUEST_PENDING &&
               r->fn_count == 0 && r->release_count == 0,
           "a wrong callback of op %d", (int)(op - ops));
    EXPECT(lanes_in_poll(op->lane), "a callback of op %d, of lane %u, in a poll of lane %u",
           (int)(op - ops), op->lane, sim.polled);
    r->fn_count++;
    replay_observed(ENTRY_CALLBACK, (uint32_t)(op - ops), 0, 0, result);
}

static void request_fn(void *user, int result)
{
    struct request *r = user;

    called_back(r, result);
    request_over(r, result);
    if (r->op == BLKREPL_OP_READ) {
        oracle_read_done(r, r->buffer + r->bytes);
    } else if (r->op == BLKREPL_OP_FLUSH) {
        oracle_flush_done(r);
    } else if (is_write(r->op)) {
        oracle_guest_done(r);
    }
}

static void request_go(void *user, int result)
{
    struct request *r = user;

    called_back(r, result);
    if (result == 0) {
        EXPECT(!r->cancelled, "GO for bracket %d, which was cancelled", (int)(op_of(r) - ops));
        r->state = REQUEST_GO;
        oracle_go(r);
    } else {
        request_over(r, result);
        oracle_guest_done(r);
    }
}

static void request_release(void *user)
{
    struct request *r = user;

    EXPECT(!sim.gone && r->release_count == 0 && (!r->accepted || r->fn_count == 1),
           "a wrong release");
    r->release_count++;
}

/* ---- Calls -------------------------------------------------------------------------- */

/* Data, and for a read behind them what is there now. */
static void prepare(struct op *op, struct request *r)
{
    bool read = op->opcode == BLKREPL_OP_READ;
    size_t bytes = (size_t)(op->bytes * (read ? 2 : 1) + 4095) / 4096 * 4096;

    if (op->bracket || (!read && op->opcode != BLKREPL_OP_WRITE)) {
        return;
    }
    op->buffer = aligned_alloc(4096, bytes);
    EXPECT(op->buffer != NULL, "no memory");
    r->buffer = (uint8_t *)op->buffer;
    if (read) {
        memcpy(r->buffer + r->bytes, r->disk->medium + r->offset, r->bytes);
    } else {
        pattern_fill(r->buffer, r->tag, r->offset, r->bytes);
    }
    iov_cut(r->buffer, r->bytes, op->iov_count, op->iov);
}

static int op_call(struct op *op, struct request *r)
{
    blkrepl_completion done = {
        .fn = op->bracket ? request_go : request_fn, .user = r, .release = request_release};
    blkrepl_bracket what = {.struct_size = sizeof what,
                            .opcode = op->opcode,
                            .offset = op->offset,
                            .bytes = op->bytes,
                            .lane = op->lane,
                            .flags = op->flags};

    return op->bracket ? blkrepl_write_begin(r->disk->image, &what, &done, &r->token)
                       : request_call(r->disk->image, op, &done);
}

static void answered(struct op *op, struct request *r, int answer, uint32_t others)
{
    EVENT("op %n, %o of disk %n, lane %n: %r", (ull)(op - ops), r->op, r->disk->index, op->lane,
          answer < 0 ? NEGATED(answer) : 0);
    if (answer < 0) {
        EXPECT(r->release_count == 1 && r->fn_count == 0, "op %d was refused: %u releases",
               (int)(op - ops), r->release_count);
        EXPECT((answer == -EAGAIN && others >= sim.options.context.requests_max) ||
                   (answer == -ESHUTDOWN && sim.shutdown),
               "op %d answered %d", (int)(op - ops), answer);
        request_over(r, answer);
        return;
    }
    EXPECT(!sim.shutdown && others < sim.options.context.requests_max, "op %d was accepted",
           (int)(op - ops));
    r->accepted = true;
    if (answer == 0 && r->bracket) {
        r->state = REQUEST_GO;
        oracle_go(r);
    }
}

void replay_request(const struct entry *entry)
{
    struct op *op = &ops[entry->object];
    uint32_t others = sim.lane_pending[entry->lane];
    struct request *r;
    int answer;

    if (!replay.exact && entry->answer == -EAGAIN) {
        return; /* room comes and goes inside of polls */
    }
    op_unpack(op, entry->a);
    op->lane = entry->lane;
    op->offset = entry->b;
    op->bytes = entry->c;
    if (!replay.exact) {
        for (int i = 0; i < 1000 && others >= sim.options.context.requests_max; i++) {
            replay_move();
            others = sim.lane_pending[entry->lane];
        }
    }
    r = request_new(op, entry->object);
    made[entry->object] = r;
    prepare(op, r);
    r->accept_seq = sim.seq;
    if (is_write(r->op)) {
        oracle_backup_touch(r);
    }
    replay_enter(DOING_CALL, op->lane);
    answer = op_call(op, r);
    replay_leave();
    answered(op, r, answer, others);
    if (op->blocking) {
        return; /* the answer of the run was the result */
    }
    replay_compare(entry, answer);
}

/* ---- Brackets ------------------------------------------------------------------------ */

static void bracket_end(struct request *r, int result)
{
    int answer;

    if (r->op == BLKREPL_OP_FLUSH) {
        if (result == 0) {
            power_flushed(r->disk, r->accept_seq);
        }
    } else if (r->bytes > 0) {
        disk_host_writes(r->disk, r, 0, r->bytes);
        r->wrote = true;
    }
    EVENT("bracket %n ends: %r", (ull)(op_of(r) - ops), NEGATED(result));
    request_over(r, result);
    if (result == 0 && r->op == BLKREPL_OP_FLUSH) {
        oracle_flush_done(r);
    } else if (result == 0) {
        oracle_guest_done(r);
    }
    replay_enter(DOING_CALL, r->lane);
    answer = blkrepl_write_end(sim.ctx, r->token, result, NULL, 0, NULL);
    replay_leave();
    EXPECT(answer == 0, "write_end answered %d", answer);
}

/* End what has got its GO, if the log has not; false: there is none. */
bool replay_bracket_finish(void)
{
    for (uint32_t i = 0; i < sim.active_count; i++) {
        struct request *r = &sim.requests[sim.active[i]];

        if (r->bracket && r->state == REQUEST_GO && r->accepted) {
            bracket_end(r, 0);
            return true;
        }
    }
    return false;
}

void replay_end(const struct entry *entry)
{
    struct request *r = made[entry->object];

    for (int i = 0; i < 1000 && r != NULL && r->state == REQUEST_PENDING && !replay.exact; i++) {
        replay_move(); /* it has got its GO by now, in the run */
    }
    if (r == NULL || r->state != REQUEST_GO) {
        replay_differs(entry, "the bracket has no GO");
        return;
    }
    bracket_end(r, -(int)entry->a);
    replay_compare(entry, 0);
}

void replay_write_cancel(const struct entry *entry)
{
    struct request *r = made[entry->object];
    bool waits = r != NULL && r->state == REQUEST_PENDING;
    int answer;

    if (r == NULL || r->state == REQUEST_OVER) {
        replay_differs(entry, "the bracket is over");
        return;
    }
    EVENT("bracket %n is cancelled", entry->object);
    r->cancelled = true;
    if (!waits) {
        request_over(r, -ECANCELED);
    }
    replay_enter(DOING_CALL, r->lane);
    answer = blkrepl_write_cancel(sim.ctx, r->token);
    replay_leave();
    EXPECT(answer == (waits ? BLKREPL_WAIT : 0), "write_cancel answered %d, waits: %d", answer,
           waits);
    replay_compare(entry, answer);
}

void replay_guest_check(void)
{
    EXPECT(sim.pending == 0, "%u requests have not ended", sim.pending);
    for (uint32_t i = 0; i < sim.request_count; i++) {
        const struct request *r = &sim.requests[i];

        EXPECT(r->release_count == 1 && (!r->accepted || r->bracket || r->fn_count == 1),
               "request %u: %u callbacks, %u releases", i, r->fn_count, r->release_count);
    }
}
