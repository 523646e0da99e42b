/* SPDX-License-Identifier: Apache-2.0 */
#include "nic.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "../clock.h"
#include "../cq.h"
#include "../session.h"

enum { RECEIVES = 16 /* in one call */, POLL = 32, ROUNDS = 8 };

/* How long a NIC may take to give back what a failed QP had; it was removed, or is broken, after that. */
#define DRAIN_NS (2 * NS_PER_SECOND)

#define RECEIVE_BIT 1ull
#define TAG_SHIFT 1

static struct nic *nic_of(const struct qp *qp)
{
    return qp->session->engine->nic;
}

/* ---- the twin --------------------------------------------------------------- */

static int number(struct nic *nic, struct qp *qp, struct nic_qp *twin)
{
    uint32_t qp_num = twin->qp->qp_num & (NIC_NUMBERS - 1);

    /* One of those without a twin has it: 24 bits for both. */
    if (nic->qps[qp_num])
        return -ENOMEM;
    nic->qps[qp_num] = qp;
    qp->qp_num = qp_num;
    return 0;
}

static int make(struct nic *nic, struct qp *qp, struct nic_qp *twin)
{
    struct ibv_qp_init_attr attr = {
        .qp_type = qp->type == IBV_QPT_UD ? IBV_QPT_UD : qp->type == IBV_QPT_UC ? IBV_QPT_UC : IBV_QPT_RC,
        .sq_sig_all = 1,
        .cap = {.max_send_wr = qp->sq.entries ? qp->sq.entries : 1,
                .max_recv_wr = qp->rq.entries ? qp->rq.entries : 1,
                .max_send_sge = qp->attr.cap.max_send_sge ? qp->attr.cap.max_send_sge : 1,
                .max_recv_sge = qp->attr.cap.max_recv_sge ? qp->attr.cap.max_recv_sge : 1,
                .max_inline_data = qp->attr.cap.max_inline_data},
    };

    twin->sends = attr.cap.max_send_wr;
    twin->receives = attr.cap.max_recv_wr;
    uint32_t entries = 1;

    while (entries < twin->sends)
        entries *= 2;
    twin->ring_mask = entries - 1;
    twin->ring = calloc(entries, sizeof(*twin->ring));
    if (!twin->ring)
        return -ENOMEM;
    twin->send_cq = nic_take_cq(nic, twin->sends);
    twin->recv_cq = twin->send_cq ? nic_take_cq(nic, twin->receives) : NULL;
    if (!twin->recv_cq)
        return errno ? -errno : -ENOMEM;
    attr.send_cq = twin->send_cq->cq;
    attr.recv_cq = twin->recv_cq->cq;
    twin->qp = nic->call.ibv_create_qp(qp->pd->nic, &attr);
    if (!twin->qp)
        return errno ? -errno : -ENOMEM;
    return number(nic, qp, twin);
}

static void unmake(struct nic *nic, struct nic_qp *twin)
{
    if (twin->qp)
        nic->call.ibv_destroy_qp(twin->qp);
    if (twin->recv_cq)
        nic_give_cq(nic, twin->recv_cq, twin->receives);
    if (twin->send_cq)
        nic_give_cq(nic, twin->send_cq, twin->sends);
    free(twin->ring);
    free(twin);
}

static void on_timer(struct timer *timer);

int nic_qp_create(struct qp *qp)
{
    struct sluice_engine *engine = qp->session->engine;
    struct nic_qp *twin = calloc(1, sizeof(*twin));
    int error = twin ? timers_reserve(&engine->timers) : -ENOMEM;

    if (error) {
        free(twin);
        return error;
    }
    twin->owner = qp;
    twin->timer.fire = on_timer;
    list_init(&twin->blocked);
    error = make(engine->nic, qp, twin);
    if (error) {
        timers_release(&engine->timers);
        unmake(engine->nic, twin);
        return error;
    }
    qp->twin = twin;
    return 0;
}

void nic_qp_destroy(struct qp *qp)
{
    struct sluice_engine *engine = qp->session->engine;
    struct nic_qp *twin = qp->twin;

    if (!twin)
        return;
    engine->nic->qps[qp->qp_num] = NULL;
    timer_cancel(&engine->timers, &twin->timer);
    timers_release(&engine->timers);
    list_remove(&twin->blocked);
    unmake(engine->nic, twin);
    qp->twin = NULL;
}

/* ---- states ----------------------------------------------------------------- */

