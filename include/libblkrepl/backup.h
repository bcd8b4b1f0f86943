/* SPDX-License-Identifier: MIT */
/**
 * @file backup.h
 * Backup: a point-in-time copy of an image while the guest goes on writing.
 */
#ifndef LIBBLKREPL_BACKUP_H
#define LIBBLKREPL_BACKUP_H

#include <libblkrepl/base.h>
#include <libblkrepl/job.h>

BLKREPL_BEGIN_DECLS

/** What a backup copies. */
enum blkrepl_backup_sync {
    /** The whole image. */
    BLKREPL_SYNC_FULL = 1,
    /** What is dirty in a bitmap. */
    BLKREPL_SYNC_BITMAP = 2,
    /** The same, with BLKREPL_BITMAP_ON_SUCCESS and no other mode: a step of a
     *  chain of incremental backups. */
    BLKREPL_SYNC_INCREMENTAL = 3,
    /** Nothing by itself: old data are saved where the guest writes.  The job is
     *  READY at once, and goes on until it is told to complete or is cancelled.
     *  blkrepl_snapshot_open() makes the point in time readable. */
    BLKREPL_SYNC_NONE = 4
};

/** What becomes of the bitmap when the backup ends. */
enum blkrepl_bitmap_mode {
    /** Done: it holds what was written since the point in time.  Otherwise it is
     *  as if there had been no backup: the old content and what was written since. */
    BLKREPL_BITMAP_ON_SUCCESS = 1,
    /** However it ends: as if there had been no backup. */
    BLKREPL_BITMAP_NEVER = 2,
    /** Done: as ON_SUCCESS.  Otherwise: what was written since, and what is not on
     *  the target: one more backup of the bitmap to the same target completes it. */
    BLKREPL_BITMAP_ALWAYS = 3
};

/** Who suffers when the old data of a guest write cannot be saved. */
enum blkrepl_on_cbw_error {
    /** The backup fails, with the cause; the guest's write goes on. */
    BLKREPL_CBW_BACKUP_FAILS = 1,
    /** The guest's write fails with the cause, nothing is written, and the
     *  backup goes on. */
    BLKREPL_CBW_GUEST_WRITE_FAILS = 2
};

/** Unusual behaviour of a backup. */
enum blkrepl_backup_flags {
    /** Look for zeroes in the data that is read, and write them to the target
     *  as zeroes (a hole where it can). */
    BLKREPL_BACKUP_DETECT_ZEROES = 1,
    /** Never let the backends copy among themselves (BLKREPL_OP_COPY_FROM).
     *  Where files can share blocks, the copy would; this makes one that stands
     *  for itself. */
    BLKREPL_BACKUP_NO_OFFLOAD = 2,
    /** Have the target's backend compress what is written (BLKREPL_IO_COMPRESS): one
     *  cluster a request, and clusters are those of the target (64 KiB if it has
     *  none); zeroes are not.  -ENOTSUP if it has not declared that it can. */
    BLKREPL_BACKUP_COMPRESS = 4,
    /** SYNC_NONE with a bitmap: only what is dirty in it is saved, and readable in
     *  the snapshot. */
    BLKREPL_BACKUP_DIRTY_ONLY = 8
};

