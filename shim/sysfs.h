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

/*
 * The path to use instead of this one: itself, or what was written into buffer. A path that isn't absolute is one
 * from directory (AT_FDCWD, or a descriptor), so that who starts at a descriptor of / or /sys gets there too. errno stays.
 */
const char *sysfs_where(int directory, const char *path, char buffer[PATH_MAX]);

/*
 * After path (sysfs_where's) was opened with these flags: where fd is a port counter of the tenant's, however it was named, its
 * value as it is now takes the place of the file. Returns fd. errno stays.
 */
int sysfs_opened(int fd, const char *path, int flags);

/* Makes a resolved path one in /sys again, so that what is appended to it is found. */
char *sysfs_back(char *resolved);

#endif
