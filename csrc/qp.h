/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Queue pairs: the requester's side takes WQEs from the send queue one after the
 * other and has the transport carry them out; the responder's side hands out
 * receives. What a QP may do in which state is IBTA 10.3.1.
 */
#ifndef SLUICE_QP_H
#define SLUICE_QP_H

#include "cq.h"
#include "mr.h"
#include "node.h"

struct transport;

/* Why a QP with work isn't in its tenant's active list. */
enum qp_wait {
    QP_WAIT_NOTHING, /* active, or no work */
    QP_WAIT_PEER,    /* nobody answers: until the transport timer gives up */
    QP_WAIT_RECEIVE, /* the responder has no receive posted: RNR */
    QP_WAIT_RATE     /* in a lane_shaper's waiting list */
};

/* The message that is being sent: a private, checked copy of its WQE. */
struct message {
    bool active;
    uint32_t total;  /* bytes */
    uint32_t moved;
    struct sluice_wqe *wqe; /* header of bytes */
    struct sluice_sge *sges;
    uint8_t *inline_data;
    struct sluice_atomic *atomic;
    struct sluice_bind *bind;
    _Alignas(64) uint8_t bytes[SLUICE_WQE_MAX];
};

/* The receive that an arriving message fills. */
struct receive {
    bool active;
    uint64_t wr_id;
    uint32_t num_sge;
    struct sluice_sge sges[SLUICE_MAX_SGE];
};

struct queue {
    struct sluice_queue_shared *shared;
    uint8_t *ring;
    uint32_t entries; /* power of two; 0: no such queue */
    uint32_t stride;  /* bytes */
    uint32_t head;    /* WRs taken */
    uint32_t seen;    /* producer as last read, checked */
};

struct qp {
    struct session *session;
    struct tenant *tenant;
    struct pd *pd;
    struct cq *send_cq, *recv_cq;
    uint32_t slot, handle, qp_num;
    uint32_t state; /* enum ibv_qp_state */
    bool sq_sig_all;
    bool drained_told;
    struct queue sq, rq;
    struct sluice_qp_shared *shared;
    struct sluice_qp_counters *counters;

    const struct transport *transport;
    int32_t peer_tenant; /* who the destination GID belongs to; -1: nobody */
    struct qp *peer;     /* local transport: found and agreeing, else NULL */

    struct message message;
    struct receive receive;
    enum qp_wait wait;
    uint64_t idle_since;  /* ns: since when the send queue is found empty; 0: it isn't */
    uint32_t rnr_left;    /* retries */
    struct timer timer;   /* RNR, or the transport's retry limit */
    struct list link;     /* tenant->active, or a lane_shaper's waiting */
    struct list windows;  /* of type 2, bound by this QP */

    struct sluice_qp_attr attr;
    uint64_t offset, size; /* in the segment */
};

int qp_create(struct session *session, const struct sluice_create_qp_request *request,
              struct sluice_create_qp_reply *reply);
void qp_free(struct qp *qp);
int qp_modify(struct qp *qp, const struct sluice_qp_attr *attr, uint32_t attr_mask,
              const struct transport *transport, int32_t peer_tenant);

/* The QP with this number, or NULL. */
struct qp *qp_lookup(struct sluice_engine *engine, uint32_t qp_num);

/* Doorbell or timer: there may be something to do. */
void qp_ring(struct qp *qp);

/* Puts the QP where the scheduler finds it. */
void qp_activate(struct qp *qp);
/* Takes it out of every list and stops its timer. */
void qp_deactivate(struct qp *qp);

/*
 * Sends for one turn: at most budget bytes, or a batch of small messages. Leaves
 * the QP active, waiting, or armed for the next doorbell. *spent gets the bytes.
 */
void qp_send(struct qp *qp, uint32_t budget, uint32_t *spent);

/* Into the error state: what is posted is flushed, in order. */
void qp_error(struct qp *qp);
/* The same, with an async event for the application. */
void qp_fatal(struct qp *qp, uint32_t event_type);
/* All QPs that use a dead CQ. */
void qps_of_dead_cq(struct cq *cq);

/* The next receive posted goes to qp->receive. False: none is posted. */
bool qp_take_receive(struct qp *qp);
/* Completes qp->receive. */
void qp_complete_receive(struct qp *qp, uint32_t status, uint32_t opcode, uint32_t byte_len,
                         uint32_t wc_flags, uint32_t imm_data, bool solicited);

static inline bool qp_can_respond(const struct qp *qp)
{
    return qp->state >= 2 /* IBV_QPS_RTR */ && qp->state <= 5 /* IBV_QPS_SQE */;
}

#endif
