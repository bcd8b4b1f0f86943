/* SPDX-License-Identifier: MIT */
/* piece.c - cutting a guest request into what the backend can take.
 *
 * A request goes to the backend piece by piece, one at a time.  Most consist of
 * one piece, taken from the caller's memory as it is.  Where the request begins
 * or ends inside a block of the backend's request alignment, that block goes
 * through a bounce buffer: read, patched, written.  Where the caller's memory
 * is not aligned, data go through the buffer as well.  Zeroes and discards are
 * cut to the backend's limit, and to PIECE_TAPPED_MAX while a job looks on, so
 * that saving old data never has to be done for a whole disk at once. */
#include <errno.h>
#include <string.h>

#include "base/checked.h"
#include "base/hook.h"
#include "block/guest.h"

#define PIECE_TAPPED_MAX (UINT64_C(4) << 20)

static const blkrepl_backend_info *piece_info(const struct guest *guest)
{
    return &guest->image->leaf->port.info;
}

static uint64_t piece_pos(const struct guest *guest)
{
    return guest->offset + guest->done_bytes;
}

static uint64_t piece_left(const struct guest *guest)
{
    return guest->bytes - guest->done_bytes;
}

/* Whether the backend takes a request that ends here. */
static bool piece_end_fits(const struct guest *guest, uint64_t end)
{
    return (end & (piece_info(guest)->request_alignment - 1)) == 0 ||
           end == image_bytes(guest->image);
}

/* Cut a length at `pos`, which is aligned, so that it ends where it may; 0 if
 * not even one block is left of it. */
static uint64_t piece_cut(const struct guest *guest, uint64_t pos, uint64_t bytes)
{
    return piece_end_fits(guest, pos + bytes)
               ? bytes
               : align_down(bytes, piece_info(guest)->request_alignment);
}

/* The aligned range that a bounced piece moves. */
static void piece_bounds(const struct guest *guest, uint64_t *start, uint64_t *end)
{
    uint64_t pos = piece_pos(guest);
    uint32_t alignment = piece_info(guest)->request_alignment;

    *start = align_down(pos, alignment);
    *end = min_u64(align_up(pos + guest->piece_bytes, alignment), image_bytes(guest->image));
}

/* Whether a bounced piece writes less than the blocks it touches. */
static bool piece_partial(const struct guest *guest)
{
    uint64_t start;
    uint64_t end;

    piece_bounds(guest, &start, &end);
    return end - start != guest->piece_bytes;
}

static void piece_plan_bounce(struct guest *guest, uint64_t bytes)
{
    guest->piece_bytes = bytes;
    guest->piece =
        guest->opcode == BLKREPL_OP_READ || piece_partial(guest) ? PIECE_READ : PIECE_WRITE;
}

/* The next piece touches a part of a block only: plan it and say so. */
static bool piece_plan_edge(struct guest *guest)
{
    uint64_t pos = piece_pos(guest);
    uint64_t left = piece_left(guest);
    uint64_t alignment = piece_info(guest)->request_alignment;
    uint64_t inside = pos & (alignment - 1);

    if (inside == 0 && (left >= alignment || piece_end_fits(guest, pos + left))) {
        return false;
    }
    piece_plan_bounce(guest, min_u64(left, alignment - inside));
    return true;
}

/* Shorten piece_iov to `bytes`. */
static uint32_t piece_trim_iov(struct guest *guest, uint64_t bytes)
{
    uint32_t used = 0;

    while (bytes > 0) {
        blkrepl_iovec *entry = &guest->piece_iov[used++];

        if (entry->len > bytes) {
            entry->len = (size_t)bytes;
        }
        bytes -= entry->len;
    }
    return used;
}

