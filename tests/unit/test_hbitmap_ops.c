/* SPDX-License-Identifier: MIT */
/* The operations on whole sets, listing and marking.  Every one is followed by a
 * comparison with an array of bools. */
#include "data/hbitmap.h"

#include <errno.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define SMALL 10 /* of all sets of so many bits */
#define LIST_MAX 200

static const uint64_t sizes[] = {0,    1,    2,    63,   64,    65,     127,    128,    129,
                                 4095, 4096, 4097, 8191, 12345, 262143, 262144, 262145, 300001};

static uint64_t random_state;

static uint64_t random_below(uint64_t below)
{
    random_state = random_state * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
    return below != 0 ? (random_state >> 24) % below : 0;
}

/* ---- A set beside its oracle ---------------------------------------------------------------- */

struct pair {
    struct hbitmap map;
    unsigned char *bits;
    uint64_t count;
};

static unsigned allocs_left; /* then there is no memory */

static void *short_zalloc(void *user, size_t bytes)
{
    (void)user;
    if (allocs_left == 0) {
        return NULL;
    }
    allocs_left--;
    return calloc(1, bytes);
}

static void *short_realloc(void *user, void *memory, size_t bytes)
{
    (void)user;
    return realloc(memory, bytes);
}

static void short_free(void *user, void *memory)
{
    (void)user;
    free(memory);
}

static void *short_buffer_alloc(void *user, size_t align, size_t bytes)
{
    (void)align;
    return short_zalloc(user, bytes);
}

static void short_buffer_free(void *user, void *memory, size_t bytes)
{
    (void)bytes;
    short_free(user, memory);
}

static const struct alloc *test_alloc(void)
{
    static const blkrepl_allocator hooks = {
        .struct_size = sizeof hooks,
        .alloc = short_zalloc,
        .zalloc = short_zalloc,
        .realloc = short_realloc,
        .free = short_free,
        .buffer_alloc = short_buffer_alloc,
        .buffer_free = short_buffer_free,
    };
    static struct alloc alloc;

    allocs_left = UINT32_MAX;
    assert_int_equal(blkrepl__alloc_init(&alloc, &hooks), 0);
    return &alloc;
}

static void pair_open(struct pair *p, uint64_t count)
{
    assert_int_equal(blkrepl__hbitmap_init(&p->map, test_alloc(), count), 0);
    p->bits = calloc(1, (size_t)count + 1);
    assert_non_null(p->bits);
    p->count = count;
}

static void pair_close(struct pair *p)
{
    blkrepl__hbitmap_fini(&p->map);
    free(p->bits);
}

static void pair_fail(const struct pair *p, const char *after, const char *what, uint64_t at)
{
    fail_msg("after %s: %s at %llu of %llu bits", after, what, (unsigned long long)at,
             (unsigned long long)p->count);
}

static void pair_compare(const struct pair *p, const char *after)
{
    const char *reason = "";
    uint64_t set_count = 0;

    if (p->map.bit_count != p->count) {
        pair_fail(p, after, "bit_count differs", p->map.bit_count);
    }
    for (uint64_t bit = 0; bit < p->count; bit++) {
        if (blkrepl__hbitmap_test(&p->map, bit) != p->bits[bit]) {
            pair_fail(p, after, "a bit differs", bit);
        }
        set_count += p->bits[bit];
    }
    if (blkrepl__hbitmap_count(&p->map) != set_count) {
        pair_fail(p, after, "the count differs", p->map.set_count);
    }
    if (!blkrepl__hbitmap_validate(&p->map, &reason)) {
        pair_fail(p, after, reason, 0);
    }
}

/* Make the set that of the oracle, by the functions that test_hbitmap.c proves. */
static void pair_refill(struct pair *p)
{
    blkrepl__hbitmap_clear(&p->map, 0, p->count);
    for (uint64_t bit = 0; bit < p->count; bit++) {
        if (p->bits[bit]) {
            blkrepl__hbitmap_set(&p->map, bit, 1);
        }
    }
}

/* ---- The operations on both ----------------------------------------------------------------- */

static void pair_mark(struct pair *p, uint64_t first, uint64_t count)
{
    memset(p->bits + first, 1, (size_t)count);
    blkrepl__hbitmap_mark(&p->map, first, count);
    pair_compare(p, "mark");
}