/** Options of a backup. */
typedef struct blkrepl_backup_options {
    uint32_t struct_size;         /* sizeof *this */
    uint32_t flags;               /* BLKREPL_BACKUP_* */
    const char *name;             /* 1 to BLKREPL_NAME_MAX bytes, unique among the
                                   * jobs of the context; copied; NULL:
                                   * "backup-<id>" */
    void *user;                   /* the host's; in events and the query */
    void (*release)(void *user);  /* last use of user, once, in a poll of lane
                                   * 0 when the job is gone, or in the create
                                   * that fails */
    void *reserved1;              /* NULL */
    uint64_t cluster_bytes;       /* unit of copying: power of two, 4 KiB to
                                   * 16 MiB, not below the target's cluster_bytes;
                                   * 0: 64 KiB, or what source and target need if
                                   * that is more */
    uint64_t speed_bytes_per_sec; /* of the background work; copies made for the
                                   * guest count but are never delayed; 0:
                                   * unlimited */
    uint64_t chunk_bytes_max;     /* longest background copy, at most 1 GiB; rounded
                                   * to clusters, at least one; 0: 256 KiB */
    uint64_t reserve_bytes;       /* buffers kept for copies that a guest waits
                                   * for, at most 1 TiB; at least one cluster;
                                   * 0: 16 MiB */
    uint64_t cbw_timeout_ns;      /* 0: 30 s; BLKREPL_FOREVER: none */
    uint32_t workers_max;         /* background copies at once, at most 1024; 0: 8 */
    uint32_t sync;                /* 0: BLKREPL_SYNC_FULL */
    uint32_t on_cbw_error;        /* 0: BLKREPL_CBW_BACKUP_FAILS */
    uint32_t reserved0;           /* 0 */
    uint32_t on_source_error;     /* BLKREPL_ON_ERROR_*; 0: REPORT */
    uint32_t on_target_error;     /* the same */
    uint32_t job_flags;           /* BLKREPL_JOB_MANUAL_* */
    uint32_t bitmap_mode;         /* BLKREPL_BITMAP_*, needed with a bitmap; 0:
                                   * ON_SUCCESS with SYNC_INCREMENTAL */
    blkrepl_bitmap *bitmap;       /* needed by SYNC_BITMAP and _INCREMENTAL; of the
                                   * size of the source; not with SYNC_FULL and
                                   * BITMAP_NEVER */
    blkrepl_image *spill;         /* for old data of guest writes, on their way to the
                                   * target; at least as large as the source; not with
                                   * SYNC_NONE; NULL: none */
    uint64_t spill_bytes_max;     /* how much of it may be in use; 0: all; only with
                                   * a spill image */
    uint64_t speed_burst_bytes;   /* after idleness so much at once; 0: a tenth of a
                                   * second's worth */
    blkrepl_throttle *throttle;   /* of the background work, together with others; see
                                   * throttle.h; NULL: none */
} blkrepl_backup_options;

