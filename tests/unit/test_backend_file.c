/* SPDX-License-Identifier: MIT */
#ifdef __linux__
#define _GNU_SOURCE
#endif
#include "block/backend_file.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

#include "unit/backend_io.h"

#define BYTES (3u * 1024 * 1024 + 777)

struct fixture {
    struct alloc alloc;
    struct file_pool *pool;
    struct file_backend *fb;
    char path[64];
};

static const blkrepl_backend_ops *const ops = &blkrepl__file_backend_ops;

static void pool_up(struct fixture *f)
{
    memset(f, 0, sizeof *f);
    assert_int_equal(blkrepl__alloc_init(&f->alloc, NULL), 0);
    assert_int_equal(blkrepl__file_pool_create(&f->alloc, 2, &f->pool), 0);
}

static int open_as(struct fixture *f, uint32_t flags, uint64_t bytes, bool read_only)
{
    blkrepl_file_options options = {.struct_size = sizeof options, .flags = flags, .bytes = bytes};
    int rc = blkrepl__file_backend_open(io_context(), &f->alloc, f->pool, f->path, &options,
                                        read_only, &f->fb);

    if (rc == 0) {
        blkrepl__file_backend_set_complete(f->fb, io_done);
    }
    return rc;
}

static void set_up(struct fixture *f, bool in_memory, uint64_t bytes)
{
    pool_up(f);
    if (io_path(in_memory, "backend-file", f->path, sizeof f->path) == NULL) {
        blkrepl__file_pool_free(f->pool);
        skip();
    }
    assert_int_equal(open_as(f, BLKREPL_FILE_CREATE | BLKREPL_FILE_EXCLUSIVE, bytes, false), 0);
}

static void tear_down(struct fixture *f)
{
    if (f->fb != NULL) {
        ops->close(f->fb);
    }
    blkrepl__file_pool_free(f->pool);
    remove(f->path);
}

static uint32_t threads(struct fixture *f)
{
    struct file_pool_stats stats;

    blkrepl__file_pool_query(f->pool, &stats);
    return stats.threads;
}

/* ---- Content ---------------------------------------------------------------------- */

struct world {
    struct fixture f;
    uint64_t seed;
    unsigned char model[BYTES];
    unsigned char data[BYTES];
    blkrepl_iovec iov[2500];
};

static void random_transfer(struct world *w, uint32_t opcode, uint64_t offset, size_t bytes,
                            uint32_t flags)
{
    struct io_request request;

    io_init(&request, opcode, offset, bytes);
    request.io.flags = flags;
    request.io.iov = w->iov;
    request.io.iov_count =
        io_cut(&w->seed, w->data, bytes, w->iov,
               1 + (uint32_t)io_below(&w->seed, io_below(&w->seed, 8) == 0 ? 2500 : 12));
    if (opcode == BLKREPL_OP_WRITE) {
        uint64_t key = io_random(&w->seed);

        for (size_t i = 0; i < bytes; i++) {
            w->data[i] = (unsigned char)((key >> i % 57) ^ i);
        }
        memcpy(w->model + offset, w->data, bytes);
    } else {
        memset(w->data, 0xee, bytes);
    }
    assert_int_equal(io_run(ops, w->f.fb, &request), 0);
    if (opcode == BLKREPL_OP_READ) {
        assert_memory_equal(w->data, w->model + offset, bytes);
    }
}

static void random_zeroes(struct world *w, uint64_t offset, size_t bytes, uint32_t flags)
{
    int rc;

    flags |= io_below(&w->seed, 2) == 0 ? BLKREPL_IO_MAY_UNMAP : 0;
    rc = io_plain(ops, w->f.fb, BLKREPL_OP_ZEROES, offset, bytes, flags);
    if (rc == 0) {
        memset(w->model + offset, 0, bytes);
    } else {
        assert_int_equal(rc, -ENOTSUP);
    }
}

/* What is said to be zero is zero. */
static void random_status(struct world *w, uint64_t offset, size_t bytes)
{
    blkrepl_extent extents[5];
    uint64_t at = offset;

    assert_int_equal(io_status(ops, w->f.fb, offset, bytes, extents, 5), 0);
    for (int i = 0; i < 5 && extents[i].bytes > 0; i++) {
        assert_true(extents[i].bytes <= offset + bytes - at);
        for (uint64_t end = at + extents[i].bytes; at < end; at++) {
            assert_true(extents[i].flags != BLKREPL_EXTENT_ZERO || w->model[at] == 0);
        }
    }
    assert_true(at > offset || bytes == 0);
}

