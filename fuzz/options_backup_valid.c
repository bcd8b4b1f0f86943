/* SPDX-License-Identifier: MIT */
/* options_backup_valid.c - which options of a backup are right, whatever its images are. */
#include "options.h"

static bool cluster_valid(uint64_t bytes)
{
    return bytes == 0 ||
           ((bytes & (bytes - 1)) == 0 && bytes >= 4 * KIB && bytes <= 16 * KIB * KIB);
}

uint32_t backup_sync_of(const blkrepl_backup_options *o)
{
    return o->sync != 0 ? o->sync : BLKREPL_SYNC_FULL;
}

uint32_t backup_mode_of(const blkrepl_backup_options *o)
{
    return o->bitmap_mode == 0 && o->bitmap != NULL && o->sync == BLKREPL_SYNC_INCREMENTAL
               ? (uint32_t)BLKREPL_BITMAP_ON_SUCCESS
               : o->bitmap_mode;
}

/* What is to be copied, the bitmap, its mode and the spill image fit together. */
static bool use_valid(const blkrepl_backup_options *o)
{
    uint32_t sync = backup_sync_of(o);
    uint32_t mode = backup_mode_of(o);
    bool by_bitmap = sync == BLKREPL_SYNC_BITMAP || sync == BLKREPL_SYNC_INCREMENTAL;
    bool dirty_only = (o->flags & BLKREPL_BACKUP_DIRTY_ONLY) != 0;
    bool none = sync == BLKREPL_SYNC_NONE;

    if ((o->spill != NULL && none) || (o->spill == NULL && o->spill_bytes_max != 0) ||
        (dirty_only && !none)) {
        return false;
    }
    if (o->bitmap == NULL) {
        return !by_bitmap && !dirty_only && mode == 0;
    }
    return mode != 0 && !(sync == BLKREPL_SYNC_FULL && mode == BLKREPL_BITMAP_NEVER) &&
           !(sync == BLKREPL_SYNC_INCREMENTAL && mode != BLKREPL_BITMAP_ON_SUCCESS) &&
           !(none && mode == BLKREPL_BITMAP_ALWAYS);
}

bool backup_options_valid(const blkrepl_backup_options *o)
{
    uint32_t flags = BLKREPL_BACKUP_DETECT_ZEROES | BLKREPL_BACKUP_NO_OFFLOAD |
                     BLKREPL_BACKUP_COMPRESS | BLKREPL_BACKUP_DIRTY_ONLY;
    uint32_t job_flags = BLKREPL_JOB_MANUAL_FINALIZE | BLKREPL_JOB_MANUAL_DISMISS;

    return (o->flags & ~flags) == 0 && (o->job_flags & ~job_flags) == 0 && o->reserved0 == 0 &&
           o->reserved1 == NULL && o->sync <= BLKREPL_SYNC_NONE &&
           o->bitmap_mode <= BLKREPL_BITMAP_ALWAYS &&
           o->on_cbw_error <= BLKREPL_CBW_GUEST_WRITE_FAILS &&
           o->on_source_error <= BLKREPL_ON_ERROR_ENOSPC &&
           o->on_target_error <= BLKREPL_ON_ERROR_ENOSPC && cluster_valid(o->cluster_bytes) &&
           o->workers_max <= 1024 && o->chunk_bytes_max <= UINT64_C(1) << 30 &&
           o->reserve_bytes <= UINT64_C(1) << 40 && use_valid(o);
}
