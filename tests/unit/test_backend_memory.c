/* SPDX-License-Identifier: MIT */
#ifdef __linux__
#define _GNU_SOURCE
#endif
#include "block/backend_memory.h"

#include <errno.h>

#include "unit/backend_io.h"
#include "unit/fault.h"

#define PAGE 65536u
#define BYTES (20 * PAGE + 321)
#define DATA (BLKREPL_EXTENT_DATA | BLKREPL_EXTENT_ALLOCATED)

static const blkrepl_backend_ops *const ops = &blkrepl__memory_backend_ops;

#ifdef __linux__

static struct fault mutex_fault;

int pthread_mutex_init(pthread_mutex_t *mutex, const pthread_mutexattr_t *attributes)
{
    int (*real)(pthread_mutex_t * mutex, const pthread_mutexattr_t *attributes);

    if (fault_due(&mutex_fault)) {
        return mutex_fault.err;
    }
    fault_real(&real, "pthread_mutex_init", "pthread_mutex_init");
    return real(mutex, attributes);
}

#endif

/* Counts what is allocated, and lets the n-th allocation from now fail. */
struct budget {
    pthread_mutex_t lock;
    long live;
    long until_failure; /* 0: none */
};

struct fixture {
    struct budget budget;
    struct alloc alloc;
    struct memory_backend *mb;
};

static void *budget_zalloc(void *user, size_t bytes)
{
    struct budget *budget = user;
    void *memory = NULL;

    pthread_mutex_lock(&budget->lock);
    if (budget->until_failure == 0 || --budget->until_failure > 0) {
        memory = calloc(1, bytes);
        budget->live++;
    }
    pthread_mutex_unlock(&budget->lock);
    return memory;
}

static void budget_free(void *user, void *memory)
{
    struct budget *budget = user;

    pthread_mutex_lock(&budget->lock);
    budget->live--;
    pthread_mutex_unlock(&budget->lock);
    free(memory);
}

static void alloc_up(struct fixture *f)
{
    memset(f, 0, sizeof *f);
    pthread_mutex_init(&f->budget.lock, NULL);
    assert_int_equal(blkrepl__alloc_init(&f->alloc, NULL), 0);
    f->alloc.hooks.user = &f->budget;
    f->alloc.hooks.zalloc = budget_zalloc;
    f->alloc.hooks.free = budget_free;
}

static void set_up(struct fixture *f, uint64_t bytes)
{
    alloc_up(f);
    assert_int_equal(blkrepl__memory_backend_create(io_context(), &f->alloc, bytes, &f->mb), 0);
    blkrepl__memory_backend_set_complete(f->mb, io_done);
}

static void tear_down(struct fixture *f)
{
    ops->close(f->mb);
    assert_int_equal(f->budget.live, 0);
    pthread_mutex_destroy(&f->budget.lock);
}

/* Pages that exist: all allocations but the backend itself and its table. */
static long pages(const struct fixture *f)
{
    return f->budget.live - 2;
}

static int put(struct fixture *f, uint64_t offset, size_t bytes, int value)
{
    static unsigned char data[4 * PAGE];

    memset(data, value, bytes);
    return io_data(ops, f->mb, BLKREPL_OP_WRITE, offset, data, bytes);
}

static int zero(struct fixture *f, uint64_t offset, uint64_t bytes)
{
    return io_plain(ops, f->mb, BLKREPL_OP_ZEROES, offset, bytes, 0);
}

static void expect_byte(struct fixture *f, uint64_t offset, int value)
{
    unsigned char byte = 0xee;

    assert_int_equal(io_data(ops, f->mb, BLKREPL_OP_READ, offset, &byte, 1), 0);
    assert_int_equal(byte, value);
}

static void expect_extent(const blkrepl_extent *extent, uint64_t bytes, uint32_t flags)
{
    assert_int_equal(extent->bytes, bytes);
    assert_int_equal(extent->flags, flags);
    assert_int_equal(extent->reserved0, 0);
}

/* ---- Content ------------------------------------------------------------------------- */

