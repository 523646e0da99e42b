/* SPDX-License-Identifier: Apache-2.0 */
#include "loop.h"

#include "pair.h"

struct loop {
    struct end one, other;
    struct ibv_mr *mr;
    uint8_t *memory;
};

struct loop *loop_open(void *memory, size_t length)
{
    struct loop *loop = calloc(1, sizeof(*loop));

    end_open(&loop->one, open_device(), 0);
    loop->other = loop->one;
    qp_open(&loop->other, 0);
    end_connect(&loop->one, loop->other.qp->qp_num, loop->one.gid, 7, 12);
    end_connect(&loop->other, loop->one.qp->qp_num, loop->one.gid, 7, 12);
    loop->mr = ibv_reg_mr(loop->one.pd, memory, length, IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_WRITE);
    CHECK(loop->mr, "ibv_reg_mr");
    loop->memory = memory;
    return loop;
}

void loop_write(struct loop *loop, size_t from, size_t to, uint32_t length)
{
    struct ibv_sge sge = {.addr = (uintptr_t)loop->memory + from, .length = length, .lkey = loop->mr->lkey};
    struct ibv_send_wr *bad, wr = {.sg_list = &sge, .num_sge = 1, .opcode = IBV_WR_RDMA_WRITE, .send_flags = IBV_SEND_SIGNALED};

    wr.wr.rdma.remote_addr = (uintptr_t)loop->memory + to;
    wr.wr.rdma.rkey = loop->mr->rkey;
    CHECK(!ibv_post_send(loop->one.qp, &wr, &bad), "ibv_post_send");
    struct ibv_wc wc = wait_completion(loop->one.cq);

    CHECK(wc.status == IBV_WC_SUCCESS, "%s", ibv_wc_status_str(wc.status));
}

void loop_close(struct loop *loop)
{
    CHECK(!ibv_dereg_mr(loop->mr) && !ibv_destroy_qp(loop->other.qp), "closing");
    end_close(&loop->one);
    CHECK(!ibv_close_device(loop->one.context), "ibv_close_device");
    free(loop);
}
