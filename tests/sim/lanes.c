/* SPDX-License-Identifier: MIT */
/* lanes.c - the lanes of the context: who polls which, and what belongs to one.
 *
 * Every request of the guest draws its lane, every poll too.  In some runs one
 * lane is not polled before the wind-up: its callbacks then do not come, and the
 * writes that wait for a bracket whose GO is among them; everything else must go
 * on as ever.  In some, the host of the last phases sleeps on the descriptors: it
 * polls a lane only when it is told to.
 *
 * The innermost call of the library that we know of tells what it may do: who it
 * gives requests to, on which lane, and what it may call. */
#include "sim.h"

#include <poll.h>
#include <stdio.h>

typedef unsigned long long ull;

/* ---- The innermost call ----------------------------------------------------------- */

/* The library is about to be called, or calls the host.  The answer is put back into
 * sim.entry when that is over. */
struct being lanes_enter(enum doing kind, uint32_t lane)
{
    struct being outer = sim.entry;

    sim.entry = (struct being){.kind = kind, .lane = lane};
    return outer;
}

/* Are we in a poll of this lane, or in a free, which polls all of them? */
bool lanes_in_poll(uint32_t lane)
{
    return sim.polled == lane || sim.freeing;
}

/* The library closes a backend: in a call about images, a poll of lane 0, a free. */
void lanes_close(void)
{
    EXPECT(sim.entry.kind == DOING_CLOSE || sim.entry.kind == DOING_FREE ||
               (sim.entry.kind == DOING_POLL && sim.entry.lane == 0),
           "close inside a call of kind %d, lane %u", (int)sim.entry.kind, sim.entry.lane);
}

/* ---- Submits ---------------------------------------------------------------------- */

/* May a job look at old data for a write of this lane, which may have been given up? */
static bool has_read(const struct disk *disk, uint32_t lane)
{
    bool job = false;

    for (uint32_t i = 0; i < sim.backup_count; i++) {
        const struct backup *b = &sim.backups[i];

        job = job || (b->started && (b->source == disk || (job_is_verify(b) && b->target == disk)));
    }
    for (uint32_t i = 0; job && i < sim.request_count; i++) {
        const struct request *r = &sim.requests[i];

        if (r->disk == disk && r->lane == lane && r->accepted && is_write(r->op)) {
            return true;
        }
    }
    return false;
}

/* May it need this disk though it goes to another one?  A snapshot is read from the
 * disks of its job; a write may have old data spilled. */
static bool serves(const struct request *r, const struct disk *disk)
{
    const struct backup *user = disk_is_source(disk) ? NULL : oracle_user_of(disk);

    if (r->snapshot != NULL) {
        return r->snapshot->of->source == disk || r->snapshot->of->target == disk;
    }
    return user != NULL && user->spill == disk && user->source == r->disk;
}

/* Has the guest a request on this lane that a submit to the disk may be for? */
static bool has_request(const struct disk *disk, uint32_t lane)
{
    for (uint32_t i = 0; i < sim.active_count; i++) {
        const struct request *r = &sim.requests[sim.active[i]];

        if (r->lane == lane && (r->disk == disk || serves(r, disk))) {
            return true;
        }
    }
    return false;
}

/* A verify job reads both images on the lane of who waits for one of them; a snapshot on
 * that of its reader, who may have been told meanwhile. */
static bool is_read(const struct disk *disk, uint32_t lane)
{
    bool compared = false;

    for (uint32_t i = 0; i < sim.backup_count; i++) {
        const struct backup *b = &sim.backups[i];

        compared = compared ||
                   (job_is_verify(b) && b->started && (b->source == disk || b->target == disk));
    }
    for (uint32_t i = 0; i < sim.request_count; i++) {
        const struct request *r = &sim.requests[i];

        if (r->lane == lane &&
            ((compared && is_write(r->op)) || (r->snapshot != NULL && serves(r, disk)))) {
            return true;
        }
    }
    return false;
}

