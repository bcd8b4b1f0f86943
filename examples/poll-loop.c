/* SPDX-License-Identifier: MIT */
/* poll-loop.c - a backup inside an event loop that belongs to the host.
 *
 *     poll-loop SOURCE TARGET
 *
 * The host has one thread that sleeps in poll(2).  It waits for the library's
 * descriptor next to one of its own: here a pipe on which a clock thread
 * writes a byte every 100 ms, standing for whatever else the host does.
 *
 * Before it sleeps it arms the library, which answers whether it may sleep and
 * until when.  The backup is limited to the source's size per second, so that
 * it takes about a second and there are deadlines to keep.
 *
 * Exit codes: 0 done, 1 failed, 2 usage.
 */
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <time.h>
#include <unistd.h>

#include <libblkrepl/libblkrepl.h>

/* The host's other work: a tick every 100 ms until nobody can read it any more. */
static void *clock_main(void *user)
{
    const struct timespec tick = {0, 100000000};
    const int *pipe_in = user;

    do {
        nanosleep(&tick, NULL);
    } while (write(*pipe_in, "t", 1) == 1);
    return NULL;
}

/* How long poll(2) may sleep: in ms, rounded up so that it does not wake early. */
static int timeout_ms(blkrepl_context *ctx, uint64_t deadline_ns)
{
    uint64_t now_ns = blkrepl_context_now(ctx);

    if (deadline_ns == BLKREPL_FOREVER) {
        return -1;
    }
    if (deadline_ns <= now_ns) {
        return 0;
    }
    uint64_t ms = (deadline_ns - now_ns) / 1000000 + 1;
    return ms < 60000 ? (int)ms : 60000;
}

/* The loop: arm, sleep on both descriptors, serve the one, let the library move. */
static void host_loop(blkrepl_context *ctx, int clock_fd, const bool *concluded)
{
    struct pollfd fds[2] = {
        {.fd = blkrepl_poll_fd(ctx, 0), .events = POLLIN},
        {.fd = clock_fd, .events = POLLIN},
    };
    unsigned wakeups = 0, ticks = 0;

    while (!*concluded) {
        uint64_t deadline_ns = 0;
        int work = blkrepl_poll_arm(ctx, 0, &deadline_ns);

        if (poll(fds, 2, work == 1 ? 0 : timeout_ms(ctx, deadline_ns)) < 0 && errno != EINTR) {
            perror("poll-loop: poll");
            return;
        }
        wakeups++;
        if (fds[1].revents & POLLIN) {
            char tick;
            ticks += read(clock_fd, &tick, 1) == 1;
        }
        blkrepl_poll(ctx, 0, 0);
    }
    printf("%u wake-ups, %u of the host's own ticks served meanwhile\n", wakeups, ticks);
}

/* Runs inside blkrepl_poll(): the last event of the job ends the loop. */
static void on_event(void *user, const blkrepl_event *event)
{
    bool *concluded = user;

    if (event->type == BLKREPL_EVENT_JOB_DONE) {
        *concluded = true;
    }
}

/* Open both files and start; negative if something is wrong. */
static int start(blkrepl_context *ctx, char **paths, blkrepl_image **images, blkrepl_job **job)
{
    blkrepl_file_options create = {.struct_size = sizeof create, .flags = BLKREPL_FILE_CREATE};
    blkrepl_backup_options options = {.struct_size = sizeof options};
    blkrepl_image_info disk = {.struct_size = sizeof disk};

    int error = blkrepl_image_open_file(ctx, paths[0], NULL, NULL, &images[0]);
    if (error == 0) {
        blkrepl_image_query(images[0], &disk);
        create.bytes = disk.bytes;
        options.speed_bytes_per_sec = disk.bytes;
        error = blkrepl_image_open_file(ctx, paths[1], &create, NULL, &images[1]);
    }
    return error < 0 ? error : blkrepl_backup_start(images[0], images[1], &options, job);
}

int main(int argc, char **argv)
{
    bool concluded = false;
    blkrepl_context_options options = {.struct_size = sizeof options,
                                       .on_event = {.fn = on_event, .user = &concluded}};
    blkrepl_job_info info = {.struct_size = sizeof info};
    blkrepl_context *ctx = NULL;
    blkrepl_image *images[2] = {NULL, NULL};
    blkrepl_job *job = NULL;
    pthread_t clock_thread;
    int clock_pipe[2];

    if (argc != 3) {
        fprintf(stderr, "usage: poll-loop SOURCE TARGET\n");
        return 2;
    }
    signal(SIGPIPE, SIG_IGN);
    if (pipe(clock_pipe) < 0 || pthread_create(&clock_thread, NULL, clock_main, &clock_pipe[1])) {
        perror("poll-loop");
        return 1;
    }

    if (blkrepl_context_create(&options, &ctx) < 0 || start(ctx, &argv[1], images, &job) < 0) {
        fprintf(stderr, "poll-loop: %s\n", blkrepl_error_message());
    } else {
        host_loop(ctx, clock_pipe[0], &concluded);
        blkrepl_job_query(job, &info);
        printf("%llu bytes settled%s%s\n", (unsigned long long)info.bytes_done,
               info.message[0] ? ": " : "", info.message);
    }

    close(clock_pipe[0]);
    pthread_join(clock_thread, NULL);
    blkrepl_job_free(job);
    blkrepl_image_close(images[1]);
    blkrepl_image_close(images[0]);
    while (blkrepl_context_free(ctx) == -EBUSY) {
        blkrepl_poll(ctx, 0, 1000000);
    }
    return info.result == BLKREPL_RESULT_DONE ? 0 : 1;
}
