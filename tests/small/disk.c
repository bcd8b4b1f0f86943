/* SPDX-License-Identifier: MIT */
/* disk.c - virtual disks: backends that check the library and do as they are
 * told.
 *
 * A disk is cut into cells, at every offset where something that may happen in
 * this world begins or ends.  A cell holds a tag, which stands for bytes that
 * are different for every tag and position; so a medium is a few bytes, and
 * what the library reads and writes is compared byte for byte all the same. */
#include "small.h"

#include <errno.h>
#include <string.h>

#define OPCODE(op) (1u << (op))

uint8_t patterns[TAG_COUNT][DISK_BYTES_MAX];

void pattern_init(void)
{
    for (uint32_t tag = TAG_OLD; tag < TAG_COUNT; tag++) {
        for (uint32_t i = 0; i < DISK_BYTES_MAX; i++) {
            uint32_t mixed = i * 2654435761u;

            patterns[tag][i] = (uint8_t)(tag << 4 | (mixed >> 28 ^ (mixed >> 14 & 7)));
        }
    }
}

/* ---- Cells -------------------------------------------------------------------- */

uint32_t cell_of(uint32_t position)
{
    uint32_t cell = 0;

    while (cell < run.cell_count && run.cells[cell] < position) {
        cell++;
    }
    return cell;
}

/* The cells that make up a range, which has to begin and end at a cell's. */
uint32_t cell_mask(uint32_t start, uint32_t end)
{
    uint32_t first = cell_of(start);
    uint32_t last = cell_of(end);

    EXPECT(run.cells[first] == start && run.cells[last] == end,
           "a range %u..%u that nothing explains", start, end);
    return (1u << last) - (1u << first);
}

/* What the bytes of a cell are. */
static uint8_t tag_of(const uint8_t *bytes, uint32_t cell)
{
    uint32_t start = run.cells[cell];
    uint32_t tag = bytes[0] >> 4;

    EXPECT(tag < TAG_COUNT &&
               memcmp(bytes, patterns[tag] + start, run.cells[cell + 1] - start) == 0,
           "bytes for position %u that nobody wrote there (the first is 0x%02x)", start, bytes[0]);
    return (uint8_t)tag;
}

/* The bytes of a request in one piece; `scratch` is used if they are not. */
static const uint8_t *gather(const blkrepl_io *io, uint8_t *scratch)
{
    uint8_t *at = scratch;

    if (io->iov_count == 1) {
        return io->iov[0].base;
    }
    for (uint32_t i = 0; i < io->iov_count; i++) {
        memcpy(at, io->iov[i].base, io->iov[i].len);
        at += io->iov[i].len;
    }
    return scratch;
}

static void scatter(const blkrepl_io *io, const uint8_t *from)
{
    for (uint32_t i = 0; i < io->iov_count; i++) {
        memcpy(io->iov[i].base, from, io->iov[i].len);
        from += io->iov[i].len;
    }
}

/* What a write brings, by cells. */
static void payload(const struct queued *q, uint8_t *tags)
{
    static uint8_t scratch[DISK_BYTES_MAX];
    const uint8_t *bytes = q->opcode == BLKREPL_OP_WRITE ? gather(q->io, scratch) : NULL;

    cell_mask(q->start, q->end);
    for (uint32_t cell = cell_of(q->start); run.cells[cell] < q->end; cell++) {
        tags[cell] = bytes != NULL ? tag_of(bytes + run.cells[cell] - q->start, cell)
                     : q->opcode == BLKREPL_OP_COPY_FROM ? state.disks[0].medium[cell]
                     : q->opcode == BLKREPL_OP_ZEROES    ? TAG_ZERO
                                                         : TAG_JUNK;
    }
}

/* ---- Doing it ------------------------------------------------------------------- */

static void store(struct disk *disk, uint32_t start, uint32_t end, const uint8_t *tags)
{
    uint32_t mask = cell_mask(start, end);

    for (uint32_t cell = cell_of(start); run.cells[cell] < end; cell++) {
        disk->medium[cell] = tags[cell];
    }
    disk->unstable |= mask;
    for (uint32_t i = 0; i < disk->in_flight; i++) {
        disk->queue[i].flush_mask &= ~mask;
    }
    for (uint32_t i = 0; i < OPS_MAX && disk->number == 0; i++) {
        state.requests[i].flush_mask &= ~mask;
    }
}

/* The host of a bracket writes by itself. */
void disk_land(struct disk *disk, uint32_t start, uint32_t end, uint32_t tag)
{
    uint8_t tags[CELLS_MAX];

    memset(tags, (int)tag, sizeof tags);
    store(disk, start, end, tags);
}

