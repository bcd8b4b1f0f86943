/* SPDX-License-Identifier: MIT */
#include "tape.h"

/* ---- Faults ----------------------------------------------------------------- */

/* Called with the lock held. */
static void tape_fault(struct tape *t, const char *what, const blkrepl_io *io)
{
    if (t->faults++ == 0) {
        snprintf(t->fault, sizeof t->fault, "%s: opcode %u, %llu+%llu, flags %u", what,
                 io ? io->opcode : 0, (unsigned long long)(io ? io->offset : 0),
                 (unsigned long long)(io ? io->bytes : 0), io ? io->flags : 0);
    }
}

static bool opcode_moves_data(uint32_t opcode)
{
    return opcode == BLKREPL_OP_READ || opcode == BLKREPL_OP_WRITE;
}

static bool opcode_writes(uint32_t opcode)
{
    return opcode == BLKREPL_OP_WRITE || opcode == BLKREPL_OP_ZEROES ||
           opcode == BLKREPL_OP_DISCARD || opcode == BLKREPL_OP_COPY_FROM;
}

static bool overlap(uint64_t a, uint64_t a_bytes, uint64_t b, uint64_t b_bytes)
{
    return a_bytes && b_bytes && (a < b ? b - a < a_bytes : a - b < b_bytes);
}

static uint64_t or_else(uint64_t value, uint64_t otherwise)
{
    return value ? value : otherwise;
}

static void check_range(struct tape *t, const blkrepl_io *io)
{
    uint64_t align = or_else(t->info.request_alignment, 1);
    uint64_t size = t->info.bytes;

    if (io->offset > size || io->bytes > size - io->offset) {
        tape_fault(t, "range not inside the image", io);
        return;
    }
    uint64_t end = io->offset + io->bytes;
    if (io->offset % align || (end % align && end != size)) {
        tape_fault(t, "range not aligned", io);
    }
    uint64_t limit = opcode_moves_data(io->opcode)        ? t->info.transfer_bytes_max
                     : io->opcode == BLKREPL_OP_COPY_FROM ? t->info.copy_bytes_max
                     : opcode_writes(io->opcode)          ? t->info.zeroes_bytes_max
                                                          : 0;
    if (limit && io->bytes > limit) {
        tape_fault(t, "longer than the limit", io);
    }
    if (io->bytes == 0) {
        tape_fault(t, "nothing to do", io);
    }
}

static void check_memory(struct tape *t, const blkrepl_io *io)
{
    size_t align = (size_t)or_else(t->info.memory_alignment, 1);
    uint64_t sum = 0;

    if (io->iov_count == 0 || io->iov_count > or_else(t->info.iov_count_max, 1024)) {
        tape_fault(t, "number of iovecs", io);
    }
    for (uint32_t i = 0; i < io->iov_count; i++) {
        const blkrepl_iovec *v = &io->iov[i];
        bool tail = i + 1 == io->iov_count && io->offset + io->bytes == t->info.bytes;

        sum += v->len;
        if ((uintptr_t)v->base % align || (v->len % align && !tail)) {
            tape_fault(t, "iovec not aligned", io);
        }
    }
    if (sum != io->bytes) {
        tape_fault(t, "iovecs do not add up", io);
    }
}

static void check_flags(struct tape *t, const blkrepl_io *io)
{
    bool writes = io->opcode == BLKREPL_OP_WRITE || io->opcode == BLKREPL_OP_ZEROES;
    uint32_t known = BLKREPL_IO_BACKGROUND;

    if (writes && (t->info.flags & BLKREPL_BACKEND_FUA)) {
        known |= BLKREPL_IO_FUA;
    }
    if (io->opcode == BLKREPL_OP_WRITE && (t->info.flags & BLKREPL_BACKEND_COMPRESS)) {
        known |= BLKREPL_IO_COMPRESS;
    }
    if (io->opcode == BLKREPL_OP_ZEROES) {
        known |= BLKREPL_IO_MAY_UNMAP | BLKREPL_IO_NO_FALLBACK;
    }
    if (io->flags & ~known) {
        tape_fault(t, "flags out of place", io);
    }
}

static void check_overlap(struct tape *t, const blkrepl_io *io)
{
    for (size_t i = 0; i < t->queue_count; i++) {
        const blkrepl_io *other = t->queue[i];

        if (other->id == io->id) {
            tape_fault(t, "id is in flight already", io);
        }
        if (opcode_writes(io->opcode) && opcode_writes(other->opcode) &&
            overlap(io->offset, io->bytes, other->offset, other->bytes)) {
            tape_fault(t, "overlapping writes in flight", io);
        }
    }
}

