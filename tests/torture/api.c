/* SPDX-License-Identifier: MIT */
/* api.c - calling the library and looking at its answers. */
#include "api.h"

enum api_function {
    BACKUP_CREATE,
    BACKUP_START,
    CONTEXT_CREATE,
    CONTEXT_FREE,
    CONTEXT_NOW,
    ERROR_MESSAGE,
    ERROR_TEXT,
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
    IMAGE_STATUS,
    IMAGE_STATUS_WAIT,
    IMAGE_WRITE,
    IMAGE_WRITE_WAIT,
    IMAGE_WRITE_ZEROES,
    IMAGE_WRITE_ZEROES_WAIT,
    IO_COMPLETE,
    JOB_CANCEL,
    JOB_FREE,
    JOB_PAUSE,
    JOB_QUERY,
    JOB_RESUME,
    JOB_SET_SPEED,
    JOB_START,
    POLL,
    POLL_ARM,
    POLL_FD,
    POLL_WAKE,
    VERSION,
    WRITE_BEGIN,
    WRITE_BEGIN_WAIT,
    WRITE_CANCEL,
    WRITE_END,
    FUNCTION_COUNT
};

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
        -EINVAL, -ENOSPC, -EROFS, -EBUSY, -EEXIST, -EFBIG, -ENOMEM, -ENOTSUP, -ESHUTDOWN, NEWER    \
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

