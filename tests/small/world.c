/* SPDX-License-Identifier: MIT */
/* world.c - the worlds, the menu of operations, how a world begins and ends. */
#include "small.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

#define C CLUSTER_BYTES
#define ALL DISK_BYTES_MAX
#define THROUGH(op) .kind = OP_THROUGH, .opcode = BLKREPL_OP_##op
#define BRACKET(op) .kind = OP_BRACKET, .opcode = BLKREPL_OP_##op

struct run run;

/* Everything that may be done, by name. */
static const struct op ops[] = {
    {.name = "W0", THROUGH(WRITE), .start = 0, .end = C},
    {.name = "W1", THROUGH(WRITE), .start = C, .end = 2 * C},
    {.name = "W2", THROUGH(WRITE), .start = 2 * C, .end = 3 * C},
    {.name = "W3", THROUGH(WRITE), .start = 3 * C, .end = 4 * C},
    {.name = "Wh", THROUGH(WRITE), .start = C / 2, .end = C + C / 2},
    {.name = "Wu", THROUGH(WRITE), .start = C + 700, .end = C + 800},
    {.name = "Wf", THROUGH(WRITE), .start = C, .end = 2 * C, .flags = BLKREPL_IO_FUA},
    {.name = "WT", THROUGH(WRITE), .disk = 1, .start = 0, .end = C},
    {.name = "Z1", THROUGH(ZEROES), .start = C, .end = 2 * C},
    {.name = "Zu", THROUGH(ZEROES), .start = C + 700, .end = 2 * C},
    {.name = "Za", THROUGH(ZEROES), .start = 0, .end = ALL, .flags = BLKREPL_IO_MAY_UNMAP},
    {.name = "D1", THROUGH(DISCARD), .start = C, .end = 2 * C},
    {.name = "Da", THROUGH(DISCARD), .start = 0, .end = ALL},
    {.name = "F", THROUGH(FLUSH)},
    {.name = "Rh", THROUGH(READ), .start = C / 2, .end = C + C / 2},
    {.name = "Ru", THROUGH(READ), .start = C + 700, .end = C + 800},
    {.name = "S", THROUGH(STATUS), .start = 0, .end = ALL},
    {.name = "B1", BRACKET(WRITE), .start = C, .end = 2 * C},
    {.name = "lW1", THROUGH(WRITE), .lane = 1, .start = C, .end = 2 * C},
    {.name = "lWh", THROUGH(WRITE), .lane = 1, .start = C / 2, .end = C + C / 2},
    {.name = "lD1", THROUGH(DISCARD), .lane = 1, .start = C, .end = 2 * C},
    {.name = "lRh", THROUGH(READ), .lane = 1, .start = C / 2, .end = C + C / 2},
    {.name = "lB1", BRACKET(WRITE), .lane = 1, .start = C, .end = 2 * C},
    {.name = "Bh", BRACKET(WRITE), .start = C / 2, .end = C + C / 2},
    {.name = "Bz", BRACKET(ZEROES), .start = 0, .end = ALL},
    {.name = "Bd", BRACKET(DISCARD), .start = C, .end = 2 * C},
    {.name = "Bf", BRACKET(FLUSH)},
    {.name = "K", .kind = OP_BACKUP},
    {.name = "Kg", .kind = OP_BACKUP, .flags = OP_HOLD},
    {.name = "Kc", .kind = OP_BACKUP, .flags = OP_DEFER},
    {.name = "Kcg", .kind = OP_BACKUP, .flags = OP_DEFER | OP_HOLD},
    {.name = "start", .kind = OP_START},
    {.name = "pause", .kind = OP_PAUSE},
    {.name = "resume", .kind = OP_RESUME},
    {.name = "cancel", .kind = OP_CANCEL},
    {.name = "force", .kind = OP_CANCEL, .flags = BLKREPL_CANCEL_FORCE},
    {.name = "slow", .kind = OP_SPEED, .speed = SLOW_BYTES_PER_SEC},
    {.name = "fast", .kind = OP_SPEED},
    {.name = "free", .kind = OP_FREE},
    {.name = "closeS", .kind = OP_CLOSE, .disk = 0},
    {.name = "closeT", .kind = OP_CLOSE, .disk = 1},
    {.name = "shut", .kind = OP_SHUTDOWN},
    {.name = "freeze", .kind = OP_FREEZE},
    {.name = "abdicate", .kind = OP_ABDICATE},
    {.name = "reclaim", .kind = OP_RECLAIM},
    {.name = "disable", .kind = OP_DISABLE},
    {.name = "enable", .kind = OP_ENABLE},
    {.name = "clear", .kind = OP_CLEAR},
};

