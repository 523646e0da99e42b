/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Kinds of QPs and shared receive queues as applications use them: the ibv_wr_*
 * functions of UC, UD and XRC, XRC domains by file, contexts that don't take each
 * other's events, what a driver without a feature answers, and many threads at once.
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <string.h>
#include <unistd.h>

#include "pair.h"

enum { SIZE = 1 << 16, ALL = IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_WRITE | IBV_ACCESS_REMOTE_READ, QKEY = 0x55 };

static struct ibv_context *context;
static struct ibv_pd *pd;
static struct ibv_cq *cq;
static struct ibv_mr *mr;
static uint8_t *memory;
static union ibv_gid gid;

static struct ibv_qp *make_qp(enum ibv_qp_type type, struct ibv_srq *srq, struct ibv_xrcd *xrcd, uint64_t send_ops)
{
    struct ibv_qp_init_attr_ex attr = {
        .send_cq = cq, .recv_cq = cq, .srq = srq, .qp_type = type,
        .cap = {.max_send_wr = 64, .max_recv_wr = 64, .max_send_sge = 2, .max_recv_sge = 2, .max_inline_data = 64},
        .comp_mask = (xrcd ? IBV_QP_INIT_ATTR_XRCD : IBV_QP_INIT_ATTR_PD) |
                     (send_ops ? IBV_QP_INIT_ATTR_SEND_OPS_FLAGS : 0u),
        .pd = pd, .xrcd = xrcd, .send_ops_flags = send_ops};
    struct ibv_qp *qp = ibv_create_qp_ex(context, &attr);
    struct ibv_qp_attr init = {.qp_state = IBV_QPS_INIT, .port_num = 1, .qkey = QKEY, .qp_access_flags = ALL};

    CHECK(qp, "type %d: %s", type, strerror(errno));
    CHECK(!ibv_modify_qp(qp, &init, IBV_QP_STATE | IBV_QP_PKEY_INDEX | IBV_QP_PORT |
                                        (type == IBV_QPT_UD ? IBV_QP_QKEY : IBV_QP_ACCESS_FLAGS)),
          "INIT of type %d", type);
    return qp;
}

/* To RTS, with the attributes of its type. */
static void start(struct ibv_qp *qp, uint32_t peer)
{
    bool ud = qp->qp_type == IBV_QPT_UD, uc = qp->qp_type == IBV_QPT_UC;
    bool requester = qp->qp_type == IBV_QPT_RC || qp->qp_type == IBV_QPT_XRC_SEND;
    bool responder = qp->qp_type == IBV_QPT_RC || qp->qp_type == IBV_QPT_XRC_RECV;
    struct ibv_qp_attr rtr = {
        .qp_state = IBV_QPS_RTR, .path_mtu = IBV_MTU_4096, .dest_qp_num = peer, .max_dest_rd_atomic = 1,
        .min_rnr_timer = 1, .ah_attr = {.is_global = 1, .port_num = 1, .grh = {.dgid = gid, .hop_limit = 1}}};
    struct ibv_qp_attr rts = {
        .qp_state = IBV_QPS_RTS, .timeout = 12, .retry_cnt = 1, .rnr_retry = 7, .max_rd_atomic = 1};

    CHECK(!ibv_modify_qp(qp, &rtr, IBV_QP_STATE | (ud ? 0 : IBV_QP_AV | IBV_QP_PATH_MTU | IBV_QP_DEST_QPN | IBV_QP_RQ_PSN) |
                                       (responder ? IBV_QP_MAX_DEST_RD_ATOMIC | IBV_QP_MIN_RNR_TIMER : 0)),
          "RTR of type %d", qp->qp_type);
    CHECK(!ibv_modify_qp(qp, &rts, IBV_QP_STATE | IBV_QP_SQ_PSN | (ud || uc ? 0 : IBV_QP_TIMEOUT) |
                                       (requester ? IBV_QP_RETRY_CNT | IBV_QP_RNR_RETRY | IBV_QP_MAX_QP_RD_ATOMIC : 0)),
          "RTS of type %d", qp->qp_type);
}

