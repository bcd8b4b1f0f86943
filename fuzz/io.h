/* SPDX-License-Identifier: MIT */
/* io.h - what the files of fuzz_io share.
 *
 * The model keeps, for each byte of the disk, which writes may be what it holds:
 * a set of tags.  A write has a tag of its own, and its bytes tell by tag and
 * place where they belong. */
#ifndef FUZZ_IO_H
#define FUZZ_IO_H

#include "disk.h"

#define WINDOW_MAX (16 * KIB)
#define REQUESTS_MAX 96
#define IOVS_MAX 12
#define CODES_MAX 8
#define EXTENTS_MAX 6

/* Tags with a meaning; those of writes follow. */
enum tag {
    TAG_INITIAL, /* what the disk held at the start                          */
    TAG_ZERO,
    TAG_GARBAGE, /* left by a discard                                        */
    TAG_WRITES,
    TAG_COUNT = 64
};

/* Where a request is in its life. */
enum request_state {
    REQUEST_PENDING, /* in its call, or accepted and not called back           */
    REQUEST_GO,      /* a bracket: the host may write                         */
    REQUEST_OVER
};

struct request {
    uint32_t opcode;
    uint32_t flags;
    uint64_t offset;
    uint64_t bytes;
    uint64_t seq; /* of its call                                              */
    uint32_t tag; /* of what a write leaves; 0: nothing                       */
    enum request_state state;
    bool bracket;
    bool called; /* the call that gives it to the library is over             */
    bool cancelled;
    bool with_release;
    bool must_fail; /* the disk has failed it, and nothing else               */
    unsigned calls;
    unsigned releases;
    int codes[CODES_MAX]; /* which the disk has answered it, perhaps          */
    uint32_t code_count;
    uint64_t token;
    uint64_t completed; /* FLUSH: writes completed at the disk before it      */
    blkrepl_iovec *iov;
    uint32_t iov_count;
    void *memory[IOVS_MAX];
    blkrepl_extent *extents;
    uint32_t extents_max;
    uint64_t *may; /* READ, STATUS: the tags that each byte may have          */
};

struct io {
    blkrepl_context *ctx;
    blkrepl_image *image;
    blkrepl_throttle *throttle; /* NULL: none, or not any more                  */
    struct disk disk;
    uint32_t requests_max;
    uint32_t inline_percent;
    uint32_t error_percent;
    uint32_t nested_percent;
    uint32_t cancel_percent;
    uint32_t stretch_percent; /* of the hooks in the library; 0: never         */
    uint64_t stretch_state;
    bool read_only;
    bool huge;
    bool shut;   /* context_free() was called                                 */
    bool gone;   /* and has returned 0                                        */
    bool healed; /* no more errors, nothing nested                            */
    bool polling;
    bool room_expected;
    bool zeroes_refused; /* the disk has answered -ENOTSUP to ZEROES          */
    uint32_t depth;      /* of calls of the host's code                       */
    uint64_t seq;
    uint64_t last_id; /* that was completed                                   */
    uint32_t next_tag;
    uint32_t pending; /* not OVER                                             */
    uint32_t request_count;
    struct request requests[REQUESTS_MAX];
};

extern struct io io;

/* fuzz_io.c */
void io_act(void);
void io_nested(void);

/* io_model.c: what the bytes may be. */
void model_init(void);
uint8_t model_byte(uint32_t tag, uint64_t offset);
void model_fill(uint8_t *out, uint32_t tag, uint64_t offset, uint64_t bytes);
/* The call of a request begins: reads and writes that meet know of each other. */
void model_begin(struct request *request);
/* It was refused: nothing of it has happened. */
void model_refused(struct request *request);
/* It has ended. */
void model_end(struct request *request, int result);
/* The data of a read, or the extents of a status, are allowed. */
void model_check_read(const struct request *request);
void model_check_status(const struct request *request);
/* The medium is what the model allows. */
void model_check_medium(void);
/* The disk has failed a request: whose it may be. */
void model_disk_failed(const struct disk_request *failed, int result);
/* The answer that a request got is one that the disk gave it. */
void model_check_code(const struct request *request, int result);

/* io_guest.c: requests and brackets. */
void guest_request(uint32_t opcode);
void guest_bracket(void);
void guest_finish_bracket(void);
void guest_garbage(void);
void guest_close(void);
bool guest_end_any_bracket(void);

static inline bool request_reads(const struct request *request)
{
    return request->opcode == BLKREPL_OP_READ || request->opcode == BLKREPL_OP_STATUS;
}

#endif
