/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The extended post interface: man ibv_wr_post. Each ibv_wr_* starts a WQE in the
 * send queue's next slot, the setters fill it, ibv_wr_complete shows them all to
 * the engine. The queue is locked from ibv_wr_start to complete or abort; the first
 * error sticks and makes complete fail.
 */
#include <errno.h>
#include <string.h>

#include "atomic.h"
#include "objects.h"
#include "session.h"

static struct shim_qp *self(struct ibv_qp_ex *qp)
{
    return (struct shim_qp *)qp;
}

static void wr_start(struct ibv_qp_ex *public)
{
    struct shim_qp *qp = self(public);

    spinlock_lock(&qp->sq.lock);
    qp->built = 0;
    qp->building = NULL;
    qp->build_error = load_relaxed(&qp->shared->state) < IBV_QPS_RTS ? EINVAL : 0;
}

static int wr_complete(struct ibv_qp_ex *public)
{
    struct shim_qp *qp = self(public);
    int error = qp->build_error;

    if (!error && qp->built) {
        qp->sq.producer += qp->built;
        if (queue_publish(&qp->sq))
            session_ring(qp->handle);
    }
    spinlock_unlock(&qp->sq.lock);
    return error;
}

static void wr_abort(struct ibv_qp_ex *public)
{
    spinlock_unlock(&self(public)->sq.lock);
}

/* NULL where it can't begin: build_error says why. */
static struct sluice_wqe *begin(struct ibv_qp_ex *public, uint8_t opcode)
{
    struct shim_qp *qp = self(public);
    struct shim_queue *queue = &qp->sq;
    uint32_t index = queue->producer + qp->built;

    if (qp->build_error)
        return NULL;
    if (index - load_relaxed(&queue->tail) >= queue->limit) {
        qp->build_error = ENOMEM;
        return NULL;
    }
    struct sluice_wqe *wqe =
        (struct sluice_wqe *)queue_slot(queue, index);

    *wqe = (struct sluice_wqe){.opcode = opcode, .wr_id = public->wr_id};
    if (public->wr_flags & IBV_SEND_SIGNALED)
        wqe->flags |= SLUICE_WQE_SIGNALED;
    if (public->wr_flags & IBV_SEND_SOLICITED)
        wqe->flags |= SLUICE_WQE_SOLICITED;
    if (public->wr_flags & IBV_SEND_FENCE)
        wqe->flags |= SLUICE_WQE_FENCE;
    qp->built++;
    qp->building = wqe;
    return wqe;
}

static void wr_send(struct ibv_qp_ex *qp)
{
    begin(qp, IBV_WR_SEND);
}

static void wr_send_imm(struct ibv_qp_ex *qp, __be32 imm_data)
{
    struct sluice_wqe *wqe = begin(qp, IBV_WR_SEND_WITH_IMM);

    if (wqe)
        wqe->imm_data = imm_data;
}

static void wr_send_inv(struct ibv_qp_ex *qp, uint32_t invalidate_rkey)
{
    struct sluice_wqe *wqe = begin(qp, IBV_WR_SEND_WITH_INV);

    if (wqe)
        wqe->imm_data = invalidate_rkey;
}

static void wr_local_inv(struct ibv_qp_ex *qp, uint32_t invalidate_rkey)
{
    struct sluice_wqe *wqe = begin(qp, IBV_WR_LOCAL_INV);

    if (wqe)
        wqe->imm_data = invalidate_rkey;
}

static void wr_bind_mw(struct ibv_qp_ex *qp, struct ibv_mw *mw, uint32_t rkey, const struct ibv_mw_bind_info *info)
{
    struct sluice_wqe *wqe = begin(qp, IBV_WR_BIND_MW);

    if (!wqe)
        return;
    if (!mw || (!info->mr && (info->addr || info->length))) {
        self(qp)->build_error = EINVAL;
        return;
    }
    wqe->rkey = rkey;
    wqe->remote_addr = info->addr;
    wqe->imm_data = info->mr ? info->mr->lkey : 0;
    *(struct sluice_bind *)(wqe + 1) = (struct sluice_bind){.length = info->length, .access = info->mw_access_flags};
}

static void wr_set_ud_addr(struct ibv_qp_ex *public, struct ibv_ah *ah, uint32_t remote_qpn, uint32_t remote_qkey)
{
    struct shim_qp *qp = self(public);

    if (qp->build_error)
        return;
    if (!ah) {
        qp->build_error = EINVAL;
        return;
    }
    qp->building->ah = ah->handle;
    qp->building->remote_qpn = remote_qpn;
    qp->building->remote_qkey = remote_qkey;
}

static void wr_set_xrc_srqn(struct ibv_qp_ex *public, uint32_t remote_srqn)
{
    struct shim_qp *qp = self(public);

    if (!qp->build_error)
        qp->building->remote_srqn = xrc_number(remote_srqn);
}

static void rdma(struct ibv_qp_ex *qp, uint8_t opcode, uint32_t rkey, uint64_t remote_addr, __be32 imm_data)
{
    struct sluice_wqe *wqe = begin(qp, opcode);

    if (!wqe)
        return;
    wqe->rkey = rkey;
    wqe->remote_addr = remote_addr;
    wqe->imm_data = imm_data;
}

