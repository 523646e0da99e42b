/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Memory windows of both types: what they open, what they keep shut, and how they
 * end. a's QP writes through windows of b's memory.
 */
#include <errno.h>
#include <fcntl.h>
#include <string.h>

#include "pair.h"

enum { SIZE = 8192, AT = 1024, LENGTH = 256 };
enum { REMOTE = IBV_ACCESS_REMOTE_WRITE | IBV_ACCESS_REMOTE_READ | IBV_ACCESS_REMOTE_ATOMIC };

static struct ibv_context *context;
static struct end a, b;
static uint8_t *source, *target;
static struct ibv_mr *source_mr, *target_mr;
static int tests;

static void set_up_with(int access)
{
    end_open(&a, context, 0);
    end_open(&b, context, 0);
    end_connect(&a, b.qp->qp_num, b.gid, 7, 12);
    end_connect(&b, a.qp->qp_num, a.gid, 7, 12);
    memset(source, 0xaa, SIZE);
    memset(target, 0x55, SIZE);
    source_mr = ibv_reg_mr(a.pd, source, SIZE, IBV_ACCESS_LOCAL_WRITE | REMOTE);
    target_mr = ibv_reg_mr(b.pd, target, SIZE, access);
    CHECK(source_mr && target_mr, "ibv_reg_mr");
}

/* The region itself grants nothing from afar: only windows do. */
static void set_up(void)
{
    set_up_with(IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_MW_BIND);
}

static void drain_events(void)
{
    struct ibv_async_event event;
    int flags = fcntl(context->async_fd, F_GETFL);

    fcntl(context->async_fd, F_SETFL, flags | O_NONBLOCK);
    while (!ibv_get_async_event(context, &event))
        ibv_ack_async_event(&event);
    fcntl(context->async_fd, F_SETFL, flags);
}

static void tear_down(void)
{
    CHECK(!ibv_dereg_mr(source_mr) && !ibv_dereg_mr(target_mr), "ibv_dereg_mr");
    drain_events();
    end_close(&a);
    end_close(&b);
    tests++;
}

static void expect(struct end *end, enum ibv_wc_status status, const char *what)
{
    struct ibv_wc wc = wait_completion(end->cq);

    CHECK(wc.status == status, "%s: %s, not %s", what, ibv_wc_status_str(wc.status), ibv_wc_status_str(status));
}

static enum ibv_wc_status rdma(enum ibv_wr_opcode opcode, uint64_t remote, uint32_t length, uint32_t rkey)
{
    struct ibv_sge sge = {.addr = (uintptr_t)source, .length = length, .lkey = source_mr->lkey};
    struct ibv_send_wr *bad, wr = {.sg_list = &sge, .num_sge = 1, .opcode = opcode,
                                   .send_flags = IBV_SEND_SIGNALED, .wr.rdma = {remote, rkey}};

    if (opcode == IBV_WR_ATOMIC_FETCH_AND_ADD) {
        wr.wr.atomic.remote_addr = remote;
        wr.wr.atomic.rkey = rkey;
        wr.wr.atomic.compare_add = 1;
    }
    CHECK(!ibv_post_send(a.qp, &wr, &bad), "ibv_post_send");
    return wait_completion(a.cq).status;
}

static void expect_written(uint32_t from, uint32_t length, const char *what)
{
    for (uint32_t i = 0; i < SIZE; i++)
        CHECK(target[i] == (i >= from && i < from + length ? 0xaa : 0x55), "%s: byte %u", what, i);
}

static void bind_1(struct ibv_mw *mw, struct ibv_mr *mr, uint64_t addr, uint64_t length, unsigned access,
                   enum ibv_wc_status status, const char *what)
{
    struct ibv_mw_bind bind = {.wr_id = 5, .send_flags = IBV_SEND_SIGNALED,
                               .bind_info = {.mr = mr, .addr = addr, .length = length, .mw_access_flags = access}};
    uint32_t before = mw->rkey;

