/* SPDX-License-Identifier: Apache-2.0 */
/* Arguments that can't be right: each is refused with the errno of its manual page, and nothing has changed after it. */
#include <fcntl.h>
#include <unistd.h>

#include "suite.h"

/* EINVAL, or that the device has no such thing. */
static void refused_as_unknown(struct end *e, const char *what, int error)
{
    if (error != EINVAL && error != EOPNOTSUPP && error != ENOSYS)
        FAIL("%s: %s", what, error ? strerror(error) : "0");
}

TEST(unknown_pkey, SOLO, "a P_Key that no entry has is not found: -1", "man ibv_get_pkey_index")
{
    EQUAL(ibv_get_pkey_index(e->context, 1, 0x1234), -1);
    EQUAL(ibv_get_pkey_index(e->context, 9, 0xffff), -1);
}

TEST(names_of_nothing, SOLO, "numbers that stand for nothing have a name all the same, and no rate", "man ibv_node_type_str, ibv_rate_to_mult, ibv_rate_to_mbps")
{
    CHECK(ibv_node_type_str((enum ibv_node_type)77) && ibv_port_state_str((enum ibv_port_state)77));
    CHECK(ibv_event_type_str((enum ibv_event_type)7777) && ibv_wc_status_str((enum ibv_wc_status)7777));
    EQUAL(ibv_rate_to_mult((enum ibv_rate)77), -1);
    EQUAL(ibv_rate_to_mbps((enum ibv_rate)77), -1);
    EQUAL(mult_to_ibv_rate(-5), IBV_RATE_MAX);
    EQUAL(mbps_to_ibv_rate(-5), IBV_RATE_MAX);
}

TEST(sgid_table_of_nothing, SOLO, "ibv_query_gid_table and ibv_query_gid_ex know no flags", "man ibv_query_gid_table: EINVAL or EOPNOTSUPP")
{
    struct ibv_gid_entry entry;

    refused_as_unknown(e, "ibv_query_gid_ex", ibv_query_gid_ex(e->context, 1, 0, &entry, 1 << 20));
    ssize_t count = ibv_query_gid_table(e->context, &entry, 1, 1 << 20);

    refused_as_unknown(e, "ibv_query_gid_table", count < 0 ? (int)-count : 0);
}

TEST(qp_without_cqs, SOLO, "a QP needs CQs", "man ibv_create_qp: EINVAL")
{
    struct plan plan = plan_of(IBV_QPT_RC);

    set_up(e, &plan);
    struct ibv_qp_init_attr attr = {.qp_type = IBV_QPT_RC, .cap = {.max_send_wr = 1, .max_recv_wr = 1, .max_send_sge = 1, .max_recv_sge = 1}};

    NO_OBJECT(ibv_create_qp(e->pd, &attr), EINVAL);
    attr.send_cq = e->cq;
    NO_OBJECT(ibv_create_qp(e->pd, &attr), EINVAL);
}

TEST(qp_too_large, SOLO, "a QP with more of anything than the device has is refused", "man ibv_create_qp: EINVAL or ENOMEM")
{
    struct plan plan = plan_of(IBV_QPT_RC);

    set_up(e, &plan);
    for (int i = 0; i < 5; i++) {
        struct ibv_qp_init_attr attr = {
            .qp_type = IBV_QPT_RC, .send_cq = e->cq, .recv_cq = e->cq,
            .cap = {.max_send_wr = 1, .max_recv_wr = 1, .max_send_sge = 1, .max_recv_sge = 1}};
        uint32_t *const fields[] = {&attr.cap.max_send_wr, &attr.cap.max_recv_wr, &attr.cap.max_send_sge,
                                    &attr.cap.max_recv_sge, &attr.cap.max_inline_data};

        *fields[i] = i < 2 ? (uint32_t)e->device.max_qp_wr + 1 : i < 4 ? (uint32_t)e->device.max_sge + 1 : 1u << 20;
        for (int more = 0; more < 2; more++) {
            errno = 0;
            struct ibv_qp *qp = ibv_create_qp(e->pd, &attr);

            if (qp)
                ibv_destroy_qp(qp);
            CHECK_THAT(!qp, "field %d: %u", i, *fields[i]);
            CHECK_THAT(errno == EINVAL || errno == ENOMEM, "field %d: %s", i, strerror(errno));
            *fields[i] = UINT32_MAX;
        }
    }
}

