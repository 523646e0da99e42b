/* SPDX-License-Identifier: Apache-2.0 */
/* What each operation of a reliable connection moves, and how it completes. */
#include <arpa/inet.h>

#include "suite.h"

TEST(write_lands, BOTH, "a WRITE's bytes are in the responder's memory when it completes", "IBTA 9.4.3, 10.8.5")
{
    connect_rc(e);
    if (e->first) {
        ASK(.opcode = IBV_WR_RDMA_WRITE, .wr_id = 1, .from = 10, .length = 1000, .to = 77);
        struct ibv_wc wc = EXPECT(1, IBV_WC_SUCCESS);

        EQUAL(wc.opcode, IBV_WC_RDMA_WRITE);
        EQUAL(wc.qp_num, e->qp->qp_num);
    }
    meet(e);
    if (!e->first) {
        ARRIVED(77, 1000, 10);
        UNTOUCHED(0, 77);
        UNTOUCHED(1077, 64);
        EXPECT_NOTHING();
    }
}

TEST(write_sizes, BOTH, "a WRITE of any length around the path MTU and the page moves just these bytes",
     "IBTA 9.7.2, 9.4.3")
{
    static const uint32_t lengths[] = {1, 7, 63, 64, 65, 1023, 1024, 1025, 2047, 2048, 4095, 4096, 4097, 65535, 131073};

    connect_rc(e);
    for (unsigned i = 0; i < sizeof(lengths) / sizeof(*lengths); i++) {
        uint32_t length = lengths[i];

        if (e->first) {
            ASK(.opcode = IBV_WR_RDMA_WRITE, .wr_id = i, .from = i, .length = length, .to = 64);
            EXPECT(i, IBV_WC_SUCCESS);
        }
        meet(e);
        if (!e->first) {
            ARRIVED(64, length, i);
            UNTOUCHED(0, 64);
            UNTOUCHED(64 + length, 64);
            memset(e->memory, 0x55, MEMORY);
        }
        meet(e);
    }
}

TEST(write_without_bytes, BOTH, "a WRITE of no bytes succeeds and checks no key", "IBTA 9.3.3.3, 9.7.4.1.4")
{
    connect_rc(e);
    if (e->first) {
        ASK(.opcode = IBV_WR_RDMA_WRITE, .wr_id = 1, .empty = true, .rkey = 0xdead00);
        EXPECT(1, IBV_WC_SUCCESS);
        ASK(.opcode = IBV_WR_RDMA_READ, .wr_id = 2, .empty = true, .rkey = 0xdead00);
        EXPECT(2, IBV_WC_SUCCESS);
    }
    meet(e);
    if (!e->first)
        UNTOUCHED(0, MEMORY);
}

TEST(write_with_immediate, BOTH,
     "a WRITE with immediate consumes a receive, whose completion has the immediate, the length and RECV_RDMA_WITH_IMM",
     "IBTA 9.4.3, 11.4.2.1; man ibv_poll_cq")
{
    connect_rc(e);
    if (!e->first)
        RECEIVE(9, 0, 16);
    meet(e);
    if (e->first) {
        ASK(.opcode = IBV_WR_RDMA_WRITE_WITH_IMM, .wr_id = 1, .length = 3000, .to = 4096, .imm = 0x12345678);
        EQUAL(EXPECT(1, IBV_WC_SUCCESS).opcode, IBV_WC_RDMA_WRITE);
    } else {
        struct ibv_wc wc = EXPECT(9, IBV_WC_SUCCESS);

        EQUAL(wc.opcode, IBV_WC_RECV_RDMA_WITH_IMM);
        EQUAL(wc.byte_len, 3000);
        CHECK(wc.wc_flags & IBV_WC_WITH_IMM);
        EQUAL(ntohl(wc.imm_data), 0x12345678);
        EQUAL(wc.qp_num, e->qp->qp_num);
        ARRIVED(4096, 3000, 0);
        /* The receive's own buffer isn't used. */
        UNTOUCHED(0, 4096);
    }
    meet(e);
}

TEST(write_with_immediate_without_bytes, BOTH, "a WRITE with immediate of no bytes notifies with length 0",
     "IBTA 9.4.3")
{
    connect_rc(e);
    if (!e->first)
        RECEIVE(9, 0, 16);
    meet(e);
    if (e->first) {
        ASK(.opcode = IBV_WR_RDMA_WRITE_WITH_IMM, .wr_id = 1, .empty = true, .imm = 7);
        EXPECT(1, IBV_WC_SUCCESS);
    } else {
        struct ibv_wc wc = EXPECT(9, IBV_WC_SUCCESS);

        EQUAL(wc.opcode, IBV_WC_RECV_RDMA_WITH_IMM);
        EQUAL(wc.byte_len, 0);
        EQUAL(ntohl(wc.imm_data), 7);
        UNTOUCHED(0, MEMORY);
    }
    meet(e);
}

