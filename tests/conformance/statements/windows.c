/* SPDX-License-Identifier: Apache-2.0 */
/* Memory windows of both types, and invalidation. */
#include "suite.h"

static void needs_windows(struct end *e, bool type_2)
{
    unsigned caps = e->device.device_cap_flags;

    if (!type_2 && !(caps & IBV_DEVICE_MEM_WINDOW))
        SKIP("device_cap_flags: no IBV_DEVICE_MEM_WINDOW");
    if (type_2 && !(caps & (IBV_DEVICE_MEM_WINDOW_TYPE_2A | IBV_DEVICE_MEM_WINDOW_TYPE_2B)))
        SKIP("device_cap_flags: no IBV_DEVICE_MEM_WINDOW_TYPE_2A or 2B");
}

static struct ibv_mw *window(struct end *e, enum ibv_mw_type type)
{
    return MADE(ibv_alloc_mw(e->pd, type), ibv_dealloc_mw);
}

/* A region whose own key gives nothing to others, but that windows may open. */
static void connect_bindable(struct end *e)
{
    struct plan plan = plan_of(IBV_QPT_RC);

    if (!e->first)
        plan.mr_access = IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_MW_BIND;
    plan.qp_access |= IBV_ACCESS_MW_BIND;
    connect_as(e, &plan);
}

static struct ibv_mw_bind_info info(struct end *e, uint32_t at, uint32_t length, unsigned access)
{
    return (struct ibv_mw_bind_info){.mr = e->mr, .addr = (uintptr_t)e->memory + at, .length = length, .mw_access_flags = access};
}

static int bind_2(struct end *e, struct ibv_mw *mw, uint32_t rkey, uint64_t wr_id, struct ibv_mw_bind_info to)
{
    struct ibv_send_wr *bad, wr = {.wr_id = wr_id, .opcode = IBV_WR_BIND_MW, .send_flags = IBV_SEND_SIGNALED};

    wr.bind_mw.mw = mw;
    wr.bind_mw.rkey = rkey;
    wr.bind_mw.bind_info = to;
    int error = ibv_post_send(e->qp, &wr, &bad);

    /* The window's key is the application's from here on, as providers expect. */
    if (!error)
        mw->rkey = rkey;
    return error;
}

static void give_key(struct end *e, uint32_t rkey)
{
    exchange(e, &rkey, &e->peer.rkey, sizeof(rkey));
}

TEST(allocated_unbound, SOLO, "a window is made of either type and says which; freed windows are gone", "man ibv_alloc_mw")
{
    struct plan plan = plan_of(IBV_QPT_RC);

    needs_windows(e, false);
    set_up(e, &plan);
    struct ibv_mw *one = window(e, IBV_MW_TYPE_1);

    CHECK(one->type == IBV_MW_TYPE_1 && one->pd == e->pd && one->context == e->context);
    if (e->device.device_cap_flags & (IBV_DEVICE_MEM_WINDOW_TYPE_2A | IBV_DEVICE_MEM_WINDOW_TYPE_2B)) {
        struct ibv_mw *two = window(e, IBV_MW_TYPE_2);

        CHECK(two->type == IBV_MW_TYPE_2 && two->rkey != one->rkey);
    }
    NO_OBJECT(ibv_alloc_mw(e->pd, (enum ibv_mw_type)9), EINVAL);
}

TEST(type_1_opens, BOTH, "a window of type 1 gives its range and rights once its bind is complete; the key is new", "man ibv_bind_mw; IBTA 10.6.7.2")
{
    needs_windows(e, false);
    connect_bindable(e);
    if (!e->first) {
        struct ibv_mw *mw = window(e, IBV_MW_TYPE_1);
        uint32_t before = mw->rkey;
        struct ibv_mw_bind bind = {.wr_id = 5, .send_flags = IBV_SEND_SIGNALED, .bind_info = info(e, 4096, 8192, IBV_ACCESS_REMOTE_WRITE)};

        DO(ibv_bind_mw(e->qp, mw, &bind));
        EQUAL(EXPECT(5, IBV_WC_SUCCESS).opcode, IBV_WC_BIND_MW);
        CHECK(mw->rkey != before);
        give_key(e, mw->rkey);
    } else {
        give_key(e, 0);
        ASK(.opcode = IBV_WR_RDMA_WRITE, .wr_id = 1, .length = 8192, .to = 4096);
        EXPECT(1, IBV_WC_SUCCESS);
        ASK(.opcode = IBV_WR_RDMA_WRITE, .wr_id = 2, .length = 2, .to = 4096 + 8191);
        EXPECT(2, IBV_WC_REM_ACCESS_ERR);
    }
    meet(e);
    if (!e->first) {
        ARRIVED(4096, 8192, 0);
        UNTOUCHED(0, 4096);
        UNTOUCHED(12288, 4096);
    }
}

