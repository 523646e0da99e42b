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
    PROGRESS_SENT,      /* on its way: the transport completes it later */
    PROGRESS_MORE,      /* the budget is used up, the message isn't */
    PROGRESS_NEXT,      /* nothing moved: look again at what is at the head */
    PROGRESS_BLOCKED,   /* no more can be taken: the transport activates the QP when it can */
    PROGRESS_NO_PEER,   /* nobody answers (yet) */
    PROGRESS_NO_RECEIVE, /* the responder has no receive posted */
    PROGRESS_NAP,       /* the same, and posting one won't ring: look again after MODERATION_NS */
    PROGRESS_DROPPED,   /* an unreliable message that nobody takes: it counts as sent */
    PROGRESS_FAILED     /* complete it with *status; the QP goes into error, or SQE */
};

struct transport {
    const char *name;

    /*
     * Moves at most budget bytes of qp->message. *status: enum ibv_wc_status. Sets
     * message.total before it says NO_PEER, NO_RECEIVE, NAP or DROPPED, and qp->lacking
     * with NO_RECEIVE.
     */
    enum progress (*send)(struct qp *qp, uint32_t budget, uint32_t *status);

    /* Sends all of a UD message to where message.ah leads. */
    enum progress (*send_datagram)(struct qp *qp, uint32_t *status);

    /*
     * The end of a QP's turn: what send has gathered is handed over. NULL where
     * messages are done when send returns; else messages may be on their way, and
     * send lets each fail in its turn.
     */
    void (*flush)(struct qp *qp);

    /* The QP can respond now: whoever waits for it may go on. -ENOMEM. */
    int (*connect)(struct qp *qp);

    /* The QP leaves the states in which it can respond, or is destroyed. */
    void (*disconnect)(struct qp *qp);

    /* A receive was posted after its lack was met. */
    void (*receive_posted)(struct qp *qp);

    /*
     * The QP failed, and something of it is still out: true where the transport brings that back
     * first and then calls qp_drained. NULL: there is never anything.
     */
    bool (*drain)(struct qp *qp);

    /* A change of attributes of a connected QP, before it is in force: -errno refuses it. NULL: all are the engine's own. */
    int (*modify)(struct qp *qp, const struct sluice_qp_attr *attr, uint32_t mask);
};

/* Both ends on this node: one copy from memory to memory. */
extern const struct transport transport_local;

/* The other end on another node, over kernel TCP (tcp.h). */
extern const struct transport transport_tcp;

/* Where the node has an RDMA NIC: over that (nic.h). */
extern const struct transport transport_nic;

/* Their send_datagram (datagram.c). */
enum progress local_send_datagram(struct qp *qp, uint32_t *status);
enum progress trunk_send_datagram(struct qp *qp, uint32_t *status);

#endif
