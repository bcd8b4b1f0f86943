/* SPDX-License-Identifier: MIT */
/* abi.c - the layout of the border structs, checked by the compiler.
 *
 * Each struct is walked member by member: the first is at 0, each next one
 * begins where the one before ends, and the last one ends the struct, whose
 * size is written out.  So there is no padding, no member was moved or has
 * changed its size, and nothing was added that is not listed here.  A struct
 * that grows gets more NEXT lines and a new size in LAST. */
#include "base/abi.h"

#include "base/compiler.h"

#include <sys/uio.h>

#define SAME(a, b) _Static_assert((a) == (b), #a " is not " #b)
#define SIZE_OF(type, member) sizeof(((type *)0)->member)

/* The host may hand us its struct iovec, whatever the word size. */
SAME(sizeof(blkrepl_iovec), sizeof(struct iovec));
SAME(_Alignof(blkrepl_iovec), _Alignof(struct iovec));
SAME(offsetof(blkrepl_iovec, base), offsetof(struct iovec, iov_base));
SAME(SIZE_OF(blkrepl_iovec, base), SIZE_OF(struct iovec, iov_base));
SAME(offsetof(blkrepl_iovec, len), offsetof(struct iovec, iov_len));
SAME(SIZE_OF(blkrepl_iovec, len), SIZE_OF(struct iovec, iov_len));

#if UINTPTR_MAX == UINT64_MAX

#define FIRST(type, member) SAME(offsetof(type, member), 0)
#define NEXT(type, before, member) SAME(offsetof(type, member), ABI_BYTES_TO(type, before))
#define LAST(type, member, bytes)                                                                  \
    SAME(ABI_BYTES_TO(type, member), sizeof(type));                                                \
    SAME(sizeof(type), bytes)

FIRST(blkrepl_iovec, base);
NEXT(blkrepl_iovec, base, len);
LAST(blkrepl_iovec, len, 16);

FIRST(blkrepl_completion, fn);
NEXT(blkrepl_completion, fn, user);
NEXT(blkrepl_completion, user, release);
LAST(blkrepl_completion, release, 24);

FIRST(blkrepl_extent, bytes);
NEXT(blkrepl_extent, bytes, flags);
NEXT(blkrepl_extent, flags, reserved0);
LAST(blkrepl_extent, reserved0, 16);

FIRST(blkrepl_allocator, struct_size);
NEXT(blkrepl_allocator, struct_size, flags);
NEXT(blkrepl_allocator, flags, user);
NEXT(blkrepl_allocator, user, alloc);
NEXT(blkrepl_allocator, alloc, zalloc);
NEXT(blkrepl_allocator, zalloc, realloc);
NEXT(blkrepl_allocator, realloc, free);
NEXT(blkrepl_allocator, free, buffer_alloc);
NEXT(blkrepl_allocator, buffer_alloc, buffer_free);
NEXT(blkrepl_allocator, buffer_free, reserved0);
LAST(blkrepl_allocator, reserved0, 72);

FIRST(blkrepl_hooks, struct_size);
NEXT(blkrepl_hooks, struct_size, flags);
NEXT(blkrepl_hooks, flags, user);
NEXT(blkrepl_hooks, user, clock_ns);
NEXT(blkrepl_hooks, clock_ns, entropy);
NEXT(blkrepl_hooks, entropy, log);
LAST(blkrepl_hooks, log, 40);

FIRST(blkrepl_context_options, struct_size);
NEXT(blkrepl_context_options, struct_size, flags);
NEXT(blkrepl_context_options, flags, lane_count);
NEXT(blkrepl_context_options, lane_count, requests_max);
NEXT(blkrepl_context_options, requests_max, job_requests_max);
NEXT(blkrepl_context_options, job_requests_max, callbacks_max);
NEXT(blkrepl_context_options, callbacks_max, completions_max);
NEXT(blkrepl_context_options, completions_max, copies_max);
NEXT(blkrepl_context_options, copies_max, pool_threads_max);
NEXT(blkrepl_context_options, pool_threads_max, reserved0);
NEXT(blkrepl_context_options, reserved0, memory_bytes_max);
NEXT(blkrepl_context_options, memory_bytes_max, allocator);
NEXT(blkrepl_context_options, allocator, hooks);
NEXT(blkrepl_context_options, hooks, on_event);
NEXT(blkrepl_context_options, on_event, reserved1);
LAST(blkrepl_context_options, reserved1, 96);