static void check_lane(const struct disk *disk, const blkrepl_io *io, uint32_t lane)
{
    EXPECT(io->lane == lane, "a request of lane %u in a submit of lane %u", io->lane, lane);
    EXPECT(lane == 0 || has_request(disk, lane) ||
               (!is_write(io->opcode) && (has_read(disk, lane) || is_read(disk, lane))),
           "%llu+%llu on lane %u, where the guest has nothing", (ull)io->offset, (ull)io->bytes,
           lane);
    if ((io->flags & BLKREPL_IO_BACKGROUND) != 0) {
        lanes_job_submit(io->lane);
    }
}

/* A disk is about to get requests.  Those of a lane are given to it by the calls of
 * that lane; one submit of a list at a time, of which lane 0 has two. */
void lanes_submit(struct disk *disk, uint32_t lane, blkrepl_io *const *ios, uint32_t count)
{
    EXPECT(lane < sim.options.context.lane_count && count > 0, "submit: lane %u count %u", lane,
           count);
    EXPECT(lane == 0 || sim.entry.kind == DOING_FREE ||
               (sim.entry.kind != DOING_HOST && sim.entry.lane == lane),
           "submit of lane %u inside a call of kind %d, lane %u", lane, (int)sim.entry.kind,
           sim.entry.lane);
    EXPECT(disk->submitting[lane] < (lane == 0 ? 2 : 1), "disk %u: submit inside submit",
           disk->index);
    for (uint32_t i = 0; i < count; i++) {
        check_lane(disk, ios[i], lane);
    }
    disk->submitting[lane]++;
}

void lanes_submitted(struct disk *disk, uint32_t lane)
{
    disk->submitting[lane]--;
}

/* It is a job's, and no guest waits for it, or it goes to a target: a queue thread
 * never does that. */
void lanes_job_submit(uint32_t lane)
{
    EXPECT(lane == 0 && (sim.entry.kind == DOING_FREE ||
                         (sim.entry.kind == DOING_POLL && sim.entry.lane == 0)),
           "a job's request on lane %u, inside a call of kind %d, lane %u", lane,
           (int)sim.entry.kind, sim.entry.lane);
}

/* This write is surely the request's.  It is on its lane, or on lane 0, when others
 * wait for it; nobody waits for one that is alone. */
void lanes_owner(const struct request *r, uint32_t lane)
{
    EXPECT(lane == 0 || r->lane == lane, "request %d of lane %u goes out with lane %u",
           (int)(r - sim.requests), r->lane, lane);
    EXPECT(lane == r->lane || !r->alone || r + 1 < sim.requests + sim.request_count ||
               sim.backup_count > 0 || sim.options.throttle_percent > 0,
           "request %d of lane %u, alone, goes out with lane %u", (int)(r - sim.requests), r->lane,
           lane);
    sim.counts.hastened += lane != r->lane;
}

/* ---- Polls ------------------------------------------------------------------------ */

/* The lane of the next request. */
uint32_t lanes_draw(void)
{
    return (uint32_t)rng_below(60) % sim.options.context.lane_count;
}

/* One that is polled. */
uint32_t lanes_draw_polled(void)
{
    uint32_t lane = lanes_draw();

    return lane == sim.unpolled ? 0 : lane;
}

int lanes_poll(uint32_t lane)
{
    struct being outer = lanes_enter(DOING_POLL, lane);
    int answer;

    sim.callbacks = 0;
    sim.polled = lane;
    sim.depth++;
    answer = blkrepl_poll(sim.ctx, lane, 0);
    sim.depth--;
    sim.polled = LANE_NONE;
    sim.entry = outer;
    EVENT("poll: %n, of lane %n", (ull)(uint32_t)answer, lane);
    EXPECT(answer >= 0 && (uint32_t)answer >= sim.callbacks, "poll answered %d, %u callbacks",
           answer, sim.callbacks);
    EXPECT(sim.options.context.callbacks_max == 0 ||
               sim.callbacks <= sim.options.context.callbacks_max,
           "%u callbacks in one poll", sim.callbacks);
    return answer;
}

