/* SPDX-License-Identifier: MIT */
/* abi.h - the sizes that border structs had in their first release.
 *
 * For blkrepl__struct_in() and blkrepl__struct_out().  A struct only grows at
 * its end, so the size is told by its last member of that release; lines are
 * never edited once they were released. */
#ifndef BLKREPL_BASE_ABI_H
#define BLKREPL_BASE_ABI_H

#include <libblkrepl/libblkrepl.h>

#define ABI_BYTES_TO(type, last) (offsetof(type, last) + sizeof(((type *)0)->last))

/* Structs that come in. */
#define BLKREPL_CONTEXT_OPTIONS_V1_BYTES ABI_BYTES_TO(blkrepl_context_options, reserved1)
#define BLKREPL_ALLOCATOR_V1_BYTES ABI_BYTES_TO(blkrepl_allocator, reserved0)
#define BLKREPL_HOOKS_V1_BYTES ABI_BYTES_TO(blkrepl_hooks, log)
#define BLKREPL_BACKEND_OPS_V1_BYTES ABI_BYTES_TO(blkrepl_backend_ops, close)
#define BLKREPL_IMAGE_OPTIONS_V1_BYTES ABI_BYTES_TO(blkrepl_image_options, reserved0)
#define BLKREPL_FILE_OPTIONS_V1_BYTES ABI_BYTES_TO(blkrepl_file_options, queue_depth)
#define BLKREPL_BRACKET_V1_BYTES ABI_BYTES_TO(blkrepl_bracket, flags)
#define BLKREPL_BITMAP_OPTIONS_V1_BYTES ABI_BYTES_TO(blkrepl_bitmap_options, user)
#define BLKREPL_BITMAP_ACTION_V1_BYTES ABI_BYTES_TO(blkrepl_bitmap_action, reserved0)
#define BLKREPL_BACKUP_OPTIONS_V1_BYTES ABI_BYTES_TO(blkrepl_backup_options, reserved0)
#define BLKREPL_SNAPSHOT_OPTIONS_V1_BYTES ABI_BYTES_TO(blkrepl_snapshot_options, reserved0)
#define BLKREPL_THROTTLE_OPTIONS_V1_BYTES ABI_BYTES_TO(blkrepl_throttle_options, burst_ops)
#define BLKREPL_VERIFY_OPTIONS_V1_BYTES ABI_BYTES_TO(blkrepl_verify_options, reserved0)

/* Structs that go out, and the one that a backend fills for us. */
#define BLKREPL_IMAGE_INFO_V1_BYTES ABI_BYTES_TO(blkrepl_image_info, name)
#define BLKREPL_BITMAP_INFO_V1_BYTES ABI_BYTES_TO(blkrepl_bitmap_info, name)
#define BLKREPL_JOB_INFO_V1_BYTES ABI_BYTES_TO(blkrepl_job_info, message)
#define BLKREPL_THROTTLE_INFO_V1_BYTES ABI_BYTES_TO(blkrepl_throttle_info, burst_ops)
#define BLKREPL_BACKEND_INFO_V1_BYTES ABI_BYTES_TO(blkrepl_backend_info, cluster_bytes)

#endif