static struct ibv_recv_wr receive_at(struct ibv_sge *sge, uint64_t wr_id, size_t offset, uint32_t length)
{
    *sge = (struct ibv_sge){.addr = (uintptr_t)memory + offset, .length = length, .lkey = mr->lkey};
    return (struct ibv_recv_wr){.wr_id = wr_id, .sg_list = sge, .num_sge = 1};
}

static struct ibv_wc expect(uint64_t wr_id, enum ibv_wc_status status, const char *what)
{
    struct ibv_wc wc = wait_completion(cq);

    CHECK(wc.wr_id == wr_id && wc.status == status, "%s: %s of %lu", what, ibv_wc_status_str(wc.status),
          (unsigned long)wc.wr_id);
    return wc;
}

/* Completions of a send and its receive come in this order: the message is there before the sender hears of it. */
static struct ibv_wc expect_both(uint64_t received, uint64_t sent, const char *what)
{
    struct ibv_wc wc = expect(received, IBV_WC_SUCCESS, what);

    expect(sent, IBV_WC_SUCCESS, what);
    return wc;
}

/* ---- ibv_wr_* ---------------------------------------------------------- */

static void test_datagram(void)
{
    struct ibv_qp *from = make_qp(IBV_QPT_UD, NULL, NULL, IBV_QP_EX_WITH_SEND | IBV_QP_EX_WITH_SEND_WITH_IMM);
    struct ibv_qp *to = make_qp(IBV_QPT_UD, NULL, NULL, 0);
    struct ibv_ah_attr attr = {.is_global = 1, .port_num = 1, .grh = {.dgid = gid, .hop_limit = 9, .traffic_class = 3}};
    struct ibv_ah *ah = ibv_create_ah(pd, &attr);
    struct ibv_qp_ex *ex = ibv_qp_to_qp_ex(from);
    struct ibv_sge sge;
    struct ibv_recv_wr *bad, wr = receive_at(&sge, 1, 4096, 100);

    CHECK(ah && ex, "ibv_create_ah: %s", strerror(errno));
    start(from, 0);
    start(to, 0);
    CHECK(!ibv_post_recv(to, &wr, &bad), "ibv_post_recv");
    ibv_wr_start(ex);
    ex->wr_id = 2;
    ex->wr_flags = IBV_SEND_SIGNALED;
    ibv_wr_send_imm(ex, 77);
    ibv_wr_set_ud_addr(ex, ah, to->qp_num, QKEY);
    ibv_wr_set_inline_data(ex, (void *)"datagram", 9);
    CHECK(!ibv_wr_complete(ex), "ibv_wr_complete");
    struct ibv_wc wc = expect_both(1, 2, "UD");

    CHECK(wc.byte_len == 49 && wc.imm_data == 77 && wc.src_qp == from->qp_num &&
              wc.wc_flags == (IBV_WC_GRH | IBV_WC_WITH_IMM),
          "UD: %u bytes from %u", wc.byte_len, wc.src_qp);
    CHECK(strcmp((char *)memory + 4096 + 40, "datagram") == 0, "UD: the data");
    /* Who sent it. */
    struct ibv_ah_attr back;

    CHECK(!ibv_init_ah_from_wc(context, 1, &wc, (struct ibv_grh *)(memory + 4096), &back), "ibv_init_ah_from_wc");
    CHECK(back.is_global && back.grh.hop_limit == 9 && back.grh.traffic_class == 3 && back.grh.sgid_index == 0 &&
              memcmp(&back.grh.dgid, &gid, sizeof(gid)) == 0,
          "ibv_init_ah_from_wc: another sender");
    struct ibv_ah *answer = ibv_create_ah_from_wc(pd, &wc, (struct ibv_grh *)(memory + 4096), 1);

    CHECK(answer && !ibv_destroy_ah(answer) && !ibv_destroy_ah(ah), "ibv_create_ah_from_wc");
    CHECK(!ibv_destroy_qp(from) && !ibv_destroy_qp(to), "ibv_destroy_qp");
}

