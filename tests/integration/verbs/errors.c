/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What goes wrong goes wrong as the specification says: the status at the
 * requester, the event at the responder, and not a byte written.
 *
 *     errors [RKEY ADDR]    a key and an address of another tenant's
 */
#include <errno.h>
#include <poll.h>
#include <string.h>

#include "pair.h"

enum { SIZE = 8192, ALL = IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_WRITE | IBV_ACCESS_REMOTE_READ |
                          IBV_ACCESS_REMOTE_ATOMIC };

static struct ibv_context *context;
static struct end a, b;
static uint8_t *source, *target;
static struct ibv_mr *source_mr, *target_mr;
static int tests;

static void set_up_with(uint8_t rnr_retry, uint8_t timeout)
{
    end_open(&a, context, 0);
    end_open(&b, context, 0);
    end_connect(&a, b.qp->qp_num, b.gid, rnr_retry, timeout);
    end_connect(&b, a.qp->qp_num, a.gid, rnr_retry, timeout);
    memset(source, 0xaa, SIZE);
    memset(target, 0x55, SIZE);
    source_mr = ibv_reg_mr(a.pd, source, SIZE, ALL);
    target_mr = ibv_reg_mr(b.pd, target, SIZE, ALL);
    CHECK(source_mr && target_mr, "ibv_reg_mr");
}

static void set_up(void)
{
    set_up_with(7, 12);
}

static void tear_down(void)
{
    CHECK(!ibv_dereg_mr(source_mr) && !ibv_dereg_mr(target_mr), "ibv_dereg_mr");
    end_close(&a);
    end_close(&b);
    tests++;
}

static int post(struct end *end, enum ibv_wr_opcode opcode, void *local, uint32_t length, uint32_t lkey,
                uint64_t remote, uint32_t rkey, uint64_t wr_id)
{
    struct ibv_sge sge = {.addr = (uintptr_t)local, .length = length, .lkey = lkey};
    struct ibv_send_wr *bad, wr = {
        .wr_id = wr_id, .sg_list = &sge, .num_sge = 1, .opcode = opcode, .send_flags = IBV_SEND_SIGNALED};

    if (opcode == IBV_WR_ATOMIC_FETCH_AND_ADD) {
        wr.wr.atomic.remote_addr = remote;
        wr.wr.atomic.rkey = rkey;
        wr.wr.atomic.compare_add = 1;
    } else {
        wr.wr.rdma.remote_addr = remote;
        wr.wr.rdma.rkey = rkey;
    }
    return ibv_post_send(end->qp, &wr, &bad);
}

static int post_receive(struct end *end, void *local, uint32_t length, uint32_t lkey, uint64_t wr_id)
{
    struct ibv_sge sge = {.addr = (uintptr_t)local, .length = length, .lkey = lkey};
    struct ibv_recv_wr *bad, wr = {.wr_id = wr_id, .sg_list = &sge, .num_sge = 1};

    return ibv_post_recv(end->qp, &wr, &bad);
}

static void expect(struct end *end, enum ibv_wc_status status, uint64_t wr_id, const char *what)
{
    struct ibv_wc wc = wait_completion(end->cq);

    CHECK(wc.status == status && wc.wr_id == wr_id, "%s: %s for %lu, not %s for %lu", what,
          ibv_wc_status_str(wc.status), (long)wc.wr_id, ibv_wc_status_str(status), (long)wr_id);
}

static void expect_state(struct end *end, enum ibv_qp_state state, const char *what)
{
    struct ibv_qp_attr attr;
    struct ibv_qp_init_attr init;

    CHECK(!ibv_query_qp(end->qp, &attr, IBV_QP_STATE, &init) && attr.qp_state == state, "%s: state %d", what,
          attr.qp_state);
}

static void expect_event(enum ibv_event_type type, const void *element, const char *what)
{
    struct pollfd ready = {.fd = context->async_fd, .events = POLLIN};
    struct ibv_async_event event;

    CHECK(poll(&ready, 1, 60000) == 1, "%s: no async event", what);
    CHECK(!ibv_get_async_event(context, &event) && event.event_type == type && event.element.qp == element,
          "%s: event %s", what, ibv_event_type_str(event.event_type));
    ibv_ack_async_event(&event);
}

static void expect_untouched(const char *what)
{
    for (int i = 0; i < SIZE; i++)
        CHECK(target[i] == 0x55, "%s: byte %d was written", what, i);
}

