/* SPDX-License-Identifier: MIT */
/* op.c - the guest's requests and brackets. */
#include "api.h"

#define GAP 64u
#define ALIGN 4096u

static bool op_changes(const struct op *op)
{
    return op->opcode == BLKREPL_OP_WRITE || op->opcode == BLKREPL_OP_ZEROES ||
           op->opcode == BLKREPL_OP_DISCARD;
}

/* A discard that the backend does not know changes nothing and waits for nobody. */
static bool op_has_effect(const struct op *op)
{
    const struct disk *d = &op->world->disks[op->image->medium];

    return op_changes(op) && op->image->kind != IMAGE_SNAPSHOT &&
           (op->opcode != BLKREPL_OP_DISCARD || op->image->kind != IMAGE_DISK ||
            op->bracket != BRACKET_NONE || (d->info.opcodes & BIT(BLKREPL_OP_DISCARD)) != 0);
}

static bool op_moves(const struct op *op)
{
    return op->opcode == BLKREPL_OP_READ || op->opcode == BLKREPL_OP_WRITE;
}

/* ---- Memory ---------------------------------------------------------------------------- */

/* Cut the request's bytes into pieces, of which some are empty. */
static void op_cut(struct op *op, uint32_t parts, uint32_t skew)
{
    uint8_t *at = op->data;
    uint64_t left = op->bytes;

    for (uint32_t i = 0; i < parts; i++) {
        uint64_t len = i + 1 == parts ? left : op->bytes / parts + (i % 3) * skew;

        if (i % 5 == 3 || len > left) {
            len = i + 1 == parts ? left : 0;
        }
        op->iov[i] = (blkrepl_iovec){.base = len > 0 ? at : NULL, .len = (size_t)len};
        at += len + (skew ? GAP + skew : 0);
        left -= len;
    }
    op->iov_count = parts;
}

static void op_take_memory(struct op *op)
{
    struct world *w = op->world;
    uint32_t parts = w->parts ? w->parts : 1;
    size_t room = (size_t)op->bytes + (size_t)parts * (GAP + w->skew) + w->skew + 2 * ALIGN;

    REQUIRE(parts <= PARTS_MAX, "scenario: too many parts");
    if (!op_moves(op)) {
        return;
    }
    op->buffer = malloc(room);
    op->iov = calloc(parts, sizeof *op->iov);
    REQUIRE(op->buffer && op->iov, "this machine has no memory");
    memset(op->buffer, 0x99, room);
    uintptr_t place = ((uintptr_t)op->buffer + ALIGN - 1) / ALIGN * ALIGN + w->skew;
    op->data = op->buffer + (place - (uintptr_t)op->buffer);
    op_cut(op, parts, w->skew);
}

/* The library may not touch them from now on. */
static void op_drop_memory(struct op *op)
{
    free(op->buffer);
    free(op->iov);
    free(op->extents);
    free(op->mask);
    op->buffer = NULL;
    op->iov = NULL;
    op->extents = NULL;
    op->mask = NULL;
}

static void op_fill(struct op *op)
{
    uint64_t at = op->offset;

    for (uint32_t i = 0; i < op->iov_count; i++) {
        uint8_t *p = op->iov[i].base;

        for (size_t k = 0; k < op->iov[i].len; k++) {
            p[k] = model_byte(&op->image->model, at++, op->tag);
        }
    }
}

/* ---- The model --------------------------------------------------------------------------- */

static void op_reserve(struct op *op)
{
    enum model_kind kind = op->opcode == BLKREPL_OP_WRITE    ? MODEL_DATA
                           : op->opcode == BLKREPL_OP_ZEROES ? MODEL_ZERO
                                                             : MODEL_ANY;

    op->tag = model_reserve(&op->image->model, kind, op->offset, op->bytes);
}

/* From now on the write is under way. */
static void op_tag(struct op *op)
{
    model_go(&op->image->model, op->tag);
    op->tagged = true;
}

static void op_untag(struct op *op, void (*how)(struct model *m, unsigned tag))
{
    if (op->tagged) {
        op->tagged = false;
        how(&op->image->model, op->tag);
    }
}

/* As it was at the start of the job, but for writes that were under way then. */
static void op_check_snapshot(const struct op *op)
{
    const struct job *job = op->image->under;
    const struct model *m = &job->source->model;

    for (uint64_t i = 0; i < op->bytes && op->iov_count == 1; i++) {
        const uint8_t *data = op->iov[0].base;
        uint64_t at = op->offset + i;
        bool good = data[i] == job->start[at];

        for (unsigned tag = 0; !good && tag < m->tags; tag++) {
            good = (job->pending >> tag & 1) != 0 && at >= m->start[tag] && at < m->end[tag];
        }
        REQUIRE(good, "a snapshot shows 0x%02x in byte %llu, not 0x%02x", data[i],
                (unsigned long long)at, job->start[at]);
    }
}

