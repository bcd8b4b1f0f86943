/* SPDX-License-Identifier: MIT */
/* disk.c - virtual disks that several threads use.
 *
 * A request is completed inside its submit, or waits for the threads that complete:
 * in any order, in batches.  Media are words that are read and written one by one,
 * without a lock, as a real disk would. */
#include "threads.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define OPCODE(op) (UINT32_C(1) << (op))

struct pending {
    struct vdisk *disk;
    blkrepl_io *io;
    uint64_t id;
    uint32_t alike; /* when it is taken: how many such requests came before it */
};

static pthread_mutex_t queue_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t queue_filled = PTHREAD_COND_INITIALIZER;
static struct pending queue[PENDING_MAX * VDISKS_MAX];
static uint32_t queue_count;
static bool queue_stopped;

struct vdisk_fate vdisk_fate(const struct plan *plan, uint32_t disk, const blkrepl_io *io)
{
    const struct vdisk_plan *p = &plan->disk[disk];
    bool flush = io->opcode == BLKREPL_OP_FLUSH;
    uint64_t rng = plan->seed ^ (uint64_t)disk << 56 ^ (uint64_t)io->opcode << 48;
    struct vdisk_fate fate = {0};

    rng ^= flush ? 0 : io->offset * 31 + io->bytes;
    fate.at_once = dice_chance(&rng, p->inline_percent);
    fate.cancelled = dice_chance(&rng, p->cancel_percent);
    if (dice_below(&rng, 1000) < p->error_permille) {
        fate.result = disk < plan->sources ? -EIO : -EREMOTEIO;
    }
    return fate;
}

/* ---- Words ------------------------------------------------------------------- */

static bool writes(uint32_t opcode)
{
    return opcode == BLKREPL_OP_WRITE || opcode == BLKREPL_OP_ZEROES ||
           opcode == BLKREPL_OP_DISCARD;
}

/* Writes whose ranges overlap are never in flight together. */
void vdisk_claim(struct vdisk *disk, uint64_t offset, uint64_t bytes, bool take)
{
    for (uint64_t word = offset / 8; word < (offset + bytes) / 8; word++) {
        uint8_t was =
            atomic_exchange_explicit(&disk->claims[word], take ? 1 : 0, memory_order_relaxed);

        MUST(was != take, "disk %u: two writes of byte %llu in flight", disk->index,
             (unsigned long long)word * 8);
    }
}

static void store(struct vdisk *disk, uint64_t word, uint64_t value)
{
    atomic_store_explicit(&disk->words[word], value, memory_order_relaxed);
}

static void move_iov(struct vdisk *disk, const blkrepl_io *io, uint64_t bytes)
{
    uint64_t at = io->offset / 8;
    uint64_t end = (io->offset + bytes) / 8;

    for (uint32_t i = 0; i < io->iov_count && at < end; i++) {
        uint8_t *base = io->iov[i].base;

        MUST(io->iov[i].len % 8 == 0, "an iovec of %zu bytes", io->iov[i].len);
        for (uint64_t n = 0; n < io->iov[i].len && at < end; n += 8, at++) {
            uint64_t value;

            if (io->opcode == BLKREPL_OP_READ) {
                value = atomic_load_explicit(&disk->words[at], memory_order_relaxed);
                memcpy(base + n, &value, 8);
            } else {
                memcpy(&value, base + n, 8);
                store(disk, at, value);
            }
        }
    }
}

static void clear(struct vdisk *disk, uint64_t offset, uint64_t bytes)
{
    for (uint64_t word = offset / 8; word < (offset + bytes) / 8; word++) {
        store(disk, word, 0);
    }
}

/* The host of a bracket writes by its own means. */
void vdisk_host_writes(struct vdisk *disk, uint32_t number)
{
    const struct op *op = &world.ops[number];

    if (op->opcode == BLKREPL_OP_WRITE) {
        for (uint64_t word = op->offset / 8; word < (op->offset + op->bytes) / 8; word++) {
            store(disk, word, word_of(number, word));
        }
    } else if (op->opcode == BLKREPL_OP_ZEROES || disk->plan.discard_zeroes) {
        clear(disk, op->offset, op->bytes);
    }
}

/* ---- Requests ------------------------------------------------------------------ */

