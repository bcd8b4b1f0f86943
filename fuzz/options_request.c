/* SPDX-License-Identifier: MIT */
/* options_request.c - brackets, iovecs, extents, completions and queries from
 * the input, and NULL in every place. */
#include "options.h"

#include "base/abi.h"

#include <stdlib.h>

#define IOVS_MAX 40
#define EXTENTS_MAX 24
#define PIECE_BYTES 96

static const struct field bracket_fields[] = {
    FIELD(blkrepl_bracket, offset, FIELD_U64), FIELD(blkrepl_bracket, bytes, FIELD_U64),
    FIELD(blkrepl_bracket, opcode, FIELD_U32), FIELD(blkrepl_bracket, flags, FIELD_U32),
    FIELD(blkrepl_bracket, lane, FIELD_U32),
};
static const struct field image_info_fields[] = {
    FIELD(blkrepl_image_info, id, FIELD_U64),
    FIELD(blkrepl_image_info, flags, FIELD_U32),
};

static const struct shape bracket_shape =
    SHAPE(blkrepl_bracket, BLKREPL_BRACKET_V1_BYTES, bracket_fields);
static const struct shape image_info_shape =
    SHAPE(blkrepl_image_info, BLKREPL_IMAGE_INFO_V1_BYTES, image_info_fields);

static const enum bench_disk choices[] = {BENCH_SOURCE, BENCH_TARGET, BENCH_READ_ONLY, BENCH_COARSE,
                                          BENCH_HUGE};

static enum bench_disk draw_image(void)
{
    enum bench_disk which = choices[take_below(ARRAY_COUNT(choices))];

    bench_image(which);
    return which;
}

/* ---- Completions ------------------------------------------------------------- */

/* A completion on a heap block of its own, with any of its parts missing. */
struct done {
    blkrepl_completion *given; /* NULL: none                                    */
    struct release *user;
    bool fn;
    bool release;
};

static struct done done_draw(void)
{
    struct done done = {.given = NULL};

    if (take_chance(15) || (done.user = release_new()) == NULL) {
        return done;
    }
    done.fn = !take_chance(15);
    done.release = !take_chance(15);
    done.given = fuzz_alloc(sizeof *done.given);
    *done.given = (blkrepl_completion){.fn = done.fn ? release_called : NULL,
                                       .user = done.user,
                                       .release = done.release ? release_run : NULL};
    return done;
}

/* After the call, which copies it. */
static void done_drop(struct done *done)
{
    free(done->given);
}

/* fn has run `calls` times (of at most one), and release has run. */
static void done_expect(const struct done *done, unsigned calls)
{
    if (done->given == NULL) {
        return;
    }
    EXPECT(done->user->calls == (done->fn ? calls : 0), "fn to have run %u times, got %u", calls,
           done->user->calls);
    if (!done->release) {
        release_run(done->user);
    }
    EXPECT(done->user->count == 1, "release to have run once, got %u", done->user->count);
}

/* ---- Brackets ---------------------------------------------------------------- */

static struct packed draw_bracket(enum bench_disk which, struct verdict *verdict)
{
    const struct disk *disk = &bench.disks[which];
    blkrepl_bracket what = {.opcode = BLKREPL_OP_WRITE + take_below(4)};
    uint64_t alignment = disk_alignment(disk);
    struct packed packed;
    bool flush;
    bool inside;

    if (what.opcode != BLKREPL_OP_FLUSH) {
        what.offset = take_below(4) * KIB;
        what.bytes = take_below(5) * KIB;
    }
    shape_draw(&bracket_shape, &what);
    packed = shape_pack(&bracket_shape, &what, true);
    flush = what.opcode == BLKREPL_OP_FLUSH;
    inside = what.offset <= disk->info.bytes && what.bytes <= disk->info.bytes - what.offset;
    verdict_add_packing(verdict, &packed);
    verdict_add_if(
        verdict,
        packed.packing == PACKED_NULL || what.lane != 0 || !inside ||
            what.offset % alignment != 0 ||
            (what.bytes % alignment != 0 && what.offset + what.bytes != disk->info.bytes) ||
            (flush ? what.offset + what.bytes != 0 : !opcode_writes(what.opcode)) ||
            (what.flags & ~(uint32_t)(BLKREPL_IO_FUA | BLKREPL_IO_MAY_UNMAP)) != 0,
        -EINVAL);
    verdict_add_if(verdict, which == BENCH_READ_ONLY && !flush, -EROFS);
    return packed;
}