static void op_check_read(const struct op *op)
{
    uint64_t at = 0;

    if (op->image->kind == IMAGE_SNAPSHOT) {
        op_check_snapshot(op);
    }

    for (uint32_t i = 0; i < op->iov_count && !op->image->unmodelled; i++) {
        model_check(&op->image->model, op->offset + at, op->iov[i].base, op->iov[i].len,
                    op->mask + at, "a read");
        at += op->iov[i].len;
    }
}

/* A prefix of the range, and nothing that holds data is called zero. */
static void op_check_status(const struct op *op)
{
    static uint8_t content[MEDIUM_BYTES_MAX];
    const struct model *m = &op->image->model;
    uint64_t at = op->offset;
    bool pending = false;

    for (unsigned tag = 0; tag < m->tags; tag++) {
        pending = pending || m->pending[tag];
    }
    fault_pause(true);
    if (op->image->kind != IMAGE_MEMORY) {
        image_fetch(op->image, content);
    }
    fault_pause(false);
    for (uint32_t i = 0; i < op->extents_max && op->extents[i].bytes > 0; i++) {
        uint64_t end = at + op->extents[i].bytes;

        REQUIRE(end <= op->offset + op->bytes, "status: more than was asked for");
        for (; at < end; at++) {
            REQUIRE((op->extents[i].flags & BLKREPL_EXTENT_ZERO) == 0 || content[at] == 0 ||
                        pending,
                    "status: byte %llu is called zero and is not", (unsigned long long)at);
        }
    }
    REQUIRE(at > op->offset || op->bytes == 0, "status: success and nothing told");
}

/* ---- Results ------------------------------------------------------------------------------- */

/* The unit of the medium's requests. */
static uint64_t op_unit(const struct op *op)
{
    const blkrepl_backend_info *info = &op->world->disks[op->image->medium].info;
    uint64_t unit = info->request_alignment > info->memory_alignment ? info->request_alignment
                                                                     : info->memory_alignment;

    return unit > 0 ? unit : 1;
}

/* Which requests of the medium the guest's request may consist of. */
static uint32_t op_own_opcodes(const struct op *op)
{
    uint32_t read_modify = op_unit(op) > 1 ? BIT(BLKREPL_OP_READ) : 0;

    switch (op->opcode) {
    case BLKREPL_OP_WRITE: return BIT(BLKREPL_OP_WRITE) | BIT(BLKREPL_OP_FLUSH) | read_modify | 1;
    case BLKREPL_OP_ZEROES:
        return BIT(BLKREPL_OP_ZEROES) | BIT(BLKREPL_OP_WRITE) | BIT(BLKREPL_OP_FLUSH) |
               read_modify | 1;
    default: return BIT(op->opcode) | 1;
    }
}

static bool op_own_failure(const struct op *op, int code)
{
    uint64_t unit = op_unit(op), end = op->offset + op->bytes;

    return failure_claim(BIT(op->image->medium), op_own_opcodes(op), op->offset / unit * unit,
                         (end + unit - 1) / unit * unit, code);
}

static bool op_policy_failure(const struct op *op, int code)
{
    const struct image *image = op->image;
    uint64_t unit = image->policy_unit;
    uint64_t end = op->offset + op->bytes;

    if (!op_changes(op) || image->policy_media == 0) {
        return false;
    }
    if (code == -ETIMEDOUT && image->timeouts) {
        return true;
    }
    return failure_claim(image->policy_media,
                         BIT(BLKREPL_OP_READ) | BIT(BLKREPL_OP_WRITE) | BIT(BLKREPL_OP_ZEROES) | 1,
                         op->offset / unit * unit, (end + unit - 1) / unit * unit, code);
}

/* Whether the request may have ended like this. */
static bool op_result_fits(const struct op *op)
{
    int code = op->result;

    if (code == 0) {
        return true;
    }
    if (op->bracket != BRACKET_NONE) {
        return (code == -ECANCELED && op->cancel_sent) || op_policy_failure(op, code);
    }
    if (op->image->kind == IMAGE_SNAPSHOT) {
        return image_snapshot_failure(op->image, op->offset, op->offset + op->bytes, code);
    }
    if (op_own_failure(op, code) || op_policy_failure(op, code)) {
        return true;
    }
    if (code == -ENOTSUP && (op->flags & BLKREPL_IO_NO_FALLBACK) != 0) {
        return true;
    }
    if (code == -ENOMEM && op->image->kind == IMAGE_MEMORY && op_changes(op) &&
        fault_plan()->domain == FAULT_ALLOC && fault_fired() > 0) {
        return true;
    }
    return code == -EIO && op->opcode == BLKREPL_OP_STATUS && op->image->disk &&
           op->image->disk->status != STATUS_TRUE;
}

