/* SPDX-License-Identifier: MIT */
/* chance.c - where chance comes from, and the pattern of the data.
 *
 * Chance is drawn from streams: one for what is drawn at the beginning, one for
 * every step, one for each phase after them, all derived from the seed.  So a
 * step that is left out does not change what the others draw, and a failing run
 * can be shrunk.  Under a fuzzer it is its bytes, as long as they last. */
#include "sim.h"

#include <string.h>

#define TAGS 255
#define PATTERN_BYTES 8191

static uint8_t patterns[TAGS][PATTERN_BYTES];

/* splitmix64 */
static uint64_t mix(uint64_t *state)
{
    uint64_t z = (*state += UINT64_C(0x9e3779b97f4a7c15));

    z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
    return z ^ (z >> 31);
}

void chance_stream(uint64_t number)
{
    uint64_t state = number;

    sim.rng = sim.plan.seed ^ mix(&state);
}

static uint64_t chance_bytes(uint32_t count)
{
    uint64_t value = 0;

    for (; count > 0 && sim.bytes_left > 0; count--) {
        value = value << 8 | *sim.bytes++;
        sim.bytes_left--;
    }
    return value;
}

uint64_t rng_next(void)
{
    return sim.bytes_left > 0 ? chance_bytes(8) : mix(&sim.rng);
}

uint64_t rng_below(uint64_t limit)
{
    if (limit <= 1) {
        return 0;
    }
    if (sim.bytes_left > 0) {
        return chance_bytes(limit <= 256 ? 1 : limit <= 65536 ? 2 : 4) % limit;
    }
    return mix(&sim.rng) % limit;
}

uint64_t rng_between(uint64_t low, uint64_t high)
{
    return low + rng_below(high - low + 1);
}

bool rng_chance(uint32_t percent)
{
    return percent != 0 && rng_below(100) < percent;
}

/* What the hooks in the library draw is no part of the other streams. */
uint64_t rng_aside(uint64_t limit)
{
    return mix(&sim.rng_aside) % limit;
}

void chance_bitmaps_stream(uint64_t number)
{
    uint64_t state = ~number;

    sim.rng_bitmaps = sim.plan.seed ^ mix(&state);
}

void chance_jobs_stream(uint64_t number)
{
    uint64_t state = ~number - (UINT64_C(1) << 40);

    sim.rng_jobs = sim.plan.seed ^ mix(&state);
}

static struct chance_outer begin(uint64_t state)
{
    struct chance_outer outer = {
        .rng = sim.rng, .bytes_left = sim.bytes_left, .nested = sim.chance_is_aside};

    if (!outer.nested) {
        sim.rng = state;
        sim.bytes_left = 0;
        sim.chance_is_aside = true;
    }
    return outer;
}

static void end(struct chance_outer outer, uint64_t *state)
{
    if (!outer.nested) {
        *state = sim.rng;
        sim.rng = outer.rng;
        sim.bytes_left = outer.bytes_left;
        sim.chance_is_aside = false;
    }
}

struct chance_outer chance_bitmaps_begin(void)
{
    return begin(sim.rng_bitmaps);
}

void chance_bitmaps_end(struct chance_outer outer)
{
    end(outer, &sim.rng_bitmaps);
}

struct chance_outer chance_jobs_begin(void)
{
    return begin(sim.rng_jobs);
}

void chance_jobs_end(struct chance_outer outer)
{
    end(outer, &sim.rng_jobs);
}

/* A position that is wrong by any number of blocks shows: the period is prime. */
void pattern_init(void)
{
    uint64_t state = 1;

    for (uint32_t i = 0; i < PATTERN_BYTES; i++) {
        uint32_t value = (uint32_t)(mix(&state) % TAGS);

        for (uint32_t tag = 0; tag < TAGS; tag++) {
            patterns[tag][i] = (uint8_t)((value + tag) % TAGS + 1);
        }
    }
}

/* Never 0; at one position different for different tags (modulo 255). */
uint8_t pattern_byte(uint32_t tag, uint64_t position)
{
    return patterns[tag % TAGS][position % PATTERN_BYTES];
}

void pattern_fill(uint8_t *out, uint32_t tag, uint64_t position, uint64_t bytes)
{
    const uint8_t *pattern = patterns[tag % TAGS];

    while (bytes > 0) {
        uint64_t at = position % PATTERN_BYTES;
        uint64_t part = bytes < PATTERN_BYTES - at ? bytes : PATTERN_BYTES - at;

        memcpy(out, pattern + at, part);
        out += part;
        position += part;
        bytes -= part;
    }
}
