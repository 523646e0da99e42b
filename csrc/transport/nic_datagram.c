/* SPDX-License-Identifier: Apache-2.0 */
/*
 * UD messages by the NIC. The engine checks keys and length before the NIC does, so that a mistake is its tenant's
 * own and stops that send queue only. Whom a datagram may reach was decided when its address was made; behind the node's own
 * GID are all its tenants, and whether this one may talk to that is asked once (neighbours.h).
 */
#include "../ah.h"
#include "../neighbours.h"
#include "../spans.h"
#include "../tenant.h"
#include "datagram.h"
#include "nic.h"

enum { QKEY_OWN = 31 /* the bit in a Q_Key that says: the QP's own; of a QP's own: for privileged users (IBTA 10.2.5) */ };

/* A neighbour behind a GID of the node's own; NULL: whoever it is, the NIC leads there. */
static struct qp *neighbour(const struct qp *qp, const struct ah *ah)
{
    struct qp *to = ah->behind ? qp_behind(ah->behind, qp->message.wqe->remote_qpn) : NULL;

    return to && to->type == IBV_QPT_UD ? to : NULL;
}

static enum progress send_to_neighbour(struct qp *qp, struct qp *to, uint32_t *status)
{
    switch (neighbour_admission(qp->tenant->first, to->tenant->first)) {
    case NEIGHBOUR_ADMITTED:
        return datagram_to_neighbour(qp, to, status);
    case NEIGHBOUR_REFUSED:
        return PROGRESS_DROPPED;
    default:
        qp->line = &qp->tenant->first->asking;
        return PROGRESS_BLOCKED;
    }
}

/* What every host's communication manager listens with, no tenant may speak to. */
static bool is_privileged(uint32_t remote_qpn, uint32_t qkey)
{
    return remote_qpn <= 1 || qkey >> QKEY_OWN;
}

/* Whether the message is one that may be sent. *status says why not. */
static bool check(struct qp *qp, uint32_t *status)
{
    struct message *message = &qp->message;
    const struct sluice_wqe *wqe = message->wqe;
    struct spans src = {.count = 0};

    *status = IBV_WC_LOC_PROT_ERR;
    if (wqe->flags & SLUICE_WQE_INLINE)
        src.total = wqe->inline_length;
    else if (!spans_add_sges(&src, qp->pd, message->sges, wqe->num_sge, 0) || src.by_process)
        return false;
    *status = IBV_WC_LOC_LEN_ERR;
    message->total = (uint32_t)(src.total <= SLUICE_MTU ? src.total : 0);
    return src.total <= nic_of(qp)->mtu;
}

static enum progress post(struct qp *qp, const struct ah *ah, uint32_t qkey, uint32_t *status)
{
    struct message *message = &qp->message;
    const struct sluice_wqe *wqe = message->wqe;
    struct ibv_sge sges[SLUICE_MAX_SGE];
    struct ibv_send_wr *refused, wr = {
        .wr_id = qp->twin->tag << NIC_TAG_SHIFT,
        .sg_list = sges,
        .opcode = (enum ibv_wr_opcode)wqe->opcode,
        .send_flags = IBV_SEND_SIGNALED | (wqe->flags & SLUICE_WQE_SOLICITED ? IBV_SEND_SOLICITED : 0u),
        .imm_data = wqe->imm_data,
        .wr.ud = {.ah = ah->nic, .remote_qpn = wqe->remote_qpn, .remote_qkey = qkey},
    };

    if (wqe->flags & SLUICE_WQE_INLINE) {
        sges[0] = (struct ibv_sge){(uintptr_t)message->inline_data, message->total, 0};
        wr.num_sge = message->total ? 1 : 0;
        wr.send_flags |= IBV_SEND_INLINE;
    } else {
        for (uint32_t i = 0; i < wqe->num_sge; i++)
            if (message->sges[i].length)
                sges[wr.num_sge++] =
                    (struct ibv_sge){message->sges[i].addr, message->sges[i].length, message->sges[i].lkey};
    }
    if (ibv_post_send(qp->twin->qp, &wr, &refused))
        return nic_fail_in_turn(qp, status, IBV_WC_LOC_QP_OP_ERR);
    nic_posted(qp, &(struct nic_request){.index = qp->sq.head, .bytes = message->total, .last = true});
    message->moved = message->total;
    qp->counters->tx_bytes += message->total;
    qp->tenant->counters->tx_bytes += message->total;
    qp->counters->tx_messages++;
    qp->tenant->counters->tx_messages++;
    return PROGRESS_SENT;
}

enum progress nic_send_datagram(struct qp *qp, uint32_t *status)
{
    const struct sluice_wqe *wqe = qp->message.wqe;
    const struct ah *ah = qp->message.ah;
    uint32_t qkey = wqe->remote_qkey >> QKEY_OWN ? qp->attr.qkey : wqe->remote_qkey;
    struct qp *to = neighbour(qp, ah);

    if (to || !ah->nic || ah->severed || !qp->twin || !qp->twin->connected || is_privileged(wqe->remote_qpn, qkey)) {
        /* Done at once, and so not before what the NIC still has. */
        if (qp->completed != qp->sq.head)
            return PROGRESS_BLOCKED;
        return to ? send_to_neighbour(qp, to, status) : PROGRESS_DROPPED;
    }
    if (!check(qp, status))
        return nic_fail_in_turn(qp, status, *status);
    if (!nic_has_room(qp, qp->message.total))
        return PROGRESS_BLOCKED;
    nic_check_pace(qp);
    return post(qp, ah, qkey, status);
}

void nic_datagram_arrived(struct qp *qp, const struct ibv_wc *wc, uint8_t *bytes)
{
    if (wc->byte_len < SLUICE_GRH || wc->byte_len > SLUICE_GRH + SLUICE_MTU || qp->session->broken)
        return;
    datagram_from_nic(qp, wc->src_qp, wc->wc_flags & IBV_WC_WITH_IMM, wc->imm_data, bytes, wc->byte_len);
}