static void random_step(struct world *w)
{
    uint64_t offset = io_below(&w->seed, BYTES + 1);
    uint64_t most = io_below(&w->seed, 6) == 0 ? BYTES : 100000;
    size_t bytes = (size_t)io_below(&w->seed, (most < BYTES - offset ? most : BYTES - offset) + 1);
    uint32_t flags = io_below(&w->seed, 2) == 0 ? BLKREPL_IO_BACKGROUND : 0;

    switch (io_below(&w->seed, 8)) {
    case 0:
    case 1:
    case 2: random_transfer(w, BLKREPL_OP_WRITE, offset, bytes, flags); break;
    case 3:
    case 4: random_transfer(w, BLKREPL_OP_READ, offset, bytes, flags); break;
    case 5: random_zeroes(w, offset, bytes, flags); break;
    case 6: random_status(w, offset, bytes); break;
    default:
        flags |= BLKREPL_IO_FUA;
        random_transfer(w, BLKREPL_OP_WRITE, offset, bytes < 5000 ? bytes : 5000, flags);
        assert_int_equal(io_plain(ops, w->f.fb, BLKREPL_OP_FLUSH, 0, 0, 0), 0);
        break;
    }
}

static void backend_file_keeps_what_is_written(void **state)
{
    static struct world w;

    (void)state;
    for (int in_memory = 0; in_memory < 2; in_memory++) {
        memset(&w, 0, sizeof w);
        w.seed = 11;
        set_up(&w.f, in_memory == 1, BYTES);
        for (int step = 0; step < 400; step++) {
            random_step(&w);
        }
        random_transfer(&w, BLKREPL_OP_READ, 0, BYTES, 0);
        tear_down(&w.f);
    }
}

/* ---- Where requests are done -------------------------------------------------------- */

static void backend_file_in_memory_does_guest_requests_at_once(void **state)
{
    static unsigned char data[1 << 20];
    static const uint32_t opcodes[] = {BLKREPL_OP_WRITE,   BLKREPL_OP_READ,  BLKREPL_OP_ZEROES,
                                       BLKREPL_OP_DISCARD, BLKREPL_OP_FLUSH, BLKREPL_OP_STATUS};
    blkrepl_extent extents[2];
    struct io_request request;
    struct fixture f;

    (void)state;
    set_up(&f, true, BYTES);
    for (unsigned i = 0; i < ARRAY_COUNT(opcodes); i++) {
        io_init_data(&request, opcodes[i], 0, data, sizeof data);
        request.io.extents = extents;
        request.io.extents_max = 2;
        request.io.flags = opcodes[i] == BLKREPL_OP_ZEROES ? BLKREPL_IO_MAY_UNMAP : 0;
        io_submit(ops, f.fb, &request);
        assert_true(io_is_done(&request));
        assert_int_equal(request.result, 0);
    }
    assert_int_equal(threads(&f), 0);
    tear_down(&f);
}

static void backend_file_does_so_much_at_once_and_no_more(void **state)
{
    static unsigned char data[6][262144];
    struct io_request requests[6];
    blkrepl_io *ios[6];
    struct fixture f;

    (void)state;
    set_up(&f, true, BYTES);
    for (int i = 0; i < 6; i++) {
        io_init_data(&requests[i], BLKREPL_OP_READ, 0, data[i], 262144);
        ios[i] = &requests[i].io;
    }
    ops->submit(f.fb, 0, ios, 4);
    assert_int_equal(threads(&f), 0);
    for (int i = 0; i < 4; i++) {
        assert_true(requests[i].done);
        io_init_data(&requests[i], BLKREPL_OP_READ, 0, data[i], 262144);
    }
    ops->submit(f.fb, 0, ios, 6);
    assert_true(threads(&f) > 0);
    for (int i = 0; i < 6; i++) {
        assert_int_equal(io_wait(&requests[i]), 0);
    }
    tear_down(&f);
}

/* Nobody in the pool does it: one thread is held by a request of its own. */
struct gate {
    struct pool_client client;
    struct io_request request;
    pthread_mutex_t lock;
    pthread_cond_t opened;
    bool open;
};

static bool gate_run(struct pool_client *client, blkrepl_io *io, bool may_block)
{
    struct gate *gate = CONTAINER_OF(client, struct gate, client);

    (void)may_block;
    pthread_mutex_lock(&gate->lock);
    while (!gate->open) {
        pthread_cond_wait(&gate->opened, &gate->lock);
    }
    pthread_mutex_unlock(&gate->lock);
    io_done(io_context(), io->id, 0);
    return true;
}