static bool is_readable(uint32_t lane)
{
    struct pollfd fd = {.fd = blkrepl_poll_fd(sim.ctx, lane), .events = POLLIN};

    EXPECT(fd.fd >= 0, "lane %u has no descriptor", lane);
    return poll(&fd, 1, 0) == 1;
}

/* Poll it, unless it sleeps and nobody has woken it; then sleep if it may. */
static int poll_or_sleep(uint32_t lane)
{
    uint64_t *until = &sim.sleeps_until[lane];
    int ran;

    if (sim.asleep[lane] && sim.now_ns < *until && !is_readable(lane)) {
        sim.counts.sleeps++;
        return 0;
    }
    ran = lanes_poll(lane);
    sim.asleep[lane] = sim.sleepy && blkrepl_poll_arm(sim.ctx, lane, until) == 0;
    return ran;
}

/* Poll every lane that is polled; the number of callbacks. */
int lanes_poll_all(void)
{
    uint32_t from = lanes_draw();
    int ran = 0;

    for (uint32_t i = 0; i < sim.options.context.lane_count; i++) {
        uint32_t lane = (from + i) % sim.options.context.lane_count;

        if (lane != sim.unpolled) {
            ran += poll_or_sleep(lane);
        }
    }
    return ran;
}

/* All polls have come to nothing: when is the next deadline?  0: there is work now. */
uint64_t lanes_deadline(void)
{
    uint64_t next = BLKREPL_FOREVER;

    for (uint32_t lane = 0; lane < sim.options.context.lane_count; lane++) {
        uint64_t deadline = 0;
        int answer = 0;

        if (lane == sim.unpolled) {
            continue;
        }
        if (sim.asleep[lane]) {
            answer = is_readable(lane);
            deadline = sim.sleeps_until[lane];
        } else {
            answer = blkrepl_poll_arm(sim.ctx, lane, &deadline);
        }
        EXPECT(answer == 0 || answer == 1, "poll_arm answered %d", answer);
        if (answer == 1) {
            return 0;
        }
        next = deadline < next ? deadline : next;
    }
    return next;
}

/* From now on the host sleeps when it is told that it may; or it does not. */
void lanes_sleep(bool sleepy)
{
    sim.sleepy = sleepy;
    for (uint32_t lane = 0; lane < LANES_MAX; lane++) {
        sim.asleep[lane] = false;
    }
}

/* ---- The lane that nobody polls ------------------------------------------------------ */

static bool overlap_in_blocks(const struct request *a, const struct request *b)
{
    uint64_t align = a->disk->align;
    uint64_t a_from = a->offset / align * align;
    uint64_t b_from = b->offset / align * align;
    uint64_t a_end = (a->offset + a->bytes + align - 1) / align * align;
    uint64_t b_end = (b->offset + b->bytes + align - 1) / align * align;

    return a->disk == b->disk && a->bytes > 0 && b->bytes > 0 &&
           overlaps(a_from, a_end - a_from, b_from, b_end - b_from);
}

/* Does it wait for this earlier bracket, whose host has not been told its GO? */
static bool waits_for(const struct request *r, const struct request *earlier)
{
    bool told = earlier->lane != sim.unpolled || !earlier->bracket ||
                earlier->state == REQUEST_GO || earlier->cancelled || earlier->doomed;

    return is_write(r->op) && is_write(earlier->op) && earlier->accepted &&
           earlier->accept_seq < r->accept_seq && (!told || earlier->held_up) &&
           overlap_in_blocks(r, earlier);
}

/* Mark the requests that wait for a bracket of the unpolled lane, one behind the
 * other. */