static void check_source(struct tape *t, const blkrepl_io *io)
{
    const struct tape *from = io->source_user;
    uint64_t align = from->info.request_alignment ? from->info.request_alignment : 1;
    uint64_t end = io->source_offset + io->bytes;

    if (from == t || from->closes || !t->info.copy_domain ||
        from->info.copy_domain != t->info.copy_domain) {
        tape_fault(t, "copy from another domain", io);
    }
    if (end > from->info.bytes || io->source_offset % align ||
        (end % align && end != from->info.bytes)) {
        tape_fault(t, "range of the source", io);
    }
}

static void check_io(struct tape *t, const blkrepl_io *io, uint32_t lane)
{
    if (io->struct_size < sizeof *io) {
        tape_fault(t, "struct_size", io);
    }
    if (io->id == 0) {
        tape_fault(t, "id 0", io);
    }
    if (io->opcode > 31 || !(t->info.opcodes & BIT(io->opcode))) {
        tape_fault(t, "opcode was not declared", io);
    }
    if (lane >= or_else(t->lanes, 1) || io->lane != lane) {
        tape_fault(t, "lane", io);
    }
    if (io->host[0] || io->host[1] || io->host[2] || io->host[3]) {
        tape_fault(t, "host[] is not zero", io);
    }
    if (t->closes) {
        tape_fault(t, "submit after close", io);
    }
    if ((t->info.flags & BLKREPL_BACKEND_READ_ONLY) && opcode_writes(io->opcode)) {
        tape_fault(t, "write to a read-only backend", io);
    }
    if (io->opcode != BLKREPL_OP_FLUSH) {
        check_range(t, io);
    }
    if (opcode_moves_data(io->opcode)) {
        check_memory(t, io);
    }
    if (io->opcode == BLKREPL_OP_COPY_FROM) {
        check_source(t, io);
    }
    if (io->opcode == BLKREPL_OP_STATUS && (!io->extents || io->extents_max == 0)) {
        tape_fault(t, "status without extents", io);
    }
    check_flags(t, io);
    check_overlap(t, io);
}

/* ---- Carrying out ------------------------------------------------------------- */

static void tape_status_truth(struct tape *t, const blkrepl_io *io)
{
    uint64_t at = io->offset;
    uint64_t end = io->offset + io->bytes;
    uint32_t n = 0;

    while (at < end) {
        uint64_t next = (at / t->status_unit + 1) * t->status_unit;

        next = next < end ? next : end;
        bool zero = all_zero(t->data + at, (size_t)(next - at));
        uint32_t flags =
            zero ? BLKREPL_EXTENT_ZERO : BLKREPL_EXTENT_DATA | BLKREPL_EXTENT_ALLOCATED;
        if (n > 0 && io->extents[n - 1].flags == flags) {
            io->extents[n - 1].bytes += next - at;
        } else if (n < io->extents_max) {
            io->extents[n++] = (blkrepl_extent){.bytes = next - at, .flags = flags};
        } else {
            break;
        }
        at = next;
    }
}

static void tape_answer_status(struct tape *t, const blkrepl_io *io)
{
    switch (t->status) {
    case TAPE_STATUS_TRUTH: tape_status_truth(t, io); break;
    case TAPE_STATUS_ALL_ZERO:
        io->extents[0] = (blkrepl_extent){.bytes = io->bytes, .flags = BLKREPL_EXTENT_ZERO};
        break;
    case TAPE_STATUS_EMPTY: break;
    case TAPE_STATUS_TOO_LONG:
        for (uint32_t i = 0; i < io->extents_max; i++) {
            io->extents[i] =
                (blkrepl_extent){.bytes = UINT64_MAX / 2, .flags = BLKREPL_EXTENT_ZERO};
        }
        break;
    }
}