struct world {
    struct fixture f;
    uint64_t seed;
    unsigned char model[BYTES];
    unsigned char data[BYTES];
    blkrepl_iovec iov[2000];
};

static void random_transfer(struct world *w, uint32_t opcode, uint64_t offset, size_t bytes)
{
    uint32_t most = io_below(&w->seed, 8) == 0 ? 2000 : 10;
    struct io_request request;

    io_init(&request, opcode, offset, bytes);
    request.io.iov = w->iov;
    request.io.iov_count =
        io_cut(&w->seed, w->data, bytes, w->iov, 1 + (uint32_t)io_below(&w->seed, most));
    io_fill(&w->seed, w->data, bytes);
    if (opcode == BLKREPL_OP_WRITE) {
        memcpy(w->model + offset, w->data, bytes);
    }
    assert_int_equal(io_run(ops, w->f.mb, &request), 0);
    assert_memory_equal(w->data, w->model + offset, bytes);
}

/* The extents cover a prefix; what is zero is zero, and holes are whole pages. */
static void random_status(struct world *w, uint64_t offset, size_t bytes)
{
    blkrepl_extent extents[6];
    uint64_t at = offset;
    int i;

    assert_int_equal(io_status(ops, w->f.mb, offset, bytes, extents, 6), 0);
    for (i = 0; i < 6 && extents[i].bytes > 0; i++) {
        uint64_t end = at + extents[i].bytes;

        assert_true(end <= offset + bytes);
        assert_true(end == offset + bytes || end % PAGE == 0);
        assert_true(i == 0 || extents[i].flags != extents[i - 1].flags);
        for (; at < end; at++) {
            assert_true(extents[i].flags == DATA || w->model[at] == 0);
        }
    }
    assert_true(i == 6 || at == offset + bytes);
}

static void random_step(struct world *w)
{
    uint64_t offset = io_below(&w->seed, BYTES + 1);
    uint64_t most = io_below(&w->seed, 4) == 0 ? BYTES : 2 * PAGE;
    size_t bytes = (size_t)io_below(&w->seed, (most < BYTES - offset ? most : BYTES - offset) + 1);

    switch (io_below(&w->seed, 6)) {
    case 0:
    case 1: random_transfer(w, BLKREPL_OP_WRITE, offset, bytes); break;
    case 2: random_transfer(w, BLKREPL_OP_READ, offset, bytes); break;
    case 3:
        assert_int_equal(
            io_plain(ops, w->f.mb,
                     io_below(&w->seed, 2) == 0 ? BLKREPL_OP_ZEROES : BLKREPL_OP_DISCARD, offset,
                     bytes, 0),
            0);
        memset(w->model + offset, 0, bytes);
        break;
    case 4: random_status(w, offset, bytes); break;
    default: assert_int_equal(io_plain(ops, w->f.mb, BLKREPL_OP_FLUSH, 0, 0, 0), 0); break;
    }
}

static void backend_memory_keeps_what_is_written(void **state)
{
    static struct world w;

    (void)state;
    memset(&w, 0, sizeof w);
    w.seed = 23;
    set_up(&w.f, BYTES);
    for (int step = 0; step < 600; step++) {
        random_step(&w);
    }
    assert_int_equal(io_data(ops, w.f.mb, BLKREPL_OP_READ, 0, w.data, BYTES), 0);
    assert_memory_equal(w.data, w.model, BYTES);
    tear_down(&w.f);
}

/* ---- Pages ----------------------------------------------------------------------------- */

static void backend_memory_takes_pages_when_written(void **state)
{
    struct fixture f;

    (void)state;
    set_up(&f, BYTES);
    expect_byte(&f, 0, 0);
    expect_byte(&f, BYTES - 1, 0);
    assert_int_equal(pages(&f), 0);
    assert_int_equal(put(&f, PAGE - 1, 2, 7), 0);
    assert_int_equal(pages(&f), 2);
    expect_byte(&f, PAGE - 2, 0);
    expect_byte(&f, PAGE - 1, 7);
    expect_byte(&f, PAGE, 7);
    expect_byte(&f, PAGE + 1, 0);
    assert_int_equal(put(&f, 0, 2 * PAGE, 8), 0);
    assert_int_equal(pages(&f), 2);
    tear_down(&f);
}

