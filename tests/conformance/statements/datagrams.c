/* SPDX-License-Identifier: Apache-2.0 */
/* Unreliable datagrams: addresses, Q_Keys, the GRH, what is dropped, multicast. */
#include <arpa/inet.h>
#include <netinet/in.h>

#include "suite.h"

enum { GRH = 40 };

static void connect_ud(struct end *e)
{
    struct plan plan = plan_of(IBV_QPT_UD);

    connect_as(e, &plan);
}

static struct ibv_ah *address_of_peer(struct end *e)
{
    struct ibv_ah_attr attr = path_to(e, &e->peer.gid);

    return MADE(ibv_create_ah(e->pd, &attr), ibv_destroy_ah);
}

/* After what may have been dropped: a message that can't be, since nothing overtakes. */
static void send_mark(struct end *e, struct ibv_ah *ah)
{
    ASK(.opcode = IBV_WR_SEND_WITH_IMM, .wr_id = 99, .ah = ah, .qp_num = e->peer.qp_num, .qkey = 0x11111111, .length = 4, .imm = 0xffff);
    EXPECT(99, IBV_WC_SUCCESS);
}

TEST(send_arrives, BOTH, "a datagram arrives behind 40 bytes of GRH; the completion has length + 40, GRH and the source QP", "IBTA 9.8.3, 11.4.2.1; man ibv_poll_cq")
{
    connect_ud(e);
    if (!e->first)
        RECEIVE(9, 0, 2048);
    meet(e);
    if (e->first) {
        struct ibv_ah *ah = address_of_peer(e);

        ASK(.opcode = IBV_WR_SEND, .wr_id = 1, .ah = ah, .qp_num = e->peer.qp_num, .qkey = 0x11111111, .from = 7, .length = 500);
        EQUAL(EXPECT(1, IBV_WC_SUCCESS).opcode, IBV_WC_SEND);
    } else {
        struct ibv_wc wc = EXPECT(9, IBV_WC_SUCCESS);

        EQUAL(wc.opcode, IBV_WC_RECV);
        EQUAL(wc.byte_len, 500 + GRH);
        CHECK(wc.wc_flags & IBV_WC_GRH);
        EQUAL(wc.src_qp, e->peer.qp_num);
        EQUAL(wc.qp_num, e->qp->qp_num);
        ARRIVED(GRH, 500, 7);
        UNTOUCHED(GRH + 500, 100);
    }
    meet(e);
}

TEST(header_of_ipv4, BOTH, "over RoCE v2 and IPv4 the GRH's last 20 bytes are the IPv4 header, with source and destination", "RoCE v2 annex A17.4.5.2")
{
    connect_ud(e);
    if (!IN6_IS_ADDR_V4MAPPED((struct in6_addr *)e->gid.raw))
        SKIP("the GID is not of an IPv4 address");
    if (!e->first)
        RECEIVE(9, 0, 2048);
    meet(e);
    if (e->first) {
        ASK(.opcode = IBV_WR_SEND, .wr_id = 1, .ah = address_of_peer(e), .qp_num = e->peer.qp_num, .qkey = 0x11111111, .length = 8);
        EXPECT(1, IBV_WC_SUCCESS);
    } else {
        EXPECT(9, IBV_WC_SUCCESS);
        EQUAL(e->memory[20] >> 4, 4);
        CHECK(memcmp(e->memory + 32, e->peer.gid.raw + 12, 4) == 0);
        CHECK(memcmp(e->memory + 36, e->gid.raw + 12, 4) == 0);
    }
    meet(e);
}

TEST(immediate, BOTH, "a datagram may carry an immediate", "IBTA 9.4.1; man ibv_post_send")
{
    connect_ud(e);
    if (!e->first)
        RECEIVE(9, 0, 2048);
    meet(e);
    if (e->first) {
        ASK(.opcode = IBV_WR_SEND_WITH_IMM, .wr_id = 1, .ah = address_of_peer(e), .qp_num = e->peer.qp_num, .qkey = 0x11111111, .imm = 0x01020304, .empty = true);
        EXPECT(1, IBV_WC_SUCCESS);
    } else {
        struct ibv_wc wc = EXPECT(9, IBV_WC_SUCCESS);

        EQUAL(wc.byte_len, GRH);
        CHECK(wc.wc_flags & IBV_WC_WITH_IMM);
        EQUAL(ntohl(wc.imm_data), 0x01020304);
    }
    meet(e);
}