static void wr_rdma_write(struct ibv_qp_ex *qp, uint32_t rkey, uint64_t remote_addr)
{
    rdma(qp, IBV_WR_RDMA_WRITE, rkey, remote_addr, 0);
}

static void wr_rdma_write_imm(struct ibv_qp_ex *qp, uint32_t rkey, uint64_t remote_addr, __be32 imm_data)
{
    rdma(qp, IBV_WR_RDMA_WRITE_WITH_IMM, rkey, remote_addr, imm_data);
}

static void wr_rdma_read(struct ibv_qp_ex *qp, uint32_t rkey, uint64_t remote_addr)
{
    rdma(qp, IBV_WR_RDMA_READ, rkey, remote_addr, 0);
}

static void atomic(struct ibv_qp_ex *qp, uint8_t opcode, uint32_t rkey, uint64_t remote_addr, uint64_t compare_add,
                   uint64_t swap)
{
    rdma(qp, opcode, rkey, remote_addr, 0);
    if (self(qp)->build_error)
        return;
    *(struct sluice_atomic *)(self(qp)->building + 1) =
        (struct sluice_atomic){.compare_add = compare_add, .swap = swap};
}

static void wr_atomic_cmp_swp(struct ibv_qp_ex *qp, uint32_t rkey, uint64_t remote_addr, uint64_t compare,
                              uint64_t swap)
{
    atomic(qp, IBV_WR_ATOMIC_CMP_AND_SWP, rkey, remote_addr, compare, swap);
}

static void wr_atomic_fetch_add(struct ibv_qp_ex *qp, uint32_t rkey, uint64_t remote_addr, uint64_t add)
{
    atomic(qp, IBV_WR_ATOMIC_FETCH_AND_ADD, rkey, remote_addr, add, 0);
}

static struct sluice_sge *sges_of(struct sluice_wqe *wqe)
{
    if (wqe->opcode == IBV_WR_ATOMIC_CMP_AND_SWP || wqe->opcode == IBV_WR_ATOMIC_FETCH_AND_ADD)
        return (struct sluice_sge *)((struct sluice_atomic *)(wqe + 1) + 1);
    return (struct sluice_sge *)(wqe + 1);
}

static void wr_set_sge_list(struct ibv_qp_ex *public, size_t num_sge, const struct ibv_sge *sges)
{
    struct shim_qp *qp = self(public);

    if (qp->build_error)
        return;
    if (num_sge > qp->sq.max_sge) {
        qp->build_error = EINVAL;
        return;
    }
    struct sluice_sge *to = sges_of(qp->building);

    for (size_t i = 0; i < num_sge; i++)
        to[i] = (struct sluice_sge){.addr = sges[i].addr, .length = sges[i].length, .lkey = sges[i].lkey};
    qp->building->num_sge = (uint16_t)num_sge;
}

static void wr_set_sge(struct ibv_qp_ex *public, uint32_t lkey, uint64_t addr, uint32_t length)
{
    struct ibv_sge sge = {.addr = addr, .length = length, .lkey = lkey};

    wr_set_sge_list(public, 1, &sge);
}

static void wr_set_inline_data_list(struct ibv_qp_ex *public, size_t num_buf, const struct ibv_data_buf *bufs)
{
    struct shim_qp *qp = self(public);
    uint64_t length = 0;

    if (qp->build_error)
        return;
    uint8_t *to = (uint8_t *)(qp->building + 1);

    for (size_t i = 0; i < num_buf; i++) {
        length += bufs[i].length;
        if (length > qp->max_inline ||
            (qp->building->opcode >= IBV_WR_RDMA_READ && qp->building->opcode != IBV_WR_SEND_WITH_INV)) {
            qp->build_error = EINVAL;
            return;
        }
        memcpy(to, bufs[i].addr, bufs[i].length);
        to += bufs[i].length;
    }
    qp->building->flags |= SLUICE_WQE_INLINE;
    qp->building->inline_length = (uint16_t)length;
}

static void wr_set_inline_data(struct ibv_qp_ex *public, void *addr, size_t length)
{
    struct ibv_data_buf buf = {.addr = addr, .length = length};

    wr_set_inline_data_list(public, 1, &buf);
}

void wr_init(struct shim_qp *qp)
{
    struct ibv_qp_ex *ex = &qp->base.ex;

    ex->wr_start = wr_start;
    ex->wr_complete = wr_complete;
    ex->wr_abort = wr_abort;
    ex->wr_send = wr_send;
    ex->wr_send_imm = wr_send_imm;
    ex->wr_send_inv = wr_send_inv;
    ex->wr_local_inv = wr_local_inv;
    ex->wr_bind_mw = wr_bind_mw;
    ex->wr_set_ud_addr = wr_set_ud_addr;
    ex->wr_set_xrc_srqn = wr_set_xrc_srqn;
    ex->wr_rdma_write = wr_rdma_write;
    ex->wr_rdma_write_imm = wr_rdma_write_imm;
    ex->wr_rdma_read = wr_rdma_read;
    ex->wr_atomic_cmp_swp = wr_atomic_cmp_swp;
    ex->wr_atomic_fetch_add = wr_atomic_fetch_add;
    ex->wr_set_sge = wr_set_sge;
    ex->wr_set_sge_list = wr_set_sge_list;
    ex->wr_set_inline_data = wr_set_inline_data;
    ex->wr_set_inline_data_list = wr_set_inline_data_list;
}