/* A write that a policy has refused has not touched the medium. */
static bool op_untouched(const struct op *op)
{
    return op->opcode == BLKREPL_OP_WRITE && op->image->kind == IMAGE_DISK &&
           failure_count(BIT(op->image->medium), BIT(BLKREPL_OP_WRITE) | BIT(BLKREPL_OP_FLUSH),
                         op->offset, op->offset + op->bytes) == 0 &&
           op_unit(op) == 1;
}

static void op_settle_model(struct op *op)
{
    if (op->result == 0) {
        op_untag(op, model_done);
    } else if (op_untouched(op)) {
        op_untag(op, model_undo);
    } else {
        op_untag(op, model_failed);
    }
}

/* No earlier write that overlaps is still under way.  (That of a bracket may have
 * ended with its callback still to come.) */
static void op_check_order(const struct op *op)
{
    const struct world *w = op->world;

    for (unsigned i = 0; op->tagged && op->bytes > 0 && w->ops[i] != op; i++) {
        const struct op *other = w->ops[i];

        REQUIRE(!other->tagged || other->image != op->image || other->bytes == 0 ||
                    other->bracket != BRACKET_NONE || other->offset >= op->offset + op->bytes ||
                    op->offset >= other->offset + other->bytes,
                "a write to %llu+%llu has ended before an earlier one that overlaps",
                (unsigned long long)op->offset, (unsigned long long)op->bytes);
    }
}

/* Whether a later write may have been where this one was. */
static bool op_alone(const struct op *op)
{
    const struct world *w = op->world;
    bool alone = true, later = false;

    for (unsigned i = 0; i < w->op_count; i++) {
        const struct op *other = w->ops[i];

        alone = alone && !(later && other->image == op->image && op_changes(other) &&
                           other->offset < op->offset + op->bytes &&
                           op->offset < other->offset + other->bytes);
        later = later || other == op;
    }
    return alone;
}

/* How often the medium has refused or failed to make zeroes there. */
static size_t op_refusals(const struct op *op)
{
    return failure_count(BIT(op->image->medium), BIT(BLKREPL_OP_ZEROES), op->offset,
                         op->offset + op->bytes);
}

/* A flush, or a write with FUA, has succeeded. */
static void op_check_durable(const struct op *op)
{
    const struct image *image = op->image;

    if (!image_volatile(image) || image->unmodelled) {
        return;
    }
    REQUIRE(op->opcode != BLKREPL_OP_FLUSH || durable_until(image->medium, op->clock),
            "a flush has succeeded, and not all that was written before it is durable");
    if (op_changes(op) && (op->flags & BLKREPL_IO_FUA) != 0 && op_alone(op)) {
        REQUIRE(durable_range(image->medium, op->offset, op->offset + op->bytes),
                "a write with FUA at %llu+%llu has succeeded and is not durable",
                (unsigned long long)op->offset, (unsigned long long)op->bytes);
    }
}

static void op_done(void *user, int result)
{
    struct op *op = user;

    op->calls++;
    op->result = result;
    REQUIRE(op->calls == 1 && op->released == 0,
            "the callback of opcode %u ran %d times, released "
            "%d times",
            op->opcode, op->calls, op->released);
    REQUIRE(op_result_fits(op), "opcode %u at %llu+%llu ends with %d (%s), which nothing explains",
            op->opcode, (unsigned long long)op->offset, (unsigned long long)op->bytes, result,
            blkrepl_error_text(result));
    op_check_order(op);
    op_settle_model(op);
    bitmaps_note(op, op_has_effect(op) && (result == 0 || op->image->policy_media == 0));
    if (result == 0) {
        op_check_durable(op);
        REQUIRE((op->flags & BLKREPL_IO_NO_FALLBACK) == 0 || op->refusals == op_refusals(op),
                "zeroes with NO_FALLBACK succeed where they were refused");
    }
    if (result == 0 && op->opcode == BLKREPL_OP_READ) {
        op_check_read(op);
    } else if (result == 0 && op->opcode == BLKREPL_OP_STATUS) {
        op_check_status(op);
    }
    op_drop_memory(op);
    if (op->then) {
        op->then(op);
    }
}

