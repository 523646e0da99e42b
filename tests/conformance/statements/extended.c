/* SPDX-License-Identifier: Apache-2.0 */
/* The extended interfaces: ibv_wr_* for posting, ibv_start_poll for completions. */
#include <arpa/inet.h>

#include "suite.h"

enum {
    OPERATIONS = IBV_QP_EX_WITH_RDMA_WRITE | IBV_QP_EX_WITH_RDMA_WRITE_WITH_IMM | IBV_QP_EX_WITH_SEND | IBV_QP_EX_WITH_SEND_WITH_IMM |
                 IBV_QP_EX_WITH_RDMA_READ | IBV_QP_EX_WITH_ATOMIC_CMP_AND_SWP | IBV_QP_EX_WITH_ATOMIC_FETCH_AND_ADD,
};

static struct ibv_qp_ex *connect_extended(struct end *e)
{
    struct plan plan = plan_of(IBV_QPT_RC);

    plan.send_ops = OPERATIONS;
    connect_as(e, &plan);
    struct ibv_qp_ex *qp = ibv_qp_to_qp_ex(e->qp);

    CHECK(qp);
    return qp;
}

TEST(all_operations, BOTH, "each ibv_wr_* operation does what its opcode does", "man ibv_wr_post")
{
    struct ibv_qp_ex *qp = connect_extended(e);

    if (!e->first)
        for (uint64_t i = 0; i < 3; i++)
            RECEIVE(100 + i, 131072 + 4096 * (uint32_t)i, 4096);
    meet(e);
    if (e->first) {
        uint32_t lkey = e->mr->lkey, rkey = e->peer.rkey;
        uint64_t base = (uintptr_t)e->memory, remote = e->peer.memory;

        ibv_wr_start(qp);
        qp->wr_flags = IBV_SEND_SIGNALED;
        qp->wr_id = 1;
        ibv_wr_rdma_write(qp, rkey, remote);
        ibv_wr_set_sge(qp, lkey, base, 1000);
        qp->wr_id = 2;
        ibv_wr_rdma_write_imm(qp, rkey, remote + 4096, htonl(7));
        ibv_wr_set_sge(qp, lkey, base, 1000);
        qp->wr_id = 3;
        ibv_wr_send(qp);
        ibv_wr_set_sge(qp, lkey, base, 100);
        qp->wr_id = 4;
        ibv_wr_send_imm(qp, htonl(8));
        ibv_wr_set_sge(qp, lkey, base + 1, 100);
        qp->wr_id = 5;
        ibv_wr_rdma_read(qp, rkey, remote);
        ibv_wr_set_sge(qp, lkey, base + 65536, 1000);
        qp->wr_id = 6;
        ibv_wr_atomic_fetch_add(qp, rkey, remote + 65536, 5);
        ibv_wr_set_sge(qp, lkey, base + 70000, 8);
        qp->wr_id = 7;
        ibv_wr_atomic_cmp_swp(qp, rkey, remote + 65536, 0x555555555555555aull, 1);
        ibv_wr_set_sge(qp, lkey, base + 70008, 8);
        DO(ibv_wr_complete(qp));
        for (uint64_t i = 1; i <= 7; i++)
            EXPECT(i, IBV_WC_SUCCESS);
        ARRIVED(65536, 1000, 0);
    } else {
        EQUAL(EXPECT(100, IBV_WC_SUCCESS).opcode, IBV_WC_RECV_RDMA_WITH_IMM);
        EQUAL(EXPECT(101, IBV_WC_SUCCESS).byte_len, 100);
        EQUAL(ntohl(EXPECT(102, IBV_WC_SUCCESS).imm_data), 8);
    }
    meet(e);
    if (!e->first) {
        uint64_t word;

        memcpy(&word, e->memory + 65536, 8);
        EQUAL(word, 1);
        ARRIVED(0, 1000, 0);
        ARRIVED(4096, 1000, 0);
        ARRIVED(131072 + 4096, 100, 0);
        ARRIVED(131072 + 8192, 100, 1);
    }
}

