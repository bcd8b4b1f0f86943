/* SPDX-License-Identifier: MIT */
/* When a backup is done its target holds the start image, whatever the guest
 * did meanwhile, on any pair of backends. */
#include "tape.h"

#define GUESTS 10
#define GUEST_BYTES 20000

static struct env env;
static struct tape disk, copy, second;

/* ---- Guests that write by seed, through and beside --------------------------------- */

struct guest {
    struct req req;
    struct bracket bracket;
    uint8_t data[GUEST_BYTES];
    uint64_t at;
    uint64_t len;
    bool busy;
    bool beside;
    bool poked;
};

struct world {
    struct rng rng;
    uint64_t seed;
    blkrepl_image *source;
    blkrepl_image *target;
    blkrepl_job *job;
    blkrepl_backup_options o;
    uint8_t *start; /* the source at the point in time                        */
    uint8_t *model; /* what the guests have written, in order of acceptance   */
    uint8_t *tail;  /* the target before                                      */
    unsigned stamp;
};

static struct guest guests[GUESTS];

static void lost(const struct world *w, const char *what, uint64_t at)
{
    fail_msg("%s at %llu; seed %llu, source %llu by %u, target %llu by %u, cluster %llu", what,
             (unsigned long long)at, (unsigned long long)w->seed,
             (unsigned long long)disk.info.bytes, disk.info.request_alignment,
             (unsigned long long)copy.info.bytes, copy.info.request_alignment,
             (unsigned long long)w->o.cluster_bytes);
}

static const uint64_t sizes[] = {0, 1, 511, 4096, 4097, 65536, 200000, 262144};
static const uint32_t alignments[] = {0, 1, 512, 4096};

static void some_info(struct world *w, struct tape *t)
{
    t->info.request_alignment = alignments[rng_below(&w->rng, ARRAY_COUNT(alignments))];
    t->info.memory_alignment = rng_percent(&w->rng, 50) ? 512 : 0;
    t->info.queue_depth = rng_percent(&w->rng, 30) ? 1 + (uint32_t)rng_below(&w->rng, 4) : 0;
    t->info.iov_count_max = rng_percent(&w->rng, 30) ? 1 : 0;
    if (rng_percent(&w->rng, 30)) {
        t->info.transfer_bytes_max = 4096 * (1 + rng_below(&w->rng, 4));
        t->info.zeroes_bytes_max = 4096 * (1 + rng_below(&w->rng, 4));
    }
    if (rng_percent(&w->rng, 30)) {
        t->info.opcodes = OPS_RW;
    }
    if (rng_percent(&w->rng, 60)) {
        t->info.opcodes |= BIT(BLKREPL_OP_COPY_FROM);
        t->info.copy_domain = &env;
        t->info.copy_bytes_max = rng_percent(&w->rng, 30) ? 8192 : 0;
        t->fail[BLKREPL_OP_COPY_FROM] = rng_percent(&w->rng, 20) ? -EXDEV : 0;
    }
    t->hold = rng_percent(&w->rng, 80) ? OPS_ALL | BIT(BLKREPL_OP_COPY_FROM) : 0;
}

