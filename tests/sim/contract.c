/* SPDX-License-Identifier: MIT */
/* contract.c - backends that break backend.h.
 *
 * Short counts, second completions, made-up ids, lists of extents that make no
 * sense, results that are no errno, and nonsense from get_info.  Each of them must
 * get the documented error, or be taken as documented, and harm nobody else: all
 * the other promises are watched as ever. */
#include "sim.h"

#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>

typedef unsigned long long ull;

#define STALE_MAX 64
#define GHOSTS_MAX 4
#define GHOST_BYTES 8192
#define OPCODE(op) (1u << (op))

/* Ids of requests that were completed: some of them long ago. */
static uint64_t stale[STALE_MAX];
static uint32_t stale_count;

/* ---- Results -------------------------------------------------------------------- */

/* Results that are no errno; the library hands them on as they are. */
static const int odd_codes[] = {
    -4095,   -4096,    -5000,  BLKREPL_ERR_STATE, BLKREPL_ERR_VERSION, -12345,
    -100000, -INT_MAX, INT_MIN};

#define ODD_CODES (sizeof odd_codes / sizeof odd_codes[0])

uint32_t contract_code_number(int code)
{
    uint32_t n = 0;

    while (n < ODD_CODES && odd_codes[n] != code) {
        n++;
    }
    return n < ODD_CODES ? n : 31;
}

/* An error that a disk is about to answer, or one that nobody would expect. */
int contract_code(int code)
{
    if (!rng_chance(sim.options.contract_percent)) {
        return code;
    }
    sim.counts.breaches++;
    return rng_chance(20) ? -ECANCELED : odd_codes[rng_below(ODD_CODES)];
}

/* ---- Completions ---------------------------------------------------------------- */

static bool in_flight(uint64_t id)
{
    for (uint32_t i = 0; i < sim.options.disks; i++) {
        for (uint32_t n = 0; n < sim.disks[i].in_flight; n++) {
            if (sim.disks[i].queue[n].id == id) {
                return true;
            }
        }
    }
    return false;
}

/* A request at one of the disks; NULL: there is none. */
static const struct disk_request *any_request(void)
{
    uint32_t from = (uint32_t)rng_below(sim.options.disks);

    for (uint32_t i = 0; i < sim.options.disks; i++) {
        const struct disk *disk = &sim.disks[(from + i) % sim.options.disks];

        if (disk->in_flight > 0) {
            return &disk->queue[rng_below(disk->in_flight)];
        }
    }
    return NULL;
}

/* It stays in flight and is completed properly some time. */
static void short_count(void)
{
    uint64_t count = rng_chance(50) ? 1 : rng_between(1, INT_MAX);
    const struct disk_request *r;

    wrong_call_begin();
    r = any_request();
    if (r != NULL) {
        wrong_call("io_complete with a byte count", -EINVAL,
                   blkrepl_io_complete(sim.ctx, r->id, (int)count));
    }
}

static int any_result(void)
{
    return rng_chance(50) ? 0 : rng_chance(50) ? -EIO : odd_codes[rng_below(ODD_CODES)];
}

static void complete_wrongly(const char *what, uint64_t id)
{
    wrong_call_begin();
    if (!in_flight(id)) {
        wrong_call(what, -ENOENT, blkrepl_io_complete(sim.ctx, id, any_result()));
    }
}

static void second_completion(void)
{
    if (stale_count > 0) {
        complete_wrongly("a second io_complete", stale[rng_below(stale_count)]);
    }
}

/* Snapshots are backends of the library: what is in flight there nobody here knows. */
static bool has_others(void)
{
    for (uint32_t i = 0; i < SNAPSHOTS_MAX; i++) {
        if (sim.snapshots[i].used) {
            return true;
        }
    }
    return false;
}

/* An id that was never issued, or will be. */
static void made_up(void)
{
    const struct disk_request *r = any_request();
    uint64_t near = r != NULL ? r->id : stale_count > 0 ? stale[0] : 1;
    uint64_t id = rng_next();

    switch (rng_below(6)) {
    case 0: id = 0; break;
    case 1: id = near + (UINT64_C(1) << 24); break; /* the slot, used once more */
    case 2: id = near + 1; break;
    case 3: id = near | UINT64_C(0xffffff); break;
    case 4: id = UINT64_MAX - rng_below(2); break;
    default: break;
    }
    if (!has_others()) {
        complete_wrongly("io_complete with a made-up id", id);
    }
}

