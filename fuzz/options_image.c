/* SPDX-License-Identifier: MIT */
/* options_image.c - images with options, tables and answers from the input. */
#include "options.h"

#include "base/abi.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#define FILE_BYTES 10000
#define FILE_FLAGS (uint32_t)(BLKREPL_FILE_CREATE | BLKREPL_FILE_EXCLUSIVE | BLKREPL_FILE_DIRECT)
#define ROUND_TRIP_LIMIT (UINT64_C(1) << 40)

static const struct field image_fields[] = {
    FIELD(blkrepl_image_options, flags, FIELD_U32),
    FIELD(blkrepl_image_options, reserved0, FIELD_POINTER),
};
static const struct field ops_fields[] = {
    FIELD(blkrepl_backend_ops, flags, FIELD_U32),
};
static const struct field info_fields[] = {
    FIELD(blkrepl_backend_info, bytes, FIELD_U64),
    FIELD(blkrepl_backend_info, transfer_bytes_max, FIELD_U64),
    FIELD(blkrepl_backend_info, zeroes_bytes_max, FIELD_U64),
    FIELD(blkrepl_backend_info, request_alignment, FIELD_U32),
    FIELD(blkrepl_backend_info, memory_alignment, FIELD_U32),
    FIELD(blkrepl_backend_info, iov_count_max, FIELD_U32),
    FIELD(blkrepl_backend_info, cluster_bytes, FIELD_U32),
    FIELD(blkrepl_backend_info, queue_depth, FIELD_U32),
    FIELD(blkrepl_backend_info, opcodes, FIELD_U32),
    FIELD(blkrepl_backend_info, flags, FIELD_U32),
    FIELD(blkrepl_backend_info, copy_bytes_max, FIELD_U64),
    FIELD(blkrepl_backend_info, copy_domain, FIELD_POINTER),
    FIELD(blkrepl_backend_info, reserved0, FIELD_POINTER),
};
#define BACKEND_FLAGS                                                                              \
    (uint32_t)(BLKREPL_BACKEND_READ_ONLY | BLKREPL_BACKEND_FUA | BLKREPL_BACKEND_COMPRESS)
static const struct field file_fields[] = {
    FIELD(blkrepl_file_options, bytes, FIELD_U64),
    FIELD(blkrepl_file_options, mode, FIELD_U32),
    FIELD(blkrepl_file_options, queue_depth, FIELD_U32),
    FIELD(blkrepl_file_options, flags, FIELD_U32),
};

static const struct shape image_shape =
    SHAPE(blkrepl_image_options, BLKREPL_IMAGE_OPTIONS_V1_BYTES, image_fields);
static const struct shape ops_shape =
    SHAPE(blkrepl_backend_ops, BLKREPL_BACKEND_OPS_V1_BYTES, ops_fields);
static const struct shape info_shape =
    SHAPE(blkrepl_backend_info, BLKREPL_BACKEND_INFO_V1_BYTES, info_fields);
static const struct shape file_shape =
    SHAPE(blkrepl_file_options, BLKREPL_FILE_OPTIONS_V1_BYTES, file_fields);

/* ---- Options of any image ---------------------------------------------------- */

struct image_options image_options_draw(struct verdict *verdict)
{
    struct image_options options = {.typed = {.struct_size = 0}};
    blkrepl_image_options *o = &options.typed;

    shape_draw(&image_shape, o);
    if (take_chance(40)) {
        o->flags = BLKREPL_IMAGE_READ_ONLY;
    }
    options.name = name_draw();
    options.release = release_new();
    o->name = options.name;
    o->user = options.release;
    o->release = options.release != NULL ? release_run : NULL;
    options.packed = shape_pack(&image_shape, o, true);
    if (options.packed.packing == PACKED_NULL) {
        *o = (blkrepl_image_options){.struct_size = 0};
        return options;
    }
    verdict_add_packing(verdict, &options.packed);
    verdict_add_if(verdict,
                   (o->flags & ~(uint32_t)BLKREPL_IMAGE_READ_ONLY) != 0 || o->reserved0 != NULL ||
                       (o->name != NULL && strlen(o->name) > BLKREPL_NAME_MAX),
                   -EINVAL);
    return options;
}

