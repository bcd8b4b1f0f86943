/* SPDX-License-Identifier: MIT */
#include "nbd.h"

#include <errno.h>
#include <string.h>
#include <sys/socket.h>

#define MAGIC_GREETING 0x4e42444d41474943u
#define MAGIC_OPTION 0x49484156454f5054u
#define MAGIC_OPTION_REPLY 0x0003e889045565a9u
#define MAGIC_REQUEST 0x25609513u
#define MAGIC_REPLY 0x67446698u
#define OPTION_BYTES_MAX 4096u
#define REPLY_UNSUPPORTED 0x80000001u

enum {
    FIXED_NEWSTYLE = 1,
    NO_PADDING = 2
};
enum {
    OPTION_EXPORT_NAME = 1,
    OPTION_ABORT = 2,
    OPTION_LIST = 3,
    OPTION_INFO = 6,
    OPTION_GO = 7
};
enum {
    REPLY_ACK = 1,
    REPLY_SERVER = 2,
    REPLY_INFO = 3
};
enum {
    HAS_FLAGS = 1,
    CAN_FLUSH = 4,
    CAN_FUA = 8,
    CAN_TRIM = 32,
    CAN_WRITE_ZEROES = 64,
    CAN_MULTI_CONN = 256 /* a flush covers what all connections have written */
};

static const unsigned disk_flags =
    HAS_FLAGS | CAN_FLUSH | CAN_FUA | CAN_TRIM | CAN_WRITE_ZEROES | CAN_MULTI_CONN;

/* Numbers are big-endian on the wire. */
static uint64_t get(const unsigned char *from, unsigned bytes)
{
    uint64_t value = 0;

    while (bytes-- > 0) {
        value = value << 8 | *from++;
    }
    return value;
}

static unsigned char *put(unsigned char *to, uint64_t value, unsigned bytes)
{
    for (unsigned i = bytes; i-- > 0; value >>= 8) {
        to[i] = (unsigned char)value;
    }
    return to + bytes;
}

bool nbd_receive(int fd, void *out, size_t bytes)
{
    return bytes == 0 || recv(fd, out, bytes, MSG_WAITALL) == (ssize_t)bytes;
}

bool nbd_transmit(int fd, const void *data, size_t bytes)
{
    while (bytes > 0) {
        ssize_t sent = send(fd, data, bytes, MSG_NOSIGNAL);

        if (sent < 0) {
            return false;
        }
        data = (const char *)data + sent;
        bytes -= (size_t)sent;
    }
    return true;
}

/* ---- Handshake ------------------------------------------------------------------------ */

static bool option_reply(int fd, uint32_t option, uint32_t type, const void *data, uint32_t bytes)
{
    unsigned char head[20];

    put(put(put(put(head, MAGIC_OPTION_REPLY, 8), option, 4), type, 4), bytes, 4);
    return nbd_transmit(fd, head, sizeof head) && nbd_transmit(fd, data, bytes);
}

/* There is one disk; its name is "", and every other name will do as well. */
static bool option_answer(int fd, uint32_t option, uint64_t disk_bytes)
{
    const unsigned char no_name[4] = {0};
    unsigned char info[12];

    switch (option) {
    case OPTION_LIST:
        return option_reply(fd, option, REPLY_SERVER, no_name, sizeof no_name) &&
               option_reply(fd, option, REPLY_ACK, NULL, 0);
    case OPTION_INFO:
    case OPTION_GO:
        put(put(put(info, 0, 2), disk_bytes, 8), disk_flags, 2);
        return option_reply(fd, option, REPLY_INFO, info, sizeof info) &&
               option_reply(fd, option, REPLY_ACK, NULL, 0);
    case OPTION_ABORT: return option_reply(fd, option, REPLY_ACK, NULL, 0);
    default: return option_reply(fd, option, REPLY_UNSUPPORTED, NULL, 0);
    }
}

/* The option of old clients has no reply; the disk follows at once. */
static bool export_name_answer(int fd, uint64_t disk_bytes, bool padding)
{
    unsigned char answer[10 + 124] = {0};

    put(put(answer, disk_bytes, 8), disk_flags, 2);
    return nbd_transmit(fd, answer, padding ? sizeof answer : 10);
}

