/* SPDX-License-Identifier: MIT */
/* small.h - what the files of blkrepl-small share.
 *
 * main.c tells what is explored.  Everything that a run can change lies in
 * `state` and in the arena, from which the library gets its memory; so a copy of
 * the two is the whole world at that moment, and can be put back. */
#ifndef BLKREPL_SMALL_H
#define BLKREPL_SMALL_H

#include <libblkrepl/libblkrepl.h>

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define CLUSTER_BYTES 4096u
#define CLUSTERS_MAX 4
#define DISK_BYTES_MAX (CLUSTERS_MAX * CLUSTER_BYTES)
#define CELLS_MAX 24
#define OPS_MAX 4
#define QUEUE_MAX 4
#define JOBS_MAX 2
#define MENU_MAX 48
#define MOVES_MAX 600
#define LANES_MAX 2
#define TIMEOUT_NS UINT64_C(1000000000000) /* of copy-before-write: no throttle takes so long */
#define SLOW_BYTES_PER_SEC CLUSTER_BYTES

typedef unsigned long long ull;

/* What a cell of a disk holds; its bytes are those of patterns[tag]. */
enum tag {
    TAG_ZERO,
    TAG_OLD,      /* the source in the beginning                              */
    TAG_JUNK,     /* was discarded                                            */
    TAG_TARGET,   /* the target in the beginning                              */
    TAG_SCRIBBLE, /* a buffer that a read has not filled, or failed to        */
    TAG_OP,       /* + number of the operation that wrote it                  */
    TAG_COUNT = TAG_OP + OPS_MAX
};

/* ---- What is explored: fixed for a world ----------------------------------- */

enum op_kind {
    OP_THROUGH,
    OP_BRACKET,
    OP_BACKUP, /* create, and start unless DEFER                              */
    OP_START,
    OP_PAUSE,
    OP_RESUME,
    OP_CANCEL,
    OP_SPEED,
    OP_FREE,
    OP_CLOSE,
    OP_SHUTDOWN,
    OP_FREEZE, /* from here on: of the bitmap                                 */
    OP_ABDICATE,
    OP_RECLAIM,
    OP_DISABLE,
    OP_ENABLE,
    OP_CLEAR
};

#define OP_DEFER 1u /* OP_BACKUP: create only                                  */
#define OP_HOLD 2u  /* OP_BACKUP: guest write fails                            */

struct op {
    const char *name;
    enum op_kind kind;
    uint32_t opcode;
    uint32_t disk;
    uint32_t lane;
    uint32_t start; /* range; clipped to the disk                              */
    uint32_t end;
    uint32_t flags; /* of the request, or OP_*                                 */
    uint64_t speed;
};

/* A world: the disks and the limits. */
struct world {
    const char *name;
    const char *about;
    uint32_t bytes;        /* of the source                                      */
    uint32_t target_bytes; /* of the target                                      */
    uint32_t alignment;    /* of requests, both disks                            */
    uint32_t depth;        /* of both queues                                     */
    uint32_t lanes;        /* 0: one                                             */
    uint32_t inline_disks; /* bit n: disk n completes inside submit              */
    uint32_t offload;      /* the target can copy from the source                */
    uint32_t workers;
    uint32_t chunk;        /* longest copy, in clusters                                */
    uint32_t requests_max; /* of each lane                                       */
    uint32_t zeroes_max;   /* longest ZEROES and DISCARD                           */
    uint32_t zero_mask;    /* clusters of the source that are zero                 */
    uint32_t bitmap;       /* granularity of a bitmap of the source; 0: there is none  */
    bool plain;            /* the disks know READ, WRITE and FLUSH only            */
    bool detect;           /* the backup looks for zeroes                          */
    bool apart;            /* for themes that ask for it                          */
};

/* What may happen in it. */
struct theme {
    const char *name;
    const char *menu; /* names of operations                                     */
    uint32_t ops_max; /* operations of a program                                 */
    uint32_t faults_max;
    uint32_t late_max; /* events that are not followed by all their polls        */
    uint32_t odd_max;  /* faults and late events together                        */
    const char *world; /* the only one; NULL: all                               */
};

