/* SPDX-License-Identifier: MIT */
/* hbitmap_word.c - counting and summarising many words.
 *
 * Counting is what most operations on whole sets take their time for.  A run goes
 * through carry-save adders first: three words of weight 1 become one of weight 1 and
 * one of weight 2, with five operations, and so on; in the end 15 words have become
 * four, and only these are counted.  The loop over the columns of a run is one that
 * compilers do with vectors. */
#include "data/hbitmap_word.h"

#define COLUMNS 4
#define ROW(k) words[(k)*COLUMNS + column]

/* *sum + 2 * *carry = a + b + c, for each bit. */
static inline void carry_save(uint64_t *sum, uint64_t *carry, uint64_t a, uint64_t b, uint64_t c)
{
    uint64_t differ = a ^ b;

    *carry = (a & b) | (differ & c);
    *sum = differ ^ c;
}

/* The sum of the bytes, each of them at most 255 and the sum at most 65535. */
static inline uint64_t bytes_sum(uint64_t bytes)
{
    const uint64_t even = UINT64_C(0x00ff00ff00ff00ff);

    bytes = (bytes & even) + ((bytes >> 8) & even);
    return (bytes * UINT64_C(0x0001000100010001)) >> 48;
}

/* How many bits each byte of the 16 words of a column has; at most 128. */
static inline uint64_t column_byte_counts(const uint64_t *words, uint32_t column)
{
    uint64_t ones, twos, fours, eights;
    uint64_t two[3];
    uint64_t four[3];

    carry_save(&ones, &two[0], ROW(0), ROW(1), ROW(2));
    carry_save(&ones, &two[1], ones, ROW(3), ROW(4));
    carry_save(&ones, &two[2], ones, ROW(5), ROW(6));
    carry_save(&twos, &four[0], two[0], two[1], two[2]);
    carry_save(&ones, &two[0], ones, ROW(7), ROW(8));
    carry_save(&ones, &two[1], ones, ROW(9), ROW(10));
    carry_save(&twos, &four[1], twos, two[0], two[1]);
    carry_save(&ones, &two[0], ones, ROW(11), ROW(12));
    carry_save(&ones, &two[1], ones, ROW(13), ROW(14));
    carry_save(&twos, &four[2], twos, two[0], two[1]);
    carry_save(&fours, &eights, four[0], four[1], four[2]);
    return word_byte_counts(ones) + 2 * word_byte_counts(twos) + 4 * word_byte_counts(fours) +
           8 * word_byte_counts(eights) + word_byte_counts(ROW(15));
}

static uint64_t run_popcount(const uint64_t *words)
{
    uint64_t total = 0;

    for (uint32_t column = 0; column < COLUMNS; column++) {
        total += bytes_sum(column_byte_counts(words, column));
    }
    return total;
}

static uint64_t few_popcount(const uint64_t *words, uint64_t count)
{
    uint64_t sum = 0;

    for (uint64_t w = 0; w < count; w++) {
        sum += word_byte_counts(words[w]);
    }
    return bytes_sum(sum);
}

uint64_t blkrepl__words_popcount(const uint64_t *words, uint64_t count)
{
    uint64_t total = 0;
    uint64_t w = 0;

    for (; w + RUN_WORDS <= count; w += RUN_WORDS) {
        total += run_popcount(words + w);
    }
    for (; w + WORD_FEW <= count; w += WORD_FEW) {
        total += few_popcount(words + w, WORD_FEW);
    }
    return total + few_popcount(words + w, count - w);
}

/* Mostly no word is 0, and that is quickly seen: of a word or its negative, the
 * highest bit is set unless it is 0. */
uint64_t blkrepl__words_summary(const uint64_t *words, uint64_t count)
{
    uint64_t all = WORD_ALL;
    uint64_t summary = 0;

    for (uint64_t w = 0; w < count; w++) {
        all &= words[w] | (0 - words[w]);
    }
    if (all >> 63 != 0) {
        return word_to(count - 1);
    }
    for (uint64_t w = count; w-- > 0;) {
        summary = summary << 1 | (words[w] != 0);
    }
    return summary;
}
