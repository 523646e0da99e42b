/* SPDX-License-Identifier: Apache-2.0 */
/* Shared receive queues. */
#include <arpa/inet.h>

#include "suite.h"

static struct plan plan_with_srq(struct end *e)
{
    struct plan plan = plan_of(IBV_QPT_RC);

    if (e->device.max_srq == 0)
        SKIP("max_srq: 0");
    plan.srq_wr = DEPTH;
    return plan;
}

static void connect_srq(struct end *e)
{
    struct plan plan = plan_with_srq(e);

    connect_as(e, &plan);
}

TEST(what_it_says, SOLO, "an SRQ has at least the room asked for; ibv_query_srq gives it", "man ibv_create_srq, ibv_query_srq")
{
    struct plan plan = plan_with_srq(e);
    struct ibv_srq_init_attr init = {.srq_context = e, .attr = {.max_wr = 50, .max_sge = 3}};
    struct ibv_srq_attr attr;

    plan.srq_wr = 0;
    set_up(e, &plan);
    struct ibv_srq *srq = MADE(ibv_create_srq(e->pd, &init), ibv_destroy_srq);

    CHECK(srq->srq_context == e && srq->pd == e->pd && srq->context == e->context);
    CHECK(init.attr.max_wr >= 50 && init.attr.max_sge >= 3);
    DO(ibv_query_srq(srq, &attr));
    CHECK(attr.max_wr >= 50 && attr.max_sge >= 3);
    EQUAL(attr.srq_limit, 0);
}

TEST(out_of_range, SOLO, "an SRQ beyond the device's limits is refused: EINVAL", "man ibv_create_srq; ibv_query_device: max_srq_wr, max_srq_sge")
{
    struct plan plan = plan_with_srq(e);
    struct ibv_srq_init_attr wrs = {.attr = {.max_wr = (uint32_t)e->device.max_srq_wr + 1, .max_sge = 1}};
    struct ibv_srq_init_attr sges = {.attr = {.max_wr = 1, .max_sge = (uint32_t)e->device.max_srq_sge + 1}};

    plan.srq_wr = 0;
    set_up(e, &plan);
    NO_OBJECT(ibv_create_srq(e->pd, &wrs), EINVAL);
    NO_OBJECT(ibv_create_srq(e->pd, &sges), EINVAL);
}

TEST(receives_are_shared, BOTH, "messages of several QPs take receives of one SRQ in the order of posting", "IBTA 10.2.9; man ibv_create_srq")
{
    struct plan plan = plan_with_srq(e);

    connect_as(e, &plan);
    struct ibv_qp *second = create_qp(e, &plan);

    join(e, second, &plan);
    if (!e->first)
        for (uint64_t i = 0; i < 20; i++)
            RECEIVE(i, 1024 * (uint32_t)i, 1024);
    meet(e);
    if (e->first) {
        for (uint32_t i = 0; i < 20; i++) {
            ASK(.opcode = IBV_WR_SEND, .qp = i % 2 ? second : e->qp, .wr_id = i, .from = i, .length = 100);
            EXPECT(i, IBV_WC_SUCCESS);
        }
    } else {
        for (uint32_t i = 0; i < 20; i++) {
            struct ibv_wc wc = EXPECT(i, IBV_WC_SUCCESS);

            EQUAL(wc.qp_num, i % 2 ? second->qp_num : e->qp->qp_num);
            EQUAL(wc.byte_len, 100);
            ARRIVED(1024 * i, 100, i);
        }
    }
    meet(e);
}

TEST(with_immediate, BOTH, "WRITE with immediate takes a receive of the SRQ", "IBTA 9.4.3, 10.2.9")
{
    connect_srq(e);
    if (!e->first)
        RECEIVE(9, 0, 16);
    meet(e);
    if (e->first) {
        ASK(.opcode = IBV_WR_RDMA_WRITE_WITH_IMM, .wr_id = 1, .length = 100, .to = 4096, .imm = 5);
        EXPECT(1, IBV_WC_SUCCESS);
    } else {
        struct ibv_wc wc = EXPECT(9, IBV_WC_SUCCESS);

        EQUAL(wc.opcode, IBV_WC_RECV_RDMA_WITH_IMM);
        EQUAL(ntohl(wc.imm_data), 5);
        ARRIVED(4096, 100, 0);
    }
    meet(e);
}

