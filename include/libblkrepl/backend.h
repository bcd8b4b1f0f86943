/* SPDX-License-Identifier: MIT */
/**
 * @file backend.h
 * What the host supplies to make a disk: the backend and its requests.
 *
 * A backend takes requests through submit() and reports each of them exactly
 * once with blkrepl_io_complete(), at once or later, from any thread.
 *
 * What a backend may rely on:
 *   - get_info comes first and once; close comes last and once, when every
 *     request has been completed and no thread is inside the backend;
 *   - there are never more requests in flight than the declared queue_depth;
 *   - a range lies inside the image and is a multiple of request_alignment at
 *     both ends, except that it may end at the very end of the image;
 *   - every iovec is a multiple of memory_alignment in address and length, and
 *     there are at most iov_count_max of them, together exactly `bytes`; the
 *     last one may be shorter where a request ends at the end of the image;
 *   - no request is longer than transfer_bytes_max (ZEROES and DISCARD:
 *     zeroes_bytes_max; COPY_FROM: copy_bytes_max);
 *   - writes whose ranges overlap are never in flight together, when the host
 *     sends all its writes through the library or brackets them; a COPY_FROM
 *     is a write of the backend that gets it;
 *   - no lock of the library is held during submit, cancel and close; submit
 *     may run in several threads at once, cancel and close as well, but close
 *     never together with anything else.
 *
 * What the library relies on:
 *   - submit takes everything it is given and does not block for long;
 *   - one completion per request, and none for anything else;
 *   - after it has completed a request, with whatever result, the backend
 *     neither touches its memory nor changes the medium on its behalf.  A
 *     backend that cannot promise that must not complete the request;
 *   - a write that failed may have left any mixture of old and new bytes in
 *     its range, but nothing outside of it;
 *   - the same holds for a COPY_FROM, also where bytes of the source changed
 *     while it was being carried out.
 */
#ifndef LIBBLKREPL_BACKEND_H
#define LIBBLKREPL_BACKEND_H

#include <libblkrepl/base.h>

BLKREPL_BEGIN_DECLS

/** What a request asks for. */
enum blkrepl_opcode {
    /** Fill the iovecs from the medium. */
    BLKREPL_OP_READ = 1,
    /** Write the iovecs to the medium. */
    BLKREPL_OP_WRITE = 2,
    /** Make the range read as zero.  Not declared: zero buffers are written. */
    BLKREPL_OP_ZEROES = 3,
    /** The range is no longer needed; its content is undefined afterwards.
     *  Advice.  Not declared: succeeds without effect. */
    BLKREPL_OP_DISCARD = 4,
    /** Make durable what was completed before.  Not declared: succeeds. */
    BLKREPL_OP_FLUSH = 5,
    /** Fill `extents` from the front with the status of the range: at least
     *  one extent, at most extents_max, together no more than `bytes` (what is
     *  missing is asked again).  Not declared: all data. */
    BLKREPL_OP_STATUS = 6,
    /** Copy `bytes` from `source_offset` of another backend to `offset` of this
     *  one, without iovecs.  The other one is `source_user`, which is the `user`
     *  of its open call; it has declared the same copy_domain, is not asked, and
     *  stays open until the request is completed.  Source and target are never
     *  the same backend.  The range is aligned at both ends for either of them,
     *  except that it may end at the very end of both, or at the end of the
     *  source where this backend's alignment allows it.
     *
     *  Advice: with any negative result (-ENOTSUP, -EXDEV, ...) the library
     *  reads and writes the range instead, and does not ask again in that job.
     *
     *  Requests for other parts of the source go on meanwhile, and so may guest
     *  writes to this very part of it: then what arrives at the target is
     *  undefined, and the library writes that part once more when the request
     *  has been completed, which it also asks to have cancelled. */
    BLKREPL_OP_COPY_FROM = 7,
    /** Reserved: change the size. */
    BLKREPL_OP_RESIZE = 8
};

/** How a request wants it done. */
enum blkrepl_io_flags {
    /** WRITE, ZEROES: durable when complete.  Only if the backend has FUA;
     *  otherwise the library sends a FLUSH after the write. */
    BLKREPL_IO_FUA = 1,
    /** ZEROES: a hole will do. */
    BLKREPL_IO_MAY_UNMAP = 2,
    /** ZEROES: answer -ENOTSUP rather than write buffers. */
    BLKREPL_IO_NO_FALLBACK = 4,
    /** Work of a job that no guest waits for: let other requests pass. */
    BLKREPL_IO_BACKGROUND = 8,
    /** WRITE of a job: store it compressed.  One cluster of the backend, or its
     *  last one; only if it has declared BLKREPL_BACKEND_COMPRESS. */
    BLKREPL_IO_COMPRESS = 16
};

/**
 * One request to a backend.
 *
 * Allocated by the library and valid, with its iovecs and extents, until it is
 * completed.  Read-only for the backend except host[] (four words of scratch,
 * 0 at submit) and the extents of a STATUS.
 */
