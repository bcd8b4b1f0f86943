/* SPDX-License-Identifier: MIT */
/* s_image.c - opening images over disks of the host and over memory. */
#include "api.h"

static unsigned released;

static void count_release(void *user)
{
    (void)user;
    released++;
}

/* An open that is refused; its `user` is released inside it. */
static void refused(struct world *w, const blkrepl_backend_ops *ops, struct disk *disk,
                    const blkrepl_image_options *options, int code)
{
    blkrepl_image_options o = options ? *options : (blkrepl_image_options){.flags = 0};
    blkrepl_image *none = NULL;

    o.struct_size = o.struct_size ? o.struct_size : sizeof o;
    o.release = count_release;
    released = 0;
    api_must(code);
    api_image_open(w->ctx, ops, disk, &o, &none);
    REQUIRE(released == (o.struct_size < sizeof o ? 0u : 1u), "released %u times", released);
}

static void open_refused(struct world *w)
{
    struct image *image = image_disk(w, NULL, FILL_DATA);
    struct disk *d = image->disk;
    blkrepl_backend_ops ops = disk_ops;
    blkrepl_image *none = NULL;
    static const char long_name[] =
        "a-name-of-more-than-sixty-three-bytes-which-is-one-byte-too-many";

    if (!world_open(w, NULL)) {
        return;
    }
    api_must(-EINVAL);
    api_image_open(NULL, &disk_ops, d, NULL, &none);
    api_must(-EINVAL);
    api_image_open(w->ctx, &disk_ops, d, NULL, NULL);
    refused(w, NULL, d, NULL, -EINVAL);
    ops.submit = NULL;
    refused(w, &ops, d, NULL, -EINVAL);
    ops = disk_ops;
    ops.flags = 1;
    refused(w, &ops, d, NULL, -EINVAL);
    refused(w, &disk_ops, d, &(blkrepl_image_options){.flags = 6}, -EINVAL);
    refused(w, &disk_ops, d, &(blkrepl_image_options){.reserved0 = d}, -EINVAL);
    refused(w, &disk_ops, d, &(blkrepl_image_options){.name = long_name}, -EINVAL);
    refused(w, &disk_ops, d, &(blkrepl_image_options){.struct_size = 8}, -EINVAL);
    api_must(-EINVAL);
    api_image_open_memory(w->ctx, UINT64_C(1) << 63, NULL, &none);
    api_must(-EINVAL);
    api_image_open_memory(NULL, 5, NULL, &none);
    image_open(image, &(blkrepl_image_options){.name = "good"});
}

/* What get_info may not say. */
static void open_bad_info(struct world *w)
{
    static const blkrepl_backend_info bad[] = {
        {.opcodes = BIT(BLKREPL_OP_READ)},
        {.opcodes = OPS_ALL, .bytes = UINT64_C(1) << 63},
        {.opcodes = OPS_ALL, .flags = 8},
        {.opcodes = OPS_ALL, .request_alignment = 3},
        {.opcodes = OPS_ALL, .request_alignment = 1u << 17},
        {.opcodes = OPS_ALL, .memory_alignment = 8192},
        {.opcodes = OPS_ALL, .cluster_bytes = 1u << 25},
        {.opcodes = OPS_ALL, .request_alignment = 4096, .transfer_bytes_max = 512},
    };
    struct image *image = image_disk(w, NULL, FILL_DATA);
    blkrepl_backend_info good = image->disk->info;

    if (!world_open(w, NULL)) {
        return;
    }
    for (size_t i = 0; i < ARRAY_COUNT(bad); i++) {
        image->disk->info = bad[i];
        refused(w, &disk_ops, image->disk, NULL, -EINVAL);
    }
    image->disk->info = good;
    if (image_open(image, NULL)) {
        op_read(image, 0, CLUSTER);
    }
}

