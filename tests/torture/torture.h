/* SPDX-License-Identifier: MIT */
/* blkrepl-torture: every allocation, every backend call and every system call of
 * every scenario fails, once and from then on.
 *
 * A scenario is a careful host: it looks at every answer, takes an error only
 * where the headers document it, and goes on the documented way.  It runs clean
 * once, which counts the calls; then it runs again for each of them.  In a run
 * one plan of fault.h is at work.  What came of it is checked in three places:
 *
 *   api.c    every answer of the library: documented, with a cause, with a
 *            message in the house format, without an allocation where none is due;
 *   op.c, job.c, image.c   every callback, job and image: once, with an error that
 *            was injected, and the bytes that the model allows;
 *   world.c  what is left in the end: nothing.
 *
 * Each scenario is a process of its own, so a crash or a hang is the failure of
 * one run, which is named with the command that repeats it. */
#ifndef TESTS_TORTURE_TORTURE_H
#define TESTS_TORTURE_TORTURE_H

#include <errno.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <libblkrepl/libblkrepl.h>

#define ARRAY_COUNT(a) (sizeof(a) / sizeof(a)[0])
#define BIT(n) (1u << (n))
#define KIB 1024u
#define CLUSTER 4096u
#define SECOND UINT64_C(1000000000)
#define MEDIUM_BYTES_MAX (32u * CLUSTER)
#define MEDIA_MAX 8

#define OPS_RW (BIT(BLKREPL_OP_READ) | BIT(BLKREPL_OP_WRITE))
#define OPS_ALL                                                                                    \
    (OPS_RW | BIT(BLKREPL_OP_ZEROES) | BIT(BLKREPL_OP_DISCARD) | BIT(BLKREPL_OP_FLUSH) |           \
     BIT(BLKREPL_OP_STATUS))

#if defined(__GNUC__) || defined(__clang__)
#define PRINTF_LIKE(text, first) __attribute__((format(printf, text, first)))
#else
#define PRINTF_LIKE(text, first)
#endif

/* ---- main.c ----------------------------------------------------------------- */

struct world;

enum scenario_flags {
    SCENARIO_ONE_ORDER = 1, /* backends complete inside submit only */
    SCENARIO_THREADS = 2    /* counts differ from run to run */
};

struct scenario {
    const char *name;
    void (*run)(struct world *w);
    unsigned flags;
};

/* Something is not as it was promised: say so and end this process. */
_Noreturn void torture_fail(const char *format, ...) PRINTF_LIKE(1, 2);
#define REQUIRE(condition, ...) ((condition) ? (void)0 : torture_fail(__VA_ARGS__))

/* Count a call of an exported function, for all processes. */
void torture_cover(unsigned function);

/* A folder for files, gone at the end. */
const char *torture_folder(void);

extern const struct scenario *const scenario_groups[];

/* ---- fault.c ------------------------------------------------------------------ */

enum fault_domain {
    FAULT_NONE,
    FAULT_ALLOC,
    FAULT_DISK,
    FAULT_SYS,
    FAULT_DOMAINS
};

#define FAULT_CODES_MAX 6

struct fault_plan {
    enum fault_domain domain;
    bool on; /* the nth call and all that follow */
    uint64_t nth;
    unsigned code; /* which of the codes that fit the call */
};

void fault_start(const struct fault_plan *plan);
/* While paused nothing is counted and nothing fails. */
void fault_pause(bool pause);
/* Count a call; whether it is to fail. */
bool fault_due(enum fault_domain domain);
/* It has failed. */
void fault_note(void);
const struct fault_plan *fault_plan(void);
uint64_t fault_calls(enum fault_domain domain);
uint64_t fault_fired(void);

/* A request, or a system call, that was made to fail.  Somebody has to be told:
 * a hard one that nobody claims was swallowed. */
struct failure {
    int medium; /* of which; -1: of none */
    int code;
    uint32_t opcode; /* 0: not a request */
    bool hard;       /* somebody has to be told */
    bool passing;    /* the library has another way: no guest is told */
    bool claimed;
    uint64_t offset;
    uint64_t bytes;
};

void failure_add(const struct failure *failure);
/* Whether a failure with this code, of one of the media and opcodes (bits) and
 * over a part of the range, was injected; it counts as claimed from now on. */
