/* SPDX-License-Identifier: MIT */
/* osdep.h - stands in for QEMU's: what HBitmap needs of it, of GLib and of its build. */
#ifndef BLKREPL_BENCH_OSDEP_H
#define BLKREPL_BENCH_OSDEP_H

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <limits.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#ifdef __SIZEOF_INT128__
#define CONFIG_INT128 1
#endif

#define MIN(a, b) ((a) < (b) ? (a) : (b))
#define MAX(a, b) ((a) > (b) ? (a) : (b))
#define DIV_ROUND_UP(n, d) (((n) + (d)-1) / (d))
#define ROUND_UP(n, d) (DIV_ROUND_UP(n, d) * (d))
#define QEMU_IS_ALIGNED(n, m) ((n) % (m) == 0)
#define QEMU_ALIGN_DOWN(n, m) ((n) / (m) * (m))
#define QEMU_ALIGN_UP(n, m) ROUND_UP(n, m)

#define g_new0(type, count) ((type *)calloc(count, sizeof(type)))
#define g_renew(type, memory, count) ((type *)realloc(memory, (count) * sizeof(type)))
#define g_free free

typedef struct HBitmap HBitmap;
typedef struct HBitmapIter HBitmapIter;
typedef struct Error Error;

#endif