void image_options_drop(struct image_options *options)
{
    packed_free(&options->packed);
}

void image_options_expect_released(const struct image_options *options)
{
    if (options->release == NULL) {
        return;
    }
    if (options->packed.packing == PACKED_NULL || options->packed.packing == PACKED_SHORT) {
        EXPECT(options->release->count == 0, "no release that the library cannot know");
        release_run(options->release);
    }
    EXPECT(options->release->count == 1, "the image's user to be released once, got %u",
           options->release->count);
}

blkrepl_image_info image_expect_info(blkrepl_image *image, const struct image_options *options)
{
    blkrepl_image_info info = {.struct_size = sizeof info};
    int rc = blkrepl_image_query(image, &info);

    EXPECT(rc == 0 && info.struct_size == sizeof info && info.requests_in_flight == 0 &&
               info.reserved0 == NULL,
           "an image to answer a query, got %d", rc);
    EXPECT(info.user == options->typed.user, "the user that was given");
    EXPECT(name_matches(options->typed.name, "image", info.id, info.name),
           "the name that was given, got \"%s\"", info.name);
    EXPECT((options->typed.flags & BLKREPL_IMAGE_READ_ONLY) == 0 ||
               info.flags == BLKREPL_IMAGE_READ_ONLY,
           "an image that is read-only as asked for, got 0x%x", (unsigned)info.flags);
    return info;
}

/* An image that was opened is used, and closed. */
static void image_use(blkrepl_image *image, const struct image_options *options, bool bundled)
{
    blkrepl_image_info info = image_expect_info(image, options);
    uint64_t bytes = info.bytes < 3000 ? info.bytes : 3000;
    /* A file past the page cache: its threads are not waited for here. */
    bool threads = bundled && info.request_alignment > 1;
    blkrepl_completion done = {.fn = NULL};
    int rc;

    heap.fail_call = 0;
    if ((info.flags & BLKREPL_IMAGE_READ_ONLY) != 0) {
        call_begin();
        rc = blkrepl_image_write_zeroes(image, 0, 0, bytes, 0, &done);
        call_end(rc, "a write to a read-only image");
        EXPECT(rc == -EROFS, "a read-only image to answer -EROFS, got %d", rc);
    } else if (info.bytes < ROUND_TRIP_LIMIT && !threads) {
        image_round_trip(bench.ctx, image, (info.bytes - bytes) / 2, (size_t)bytes);
        image_round_trip(bench.ctx, image, info.bytes - bytes, (size_t)bytes);
    }
    if (bundled && !threads && (info.flags & BLKREPL_IMAGE_READ_ONLY) == 0 && take_chance(50)) {
        image_exercise(image, info.bytes);
    }
    EXPECT(options->release == NULL || options->packed.packing == PACKED_NULL ||
               options->release->count == 0,
           "no release of an image that is open");
    blkrepl_image_close(image);
    (void)bench_drain();
}

/* What all opens have in common after the call. */
static void image_settle(int rc, blkrepl_image *image, struct image_options *options, bool bundled)
{
    image_options_drop(options);
    EXPECT((image != NULL) == (rc == 0), "an image exactly if the answer is 0, got %d", rc);
    if (rc == 0) {
        EXPECT(options->release == NULL || options->release->count == 0, "no release yet");
        image_use(image, options, bundled);
    } else {
        bench_refused();
    }
    image_options_expect_released(options);
    free(options->name);
}

/* ---- Over a backend of the host ---------------------------------------------- */

static bool unit_valid(uint32_t unit, uint32_t most)
{
    return (unit & (unit - 1)) == 0 && unit <= most;
}

