/* SPDX-License-Identifier: MIT */
/* fuzz_hbitmap.c - the bitmap itself: programs of operations on three of them,
 * each compared with a naive one after every operation.
 *
 * Only the bitmap's own contracts are kept (ranges inside, whole granules for a
 * reset and so on); hostile arguments are the business of fuzz_hbitmap_load and
 * fuzz_options. */
#include "hbitmap.h"

#include <stdlib.h>

#define STEPS_MAX 80
#define BYTES_MOST UINT64_C(0x7fffffffffffffff)
#define GRANULES_MOST 9000

struct bench bench;

/* ---- Sizes ------------------------------------------------------------------- */

static uint64_t bytes_most(void)
{
    uint64_t most = BYTES_MOST >> bench.shift_least;

    return bench.granules_most <= most ? (uint64_t)bench.granules_most << bench.shift_least
                                       : BYTES_MOST;
}

/* Any size up to that with which the finest bitmap is still small. */
static uint64_t draw_bytes(void)
{
    static const uint32_t edges[] = {1, 64, 128, 4096, 8192, 262144};
    uint64_t most = bytes_most();
    uint64_t unit = UINT64_C(1) << bench.shift_least;
    uint64_t granules;
    uint64_t bytes;

    switch (take_below(6)) {
    case 0: granules = take_u8(); break;
    case 1: granules = edges[take_below(ARRAY_COUNT(edges))] + take_below(3) - 1; break;
    case 2: return most - take_below(3);
    case 3: granules = 64u * take_u8() + take_below(3) - 1; break;
    default: granules = take_u16(); break;
    }
    bytes = granules <= most >> bench.shift_least ? granules << bench.shift_least : most;
    switch (take_below(4)) {
    case 1: bytes -= bytes > 0; break;
    case 2: bytes += 1; break;
    case 3: bytes += take_number() % unit; break;
    default: break;
    }
    return bytes < most ? bytes : most;
}

static void draw_sizes(void)
{
    bench.shift_least = take_chance(50) ? take_below(64) : take_below(4) * 3;
    bench.granules_most = take_chance(15) ? BITS_GRANULES_MAX : GRANULES_MOST;
}

/* ---- The beginning and the end ----------------------------------------------- */

/* Refused for its size, or for want of memory; or too large to be compared. */
static void act_huge(void)
{
    uint64_t bytes = take_number() & BYTES_MOST;
    uint32_t shift = take_below(64);
    struct dirtymap map;
    uint64_t live = heap.live;
    uint64_t granules = bits_granules_of(bytes, shift);
    int rc;

    rc = blkrepl__dirtymap_init(&map, &bench.alloc, bytes, shift);
    EXPECT(rc == 0 || rc == (granules > HBITMAP_BITS_MAX ? -EFBIG : -ENOMEM),
           "init of %llu bytes with shift %u, got %d", (ull)bytes, (unsigned)shift, rc);
    EXPECT(granules <= HBITMAP_BITS_MAX || rc == -EFBIG, "-EFBIG for %llu granules, got %d",
           (ull)granules, rc);
    EXPECT(rc != -ENOMEM || heap_lacks(granules / 8), "no -ENOMEM while there is memory");
    if (rc == 0) {
        blkrepl__dirtymap_fini(&map);
    }
    EXPECT(heap.live == live, "all memory back");
}

static void subject_open(struct subject *s, uint64_t bytes)
{
    uint32_t shift = bench.shift_least;
    int rc;

    shift += take_chance(40) ? take_below(64 - shift) : take_below(3);
    shift = shift < 64 ? shift : 63;
    bits_init(&s->bits, bytes, shift);
    s->position = 0;
    heap_watch(take_chance(5) ? 1u + take_below(8) : 0);
    rc = blkrepl__dirtymap_init(&s->map, &bench.alloc, bytes, shift);
    EXPECT(rc == 0 || (rc == -ENOMEM && heap.refused), "init, got %d", rc);
    heap_watch(0);
    if (rc != 0) {
        rc = blkrepl__dirtymap_init(&s->map, &bench.alloc, bytes, shift);
        EXPECT(rc == 0, "init with memory, got %d", rc);
    }
    fuzz_note("map %u: %llu bytes, shift %u", subject_number(s), (ull)bytes, (unsigned)shift);
    subject_check_well(s);
}

