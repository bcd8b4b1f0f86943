/* SPDX-License-Identifier: MIT */
/* api.c - calling the library and looking at its answers. */
#include "call.h"

int api_context_create(const blkrepl_context_options *options, blkrepl_context **out)
{
    struct call c = call_begin(CONTEXT_CREATE);
    int rc = call_end_zero(&c, blkrepl_context_create(options, out));

    REQUIRE(!out || (rc == 0) == (*out != NULL), "%s: %d and *out %p", api_name(c.function), rc,
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
    REQUIRE((ctx != NULL) == (now != 0), "%s: %llu", api_name(c.function), (unsigned long long)now);
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

    REQUIRE(rc <= 1, "%s: answers %d", api_name(c.function), rc);
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
    REQUIRE(text && *text, "%s: no text for %d", api_name(c.function), code);
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
    REQUIRE(text && *text, "%s: nothing", api_name(c.function));
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
    REQUIRE(!out || (rc == 0) == (*out != NULL), "%s: %d and *out %p", api_name(c->function), rc,
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

    REQUIRE(rc <= BLKREPL_WAIT, "%s: answers %d", api_name(c.function), rc);
    REQUIRE(!token || (rc < 0) == (*token == 0), "%s: %d and token %llu", api_name(c.function), rc,
            (unsigned long long)*token);
    return rc;
}

int api_write_end(blkrepl_context *ctx, uint64_t token, int result, const blkrepl_iovec *data,
                  uint32_t iov_count, const blkrepl_completion *done)
{
    struct call c = call_begin(WRITE_END);
    int rc = call_end(&c, blkrepl_write_end(ctx, token, result, data, iov_count, done));

    REQUIRE(rc <= BLKREPL_WAIT, "%s: answers %d", api_name(c.function), rc);
    return rc;
}

int api_write_cancel(blkrepl_context *ctx, uint64_t token)
{
    struct call c = call_begin(WRITE_CANCEL);
    int rc = call_end(&c, blkrepl_write_cancel(ctx, token));

    REQUIRE(rc <= BLKREPL_WAIT, "%s: answers %d", api_name(c.function), rc);
    return rc;
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

    REQUIRE(!token || (rc == 0) == (*token != 0), "%s: %d with token %llu", api_name(c.function),
            rc, (unsigned long long)(token ? *token : 0));
    return rc;
}

int api_backup_create(blkrepl_image *source, blkrepl_image *target,
                      const blkrepl_backup_options *options, blkrepl_job **out)
{
    struct call c = call_begin(BACKUP_CREATE);
    int rc = call_end_zero(&c, blkrepl_backup_create(source, target, options, out));

    REQUIRE(!out || (rc == 0) == (*out != NULL), "%s: %d and *out %p", api_name(c.function), rc,
            (void *)*out);
    return rc;
}

int api_backup_start(blkrepl_image *source, blkrepl_image *target,
                     const blkrepl_backup_options *options, blkrepl_job **out)
{
    struct call c = call_begin(BACKUP_START);
    int rc = call_end_zero(&c, blkrepl_backup_start(source, target, options, out));

    REQUIRE(!out || (rc == 0) == (*out != NULL), "%s: %d and *out %p", api_name(c.function), rc,
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