/* Several at once, with and without names, closed in another order. */
static void open_many(struct world *w)
{
    struct image *images[4];

    if (!world_open(w, NULL)) {
        return;
    }
    for (unsigned i = 0; i < 4; i++) {
        uint32_t align = i == 2 ? 4096 : 0;

        images[i] =
            image_disk(w, &(blkrepl_backend_info){.request_alignment = align, .bytes = 4 * CLUSTER},
                       FILL_DATA);
        if (!image_open(images[i], &(blkrepl_image_options){.name = i % 2 ? "odd" : NULL})) {
            return;
        }
        op_write(images[i], 17, 1000, 0);
    }
    image_close(images[2]);
    image_close(images[0]);
    world_settle(w);
    op_read(images[1], 0, 2 * CLUSTER);
    world_settle(w);
    api_image_close(NULL);
}

/* A write for which there is no memory fails, and nothing else does. */
static void open_memory(struct world *w)
{
    struct image *image = image_memory(w, MEDIUM_BYTES_MAX);

    if (!world_open(w, NULL) || !image_open(image, NULL)) {
        return;
    }
    op_write(image, 60000, 20000, 0);
    world_settle(w);
    op_read(image, 50000, 40000);
    op_zeroes(image, 65536, 1000, BLKREPL_IO_FUA);
    op_status(image, 0, MEDIUM_BYTES_MAX, 3);
    op_flush(image);
    world_settle(w);
    op_write(image, 0, MEDIUM_BYTES_MAX, 0);
    op_discard(image, 0, 65536);
    world_settle(w);
    op_write(image, 3, 3, 0);
    op_read(image, 0, 100);
    world_settle(w);
}

/* ---- A vast image in memory -------------------------------------------------------------- */

#define PAGES 40u
#define PAGE (64u * KIB)

static void note_result(void *user, int result)
{
    *(int *)user = result;
}

static int now(struct world *w, blkrepl_image *image, bool writes, uint64_t at, uint8_t *byte)
{
    blkrepl_iovec iov = {.base = byte, .len = 1};
    int result = 1;
    blkrepl_completion done = {.fn = note_result, .user = &result};
    int rc = writes ? api_image_write(image, 0, at, &iov, 1, 0, &done)
                    : api_image_read(image, 0, at, &iov, 1, 0, &done);

    REQUIRE(rc == 0, "refused: %d", rc);
    world_settle(w);
    return result;
}

/* More pages than its table has room for: without memory it just gets slower. */
static void open_memory_many(struct world *w)
{
    blkrepl_image *image = NULL;
    uint8_t held[PAGES] = {0}, byte;

    api_memory_grows(true);
    if (!world_open(w, NULL) ||
        (api_image_open_memory(w->ctx, UINT64_C(1) << 50, NULL, &image) < 0 &&
         api_image_open_memory(w->ctx, UINT64_C(1) << 50, NULL, &image) < 0)) {
        return;
    }
    for (unsigned i = 0; i < PAGES; i++) {
        byte = (uint8_t)(i + 1);
        int result = now(w, image, true, (uint64_t)i * i * PAGE, &byte);

        REQUIRE(result == 0 || (result == -ENOMEM && fault_fired() > 0), "write: %d", result);
        held[i] = result == 0 ? byte : 0;
    }
    api_image_discard(image, 0, 5, 3 * PAGE, 0, NULL);
    api_image_write_zeroes(image, 0, 100 * PAGE + 1, UINT64_C(1) << 40, 0, NULL);
    for (unsigned i = 0; i < PAGES; i++) {
        uint64_t at = (uint64_t)i * i * PAGE;

        REQUIRE(now(w, image, false, at, &byte) == 0, "read fails");
        held[i] = (at >= 5 && at < 5 + 3 * PAGE) || at >= 100 * PAGE + 1 ? 0 : held[i];
        REQUIRE(byte == held[i], "page %u holds %u, not %u", i, byte, held[i]);
    }
    api_image_close(image);
}

const struct scenario image_scenarios[] = {
    {"open-refused", open_refused, SCENARIO_ONE_ORDER},
    {"open-bad-info", open_bad_info, SCENARIO_ONE_ORDER},
    {"open-many", open_many, 0},
    {"open-memory", open_memory, SCENARIO_ONE_ORDER},
    {"open-memory-many", open_memory_many, SCENARIO_ONE_ORDER},
    {NULL, NULL, 0},
};
