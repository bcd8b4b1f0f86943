/* SPDX-License-Identifier: MIT */
/* blocking-server.c - a disk served over NBD, with a thread for each request.
 *
 *     blocking-server [-b BACKUP] [-s MIB_PER_S] [-n CLIENTS] FILE SOCKET
 *     blocking-server -t FILE      (tests itself; creates FILE, FILE.backup, FILE.socket)
 *
 * FILE is served on a Unix socket to any NBD client (qemu-img, nbdcopy, nbd-client).
 * With -b it is backed up meanwhile: BACKUP becomes the disk as it was when the
 * server started, at most -s MiB per second.  The server ends with SIGINT or
 * SIGTERM, or, with -n, when so many clients have gone and the backup is done.
 *
 * Each connection has a few worker threads.  A worker takes the next request off
 * the socket, carries it out with a blocking call (blkrepl_image_read_wait() and so
 * on) and sends the reply; meanwhile the others take the next ones.  Nobody polls
 * for them: one of those who wait does.  The main thread polls lane 0, where jobs
 * make progress, and accepts connections; the workers use the other lanes.
 *
 * What goes over the wire is in blocking-server/nbd.c.  Exit codes: 0 well, 1 not, 2
 * usage.
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "blocking-server/nbd.h"
#include "blocking-server/test.h"
#include <libblkrepl/libblkrepl.h>

#define CONNECTIONS_MAX 64u
#define WORKERS 4 /* requests of a connection at once */
#define LANES 5u  /* 0: control; connections share the others */

static blkrepl_context *ctx;
static blkrepl_image *disk, *target;
static blkrepl_job *backup; /* NULL: none */
static uint64_t disk_bytes;
static atomic_bool backup_over = true;
static volatile sig_atomic_t stopping;
static int alarm_pipe[2]; /* makes the main thread look at what has changed */
static atomic_ullong requests_count, read_bytes, written_bytes;

static void alarm_main_thread(void)
{
    const char byte = 0;
    int kept = errno;

    /* If the pipe is full there are alarms enough. */
    if (write(alarm_pipe[1], &byte, 1) < 0) {
        errno = kept;
    }
}

/* ---- Workers ------------------------------------------------------------------------- */

enum connection_state {
    UNUSED,
    OPEN,
    OVER
};

static struct connection {
    _Atomic enum connection_state state; /* OVER is the last act of its thread */
    pthread_t thread;                    /* makes the handshake, and is one of the workers */
    pthread_mutex_t receiving, sending;
    int fd;
    uint32_t lane;
    bool ended; /* nothing more is received */
} connections[CONNECTIONS_MAX];

/* What a worker is at. */
struct work {
    struct nbd_request request;
    unsigned char *data;
    size_t room; /* at data */
};

static bool work_room(struct work *work)
{
    if (work->room < work->request.bytes) {
        free(work->data);
        work->data = malloc(work->request.bytes);
        work->room = work->data != NULL ? work->request.bytes : 0;
    }
    return work->room >= work->request.bytes;
}

/* Take the next request off the socket; false: there are no more. */
static bool work_take(int fd, struct work *work)
{
    const struct nbd_request *r = &work->request;

    if (!nbd_receive_request(fd, &work->request) || r->type == NBD_DISCONNECT) {
        return false;
    }
    if (r->type == NBD_READ || r->type == NBD_WRITE) {
        return r->bytes <= NBD_REQUEST_BYTES_MAX && work_room(work) &&
               (r->type == NBD_READ || nbd_receive(fd, work->data, r->bytes));
    }
    return true;
}

