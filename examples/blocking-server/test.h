/* SPDX-License-Identifier: MIT */
/* test.h - the clients of the self-test, in threads of the server's process. */
#ifndef BLOCKING_SERVER_TEST_H
#define BLOCKING_SERVER_TEST_H

#include <stdatomic.h>
#include <stdbool.h>

#define TEST_CLIENTS 3
#define TEST_DISK_BYTES (16u << 20)

/* A file of random bytes. */
bool test_make_disk(const char *path);
/* They write, and read again, until *enough; the server listens already. */
bool test_start_clients(const char *socket_path, const atomic_bool *enough);
/* After the server has ended: were all answers right, is the disk what the clients
 * have made of it, and the backup what it was before?  Says so. */
bool test_end(const char *disk_path, const char *backup_path);

#endif
