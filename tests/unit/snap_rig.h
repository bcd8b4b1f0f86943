/* SPDX-License-Identifier: MIT */
/* snap_rig.h - a job that saves old data, between two scripted disks, and snapshots of
 * its point in time. */
#ifndef TESTS_UNIT_SNAP_RIG_H
#define TESTS_UNIT_SNAP_RIG_H

#include "base/checked.h"
#include "job/backup.h"
#include "job/snapshot.h"
#include "unit/rig.h"

#define CLUSTER 4096u
#define OP(opcode) (1u << BLKREPL_OP_##opcode)
#define ALL 0x7eu /* script.hold: nothing is completed by itself */

struct snap_rig {
    struct rig rig;
    struct script source;
    struct script target;
    blkrepl_image *from;
    blkrepl_image *to;
    blkrepl_job *job;
    struct copy *copy;
    blkrepl_image *image; /* the first snapshot */
    unsigned char *old;   /* the source at the point in time */
    bool polls_late;      /* the test polls when a read is on its way */
};

/* A READ of the snapshot. */
struct snap_read {
    struct done done;
    blkrepl_iovec iov;
    unsigned char *data;
    uint64_t offset;
    uint64_t bytes;
};

/* Two disks of `bytes`; the test may change what their backends say. */
void snap_init(struct snap_rig *r, const blkrepl_context_options *options, uint64_t bytes);
/* Open the images; start the job (NULL: 4 KiB clusters, the rest default) and open a
 * snapshot; or both. */
void snap_open_images(struct snap_rig *r);
void snap_start(struct snap_rig *r, const blkrepl_backup_options *options);
void snap_open(struct snap_rig *r, const blkrepl_backup_options *options);
/* Free and check; what is still waiting is completed. */
void snap_close(struct snap_rig *r);

/* Fixtures: *state is a rig with disks of 64 KiB and an open snapshot, or one that the test
 * opens, with disks of so many bytes; it is closed behind the test, which leaves nothing
 * waiting, as what it has on its stack is gone by then. */
#define SNAP_TEST(f) cmocka_unit_test_setup_teardown(f, snap_setup, snap_teardown)
#define SNAP_TEST_CLOSED(f) cmocka_unit_test_setup_teardown(f, snap_setup_closed, snap_teardown)
#define SNAP_TEST_SIZE(f, bytes)                                                                   \
    cmocka_unit_test_prestate_setup_teardown(f, snap_setup_closed, snap_teardown,                  \
                                             (void *)(uintptr_t)(bytes))

int snap_setup(void **state);
int snap_setup_closed(void **state);
int snap_teardown(void **state);

/* Another snapshot of the job. */
blkrepl_image *snap_another(struct snap_rig *r);
struct snapshot *snap_of(const blkrepl_image *image);
/* How many requests of a snapshot are in this state. */
unsigned snap_count(const blkrepl_image *image, enum snapshot_read_state state);

/* A guest write of one byte value over start..end of the source. */
void snap_write(struct snap_rig *r, uint64_t start, uint64_t end, struct done *done);
/* A write that is through: the old data are on the target. */
void snap_overwrite(struct snap_rig *r, uint64_t start, uint64_t end);

void snap_read(struct snap_rig *r, blkrepl_image *image, uint64_t start, uint64_t end,
               struct snap_read *read);
/* It has ended with the data of the point in time; with this code. */
void snap_assert_old(const struct snap_rig *r, struct snap_read *read);
void snap_assert_failed(struct snap_read *read, int code);
/* All of start..end reads as it was. */
void snap_expect_old(struct snap_rig *r, uint64_t start, uint64_t end);
void snap_expect_code(struct snap_rig *r, uint64_t start, uint64_t end, int code);

/* A discard, a status of the snapshot, which end at once. */
void snap_discard(struct snap_rig *r, uint64_t start, uint64_t end);
void snap_status(struct snap_rig *r, uint64_t start, uint64_t end, blkrepl_extent *extents,
                 uint32_t most);

#endif
