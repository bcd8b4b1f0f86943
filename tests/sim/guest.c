/* SPDX-License-Identifier: MIT */
/* guest.c - a random guest, through the library and beside it. */
#include "sim.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

typedef unsigned long long ull;

bool is_write(uint32_t op)
{
    return op == BLKREPL_OP_WRITE || op == BLKREPL_OP_ZEROES || op == BLKREPL_OP_DISCARD ||
           op == BLKREPL_OP_COPY_FROM;
}

bool overlaps(uint64_t a, uint64_t a_bytes, uint64_t b, uint64_t b_bytes)
{
    return a_bytes > 0 && b_bytes > 0 && a < b + b_bytes && b < a + a_bytes;
}

bool request_covers(const struct request *request, const struct disk *disk, uint64_t position)
{
    return request->disk == disk && is_write(request->op) && position >= request->offset &&
           position - request->offset < request->bytes;
}

/* What a write puts at a position; only where it covers it. */
uint8_t request_byte(const struct request *request, uint64_t position)
{
    if (request->op == BLKREPL_OP_DISCARD) {
        return request->disk->discard_mode == 0 ? request->disk->medium[position]
                                                : disk_discard_byte(request->disk, position);
    }
    if (request->op == BLKREPL_OP_WRITE && request->tag != 0) {
        return pattern_byte(request->tag, position);
    }
    return 0;
}

/* All that a write puts on the medium. */
void request_fill(const struct request *request, uint8_t *out)
{
    if (request->op == BLKREPL_OP_WRITE && request->tag != 0) {
        pattern_fill(out, request->tag, request->offset, request->bytes);
    } else if (request->op != BLKREPL_OP_DISCARD) {
        memset(out, 0, request->bytes);
    } else {
        for (uint64_t i = 0; i < request->bytes; i++) {
            out[i] = request_byte(request, request->offset + i);
        }
    }
}

/* ---- The life of a request -------------------------------------------------- */

static struct request *request_new(struct disk *disk, uint32_t op, uint32_t lane)
{
    struct request *r = &sim.requests[sim.request_count];

    memset(r, 0, sizeof *r);
    r->disk = disk;
    r->op = op;
    r->lane = lane;
    r->tag = rng_chance(12) ? 0 : sim.request_count % 251 + 1;
    r->no_release = rng_chance(15);
    sim.active[sim.active_count++] = (int)sim.request_count++;
    r->others = sim.lane_pending[lane]++;
    r->alive = sim.instant;
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
    oracle_bitmap_request_over(r);
}

static uint8_t *arena_take(uint64_t bytes)
{
    size_t at = (sim.arena_used + 4095) / 4096 * 4096;

    at += rng_chance(60) ? 0 : rng_chance(50) ? rng_below(16) : 512;
    if (bytes > ARENA_BYTES || at > ARENA_BYTES - bytes) {
        return NULL;
    }
    sim.arena_used = at + bytes;
    return sim.arena + at;
}

static struct being callback_enter(const char *what, const struct request *r)
{
    EXPECT(!sim.gone, "%s after context_free", what);
    EXPECT(sim.depth > 0, "%s outside of a poll", what);
    EXPECT(lanes_in_poll(r->lane), "%s of lane %u in a poll of lane %u", what, r->lane, sim.polled);
    sim.callbacks++;
    sim.callback_depth++;
    return lanes_enter(DOING_HOST, 0);
}

static void callback_leave(enum inside where, struct being outer)
{
    inside(where);
    sim.entry = outer;
    sim.callback_depth--;
}

static void status_done(struct request *r, uint8_t *before)
{
    uint64_t at = 0;
    uint64_t bytes = r->bytes;

    for (uint32_t i = 0; i < r->flags && r->extents[i].bytes > 0; i++) {
        uint64_t part = r->extents[i].bytes;

        EXPECT(part <= bytes - at, "status: more than was asked");
        if ((r->extents[i].flags & BLKREPL_EXTENT_ZERO) != 0) {
            memset(r->buffer + at, 0, part);
        } else {
            memcpy(r->buffer + at, before + at, part);
        }
        at += part;
    }
    EXPECT(r->result != 0 || bytes == 0 || at > 0, "status: nothing was answered");
    r->bytes = at;
    oracle_read_done(r, before);
    r->bytes = bytes;
}

