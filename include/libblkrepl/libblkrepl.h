/* SPDX-License-Identifier: MIT */
/**
 * @file libblkrepl.h
 * libblkrepl: block replication for programs that own a disk.
 *
 * A context owns images (disks over backends) and jobs.  The host gives its
 * guest I/O to the library or brackets its own, starts jobs, and polls.
 *
 * The shortest complete program is examples/hello-backup.c.
 */
#ifndef LIBBLKREPL_LIBBLKREPL_H
#define LIBBLKREPL_LIBBLKREPL_H

#include <libblkrepl/backend.h>
#include <libblkrepl/backup.h>
#include <libblkrepl/base.h>
#include <libblkrepl/context.h>
#include <libblkrepl/error.h>
#include <libblkrepl/event.h>
#include <libblkrepl/image.h>
#include <libblkrepl/job.h>
#include <libblkrepl/version.h>

#endif
