/* SPDX-License-Identifier: MIT */
/**
 * @file image.h
 * Images (disks) and guest I/O.
 *
 * Guest I/O takes one of two forms, which may be mixed on one image:
 *
 * Through: the host gives each request to blkrepl_image_read() and its like,
 * and the library drives the backend.  Any byte range is accepted; the library
 * does read-modify-write and bounces buffers where the backend needs
 * alignment.
 *
 * Beside: the host keeps its own data path and brackets each write (also
 * zeroes, discard and flush) with blkrepl_write_begin() and
 * blkrepl_write_end().  Between a GO and the end the host does the I/O by its
 * own means.  Reads need no bracket.  The image still has a backend, over the
 * same disk: by it the library reads what it has to copy.  So before
 * blkrepl_write_end() the data must be visible to reads of that backend (mind
 * O_DIRECT beside the page cache).
 *
 * Brackets may be left out while no job uses the image.  Before a job is
 * started every new write must be bracketed, and those that are not must have
 * ended; otherwise the job cannot know of them.
 *
 * Overlapping writes, through or beside, are carried out one after the other
 * in the order in which they were accepted.  Reads are not ordered against
 * writes that have not completed.
 *
 * A range of 0 bytes is legal wherever it lies inside the image or at its end.
 *
 * Every accepted request completes exactly once; a rejected one (negative
 * return) never does.  Buffers, iovecs and extents are borrowed until the
 * callback runs, and not touched after it.
 */
#ifndef LIBBLKREPL_IMAGE_H
#define LIBBLKREPL_IMAGE_H

#include <libblkrepl/backend.h>
#include <libblkrepl/base.h>

BLKREPL_BEGIN_DECLS

/** How to open an image. */
enum blkrepl_image_flags {
    /** Refuse writes with -EROFS (a file is opened read-only). */
    BLKREPL_IMAGE_READ_ONLY = 1
};

/** Options of an image. */
typedef struct blkrepl_image_options {
    uint32_t struct_size;        /* sizeof *this */
    uint32_t flags;              /* BLKREPL_IMAGE_* */
    const char *name;            /* for messages, at most BLKREPL_NAME_MAX bytes; NULL:
                                  * "image-<id>"; copied */
    void *user;                  /* the host's; see blkrepl_image_query() */
    void (*release)(void *user); /* last use of user, once, in a poll of lane 0
                                  * when the image is gone, or in the open that fails */
    void *reserved0;             /* NULL */
} blkrepl_image_options;

/** What is known of an image. */
typedef struct blkrepl_image_info {
    uint32_t struct_size;       /* in: sizeof *this */
    uint32_t flags;             /* BLKREPL_IMAGE_READ_ONLY if so */
    uint64_t id;                /* never reused within the context */
    uint64_t bytes;             /* size; any number, 0 included */
    uint32_t request_alignment; /* what the beside form has to keep to; does
                                 * not change */
    uint32_t memory_alignment;
    uint32_t cluster_bytes;      /* unit that should be written whole; 0: none */
    uint32_t requests_in_flight; /* guest requests and brackets not yet ended */
    void *user;
    void *reserved0;
    char name[64];
} blkrepl_image_info;

/**
 * Open an image over a backend of the host.
 *
 * Ownership:  *out belongs to the caller; when the open succeeds, the library
 *             owns `backend_user` until it calls the backend's close.  When it
 *             fails, close is not called and the caller keeps backend_user.
 * Callbacks:  get_info, inside this call.
 * Thread:     any.
 * Returns:    0; -EINVAL bad option, a required function is missing, or
 *             get_info's answer is not within the limits; -ENOMEM; -ESHUTDOWN;
 *             get_info's code; BLKREPL_ERR_VERSION.
 * Since:      0.1
 */
BLKREPL_API int blkrepl_image_open(blkrepl_context *ctx, const blkrepl_backend_ops *ops,
                                   void *backend_user, const blkrepl_image_options *options,
                                   blkrepl_image **out);

/** How to open a file. */
enum blkrepl_file_flags {
    /** Create the file if it is not there; grow it to `bytes` if it is
     *  shorter.  An existing file is never shortened. */
    BLKREPL_FILE_CREATE = 1,
    /** With CREATE: fail with -EEXIST if the file is there. */
    BLKREPL_FILE_EXCLUSIVE = 2,
    /** Go past the page cache (O_DIRECT); see blkrepl_image_open_file(). */
    BLKREPL_FILE_DIRECT = 4
};

