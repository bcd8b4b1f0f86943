/* SPDX-License-Identifier: MIT */
#include "core/port.h"

#include "unit/rig.h"

#define LANES 2
#define SLOTS 256

/* A port in a context of two lanes, and a backend that keeps what it gets. */
struct bench {
    struct blkrepl_context ctx;
    struct lane lanes[LANES];
    struct request slots[SLOTS];
    struct request_pool pool;
    struct port port;
    struct port_queue guest[LANES];
    struct request *queued[SLOTS]; /* what the test has submitted and not seen again */
    unsigned queued_count;
    uint64_t given[SLOTS * 64]; /* ids in the order of submission */
    unsigned given_count;
    unsigned in_flight;
    unsigned submits;
    unsigned batch_most;
    unsigned cancels;
    uint64_t cancelled;
    unsigned closed;
    unsigned freed;
    bool locked_in_host; /* a call into the host came with the lock held */
    bool freed_first;
    void (*inside)(struct bench *b); /* called in submit */
    void *inside_user;
};

static struct bench *bench_of(struct request *request)
{
    return CONTAINER_OF(request->port, struct bench, port);
}

/* The lock is free while the host runs. */
static void look_at_lock(struct bench *b)
{
    if (pthread_mutex_trylock(&b->ctx.lock) != 0) {
        b->locked_in_host = true;
        return;
    }
    pthread_mutex_unlock(&b->ctx.lock);
}

static void bench_submit(void *user, uint32_t lane, blkrepl_io *const *ios, uint32_t count)
{
    struct bench *b = user;

    look_at_lock(b);
    b->submits++;
    b->batch_most = count > b->batch_most ? count : b->batch_most;
    for (uint32_t i = 0; i < count; i++) {
        b->given[b->given_count++] = ios[i]->id;
        b->in_flight++;
        if (ios[i]->lane != lane || ios[i]->struct_size != sizeof *ios[i]) {
            b->locked_in_host = true;
        }
    }
    if (b->inside != NULL) {
        b->inside(b);
    }
}

static void bench_cancel(void *user, uint64_t id)
{
    struct bench *b = user;

    look_at_lock(b);
    b->cancels++;
    b->cancelled = id;
}

static void bench_close(void *user)
{
    struct bench *b = user;

    look_at_lock(b);
    b->closed++;
    b->freed_first = b->freed > 0;
}

static void bench_freed(struct port *port)
{
    CONTAINER_OF(port, struct bench, port)->freed++;
}

static void bench_ended(struct request *request)
{
    bench_of(request)->in_flight--;
}

static struct bench *bench_open(uint32_t depth)
{
    struct bench *b = calloc(1, sizeof *b);

    assert_non_null(b);
    pthread_mutex_init(&b->ctx.lock, NULL);
    b->ctx.lane_count = LANES;
    b->ctx.lanes = b->lanes;
    b->ctx.slots = b->slots;
    b->ctx.slot_count = SLOTS;
    list_init(&b->ctx.job_queues);
    list_init(&b->ctx.closing);
    list_init(&b->ctx.yielding);
    list_init(&b->ctx.strays);
    list_init(&b->ctx.completed);
    for (int i = 0; i < LANES; i++) {
        list_init(&b->lanes[i].queues);
    }
    blkrepl__request_pool_init(&b->pool, b->slots, 0, SLOTS);
    b->port.ops =
        (blkrepl_backend_ops){.submit = bench_submit, .cancel = bench_cancel, .close = bench_close};
    b->port.backend = b;
    b->port.info.queue_depth = depth;
    b->port.freed = bench_freed;
    pthread_mutex_lock(&b->ctx.lock);
    blkrepl__port_init(&b->port, &b->ctx, b->guest);
    assert_int_equal(b->ctx.ports, 1);
    return b;
}

