/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The piece of a QP's message that a thread copies from or to memory of a process
 * (reach.h), while the QP waits (QP_WAIT_COPY); and atomics of words there. A thread
 * that hangs costs the QP's peer its transport timeout; what stores in the QP's own process is waited for.
 */
#ifndef SLUICE_RELAY_H
#define SLUICE_RELAY_H

#include "reach.h"
#include "qp.h"

enum { RELAY_PIECE = 1 << 16 };

enum relay_state { RELAY_IDLE, RELAY_UNDERWAY, RELAY_FETCHED, RELAY_STORED, RELAY_PERFORMED, RELAY_FENCED, RELAY_FAILED };

/* While it is under way it is the thread's, but for qp and state, else the worker's. */
struct relay {
    struct errand errand;
    struct qp *qp; /* NULL: dropped */
    enum relay_state state;
    enum relay_state purpose; /* what it becomes */
    bool own; /* the thread is that of the QP's own process */
    uint64_t address;
    uint32_t offset; /* in the message */
    uint32_t length;
    uint8_t buffer[RELAY_PIECE];
    uint32_t gathered; /* bytes of datagram */
    uint8_t datagram[SLUICE_MTU];
    struct {
        bool compare;
        struct sluice_atomic operands;
        uint64_t original;
    } atomic;
};

struct span;
struct spans;

/*
 * spans_copy for lists of which a part lies in a process: at most one piece at a
 * time. Where a thread copies it now, returns offset: the QP must wait, and call
 * again.
 */
uint32_t relay_copy(struct qp *qp, const struct spans *dst, const struct spans *src, uint32_t offset, uint32_t end);

/* What there is of something that takes several calls, the QP waiting in between. */
enum relayed { RELAYED_DONE, RELAYED_LATER, RELAYED_FAILED };

/* Fetches the data of a datagram, up to SLUICE_MTU bytes, into the router's own memory; *data becomes that. */
enum relayed relay_gather(struct qp *qp, struct spans *data);

/* An atomic of the word at target, 8 bytes; message.original gets what was there. */
enum relayed relay_atomic(struct qp *qp, const struct span *target);

/* Waits until the thread of the QP's own process has done what it has now, as fence.h. Not RELAYED_FAILED. */
enum relayed relay_fence(struct qp *qp);

static inline bool relay_underway(const struct qp *qp)
{
    return qp->relay && qp->relay->state == RELAY_UNDERWAY;
}

/* Whether what is under way is done for the QP's own application, in memory of its own. */
static inline bool relay_is_own(const struct qp *qp)
{
    return qp->relay->own && (qp->relay->purpose == RELAY_STORED || qp->relay->purpose == RELAY_FENCED);
}

/* The message is given up: what is under way ends unnoticed. */
void relay_drop(struct qp *qp);
void relay_free(struct qp *qp);

#endif
