/* SPDX-License-Identifier: MIT */
/* snapshot_io.c - the machine of one request to a snapshot.
 *
 * It is done piece by piece.  Where a piece is decides itself anew each time that the
 * request is woken, since whatever it waited for may have moved it; and what is read
 * from the source cannot change under the read, since guest writes wait for its range.
 *
 * Invariants:
 *   1. A request that is not FREE is on the list of busy ones.
 *   2. In SOURCE, TARGET and DISCARD its request is at a port, exactly once; in WAIT and
 *      HELD its `ready` is on one list, or runs.
 *   3. In SOURCE its range is live and active among the source's, unless it was given
 *      up; in TARGET and DISCARD it is live among the target's.  Nothing that another
 *      reads from the target is discarded.
 *   4. What is told as read was read while the engine ran.
 *
 *   FREE -> WAIT -> SOURCE -> WAIT
 *              |--> TARGET -> WAIT
 *              |--> HELD -> DISCARD -> WAIT
 *              +------------^
 *   and each may end in FREE.
 *
 *   FREE    -> WAIT     blkrepl__snapshot_accept
 *   WAIT    -> SOURCE   read_source    it has not been saved, and no write is in flight
 *   WAIT    -> TARGET   read_target    it has been saved
 *   WAIT    -> HELD     read_forget    it was saved, and somebody reads it
 *   WAIT    -> DISCARD  read_discard   it was saved
 *   WAIT    -> FREE     read_end       all is done; or it failed, or was given up
 *   SOURCE  -> WAIT     read_piece_ended
 *   SOURCE  -> FREE     read_end       it failed, or was given up; STATUS: a short answer
 *   TARGET  -> WAIT     read_piece_ended
 *   TARGET  -> FREE     read_end       the same
 *   HELD    -> DISCARD  read_discard   nobody reads it any more
 *   HELD    -> FREE     read_end       given up
 *   DISCARD -> WAIT     read_piece_ended
 *   DISCARD -> FREE     read_end       given up
 */
#include "job/snapshot.h"

#include <errno.h>
#include <string.h>

#include "base/checked.h"
#include "base/hook.h"
#include "block/status.h"

/* How much of the source a read holds back from guests. */
#define PIECE_BYTES (UINT64_C(1) << 20)
/* The same for a STATUS. */
#define STATUS_BYTES (UINT64_C(1) << 30)
/* Pieces that are done at once, before others have a turn. */
#define PIECES_MAX 64

static const uint32_t snapshot_next[SNAPSHOT_STATE_COUNT] = {
    [SNAPSHOT_FREE] = TO(SNAPSHOT_WAIT),
    [SNAPSHOT_WAIT] = TO(SNAPSHOT_SOURCE) | TO(SNAPSHOT_TARGET) | TO(SNAPSHOT_HELD) |
                      TO(SNAPSHOT_DISCARD) | TO(SNAPSHOT_FREE),
    [SNAPSHOT_SOURCE] = TO(SNAPSHOT_WAIT) | TO(SNAPSHOT_FREE),
    [SNAPSHOT_TARGET] = TO(SNAPSHOT_WAIT) | TO(SNAPSHOT_FREE),
    [SNAPSHOT_HELD] = TO(SNAPSHOT_DISCARD) | TO(SNAPSHOT_FREE),
    [SNAPSHOT_DISCARD] = TO(SNAPSHOT_WAIT) | TO(SNAPSHOT_FREE),
};

static void read_look(struct snapshot_read *read);
static void read_discard(struct snapshot_read *read);

static void read_enter(struct snapshot_read *read, enum snapshot_read_state next)
{
    CHECK(snapshot_next[read->state] & TO(next));
    read->state = next;
}

/* The image that the request is at, or goes to. */
static struct blkrepl_image *read_image(const struct snapshot_read *read)
{
    const struct snapshot *snapshot = read->snapshot;

    return read->state == SNAPSHOT_SOURCE ? snapshot->source : snapshot->target;
}

static bool read_at_port(const struct snapshot_read *read)
{
    return read->state == SNAPSHOT_SOURCE || read->state == SNAPSHOT_TARGET ||
           read->state == SNAPSHOT_DISCARD;
}

/* To where it is read: what a guest waits for goes with the guests' own requests, those of
 * lane 0, which somebody polls. */