static void test_unreliable(void)
{
    struct ibv_qp *from = make_qp(IBV_QPT_UC, NULL, NULL, IBV_QP_EX_WITH_RDMA_WRITE_WITH_IMM | IBV_QP_EX_WITH_SEND);
    struct ibv_qp *to = make_qp(IBV_QPT_UC, NULL, NULL, 0);
    struct ibv_qp_ex *ex = ibv_qp_to_qp_ex(from);
    struct ibv_sge sge;
    struct ibv_recv_wr *bad, wr = receive_at(&sge, 1, 4096, 100);

    start(from, to->qp_num);
    start(to, from->qp_num);
    CHECK(!ibv_post_recv(to, &wr, &bad), "ibv_post_recv");
    memset(memory, 7, 2048);
    ibv_wr_start(ex);
    ex->wr_id = 2;
    ex->wr_flags = IBV_SEND_SIGNALED;
    ibv_wr_rdma_write_imm(ex, mr->rkey, (uintptr_t)memory + 8192, 5);
    ibv_wr_set_sge(ex, mr->lkey, (uintptr_t)memory, 2048);
    CHECK(!ibv_wr_complete(ex), "ibv_wr_complete");
    struct ibv_wc wc = expect_both(1, 2, "UC");

    CHECK(wc.opcode == IBV_WC_RECV_RDMA_WITH_IMM && wc.imm_data == 5 && memory[8192 + 2047] == 7, "UC: WRITE_WITH_IMM");
    CHECK(!ibv_destroy_qp(from) && !ibv_destroy_qp(to), "ibv_destroy_qp");
}

/* ---- XRC --------------------------------------------------------------- */

static struct ibv_xrcd *open_domain(struct ibv_context *in, int fd, int oflags)
{
    struct ibv_xrcd_init_attr attr = {
        .comp_mask = IBV_XRCD_INIT_ATTR_FD | IBV_XRCD_INIT_ATTR_OFLAGS, .fd = fd, .oflags = oflags};

    errno = 0;
    return ibv_open_xrcd(in, &attr);
}