/* READ or WRITE from here on, straight from the caller's memory if possible. */
static void piece_plan_data(struct guest *guest)
{
    const blkrepl_backend_info *info = piece_info(guest);
    uint64_t pos = piece_pos(guest);
    uint64_t want = min_u64(piece_left(guest), info->transfer_bytes_max);
    uint32_t most = info->iov_count_max < GUEST_IOVS ? info->iov_count_max : GUEST_IOVS;
    uint64_t bytes;
    uint32_t used;

    if (piece_plan_edge(guest)) {
        return;
    }
    bytes = blkrepl__iov_slice(&guest->cursor, want, info->memory_alignment, guest->piece_iov, most,
                               &used);
    bytes = piece_cut(guest, pos, bytes);
    if (bytes == 0) {
        piece_plan_bounce(guest, piece_cut(guest, pos, min_u64(want, LEAF_BOUNCE_BYTES)));
        return;
    }
    guest->piece = PIECE_DIRECT;
    guest->piece_bytes = bytes;
    guest->request->io.iov = guest->piece_iov;
    guest->request->io.iov_count = piece_trim_iov(guest, bytes);
}

/* The usual case: the whole request as it is. */
static bool piece_plan_whole(struct guest *guest)
{
    const blkrepl_backend_info *info = piece_info(guest);
    const struct iov_cursor *at = &guest->cursor;

    if (guest->done_bytes > 0 || guest->bytes > info->transfer_bytes_max ||
        at->count > info->iov_count_max || (guest->offset & (info->request_alignment - 1)) != 0 ||
        !piece_end_fits(guest, guest->offset + guest->bytes) ||
        !blkrepl__iov_aligned(at->iov, at->count, info->memory_alignment)) {
        return false;
    }
    guest->piece = PIECE_DIRECT;
    guest->piece_bytes = guest->bytes;
    guest->request->io.iov = at->iov;
    guest->request->io.iov_count = at->count;
    return true;
}

static bool piece_zeroes_by_buffer(const struct guest *guest)
{
    const struct leaf *leaf = guest->image->leaf;

    return guest->opcode == BLKREPL_OP_ZEROES &&
           (!leaf_has(leaf, BLKREPL_OP_ZEROES) || leaf->zeroes_refused);
}

bool blkrepl__piece_refused(const struct guest *guest)
{
    return (guest->flags & BLKREPL_IO_NO_FALLBACK) != 0 && piece_zeroes_by_buffer(guest);
}

/* ZEROES or DISCARD from here on, at an aligned position. */
static void piece_plan_zeroes(struct guest *guest)
{
    const blkrepl_backend_info *info = piece_info(guest);
    uint64_t want = min_u64(piece_left(guest), info->zeroes_bytes_max);
    uint32_t most = info->iov_count_max < GUEST_IOVS ? info->iov_count_max : GUEST_IOVS;
    uint32_t used;

    if (!list_empty(&guest->image->taps)) {
        want = min_u64(want, PIECE_TAPPED_MAX);
    }
    guest->piece = PIECE_ZEROES;
    if (piece_zeroes_by_buffer(guest)) {
        guest->piece = PIECE_ZERO_BUFFERS;
        want = min_u64(want, info->transfer_bytes_max);
        want = blkrepl__iov_zeroes(guest->piece_iov, most, want, &used);
    }
    guest->piece_bytes = piece_cut(guest, piece_pos(guest), want);
    if (guest->piece == PIECE_ZERO_BUFFERS) {
        guest->request->io.iov = guest->piece_iov;
        guest->request->io.iov_count = piece_trim_iov(guest, guest->piece_bytes);
    }
}

/* Decide about the next piece of what is left. */
static void piece_plan(struct guest *guest)
{
    switch (guest->opcode) {
    case BLKREPL_OP_READ:
    case BLKREPL_OP_WRITE:
        if (!piece_plan_whole(guest)) {
            piece_plan_data(guest);
        }
        break;
    case BLKREPL_OP_ZEROES:
        if (!piece_plan_edge(guest)) {
            piece_plan_zeroes(guest);
        }
        break;
    case BLKREPL_OP_DISCARD: piece_plan_zeroes(guest); break;
    default: /* FLUSH, STATUS */
        guest->piece = PIECE_DIRECT;
        guest->piece_bytes = guest->bytes;
        break;
    }
}

