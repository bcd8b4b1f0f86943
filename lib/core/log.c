/* SPDX-License-Identifier: MIT */
/* log.c - a ring of log lines. */
#include "core/log.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>

#include <libblkrepl/context.h>

void blkrepl__log_add(struct log_ring *ring, uint32_t level, const char *format, ...)
{
    struct log_line *line;
    va_list args;

    if (!ring->enabled) {
        return;
    }
    if (ring->count == LOG_LINES) {
        ring->lost++;
        return;
    }
    line = &ring->lines[(ring->first + ring->count++) % LOG_LINES];
    line->level = level;
    va_start(args, format);
    vsnprintf(line->text, sizeof line->text, format, args);
    va_end(args);
}

bool blkrepl__log_take(struct log_ring *ring, struct log_line *out)
{
    if (ring->count == 0) {
        return false;
    }
    *out = ring->lines[ring->first];
    ring->first = (ring->first + 1) % LOG_LINES;
    ring->count--;
    if (ring->lost > 0) {
        uint64_t lost = ring->lost;

        ring->lost = 0;
        blkrepl__log_add(ring, BLKREPL_LOG_WARNING, "%" PRIu64 " log lines were lost", lost);
    }
    return true;
}
