/* SPDX-License-Identifier: Apache-2.0 */
/* Completion queues and completion channels. */
#include <fcntl.h>
#include <pthread.h>

#include "suite.h"

TEST(as_large_as_asked, SOLO, "a CQ has at least as many entries as asked for, and says how many", "man ibv_create_cq")
{
    static const int sizes[] = {1, 2, 3, 100, 1000, 4096};

    for (unsigned i = 0; i < sizeof(sizes) / sizeof(*sizes); i++) {
        struct ibv_cq *cq = MADE(ibv_create_cq(e->context, sizes[i], e, NULL, 0), ibv_destroy_cq);

        CHECK_THAT(cq->cqe >= sizes[i], "%d entries, not %d", cq->cqe, sizes[i]);
        CHECK(cq->context == e->context && cq->cq_context == e && cq->channel == NULL);
    }
}

TEST(size_out_of_range, SOLO, "a CQ of no entries or of more than max_cqe is refused: EINVAL", "man ibv_create_cq, ibv_query_device")
{
    NO_OBJECT(ibv_create_cq(e->context, 0, NULL, NULL, 0), EINVAL);
    NO_OBJECT(ibv_create_cq(e->context, -1, NULL, NULL, 0), EINVAL);
    if (e->device.max_cqe < INT32_MAX)
        NO_OBJECT(ibv_create_cq(e->context, e->device.max_cqe + 1, NULL, NULL, 0), EINVAL);
}

TEST(vector_out_of_range, SOLO, "a completion vector beyond num_comp_vectors is refused: EINVAL", "man ibv_create_cq")
{
    CHECK(e->context->num_comp_vectors >= 1);
    NO_OBJECT(ibv_create_cq(e->context, 16, NULL, NULL, e->context->num_comp_vectors), EINVAL);
    NO_OBJECT(ibv_create_cq(e->context, 16, NULL, NULL, -1), EINVAL);
    MADE(ibv_create_cq(e->context, 16, NULL, NULL, e->context->num_comp_vectors - 1), ibv_destroy_cq);
}

TEST(poll_nothing, SOLO, "polling an empty CQ gives 0; polling for 0 entries gives 0", "man ibv_poll_cq")
{
    struct ibv_wc wc[2];
    struct ibv_cq *cq = MADE(ibv_create_cq(e->context, 16, NULL, NULL, 0), ibv_destroy_cq);

    EQUAL(ibv_poll_cq(cq, 2, wc), 0);
    EQUAL(ibv_poll_cq(cq, 0, wc), 0);
}

TEST(poll_several, BOTH, "ibv_poll_cq gives at most as many completions as asked for, in order", "man ibv_poll_cq")
{
    connect_rc(e);
    if (e->first) {
        struct ibv_wc wc[8];
        uint64_t seen = 0;

        for (uint64_t i = 0; i < 40; i++)
            ASK(.opcode = IBV_WR_RDMA_WRITE, .wr_id = i, .length = 8);
        double deadline = now() + e->options->patience;

        while (seen < 40) {
            int count = ibv_poll_cq(e->cq, 7, wc);

            CHECK(count >= 0 && count <= 7);
            for (int i = 0; i < count; i++)
                EQUAL(wc[i].wr_id, seen++);
            CHECK(now() < deadline);
        }
        EXPECT_NOTHING();
    }
    meet(e);
}

TEST(shared_cq, SOLO, "a CQ of several QPs keeps the order of each and names the QP", "IBTA 10.2.6, 10.8.3.1")
{
    struct plan plan = plan_of(IBV_QPT_RC);
    struct ibv_qp *qps[4];
    uint64_t seen[4] = {0};

    set_up(e, &plan);
    for (int i = 0; i < 4; i++)
        qps[i] = create_qp(e, &plan);
    join_here(e, qps[0], qps[1], &plan);
    join_here(e, qps[2], qps[3], &plan);
    for (uint64_t i = 0; i < 20; i++)
        for (int q = 0; q < 4; q++)
            ASK(.opcode = IBV_WR_RDMA_WRITE, .qp = qps[q], .wr_id = i, .length = 8, .to = 4096);
    for (int i = 0; i < 80; i++) {
        struct ibv_wc wc = next_wc(e, e->cq);
        int q = 0;

        while (q < 4 && qps[q]->qp_num != wc.qp_num)
            q++;
        CHECK(q < 4 && wc.status == IBV_WC_SUCCESS);
        EQUAL(wc.wr_id, seen[q]++);
    }
}

