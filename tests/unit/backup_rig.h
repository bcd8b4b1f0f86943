/* SPDX-License-Identifier: MIT */
/* backup_rig.h - backups from one scripted disk to another, perhaps with a bitmap of the
 * source and a third disk as a spill image. */
#ifndef TESTS_UNIT_BACKUP_RIG_H
#define TESTS_UNIT_BACKUP_RIG_H

#include "job/backup.h"
#include "unit/rig.h"

#define CLUSTER 4096u
#define CLUSTERS 41
#define BYTES (40 * CLUSTER + 100)
#define OP(opcode) (1u << BLKREPL_OP_##opcode)

struct bench {
    struct rig rig;
    struct script source;
    struct script target;
    struct script third; /* with bench_open_third() */
    blkrepl_image *from;
    blkrepl_image *to;
    blkrepl_image *spill;
    blkrepl_bitmap *bitmap; /* with bench_add_bitmap() */
    unsigned char *old;     /* the source as it is when the bench is opened */
    unsigned released;
};

void bench_init(struct bench *b, uint64_t bytes);
void bench_open_images(struct bench *b);
void bench_open(struct bench *b, uint64_t bytes); /* both of these */
void bench_open_third(struct bench *b, uint64_t bytes);
void bench_add_bitmap(struct bench *b, uint64_t granularity);
void bench_close(struct bench *b);

/* Fixtures: *state is a bench, open with disks of BYTES or of so many, or one whose images
 * the test opens; it is closed behind the test, which leaves nothing waiting. */
#define BENCH_TEST(f) cmocka_unit_test_setup_teardown(f, bench_setup, bench_teardown)
#define BENCH_TEST_SIZE(f, bytes)                                                                  \
    cmocka_unit_test_prestate_setup_teardown(f, bench_setup, bench_teardown,                       \
                                             (void *)(uintptr_t)(bytes))
#define BENCH_TEST_CLOSED(f) cmocka_unit_test_setup_teardown(f, bench_setup_closed, bench_teardown)

int bench_setup(void **state);
int bench_setup_closed(void **state);
int bench_teardown(void **state);

/* Two workers with chunks of four clusters, a reserve of two; a name and a release. */
blkrepl_backup_options options_of(struct bench *b);
blkrepl_job_info info_of(blkrepl_job *job);
struct copy *copy_of(blkrepl_job *job);
blkrepl_job *create(struct bench *b, const blkrepl_backup_options *o);
blkrepl_job *start(struct bench *b, const blkrepl_backup_options *o);
/* Started, and polled; started while it was paused already. */
blkrepl_job *run(struct bench *b, const blkrepl_backup_options *o);
blkrepl_job *start_paused(struct bench *b, const blkrepl_backup_options *o);
/* Creating without memory leaves nothing behind, whichever allocation fails; it takes more
 * than `least` of them and fewer than `most`. */
void create_without_memory(struct bench *b, const blkrepl_backup_options *o, uint64_t least,
                           uint64_t most);

/* A guest write of 100 bytes into a cluster of the source. */
void guest_write(struct bench *b, unsigned cluster, struct done *done);

/* Creating and starting is refused so, and leaves nothing behind. */
void refused(struct bench *b, const blkrepl_backup_options *o, int code);
/* The same for good options of which one thing is changed. */
#define REFUSED(b, member, value, code)                                                            \
    do {                                                                                           \
        blkrepl_backup_options changed = options_of(b);                                            \
                                                                                                   \
        changed.member = (value);                                                                  \
        refused((b), &changed, (code));                                                            \
    } while (0)
/* The job has concluded so, and let go of everything; it is freed. */
void assert_concluded(struct bench *b, blkrepl_job *job, uint32_t result, int error);
/* What is dirty in the bitmap, cluster by cluster: "..##." and so on. */
void assert_dirty(struct bench *b, const char *clusters);

#endif
