/* SPDX-License-Identifier: MIT */
/* support.c - the input, failure, memory, structs of any size. */
#include "support.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#define NOTES_MAX 64
#define NOTE_BYTES 160
#define BUFFERS_MAX 64
#define EXCESS_MAX 512

/* ---- Failure ----------------------------------------------------------------- */

static char notes[NOTES_MAX][NOTE_BYTES];
static size_t note_count;
static int note_printing = -1;

static bool notes_print(void)
{
    if (note_printing < 0) {
        note_printing = getenv("FUZZ_TRACE") != NULL;
    }
    return note_printing > 0;
}

void fuzz_note(const char *format, ...)
{
    char *note = notes[note_count++ % NOTES_MAX];
    va_list args;

    va_start(args, format);
    vsnprintf(note, NOTE_BYTES, format, args);
    va_end(args);
    if (notes_print()) {
        fprintf(stderr, "    %s\n", note);
    }
}

void fuzz_fail(const char *file, int line, const char *format, ...)
{
    size_t first = note_count > NOTES_MAX ? note_count - NOTES_MAX : 0;
    va_list args;

    for (size_t i = first; i < note_count && !notes_print(); i++) {
        fprintf(stderr, "    %s\n", notes[i % NOTES_MAX]);
    }
    fprintf(stderr, "%s:%d: expected: ", file, line);
    va_start(args, format);
    vfprintf(stderr, format, args);
    va_end(args);
    fputc('\n', stderr);
    abort();
}

/* ---- The input --------------------------------------------------------------- */

static const uint8_t *input_at;
static const uint8_t *input_end;

bool input_empty(void)
{
    return input_at == input_end;
}

uint8_t take_u8(void)
{
    return input_at < input_end ? *input_at++ : 0;
}

uint16_t take_u16(void)
{
    uint16_t low = take_u8();

    return (uint16_t)(low | take_u8() << 8);
}

uint64_t take_u64(void)
{
    uint64_t value = 0;

    for (unsigned i = 0; i < 64; i += 8) {
        value |= (uint64_t)take_u8() << i;
    }
    return value;
}

uint32_t take_below(uint32_t limit)
{
    if (limit <= 1) {
        return 0;
    }
    return (limit <= 256 ? take_u8() : take_u16()) % limit;
}

bool take_chance(uint32_t percent)
{
    return take_u8() * 100u >= (100 - percent) * 256u;
}

uint64_t take_number(void)
{
    uint64_t bit;

    switch (take_below(8)) {
    case 0: return take_u8();
    case 1: return take_u16();
    case 2: return take_u64();
    case 3: return UINT64_MAX - take_u8();
    case 4: return (uint64_t)INT64_MAX - take_u8();
    default: break;
    }
    bit = UINT64_C(1) << take_below(64);
    return bit + take_below(3) - 1;
}

int take_code(void)
{
    static const int codes[] = {-EIO, -ENOSPC, -ENOMEM, -ETIMEDOUT, -EAGAIN, -ECANCELED, -ENOTSUP};
    uint32_t kind = take_below(10);

    if (kind < ARRAY_COUNT(codes)) {
        return codes[kind];
    }
    return kind == 7 ? BLKREPL_ERR_STATE : -1 - (int)(take_number() & INT32_MAX);
}

/* ---- Memory ------------------------------------------------------------------ */

struct buffer {
    void *memory;
    size_t bytes;
};

struct heap heap;
static struct buffer buffers[BUFFERS_MAX];
static size_t buffer_count;

void *fuzz_alloc(size_t bytes)
{
    void *memory = malloc(bytes > 0 ? bytes : 1);

    EXPECT(memory != NULL, "memory for the harness");
    return memory;
}

void heap_watch(uint64_t fail_call)
{
    heap.calls = 0;
    heap.fail_call = fail_call;
    heap.refused = false;
}

bool heap_lacks(uint64_t bytes)
{
    return heap.refused || bytes > HEAP_BLOCK_MAX;
}

static bool heap_allows(size_t bytes)
{
    if (++heap.calls == heap.fail_call || bytes > HEAP_BLOCK_MAX) {
        heap.refused = true;
        return false;
    }
    heap.live++;
    return true;
}

static void *heap_alloc(void *user, size_t bytes)
{
    EXPECT(user == &heap && bytes > 0, "alloc: our user and a length");
    return heap_allows(bytes) ? fuzz_alloc(bytes) : NULL;
}