static void backend_memory_gives_zeroed_pages_back(void **state)
{
    struct fixture f;

    (void)state;
    set_up(&f, BYTES);
    assert_int_equal(put(&f, 0, 4 * PAGE, 9), 0);
    assert_int_equal(put(&f, 20 * PAGE, 321, 9), 0);
    assert_int_equal(pages(&f), 5);
    assert_int_equal(zero(&f, 1, 2 * PAGE), 0);
    assert_int_equal(pages(&f), 4);
    expect_byte(&f, 0, 9);
    expect_byte(&f, 1, 0);
    expect_byte(&f, 2 * PAGE, 0);
    expect_byte(&f, 2 * PAGE + 1, 9);
    assert_int_equal(zero(&f, 3 * PAGE + 5, 10), 0);
    expect_byte(&f, 3 * PAGE + 4, 9);
    expect_byte(&f, 3 * PAGE + 14, 0);
    expect_byte(&f, 3 * PAGE + 15, 9);
    assert_int_equal(pages(&f), 4);
    /* The last page is shorter than a page. */
    assert_int_equal(zero(&f, 20 * PAGE + 1, 320), 0);
    assert_int_equal(pages(&f), 4);
    assert_int_equal(io_plain(ops, f.mb, BLKREPL_OP_DISCARD, 20 * PAGE, 321, 0), 0);
    assert_int_equal(pages(&f), 3);
    assert_int_equal(zero(&f, 0, BYTES), 0);
    assert_int_equal(pages(&f), 0);
    assert_int_equal(zero(&f, 5, 0), 0);
    tear_down(&f);
}

static void backend_memory_can_be_huge(void **state)
{
    static const uint64_t places[] = {0, UINT64_C(1) << 40, BLKREPL_IMAGE_BYTES_MAX - 1};
    blkrepl_extent extents[8];
    struct fixture f;

    (void)state;
    set_up(&f, BLKREPL_IMAGE_BYTES_MAX);
    for (int i = 0; i < 3; i++) {
        assert_int_equal(put(&f, places[i], 1, i + 1), 0);
    }
    for (int i = 0; i < 3; i++) {
        expect_byte(&f, places[i], i + 1);
    }
    assert_int_equal(pages(&f), 3);
    assert_int_equal(io_status(ops, f.mb, 0, BLKREPL_IMAGE_BYTES_MAX, extents, 8), 0);
    expect_extent(&extents[0], PAGE, DATA);
    expect_extent(&extents[1], places[1] - PAGE, BLKREPL_EXTENT_ZERO);
    expect_extent(&extents[2], PAGE, DATA);
    expect_extent(&extents[3], (UINT64_C(1) << 63) - places[1] - 2 * PAGE, BLKREPL_EXTENT_ZERO);
    expect_extent(&extents[4], PAGE - 1, DATA);
    expect_extent(&extents[5], 0, 0);
    assert_int_equal(zero(&f, 1, BLKREPL_IMAGE_BYTES_MAX - 1), 0);
    assert_int_equal(pages(&f), 1);
    tear_down(&f);
}

static void backend_memory_status_tells_pages(void **state)
{
    blkrepl_extent extents[3];
    struct fixture f;

    (void)state;
    set_up(&f, 1000 * PAGE);
    assert_int_equal(put(&f, 500 * PAGE, 2 * PAGE, 1), 0);
    assert_int_equal(io_status(ops, f.mb, 10, 1000 * PAGE - 10, extents, 3), 0);
    expect_extent(&extents[0], 500 * PAGE - 10, BLKREPL_EXTENT_ZERO);
    expect_extent(&extents[1], 2 * PAGE, DATA);
    expect_extent(&extents[2], 498 * PAGE, BLKREPL_EXTENT_ZERO);
    assert_int_equal(io_status(ops, f.mb, 10, 1000 * PAGE - 10, extents, 1), 0);
    expect_extent(&extents[0], 500 * PAGE - 10, BLKREPL_EXTENT_ZERO);
    assert_int_equal(io_status(ops, f.mb, 501 * PAGE + 7, 10, extents, 3), 0);
    expect_extent(&extents[0], 10, DATA);
    expect_extent(&extents[1], 0, 0);
    tear_down(&f);
}