TEST(send_fills_a_receive, BOTH, "a SEND fills the oldest receive and completes it with RECV and its length",
     "IBTA 9.4.1, 10.8.5; man ibv_poll_cq")
{
    connect_rc(e);
    if (!e->first) {
        RECEIVE(8, 0, 4096);
        RECEIVE(9, 8192, 4096);
    }
    meet(e);
    if (e->first) {
        ASK(.opcode = IBV_WR_SEND, .wr_id = 1, .from = 5, .length = 100);
        EQUAL(EXPECT(1, IBV_WC_SUCCESS).opcode, IBV_WC_SEND);
    } else {
        struct ibv_wc wc = EXPECT(8, IBV_WC_SUCCESS);

        EQUAL(wc.opcode, IBV_WC_RECV);
        EQUAL(wc.byte_len, 100);
        EQUAL(wc.qp_num, e->qp->qp_num);
        CHECK(!(wc.wc_flags & (IBV_WC_WITH_IMM | IBV_WC_WITH_INV)));
        ARRIVED(0, 100, 5);
        UNTOUCHED(100, MEMORY - 100);
        EXPECT_NOTHING();
    }
    meet(e);
}

TEST(send_with_immediate, BOTH, "a SEND with immediate hands it over with WITH_IMM set, as given",
     "IBTA 9.4.1; man ibv_poll_cq")
{
    connect_rc(e);
    if (!e->first)
        RECEIVE(9, 0, 4096);
    meet(e);
    if (e->first) {
        ASK(.opcode = IBV_WR_SEND_WITH_IMM, .wr_id = 1, .length = 33, .imm = 0xfedcba98);
        EXPECT(1, IBV_WC_SUCCESS);
    } else {
        struct ibv_wc wc = EXPECT(9, IBV_WC_SUCCESS);

        EQUAL(wc.opcode, IBV_WC_RECV);
        EQUAL(wc.byte_len, 33);
        CHECK(wc.wc_flags & IBV_WC_WITH_IMM);
        EQUAL(ntohl(wc.imm_data), 0xfedcba98u);
    }
    meet(e);
}

TEST(send_without_bytes, BOTH, "a SEND of no bytes consumes a receive, even one without SGEs", "IBTA 9.4.1, 9.3.3.3")
{
    connect_rc(e);
    if (!e->first) {
        struct ibv_recv_wr *bad, wr = {.wr_id = 9, .num_sge = 0};

        DO(ibv_post_recv(e->qp, &wr, &bad));
        RECEIVE(10, 0, 64);
    }
    meet(e);
    for (unsigned i = 0; i < 2; i++) {
        if (e->first) {
            ASK(.opcode = IBV_WR_SEND, .wr_id = i, .empty = true);
            EXPECT(i, IBV_WC_SUCCESS);
        } else {
            EQUAL(EXPECT(9 + i, IBV_WC_SUCCESS).byte_len, 0);
            UNTOUCHED(0, MEMORY);
        }
    }
    meet(e);
}

TEST(send_fits_exactly, BOTH, "a SEND as long as the receive fits", "IBTA 9.7.4.1.7")
{
    connect_rc(e);
    if (!e->first)
        RECEIVE(9, 0, 5000);
    meet(e);
    if (e->first) {
        ASK(.opcode = IBV_WR_SEND, .wr_id = 1, .length = 5000);
        EXPECT(1, IBV_WC_SUCCESS);
    } else {
        EQUAL(EXPECT(9, IBV_WC_SUCCESS).byte_len, 5000);
        ARRIVED(0, 5000, 0);
        UNTOUCHED(5000, 64);
    }
    meet(e);
}

TEST(read_brings, BOTH, "a READ's bytes are in the requester's memory when it completes", "IBTA 9.4.4, 10.8.5")
{
    connect_rc(e);
    if (!e->first) {
        memset(e->memory, 0x77, 4096);
        meet(e);
        meet(e);
        return;
    }
    meet(e);
    memset(e->memory, 0, 8192);
    ASK(.opcode = IBV_WR_RDMA_READ, .wr_id = 1, .from = 100, .length = 3000, .to = 50);
    struct ibv_wc wc = EXPECT(1, IBV_WC_SUCCESS);

    EQUAL(wc.opcode, IBV_WC_RDMA_READ);
    EQUAL(wc.byte_len, 3000);
    for (int i = 0; i < 8192; i++)
        EQUAL(e->memory[i], i >= 100 && i < 3100 ? 0x77 : 0);
    meet(e);
}