static void request_fn(void *user, int result)
{
    struct request *r = user;
    int index = (int)(r - sim.requests);
    struct being outer;

    EVENT("request %n is done: %r", (ull)index, NEGATED(result));
    outer = callback_enter("a completion", r);
    EXPECT(r->accepted && r->state == REQUEST_PENDING && r->fn_count == 0 && r->release_count == 0,
           "a wrong completion of request %d", index);
    r->fn_count++;
    request_over(r, result);
    if (r->snapshot != NULL) {
        oracle_snapshot_done(r);
    } else if (r->op == BLKREPL_OP_READ) {
        oracle_read_done(r, r->buffer + r->bytes);
    } else if (r->op == BLKREPL_OP_STATUS) {
        status_done(r, r->buffer + r->bytes);
    } else if (r->op == BLKREPL_OP_FLUSH) {
        oracle_flush_done(r);
    } else {
        oracle_guest_done(r);
    }
    if (r->buffer != NULL) {
        memset(r->buffer, 0xee, r->bytes);
    }
    callback_leave(INSIDE_DONE, outer);
}

static void request_release(void *user)
{
    struct request *r = user;

    EXPECT(!sim.gone, "a release after context_free");
    EXPECT(r->release_count == 0, "request %d released twice", (int)(r - sim.requests));
    EXPECT(!r->accepted || r->fn_count == 1, "request %d released before its callback",
           (int)(r - sim.requests));
    EXPECT(!r->accepted || lanes_in_poll(r->lane), "request %d of lane %u is released elsewhere",
           (int)(r - sim.requests), r->lane);
    r->release_count++;
    inside(INSIDE_RELEASE);
}

/* The call is about to be made; false if it cannot be, because a call from inside
 * a question to the library has closed the image meanwhile. */
static bool request_called(struct request *r)
{
    r->accept_seq = sim.seq;
    if (r->snapshot != NULL) {
        oracle_snapshot_asked(r);
    }
    if (!is_write(r->op) || r->snapshot != NULL) {
        return true;
    }
    if (disk_is_source(r->disk)) {
        oracle_backup_touch(r);
    } else {
        oracle_job_watch(); /* who is done with the target is compared before it changes */
        r->hold = backup_hold(r->disk);
        r->overwrites = r->hold != HOLD_SURE ? oracle_backup_overwrite(r->disk) : 0;
        r->accept_seq = sim.seq; /* the questions may have let others go first */
    }
    if (r->disk->image == NULL) {
        oracle_backup_overwrite_not(r->overwrites);
        request_over(r, -ESHUTDOWN);
        return false;
    }
    return true;
}

static void check_refusal(const struct request *r, int answer, uint32_t before_count)
{
    bool write = is_write(r->op);
    int index = (int)(r - sim.requests);

    if (answer == -EAGAIN) {
        before_count = before_count > r->others ? before_count : r->others;
        EXPECT(before_count + sim.callback_depth >= sim.options.context.requests_max,
               "request %d: -EAGAIN with %u of %u", index, before_count,
               sim.options.context.requests_max);
        sim.room_expected[r->lane] = true;
        return;
    }
    sim.counts.busy += answer == -EBUSY;
    EXPECT((answer == -ESHUTDOWN && sim.shutdown) ||
               (answer == -EROFS && write && r->disk->read_only) ||
               (answer == -EBUSY && write && r->hold != HOLD_NONE),
           "request %d answered %d: %s", index, answer, blkrepl_error_message());
}

/* The call has answered. */
static void request_answered(struct request *r, int answer)
{
    bool write = is_write(r->op);
    int index = (int)(r - sim.requests);
    uint32_t before = sim.lane_pending[r->lane] - 1;

    EVENT("request %n, %o of disk %n, answered %n, %r", (ull)index, r->op, r->disk->index,
          (ull)(answer > 0 ? answer : 0), (ull)(answer < 0 ? -answer : 0));
    sim.counts.requests++;
    if (answer >= 0) {
        EXPECT(!sim.shutdown, "request %d accepted after shutdown", index);
        EXPECT(!write || !r->disk->read_only ||
                   (r->snapshot != NULL && r->op == BLKREPL_OP_DISCARD),
               "write %d accepted by a read-only image", index);
        EXPECT(r->hold != HOLD_SURE, "write %d accepted by the target of a job", index);
        EXPECT(sim.depth + sim.reenter_depth > 0 || before < sim.options.context.requests_max,
               "more than requests_max accepted");
        r->accepted = true;
        EXPECT(r->bracket || answer == 0, "request %d answered %d", index, answer);
        EXPECT(r->fn_count == 0, "request %d called back inside its call", index);
        return;
    }
    sim.counts.refused++;
    EXPECT(r->fn_count == 0 && r->release_count == (r->no_release ? 0 : 1),
           "request %d was refused: %u callbacks, %u releases", index, r->fn_count,
           r->release_count);
    oracle_backup_overwrite_not(r->overwrites);
    check_refusal(r, answer, before);
    request_over(r, answer);
}

