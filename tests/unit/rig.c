/* SPDX-License-Identifier: MIT */
#include "unit/rig.h"

#include "base/checked.h"
#include "block/quick.h"

bool quick(void)
{
    const char *set = getenv("BLKREPL_TEST_QUICK");

    return set != NULL && set[0] != '\0' && strcmp(set, "0") != 0;
}

uint64_t rng_below(struct rng *rng, uint64_t below)
{
    rng->state = rng->state * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
    return ((rng->state ^ rng->state >> 29) >> 8) % below;
}

/* ---- Memory ----------------------------------------------------------------- */

static bool heap_refuses(struct heap *heap)
{
    heap->calls++;
    if (heap->calls == heap->fail_at) {
        return true;
    }
    heap->live++;
    return false;
}

static void *heap_alloc(void *user, size_t bytes)
{
    return heap_refuses(user) ? NULL : malloc(bytes);
}

static void *heap_zalloc(void *user, size_t bytes)
{
    return heap_refuses(user) ? NULL : calloc(1, bytes);
}

static void *heap_realloc(void *user, void *memory, size_t bytes)
{
    struct heap *heap = user;

    heap->calls++;
    heap->live += memory == NULL;
    return heap->calls == heap->fail_at ? NULL : realloc(memory, bytes);
}

static void heap_free(void *user, void *memory)
{
    struct heap *heap = user;

    heap->live -= memory != NULL;
    free(memory);
}

static void *heap_buffer_alloc(void *user, size_t align, size_t bytes)
{
    void *memory = NULL;

    if (heap_refuses(user)) {
        return NULL;
    }
    align = align < sizeof(void *) ? sizeof(void *) : align;
    return posix_memalign(&memory, align, bytes) == 0 ? memory : NULL;
}

static void heap_buffer_free(void *user, void *memory, size_t bytes)
{
    (void)bytes;
    heap_free(user, memory);
}

blkrepl_allocator heap_allocator(struct heap *heap)
{
    return (blkrepl_allocator){.struct_size = sizeof(blkrepl_allocator),
                               .user = heap,
                               .alloc = heap_alloc,
                               .zalloc = heap_zalloc,
                               .realloc = heap_realloc,
                               .free = heap_free,
                               .buffer_alloc = heap_buffer_alloc,
                               .buffer_free = heap_buffer_free};
}

/* ---- Context ---------------------------------------------------------------- */

static uint64_t rig_clock(void *user)
{
    return ((struct rig *)user)->now;
}

static int rig_entropy(void *user, void *out, size_t bytes)
{
    (void)user;
    memset(out, 0x5a, bytes);
    return 0;
}

static void rig_log(void *user, uint32_t level, const char *line)
{
    struct rig *rig = user;
    unsigned at = rig->line_count++ % RIG_LINES;

    rig->levels[at] = level;
    snprintf(rig->lines[at], sizeof rig->lines[at], "%s", line);
}

static void rig_sink(void *user, const blkrepl_event *event)
{
    struct rig *rig = user;

    rig->events[rig->event_count++ % RIG_EVENTS] = *event;
}

static void rig_sink_release(void *user)
{
    ((struct rig *)user)->sink_released++;
}

blkrepl_context_options rig_options(struct rig *rig, const blkrepl_context_options *base,
                                    blkrepl_hooks *hooks, blkrepl_allocator *allocator)
{
    blkrepl_context_options options = {.struct_size = sizeof options};

    if (base != NULL) {
        options = *base;
        options.struct_size = sizeof options;
    }
    *allocator = heap_allocator(&rig->heap);
    *hooks = (blkrepl_hooks){.struct_size = sizeof *hooks,
                             .user = rig,
                             .clock_ns = rig->real_clock ? NULL : rig_clock,
                             .entropy = rig_entropy,
                             .log = rig->no_log ? NULL : rig_log};
    options.allocator = allocator;
    options.hooks = hooks;
    options.on_event = (blkrepl_event_sink){
        .fn = rig->no_sink ? NULL : rig_sink, .user = rig, .release = rig_sink_release};
    return options;
}

void rig_open(struct rig *rig, const blkrepl_context_options *base)
{
    blkrepl_hooks hooks;
    blkrepl_allocator allocator;
    blkrepl_context_options options = rig_options(rig, base, &hooks, &allocator);

    rig->now = SECOND;
    assert_int_equal(blkrepl_context_create(&options, &rig->ctx), 0);
}

