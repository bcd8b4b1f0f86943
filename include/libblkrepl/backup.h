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
    BLKREPL_SYNC_FULL = 1
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
    BLKREPL_BACKUP_NO_OFFLOAD = 2
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
                                   * 16 MiB; 0: 64 KiB, or what source and
                                   * target need if that is more */
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
 * Zeroes and holes of the source are written to the target as zeroes; where the
 * source's STATUS fails or makes no sense, all is taken for data.  The
 * target is flushed before the job is DONE.  When the job has failed or was
 * cancelled, the contents of the target are undefined.
 *
 * Ownership:  source and target are held until the job has concluded; *out
 *             belongs to the caller; options are copied.
 * Thread:     any.
 * States:     context open.
 * Returns:    0; -EINVAL bad option, NULL, images of different contexts, or
 *             source and target are one image or one file; -ENOSPC the target is smaller
 *             than the source; -EROFS the target is read-only; -EBUSY the
 *             target is the source or target of a job, or the source is the
 *             target of one, or guest writes or brackets on the target have not
 *             ended; -EEXIST name in use; -EFBIG the image has too many
 *             clusters (more than 2^38); -ENOMEM, also when memory_bytes_max
 *             or job_requests_max of the context are used up; -ENOTSUP the
 *             request alignment of an image is larger than a cluster;
 *             -ESHUTDOWN; BLKREPL_ERR_VERSION.
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
 * Returns:    as blkrepl_backup_create().
 * Since:      0.1
 */
BLKREPL_API int blkrepl_backup_start(blkrepl_image *source, blkrepl_image *target,
                                     const blkrepl_backup_options *options, blkrepl_job **out);

BLKREPL_END_DECLS

#endif
