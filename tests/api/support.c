/* SPDX-License-Identifier: MIT */
#include "support.h"

#define ROUNDS_MAX 200000
#define POISON_BYTES 4096
#define POISON_FREED_BYTES 16384

static _Atomic uint64_t order_next = 1;

void assert_code(int got, int want, const char *what, const char *file, int line)
{
    if (got != want) {
        print_error("%s is %d (%s), not %d (%s); last message: \"%s\"\n", what, got,
                    blkrepl_error_text(got), want, blkrepl_error_text(want),
                    blkrepl_error_message());
        _fail(file, line);
    }
}

bool quick(void)
{
    const char *set = getenv("BLKREPL_TEST_QUICK");

    return set && *set && strcmp(set, "0") != 0;
}

/* ---- Random numbers -------------------------------------------------------- */

/* splitmix64 */
uint64_t rng_below(struct rng *rng, uint64_t below)
{
    rng->state += UINT64_C(0x9e3779b97f4a7c15);
    uint64_t z = rng->state;

    z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
    z ^= z >> 31;
    return below ? z % below : 0;
}

bool rng_percent(struct rng *rng, unsigned percent)
{
    return rng_below(rng, 100) < percent;
}

void fill(void *out, size_t bytes, uint64_t offset, unsigned tag)
{
    uint8_t *p = out;

    for (size_t i = 0; i < bytes; i++) {
        uint64_t at = offset + i;

        p[i] = (uint8_t)(at * 29 + (at >> 8) * 7 + (at >> 16) * 3 + tag * 101u + 1);
    }
}

bool all_zero(const void *memory, size_t bytes)
{
    const uint8_t *p = memory;

    for (size_t i = 0; i < bytes; i++) {
        if (p[i]) {
            return false;
        }
    }
    return true;
}

/* ---- Memory ---------------------------------------------------------------- */

/* In front of every block; keeps its place by pointing back to the start. */
struct block {
    void *start;
    size_t bytes;
};

static bool heap_refuses(struct heap *heap)
{
    pthread_mutex_lock(&heap->lock);
    heap->calls++;
    bool refuse = heap->fail_at &&
                  (heap->calls == heap->fail_at || (heap->fail_on && heap->calls > heap->fail_at));
    if (!refuse) {
        heap->live++;
    }
    pthread_mutex_unlock(&heap->lock);
    return refuse;
}

static void heap_ends(struct heap *heap, bool misuse)
{
    pthread_mutex_lock(&heap->lock);
    heap->live--;
    heap->misuse += misuse;
    pthread_mutex_unlock(&heap->lock);
}

static void heap_misuse(struct heap *heap)
{
    pthread_mutex_lock(&heap->lock);
    heap->misuse++;
    pthread_mutex_unlock(&heap->lock);
}

static void *heap_take(struct heap *heap, size_t align, size_t bytes, bool zero)
{
    size_t front = align > sizeof(struct block) ? align : sizeof(struct block);

    if (heap_refuses(heap)) {
        return NULL;
    }
    uint8_t *start = zero ? calloc(1, front + align + bytes) : malloc(front + align + bytes);
    assert_non_null(start);

    uintptr_t place = ((uintptr_t)start + front + align - 1) / align * align;
    struct block block = {.start = start, .bytes = bytes};
    uint8_t *memory = start + (place - (uintptr_t)start);

    if (!zero) {
        memset(memory, 0xa5, bytes < POISON_BYTES ? bytes : POISON_BYTES);
    }
    memcpy(memory - sizeof block, &block, sizeof block);
    return memory;
}

static void *heap_alloc(void *user, size_t bytes)
{
    return heap_take(user, 16, bytes, false);
}

static void *heap_zalloc(void *user, size_t bytes)
{
    return heap_take(user, 16, bytes, true);
}

static void heap_free(void *user, void *memory)
{
    struct block block;

    if (memory) {
        memcpy(&block, (uint8_t *)memory - sizeof block, sizeof block);
        /* Whoever still looks there is to stumble. */
        memset(memory, 0xdd, block.bytes < POISON_FREED_BYTES ? block.bytes : POISON_FREED_BYTES);
        free(block.start);
        heap_ends(user, false);
    }
}

