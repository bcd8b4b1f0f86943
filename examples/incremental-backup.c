/* SPDX-License-Identifier: MIT */
/* incremental-backup.c - a week of backups, each but the first one only of what has changed.
 *
 *     incremental-backup FOLDER      leaves the disk and all backups there
 *
 * A dirty bitmap records what the guest writes.  On Sunday the whole disk is copied, and from the
 * point in time of that copy on the bitmap holds what the copy does not.  Each day a job copies
 * just that to a sparse file of its own, and from its point in time on the bitmap begins anew.  The
 * guest never stops.  What is in a file says a map, which is kept in memory here (track-changes.c
 * saves and loads such maps).
 *
 * On Wednesday the backup is cancelled half-way.  Nothing is lost: the bitmap is as if it had never
 * been started, and Thursday's has all of it.
 *
 * In the end every day is restored, which is the same in reverse: the full copy, and over it each
 * step, of which only what is in its map is copied.  It must be what the disk was on that day.
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

#include <libblkrepl/libblkrepl.h>

#define MIB (UINT64_C(1) << 20)
#define DISK_BYTES (32 * MIB)
#define BLOCK_BYTES 4096u
#define GUEST_LANE 1u

static blkrepl_context *ctx;
static blkrepl_image *disk;
static const char *folder;

static void die(const char *what, const char *why)
{
    fprintf(stderr, "incremental-backup: %s: %s\n", what, why);
    exit(1);
}

static void check(int answer, const char *what)
{
    if (answer < 0) {
        die(what, blkrepl_error_message());
    }
}

static blkrepl_image *open_file(const char *name, const char *end)
{
    const blkrepl_file_options create = {
        .struct_size = sizeof create, .flags = BLKREPL_FILE_CREATE, .bytes = DISK_BYTES};
    blkrepl_image *image;
    char path[4096];

    snprintf(path, sizeof path, "%s/%s%s", folder, name, end);
    remove(path);
    check(blkrepl_image_open_file(ctx, path, &create, NULL, &image), path);
    return image;
}

/* ---- The guest, and the truth -------------------------------------------------------------- */

/* The guest notes what it has written, so that there is something to compare with.  The lock is
 * for that alone: it makes the notes and the disk one.  A backup does not need it. */
static struct guest {
    pthread_t thread;
    pthread_mutex_t lock;
    unsigned char *notes;
    uint64_t random;
    atomic_uint day;
    _Atomic uint64_t writes;
    atomic_bool stop;
    atomic_bool over;
} guest = {.lock = PTHREAD_MUTEX_INITIALIZER, .random = 1};

static uint64_t guest_random(uint64_t below)
{
    guest.random = guest.random * 6364136223846793005u + 1442695040888963407u;
    return (guest.random >> 33) % below;
}

/* Every day has a corner of the disk of its own, and a few writes go anywhere. */
static void guest_write(void)
{
    uint64_t corner = DISK_BYTES / 16;
    uint64_t place = guest_random(1000) == 0 ? guest_random(DISK_BYTES)
                                             : guest.day * corner + guest_random(corner);
    uint64_t offset = place / BLOCK_BYTES * BLOCK_BYTES;
    uint64_t block[BLOCK_BYTES / sizeof(uint64_t)];
    const blkrepl_iovec iov = {block, sizeof block};

    for (size_t i = 0; i < BLOCK_BYTES / sizeof block[0]; i++) {
        block[i] = guest.writes;
    }
    pthread_mutex_lock(&guest.lock);
    check(blkrepl_image_write_wait(disk, GUEST_LANE, offset, &iov, 1, 0), "guest write");
    memcpy(guest.notes + offset, block, sizeof block);
    guest.writes++;
    pthread_mutex_unlock(&guest.lock);
}

/* So that the disk is no sparse file. */
static void guest_install(void)
{
    const blkrepl_iovec iov = {guest.notes, DISK_BYTES};

    for (uint64_t i = 0; i < DISK_BYTES; i++) {
        guest.notes[i] = (unsigned char)guest_random(256);
    }
    check(blkrepl_image_write_wait(disk, GUEST_LANE, 0, &iov, 1, 0), "guest write");
}