TEST(modify_qp_unknown_mask, SOLO, "an attribute that there isn't is refused, and the QP stays as it is", "man ibv_modify_qp: EINVAL or EOPNOTSUPP")
{
    struct plan plan = plan_of(IBV_QPT_RC);
    struct ibv_qp_attr attr = {.qp_state = IBV_QPS_INIT, .port_num = 1};

    set_up(e, &plan);
    struct ibv_qp *qp = create_qp(e, &plan);
    const int mask = IBV_QP_STATE | IBV_QP_PKEY_INDEX | IBV_QP_PORT | IBV_QP_ACCESS_FLAGS;

    refused_as_unknown(e, "bit 29", ERROR_OF(ibv_modify_qp(qp, &attr, mask | 1 << 29)));
    attr.qp_state = (enum ibv_qp_state)99;
    refused_as_unknown(e, "state 99", ERROR_OF(ibv_modify_qp(qp, &attr, mask)));
    EQUAL(state_of(e, qp), IBV_QPS_RESET);
}

TEST(rate_of_no_limit, SOLO, "attributes from IBV_QP_RATE_LIMIT on are neither modified nor queried where there are none", "rdma-core: libibverbs/cmd_qp.c: EOPNOTSUPP")
{
    struct plan plan = plan_of(IBV_QPT_RC);
    struct ibv_qp_attr attr = {.qp_state = IBV_QPS_INIT, .port_num = 1};
    struct ibv_qp_init_attr init;

    set_up(e, &plan);
    struct ibv_qp *qp = create_qp(e, &plan);
    const int unknown = 1 << 29;

    EQUAL(ERROR_OF(ibv_modify_qp(qp, &attr, IBV_QP_STATE | unknown)), EOPNOTSUPP);
    EQUAL(ERROR_OF(ibv_query_qp(qp, &attr, unknown, &init)), EOPNOTSUPP);
}

TEST(options_of_nobody, SOLO, "a device without options of enhanced connections has none to set, whosever they are", "rdma-core: libibverbs/dummy_ops.c: EOPNOTSUPP")
{
    struct plan plan = plan_of(IBV_QPT_RC);
    struct ibv_ece ece = {0};

    set_up(e, &plan);
    struct ibv_qp *qp = create_qp(e, &plan);

    if (ibv_query_ece(qp, &ece) == 0)
        SKIP("ibv_query_ece: the device has options");
    EQUAL(ibv_query_ece(qp, &ece), EOPNOTSUPP);
    for (ece.vendor_id = 0; ece.vendor_id < 2; ece.vendor_id++)
        EQUAL(ibv_set_ece(qp, &ece), EOPNOTSUPP);
}

TEST(order_of_data, SOLO, "ibv_query_qp_data_in_order says the same with RETURN_CAPS as without, and 0 of flags that it doesn't know", "man ibv_query_qp_data_in_order")
{
    struct plan plan = plan_of(IBV_QPT_RC);

    set_up(e, &plan);
    struct ibv_qp *qp = create_qp(e, &plan);
    int plain = ibv_query_qp_data_in_order(qp, IBV_WR_RDMA_WRITE, 0);
    /* rdma-core 44 and older know no flags: the answer is that of the device without them, or 0. */
    int caps = ibv_query_qp_data_in_order(qp, IBV_WR_RDMA_WRITE, 1);

    CHECK_THAT(caps == 0 || (caps & 1) == plain, "%d, with RETURN_CAPS %#x", plain, (unsigned)caps);
    CHECK_THAT(!(caps & 1) || caps & 2, "whole messages in order, but not 128 bytes: %#x", (unsigned)caps);
}

