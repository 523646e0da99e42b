/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Completion channels: events come when asked for, none is lost, none comes twice;
 * the descriptor works with poll(2) and O_NONBLOCK. Then several threads on one QP.
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <string.h>

#include "pair.h"

enum { SIZE = 4096, ALL = IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_WRITE };

static struct ibv_context *context;
static struct end a, b;
static uint8_t *memory;
static struct ibv_mr *mr_a, *mr_b;

static bool readable(int fd, int milliseconds)
{
    struct pollfd ready = {.fd = fd, .events = POLLIN};

    return poll(&ready, 1, milliseconds) == 1;
}

static void send_one(int flags)
{
    struct ibv_sge from = {.addr = (uintptr_t)memory, .length = 8, .lkey = mr_a->lkey};
    struct ibv_sge to = {.addr = (uintptr_t)memory + 64, .length = 8, .lkey = mr_b->lkey};
    struct ibv_recv_wr *bad_recv, recv = {.sg_list = &to, .num_sge = 1};
    struct ibv_send_wr *bad, wr = {
        .sg_list = &from, .num_sge = 1, .opcode = IBV_WR_SEND, .send_flags = IBV_SEND_SIGNALED | (unsigned)flags};

    CHECK(!ibv_post_recv(b.qp, &recv, &bad_recv) && !ibv_post_send(a.qp, &wr, &bad), "post");
    CHECK(wait_completion(a.cq).status == IBV_WC_SUCCESS, "send");
}

static void take_event(struct ibv_comp_channel *channel, struct ibv_cq *cq, void *expected)
{
    struct ibv_cq *which;
    void *cq_context;

    CHECK(!ibv_get_cq_event(channel, &which, &cq_context) && which == cq && cq_context == expected, "event");
    ibv_ack_cq_events(which, 1);
}

static void test_channel(void)
{
    struct ibv_comp_channel *channel = ibv_create_comp_channel(context);
    int mark;

    CHECK(channel, "ibv_create_comp_channel");
    end_open(&a, context, 0);
    end_open(&b, context, 0);
    struct ibv_cq *silent = b.cq;

    CHECK(!ibv_destroy_qp(b.qp), "end");
    b.cq = ibv_create_cq(context, 64, &mark, channel, 0);
    struct ibv_qp_init_attr init = {.send_cq = b.cq, .recv_cq = b.cq, .qp_type = IBV_QPT_RC,
                                    .cap = {.max_send_wr = 8, .max_recv_wr = 64, .max_send_sge = 1, .max_recv_sge = 1}};
    struct ibv_qp_attr to_init = {.qp_state = IBV_QPS_INIT, .port_num = 1, .qp_access_flags = ALL};

    b.qp = ibv_create_qp(b.pd, &init);
    CHECK(b.qp && !ibv_modify_qp(b.qp, &to_init, IBV_QP_STATE | IBV_QP_PKEY_INDEX | IBV_QP_PORT | IBV_QP_ACCESS_FLAGS),
          "INIT");
    end_connect(&a, b.qp->qp_num, b.gid, 7, 12);
    end_connect(&b, a.qp->qp_num, a.gid, 7, 12);
    mr_a = ibv_reg_mr(a.pd, memory, SIZE, ALL);
    mr_b = ibv_reg_mr(b.pd, memory, SIZE, ALL);

    send_one(0);
    CHECK(!readable(channel->fd, 0), "an event that nobody asked for");
    CHECK(wait_completion(b.cq).status == IBV_WC_SUCCESS, "receive");

    /* Each arming gives one event, however many completions come. */
    for (int i = 0; i < 1000; i++) {
        struct ibv_wc wc;

        CHECK(!ibv_req_notify_cq(b.cq, 0), "ibv_req_notify_cq");
        send_one(0);
        send_one(0);
        take_event(channel, b.cq, &mark);
        CHECK(!readable(channel->fd, 0), "a second event of one arming");
        wait_completion(b.cq);
        wait_completion(b.cq);
        CHECK(ibv_poll_cq(b.cq, 1, &wc) == 0, "a completion too many");
    }
    /* Solicited only. */
    CHECK(!ibv_req_notify_cq(b.cq, 1), "ibv_req_notify_cq");
    send_one(0);
    CHECK(!readable(channel->fd, 0), "an unsolicited completion made an event");
    send_one(IBV_SEND_SOLICITED);
    CHECK(readable(channel->fd, 60000), "a solicited completion made no event");
    take_event(channel, b.cq, &mark);
    /* Without blocking. */
    struct ibv_cq *which;
    void *cq_context;

    fcntl(channel->fd, F_SETFL, fcntl(channel->fd, F_GETFL) | O_NONBLOCK);
    errno = 0;
    CHECK(ibv_get_cq_event(channel, &which, &cq_context) == -1 && errno == EAGAIN, "O_NONBLOCK");
    CHECK(ibv_destroy_comp_channel(channel) == EBUSY, "a channel in use");
    CHECK(!ibv_dereg_mr(mr_a) && !ibv_dereg_mr(mr_b), "ibv_dereg_mr");
    end_close(&a);
    end_close(&b);
    CHECK(!ibv_destroy_cq(silent) && !ibv_destroy_comp_channel(channel), "end");
}

/* ---- threads ----------------------------------------------------------- */

enum { THREADS = 4, MESSAGES = 10000 };

static int completed;