TEST(abort, BOTH, "ibv_wr_abort posts nothing of its batch", "man ibv_wr_post")
{
    struct ibv_qp_ex *qp = connect_extended(e);

    if (e->first) {
        for (int i = 0; i < 100; i++) {
            ibv_wr_start(qp);
            qp->wr_flags = IBV_SEND_SIGNALED;
            ibv_wr_rdma_write(qp, e->peer.rkey, e->peer.memory);
            ibv_wr_set_sge(qp, e->mr->lkey, (uintptr_t)e->memory, 100);
            ibv_wr_abort(qp);
        }
        EXPECT_NOTHING();
        ASK(.opcode = IBV_WR_RDMA_WRITE, .wr_id = 2, .length = 10, .to = 4096);
        EXPECT(2, IBV_WC_SUCCESS);
    }
    meet(e);
    if (!e->first) {
        UNTOUCHED(0, 4096);
        ARRIVED(4096, 10, 0);
    }
}

TEST(too_many, BOTH, "a batch that doesn't fit fails as a whole in ibv_wr_complete", "man ibv_wr_post")
{
    struct ibv_qp_ex *qp = connect_extended(e);
    struct ibv_qp_attr attr;
    struct ibv_qp_init_attr init;

    DO(ibv_query_qp(e->qp, &attr, IBV_QP_CAP, &init));
    if (e->first) {
        ibv_wr_start(qp);
        qp->wr_flags = IBV_SEND_SIGNALED;
        for (unsigned i = 0; i <= init.cap.max_send_wr; i++) {
            ibv_wr_rdma_write(qp, e->peer.rkey, e->peer.memory);
            ibv_wr_set_sge(qp, e->mr->lkey, (uintptr_t)e->memory, 100);
        }
        int error = ibv_wr_complete(qp);

        CHECK_THAT(error == ENOMEM || error == ENOSPC, "%s", strerror(error));
        EXPECT_NOTHING();
        ASK(.opcode = IBV_WR_RDMA_WRITE, .wr_id = 2, .length = 10, .to = 4096);
        EXPECT(2, IBV_WC_SUCCESS);
    }
    meet(e);
    if (!e->first)
        UNTOUCHED(0, 4096);
}

TEST(sge_list, BOTH, "ibv_wr_set_sge_list gathers the message", "man ibv_wr_post")
{
    struct ibv_qp_ex *qp = connect_extended(e);

    if (e->first) {
        uint64_t base = (uintptr_t)e->memory;
        struct ibv_sge sges[2] = {{base + 5, 10, e->mr->lkey}, {base + 50, 20, e->mr->lkey}};

        ibv_wr_start(qp);
        qp->wr_id = 1;
        qp->wr_flags = IBV_SEND_SIGNALED;
        ibv_wr_rdma_write(qp, e->peer.rkey, e->peer.memory);
        ibv_wr_set_sge_list(qp, 2, sges);
        DO(ibv_wr_complete(qp));
        EXPECT(1, IBV_WC_SUCCESS);
    }
    meet(e);
    if (!e->first) {
        ARRIVED(0, 10, 5);
        ARRIVED(10, 20, 50);
        UNTOUCHED(30, 64);
    }
}

TEST(inline_data, BOTH, "data of ibv_wr_set_inline_data may change before ibv_wr_complete", "man ibv_wr_post")
{
    struct ibv_qp_ex *qp = connect_extended(e);

    if (e->first) {
        uint8_t stack[16];

        memcpy(stack, e->memory + 3, 16);
        ibv_wr_start(qp);
        qp->wr_id = 1;
        qp->wr_flags = IBV_SEND_SIGNALED;
        ibv_wr_rdma_write(qp, e->peer.rkey, e->peer.memory);
        ibv_wr_set_inline_data(qp, stack, 16);
        memset(stack, 0, sizeof(stack));
        DO(ibv_wr_complete(qp));
        EXPECT(1, IBV_WC_SUCCESS);
    }
    meet(e);
    if (!e->first)
        ARRIVED(0, 16, 3);
}