static bool gate_helpable(struct pool_client *client, const blkrepl_io *io)
{
    (void)client;
    (void)io;
    return false;
}

static void gate_close(struct gate *gate, struct fixture *f)
{
    struct file_pool_stats stats;
    struct pool_queue batch = {.first = NULL};

    blkrepl__file_pool_free(f->pool);
    *gate = (struct gate){.client = {.run = gate_run, .helpable = gate_helpable},
                          .lock = PTHREAD_MUTEX_INITIALIZER,
                          .opened = PTHREAD_COND_INITIALIZER};
    assert_int_equal(blkrepl__file_pool_create(&f->alloc, 1, &f->pool), 0);
    io_init(&gate->request, BLKREPL_OP_WRITE, 0, 0);
    blkrepl__file_pool_batch(&batch, &gate->client, &gate->request.io);
    blkrepl__file_pool_add(f->pool, &batch);
    do {
        blkrepl__file_pool_query(f->pool, &stats);
    } while (stats.queued > 0);
}

static void gate_open(struct gate *gate)
{
    pthread_mutex_lock(&gate->lock);
    gate->open = true;
    pthread_cond_broadcast(&gate->opened);
    pthread_mutex_unlock(&gate->lock);
    assert_int_equal(io_wait(&gate->request), 0);
}

static void set_up_gated(struct fixture *f, struct gate *gate, bool in_memory)
{
    set_up(f, in_memory, BYTES);
    ops->close(f->fb);
    gate_close(gate, f);
    assert_int_equal(open_as(f, 0, 0, false), 0);
}

static void backend_file_gives_background_to_the_pool(void **state)
{
    static unsigned char data[65536 + 1]; /* one more than is done at once */
    struct io_request requests[3];
    blkrepl_io *ios[3];
    struct fixture f;
    struct gate gate;

    (void)state;
    set_up_gated(&f, &gate, true);
    for (int i = 0; i < 3; i++) {
        io_init_data(&requests[i], i == 1 ? BLKREPL_OP_WRITE : BLKREPL_OP_READ, 0, data,
                     sizeof data);
        requests[i].io.flags = BLKREPL_IO_BACKGROUND;
        ios[i] = &requests[i].io;
    }
    ops->submit(f.fb, 0, ios, 3);
    assert_false(io_is_done(&requests[0]));
    assert_true(blkrepl__file_pool_help(f.pool));
    assert_true(io_is_done(&requests[1]));
    assert_false(io_is_done(&requests[0]));
    assert_true(blkrepl__file_pool_help(f.pool));
    assert_true(io_is_done(&requests[0]));
    gate_open(&gate);
    assert_int_equal(io_wait(&requests[2]), 0);
    tear_down(&f);
}

/* Short writes to memory cost less than to wake a thread for them. */
static void backend_file_does_short_writes_at_once(void **state)
{
    static unsigned char data[65536];
    static unsigned char back[65536];
    struct io_request request;
    uint64_t seed = 1;
    struct fixture f;
    struct gate gate;

    (void)state;
    set_up_gated(&f, &gate, true);
    io_fill(&seed, data, sizeof data);
    io_init_data(&request, BLKREPL_OP_WRITE, 100, data, sizeof data);
    request.io.flags = BLKREPL_IO_BACKGROUND;
    io_submit(ops, f.fb, &request);
    assert_true(io_is_done(&request));
    assert_int_equal(request.result, 0);
    assert_int_equal(io_data(ops, f.fb, BLKREPL_OP_READ, 100, back, sizeof back), 0);
    assert_memory_equal(data, back, sizeof data);
    io_init_data(&request, BLKREPL_OP_READ, 100, back, 1);
    request.io.flags = BLKREPL_IO_BACKGROUND;
    io_submit(ops, f.fb, &request);
    assert_false(io_is_done(&request));
    gate_open(&gate);
    assert_int_equal(io_wait(&request), 0);
    tear_down(&f);

    set_up_gated(&f, &gate, false);
    io_init_data(&request, BLKREPL_OP_WRITE, 100, data, 1);
    request.io.flags = BLKREPL_IO_BACKGROUND;
    io_submit(ops, f.fb, &request);
    assert_false(io_is_done(&request)); /* not on a disk */
    gate_open(&gate);
    assert_int_equal(io_wait(&request), 0);
    tear_down(&f);
}