/* Tokens that are none. */
static void garbage_tokens(uint64_t token)
{
    uint64_t garbage = take_chance(50) ? token ^ (UINT64_C(1) << take_below(64)) : take_number();
    struct done done = done_draw();
    int rc;

    garbage += garbage == token;
    call_begin();
    rc = blkrepl_write_end(bench.ctx, garbage, 0, NULL, 0, done.given);
    call_end(rc, "write_end of garbage");
    EXPECT(rc == -ENOENT, "-ENOENT for token %llu, got %d", (ull)garbage, rc);
    done_drop(&done);
    done_expect(&done, 0);
    call_begin();
    rc = blkrepl_write_cancel(bench.ctx, garbage);
    call_end(rc, "write_cancel of garbage");
    EXPECT(rc == -ENOENT, "-ENOENT for token %llu, got %d", (ull)garbage, rc);
    call_begin();
    rc = blkrepl_io_complete(bench.ctx, token, 0);
    call_end(rc, "io_complete of a token");
    EXPECT(rc == -ENOENT, "-ENOENT for a token as an id, got %d", rc);
}

/* End the bracket with odd arguments. */
static void end_bracket(uint64_t token)
{
    blkrepl_iovec *data = fuzz_alloc(sizeof *data);
    int result = take_chance(50) ? take_code() : 0;
    struct done done = done_draw();
    int rc;

    *data = (blkrepl_iovec){.base = data, .len = sizeof *data};
    if (take_chance(30)) {
        int positive = 1 + (int)(take_number() & (INT32_MAX - 1));

        call_begin();
        rc = blkrepl_write_end(bench.ctx, token, positive, NULL, 0, NULL);
        call_end(rc, "write_end with a count");
        EXPECT(rc == -EINVAL, "-EINVAL for the result %d, got %d", positive, rc);
    }
    call_begin();
    if (take_chance(30)) {
        rc = blkrepl_write_cancel(bench.ctx, token);
        done_drop(&done);
        if (done.given != NULL) {
            release_run(done.user);
            done.given = NULL;
        }
    } else {
        rc = blkrepl_write_end(bench.ctx, token, result, take_chance(50) ? data : NULL, 1,
                               done.given);
        done_drop(&done);
        done_expect(&done, 0);
    }
    call_end(rc, "the end of a bracket");
    EXPECT(rc == 0, "the end of a bracket to answer 0, got %d", rc);
    free(data);
}

void act_bracket(void)
{
    struct verdict verdict = {.count = 0};
    enum bench_disk which = draw_image();
    struct packed what = draw_bracket(which, &verdict);
    struct done go = done_draw();
    uint64_t token = take_u64();
    int rc;

    verdict_add_if(&verdict, go.given == NULL || !go.fn, -EINVAL);
    call_begin();
    rc = blkrepl_write_begin(bench.images[which], what.memory, go.given, &token);
    call_end_as(rc, &verdict, "write_begin");
    packed_free(&what);
    done_drop(&go);
    done_expect(&go, 0);
    EXPECT((token != 0) == (rc == 0), "a token exactly if the answer is 0, got %d", rc);
    if (rc == 0) {
        garbage_tokens(token);
        end_bracket(token);
    }
    garbage_tokens(token);
    if (rc < 0) {
        bench_refused();
    }
}

/* ---- Reads and writes -------------------------------------------------------- */

/* An array of iovecs on a block of its size, each with memory of its size. */
struct iovs {
    blkrepl_iovec *given;
    uint32_t count;
    uint64_t bytes;
    bool valid;
    void *memory[IOVS_MAX];
};

static void draw_iov(struct iovs *iovs, uint32_t i)
{
    blkrepl_iovec *iov = &iovs->given[i];

    iov->len = take_below(PIECE_BYTES);
    iovs->memory[i] = fuzz_alloc(iov->len);
    memset(iovs->memory[i], 0x77, iov->len);
    iov->base = iovs->memory[i];
    switch (take_below(32)) {
    case 1:
        iovs->valid = iovs->valid && iov->len == 0;
        iov->base = NULL;
        break;
    case 2:
        /* Refused for its length: nobody may look at the memory. */
        iov->len = (size_t)INT64_MAX - take_u8();
        break;
    case 3: iov->len = SIZE_MAX - take_u8(); break;
    default: break;
    }
    if (iov->len > INT64_MAX - iovs->bytes) {
        iovs->valid = false;
    } else {
        iovs->bytes += iov->len;
    }
}