/* ---- What a run changes: hashed, saved, put back ----------------------------- */

enum request_state {
    REQUEST_NONE,
    REQUEST_PENDING,
    REQUEST_GO, /* bracket: the host may write                                 */
    REQUEST_OVER
};

/* What a request that had not ended at the start of a backup is to it. */
enum class {
    CLASS_AFTER, /* came later: its old data must be saved                     */
    CLASS_GIVEN, /* was in flight: its data belong to the backup               */
    CLASS_MAYBE  /* entirely, or not at all                                    */
};

struct request {
    uint64_t token;
    const struct op *op;
    uint8_t *buffer; /* READ, STATUS: ours, in the arena                        */
    blkrepl_iovec iov[2];
    uint32_t number; /* of its operation                                       */
    uint32_t order;  /* of its acceptance, from 1 on                            */
    uint32_t state;
    uint32_t start;
    uint32_t end;
    int32_t result;
    uint32_t fn_count;
    uint32_t release_count;
    uint32_t wrote;      /* a disk may have got a write of it                   */
    uint32_t sure;       /* a disk has: nobody else wanted the same             */
    uint32_t cancelled;  /* bracket: given up while it waited                   */
    uint32_t flush_mask; /* cells that must be durable when it ends            */
    uint32_t overlapped; /* READ: tags that were pending meanwhile, one bit each */
    uint32_t unsure;     /* who records it is not known: see bitmap.c           */
    uint8_t before[CELLS_MAX];
};

/* A bitmap of the source; one bit for each granule. */
struct bitmap {
    blkrepl_bitmap *handle;
    uint32_t recording;
    uint32_t frozen;
    uint32_t must;
    uint32_t may;
    uint32_t since_must; /* frozen: the successor's */
    uint32_t since_may;
    uint32_t still; /* the frozen content                                      */
    uint32_t reserved0;
};

enum owner {
    OWNER_NONE,
    OWNER_JOB,
    OWNER_GUEST
};

/* A request at a disk. */
struct queued {
    blkrepl_io *io;
    uint64_t id;
    uint32_t opcode;
    uint32_t start;
    uint32_t end;
    uint32_t owner;
    uint32_t told; /* cancel was called                                        */
    uint32_t fua;
    uint32_t flush_mask;
    uint32_t reserved0;
    uint8_t tags[CELLS_MAX]; /* what a write brings                            */
};

struct disk {
    blkrepl_image *image;
    uint32_t number;
    uint32_t in_flight;
    uint32_t closed;
    uint32_t released;
    uint32_t unstable; /* cells written and not flushed                        */
    uint32_t reserved0;
    uint8_t medium[CELLS_MAX];
    struct queued queue[QUEUE_MAX];
};

struct job {
    blkrepl_job *job;
    uint64_t id;
    uint64_t bytes_done;
    uint32_t made;
    uint32_t hold;
    uint32_t started;
    uint32_t paused;
    uint32_t cancel_asked;
    uint32_t freed;
    uint32_t over; /* known to have concluded                                  */
    uint32_t checked;
    uint32_t done_events;
    uint32_t error_events;
    uint32_t release_count;
    uint32_t read_mask;     /* cells read since the start                          */
    uint32_t saved_mask;    /* cells on the target since the start                 */
    uint32_t doubtful;      /* must not end as done                                */
    uint32_t guests_failed; /* because old data could not be saved             */
    uint32_t given_up;      /* brackets that were given up while they waited   */
    uint32_t guest_mask;    /* cells that are surely read for a guest          */
    uint8_t class[OPS_MAX];
    uint8_t start[CELLS_MAX]; /* the source at the point in time                */
};