/* A helper takes neither what is long, nor what may walk through a long file,
 * nor, on a disk, what the kernel does not grant. */
static void backend_file_spares_helpers(void **state)
{
    static unsigned char data[(1 << 20) + 1];
    blkrepl_extent extent;
    struct io_request big;
    struct io_request status;
    struct fixture f;
    struct gate gate;

    (void)state;
    set_up_gated(&f, &gate, true);
    io_init_data(&big, BLKREPL_OP_READ, 0, data, sizeof data);
    big.io.flags = BLKREPL_IO_BACKGROUND;
    io_submit(ops, f.fb, &big);
    io_init(&status, BLKREPL_OP_STATUS, 0, 1000);
    status.io.extents = &extent;
    status.io.extents_max = 1;
    status.io.flags = BLKREPL_IO_BACKGROUND;
    io_submit(ops, f.fb, &status);
    assert_false(blkrepl__file_pool_help(f.pool));
    gate_open(&gate);
    assert_int_equal(io_wait(&big), 0);
    assert_int_equal(io_wait(&status), 0);
    tear_down(&f);

    set_up_gated(&f, &gate, false);
    io_init(&big, BLKREPL_OP_FLUSH, 0, 0);
    big.io.flags = BLKREPL_IO_BACKGROUND;
    io_submit(ops, f.fb, &big);
    assert_false(blkrepl__file_pool_help(f.pool));
    gate_open(&gate);
    assert_int_equal(io_wait(&big), 0);
    tear_down(&f);
}

/* Whether the kernel grants it or not, it is done once and right. */
static void backend_file_on_disk_probes(void **state)
{
    static unsigned char data[65536];
    static unsigned char back[65536];
    struct io_request request;
    uint64_t seed = 1;
    struct fixture f;
    struct gate gate;

    (void)state;
    set_up_gated(&f, &gate, false);
    io_fill(&seed, data, sizeof data);
    io_init_data(&request, BLKREPL_OP_WRITE, 100, data, sizeof data);
    request.io.flags = BLKREPL_IO_BACKGROUND;
    io_submit(ops, f.fb, &request);
    (void)blkrepl__file_pool_help(f.pool);
    gate_open(&gate);
    assert_int_equal(io_wait(&request), 0);
    assert_int_equal(io_data(ops, f.fb, BLKREPL_OP_READ, 100, back, sizeof back), 0);
    assert_memory_equal(data, back, sizeof data);
    tear_down(&f);
}

/* Also in the background, where data goes to the pool. */
static void backend_file_answers_known_status_at_once(void **state)
{
    static unsigned char data[65536];
    blkrepl_extent extents[2];
    struct io_request request;
    struct fixture f;

    (void)state;
    set_up(&f, true, BYTES);
    assert_int_equal(io_data(ops, f.fb, BLKREPL_OP_WRITE, 0, data, sizeof data), 0);
    assert_int_equal(io_status(ops, f.fb, 0, sizeof data, extents, 2), 0);
    assert_int_equal(threads(&f), 0);
    io_init(&request, BLKREPL_OP_STATUS, 4096, 4096);
    request.io.extents = extents;
    request.io.extents_max = 2;
    request.io.flags = BLKREPL_IO_BACKGROUND;
    io_submit(ops, f.fb, &request);
    assert_true(io_is_done(&request));
    assert_int_equal(extents[0].bytes, 4096);
    assert_int_equal(extents[1].bytes, 0);
    assert_int_equal(threads(&f), 0);

    assert_int_equal(io_plain(ops, f.fb, BLKREPL_OP_DISCARD, 0, sizeof data, 0), 0);
    io_init(&request, BLKREPL_OP_STATUS, 0, sizeof data);
    request.io.extents = extents;
    request.io.extents_max = 2;
    request.io.flags = BLKREPL_IO_BACKGROUND;
    assert_int_equal(io_run(ops, f.fb, &request), 0);
    assert_int_equal(threads(&f), 1);
    assert_int_equal(extents[0].flags, BLKREPL_EXTENT_ZERO);
    tear_down(&f);
}