void rig_close(struct rig *rig)
{
    int rc = blkrepl_context_free(rig->ctx);

    if (rc != 0) {
        fail_msg("context_free: %s", blkrepl_error_message());
    }
    assert_int_equal(rig->heap.live, 0);
    assert_int_equal(rig->sink_released, 1);
}

int rig_poll(struct rig *rig)
{
    int total = 0;
    int ran;

    for (int i = 0; i < 100000; i++) {
        atomic_store(&rig->ctx->attention, true); /* tests put things on lists by hand */
        ran = blkrepl_poll(rig->ctx, 0, 0);
        assert_true(ran >= 0);
        total += ran;
        if (ran == 0 && !blkrepl__lane_busy(rig->ctx, 0)) {
            return total;
        }
    }
    fail_msg("the context does not come to rest");
    return total;
}

void rig_advance(struct rig *rig, uint64_t ns)
{
    rig->now += ns;
    rig_poll(rig);
}

unsigned rig_events(const struct rig *rig, uint32_t type)
{
    unsigned count = 0;

    for (unsigned i = 0; i < rig->event_count && i < RIG_EVENTS; i++) {
        count += rig->events[i].type == type;
    }
    return count;
}

const blkrepl_event *rig_event(const struct rig *rig, uint32_t type, unsigned nth)
{
    for (unsigned i = 0; i < rig->event_count && i < RIG_EVENTS; i++) {
        if (rig->events[i].type == type && nth-- == 0) {
            return &rig->events[i];
        }
    }
    fail_msg("no such event");
    return NULL;
}

/* ---- Backend ---------------------------------------------------------------- */

static void script_wrong(struct script *script, const blkrepl_io *io, const char *why)
{
    if (script->wrong++ == 0) {
        snprintf(script->why, sizeof script->why, "opcode %u, %llu+%llu: %s", (unsigned)io->opcode,
                 (unsigned long long)io->offset, (unsigned long long)io->bytes, why);
    }
}

static void script_check_iov(struct script *script, const blkrepl_io *io)
{
    const blkrepl_backend_info *info = &script->info;
    uint32_t most = info->iov_count_max != 0 ? info->iov_count_max : 1024;
    uintptr_t mask = info->memory_alignment != 0 ? info->memory_alignment - 1 : 0;
    uint64_t total = 0;

    if (io->iov_count > most) {
        script_wrong(script, io, "too many iovecs");
    }
    for (uint32_t i = 0; i < io->iov_count; i++) {
        bool last = i + 1 == io->iov_count && io->offset + io->bytes == info->bytes;

        if (((uintptr_t)io->iov[i].base & mask) != 0 || (!last && (io->iov[i].len & mask) != 0)) {
            script_wrong(script, io, "an iovec is not aligned");
        }
        total += io->iov[i].len;
    }
    if (total != io->bytes) {
        script_wrong(script, io, "the iovecs are not together its bytes");
    }
}

static void script_check_range(struct script *script, const blkrepl_io *io)
{
    const blkrepl_backend_info *info = &script->info;
    uint64_t mask = max_u64(info->request_alignment, info->memory_alignment);
    bool data = io->opcode == BLKREPL_OP_READ || io->opcode == BLKREPL_OP_WRITE;
    uint64_t most = data                                 ? info->transfer_bytes_max
                    : io->opcode == BLKREPL_OP_STATUS    ? 0
                    : io->opcode == BLKREPL_OP_COPY_FROM ? info->copy_bytes_max
                                                         : info->zeroes_bytes_max;
    uint64_t end = io->offset + io->bytes;

    mask = mask != 0 ? mask - 1 : 0;
    if (end > info->bytes || (io->offset & mask) != 0 ||
        ((end & mask) != 0 && end != info->bytes)) {
        script_wrong(script, io, "the range is not aligned or not inside");
    }
    if (most != 0 && io->bytes > most) {
        script_wrong(script, io, "longer than the limit");
    }
    if (io->bytes == 0 && io->iov_count > 0) {
        script_wrong(script, io, "no bytes, but iovecs");
    }
}

static bool io_changes(const blkrepl_io *io)
{
    return io->opcode == BLKREPL_OP_WRITE || io->opcode == BLKREPL_OP_ZEROES ||
           io->opcode == BLKREPL_OP_DISCARD || io->opcode == BLKREPL_OP_COPY_FROM;
}