static void address(const struct nic *nic, const struct sluice_ah_attr *from, struct ibv_ah_attr *to)
{
    *to = (struct ibv_ah_attr){
        .grh = {.flow_label = from->flow_label,
                .sgid_index = from->sgid_index < nic->gids ? nic->gid_index[from->sgid_index] : 0,
                .hop_limit = (uint8_t)from->hop_limit,
                .traffic_class = (uint8_t)from->traffic_class},
        .sl = (uint8_t)from->sl,
        .static_rate = (uint8_t)from->static_rate,
        .is_global = 1,
        .port_num = nic->port,
    };
    memcpy(to->grh.dgid.raw, from->dgid, sizeof(from->dgid));
}

static int to_init(struct nic *nic, const struct qp *qp)
{
    struct ibv_qp_attr attr = {.qp_state = IBV_QPS_INIT,
                               .port_num = nic->port,
                               .qkey = qp->attr.qkey,
                               .qp_access_flags = qp->attr.qp_access_flags};
    int mask = IBV_QP_STATE | IBV_QP_PKEY_INDEX | IBV_QP_PORT;

    mask |= qp->type == IBV_QPT_UD ? IBV_QP_QKEY : IBV_QP_ACCESS_FLAGS;
    return nic->call.ibv_modify_qp(qp->twin->qp, &attr, mask);
}

static int to_rtr(struct nic *nic, const struct qp *qp)
{
    struct ibv_qp_attr attr = {.qp_state = IBV_QPS_RTR,
                               .path_mtu = (enum ibv_mtu)qp->attr.path_mtu,
                               .dest_qp_num = qp->attr.dest_qp_num,
                               .rq_psn = qp->attr.rq_psn & 0xffffff,
                               .max_dest_rd_atomic = (uint8_t)qp->attr.max_dest_rd_atomic,
                               .min_rnr_timer = (uint8_t)qp->attr.min_rnr_timer};
    int mask = IBV_QP_STATE;

    if (qp->type != IBV_QPT_UD)
        mask |= IBV_QP_AV | IBV_QP_PATH_MTU | IBV_QP_DEST_QPN | IBV_QP_RQ_PSN;
    if (qp->type == IBV_QPT_RC)
        mask |= IBV_QP_MAX_DEST_RD_ATOMIC | IBV_QP_MIN_RNR_TIMER;
    address(nic, &qp->attr.ah, &attr.ah_attr);
    return nic->call.ibv_modify_qp(qp->twin->qp, &attr, mask);
}

static int to_rts(struct nic *nic, const struct qp *qp, const struct sluice_qp_attr *now, uint32_t asked)
{
    struct ibv_qp_attr attr = {.qp_state = IBV_QPS_RTS,
                               .sq_psn = now->sq_psn & 0xffffff,
                               .timeout = (uint8_t)now->timeout,
                               .retry_cnt = (uint8_t)now->retry_cnt,
                               .rnr_retry = (uint8_t)now->rnr_retry,
                               .max_rd_atomic = (uint8_t)now->max_rd_atomic,
                               .qp_access_flags = now->qp_access_flags,
                               .min_rnr_timer = (uint8_t)now->min_rnr_timer};
    int mask = IBV_QP_STATE | IBV_QP_SQ_PSN | (int)(asked & (IBV_QP_ACCESS_FLAGS | IBV_QP_MIN_RNR_TIMER));

    if (qp->type == IBV_QPT_RC)
        mask |= IBV_QP_TIMEOUT | IBV_QP_RETRY_CNT | IBV_QP_RNR_RETRY | IBV_QP_MAX_QP_RD_ATOMIC;
    return nic->call.ibv_modify_qp(qp->twin->qp, &attr, mask);
}

static void post_receives(struct qp *qp);

static int nic_connect(struct qp *qp)
{
    struct nic *nic = nic_of(qp);
    struct nic_qp *twin = qp->twin;
    int error = to_init(nic, qp);

    if (error)
        return -error;
    twin->tag = ++nic->tags;
    twin->posted = twin->completed = 0;
    twin->stuck = false;
    twin->received = qp->rq.head;
    qp->completed = qp->sq.head;
    twin->connected = true;
    nic->connected++;
    post_receives(qp);
    error = to_rtr(nic, qp);
    return -error;
}

static void forget(struct nic *nic, struct nic_qp *twin)
{
    for (; twin->completed != twin->posted; twin->completed++)
        nic->flying -= twin->ring[twin->completed & twin->ring_mask].bytes;
    list_remove(&twin->blocked);
}

static void wake_blocked(struct nic *nic);

