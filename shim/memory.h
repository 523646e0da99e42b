/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Memory that can't be moved onto the arena, and the ways on which the router
 * reaches it. Tried in this order:
 *
 *   FILE     a shared mapping of a file that lives in memory only (memfd, POSIX and
 *            System V shared memory, anonymous shared memory, hugetlbfs): the router
 *            maps the file as well, and copies as fast as in the arena. The file is
 *            had from /proc/self/map_files where the process may open that, else
 *            from its own open files, else by the router from /proc/PID/map_files.
 *   PROCESS  all else that is readable: the calling thread's and the first thread's
 *            stack, private huge pages, files on disk, or a range of several kinds.
 *            The router copies through /proc/PID/mem and a buffer of its own: two
 *            copies, a thread's wake-up per 64 KiB. Atomics are atomic among each other.
 *
 * Where the router has no right to either, registering fails with EOPNOTSUPP.
 */
#ifndef SLUICE_SHIM_MEMORY_H
#define SLUICE_SHIM_MEMORY_H

#include <stdbool.h>
#include <stdint.h>

/*
 * Finds a way to [addr, addr + length). 0 or errno; *handle and *place are what
 * REG_MR takes as memory and addr. memory_release gives the handle back.
 */
int memory_reach(uint64_t addr, uint64_t length, bool writable, uint32_t *handle, uint64_t *place);
void memory_release(uint32_t handle);

/* After a use of memory ended without a completion, as by ibv_destroy_qp: nothing of the router's reaches it any more. */
void memory_settle(void);

void memory_fork_prepare(void);
void memory_fork_parent(void);
void memory_fork_child(void);

#endif
