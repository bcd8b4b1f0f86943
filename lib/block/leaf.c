/* SPDX-License-Identifier: MIT */
/* leaf.c - one backend with what belongs to it. */
#include "block/leaf.h"

#include <errno.h>
#include <inttypes.h>

#include "base/abi.h"
#include "base/checked.h"
#include "base/struct_io.h"
#include "core/error.h"

#define OPCODES_KNOWN 0xfeu /* READ .. COPY_FROM */
#define FLAGS_KNOWN (BLKREPL_BACKEND_READ_ONLY | BLKREPL_BACKEND_FUA | BLKREPL_BACKEND_COMPRESS)
#define CLUSTER_BYTES_MAX (1u << 24)
#define REQUEST_ALIGNMENT_MAX LEAF_BOUNCE_BYTES
#define MEMORY_ALIGNMENT_MAX 4096u
#define QUEUE_DEPTH_DEFAULT 64
#define IOV_COUNT_DEFAULT 1024

static int leaf_check_ops(const blkrepl_backend_ops *ops, blkrepl_backend_ops *copy)
{
    int rc;

    if (ops == NULL) {
        return blkrepl__fail(-EINVAL, "backend: the table of functions is NULL");
    }
    rc = blkrepl__struct_in(copy, sizeof *copy, BLKREPL_BACKEND_OPS_V1_BYTES, ops);
    if (rc < 0) {
        return blkrepl__fail_code(rc, "backend: table of functions");
    }
    if (copy->get_info == NULL || copy->submit == NULL || copy->flags != 0) {
        return blkrepl__fail(-EINVAL, "backend: get_info or submit is missing, or unknown flags");
    }
    return 0;
}

static uint32_t leaf_default(uint32_t value, uint32_t otherwise)
{
    return value != 0 ? value : otherwise;
}

static void leaf_fill_defaults(blkrepl_backend_info *info)
{
    info->queue_depth = leaf_default(info->queue_depth, QUEUE_DEPTH_DEFAULT);
    info->request_alignment = leaf_default(info->request_alignment, 1);
    info->memory_alignment = leaf_default(info->memory_alignment, 1);
    info->iov_count_max = leaf_default(info->iov_count_max, IOV_COUNT_DEFAULT);
    if (info->transfer_bytes_max == 0) {
        info->transfer_bytes_max = BLKREPL_IMAGE_BYTES_MAX;
    }
    if (info->zeroes_bytes_max == 0) {
        info->zeroes_bytes_max = BLKREPL_IMAGE_BYTES_MAX;
    }
    if (info->copy_bytes_max == 0) {
        info->copy_bytes_max = BLKREPL_IMAGE_BYTES_MAX;
    }
    info->opcodes &= OPCODES_KNOWN;
}

/* Whether an optional size is a power of two within its limit. */
static bool leaf_unit_valid(uint32_t value, uint32_t limit)
{
    return value == 0 || (is_power_of_two(value) && value <= limit);
}

static int leaf_check_info(const blkrepl_backend_info *info)
{
    uint32_t needed = 1u << BLKREPL_OP_READ;
    uint32_t unit;

    if ((info->flags & BLKREPL_BACKEND_READ_ONLY) == 0) {
        needed |= 1u << BLKREPL_OP_WRITE;
    }
    if (info->bytes > BLKREPL_IMAGE_BYTES_MAX) {
        return blkrepl__fail(-EINVAL, "backend: size %" PRIu64 " is more than 2^63-1", info->bytes);
    }
    if ((info->opcodes & needed) != needed) {
        return blkrepl__fail(-EINVAL, "backend: READ, and WRITE unless read-only, are required");
    }
    if ((info->flags & ~(uint32_t)FLAGS_KNOWN) != 0 ||
        !leaf_unit_valid(info->request_alignment, REQUEST_ALIGNMENT_MAX) ||
        !leaf_unit_valid(info->memory_alignment, MEMORY_ALIGNMENT_MAX) ||
        !leaf_unit_valid(info->cluster_bytes, CLUSTER_BYTES_MAX) || info->reserved0 != NULL) {
        return blkrepl__fail(-EINVAL, "backend: unknown flags, a reserved field that is not 0, "
                                      "or an alignment or cluster size that is not a power of "
                                      "two within its limit");
    }
    /* Limits must leave room for one aligned block. */
    unit = info->request_alignment > info->memory_alignment ? info->request_alignment
                                                            : info->memory_alignment;
    if ((info->transfer_bytes_max != 0 && info->transfer_bytes_max < unit) ||
        (info->zeroes_bytes_max != 0 && info->zeroes_bytes_max < unit) ||
        (info->copy_bytes_max != 0 && info->copy_bytes_max < unit)) {
        return blkrepl__fail(-EINVAL, "backend: a transfer limit is below the alignment");
    }
    return 0;
}