static void iovs_draw(struct iovs *iovs)
{
    *iovs = (struct iovs){.count = take_below(IOVS_MAX + 1), .valid = true};
    if (take_chance(8)) {
        iovs->count = take_chance(50) ? (uint32_t)take_number() : 0;
        iovs->valid = iovs->count == 0;
        return;
    }
    iovs->given = fuzz_alloc(iovs->count * sizeof *iovs->given);
    for (uint32_t i = 0; i < iovs->count; i++) {
        draw_iov(iovs, i);
    }
}

static void iovs_free(struct iovs *iovs)
{
    for (uint32_t i = 0; iovs->given != NULL && i < iovs->count; i++) {
        free(iovs->memory[i]);
    }
    free(iovs->given);
}

/* A request with everything that can be wrong about it. */
struct call {
    enum bench_disk which;
    uint32_t opcode;
    uint32_t lane;
    uint32_t flags;
    uint64_t offset;
    uint64_t bytes;
};

static uint32_t flags_known(uint32_t opcode)
{
    switch (opcode) {
    case BLKREPL_OP_WRITE: return BLKREPL_IO_FUA;
    case BLKREPL_OP_ZEROES: return BLKREPL_IO_FUA | BLKREPL_IO_MAY_UNMAP | BLKREPL_IO_NO_FALLBACK;
    default: return 0;
    }
}

static struct call call_draw(void)
{
    struct call call = {.which = draw_image()};

    call.opcode = BLKREPL_OP_READ + take_below(5);
    call.offset = take_chance(20) ? take_number() : take_below(4000);
    call.bytes = take_chance(20) ? take_number() : take_below(4000);
    call.flags = take_chance(20) ? (uint32_t)take_number() : 0;
    call.lane = take_chance(5) ? (uint32_t)take_number() : 0;
    return call;
}

static void call_judge(const struct call *call, uint64_t bytes, struct verdict *verdict)
{
    const struct disk *disk = &bench.disks[call->which];
    bool inside = call->offset <= disk->info.bytes && bytes <= disk->info.bytes - call->offset;

    verdict_add_if(
        verdict,
        call->lane != 0 || (!inside && call->opcode != BLKREPL_OP_FLUSH) ||
            (call->opcode != BLKREPL_OP_FLUSH && (call->flags & ~flags_known(call->opcode)) != 0),
        -EINVAL);
    verdict_add_if(verdict, opcode_writes(call->opcode) && call->which == BENCH_READ_ONLY, -EROFS);
}

static int call_make(const struct call *call, const struct iovs *iovs,
                     const blkrepl_completion *done)
{
    blkrepl_image *image = bench.images[call->which];

    switch (call->opcode) {
    case BLKREPL_OP_READ:
        return blkrepl_image_read(image, call->lane, call->offset, iovs->given, iovs->count,
                                  call->flags, done);
    case BLKREPL_OP_WRITE:
        return blkrepl_image_write(image, call->lane, call->offset, iovs->given, iovs->count,
                                   call->flags, done);
    case BLKREPL_OP_ZEROES:
        return blkrepl_image_write_zeroes(image, call->lane, call->offset, call->bytes, call->flags,
                                          done);
    case BLKREPL_OP_DISCARD:
        return blkrepl_image_discard(image, call->lane, call->offset, call->bytes, call->flags,
                                     done);
    default: return blkrepl_image_flush(image, call->lane, done);
    }
}

/* What was accepted is carried out at once, but for the callback. */
static void settle_done(int rc, struct done *done)
{
    done_drop(done);
    if (rc == 0) {
        EXPECT(done->given == NULL || done->user->calls == 0, "no callback outside of a poll");
        (void)bench_drain();
    }
    done_expect(done, rc == 0);
    if (rc == 0 && done->given != NULL && done->fn) {
        EXPECT(done->user->result == 0, "a request to a good disk to succeed, got %d",
               done->user->result);
    }
}

void act_request(void)
{
    struct verdict verdict = {.count = 0};
    struct call call = call_draw();
    struct done done = done_draw();
    bool data = call.opcode == BLKREPL_OP_READ || call.opcode == BLKREPL_OP_WRITE;
    struct iovs iovs = {.given = NULL};
    int rc;

    if (data) {
        iovs_draw(&iovs);
        if (call.which == BENCH_HUGE && iovs.bytes > IOVS_MAX * PIECE_BYTES) {
            call.offset = bench.disks[BENCH_HUGE].info.bytes; /* there is no such memory */
        }
    } else if (call.which == BENCH_HUGE && call.bytes > 64 * KIB) {
        /* Exabytes of zeroes take as long as they take. */
        call.bytes %= 64 * KIB;
    }
    call_judge(&call, data ? iovs.bytes : call.bytes, &verdict);
    verdict_add_if(&verdict, data && !iovs.valid, -EINVAL);
    call_begin();
    rc = call_make(&call, &iovs, done.given);
    call_end_as(rc, &verdict, "a request");
    if (rc < 0) {
        iovs_free(&iovs);
    }
    settle_done(rc, &done);
    if (rc == 0) {
        iovs_free(&iovs);
    } else {
        bench_refused();
    }
}