/* The heart of it: each of these calls returns when the request is over. */
static int work_carry_out(const struct work *work, uint32_t lane)
{
    const struct nbd_request *r = &work->request;
    const blkrepl_iovec iov = {work->data, r->bytes};
    uint32_t flags = r->flags & NBD_FLAG_FUA ? BLKREPL_IO_FUA : 0;
    int result;

    switch (r->type) {
    case NBD_READ: return blkrepl_image_read_wait(disk, lane, r->offset, &iov, 1, 0);
    case NBD_WRITE: return blkrepl_image_write_wait(disk, lane, r->offset, &iov, 1, flags);
    case NBD_FLUSH: return blkrepl_image_flush_wait(disk, lane);
    case NBD_TRIM:
        result = blkrepl_image_discard_wait(disk, lane, r->offset, r->bytes, 0);
        return result == 0 && flags ? blkrepl_image_flush_wait(disk, lane) : result;
    case NBD_WRITE_ZEROES:
        flags |= r->flags & NBD_FLAG_NO_HOLE ? 0 : BLKREPL_IO_MAY_UNMAP;
        return blkrepl_image_write_zeroes_wait(disk, lane, r->offset, r->bytes, flags);
    default: return -EINVAL;
    }
}

/* Carry it out and reply; workers send one at a time. */
static bool work_do(struct connection *c, const struct work *work)
{
    const struct nbd_request *r = &work->request;
    int result = work_carry_out(work, c->lane);

    requests_count++;
    read_bytes += r->type == NBD_READ && result == 0 ? r->bytes : 0;
    written_bytes += r->type == NBD_WRITE && result == 0 ? r->bytes : 0;
    pthread_mutex_lock(&c->sending);
    bool sent = nbd_reply(c->fd, r, result, work->data);
    pthread_mutex_unlock(&c->sending);
    return sent;
}

static void *worker_main(void *user)
{
    struct connection *c = user;
    struct work work = {.room = 0};
    bool more = true;

    while (more) {
        pthread_mutex_lock(&c->receiving);
        more = !c->ended && work_take(c->fd, &work);
        c->ended = !more;
        pthread_mutex_unlock(&c->receiving);
        more = more && work_do(c, &work);
    }
    free(work.data);
    return NULL;
}

static void *connection_main(void *user)
{
    struct connection *c = user;
    pthread_t others[WORKERS - 1];
    int count = 0;

    if (nbd_handshake(c->fd, disk_bytes)) {
        while (count < WORKERS - 1 && !pthread_create(&others[count], NULL, worker_main, c)) {
            count++;
        }
        worker_main(c);
    }
    while (count > 0) {
        pthread_join(others[--count], NULL);
    }
    c->state = OVER;
    alarm_main_thread();
    return NULL;
}

/* ---- The main thread ------------------------------------------------------------------ */

static struct settings {
    const char *file, *socket, *backup;
    uint64_t backup_bytes_per_sec;
    unsigned long clients; /* so many and no more; 0: until a signal */
    bool self_test;
} settings;

static int listener;
static unsigned long clients_accepted;

/* A lane has any number of threads; connections take turns on them. */
static void connection_accept(void)
{
    int fd = accept(listener, NULL, NULL);
    struct connection *c = connections;

    while (c < connections + CONNECTIONS_MAX && c->state != UNUSED) {
        c++;
    }
    if (fd < 0 || c == connections + CONNECTIONS_MAX) {
        close(fd);
        return;
    }
    c->fd = fd;
    c->lane = (uint32_t)(1 + clients_accepted++ % (LANES - 1));
    c->ended = false;
    pthread_mutex_init(&c->receiving, NULL);
    pthread_mutex_init(&c->sending, NULL);
    c->state = OPEN;
    if (pthread_create(&c->thread, NULL, connection_main, c) != 0) {
        c->state = UNUSED;
        close(fd);
    }
}

/* Clean up after connections that are over; how many there still are. */
static unsigned connections_reap(void)
{
    unsigned open = 0;

    for (struct connection *c = connections; c < connections + CONNECTIONS_MAX; c++) {
        if (c->state == OVER) {
            pthread_join(c->thread, NULL);
            pthread_mutex_destroy(&c->receiving);
            pthread_mutex_destroy(&c->sending);
            close(c->fd);
            c->state = UNUSED;
        }
        open += c->state == OPEN;
    }
    return open;
}

/* No more requests are taken; those that were taken still get their reply. */
static void stop_all(void)
{
    for (struct connection *c = connections; c < connections + CONNECTIONS_MAX; c++) {
        if (c->state == OPEN) {
            shutdown(c->fd, SHUT_RD);
        }
    }
    if (backup != NULL) {
        blkrepl_job_cancel(backup, 0);
    }
}

