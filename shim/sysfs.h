/* SPDX-License-Identifier: Apache-2.0 */
/*
 * /sys/class/infiniband… and /dev/infiniband as the tenant's device would show them. Nobody can make files
 * in sysfs, so the router writes them into the tenant's directory
 * (router/sluice/device/sysfs.py), and paths that lead there are rewritten. A real
 * device's files stay hidden.
 *
 * Nothing in here takes a lock or allocates: open, stat, access and readlink are
 * async-signal-safe, and may be called between vfork and exec.
 */
#ifndef SLUICE_SHIM_SYSFS_H
#define SLUICE_SHIM_SYSFS_H

#include <limits.h>

/* The path to use instead of this one: itself, or what was written into buffer. errno stays. */
const char *sysfs_where(const char *path, char buffer[PATH_MAX]);

/*
 * Port counters are asked for when their file is opened, and read from a memfd: the
 * descriptor, or -1 where path is another file, flags ask for more than reading, or
 * no router answers. errno stays.
 */
int sysfs_open_counter(const char *path, int flags);

/* Makes a resolved path one in /sys again, so that what is appended to it is found. */
char *sysfs_back(char *resolved);

#endif
