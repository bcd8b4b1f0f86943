/* SPDX-License-Identifier: MIT */
/* power.c - what the caches of the disks hold, and what is left when the power fails.
 *
 * A disk that knows FLUSH keeps what is written in a cache until a flush, or FUA,
 * makes it durable.  When the power fails, any part of the cache, and of the
 * writes in flight, may have reached the medium, in any order.  So a byte has a
 * handful of values that it may survive with; what was guaranteed to the guest,
 * or by a backup, is compared with each of them.  That covers every survivor at
 * once.  One of them is drawn when the host dies too: then the disks go on with
 * it under a new context.
 */
#include "sim.h"

#include <stdio.h>
#include <string.h>

typedef unsigned long long ull;

#define CACHE_WRITES 256
#define CACHE_BYTES (512u * 1024)
#define SECTOR 512

/* A write that is not durable; its data lie in the memory of the cache. */
struct cached {
    uint64_t seq;
    uint64_t offset;
    uint64_t bytes;
    size_t at;
};

/* First in, first out: the oldest lies at `first`. */
struct cache {
    uint32_t first;
    uint32_t count;
    size_t room; /* where in memory the next may lie                          */
    struct cached writes[CACHE_WRITES];
    uint8_t memory[CACHE_BYTES];
};

static struct cache caches[DISKS_MAX];
static uint8_t durable_media[DISKS_MAX][DISK_BYTES_MAX];
static uint8_t first_media[DISKS_MAX][DISK_BYTES_MAX]; /* as this life of the host began */
static uint8_t survivors[DISKS_MAX][DISK_BYTES_MAX];
static uint8_t expected[DISK_BYTES_MAX];
static uint8_t payload[DISK_BYTES_MAX];

static bool is_cached(const struct disk *disk)
{
    return (disk->info.opcodes >> BLKREPL_OP_FLUSH & 1) != 0;
}

/* ---- The cache ------------------------------------------------------------------ */

/* A disk with this content, all of it durable. */
void power_open(const struct disk *disk)
{
    struct cache *cache = &caches[disk->index];

    cache->first = 0;
    cache->count = 0;
    cache->room = 0;
    memcpy(durable_media[disk->index], disk->medium, disk->bytes);
    if (sim.options.last_cut_real) {
        memcpy(first_media[disk->index], disk->medium, disk->bytes);
    }
}

static struct cached *cached_at(struct cache *cache, uint32_t number)
{
    return &cache->writes[(cache->first + number) % CACHE_WRITES];
}

static void write_back(const struct disk *disk)
{
    struct cache *cache = &caches[disk->index];
    const struct cached *oldest = cached_at(cache, 0);

    memcpy(durable_media[disk->index] + oldest->offset, cache->memory + oldest->at, oldest->bytes);
    cache->first = (cache->first + 1) % CACHE_WRITES;
    cache->count--;
}

/* Is there room behind the newest, or before the oldest? */
static bool find_room(struct cache *cache, uint64_t bytes)
{
    size_t oldest;

    if (cache->count == 0) {
        cache->room = 0;
        return true;
    }
    oldest = cached_at(cache, 0)->at;
    if (cache->count == CACHE_WRITES) {
        return false;
    }
    if (cache->room > oldest && bytes > CACHE_BYTES - cache->room) {
        cache->room = 0;
    }
    return cache->room > oldest ? bytes <= CACHE_BYTES - cache->room
                                : bytes <= oldest - cache->room;
}

/* What is on the medium there is durable now, and older data in the cache are
 * nobody's any more. */
static void write_through(const struct disk *disk, uint64_t offset, uint64_t bytes)
{
    struct cache *cache = &caches[disk->index];

    memcpy(durable_media[disk->index] + offset, disk->medium + offset, bytes);
    for (uint32_t i = 0; i < cache->count; i++) {
        const struct cached *old = cached_at(cache, i);
        uint64_t from = old->offset > offset ? old->offset : offset;
        uint64_t old_end = old->offset + old->bytes;
        uint64_t end = old_end < offset + bytes ? old_end : offset + bytes;

        if (from < end) {
            memcpy(cache->memory + old->at + (from - old->offset), disk->medium + from, end - from);
        }
    }
}

/* A write has reached the medium, as reads see it. */
void power_wrote(const struct disk *disk, uint64_t offset, uint64_t bytes, bool fua)
{
    struct cache *cache = &caches[disk->index];

    if (bytes == 0) {
        return;
    }
    oracle_verify_wrote(disk, offset, bytes);
    if (fua || !is_cached(disk) || bytes > CACHE_BYTES / 2) {
        write_through(disk, offset, bytes);
        return;
    }
    while (!find_room(cache, bytes)) {
        write_back(disk);
    }
    *cached_at(cache, cache->count++) =
        (struct cached){.seq = sim.seq, .offset = offset, .bytes = bytes, .at = cache->room};
    memcpy(cache->memory + cache->room, disk->medium + offset, bytes);
    cache->room += bytes;
}

