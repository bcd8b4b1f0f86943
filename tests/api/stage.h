/* SPDX-License-Identifier: MIT */
/* What the tests of jobs share: disks with their images, what arrived on them,
 * and how a job stands. */
#ifndef TESTS_API_STAGE_H
#define TESTS_API_STAGE_H

#include "bits.h"

/* A disk of the host and its image. */
struct part {
    struct tape tape;
    blkrepl_image *image;
    uint8_t *start; /* what it held when part_note() was called last           */
};

/* A disk filled by tag (0: zeroes), with an image. */
void part_open(struct part *part, struct env *env, uint64_t bytes, unsigned tag);
/* The same for a tape that was prepared by the test. */
void part_open_prepared(struct part *part, struct env *env);
/* Remember what it holds. */
void part_note(struct part *part);
/* Drop the handle of the image. */
void part_close(struct part *part);
/* Once the context is gone: check the tape and free it. */
void part_end(struct part *part);

/* Drop the images, free the context, then check the tapes and free them. */
void parts_close(struct env *env, struct part *const *parts, size_t count);
/* Hold nothing, finish all requests, and poll, until all of them stand still. */
void parts_run(struct env *env, struct part *const *parts, size_t count);
/* What was held is finished once, with success; then poll.  False: there was none. */
bool part_finish(struct env *env, struct part *part, uint32_t opcode);
/* Requests of this opcode that touch the range end with `result` from now on. */
void part_fail(struct part *part, uint32_t opcode, uint64_t offset, uint64_t bytes, int result);
void part_mend(struct part *part);
void parts_mend(struct part *const *parts, size_t count);
/* From now on a discard makes garbage of what was there: nobody may read it any more. */
void part_spoil_discards(struct part *part);
/* The copy holds these clusters ('#') of what the disk held when it was noted, and zeroes
 * elsewhere. */
void part_assert_holds(const struct part *copy, const struct part *disk, const char *picture);

/* A write of the guest: `bytes` of pattern `tag`, accepted.  The memory is static and
 * good for one write at a time, or for several of the same tag. */
void guest_write(struct req *req, struct part *part, uint64_t offset, uint64_t bytes, unsigned tag);
/* The same, polled until it is done, which it must be, with success. */
void guest_writes(struct env *env, struct part *part, uint64_t offset, uint64_t bytes,
                  unsigned tag);

/* Marks in `map` the granules of which all bytes have arrived by writes that succeeded. */
void map_arrived(struct map *map, struct tape *t);
/* What the bitmap holds. */
void map_content(struct map *map, blkrepl_bitmap *bitmap);

uint32_t job_state(blkrepl_job *job);
bool job_has(blkrepl_job *job, uint32_t flag);
/* Free the handle, and poll. */
void job_drop(struct env *env, blkrepl_job **job);
/* parts_run(); a job that has not concluded by then is cancelled. */
void job_run_out(struct env *env, blkrepl_job *job, struct part *const *parts, size_t count);

#define ASSERT_STATE(job, state) assert_state((job), (state), __FILE__, __LINE__)
#define ASSERT_ENDED(job, result, error) assert_ended((job), (result), (error), __FILE__, __LINE__)

void assert_state(blkrepl_job *job, uint32_t state, const char *file, int line);
/* Concluded, with this result and this error, nothing in flight. */
void assert_ended(blkrepl_job *job, uint32_t result, int error, const char *file, int line);

#endif