typedef struct blkrepl_io {
    uint32_t struct_size;
    uint32_t opcode; /* BLKREPL_OP_* */
    uint64_t id;     /* for blkrepl_io_complete() and cancel; never 0 */
    uint64_t offset;
    uint64_t bytes;
    uint64_t source_offset; /* COPY_FROM */
    uint32_t flags;         /* BLKREPL_IO_* */
    uint32_t lane;
    uint32_t iov_count;
    uint32_t extents_max;
    const blkrepl_iovec *iov;
    blkrepl_extent *extents;
    void *source_user; /* COPY_FROM */
    void *host[4];
    void *reserved0;
} blkrepl_io;

/** What a backend is like, in blkrepl_backend_info.flags. */
enum blkrepl_backend_flags {
    /** Writes will be refused; WRITE need not be declared. */
    BLKREPL_BACKEND_READ_ONLY = 1,
    /** BLKREPL_IO_FUA is understood. */
    BLKREPL_BACKEND_FUA = 2,
    /** BLKREPL_IO_COMPRESS is understood. */
    BLKREPL_BACKEND_COMPRESS = 4
};

/** What a backend is like; filled by get_info, asked once at open. */
typedef struct blkrepl_backend_info {
    uint32_t struct_size;        /* set by the library */
    uint32_t flags;              /* BLKREPL_BACKEND_* */
    uint64_t bytes;              /* size of the disk, 0 .. 2^63-1 */
    uint64_t transfer_bytes_max; /* longest READ or WRITE; 0: no limit */
    uint64_t zeroes_bytes_max;   /* longest ZEROES or DISCARD; 0: no limit */
    uint32_t opcodes;            /* bit n set: opcode n is understood; READ is
                                  * required, and WRITE unless READ_ONLY */
    uint32_t queue_depth;        /* requests in flight at most; 0: 64 */
    uint32_t request_alignment;  /* power of two up to 64 KiB; 0: 1 */
    uint32_t memory_alignment;   /* power of two up to 4 KiB; 0: 1; one that is
                                  * larger than request_alignment raises it */
    uint32_t iov_count_max;      /* iovecs of a request at most; 0: 1024 */
    uint32_t cluster_bytes;      /* unit that should be written whole, power of
                                  * two up to 16 MiB; 0: none */
    uint64_t copy_bytes_max;     /* longest COPY_FROM; 0: no limit */
    void *copy_domain;           /* backends with the same one know how to copy
                                  * from each other; any address that the host
                                  * chooses; NULL: COPY_FROM is never sent */
    void *reserved0;             /* NULL */
} blkrepl_backend_info;

/**
 * The functions of a backend.  Copied at open; `user` is that of the open call.
 *
 * get_info: set the fields of *info one by one (it is zero but for struct_size,
 *   and may be larger or smaller than your header's: set nothing that lies
 *   beyond its struct_size) and return 0, or a negative code; it runs in the
 *   thread that opens the image.  Required.
 * submit: take `count` requests, in this order; all of one lane.  The array is
 *   valid until submit returns, each request until it is completed, which may
 *   be earlier.  May complete them before it returns.  May call every function
 *   of the library but a poll.  To refuse a request, complete it with a
 *   negative code.  Required.
 * cancel: a request is no longer wanted.  A hint: the request must still be
 *   completed once, with -ECANCELED or as it turned out.  The id may be one
 *   that was completed meanwhile.  NULL: requests are waited for.
 * close: the last call; free `user`.  NULL: nothing to do.
 */
typedef struct blkrepl_backend_ops {
    uint32_t struct_size; /* sizeof *this */
    uint32_t flags;       /* 0 */
    int (*get_info)(void *user, blkrepl_backend_info *info);
    void (*submit)(void *user, uint32_t lane, blkrepl_io *const *ios, uint32_t count);
    void (*cancel)(void *user, uint64_t id);
    void (*close)(void *user);
} blkrepl_backend_ops;

/**
 * Report that a backend has finished a request.
 *
 * Only records the fact: constant time, no allocation, no callback, does not
 * block; a sleeping poll is woken.  The request and its memory must not be
 * touched any more once this call has been entered, unless it answers -EINVAL.
 *
 * An id that is not in flight (completed before, or never issued) is refused
 * and does no damage.  Ids belong to their context: one of another context may
 * by chance be in flight here too.  A positive result is refused,
 * since there are no short transfers; the request then stays in flight and
 * must be completed properly.
 *
 * Thread:     any, also inside submit, cancel and callbacks.
 * Returns:    0; -ENOENT the id is not in flight; -EINVAL positive result or
 *             ctx is NULL.
 * Since:      0.1
 */
BLKREPL_API int blkrepl_io_complete(blkrepl_context *ctx, uint64_t id, int result);

BLKREPL_END_DECLS

#endif