static void nic_disconnect(struct qp *qp)
{
    struct nic *nic = nic_of(qp);
    struct nic_qp *twin = qp->twin;
    struct ibv_qp_attr attr = {.qp_state = IBV_QPS_RESET};

    if (!twin->connected)
        return;
    twin->connected = twin->draining = false;
    nic->connected--;
    timer_cancel(&qp->session->engine->timers, &twin->timer);
    forget(nic, twin);
    twin->tag = 0;
    /* Receives that did not come back are the queue's again, to be flushed. */
    qp->rq.head = twin->received;
    nic->call.ibv_modify_qp(twin->qp, &attr, IBV_QP_STATE);
    wake_blocked(nic);
}

static bool drained(const struct qp *qp)
{
    const struct nic_qp *twin = qp->twin;

    return twin->posted == twin->completed && twin->received == qp->rq.head;
}

static bool nic_drain(struct qp *qp)
{
    struct sluice_engine *engine = qp->session->engine;
    struct nic_qp *twin = qp->twin;
    struct ibv_qp_attr attr = {.qp_state = IBV_QPS_ERR};

    if (!twin->connected || engine->nic->call.ibv_modify_qp(twin->qp, &attr, IBV_QP_STATE) || drained(qp))
        return false;
    twin->draining = true;
    timer_set(&engine->timers, &twin->timer, engine->now + DRAIN_NS);
    return true;
}

static void on_timer(struct timer *timer)
{
    qp_drained(list_entry(timer, struct nic_qp, timer)->owner);
}

static int nic_modify(struct qp *qp, const struct sluice_qp_attr *attr, uint32_t mask)
{
    struct nic *nic = nic_of(qp);

    if ((mask & IBV_QP_STATE) && qp->state == IBV_QPS_RTR && attr->qp_state == IBV_QPS_RTS)
        return -to_rts(nic, qp, attr, mask);
    /* SQD is the engine's own: the twin stays ready, and gets nothing. What only SQD allows, it can't have. */
    if (mask & (IBV_QP_AV | IBV_QP_TIMEOUT | IBV_QP_RETRY_CNT | IBV_QP_RNR_RETRY | IBV_QP_MAX_QP_RD_ATOMIC |
                IBV_QP_MAX_DEST_RD_ATOMIC))
        return -EOPNOTSUPP;
    struct ibv_qp_attr change = {.qp_access_flags = attr->qp_access_flags,
                                 .min_rnr_timer = (uint8_t)attr->min_rnr_timer,
                                 .qkey = attr->qkey};
    int bits = (int)(mask & (IBV_QP_ACCESS_FLAGS | IBV_QP_MIN_RNR_TIMER | IBV_QP_QKEY));

    return bits ? -nic->call.ibv_modify_qp(qp->twin->qp, &change, bits) : 0;
}

void nic_qp_check(struct qp *qp)
{
    struct ibv_qp_attr attr;
    struct ibv_qp_init_attr init;

    if (qp->twin && qp->twin->connected && qp_can_respond(qp) &&
        nic_of(qp)->call.ibv_query_qp(qp->twin->qp, &attr, IBV_QP_STATE, &init) == 0 && attr.qp_state == IBV_QPS_ERR)
        qp_error(qp);
}

/* ---- receives --------------------------------------------------------------- */

static uint64_t wr_id_of(const struct nic_qp *twin, uint64_t receive)
{
    return twin->tag << TAG_SHIFT | receive;
}

static void fill_receive(struct nic_qp *twin, const struct receive *from, struct ibv_recv_wr *wr, struct ibv_sge *sges)
{
    for (uint32_t i = 0; i < from->num_sge; i++)
        sges[i] = (struct ibv_sge){from->sges[i].addr, from->sges[i].length, from->sges[i].lkey};
    *wr = (struct ibv_recv_wr){.wr_id = wr_id_of(twin, RECEIVE_BIT), .sg_list = sges, .num_sge = (int)from->num_sge};
}

/* Hands over what the tenant has posted. Its doorbell tells of more. */
static void post_receives(struct qp *qp)
{
    struct nic_qp *twin = qp->twin;
    struct ibv_recv_wr wrs[RECEIVES], *refused;
    struct ibv_sge sges[RECEIVES][SLUICE_MAX_SGE];
    uint32_t count;

    if (twin->draining || !twin->connected)
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
            return;
        }
    } while (count == RECEIVES && !qp->session->broken);
}

