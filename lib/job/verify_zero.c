/* SPDX-License-Identifier: MIT */
/* verify_zero.c - what the two images have answered to a probe of the verify job. */
#include "job/verify.h"

/* Whether the image's answer says that `at` reads as zero; *end: how far it says the
 * same, at most to the task's end.  What makes no sense is no answer: data. */
static bool zero_at(const struct verify_task *task, int i, uint64_t at, uint64_t *end)
{
    const blkrepl_extent *extents = task->side[i].extents;
    uint64_t from = task->start;

    for (uint32_t n = 0; n < VERIFY_EXTENTS && extents[n].bytes > 0; n++) {
        if (extents[n].bytes > verify_request_end(task, i) - from) {
            break;
        }
        from += extents[n].bytes;
        if (at < from) {
            *end = min_u64(from, task->end);
            return (extents[n].flags & BLKREPL_EXTENT_ZERO) != 0;
        }
    }
    *end = task->end;
    return false;
}

uint64_t blkrepl__verify_same_until(const struct verify_task *task, bool zero)
{
    uint64_t at = task->start;

    while (at < task->end) {
        uint64_t end_0;
        uint64_t end_1;
        bool zero_0 = zero_at(task, 0, at, &end_0);
        bool zero_1 = zero_at(task, 1, at, &end_1);

        if ((zero_0 && zero_1) != zero) {
            break;
        }
        at = min_u64(end_0, end_1);
    }
    return at;
}
