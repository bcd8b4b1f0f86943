/* SPDX-License-Identifier: MIT */
/* How a snapshot image is opened, what it says when its job ends, fails or is
 * cancelled under it, how it is closed, and, by seed, that nobody is told wrong data. */
#include "stage.h"

#define CLUSTERS 16
#define SIZE (CLUSTERS * CLUSTER - 1000)
#define READERS 4
#define GUESTS 4
#define LEN_MAX 100000

static struct env env;
static struct part disk, fleece, copy;
static struct part *const all[] = {&disk, &fleece, &copy};
static blkrepl_job *job;
static blkrepl_image *snapshot;
static blkrepl_backup_options o;
static int released;
static uint8_t memory[CLUSTERS * CLUSTER];

static void count(void *user)
{
    (*(int *)user)++;
}

static int set_up(void **state)
{
    (void)state;
    env_open(&env, NULL, 0);
    part_open(&disk, &env, SIZE, 1);
    part_open(&fleece, &env, SIZE, 90);
    part_open(&copy, &env, SIZE, 0);
    job = NULL;
    snapshot = NULL;
    released = 0;
    o = (blkrepl_backup_options){
        .struct_size = sizeof o, .sync = BLKREPL_SYNC_NONE, .cluster_bytes = CLUSTER};
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    parts_mend(all, 3);
    parts_run(&env, all, 3);
    blkrepl_image_close(snapshot);
    job_run_out(&env, job, all, 3);
    blkrepl_job_free(job);
    parts_close(&env, all, 3);
    return 0;
}

static void take(void)
{
    ASSERT_CODE(blkrepl_backup_start(disk.image, fleece.image, &o, &job), 0);
    env_drain(&env);
    ASSERT_CODE(blkrepl_snapshot_open(job, NULL, &snapshot), 0);
}

static int reads(uint64_t offset, uint64_t bytes)
{
    memset(memory, 0xee, sizeof memory);
    return read_now(&env, snapshot, offset, memory, (size_t)bytes);
}

/* ---- Opening --------------------------------------------------------------------------- */

static void refused(blkrepl_job *of, const blkrepl_snapshot_options *options, int code)
{
    blkrepl_image *image = (blkrepl_image *)&env;

    ASSERT_CODE(blkrepl_snapshot_open(of, options, &image), code);
    assert_null(image);
}

static void it_is_opened_of_a_ready_job_only(void **state)
{
    (void)state;
    refused(NULL, NULL, -EINVAL);
    ASSERT_CODE(blkrepl_backup_create(disk.image, fleece.image, &o, &job), 0);
    ASSERT_CODE(blkrepl_snapshot_open(job, NULL, NULL), -EINVAL);
    refused(job, NULL, BLKREPL_ERR_STATE);
    ASSERT_CODE(blkrepl_job_start(job), 0);
    env_drain(&env);
    ASSERT_CODE(blkrepl_snapshot_open(job, NULL, &snapshot), 0);
    blkrepl_image_close(snapshot);
    ASSERT_CODE(blkrepl_job_pause(job), 0); /* still READY, and its promise is kept */
    ASSERT_CODE(blkrepl_snapshot_open(job, NULL, &snapshot), 0);
    ASSERT_CODE(blkrepl_job_cancel(job, 0), 0);
    parts_run(&env, all, 3);
    refused(job, NULL, BLKREPL_ERR_STATE);
}

static void a_job_that_copies_has_no_snapshot(void **state)
{
    (void)state;
    o.sync = BLKREPL_SYNC_FULL;
    ASSERT_CODE(blkrepl_backup_create(disk.image, fleece.image, &o, &job), 0);
    refused(job, NULL, -EINVAL);
    copy.tape.hold = OPS_ALL;
    ASSERT_CODE(blkrepl_job_start(job), 0);
    env_drain(&env);
    refused(job, NULL, -EINVAL);
    blkrepl_job_free(job);
    ASSERT_CODE(blkrepl_verify_create(disk.image, copy.image, NULL, &job), 0);
    refused(job, NULL, -EINVAL);
}