static void on_signal(int number)
{
    (void)number;
    stopping = 1;
    alarm_main_thread();
}

/* In a poll of lane 0. */
static void on_event(void *user, const blkrepl_event *event)
{
    (void)user;
    if (event->type == BLKREPL_EVENT_JOB_DONE) {
        backup_over = true;
    }
}

static int timeout_ms(uint64_t deadline_ns)
{
    uint64_t now_ns = blkrepl_context_now(ctx);

    if (deadline_ns == BLKREPL_FOREVER) {
        return -1;
    }
    uint64_t ms = deadline_ns > now_ns ? (deadline_ns - now_ns) / 1000000 + 1 : 0;
    return ms < 60000 ? (int)ms : 60000;
}

/* Sleep until a client comes, an alarm, or work for lane 0; and do that. */
static void serve_once(bool accepting)
{
    struct pollfd fds[3] = {
        {.fd = blkrepl_poll_fd(ctx, 0), .events = POLLIN},
        {.fd = alarm_pipe[0], .events = POLLIN},
        {.fd = listener, .events = POLLIN},
    };
    char alarms[64];
    uint64_t deadline_ns;

    int work = blkrepl_poll_arm(ctx, 0, &deadline_ns);
    if (poll(fds, accepting ? 3 : 2, work == 1 ? 0 : timeout_ms(deadline_ns)) > 0) {
        if (fds[1].revents != 0 && read(alarm_pipe[0], alarms, sizeof alarms) < 0) {
            perror("blocking-server: read");
        }
        if (accepting && fds[2].revents != 0) {
            connection_accept();
        }
    }
    blkrepl_poll(ctx, 0, 0);
}

/* Until there is nothing to do any more.  Workers whose writes wait for the backup
 * need lane 0 to the last. */
static void serve(void)
{
    bool stopped = false;

    for (;;) {
        bool enough = settings.clients > 0 && clients_accepted >= settings.clients;

        if (connections_reap() == 0 && backup_over && (enough || stopping)) {
            return;
        }
        if (stopping && !stopped) {
            stop_all();
            stopped = true;
        }
        serve_once(!enough && !stopping);
    }
}

static bool open_socket(void)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};

    if (strlen(settings.socket) >= sizeof address.sun_path) {
        errno = ENAMETOOLONG;
        return false;
    }
    strcpy(address.sun_path, settings.socket);
    unlink(settings.socket);
    listener = socket(AF_UNIX, SOCK_STREAM, 0);
    return listener >= 0 && bind(listener, (struct sockaddr *)&address, sizeof address) == 0 &&
           listen(listener, 16) == 0;
}

/* Open the disk, and start its backup if there is to be one; 0 or a negative code. */
static int open_disk(void)
{
    blkrepl_context_options options = {
        .struct_size = sizeof options, .lane_count = LANES, .on_event = {.fn = on_event}};
    blkrepl_file_options create = {.struct_size = sizeof create, .flags = BLKREPL_FILE_CREATE};
    blkrepl_backup_options slow = {.struct_size = sizeof slow,
                                   .speed_bytes_per_sec = settings.backup_bytes_per_sec};
    blkrepl_image_info info = {.struct_size = sizeof info};
    int error;

    if ((error = blkrepl_context_create(&options, &ctx)) < 0 ||
        (error = blkrepl_image_open_file(ctx, settings.file, NULL, NULL, &disk)) < 0 ||
        (error = blkrepl_image_query(disk, &info)) < 0) {
        return error;
    }
    disk_bytes = create.bytes = info.bytes;
    if (settings.backup != NULL) {
        error = blkrepl_image_open_file(ctx, settings.backup, &create, NULL, &target);
        error = error < 0 ? error : blkrepl_backup_start(disk, target, &slow, &backup);
        backup_over = error < 0;
    }
    return error;
}

