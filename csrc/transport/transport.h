/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What carries a QP's messages. The QP (qp.c) owns order, states, retries and
 * completions; a transport moves bytes.
 */
#ifndef SLUICE_TRANSPORT_H
#define SLUICE_TRANSPORT_H

#include "../qp.h"

enum progress {
    PROGRESS_DONE,      /* placed at the responder: complete it */
    PROGRESS_MORE,      /* the budget is used up, the message isn't */
    PROGRESS_NO_PEER,   /* nobody answers (yet) */
    PROGRESS_NO_RECEIVE, /* the responder has no receive posted */
    PROGRESS_FAILED     /* complete it with *status; the QP goes into error */
};

struct transport {
    const char *name;

    /* Moves at most budget bytes of qp->message. *status: enum ibv_wc_status. */
    enum progress (*send)(struct qp *qp, uint32_t budget, uint32_t *status);

    /* The QP can respond now: whoever waits for it may go on. */
    void (*connect)(struct qp *qp);

    /* The QP leaves the states in which it can respond, or is destroyed. */
    void (*disconnect)(struct qp *qp);

    /* A receive was posted after its lack was met. */
    void (*receive_posted)(struct qp *qp);
};

/* Both ends on this node: one copy from memory to memory. */
extern const struct transport transport_local;

#endif