bool nbd_handshake(int fd, uint64_t disk_bytes)
{
    unsigned char greeting[18], head[16], data[OPTION_BYTES_MAX];

    put(put(put(greeting, MAGIC_GREETING, 8), MAGIC_OPTION, 8), FIXED_NEWSTYLE | NO_PADDING, 2);
    if (!nbd_transmit(fd, greeting, sizeof greeting) || !nbd_receive(fd, head, 4)) {
        return false;
    }
    bool padding = (get(head, 4) & NO_PADDING) == 0;
    while (nbd_receive(fd, head, sizeof head) && get(head, 8) == MAGIC_OPTION) {
        uint32_t option = (uint32_t)get(head + 8, 4), bytes = (uint32_t)get(head + 12, 4);

        if (bytes > sizeof data || !nbd_receive(fd, data, bytes)) {
            return false;
        }
        if (option == OPTION_EXPORT_NAME) {
            return export_name_answer(fd, disk_bytes, padding);
        }
        if (!option_answer(fd, option, disk_bytes) || option == OPTION_ABORT) {
            return false;
        }
        if (option == OPTION_GO) {
            return true;
        }
    }
    return false;
}

/* Asks for the list of disks, which it skips, and then for "". */
bool nbd_client_handshake(int fd, uint64_t *disk_bytes)
{
    unsigned char greeting[18], answers[24 + 20 + 32 + 20];
    unsigned char options[4 + 16 + 16 + 6], *end = put(options, FIXED_NEWSTYLE | NO_PADDING, 4);

    end = put(put(put(end, MAGIC_OPTION, 8), OPTION_LIST, 4), 0, 4);
    end = put(put(put(end, MAGIC_OPTION, 8), OPTION_GO, 4), 6, 4);
    put(end, 0, 6);
    if (!nbd_receive(fd, greeting, sizeof greeting) || !nbd_transmit(fd, options, sizeof options) ||
        !nbd_receive(fd, answers, sizeof answers)) {
        return false;
    }
    *disk_bytes = get(answers + 24 + 20 + 20 + 2, 8);
    return get(answers, 8) == MAGIC_OPTION_REPLY;
}

/* ---- Requests --------------------------------------------------------------------------- */

bool nbd_receive_request(int fd, struct nbd_request *request)
{
    unsigned char head[28];

    if (!nbd_receive(fd, head, sizeof head) || get(head, 4) != MAGIC_REQUEST) {
        return false;
    }
    request->flags = (uint32_t)get(head + 4, 2);
    request->type = (uint32_t)get(head + 6, 2);
    request->cookie = get(head + 8, 8);
    request->offset = get(head + 16, 8);
    request->bytes = (uint32_t)get(head + 24, 4);
    return true;
}

bool nbd_send_request(int fd, const struct nbd_request *request, const void *data)
{
    unsigned char head[28], *end = put(head, MAGIC_REQUEST, 4);

    end = put(put(put(end, request->flags, 2), request->type, 2), request->cookie, 8);
    put(put(end, request->offset, 8), request->bytes, 4);
    return nbd_transmit(fd, head, sizeof head) &&
           (request->type != NBD_WRITE || nbd_transmit(fd, data, request->bytes));
}

static uint32_t wire_error(int result)
{
    switch (result) {
    case 0: return 0;
    case -EROFS: return 1;
    case -ENOMEM: return 12;
    case -EINVAL: return 22;
    case -ENOSPC: return 28;
    default: return 5; /* EIO */
    }
}

bool nbd_reply(int fd, const struct nbd_request *request, int result, const void *data)
{
    unsigned char head[16];

    put(put(put(head, MAGIC_REPLY, 4), wire_error(result), 4), request->cookie, 8);
    return nbd_transmit(fd, head, sizeof head) &&
           (request->type != NBD_READ || result < 0 || nbd_transmit(fd, data, request->bytes));
}

bool nbd_receive_reply(int fd, uint64_t *cookie, uint32_t *error)
{
    unsigned char head[16];

    if (!nbd_receive(fd, head, sizeof head) || get(head, 4) != MAGIC_REPLY) {
        return false;
    }
    *error = (uint32_t)get(head + 4, 4);
    *cookie = get(head + 8, 8);
    return true;
}