/* Called with the lock held. */
static void tape_carry_out(struct tape *t, const blkrepl_io *io)
{
    uint64_t at = io->offset;

    if (io->offset > t->info.bytes || io->bytes > t->info.bytes - io->offset) {
        return; /* a fault already */
    }
    if (opcode_moves_data(io->opcode)) {
        for (uint32_t i = 0; i < io->iov_count; i++) {
            const blkrepl_iovec *v = &io->iov[i];

            if (v->len && io->opcode == BLKREPL_OP_READ) {
                memcpy(v->base, t->data + at, v->len);
            } else if (v->len) {
                memcpy(t->data + at, v->base, v->len);
            }
            at += v->len;
        }
    } else if (io->opcode == BLKREPL_OP_ZEROES) {
        memset(t->data + at, 0, (size_t)io->bytes);
    } else if (io->opcode == BLKREPL_OP_STATUS) {
        tape_answer_status(t, io);
    } else if (io->opcode == BLKREPL_OP_COPY_FROM) {
        const struct tape *from = io->source_user;

        memcpy(t->data + at, from->data + io->source_offset, (size_t)io->bytes);
    }
}

static int tape_result(const struct tape *t, const blkrepl_io *io, int result)
{
    if (result == 0 && t->fail[io->opcode & 15]) {
        return t->fail[io->opcode & 15];
    }
    if (result == 0 && t->fail_opcode == io->opcode &&
        overlap(io->offset, io->bytes, t->fail_offset, t->fail_bytes)) {
        return t->fail_result;
    }
    return result;
}

/* Called with the lock held; the request is dead after the completion that
 * must follow. */
static void tape_settle(struct tape *t, const blkrepl_io *io, int result, bool land)
{
    if (land) {
        tape_carry_out(t, io);
    }
    if (result == 0 && opcode_writes(io->opcode) && io->opcode != BLKREPL_OP_DISCARD) {
        t->settled_bytes += io->bytes;
    }
    for (size_t i = t->log_count; i > 0; i--) {
        if (t->log[i - 1].id == io->id) {
            t->log[i - 1].done = true;
            t->log[i - 1].result = result;
            break;
        }
    }
    t->in_flight--;
}

/* ---- The backend ---------------------------------------------------------------- */

static int tape_get_info(void *user, blkrepl_backend_info *info)
{
    struct tape *t = user;
    uint32_t size = info->struct_size;

    t->get_infos++;
    *info = t->info;
    info->struct_size = size;
    return t->get_info_result;
}

static void tape_note(struct tape *t, const blkrepl_io *io)
{
    t->in_flight++;
    t->in_flight_max = t->in_flight > t->in_flight_max ? t->in_flight : t->in_flight_max;
    if (t->in_flight > or_else(t->info.queue_depth, 64)) {
        tape_fault(t, "more in flight than queue_depth", io);
    }
    if (t->log_count == TAPE_LOG_MAX) {
        memmove(t->log, t->log + TAPE_LOG_MAX / 2, sizeof t->log / 2);
        t->log_count = TAPE_LOG_MAX / 2;
    }
    t->log[t->log_count++] = (struct tape_record){
        .id = io->id,
        .offset = io->offset,
        .bytes = io->bytes,
        .opcode = io->opcode,
        .flags = io->flags,
        .lane = io->lane,
        .thread = pthread_self(),
    };
}

/* One request: queue it or do it. */
static void tape_take(struct tape *t, const blkrepl_io *io, uint32_t lane)
{
    uint64_t id = io->id;
    int decision = TAPE_DEFAULT;

    if (t->on_submit) {
        t->on_submit(t->hook_user, io);
    }
    if (t->decide) {
        decision = t->decide(t->hook_user, io);
    }
    pthread_mutex_lock(&t->lock);
    check_io(t, io, lane);
    tape_note(t, io);
    if (decision == TAPE_DEFAULT) {
        decision = t->hold & BIT(io->opcode & 31) ? TAPE_HOLD : 0;
    }
    if (decision == TAPE_HOLD) {
        if (t->queue_count == TAPE_QUEUE_MAX) {
            abort();
        }
        t->queue[t->queue_count++] = io;
        pthread_cond_signal(&t->more);
        pthread_mutex_unlock(&t->lock);
        return;
    }
    int result = tape_result(t, io, decision);
    tape_settle(t, io, result, result == 0);
    pthread_mutex_unlock(&t->lock);
    if (blkrepl_io_complete(t->ctx, id, result) != 0) {
        pthread_mutex_lock(&t->lock);
        tape_fault(t, "completion inside submit was refused", NULL);
        pthread_mutex_unlock(&t->lock);
    }
}

static void tape_submit(void *user, uint32_t lane, blkrepl_io *const *ios, uint32_t count)
{
    struct tape *t = user;

    pthread_mutex_lock(&t->lock);
    t->inside++;
    if (count == 0) {
        tape_fault(t, "submit of nothing", NULL);
    }
    pthread_mutex_unlock(&t->lock);
    for (uint32_t i = 0; i < count; i++) {
        tape_take(t, ios[i], lane);
    }
    pthread_mutex_lock(&t->lock);
    t->inside--;
    pthread_mutex_unlock(&t->lock);
}