static void op_released(void *user)
{
    struct op *op = user;

    op->released++;
}

/* ---- Giving it to the library ---------------------------------------------------------------- */

static struct op *op_new(struct image *image, const struct op *like)
{
    struct world *w = image->world;
    struct op *op = calloc(1, sizeof *op);

    REQUIRE(op && w->op_count < OPS_MAX, "scenario: too many requests");
    w->ops[w->op_count++] = op;
    *op = *like;
    op->number = w->op_count - 1;
    op->world = w;
    op->image = image;
    return op;
}

static void op_prepare(struct op *op)
{
    op_take_memory(op);
    op->clock = durable_clock(op->image->medium);
    op->refusals = op_refusals(op);
    if (op_has_effect(op)) {
        op_reserve(op);
        op_tag(op);
    }
    if (op->opcode == BLKREPL_OP_WRITE) {
        op_fill(op);
    } else if (op->opcode == BLKREPL_OP_READ) {
        op->mask = malloc((size_t)op->bytes * sizeof *op->mask + 1);
        REQUIRE(op->mask, "this machine has no memory");
        if (op->bytes > 0) {
            memcpy(op->mask, op->image->model.mask + op->offset,
                   (size_t)op->bytes * sizeof *op->mask);
        }
    } else if (op->opcode == BLKREPL_OP_STATUS) {
        op->extents = calloc(op->extents_max, sizeof *op->extents);
        REQUIRE(op->extents, "this machine has no memory");
    }
}

static int op_call(struct op *op)
{
    blkrepl_completion done = {op_done, op, op_released};
    blkrepl_image *handle = op->image->handle;

    switch (op->opcode) {
    case BLKREPL_OP_READ:
        return api_image_read(handle, 0, op->offset, op->iov, op->iov_count, op->flags, &done);
    case BLKREPL_OP_WRITE:
        return api_image_write(handle, 0, op->offset, op->iov, op->iov_count, op->flags, &done);
    case BLKREPL_OP_ZEROES:
        return api_image_write_zeroes(handle, 0, op->offset, op->bytes, op->flags, &done);
    case BLKREPL_OP_DISCARD:
        return api_image_discard(handle, 0, op->offset, op->bytes, op->flags, &done);
    case BLKREPL_OP_FLUSH: return api_image_flush(handle, 0, &done);
    default:
        return api_image_status(handle, 0, op->offset, op->bytes, op->extents, op->extents_max,
                                &done);
    }
}

struct op *op_start(struct image *image, const struct op *like)
{
    struct op *op = op_new(image, like);

    op_prepare(op);
    op->answer = op_call(op);
    if (op->answer < 0) {
        REQUIRE(op->calls == 0 && op->released == 1,
                "refused with %d, and the callback ran %d times, released %d times", op->answer,
                op->calls, op->released);
        op_untag(op, model_undo);
        op_drop_memory(op);
    }
    return op;
}

struct op *op_read(struct image *image, uint64_t offset, uint64_t bytes)
{
    return op_start(image,
                    &(struct op){.opcode = BLKREPL_OP_READ, .offset = offset, .bytes = bytes});
}

struct op *op_write(struct image *image, uint64_t offset, uint64_t bytes, uint32_t flags)
{
    return op_start(
        image,
        &(struct op){.opcode = BLKREPL_OP_WRITE, .offset = offset, .bytes = bytes, .flags = flags});
}

struct op *op_zeroes(struct image *image, uint64_t offset, uint64_t bytes, uint32_t flags)
{
    return op_start(
        image, &(struct op){
                   .opcode = BLKREPL_OP_ZEROES, .offset = offset, .bytes = bytes, .flags = flags});
}

struct op *op_discard(struct image *image, uint64_t offset, uint64_t bytes)
{
    return op_start(image,
                    &(struct op){.opcode = BLKREPL_OP_DISCARD, .offset = offset, .bytes = bytes});
}

struct op *op_flush(struct image *image)
{
    return op_start(image, &(struct op){.opcode = BLKREPL_OP_FLUSH});
}

struct op *op_status(struct image *image, uint64_t offset, uint64_t bytes, uint32_t extents_max)
{
    return op_start(image, &(struct op){.opcode = BLKREPL_OP_STATUS,
                                        .offset = offset,
                                        .bytes = bytes,
                                        .extents_max = extents_max});
}

/* ---- Brackets ------------------------------------------------------------------------------ */

