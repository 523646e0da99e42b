/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Completion queues: resized while threads poll and the engine completes, shared
 * by QPs, polled field by field, overrun and told so or not.
 */
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <string.h>
#include <time.h>

#include "pair.h"

enum { SIZE = 4096, ALL = IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_WRITE };

static struct ibv_context *context;
static uint8_t *memory;
static struct ibv_mr *mr;
static struct ibv_pd *pd;

static struct ibv_qp *loop_qp(struct ibv_cq *send_cq, struct ibv_cq *recv_cq, uint32_t depth)
{
    struct ibv_qp_init_attr init = {
        .send_cq = send_cq, .recv_cq = recv_cq, .qp_type = IBV_QPT_RC,
        .cap = {.max_send_wr = depth, .max_recv_wr = depth, .max_send_sge = 1, .max_recv_sge = 1}};
    struct ibv_qp_attr to_init = {.qp_state = IBV_QPS_INIT, .port_num = 1, .qp_access_flags = ALL};
    struct end end = {.context = context, .qp = ibv_create_qp(pd, &init)};

    CHECK(end.qp && !ibv_query_gid(context, 1, 0, &end.gid), "ibv_create_qp");
    CHECK(!ibv_modify_qp(end.qp, &to_init, IBV_QP_STATE | IBV_QP_PKEY_INDEX | IBV_QP_PORT | IBV_QP_ACCESS_FLAGS),
          "INIT");
    end_connect(&end, end.qp->qp_num, end.gid, 7, 14);
    return end.qp;
}

static int write_8(struct ibv_qp *qp, uint64_t wr_id, uint32_t from, uint32_t to)
{
    struct ibv_sge sge = {.addr = (uintptr_t)memory + from, .length = 8, .lkey = mr->lkey};
    struct ibv_send_wr *bad, wr = {.wr_id = wr_id, .sg_list = &sge, .num_sge = 1, .opcode = IBV_WR_RDMA_WRITE,
                                   .send_flags = IBV_SEND_SIGNALED,
                                   .wr.rdma = {(uintptr_t)memory + to, mr->rkey}};

    return ibv_post_send(qp, &wr, &bad);
}

static int post(struct ibv_qp *qp, uint64_t wr_id)
{
    return write_8(qp, wr_id, 0, 64);
}

/* Returns when all their completions lie in the CQ. */
static void complete(struct ibv_qp *qp, uint64_t from, uint64_t count)
{
    static uint64_t number;
    volatile uint64_t *last = (volatile uint64_t *)(memory + 128), *seen = (volatile uint64_t *)(memory + 192);
    struct ibv_qp_attr attr;
    struct ibv_qp_init_attr init;

    *last = ++number;
    for (uint64_t i = 0; i + 1 < count; i++)
        CHECK(!post(qp, from + i), "ibv_post_send");
    CHECK(!write_8(qp, from + count - 1, 128, 192), "ibv_post_send");
    while (*seen != number)
        sched_yield();
    /* A verb of the control path happens between two messages: the last one's completion is written. */
    CHECK(!ibv_query_qp(qp, &attr, IBV_QP_STATE, &init), "ibv_query_qp");
}

static void expect_ids(struct ibv_cq *cq, uint64_t from, uint64_t count)
{
    for (uint64_t i = 0; i < count; i++) {
        struct ibv_wc wc = wait_completion(cq);

        CHECK(wc.status == IBV_WC_SUCCESS && wc.wr_id == from + i, "%lu, not %lu", (long)wc.wr_id, (long)(from + i));
    }
}

