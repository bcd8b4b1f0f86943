/* SPDX-License-Identifier: MIT */
/* leaf.h - one backend with what belongs to it: its port, the ranges in flight,
 * and the buffers for requests that it cannot take as they are. */
#ifndef BLKREPL_BLOCK_LEAF_H
#define BLKREPL_BLOCK_LEAF_H

#include "block/range.h"
#include "core/port.h"

#define LEAF_BOUNCE_BYTES 65536
#define LEAF_BOUNCE_COUNT 16

struct guest;

struct leaf {
    struct port port;
    struct ranges ranges;
    /* Identity of the medium, where the backend knows it (files). */
    bool identified;
    uint64_t device;
    uint64_t inode;
    /* Changed under the lock. */
    bool zeroes_refused; /* ZEROES has answered -ENOTSUP */
    unsigned char *bounce_memory;
    uint32_t bounce_free; /* bit n: buffer n is free */
    struct guest *bounce_users[LEAF_BOUNCE_COUNT];
    struct list bounce_waiters; /* struct ready */
};

/* Ask a backend for its info and make a leaf over it.  No lock is held.
 * Returns: 0; -EINVAL the table or the info is bad; -ENOMEM; get_info's code;
 *          BLKREPL_ERR_VERSION. */
int blkrepl__leaf_create(struct blkrepl_context *ctx, const blkrepl_backend_ops *ops, void *backend,
                         struct leaf **out);
/* Free a leaf that was never used, without closing its backend. */
void blkrepl__leaf_free(struct leaf *leaf);

static inline bool leaf_has(const struct leaf *leaf, uint32_t opcode)
{
    return (leaf->port.info.opcodes >> opcode & 1) != 0;
}

/* Whether requests may need a bounce buffer.  The request alignment is never
 * below that of memory. */
static inline bool leaf_aligned(const struct leaf *leaf)
{
    return leaf->port.info.request_alignment > 1;
}

/* A bounce buffer; NULL if all are in use (then wait on bounce_waiters). */
unsigned char *blkrepl__leaf_bounce_take(struct leaf *leaf, struct guest *user);
void blkrepl__leaf_bounce_put(struct leaf *leaf, unsigned char *buffer);

#endif