TEST(separate_cqs, BOTH, "send and receive completions go to their own CQs", "man ibv_create_qp")
{
    struct plan plan = plan_of(IBV_QPT_RC);

    set_up(e, &plan);
    struct ibv_cq *receives = MADE(ibv_create_cq(e->context, 64, NULL, NULL, 0), ibv_destroy_cq);
    struct ibv_qp_init_attr init = {.send_cq = e->cq, .recv_cq = receives, .qp_type = IBV_QPT_RC,
                                    .cap = {.max_send_wr = 16, .max_recv_wr = 16, .max_send_sge = 1, .max_recv_sge = 1}};

    e->qp = MADE(ibv_create_qp(e->pd, &init), ibv_destroy_qp);
    e->peer = join(e, e->qp, &plan);
    RECEIVE(9, 65536, 64);
    meet(e);
    ASK(.opcode = IBV_WR_SEND, .wr_id = 1, .length = 64);
    EXPECT(1, IBV_WC_SUCCESS);
    expect(e, receives, 9, IBV_WC_SUCCESS, __FILE__, __LINE__);
    EXPECT_NOTHING();
    meet(e);
}

TEST(resize, BOTH, "a CQ can be resized; what it holds stays, in order", "man ibv_resize_cq")
{
    connect_rc(e);
    if (e->first) {
        for (uint64_t i = 0; i < 20; i++)
            ASK(.opcode = IBV_WR_RDMA_WRITE, .wr_id = i, .length = 8);
        EXPECT(0, IBV_WC_SUCCESS);
        DO(ibv_resize_cq(e->cq, 1000));
        CHECK(e->cq->cqe >= 1000);
        for (uint64_t i = 1; i < 20; i++)
            EXPECT(i, IBV_WC_SUCCESS);
        DO(ibv_resize_cq(e->cq, 2 * DEPTH));
        CHECK(e->cq->cqe >= 2 * DEPTH);
        for (uint64_t i = 0; i < 40; i++)
            ASK(.opcode = IBV_WR_RDMA_WRITE, .wr_id = i, .length = 8);
        for (uint64_t i = 0; i < 40; i++)
            EXPECT(i, IBV_WC_SUCCESS);
    }
    meet(e);
}

TEST(resize_too_small, BOTH, "a CQ is not resized below what it holds: EINVAL, nothing lost", "man ibv_resize_cq; IBTA 11.2.8.3")
{
    connect_rc(e);
    if (e->first) {
        for (uint64_t i = 0; i < 40; i++)
            ASK(.opcode = IBV_WR_RDMA_WRITE, .wr_id = i, .length = 8, .quiet = i < 2);
        /* The READ is complete after all the WRITEs: their completions are there. */
        EXPECT(2, IBV_WC_SUCCESS);
        meet(e);
        double until = now() + 0.2;

        while (now() < until)
            ;
        REFUSED(ibv_resize_cq(e->cq, 1), EINVAL);
        for (uint64_t i = 3; i < 40; i++)
            EXPECT(i, IBV_WC_SUCCESS);
    } else {
        meet(e);
    }
    meet(e);
}

TEST(overrun, SOLO, "a CQ that overruns: CQ_ERR, and its QPs go to ERR with QP_FATAL", "IBTA 10.2.6, 11.6.3.3; man ibv_get_async_event")
{
    struct plan plan = plan_of(IBV_QPT_RC);

    set_up(e, &plan);
    struct ibv_cq *small = MADE(ibv_create_cq(e->context, 1, NULL, NULL, 0), ibv_destroy_cq);
    struct ibv_qp_init_attr init = {.send_cq = small, .recv_cq = small, .qp_type = IBV_QPT_RC,
                                    .cap = {.max_send_wr = DEPTH, .max_recv_wr = 1, .max_send_sge = 1, .max_recv_sge = 1}};
    struct ibv_qp *qp = MADE(ibv_create_qp(e->pd, &init), ibv_destroy_qp), *other = create_qp(e, &plan);

    join_here(e, qp, other, &plan);
    /* More than it holds, without polling one. */
    for (int i = 0; i <= small->cqe && i < DEPTH; i++)
        ASK(.opcode = IBV_WR_RDMA_WRITE, .qp = qp, .length = 8, .to = 4096);
    await_event(e, IBV_EVENT_CQ_ERR, small);
    await_state(e, qp, IBV_QPS_ERR);
}