TEST(read_sizes, BOTH, "a READ of any length around the path MTU and the page brings just these bytes", "IBTA 9.7.2, 9.4.4")
{
    static const uint32_t lengths[] = {1, 63, 64, 65, 1023, 1024, 1025, 4095, 4096, 4097, 65537, 131072};

    connect_rc(e);
    if (!e->first)
        for (uint32_t i = 0; i < MEMORY; i++)
            e->memory[i] = pattern(i);
    meet(e);
    for (unsigned i = 0; e->first && i < sizeof(lengths) / sizeof(*lengths); i++) {
        memset(e->memory, 0x55, MEMORY);
        ASK(.opcode = IBV_WR_RDMA_READ, .wr_id = i, .from = 64, .length = lengths[i], .to = i);
        EXPECT(i, IBV_WC_SUCCESS);
        ARRIVED(64, lengths[i], i);
        UNTOUCHED(0, 64);
        UNTOUCHED(64 + lengths[i], 64);
    }
    meet(e);
}

TEST(large_messages, BOTH, "a message of 8 MiB arrives whole, by WRITE, SEND and READ", "IBTA 9.7.2 (up to 2^31 bytes)")
{
    enum { LARGE = 8 << 20 };
    struct plan plan = plan_of(IBV_QPT_RC);

    connect_as(e, &plan);
    uint8_t *memory = pages(e, LARGE);

    for (uint32_t i = 0; i < LARGE; i++)
        memory[i] = e->first ? (uint8_t)(i * 31 + (i >> 12)) : 0;
    struct ibv_mr *mr = reg(e, memory, LARGE, ALL_ACCESS);
    struct address peer, own = {.memory = (uintptr_t)memory, .rkey = mr->rkey};
    struct ibv_sge sge = {.addr = (uintptr_t)memory, .length = LARGE, .lkey = mr->lkey};

    exchange(e, &own, &peer, sizeof(own));
    if (!e->first) {
        struct ibv_recv_wr *bad, wr = {.wr_id = 9, .sg_list = &sge, .num_sge = 1};

        DO(ibv_post_recv(e->qp, &wr, &bad));
    }
    meet(e);
    for (int round = 0; round < 3; round++) {
        if (e->first) {
            if (round == 2)
                memset(memory, 0, LARGE);
            ASK(.opcode = round == 0 ? IBV_WR_RDMA_WRITE : round == 1 ? IBV_WR_SEND : IBV_WR_RDMA_READ, .wr_id = 1,
                .sges = &sge, .sge_count = 1, .to = peer.memory - e->peer.memory, .rkey = peer.rkey);
            EXPECT(1, IBV_WC_SUCCESS);
        } else if (round == 1) {
            EQUAL(EXPECT(9, IBV_WC_SUCCESS).byte_len, LARGE);
        }
        meet(e);
        if (!e->first || round == 2) {
            for (uint32_t i = 0; i < LARGE; i++)
                CHECK_THAT(memory[i] == (uint8_t)(i * 31 + (i >> 12)), "round %d: byte %u", round, i);
            if (round == 0)
                memset(memory, 0, LARGE);
        }
        meet(e);
    }
}

TEST(message_too_large, BOTH, "a message longer than the port's max_msg_sz never succeeds", "IBTA 9.7.2, 10.3.1; man ibv_query_port")
{
    struct ibv_sge sges[4];
    uint64_t left;

    connect_rc(e);
    if (!e->first) {
        meet(e);
        UNTOUCHED(0, MEMORY);
        return;
    }
    /* Keys don't matter: the length is too much whatever they say. */
    left = (uint64_t)e->port.max_msg_sz + 1;
    for (int i = 0; i < 4; i++) {
        sges[i] = (struct ibv_sge){.addr = (uintptr_t)e->memory, .length = (uint32_t)(left / 4 + 1),
                                   .lkey = e->mr->lkey};
    }
    int error = ask(e, (struct request){.opcode = IBV_WR_RDMA_WRITE, .wr_id = 1, .sges = sges, .sge_count = 4});

    if (!error) {
        struct ibv_wc wc = next_wc(e, e->cq);

        CHECK(wc.status != IBV_WC_SUCCESS);
    }
    meet(e);
}

/* ---- gather and scatter --------------------------------------------------------- */