TEST(type_1_rights, BOTH, "a window gives only the rights it was bound with", "man ibv_bind_mw; IBTA 10.6.7.2")
{
    needs_windows(e, false);
    connect_bindable(e);
    if (!e->first) {
        struct ibv_mw *mw = window(e, IBV_MW_TYPE_1);
        struct ibv_mw_bind bind = {.wr_id = 5, .send_flags = IBV_SEND_SIGNALED, .bind_info = info(e, 0, 4096, IBV_ACCESS_REMOTE_READ)};

        DO(ibv_bind_mw(e->qp, mw, &bind));
        EXPECT(5, IBV_WC_SUCCESS);
        give_key(e, mw->rkey);
    } else {
        give_key(e, 0);
        ASK(.opcode = IBV_WR_RDMA_READ, .wr_id = 1, .length = 64);
        EXPECT(1, IBV_WC_SUCCESS);
        ASK(.opcode = IBV_WR_RDMA_WRITE, .wr_id = 2, .length = 64);
        EXPECT(2, IBV_WC_REM_ACCESS_ERR);
    }
    meet(e);
    if (!e->first)
        UNTOUCHED(0, MEMORY);
}

TEST(type_1_bound_anew, BOTH, "binding a window anew ends what it gave before", "man ibv_bind_mw; IBTA 10.6.7.2.1")
{
    needs_windows(e, false);
    connect_bindable(e);
    if (!e->first) {
        struct ibv_mw *mw = window(e, IBV_MW_TYPE_1);
        struct ibv_mw_bind bind = {.wr_id = 5, .send_flags = IBV_SEND_SIGNALED, .bind_info = info(e, 0, 4096, IBV_ACCESS_REMOTE_WRITE)};

        DO(ibv_bind_mw(e->qp, mw, &bind));
        EXPECT(5, IBV_WC_SUCCESS);
        uint32_t old = mw->rkey;

        bind.bind_info = info(e, 8192, 4096, IBV_ACCESS_REMOTE_WRITE);
        DO(ibv_bind_mw(e->qp, mw, &bind));
        EXPECT(5, IBV_WC_SUCCESS);
        CHECK(mw->rkey != old);
        give_key(e, mw->rkey);
        give_key(e, old);
    } else {
        give_key(e, 0);
        ASK(.opcode = IBV_WR_RDMA_WRITE, .wr_id = 1, .length = 64, .to = 8192);
        EXPECT(1, IBV_WC_SUCCESS);
        give_key(e, 0);
        ASK(.opcode = IBV_WR_RDMA_WRITE, .wr_id = 2, .length = 64);
        EXPECT(2, IBV_WC_REM_ACCESS_ERR);
    }
    meet(e);
    if (!e->first)
        UNTOUCHED(0, 8192);
}

TEST(type_1_length_0, BOTH, "a bind of length 0 closes a window of type 1", "man ibv_bind_mw; IBTA 10.6.7.2.1")
{
    needs_windows(e, false);
    connect_bindable(e);
    if (!e->first) {
        struct ibv_mw *mw = window(e, IBV_MW_TYPE_1);
        struct ibv_mw_bind bind = {.wr_id = 5, .send_flags = IBV_SEND_SIGNALED, .bind_info = info(e, 0, 4096, IBV_ACCESS_REMOTE_WRITE)};

        DO(ibv_bind_mw(e->qp, mw, &bind));
        EXPECT(5, IBV_WC_SUCCESS);
        uint32_t key = mw->rkey;

        bind.bind_info = info(e, 0, 0, 0);
        DO(ibv_bind_mw(e->qp, mw, &bind));
        EXPECT(5, IBV_WC_SUCCESS);
        give_key(e, key);
    } else {
        give_key(e, 0);
        ASK(.opcode = IBV_WR_RDMA_WRITE, .wr_id = 1, .length = 64);
        EXPECT(1, IBV_WC_REM_ACCESS_ERR);
    }
    meet(e);
}