static void *guest_main(void *user)
{
    while (!guest.stop) {
        guest_write();
    }
    guest.over = true;
    blkrepl_poll_wake(ctx, 0);
    return user;
}

/* The main thread polls lane 0 for the jobs; the guest has a lane of its own. */
static void guest_goes_on(uint64_t writes)
{
    uint64_t until = guest.writes + writes;

    while (guest.writes < until) {
        blkrepl_poll(ctx, 0, 1000000);
    }
}

/* ---- Backups -------------------------------------------------------------------------------- */

struct step {
    const char *name;
    bool cancel;
    bool there;           /* it was not cancelled */
    blkrepl_image *image; /* holds what has changed */
    blkrepl_bitmap *map;  /* says where; all dirty for a full one */
    unsigned char *truth; /* the disk at the point in time */
    uint64_t bytes;       /* copied */
};

/* A job's bitmap stands still while the job runs, and holds what the job copies: take that down. */
static blkrepl_bitmap *copy_of(blkrepl_bitmap *changes)
{
    const blkrepl_bitmap_options options = {.struct_size = sizeof options, .bytes = DISK_BYTES};
    blkrepl_bitmap *map;
    blkrepl_area area = {0, 0};

    check(blkrepl_bitmap_create(ctx, &options, &map), "map");
    for (uint64_t at = 0; at < DISK_BYTES; at = area.offset + area.bytes) {
        if (blkrepl_bitmap_next_area(changes, at, DISK_BYTES - at, 0, &area) != 1) {
            break;
        }
        check(blkrepl_bitmap_set(map, area.offset, area.bytes), "map");
    }
    return map;
}

static void job_finish(blkrepl_job *job, struct step *step)
{
    blkrepl_job_info info = {.struct_size = sizeof info};

    while (info.state != BLKREPL_JOB_CONCLUDED) {
        blkrepl_poll(ctx, 0, 10000000);
        check(blkrepl_job_query(job, &info), "query");
    }
    if (info.result == BLKREPL_RESULT_FAILED) {
        die(step->name, info.message);
    }
    step->there = info.result == BLKREPL_RESULT_DONE;
    step->bytes = info.bytes_done;
    blkrepl_job_free(job);
}

/* ON_SUCCESS: when the job is done the bitmap holds what was written since its point in time;
 * otherwise it is as if there had been no job.  (SYNC_INCREMENTAL knows no other mode.) */
static void backup(struct step *step, blkrepl_bitmap *changes, uint32_t sync)
{
    const blkrepl_backup_options options = {.struct_size = sizeof options,
                                            .name = step->name,
                                            .sync = sync,
                                            .bitmap = changes,
                                            .bitmap_mode = BLKREPL_BITMAP_ON_SUCCESS,
                                            .speed_bytes_per_sec = step->cancel ? MIB : 64 * MIB};
    blkrepl_job *job;

    step->image = open_file(step->name, ".img");
    check(blkrepl_backup_create(disk, step->image, &options, &job), step->name);
    pthread_mutex_lock(&guest.lock); /* no job runs: the guest's write needs no poll of ours */
    check(blkrepl_job_start(job), step->name); /* the point in time */
    memcpy(step->truth, guest.notes, DISK_BYTES);
    pthread_mutex_unlock(&guest.lock);
    if (sync == BLKREPL_SYNC_INCREMENTAL) {
        step->map = copy_of(changes);
    }
    if (step->cancel) {
        guest_goes_on(10);
        check(blkrepl_job_cancel(job, 0), step->name);
    }
    job_finish(job, step);
}

static void tell(const struct step *step, uint64_t writes)
{
    printf("%-10s ", step->name);
    if (step->there) {
        printf("%6.2f MiB copied", (double)step->bytes / (double)MIB);
    } else {
        printf("cancelled        ");
    }
    printf(", %5" PRIu64 " guest writes meanwhile\n", writes);
}

/* ---- Restore -------------------------------------------------------------------------------- */

