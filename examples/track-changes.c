/* SPDX-License-Identifier: MIT */
/* track-changes.c - what a guest has written, as a map to look at, to save and to merge.
 *
 *     track-changes [DISK]           two days of a guest; leaves monday.map, tuesday.map and
 *                                    both.map; DISK is overwritten, else it is in memory
 *     track-changes show FILE        the picture of a saved map
 *     track-changes merge OUT A B    what changed in A or in B, to OUT
 *
 * Each day has a bitmap of its own.  At midnight the next one takes over at one instant, so
 * every write is in one of the two.  What was saved is loaded into bitmaps that belong to no
 * image, and merged; that must be what the guest has noted by itself.
 * Exit codes: 0 done and right, 1 not, or an error, 2 usage.
 */
#include <errno.h>
#include <inttypes.h>
#include <langinfo.h>
#include <locale.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <libblkrepl/libblkrepl.h>

#define MIB (UINT64_C(1) << 20)
#define DISK_BYTES (256 * MIB)
#define GRANULE_BYTES 16384u
#define COLUMNS 64u
#define ROWS 8u
#define PART_BYTES 512u /* of a saved map, which has a bit for each granule */

static blkrepl_context *ctx;
static blkrepl_image *disk;
static unsigned char notes[3][DISK_BYTES / GRANULE_BYTES / 8]; /* the guest's: days, and both */

static void die(const char *what, const char *why)
{
    fprintf(stderr, "track-changes: %s: %s\n", what, why);
    exit(1);
}

/* Pass on the answer of a call that did not fail. */
static int check(int answer, const char *what)
{
    if (answer < 0) {
        die(what, blkrepl_error_message());
    }
    return answer;
}

static blkrepl_bitmap_info query(blkrepl_bitmap *map)
{
    blkrepl_bitmap_info info = {.struct_size = sizeof info};

    check(blkrepl_bitmap_query(map, &info), "query");
    return info;
}

/* ---- The picture -------------------------------------------------------------------------- */

/* "1.5 GiB"; returns out. */
static const char *human(char out[24], uint64_t bytes)
{
    double value = (double)bytes;
    unsigned unit = 0;

    for (; value >= 1024; unit++) {
        value /= 1024;
    }
    snprintf(out, 24, "%.4g %.3s", value, &"B  KiBMiBGiBTiBPiBEiB"[3 * unit]);
    return out;
}

static uint64_t dirty_bytes(blkrepl_bitmap *map, uint64_t offset, uint64_t bytes)
{
    uint64_t dirty = 0, end = offset + bytes;
    blkrepl_area area;

    while (check(blkrepl_bitmap_next_area(map, offset, end - offset, 0, &area), "look") == 1) {
        dirty += area.bytes;
        offset = area.offset + area.bytes;
    }
    return dirty;
}

/* A character for each region: blank if it is clean, the last one only if all is dirty. */
static void show(blkrepl_bitmap *map, const char *title)
{
    static const char *const plain[] = {" ", ".", ":", "-", "=", "+", "*", "#", "@"};
    static const char *const bars[] = {" ", "▁", "▂", "▃", "▄", "▅", "▆", "▇", "█"};
    const char *const *shades = strcmp(nl_langinfo(CODESET), "UTF-8") == 0 ? bars : plain;
    blkrepl_bitmap_info info = query(map);
    uint64_t granules = (info.bytes - 1) / info.granularity_bytes / (ROWS * COLUMNS) + 1;
    uint64_t region = granules * info.granularity_bytes, bytes, i = 0;
    char a[24], b[24];

    printf("%s: %s of %s changed\n", title, human(a, info.dirty_bytes), human(b, info.bytes));
    for (uint64_t left = info.bytes; left > 0; left -= bytes, i++) {
        bytes = left < region ? left : region;
        uint64_t dirty = dirty_bytes(map, info.bytes - left, bytes);

        if (i % COLUMNS == 0) {
            printf("%s%9s |", i > 0 ? "|\n" : "", human(a, info.bytes - left));
        }
        fputs(shades[dirty == bytes ? 8 : (dirty > 0) + dirty / (bytes / 7 + 1)], stdout);
    }
    printf("|\n%11s%s each: ' ' nothing, %s", "", human(a, region), shades[1]);
    for (i = 2; i < 8; i++) {
        fputs(shades[i], stdout);
    }
    printf(" some, %s all of it\n\n", shades[8]);
}

/* ---- Saved maps: a line with size, granularity and SHA-256, then the bits, in parts --------- */