FIRST(blkrepl_event, struct_size);
NEXT(blkrepl_event, struct_size, type);
NEXT(blkrepl_event, type, object_kind);
NEXT(blkrepl_event, object_kind, side);
NEXT(blkrepl_event, side, object_id);
NEXT(blkrepl_event, object_id, offset);
NEXT(blkrepl_event, offset, bytes);
NEXT(blkrepl_event, bytes, count);
NEXT(blkrepl_event, count, error);
NEXT(blkrepl_event, error, reserved0);
NEXT(blkrepl_event, reserved0, user);
NEXT(blkrepl_event, user, reserved1);
LAST(blkrepl_event, reserved1, 72);

FIRST(blkrepl_event_sink, fn);
NEXT(blkrepl_event_sink, fn, user);
NEXT(blkrepl_event_sink, user, release);
LAST(blkrepl_event_sink, release, 24);

FIRST(blkrepl_io, struct_size);
NEXT(blkrepl_io, struct_size, opcode);
NEXT(blkrepl_io, opcode, id);
NEXT(blkrepl_io, id, offset);
NEXT(blkrepl_io, offset, bytes);
NEXT(blkrepl_io, bytes, source_offset);
NEXT(blkrepl_io, source_offset, flags);
NEXT(blkrepl_io, flags, lane);
NEXT(blkrepl_io, lane, iov_count);
NEXT(blkrepl_io, iov_count, extents_max);
NEXT(blkrepl_io, extents_max, iov);
NEXT(blkrepl_io, iov, extents);
NEXT(blkrepl_io, extents, source_user);
NEXT(blkrepl_io, source_user, host);
NEXT(blkrepl_io, host, reserved0);
LAST(blkrepl_io, reserved0, 120);

FIRST(blkrepl_backend_info, struct_size);
NEXT(blkrepl_backend_info, struct_size, flags);
NEXT(blkrepl_backend_info, flags, bytes);
NEXT(blkrepl_backend_info, bytes, transfer_bytes_max);
NEXT(blkrepl_backend_info, transfer_bytes_max, zeroes_bytes_max);
NEXT(blkrepl_backend_info, zeroes_bytes_max, opcodes);
NEXT(blkrepl_backend_info, opcodes, queue_depth);
NEXT(blkrepl_backend_info, queue_depth, request_alignment);
NEXT(blkrepl_backend_info, request_alignment, memory_alignment);
NEXT(blkrepl_backend_info, memory_alignment, iov_count_max);
NEXT(blkrepl_backend_info, iov_count_max, cluster_bytes);
NEXT(blkrepl_backend_info, cluster_bytes, copy_bytes_max);
NEXT(blkrepl_backend_info, copy_bytes_max, copy_domain);
NEXT(blkrepl_backend_info, copy_domain, reserved0);
LAST(blkrepl_backend_info, reserved0, 80);

FIRST(blkrepl_backend_ops, struct_size);
NEXT(blkrepl_backend_ops, struct_size, flags);
NEXT(blkrepl_backend_ops, flags, get_info);
NEXT(blkrepl_backend_ops, get_info, submit);
NEXT(blkrepl_backend_ops, submit, cancel);
NEXT(blkrepl_backend_ops, cancel, close);
LAST(blkrepl_backend_ops, close, 40);

FIRST(blkrepl_image_options, struct_size);
NEXT(blkrepl_image_options, struct_size, flags);
NEXT(blkrepl_image_options, flags, name);
NEXT(blkrepl_image_options, name, user);
NEXT(blkrepl_image_options, user, release);
NEXT(blkrepl_image_options, release, reserved0);
LAST(blkrepl_image_options, reserved0, 40);