    CHECK(!ibv_bind_mw(b.qp, mw, &bind), "%s: ibv_bind_mw", what);
    CHECK(mw->rkey != before && (mw->rkey & ~0xffu) == (before & ~0xffu), "%s: the key", what);
    struct ibv_wc wc = wait_completion(b.cq);

    CHECK(wc.status == status && wc.wr_id == 5, "%s: %s", what, ibv_wc_status_str(wc.status));
    CHECK(status || wc.opcode == IBV_WC_BIND_MW, "%s: opcode %d", what, wc.opcode);
}

static void bind_2(struct end *end, struct ibv_mw *mw, uint32_t rkey, struct ibv_mr *mr, uint64_t addr,
                   uint64_t length, unsigned access, enum ibv_wc_status status, const char *what)
{
    struct ibv_send_wr *bad, wr = {
        .opcode = IBV_WR_BIND_MW, .send_flags = IBV_SEND_SIGNALED,
        .bind_mw = {.mw = mw, .rkey = rkey,
                    .bind_info = {.mr = mr, .addr = addr, .length = length, .mw_access_flags = access}}};

    CHECK(!ibv_post_send(end->qp, &wr, &bad), "%s: post", what);
    expect(end, status, what);
    if (status == IBV_WC_SUCCESS)
        mw->rkey = rkey;
}

static void invalidate(struct end *end, uint32_t rkey, enum ibv_wc_status status, const char *what)
{
    struct ibv_send_wr *bad, wr = {
        .opcode = IBV_WR_LOCAL_INV, .send_flags = IBV_SEND_SIGNALED, .invalidate_rkey = rkey};

    CHECK(!ibv_post_send(end->qp, &wr, &bad), "%s: post", what);
    struct ibv_wc wc = wait_completion(end->cq);

    CHECK(wc.status == status, "%s: %s", what, ibv_wc_status_str(wc.status));
    CHECK(status || wc.opcode == IBV_WC_LOCAL_INV, "%s: opcode %d", what, wc.opcode);
}

static void send_with_invalidate(uint32_t rkey)
{
    struct ibv_sge to = {.addr = (uintptr_t)target, .length = 8, .lkey = target_mr->lkey};
    struct ibv_sge from = {.addr = (uintptr_t)target, .length = 0, .lkey = 0};
    struct ibv_recv_wr *bad_recv, recv = {.sg_list = &to, .num_sge = 1};
    struct ibv_send_wr *bad, wr = {.sg_list = &from, .num_sge = 0, .opcode = IBV_WR_SEND_WITH_INV,
                                   .send_flags = IBV_SEND_SIGNALED, .invalidate_rkey = rkey};

    CHECK(!ibv_post_recv(b.qp, &recv, &bad_recv) && !ibv_post_send(a.qp, &wr, &bad), "SEND_WITH_INV");
}

