/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Queue pairs: the requester's side (requester.c) takes WQEs from the send queue one
 * after the other and has the transport carry them out; the responder's side
 * (responder.c) hands out receives. What a QP may do in which state is IBTA 10.3.1
 * (qp_state.c).
 */
#ifndef SLUICE_QP_H
#define SLUICE_QP_H

#include "cq.h"
#include "moderation.h"
#include "mr.h"
#include "node.h"
#include "queue.h"

struct allowance;
struct nic_qp;
struct transport;
struct xrcd;

/* WRs of each queue that are flushed at a time, before others have had their turns. */
enum { FLUSHED_AT_ONCE = 256 };

/* Why a QP with work isn't in its tenant's active list. */
enum qp_wait {
    QP_WAIT_NOTHING, /* active, or no work */
    QP_WAIT_PEER,    /* nobody answers: until the transport timer gives up */
    QP_WAIT_RECEIVE, /* the responder has no receive posted: RNR */
    QP_WAIT_TRANSPORT, /* the transport can't take more: until it can */
    QP_WAIT_COPY,    /* a thread copies the next piece, or performs an atomic: relay.h */
    QP_WAIT_RATE,    /* claim: for the ceiling at the other end */
    QP_WAIT_POST     /* watched: nothing to send, but something may come at once */
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
    struct ah *ah;   /* UD */
    bool performed;  /* atomic: done, its result is under way */
    uint64_t original; /* which is this */
    bool dropped;    /* nobody takes it: the rest is sent to nowhere (UC) */
    _Alignas(64) uint8_t bytes[SLUICE_WQE_MAX];
};

struct qp {
    struct session *session;
    struct tenant *tenant;
    struct pd *pd;                /* XRC_RECV: NULL, and so are the next three */
    struct cq *send_cq, *recv_cq; /* recv_cq: also NULL for XRC_SEND */
    struct sluice_qp_shared *shared;
    struct srq *srq;              /* NULL: a receive queue of its own, or XRC */
    bool takes_shared;            /* connected, and its receives are taken from srq by the engine */
    uint32_t slot, handle, qp_num;
    uint32_t type;  /* enum ibv_qp_type */
    uint32_t state; /* enum ibv_qp_state */
    uint32_t opcodes; /* bit n: this type may send enum ibv_wr_opcode n */
    bool sq_sig_all;
    bool drained_told;
    bool established; /* IBV_EVENT_COMM_EST was given */
    struct queue sq, rq;
    struct sluice_qp_counters *counters;

    const struct transport *transport;
    int32_t peer_tenant; /* who the destination GID belongs to; -1: nobody */
    struct qp *peer;     /* local transport: found and agreeing, else NULL */
    struct srq *lacking; /* the SRQ that had no receive for the message; NULL: the peer's own queue hadn't */

    uint32_t completed;  /* sends completed; those up to sq.head are on their way */
    void *wire;          /* the transport's own: tcp's struct tcp_endpoint */
    struct nic_qp *twin; /* on the node's NIC; NULL: it has none, or not for this type */

    struct message message;
    struct receive receive;
    enum qp_wait wait;
    struct list *line;    /* QP_WAIT_TRANSPORT: in which to wait; NULL: in none */
    uint64_t idle_since;  /* ns: since when the send queue is watched */
    uint32_t rnr_left;    /* retries */
    struct moderation posting, receiving; /* of its own sends, and of its peer's receives */
    struct timer timer;   /* RNR, the transport's retry limit, or moderation's */
    struct list link;     /* tenant->active, engine->watched, or an SRQ's waiting */
    struct claim claim;
    struct list windows;  /* of type 2, bound by this QP */
    struct relay *relay;  /* where its message reaches memory that the worker can't; or NULL */
    struct fence *fence;  /* in the error state: what is posted is flushed when it is back; or NULL */

    struct list parcels;  /* UD: struct parcel, datagrams that came and aren't placed yet, in order */
    struct list groups;   /* UD: struct member */
    uint32_t group_count;
    struct xrcd *xrcd;    /* XRC_RECV */
    struct list shares;   /* XRC_RECV: struct qp_share */
    struct list in_xrcd;

    struct sluice_qp_attr attr;
    uint64_t offset, size; /* in the segment */
};

/* -EAGAIN: its NIC gives numbers that other NICs gave; later it will give others. */
int qp_create(struct session *session, const struct sluice_create_qp_request *request,
              struct sluice_create_qp_reply *reply);
void qp_free(struct qp *qp);
/* The session gives its handle back: frees the QP unless others share it. -EBUSY: attached to multicast groups. */
int qp_close(struct session *session, uint32_t handle);
/* A free handle of the session, which names the QP from now on. -ENOMEM. */
int qp_take_handle(struct session *session, struct qp *qp);
int qp_modify(struct qp *qp, const struct sluice_qp_attr *attr, uint32_t attr_mask,
              const struct transport *transport, int32_t peer_tenant);

