/* SPDX-License-Identifier: Apache-2.0 */
/* QPs, CQs and SRQs that belong to an id: man rdma_create_qp, rdma_create_srq. */
#include <errno.h>
#include <rdma/rdma_verbs.h>
#include <string.h>

#include "cm.h"
#include "objects.h"

static void destroy_cqs(struct rdma_cm_id *id)
{
    if (id->qp_type == IBV_QPT_XRC_RECV && id->srq)
        return; /* they are the SRQ's */
    if (id->recv_cq)
        ibv_destroy_cq(id->recv_cq);
    if (id->send_cq && id->send_cq != id->recv_cq)
        ibv_destroy_cq(id->send_cq);
    if (id->recv_cq_channel)
        ibv_destroy_comp_channel(id->recv_cq_channel);
    if (id->send_cq_channel && id->send_cq_channel != id->recv_cq_channel)
        ibv_destroy_comp_channel(id->send_cq_channel);
    id->recv_cq = id->send_cq = NULL;
    id->recv_cq_channel = id->send_cq_channel = NULL;
}

static int create_cq(struct rdma_cm_id *id, uint32_t entries, struct ibv_comp_channel **channel, struct ibv_cq **cq)
{
    *channel = ibv_create_comp_channel(id->verbs);
    if (*channel)
        *cq = ibv_create_cq(id->verbs, (int)entries, id, *channel, 0);
    return *cq ? 0 : -1;
}

/* entries 0: none is needed. */
static int create_cqs(struct rdma_cm_id *id, uint32_t send_entries, uint32_t recv_entries)
{
    if ((recv_entries && create_cq(id, recv_entries, &id->recv_cq_channel, &id->recv_cq)) ||
        (send_entries && create_cq(id, send_entries, &id->send_cq_channel, &id->send_cq))) {
        int error = errno;

        destroy_cqs(id);
        return cm_result(error);
    }
    return 0;
}

/* ---- QPs ---------------------------------------------------------------- */

static int init_qp(struct rdma_cm_id *id, struct ibv_qp *qp)
{
    struct ibv_qp_attr attr = {.qp_state = IBV_QPS_INIT};
    int mask;

    if (rdma_init_qp_attr(id, &attr, &mask))
        return -1;
    int error = ibv_modify_qp(qp, &attr, mask);

    if (error || id->qp_type != IBV_QPT_UD)
        return cm_result(error);
    /* Datagrams have no peer to wait for. */
    attr = (struct ibv_qp_attr){.qp_state = IBV_QPS_RTR};
    error = ibv_modify_qp(qp, &attr, IBV_QP_STATE);
    if (!error) {
        attr = (struct ibv_qp_attr){.qp_state = IBV_QPS_RTS};
        error = ibv_modify_qp(qp, &attr, IBV_QP_STATE | IBV_QP_SQ_PSN);
    }
    return cm_result(error);
}

/* Devices without options of their own answer with EOPNOTSUPP: then there is nothing to negotiate. */
static void init_ece(struct cm_id *id, struct ibv_qp *qp)
{
    struct ibv_ece ece = {0};

    if (!ibv_query_ece(qp, &ece))
        id->local_ece = (struct ibv_ece){.vendor_id = ece.vendor_id, .options = ece.options};
}

static int complete_attr(struct rdma_cm_id *id, struct ibv_qp_init_attr_ex *attr)
{
    if (!(attr->comp_mask & IBV_QP_INIT_ATTR_PD) || !attr->pd) {
        attr->comp_mask |= IBV_QP_INIT_ATTR_PD;
        attr->pd = id->pd;
    }
    if (!attr->pd || attr->pd->context != id->verbs ||
        (id->recv_cq && attr->recv_cq && id->recv_cq != attr->recv_cq) ||
        (id->send_cq && attr->send_cq && id->send_cq != attr->send_cq))
        return cm_result(EINVAL);
    if (id->qp_type == IBV_QPT_XRC_RECV && (!(attr->comp_mask & IBV_QP_INIT_ATTR_XRCD) || !attr->xrcd)) {
        attr->xrcd = cm_device_xrcd(id);
        if (!attr->xrcd)
            return -1;
        attr->comp_mask |= IBV_QP_INIT_ATTR_XRCD;
    }
    if (create_cqs(id, attr->send_cq || id->send_cq ? 0 : attr->cap.max_send_wr,
                   attr->recv_cq || id->recv_cq ? 0 : attr->cap.max_recv_wr))
        return -1;
    if (!attr->send_cq)
        attr->send_cq = id->send_cq;
    if (!attr->recv_cq)
        attr->recv_cq = id->recv_cq;
    if (id->srq && !attr->srq)
        attr->srq = id->srq;
    return 0;
}