static void test_type_1(void)
{
    uint64_t at = (uintptr_t)target + AT;

    set_up();
    struct ibv_mw *mw = ibv_alloc_mw(b.pd, IBV_MW_TYPE_1);

    CHECK(mw && mw->pd == b.pd && mw->type == IBV_MW_TYPE_1, "ibv_alloc_mw");
    CHECK(ibv_dealloc_pd(b.pd) == EBUSY, "a PD with a window");
    bind_1(mw, target_mr, at, LENGTH, IBV_ACCESS_REMOTE_WRITE, IBV_WC_SUCCESS, "bind");
    CHECK(ibv_dereg_mr(target_mr) == EBUSY, "a region with a bound window");
    CHECK(rdma(IBV_WR_RDMA_WRITE, at, LENGTH, mw->rkey) == IBV_WC_SUCCESS, "write");
    expect_written(AT, LENGTH, "write");

    /* Bound anew, elsewhere: the old key is dead. */
    uint32_t old = mw->rkey;

    bind_1(mw, target_mr, at + LENGTH, LENGTH, IBV_ACCESS_REMOTE_WRITE, IBV_WC_SUCCESS, "bind again");
    CHECK(rdma(IBV_WR_RDMA_WRITE, at + LENGTH, LENGTH, mw->rkey) == IBV_WC_SUCCESS, "write");
    expect_written(AT, 2 * LENGTH, "write");
    CHECK(rdma(IBV_WR_RDMA_WRITE, at, LENGTH, old) == IBV_WC_REM_ACCESS_ERR, "the old key");
    CHECK(!ibv_dealloc_mw(mw), "ibv_dealloc_mw of a bound window");
    tear_down();

    set_up();
    mw = ibv_alloc_mw(b.pd, IBV_MW_TYPE_1);
    bind_1(mw, target_mr, at, LENGTH, REMOTE, IBV_WC_SUCCESS, "bind");
    bind_1(mw, NULL, 0, 0, 0, IBV_WC_SUCCESS, "unbind");
    CHECK(rdma(IBV_WR_RDMA_WRITE, at, 8, mw->rkey) == IBV_WC_REM_ACCESS_ERR, "unbound");
    expect_written(0, 0, "unbound");
    CHECK(!ibv_dealloc_mw(mw), "ibv_dealloc_mw");
    tear_down();
}

/* Each is a connection of its own: it breaks. */
static void test_limits(void)
{
    uint64_t at = (uintptr_t)target + AT;

    for (int i = 0; i < 6; i++) {
        set_up();
        struct ibv_mw *mw = ibv_alloc_mw(b.pd, IBV_MW_TYPE_1);

        bind_1(mw, target_mr, at, LENGTH, i < 4 ? IBV_ACCESS_REMOTE_WRITE : IBV_ACCESS_REMOTE_READ, IBV_WC_SUCCESS,
               "bind");
        switch (i) {
        case 0:
            CHECK(rdma(IBV_WR_RDMA_WRITE, at - 1, 8, mw->rkey) == IBV_WC_REM_ACCESS_ERR, "before the window");
            break;
        case 1:
            CHECK(rdma(IBV_WR_RDMA_WRITE, at + LENGTH - 7, 8, mw->rkey) == IBV_WC_REM_ACCESS_ERR, "over its end");
            break;
        case 2:
            CHECK(rdma(IBV_WR_RDMA_READ, at, 8, mw->rkey) == IBV_WC_REM_ACCESS_ERR, "READ of a window to write");
            break;
        case 3:
            CHECK(rdma(IBV_WR_ATOMIC_FETCH_AND_ADD, at, 8, mw->rkey) == IBV_WC_REM_ACCESS_ERR, "atomic");
            break;
        case 4:
            CHECK(rdma(IBV_WR_RDMA_READ, at, LENGTH, mw->rkey) == IBV_WC_SUCCESS && source[LENGTH - 1] == 0x55, "READ");
            CHECK(rdma(IBV_WR_RDMA_WRITE, at, 8, mw->rkey) == IBV_WC_REM_ACCESS_ERR, "WRITE to a window to read");
            break;
        case 5: /* a window's key is no lkey */
            {
                struct ibv_sge sge = {.addr = at, .length = 8, .lkey = mw->rkey};
                struct ibv_send_wr *bad, wr = {.sg_list = &sge, .num_sge = 1, .opcode = IBV_WR_RDMA_WRITE,
                                               .send_flags = IBV_SEND_SIGNALED,
                                               .wr.rdma = {(uintptr_t)source, source_mr->rkey}};

                CHECK(!ibv_post_send(b.qp, &wr, &bad), "post");
                expect(&b, IBV_WC_LOC_PROT_ERR, "a window's key as lkey");
            }
            break;
        }
        if (i != 4)
            expect_written(0, 0, "limits");
        CHECK(!ibv_dealloc_mw(mw), "ibv_dealloc_mw");
        tear_down();
    }
}

