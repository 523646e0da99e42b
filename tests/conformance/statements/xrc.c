/* SPDX-License-Identifier: Apache-2.0 */
/* Extended reliable connections: a sender names the SRQ that takes its message. */
#include <fcntl.h>

#include "suite.h"

struct xrc {
    struct ibv_xrcd *xrcd;
    struct ibv_srq *srqs[2];
    struct ibv_qp *in, *out; /* XRC_RECV and XRC_SEND */
    uint32_t numbers[2];     /* of the other end's SRQs */
};

static void connect_xrc(struct end *e, struct xrc *xrc)
{
    struct plan plan = plan_of(IBV_QPT_RC);
    struct ibv_xrcd_init_attr domain = {.comp_mask = IBV_XRCD_INIT_ATTR_FD | IBV_XRCD_INIT_ATTR_OFLAGS, .fd = -1, .oflags = O_CREAT};
    uint32_t numbers[2];

    if (!(e->device.device_cap_flags & IBV_DEVICE_XRC))
        SKIP("device_cap_flags: no IBV_DEVICE_XRC");
    set_up(e, &plan);
    xrc->xrcd = MADE(ibv_open_xrcd(e->context, &domain), ibv_close_xrcd);
    for (int i = 0; i < 2; i++) {
        struct ibv_srq_init_attr_ex attr = {
            .attr = {.max_wr = DEPTH, .max_sge = 2},
            .comp_mask = IBV_SRQ_INIT_ATTR_TYPE | IBV_SRQ_INIT_ATTR_PD | IBV_SRQ_INIT_ATTR_XRCD | IBV_SRQ_INIT_ATTR_CQ,
            .srq_type = IBV_SRQT_XRC, .pd = e->pd, .xrcd = xrc->xrcd, .cq = e->cq};

        xrc->srqs[i] = MADE(ibv_create_srq_ex(e->context, &attr), ibv_destroy_srq);
        DO(ibv_get_srq_num(xrc->srqs[i], &numbers[i]));
    }
    struct ibv_qp_init_attr_ex receive = {.qp_type = IBV_QPT_XRC_RECV, .comp_mask = IBV_QP_INIT_ATTR_XRCD, .xrcd = xrc->xrcd};
    struct ibv_qp_init_attr_ex send = {
        .qp_type = IBV_QPT_XRC_SEND, .comp_mask = IBV_QP_INIT_ATTR_PD, .pd = e->pd, .send_cq = e->cq,
        .cap = {.max_send_wr = DEPTH, .max_send_sge = 2}};

    xrc->in = MADE(ibv_create_qp_ex(e->context, &receive), ibv_destroy_qp);
    xrc->out = MADE(ibv_create_qp_ex(e->context, &send), ibv_destroy_qp);
    exchange(e, numbers, xrc->numbers, sizeof(numbers));

    struct plan in = plan_of(IBV_QPT_XRC_RECV), out = plan_of(IBV_QPT_XRC_SEND);
    struct address own = {.memory = (uintptr_t)e->memory, .rkey = e->mr->rkey, .qp_num = xrc->in->qp_num, .gid = e->gid}, peer;

    /* My sender reaches the other's receiver. */
    exchange(e, &own, &e->peer, sizeof(own));
    own.qp_num = xrc->out->qp_num;
    exchange(e, &own, &peer, sizeof(own));
    DO(to_init(e, xrc->in, &in));
    DO(to_rtr(e, xrc->in, &in, &peer));
    DO(to_init(e, xrc->out, &out));
    DO(to_rtr(e, xrc->out, &out, &e->peer));
    DO(to_rts(xrc->out, &out));
    meet(e);
}

static void receive_at(struct end *e, struct ibv_srq *srq, uint64_t wr_id, uint32_t at)
{
    struct ibv_sge sge = {.addr = (uintptr_t)e->memory + at, .length = 4096, .lkey = e->mr->lkey};
    struct ibv_recv_wr *bad, wr = {.wr_id = wr_id, .sg_list = &sge, .num_sge = 1};

    DO(ibv_post_srq_recv(srq, &wr, &bad));
}

TEST(send_names_its_srq, BOTH, "a SEND over XRC takes a receive of the SRQ that it names", "IBTA annex A14; man ibv_post_send: remote_srqn")
{
    struct xrc xrc;

    connect_xrc(e, &xrc);
    if (!e->first)
        for (uint32_t i = 0; i < 2; i++)
            receive_at(e, xrc.srqs[i], i, 8192 * i);
    meet(e);
    for (uint32_t i = 0; i < 2; i++) {
        if (e->first) {
            ASK(.opcode = IBV_WR_SEND, .qp = xrc.out, .wr_id = i, .from = i, .length = 100, .srq_num = xrc.numbers[1 - i]);
            EXPECT(i, IBV_WC_SUCCESS);
        } else {
            EQUAL(EXPECT(1 - i, IBV_WC_SUCCESS).byte_len, 100);
            ARRIVED(8192 * (1 - i), 100, i);
        }
    }
    meet(e);
}

TEST(write, BOTH, "WRITE and READ over XRC reach the memory of the PD of the SRQ that they name", "IBTA annex A14")
{
    struct xrc xrc;

    connect_xrc(e, &xrc);
    if (e->first) {
        ASK(.opcode = IBV_WR_RDMA_WRITE, .qp = xrc.out, .wr_id = 1, .length = 5000, .srq_num = xrc.numbers[0]);
        EXPECT(1, IBV_WC_SUCCESS);
        ASK(.opcode = IBV_WR_RDMA_READ, .qp = xrc.out, .wr_id = 2, .from = 65536, .length = 5000, .srq_num = xrc.numbers[0]);
        EXPECT(2, IBV_WC_SUCCESS);
        ARRIVED(65536, 5000, 0);
    }
    meet(e);
    if (!e->first)
        ARRIVED(0, 5000, 0);
}

TEST(domain_in_use, SOLO, "an XRC domain that something uses can't be closed: EBUSY", "man ibv_close_xrcd")
{
    struct ibv_xrcd_init_attr domain = {.comp_mask = IBV_XRCD_INIT_ATTR_FD | IBV_XRCD_INIT_ATTR_OFLAGS, .fd = -1, .oflags = O_CREAT};
    struct plan plan = plan_of(IBV_QPT_RC);

    if (!(e->device.device_cap_flags & IBV_DEVICE_XRC))
        SKIP("device_cap_flags: no IBV_DEVICE_XRC");
    set_up(e, &plan);
    struct ibv_xrcd *xrcd = MADE(ibv_open_xrcd(e->context, &domain), ibv_close_xrcd);
    struct ibv_srq_init_attr_ex attr = {
        .attr = {.max_wr = 4, .max_sge = 1},
        .comp_mask = IBV_SRQ_INIT_ATTR_TYPE | IBV_SRQ_INIT_ATTR_PD | IBV_SRQ_INIT_ATTR_XRCD | IBV_SRQ_INIT_ATTR_CQ,
        .srq_type = IBV_SRQT_XRC, .pd = e->pd, .xrcd = xrcd, .cq = e->cq};
    struct ibv_srq *srq = MADE(ibv_create_srq_ex(e->context, &attr), ibv_destroy_srq);

    REFUSED(drop(e, xrcd), EBUSY);
    DO(drop(e, srq));
    DO(drop(e, xrcd));
}
