/* SPDX-License-Identifier: MIT */
/* disk_draw.c - what the disks of a run are like. */
#include "sim.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#define OPCODE(op) (1u << (op))

static uint8_t media[DISKS_MAX][DISK_BYTES_MAX];

/* Two sets of disks that can copy from each other. */
static char domains[2];

static uint32_t draw_limit(uint32_t percent, uint64_t low, uint64_t high)
{
    return rng_chance(percent) ? (uint32_t)rng_between(low, high) : 0;
}

static void draw_info(struct disk *disk)
{
    static const uint32_t requests[] = {1, 1, 1, 512, 4096};
    static const uint32_t memory[] = {1, 1, 16, 512};
    blkrepl_backend_info *info = &disk->info;
    uint32_t align = requests[rng_below(5)];

    info->bytes = disk->bytes;
    info->request_alignment = rng_chance(30) && align == 1 ? 0 : align;
    info->memory_alignment = memory[rng_below(4)];
    info->queue_depth = (uint32_t)rng_between(1, rng_chance(30) ? 3 : QUEUE_MAX);
    info->iov_count_max = draw_limit(30, 1, 6);
    info->transfer_bytes_max = draw_limit(30, 1, 8) * (uint64_t)4096;
    info->zeroes_bytes_max = draw_limit(30, 1, 8) * (uint64_t)4096;
    info->cluster_bytes = rng_chance(15) ? 1u << rng_between(9, 15) : 0;
    info->opcodes = OPCODE(BLKREPL_OP_READ) | OPCODE(BLKREPL_OP_WRITE);
    for (uint32_t op = BLKREPL_OP_ZEROES; op <= BLKREPL_OP_STATUS; op++) {
        info->opcodes |= rng_chance(65) ? OPCODE(op) : 0;
    }
    info->opcodes |= rng_chance(85) ? OPCODE(BLKREPL_OP_COPY_FROM) : 0;
    info->copy_domain = rng_chance(90) ? &domains[rng_chance(10)] : NULL;
    info->copy_bytes_max = draw_limit(50, 1, 4) * (uint64_t)4096;
    disk->copies_most = rng_chance(20) ? (uint32_t)rng_below(4) : UINT32_MAX;
    info->flags = rng_chance(40) ? BLKREPL_BACKEND_FUA : 0;
    if (disk->read_only) {
        info->flags |= BLKREPL_BACKEND_READ_ONLY;
        info->opcodes &= ~OPCODE(BLKREPL_OP_WRITE);
    }
}

/* Take out of what was drawn what the plan wants left out. */
static void apply_plan(struct disk *disk)
{
    blkrepl_backend_info *info = &disk->info;

    disk->error_permille *= !sim_without(FAULT_ERRORS);
    disk->tear_percent *= !sim_without(FAULT_TORN);
    disk->odd_errors = disk->odd_errors && !sim_without(FAULT_ERRORS);
    disk->refuses_zeroes = disk->refuses_zeroes && !sim_without(FAULT_OPCODES);
    disk->hang_percent *= !sim_without(FAULT_HANGS);
    disk->inline_percent *= !sim_without(FAULT_INLINE);
    if (sim_without(FAULT_ORDER)) {
        disk->order = ORDER_FIFO;
    }
    if (sim_without(FAULT_LIMITS)) {
        *info = (blkrepl_backend_info){.bytes = info->bytes,
                                       .request_alignment = 1,
                                       .memory_alignment = 1,
                                       .queue_depth = QUEUE_MAX,
                                       .opcodes = info->opcodes,
                                       .copy_domain = info->copy_domain,
                                       .flags = info->flags};
        disk->status_unit = 512;
    }
    if (sim_without(FAULT_OPCODES)) {
        info->opcodes = disk->read_only ? 0xfe & ~OPCODE(BLKREPL_OP_WRITE) : 0xfe;
        disk->copies_most = UINT32_MAX;
    }
    if (sim_without(FAULT_OFFLOAD)) {
        info->copy_domain = NULL;
    }
    if (sim_without(FAULT_DISCARDS)) {
        disk->discard_mode = 0;
    }
}

