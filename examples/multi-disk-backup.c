/* SPDX-License-Identifier: MIT */
/* multi-disk-backup.c - three disks of one guest, backed up as they were at one instant.
 *
 *     multi-disk-backup FOLDER       leaves the disks and their backups there
 *
 * The guest is a database with its log, data and index on disks of their own.  A transaction
 * writes to the log, and when that is done to the data, and when that is done to the index.  So
 * the log is never behind the data, and the data never behind the index: a restored database that
 * breaks this has lost transactions, or has an index that points to nothing.
 *
 * Backups that are started one after the other break it, each being good by itself.  Those of a
 * group have one point in time.  Here both are made, from a guest that never stops, and looked at.
 * Exit codes: 0 done and right, 1 not, or an error, 2 usage.
 */
#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <libblkrepl/libblkrepl.h>

#define DISKS 3u
#define THREADS 4u
#define SLOTS 2048u /* of a thread; its transactions fill them in turn, over and over */
#define BLOCK_BYTES 4096u
#define DISK_BYTES (THREADS * SLOTS * BLOCK_BYTES)
#define GUEST_LANE 1u

static const char *const names[DISKS] = {"log", "data", "index"};

static blkrepl_context *ctx;
static blkrepl_image *disks[DISKS];
static atomic_bool stop;
static atomic_uint running;
static _Atomic uint64_t transactions;

static void die(const char *what, const char *why)
{
    fprintf(stderr, "multi-disk-backup: %s: %s\n", what, why);
    exit(1);
}

static void check(int answer, const char *what)
{
    if (answer < 0) {
        die(what, blkrepl_error_message());
    }
}

/* ---- The guest ---------------------------------------------------------------------------- */

/* Transaction n of a thread: the same block, all of it n, to one disk after the other.  The calls
 * wait until the write is done, and that is what the order stands on. */
static void transaction(uint64_t thread, uint64_t n)
{
    uint64_t block[BLOCK_BYTES / sizeof(uint64_t)];
    const blkrepl_iovec iov = {block, sizeof block};

    for (size_t i = 0; i < BLOCK_BYTES / sizeof block[0]; i++) {
        block[i] = n;
    }
    for (unsigned i = 0; i < DISKS; i++) {
        uint64_t offset = (thread * SLOTS + n % SLOTS) * BLOCK_BYTES;

        check(blkrepl_image_write_wait(disks[i], GUEST_LANE, offset, &iov, 1, 0), names[i]);
    }
}

static void *guest_main(void *user)
{
    uint64_t thread = *(const unsigned *)user;

    for (uint64_t n = 1; !stop; n++) {
        transaction(thread, n);
        transactions++;
    }
    running--;
    blkrepl_poll_wake(ctx, 0);
    return NULL;
}

/* The main thread polls lane 0, for the jobs; the guest has a lane of its own. */
static void guest_goes_on(uint64_t count)
{
    uint64_t until = transactions + count;

    while (transactions < until) {
        blkrepl_poll(ctx, 0, 1000000);
    }
}

/* ---- The backups -------------------------------------------------------------------------- */

struct set {
    const char *title;
    blkrepl_image *targets[DISKS];
    blkrepl_job *jobs[DISKS];
};

static blkrepl_image *open_disk(const char *folder, const char *prefix, const char *name)
{
    const blkrepl_file_options create = {
        .struct_size = sizeof create, .flags = BLKREPL_FILE_CREATE, .bytes = DISK_BYTES};
    blkrepl_image *image;
    char path[4096];

    snprintf(path, sizeof path, "%s/%s%s.img", folder, prefix, name);
    check(blkrepl_image_open_file(ctx, path, &create, NULL, &image), path);
    return image;
}

/* A job that is created has all it needs, and has done nothing yet. */
static void set_create(struct set *set, const char *folder, const char *title)
{
    char prefix[32];

    set->title = title;
    snprintf(prefix, sizeof prefix, "%s-", title);
    for (unsigned i = 0; i < DISKS; i++) {
        set->targets[i] = open_disk(folder, prefix, names[i]);
        check(blkrepl_backup_create(disks[i], set->targets[i], NULL, &set->jobs[i]), names[i]);
    }
}

/* Each has a point in time of its own. */
static void start_one_by_one(struct set *set)
{
    for (unsigned i = 0; i < DISKS; i++) {
        check(blkrepl_job_start(set->jobs[i]), names[i]);
        guest_goes_on(100);
    }
}

/* One instant is the point in time of all; and if one fails, none is done. */
static void start_together(struct set *set)
{
    blkrepl_group *group;

    check(blkrepl_group_create(ctx, 0, &group), "group");
    for (unsigned i = 0; i < DISKS; i++) {
        check(blkrepl_group_add(group, set->jobs[i]), names[i]);
    }
    check(blkrepl_group_start(group), "group");
    blkrepl_group_free(group); /* the jobs go on */
}

