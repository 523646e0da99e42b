/* SPDX-License-Identifier: Apache-2.0 */
/* What goes wrong on a reliable connection: the statuses at both ends, the flush and the events. */
#include "suite.h"

/* A request that the responder refuses: nothing is written, and both QPs end up in ERR. */
static void refused(struct end *e, struct request request, enum ibv_wc_status status)
{
    if (e->first) {
        request.wr_id = 7;
        DO(ask(e, request));
        EXPECT(7, status);
        await_state(e, e->qp, IBV_QPS_ERR);
    } else {
        await_state(e, e->qp, IBV_QPS_ERR);
        UNTOUCHED(0, MEMORY);
    }
    meet(e);
}

TEST(unknown_rkey, BOTH, "an rkey that names nothing: REM_ACCESS_ERR, and both QPs go to ERR", "IBTA 9.7.4.1.5, 11.6.2")
{
    connect_rc(e);
    refused(e, (struct request){.opcode = IBV_WR_RDMA_WRITE, .length = 64, .rkey = e->peer.rkey ^ 0x5a0000}, IBV_WC_REM_ACCESS_ERR);
}

TEST(access_error_event, BOTH, "a request without the right to it makes QP_ACCESS_ERR at the responder", "IBTA 11.6.3.2; man ibv_get_async_event")
{
    connect_rc(e);
    if (e->first) {
        ASK(.opcode = IBV_WR_RDMA_WRITE, .wr_id = 7, .length = 64, .rkey = e->peer.rkey ^ 0x5a0000);
        EXPECT(7, IBV_WC_REM_ACCESS_ERR);
    } else {
        await_event(e, IBV_EVENT_QP_ACCESS_ERR, e->qp);
    }
    meet(e);
}

TEST(before_the_region, BOTH, "a WRITE that begins before the region: REM_ACCESS_ERR, not a byte written", "IBTA 9.7.4.1.5")
{
    connect_rc(e);
    refused(e, (struct request){.opcode = IBV_WR_RDMA_WRITE, .length = 64, .to = (uint64_t)-1}, IBV_WC_REM_ACCESS_ERR);
}

TEST(beyond_the_region, BOTH, "a WRITE that ends beyond the region: REM_ACCESS_ERR, not a byte written", "IBTA 9.7.4.1.5")
{
    connect_rc(e);
    refused(e, (struct request){.opcode = IBV_WR_RDMA_WRITE, .length = 64, .to = MEMORY - 63}, IBV_WC_REM_ACCESS_ERR);
}

TEST(beyond_the_region_by_much, BOTH, "a long WRITE that ends beyond the region writes nothing before it fails", "IBTA 9.7.4.1.5")
{
    connect_rc(e);
    refused(e, (struct request){.opcode = IBV_WR_RDMA_WRITE, .length = 65536, .to = MEMORY - 65535}, IBV_WC_REM_ACCESS_ERR);
}

TEST(address_that_wraps, BOTH, "an address range that wraps around is no access: REM_ACCESS_ERR", "IBTA 9.7.4.1.5")
{
    connect_rc(e);
    refused(e, (struct request){.opcode = IBV_WR_RDMA_READ, .length = 64, .to = UINT64_MAX - 31 - e->peer.memory},
            IBV_WC_REM_ACCESS_ERR);
}

static void connect_with_access(struct end *e, unsigned mr_access, unsigned qp_access)
{
    struct plan plan = plan_of(IBV_QPT_RC);

    if (!e->first) {
        plan.mr_access = mr_access;
        plan.qp_access = qp_access;
    }
    connect_as(e, &plan);
}

TEST(region_without_write, BOTH, "a WRITE to a region without REMOTE_WRITE: REM_ACCESS_ERR", "IBTA 10.6.3.1; man ibv_reg_mr")
{
    connect_with_access(e, IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_READ, ALL_ACCESS);
    refused(e, (struct request){.opcode = IBV_WR_RDMA_WRITE, .length = 64}, IBV_WC_REM_ACCESS_ERR);
}

TEST(region_without_read, BOTH, "a READ of a region without REMOTE_READ: REM_ACCESS_ERR", "IBTA 10.6.3.1; man ibv_reg_mr")
{
    connect_with_access(e, IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_WRITE, ALL_ACCESS);
    refused(e, (struct request){.opcode = IBV_WR_RDMA_READ, .length = 64}, IBV_WC_REM_ACCESS_ERR);
}

