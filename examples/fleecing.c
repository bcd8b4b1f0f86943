/* SPDX-License-Identifier: MIT */
/* fleecing.c - a backup program that pulls: it reads the disk as it was at one instant, at its own
 * pace, and only what has changed since last time.
 *
 *     fleecing FOLDER                leaves the disk and its backup there
 *
 * Nothing is pushed to a target.  A job with SYNC_NONE saves old data where the guest writes, in a
 * sparse file, the fleecing image, and a snapshot image shows the point in time: from that file
 * where something was saved, otherwise from the disk itself.  Whoever has the snapshot can be slow,
 * for the guest waits for local storage only.
 *
 * The puller asks the job's bitmap what has changed since yesterday, which stands still while the
 * job runs.  What it has read it discards in the snapshot: "I am done with this".  From then on the
 * guest's writes there need no saving, and what was saved gives its space back.
 *
 * Yesterday's backup with the pulled parts over it must be what the disk was at the point in time.
 * Exit codes: 0 done and right, 1 not, or an error, 2 usage.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include <libblkrepl/libblkrepl.h>

#define MIB (UINT64_C(1) << 20)
#define DISK_BYTES (64 * MIB)
#define BLOCK_BYTES 4096u
#define PIECE_BYTES 65536u /* pulled at once; whole clusters, so that they can be discarded */

enum lane {
    LANE_CONTROL,
    LANE_GUEST,
    LANE_PULLER,
    LANE_COUNT
};

static blkrepl_context *ctx;
static blkrepl_image *disk;
static char fleece_path[4096], backup_path[4096];
static unsigned char *notes; /* the guest's: what the disk holds */
static atomic_bool stop;
static atomic_bool guest_over;
static _Atomic uint64_t writes;

static void die(const char *what, const char *why)
{
    fprintf(stderr, "fleecing: %s: %s\n", what, why);
    exit(1);
}

static void check(int answer, const char *what)
{
    if (answer < 0) {
        die(what, blkrepl_error_message());
    }
}

static blkrepl_image *create(char *path, const char *folder, const char *name)
{
    const blkrepl_file_options options = {
        .struct_size = sizeof options, .flags = BLKREPL_FILE_CREATE, .bytes = DISK_BYTES};
    blkrepl_image *image;

    snprintf(path, 4096, "%s/%s", folder, name);
    remove(path);
    check(blkrepl_image_open_file(ctx, path, &options, NULL, &image), path);
    return image;
}

static blkrepl_job_info query(blkrepl_job *job)
{
    blkrepl_job_info info = {.struct_size = sizeof info};

    check(blkrepl_job_query(job, &info), "query");
    return info;
}

static void wait_for(blkrepl_job *job, uint32_t state)
{
    blkrepl_job_info info = query(job);

    while (info.state != state && info.state != BLKREPL_JOB_CONCLUDED) {
        blkrepl_poll(ctx, LANE_CONTROL, 1000000);
        info = query(job);
    }
    if (info.result == BLKREPL_RESULT_FAILED) {
        die("job", info.message);
    }
}

/* How much room the fleecing image takes: its file is sparse. */
static uint64_t allocated(const char *path)
{
    struct stat st;

    if (stat(path, &st) != 0) {
        die(path, strerror(errno));
    }
    return (uint64_t)st.st_blocks * 512;
}

/* ---- The guest ---------------------------------------------------------------------------- */

static void guest_write(uint64_t first, uint64_t bytes)
{
    static uint64_t random = 1;
    uint64_t block[BLOCK_BYTES / sizeof(uint64_t)];
    const blkrepl_iovec iov = {block, sizeof block};

    random = random * 6364136223846793005u + 1442695040888963407u;
    uint64_t offset = first + (random >> 33) % (bytes / BLOCK_BYTES) * BLOCK_BYTES;
    for (size_t i = 0; i < BLOCK_BYTES / sizeof block[0]; i++) {
        block[i] = random;
    }
    check(blkrepl_image_write_wait(disk, LANE_GUEST, offset, &iov, 1, 0), "guest write");
    memcpy(notes + offset, block, sizeof block);
    writes++;
}

