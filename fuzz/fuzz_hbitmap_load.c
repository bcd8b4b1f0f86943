/* SPDX-License-Identifier: MIT */
/* fuzz_hbitmap_load.c - the wire form and the public functions of bitmaps, with
 * hostile arguments.
 *
 * For each call the harness knows from bitmap.h which answers are right, and what
 * the bitmap is then: a refused call has changed nothing, in the middle of a load
 * everything but loading is refused, and nothing is ever dirty beyond the end. */
#include "load.h"

#include <stdlib.h>

#define STEPS_MAX 60
#define ROUNDS_MAX 1000
#define GRANULES_MAX 9000

struct bench bench;

/* ---- What the calls share ---------------------------------------------------- */

unsigned subject_number(const struct subject *s)
{
    return (unsigned)(s - bench.subjects);
}

blkrepl_bitmap *handle_draw(const struct subject *s, struct verdict *verdict)
{
    if (take_chance(2)) {
        verdict_add(verdict, -EINVAL);
        return NULL;
    }
    return s->handle;
}

void verdict_add_states(struct verdict *verdict, const struct subject *s)
{
    if (s->frozen) {
        verdict_add(verdict, -EBUSY);
    } else {
        verdict_add_loading(verdict, s);
    }
}

void verdict_add_loading(struct verdict *verdict, const struct subject *s)
{
    verdict_add_if(verdict, s->loading, BLKREPL_ERR_STATE);
}

void answer_expect(int answer, const struct verdict *verdict, int must, const char *what)
{
    if (verdict->count > 0) {
        call_end_as(answer, verdict, what);
    } else {
        call_end(answer, what);
        EXPECT(answer == must, "%s: %d, got %d \"%s\"", what, must, answer,
               answer < 0 ? blkrepl_error_message() : "");
    }
}

void any_range_draw(const struct subject *s, uint64_t *offset, uint64_t *bytes)
{
    bits_draw_range(&s->bits, offset, bytes);
    switch (take_below(12)) {
    case 1: *offset = take_number(); break;
    case 2: *bytes = take_number(); break;
    case 3: *bytes = s->bits.bytes - *offset + 1; break;
    default: break;
    }
}

/* ---- A subject --------------------------------------------------------------- */

static void check_info(const struct subject *s)
{
    blkrepl_bitmap_info info = {.struct_size = sizeof info};
    uint32_t flags = (s->recording ? BLKREPL_BITMAP_RECORDING : 0u) |
                     (s->frozen ? BLKREPL_BITMAP_BUSY : 0u) |
                     (s->loading ? BLKREPL_BITMAP_INCONSISTENT : 0u);
    uint64_t granules = s->loading ? 0 : bits_count(&s->bits);
    uint64_t dirty = s->loading ? 0 : bits_dirty_bytes(&s->bits);
    uint64_t since = s->frozen ? bits_dirty_bytes(&s->since) : 0;
    int rc = blkrepl_bitmap_query(s->handle, &info);

    EXPECT(rc == 0 && info.flags == flags && (info.image_id != 0) == s->named,
           "map %u: a query with flags 0x%x, got %d, 0x%x, image %llu", subject_number(s),
           (unsigned)flags, rc, (unsigned)info.flags, (ull)info.image_id);
    EXPECT(info.bytes == s->bits.bytes && info.granularity_bytes == UINT64_C(1) << s->bits.shift,
           "map %u: %llu bytes, got %llu by %llu", subject_number(s), (ull)s->bits.bytes,
           (ull)info.bytes, (ull)info.granularity_bytes);
    EXPECT(info.dirty_granules == granules && info.dirty_bytes == dirty &&
               info.since_bytes == since,
           "map %u: %llu granules, %llu bytes, %llu since, got %llu, %llu, %llu", subject_number(s),
           (ull)granules, (ull)dirty, (ull)since, (ull)info.dirty_granules, (ull)info.dirty_bytes,
           (ull)info.since_bytes);
}

static void check_content(const struct subject *s)
{
    uint64_t count = bits_wire_bytes(&s->bits);
    uint64_t room = count;
    uint8_t *data = fuzz_alloc((size_t)count);
    int rc = blkrepl_bitmap_save(s->handle, 0, s->bits.bytes, data, &room);

    EXPECT(rc == (s->loading ? BLKREPL_ERR_STATE : 0), "map %u: a save of all, got %d",
           subject_number(s), rc);
    EXPECT(rc < 0 || (room == count && memcmp(data, s->bits.wire, (size_t)count) == 0),
           "map %u: its content", subject_number(s));
    free(data);
}

