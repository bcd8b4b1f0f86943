/* SPDX-License-Identifier: MIT */
#include "test.h"

#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "nbd.h"

#define DEPTH 8u /* requests of a client at once */
#define BLOCK_BYTES 4096u
#define CLIENT_BLOCKS (TEST_DISK_BYTES / TEST_CLIENTS / BLOCK_BYTES)
#define WIRE_EINVAL 22u

static unsigned char before[TEST_DISK_BYTES]; /* the disk at the start */
static unsigned char now[TEST_DISK_BYTES];    /* what the clients have made of it */
static unsigned char got[TEST_DISK_BYTES];

static struct client {
    pthread_t thread;
    struct sockaddr_un address;
    const atomic_bool *enough;
    int fd;
    unsigned seed;
    uint64_t first_block; /* of its part of the disk */
    bool well;
} clients[TEST_CLIENTS];

static bool exchange(const struct client *client, const struct nbd_request *request,
                     uint32_t wanted_error)
{
    uint64_t cookie;
    uint32_t error;

    return nbd_send_request(client->fd, request, now + request->offset) &&
           nbd_receive_reply(client->fd, &cookie, &error) && error == wanted_error;
}

/* The blocks with this remainder are for the requests with this cookie; so none on
 * their way overlap. */
static struct nbd_request random_request(struct client *client, unsigned cookie)
{
    static const uint32_t types[] = {NBD_READ,  NBD_READ,         NBD_WRITE,
                                     NBD_WRITE, NBD_WRITE_ZEROES, NBD_FLUSH};
    uint64_t row = (unsigned)rand_r(&client->seed) % (CLIENT_BLOCKS / DEPTH);
    struct nbd_request r = {.type = types[(unsigned)rand_r(&client->seed) % 6],
                            .cookie = cookie,
                            .offset = (client->first_block + row * DEPTH + cookie) * BLOCK_BYTES,
                            .bytes = BLOCK_BYTES};

    if (r.type == NBD_FLUSH) {
        r.offset = r.bytes = 0;
    } else if (r.type != NBD_READ) {
        r.flags = rand_r(&client->seed) % 16 == 0 ? NBD_FLAG_FUA : 0;
        memset(now + r.offset, r.type == NBD_WRITE ? rand_r(&client->seed) : 0, BLOCK_BYTES);
    }
    return r;
}

/* The next reply, to whichever of the requests. */
static bool take_reply(const struct client *client, const struct nbd_request *requests)
{
    unsigned char data[BLOCK_BYTES];
    uint64_t cookie;
    uint32_t error;

    if (!nbd_receive_reply(client->fd, &cookie, &error) || error != 0 || cookie >= DEPTH) {
        return false;
    }
    return requests[cookie].type != NBD_READ ||
           (nbd_receive(client->fd, data, sizeof data) &&
            memcmp(data, now + requests[cookie].offset, sizeof data) == 0);
}

static bool some_requests(struct client *client)
{
    struct nbd_request requests[DEPTH];
    bool well = true;

    for (unsigned i = 0; i < DEPTH && well; i++) {
        requests[i] = random_request(client, i);
        well = nbd_send_request(client->fd, &requests[i], now + requests[i].offset);
    }
    for (unsigned i = 0; i < DEPTH && well; i++) {
        well = take_reply(client, requests);
    }
    return well;
}

/* What must fail, a trim (after which anything may be there), and good-bye. */
static bool last_requests(const struct client *client)
{
    const struct nbd_request bad = {.offset = TEST_DISK_BYTES, .bytes = BLOCK_BYTES};
    struct nbd_request r = {.type = NBD_TRIM,
                            .flags = NBD_FLAG_FUA,
                            .offset = client->first_block * BLOCK_BYTES,
                            .bytes = BLOCK_BYTES};

    if (!exchange(client, &bad, WIRE_EINVAL) || !exchange(client, &r, 0)) {
        return false;
    }
    r.type = NBD_WRITE;
    if (!exchange(client, &r, 0)) {
        return false;
    }
    r.type = NBD_DISCONNECT;
    return nbd_send_request(client->fd, &r, NULL);
}

static void *client_main(void *user)
{
    struct client *client = user;
    uint64_t disk_bytes = 0;

    client->fd = socket(AF_UNIX, SOCK_STREAM, 0);
    client->well = connect(client->fd, (const struct sockaddr *)&client->address,
                           sizeof client->address) == 0 &&
                   nbd_client_handshake(client->fd, &disk_bytes) && disk_bytes == TEST_DISK_BYTES;
    while (client->well && !*client->enough) {
        client->well = some_requests(client);
    }
    client->well = client->well && last_requests(client);
    close(client->fd);
    return NULL;
}

bool test_make_disk(const char *path)
{
    unsigned seed = 0;

    for (uint32_t i = 0; i < TEST_DISK_BYTES; i++) {
        before[i] = now[i] = (unsigned char)rand_r(&seed);
    }
    FILE *file = fopen(path, "w");
    bool well = file != NULL && fwrite(before, 1, TEST_DISK_BYTES, file) == TEST_DISK_BYTES;
    return file != NULL && fclose(file) == 0 && well;
}

bool test_start_clients(const char *socket_path, const atomic_bool *enough)
{
    bool well = true;

    for (unsigned i = 0; i < TEST_CLIENTS && well; i++) {
        struct client *client = &clients[i];

        client->address.sun_family = AF_UNIX;
        strncpy(client->address.sun_path, socket_path, sizeof client->address.sun_path - 1);
        client->enough = enough;
        client->seed = i + 1;
        client->first_block = i * CLIENT_BLOCKS;
        well = pthread_create(&client->thread, NULL, client_main, client) == 0;
    }
    return well;
}

static bool file_equals(const char *path, const unsigned char *wanted)
{
    FILE *file = fopen(path, "r");
    bool well = file != NULL && fread(got, 1, TEST_DISK_BYTES, file) == TEST_DISK_BYTES &&
                memcmp(got, wanted, TEST_DISK_BYTES) == 0;

    return file != NULL && fclose(file) == 0 && well;
}

static bool say(const char *what, bool well)
{
    printf("%s: %s\n", what, well ? "ok" : "NOT as it should be");
    return well;
}

bool test_end(const char *disk_path, const char *backup_path)
{
    bool well = true;

    for (unsigned i = 0; i < TEST_CLIENTS; i++) {
        pthread_join(clients[i].thread, NULL);
        well = well && clients[i].well;
    }
    well = say("answers to the clients", well);
    well = say("disk, compared with what was written", file_equals(disk_path, now)) && well;
    return say("backup, compared with the disk at the start", file_equals(backup_path, before)) &&
           well;
}