/* A flush that was submitted then has succeeded. */
void power_flushed(const struct disk *disk, uint64_t submit_seq)
{
    struct cache *cache = &caches[disk->index];

    while (cache->count > 0 && cached_at(cache, 0)->seq <= submit_seq) {
        write_back(disk);
    }
}

/* It has failed: something may be durable all the same. */
void power_flush_failed(const struct disk *disk)
{
    for (uint64_t i = rng_below(caches[disk->index].count + 1); i > 0; i--) {
        write_back(disk);
    }
}

/* ---- What must survive ---------------------------------------------------------- */

/* These data may be what is left of the range: they must be those of the
 * request, or come from a later one. */
static void check_data(const struct request *request, const uint8_t *data, uint64_t offset,
                       uint64_t bytes, const char *where)
{
    uint64_t from = offset > request->offset ? offset : request->offset;
    uint64_t end = offset + bytes;
    const uint8_t *wanted = expected + (from - request->offset);

    end = end < request->offset + request->bytes ? end : request->offset + request->bytes;
    if (from >= end || memcmp(data + (from - offset), wanted, end - from) == 0) {
        return;
    }
    for (uint64_t at = from; at < end; at++) {
        uint8_t value = data[at - offset];

        EXPECT(value == wanted[at - from] || oracle_written_later(request, at, value),
               "request %d is guaranteed to be durable; byte %llu may survive as %u, from %s",
               (int)(request - sim.requests), (ull)at, value, where);
    }
}

/* The write of a guest is guaranteed: compare it with all that may survive. */
void power_check_request(const struct request *request)
{
    const struct disk *disk = request->disk;
    struct cache *cache = &caches[disk->index];

    request_fill(request, expected);
    check_data(request, durable_media[disk->index], 0, disk->bytes, "the medium");
    for (uint32_t i = 0; i < cache->count; i++) {
        const struct cached *write = cached_at(cache, i);

        check_data(request, cache->memory + write->at, write->offset, write->bytes, "the cache");
    }
    for (uint32_t i = 0; i < disk->in_flight; i++) {
        const struct disk_request *io = &disk->queue[i];

        /* What a COPY_FROM brings, one that is void, too, comes later than any request. */
        if (is_write(io->op) && io->op != BLKREPL_OP_COPY_FROM &&
            overlaps(io->offset, io->bytes, request->offset, request->bytes)) {
            disk_payload(disk, io, payload);
            check_data(request, payload, io->offset, io->bytes, "a write in flight");
        }
    }
    sim.counts.survivors++;
}

/* A backup that is done: the same. */
void power_check_backup(const struct backup *backup)
{
    const struct disk *target = backup->target;
    struct cache *cache = &caches[target->index];

    if (memcmp(durable_media[target->index], target->medium, backup->source->bytes) != 0) {
        oracle_backup_kept(backup, durable_media[target->index], 0, target->bytes, "on the medium");
    }
    for (uint32_t i = 0; i < cache->count; i++) {
        const struct cached *write = cached_at(cache, i);

        oracle_backup_kept(backup, cache->memory + write->at, write->offset, write->bytes,
                           "in the cache");
    }
    sim.counts.survivors++;
}

/* At any time: all that is guaranteed. */
static void check_all(void)
{
    for (uint32_t i = 0; i < sim.request_count; i++) {
        if (sim.requests[i].durable) {
            power_check_request(&sim.requests[i]);
        }
    }
    for (uint32_t i = 0; i < sim.backup_count; i++) {
        const struct backup *b = &sim.backups[i];

        if (oracle_backup_is_kept(b)) {
            oracle_backup_kept(b, b->target->medium, 0, b->source->bytes, "as it is read");
            power_check_backup(b);
        }
    }
}

/* ---- What survives -------------------------------------------------------------- */

/* A piece of a write, cut at sectors. */
static void survive(uint8_t *out, const uint8_t *data, uint64_t offset, uint64_t bytes)
{
    uint64_t first = offset / SECTOR;
    uint64_t last = (offset + bytes + SECTOR - 1) / SECTOR;
    uint64_t from = rng_chance(50) ? first : rng_between(first, last);
    uint64_t to = rng_chance(50) ? last : rng_between(from, last);

    from = from * SECTOR > offset ? from * SECTOR : offset;
    to = to * SECTOR < offset + bytes ? to * SECTOR : offset + bytes;
    if (from < to) {
        memcpy(out + from, data + (from - offset), to - from);
    }
}