TEST(import_of_nothing, SOLO, "ibv_import_device takes descriptors of RDMA devices; a driver that can't share contexts says so", "man ibv_import_device; rdma-core: libibverbs/device.c: EINVAL, ENODEV, EOPNOTSUPP")
{
    int zero = open("/dev/zero", O_RDWR | O_CLOEXEC);

    CHECK(zero >= 0);
    NO_OBJECT(ibv_import_device(-1), EINVAL);
    NO_OBJECT(ibv_import_device(zero), ENODEV);
    close(zero);
    CHECK(e->context->cmd_fd >= 0);
    errno = 0;
    struct ibv_context *again = ibv_import_device(e->context->cmd_fd);

    if (again) {
        DO(ibv_close_device(again));
        return;
    }
    EQUAL(errno, EOPNOTSUPP);
    NO_OBJECT(ibv_import_pd(e->context, 1), EOPNOTSUPP);
    NO_OBJECT(ibv_import_dm(e->context, 1), EOPNOTSUPP);
}

TEST(modify_srq_unknown_mask, SOLO, "an attribute of an SRQ that there isn't, or more receives than the device has, is refused", "man ibv_modify_srq: EINVAL")
{
    struct plan plan = plan_of(IBV_QPT_RC);
    struct ibv_srq_attr attr = {.max_wr = 16}, after;

    plan.srq_wr = 16;
    set_up(e, &plan);
    DO(ibv_query_srq(e->srq, &after));
    const uint32_t before = after.max_wr;

    refused_as_unknown(e, "bit 9", ERROR_OF(ibv_modify_srq(e->srq, &attr, 1 << 9)));
    attr.max_wr = (uint32_t)e->device.max_srq_wr + 1;
    refused_as_unknown(e, "max_wr", ERROR_OF(ibv_modify_srq(e->srq, &attr, IBV_SRQ_MAX_WR)));
    attr.srq_limit = before + 1;
    refused_as_unknown(e, "srq_limit", ERROR_OF(ibv_modify_srq(e->srq, &attr, IBV_SRQ_LIMIT)));
    DO(ibv_query_srq(e->srq, &after));
    CHECK(after.max_wr == before && after.srq_limit == 0);
}

TEST(srq_too_large, SOLO, "an SRQ with more of anything than the device has is refused", "man ibv_create_srq: EINVAL")
{
    struct plan plan = plan_of(IBV_QPT_RC);

    set_up(e, &plan);
    struct ibv_srq_init_attr attr = {.attr = {.max_wr = (uint32_t)e->device.max_srq_wr + 1, .max_sge = 1}};

    NO_OBJECT(ibv_create_srq(e->pd, &attr), EINVAL);
    attr.attr.max_wr = UINT32_MAX;
    NO_OBJECT(ibv_create_srq(e->pd, &attr), EINVAL);
    attr.attr = (struct ibv_srq_attr){.max_wr = 1, .max_sge = (uint32_t)e->device.max_srq_sge + 1};
    NO_OBJECT(ibv_create_srq(e->pd, &attr), EINVAL);
}

TEST(srq_ex_unknown, SOLO, "ibv_create_srq_ex refuses types and masks that it doesn't know", "man ibv_create_srq_ex: EINVAL or EOPNOTSUPP")
{
    struct plan plan = plan_of(IBV_QPT_RC);

    set_up(e, &plan);
    struct ibv_srq_init_attr_ex attr = {
        .attr = {.max_wr = 1, .max_sge = 1}, .comp_mask = IBV_SRQ_INIT_ATTR_TYPE | IBV_SRQ_INIT_ATTR_PD | 1 << 20,
        .srq_type = IBV_SRQT_BASIC, .pd = e->pd};

    for (int i = 0; i < 3; i++) {
        errno = 0;
        struct ibv_srq *srq = ibv_create_srq_ex(e->context, &attr);

        if (srq)
            ibv_destroy_srq(srq);
        CHECK_THAT(!srq, "case %d", i);
        refused_as_unknown(e, "ibv_create_srq_ex", errno);
        attr.comp_mask = IBV_SRQ_INIT_ATTR_TYPE | (i ? 0 : IBV_SRQ_INIT_ATTR_PD);
        attr.srq_type = i ? IBV_SRQT_BASIC : (enum ibv_srq_type)99;
    }
}