/* A disk has completed a request: sometimes twice, sometimes again later. */
void contract_completed(uint64_t id)
{
    if (sim.options.contract_percent == 0) {
        return;
    }
    if (rng_chance(sim.options.contract_percent)) {
        sim.counts.breaches++;
        complete_wrongly("a second io_complete", id);
    }
    if (stale_count < STALE_MAX) {
        stale[stale_count++] = id;
    } else if (rng_chance(30)) {
        stale[rng_below(STALE_MAX)] = id;
    }
}

/* ---- Lists of extents ----------------------------------------------------------- */

/* What it says about zeroes is never true on purpose. */
static void nonsense(const struct disk_request *r, uint64_t kind)
{
    blkrepl_extent *list = r->io->extents;
    uint32_t zero = BLKREPL_EXTENT_ZERO;

    list[0] = (blkrepl_extent){.bytes = r->bytes, .flags = zero};
    if (kind == 0) {
        list[0].bytes = 0;
    } else if (kind == 1) {
        list[0].bytes += rng_chance(50) ? 1 : rng_below(UINT64_MAX - r->bytes) + 1;
    } else if (kind == 2) {
        list[0].flags |= rng_chance(50) ? 8 : UINT32_C(1) << rng_between(4, 31);
    }
    if (r->io->extents_max > 1 && (kind == 0 || kind == 3)) {
        list[1] = (blkrepl_extent){.flags = zero};
        list[1].bytes = kind == 0        ? r->bytes
                        : rng_chance(50) ? 1
                                         : UINT64_MAX - rng_below(r->bytes);
    } else if (kind == 3) {
        list[0].bytes = UINT64_MAX;
    }
}

/* Answer a STATUS with nonsense; false: not this time. */
bool contract_status(struct disk *disk, const struct disk_request *r)
{
    uint64_t kind;

    if (!rng_chance(sim.options.contract_percent)) {
        return false;
    }
    sim.counts.breaches++;
    kind = rng_below(4);
    EVENT("extents of id %n: nonsense of kind %n", r->id, kind);
    nonsense(r, kind);
    disk->error_codes[0] |= UINT64_C(1) << EIO; /* what a guest is told */
    return true;
}

/* Flags that contradict each other, or are missing: only ZERO says anything. */
void contract_flags(blkrepl_extent *extents, uint32_t count)
{
    for (uint32_t i = 0; i < count && rng_chance(sim.options.contract_percent); i++) {
        extents[i].flags &= BLKREPL_EXTENT_ZERO;
        extents[i].flags |= rng_chance(50) ? BLKREPL_EXTENT_DATA : 0;
        extents[i].flags |= rng_chance(50) ? BLKREPL_EXTENT_ALLOCATED : 0;
    }
}

/* ---- Opening with nonsense ------------------------------------------------------ */

/* A backend that reads as zero, takes everything, and may be beyond all limits. */
struct ghost {
    blkrepl_backend_info info;
    int answer; /* of get_info */
    blkrepl_image *image;
    bool opened;
    bool closed;
    bool released;
};

static struct ghost ghosts[GHOSTS_MAX];
static uint32_t ghost_count;
static uint8_t ghost_memory[GHOST_BYTES];
static uint32_t ghost_lanes[LANES_MAX] = {0, 1, 2, 3, 4};
static blkrepl_iovec ghost_iovs[GHOST_BYTES + 1]; /* by length                    */

static int ghost_get_info(void *user, blkrepl_backend_info *info)
{
    struct ghost *ghost = user;
    uint32_t struct_size = info->struct_size;

    *info = ghost->info;
    info->struct_size = struct_size;
    return ghost->answer;
}