static int leaf_ask_info(struct blkrepl_context *ctx, const blkrepl_backend_ops *ops, void *backend,
                         blkrepl_backend_info *info)
{
    struct host_frame frame;
    int rc;

    *info = (blkrepl_backend_info){.struct_size = sizeof *info};
    blkrepl__host_enter(&frame, ctx);
    rc = ops->get_info(backend, info);
    blkrepl__host_leave(&frame);
    if (rc < 0) {
        return blkrepl__fail_code(rc, "backend: get_info");
    }
    rc = leaf_check_info(info);
    if (rc == 0) {
        leaf_fill_defaults(info);
        /* What goes through memory has to be aligned on both sides. */
        if (info->request_alignment < info->memory_alignment) {
            info->request_alignment = info->memory_alignment;
        }
        info->transfer_bytes_max = align_down(info->transfer_bytes_max, info->request_alignment);
        info->zeroes_bytes_max = align_down(info->zeroes_bytes_max, info->request_alignment);
        info->copy_bytes_max = align_down(info->copy_bytes_max, info->request_alignment);
    }
    return rc;
}

static void leaf_freed(struct port *port)
{
    blkrepl__leaf_free(CONTAINER_OF(port, struct leaf, port));
}

/* Take the memory: the leaf, its queues, and bounce buffers if it may need
 * them. */
static struct leaf *leaf_alloc(struct blkrepl_context *ctx, bool bounces)
{
    struct leaf *leaf = blkrepl__zalloc(&ctx->alloc, sizeof *leaf);

    if (leaf == NULL) {
        return NULL;
    }
    leaf->port.ctx = ctx;
    leaf->port.guest =
        blkrepl__zalloc_array(&ctx->alloc, ctx->lane_count, sizeof *leaf->port.guest);
    if (bounces) {
        leaf->bounce_memory = blkrepl__buffer_alloc(&ctx->alloc, LEAF_BOUNCE_BYTES,
                                                    (size_t)LEAF_BOUNCE_BYTES * LEAF_BOUNCE_COUNT);
    }
    if (leaf->port.guest == NULL || (bounces && leaf->bounce_memory == NULL)) {
        blkrepl__leaf_free(leaf);
        return NULL;
    }
    return leaf;
}

int blkrepl__leaf_create(struct blkrepl_context *ctx, const blkrepl_backend_ops *ops, void *backend,
                         struct leaf **out)
{
    blkrepl_backend_info info;
    blkrepl_backend_ops copy;
    struct leaf *leaf;
    int rc;

    rc = leaf_check_ops(ops, &copy);
    if (rc == 0) {
        rc = leaf_ask_info(ctx, &copy, backend, &info);
    }
    if (rc < 0) {
        return rc;
    }
    leaf = leaf_alloc(ctx, info.request_alignment > 1);
    if (leaf == NULL) {
        return blkrepl__fail(-ENOMEM, "image: no memory");
    }
    leaf->port.ops = copy;
    leaf->port.backend = backend;
    leaf->port.info = info;
    leaf->port.freed = leaf_freed;
    leaf->bounce_free = (1u << LEAF_BOUNCE_COUNT) - 1;
    list_init(&leaf->bounce_waiters);
    blkrepl__ranges_init(&leaf->ranges, ctx);
    *out = leaf;
    return 0;
}

void blkrepl__leaf_free(struct leaf *leaf)
{
    const struct alloc *alloc = &leaf->port.ctx->alloc;

    blkrepl__buffer_free(alloc, leaf->bounce_memory, (size_t)LEAF_BOUNCE_BYTES * LEAF_BOUNCE_COUNT);
    blkrepl__free(alloc, leaf->port.guest);
    blkrepl__free(alloc, leaf);
}

unsigned char *blkrepl__leaf_bounce_take(struct leaf *leaf, struct guest *user)
{
    for (uint32_t i = 0; i < LEAF_BOUNCE_COUNT; i++) {
        if ((leaf->bounce_free >> i & 1) != 0) {
            leaf->bounce_free &= ~(1u << i);
            leaf->bounce_users[i] = user;
            return leaf->bounce_memory + (size_t)i * LEAF_BOUNCE_BYTES;
        }
    }
    return NULL;
}

void blkrepl__leaf_bounce_put(struct leaf *leaf, unsigned char *buffer)
{
    size_t i = (size_t)(buffer - leaf->bounce_memory) / LEAF_BOUNCE_BYTES;

    CHECK((leaf->bounce_free >> i & 1) == 0);
    leaf->bounce_free |= 1u << i;
    if (!list_empty(&leaf->bounce_waiters)) {
        struct list *link = list_pop(&leaf->bounce_waiters);

        blkrepl__ready_wake(leaf->port.ctx, CONTAINER_OF(link, struct ready, link));
    }
}
