/* SPDX-License-Identifier: MIT */
/* call.c - around a call: what it may answer, and what it has to leave. */
#include "call.h"

struct api_entry {
    const char *name;
    bool allocates;
    bool host; /* "get_info's code", "another errno of open(2)" */
    int codes[12];
    bool null_job; /* says the same as MARK */
};

#define STATE BLKREPL_ERR_STATE
#define NEWER BLKREPL_ERR_VERSION
#define BACKUP_CODES                                                                               \
    {                                                                                              \
        -EINVAL, -ENOSPC, -EROFS, -EBUSY, -EEXIST, -EFBIG, -ENOMEM, -ENOTSUP, -ESHUTDOWN, NEWER,   \
            STATE                                                                                  \
    }
#define VERIFY_CODES                                                                               \
    {                                                                                              \
        -EINVAL, -EBUSY, -EEXIST, -EFBIG, -ENOMEM, STATE, -ESHUTDOWN, NEWER                        \
    }
#define WRITE_CODES                                                                                \
    {                                                                                              \
        -EINVAL, -EAGAIN, -ESHUTDOWN, -EROFS, -EBUSY                                               \
    }

#define READ_CODES                                                                                 \
    {                                                                                              \
        -EINVAL, -EAGAIN, -ESHUTDOWN                                                               \
    }
#define READ_WAIT_CODES                                                                            \
    {                                                                                              \
        -EINVAL, -ESHUTDOWN, -EDEADLK, -ENOMEM                                                     \
    }
#define WRITE_WAIT_CODES                                                                           \
    {                                                                                              \
        -EINVAL, -ESHUTDOWN, -EDEADLK, -ENOMEM, -EROFS, -EBUSY                                     \
    }
#define VERB_CODES                                                                                 \
    {                                                                                              \
        STATE, -EINVAL, -ESHUTDOWN                                                                 \
    }