static void nic_receive_posted(struct qp *qp)
{
    post_receives(qp);
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

/* What is before it completes first, and then it fails. */
static enum progress fail_in_turn(struct qp *qp, uint32_t *status, uint32_t requester_status)
{
    if (qp->completed != qp->sq.head || qp->twin->posted != qp->twin->completed)
        return PROGRESS_BLOCKED;
    *status = requester_status;
    return PROGRESS_FAILED;
}

static enum progress wait_for_room(struct qp *qp)
{
    if (list_unlinked(&qp->twin->blocked))
        list_append(&nic_of(qp)->blocked, &qp->twin->blocked);
    return PROGRESS_BLOCKED;
}

/* False: nothing that this transport carries. */
static bool describe(const struct qp *qp, const struct message *message, uint32_t part, bool last,
                     struct ibv_send_wr *wr, struct ibv_sge *sges)
{
    const struct sluice_wqe *wqe = message->wqe;

    *wr = (struct ibv_send_wr){
        .wr_id = wr_id_of(qp->twin, 0),
        .sg_list = sges,
        .opcode = (enum ibv_wr_opcode)wqe->opcode,
        .send_flags = IBV_SEND_SIGNALED | (wqe->flags & SLUICE_WQE_SOLICITED && last ? IBV_SEND_SOLICITED : 0u) |
                      (wqe->flags & SLUICE_WQE_FENCE && message->moved == 0 ? IBV_SEND_FENCE : 0u),
    };
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
    case IBV_WR_SEND_WITH_INV:
    case IBV_WR_LOCAL_INV:
        wr->invalidate_rkey = wqe->imm_data;
        return true;
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
    } else {
        qp->counters->tx_bytes += bytes;
        tenant->tx_bytes += bytes;
        qp->counters->tx_messages += last;
        tenant->tx_messages += last;
    }
}

static enum progress nic_send(struct qp *qp, uint32_t budget, uint32_t *status)
{
    struct nic *nic = nic_of(qp);
    struct nic_qp *twin = qp->twin;
    struct message *message = &qp->message;
    uint8_t opcode = message->wqe->opcode;
    struct ibv_send_wr wr, *refused;
    struct ibv_sge sges[SLUICE_MAX_SGE];

    if (twin->stuck)
        return fail_in_turn(qp, status, twin->fault);
    if (!measure(message))
        return fail_in_turn(qp, status, IBV_WC_LOC_LEN_ERR);
    uint32_t left = message->total - message->moved, part = left;

    if (may_be_cut(opcode)) {
        part = part < budget ? part : budget;
        part = part < NIC_CHUNK ? part : NIC_CHUNK;
    }
    if (twin->posted - twin->completed == twin->sends)
        return PROGRESS_BLOCKED;
    if (nic->flying && nic->flying + (uint64_t)part > NIC_FLIGHT)
        return wait_for_room(qp);
    bool last = part == left;

    if (!describe(qp, message, part, last, &wr, sges) || ibv_post_send(twin->qp, &wr, &refused)) {
        twin->stuck = true;
        /* A library may look at an atomic's address where the responder would have. */
        twin->fault = is_atomic(opcode) && message->wqe->remote_addr % sizeof(uint64_t) ? IBV_WC_REM_INV_REQ_ERR
                                                                                      : IBV_WC_LOC_QP_OP_ERR;
        return fail_in_turn(qp, status, twin->fault);
    }
    twin->ring[twin->posted++ & twin->ring_mask] = (struct nic_request){
        .index = qp->sq.head,
        .bytes = part,
        .brought = is_answered(opcode) ? message->total : 0,
        .last = last,
    };
    nic->flying += part;
    message->moved += part;
    count_request(qp, opcode, part, last);
    return last ? PROGRESS_SENT : PROGRESS_MORE;
}

static void nic_flush(struct qp *qp)
{
    (void)qp; /* posted one by one */
}

/* ---- completions ------------------------------------------------------------ */

static void wake_blocked(struct nic *nic)
{
    struct list woken;

    if (list_empty(&nic->blocked) || nic->flying > NIC_FLIGHT / 2)
        return;
    list_init(&woken);
    list_splice(&woken, &nic->blocked);
    while (!list_empty(&woken)) {
        struct qp *qp = list_entry(list_take(&woken), struct nic_qp, blocked)->owner;

        if (qp->wait == QP_WAIT_TRANSPORT)
            qp_activate(qp);
    }
}

static void complete_send(struct qp *qp, const struct ibv_wc *wc)
{
    struct nic_qp *twin = qp->twin;
    struct nic_request request;

    if (twin->completed == twin->posted)
        return;
    request = twin->ring[twin->completed++ & twin->ring_mask];
    nic_of(qp)->flying -= request.bytes;
    /* A message ends with its last request, or with the first that failed. */
    if (request.index == qp->completed && (request.last || wc->status != IBV_WC_SUCCESS))
        qp_complete_oldest(qp, wc->status, request.brought);
    if (wc->status == IBV_WC_SUCCESS && qp->wait == QP_WAIT_TRANSPORT && list_unlinked(&twin->blocked))
        qp_activate(qp);
}

