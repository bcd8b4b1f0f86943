/* SPDX-License-Identifier: MIT */
/* progress.c - a line that is redrawn on a terminal, or one now and then elsewhere. */
#include "progress.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

const char *human(char out[24], double bytes)
{
    static const char *const units[] = {"B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"};
    unsigned unit = 0;

    while (bytes >= 1023.95 && unit < 6) {
        bytes /= 1024;
        unit++;
    }
    snprintf(out, 24, unit == 0 ? "%.0f %s" : "%.1f %s", bytes, units[unit]);
    return out;
}

/* A duration for people, e.g. "4:05" or "1:00:00"; returns out. */
static const char *clock_text(char out[24], double seconds)
{
    unsigned s = seconds < 359999 ? (unsigned)(seconds + 0.5) : 359999;

    if (s < 3600) {
        snprintf(out, 24, "%u:%02u", s / 60, s % 60);
    } else {
        snprintf(out, 24, "%u:%02u:%02u", s / 3600, s / 60 % 60, s % 60);
    }
    return out;
}

enum part {
    PART_SIZES,
    PART_RATE,
    PART_ETA,
    PART_GUEST,
    PART_COUNT
};

void progress_start(struct progress *progress, bool quiet)
{
    const char *term = getenv("TERM");

    progress->quiet = quiet;
    progress->terminal = isatty(STDERR_FILENO) && term && strcmp(term, "dumb") != 0;
    progress->shown_ns = progress->rated_ns = now_ns();
}

/* The rate of the last two seconds or so. */
static void progress_rate(struct progress *progress, uint64_t bytes)
{
    uint64_t now = now_ns();
    double seconds = (double)(now - progress->rated_ns) / NS_PER_S;

    if (seconds <= 0) {
        return;
    }
    double rate = (double)(bytes - progress->rated_bytes) / seconds;
    double weight = progress->rated_bytes == 0 || seconds > 2 ? 1 : seconds / 2;
    progress->rate += (rate - progress->rate) * weight;
    progress->rated_ns = now;
    progress->rated_bytes = bytes;
}

static void progress_parts(const struct progress *progress, const blkrepl_job_info *info,
                           const struct guest *guest, char parts[PART_COUNT][64])
{
    uint64_t left = info->bytes_total - info->bytes_done;
    char a[24], b[24];

    snprintf(parts[PART_SIZES], 64, "  %10s of %s", human(a, (double)info->bytes_done),
             human(b, (double)info->bytes_total));
    snprintf(parts[PART_RATE], 64, "  %10s/s", human(a, progress->rate));
    snprintf(parts[PART_ETA], 64, "  ETA %s",
             progress->rate > 0 ? clock_text(a, (double)left / progress->rate) : "-:--");
    parts[PART_GUEST][0] = '\0';
    if (guest->count > 0) {
        snprintf(parts[PART_GUEST], 64, "  guest %.0f writes/s",
                 (double)guest_writes(guest) / guest_seconds(guest));
    }
}

static unsigned terminal_columns(void)
{
    struct winsize size = {0};

    return ioctl(STDERR_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0 ? size.ws_col : 80;
}

/* Redraw the line: what is important first, and a bar in what is left of the width. */
static void progress_draw(unsigned percent, char parts[PART_COUNT][64])
{
    static const enum part by_importance[] = {PART_RATE, PART_ETA, PART_SIZES, PART_GUEST};
    static const char full[] = "==================================================";
    size_t room = terminal_columns() - 1; /* the last column would wrap */
    size_t used = 5;

    for (unsigned i = 0; i < PART_COUNT; i++) {
        size_t length = strlen(parts[by_importance[i]]);

        if (used + length <= room) {
            used += length;
        } else {
            parts[by_importance[i]][0] = '\0';
        }
    }
    fprintf(stderr, "\r%3u %%", percent);
    if (room >= used + 13) {
        size_t width = room - used - 3 < sizeof full - 1 ? room - used - 3 : sizeof full - 1;
        int filled = (int)(width * percent / 100);

        fprintf(stderr, " [%.*s%s%*s]", filled, full, percent < 100 ? ">" : "",
                (int)width - filled - (percent < 100), "");
    }
    for (unsigned i = 0; i < PART_COUNT; i++) {
        fputs(parts[i], stderr);
    }
    fputs("\033[K", stderr);
    fflush(stderr);
}

/* Elsewhere than on a terminal: a line for every tenth, but not two in a second, and one after
 * ten seconds in any case. */
static void progress_line(struct progress *progress, unsigned percent, char parts[PART_COUNT][64])
{
    uint64_t since = progress->rated_ns - progress->shown_ns;

    if (since >= 10ull * NS_PER_S ||
        (since >= NS_PER_S && percent / 10 > progress->percent_shown / 10)) {
        fprintf(stderr, "%3u %%%s%s%s%s\n", percent, parts[PART_SIZES], parts[PART_RATE],
                parts[PART_ETA], parts[PART_GUEST]);
        progress->shown_ns = progress->rated_ns;
        progress->percent_shown = percent;
    }
}

void progress_show(struct progress *progress, const blkrepl_job_info *info,
                   const struct guest *guest)
{
    double part = info->bytes_total ? (double)info->bytes_done / (double)info->bytes_total : 1;
    unsigned percent = (unsigned)(100 * part);
    char parts[PART_COUNT][64];

    if (progress->quiet) {
        return;
    }
    progress_rate(progress, info->bytes_done);
    progress_parts(progress, info, guest, parts);
    if (progress->terminal) {
        progress_draw(percent, parts);
        progress->drawn = true;
    } else {
        progress_line(progress, percent, parts);
    }
}

void progress_end(struct progress *progress, const blkrepl_job_info *info,
                  const struct guest *guest)
{
    if (progress->drawn) {
        progress_show(progress, info, guest);
        fputc('\n', stderr);
    }
}