static void ghost_submit(void *user, uint32_t lane, blkrepl_io *const *ios, uint32_t count)
{
    const struct ghost *ghost = user;

    EXPECT((lane == 0 || sim.entry.kind == DOING_FREE || sim.entry.lane == lane) && ghost->opened &&
               !ghost->closed,
           "a submit to a ghost, of lane %u", lane);
    for (uint32_t i = 0; i < count; i++) {
        const blkrepl_io *io = ios[i];

        EXPECT(io->lane == lane, "a request of lane %u to a ghost", io->lane);
        EXPECT(io->opcode <= BLKREPL_OP_STATUS && (ghost->info.opcodes & OPCODE(io->opcode)) != 0,
               "opcode %u was not declared", io->opcode);
        EXPECT(io->offset <= ghost->info.bytes && io->bytes <= ghost->info.bytes - io->offset,
               "%llu+%llu is outside of a disk of %llu bytes", (ull)io->offset, (ull)io->bytes,
               (ull)ghost->info.bytes);
        for (uint32_t n = 0; io->opcode == BLKREPL_OP_READ && n < io->iov_count; n++) {
            memset(io->iov[n].base, 0, io->iov[n].len);
        }
        if (io->opcode == BLKREPL_OP_STATUS) {
            io->extents[0] = (blkrepl_extent){.bytes = io->bytes, .flags = BLKREPL_EXTENT_ZERO};
        }
        blkrepl_io_complete(sim.ctx, io->id, 0);
    }
}

static void ghost_close(void *user)
{
    struct ghost *ghost = user;

    EXPECT(ghost->opened && !ghost->closed && ghost->image == NULL, "a wrong close of a ghost");
    lanes_close();
    ghost->closed = true;
}

static void ghost_release(void *user)
{
    struct ghost *ghost = user;

    EXPECT(!ghost->released, "a ghost is released twice");
    ghost->released = true;
}

static void ghost_done(void *user, int result)
{
    const uint32_t *lane = user;

    EXPECT(sim.depth > 0 && !sim.gone && lanes_in_poll(*lane), "a wrong completion of a ghost");
    EXPECT(result == 0, "a request to a ghost ended with %d", result);
    sim.callbacks++;
    sim.pending--;
    sim.lane_pending[*lane]--;
    sim.ghosts_pending[*lane]--;
}

static bool is_unit(uint32_t value, uint32_t most)
{
    return (value & (value - 1)) == 0 && value <= most;
}

/* Is that what backend.h allows? */
static bool info_is_sane(const blkrepl_backend_info *info)
{
    uint32_t needed = OPCODE(BLKREPL_OP_READ);

    needed |= (info->flags & BLKREPL_BACKEND_READ_ONLY) != 0 ? 0 : OPCODE(BLKREPL_OP_WRITE);
    return (info->flags & ~3u) == 0 && info->bytes <= BLKREPL_IMAGE_BYTES_MAX &&
           (info->opcodes & needed) == needed && is_unit(info->request_alignment, 65536) &&
           is_unit(info->memory_alignment, 4096) && is_unit(info->cluster_bytes, 1u << 24);
}

/* Limits that leave no room for one block: what then is not said. */
static bool info_is_narrow(const blkrepl_backend_info *info)
{
    uint64_t unit = info->request_alignment > info->memory_alignment ? info->request_alignment
                                                                     : info->memory_alignment;

    return (info->transfer_bytes_max != 0 && info->transfer_bytes_max < unit) ||
           (info->zeroes_bytes_max != 0 && info->zeroes_bytes_max < unit);
}

static uint64_t draw_extreme(uint64_t most)
{
    static const uint64_t marks[] = {
        0, 1, 512, 65536, UINT64_C(1) << 31, UINT64_C(1) << 32, UINT64_C(1) << 63, UINT64_MAX};
    uint64_t value = marks[rng_below(8)];

    value += rng_chance(30) ? UINT64_MAX : rng_chance(40) ? 1 : 0;
    return most == UINT64_MAX ? value : value % (most + 1);
}

/* Some fields of a good answer made extreme. */
static void draw_ghost(struct ghost *ghost)
{
    blkrepl_backend_info *info = &ghost->info;
    uint32_t *fields[] = {&info->queue_depth,   &info->request_alignment, &info->memory_alignment,
                          &info->iov_count_max, &info->cluster_bytes,     &info->flags};

    memset(ghost, 0, sizeof *ghost);
    info->opcodes = rng_chance(80) ? 0x7e : (uint32_t)rng_next();
    info->bytes =
        rng_chance(30) ? BLKREPL_IMAGE_BYTES_MAX - rng_below(3) : draw_extreme(UINT64_MAX);
    info->transfer_bytes_max = rng_chance(70) ? 0 : draw_extreme(UINT64_MAX);
    info->zeroes_bytes_max = rng_chance(70) ? 0 : draw_extreme(UINT64_MAX);
    for (uint32_t i = 0; i < 6; i++) {
        if (rng_chance(15)) {
            *fields[i] = (uint32_t)draw_extreme(UINT32_MAX);
        } else if (rng_chance(20) && i < 5) {
            *fields[i] = UINT32_C(1) << rng_below(12);
        }
    }
    if (rng_chance(8)) {
        ghost->answer = rng_chance(50) ? -EIO : odd_codes[rng_below(ODD_CODES)];
    }
}

