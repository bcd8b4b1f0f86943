/* SPDX-License-Identifier: MIT */
/* arena.c - the library's memory, at fixed addresses; saving and hashing it.
 *
 * The library keeps what it knows of a context in memory of the context's
 * allocator (contexts share nothing), so the bytes of the arena and of `state`
 * decide what can happen from here on: two worlds with the same bytes have the
 * same future.  Freed memory is cleared, so that leftovers do not tell worlds
 * apart. */
#include "small.h"

#include <stdlib.h>
#include <string.h>

#define ARENA_BYTES (256u * 1024)
#define BIG_BYTES (1024u * 1024)
#define BIG_PIECE (64u * 1024)
/* The bounce buffers of an image with alignment: of each piece only the first
 * block can be in use, and no more pieces than there are requests.  What lies
 * outside of these windows is not saved; arena_canary() tells if it is used. */
#define WINDOW_BYTES 1024u
#define WINDOW_COUNT OPS_MAX

#define LINE_BYTES 64u
#define STATE_BYTES ((uint32_t)sizeof state)
#define SHADOW_ARENA (STATE_BYTES + WINDOW_COUNT * WINDOW_BYTES)

struct state state;

static _Alignas(4096) uint8_t arena[ARENA_BYTES];
static _Alignas(65536) uint8_t big[2][BIG_BYTES];
static bool big_used[2];

static _Alignas(64) uint8_t shadow[SHADOW_ARENA + ARENA_BYTES];
static uint64_t line_hashes[(SHADOW_ARENA + ARENA_BYTES) / LINE_BYTES];
static uint64_t shadow_hash;

/* What a line was before a step. */
struct undo {
    uint64_t hash;
    uint32_t line;
    uint8_t old[LINE_BYTES];
};

static struct undo *undo;
static uint64_t undo_count;
static uint64_t undo_size;

static struct block *block_at(const void *memory)
{
    const uint8_t *at = memory;

    if (at < arena || at >= arena + ARENA_BYTES) {
        return NULL;
    }
    for (uint32_t i = 0; i < state.block_count; i++) {
        struct block *block = &state.blocks[i];
        size_t offset = (size_t)(at - arena);

        if (offset >= block->offset && offset - block->offset < block->bytes) {
            return block;
        }
    }
    return NULL;
}

static uint8_t *arena_take(size_t align, size_t bytes, uint32_t use, int fill)
{
    struct block *block = NULL;
    size_t rounded = (bytes + 15) / 16 * 16 + (bytes == 0 ? 16 : 0);
    size_t top = (state.arena_top + align - 1) / align * align;

    for (uint32_t i = 0; i < state.block_count && block == NULL; i++) {
        struct block *old = &state.blocks[i];

        if (old->used == 0 && old->bytes == rounded && old->offset % align == 0) {
            block = old;
        }
    }
    if (block == NULL) {
        EXPECT(state.block_count < BLOCKS_MAX && rounded <= ARENA_BYTES - top,
               "the arena is too small for %zu bytes", bytes);
        block = &state.blocks[state.block_count++];
        block->offset = (uint32_t)top;
        block->bytes = (uint32_t)rounded;
        state.arena_top = (uint32_t)(top + rounded);
    }
    block->used = use;
    memset(arena + block->offset, fill, block->bytes);
    return arena + block->offset;
}

static void arena_drop(const void *memory, uint32_t use)
{
    struct block *block = block_at(memory);

    EXPECT(block != NULL && block->used == use && memory == arena + block->offset,
           "memory is freed that was not allocated");
    memset(arena + block->offset, 0, block->bytes);
    block->used = 0;
}

/* ---- The allocator hook ----------------------------------------------------- */

static void *take(size_t align, size_t bytes, int fill)
{
    EXPECT(state.may_allocate, "an allocation of %zu bytes outside of create and open", bytes);
    state.live_blocks++;
    return arena_take(align, bytes, 1, fill);
}

static void *hook_alloc(void *user, size_t bytes)
{
    (void)user;
    return take(64, bytes, 0xa5);
}

static void *hook_zalloc(void *user, size_t bytes)
{
    (void)user;
    return take(64, bytes, 0);
}

static void hook_free(void *user, void *memory)
{
    (void)user;
    if (memory != NULL) {
        arena_drop(memory, 1);
        state.live_blocks--;
    }
}