/* Say what was done and let go of everything; true if all went well. */
static bool close_disk(void)
{
    blkrepl_job_info info = {.struct_size = sizeof info, .result = BLKREPL_RESULT_DONE};

    printf("served: %lu clients, %llu requests, %llu bytes read, %llu bytes written\n",
           clients_accepted, requests_count, read_bytes, written_bytes);
    if (backup != NULL) {
        blkrepl_job_query(backup, &info);
        printf("backup: %s, %llu of %llu bytes, %llu copies made for clients%s%s\n",
               info.result == BLKREPL_RESULT_DONE ? "done" : "NOT done",
               (unsigned long long)info.bytes_done, (unsigned long long)info.bytes_total,
               (unsigned long long)info.guest_copies_count, info.message[0] ? ": " : "",
               info.message);
    }
    blkrepl_job_free(backup);
    blkrepl_image_close(target);
    blkrepl_image_close(disk);
    while (blkrepl_context_free(ctx) == -EBUSY) {
        blkrepl_poll(ctx, 0, 1000000);
    }
    close(listener);
    unlink(settings.socket);
    return info.result == BLKREPL_RESULT_DONE;
}

static bool start_server(void)
{
    struct sigaction on_stop = {.sa_handler = on_signal, .sa_flags = (int)SA_RESETHAND};

    if (pipe(alarm_pipe) < 0 || fcntl(alarm_pipe[1], F_SETFL, O_NONBLOCK) < 0 || !open_socket()) {
        fprintf(stderr, "blocking-server: %s: %s\n", settings.socket, strerror(errno));
        return false;
    }
    if (open_disk() < 0) {
        fprintf(stderr, "blocking-server: %s\n", blkrepl_error_message());
        return false;
    }
    sigaction(SIGINT, &on_stop, NULL);
    sigaction(SIGTERM, &on_stop, NULL);
    printf("serving %s, %llu bytes, on %s\n", settings.file, (unsigned long long)disk_bytes,
           settings.socket);
    fflush(stdout);
    return true;
}

/* ---- The command line ------------------------------------------------------------------- */

static bool parse(int argc, char **argv)
{
    int option;

    while ((option = getopt(argc, argv, "b:s:n:t")) != -1) {
        switch (option) {
        case 'b': settings.backup = optarg; break;
        case 's': settings.backup_bytes_per_sec = strtoul(optarg, NULL, 10) << 20; break;
        case 'n': settings.clients = strtoul(optarg, NULL, 10); break;
        case 't': settings.self_test = true; break;
        default: return false;
        }
    }
    if (argc - optind != (settings.self_test ? 1 : 2)) {
        return false;
    }
    settings.file = argv[optind];
    settings.socket = argv[argc - 1];
    return true;
}

/* Its own settings; the backup takes about as long as half a second. */
static bool parse_test(void)
{
    static char socket_path[100], backup_path[4096];

    settings.clients = TEST_CLIENTS;
    settings.backup_bytes_per_sec = 2 * TEST_DISK_BYTES;
    settings.socket = socket_path;
    settings.backup = backup_path;
    return snprintf(socket_path, sizeof socket_path, "%s.socket", settings.file) <
               (int)sizeof socket_path &&
           snprintf(backup_path, sizeof backup_path, "%s.backup", settings.file) <
               (int)sizeof backup_path;
}

static bool self_test(void)
{
    if (!test_make_disk(settings.file) || !start_server() ||
        !test_start_clients(settings.socket, &backup_over)) {
        return false;
    }
    serve();
    bool done = close_disk();
    return test_end(settings.file, settings.backup) && done;
}

int main(int argc, char **argv)
{
    if (!parse(argc, argv) || (settings.self_test && !parse_test())) {
        fprintf(stderr,
                "usage: blocking-server [-b BACKUP] [-s MIB_PER_S] [-n CLIENTS] FILE SOCKET\n"
                "       blocking-server -t FILE\n");
        return 2;
    }
    if (settings.self_test) {
        return self_test() ? 0 : 1;
    }
    if (!start_server()) {
        return 1;
    }
    serve();
    return close_disk() ? 0 : 1;
}