TEST(number_of_a_plain_srq, SOLO, "an SRQ that isn't for XRC has no number", "man ibv_get_srq_num: EINVAL or EOPNOTSUPP")
{
    struct plan plan = plan_of(IBV_QPT_RC);
    uint32_t number;

    plan.srq_wr = 16;
    set_up(e, &plan);
    refused_as_unknown(e, "ibv_get_srq_num", ERROR_OF(ibv_get_srq_num(e->srq, &number)));
}

TEST(xrcd_of_no_file, SOLO, "a domain is opened by a file that is open, or by none", "man ibv_open_xrcd: EBADF, EINVAL")
{
    struct ibv_xrcd_init_attr attr = {.comp_mask = IBV_XRCD_INIT_ATTR_FD | IBV_XRCD_INIT_ATTR_OFLAGS, .fd = 9999, .oflags = O_CREAT};

    if (!(e->device.device_cap_flags & IBV_DEVICE_XRC))
        SKIP("device_cap_flags: no IBV_DEVICE_XRC");
    NO_OBJECT(ibv_open_xrcd(e->context, &attr), EBADF);
    attr.fd = -1;
    attr.oflags = O_APPEND | O_CREAT;
    NO_OBJECT(ibv_open_xrcd(e->context, &attr), EINVAL);
    attr.comp_mask = 0;
    attr.oflags = O_CREAT;
    NO_OBJECT(ibv_open_xrcd(e->context, &attr), EINVAL);
}

TEST(unknown_access, SOLO, "access flags that there aren't are refused", "man ibv_reg_mr: EINVAL")
{
    struct plan plan = plan_of(IBV_QPT_RC);

    set_up(e, &plan);
    errno = 0;
    struct ibv_mr *mr = ibv_reg_mr(e->pd, e->memory, 4096, IBV_ACCESS_LOCAL_WRITE | 1 << 19);

    if (mr)
        ibv_dereg_mr(mr);
    CHECK(!mr);
    refused_as_unknown(e, "bit 19", errno);
}

TEST(rereg_nothing, SOLO, "ibv_rereg_mr without flags, with unknown ones, or with a length of 0 is refused, and the region stays", "man ibv_rereg_mr: IBV_REREG_MR_ERR_INPUT")
{
    struct plan plan = plan_of(IBV_QPT_RC);

    set_up(e, &plan);
    EQUAL(ibv_rereg_mr(e->mr, 1 << 20, e->pd, e->memory, 4096, IBV_ACCESS_LOCAL_WRITE), IBV_REREG_MR_ERR_INPUT);
    EQUAL(errno, EINVAL);
    EQUAL(ibv_rereg_mr(e->mr, IBV_REREG_MR_CHANGE_TRANSLATION, NULL, e->memory, 0, 0), IBV_REREG_MR_ERR_INPUT);
    EQUAL(ibv_rereg_mr(e->mr, IBV_REREG_MR_CHANGE_TRANSLATION, NULL, NULL, 4096, 0), IBV_REREG_MR_ERR_INPUT);
}