static void bench_free(struct bench *b)
{
    assert_false(b->locked_in_host);
    pthread_mutex_unlock(&b->ctx.lock);
    pthread_mutex_destroy(&b->ctx.lock);
    free(b);
}

static struct request *take(struct bench *b)
{
    struct request *request = blkrepl__request_take(&b->pool);

    assert_non_null(request);
    request->ended = bench_ended;
    return request;
}

static struct request *submit_guest(struct bench *b, uint32_t lane)
{
    struct request *request = take(b);

    blkrepl__port_submit_guest(&b->port, request, lane);
    return request;
}

static struct request *submit_read(struct bench *b, uint32_t lane)
{
    struct request *request = take(b);

    blkrepl__port_submit_read(&b->port, request, lane);
    return request;
}

static struct request *submit_job(struct bench *b, bool urgent)
{
    struct request *request = take(b);

    blkrepl__port_submit_job(&b->port, request, urgent);
    return request;
}

/* Submit one batch of a queue that says it is ready; false if none does. */
static bool flush(struct list *ready)
{
    if (list_empty(ready)) {
        return false;
    }
    blkrepl__port_flush(CONTAINER_OF(ready->next, struct port_queue, link));
    return true;
}

static void flush_all(struct bench *b)
{
    while (flush(&b->lanes[0].queues) || flush(&b->lanes[1].queues) || flush(&b->ctx.job_queues)) {
    }
}

static bool live(const struct request *request)
{
    return atomic_load(&request->live_id) != 0;
}

/* The backend completes a request and it is handled. */
static void end(struct bench *b, struct request *request)
{
    assert_true(live(request));
    assert_int_equal(blkrepl_io_complete(&b->ctx, request->io.id, 0), 0);
    assert_false(live(request));
    atomic_store(&b->lanes[request->io.lane].inbox, NULL);
    blkrepl__port_ended(request);
    request->ended(request);
}

static void port_keeps_the_order_within_each_queue(void **state)
{
    struct bench *b = bench_open(64);
    struct request *requests[40];

    (void)state;
    for (unsigned i = 0; i < 40; i++) {
        requests[i] = submit_guest(b, 1);
    }
    assert_true(list_empty(&b->lanes[0].queues));
    flush_all(b);
    assert_int_equal(b->given_count, 40);
    assert_true(b->submits > 1 && b->batch_most <= 32); /* no endless batch */
    for (unsigned i = 0; i < 40; i++) {
        assert_true(requests[i]->io.id == b->given[i]);
        assert_int_equal(requests[i]->io.lane, 1);
        end(b, requests[i]);
    }
    bench_free(b);
}

static void port_never_has_more_in_flight_than_the_depth(void **state)
{
    struct bench *b = bench_open(3);
    struct request *first = submit_guest(b, 0);

    (void)state;
    for (int i = 0; i < 5; i++) {
        submit_guest(b, i & 1);
        submit_job(b, false);
    }
    flush_all(b);
    assert_int_equal(b->in_flight, 3);
    assert_true(list_empty(&b->lanes[0].queues) && list_empty(&b->lanes[1].queues));
    end(b, first);
    assert_false(list_empty(&b->lanes[0].queues)); /* there is room again */
    flush_all(b);
    assert_int_equal(b->in_flight, 3);
    bench_free(b);
}

static void port_offers_jobs_only_when_no_guest_request_waits(void **state)
{
    struct bench *b = bench_open(2);
    struct request *job = submit_job(b, true);
    struct request *guest[3];

    (void)state;
    for (int i = 0; i < 3; i++) {
        guest[i] = submit_guest(b, 0);
    }
    flush(&b->ctx.job_queues);
    assert_false(live(job));
    flush_all(b);
    assert_true(live(guest[0]) && live(guest[1]) && !live(guest[2]) && !live(job));
    end(b, guest[0]);
    flush(&b->ctx.job_queues);
    assert_false(live(job));
    flush_all(b);
    assert_true(live(guest[2]) && !live(job));
    end(b, guest[1]);
    assert_false(list_empty(&b->ctx.job_queues));
    flush_all(b);
    assert_true(live(job)); /* half of 2 */
    bench_free(b);
}

