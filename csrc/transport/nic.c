/* SPDX-License-Identifier: Apache-2.0 */
/* Work requests of tenants become those of their twins. */
#include "nic.h"

#include <errno.h>

#include "../atomic.h"
#include "../mw.h"
#include "../session.h"

enum { RECEIVES = 16 /* in one call */ };

/* ---- receives --------------------------------------------------------------- */

static uint64_t wr_id_of(const struct nic_qp *twin, uint64_t receive)
{
    return twin->tag << NIC_TAG_SHIFT | receive;
}

static void fill_receive(struct nic_qp *twin, const struct receive *from, struct ibv_recv_wr *wr, struct ibv_sge *sges)
{
    for (uint32_t i = 0; i < from->num_sge; i++)
        sges[i] = (struct ibv_sge){from->sges[i].addr, from->sges[i].length, from->sges[i].lkey};
    *wr = (struct ibv_recv_wr){.wr_id = wr_id_of(twin, NIC_RECEIVE), .sg_list = sges, .num_sge = (int)from->num_sge};
}

/* Hands over what the tenant has posted. Its doorbell tells of more. */
void nic_post_receives(struct qp *qp)
{
    struct nic_qp *twin = qp->twin;
    struct ibv_recv_wr wrs[RECEIVES], *refused;
    struct ibv_sge sges[RECEIVES][SLUICE_MAX_SGE];
    uint32_t count;

    if (twin->draining || !twin->connected || !twin->recv_cq)
        return;
    do {
        struct receive *receive = &qp->receive;

        for (count = 0; count < RECEIVES; count++) {
            /* Full: whoever posts another has polled a completion, and rings. */
            if (qp->rq.head - twin->received >= twin->receives) {
                queue_arm(qp->session, &qp->rq);
                break;
            }
            if (!queue_take_receive(qp->session, &qp->rq, qp->attr.cap.max_recv_sge, true, receive))
                break;
            receive->active = false;
            fill_receive(twin, receive, &wrs[count], sges[count]);
            if (count)
                wrs[count - 1].next = &wrs[count];
        }
        if (count && ibv_post_recv(twin->qp, wrs, &refused)) {
            /* Never seen of a queue with room: those from there on wait for the next doorbell. */
            qp->rq.head -= (uint32_t)(wrs + count - refused);
            break;
        }
    } while (count == RECEIVES && !qp->session->broken);
    /* What the NIC has no room for waits for a completion, and no poster for that. */
    store_release(&qp->shared->taken, qp->rq.seen);
}

static void nic_receive_posted(struct qp *qp)
{
    /* The doorbell is that of both queues: still armed, this one has nothing new since it was found empty. */
    if (!load_relaxed(&qp->rq.shared->armed))
        nic_post_receives(qp);
}

/* ---- sends ------------------------------------------------------------------ */

static bool is_answered(uint8_t opcode)
{
    return opcode >= IBV_WR_RDMA_READ && opcode <= IBV_WR_ATOMIC_FETCH_AND_ADD;
}

static bool is_atomic(uint8_t opcode)
{
    return opcode == IBV_WR_ATOMIC_CMP_AND_SWP || opcode == IBV_WR_ATOMIC_FETCH_AND_ADD;
}

static bool may_be_cut(uint8_t opcode)
{
    return opcode == IBV_WR_RDMA_WRITE || opcode == IBV_WR_RDMA_WRITE_WITH_IMM || opcode == IBV_WR_RDMA_READ;
}

/* SGEs of [offset, offset + length) of the message. Returns how many. */
static int cut(const struct message *message, uint32_t offset, uint32_t length, struct ibv_sge *to)
{
    int count = 0;

    for (uint32_t i = 0; i < message->wqe->num_sge && length; i++) {
        const struct sluice_sge *sge = &message->sges[i];

        if (offset >= sge->length) {
            offset -= sge->length;
            continue;
        }
        uint32_t piece = sge->length - offset < length ? sge->length - offset : length;

        to[count++] = (struct ibv_sge){sge->addr + offset, piece, sge->lkey};
        length -= piece;
        offset = 0;
    }
    return count;
}

static bool measure(struct message *message)
{
    uint64_t total = 0;

    if (message->wqe->flags & SLUICE_WQE_INLINE)
        total = message->wqe->inline_length;
    else
        for (uint32_t i = 0; i < message->wqe->num_sge; i++)
            total += message->sges[i].length;
    message->total = (uint32_t)total;
    return total <= 1u << 31;
}

