/* SPDX-License-Identifier: Apache-2.0 */
/* Polling field by field: man ibv_create_cq_ex. */
#include <errno.h>
#include <time.h>

#include "atomic.h"
#include "clock.h"
#include "objects.h"

static struct shim_cq *self(struct ibv_cq_ex *cq)
{
    return (struct shim_cq *)cq;
}

static int show(struct shim_cq *cq, struct sluice_cqe *cqe)
{
    cq->current = cqe;
    if (!cqe)
        return ENOENT;
    cq->cq.wr_id = cqe->wr_id;
    cq->cq.status = cqe->status;
    return 0;
}

static int start_poll(struct ibv_cq_ex *public, struct ibv_poll_cq_attr *attr)
{
    struct shim_cq *cq = self(public);

    if (attr->comp_mask)
        return EINVAL;
    cq_lock(cq);
    int error = show(cq, cq_next(cq));

    if (error && __builtin_expect(cq_is_lost(cq), 0))
        error = EIO;
    /* Without a completion there is no end_poll; skipped CQEs are given back with the next one. */
    if (error)
        cq_unlock(cq);
    if (error == ENOENT)
        cq_give_way(cq);
    return error;
}

static int next_poll(struct ibv_cq_ex *public)
{
    return show(self(public), cq_next(self(public)));
}

static void end_poll(struct ibv_cq_ex *public)
{
    struct shim_cq *cq = self(public);

    store_release(&cq->shared->consumer, cq->consumer);
    cq_unlock(cq);
}

static enum ibv_wc_opcode read_opcode(struct ibv_cq_ex *cq)
{
    return self(cq)->current->opcode;
}

static uint32_t read_vendor_err(struct ibv_cq_ex *cq)
{
    return self(cq)->current->vendor_err;
}

static uint32_t read_byte_len(struct ibv_cq_ex *cq)
{
    return self(cq)->current->byte_len;
}

static __be32 read_imm_data(struct ibv_cq_ex *cq)
{
    return self(cq)->current->imm_data;
}

static uint32_t read_qp_num(struct ibv_cq_ex *cq)
{
    return self(cq)->current->qp_num;
}

static uint32_t read_src_qp(struct ibv_cq_ex *cq)
{
    return self(cq)->current->src_qp;
}

static unsigned int read_wc_flags(struct ibv_cq_ex *cq)
{
    return self(cq)->current->wc_flags;
}

/* RoCE has neither LIDs nor service levels of its own. */
static uint32_t read_slid(struct ibv_cq_ex *cq)
{
    (void)cq;
    return 0;
}

static uint8_t read_sl(struct ibv_cq_ex *cq)
{
    return cqe_sl(self(cq)->current);
}

static uint8_t read_zero(struct ibv_cq_ex *cq)
{
    (void)cq;
    return 0;
}

static uint64_t read_completion_ts(struct ibv_cq_ex *cq)
{
    return self(cq)->current->timestamp;
}

/* The engine stamps with the monotonic clock: moved by the two clocks' distance now. */
static uint64_t read_completion_wallclock_ns(struct ibv_cq_ex *cq)
{
    struct timespec wall;

    clock_gettime(CLOCK_REALTIME, &wall);
    return (uint64_t)wall.tv_sec * NS_PER_SECOND + (uint64_t)wall.tv_nsec -
           (clock_now() - self(cq)->current->timestamp);
}

void cq_ex_init(struct shim_cq *cq, uint32_t wc_flags)
{
    struct ibv_cq_ex *public = &cq->cq;

    cq->wc_flags = wc_flags;
    public->start_poll = start_poll;
    public->next_poll = next_poll;
    public->end_poll = end_poll;
    public->read_opcode = read_opcode;
    public->read_vendor_err = read_vendor_err;
    public->read_wc_flags = read_wc_flags;
    public->read_byte_len = read_byte_len;
    public->read_imm_data = read_imm_data;
    public->read_qp_num = read_qp_num;
    public->read_src_qp = read_src_qp;
    public->read_slid = read_slid;
    public->read_sl = read_sl;
    public->read_dlid_path_bits = read_zero;
    public->read_completion_ts = read_completion_ts;
    public->read_completion_wallclock_ns = read_completion_wallclock_ns;
}
