/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The other end is reached by the node's RDMA NIC (csrc/nic.h): each QP has a twin
 * there, whose number it bears. WQEs of the send queue become work requests of the twin
 * when the tenant's turn comes, receives when they are posted, and completions come back as
 * they are. States, retries, keys and order are the NIC's.
 *
 *   A WRITE or READ is cut into requests of NIC_CHUNK bytes, all messages together have at
 *   most NIC_FLIGHT bytes in the NIC: a message waits for so much, not for a queue
 *   A QP with an SRQ, and a UD QP, always use the NIC, also for neighbours: receives are in
 *   the NIC before anybody knows who will send
 *   A QP that fails stays here until the NIC has given all back, so that what was received
 *   is not lost
 */
#ifndef SLUICE_TRANSPORT_NIC_H
#define SLUICE_TRANSPORT_NIC_H

#include "../nic.h"
#include "transport.h"

/* One request that the twin has. */
struct nic_request {
    uint32_t index; /* of its WQE in the send queue */
    uint32_t bytes;
    uint32_t brought; /* with the completion: all of a READ, or an atomic's word */
    bool last;      /* of its message */
};

struct nic_qp {
    struct ibv_qp *qp;
    struct qp *owner;
    struct nic_cq *send_cq, *recv_cq;
    uint32_t sends, receives; /* what the twin takes at once */
    uint64_t tag;             /* of this connection: completions of earlier ones are nobody's */
    bool connected;
    bool draining;
    bool stuck;               /* the WQE at the head was refused: it fails when all before it are done */
    uint32_t fault;           /* enum ibv_wc_status of that */
    struct nic_request *ring; /* a power of two */
    uint32_t ring_mask;
    uint32_t posted, completed;   /* requests, running free */
    uint32_t received;            /* receives that came back; those up to rq.head are in the NIC */
    struct timer timer;           /* while draining */
    struct list blocked;          /* in nic->blocked */
};

/* The twin of a QP that is being made: gives it its number. -errno of the device's. */
int nic_qp_create(struct qp *qp);
void nic_qp_destroy(struct qp *qp);
/* Asks the device whether the twin has failed: as a responder it may have, and told nobody. */
void nic_qp_check(struct qp *qp);

#endif
