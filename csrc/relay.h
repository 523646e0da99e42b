/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Copies from and to memory that only the kernel reaches for us: another process's,
 * through /proc/PID/mem (a descriptor that stays that process's, whatever becomes
 * of its number). A page fault there may wait for whatever the tenant has made
 * responsible for it, for ever (userfaultfd, FUSE). So the worker doesn't touch it:
 * each such process has a thread, which copies a piece at a time from or to a
 * buffer, while the QP waits (QP_WAIT_COPY). A thread that hangs costs its tenant a
 * thread of few, and the QP's peer its transport timeout.
 */
#ifndef SLUICE_RELAY_H
#define SLUICE_RELAY_H

#include "node.h"
#include "qp.h"

enum { RELAY_PIECE = 1 << 16, RELAY_THREADS = 64 /* of a tenant */ };

enum relay_state { RELAY_IDLE, RELAY_UNDERWAY, RELAY_FETCHED, RELAY_STORED, RELAY_FAILED };

/* One piece of a QP's message on its way. While it is under way it is the thread's, else the worker's. */
struct relay {
    struct list link;
    struct qp *qp; /* NULL: dropped. The worker's alone */
    enum relay_state state;
    enum relay_state result;
    bool store;
    uint64_t address;
    uint32_t offset; /* in the message */
    uint32_t length;
    uint8_t buffer[RELAY_PIECE];
};

struct reach;
struct spans;

/* mem: /proc/PID/mem, taken over unless it fails. -ENOMEM, -EAGAIN: no more threads. */
int reach_open(struct tenant *tenant, int mem, struct reach **out);
/* Returns at once; what was under way ends as failed. */
void reach_close(struct reach *reach);

/*
 * spans_copy for lists of which a part lies in a process: at most one piece at a
 * time. Where a thread copies it now, returns offset: the QP must wait, and call
 * again.
 */
uint32_t relay_copy(struct qp *qp, const struct spans *dst, const struct spans *src, uint32_t offset, uint32_t end);

static inline bool relay_underway(const struct qp *qp)
{
    return qp->relay && qp->relay->state == RELAY_UNDERWAY;
}

/* The message is given up: what is under way ends unnoticed. */
void relay_drop(struct qp *qp);
void relay_free(struct qp *qp);

/* Where threads put what is done. */
int port_open(struct sluice_engine *engine);
void port_close(struct sluice_engine *engine);
bool port_rung(const struct sluice_engine *engine);
/* Lets the QPs of what is done go on. */
void port_collect(struct sluice_engine *engine);

#endif