TEST(outlive_their_qp, SOLO, "completions that a CQ holds when their QP is destroyed can be polled, and are not mixed up with those of the next QP", "rdma-core: providers/rxe; IBTA leaves it open")
{
    struct plan plan = plan_of(IBV_QPT_RC);

    set_up(e, &plan);
    struct ibv_cq *receives = MADE(ibv_create_cq(e->context, 64, NULL, NULL, 0), ibv_destroy_cq);
    struct ibv_qp_init_attr init = {.send_cq = e->cq, .recv_cq = receives, .qp_type = IBV_QPT_RC,
                                    .cap = {.max_send_wr = DEPTH, .max_recv_wr = 4, .max_send_sge = 1, .max_recv_sge = 1}};
    uint32_t numbers[2];

    for (unsigned round = 0; round < 2; round++) {
        struct ibv_qp *one = create_qp(e, &plan), *other = MADE(ibv_create_qp(e->pd, &init), ibv_destroy_qp);

        join_here(e, one, other, &plan);
        numbers[round] = other->qp_num;
        for (uint64_t i = 0; i < 4; i++) {
            DO(receive_on(e, other, 10 * round + i, 4096, 64));
            ASK(.opcode = IBV_WR_SEND, .qp = one, .wr_id = i, .length = 64);
            EXPECT(i, IBV_WC_SUCCESS);
        }
        if (round == 0)
            DO(drop(e, other));
    }
    for (uint64_t i = 0; i < 8; i++) {
        struct ibv_wc wc = expect(e, receives, i / 4 * 10 + i % 4, IBV_WC_SUCCESS, __FILE__, __LINE__);

        CHECK(wc.qp_num == numbers[i / 4] && wc.byte_len == 64 && wc.opcode == IBV_WC_RECV);
    }
}

/* ---- channels ---------------------------------------------------------------------------- */

static void connect_notified(struct end *e)
{
    struct plan plan = plan_of(IBV_QPT_RC);

    plan.notified = true;
    connect_as(e, &plan);
}

TEST(event_when_asked, BOTH, "a completion after ibv_req_notify_cq makes one event, with CQ and context; a second completion none", "man ibv_req_notify_cq, ibv_get_cq_event; IBTA 11.4.2.2")
{
    connect_notified(e);
    if (e->first) {
        DO(ibv_req_notify_cq(e->cq, 0));
        for (uint64_t i = 0; i < 3; i++) {
            ASK(.opcode = IBV_WR_RDMA_WRITE, .wr_id = i, .length = 8);
            EXPECT(i, IBV_WC_SUCCESS);
        }
        await_cq_event(e);
        CHECK(!readable(e->channel->fd, 20));
    }
    meet(e);
}

TEST(no_event_unasked, BOTH, "without ibv_req_notify_cq there is no event", "man ibv_req_notify_cq")
{
    connect_notified(e);
    if (e->first) {
        ASK(.opcode = IBV_WR_RDMA_WRITE, .wr_id = 1, .length = 8);
        EXPECT(1, IBV_WC_SUCCESS);
        CHECK(!readable(e->channel->fd, 20));
    }
    meet(e);
}

TEST(no_event_for_the_past, BOTH, "completions that are in the CQ already make no event by themselves", "man ibv_req_notify_cq; IBTA 11.4.2.2")
{
    connect_notified(e);
    if (e->first) {
        ASK(.opcode = IBV_WR_RDMA_WRITE, .wr_id = 1, .length = 8);
        ASK(.opcode = IBV_WR_RDMA_WRITE, .wr_id = 2, .length = 8);
        EXPECT(1, IBV_WC_SUCCESS);
        EXPECT(2, IBV_WC_SUCCESS);
        DO(ibv_req_notify_cq(e->cq, 0));
        CHECK(!readable(e->channel->fd, 20));
        ASK(.opcode = IBV_WR_RDMA_WRITE, .wr_id = 3, .length = 8);
        await_cq_event(e);
        EXPECT(3, IBV_WC_SUCCESS);
    }
    meet(e);
}