bool failure_claim(uint32_t media, uint32_t opcodes, uint64_t offset, uint64_t end, int code);
/* The same, but of exactly this range. */
bool failure_claim_exact(int medium, uint32_t opcodes, uint64_t offset, uint64_t bytes, int code);
/* How many there are of these; nothing is claimed. */
size_t failure_count(uint32_t media, uint32_t opcodes, uint64_t offset, uint64_t end);
size_t failure_unclaimed(const struct failure **first);
/* Nobody has to be told of these: who waited for them was told something else. */
void failure_forgive(uint32_t media, uint32_t opcodes, uint64_t offset, uint64_t end);
/* Nobody has to be told of those of this medium and opcode. */
void failure_forgive_of(int medium, uint32_t opcode);
#define ANY_OPCODE UINT32_MAX

/* ---- heap.c ------------------------------------------------------------------- */

blkrepl_allocator heap_hooks(void);
uint64_t heap_calls(void); /* of all of its functions that allocate */
/* Nothing is allocated, nothing was written behind its end or after its free. */
void heap_check_empty(void);

/* ---- model.c ------------------------------------------------------------------ */

#define MODEL_TAGS_MAX 64

enum model_kind {
    MODEL_DATA,
    MODEL_ZERO,
    MODEL_ANY
};

/* What each byte of a medium may hold: a set of tags, one per write.  A write
 * adds its tag when it is accepted; when it has succeeded, the earlier ones go. */
struct model {
    uint64_t bytes;
    unsigned tags;
    unsigned salt;
    enum model_kind kind[MODEL_TAGS_MAX];
    bool pending[MODEL_TAGS_MAX];
    uint64_t start[MODEL_TAGS_MAX];
    uint64_t end[MODEL_TAGS_MAX];
    uint64_t *mask;
    uint8_t *likely; /* what the last write that succeeded has left */
};

/* `salt` is the number of the medium. */
void model_init(struct model *m, uint64_t bytes, unsigned salt, bool zero);
uint8_t model_byte(const struct model *m, uint64_t offset, unsigned tag);
/* The tag's place in the order of writes; then, what it does is under way. */
unsigned model_reserve(struct model *m, enum model_kind kind, uint64_t offset, uint64_t bytes);
void model_go(struct model *m, unsigned tag);
/* Both. */
unsigned model_begin(struct model *m, enum model_kind kind, uint64_t offset, uint64_t bytes);
void model_undo(struct model *m, unsigned tag); /* it was refused: nothing was done */
void model_done(struct model *m, unsigned tag);
void model_failed(struct model *m, unsigned tag);
/* Data are what `mask` (NULL: that of now) or that of now allows. */
void model_check(const struct model *m, uint64_t offset, const uint8_t *data, uint64_t bytes,
                 const uint64_t *mask, const char *what);

/* ---- durable.c ------------------------------------------------------------------ */

void durable_start(int medium, uint64_t bytes);
/* A write has landed; with `fua` it is durable by itself.  Medium -1: none. */
void durable_wrote(int medium, uint64_t offset, uint64_t bytes, bool fua);
/* Counts the writes that have landed. */
uint64_t durable_clock(int medium);
/* A flush that began at this clock has succeeded. */
void durable_flushed(int medium, uint64_t clock);
/* Whether all is durable that had landed by then, or that is in this range. */
bool durable_until(int medium, uint64_t clock);
bool durable_range(int medium, uint64_t offset, uint64_t end);

/* ---- disk.c ------------------------------------------------------------------- */

enum order {
    ORDER_INLINE,
    ORDER_FIFO,
    ORDER_LIFO,
    ORDER_COUNT
};

#define DISK_QUEUE_MAX 128

struct disk_held {
    const blkrepl_io *io;
    uint64_t id;
    uint64_t sequence;
    int result;
};

/* A disk of the host. */
struct disk {
    /* Set by the scenario. */
    blkrepl_backend_info info;
    uint32_t hold;    /* opcodes that wait until the scenario says */
    bool cancel_ends; /* cancel completes what waits */
    bool no_cancel;
    enum {
        STATUS_TRUE,
        STATUS_EMPTY,
        STATUS_TOO_LONG
    } status;
    void (*on_submit)(struct disk *disk, const blkrepl_io *io);
    void (*on_close)(struct disk *disk);
    /* Watched. */
    struct world *world;
    int medium;
    bool soft_status;  /* a job asks it, and takes no offence */
    bool soft_discard; /* the same */
    uint8_t *data;
    struct disk_held queue[DISK_QUEUE_MAX];
    size_t queue_count;
    uint32_t in_flight;
    int inside;
    unsigned get_infos;
    unsigned opened;
    unsigned closes;
    unsigned cancels;
    uint64_t submitted[16];
};

