/* SPDX-License-Identifier: MIT */
/* replay.h - what the files of the replay share: the simulator's world, and the log. */
#ifndef BLKREPL_THREADS_REPLAY_H
#define BLKREPL_THREADS_REPLAY_H

#include "sim/sim.h"

#include "shared.h"
#include "threads.h"

struct replay {
    const struct plan *plan;
    const struct entry *entries;
    uint32_t count;
    uint32_t next;
    bool exact; /* one thread made it: everything must be the same         */
    struct tally *tally;
};

extern struct replay replay;

/* A call of the library begins, and ends; the oracles ask for it. */
void replay_enter(enum doing kind, uint32_t lane);
void replay_leave(void);
/* The host was told something: in an exact replay the next of the log. */
void replay_observed(enum entry_kind kind, uint32_t object, uint64_t a, uint64_t b, int answer);
/* A call has answered: the same, if it is an exact replay. */
void replay_compare(const struct entry *entry, int answer);
/* A call cannot be made here. */
void replay_differs(const struct entry *entry, const char *why);
/* Go on without the log: complete, poll all lanes. */
bool replay_move(void);

/* replay_guest.c */
void replay_guest_reset(void);
void replay_request(const struct entry *entry);
void replay_end(const struct entry *entry);
void replay_write_cancel(const struct entry *entry);
bool replay_bracket_finish(void);
void replay_guest_check(void);

/* replay_disk.c */
void replay_disk_open(uint32_t index);
void replay_complete(const struct entry *entry);
/* Complete what the log has completed before it was there. */
void replay_complete_owed(void);
bool replay_complete_any(void);

#endif
