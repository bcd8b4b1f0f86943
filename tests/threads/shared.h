/* SPDX-License-Identifier: MIT */
/* shared.h - what a run and its replay do alike. */
#ifndef BLKREPL_THREADS_SHARED_H
#define BLKREPL_THREADS_SHARED_H

#include "threads.h"

/* context_free polls all lanes. */
#define LANE_ANY (UINT32_MAX - 1)

void backup_draw(const struct plan *plan, uint32_t number, blkrepl_backup_options *options,
                 uint32_t *source, uint32_t *target);
uint32_t iov_cut(uint8_t *buffer, uint64_t bytes, uint32_t count, blkrepl_iovec *iov);
/* Make the call for a request that is no bracket. */
int request_call(blkrepl_image *image, struct op *op, const blkrepl_completion *done);

/* What of a request is no range, in one number for the log, and back. */
uint64_t op_pack(const struct op *op);
void op_unpack(struct op *op, uint64_t packed);

#endif