static void pair_set(struct pair *p, bool value, uint64_t first, uint64_t count)
{
    memset(p->bits + first, value, (size_t)count);
    if (value) {
        blkrepl__hbitmap_set(&p->map, first, count);
    } else {
        blkrepl__hbitmap_clear(&p->map, first, count);
    }
    pair_compare(p, value ? "set" : "clear");
}

static void pair_clear_all(struct pair *p)
{
    memset(p->bits, 0, (size_t)p->count);
    blkrepl__hbitmap_clear_all(&p->map);
    pair_compare(p, "clear_all");
}

static void pair_invert(struct pair *p)
{
    for (uint64_t bit = 0; bit < p->count; bit++) {
        p->bits[bit] ^= 1;
    }
    blkrepl__hbitmap_invert(&p->map);
    pair_compare(p, "invert");
}

enum operation {
    OR,
    AND,
    SUBTRACT
};

static unsigned char naive(enum operation operation, unsigned char a, unsigned char b)
{
    switch (operation) {
    case OR: return a | b;
    case AND: return a & b;
    case SUBTRACT: return a & !b;
    }
    return 0;
}

static void operate(enum operation operation, struct hbitmap *map, const struct hbitmap *other)
{
    switch (operation) {
    case OR: blkrepl__hbitmap_or(map, other); break;
    case AND: blkrepl__hbitmap_and(map, other); break;
    case SUBTRACT: blkrepl__hbitmap_subtract(map, other); break;
    }
}

static void pair_operate(enum operation operation, struct pair *p, const struct pair *other)
{
    static const char *const names[] = {"or", "and", "subtract"};

    for (uint64_t bit = 0; bit < p->count; bit++) {
        p->bits[bit] = naive(operation, p->bits[bit], other->bits[bit]);
    }
    operate(operation, &p->map, &other->map);
    pair_compare(p, names[operation]);
    pair_compare(other, names[operation]);
}

static void pair_resize(struct pair *p, uint64_t count)
{
    unsigned char *bits = calloc(1, (size_t)count + 1);

    assert_non_null(bits);
    memcpy(bits, p->bits, (size_t)(count < p->count ? count : p->count));
    free(p->bits);
    p->bits = bits;
    p->count = count;
    assert_int_equal(blkrepl__hbitmap_resize(&p->map, count), 0);
    pair_compare(p, "resize");
}

static void pair_save(const struct pair *p, uint64_t first, uint64_t count)
{
    uint64_t bytes = (count + 7) / 8;
    unsigned char *data = malloc((size_t)bytes + 1);

    assert_non_null(data);
    memset(data, 0xa5, (size_t)bytes + 1);
    blkrepl__hbitmap_save(&p->map, first, count, data);
    for (uint64_t i = 0; i < bytes * 8; i++) {
        if ((data[i / 8] >> (i % 8) & 1) != (i < count ? p->bits[first + i] : 0)) {
            pair_fail(p, "save", "the data differ", first + i);
        }
    }
    assert_int_equal(data[bytes], 0xa5);
    free(data);
}

/* `style`: 0 nothing, 1 everything, also behind the last bit, 2 any bits, 3 few bits. */
static void pair_load(struct pair *p, uint64_t first, uint64_t count, int style)
{
    uint64_t bytes = (count + 7) / 8;
    unsigned char *data = malloc((size_t)bytes + 1);

    assert_non_null(data);
    for (uint64_t i = 0; i < bytes; i++) {
        bool some = style != 3 || random_below(700) == 0;

        data[i] = style == 1 ? 0xff : style != 0 && some ? (unsigned char)random_below(256) : 0;
    }
    for (uint64_t i = 0; i < count; i++) {
        p->bits[first + i] = data[i / 8] >> (i % 8) & 1;
    }
    blkrepl__hbitmap_load(&p->map, first, count, data);
    free(data);
    pair_compare(p, "load");
}

/* List from `from` to `end` in portions of `max`. */
static void pair_list(const struct pair *p, uint64_t from, uint64_t end, uint32_t shift,
                      uint32_t max)
{
    uint64_t list[LIST_MAX + 1];
    uint64_t at = from;
    uint32_t listed;

    do {
        list[max] = 99;
        listed = blkrepl__hbitmap_list(&p->map, &at, end, shift, list, max);
        for (uint32_t i = 0; i < listed; i++, from++) {
            while (from < end && !p->bits[from]) {
                from++;
            }
            if (from == end || list[i] != from << shift) {
                pair_fail(p, "list", "the list differs", from);
            }
        }
        if (list[max] != 99 || (listed == max && at != from) || (listed < max && at != end)) {
            pair_fail(p, "list", "the place to go on is wrong", at);
        }
    } while (listed == max);
    while (from < end && !p->bits[from]) {
        from++;
    }
    if (from != end) {
        pair_fail(p, "list", "the list ends early", from);
    }
}