TEST(address_from_nothing, SOLO, "no address is made from a completion that came without a GRH", "man ibv_create_ah_from_wc: -1 and NULL")
{
    struct plan plan = plan_of(IBV_QPT_UD);
    struct ibv_wc wc = {.wc_flags = IBV_WC_GRH};
    struct ibv_grh grh = {.version_tclass_flow = 0};
    struct ibv_ah_attr attr;

    set_up(e, &plan);
    CHECK(ibv_init_ah_from_wc(e->context, 1, &wc, &grh, &attr) != 0);
    struct ibv_ah *ah = ibv_create_ah_from_wc(e->pd, &wc, &grh, 1);

    if (ah)
        ibv_destroy_ah(ah);
    CHECK(!ah);
}

TEST(address_of_nobody, SOLO, "no address leads to the unspecified GID", "man ibv_create_ah: EINVAL; RFC 4291, 2.5.2")
{
    struct plan plan = plan_of(IBV_QPT_UD);
    struct ibv_ah_attr attr = {.is_global = 1, .port_num = 1, .grh = {.sgid_index = (uint8_t)e->gid_index, .hop_limit = 64}};

    set_up(e, &plan);
    if (e->port.link_layer != IBV_LINK_LAYER_ETHERNET)
        SKIP("InfiniBand: the LID leads there");
    NO_OBJECT(ibv_create_ah(e->pd, &attr), EINVAL);
}

TEST(send_of_nothing_known, SOLO, "an opcode that there isn't is refused when it is posted, and its WR is named", "man ibv_post_send: EINVAL or EOPNOTSUPP")
{
    struct plan plan = plan_of(IBV_QPT_RC);

    set_up(e, &plan);
    struct ibv_qp *one = create_qp(e, &plan), *other = create_qp(e, &plan);
    struct ibv_sge sge = {.addr = (uintptr_t)e->memory, .length = 8, .lkey = e->mr->lkey};
    struct ibv_send_wr *bad = NULL, wr = {.sg_list = &sge, .num_sge = 1, .opcode = (enum ibv_wr_opcode)99};

    join_here(e, one, other, &plan);
    refused_as_unknown(e, "opcode 99", ERROR_OF(ibv_post_send(one, &wr, &bad)));
    CHECK(bad == &wr);
    bad = NULL;
    wr.opcode = IBV_WR_TSO;
    refused_as_unknown(e, "TSO over RC", ERROR_OF(ibv_post_send(one, &wr, &bad)));
    CHECK(bad == &wr);
    EXPECT_NOTHING();
}

TEST(inline_too_long, SOLO, "more inline data than the QP has room for is refused when it is posted", "man ibv_post_send: EINVAL or ENOMEM")
{
    struct plan plan = plan_of(IBV_QPT_RC);

    set_up(e, &plan);
    struct ibv_qp *one = create_qp(e, &plan), *other = create_qp(e, &plan);
    struct ibv_qp_init_attr has;
    struct ibv_qp_attr attr;

    join_here(e, one, other, &plan);
    DO(ibv_query_qp(one, &attr, IBV_QP_CAP, &has));
    struct ibv_sge sge = {.addr = (uintptr_t)e->memory, .length = has.cap.max_inline_data + 1, .lkey = e->mr->lkey};
    struct ibv_send_wr *bad = NULL, wr = {.sg_list = &sge, .num_sge = 1, .opcode = IBV_WR_SEND, .send_flags = IBV_SEND_INLINE};
    int error = ERROR_OF(ibv_post_send(one, &wr, &bad));

    CHECK_THAT(error == EINVAL || error == ENOMEM, "%s", error ? strerror(error) : "0");
    CHECK(bad == &wr);
}