static void *heap_zalloc(void *user, size_t bytes)
{
    void *memory;

    EXPECT(user == &heap && bytes > 0, "zalloc: our user and a length");
    if (!heap_allows(bytes)) {
        return NULL;
    }
    memory = calloc(1, bytes);
    EXPECT(memory != NULL, "memory for the harness");
    return memory;
}

static void *heap_realloc(void *user, void *memory, size_t bytes)
{
    void *moved;

    EXPECT(user == &heap && bytes > 0, "realloc: our user and a length");
    if (!heap_allows(bytes)) {
        return NULL;
    }
    heap.live -= memory != NULL;
    moved = realloc(memory, bytes);
    EXPECT(moved != NULL, "memory for the harness");
    return moved;
}

static size_t buffer_find(const void *memory)
{
    size_t i = 0;

    while (i < buffer_count && buffers[i].memory != memory) {
        i++;
    }
    return i;
}

static void heap_free(void *user, void *memory)
{
    EXPECT(user == &heap && heap.live > 0, "free: our user, of a live block");
    EXPECT(memory == NULL || buffer_find(memory) == buffer_count, "free: not of a buffer");
    heap.live -= memory != NULL;
    free(memory);
}

static void *heap_buffer_alloc(void *user, size_t align, size_t bytes)
{
    void *memory = NULL;

    EXPECT(user == &heap && bytes > 0, "buffer_alloc: our user and a length");
    EXPECT(align > 0 && (align & (align - 1)) == 0, "buffer_alloc: a power of two, got %zu", align);
    if (buffer_count == BUFFERS_MAX || !heap_allows(bytes)) {
        heap.refused = true;
        return NULL;
    }
    EXPECT(posix_memalign(&memory, align < sizeof memory ? sizeof memory : align, bytes) == 0,
           "memory for the harness");
    buffers[buffer_count++] = (struct buffer){.memory = memory, .bytes = bytes};
    return memory;
}

static void heap_buffer_free(void *user, void *memory, size_t bytes)
{
    size_t i = buffer_find(memory);

    EXPECT(user == &heap && i < buffer_count, "buffer_free: our user, of a live buffer");
    EXPECT(buffers[i].bytes == bytes, "buffer_free: of %zu bytes, got %zu", buffers[i].bytes,
           bytes);
    buffers[i] = buffers[--buffer_count];
    heap.live--;
    free(memory);
}

blkrepl_allocator heap_allocator(void)
{
    return (blkrepl_allocator){.struct_size = sizeof(blkrepl_allocator),
                               .user = &heap,
                               .alloc = heap_alloc,
                               .zalloc = heap_zalloc,
                               .realloc = heap_realloc,
                               .free = heap_free,
                               .buffer_alloc = heap_buffer_alloc,
                               .buffer_free = heap_buffer_free};
}

/* ---- Time and other hooks ---------------------------------------------------- */

uint64_t clock_now;

static uint64_t hook_clock(void *user)
{
    (void)user;
    return clock_now;
}

static int hook_entropy(void *user, void *out, size_t bytes)
{
    (void)user;
    memset(out, 0x5a, bytes);
    return 0;
}

static void hook_log(void *user, uint32_t level, const char *line)
{
    (void)user;
    EXPECT(level >= BLKREPL_LOG_ERROR && level <= BLKREPL_LOG_DEBUG && line[0] != '\0',
           "log: a line with a level, got %u", (unsigned)level);
    EXPECT(strchr(line, '\n') == NULL, "log: a line without a line feed");
}

blkrepl_hooks fuzz_hooks(void)
{
    return (blkrepl_hooks){.struct_size = sizeof(blkrepl_hooks),
                           .clock_ns = hook_clock,
                           .entropy = hook_entropy,
                           .log = hook_log};
}

/* ---- Structs that cross the border ------------------------------------------- */

static void field_draw(const struct field *field, unsigned char *typed)
{
    static char nothing;
    uint64_t number = field->kind == FIELD_POINTER ? 1 : take_number();
    uint32_t number32 = (uint32_t)number;
    void *pointer = &nothing;

    switch (field->kind) {
    case FIELD_U32: memcpy(typed + field->offset, &number32, sizeof number32); break;
    case FIELD_U64: memcpy(typed + field->offset, &number, sizeof number); break;
    case FIELD_POINTER: memcpy(typed + field->offset, &pointer, sizeof pointer); break;
    }
}