TEST(notify_then_poll_loses_nothing, BOTH, "asking, polling once more and then sleeping never misses a completion", "man ibv_get_cq_event (example); IBTA 11.4.2.2")
{
    enum { MESSAGES = 500 };

    connect_notified(e);
    if (e->first) {
        for (unsigned i = 0; i < MESSAGES; i++) {
            ASK(.opcode = IBV_WR_SEND, .wr_id = i, .length = 8);
            EXPECT(i, IBV_WC_SUCCESS);
        }
    } else {
        unsigned received = 0, posted = 0;
        struct ibv_wc wc;

        while (posted < DEPTH)
            RECEIVE(posted++, 0, 8);
        while (received < MESSAGES) {
            DO(ibv_req_notify_cq(e->cq, 0));
            int count = ibv_poll_cq(e->cq, 1, &wc);

            if (!count) {
                await_cq_event(e);
                continue;
            }
            for (; count > 0; count = ibv_poll_cq(e->cq, 1, &wc)) {
                EQUAL(wc.status, IBV_WC_SUCCESS);
                EQUAL(wc.wr_id, received++);
                if (posted < MESSAGES)
                    RECEIVE(posted++, 0, 8);
            }
        }
    }
    meet(e);
}

TEST(solicited_only, BOTH, "asked for solicited ones only, a receive of an unsolicited SEND makes no event; a solicited one does", "man ibv_req_notify_cq; IBTA 9.2.3, 11.4.2.2")
{
    connect_notified(e);
    if (!e->first) {
        RECEIVE(1, 0, 8);
        RECEIVE(2, 0, 8);
        DO(ibv_req_notify_cq(e->cq, 1));
    }
    meet(e);
    if (e->first) {
        ASK(.opcode = IBV_WR_SEND, .wr_id = 1, .length = 8);
        EXPECT(1, IBV_WC_SUCCESS);
        meet(e);
        meet(e);
        ASK(.opcode = IBV_WR_SEND, .wr_id = 2, .length = 8, .flags = IBV_SEND_SOLICITED);
        EXPECT(2, IBV_WC_SUCCESS);
    } else {
        meet(e);
        EXPECT(1, IBV_WC_SUCCESS);
        CHECK(!readable(e->channel->fd, 20));
        meet(e);
        await_cq_event(e);
        EXPECT(2, IBV_WC_SUCCESS);
    }
    meet(e);
}

TEST(errors_are_solicited, SOLO, "a completion in error makes an event, even where only solicited ones are asked for", "man ibv_req_notify_cq; IBTA 11.4.2.2")
{
    struct plan plan = plan_of(IBV_QPT_RC);

    plan.notified = true;
    set_up(e, &plan);
    e->qp = create_qp(e, &plan);
    DO(to_init(e, e->qp, &plan));
    RECEIVE(1, 0, 8);
    DO(ibv_req_notify_cq(e->cq, 1));
    DO(to_state(e->qp, IBV_QPS_ERR));
    await_cq_event(e);
    EXPECT(1, IBV_WC_WR_FLUSH_ERR);
}

TEST(any_after_solicited, BOTH, "asking for any completion after asking for solicited ones widens; the other way round doesn't narrow", "IBTA 11.4.2.2")
{
    connect_notified(e);
    if (e->first) {
        DO(ibv_req_notify_cq(e->cq, 1));
        DO(ibv_req_notify_cq(e->cq, 0));
        ASK(.opcode = IBV_WR_RDMA_WRITE, .wr_id = 1, .length = 8);
        EXPECT(1, IBV_WC_SUCCESS);
        await_cq_event(e);
        DO(ibv_req_notify_cq(e->cq, 0));
        DO(ibv_req_notify_cq(e->cq, 1));
        ASK(.opcode = IBV_WR_RDMA_WRITE, .wr_id = 2, .length = 8);
        EXPECT(2, IBV_WC_SUCCESS);
        await_cq_event(e);
    }
    meet(e);
}