static void test_bad_binds(void)
{
    uint64_t at = (uintptr_t)target + AT;
    static const struct {
        const char *what;
        int region_access;
        unsigned access;
        int64_t offset;
        uint64_t length;
    } cases[] = {
        {"a region without MW_BIND", IBV_ACCESS_LOCAL_WRITE, IBV_ACCESS_REMOTE_READ, 0, 8},
        {"writes without LOCAL_WRITE", IBV_ACCESS_MW_BIND, IBV_ACCESS_REMOTE_WRITE, 0, 8},
        {"before the region", IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_MW_BIND, IBV_ACCESS_REMOTE_READ, -AT - 1, 8},
        {"over its end", IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_MW_BIND, IBV_ACCESS_REMOTE_READ, 0, SIZE},
        {"endless", IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_MW_BIND, IBV_ACCESS_REMOTE_READ, 0, UINT64_MAX},
        {"unknown rights", IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_MW_BIND, IBV_ACCESS_ON_DEMAND, 0, 8},
        {"a zero-based region", IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_MW_BIND | IBV_ACCESS_ZERO_BASED,
         IBV_ACCESS_REMOTE_READ, 0, 8},
    };

    for (unsigned i = 0; i < sizeof(cases) / sizeof(*cases); i++)
        for (int type = IBV_MW_TYPE_1; type <= IBV_MW_TYPE_2; type++) {
            set_up_with(cases[i].region_access);
            struct ibv_mw *mw = ibv_alloc_mw(b.pd, (enum ibv_mw_type)type);
            uint64_t addr = at + (uint64_t)cases[i].offset;

            if (type == IBV_MW_TYPE_1)
                bind_1(mw, target_mr, addr, cases[i].length, cases[i].access, IBV_WC_MW_BIND_ERR, cases[i].what);
            else
                bind_2(&b, mw, ibv_inc_rkey(mw->rkey), target_mr, addr, cases[i].length, cases[i].access,
                       IBV_WC_MW_BIND_ERR, cases[i].what);
            CHECK(!ibv_dealloc_mw(mw), "ibv_dealloc_mw");
            tear_down();
        }
    /* Another PD's region; a key that isn't the window's; a deallocated window; type 2 twice, and of no length. */
    for (int i = 0; i < 5; i++) {
        set_up();
        struct ibv_mw *mw = ibv_alloc_mw(b.pd, IBV_MW_TYPE_2), gone = *mw;
        uint32_t key = ibv_inc_rkey(mw->rkey);
        struct ibv_mr *other = ibv_reg_mr(a.pd, target, SIZE, IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_MW_BIND);

        if (i == 0)
            bind_2(&b, mw, key, other, at, 8, REMOTE, IBV_WC_MW_BIND_ERR, "another PD's region");
        if (i == 1)
            bind_2(&b, mw, key ^ 0x100, target_mr, at, 8, REMOTE, IBV_WC_MW_BIND_ERR, "another key");
        if (i == 2) {
            CHECK(!ibv_dealloc_mw(mw), "ibv_dealloc_mw");
            mw = NULL;
            bind_2(&b, &gone, key, target_mr, at, 8, REMOTE, IBV_WC_MW_BIND_ERR, "a deallocated window");
        }
        if (i == 3) {
            bind_2(&b, mw, key, target_mr, at, 8, REMOTE, IBV_WC_SUCCESS, "bind");
            bind_2(&b, mw, ibv_inc_rkey(key), target_mr, at, 8, REMOTE, IBV_WC_MW_BIND_ERR, "twice");
        }
        if (i == 4)
            bind_2(&b, mw, key, target_mr, at, 0, REMOTE, IBV_WC_MW_BIND_ERR, "no length");
        CHECK((!mw || !ibv_dealloc_mw(mw)) && !ibv_dereg_mr(other), "end");
        tear_down();
    }
}