/* A request that the responder refuses. */
static void refused(const char *what, enum ibv_wr_opcode opcode, uint32_t length, uint64_t remote, uint32_t rkey,
                    enum ibv_wc_status status, enum ibv_event_type event)
{
    CHECK(!post(&a, opcode, source, length, source_mr->lkey, remote, rkey, 7), "%s: post", what);
    expect(&a, status, 7, what);
    expect_event(event, b.qp, what);
    expect_state(&a, IBV_QPS_ERR, what);
    expect_state(&b, IBV_QPS_ERR, what);
    expect_untouched(what);
}

static void test_access(const char *foreign_key, const char *foreign_address)
{
    static uint8_t elsewhere[4096];
    uint64_t at = (uintptr_t)target;

    for (int i = 0; i < 9; i++) {
        set_up();
        uint32_t rkey = target_mr->rkey;
        struct ibv_mr *other = NULL;

        switch (i) {
        case 0: /* 1 MiB beyond any key there is */
            refused("wrong rkey", IBV_WR_RDMA_WRITE, 64, at, rkey ^ 0x100000, IBV_WC_REM_ACCESS_ERR,
                    IBV_EVENT_QP_ACCESS_ERR);
            break;
        case 1:
            refused("before the MR", IBV_WR_RDMA_WRITE, 64, at - 1, rkey, IBV_WC_REM_ACCESS_ERR,
                    IBV_EVENT_QP_ACCESS_ERR);
            break;
        case 2:
            refused("over the end of the MR", IBV_WR_RDMA_WRITE, 64, at + SIZE - 63, rkey, IBV_WC_REM_ACCESS_ERR,
                    IBV_EVENT_QP_ACCESS_ERR);
            break;
        case 3:
            refused("far away", IBV_WR_RDMA_READ, 64, UINT64_MAX - 32, rkey, IBV_WC_REM_ACCESS_ERR,
                    IBV_EVENT_QP_ACCESS_ERR);
            break;
        case 4:
            other = ibv_reg_mr(b.pd, target, SIZE, IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_READ);
            refused("no right to write", IBV_WR_RDMA_WRITE, 64, at, other->rkey, IBV_WC_REM_ACCESS_ERR,
                    IBV_EVENT_QP_ACCESS_ERR);
            break;
        case 5:
            other = ibv_reg_mr(a.pd, elsewhere, sizeof(elsewhere), ALL);
            refused("key of another PD", IBV_WR_RDMA_WRITE, 64, (uintptr_t)elsewhere, other->rkey,
                    IBV_WC_REM_ACCESS_ERR, IBV_EVENT_QP_ACCESS_ERR);
            break;
        case 6:
            other = ibv_reg_mr(b.pd, target, SIZE, ALL);
            rkey = other->rkey;
            CHECK(!ibv_dereg_mr(other), "ibv_dereg_mr");
            other = NULL;
            refused("deregistered", IBV_WR_RDMA_WRITE, 64, at, rkey, IBV_WC_REM_ACCESS_ERR, IBV_EVENT_QP_ACCESS_ERR);
            break;
        case 7:
            refused("misaligned atomic", IBV_WR_ATOMIC_FETCH_AND_ADD, 8, at + 4, rkey, IBV_WC_REM_INV_REQ_ERR,
                    IBV_EVENT_QP_REQ_ERR);
            break;
        case 8:
            if (foreign_key)
                refused("another tenant's key", IBV_WR_RDMA_WRITE, 64, strtoull(foreign_address, NULL, 0),
                        (uint32_t)strtoul(foreign_key, NULL, 0), IBV_WC_REM_ACCESS_ERR, IBV_EVENT_QP_ACCESS_ERR);
            break;
        }
        if (other)
            CHECK(!ibv_dereg_mr(other), "ibv_dereg_mr");
        tear_down();
    }
}

