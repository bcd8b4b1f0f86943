/* SPDX-License-Identifier: MIT */
/* vmm-beside.c - a backup while a VMM keeps its own data path.
 *
 *     vmm-beside FILE        (created, or overwritten, with 64 MiB)
 *
 * A VMM with four queues, each with a thread, a lane and an event loop of its own.
 * The queues write to the file by themselves.  The library does not see the data;
 * it is told before and after.  Where the backup has not been yet, begin saves the
 * old data; if that would take a while it answers WAIT, the queue goes on with its
 * other requests, and the go callback comes in a poll of the queue's own lane.  So
 * nothing of a queue ever runs in another thread, and the queues share no lock.
 *
 * The main thread is the control thread: it polls lane 0, where jobs make progress
 * and events are told.  At the end the backup is compared with the file as it was
 * at the start.  Exit codes: 0 equal, 1 not, or an error, 2 usage.
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
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
#define QUEUE_DEPTH 16 /* requests of a queue at once */

static blkrepl_context *ctx;
static blkrepl_image *disk;
static int fd; /* of the same disk: the host's own way to it */
static atomic_bool stop;
static atomic_int running = QUEUES;
static unsigned char before[DISK_BYTES], backup[DISK_BYTES];

/* A request of the guest, and the queue that it came by. */
struct request {
    struct queue *queue;
    bool used;
    blkrepl_bracket what;
    uint64_t token;
    unsigned char data[BLOCK_BYTES];
};

static struct queue {
    pthread_t thread;
    uint32_t lane;
    unsigned seed, requests_used;
    int error;
    unsigned writes, waits;
    uint64_t ns;
    struct request requests[QUEUE_DEPTH];
} queues[QUEUES];

/* ---- The queues ------------------------------------------------------------------------ */

/* What the VMM did before it knew the library; 0 or a negative code. */
static int own_io(const struct request *request)
{
    if (request->what.opcode == BLKREPL_OP_FLUSH) {
        return fdatasync(fd) < 0 ? -errno : 0;
    }
    ssize_t written = pwrite(fd, request->data, BLOCK_BYTES, (off_t)request->what.offset);
    return written == (ssize_t)BLOCK_BYTES ? 0 : written < 0 ? -errno : -EIO;
}

/* The guest is told; here it counts. */
static void request_over(struct request *request, int result)
{
    struct queue *queue = request->queue;

    queue->writes += request->what.opcode == BLKREPL_OP_WRITE && result == 0;
    if (queue->error == 0) {
        queue->error = result;
    }
    request->used = false;
    queue->requests_used--;
}

/* In a poll of the queue's lane, if end had answered WAIT. */
static void on_end(void *user, int result)
{
    request_over(user, result);
}

/* GO: do it, and say so; the guest may be told after a 0 from the end. */
static void request_do(struct request *request)
{
    const blkrepl_completion later = {.fn = on_end, .user = request};

    int result = own_io(request);
    int answer = blkrepl_write_end(ctx, request->token, result, NULL, 0, &later);
    if (answer != BLKREPL_WAIT) {
        request_over(request, result < 0 ? result : answer);
    }
}

/* In a poll of the queue's lane, if begin had answered WAIT. */
static void on_go(void *user, int result)
{
    if (result == 0) {
        request_do(user);
    } else {
        request_over(user, result); /* it must not be done, and there is nothing to end */
    }
}

static void request_begin(struct request *request)
{
    const blkrepl_completion go = {.fn = on_go, .user = request};

    int answer = blkrepl_write_begin(disk, &request->what, &go, &request->token);
    if (answer == BLKREPL_WAIT) {
        request->queue->waits++;
    } else {
        on_go(request, answer);
    }
}

/* Stands for the guest: a random block of the first quarter, or a flush now and then. */
static void request_fill(struct request *request)
{
    unsigned *seed = &request->queue->seed;
    bool flush = rand_r(seed) % 256 == 0;
    unsigned block = (unsigned)rand_r(seed) % (DISK_BYTES / 4 / BLOCK_BYTES);

    request->what = (blkrepl_bracket){.struct_size = sizeof request->what,
                                      .opcode = flush ? BLKREPL_OP_FLUSH : BLKREPL_OP_WRITE,
                                      .offset = flush ? 0 : (uint64_t)block * BLOCK_BYTES,
                                      .bytes = flush ? 0 : BLOCK_BYTES,
                                      .lane = request->queue->lane};
    memset(request->data, rand_r(seed), BLOCK_BYTES);
}