/* ---- Status ------------------------------------------------------------------ */

static void expect_extents(const blkrepl_extent *extents, uint32_t count, uint64_t bytes)
{
    uint64_t total = 0;
    uint32_t i = 0;

    for (; i < count && extents[i].bytes > 0; i++) {
        EXPECT(extents[i].bytes <= bytes - total, "extents inside the range");
        EXPECT(extents[i].flags != 0 && (extents[i].flags & ~7u) == 0 && extents[i].reserved0 == 0,
               "flags of an extent, got 0x%x", (unsigned)extents[i].flags);
        total += extents[i].bytes;
    }
    EXPECT(total > 0 || bytes == 0, "extents of one byte at least");
}

void act_status(void)
{
    struct verdict verdict = {.count = 0};
    struct call call = call_draw();
    struct done done = done_draw();
    uint32_t count = take_below(EXTENTS_MAX);
    blkrepl_extent *extents = fuzz_alloc(count * sizeof *extents);
    bool missing = take_chance(5);
    int rc;

    call.opcode = BLKREPL_OP_STATUS;
    call.flags = 0;
    memset(extents, 0xa5, count * sizeof *extents);
    call_judge(&call, call.bytes, &verdict);
    verdict_add_if(&verdict, missing || count == 0, -EINVAL);
    call_begin();
    rc = blkrepl_image_status(bench.images[call.which], call.lane, call.offset, call.bytes,
                              missing ? NULL : extents, count, done.given);
    call_end_as(rc, &verdict, "a status");
    settle_done(rc, &done);
    if (rc == 0) {
        expect_extents(extents, count, call.bytes);
    } else {
        bench_refused();
    }
    free(extents);
}

/* ---- Queries ----------------------------------------------------------------- */

void act_query_image(void)
{
    blkrepl_image *image = bench.images[draw_image()];
    blkrepl_image_info full = {.struct_size = sizeof full};
    struct packed packed = info_draw(&image_info_shape);
    int rc;

    call_begin();
    rc = blkrepl_image_query(image, packed.memory);
    call_end(rc, "image_query");
    EXPECT(rc != 0 || blkrepl_image_query(image, &full) == 0, "a query of the whole");
    info_expect(&image_info_shape, &packed, rc, &full);
    if (rc != 0) {
        bench_refused();
    }
    packed_free(&packed);
}

/* ---- NULL, and lanes that are none ------------------------------------------- */

static int null_image_call(const blkrepl_completion *done)
{
    blkrepl_extent extent;

    switch (take_below(6)) {
    case 0: return blkrepl_image_read(NULL, 0, 0, NULL, 0, 0, done);
    case 1: return blkrepl_image_write(NULL, 0, 0, NULL, 0, 0, done);
    case 2: return blkrepl_image_write_zeroes(NULL, 0, 0, 0, 0, done);
    case 3: return blkrepl_image_discard(NULL, 0, 0, 0, 0, done);
    case 4: return blkrepl_image_flush(NULL, 0, done);
    default: return blkrepl_image_status(NULL, 0, 0, 1, &extent, 1, done);
    }
}

static int null_job_call(void)
{
    blkrepl_job_info info = {.struct_size = sizeof info};

    switch (take_below(9)) {
    case 6: return blkrepl_job_complete(NULL);
    case 7: return blkrepl_job_finalize(NULL);
    case 8: return blkrepl_job_dismiss(NULL);
    case 0: return blkrepl_job_start(NULL);
    case 1: return blkrepl_job_pause(NULL);
    case 2: return blkrepl_job_resume(NULL);
    case 3: return blkrepl_job_set_speed(NULL, take_number());
    case 4: return blkrepl_job_cancel(NULL, take_below(2));
    default: return blkrepl_job_query(NULL, take_chance(50) ? &info : NULL);
    }
}