static const char *sha256(blkrepl_bitmap *map, char hex[65])
{
    uint8_t digest[32];

    check(blkrepl_bitmap_sha256(map, digest), "sha256");
    for (int i = 0; i < 32; i++) {
        snprintf(hex + 2 * i, 3, "%02x", digest[i]);
    }
    return hex;
}

/* How long the part is that begins at `offset`. */
static uint64_t part_bytes(const blkrepl_bitmap_info *info, uint64_t offset)
{
    uint64_t left = info->bytes - offset;

    return left / PART_BYTES / 8 < info->granularity_bytes
               ? left
               : info->granularity_bytes * PART_BYTES * 8;
}

static void save(blkrepl_bitmap *map, const char *path)
{
    blkrepl_bitmap_info info = query(map);
    unsigned char data[PART_BYTES];
    FILE *file = fopen(path, "wb");
    char hex[65];

    if (file == NULL) {
        die(path, strerror(errno));
    }
    fprintf(file, "blkmap1 %" PRIu64 " %" PRIu64 " %s\n", info.bytes, info.granularity_bytes,
            sha256(map, hex));
    for (uint64_t bytes, at = 0; at < info.bytes; at += bytes) {
        uint64_t length = sizeof data;

        bytes = part_bytes(&info, at);
        check(blkrepl_bitmap_save(map, at, bytes, data, &length), path);
        fwrite(data, (size_t)length, 1, file);
    }
    int error = ferror(file);
    if (fclose(file) != 0 || error) {
        die(path, "cannot be written");
    }
}

/* Trusts nothing: a file that is damaged is refused. */
static blkrepl_bitmap *load(const char *path)
{
    blkrepl_bitmap_options options = {.struct_size = sizeof options};
    char wanted[65], hex[65], newline;
    unsigned char data[PART_BYTES];
    FILE *file = fopen(path, "rb");
    blkrepl_bitmap *map;

    if (file == NULL) {
        die(path, strerror(errno));
    }
    if (fscanf(file, "blkmap1 %19" SCNu64 " %19" SCNu64 " %64[0-9a-f]%c", &options.bytes,
               &options.granularity_bytes, wanted, &newline) != 4 ||
        newline != '\n') {
        die(path, "not a saved map");
    }
    check(blkrepl_bitmap_create(ctx, &options, &map), path);
    check(blkrepl_bitmap_load_begin(map), path);
    blkrepl_bitmap_info info = query(map);
    for (uint64_t bytes, at = 0; at < info.bytes; at += bytes) {
        bytes = part_bytes(&info, at);
        uint64_t length = ((bytes - 1) / info.granularity_bytes + 8) / 8;
        if (fread(data, (size_t)length, 1, file) != 1) {
            die(path, "cut short");
        }
        check(blkrepl_bitmap_load(map, at, bytes, data, length), path);
    }
    check(blkrepl_bitmap_load_finish(map), path);
    if (fgetc(file) != EOF || strcmp(sha256(map, hex), wanted) != 0) {
        die(path, "damaged");
    }
    fclose(file);
    return map;
}

/* ---- Two days ----------------------------------------------------------------------------- */

static void guest_write(int day, uint64_t offset, uint32_t bytes)
{
    static char data[MIB];
    const blkrepl_iovec iov = {data, bytes};

    check(blkrepl_image_write_wait(disk, 0, offset, &iov, 1, 0), "guest write");
    for (uint64_t i = offset / GRANULE_BYTES; i <= (offset + bytes - 1) / GRANULE_BYTES; i++) {
        notes[day][i / 8] |= (unsigned char)(1 << i % 8);
        notes[2][i / 8] |= (unsigned char)(1 << i % 8);
    }
}

/* A little here and there, a database around one place, one new file. */
static void guest_day(int day, uint64_t database, uint64_t file, uint64_t file_end)
{
    static uint64_t random; /* the same pictures every time */

    for (uint64_t offset = 0; offset < DISK_BYTES; offset += 8 * MIB) {
        guest_write(day, offset, 65536);
    }
    for (int i = 0; i < 3000; i++) {
        uint64_t near = 0;
        for (int dice = 0; dice < 4; dice++) {
            random = random * 6364136223846793005u + 1442695040888963407u;
            near += (random >> 32) % (12 * MIB);
        }
        guest_write(day, (database - 24 * MIB + near) / 4096 * 4096, 4096);
    }
    for (; file < file_end; file += MIB) {
        guest_write(day, file, (uint32_t)MIB);
    }
}