TEST(inline_data_list, BOTH, "ibv_wr_set_inline_data_list gathers inline data", "man ibv_wr_post")
{
    struct ibv_qp_ex *qp = connect_extended(e);

    if (e->first) {
        struct ibv_data_buf parts[2] = {{e->memory + 7, 8}, {e->memory + 70, 9}};

        ibv_wr_start(qp);
        qp->wr_id = 1;
        qp->wr_flags = IBV_SEND_SIGNALED;
        ibv_wr_rdma_write(qp, e->peer.rkey, e->peer.memory);
        ibv_wr_set_inline_data_list(qp, 2, parts);
        DO(ibv_wr_complete(qp));
        EXPECT(1, IBV_WC_SUCCESS);
    }
    meet(e);
    if (!e->first) {
        ARRIVED(0, 8, 7);
        ARRIVED(8, 9, 70);
        UNTOUCHED(17, 64);
    }
}

TEST(plain_qp_has_no_extension, SOLO, "ibv_qp_to_qp_ex gives NULL for a QP made without send_ops_flags", "man ibv_create_qp_ex")
{
    struct plan plan = plan_of(IBV_QPT_RC);

    set_up(e, &plan);
    e->qp = create_qp(e, &plan);
    CHECK(!ibv_qp_to_qp_ex(e->qp));
}

TEST(unknown_wishes, SOLO, "ibv_create_qp_ex refuses masks that it doesn't know", "man ibv_create_qp_ex: EINVAL or EOPNOTSUPP")
{
    struct plan plan = plan_of(IBV_QPT_RC);

    set_up(e, &plan);
    struct ibv_qp_init_attr_ex attr = {
        .send_cq = e->cq, .recv_cq = e->cq, .qp_type = IBV_QPT_RC, .pd = e->pd, .comp_mask = IBV_QP_INIT_ATTR_PD | 1u << 30,
        .cap = {.max_send_wr = 1, .max_recv_wr = 1, .max_send_sge = 1, .max_recv_sge = 1}};

    errno = 0;
    CHECK(!ibv_create_qp_ex(e->context, &attr));
    CHECK(errno == EINVAL || errno == EOPNOTSUPP);
    attr.comp_mask = IBV_QP_INIT_ATTR_PD | IBV_QP_INIT_ATTR_SEND_OPS_FLAGS;
    attr.send_ops_flags = 1ull << 50;
    errno = 0;
    CHECK(!ibv_create_qp_ex(e->context, &attr));
    CHECK(errno == EINVAL || errno == EOPNOTSUPP);
}

/* ---- ibv_cq_ex --------------------------------------------------------------------------- */

static struct ibv_cq_ex *connect_with_cq_ex(struct end *e, uint64_t flags)
{
    struct plan plan = plan_of(IBV_QPT_RC);
    struct ibv_cq_init_attr_ex attr = {.cqe = 128, .wc_flags = flags};

    set_up(e, &plan);
    struct ibv_cq_ex *cq = MADE(ibv_create_cq_ex(e->context, &attr), ibv_destroy_cq);

    e->cq = ibv_cq_ex_to_cq(cq);
    e->qp = create_qp(e, &plan);
    e->peer = join(e, e->qp, &plan);
    return cq;
}

static void start(struct end *e, struct ibv_cq_ex *cq)
{
    struct ibv_poll_cq_attr attr = {.comp_mask = 0};
    double deadline = now() + e->options->patience;
    int error;

    while ((error = ibv_start_poll(cq, &attr)) == ENOENT) {
        CHECK_THAT(now() < deadline, "no completion");
        look_after_other(e);
    }
    EQUAL(error, 0);
}