void shape_draw(const struct shape *shape, void *typed)
{
    uint32_t mask = shape->field_count > 8 ? take_u16() : take_u8();

    if (shape->field_count > 16) {
        mask |= (uint32_t)take_u16() << 16;
    }
    for (size_t i = 0; i < shape->field_count; i++) {
        if ((mask >> i & 1) != 0) {
            field_draw(&shape->fields[i], typed);
        }
    }
}

static struct packed shape_fill(const struct shape *shape, const void *typed, uint32_t struct_size,
                                uint32_t junk)
{
    size_t bytes = struct_size < sizeof struct_size ? sizeof struct_size : struct_size;
    size_t known = bytes < shape->bytes ? bytes : shape->bytes;
    struct packed packed = {.memory = fuzz_alloc(bytes), .struct_size = struct_size};

    memset(packed.memory, 0, bytes);
    memcpy(packed.memory, typed, known);
    memcpy(packed.memory, &struct_size, sizeof struct_size);
    if (junk != 0 && struct_size > shape->bytes) {
        ((unsigned char *)packed.memory)[shape->bytes + junk % (struct_size - shape->bytes)] =
            (unsigned char)(1 + junk / 2 % 255);
        packed.packing = PACKED_NEWER;
    }
    if (struct_size < shape->v1_bytes) {
        packed.packing = PACKED_SHORT;
    }
    return packed;
}

struct packed shape_pack(const struct shape *shape, const void *typed, bool may_be_null)
{
    uint32_t full = (uint32_t)shape->bytes;
    uint32_t more;

    switch (take_below(16)) {
    case 1: return shape_fill(shape, typed, take_below(full), 0);
    case 2: return shape_fill(shape, typed, (uint32_t)shape->v1_bytes, 0);
    case 3: return shape_fill(shape, typed, full + 1 + take_below(EXCESS_MAX), 0);
    case 4:
        more = 1 + take_below(EXCESS_MAX);
        return shape_fill(shape, typed, full + more, 1u + take_u16());
    case 5:
        if (may_be_null) {
            return (struct packed){.packing = PACKED_NULL};
        }
        break;
    default: break;
    }
    return shape_fill(shape, typed, full, 0);
}

/* No release of the header ends inside of a field, so no library need make sense of half
 * a pointer. */
static void shape_cut_pointer(const struct field *field, const struct packed *packed)
{
    if (field->kind == FIELD_POINTER && packed->struct_size > field->offset &&
        packed->struct_size < field->offset + sizeof(void *)) {
        memset((unsigned char *)packed->memory + field->offset, 0,
               packed->struct_size - field->offset);
    }
}

void shape_cut(const struct shape *shape, void *typed, struct packed *packed)
{
    size_t known = packed->struct_size < shape->bytes ? packed->struct_size : shape->bytes;

    for (size_t i = 0; packed->memory != NULL && i < shape->field_count; i++) {
        shape_cut_pointer(&shape->fields[i], packed);
    }
    memset(typed, 0, shape->bytes);
    if (packed_readable(packed)) {
        memcpy(typed, packed->memory, known);
    }
}

void packed_free(struct packed *packed)
{
    free(packed->memory);
    packed->memory = NULL;
}

struct packed info_draw(const struct shape *shape)
{
    void *drawn = fuzz_alloc(shape->bytes);
    struct packed packed;

    memset(drawn, 0xa5, shape->bytes);
    shape_draw(shape, drawn);
    packed = shape_pack(shape, drawn, false);
    free(drawn);
    return packed;
}

void info_expect(const struct shape *shape, const struct packed *packed, int rc, const void *whole)
{
    const unsigned char *bytes = packed->memory;
    uint32_t size = packed->struct_size;
    size_t known = size < shape->bytes ? size : shape->bytes;

    EXPECT(rc == (size < shape->v1_bytes ? -EINVAL : 0), "a query of %u bytes, got %d",
           (unsigned)size, rc);
    if (rc != 0) {
        return;
    }
    EXPECT(memcmp(bytes, &size, sizeof size) == 0 &&
               memcmp(bytes + sizeof size, (const unsigned char *)whole + sizeof size,
                      known - sizeof size) == 0,
           "the same answer for any size");
    for (size_t i = shape->bytes; i < size; i++) {
        EXPECT(bytes[i] == 0, "zeroes beyond what the library knows");
    }
}

