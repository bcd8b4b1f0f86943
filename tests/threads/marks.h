/* SPDX-License-Identifier: MIT */
/* marks.h - dirty bitmaps of a run and of its replay, and what was seen in them. */
#ifndef BLKREPL_THREADS_MARKS_H
#define BLKREPL_THREADS_MARKS_H

#include "threads.h"

#define MARKS_WORDS (VDISK_BYTES_MAX / 512 / 64)
#define LOOKS_MAX 1500

/* One bit for each granule. */
struct bits {
    uint64_t word[MARKS_WORDS];
};

/* A bitmap of an image, and a free-standing one to merge it into. */
struct marks {
    uint32_t disk;
    uint64_t bytes;
    uint64_t granularity;
    blkrepl_context *ctx;
    blkrepl_image *image;
    blkrepl_bitmap *named;
    blkrepl_bitmap *scratch;
};

enum marks_verb {
    MARKS_FREEZE,
    MARKS_ABDICATE,
    MARKS_RECLAIM,
    MARKS_CLEAR,
    MARKS_DISABLE,
    MARKS_ENABLE,
    MARKS_RESET,      /* all of it                                                  */
    MARKS_KEEP,       /* a: which of those that change nothing                      */
    MARKS_SET,        /* a: offset, b: bytes                                   */
    MARKS_ITERATE,    /* a: how many at once                                   */
    MARKS_SAVE,       /* as one part, in the form on the wire                  */
    MARKS_MERGE,      /* into the free-standing one                            */
    MARKS_PASS,       /* one more bitmap comes, with the content, and goes     */
    MARKS_QUERY,      /* validate and so on: nothing is told                   */
    MARKS_SHIFT,      /* a: of these at one instant: merge, and clear          */
    MARKS_FREEZE_ALL, /* a: of these at one instant                            */
    MARKS_OPEN,       /* the bitmaps themselves                               */
    MARKS_FREE        /* the handles                                           */
};

/* What is seen, in the order of the calls. */
enum look_kind {
    LOOK_PEEK,  /* the content, at some instant                                */
    LOOK_TURN,  /* the content; it began anew at the same instant              */
    LOOK_CLEAR, /* it began anew, and nobody has looked                        */
    LOOK_STOP,  /* recording is off from then on                               */
    LOOK_START,
    LOOK_SET /* bits: what was set                                          */
};

struct look {
    enum look_kind kind;
    uint32_t marks;
    uint32_t group; /* looks with the same one are of one instant: the first of these */
    uint64_t begin; /* stamps around the calls                                  */
    uint64_t end;
    struct bits bits;
};

/* marks_call.c: what a run and its replay do alike. */
void marks_draw(const struct plan *plan, uint32_t number, struct marks *marks);
/* One of them; its context and image are set.  Nothing is there if that fails. */
int marks_open(struct marks *all, uint32_t number);
/* Do it to one of them; out[i]: what was seen in all[i], if anything was.
 * Returns an error, or something that depends on what was seen. */
int marks_call(struct marks *all, uint32_t number, enum marks_verb verb, uint64_t a, uint64_t b,
               struct bits *out);
bool bits_get(const struct bits *bits, uint64_t granule);
void bits_set(struct bits *bits, uint64_t granule);

/* marks.c: the thread that turns them over. */
extern struct look looks[LOOKS_MAX];
extern uint32_t look_count;
extern struct marks live_marks[MARKS_MAX];

void marks_reset(void);
void marks_step(uint64_t *rng);
/* From any thread: ask for something; nothing is recorded. */
void marks_glance(uint64_t *rng);
/* Before the images are closed, all guests being over; and after. */
void marks_finish(void);
void marks_free_last(void);
void *marks_thread(void *actor);

/* check_marks.c */
void check_marks(void);

/* replay_marks.c */
void replay_marks_open(void);
void replay_marks(const struct entry *entry);
void replay_marks_free(void);

#endif