void blkrepl__piece_range(struct guest *guest, uint64_t *start, uint64_t *end)
{
    if (!guest_pieces_tapped(guest)) {
        *start = guest->range.node.start;
        *end = guest->range.node.end;
        return;
    }
    piece_plan(guest);
    piece_bounds(guest, start, end);
}

void blkrepl__piece_skip(struct guest *guest)
{
    piece_plan(guest);
    guest->done_bytes += guest->piece_bytes;
}

/* The data of a bounced write come into the buffer. */
static void piece_fill(struct guest *guest)
{
    uint64_t start;
    uint64_t end;
    unsigned char *at;

    piece_bounds(guest, &start, &end);
    at = guest->bounce + (piece_pos(guest) - start);
    if (guest->opcode == BLKREPL_OP_ZEROES) {
        memset(at, 0, (size_t)guest->piece_bytes);
    } else {
        blkrepl__iov_gather(&guest->cursor, at, guest->piece_bytes);
    }
}

static uint32_t piece_write_flags(const struct guest *guest)
{
    return (piece_info(guest)->flags & BLKREPL_BACKEND_FUA) != 0 ? guest->flags & BLKREPL_IO_FUA
                                                                 : 0;
}

static void piece_send_bounced(struct guest *guest)
{
    blkrepl_io *io = &guest->request->io;
    uint64_t start;
    uint64_t end;

    piece_bounds(guest, &start, &end);
    io->opcode = guest->piece == PIECE_READ ? BLKREPL_OP_READ : BLKREPL_OP_WRITE;
    io->flags = guest->piece == PIECE_READ ? 0 : piece_write_flags(guest);
    io->offset = start;
    io->bytes = end - start;
    guest->piece_iov[0] = (blkrepl_iovec){.base = guest->bounce, .len = (size_t)(end - start)};
    io->iov = guest->piece_iov;
    io->iov_count = 1;
}

/* STATUS is asked of whole blocks. */
static void piece_send_status(struct guest *guest)
{
    blkrepl_io *io = &guest->request->io;
    uint64_t start;
    uint64_t end;

    piece_bounds(guest, &start, &end);
    io->offset = start;
    io->bytes = end - start;
    io->extents = guest->extents;
    io->extents_max = guest->extents_max;
    memset(guest->extents, 0, guest->extents_max * sizeof *guest->extents);
}

static void piece_send_plain(struct guest *guest)
{
    blkrepl_io *io = &guest->request->io;

    io->opcode = guest->opcode;
    io->offset = piece_pos(guest);
    io->bytes = guest->piece_bytes;
    io->flags = 0;
    if (guest->piece == PIECE_ZERO_BUFFERS) {
        io->opcode = BLKREPL_OP_WRITE;
        io->flags = piece_write_flags(guest);
    } else if (guest->opcode == BLKREPL_OP_WRITE) {
        io->flags = piece_write_flags(guest);
    } else if (guest->opcode == BLKREPL_OP_ZEROES) {
        io->flags = piece_write_flags(guest) |
                    (guest->flags & (BLKREPL_IO_MAY_UNMAP | BLKREPL_IO_NO_FALLBACK));
        io->iov_count = 0;
    } else if (guest->opcode == BLKREPL_OP_STATUS) {
        piece_send_status(guest);
    }
}

static void piece_send_flush(struct guest *guest)
{
    guest->piece = PIECE_FLUSH;
    guest->piece_bytes = 0;
    guest->request->io.opcode = BLKREPL_OP_FLUSH;
    guest->request->io.flags = 0;
    guest->request->io.offset = 0;
    guest->request->io.bytes = 0;
    guest->request->io.iov_count = 0;
}