/* A disk without a page is one hole, however long. */
static void backend_memory_status_of_nothing_is_a_hole(void **state)
{
    blkrepl_extent extents[2];
    struct fixture f;

    (void)state;
    set_up(&f, BLKREPL_IMAGE_BYTES_MAX);
    assert_int_equal(io_status(ops, f.mb, 0, BLKREPL_IMAGE_BYTES_MAX, extents, 2), 0);
    expect_extent(&extents[0], BLKREPL_IMAGE_BYTES_MAX, BLKREPL_EXTENT_ZERO);
    expect_extent(&extents[1], 0, 0);
    tear_down(&f);
}

/* A long range is dropped by looking at the pages there are: those before it and
 * behind it stay. */
static void backend_memory_drops_what_lies_in_the_range_only(void **state)
{
    struct fixture f;

    (void)state;
    set_up(&f, UINT64_C(1) << 50);
    for (uint64_t page = 0; page < 40; page += 4) {
        assert_int_equal(put(&f, page * PAGE, 1, 7), 0);
    }
    assert_int_equal(zero(&f, 4 * PAGE, 31 * PAGE), 0); /* more pages than exist */
    assert_int_equal(pages(&f), 2);
    expect_byte(&f, 0, 7);
    expect_byte(&f, 4 * PAGE, 0);
    expect_byte(&f, 32 * PAGE, 0);
    expect_byte(&f, 36 * PAGE, 7);
    tear_down(&f);
}

static void backend_memory_finds_all_of_many_pages(void **state)
{
    struct fixture f;
    uint64_t seed = 9;

    (void)state;
    set_up(&f, UINT64_C(1) << 50);
    for (int i = 0; i < 500; i++) {
        assert_int_equal(put(&f, io_below(&seed, UINT64_C(1) << 50), 1, i % 255 + 1), 0);
    }
    assert_int_equal(pages(&f), 500);
    seed = 9;
    for (int i = 0; i < 500; i++) {
        expect_byte(&f, io_below(&seed, UINT64_C(1) << 50), i % 255 + 1);
    }
    tear_down(&f);
}

/* ---- No memory --------------------------------------------------------------------------- */

static void backend_memory_without_memory_is_not_created(void **state)
{
    struct fixture f;

    (void)state;
    for (long n = 1; n <= 2; n++) {
        alloc_up(&f);
        f.budget.until_failure = n;
        assert_int_equal(blkrepl__memory_backend_create(io_context(), &f.alloc, BYTES, &f.mb),
                         -ENOMEM);
        assert_int_equal(f.budget.live, 0);
    }
    alloc_up(&f);
    assert_int_equal(
        blkrepl__memory_backend_create(io_context(), &f.alloc, UINT64_C(1) << 63, &f.mb), -EINVAL);
    assert_int_equal(f.budget.live, 0);
#ifdef __linux__
    mutex_fault = (struct fault){.err = ENOMEM, .times = 1};
    assert_int_equal(blkrepl__memory_backend_create(io_context(), &f.alloc, BYTES, &f.mb), -ENOMEM);
    assert_int_equal(f.budget.live, 0);
#endif
    blkrepl__memory_backend_discard(NULL);
}

/* Wherever an allocation fails, that write fails or the table stays small; what
 * was there before stays, and a second try succeeds. */
