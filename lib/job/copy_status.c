/* SPDX-License-Identifier: MIT */
/* copy_status.c - what the source's STATUS tells, and what is known from it.
 *
 * A task asks for its own range, or far ahead for all (a probe).  What a probe
 * has told holds until the end: a cluster in todo does not change. */
#include "job/copy.h"

#include "base/checked.h"

uint64_t blkrepl__copy_same_until(const struct copy_task *task, bool *zero)
{
    uint64_t cluster = task->copy->config.cluster_bytes;
    uint64_t at = task->start;
    uint64_t zero_end = task->start;
    uint64_t data_end;

    for (uint32_t i = 0; i < COPY_EXTENTS && task->extents[i].bytes > 0; i++) {
        if ((task->extents[i].flags & BLKREPL_EXTENT_ZERO) == 0) {
            break;
        }
        at += task->extents[i].bytes;
        zero_end = at;
    }
    zero_end = min_u64(zero_end, task->end);
    if (zero_end < task->end) {
        zero_end = align_down(zero_end, cluster);
    }
    *zero = zero_end > task->start;
    if (*zero) {
        return zero_end;
    }
    /* Data until the first extent of zeroes, rounded up to a cluster. */
    data_end = task->start;
    for (uint32_t i = 0; i < COPY_EXTENTS && task->extents[i].bytes > 0; i++) {
        if ((task->extents[i].flags & BLKREPL_EXTENT_ZERO) != 0 && i > 0) {
            break;
        }
        data_end += task->extents[i].bytes;
    }
    data_end = align_up(max_u64(data_end, task->start + 1), cluster);
    return min_u64(data_end, task->end);
}

void blkrepl__copy_remember(const struct copy_task *task)
{
    struct copy *copy = task->copy;
    uint64_t at = task->start;

    copy->known_count = 0;
    for (uint32_t i = 0; i < COPY_EXTENTS && task->extents[i].bytes > 0; i++) {
        copy->known[copy->known_count++] =
            (struct copy_known){.start = at,
                                .end = at + task->extents[i].bytes,
                                .zero = (task->extents[i].flags & BLKREPL_EXTENT_ZERO) != 0};
        at += task->extents[i].bytes;
    }
}

const struct copy_known *blkrepl__copy_known_at(const struct copy *copy, uint64_t offset)
{
    for (uint32_t i = 0; i < copy->known_count; i++) {
        if (offset >= copy->known[i].start && offset < copy->known[i].end) {
            return &copy->known[i];
        }
    }
    return NULL;
}

bool blkrepl__copy_known_zero(const struct copy *copy, uint64_t start, uint64_t end)
{
    while (start < end) {
        const struct copy_known *known = blkrepl__copy_known_at(copy, start);

        if (known == NULL || !known->zero) {
            return false;
        }
        start = known->end;
    }
    return true;
}

bool blkrepl__copy_known(const struct copy *copy, uint64_t start, uint64_t end)
{
    while (start < end) {
        const struct copy_known *known = blkrepl__copy_known_at(copy, start);

        if (known == NULL) {
            return false;
        }
        start = known->end;
    }
    return true;
}
