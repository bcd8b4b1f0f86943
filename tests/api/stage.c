/* SPDX-License-Identifier: MIT */
#include "stage.h"

#define GUEST_BYTES_MAX (4 * MIB)

/* ---- Disks ---------------------------------------------------------------------- */

void part_open_prepared(struct part *part, struct env *env)
{
    part->image = tape_open(&part->tape, env);
    part->start = NULL;
    part_note(part);
}

void part_open(struct part *part, struct env *env, uint64_t bytes, unsigned tag)
{
    tape_init(&part->tape, bytes);
    if (tag) {
        tape_fill(&part->tape, tag);
    }
    part_open_prepared(part, env);
}

void part_note(struct part *part)
{
    free(part->start);
    part->start = tape_copy(&part->tape);
}

void part_close(struct part *part)
{
    blkrepl_image_close(part->image);
    part->image = NULL;
}

void part_end(struct part *part)
{
    tape_close(&part->tape);
    free(part->start);
    part->start = NULL;
}

void parts_close(struct env *env, struct part *const *parts, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        part_close(parts[i]);
    }
    env_close(env);
    for (size_t i = 0; i < count; i++) {
        part_end(parts[i]);
    }
}

void parts_run(struct env *env, struct part *const *parts, size_t count)
{
    size_t moved = 1;

    for (size_t i = 0; i < count; i++) {
        parts[i]->tape.hold = 0;
        parts[i]->tape.decide = NULL;
    }
    while (moved) {
        env_drain(env);
        moved = 0;
        for (size_t i = 0; i < count; i++) {
            moved += tape_finish_all(&parts[i]->tape, 0, 0);
        }
    }
}

bool part_finish(struct env *env, struct part *part, uint32_t opcode)
{
    size_t n = tape_finish_all(&part->tape, opcode, 0);

    env_drain(env);
    return n > 0;
}

void part_fail(struct part *part, uint32_t opcode, uint64_t offset, uint64_t bytes, int result)
{
    part->tape.fail_opcode = opcode;
    part->tape.fail_offset = offset;
    part->tape.fail_bytes = bytes;
    part->tape.fail_result = result;
}

void part_mend(struct part *part)
{
    part->tape.fail_opcode = 0;
    memset(part->tape.fail, 0, sizeof part->tape.fail);
}

void parts_mend(struct part *const *parts, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        part_mend(parts[i]);
    }
}

static int part_spoil(void *user, const blkrepl_io *io)
{
    struct part *part = user;

    if (io->opcode == BLKREPL_OP_DISCARD) {
        memset(part->tape.data + io->offset, 0xdd, (size_t)io->bytes);
    }
    return TAPE_DEFAULT;
}

void part_spoil_discards(struct part *part)
{
    part->tape.decide = part_spoil;
    part->tape.hook_user = part;
}

void part_assert_holds(const struct part *copy, const struct part *disk, const char *picture)
{
    uint64_t bytes = copy->tape.info.bytes;
    uint8_t *want = calloc(1, (size_t)bytes);

    assert_non_null(want);
    for (size_t i = 0; picture[i]; i++) {
        if (picture[i] == '#') {
            memcpy(want + i * CLUSTER, disk->start + i * CLUSTER, CLUSTER);
        }
    }
    assert_same(copy->tape.data, want, bytes, "target");
    free(want);
}

/* ---- Guests --------------------------------------------------------------------- */

void guest_write(struct req *req, struct part *part, uint64_t offset, uint64_t bytes, unsigned tag)
{
    static uint8_t data[GUEST_BYTES_MAX];

    assert_true(bytes <= part->tape.info.bytes && part->tape.info.bytes <= sizeof data);
    fill(data + offset, (size_t)bytes, offset, tag);
    ASSERT_CODE(req_write(req, part->image, offset, data + offset, (size_t)bytes), 0);
}

void guest_writes(struct env *env, struct part *part, uint64_t offset, uint64_t bytes, unsigned tag)
{
    struct req req = {0};

    guest_write(&req, part, offset, bytes, tag);
    env_drain(env);
    req_assert_done(&req, 0);
}

/* ---- What has arrived -------------------------------------------------------------- */

static bool record_arrived(const struct tape_record *r)
{
    bool writes = r->opcode == BLKREPL_OP_WRITE || r->opcode == BLKREPL_OP_ZEROES ||
                  r->opcode == BLKREPL_OP_COPY_FROM;

    return writes && r->done && r->result == 0;
}

void map_arrived(struct map *map, struct tape *t)
{
    uint8_t *arrived = calloc(1, (size_t)t->info.bytes + 1);

    assert_non_null(arrived);
    for (size_t i = 0; i < t->log_count; i++) {
        if (record_arrived(&t->log[i])) {
            memset(arrived + t->log[i].offset, 1, (size_t)t->log[i].bytes);
        }
    }
    for (size_t i = 0; i < map->count; i++) {
        uint64_t from = i * map->granularity;

        map->dirty[i] = !memchr(arrived + from, 0, (size_t)(map_end(map, i) - from));
    }
    free(arrived);
}

void map_content(struct map *map, blkrepl_bitmap *bitmap)
{
    blkrepl_bitmap_info info = bitmap_info(bitmap);

    map_init(map, info.bytes, info.granularity_bytes);
    for (size_t i = 0; i < map->count; i++) {
        map->dirty[i] = blkrepl_bitmap_get(bitmap, i * map->granularity) == 1;
    }
}

/* ---- Jobs ------------------------------------------------------------------------- */

uint32_t job_state(blkrepl_job *job)
{
    return job_info(job).state;
}

bool job_has(blkrepl_job *job, uint32_t flag)
{
    return job_info(job).flags & flag;
}

void job_drop(struct env *env, blkrepl_job **job)
{
    blkrepl_job_free(*job);
    *job = NULL;
    env_drain(env);
}

void job_run_out(struct env *env, blkrepl_job *job, struct part *const *parts, size_t count)
{
    parts_run(env, parts, count);
    if (job && job_state(job) != BLKREPL_JOB_CONCLUDED) {
        ASSERT_CODE(blkrepl_job_cancel(job, 0), 0);
        parts_run(env, parts, count);
    }
}

static const char *const state_names[] = {"?",     "CREATED", "RUNNING",
                                          "READY", "PENDING", "CONCLUDED"};

static void print_job(blkrepl_job *job)
{
    blkrepl_job_info info = job_info(job);

    print_error("job \"%s\": %s, flags %u, result %u, error %d (%s), side %u, %llu of %llu done, "
                "%u in flight: \"%s\"\n",
                info.name, state_names[info.state % ARRAY_COUNT(state_names)], info.flags,
                info.result, info.error, blkrepl_error_text(info.error), info.error_side,
                (unsigned long long)info.bytes_done, (unsigned long long)info.bytes_total,
                info.requests_in_flight, info.message);
}

void assert_state(blkrepl_job *job, uint32_t state, const char *file, int line)
{
    if (job_state(job) != state) {
        print_job(job);
        print_error("it is not %s\n", state_names[state % ARRAY_COUNT(state_names)]);
        _fail(file, line);
    }
}

void assert_ended(blkrepl_job *job, uint32_t result, int error, const char *file, int line)
{
    blkrepl_job_info info = job_info(job);

    if (info.state != BLKREPL_JOB_CONCLUDED || info.result != result || info.error != error ||
        info.requests_in_flight) {
        print_job(job);
        print_error("it has not concluded with result %u, error %d\n", result, error);
        _fail(file, line);
    }
}