/* Jobs in flight when one guest request is, for a depth. */
static unsigned jobs_beside_a_guest(uint32_t depth)
{
    struct bench *b = bench_open(depth);
    struct request *guest = submit_guest(b, 0);
    unsigned jobs;

    flush_all(b);
    for (int i = 0; i < 20; i++) {
        submit_job(b, false);
    }
    flush_all(b);
    jobs = b->port.job_in_flight;
    assert_int_equal(b->in_flight, jobs + 1);
    end(b, guest);
    flush_all(b);
    assert_int_equal(b->in_flight, depth < 20 ? depth : 20); /* alone they may have it all */
    bench_free(b);
    return jobs;
}

static void port_gives_jobs_half_of_the_depth_while_guests_are_about(void **state)
{
    (void)state;
    assert_int_equal(jobs_beside_a_guest(1), 0); /* no room at all */
    assert_int_equal(jobs_beside_a_guest(2), 1);
    assert_int_equal(jobs_beside_a_guest(3), 1);
    assert_int_equal(jobs_beside_a_guest(5), 2);
    assert_int_equal(jobs_beside_a_guest(8), 4);
}

static void port_serves_a_job_at_depth_one(void **state)
{
    struct bench *b = bench_open(1);
    struct request *job = submit_job(b, false);

    (void)state;
    flush_all(b);
    assert_true(live(job));
    end(b, job);
    bench_free(b);
}

static void port_jobs_that_hold_more_than_half_get_nothing_until_they_hold_less(void **state)
{
    struct bench *b = bench_open(4);
    struct request *jobs[4];
    struct request *late;

    (void)state;
    for (int i = 0; i < 4; i++) {
        jobs[i] = submit_job(b, false);
    }
    flush_all(b);
    submit_guest(b, 0);
    late = submit_job(b, true);
    end(b, jobs[0]);
    flush_all(b); /* the guest has the room that has come */
    assert_int_equal(b->port.guest_in_flight, 1);
    end(b, jobs[1]);
    flush_all(b);
    assert_false(live(late)); /* 2 of 4 are the jobs' */
    end(b, jobs[2]);
    flush_all(b);
    assert_true(live(late));
    bench_free(b);
}

static void port_jobs_get_the_room_that_the_last_waiting_guest_leaves(void **state)
{
    struct bench *b = bench_open(4);
    struct request *guest[4];
    struct request *job;

    (void)state;
    for (int i = 0; i < 4; i++) {
        guest[i] = submit_guest(b, 0);
    }
    flush_all(b);
    submit_guest(b, 0);
    job = submit_job(b, false);
    for (int i = 0; i < 4; i++) {
        end(b, guest[i]);
    }
    flush_all(b);
    assert_true(live(job));
    bench_free(b);
}

static void port_urgent_requests_go_before_other_jobs(void **state)
{
    struct bench *b = bench_open(64);
    struct request *slow = submit_job(b, false);
    struct request *first = submit_job(b, true);
    struct request *second = submit_job(b, true);

    (void)state;
    flush_all(b);
    assert_true(b->given[0] == first->io.id);
    assert_true(b->given[1] == second->io.id);
    assert_true(b->given[2] == slow->io.id);
    assert_int_equal(slow->io.lane, 0);
    bench_free(b);
}

/* What a host may do inside submit: hand over more. */
static void submit_more(struct bench *b)
{
    b->inside = NULL;
    pthread_mutex_lock(&b->ctx.lock);
    assert_true(b->guest[0].held);
    b->inside_user = submit_guest(b, 0);
    assert_true(list_empty(&b->lanes[0].queues)); /* the queue is held */
    submit_guest(b, 1);
    assert_false(list_empty(&b->lanes[1].queues)); /* this one is not */
    pthread_mutex_unlock(&b->ctx.lock);
}

