/* SPDX-License-Identifier: MIT */
/* hello-backup.c - copy one disk image to another: the shortest complete program.
 *
 *     hello-backup SOURCE TARGET
 *
 * The target is created, or overwritten.  Exit codes: 0 done, 1 failed, 2 usage.
 */
#include <errno.h>
#include <stdio.h>

#include <libblkrepl/libblkrepl.h>

int main(int argc, char **argv)
{
    blkrepl_image_options read_only = {.struct_size = sizeof read_only,
                                       .flags = BLKREPL_IMAGE_READ_ONLY};
    blkrepl_file_options create = {.struct_size = sizeof create, .flags = BLKREPL_FILE_CREATE};
    blkrepl_image_info disk = {.struct_size = sizeof disk};
    blkrepl_job_info info = {.struct_size = sizeof info};
    blkrepl_context *ctx = NULL;
    blkrepl_image *source = NULL, *target = NULL;
    blkrepl_job *job = NULL;

    if (argc != 3) {
        fprintf(stderr, "usage: hello-backup SOURCE TARGET\n");
        return 2;
    }

    int error = blkrepl_context_create(NULL, &ctx);
    if (error == 0) {
        error = blkrepl_image_open_file(ctx, argv[1], NULL, &read_only, &source);
    }
    if (error == 0) {
        blkrepl_image_query(source, &disk);
        create.bytes = disk.bytes;
        error = blkrepl_image_open_file(ctx, argv[2], &create, NULL, &target);
    }
    if (error == 0) {
        error = blkrepl_backup_start(source, target, NULL, &job);
    }
    if (error < 0) {
        fprintf(stderr, "hello-backup: %s\n", blkrepl_error_message());
    }

    while (job && info.state != BLKREPL_JOB_CONCLUDED) {
        blkrepl_poll(ctx, 0, 100000000);
        blkrepl_job_query(job, &info);
    }
    if (info.result == BLKREPL_RESULT_DONE) {
        printf("%llu bytes copied\n", (unsigned long long)info.bytes_done);
    } else if (job) {
        fprintf(stderr, "hello-backup: %s\n", info.message);
    }

    blkrepl_job_free(job);
    blkrepl_image_close(target);
    blkrepl_image_close(source);
    while (blkrepl_context_free(ctx) == -EBUSY) {
        blkrepl_poll(ctx, 0, 1000000);
    }
    return info.result == BLKREPL_RESULT_DONE ? 0 : 1;
}