/* The fields `Returns:` of the headers. */
static const struct api_entry table[FUNCTION_COUNT] = {
    [BACKUP_CREATE] = {.name = "blkrepl_backup_create", .allocates = true, .codes = BACKUP_CODES},
    [BACKUP_START] = {.name = "blkrepl_backup_start", .allocates = true, .codes = BACKUP_CODES},
    [BITMAP_CREATE] = {.name = "blkrepl_bitmap_create",
                       .allocates = true,
                       .codes = {-EINVAL, -EFBIG, -ENOMEM, -ESHUTDOWN, NEWER}},
    [BITMAP_ADD] = {.name = "blkrepl_bitmap_add",
                    .allocates = true,
                    .codes = {-EINVAL, -EFBIG, -ENOMEM, -ESHUTDOWN, NEWER, -EEXIST}},
    [BITMAP_FIND] = {.name = "blkrepl_bitmap_find", .codes = {-ENOENT, -EINVAL}},
    [BITMAP_NEXT] = {.name = "blkrepl_bitmap_next", .codes = {-ENOENT, -EINVAL}},
    [BITMAP_FREE] = {.name = "blkrepl_bitmap_free"},
    [BITMAP_QUERY] = {.name = "blkrepl_bitmap_query", .codes = {-EINVAL}},
    [BITMAP_REMOVE] = {.name = "blkrepl_bitmap_remove", .codes = {-EBUSY, -EINVAL}},
    [BITMAP_ENABLE] = {.name = "blkrepl_bitmap_enable", .codes = {-EBUSY, STATE, -EINVAL}},
    [BITMAP_DISABLE] = {.name = "blkrepl_bitmap_disable", .codes = {-EBUSY, STATE, -EINVAL}},
    [BITMAP_CLEAR] = {.name = "blkrepl_bitmap_clear", .codes = {-EBUSY, STATE, -EINVAL}},
    [BITMAP_MERGE] = {.name = "blkrepl_bitmap_merge", .codes = {-EBUSY, STATE, -EINVAL}},
    [BITMAP_RESET] = {.name = "blkrepl_bitmap_reset", .codes = {-EBUSY, STATE, -EINVAL}},
    [BITMAP_INVERT] = {.name = "blkrepl_bitmap_invert", .codes = {-EBUSY, STATE, -EINVAL}},
    [BITMAP_INTERSECT] = {.name = "blkrepl_bitmap_intersect", .codes = {-EBUSY, STATE, -EINVAL}},
    [BITMAP_SUBTRACT] = {.name = "blkrepl_bitmap_subtract", .codes = {-EBUSY, STATE, -EINVAL}},
    [BITMAP_TRANSACT] = {.name = "blkrepl_bitmap_transact",
                         .allocates = true,
                         .codes = {-EINVAL, -ENOMEM, -ESHUTDOWN, NEWER, -EFBIG, -EEXIST, -EBUSY,
                                   STATE}},
    [BITMAP_FREEZE] = {.name = "blkrepl_bitmap_freeze",
                       .allocates = true,
                       .codes = {-EBUSY, STATE, -ENOMEM, -EINVAL}},
    [BITMAP_ABDICATE] = {.name = "blkrepl_bitmap_abdicate", .codes = {STATE, -EINVAL}},
    [BITMAP_RECLAIM] = {.name = "blkrepl_bitmap_reclaim", .codes = {STATE, -EINVAL}},
    [BITMAP_SET] = {.name = "blkrepl_bitmap_set", .codes = {STATE, -EINVAL}},
    [BITMAP_GET] = {.name = "blkrepl_bitmap_get", .codes = {STATE, -EINVAL}},
    [BITMAP_NEXT_DIRTY] = {.name = "blkrepl_bitmap_next_dirty", .codes = {STATE, -EINVAL}},
    [BITMAP_NEXT_CLEAN] = {.name = "blkrepl_bitmap_next_clean", .codes = {STATE, -EINVAL}},
    [BITMAP_NEXT_AREA] = {.name = "blkrepl_bitmap_next_area", .codes = {STATE, -EINVAL}},
    [BITMAP_STATUS] = {.name = "blkrepl_bitmap_status", .codes = {STATE, -EINVAL}},
    [BITMAP_ITERATE] = {.name = "blkrepl_bitmap_iterate", .codes = {STATE, -EINVAL}},
    [BITMAP_LOAD] = {.name = "blkrepl_bitmap_load", .codes = {STATE, -EINVAL}},
    [BITMAP_LOAD_ZEROES] = {.name = "blkrepl_bitmap_load_zeroes", .codes = {STATE, -EINVAL}},
    [BITMAP_LOAD_ONES] = {.name = "blkrepl_bitmap_load_ones", .codes = {STATE, -EINVAL}},
    [BITMAP_LOAD_FINISH] = {.name = "blkrepl_bitmap_load_finish", .codes = {STATE, -EINVAL}},
    [BITMAP_SHA256] = {.name = "blkrepl_bitmap_sha256", .codes = {STATE, -EINVAL}},
    [BITMAP_RESIZE] = {.name = "blkrepl_bitmap_resize",
                       .allocates = true,
                       .codes = {-EINVAL, -EFBIG, -ENOMEM, -EBUSY, STATE}},
    [BITMAP_PART_ALIGNMENT] = {.name = "blkrepl_bitmap_part_alignment"},
    [BITMAP_SAVE] = {.name = "blkrepl_bitmap_save", .codes = {-ENOSPC, -EINVAL, STATE}},
    [BITMAP_LOAD_BEGIN] = {.name = "blkrepl_bitmap_load_begin", .codes = {-EBUSY, -EINVAL}},
    [BITMAP_VALIDATE] = {.name = "blkrepl_bitmap_validate", .codes = {-EINVAL}},
    [CONTEXT_CREATE] = {.name = "blkrepl_context_create",
                        .allocates = true,
                        .host = true,
                        .codes = {-EINVAL, -ENOTSUP, -ENOMEM, -EMFILE, NEWER}},
    [CONTEXT_FREE] = {.name = "blkrepl_context_free", .codes = {-EBUSY}},
    [CONTEXT_NOW] = {.name = "blkrepl_context_now"},
    [ERROR_MESSAGE] = {.name = "blkrepl_error_message"},
    [ERROR_TEXT] = {.name = "blkrepl_error_text"},
    [IMAGE_CLOSE] = {.name = "blkrepl_image_close"},
    [IMAGE_DISCARD] = {.name = "blkrepl_image_discard", .codes = WRITE_CODES},
    [IMAGE_FLUSH] = {.name = "blkrepl_image_flush", .codes = READ_CODES},
    [IMAGE_OPEN] = {.name = "blkrepl_image_open",
                    .allocates = true,
                    .host = true,
                    .codes = {-EINVAL, -ENOMEM, -ESHUTDOWN, NEWER}},
    [IMAGE_OPEN_FILE] = {.name = "blkrepl_image_open_file",
                         .allocates = true,
                         .host = true,
                         .codes = {-EINVAL, -ENOTSUP, -ENOSPC, -EEXIST, -ENOENT, -EACCES, -ENOMEM,
                                   -ESHUTDOWN, NEWER}},
    [IMAGE_OPEN_MEMORY] = {.name = "blkrepl_image_open_memory",
                           .allocates = true,
                           .codes = {-EINVAL, -ENOMEM, -ESHUTDOWN, NEWER}},
    [IMAGE_QUERY] = {.name = "blkrepl_image_query", .codes = {-EINVAL}},
    [IMAGE_READ] = {.name = "blkrepl_image_read", .codes = READ_CODES},
    [IMAGE_STATUS] = {.name = "blkrepl_image_status", .codes = READ_CODES},
    [IMAGE_WRITE] = {.name = "blkrepl_image_write", .codes = WRITE_CODES},
    [IMAGE_WRITE_ZEROES] = {.name = "blkrepl_image_write_zeroes", .codes = WRITE_CODES},
    [IO_COMPLETE] = {.name = "blkrepl_io_complete", .codes = {-ENOENT, -EINVAL}},
    [JOB_CANCEL] = {.name = "blkrepl_job_cancel", .null_job = true, .codes = {STATE, -EINVAL}},
    [JOB_FREE] = {.name = "blkrepl_job_free"},
    [JOB_PAUSE] = {.name = "blkrepl_job_pause", .null_job = true, .codes = VERB_CODES},
    [JOB_QUERY] = {.name = "blkrepl_job_query", .codes = {-EINVAL}},
    [JOB_RESUME] = {.name = "blkrepl_job_resume", .null_job = true, .codes = VERB_CODES},
    [JOB_SET_SPEED] = {.name = "blkrepl_job_set_speed", .null_job = true, .codes = VERB_CODES},
    [JOB_START] = {.name = "blkrepl_job_start", .null_job = true, .codes = VERB_CODES},
    [JOB_COMPLETE] = {.name = "blkrepl_job_complete", .null_job = true, .codes = VERB_CODES},
    [JOB_FINALIZE] = {.name = "blkrepl_job_finalize", .null_job = true, .codes = VERB_CODES},
    [JOB_DISMISS] = {.name = "blkrepl_job_dismiss", .null_job = true, .codes = {STATE, -EINVAL}},
    [JOB_FIND] = {.name = "blkrepl_job_find", .codes = {-ENOENT, -EINVAL}},
    [JOB_NEXT] = {.name = "blkrepl_job_next", .codes = {-ENOENT, -EINVAL}},
    [GROUP_CREATE] = {.name = "blkrepl_group_create",
                      .allocates = true,
                      .codes = {-EINVAL, -ENOMEM, -ESHUTDOWN}},
    [GROUP_ADD] = {.name = "blkrepl_group_add", .codes = VERB_CODES},
    [GROUP_START] = {.name = "blkrepl_group_start", .codes = {STATE, -EINVAL, -ESHUTDOWN, -EBUSY}},
    [GROUP_CANCEL] = {.name = "blkrepl_group_cancel", .codes = {STATE, -EINVAL}},
    [GROUP_FREE] = {.name = "blkrepl_group_free"},
    [SNAPSHOT_OPEN] = {.name = "blkrepl_snapshot_open",
                       .allocates = true,
                       .codes = {-EINVAL, STATE, -ENOMEM, -ESHUTDOWN, NEWER}},
    [THROTTLE_CREATE] = {.name = "blkrepl_throttle_create",
                         .allocates = true,
                         .codes = {-EINVAL, -ENOMEM, -ESHUTDOWN, NEWER}},
    [THROTTLE_SET] = {.name = "blkrepl_throttle_set", .codes = {-EINVAL, NEWER}},
    [THROTTLE_QUERY] = {.name = "blkrepl_throttle_query", .codes = {-EINVAL}},
    [THROTTLE_FREE] = {.name = "blkrepl_throttle_free"},
    [IMAGE_SET_THROTTLE] = {.name = "blkrepl_image_set_throttle", .codes = {-EINVAL, -ESHUTDOWN}},
    [VERIFY_CREATE] = {.name = "blkrepl_verify_create", .allocates = true, .codes = VERIFY_CODES},
    [VERIFY_START] = {.name = "blkrepl_verify_start", .allocates = true, .codes = VERIFY_CODES},
    [POLL] = {.name = "blkrepl_poll", .codes = {-EBUSY, -EDEADLK, -EINVAL}},
    [POLL_ARM] = {.name = "blkrepl_poll_arm", .codes = {-EINVAL}},
    [POLL_FD] = {.name = "blkrepl_poll_fd", .codes = {-EINVAL}},
    [POLL_WAKE] = {.name = "blkrepl_poll_wake", .codes = {-EINVAL}},
    [VERSION] = {.name = "blkrepl_version"},
    [WRITE_BEGIN] = {.name = "blkrepl_write_begin",
                     .codes = {-EINVAL, -EROFS, -EBUSY, -EAGAIN, -ESHUTDOWN, NEWER}},
    [WRITE_CANCEL] = {.name = "blkrepl_write_cancel", .codes = {-ENOENT, -EINVAL}},
    [WRITE_END] = {.name = "blkrepl_write_end", .codes = {-ENOENT, -EINVAL}},
    [IMAGE_DISCARD_WAIT] = {.name = "blkrepl_image_discard_wait", .codes = WRITE_WAIT_CODES},
    [IMAGE_FLUSH_WAIT] = {.name = "blkrepl_image_flush_wait", .codes = READ_WAIT_CODES},
    [IMAGE_READ_WAIT] = {.name = "blkrepl_image_read_wait", .codes = READ_WAIT_CODES},
    [IMAGE_STATUS_WAIT] = {.name = "blkrepl_image_status_wait", .codes = READ_WAIT_CODES},
    [IMAGE_WRITE_WAIT] = {.name = "blkrepl_image_write_wait", .codes = WRITE_WAIT_CODES},
    [IMAGE_WRITE_ZEROES_WAIT] = {.name = "blkrepl_image_write_zeroes_wait",
                                 .codes = WRITE_WAIT_CODES},
    [WRITE_BEGIN_WAIT] = {.name = "blkrepl_write_begin_wait",
                          .codes = {-EINVAL, -EROFS, -EBUSY, -ESHUTDOWN, -EDEADLK, -ENOMEM,
                                    -ECANCELED, NEWER}},
};