/* get_info's answer is within the limits of backend.h. */
static bool info_valid(const blkrepl_backend_info *info, uint64_t unit)
{
    uint32_t needed = OPCODE_BIT(BLKREPL_OP_READ);

    if ((info->flags & BLKREPL_BACKEND_READ_ONLY) == 0) {
        needed |= OPCODE_BIT(BLKREPL_OP_WRITE);
    }
    return info->bytes <= INT64_MAX && (info->opcodes & needed) == needed &&
           (info->flags & ~BACKEND_FLAGS) == 0 && info->reserved0 == NULL &&
           unit_valid(info->request_alignment, 65536) && unit_valid(info->memory_alignment, 4096) &&
           unit_valid(info->cluster_bytes, 1u << 24) &&
           (info->transfer_bytes_max == 0 || info->transfer_bytes_max >= unit) &&
           (info->zeroes_bytes_max == 0 || info->zeroes_bytes_max >= unit) &&
           (info->copy_bytes_max == 0 || info->copy_bytes_max >= unit);
}

static void draw_info(struct disk *disk, struct verdict *verdict)
{
    blkrepl_backend_info *info = &disk->info;

    info->bytes = take_u16();
    shape_draw(&info_shape, info);
    if (take_chance(50)) {
        info->flags &= BACKEND_FLAGS;
        info->opcodes |= OPCODE_BIT(BLKREPL_OP_READ) | OPCODE_BIT(BLKREPL_OP_WRITE);
    }
    disk->get_info_result = take_chance(8) ? take_code() : 0;
    verdict_add_if(verdict, disk->get_info_result < 0, disk->get_info_result);
    verdict_add_if(verdict, !info_valid(info, disk_alignment(disk)), -EINVAL);
}

static struct packed draw_ops(struct verdict *verdict)
{
    blkrepl_backend_ops ops = disk_ops;
    uint32_t missing = take_below(16);
    struct packed packed;

    shape_draw(&ops_shape, &ops);
    ops.get_info = missing == 1 ? NULL : ops.get_info;
    ops.submit = missing == 2 ? NULL : ops.submit;
    ops.cancel = missing == 3 ? NULL : ops.cancel;
    packed = shape_pack(&ops_shape, &ops, true);
    verdict_add_packing(verdict, &packed);
    verdict_add_if(verdict,
                   packed.packing == PACKED_NULL || missing == 1 || missing == 2 || ops.flags != 0,
                   -EINVAL);
    return packed;
}

static void expect_disk_info(blkrepl_image *image, const struct disk *disk)
{
    blkrepl_image_info info = {.struct_size = sizeof info};
    int rc = blkrepl_image_query(image, &info);
    uint32_t memory = disk->info.memory_alignment != 0 ? disk->info.memory_alignment : 1;

    EXPECT(rc == 0 && info.bytes == disk->info.bytes &&
               info.request_alignment == disk_alignment(disk) && info.memory_alignment == memory &&
               info.cluster_bytes == disk->info.cluster_bytes,
           "what get_info said, got %llu bytes, alignments %u and %u, cluster %u", (ull)info.bytes,
           (unsigned)info.request_alignment, (unsigned)info.memory_alignment,
           (unsigned)info.cluster_bytes);
    EXPECT((disk->info.flags & BLKREPL_BACKEND_READ_ONLY) == 0 ||
               info.flags == BLKREPL_IMAGE_READ_ONLY,
           "a read-only backend to make a read-only image");
}

void act_open_backend(void)
{
    static struct disk disk;
    struct verdict verdict = {.count = 0};
    struct image_options options;
    blkrepl_image *image = (blkrepl_image *)&disk;
    struct packed ops;
    int rc;

    disk_init(&disk, bench.ctx, 0, DISK_WINDOW_MAX);
    draw_info(&disk, &verdict);
    ops = draw_ops(&verdict);
    options = image_options_draw(&verdict);
    heap_watch(take_chance(5) ? 1u + take_below(6) : 0);
    call_begin();
    rc = blkrepl_image_open(bench.ctx, ops.memory, &disk, options.packed.memory, &image);
    verdict_add_if(&verdict, heap.refused && rc != 0, -ENOMEM);
    call_end_as(rc, &verdict, "image_open");
    packed_free(&ops);
    EXPECT(disk.closes == 0 && disk.seq == 0 && disk.get_infos <= 1,
           "an open to ask get_info and nothing else");
    if (rc == 0) {
        expect_disk_info(image, &disk);
    }
    image_settle(rc, image, &options, false);
    EXPECT(disk.closes == (rc == 0), "close exactly if the open succeeded, got %u", disk.closes);
}