/* Of two bitmaps of the image, one instant parts the writes. */
static blkrepl_bitmap *midnight(blkrepl_bitmap *today, const blkrepl_bitmap_options *tomorrow)
{
    blkrepl_bitmap *next;
    const blkrepl_bitmap_action stop = {
        .struct_size = sizeof stop, .type = BLKREPL_BITMAP_DISABLE, .bitmap = today};
    const blkrepl_bitmap_action start = {.struct_size = sizeof start,
                                         .type = BLKREPL_BITMAP_ADD,
                                         .image = disk,
                                         .options = tomorrow,
                                         .out = &next};
    const blkrepl_bitmap_action *const actions[] = {&stop, &start};

    check(blkrepl_bitmap_transact(ctx, actions, 2), "midnight");
    return next;
}

/* Is this what the guest has noted? */
static int is_noted(blkrepl_bitmap *map, int day)
{
    unsigned char data[sizeof notes[0]];
    uint64_t length = sizeof data;

    check(blkrepl_bitmap_save(map, 0, DISK_BYTES, data, &length), "save");
    return length == sizeof data && memcmp(data, notes[day], sizeof data) == 0;
}

/* Returns the exit code. */
static int story(void)
{
    blkrepl_bitmap_options options = {
        .struct_size = sizeof options, .granularity_bytes = GRANULE_BYTES, .name = "monday"};
    blkrepl_bitmap *monday, *tuesday, *saved[2];
    char hex[4][65];

    check(blkrepl_bitmap_add(disk, &options, &monday), "add");
    guest_day(0, 180 * MIB, 70 * MIB, 110 * MIB);
    options.name = "tuesday";
    tuesday = midnight(monday, &options);
    guest_day(1, 200 * MIB, 33 * MIB, 50 * MIB);
    check(blkrepl_bitmap_disable(tuesday), "disable");

    show(monday, "monday");
    show(tuesday, "tuesday");
    save(monday, "monday.map");
    save(tuesday, "tuesday.map");
    saved[0] = load("monday.map");
    saved[1] = load("tuesday.map");
    int right = strcmp(sha256(monday, hex[0]), sha256(saved[0], hex[1])) == 0 &&
                strcmp(sha256(tuesday, hex[2]), sha256(saved[1], hex[3])) == 0 &&
                is_noted(saved[0], 0) && is_noted(saved[1], 1);

    check(blkrepl_bitmap_merge(saved[0], &saved[1], 1), "merge");
    show(saved[0], "both days");
    save(saved[0], "both.map");
    right = right && is_noted(saved[0], 2);
    printf("monday.map   sha256 %s\ntuesday.map  sha256 %s\nboth.map     sha256 %s\n", hex[1],
           hex[3], sha256(saved[0], hex[0]));
    printf("proof: saved, loaded and merged are %s the guest has noted\n",
           right ? "what" : "NOT what");

    blkrepl_bitmap_free(monday);
    blkrepl_bitmap_free(tuesday);
    blkrepl_bitmap_free(saved[0]);
    blkrepl_bitmap_free(saved[1]);
    return right ? 0 : 1;
}

static void merge_files(const char *out, const char *a, const char *b)
{
    blkrepl_bitmap *map = load(a), *more = load(b);

    check(blkrepl_bitmap_merge(map, &more, 1), b);
    save(map, out);
    show(map, out);
    blkrepl_bitmap_free(map);
    blkrepl_bitmap_free(more);
}

int main(int argc, char **argv)
{
    blkrepl_file_options create = {
        .struct_size = sizeof create, .flags = BLKREPL_FILE_CREATE, .bytes = DISK_BYTES};
    const char *verb = argc > 1 ? argv[1] : "";
    int code = 0;

    setlocale(LC_CTYPE, "");
    check(blkrepl_context_create(NULL, &ctx), "context");
    if (argc == 3 && strcmp(verb, "show") == 0) {
        blkrepl_bitmap *map = load(argv[2]);
        show(map, argv[2]);
        blkrepl_bitmap_free(map);
    } else if (argc == 5 && strcmp(verb, "merge") == 0) {
        merge_files(argv[2], argv[3], argv[4]);
    } else if (argc > 2 || verb[0] == '-' || strcmp(verb, "show") == 0 ||
               strcmp(verb, "merge") == 0) {
        fprintf(stderr, "usage: track-changes [DISK] | show FILE | merge OUT A B\n");
        code = 2;
    } else {
        check(argc == 2 ? blkrepl_image_open_file(ctx, verb, &create, NULL, &disk)
                        : blkrepl_image_open_memory(ctx, DISK_BYTES, NULL, &disk),
              argc == 2 ? verb : "disk");
        code = story();
        blkrepl_image_close(disk);
    }
    while (blkrepl_context_free(ctx) == -EBUSY) {
        blkrepl_poll(ctx, 0, 1000000);
    }
    return code;
}
