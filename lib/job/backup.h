/* SPDX-License-Identifier: MIT */
/* backup.h - what the parts of a backup share: backup.c is the machine,
 * backup_create.c checks the options and takes the memory, backup_bitmap.c does what
 * concerns the bitmap and what is to be copied. */
#ifndef BLKREPL_JOB_BACKUP_H
#define BLKREPL_JOB_BACKUP_H

#include "block/bitmap.h"
#include "block/throttle.h"
#include "job/copy.h"
#include <libblkrepl/backup.h>

enum backup_state {
    BACKUP_CREATED, /* nothing has happened yet */
    BACKUP_SERVE,   /* guests have old data saved, and that is all */
    BACKUP_COPY,    /* there are clusters to claim */
    BACKUP_DRAIN,   /* copies are in flight */
    BACKUP_FLUSH,   /* the target is made durable */
    BACKUP_DONE,    /* finished: nothing is left to do */
    BACKUP_STATE_COUNT
};

struct backup {
    struct blkrepl_job job;
    struct copy copy;
    /* Set once. */
    uint32_t sync;
    uint32_t bitmap_mode;
    bool dirty_only;
    struct blkrepl_bitmap *bitmap; /* NULL: none */
    /* Changed by the machine. */
    enum backup_state state;
    uint64_t bytes_total;
    bool flush_failed; /* or was given up: what is on the target nobody knows */
    /* The bitmap's part: */
    bool announced;         /* the bitmap's `freezing` is ours */
    struct dirtymap since;  /* memory for its successor, until the start; */
    struct dirtymap unused; /* what it gave back at the end */
};

extern const struct job_ops blkrepl__backup_ops;

/* --- backup_bitmap.c; all but init and fini with the context's lock held -------- */

/* Take the memory for the successor.
 * Returns: 0; -EFBIG; -ENOMEM. */
int blkrepl__backup_bitmap_init(struct backup *backup);
void blkrepl__backup_bitmap_fini(struct backup *backup);

/* Before the start: whether the bitmap may be used now.  It is good to ask twice.
 * Returns: 0; -EBUSY; BLKREPL_ERR_STATE. */
int blkrepl__backup_bitmap_prepare(struct backup *backup);
void blkrepl__backup_bitmap_unprepare(struct backup *backup);

/* The point in time: freeze the bitmap and fill in what is to do. */
void blkrepl__backup_bitmap_start(struct backup *backup);

/* The job has its result: the bitmap becomes what its mode says. */
void blkrepl__backup_bitmap_settle(struct backup *backup);

/* How many bytes the clusters of a set have. */
uint64_t blkrepl__backup_bytes(const struct copy *copy, const struct hbitmap *clusters);

/* The engine of a backup with SYNC_NONE; NULL if the job is no such thing. */
struct copy *blkrepl__backup_copy_of(struct blkrepl_job *job);

#endif