extern const blkrepl_backend_ops disk_ops;
extern const blkrepl_backend_ops disk_ops_no_cancel;

void disk_init(struct disk *disk, struct world *world, int medium);
/* The code with which this plan lets it fail. */
int disk_code(const struct disk *disk);
/* Finish queue[index]. */
void disk_finish(struct disk *disk, size_t index);
/* What a bracketed write does; 0 or a code. */
int disk_host_io(struct disk *disk, uint32_t opcode, uint64_t offset, const uint8_t *data,
                 uint64_t bytes);

/* ---- sys.c -------------------------------------------------------------------- */

/* How the system behaves to files, whatever it is in truth. */
struct sys_files {
    bool tmpfs;   /* what fstatfs says */
    bool threads; /* pthread_create works */
    bool device;  /* files are block devices */
    bool direct;  /* files are open past the page cache */
    enum {
        NOWAIT_REFUSED,
        NOWAIT_GRANTED,
        NOWAIT_SOMETIMES
    } nowait;
    bool no_dsync;
    bool no_punch;
    bool no_zero_range;
    bool no_seek;
};

void sys_start(void); /* of a run: the defaults, with threads */
void sys_files(const struct sys_files *files);
/* Files with this path are this medium. */
void sys_medium(const char *path, int medium);
/* An image is being opened: what cannot be learnt of its file fails that. */
void sys_opening(bool begin);
/* Whether the nth system call of the clean run has such a code. */
bool sys_code_fits(uint64_t nth, unsigned code);
/* Files lie where nothing is durable: flushes mean nothing. */
bool sys_durable(void);
bool sys_readable(int fd);
/* What was opened is closed. */
void sys_check_closed(void);
/* Run it in another thread, and wait for that. */
void sys_elsewhere(void *(*run)(void *arg), void *arg);

/* ---- world.c -------------------------------------------------------------------- */

#define OPS_MAX 512
#define JOBS_MAX 8
#define PARTS_MAX 24
#define BITMAPS_MAX 8
#define BITMAP_GRANULES_MAX 260

enum image_kind {
    IMAGE_DISK,
    IMAGE_MEMORY,
    IMAGE_FILE,
    IMAGE_SNAPSHOT
};

struct image {
    struct world *world;
    blkrepl_image *handle;
    enum image_kind kind;
    int medium;
    struct disk *disk; /* of IMAGE_DISK */
    char path[128];    /* of IMAGE_FILE */
    struct model model;
    bool unmodelled; /* a job has written to it */
    bool read_only;
    bool opened;
    unsigned released;
    /* Whose failures, or which timeouts, may fail its guest writes. */
    uint32_t policy_media;
    uint64_t policy_unit;
    bool timeouts;
    struct job *under; /* of IMAGE_SNAPSHOT */
    bool forgotten;    /* parts of it were discarded */
};

enum bracket_state {
    BRACKET_NONE,
    BRACKET_WAITING,
    BRACKET_GO,
    BRACKET_OVER
};

/* A request or bracket of the guest. */
struct op {
    struct world *world;
    unsigned number; /* in the order in which they were made */
    struct image *image;
    uint32_t opcode;
    uint32_t flags;
    uint64_t offset;
    uint64_t bytes;
    /* Memory; gone when the library may not touch it any more. */
    uint8_t *buffer;
    uint8_t *data;
    blkrepl_iovec *iov;
    uint32_t iov_count;
    blkrepl_extent *extents;
    uint32_t extents_max;
    uint64_t *mask;  /* of a read: what was allowed when it was accepted */
    uint64_t clock;  /* how many writes had landed before it */
    size_t refusals; /* and how often zeroes had been refused there */
    /* What became of it. */
    int answer; /* of the call */
    int calls;
    int released;
    int result;
    bool tagged; /* it has a tag in the model, and has not ended */
    unsigned tag;
    /* Brackets. */
    enum bracket_state bracket;
    bool manual;      /* the scenario does what follows the GO */
    bool cancel_sent; /* write_cancel has answered WAIT */
    uint64_t token;
    /* Run inside fn. */
    void (*then)(struct op *op);
    void *then_user;
};

