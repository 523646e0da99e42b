/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Connections that do nothing, between two processes:
 *
 *     idle COUNT PORT             one end
 *     idle COUNT PORT ADDRESS     the other
 *
 * Both make COUNT RC QPs of the least size, connect them, each having carried a WRITE, print "ready", and stay until their
 * input ends.
 */
#include <string.h>

#include "pair.h"

enum { SIZE = 4096, ACCESS = IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_WRITE };

static struct ibv_qp *make_qp(const struct end *end)
{
    struct ibv_qp_init_attr init = {.send_cq = end->cq,
                                    .recv_cq = end->cq,
                                    .qp_type = IBV_QPT_RC,
                                    .cap = {.max_send_wr = 1, .max_recv_wr = 1, .max_send_sge = 1, .max_recv_sge = 1}};
    struct ibv_qp_attr attr = {
        .qp_state = IBV_QPS_INIT, .port_num = 1, .qp_access_flags = IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_WRITE};
    struct ibv_qp *qp = ibv_create_qp(end->pd, &init);

    CHECK(qp, "ibv_create_qp");
    CHECK(!ibv_modify_qp(qp, &attr, IBV_QP_STATE | IBV_QP_PKEY_INDEX | IBV_QP_PORT | IBV_QP_ACCESS_FLAGS), "INIT");
    return qp;
}

static void carry_one(struct pair *pair, void *memory, uint32_t lkey, uint64_t remote, uint32_t rkey)
{
    struct ibv_sge sge = {.addr = (uintptr_t)memory, .length = 8, .lkey = lkey};
    struct ibv_send_wr *bad, wr = {.sg_list = &sge,
                                   .num_sge = 1,
                                   .opcode = IBV_WR_RDMA_WRITE,
                                   .send_flags = IBV_SEND_SIGNALED,
                                   .wr.rdma = {.remote_addr = remote, .rkey = rkey}};

    CHECK(!ibv_post_send(pair->own.qp, &wr, &bad), "ibv_post_send");
    struct ibv_wc wc = wait_completion(pair->own.cq);

    CHECK(wc.status == IBV_WC_SUCCESS, "WRITE: %s", ibv_wc_status_str(wc.status));
}

int main(int argc, char **argv)
{
    CHECK(argc >= 3, "usage: idle COUNT PORT [ADDRESS]");
    struct pair pair;
    int count = atoi(argv[1]);

    pair_open(&pair, argc - 1, argv + 1, 0);
    void *memory = malloc(SIZE);
    struct ibv_mr *mr = ibv_reg_mr(pair.own.pd, memory, SIZE, ACCESS);

    CHECK(mr, "ibv_reg_mr");
    for (int i = 0; i < count; i++) {
        pair.own.qp = make_qp(&pair.own);
        pair_exchange(&pair, memory, mr->rkey);
        end_connect(&pair.own, pair.peer.qp_num, pair.peer.gid, 7, 20);
        pair_meet(&pair);
        carry_one(&pair, memory, mr->lkey, pair.peer.addr, pair.peer.rkey);
    }
    pair_meet(&pair);
    printf("ready\n");
    fflush(stdout);
    while (getchar() != EOF)
        ;
    return 0;
}