static void test_local(void)
{
    set_up();
    CHECK(!post(&a, IBV_WR_RDMA_WRITE, source, 64, source_mr->lkey ^ 0x100000, (uintptr_t)target, target_mr->rkey, 1),
          "post");
    CHECK(!post(&a, IBV_WR_RDMA_WRITE, source, 64, source_mr->lkey, (uintptr_t)target, target_mr->rkey, 2), "post");
    CHECK(!post_receive(&a, source, 64, source_mr->lkey, 3), "receive");
    expect(&a, IBV_WC_LOC_PROT_ERR, 1, "local key");
    expect(&a, IBV_WC_WR_FLUSH_ERR, 2, "flushed in order");
    expect(&a, IBV_WC_WR_FLUSH_ERR, 3, "receives are flushed as well");
    expect_untouched("local key");
    expect_state(&b, IBV_QPS_RTS, "the responder has seen nothing");
    /* Posted in the error state: flushed too. */
    CHECK(!post(&a, IBV_WR_RDMA_WRITE, source, 64, source_mr->lkey, (uintptr_t)target, target_mr->rkey, 4), "post");
    expect(&a, IBV_WC_WR_FLUSH_ERR, 4, "posted in ERR");
    CHECK(!post_receive(&a, source, 64, source_mr->lkey, 5), "receive");
    expect(&a, IBV_WC_WR_FLUSH_ERR, 5, "received in ERR");
    tear_down();

    set_up();
    struct ibv_mr *read_only = ibv_reg_mr(a.pd, source, SIZE, 0);

    CHECK(!post(&a, IBV_WR_RDMA_READ, source, 64, read_only->lkey, (uintptr_t)target, target_mr->rkey, 1), "post");
    expect(&a, IBV_WC_LOC_PROT_ERR, 1, "READ into memory without LOCAL_WRITE");
    CHECK(source[0] == 0xaa && !ibv_dereg_mr(read_only), "READ into memory without LOCAL_WRITE");
    tear_down();
}

static void test_receive(void)
{
    set_up();
    CHECK(!post_receive(&b, target, 63, target_mr->lkey, 9), "receive");
    CHECK(!post(&a, IBV_WR_SEND, source, 64, source_mr->lkey, 0, 0, 1), "post");
    expect(&a, IBV_WC_REM_INV_REQ_ERR, 1, "SEND longer than the receive");
    expect(&b, IBV_WC_LOC_LEN_ERR, 9, "SEND longer than the receive");
    expect_untouched("SEND longer than the receive");
    tear_down();

    set_up_with(1, 12);
    CHECK(!post(&a, IBV_WR_SEND, source, 64, source_mr->lkey, 0, 0, 1), "post");
    expect(&a, IBV_WC_RNR_RETRY_EXC_ERR, 1, "no receive, one retry");
    tear_down();

    set_up();
    CHECK(!post(&a, IBV_WR_SEND, source, 64, source_mr->lkey, 0, 0, 1), "post");
    struct ibv_wc wc;

    for (int i = 0; i < 10000; i++)
        CHECK(ibv_poll_cq(a.cq, 1, &wc) == 0, "completed without a receive");
    CHECK(!post_receive(&b, target, 64, target_mr->lkey, 9), "receive");
    expect(&a, IBV_WC_SUCCESS, 1, "waits for ever");
    expect(&b, IBV_WC_SUCCESS, 9, "waits for ever");
    CHECK(target[63] == 0xaa && target[64] == 0x55, "waits for ever");
    tear_down();
}

static void test_peer_gone(void)
{
    set_up_with(7, 8);
    CHECK(!ibv_destroy_qp(b.qp), "ibv_destroy_qp");
    CHECK(!post(&a, IBV_WR_RDMA_WRITE, source, 64, source_mr->lkey, (uintptr_t)target, target_mr->rkey, 1), "post");
    expect(&a, IBV_WC_RETRY_EXC_ERR, 1, "the peer's QP is destroyed");
    expect_untouched("the peer's QP is destroyed");
    CHECK(!ibv_dereg_mr(source_mr) && !ibv_dereg_mr(target_mr), "ibv_dereg_mr");
    end_close(&a);
    CHECK(!ibv_destroy_cq(b.cq) && !ibv_dealloc_pd(b.pd), "end");
    tests++;
}