#define SHORT_BYTES (2 * C + 1308)

const struct world worlds[] = {
    {.name = "plain",
     .about = "3 whole clusters; queues of 3",
     .bytes = 3 * C,
     .target_bytes = 3 * C,
     .alignment = 1,
     .depth = 3,
     .workers = 1,
     .chunk = 1,
     .requests_max = 4},
    {.name = "narrow",
     .about = "3 whole clusters; queues of 1, two workers",
     .bytes = 3 * C,
     .target_bytes = 3 * C,
     .alignment = 1,
     .depth = 1,
     .workers = 2,
     .chunk = 1,
     .requests_max = 2},
    {.name = "instant",
     .about = "3 whole clusters; both disks complete inside submit",
     .bytes = 3 * C,
     .target_bytes = 3 * C,
     .alignment = 1,
     .depth = 3,
     .inline_disks = 3,
     .workers = 1,
     .chunk = 1,
     .requests_max = 4},
    {.name = "chunky",
     .about = "3 whole clusters, the second zero; queues of 3, two workers, copies of 2 clusters; "
              "the target completes inside submit",
     .bytes = 3 * C,
     .target_bytes = 3 * C,
     .alignment = 1,
     .depth = 3,
     .inline_disks = 2,
     .workers = 2,
     .chunk = 2,
     .zero_mask = 2,
     .detect = true,
     .requests_max = 4},
    {.name = "short",
     .about = "the last cluster is short and not aligned; queues of 3, alignment 512, pieces of "
              "zeroes, the second cluster zero",
     .bytes = SHORT_BYTES,
     .target_bytes = 3 * C,
     .alignment = 512,
     .depth = 3,
     .workers = 1,
     .chunk = 1,
     .zeroes_max = C,
     .zero_mask = 2,
     .requests_max = 4},
    {.name = "basic",
     .about = "the last cluster is short; queues of 1; the disks know READ, WRITE and FLUSH",
     .bytes = SHORT_BYTES,
     .target_bytes = SHORT_BYTES,
     .alignment = 1,
     .depth = 1,
     .workers = 1,
     .chunk = 1,
     .plain = true,
     .requests_max = 4},
    {.name = "swift",
     .about = "the last cluster is short; queues of 3; the source completes inside submit",
     .bytes = SHORT_BYTES,
     .target_bytes = SHORT_BYTES,
     .alignment = 1,
     .depth = 3,
     .inline_disks = 1,
     .workers = 1,
     .chunk = 3,
     .requests_max = 4},
    {.name = "single",
     .about = "the last cluster is short; queues of 1, alignment 512, one request at a time, both "
              "disks complete inside submit",
     .bytes = SHORT_BYTES,
     .target_bytes = 3 * C,
     .alignment = 512,
     .depth = 1,
     .inline_disks = 3,
     .workers = 1,
     .chunk = 1,
     .zeroes_max = C,
     .requests_max = 1},
    {.name = "offload",
     .about =
         "3 whole clusters; queues of 3, two workers, copies of 2 clusters; the disks know READ, "
         "WRITE and FLUSH, and the target copies from the source",
     .bytes = 3 * C,
     .target_bytes = 3 * C,
     .alignment = 1,
     .depth = 3,
     .offload = 1,
     .workers = 2,
     .chunk = 2,
     .plain = true,
     .requests_max = 4,
     .apart = true},
    {.name = "empty",
     .about = "disks of 0 bytes; queues of 1",
     .alignment = 1,
     .depth = 1,
     .workers = 1,
     .chunk = 1,
     .requests_max = 4},
    {.name = "void",
     .about = "disks of 0 bytes, both complete inside submit",
     .alignment = 512,
     .depth = 3,
     .inline_disks = 3,
     .workers = 1,
     .chunk = 1,
     .requests_max = 4},
    {.name = "four",
     .about = "4 whole clusters; queues of 4",
     .bytes = 4 * C,
     .target_bytes = 4 * C,
     .alignment = 1,
     .depth = 4,
     .workers = 1,
     .chunk = 1,
     .requests_max = 4,
     .apart = true},
    {.name = "lanes",
     .about = "3 whole clusters; queues of 3, two lanes",
     .bytes = 3 * C,
     .target_bytes = 3 * C,
     .alignment = 1,
     .depth = 3,
     .lanes = 2,
     .workers = 1,
     .chunk = 1,
     .requests_max = 2,
     .apart = true},
    {.name = "lane",
     .about = "3 whole clusters; queues of 1, two lanes, one request of each at a time",
     .bytes = 3 * C,
     .target_bytes = 3 * C,
     .alignment = 1,
     .depth = 1,
     .lanes = 2,
     .workers = 1,
     .chunk = 1,
     .requests_max = 1,
     .apart = true},
    {.name = "marks",
     .about = "3 whole clusters; queues of 1; a bitmap of the source, in clusters",
     .bytes = 3 * C,
     .target_bytes = 3 * C,
     .alignment = 1,
     .depth = 1,
     .workers = 1,
     .chunk = 1,
     .bitmap = C,
     .requests_max = 4,
     .apart = true},
    {.name = "grains",
     .about = "the last cluster is short and not aligned; queues of 3, alignment 512, pieces of "
              "zeroes; a bitmap of the source, in 512 bytes",
     .bytes = SHORT_BYTES,
     .target_bytes = 3 * C,
     .alignment = 512,
     .depth = 3,
     .workers = 1,
     .chunk = 1,
     .zeroes_max = C,
     .bitmap = 512,
     .requests_max = 4,
     .apart = true},
    {.name = NULL},
};

