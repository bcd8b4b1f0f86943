/* SPDX-License-Identifier: MIT */
/* support.h - what the harnesses share: the input as a source of decisions,
 * failure, memory that is counted, and structs of any size on heap blocks of
 * exactly that size.
 *
 * A harness is single-threaded and keeps its state in static objects that
 * fuzz_begin() and the harness itself reset; an execution gives back everything
 * it took. */
#ifndef FUZZ_SUPPORT_H
#define FUZZ_SUPPORT_H

#include "base/compiler.h"
#include <libblkrepl/libblkrepl.h>

#include <errno.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define KIB UINT64_C(1024)
#define OPCODE_BIT(opcode) (1u << (opcode))

typedef unsigned long long ull;

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerInitialize(int *argc, char ***argv);

/* ---- Failure ----------------------------------------------------------------- */

/* Says what was expected, and what was done before it, and aborts. */
_Noreturn void fuzz_fail(const char *file, int line, const char *format, ...);

#define EXPECT(condition, ...)                                                                     \
    do {                                                                                           \
        if (!(condition)) {                                                                        \
            fuzz_fail(__FILE__, __LINE__, __VA_ARGS__);                                            \
        }                                                                                          \
    } while (0)

/* One line about what the execution does: kept for fuzz_fail(), and printed at
 * once where FUZZ_TRACE is in the environment. */
void fuzz_note(const char *format, ...);

/* ---- The input --------------------------------------------------------------- */

void fuzz_begin(const uint8_t *data, size_t size);
/* Everything that the execution took must be back. */
void fuzz_end(void);

/* When the input is used up, it goes on with zeroes. */
bool input_empty(void);
uint8_t take_u8(void);
uint16_t take_u16(void);
uint64_t take_u64(void);
/* 0 .. limit-1; 0 if limit is 0. */
uint32_t take_below(uint32_t limit);
/* True for a byte of less than percent% of its range; zeroes give false. */
bool take_chance(uint32_t percent);
/* A number of any size, mostly one at which something may go wrong. */
uint64_t take_number(void);
/* A negative code; often an errno. */
int take_code(void);

/* ---- Memory ------------------------------------------------------------------ */

/* No block of the library may be longer: what is larger fails as it would on a
 * machine without overcommit. */
#define HEAP_BLOCK_MAX (UINT64_C(48) << 20)

struct heap {
    uint64_t live;      /* blocks                                             */
    uint64_t calls;     /* allocations tried since the last heap_watch()      */
    uint64_t fail_call; /* the one that fails, from 1; 0: none                */
    bool refused;       /* one has failed since the last heap_watch()         */
};

extern struct heap heap;

blkrepl_allocator heap_allocator(void);
/* From here on the `fail_call`th allocation fails. */
void heap_watch(uint64_t fail_call);
/* Whether there is no memory for a block of so many bytes, or one has failed since the
 * last heap_watch(). */
bool heap_lacks(uint64_t bytes);
/* Memory of the harness, which never fails; freed with free(). */
void *fuzz_alloc(size_t bytes);

/* ---- Time and other hooks ---------------------------------------------------- */

extern uint64_t clock_now;
blkrepl_hooks fuzz_hooks(void);

/* ---- Structs that cross the border ------------------------------------------- */

enum field_kind {
    FIELD_U32,
    FIELD_U64,
    FIELD_POINTER /* NULL, or set: a pointer to nothing                        */
};

struct field {
    size_t offset;
    enum field_kind kind;
};

/* A struct that begins with struct_size. */
struct shape {
    size_t bytes;
    size_t v1_bytes;
    const struct field *fields;
    size_t field_count;
};

#define FIELD(type, member, kind)                                                                  \
    {                                                                                              \
        offsetof(type, member), kind                                                               \
    }
#define SHAPE(type, v1, list)                                                                      \
    {                                                                                              \
        sizeof(type), v1, list, ARRAY_COUNT(list)                                                  \
    }

/* What is wrong with a packed struct, if anything. */
enum packing {
    PACKED_WELL,
    PACKED_NULL,  /* no struct at all                                          */
    PACKED_SHORT, /* struct_size below that of the first release               */
    PACKED_NEWER  /* beyond what the library knows, something is not zero      */
};

struct packed {
    void *memory; /* struct_size bytes, at least 4; NULL: none                  */
    uint32_t struct_size;
    enum packing packing;
};

/* Set some fields of *typed from the input. */
void shape_draw(const struct shape *shape, void *typed);
/* Put *typed into a heap block of a size that the input chooses. */
struct packed shape_pack(const struct shape *shape, const void *typed, bool may_be_null);
/* What the library can know of *typed: zero where the struct is cut off; all of it if there
 * is none, or too little.  A pointer that would be cut in two becomes NULL in both. */
void shape_cut(const struct shape *shape, void *typed, struct packed *packed);
void packed_free(struct packed *packed);
/* Garbage for a query to overwrite, in a heap block of a size that the input chooses. */
struct packed info_draw(const struct shape *shape);
/* What the query of that must have answered: rc, and the same as one of the whole. */
void info_expect(const struct shape *shape, const struct packed *packed, int rc, const void *whole);
/* Whether the library can know the fields. */
bool packed_readable(const struct packed *packed);

/* ---- Verdicts: which answers are right --------------------------------------- */

#define VERDICT_CODES 24

/* No code: only 0 is right.  Otherwise one of the codes is. */
struct verdict {
    int codes[VERDICT_CODES];
    size_t count;
};

void verdict_add(struct verdict *verdict, int code);
void verdict_add_if(struct verdict *verdict, bool applies, int code);
void verdict_add_packing(struct verdict *verdict, const struct packed *packed);

/* Around a call: the message of a failure must be new and not empty, a success
 * must leave it alone. */
void call_begin(void);
void call_end(int answer, const char *what);
/* The same, and the answer must be one that the verdict allows. */
void call_end_as(int answer, const struct verdict *verdict, const char *what);

/* ---- Releases ---------------------------------------------------------------- */

#define RELEASES_MAX 256

/* A `user` whose release is counted. */
struct release {
    unsigned count;
    unsigned calls; /* of fn, where it is the user of a completion              */
    int result;     /* that fn got                                              */
};

/* A fresh one; an execution has RELEASES_MAX of them and then NULL. */
struct release *release_new(void);
void release_run(void *user);
/* A completion's fn. */
void release_called(void *user, int result);
/* Each of them has run `count` times. */
void releases_expect_all(unsigned count);

#endif
