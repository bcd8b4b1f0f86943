/* SPDX-License-Identifier: MIT */
/* bitmap.c - what dirty bitmaps cost: the library's set of granules, the public functions
 * around it, plain words, and CRoaring, in turns within each round.
 *
 * Disks of 1 TiB and 64 TiB at 64 KiB.  All have the same content, and what they find is
 * compared.  Memory is touched before the clock runs, but for CRoaring, which takes it as
 * it goes.  "set a clear bit": 2^20 bits, none twice, in a map that is empty at first;
 * "set again": the same.  "mark" is how guest writes are recorded: other threads may do so
 * at once.  Densities are random bits, one by one; per bit, per area; at most 2^22 of
 * them.  "merge" adds one random half to another.  "load" comes from the kind's own form:
 * the library's checks nothing and counts and summarises anew, plain words are copied.
 *
 * The targets are parts of what QEMU's HBitmap costs.  Where QEMU's source is at hand
 * (cmake -DBLKREPL_QEMU_SOURCE=DIR) that is measured.  Otherwise it is what was measured on
 * another machine, times plain words here by plain words there, row by row; rows without a
 * figure for plain words take the factor of "iterate, half".
 *
 *     bitmap [--rounds N] [--tib N] [--quick] */
#include <stdbool.h>
#include <string.h>

#include "bench.h"
#include "bitmap/kinds.h"

#define ROUNDS_MAX 51
#define KINDS_MAX 5
#define FOUND_MAX (UINT64_C(1) << 22)

/* Those that are not there come last. */
static const struct kind *const kinds[] = {
    &kind_library, &kind_api, &kind_flat,
#ifdef BENCH_HBITMAP
    &kind_hbitmap,
#endif
#ifdef BENCH_ROARING
    &kind_roaring,
#endif
};
enum {
    LIBRARY,
    API,
    FLAT,
    HBITMAP, /* if there at all */
    KINDS = sizeof kinds / sizeof kinds[0]
};
#ifdef BENCH_HBITMAP
static const bool hbitmap_there = true;
#else
static const bool hbitmap_there = false;
#endif

enum row {
    SET_CLEAR,
    SET_AGAIN,
    MARK_CLEAR,
    OVER_GIB,
    OVER_ALL,
    TEST,
    ITERATE_1E6,
    ITERATE_1E3,
    ITERATE_HALF,
    ITERATE_FULL,
    AREA_1E3,
    AREA_HALF,
    MERGE,
    COUNT,
    SAVE,
    LOAD,
    ROWS
};

static const struct {
    const char *text;
    bool ms;   /* rather than ns */
    bool rate; /* also tell GB/s */
    /* ns, of 1 TiB and 64 TiB; 0: not known */
    double hbitmap[2];
    double flat[2];
    double share; /* the target: of HBitmap */
} rows[ROWS] = {
    [SET_CLEAR] = {"set a clear bit, random", false, false, {25, 150}, {3.5, 20}, 1.0 / 3},
    [SET_AGAIN] = {"set it again", false, false, {16, 0}, {3.5, 0}, 1.0 / 3},
    [MARK_CLEAR] = {"mark a clear bit, random", false, false, {25, 150}, {3.5, 20}, 1.0 / 3},
    [OVER_GIB] = {"set 1 GiB again", false, false, {1070, 0}, {37, 0}, 1.0 / 8},
    [OVER_ALL] = {"set all again", true, true, {1.06e6, 0}, {42e3, 0}, 1.0 / 8},
    [TEST] = {"test a bit, random", false, false, {3.0, 0}, {2.4, 0}, 1},
    [ITERATE_1E6] = {"iterate, 1e-6", false, false, {0, 0}, {0, 0}, 0},
    [ITERATE_1E3] = {"iterate, 1e-3", false, false, {6.7, 0}, {0, 0}, 0.5},
    [ITERATE_HALF] = {"iterate, half", false, false, {2.4, 0}, {0.7, 0}, 0.5},
    [ITERATE_FULL] = {"iterate, full", false, false, {0, 0}, {0, 0}, 0},
    [AREA_1E3] = {"next area, 1e-3", false, false, {21, 0}, {0, 0}, 1.0 / 3},
    [AREA_HALF] = {"next area, half", false, false, {0, 0}, {0, 0}, 0},
    [MERGE] = {"merge, half", true, true, {1.16e6, 0}, {0.15e6, 0}, 0.25},
    [COUNT] = {"count, half", true, true, {0, 0}, {0, 0}, 0},
    [SAVE] = {"save, half", true, true, {0, 0}, {0, 0}, 0},
    [LOAD] = {"load, half", true, true, {1.53e6, 0}, {0.13e6, 0}, 0.25},
};