TEST(open_qp_of_no_number, SOLO, "ibv_open_qp opens only a QP of its domain", "man ibv_open_qp")
{
    struct ibv_xrcd_init_attr domain = {.comp_mask = IBV_XRCD_INIT_ATTR_FD | IBV_XRCD_INIT_ATTR_OFLAGS, .fd = -1, .oflags = O_CREAT};

    if (!(e->device.device_cap_flags & IBV_DEVICE_XRC))
        SKIP("device_cap_flags: no IBV_DEVICE_XRC");
    struct ibv_xrcd *xrcd = MADE(ibv_open_xrcd(e->context, &domain), ibv_close_xrcd);
    struct ibv_qp_open_attr attr = {
        .comp_mask = IBV_QP_OPEN_ATTR_NUM | IBV_QP_OPEN_ATTR_XRCD | IBV_QP_OPEN_ATTR_TYPE, .qp_num = 0xabcdef, .xrcd = xrcd,
        .qp_type = IBV_QPT_XRC_RECV};

    for (int i = 0; i < 3; i++) {
        errno = 0;
        CHECK_THAT(!ibv_open_qp(e->context, &attr), "case %d", i);
        CHECK_THAT(errno == EINVAL || errno == ENOENT || errno == EOPNOTSUPP, "case %d: %s", i, strerror(errno));
        if (i)
            attr.comp_mask |= 1 << 20;
        else
            attr.qp_type = IBV_QPT_RC;
    }
}

TEST(domains_of_unknown_masks, SOLO, "thread and parent domains refuse masks that they don't know", "man ibv_alloc_td, ibv_alloc_parent_domain: EINVAL or EOPNOTSUPP")
{
    struct ibv_td_init_attr td = {.comp_mask = 1 << 20};
    struct ibv_parent_domain_init_attr parent = {.comp_mask = 1 << 20};
    struct plan plan = plan_of(IBV_QPT_RC);

    set_up(e, &plan);
    errno = 0;
    CHECK(!ibv_alloc_td(e->context, &td));
    refused_as_unknown(e, "ibv_alloc_td", errno);
    parent.pd = e->pd;
    errno = 0;
    CHECK(!ibv_alloc_parent_domain(e->context, &parent));
    refused_as_unknown(e, "ibv_alloc_parent_domain", errno);
}

TEST(pkey_of_nothing, SOLO, "a P_Key of an index or a port that there isn't can't be queried", "man ibv_query_pkey")
{
    __be16 pkey;

    CHECK(ibv_query_pkey(e->context, 1, 70000, &pkey) != 0);
    CHECK(ibv_query_pkey(e->context, 9, 0, &pkey) != 0);
    CHECK(ibv_query_pkey(e->context, 1, -1, &pkey) != 0);
}

TEST(window_of_no_type, SOLO, "a window of a type that there isn't is refused", "man ibv_alloc_mw: EINVAL")
{
    struct plan plan = plan_of(IBV_QPT_RC);

    set_up(e, &plan);
    NO_OBJECT(ibv_alloc_mw(e->pd, (enum ibv_mw_type)9), EINVAL);
}

TEST(bind_to_a_strange_region, SOLO, "ibv_bind_mw refuses a region of another PD, and bytes of no region", "man ibv_bind_mw: EPERM, EINVAL")
{
    struct plan plan = plan_of(IBV_QPT_RC);

    set_up(e, &plan);
    struct ibv_qp *qp = create_qp(e, &plan), *other = create_qp(e, &plan);

    join_here(e, qp, other, &plan);
    struct ibv_pd *strange = MADE(ibv_alloc_pd(e->context), ibv_dealloc_pd);
    struct ibv_mr *mr = MADE(ibv_reg_mr(strange, e->memory, 4096, ALL_ACCESS | IBV_ACCESS_MW_BIND), ibv_dereg_mr);
    struct ibv_mw *mw = MADE(ibv_alloc_mw(e->pd, IBV_MW_TYPE_1), ibv_dealloc_mw);
    struct ibv_mw_bind bind = {.send_flags = IBV_SEND_SIGNALED,
                               .bind_info = {.mr = mr, .addr = (uintptr_t)e->memory, .length = 64, .mw_access_flags = IBV_ACCESS_REMOTE_READ}};
    int error = ibv_bind_mw(qp, mw, &bind);

    CHECK_THAT(error == EPERM || error == EINVAL, "%s", error ? strerror(error) : "0");
    bind.bind_info.mr = NULL;
    REFUSED(ibv_bind_mw(qp, mw, &bind), EINVAL);
}