void blkrepl__piece_send_quick(struct guest *guest)
{
    blkrepl_io *io = &guest->request->io;

    if (guest->opcode == BLKREPL_OP_FLUSH) {
        guest->flush_due = true;
        piece_send_flush(guest);
        return;
    }
    guest->piece = PIECE_DIRECT;
    guest->piece_bytes = guest->bytes;
    io->opcode = guest->opcode;
    io->flags = guest->flags;
    io->offset = guest->offset;
    io->bytes = guest->bytes;
    io->iov = guest->cursor.iov;
    io->iov_count = guest->cursor.count;
}

bool blkrepl__piece_whole(const struct guest *guest)
{
    switch (guest->opcode) {
    case BLKREPL_OP_READ:
    case BLKREPL_OP_WRITE:
        return guest->piece == PIECE_DIRECT && guest->piece_bytes == guest->bytes &&
               !guest->flush_due;
    default: return guest->piece == PIECE_FLUSH && guest->opcode == BLKREPL_OP_FLUSH;
    }
}

/* Whether the request as a whole has nothing for the backend. */
static bool piece_nothing(struct guest *guest)
{
    const struct leaf *leaf = guest->image->leaf;

    switch (guest->opcode) {
    case BLKREPL_OP_DISCARD:
        return guest->done_bytes == guest->bytes || !leaf_has(leaf, BLKREPL_OP_DISCARD);
    case BLKREPL_OP_FLUSH: return guest->flush_due == false;
    case BLKREPL_OP_STATUS:
        if (guest->bytes == guest->done_bytes) {
            guest->extents[0].bytes = guest->bytes > 0 ? guest->extents[0].bytes : 0;
            return true;
        }
        if (leaf_has(leaf, BLKREPL_OP_STATUS)) {
            return false;
        }
        memset(guest->extents, 0, guest->extents_max * sizeof *guest->extents);
        guest->extents[0].bytes = guest->bytes;
        guest->extents[0].flags = BLKREPL_EXTENT_DATA | BLKREPL_EXTENT_ALLOCATED;
        return true;
    default: return guest->done_bytes == guest->bytes && !guest->flush_due;
    }
}

/* Get the bounce buffer that the planned piece needs. */
static bool piece_get_bounce(struct guest *guest)
{
    struct leaf *leaf = guest->image->leaf;

    if (guest->bounce == NULL && STRETCH(BOUNCE)) {
        blkrepl__guest_wake(guest);
        return false;
    }
    if (guest->bounce == NULL) {
        guest->bounce = blkrepl__leaf_bounce_take(leaf, guest);
    }
    if (guest->bounce == NULL) {
        list_append(&leaf->bounce_waiters, &guest->ready.link);
        for (uint32_t i = 0; i < LEAF_BOUNCE_COUNT; i++) {
            blkrepl__guest_hasten(leaf->bounce_users[i]);
        }
        return false;
    }
    guest->hastened = guest->hastened || !list_empty(&leaf->bounce_waiters);
    return true;
}

enum piece_answer blkrepl__piece_send(struct guest *guest)
{
    if (piece_nothing(guest)) {
        return PIECE_NONE;
    }
    if (guest->done_bytes == guest->bytes) {
        piece_send_flush(guest);
    } else {
        if (!guest->patch_due) {
            piece_plan(guest);
        }
        if (guest->piece == PIECE_READ || guest->piece == PIECE_WRITE) {
            if (!piece_get_bounce(guest)) {
                return PIECE_WAIT;
            }
            if (guest->piece == PIECE_WRITE) {
                piece_fill(guest);
            }
            piece_send_bounced(guest);
        } else {
            piece_send_plain(guest);
        }
    }
    blkrepl__port_submit_guest(&guest->image->leaf->port, guest->request,
                               guest->hastened ? 0 : guest->lane);
    return PIECE_SENT;
}