static void port_one_thread_at_a_time_holds_a_queue(void **state)
{
    struct bench *b = bench_open(8);
    struct request *inner;

    (void)state;
    submit_guest(b, 0);
    b->inside = submit_more;
    flush(&b->lanes[0].queues);
    inner = b->inside_user;
    assert_false(live(inner));
    assert_int_equal(b->submits, 1); /* nothing has recursed */
    assert_false(list_empty(&b->lanes[0].queues));
    flush_all(b);
    assert_true(live(inner));
    bench_free(b);
}

static void port_withdraws_what_the_backend_has_not_got(void **state)
{
    struct bench *b = bench_open(1);
    struct request *given = submit_guest(b, 0);
    struct request *waits;
    struct request *job;

    (void)state;
    flush_all(b);
    waits = submit_guest(b, 0);
    job = submit_job(b, false);
    assert_false(blkrepl__port_withdraw(given));
    assert_true(blkrepl__port_withdraw(waits));
    assert_false(blkrepl__port_withdraw(waits));
    assert_false(list_linked(&waits->link));
    end(b, given);
    flush_all(b);
    assert_true(live(job)); /* no guest waits any more */
    assert_int_equal(b->given_count, 2);
    end(b, job);
    job = submit_job(b, true);
    assert_true(blkrepl__port_withdraw(job));
    flush_all(b);
    assert_int_equal(b->given_count, 2);
    bench_free(b);
}

static void port_withdrawing_the_last_guest_lets_jobs_go(void **state)
{
    struct bench *b = bench_open(4);
    struct request *waits = submit_guest(b, 0);
    struct request *job = submit_job(b, false);

    (void)state;
    assert_true(list_empty(&b->ctx.job_queues));
    assert_true(blkrepl__port_withdraw(waits));
    assert_false(list_empty(&b->ctx.job_queues));
    flush_all(b);
    assert_true(live(job) && !live(waits));
    bench_free(b);
}

static void port_asks_to_cancel_only_what_the_backend_has(void **state)
{
    struct bench *b = bench_open(1);
    struct request *given = submit_guest(b, 0);
    struct request *waits = submit_guest(b, 0);

    (void)state;
    flush(&b->lanes[0].queues);
    blkrepl__port_cancel(waits);
    assert_int_equal(b->cancels, 0);
    blkrepl__port_cancel(given);
    assert_int_equal(b->cancels, 1);
    assert_true(b->cancelled == given->io.id);
    end(b, given);
    blkrepl__port_cancel(given);
    assert_int_equal(b->cancels, 1);
    b->port.ops.cancel = NULL;
    flush_all(b);
    blkrepl__port_cancel(waits);
    bench_free(b);
}

static bool closing(const struct bench *b)
{
    return !list_empty(&b->ctx.closing);
}

static void port_is_closed_last_and_once(void **state)
{
    struct bench *b = bench_open(1);
    struct request *given = submit_guest(b, 1);
    struct request *waits;
    struct request *job;

    (void)state;
    flush_all(b);
    waits = submit_guest(b, 0);
    job = submit_job(b, false);
    blkrepl__port_drop(&b->port);
    assert_false(closing(b));
    end(b, given);
    assert_false(closing(b)); /* two wait */
    flush_all(b);
    end(b, waits);
    assert_false(closing(b)); /* the job's waits */
    flush_all(b);
    assert_false(closing(b)); /* in flight */
    end(b, job);
    assert_true(closing(b));
    blkrepl__port_check_close(&b->port);
    blkrepl__port_close(&b->port);
    assert_false(closing(b));
    assert_int_equal(b->closed, 1);
    assert_int_equal(b->freed, 1);
    assert_false(b->freed_first);
    assert_int_equal(b->ctx.ports, 0);
    bench_free(b);
}