static void *heap_realloc(void *user, void *memory, size_t bytes)
{
    struct block block = {0};
    void *larger = heap_take(user, 16, bytes, false);

    if (larger && memory) {
        memcpy(&block, (uint8_t *)memory - sizeof block, sizeof block);
        memcpy(larger, memory, block.bytes < bytes ? block.bytes : bytes);
        heap_free(user, memory);
    }
    return larger;
}

static void *heap_buffer_alloc(void *user, size_t align, size_t bytes)
{
    if (align == 0 || (align & (align - 1)) != 0) {
        heap_misuse(user);
        return NULL;
    }
    return heap_take(user, align < 16 ? 16 : align, bytes, false);
}

static void heap_buffer_free(void *user, void *memory, size_t bytes)
{
    struct block block;

    if (memory) {
        memcpy(&block, (uint8_t *)memory - sizeof block, sizeof block);
        free(block.start);
        heap_ends(user, block.bytes != bytes);
    }
}

blkrepl_allocator heap_allocator(struct heap *heap)
{
    return (blkrepl_allocator){
        .struct_size = sizeof(blkrepl_allocator),
        .user = heap,
        .alloc = heap_alloc,
        .zalloc = heap_zalloc,
        .realloc = heap_realloc,
        .free = heap_free,
        .buffer_alloc = heap_buffer_alloc,
        .buffer_free = heap_buffer_free,
    };
}

/* ---- A context under watch -------------------------------------------------- */

static uint64_t env_clock(void *user)
{
    struct env *env = user;

    return atomic_load(&env->now);
}

static int env_entropy(void *user, void *out, size_t bytes)
{
    struct env *env = user;
    struct rng rng = {.state = env->entropy++};

    for (size_t i = 0; i < bytes; i++) {
        ((uint8_t *)out)[i] = (uint8_t)rng_below(&rng, 256);
    }
    return 0;
}

static void env_take_event(void *user, const blkrepl_event *event)
{
    struct env *env = user;

    if (env->event_count < EVENTS_KEPT) {
        env->events[env->event_count] = *event;
    }
    env->event_count++;
    if (env->on_event) {
        env->on_event(env, event);
    }
}

static void env_sink_release(void *user)
{
    struct env *env = user;

    env->sink_released++;
}

blkrepl_context_options env_options(struct env *env, const blkrepl_context_options *base,
                                    unsigned flags, blkrepl_hooks *hooks,
                                    blkrepl_allocator *allocator)
{
    blkrepl_context_options o = {.struct_size = sizeof o};

    if (base) {
        o = *base;
        o.struct_size = sizeof o;
    }
    *hooks = (blkrepl_hooks){.struct_size = sizeof *hooks, .user = env, .entropy = env_entropy};
    if (!(flags & ENV_REAL_CLOCK)) {
        hooks->clock_ns = env_clock;
    }
    *allocator = heap_allocator(&env->heap);
    o.hooks = hooks;
    o.allocator = flags & ENV_PLAIN_MEMORY ? NULL : allocator;
    o.on_event = (blkrepl_event_sink){env_take_event, env, env_sink_release};
    env->flags = flags;
    return o;
}

static void env_clear(struct env *env)
{
    memset(env, 0, sizeof *env);
    pthread_mutex_init(&env->heap.lock, NULL);
    atomic_init(&env->now, SECOND);
    env->entropy = 7;
}

void env_open(struct env *env, const blkrepl_context_options *base, unsigned flags)
{
    blkrepl_hooks hooks;
    blkrepl_allocator allocator;

    env_clear(env);
    blkrepl_context_options o = env_options(env, base, flags, &hooks, &allocator);
    ASSERT_CODE(blkrepl_context_create(&o, &env->ctx), 0);
    assert_non_null(env->ctx);
}