static void land(struct disk *disk, const struct queued *q)
{
    uint8_t tags[CELLS_MAX] = {0};

    payload(q, tags);
    EXPECT(q->opcode == BLKREPL_OP_COPY_FROM ||
               memcmp(tags + cell_of(q->start), q->tags + cell_of(q->start),
                      cell_of(q->end) - cell_of(q->start)) == 0,
           "the data of a write changed before it was completed");
    store(disk, q->start, q->end, tags);
    if (q->opcode == BLKREPL_OP_COPY_FROM) {
        oracle_copied(q);
    }
    if (q->fua) {
        disk->unstable &= ~cell_mask(q->start, q->end);
    }
}

static void fill_read(const struct disk *disk, const struct queued *q)
{
    static uint8_t scratch[DISK_BYTES_MAX];
    uint32_t cell = cell_of(q->start);

    EXPECT(run.cells[cell] == q->start, "a read at %u that nothing explains", q->start);
    for (; run.cells[cell] < q->end; cell++) {
        memcpy(scratch + run.cells[cell] - q->start, patterns[disk->medium[cell]] + run.cells[cell],
               run.cells[cell + 1] - run.cells[cell]);
    }
    scatter(q->io, scratch);
}

static uint32_t fill_status(const struct disk *disk, const struct queued *q)
{
    blkrepl_extent *extents = q->io->extents;
    uint32_t count = 0;

    for (uint32_t cell = cell_of(q->start); run.cells[cell] < q->end; cell++) {
        uint32_t flags = disk->medium[cell] == TAG_ZERO
                             ? BLKREPL_EXTENT_ZERO
                             : BLKREPL_EXTENT_DATA | BLKREPL_EXTENT_ALLOCATED;
        uint64_t bytes = run.cells[cell + 1] - run.cells[cell];

        if (count > 0 && extents[count - 1].flags == flags) {
            extents[count - 1].bytes += bytes;
        } else if (count == q->io->extents_max) {
            break;
        } else {
            extents[count++] = (blkrepl_extent){.bytes = bytes, .flags = flags};
        }
    }
    return count;
}

static void perform(struct disk *disk, const struct queued *q)
{
    uint32_t count = 0;

    switch (q->opcode) {
    case BLKREPL_OP_READ: fill_read(disk, q); break;
    case BLKREPL_OP_STATUS: count = fill_status(disk, q); break;
    case BLKREPL_OP_FLUSH: disk->unstable &= ~q->flush_mask; break;
    default: land(disk, q); break;
    }
    oracle_disk_done(disk, q, q->io->extents, count);
}

/* A code that tells the disk and the kind of request. */
int error_of(uint32_t disk, uint32_t opcode)
{
    return -(int)(2000 + 100 * disk + opcode);
}

void disk_fault(const struct disk *disk, const struct queued *q, int code)
{
    struct fault *fault = &state.fault;

    EXPECT(!fault->used, "a second fault");
    run.faults++;
    state.faults_used++;
    fault->used = 1;
    fault->owner = q->owner;
    fault->disk = disk->number;
    fault->opcode = q->opcode;
    fault->start = q->start;
    fault->end = q->end;
    fault->code = code;
    for (uint32_t i = 0; i < JOBS_MAX; i++) {
        if (job_live(&state.jobs[i])) {
            fault->job = i + 1;
            fault->for_guest = q->start < q->end && q->end <= run.world->bytes &&
                               (state.jobs[i].guest_mask & cell_mask(q->start, q->end)) != 0;
            fault->before_cancel = !state.jobs[i].cancel_asked && !state.shutdown;
        }
    }
}

static int result_of(struct disk *disk, const struct queued *q, enum outcome outcome)
{
    switch (outcome) {
    case OUTCOME_OK: perform(disk, q); return 0;
    case OUTCOME_CANCEL: return -ECANCELED;
    case OUTCOME_LANDED: land(disk, q); break;
    case OUTCOME_FAIL: break;
    }
    if (q->opcode == BLKREPL_OP_COPY_FROM) { /* nobody is to notice */
        run.faults++;
        state.faults_used++;
        return error_of(disk->number, q->opcode);
    }
    disk_fault(disk, q, error_of(disk->number, q->opcode));
    return state.fault.code;
}

