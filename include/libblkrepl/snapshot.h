/* SPDX-License-Identifier: MIT */
/**
 * @file snapshot.h
 * Snapshots: a point in time of an image, to be read while the guest goes on
 * writing.
 *
 * A backup with BLKREPL_SYNC_NONE saves the old data of guest writes in its target
 * (a *fleecing* image: as large as the source, and sparse).  A snapshot image shows
 * the source as it was when that job was started: saved parts come from the target,
 * the others from the source.  Several jobs, started together or not, make
 * several snapshots of one image.
 */
#ifndef LIBBLKREPL_SNAPSHOT_H
#define LIBBLKREPL_SNAPSHOT_H

#include <libblkrepl/base.h>
#include <libblkrepl/image.h>
#include <libblkrepl/job.h>

BLKREPL_BEGIN_DECLS

/** Options of a snapshot image. */
typedef struct blkrepl_snapshot_options {
    uint32_t struct_size;        /* sizeof *this */
    uint32_t queue_depth;        /* requests carried out at once, at most 1024; 0: 32 */
    const char *name;            /* as in blkrepl_image_options */
    void *user;                  /* the host's; as in blkrepl_image_options */
    void (*release)(void *user); /* the same */
    void *reserved0;             /* NULL */
} blkrepl_snapshot_options;

/**
 * Open an image of a backup job's point in time.
 *
 * It is an image like any other: it can be read, asked for its status, be the source
 * of any job, and be opened several times.  Writes and zeroes are refused with -EROFS.
 * Its cluster_bytes are those of the job.  What it reads it reads as jobs do, in polls of
 * lane 0, whatever lane its own requests are of.
 *
 * A discard says that nobody is going to read a part any more: of the whole clusters
 * in its range nothing needs to be saved from then on, what was saved is discarded in
 * the target, and reading them fails with -EACCES, through any image of this job;
 * what is less than a cluster stays as it is.  While a backup reads the snapshot a
 * discard may be left out, as on any image.
 *
 * STATUS: what the source says for parts that have not been saved, allocated data for
 * those that have (zeroes where zeroes were saved and the target can tell).  A part
 * that cannot be read (discarded, or clean with BLKREPL_BACKUP_DIRTY_ONLY) is told with
 * flags 0.  Which parts are dirty in the job's bitmap is told by the bitmap: it stands
 * still until the job has concluded.
 *
 * A guest write waits for reads of the snapshot that are reading the same part of
 * the source.  When the job ends, however it ends, or is told to complete, requests to
 * the snapshot fail: with the error that ended it, otherwise with -ESHUTDOWN; nobody who
 * reads is told wrong data.  The image can stay open longer than the job, and be closed
 * while requests are in flight.
 *
 * Ownership:  *out belongs to the caller; it holds the job's images.
 * Thread:     any.
 * States:     the job READY, and not told to complete or cancelled.
 * Returns:    0; -EINVAL NULL, bad option, or not a backup with BLKREPL_SYNC_NONE;
 *             BLKREPL_ERR_STATE; -ENOMEM, also when job_requests_max of the context are
 *             used up; -ESHUTDOWN; BLKREPL_ERR_VERSION.
 * Since:      0.1
 */
BLKREPL_API int blkrepl_snapshot_open(blkrepl_job *job, const blkrepl_snapshot_options *options,
                                      blkrepl_image **out);

BLKREPL_END_DECLS

#endif