static uint64_t call_number;
static bool memory_grows;
static int next_must, next_may;
static bool injected;

unsigned api_count(void)
{
    return FUNCTION_COUNT;
}

const char *api_name(unsigned function)
{
    return table[function].name;
}

void api_must(int code)
{
    next_must = code;
}

void api_may(int code)
{
    next_may = code;
}

void api_memory_grows(bool grows)
{
    memory_grows = grows;
}

bool api_injected(void)
{
    return injected;
}

/* ---- Messages ------------------------------------------------------------------------ */

/* What a known failure leaves; it takes no lock and needs no object. */
#define MARK "job is NULL"

static void message_mark(void)
{
    if (strcmp(blkrepl_error_message(), MARK) != 0) {
        blkrepl_job_start(NULL);
        REQUIRE(strcmp(blkrepl_error_message(), MARK) == 0,
                "blkrepl_job_start(NULL) says \"%s\", not \"%s\"", blkrepl_error_message(), MARK);
    }
}

/* The first word is the object's, in lower case; no full stop; one line. */
void api_check_text(const char *text, const char *where)
{
    static const char *const words[] = {
        "context",      "image", "backend", "backup",   "job",         "io",
        "poll",         "lane",  "bitmap",  "action",   "write_begin", "write_end",
        "write_cancel", "wait",  "group",   "snapshot", "verify",      "throttle"};
    size_t length = strlen(text), word = strcspn(text, " :");
    bool known = false;

    REQUIRE(length > 0 && length < 256, "%s: a message of %zu bytes", where, length);
    for (size_t i = 0; i < length; i++) {
        REQUIRE((unsigned char)text[i] >= ' ', "%s: not one line: \"%s\"", where, text);
    }
    REQUIRE(text[length - 1] != '.' && text[length - 1] != ' ' && text[length - 1] != ':',
            "%s: ends like a sentence: \"%s\"", where, text);
    for (size_t i = 0; i < ARRAY_COUNT(words); i++) {
        known = known || (strlen(words[i]) == word && strncmp(text, words[i], word) == 0);
    }
    REQUIRE(known && length > word, "%s: names no object: \"%s\"", where, text);
}

