/* SPDX-License-Identifier: MIT */
/* hbitmap_word.h - words, runs of words and levels: what the hbitmap*.c share.
 *
 * A run is the up to 64 words of level 0 that one word of level 1 summarises. */
#ifndef BLKREPL_DATA_HBITMAP_WORD_H
#define BLKREPL_DATA_HBITMAP_WORD_H

#include "base/checked.h"
#include "data/hbitmap.h"

#include <stdatomic.h>
#include <string.h>

#define WORD_BITS 64
#define WORD_SHIFT 6
#define WORD_ALL UINT64_MAX

#define RUN_WORDS UINT64_C(64)
#define RUN_BITS UINT64_C(4096)
/* So many words can be counted in the bytes of one. */
#define WORD_FEW 16

/* Bits from..63 and 0..to of a word; only the low six bits of both count. */
static inline uint64_t word_from(uint64_t from)
{
    return WORD_ALL << (from % WORD_BITS);
}

static inline uint64_t word_to(uint64_t to)
{
    return WORD_ALL >> (WORD_BITS - 1 - to % WORD_BITS);
}

/* How many bits each byte has, in that byte.  Without the processor's instruction
 * the compiler's builtin is a call with a table; this form is inlined everywhere,
 * and compilers do several words at once with it. */
static inline uint64_t word_byte_counts(uint64_t word)
{
    word -= (word >> 1) & UINT64_C(0x5555555555555555);
    word = (word & UINT64_C(0x3333333333333333)) + ((word >> 2) & UINT64_C(0x3333333333333333));
    return (word + (word >> 4)) & UINT64_C(0x0f0f0f0f0f0f0f0f);
}

static inline uint32_t word_popcount(uint64_t word)
{
    return (uint32_t)((word_byte_counts(word) * UINT64_C(0x0101010101010101)) >> 56);
}

/* The number of the lowest set bit; word is not 0. */
static inline uint32_t word_lowest(uint64_t word)
{
#if defined(__GNUC__) || defined(__clang__)
    return (uint32_t)__builtin_ctzll(word);
#else
    return word_popcount(~word & (word - 1));
#endif
}

/* The word as the concurrent functions see it.  Both types are the same memory: the
 * processors that have atomic words of 64 bits have them without a lock. */
static inline _Atomic uint64_t *word_shared(const uint64_t *word)
{
    _Static_assert(sizeof(_Atomic uint64_t) == sizeof(uint64_t), "an atomic word is a word");
    return (_Atomic uint64_t *)(uintptr_t)word;
}

static inline uint64_t word_load(const uint64_t *word)
{
    return atomic_load_explicit(word_shared(word), memory_order_relaxed);
}

/* For words of the summary: who sees a bit of it also sees what it stands for. */
static inline uint64_t word_acquire(const uint64_t *word)
{
    return atomic_load_explicit(word_shared(word), memory_order_acquire);
}

/* How many bits level n has: those of the set, or the words of the level below. */
static inline uint64_t level_bits(const struct hbitmap *map, uint32_t n)
{
    uint32_t shift = n * WORD_SHIFT;

    return (map->bit_count + ((UINT64_C(1) << shift) - 1)) >> shift;
}

/* At least one, so that the empty set of 0 bits needs no special case. */
static inline uint64_t level_words(const struct hbitmap *map, uint32_t n)
{
    return max_u64(1, (level_bits(map, n) + WORD_BITS - 1) / WORD_BITS);
}

/* The first word of level n, at or after `from`, that is not 0; the number of its
 * words if there is none. */
uint64_t blkrepl__hbitmap_next_word(const struct hbitmap *map, uint32_t n, uint64_t from);

/* How many bits `count` words have. */
uint64_t blkrepl__words_popcount(const uint64_t *words, uint64_t count);

/* Bit i: whether word i is not 0; 0 < count <= 64. */
uint64_t blkrepl__words_summary(const uint64_t *words, uint64_t count);

#endif