TEST(start_poll, BOTH, "ibv_start_poll, next_poll and end_poll give completions with the fields asked for; ENOENT where there is none", "man ibv_create_cq_ex")
{
    struct ibv_poll_cq_attr attr = {.comp_mask = 0};
    struct ibv_cq_ex *cq = connect_with_cq_ex(e, IBV_WC_EX_WITH_BYTE_LEN | IBV_WC_EX_WITH_IMM | IBV_WC_EX_WITH_QP_NUM | IBV_WC_EX_WITH_SRC_QP);

    EQUAL(ibv_start_poll(cq, &attr), ENOENT);
    if (!e->first)
        for (uint64_t i = 0; i < 3; i++)
            RECEIVE(i, 0, 64);
    meet(e);
    if (e->first)
        for (uint64_t i = 0; i < 3; i++)
            ASK(.opcode = IBV_WR_SEND_WITH_IMM, .wr_id = i, .length = 10 + (uint32_t)i, .imm = (uint32_t)i);
    uint64_t seen = 0;

    while (seen < 3) {
        start(e, cq);
        int error;

        do {
            EQUAL(cq->wr_id, seen);
            EQUAL(cq->status, IBV_WC_SUCCESS);
            EQUAL(ibv_wc_read_opcode(cq), e->first ? IBV_WC_SEND : IBV_WC_RECV);
            EQUAL(ibv_wc_read_qp_num(cq), e->qp->qp_num);
            EQUAL(ibv_wc_read_vendor_err(cq), 0);
            if (!e->first) {
                EQUAL(ibv_wc_read_byte_len(cq), 10 + seen);
                EQUAL(ntohl(ibv_wc_read_imm_data(cq)), seen);
                CHECK(ibv_wc_read_wc_flags(cq) & IBV_WC_WITH_IMM);
            }
            seen++;
            error = ibv_next_poll(cq);
        } while (!error);
        EQUAL(error, ENOENT);
        ibv_end_poll(cq);
    }
    meet(e);
}

TEST(both_ways_of_polling, BOTH, "a CQ made with ibv_create_cq_ex can be polled with ibv_poll_cq", "man ibv_create_cq_ex: ibv_cq_ex_to_cq")
{
    struct ibv_cq_ex *cq = connect_with_cq_ex(e, IBV_WC_STANDARD_FLAGS);

    if (e->first) {
        ASK(.opcode = IBV_WR_RDMA_WRITE, .wr_id = 1, .length = 8);
        EXPECT(1, IBV_WC_SUCCESS);
        ASK(.opcode = IBV_WR_RDMA_WRITE, .wr_id = 2, .length = 8);
        start(e, cq);
        EQUAL(cq->wr_id, 2);
        ibv_end_poll(cq);
    }
    meet(e);
}

TEST(completion_time, BOTH, "completion timestamps, where offered, don't run backwards", "man ibv_create_cq_ex: IBV_WC_EX_WITH_COMPLETION_TIMESTAMP")
{
    struct ibv_cq_ex *cq = connect_with_cq_ex(e, IBV_WC_EX_WITH_COMPLETION_TIMESTAMP);
    uint64_t last = 0;

    for (uint64_t i = 0; e->first && i < 10; i++) {
        ASK(.opcode = IBV_WR_RDMA_WRITE, .wr_id = i, .length = 8);
        start(e, cq);
        CHECK(ibv_wc_read_completion_ts(cq) >= last);
        last = ibv_wc_read_completion_ts(cq);
        ibv_end_poll(cq);
    }
    meet(e);
}

TEST(unknown_fields, SOLO, "ibv_create_cq_ex refuses fields that it doesn't know", "man ibv_create_cq_ex: EINVAL or EOPNOTSUPP")
{
    struct ibv_cq_init_attr_ex attr = {.cqe = 16, .wc_flags = 1ull << 60};

    errno = 0;
    CHECK(!ibv_create_cq_ex(e->context, &attr));
    CHECK_THAT(errno == EINVAL || errno == EOPNOTSUPP || errno == ENOSYS, "%s", strerror(errno));
}