struct fault {
    uint32_t used;
    uint32_t owner;
    uint32_t disk;
    uint32_t opcode;
    uint32_t start;
    uint32_t end;
    int32_t code;
    uint32_t job;            /* the one that was running, + 1                   */
    uint32_t seen;           /* there was a poll since                          */
    uint32_t for_guest;      /* the copy that failed was surely made for a guest */
    uint32_t before_cancel;  /* nobody had asked to cancel when it was seen     */
    uint32_t guest_failures; /* requests that ended with the code               */
    uint32_t told;           /* it had its effect; the rest is forgotten        */
};

struct block {
    uint32_t offset;
    uint32_t bytes;
    uint32_t used; /* 0: free, 1: the library's, 2 + n: buffer of request n     */
};

#define BLOCKS_MAX 32

#define BLOCK_BYTES 512u /* the state is compared in whole blocks               */

struct state {
    _Alignas(BLOCK_BYTES) blkrepl_context *ctx;
    uint64_t now_ns;
    uint64_t deadline_ns;
    uint32_t ops_used;
    uint32_t faults_used;
    uint32_t late_used;
    uint32_t quiet; /* nothing is left to poll for                             */
    uint32_t shutdown;
    uint32_t gone; /* context_free has returned 0                              */
    uint32_t may_allocate;
    uint32_t sink_releases;
    uint32_t room_expected;
    uint32_t accepted;
    uint32_t block_count;
    uint32_t arena_top;
    uint32_t live_blocks;
    uint32_t reserved0;
    struct fault fault;
    struct disk disks[2];
    struct request requests[OPS_MAX];
    struct job jobs[JOBS_MAX];
    struct bitmap bitmap;
    struct block blocks[BLOCKS_MAX];
};

extern struct state state;

/* ---- One step ----------------------------------------------------------------- */

enum move_kind {
    MOVE_OP,
    MOVE_COMPLETE,
    MOVE_END, /* a bracket ends                                                */
    MOVE_DROP,
    MOVE_CLOCK,
    MOVE_POLL
};

enum outcome {
    OUTCOME_OK,
    OUTCOME_FAIL,   /* nothing landed                                         */
    OUTCOME_LANDED, /* it failed, but all of it landed                        */
    OUTCOME_CANCEL  /* -ECANCELED, after cancel was called                    */
};

enum late {
    LATE_NO,  /* polls follow until there is nothing to do                      */
    LATE_ALL, /* no poll                                                       */
    LATE_ONE, /* one poll                                                      */
    LATE_LANE /* one poll of lane 1                                            */
};

struct move {
    enum move_kind kind;
    uint32_t disk;
    uint32_t index; /* in the menu, the queue, or of the request               */
    enum outcome outcome;
    enum late late;
    uint32_t inline_at; /* this completion inside submit fails; 0: none        */
    enum outcome inline_outcome;
};

/* What is not part of the state of a world. */
struct run {
    const struct world *world;
    const struct theme *theme;
    const struct op *menu[MENU_MAX];
    uint32_t menu_count;
    uint32_t cell_count;
    uint32_t cells[CELLS_MAX + 1]; /* where they begin; the end of the larger disk  */
    uint32_t inline_at;
    uint32_t inline_count;
    enum outcome inline_outcome;
    bool inline_hit;
    bool polling;  /* or freeing                                                */
    uint32_t lane; /* whose poll that is; LANES_MAX: of all of them            */
    bool calling;  /* inside the call of a guest's operation                     */
    bool trace;
    bool searching;
    int fds[LANES_MAX]; /* the context's, kept in fds_spare while it is gone     */
    int fds_spare[LANES_MAX];
    bool fd_closed;
    uint64_t events;
    uint64_t faults;
    uint64_t late;
};

extern struct run run;
extern uint8_t patterns[TAG_COUNT][DISK_BYTES_MAX];

/* arena.c: the library's memory; saving and hashing everything. */
extern const blkrepl_allocator arena_allocator;
void arena_reset(void);
uint8_t *arena_buffer(uint32_t number, size_t bytes);
void arena_buffer_free(const uint8_t *buffer);
enum owner arena_owner(const void *memory, bool reads);
uint64_t step_keep(void);
void step_undo(uint64_t mark);
void step_drop(void);
uint64_t step_hash(void);
uint64_t step_bytes(void);
bool arena_canary(void);

