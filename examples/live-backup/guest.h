/* SPDX-License-Identifier: MIT */
/* guest.h - the built-in guest: threads that overwrite random blocks of the disk. */
#ifndef LIVE_BACKUP_GUEST_H
#define LIVE_BACKUP_GUEST_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include <libblkrepl/libblkrepl.h>

#define NS_PER_S 1000000000u
#define POLL_NS 100000000u /* a signal or a redraw waits no longer than this */
#define BLOCK_BYTES 4096u
#define WRITERS_MAX 256u

/* One thread of the guest, with at most one write in flight. */
struct writer {
    struct guest *guest;
    pthread_t thread;
    pthread_mutex_t lock;
    pthread_cond_t answered;
    int result; /* of the write in flight; 1 until there is one */
    int error;  /* that ended this writer */
    uint64_t error_offset;
    uint64_t random;
    uint64_t slowest_ns;
    atomic_ulong writes; /* read by the progress display */
};

struct guest {
    blkrepl_context *ctx;
    blkrepl_image *disk;
    uint64_t blocks; /* of the disk */
    uint64_t start_ns;
    uint64_t end_ns;
    unsigned count;
    atomic_bool stop;
    atomic_uint running;
    struct writer writers[WRITERS_MAX];
};

/* False if not so many threads could be started. */
bool guest_start(struct guest *guest, unsigned count);

/* Let every writer finish its write; their callbacks run in the polls of this call. */
void guest_stop(struct guest *guest);

uint64_t guest_writes(const struct guest *guest);
uint64_t guest_slowest_ns(const struct guest *guest);
double guest_seconds(const struct guest *guest);
uint64_t now_ns(void);

#endif