static int rounds = 5;
static uint64_t set_count = UINT64_C(1) << 20;
static uint64_t enough_ns = 2000000; /* of a measurement */
static int size;                     /* 0: 1 TiB, 1: 64 TiB */
static uint64_t bit_count;
static double values[ROWS][KINDS_MAX][ROUNDS_MAX];
static struct found expected[ROWS];

_Noreturn void bench_die(const char *what)
{
    fprintf(stderr, "bitmap: %s\n", what);
    exit(1);
}

/* Nothing here waits for anything: time that other programs have does not count. */
static uint64_t cpu_ns(void)
{
    struct timespec used;

    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &used);
    return (uint64_t)used.tv_sec * 1000000000u + (uint64_t)used.tv_nsec;
}

/* What all kinds must agree upon. */
static void agree(enum row row, int k, struct found found)
{
    if (k == LIBRARY) {
        expected[row] = found;
    } else if (found.count != expected[row].count || found.sum != expected[row].sum) {
        fprintf(stderr, "bitmap: %s: %s finds %llu, sum %llu; the library %llu, sum %llu\n",
                rows[row].text, kinds[k]->name, (unsigned long long)found.count,
                (unsigned long long)found.sum, (unsigned long long)expected[row].count,
                (unsigned long long)expected[row].sum);
        exit(1);
    }
}

/* --- one measurement ----------------------------------------------------------------------- */

struct task {
    const struct kind *kind;
    void *map;
    unsigned char *data;
    uint64_t data_bytes;
    struct found found; /* by the last call */
};

typedef uint64_t (*action)(struct task *task); /* returns how many things it did */

/* Nanoseconds a thing: as many calls as take enough time. */
static double measure(struct task *task, action act)
{
    for (uint64_t calls = 1;; calls *= 4) {
        uint64_t start = cpu_ns();
        uint64_t things = 0;
        uint64_t ns;

        for (uint64_t i = 0; i < calls; i++) {
            things += act(task);
        }
        ns = cpu_ns() - start;
        if (ns >= enough_ns) {
            return (double)ns / (double)things;
        }
    }
}

static uint64_t do_over_gib(struct task *task)
{
    struct order order = order_of(bit_count, 7);
    uint64_t gib = bit_count > 16384 ? 16384 : bit_count;

    for (int i = 0; i < 64; i++) {
        task->kind->set(task->map, order_next(&order) / gib * gib, gib);
    }
    return 64;
}

static uint64_t do_over_all(struct task *task)
{
    task->kind->set(task->map, 0, bit_count);
    return 1;
}

static uint64_t do_test(struct task *task)
{
    task->found.count = task->kind->test_each(task->map, order_of(bit_count, 11), set_count);
    return set_count;
}

static uint64_t do_iterate(struct task *task)
{
    task->found = task->kind->iterate(task->map, FOUND_MAX);
    return task->found.count;
}

static uint64_t do_areas(struct task *task)
{
    task->found = task->kind->areas(task->map, FOUND_MAX);
    return task->found.count;
}

static uint64_t do_count(struct task *task)
{
    task->found.count = task->kind->count(task->map);
    return 1;
}

static uint64_t do_save(struct task *task)
{
    task->data_bytes = task->kind->save(task->map, task->data);
    return 1;
}

static uint64_t do_load(struct task *task)
{
    task->kind->load(task->map, task->data, task->data_bytes);
    return 1;
}

static void look(enum row row, int k, int round, struct task *task, action act)
{
    task->found = (struct found){0, 0};
    values[row][k][round] = measure(task, act);
    if (task->found.count < FOUND_MAX || act == do_count) {
        agree(row, k, task->found);
    }
}