/* Drop the port and complete everything while submit runs. */
static void finish_inside(struct bench *b)
{
    struct request *request = b->inside_user;

    b->inside = NULL;
    pthread_mutex_lock(&b->ctx.lock);
    blkrepl__port_drop(&b->port);
    atomic_store(&request->live_id, 0);
    blkrepl__port_ended(request);
    b->in_flight--;
    assert_false(closing(b)); /* this thread is inside */
    pthread_mutex_unlock(&b->ctx.lock);
}

static void port_is_not_closed_while_a_thread_is_inside(void **state)
{
    struct bench *b = bench_open(4);

    (void)state;
    b->inside_user = submit_guest(b, 0);
    b->inside = finish_inside;
    flush(&b->lanes[0].queues);
    assert_true(closing(b));
    b->port.ops.close = NULL; /* nothing to do for this backend */
    blkrepl__port_close(&b->port);
    assert_int_equal(b->freed, 1);
    bench_free(b);
}

static void port_that_is_not_dropped_is_never_closed(void **state)
{
    struct bench *b = bench_open(4);
    struct request *request = submit_guest(b, 0);

    (void)state;
    flush_all(b);
    end(b, request);
    assert_false(closing(b));
    blkrepl__port_drop(&b->port);
    assert_true(closing(b));
    blkrepl__port_close(&b->port);
    bench_free(b);
}

/* ---- Lanes that nobody polls -------------------------------------------------- */

static void port_job_leaves_the_only_place_to_other_lanes_for_a_while(void **state)
{
    struct bench *b = bench_open(1);
    struct request *first = submit_guest(b, 0);
    struct request *guest;
    struct request *job;

    (void)state;
    flush_all(b);
    guest = submit_guest(b, 1); /* nobody will flush its lane */
    job = submit_job(b, false);
    assert_true(list_empty(&b->ctx.yielding)); /* there is no place to leave */
    end(b, first);
    for (int round = 0; round < 2; round++) {
        for (int polls = 0; polls < 64; polls++) {
            assert_true(list_empty(&b->ctx.job_queues));
            assert_false(list_empty(&b->ctx.yielding));
            blkrepl__port_help_lanes(&b->ctx);
        }
        assert_true(list_empty(&b->ctx.yielding));
        assert_true(flush(&b->ctx.job_queues)); /* the last one has lost its patience */
        assert_true(live(job) && !live(guest));
        end(b, job);
        job = submit_job(b, true); /* the next waits as long */
    }
    flush(&b->lanes[1].queues);
    assert_true(live(guest));
    end(b, guest);
    assert_true(list_empty(&b->ctx.yielding)); /* no guest is about */
    flush_all(b);
    assert_true(live(job));
    bench_free(b);
}

static void port_job_leaves_nothing_where_it_has_half(void **state)
{
    struct bench *b = bench_open(2);
    struct request *job;

    (void)state;
    submit_guest(b, 1);
    job = submit_job(b, false);
    submit_job(b, false);
    assert_true(list_empty(&b->ctx.yielding));
    while (flush(&b->ctx.job_queues)) {
    }
    assert_true(live(job));
    assert_int_equal(b->port.job_in_flight, 1);
    bench_free(b);
}

static void port_job_stops_yielding_when_the_guest_is_taken_back(void **state)
{
    struct bench *b = bench_open(1);
    struct request *guest = submit_guest(b, 1);
    struct request *job = submit_job(b, false);

    (void)state;
    assert_false(list_empty(&b->ctx.yielding));
    assert_true(blkrepl__port_withdraw(guest));
    assert_true(list_empty(&b->ctx.yielding));
    flush_all(b);
    assert_true(live(job));
    bench_free(b);
}

static void port_job_that_is_taken_back_yields_no_more(void **state)
{
    struct bench *b = bench_open(1);
    struct request *guest = submit_guest(b, 1);
    struct request *job = submit_job(b, false);

    (void)state;
    assert_true(blkrepl__port_withdraw(job));
    assert_true(list_empty(&b->ctx.yielding));
    flush_all(b);
    assert_true(live(guest));
    bench_free(b);
}

