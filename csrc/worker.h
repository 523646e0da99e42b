/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The worker: the one thread that moves messages. It goes in rounds: timers,
 * doorbells, the turns of those whose turn it is (shaper.h), notifications; and
 * sleeps on the engine page's word when there is nothing left.
 *
 * The control plane changes the engine's state between two rounds: it enters,
 * changes, leaves. While the worker sleeps, entering costs no context switch.
 */
#ifndef SLUICE_WORKER_H
#define SLUICE_WORKER_H

#include "node.h"

/* Whether somebody else has something for the worker: then a QP that had it for itself ends its turn. */
bool worker_called(const struct sluice_engine *engine);

int worker_start(struct sluice_engine *engine);
void worker_stop(struct sluice_engine *engine);

/* After a store that the worker looks at, before it sleeps: wakes it where it does. */
void worker_wake(struct sluice_engine_page *page);
/* From any other thread: sets a word that the worker looks at, and wakes it where it sleeps. */
void worker_ring(struct sluice_engine_page *page, uint32_t *word);

/*
 * A thread beside the worker, which ends by itself and gets no signals: whoever waits there, for memory or the kernel, may
 * do so for ever. 0 or an errno.
 */
int worker_spawn(void *(*run)(void *argument), void *argument);

/* The caller alone touches the engine from here ... */
void worker_enter(struct sluice_engine *engine);
/* ... to here; the worker looks at everything again. */
void worker_leave(struct sluice_engine *engine);
/* The same; the time since worker_enter is this tenant's. */
void worker_leave_for(struct sluice_engine *engine, struct tenant *tenant);

#endif