/* Begin what the guest wants, as far as the queue has places. */
static void queue_take(struct queue *queue)
{
    for (struct request *r = queue->requests; r < queue->requests + QUEUE_DEPTH; r++) {
        if (!r->used) {
            r->used = true;
            r->queue = queue;
            queue->requests_used++;
            request_fill(r);
            request_begin(r);
        }
    }
}

/* Sleep until the lane has something for us.  In a VMM the doorbell of the queue is
 * waited for in the same place. */
static void queue_sleep(const struct queue *queue)
{
    struct pollfd fds[1] = {{.fd = blkrepl_poll_fd(ctx, queue->lane), .events = POLLIN}};
    uint64_t deadline_ns; /* only lane 0 has any */

    if (blkrepl_poll_arm(ctx, queue->lane, &deadline_ns) == 0) {
        poll(fds, 1, -1);
    }
}

/* The event loop of a queue.  It ends when it is told to and all its requests have. */
static void *queue_main(void *user)
{
    struct queue *queue = user;
    uint64_t start_ns = blkrepl_context_now(ctx);
    bool taking;

    do {
        taking = !stop && queue->error == 0;
        if (taking) {
            queue_take(queue);
        }
        if (queue->requests_used == QUEUE_DEPTH || (!taking && queue->requests_used > 0)) {
            queue_sleep(queue);
        }
        blkrepl_poll(ctx, queue->lane, 0);
    } while (taking || queue->requests_used > 0);
    queue->ns = blkrepl_context_now(ctx) - start_ns;
    running--;
    blkrepl_poll_wake(ctx, 0);
    return NULL;
}

/* ---- The control thread ------------------------------------------------------------------ */

/* In a poll of lane 0. */
static void on_event(void *user, const blkrepl_event *event)
{
    (void)user;
    if (event->type == BLKREPL_EVENT_JOB_DONE) {
        stop = true;
        for (int i = 0; i < QUEUES; i++) {
            blkrepl_poll_wake(ctx, queues[i].lane);
        }
    }
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

/* The guest begins right after the start of the backup.  Lane 0 is polled as long as
 * there is somebody who may wait for the backup. */
static void run_guest(void)
{
    for (int i = 0; i < QUEUES; i++) {
        queues[i].lane = (uint32_t)i + 1;
        queues[i].seed = (unsigned)i + 1;
        pthread_create(&queues[i].thread, NULL, queue_main, &queues[i]);
    }
    while (running > 0) {
        blkrepl_poll(ctx, 0, BLKREPL_FOREVER);
    }
    for (int i = 0; i < QUEUES; i++) {
        const struct queue *queue = &queues[i];

        pthread_join(queue->thread, NULL);
        printf("queue %d: %u writes (%.0f/s), %u had to wait%s%s\n", i, queue->writes,
               1e9 * queue->writes / (double)queue->ns, queue->waits, queue->error < 0 ? ": " : "",
               queue->error < 0 ? blkrepl_error_text(queue->error) : "");
    }
}

/* A thread with nothing else to do may wait for its request in the call. */
static bool backup_is_equal(blkrepl_image *target)
{
    const blkrepl_iovec iov = {backup, sizeof backup};

    return blkrepl_image_read_wait(target, 0, 0, &iov, 1, 0) == 0 &&
           memcmp(backup, before, DISK_BYTES) == 0;
}

int main(int argc, char **argv)
{
    /* With a place for each request of a queue no begin answers -EAGAIN. */
    blkrepl_context_options lanes = {.struct_size = sizeof lanes,
                                     .lane_count = QUEUES + 1,
                                     .requests_max = QUEUE_DEPTH,
                                     .on_event = {.fn = on_event}};
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
    if (blkrepl_context_create(&lanes, &ctx) < 0 ||
        blkrepl_image_open_file(ctx, argv[1], NULL, NULL, &disk) < 0 ||
        blkrepl_image_open_memory(ctx, DISK_BYTES, NULL, &target) < 0 ||
        blkrepl_backup_start(disk, target, &slow, &job) < 0) {
        fprintf(stderr, "vmm-beside: %s\n", blkrepl_error_message());
        return 1;
    }
    run_guest();

    blkrepl_job_query(job, &info);
    bool equal = info.result == BLKREPL_RESULT_DONE && backup_is_equal(target);
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