void disk_complete(struct disk *disk, uint32_t index, enum outcome outcome)
{
    struct queued q = disk->queue[index];
    int result;
    int answer;

    memmove(disk->queue + index, disk->queue + index + 1,
            (--disk->in_flight - index) * sizeof disk->queue[0]);
    memset(&disk->queue[disk->in_flight], 0, sizeof disk->queue[0]);
    result = result_of(disk, &q, outcome);
    TRACE("    %s completes opcode %u %u..%u: %d%s", disk->number == 0 ? "source" : "target",
          q.opcode, q.start, q.end, result, outcome == OUTCOME_LANDED ? ", but it landed" : "");
    answer = blkrepl_io_complete(state.ctx, q.id, result);
    EXPECT(answer == 0, "io_complete answered %d", answer);
}

/* ---- The backend ------------------------------------------------------------------ */

static uint32_t disk_bytes(const struct disk *disk)
{
    return disk->number == 0 ? run.world->bytes : run.world->target_bytes;
}

static int backend_get_info(void *user, blkrepl_backend_info *info)
{
    const struct disk *disk = user;
    const struct world *world = run.world;

    info->bytes = disk_bytes(disk);
    info->request_alignment = world->alignment;
    info->queue_depth = world->depth;
    info->opcodes = OPCODE(BLKREPL_OP_READ) | OPCODE(BLKREPL_OP_WRITE) | OPCODE(BLKREPL_OP_FLUSH);
    if (!world->plain) {
        info->opcodes |= OPCODE(BLKREPL_OP_ZEROES) | OPCODE(BLKREPL_OP_DISCARD);
        info->opcodes |= OPCODE(BLKREPL_OP_STATUS);
        info->zeroes_bytes_max = world->zeroes_max;
    }
    if (world->offload) {
        info->opcodes |= OPCODE(BLKREPL_OP_COPY_FROM);
        info->copy_domain = &state;
    }
    return 0;
}

static void check_iov(const blkrepl_io *io)
{
    uint64_t sum = 0;

    EXPECT(io->iov_count > 0 && io->iov_count <= 1024, "%u iovecs", io->iov_count);
    for (uint32_t i = 0; i < io->iov_count; i++) {
        sum += io->iov[i].len;
    }
    EXPECT(sum == io->bytes, "iovecs of %llu bytes, not %llu", (ull)sum, (ull)io->bytes);
}

static void check_io(const struct disk *disk, const blkrepl_io *io)
{
    const struct world *world = run.world;
    uint64_t end = io->offset + io->bytes;
    bool moves = io->opcode == BLKREPL_OP_READ || io->opcode == BLKREPL_OP_WRITE;
    bool basic = moves || io->opcode == BLKREPL_OP_FLUSH;

    EXPECT(!disk->closed && !state.gone, "submit after close");
    EXPECT(io->struct_size >= sizeof *io && io->id != 0, "a bad io");
    EXPECT(io->host[0] == NULL && io->host[3] == NULL, "host[] is not 0 at submit");
    EXPECT(disk->in_flight < world->depth, "more than %u in flight", world->depth);
    EXPECT(basic || (!world->plain && io->opcode <= BLKREPL_OP_STATUS) ||
               (world->offload && io->opcode == BLKREPL_OP_COPY_FROM),
           "opcode %u not declared", io->opcode);
    EXPECT(io->opcode != BLKREPL_OP_COPY_FROM ||
               (disk->number == 1 && io->source_user == &state.disks[0] &&
                io->source_offset == io->offset && end <= world->bytes),
           "a copy from what is not the source");
    EXPECT((io->flags & BLKREPL_IO_FUA) == 0, "FUA is not declared");
    if (io->opcode == BLKREPL_OP_FLUSH) {
        return;
    }
    EXPECT(io->bytes > 0 && end <= disk_bytes(disk), "range %llu+%llu is not on the disk",
           (ull)io->offset, (ull)io->bytes);
    EXPECT(io->offset % world->alignment == 0 &&
               (end % world->alignment == 0 || end == disk_bytes(disk)),
           "range %llu+%llu is not aligned", (ull)io->offset, (ull)io->bytes);
    EXPECT(io->opcode != BLKREPL_OP_STATUS || (io->extents != NULL && io->extents_max > 0),
           "STATUS without extents");
    EXPECT(moves || io->opcode == BLKREPL_OP_STATUS || world->zeroes_max == 0 ||
               io->bytes <= world->zeroes_max,
           "opcode %u of %llu bytes", io->opcode, (ull)io->bytes);
    if (moves) {
        check_iov(io);
    }
}

/* Who has asked: told by the memory, or by the kind of request. */
static enum owner owner_of(const struct disk *disk, const blkrepl_io *io)
{
    switch (io->opcode) {
    case BLKREPL_OP_READ: return arena_owner(io->iov[0].base, true);
    case BLKREPL_OP_STATUS: return arena_owner(io->extents, true);
    case BLKREPL_OP_WRITE:
        if (disk->number == 0) {
            return OWNER_GUEST;
        }
        return (uint8_t *)io->iov[0].base >= patterns[0] &&
                       (uint8_t *)io->iov[0].base < patterns[0] + sizeof patterns
                   ? OWNER_GUEST
                   : OWNER_JOB;
    default: return disk->number == 0 ? OWNER_GUEST : OWNER_JOB;
    }
}