#define MENU_WIDE                                                                                  \
    "W0 W1 W2 Wh Wu Wf WT Z1 Zu Za D1 Da F Rh Ru S B1 Bh Bz Bd Bf K Kg Kc Kcg start pause resume " \
    "cancel force slow fast free closeS closeT shut"

#define MENU_BITMAP "W1 Wh Wu Za D1 F B1 K freeze abdicate reclaim disable enable clear shut"

#define MENU_GRAINS "W1 Wu Za D1 F B1 freeze abdicate reclaim disable enable clear"

#define MENU_LANES "W1 Wh B1 lW1 lWh lD1 lRh lB1 K Kg cancel shut"

const struct theme themes_short[] = {
    {"wide", MENU_WIDE, 2, 1, 1, 1, NULL},
    {"data", "W0 W1 W2 Wh Wu Za D1 B1 Bh K Kg", 3, 1, 1, 1, NULL},
    {"verbs", "W1 B1 Bz K Kg Kc start pause resume cancel slow fast", 3, 1, 1, 1, NULL},
    {"life", "W1 Rh B1 WT K Kg cancel free closeS closeT shut", 3, 1, 1, 1, NULL},
    {"lanes", MENU_LANES, 3, 1, 1, 1, "lanes"},
    {"lane", MENU_LANES, 3, 1, 1, 1, "lane"},
    {"offload", "W0 W1 Wh B1 K Kg cancel", 3, 1, 1, 1, "offload"},
    {"bitmap", MENU_BITMAP, 3, 1, 1, 1, "marks"},
    {"bitmap", MENU_GRAINS, 3, 1, 1, 1, "grains"},
    {.name = NULL},
};

const struct theme themes_long[] = {
    {"both", "W0 W1 W2 Wh Wu Za D1 B1 Bh K Kg pause resume cancel", 3, 1, 1, 2, NULL},
    {"wide", MENU_WIDE, 3, 1, 1, 1, NULL},
    {"four", "W0 W1 W3 Za B1 K Kg", 4, 1, 0, 1, "four"},
    {.name = NULL},
};

/* ---- Setting a world -------------------------------------------------------------- */

static bool menu_has(const char *menu, const char *name)
{
    size_t bytes = strlen(name);

    for (const char *at = menu; (at = strstr(at, name)) != NULL; at += bytes) {
        if ((at == menu || at[-1] == ' ') && (at[bytes] == ' ' || at[bytes] == '\0')) {
            return true;
        }
    }
    return false;
}