static void script_check_source(struct script *script, const blkrepl_io *io)
{
    const struct script *from = io->source_user;
    uint64_t mask = from->info.request_alignment != 0 ? from->info.request_alignment - 1 : 0;
    uint64_t end = io->source_offset + io->bytes;

    if (from == script || !from->opened || from->closed > 0 || script->info.copy_domain == NULL ||
        from->info.copy_domain != script->info.copy_domain) {
        script_wrong(script, io, "its source is not of the domain");
    }
    if (end > from->info.bytes || (io->source_offset & mask) != 0 ||
        ((end & mask) != 0 && end != from->info.bytes)) {
        script_wrong(script, io, "the range of the source is not aligned or not inside");
    }
}

static void script_check(struct script *script, const blkrepl_io *io)
{
    uint32_t depth = script->info.queue_depth != 0 ? script->info.queue_depth : 64;

    if (io->struct_size != sizeof *io || io->id == 0 || io->host[0] != NULL ||
        io->host[3] != NULL) {
        script_wrong(script, io, "header");
    }
    if (io->opcode > 7 || (script->info.opcodes >> io->opcode & 1) == 0) {
        script_wrong(script, io, "the opcode is not declared");
    }
    if (script->waiting_count >= depth) {
        script_wrong(script, io, "more than queue_depth in flight");
    }
    if ((io->flags & BLKREPL_IO_FUA) != 0 && (script->info.flags & BLKREPL_BACKEND_FUA) == 0) {
        script_wrong(script, io, "FUA is not declared");
    }
    if (io->opcode == BLKREPL_OP_READ || io->opcode == BLKREPL_OP_WRITE) {
        script_check_iov(script, io);
    } else if (io->iov_count != 0) {
        script_wrong(script, io, "iovecs without data");
    }
    if (io->opcode == BLKREPL_OP_COPY_FROM) {
        script_check_source(script, io);
    } else if (io->source_user != NULL || io->source_offset != 0) {
        script_wrong(script, io, "a source that it has not");
    }
    if (io->opcode != BLKREPL_OP_FLUSH) {
        script_check_range(script, io);
    } else if (io->offset != 0 || io->bytes != 0 || io->flags != 0) {
        script_wrong(script, io, "a flush with a range or flags");
    }
    for (unsigned i = 0; i < script->waiting_count && io_changes(io); i++) {
        const blkrepl_io *other = script->waiting[i];

        if (io_changes(other) && range_overlaps(io->offset, io->offset + io->bytes, other->offset,
                                                other->offset + other->bytes)) {
            script_wrong(script, io, "overlaps another write in flight");
        }
    }
}

/* Answer from the map, cut to the range. */
static void script_status(struct script *script, blkrepl_io *io)
{
    uint32_t most = script->extents_most != 0 ? script->extents_most : io->extents_max;
    uint64_t at = io->offset;
    uint64_t end = io->offset + io->bytes;
    uint64_t start = 0;
    uint32_t used = 0;

    most = most < io->extents_max ? most : io->extents_max;
    if (script->map_raw) {
        for (used = 0; used < most && script->map[used].bytes > 0; used++) {
            io->extents[used] = script->map[used];
        }
        return;
    }
    for (uint32_t i = 0; at < end && used < most; i++) {
        bool known = i < SCRIPT_EXTENTS && script->map[i].bytes > 0;
        uint64_t until = known ? start + script->map[i].bytes : end;

        if (until > at) {
            io->extents[used].flags =
                known ? script->map[i].flags : BLKREPL_EXTENT_DATA | BLKREPL_EXTENT_ALLOCATED;
            io->extents[used++].bytes = min_u64(until, end) - at;
            at = min_u64(until, end);
        }
        start = until;
    }
}

/* Carry a request out. */
static void script_do(struct script *script, blkrepl_io *io)
{
    unsigned char *at = script->disk != NULL ? script->disk + io->offset : NULL;

    if (io->opcode == BLKREPL_OP_STATUS) {
        script_status(script, io);
    } else if (at == NULL) {
        return;
    } else if (io->opcode == BLKREPL_OP_ZEROES) {
        memset(at, 0, (size_t)io->bytes);
    } else if (io->opcode == BLKREPL_OP_DISCARD) {
        memset(at, 0xdd, (size_t)io->bytes);
    } else if (io->opcode == BLKREPL_OP_COPY_FROM) {
        memcpy(at, ((const struct script *)io->source_user)->disk + io->source_offset,
               (size_t)io->bytes);
    }
    for (uint32_t i = 0; i < io->iov_count && io->opcode <= BLKREPL_OP_WRITE; i++) {
        if (io->opcode == BLKREPL_OP_READ) {
            memcpy(io->iov[i].base, at, io->iov[i].len);
        } else {
            memcpy(at, io->iov[i].base, io->iov[i].len);
        }
        at += io->iov[i].len;
    }
}