TEST(gather, BOTH, "a message is gathered from its SGEs in order, empty ones among them", "IBTA 10.7.3.2; man ibv_post_send")
{
    connect_rc(e);
    if (e->first) {
        uint64_t base = (uintptr_t)e->memory;
        struct ibv_sge sges[4] = {
            {base + 4000, 200, e->mr->lkey}, {base, 1, e->mr->lkey}, {base + 100, 0, e->mr->lkey}, {base + 9, 3000, e->mr->lkey}};

        ASK(.opcode = IBV_WR_RDMA_WRITE, .wr_id = 1, .sges = sges, .sge_count = 2, .to = 10);
        EXPECT(1, IBV_WC_SUCCESS);
        sges[2].length = 1;
        ASK(.opcode = IBV_WR_RDMA_WRITE, .wr_id = 2, .sges = sges, .sge_count = 4, .to = 8192);
        EXPECT(2, IBV_WC_SUCCESS);
    }
    meet(e);
    if (!e->first) {
        ARRIVED(10, 200, 4000);
        ARRIVED(210, 1, 0);
        UNTOUCHED(211, 1000);
        ARRIVED(8192, 200, 4000);
        ARRIVED(8392, 1, 0);
        ARRIVED(8393, 1, 100);
        ARRIVED(8394, 3000, 9);
        UNTOUCHED(11394, 64);
    }
}

TEST(scatter, BOTH, "a receive is filled SGE after SGE; what the message doesn't reach stays as it was",
     "IBTA 10.7.3.2; man ibv_post_recv")
{
    connect_rc(e);
    if (!e->first) {
        uint64_t base = (uintptr_t)e->memory;
        struct ibv_sge sges[4] = {
            {base + 100, 10, e->mr->lkey}, {base + 50, 1, e->mr->lkey}, {base + 5000, 2000, e->mr->lkey},
            {base + 9000, 100, e->mr->lkey}};
        struct ibv_recv_wr *bad, wr = {.wr_id = 9, .sg_list = sges, .num_sge = 4};

        DO(ibv_post_recv(e->qp, &wr, &bad));
    }
    meet(e);
    if (e->first) {
        ASK(.opcode = IBV_WR_SEND, .wr_id = 1, .length = 1511);
        EXPECT(1, IBV_WC_SUCCESS);
    } else {
        EQUAL(EXPECT(9, IBV_WC_SUCCESS).byte_len, 1511);
        ARRIVED(100, 10, 0);
        ARRIVED(50, 1, 10);
        ARRIVED(5000, 1500, 11);
        UNTOUCHED(6500, 4000);
        UNTOUCHED(0, 50);
        UNTOUCHED(51, 49);
        UNTOUCHED(110, 4000);
    }
    meet(e);
}

TEST(scatter_a_read, BOTH, "a READ is scattered over its SGEs", "IBTA 10.7.3.2")
{
    connect_rc(e);
    if (!e->first)
        for (uint32_t i = 0; i < MEMORY; i++)
            e->memory[i] = pattern(i);
    meet(e);
    if (e->first) {
        uint64_t base = (uintptr_t)e->memory;
        struct ibv_sge sges[3] = {{base + 1, 1100, e->mr->lkey}, {base + 2000, 3, e->mr->lkey}, {base + 4000, 3000, e->mr->lkey}};

        memset(e->memory, 0x55, MEMORY);
        ASK(.opcode = IBV_WR_RDMA_READ, .wr_id = 1, .sges = sges, .sge_count = 3, .to = 600);
        EXPECT(1, IBV_WC_SUCCESS);
        ARRIVED(1, 1100, 600);
        ARRIVED(2000, 3, 1700);
        ARRIVED(4000, 3000, 1703);
        UNTOUCHED(1101, 899);
        UNTOUCHED(7000, 1000);
    }
    meet(e);
}

TEST(as_many_sges_as_granted, BOTH, "a WR may have as many SGEs as the QP was granted, and not one more",
     "man ibv_create_qp, ibv_post_send: EINVAL")
{
    connect_rc(e);
    struct ibv_qp_attr attr;
    struct ibv_qp_init_attr init;

    DO(ibv_query_qp(e->qp, &attr, IBV_QP_CAP, &init));
    uint32_t most = init.cap.max_send_sge;
    struct ibv_sge *sges = calloc(most + 1, sizeof(*sges));

    CHECK(sges);
    keep(e, sges, (int (*)(void *))(void *)free);
    for (uint32_t i = 0; i <= most; i++)
        sges[i] = (struct ibv_sge){(uintptr_t)e->memory + 16 * i, 16, e->mr->lkey};
    if (e->first) {
        ASK(.opcode = IBV_WR_RDMA_WRITE, .wr_id = 1, .sges = sges, .sge_count = (int)most);
        EXPECT(1, IBV_WC_SUCCESS);
        REFUSED(ask(e, (struct request){.opcode = IBV_WR_RDMA_WRITE, .sges = sges, .sge_count = (int)most + 1}), EINVAL);
        REFUSED(ask(e, (struct request){.opcode = IBV_WR_RDMA_WRITE, .sges = sges, .sge_count = -1}), EINVAL);
    } else {
        struct ibv_recv_wr *bad, wr = {.wr_id = 9, .sg_list = sges, .num_sge = (int)init.cap.max_recv_sge + 1};

        if (init.cap.max_recv_sge <= most)
            REFUSED(ibv_post_recv(e->qp, &wr, &bad), EINVAL);
    }
    meet(e);
    if (!e->first)
        ARRIVED(0, 16 * most, 0);
}