static int null_context_call(void)
{
    uint64_t number = take_number();
    blkrepl_image *image;
    uint64_t deadline;

    switch (take_below(10)) {
    case 0: return blkrepl_context_create(NULL, NULL);
    case 1: return blkrepl_image_open(NULL, &disk_ops, NULL, NULL, &image);
    case 2: return blkrepl_image_open_memory(NULL, number, NULL, &image);
    case 3: return blkrepl_image_open_file(NULL, "/", NULL, NULL, &image);
    case 4: return blkrepl_poll(NULL, 0, 0);
    case 5: return blkrepl_poll_arm(NULL, 0, &deadline);
    case 6: return blkrepl_poll_fd(NULL, 0);
    case 7: return blkrepl_io_complete(NULL, number, 0);
    case 8: return blkrepl_write_cancel(NULL, number);
    default: return blkrepl_write_end(NULL, number, 0, NULL, 0, NULL);
    }
}

static int null_other_call(void)
{
    uint32_t lane = 1 + (uint32_t)(take_number() & INT32_MAX);
    blkrepl_image_info info = {.struct_size = sizeof info};
    blkrepl_image *image = bench_image(BENCH_SOURCE);
    uint64_t deadline;

    switch (take_below(12)) {
    case 0: return blkrepl_image_open(bench.ctx, &disk_ops, NULL, NULL, NULL);
    case 1: return blkrepl_image_open_memory(bench.ctx, 1, NULL, NULL);
    case 2: return blkrepl_image_open_file(bench.ctx, "/", NULL, NULL, NULL);
    case 3: return blkrepl_image_query(NULL, &info);
    case 4: return blkrepl_image_query(image, NULL);
    case 5: return blkrepl_poll(bench.ctx, lane, 0);
    case 6: return blkrepl_poll_arm(bench.ctx, lane, &deadline);
    case 7: return blkrepl_poll_arm(bench.ctx, 0, NULL);
    case 8: return blkrepl_poll_fd(bench.ctx, lane);
    case 9: return blkrepl_poll_wake(bench.ctx, lane);
    case 10: return blkrepl_backup_start(image, bench_image(BENCH_TARGET), NULL, NULL);
    default: return blkrepl_backup_create(image, bench_image(BENCH_TARGET), NULL, NULL);
    }
}

static int null_newer_call(void)
{
    blkrepl_throttle_info info = {.struct_size = sizeof info};
    blkrepl_image *image = bench_image(BENCH_SOURCE);
    blkrepl_throttle *throttle;
    blkrepl_group *group;
    blkrepl_job *job;

    switch (take_below(13)) {
    case 0: return blkrepl_throttle_create(NULL, NULL, &throttle);
    case 1: return blkrepl_throttle_create(bench.ctx, NULL, NULL);
    case 2: return blkrepl_throttle_set(NULL, NULL);
    case 3: return blkrepl_throttle_query(NULL, &info);
    case 4: return blkrepl_image_set_throttle(NULL, NULL);
    case 5: return blkrepl_group_create(NULL, 0, &group);
    case 6: return blkrepl_group_create(bench.ctx, 0, NULL);
    case 7: return blkrepl_group_add(NULL, NULL);
    case 8: return blkrepl_group_start(NULL);
    case 9: return blkrepl_group_cancel(NULL, 0);
    case 10: return blkrepl_snapshot_open(NULL, NULL, &image);
    case 11: return blkrepl_verify_create(image, NULL, NULL, &job);
    default: return blkrepl_verify_start(image, bench_image(BENCH_TARGET), NULL, NULL);
    }
}

void act_null(void)
{
    struct done done = done_draw();
    uint32_t kind = take_below(5);
    int rc;

    EXPECT(blkrepl_context_free(NULL) == 0 && blkrepl_context_now(NULL) == 0, "NULL to be nothing");
    blkrepl_image_close(NULL);
    blkrepl_job_free(NULL);
    blkrepl_throttle_free(NULL);
    blkrepl_group_free(NULL);
    EXPECT(blkrepl_error_text((int)take_u64())[0] != '\0', "a text for every code");
    call_begin();
    if (kind == 0) {
        rc = null_image_call(done.given);
    } else {
        if (done.given != NULL) {
            release_run(done.user);
            done.fn = false;
            done.release = true;
        }
        rc = kind == 1   ? null_job_call()
             : kind == 2 ? null_context_call()
             : kind == 3 ? null_other_call()
                         : null_newer_call();
    }
    call_end(rc, "a call with NULL");
    EXPECT(rc == -EINVAL, "-EINVAL, got %d", rc);
    done_drop(&done);
    done_expect(&done, 0);
    bench_refused();
}