/* ---- Through ---------------------------------------------------------------- */

static void draw_range(const struct disk *disk, uint64_t *offset, uint64_t *bytes)
{
    static const uint32_t longest[] = {16, 600, 600, 600, 9000, 9000, 9000, 20000};
    uint64_t size = disk->bytes;
    uint64_t want = rng_below(longest[rng_below(8)]) + !rng_chance(2);
    uint64_t at = rng_below(size + 1);

    if (rng_chance(sim.options.long_writes_percent)) {
        want = rng_below(150000);
    }
    if (rng_chance(35)) {
        at = at / 4096 * 4096;
        at -= rng_chance(40) && at > 100 ? rng_below(100) : 0;
    } else if (rng_chance(15)) {
        at = size - (want < size ? want : size);
    }
    *offset = at;
    *bytes = want < size - at ? want : size - at;
}

static uint32_t cut_iov(struct request *r)
{
    uint32_t count = rng_chance(60) ? 1 : (uint32_t)rng_between(1, 4);
    uint64_t at = 0;

    for (uint32_t i = 0; i < count; i++) {
        uint64_t left = r->bytes - at;
        uint64_t part = i + 1 == count ? left : rng_below(left + 1);

        part = i + 1 < count && rng_chance(50) ? part / 512 * 512 : part;
        r->iov[i] = (blkrepl_iovec){.base = r->buffer + at, .len = part};
        at += part;
    }
    return count;
}

static bool prepare(struct request *r)
{
    bool two = r->op == BLKREPL_OP_READ || r->op == BLKREPL_OP_STATUS;

    if (!two && r->op != BLKREPL_OP_WRITE) {
        return true;
    }
    r->buffer = arena_take(r->bytes * (two ? 2 : 1));
    if (r->buffer == NULL) {
        return false;
    }
    if (two) {
        memcpy(r->buffer + r->bytes, r->disk->medium + r->offset, r->bytes);
    } else if (r->tag != 0) {
        pattern_fill(r->buffer, r->tag, r->offset, r->bytes);
    } else {
        memset(r->buffer, 0, r->bytes);
    }
    return true;
}

static int through_call(struct request *r, const blkrepl_completion *done)
{
    blkrepl_image *image = r->disk->image;
    uint32_t lane = r->lane;
    uint32_t count = 0;

    inside_calls((enum call)(r->op - BLKREPL_OP_READ + CALL_READ));
    switch (r->op) {
    case BLKREPL_OP_READ:
        count = cut_iov(r);
        return blkrepl_image_read(image, lane, r->offset, r->iov, count, 0, done);
    case BLKREPL_OP_WRITE:
        count = cut_iov(r);
        r->flags = rng_chance(15) ? BLKREPL_IO_FUA : 0;
        return blkrepl_image_write(image, lane, r->offset, r->iov, count, r->flags, done);
    case BLKREPL_OP_ZEROES:
        r->flags = (uint32_t)rng_below(8);
        return blkrepl_image_write_zeroes(image, lane, r->offset, r->bytes, r->flags, done);
    case BLKREPL_OP_DISCARD:
        return blkrepl_image_discard(image, lane, r->offset, r->bytes, 0, done);
    case BLKREPL_OP_FLUSH: return blkrepl_image_flush(image, lane, done);
    default: break;
    }
    r->flags = (uint32_t)rng_between(1, 4);
    return blkrepl_image_status(image, lane, r->offset, r->bytes, r->extents, r->flags, done);
}

static void through(struct disk *disk, uint32_t op, uint32_t lane, struct snapshot *snapshot)
{
    struct request *r = request_new(disk, op, lane);
    blkrepl_completion done = {
        .fn = request_fn, .user = r, .release = r->no_release ? NULL : request_release};

    r->snapshot = snapshot;
    if (op != BLKREPL_OP_FLUSH) {
        draw_range(disk, &r->offset, &r->bytes);
    }
    if (!prepare(r)) {
        request_over(r, -ENOMEM);
        return;
    }
    EVENT("request %n: %o %n+%n, tag %n", sim.request_count - 1, op, r->offset, r->bytes, r->tag);
    if (request_called(r)) {
        struct being outer = lanes_enter(DOING_CALL, lane);
        int answer = through_call(r, &done);

        sim.entry = outer;
        request_answered(r, answer);
    }
}