TEST(answer_by_completion, BOTH, "an address made from a completion and its GRH leads back to the sender", "man ibv_create_ah_from_wc, ibv_init_ah_from_wc")
{
    connect_ud(e);
    RECEIVE(9, 0, 2048);
    meet(e);
    if (e->first) {
        ASK(.opcode = IBV_WR_SEND, .wr_id = 1, .ah = address_of_peer(e), .qp_num = e->peer.qp_num, .qkey = 0x11111111, .length = 8);
        EXPECT(1, IBV_WC_SUCCESS);
        EQUAL(EXPECT(9, IBV_WC_SUCCESS).src_qp, e->peer.qp_num);
    } else {
        struct ibv_wc wc = EXPECT(9, IBV_WC_SUCCESS);
        struct ibv_ah *ah = MADE(ibv_create_ah_from_wc(e->pd, &wc, (struct ibv_grh *)(void *)e->memory, 1), ibv_destroy_ah);

        ASK(.opcode = IBV_WR_SEND, .wr_id = 1, .ah = ah, .qp_num = wc.src_qp, .qkey = 0x11111111, .from = 4096, .length = 8);
        EXPECT(1, IBV_WC_SUCCESS);
    }
    meet(e);
}

TEST(wrong_qkey_is_dropped, BOTH, "a datagram with another Q_Key is dropped; its sender succeeds", "IBTA 10.2.5, 9.6.1.3; man ibv_post_send")
{
    connect_ud(e);
    if (!e->first)
        RECEIVE(9, 0, 2048);
    meet(e);
    if (e->first) {
        struct ibv_ah *ah = address_of_peer(e);

        ASK(.opcode = IBV_WR_SEND, .wr_id = 1, .ah = ah, .qp_num = e->peer.qp_num, .qkey = 0x22222222, .length = 500);
        EXPECT(1, IBV_WC_SUCCESS);
        send_mark(e, ah);
    } else {
        struct ibv_wc wc = EXPECT(9, IBV_WC_SUCCESS);

        EQUAL(wc.byte_len, 4 + GRH);
        EQUAL(ntohl(wc.imm_data), 0xffff);
    }
    meet(e);
}

/* Of libibverbs' drivers' own interface (driver.h), which applications have no header of. */
int ibv_resolve_eth_l2_from_gid(struct ibv_context *context, struct ibv_ah_attr *attr, uint8_t mac[6], uint16_t *vid);

TEST(link_address, SOLO, "over Ethernet each GID has an address on the link, and a group's is its own", "rdma-core: libibverbs/verbs.c; RFC 1112, 6.4")
{
    struct ibv_ah_attr attr = path_to(e, &e->gid);
    uint8_t mac[6] = {0};
    uint16_t vid = 7;

    if (e->port.link_layer != IBV_LINK_LAYER_ETHERNET)
        SKIP("not over Ethernet");
    EQUAL(ibv_resolve_eth_l2_from_gid(e->context, &attr, mac, &vid), 0);
    CHECK_THAT(mac[0] || mac[1] || mac[2] || mac[3] || mac[4] || mac[5], "no address");
    CHECK(vid == 0xffff || vid < 4096);
    const union ibv_gid group = {.raw = {[10] = 0xff, [11] = 0xff, 239, 129, 2, 3}};

    attr.grh.dgid = group;
    EQUAL(ibv_resolve_eth_l2_from_gid(e->context, &attr, mac, NULL), 0);
    CHECK(!memcmp(mac, (const uint8_t[]){0x01, 0x00, 0x5e, 1, 2, 3}, 6));
    attr.port_num = 9;
    CHECK(ibv_resolve_eth_l2_from_gid(e->context, &attr, mac, &vid) != 0);
}

TEST(controlled_qkey, BOTH, "a Q_Key with its top bit set in the WR stands for the sending QP's own", "IBTA 10.2.5; man ibv_post_send")
{
    connect_ud(e);
    if (!e->first)
        RECEIVE(9, 0, 2048);
    meet(e);
    if (e->first) {
        ASK(.opcode = IBV_WR_SEND, .wr_id = 1, .ah = address_of_peer(e), .qp_num = e->peer.qp_num, .qkey = 0x80000000, .length = 50);
        EXPECT(1, IBV_WC_SUCCESS);
    } else {
        EQUAL(EXPECT(9, IBV_WC_SUCCESS).byte_len, 50 + GRH);
    }
    meet(e);
}

