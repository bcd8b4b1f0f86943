/* SPDX-License-Identifier: MIT */
/* io_model.c - the naive model: which tags each byte of the disk may have.
 *
 * may[] is about writes that have ended.  A read may see, in every byte, what
 * was there when it began, or any write that was on its way meanwhile. */
#include "io.h"

#define TAG_BIT(tag) (UINT64_C(1) << (tag))

static uint64_t may[WINDOW_MAX];
/* The call number of the last write that is known to have reached the byte. */
static uint64_t settled[WINDOW_MAX];
/* The same of the last one that has ended, however that was. */
static uint64_t last[WINDOW_MAX];

static size_t at(uint64_t offset)
{
    return (size_t)(offset % io.disk.window);
}

uint8_t model_byte(uint32_t tag, uint64_t offset)
{
    uint32_t index = (uint32_t)at(offset);
    uint32_t mixed;

    switch (tag) {
    case TAG_ZERO: return 0;
    case TAG_GARBAGE: return DISK_GARBAGE;
    case TAG_INITIAL:
        /* Some runs of zeroes. */
        if ((index >> 9 & 3) == 1) {
            return 0;
        }
        break;
    default: break;
    }
    mixed = (index + 1) * UINT32_C(2654435761) ^ tag * UINT32_C(0x9e3779b1);
    return (uint8_t)(mixed >> 24 ^ mixed >> 11);
}

void model_fill(uint8_t *out, uint32_t tag, uint64_t offset, uint64_t bytes)
{
    for (uint64_t i = 0; i < bytes; i++) {
        out[i] = model_byte(tag, offset + i);
    }
}

void model_init(void)
{
    for (size_t i = 0; i < io.disk.window; i++) {
        may[i] = TAG_BIT(TAG_INITIAL);
        settled[i] = 0;
        last[i] = 0;
    }
    model_fill(io.disk.medium, TAG_INITIAL, 0, io.disk.window);
}

static bool allowed(uint64_t tags, uint64_t offset, uint8_t byte)
{
    while (tags != 0) {
        uint32_t tag = (uint32_t)__builtin_ctzll(tags);

        if (model_byte(tag, offset) == byte) {
            return true;
        }
        tags &= tags - 1;
    }
    return false;
}

/* ---- Requests that meet ------------------------------------------------------ */

/* What a write may leave in a byte, whether it fails or not. */
static uint64_t write_tags(const struct request *request)
{
    return request->tag != 0 ? TAG_BIT(request->tag) : 0;
}

static void tell_read(struct request *read, const struct request *write)
{
    uint64_t start = read->offset > write->offset ? read->offset : write->offset;
    uint64_t read_end = read->offset + read->bytes;
    uint64_t end = write->offset + write->bytes;

    end = read_end < end ? read_end : end;
    for (uint64_t i = start; i < end; i++) {
        read->may[i - read->offset] |= write_tags(write);
    }
}

void model_begin(struct request *request)
{
    request->seq = ++io.seq;
    if (request_reads(request)) {
        request->may = fuzz_alloc((size_t)request->bytes * sizeof *request->may);
        for (uint64_t i = 0; i < request->bytes; i++) {
            request->may[i] = may[at(request->offset + i)];
        }
    }
    for (uint32_t i = 0; i < io.request_count; i++) {
        struct request *other = &io.requests[i];

        if (other == request || other->state == REQUEST_OVER) {
            continue;
        }
        if (request_reads(request) && opcode_writes(other->opcode)) {
            tell_read(request, other);
        } else if (opcode_writes(request->opcode) && request_reads(other)) {
            tell_read(other, request);
        }
    }
}

void model_refused(struct request *request)
{
    request->state = REQUEST_OVER;
}

/* ---- Writes that end --------------------------------------------------------- */

static void end_byte(const struct request *request, uint64_t offset, int result)
{
    size_t i = at(offset);

    if (settled[i] > request->seq) {
        return; /* a later one has covered it already */
    }
    if (result < 0 || request->opcode == BLKREPL_OP_DISCARD) {
        may[i] |= write_tags(request);
    } else {
        /* A bracket can end before the callback of an earlier write has run. */
        may[i] = write_tags(request) | (last[i] > request->seq ? may[i] : 0);
        settled[i] = request->seq;
    }
    last[i] = last[i] > request->seq ? last[i] : request->seq;
}