static void bench_open(void)
{
    blkrepl_allocator allocator = heap_allocator();
    uint64_t bytes;

    EXPECT(blkrepl__alloc_init(&bench.alloc, &allocator) == 0, "an allocator");
    draw_sizes();
    bench.walk_state = take_u8();
    bytes = draw_bytes();
    for (unsigned i = 0; i < SUBJECTS; i++) {
        subject_open(&bench.subjects[i], bytes);
    }
}

static void bench_close(void)
{
    for (unsigned i = 0; i < SUBJECTS; i++) {
        subject_check_well(&bench.subjects[i]);
        blkrepl__dirtymap_fini(&bench.subjects[i].map);
    }
}

/* ---- Changes ----------------------------------------------------------------- */

static void act_set(struct subject *s)
{
    bool mark = take_chance(50);
    uint64_t offset;
    uint64_t bytes;
    uint32_t first;
    uint32_t end;

    bits_draw_range(&s->bits, &offset, &bytes);
    fuzz_note("map %u: %s %llu+%llu", subject_number(s), mark ? "mark" : "set", (ull)offset,
              (ull)bytes);
    (mark ? blkrepl__dirtymap_mark : blkrepl__dirtymap_set)(&s->map, offset, bytes);
    bits_touched(&s->bits, offset, bytes, &first, &end);
    bits_fill(&s->bits, first, end, true);
}

static void act_reset(struct subject *s)
{
    uint64_t unit = UINT64_C(1) << s->bits.shift;
    uint64_t offset;
    uint64_t bytes;
    uint32_t first;
    uint32_t end;

    bits_draw_range(&s->bits, &offset, &bytes);
    bytes += offset % unit;
    offset -= offset % unit;
    bytes = bits_whole(&s->bits, offset, bytes) ? bytes : bytes - bytes % unit;
    fuzz_note("map %u: reset %llu+%llu", subject_number(s), (ull)offset, (ull)bytes);
    EXPECT(blkrepl__dirtymap_whole(&s->map, offset, bytes), "whole granules");
    blkrepl__dirtymap_reset(&s->map, offset, bytes);
    bits_touched(&s->bits, offset, bytes, &first, &end);
    bits_fill(&s->bits, first, end, false);
}

static void act_clear(struct subject *s)
{
    fuzz_note("map %u: clear", subject_number(s));
    blkrepl__dirtymap_clear(&s->map);
    bits_fill(&s->bits, 0, s->bits.granules, false);
}

static void act_load(struct subject *s)
{
    uint64_t offset;
    uint64_t bytes;
    size_t count;
    uint8_t *data;

    bits_draw_part(&s->bits, &offset, &bytes);
    if (!bits_part(&s->bits, offset, bytes)) {
        return;
    }
    count = bits_part_bytes(&s->bits, offset, bytes);
    data = fuzz_alloc(count);
    bits_draw_data(data, count);
    fuzz_note("map %u: load %llu+%llu", subject_number(s), (ull)offset, (ull)bytes);
    blkrepl__dirtymap_load(&s->map, offset, bytes, data);
    bits_load(&s->bits, offset, bytes, data);
    free(data);
}

static void resize_to(struct subject *s, uint64_t bytes)
{
    int rc;

    heap_watch(take_chance(10) ? 1u + take_below(8) : 0);
    rc = blkrepl__dirtymap_resize(&s->map, bytes);
    EXPECT(rc == 0 || (rc == -ENOMEM && heap.refused), "resize to %llu, got %d", (ull)bytes, rc);
    heap_watch(0);
    fuzz_note("map %u: resize to %llu: %d", subject_number(s), (ull)bytes, rc);
    if (rc == 0) {
        bits_resize(&s->bits, bytes);
    }
}

/* To a size that the naive form cannot follow, and back. */
static void act_resize_huge(struct subject *s)
{
    uint64_t before = s->bits.bytes;
    uint64_t bytes = take_number() & BYTES_MOST;
    uint64_t granules = bits_granules_of(bytes, s->bits.shift);
    uint64_t found;
    uint32_t end;
    int rc;

    if (granules <= BITS_GRANULES_MAX) {
        return;
    }
    rc = blkrepl__dirtymap_resize(&s->map, bytes);
    fuzz_note("map %u: resize to %llu: %d", subject_number(s), (ull)bytes, rc);
    EXPECT(granules > HBITMAP_BITS_MAX ? rc == -EFBIG
                                       : rc == 0 || (rc == -ENOMEM && heap_lacks(granules / 8)),
           "resize to %llu granules, got %d", (ull)granules, rc);
    if (rc != 0) {
        return;
    }
    end = s->bits.granules;
    EXPECT(blkrepl__hbitmap_count(&s->map.bits) == bits_count(&s->bits), "the same count");
    EXPECT(!blkrepl__dirtymap_next_dirty(&s->map, (uint64_t)end << s->bits.shift, bytes, &found),
           "nothing dirty in what was added, got %llu", (ull)found);
    EXPECT(blkrepl__dirtymap_resize(&s->map, before) == 0, "resize back");
}