/* ---- inline ------------------------------------------------------------------------ */

TEST(inline_is_copied, BOTH, "inline data may change as soon as ibv_post_send returns, and needs no lkey",
     "man ibv_post_send: IBV_SEND_INLINE")
{
    connect_rc(e);
    if (!e->first)
        RECEIVE(9, 4096, 64);
    meet(e);
    if (e->first) {
        uint8_t stack[64];
        struct ibv_sge sge = {(uintptr_t)stack, 64, 0xbad};

        memcpy(stack, e->memory, 64);
        ASK(.opcode = IBV_WR_RDMA_WRITE, .wr_id = 1, .flags = IBV_SEND_INLINE, .sges = &sge, .sge_count = 1);
        memset(stack, 0xee, 64);
        EXPECT(1, IBV_WC_SUCCESS);
        memcpy(stack, e->memory + 5, 64);
        ASK(.opcode = IBV_WR_SEND, .wr_id = 2, .flags = IBV_SEND_INLINE, .sges = &sge, .sge_count = 1);
        memset(stack, 0xee, 64);
        EXPECT(2, IBV_WC_SUCCESS);
    } else {
        EQUAL(EXPECT(9, IBV_WC_SUCCESS).byte_len, 64);
        ARRIVED(0, 64, 0);
        ARRIVED(4096, 64, 5);
    }
    meet(e);
}

TEST(inline_limit, BOTH, "inline data is as long as the QP was granted; one byte more is refused at once",
     "man ibv_create_qp, ibv_post_send")
{
    connect_rc(e);
    struct ibv_qp_attr attr;
    struct ibv_qp_init_attr init;

    DO(ibv_query_qp(e->qp, &attr, IBV_QP_CAP, &init));
    CHECK(init.cap.max_inline_data >= 64);
    if (e->first) {
        ASK(.opcode = IBV_WR_RDMA_WRITE, .wr_id = 1, .flags = IBV_SEND_INLINE, .length = init.cap.max_inline_data);
        EXPECT(1, IBV_WC_SUCCESS);
        int error = ask(e, (struct request){
            .opcode = IBV_WR_RDMA_WRITE, .flags = IBV_SEND_INLINE, .length = init.cap.max_inline_data + 1});

        CHECK(error == EINVAL || error == ENOMEM);
    }
    meet(e);
    if (!e->first)
        ARRIVED(0, init.cap.max_inline_data, 0);
}

TEST(inline_gathers, BOTH, "inline data is gathered from several SGEs", "man ibv_post_send: IBV_SEND_INLINE")
{
    connect_rc(e);
    if (e->first) {
        uint64_t base = (uintptr_t)e->memory;
        struct ibv_sge sges[3] = {{base + 7, 20, 0}, {base + 500, 1, 0}, {base + 90, 30, 0}};

        ASK(.opcode = IBV_WR_RDMA_WRITE, .wr_id = 1, .flags = IBV_SEND_INLINE, .sges = sges, .sge_count = 3);
        EXPECT(1, IBV_WC_SUCCESS);
    }
    meet(e);
    if (!e->first) {
        ARRIVED(0, 20, 7);
        ARRIVED(20, 1, 500);
        ARRIVED(21, 30, 90);
    }
}

/* ---- order --------------------------------------------------------------------------- */