/* Another write to these bytes may be on its way, or has come later. */
static bool contended(const struct request *request, uint64_t offset, uint64_t bytes)
{
    for (uint32_t i = 0; i < io.request_count; i++) {
        const struct request *other = &io.requests[i];

        if (other != request && other->state != REQUEST_OVER && opcode_writes(other->opcode) &&
            ranges_overlap(other->offset, other->bytes, offset, bytes)) {
            return true;
        }
    }
    return false;
}

/* What was acknowledged is on the medium. */
static void check_landed(const struct request *request)
{
    for (uint64_t i = 0; i < request->bytes; i++) {
        uint64_t offset = request->offset + i;
        uint8_t byte = *disk_at(&io.disk, offset);

        EXPECT(byte == model_byte(request->tag, offset) || settled[at(offset)] != request->seq ||
                   contended(request, offset, 1) || may[at(offset)] != write_tags(request),
               "an acknowledged write %llu+%llu to be on the medium; at %llu there is 0x%02x",
               (ull)request->offset, (ull)request->bytes, (ull)offset, byte);
    }
}

/* Another write may have written the same blocks again, with what was there. */
static bool rewritten(const struct request *request)
{
    uint64_t alignment = disk_alignment(&io.disk);
    uint64_t start = request->offset / alignment * alignment;
    uint64_t end = request->offset + request->bytes + alignment - 1;

    return contended(request, start, end / alignment * alignment - start);
}

/* Nothing that has to be durable waits for a flush. */
static void check_durable(const struct request *request)
{
    const struct disk *disk = &io.disk;
    bool fua = opcode_writes(request->opcode) && (request->flags & BLKREPL_IO_FUA) != 0 &&
               !rewritten(request);

    if ((disk->info.opcodes & OPCODE_BIT(BLKREPL_OP_FLUSH)) == 0 || disk->writes_lost) {
        return;
    }
    for (uint32_t i = 0; i < disk->write_count; i++) {
        const struct disk_write *write = &disk->writes[i];

        EXPECT(request->opcode != BLKREPL_OP_FLUSH || write->seq > request->completed,
               "a flush to cover the write %llu+%llu that was complete before it",
               (ull)write->offset, (ull)write->bytes);
        EXPECT(!fua ||
                   !ranges_overlap(write->offset, write->bytes, request->offset, request->bytes),
               "a write %llu+%llu with FUA to be durable when it is complete", (ull)request->offset,
               (ull)request->bytes);
    }
}

void model_end(struct request *request, int result)
{
    if (opcode_writes(request->opcode)) {
        for (uint64_t i = 0; i < request->bytes; i++) {
            end_byte(request, request->offset + i, result);
        }
        if (result == 0 && request->opcode != BLKREPL_OP_DISCARD) {
            check_landed(request);
        }
    }
    if (result == 0 && !request->bracket && request->opcode != BLKREPL_OP_DISCARD) {
        check_durable(request);
    }
}

/* ---- Reads that end ---------------------------------------------------------- */

void model_check_read(const struct request *request)
{
    uint64_t done = 0;

    for (uint32_t i = 0; i < request->iov_count; i++) {
        const uint8_t *bytes = request->iov[i].base;

        for (size_t j = 0; j < request->iov[i].len; j++, done++) {
            EXPECT(
                allowed(request->may[done], request->offset + done, bytes[j]),
                "a read %llu+%llu to return what was written; at %llu it has 0x%02x, tags 0x%llx",
                (ull)request->offset, (ull)request->bytes, (ull)(request->offset + done), bytes[j],
                (ull)request->may[done]);
        }
    }
}

void model_check_status(const struct request *request)
{
    uint64_t done = 0;

    for (uint32_t i = 0; i < request->extents_max && request->extents[i].bytes > 0; i++) {
        const blkrepl_extent *extent = &request->extents[i];

        EXPECT(extent->bytes <= request->bytes - done, "extents inside the range");
        EXPECT((extent->flags & ~7u) == 0 && extent->reserved0 == 0, "flags of extents, got 0x%x",
               (unsigned)extent->flags);
        for (uint64_t j = 0; j < extent->bytes; j++, done++) {
            EXPECT((extent->flags & BLKREPL_EXTENT_ZERO) == 0 ||
                       allowed(request->may[done], request->offset + done, 0),
                   "no ZERO where there are data, at %llu", (ull)(request->offset + done));
        }
    }
    EXPECT(done > 0 || request->bytes == 0, "extents of one byte at least");
}