static void check_opened(struct ghost *ghost, int answer)
{
    const blkrepl_backend_info *drawn = &ghost->info;
    blkrepl_image_info info = {.struct_size = sizeof info};
    int good = blkrepl_image_query(ghost->image, &info);

    EXPECT(answer == 0 && good == 0, "open answered %d, query %d", answer, good);
    EXPECT(info.bytes == drawn->bytes && is_unit(info.request_alignment, 65536) &&
               info.request_alignment > 0 && info.request_alignment >= drawn->request_alignment &&
               info.memory_alignment > 0 && info.memory_alignment >= drawn->memory_alignment &&
               info.cluster_bytes == drawn->cluster_bytes && info.requests_in_flight == 0 &&
               ((info.flags & BLKREPL_IMAGE_READ_ONLY) != 0) ==
                   ((drawn->flags & BLKREPL_BACKEND_READ_ONLY) != 0),
           "the query of a ghost does not tell what it is");
}

/* So that a request does not go byte by byte for ever. */
static uint64_t most_bytes(const blkrepl_backend_info *info)
{
    uint64_t transfer = info->transfer_bytes_max - 1; /* no limit is the largest one */
    uint64_t zeroes = info->zeroes_bytes_max - 1;
    uint64_t least = transfer < zeroes ? transfer : zeroes;

    return least < GHOST_BYTES / 16 ? 16 * (least + 1) : GHOST_BYTES;
}

/* A request at the far end, where numbers are large. */
static void ghost_request(struct ghost *ghost)
{
    uint32_t lane = lanes_draw();
    blkrepl_completion done = {.fn = ghost_done, .user = &ghost_lanes[lane]};
    struct being outer;
    uint64_t bytes = rng_below(GHOST_BYTES + 1);
    uint64_t offset = ghost->info.bytes;
    blkrepl_iovec *iov;
    int answer;

    bytes = bytes < offset ? bytes : offset;
    bytes = bytes < most_bytes(&ghost->info) ? bytes : most_bytes(&ghost->info);
    iov = &ghost_iovs[bytes];
    *iov = (blkrepl_iovec){.base = ghost_memory, .len = bytes};
    offset -= bytes;
    offset -= rng_chance(50) && offset > 0 ? rng_below(offset < 9000 ? offset : 9000) : 0;
    sim.pending++;
    sim.lane_pending[lane]++;
    sim.ghosts_pending[lane]++;
    outer = lanes_enter(DOING_CALL, lane);
    switch (rng_below(4)) {
    case 0: answer = blkrepl_image_write(ghost->image, lane, offset, iov, 1, 0, &done); break;
    case 1: answer = blkrepl_image_write_zeroes(ghost->image, lane, offset, bytes, 0, &done); break;
    case 2: answer = blkrepl_image_discard(ghost->image, lane, offset, bytes, 0, &done); break;
    default: answer = blkrepl_image_read(ghost->image, lane, offset, iov, 1, 0, &done); break;
    }
    sim.entry = outer;
    EVENT("a ghost gets %n+%n: %r", offset, bytes, NEGATED(answer));
    sim.pending -= answer < 0;
    sim.lane_pending[lane] -= answer < 0;
    sim.ghosts_pending[lane] -= answer < 0;
    sim.room_expected[lane] = sim.room_expected[lane] || answer == -EAGAIN;
    EXPECT(answer == 0 || answer == -EAGAIN || (answer == -ESHUTDOWN && sim.shutdown) ||
               (answer == -EROFS && (ghost->info.flags & BLKREPL_BACKEND_READ_ONLY) != 0),
           "%llu+%llu of a ghost answered %d: %s", (ull)offset, (ull)bytes, answer,
           blkrepl_error_message());
}

