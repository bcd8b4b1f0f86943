/* SPDX-License-Identifier: MIT */
#include "unit/backup_rig.h"

#include "base/checked.h"

void bench_init(struct bench *b, uint64_t bytes)
{
    memset(b, 0, sizeof *b);
    rig_open(&b->rig, NULL);
    script_init(&b->source, bytes);
    script_init(&b->target, bytes);
    b->old = malloc((size_t)bytes + 1);
    assert_non_null(b->old);
    for (uint64_t i = 0; i < bytes; i++) {
        b->old[i] = b->source.disk[i] = (unsigned char)(i / 13 + i % 5 + 1);
    }
}

void bench_open_images(struct bench *b)
{
    b->from = script_open(&b->source, &b->rig);
    b->to = script_open(&b->target, &b->rig);
}

void bench_open(struct bench *b, uint64_t bytes)
{
    bench_init(b, bytes);
    bench_open_images(b);
}

void bench_open_third(struct bench *b, uint64_t bytes)
{
    script_init(&b->third, bytes);
    b->spill = script_open(&b->third, &b->rig);
}

void bench_add_bitmap(struct bench *b, uint64_t granularity)
{
    blkrepl_bitmap_options o = {
        .struct_size = sizeof o, .granularity_bytes = granularity, .name = "map"};

    assert_int_equal(blkrepl_bitmap_add(b->from, &o, &b->bitmap), 0);
}

void bench_close(struct bench *b)
{
    blkrepl_bitmap_free(b->bitmap);
    blkrepl_image_close(b->from);
    blkrepl_image_close(b->to);
    if (b->spill != NULL) {
        blkrepl_image_close(b->spill);
    }
    rig_close(&b->rig);
    script_fini(&b->source);
    script_fini(&b->target);
    if (b->spill != NULL) {
        script_fini(&b->third);
    }
    free(b->old);
}

int bench_setup_closed(void **state)
{
    uintptr_t bytes = (uintptr_t)*state;
    struct bench *b = malloc(sizeof *b);

    assert_non_null(b);
    bench_init(b, bytes != 0 ? bytes : BYTES);
    *state = b;
    return 0;
}

int bench_setup(void **state)
{
    int rc = bench_setup_closed(state);

    bench_open_images(*state);
    return rc;
}

int bench_teardown(void **state)
{
    bench_close(*state);
    free(*state);
    return 0;
}

static void released(void *user)
{
    ((struct bench *)user)->released++;
}

blkrepl_backup_options options_of(struct bench *b)
{
    return (blkrepl_backup_options){.struct_size = sizeof(blkrepl_backup_options),
                                    .name = "b0",
                                    .user = b,
                                    .release = released,
                                    .cluster_bytes = CLUSTER,
                                    .chunk_bytes_max = 4 * CLUSTER,
                                    .reserve_bytes = 2 * CLUSTER,
                                    .workers_max = 2};
}

blkrepl_job_info info_of(blkrepl_job *job)
{
    blkrepl_job_info info = {.struct_size = sizeof info};

    assert_int_equal(blkrepl_job_query(job, &info), 0);
    return info;
}

struct copy *copy_of(blkrepl_job *job)
{
    return &CONTAINER_OF(job, struct backup, job)->copy;
}

blkrepl_job *create(struct bench *b, const blkrepl_backup_options *o)
{
    blkrepl_job *job;

    assert_int_equal(blkrepl_backup_create(b->from, b->to, o, &job), 0);
    return job;
}

blkrepl_job *start(struct bench *b, const blkrepl_backup_options *o)
{
    blkrepl_job *job;

    assert_int_equal(blkrepl_backup_start(b->from, b->to, o, &job), 0);
    return job;
}

blkrepl_job *run(struct bench *b, const blkrepl_backup_options *o)
{
    blkrepl_job *job = start(b, o);

    rig_poll(&b->rig);
    return job;
}

blkrepl_job *start_paused(struct bench *b, const blkrepl_backup_options *o)
{
    blkrepl_job *job = create(b, o);

    assert_int_equal(blkrepl_job_pause(job), 0);
    assert_int_equal(blkrepl_job_start(job), 0);
    return job;
}

