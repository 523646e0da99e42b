/* SPDX-License-Identifier: Apache-2.0 */
/* Life and limits of objects: what is in use can't be destroyed, what is too much isn't made. */
#include "suite.h"

TEST(pd_in_use, SOLO, "a PD that a QP, region, SRQ, window or address uses can't be deallocated: EBUSY", "man ibv_dealloc_pd")
{
    struct plan plan = plan_of(IBV_QPT_RC);
    struct ibv_pd *pd = MADE(ibv_alloc_pd(e->context), ibv_dealloc_pd);

    set_up(e, &plan);
    struct ibv_mr *mr = MADE(ibv_reg_mr(pd, e->memory, 4096, ALL_ACCESS), ibv_dereg_mr);

    REFUSED(drop(e, pd), EBUSY);
    DO(drop(e, mr));
    struct ibv_qp_init_attr init = {.send_cq = e->cq, .recv_cq = e->cq, .qp_type = IBV_QPT_RC,
                                    .cap = {.max_send_wr = 1, .max_recv_wr = 1, .max_send_sge = 1, .max_recv_sge = 1}};
    struct ibv_qp *qp = MADE(ibv_create_qp(pd, &init), ibv_destroy_qp);

    REFUSED(drop(e, pd), EBUSY);
    DO(drop(e, qp));
    if (e->device.max_srq > 0) {
        struct ibv_srq_init_attr srq_init = {.attr = {.max_wr = 4, .max_sge = 1}};
        struct ibv_srq *srq = MADE(ibv_create_srq(pd, &srq_init), ibv_destroy_srq);

        REFUSED(drop(e, pd), EBUSY);
        DO(drop(e, srq));
    }
    if (e->device.device_cap_flags & IBV_DEVICE_MEM_WINDOW) {
        struct ibv_mw *mw = MADE(ibv_alloc_mw(pd, IBV_MW_TYPE_1), ibv_dealloc_mw);

        REFUSED(drop(e, pd), EBUSY);
        DO(drop(e, mw));
    }
    struct ibv_ah_attr attr = path_to(e, &e->gid);
    struct ibv_ah *ah = MADE(ibv_create_ah(pd, &attr), ibv_destroy_ah);

    REFUSED(drop(e, pd), EBUSY);
    DO(drop(e, ah));
    DO(drop(e, pd));
}

TEST(cq_in_use, SOLO, "a CQ that a QP uses can't be destroyed: EBUSY", "man ibv_destroy_cq")
{
    struct plan plan = plan_of(IBV_QPT_RC);

    set_up(e, &plan);
    e->qp = create_qp(e, &plan);
    REFUSED(drop(e, e->cq), EBUSY);
    DO(drop(e, e->qp));
    DO(drop(e, e->cq));
}

TEST(channel_in_use, SOLO, "a channel that a CQ uses can't be destroyed: EBUSY", "man ibv_destroy_comp_channel")
{
    struct ibv_comp_channel *channel = MADE(ibv_create_comp_channel(e->context), ibv_destroy_comp_channel);
    struct ibv_cq *cq = MADE(ibv_create_cq(e->context, 4, NULL, channel, 0), ibv_destroy_cq);

    REFUSED(drop(e, channel), EBUSY);
    DO(drop(e, cq));
    DO(drop(e, channel));
}

static void too_much(struct end *e, struct ibv_qp_cap cap)
{
    struct ibv_qp_init_attr init = {.send_cq = e->cq, .recv_cq = e->cq, .qp_type = IBV_QPT_RC, .cap = cap};

    errno = 0;
    CHECK(!ibv_create_qp(e->pd, &init));
    CHECK_THAT(errno == EINVAL || errno == ENOMEM, "%s", strerror(errno));
}