static void check_digest(const struct subject *s)
{
    uint8_t must[32];
    uint8_t is[32];
    int rc;

    memset(is, 0x77, sizeof is);
    memset(must, 0x77, sizeof must);
    rc = blkrepl_bitmap_sha256(s->handle, is);
    EXPECT(rc == (s->loading ? BLKREPL_ERR_STATE : 0), "map %u: a digest, got %d",
           subject_number(s), rc);
    if (rc == 0) {
        bits_sha256(s->bits.wire, bits_wire_bytes(&s->bits), must);
    }
    EXPECT(memcmp(is, must, sizeof is) == 0, "map %u: the digest of its content",
           subject_number(s));
}

void subject_check(struct subject *s)
{
    int rc;

    if (s->handle == NULL) {
        return;
    }
    check_info(s);
    check_content(s);
    rc = blkrepl_bitmap_validate(s->handle);
    EXPECT(rc == 0, "map %u: to be valid, got %d \"%s\"", subject_number(s), rc,
           blkrepl_error_message());
    EXPECT(blkrepl_bitmap_part_alignment(s->handle) == bits_part_alignment(&s->bits),
           "map %u: parts of %llu, got %llu", subject_number(s), (ull)bits_part_alignment(&s->bits),
           (ull)blkrepl_bitmap_part_alignment(s->handle));
}

static void subject_reset(struct subject *s)
{
    s->handle = NULL;
    s->named = false;
    s->recording = false;
    s->frozen = false;
    s->loading = false;
}

/* It goes with its handle, also a frozen one; one of an image stays with it. */
static void subject_drop(struct subject *s)
{
    blkrepl_bitmap *found;
    int rc;

    if (s->handle == NULL) {
        return;
    }
    blkrepl_bitmap_free(s->handle);
    if (s->named && take_chance(50)) {
        rc = blkrepl_bitmap_find(bench.image, "bitmap", &found);
        EXPECT(rc == 0 && found == s->handle, "the same bitmap to be found, got %d", rc);
        return;
    }
    if (s->named) {
        rc = blkrepl_bitmap_next(bench.image, 0, &found);
        EXPECT(rc == 0 && found == s->handle, "the only bitmap to be found, got %d", rc);
        EXPECT(!s->frozen || blkrepl_bitmap_reclaim(found) == 0, "a plain reclaim");
        EXPECT(blkrepl_bitmap_remove(found) == 0, "a plain remove");
        blkrepl_bitmap_free(found);
    }
    subject_reset(s);
}

/* ---- Making one -------------------------------------------------------------- */

static uint64_t draw_bytes(uint32_t shift)
{
    uint64_t granules = take_chance(50) ? take_u8() : take_u16() % GRANULES_MAX;
    uint64_t most = (uint64_t)INT64_MAX >> shift;
    uint64_t bytes = granules <= most ? granules << shift : (uint64_t)INT64_MAX;

    if (take_chance(60)) {
        bytes -= bytes > 0 ? 1 + take_number() % (UINT64_C(1) << shift) % bytes : 0;
    }
    return bytes;
}

static bool is_power_of_two(uint64_t number)
{
    return number != 0 && (number & (number - 1)) == 0;
}

static uint32_t shift_of(uint64_t unit)
{
    uint32_t shift = 0;

    while (shift < 63 && unit > UINT64_C(1) << shift) {
        shift++;
    }
    return shift;
}

static void draw_options(blkrepl_bitmap_options *options, bool named)
{
    uint32_t shift = take_chance(50) ? take_below(64) : 9 + take_below(12);

    options->struct_size = sizeof *options;
    options->granularity_bytes = UINT64_C(1) << shift;
    options->bytes = named ? bench.image_bytes * take_below(2) : draw_bytes(shift);
    if (take_chance(15)) {
        options->granularity_bytes = take_chance(50) ? take_number() : 0;
    }
    if (take_chance(15)) {
        options->bytes = take_number();
    }
    if (take_chance(named ? 60 : 5)) {
        options->flags = take_chance(90) ? BLKREPL_BITMAP_DISABLED : take_u8();
    }
    options->name = named || take_chance(20) ? "bitmap" : NULL;
}

static void verdict_add_options(struct verdict *verdict, const blkrepl_bitmap_options *o,
                                bool named, uint64_t bytes, uint64_t unit)
{
    verdict_add_if(verdict,
                   !is_power_of_two(unit) || (named && (unit < 512 || unit > UINT64_C(1) << 31)),
                   -EINVAL);
    verdict_add_if(verdict, (o->flags & ~(named ? 1u : 0u)) != 0, -EINVAL);
    verdict_add_if(verdict,
                   named ? o->bytes != 0 && o->bytes != bench.image_bytes : o->bytes > INT64_MAX,
                   -EINVAL);
    verdict_add_if(verdict, bits_granules_of(bytes, shift_of(unit)) > UINT64_C(1) << 38, -EFBIG);
    for (unsigned i = 0; i < SUBJECTS; i++) {
        verdict_add_if(verdict, named && bench.subjects[i].named, -EEXIST);
    }
}