static void world_open(struct world *w, uint64_t seed)
{
    memset(w, 0, sizeof *w);
    memset(guests, 0, sizeof guests);
    w->seed = seed;
    w->rng.state = seed * 7919;
    uint64_t bytes = sizes[rng_below(&w->rng, ARRAY_COUNT(sizes))];
    uint64_t more = rng_percent(&w->rng, 50) ? 0 : rng_below(&w->rng, 10000);

    env_open(&env, NULL, 0);
    tape_init(&disk, bytes);
    tape_init(&copy, bytes + more);
    some_info(w, &disk);
    some_info(w, &copy);
    tape_fill(&disk, (unsigned)seed);
    tape_fill(&copy, (unsigned)seed + 99);
    for (uint64_t at = 0; at + 4096 <= bytes; at += 4096) { /* holes */
        if (rng_percent(&w->rng, 30)) {
            memset(disk.data + at, 0, 4096);
        }
    }
    w->o = (blkrepl_backup_options){.struct_size = sizeof w->o, .reserve_bytes = 256 * KIB};
    w->o.cluster_bytes = UINT64_C(4096) << rng_below(&w->rng, 5);
    w->o.chunk_bytes_max = rng_percent(&w->rng, 50) ? 128 * KIB : 0;
    w->o.workers_max = 1 + (uint32_t)rng_below(&w->rng, 4);
    w->o.flags = rng_percent(&w->rng, 30) ? BLKREPL_BACKUP_DETECT_ZEROES : 0;
    w->o.on_cbw_error = 1 + (uint32_t)rng_below(&w->rng, 2);
    w->source = tape_open(&disk, &env);
    w->target = tape_open(&copy, &env);
    w->start = tape_copy(&disk);
    w->model = tape_copy(&disk);
    w->tail = tape_copy(&copy);
}

static void world_close(struct world *w)
{
    blkrepl_job_free(w->job);
    blkrepl_image_close(w->source);
    blkrepl_image_close(w->target);
    env_close(&env);
    tape_close(&disk);
    tape_close(&copy);
    free(w->start);
    free(w->model);
    free(w->tail);
}

/* Beside, the range is a multiple of the alignment or ends at the end. */
static void guest_begin(struct world *w, struct guest *g)
{
    uint64_t size = disk.info.bytes;
    uint64_t align = image_info(w->source).request_alignment;
    uint64_t len = rng_below(&w->rng, (size < GUEST_BYTES ? size : GUEST_BYTES) + 1);
    uint64_t at = rng_below(&w->rng, size - len + 1);
    unsigned kind = (unsigned)rng_below(&w->rng, 10);

    g->beside = rng_percent(&w->rng, 40);
    if (g->beside) {
        at = at / align * align;
        len = at + len == size ? len : len / align * align;
        if (len == 0) {
            return;
        }
    }
    g->busy = true;
    g->poked = false;
    g->at = at;
    g->len = len;
    fill(g->data, (size_t)len, at, ++w->stamp);
    if (kind == 0) {
        memset(g->data, 0, (size_t)len);
    }
    if (g->beside) {
        bracket_begin(&g->bracket, w->source, kind ? BLKREPL_OP_WRITE : BLKREPL_OP_ZEROES, at, len);
        if (g->bracket.answer < 0) {
            lost(w, blkrepl_error_message(), at);
        }
    } else if (kind == 1) {
        ASSERT_CODE(req_discard(&g->req, w->source, at, len), 0);
        return; /* the tape leaves the data as they are */
    } else if (kind == 0) {
        ASSERT_CODE(req_zeroes(&g->req, w->source, at, len), 0);
    } else {
        ASSERT_CODE(req_write(&g->req, w->source, at, g->data, (size_t)len), 0);
    }
    memcpy(w->model + at, g->data, (size_t)len);
}

static void guest_go_on(struct guest *g)
{
    if (!g->beside) {
        if (!REQ_PENDING(&g->req)) {
            req_assert_done(&g->req, 0);
            g->busy = false;
        }
    } else if (bracket_may_go(&g->bracket) && !g->poked) {
        tape_poke(&disk, g->bracket.offset, g->data, (size_t)g->bracket.bytes);
        g->poked = true;
    } else if (g->poked) {
        ASSERT_CODE(blkrepl_write_end(env.ctx, g->bracket.token, 0, NULL, 0, NULL), 0);
        g->busy = false;
    } else {
        assert_true(g->bracket.go.result == 0);
    }
}

static void tape_some(struct world *w, struct tape *t)
{
    size_t pending = tape_pending(t, 0);

    if (pending) {
        ASSERT_CODE(tape_finish(t, (int)rng_below(&w->rng, pending), 0), 0);
    }
}