/* Any bitmap will do for SYNC_BITMAP, of whatever image, or of none. */
static void lay_over(const struct step *step, blkrepl_image *restored)
{
    const blkrepl_backup_options options = {.struct_size = sizeof options,
                                            .sync =
                                                step->map ? BLKREPL_SYNC_BITMAP : BLKREPL_SYNC_FULL,
                                            .bitmap = step->map,
                                            .bitmap_mode = step->map ? BLKREPL_BITMAP_NEVER : 0};
    struct step copy = {.name = step->name};
    blkrepl_job *job;

    check(blkrepl_backup_start(step->image, restored, &options, &job), "restore");
    job_finish(job, &copy);
}

static bool is_equal(blkrepl_image *image, const unsigned char *truth)
{
    unsigned char *data = malloc(DISK_BYTES);
    const blkrepl_iovec iov = {data, DISK_BYTES};

    if (data == NULL) {
        die("compare", "no memory");
    }
    check(blkrepl_image_read_wait(image, 0, 0, &iov, 1, 0), "compare");
    bool equal = memcmp(data, truth, DISK_BYTES) == 0;
    free(data);
    return equal;
}

/* One image goes through the whole week. */
static bool restore_all(const struct step *steps, unsigned count)
{
    blkrepl_image *restored = open_file("restored", ".img");
    bool right = true;

    for (unsigned i = 0; i < count; i++) {
        if (!steps[i].there) {
            continue;
        }
        lay_over(&steps[i], restored);
        bool equal = is_equal(restored, steps[i].truth);
        printf("%-10s restored: %s\n", steps[i].name,
               equal ? "the disk of that day" : "NOT the disk of that day");
        right = right && equal;
    }
    blkrepl_image_close(restored);
    return right;
}

/* ---- The week ------------------------------------------------------------------------------- */

static void *allocate(void)
{
    void *memory = calloc(1, DISK_BYTES);

    if (memory == NULL) {
        die("start", "no memory");
    }
    return memory;
}

static bool week(struct step *steps, unsigned count)
{
    const blkrepl_bitmap_options options = {.struct_size = sizeof options, .name = "changes"};
    blkrepl_bitmap *changes;

    guest.notes = allocate();
    guest_install();
    check(blkrepl_bitmap_add(disk, &options, &changes), "bitmap");
    if (pthread_create(&guest.thread, NULL, guest_main, NULL) != 0) {
        die("guest", "cannot start a thread");
    }
    for (unsigned day = 0; day < count; day++) {
        uint64_t before;

        guest.day = day;
        guest_goes_on(2000);
        steps[day].truth = allocate();
        before = guest.writes;
        backup(&steps[day], changes, day == 0 ? BLKREPL_SYNC_FULL : BLKREPL_SYNC_INCREMENTAL);
        tell(&steps[day], guest.writes - before);
    }
    guest.stop = true;
    while (!guest.over) {
        blkrepl_poll(ctx, 0, 1000000);
    }
    pthread_join(guest.thread, NULL);
    blkrepl_bitmap_free(changes);
    return restore_all(steps, count);
}

int main(int argc, char **argv)
{
    const blkrepl_context_options options = {.struct_size = sizeof options, .lane_count = 2};
    struct step steps[] = {{.name = "sunday"},   {.name = "monday"},
                           {.name = "tuesday"},  {.name = "wednesday", .cancel = true},
                           {.name = "thursday"}, {.name = "friday"}};
    const unsigned count = sizeof steps / sizeof *steps;

    if (argc != 2 || argv[1][0] == '-') {
        fprintf(stderr, "usage: incremental-backup FOLDER\n");
        return 2;
    }
    folder = argv[1];
    check(blkrepl_context_create(&options, &ctx), "context");
    disk = open_file("disk", ".img");
    bool right = week(steps, count);
    printf("proof: what was restored is %s, day by day\n",
           right ? "what the disk was" : "NOT what the disk was");

    for (unsigned i = 0; i < count; i++) {
        blkrepl_image_close(steps[i].image);
        blkrepl_bitmap_free(steps[i].map);
        free(steps[i].truth);
    }
    free(guest.notes);
    blkrepl_image_close(disk);
    while (blkrepl_context_free(ctx) == -EBUSY) {
        blkrepl_poll(ctx, 0, 1000000);
    }
    return right ? 0 : 1;
}