static void test_xrc(void)
{
    char name[] = "/tmp/xrc-XXXXXX";
    int fd = mkstemp(name);

    CHECK(fd >= 0 && !unlink(name), "mkstemp");
    CHECK(!open_domain(context, fd, 0) && errno == EAGAIN, "a domain that isn't there: %s", strerror(errno));
    struct ibv_xrcd *domain = open_domain(context, fd, O_CREAT), *same = open_domain(context, fd, 0);

    CHECK(domain && same, "ibv_open_xrcd: %s", strerror(errno));
    CHECK(!open_domain(context, fd, O_CREAT | O_EXCL) && errno == EINVAL, "O_EXCL: %s", strerror(errno));
    CHECK(!open_domain(context, 9999, O_CREAT) && errno == EBADF, "no descriptor: %s", strerror(errno));
    struct ibv_srq_init_attr_ex attr = {
        .attr = {.max_wr = 16, .max_sge = 1}, .srq_type = IBV_SRQT_XRC, .pd = pd, .xrcd = same, .cq = cq,
        .comp_mask = IBV_SRQ_INIT_ATTR_TYPE | IBV_SRQ_INIT_ATTR_PD | IBV_SRQ_INIT_ATTR_XRCD | IBV_SRQ_INIT_ATTR_CQ};
    struct ibv_srq *srq = ibv_create_srq_ex(context, &attr);
    uint32_t number;

    CHECK(srq && !ibv_get_srq_num(srq, &number) && number, "ibv_create_srq_ex: %s", strerror(errno));
    struct ibv_qp *from = make_qp(IBV_QPT_XRC_SEND, NULL, NULL, IBV_QP_EX_WITH_SEND | IBV_QP_EX_WITH_RDMA_READ);
    struct ibv_qp *to = make_qp(IBV_QPT_XRC_RECV, NULL, domain, 0);
    struct ibv_qp_open_attr open = {
        .comp_mask = IBV_QP_OPEN_ATTR_NUM | IBV_QP_OPEN_ATTR_XRCD | IBV_QP_OPEN_ATTR_TYPE, .qp_num = to->qp_num,
        .xrcd = same, .qp_type = IBV_QPT_XRC_RECV};
    struct ibv_qp *opened = ibv_open_qp(context, &open);

    CHECK(opened && opened->qp_num == to->qp_num, "ibv_open_qp: %s", strerror(errno));
    start(from, to->qp_num);
    start(to, from->qp_num);
    /* It lives as long as one of its openers holds it. */
    CHECK(!ibv_destroy_qp(to) && !ibv_close_xrcd(domain) && ibv_close_xrcd(same) == EBUSY, "closing");

    struct ibv_qp_ex *ex = ibv_qp_to_qp_ex(from);
    struct ibv_sge sge;
    struct ibv_recv_wr *bad, wr = receive_at(&sge, 1, 4096, 100);
    struct ibv_send_wr *bad_send, nothing = {.opcode = IBV_WR_SEND};

    CHECK(!ibv_post_srq_recv(srq, &wr, &bad), "ibv_post_srq_recv");
    CHECK(ibv_post_send(opened, &nothing, &bad_send) == EINVAL && ibv_post_recv(opened, &wr, &bad) == EINVAL,
          "an XRC_RECV QP takes no work");
    ibv_wr_start(ex);
    ex->wr_id = 2;
    ex->wr_flags = IBV_SEND_SIGNALED;
    ibv_wr_send(ex);
    ibv_wr_set_xrc_srqn(ex, number);
    ibv_wr_set_sge(ex, mr->lkey, (uintptr_t)memory, 64);
    CHECK(!ibv_wr_complete(ex), "ibv_wr_complete");
    CHECK(expect_both(1, 2, "XRC").qp_num == opened->qp_num, "XRC: which QP");
    CHECK(!ibv_destroy_qp(from) && !ibv_destroy_qp(opened) && !ibv_destroy_srq(srq) && !ibv_close_xrcd(same), "end");
    close(fd);
}

/* ---- contexts and refusals --------------------------------------------- */

static bool readable(int fd)
{
    struct pollfd ready = {.fd = fd, .events = POLLIN};

    return poll(&ready, 1, 0) == 1;
}

static void test_contexts(void)
{
    struct ibv_context *other = open_device();
    struct ibv_pd *other_pd = ibv_alloc_pd(other);
    struct ibv_cq *other_cq = ibv_create_cq(other, 16, NULL, NULL, 0);
    struct ibv_srq_init_attr srq_attr = {.attr = {.max_wr = 16, .max_sge = 1}};
    struct ibv_srq *srq = ibv_create_srq(other_pd, &srq_attr);
    struct ibv_qp_init_attr attr = {.send_cq = other_cq, .recv_cq = other_cq, .srq = srq, .qp_type = IBV_QPT_RC,
                                    .cap = {.max_send_wr = 4, .max_send_sge = 1}};
    struct ibv_qp_attr init = {.qp_state = IBV_QPS_INIT, .port_num = 1}, error = {.qp_state = IBV_QPS_ERR};
    struct ibv_async_event event;

    CHECK(other_pd && other_cq && srq, "objects of another context");
    struct ibv_qp *qp = ibv_create_qp(other_pd, &attr);

    CHECK(qp && !ibv_modify_qp(qp, &init, IBV_QP_STATE | IBV_QP_PKEY_INDEX | IBV_QP_PORT | IBV_QP_ACCESS_FLAGS) &&
              !ibv_modify_qp(qp, &error, IBV_QP_STATE),
          "ERR");
    CHECK(readable(other->async_fd) && !readable(context->async_fd), "an event in another context's pipe");
    CHECK(!ibv_get_async_event(other, &event) && event.event_type == IBV_EVENT_QP_LAST_WQE_REACHED &&
              event.element.qp == qp,
          "the event");
    ibv_ack_async_event(&event);
    /* What is left is destroyed with the context. */
    CHECK(!ibv_close_device(other), "ibv_close_device");
}