/* ---- All small sets ------------------------------------------------------------------------- */

static void small_fill(struct pair *p, unsigned set)
{
    for (uint64_t bit = 0; bit < p->count; bit++) {
        p->bits[bit] = set >> bit & 1;
    }
    pair_refill(p);
}

static void hbitmap_all_small_sets_with_all_others(void **state)
{
    (void)state;
    for (uint64_t n = 0; n <= SMALL; n++) {
        struct pair a;
        struct pair b;

        pair_open(&a, n);
        pair_open(&b, n);
        for (unsigned pick = 0; pick < 1U << (2 * n); pick++) {
            unsigned mine = pick & ((1U << n) - 1);
            unsigned other = pick >> n;
            const unsigned expected[] = {mine | other, mine & other, mine & ~other};
            unsigned char bytes[2] = {(unsigned char)mine, (unsigned char)(mine >> 8)};
            unsigned char others[2] = {(unsigned char)other, (unsigned char)(other >> 8)};
            const char *reason;

            blkrepl__hbitmap_load(&b.map, 0, n, others);
            for (enum operation operation = OR; operation <= SUBTRACT; operation++) {
                blkrepl__hbitmap_load(&a.map, 0, n, bytes);
                operate(operation, &a.map, &b.map);
                if (a.map.level[0][0] != expected[operation] ||
                    !blkrepl__hbitmap_validate(&a.map, &reason)) {
                    pair_fail(&a, "an operation", "the set differs", pick);
                }
            }
        }
        pair_close(&a);
        pair_close(&b);
    }
}

static void small_ranges(struct pair *p, unsigned set)
{
    for (uint64_t first = 0; first <= p->count; first++) {
        for (uint64_t end = first; end <= p->count; end++) {
            small_fill(p, set);
            pair_list(p, first, end, 3, 1 + (uint32_t)(end - first) % 3);
            pair_list(p, first, end, 0, SMALL);
            pair_mark(p, first, end - first);
            small_fill(p, set);
            pair_set(p, false, first, end - first);
        }
    }
}

static void hbitmap_all_small_sets_in_all_ranges_and_sizes(void **state)
{
    (void)state;
    for (uint64_t n = 0; n <= SMALL; n++) {
        for (unsigned set = 0; set < 1U << n; set++) {
            struct pair p;

            pair_open(&p, n);
            small_ranges(&p, set);
            for (uint64_t size = 0; size <= SMALL; size++) {
                small_fill(&p, set);
                pair_save(&p, 0, n);
                pair_invert(&p);
                pair_resize(&p, size);
                pair_resize(&p, n);
            }
            pair_load(&p, 0, n, 2);
            pair_clear_all(&p);
            pair_close(&p);
        }
    }
}

/* ---- Random sets of all sizes --------------------------------------------------------------- */

static void random_range(uint64_t n, uint64_t *first, uint64_t *count)
{
    static const uint64_t unit[] = {1, 1, 64, 4096};

    *first = random_below(n + 1);
    *first -= *first % unit[random_below(4)];
    *count = random_below(n - *first + 1);
    if (random_below(3) != 0) {
        *count %= 1 + unit[random_below(4)];
    }
}

static void random_part(struct pair *p)
{
    uint64_t first = random_below(p->count + 1) / 64 * 64;
    uint64_t count = p->count - first;

    if (random_below(3) != 0) {
        count = random_below(count + 1) / 64 * 64;
    }
    pair_save(p, first, count);
    pair_load(p, first, count, (int)random_below(4));
    pair_save(p, first, count);
}

static void random_few(struct pair *p)
{
    for (uint64_t i = random_below(20); p->count > 0 && i > 0; i--) {
        pair_mark(p, random_below(p->count), 1);
    }
}