/* ---- In memory --------------------------------------------------------------- */

void act_open_memory(void)
{
    struct verdict verdict = {.count = 0};
    uint64_t bytes = take_number();
    struct image_options options;
    blkrepl_image *image = (blkrepl_image *)&options;
    int rc;

    options = image_options_draw(&verdict);
    verdict_add_if(&verdict, bytes > INT64_MAX, -EINVAL);
    heap_watch(take_chance(5) ? 1u + take_below(6) : 0);
    call_begin();
    rc = blkrepl_image_open_memory(bench.ctx, bytes, options.packed.memory, &image);
    verdict_add_if(&verdict, heap.refused && rc != 0, -ENOMEM);
    call_end_as(rc, &verdict, "image_open_memory");
    if (rc == 0) {
        blkrepl_image_info info = image_expect_info(image, &options);

        EXPECT(info.bytes == bytes, "an image of %llu bytes, got %llu", (ull)bytes,
               (ull)info.bytes);
    }
    image_settle(rc, image, &options, true);
}

/* ---- Over a file ------------------------------------------------------------- */

static char folder[256];
static char file_here[300];
static char file_new[300];

void open_file_clean(void)
{
    if (folder[0] != '\0') {
        unlink(file_here);
        unlink(file_new);
        rmdir(folder);
        folder[0] = '\0';
    }
}

/* A folder in memory if there is one: nothing has to wait for a disk then. */
static void folder_make(void)
{
    const char *parent = getenv("TMPDIR");

    if (folder[0] != '\0') {
        return;
    }
    if (parent == NULL) {
        parent = access("/dev/shm", W_OK) == 0 ? "/dev/shm" : "/tmp";
    }
    snprintf(folder, sizeof folder, "%s/fuzz-options-XXXXXX", parent);
    EXPECT(mkdtemp(folder) != NULL, "a folder in %s", parent);
    snprintf(file_here, sizeof file_here, "%s/here", folder);
    snprintf(file_new, sizeof file_new, "%s/new", folder);
}

static void folder_reset(void)
{
    int fd;

    folder_make();
    fd = open(file_here, O_RDWR | O_CREAT, 0600);
    EXPECT(fd >= 0 && ftruncate(fd, FILE_BYTES) == 0, "a file in %s", folder);
    close(fd);
    unlink(file_new);
}

/* A path on a heap block, and what is wrong with it. */
static char *draw_path(const blkrepl_file_options *o, bool read_only, struct verdict *verdict)
{
    bool create = (o->flags & BLKREPL_FILE_CREATE) != 0;
    char text[400];
    char *path;

    switch (take_below(8)) {
    case 1: return NULL;
    case 2:
        snprintf(text, sizeof text, "%s", folder);
        verdict_add(verdict, -ENOTSUP);
        verdict_add_if(verdict, create, -EEXIST); /* open(2) with O_EXCL */
        break;
    case 3:
        snprintf(text, sizeof text, "%s/nowhere/file", folder);
        verdict_add(verdict, -ENOENT);
        break;
    case 4:
    case 5:
    case 6:
        snprintf(text, sizeof text, "%s", file_new);
        verdict_add_if(verdict, !create, -ENOENT);
        break;
    default:
        snprintf(text, sizeof text, "%s", file_here);
        verdict_add_if(verdict, (o->flags & BLKREPL_FILE_EXCLUSIVE) != 0, -EEXIST);
        break;
    }
    verdict_add_if(verdict, create && read_only, -EINVAL);
    path = fuzz_alloc(strlen(text) + 1);
    memcpy(path, text, strlen(text) + 1);
    return path;
}

