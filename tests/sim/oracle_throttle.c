/* SPDX-License-Identifier: MIT */
/* oracle_throttle.c - a throttle lets through no more than it says, over any window that
 * is looked at: the rate, the burst once, and one request that was larger than that.
 *
 * A window begins when the limits change, and at random.  What jobs do for guests is
 * never delayed; a throttle of a job whose source was written to is not judged. */
#include "sim.h"

#include <string.h>

typedef unsigned long long ull;

static ull number(const struct throttle *throttle)
{
    return (ull)(throttle - sim.throttles);
}

static bool is_forced(const struct throttle *t)
{
    for (uint32_t i = 0; i < sim.backup_count; i++) {
        if (sim.backups[i].throttle == t && sim.backups[i].touched_count > 0) {
            return true;
        }
    }
    return false;
}

/* The largest request or copy there can be. */
static uint64_t largest(const struct throttle *t)
{
    uint64_t most = 150000 + 8192;

    for (uint32_t i = 0; i < sim.backup_count; i++) {
        const struct backup *b = &sim.backups[i];
        uint64_t chunk = job_is_verify(b) ? b->verify.chunk_bytes_max : b->options.chunk_bytes_max;

        if (b->throttle == t) {
            chunk = chunk < 262144 ? 262144 : chunk;
            chunk = chunk < b->source->bytes ? chunk : b->source->bytes;
            most = chunk > most ? chunk : most;
        }
    }
    return most;
}

static uint64_t allowed(uint64_t rate, uint64_t burst, uint64_t ns, uint64_t one)
{
    uint64_t seconds = ns / SECOND_NS;
    uint64_t rest = ns % SECOND_NS;

    burst = burst == 0 ? rate / 10 + 1 : burst;
    return rate * seconds + rate * rest / SECOND_NS + 1 + burst + one;
}

static void check_told(const struct throttle *t, const blkrepl_throttle_info *info)
{
    EXPECT(info->bytes >= t->told.bytes && info->ops >= t->told.ops &&
               info->delayed_ops >= t->told.delayed_ops && info->delayed_ops <= info->ops,
           "throttle %llu: a counter has become smaller", number(t));
    EXPECT(info->bytes_per_sec == t->limits.bytes_per_sec &&
               info->ops_per_sec == t->limits.ops_per_sec,
           "throttle %llu tells other limits", number(t));
}

/* A window begins when nothing is let through that was due before it: the call that looks
 * comes late itself, and lets it through on its way out. */
static void begin_window(struct throttle *t, uint64_t ops)
{
    blkrepl_throttle_info info = {.struct_size = sizeof info};
    uint64_t seq = sim.seq;

    t->changed = true;
    if (blkrepl_throttle_query(t->throttle, &info) == 0 && sim.seq == seq && info.ops == ops) {
        t->changed = false;
        t->window_ns = sim.now_ns;
        t->window_bytes = info.bytes;
        t->window_ops = info.ops;
    }
}

void oracle_throttle_look(struct throttle *t)
{
    blkrepl_throttle_info info = {.struct_size = sizeof info};
    uint64_t seq = sim.seq;
    uint64_t ns;
    int answer;

    inside_calls(CALL_THROTTLE_QUERY);
    answer = blkrepl_throttle_query(t->throttle, &info);
    EXPECT(answer == 0, "throttle_query answered %d", answer);
    if (sim.seq != seq) {
        return;
    }
    check_told(t, &info);
    sim.counts.delayed += info.delayed_ops - t->told.delayed_ops;
    t->told = info;
    ns = sim.now_ns - t->window_ns;
    if (t->changed || is_forced(t) || sim.shutdown || sim.options.clock_jumps ||
        ns > 1000 * SECOND_NS || rng_aside(20) == 0) {
        begin_window(t, info.ops);
        return;
    }
    EXPECT(t->limits.bytes_per_sec == 0 ||
               info.bytes - t->window_bytes <=
                   allowed(t->limits.bytes_per_sec, t->limits.burst_bytes, ns, largest(t)),
           "throttle %llu has let %llu bytes through in %llu ns, at %llu bytes/s, burst %llu",
           number(t), (ull)(info.bytes - t->window_bytes), (ull)ns, (ull)t->limits.bytes_per_sec,
           (ull)t->limits.burst_bytes);
    EXPECT(t->limits.ops_per_sec == 0 ||
               info.ops - t->window_ops <=
                   allowed(t->limits.ops_per_sec, t->limits.burst_ops, ns, 1),
           "throttle %llu has let %llu operations through in %llu ns, at %llu/s, burst %llu",
           number(t), (ull)(info.ops - t->window_ops), (ull)ns, (ull)t->limits.ops_per_sec,
           (ull)t->limits.burst_ops);
}
