/* SPDX-License-Identifier: MIT */
/* job_rig.h - jobs that do what the test says: a kind of job without images, whose
 * operations are counted and noted in their order. */
#ifndef TESTS_UNIT_JOB_RIG_H
#define TESTS_UNIT_JOB_RIG_H

#include "job/job.h"

#include "unit/rig.h"

#define ACTORS 4
#define ACTS_BYTES 2048

struct stage;

struct actor {
    struct blkrepl_job job; /* 0xdd when it was destroyed */
    struct stage *stage;
    char letter; /* 'a' ... */
    bool gone;
    /* Set by the test: what it does. */
    int refuse;         /* what prepare answers */
    bool ready;         /* its next step makes it READY */
    uint32_t end;       /* its next step ends it so: BLKREPL_RESULT_*; 0: it waits */
    bool stubborn;      /* it does not look at job->cancel by itself */
    uint32_t at_once;   /* cancelled ends it so inside the call */
    bool ready_at_once; /* start makes it READY */
    /* How often. */
    unsigned prepared;
    unsigned unprepared;
    unsigned started;
    unsigned steps;
    unsigned cancelled;
    unsigned completed;
    unsigned resumed;
    unsigned speeds;
    unsigned settled;
    unsigned let_go;
    unsigned destroyed;
    unsigned released;
    uint32_t settled_as; /* BLKREPL_RESULT_* */
    bool settled_first;  /* before let_go */
    unsigned events_at_release;
};

struct stage {
    struct rig rig;
    struct actor actors[ACTORS];
    char acts[ACTS_BYTES]; /* "a.start b.start a.settle ..." */
};

void stage_open(struct stage *stage);
/* Free the context, which must be possible; every actor that was published has ended
 * once, and in order. */
void stage_close(struct stage *stage);
/* Publish actor `n`; its handle is &actor->job. */
struct actor *stage_job(struct stage *stage, unsigned n, uint32_t flags);
/* Forget what was done so far. */
void stage_forget(struct stage *stage);

/* Let its machine take a step. */
void actor_step(struct actor *actor);
/* Let it end so in its next step, and take it. */
void actor_end(struct actor *actor, uint32_t result);
/* A request of it fails. */
void actor_error(struct actor *actor, int code, uint32_t side);
/* The same, and it is paused for it. */
void actor_error_pause(struct actor *actor);
blkrepl_job_info actor_info(struct actor *actor);
/* Events of this type that were delivered for it. */
unsigned actor_events(const struct stage *stage, uint64_t id, uint32_t type);

#endif