/** Options of the file backend. */
typedef struct blkrepl_file_options {
    uint32_t struct_size; /* sizeof *this */
    uint32_t flags;       /* BLKREPL_FILE_* */
    uint64_t bytes;       /* with CREATE: the size wanted; otherwise 0 */
    uint32_t mode;        /* with CREATE: permissions; 0: 0600 */
    uint32_t queue_depth; /* 0: 64; at most 4096 */
} blkrepl_file_options;

/**
 * Open an image over a regular file or a block device.
 *
 * Requests that will not block are done at once by the thread that submits
 * them; the rest goes to a small pool of threads that the context starts when
 * it is first needed.  ZEROES and DISCARD punch holes where the file system
 * can; STATUS reports holes.
 *
 * The file is opened here and closed when the image is; it is not locked.
 *
 * With DIRECT, data goes past the page cache.  What alignment that needs is asked
 * of the system, at the latest by trying, and is in blkrepl_image_query();
 * through the library any range and any buffer is good all the same, at the price
 * of copies and of read-modify-write.  All reads and writes then go to the pool;
 * see pool_threads_max for how many of them go on at once.  A write is not durable
 * because it is direct: BLKREPL_IO_FUA and flushes mean what they always mean.
 * What a file has behind its last aligned block is read and written through the
 * page cache, by a second descriptor; the size does not change.
 *
 * Ownership:  *out belongs to the caller; path is copied.
 * Thread:     any; may block as open(2) does, and with DIRECT for a read.
 * Returns:    0; -EINVAL bad option; -ENOTSUP neither a file nor a block
 *             device, or with DIRECT: the file system cannot go past the page
 *             cache, or only with an alignment that images do not have (64 KiB
 *             of requests, 4 KiB of memory); -ENOSPC with CREATE: a block device
 *             is smaller than `bytes`; -ESTALE with DIRECT: the path was given to
 *             another file meanwhile; -EEXIST, -ENOENT, -EACCES or another errno
 *             of open(2), fstat(2) or ftruncate(2); -ENOMEM; -ESHUTDOWN;
 *             BLKREPL_ERR_VERSION.
 * Since:      0.1
 */
BLKREPL_API int blkrepl_image_open_file(blkrepl_context *ctx, const char *path,
                                        const blkrepl_file_options *file_options,
                                        const blkrepl_image_options *options, blkrepl_image **out);

/**
 * Open an image that lives in memory and starts as zeroes.
 *
 * Memory is taken in pieces of 64 KiB as they are written, so `bytes` may be
 * anything up to 2^63-1; a write for which there is no memory fails with
 * -ENOMEM.  Closing the image discards the contents.
 *
 * Ownership:  *out belongs to the caller.
 * Thread:     any.
 * Returns:    0; -EINVAL bad option or size; -ENOMEM; -ESHUTDOWN;
 *             BLKREPL_ERR_VERSION.
 * Since:      0.1
 */
BLKREPL_API int blkrepl_image_open_memory(blkrepl_context *ctx, uint64_t bytes,
                                          const blkrepl_image_options *options,
                                          blkrepl_image **out);

/**
 * Drop the caller's handle of an image.
 *
 * Never blocks and never fails.  Jobs, requests and open brackets keep the
 * image until they end; their callbacks run.  Then the backend is closed: by
 * this call, by a poll of lane 0, or by blkrepl_context_free().  Tokens of open
 * brackets stay valid.  With NULL it does nothing.
 *
 * Ownership:  takes the handle; it must not be used any more.
 * Thread:     any, also inside callbacks.
 * Returns:    nothing.
 * Since:      0.1
 */
BLKREPL_API void blkrepl_image_close(blkrepl_image *image);

/**
 * Tell what is known of an image.
 *
 * Thread:     any.
 * Returns:    0; -EINVAL NULL or info->struct_size smaller than in 0.1.
 * Since:      0.1
 */
BLKREPL_API int blkrepl_image_query(blkrepl_image *image, blkrepl_image_info *info);

/**
 * Read.
 *
 * The length is that of the iovecs together; 0 is legal.  `flags` must be 0.
 *
 * Ownership:  iov, its array and its memory are borrowed until the callback.
 * Callbacks:  done, in a poll of the lane: 0 or the backend's code; what the
 *             buffers hold after a failure is undefined.
 * Thread:     any.
 * Returns:    0 accepted; -EINVAL no such lane, NULL, unknown flag, or the
 *             range does not lie inside the image; -EAGAIN all requests_max
 *             are in use (BLKREPL_EVENT_ROOM follows); -ESHUTDOWN.
 * Since:      0.1
 */
