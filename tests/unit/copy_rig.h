/* SPDX-License-Identifier: MIT */
/* copy_rig.h - a copy engine between two scripted disks, owned by a job that
 * does nothing but pump it. */
#ifndef TESTS_UNIT_COPY_RIG_H
#define TESTS_UNIT_COPY_RIG_H

#include "job/copy.h"
#include "unit/rig.h"

#define CLUSTER 4096u
#define OP(opcode) (1u << BLKREPL_OP_##opcode)

struct copy_rig {
    struct rig rig;
    struct script source;
    struct script target;
    struct script spill; /* opened if with_spill is set before copy_rig_open() */
    bool with_spill;
    blkrepl_image *aside;
    blkrepl_image *from;
    blkrepl_image *to;
    struct blkrepl_job job;
    struct copy copy;
    bool pumps; /* a step of the job pumps */
    unsigned steps;
    unsigned char *old; /* the source at the point in time */
};

/* Two disks of `bytes`; the test may change what their backends say. */
void copy_rig_init(struct copy_rig *r, uint64_t bytes);
/* Open the images and make the engine; its map is empty.  What is 0 in config
 * gets a default: 4 KiB clusters, 16 KiB chunks, 2 workers, 2 clusters of
 * reserve, no timeout. */
void copy_rig_open(struct copy_rig *r, const struct copy_config *config);
/* All clusters are to do; the point in time. */
void copy_rig_start(struct copy_rig *r);
/* Stop the engine, let everything end, free and check. */
void copy_rig_close(struct copy_rig *r);

/* One call of the pump, and its requests go out. */
bool copy_rig_pump(struct copy_rig *r);
/* Start a task of its own over clusters; it is a worker or from the reserve. */
struct copy_task *copy_rig_task(struct copy_rig *r, uint64_t first, uint64_t count, bool urgent);
/* The invariants of copy.h and copy_task.c. */
void copy_rig_check(const struct copy_rig *r);
/* The task over this cluster; NULL if there is none. */
struct copy_task *copy_rig_task_at(struct copy_rig *r, uint64_t cluster);

/* The job pauses no more. */
void copy_rig_resume(struct copy_rig *r);
/* One completion of a disk, handled. */
void copy_rig_end(struct copy_rig *r, struct script *script, unsigned nth, int result);

/* A guest write of one byte value over start..end of the source. */
void copy_rig_write(struct copy_rig *r, uint64_t start, uint64_t end, struct done *done);
/* Begin a bracket; the answer. */
int copy_rig_begin(struct copy_rig *r, uint32_t opcode, uint64_t start, uint64_t end,
                   struct done *go, uint64_t *token);
/* The target holds the source as it was at the point in time. */
void copy_rig_assert_copied(const struct copy_rig *r);

#endif
