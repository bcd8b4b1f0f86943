/* SPDX-License-Identifier: MIT */
/* Between sys.c, which decides, and sys_wrap.c, which stands in for the system. */
#ifndef TESTS_TORTURE_SYS_H
#define TESTS_TORTURE_SYS_H

#include "torture.h"

enum sys_kind {
    SYS_NONE,
    SYS_OPEN,
    SYS_OPEN_SEED,
    SYS_CLOSE,
    SYS_READ,
    SYS_SEED,
    SYS_WRITE,
    SYS_POLL,
    SYS_EVENTFD,
    SYS_FCNTL,
    SYS_FSTAT,
    SYS_STAT,
    SYS_FSTATFS,
    SYS_FTRUNCATE,
    SYS_LSEEK,
    SYS_FALLOCATE,
    SYS_IOCTL,
    SYS_MEASURE,
    SYS_FDATASYNC,
    SYS_PREADV,
    SYS_PWRITEV,
    SYS_NOWAIT_READ,
    SYS_NOWAIT_WRITE,
    SYS_DSYNC,
    SYS_PWRITE,
    SYS_COPY,
    SYS_THREAD,
    SYS_MUTEX,
    SYS_COND,
    SYS_CPUS,
    SYS_KINDS
};

/* Beside errno values. */
#define SYS_SHORT (-1) /* part of it is done, and that is the answer */
#define SYS_ZERO (-2)  /* nothing is done, and 0 is the answer */

/* Count a system call; 0, or how it is to fail.  `fd` -1: of no file. */
int sys_verdict(enum sys_kind kind, int fd);
/* The system refuses by itself, because of how the files behave. */
void sys_refuses(int fd, int err);
/* How the files behave in this run. */
const struct sys_files *sys_files_now(void);
void sys_opened(const char *path, int fd);
void sys_closed(int fd);
/* Of which it is the file; -1: of none. */
int sys_medium_of(int fd);

#endif