static void test_resize(void)
{
    static const int sizes[] = {64, 500, 17, 4096, 16, 1, 100000, 33};
    struct ibv_cq *cq = ibv_create_cq(context, 100, NULL, NULL, 0);
    struct ibv_qp *qp = loop_qp(cq, cq, 64);
    struct ibv_wc wc;

    CHECK(cq->cqe >= 100, "%d entries", cq->cqe);
    for (unsigned i = 0; i < sizeof(sizes) / sizeof(*sizes); i++) {
        CHECK(!ibv_resize_cq(cq, sizes[i]) && cq->cqe >= sizes[i], "to %d: %d", sizes[i], cq->cqe);
        CHECK(ibv_poll_cq(cq, 1, &wc) == 0, "a completion from nowhere");
        CHECK(!post(qp, i), "post");
        expect_ids(cq, i, 1);
    }
    /* With completions waiting, at each place in the ring. */
    for (unsigned i = 0; i < 200; i++) {
        CHECK(!ibv_resize_cq(cq, 64), "grow");
        complete(qp, 0, 20);
        CHECK(ibv_resize_cq(cq, 19) == EINVAL && cq->cqe >= 64, "fewer than are waiting");
        CHECK(!ibv_resize_cq(cq, 20 + (int)i % 50), "shrink");
        expect_ids(cq, 0, 5);
        CHECK(!ibv_resize_cq(cq, 15 + (int)(i * 7) % 3000), "again");
        expect_ids(cq, 5, 15);
        CHECK(ibv_poll_cq(cq, 1, &wc) == 0, "a completion too many");
    }
    CHECK(ibv_resize_cq(cq, 0) == EINVAL && ibv_resize_cq(cq, -1) == EINVAL && ibv_resize_cq(cq, 1 << 30) == EINVAL,
          "sizes");
    CHECK(!ibv_destroy_qp(qp) && !ibv_destroy_cq(cq), "end");
}

/* ---- resized under load ------------------------------------------------ */

enum { POLLERS = 2, MESSAGES = 5000, DEPTH = 64, QPS = 3 };

static struct ibv_cq *shared;
static uint64_t seen[QPS];
static bool finished;
static pthread_mutex_t order = PTHREAD_MUTEX_INITIALIZER;

static void *poll_all(void *unused)
{
    struct ibv_wc wc[7];

    while (!__atomic_load_n(&finished, __ATOMIC_ACQUIRE)) {
        /* One at a time: only so is the order between pollers known. */
        pthread_mutex_lock(&order);
        int count = ibv_poll_cq(shared, 7, wc);

        CHECK(count >= 0, "ibv_poll_cq");
        for (int i = 0; i < count; i++) {
            uint64_t number = wc[i].wr_id >> 32, index = wc[i].wr_id & 0xffffffff;

            CHECK(wc[i].status == IBV_WC_SUCCESS && number < QPS && index == seen[number], "QP %lu: %lu, not %lu",
                  (long)number, (long)index, (long)seen[number]);
            __atomic_store_n(&seen[number], index + 1, __ATOMIC_RELEASE);
        }
        pthread_mutex_unlock(&order);
        if (count == 0)
            sched_yield();
    }
    return unused;
}

static void *resize_often(void *unused)
{
    for (unsigned i = 0; !__atomic_load_n(&finished, __ATOMIC_ACQUIRE); i++) {
        int error = ibv_resize_cq(shared, QPS * DEPTH + (int)(i * 37 % 2000));

        CHECK(!error, "ibv_resize_cq: %d", error);
    }
    return unused;
}

static void test_resize_under_load(void)
{
    pthread_t threads[POLLERS + 1];
    struct ibv_qp *qps[QPS];
    uint64_t posted[QPS] = {0};

    shared = ibv_create_cq(context, QPS * DEPTH, NULL, NULL, 1);
    for (int i = 0; i < QPS; i++)
        qps[i] = loop_qp(shared, shared, DEPTH);
    for (int i = 0; i <= POLLERS; i++)
        pthread_create(&threads[i], NULL, i < POLLERS ? poll_all : resize_often, NULL);
    for (bool more = true; more;) {
        more = false;
        for (int i = 0; i < QPS; i++) {
            while (posted[i] < MESSAGES && !post(qps[i], (uint64_t)i << 32 | posted[i]))
                posted[i]++;
            more |= __atomic_load_n(&seen[i], __ATOMIC_ACQUIRE) < MESSAGES;
        }
        sched_yield();
    }
    __atomic_store_n(&finished, true, __ATOMIC_RELEASE);
    for (int i = 0; i <= POLLERS; i++)
        pthread_join(threads[i], NULL);
    struct ibv_wc wc;

    CHECK(ibv_poll_cq(shared, 1, &wc) == 0, "a completion too many");
    for (int i = 0; i < QPS; i++)
        CHECK(!ibv_destroy_qp(qps[i]), "ibv_destroy_qp");
    CHECK(!ibv_destroy_cq(shared), "ibv_destroy_cq");
}

/* ---- extended ---------------------------------------------------------- */

static uint64_t realtime_ns(void)
{
    struct timespec now;

    clock_gettime(CLOCK_REALTIME, &now);
    return (uint64_t)now.tv_sec * 1000000000ull + (uint64_t)now.tv_nsec;
}