/* --- stages: maps of one density, all kinds in turns --------------------------------------- */

static void maps_create(void *maps[KINDS])
{
    for (int k = 0; k < KINDS; k++) {
        maps[k] = kinds[k]->create(bit_count);
        kinds[k]->set(maps[k], 0, bit_count);
    }
}

static void maps_free(void *maps[KINDS])
{
    for (int k = 0; k < KINDS; k++) {
        kinds[k]->free(maps[k]);
    }
}

typedef void (*setter)(void *map, struct order order, uint64_t count);

static double time_set(setter set, void *map)
{
    uint64_t start = cpu_ns();

    set(map, order_of(bit_count, 1), set_count);
    return (double)(cpu_ns() - start) / (double)set_count;
}

static void stage_set(void)
{
    void *maps[KINDS];

    maps_create(maps);
    for (int i = 0; i < rounds * KINDS; i++) {
        int k = i % KINDS;
        const struct kind *kind = kinds[k];

        kind->clear(maps[k]);
        values[SET_CLEAR][k][i / KINDS] = time_set(kind->set_each, maps[k]);
        values[SET_AGAIN][k][i / KINDS] = time_set(kind->set_each, maps[k]);
        agree(SET_AGAIN, k, (struct found){kind->count(maps[k]), 0});
        if (kind->mark_each != NULL) {
            kind->clear(maps[k]);
            values[MARK_CLEAR][k][i / KINDS] = time_set(kind->mark_each, maps[k]);
            agree(MARK_CLEAR, k, (struct found){kind->count(maps[k]), 0});
        }
    }
    if (expected[SET_AGAIN].count != set_count || expected[MARK_CLEAR].count != set_count) {
        bench_die("not all bits were set");
    }
    maps_free(maps);
}

static void stage_sparse(uint64_t one_in, enum row iterate, enum row areas)
{
    void *maps[KINDS];

    maps_create(maps);
    for (int k = 0; k < KINDS; k++) {
        kinds[k]->clear(maps[k]);
        kinds[k]->set_each(maps[k], order_of(bit_count, 3), bit_count / one_in);
    }
    for (int i = 0; i < rounds * KINDS; i++) {
        int k = i % KINDS;
        struct task task = {.kind = kinds[k], .map = maps[k]};

        look(iterate, k, i / KINDS, &task, do_iterate);
        if (areas != ROWS) {
            look(areas, k, i / KINDS, &task, do_areas);
        }
    }
    maps_free(maps);
}

static void fill_random(unsigned char *data, uint64_t bytes, uint64_t seed)
{
    for (uint64_t i = 0; i < bytes; i++) {
        seed = seed * UINT64_C(6364136223846793005) + 1442695040888963407u;
        data[i] = (unsigned char)(seed >> 40);
    }
}

/* Into a map that has a random half already; the maps' other half is kept in `mine`. */
static double time_merge(const struct kind *kind, void *map, void *mine, void *other)
{
    uint64_t ns = 0;
    uint64_t times = 0;

    do {
        uint64_t start;

        kind->clear(map);
        kind->merge(map, mine);
        start = cpu_ns();
        kind->merge(map, other);
        ns += cpu_ns() - start;
        times++;
    } while (ns < enough_ns);
    return (double)ns / (double)times;
}

static void half_round(int k, int round, void *const maps[3], unsigned char *data)
{
    struct task task = {.kind = kinds[k], .map = maps[0], .data = data};
    struct task again = {.kind = kinds[k], .map = maps[2], .data = data};

    look(TEST, k, round, &task, do_test);
    look(ITERATE_HALF, k, round, &task, do_iterate);
    look(AREA_HALF, k, round, &task, do_areas);
    look(COUNT, k, round, &task, do_count);
    values[MERGE][k][round] = time_merge(kinds[k], maps[2], maps[0], maps[1]);
    agree(MERGE, k, (struct found){kinds[k]->count(maps[2]), 0});
    look(SAVE, k, round, &task, do_save);
    again.data_bytes = task.data_bytes;
    look(LOAD, k, round, &again, do_load);
    agree(COUNT, k, (struct found){kinds[k]->count(maps[2]), 0});
}