TEST(region_without_atomic, BOTH, "an atomic on a region without REMOTE_ATOMIC: REM_ACCESS_ERR", "IBTA 10.6.3.1; man ibv_reg_mr")
{
    connect_with_access(e, IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_WRITE | IBV_ACCESS_REMOTE_READ, ALL_ACCESS);
    refused(e, (struct request){.opcode = IBV_WR_ATOMIC_FETCH_AND_ADD, .length = 8}, IBV_WC_REM_ACCESS_ERR);
}

TEST(qp_without_write, BOTH, "a WRITE to a QP without REMOTE_WRITE in its access flags is refused", "IBTA 10.2.4, 9.7.4.1.5; man ibv_modify_qp: qp_access_flags")
{
    connect_with_access(e, ALL_ACCESS, IBV_ACCESS_REMOTE_READ);
    if (e->first) {
        ASK(.opcode = IBV_WR_RDMA_WRITE, .wr_id = 7, .length = 64);
        struct ibv_wc wc = next_wc(e, e->cq);

        CHECK(wc.status == IBV_WC_REM_ACCESS_ERR || wc.status == IBV_WC_REM_INV_REQ_ERR);
    }
    meet(e);
    if (!e->first)
        UNTOUCHED(0, MEMORY);
}

TEST(qp_without_read, BOTH, "a READ at a QP without REMOTE_READ in its access flags is refused", "IBTA 10.2.4, 9.7.4.1.5; man ibv_modify_qp: qp_access_flags")
{
    connect_with_access(e, ALL_ACCESS, IBV_ACCESS_REMOTE_WRITE);
    if (e->first) {
        ASK(.opcode = IBV_WR_RDMA_READ, .wr_id = 7, .length = 64);
        struct ibv_wc wc = next_wc(e, e->cq);

        CHECK(wc.status == IBV_WC_REM_ACCESS_ERR || wc.status == IBV_WC_REM_INV_REQ_ERR);
        ARRIVED(0, 64, 0);
    }
    meet(e);
}

TEST(key_of_another_pd, BOTH, "a key of another PD gives no access: REM_ACCESS_ERR", "IBTA 10.6.3.4, 9.7.4.1.5")
{
    connect_rc(e);
    struct ibv_pd *other = MADE(ibv_alloc_pd(e->context), ibv_dealloc_pd);
    struct ibv_mr *mr = MADE(ibv_reg_mr(other, e->memory, MEMORY, ALL_ACCESS), ibv_dereg_mr);

    exchange(e, &mr->rkey, &e->peer.rkey, sizeof(mr->rkey));
    refused(e, (struct request){.opcode = IBV_WR_RDMA_WRITE, .length = 64}, IBV_WC_REM_ACCESS_ERR);
}

TEST(key_of_yore, BOTH, "a key that was deregistered gives no access: REM_ACCESS_ERR", "IBTA 10.6.6.2")
{
    connect_rc(e);
    struct ibv_mr *mr = reg(e, e->memory, MEMORY, ALL_ACCESS);

    exchange(e, &mr->rkey, &e->peer.rkey, sizeof(mr->rkey));
    DO(drop(e, mr));
    meet(e);
    refused(e, (struct request){.opcode = IBV_WR_RDMA_WRITE, .length = 64}, IBV_WC_REM_ACCESS_ERR);
}

/* ---- local errors ------------------------------------------------------------------------ */

static void local_protection(struct end *e, struct request request)
{
    if (e->first) {
        request.wr_id = 7;
        DO(ask(e, request));
        EXPECT(7, IBV_WC_LOC_PROT_ERR);
        await_state(e, e->qp, IBV_QPS_ERR);
    }
    meet(e);
    if (!e->first) {
        UNTOUCHED(0, MEMORY);
        CHECK_THAT(!event_waits(e), "an event at an end that did nothing");
    }
}

TEST(unknown_lkey, BOTH, "an lkey that names nothing: LOC_PROT_ERR, and the other end hears nothing of it", "IBTA 10.8.5, 11.6.2")
{
    connect_rc(e);
    local_protection(e, (struct request){.opcode = IBV_WR_RDMA_WRITE, .length = 64, .lkey = e->mr->lkey ^ 0x5a0000});
}