static void backend_memory_survives_every_failing_allocation(void **state)
{
    struct fixture f;

    (void)state;
    for (long n = 1; n <= 40; n++) {
        int failed = 0;

        set_up(&f, 100 * PAGE);
        f.budget.until_failure = n;
        for (unsigned page = 0; page < 34; page++) {
            int rc = put(&f, page * PAGE + 5, 10, (int)page + 1);

            if (rc != 0) {
                assert_int_equal(rc, -ENOMEM);
                failed++;
                assert_int_equal(put(&f, page * PAGE + 5, 10, (int)page + 1), 0);
            }
        }
        assert_true(failed <= 1);
        for (unsigned page = 0; page < 34; page++) {
            expect_byte(&f, page * PAGE + 14, (int)page + 1);
            expect_byte(&f, page * PAGE + 15, 0);
        }
        assert_int_equal(pages(&f), 34);
        tear_down(&f);
    }
}

static void backend_memory_writes_up_to_the_missing_page(void **state)
{
    struct fixture f;

    (void)state;
    set_up(&f, BYTES);
    f.budget.until_failure = 2;
    assert_int_equal(put(&f, PAGE / 2, 2 * PAGE, 5), -ENOMEM);
    expect_byte(&f, PAGE - 1, 5);
    expect_byte(&f, PAGE, 0);
    assert_int_equal(pages(&f), 1);
    tear_down(&f);
}

/* ---- The rest ----------------------------------------------------------------------------- */

/* Every alignment of two ranges, over pages that are there and such that are not. */
static void backend_memory_copies_from_another(void **state)
{
    static const uint64_t offsets[] = {0, 1, PAGE - 1, PAGE, 3 * PAGE + 7};
    static const uint64_t lengths[] = {0, 1, 4096, PAGE, PAGE + 1, 3 * PAGE - 2};
    static unsigned char from[BYTES];
    static unsigned char to[BYTES];
    static unsigned char data[BYTES];
    uint64_t seed = 9;
    struct fixture a;
    struct fixture b;

    (void)state;
    set_up(&a, BYTES);
    set_up(&b, BYTES);
    io_fill(&seed, from, 2 * PAGE);
    io_fill(&seed, from + 4 * PAGE, PAGE);
    assert_int_equal(io_data(ops, a.mb, BLKREPL_OP_WRITE, 0, from, 2 * PAGE), 0);
    assert_int_equal(io_data(ops, a.mb, BLKREPL_OP_WRITE, 4 * PAGE, from + 4 * PAGE, PAGE), 0);
    for (unsigned i = 0; i < 5 * 5 * 6 * 2; i++) {
        uint64_t in = offsets[i % 5];
        uint64_t out = offsets[i / 5 % 5];
        uint64_t bytes = lengths[i / 25 % 6];
        bool back = i >= 150; /* the other way round: the locks in the other order */

        if (i == 75) { /* over something */
            io_fill(&seed, to, BYTES);
            assert_int_equal(io_data(ops, b.mb, BLKREPL_OP_WRITE, 0, to, BYTES), 0);
        }
        assert_int_equal(io_copy(ops, back ? a.mb : b.mb, back ? b.mb : a.mb, in, out, bytes), 0);
        memcpy((back ? from : to) + out, (back ? to : from) + in, bytes);
        assert_int_equal(io_data(ops, a.mb, BLKREPL_OP_READ, 0, data, BYTES), 0);
        assert_memory_equal(data, from, BYTES);
        assert_int_equal(io_data(ops, b.mb, BLKREPL_OP_READ, 0, data, BYTES), 0);
        assert_memory_equal(data, to, BYTES);
    }
    tear_down(&a);
    tear_down(&b);
}

/* Holes stay holes where nothing was; without memory it fails. */
static void backend_memory_copies_no_holes(void **state)
{
    struct fixture a;
    struct fixture b;

    (void)state;
    set_up(&a, BYTES);
    set_up(&b, BYTES);
    assert_int_equal(put(&a, PAGE, 1, 7), 0);
    assert_int_equal(io_copy(ops, b.mb, a.mb, 0, 0, 4 * PAGE), 0);
    assert_int_equal(pages(&b), 1);
    b.budget.until_failure = 1;
    assert_int_equal(io_copy(ops, b.mb, a.mb, PAGE, 5 * PAGE, 4096), -ENOMEM);
    b.budget.until_failure = 0;
    assert_int_equal(io_copy(ops, b.mb, a.mb, PAGE, 5 * PAGE, 4096), 0);
    assert_int_equal(pages(&b), 2);
    tear_down(&a);
    tear_down(&b);
}

