/* SPDX-License-Identifier: MIT */
/* disk.h - a backend of the host that checks every promise of backend.h and
 * misbehaves only as the harness tells it.
 *
 * The medium is a window: what lies at an offset is medium[offset % window], so
 * that a disk may be of any size while the harness keeps to a part of it. */
#ifndef FUZZ_DISK_H
#define FUZZ_DISK_H

#include "support.h"

#define DISK_QUEUE_MAX 128
#define DISK_WINDOW_MAX (64 * KIB)
#define DISK_ERRORS_MAX 64
#define DISK_WRITES_MAX 64

/* What a DISCARD does to the medium. */
enum disk_discard {
    DISK_DISCARD_NOTHING,
    DISK_DISCARD_ZEROES,
    DISK_DISCARD_GARBAGE
};

#define DISK_GARBAGE 0xdd

/* A request at the disk; what is needed after its io is gone is copied. */
struct disk_request {
    blkrepl_io *io;
    uint64_t id;
    uint64_t offset;
    uint64_t bytes;
    uint64_t seq; /* of its submit                                            */
    uint32_t opcode;
    uint32_t flags;
};

/* An error that the disk has answered. */
struct disk_error {
    int code;
    uint32_t opcode;
    uint64_t offset;
    uint64_t bytes;
    uint64_t seq; /* of the completion                                        */
};

/* A write that was completed well and is not durable yet. */
struct disk_write {
    uint64_t offset;
    uint64_t bytes;
    uint64_t seq; /* of the completion                                        */
};

struct disk {
    /* Set by the harness. */
    blkrepl_backend_info info; /* what get_info answers                       */
    int get_info_result;
    uint64_t window;
    enum disk_discard discard;
    uint32_t status_unit;
    bool ignore_cancel;                                       /* and complete as if nothing */
    void (*on_submit)(struct disk *disk);                     /* at the end of a submit     */
    void (*on_take)(struct disk *disk, const blkrepl_io *io); /* of each request            */
    void (*on_cancel)(struct disk *disk, uint64_t id);
    void (*on_landed)(struct disk *disk, const struct disk_request *request, int result);
    blkrepl_context *ctx;
    /* Watched. */
    struct disk_request queue[DISK_QUEUE_MAX];
    uint32_t in_flight;
    uint32_t in_flight_most;
    uint64_t seq;
    unsigned get_infos;
    unsigned closes;
    uint64_t background_bytes_most; /* of one READ or WRITE of a job          */
    uint32_t background_reads_most; /* in flight together                     */
    struct disk_error errors[DISK_ERRORS_MAX];
    uint32_t error_count;
    bool errors_lost; /* there were more                                       */
    struct disk_write writes[DISK_WRITES_MAX];
    uint32_t write_count;
    bool writes_lost;
    uint64_t last_id;
    uint8_t medium[DISK_WINDOW_MAX];
};

/* Zero but for the medium, which the caller fills. */
void disk_init(struct disk *disk, blkrepl_context *ctx, uint64_t bytes, uint64_t window);
extern const blkrepl_backend_ops disk_ops;

/* Complete queue[at]; its data land as far as `landed` bytes from the front if
 * the result is an error, else whole. */
void disk_complete(struct disk *disk, uint32_t at, int result, uint64_t landed);
/* Complete all of them well; how many there were. */
uint32_t disk_complete_all(struct disk *disk);
/* on_submit for a disk that never waits. */
void disk_complete_inline(struct disk *disk);

/* The alignment that the library has to keep to. */
uint64_t disk_alignment(const struct disk *disk);
uint8_t *disk_at(struct disk *disk, uint64_t offset);

static inline bool ranges_overlap(uint64_t a, uint64_t a_bytes, uint64_t b, uint64_t b_bytes)
{
    return a_bytes > 0 && b_bytes > 0 && a < b + b_bytes && b < a + a_bytes;
}

static inline bool opcode_writes(uint32_t opcode)
{
    return opcode == BLKREPL_OP_WRITE || opcode == BLKREPL_OP_ZEROES ||
           opcode == BLKREPL_OP_DISCARD;
}

#endif
