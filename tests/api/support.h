/* SPDX-License-Identifier: MIT */
/* What the api tests share: a context whose memory, clock and events are
 * watched, requests and brackets that count their callbacks, and random
 * numbers.  The disk of the host is in tape.h. */
#ifndef TESTS_API_SUPPORT_H
#define TESTS_API_SUPPORT_H

#include <errno.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <libblkrepl/libblkrepl.h>

#define ARRAY_COUNT(a) (sizeof(a) / sizeof(a)[0])
#define KIB UINT64_C(1024)
#define MIB (KIB * KIB)
#define CLUSTER (64 * KIB)
#define SECOND UINT64_C(1000000000)
#define EVENTS_KEPT 2048

/* Compare two codes and show them as people write them. */
#define ASSERT_CODE(got, want) assert_code((got), (want), #got, __FILE__, __LINE__)

void assert_code(int got, int want, const char *what, const char *file, int line);

/* Whether only a short run is wanted (BLKREPL_TEST_QUICK). */
bool quick(void);

/* ---- Random numbers: the same seed, the same sequence ---------------------- */

struct rng {
    uint64_t state;
};

uint64_t rng_below(struct rng *rng, uint64_t below);
bool rng_percent(struct rng *rng, unsigned percent);
/* Bytes that tell by tag and offset where they belong. */
void fill(void *out, size_t bytes, uint64_t offset, unsigned tag);
bool all_zero(const void *memory, size_t bytes);

/* ---- Memory that is counted, and that may run out -------------------------- */

struct heap {
    pthread_mutex_t lock;
    uint64_t live;    /* blocks not yet freed                                 */
    uint64_t calls;   /* allocations tried                                    */
    uint64_t fail_at; /* the call that fails, from 1; 0: none                 */
    bool fail_on;     /* and every later one                                  */
    unsigned misuse;  /* bad alignment, wrong bytes at free                   */
};

blkrepl_allocator heap_allocator(struct heap *heap);

/* ---- A context under watch -------------------------------------------------- */

enum env_flags {
    ENV_REAL_CLOCK = 1,  /* no clock hook: polls may sleep                    */
    ENV_PLAIN_MEMORY = 2 /* no allocator                                      */
};

struct env {
    blkrepl_context *ctx;
    unsigned flags;
    struct heap heap;
    _Atomic uint64_t now; /* what the clock hook answers                      */
    uint64_t entropy;
    unsigned sink_released;
    size_t event_count; /* all of them; only the first EVENTS_KEPT are kept   */
    blkrepl_event events[EVENTS_KEPT];
    void (*on_event)(struct env *env, const blkrepl_event *event); /* or NULL */
    void *on_event_user;
};

/* `base` may be NULL; its allocator, hooks and on_event are filled in. */
void env_open(struct env *env, const blkrepl_context_options *base, unsigned flags);
/* The options that env_open() would use, for tests of create itself; hooks and
 * allocator are put into *hooks and *allocator. */
blkrepl_context_options env_options(struct env *env, const blkrepl_context_options *base,
                                    unsigned flags, blkrepl_hooks *hooks,
                                    blkrepl_allocator *allocator);
/* Free the context, which must be possible, and check that nothing leaked. */
void env_close(struct env *env);
/* Poll lane 0, or another, until there is nothing to do; the number of callbacks. */
int env_drain(struct env *env);
int lane_drain(struct env *env, uint32_t lane);
void env_advance(struct env *env, uint64_t ns); /* time passes, then drain */
/* The deadline that poll_arm() names, when it says that there is no work. */
uint64_t env_deadline(struct env *env);
size_t env_count(const struct env *env, uint32_t type, uint64_t object_id);
/* The nth (from 0) event of this type and object, or NULL. */
const blkrepl_event *env_event(const struct env *env, uint32_t type, uint64_t object_id,
                               size_t nth);

/* ---- Requests that count their callbacks ------------------------------------ */

struct req {
    int calls;                     /* of fn                                                  */
    int released;                  /* of release                                             */
    int result;                    /* that fn got                                            */
    uint64_t order;                /* of fn among all requests                               */
    bool early;                    /* released before fn ran, though it ran                  */
    void (*then)(struct req *req); /* run inside fn; or NULL                  */
    void *then_user;
    blkrepl_iovec iov;
};

#define REQ_PENDING(req) ((req)->calls == 0)

blkrepl_completion req_completion(struct req *req);
/* These reset *req, keeping `then`; the answer is that of the call. */
int req_read(struct req *req, blkrepl_image *image, uint64_t offset, void *out, size_t bytes);
int req_write(struct req *req, blkrepl_image *image, uint64_t offset, const void *data,
              size_t bytes);
int req_zeroes(struct req *req, blkrepl_image *image, uint64_t offset, uint64_t bytes);
int req_discard(struct req *req, blkrepl_image *image, uint64_t offset, uint64_t bytes);
int req_flush(struct req *req, blkrepl_image *image);
/* The same on a lane; those above are on lane 0. */
int lane_read(struct req *req, blkrepl_image *image, uint32_t lane, uint64_t offset, void *out,
              size_t bytes);
int lane_write(struct req *req, blkrepl_image *image, uint32_t lane, uint64_t offset,
               const void *data, size_t bytes);
int lane_zeroes(struct req *req, blkrepl_image *image, uint32_t lane, uint64_t offset,
                uint64_t bytes);
int lane_discard(struct req *req, blkrepl_image *image, uint32_t lane, uint64_t offset,
                 uint64_t bytes);
int lane_flush(struct req *req, blkrepl_image *image, uint32_t lane);
void req_reset(struct req *req);
/* The request was accepted, has ended once with this result, and was released. */
void req_assert_done(const struct req *req, int result);
void req_assert_rejected(const struct req *req);

/* The same and drain the context until it has ended; the result. */
int read_now(struct env *env, blkrepl_image *image, uint64_t offset, void *out, size_t bytes);
int write_now(struct env *env, blkrepl_image *image, uint64_t offset, const void *data,
              size_t bytes);

/* ---- Brackets ----------------------------------------------------------------- */

struct bracket {
    struct req go;
    uint64_t token;
    uint64_t offset;
    uint64_t bytes;
    uint32_t opcode;
    int answer; /* of the begin */
};

int bracket_begin(struct bracket *bracket, blkrepl_image *image, uint32_t opcode, uint64_t offset,
                  uint64_t bytes);
int lane_begin(struct bracket *bracket, blkrepl_image *image, uint32_t lane, uint32_t opcode,
               uint64_t offset, uint64_t bytes);
/* GO was given, by the begin or by the callback. */
bool bracket_may_go(const struct bracket *bracket);

/* ---- Jobs ---------------------------------------------------------------------- */

blkrepl_job_info job_info(blkrepl_job *job);
blkrepl_image_info image_info(blkrepl_image *image);

#endif