static void test_type_2(void)
{
    uint64_t at = (uintptr_t)target + AT;

    set_up();
    struct ibv_mw *mw = ibv_alloc_mw(b.pd, IBV_MW_TYPE_2);

    CHECK(mw, "ibv_alloc_mw");
    for (int i = 0; i < 600; i++) { /* more than a tag has values */
        bind_2(&b, mw, ibv_inc_rkey(mw->rkey), target_mr, at, LENGTH, REMOTE, IBV_WC_SUCCESS, "bind");
        if (i == 0) {
            CHECK(rdma(IBV_WR_RDMA_WRITE, at, LENGTH, mw->rkey) == IBV_WC_SUCCESS, "write");
            expect_written(AT, LENGTH, "write");
            CHECK(rdma(IBV_WR_ATOMIC_FETCH_AND_ADD, at, 8, mw->rkey) == IBV_WC_SUCCESS, "atomic");
        }
        invalidate(&b, mw->rkey, IBV_WC_SUCCESS, "local invalidate");
    }
    CHECK(!ibv_dereg_mr(target_mr), "a region whose window was invalidated");
    target_mr = ibv_reg_mr(b.pd, target, SIZE, IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_MW_BIND);

    /* Zero-based: addresses count from the window's start. */
    bind_2(&b, mw, ibv_inc_rkey(mw->rkey), target_mr, at, LENGTH, REMOTE | IBV_ACCESS_ZERO_BASED, IBV_WC_SUCCESS,
           "zero-based");
    CHECK(rdma(IBV_WR_RDMA_READ, 0, LENGTH, mw->rkey) == IBV_WC_SUCCESS && source[1] == target[AT + 1], "zero-based");

    /* Invalidated by the peer, and told so. */
    send_with_invalidate(mw->rkey);
    expect(&a, IBV_WC_SUCCESS, "SEND_WITH_INV");
    struct ibv_wc wc = wait_completion(b.cq);

    CHECK(wc.status == IBV_WC_SUCCESS && wc.opcode == IBV_WC_RECV && (wc.wc_flags & IBV_WC_WITH_INV) &&
              wc.invalidated_rkey == mw->rkey, "invalidated_rkey");
    CHECK(rdma(IBV_WR_RDMA_READ, 0, 8, mw->rkey) == IBV_WC_REM_ACCESS_ERR, "after SEND_WITH_INV");
    CHECK(!ibv_dealloc_mw(mw), "ibv_dealloc_mw");
    tear_down();
}

/* A window of type 2 is its QP's: another of the same PD can't use or end it, and it ends with the QP. */
static void test_type_2_is_of_its_qp(void)
{
    uint64_t at = (uintptr_t)target + AT;

    for (int i = 0; i < 4; i++) {
        set_up();
        struct end third = b;
        struct ibv_qp_attr reset = {.qp_state = IBV_QPS_RESET};
        struct ibv_mw *mw = ibv_alloc_mw(b.pd, IBV_MW_TYPE_2);

        qp_open(&third, 0);
        end_connect(&third, third.qp->qp_num, third.gid, 7, 12);
        bind_2(&third, mw, ibv_inc_rkey(mw->rkey), target_mr, at, LENGTH, REMOTE, IBV_WC_SUCCESS, "bind");
        if (i == 0)
            CHECK(rdma(IBV_WR_RDMA_WRITE, at, 8, mw->rkey) == IBV_WC_REM_ACCESS_ERR, "by way of another QP");
        if (i == 1)
            invalidate(&b, mw->rkey, IBV_WC_LOC_QP_OP_ERR, "by another QP");
        if (i == 2) {
            send_with_invalidate(mw->rkey);
            expect(&a, IBV_WC_REM_ACCESS_ERR, "SEND_WITH_INV to another QP");
            expect(&b, IBV_WC_REM_INV_REQ_ERR, "SEND_WITH_INV to another QP");
        }
        CHECK(ibv_dereg_mr(target_mr) == EBUSY, "still bound");
        if (i == 3)
            CHECK(!ibv_modify_qp(third.qp, &reset, IBV_QP_STATE), "RESET");
        CHECK(!ibv_destroy_qp(third.qp), "ibv_destroy_qp");
        CHECK(!ibv_dereg_mr(target_mr), "the window ends with its QP");
        target_mr = ibv_reg_mr(b.pd, target, SIZE, 0);
        CHECK(!ibv_dealloc_mw(mw), "ibv_dealloc_mw");
        expect_written(0, 0, "another QP");
        tear_down();
    }
    /* Nothing but a window of type 2 can be invalidated. */
    set_up();
    invalidate(&b, target_mr->rkey, IBV_WC_LOC_QP_OP_ERR, "a region");
    tear_down();
    set_up();
    struct ibv_mw *mw = ibv_alloc_mw(b.pd, IBV_MW_TYPE_1);

    bind_1(mw, target_mr, at, LENGTH, REMOTE, IBV_WC_SUCCESS, "bind");
    invalidate(&b, mw->rkey, IBV_WC_LOC_QP_OP_ERR, "a window of type 1");
    CHECK(!ibv_dealloc_mw(mw), "ibv_dealloc_mw");
    tear_down();
}