TEST(no_receive_is_dropped, BOTH, "a datagram without a receive is dropped; its sender succeeds, later ones arrive", "IBTA 9.8.3.2")
{
    connect_ud(e);
    if (e->first) {
        struct ibv_ah *ah = address_of_peer(e);

        ASK(.opcode = IBV_WR_SEND, .wr_id = 1, .ah = ah, .qp_num = e->peer.qp_num, .qkey = 0x11111111, .length = 500);
        EXPECT(1, IBV_WC_SUCCESS);
        /* It has been dropped for sure once a message to ourselves has come around. */
        meet(e);
        meet(e);
        send_mark(e, ah);
    } else {
        meet(e);
        struct ibv_ah_attr self = path_to(e, &e->gid);
        struct ibv_ah *ah = MADE(ibv_create_ah(e->pd, &self), ibv_destroy_ah);
        struct plan plan = plan_of(IBV_QPT_UD);
        struct ibv_qp *other = create_qp(e, &plan);
        struct address peer = {.gid = e->gid};

        DO(to_init(e, other, &plan));
        DO(to_rtr(e, other, &plan, &peer));
        DO(receive_on(e, other, 5, 8192, 2048));
        ASK(.opcode = IBV_WR_SEND, .wr_id = 4, .ah = ah, .qp_num = other->qp_num, .qkey = 0x11111111, .length = 8);
        for (int i = 0; i < 2; i++)
            EQUAL(next_wc(e, e->cq).status, IBV_WC_SUCCESS);
        RECEIVE(9, 0, 2048);
        meet(e);
        EQUAL(EXPECT(9, IBV_WC_SUCCESS).byte_len, 4 + GRH);
        EQUAL(state_of(e, e->qp), IBV_QPS_RTS);
    }
    meet(e);
}

TEST(longer_than_the_mtu, BOTH, "a datagram longer than the path MTU is not sent: refused, or LOC_LEN_ERR", "IBTA 9.8.3, 11.6.2")
{
    connect_ud(e);
    if (!e->first)
        RECEIVE(9, 0, 65536);
    meet(e);
    if (e->first) {
        struct ibv_ah *ah = address_of_peer(e);
        uint32_t mtu = 128u << e->port.active_mtu;
        int error = ask(e, (struct request){.opcode = IBV_WR_SEND, .wr_id = 1, .ah = ah, .qp_num = e->peer.qp_num, .qkey = 0x11111111, .length = mtu + 1});

        if (error)
            EQUAL(error, EINVAL);
        else
            EXPECT(1, IBV_WC_LOC_LEN_ERR);
    }
    meet(e);
    if (!e->first) {
        EXPECT_NOTHING();
        UNTOUCHED(0, MEMORY);
    }
}

TEST(as_long_as_the_mtu, BOTH, "a datagram as long as the port's active MTU arrives", "IBTA 9.8.3; man ibv_query_port: active_mtu")
{
    connect_ud(e);
    uint32_t mtu = 128u << e->port.active_mtu;

    if (!e->first)
        RECEIVE(9, 0, mtu + GRH);
    meet(e);
    if (e->first) {
        ASK(.opcode = IBV_WR_SEND, .wr_id = 1, .ah = address_of_peer(e), .qp_num = e->peer.qp_num, .qkey = 0x11111111, .length = mtu);
        EXPECT(1, IBV_WC_SUCCESS);
    } else {
        EQUAL(EXPECT(9, IBV_WC_SUCCESS).byte_len, mtu + GRH);
        ARRIVED(GRH, mtu, 0);
    }
    meet(e);
}

TEST(only_sends, BOTH, "WRITE, READ and atomics on a UD QP are refused at once, or LOC_QP_OP_ERR", "IBTA 9.4 table of supported operations; man ibv_post_send")
{
    static const enum ibv_wr_opcode opcodes[] = {IBV_WR_RDMA_WRITE, IBV_WR_RDMA_READ, IBV_WR_ATOMIC_FETCH_AND_ADD};

    connect_ud(e);
    for (unsigned i = 0; e->first && i < 3; i++) {
        int error = ask(e, (struct request){.opcode = opcodes[i], .wr_id = i, .length = 8, .ah = address_of_peer(e), .qp_num = e->peer.qp_num, .qkey = 0x11111111});

        if (error) {
            CHECK(error == EINVAL || error == EOPNOTSUPP);
            continue;
        }
        EXPECT(i, IBV_WC_LOC_QP_OP_ERR);
        break;
    }
    meet(e);
    if (!e->first)
        UNTOUCHED(0, MEMORY);
}