FIRST(blkrepl_image_info, struct_size);
NEXT(blkrepl_image_info, struct_size, flags);
NEXT(blkrepl_image_info, flags, id);
NEXT(blkrepl_image_info, id, bytes);
NEXT(blkrepl_image_info, bytes, request_alignment);
NEXT(blkrepl_image_info, request_alignment, memory_alignment);
NEXT(blkrepl_image_info, memory_alignment, cluster_bytes);
NEXT(blkrepl_image_info, cluster_bytes, requests_in_flight);
NEXT(blkrepl_image_info, requests_in_flight, user);
NEXT(blkrepl_image_info, user, reserved0);
NEXT(blkrepl_image_info, reserved0, name);
LAST(blkrepl_image_info, name, 120);

FIRST(blkrepl_file_options, struct_size);
NEXT(blkrepl_file_options, struct_size, flags);
NEXT(blkrepl_file_options, flags, bytes);
NEXT(blkrepl_file_options, bytes, mode);
NEXT(blkrepl_file_options, mode, queue_depth);
LAST(blkrepl_file_options, queue_depth, 24);

FIRST(blkrepl_bracket, struct_size);
NEXT(blkrepl_bracket, struct_size, opcode);
NEXT(blkrepl_bracket, opcode, offset);
NEXT(blkrepl_bracket, offset, bytes);
NEXT(blkrepl_bracket, bytes, lane);
NEXT(blkrepl_bracket, lane, flags);
LAST(blkrepl_bracket, flags, 32);

FIRST(blkrepl_backup_options, struct_size);
NEXT(blkrepl_backup_options, struct_size, flags);
NEXT(blkrepl_backup_options, flags, name);
NEXT(blkrepl_backup_options, name, user);
NEXT(blkrepl_backup_options, user, release);
NEXT(blkrepl_backup_options, release, reserved1);
NEXT(blkrepl_backup_options, reserved1, cluster_bytes);
NEXT(blkrepl_backup_options, cluster_bytes, speed_bytes_per_sec);
NEXT(blkrepl_backup_options, speed_bytes_per_sec, chunk_bytes_max);
NEXT(blkrepl_backup_options, chunk_bytes_max, reserve_bytes);
NEXT(blkrepl_backup_options, reserve_bytes, cbw_timeout_ns);
NEXT(blkrepl_backup_options, cbw_timeout_ns, workers_max);
NEXT(blkrepl_backup_options, workers_max, sync);
NEXT(blkrepl_backup_options, sync, on_cbw_error);
NEXT(blkrepl_backup_options, on_cbw_error, reserved0);
NEXT(blkrepl_backup_options, reserved0, on_source_error);
NEXT(blkrepl_backup_options, on_source_error, on_target_error);
NEXT(blkrepl_backup_options, on_target_error, job_flags);
NEXT(blkrepl_backup_options, job_flags, bitmap_mode);
NEXT(blkrepl_backup_options, bitmap_mode, bitmap);
NEXT(blkrepl_backup_options, bitmap, spill);
NEXT(blkrepl_backup_options, spill, spill_bytes_max);
NEXT(blkrepl_backup_options, spill_bytes_max, speed_burst_bytes);
NEXT(blkrepl_backup_options, speed_burst_bytes, throttle);
LAST(blkrepl_backup_options, throttle, 152);

