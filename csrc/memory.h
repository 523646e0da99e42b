/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What memory regions lie in. Each session has its arena; memory that can't be
 * moved there is opened by a request of its own (enum sluice_memory_kind).
 */
#ifndef SLUICE_MEMORY_H
#define SLUICE_MEMORY_H

#include "node.h"

enum { MEMORY_MAX = 1024 /* of a session, beside its arena: each may use up a window of the node */ };

/*
 * fd: the mapping's file; taken over where the result is a handle (> 0), else the
 * caller's. writable: that the application may write it. Negative errno: -ENOMEM
 * too many, -EOPNOTSUPP not a file that lives in memory only, -EACCES not opened so.
 */
int memory_open_file(struct session *session, int fd, bool writable);

/* fd: /proc/PID/mem of the session's process. The same; -EBUSY: it is open already, -EAGAIN: too many threads. */
int memory_open_process(struct session *session, int fd);

/* -EBUSY while MRs lie in it. */
int memory_close(struct session *session, uint32_t handle);
void memory_free(struct memory *memory);

/* 0 is the arena. NULL: there is none. */
struct memory *memory_find(struct session *session, uint32_t handle);

/* Whether [addr, addr+length) may be a region of it that grants access. */
bool memory_holds(const struct memory *memory, uint64_t addr, uint64_t length, uint32_t access);

#endif