static void add_cell(uint32_t position)
{
    uint32_t at = run.cell_count;

    for (uint32_t i = 0; i < run.cell_count; i++) {
        if (run.cells[i] == position) {
            return;
        }
    }
    EXPECT(at <= CELLS_MAX, "too many cells");
    for (; at > 0 && run.cells[at - 1] > position; at--) {
        run.cells[at] = run.cells[at - 1];
    }
    run.cells[at] = position;
    run.cell_count++;
}

/* A boundary of an operation, as it is and rounded to the disk's alignment. */
static void add_boundary(uint32_t position)
{
    uint32_t align = run.world->alignment;

    if (position < run.world->bytes) {
        add_cell(position);
        add_cell(position / align * align);
        position = (position + align - 1) / align * align;
        add_cell(position < run.world->bytes ? position : run.world->bytes);
    }
}

static void set_cells(void)
{
    const struct world *world = run.world;
    uint32_t fill_end = (world->bytes + world->alignment - 1) / world->alignment * world->alignment;

    run.cell_count = 0;
    for (uint32_t at = 0; at < world->target_bytes; at += CLUSTER_BYTES) {
        add_cell(at);
    }
    add_cell(world->bytes);
    add_cell(fill_end < world->target_bytes ? fill_end : world->target_bytes);
    add_cell(world->target_bytes);
    for (size_t i = 0; i < sizeof ops / sizeof ops[0]; i++) {
        if (ops[i].kind == OP_THROUGH || ops[i].kind == OP_BRACKET) {
            add_boundary(ops[i].start);
            add_boundary(ops[i].end);
        }
    }
    run.cell_count--; /* the last one is the end */
}

/* False if the menu names an operation that there is not. */
bool world_set(const struct world *world, const struct theme *theme)
{
    size_t names = 1;

    run.world = world;
    run.theme = theme;
    run.menu_count = 0;
    for (size_t i = 0; i < sizeof ops / sizeof ops[0]; i++) {
        if (menu_has(theme->menu, ops[i].name)) {
            run.menu[run.menu_count++] = &ops[i];
        }
    }
    for (const char *at = theme->menu; *at != '\0'; at++) {
        names += *at == ' ';
    }
    set_cells();
    return names == run.menu_count;
}

/* ---- Beginning -------------------------------------------------------------------- */

static uint64_t hook_clock(void *user)
{
    (void)user;
    return state.now_ns;
}

static int hook_entropy(void *user, void *out, size_t bytes)
{
    (void)user;
    memset(out, 0x5a, bytes);
    return 0;
}

static void sink_fn(void *user, const blkrepl_event *event)
{
    (void)user;
    EXPECT(run.polling && !state.gone && event->count > 0, "an event outside of a poll");
    if (event->object_kind == BLKREPL_OBJECT_JOB) {
        EXPECT(polls_lane(0), "an event of a job on lane 1");
        job_event(event);
    } else {
        EXPECT(event->type == BLKREPL_EVENT_ROOM && event->object_id < world_lanes() &&
                   (state.room_expected >> event->object_id & 1) != 0 &&
                   polls_lane((uint32_t)event->object_id),
               "a ROOM for nobody");
        state.room_expected &= ~(UINT32_C(1) << event->object_id);
    }
}

static void sink_release(void *user)
{
    (void)user;
    EXPECT(state.sink_releases == 0, "the sink is released twice");
    state.sink_releases++;
}

void world_begin(void)
{
    static const blkrepl_hooks hooks = {
        .struct_size = sizeof hooks, .clock_ns = hook_clock, .entropy = hook_entropy};
    blkrepl_context_options options = {.struct_size = sizeof options,
                                       .lane_count = run.world->lanes,
                                       .requests_max = run.world->requests_max,
                                       .job_requests_max = run.world->workers + 2,
                                       .allocator = &arena_allocator,
                                       .hooks = &hooks,
                                       .on_event = {.fn = sink_fn, .release = sink_release}};
    int answer;

    arena_reset();
    state.now_ns = 1000000000;
    state.deadline_ns = BLKREPL_FOREVER;
    state.quiet = 1;
    state.may_allocate = 1;
    answer = blkrepl_context_create(&options, &state.ctx);
    EXPECT(answer == 0, "context_create answered %d: %s", answer, blkrepl_error_message());
    disk_open(0);
    disk_open(1);
    bitmap_open();
    state.may_allocate = 0;
    for (uint32_t lane = 0; lane < world_lanes(); lane++) {
        run.fds[lane] = blkrepl_poll_fd(state.ctx, lane);
        run.fds_spare[lane] = fcntl(run.fds[lane], F_DUPFD_CLOEXEC, 0);
        EXPECT(run.fds_spare[lane] >= 0, "no file descriptor");
    }
    run.fd_closed = false;
}

