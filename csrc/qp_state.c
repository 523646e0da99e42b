/* SPDX-License-Identifier: Apache-2.0 */
/* States of a QP and the ways between them (IBTA 10.3.1). */
#include <errno.h>
#include <infiniband/verbs.h>
#include <string.h>

#include "atomic.h"
#include "fence.h"
#include "mw.h"
#include "nic_srq.h"
#include "parcel.h"
#include "qp.h"
#include "session.h"
#include "transport/transport.h"

static void publish_state(struct qp *qp, uint32_t state)
{
    qp->state = state;
    qp->attr.qp_state = state;
    qp->counters->state = state;
    if (qp->shared)
        store_release(&qp->shared->state, state);
}

void qp_disconnect(struct qp *qp)
{
    if (qp->transport)
        qp->transport->disconnect(qp);
    qp->transport = NULL;
    if (!qp->takes_shared)
        return;
    qp->takes_shared = false;
    if (--qp->srq->others == 0 && !qp->session->broken)
        nic_srq_fill(qp->srq);
}

static void flush_now(struct qp *qp)
{
    if (qp->session->broken)
        return;
    qp_flush_sends(qp);
    qp_flush_receives(qp);
    /* No receive of the SRQ will complete for it any more (IBTA 11.6.3.1). */
    if (qp->srq)
        qp_async_event(qp, IBV_EVENT_QP_LAST_WQE_REACHED);
}

static void on_fence(void *owner)
{
    struct qp *qp = owner;

    qp->fence = NULL;
    flush_now(qp);
}

/* The thread that may still store where its receives and READs lie. NULL: none may. */
static struct reach *storing(const struct qp *qp)
{
    if (qp->receive.active)
        return qp->receive.pd->session->reach; /* of XRC it may be another's than the QP */
    if (qp->message.active || qp->completed != qp->sq.head || !list_empty(&qp->parcels))
        return qp->pd->session->reach;
    return NULL;
}

/* The end of it, when nothing is out any more: what is flushed is the application's again. */
static void flush(struct qp *qp)
{
    /* Failed again by what its NIC still had: the first one's fence is out. */
    if (qp->session->broken || qp->fence)
        return;
    qp->fence = fence_send(qp->session->engine, storing(qp), on_fence, qp);
    if (!qp->fence)
        flush_now(qp);
}

void qp_drained(struct qp *qp)
{
    qp_disconnect(qp);
    flush(qp);
}

void qp_error(struct qp *qp)
{
    if (qp->state == IBV_QPS_ERR)
        return;
    qp_deactivate(qp);
    if (!qp->session->broken && qp->transport && qp->transport->drain && qp->transport->drain(qp)) {
        publish_state(qp, IBV_QPS_ERR);
        return;
    }
    qp_disconnect(qp);
    publish_state(qp, IBV_QPS_ERR);
    flush(qp);
}

void qp_send_error(struct qp *qp)
{
    if (qp->state == IBV_QPS_ERR)
        return;
    qp_deactivate(qp);
    publish_state(qp, IBV_QPS_SQE);
    qp_flush_sends(qp);
}

void qp_fatal(struct qp *qp, uint32_t event_type)
{
    if (qp->state == IBV_QPS_ERR)
        return;
    qp_error(qp);
    qp_async_event(qp, event_type);
}

void qps_of_dead_cq(struct cq *cq)
{
    for (uint32_t handle = 0; handle < SLUICE_SESSION_QPS; handle++) {
        struct qp *qp = cq->session->qps[handle];

        if (qp && (qp->send_cq == cq || qp->recv_cq == cq))
            qp_fatal(qp, IBV_EVENT_QP_FATAL);
    }
}

