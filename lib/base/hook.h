/* SPDX-License-Identifier: MIT */
/* hook.h - places where a test can hold the library back.
 *
 * Bugs live in windows: between two states, between a decision and its effect.
 * STRETCH(SITE) stands wherever a machine waits or changes its state, and is
 * true when a test wants the window open for longer: the next step is put off,
 * a batch is cut to one, the slow path is taken.  What is put off is never
 * lost; it is done by a later entry into the library, as if that had been busy.
 *
 * Builds without BLKREPL_HOOKS, which are all that is shipped, have no trace of
 * it.  The hook is set before the first call of the library. */
#ifndef BLKREPL_BASE_HOOK_H
#define BLKREPL_BASE_HOOK_H

#include <stdint.h>

#include "base/compiler.h"

enum stretch_site {
    STRETCH_INBOX,         /* completions stay in a lane's inbox */
    STRETCH_READY,         /* what became ready goes behind the others */
    STRETCH_COMPLETED,     /* a completion is handled after later ones */
    STRETCH_ADVANCE,       /* the rest is left to the next entry */
    STRETCH_TIMER,         /* timers are looked at the next time */
    STRETCH_OUTBOX,        /* the rest is given away by the next entry */
    STRETCH_CLOSE,         /* a backend is closed later */
    STRETCH_BATCH,         /* one request for a submit */
    STRETCH_MACHINE,       /* a job takes its step in the next poll */
    STRETCH_POLL,          /* no short cut through a poll */
    STRETCH_CALLBACK,      /* one callback at a time */
    STRETCH_EVENT,         /* events in the next poll */
    STRETCH_QUICK,         /* a guest request does not go the quick way */
    STRETCH_QUICK_AGAIN,   /* an image goes back to the quick way early */
    STRETCH_GUEST_START,   /* a guest request takes its first step later */
    STRETCH_GUEST_STEP,    /* a guest request takes its next step later */
    STRETCH_GUEST_ALONE,   /* a write looks for others though there are none */
    STRETCH_BOUNCE,        /* a buffer is not to be had at once */
    STRETCH_GO,            /* a bracket is told later that it may go */
    STRETCH_COPY_CLAIM,    /* a copy that was claimed does not begin at once */
    STRETCH_COPY_PUMP,     /* no more copies are started this time */
    STRETCH_COPY_PROBE,    /* no look ahead for holes */
    STRETCH_COPY_HELD,     /* a copy that may write to the target does so later */
    STRETCH_SNAPSHOT_WAIT, /* a snapshot looks later for what it is to read */
    STRETCH_BACKUP_STATE,  /* a backup stays between two states */
    STRETCH_THROTTLE,      /* who may pass a throttle waits once more */
    STRETCH_VERIFY_CLAIM,  /* a comparison that was claimed does not begin at once */
    STRETCH_VERIFY_PUMP,   /* no more comparisons are started this time */
    STRETCH_VERIFY_STATE,  /* a verify job stays between two states */
    STRETCH_SITE_COUNT
};

/* How a thread came to hold a lock of the library.  RECORD(KIND, lane) stands right
 * behind each place that takes one, so that a test learns the order in which threads
 * enter: what a call does before its first entry depends on nothing that others do. */
enum record_entry {
    RECORD_ENTER, /* a call begins */
    RECORD_PASS,  /* it has done nothing yet, lets go, and enters otherwise */
    RECORD_BACK,  /* it comes back from code of the host */
    RECORD_WOKEN  /* a poll has slept */
};

#ifdef BLKREPL_HOOKS
#define STRETCH(site) UNLIKELY(blkrepl__stretch(STRETCH_##site))
#define RECORD(kind, lane) blkrepl__record(RECORD_##kind, lane)

/* Set by a test; NULL: nothing is ever stretched. */
extern bool (*blkrepl__stretch_hook)(enum stretch_site site);

bool blkrepl__stretch(enum stretch_site site);

/* Set by a test that records the order of entries; called with the lock held. */
extern void (*blkrepl__record_hook)(enum record_entry entry, uint32_t lane);

void blkrepl__record(enum record_entry entry, uint32_t lane);
#else
#define STRETCH(site) false
#define RECORD(kind, lane) ((void)0)
#endif

#endif
