/* SPDX-License-Identifier: MIT */
/* The public functions, each behind a check of its answer (api.c).  An error is
 * accepted if it is documented for the function and has a cause: something was
 * made to fail inside this call, or the scenario has announced it. */
#ifndef TESTS_TORTURE_API_H
#define TESTS_TORTURE_API_H

#include "torture.h"

/* The next call has to answer this; something injected may come before it. */
void api_must(int code);
/* The next call may answer this. */
void api_may(int code);
/* A memory image takes memory as it is written. */
void api_memory_grows(bool grows);
/* Whether the last call failed for an injected reason. */
bool api_injected(void);
/* The number of exported functions that are known here, and their names. */
unsigned api_count(void);
const char *api_name(unsigned function);

int api_context_create(const blkrepl_context_options *options, blkrepl_context **out);
int api_context_free(blkrepl_context *ctx);
uint64_t api_context_now(blkrepl_context *ctx);
int api_poll(blkrepl_context *ctx, uint32_t lane, uint64_t timeout_ns);
int api_poll_arm(blkrepl_context *ctx, uint32_t lane, uint64_t *deadline_ns);
int api_poll_fd(blkrepl_context *ctx, uint32_t lane);
int api_poll_wake(blkrepl_context *ctx, uint32_t lane);
const char *api_error_text(int code);
const char *api_error_message(void);
const char *api_version(void);

int api_io_complete(blkrepl_context *ctx, uint64_t id, int result);

int api_image_open(blkrepl_context *ctx, const blkrepl_backend_ops *ops, void *backend_user,
                   const blkrepl_image_options *options, blkrepl_image **out);
int api_image_open_file(blkrepl_context *ctx, const char *path,
                        const blkrepl_file_options *file_options,
                        const blkrepl_image_options *options, blkrepl_image **out);
int api_image_open_memory(blkrepl_context *ctx, uint64_t bytes,
                          const blkrepl_image_options *options, blkrepl_image **out);
void api_image_close(blkrepl_image *image);
int api_image_query(blkrepl_image *image, blkrepl_image_info *info);
int api_image_read(blkrepl_image *image, uint32_t lane, uint64_t offset, const blkrepl_iovec *iov,
                   uint32_t iov_count, uint32_t flags, const blkrepl_completion *done);
int api_image_write(blkrepl_image *image, uint32_t lane, uint64_t offset, const blkrepl_iovec *iov,
                    uint32_t iov_count, uint32_t flags, const blkrepl_completion *done);
int api_image_write_zeroes(blkrepl_image *image, uint32_t lane, uint64_t offset, uint64_t bytes,
                           uint32_t flags, const blkrepl_completion *done);
int api_image_discard(blkrepl_image *image, uint32_t lane, uint64_t offset, uint64_t bytes,
                      uint32_t flags, const blkrepl_completion *done);
int api_image_flush(blkrepl_image *image, uint32_t lane, const blkrepl_completion *done);
int api_image_status(blkrepl_image *image, uint32_t lane, uint64_t offset, uint64_t bytes,
                     blkrepl_extent *extents, uint32_t extents_max, const blkrepl_completion *done);
int api_write_begin(blkrepl_image *image, const blkrepl_bracket *what, const blkrepl_completion *go,
                    uint64_t *token);
int api_write_end(blkrepl_context *ctx, uint64_t token, int result, const blkrepl_iovec *data,
                  uint32_t iov_count, const blkrepl_completion *done);
int api_write_cancel(blkrepl_context *ctx, uint64_t token);

int api_image_read_wait(blkrepl_image *image, uint32_t lane, uint64_t offset,
                        const blkrepl_iovec *iov, uint32_t iov_count, uint32_t flags);
int api_image_write_wait(blkrepl_image *image, uint32_t lane, uint64_t offset,
                         const blkrepl_iovec *iov, uint32_t iov_count, uint32_t flags);
int api_image_write_zeroes_wait(blkrepl_image *image, uint32_t lane, uint64_t offset,
                                uint64_t bytes, uint32_t flags);
int api_image_discard_wait(blkrepl_image *image, uint32_t lane, uint64_t offset, uint64_t bytes,
                           uint32_t flags);
int api_image_flush_wait(blkrepl_image *image, uint32_t lane);
int api_image_status_wait(blkrepl_image *image, uint32_t lane, uint64_t offset, uint64_t bytes,
                          blkrepl_extent *extents, uint32_t extents_max);
int api_write_begin_wait(blkrepl_image *image, const blkrepl_bracket *what, uint64_t *token);

int api_backup_create(blkrepl_image *source, blkrepl_image *target,
                      const blkrepl_backup_options *options, blkrepl_job **out);
int api_backup_start(blkrepl_image *source, blkrepl_image *target,
                     const blkrepl_backup_options *options, blkrepl_job **out);
int api_job_start(blkrepl_job *job);
int api_job_pause(blkrepl_job *job);
int api_job_resume(blkrepl_job *job);
int api_job_cancel(blkrepl_job *job, uint32_t flags);
int api_job_set_speed(blkrepl_job *job, uint64_t speed_bytes_per_sec);
int api_job_query(blkrepl_job *job, blkrepl_job_info *info);
void api_job_free(blkrepl_job *job);

int api_bitmap_create(blkrepl_context *ctx, const blkrepl_bitmap_options *options,
                      blkrepl_bitmap **out);