static void random_whole(struct pair *p)
{
    uint64_t n = p->count;

    switch (random_below(5)) {
    case 0: pair_clear_all(p); break;
    case 1: pair_load(p, 0, n, 3); break;
    case 2: pair_invert(p); break;
    case 3:
        pair_resize(p, sizes[random_below(ARRAY_COUNT(sizes))]);
        pair_resize(p, n);
        break;
    default:
        pair_resize(p, random_below(n + 300));
        pair_resize(p, n);
        break;
    }
}

static void random_operation(struct pair *p, const struct pair *other)
{
    uint64_t first;
    uint64_t count;

    random_range(p->count, &first, &count);
    switch (random_below(9)) {
    case 0: pair_mark(p, first, count); break;
    case 1: pair_set(p, true, first, count); break;
    case 2: pair_set(p, false, first, count); break;
    case 3: random_few(p); break;
    case 4: random_part(p); break;
    case 5: random_whole(p); break;
    case 6: pair_operate(OR, p, other); break;
    case 7: pair_operate(AND, p, other); break;
    default: pair_operate(SUBTRACT, p, other); break;
    }
    random_range(p->count, &first, &count);
    pair_list(p, first, first + count, (uint32_t)random_below(20),
              (uint32_t)(1 + random_below(LIST_MAX)));
}

static void random_run(uint64_t n, unsigned operations)
{
    struct pair pairs[2];

    pair_open(&pairs[0], n);
    pair_open(&pairs[1], n);
    for (unsigned i = 0; i < operations; i++) {
        uint64_t one = random_below(2);
        uint64_t other = random_below(16) == 0 ? one : 1 - one;

        random_operation(&pairs[one], &pairs[other]);
    }
    pair_close(&pairs[0]);
    pair_close(&pairs[1]);
}

static void hbitmap_random_operations_of_all_sizes(void **state)
{
    (void)state;
    for (size_t i = 0; i < ARRAY_COUNT(sizes); i++) {
        random_state = i;
        random_run(sizes[i], sizes[i] > 100000 ? 12 : sizes[i] > 4000 ? 150 : 1000);
    }
}

static void hbitmap_with_itself(void **state)
{
    (void)state;
    for (size_t i = 0; i < ARRAY_COUNT(sizes); i++) {
        for (enum operation operation = OR; operation <= SUBTRACT; operation++) {
            struct pair p;

            random_state = i;
            pair_open(&p, sizes[i]);
            pair_load(&p, 0, sizes[i], 2);
            pair_operate(operation, &p, &p);
            pair_load(&p, 0, sizes[i], 3);
            pair_operate(operation, &p, &p);
            pair_close(&p);
        }
    }
}

/* ---- Resizing ------------------------------------------------------------------------------- */

static void hbitmap_resize_between_all_sizes(void **state)
{
    (void)state;
    for (size_t i = 0; i < ARRAY_COUNT(sizes); i++) {
        for (size_t j = 0; j < ARRAY_COUNT(sizes); j++) {
            for (int style = 1 + (int)(i + j) % 3; style < 4; style += 3) {
                struct pair p;

                random_state = i;
                pair_open(&p, sizes[i]);
                pair_load(&p, 0, sizes[i], style);
                pair_resize(&p, sizes[j]);
                pair_list(&p, 0, sizes[j], 0, LIST_MAX);
                pair_close(&p);
            }
        }
    }
}

static void hbitmap_resize_that_fails_changes_nothing(void **state)
{
    struct pair p;

    (void)state;
    pair_open(&p, 5000);
    pair_load(&p, 0, 5000, 2);
    assert_int_equal(blkrepl__hbitmap_resize(&p.map, HBITMAP_BITS_MAX + 1), -EFBIG);
    assert_int_equal(blkrepl__hbitmap_resize(&p.map, UINT64_MAX), -EFBIG);
    pair_compare(&p, "resize");
    allocs_left = 0;
    assert_int_equal(blkrepl__hbitmap_resize(&p.map, 5001), -ENOMEM);
    pair_compare(&p, "resize");
    assert_int_equal(blkrepl__hbitmap_resize(&p.map, 5000), 0);
    pair_compare(&p, "resize");
    allocs_left = 1;
    assert_int_equal(blkrepl__hbitmap_resize(&p.map, 300000), 0);
    assert_int_equal(p.map.bit_count, 300000);
    pair_close(&p);
}

/* ---- Large and nearly empty sets ------------------------------------------------------------ */

#define FAR (UINT64_C(1) << 26) /* five levels */