static void complete_receive(struct qp *qp, const struct ibv_wc *wc)
{
    struct nic_qp *twin = qp->twin;

    if (twin->received == qp->rq.head)
        return;
    /* The slot is the shim's again only when this completion was polled. */
    const struct sluice_recv_wqe *slot = (const struct sluice_recv_wqe *)queue_slot_at(&qp->rq, twin->received++);
    bool good = wc->status == IBV_WC_SUCCESS;
    struct sluice_cqe cqe = {
        .wr_id = slot->wr_id,
        .status = wc->status,
        .opcode = good ? wc->opcode : IBV_WC_RECV,
        .vendor_err = wc->vendor_err,
        .byte_len = good ? wc->byte_len : 0,
        .imm_data = good ? wc->imm_data : 0,
        .wc_flags = good ? wc->wc_flags : 0,
        .qp_num = qp->qp_num,
        .src_qp = qp->type == IBV_QPT_UD ? wc->src_qp : qp->attr.dest_qp_num,
        .qp = qp->handle,
        .tail = twin->received,
        .queue = SLUICE_CQE_RECEIVE,
    };

    if (good) {
        qp->counters->rx_messages++;
        qp->counters->rx_bytes += wc->byte_len;
        qp->tenant->counters->rx_messages++;
        qp->tenant->counters->rx_bytes += wc->byte_len;
        if (qp->state == IBV_QPS_RTR)
            qp_establish(qp);
    } else if (wc->status != IBV_WC_WR_FLUSH_ERR) {
        qp->counters->errors++;
    }
    /* The NIC doesn't say whether the message was solicited: who waits is woken by each. */
    cq_push(qp->recv_cq, &cqe, true);
}

static void handle(struct nic *nic, const struct ibv_wc *wc)
{
    struct qp *qp = nic->qps[wc->qp_num & (NIC_NUMBERS - 1)];
    struct nic_qp *twin = qp ? qp->twin : NULL;

    if (!twin || !twin->connected || wc->wr_id >> TAG_SHIFT != twin->tag || qp->session->broken)
        return;
    if (wc->wr_id & RECEIVE_BIT)
        complete_receive(qp, wc);
    else
        complete_send(qp, wc);
    if (qp->session->broken || !twin->connected)
        return;
    if (wc->status != IBV_WC_SUCCESS && qp->state != IBV_QPS_ERR)
        qp_error(qp);
    else if (twin->draining && drained(qp))
        qp_drained(qp);
}

static uint32_t poll_cq(struct nic *nic, struct ibv_cq *cq)
{
    struct ibv_wc wcs[POLL];
    uint32_t rounds = 0, found = 0;
    int count;

    do {
        count = ibv_poll_cq(cq, POLL, wcs);
        for (int i = 0; i < count; i++)
            handle(nic, &wcs[i]);
        found += count > 0 ? (uint32_t)count : 0;
    } while (count == POLL && ++rounds < ROUNDS);
    return found;
}

/* Takes the events that were asked for, which the channel would tell of again and again. */
static void take_events(struct nic *nic)
{
    struct ibv_cq *cq;
    void *context;

    while (nic->call.ibv_get_cq_event(nic->channel, &cq, &context) == 0) {
        nic->call.ibv_ack_cq_events(cq, 1);
        nic->armed = false;
    }
}

uint32_t nic_serve(struct sluice_engine *engine)
{
    struct nic *nic = engine->nic;
    uint32_t found = 0;

    for (struct list *link = nic->cqs.next; link != &nic->cqs; link = link->next)
        found += poll_cq(nic, list_entry(link, struct nic_cq, link)->cq);
    if (nic->armed && (found || nic->woken))
        take_events(nic);
    nic->woken = false;
    if (found) {
        nic->heard = engine->now;
        wake_blocked(nic);
    }
    return found;
}

bool nic_lingers(const struct sluice_engine *engine)
{
    const struct nic *nic = engine->nic;

    return engine->linger && nic->connected && engine->now - nic->heard < engine->linger;
}

const struct transport transport_nic = {
    .name = "nic",
    .send = nic_send,
    .flush = nic_flush,
    .connect = nic_connect,
    .disconnect = nic_disconnect,
    .receive_posted = nic_receive_posted,
    .drain = nic_drain,
    .modify = nic_modify,
};