FIRST(blkrepl_job_info, struct_size);
NEXT(blkrepl_job_info, struct_size, kind);
NEXT(blkrepl_job_info, kind, state);
NEXT(blkrepl_job_info, state, result);
NEXT(blkrepl_job_info, result, flags);
NEXT(blkrepl_job_info, flags, error);
NEXT(blkrepl_job_info, error, error_side);
NEXT(blkrepl_job_info, error_side, requests_in_flight);
NEXT(blkrepl_job_info, requests_in_flight, id);
NEXT(blkrepl_job_info, id, error_offset);
NEXT(blkrepl_job_info, error_offset, error_bytes);
NEXT(blkrepl_job_info, error_bytes, error_count);
NEXT(blkrepl_job_info, error_count, bytes_done);
NEXT(blkrepl_job_info, bytes_done, bytes_total);
NEXT(blkrepl_job_info, bytes_total, speed_bytes_per_sec);
NEXT(blkrepl_job_info, speed_bytes_per_sec, guest_copies_count);
NEXT(blkrepl_job_info, guest_copies_count, guest_copies_bytes);
NEXT(blkrepl_job_info, guest_copies_bytes, guest_waits_count);
NEXT(blkrepl_job_info, guest_waits_count, zero_bytes);
NEXT(blkrepl_job_info, zero_bytes, user);
NEXT(blkrepl_job_info, user, reserved0);
NEXT(blkrepl_job_info, reserved0, name);
NEXT(blkrepl_job_info, name, message);
NEXT(blkrepl_job_info, message, offloaded_bytes);
NEXT(blkrepl_job_info, offloaded_bytes, source_errors);
NEXT(blkrepl_job_info, source_errors, target_errors);
NEXT(blkrepl_job_info, target_errors, spill_errors);
NEXT(blkrepl_job_info, spill_errors, failed_bytes);
NEXT(blkrepl_job_info, failed_bytes, spilled_bytes);
NEXT(blkrepl_job_info, spilled_bytes, spilled_bytes_total);
NEXT(blkrepl_job_info, spilled_bytes_total, differing_bytes);
NEXT(blkrepl_job_info, differing_bytes, group_id);
LAST(blkrepl_job_info, group_id, 528);

FIRST(blkrepl_bitmap_options, struct_size);
NEXT(blkrepl_bitmap_options, struct_size, flags);
NEXT(blkrepl_bitmap_options, flags, bytes);
NEXT(blkrepl_bitmap_options, bytes, granularity_bytes);
NEXT(blkrepl_bitmap_options, granularity_bytes, name);
NEXT(blkrepl_bitmap_options, name, user);
LAST(blkrepl_bitmap_options, user, 40);

FIRST(blkrepl_bitmap_info, struct_size);
NEXT(blkrepl_bitmap_info, struct_size, flags);
NEXT(blkrepl_bitmap_info, flags, id);
NEXT(blkrepl_bitmap_info, id, image_id);
NEXT(blkrepl_bitmap_info, image_id, bytes);
NEXT(blkrepl_bitmap_info, bytes, granularity_bytes);
NEXT(blkrepl_bitmap_info, granularity_bytes, dirty_granules);
NEXT(blkrepl_bitmap_info, dirty_granules, dirty_bytes);
NEXT(blkrepl_bitmap_info, dirty_bytes, since_bytes);
NEXT(blkrepl_bitmap_info, since_bytes, user);
NEXT(blkrepl_bitmap_info, user, name);
LAST(blkrepl_bitmap_info, name, 1096);

FIRST(blkrepl_area, offset);
NEXT(blkrepl_area, offset, bytes);
LAST(blkrepl_area, bytes, 16);

FIRST(blkrepl_bitmap_action, struct_size);
NEXT(blkrepl_bitmap_action, struct_size, type);
NEXT(blkrepl_bitmap_action, type, bitmap);
NEXT(blkrepl_bitmap_action, bitmap, image);
NEXT(blkrepl_bitmap_action, image, options);
NEXT(blkrepl_bitmap_action, options, sources);
NEXT(blkrepl_bitmap_action, sources, out);
NEXT(blkrepl_bitmap_action, out, source_count);
NEXT(blkrepl_bitmap_action, source_count, reserved0);
LAST(blkrepl_bitmap_action, reserved0, 56);

FIRST(blkrepl_throttle_options, struct_size);
NEXT(blkrepl_throttle_options, struct_size, flags);
NEXT(blkrepl_throttle_options, flags, bytes_per_sec);
NEXT(blkrepl_throttle_options, bytes_per_sec, ops_per_sec);
NEXT(blkrepl_throttle_options, ops_per_sec, burst_bytes);
NEXT(blkrepl_throttle_options, burst_bytes, burst_ops);
LAST(blkrepl_throttle_options, burst_ops, 40);

