/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The worker: the one thread that moves messages. It goes in rounds: timers,
 * doorbells, one turn for each tenant that has work, notifications; and sleeps
 * on the engine page's word when there is nothing left.
 *
 * The control plane changes the engine's state between two rounds: it enters,
 * changes, leaves. While the worker sleeps, entering costs no context switch.
 */
#ifndef SLUICE_WORKER_H
#define SLUICE_WORKER_H

#include "node.h"

int worker_start(struct sluice_engine *engine);
void worker_stop(struct sluice_engine *engine);

/* The caller alone touches the engine from here ... */
void worker_enter(struct sluice_engine *engine);
/* ... to here; the worker looks at everything again. */
void worker_leave(struct sluice_engine *engine);

#endif