static void stage_half(void)
{
    void *maps[3][KINDS];
    uint64_t bytes = bit_count / 8;
    unsigned char *data = malloc((size_t)(bytes + bytes / 64 + 4096));

    if (data == NULL) {
        bench_die("no memory");
    }
    for (int m = 0; m < 3; m++) {
        maps_create(maps[m]);
        fill_random(data, bytes, (uint64_t)m + 1);
        for (int k = 0; k < KINDS && m < 2; k++) {
            kinds[k]->clear(maps[m][k]);
            kinds[k]->fill(maps[m][k], data, bytes);
        }
    }
    for (int i = 0; i < rounds * KINDS; i++) {
        int k = i % KINDS;
        void *const mine[3] = {maps[0][k], maps[1][k], maps[2][k]};

        half_round(k, i / KINDS, mine, data);
    }
    for (int m = 0; m < 3; m++) {
        maps_free(maps[m]);
    }
    free(data);
}

static void stage_full(void)
{
    void *maps[KINDS];

    maps_create(maps);
    for (int i = 0; i < rounds * KINDS; i++) {
        int k = i % KINDS;
        struct task task = {.kind = kinds[k], .map = maps[k]};

        look(OVER_GIB, k, i / KINDS, &task, do_over_gib);
        look(OVER_ALL, k, i / KINDS, &task, do_over_all);
        look(ITERATE_FULL, k, i / KINDS, &task, do_iterate);
    }
    maps_free(maps);
}

/* --- memory -------------------------------------------------------------------------------- */

enum {
    DENSITIES = 3
};
static const struct {
    const char *text;
    uint64_t one_in; /* 0: none */
    double target;   /* KiB per TiB */
} memory_rows[DENSITIES] = {
    {"memory, empty", 0, 64}, {"memory, 1e-3", 1000, 0}, {"memory, full", 1, 2.2e6 / 1024}};
static double memory[2][DENSITIES][KINDS_MAX];

static void choose_size(int which)
{
    size = which;
    bit_count = UINT64_C(1) << (which == 0 ? 24 : 30);
}

/* Before anything else: what the process has freed would be used again and not be seen. */
static void look_at_memory(int which)
{
    choose_size(which);
    for (int i = 0; i < DENSITIES; i++) {
        uint64_t ones = memory_rows[i].one_in == 0 ? 0 : bit_count / memory_rows[i].one_in;

        for (int k = 0; k < KINDS; k++) {
            memory[which][i][k] =
                memory_kib(kinds[k], bit_count, ones) * (1 << 24) / (double)bit_count;
        }
    }
}

/* --- the table ----------------------------------------------------------------------------- */

static double medians[ROWS][KINDS_MAX];

/* Plain words here, in terms of plain words on the machine of the targets. */
static double machine_factor(enum row row)
{
    enum row of = row == MARK_CLEAR ? SET_CLEAR : row;

    if (rows[row].flat[size] == 0) {
        of = ITERATE_HALF;
    }
    return medians[of][FLAT] / rows[of].flat[size];
}

/* What HBitmap costs here, in ns; 0: not known. */
static double hbitmap_ns(enum row row)
{
    enum row of = row == MARK_CLEAR ? SET_CLEAR : row;

    if (hbitmap_there) {
        return medians[of][HBITMAP];
    }
    return rows[row].hbitmap[size] == 0 ? 0 : rows[row].hbitmap[size] * machine_factor(row);
}

static void print_head(void)
{
    printf("\n%d TiB at 64 KiB: %llu bits, %llu MiB of them; CPU time, median of %d interleaved"
           " rounds\n",
           size == 0 ? 1 : 64, (unsigned long long)bit_count, (unsigned long long)(bit_count >> 23),
           rounds);
    printf("%-34s", "");
    for (int k = 0; k < KINDS; k++) {
        printf("  %10s", kinds[k]->name);
    }
    printf("      target    met by\n");
}

static void print_cell(double value)
{
    if (value == 0) {
        printf("  %10s", "-");
    } else {
        printf("  %10.*f", value < 0.995 ? 3 : value < 99.95 ? 2 : 0, value);
    }
}

static void print_cells(const double *cells, double scale)
{
    for (int k = 0; k < KINDS; k++) {
        print_cell(cells[k] * scale);
    }
}