static void test_extended(uint32_t flags)
{
    struct ibv_cq_init_attr_ex attr = {
        .cqe = 64,
        .cq_context = &flags,
        .comp_vector = (uint32_t)context->num_comp_vectors - 1,
        .wc_flags = IBV_WC_STANDARD_FLAGS | IBV_WC_EX_WITH_COMPLETION_TIMESTAMP |
                    IBV_WC_EX_WITH_COMPLETION_TIMESTAMP_WALLCLOCK,
        .comp_mask = IBV_CQ_INIT_ATTR_MASK_FLAGS,
        .flags = flags,
    };
    struct ibv_cq_ex *cq = ibv_create_cq_ex(context, &attr);
    struct ibv_poll_cq_attr poll = {0};
    struct ibv_values_ex now = {.comp_mask = IBV_VALUES_MASK_RAW_CLOCK};
    uint64_t last = 0, begun = realtime_ns();

    CHECK(cq && cq->cq_context == &flags, "ibv_create_cq_ex: %d", errno);
    struct ibv_qp *qp = loop_qp(ibv_cq_ex_to_cq(cq), ibv_cq_ex_to_cq(cq), 64);

    CHECK(ibv_start_poll(cq, &poll) == ENOENT, "an empty CQ");
    for (int round = 0; round < 50; round++) {
        uint64_t next = 0;

        complete(qp, 0, 10);
        while (next < 10) {
            if (ibv_start_poll(cq, &poll))
                continue;
            do {
                CHECK(cq->status == IBV_WC_SUCCESS && cq->wr_id == next++, "wr_id %lu", (long)cq->wr_id);
                CHECK(ibv_wc_read_opcode(cq) == IBV_WC_RDMA_WRITE && ibv_wc_read_qp_num(cq) == qp->qp_num &&
                          ibv_wc_read_byte_len(cq) == 8 && ibv_wc_read_wc_flags(cq) == 0 &&
                          ibv_wc_read_vendor_err(cq) == 0,
                      "fields");
                uint64_t stamp = ibv_wc_read_completion_ts(cq), wall = ibv_wc_read_completion_wallclock_ns(cq);

                CHECK(stamp >= last, "time runs backwards");
                CHECK(wall + 1000000 > begun && wall < realtime_ns() + 1000000, "the time of day");
                last = stamp;
            } while (next < 10 && !ibv_next_poll(cq));
            if (next == 10)
                CHECK(ibv_next_poll(cq) == ENOENT, "no more");
            ibv_end_poll(cq);
        }
        if (round == 20)
            CHECK(!ibv_resize_cq(ibv_cq_ex_to_cq(cq), 1000), "ibv_resize_cq");
    }
    CHECK(!ibv_query_rt_values_ex(context, &now) &&
              (uint64_t)now.raw_clock.tv_sec * 1000000000ull + (uint64_t)now.raw_clock.tv_nsec >= last,
          "the device's clock");
    /* An error has its status and its wr_id. */
    struct ibv_qp_attr error = {.qp_state = IBV_QPS_ERR};

    CHECK(!ibv_modify_qp(qp, &error, IBV_QP_STATE) && !post(qp, 77), "post in ERR");
    while (ibv_start_poll(cq, &poll))
        ;
    CHECK(cq->status == IBV_WC_WR_FLUSH_ERR && cq->wr_id == 77, "flushed");
    ibv_end_poll(cq);
    CHECK(!ibv_destroy_qp(qp) && !ibv_destroy_cq(ibv_cq_ex_to_cq(cq)), "end");
}

/* Without end in sight: the oldest are lost, the CQ lives. */
static void test_ignored_overrun(void)
{
    struct ibv_cq_init_attr_ex attr = {.cqe = 16, .wc_flags = IBV_WC_STANDARD_FLAGS,
                                       .comp_mask = IBV_CQ_INIT_ATTR_MASK_FLAGS,
                                       .flags = IBV_CREATE_CQ_ATTR_IGNORE_OVERRUN};
    struct ibv_cq_ex *cq = ibv_create_cq_ex(context, &attr);
    struct ibv_qp *qp = loop_qp(ibv_cq_ex_to_cq(cq), ibv_cq_ex_to_cq(cq), 1024);
    struct ibv_wc wc;
    int count = 0;

    complete(qp, 0, 100);
    for (uint64_t last = 0; ibv_poll_cq(ibv_cq_ex_to_cq(cq), 1, &wc) == 1; count++) {
        CHECK(wc.status == IBV_WC_SUCCESS && wc.wr_id >= last, "in order");
        last = wc.wr_id;
    }
    CHECK(count > 0 && count <= 16 && wc.wr_id == 99, "%d, the last %lu", count, (long)wc.wr_id);
    complete(qp, 100, 10);
    expect_ids(ibv_cq_ex_to_cq(cq), 100, 10);
    CHECK(!ibv_destroy_qp(qp) && !ibv_destroy_cq(ibv_cq_ex_to_cq(cq)), "end");
}