static void test_calls(void)
{
    struct ibv_qp_attr attr = {.qp_state = IBV_QPS_RTR};

    set_up();
    CHECK(ibv_dealloc_pd(a.pd) == EBUSY, "a PD in use");
    CHECK(ibv_destroy_cq(a.cq) == EBUSY, "a CQ in use");
    CHECK(ibv_modify_qp(a.qp, &attr, IBV_QP_STATE) == EINVAL, "RTS to RTR");
    attr.qp_state = IBV_QPS_RESET;
    CHECK(!ibv_modify_qp(a.qp, &attr, IBV_QP_STATE), "RESET");
    CHECK(post(&a, IBV_WR_SEND, source, 64, source_mr->lkey, 0, 0, 1) == EINVAL, "post_send in RESET");
    CHECK(post_receive(&a, source, 64, source_mr->lkey, 1) == EINVAL, "post_recv in RESET");
    attr.qp_state = IBV_QPS_INIT;
    CHECK(ibv_modify_qp(a.qp, &attr, IBV_QP_STATE) == EINVAL, "INIT without its attributes");
    CHECK(!ibv_reg_mr(a.pd, source, SIZE, IBV_ACCESS_REMOTE_WRITE) && errno == EINVAL, "remote without local write");
    CHECK(!ibv_reg_mr(a.pd, NULL, 4096, ALL) && errno == EFAULT, "memory that isn't there");
    tear_down();

    /* A send queue that nobody drains: the peer never answers. */
    set_up_with(7, 0);
    attr.qp_state = IBV_QPS_RESET;
    CHECK(!ibv_modify_qp(b.qp, &attr, IBV_QP_STATE), "RESET");
    int posted = 0, error;

    while (!(error = post(&a, IBV_WR_RDMA_WRITE, source, 8, source_mr->lkey, (uintptr_t)target, target_mr->rkey, 1)))
        posted++;
    CHECK(error == ENOMEM && posted == 256, "%d posted, then %d", posted, error);
    tear_down();
}

static void test_overrun(void)
{
    set_up();
    struct ibv_cq *small = ibv_create_cq(context, 4, NULL, NULL, 0);
    struct ibv_qp *first = a.qp;
    struct end tiny = {.context = context, .pd = a.pd, .cq = small, .gid = a.gid};
    struct ibv_qp_init_attr init = {.send_cq = small, .recv_cq = small, .qp_type = IBV_QPT_RC,
                                    .cap = {.max_send_wr = 16, .max_recv_wr = 1, .max_send_sge = 1, .max_recv_sge = 1}};
    struct ibv_qp_attr to_init = {.qp_state = IBV_QPS_INIT, .port_num = 1};
    struct ibv_qp_attr reset = {.qp_state = IBV_QPS_RESET};

    tiny.qp = ibv_create_qp(a.pd, &init);
    CHECK(tiny.qp && !ibv_modify_qp(tiny.qp, &to_init,
                                    IBV_QP_STATE | IBV_QP_PKEY_INDEX | IBV_QP_PORT | IBV_QP_ACCESS_FLAGS),
          "INIT");
    to_init.qp_access_flags = ALL;
    CHECK(!ibv_modify_qp(b.qp, &reset, IBV_QP_STATE) &&
              !ibv_modify_qp(b.qp, &to_init, IBV_QP_STATE | IBV_QP_PKEY_INDEX | IBV_QP_PORT | IBV_QP_ACCESS_FLAGS),
          "INIT");
    end_connect(&b, tiny.qp->qp_num, tiny.gid, 7, 12);
    end_connect(&tiny, b.qp->qp_num, b.gid, 7, 12);
    for (int i = 0; i < 6; i++)
        post(&tiny, IBV_WR_RDMA_WRITE, source, 8, source_mr->lkey, (uintptr_t)target, target_mr->rkey, (uint64_t)i);
    expect_event(IBV_EVENT_CQ_ERR, small, "CQ overrun");
    expect_event(IBV_EVENT_QP_FATAL, tiny.qp, "CQ overrun");
    expect_state(&tiny, IBV_QPS_ERR, "CQ overrun");
    CHECK(!ibv_destroy_qp(tiny.qp) && !ibv_destroy_cq(small) && a.qp == first, "end");
    tear_down();
}

int main(int argc, char **argv)
{
    context = open_device();
    source = malloc(SIZE);
    target = malloc(SIZE);
    CHECK(source && target, "malloc");
    test_access(argc > 2 ? argv[1] : NULL, argc > 2 ? argv[2] : NULL);
    test_local();
    test_receive();
    test_peer_gone();
    test_calls();
    test_overrun();
    free(source);
    free(target);
    CHECK(!ibv_close_device(context), "ibv_close_device");
    printf("%d cases, each as the specification says\n", tests);
    return 0;
}
