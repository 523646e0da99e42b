/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The identity arena: registered memory lies in a file that the router maps too,
 * at the offset that is its address here. Registering moves the pages of a range
 * into the file and maps the file over the range; the address stays, so nothing in
 * the application notices.
 *
 * What can be moved: private memory, anonymous or of a file (heap, mmap, bss, data).
 * What can't (EOPNOTSUPP): the calling thread's own stack and the first thread's,
 * memory that is shared already, huge pages. See memory.h for these.
 */
#ifndef SLUICE_SHIM_ARENA_H
#define SLUICE_SHIM_ARENA_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct mapping;

/*
 * arena_fd: the sparse file; userfaultfd_device_fd: an open /dev/userfaultfd, or -1.
 * Takes both over. 0 or errno.
 */
int sluice_arena_open(int arena_fd, int userfaultfd_device_fd);

/*
 * Moves the pages of [addr, addr+length) onto the arena; those that are there
 * already stay. writable: the range is to be written through the device. Other
 * threads may go on using the range; no write of theirs is lost. Thread-safe.
 *
 * 0, or EINVAL: not an address of user space; EFAULT: not mapped, or not writable;
 * EOPNOTSUPP: can't be moved; ENOMEM. On an error some pages may have moved, which
 * does no harm.
 */
int sluice_arena_adopt(void *addr, size_t length, int writable);

/* What is mapped at an address, or next above it (mapping.h). */
bool sluice_arena_mapping(uint64_t addr, struct mapping *mapping);

/*
 * After deregistration. The pages stay where they are, so registering again is
 * nearly free; what the application has unmapped since is given back now and then.
 */
void sluice_arena_retire(void *addr, size_t length);

/*
 * What the application's own calls need (pages.c). A pointer that may lie in memory
 * which is, or once was, on the arena: false is certain, and costs a load.
 */
bool sluice_arena_may_hold(const void *addr, size_t length);

/*
 * Makes what is on the arena private memory again, with its contents: before the
 * application moves or grows it, since a mapping of a file would show there what
 * belongs to other addresses. Nobody else may write to it meanwhile, as under
 * mremap itself. 0 or ENOMEM. Takes no lock.
 */
int sluice_arena_release(void *addr, size_t length);

/*
 * madvise(2) with MADV_DONTNEED or MADV_FREE as for private memory: what is on the
 * arena is zeroes afterwards, and its pages are free; the rest goes to advise. 0 or
 * -1 and errno. Takes no lock.
 */
int sluice_arena_drop(void *addr, size_t length, int advice, int (*advise)(void *addr, size_t length, int advice));

/* The application's calls come by us (pages.c): it moves nothing unseen. */
void sluice_arena_watched(void);

/*
 * Around fork (pthread_atfork): a child gets a copy of adopted memory, as the kernel
 * gives it one of memory that a device has pinned. prepare holds others off until
 * parent; the parent must not go on before child is done, or the child would see
 * what the parent writes meanwhile.
 */
void sluice_arena_fork_prepare(void);
void sluice_arena_fork_parent(void);
void sluice_arena_fork_child(void);

void sluice_arena_close(void);

#endif
