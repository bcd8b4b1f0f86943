/* SPDX-License-Identifier: MIT */
/* heap.c - the context's memory: counted, poisoned, guarded, and running out. */
#include <pthread.h>

#include "torture.h"

#define POISON_NEW 0xa5
#define POISON_FREED 0xdd
#define GUARD_BYTES 32
#define GUARD 0x5c
/* Only the beginning of a large block is poisoned. */
#define POISON_BYTES_MAX (64u * KIB)
/* Freed blocks are kept for a while, to see whether somebody writes to them. */
#define KEPT_BLOCKS 32

enum block_kind {
    BLOCK_FREED,
    BLOCK_PLAIN,
    BLOCK_BUFFER
};

/* In front of every block. */
struct block {
    void *raw;
    size_t bytes;
    enum block_kind kind;
    struct block *next;
    struct block *before;
};

static pthread_mutex_t heap_lock = PTHREAD_MUTEX_INITIALIZER;
static struct block live = {.next = &live, .before = &live};
static struct block *kept[KEPT_BLOCKS];
static unsigned kept_next;
static uint64_t calls;

static bool all_are(const unsigned char *memory, size_t bytes, unsigned char value)
{
    return bytes == 0 || (memory[0] == value && memcmp(memory, memory + 1, bytes - 1) == 0);
}

static unsigned char *block_memory(struct block *block)
{
    return (unsigned char *)block + sizeof *block;
}

static struct block *block_of(void *memory)
{
    return (struct block *)(void *)((unsigned char *)memory - sizeof(struct block));
}

static size_t poison_bytes(size_t bytes)
{
    return bytes < POISON_BYTES_MAX ? bytes : POISON_BYTES_MAX;
}

static void *heap_take(size_t align, size_t bytes, bool zero, enum block_kind kind)
{
    size_t room = sizeof(struct block) + align + bytes + GUARD_BYTES;

    pthread_mutex_lock(&heap_lock);
    calls++;
    pthread_mutex_unlock(&heap_lock);
    if (fault_due(FAULT_ALLOC)) {
        fault_note();
        return NULL;
    }
    unsigned char *raw = zero ? calloc(1, room) : malloc(room);
    REQUIRE(raw, "this machine has no memory");
    uintptr_t place = ((uintptr_t)raw + sizeof(struct block) + align - 1) / align * align;
    struct block *block = block_of(raw + (place - (uintptr_t)raw));
    *block = (struct block){.raw = raw, .bytes = bytes, .kind = kind};
    if (!zero) {
        memset(block_memory(block), POISON_NEW, poison_bytes(bytes));
    }
    memset(block_memory(block) + bytes, GUARD, GUARD_BYTES);
    pthread_mutex_lock(&heap_lock);
    block->next = &live;
    block->before = live.before;
    live.before->next = block;
    live.before = block;
    pthread_mutex_unlock(&heap_lock);
    return block_memory(block);
}

static void heap_forget(struct block *block)
{
    if (block) {
        REQUIRE(all_are(block_memory(block), poison_bytes(block->bytes), POISON_FREED),
                "freed memory was written to (block of %zu bytes)", block->bytes);
        free(block->raw);
    }
}

static void heap_give(void *memory, size_t bytes, enum block_kind kind)
{
    if (!memory) {
        return;
    }
    struct block *block = block_of(memory);

    REQUIRE(block->kind != BLOCK_FREED, "memory is freed twice");
    REQUIRE(block->kind == kind, "memory is freed by the wrong function");
    REQUIRE(kind != BLOCK_BUFFER || block->bytes == bytes, "a buffer of %zu bytes is freed as %zu",
            block->bytes, bytes);
    REQUIRE(all_are(block_memory(block) + block->bytes, GUARD_BYTES, GUARD),
            "memory behind a block of %zu bytes was written to", block->bytes);
    pthread_mutex_lock(&heap_lock);
    block->next->before = block->before;
    block->before->next = block->next;
    block->kind = BLOCK_FREED;
    memset(memory, POISON_FREED, poison_bytes(block->bytes));
    heap_forget(kept[kept_next]);
    kept[kept_next] = block;
    kept_next = (kept_next + 1) % KEPT_BLOCKS;
    pthread_mutex_unlock(&heap_lock);
}

static void *heap_alloc(void *user, size_t bytes)
{
    (void)user;
    return heap_take(16, bytes, false, BLOCK_PLAIN);
}

static void *heap_zalloc(void *user, size_t bytes)
{
    (void)user;
    return heap_take(16, bytes, true, BLOCK_PLAIN);
}

static void heap_free(void *user, void *memory)
{
    (void)user;
    heap_give(memory, 0, BLOCK_PLAIN);
}

static void *heap_realloc(void *user, void *memory, size_t bytes)
{
    void *larger = heap_alloc(user, bytes);

    if (larger && memory) {
        size_t old = block_of(memory)->bytes;

        memcpy(larger, memory, old < bytes ? old : bytes);
        heap_free(user, memory);
    }
    return larger;
}

static void *heap_buffer_alloc(void *user, size_t align, size_t bytes)
{
    (void)user;
    REQUIRE(align > 0 && (align & (align - 1)) == 0, "a buffer aligned to %zu is wanted", align);
    return heap_take(align < 16 ? 16 : align, bytes, false, BLOCK_BUFFER);
}

static void heap_buffer_free(void *user, void *memory, size_t bytes)
{
    (void)user;
    heap_give(memory, bytes, BLOCK_BUFFER);
}

blkrepl_allocator heap_hooks(void)
{
    return (blkrepl_allocator){
        .struct_size = sizeof(blkrepl_allocator),
        .alloc = heap_alloc,
        .zalloc = heap_zalloc,
        .realloc = heap_realloc,
        .free = heap_free,
        .buffer_alloc = heap_buffer_alloc,
        .buffer_free = heap_buffer_free,
    };
}

uint64_t heap_calls(void)
{
    pthread_mutex_lock(&heap_lock);
    uint64_t now = calls;
    pthread_mutex_unlock(&heap_lock);
    return now;
}

void heap_check_empty(void)
{
    size_t blocks = 0, bytes = 0;

    for (struct block *block = live.next; block != &live; block = block->next) {
        blocks++;
        bytes += block->bytes;
    }
    REQUIRE(blocks == 0, "leaked: %zu blocks of memory, %zu bytes together", blocks, bytes);
    for (unsigned i = 0; i < KEPT_BLOCKS; i++) {
        heap_forget(kept[i]);
        kept[i] = NULL;
    }
}