/* ---- Beside ----------------------------------------------------------------- */

static void bracket_go(void *user, int result)
{
    struct request *r = user;
    int index = (int)(r - sim.requests);
    struct being outer;

    EVENT("bracket %n: go, %r", (ull)index, NEGATED(result));
    outer = callback_enter("a go", r);
    EXPECT(r->accepted && r->state == REQUEST_PENDING && r->fn_count == 0 && r->release_count == 0,
           "a wrong go of bracket %d", index);
    r->fn_count++;
    if (result == 0) {
        EXPECT(!r->cancelled && !r->doomed, "GO for bracket %d, which was cancelled", index);
        r->state = REQUEST_GO;
        oracle_go(r);
    } else {
        request_over(r, result);
        EXPECT(is_write(r->op) || r->cancelled, "bracket %d, a flush, failed with %d", index,
               result);
        oracle_guest_done(r);
    }
    callback_leave(INSIDE_GO, outer);
}

static void beside(struct disk *disk, uint32_t op, uint32_t lane)
{
    struct request *r = request_new(disk, op, lane);
    blkrepl_bracket what = {.struct_size = sizeof what, .opcode = op, .lane = lane};
    blkrepl_completion go = {
        .fn = bracket_go, .user = r, .release = r->no_release ? NULL : request_release};
    struct being outer;
    int answer;

    r->bracket = true;
    if (op != BLKREPL_OP_FLUSH) {
        draw_range(disk, &r->offset, &r->bytes);
        r->bytes += r->offset % disk->align;
        r->offset -= r->offset % disk->align;
        r->bytes = (r->bytes + disk->align - 1) / disk->align * disk->align;
        r->bytes = r->bytes < disk->bytes - r->offset ? r->bytes : disk->bytes - r->offset;
    }
    if (op == BLKREPL_OP_WRITE || op == BLKREPL_OP_ZEROES) {
        r->flags = rng_chance(15) ? BLKREPL_IO_FUA : 0;
        r->flags |= op == BLKREPL_OP_ZEROES && rng_chance(30) ? BLKREPL_IO_MAY_UNMAP : 0;
    }
    what.flags = r->flags;
    what.offset = r->offset;
    what.bytes = r->bytes;
    EVENT("bracket %n: %o %n+%n, tag %n", sim.request_count - 1, op, r->offset, r->bytes, r->tag);
    if (!request_called(r)) {
        return;
    }
    inside_calls(CALL_BEGIN);
    outer = lanes_enter(DOING_CALL, lane);
    answer = blkrepl_write_begin(disk->image, &what, &go, &r->token);
    sim.entry = outer;
    EXPECT((r->token == 0) == (answer < 0), "begin answered %d with token %llu", answer,
           (ull)r->token);
    request_answered(r, answer);
    sim.counts.brackets += answer >= 0;
    if (answer == 0) {
        EXPECT(r->release_count == (r->no_release ? 0 : 1), "begin answered GO without release");
        r->state = REQUEST_GO;
        oracle_go(r);
    }
}

static void end_release(void *user)
{
    struct request *r = user;

    EXPECT(!sim.gone && r->end_releases == 0, "the end of bracket %d is released twice",
           (int)(r - sim.requests));
    r->end_releases++;
    inside(INSIDE_RELEASE);
}

static void end_fn(void *user, int result)
{
    sim_fail("the end of bracket %d is called back with %d",
             (int)((struct request *)user - sim.requests), result);
}

/* The host has written, or has failed to. */
static int bracket_result(struct request *r)
{
    if (sim.dead || rng_chance(8)) {
        return -EIO;
    }
    if (r->op == BLKREPL_OP_FLUSH) {
        power_flushed(r->disk, r->accept_seq);
    } else if (r->bytes > 0) {
        disk_host_writes(r->disk, r, 0, r->bytes);
        r->wrote = true;
    }
    return 0;
}