static void perform(struct vdisk *disk, blkrepl_io *io, int result)
{
    uint64_t bytes = result == 0 ? io->bytes : io->bytes / 16 * 8; /* half of it */

    switch (io->opcode) {
    case BLKREPL_OP_READ:
    case BLKREPL_OP_WRITE: move_iov(disk, io, bytes); break;
    case BLKREPL_OP_ZEROES: clear(disk, io->offset, bytes); break;
    case BLKREPL_OP_DISCARD:
        if (disk->plan.discard_zeroes) {
            clear(disk, io->offset, bytes);
        }
        break;
    case BLKREPL_OP_STATUS:
        io->extents[0] = (blkrepl_extent){.bytes = io->bytes,
                                          .flags = BLKREPL_EXTENT_DATA | BLKREPL_EXTENT_ALLOCATED};
        break;
    default: break;
    }
}

static void finish(struct vdisk *disk, blkrepl_io *io, int result)
{
    uint64_t id = io->id;
    int answer;

    if (result != -ECANCELED) {
        perform(disk, io, result);
    }
    if (result < 0) {
        atomic_store_explicit(&disk->failed, true, memory_order_relaxed);
    }
    if (writes(io->opcode)) {
        vdisk_claim(disk, io->offset, io->bytes, false);
    }
    atomic_fetch_sub_explicit(&disk->in_flight, 1, memory_order_relaxed);
    answer = blkrepl_io_complete(world.ctx, id, result);
    MUST(answer == 0, "io_complete answered %d", answer);
}

static int get_info(void *user, blkrepl_backend_info *info)
{
    const struct vdisk *disk = user;
    uint32_t struct_size = info->struct_size;

    *info = disk->plan.info;
    info->struct_size = struct_size;
    return 0;
}

static void take(struct vdisk *disk, uint32_t lane, blkrepl_io *io)
{
    const blkrepl_backend_info *info = &disk->plan.info;
    uint32_t others = atomic_fetch_add_explicit(&disk->in_flight, 1, memory_order_relaxed);
    bool flush = io->opcode == BLKREPL_OP_FLUSH;

    MUST(others < info->queue_depth, "disk %u: more than its depth in flight", disk->index);
    MUST(io->lane == lane && lane <= world.plan.lanes && (info->opcodes & OPCODE(io->opcode)) != 0,
         "disk %u: opcode %u, lane %u of %u", disk->index, io->opcode, io->lane, lane);
    MUST(flush || (io->bytes > 0 && io->offset + io->bytes <= info->bytes &&
                   io->offset % info->request_alignment == 0),
         "disk %u: range %llu+%llu", disk->index, (unsigned long long)io->offset,
         (unsigned long long)io->bytes);
    MUST(atomic_load(&disk->closed) == 0, "disk %u: submit after close", disk->index);
    if (writes(io->opcode)) {
        vdisk_claim(disk, io->offset, io->bytes, true);
    }
}

static void defer(struct vdisk *disk, blkrepl_io *io)
{
    pthread_mutex_lock(&queue_lock);
    MUST(queue_count < PENDING_MAX * VDISKS_MAX, "too many requests in flight");
    queue[queue_count++] = (struct pending){.disk = disk, .io = io, .id = io->id};
    pthread_cond_signal(&queue_filled);
    pthread_mutex_unlock(&queue_lock);
}

static void backend_submit(void *user, uint32_t lane, blkrepl_io *const *ios, uint32_t count)
{
    struct vdisk *disk = user;

    for (uint32_t i = 0; i < count; i++) {
        struct vdisk_fate fate = vdisk_fate(&world.plan, disk->index, ios[i]);

        take(disk, lane, ios[i]);
        if (fate.at_once) {
            finish(disk, ios[i], fate.result);
        } else {
            defer(disk, ios[i]);
        }
    }
    live_inside();
}

static bool is_alike(const struct pending *a, const struct pending *b)
{
    return a->disk == b->disk && a->io->opcode == b->io->opcode && a->io->offset == b->io->offset &&
           a->io->bytes == b->io->bytes;
}

static struct pending queue_take(uint32_t at)
{
    struct pending taken = queue[at];

    for (uint32_t i = 0; i < at; i++) {
        taken.alike += is_alike(&queue[i], &taken);
    }

    memmove(queue + at, queue + at + 1, (--queue_count - at) * sizeof queue[0]);
    return taken;
}