static void *hook_realloc(void *user, void *memory, size_t bytes)
{
    struct block *old = block_at(memory);
    uint8_t *copy = hook_alloc(user, bytes);

    if (old != NULL) {
        memcpy(copy, memory, bytes < old->bytes ? bytes : old->bytes);
        hook_free(user, memory);
    }
    return copy;
}

static void *hook_buffer_alloc(void *user, size_t align, size_t bytes)
{
    (void)user;
    if (bytes < BIG_BYTES) {
        return take(align, bytes, 0xa5);
    }
    EXPECT(state.may_allocate, "a buffer of %zu bytes outside of create and open", bytes);
    state.live_blocks++;
    for (uint32_t i = 0; i < 2; i++) {
        if (!big_used[i]) {
            big_used[i] = true;
            return big[i];
        }
    }
    small_fail("more bounce buffers than images");
}

static void hook_buffer_free(void *user, void *memory, size_t bytes)
{
    if (memory == NULL) {
        return;
    }
    if (bytes < BIG_BYTES) {
        hook_free(user, memory);
    } else {
        EXPECT(memory == big[0] || memory == big[1], "a buffer is freed that was not allocated");
        state.live_blocks--;
    }
}

const blkrepl_allocator arena_allocator = {.struct_size = sizeof arena_allocator,
                                           .alloc = hook_alloc,
                                           .zalloc = hook_zalloc,
                                           .realloc = hook_realloc,
                                           .free = hook_free,
                                           .buffer_alloc = hook_buffer_alloc,
                                           .buffer_free = hook_buffer_free};

/* ---- Buffers of ours, and whose memory is whose ------------------------------- */

uint8_t *arena_buffer(uint32_t number, size_t bytes)
{
    return arena_take(64, bytes, 2 + number, 0);
}

void arena_buffer_free(const uint8_t *buffer)
{
    arena_drop(buffer, block_at(buffer)->used);
}

static bool inside_big(const void *memory)
{
    const uint8_t *at = memory;

    return at >= big[0] && at < big[0] + sizeof big;
}

/* Who has asked for a request with this memory: bounce buffers and our own are a
 * guest's, the rest of the arena belongs to jobs. */
enum owner arena_owner(const void *memory, bool reads)
{
    const struct block *block = block_at(memory);

    if (block != NULL) {
        return block->used == 1 ? OWNER_JOB : OWNER_GUEST;
    }
    return inside_big(memory) || !reads ? OWNER_GUEST : OWNER_NONE;
}

/* ---- Windows ------------------------------------------------------------------- */

static uint32_t window_count(void)
{
    return run.world->alignment > 1 ? WINDOW_COUNT : 0;
}

/* The source is opened first; requests to the target are never bounced. */
static uint8_t *window(uint32_t i)
{
    return big[0] + (size_t)i * BIG_PIECE;
}

/* ---- The shadow ---------------------------------------------------------------

 * A second copy of everything, as it was after the last step that was kept.  To
 * keep a step is to find the lines that it has changed, remember what they were,
 * and bring the shadow and the hash up to date; to undo it is to put them back.
 * The hash is a sum over all words, each mixed with its position. */

static uint64_t word_at(const uint8_t *line, uint32_t i)
{
    uint64_t word;

    memcpy(&word, line + 8 * (size_t)i, sizeof word);
    return word;
}

static uint64_t line_hash(const uint8_t *line, uint32_t number)
{
    uint64_t sum = 0;

    for (uint32_t i = 0; i < LINE_BYTES / 8; i++) {
        uint64_t x =
            word_at(line, i) + (8 * (uint64_t)number + i + 1) * UINT64_C(0x9e3779b97f4a7c15);

        x = (x ^ x >> 32) * UINT64_C(0xd6e8feb86659fd93);
        x = (x ^ x >> 29) * UINT64_C(0xff51afd7ed558ccd);
        sum += x ^ x >> 32;
    }
    return sum;
}

/* The parts of the world, and where their shadows are. */
struct part {
    uint8_t *live;
    uint32_t shadow;
    uint32_t bytes;
};

static uint32_t parts_list(struct part *parts)
{
    uint32_t count = 0;
    uint32_t top = (state.arena_top + BLOCK_BYTES - 1) / BLOCK_BYTES * BLOCK_BYTES;

    parts[count++] = (struct part){(uint8_t *)&state, 0, STATE_BYTES};
    for (uint32_t i = 0; i < window_count(); i++) {
        parts[count++] = (struct part){window(i), STATE_BYTES + i * WINDOW_BYTES, WINDOW_BYTES};
    }
    parts[count++] = (struct part){arena, SHADOW_ARENA, top};
    return count;
}

