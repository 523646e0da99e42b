/* SPDX-License-Identifier: Apache-2.0 */
/* Unreliable connections: what arrives, and what is dropped without a word. */
#include <arpa/inet.h>

#include "suite.h"

static void connect_uc(struct end *e)
{
    struct plan plan = plan_of(IBV_QPT_UC);

    connect_as(e, &plan);
}

TEST(send_arrives, BOTH, "a SEND over UC fills a receive", "IBTA 9.8.2")
{
    connect_uc(e);
    if (!e->first)
        RECEIVE(9, 0, 65536);
    meet(e);
    if (e->first) {
        ASK(.opcode = IBV_WR_SEND_WITH_IMM, .wr_id = 1, .length = 30000, .imm = 4);
        EXPECT(1, IBV_WC_SUCCESS);
    } else {
        struct ibv_wc wc = EXPECT(9, IBV_WC_SUCCESS);

        EQUAL(wc.byte_len, 30000);
        EQUAL(ntohl(wc.imm_data), 4);
        ARRIVED(0, 30000, 0);
    }
    meet(e);
}

TEST(write_arrives, BOTH, "WRITE and WRITE with immediate work over UC", "IBTA 9.8.2")
{
    connect_uc(e);
    if (!e->first)
        RECEIVE(9, 0, 64);
    meet(e);
    if (e->first) {
        ASK(.opcode = IBV_WR_RDMA_WRITE, .wr_id = 1, .length = 5000, .to = 4096);
        EXPECT(1, IBV_WC_SUCCESS);
        ASK(.opcode = IBV_WR_RDMA_WRITE_WITH_IMM, .wr_id = 2, .from = 1, .length = 5000, .to = 16384);
        EXPECT(2, IBV_WC_SUCCESS);
    } else {
        EQUAL(EXPECT(9, IBV_WC_SUCCESS).byte_len, 5000);
        ARRIVED(4096, 5000, 0);
        ARRIVED(16384, 5000, 1);
    }
    meet(e);
}

TEST(no_receive_is_dropped, BOTH, "a SEND without a receive is dropped; its sender succeeds and the QPs stay in RTS", "IBTA 9.8.2.2.3")
{
    connect_uc(e);
    if (e->first) {
        ASK(.opcode = IBV_WR_SEND, .wr_id = 1, .length = 64);
        EXPECT(1, IBV_WC_SUCCESS);
        ASK(.opcode = IBV_WR_RDMA_WRITE, .wr_id = 2, .length = 1, .to = 65536);
        EXPECT(2, IBV_WC_SUCCESS);
        meet(e);
        meet(e);
        ASK(.opcode = IBV_WR_SEND, .wr_id = 3, .from = 1, .length = 64);
        EXPECT(3, IBV_WC_SUCCESS);
    } else {
        double deadline = now() + e->options->patience;

        meet(e);
        /* The WRITE behind it has landed: the SEND has come and gone. */
        while (__atomic_load_n(&e->memory[65536], __ATOMIC_ACQUIRE) != pattern(0))
            CHECK(now() < deadline);
        RECEIVE(9, 0, 64);
        meet(e);
        EXPECT(9, IBV_WC_SUCCESS);
        ARRIVED(0, 64, 1);
        EQUAL(state_of(e, e->qp), IBV_QPS_RTS);
    }
    meet(e);
    EQUAL(state_of(e, e->qp), IBV_QPS_RTS);
}

TEST(bad_key_is_dropped, BOTH, "a WRITE with a wrong key writes nothing; its sender succeeds", "IBTA 9.8.2.2, 9.9.3")
{
    connect_uc(e);
    if (e->first) {
        ASK(.opcode = IBV_WR_RDMA_WRITE, .wr_id = 1, .length = 64, .rkey = e->peer.rkey ^ 0x5a0000);
        EXPECT(1, IBV_WC_SUCCESS);
    }
    meet(e);
    if (!e->first)
        UNTOUCHED(0, MEMORY);
    else
        EQUAL(state_of(e, e->qp), IBV_QPS_RTS);
}

TEST(peer_gone_is_dropped, BOTH, "a SEND to a QP that is gone succeeds at its sender", "IBTA 9.8.2")
{
    connect_uc(e);
    if (!e->first)
        DO(drop(e, e->qp));
    meet(e);
    if (e->first) {
        for (uint64_t i = 0; i < 4; i++) {
            ASK(.opcode = IBV_WR_SEND, .wr_id = i, .length = 64);
            EXPECT(i, IBV_WC_SUCCESS);
        }
        EQUAL(state_of(e, e->qp), IBV_QPS_RTS);
    }
    meet(e);
}

TEST(no_reads, BOTH, "READ and atomics on a UC QP are refused at once, or LOC_QP_OP_ERR", "IBTA 9.4 table of supported operations; man ibv_post_send")
{
    static const enum ibv_wr_opcode opcodes[] = {IBV_WR_RDMA_READ, IBV_WR_ATOMIC_FETCH_AND_ADD, IBV_WR_ATOMIC_CMP_AND_SWP};

    connect_uc(e);
    for (unsigned i = 0; e->first && i < 3; i++) {
        int error = ask(e, (struct request){.opcode = opcodes[i], .wr_id = i, .length = 8});

        if (error) {
            CHECK(error == EINVAL || error == EOPNOTSUPP);
            continue;
        }
        EXPECT(i, IBV_WC_LOC_QP_OP_ERR);
        break;
    }
    meet(e);
}

TEST(local_error, BOTH, "a local error on a UC QP: LOC_PROT_ERR, and the send queue stops (SQE)", "IBTA 10.3.1 (Send Queue Error), 11.6.2")
{
    connect_uc(e);
    if (e->first) {
        struct ibv_qp_attr attr = {.qp_state = IBV_QPS_RTS, .cur_qp_state = IBV_QPS_SQE};

        ASK(.opcode = IBV_WR_RDMA_WRITE, .wr_id = 1, .length = 64, .lkey = e->mr->lkey ^ 0x5a0000);
        EXPECT(1, IBV_WC_LOC_PROT_ERR);
        await_state(e, e->qp, IBV_QPS_SQE);
        DO(ibv_modify_qp(e->qp, &attr, IBV_QP_STATE | IBV_QP_CUR_STATE));
        ASK(.opcode = IBV_WR_RDMA_WRITE, .wr_id = 2, .length = 64);
        EXPECT(2, IBV_WC_SUCCESS);
    }
    meet(e);
}