static void hbitmap_far_bits(void **state)
{
    static const uint64_t bits[] = {0, 4095, 262143, 262144, 16777215, 16777216, FAR - 1};
    struct hbitmap map;
    struct hbitmap other;
    uint64_t list[ARRAY_COUNT(bits)];
    uint64_t at = 0;
    const char *reason;

    (void)state;
    assert_int_equal(blkrepl__hbitmap_init(&map, test_alloc(), FAR), 0);
    assert_int_equal(blkrepl__hbitmap_init(&other, test_alloc(), FAR), 0);
    for (size_t i = 0; i < ARRAY_COUNT(bits); i++) {
        blkrepl__hbitmap_mark(i % 2 ? &map : &other, bits[i], 1);
    }
    blkrepl__hbitmap_or(&map, &other);
    assert_int_equal(blkrepl__hbitmap_list(&map, &at, FAR, 0, list, ARRAY_COUNT(bits)), 7);
    assert_memory_equal(list, bits, sizeof bits);
    assert_true(at == FAR);
    blkrepl__hbitmap_subtract(&map, &other);
    assert_int_equal(blkrepl__hbitmap_count(&map), 3);
    assert_true(blkrepl__hbitmap_validate(&map, &reason));
    blkrepl__hbitmap_and(&map, &other);
    assert_true(blkrepl__hbitmap_next_set(&map, 0, FAR) == FAR);
    assert_true(blkrepl__hbitmap_validate(&map, &reason));
    blkrepl__hbitmap_mark(&other, 100, FAR - 100);
    assert_true(blkrepl__hbitmap_validate(&other, &reason));
    assert_true(blkrepl__hbitmap_count(&other) == FAR - 99);
    blkrepl__hbitmap_clear_all(&other);
    assert_int_equal(blkrepl__hbitmap_count(&other), 0);
    assert_true(blkrepl__hbitmap_validate(&other, &reason));
    blkrepl__hbitmap_fini(&map);
    blkrepl__hbitmap_fini(&other);
}

/* ---- Marking while others mark and look ----------------------------------------------------- */

/* Another mark() has set a bit of the word and not come to the levels above yet: what
 * is marked now is found all the same. */
static void hbitmap_mark_does_not_rely_on_one_that_is_going_on(void **state)
{
    static const uint64_t marked[] = {200000, 200001};

    (void)state;
    for (size_t i = 0; i < ARRAY_COUNT(marked); i++) {
        for (uint32_t done = 1; done < 4; done++) {
            struct pair p;

            pair_open(&p, 300001);
            p.map.set_count = 1;
            for (uint32_t n = 0; n < done; n++) {
                uint64_t bit = UINT64_C(200000) >> (6 * n);

                p.map.level[n][bit / 64] = UINT64_C(1) << (bit % 64);
            }
            blkrepl__hbitmap_mark(&p.map, marked[i], 1);
            assert_true(blkrepl__hbitmap_next_set(&p.map, 0, 300001) == 200000);
            p.bits[200000] = 1;
            p.bits[marked[i]] = 1;
            pair_compare(&p, "mark");
            pair_close(&p);
        }
    }
}

#define CROWD_BITS 300001
#define CROWD_MARKS 4000
#define MARKERS 3
#define LOOKERS 2

struct crowd {
    struct hbitmap map;
    _Atomic uint32_t markers_left;
};

struct member {
    struct crowd *crowd;
    uint64_t seed;
    const char *wrong; /* what it has seen */
    unsigned char bits[CROWD_BITS];
};

/* Only every third bit is ever marked, but in the last thousand. */
static bool member_may(uint64_t bit)
{
    return bit % 3 == 0 || bit >= CROWD_BITS - 1000;
}

static uint64_t member_random(struct member *m, uint64_t below)
{
    m->seed = m->seed * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
    return (m->seed >> 24) % below;
}