static void port_reads_of_old_data_go_before_other_requests_of_their_lane(void **state)
{
    struct bench *b = bench_open(64);
    struct request *plain = submit_guest(b, 1);
    struct request *first = submit_read(b, 1);
    struct request *second = submit_read(b, 1);

    (void)state;
    assert_false(first->job); /* they are no part of the jobs' half */
    flush_all(b);
    assert_true(b->given[0] == first->io.id && b->given[1] == second->io.id);
    assert_true(b->given[2] == plain->io.id);
    assert_int_equal(first->io.lane, 1);
    bench_free(b);
}

static void port_lane_0_takes_over_reads_of_old_data_and_nothing_else(void **state)
{
    struct bench *b = bench_open(64);
    struct request *plain = submit_guest(b, 1);
    struct request *waits = submit_guest(b, 0);
    struct request *first;
    struct request *second;

    (void)state;
    assert_true(list_empty(&b->ctx.strays));
    first = submit_read(b, 1);
    second = submit_read(b, 1);
    assert_false(list_empty(&b->ctx.strays));
    blkrepl__port_help_lanes(&b->ctx);
    assert_true(list_empty(&b->ctx.strays));
    assert_int_equal(first->io.lane + second->io.lane, 0);
    assert_int_equal(b->port.guest_waiting, 4);
    flush(&b->lanes[0].queues);
    assert_true(b->given[0] == first->io.id && b->given[1] == second->io.id);
    assert_true(b->given[2] == waits->io.id && !live(plain));
    assert_false(list_empty(&b->lanes[1].queues));
    flush_all(b);
    assert_int_equal(plain->io.lane, 1);
    bench_free(b);
}

static void port_read_that_finds_no_room_becomes_a_stray_when_there_is(void **state)
{
    struct bench *b = bench_open(1);
    struct request *given = submit_guest(b, 0);
    struct request *read;

    (void)state;
    flush_all(b);
    read = submit_read(b, 1);
    submit_read(b, 0); /* lane 0 has no strays */
    assert_true(list_empty(&b->ctx.strays));
    end(b, given);
    assert_ptr_equal(b->ctx.strays.next, &b->guest[1].aside);
    assert_ptr_equal(b->ctx.strays.prev, &b->guest[1].aside);
    assert_true(blkrepl__port_withdraw(read));
    assert_true(list_empty(&b->ctx.strays));
    assert_true(list_empty(&b->lanes[1].queues));
    bench_free(b);
}

static void port_hastens_what_is_queued_on_another_lane(void **state)
{
    struct bench *b = bench_open(1);
    struct request *given = submit_guest(b, 1);
    struct request *requests[3];
    struct request *own;

    (void)state;
    flush_all(b);
    own = submit_guest(b, 0);
    for (int i = 0; i < 3; i++) {
        requests[i] = submit_guest(b, 1);
    }
    blkrepl__port_hasten(given); /* the backend has it */
    assert_int_equal(given->io.lane, 1);
    blkrepl__port_hasten(own);
    blkrepl__port_hasten(requests[1]);
    blkrepl__port_hasten(requests[1]);
    assert_true(requests[1]->queued && requests[1]->io.lane == 0);
    assert_int_equal(b->port.guest_waiting, 4);
    end(b, given);
    flush(&b->lanes[0].queues);
    assert_true(live(own) && !live(requests[1]));
    end(b, own);
    flush(&b->lanes[0].queues);
    assert_true(live(requests[1]));
    end(b, requests[1]);
    assert_true(list_empty(&b->lanes[0].queues));
    flush_all(b);
    assert_true(live(requests[0]) && requests[0]->io.lane == 1);
    bench_free(b);
}

/* ---- A random walk against the invariants ----------------------------------- */