BLKREPL_API int blkrepl_image_read(blkrepl_image *image, uint32_t lane, uint64_t offset,
                                   const blkrepl_iovec *iov, uint32_t iov_count, uint32_t flags,
                                   const blkrepl_completion *done);

/**
 * Write.
 *
 * flags: 0 or BLKREPL_IO_FUA.  After a failure the range may hold any mixture
 * of old and new bytes.
 *
 * Ownership:  iov, its array and its memory are borrowed until the callback
 *             and must not change before it.
 * Callbacks:  done, in a poll of the lane: 0, the backend's code, or, with a
 *             job of policy guest-write-fails, the code for which the old data
 *             could not be saved (nothing was written then).
 * Thread:     any.
 * Returns:    as blkrepl_image_read(); -EROFS the image is read-only; -EBUSY
 *             the image is the target of a job.
 * Since:      0.1
 */
BLKREPL_API int blkrepl_image_write(blkrepl_image *image, uint32_t lane, uint64_t offset,
                                    const blkrepl_iovec *iov, uint32_t iov_count, uint32_t flags,
                                    const blkrepl_completion *done);

/**
 * Make a range read as zero.
 *
 * flags: BLKREPL_IO_FUA, BLKREPL_IO_MAY_UNMAP (a hole will do) and
 * BLKREPL_IO_NO_FALLBACK (the callback gets -ENOTSUP rather than that buffers
 * are written; edges below the request alignment may still be).  A
 * long range is carried out in pieces; when one fails, or a job's policy fails
 * it, the rest is not done.
 *
 * Callbacks:  done, as for blkrepl_image_write().
 * Thread:     any.
 * Returns:    as blkrepl_image_write().
 * Since:      0.1
 */
BLKREPL_API int blkrepl_image_write_zeroes(blkrepl_image *image, uint32_t lane, uint64_t offset,
                                           uint64_t bytes, uint32_t flags,
                                           const blkrepl_completion *done);

/**
 * Say that a range is no longer needed.
 *
 * Advice: the content is undefined afterwards.  Parts below the backend's
 * request alignment, and parts whose old data a running backup has not saved
 * yet, are skipped; so a discard never waits for a backup.  `flags` must be 0.
 *
 * Callbacks:  done, in a poll of the lane: 0 or the backend's code.
 * Thread:     any.
 * Returns:    as blkrepl_image_write().
 * Since:      0.1
 */
BLKREPL_API int blkrepl_image_discard(blkrepl_image *image, uint32_t lane, uint64_t offset,
                                      uint64_t bytes, uint32_t flags,
                                      const blkrepl_completion *done);

/**
 * Make durable every write that was completed before this call.
 *
 * Ownership:  nothing is borrowed.
 * Callbacks:  done, in a poll of the lane: 0 or the backend's code.
 * Thread:     any.
 * Returns:    as blkrepl_image_read(); on a read-only image it is accepted and
 *             succeeds.
 * Since:      0.1
 */
BLKREPL_API int blkrepl_image_flush(blkrepl_image *image, uint32_t lane,
                                    const blkrepl_completion *done);

/**
 * Ask where a range holds data and where it reads as zero.
 *
 * Fills `extents` from the front; a list with fewer than extents_max entries
 * ends with an entry of bytes 0.  It covers a prefix of the range that is at
 * least one byte long: loop to see the rest.  What is written meanwhile may or
 * may not show.
 *
 * Ownership:  extents is borrowed until the callback; read it from then on.
 * Callbacks:  done, in a poll of the lane: 0, the backend's code, or -EIO when
 *             the backend's list makes no sense.
 * Thread:     any.
 * Returns:    as blkrepl_image_read(); -EINVAL also for extents NULL or
 *             extents_max 0.
 * Since:      0.1
 */
BLKREPL_API int blkrepl_image_status(blkrepl_image *image, uint32_t lane, uint64_t offset,
                                     uint64_t bytes, blkrepl_extent *extents, uint32_t extents_max,
                                     const blkrepl_completion *done);

/** The answer of a bracket that has to wait. */
#define BLKREPL_WAIT 1

/**
 * What a bracket is about to do.
 *
 * A WRITE, ZEROES or DISCARD over parts that a running backup has not saved yet
 * waits until all of them are saved, and overlapping writes wait for it.  So
 * split long ZEROES and DISCARDs (a few MiB at a time); a DISCARD that has to
 * wait may be cancelled and acknowledged instead, since discard is advice.  A
 * FLUSH covers the writes whose end came before its begin.
 */
