/* SPDX-License-Identifier: MIT */
/* io_guest.c - the guest's requests and brackets, good ones and bad ones. */
#include "io.h"

#include <stdlib.h>

#define HUGE_PART (4 * KIB)
#define PIECES_MAX 64

/* ---- Ranges and memory ------------------------------------------------------- */

/* A request of more pieces than that takes too long. */
static uint64_t bytes_most(void)
{
    const blkrepl_backend_info *info = &io.disk.info;
    uint64_t most = UINT64_MAX;

    if (info->transfer_bytes_max > 0) {
        most = PIECES_MAX * info->transfer_bytes_max;
    }
    if (info->zeroes_bytes_max > 0 && PIECES_MAX * info->zeroes_bytes_max < most) {
        most = PIECES_MAX * info->zeroes_bytes_max;
    }
    return most;
}

/* The bytes of the disk that the guest uses: all, or its first and its last. */
static void draw_range(uint64_t *offset, uint64_t *bytes)
{
    uint64_t size = io.disk.info.bytes;
    uint64_t part = io.huge ? HUGE_PART : size;
    uint64_t base = io.huge && take_chance(50) ? size - HUGE_PART : 0;
    uint64_t start = take_u16() % (part + 1);
    uint64_t left;

    if (take_chance(50)) {
        start -= start % disk_alignment(&io.disk);
    }
    left = part - start;
    switch (take_below(4)) {
    case 0: *bytes = take_u8(); break;
    case 1: *bytes = take_u16() % 2048; break;
    case 2: *bytes = (1 + take_below(4)) * disk_alignment(&io.disk); break;
    default: *bytes = left; break;
    }
    *bytes = *bytes < left ? *bytes : left;
    *bytes = *bytes < bytes_most() ? *bytes : bytes_most();
    *offset = base + start;
}

static void *memory_new(struct request *request, uint32_t i, size_t bytes)
{
    size_t align = io.disk.info.memory_alignment;
    size_t skew = take_chance(25) ? 1u + take_below(64) : 0;
    void *memory = NULL;

    align = align < sizeof(void *) ? sizeof(void *) : align;
    EXPECT(posix_memalign(&memory, align, skew + (bytes > 0 ? bytes : 1)) == 0,
           "memory for the harness");
    request->memory[i] = memory;
    return (uint8_t *)memory + skew;
}

/* Cut the range into pieces of memory, some of them empty. */
static void draw_iov(struct request *request)
{
    uint64_t left = request->bytes;
    uint64_t alignment = io.disk.info.memory_alignment;
    uint32_t most = take_below(IOVS_MAX);

    request->iov = fuzz_alloc((most + 1) * sizeof *request->iov);
    while (request->iov_count < most && left > 0) {
        uint64_t len = take_below(3) == 0 ? take_u8() : take_u16() % 1024;
        blkrepl_iovec *iov = &request->iov[request->iov_count];

        if (alignment > 1 && take_chance(60)) {
            len = (len / 64 + 1) * alignment;
        }
        iov->len = (size_t)(len < left ? len : left);
        iov->base = memory_new(request, request->iov_count++, iov->len);
        left -= iov->len;
    }
    if (left > 0 || take_chance(20)) {
        blkrepl_iovec *iov = &request->iov[request->iov_count];

        iov->len = (size_t)left;
        iov->base = memory_new(request, request->iov_count++, iov->len);
    }
}

static void fill_iov(const struct request *request)
{
    uint64_t done = 0;

    for (uint32_t i = 0; i < request->iov_count; i++) {
        if (request->opcode == BLKREPL_OP_WRITE) {
            model_fill(request->iov[i].base, request->tag, request->offset + done,
                       request->iov[i].len);
        } else {
            memset(request->iov[i].base, 0x11, request->iov[i].len);
        }
        done += request->iov[i].len;
    }
}

static void request_free(struct request *request)
{
    for (uint32_t i = 0; i < request->iov_count; i++) {
        free(request->memory[i]);
    }
    free(request->iov);
    free(request->extents);
    free(request->may);
    request->iov_count = 0;
    request->iov = NULL;
    request->extents = NULL;
    request->may = NULL;
}

/* ---- The life of a request --------------------------------------------------- */

static struct request *request_new(uint32_t opcode)
{
    struct request *request;