static void test_refusals(void)
{
    struct ibv_qp_init_attr attr = {.send_cq = cq, .recv_cq = cq, .qp_type = IBV_QPT_RAW_PACKET,
                                    .cap = {.max_send_wr = 1, .max_recv_wr = 1, .max_send_sge = 1, .max_recv_sge = 1}};
    struct ibv_qp_init_attr_ex extended = {
        .send_cq = cq, .recv_cq = cq, .qp_type = IBV_QPT_UD, .cap = attr.cap, .pd = pd,
        .comp_mask = IBV_QP_INIT_ATTR_PD | IBV_QP_INIT_ATTR_CREATE_FLAGS, .create_flags = IBV_QP_CREATE_SCATTER_FCS};
    struct ibv_ah_attr nowhere = {.port_num = 1};
    struct ibv_srq_init_attr empty = {.attr = {.max_wr = 0, .max_sge = 1}};

    CHECK(!ibv_create_qp(pd, &attr) && errno == EOPNOTSUPP, "raw packets: %s", strerror(errno));
    attr.qp_type = IBV_QPT_XRC_RECV;
    CHECK(!ibv_create_qp(pd, &attr) && errno == EINVAL, "XRC_RECV without a domain: %s", strerror(errno));
    attr.qp_type = (enum ibv_qp_type)77;
    CHECK(!ibv_create_qp(pd, &attr) && errno == EINVAL, "a type that there isn't: %s", strerror(errno));
    CHECK(!ibv_create_qp_ex(context, &extended) && errno == EOPNOTSUPP, "creation flags: %s", strerror(errno));
    extended.comp_mask = IBV_QP_INIT_ATTR_PD | IBV_QP_INIT_ATTR_SEND_OPS_FLAGS;
    extended.send_ops_flags = IBV_QP_EX_WITH_RDMA_READ;
    CHECK(!ibv_create_qp_ex(context, &extended) && errno == EOPNOTSUPP, "READ over UD: %s", strerror(errno));
    CHECK(!ibv_create_ah(pd, &nowhere) && errno == EINVAL, "an AH without a GID: %s", strerror(errno));
    CHECK(!ibv_create_srq(pd, &empty) && errno == EINVAL, "an SRQ without room: %s", strerror(errno));
}

/* ---- threads ----------------------------------------------------------- */

enum { QPS = 4, MESSAGES = 5000 };

static struct ibv_qp *senders[QPS], *receivers[QPS];
static struct ibv_srq *shared;
static int to_post, left;

static void *send_all_of(void *argument)
{
    struct ibv_sge sge = {.addr = (uintptr_t)memory, .length = 8, .lkey = mr->lkey};
    struct ibv_send_wr *bad, wr = {.sg_list = &sge, .num_sge = 1, .opcode = IBV_WR_SEND, .send_flags = IBV_SEND_SIGNALED};

    for (int i = 0; i < MESSAGES;) {
        int error = ibv_post_send(argument, &wr, &bad);

        CHECK(!error || error == ENOMEM, "ibv_post_send: %d", error);
        i += !error;
        if (error)
            sched_yield();
    }
    return NULL;
}