static void read_queue(struct snapshot_read *read)
{
    struct port *port = &read_image(read)->leaf->port;

    if (read->hastened) {
        read->request->io.flags &= ~(uint32_t)BLKREPL_IO_BACKGROUND;
        blkrepl__port_submit_read(port, read->request, 0);
    } else {
        blkrepl__port_submit_job(port, read->request, read->io->opcode != BLKREPL_OP_DISCARD);
    }
}

/* A guest has come to wait for the range of a piece. */
static void read_hasten(struct range *range)
{
    struct snapshot_read *read = CONTAINER_OF(range, struct snapshot_read, range);

    if (read->state == SNAPSHOT_SOURCE && !read->hastened) {
        read->hastened = true;
        if (blkrepl__port_withdraw(read->request)) {
            read_queue(read);
        }
    }
}

static void read_drop_range(struct snapshot_read *read)
{
    if (range_live(&read->range)) {
        blkrepl__range_end(&read_image(read)->leaf->ranges, &read->range);
    }
}

/* All of the job's snapshots have the same owner, which is not the engine: it does not
 * find them. */
static void read_add_range(struct snapshot_read *read, bool active)
{
    read->range.kind = RANGE_COPY;
    read->range.owner = read->snapshot->job;
    read->range.hasten = read_hasten;
    read->hastened = false;
    blkrepl__range_add(&read_image(read)->leaf->ranges, &read->range, read->at, read->end);
    read->range.given = active;
}

/* The next one may have the buffer; all look, for some may need it no more. */
static void read_drop_tail(const struct snapshot_read *read)
{
    struct snapshot *snapshot = read->snapshot;

    if (snapshot->tail_user == read) {
        snapshot->tail_user = NULL;
        list_splice(&snapshot->ctx->ready, &snapshot->tail_waiters);
    }
}

static void read_end(struct snapshot_read *read, int result)
{
    struct snapshot *snapshot = read->snapshot;

    read_drop_range(read);
    read_drop_tail(read);
    list_unlink(&read->ready.link);
    read_enter(read, SNAPSHOT_FREE);
    list_remove(&read->link);
    list_prepend(&snapshot->free, &read->link);
    blkrepl_io_complete(snapshot->ctx, read->io->id, result);
}

/* ---- Requests to the source and the target ---------------------------------- */

/* Whether the piece is the target's last block. */
static bool read_is_tail(const struct snapshot_read *read)
{
    return read->state == SNAPSHOT_TARGET && read->at >= read->snapshot->tail_at;
}

/* Where a request to the target ends that may be rounded up. */
static uint64_t read_rounded(const struct snapshot_read *read, uint64_t end)
{
    const blkrepl_backend_info *info = &read_image(read)->leaf->port.info;

    return min_u64(align_up(end, info->request_alignment), info->bytes);
}

/* READ, into the caller's memory or, of the last block, the buffer. */
static void read_fill_data(struct snapshot_read *read, blkrepl_io *io)
{
    struct snapshot *snapshot = read->snapshot;
    uint64_t most = read_image(read)->leaf->port.info.transfer_bytes_max;
    uint64_t bytes;

    io->iov = read->iov;
    if (read_is_tail(read)) {
        read->iov[0] = (blkrepl_iovec){.base = snapshot->tail, .len = (size_t)snapshot->tail_bytes};
        io->iov_count = 1;
        io->bytes = snapshot->tail_bytes;
        read->sent = read->end - read->at;
        return;
    }
    read->sent = min_u64(read->end - read->at, most);
    bytes =
        blkrepl__iov_slice(&read->cursor, read->sent, 1, read->iov, SNAPSHOT_IOVS, &io->iov_count);
    ALWAYS_CHECK(bytes == read->sent);
    io->bytes = bytes;
}

static void read_fill_status(struct snapshot_read *read, blkrepl_io *io)
{
    read->sent = read->end - read->at;
    io->bytes = read_rounded(read, read->end) - read->at;
    io->extents = read->io->extents + read->extents;
    io->extents_max = read->io->extents_max - read->extents;
}

static void read_fill_discard(struct snapshot_read *read, blkrepl_io *io)
{
    struct blkrepl_image *target = read->snapshot->target;

    io->bytes =
        min_u64(read_rounded(read, read->end) - read->at, target->leaf->port.info.zeroes_bytes_max);
    read->sent = min_u64(io->bytes, read->end - read->at);
    record_write(&target->record, io->offset, io->offset + io->bytes);
}

