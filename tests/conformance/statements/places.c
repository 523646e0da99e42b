/* SPDX-License-Identifier: Apache-2.0 */
/* Memory that a process has by other ways than asking for it: stacks, mapped files. A region is a region. */
#include <netinet/in.h>

#include "suite.h"

enum { GRH = 40, LENGTH = 1000, QKEY = 0x11111111 };

/* Filled like e->memory of the first end from `from` on. */
static void fill(uint8_t *at, uint32_t length, uint64_t from)
{
    for (uint32_t i = 0; i < length; i++)
        at[i] = pattern(from + i);
}

static bool holds(const uint8_t *at, uint32_t length, uint64_t from)
{
    for (uint32_t i = 0; i < length; i++)
        if (at[i] != pattern(from + i))
            return false;
    return true;
}

static struct ibv_ah *connect_ud(struct end *e)
{
    struct plan plan = plan_of(IBV_QPT_UD);

    connect_as(e, &plan);
    struct ibv_ah_attr attr = path_to(e, &e->peer.gid);

    return MADE(ibv_create_ah(e->pd, &attr), ibv_destroy_ah);
}

static void receive_into(struct end *e, uint64_t wr_id, struct ibv_sge *sges, int count)
{
    struct ibv_recv_wr wr = {.wr_id = wr_id, .sg_list = sges, .num_sge = count}, *bad;

    DO(ibv_post_recv(e->qp, &wr, &bad));
}

TEST(datagram_from_stack, BOTH, "a datagram may come from a stack, in several pieces, beside others", "man ibv_reg_mr; IBTA 10.6.3")
{
    struct ibv_ah *ah = connect_ud(e);
    uint8_t stack[2 * LENGTH];
    struct ibv_mr *mr = reg(e, stack, sizeof(stack), IBV_ACCESS_LOCAL_WRITE);
    struct ibv_sge pieces[] = {{(uintptr_t)stack + 100, 300, mr->lkey},
                               {(uintptr_t)e->memory + 400, 200, e->mr->lkey},
                               {(uintptr_t)stack + 600, LENGTH - 500, mr->lkey}};

    for (uint32_t i = 0; !e->first && i < 3; i++)
        RECEIVE(i, 4096 * i, 4096);
    meet(e);
    if (e->first) {
        fill(stack, sizeof(stack), 0);
        ASK(.opcode = IBV_WR_SEND, .wr_id = 1, .ah = ah, .qp_num = e->peer.qp_num, .qkey = QKEY, .sges = pieces, .sge_count = 3);
        ASK(.opcode = IBV_WR_SEND_WITH_IMM, .wr_id = 2, .ah = ah, .qp_num = e->peer.qp_num, .qkey = QKEY, .imm = 5, .sges = pieces, .sge_count = 1);
        ASK(.opcode = IBV_WR_SEND, .wr_id = 3, .ah = ah, .qp_num = e->peer.qp_num, .qkey = QKEY, .from = 7, .length = 64);
        for (uint64_t i = 1; i <= 3; i++)
            EXPECT(i, IBV_WC_SUCCESS);
    } else {
        EQUAL(EXPECT(0, IBV_WC_SUCCESS).byte_len, LENGTH + GRH);
        ARRIVED(GRH, LENGTH, 100);
        struct ibv_wc wc = EXPECT(1, IBV_WC_SUCCESS);

        EQUAL(wc.byte_len, 300 + GRH);
        EQUAL(ntohl(wc.imm_data), 5);
        ARRIVED(4096 + GRH, 300, 100);
        EXPECT(2, IBV_WC_SUCCESS);
        ARRIVED(8192 + GRH, 64, 7);
    }
    meet(e);
}

TEST(datagram_into_stack, BOTH, "datagrams that go into a stack arrive whole, and complete in the order of their receives", "man ibv_reg_mr; IBTA 10.6.3, 10.8.3")
{
    enum { COUNT = 48, SLOT = LENGTH + GRH };
    struct ibv_ah *ah = connect_ud(e);
    uint8_t stack[COUNT / 2 * SLOT];

    memset(stack, 0x55, sizeof(stack));
    struct ibv_mr *mr = reg(e, stack, sizeof(stack), IBV_ACCESS_LOCAL_WRITE);

    /* Every other one goes to the usual memory, and the header of each there. */
    for (uint32_t i = 0; !e->first && i < COUNT; i++) {
        struct ibv_sge sges[] = {{(uintptr_t)e->memory + i * SLOT, GRH, e->mr->lkey},
                                 {i % 2 ? (uintptr_t)e->memory + i * SLOT + GRH : (uintptr_t)stack + i / 2 * SLOT, LENGTH,
                                  i % 2 ? e->mr->lkey : mr->lkey}};

        receive_into(e, i, sges, 2);
    }
    meet(e);
    for (uint32_t i = 0; i < COUNT; i++) {
        uint32_t length = i == 0 ? 1 : LENGTH - i;

        if (e->first) {
            ASK(.opcode = IBV_WR_SEND, .wr_id = i, .ah = ah, .qp_num = e->peer.qp_num, .qkey = QKEY, .from = i, .length = length);
        } else {
            struct ibv_wc wc = EXPECT(i, IBV_WC_SUCCESS);

            EQUAL(wc.byte_len, length + GRH);
            EQUAL(wc.src_qp, e->peer.qp_num);
            if (i % 2)
                ARRIVED(i * SLOT + GRH, length, i);
            else
                CHECK(holds(stack + i / 2 * SLOT, length, i) && stack[i / 2 * SLOT + length] == 0x55);
        }
    }
    for (uint32_t i = 0; e->first && i < COUNT; i++)
        EXPECT(i, IBV_WC_SUCCESS);
    meet(e);
}