static void step(struct world *w, bool begin)
{
    struct guest *g = &guests[rng_below(&w->rng, GUESTS)];

    switch (rng_below(&w->rng, 4)) {
    case 0: tape_some(w, &disk); break;
    case 1: tape_some(w, &copy); break;
    case 2:
        if (g->busy) {
            guest_go_on(g);
        } else if (begin) {
            guest_begin(w, g);
        }
        break;
    default: blkrepl_poll(env.ctx, 0, 0); break;
    }
}

static void print_stuck(struct world *w)
{
    uint64_t deadline = 0;
    int armed = blkrepl_poll_arm(env.ctx, 0, &deadline);
    blkrepl_job_info info = job_info(w->job);

    print_error("arm %d, deadline in %llu; job state %u, %llu of %llu done, %u in flight; "
                "%zu at the source, %zu at the target\n",
                armed, (unsigned long long)(deadline - atomic_load(&env.now)), info.state,
                (unsigned long long)info.bytes_done, (unsigned long long)info.bytes_total,
                info.requests_in_flight, tape_pending(&disk, 0), tape_pending(&copy, 0));
    for (size_t i = 0; i < GUESTS; i++) {
        if (guests[i].busy) {
            print_error("guest %zu: %s, %llu+%llu\n", i, guests[i].beside ? "beside" : "through",
                        (unsigned long long)guests[i].at, (unsigned long long)guests[i].len);
        }
    }
}

static void run_to_the_end(struct world *w)
{
    bool busy = true;

    for (int i = 0; busy || job_info(w->job).state != BLKREPL_JOB_CONCLUDED; i++) {
        if (i > 200000) {
            print_stuck(w);
            lost(w, "it does not end", 0);
        }
        step(w, false);
        busy = false;
        for (size_t k = 0; k < GUESTS; k++) {
            busy = busy || guests[k].busy;
        }
    }
}

/* What lies beyond the source: zeroes up to the alignment, then untouched. */
static void check_tail(struct world *w)
{
    uint64_t align = image_info(w->target).request_alignment;
    uint64_t at = disk.info.bytes;

    for (; at < copy.info.bytes && at % align; at++) {
        if (copy.data[at] != 0) {
            lost(w, "the last block is not filled with zeroes", at);
        }
    }
    for (; at < copy.info.bytes; at++) {
        if (copy.data[at] != w->tail[at]) {
            lost(w, "what lies beyond the source was touched", at);
        }
    }
}

static void check(struct world *w)
{
    blkrepl_job_info info = job_info(w->job);
    uint64_t at = first_difference(copy.data, w->start, disk.info.bytes);

    if (info.result != BLKREPL_RESULT_DONE) {
        lost(w, info.message, info.error_offset);
    }
    if (at != UINT64_MAX) {
        lost(w, "the target is not the start image", at);
    }
    if ((at = first_difference(disk.data, w->model, disk.info.bytes)) != UINT64_MAX) {
        lost(w, "the source is not what the guest wrote", at);
    }
    check_tail(w);
    if (info.bytes_done != info.bytes_total || info.bytes_total != disk.info.bytes) {
        lost(w, "bytes_done", info.bytes_done);
    }
}

static void the_target_is_the_start_image_while_guests_write(void **state)
{
    struct world w;
    uint64_t seeds = quick() ? 80 : 700;

    (void)state;
    for (uint64_t seed = 1; seed <= seeds; seed++) {
        world_open(&w, seed);
        ASSERT_CODE(blkrepl_backup_start(w.source, w.target, &w.o, &w.job), 0);
        for (int i = 0; i < 400; i++) {
            step(&w, true);
        }
        run_to_the_end(&w);
        check(&w);
        world_close(&w);
    }
}