static void act_resize(struct subject *s)
{
    if (take_chance(10)) {
        act_resize_huge(s);
    } else {
        resize_to(s, draw_bytes());
    }
}

static void act_combine(struct subject *s)
{
    static const char *const names[] = {"merge", "intersect", "subtract"};
    static void (*const verbs[])(struct dirtymap *, const struct dirtymap *) = {
        [BITS_MERGE] = blkrepl__dirtymap_merge,
        [BITS_INTERSECT] = blkrepl__dirtymap_intersect,
        [BITS_SUBTRACT] = blkrepl__dirtymap_subtract};
    struct subject *other = &bench.subjects[take_below(SUBJECTS)];
    enum bits_verb verb = (enum bits_verb)take_below(ARRAY_COUNT(verbs));

    if (other->bits.bytes != s->bits.bytes) {
        resize_to(other, s->bits.bytes);
        if (other->bits.bytes != s->bits.bytes) {
            return;
        }
    }
    fuzz_note("map %u: %s %u", subject_number(s), names[verb], subject_number(other));
    verbs[verb](&s->map, &other->map);
    bits_combine(&s->bits, &other->bits, verb);
    subject_check(other);
}

static void act_invert(struct subject *s)
{
    fuzz_note("map %u: invert", subject_number(s));
    blkrepl__dirtymap_invert(&s->map);
    bits_invert(&s->bits);
}

/* The bits below, which say how many have changed. */
static void act_bits(struct subject *s)
{
    bool set = take_chance(50);
    uint64_t offset;
    uint64_t bytes;
    uint64_t is;
    uint64_t must;
    uint32_t first;
    uint32_t end;

    bits_draw_range(&s->bits, &offset, &bytes);
    bits_touched(&s->bits, offset, bytes, &first, &end);
    first = first < s->bits.granules ? first : s->bits.granules;
    end = end < first ? first : end;
    fuzz_note("map %u: %s bits %u to %u", subject_number(s), set ? "set" : "clear", (unsigned)first,
              (unsigned)end);
    is = (set ? blkrepl__hbitmap_set : blkrepl__hbitmap_clear)(&s->map.bits, first, end - first);
    must = bits_fill(&s->bits, first, end, set);
    EXPECT(is == must, "%llu bits to change, got %llu", (ull)must, (ull)is);
}

static void act_set_all(struct subject *s)
{
    fuzz_note("map %u: set all", subject_number(s));
    blkrepl__hbitmap_set_all(&s->map.bits);
    bits_fill(&s->bits, 0, s->bits.granules, true);
}

/* ---- An execution ------------------------------------------------------------ */

static void (*const changes[])(struct subject *s) = {
    act_set,  act_set,    act_set,     act_reset,   act_reset, act_load,   act_load,    act_resize,
    act_bits, act_invert, act_set_all, act_combine, act_clear, act_resize, act_combine, act_combine,
};

static void (*const questions[])(struct subject *s) = {
    ask_get,        ask_next, ask_area,   ask_status,    ask_iterate,
    ask_predicates, ask_save, ask_sha256, ask_bits_next, ask_bits_list,
};

static void step(void)
{
    uint32_t which = take_below(ARRAY_COUNT(changes) + ARRAY_COUNT(questions) * 2);
    struct subject *s = &bench.subjects[take_below(SUBJECTS)];

    if (which >= ARRAY_COUNT(changes)) {
        questions[which % ARRAY_COUNT(questions)](s);
    } else {
        changes[which](s);
    }
    subject_check_well(s);
    for (unsigned i = 0; i < SUBJECTS; i++) {
        if (s != &bench.subjects[i] && bench.granules_most < BITS_GRANULES_MAX) {
            subject_check(&bench.subjects[i]);
        }
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
    if (take_chance(10)) {
        act_huge();
    }
    for (int i = 0; i < STEPS_MAX && !input_empty(); i++) {
        step();
    }
    bench_close();
    fuzz_end();
    return 0;
}
