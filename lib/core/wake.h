/* SPDX-License-Identifier: MIT */
/* wake.h - a file descriptor that one thread sleeps on and others make
 * readable: an eventfd where there is one, else a pipe. */
#ifndef BLKREPL_CORE_WAKE_H
#define BLKREPL_CORE_WAKE_H

#include "base/compiler.h"

struct wake {
    int read_fd;
    int write_fd; /* the same for an eventfd */
};

/* Returns: 0; a negated errno (-EMFILE, ...). */
int blkrepl__wake_init(struct wake *wake);
void blkrepl__wake_fini(struct wake *wake);

/* Make it readable; never blocks. */
void blkrepl__wake_signal(struct wake *wake);
/* Make it not readable; never blocks. */
void blkrepl__wake_drain(struct wake *wake);
/* Sleep until it is readable or `timeout_ns` (BLKREPL_FOREVER: no limit) is
 * over; may return early. */
void blkrepl__wake_wait(struct wake *wake, uint64_t timeout_ns);

#endif