/* The byte is one that was there, or one of a write that had not ended. */
static bool old_or_new(uint64_t at, uint8_t got, uint8_t old, const struct guest *under_way)
{
    for (size_t i = 0; got != old && i < GUESTS; i++) {
        const struct guest *g = &under_way[i];

        if (g->busy && at >= g->at && at - g->at < g->len && g->data[at - g->at] == got) {
            return true;
        }
    }
    return got == old;
}

/* Writes under way at the start are concurrent with it: byte by byte the target
 * holds the old data or the new. */
static void writes_under_way_at_the_start_are_old_or_new(void **state)
{
    static struct guest under_way[GUESTS];
    struct world w;
    uint64_t seeds = quick() ? 40 : 300;

    (void)state;
    for (uint64_t seed = 10001; seed <= 10000 + seeds; seed++) {
        world_open(&w, seed);
        for (int i = 0; i < 30; i++) {
            step(&w, true);
        }
        uint8_t *old = tape_copy(&disk); /* what is on the medium */
        memcpy(under_way, guests, sizeof guests);
        ASSERT_CODE(blkrepl_backup_start(w.source, w.target, &w.o, &w.job), 0);
        for (int i = 0; i < 200; i++) {
            step(&w, true);
        }
        run_to_the_end(&w);
        assert_int_equal(job_info(w.job).result, BLKREPL_RESULT_DONE);
        for (uint64_t at = 0; at < disk.info.bytes; at++) {
            if (!old_or_new(at, copy.data[at], old[at], under_way)) {
                lost(&w, "neither old nor new", at);
            }
        }
        check_tail(&w);
        free(old);
        world_close(&w);
    }
}

/* ---- Two at once ------------------------------------------------------------------------ */

static void two_backups_of_one_image_have_two_points_in_time(void **state)
{
    struct world w;
    uint64_t seeds = quick() ? 20 : 150;

    (void)state;
    for (uint64_t seed = 20001; seed <= 20000 + seeds; seed++) {
        blkrepl_job *job = NULL;

        world_open(&w, seed);
        tape_init(&second, disk.info.bytes);
        some_info(&w, &second);
        blkrepl_image *other = tape_open(&second, &env);
        ASSERT_CODE(blkrepl_backup_start(w.source, w.target, &w.o, &w.job), 0);
        for (int i = 0; i < 100; i++) {
            step(&w, true);
        }
        for (int i = 0; i < 100000; i++) { /* no guest under way: an exact point */
            bool busy = false;

            for (size_t k = 0; k < GUESTS; k++) {
                busy = busy || guests[k].busy;
            }
            if (!busy) {
                break;
            }
            step(&w, false);
        }
        uint8_t *start = tape_copy(&disk);
        w.o.cluster_bytes = 8192;
        ASSERT_CODE(blkrepl_backup_start(w.source, other, &w.o, &job), 0);
        for (int i = 0; i < 200; i++) {
            step(&w, true);
            tape_some(&w, &second);
        }
        for (int i = 0; i < 100000 && job_info(job).state != BLKREPL_JOB_CONCLUDED; i++) {
            step(&w, false);
            tape_some(&w, &second);
        }
        assert_int_equal(job_info(job).result, BLKREPL_RESULT_DONE);
        uint64_t at = first_difference(second.data, start, disk.info.bytes);
        if (at != UINT64_MAX) {
            lost(&w, "the second target is not the second start image", at);
        }
        run_to_the_end(&w);
        check(&w);
        free(start);
        blkrepl_job_free(job);
        blkrepl_image_close(other);
        world_close(&w);
        tape_close(&second);
    }
}

/* ---- Zeroes -------------------------------------------------------------------------------- */

#define SIZE (16 * CLUSTER)