void env_close(struct env *env)
{
    uint64_t wait = env->flags & ENV_REAL_CLOCK ? 1000000 : 0;
    int rc = -EBUSY;

    env->heap.fail_at = 0;
    for (int i = 0; i < 10000; i++) {
        rc = blkrepl_context_free(env->ctx);
        if (rc != -EBUSY) {
            break;
        }
        blkrepl_poll(env->ctx, 0, wait);
    }
    ASSERT_CODE(rc, 0);
    assert_int_equal(env->sink_released, 1);
    assert_int_equal(env->heap.live, 0);
    assert_int_equal(env->heap.misuse, 0);
    pthread_mutex_destroy(&env->heap.lock);
}

int lane_drain(struct env *env, uint32_t lane)
{
    uint64_t deadline = 0;
    int callbacks = 0;

    for (int i = 0; i < ROUNDS_MAX; i++) {
        int n = blkrepl_poll(env->ctx, lane, 0);
        if (n < 0) {
            fail_msg("poll of lane %u: %d", lane, n);
        }
        callbacks += n;
        int armed = blkrepl_poll_arm(env->ctx, lane, &deadline);
        if (armed < 0) {
            fail_msg("poll_arm of lane %u: %d", lane, armed);
        }
        if (n == 0 && armed == 0) {
            return callbacks;
        }
    }
    fail_msg("after %d polls of lane %u there is still work", ROUNDS_MAX, lane);
    return callbacks;
}

int env_drain(struct env *env)
{
    return lane_drain(env, 0);
}

void env_advance(struct env *env, uint64_t ns)
{
    atomic_fetch_add(&env->now, ns);
    env_drain(env);
}

uint64_t env_deadline(struct env *env)
{
    uint64_t deadline = 0;

    env_drain(env);
    ASSERT_CODE(blkrepl_poll_arm(env->ctx, 0, &deadline), 0);
    return deadline;
}

const blkrepl_event *env_event(const struct env *env, uint32_t type, uint64_t object_id, size_t nth)
{
    size_t kept = env->event_count < EVENTS_KEPT ? env->event_count : EVENTS_KEPT;

    for (size_t i = 0; i < kept; i++) {
        const blkrepl_event *e = &env->events[i];

        if (e->type == type && e->object_id == object_id && nth-- == 0) {
            return e;
        }
    }
    return NULL;
}

size_t env_count(const struct env *env, uint32_t type, uint64_t object_id)
{
    size_t n = 0;

    while (env_event(env, type, object_id, n)) {
        n++;
    }
    return n;
}

/* ---- Requests --------------------------------------------------------------- */

static void req_done(void *user, int result)
{
    struct req *req = user;

    req->calls++;
    req->early = req->early || req->released > 0;
    req->result = result;
    req->order = atomic_fetch_add(&order_next, 1);
    if (req->then) {
        req->then(req);
    }
}

static void req_release(void *user)
{
    struct req *req = user;

    req->released++;
}

blkrepl_completion req_completion(struct req *req)
{
    return (blkrepl_completion){req_done, req, req_release};
}

void req_reset(struct req *req)
{
    void (*then)(struct req *) = req->then;
    void *then_user = req->then_user;

    memset(req, 0, sizeof *req);
    req->then = then;
    req->then_user = then_user;
}

int lane_read(struct req *req, blkrepl_image *image, uint32_t lane, uint64_t offset, void *out,
              size_t bytes)
{
    req_reset(req);
    req->iov = (blkrepl_iovec){out, bytes};
    blkrepl_completion done = req_completion(req);
    return blkrepl_image_read(image, lane, offset, &req->iov, 1, 0, &done);
}

int lane_write(struct req *req, blkrepl_image *image, uint32_t lane, uint64_t offset,
               const void *data, size_t bytes)
{
    req_reset(req);
    req->iov = (blkrepl_iovec){(void *)(uintptr_t)data, bytes};
    blkrepl_completion done = req_completion(req);
    return blkrepl_image_write(image, lane, offset, &req->iov, 1, 0, &done);
}

int lane_zeroes(struct req *req, blkrepl_image *image, uint32_t lane, uint64_t offset,
                uint64_t bytes)
{
    req_reset(req);
    blkrepl_completion done = req_completion(req);
    return blkrepl_image_write_zeroes(image, lane, offset, bytes, BLKREPL_IO_MAY_UNMAP, &done);
}