TEST(sqe, BOTH, "a local error on a UD QP stops its send queue only (SQE); back in RTS it goes on", "IBTA 10.3.1 (Send Queue Error)")
{
    connect_ud(e);
    if (!e->first) {
        RECEIVE(9, 0, 2048);
        meet(e);
        EXPECT(9, IBV_WC_SUCCESS);
        ARRIVED(GRH, 16, 0);
    } else {
        struct ibv_ah *ah = address_of_peer(e);
        struct ibv_qp_attr attr = {.qp_state = IBV_QPS_RTS, .cur_qp_state = IBV_QPS_SQE};

        meet(e);
        ASK(.opcode = IBV_WR_SEND, .wr_id = 1, .ah = ah, .qp_num = e->peer.qp_num, .qkey = 0x11111111, .length = 16, .lkey = e->mr->lkey ^ 0x5a0000);
        EXPECT(1, IBV_WC_LOC_PROT_ERR);
        await_state(e, e->qp, IBV_QPS_SQE);
        ASK(.opcode = IBV_WR_SEND, .wr_id = 2, .ah = ah, .qp_num = e->peer.qp_num, .qkey = 0x11111111, .length = 16);
        EXPECT(2, IBV_WC_WR_FLUSH_ERR);
        DO(ibv_modify_qp(e->qp, &attr, IBV_QP_STATE | IBV_QP_CUR_STATE));
        ASK(.opcode = IBV_WR_SEND, .wr_id = 3, .ah = ah, .qp_num = e->peer.qp_num, .qkey = 0x11111111, .length = 16);
        EXPECT(3, IBV_WC_SUCCESS);
    }
    meet(e);
}

TEST(to_several, BOTH, "one UD QP sends to several; each gets its own", "IBTA 10.2.4")
{
    connect_ud(e);
    struct plan plan = plan_of(IBV_QPT_UD);
    struct ibv_qp *qps[4];
    uint32_t numbers[4], theirs[4];

    for (int i = 0; i < 4; i++) {
        qps[i] = create_qp(e, &plan);
        join(e, qps[i], &plan);
        numbers[i] = qps[i]->qp_num;
        if (!e->first)
            DO(receive_on(e, qps[i], (uint64_t)i, 4096 * (uint32_t)i, 2048));
    }
    exchange(e, numbers, theirs, sizeof(numbers));
    if (e->first) {
        struct ibv_ah *ah = address_of_peer(e);

        for (uint32_t i = 0; i < 4; i++) {
            ASK(.opcode = IBV_WR_SEND, .wr_id = i, .ah = ah, .qp_num = theirs[3 - i], .qkey = 0x11111111, .from = i, .length = 64);
            EXPECT(i, IBV_WC_SUCCESS);
        }
    } else {
        for (uint32_t i = 0; i < 4; i++) {
            struct ibv_wc wc = next_wc(e, e->cq);

            CHECK(wc.wr_id < 4 && wc.qp_num == numbers[wc.wr_id] && wc.status == IBV_WC_SUCCESS);
            ARRIVED(4096 * wc.wr_id + GRH, 64, 3 - wc.wr_id);
        }
    }
    meet(e);
}

TEST(address_to_itself, SOLO, "a UD QP can send to another of the same end", "IBTA 10.2.4 (loopback)")
{
    struct plan plan = plan_of(IBV_QPT_UD);

    set_up(e, &plan);
    struct ibv_qp *one = create_qp(e, &plan), *other = create_qp(e, &plan);

    join_here(e, one, other, &plan);
    DO(receive_on(e, other, 9, 0, 2048));
    ASK(.opcode = IBV_WR_SEND, .qp = one, .wr_id = 1, .ah = address_of_peer(e), .qp_num = other->qp_num, .qkey = 0x11111111, .from = 8192, .length = 64);
    for (int i = 0; i < 2; i++)
        EQUAL(next_wc(e, e->cq).status, IBV_WC_SUCCESS);
    ARRIVED(GRH, 64, 8192);
}