static void copy_once(blkrepl_backup_options *o, blkrepl_job_info *info)
{
    blkrepl_image *source = tape_open(&disk, &env), *target = tape_open(&copy, &env);
    blkrepl_job *job = NULL;

    ASSERT_CODE(blkrepl_backup_start(source, target, o, &job), 0);
    env_drain(&env);
    *info = job_info(job);
    assert_int_equal(info->result, BLKREPL_RESULT_DONE);
    assert_same(copy.data, disk.data, disk.info.bytes, "target");
    blkrepl_job_free(job);
    blkrepl_image_close(source);
    blkrepl_image_close(target);
    env_close(&env);
}

static void holes(void)
{
    env_open(&env, NULL, 0);
    tape_init(&disk, SIZE);
    tape_init(&copy, SIZE);
    tape_fill(&disk, 1);
    tape_fill(&copy, 2);
    memset(disk.data + 4 * CLUSTER, 0, 8 * CLUSTER);
}

static void holes_are_written_as_zeroes_and_not_read(void **state)
{
    blkrepl_backup_options o = {.struct_size = sizeof o};
    blkrepl_job_info info;

    (void)state;
    holes();
    copy_once(&o, &info);
    assert_false(tape_saw(&disk, BLKREPL_OP_READ, 4 * CLUSTER, 8 * CLUSTER));
    assert_false(tape_saw(&copy, BLKREPL_OP_WRITE, 4 * CLUSTER, 8 * CLUSTER));
    assert_true(tape_saw(&copy, BLKREPL_OP_ZEROES, 4 * CLUSTER, 8 * CLUSTER));
    assert_int_equal(info.zero_bytes, 8 * CLUSTER);
    tape_close(&disk);
    tape_close(&copy);
}

static void without_status_zeroes_are_data_unless_they_are_looked_for(void **state)
{
    blkrepl_backup_options o = {.struct_size = sizeof o};
    blkrepl_job_info info;

    (void)state;
    holes();
    disk.info.opcodes = OPS_RW;
    copy_once(&o, &info);
    assert_int_equal(tape_submitted(&copy, BLKREPL_OP_ZEROES), 0);
    assert_int_equal(info.zero_bytes, 0);
    tape_close(&disk);
    tape_close(&copy);

    holes();
    disk.info.opcodes = OPS_RW;
    o.flags = BLKREPL_BACKUP_DETECT_ZEROES;
    copy_once(&o, &info);
    assert_true(tape_saw(&copy, BLKREPL_OP_ZEROES, 4 * CLUSTER, 8 * CLUSTER));
    assert_true(info.zero_bytes > 0 && info.zero_bytes <= 8 * CLUSTER);
    tape_close(&disk);
    tape_close(&copy);
}

static void a_target_without_zeroes_gets_buffers(void **state)
{
    blkrepl_backup_options o = {.struct_size = sizeof o};
    blkrepl_job_info info;

    (void)state;
    holes();
    copy.info.opcodes = OPS_RW;
    copy_once(&o, &info);
    tape_close(&disk);
    tape_close(&copy);
}

static void broken_status_lists_do_not_break_the_copy(void **state)
{
    static const enum tape_status lies[] = {TAPE_STATUS_EMPTY, TAPE_STATUS_TOO_LONG};

    (void)state;
    for (size_t i = 0; i < 2; i++) {
        blkrepl_job *job = NULL;

        holes();
        disk.status = lies[i];
        blkrepl_image *source = tape_open(&disk, &env), *target = tape_open(&copy, &env);
        ASSERT_CODE(blkrepl_backup_start(source, target, NULL, &job), 0);
        env_drain(&env);
        /* Either noticed, or taken for data; a list that claims zeroes over
         * everything has to be noticed. */
        blkrepl_job_info info = job_info(job);
        assert_int_equal(info.state, BLKREPL_JOB_CONCLUDED);
        if (info.result == BLKREPL_RESULT_DONE) {
            assert_same(copy.data, disk.data, SIZE, "target");
        } else {
            assert_int_equal(info.error_side, BLKREPL_SIDE_SOURCE);
        }
        blkrepl_job_free(job);
        blkrepl_image_close(source);
        blkrepl_image_close(target);
        env_close(&env);
        tape_close(&disk);
        tape_close(&copy);
    }
}