static void mark_held_up(void)
{
    bool found = true;

    for (uint32_t i = 0; i < sim.active_count; i++) {
        sim.requests[sim.active[i]].held_up = false;
    }
    while (found) {
        found = false;
        for (uint32_t i = 0; i < sim.active_count; i++) {
            struct request *r = &sim.requests[sim.active[i]];

            for (uint32_t n = 0; !r->held_up && n < sim.active_count; n++) {
                r->held_up = waits_for(r, &sim.requests[sim.active[n]]);
                found = found || r->held_up;
            }
        }
    }
}

static bool may_wait(const struct request *r)
{
    return r->lane == sim.unpolled || r->held_up;
}

/* How many requests have to end though a lane is not polled; of sources only, or of
 * all disks. */
uint32_t lanes_must_end(bool sources)
{
    uint32_t count = sources ? 0 : sim.pending - sim.active_count; /* those of ghosts */

    if (sim.unpolled != LANE_NONE) {
        count -= sources ? 0 : sim.ghosts_pending[sim.unpolled];
        mark_held_up();
    }
    for (uint32_t i = 0; i < sim.active_count; i++) {
        const struct request *r = &sim.requests[sim.active[i]];

        count +=
            (sim.unpolled == LANE_NONE || !may_wait(r)) && (!sources || disk_is_source(r->disk));
    }
    return count;
}

/* Is a ROOM owed?  Not where nobody polls, nor as long as nothing of the lane ends. */
static bool room_is_owed(uint32_t lane)
{
    uint32_t held_up = 0;

    if (!sim.room_expected[lane] || lane == sim.unpolled) {
        return false;
    }
    for (uint32_t i = 0; sim.unpolled != LANE_NONE && i < sim.active_count; i++) {
        const struct request *r = &sim.requests[sim.active[i]];

        held_up += r->lane == lane && r->held_up;
    }
    return held_up < sim.options.context.requests_max;
}

static bool lanes_unfinished(void)
{
    uint32_t lane = 0;

    if (sim.unpolled != LANE_NONE) {
        mark_held_up();
    }
    while (lane < sim.options.context.lane_count && !room_is_owed(lane)) {
        lane++;
    }
    return lane < sim.options.context.lane_count;
}

/* ---- The part ------------------------------------------------------------------------ */

static void poll_act(void)
{
    lanes_poll(lanes_draw_polled());
}

static void lanes_part_draw(void)
{
    struct sim_options *o = &sim.options;
    uint32_t count = rng_chance(40) ? 1 : (uint32_t)rng_between(2, LANES_MAX);
    uint32_t unpolled = rng_chance(35) ? 1 + (uint32_t)rng_below(60) % (LANES_MAX - 1) : LANE_NONE;

    o->sleepy = rng_chance(unpolled < count ? 60 : 25) && !sim_without(FAULT_SLEEP);
    o->context.lane_count = sim_without(FAULT_LANES) ? 1 : count;
    sim.unpolled =
        unpolled < o->context.lane_count && !sim_without(FAULT_UNPOLLED) ? unpolled : LANE_NONE;
    sim.polled = LANE_NONE;
    sim.counts.lanes += o->context.lane_count > 1;
    sim.counts.unpolled += sim.unpolled != LANE_NONE;
    sim_actor((uint32_t)rng_between(2, 30), true, poll_act);
}

/* The first time, or again, with a new context. */
static void lanes_part_open(void)
{
    for (uint32_t lane = 0; lane < LANES_MAX; lane++) {
        sim.room_expected[lane] = false;
    }
    lanes_sleep(false);
}

static void lanes_list(void)
{
    printf("lanes: %u, not polled: %d, sleepy %d\n", sim.options.context.lane_count,
           sim.unpolled == LANE_NONE ? -1 : (int)sim.unpolled, sim.options.sleepy);
}

const struct part lanes_part = {.draw = lanes_part_draw,
                                .open = lanes_part_open,
                                .unfinished = lanes_unfinished,
                                .list = lanes_list};