static void backend_file_cancels_what_has_not_begun(void **state)
{
    static unsigned char data[65536 + 1]; /* one more than is done at once */
    struct io_request requests[2];
    struct fixture f;
    struct gate gate;

    (void)state;
    set_up_gated(&f, &gate, true);
    for (int i = 0; i < 2; i++) {
        io_init_data(&requests[i], BLKREPL_OP_WRITE, 0, data, sizeof data);
        requests[i].io.flags = BLKREPL_IO_BACKGROUND;
        io_submit(ops, f.fb, &requests[i]);
    }
    ops->cancel(f.fb, requests[0].io.id);
    assert_true(io_is_done(&requests[0]));
    assert_int_equal(requests[0].result, -ECANCELED);
    ops->cancel(f.fb, requests[0].io.id);
    ops->cancel(f.fb, gate.request.io.id);
    gate_open(&gate);
    assert_int_equal(io_wait(&requests[1]), 0);
    ops->cancel(f.fb, requests[1].io.id);
    tear_down(&f);
}

/* ---- Many threads ---------------------------------------------------------------------- */

#define CROWD 4
#define SHARE 262144

struct member {
    struct fixture *f;
    uint64_t base;
    uint64_t seed;
    int wrong;
    unsigned char model[SHARE];
    unsigned char data[SHARE];
};

static void *member_run(void *arg)
{
    struct member *m = arg;

    for (int i = 0; i < 300 && m->wrong == 0; i++) {
        uint64_t offset = io_below(&m->seed, SHARE);
        size_t bytes = (size_t)io_below(&m->seed, SHARE - offset) + 1;
        bool write = io_below(&m->seed, 2) == 0;
        struct io_request request;

        io_init_data(&request, write ? BLKREPL_OP_WRITE : BLKREPL_OP_READ, m->base + offset,
                     m->data, bytes);
        request.io.flags = io_below(&m->seed, 2) == 0 ? BLKREPL_IO_BACKGROUND : 0;
        if (write) {
            memset(m->data, i, bytes);
            memset(m->model + offset, i, bytes);
        }
        io_submit(ops, m->f->fb, &request);
        (void)blkrepl__file_pool_help(m->f->pool);
        if (io_wait(&request) != 0 || memcmp(m->data, m->model + offset, bytes) != 0) {
            m->wrong = 1;
        }
    }
    return NULL;
}

static void backend_file_serves_many_threads(void **state)
{
    static struct member members[CROWD];
    pthread_t ids[CROWD];
    struct fixture f;

    (void)state;
    for (int in_memory = 0; in_memory < 2; in_memory++) {
        set_up(&f, in_memory == 1, CROWD * SHARE);
        memset(members, 0, sizeof members);
        for (unsigned i = 0; i < CROWD; i++) {
            members[i].f = &f;
            members[i].base = i * SHARE;
            members[i].seed = i + 1;
            assert_int_equal(pthread_create(&ids[i], NULL, member_run, &members[i]), 0);
        }
        for (unsigned i = 0; i < CROWD; i++) {
            pthread_join(ids[i], NULL);
            assert_int_equal(members[i].wrong, 0);
        }
        tear_down(&f);
    }
}

/* ---- Refusals -------------------------------------------------------------------------- */

static void backend_file_shortened_behind_our_back_fails(void **state)
{
    static unsigned char data[8192];
    struct fixture f;

    (void)state;
    for (int in_memory = 0; in_memory < 2; in_memory++) {
        set_up(&f, in_memory == 1, BYTES);
        assert_int_equal(truncate(f.path, 4096), 0);
        assert_int_equal(io_data(ops, f.fb, BLKREPL_OP_READ, 0, data, 4096), 0);
        assert_int_equal(io_data(ops, f.fb, BLKREPL_OP_READ, 0, data, 8192), -EIO);
        assert_int_equal(io_data(ops, f.fb, BLKREPL_OP_READ, 1000000, data, 1), -EIO);
        tear_down(&f);
    }
}

static void backend_file_read_only_refuses_writes(void **state)
{
    static unsigned char data[4096];
    blkrepl_backend_info info = {.struct_size = sizeof info};
    struct fixture f;

    (void)state;
    set_up(&f, true, BYTES);
    ops->close(f.fb);
    assert_int_equal(open_as(&f, 0, 0, true), 0);
    assert_int_equal(ops->get_info(f.fb, &info), 0);
    assert_int_equal(info.flags, BLKREPL_BACKEND_READ_ONLY);
    assert_int_equal(info.opcodes & 1u << BLKREPL_OP_WRITE, 0);
    assert_int_not_equal(info.opcodes & 1u << BLKREPL_OP_READ, 0);
    assert_int_equal(io_data(ops, f.fb, BLKREPL_OP_READ, 0, data, 4096), 0);
    assert_int_equal(io_data(ops, f.fb, BLKREPL_OP_WRITE, 0, data, 4096), -EROFS);
    assert_int_equal(io_plain(ops, f.fb, BLKREPL_OP_ZEROES, 0, 4096, 0), -EROFS);
    assert_int_equal(io_plain(ops, f.fb, BLKREPL_OP_DISCARD, 0, 4096, 0), -EROFS);
    assert_int_equal(io_plain(ops, f.fb, BLKREPL_OP_FLUSH, 0, 0, 0), 0);
    assert_int_equal(io_copy(ops, f.fb, f.fb, 0, 0, 4096), -EROFS);
    assert_int_equal(io_plain(ops, f.fb, 99, 0, 0, 0), -ENOTSUP);
    tear_down(&f);
}

