/* SPDX-License-Identifier: Apache-2.0 */
/* What a QP does for others: receives are taken, completed and flushed. */
#include <infiniband/verbs.h>

#include "parcel.h"
#include "qp.h"
#include "session.h"
#include "srq.h"

void qp_establish(struct qp *qp)
{
    if (qp->established)
        return;
    qp->established = true;
    qp_async_event(qp, IBV_EVENT_COMM_EST);
}

bool qp_take_receive(struct qp *qp, struct srq *srq, bool arm)
{
    struct receive *receive = &qp->receive;

    receive->src_qp = qp->attr.dest_qp_num;
    receive->cq = qp->recv_cq;
    if (srq) {
        if (srq->cq)
            receive->cq = srq->cq;
        return srq_take(srq, arm, receive);
    }
    receive->pd = qp->pd;
    receive->srq = NULL;
    return queue_take_receive(qp->session, &qp->rq, qp->attr.cap.max_recv_sge, arm, receive);
}

void qp_complete_taken(struct qp *qp, const struct receive *receive, uint32_t status, uint32_t opcode, uint32_t byte_len,
                       uint32_t wc_flags, uint32_t imm_data, bool solicited)
{
    struct sluice_cqe cqe = {
        .wr_id = receive->wr_id,
        .status = status,
        .opcode = opcode,
        .byte_len = byte_len,
        .imm_data = imm_data,
        .wc_flags = wc_flags,
        .qp_num = qp->qp_num,
        .src_qp = receive->src_qp,
        .qp = qp->handle,
        .tail = receive->srq ? receive->srq->handle : qp->rq.head,
        .queue = receive->srq ? SLUICE_CQE_SRQ : SLUICE_CQE_RECEIVE,
    };

    if (status != IBV_WC_SUCCESS && status != IBV_WC_WR_FLUSH_ERR)
        qp->counters->errors++;
    cq_push(receive->cq, &cqe, solicited);
}

void qp_complete_receive(struct qp *qp, uint32_t status, uint32_t opcode, uint32_t byte_len,
                         uint32_t wc_flags, uint32_t imm_data, bool solicited)
{
    qp->receive.active = false;
    qp_complete_taken(qp, &qp->receive, status, opcode, byte_len, wc_flags, imm_data, solicited);
}

void qp_flush_receives(struct qp *qp)
{
    struct session *session = qp->session;
    struct queue *queue = &qp->rq;

    parcels_flush(qp);
    if (qp->receive.active)
        qp_complete_receive(qp, IBV_WC_WR_FLUSH_ERR, IBV_WC_RECV, 0, 0, 0, false);
    if (queue->entries == 0)
        return;
    /* As sends are (qp_flush_sends). */
    uint32_t left = queue_waiting(session, queue);
    bool more = left > FLUSHED_AT_ONCE;

    for (left = more ? FLUSHED_AT_ONCE : left; left && !session->broken; left--) {
        const struct sluice_recv_wqe *slot = (const struct sluice_recv_wqe *)queue_slot(queue);

        qp->receive.wr_id = slot->wr_id;
        qp->receive.src_qp = qp->attr.dest_qp_num;
        qp->receive.cq = qp->recv_cq;
        qp->receive.srq = NULL;
        queue->head++;
        qp_complete_receive(qp, IBV_WC_WR_FLUSH_ERR, IBV_WC_RECV, 0, 0, 0, false);
    }
    if (!session->broken && (more || !queue_arm(session, queue)) && !session->broken)
        session_ring_again(session, qp->handle);
}