static void read_request_ended(struct request *request);

/* The next part of the piece.  While it is under way the image has a job that reads it,
 * also when ours has ended meanwhile. */
static void read_send(struct snapshot_read *read)
{
    struct blkrepl_image *image = read_image(read);
    blkrepl_io *io = &read->request->io;

    *io = (blkrepl_io){.opcode = read->io->opcode,
                       .flags = read->io->flags & BLKREPL_IO_BACKGROUND,
                       .offset = read->at};
    switch (io->opcode) {
    case BLKREPL_OP_READ: read_fill_data(read, io); break;
    case BLKREPL_OP_STATUS: read_fill_status(read, io); break;
    default: read_fill_discard(read, io); break;
    }
    read->request->ended = read_request_ended;
    read->request->owner = read;
    read->told = false;
    image->jobs_reading++;
    read_queue(read);
}

/* ---- STATUS ------------------------------------------------------------------ */

/* What was found next is so: it joins what came before, if it is the same. */
static void read_add_extent(struct snapshot_read *read, uint64_t bytes, uint32_t flags)
{
    blkrepl_extent *list = read->io->extents;

    if (read->extents > 0 && list[read->extents - 1].flags == flags) {
        list[read->extents - 1].bytes += bytes;
    } else {
        list[read->extents++] = (blkrepl_extent){.bytes = bytes, .flags = flags};
    }
    read->at += bytes;
}

/* Take over what a backend has told; it stands where it belongs already, so each entry
 * is read before one is written over it. */
static int read_status_ended(struct snapshot_read *read, int result)
{
    const blkrepl_io *io = &read->request->io;
    bool valid = result == 0 && blkrepl__status_valid(io);

    for (uint32_t i = 0; valid && i < io->extents_max && read->at < read->end; i++) {
        blkrepl_extent extent = io->extents[i];

        io->extents[i] = (blkrepl_extent){.bytes = 0};
        if (extent.bytes == 0) {
            break;
        }
        read_add_extent(read, min_u64(extent.bytes, read->end - read->at), extent.flags);
    }
    for (uint32_t i = read->extents; i < read->io->extents_max; i++) {
        read->io->extents[i] = (blkrepl_extent){.bytes = 0};
    }
    if (!valid && read->state == SNAPSHOT_TARGET) {
        read_add_extent(read, read->end - read->at, BLKREPL_EXTENT_DATA | BLKREPL_EXTENT_ALLOCATED);
        return 0;
    }
    return valid ? 0 : result < 0 ? result : -EIO;
}

/* ---- Where the pieces are ---------------------------------------------------- */

/* The write in flight that a read of the source has to wait for; brackets whose host has
 * not been told yet make way. */
static struct range *read_blocker(const struct snapshot_read *read)
{
    const struct snapshot *snapshot = read->snapshot;
    struct range *write;

    do {
        write = blkrepl__range_copy_blocker(&snapshot->source->leaf->ranges, read->at, read->end,
                                            snapshot->copy->tap.attached_at);
        if (write != NULL) {
            blkrepl__guest_make_way(guest_of_range(write));
        }
    } while (write != NULL && write->given_at == 0);
    return write;
}

/* The piece is in an image that cannot tell more about it; true if that was all. */
static bool read_plain_status(struct snapshot_read *read, const struct blkrepl_image *image)
{
    if (read->io->opcode != BLKREPL_OP_STATUS || leaf_has(image->leaf, BLKREPL_OP_STATUS)) {
        return false;
    }
    read_add_extent(read, read->end - read->at, BLKREPL_EXTENT_DATA | BLKREPL_EXTENT_ALLOCATED);
    return true;
}

/* The piece has not been saved: read it, and let no guest write there meanwhile. */
static bool read_source(struct snapshot_read *read)
{
    struct range *write;

    if (read_plain_status(read, read->snapshot->source)) {
        return true;
    }
    write = read_blocker(read);
    if (write != NULL) {
        range_wait(write, &read->ready);
        return false;
    }
    read_enter(read, SNAPSHOT_SOURCE);
    read_add_range(read, true);
    read_send(read);
    return false;
}

