/* SPDX-License-Identifier: MIT */
/* backend_io.h - requests to a backend without a context, for unit tests.
 *
 * A request's id is its address; io_done() stands in for blkrepl_io_complete()
 * and is given the struct io_board that was passed as the context. */
#ifndef BLKREPL_TESTS_UNIT_BACKEND_IO_H
#define BLKREPL_TESTS_UNIT_BACKEND_IO_H

#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include <libblkrepl/backend.h>

struct io_board {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    unsigned completed;
};

struct io_request {
    blkrepl_io io;
    blkrepl_iovec iov;
    bool done;
    int result;
};

static struct io_board io_board = {PTHREAD_MUTEX_INITIALIZER, PTHREAD_COND_INITIALIZER, 0};

static inline blkrepl_context *io_context(void)
{
    return (blkrepl_context *)(void *)&io_board;
}

static inline int io_done(blkrepl_context *ctx, uint64_t id, int result)
{
    struct io_board *board = (struct io_board *)(void *)ctx;
    struct io_request *request = (struct io_request *)(uintptr_t)id;

    pthread_mutex_lock(&board->lock);
    /* No assertion: this may be a thread that cmocka does not know. */
    if (request->done) {
        abort();
    }
    request->done = true;
    request->result = result;
    board->completed++;
    pthread_cond_broadcast(&board->changed);
    pthread_mutex_unlock(&board->lock);
    return 0;
}

static inline int io_wait(struct io_request *request)
{
    int result;

    pthread_mutex_lock(&io_board.lock);
    while (!request->done) {
        pthread_cond_wait(&io_board.changed, &io_board.lock);
    }
    result = request->result;
    pthread_mutex_unlock(&io_board.lock);
    return result;
}

static inline bool io_is_done(struct io_request *request)
{
    bool done;

    pthread_mutex_lock(&io_board.lock);
    done = request->done;
    pthread_mutex_unlock(&io_board.lock);
    return done;
}

static inline void io_init(struct io_request *request, uint32_t opcode, uint64_t offset,
                           uint64_t bytes)
{
    *request = (struct io_request){.done = false};
    request->io.struct_size = sizeof request->io;
    request->io.id = (uintptr_t)request;
    request->io.opcode = opcode;
    request->io.offset = offset;
    request->io.bytes = bytes;
}

static inline void io_init_data(struct io_request *request, uint32_t opcode, uint64_t offset,
                                void *data, size_t bytes)
{
    io_init(request, opcode, offset, bytes);
    request->iov.base = data;
    request->iov.len = bytes;
    request->io.iov = &request->iov;
    request->io.iov_count = 1;
}

static inline void io_submit(const blkrepl_backend_ops *ops, void *user, struct io_request *request)
{
    blkrepl_io *io = &request->io;

    ops->submit(user, 0, &io, 1);
}

/* Submit and wait. */
static inline int io_run(const blkrepl_backend_ops *ops, void *user, struct io_request *request)
{
    io_submit(ops, user, request);
    return io_wait(request);
}

static inline int io_data(const blkrepl_backend_ops *ops, void *user, uint32_t opcode,
                          uint64_t offset, void *data, size_t bytes)
{
    struct io_request request;

    io_init_data(&request, opcode, offset, data, bytes);
    return io_run(ops, user, &request);
}

/* A request without data. */
static inline int io_plain(const blkrepl_backend_ops *ops, void *user, uint32_t opcode,
                           uint64_t offset, uint64_t bytes, uint32_t flags)
{
    struct io_request request;

    io_init(&request, opcode, offset, bytes);
    request.io.flags = flags;
    return io_run(ops, user, &request);
}

static inline int io_status(const blkrepl_backend_ops *ops, void *user, uint64_t offset,
                            uint64_t bytes, blkrepl_extent *extents, uint32_t most)
{
    struct io_request request;

    io_init(&request, BLKREPL_OP_STATUS, offset, bytes);
    request.io.extents = extents;
    request.io.extents_max = most;
    return io_run(ops, user, &request);
}

/* COPY_FROM of another backend. */
static inline int io_copy(const blkrepl_backend_ops *ops, void *user, void *from,
                          uint64_t from_offset, uint64_t offset, uint64_t bytes)
{
    struct io_request request;

    io_init(&request, BLKREPL_OP_COPY_FROM, offset, bytes);
    request.io.source_user = from;
    request.io.source_offset = from_offset;
    request.io.flags = BLKREPL_IO_BACKGROUND;
    return io_run(ops, user, &request);
}

/* ---- Random ------------------------------------------------------------------ */

/* xorshift64*: the same numbers everywhere. */
static inline uint64_t io_random(uint64_t *state)
{
    *state ^= *state >> 12;
    *state ^= *state << 25;
    *state ^= *state >> 27;
    return *state * UINT64_C(2685821657736338717);
}

static inline uint64_t io_below(uint64_t *state, uint64_t limit)
{
    return io_random(state) % limit;
}

static inline void io_fill(uint64_t *state, unsigned char *data, size_t bytes)
{
    for (size_t i = 0; i < bytes; i++) {
        data[i] = (unsigned char)io_random(state);
    }
}

/* Cut `bytes` at `data` into at most `most` random pieces, some of them empty;
 * returns their number. */
static inline uint32_t io_cut(uint64_t *state, unsigned char *data, size_t bytes,
                              blkrepl_iovec *iov, uint32_t most)
{
    uint32_t count = 0;

    while (bytes > 0 && count + 1 < most) {
        size_t piece = (size_t)io_below(state, 2 * (bytes / most) + 2);

        piece = piece < bytes ? piece : bytes;
        iov[count++] = (blkrepl_iovec){.base = data, .len = piece};
        data += piece;
        bytes -= piece;
    }
    iov[count++] = (blkrepl_iovec){.base = data, .len = bytes};
    return count;
}

/* ---- Files --------------------------------------------------------------------- */

/* A path that is not used yet, in /dev/shm (NULL if there is none) or here. */
static inline const char *io_path(bool in_memory, const char *name, char *path, size_t room)
{
    if (in_memory) {
        FILE *probe;

        snprintf(path, room, "/dev/shm/blkrepl-%s-%ld", name, (long)getpid());
        probe = fopen(path, "w");
        if (probe == NULL) {
            return NULL;
        }
        fclose(probe);
    } else {
        snprintf(path, room, "./blkrepl-%s-%ld", name, (long)getpid());
    }
    remove(path);
    return path;
}

#endif