static void bad_options_are_refused_and_let_the_user_go(void **state)
{
    char name[65];
    blkrepl_snapshot_options s = {
        .struct_size = sizeof s, .user = &released, .release = count, .queue_depth = 1025};

    (void)state;
    take();
    blkrepl_image_close(snapshot);
    snapshot = NULL;
    refused(job, &s, -EINVAL);
    assert_int_equal(released, 1);
    s.queue_depth = 1024;
    memset(name, 'n', 64);
    name[64] = 0;
    s.name = name;
    refused(job, &s, -EINVAL);
    assert_int_equal(released, 2);
    s.name = NULL;
    s.reserved0 = name;
    refused(job, &s, -EINVAL);
    assert_int_equal(released, 3);
    s.reserved0 = NULL;
    s.struct_size = 8;
    refused(job, &s, -EINVAL);
    s.struct_size = sizeof s;
    released = 0;
    ASSERT_CODE(blkrepl_snapshot_open(job, &s, &snapshot), 0);
    assert_ptr_equal(image_info(snapshot).user, &released);
    assert_int_equal(released, 0);
    blkrepl_image_close(snapshot);
    snapshot = NULL;
    env_drain(&env);
    assert_int_equal(released, 1);
}

static void a_newer_option_is_refused(void **state)
{
    struct {
        blkrepl_snapshot_options known;
        uint64_t unknown;
    } newer = {.known = {.struct_size = sizeof newer}, .unknown = 1};

    (void)state;
    take();
    refused(job, &newer.known, BLKREPL_ERR_VERSION);
}

/* ---- Its job ends ------------------------------------------------------------- */

/* A reader that waits for the source, another for the target, when `end` ends the job. */
static void ends_under_readers(void (*end)(void), int error, int other)
{
    struct req from_disk = {0}, from_fleece = {0}, late = {0};
    static uint8_t a[CLUSTER], b[CLUSTER];

    take();
    guest_writes(&env, &disk, 2 * CLUSTER, 512, 50);
    disk.tape.hold = BIT(BLKREPL_OP_READ);
    fleece.tape.hold = BIT(BLKREPL_OP_READ);
    ASSERT_CODE(req_read(&from_disk, snapshot, 5 * CLUSTER, a, CLUSTER), 0);
    ASSERT_CODE(req_read(&from_fleece, snapshot, 2 * CLUSTER, b, CLUSTER), 0);
    env_drain(&env);
    end();
    env_drain(&env);
    guest_write(&late, &disk, 5 * CLUSTER, CLUSTER, 52); /* nobody saves it any more */
    env_drain(&env);
    if (job_state(job) == BLKREPL_JOB_CONCLUDED) { /* the host may do what it likes now */
        memset(fleece.tape.data, 0x77, SIZE);
    }
    parts_run(&env, all, 3);
    ASSERT_STATE(job, BLKREPL_JOB_CONCLUDED);
    assert_int_equal(from_disk.calls + from_fleece.calls, 2);
    if (from_disk.result == 0) { /* it had its data */
        assert_same(a, disk.start + 5 * CLUSTER, CLUSTER, "from the source");
    } else if (from_disk.result != other) {
        req_assert_done(&from_disk, error);
    }
    if (from_fleece.result == 0) {
        assert_same(b, disk.start + 2 * CLUSTER, CLUSTER, "from the target");
    } else if (from_fleece.result != other) {
        req_assert_done(&from_fleece, error);
    }
    int rc = reads(0, 512);
    ASSERT_CODE(rc == other ? error : rc, error);
    rc = reads(2 * CLUSTER, 512);
    ASSERT_CODE(rc == other ? error : rc, error);
    guest_writes(&env, &disk, 5 * CLUSTER, 512, 51); /* nothing waits for it any more */
    assert_int_equal(image_info(snapshot).bytes, SIZE);
}

static void end_by_complete(void)
{
    ASSERT_CODE(blkrepl_job_complete(job), 0);
}

static void end_by_cancel(void)
{
    ASSERT_CODE(blkrepl_job_cancel(job, 0), 0);
}

static void end_by_failure(void)
{
    disk.tape.hold = 0;
    part_fail(&fleece, BLKREPL_OP_WRITE, 0, SIZE, -ENOSPC);
    guest_writes(&env, &disk, 9 * CLUSTER, 512, 51);
}

