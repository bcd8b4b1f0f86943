/* SPDX-License-Identifier: MIT */
/* vmm-beside.c - a backup while the host keeps its own data path.
 *
 *     vmm-beside FILE        (created, or overwritten, with 64 MiB)
 *
 * Four queue threads write to the file by themselves.  The library does not see
 * the data; it is told before and after.  Where the backup has not been yet,
 * begin saves the old data; if that would take a while it answers WAIT, and the
 * thread sleeps until its go callback has run.  At the end the backup is
 * compared with the file as it was at the start.
 * Exit codes: 0 equal, 1 not, or an error, 2 usage.
 */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <libblkrepl/libblkrepl.h>

#define DISK_BYTES (64u << 20)
#define BLOCK_BYTES 4096u
#define QUEUES 4

static blkrepl_context *ctx;
static blkrepl_image *disk;
static int fd; /* of the same disk: the host's own way to it */
static atomic_bool concluded;
static atomic_int running = QUEUES;
static unsigned char before[DISK_BYTES], backup[DISK_BYTES];

static struct queue {
    pthread_t thread;
    sem_t room, answered;
    int answer, error;
    unsigned writes, waits, refusals;
} queues[QUEUES];

/* In a poll, after a WAIT. */
static void on_answer(void *user, int result)
{
    struct queue *queue = user;
    queue->answer = result;
    sem_post(&queue->answered);
}

static int wait_for_answer(struct queue *queue)
{
    sem_wait(&queue->answered);
    return queue->answer;
}

/* In a poll.  Room wakes nobody in particular, so every queue tries again. */
static void on_event(void *user, const blkrepl_event *event)
{
    (void)user;
    for (int i = 0; event->type == BLKREPL_EVENT_ROOM && i < QUEUES; i++) {
        sem_post(&queues[i].room);
    }
    if (event->type == BLKREPL_EVENT_JOB_DONE) {
        concluded = true;
    }
}

/* What the host did before it knew the library; 0 or a negative code. */
static int own_io(const blkrepl_bracket *what, const void *data)
{
    if (what->opcode == BLKREPL_OP_FLUSH) {
        return fdatasync(fd) < 0 ? -errno : 0;
    }
    ssize_t written = pwrite(fd, data, BLOCK_BYTES, (off_t)what->offset);
    return written == (ssize_t)BLOCK_BYTES ? 0 : written < 0 ? -errno : -EIO;
}

/* The same in a bracket.  Only after a 0 from here is the guest told so. */
static int bracketed_io(struct queue *queue, const blkrepl_bracket *what, const void *data)
{
    const blkrepl_completion wake = {.fn = on_answer, .user = queue};
    uint64_t token;
    int answer;

    while ((answer = blkrepl_write_begin(disk, what, &wake, &token)) == -EAGAIN) {
        queue->refusals++;
        sem_wait(&queue->room);
    }
    if (answer == BLKREPL_WAIT) {
        queue->waits++;
        answer = wait_for_answer(queue);
    }
    if (answer < 0) {
        return answer; /* it must not be done, and there is nothing to end */
    }
    answer = blkrepl_write_end(ctx, token, own_io(what, data), NULL, 0, &wake);
    return answer == BLKREPL_WAIT ? wait_for_answer(queue) : answer;
}

/* A queue thread: writes random blocks, and flushes after every 256 of them. */
static void *queue_main(void *user)
{
    struct queue *queue = user;
    unsigned seed = (unsigned)(queue - queues) + 1;
    const blkrepl_bracket flush = {.struct_size = sizeof flush, .opcode = BLKREPL_OP_FLUSH};
    blkrepl_bracket write = {
        .struct_size = sizeof write, .opcode = BLKREPL_OP_WRITE, .bytes = BLOCK_BYTES};
    unsigned char block[BLOCK_BYTES];

    while (!concluded && queue->error == 0) {
        write.offset = (unsigned)rand_r(&seed) % (DISK_BYTES / BLOCK_BYTES) * BLOCK_BYTES;
        memset(block, rand_r(&seed), sizeof block);
        queue->error = bracketed_io(queue, &write, block);
        if (queue->error == 0 && ++queue->writes % 256 == 0) {
            queue->error = bracketed_io(queue, &flush, NULL);
        }
    }
    running--;
    blkrepl_poll_wake(ctx, 0);
    return NULL;
}