TEST(one_channel_for_many, SOLO, "a channel of several CQs tells which one it was, with its own context", "man ibv_get_cq_event")
{
    struct ibv_comp_channel *channel = MADE(ibv_create_comp_channel(e->context), ibv_destroy_comp_channel);
    struct plan plan = plan_of(IBV_QPT_RC);
    int contexts[3];
    struct ibv_cq *cqs[3];

    set_up(e, &plan);
    for (int i = 0; i < 3; i++) {
        cqs[i] = MADE(ibv_create_cq(e->context, 16, &contexts[i], channel, 0), ibv_destroy_cq);
        DO(ibv_req_notify_cq(cqs[i], 0));
    }
    for (int i = 2; i >= 0; i--) {
        struct ibv_qp_init_attr init = {.send_cq = cqs[i], .recv_cq = cqs[i], .qp_type = IBV_QPT_RC,
                                        .cap = {.max_send_wr = 1, .max_recv_wr = 1, .max_send_sge = 1, .max_recv_sge = 1}};
        struct ibv_qp *qp = MADE(ibv_create_qp(e->pd, &init), ibv_destroy_qp);
        struct ibv_cq *cq;
        void *context;

        DO(to_init(e, qp, &plan));
        DO(receive_on(e, qp, 1, 0, 8));
        DO(to_state(qp, IBV_QPS_ERR));
        CHECK_THAT(readable(channel->fd, 1000 * e->options->patience), "no event");
        DO(ibv_get_cq_event(channel, &cq, &context));
        CHECK(cq == cqs[i] && context == &contexts[i]);
        ibv_ack_cq_events(cq, 1);
    }
}

TEST(nonblocking_channel, SOLO, "on a channel with O_NONBLOCK ibv_get_cq_event fails with EAGAIN where there is none", "man ibv_get_cq_event (example)")
{
    struct ibv_comp_channel *channel = MADE(ibv_create_comp_channel(e->context), ibv_destroy_comp_channel);
    struct ibv_cq *cq;
    void *context;

    CHECK(fcntl(channel->fd, F_SETFL, fcntl(channel->fd, F_GETFL) | O_NONBLOCK) == 0);
    EQUAL(ibv_get_cq_event(channel, &cq, &context), -1);
    EQUAL(errno, EAGAIN);
}

static void *destroy_cq(void *cq)
{
    return (void *)(intptr_t)ibv_destroy_cq(cq);
}

TEST(destroy_waits_for_ack, SOLO, "ibv_destroy_cq waits until every event of that CQ is acknowledged", "man ibv_ack_cq_events, ibv_get_cq_event")
{
    struct plan plan = plan_of(IBV_QPT_RC);
    struct ibv_comp_channel *channel = MADE(ibv_create_comp_channel(e->context), ibv_destroy_comp_channel);

    set_up(e, &plan);
    struct ibv_cq *cq = ibv_create_cq(e->context, 16, NULL, channel, 0), *which;
    struct ibv_qp_init_attr init = {.send_cq = cq, .recv_cq = cq, .qp_type = IBV_QPT_RC,
                                    .cap = {.max_send_wr = 1, .max_recv_wr = 1, .max_send_sge = 1, .max_recv_sge = 1}};
    pthread_t thread;
    void *context, *result;

    CHECK(cq);
    e->qp = MADE(ibv_create_qp(e->pd, &init), ibv_destroy_qp);
    DO(to_init(e, e->qp, &plan));
    RECEIVE(1, 0, 8);
    DO(ibv_req_notify_cq(cq, 0));
    DO(to_state(e->qp, IBV_QPS_ERR));
    CHECK(readable(channel->fd, 1000 * e->options->patience));
    DO(ibv_get_cq_event(channel, &which, &context));
    DO(drop(e, e->qp));
    CHECK(!pthread_create(&thread, NULL, destroy_cq, cq));
    struct timespec soon;

    clock_gettime(CLOCK_REALTIME, &soon);
    soon.tv_nsec += 50000000;
    soon.tv_sec += soon.tv_nsec / 1000000000;
    soon.tv_nsec %= 1000000000;
    CHECK_THAT(pthread_timedjoin_np(thread, &result, &soon) == ETIMEDOUT, "destroyed with an event unacknowledged");
    ibv_ack_cq_events(which, 1);
    CHECK(!pthread_join(thread, &result));
    EQUAL((intptr_t)result, 0);
}