static uint8_t *live_line(uint32_t number)
{
    uint32_t at = number * LINE_BYTES;

    if (at < STATE_BYTES) {
        return (uint8_t *)&state + at;
    }
    if (at < SHADOW_ARENA) {
        at -= STATE_BYTES;
        return window(at / WINDOW_BYTES) + at % WINDOW_BYTES;
    }
    return arena + (at - SHADOW_ARENA);
}

void arena_reset(void)
{
    memset(&state, 0, sizeof state);
    memset(shadow, 0, sizeof shadow);
    for (uint32_t i = 0; i < sizeof line_hashes / sizeof line_hashes[0]; i++) {
        line_hashes[i] = line_hash(shadow, i); /* of a line of zeroes */
    }
    shadow_hash = 0;
    undo_count = 0;
    memset(arena, 0, sizeof arena);
    memset(big, 0, sizeof big);
    memset(big_used, 0, sizeof big_used);
}

static void line_keep(const uint8_t *live, uint32_t at)
{
    uint32_t line = at / LINE_BYTES;
    struct undo *entry;

    if (undo_count == undo_size) {
        undo_size = undo_size == 0 ? 4096 : 2 * undo_size;
        undo = realloc(undo, undo_size * sizeof undo[0]);
        EXPECT(undo != NULL, "no memory");
    }
    entry = &undo[undo_count++];
    entry->line = line;
    entry->hash = line_hashes[line];
    memcpy(entry->old, shadow + at, LINE_BYTES);
    memcpy(shadow + at, live, LINE_BYTES);
    line_hashes[line] = line_hash(live, line);
    shadow_hash += line_hashes[line] - entry->hash;
}

uint64_t step_keep(void)
{
    struct part parts[WINDOW_COUNT + 2];
    uint32_t count = parts_list(parts);
    uint64_t mark = undo_count;

    for (uint32_t n = 0; n < count; n++) {
        const uint8_t *live = parts[n].live;
        const uint8_t *old = shadow + parts[n].shadow;

        for (uint32_t at = 0; at < parts[n].bytes; at += LINE_BYTES) {
            if (at % BLOCK_BYTES == 0 && memcmp(live + at, old + at, BLOCK_BYTES) == 0) {
                at += BLOCK_BYTES - LINE_BYTES;
            } else if (memcmp(live + at, old + at, LINE_BYTES) != 0) {
                line_keep(live + at, parts[n].shadow + at);
            }
        }
    }
    return mark;
}

/* Undo the steps kept since `mark`; nothing has changed since the last one. */
void step_undo(uint64_t mark)
{
    while (undo_count > mark) {
        const struct undo *entry = &undo[--undo_count];

        shadow_hash += entry->hash - line_hashes[entry->line];
        line_hashes[entry->line] = entry->hash;
        memcpy(shadow + (size_t)entry->line * LINE_BYTES, entry->old, LINE_BYTES);
        memcpy(live_line(entry->line), entry->old, LINE_BYTES);
    }
}

/* Undo what was not kept. */
void step_drop(void)
{
    struct part parts[WINDOW_COUNT + 2];
    uint32_t count = parts_list(parts);

    while (count-- > 0) { /* the state last: it tells how large the arena is */
        for (uint32_t i = 0; i < parts[count].bytes; i += BLOCK_BYTES) {
            uint8_t *old = shadow + parts[count].shadow + i;

            if (memcmp(parts[count].live + i, old, BLOCK_BYTES) != 0) {
                memcpy(parts[count].live + i, old, BLOCK_BYTES);
            }
        }
    }
}

uint64_t step_hash(void)
{
    return shadow_hash;
}

uint64_t step_bytes(void)
{
    return STATE_BYTES + (uint64_t)window_count() * WINDOW_BYTES + state.arena_top;
}

/* Is everything outside of the windows untouched? */
bool arena_canary(void)
{
    static const uint8_t zeroes[BIG_PIECE];

    for (uint32_t at = 0; at < sizeof big; at += BIG_PIECE) {
        uint32_t skip = at / BIG_PIECE < window_count() ? WINDOW_BYTES : 0;

        if (memcmp((uint8_t *)big + at + skip, zeroes, BIG_PIECE - skip) != 0) {
            return false;
        }
    }
    return true;
}
