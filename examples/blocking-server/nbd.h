/* SPDX-License-Identifier: MIT */
/* nbd.h - what of the NBD protocol goes over the wire: fixed newstyle handshake,
 * requests, simple replies. */
#ifndef BLOCKING_SERVER_NBD_H
#define BLOCKING_SERVER_NBD_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define NBD_REQUEST_BYTES_MAX (32u << 20) /* what clients may take for granted */

enum nbd_type {
    NBD_READ = 0,
    NBD_WRITE = 1,
    NBD_DISCONNECT = 2,
    NBD_FLUSH = 3,
    NBD_TRIM = 4,
    NBD_WRITE_ZEROES = 6
};

enum nbd_flags {
    NBD_FLAG_FUA = 1,
    NBD_FLAG_NO_HOLE = 2
};

struct nbd_request {
    uint32_t flags, type, bytes;
    uint64_t cookie, offset; /* the cookie comes back with the reply */
};

/* All of these are false when the connection is broken, or the other side talks
 * nonsense. */
bool nbd_receive(int fd, void *out, size_t bytes);
bool nbd_transmit(int fd, const void *data, size_t bytes);

/* The server's side.  Handshake: true if requests follow.  A WRITE's data follow its
 * request; a READ's, if `result` is 0, are part of the reply. */
bool nbd_handshake(int fd, uint64_t disk_bytes);
bool nbd_receive_request(int fd, struct nbd_request *request);
bool nbd_reply(int fd, const struct nbd_request *request, int result, const void *data);

/* The client's side; `error` is the wire's number of it, 0: none. */
bool nbd_client_handshake(int fd, uint64_t *disk_bytes);
bool nbd_send_request(int fd, const struct nbd_request *request, const void *data);
bool nbd_receive_reply(int fd, uint64_t *cookie, uint32_t *error);

#endif