TEST(resize_out_of_range, SOLO, "a CQ is not resized to no entries, nor to more than max_cqe", "man ibv_resize_cq: EINVAL")
{
    struct plan plan = plan_of(IBV_QPT_RC);

    set_up(e, &plan);
    int before = e->cq->cqe;

    REFUSED(ibv_resize_cq(e->cq, 0), EINVAL);
    REFUSED(ibv_resize_cq(e->cq, -1), EINVAL);
    REFUSED(ibv_resize_cq(e->cq, e->device.max_cqe + 1), EINVAL);
    EQUAL(e->cq->cqe, before);
}

TEST(cq_ex_out_of_range, SOLO, "ibv_create_cq_ex refuses sizes and vectors that there aren't", "man ibv_create_cq_ex: EINVAL")
{
    struct ibv_cq_init_attr_ex attr = {.cqe = 0};

    NO_OBJECT(ibv_create_cq_ex(e->context, &attr), EINVAL);
    attr.cqe = (uint32_t)e->device.max_cqe + 1;
    NO_OBJECT(ibv_create_cq_ex(e->context, &attr), EINVAL);
    attr.cqe = 16;
    attr.comp_vector = (uint32_t)e->context->num_comp_vectors;
    NO_OBJECT(ibv_create_cq_ex(e->context, &attr), EINVAL);
}

TEST(receive_of_too_many_pieces, SOLO, "a receive with more SGEs than the QP was granted is refused when it is posted, and named", "man ibv_post_recv: EINVAL, bad_wr")
{
    struct plan plan = plan_of(IBV_QPT_RC);

    set_up(e, &plan);
    struct ibv_qp *qp = create_qp(e, &plan);
    struct ibv_qp_init_attr init;
    struct ibv_qp_attr attr;

    DO(to_init(e, qp, &plan));
    DO(ibv_query_qp(qp, &attr, IBV_QP_CAP, &init));
    int count = (int)init.cap.max_recv_sge + 1;
    struct ibv_sge *sges = calloc((size_t)count, sizeof(*sges));
    struct ibv_recv_wr second = {.wr_id = 2, .sg_list = sges, .num_sge = count}, first = {.wr_id = 1, .next = &second}, *bad = NULL;
    int error = ERROR_OF(ibv_post_recv(qp, &first, &bad));

    free(sges);
    EQUAL(error, EINVAL);
    CHECK(bad == &second);
}

TEST(dmabuf_of_nothing, SOLO, "a region of a dma-buf needs one", "man ibv_reg_dmabuf_mr: EBADF or EINVAL")
{
    struct plan plan = plan_of(IBV_QPT_RC);

    set_up(e, &plan);
    for (int fd = -1; fd <= 0; fd++) {
        errno = 0;
        CHECK(!ibv_reg_dmabuf_mr(e->pd, 0, 4096, 0, fd, IBV_ACCESS_LOCAL_WRITE));
        CHECK_THAT(errno == EBADF || errno == EINVAL || lacking(errno), "%s", strerror(errno));
    }
}

TEST(operations_that_there_are_not, SOLO, "ibv_create_qp_ex refuses ibv_wr_* operations that the device doesn't have", "man ibv_create_qp_ex: EOPNOTSUPP")
{
    struct plan plan = plan_of(IBV_QPT_RC);

    set_up(e, &plan);
    struct ibv_qp_init_attr_ex attr = {
        .qp_type = IBV_QPT_RC, .send_cq = e->cq, .recv_cq = e->cq, .pd = e->pd,
        .cap = {.max_send_wr = 1, .max_recv_wr = 1, .max_send_sge = 1, .max_recv_sge = 1},
        .comp_mask = IBV_QP_INIT_ATTR_PD | IBV_QP_INIT_ATTR_SEND_OPS_FLAGS, .send_ops_flags = 1ull << 40};

    errno = 0;
    CHECK(!ibv_create_qp_ex(e->context, &attr));
    CHECK_THAT(lacking(errno) || errno == EINVAL, "%s", strerror(errno));
}

