/* SPDX-License-Identifier: MIT */
/* copy_send.c - the requests of one copy: to the source, the target, the spill image. */
#include "job/copy.h"

#include <string.h>

#include "base/checked.h"
#include "base/hook.h"

/* How far ahead the status is asked. */
#define PROBE_BYTES (UINT64_C(1) << 30)

/* The image that the task reads from, the one that it writes to now. */
static struct blkrepl_image *send_from(const struct copy_task *task)
{
    return task->spilled ? task->copy->config.spill : task->copy->config.source;
}

static struct blkrepl_image *send_to(const struct copy_task *task)
{
    bool spill = task->state == COPY_SPILL || task->state == COPY_CLEAN;

    return spill ? task->copy->config.spill : task->copy->config.target;
}

void blkrepl__copy_record(const struct copy_task *task)
{
    const blkrepl_io *io = &task->request->io;

    if (io->opcode != BLKREPL_OP_READ && io->opcode != BLKREPL_OP_STATUS) {
        record_write(&send_to(task)->record, io->offset, io->offset + io->bytes);
    }
}

void blkrepl__copy_queue(struct copy_task *task, struct port *port)
{
    if (port == &task->copy->config.source->leaf->port && task->urgent) {
        blkrepl__port_submit_read(port, task->request, task->lane);
    } else {
        blkrepl__port_submit_job(port, task->request, task->urgent);
    }
}

/* Whether a guest waits for what the task does now. */
static bool send_awaited(const struct copy_task *task)
{
    return task->urgent && range_live(&task->range);
}

static uint32_t send_flags(const struct copy_task *task, uint32_t opcode)
{
    uint32_t flags = send_awaited(task) ? 0 : BLKREPL_IO_BACKGROUND;

    if (opcode == BLKREPL_OP_ZEROES) {
        flags |= BLKREPL_IO_MAY_UNMAP | BLKREPL_IO_NO_FALLBACK;
    }
    if (opcode == BLKREPL_OP_WRITE && task->copy->config.compress && !task->zero &&
        task->state == COPY_WRITE) {
        flags |= BLKREPL_IO_COMPRESS;
    }
    return flags;
}

/* Give the task's request to a port. */
static void send_request(struct copy_task *task, struct port *port, uint32_t opcode,
                         uint64_t offset, uint64_t bytes)
{
    blkrepl_io *io = &task->request->io;

    io->opcode = opcode;
    io->flags = send_flags(task, opcode);
    io->offset = offset;
    io->bytes = bytes;
    io->source_user = NULL;
    io->source_offset = 0;
    if (opcode == BLKREPL_OP_COPY_FROM) {
        io->source_user = task->copy->config.source->leaf->port.backend;
        io->source_offset = offset;
    }
    task->request->ended = blkrepl__copy_task_ended;
    task->request->owner = task;
    task->copy->in_flight++;
    blkrepl__copy_record(task);
    blkrepl__copy_queue(task, port);
}

void blkrepl__copy_send_status(struct copy_task *task)
{
    struct copy *copy = task->copy;
    uint64_t size = image_bytes(copy->config.source);
    uint64_t end = task->end;

    if (copy->settled_writes && !copy->probing && !STRETCH(COPY_PROBE)) {
        end = min_u64(task->start + PROBE_BYTES, size);
        copy->probing = true;
        task->probe = true;
    }
    end = min_u64(align_up(end, copy->config.source->leaf->port.info.request_alignment), size);
    memset(task->extents, 0, sizeof task->extents);
    task->request->io.extents = task->extents;
    task->request->io.extents_max = COPY_EXTENTS;
    task->request->io.iov_count = 0;
    send_request(task, &copy->config.source->leaf->port, BLKREPL_OP_STATUS, task->start,
                 end - task->start);
}

/* Where the last block ends that is to be read or written: the image may be longer than
 * the source, and ask for whole ones. */
static uint64_t send_end(const struct copy_task *task, const struct blkrepl_image *image)
{
    return min_u64(align_up(task->end, image->leaf->port.info.request_alignment),
                   image_bytes(image));
}

uint64_t blkrepl__copy_read_end(const struct copy_task *task)
{
    return send_end(task, send_from(task));
}

void blkrepl__copy_send_read(struct copy_task *task)
{
    struct port *port = &send_from(task)->leaf->port;
    uint64_t left = blkrepl__copy_read_end(task) - task->start - task->moved_bytes;
    uint64_t bytes = min_u64(left, port->info.transfer_bytes_max);

    task->iov[0] = (blkrepl_iovec){.base = task->buffer + task->moved_bytes, .len = (size_t)bytes};
    task->request->io.iov = task->iov;
    task->request->io.iov_count = 1;
    send_request(task, port, BLKREPL_OP_READ, task->start + task->moved_bytes, bytes);
}

uint64_t blkrepl__copy_write_end(const struct copy_task *task)
{
    return send_end(task, send_to(task));
}

bool blkrepl__copy_fills_up(const struct copy_task *task)
{
    return send_end(task, task->copy->config.target) != task->end;
}

bool *blkrepl__copy_zeroes_refused(const struct copy_task *task)
{
    struct copy *copy = task->copy;

    return task->state == COPY_SPILL ? &copy->spill_zeroes_refused : &copy->zeroes_refused;
}

void blkrepl__copy_send_write(struct copy_task *task)
{
    struct leaf *leaf = send_to(task)->leaf;
    const blkrepl_backend_info *info = &leaf->port.info;
    blkrepl_io *io = &task->request->io;
    uint64_t left = blkrepl__copy_write_end(task) - task->start - task->moved_bytes;
    uint64_t bytes = min_u64(left, info->transfer_bytes_max);
    uint32_t opcode = BLKREPL_OP_WRITE;

    io->iov = task->iov;
    if (!task->zero) {
        task->iov[0] =
            (blkrepl_iovec){.base = task->buffer + task->moved_bytes, .len = (size_t)bytes};
        io->iov_count = 1;
    } else if (leaf_has(leaf, BLKREPL_OP_ZEROES) && !*blkrepl__copy_zeroes_refused(task)) {
        opcode = BLKREPL_OP_ZEROES;
        bytes = min_u64(left, info->zeroes_bytes_max);
        io->iov_count = 0;
    } else {
        uint32_t most = info->iov_count_max < COPY_IOVS ? info->iov_count_max : COPY_IOVS;

        bytes = blkrepl__iov_zeroes(task->iov, most, bytes, &io->iov_count);
    }
    send_request(task, &leaf->port, opcode, task->start + task->moved_bytes, bytes);
}

void blkrepl__copy_send_offload(struct copy_task *task)
{
    struct copy *copy = task->copy;
    uint64_t left = task->end - task->start - task->moved_bytes;

    task->request->io.iov_count = 0;
    send_request(task, &copy->config.target->leaf->port, BLKREPL_OP_COPY_FROM,
                 task->start + task->moved_bytes, min_u64(left, copy->offload_bytes_max));
}

void blkrepl__copy_send_discard(struct copy_task *task)
{
    struct leaf *leaf = task->copy->config.spill->leaf;
    uint64_t left = blkrepl__copy_write_end(task) - task->start - task->moved_bytes;

    task->request->io.iov_count = 0;
    send_request(task, &leaf->port, BLKREPL_OP_DISCARD, task->start + task->moved_bytes,
                 min_u64(left, leaf->port.info.zeroes_bytes_max));
}