static struct packed draw_file_options(blkrepl_file_options *o, struct verdict *verdict)
{
    struct packed packed;
    bool create;

    if (take_chance(60)) {
        o->flags =
            take_chance(20) ? BLKREPL_FILE_CREATE | BLKREPL_FILE_EXCLUSIVE : BLKREPL_FILE_CREATE;
        o->bytes = take_u16();
        o->mode = take_chance(30) ? 0600u | take_below(512) : 0;
    }
    shape_draw(&file_shape, o);
    packed = shape_pack(&file_shape, o, true);
    if (packed.packing == PACKED_NULL) {
        *o = (blkrepl_file_options){.struct_size = 0};
        return packed;
    }
    create = (o->flags & BLKREPL_FILE_CREATE) != 0;
    verdict_add_packing(verdict, &packed);
    verdict_add_if(
        verdict,
        (o->flags & ~FILE_FLAGS) != 0 || o->bytes > INT64_MAX || o->mode > 07777 ||
            o->queue_depth > 4096 ||
            (!create && (o->bytes != 0 || (o->flags & ~(uint32_t)BLKREPL_FILE_DIRECT) != 0)),
        -EINVAL);
    return packed;
}

/* How the file looks from outside. */
static void expect_file(const blkrepl_file_options *o, const char *path, uint64_t bytes)
{
    mode_t mask = umask(0);
    bool fresh = strcmp(path, file_new) == 0;
    uint64_t before = fresh ? 0 : FILE_BYTES;
    struct stat st;

    umask(mask);
    EXPECT(stat(path, &st) == 0 && (uint64_t)st.st_size == bytes,
           "a file as large as the image, %llu bytes", (ull)bytes);
    EXPECT(bytes == (o->bytes > before ? o->bytes : before),
           "a file of %llu bytes or more, got %llu", (ull)o->bytes, (ull)bytes);
    if (fresh) {
        mode_t mode = (mode_t)(o->mode != 0 ? o->mode : 0600);

        /* Who may not set the other bits loses them. */
        EXPECT((st.st_mode & 0777) == (mode & 0777 & ~mask), "mode %o, got %o",
               (unsigned)(mode & ~mask), (unsigned)st.st_mode);
    }
}

void act_open_file(void)
{
    blkrepl_file_options o = {.struct_size = 0};
    struct verdict verdict = {.count = 0};
    struct image_options options;
    blkrepl_image *image = (blkrepl_image *)&o;
    struct packed file_options;
    char *path;
    int rc;

    folder_reset();
    file_options = draw_file_options(&o, &verdict);
    options = image_options_draw(&verdict);
    path = draw_path(&o, (options.typed.flags & BLKREPL_IMAGE_READ_ONLY) != 0, &verdict);
    verdict_add_if(&verdict, path == NULL, -EINVAL);
    heap_watch(take_chance(5) ? 1u + take_below(6) : 0);
    call_begin();
    rc = blkrepl_image_open_file(bench.ctx, path, file_options.memory, options.packed.memory,
                                 &image);
    verdict_add_if(&verdict, heap.refused && rc != 0, -ENOMEM);
    if ((o.flags & BLKREPL_FILE_DIRECT) != 0 && rc < 0) {
        verdict_add(&verdict, -ENOTSUP);
        /* It is opened twice, and the mode may not let even its maker in. */
        verdict_add_if(&verdict, o.mode != 0, -EACCES);
    }
    /* A file system has its own idea of the longest file. */
    verdict_add_if(&verdict, rc < 0 && o.bytes > ROUND_TRIP_LIMIT && rc >= -4095, rc);
    call_end_as(rc, &verdict, "image_open_file");
    if (rc == 0) {
        expect_file(&o, path, image_expect_info(image, &options).bytes);
    }
    packed_free(&file_options);
    free(path);
    image_settle(rc, image, &options, true);
}