/* Where a device has one of these, nothing is said of it here. */
static void absent_or_refused(struct end *e, const char *what, bool given)
{
    if (!given)
        CHECK_THAT(lacking(errno) || errno == EINVAL || errno == ENOMEM, "%s: %s", what, strerror(errno));
}

TEST(what_there_is_not, SOLO, "verbs that a device doesn't have answer EOPNOTSUPP", "rdma-core: libibverbs/dummy_ops.c")
{
    struct plan plan = plan_of(IBV_QPT_RC);

    set_up(e, &plan);
    struct ibv_sge sge = {(uintptr_t)e->memory, 4096, e->mr->lkey};
    struct ibv_alloc_dm_attr memory = {.length = 64};
    struct ibv_wq_init_attr queue = {.wq_type = IBV_WQT_RQ, .max_wr = 1, .max_sge = 1, .pd = e->pd, .cq = e->cq};
    struct ibv_counters_init_attr counters = {0};
    struct ibv_flow_attr flow = {.type = IBV_FLOW_ATTR_NORMAL, .size = sizeof(flow), .port = 1};
    struct ibv_modify_cq_attr moderation = {.attr_mask = IBV_CQ_ATTR_MODERATE, .moderate = {.cq_count = 1}};
    int error = ibv_advise_mr(e->pd, IBV_ADVISE_MR_ADVICE_PREFETCH, 0, &sge, 1);

    CHECK_THAT(!error || lacking(error) || error == EINVAL, "ibv_advise_mr: %s", strerror(error));
    error = ibv_modify_cq(e->cq, &moderation);
    CHECK_THAT(!error || lacking(error) || error == EINVAL, "ibv_modify_cq: %s", strerror(error));
    struct ibv_qp *qp = create_qp(e, &plan);
    struct ibv_dm *dm = ibv_alloc_dm(e->context, &memory);

    absent_or_refused(e, "ibv_alloc_dm", dm);
    if (dm)
        DO(ibv_free_dm(dm));
    struct ibv_wq *wq = ibv_create_wq(e->context, &queue);

    absent_or_refused(e, "ibv_create_wq", wq);
    if (wq)
        DO(ibv_destroy_wq(wq));
    struct ibv_counters *counted = ibv_create_counters(e->context, &counters);

    absent_or_refused(e, "ibv_create_counters", counted);
    if (counted)
        DO(ibv_destroy_counters(counted));
    struct ibv_mr *none = ibv_alloc_null_mr(e->pd);

    absent_or_refused(e, "ibv_alloc_null_mr", none);
    if (none)
        DO(ibv_dereg_mr(none));
    struct ibv_rwq_ind_table_init_attr indirect = {.log_ind_tbl_size = 40};

    errno = 0;
    CHECK(!ibv_create_rwq_ind_table(e->context, &indirect)); /* of 2^40 queues */
    absent_or_refused(e, "ibv_create_rwq_ind_table", false);
    struct ibv_flow_action_esp_attr secret = {.comp_mask = 1u << 31};

    errno = 0;
    CHECK(!ibv_create_flow_action_esp(e->context, &secret));
    absent_or_refused(e, "ibv_create_flow_action_esp", false);
    struct ibv_qp_rate_limit_attr pace = {.comp_mask = 1u << 31};

    refused_as_unknown(e, "ibv_modify_qp_rate_limit", ibv_modify_qp_rate_limit(qp, &pace));
    errno = 0;
    CHECK(!ibv_create_flow(qp, &flow)); /* not of an RC QP, wherever */
    absent_or_refused(e, "ibv_create_flow", false);
}
