/* SPDX-License-Identifier: MIT */
/* custom-backend.c - a disk of the host's own: a RAM disk served by two threads.
 *
 * submit() queues the requests; the threads carry them out, each after a
 * millisecond, and report them with blkrepl_io_complete() from where they are.
 * The disk is backed up to a memory image, which is read back and compared.
 * Exit codes: 0 equal, 1 not.
 */
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include <libblkrepl/libblkrepl.h>

#define DISK_BYTES (16u << 20)
#define QUEUE_DEPTH 32u

struct ramdisk {
    blkrepl_context *ctx;
    pthread_t threads[2];
    pthread_mutex_t lock;
    pthread_cond_t changed;
    blkrepl_io *queue[QUEUE_DEPTH]; /* a ring; it cannot overflow: the library keeps to the depth */
    uint32_t taken, queued;         /* requests ever taken out, and put in */
    bool closing;
    unsigned char medium[DISK_BYTES];
};

static int ramdisk_get_info(void *user, blkrepl_backend_info *info)
{
    (void)user;
    info->bytes = DISK_BYTES;
    info->opcodes = 1u << BLKREPL_OP_READ | 1u << BLKREPL_OP_WRITE;
    info->queue_depth = QUEUE_DEPTH;
    return 0;
}

/* Take everything, do nothing yet: submit must not block for long. */
static void ramdisk_submit(void *user, uint32_t lane, blkrepl_io *const *ios, uint32_t count)
{
    struct ramdisk *disk = user;
    (void)lane;
    pthread_mutex_lock(&disk->lock);
    for (uint32_t i = 0; i < count; i++) {
        disk->queue[disk->queued++ % QUEUE_DEPTH] = ios[i];
    }
    pthread_cond_broadcast(&disk->changed);
    pthread_mutex_unlock(&disk->lock);
}

/* A thread of the disk.  Once it is completed, *io is the library's again. */
static void *ramdisk_serve(void *user)
{
    const struct timespec latency = {0, 1000000};
    struct ramdisk *disk = user;

    pthread_mutex_lock(&disk->lock);
    while (disk->taken != disk->queued || !disk->closing) {
        if (disk->taken == disk->queued) {
            pthread_cond_wait(&disk->changed, &disk->lock);
            continue;
        }
        blkrepl_io *io = disk->queue[disk->taken++ % QUEUE_DEPTH];
        pthread_mutex_unlock(&disk->lock);
        nanosleep(&latency, NULL);
        bool read = io->opcode == BLKREPL_OP_READ;
        unsigned char *at = disk->medium + io->offset;
        for (uint32_t i = 0; i < io->iov_count; at += io->iov[i].len, i++) {
            memcpy(read ? io->iov[i].base : at, read ? at : io->iov[i].base, io->iov[i].len);
        }
        blkrepl_io_complete(disk->ctx, io->id, 0);
        pthread_mutex_lock(&disk->lock);
    }
    pthread_mutex_unlock(&disk->lock);
    return NULL;
}

static void ramdisk_close(void *user)
{
    struct ramdisk *disk = user;

    pthread_mutex_lock(&disk->lock);
    disk->closing = true;
    pthread_cond_broadcast(&disk->changed);
    pthread_mutex_unlock(&disk->lock);
    pthread_join(disk->threads[0], NULL);
    pthread_join(disk->threads[1], NULL);
}

static void read_done(void *user, int result)
{
    *(int *)user = result;
}

static bool equal(struct ramdisk *disk, blkrepl_image *image)
{
    static unsigned char copy[DISK_BYTES];
    const blkrepl_iovec iov = {copy, sizeof copy};
    int result = 1; /* until read_done() says otherwise */
    blkrepl_completion done = {.fn = read_done, .user = &result};

    int error = blkrepl_image_read(image, 0, 0, &iov, 1, 0, &done);
    while (error == 0 && result == 1) {
        blkrepl_poll(disk->ctx, 0, BLKREPL_FOREVER);
    }
    return result == 0 && memcmp(copy, disk->medium, sizeof copy) == 0;
}

int main(void)
{
    static struct ramdisk disk = {.lock = PTHREAD_MUTEX_INITIALIZER,
                                  .changed = PTHREAD_COND_INITIALIZER};
    const blkrepl_backend_ops ops = {.struct_size = sizeof ops,
                                     .get_info = ramdisk_get_info,
                                     .submit = ramdisk_submit,
                                     .close = ramdisk_close};
    blkrepl_job_info info = {.struct_size = sizeof info};
    blkrepl_image *source, *target;
    blkrepl_job *job;

    for (uint32_t i = 0; i < DISK_BYTES; i++) {
        disk.medium[i] = (unsigned char)(i * 2654435761u >> 13);
    }
    pthread_create(&disk.threads[0], NULL, ramdisk_serve, &disk);
    pthread_create(&disk.threads[1], NULL, ramdisk_serve, &disk);
    if (blkrepl_context_create(NULL, &disk.ctx) < 0 ||
        blkrepl_image_open(disk.ctx, &ops, &disk, NULL, &source) < 0 ||
        blkrepl_image_open_memory(disk.ctx, DISK_BYTES, NULL, &target) < 0 ||
        blkrepl_backup_start(source, target, NULL, &job) < 0) {
        fprintf(stderr, "custom-backend: %s\n", blkrepl_error_message());
        return 1;
    }
    while (info.state != BLKREPL_JOB_CONCLUDED) {
        blkrepl_poll(disk.ctx, 0, 100000000);
        blkrepl_job_query(job, &info);
    }
    bool good = info.result == BLKREPL_RESULT_DONE && equal(&disk, target);
    printf("%llu bytes copied from the RAM disk; the copy is %s\n",
           (unsigned long long)info.bytes_done, good ? "equal" : "NOT equal");

    blkrepl_job_free(job);
    blkrepl_image_close(target);
    blkrepl_image_close(source); /* ramdisk_close() runs here, or in a poll */
    while (blkrepl_context_free(disk.ctx) < 0) {
        blkrepl_poll(disk.ctx, 0, 1000000);
    }
    return good ? 0 : 1;
}
