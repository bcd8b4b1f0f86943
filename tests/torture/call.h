/* SPDX-License-Identifier: MIT */
/* call.h - what the files share that call the library: what each function may
 * answer, and the checks around each call. */
#ifndef TESTS_TORTURE_CALL_H
#define TESTS_TORTURE_CALL_H

#include "api.h"

enum api_function {
    BACKUP_CREATE,
    BACKUP_START,
    BITMAP_ABDICATE,
    BITMAP_ADD,
    BITMAP_CLEAR,
    BITMAP_CREATE,
    BITMAP_DISABLE,
    BITMAP_ENABLE,
    BITMAP_FIND,
    BITMAP_FREE,
    BITMAP_FREEZE,
    BITMAP_GET,
    BITMAP_INTERSECT,
    BITMAP_INVERT,
    BITMAP_ITERATE,
    BITMAP_LOAD,
    BITMAP_LOAD_BEGIN,
    BITMAP_LOAD_FINISH,
    BITMAP_LOAD_ONES,
    BITMAP_LOAD_ZEROES,
    BITMAP_MERGE,
    BITMAP_NEXT,
    BITMAP_NEXT_AREA,
    BITMAP_NEXT_CLEAN,
    BITMAP_NEXT_DIRTY,
    BITMAP_PART_ALIGNMENT,
    BITMAP_QUERY,
    BITMAP_RECLAIM,
    BITMAP_REMOVE,
    BITMAP_RESET,
    BITMAP_RESIZE,
    BITMAP_SAVE,
    BITMAP_SET,
    BITMAP_SHA256,
    BITMAP_STATUS,
    BITMAP_SUBTRACT,
    BITMAP_TRANSACT,
    BITMAP_VALIDATE,
    CONTEXT_CREATE,
    CONTEXT_FREE,
    CONTEXT_NOW,
    ERROR_MESSAGE,
    ERROR_TEXT,
    GROUP_ADD,
    GROUP_CANCEL,
    GROUP_CREATE,
    GROUP_FREE,
    GROUP_START,
    IMAGE_CLOSE,
    IMAGE_DISCARD,
    IMAGE_DISCARD_WAIT,
    IMAGE_FLUSH,
    IMAGE_FLUSH_WAIT,
    IMAGE_OPEN,
    IMAGE_OPEN_FILE,
    IMAGE_OPEN_MEMORY,
    IMAGE_QUERY,
    IMAGE_READ,
    IMAGE_READ_WAIT,
    IMAGE_SET_THROTTLE,
    IMAGE_STATUS,
    IMAGE_STATUS_WAIT,
    IMAGE_WRITE,
    IMAGE_WRITE_WAIT,
    IMAGE_WRITE_ZEROES,
    IMAGE_WRITE_ZEROES_WAIT,
    IO_COMPLETE,
    JOB_CANCEL,
    JOB_COMPLETE,
    JOB_DISMISS,
    JOB_FINALIZE,
    JOB_FIND,
    JOB_FREE,
    JOB_NEXT,
    JOB_PAUSE,
    JOB_QUERY,
    JOB_RESUME,
    JOB_SET_SPEED,
    JOB_START,
    POLL,
    POLL_ARM,
    POLL_FD,
    POLL_WAKE,
    SNAPSHOT_OPEN,
    THROTTLE_CREATE,
    THROTTLE_FREE,
    THROTTLE_QUERY,
    THROTTLE_SET,
    VERIFY_CREATE,
    VERIFY_START,
    VERSION,
    WRITE_BEGIN,
    WRITE_BEGIN_WAIT,
    WRITE_CANCEL,
    WRITE_END,
    FUNCTION_COUNT
};

/* A call under way. */
struct call {
    enum api_function function;
    uint64_t number;
    uint64_t allocations;
    uint64_t fired;
    int must;
    int may;
};

struct call call_begin(enum api_function function);
/* The call has answered `rc`, which is returned. */
int call_end(const struct call *call, int rc);
/* The same; more than 0 is no answer of it. */
int call_end_zero(const struct call *call, int rc);
/* The same of a blocking call: the backend's code comes without a message. */
int call_end_wait(const struct call *call, int rc);

#endif