TEST(local_range, BOTH, "an SGE beyond its region: LOC_PROT_ERR", "IBTA 10.6.3.1, 11.6.2")
{
    connect_rc(e);
    local_protection(e, (struct request){.opcode = IBV_WR_RDMA_WRITE, .from = MEMORY - 63, .length = 64});
}

TEST(local_key_of_another_pd, BOTH, "an SGE with a key of another PD: LOC_PROT_ERR", "IBTA 10.6.3.4")
{
    connect_rc(e);
    struct ibv_pd *other = MADE(ibv_alloc_pd(e->context), ibv_dealloc_pd);
    struct ibv_mr *mr = MADE(ibv_reg_mr(other, e->memory, MEMORY, ALL_ACCESS), ibv_dereg_mr);

    local_protection(e, (struct request){.opcode = IBV_WR_RDMA_WRITE, .length = 64, .lkey = mr->lkey});
}

TEST(read_into_read_only, BOTH, "a READ into a region without LOCAL_WRITE: LOC_PROT_ERR, nothing written", "IBTA 10.6.3.1; man ibv_reg_mr")
{
    connect_rc(e);
    struct ibv_mr *mr = reg(e, e->memory, MEMORY, 0);

    if (e->first) {
        ASK(.opcode = IBV_WR_RDMA_READ, .wr_id = 1, .length = 64, .lkey = mr->lkey);
        EXPECT(1, IBV_WC_LOC_PROT_ERR);
        ARRIVED(0, 64, 0);
    }
    meet(e);
}

TEST(receive_into_read_only, BOTH, "a SEND into a receive without LOCAL_WRITE: LOC_PROT_ERR there, REM_OP_ERR here", "IBTA 9.7.4.1.6, 11.6.2")
{
    connect_rc(e);
    struct ibv_mr *mr = reg(e, e->memory, MEMORY, 0);

    if (!e->first) {
        struct ibv_sge sge = {(uintptr_t)e->memory, 64, mr->lkey};
        struct ibv_recv_wr *bad, wr = {.wr_id = 9, .sg_list = &sge, .num_sge = 1};

        DO(ibv_post_recv(e->qp, &wr, &bad));
    }
    meet(e);
    if (e->first) {
        ASK(.opcode = IBV_WR_SEND, .wr_id = 1, .length = 64);
        EXPECT(1, IBV_WC_REM_OP_ERR);
    } else {
        EXPECT(9, IBV_WC_LOC_PROT_ERR);
        UNTOUCHED(0, MEMORY);
    }
    meet(e);
}

TEST(receive_too_short, BOTH, "a SEND longer than the receive: LOC_LEN_ERR there, REM_INV_REQ_ERR here", "IBTA 9.7.4.1.7, 11.6.2")
{
    connect_rc(e);
    if (!e->first)
        RECEIVE(9, 0, 63);
    meet(e);
    if (e->first) {
        ASK(.opcode = IBV_WR_SEND, .wr_id = 1, .length = 64);
        EXPECT(1, IBV_WC_REM_INV_REQ_ERR);
        await_state(e, e->qp, IBV_QPS_ERR);
    } else {
        EXPECT(9, IBV_WC_LOC_LEN_ERR);
        await_state(e, e->qp, IBV_QPS_ERR);
        /* Beyond the receive nothing is ever written. */
        UNTOUCHED(63, MEMORY - 63);
    }
    meet(e);
}

/* ---- flush -------------------------------------------------------------------------------- */