static void backend_file_describes_itself(void **state)
{
    blkrepl_backend_info info = {.struct_size = sizeof info};
    blkrepl_file_options options = {.struct_size = sizeof options, .queue_depth = 4096};
    struct fixture f;

    (void)state;
    set_up(&f, false, BYTES);
    assert_int_equal(ops->get_info(f.fb, &info), 0);
    assert_int_equal(info.struct_size, sizeof info);
    assert_int_equal(info.bytes, BYTES);
    assert_int_equal(info.queue_depth, 64);
    assert_int_equal(info.request_alignment, 1);
    assert_int_equal(info.flags, BLKREPL_BACKEND_FUA);
    assert_int_equal(info.opcodes, 0xfe);
    assert_non_null(info.copy_domain);
    ops->close(f.fb);
    assert_int_equal(
        blkrepl__file_backend_open(io_context(), &f.alloc, f.pool, f.path, &options, false, &f.fb),
        0);
    assert_int_equal(ops->get_info(f.fb, &info), 0);
    assert_int_equal(info.queue_depth, 4096);
    ops->close(f.fb);
    f.fb = NULL;
    if (open_as(&f, BLKREPL_FILE_DIRECT, 0, false) == 0) { /* where there is such a thing */
        assert_int_equal(ops->get_info(f.fb, &info), 0);
        assert_null(info.copy_domain);
    }
    tear_down(&f);
}

/* By way of the pool, from a file in memory or not to one that is or is not. */
static void backend_file_copies_from_another(void **state)
{
    static unsigned char data[BYTES];
    static unsigned char back[BYTES];
    uint64_t seed = 4;

    (void)state;
    io_fill(&seed, data, BYTES);
    for (int i = 0; i < 4; i++) {
        bool in_memory = (i & 1) != 0;
        bool from_memory = (i & 2) != 0;
        struct fixture f;
        struct fixture g;
        int rc;

        set_up(&f, in_memory, BYTES);
        pool_up(&g);
        assert_non_null(io_path(from_memory, "backend-file-2", g.path, sizeof g.path));
        assert_int_equal(open_as(&g, BLKREPL_FILE_CREATE, BYTES, false), 0);
        assert_int_equal(io_data(ops, g.fb, BLKREPL_OP_WRITE, 0, data, BYTES), 0);
        rc = io_copy(ops, f.fb, g.fb, 4096, 777, BYTES - 4096);
        assert_int_equal(threads(&f), 1); /* even where it would not have blocked */
        assert_int_equal(io_data(ops, f.fb, BLKREPL_OP_READ, 0, back, BYTES), 0);
        if (in_memory == from_memory && rc == 0) {
            assert_memory_equal(back + 777, data + 4096, BYTES - 4096);
        } else { /* the kernel knows better than we */
            assert_true(rc == 0 || rc == -EXDEV || rc == -ENOSYS || rc == -EOPNOTSUPP);
            assert_int_equal(io_copy(ops, f.fb, g.fb, 0, 0, 4096), rc == 0 ? 0 : -ENOTSUP);
        }
        tear_down(&g);
        tear_down(&f);
    }
}

/* Inside submit, if a guest waits for it and both are in memory. */
static void backend_file_copies_inline_in_memory_only(void **state)
{
    (void)state;
    for (int i = 0; i < 4; i++) {
        bool in_memory = (i & 1) != 0;
        bool from_memory = (i & 2) != 0;
        struct io_request request;
        struct fixture f;
        struct fixture g;

        set_up(&f, in_memory, BYTES);
        pool_up(&g);
        assert_non_null(io_path(from_memory, "backend-file-2", g.path, sizeof g.path));
        assert_int_equal(open_as(&g, BLKREPL_FILE_CREATE, BYTES, false), 0);
        io_init(&request, BLKREPL_OP_COPY_FROM, 0, 4096);
        request.io.source_user = g.fb;
        io_run(ops, f.fb, &request);
        assert_int_equal(threads(&f), in_memory && from_memory ? 0 : 1);
        tear_down(&g);
        tear_down(&f);
    }
}