TEST(own_receives_refused, SOLO, "ibv_post_recv on a QP with an SRQ is refused: EINVAL", "man ibv_post_recv; IBTA 10.2.9")
{
    struct plan plan = plan_with_srq(e);
    struct ibv_recv_wr *bad, wr = {.num_sge = 0};

    set_up(e, &plan);
    e->qp = create_qp(e, &plan);
    CHECK(e->qp->srq == e->srq);
    DO(to_init(e, e->qp, &plan));
    REFUSED(ibv_post_recv(e->qp, &wr, &bad), EINVAL);
}

TEST(full, SOLO, "an SRQ takes max_wr receives, then ENOMEM and bad_wr", "man ibv_post_srq_recv: ENOMEM")
{
    struct plan plan = plan_with_srq(e);
    struct ibv_srq_attr attr;
    struct ibv_recv_wr *bad = NULL, wr = {.num_sge = 0};

    set_up(e, &plan);
    DO(ibv_query_srq(e->srq, &attr));
    for (uint32_t i = 0; i < attr.max_wr; i++)
        DO(ibv_post_srq_recv(e->srq, &wr, &bad));
    REFUSED(ibv_post_srq_recv(e->srq, &wr, &bad), ENOMEM);
    CHECK(bad == &wr);
}

TEST(slots_come_back, BOTH, "room of an SRQ comes back as its completions are polled, over many rounds", "man ibv_post_srq_recv")
{
    connect_srq(e);
    for (uint32_t round = 0; round < 4; round++) {
        if (!e->first)
            for (uint64_t i = 0; i < DEPTH; i++)
                RECEIVE(i, 0, 64);
        meet(e);
        for (uint64_t i = 0; i < DEPTH; i++) {
            if (e->first)
                ASK(.opcode = IBV_WR_SEND, .wr_id = i, .length = 8);
            EXPECT(i, IBV_WC_SUCCESS);
        }
        meet(e);
    }
}

TEST(too_many_sges, SOLO, "a receive with more SGEs than max_sge is refused: EINVAL", "man ibv_post_srq_recv: EINVAL")
{
    struct plan plan = plan_with_srq(e);
    struct ibv_srq_attr attr;
    struct ibv_recv_wr *bad;

    set_up(e, &plan);
    DO(ibv_query_srq(e->srq, &attr));
    struct ibv_recv_wr wr = {.num_sge = (int)attr.max_sge + 1};

    REFUSED(ibv_post_srq_recv(e->srq, &wr, &bad), EINVAL);
}

TEST(limit_event, BOTH, "when fewer receives than the limit are left, SRQ_LIMIT_REACHED comes, once, and disarms", "IBTA 10.2.9.1, 11.6.3.1; man ibv_modify_srq")
{
    connect_srq(e);
    if (!e->first) {
        struct ibv_srq_attr attr = {.srq_limit = 3};

        for (uint64_t i = 0; i < 6; i++)
            RECEIVE(i, 0, 64);
        DO(ibv_modify_srq(e->srq, &attr, IBV_SRQ_LIMIT));
        DO(ibv_query_srq(e->srq, &attr));
        EQUAL(attr.srq_limit, 3);
        CHECK(!event_waits(e));
    }
    meet(e);
    for (uint64_t i = 0; i < 3; i++) {
        if (e->first)
            ASK(.opcode = IBV_WR_SEND, .wr_id = i, .length = 8);
        EXPECT(i, IBV_WC_SUCCESS);
    }
    meet(e);
    /* Three are left: not fewer than three. */
    if (!e->first)
        CHECK(!event_waits(e));
    meet(e);
    for (uint64_t i = 3; i < 6; i++) {
        if (e->first)
            ASK(.opcode = IBV_WR_SEND, .wr_id = i, .length = 8);
        EXPECT(i, IBV_WC_SUCCESS);
    }
    meet(e);
    if (!e->first) {
        struct ibv_srq_attr attr;

        await_event(e, IBV_EVENT_SRQ_LIMIT_REACHED, e->srq);
        CHECK(!event_waits(e));
        DO(ibv_query_srq(e->srq, &attr));
        EQUAL(attr.srq_limit, 0);
    }
}

