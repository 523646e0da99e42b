/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The other end is reached by the node's RDMA NIC (csrc/nic.h): each QP has a twin
 * there, whose number it bears. WQEs of the send queue become work requests of the twin
 * when the tenant's turn comes, receives when they are posted, and completions come back as
 * they are. States, retries, keys and order are the NIC's.
 *
 *   A WRITE or READ is cut into requests of NIC_CHUNK bytes, all messages together have at
 *   most NIC_FLIGHT bytes in the NIC: a message waits for so much, not for a queue. A tenant may have NIC_SHARE there all
 *   the same, lest one that has much under way to who never takes it stop all others
 *   Receives of an SRQ are in the NIC before anybody knows who will send (nic_srq.h): where one
 *   end has an SRQ, neighbours that name each other by the NIC's GID use the NIC too
 *   A UD QP keeps its receives in the engine, which copies what comes by the NIC (nic_pool.h)
 *   A QP that fails stays here until the NIC has given all back, so that what was received
 *   is not lost
 */
#ifndef SLUICE_TRANSPORT_NIC_H
#define SLUICE_TRANSPORT_NIC_H

#include "../nic.h"
#include "transport.h"

/* What a wr_id tells: whose it is, and of which queue. */
#define NIC_RECEIVE 1ull
#define NIC_TAG_SHIFT 1

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
    struct nic_cq *send_cq;
    struct nic_cq *recv_cq;   /* of its own receives; NULL: they are */
    struct nic_srq *srq;      /* its SRQ's, or */
    struct nic_pool *pool;    /* datagrams, of its PD's */
    uint32_t sends, receives; /* what the twin takes at once */
    const struct device *behind; /* whose NIC has the peer's GID; NULL: none of the node's */
    uint64_t tag;             /* of this connection: completions of earlier ones are nobody's */
    bool connected;
    bool draining;
    struct pace pace;         /* that was asked of the NIC */
    bool stuck;               /* the WQE at the head was refused: it fails when all before it are done */
    uint32_t fault;           /* enum ibv_wc_status of that */
    struct nic_request *ring; /* a power of two */
    uint32_t ring_mask;
    uint32_t posted, completed;   /* requests, running free */
    uint32_t received;            /* receives that came back; those up to rq.head are in the NIC */
    struct timer timer;           /* while draining */
    struct list blocked;          /* in its tenant's grounded, */
    uint64_t blocked_since;       /* ns: since then */
    struct list ending;           /* in nic->ending */
};

static inline struct nic *nic_of(const struct qp *qp)
{
    return qp->tenant->account.device->nic;
}

/* The twin of a QP that is being made: gives it its number. -errno of the device's. */
int nic_qp_create(struct qp *qp);
void nic_qp_destroy(struct qp *qp);
/* Asks the device whether the twin has failed: as a responder it may have, and told nobody. */
void nic_qp_check(struct qp *qp);

/* States (nic_twin.c), as struct transport has them. */
int nic_connect(struct qp *qp);
void nic_disconnect(struct qp *qp);
bool nic_drain(struct qp *qp);
int nic_modify(struct qp *qp, const struct sluice_qp_attr *attr, uint32_t mask);
/* The NIC has given back all that a failed QP had. */
bool nic_drained(const struct qp *qp);
/* The device's terms for a path whose source is one of its GIDs. */
void nic_address(const struct nic *nic, const struct sluice_ah_attr *from, struct ibv_ah_attr *to);

/* Hands over the receives that the tenant has posted, where they are the QP's own (nic.c). Its doorbell tells of more. */
void nic_post_receives(struct qp *qp);
/* Fewer bytes are in the NIC, of all or of this tenant: who waits for that goes on. */
void nic_wake_blocked(struct nic *nic);
void nic_wake_grounded(struct tenant *tenant);

/* Whether the NIC takes a request of so many bytes now; else the QP is blocked. */
bool nic_has_room(struct qp *qp, uint32_t bytes);
/* It was posted. */
void nic_posted(struct qp *qp, const struct nic_request *request);
/* Fails, when all before it is done. */
enum progress nic_fail_in_turn(struct qp *qp, uint32_t *status, uint32_t why);

/* Ceilings that the NIC keeps to itself (nic_pacing.c): asks the device whether it can, once. */
void nic_learn_pacing(struct nic *nic);
/* The QP's tenant has another ceiling than the NIC was told. */
void nic_pace(struct qp *qp);

static inline void nic_check_pace(struct qp *qp)
{
    const struct pace *asked = &qp->twin->pace, *now = &qp->tenant->pace;

    if (__builtin_expect(asked->rate != now->rate || asked->burst != now->burst, 0))
        nic_pace(qp);
}

/* Windows (nic_window.c): false where the message's can't be bound so; 0 or an errno of the device's. */
bool nic_describe_bind(struct qp *qp, struct ibv_send_wr *wr);
int nic_post_bind(struct ibv_qp *qp, struct ibv_send_wr *wr);

/* Datagrams (nic_datagram.c). */
enum progress nic_send_datagram(struct qp *qp, uint32_t *status);
/* bytes: GRH and data. */
void nic_datagram_arrived(struct qp *qp, const struct ibv_wc *wc, uint8_t *bytes);

#endif