TEST(completions_in_order, BOTH, "completions of a send queue come in the order of posting, whatever the operations",
     "IBTA 10.8.3.1")
{
    static const enum ibv_wr_opcode mix[] = {IBV_WR_RDMA_WRITE, IBV_WR_RDMA_READ, IBV_WR_SEND, IBV_WR_RDMA_WRITE_WITH_IMM};

    connect_rc(e);
    if (!e->first)
        for (unsigned i = 0; i < 32; i++)
            RECEIVE(i, 65536 + 1024 * i, 1024);
    meet(e);
    if (e->first) {
        for (unsigned i = 0; i < 48; i++)
            ASK(.opcode = mix[i % 4], .wr_id = i, .from = 65536 * (i % 4 == 1), .length = i % 3 ? 8 : 1000);
        for (unsigned i = 0; i < 48; i++)
            EXPECT(i, IBV_WC_SUCCESS);
    } else {
        for (unsigned i = 0; i < 24; i++)
            EQUAL(EXPECT(i, IBV_WC_SUCCESS).opcode, i % 2 ? IBV_WC_RECV_RDMA_WITH_IMM : IBV_WC_RECV);
    }
    meet(e);
}

TEST(write_then_send, BOTH, "what was WRITTEN before a SEND is visible when the SEND's receive completes", "IBTA 9.5, 10.8.3.3")
{
    connect_rc(e);
    for (unsigned i = 0; i < 40; i++) {
        if (!e->first) {
            memset(e->memory, 0x55, 65536);
            RECEIVE(i, 200000, 8);
        }
        meet(e);
        if (e->first) {
            ASK(.opcode = IBV_WR_RDMA_WRITE, .quiet = true, .from = i, .length = 30000);
            ASK(.opcode = IBV_WR_SEND, .wr_id = i, .length = 8);
            EXPECT(i, IBV_WC_SUCCESS);
        } else {
            EXPECT(i, IBV_WC_SUCCESS);
            ARRIVED(0, 30000, i);
        }
    }
    meet(e);
}

TEST(write_lands_in_order, BOTH, "a WRITE's last byte is stored last: who sees it sees all of the message",
     "practice of all RDMA devices; ibv_query_qp_data_in_order")
{
    connect_rc(e);
    for (unsigned i = 0; i < 40; i++) {
        uint32_t length = 1000 + 333 * i;

        if (!e->first)
            memset(e->memory, 0x55, 65536);
        meet(e);
        if (e->first) {
            /* A last byte that differs from what is there. */
            e->memory[length - 1] = 0xa5;
            ASK(.opcode = IBV_WR_RDMA_WRITE, .wr_id = i, .length = length);
            EXPECT(i, IBV_WC_SUCCESS);
            e->memory[length - 1] = pattern(length - 1);
        } else {
            double deadline = now() + e->options->patience;

            while (__atomic_load_n(&e->memory[length - 1], __ATOMIC_ACQUIRE) != 0xa5)
                CHECK_THAT(now() < deadline, "the last byte never came");
            ARRIVED(0, length - 1, 0);
        }
        meet(e);
    }
}

TEST(read_after_write, BOTH, "a READ sees what WRITEs before it on the same QP have stored", "IBTA 9.5")
{
    connect_rc(e);
    for (unsigned i = 0; e->first && i < 20; i++) {
        ASK(.opcode = IBV_WR_RDMA_WRITE, .quiet = true, .from = i, .length = 5000);
        ASK(.opcode = IBV_WR_RDMA_READ, .wr_id = i, .from = 100000, .length = 5000);
        EXPECT(i, IBV_WC_SUCCESS);
        ARRIVED(100000, 5000, i);
    }
    meet(e);
}

TEST(fence_waits_for_reads, BOTH, "a fenced WR starts after the READs before it are complete", "IBTA 10.8.3.3; man ibv_post_send: IBV_SEND_FENCE")
{
    connect_rc(e);
    if (!e->first)
        for (uint32_t i = 0; i < MEMORY; i++)
            e->memory[i] = pattern(i + 3);
    meet(e);
    for (unsigned i = 0; e->first && i < 20; i++) {
        /* What the READ brings is what the fenced WRITE sends. */
        memset(e->memory + 65536, 0, 4096);
        ASK(.opcode = IBV_WR_RDMA_READ, .quiet = true, .from = 65536, .length = 4096);
        ASK(.opcode = IBV_WR_RDMA_WRITE, .wr_id = i, .flags = IBV_SEND_FENCE, .from = 65536, .length = 4096, .to = 131072 + 4096 * (i % 8));
        EXPECT(i, IBV_WC_SUCCESS);
    }
    meet(e);
    if (!e->first)
        for (unsigned i = 0; i < 8; i++)
            ARRIVED(131072 + 4096 * i, 4096, 3);
}

/* ---- signalling ------------------------------------------------------------------------ */