    if (io.request_count == REQUESTS_MAX ||
        (opcode == BLKREPL_OP_WRITE && io.next_tag == TAG_COUNT)) {
        return NULL;
    }
    request = &io.requests[io.request_count++];
    *request = (struct request){.opcode = opcode};
    switch (opcode) {
    case BLKREPL_OP_WRITE: request->tag = io.next_tag++; break;
    case BLKREPL_OP_ZEROES: request->tag = TAG_ZERO; break;
    case BLKREPL_OP_DISCARD:
        request->tag = io.disk.discard == DISK_DISCARD_GARBAGE ? TAG_GARBAGE : TAG_ZERO;
        break;
    default: break;
    }
    return request;
}

static void over(struct request *request, int result)
{
    EXPECT(request->state != REQUEST_OVER, "a request to end once");
    model_end(request, result);
    request->state = REQUEST_OVER;
    io.pending--;
    request_free(request);
}

static void request_called(void *user, int result)
{
    struct request *request = user;

    fuzz_note("done opcode %u %llu+%llu: %d", (unsigned)request->opcode, (ull)request->offset,
              (ull)request->bytes, result);
    EXPECT(io.polling && io.depth == 0, "a callback only in a poll");
    EXPECT(request->calls++ == 0 && request->releases == 0 && request->called,
           "a callback once, after the call");
    EXPECT(result <= 0, "0 or a negative code, got %d", result);
    if (request->bracket) {
        EXPECT(result == 0 || (result == -ECANCELED && request->cancelled),
               "a GO, or -ECANCELED of a bracket that was cancelled, got %d", result);
        EXPECT(request->state == REQUEST_PENDING && (result < 0) == request->cancelled,
               "a go of a bracket that waits");
        if (result == 0) {
            request->state = REQUEST_GO;
        } else {
            request->state = REQUEST_OVER;
            io.pending--;
        }
    } else {
        model_check_code(request, result);
        if (result == 0 && request->opcode == BLKREPL_OP_READ) {
            model_check_read(request);
        } else if (result == 0 && request->opcode == BLKREPL_OP_STATUS) {
            model_check_status(request);
        }
        over(request, result);
    }
    io_nested();
}

static void request_released(void *user)
{
    struct request *request = user;

    EXPECT(request->releases++ == 0, "a release once");
    EXPECT(!request->called || request->calls == 1 || request->bracket,
           "a release after the callback");
}

static blkrepl_completion completion_of(struct request *request)
{
    request->with_release = !take_chance(25);
    return (blkrepl_completion){.fn = request_called,
                                .user = request,
                                .release = request->with_release ? request_released : NULL};
}

/* ---- Calls ------------------------------------------------------------------- */

/* Which answers a call with good arguments may have; `before` is how many others
 * there were when it began, for from inside of submit some may have ended. */
static void judge(const struct request *request, int rc, uint32_t before)
{
    uint32_t after = io.pending - (request->state != REQUEST_OVER);
    uint32_t most = before > after ? before : after;
    uint32_t least = before < after ? before : after;

    if (io.read_only && opcode_writes(request->opcode)) {
        EXPECT(rc == -EROFS, "a read-only image to answer -EROFS, got %d", rc);
        return;
    }
    if (io.shut) {
        EXPECT(rc == -ESHUTDOWN, "a context that is being freed to answer -ESHUTDOWN, got %d", rc);
        return;
    }
    /* Inside the host's code the slots of callbacks that come next are free already. */
    EXPECT(rc >= 0 ? least < io.requests_max || io.depth > 0 : most >= io.requests_max,
           "a request with %u others of %u to be answered right, got %d \"%s\"", (unsigned)most,
           (unsigned)io.requests_max, rc, rc < 0 ? blkrepl_error_message() : "");
    EXPECT(rc == 0 || rc == -EAGAIN || (rc == BLKREPL_WAIT && request->bracket),
           "a good request to be accepted, got %d \"%s\"", rc, blkrepl_error_message());
    if (rc == -EAGAIN) {
        io.room_expected = true;
    }
}

/* After the call of a through request. */
static void settle(struct request *request, int rc, uint32_t before)
{
    request->called = true;
    fuzz_note("call opcode %u %llu+%llu flags 0x%x: %d", (unsigned)request->opcode,
              (ull)request->offset, (ull)request->bytes, (unsigned)request->flags, rc);
    judge(request, rc, before);
    if (rc < 0) {
        EXPECT(request->calls == 0 && request->releases == request->with_release,
               "a refused request: no callback, one release");
        model_refused(request);
        io.pending--;
        request_free(request);
    }
}