static void backend_cancel(void *user, uint64_t id)
{
    struct vdisk *disk = user;
    struct pending found = {.disk = NULL};

    pthread_mutex_lock(&queue_lock);
    for (uint32_t i = 0; i < queue_count && found.disk == NULL; i++) {
        if (queue[i].disk == disk && queue[i].id == id &&
            vdisk_fate(&world.plan, disk->index, queue[i].io).cancelled) {
            found = queue_take(i);
        }
    }
    pthread_mutex_unlock(&queue_lock);
    if (found.disk != NULL) {
        finish(disk, found.io, -ECANCELED);
    }
}

static void backend_close(void *user)
{
    struct vdisk *disk = user;

    MUST(atomic_load(&disk->in_flight) == 0, "disk %u: close with requests in flight", disk->index);
    MUST(atomic_fetch_add(&disk->closed, 1) == 0, "disk %u: closed twice", disk->index);
}

static void image_release(void *user)
{
    struct vdisk *disk = user;

    atomic_fetch_add(&disk->released, 1);
}

/* ---- Completing ---------------------------------------------------------------- */

uint32_t vdisk_pending(void)
{
    uint32_t count;

    pthread_mutex_lock(&queue_lock);
    count = queue_count;
    pthread_mutex_unlock(&queue_lock);
    return count;
}

static void complete(struct pending request)
{
    struct vdisk_fate fate = vdisk_fate(&world.plan, request.disk->index, request.io);
    struct entry *entry = record_call(ENTRY_COMPLETE, request.alike, request.disk->index,
                                      request.io->opcode, request.io->offset, request.io->bytes);

    finish(request.disk, request.io, fate.result);
    record_answer(entry, fate.result);
}

/* Complete one of those that wait; false: there is none. */
bool vdisk_complete_one(uint64_t *rng)
{
    struct pending request = {.disk = NULL};

    pthread_mutex_lock(&queue_lock);
    if (queue_count > 0) {
        request = queue_take((uint32_t)dice_below(rng, queue_count));
    }
    pthread_mutex_unlock(&queue_lock);
    if (request.disk != NULL) {
        complete(request);
    }
    return request.disk != NULL;
}

/* A thread that completes: now and then it lets some more come in first. */
void *vdisk_completer(void *actor)
{
    bool stopped = false;

    me = actor;
    while (!stopped) {
        pthread_mutex_lock(&queue_lock);
        while (queue_count == 0 && !queue_stopped) {
            pthread_cond_wait(&queue_filled, &queue_lock);
        }
        stopped = queue_count == 0;
        pthread_mutex_unlock(&queue_lock);
        for (uint64_t left = dice_below(&me->rng, 12) + 1; left > 0; left--) {
            if (!vdisk_complete_one(&me->rng)) {
                break;
            }
        }
    }
    return NULL;
}

void vdisk_completer_stop(void)
{
    pthread_mutex_lock(&queue_lock);
    queue_stopped = true;
    pthread_cond_broadcast(&queue_filled);
    pthread_mutex_unlock(&queue_lock);
}

/* ---- Opening ------------------------------------------------------------------- */

void vdisk_reset(struct vdisk *disk, uint32_t index, const struct vdisk_plan *plan)
{
    static _Atomic uint64_t words[VDISKS_MAX][VDISK_WORDS_MAX];
    static _Atomic uint8_t claims[VDISKS_MAX][VDISK_WORDS_MAX];

    queue_stopped = false;
    disk->index = index;
    disk->plan = *plan;
    disk->words = words[index];
    disk->claims = claims[index];
    for (uint32_t word = 0; word < VDISK_WORDS_MAX; word++) {
        atomic_init(&disk->words[word], 0);
        atomic_init(&disk->claims[word], 0);
    }
    atomic_init(&disk->in_flight, 0);
    atomic_init(&disk->closed, 0);
    atomic_init(&disk->released, 0);
    atomic_init(&disk->failed, false);
}

int vdisk_open(struct vdisk *disk)
{
    blkrepl_backend_ops ops = {.struct_size = sizeof ops,
                               .get_info = get_info,
                               .submit = backend_submit,
                               .cancel = disk->plan.has_cancel ? backend_cancel : NULL,
                               .close = backend_close};
    blkrepl_image_options options = {
        .struct_size = sizeof options, .user = disk, .release = image_release};

    return blkrepl_image_open(world.ctx, &ops, disk, &options, &disk->image);
}