/* The disk at the point in time: random bytes, in the file and here. */
static bool make_disk(const char *path)
{
    unsigned seed = 0;

    for (uint32_t i = 0; i < DISK_BYTES; i++) {
        before[i] = (unsigned char)rand_r(&seed);
    }
    fd = open(path, O_RDWR | O_CREAT | O_TRUNC, 0600);
    return fd >= 0 && write(fd, before, DISK_BYTES) == (ssize_t)DISK_BYTES;
}

/* The guest begins right after the start; this thread polls until it has gone home. */
static void run_guest(void)
{
    unsigned writes = 0, waits = 0, refusals = 0;

    for (int i = 0; i < QUEUES; i++) {
        sem_init(&queues[i].room, 0, 0);
        sem_init(&queues[i].answered, 0, 0);
        pthread_create(&queues[i].thread, NULL, queue_main, &queues[i]);
    }
    while (running > 0) {
        blkrepl_poll(ctx, 0, BLKREPL_FOREVER);
    }
    for (int i = 0; i < QUEUES; i++) {
        pthread_join(queues[i].thread, NULL);
        writes += queues[i].writes;
        waits += queues[i].waits;
        refusals += queues[i].refusals;
        if (queues[i].error < 0) {
            printf("queue %d: %s\n", i, blkrepl_error_text(queues[i].error));
        }
    }
    printf("guest: %u writes, %u had to wait, %u refusals\n", writes, waits, refusals);
}

/* Read the whole backup; its callback uses the first queue's semaphore. */
static int read_backup(blkrepl_image *target)
{
    const blkrepl_iovec iov = {backup, sizeof backup};
    const blkrepl_completion done = {.fn = on_answer, .user = &queues[0]};

    int error = blkrepl_image_read(target, 0, 0, &iov, 1, 0, &done);
    while (error == 0 && sem_trywait(&queues[0].answered) < 0) {
        blkrepl_poll(ctx, 0, BLKREPL_FOREVER);
    }
    return error < 0 ? error : queues[0].answer;
}

int main(int argc, char **argv)
{
    blkrepl_context_options few = {
        .struct_size = sizeof few, .requests_max = 3, .on_event = {.fn = on_event}};
    blkrepl_backup_options slow = {.struct_size = sizeof slow, .speed_bytes_per_sec = DISK_BYTES};
    blkrepl_job_info info = {.struct_size = sizeof info};
    blkrepl_image *target;
    blkrepl_job *job;

    if (argc != 2) {
        fprintf(stderr, "usage: vmm-beside FILE\n");
        return 2;
    }
    if (!make_disk(argv[1])) {
        perror(argv[1]);
        return 1;
    }
    if (blkrepl_context_create(&few, &ctx) < 0 ||
        blkrepl_image_open_file(ctx, argv[1], NULL, NULL, &disk) < 0 ||
        blkrepl_image_open_memory(ctx, DISK_BYTES, NULL, &target) < 0 ||
        blkrepl_backup_start(disk, target, &slow, &job) < 0) {
        fprintf(stderr, "vmm-beside: %s\n", blkrepl_error_message());
        return 1;
    }
    run_guest();

    blkrepl_job_query(job, &info);
    bool equal = info.result == BLKREPL_RESULT_DONE && read_backup(target) == 0 &&
                 memcmp(backup, before, DISK_BYTES) == 0;
    printf("backup: %llu copies made for the guest; %s the disk as it was at the start%s%s\n",
           (unsigned long long)info.guest_copies_count, equal ? "equal to" : "NOT",
           info.message[0] ? ": " : "", info.message);

    blkrepl_job_free(job);
    blkrepl_image_close(target);
    blkrepl_image_close(disk);
    while (blkrepl_context_free(ctx) == -EBUSY) {
        blkrepl_poll(ctx, 0, 1000000);
    }
    close(fd);
    return equal ? 0 : 1;
}