TEST(limit_out_of_range, SOLO, "a limit beyond the SRQ's size is refused: EINVAL", "man ibv_modify_srq")
{
    struct plan plan = plan_with_srq(e);
    struct ibv_srq_attr attr;

    set_up(e, &plan);
    DO(ibv_query_srq(e->srq, &attr));
    attr.srq_limit = attr.max_wr + 1;
    REFUSED(ibv_modify_srq(e->srq, &attr, IBV_SRQ_LIMIT), EINVAL);
}

TEST(resize, SOLO, "an SRQ can be made larger where the device says so", "man ibv_modify_srq: IBV_SRQ_MAX_WR; device_cap_flags: IBV_DEVICE_SRQ_RESIZE")
{
    struct plan plan = plan_with_srq(e);
    struct ibv_srq_attr attr = {.max_wr = 2 * DEPTH + 1};
    struct ibv_recv_wr *bad, wr = {.num_sge = 0};

    if (!(e->device.device_cap_flags & IBV_DEVICE_SRQ_RESIZE))
        SKIP("device_cap_flags: no IBV_DEVICE_SRQ_RESIZE");
    set_up(e, &plan);
    for (uint64_t i = 0; i < DEPTH; i++)
        RECEIVE(i, 0, 64);
    DO(ibv_modify_srq(e->srq, &attr, IBV_SRQ_MAX_WR));
    DO(ibv_query_srq(e->srq, &attr));
    CHECK(attr.max_wr >= 2 * DEPTH + 1);
    for (uint64_t i = DEPTH; i < 2 * DEPTH + 1; i++)
        DO(ibv_post_srq_recv(e->srq, &wr, &bad));
}

TEST(last_wqe, BOTH, "a QP with an SRQ that goes to ERR tells LAST_WQE_REACHED; the SRQ's receives stay for others", "IBTA 11.6.3.1, 10.2.9; man ibv_get_async_event")
{
    struct plan plan = plan_with_srq(e);

    connect_as(e, &plan);
    struct ibv_qp *second = create_qp(e, &plan);

    join(e, second, &plan);
    if (!e->first) {
        RECEIVE(1, 0, 64);
        DO(to_state(e->qp, IBV_QPS_ERR));
        await_event(e, IBV_EVENT_QP_LAST_WQE_REACHED, e->qp);
        EXPECT_NOTHING();
    }
    meet(e);
    if (e->first) {
        ASK(.opcode = IBV_WR_SEND, .qp = second, .wr_id = 7, .length = 64);
        EXPECT(7, IBV_WC_SUCCESS);
    } else {
        EXPECT(1, IBV_WC_SUCCESS);
        ARRIVED(0, 64, 0);
    }
    meet(e);
}

TEST(empty_is_rnr, BOTH, "an empty SRQ is receiver not ready: the SEND waits for a receive", "IBTA 9.7.5.2.8, 10.2.9")
{
    connect_srq(e);
    if (e->first) {
        struct ibv_wc wc;

        ASK(.opcode = IBV_WR_SEND, .wr_id = 1, .length = 64);
        for (int i = 0; i < 1000; i++)
            CHECK(ibv_poll_cq(e->cq, 1, &wc) == 0);
        meet(e);
        EXPECT(1, IBV_WC_SUCCESS);
    } else {
        meet(e);
        RECEIVE(9, 0, 64);
        EXPECT(9, IBV_WC_SUCCESS);
        ARRIVED(0, 64, 0);
    }
    meet(e);
}

TEST(in_use, SOLO, "an SRQ that a QP uses can't be destroyed: EBUSY", "man ibv_destroy_srq")
{
    struct plan plan = plan_with_srq(e);

    set_up(e, &plan);
    e->qp = create_qp(e, &plan);
    REFUSED(drop(e, e->srq), EBUSY);
    DO(drop(e, e->qp));
    DO(drop(e, e->srq));
}