/**
 * Create a backup job.
 *
 * Checks everything that can be checked and takes all the memory the job will
 * need; a running backup does not allocate.  Nothing happens to the images
 * until blkrepl_job_start(), whose instant is the point in time.
 *
 * The target must be at least as large as the source; what lies beyond the
 * source's size is not touched, except that the last block is filled up with
 * zeroes where the request alignment of the target image asks for it.  The host must not
 * write to the target by other means until the job has concluded; through the
 * library it cannot: the target answers -EBUSY to guest writes and brackets
 * from this call on.
 *
 * Copy-before-write: from the start on, a guest write to a part that was not
 * yet copied first has the old data saved.  With BACKUP_FAILS they are saved
 * when they are in a buffer of the job, so the guest waits for a read of the
 * source and, only when the reserve is used up, for the target.  With
 * GUEST_WRITE_FAILS they are saved when they are on the target.  A guest write
 * that has waited cbw_timeout_ns since the last copy that ended for it is
 * released by policy: the backup fails, or the write does, with -ETIMEDOUT.
 *
 * Spill: with a spill image the old data of guest writes go there first, and to
 * the target later; they are saved when they are in a buffer (BACKUP_FAILS) or in
 * the spill image (GUEST_WRITE_FAILS; what the background has read is saved in its
 * buffer).  So a guest waits for local storage only.
 * What has arrived on the target is discarded in the spill image.  When
 * spill_bytes_max are in use, or the spill image refuses a write, old data go to
 * the target as without it, and the policy applies.  Old data that cannot be read
 * back from it are an error of side SPILL, for which on_source_error holds.
 *
 * Writes that were in flight at the start are concurrent with it: the backup
 * holds the new data of such a write if it succeeded, and any mixture of old
 * and new bytes, in its range only, if it failed.
 *
 * Where the backends of source and target have declared that they can copy among
 * themselves (blkrepl_backend_info.copy_domain; the bundled memory backend does,
 * and that of files, unless one is BLKREPL_FILE_DIRECT), data go this way in the
 * background until it is refused for the first time, and then through buffers
 * of the job; with DETECT_ZEROES always through buffers.  With BACKUP_FAILS no
 * guest write waits for such a copy: it is given up where the guest writes, and
 * made anew.
 *
 * Errors: on_source_error and on_target_error say what becomes of the job when a
 * request of the background work has failed.  With IGNORE the clusters are given
 * up, and the job fails when the rest is done.  With STOP what a guest has had saved
 * stays in its buffer until the job is resumed.  A copy for a guest that fails before
 * the old data are saved is a matter of on_cbw_error alone.  A flush of the target that
 * fails fails the job: what it has lost no other one brings back.
 *
 * Bitmaps: the bitmap is busy (see bitmap.h) from the start until the job concludes;
 * what it holds at the start, the point in time, is what SYNC_BITMAP copies, in whole
 * clusters.  It may be of the source, of another image or free-standing.
 * What BITMAP_ALWAYS takes for not on the target: with SYNC_FULL all that has not got
 * there, also where the bitmap was clean; with SYNC_BITMAP what of it has not.  For this
 * the target is flushed also when the job fails or is cancelled, before it concludes; to
 * cancel it once more gives that up.  If the flush has failed or was given up, nothing
 * has got there.  It cannot be had with SYNC_NONE.
 *
 * Zeroes and holes of the source are written to the target as zeroes; where the
 * source's STATUS fails or makes no sense, all is taken for data.  The
 * target is flushed before the job is DONE.  When the job has failed or was
 * cancelled, the contents of the target are undefined, except that a snapshot of
 * SYNC_NONE is good as long as the job runs, and what BITMAP_ALWAYS says.
 *
 * Ownership:  source, target, spill, bitmap and throttle are held until the job has
 *             concluded; *out belongs to the caller; options are copied.
 * Thread:     any.
 * States:     context open.
 * Returns:    0; -EINVAL bad option, NULL, images of different contexts, or
 *             two of source, target and spill are one image or one file; -ENOSPC
 *             target or spill is smaller than the source; -EROFS one of them is
 *             read-only; -EBUSY one of them is in use by a job, or the source is the
 *             target of one, or guest writes or brackets on one of them have not
 *             ended; -EEXIST name in use; -EFBIG the image has too many
 *             clusters (more than 2^38); -ENOMEM, also when memory_bytes_max
 *             or job_requests_max of the context are used up; -ENOTSUP
 *             cluster_bytes is less than an image's request alignment or the
 *             target's cluster_bytes, or the target cannot compress;
 *             BLKREPL_ERR_STATE the bitmap is inconsistent; -ESHUTDOWN;
 *             BLKREPL_ERR_VERSION.
 * Since:      0.1
 */
BLKREPL_API int blkrepl_backup_create(blkrepl_image *source, blkrepl_image *target,
                                      const blkrepl_backup_options *options, blkrepl_job **out);

/**
 * Create a backup job and start it: blkrepl_backup_create(), then
 * blkrepl_job_start().
 *
 * The point in time lies inside this call.
 *
 * Ownership:  as blkrepl_backup_create().
 * Callbacks:  BLKREPL_EVENT_JOB_STATE, later BLKREPL_EVENT_JOB_DONE.
 * Thread:     any.
 * States:     context open.
 * Returns:    as blkrepl_backup_create() and blkrepl_job_start().
 * Since:      0.1
 */
BLKREPL_API int blkrepl_backup_start(blkrepl_image *source, blkrepl_image *target,
                                     const blkrepl_backup_options *options, blkrepl_job **out);

BLKREPL_END_DECLS

#endif