static void *guest_main(void *user)
{
    while (!stop) {
        guest_write(0, DISK_BYTES);
    }
    guest_over = true;
    blkrepl_poll_wake(ctx, LANE_CONTROL);
    return user;
}

/* ---- The puller: another program, as it were ------------------------------------------------ */

struct puller {
    blkrepl_image *snapshot;
    blkrepl_bitmap *changes;
    int backup;
    uint64_t bytes;        /* pulled */
    uint64_t fleeced_most; /* in the fleecing image at any time */
    atomic_bool over;
};

/* Read, store, and let go. */
static void pull_piece(struct puller *puller, uint64_t offset, uint64_t bytes)
{
    unsigned char data[PIECE_BYTES];
    const blkrepl_iovec iov = {data, (size_t)bytes};

    check(blkrepl_image_read_wait(puller->snapshot, LANE_PULLER, offset, &iov, 1, 0), "pull");
    if (pwrite(puller->backup, data, (size_t)bytes, (off_t)offset) != (ssize_t)bytes) {
        die(backup_path, strerror(errno));
    }
    uint64_t fleeced = allocated(fleece_path);
    puller->fleeced_most = fleeced > puller->fleeced_most ? fleeced : puller->fleeced_most;
    check(blkrepl_image_discard_wait(puller->snapshot, LANE_PULLER, offset, bytes, 0), "discard");
    puller->bytes += bytes;
    nanosleep(&(struct timespec){.tv_nsec = 500000},
              NULL); /* the network is slower than the disk */
}

static void *puller_main(void *user)
{
    struct puller *puller = user;
    blkrepl_area area = {0, 0};

    while (blkrepl_bitmap_next_area(puller->changes, area.offset + area.bytes, DISK_BYTES,
                                    PIECE_BYTES, &area) == 1) {
        pull_piece(puller, area.offset, area.bytes);
    }
    puller->over = true;
    blkrepl_poll_wake(ctx, LANE_CONTROL);
    return NULL;
}

/* What was given back, or was never dirty, is not to be had: an error rather than wrong data. */
static bool is_refused(blkrepl_image *snapshot, uint64_t offset)
{
    unsigned char byte;
    const blkrepl_iovec iov = {&byte, 1};

    return blkrepl_image_read_wait(snapshot, LANE_PULLER, offset, &iov, 1, 0) == -EACCES;
}

/* ---- One backup ----------------------------------------------------------------------------- */

/* DIRTY_ONLY: what has not changed since yesterday is neither saved nor readable. */
static blkrepl_job *job_start(blkrepl_image *fleece, blkrepl_bitmap *changes)
{
    const blkrepl_backup_options options = {.struct_size = sizeof options,
                                            .flags = BLKREPL_BACKUP_DIRTY_ONLY,
                                            .name = "fleecing",
                                            .sync = BLKREPL_SYNC_NONE,
                                            .bitmap = changes,
                                            .bitmap_mode = BLKREPL_BITMAP_ON_SUCCESS};
    blkrepl_job *job;

    check(blkrepl_backup_start(disk, fleece, &options, &job), "backup");
    wait_for(job, BLKREPL_JOB_READY);
    return job;
}

static void pull(struct puller *puller)
{
    pthread_t guest, thread;

    if (pthread_create(&guest, NULL, guest_main, NULL) != 0 ||
        pthread_create(&thread, NULL, puller_main, puller) != 0) {
        die("threads", "cannot be started");
    }
    while (!puller->over) {
        blkrepl_poll(ctx, LANE_CONTROL, 1000000);
    }
    pthread_join(thread, NULL);
    stop = true;
    while (!guest_over) { /* its last write may need the control lane once more */
        blkrepl_poll(ctx, LANE_CONTROL, 1000000);
    }
    pthread_join(guest, NULL);
}