/* Whether the backend's list of extents makes sense. */
static bool piece_status_valid(const struct guest *guest)
{
    const uint32_t known = BLKREPL_EXTENT_DATA | BLKREPL_EXTENT_ZERO | BLKREPL_EXTENT_ALLOCATED;
    uint64_t total = 0;

    for (uint32_t i = 0; i < guest->extents_max && guest->extents[i].bytes > 0; i++) {
        if (guest->extents[i].bytes > guest->request->io.bytes - total ||
            (guest->extents[i].flags & ~known) != 0) {
            return false;
        }
        total += guest->extents[i].bytes;
    }
    return total > 0;
}

/* Take `bytes` off the front of the list. */
static void piece_status_behead(struct guest *guest, uint64_t bytes)
{
    blkrepl_extent *list = guest->extents;

    while (bytes > 0 && list[0].bytes > 0 && list[0].bytes <= bytes) {
        bytes -= list[0].bytes;
        memmove(&list[0], &list[1], (guest->extents_max - 1) * sizeof list[0]);
        list[guest->extents_max - 1] = (blkrepl_extent){.bytes = 0};
    }
    if (list[0].bytes > bytes) {
        list[0].bytes -= bytes;
    }
}

/* Cut the backend's answer, which is about whole blocks, to what was asked. */
static int piece_status_ended(struct guest *guest)
{
    uint64_t left = guest->bytes;

    if (!piece_status_valid(guest)) {
        memset(guest->extents, 0, guest->extents_max * sizeof *guest->extents);
        return -EIO;
    }
    piece_status_behead(guest, guest->offset - guest->request->io.offset);
    for (uint32_t i = 0; i < guest->extents_max; i++) {
        guest->extents[i].bytes = min_u64(guest->extents[i].bytes, left);
        left -= guest->extents[i].bytes;
    }
    if (guest->extents[0].bytes == 0) {
        guest->extents[0].bytes = guest->bytes;
        guest->extents[0].flags = BLKREPL_EXTENT_DATA | BLKREPL_EXTENT_ALLOCATED;
    }
    return 0;
}

/* A piece that had the bounce buffer filled by the backend. */
static void piece_read_ended(struct guest *guest)
{
    uint64_t start;
    uint64_t end;

    if (guest->opcode != BLKREPL_OP_READ) {
        guest->patch_due = true;
        guest->piece = PIECE_WRITE;
        return;
    }
    piece_bounds(guest, &start, &end);
    blkrepl__iov_scatter(&guest->cursor, guest->bounce + (piece_pos(guest) - start),
                         guest->piece_bytes);
    guest->done_bytes += guest->piece_bytes;
}

int blkrepl__piece_ended(struct guest *guest, int result)
{
    struct leaf *leaf = guest->image->leaf;

    if (result == -ENOTSUP && guest->piece == PIECE_ZEROES) {
        if (guest->opcode == BLKREPL_OP_DISCARD) {
            result = 0;
        } else if ((guest->flags & BLKREPL_IO_NO_FALLBACK) == 0) {
            leaf->zeroes_refused = true;
            return 0; /* the same piece again, by buffers */
        }
    }
    if (result < 0) {
        return result;
    }
    switch (guest->piece) {
    case PIECE_READ: piece_read_ended(guest); return 0;
    case PIECE_FLUSH: guest->flush_due = false; return 0;
    case PIECE_DIRECT:
        if (guest->opcode == BLKREPL_OP_STATUS) {
            result = piece_status_ended(guest);
        } else if (guest->done_bytes + guest->piece_bytes < guest->bytes) {
            blkrepl__iov_skip(&guest->cursor, guest->piece_bytes);
        }
        break;
    case PIECE_WRITE: guest->patch_due = false; break;
    case PIECE_ZEROES:
    case PIECE_ZERO_BUFFERS: break;
    }
    guest->done_bytes += guest->piece_bytes;
    return result;
}

void blkrepl__piece_drop(struct guest *guest)
{
    if (guest->bounce != NULL) {
        blkrepl__leaf_bounce_put(guest->image->leaf, guest->bounce);
        guest->bounce = NULL;
    }
}
