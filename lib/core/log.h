/* SPDX-License-Identifier: MIT */
/* log.h - log lines on their way to the host: a ring of fixed size.
 *
 * When it is full, lines are counted and the loss is reported as a line. */
#ifndef BLKREPL_CORE_LOG_H
#define BLKREPL_CORE_LOG_H

#include "base/compiler.h"

#define LOG_LINES 32
#define LOG_LINE_BYTES 200

struct log_line {
    uint32_t level;
    char text[LOG_LINE_BYTES];
};

struct log_ring {
    struct log_line lines[LOG_LINES];
    uint32_t first;
    uint32_t count;
    uint64_t lost;
    bool enabled; /* set once: the host has a log hook */
};

void blkrepl__log_add(struct log_ring *ring, uint32_t level, const char *format, ...)
    PRINTF_LIKE(3, 4);

/* Take the oldest line; false if there is none. */
bool blkrepl__log_take(struct log_ring *ring, struct log_line *out);

static inline bool log_waiting(const struct log_ring *ring)
{
    return ring->count > 0;
}

#endif