void create_without_memory(struct bench *b, const blkrepl_backup_options *o, uint64_t least,
                           uint64_t most)
{
    bool done = false;

    for (uint64_t n = 1; n < most && !done; n++) {
        uint64_t live = b->rig.heap.live;
        blkrepl_job *job;

        b->released = 0;
        b->rig.heap.fail_at = b->rig.heap.calls + n;
        done = blkrepl_backup_create(b->from, b->to, o, &job) == 0;
        b->rig.heap.fail_at = 0;
        if (done) {
            assert_true(n > least);
            blkrepl_job_free(job);
            rig_poll(&b->rig);
        }
        assert_int_equal(b->rig.heap.live, live);
        assert_int_equal(b->released, 1);
    }
    assert_true(done);
}

void guest_write(struct bench *b, unsigned cluster, struct done *done)
{
    static unsigned char data[100] = {0xee};
    static blkrepl_iovec iov = {data, sizeof data};
    blkrepl_completion c = done_of(done);

    assert_int_equal(blkrepl_image_write(b->from, 0, (uint64_t)cluster * CLUSTER, &iov, 1, 0, &c),
                     0);
    rig_poll(&b->rig);
}

void refused(struct bench *b, const blkrepl_backup_options *o, int code)
{
    blkrepl_job *job = (blkrepl_job *)(void *)b;
    uint64_t live = b->rig.heap.live;
    uint32_t refs = b->spill != NULL ? b->spill->refs : 0;

    for (int i = 0; i < 2; i++) {
        unsigned before = b->released;

        job = (blkrepl_job *)(void *)b;
        assert_int_equal(
            (i == 0 ? blkrepl_backup_create : blkrepl_backup_start)(b->from, b->to, o, &job), code);
        assert_null(job);
        assert_int_equal(b->released, before + 1);
        assert_int_equal(b->rig.heap.live, live);
        assert_int_equal(b->from->refs, 1);
        assert_int_equal(b->from->jobs_reading, 0);
        assert_int_equal(b->to->refs, 1);
        assert_int_equal(b->to->jobs_writing, 0);
        assert_int_equal(b->spill != NULL ? b->spill->refs : 0, refs);
        assert_int_equal(b->rig.ctx->job_requests.used, 0);
        assert_true(b->bitmap == NULL || !b->bitmap->freezing);
    }
}

void assert_concluded(struct bench *b, blkrepl_job *job, uint32_t result, int error)
{
    blkrepl_job_info info = info_of(job);

    assert_int_equal(info.state, BLKREPL_JOB_CONCLUDED);
    assert_int_equal(info.result, result);
    assert_int_equal(info.error, error);
    assert_int_equal(info.requests_in_flight, 0);
    assert_int_equal(rig_event(&b->rig, BLKREPL_EVENT_JOB_DONE, 0)->error, error);
    assert_int_equal(rig_events(&b->rig, BLKREPL_EVENT_JOB_DONE), 1);
    assert_int_equal(b->from->jobs_reading, 0);
    assert_int_equal(b->to->jobs_writing, 0);
    assert_true(b->spill == NULL || b->spill->jobs_writing == 0);
    assert_true(b->bitmap == NULL || (!b->bitmap->busy && !b->bitmap->freezing));
    assert_int_equal(b->rig.ctx->memory_used, 0);
    assert_int_equal(b->rig.ctx->job_requests.used, 0);
    if (result == BLKREPL_RESULT_DONE) {
        assert_int_equal(info.bytes_done, info.bytes_total);
    } else {
        assert_true(info.bytes_total == 0 || info.bytes_done < info.bytes_total);
    }
    blkrepl_job_free(job);
    rig_poll(&b->rig);
    assert_int_equal(b->released, 1);
}

void assert_dirty(struct bench *b, const char *clusters)
{
    char found[128];
    uint64_t bytes = b->bitmap->map.bytes;
    uint64_t count = (bytes + CLUSTER - 1) / CLUSTER;

    assert_true(count < sizeof found);
    for (uint64_t i = 0; i < count; i++) {
        uint64_t at;

        found[i] = blkrepl_bitmap_next_dirty(b->bitmap, i * CLUSTER, CLUSTER, &at) == 1 ? '#' : '.';
    }
    found[count] = '\0';
    assert_string_equal(found, clusters);
    assert_int_equal(blkrepl_bitmap_validate(b->bitmap), 0);
}