static void apply(struct qp *qp, const struct sluice_qp_attr *attr, uint32_t mask)
{
    struct sluice_qp_attr *now = &qp->attr;

#define APPLY(bit, field)        \
    do {                         \
        if (mask & (bit))        \
            now->field = attr->field; \
    } while (0)
    APPLY(IBV_QP_EN_SQD_ASYNC_NOTIFY, en_sqd_async_notify);
    APPLY(IBV_QP_ACCESS_FLAGS, qp_access_flags);
    APPLY(IBV_QP_PKEY_INDEX, pkey_index);
    APPLY(IBV_QP_PORT, port_num);
    APPLY(IBV_QP_QKEY, qkey);
    APPLY(IBV_QP_AV, ah);
    APPLY(IBV_QP_PATH_MTU, path_mtu);
    APPLY(IBV_QP_TIMEOUT, timeout);
    APPLY(IBV_QP_RETRY_CNT, retry_cnt);
    APPLY(IBV_QP_RNR_RETRY, rnr_retry);
    APPLY(IBV_QP_RQ_PSN, rq_psn);
    APPLY(IBV_QP_MAX_QP_RD_ATOMIC, max_rd_atomic);
    APPLY(IBV_QP_MIN_RNR_TIMER, min_rnr_timer);
    APPLY(IBV_QP_SQ_PSN, sq_psn);
    APPLY(IBV_QP_MAX_DEST_RD_ATOMIC, max_dest_rd_atomic);
    APPLY(IBV_QP_DEST_QPN, dest_qp_num);
    APPLY(IBV_QP_RATE_LIMIT, rate_limit);
#undef APPLY
    if (mask & IBV_QP_RNR_RETRY)
        qp->rnr_left = attr->rnr_retry;
}

static void reset(struct qp *qp)
{
    struct sluice_qp_cap cap = qp->attr.cap;

    qp_deactivate(qp);
    qp_disconnect(qp);
    mws_of_qp(qp);
    fence_forget(qp->session->engine, qp->fence);
    qp->fence = NULL;
    /* Everything posted is forgotten; the shim does the same with its side. */
    qp->message.active = false;
    qp->receive.active = false;
    parcels_drop(qp);
    qp->established = false;
    if (qp->shared) {
        qp->completed = qp->sq.head = qp->sq.seen = load_acquire(&qp->sq.shared->producer);
        qp->rq.head = qp->rq.seen = load_acquire(&qp->rq.shared->producer);
        store_relaxed(&qp->sq.shared->armed, 1);
        store_relaxed(&qp->rq.shared->armed, 0);
    }
    qp->peer_tenant = -1;
    memset(&qp->attr, 0, sizeof(qp->attr));
    qp->attr.cap = cap;
    publish_state(qp, IBV_QPS_RESET);
}

/* Refused, it is as if it had not been asked for. */
static int connect(struct qp *qp)
{
    int error = qp->transport->connect(qp);

    if (error) {
        qp_disconnect(qp);
        publish_state(qp, IBV_QPS_INIT);
    } else if (qp->srq && (qp->transport != &transport_nic || qp->type == IBV_QPT_UD)) {
        qp->takes_shared = true;
        qp->srq->others++;
    }
    return error;
}

int qp_modify(struct qp *qp, const struct sluice_qp_attr *attr, uint32_t attr_mask,
              const struct transport *transport, int32_t peer_tenant)
{
    uint32_t from = qp->state;

    if (qp->transport && qp->transport->modify && qp_can_respond(qp) &&
        !((attr_mask & IBV_QP_STATE) && (attr->qp_state == IBV_QPS_RESET || attr->qp_state == IBV_QPS_ERR))) {
        int error = qp->transport->modify(qp, attr, attr_mask);

        if (error)
            return error;
    }
    apply(qp, attr, attr_mask);
    if (!(attr_mask & IBV_QP_STATE) || (attr->qp_state == from && from != IBV_QPS_RESET))
        return 0;
    switch (attr->qp_state) {
    case IBV_QPS_RESET:
        reset(qp);
        break;
    case IBV_QPS_INIT:
        publish_state(qp, IBV_QPS_INIT);
        break;
    case IBV_QPS_RTR:
        qp->transport = transport;
        qp->peer_tenant = peer_tenant;
        qp->counters->peer_qp_num = qp->attr.dest_qp_num;
        publish_state(qp, IBV_QPS_RTR);
        return transport ? connect(qp) : 0;
    case IBV_QPS_RTS:
        publish_state(qp, IBV_QPS_RTS);
        qp_ring(qp);
        break;
    case IBV_QPS_SQD:
        qp->drained_told = false;
        publish_state(qp, IBV_QPS_SQD);
        if (!qp->message.active)
            qp_next_message(qp);
        break;
    case IBV_QPS_ERR:
        qp_error(qp);
        break;
    default:
        return -EINVAL;
    }
    return 0;
}