static void backend_file_creates_and_grows_but_never_shortens(void **state)
{
    struct fixture f;
    struct stat st;

    (void)state;
    set_up(&f, false, 0);
    assert_int_equal(stat(f.path, &st), 0);
    assert_int_equal(st.st_size, 0);
    assert_int_equal(st.st_mode & 0777, 0600);
    ops->close(f.fb);
    assert_int_equal(open_as(&f, BLKREPL_FILE_CREATE, 12345, false), 0);
    ops->close(f.fb);
    assert_int_equal(open_as(&f, BLKREPL_FILE_CREATE, 100, false), 0);
    assert_int_equal(stat(f.path, &st), 0);
    assert_int_equal(st.st_size, 12345);
    ops->close(f.fb);
    f.fb = NULL;
    assert_int_equal(open_as(&f, BLKREPL_FILE_CREATE | BLKREPL_FILE_EXCLUSIVE, 1, false), -EEXIST);
    tear_down(&f);
}

static void backend_file_takes_the_mode(void **state)
{
    blkrepl_file_options options = {
        .struct_size = sizeof options, .flags = BLKREPL_FILE_CREATE, .mode = 0640};
    struct fixture f;
    struct stat st;
    mode_t mask = umask(0);

    (void)state;
    pool_up(&f);
    assert_non_null(io_path(false, "backend-file", f.path, sizeof f.path));
    assert_int_equal(
        blkrepl__file_backend_open(io_context(), &f.alloc, f.pool, f.path, &options, false, &f.fb),
        0);
    umask(mask);
    assert_int_equal(stat(f.path, &st), 0);
    assert_int_equal(st.st_mode & 07777, 0640);
    tear_down(&f);
}

static void backend_file_checks_options(void **state)
{
    static const blkrepl_file_options bad[] = {
        {.flags = 8},
        {.flags = 0x80000000},
        {.flags = BLKREPL_FILE_EXCLUSIVE},
        {.bytes = 1},
        {.flags = BLKREPL_FILE_CREATE, .bytes = UINT64_C(1) << 63},
        {.flags = BLKREPL_FILE_CREATE, .mode = 010000},
        {.queue_depth = 4097},
    };
    struct fixture f;

    (void)state;
    pool_up(&f);
    assert_non_null(io_path(false, "backend-file", f.path, sizeof f.path));
    for (unsigned i = 0; i < ARRAY_COUNT(bad); i++) {
        assert_int_equal(blkrepl__file_backend_open(io_context(), &f.alloc, f.pool, f.path, &bad[i],
                                                    false, &f.fb),
                         -EINVAL);
    }
    assert_int_equal(open_as(&f, BLKREPL_FILE_CREATE, 0, true), -EINVAL);
    assert_int_equal(access(f.path, F_OK), -1);
    tear_down(&f);
}

static void backend_file_opens_disks_only(void **state)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    struct fixture f;
    int fd;

    (void)state;
    pool_up(&f);
    assert_non_null(io_path(false, "backend-file", f.path, sizeof f.path));
    assert_int_equal(open_as(&f, 0, 0, false), -ENOENT);

    assert_int_equal(mkdir(f.path, 0700), 0);
    assert_int_equal(open_as(&f, 0, 0, false), -ENOTSUP);
    assert_int_equal(open_as(&f, 0, 0, true), -ENOTSUP);
    assert_int_equal(open_as(&f, BLKREPL_FILE_CREATE, 100, false), -ENOTSUP);
    assert_int_equal(rmdir(f.path), 0);

    assert_int_equal(mkfifo(f.path, 0600), 0);
    assert_int_equal(open_as(&f, 0, 0, false), -ENOTSUP);
    assert_int_equal(open_as(&f, 0, 0, true), -ENOTSUP);
    assert_int_equal(unlink(f.path), 0);

    fd = socket(AF_UNIX, SOCK_STREAM, 0);
    strncpy(address.sun_path, f.path, sizeof address.sun_path - 1);
    assert_int_equal(bind(fd, (struct sockaddr *)&address, sizeof address), 0);
    assert_int_equal(open_as(&f, 0, 0, false), -ENOTSUP);
    close(fd);
    assert_int_equal(unlink(f.path), 0);

    snprintf(f.path, sizeof f.path, "/dev/null");
    assert_int_equal(open_as(&f, 0, 0, false), -ENOTSUP);
    snprintf(f.path, sizeof f.path, "./nowhere/blkrepl");
    assert_int_equal(open_as(&f, BLKREPL_FILE_CREATE, 100, false), -ENOENT);
    assert_null(f.fb);
    tear_down(&f);
}