static void a_job_may_complete_under_readers(void **state)
{
    (void)state;
    ends_under_readers(end_by_complete, -ESHUTDOWN, -ESHUTDOWN);
    ASSERT_ENDED(job, BLKREPL_RESULT_DONE, 0);
}

/* "with the error that ended it, otherwise with -ESHUTDOWN": of a cancel either will do. */
static void a_job_may_be_cancelled_under_readers(void **state)
{
    (void)state;
    ends_under_readers(end_by_cancel, -ESHUTDOWN, -ECANCELED);
    ASSERT_ENDED(job, BLKREPL_RESULT_CANCELLED, -ECANCELED);
}

static void a_job_may_fail_under_readers(void **state)
{
    (void)state;
    ends_under_readers(end_by_failure, -ENOSPC, -ENOSPC);
    ASSERT_ENDED(job, BLKREPL_RESULT_FAILED, -ENOSPC);
}

/* "or is told to complete": from then on, though its flush has not returned. */
static void a_job_that_completes_shows_nothing_more(void **state)
{
    blkrepl_image *second = NULL;

    (void)state;
    take();
    fleece.tape.hold = BIT(BLKREPL_OP_FLUSH);
    end_by_complete();
    env_drain(&env);
    assert_true(job_state(job) != BLKREPL_JOB_CONCLUDED);
    ASSERT_CODE(reads(0, 512), -ESHUTDOWN);
    ASSERT_CODE(blkrepl_snapshot_open(job, NULL, &second), BLKREPL_ERR_STATE);
    assert_null(second);
    parts_run(&env, all, 3);
    ASSERT_ENDED(job, BLKREPL_RESULT_DONE, 0);
}

static void status_and_discard_fail_when_the_job_has_ended(void **state)
{
    blkrepl_extent extent[2];
    struct req req = {0};

    (void)state;
    take();
    end_by_complete();
    env_drain(&env);
    blkrepl_completion done = req_completion(&req);
    int rc = blkrepl_image_status(snapshot, 0, 0, SIZE, extent, 2, &done);
    env_drain(&env);
    ASSERT_CODE(rc == 0 ? req.result : rc, -ESHUTDOWN);
    req_reset(&req);
    rc = req_discard(&req, snapshot, 0, CLUSTER);
    env_drain(&env);
    ASSERT_CODE(rc == 0 ? req.result : rc, -ESHUTDOWN);
}

/* Old data that cannot be saved: with GUEST_WRITE_FAILS the snapshot stays good. */
static void a_guest_write_that_fails_leaves_the_snapshot_good(void **state)
{
    struct req req = {0};

    (void)state;
    o.on_cbw_error = BLKREPL_CBW_GUEST_WRITE_FAILS;
    take();
    part_fail(&fleece, BLKREPL_OP_WRITE, 3 * CLUSTER, 512, -ENOSPC);
    guest_write(&req, &disk, 3 * CLUSTER, 512, 50);
    env_drain(&env);
    req_assert_done(&req, -ENOSPC);
    ASSERT_CODE(reads(0, SIZE), 0);
    assert_same(memory, disk.start, SIZE, "snapshot");
    part_mend(&fleece);
    guest_writes(&env, &disk, 3 * CLUSTER, 512, 50);
    ASSERT_CODE(reads(0, SIZE), 0);
    assert_same(memory, disk.start, SIZE, "snapshot");
    ASSERT_STATE(job, BLKREPL_JOB_READY);
}

/* A read that fails is the reader's matter; the job goes on. */
static void a_failing_read_is_told_to_the_reader(void **state)
{
    (void)state;
    take();
    guest_writes(&env, &disk, 3 * CLUSTER, 512, 50);
    part_fail(&fleece, BLKREPL_OP_READ, 3 * CLUSTER, 512, -EIO);
    ASSERT_CODE(reads(3 * CLUSTER, 512), -EIO);
    part_fail(&disk, BLKREPL_OP_READ, 5 * CLUSTER, 512, -EILSEQ);
    ASSERT_CODE(reads(5 * CLUSTER, 512), -EILSEQ);
    part_mend(&disk);
    part_mend(&fleece);
    ASSERT_CODE(reads(0, SIZE), 0);
    assert_same(memory, disk.start, SIZE, "snapshot");
    ASSERT_STATE(job, BLKREPL_JOB_READY);
}