static void tape_cancel(void *user, uint64_t id)
{
    struct tape *t = user;

    pthread_mutex_lock(&t->lock);
    t->inside++;
    t->cancels++;
    if (t->closes) {
        tape_fault(t, "cancel after close", NULL);
    }
    pthread_mutex_unlock(&t->lock);
    if (t->on_cancel) {
        t->on_cancel(t->hook_user, id);
    }
    pthread_mutex_lock(&t->lock);
    t->inside--;
    pthread_mutex_unlock(&t->lock);
}

static void tape_closed(void *user)
{
    struct tape *t = user;

    pthread_mutex_lock(&t->lock);
    t->closes++;
    if (t->inside || t->in_flight) {
        tape_fault(t, "close while in use", NULL);
    }
    pthread_mutex_unlock(&t->lock);
    if (t->on_close) {
        t->on_close(t->hook_user);
    }
}

const blkrepl_backend_ops tape_ops = {
    .struct_size = sizeof(blkrepl_backend_ops),
    .get_info = tape_get_info,
    .submit = tape_submit,
    .cancel = tape_cancel,
    .close = tape_closed,
};

const blkrepl_backend_ops tape_ops_no_cancel = {
    .struct_size = sizeof(blkrepl_backend_ops),
    .get_info = tape_get_info,
    .submit = tape_submit,
    .close = tape_closed,
};

/* ---- Life ------------------------------------------------------------------------ */

void tape_init(struct tape *t, uint64_t bytes)
{
    memset(t, 0, sizeof *t);
    pthread_mutex_init(&t->lock, NULL);
    pthread_cond_init(&t->more, NULL);
    t->info.bytes = bytes;
    t->info.opcodes = OPS_ALL;
    t->status_unit = 512;
    t->data = calloc(1, (size_t)bytes + 1);
    assert_non_null(t->data);
}

void tape_fill(struct tape *t, unsigned tag)
{
    fill(t->data, (size_t)t->info.bytes, 0, tag);
}

blkrepl_image *tape_open_as(struct tape *t, struct env *env, const blkrepl_backend_ops *ops,
                            const blkrepl_image_options *options)
{
    blkrepl_image *image = NULL;

    t->ctx = env->ctx;
    ASSERT_CODE(blkrepl_image_open(env->ctx, ops, t, options, &image), 0);
    assert_non_null(image);
    return image;
}

blkrepl_image *tape_open(struct tape *t, struct env *env)
{
    return tape_open_as(t, env, &tape_ops, NULL);
}

void tape_assert_clean(struct tape *t)
{
    if (t->faults) {
        fail_msg("%u broken promises to the backend, first: %s", t->faults, t->fault);
    }
}

void tape_close(struct tape *t)
{
    tape_assert_clean(t);
    assert_int_equal(t->get_infos, 1);
    assert_int_equal(t->closes, 1);
    assert_int_equal(t->in_flight, 0);
    free(t->data);
    t->data = NULL;
    pthread_cond_destroy(&t->more);
    pthread_mutex_destroy(&t->lock);
}

/* ---- Watching and finishing -------------------------------------------------------- */

size_t tape_pending(struct tape *t, uint32_t opcode)
{
    size_t n = 0;

    pthread_mutex_lock(&t->lock);
    for (size_t i = 0; i < t->queue_count; i++) {
        n += opcode == 0 || t->queue[i]->opcode == opcode;
    }
    pthread_mutex_unlock(&t->lock);
    return n;
}

size_t tape_submitted(struct tape *t, uint32_t opcode)
{
    size_t n = 0;

    pthread_mutex_lock(&t->lock);
    for (size_t i = 0; i < t->log_count; i++) {
        n += opcode == 0 || t->log[i].opcode == opcode;
    }
    pthread_mutex_unlock(&t->lock);
    return n;
}

int tape_find(struct tape *t, uint32_t opcode, uint64_t offset, uint64_t bytes)
{
    int found = -1;

    pthread_mutex_lock(&t->lock);
    for (size_t i = 0; i < t->queue_count && found < 0; i++) {
        const blkrepl_io *io = t->queue[i];

        if ((opcode == 0 || io->opcode == opcode) &&
            (io->opcode == BLKREPL_OP_FLUSH || overlap(io->offset, io->bytes, offset, bytes))) {
            found = (int)i;
        }
    }
    pthread_mutex_unlock(&t->lock);
    return found;
}