/* The piece has been saved.  What the target wants to be read as a whole block is a
 * piece of its own, through the buffer, which one has at a time. */
static bool read_target(struct snapshot_read *read)
{
    struct snapshot *snapshot = read->snapshot;

    if (read_plain_status(read, snapshot->target)) {
        return true;
    }
    if (read->io->opcode == BLKREPL_OP_READ && read->at < snapshot->tail_at) {
        read->end = min_u64(read->end, snapshot->tail_at);
    } else if (read->io->opcode == BLKREPL_OP_READ) {
        if (snapshot->tail_user != NULL) {
            list_append(&snapshot->tail_waiters, &read->ready.link);
            return false;
        }
        snapshot->tail_user = read;
    }
    read_enter(read, SNAPSHOT_TARGET);
    read_add_range(read, false);
    read_send(read);
    return false;
}

/* Discard a piece that nobody finds any more, when nobody reads it. */
static void read_discard(struct snapshot_read *read)
{
    read_enter(read, SNAPSHOT_DISCARD);
    read_add_range(read, true);
    read_send(read);
}

/* Who reads the piece from the target. */
static struct range *read_reader(const struct snapshot_read *read)
{
    const struct snapshot *snapshot = read->snapshot;

    return blkrepl__range_copy_of(&snapshot->target->leaf->ranges, snapshot->job, read->at,
                                  read->end);
}

/* Nobody wants the piece any more. */
static bool read_forget(struct snapshot_read *read, enum copy_place place)
{
    const struct snapshot *snapshot = read->snapshot;
    uint64_t cluster = snapshot->copy->config.cluster_bytes;
    struct range *reader;

    if (place != COPY_NOWHERE) {
        blkrepl__copy_forget(snapshot->copy, read->at / cluster,
                             align_up(read->end - read->at, cluster) / cluster);
    }
    if (place != COPY_AT_TARGET || !leaf_has(snapshot->target->leaf, BLKREPL_OP_DISCARD)) {
        read->at = read->end;
        return true;
    }
    reader = read_reader(read);
    if (reader != NULL) {
        read_enter(read, SNAPSHOT_HELD);
        range_wait(reader, &read->ready);
    } else {
        read_discard(read);
    }
    return false;
}

/* The longest piece: of the source no more than guests can wait for. */
static uint64_t read_most(const struct snapshot_read *read)
{
    switch (read->io->opcode) {
    case BLKREPL_OP_READ: return PIECE_BYTES;
    case BLKREPL_OP_STATUS: return STATUS_BYTES;
    default: return UINT64_MAX;
    }
}

/* The next piece; true if it was done at once, *code if the request has failed. */
static bool read_piece(struct snapshot_read *read, int *code)
{
    struct copy *copy = read->snapshot->copy;
    struct copy_task *task = NULL;
    enum copy_place place = blkrepl__copy_where(copy, read->at, &read->end, &task);

    read->end = min_u64(read->end, read->last);
    read->end = read->at + min_u64(read->end - read->at, read_most(read));
    if (place == COPY_AT_TASK) {
        blkrepl__copy_await(task, &read->ready);
        return false;
    }
    if (read->io->opcode == BLKREPL_OP_DISCARD) {
        return read_forget(read, place);
    }
    if (place != COPY_NOWHERE) {
        return place == COPY_AT_SOURCE ? read_source(read) : read_target(read);
    }
    if (read->io->opcode == BLKREPL_OP_STATUS) {
        read_add_extent(read, read->end - read->at, 0);
    } else {
        *code = -EACCES;
    }
    return true;
}

/* Whether nothing is left to do. */
static bool read_complete(const struct snapshot_read *read)
{
    return read->at >= read->last ||
           (read->io->opcode == BLKREPL_OP_STATUS && read->extents == read->io->extents_max);
}

/* WAIT: see where the next piece is, as often as there is one to be done at once. */
static void read_look(struct snapshot_read *read)
{
    struct snapshot *snapshot = read->snapshot;

    for (int i = 0; i < PIECES_MAX && !STRETCH(SNAPSHOT_WAIT); i++) {
        int code = blkrepl__snapshot_code(snapshot);

        if (code == 0 && !read_complete(read) && !read_piece(read, &code)) {
            return;
        }
        if (code < 0 || read_complete(read)) {
            read_end(read, code);
            return;
        }
    }
    blkrepl__ready_wake(snapshot->ctx, &read->ready);
}

