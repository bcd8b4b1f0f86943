/* SPDX-License-Identifier: MIT */
/* uring-backend.c - a backup between two files that the host drives itself, by
 * io_uring, from one thread.
 *
 *     uring-backend [--direct] [--bundled] SOURCE TARGET
 *
 * uring.h has the backend.  Where the system has no io_uring (an old kernel, a
 * container that forbids it) that is said, and the library's own file backend
 * does it, as with --bundled.  --direct goes past the page cache.
 * Exit codes: 0 copied, 1 failed, 2 wrong usage. */
#ifdef __linux__
#define _GNU_SOURCE
#endif
#include "uring.h"

#include <inttypes.h>
#include <stdio.h>

struct host {
    blkrepl_context *ctx;
    struct uring *ring; /* NULL: the bundled backend */
    bool direct;
};

static int host_open(const struct host *host, const char *path, uint64_t bytes, blkrepl_image **out)
{
    blkrepl_file_options options = {.struct_size = sizeof options,
                                    .flags = (bytes > 0 ? BLKREPL_FILE_CREATE : 0u) |
                                             (host->direct ? BLKREPL_FILE_DIRECT : 0u),
                                    .bytes = bytes};
    int rc;

    if (host->ring == NULL) {
        rc = blkrepl_image_open_file(host->ctx, path, &options, NULL, out);
    } else {
        rc = uring_open(host->ring, path, bytes, host->direct, NULL, out);
    }
    if (rc < 0) {
        fprintf(stderr, "uring-backend: cannot open %s: %s\n", path, blkrepl_error_text(rc));
    }
    return rc;
}

static int copy(const struct host *host, blkrepl_image *source, blkrepl_image *target)
{
    blkrepl_job_info info = {.struct_size = sizeof info};
    blkrepl_job *job;
    int rc = blkrepl_backup_start(source, target, NULL, &job);

    if (rc < 0) {
        fprintf(stderr, "uring-backend: %s\n", blkrepl_error_message());
        return rc;
    }
    do {
        uring_poll(host->ctx, host->ring);
        blkrepl_job_query(job, &info);
    } while (info.state != BLKREPL_JOB_CONCLUDED);
    blkrepl_job_free(job);
    printf("%" PRIu64 " bytes copied by %s: %s\n", info.bytes_done,
           host->ring != NULL ? "io_uring" : "the bundled backend", blkrepl_error_text(info.error));
    return info.result == BLKREPL_RESULT_DONE ? 0 : -1;
}

static int run(const struct host *host, const char *source_path, const char *target_path)
{
    blkrepl_image_info info = {.struct_size = sizeof info};
    blkrepl_image *source = NULL;
    blkrepl_image *target = NULL;
    int rc = host_open(host, source_path, 0, &source);

    if (rc == 0) {
        blkrepl_image_query(source, &info);
        rc = host_open(host, target_path, info.bytes, &target);
    }
    if (rc == 0) {
        rc = copy(host, source, target);
    }
    blkrepl_image_close(source);
    blkrepl_image_close(target);
    return rc;
}

/* Returns the number of options; -1: one that is not known. */
static int options_read(char **argv, struct host *host, bool *bundled)
{
    int count = 0;

    for (; argv[count + 1] != NULL && argv[count + 1][0] == '-'; count++) {
        if (strcmp(argv[count + 1], "--direct") == 0) {
            host->direct = true;
        } else if (strcmp(argv[count + 1], "--bundled") == 0) {
            *bundled = true;
        } else {
            return -1;
        }
    }
    return count;
}

int main(int argc, char **argv)
{
    struct host host = {.ctx = NULL};
    bool bundled = false;
    int count = options_read(argv, &host, &bundled);
    int rc;

    if (count < 0 || argc != count + 3) {
        fprintf(stderr, "usage: uring-backend [--direct] [--bundled] SOURCE TARGET\n");
        return 2;
    }
    if (blkrepl_context_create(NULL, &host.ctx) < 0) {
        fprintf(stderr, "uring-backend: %s\n", blkrepl_error_message());
        return 1;
    }
    rc = bundled ? 0 : uring_create(host.ctx, &host.ring);
    if (rc < 0) {
        printf("io_uring is not available here (%s): the bundled backend does it\n",
               blkrepl_error_text(rc));
    }
    rc = run(&host, argv[count + 1], argv[count + 2]);
    while (blkrepl_context_free(host.ctx) < 0) {
        uring_poll(host.ctx, host.ring);
    }
    uring_free(host.ring);
    return rc == 0 ? 0 : 1;
}