int lane_discard(struct req *req, blkrepl_image *image, uint32_t lane, uint64_t offset,
                 uint64_t bytes)
{
    req_reset(req);
    blkrepl_completion done = req_completion(req);
    return blkrepl_image_discard(image, lane, offset, bytes, 0, &done);
}

int lane_flush(struct req *req, blkrepl_image *image, uint32_t lane)
{
    req_reset(req);
    blkrepl_completion done = req_completion(req);
    return blkrepl_image_flush(image, lane, &done);
}

int req_read(struct req *req, blkrepl_image *image, uint64_t offset, void *out, size_t bytes)
{
    return lane_read(req, image, 0, offset, out, bytes);
}

int req_write(struct req *req, blkrepl_image *image, uint64_t offset, const void *data,
              size_t bytes)
{
    return lane_write(req, image, 0, offset, data, bytes);
}

int req_zeroes(struct req *req, blkrepl_image *image, uint64_t offset, uint64_t bytes)
{
    return lane_zeroes(req, image, 0, offset, bytes);
}

int req_discard(struct req *req, blkrepl_image *image, uint64_t offset, uint64_t bytes)
{
    return lane_discard(req, image, 0, offset, bytes);
}

int req_flush(struct req *req, blkrepl_image *image)
{
    return lane_flush(req, image, 0);
}

void req_assert_done(const struct req *req, int result)
{
    assert_int_equal(req->calls, 1);
    ASSERT_CODE(req->result, result);
    assert_int_equal(req->released, 1);
    assert_false(req->early);
}

void req_assert_rejected(const struct req *req)
{
    assert_int_equal(req->calls, 0);
    assert_int_equal(req->released, 1);
}

int read_now(struct env *env, blkrepl_image *image, uint64_t offset, void *out, size_t bytes)
{
    struct req req = {0};
    int rc = req_read(&req, image, offset, out, bytes);

    if (rc < 0) {
        return rc;
    }
    env_drain(env);
    assert_int_equal(req.calls, 1);
    return req.result;
}

int write_now(struct env *env, blkrepl_image *image, uint64_t offset, const void *data,
              size_t bytes)
{
    struct req req = {0};
    int rc = req_write(&req, image, offset, data, bytes);

    if (rc < 0) {
        return rc;
    }
    env_drain(env);
    assert_int_equal(req.calls, 1);
    return req.result;
}

/* ---- Brackets ----------------------------------------------------------------- */

int lane_begin(struct bracket *b, blkrepl_image *image, uint32_t lane, uint32_t opcode,
               uint64_t offset, uint64_t bytes)
{
    blkrepl_bracket what = {.struct_size = sizeof what,
                            .opcode = opcode,
                            .offset = offset,
                            .bytes = bytes,
                            .lane = lane};

    req_reset(&b->go);
    blkrepl_completion go = req_completion(&b->go);
    b->opcode = opcode;
    b->offset = offset;
    b->bytes = bytes;
    b->token = UINT64_MAX;
    b->answer = blkrepl_write_begin(image, &what, &go, &b->token);
    return b->answer;
}

int bracket_begin(struct bracket *b, blkrepl_image *image, uint32_t opcode, uint64_t offset,
                  uint64_t bytes)
{
    return lane_begin(b, image, 0, opcode, offset, bytes);
}

bool bracket_may_go(const struct bracket *b)
{
    return b->answer == 0 || (b->answer == BLKREPL_WAIT && b->go.calls == 1 && b->go.result == 0);
}

/* ---- Jobs ---------------------------------------------------------------------- */

blkrepl_job_info job_info(blkrepl_job *job)
{
    blkrepl_job_info info = {.struct_size = sizeof info};

    ASSERT_CODE(blkrepl_job_query(job, &info), 0);
    return info;
}

blkrepl_image_info image_info(blkrepl_image *image)
{
    blkrepl_image_info info = {.struct_size = sizeof info};

    ASSERT_CODE(blkrepl_image_query(image, &info), 0);
    return info;
}