/* ---- Ending ----------------------------------------------------------------------- */

uint32_t world_lanes(void)
{
    return run.world->lanes != 0 ? run.world->lanes : 1;
}

bool polls_lane(uint32_t lane)
{
    return run.polling && (run.lane == lane || run.lane == LANES_MAX);
}

void poll_once(uint32_t lane)
{
    int answer;

    run.polling = true;
    run.lane = lane;
    answer = blkrepl_poll(state.ctx, lane, 0);
    run.polling = false;
    EXPECT(answer >= 0, "poll answered %d: %s", answer, blkrepl_error_message());
}

static void check_gone(void)
{
    state.gone = 1;
    run.fd_closed = true;
    EXPECT(state.live_blocks == 0, "%u pieces of memory were not freed", state.live_blocks);
    EXPECT(state.sink_releases == 1, "the sink was not released");
    for (uint32_t i = 0; i < 2; i++) {
        EXPECT(state.disks[i].closed && state.disks[i].released, "disk %u is not closed", i);
        EXPECT(state.disks[i].in_flight == 0, "disk %u has requests in flight", i);
    }
    for (uint32_t i = 0; i < OPS_MAX; i++) {
        const struct request *r = &state.requests[i];

        EXPECT(r->state != REQUEST_PENDING && r->state != REQUEST_GO,
               "the context is gone, operation %u is not", i + 1);
        EXPECT(r->op == NULL || (r->fn_count == 1 && r->release_count == 1),
               "operation %u ended with %u callbacks and %u releases", i + 1, r->fn_count,
               r->release_count);
    }
    for (uint32_t i = 0; i < JOBS_MAX; i++) {
        EXPECT(!state.jobs[i].made || state.jobs[i].release_count == 1, "job %u was not released",
               i + 1);
    }
}

void world_try_free(void)
{
    int answer;

    run.polling = true;
    run.lane = LANES_MAX;
    answer = blkrepl_context_free(state.ctx);
    run.polling = false;
    EXPECT(answer == 0 || answer == -EBUSY, "context_free answered %d", answer);
    TRACE("    context_free answered %d", answer);
    if (answer == 0) {
        check_gone();
    }
}

/* Drop every handle and close the context; what is in flight ends later. */
void world_shut_down(void)
{
    state.shutdown = 1;
    if (!state.fault.seen) {
        state.fault.before_cancel = 0;
    }
    for (uint32_t i = 0; i < JOBS_MAX; i++) {
        if (state.jobs[i].job != NULL) {
            job_drop(&state.jobs[i]);
        }
    }
    bitmap_drop();
    for (uint32_t i = 0; i < 2; i++) {
        blkrepl_image *image = state.disks[i].image;

        state.disks[i].image = NULL;
        blkrepl_image_close(image);
    }
    world_try_free();
}

/* Nothing can happen any more: all must be told, and everything can be freed. */
void world_finish(void)
{
    for (uint32_t i = 0; i < OPS_MAX; i++) {
        EXPECT(state.requests[i].state != REQUEST_PENDING, "operation %u waits for ever", i + 1);
    }
    EXPECT(!state.room_expected, "no ROOM after -EAGAIN");
    jobs_check_end();
    EXPECT(!state.fault.used || state.fault.owner != OWNER_GUEST || state.fault.guest_failures == 1,
           "an error of the guest's was told %u times", state.fault.guest_failures);
    TRACE("the end");
    if (!state.shutdown) {
        world_shut_down();
    }
    for (int i = 0; i < 4 && !state.gone; i++) {
        poll_once((uint32_t)i % world_lanes());
        world_try_free();
    }
    EXPECT(state.gone, "context_free: %s", blkrepl_error_message());
}