struct walk {
    struct bench *b;
    struct rng rng;
    unsigned guest_waiting;
    unsigned guest_flying;
    unsigned job_waiting;
    unsigned job_flying;
};

static void walk_count(struct walk *w)
{
    w->guest_waiting = w->guest_flying = w->job_waiting = w->job_flying = 0;
    for (unsigned i = 0; i < w->b->queued_count; i++) {
        const struct request *request = w->b->queued[i];

        assert_true(request->queued != live(request)); /* invariant 3 */
        *(request->job ? (live(request) ? &w->job_flying : &w->job_waiting)
                       : (live(request) ? &w->guest_flying : &w->guest_waiting)) += 1;
    }
}

static bool queue_waits(const struct port_queue *queue)
{
    return !list_empty(&queue->waiting) || !list_empty(&queue->first);
}

/* Who is on a list aside, for lane 0 to see; nobody holds a queue. */
static void walk_check_aside(const struct walk *w, bool yields)
{
    const struct port *port = &w->b->port;
    bool idle = w->guest_flying + w->job_flying == 0;

    for (int lane = 0; lane < LANES; lane++) {
        assert_int_equal(list_linked(&w->b->guest[lane].aside),
                         lane > 0 && list_linked(&w->b->guest[lane].link) &&
                             !list_empty(&w->b->guest[lane].first));
    }
    assert_int_equal(list_linked(&port->job.aside),
                     w->job_waiting > 0 && idle && yields && !list_linked(&port->job.link));
}

static void walk_check(struct walk *w, bool gave_job)
{
    const struct port *port = &w->b->port;
    uint32_t depth = port->info.queue_depth;
    unsigned half = depth / 2 > 0 ? depth / 2 : 1;
    bool beside;
    bool yields;
    bool room;

    walk_count(w);
    assert_true(w->guest_flying + w->job_flying <= depth); /* invariant 1 */
    assert_int_equal(port->guest_in_flight, w->guest_flying);
    assert_int_equal(port->job_in_flight, w->job_flying);
    assert_int_equal(port->guest_waiting, w->guest_waiting);
    beside = w->guest_flying + w->guest_waiting > 0;
    yields = depth == 1 && w->guest_waiting > 0 && port->yields < 64;
    if (gave_job) { /* invariant 2 */
        assert_false(queue_waits(&port->guest[0]));
        assert_true(!beside || w->job_flying <= half);
    }
    room = w->guest_flying + w->job_flying < depth; /* invariant 4; nobody holds a queue */
    for (int lane = 0; lane < LANES; lane++) {
        assert_int_equal(list_linked(&w->b->guest[lane].link),
                         room && queue_waits(&w->b->guest[lane]));
    }
    assert_int_equal(list_linked(&port->job.link), room && w->job_waiting > 0 &&
                                                       !queue_waits(&port->guest[0]) && !yields &&
                                                       (!beside || w->job_flying < half));
    walk_check_aside(w, yields);
}

static void walk_submit(struct walk *w)
{
    struct bench *b = w->b;
    uint64_t kind = rng_below(&w->rng, 6);

    if (b->queued_count < 40) {
        b->queued[b->queued_count] = kind < 2   ? submit_guest(b, (uint32_t)kind)
                                     : kind < 4 ? submit_read(b, (uint32_t)kind - 2)
                                                : submit_job(b, kind == 5);
        b->queued_count++;
    }
}

/* What lane 0 does for others, and what others ask of it. */
static void walk_help(struct walk *w)
{
    struct bench *b = w->b;
    uint64_t what = rng_below(&w->rng, 3);

    if (what == 0 && b->queued_count > 0) {
        struct request *request = b->queued[rng_below(&w->rng, b->queued_count)];

        if (!request->job) {
            blkrepl__port_hasten(request);
            assert_true(!request->queued || request->io.lane == 0);
        }
    } else {
        for (uint64_t polls = what == 1 ? 1 : 100; polls > 0; polls--) {
            blkrepl__port_help_lanes(&b->ctx);
        }
        assert_true(list_empty(&b->ctx.strays));
    }
}

