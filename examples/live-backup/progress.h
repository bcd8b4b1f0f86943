/* SPDX-License-Identifier: MIT */
/* progress.h - how far the backup is, for people. */
#ifndef LIVE_BACKUP_PROGRESS_H
#define LIVE_BACKUP_PROGRESS_H

#include <stdbool.h>
#include <stdint.h>

#include "guest.h"

struct progress {
    bool terminal; /* redraw one line; otherwise print one now and then */
    bool quiet;
    bool drawn;
    unsigned percent_shown; /* in the last line */
    uint64_t shown_ns;
    uint64_t rated_ns; /* when the rate was last looked at, and what was done then */
    uint64_t rated_bytes;
    double rate; /* bytes per second, smoothed */
};

void progress_start(struct progress *progress, bool quiet);
void progress_show(struct progress *progress, const blkrepl_job_info *info,
                   const struct guest *guest);

/* The last state stays on the screen, above what is printed next. */
void progress_end(struct progress *progress, const blkrepl_job_info *info,
                  const struct guest *guest);

/* A number of bytes for people, e.g. "1.5 GiB"; returns out. */
const char *human(char out[24], double bytes);

#endif