bool packed_readable(const struct packed *packed)
{
    return packed->packing == PACKED_WELL || packed->packing == PACKED_NEWER;
}

/* ---- Verdicts ---------------------------------------------------------------- */

/* The message of a failure that no other call has. */
#define SENTINEL                                                                                   \
    "context: 123456789 lanes of 1024 requests each; at most 256 lanes and 16777216 requests "     \
    "together"

void verdict_add(struct verdict *verdict, int code)
{
    EXPECT(verdict->count < VERDICT_CODES, "room for another code");
    verdict->codes[verdict->count++] = code;
}

void verdict_add_if(struct verdict *verdict, bool applies, int code)
{
    if (applies) {
        verdict_add(verdict, code);
    }
}

void verdict_add_packing(struct verdict *verdict, const struct packed *packed)
{
    verdict_add_if(verdict, packed->packing == PACKED_SHORT, -EINVAL);
    verdict_add_if(verdict, packed->packing == PACKED_NEWER, BLKREPL_ERR_VERSION);
}

void call_begin(void)
{
    blkrepl_context_options options = {.struct_size = sizeof options, .lane_count = 123456789};
    blkrepl_context *ctx;
    int rc = blkrepl_context_create(&options, &ctx);

    EXPECT(rc == -EINVAL && strcmp(blkrepl_error_message(), SENTINEL) == 0,
           "too many lanes to be refused with \"" SENTINEL "\", got %d \"%s\"", rc,
           blkrepl_error_message());
}

void call_end(int answer, const char *what)
{
    const char *message = blkrepl_error_message();

    fuzz_note("%s: %d %s", what, answer, answer < 0 ? message : "");
    if (answer < 0) {
        EXPECT(message[0] != '\0' && strcmp(message, SENTINEL) != 0,
               "%s: a message of its own for %d, got \"%s\"", what, answer, message);
    } else {
        EXPECT(strcmp(message, SENTINEL) == 0,
               "%s: a success that leaves the message alone, "
               "got \"%s\"",
               what, message);
    }
}

void call_end_as(int answer, const struct verdict *verdict, const char *what)
{
    bool found = verdict->count == 0 && answer == 0;

    call_end(answer, what);
    for (size_t i = 0; i < verdict->count; i++) {
        found = found || verdict->codes[i] == answer;
    }
    EXPECT(found, "%s: %d%s, got %d \"%s\"", what, verdict->count > 0 ? verdict->codes[0] : 0,
           verdict->count > 1 ? " or another of its errors" : "", answer,
           answer < 0 ? blkrepl_error_message() : "");
}

/* ---- Releases ---------------------------------------------------------------- */

static struct release releases[RELEASES_MAX];
static size_t release_count;

struct release *release_new(void)
{
    return release_count < RELEASES_MAX ? &releases[release_count++] : NULL;
}

void release_run(void *user)
{
    struct release *release = user;

    EXPECT(release >= releases && release < releases + release_count, "release: our user");
    release->count++;
    EXPECT(release->count == 1, "release %zu: to run once", (size_t)(release - releases));
}

void release_called(void *user, int result)
{
    struct release *release = user;

    EXPECT(release >= releases && release < releases + release_count, "completion: our user");
    EXPECT(release->count == 0, "completion %zu: fn before release", (size_t)(release - releases));
    release->calls++;
    release->result = result;
    EXPECT(release->calls == 1, "completion %zu: to run once", (size_t)(release - releases));
    EXPECT(result <= 0, "completion %zu: 0 or a negative code, got %d",
           (size_t)(release - releases), result);
}

void releases_expect_all(unsigned count)
{
    for (size_t i = 0; i < release_count; i++) {
        EXPECT(releases[i].count == count, "release %zu: to have run %u times, got %u", i, count,
               releases[i].count);
    }
}

/* ---- An execution ------------------------------------------------------------ */

void fuzz_begin(const uint8_t *data, size_t size)
{
    input_at = data;
    input_end = data + size;
    note_count = 0;
    clock_now = 1000;
    heap_watch(0);
    memset(releases, 0, release_count * sizeof releases[0]);
    release_count = 0;
}

void fuzz_end(void)
{
    heap_watch(0);
    EXPECT(heap.live == 0 && buffer_count == 0, "all memory back, got %" PRIu64 " live blocks",
           heap.live);
}