enum progress nic_fail_in_turn(struct qp *qp, uint32_t *status, uint32_t why)
{
    if (qp->completed != qp->sq.head || qp->twin->posted != qp->twin->completed)
        return PROGRESS_BLOCKED;
    *status = why;
    return PROGRESS_FAILED;
}

bool nic_has_room(struct qp *qp, uint32_t bytes)
{
    struct nic *nic = nic_of(qp);
    struct nic_qp *twin = qp->twin;
    struct tenant *tenant = qp->tenant;

    if (twin->posted - twin->completed == twin->sends)
        return false;
    if (nic->flying + (uint64_t)bytes <= NIC_FLIGHT || tenant->flying == 0 || tenant->flying + (uint64_t)bytes <= NIC_SHARE)
        return true;
    if (list_unlinked(&twin->blocked)) {
        list_append(&tenant->grounded, &twin->blocked);
        if (list_unlinked(&tenant->in_blocked))
            list_append(&nic->blocked, &tenant->in_blocked);
        twin->blocked_since = qp->session->engine->now;
    }
    return false;
}

void nic_posted(struct qp *qp, const struct nic_request *request)
{
    struct nic_qp *twin = qp->twin;

    nic_of(qp)->outstanding += twin->posted == twin->completed;
    twin->ring[twin->posted++ & twin->ring_mask] = *request;
    nic_of(qp)->flying += request->bytes;
    qp->tenant->flying += request->bytes;
}

/* False: nothing that can be had. */
static bool describe(struct qp *qp, uint32_t part, bool last, struct ibv_send_wr *wr, struct ibv_sge *sges)
{
    const struct message *message = &qp->message;
    const struct sluice_wqe *wqe = message->wqe;

    /* Field by field: clearing all of it, most of which is other opcodes', takes as long as the rest of this. */
    wr->next = NULL;
    wr->wr_id = wr_id_of(qp->twin, 0);
    wr->sg_list = sges;
    wr->opcode = (enum ibv_wr_opcode)wqe->opcode;
    wr->send_flags = IBV_SEND_SIGNALED | (wqe->flags & SLUICE_WQE_SOLICITED && last ? IBV_SEND_SOLICITED : 0u) |
                     (wqe->flags & SLUICE_WQE_FENCE && message->moved == 0 ? IBV_SEND_FENCE : 0u);
    if (wqe->flags & SLUICE_WQE_INLINE) {
        sges[0] = (struct ibv_sge){(uintptr_t)message->inline_data + message->moved, part, 0};
        wr->num_sge = part ? 1 : 0;
        wr->send_flags |= IBV_SEND_INLINE;
    } else {
        wr->num_sge = cut(message, message->moved, part, sges);
    }
    switch (wqe->opcode) {
    case IBV_WR_SEND:
    case IBV_WR_SEND_WITH_IMM:
        wr->imm_data = wqe->imm_data;
        return true;
    case IBV_WR_LOCAL_INV:
        /* The engine's part of it; whether the key is one that may be invalidated, the NIC knows. */
        mw_invalidate(qp, wqe->imm_data);
        /* fallthrough */
    case IBV_WR_SEND_WITH_INV:
        wr->invalidate_rkey = wqe->imm_data;
        return true;
    case IBV_WR_BIND_MW:
        return nic_describe_bind(qp, wr);
    case IBV_WR_RDMA_WRITE_WITH_IMM:
        /* One notification, with the last piece. */
        wr->opcode = last ? IBV_WR_RDMA_WRITE_WITH_IMM : IBV_WR_RDMA_WRITE;
        wr->imm_data = wqe->imm_data;
        /* fallthrough */
    case IBV_WR_RDMA_WRITE:
    case IBV_WR_RDMA_READ:
        wr->wr.rdma.remote_addr = wqe->remote_addr + message->moved;
        wr->wr.rdma.rkey = wqe->rkey;
        return true;
    case IBV_WR_ATOMIC_CMP_AND_SWP:
    case IBV_WR_ATOMIC_FETCH_AND_ADD:
        wr->wr.atomic.remote_addr = wqe->remote_addr;
        wr->wr.atomic.rkey = wqe->rkey;
        wr->wr.atomic.compare_add = message->atomic->compare_add;
        wr->wr.atomic.swap = message->atomic->swap;
        return true;
    default:
        return false;
    }
}