static void op_gone(struct op *op)
{
    op->bracket = BRACKET_GO;
    if (op_changes(op)) {
        op_tag(op);
    }
}

static void op_go(void *user, int result)
{
    struct op *op = user;

    op->calls++;
    op->result = result;
    REQUIRE(op->calls == 1 && op->released == 0 && op->bracket == BRACKET_WAITING,
            "`go` of a bracket ran %d times, released %d times", op->calls, op->released);
    REQUIRE(op_result_fits(op), "a bracket at %llu+%llu ends with %d (%s), which nothing explains",
            (unsigned long long)op->offset, (unsigned long long)op->bytes, result,
            blkrepl_error_text(result));
    REQUIRE(!op->cancel_sent || result == -ECANCELED, "a cancelled bracket gets %d", result);
    if (result < 0) {
        op->bracket = BRACKET_OVER;
        bitmaps_note(op, false);
    } else {
        op_gone(op);
        if (!op->manual) {
            op_perform(op);
        }
    }
    if (op->then) {
        op->then(op);
    }
}

struct op *op_begin(struct image *image, uint32_t opcode, uint64_t offset, uint64_t bytes,
                    bool manual)
{
    struct op *op = op_new(image, &(struct op){.opcode = opcode,
                                               .offset = offset,
                                               .bytes = bytes,
                                               .manual = manual,
                                               .bracket = BRACKET_WAITING});
    blkrepl_bracket what = {
        .struct_size = sizeof what, .opcode = opcode, .offset = offset, .bytes = bytes};
    blkrepl_completion go = {op_go, op, op_released};

    if (op_changes(op) && offset + bytes <= image_bytes(image)) {
        op_reserve(op);
    }
    op->answer = api_write_begin(image->handle, &what, &go, &op->token);
    REQUIRE(op->calls == 0 && op->released == (op->answer == BLKREPL_WAIT ? 0 : 1),
            "begin answers %d; `go` ran %d times, released %d times", op->answer, op->calls,
            op->released);
    if (op->answer < 0) {
        op->bracket = BRACKET_OVER;
    } else if (op->answer == 0) {
        op_gone(op);
        if (!manual) {
            op_perform(op);
        }
    }
    return op;
}

static void op_do_host_io(struct op *op)
{
    struct disk *d = &op->world->disks[op->image->medium];
    uint8_t *data = malloc((size_t)op->bytes + 1);

    REQUIRE(data, "this machine has no memory");
    for (uint64_t i = 0; i < op->bytes; i++) {
        data[i] = op->tagged ? model_byte(&op->image->model, op->offset + i, op->tag) : 0;
    }
    op->result = disk_host_io(d, op->opcode, op->offset, data, op->bytes);
    free(data);
}

void op_perform(struct op *op)
{
    int released = op->released;
    blkrepl_completion done = {NULL, op, op_released};

    op_do_host_io(op);
    op->bracket = BRACKET_OVER;
    op_untag(op, op->result == 0 ? model_done : model_failed);
    REQUIRE(api_write_end(op->world->ctx, op->token, op->result, NULL, 0, &done) == 0,
            "write_end has to wait, which no machine of this release wants");
    bitmaps_note(op, true);
    REQUIRE(op->released == released + 1, "write_end released `done` %d times",
            op->released - released);
    op->released = released;
    api_must(-ENOENT);
    api_write_end(op->world->ctx, op->token, 0, NULL, 0, NULL);
}

void op_cancel(struct op *op)
{
    int rc;

    if (op->bracket == BRACKET_OVER) {
        api_must(-ENOENT);
        api_write_cancel(op->world->ctx, op->token);
        return;
    }
    rc = api_write_cancel(op->world->ctx, op->token);
    REQUIRE(rc == (op->bracket == BRACKET_GO ? 0 : BLKREPL_WAIT),
            "write_cancel answers %d to a bracket that has%s its GO", rc,
            op->bracket == BRACKET_GO ? "" : " not");
    if (op->bracket == BRACKET_GO) {
        op->bracket = BRACKET_OVER;
        op_untag(op, model_undo);
        bitmaps_note(op, false);
    } else {
        op->cancel_sent = true;
        api_must(-ENOENT);
        api_write_cancel(op->world->ctx, op->token);
    }
}

bool op_over(const struct op *op)
{
    if (op->bracket != BRACKET_NONE) {
        return op->bracket == BRACKET_OVER && op->released == 1;
    }
    return op->released == 1 && op->calls == (op->answer < 0 ? 0 : 1);
}

void op_free(struct op *op)
{
    op_drop_memory(op);
    free(op);
}