static bool is_equal(int file, const unsigned char *truth)
{
    unsigned char data[PIECE_BYTES];

    for (uint64_t at = 0; at < DISK_BYTES; at += sizeof data) {
        if (pread(file, data, sizeof data, (off_t)at) != sizeof data ||
            memcmp(data, truth + at, sizeof data) != 0) {
            return false;
        }
    }
    return true;
}

static bool backup(blkrepl_image *fleece, blkrepl_bitmap *changes)
{
    blkrepl_bitmap_info info = {.struct_size = sizeof info};
    struct puller puller = {.changes = changes, .backup = open(backup_path, O_RDWR)};
    unsigned char *truth = malloc(DISK_BYTES);

    if (puller.backup < 0 || truth == NULL) {
        die(backup_path, strerror(errno));
    }
    blkrepl_job *job = job_start(fleece, changes); /* the point in time */
    memcpy(truth, notes, DISK_BYTES);              /* the guest is to start after it */
    check(blkrepl_snapshot_open(job, NULL, &puller.snapshot), "snapshot");
    pull(&puller);
    bool refused = is_refused(puller.snapshot, 0);
    uint64_t left = allocated(fleece_path);

    blkrepl_image_close(puller.snapshot);
    check(blkrepl_job_complete(job), "complete"); /* all is pulled: the bitmap begins anew */
    wait_for(job, BLKREPL_JOB_CONCLUDED);
    blkrepl_job_free(job);
    check(blkrepl_bitmap_query(changes, &info), "query");
    bool equal = is_equal(puller.backup, truth);

    printf("pulled           %.2f MiB that had changed since yesterday, of %.0f\n"
           "guest meanwhile  %" PRIu64 " writes\n"
           "fleecing image   %.2f MiB at most, %.2f MiB in the end\n"
           "for tomorrow     %.2f MiB have changed since the point in time\n"
           "read again       %s\n"
           "proof: the backup is %s the disk was at the point in time\n",
           (double)puller.bytes / (double)MIB, (double)DISK_BYTES / (double)MIB, writes,
           (double)puller.fleeced_most / (double)MIB, (double)left / (double)MIB,
           (double)info.dirty_bytes / (double)MIB,
           refused ? "refused, as it was given back" : "NOT refused", equal ? "what" : "NOT what");
    close(puller.backup);
    free(truth);
    return equal && refused;
}

/* Yesterday: a full backup, here simply of a disk that is all zeroes; then a day of writes. */
static blkrepl_bitmap *yesterday(const char *folder)
{
    const blkrepl_bitmap_options options = {.struct_size = sizeof options, .name = "changes"};
    blkrepl_bitmap *changes;

    blkrepl_image_close(create(backup_path, folder, "backup.img"));
    check(blkrepl_bitmap_add(disk, &options, &changes), "bitmap");
    for (int i = 0; i < 2000; i++) {
        guest_write(0, DISK_BYTES / 4);
    }
    writes = 0;
    return changes;
}

int main(int argc, char **argv)
{
    const blkrepl_context_options options = {.struct_size = sizeof options,
                                             .lane_count = LANE_COUNT};
    char disk_path[4096];

    if (argc != 2 || argv[1][0] == '-') {
        fprintf(stderr, "usage: fleecing FOLDER\n");
        return 2;
    }
    notes = calloc(1, DISK_BYTES);
    if (notes == NULL) {
        die("start", "no memory");
    }
    check(blkrepl_context_create(&options, &ctx), "context");
    disk = create(disk_path, argv[1], "disk.img");
    blkrepl_bitmap *changes = yesterday(argv[1]);
    blkrepl_image *fleece = create(fleece_path, argv[1], "fleece.img");
    bool right = backup(fleece, changes);

    blkrepl_bitmap_free(changes);
    blkrepl_image_close(fleece);
    blkrepl_image_close(disk);
    while (blkrepl_context_free(ctx) == -EBUSY) {
        blkrepl_poll(ctx, LANE_CONTROL, 1000000);
    }
    remove(fleece_path);
    free(notes);
    return right ? 0 : 1;
}