static void *post_receives(void *unused)
{
    struct ibv_sge sge;
    struct ibv_recv_wr *bad, wr = receive_at(&sge, 1, 4096, 8);

    while (__atomic_fetch_sub(&to_post, 1, __ATOMIC_RELAXED) > 0)
        for (int error = ENOMEM; error;) {
            error = ibv_post_srq_recv(shared, &wr, &bad);
            CHECK(!error || error == ENOMEM, "ibv_post_srq_recv: %d", error);
            if (error)
                sched_yield();
        }
    return unused;
}

static void *poll_all(void *unused)
{
    struct ibv_wc wc[16];

    while (__atomic_load_n(&left, __ATOMIC_RELAXED) > 0) {
        int count = ibv_poll_cq(cq, 16, wc);

        for (int i = 0; i < count; i++)
            CHECK(wc[i].status == IBV_WC_SUCCESS, "%s", ibv_wc_status_str(wc[i].status));
        __atomic_fetch_sub(&left, count, __ATOMIC_RELAXED);
        if (!count)
            sched_yield();
    }
    return unused;
}

static void *make_and_destroy(void *unused)
{
    for (int i = 0; i < 100; i++) {
        struct ibv_srq_init_attr attr = {.attr = {.max_wr = 8, .max_sge = 1}};
        struct ibv_srq *srq = ibv_create_srq(pd, &attr);
        struct ibv_qp *qp = make_qp(i % 2 ? IBV_QPT_UD : IBV_QPT_RC, srq, NULL, 0);

        CHECK(ibv_destroy_srq(srq) == EBUSY && !ibv_destroy_qp(qp) && !ibv_destroy_srq(srq), "destroying");
    }
    return unused;
}

static void test_threads(void)
{
    struct ibv_srq_init_attr attr = {.attr = {.max_wr = 32, .max_sge = 1}};
    pthread_t threads[QPS + 2 + 2 + 1];
    int count = 0;

    shared = ibv_create_srq(pd, &attr);
    CHECK(shared, "ibv_create_srq");
    for (int i = 0; i < QPS; i++) {
        senders[i] = make_qp(IBV_QPT_RC, NULL, NULL, 0);
        receivers[i] = make_qp(IBV_QPT_RC, shared, NULL, 0);
        start(senders[i], receivers[i]->qp_num);
        start(receivers[i], senders[i]->qp_num);
    }
    to_post = QPS * MESSAGES;
    left = 2 * QPS * MESSAGES;
    for (int i = 0; i < QPS; i++)
        pthread_create(&threads[count++], NULL, send_all_of, senders[i]);
    for (int i = 0; i < 2; i++) {
        pthread_create(&threads[count++], NULL, post_receives, NULL);
        pthread_create(&threads[count++], NULL, poll_all, NULL);
    }
    pthread_create(&threads[count++], NULL, make_and_destroy, NULL);
    for (int i = 0; i < count; i++)
        pthread_join(threads[i], NULL);
    CHECK(left == 0, "%d completions too many", -left);
    for (int i = 0; i < QPS; i++)
        CHECK(!ibv_destroy_qp(senders[i]) && !ibv_destroy_qp(receivers[i]), "ibv_destroy_qp");
    CHECK(!ibv_destroy_srq(shared), "ibv_destroy_srq");
}

int main(void)
{
    context = open_device();
    memory = aligned_alloc(4096, SIZE);
    pd = ibv_alloc_pd(context);
    cq = ibv_create_cq(context, 4096, NULL, NULL, 0);
    mr = ibv_reg_mr(pd, memory, SIZE, ALL);
    CHECK(pd && cq && mr && !ibv_query_gid(context, 1, 0, &gid), "set-up");
    test_datagram();
    test_unreliable();
    test_xrc();
    test_contexts();
    test_refusals();
    test_threads();
    CHECK(!ibv_dereg_mr(mr) && !ibv_destroy_cq(cq) && !ibv_dealloc_pd(pd) && !ibv_close_device(context), "end");
    printf("all kinds as they should\n");
    return 0;
}