static void test_arguments(void)
{
    struct ibv_modify_cq_attr moderation = {.attr_mask = IBV_CQ_ATTR_MODERATE, .moderate = {1, 1}};
    struct ibv_cq_init_attr_ex attr = {.cqe = 16};
    struct ibv_poll_cq_attr poll = {.comp_mask = 1};
    struct ibv_device_attr device;

    CHECK(!ibv_query_device(context, &device), "ibv_query_device");
    CHECK(context->num_comp_vectors > 1, "%d completion vectors", context->num_comp_vectors);
    CHECK(!ibv_create_cq(context, 0, NULL, NULL, 0) && errno == EINVAL, "no entries");
    CHECK(!ibv_create_cq(context, -1, NULL, NULL, 0) && errno == EINVAL, "fewer than none");
    CHECK(!ibv_create_cq(context, device.max_cqe + 1, NULL, NULL, 0) && errno == EINVAL, "more than max_cqe");
    CHECK(!ibv_create_cq(context, 16, NULL, NULL, -1) && errno == EINVAL, "vector -1");
    CHECK(!ibv_create_cq(context, 16, NULL, NULL, context->num_comp_vectors) && errno == EINVAL, "no such vector");
    attr.cqe = 0;
    CHECK(!ibv_create_cq_ex(context, &attr) && errno == EINVAL, "ex: no entries");
    attr.cqe = 16;
    attr.comp_vector = (uint32_t)context->num_comp_vectors;
    CHECK(!ibv_create_cq_ex(context, &attr) && errno == EINVAL, "ex: no such vector");
    attr.comp_vector = 0;
    attr.comp_mask = 1u << 30;
    CHECK(!ibv_create_cq_ex(context, &attr) && errno == EINVAL, "ex: comp_mask");
    attr.comp_mask = IBV_CQ_INIT_ATTR_MASK_FLAGS;
    attr.flags = 1u << 30;
    CHECK(!ibv_create_cq_ex(context, &attr) && errno == EINVAL, "ex: flags");
    attr.flags = 0;
    for (unsigned bit = 0; bit < 64; bit++) {
        const uint64_t lacking = IBV_WC_EX_WITH_CVLAN | IBV_WC_EX_WITH_FLOW_TAG | IBV_WC_EX_WITH_TM_INFO | ~0xfffull;

        attr.wc_flags = 1ull << bit;
        struct ibv_cq_ex *cq = ibv_create_cq_ex(context, &attr);

        CHECK(lacking >> bit & 1 ? !cq && errno == EOPNOTSUPP : cq != NULL, "ex: wc_flags bit %u: %d", bit, errno);
        if (!cq)
            continue;
        CHECK(ibv_start_poll(cq, &poll) == EINVAL, "ex: poll's comp_mask");
        CHECK(ibv_modify_cq(ibv_cq_ex_to_cq(cq), &moderation) == EOPNOTSUPP, "ibv_modify_cq");
        CHECK(!ibv_destroy_cq(ibv_cq_ex_to_cq(cq)), "ibv_destroy_cq");
    }
}

int main(void)
{
    context = open_device();
    pd = ibv_alloc_pd(context);
    memory = malloc(SIZE);
    mr = ibv_reg_mr(pd, memory, SIZE, ALL);
    CHECK(pd && mr, "ibv_reg_mr");
    test_arguments();
    test_resize();
    test_resize_under_load();
    test_extended(0);
    test_extended(IBV_CREATE_CQ_ATTR_SINGLE_THREADED);
    test_ignored_overrun();
    CHECK(!ibv_dereg_mr(mr) && !ibv_dealloc_pd(pd) && !ibv_close_device(context), "end");
    printf("completion queues as they should\n");
    return 0;
}