TEST(type_1_needs_its_verb, BOTH, "ibv_bind_mw is for type 1: a window of type 2 is refused, EINVAL", "man ibv_bind_mw")
{
    needs_windows(e, true);
    connect_bindable(e);
    struct ibv_mw *mw = window(e, IBV_MW_TYPE_2);
    struct ibv_mw_bind bind = {.bind_info = info(e, 0, 64, IBV_ACCESS_REMOTE_WRITE)};

    REFUSED(ibv_bind_mw(e->qp, mw, &bind), EINVAL);
}

TEST(type_2_opens, BOTH, "a window of type 2 is bound by a WR to a key with a tag of the application's", "man ibv_post_send: IBV_WR_BIND_MW, ibv_inc_rkey; IBTA 10.6.7.2.2")
{
    needs_windows(e, true);
    connect_bindable(e);
    if (!e->first) {
        struct ibv_mw *mw = window(e, IBV_MW_TYPE_2);
        uint32_t key = ibv_inc_rkey(mw->rkey);

        DO(bind_2(e, mw, key, 5, info(e, 4096, 4096, IBV_ACCESS_REMOTE_WRITE)));
        EQUAL(EXPECT(5, IBV_WC_SUCCESS).opcode, IBV_WC_BIND_MW);
        give_key(e, key);
    } else {
        give_key(e, 0);
        ASK(.opcode = IBV_WR_RDMA_WRITE, .wr_id = 1, .length = 4096, .to = 4096);
        EXPECT(1, IBV_WC_SUCCESS);
        ASK(.opcode = IBV_WR_RDMA_WRITE, .wr_id = 2, .length = 1, .to = 4095);
        EXPECT(2, IBV_WC_REM_ACCESS_ERR);
    }
    meet(e);
    if (!e->first) {
        ARRIVED(4096, 4096, 0);
        UNTOUCHED(0, 4096);
    }
}

TEST(type_2_then_send, BOTH, "a SEND posted after a bind finds the window open", "IBTA 10.6.7.2, 10.8.3.3")
{
    needs_windows(e, true);
    connect_bindable(e);
    for (unsigned i = 0; i < 8; i++) {
        if (!e->first) {
            struct ibv_mw *mw = window(e, IBV_MW_TYPE_2);
            uint32_t key = ibv_inc_rkey(mw->rkey);
            struct ibv_sge sge = {(uintptr_t)&key, sizeof(key), 0};

            /* The key travels inside the SEND that follows the bind. */
            DO(bind_2(e, mw, key, 5, info(e, 4096 * i, 4096, IBV_ACCESS_REMOTE_WRITE)));
            ASK(.opcode = IBV_WR_SEND, .wr_id = 6, .flags = IBV_SEND_INLINE, .sges = &sge, .sge_count = 1);
            EXPECT(5, IBV_WC_SUCCESS);
            EXPECT(6, IBV_WC_SUCCESS);
            meet(e);
            ARRIVED(4096 * i, 4096, 0);
        } else {
            uint32_t key;

            RECEIVE(9, 200000, 4);
            EXPECT(9, IBV_WC_SUCCESS);
            memcpy(&key, e->memory + 200000, sizeof(key));
            ASK(.opcode = IBV_WR_RDMA_WRITE, .wr_id = 1, .length = 4096, .to = 4096 * i, .rkey = key);
            EXPECT(1, IBV_WC_SUCCESS);
            meet(e);
        }
    }
}

TEST(type_2_bound_twice, BOTH, "a window of type 2 that is bound can't be bound again before it is invalidated: MW_BIND_ERR", "IBTA 10.6.7.2.2")
{
    needs_windows(e, true);
    connect_bindable(e);
    if (!e->first) {
        struct ibv_mw *mw = window(e, IBV_MW_TYPE_2);
        uint32_t key = ibv_inc_rkey(mw->rkey);

        DO(bind_2(e, mw, key, 5, info(e, 0, 4096, IBV_ACCESS_REMOTE_WRITE)));
        EXPECT(5, IBV_WC_SUCCESS);
        DO(bind_2(e, mw, ibv_inc_rkey(key), 6, info(e, 0, 4096, IBV_ACCESS_REMOTE_WRITE)));
        EXPECT(6, IBV_WC_MW_BIND_ERR);
    }
    meet(e);
}