static void backend_file_too_large_for_the_file_system_fails(void **state)
{
    struct fixture f;
    int rc;

    (void)state;
    pool_up(&f);
    assert_non_null(io_path(false, "backend-file", f.path, sizeof f.path));
    rc = open_as(&f, BLKREPL_FILE_CREATE, BLKREPL_IMAGE_BYTES_MAX, false);
    assert_true(rc == 0 || rc == -EFBIG || rc == -EINVAL || rc == -ENOSPC);
    tear_down(&f);
}

static void *no_memory(void *user, size_t bytes)
{
    (void)user;
    (void)bytes;
    return NULL;
}

static void backend_file_without_memory_is_not_opened(void **state)
{
    struct fixture f;

    (void)state;
    pool_up(&f);
    assert_non_null(io_path(false, "backend-file", f.path, sizeof f.path));
    f.alloc.hooks.zalloc = no_memory;
    assert_int_equal(open_as(&f, BLKREPL_FILE_CREATE, 100, false), -ENOMEM);
    assert_int_equal(access(f.path, F_OK), -1);
    blkrepl__file_backend_discard(NULL);
    tear_down(&f);
}

static void backend_file_identity_is_that_of_the_file(void **state)
{
    char path[64];
    struct file_backend *first;
    struct fixture f;
    uint64_t a[2];
    uint64_t b[2];

    (void)state;
    set_up(&f, false, BYTES);
    first = f.fb;
    memcpy(path, f.path, sizeof path);
    assert_non_null(io_path(false, "backend-file-link", f.path, sizeof f.path));
    assert_int_equal(link(path, f.path), 0);
    assert_int_equal(open_as(&f, 0, 0, true), 0);
    blkrepl__file_backend_identity(first, &a[0], &a[1]);
    blkrepl__file_backend_identity(f.fb, &b[0], &b[1]);
    assert_int_equal(a[0], b[0]);
    assert_int_equal(a[1], b[1]);
    blkrepl__file_backend_discard(f.fb);

    assert_int_equal(unlink(f.path), 0);
    assert_int_equal(open_as(&f, BLKREPL_FILE_CREATE, 0, false), 0);
    blkrepl__file_backend_identity(f.fb, &b[0], &b[1]);
    assert_true(a[0] != b[0] || a[1] != b[1]);
    ops->close(first);
    assert_int_equal(unlink(path), 0);
    tear_down(&f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(backend_file_keeps_what_is_written),
        cmocka_unit_test(backend_file_in_memory_does_guest_requests_at_once),
        cmocka_unit_test(backend_file_does_so_much_at_once_and_no_more),
        cmocka_unit_test(backend_file_gives_background_to_the_pool),
        cmocka_unit_test(backend_file_does_short_writes_at_once),
        cmocka_unit_test(backend_file_spares_helpers),
        cmocka_unit_test(backend_file_on_disk_probes),
        cmocka_unit_test(backend_file_answers_known_status_at_once),
        cmocka_unit_test(backend_file_cancels_what_has_not_begun),
        cmocka_unit_test(backend_file_serves_many_threads),
        cmocka_unit_test(backend_file_shortened_behind_our_back_fails),
        cmocka_unit_test(backend_file_read_only_refuses_writes),
        cmocka_unit_test(backend_file_describes_itself),
        cmocka_unit_test(backend_file_copies_from_another),
        cmocka_unit_test(backend_file_copies_inline_in_memory_only),
        cmocka_unit_test(backend_file_creates_and_grows_but_never_shortens),
        cmocka_unit_test(backend_file_takes_the_mode),
        cmocka_unit_test(backend_file_checks_options),
        cmocka_unit_test(backend_file_opens_disks_only),
        cmocka_unit_test(backend_file_too_large_for_the_file_system_fails),
        cmocka_unit_test(backend_file_without_memory_is_not_opened),
        cmocka_unit_test(backend_file_identity_is_that_of_the_file),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