static void backend_memory_describes_itself(void **state)
{
    blkrepl_backend_info info = {.struct_size = sizeof info};
    struct fixture f;

    (void)state;
    set_up(&f, BYTES);
    assert_int_equal(ops->get_info(f.mb, &info), 0);
    assert_int_equal(info.struct_size, sizeof info);
    assert_int_equal(info.bytes, BYTES);
    assert_int_equal(info.flags, BLKREPL_BACKEND_FUA);
    assert_int_equal(info.opcodes, 0xfe);
    assert_non_null(info.copy_domain);
    assert_null(ops->cancel);
    assert_int_equal(io_plain(ops, f.mb, BLKREPL_OP_RESIZE, 0, 0, 0), -ENOTSUP);
    tear_down(&f);
    set_up(&f, 0);
    assert_int_equal(io_plain(ops, f.mb, BLKREPL_OP_READ, 0, 0, 0), 0);
    assert_int_equal(zero(&f, 0, 0), 0);
    tear_down(&f);
}

#define CROWD 4

struct member {
    struct fixture *f;
    uint64_t seed;
    unsigned first; /* page */
    int wrong;
};

static void *member_run(void *arg)
{
    struct member *m = arg;
    unsigned char data[100];
    unsigned char model[100];

    for (int i = 0; i < 500; i++) {
        uint64_t offset =
            (m->first + io_below(&m->seed, 8) * CROWD) * PAGE + io_below(&m->seed, 999);

        memset(data, i, sizeof data);
        memset(model, i, sizeof model);
        m->wrong |= io_data(ops, m->f->mb, BLKREPL_OP_WRITE, offset, data, sizeof data);
        memset(data, 0xee, sizeof data);
        m->wrong |= io_data(ops, m->f->mb, BLKREPL_OP_READ, offset, data, sizeof data);
        m->wrong |= memcmp(data, model, sizeof data);
        m->wrong |= i % 3 == 0 ? zero(m->f, offset / PAGE * PAGE, PAGE) : 0;
    }
    return NULL;
}

static void backend_memory_serves_many_threads(void **state)
{
    pthread_t ids[CROWD];
    struct member members[CROWD];
    struct fixture f;

    (void)state;
    set_up(&f, 100 * PAGE);
    for (unsigned i = 0; i < CROWD; i++) {
        members[i] = (struct member){.f = &f, .seed = i + 1, .first = i};
        assert_int_equal(pthread_create(&ids[i], NULL, member_run, &members[i]), 0);
    }
    for (unsigned i = 0; i < CROWD; i++) {
        pthread_join(ids[i], NULL);
        assert_int_equal(members[i].wrong, 0);
    }
    tear_down(&f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(backend_memory_keeps_what_is_written),
        cmocka_unit_test(backend_memory_takes_pages_when_written),
        cmocka_unit_test(backend_memory_gives_zeroed_pages_back),
        cmocka_unit_test(backend_memory_can_be_huge),
        cmocka_unit_test(backend_memory_status_tells_pages),
        cmocka_unit_test(backend_memory_status_of_nothing_is_a_hole),
        cmocka_unit_test(backend_memory_drops_what_lies_in_the_range_only),
        cmocka_unit_test(backend_memory_finds_all_of_many_pages),
        cmocka_unit_test(backend_memory_without_memory_is_not_created),
        cmocka_unit_test(backend_memory_survives_every_failing_allocation),
        cmocka_unit_test(backend_memory_writes_up_to_the_missing_page),
        cmocka_unit_test(backend_memory_copies_from_another),
        cmocka_unit_test(backend_memory_copies_no_holes),
        cmocka_unit_test(backend_memory_describes_itself),
        cmocka_unit_test(backend_memory_serves_many_threads),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