/* A disk with some content: a pattern with runs of zeroes in it. */
static void disk_draw_one(struct disk *disk, uint32_t index, uint64_t bytes)
{
    bool source = index < sim.options.sources;

    disk->index = index;
    disk->bytes = bytes;
    disk->medium = media[index];
    disk->read_only = source && rng_chance(3);
    draw_info(disk);
    disk->order = (enum order)rng_below(ORDER_COUNT);
    disk->inline_percent = rng_chance(30) ? (uint32_t)rng_between(10, 100) : 0;
    if (rng_chance(30)) {
        disk->error_permille = (uint32_t)rng_between(5, 150);
        disk->errors_left = rng_chance(50) ? 1 : 1000;
        disk->sticky = rng_chance(15);
        disk->odd_errors = rng_chance(20);
    }
    disk->refuses_zeroes = rng_chance(10);
    disk->hang_percent = rng_chance(12) ? (uint32_t)rng_between(1, 100) : 0;
    disk->tear_percent = rng_chance(60) ? (uint32_t)rng_between(10, 80) : 0;
    disk->discard_mode = (uint32_t)rng_below(3);
    disk->status_unit = rng_chance(20) ? (uint32_t)rng_between(1, 5000) : 512;
    disk->has_cancel = rng_chance(70);
    apply_plan(disk);
    pattern_fill(disk->medium, source ? 0 : 254, 0, bytes);
    for (uint64_t i = rng_below(4); source && bytes > 0 && i > 0; i--) {
        uint64_t from = rng_below(bytes);
        uint64_t run = rng_below(20000);

        memset(disk->medium + from, 0, run < bytes - from ? run : bytes - from);
    }
}

static uint64_t draw_size(void)
{
    uint32_t kind = (uint32_t)rng_below(20);

    if (kind == 0) {
        return rng_chance(30) ? 0 : rng_below(4096);
    }
    if (kind < 12) {
        return rng_below(2) * rng_below(4096) + 4096 * rng_below(9);
    }
    return kind < 19 || rng_chance(80) ? rng_below(24 * 4096) : rng_below(DISK_BYTES_MAX - 65536);
}

void disk_draw(void)
{
    uint64_t largest = 0;

    for (uint32_t i = 0; i < sim.options.disks; i++) {
        uint64_t bytes = draw_size();

        if (i < sim.options.sources) {
            largest = bytes > largest ? bytes : largest;
        } else {
            bytes = largest + (rng_chance(50) ? rng_below(20000) : 0);
        }
        memset(&sim.disks[i], 0, sizeof sim.disks[i]);
        disk_draw_one(&sim.disks[i], i, bytes);
    }
}

void disk_list(void)
{
    for (uint32_t i = 0; i < sim.options.disks; i++) {
        const struct disk *d = &sim.disks[i];
        const blkrepl_backend_info *n = &d->info;

        printf("disk %u: %" PRIu64 " bytes, align %u/%u, depth %u, iov %u, transfer %" PRIu64
               ", zeroes %" PRIu64 ", cluster %u, opcodes %x, flags %x, order %d, inline %u%%, "
               "errors %u/1000%s%s, hang %u%%, tear %u%%, discard %u, status unit %u, cancel %d, "
               "zeroes refused %d, copy domain %d of %" PRIu64 ", %u copies\n",
               i, d->bytes, n->request_alignment, n->memory_alignment, n->queue_depth,
               n->iov_count_max, n->transfer_bytes_max, n->zeroes_bytes_max, n->cluster_bytes,
               n->opcodes, n->flags, (int)d->order, d->inline_percent, d->error_permille,
               d->sticky ? " sticky" : "", d->odd_errors ? " odd" : "", d->hang_percent,
               d->tear_percent, d->discard_mode, d->status_unit, d->has_cancel, d->refuses_zeroes,
               n->copy_domain == NULL ? -1 : (int)((char *)n->copy_domain - domains),
               n->copy_bytes_max, d->copies_most);
    }
}
