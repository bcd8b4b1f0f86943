/* SPDX-License-Identifier: MIT */
/* rig.h - what the unit tests of core, block and job share: a context whose
 * memory, clock, events and log are watched, a backend that does what the test
 * says and checks what it is given, and completions that are counted. */
#ifndef TESTS_UNIT_RIG_H
#define TESTS_UNIT_RIG_H

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "core/context.h"
#include <libblkrepl/libblkrepl.h>

#define KIB UINT64_C(1024)
#define MIB (KIB * KIB)
#define SECOND UINT64_C(1000000000)
#define RIG_EVENTS 128
#define RIG_LINES 128
#define SCRIPT_WAITING 256
#define SCRIPT_NOTES 4096
#define SCRIPT_EXTENTS 64

/* Whether only a short run is wanted (BLKREPL_TEST_QUICK). */
bool quick(void);

/* Random numbers: the same seed, the same sequence. */
struct rng {
    uint64_t state;
};
uint64_t rng_below(struct rng *rng, uint64_t below);

/* ---- Memory that is counted, and that may run out -------------------------- */

struct heap {
    uint64_t live;    /* blocks not yet freed                                 */
    uint64_t calls;   /* allocations tried                                    */
    uint64_t fail_at; /* the call that fails, from 1; 0: none                 */
};

blkrepl_allocator heap_allocator(struct heap *heap);

/* ---- A context under watch -------------------------------------------------- */

struct rig {
    /* Set before rig_open(). */
    bool real_clock; /* no clock hook: polls may sleep */
    bool no_sink;
    bool no_log;
    /* Set by rig_open(). */
    blkrepl_context *ctx;
    struct heap heap;
    uint64_t now; /* what the clock hook answers */
    unsigned sink_released;
    unsigned event_count;
    blkrepl_event events[RIG_EVENTS];
    unsigned line_count;
    uint32_t levels[RIG_LINES];
    char lines[RIG_LINES][LOG_LINE_BYTES];
};

/* The options with which rig_open() creates: `base` (may be NULL) with hooks,
 * allocator and sink filled in. */
blkrepl_context_options rig_options(struct rig *rig, const blkrepl_context_options *base,
                                    blkrepl_hooks *hooks, blkrepl_allocator *allocator);
void rig_open(struct rig *rig, const blkrepl_context_options *base);
/* Free the context, which must be possible, and check that nothing leaked. */
void rig_close(struct rig *rig);
/* Poll until there is nothing to do; the number of callbacks. */
int rig_poll(struct rig *rig);
/* Let time pass, then poll. */
void rig_advance(struct rig *rig, uint64_t ns);
/* How many events of this type have come; the nth of them (from 0). */
unsigned rig_events(const struct rig *rig, uint32_t type);
const blkrepl_event *rig_event(const struct rig *rig, uint32_t type, unsigned nth);

/* ---- A backend that does what the test says --------------------------------- */

/* What was submitted. */
struct note {
    uint64_t id;
    uint64_t offset;
    uint64_t bytes;
    uint32_t opcode;
    uint32_t flags;
    uint32_t iov_count;
};

struct script {
    /* Set before script_open(); script_init() has filled in defaults. */
    blkrepl_backend_info info;
    int info_result;
    /* Changed by the test at any time. */
    uint32_t hold;                         /* bit n: opcode n waits for script_end() */
    int result[9];                         /* of an opcode that is not held          */
    blkrepl_extent map[SCRIPT_EXTENTS];    /* the truth; what follows it is data     */
    bool map_raw;                          /* answer a STATUS with the map as it is  */
    uint32_t extents_most;                 /* of a STATUS; 0: as many as wanted      */
    void (*inside)(struct script *script); /* called once in the next submit       */
    /* Changed by the backend. */
    blkrepl_context *ctx;
    unsigned char *disk; /* NULL for a large one */
    blkrepl_io *waiting[SCRIPT_WAITING];
    unsigned waiting_count;
    struct note notes[SCRIPT_NOTES];
    unsigned note_count;
    unsigned submits;
    unsigned cancels;
    uint64_t cancelled; /* the last id */
    unsigned closed;
    unsigned wrong; /* requests that break a promise of backend.h */
    char why[160];  /* the first of them */
    bool opened;
};

extern const blkrepl_backend_ops script_ops;

/* A disk of `bytes`, zeroes, with every opcode and no limits. */
void script_init(struct script *script, uint64_t bytes);
blkrepl_image *script_open(struct script *script, struct rig *rig);
blkrepl_image *script_open_quick(struct script *script, struct rig *rig);
/* Keep an image from the quick way, which has tests of its own. */
void script_go_slow(blkrepl_image *image);
/* Complete the nth request that waits; with 0 it is carried out. */
void script_end(struct script *script, unsigned nth, int result);
void script_end_all(struct script *script);
/* The position among those that wait; fails the test if there is none. */
unsigned script_find(const struct script *script, uint32_t opcode, uint64_t offset);
/* How many requests with this opcode were submitted (0: all). */
unsigned script_count(const struct script *script, uint32_t opcode);
/* Forget the notes. */
void script_forget(struct script *script);
/* Nothing waits, no promise was broken, and it was closed once if it was opened. */
void script_fini(struct script *script);

/* ---- Completions that are counted ------------------------------------------- */

struct done {
    int calls;
    int result;
    int released;
    unsigned order; /* among all; from 1 */
    bool early;     /* released before fn ran */
};

blkrepl_completion done_of(struct done *done);
#define ASSERT_PENDING(d) assert_int_equal((d)->calls + (d)->released, 0)
/* Has run and was released, once each, with this result. */
void done_assert(const struct done *done, int result);
/* Never ran, and was released once. */
void done_assert_rejected(const struct done *done);

/* A guest write of 0xee over start..end of an image, then a poll.  The memory is static. */
void rig_write(struct rig *rig, blkrepl_image *image, uint64_t start, uint64_t end,
               struct done *done);

#endif