static void call_create(struct subject *s)
{
    struct verdict verdict = {.count = 0};
    bool named = take_chance(30);
    blkrepl_bitmap_options options = {.struct_size = 0};
    blkrepl_bitmap *handle = s->handle;
    uint64_t unit;
    uint64_t bytes;
    int rc;

    draw_options(&options, named);
    unit = options.granularity_bytes != 0 ? options.granularity_bytes : 65536;
    bytes = named ? bench.image_bytes : options.bytes;
    verdict_add_options(&verdict, &options, named, bytes, unit);
    fuzz_note("map %u: %s %llu bytes by %llu, flags 0x%x", subject_number(s),
              named ? "add" : "create", (ull)options.bytes, (ull)unit, (unsigned)options.flags);
    call_begin();
    heap_watch(take_chance(5) ? 1u + take_below(8) : 0);
    rc = named ? blkrepl_bitmap_add(bench.image, &options, &handle)
               : blkrepl_bitmap_create(bench.ctx, &options, &handle);
    verdict_add_if(&verdict, rc != 0 && heap_lacks(bits_granules_of(bytes, shift_of(unit)) / 8),
                   -ENOMEM);
    heap_watch(0);
    answer_expect(rc, &verdict, 0, named ? "add" : "create");
    EXPECT((handle != NULL) == (rc == 0), "a handle exactly if the answer is 0, got %d", rc);
    if (rc == 0 && bits_granules_of(bytes, shift_of(unit)) > BITS_GRANULES_MAX) {
        blkrepl_bitmap_free(handle);
    } else if (rc == 0) {
        s->handle = handle;
        s->named = named;
        s->recording = named && (options.flags & BLKREPL_BITMAP_DISABLED) == 0;
        s->position = 0;
        bits_init(&s->bits, bytes, shift_of(unit));
    }
}

/* ---- An execution ------------------------------------------------------------ */

static void bench_open(void)
{
    blkrepl_allocator allocator = heap_allocator();
    blkrepl_hooks hooks = fuzz_hooks();
    blkrepl_context_options options = {.struct_size = sizeof options,
                                       .allocator = &allocator,
                                       .hooks = &hooks,
                                       .requests_max = 4,
                                       .job_requests_max = 1};
    int rc = blkrepl_context_create(&options, &bench.ctx);

    EXPECT(rc == 0, "a context, got %d \"%s\"", rc, blkrepl_error_message());
    bench.image_bytes = (uint64_t)take_u8() * 512 * (1 + take_below(30)) + take_u16();
    rc = blkrepl_image_open_memory(bench.ctx, bench.image_bytes, NULL, &bench.image);
    EXPECT(rc == 0, "an image, got %d \"%s\"", rc, blkrepl_error_message());
    for (unsigned i = 0; i < SUBJECTS; i++) {
        subject_reset(&bench.subjects[i]);
    }
}

static void bench_close(void)
{
    int rc = -EBUSY;

    for (unsigned i = 0; i < SUBJECTS; i++) {
        for (int times = 0; times < ROUNDS_MAX && bench.subjects[i].handle != NULL; times++) {
            subject_drop(&bench.subjects[i]);
        }
    }
    blkrepl_image_close(bench.image);
    for (int i = 0; i < ROUNDS_MAX && rc == -EBUSY; i++) {
        rc = blkrepl_context_free(bench.ctx);
        if (rc == -EBUSY) {
            (void)blkrepl_poll(bench.ctx, 0, 0);
        }
    }
    EXPECT(rc == 0, "context_free: 0, got %d \"%s\"", rc, blkrepl_error_message());
}

static void (*const calls[])(struct subject *s) = {
    call_load_next, call_load_next, call_load_next, call_load_next, call_load_next, call_begin_load,
    call_load,      call_load,      call_load,      call_finish,    call_finish,    call_save,
    call_save,      call_transfer,  call_question,  call_question,  call_iterate,   call_set,
    call_set,       call_reset,     call_plain,     call_combine,   call_combine,   call_resize,
    call_freeze,    call_thaw,      call_thaw,      call_record,    call_remove,    call_begin_load,
};

static void step(void)
{
    uint32_t which = take_below(ARRAY_COUNT(calls) + 1);
    struct subject *s = &bench.subjects[take_chance(30)];

    if (s->handle == NULL) {
        call_create(s);
    } else if (which == ARRAY_COUNT(calls)) {
        subject_drop(s);
    } else {
        calls[which](s);
    }
    for (unsigned i = 0; i < SUBJECTS; i++) {
        subject_check(&bench.subjects[i]);
    }
    if (s->handle != NULL) {
        check_digest(s);
    }
}

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
    (void)argc;
    (void)argv;
    return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    fuzz_begin(data, size);
    bench_open();
    for (int i = 0; i < STEPS_MAX && !input_empty(); i++) {
        step();
    }
    bench_close();
    fuzz_end();
    return 0;
}
