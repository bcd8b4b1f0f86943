/* SPDX-License-Identifier: MIT */
/* replay_marks.c - the bitmaps of a replay: the calls of the log, and the same answers. */
#include "marks.h"
#include "replay.h"

static struct marks marks[MARKS_MAX];
static struct bits seen[MARKS_MAX];

void replay_marks_open(void)
{
    for (uint32_t i = 0; i < replay.plan->marks; i++) {
        marks_draw(replay.plan, i, &marks[i]);
        marks[i].ctx = sim.ctx;
        marks[i].image = sim.disks[marks[i].disk].image;
    }
}

/* What was seen depends on what the run's threads did meanwhile, but for the one
 * thread's: then all bits must be the same. */
void replay_marks(const struct entry *entry)
{
    int answer;

    if ((marks[entry->object].named == NULL) != (entry->a == MARKS_OPEN)) {
        replay_differs(entry, "the bitmap is not there, or is");
        return;
    }
    answer = marks_call(marks, entry->object, (enum marks_verb)entry->a, entry->b, entry->c, seen);
    if (replay.exact) {
        replay_compare(entry, answer);
    }
}

void replay_marks_free(void)
{
    struct bits unused[MARKS_MAX];

    for (uint32_t i = 0; i < replay.plan->marks; i++) {
        marks_call(marks, i, MARKS_FREE, 0, 0, unused);
    }
}