/* ---- Closing ------------------------------------------------------------------ */

static void it_may_be_closed_while_it_is_read(void **state)
{
    struct req req = {0};

    (void)state;
    take();
    disk.tape.hold = BIT(BLKREPL_OP_READ);
    ASSERT_CODE(req_read(&req, snapshot, 5 * CLUSTER, memory, CLUSTER), 0);
    env_drain(&env);
    blkrepl_image_close(snapshot);
    snapshot = NULL;
    env_drain(&env);
    assert_true(REQ_PENDING(&req));
    parts_run(&env, all, 3);
    req_assert_done(&req, 0);
    assert_same(memory, disk.start + 5 * CLUSTER, CLUSTER, "snapshot");
    end_by_complete();
    env_drain(&env);
    ASSERT_ENDED(job, BLKREPL_RESULT_DONE, 0);
}

static void it_may_stay_open_longer_than_everything_else(void **state)
{
    (void)state;
    take();
    end_by_complete();
    env_drain(&env);
    blkrepl_job_free(job);
    job = NULL;
    part_close(&disk);
    part_close(&fleece);
    env_drain(&env);
    ASSERT_CODE(reads(0, 512), -ESHUTDOWN);
    assert_int_equal(image_info(snapshot).bytes, SIZE);
}

/* The job's images are held as long as the job is; dropping its handle ends nothing. */
static void it_keeps_showing_when_the_handle_of_the_job_is_dropped(void **state)
{
    uint64_t id;

    (void)state;
    take();
    id = job_info(job).id;
    blkrepl_job_free(job);
    env_drain(&env);
    guest_writes(&env, &disk, 0, SIZE, 50);
    ASSERT_CODE(reads(0, SIZE), 0);
    assert_same(memory, disk.start, SIZE, "snapshot");
    ASSERT_CODE(blkrepl_job_next(env.ctx, 0, &job), 0);
    assert_int_equal(job_info(job).id, id);
}

static void a_backup_of_it_fails_when_its_job_ends(void **state)
{
    blkrepl_backup_options full = {.struct_size = sizeof full};
    blkrepl_job *backup = NULL;

    (void)state;
    take();
    copy.tape.hold = OPS_ALL;
    full.workers_max = 1;
    full.chunk_bytes_max = 1;
    ASSERT_CODE(blkrepl_backup_start(snapshot, copy.image, &full, &backup), 0);
    env_drain(&env);
    end_by_complete();
    parts_run(&env, all, 3);
    ASSERT_ENDED(backup, BLKREPL_RESULT_FAILED, -ESHUTDOWN);
    assert_int_equal(job_info(backup).error_side, BLKREPL_SIDE_SOURCE);
    ASSERT_ENDED(job, BLKREPL_RESULT_DONE, 0);
    blkrepl_job_free(backup);
}

static void a_verify_compares_it_with_a_backup(void **state)
{
    blkrepl_job *verify = NULL;

    (void)state;
    memcpy(copy.tape.data, disk.start, SIZE);
    copy.tape.data[7 * CLUSTER + 9] ^= 1;
    take();
    guest_writes(&env, &disk, 3 * CLUSTER, 3 * CLUSTER, 50);
    ASSERT_CODE(blkrepl_verify_start(snapshot, copy.image, NULL, &verify), 0);
    guest_writes(&env, &disk, 10 * CLUSTER, 512, 51);
    parts_run(&env, all, 3);
    ASSERT_ENDED(verify, BLKREPL_RESULT_DONE, 0);
    assert_int_equal(job_info(verify).differing_bytes, CLUSTER);
    blkrepl_job_free(verify);
}

/* ---- By seed ------------------------------------------------------------------ */

struct reader {
    struct req req;
    uint64_t at, len;
    bool busy;
    uint8_t data[LEN_MAX];
};

static struct reader readers[READERS];
static struct reader guests[GUESTS];

static void some_range(struct rng *rng, struct reader *r)
{
    r->len = rng_below(rng, rng_percent(rng, 50) ? 700 : LEN_MAX);
    r->at = rng_below(rng, SIZE - r->len + 1);
    r->busy = true;
}