typedef struct blkrepl_bracket {
    uint32_t struct_size; /* sizeof *this */
    uint32_t opcode;      /* BLKREPL_OP_WRITE, _ZEROES, _DISCARD or _FLUSH */
    uint64_t offset;      /* multiple of the image's request alignment */
    uint64_t bytes;       /* likewise, or up to the end; FLUSH: both 0 */
    uint32_t lane;
    uint32_t flags; /* BLKREPL_IO_FUA, BLKREPL_IO_MAY_UNMAP */
} blkrepl_bracket;

/**
 * Announce a write that the host is about to do by itself.
 *
 * 0 means GO: do it now, then call blkrepl_write_end() with *token.
 * BLKREPL_WAIT means: not yet; `go` runs exactly once, in a poll of the lane,
 * with 0 for GO, or with a negative code when the write must not be done; in
 * that case the bracket is over and there is no end to call.
 *
 * After a GO the write must reach the medium without waiting for the begin of
 * another bracket.  A second write to the same bytes, through or beside, waits
 * until this one has ended.
 *
 * *token is written before `go` can run; it is never 0, and set to 0 when the
 * call is refused.  It is an id: using it twice, or after its end, is an error
 * and does no damage.  Whoever ends or cancels the bracket before begin has
 * returned (from inside a submit, or another thread) knows more than the answer
 * of begin: that tells how it stood.
 *
 * Ownership:  the bracket keeps the image open until its end.
 * Callbacks:  go, only after BLKREPL_WAIT: 0; -ECANCELED after
 *             blkrepl_write_cancel(); or, with a job of policy
 *             guest-write-fails, the code for which the old data could not be
 *             saved.  go->release runs in any case (see blkrepl_completion).
 * Thread:     any.
 * Returns:    0 GO; BLKREPL_WAIT; -EINVAL no such lane, NULL (go and go->fn
 *             too), bad opcode or flag, or a range that is not aligned or not
 *             inside the image; -EROFS; -EBUSY the image is the target of a
 *             job; -EAGAIN all requests_max are in use (BLKREPL_EVENT_ROOM
 *             follows); -ESHUTDOWN; BLKREPL_ERR_VERSION.
 * Since:      0.1
 */
BLKREPL_API int blkrepl_write_begin(blkrepl_image *image, const blkrepl_bracket *what,
                                    const blkrepl_completion *go, uint64_t *token);

/**
 * Say how a bracketed write went.
 *
 * `result` is 0 or a negative code; after a failure the library assumes that
 * the range holds any mixture of old and new bytes.  Acknowledge the write to
 * the guest only after a 0 from here, or in `done`.
 *
 * `data` is what was written, for machines that need it; none does in this
 * release, so it may be NULL with iov_count 0, and the answer is never
 * BLKREPL_WAIT; be ready for it all the same.
 *
 * Ownership:  ends the token; data is borrowed until this call, or `done`.
 * Callbacks:  done, only after BLKREPL_WAIT, in a poll of the bracket's lane.
 * Thread:     any.
 * Returns:    0 the bracket has ended; BLKREPL_WAIT it ends when `done` runs;
 *             -ENOENT no bracket with this token that has got its GO; -EINVAL
 *             ctx is NULL or result is positive (a byte count?): the bracket
 *             is still open then.
 * Since:      0.1
 */
BLKREPL_API int blkrepl_write_end(blkrepl_context *ctx, uint64_t token, int result,
                                  const blkrepl_iovec *data, uint32_t iov_count,
                                  const blkrepl_completion *done);

/**
 * Give up a bracket; nothing was written.
 *
 * Legal from the begin on: while it waits and after its GO, as long as the
 * medium was not touched.  The answer tells which it was, whatever the timing:
 * BLKREPL_WAIT means that no GO was given and none will be, `go` runs once with
 * -ECANCELED; 0 means that the GO had been given (begin had answered 0, or `go`
 * had been entered with 0) and the bracket is over without another callback.
 * After a 0 the write must not be done any more: a host that cancels from
 * another thread has to agree on that with its own `go`.
 *
 * Ownership:  ends the token.
 * Callbacks:  go with -ECANCELED, only after BLKREPL_WAIT, in a poll of the
 *             bracket's lane.
 * Thread:     any.
 * Returns:    0; BLKREPL_WAIT; -ENOENT no bracket with this token; -EINVAL ctx
 *             is NULL.
 * Since:      0.1
 */
BLKREPL_API int blkrepl_write_cancel(blkrepl_context *ctx, uint64_t token);

BLKREPL_END_DECLS

#endif