struct job {
    struct world *world;
    blkrepl_job *handle;
    struct image *source;
    struct image *target;
    struct image *spill;
    bool verify;    /* it compares: both are read */
    bool none;      /* it copies nothing by itself */
    bool completed; /* and was told to complete */
    unsigned group; /* with grouped completion; 0: of none */
    bool started;
    bool cancelled; /* by the scenario, or by closing the context */
    bool timeouts;
    bool dropped; /* the handle was freed before it had concluded */
    bool checked;
    uint64_t id;
    unsigned released;
    unsigned done_events;
    uint64_t error_events;
    int done_error;
    /* The point in time. */
    uint8_t *start;
    uint64_t pending; /* tags of writes that were under way */
};

/* A bitmap, and for each granule whether it must and may be dirty. */
struct bitmap {
    struct world *world;
    struct image *image; /* NULL: free-standing */
    blkrepl_bitmap *handle;
    unsigned number;
    uint64_t bytes;
    uint64_t granularity;
    bool recording;
    bool frozen;
    unsigned epoch; /* the first request that was made after the recorder changed */
    bool must[BITMAP_GRANULES_MAX];
    bool may[BITMAP_GRANULES_MAX];
    bool since_must[BITMAP_GRANULES_MAX]; /* the successor's */
    bool since_may[BITMAP_GRANULES_MAX];
    bool either[BITMAP_GRANULES_MAX]; /* must be in one of the two */
};

struct world {
    enum order order;
    blkrepl_context *ctx;
    bool real_clock;
    uint64_t now;
    bool closed; /* context_free was called */
    bool silent; /* no events, no log */
    bool default_pool;
    uint64_t sequence;
    struct disk disks[MEDIA_MAX];
    struct image images[MEDIA_MAX];
    unsigned image_count;
    struct op *ops[OPS_MAX];
    unsigned op_count;
    struct job jobs[JOBS_MAX];
    unsigned job_count;
    struct bitmap bitmaps[BITMAPS_MAX];
    unsigned bitmap_count;
    uint64_t job_errors; /* that jobs have counted */
    bool job_dropped;
    unsigned sinks; /* given away */
    unsigned sinks_released;
    unsigned rooms;
    unsigned log_lines;
    void (*on_event)(struct world *w, const blkrepl_event *event);
    /* How the buffers of requests are cut. */
    uint32_t parts;
    uint32_t skew;
    uint64_t random;
};

/* The hooks, sink and small limits of these scenarios, over `base` or NULL. */
blkrepl_context_options world_options(struct world *w, const blkrepl_context_options *base,
                                      blkrepl_hooks *hooks, blkrepl_allocator *allocator);
/* Make the context; false if that fails twice. */
bool world_open(struct world *w, const blkrepl_context_options *base);
/* Below `below`; the same sequence in every run. */
uint64_t world_random(struct world *w, uint64_t below);
/* Poll, and let the disks finish, until there is nothing to do; the deadline. */
uint64_t world_settle(struct world *w);
/* Poll only. */
void world_poll(struct world *w);
void world_advance(struct world *w, uint64_t ns);
/* Let go of what disks hold, and settle. */
void world_release(struct world *w);
/* The same, and wait for threads, until only the scenario could go on. */
void world_finish(struct world *w);
/* With real threads: poll until `done` says so. */
void world_wait(struct world *w, bool (*done)(void *arg), void *arg);
/* Call context_free while something is left: the context is closed from now on. */
void world_shut(struct world *w);
/* Close what is open, free the context; also done at the end of a run. */
void world_close(struct world *w);
void world_run(const struct scenario *scenario, enum order order);

/* ---- image.c -------------------------------------------------------------------- */

enum fill {
    FILL_DATA,
    FILL_HOLES,
    FILL_ZERO
};

/* A medium of these properties (NULL: all defaults), not yet opened. */
struct image *image_disk(struct world *w, const blkrepl_backend_info *info, enum fill fill);
struct image *image_file(struct world *w, uint64_t bytes, enum fill fill);
struct image *image_memory(struct world *w, uint64_t bytes);
/* Open it; tries again once if that fails for an injected reason. */
bool image_open(struct image *image, const blkrepl_image_options *options);
bool image_open_file(struct image *image, const blkrepl_file_options *file);
/* The same for the usual pair. */
bool image_pair(struct world *w, const blkrepl_backend_info *source_info,
                const blkrepl_backend_info *target_info, struct image **source,
                struct image **target);
