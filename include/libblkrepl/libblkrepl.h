/* SPDX-License-Identifier: MIT */
/**
 * @file libblkrepl.h
 * libblkrepl: block replication for programs that own a disk.
 *
 * A context owns images (disks over backends) and jobs.  The host gives its
 * guest I/O to the library or brackets its own, starts jobs, and polls.
 *
 * The shortest complete program copies one disk image to another
 * (examples/hello-backup.c is the same with error messages):
 *
 *     #include <errno.h>
 *     #include <libblkrepl/libblkrepl.h>
 *
 *     int main(int argc, char **argv)
 *     {
 *         blkrepl_image_info disk = {.struct_size = sizeof disk};
 *         blkrepl_job_info info = {.struct_size = sizeof info};
 *         blkrepl_context *ctx;
 *         blkrepl_image *source, *target;
 *         blkrepl_job *job;
 *
 *         if (argc != 3 || blkrepl_context_create(NULL, &ctx) < 0 ||
 *             blkrepl_image_open_file(ctx, argv[1], NULL, NULL, &source) < 0 ||
 *             blkrepl_image_query(source, &disk) < 0) {
 *             return 1;
 *         }
 *         blkrepl_file_options create = {
 *             .struct_size = sizeof create, .flags = BLKREPL_FILE_CREATE, .bytes = disk.bytes};
 *         if (blkrepl_image_open_file(ctx, argv[2], &create, NULL, &target) < 0 ||
 *             blkrepl_backup_start(source, target, NULL, &job) < 0) {
 *             return 1;
 *         }
 *         while (info.state != BLKREPL_JOB_CONCLUDED) {
 *             blkrepl_poll(ctx, 0, 100000000);
 *             blkrepl_job_query(job, &info);
 *         }
 *         blkrepl_job_free(job);
 *         blkrepl_image_close(target);
 *         blkrepl_image_close(source);
 *         while (blkrepl_context_free(ctx) == -EBUSY) {
 *             blkrepl_poll(ctx, 0, 1000000);
 *         }
 *         return info.result == BLKREPL_RESULT_DONE ? 0 : 1;
 *     }
 */
#ifndef LIBBLKREPL_LIBBLKREPL_H
#define LIBBLKREPL_LIBBLKREPL_H

#include <libblkrepl/backend.h>
#include <libblkrepl/backup.h>
#include <libblkrepl/base.h>
#include <libblkrepl/bitmap.h>
#include <libblkrepl/blocking.h>
#include <libblkrepl/context.h>
#include <libblkrepl/error.h>
#include <libblkrepl/event.h>
#include <libblkrepl/image.h>
#include <libblkrepl/job.h>
#include <libblkrepl/snapshot.h>
#include <libblkrepl/throttle.h>
#include <libblkrepl/verify.h>
#include <libblkrepl/version.h>

#endif