EXPORT int rdma_create_qp_ex(struct rdma_cm_id *id, struct ibv_qp_init_attr_ex *attr)
{
    if (id->qp || !id->verbs)
        return cm_result(EINVAL);
    if (complete_attr(id, attr))
        return -1;
    struct ibv_qp *qp = ibv_create_qp_ex(id->verbs, attr);

    if (!qp || init_qp(id, qp)) {
        int error = errno;

        if (qp)
            ibv_destroy_qp(qp);
        destroy_cqs(id);
        return cm_result(error);
    }
    init_ece(to_cm_id(id), qp);
    id->pd = qp->pd;
    id->qp = qp;
    return 0;
}

EXPORT int rdma_create_qp(struct rdma_cm_id *id, struct ibv_pd *pd, struct ibv_qp_init_attr *attr)
{
    struct ibv_qp_init_attr_ex extended = {0};

    /* The extended structure begins with the members of the plain one. */
    memcpy(&extended, attr, sizeof(*attr));
    extended.comp_mask = IBV_QP_INIT_ATTR_PD;
    extended.pd = pd ? pd : id->pd;
    int result = rdma_create_qp_ex(id, &extended);

    memcpy(attr, &extended, sizeof(*attr));
    return result;
}

EXPORT void rdma_destroy_qp(struct rdma_cm_id *id)
{
    ibv_destroy_qp(id->qp);
    id->qp = NULL;
    destroy_cqs(id);
}

/* ---- SRQs --------------------------------------------------------------- */

static int complete_xrc(struct rdma_cm_id *id, struct ibv_srq_init_attr_ex *attr)
{
    if (!(attr->comp_mask & IBV_SRQ_INIT_ATTR_XRCD) || !attr->xrcd) {
        attr->xrcd = cm_device_xrcd(id);
        if (!attr->xrcd)
            return -1;
    }
    if (!(attr->comp_mask & IBV_SRQ_INIT_ATTR_CQ) || !attr->cq) {
        if (create_cqs(id, 0, attr->attr.max_wr))
            return -1;
        attr->cq = id->recv_cq;
    }
    attr->comp_mask |= IBV_SRQ_INIT_ATTR_XRCD | IBV_SRQ_INIT_ATTR_CQ;
    return 0;
}

EXPORT int rdma_create_srq_ex(struct rdma_cm_id *id, struct ibv_srq_init_attr_ex *attr)
{
    if (!(attr->comp_mask & IBV_SRQ_INIT_ATTR_TYPE) || !id->verbs)
        return cm_result(EINVAL);
    if (!(attr->comp_mask & IBV_SRQ_INIT_ATTR_PD) || !attr->pd) {
        attr->pd = id->pd;
        attr->comp_mask |= IBV_SRQ_INIT_ATTR_PD;
    }
    if (attr->srq_type == IBV_SRQT_XRC && complete_xrc(id, attr))
        return -1;
    struct ibv_srq *srq = ibv_create_srq_ex(id->verbs, attr);

    if (!srq) {
        int error = errno;

        destroy_cqs(id);
        return cm_result(error);
    }
    if (!id->pd)
        id->pd = attr->pd;
    id->srq = srq;
    return 0;
}

EXPORT int rdma_create_srq(struct rdma_cm_id *id, struct ibv_pd *pd, struct ibv_srq_init_attr *attr)
{
    struct ibv_srq_init_attr_ex extended = {0};

    memcpy(&extended, attr, sizeof(*attr));
    extended.comp_mask = IBV_SRQ_INIT_ATTR_TYPE | IBV_SRQ_INIT_ATTR_PD;
    extended.srq_type = id->qp_type == IBV_QPT_XRC_RECV ? IBV_SRQT_XRC : IBV_SRQT_BASIC;
    extended.pd = pd;
    int result = rdma_create_srq_ex(id, &extended);

    memcpy(attr, &extended, sizeof(*attr));
    return result;
}

EXPORT void rdma_destroy_srq(struct rdma_cm_id *id)
{
    ibv_destroy_srq(id->srq);
    id->srq = NULL;
    destroy_cqs(id);
}