static void read_ready(struct ready *ready)
{
    struct snapshot_read *read = CONTAINER_OF(ready, struct snapshot_read, ready);
    struct range *reader;

    if (read->state == SNAPSHOT_WAIT) {
        read_look(read);
        return;
    }
    reader = read_reader(read);
    if (reader != NULL) {
        range_wait(reader, &read->ready);
    } else {
        read_discard(read);
    }
}

/* ---- What has come back ------------------------------------------------------- */

/* Use what the backend has done; returns why the request has failed. */
static int read_use(struct snapshot_read *read, int result)
{
    struct snapshot *snapshot = read->snapshot;

    if (read->io->opcode == BLKREPL_OP_STATUS) {
        return read_status_ended(read, result);
    }
    if (read->io->opcode == BLKREPL_OP_READ) {
        if (result < 0) {
            return result;
        }
        if (read_is_tail(read)) {
            blkrepl__iov_scatter(&read->cursor, snapshot->tail, read->sent);
        } else {
            blkrepl__iov_skip(&read->cursor, read->sent);
        }
    } /* a discard is advice: its errors are nobody's */
    read->at += read->sent;
    return 0;
}

/* The piece is done; the next one may be elsewhere. */
static void read_piece_ended(struct snapshot_read *read)
{
    read_drop_range(read);
    read_drop_tail(read);
    read_enter(read, SNAPSHOT_WAIT);
    read_look(read);
}

static void read_request_ended(struct request *request)
{
    struct snapshot_read *read = request->owner;
    struct blkrepl_image *image = read_image(read);
    const blkrepl_io *io = &request->io;
    int code = read->code;

    image->jobs_reading--;
    if (io->opcode == BLKREPL_OP_DISCARD) {
        record_write(&image->record, io->offset, io->offset + io->bytes);
    }
    /* Without the engine a guest may have written what was read. */
    code = code < 0 ? code : blkrepl__snapshot_code(read->snapshot);
    code = code < 0 ? code : read_use(read, request->io_result);
    if (code < 0) {
        read_end(read, code);
    } else if (read->at == read->end) {
        read_piece_ended(read);
    } else if (io->opcode == BLKREPL_OP_STATUS) {
        read_end(read, 0); /* what is missing is asked again, and then from a whole block on */
    } else {
        read_send(read);
    }
}

/* ---- For snapshot.c ------------------------------------------------------------ */

/* A discard is about whole clusters; the last one may be shorter. */
static void read_shrink_discard(struct snapshot_read *read)
{
    const struct copy_config *config = &read->snapshot->copy->config;

    read->at = align_up(read->at, config->cluster_bytes);
    if (read->last != image_bytes(config->source)) {
        read->last = align_down(read->last, config->cluster_bytes);
    }
}

void blkrepl__snapshot_accept(struct snapshot *snapshot, blkrepl_io *io)
{
    struct snapshot_read *read;

    ALWAYS_CHECK(!list_empty(&snapshot->free)); /* no more than queue_depth */
    read = CONTAINER_OF(list_pop(&snapshot->free), struct snapshot_read, link);
    list_append(&snapshot->busy, &read->link);
    read->ready.run = read_ready;
    read->io = io;
    read->at = io->offset;
    read->last = io->offset + io->bytes;
    read->cursor = (struct iov_cursor){.iov = io->iov, .count = io->iov_count};
    read->extents = 0;
    read->code = 0;
    if (io->opcode == BLKREPL_OP_DISCARD) {
        read_shrink_discard(read);
    }
    read_enter(read, SNAPSHOT_WAIT);
    read_look(read);
}

void blkrepl__snapshot_give_up(struct snapshot_read *read, int code)
{
    bool at_port = read_at_port(read);

    if (at_port && blkrepl__port_withdraw(read->request)) {
        read_image(read)->jobs_reading--;
        at_port = false;
    }
    if (!at_port) {
        read_end(read, code);
        return;
    }
    read->code = code;
    if (read->state == SNAPSHOT_SOURCE) {
        read_drop_range(read); /* whatever is read now is not told */
    }
}

void blkrepl__snapshot_tell(struct snapshot_read *read)
{
    if (read_at_port(read) && !read->told) {
        read->told = true;
        blkrepl__port_cancel(read->request);
    }
}