static void set_finish(struct set *set)
{
    for (unsigned i = 0; i < DISKS; i++) {
        blkrepl_job_info info = {.struct_size = sizeof info};

        while (info.state != BLKREPL_JOB_CONCLUDED) {
            blkrepl_poll(ctx, 0, 10000000);
            check(blkrepl_job_query(set->jobs[i], &info), "query");
        }
        if (info.result != BLKREPL_RESULT_DONE) {
            die(names[i], info.message);
        }
        blkrepl_job_free(set->jobs[i]);
    }
}

/* ---- Is it one instant? ------------------------------------------------------------------- */

/* The number in a block; it must be the same all over. */
static uint64_t block_number(blkrepl_image *image, uint64_t slot)
{
    uint64_t block[BLOCK_BYTES / sizeof(uint64_t)];
    const blkrepl_iovec iov = {block, sizeof block};

    check(blkrepl_image_read_wait(image, 0, slot * BLOCK_BYTES, &iov, 1, 0), "read");
    for (size_t i = 1; i < BLOCK_BYTES / sizeof block[0]; i++) {
        if (block[i] != block[0]) {
            die("backup", "holds half a write");
        }
    }
    return block[0];
}

/* What a thread has on one disk: its last transaction.  All those before it must be there too. */
static uint64_t last_transaction(blkrepl_image *image, uint64_t thread)
{
    uint64_t numbers[SLOTS], last = 0;

    for (uint64_t slot = 0; slot < SLOTS; slot++) {
        numbers[slot] = block_number(image, thread * SLOTS + slot);
        last = numbers[slot] > last ? numbers[slot] : last;
    }
    for (uint64_t n = last; n > 0 && n + SLOTS > last; n--) {
        if (numbers[n % SLOTS] != n) {
            die("backup", "has lost a transaction");
        }
    }
    return last;
}

/* Read what a guest would find after a restore: the log may be one ahead of the data, and these of
 * the index, and never the other way round. */
static bool set_is_consistent(const struct set *set)
{
    bool consistent = true;

    printf("%-8s  thread    in the log   in the data  in the index\n", set->title);
    for (uint64_t thread = 0; thread < THREADS; thread++) {
        uint64_t last[DISKS];

        for (unsigned i = 0; i < DISKS; i++) {
            last[i] = last_transaction(set->targets[i], thread);
        }
        bool good = last[0] >= last[1] && last[1] >= last[2] && last[0] - last[2] <= 1;
        printf("%16" PRIu64 "  %12" PRIu64 "  %12" PRIu64 "  %12" PRIu64 "   %s\n", thread, last[0],
               last[1], last[2], good ? "fits" : "DOES NOT FIT");
        consistent = consistent && good;
    }
    return consistent;
}

static void set_close(struct set *set)
{
    for (unsigned i = 0; i < DISKS; i++) {
        blkrepl_image_close(set->targets[i]);
    }
}

int main(int argc, char **argv)
{
    const blkrepl_context_options options = {.struct_size = sizeof options, .lane_count = 2};
    struct set apart, together;
    pthread_t threads[THREADS];
    unsigned numbers[THREADS];

    if (argc != 2 || argv[1][0] == '-') {
        fprintf(stderr, "usage: multi-disk-backup FOLDER\n");
        return 2;
    }
    check(blkrepl_context_create(&options, &ctx), "context");
    for (unsigned i = 0; i < DISKS; i++) {
        disks[i] = open_disk(argv[1], "", names[i]);
        check(blkrepl_image_write_zeroes_wait(disks[i], 0, 0, DISK_BYTES, 0), names[i]);
    }
    for (unsigned i = 0; i < THREADS; i++) {
        numbers[i] = i;
        running++;
        if (pthread_create(&threads[i], NULL, guest_main, &numbers[i]) != 0) {
            die("guest", "cannot start a thread");
        }
    }

    guest_goes_on(1000);
    set_create(&apart, argv[1], "apart");
    start_one_by_one(&apart);
    set_finish(&apart);
    guest_goes_on(1000);
    set_create(&together, argv[1], "together");
    start_together(&together);
    set_finish(&together);

    stop = true;
    while (running > 0) {
        blkrepl_poll(ctx, 0, 1000000);
    }
    for (unsigned i = 0; i < THREADS; i++) {
        pthread_join(threads[i], NULL);
    }
    printf("a guest of %u threads made %" PRIu64 " transactions over %u disks meanwhile\n\n",
           THREADS, transactions, DISKS);
    bool luck = set_is_consistent(&apart);
    printf("Started one after the other: %s.\n\n",
           luck ? "consistent, which was luck" : "not one instant, of no use together");
    bool right = set_is_consistent(&together);
    printf("Started as a group: %s.\n",
           right ? "consistent, one instant of all three" : "NOT consistent");

    set_close(&apart);
    set_close(&together);
    for (unsigned i = 0; i < DISKS; i++) {
        blkrepl_image_close(disks[i]);
    }
    while (blkrepl_context_free(ctx) == -EBUSY) {
        blkrepl_poll(ctx, 0, 1000000);
    }
    return right ? 0 : 1;
}