static void test_calls(void)
{
    set_up();
    struct ibv_mw *one = ibv_alloc_mw(b.pd, IBV_MW_TYPE_1), *two = ibv_alloc_mw(b.pd, IBV_MW_TYPE_2);
    struct ibv_mw *others = ibv_alloc_mw(a.pd, IBV_MW_TYPE_1);
    struct ibv_mw_bind bind = {.bind_info = {.mr = target_mr, .addr = (uintptr_t)target, .length = 8}};
    struct ibv_send_wr *bad, wr = {.opcode = IBV_WR_BIND_MW};

    CHECK(one && two && others, "ibv_alloc_mw");
    CHECK(!ibv_alloc_mw(b.pd, (enum ibv_mw_type)0) && errno == EINVAL, "type 0");
    CHECK(!ibv_alloc_mw(b.pd, (enum ibv_mw_type)3) && errno == EINVAL, "type 3");
    CHECK(ibv_bind_mw(b.qp, two, &bind) == EINVAL, "ibv_bind_mw of type 2");
    CHECK(ibv_bind_mw(b.qp, others, &bind) == EPERM, "a window of another PD");
    CHECK(ibv_bind_mw(a.qp, one, &bind) == EPERM, "a QP of another PD");
    bind.bind_info.mw_access_flags = IBV_ACCESS_ZERO_BASED;
    CHECK(ibv_bind_mw(b.qp, one, &bind) == EINVAL, "type 1, zero-based");
    bind.bind_info.mw_access_flags = 0;
    bind.bind_info.mr = NULL;
    CHECK(ibv_bind_mw(b.qp, one, &bind) == EINVAL, "an address without a region");
    CHECK(ibv_post_send(b.qp, &wr, &bad) == EINVAL && bad == &wr, "no window");
    wr.bind_mw.mw = two;
    wr.send_flags = IBV_SEND_INLINE;
    CHECK(ibv_post_send(b.qp, &wr, &bad) == EINVAL, "inline");
    CHECK(!ibv_dealloc_mw(one) && !ibv_dealloc_mw(two) && !ibv_dealloc_mw(others), "ibv_dealloc_mw");
    tear_down();
}

int main(void)
{
    struct ibv_device_attr attr;

    context = open_device();
    CHECK(!ibv_query_device(context, &attr) && (attr.device_cap_flags & IBV_DEVICE_MEM_WINDOW) &&
              (attr.device_cap_flags & IBV_DEVICE_MEM_WINDOW_TYPE_2B) && attr.max_mw > 0,
          "ibv_query_device");
    source = malloc(SIZE);
    target = malloc(SIZE);
    test_type_1();
    test_limits();
    test_bad_binds();
    test_type_2();
    test_type_2_is_of_its_qp();
    test_calls();
    CHECK(!ibv_close_device(context), "ibv_close_device");
    printf("%d cases of memory windows\n", tests);
    return 0;
}