TEST(bad_address, SOLO, "no address is made of a port or GID index that isn't there, or without a GID", "man ibv_create_ah; IBTA 11.2.3.1")
{
    struct plan plan = plan_of(IBV_QPT_UD);

    set_up(e, &plan);
    struct ibv_ah_attr cases[3] = {path_to(e, &e->gid), path_to(e, &e->gid), path_to(e, &e->gid)};

    cases[0].port_num = 9;
    cases[1].grh.sgid_index = 250;
    cases[2].is_global = 0;
    for (int i = 0; i < 3; i++) {
        errno = 0;
        struct ibv_ah *ah = ibv_create_ah(e->pd, &cases[i]);

        if (ah)
            ibv_destroy_ah(ah);
        if (lacking(errno))
            SKIP("ibv_create_ah: %s", strerror(errno));
        CHECK_THAT(!ah, "case %d", i);
        CHECK_THAT(errno == EINVAL || errno == ENODATA, "case %d: %s", i, strerror(errno));
    }
}

/* ---- multicast -------------------------------------------------------------------------- */

static union ibv_gid group(struct end *e)
{
    union ibv_gid gid = {{0}};

    if (IN6_IS_ADDR_V4MAPPED((struct in6_addr *)e->gid.raw)) {
        gid.raw[10] = gid.raw[11] = 0xff;
        gid.raw[12] = 239;
        gid.raw[13] = 77;
        gid.raw[15] = 5;
    } else {
        gid.raw[0] = 0xff;
        gid.raw[1] = 0x0e;
        gid.raw[15] = 5;
    }
    return gid;
}

TEST(multicast, BOTH, "a datagram to a group reaches each QP that is attached, and none that was detached", "IBTA 10.5; man ibv_attach_mcast")
{
    connect_ud(e);
    union ibv_gid gid = group(e);
    struct plan plan = plan_of(IBV_QPT_UD);
    struct ibv_qp *qps[3];

    if (e->device.max_mcast_grp == 0)
        SKIP("max_mcast_grp: 0");
    for (int i = 0; i < 3; i++) {
        qps[i] = create_qp(e, &plan);
        join(e, qps[i], &plan);
    }
    if (!e->first) {
        for (uint32_t i = 0; i < 3; i++) {
            DO(ibv_attach_mcast(qps[i], &gid, 0));
            DO(receive_on(e, qps[i], i, 4096 * i, 2048));
        }
        DO(ibv_detach_mcast(qps[1], &gid, 0));
    }
    meet(e);
    if (e->first) {
        struct ibv_ah_attr attr = path_to(e, &gid);
        struct ibv_ah *ah = MADE(ibv_create_ah(e->pd, &attr), ibv_destroy_ah);

        ASK(.opcode = IBV_WR_SEND, .wr_id = 1, .ah = ah, .qp_num = 0xffffff, .qkey = 0x11111111, .length = 64);
        EXPECT(1, IBV_WC_SUCCESS);
    } else {
        unsigned seen = 0;

        for (int i = 0; i < 2; i++) {
            struct ibv_wc wc = next_wc(e, e->cq);

            CHECK(wc.status == IBV_WC_SUCCESS && wc.wr_id < 3);
            EQUAL(wc.byte_len, 64 + GRH);
            ARRIVED(4096 * wc.wr_id + GRH, 64, 0);
            seen |= 1u << wc.wr_id;
        }
        EQUAL(seen, 5);
        UNTOUCHED(4096, 2048);
        DO(ibv_detach_mcast(qps[0], &gid, 0));
        DO(ibv_detach_mcast(qps[2], &gid, 0));
    }
    meet(e);
}

TEST(attach_needs_ud, SOLO, "only UD QPs are attached to groups, and only to multicast GIDs: EINVAL", "man ibv_attach_mcast")
{
    struct plan plan = plan_of(IBV_QPT_RC), datagrams = plan_of(IBV_QPT_UD);

    if (e->device.max_mcast_grp == 0)
        SKIP("max_mcast_grp: 0");
    set_up(e, &plan);
    union ibv_gid gid = group(e);
    struct ibv_qp *rc = create_qp(e, &plan), *ud = create_qp(e, &datagrams);

    DO(to_init(e, ud, &datagrams));
    REFUSED(ibv_attach_mcast(rc, &gid, 0), EINVAL);
    REFUSED(ibv_attach_mcast(ud, &e->gid, 0), EINVAL);
    REFUSED(ibv_detach_mcast(ud, &gid, 0), EINVAL);
}
