/* SPDX-License-Identifier: MIT */
/* A disk of the host that does only what the test says: requests of the opcodes
 * in `hold` wait in a queue until the test finishes them, in any order and with
 * any result; the others are done inside submit.  Every submit is checked
 * against the promises of backend.h; tape_close() fails when one was broken. */
#ifndef TESTS_API_TAPE_H
#define TESTS_API_TAPE_H

#include "support.h"

#define BIT(opcode) (1u << (opcode))
#define OPS_RW (BIT(BLKREPL_OP_READ) | BIT(BLKREPL_OP_WRITE))
#define OPS_ALL                                                                                    \
    (OPS_RW | BIT(BLKREPL_OP_ZEROES) | BIT(BLKREPL_OP_DISCARD) | BIT(BLKREPL_OP_FLUSH) |           \
     BIT(BLKREPL_OP_STATUS))
#define TAPE_LOG_MAX 16384
#define TAPE_QUEUE_MAX 8192

/* What `decide` may answer beside a result. */
enum tape_decision {
    TAPE_HOLD = 1,   /* put it into the queue                                 */
    TAPE_DEFAULT = 2 /* as if there were no `decide`                          */
};

/* How a STATUS is answered. */
enum tape_status {
    TAPE_STATUS_TRUTH,    /* zero or data, per status_unit                    */
    TAPE_STATUS_ALL_ZERO, /* a lie unless the disk is empty                   */
    TAPE_STATUS_EMPTY,    /* success with no extent: broken                   */
    TAPE_STATUS_TOO_LONG  /* more bytes than were asked for: broken           */
};

/* One request as it was submitted. */
struct tape_record {
    uint64_t id;
    uint64_t offset;
    uint64_t bytes;
    uint32_t opcode;
    uint32_t flags;
    uint32_t lane;
    bool done;
    int result;
    pthread_t thread;
};

struct tape {
    /* Set by the test. */
    blkrepl_backend_info info; /* what get_info answers                       */
    int get_info_result;
    uint32_t lanes; /* of the context; 0: one                                 */
    uint32_t hold;
    int fail[16];         /* what a request of an opcode ends with, held or not       */
    uint32_t fail_opcode; /* and requests of one opcode that touch a range    */
    uint64_t fail_offset;
    uint64_t fail_bytes;
    int fail_result;
    enum tape_status status;
    uint64_t status_unit;
    int (*decide)(void *user, const blkrepl_io *io);
    void (*on_submit)(void *user, const blkrepl_io *io);
    void (*on_cancel)(void *user, uint64_t id);
    void (*on_close)(void *user);
    void *hook_user;

    /* Watched. */
    blkrepl_context *ctx;
    pthread_mutex_t lock;
    pthread_cond_t more; /* something was queued                              */
    uint8_t *data;
    const blkrepl_io *queue[TAPE_QUEUE_MAX];
    size_t queue_count;
    struct tape_record log[TAPE_LOG_MAX];
    size_t log_count;
    uint32_t in_flight;
    uint32_t in_flight_max;
    unsigned get_infos;
    unsigned cancels;
    unsigned closes;
    uint64_t settled_bytes; /* of WRITEs and ZEROES that succeeded            */
    int inside;
    unsigned faults;
    char fault[200]; /* the first */
};

/* A disk of all zeroes, every opcode declared, nothing held. */
void tape_init(struct tape *t, uint64_t bytes);
void tape_fill(struct tape *t, unsigned tag);
extern const blkrepl_backend_ops tape_ops;
extern const blkrepl_backend_ops tape_ops_no_cancel;
blkrepl_image *tape_open(struct tape *t, struct env *env);
blkrepl_image *tape_open_as(struct tape *t, struct env *env, const blkrepl_backend_ops *ops,
                            const blkrepl_image_options *options);
/* After the context is gone: closed exactly once, and no promise broken. */
void tape_close(struct tape *t);
void tape_assert_clean(struct tape *t);

size_t tape_pending(struct tape *t, uint32_t opcode); /* 0: all */
size_t tape_submitted(struct tape *t, uint32_t opcode);
/* The queue's first request of an opcode (0: any) touching a range, or -1. */
int tape_find(struct tape *t, uint32_t opcode, uint64_t offset, uint64_t bytes);
/* Whether such a request was ever submitted. */
bool tape_saw(struct tape *t, uint32_t opcode, uint64_t offset, uint64_t bytes);
/* Finish queue[index]: carry it out if result is 0 and complete it.  Returns
 * what blkrepl_io_complete() answered. */
int tape_finish(struct tape *t, int index, int result);
/* Complete it with `result`; what it should do is done only if `land`. */
int tape_finish_as(struct tape *t, int index, int result, bool land);
/* Take it out of the queue, neither carried out nor completed; its id. */
uint64_t tape_forget(struct tape *t, int index);
size_t tape_finish_all(struct tape *t, uint32_t opcode, int result); /* 0: all */
/* Stop holding, finish all, and drain, until nothing moves. */
void tape_release(struct tape *t, struct env *env);

/* What a host does beside the library. */
void tape_poke(struct tape *t, uint64_t offset, const void *data, size_t bytes);
void tape_peek(struct tape *t, uint64_t offset, void *out, size_t bytes);
uint8_t *tape_copy(struct tape *t);

/* Offset of the first difference, or UINT64_MAX. */
uint64_t first_difference(const uint8_t *a, const uint8_t *b, uint64_t bytes);
void assert_same(const uint8_t *got, const uint8_t *want, uint64_t bytes, const char *what);

#endif