FIRST(blkrepl_throttle_info, struct_size);
NEXT(blkrepl_throttle_info, struct_size, waiting);
NEXT(blkrepl_throttle_info, waiting, id);
NEXT(blkrepl_throttle_info, id, bytes);
NEXT(blkrepl_throttle_info, bytes, ops);
NEXT(blkrepl_throttle_info, ops, delayed_ops);
NEXT(blkrepl_throttle_info, delayed_ops, bytes_per_sec);
NEXT(blkrepl_throttle_info, bytes_per_sec, ops_per_sec);
NEXT(blkrepl_throttle_info, ops_per_sec, burst_bytes);
NEXT(blkrepl_throttle_info, burst_bytes, burst_ops);
LAST(blkrepl_throttle_info, burst_ops, 72);

FIRST(blkrepl_snapshot_options, struct_size);
NEXT(blkrepl_snapshot_options, struct_size, queue_depth);
NEXT(blkrepl_snapshot_options, queue_depth, name);
NEXT(blkrepl_snapshot_options, name, user);
NEXT(blkrepl_snapshot_options, user, release);
NEXT(blkrepl_snapshot_options, release, reserved0);
LAST(blkrepl_snapshot_options, reserved0, 40);

FIRST(blkrepl_verify_options, struct_size);
NEXT(blkrepl_verify_options, struct_size, flags);
NEXT(blkrepl_verify_options, flags, name);
NEXT(blkrepl_verify_options, name, user);
NEXT(blkrepl_verify_options, user, release);
NEXT(blkrepl_verify_options, release, only);
NEXT(blkrepl_verify_options, only, differing);
NEXT(blkrepl_verify_options, differing, throttle);
NEXT(blkrepl_verify_options, throttle, speed_bytes_per_sec);
NEXT(blkrepl_verify_options, speed_bytes_per_sec, chunk_bytes_max);
NEXT(blkrepl_verify_options, chunk_bytes_max, workers_max);
NEXT(blkrepl_verify_options, workers_max, on_error);
NEXT(blkrepl_verify_options, on_error, job_flags);
NEXT(blkrepl_verify_options, job_flags, reserved0);
NEXT(blkrepl_verify_options, reserved0, guest_timeout_ns);
LAST(blkrepl_verify_options, guest_timeout_ns, 96);

/* These never change, whatever is appended later. */
SAME(BLKREPL_CONTEXT_OPTIONS_V1_BYTES, 96);
SAME(BLKREPL_ALLOCATOR_V1_BYTES, 72);
SAME(BLKREPL_HOOKS_V1_BYTES, 40);
SAME(BLKREPL_BACKEND_OPS_V1_BYTES, 40);
SAME(BLKREPL_IMAGE_OPTIONS_V1_BYTES, 40);
SAME(BLKREPL_FILE_OPTIONS_V1_BYTES, 24);
SAME(BLKREPL_BRACKET_V1_BYTES, 32);
SAME(BLKREPL_BITMAP_OPTIONS_V1_BYTES, 40);
SAME(BLKREPL_BITMAP_ACTION_V1_BYTES, 56);
SAME(BLKREPL_BACKUP_OPTIONS_V1_BYTES, 96);
SAME(BLKREPL_SNAPSHOT_OPTIONS_V1_BYTES, 40);
SAME(BLKREPL_THROTTLE_OPTIONS_V1_BYTES, 40);
SAME(BLKREPL_VERIFY_OPTIONS_V1_BYTES, 88);
SAME(BLKREPL_IMAGE_INFO_V1_BYTES, 120);
SAME(BLKREPL_BITMAP_INFO_V1_BYTES, 1096);
SAME(BLKREPL_JOB_INFO_V1_BYTES, 456);
SAME(BLKREPL_THROTTLE_INFO_V1_BYTES, 72);
SAME(BLKREPL_BACKEND_INFO_V1_BYTES, 56);

#endif
