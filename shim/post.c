/* SPDX-License-Identifier: Apache-2.0 */
/* Posting work requests: man ibv_post_send, ibv_post_recv. Touches shared memory only. */
#include <errno.h>
#include <sched.h>
#include <string.h>

#include "atomic.h"
#include "objects.h"
#include "session.h"

bool queue_publish(struct shim_queue *queue)
{
    /* Pairs with the engine's acquire: it finds whole WQEs up to here. */
    store_release(&queue->shared->producer, queue->producer);
    /* Pairs with queue_arm: the engine's second look sees producer, or we see that it armed. */
    full_fence();
    return load_relaxed(&queue->shared->armed) && exchange(&queue->shared->armed, 0);
}

static bool is_full(const struct shim_queue *queue)
{
    return queue->producer - load_relaxed(&queue->tail) >= queue->limit;
}

/* Gathers the bytes now: the application may reuse its buffers at once. Returns their number, or -EINVAL. */
static int write_inline(const struct shim_qp *qp, uint8_t *to, const struct ibv_send_wr *wr)
{
    uint64_t length = 0;

    for (int i = 0; i < wr->num_sge; i++) {
        length += wr->sg_list[i].length;
        if (length > qp->max_inline)
            return -EINVAL;
        memcpy(to, (const void *)(uintptr_t)wr->sg_list[i].addr, wr->sg_list[i].length);
        to += wr->sg_list[i].length;
    }
    return (int)length;
}

static void write_sges(struct sluice_sge *to, const struct ibv_sge *sges, int count)
{
    for (int i = 0; i < count; i++)
        to[i] = (struct sluice_sge){.addr = sges[i].addr, .length = sges[i].length, .lkey = sges[i].lkey};
}

int queue_write_receive(struct shim_queue *queue, const struct ibv_recv_wr *wr)
{
    struct sluice_recv_wqe *wqe = (struct sluice_recv_wqe *)queue_slot(queue, queue->producer);

    if (wr->num_sge < 0 || (uint32_t)wr->num_sge > queue->max_sge)
        return EINVAL;
    *wqe = (struct sluice_recv_wqe){.wr_id = wr->wr_id, .num_sge = (uint32_t)wr->num_sge};
    write_sges((struct sluice_sge *)(wqe + 1), wr->sg_list, wr->num_sge);
    return 0;
}

static uint8_t wqe_flags(unsigned send_flags)
{
    return (uint8_t)((send_flags & IBV_SEND_SIGNALED ? SLUICE_WQE_SIGNALED : 0) |
                     (send_flags & IBV_SEND_SOLICITED ? SLUICE_WQE_SOLICITED : 0) |
                     (send_flags & IBV_SEND_FENCE ? SLUICE_WQE_FENCE : 0));
}

/* Operations on memory windows carry no data. */
static int write_window_wqe(struct sluice_wqe *wqe, const struct ibv_send_wr *wr)
{
    const struct ibv_mw_bind_info *info = &wr->bind_mw.bind_info;
    struct sluice_wqe header = {
        .opcode = (uint8_t)wr->opcode, .flags = wqe_flags(wr->send_flags), .wr_id = wr->wr_id};

    if (wr->send_flags & IBV_SEND_INLINE)
        return EINVAL;
    if (wr->opcode == IBV_WR_LOCAL_INV) {
        header.imm_data = wr->invalidate_rkey;
    } else {
        if (!wr->bind_mw.mw || (!info->mr && (info->addr || info->length)))
            return EINVAL;
        header.rkey = wr->bind_mw.rkey;
        header.remote_addr = info->addr;
        header.imm_data = info->mr ? info->mr->lkey : 0;
        *(struct sluice_bind *)(wqe + 1) =
            (struct sluice_bind){.length = info->length, .access = info->mw_access_flags};
    }
    *wqe = header;
    return 0;
}

