/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Memory of a process belongs to its application again when a key was revoked, or a completion says that it is done with: not
 * before the process's thread (reach.h) has done what it had been given until then. A fence is an errand of nothing,
 * which comes back behind all that were sent before it.
 */
#ifndef SLUICE_FENCE_H
#define SLUICE_FENCE_H

#include "reach.h"

struct fence;

/*
 * over(owner) is called once, from the worker, when all that the thread has now is done, or failed as the session ended. NULL: there
 * is nothing to wait for (reach: NULL, where the session has no such memory); or too many whose owner has gone hang, or there is no
 * memory, and it isn't waited for.
 */
struct fence *fence_send(struct sluice_engine *engine, struct reach *reach, void (*over)(void *owner), void *owner);

/* The owner goes, and isn't called. NULL is harmless. */
void fence_forget(struct sluice_engine *engine, struct fence *fence);

#endif
