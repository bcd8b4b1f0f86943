/* SPDX-License-Identifier: MIT */
/* guest.c - a random guest, through the library and beside it. */
#include "sim.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

typedef unsigned long long ull;

bool is_write(uint32_t op)
{
    return op == BLKREPL_OP_WRITE || op == BLKREPL_OP_ZEROES || op == BLKREPL_OP_DISCARD;
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

/* ---- The life of a request -------------------------------------------------- */

static struct request *request_new(struct disk *disk, uint32_t op)
{
    struct request *r = &sim.requests[sim.request_count];

    memset(r, 0, sizeof *r);
    r->disk = disk;
    r->op = op;
    r->tag = rng_chance(12) ? 0 : sim.request_count % 251 + 1;
    r->no_release = rng_chance(15);
    sim.active[sim.active_count++] = (int)sim.request_count++;
    r->others = sim.pending++;
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
    r->state = REQUEST_OVER;
    r->result = result;
    r->done_seq = sim.seq;
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

static void callback_enter(const char *what)
{
    EXPECT(!sim.gone, "%s after context_free", what);
    EXPECT(sim.depth > 0, "%s outside of a poll", what);
    sim.callbacks++;
    sim.callback_depth++;
}

static void callback_leave(void)
{
    sim_reenter();
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

    EVENT("request %n is done: %r", (ull)index, (ull)-result);
    callback_enter("a completion");
    EXPECT(r->accepted && r->state == REQUEST_PENDING && r->fn_count == 0 && r->release_count == 0,
           "a wrong completion of request %d", index);
    r->fn_count++;
    request_over(r, result);
    if (r->op == BLKREPL_OP_READ) {
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
    callback_leave();
}

static void request_release(void *user)
{
    struct request *r = user;

    EXPECT(!sim.gone, "a release after context_free");
    EXPECT(r->release_count == 0, "request %d released twice", (int)(r - sim.requests));
    EXPECT(!r->accepted || r->fn_count == 1, "request %d released before its callback",
           (int)(r - sim.requests));
    r->release_count++;
}

/* The call has answered. */
static void request_answered(struct request *r, int answer)
{
    bool write = is_write(r->op);
    int index = (int)(r - sim.requests);
    uint32_t before = sim.pending - 1;

    EVENT("request %n, %o of disk %n, answered %n, %r", (ull)index, r->op, r->disk->index,
          (ull)(answer > 0 ? answer : 0), (ull)(answer < 0 ? -answer : 0));
    sim.counts.requests++;
    if (answer >= 0) {
        EXPECT(!sim.shutdown, "request %d accepted after shutdown", index);
        EXPECT(!write || !r->disk->read_only, "write %d accepted by a read-only image", index);
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
    if (answer == -EAGAIN) {
        before = before > r->others ? before : r->others;
        EXPECT(before + sim.callback_depth >= sim.options.context.requests_max,
               "request %d: -EAGAIN with %u of %u", index, before,
               sim.options.context.requests_max);
        sim.room_expected = true;
    } else if (r->bracket && answer != -ESHUTDOWN && answer != -EROFS) {
        bool policy = false;

        for (uint32_t i = 0; i < sim.backup_count; i++) {
            policy |= sim.backups[i].options.on_cbw_error == BLKREPL_CBW_GUEST_WRITE_FAILS;
        }
        EXPECT(policy, "bracket %d answered %d: %s", index, answer, blkrepl_error_message());
    } else {
        EXPECT((answer == -ESHUTDOWN && sim.shutdown) ||
                   (answer == -EROFS && write && r->disk->read_only),
               "request %d answered %d: %s", index, answer, blkrepl_error_message());
    }
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
    uint32_t count = 0;

    switch (r->op) {
    case BLKREPL_OP_READ:
        count = cut_iov(r);
        return blkrepl_image_read(image, 0, r->offset, r->iov, count, 0, done);
    case BLKREPL_OP_WRITE:
        count = cut_iov(r);
        r->flags = rng_chance(15) ? BLKREPL_IO_FUA : 0;
        return blkrepl_image_write(image, 0, r->offset, r->iov, count, r->flags, done);
    case BLKREPL_OP_ZEROES:
        r->flags = (uint32_t)rng_below(8);
        return blkrepl_image_write_zeroes(image, 0, r->offset, r->bytes, r->flags, done);
    case BLKREPL_OP_DISCARD: return blkrepl_image_discard(image, 0, r->offset, r->bytes, 0, done);
    case BLKREPL_OP_FLUSH: return blkrepl_image_flush(image, 0, done);
    default: break;
    }
    r->flags = (uint32_t)rng_between(1, 4);
    return blkrepl_image_status(image, 0, r->offset, r->bytes, r->extents, r->flags, done);
}

static void through(struct disk *disk, uint32_t op)
{
    struct request *r = request_new(disk, op);
    blkrepl_completion done = {
        .fn = request_fn, .user = r, .release = r->no_release ? NULL : request_release};

    if (op != BLKREPL_OP_FLUSH) {
        draw_range(disk, &r->offset, &r->bytes);
    }
    if (!prepare(r)) {
        request_over(r, -ENOMEM);
        return;
    }
    EVENT("request %n: %o %n+%n, tag %n", sim.request_count - 1, op, r->offset, r->bytes, r->tag);
    r->accept_seq = sim.seq;
    request_answered(r, through_call(r, &done));
}

/* ---- Beside ----------------------------------------------------------------- */

static void bracket_go(void *user, int result)
{
    struct request *r = user;
    int index = (int)(r - sim.requests);

    EVENT("bracket %n: go, %r", (ull)index, (ull)-result);
    callback_enter("a go");
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
    callback_leave();
}

static void beside(struct disk *disk, uint32_t op)
{
    struct request *r = request_new(disk, op);
    blkrepl_bracket what = {.struct_size = sizeof what, .opcode = op};
    blkrepl_completion go = {
        .fn = bracket_go, .user = r, .release = r->no_release ? NULL : request_release};
    int answer;

    r->bracket = true;
    if (op != BLKREPL_OP_FLUSH) {
        draw_range(disk, &r->offset, &r->bytes);
        r->bytes += r->offset % disk->align;
        r->offset -= r->offset % disk->align;
        r->bytes = (r->bytes + disk->align - 1) / disk->align * disk->align;
        r->bytes = r->bytes < disk->bytes - r->offset ? r->bytes : disk->bytes - r->offset;
    }
    what.offset = r->offset;
    what.bytes = r->bytes;
    EVENT("bracket %n: %o %n+%n, tag %n", sim.request_count - 1, op, r->offset, r->bytes, r->tag);
    r->accept_seq = sim.seq;
    answer = blkrepl_write_begin(disk->image, &what, &go, &r->token);
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

static void bracket_end(struct request *r)
{
    uint64_t token = r->token;
    int result = rng_chance(8) ? -EIO : 0;
    int answer;

    if (result == 0) {
        disk_land(r->disk, r->op, r->offset, r->bytes, r);
        r->wrote = true;
    }
    EVENT("bracket %n ends: %r", (ull)(r - sim.requests), (ull)-result);
    if (rng_chance(sim.options.misuse_percent)) {
        sim.counts.misuses++;
        answer = blkrepl_write_end(sim.ctx, token, 7, NULL, 0, NULL);
        EXPECT(answer == -EINVAL, "write_end with a byte count answered %d", answer);
    }
    request_over(r, result);
    answer = blkrepl_write_end(sim.ctx, token, result, NULL, 0, NULL);
    EXPECT(answer == 0, "write_end answered %d", answer);
    if (rng_chance(sim.options.misuse_percent)) {
        sim.counts.misuses++;
        answer = blkrepl_write_end(sim.ctx, token, 0, NULL, 0, NULL);
        EXPECT(answer == -ENOENT, "a second write_end answered %d", answer);
    }
}

static void bracket_cancel(struct request *r)
{
    bool waits = r->state == REQUEST_PENDING;
    int answer;

    EVENT("bracket %n is cancelled", (ull)(r - sim.requests));
    r->cancelled = true;
    if (!waits) {
        request_over(r, -ECANCELED);
    }
    answer = blkrepl_write_cancel(sim.ctx, r->token);
    if (answer == -ENOENT && waits && sim.callback_depth > 0) {
        r->cancelled = false; /* it has failed; this poll is about to tell */
        r->doomed = true;
        return;
    }
    EXPECT(answer == (waits ? BLKREPL_WAIT : 0), "write_cancel answered %d, waits: %d", answer,
           waits);
    if (rng_chance(sim.options.misuse_percent)) {
        sim.counts.misuses++;
        answer = blkrepl_write_cancel(sim.ctx, r->token);
        EXPECT(answer == -ENOENT, "a second write_cancel answered %d", answer);
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
        disk_land(r->disk, r->op, r->offset + at, rng_below(r->bytes - at) + 1, r);
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

static void misuse(struct disk *disk)
{
    blkrepl_completion none = {.fn = request_fn};
    blkrepl_iovec iov = {.base = sim.arena, .len = 1};
    uint64_t offset = rng_chance(50) ? disk->bytes : UINT64_MAX - rng_below(3);
    int answer = blkrepl_image_read(disk->image, 0, offset, &iov, 1, 0, &none);

    EXPECT(answer == -EINVAL || (answer == -ESHUTDOWN && sim.shutdown),
           "a read behind the end answered %d", answer);
    if (disk->image != NULL) {
        answer = blkrepl_image_discard(disk->image, 0, 0, UINT64_MAX, 0, &none);
        EXPECT(answer == -EINVAL || answer == -EROFS || (answer == -ESHUTDOWN && sim.shutdown),
               "an endless discard answered %d", answer);
    }
    answer = blkrepl_write_end(sim.ctx, rng_next(), 0, NULL, 0, NULL);
    EXPECT(answer == -ENOENT, "write_end of a made-up token answered %d", answer);
    sim.counts.misuses++;
}

static void guest_act(void)
{
    static const uint32_t ops[] = {
        BLKREPL_OP_WRITE,  BLKREPL_OP_WRITE,   BLKREPL_OP_WRITE, BLKREPL_OP_WRITE,
        BLKREPL_OP_WRITE,  BLKREPL_OP_WRITE,   BLKREPL_OP_WRITE, BLKREPL_OP_WRITE,
        BLKREPL_OP_READ,   BLKREPL_OP_READ,    BLKREPL_OP_READ,  BLKREPL_OP_ZEROES,
        BLKREPL_OP_ZEROES, BLKREPL_OP_DISCARD, BLKREPL_OP_FLUSH, BLKREPL_OP_STATUS};
    struct disk *disk = &sim.disks[rng_below(sim.options.sources)];
    uint32_t op = ops[rng_below(16)];

    if (disk->image == NULL || sim.request_count == REQUESTS_MAX) {
        return;
    }
    if (rng_chance(sim.options.misuse_percent)) {
        misuse(disk); /* which may let the host do anything */
        return;
    }
    if (op != BLKREPL_OP_READ && op != BLKREPL_OP_STATUS &&
        rng_chance(sim.options.beside_percent)) {
        beside(disk, op);
    } else {
        through(disk, op);
    }
}

/* ---- The part ---------------------------------------------------------------- */

static void guest_draw(void)
{
    struct sim_options *o = &sim.options;

    o->beside_percent = rng_chance(40) ? 0 : (uint32_t)rng_between(1, 100);
    o->long_writes_percent = rng_chance(85) ? 0 : (uint32_t)rng_between(1, 50);
    o->beside_percent *= !sim_without(FAULT_BESIDE);
    o->long_writes_percent *= !sim_without(FAULT_LONG);
    sim_actor((uint32_t)rng_between(1, 30), false, guest_act);
    sim_actor(o->beside_percent / 4, false, bracket_act);
}

static bool guest_unfinished(void)
{
    return sim.pending > 0;
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
    printf("guest: brackets %u%%, long writes %u%%\n", sim.options.beside_percent,
           sim.options.long_writes_percent);
}

const struct part guest_part = {.draw = guest_draw,
                                .move = guest_move,
                                .unfinished = guest_unfinished,
                                .end = guest_end,
                                .list = guest_list};