int api_bitmap_add(blkrepl_image *image, const blkrepl_bitmap_options *options,
                   blkrepl_bitmap **out);
int api_bitmap_find(blkrepl_image *image, const char *name, blkrepl_bitmap **out);
int api_bitmap_next(blkrepl_image *image, uint64_t after_id, blkrepl_bitmap **out);
void api_bitmap_free(blkrepl_bitmap *bitmap);
int api_bitmap_query(blkrepl_bitmap *bitmap, blkrepl_bitmap_info *info);
int api_bitmap_merge(blkrepl_bitmap *bitmap, blkrepl_bitmap *const *sources, uint32_t source_count);
int api_bitmap_intersect(blkrepl_bitmap *bitmap, blkrepl_bitmap *other);
int api_bitmap_subtract(blkrepl_bitmap *bitmap, blkrepl_bitmap *other);
int api_bitmap_resize(blkrepl_bitmap *bitmap, uint64_t bytes);
int api_bitmap_transact(blkrepl_context *ctx, const blkrepl_bitmap_action *const *actions,
                        uint32_t action_count);
int api_bitmap_get(blkrepl_bitmap *bitmap, uint64_t offset);
int api_bitmap_next_dirty(blkrepl_bitmap *bitmap, uint64_t offset, uint64_t bytes, uint64_t *found);
int api_bitmap_next_clean(blkrepl_bitmap *bitmap, uint64_t offset, uint64_t bytes, uint64_t *found);
int api_bitmap_next_area(blkrepl_bitmap *bitmap, uint64_t offset, uint64_t bytes,
                         uint64_t max_bytes, blkrepl_area *area);
int api_bitmap_status(blkrepl_bitmap *bitmap, uint64_t offset, uint64_t bytes, uint64_t *run_bytes);
int api_bitmap_iterate(blkrepl_bitmap *bitmap, uint64_t *position, uint64_t *offsets,
                       uint32_t offsets_max);
uint64_t api_bitmap_part_alignment(blkrepl_bitmap *bitmap);
int api_bitmap_save(blkrepl_bitmap *bitmap, uint64_t offset, uint64_t bytes, void *data,
                    uint64_t *data_bytes);
int api_bitmap_load(blkrepl_bitmap *bitmap, uint64_t offset, uint64_t bytes, const void *data,
                    uint64_t data_bytes);
int api_bitmap_sha256(blkrepl_bitmap *bitmap, uint8_t *digest);
int api_bitmap_remove(blkrepl_bitmap *bitmap);
int api_bitmap_enable(blkrepl_bitmap *bitmap);
int api_bitmap_disable(blkrepl_bitmap *bitmap);
int api_bitmap_clear(blkrepl_bitmap *bitmap);
int api_bitmap_freeze(blkrepl_bitmap *bitmap);
int api_bitmap_abdicate(blkrepl_bitmap *bitmap);
int api_bitmap_reclaim(blkrepl_bitmap *bitmap);
int api_bitmap_invert(blkrepl_bitmap *bitmap);
int api_bitmap_load_begin(blkrepl_bitmap *bitmap);
int api_bitmap_load_finish(blkrepl_bitmap *bitmap);
int api_bitmap_validate(blkrepl_bitmap *bitmap);
int api_bitmap_set(blkrepl_bitmap *bitmap, uint64_t offset, uint64_t bytes);
int api_bitmap_reset(blkrepl_bitmap *bitmap, uint64_t offset, uint64_t bytes);
int api_bitmap_load_zeroes(blkrepl_bitmap *bitmap, uint64_t offset, uint64_t bytes);
int api_bitmap_load_ones(blkrepl_bitmap *bitmap, uint64_t offset, uint64_t bytes);

/* api_job.c */
int api_job_complete(blkrepl_job *job);
int api_job_finalize(blkrepl_job *job);
int api_job_dismiss(blkrepl_job *job);
int api_job_find(blkrepl_context *ctx, const char *name, blkrepl_job **out);
int api_job_next(blkrepl_context *ctx, uint64_t after_id, blkrepl_job **out);
int api_group_create(blkrepl_context *ctx, uint32_t flags, blkrepl_group **out);
int api_group_add(blkrepl_group *group, blkrepl_job *job);
int api_group_start(blkrepl_group *group);
int api_group_cancel(blkrepl_group *group, uint32_t flags);
void api_group_free(blkrepl_group *group);
int api_snapshot_open(blkrepl_job *job, const blkrepl_snapshot_options *options,
                      blkrepl_image **out);
int api_verify_create(blkrepl_image *image, blkrepl_image *other,
                      const blkrepl_verify_options *options, blkrepl_job **out);
int api_verify_start(blkrepl_image *image, blkrepl_image *other,
                     const blkrepl_verify_options *options, blkrepl_job **out);
int api_throttle_create(blkrepl_context *ctx, const blkrepl_throttle_options *options,
                        blkrepl_throttle **out);
int api_throttle_set(blkrepl_throttle *throttle, const blkrepl_throttle_options *options);
int api_throttle_query(blkrepl_throttle *throttle, blkrepl_throttle_info *info);
void api_throttle_free(blkrepl_throttle *throttle);
int api_image_set_throttle(blkrepl_image *image, blkrepl_throttle *throttle);

/* The format that all messages and log lines have. */
void api_check_text(const char *text, const char *where);

#endif
