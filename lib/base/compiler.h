/* SPDX-License-Identifier: MIT */
/* compiler.h - what we need of the compiler and the debug checks.
 *
 * CHECK states an invariant of ours: debug and test builds stop there, release
 * builds do not evaluate it.  ALWAYS_CHECK is for memory safety and stops in
 * every build.  Neither is ever used on input from the host. */
#ifndef BLKREPL_BASE_COMPILER_H
#define BLKREPL_BASE_COMPILER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define CONTAINER_OF(ptr, type, member) ((type *)(void *)((char *)(ptr)-offsetof(type, member)))
#define ARRAY_COUNT(array) (sizeof(array) / sizeof((array)[0]))

#if defined(__GNUC__) || defined(__clang__)
#define LIKELY(x) __builtin_expect(!!(x), 1)
#define UNLIKELY(x) __builtin_expect(!!(x), 0)
#define PRINTF_LIKE(text, first) __attribute__((format(printf, text, first)))
#define UNREACHABLE() blkrepl__unreachable(__FILE__, __LINE__)
#else
#define LIKELY(x) (x)
#define UNLIKELY(x) (x)
#define PRINTF_LIKE(text, first)
#define UNREACHABLE() blkrepl__unreachable(__FILE__, __LINE__)
#endif

#define ALWAYS_CHECK(x) (LIKELY(x) ? (void)0 : blkrepl__check_failed(#x, __FILE__, __LINE__))

#ifdef BLKREPL_DEBUG
#define CHECK(x) ALWAYS_CHECK(x)
#else
#define CHECK(x) ((void)(0 && (x)))
#endif

/* Stop the program: an invariant of the library does not hold. */
_Noreturn void blkrepl__check_failed(const char *what, const char *file, int line);
_Noreturn void blkrepl__unreachable(const char *file, int line);

/* Stands at the end of elements that threads change each for itself: neighbours
 * share no cache line then, wherever the array begins. */
#define APART unsigned char apart[128]

#endif