/* A call under way. */
struct call {
    enum api_function function;
    uint64_t number;
    uint64_t allocations;
    uint64_t fired;
    int must;
    int may;
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
    static const char *const words[] = {"context",     "image",     "backend",      "backup",
                                        "job",         "io",        "poll",         "lane",
                                        "write_begin", "write_end", "write_cancel", "wait"};
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

static struct call call_begin(enum api_function function)
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

static int call_end(const struct call *c, int rc)
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

static int call_end_zero(const struct call *c, int rc)
{
    REQUIRE(rc <= 0, "%s: answers %d", table[c->function].name, rc);
    return call_end(c, rc);
}

/* ---- The functions ----------------------------------------------------------------------- */

int api_context_create(const blkrepl_context_options *options, blkrepl_context **out)
{
    struct call c = call_begin(CONTEXT_CREATE);
    int rc = call_end_zero(&c, blkrepl_context_create(options, out));

    REQUIRE(!out || (rc == 0) == (*out != NULL), "%s: %d and *out %p", table[c.function].name, rc,
            (void *)*out);
    return rc;
}

int api_context_free(blkrepl_context *ctx)
{
    struct call c = call_begin(CONTEXT_FREE);

    return call_end_zero(&c, blkrepl_context_free(ctx));
}

uint64_t api_context_now(blkrepl_context *ctx)
{
    struct call c = call_begin(CONTEXT_NOW);
    uint64_t now = blkrepl_context_now(ctx);

    call_end(&c, 0);
    REQUIRE((ctx != NULL) == (now != 0), "%s: %llu", table[c.function].name,
            (unsigned long long)now);
    return now;
}

int api_poll(blkrepl_context *ctx, uint32_t lane, uint64_t timeout_ns)
{
    struct call c = call_begin(POLL);

    return call_end(&c, blkrepl_poll(ctx, lane, timeout_ns));
}

int api_poll_arm(blkrepl_context *ctx, uint32_t lane, uint64_t *deadline_ns)
{
    struct call c = call_begin(POLL_ARM);
    int rc = call_end(&c, blkrepl_poll_arm(ctx, lane, deadline_ns));

    REQUIRE(rc <= 1, "%s: answers %d", table[c.function].name, rc);
    return rc;
}

int api_poll_fd(blkrepl_context *ctx, uint32_t lane)
{
    struct call c = call_begin(POLL_FD);

    return call_end(&c, blkrepl_poll_fd(ctx, lane));
}

int api_poll_wake(blkrepl_context *ctx, uint32_t lane)
{
    struct call c = call_begin(POLL_WAKE);

    return call_end_zero(&c, blkrepl_poll_wake(ctx, lane));
}

const char *api_error_text(int code)
{
    struct call c = call_begin(ERROR_TEXT);
    const char *text = blkrepl_error_text(code);

    call_end(&c, 0);
    REQUIRE(text && *text, "%s: no text for %d", table[c.function].name, code);
    return text;
}

const char *api_error_message(void)
{
    torture_cover(ERROR_MESSAGE);
    return blkrepl_error_message();
}

const char *api_version(void)
{
    struct call c = call_begin(VERSION);
    const char *text = blkrepl_version();

    call_end(&c, 0);
    REQUIRE(text && *text, "%s: nothing", table[c.function].name);
    return text;
}

int api_io_complete(blkrepl_context *ctx, uint64_t id, int result)
{
    struct call c = call_begin(IO_COMPLETE);

    return call_end_zero(&c, blkrepl_io_complete(ctx, id, result));
}

static int opened(const struct call *c, int rc, blkrepl_image *const *out)
{
    rc = call_end_zero(c, rc);
    REQUIRE(!out || (rc == 0) == (*out != NULL), "%s: %d and *out %p", table[c->function].name, rc,
            (void *)*out);
    return rc;
}

int api_image_open(blkrepl_context *ctx, const blkrepl_backend_ops *ops, void *backend_user,
                   const blkrepl_image_options *options, blkrepl_image **out)
{
    struct call c = call_begin(IMAGE_OPEN);

    return opened(&c, blkrepl_image_open(ctx, ops, backend_user, options, out), out);
}

int api_image_open_file(blkrepl_context *ctx, const char *path,
                        const blkrepl_file_options *file_options,
                        const blkrepl_image_options *options, blkrepl_image **out)
{
    struct call c = call_begin(IMAGE_OPEN_FILE);

    sys_opening(true);
    int rc = blkrepl_image_open_file(ctx, path, file_options, options, out);
    sys_opening(false);
    return opened(&c, rc, out);
}

int api_image_open_memory(blkrepl_context *ctx, uint64_t bytes,
                          const blkrepl_image_options *options, blkrepl_image **out)
{
    struct call c = call_begin(IMAGE_OPEN_MEMORY);

    return opened(&c, blkrepl_image_open_memory(ctx, bytes, options, out), out);
}

void api_image_close(blkrepl_image *image)
{
    struct call c = call_begin(IMAGE_CLOSE);

    blkrepl_image_close(image);
    call_end(&c, 0);
}

int api_image_query(blkrepl_image *image, blkrepl_image_info *info)
{
    struct call c = call_begin(IMAGE_QUERY);

    return call_end_zero(&c, blkrepl_image_query(image, info));
}

int api_image_read(blkrepl_image *image, uint32_t lane, uint64_t offset, const blkrepl_iovec *iov,
                   uint32_t iov_count, uint32_t flags, const blkrepl_completion *done)
{
    struct call c = call_begin(IMAGE_READ);

    return call_end_zero(&c, blkrepl_image_read(image, lane, offset, iov, iov_count, flags, done));
}

int api_image_write(blkrepl_image *image, uint32_t lane, uint64_t offset, const blkrepl_iovec *iov,
                    uint32_t iov_count, uint32_t flags, const blkrepl_completion *done)
{
    struct call c = call_begin(IMAGE_WRITE);

    return call_end_zero(&c, blkrepl_image_write(image, lane, offset, iov, iov_count, flags, done));
}

int api_image_write_zeroes(blkrepl_image *image, uint32_t lane, uint64_t offset, uint64_t bytes,
                           uint32_t flags, const blkrepl_completion *done)
{
    struct call c = call_begin(IMAGE_WRITE_ZEROES);

    return call_end_zero(&c, blkrepl_image_write_zeroes(image, lane, offset, bytes, flags, done));
}

int api_image_discard(blkrepl_image *image, uint32_t lane, uint64_t offset, uint64_t bytes,
                      uint32_t flags, const blkrepl_completion *done)
{
    struct call c = call_begin(IMAGE_DISCARD);

    return call_end_zero(&c, blkrepl_image_discard(image, lane, offset, bytes, flags, done));
}

int api_image_flush(blkrepl_image *image, uint32_t lane, const blkrepl_completion *done)
{
    struct call c = call_begin(IMAGE_FLUSH);

    return call_end_zero(&c, blkrepl_image_flush(image, lane, done));
}

int api_image_status(blkrepl_image *image, uint32_t lane, uint64_t offset, uint64_t bytes,
                     blkrepl_extent *extents, uint32_t extents_max, const blkrepl_completion *done)
{
    struct call c = call_begin(IMAGE_STATUS);

    return call_end_zero(
        &c, blkrepl_image_status(image, lane, offset, bytes, extents, extents_max, done));
}

int api_write_begin(blkrepl_image *image, const blkrepl_bracket *what, const blkrepl_completion *go,
                    uint64_t *token)
{
    struct call c = call_begin(WRITE_BEGIN);
    int rc = call_end(&c, blkrepl_write_begin(image, what, go, token));

    REQUIRE(rc <= BLKREPL_WAIT, "%s: answers %d", table[c.function].name, rc);
    REQUIRE(!token || (rc < 0) == (*token == 0), "%s: %d and token %llu", table[c.function].name,
            rc, (unsigned long long)*token);
    return rc;
}

int api_write_end(blkrepl_context *ctx, uint64_t token, int result, const blkrepl_iovec *data,
                  uint32_t iov_count, const blkrepl_completion *done)
{
    struct call c = call_begin(WRITE_END);
    int rc = call_end(&c, blkrepl_write_end(ctx, token, result, data, iov_count, done));

    REQUIRE(rc <= BLKREPL_WAIT, "%s: answers %d", table[c.function].name, rc);
    return rc;
}

int api_write_cancel(blkrepl_context *ctx, uint64_t token)
{
    struct call c = call_begin(WRITE_CANCEL);
    int rc = call_end(&c, blkrepl_write_cancel(ctx, token));

    REQUIRE(rc <= BLKREPL_WAIT, "%s: answers %d", table[c.function].name, rc);
    return rc;
}

/* The backend's code comes back without a message. */
static int call_end_wait(const struct call *c, int rc)
{
    const struct api_entry *entry = &table[c->function];

    if (rc < 0 && fault_plan()->domain == FAULT_DISK && call_caused(c, rc)) {
        injected = true;
        return rc;
    }
    REQUIRE(rc <= 0, "%s: answers %d", entry->name, rc);
    return call_end(c, rc);
}

int api_image_read_wait(blkrepl_image *image, uint32_t lane, uint64_t offset,
                        const blkrepl_iovec *iov, uint32_t iov_count, uint32_t flags)
{
    struct call c = call_begin(IMAGE_READ_WAIT);

    return call_end_wait(&c, blkrepl_image_read_wait(image, lane, offset, iov, iov_count, flags));
}

int api_image_write_wait(blkrepl_image *image, uint32_t lane, uint64_t offset,
                         const blkrepl_iovec *iov, uint32_t iov_count, uint32_t flags)
{
    struct call c = call_begin(IMAGE_WRITE_WAIT);

    return call_end_wait(&c, blkrepl_image_write_wait(image, lane, offset, iov, iov_count, flags));
}

int api_image_write_zeroes_wait(blkrepl_image *image, uint32_t lane, uint64_t offset,
                                uint64_t bytes, uint32_t flags)
{
    struct call c = call_begin(IMAGE_WRITE_ZEROES_WAIT);

    return call_end_wait(&c, blkrepl_image_write_zeroes_wait(image, lane, offset, bytes, flags));
}

int api_image_discard_wait(blkrepl_image *image, uint32_t lane, uint64_t offset, uint64_t bytes,
                           uint32_t flags)
{
    struct call c = call_begin(IMAGE_DISCARD_WAIT);

    return call_end_wait(&c, blkrepl_image_discard_wait(image, lane, offset, bytes, flags));
}

int api_image_flush_wait(blkrepl_image *image, uint32_t lane)
{
    struct call c = call_begin(IMAGE_FLUSH_WAIT);

    return call_end_wait(&c, blkrepl_image_flush_wait(image, lane));
}

int api_image_status_wait(blkrepl_image *image, uint32_t lane, uint64_t offset, uint64_t bytes,
                          blkrepl_extent *extents, uint32_t extents_max)
{
    struct call c = call_begin(IMAGE_STATUS_WAIT);

    return call_end_wait(
        &c, blkrepl_image_status_wait(image, lane, offset, bytes, extents, extents_max));
}

int api_write_begin_wait(blkrepl_image *image, const blkrepl_bracket *what, uint64_t *token)
{
    struct call c = call_begin(WRITE_BEGIN_WAIT);
    int rc = call_end_wait(&c, blkrepl_write_begin_wait(image, what, token));

    REQUIRE(!token || (rc == 0) == (*token != 0), "%s: %d with token %llu", table[c.function].name,
            rc, (unsigned long long)(token ? *token : 0));
    return rc;
}

int api_backup_create(blkrepl_image *source, blkrepl_image *target,
                      const blkrepl_backup_options *options, blkrepl_job **out)
{
    struct call c = call_begin(BACKUP_CREATE);
    int rc = call_end_zero(&c, blkrepl_backup_create(source, target, options, out));

    REQUIRE(!out || (rc == 0) == (*out != NULL), "%s: %d and *out %p", table[c.function].name, rc,
            (void *)*out);
    return rc;
}

int api_backup_start(blkrepl_image *source, blkrepl_image *target,
                     const blkrepl_backup_options *options, blkrepl_job **out)
{
    struct call c = call_begin(BACKUP_START);
    int rc = call_end_zero(&c, blkrepl_backup_start(source, target, options, out));

    REQUIRE(!out || (rc == 0) == (*out != NULL), "%s: %d and *out %p", table[c.function].name, rc,
            (void *)*out);
    return rc;
}

int api_job_start(blkrepl_job *job)
{
    struct call c = call_begin(JOB_START);

    return call_end_zero(&c, blkrepl_job_start(job));
}

int api_job_pause(blkrepl_job *job)
{
    struct call c = call_begin(JOB_PAUSE);

    return call_end_zero(&c, blkrepl_job_pause(job));
}

int api_job_resume(blkrepl_job *job)
{
    struct call c = call_begin(JOB_RESUME);

    return call_end_zero(&c, blkrepl_job_resume(job));
}

int api_job_cancel(blkrepl_job *job, uint32_t flags)
{
    struct call c = call_begin(JOB_CANCEL);

    return call_end_zero(&c, blkrepl_job_cancel(job, flags));
}

int api_job_set_speed(blkrepl_job *job, uint64_t speed_bytes_per_sec)
{
    struct call c = call_begin(JOB_SET_SPEED);

    return call_end_zero(&c, blkrepl_job_set_speed(job, speed_bytes_per_sec));
}

int api_job_query(blkrepl_job *job, blkrepl_job_info *info)
{
    struct call c = call_begin(JOB_QUERY);

    return call_end_zero(&c, blkrepl_job_query(job, info));
}

void api_job_free(blkrepl_job *job)
{
    struct call c = call_begin(JOB_FREE);

    blkrepl_job_free(job);
    call_end(&c, 0);
}
