/* SPDX-License-Identifier: MIT */
/* quick_rig.h - what the tests of the quick way share: an image that goes it, and
 * a look at its invariants. */
#ifndef TESTS_UNIT_QUICK_RIG_H
#define TESTS_UNIT_QUICK_RIG_H

#include "unit/rig.h"

#include "block/guest.h"
#include "block/quick.h"
#include "core/lane.h"
#include "core/port_quick.h"

#define EVERY 0x7eu /* script.hold: no request is completed by itself */

struct quick_bench {
    struct rig rig;
    struct script disk;
    blkrepl_image *image;
};

/* Before quick_open() the test may change disk.info. */
void quick_init(struct quick_bench *b, const blkrepl_context_options *options, uint64_t bytes);
void quick_open(struct quick_bench *b);
/* Look at the invariants, close, and see that all is given back. */
void quick_close(struct quick_bench *b);

/* The invariants of block/quick.h and core/port_quick.h. */
void quick_check(struct quick_bench *b);

/* Whether the image goes the quick way. */
bool is_quick(const struct quick_bench *b);
struct port *quick_port(const struct quick_bench *b);
/* The guest of a slot, lane after lane. */
struct guest *quick_guest(const struct quick_bench *b, uint32_t index);
/* Turn it to the slow way; whether it goes back at once. */
void quick_turn(struct quick_bench *b);
bool quick_back(struct quick_bench *b);

/* Requests that are accepted; the memory is anybody's. */
void quick_write(struct quick_bench *b, uint32_t lane, uint64_t offset, uint64_t bytes,
                 struct done *done);
void quick_read(struct quick_bench *b, uint32_t lane, uint64_t offset, uint64_t bytes,
                struct done *done);
void quick_flush_call(struct quick_bench *b, uint32_t lane, struct done *done);
/* A request of the slow way, which turns the image. */
void quick_slow(struct quick_bench *b, uint32_t lane, struct done *done);
/* A bracket; returns what begin answers. */
int quick_bracket(struct quick_bench *b, uint32_t lane, uint32_t opcode, uint64_t offset,
                  uint64_t bytes, struct done *go, uint64_t *token);

/* Poll one lane until it has nothing to do. */
void quick_poll(struct quick_bench *b, uint32_t lane);
void quick_poll_all(struct quick_bench *b);

/* The thread has no lock of the library, and nobody else has. */
void quick_unlocked(const struct quick_bench *b);

#endif
