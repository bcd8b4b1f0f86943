/* SPDX-License-Identifier: MIT */
/* options_context.c - contexts with options from the input. */
#include "options.h"

#include "base/abi.h"

#include <stdlib.h>

#define COUNT_MOST 65536
#define LANES_MOST 256
#define REQUESTS_MOST (UINT64_C(1) << 24)
#define POOL_THREADS_MOST 64
#define PROBE_MAX 2048

static const struct field context_fields[] = {
    FIELD(blkrepl_context_options, requests_max, FIELD_U32),
    FIELD(blkrepl_context_options, callbacks_max, FIELD_U32),
    FIELD(blkrepl_context_options, completions_max, FIELD_U32),
    FIELD(blkrepl_context_options, copies_max, FIELD_U32),
    FIELD(blkrepl_context_options, job_requests_max, FIELD_U32),
    FIELD(blkrepl_context_options, memory_bytes_max, FIELD_U64),
    FIELD(blkrepl_context_options, pool_threads_max, FIELD_U32),
    FIELD(blkrepl_context_options, lane_count, FIELD_U32),
    FIELD(blkrepl_context_options, flags, FIELD_U32),
    FIELD(blkrepl_context_options, reserved0, FIELD_U32),
    FIELD(blkrepl_context_options, reserved1, FIELD_POINTER),
};
static const struct field allocator_fields[] = {
    FIELD(blkrepl_allocator, flags, FIELD_U32),
    FIELD(blkrepl_allocator, reserved0, FIELD_POINTER),
};
static const struct field hooks_fields[] = {
    FIELD(blkrepl_hooks, flags, FIELD_U32),
};

static const struct shape context_shape =
    SHAPE(blkrepl_context_options, BLKREPL_CONTEXT_OPTIONS_V1_BYTES, context_fields);
static const struct shape allocator_shape =
    SHAPE(blkrepl_allocator, BLKREPL_ALLOCATOR_V1_BYTES, allocator_fields);
static const struct shape hooks_shape = SHAPE(blkrepl_hooks, BLKREPL_HOOKS_V1_BYTES, hooks_fields);

/* A context under examination. */
struct subject {
    blkrepl_context_options typed;
    struct packed options;
    struct packed allocator;
    struct packed hooks;
    struct release *sink;
    bool clocked;
    struct verdict verdict;
};

static unsigned rooms;
static int entropy_code;

static void subject_event(void *user, const blkrepl_event *event)
{
    EXPECT(((struct release *)user)->count == 0, "no event after the sink's release");
    EXPECT(event->struct_size >= sizeof *event && event->type == BLKREPL_EVENT_ROOM &&
               event->object_kind == BLKREPL_OBJECT_LANE && event->object_id == 0 &&
               event->count >= 1 && event->user == NULL,
           "a ROOM of lane 0, got type %u", (unsigned)event->type);
    rooms++;
}

static int subject_entropy(void *user, void *out, size_t bytes)
{
    (void)user;
    memset(out, 1, bytes);
    return entropy_code;
}

/* Take away at most one of the functions. */
static bool allocator_cripple(blkrepl_allocator *allocator)
{
    switch (take_below(32)) {
    case 1: allocator->alloc = NULL; return true;
    case 2: allocator->zalloc = NULL; return true;
    case 3: allocator->realloc = NULL; return true;
    case 4: allocator->free = NULL; return true;
    case 5: allocator->buffer_alloc = NULL; return true;
    case 6: allocator->buffer_free = NULL; return true;
    default: return false;
    }
}

static void draw_allocator(struct subject *s)
{
    blkrepl_allocator allocator = heap_allocator();
    bool crippled;

    shape_draw(&allocator_shape, &allocator);
    crippled = allocator_cripple(&allocator);
    s->allocator = shape_pack(&allocator_shape, &allocator, true);
    verdict_add_packing(&s->verdict, &s->allocator);
    verdict_add_if(&s->verdict,
                   s->allocator.packing != PACKED_NULL &&
                       (crippled || allocator.flags != 0 || allocator.reserved0 != NULL),
                   -EINVAL);
}