static void *post_and_poll(void *unused)
{
    struct ibv_sge sge = {.addr = (uintptr_t)memory, .length = 8, .lkey = mr_a->lkey};
    struct ibv_send_wr *bad, wr = {.sg_list = &sge, .num_sge = 1, .opcode = IBV_WR_RDMA_WRITE,
                                   .send_flags = IBV_SEND_SIGNALED,
                                   .wr.rdma = {.remote_addr = (uintptr_t)memory + 64, .rkey = mr_b->rkey}};
    struct ibv_wc wc[16];

    for (int posted = 0; posted < MESSAGES;) {
        int error = ibv_post_send(a.qp, &wr, &bad);

        CHECK(!error || error == ENOMEM, "ibv_post_send: %d", error);
        posted += !error;
        int count = ibv_poll_cq(a.cq, 16, wc);

        for (int i = 0; i < count; i++)
            CHECK(wc[i].status == IBV_WC_SUCCESS, "%s", ibv_wc_status_str(wc[i].status));
        __atomic_fetch_add(&completed, count, __ATOMIC_RELAXED);
    }
    return unused;
}

/* Registers and deregisters heap memory whose neighbours another thread keeps writing. */
static void *register_often(void *unused)
{
    for (int i = 0; i < 500; i++) {
        size_t length = 100 + (size_t)i * 37 % 20000;
        uint8_t *buffer = malloc(length);

        memset(buffer, i & 0xff, length);
        struct ibv_mr *mr = ibv_reg_mr(a.pd, buffer, length, ALL);

        CHECK(mr, "ibv_reg_mr");
        for (size_t at = 0; at < length; at++)
            CHECK(buffer[at] == (i & 0xff), "registering changed byte %zu of %zu", at, length);
        CHECK(!ibv_dereg_mr(mr), "ibv_dereg_mr");
        free(buffer);
    }
    return unused;
}

static void test_threads(void)
{
    pthread_t threads[THREADS + 2];
    struct ibv_wc wc;

    end_open(&a, context, 0);
    end_open(&b, context, 0);
    end_connect(&a, b.qp->qp_num, b.gid, 7, 12);
    end_connect(&b, a.qp->qp_num, a.gid, 7, 12);
    mr_a = ibv_reg_mr(a.pd, memory, SIZE, ALL);
    mr_b = ibv_reg_mr(b.pd, memory, SIZE, ALL);
    for (int i = 0; i < THREADS + 2; i++)
        pthread_create(&threads[i], NULL, i < THREADS ? post_and_poll : register_often, NULL);
    for (int i = 0; i < THREADS + 2; i++)
        pthread_join(threads[i], NULL);
    while (completed < THREADS * MESSAGES) {
        wc = wait_completion(a.cq);
        CHECK(wc.status == IBV_WC_SUCCESS, "%s", ibv_wc_status_str(wc.status));
        completed++;
    }
    CHECK(ibv_poll_cq(a.cq, 1, &wc) == 0, "a completion too many");
    CHECK(!ibv_dereg_mr(mr_a) && !ibv_dereg_mr(mr_b), "ibv_dereg_mr");
    end_close(&a);
    end_close(&b);
}

/* More than fit into the channel at once: none is lost, and each CQ is told of once. */
static void test_many(void)
{
    enum { MANY = 400 };
    static struct end ends[MANY];
    static bool told[MANY];
    struct ibv_comp_channel *channel = ibv_create_comp_channel(context);
    struct ibv_qp_attr error = {.qp_state = IBV_QPS_ERR};
    struct ibv_pd *pd = ibv_alloc_pd(context);

    CHECK(channel && pd, "channel");
    for (int i = 0; i < MANY; i++) {
        ends[i] = (struct end){.context = context, .pd = pd, .cq = ibv_create_cq(context, 1, &told[i], channel, 0)};
        CHECK(ends[i].cq, "ibv_create_cq");
        qp_open(&ends[i], 0);
        CHECK(!ibv_modify_qp(ends[i].qp, &error, IBV_QP_STATE) && !ibv_req_notify_cq(ends[i].cq, 0), "ERR");
    }
    for (int i = 0; i < MANY; i++) {
        struct ibv_recv_wr *bad, recv = {0};

        CHECK(!ibv_post_recv(ends[i].qp, &recv, &bad), "post");
    }
    for (int i = 0; i < MANY; i++)
        CHECK(wait_completion(ends[i].cq).status == IBV_WC_WR_FLUSH_ERR, "flushed");
    for (int i = 0; i < MANY; i++) {
        struct ibv_cq *which;
        void *mark;

        CHECK(readable(channel->fd, 10000), "event %d of %d", i, MANY);
        CHECK(!ibv_get_cq_event(channel, &which, &mark) && !*(bool *)mark, "an event twice");
        *(bool *)mark = true;
        ibv_ack_cq_events(which, 1);
    }
    CHECK(!readable(channel->fd, 0), "an event too many");
    for (int i = 0; i < MANY; i++)
        CHECK(!ibv_destroy_qp(ends[i].qp) && !ibv_destroy_cq(ends[i].cq), "end");
    CHECK(!ibv_destroy_comp_channel(channel) && !ibv_dealloc_pd(pd), "end");
}

int main(void)
{
    context = open_device();
    memory = aligned_alloc(4096, SIZE);
    test_channel();
    test_many();
    test_threads();
    CHECK(!ibv_close_device(context), "ibv_close_device");
    printf("events and threads as they should\n");
    return 0;
}