TEST(qp_beyond_limits, SOLO, "a QP beyond the device's limits is refused: EINVAL or ENOMEM", "man ibv_create_qp; ibv_query_device: max_qp_wr, max_sge")
{
    struct plan plan = plan_of(IBV_QPT_RC);
    uint32_t wr = (uint32_t)e->device.max_qp_wr, sge = (uint32_t)e->device.max_sge;

    set_up(e, &plan);
    too_much(e, (struct ibv_qp_cap){wr + 1, 1, 1, 1, 0});
    too_much(e, (struct ibv_qp_cap){1, wr + 1, 1, 1, 0});
    too_much(e, (struct ibv_qp_cap){1, 1, sge + 1, 1, 0});
    too_much(e, (struct ibv_qp_cap){1, 1, 1, sge + 1, 0});
    too_much(e, (struct ibv_qp_cap){1, 1, 1, 1, 1 << 24});
    too_much(e, (struct ibv_qp_cap){UINT32_MAX, UINT32_MAX, UINT32_MAX, UINT32_MAX, UINT32_MAX});
}

TEST(qp_at_limits, SOLO, "a QP at the device's limits can be made", "man ibv_create_qp; ibv_query_device: max_qp_wr, max_sge")
{
    struct plan plan = plan_of(IBV_QPT_RC);
    uint32_t sge = (uint32_t)e->device.max_sge;

    set_up(e, &plan);
    struct ibv_qp_init_attr init = {.send_cq = e->cq, .recv_cq = e->cq, .qp_type = IBV_QPT_RC,
                                    .cap = {(uint32_t)e->device.max_qp_wr, 1, 1, 1, 0}};

    MADE(ibv_create_qp(e->pd, &init), ibv_destroy_qp);
    init.cap = (struct ibv_qp_cap){1, 1, sge, sge, 0};
    MADE(ibv_create_qp(e->pd, &init), ibv_destroy_qp);
}

TEST(qp_of_no_type, SOLO, "a QP type that there isn't is refused", "man ibv_create_qp: EINVAL or EOPNOTSUPP")
{
    struct plan plan = plan_of(IBV_QPT_RC);

    set_up(e, &plan);
    struct ibv_qp_init_attr init = {.send_cq = e->cq, .recv_cq = e->cq, .qp_type = (enum ibv_qp_type)77,
                                    .cap = {.max_send_wr = 1, .max_recv_wr = 1, .max_send_sge = 1, .max_recv_sge = 1}};

    errno = 0;
    CHECK(!ibv_create_qp(e->pd, &init));
    CHECK(errno == EINVAL || errno == EOPNOTSUPP);
}

TEST(many, SOLO, "hundreds of QPs, CQs, PDs and regions of one process differ and can all be destroyed", "man ibv_create_qp, ibv_create_cq, ibv_reg_mr")
{
    enum { MANY = 100 };
    struct plan plan = plan_of(IBV_QPT_RC);
    struct ibv_qp *qps[MANY];

    set_up(e, &plan);
    plan.send_wr = plan.recv_wr = 4;
    for (int i = 0; i < MANY; i++) {
        MADE(ibv_alloc_pd(e->context), ibv_dealloc_pd);
        MADE(ibv_create_cq(e->context, 4, NULL, NULL, 0), ibv_destroy_cq);
        reg(e, e->memory + i, 1000, ALL_ACCESS);
        qps[i] = create_qp(e, &plan);
        for (int j = 0; j < i; j++)
            CHECK(qps[j]->qp_num != qps[i]->qp_num);
    }
}

TEST(two_contexts, SOLO, "a process may open a device several times; the contexts are independent", "man ibv_open_device")
{
    struct ibv_device **list = ibv_get_device_list(NULL);
    struct ibv_device *device = NULL;

    for (int i = 0; list && list[i]; i++)
        if (strcmp(ibv_get_device_name(list[i]), ibv_get_device_name(e->context->device)) == 0)
            device = list[i];
    CHECK(device);
    struct ibv_context *other = ibv_open_device(device);

    ibv_free_device_list(list);
    CHECK(other && other != e->context && other->async_fd != e->context->async_fd);
    struct ibv_pd *pd = ibv_alloc_pd(other);

    CHECK(pd);
    DO(ibv_dealloc_pd(pd));
    DO(ibv_close_device(other));
    MADE(ibv_alloc_pd(e->context), ibv_dealloc_pd);
}