static int post(struct qp *qp, struct ibv_send_wr *wr)
{
    struct ibv_send_wr *refused;

    return wr->opcode == IBV_WR_BIND_MW ? nic_post_bind(qp->twin->qp, wr) : ibv_post_send(qp->twin->qp, wr, &refused);
}

static void count_request(struct qp *qp, uint8_t opcode, uint32_t bytes, bool last)
{
    struct sluice_tenant_counters *tenant = qp->tenant->counters;

    if (opcode == IBV_WR_RDMA_READ) {
        qp->counters->rx_bytes += bytes;
        tenant->rx_bytes += bytes;
        qp->counters->reads += last;
        tenant->reads += last;
    } else if (is_atomic(opcode)) {
        qp->counters->atomics++;
        tenant->atomics++;
    } else if (opcode != IBV_WR_BIND_MW && opcode != IBV_WR_LOCAL_INV) {
        qp->counters->tx_bytes += bytes;
        tenant->tx_bytes += bytes;
        qp->counters->tx_messages += last;
        tenant->tx_messages += last;
    }
}

/*
 * Whether a QP of this node's that is at the other end has this one at its other end. NICs don't ask: packets of an RC or UC QP
 * don't say whose they are, so whoever guesses a packet number would be heard. (Numbers that are none of this
 * router's QPs may be those of programs without Sluice; what those risk, they risk from every host.)
 */
static bool is_named_back(const struct qp *qp)
{
    const struct qp *peer = qp_behind(qp->twin->behind, qp->attr.dest_qp_num);

    return !peer || (peer->twin && peer->twin->connected && peer->twin->behind == qp->tenant->account.device &&
                     peer->attr.dest_qp_num == qp->qp_num && qp_types_fit(qp->type, peer->type));
}

static enum progress nic_send(struct qp *qp, uint32_t budget, uint32_t *status)
{
    struct nic_qp *twin = qp->twin;
    struct message *message = &qp->message;
    uint8_t opcode = message->wqe->opcode;
    struct ibv_send_wr wr;
    struct ibv_sge sges[SLUICE_MAX_SGE];

    if (twin->stuck)
        return nic_fail_in_turn(qp, status, twin->fault);
    if (__builtin_expect(twin->behind != NULL, 0) && !is_named_back(qp))
        return qp->completed != qp->sq.head || twin->posted != twin->completed ? PROGRESS_BLOCKED : PROGRESS_NO_PEER;
    if (!measure(message))
        return nic_fail_in_turn(qp, status, IBV_WC_LOC_LEN_ERR);
    uint32_t left = message->total - message->moved, part = left;

    if (may_be_cut(opcode)) {
        part = part < budget ? part : budget;
        part = part < NIC_CHUNK ? part : NIC_CHUNK;
    }
    if (!nic_has_room(qp, part))
        return PROGRESS_BLOCKED;
    nic_check_pace(qp);
    bool last = part == left;

    if (!describe(qp, part, last, &wr, sges) || post(qp, &wr)) {
        twin->stuck = true;
        /* A library may look at an atomic's address where the responder would have. */
        twin->fault = opcode == IBV_WR_BIND_MW                                                ? IBV_WC_MW_BIND_ERR
                      : is_atomic(opcode) && message->wqe->remote_addr % sizeof(uint64_t) ? IBV_WC_REM_INV_REQ_ERR
                                                                                              : IBV_WC_LOC_QP_OP_ERR;
        return nic_fail_in_turn(qp, status, twin->fault);
    }
    nic_posted(qp, &(struct nic_request){
                       .index = qp->sq.head,
                       .bytes = part,
                       .brought = is_answered(opcode) ? message->total : 0,
                       .last = last,
                   });
    message->moved += part;
    count_request(qp, opcode, part, last);
    return last ? PROGRESS_SENT : PROGRESS_MORE;
}

static void nic_flush(struct qp *qp)
{
    (void)qp; /* posted one by one */
}

const struct transport transport_nic = {
    .name = "nic",
    .send = nic_send,
    .send_datagram = nic_send_datagram,
    .flush = nic_flush,
    .connect = nic_connect,
    .disconnect = nic_disconnect,
    .receive_posted = nic_receive_posted,
    .drain = nic_drain,
    .modify = nic_modify,
};