static void bind_refused(struct end *e, unsigned mr_access, unsigned mw_access, uint32_t at, uint32_t length)
{
    struct plan plan = plan_of(IBV_QPT_RC);

    plan.mr_access = mr_access;
    plan.qp_access |= IBV_ACCESS_MW_BIND;
    connect_as(e, &plan);
    if (!e->first) {
        struct ibv_mw *mw = window(e, IBV_MW_TYPE_2);
        int error = bind_2(e, mw, ibv_inc_rkey(mw->rkey), 5, info(e, at, length, mw_access));

        if (!error) {
            EXPECT(5, IBV_WC_MW_BIND_ERR);
            await_state(e, e->qp, IBV_QPS_ERR);
        } else {
            EQUAL(error, EINVAL);
        }
    }
    meet(e);
}

TEST(region_not_bindable, BOTH, "a window on a region without MW_BIND: MW_BIND_ERR", "man ibv_bind_mw, ibv_reg_mr: IBV_ACCESS_MW_BIND; IBTA 10.6.7.2")
{
    needs_windows(e, true);
    bind_refused(e, ALL_ACCESS, IBV_ACCESS_REMOTE_WRITE, 0, 4096);
}

TEST(more_than_the_region, BOTH, "a window beyond its region: MW_BIND_ERR", "IBTA 10.6.7.2")
{
    needs_windows(e, true);
    bind_refused(e, ALL_ACCESS | IBV_ACCESS_MW_BIND, IBV_ACCESS_REMOTE_WRITE, MEMORY - 4096, 4097);
}

TEST(local_right_of_a_window, BOTH, "LOCAL_WRITE among a window's rights is no error, and grants nothing", "rdma-core: tests/test_mr.py, tests/test_qpex.py")
{
    needs_windows(e, true);
    connect_bindable(e);
    if (!e->first) {
        struct ibv_mw *mw = window(e, IBV_MW_TYPE_2);
        uint32_t key = ibv_inc_rkey(mw->rkey);

        DO(bind_2(e, mw, key, 5, info(e, 0, 4096, IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_READ)));
        EXPECT(5, IBV_WC_SUCCESS);
        give_key(e, key);
    } else {
        give_key(e, 0);
        ASK(.opcode = IBV_WR_RDMA_READ, .wr_id = 1, .length = 64);
        EXPECT(1, IBV_WC_SUCCESS);
        ASK(.opcode = IBV_WR_RDMA_WRITE, .wr_id = 2, .length = 64);
        EXPECT(2, IBV_WC_REM_ACCESS_ERR);
    }
    meet(e);
    if (!e->first)
        UNTOUCHED(0, MEMORY);
}

TEST(write_through_read_only, BOTH, "a window with REMOTE_WRITE on a region without LOCAL_WRITE: MW_BIND_ERR", "IBTA 10.6.7.2; man ibv_bind_mw")
{
    needs_windows(e, true);
    bind_refused(e, IBV_ACCESS_MW_BIND | IBV_ACCESS_REMOTE_READ, IBV_ACCESS_REMOTE_WRITE, 0, 4096);
}

TEST(local_invalidate, BOTH, "LOCAL_INV closes a window of type 2; what comes after it finds it closed", "man ibv_post_send: IBV_WR_LOCAL_INV; IBTA 10.6.5")
{
    needs_windows(e, true);
    connect_bindable(e);
    if (!e->first) {
        struct ibv_mw *mw = window(e, IBV_MW_TYPE_2);
        uint32_t key = ibv_inc_rkey(mw->rkey);

        DO(bind_2(e, mw, key, 5, info(e, 0, 4096, IBV_ACCESS_REMOTE_WRITE)));
        EXPECT(5, IBV_WC_SUCCESS);
        ASK(.opcode = IBV_WR_LOCAL_INV, .wr_id = 6, .imm = key, .empty = true);
        EQUAL(EXPECT(6, IBV_WC_SUCCESS).opcode, IBV_WC_LOCAL_INV);
        /* It can be bound anew. */
        DO(bind_2(e, mw, ibv_inc_rkey(key), 7, info(e, 8192, 4096, IBV_ACCESS_REMOTE_WRITE)));
        EXPECT(7, IBV_WC_SUCCESS);
        give_key(e, ibv_inc_rkey(key));
        give_key(e, key);
    } else {
        give_key(e, 0);
        ASK(.opcode = IBV_WR_RDMA_WRITE, .wr_id = 1, .length = 64, .to = 8192);
        EXPECT(1, IBV_WC_SUCCESS);
        give_key(e, 0);
        ASK(.opcode = IBV_WR_RDMA_WRITE, .wr_id = 2, .length = 64);
        EXPECT(2, IBV_WC_REM_ACCESS_ERR);
    }
    meet(e);
    if (!e->first)
        UNTOUCHED(0, 8192);
}