/* Of a job that is READY. */
struct image *image_snapshot(struct job *job);
/* Whether a request to a snapshot's range may have ended with this code. */
bool image_snapshot_failure(const struct image *image, uint64_t offset, uint64_t end, int code);
void image_close(struct image *image);
void image_fetch(struct image *image, uint8_t *out);
void image_check(struct image *image);
uint64_t image_bytes(const struct image *image);
/* Whether a flush of it means anything. */
bool image_volatile(const struct image *image);

/* ---- op.c ----------------------------------------------------------------------- */

/* Each gives the request to the library; op->answer is what it said.  Pieces and
 * skew are those of the world. */
struct op *op_read(struct image *image, uint64_t offset, uint64_t bytes);
struct op *op_write(struct image *image, uint64_t offset, uint64_t bytes, uint32_t flags);
struct op *op_zeroes(struct image *image, uint64_t offset, uint64_t bytes, uint32_t flags);
struct op *op_discard(struct image *image, uint64_t offset, uint64_t bytes);
struct op *op_flush(struct image *image);
struct op *op_status(struct image *image, uint64_t offset, uint64_t bytes, uint32_t extents_max);
/* The same with something to do inside the callback. */
struct op *op_start(struct image *image, const struct op *like);
/* Begin a bracket; after its GO the host does it and ends it at once, unless
 * `manual`. */
struct op *op_begin(struct image *image, uint32_t opcode, uint64_t offset, uint64_t bytes,
                    bool manual);
void op_perform(struct op *op); /* after the GO */
void op_cancel(struct op *op);
bool op_over(const struct op *op);
void op_free(struct op *op);

/* s_request.c: something of everything, one after the other or all at once. */
void request_mix(struct image *image, bool settle);

/* ---- bitmap.c ------------------------------------------------------------------- */

/* They try again once if that fails for an injected reason; then they are NULL. */
struct bitmap *bitmap_add(struct image *image, const char *name, uint64_t granularity,
                          uint32_t flags);
struct bitmap *bitmap_create(struct world *w, uint64_t bytes, uint64_t granularity);
void bitmap_free(struct bitmap *b);
blkrepl_bitmap_info bitmap_info(const struct bitmap *b);
/* It holds what it must, and no more than it may. */
void bitmap_check(struct bitmap *b);
/* Each is done to the bitmap and its model; freeze: false if memory is short. */
bool bitmap_freeze(struct bitmap *b);
void bitmap_abdicate(struct bitmap *b);
void bitmap_reclaim(struct bitmap *b);
void bitmap_clear(struct bitmap *b);
void bitmap_enable(struct bitmap *b, bool enable);
void bitmap_set(struct bitmap *b, uint64_t offset, uint64_t bytes);
void bitmap_reset(struct bitmap *b, uint64_t offset, uint64_t bytes);
void bitmap_merge(struct bitmap *b, const struct bitmap *other);
/* Only to its model: the scenario has done it. */
void bitmap_frozen(struct bitmap *b);
void bitmap_used_up(struct bitmap *b);
void bitmap_not_used(struct bitmap *b);
void bitmap_cleared(struct bitmap *b);
void bitmap_recorded(struct bitmap *b, bool recording);
void bitmap_merged(struct bitmap *b, const struct bitmap *other);
/* A request has ended; sure: it is to be recorded. */
void bitmaps_note(const struct op *op, bool sure);
void bitmaps_live_on(struct world *w);

/* ---- job.c ---------------------------------------------------------------------- */

/* Small clusters and few buffers, on top of `options` or NULL. */
struct job *job_create(struct image *source, struct image *target,
                       const blkrepl_backup_options *options);
bool job_start(struct job *job);
/* blkrepl_backup_start(). */
struct job *job_create_started(struct image *source, struct image *target,
                               const blkrepl_backup_options *options);
void job_pause(struct job *job);
void job_resume(struct job *job);
void job_set_speed(struct job *job, uint64_t speed_bytes_per_sec);
void job_cancel(struct job *job);
void job_complete(struct job *job);
void job_finalize(struct job *job);
void job_free(struct job *job);
/* The point in time: for who starts it by other means. */
void job_take_start(struct job *job);
void job_was_started(struct job *job);
/* Compare: verify has `options` or NULL. */
struct job *job_verify(struct image *image, struct image *other,
                       const blkrepl_verify_options *options);
/* Resume it as often as an error pauses it, as long as errors are due. */
void job_insist(struct job *job);
blkrepl_job_info job_info(const struct job *job);
bool job_concluded(const struct job *job);
/* What a concluded job says is true. */
void job_check(struct job *job);
void job_event(struct world *w, const blkrepl_event *event);

#endif