/* Status is only a hint: one that fails means data. */
static void a_failing_status_is_no_reason_to_skip_anything(void **state)
{
    blkrepl_job *job = NULL;

    (void)state;
    holes();
    disk.fail[BLKREPL_OP_STATUS] = -EIO;
    blkrepl_image *source = tape_open(&disk, &env), *target = tape_open(&copy, &env);
    ASSERT_CODE(blkrepl_backup_start(source, target, NULL, &job), 0);
    env_drain(&env);
    blkrepl_job_info info = job_info(job);
    assert_int_equal(info.state, BLKREPL_JOB_CONCLUDED);
    if (info.result == BLKREPL_RESULT_DONE) {
        assert_same(copy.data, disk.data, SIZE, "target");
    }
    blkrepl_job_free(job);
    blkrepl_image_close(source);
    blkrepl_image_close(target);
    env_close(&env);
    tape_close(&disk);
    tape_close(&copy);
}

/* One chunk that is first a hole, then data; the status comes inside submit or
 * when submit has long returned. */
static void a_chunk_of_a_hole_and_data_does_not_stall_the_copy(void **state)
{
    (void)state;
    for (uint32_t hold = 0; hold <= BIT(BLKREPL_OP_STATUS); hold += BIT(BLKREPL_OP_STATUS)) {
        blkrepl_job *job = NULL;

        env_open(&env, NULL, 0);
        tape_init(&disk, 4 * CLUSTER);
        tape_init(&copy, 4 * CLUSTER);
        tape_fill(&disk, 1);
        memset(disk.data, 0, CLUSTER);
        disk.hold = hold;
        blkrepl_image *source = tape_open(&disk, &env), *target = tape_open(&copy, &env);
        ASSERT_CODE(blkrepl_backup_start(source, target, NULL, &job), 0);
        tape_release(&disk, &env);
        assert_int_equal(job_info(job).result, BLKREPL_RESULT_DONE);
        assert_same(copy.data, disk.data, 4 * CLUSTER, "target");
        blkrepl_job_free(job);
        blkrepl_image_close(source);
        blkrepl_image_close(target);
        env_close(&env);
        tape_close(&disk);
        tape_close(&copy);
    }
}

static void several_copies_are_in_flight_at_once(void **state)
{
    blkrepl_backup_options o = {.struct_size = sizeof o,
                                .cluster_bytes = CLUSTER,
                                .chunk_bytes_max = CLUSTER,
                                .workers_max = 4};
    blkrepl_job *job = NULL;

    (void)state;
    env_open(&env, NULL, 0);
    tape_init(&disk, SIZE);
    tape_init(&copy, SIZE);
    tape_fill(&disk, 1);
    copy.hold = BIT(BLKREPL_OP_WRITE);
    blkrepl_image *source = tape_open(&disk, &env), *target = tape_open(&copy, &env);
    ASSERT_CODE(blkrepl_backup_start(source, target, &o, &job), 0);
    env_drain(&env);
    assert_int_equal(tape_pending(&copy, BLKREPL_OP_WRITE), 4); /* all workers are at work */
    tape_finish(&copy, 0, 0);
    env_drain(&env);
    assert_int_equal(tape_pending(&copy, BLKREPL_OP_WRITE), 4);
    tape_release(&copy, &env);
    assert_int_equal(job_info(job).result, BLKREPL_RESULT_DONE);
    blkrepl_job_free(job);
    blkrepl_image_close(source);
    blkrepl_image_close(target);
    env_close(&env);
    tape_close(&disk);
    tape_close(&copy);
}