static void bracket_end(struct request *r)
{
    blkrepl_completion done = {.fn = end_fn, .user = r, .release = end_release};
    blkrepl_iovec data = {.base = sim.arena, .len = r->bytes < ARENA_BYTES ? r->bytes : 0};
    uint64_t token = r->token;
    bool full = rng_chance(30);
    int result = bracket_result(r);
    struct being outer;
    int answer;

    EVENT("bracket %n ends: %r", (ull)(r - sim.requests), NEGATED(result));
    oracle_bitmap_bracket_ends(r);
    request_over(r, result);
    if (result == 0 && r->op == BLKREPL_OP_FLUSH) {
        oracle_flush_done(r);
    } else if (result == 0) {
        oracle_guest_done(r);
    }
    inside_calls(CALL_END);
    outer = lanes_enter(DOING_CALL, r->lane);
    answer =
        blkrepl_write_end(sim.ctx, token, result, full ? &data : NULL, full, full ? &done : NULL);
    sim.entry = outer;
    EXPECT(answer == 0 && r->end_releases == full, "write_end answered %d, %u releases", answer,
           r->end_releases);
    oracle_bitmap_bracket_ended(r);
}

static void bracket_cancel(struct request *r)
{
    bool waits = r->state == REQUEST_PENDING;
    struct being outer;
    int answer;

    EVENT("bracket %n is cancelled", (ull)(r - sim.requests));
    r->cancelled = true;
    if (!waits) {
        oracle_bitmap_bracket_ends(r);
        request_over(r, -ECANCELED);
    }
    inside_calls(CALL_WRITE_CANCEL);
    outer = lanes_enter(DOING_CALL, r->lane);
    answer = blkrepl_write_cancel(sim.ctx, r->token);
    sim.entry = outer;
    if (!waits) {
        oracle_bitmap_bracket_ended(r);
    }
    if (answer == -ENOENT && waits && sim.callback_depth > 0) {
        r->cancelled = false; /* it has failed; this poll is about to tell */
        r->doomed = true;
        return;
    }
    EXPECT(answer == (waits ? BLKREPL_WAIT : 0), "write_cancel answered %d, waits: %d", answer,
           waits);
    if (rng_chance(sim.options.misuse_percent)) {
        wrong_call_begin();
        wrong_call("a second write_cancel", -ENOENT, blkrepl_write_cancel(sim.ctx, r->token));
    }
}

static struct request *pick_bracket(void)
{
    uint32_t from = (uint32_t)rng_below(sim.active_count);

    for (uint32_t i = 0; i < sim.active_count; i++) {
        struct request *r = &sim.requests[sim.active[(from + i) % sim.active_count]];

        if (r->bracket && r->accepted) {
            return r;
        }
    }
    return NULL;
}

/* Let the host go on with one of its brackets. */
static void bracket_act(void)
{
    struct request *r = pick_bracket();
    uint64_t at;

    if (r == NULL) {
        return;
    }
    if (r->state == REQUEST_PENDING) {
        if (!r->cancelled && rng_chance(5)) {
            bracket_cancel(r);
        }
        return;
    }
    if (!r->wrote && rng_chance(8)) {
        bracket_cancel(r);
    } else if (rng_chance(40) && is_write(r->op) && r->bytes > 0) {
        at = rng_below(r->bytes);
        r->wrote = true;
        disk_host_writes(r->disk, r, at, rng_below(r->bytes - at) + 1);
    } else {
        bracket_end(r);
    }
}

/* End a bracket that got its GO; false: there is none. */
bool guest_bracket_finish(void)
{
    for (uint32_t i = 0; i < sim.active_count; i++) {
        struct request *r = &sim.requests[sim.active[i]];

        if (r->bracket && r->state == REQUEST_GO && r->accepted) {
            bracket_end(r);
            return true;
        }
    }
    return false;
}

/* ---- What the guest does next ------------------------------------------------ */

static void guest_do(uint32_t op, bool bracket)
{
    uint32_t targets = sim.options.disks - sim.options.sources;
    bool target = rng_chance(sim.options.target_percent);
    uint32_t index = target ? sim.options.sources + (uint32_t)rng_below(targets)
                            : (uint32_t)rng_below(sim.options.sources);
    struct disk *disk = &sim.disks[index];
    uint32_t lane = lanes_draw();

    if (disk->image == NULL || sim.request_count == REQUESTS_MAX) {
        return;
    }
    if (lane > 0) {
        EVENT("on lane %n", lane);
    }
    if (bracket) {
        beside(disk, op, lane);
    } else {
        through(disk, op, lane, NULL);
    }
}

void guest_snapshot(struct snapshot *snapshot, uint32_t op)
{
    if (sim.request_count < REQUESTS_MAX) {
        through(&snapshot->disk, op, lanes_draw(), snapshot);
    }
}