static void draw_hooks(struct subject *s)
{
    blkrepl_hooks hooks = fuzz_hooks();
    uint32_t missing = take_below(8);

    entropy_code = take_chance(6) ? take_code() : 0;
    hooks.entropy = subject_entropy;
    hooks.clock_ns = missing == 1 ? NULL : hooks.clock_ns;
    hooks.entropy = missing == 2 ? NULL : hooks.entropy;
    hooks.log = missing == 3 ? NULL : hooks.log;
    shape_draw(&hooks_shape, &hooks);
    s->hooks = shape_pack(&hooks_shape, &hooks, true);
    s->clocked = s->hooks.packing == PACKED_WELL && hooks.clock_ns != NULL;
    verdict_add_packing(&s->verdict, &s->hooks);
    if (s->hooks.packing != PACKED_NULL) {
        verdict_add_if(&s->verdict, hooks.flags != 0, -EINVAL);
        verdict_add_if(&s->verdict, hooks.entropy != NULL && entropy_code < 0, entropy_code);
    }
}

static void draw_options(struct subject *s)
{
    blkrepl_context_options *o = &s->typed;

    if (!take_chance(10)) {
        /* The defaults take megabytes, which take time. */
        o->requests_max = 1 + take_below(40);
        o->job_requests_max = 1;
    }
    shape_draw(&context_shape, o);
    o->allocator = s->allocator.memory;
    o->hooks = s->hooks.memory;
    s->sink = release_new();
    if (s->sink != NULL) {
        o->on_event = (blkrepl_event_sink){.user = s->sink, .release = release_run};
        o->on_event.fn = take_chance(20) ? NULL : subject_event;
    }
    s->options = shape_pack(&context_shape, o, false);
    verdict_add_packing(&s->verdict, &s->options);
    verdict_add_if(&s->verdict, o->flags != 0 || o->reserved0 != 0 || o->reserved1 != NULL,
                   -EINVAL);
    verdict_add_if(&s->verdict,
                   o->requests_max > COUNT_MOST || o->job_requests_max > COUNT_MOST ||
                       o->callbacks_max > COUNT_MOST || o->completions_max > COUNT_MOST ||
                       o->copies_max > COUNT_MOST || o->pool_threads_max > POOL_THREADS_MOST,
                   -EINVAL);
    verdict_add_if(&s->verdict,
                   o->lane_count > LANES_MOST ||
                       (uint64_t)(o->lane_count != 0 ? o->lane_count : 1) *
                                   (o->requests_max != 0 ? o->requests_max : 1024) +
                               (o->job_requests_max != 0 ? o->job_requests_max : 8192) >
                           REQUESTS_MOST,
                   -EINVAL);
}

/* ---- Whether what was accepted is what was asked for ------------------------- */

static void go_never(void *user, int result)
{
    (void)user;
    EXPECT(false, "no go after a GO, got %d", result);
}

/* As many brackets as the context takes. */
static void probe_requests(const struct subject *s, blkrepl_context *ctx, blkrepl_image *image)
{
    static uint64_t tokens[PROBE_MAX];
    blkrepl_bracket what = {.struct_size = sizeof what, .opcode = BLKREPL_OP_WRITE};
    blkrepl_completion go = {.fn = go_never};
    uint32_t most = s->typed.requests_max != 0 ? s->typed.requests_max : 1024;
    uint32_t count = 0;
    int rc = 0;

    while (count < PROBE_MAX && rc == 0) {
        rc = blkrepl_write_begin(image, &what, &go, &tokens[count]);
        count += rc == 0;
    }
    EXPECT(rc == (count < PROBE_MAX ? -EAGAIN : 0) && (count == most || most > PROBE_MAX),
           "%u requests, then -EAGAIN, got %u, then %d", (unsigned)most, (unsigned)count, rc);
    for (uint32_t i = 0; i < count; i++) {
        EXPECT(blkrepl_write_end(ctx, tokens[i], 0, NULL, 0, NULL) == 0, "a bracket to end");
    }
    rooms = 0;
    EXPECT(blkrepl_poll(ctx, 0, 0) >= 0, "a poll");
    EXPECT(rooms == (rc < 0 && s->typed.on_event.fn != NULL), "a ROOM after -EAGAIN, got %u",
           rooms);
}