/* ---- Around a call --------------------------------------------------------------------- */

struct call call_begin(enum api_function function)
{
    struct call c = {.function = function,
                     .number = ++call_number,
                     .allocations = heap_calls(),
                     .fired = fault_fired(),
                     .must = next_must,
                     .may = next_may};

    next_must = 0;
    next_may = 0;
    torture_cover(function);
    message_mark();
    return c;
}

static bool call_documents(const struct api_entry *entry, int rc)
{
    bool found = entry->host && rc > -4096;

    for (size_t i = 0; i < ARRAY_COUNT(entry->codes); i++) {
        found = found || entry->codes[i] == rc;
    }
    return found;
}

/* Whether what was injected inside the call explains the answer. */
static bool call_caused(const struct call *c, int rc)
{
    if (fault_fired() == c->fired) {
        return false;
    }
    if (fault_plan()->domain == FAULT_ALLOC) {
        return rc == -ENOMEM;
    }
    return failure_claim(UINT32_MAX, ANY_OPCODE, 0, 0, rc);
}

static void call_failed(const struct call *c, int rc)
{
    const struct api_entry *entry = &table[c->function];

    REQUIRE(call_documents(entry, rc), "%s: %d (%s) is not documented; message \"%s\"", entry->name,
            rc, blkrepl_error_text(rc), blkrepl_error_message());
    injected = call_caused(c, rc);
    REQUIRE(injected || rc == c->must || rc == c->may, "%s: %d (%s) without a cause: \"%s\"",
            entry->name, rc, blkrepl_error_text(rc), blkrepl_error_message());
    api_check_text(blkrepl_error_message(), entry->name);
    REQUIRE((entry->null_job && c->must == -EINVAL) || strcmp(blkrepl_error_message(), MARK) != 0,
            "%s: %d without a message", entry->name, rc);
}

int call_end(const struct call *c, int rc)
{
    const struct api_entry *entry = &table[c->function];
    bool nested = call_number != c->number;

    REQUIRE(nested || memory_grows || entry->allocates || heap_calls() == c->allocations,
            "%s: has allocated", entry->name);
    if (rc < 0) {
        call_failed(c, rc);
        return rc;
    }
    injected = false;
    REQUIRE(c->must >= 0, "%s: %d, not %d (%s)", entry->name, rc, c->must,
            blkrepl_error_text(c->must));
    REQUIRE(nested || strcmp(blkrepl_error_message(), MARK) == 0,
            "%s: has not failed and says \"%s\"", entry->name, blkrepl_error_message());
    return rc;
}

int call_end_zero(const struct call *c, int rc)
{
    REQUIRE(rc <= 0, "%s: answers %d", table[c->function].name, rc);
    return call_end(c, rc);
}

int call_end_wait(const struct call *c, int rc)
{
    const struct api_entry *entry = &table[c->function];

    if (rc < 0 && fault_plan()->domain == FAULT_DISK && call_caused(c, rc)) {
        injected = true;
        return rc;
    }
    REQUIRE(rc <= 0, "%s: answers %d", entry->name, rc);
    return call_end(c, rc);
}