TEST(unsignaled, BOTH, "an unsignaled WR that succeeds gives no completion", "IBTA 10.8.6; man ibv_post_send: IBV_SEND_SIGNALED")
{
    connect_rc(e);
    if (e->first) {
        ASK(.opcode = IBV_WR_RDMA_WRITE, .quiet = true, .wr_id = 1, .length = 8);
        ASK(.opcode = IBV_WR_RDMA_WRITE, .quiet = true, .wr_id = 2, .length = 8);
        ASK(.opcode = IBV_WR_RDMA_WRITE, .wr_id = 3, .length = 8);
        EXPECT(3, IBV_WC_SUCCESS);
        EXPECT_NOTHING();
    }
    meet(e);
}

TEST(all_signaled, BOTH, "with sq_sig_all each WR gives a completion", "man ibv_create_qp: sq_sig_all")
{
    struct plan plan = plan_of(IBV_QPT_RC);

    plan.all_signaled = true;
    connect_as(e, &plan);
    if (e->first) {
        ASK(.opcode = IBV_WR_RDMA_WRITE, .quiet = true, .wr_id = 1, .length = 8);
        ASK(.opcode = IBV_WR_RDMA_READ, .quiet = true, .wr_id = 2, .length = 8);
        EXPECT(1, IBV_WC_SUCCESS);
        EXPECT(2, IBV_WC_SUCCESS);
    }
    meet(e);
}

TEST(slots_come_back, BOTH, "polling a completion frees its slot and those of the unsignaled WRs before it", "man ibv_post_send; IBTA 10.8.6")
{
    connect_rc(e);
    struct ibv_qp_attr attr;
    struct ibv_qp_init_attr init;

    DO(ibv_query_qp(e->qp, &attr, IBV_QP_CAP, &init));
    for (unsigned round = 0; e->first && round < 5; round++) {
        for (unsigned i = 1; i < init.cap.max_send_wr; i++)
            ASK(.opcode = IBV_WR_RDMA_WRITE, .quiet = true, .length = 8);
        ASK(.opcode = IBV_WR_RDMA_WRITE, .wr_id = round, .length = 8);
        EXPECT(round, IBV_WC_SUCCESS);
    }
    meet(e);
}

TEST(queue_full, SOLO, "a send queue takes as many WRs as granted, then ENOMEM and bad_wr", "man ibv_post_send: ENOMEM")
{
    struct plan plan = plan_of(IBV_QPT_RC);
    struct ibv_qp_attr attr;
    struct ibv_qp_init_attr init;

    /* Connected to a QP that can't answer yet: nothing is sent off. */
    set_up(e, &plan);
    plan.timeout = 0;
    e->qp = create_qp(e, &plan);
    struct ibv_qp *mute = create_qp(e, &plan);
    struct address peer = {.qp_num = mute->qp_num, .gid = e->gid};

    e->peer = (struct address){.memory = (uintptr_t)e->memory, .rkey = e->mr->rkey};
    DO(to_init(e, mute, &plan));
    DO(to_init(e, e->qp, &plan));
    DO(to_rtr(e, e->qp, &plan, &peer));
    DO(to_rts(e->qp, &plan));
    DO(ibv_query_qp(e->qp, &attr, IBV_QP_CAP, &init));
    CHECK(init.cap.max_send_wr >= DEPTH);
    for (unsigned i = 0; i < init.cap.max_send_wr; i++)
        ASK(.opcode = IBV_WR_RDMA_WRITE, .wr_id = i, .length = 8);
    struct ibv_send_wr *bad = NULL, wr = {.opcode = IBV_WR_RDMA_WRITE};

    REFUSED(ibv_post_send(e->qp, &wr, &bad), ENOMEM);
    CHECK(bad == &wr);
}

TEST(receive_queue_full, SOLO, "a receive queue takes as many WRs as granted, then ENOMEM and bad_wr", "man ibv_post_recv: ENOMEM")
{
    struct plan plan = plan_of(IBV_QPT_RC);
    struct ibv_qp_attr attr;
    struct ibv_qp_init_attr init;

    set_up(e, &plan);
    e->qp = create_qp(e, &plan);
    DO(to_init(e, e->qp, &plan));
    DO(ibv_query_qp(e->qp, &attr, IBV_QP_CAP, &init));
    for (unsigned i = 0; i < init.cap.max_recv_wr; i++)
        RECEIVE(i, 0, 8);
    struct ibv_recv_wr *bad = NULL, wr = {.num_sge = 0};

    REFUSED(ibv_post_recv(e->qp, &wr, &bad), ENOMEM);
    CHECK(bad == &wr);
}