static int ghost_open(struct ghost *ghost)
{
    blkrepl_backend_ops ops = {.struct_size = sizeof ops,
                               .get_info = ghost_get_info,
                               .submit = ghost_submit,
                               .close = ghost_close};
    blkrepl_image_options options = {
        .struct_size = sizeof options, .user = ghost, .release = ghost_release};
    bool may_allocate = sim.may_allocate;
    bool failed = sim.alloc_failed;
    int answer;

    sim.may_allocate = true;
    sim.alloc_failed = false;
    ghost->opened = true;
    inside_calls(CALL_OPEN);
    wrong_call_begin();
    answer = blkrepl_image_open(sim.ctx, &ops, ghost, &options, &ghost->image);
    if (answer < 0) {
        int code = ghost->answer < 0 ? ghost->answer : -EINVAL;

        ghost->opened = false;
        code = answer == -ENOMEM && sim.alloc_failed ? -ENOMEM : code;
        wrong_call("open", sim.shutdown && answer == -ESHUTDOWN ? -ESHUTDOWN : code, answer);
    }
    sim.may_allocate = may_allocate;
    sim.alloc_failed = sim.alloc_failed || failed;
    return answer;
}

/* Open an image over a backend that tells nonsense, use it a little, close it. */
static void contract_ghost(void)
{
    struct ghost *ghost = &ghosts[ghost_count];
    struct being outer;
    blkrepl_image *image;
    bool sane;
    int answer;

    if (ghost_count == GHOSTS_MAX || sim.quiet) {
        return;
    }
    draw_ghost(ghost);
    sane = ghost->answer == 0 && info_is_sane(&ghost->info);
    ghost_count++; /* what it calls may open another one */
    answer = ghost_open(ghost);
    sim.counts.ghosts++;
    EVENT("a ghost of %n bytes is opened: %r", ghost->info.bytes, NEGATED(answer));
    EXPECT(answer == 0 || (ghost->image == NULL && ghost->released),
           "a failed open leaves something behind");
    if (answer < 0) {
        EXPECT(!sane || info_is_narrow(&ghost->info) || answer != -EINVAL,
               "a good backend was refused: %s", blkrepl_error_message());
        return;
    }
    EXPECT(sane, "nonsense was accepted");
    check_opened(ghost, answer);
    for (uint64_t i = rng_below(4); i > 0; i--) {
        ghost_request(ghost);
    }
    image = ghost->image;
    ghost->image = NULL;
    outer = lanes_enter(DOING_CLOSE, 0);
    blkrepl_image_close(image);
    sim.entry = outer;
}

/* ---- The part ------------------------------------------------------------------- */

static void contract_act(void)
{
    static void (*const acts[])(void) = {short_count, second_completion, made_up};

    sim.counts.breaches++;
    if (rng_chance(10)) {
        contract_ghost();
    } else {
        acts[rng_below(3)]();
    }
}

/* From inside a backend, which may complete what belongs to another one. */
void contract_inside(void)
{
    struct being outer;

    if (sim.quiet || !rng_chance(sim.options.contract_percent)) {
        return;
    }
    outer = lanes_enter(DOING_HOST, 0);
    if (rng_chance(30)) {
        disk_progress(&sim.disks[rng_below(sim.options.disks)]);
    } else {
        contract_act();
    }
    sim.entry = outer;
}

static void contract_draw(void)
{
    struct sim_options *o = &sim.options;

    o->contract_percent = rng_chance(95) ? 0 : (uint32_t)rng_between(2, 50);
    o->contract_percent *= !sim_without(FAULT_CONTRACT);
    sim_actor(o->contract_percent > 0 ? (uint32_t)rng_between(1, 15) : 0, false, contract_act);
    stale_count = 0;
    ghost_count = 0;
}

static void contract_open(void)
{
    stale_count = 0;
    ghost_count = 0;
}

static void contract_end(void)
{
    for (uint32_t i = 0; i < ghost_count; i++) {
        EXPECT(ghosts[i].closed == ghosts[i].opened && ghosts[i].released, "ghost %u is not closed",
               i);
    }
}

static void contract_list(void)
{
    if (sim.options.contract_percent > 0) {
        printf("contract: broken %u%%\n", sim.options.contract_percent);
    }
}

const struct part contract_part = {
    .draw = contract_draw, .open = contract_open, .end = contract_end, .list = contract_list};