void model_check_medium(void)
{
    for (size_t i = 0; i < io.disk.window; i++) {
        EXPECT(allowed(may[i], i, io.disk.medium[i]),
               "a medium with nothing but what was written; at %zu there is 0x%02x, tags 0x%llx", i,
               io.disk.medium[i], (ull)may[i]);
    }
}

/* ---- Errors ------------------------------------------------------------------ */

/* Whether a request of the disk may be part of the guest's. */
static bool may_cause(const struct request *request, const struct disk_request *disk)
{
    uint64_t alignment = disk_alignment(&io.disk);
    uint64_t start = request->offset / alignment * alignment;
    uint64_t bytes = request->offset + request->bytes - start;

    bytes = (bytes + alignment - 1) / alignment * alignment;
    if (request->state != REQUEST_PENDING || request->bracket) {
        return false;
    }
    if (disk->opcode == BLKREPL_OP_FLUSH) {
        return request->opcode == BLKREPL_OP_FLUSH || (request->flags & BLKREPL_IO_FUA) != 0;
    }
    if (!ranges_overlap(start, bytes, disk->offset, disk->bytes)) {
        return false;
    }
    switch (disk->opcode) {
    case BLKREPL_OP_READ:
        return request->opcode == BLKREPL_OP_READ || request->opcode == BLKREPL_OP_WRITE ||
               request->opcode == BLKREPL_OP_ZEROES;
    case BLKREPL_OP_WRITE:
        return request->opcode == BLKREPL_OP_WRITE || request->opcode == BLKREPL_OP_ZEROES;
    default: return request->opcode == disk->opcode;
    }
}

/* An error that the library has to hide: it does the same by other means. */
static bool hidden(const struct request *request, const struct disk_request *disk, int result)
{
    if (result != -ENOTSUP) {
        return false;
    }
    return disk->opcode == BLKREPL_OP_DISCARD ||
           (disk->opcode == BLKREPL_OP_ZEROES && (request->flags & BLKREPL_IO_NO_FALLBACK) == 0);
}

void model_disk_failed(const struct disk_request *failed, int result)
{
    struct request *only = NULL;
    uint32_t count = 0;

    for (uint32_t i = 0; i < io.request_count; i++) {
        struct request *request = &io.requests[i];

        if (!may_cause(request, failed)) {
            continue;
        }
        only = request;
        count++;
        if (!hidden(request, failed, result)) {
            request->codes[request->code_count++ % CODES_MAX] = result;
        }
    }
    EXPECT(count > 0, "every request at the disk to belong to one of the guest");
    if (count == 1 && !hidden(only, failed, result)) {
        only->must_fail = true;
    }
}

/* ZEROES that cannot be done but by writing, which the guest does not want. */
static bool zeroes_impossible(const struct request *request)
{
    uint64_t alignment = disk_alignment(&io.disk);
    uint64_t first = (request->offset + alignment - 1) / alignment;

    return request->opcode == BLKREPL_OP_ZEROES && (request->flags & BLKREPL_IO_NO_FALLBACK) != 0 &&
           (io.disk.info.opcodes & OPCODE_BIT(BLKREPL_OP_ZEROES)) == 0 &&
           (request->offset + request->bytes) / alignment > first;
}

void model_check_code(const struct request *request, int result)
{
    uint32_t count = request->code_count < CODES_MAX ? request->code_count : CODES_MAX;
    bool known = request->code_count > CODES_MAX;

    EXPECT(result < 0 || !request->must_fail, "a request to fail that the disk has failed");
    EXPECT(result < 0 || request->bracket || !zeroes_impossible(request),
           "-ENOTSUP rather than buffers that are written");
    if (result == 0) {
        return;
    }
    for (uint32_t i = 0; i < count; i++) {
        known = known || request->codes[i] == result;
    }
    if (request->opcode == BLKREPL_OP_ZEROES && (request->flags & BLKREPL_IO_NO_FALLBACK) != 0 &&
        result == -ENOTSUP) {
        known = known || io.zeroes_refused ||
                (io.disk.info.opcodes & OPCODE_BIT(BLKREPL_OP_ZEROES)) == 0;
    }
    EXPECT(known, "an error that the disk has answered, got %d for opcode %u", result,
           (unsigned)request->opcode);
}