static void take(struct disk *disk, blkrepl_io *io)
{
    struct queued *q = &disk->queue[disk->in_flight];

    check_io(disk, io);
    q->io = io;
    q->id = io->id;
    q->opcode = io->opcode;
    q->owner = owner_of(disk, io);
    q->flush_mask = io->opcode == BLKREPL_OP_FLUSH ? disk->unstable : 0;
    if (io->opcode != BLKREPL_OP_FLUSH) {
        q->start = (uint32_t)io->offset;
        q->end = (uint32_t)(io->offset + io->bytes);
    }
    TRACE("    %s gets opcode %u %u..%u%s", disk->number == 0 ? "source" : "target", q->opcode,
          q->start, q->end, q->owner == OWNER_JOB ? " of the job" : "");
    EXPECT(q->owner != OWNER_NONE, "memory that is nobody's");
    io->host[0] = disk;
    if (q->opcode == BLKREPL_OP_READ) {
        scatter(io, patterns[TAG_SCRIBBLE] + q->start);
    } else if (is_write(q->opcode)) {
        payload(q, q->tags);
    }
    oracle_submit(disk, q);
    disk->in_flight++;
}

static void backend_submit(void *user, uint32_t lane, blkrepl_io *const *ios, uint32_t count)
{
    struct disk *disk = user;

    EXPECT(lane < world_lanes() && count > 0, "submit: lane %u, count %u", lane, count);
    for (uint32_t i = 0; i < count; i++) {
        EXPECT(ios[i]->lane == lane, "a request of lane %u among those of lane %u", ios[i]->lane,
               lane);
        EXPECT(disk->number == 0 || lane == 0, "a queue thread submits to the target");
        take(disk, ios[i]);
    }
    while ((run.world->inline_disks >> disk->number & 1) != 0 && disk->in_flight > 0) {
        bool fails = ++run.inline_count == run.inline_at &&
                     (run.inline_outcome != OUTCOME_LANDED || is_write(disk->queue[0].opcode));

        run.inline_hit = run.inline_hit || fails;
        disk_complete(disk, 0, fails ? run.inline_outcome : OUTCOME_OK);
    }
}

static void backend_cancel(void *user, uint64_t id)
{
    struct disk *disk = user;

    EXPECT(!disk->closed && !state.gone, "cancel after close");
    for (uint32_t i = 0; i < disk->in_flight; i++) {
        if (disk->queue[i].id == id) {
            disk->queue[i].told = 1;
            TRACE("    %s is told to cancel opcode %u %u..%u",
                  disk->number == 0 ? "source" : "target", disk->queue[i].opcode,
                  disk->queue[i].start, disk->queue[i].end);
        }
    }
}

static void backend_close(void *user)
{
    struct disk *disk = user;

    TRACE("    %s is closed", disk->number == 0 ? "source" : "target");
    EXPECT(!disk->closed && !state.gone, "close twice, or after context_free");
    EXPECT(disk->in_flight == 0 && disk->image == NULL, "close with %u in flight, or a handle",
           disk->in_flight);
    disk->closed = 1;
}

static void image_release(void *user)
{
    struct disk *disk = user;

    EXPECT(!disk->released && disk->image == NULL, "image released twice, or with its handle open");
    disk->released = 1;
}

void disk_open(uint32_t number)
{
    static const blkrepl_backend_ops ops = {.struct_size = sizeof ops,
                                            .get_info = backend_get_info,
                                            .submit = backend_submit,
                                            .cancel = backend_cancel,
                                            .close = backend_close};
    struct disk *disk = &state.disks[number];
    blkrepl_image_options options = {
        .struct_size = sizeof options, .user = disk, .release = image_release};
    int answer;

    disk->number = number;
    for (uint32_t cell = 0; cell < run.cell_count; cell++) {
        uint32_t cluster = run.cells[cell] / CLUSTER_BYTES;
        bool zero = (run.world->zero_mask >> cluster & 1) != 0;

        disk->medium[cell] = number == 1 ? TAG_TARGET : zero ? TAG_ZERO : TAG_OLD;
    }
    answer = blkrepl_image_open(state.ctx, &ops, disk, &options, &disk->image);
    EXPECT(answer == 0, "open answered %d: %s", answer, blkrepl_error_message());
}