static void probe_called(void *user, int result)
{
    EXPECT(result == 0, "a flush to succeed, got %d", result);
    ++*(uint32_t *)user;
}

/* Polls that run no more callbacks than they may. */
static void probe_callbacks(const struct subject *s, blkrepl_context *ctx, blkrepl_image *image)
{
    uint32_t requests = s->typed.requests_max != 0 ? s->typed.requests_max : 1024;
    uint32_t most = s->typed.callbacks_max != 0 ? s->typed.callbacks_max : 256;
    uint32_t count = 0;
    blkrepl_completion done = {.fn = probe_called, .user = &count};
    uint32_t given = requests < 300 ? requests : 300;

    for (uint32_t i = 0; i < given; i++) {
        EXPECT(blkrepl_image_flush(image, 0, &done) == 0, "a flush to be accepted");
    }
    while (count < given) {
        uint32_t before = count;
        int rc = blkrepl_poll(ctx, 0, 0);

        EXPECT(rc > 0 && (uint32_t)rc <= most && count - before == (uint32_t)rc,
               "a poll of 1 to %u callbacks, got %d and %u", (unsigned)most, rc,
               (unsigned)(count - before));
    }
}

static void probe_timeout(const struct subject *s, blkrepl_context *ctx)
{
    int rc;

    if (s->clocked) {
        call_begin();
        rc = blkrepl_poll(ctx, 0, take_u8() + UINT64_C(1));
        call_end(rc, "a poll that would sleep");
        EXPECT(rc == -EINVAL, "no sleeping poll with a clock of the host, got %d", rc);
        EXPECT(blkrepl_context_now(ctx) == clock_now, "the time of the host's clock");
    }
}

static void probe(const struct subject *s, blkrepl_context *ctx)
{
    blkrepl_image *image;
    int rc = blkrepl_image_open_memory(ctx, 64 * KIB, NULL, &image);

    if (rc == -ENOMEM && heap.refused) {
        return;
    }
    EXPECT(rc == 0, "an image in memory to open, got %d", rc);
    probe_timeout(s, ctx);
    probe_requests(s, ctx, image);
    probe_callbacks(s, ctx, image);
    heap_watch(0);
    image_round_trip(ctx, image, 1000, 5000);
    blkrepl_image_close(image);
}

static void subject_expect_released(const struct subject *s)
{
    if (s->sink == NULL) {
        return;
    }
    if (!packed_readable(&s->options)) {
        EXPECT(s->sink->count == 0, "no release from a struct that is too short");
        release_run(s->sink);
    }
    EXPECT(s->sink->count == 1, "the sink to be released once, got %u", s->sink->count);
}

void act_context(void)
{
    struct subject s = {.typed = {.struct_size = 0}};
    uint64_t live = heap.live;
    blkrepl_context *ctx = NULL;
    int rc;

    draw_allocator(&s);
    draw_hooks(&s);
    draw_options(&s);
    heap_watch(take_chance(10) ? 1u + take_below(6) : 0);
    ctx = (blkrepl_context *)&s;
    call_begin();
    rc = blkrepl_context_create(s.options.memory, &ctx);
    verdict_add_if(&s.verdict, heap.refused && rc != 0, -ENOMEM);
    call_end_as(rc, &s.verdict, "context_create");
    packed_free(&s.options);
    packed_free(&s.allocator);
    packed_free(&s.hooks);
    if (rc == 0) {
        EXPECT(ctx != NULL, "a context");
        probe(&s, ctx);
        EXPECT(s.sink == NULL || s.sink->count == 0, "the sink not to be released yet");
        context_expect_freed(ctx);
    } else {
        EXPECT(ctx == NULL, "no context from a create that failed");
        bench_refused();
    }
    subject_expect_released(&s);
    EXPECT(heap.live == live || rc < 0, "all memory of the context back");
}
