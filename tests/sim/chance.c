/* SPDX-License-Identifier: MIT */
/* chance.c - where chance comes from, and the pattern of the data.
 *
 * Chance is drawn from streams: one for what is drawn at the beginning, one for
 * every step, one for each phase after them, all derived from the seed.  So a
 * step that is left out does not change what the others draw, and a failing run
 * can be shrunk.  Under a fuzzer it is its bytes, as long as they last. */
#include "sim.h"

#define PATTERN_BYTES (1u << 16)

static uint8_t pattern_mix[PATTERN_BYTES];

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

void pattern_init(void)
{
    uint64_t state = 1;

    for (uint32_t i = 0; i < PATTERN_BYTES; i++) {
        pattern_mix[i] = (uint8_t)(mix(&state) % 255);
    }
}

/* Never 0; at one position different for different tags (modulo 255). */
uint8_t pattern_byte(uint32_t tag, uint64_t position)
{
    return (uint8_t)((pattern_mix[position % PATTERN_BYTES] + tag) % 255 + 1);
}

void pattern_fill(uint8_t *out, uint32_t tag, uint64_t position, uint64_t bytes)
{
    uint16_t shift = (uint16_t)(tag % 255);

    while (bytes > 0) {
        const uint8_t *in = pattern_mix + position % PATTERN_BYTES;
        uint64_t part = PATTERN_BYTES - position % PATTERN_BYTES;

        part = part < bytes ? part : bytes;
        for (uint64_t i = 0; i < part; i++) {
            uint16_t value = (uint16_t)(in[i] + shift);

            out[i] = (uint8_t)(value - (value >= 255 ? 254 : -1));
        }
        out += part;
        position += part;
        bytes -= part;
    }
}