static void guest_act(void)
{
    static const uint32_t ops[] = {
        BLKREPL_OP_WRITE,  BLKREPL_OP_WRITE,   BLKREPL_OP_WRITE, BLKREPL_OP_WRITE,
        BLKREPL_OP_WRITE,  BLKREPL_OP_WRITE,   BLKREPL_OP_WRITE, BLKREPL_OP_WRITE,
        BLKREPL_OP_READ,   BLKREPL_OP_READ,    BLKREPL_OP_READ,  BLKREPL_OP_ZEROES,
        BLKREPL_OP_ZEROES, BLKREPL_OP_DISCARD, BLKREPL_OP_FLUSH, BLKREPL_OP_STATUS};
    uint32_t op = ops[rng_below(16)];

    guest_do(op, op != BLKREPL_OP_READ && op != BLKREPL_OP_STATUS &&
                     rng_chance(sim.options.beside_percent));
}

/* Give up a bracket, or end one; if there is one that allows it. */
static void bracket_call(enum call call)
{
    struct request *r = sim.active_count > 0 ? pick_bracket() : NULL;

    if (r != NULL && call == CALL_END && r->state == REQUEST_GO) {
        bracket_end(r);
    } else if (r != NULL && call == CALL_WRITE_CANCEL && !r->cancelled && !r->wrote) {
        bracket_cancel(r);
    }
}

/* For the matrix. */
void guest_call(enum call call)
{
    static const uint32_t ops[] = {BLKREPL_OP_WRITE, BLKREPL_OP_ZEROES, BLKREPL_OP_DISCARD,
                                   BLKREPL_OP_FLUSH};

    if (call <= CALL_STATUS) {
        guest_do((uint32_t)call - CALL_READ + BLKREPL_OP_READ, false);
    } else if (call != CALL_BEGIN) {
        bracket_call(call);
    } else if (sim.options.beside_percent > 0) {
        guest_do(ops[rng_below(4)], true);
    }
}

/* ---- The part ---------------------------------------------------------------- */

static void guest_draw(void)
{
    struct sim_options *o = &sim.options;

    o->beside_percent = rng_chance(40) ? 0 : (uint32_t)rng_between(1, 100);
    o->long_writes_percent = rng_chance(85) ? 0 : (uint32_t)rng_between(1, 50);
    o->target_percent = rng_chance(60) ? 0 : (uint32_t)rng_between(1, 30);
    o->beside_percent *= !sim_without(FAULT_BESIDE);
    o->long_writes_percent *= !sim_without(FAULT_LONG);
    sim_actor((uint32_t)rng_between(1, 30), false, guest_act);
    sim_actor(o->beside_percent / 4, false, bracket_act);
}

/* What has been called back has ended; the rest may have ended, but not an open
 * bracket. */
enum hold guest_hold(const struct disk *disk)
{
    enum hold hold = HOLD_NONE;

    for (uint32_t i = 0; i < sim.active_count; i++) {
        const struct request *r = &sim.requests[sim.active[i]];

        if (r->disk == disk && is_write(r->op)) {
            hold = r->state == REQUEST_GO && r->bytes > 0 ? HOLD_SURE
                   : hold == HOLD_NONE                    ? HOLD_MAYBE
                                                          : hold;
        }
    }
    return hold;
}

static bool guest_unfinished(void)
{
    return lanes_must_end(false) > 0;
}

/* While the context is being freed a host may take its time. */
static bool guest_move(void)
{
    return (!sim.shutdown || rng_chance(30)) && guest_bracket_finish();
}

static void guest_end(void)
{
    EXPECT(sim.pending == 0, "%u requests have not ended", sim.pending);
    for (uint32_t i = 0; i < sim.request_count; i++) {
        const struct request *r = &sim.requests[i];

        EXPECT(!r->accepted || (r->release_count == (r->no_release ? 0u : 1u) &&
                                (r->bracket || r->fn_count == 1)),
               "request %u: %u callbacks, %u releases", i, r->fn_count, r->release_count);
    }
}

static void guest_list(void)
{
    printf("guest: brackets %u%%, long writes %u%%, to targets %u%%\n", sim.options.beside_percent,
           sim.options.long_writes_percent, sim.options.target_percent);
}

const struct part guest_part = {.draw = guest_draw,
                                .move = guest_move,
                                .unfinished = guest_unfinished,
                                .end = guest_end,
                                .list = guest_list};
