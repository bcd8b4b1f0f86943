/* SPDX-License-Identifier: MIT */
/* rng.c - chance, the pattern of the data, the event log, failure. */
#include "sim.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

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

uint64_t rng_next(void)
{
    return mix(&sim.rng);
}

uint64_t rng_below(uint64_t limit)
{
    return limit == 0 ? 0 : rng_next() % limit;
}

uint64_t rng_between(uint64_t low, uint64_t high)
{
    return low + rng_below(high - low + 1);
}

bool rng_chance(uint32_t percent)
{
    return percent != 0 && rng_below(100) < percent;
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

static void event_print(const struct event_record *event)
{
    const unsigned long long *a = event->args;

    printf(event->format, a[0], a[1], a[2], a[3], a[4]);
    putchar('\n');
}

void event_add(uint64_t where, const char *format, const unsigned long long args[5])
{
    struct event_record *event = &sim.ring[sim.seq % RING];
    uint64_t hash = sim.hash ^ where;

    event->format = format;
    for (int i = 0; i < 5; i++) {
        event->args[i] = args[i];
        hash = (hash ^ args[i]) * UINT64_C(0x9fb21c651e98df25);
        hash ^= hash >> 32;
    }
    sim.hash = hash;
    sim.seq++;
    if (sim.trace) {
        printf("%6llu  ", (unsigned long long)sim.seq);
        event_print(event);
    }
}

void sim_fail(const char *format, ...)
{
    uint64_t first = sim.seq > 40 ? sim.seq - 40 : 0;
    va_list args;

    if (!sim.trace) {
        for (uint64_t i = first; i < sim.seq; i++) {
            printf("%6llu  ", (unsigned long long)i + 1);
            event_print(&sim.ring[i % RING]);
        }
    }
    printf("FAILED seed %llu after %llu events: ", (unsigned long long)sim.seed,
           (unsigned long long)sim.seq);
    va_start(args, format);
    vprintf(format, args);
    va_end(args);
    putchar('\n');
    fflush(stdout);
    _Exit(1);
}