/* disk.c */
void pattern_init(void);
void disk_open(uint32_t number);
void disk_complete(struct disk *disk, uint32_t index, enum outcome outcome);
void disk_land(struct disk *disk, uint32_t start, uint32_t end, uint32_t tag);
void disk_fault(const struct disk *disk, const struct queued *q, int code);
uint32_t cell_of(uint32_t position);
uint32_t cell_mask(uint32_t start, uint32_t end);
int error_of(uint32_t disk, uint32_t opcode);

/* guest.c */
bool op_enabled(const struct op *op);
void op_apply(const struct op *op);
bool is_write(uint32_t opcode);
uint32_t request_tag(const struct request *r);
uint32_t requests_pending(uint32_t disk);
uint32_t requests_pending_on(uint32_t lane);
void bracket_end(struct request *r, enum outcome outcome);
void bracket_drop(struct request *r);
void requests_check(void);

/* jobs.c */
void backup_apply(const struct op *op);
void verb_apply(const struct op *op);
struct job *job_last(void);
bool job_live(const struct job *job);
bool job_holds_target(void);
void job_drop(struct job *job);
void job_event(const blkrepl_event *event);
void jobs_check(void);
void fault_check(void);
void jobs_check_end(void);

/* oracle.c */
void oracle_submit(struct disk *disk, struct queued *q);
/* A copy from the source has landed. */
void oracle_copied(const struct queued *q);
void oracle_disk_done(struct disk *disk, const struct queued *q, const blkrepl_extent *extents,
                      uint32_t count);
void oracle_go(const struct request *r);
void oracle_start(struct job *job);
void oracle_target(struct job *job);
void oracle_result(struct request *r);
void oracle_read(const struct request *r, uint8_t *data);
void oracle_status(const struct request *r);

/* world.c: the worlds, and how one begins and ends. */
extern const struct world worlds[];
extern const struct theme themes_short[];
extern const struct theme themes_long[];
bool world_set(const struct world *world, const struct theme *theme);
void world_begin(void);
void world_finish(void);
void world_shut_down(void);
void world_try_free(void);
uint32_t world_lanes(void);
void poll_once(uint32_t lane);
/* Is the host inside a poll of this lane, or a free? */
bool polls_lane(uint32_t lane);

/* bitmap.c */
void bitmap_open(void);
void bitmap_drop(void);
void bitmap_apply(const struct op *op);
void bitmap_ended(const struct request *r);
void bitmap_check(void);

/* moves.c */
uint32_t moves_list(struct move *out);
bool moves_quiescent(const struct move *moves, uint32_t count);
bool moves_is_timeout(void);
bool move_apply(const struct move *move);
void move_print(const struct move *move, char *out, size_t bytes);
bool move_parse(const char *text, struct move *out);

/* search.c */
struct totals {
    uint64_t programs;
    uint64_t runs;
    uint64_t ends;
    uint64_t states;
    uint64_t transitions;
    uint64_t merged;
    uint64_t faults;
    uint64_t late;
    uint64_t replayed;
    uint32_t longest;
    uint64_t state_bytes;
};
void search_world(uint32_t part, uint32_t parts, bool merge, struct totals *totals);
void search_path(char *out, size_t bytes);

/* main.c */
void trace_line(const char *format, ...);
_Noreturn void small_fail(const char *format, ...);

#define TRACE(...)                                                                                 \
    do {                                                                                           \
        if (run.trace) {                                                                           \
            trace_line(__VA_ARGS__);                                                               \
        }                                                                                          \
    } while (0)
#define EXPECT(condition, ...)                                                                     \
    do {                                                                                           \
        if (!(condition)) {                                                                        \
            small_fail(__VA_ARGS__);                                                               \
        }                                                                                          \
    } while (0)

#endif