static int request_call(struct request *request, const blkrepl_completion *done)
{
    switch (request->opcode) {
    case BLKREPL_OP_READ:
        return blkrepl_image_read(io.image, 0, request->offset, request->iov, request->iov_count,
                                  request->flags, done);
    case BLKREPL_OP_WRITE:
        return blkrepl_image_write(io.image, 0, request->offset, request->iov, request->iov_count,
                                   request->flags, done);
    case BLKREPL_OP_ZEROES:
        return blkrepl_image_write_zeroes(io.image, 0, request->offset, request->bytes,
                                          request->flags, done);
    case BLKREPL_OP_DISCARD:
        return blkrepl_image_discard(io.image, 0, request->offset, request->bytes, request->flags,
                                     done);
    case BLKREPL_OP_FLUSH: return blkrepl_image_flush(io.image, 0, done);
    default:
        return blkrepl_image_status(io.image, 0, request->offset, request->bytes, request->extents,
                                    request->extents_max, done);
    }
}

void guest_request(uint32_t opcode)
{
    struct request *request;
    blkrepl_completion done;
    uint32_t before;

    if (io.image == NULL || (request = request_new(opcode)) == NULL) {
        return;
    }
    if (opcode != BLKREPL_OP_FLUSH) {
        draw_range(&request->offset, &request->bytes);
    }
    if (opcode == BLKREPL_OP_WRITE || opcode == BLKREPL_OP_ZEROES) {
        request->flags = take_chance(25) ? BLKREPL_IO_FUA : 0;
    }
    if (opcode == BLKREPL_OP_ZEROES) {
        request->flags |= take_below(4) * BLKREPL_IO_MAY_UNMAP;
    }
    if (opcode == BLKREPL_OP_READ || opcode == BLKREPL_OP_WRITE) {
        draw_iov(request);
        fill_iov(request);
    }
    if (opcode == BLKREPL_OP_STATUS) {
        request->extents_max = 1 + take_below(EXTENTS_MAX);
        request->extents = fuzz_alloc(request->extents_max * sizeof *request->extents);
        memset(request->extents, 0xa5, request->extents_max * sizeof *request->extents);
    }
    done = completion_of(request);
    request->completed = io.disk.seq;
    model_begin(request);
    before = io.pending++;
    settle(request, request_call(request, &done), before);
}

/* ---- Brackets ---------------------------------------------------------------- */

static uint32_t draw_bracket_opcode(void)
{
    static const uint32_t opcodes[] = {BLKREPL_OP_WRITE, BLKREPL_OP_WRITE, BLKREPL_OP_ZEROES,
                                       BLKREPL_OP_DISCARD, BLKREPL_OP_FLUSH};

    return opcodes[take_below(ARRAY_COUNT(opcodes))];
}

/* The largest aligned range inside one that was drawn. */
static void draw_bracket_range(struct request *request)
{
    uint64_t alignment = disk_alignment(&io.disk);
    uint64_t end;

    draw_range(&request->offset, &request->bytes);
    end = request->offset + request->bytes;
    request->offset -= request->offset % alignment;
    if (end != io.disk.info.bytes) {
        end -= end % alignment;
    }
    request->bytes = end > request->offset ? end - request->offset : 0;
}

/* Whether a write is on its way that the bracket may have to wait for. */
static bool bracket_contended(const struct request *request)
{
    for (uint32_t i = 0; i < io.request_count; i++) {
        const struct request *other = &io.requests[i];

        if (other != request && other->state != REQUEST_OVER && opcode_writes(other->opcode)) {
            return true;
        }
    }
    return false;
}

void guest_bracket(void)
{
    struct request *request;
    blkrepl_bracket what;
    blkrepl_completion go;
    uint32_t before;
    bool contended;
    int rc;

    if (io.image == NULL || (request = request_new(draw_bracket_opcode())) == NULL) {
        return;
    }
    request->bracket = true;
    if (request->opcode != BLKREPL_OP_FLUSH) {
        draw_bracket_range(request);
    }
    what = (blkrepl_bracket){.struct_size = sizeof what,
                             .opcode = request->opcode,
                             .offset = request->offset,
                             .bytes = request->bytes,
                             .flags = take_chance(25) ? BLKREPL_IO_FUA : 0};
    go = completion_of(request);
    contended = bracket_contended(request);
    model_begin(request);
    before = io.pending++;
    rc = blkrepl_write_begin(io.image, &what, &go, &request->token);
    fuzz_note("begin opcode %u %llu+%llu: %d", (unsigned)request->opcode, (ull)request->offset,
              (ull)request->bytes, rc);
    request->called = true;
    if (request->state == REQUEST_OVER) {
        /* Cancelled from inside of submit, when it had its GO. */
        EXPECT(rc == 0, "a bracket that had its GO to answer 0, got %d", rc);
        return;
    }
    judge(request, rc, before);
    EXPECT((request->token != 0) == (rc >= 0), "a token exactly if the bracket was accepted");
    EXPECT(rc == BLKREPL_WAIT ||
               (request->calls == 0 && request->releases == request->with_release),
           "no go, and one release, unless the answer is WAIT");
    EXPECT(rc != BLKREPL_WAIT || contended || io.stretch_percent > 0 || io.throttle != NULL,
           "a bracket that meets no write to get its GO at once");
    if (rc == 0) {
        request->state = REQUEST_GO;
    } else if (rc < 0) {
        model_refused(request);
        io.pending--;
    }
}