/* Requests are used again: nothing of a ZEROES may be left in a FLUSH. */
static void a_flush_is_only_a_flush(void **state)
{
    (void)state;
    env_open(&env, NULL, 0);
    tape_init(&disk, CLUSTER);
    tape_init(&copy, CLUSTER);
    blkrepl_image *source = tape_open(&disk, &env), *target = tape_open(&copy, &env);
    for (unsigned i = 0; i < 8; i++) {
        blkrepl_job *job[2] = {NULL, NULL};

        memset(disk.data, (int)i & 1, CLUSTER);
        tape_init(&second, CLUSTER);
        blkrepl_image *other = tape_open(&second, &env);
        ASSERT_CODE(blkrepl_backup_start(source, target, NULL, &job[0]), 0);
        ASSERT_CODE(blkrepl_backup_create(source, other, NULL, &job[1]), 0);
        env_drain(&env);
        blkrepl_job_free(job[0]);
        memset(disk.data, 1, CLUSTER);
        ASSERT_CODE(blkrepl_job_start(job[1]), 0);
        env_drain(&env);
        blkrepl_job_free(job[1]);
        blkrepl_image_close(other);
        env_drain(&env);
        for (size_t k = 0; k < second.log_count; k++) {
            if (second.log[k].opcode == BLKREPL_OP_FLUSH) {
                assert_int_equal(second.log[k].flags & ~(uint32_t)BLKREPL_IO_BACKGROUND, 0);
            }
        }
        tape_close(&second);
    }
    blkrepl_image_close(source);
    blkrepl_image_close(target);
    env_close(&env);
    tape_close(&disk);
    tape_close(&copy);
}

/* ---- Large and sparse ----------------------------------------------------------------------- */

static void a_huge_sparse_image_is_copied_without_walking_it(void **state)
{
    blkrepl_image *source = NULL, *target = NULL;
    blkrepl_job *job = NULL;
    uint64_t bytes = UINT64_C(1) << 40;
    uint8_t data[1000], back[1000];

    (void)state;
    env_open(&env, NULL, 0);
    ASSERT_CODE(blkrepl_image_open_memory(env.ctx, bytes, NULL, &source), 0);
    ASSERT_CODE(blkrepl_image_open_memory(env.ctx, bytes, NULL, &target), 0);
    fill(data, sizeof data, 1, 1);
    ASSERT_CODE(write_now(&env, source, bytes - sizeof data, data, sizeof data), 0);
    ASSERT_CODE(write_now(&env, source, bytes / 3, data, sizeof data), 0);
    ASSERT_CODE(blkrepl_backup_start(source, target, NULL, &job), 0);
    env_drain(&env);
    assert_int_equal(job_info(job).result, BLKREPL_RESULT_DONE);
    ASSERT_CODE(read_now(&env, target, bytes - sizeof data, back, sizeof back), 0);
    assert_memory_equal(back, data, sizeof back);
    ASSERT_CODE(read_now(&env, target, bytes / 3, back, sizeof back), 0);
    assert_memory_equal(back, data, sizeof back);
    blkrepl_job_free(job);
    blkrepl_image_close(source);
    blkrepl_image_close(target);
    env_close(&env);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_target_is_the_start_image_while_guests_write),
        cmocka_unit_test(writes_under_way_at_the_start_are_old_or_new),
        cmocka_unit_test(two_backups_of_one_image_have_two_points_in_time),
        cmocka_unit_test(holes_are_written_as_zeroes_and_not_read),
        cmocka_unit_test(without_status_zeroes_are_data_unless_they_are_looked_for),
        cmocka_unit_test(a_target_without_zeroes_gets_buffers),
        cmocka_unit_test(broken_status_lists_do_not_break_the_copy),
        cmocka_unit_test(a_failing_status_is_no_reason_to_skip_anything),
        cmocka_unit_test(a_chunk_of_a_hole_and_data_does_not_stall_the_copy),
        cmocka_unit_test(a_flush_is_only_a_flush),
        cmocka_unit_test(several_copies_are_in_flight_at_once),
        cmocka_unit_test(a_huge_sparse_image_is_copied_without_walking_it),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