static void print_target(const double *cells, double target, double scale)
{
    bool library = cells[LIBRARY] <= target;
    bool api = cells[API] > 0 && cells[API] <= target;

    print_cell(target * scale);
    printf("  %8s", library && api ? "both" : library ? "library" : api ? "API" : "neither");
}

static void print_row(enum row row)
{
    double scale = rows[row].ms ? 1e-6 : 1;
    double hbitmap = hbitmap_ns(row);
    double rates[KINDS];

    printf("  %-25s %-6s", rows[row].text, rows[row].ms ? "ms" : "ns");
    print_cells(medians[row], scale);
    if (rows[row].share != 0 && hbitmap != 0) {
        print_target(medians[row], hbitmap * rows[row].share, scale);
    }
    printf("\n");
    if (rows[row].rate) {
        for (int k = 0; k < KINDS; k++) {
            rates[k] = medians[row][k] < 1000 ? 0 : (double)bit_count / 8 / medians[row][k];
        }
        printf("  %-25s %-6s", "", "GB/s");
        print_cells(rates, 1);
        printf("\n");
    }
}

static void print_memory(void)
{
    for (int i = 0; i < DENSITIES; i++) {
        const double *kib = memory[size][i];

        printf("  %-23s %-8s", memory_rows[i].text, "KiB/TiB");
        print_cells(kib, 1);
        if (memory_rows[i].target != 0) {
            print_target(kib, memory_rows[i].target, 1);
        }
        printf("\n");
    }
}

static void print_notes(void)
{
#ifndef BENCH_ROARING
    printf("\nCRoaring: not there (tests/install-deps test)\n");
#endif
    printf(
        "\ntarget: of HBitmap's cost a third for setting and areas, an eighth for setting\n"
        "what is set, a quarter for merging and loading, half for iterating, all for testing.\n");
    if (!hbitmap_there) {
        printf("HBitmap: not there (cmake -DBLKREPL_QEMU_SOURCE=DIR); its cost is taken to be\n"
               "that where the targets were set, times plain words here by plain words there.\n");
    }
    printf("mark: as guest writes are recorded.  GB/s: of bits, 8 a byte; -: below 1 us.\n");
}

static void run_size(int which)
{
    choose_size(which);
    memset(values, 0, sizeof values);
    print_head();
    stage_set();
    stage_sparse(1000000, ITERATE_1E6, ROWS);
    stage_sparse(1000, ITERATE_1E3, AREA_1E3);
    stage_half();
    stage_full();
    for (int row = 0; row < ROWS; row++) {
        for (int k = 0; k < KINDS; k++) {
            medians[row][k] = bench_median(values[row][k], rounds);
        }
    }
    for (int row = 0; row < ROWS; row++) {
        print_row((enum row)row);
    }
    print_memory();
}

int main(int argc, char **argv)
{
    bool usage = false;
    bool quick = false;
    int tib = 0;

    for (int i = 1; i < argc && !usage; i++) {
        if (strcmp(argv[i], "--quick") == 0) {
            quick = true;
        } else if (i + 1 < argc && strcmp(argv[i], "--rounds") == 0) {
            rounds = atoi(argv[++i]);
        } else if (i + 1 < argc && strcmp(argv[i], "--tib") == 0) {
            tib = atoi(argv[++i]);
        } else {
            usage = true;
        }
    }
    if (usage || rounds < 1 || rounds > ROUNDS_MAX || (tib != 0 && tib != 1 && tib != 64)) {
        fprintf(stderr, "usage: bitmap [--rounds N] [--tib 1 | --tib 64] [--quick]\n");
        return 2;
    }
    if (quick) {
        rounds = 1;
        tib = 1;
        enough_ns = 1;
        set_count >>= 4;
    }
    for (int which = 0; which < 2; which++) {
        if (tib == 0 || tib == (which == 0 ? 1 : 64)) {
            look_at_memory(which);
        }
    }
    for (int which = 0; which < 2; which++) {
        if (tib == 0 || tib == (which == 0 ? 1 : 64)) {
            run_size(which);
        }
    }
    print_notes();
    return 0;
}