/* Withdraw or complete any of them. */
static void walk_remove(struct walk *w)
{
    struct bench *b = w->b;
    unsigned at;
    struct request *request;

    if (b->queued_count == 0) {
        return;
    }
    at = (unsigned)rng_below(&w->rng, b->queued_count);
    request = b->queued[at];
    if (live(request)) {
        end(b, request);
    } else if (rng_below(&w->rng, 4) == 0) {
        assert_true(blkrepl__port_withdraw(request));
    } else {
        return;
    }
    blkrepl__request_put(&b->pool, request);
    b->queued[at] = b->queued[--b->queued_count];
}

static void port_invariants_hold_on_a_random_walk(void **state)
{
    struct walk w = {.rng = {7}};
    unsigned steps = quick() ? 3000 : 20000;

    (void)state;
    for (uint32_t depth = 1; depth <= 9; depth += 2) {
        w.b = bench_open(depth);
        for (unsigned i = 0; i < steps / 5; i++) {
            uint64_t what = rng_below(&w.rng, 9);
            unsigned before = w.b->port.job_in_flight;
            bool flushed_job = false;

            w.b->given_count = 0;
            if (what < 3) {
                walk_submit(&w);
            } else if (what < 5) {
                walk_remove(&w);
            } else if (what < 7) {
                flush(&w.b->lanes[what - 5].queues);
            } else if (what == 8) {
                walk_help(&w);
            } else {
                flush(&w.b->ctx.job_queues);
                flushed_job = w.b->port.job_in_flight > before;
            }
            walk_check(&w, flushed_job);
        }
        w.b->queued_count = 0;
        bench_free(w.b);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(port_keeps_the_order_within_each_queue),
        cmocka_unit_test(port_never_has_more_in_flight_than_the_depth),
        cmocka_unit_test(port_offers_jobs_only_when_no_guest_request_waits),
        cmocka_unit_test(port_gives_jobs_half_of_the_depth_while_guests_are_about),
        cmocka_unit_test(port_serves_a_job_at_depth_one),
        cmocka_unit_test(port_jobs_that_hold_more_than_half_get_nothing_until_they_hold_less),
        cmocka_unit_test(port_jobs_get_the_room_that_the_last_waiting_guest_leaves),
        cmocka_unit_test(port_urgent_requests_go_before_other_jobs),
        cmocka_unit_test(port_one_thread_at_a_time_holds_a_queue),
        cmocka_unit_test(port_withdraws_what_the_backend_has_not_got),
        cmocka_unit_test(port_withdrawing_the_last_guest_lets_jobs_go),
        cmocka_unit_test(port_asks_to_cancel_only_what_the_backend_has),
        cmocka_unit_test(port_is_closed_last_and_once),
        cmocka_unit_test(port_is_not_closed_while_a_thread_is_inside),
        cmocka_unit_test(port_that_is_not_dropped_is_never_closed),
        cmocka_unit_test(port_job_leaves_the_only_place_to_other_lanes_for_a_while),
        cmocka_unit_test(port_job_leaves_nothing_where_it_has_half),
        cmocka_unit_test(port_job_stops_yielding_when_the_guest_is_taken_back),
        cmocka_unit_test(port_job_that_is_taken_back_yields_no_more),
        cmocka_unit_test(port_reads_of_old_data_go_before_other_requests_of_their_lane),
        cmocka_unit_test(port_lane_0_takes_over_reads_of_old_data_and_nothing_else),
        cmocka_unit_test(port_read_that_finds_no_room_becomes_a_stray_when_there_is),
        cmocka_unit_test(port_hastens_what_is_queued_on_another_lane),
        cmocka_unit_test(port_invariants_hold_on_a_random_walk),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