static void survive_one(const struct disk *disk, uint8_t *out)
{
    struct cache *cache = &caches[disk->index];
    uint32_t number = (uint32_t)rng_below(cache->count + disk->in_flight);

    if (number < cache->count) {
        const struct cached *write = cached_at(cache, number);

        survive(out, cache->memory + write->at, write->offset, write->bytes);
    } else if (is_write(disk->queue[number - cache->count].op)) {
        const struct disk_request *io = &disk->queue[number - cache->count];

        disk_payload(disk, io, payload);
        survive(out, payload, io->offset, io->bytes);
    }
}

static bool is_explained(const struct disk *disk, uint64_t at, uint8_t value)
{
    bool found = value == first_media[disk->index][at] || oracle_backup_wrote(disk, at, value, 0);

    for (uint32_t i = 0; !found && i < sim.request_count; i++) {
        const struct request *r = &sim.requests[i];

        found = r->wrote && request_covers(r, disk, at) && request_byte(r, at) == value;
    }
    for (uint32_t i = 0; !found && i < disk->in_flight; i++) {
        const struct disk_request *r = &disk->queue[i];

        found = r->op == BLKREPL_OP_COPY_FROM && overlaps(r->offset, r->bytes, at, 1) &&
                r->from->medium[r->from_offset + (at - r->offset)] == value;
    }
    return found;
}

/* Nothing, all, or anything between of what is not durable. */
static void draw_survivor(const struct disk *disk)
{
    struct cache *cache = &caches[disk->index];
    uint8_t *out = survivors[disk->index];
    uint64_t most = 2 * (uint64_t)(cache->count + disk->in_flight);

    memcpy(out, rng_chance(20) ? disk->medium : durable_media[disk->index], disk->bytes);
    for (uint64_t i = rng_chance(20) || most == 0 ? 0 : rng_between(1, most); i > 0; i--) {
        survive_one(disk, out);
    }
    for (uint64_t at = 0; at < disk->bytes; at += SECTOR) {
        uint64_t end = disk->bytes - at < SECTOR ? disk->bytes : at + SECTOR;
        uint64_t i = at;

        if (memcmp(out + at, disk->medium + at, end - at) == 0) {
            continue;
        }
        while (out[i] == disk->medium[i]) {
            i++;
        }
        EXPECT(is_explained(disk, i, out[i]), "byte %llu of disk %u survives as %u: from where?",
               (ull)i, disk->index, out[i]);
    }
}

/* The host dies with its context, which ends in an orderly way, but nothing that
 * it does reaches a disk; then another host begins with what is left. */
static void reboot(void)
{
    EVENT("the host dies, with %n requests", sim.pending);
    for (uint32_t i = 0; i < sim.options.disks; i++) {
        draw_survivor(&sim.disks[i]);
    }
    sim.dead = true;
    sim.quiet = true;
    world_shut_down();
    for (uint32_t i = 0; i < sim.options.disks; i++) {
        memcpy(sim.disks[i].medium, survivors[i], sim.disks[i].bytes);
    }
    EVENT("the host is back, with %n disks", sim.options.disks);
    sim.dead = false;
    sim.quiet = false;
    sim.shutdown = false;
    sim.gone = false;
    sim.heard_ns = 0;
    sim.request_count = 0;
    sim.backup_count = 0;
    sim.group_count = 0;
    sim.arena_used = 0;
    sim.counts.reboots++;
    world_open();
}

static void cut_act(void)
{
    bool real = sim.cuts_left == 1 && sim.options.last_cut_real;

    if (sim.cuts_left == 0 || (real && sim.callback_depth + sim.reenter_depth > 0)) {
        return;
    }
    sim.cuts_left--;
    sim.counts.cuts++;
    EVENT("the power fails; %n times more", sim.cuts_left);
    check_all();
    if (real) {
        reboot();
    }
}

static void power_draw(void)
{
    struct sim_options *o = &sim.options;

    o->cuts = rng_chance(30) ? (uint32_t)rng_between(1, 5) : 0;
    o->last_cut_real = o->cuts > 0 && rng_chance(33);
    o->cuts *= !sim_without(FAULT_POWER);
    o->last_cut_real = o->last_cut_real && o->cuts > 0;
    sim.cuts_left = o->cuts;
    sim_actor(o->cuts > 0 ? o->cuts + 1 : 0, false, cut_act);
}

static void power_list(void)
{
    if (sim.options.cuts > 0) {
        printf("power: at most %u cuts, the last one is real: %d\n", sim.options.cuts,
               sim.options.last_cut_real);
    }
}

const struct part power_part = {.draw = power_draw, .list = power_list};
