/* SPDX-License-Identifier: Apache-2.0 */
/* Asynchronous events. */
#include <fcntl.h>
#include <pthread.h>

#include "suite.h"

TEST(nothing_waits, SOLO, "a fresh context has no event; with O_NONBLOCK ibv_get_async_event fails with EAGAIN", "man ibv_get_async_event (example)")
{
    struct ibv_async_event event;

    CHECK(!readable(e->context->async_fd, 0));
    CHECK(fcntl(e->context->async_fd, F_SETFL, fcntl(e->context->async_fd, F_GETFL) | O_NONBLOCK) == 0);
    EQUAL(ibv_get_async_event(e->context, &event), -1);
    EQUAL(errno, EAGAIN);
}

TEST(names_the_qp, BOTH, "an event about a QP carries that very QP", "man ibv_get_async_event")
{
    connect_rc(e);
    struct plan plan = plan_of(IBV_QPT_RC);
    struct ibv_qp *another = create_qp(e, &plan);

    join(e, another, &plan);
    if (e->first) {
        ASK(.opcode = IBV_WR_RDMA_WRITE, .qp = another, .length = 8, .rkey = e->peer.rkey ^ 0x5a0000);
        EQUAL(next_wc(e, e->cq).status, IBV_WC_REM_ACCESS_ERR);
    } else {
        await_event(e, IBV_EVENT_QP_ACCESS_ERR, another);
        EQUAL(state_of(e, e->qp), IBV_QPS_RTS);
    }
    meet(e);
    /* The QP beside it goes on. */
    if (e->first) {
        ASK(.opcode = IBV_WR_RDMA_WRITE, .wr_id = 2, .length = 8);
        EXPECT(2, IBV_WC_SUCCESS);
    }
    meet(e);
}

static void *destroy_qp(void *qp)
{
    return (void *)(intptr_t)ibv_destroy_qp(qp);
}

TEST(destroy_waits_for_ack, BOTH, "ibv_destroy_qp waits until every event of that QP is acknowledged", "man ibv_get_async_event, ibv_ack_async_event")
{
    struct plan plan = plan_of(IBV_QPT_RC);

    set_up(e, &plan);
    e->qp = ibv_create_qp(e->pd, &(struct ibv_qp_init_attr){
        .send_cq = e->cq, .recv_cq = e->cq, .qp_type = IBV_QPT_RC,
        .cap = {.max_send_wr = 4, .max_recv_wr = 4, .max_send_sge = 1, .max_recv_sge = 1}});
    CHECK(e->qp);
    e->peer = join(e, e->qp, &plan);
    if (e->first) {
        ASK(.opcode = IBV_WR_RDMA_WRITE, .length = 8, .rkey = e->peer.rkey ^ 0x5a0000);
        EQUAL(next_wc(e, e->cq).status, IBV_WC_REM_ACCESS_ERR);
        DO(ibv_destroy_qp(e->qp));
    } else {
        struct ibv_async_event event;
        pthread_t thread;
        struct timespec soon;
        void *result;

        CHECK(readable(e->context->async_fd, 1000 * e->options->patience));
        DO(ibv_get_async_event(e->context, &event));
        CHECK(event.element.qp == e->qp);
        CHECK(!pthread_create(&thread, NULL, destroy_qp, e->qp));
        clock_gettime(CLOCK_REALTIME, &soon);
        soon.tv_nsec += 50000000;
        soon.tv_sec += soon.tv_nsec / 1000000000;
        soon.tv_nsec %= 1000000000;
        CHECK_THAT(pthread_timedjoin_np(thread, &result, &soon) == ETIMEDOUT, "destroyed with an event unacknowledged");
        ibv_ack_async_event(&event);
        CHECK(!pthread_join(thread, &result));
        EQUAL((intptr_t)result, 0);
    }
    meet(e);
}

TEST(communication_established, BOTH, "a message that reaches a QP in RTR makes COMM_EST there", "IBTA 11.6.3.1; man ibv_get_async_event")
{
    struct plan plan = plan_of(IBV_QPT_RC);

    set_up(e, &plan);
    e->qp = create_qp(e, &plan);
    struct address own = {.memory = (uintptr_t)e->memory, .rkey = e->mr->rkey, .qp_num = e->qp->qp_num, .gid = e->gid};

    exchange(e, &own, &e->peer, sizeof(own));
    DO(to_init(e, e->qp, &plan));
    DO(to_rtr(e, e->qp, &plan, &e->peer));
    meet(e);
    if (e->first) {
        DO(to_rts(e->qp, &plan));
        ASK(.opcode = IBV_WR_RDMA_WRITE, .wr_id = 1, .length = 8);
        EXPECT(1, IBV_WC_SUCCESS);
    } else {
        await_event(e, IBV_EVENT_COMM_EST, e->qp);
        DO(to_rts(e->qp, &plan));
    }
    meet(e);
}