static void script_complete(struct script *script, blkrepl_io *io, int result)
{
    uint64_t id = io->id;

    if (result == 0) {
        script_do(script, io);
    }
    if (blkrepl_io_complete(script->ctx, id, result) != 0) {
        script_wrong(script, io, "its completion was refused");
    }
}

static int script_get_info(void *user, blkrepl_backend_info *info)
{
    struct script *script = user;
    uint32_t size = info->struct_size;

    *info = script->info;
    info->struct_size = size;
    return script->info_result;
}

static void script_submit(void *user, uint32_t lane, blkrepl_io *const *ios, uint32_t count)
{
    struct script *script = user;
    void (*inside)(struct script *) = script->inside;

    script->submits++;
    for (uint32_t i = 0; i < count; i++) {
        blkrepl_io *io = ios[i];

        script_check(script, io);
        if (io->lane != lane) {
            script_wrong(script, io, "wrong lane");
        }
        script->notes[script->note_count++ % SCRIPT_NOTES] =
            (struct note){.id = io->id,
                          .offset = io->offset,
                          .bytes = io->bytes,
                          .opcode = io->opcode,
                          .flags = io->flags,
                          .iov_count = io->iov_count};
        if ((script->hold >> io->opcode & 1) != 0) {
            script->waiting[script->waiting_count++] = io;
        } else {
            script_complete(script, io, script->result[io->opcode]);
        }
    }
    script->inside = NULL;
    if (inside != NULL) {
        inside(script);
    }
}

static void script_cancel(void *user, uint64_t id)
{
    struct script *script = user;

    script->cancels++;
    script->cancelled = id;
}

static void script_close(void *user)
{
    ((struct script *)user)->closed++;
}

const blkrepl_backend_ops script_ops = {.struct_size = sizeof script_ops,
                                        .get_info = script_get_info,
                                        .submit = script_submit,
                                        .cancel = script_cancel,
                                        .close = script_close};

void script_init(struct script *script, uint64_t bytes)
{
    memset(script, 0, sizeof *script);
    script->info.bytes = bytes;
    script->info.opcodes = 0x7e;
    if (bytes <= 64 * MIB) {
        script->disk = calloc(1, (size_t)bytes + 1);
        assert_non_null(script->disk);
    }
}

void script_go_slow(blkrepl_image *image)
{
    blkrepl__enter(image->ctx);
    blkrepl__quick_stop(image);
    image->slow_left = UINT32_MAX;
    blkrepl__leave(image->ctx, 0);
}

blkrepl_image *script_open_quick(struct script *script, struct rig *rig)
{
    blkrepl_image *image;

    script->ctx = rig->ctx;
    script->opened = true;
    assert_int_equal(blkrepl_image_open(rig->ctx, &script_ops, script, NULL, &image), 0);
    return image;
}

blkrepl_image *script_open(struct script *script, struct rig *rig)
{
    blkrepl_image *image = script_open_quick(script, rig);

    script_go_slow(image);
    return image;
}

void script_end(struct script *script, unsigned nth, int result)
{
    blkrepl_io *io;

    assert_true(nth < script->waiting_count);
    io = script->waiting[nth];
    script->waiting_count--;
    memmove(&script->waiting[nth], &script->waiting[nth + 1],
            (script->waiting_count - nth) * sizeof script->waiting[0]);
    script_complete(script, io, result);
}

void script_end_all(struct script *script)
{
    while (script->waiting_count > 0) {
        script_end(script, 0, 0);
    }
}

unsigned script_find(const struct script *script, uint32_t opcode, uint64_t offset)
{
    for (unsigned i = 0; i < script->waiting_count; i++) {
        if (script->waiting[i]->opcode == opcode && script->waiting[i]->offset == offset) {
            return i;
        }
    }
    fail_msg("no opcode %u at %llu waits", (unsigned)opcode, (unsigned long long)offset);
    return 0;
}

unsigned script_count(const struct script *script, uint32_t opcode)
{
    unsigned count = 0;

    assert_true(script->note_count <= SCRIPT_NOTES);
    for (unsigned i = 0; i < script->note_count; i++) {
        count += opcode == 0 || script->notes[i].opcode == opcode;
    }
    return count;
}

void script_forget(struct script *script)
{
    script->note_count = 0;
    script->submits = 0;
}

void script_fini(struct script *script)
{
    if (script->wrong > 0) {
        fail_msg("%u requests were wrong: %s", script->wrong, script->why);
    }
    assert_int_equal(script->waiting_count, 0);
    assert_int_equal(script->closed, script->opened);
    free(script->disk);
}
