/* SPDX-License-Identifier: MIT */
/**
 * @file blocking.h
 * Guest I/O for hosts with a thread for each request: calls that return when
 * the request has ended.
 *
 * Each of these functions makes the request of the same name without _wait,
 * and sleeps until it is over.  If nobody polls the lane meanwhile, the caller
 * does ("leads"): callbacks of other requests of the lane may run inside the
 * call, and when it has what it wants it leaves the lead to the next sleeper.
 * While a blocking call leads, a poll of the lane answers -EBUSY; while the host
 * polls, blocking calls only sleep.  Do not sleep on the descriptor of a lane in
 * which threads block: who leads takes its signals.
 *
 * A call that finds all requests_max in use waits for room rather than answer
 * -EAGAIN; no event is posted for that.
 *
 * On lane 0 such a call also moves jobs on while it leads, but only then: a host
 * that runs jobs sees to it that somebody polls lane 0 at all times.  Best it has
 * two lanes: lane 0 with a thread that polls, lane 1 for the threads that block.
 *
 * The handle of an image must not be closed while a call that uses it waits.
 *
 * The threads of the bundled file backend are started by the first request that
 * needs one, so a host may fork between opening its images and its first
 * request.
 *
 * What they have in common:
 *
 * Ownership:  buffers, iovecs and extents are borrowed during the call.
 * Thread:     any, any number at once; not inside a callback, submit, cancel,
 *             close or hook, and not in a context with a clock of the host.
 * Returns:    what the callback would be given: 0 or the backend's code; or
 *             what the call without _wait returns when it refuses (but for
 *             -EAGAIN); -EDEADLK inside a callback, submit, cancel, close or
 *             hook; -EINVAL with a clock hook; -ENOMEM the system refuses what
 *             a thread sleeps on.  blkrepl_error_message() tells about refusals
 *             only.
 * Since:      0.1
 */
#ifndef LIBBLKREPL_BLOCKING_H
#define LIBBLKREPL_BLOCKING_H

#include <libblkrepl/image.h>

BLKREPL_BEGIN_DECLS

/**
 * Read, and wait for it.
 *
 * Thread:     see above.
 * Returns:    see above; otherwise as blkrepl_image_read().
 * Since:      0.1
 */
BLKREPL_API int blkrepl_image_read_wait(blkrepl_image *image, uint32_t lane, uint64_t offset,
                                        const blkrepl_iovec *iov, uint32_t iov_count,
                                        uint32_t flags);

/**
 * Write, and wait for it.
 *
 * Thread:     see above.
 * Returns:    see above; otherwise as blkrepl_image_write().
 * Since:      0.1
 */
BLKREPL_API int blkrepl_image_write_wait(blkrepl_image *image, uint32_t lane, uint64_t offset,
                                         const blkrepl_iovec *iov, uint32_t iov_count,
                                         uint32_t flags);

/**
 * Make a range read as zero, and wait for it.
 *
 * Thread:     see above.
 * Returns:    see above; otherwise as blkrepl_image_write_zeroes().
 * Since:      0.1
 */
BLKREPL_API int blkrepl_image_write_zeroes_wait(blkrepl_image *image, uint32_t lane,
                                                uint64_t offset, uint64_t bytes, uint32_t flags);

/**
 * Say that a range is no longer needed, and wait for it.
 *
 * Thread:     see above.
 * Returns:    see above; otherwise as blkrepl_image_discard().
 * Since:      0.1
 */
BLKREPL_API int blkrepl_image_discard_wait(blkrepl_image *image, uint32_t lane, uint64_t offset,
                                           uint64_t bytes, uint32_t flags);

/**
 * Make durable every write that was completed before this call, and wait for it.
 *
 * Thread:     see above.
 * Returns:    see above; otherwise as blkrepl_image_flush().
 * Since:      0.1
 */
BLKREPL_API int blkrepl_image_flush_wait(blkrepl_image *image, uint32_t lane);

/**
 * Ask where a range holds data and where it reads as zero, and wait for it.
 *
 * Thread:     see above.
 * Returns:    see above; otherwise as blkrepl_image_status().
 * Since:      0.1
 */
BLKREPL_API int blkrepl_image_status_wait(blkrepl_image *image, uint32_t lane, uint64_t offset,
                                          uint64_t bytes, blkrepl_extent *extents,
                                          uint32_t extents_max);

/**
 * Announce a write that the host is about to do by itself, and wait for its GO.
 *
 * After a 0 do the write, then call blkrepl_write_end() with *token.  Another
 * thread may give it up meanwhile with blkrepl_write_cancel(): the answer is
 * then -ECANCELED, and *token is 0 whenever the answer is not 0.  *token is
 * written before the caller sleeps; that the other thread may read it there is
 * the host's affair.
 *
 * Ownership:  the bracket keeps the image open until its end.
 * Thread:     see above.
 * Returns:    0 GO; what `go` would be given; see above; otherwise as
 *             blkrepl_write_begin().
 * Since:      0.1
 */
BLKREPL_API int blkrepl_write_begin_wait(blkrepl_image *image, const blkrepl_bracket *what,
                                         uint64_t *token);

BLKREPL_END_DECLS

#endif