TEST(list_of_wrs, BOTH, "a list of WRs is posted up to the first bad one, which bad_wr names", "man ibv_post_send")
{
    connect_rc(e);
    if (e->first) {
        struct ibv_sge sges[256];
        struct ibv_send_wr wrs[4], *bad = NULL;
        struct ibv_qp_attr attr;
        struct ibv_qp_init_attr init;

        DO(ibv_query_qp(e->qp, &attr, IBV_QP_CAP, &init));
        CHECK(init.cap.max_send_sge < 256);
        for (int i = 0; i < 256; i++)
            sges[i] = (struct ibv_sge){(uintptr_t)e->memory, 8, e->mr->lkey};
        for (int i = 0; i < 4; i++) {
            wrs[i] = (struct ibv_send_wr){.wr_id = (uint64_t)i, .next = i < 3 ? &wrs[i + 1] : NULL, .sg_list = sges, .num_sge = 1,
                                          .opcode = IBV_WR_RDMA_WRITE, .send_flags = IBV_SEND_SIGNALED};
            wrs[i].wr.rdma.remote_addr = e->peer.memory;
            wrs[i].wr.rdma.rkey = e->peer.rkey;
        }
        wrs[2].num_sge = (int)init.cap.max_send_sge + 1;
        REFUSED(ibv_post_send(e->qp, wrs, &bad), EINVAL);
        CHECK(bad == &wrs[2]);
        EXPECT(0, IBV_WC_SUCCESS);
        EXPECT(1, IBV_WC_SUCCESS);
        EXPECT_NOTHING();
        wrs[2].num_sge = 1;
        DO(ibv_post_send(e->qp, wrs, &bad));
        for (uint64_t i = 0; i < 4; i++)
            EXPECT(i, IBV_WC_SUCCESS);
    }
    meet(e);
}

TEST(unknown_opcode, BOTH, "an operation that is none is refused at once, or completes with LOC_QP_OP_ERR", "man ibv_post_send: EINVAL; IBTA 11.6.2")
{
    connect_rc(e);
    if (e->first) {
        int error = ask(e, (struct request){.opcode = (enum ibv_wr_opcode)200, .length = 8});

        if (!error) {
            EXPECT(0, IBV_WC_LOC_QP_OP_ERR);
        } else {
            CHECK(error == EINVAL || error == EOPNOTSUPP);
            ASK(.opcode = IBV_WR_RDMA_WRITE, .wr_id = 1, .length = 8);
            EXPECT(1, IBV_WC_SUCCESS);
        }
    }
    meet(e);
}

TEST(to_itself, SOLO, "a QP can be connected to itself", "IBTA 10.2.4 (loopback)")
{
    struct plan plan = plan_of(IBV_QPT_RC);

    set_up(e, &plan);
    e->qp = create_qp(e, &plan);
    struct address self = {.qp_num = e->qp->qp_num, .gid = e->gid};

    e->peer = (struct address){.memory = (uintptr_t)e->memory, .rkey = e->mr->rkey};
    DO(to_init(e, e->qp, &plan));
    DO(to_rtr(e, e->qp, &plan, &self));
    DO(to_rts(e->qp, &plan));
    RECEIVE(9, 8192, 64);
    ASK(.opcode = IBV_WR_RDMA_WRITE, .wr_id = 1, .length = 64, .to = 4096);
    ASK(.opcode = IBV_WR_SEND, .wr_id = 2, .length = 64);
    bool seen[10] = {false};

    for (int i = 0; i < 3; i++) {
        struct ibv_wc wc = next_wc(e, e->cq);

        CHECK(wc.status == IBV_WC_SUCCESS && wc.wr_id < 10);
        seen[wc.wr_id] = true;
    }
    CHECK(seen[1] && seen[2] && seen[9]);
    ARRIVED(4096, 64, 0);
    ARRIVED(8192, 64, 0);
}

TEST(both_directions, BOTH, "both ends send at the same time, each in its own order", "IBTA 9.7")
{
    connect_rc(e);
    for (unsigned i = 0; i < 48; i++)
        RECEIVE(1000 + i, 131072 + 1024 * i, 1024);
    meet(e);
    for (unsigned i = 0; i < 48; i++)
        ASK(.opcode = IBV_WR_SEND, .wr_id = i, .from = i, .length = 1000);
    for (unsigned sent = 0, received = 0; sent + received < 96;) {
        struct ibv_wc wc = next_wc(e, e->cq);

        EQUAL(wc.status, IBV_WC_SUCCESS);
        if (wc.opcode == IBV_WC_RECV)
            EQUAL(wc.wr_id, 1000 + received++);
        else
            EQUAL(wc.wr_id, sent++);
    }
    if (!e->first)
        for (unsigned i = 0; i < 48; i++)
            ARRIVED(131072 + 1024 * i, 1000, i);
    meet(e);
}