bool tape_saw(struct tape *t, uint32_t opcode, uint64_t offset, uint64_t bytes)
{
    bool saw = false;

    pthread_mutex_lock(&t->lock);
    for (size_t i = 0; i < t->log_count; i++) {
        const struct tape_record *r = &t->log[i];

        saw = saw ||
              ((opcode == 0 || r->opcode == opcode) && overlap(r->offset, r->bytes, offset, bytes));
    }
    pthread_mutex_unlock(&t->lock);
    return saw;
}

/* Called with the lock held. */
static const blkrepl_io *tape_unqueue(struct tape *t, int index)
{
    size_t i = (size_t)index;
    const blkrepl_io *io = t->queue[i];

    t->queue_count--;
    memmove(&t->queue[i], &t->queue[i + 1], (t->queue_count - i) * sizeof t->queue[0]);
    return io;
}

int tape_finish_as(struct tape *t, int index, int result, bool land)
{
    pthread_mutex_lock(&t->lock);
    if (index < 0 || (size_t)index >= t->queue_count) {
        pthread_mutex_unlock(&t->lock);
        fail_msg("no such request in the queue: %d", index);
        return -1;
    }
    const blkrepl_io *io = tape_unqueue(t, index);
    uint64_t id = io->id;
    tape_settle(t, io, result, land);
    pthread_mutex_unlock(&t->lock);
    return blkrepl_io_complete(t->ctx, id, result);
}

int tape_finish(struct tape *t, int index, int result)
{
    pthread_mutex_lock(&t->lock);
    if (index >= 0 && (size_t)index < t->queue_count) {
        result = tape_result(t, t->queue[index], result);
    }
    pthread_mutex_unlock(&t->lock);
    return tape_finish_as(t, index, result, result == 0);
}

uint64_t tape_forget(struct tape *t, int index)
{
    pthread_mutex_lock(&t->lock);
    assert_true(index >= 0 && (size_t)index < t->queue_count);
    uint64_t id = tape_unqueue(t, index)->id;
    t->in_flight--;
    pthread_mutex_unlock(&t->lock);
    return id;
}

size_t tape_finish_all(struct tape *t, uint32_t opcode, int result)
{
    size_t n = 0;

    for (;;) {
        int found = -1;

        pthread_mutex_lock(&t->lock);
        for (size_t i = 0; i < t->queue_count && found < 0; i++) {
            found = opcode == 0 || t->queue[i]->opcode == opcode ? (int)i : -1;
        }
        pthread_mutex_unlock(&t->lock);
        if (found < 0) {
            return n;
        }
        ASSERT_CODE(tape_finish(t, found, result), 0);
        n++;
    }
}

void tape_release(struct tape *t, struct env *env)
{
    t->hold = 0;
    t->decide = NULL;
    do {
        env_drain(env);
    } while (tape_finish_all(t, 0, 0) > 0);
}

void tape_poke(struct tape *t, uint64_t offset, const void *data, size_t bytes)
{
    pthread_mutex_lock(&t->lock);
    memcpy(t->data + offset, data, bytes);
    pthread_mutex_unlock(&t->lock);
}

void tape_peek(struct tape *t, uint64_t offset, void *out, size_t bytes)
{
    pthread_mutex_lock(&t->lock);
    memcpy(out, t->data + offset, bytes);
    pthread_mutex_unlock(&t->lock);
}

uint8_t *tape_copy(struct tape *t)
{
    uint8_t *copy = malloc((size_t)t->info.bytes + 1);

    assert_non_null(copy);
    tape_peek(t, 0, copy, (size_t)t->info.bytes);
    return copy;
}

uint64_t first_difference(const uint8_t *a, const uint8_t *b, uint64_t bytes)
{
    for (uint64_t i = 0; i < bytes; i++) {
        if (a[i] != b[i]) {
            return i;
        }
    }
    return UINT64_MAX;
}

void assert_same(const uint8_t *got, const uint8_t *want, uint64_t bytes, const char *what)
{
    uint64_t at = first_difference(got, want, bytes);

    if (at != UINT64_MAX) {
        fail_msg("%s: at %llu of %llu: 0x%02x, not 0x%02x", what, (unsigned long long)at,
                 (unsigned long long)bytes, got[at], want[at]);
    }
}