TEST(flush_in_order, BOTH, "after an error what was posted later is flushed in order, unsignaled WRs as well", "IBTA 10.8.3.1, 10.8.6, 10.3.1")
{
    connect_rc(e);
    if (e->first) {
        for (uint64_t i = 0; i < 3; i++)
            RECEIVE(100 + i, 0, 8);
        ASK(.opcode = IBV_WR_RDMA_WRITE, .wr_id = 1, .length = 8);
        ASK(.opcode = IBV_WR_RDMA_WRITE, .wr_id = 2, .length = 8, .lkey = e->mr->lkey ^ 0x5a0000, .quiet = true);
        ASK(.opcode = IBV_WR_RDMA_WRITE, .wr_id = 3, .length = 8);
        ASK(.opcode = IBV_WR_RDMA_READ, .wr_id = 4, .length = 8, .quiet = true);
        ASK(.opcode = IBV_WR_SEND, .wr_id = 5, .length = 8);
        uint64_t send = 1, receive = 100;

        while (send < 6 || receive < 103) {
            struct ibv_wc wc = next_wc(e, e->cq);

            if (wc.wr_id >= 100) {
                EQUAL(wc.wr_id, receive++);
                EQUAL(wc.status, IBV_WC_WR_FLUSH_ERR);
                continue;
            }
            EQUAL(wc.wr_id, send);
            EQUAL(wc.status, send == 1 ? IBV_WC_SUCCESS : send == 2 ? IBV_WC_LOC_PROT_ERR : IBV_WC_WR_FLUSH_ERR);
            EQUAL(wc.qp_num, e->qp->qp_num);
            send++;
        }
        EXPECT_NOTHING();
    }
    meet(e);
}

TEST(error_by_hand, BOTH, "ibv_modify_qp to ERR flushes what is posted; the other end is not told", "IBTA 10.3.1; man ibv_modify_qp")
{
    connect_rc(e);
    if (!e->first) {
        for (uint64_t i = 0; i < 4; i++)
            RECEIVE(i, 0, 8);
        DO(to_state(e->qp, IBV_QPS_ERR));
        for (uint64_t i = 0; i < 4; i++)
            EXPECT(i, IBV_WC_WR_FLUSH_ERR);
    }
    meet(e);
    if (e->first) {
        EQUAL(state_of(e, e->qp), IBV_QPS_RTS);
        EXPECT_NOTHING();
        CHECK(!event_waits(e));
    }
    meet(e);
}

/* ---- nobody answers -------------------------------------------------------------------------- */

static struct plan impatient(void)
{
    struct plan plan = plan_of(IBV_QPT_RC);

    plan.timeout = 10;
    plan.retry_cnt = 1;
    return plan;
}

TEST(peer_in_error, BOTH, "requests to a QP in ERR run into the retry limit: RETRY_EXC_ERR", "IBTA 9.7.6.1.3, 11.6.2")
{
    struct plan plan = impatient();

    connect_as(e, &plan);
    if (!e->first)
        DO(to_state(e->qp, IBV_QPS_ERR));
    meet(e);
    if (e->first) {
        ASK(.opcode = IBV_WR_RDMA_WRITE, .wr_id = 1, .length = 8);
        ASK(.opcode = IBV_WR_RDMA_WRITE, .wr_id = 2, .length = 8);
        EXPECT(1, IBV_WC_RETRY_EXC_ERR);
        EXPECT(2, IBV_WC_WR_FLUSH_ERR);
        await_state(e, e->qp, IBV_QPS_ERR);
    }
    meet(e);
}

TEST(peer_destroyed, BOTH, "requests to a QP that was destroyed run into the retry limit: RETRY_EXC_ERR", "IBTA 9.7.6.1.3, 11.6.2")
{
    struct plan plan = impatient();

    connect_as(e, &plan);
    if (!e->first)
        DO(drop(e, e->qp));
    meet(e);
    if (e->first) {
        ASK(.opcode = IBV_WR_SEND, .wr_id = 1, .length = 8);
        EXPECT(1, IBV_WC_RETRY_EXC_ERR);
    }
    meet(e);
}

TEST(nobody_there, SOLO, "requests to a QP number that nobody has run into the retry limit: RETRY_EXC_ERR", "IBTA 9.7.6.1.3, 11.6.2")
{
    struct plan plan = impatient();
    struct address nobody = {.qp_num = 0xfffff0, .gid = e->gid};

    set_up(e, &plan);
    e->qp = create_qp(e, &plan);
    DO(to_init(e, e->qp, &plan));
    DO(to_rtr(e, e->qp, &plan, &nobody));
    DO(to_rts(e->qp, &plan));
    ASK(.opcode = IBV_WR_SEND, .wr_id = 1, .length = 8);
    EXPECT(1, IBV_WC_RETRY_EXC_ERR);
    await_state(e, e->qp, IBV_QPS_ERR);
}