static void reader_step(struct rng *rng, struct reader *r)
{
    if (!r->busy) {
        some_range(rng, r);
        ASSERT_CODE(req_read(&r->req, snapshot, r->at, r->data, (size_t)r->len), 0);
    } else if (!REQ_PENDING(&r->req)) {
        req_assert_done(&r->req, 0);
        assert_same(r->data, disk.start + r->at, r->len, "snapshot");
        r->busy = false;
    }
}

static void guest_step(struct rng *rng, struct reader *g, unsigned tag)
{
    if (g->busy && REQ_PENDING(&g->req)) {
        return;
    }
    some_range(rng, g);
    fill(g->data, sizeof g->data, g->at, tag);
    switch (rng_below(rng, 6)) {
    case 0: ASSERT_CODE(req_zeroes(&g->req, disk.image, g->at, g->len), 0); break;
    case 1: ASSERT_CODE(req_discard(&g->req, disk.image, g->at, g->len), 0); break;
    default: ASSERT_CODE(req_write(&g->req, disk.image, g->at, g->data, (size_t)g->len), 0); break;
    }
}

static void one_world(uint64_t seed)
{
    struct rng rng = {.state = seed};

    memset(readers, 0, sizeof readers);
    memset(guests, 0, sizeof guests);
    tape_fill(&disk.tape, (unsigned)seed);
    part_note(&disk);
    part_spoil_discards(&disk); /* discards of the guest hurt the source */
    o.cluster_bytes = UINT64_C(4096) << rng_below(&rng, 6);
    o.on_cbw_error = 1 + (uint32_t)rng_below(&rng, 2);
    o.reserve_bytes = 4 * CLUSTER;
    take();
    disk.tape.hold = OPS_ALL & ~BIT(BLKREPL_OP_DISCARD);
    fleece.tape.hold = OPS_ALL;
    for (int n = 0; n < 500; n++) {
        struct tape *t = rng_percent(&rng, 60) ? &disk.tape : &fleece.tape;
        size_t pending = tape_pending(t, 0);

        switch (rng_below(&rng, 4)) {
        case 0: reader_step(&rng, &readers[rng_below(&rng, READERS)]); break;
        case 1: guest_step(&rng, &guests[rng_below(&rng, GUESTS)], (unsigned)n); break;
        case 2: blkrepl_poll(env.ctx, 0, 0); break;
        default:
            if (pending) {
                ASSERT_CODE(tape_finish(t, (int)rng_below(&rng, pending), 0), 0);
            }
            break;
        }
    }
    parts_run(&env, all, 3);
    for (int i = 0; i < READERS; i++) {
        reader_step(&rng, &readers[i]);
    }
    parts_run(&env, all, 3);
    ASSERT_CODE(reads(0, SIZE), 0);
    assert_same(memory, disk.start, SIZE, "snapshot");
    blkrepl_image_close(snapshot);
    snapshot = NULL;
    end_by_complete();
    env_drain(&env);
    ASSERT_ENDED(job, BLKREPL_RESULT_DONE, 0);
    job_drop(&env, &job);
}

static void by_seed_nobody_is_told_wrong_data(void **state)
{
    (void)state;
    for (uint64_t seed = 1; seed <= (quick() ? 8 : 60); seed++) {
        one_world(seed);
    }
}

int main(void)
{
#define T(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)
    const struct CMUnitTest tests[] = {
        T(it_is_opened_of_a_ready_job_only),
        T(a_job_that_copies_has_no_snapshot),
        T(bad_options_are_refused_and_let_the_user_go),
        T(a_newer_option_is_refused),
        T(a_job_may_complete_under_readers),
        T(a_job_may_be_cancelled_under_readers),
        T(a_job_may_fail_under_readers),
        T(a_job_that_completes_shows_nothing_more),
        T(status_and_discard_fail_when_the_job_has_ended),
        T(a_guest_write_that_fails_leaves_the_snapshot_good),
        T(a_failing_read_is_told_to_the_reader),
        T(it_may_be_closed_while_it_is_read),
        T(it_may_stay_open_longer_than_everything_else),
        T(it_keeps_showing_when_the_handle_of_the_job_is_dropped),
        T(a_backup_of_it_fails_when_its_job_ends),
        T(a_verify_compares_it_with_a_backup),
        T(by_seed_nobody_is_told_wrong_data),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