TEST(remote_invalidate, BOTH, "SEND_WITH_INV closes the window it names; the receive says so with WITH_INV and the key", "man ibv_post_send, ibv_poll_cq; IBTA 9.4.1.1, 10.6.5")
{
    needs_windows(e, true);
    connect_bindable(e);
    if (!e->first) {
        struct ibv_mw *mw = window(e, IBV_MW_TYPE_2);
        uint32_t key = ibv_inc_rkey(mw->rkey);

        DO(bind_2(e, mw, key, 5, info(e, 0, 4096, IBV_ACCESS_REMOTE_WRITE)));
        EXPECT(5, IBV_WC_SUCCESS);
        RECEIVE(9, 65536, 64);
        give_key(e, key);
        struct ibv_wc wc = EXPECT(9, IBV_WC_SUCCESS);

        EQUAL(wc.opcode, IBV_WC_RECV);
        EQUAL(wc.byte_len, 64);
        CHECK(wc.wc_flags & IBV_WC_WITH_INV);
        EQUAL(wc.invalidated_rkey, key);
        ARRIVED(65536, 64, 0);
    } else {
        give_key(e, 0);
        ASK(.opcode = IBV_WR_SEND_WITH_INV, .wr_id = 1, .length = 64, .imm = e->peer.rkey);
        EQUAL(EXPECT(1, IBV_WC_SUCCESS).opcode, IBV_WC_SEND);
        ASK(.opcode = IBV_WR_RDMA_WRITE, .wr_id = 2, .length = 64);
        EXPECT(2, IBV_WC_REM_ACCESS_ERR);
    }
    meet(e);
}

TEST(invalidate_nothing, BOTH, "LOCAL_INV of a key that names nothing fails, and the QP goes to ERR", "IBTA 10.6.5, 11.6.2")
{
    needs_windows(e, true);
    connect_bindable(e);
    if (e->first) {
        ASK(.opcode = IBV_WR_LOCAL_INV, .wr_id = 1, .imm = 0x7f7f00, .empty = true);
        struct ibv_wc wc = next_wc(e, e->cq);

        CHECK(wc.status == IBV_WC_LOC_QP_OP_ERR || wc.status == IBV_WC_MW_BIND_ERR || wc.status == IBV_WC_LOC_PROT_ERR);
        await_state(e, e->qp, IBV_QPS_ERR);
    }
    meet(e);
}

TEST(freed, BOTH, "a window that is freed gives nothing any more", "man ibv_dealloc_mw")
{
    needs_windows(e, true);
    connect_bindable(e);
    if (!e->first) {
        struct ibv_mw *mw = window(e, IBV_MW_TYPE_2);
        uint32_t key = ibv_inc_rkey(mw->rkey);

        DO(bind_2(e, mw, key, 5, info(e, 0, 4096, IBV_ACCESS_REMOTE_WRITE)));
        EXPECT(5, IBV_WC_SUCCESS);
        DO(drop(e, mw));
        give_key(e, key);
    } else {
        give_key(e, 0);
        ASK(.opcode = IBV_WR_RDMA_WRITE, .wr_id = 1, .length = 64);
        EXPECT(1, IBV_WC_REM_ACCESS_ERR);
    }
    meet(e);
    if (!e->first)
        UNTOUCHED(0, MEMORY);
}

TEST(region_with_windows, BOTH, "a region with a bound window can't be deregistered", "man ibv_dereg_mr: NOTES; IBTA 10.6.7.2.5")
{
    needs_windows(e, true);
    connect_bindable(e);
    if (!e->first) {
        struct ibv_mw *mw = window(e, IBV_MW_TYPE_2);

        DO(bind_2(e, mw, ibv_inc_rkey(mw->rkey), 5, info(e, 0, 4096, IBV_ACCESS_REMOTE_WRITE)));
        EXPECT(5, IBV_WC_SUCCESS);
        int error = drop(e, e->mr);

        CHECK(error == EBUSY || error == EINVAL);
    }
    meet(e);
}