TEST(peer_comes_late, BOTH, "requests wait for a peer that is not ready yet, as long as retries last", "IBTA 9.7.6.1.3")
{
    struct plan plan = plan_of(IBV_QPT_RC);

    set_up(e, &plan);
    e->qp = create_qp(e, &plan);
    DO(to_init(e, e->qp, &plan));
    struct address own = {.memory = (uintptr_t)e->memory, .rkey = e->mr->rkey, .qp_num = e->qp->qp_num, .gid = e->gid};

    exchange(e, &own, &e->peer, sizeof(own));
    if (e->first) {
        DO(to_rtr(e, e->qp, &plan, &e->peer));
        DO(to_rts(e->qp, &plan));
        ASK(.opcode = IBV_WR_RDMA_WRITE, .wr_id = 1, .length = 64);
        meet(e);
        EXPECT(1, IBV_WC_SUCCESS);
    } else {
        meet(e);
        DO(to_rtr(e, e->qp, &plan, &e->peer));
    }
    meet(e);
    if (!e->first)
        ARRIVED(0, 64, 0);
}

/* ---- receiver not ready ------------------------------------------------------------------------ */

TEST(rnr_for_ever, BOTH, "with rnr_retry 7 a SEND waits for a receive for ever", "IBTA 9.7.5.2.8; man ibv_modify_qp: rnr_retry")
{
    connect_rc(e);
    if (e->first) {
        struct ibv_wc wc;

        ASK(.opcode = IBV_WR_SEND, .wr_id = 1, .length = 64);
        ASK(.opcode = IBV_WR_RDMA_WRITE, .wr_id = 2, .length = 64, .to = 4096);
        for (int i = 0; i < 2000; i++)
            CHECK_THAT(ibv_poll_cq(e->cq, 1, &wc) == 0, "completed without a receive: %s", ibv_wc_status_str(wc.status));
        meet(e);
        EXPECT(1, IBV_WC_SUCCESS);
        EXPECT(2, IBV_WC_SUCCESS);
    } else {
        meet(e);
        /* Nothing passes what waits. */
        UNTOUCHED(0, 8192);
        RECEIVE(9, 0, 64);
        EXPECT(9, IBV_WC_SUCCESS);
        ARRIVED(0, 64, 0);
    }
    meet(e);
}

TEST(rnr_exceeded, BOTH, "with rnr_retry 1 a SEND without a receive ends with RNR_RETRY_EXC_ERR; the responder stays as it is", "IBTA 9.7.5.2.8, 11.6.2")
{
    struct plan plan = plan_of(IBV_QPT_RC);

    plan.rnr_retry = 1;
    connect_as(e, &plan);
    if (e->first) {
        ASK(.opcode = IBV_WR_SEND, .wr_id = 1, .length = 64);
        EXPECT(1, IBV_WC_RNR_RETRY_EXC_ERR);
        await_state(e, e->qp, IBV_QPS_ERR);
    }
    meet(e);
    if (!e->first) {
        EQUAL(state_of(e, e->qp), IBV_QPS_RTS);
        CHECK(!event_waits(e));
        EXPECT_NOTHING();
    }
}

TEST(rnr_for_write_with_immediate, BOTH, "a WRITE with immediate needs a receive as well", "IBTA 9.4.3, 9.7.5.2.8")
{
    struct plan plan = plan_of(IBV_QPT_RC);

    plan.rnr_retry = 0;
    connect_as(e, &plan);
    if (e->first) {
        ASK(.opcode = IBV_WR_RDMA_WRITE_WITH_IMM, .wr_id = 1, .length = 64);
        EXPECT(1, IBV_WC_RNR_RETRY_EXC_ERR);
    }
    meet(e);
}

TEST(no_receive_needed, BOTH, "WRITE, READ and atomics need no receive", "IBTA 9.4")
{
    struct plan plan = plan_of(IBV_QPT_RC);

    plan.rnr_retry = 0;
    connect_as(e, &plan);
    if (e->first) {
        ASK(.opcode = IBV_WR_RDMA_WRITE, .wr_id = 1, .length = 64);
        EXPECT(1, IBV_WC_SUCCESS);
        ASK(.opcode = IBV_WR_RDMA_READ, .wr_id = 2, .length = 64);
        EXPECT(2, IBV_WC_SUCCESS);
        ASK(.opcode = IBV_WR_ATOMIC_FETCH_AND_ADD, .wr_id = 3, .length = 8, .compare_add = 1);
        EXPECT(3, IBV_WC_SUCCESS);
    }
    meet(e);
}