static int write_wqe(const struct shim_qp *qp, struct sluice_wqe *wqe, const struct ibv_send_wr *wr)
{
    struct sluice_sge *sges = (struct sluice_sge *)(wqe + 1);
    struct sluice_wqe header = {.opcode = (uint8_t)wr->opcode, .wr_id = wr->wr_id, .imm_data = wr->imm_data};
    bool can_inline = true;

    if (wr->num_sge < 0 || (uint32_t)wr->num_sge > qp->sq.max_sge || wr->opcode > IBV_WR_SEND_WITH_INV ||
        !(qp->opcodes >> wr->opcode & 1))
        return EINVAL;
    if (qp->base.qp.qp_type == IBV_QPT_XRC_SEND)
        header.remote_srqn = xrc_number(wr->qp_type.xrc.remote_srqn);
    switch (wr->opcode) {
    case IBV_WR_RDMA_READ:
        can_inline = false;
        /* fallthrough */
    case IBV_WR_RDMA_WRITE:
    case IBV_WR_RDMA_WRITE_WITH_IMM:
        header.remote_addr = wr->wr.rdma.remote_addr;
        header.rkey = wr->wr.rdma.rkey;
        break;
    case IBV_WR_SEND:
    case IBV_WR_SEND_WITH_IMM:
    case IBV_WR_SEND_WITH_INV: /* invalidate_rkey is in imm_data's place */
        if (qp->base.qp.qp_type != IBV_QPT_UD)
            break;
        if (!wr->wr.ud.ah)
            return EINVAL;
        header.ah = wr->wr.ud.ah->handle;
        header.remote_qpn = wr->wr.ud.remote_qpn;
        header.remote_qkey = wr->wr.ud.remote_qkey;
        break;
    case IBV_WR_BIND_MW:
    case IBV_WR_LOCAL_INV:
        return write_window_wqe(wqe, wr);
    case IBV_WR_ATOMIC_CMP_AND_SWP:
    case IBV_WR_ATOMIC_FETCH_AND_ADD:
        can_inline = false;
        header.remote_addr = wr->wr.atomic.remote_addr;
        header.rkey = wr->wr.atomic.rkey;
        *(struct sluice_atomic *)sges =
            (struct sluice_atomic){.compare_add = wr->wr.atomic.compare_add, .swap = wr->wr.atomic.swap};
        sges = (struct sluice_sge *)((struct sluice_atomic *)sges + 1);
        break;
    default:
        return EINVAL;
    }
    header.flags = wqe_flags(wr->send_flags);
    if (wr->send_flags & IBV_SEND_INLINE) {
        if (!can_inline)
            return EINVAL;
        header.flags |= SLUICE_WQE_INLINE;
        int length = write_inline(qp, (uint8_t *)(wqe + 1), wr);

        if (length < 0)
            return -length;
        header.inline_length = (uint16_t)length;
    }
    header.num_sge = header.flags & SLUICE_WQE_INLINE ? 0 : (uint16_t)wr->num_sge;
    write_sges(sges, wr->sg_list, header.num_sge);
    *wqe = header;
    return 0;
}

int shim_post_send(struct ibv_qp *public, struct ibv_send_wr *wr, struct ibv_send_wr **bad_wr)
{
    struct shim_qp *qp = to_qp(public);
    struct shim_queue *queue = &qp->sq;
    uint32_t state = load_relaxed(&qp->shared->state);
    int error = 0;

    if (state < IBV_QPS_RTS) {
        *bad_wr = wr;
        return EINVAL;
    }
    spinlock_lock(&queue->lock);
    uint32_t before = queue->producer;

    for (; wr; wr = wr->next) {
        if (is_full(queue)) {
            error = ENOMEM;
            break;
        }
        error = write_wqe(qp, (struct sluice_wqe *)queue_slot(queue, queue->producer), wr);
        if (error)
            break;
        queue->producer++;
    }
    if (queue->producer != before && queue_publish(queue))
        session_ring(qp->handle);
    spinlock_unlock(&queue->lock);
    if (error)
        *bad_wr = wr;
    return error;
}

/*
 * A message over UC that comes by a NIC before its receive is there is lost, and the application may have told its peer
 * that it is, once this returns. A router that has died takes nothing.
 */
static void await_taken(const struct shim_qp *qp, uint32_t producer)
{
    for (unsigned turn = 1; load_relaxed(&qp->shared->prompt); turn++) {
        /* Pairs with the engine's release. */
        if ((int32_t)(load_acquire(&qp->shared->taken) - producer) >= 0 || (turn % 64 == 0 && session_lost()))
            return;
        sched_yield();
    }
}

int shim_post_recv(struct ibv_qp *public, struct ibv_recv_wr *wr, struct ibv_recv_wr **bad_wr)
{
    struct shim_qp *qp = to_qp(public);
    struct shim_queue *queue = &qp->rq;
    int error = 0;

    /* A QP with an SRQ, or for XRC, has no receive queue. */
    if (load_relaxed(&qp->shared->state) == IBV_QPS_RESET || qp->init.srq || !qp->init.recv_cq) {
        *bad_wr = wr;
        return EINVAL;
    }
    spinlock_lock(&queue->lock);
    uint32_t before = queue->producer;

    for (; wr; wr = wr->next) {
        if (is_full(queue)) {
            error = ENOMEM;
            break;
        }
        error = queue_write_receive(queue, wr);
        if (error)
            break;
        queue->producer++;
    }
    if (queue->producer != before && queue_publish(queue))
        session_ring(qp->handle);
    uint32_t producer = queue->producer;

    spinlock_unlock(&queue->lock);
    if (__builtin_expect(load_relaxed(&qp->shared->prompt), 0) && producer != before)
        await_taken(qp, producer);
    if (error)
        *bad_wr = wr;
    return error;
}