/* The QP with this number, or NULL. */
struct qp *qp_lookup(struct sluice_engine *engine, uint32_t qp_num);
/* The one that is meant by its number and the GID of a device's NIC. NULL: none of this node's; a host's, maybe. */
struct qp *qp_behind(const struct device *device, uint32_t qp_num);

/* Doorbell or timer: there may be something to do. */
void qp_ring(struct qp *qp);

/* Puts the QP where the scheduler finds it. */
void qp_activate(struct qp *qp);
/* Takes it out of every list and stops its timer. */
void qp_deactivate(struct qp *qp);

/* Sends for one turn (turn.h). Leaves the QP active, waiting, or armed for the next doorbell. */
void qp_send(struct qp *qp, struct allowance *allowance);
/* Whether the message that is sent, or will be next, is a READ. Only a guess before it was taken. */
bool qp_reads(const struct qp *qp);
/* Out of the active list, for a claim. */
void qp_wait_for_rate(struct qp *qp);
/* Looks at a watched QP's send queue. */
void qp_watch(struct qp *qp);

/* The context in which the session has it under this handle. */
struct context *qp_context(const struct qp *qp, const struct session *session, uint32_t handle);

/* Async event to whoever has the QP. */
void qp_async_event(struct qp *qp, uint32_t event_type);

/* The WQE at the head is done with. status: enum ibv_wc_status. */
void qp_complete_send(struct qp *qp, uint32_t status);
/*
 * The same for the oldest that is on its way, or for the one at the head where none
 * is. byte_len: bytes that it brought (READ, atomic).
 */
void qp_complete_oldest(struct qp *qp, uint32_t status, uint32_t byte_len);
/* The message is on its way: the next one may follow. */
void qp_sent(struct qp *qp);
/* Copies a WQE of the send queue and checks the copy. False: garbage, the session is broken now. */
bool qp_copy_message(struct qp *qp, uint32_t index, struct message *message);
/* IBTA table 45: nanoseconds of an RNR NAK timer field. */
uint64_t qp_rnr_ns(uint32_t field);
void qp_flush_sends(struct qp *qp);
void qp_flush_receives(struct qp *qp);
/* What happens when the SQ may have run dry in SQD, or has something. False: nothing to do. */
bool qp_next_message(struct qp *qp);

/* Into the error state: what is posted is flushed, in order. */
void qp_error(struct qp *qp);
/* The transport lets it go. */
void qp_disconnect(struct qp *qp);
/* The transport has brought back what was out when the QP failed. */
void qp_drained(struct qp *qp);
/* A WQE of an unreliable QP failed: sends are flushed, receives go on (IBTA 10.3.1.6). */
void qp_send_error(struct qp *qp);
/* The same, with an async event for the application. */
void qp_fatal(struct qp *qp, uint32_t event_type);
/* All QPs that use a dead CQ. */
void qps_of_dead_cq(struct cq *cq);

/*
 * The next receive posted goes to qp->receive: from srq, or where that is NULL from
 * the QP's own queue. False: none is posted; the transport hears of the next one
 * where arm is true.
 */
bool qp_take_receive(struct qp *qp, struct srq *srq, bool arm);
/* The first message that comes while the QP is in RTR tells the application (IBTA 11.6.3.1). */
void qp_establish(struct qp *qp);
/* Completes a receive that was taken. */
void qp_complete_taken(struct qp *qp, const struct receive *receive, uint32_t status, uint32_t opcode, uint32_t byte_len,
                       uint32_t wc_flags, uint32_t imm_data, bool solicited);
/* The same for qp->receive. */
void qp_complete_receive(struct qp *qp, uint32_t status, uint32_t opcode, uint32_t byte_len,
                         uint32_t wc_flags, uint32_t imm_data, bool solicited);

/* Its messages may be lost, and nobody says so (IBTA 9.8). */
static inline bool qp_is_unreliable(const struct qp *qp)
{
    return qp->type == 3 /* IBV_QPT_UC */ || qp->type == 4 /* IBV_QPT_UD */;
}

/* Whether a QP of one type may be connected to one of the other: enum ibv_qp_type. */
static inline bool qp_types_fit(uint32_t type, uint32_t other)
{
    return type == 9 /* IBV_QPT_XRC_SEND */ ? other == 10 /* IBV_QPT_XRC_RECV */ : type == 10 ? other == 9 : type == other;
}

static inline bool qp_can_respond(const struct qp *qp)
{
    return qp->state >= 2 /* IBV_QPS_RTR */ && qp->state <= 5 /* IBV_QPS_SQE */;
}

#endif