/* The host's own write, between GO and end; what of it reaches the medium. */
static void host_write(const struct request *request, uint64_t bytes)
{
    if (request->opcode == BLKREPL_OP_DISCARD && io.disk.discard == DISK_DISCARD_NOTHING) {
        return;
    }
    for (uint64_t i = 0; i < bytes && opcode_writes(request->opcode); i++) {
        *disk_at(&io.disk, request->offset + i) = model_byte(request->tag, request->offset + i);
    }
}

static void end_bracket(struct request *request, int result)
{
    int rc;

    host_write(request, result == 0 ? request->bytes : take_u16() % (request->bytes + 1));
    over(request, result);
    rc = blkrepl_write_end(io.ctx, request->token, result, NULL, 0, NULL);
    fuzz_note("end token %llu with %d: %d", (ull)request->token, result, rc);
    EXPECT(rc == 0, "write_end of a bracket with its GO: 0, got %d", rc);
}

static void cancel_bracket(struct request *request)
{
    bool go = request->state == REQUEST_GO;
    bool again = request->cancelled;
    int rc;

    request->cancelled = true;
    if (go) {
        request->state = REQUEST_OVER;
        io.pending--;
    }
    rc = blkrepl_write_cancel(io.ctx, request->token);
    fuzz_note("cancel token %llu: %d", (ull)request->token, rc);
    if (!request->called && !again && rc == 0) {
        request->state = REQUEST_OVER; /* its begin is about to answer 0 */
        io.pending--;
        return;
    }
    if (again) {
        EXPECT(rc == -ENOENT, "-ENOENT for a second cancel, got %d", rc);
    } else {
        EXPECT(rc == (go ? 0 : BLKREPL_WAIT), "a cancel %s GO: %d, got %d", go ? "after" : "before",
               go ? 0 : BLKREPL_WAIT, rc);
    }
}

/* A bracket that is there, or NULL. */
static struct request *draw_bracket(void)
{
    uint32_t nth = take_u8();

    for (uint32_t i = 0; i < io.request_count; i++) {
        struct request *request = &io.requests[(i + nth) % io.request_count];

        if (request->bracket && request->state != REQUEST_OVER && request->token != 0) {
            return request;
        }
    }
    return NULL;
}

void guest_finish_bracket(void)
{
    struct request *request = draw_bracket();
    int rc;

    if (request == NULL) {
        return;
    }
    if (!request->called || take_chance(20)) {
        cancel_bracket(request);
    } else if (request->state == REQUEST_GO) {
        end_bracket(request, take_chance(20) ? take_code() : 0);
    } else {
        rc = blkrepl_write_end(io.ctx, request->token, 0, NULL, 0, NULL);
        EXPECT(rc == -ENOENT, "write_end before the GO: -ENOENT, got %d", rc);
    }
}

bool guest_end_any_bracket(void)
{
    for (uint32_t i = 0; i < io.request_count; i++) {
        struct request *request = &io.requests[i];

        if (request->bracket && request->state == REQUEST_GO) {
            end_bracket(request, 0);
            return true;
        }
    }
    return false;
}

/* ---- What no guest should do ------------------------------------------------- */

static unsigned garbage_releases;

static void garbage_called(void *user, int result)
{
    (void)user;
    EXPECT(false, "no callback of a refused request, got %d", result);
}

static void garbage_released(void *user)
{
    EXPECT(user == &io, "the user of the refused request");
    garbage_releases++;
}

/* A range that does not lie inside the image. */
static void draw_outside(uint64_t *offset, uint64_t *bytes)
{
    uint64_t size = io.disk.info.bytes;

    *offset = take_number();
    *bytes = take_number();
    if (*offset <= size && *bytes <= size - *offset) {
        *offset = size;
        *bytes += 1;
    }
}