static void *marker_run(void *user)
{
    struct member *m = user;
    const struct hbitmap *map = &m->crowd->map;

    for (int i = 0; i < CROWD_MARKS; i++) {
        uint64_t first = (uint64_t)i * 64 + member_random(m, 64);
        uint64_t count = 1;
        uint64_t from;
        uint64_t listed;

        if (i % 50 == 0) {
            first = CROWD_BITS - 1 - member_random(m, 1000);
            count = 1 + member_random(m, CROWD_BITS - first);
        } else {
            first -= first % 3;
        }
        blkrepl__hbitmap_mark(&m->crowd->map, first, count);
        memset(m->bits + first, 1, (size_t)count);
        from = first;
        if (!blkrepl__hbitmap_test(map, first) ||
            blkrepl__hbitmap_next_set(map, first / 4096 * 4096, CROWD_BITS) > first ||
            blkrepl__hbitmap_next_clear(map, first, first + count) != first + count ||
            blkrepl__hbitmap_list(map, &from, CROWD_BITS, 0, &listed, 1) != 1 || listed != first) {
            m->wrong = "what was marked is not found";
        }
    }
    atomic_fetch_sub(&m->crowd->markers_left, 1);
    return NULL;
}

static void looker_list(struct member *m, uint64_t from)
{
    uint64_t list[50];
    uint32_t listed = blkrepl__hbitmap_list(&m->crowd->map, &from, CROWD_BITS, 0, list, 50);

    for (uint32_t i = 0; i < listed; i++) {
        if (!member_may(list[i]) || (i > 0 && list[i] <= list[i - 1])) {
            m->wrong = "a list of what nobody marked";
        }
        m->bits[list[i]] = 1;
    }
}

static void *looker_run(void *user)
{
    struct member *m = user;
    const struct hbitmap *map = &m->crowd->map;
    uint64_t count = 0;

    while (atomic_load(&m->crowd->markers_left) > 0) {
        uint64_t from = member_random(m, CROWD_BITS);
        uint64_t found = blkrepl__hbitmap_next_set(map, from, CROWD_BITS);
        uint64_t now = blkrepl__hbitmap_count(map);

        if (found < CROWD_BITS && (!member_may(found) || !blkrepl__hbitmap_test(map, found))) {
            m->wrong = "found what nobody marked";
        }
        if (now < count || now > CROWD_BITS) {
            m->wrong = "the count goes back";
        }
        count = now;
        looker_list(m, from);
        if (from < CROWD_BITS - 1000 &&
            blkrepl__hbitmap_next_clear(map, from, CROWD_BITS) > from + 1) {
            m->wrong = "no clear bit among those that nobody marks";
        }
    }
    return NULL;
}

static void crowd_join(struct crowd *crowd, pthread_t *ids, struct member *members)
{
    struct pair all = {.count = CROWD_BITS};

    all.bits = calloc(1, CROWD_BITS);
    assert_non_null(all.bits);
    for (size_t i = 0; i < MARKERS + LOOKERS; i++) {
        assert_int_equal(pthread_join(ids[i], NULL), 0);
        if (members[i].wrong != NULL) {
            fail_msg("thread %zu: %s", i, members[i].wrong);
        }
        for (uint64_t bit = 0; bit < CROWD_BITS; bit++) {
            all.bits[bit] |= members[i].bits[bit];
        }
    }
    all.map = crowd->map;
    pair_compare(&all, "all threads");
    free(all.bits);
}

static void hbitmap_mark_while_others_mark_and_look(void **state)
{
    struct crowd crowd = {.markers_left = MARKERS};
    struct member *members = calloc(MARKERS + LOOKERS, sizeof *members);
    pthread_t ids[MARKERS + LOOKERS];

    (void)state;
    assert_non_null(members);
    assert_int_equal(blkrepl__hbitmap_init(&crowd.map, test_alloc(), CROWD_BITS), 0);
    for (size_t i = 0; i < MARKERS + LOOKERS; i++) {
        members[i].crowd = &crowd;
        members[i].seed = i;
        assert_int_equal(
            pthread_create(&ids[i], NULL, i < MARKERS ? marker_run : looker_run, &members[i]), 0);
    }
    crowd_join(&crowd, ids, members);
    blkrepl__hbitmap_fini(&crowd.map);
    free(members);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(hbitmap_all_small_sets_with_all_others),
        cmocka_unit_test(hbitmap_all_small_sets_in_all_ranges_and_sizes),
        cmocka_unit_test(hbitmap_random_operations_of_all_sizes),
        cmocka_unit_test(hbitmap_with_itself),
        cmocka_unit_test(hbitmap_resize_between_all_sizes),
        cmocka_unit_test(hbitmap_resize_that_fails_changes_nothing),
        cmocka_unit_test(hbitmap_far_bits),
        cmocka_unit_test(hbitmap_mark_does_not_rely_on_one_that_is_going_on),
        cmocka_unit_test(hbitmap_mark_while_others_mark_and_look),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
