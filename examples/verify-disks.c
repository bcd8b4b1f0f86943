/* SPDX-License-Identifier: MIT */
/* verify-disks.c - compare two disk images, and tell where they differ.
 *
 *     verify-disks [-l MIB] IMAGE OTHER      -l: read no more than so many MiB a second
 *
 * The verify job of the library compares images that are in use, chunk by chunk, each as both
 * are at one instant.  Nobody writes here, so this is the shortest program that uses it: what
 * differs goes to a bitmap, a granule of which is a block, and the speed is kept by a throttle,
 * which several jobs, and the guest I/O of images, could share.
 * Exit codes: 0 the same, 1 they differ, 2 usage, or an error.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <libblkrepl/libblkrepl.h>

#define BLOCK_BYTES 4096

static blkrepl_context *ctx;

static void check(int answer)
{
    if (answer < 0) {
        fprintf(stderr, "verify-disks: %s\n", blkrepl_error_message());
        exit(2);
    }
}

static blkrepl_image *open_disk(const char *path)
{
    const blkrepl_image_options read_only = {.struct_size = sizeof read_only,
                                             .flags = BLKREPL_IMAGE_READ_ONLY};
    blkrepl_image *image;

    check(blkrepl_image_open_file(ctx, path, NULL, &read_only, &image));
    return image;
}

static uint64_t size_of(blkrepl_image *image)
{
    blkrepl_image_info info = {.struct_size = sizeof info};

    blkrepl_image_query(image, &info);
    return info.bytes;
}

/* So many MiB a second; 0: as fast as it goes. */
static blkrepl_throttle *limit(uint64_t mib)
{
    const blkrepl_throttle_options options = {.struct_size = sizeof options,
                                              .bytes_per_sec = mib << 20};
    blkrepl_throttle *throttle = NULL;

    if (mib > 0) {
        check(blkrepl_throttle_create(ctx, &options, &throttle));
    }
    return throttle;
}

static blkrepl_job_info run(blkrepl_image *image, blkrepl_image *other, blkrepl_bitmap *differing,
                            blkrepl_throttle *throttle)
{
    const blkrepl_verify_options options = {
        .struct_size = sizeof options, .differing = differing, .throttle = throttle};
    blkrepl_job_info info = {.struct_size = sizeof info};
    blkrepl_job *job;

    check(blkrepl_verify_start(image, other, &options, &job));
    do {
        check(blkrepl_poll(ctx, 0, 100000000));
        blkrepl_job_query(job, &info);
    } while (info.state != BLKREPL_JOB_CONCLUDED);
    blkrepl_job_free(job);
    return info;
}

static void tell(blkrepl_bitmap *map, uint64_t bytes)
{
    blkrepl_area area = {.offset = 0};

    for (uint64_t at = 0; blkrepl_bitmap_next_area(map, at, bytes - at, 0, &area) == 1;
         at = area.offset + area.bytes) {
        printf("they differ in %" PRIu64 "+%" PRIu64 "\n", area.offset, area.bytes);
    }
}

int main(int argc, char **argv)
{
    uint64_t mib = 0;
    int first = 1;

    if (argc == 5 && strcmp(argv[1], "-l") == 0) {
        mib = strtoull(argv[2], NULL, 10);
        first = 3;
    }
    if (argc - first != 2 || (first == 3 && (mib == 0 || mib > 1 << 20))) {
        fprintf(stderr, "usage: verify-disks [-l MIB] IMAGE OTHER\n");
        return 2;
    }
    check(blkrepl_context_create(NULL, &ctx));
    blkrepl_image *image = open_disk(argv[first]);
    blkrepl_image *other = open_disk(argv[first + 1]);
    if (size_of(image) != size_of(other)) {
        printf("one has %" PRIu64 " bytes, the other %" PRIu64 "\n", size_of(image),
               size_of(other));
        return 1; /* the job would compare what the first one has */
    }
    const blkrepl_bitmap_options options = {
        .struct_size = sizeof options, .bytes = size_of(image), .granularity_bytes = BLOCK_BYTES};
    blkrepl_bitmap *differing;
    check(blkrepl_bitmap_create(ctx, &options, &differing));
    blkrepl_throttle *throttle = limit(mib);

    blkrepl_job_info info = run(image, other, differing, throttle);
    if (info.result != BLKREPL_RESULT_DONE) {
        fprintf(stderr, "verify-disks: %s\n", info.message);
        return 2;
    }
    tell(differing, size_of(image));
    printf("%" PRIu64 " of %" PRIu64 " bytes are in blocks that differ\n", info.differing_bytes,
           info.bytes_done);

    blkrepl_throttle_free(throttle);
    blkrepl_bitmap_free(differing);
    blkrepl_image_close(other);
    blkrepl_image_close(image);
    while (blkrepl_context_free(ctx) == -EBUSY) {
        blkrepl_poll(ctx, 0, 1000000);
    }
    return info.differing_bytes > 0 ? 1 : 0;
}