static int garbage_iov(const blkrepl_completion *done)
{
    blkrepl_iovec iov[2] = {{.base = iov, .len = 1}, {.base = NULL, .len = 1 + take_u8()}};
    uint64_t offset;
    uint64_t bytes;

    switch (take_below(4)) {
    case 0: return blkrepl_image_read(io.image, 0, 0, NULL, 1u + take_u8(), 0, done);
    case 1: return blkrepl_image_write(io.image, 0, 0, iov, 2, 0, done);
    case 2:
        iov[1] = (blkrepl_iovec){.base = iov, .len = SIZE_MAX - take_u8()};
        offset = sizeof(size_t) < sizeof(uint64_t) ? io.disk.info.bytes : 0;
        return blkrepl_image_read(io.image, 0, offset, iov, 2, 0, done);
    default:
        draw_outside(&offset, &bytes);
        iov[0].len = (size_t)bytes;
        if (iov[0].len != bytes || io.disk.info.bytes - iov[0].len >= offset) {
            offset = UINT64_MAX;
        }
        return blkrepl_image_read(io.image, 0, offset, iov, 1, 0, done);
    }
}

/* Every one of these has to be refused with -EINVAL. */
static int garbage_call(const blkrepl_completion *done)
{
    uint32_t lane = 1 + (uint32_t)(take_number() & INT32_MAX);
    uint32_t flags = 16u << take_below(28);
    blkrepl_extent extent;
    uint64_t offset;
    uint64_t bytes;

    draw_outside(&offset, &bytes);
    switch (take_below(9)) {
    case 0: return blkrepl_image_discard(io.image, 0, offset, bytes, 0, done);
    case 1: return blkrepl_image_write_zeroes(io.image, 0, offset, bytes, 0, done);
    case 2: return blkrepl_image_status(io.image, 0, offset, bytes, &extent, 1, done);
    case 3: return blkrepl_image_flush(io.image, lane, done);
    case 4: return blkrepl_image_discard(io.image, lane, 0, 0, 0, done);
    case 5: return blkrepl_image_discard(io.image, 0, 0, 0, flags, done);
    case 6: return blkrepl_image_write_zeroes(io.image, 0, 0, 0, flags | 8, done);
    case 7: return blkrepl_image_status(io.image, 0, 0, 0, &extent, 0, done);
    default: return garbage_iov(done);
    }
}

/* An id that is not in flight. */
static void garbage_completion(void)
{
    uint64_t id = take_chance(50) ? io.last_id : take_number();
    int result = take_chance(50) ? take_code() : 0;
    int rc;

    for (uint32_t i = 0; i < io.disk.in_flight; i++) {
        if (take_chance(50)) {
            rc = blkrepl_io_complete(io.ctx, io.disk.queue[i].id, 1 + (int)take_u16());
            EXPECT(rc == -EINVAL, "io_complete with a count: -EINVAL, got %d", rc);
        }
        if (io.disk.queue[i].id == id) {
            return;
        }
    }
    rc = blkrepl_io_complete(io.ctx, id, result);
    EXPECT(rc == -ENOENT, "io_complete of id %llu: -ENOENT, got %d", (ull)id, rc);
}

static void garbage_token(void)
{
    uint64_t token = take_chance(50) && io.request_count > 0 ? io.requests[0].token : take_number();
    int rc;

    for (uint32_t i = 0; i < io.request_count; i++) {
        if (io.requests[i].token == token && io.requests[i].state != REQUEST_OVER) {
            return;
        }
    }
    rc = take_chance(50) ? blkrepl_write_end(io.ctx, token, 0, NULL, 0, NULL)
                         : blkrepl_write_cancel(io.ctx, token);
    EXPECT(rc == -ENOENT, "a token %llu that is none: -ENOENT, got %d", (ull)token, rc);
}

void guest_garbage(void)
{
    blkrepl_completion done = {.fn = garbage_called, .user = &io, .release = garbage_released};
    uint32_t kind = take_below(3);
    int rc;

    if (kind == 0) {
        garbage_completion();
    } else if (kind == 1) {
        garbage_token();
    } else if (io.image != NULL) {
        garbage_releases = 0;
        call_begin();
        rc = garbage_call(&done);
        EXPECT(rc == -EINVAL, "-EINVAL, got %d", rc);
        EXPECT(blkrepl_error_message()[0] != '\0', "a message");
        EXPECT(garbage_releases == 1, "one release, got %u", garbage_releases);
    }
}

void guest_close(void)
{
    blkrepl_image *image = io.image;

    fuzz_note("close");
    io.image = NULL; /* the call may lead to a submit, and so back to here */
    blkrepl_image_close(image);
}
