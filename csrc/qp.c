/* SPDX-License-Identifier: Apache-2.0 */
#include "qp.h"

#include <errno.h>
#include <infiniband/verbs.h>
#include <stdlib.h>
#include <string.h>

#include "atomic.h"
#include "context.h"
#include "fence.h"
#include "holdings.h"
#include "multicast.h"
#include "nic.h"
#include "mw.h"
#include "parcel.h"
#include "relay.h"
#include "requester.h"
#include "session.h"
#include "srq.h"
#include "tenant.h"
#include "transport/nic.h"
#include "transport/transport.h"
#include "xrc.h"

enum { GENERATIONS = 63 };

static uint32_t larger(uint32_t a, uint32_t b)
{
    return a > b ? a : b;
}

/* Bytes of a WQE that can hold these SGEs (with an atomic's operands) or this inline data. */
static uint32_t send_stride(const struct sluice_qp_cap *cap)
{
    uint32_t sges = (uint32_t)(sizeof(struct sluice_atomic) + cap->max_send_sge * sizeof(struct sluice_sge));
    uint32_t size = (uint32_t)sizeof(struct sluice_wqe) + larger(sges, cap->max_inline_data);

    size = (size + SLUICE_BLOCK - 1) / SLUICE_BLOCK * SLUICE_BLOCK;
    return size < SLUICE_WQE_MAX ? size : SLUICE_WQE_MAX;
}

/* What a QP of this type may be asked to send (IBTA 10.7.2.2, table of supported operations); 0: no type of ours. */
static uint32_t opcodes_of(uint32_t type)
{
    const uint32_t send = 1u << IBV_WR_SEND | 1u << IBV_WR_SEND_WITH_IMM;
    const uint32_t write = 1u << IBV_WR_RDMA_WRITE | 1u << IBV_WR_RDMA_WRITE_WITH_IMM;
    const uint32_t local = 1u << IBV_WR_LOCAL_INV | 1u << IBV_WR_BIND_MW;
    const uint32_t answered = 1u << IBV_WR_RDMA_READ | 1u << IBV_WR_ATOMIC_CMP_AND_SWP |
                              1u << IBV_WR_ATOMIC_FETCH_AND_ADD | 1u << IBV_WR_SEND_WITH_INV;

    switch (type) {
    case IBV_QPT_RC:
    case IBV_QPT_XRC_SEND:
        return send | write | local | answered;
    case IBV_QPT_UC:
        return send | write | local;
    case IBV_QPT_UD:
        return send;
    default:
        return 0;
    }
}

int qp_take_handle(struct session *session, struct qp *qp)
{
    for (uint32_t i = 0; i < SLUICE_SESSION_QPS; i++) {
        uint32_t handle = (session->qp_hint + i) % SLUICE_SESSION_QPS;

        if (session->qps[handle])
            continue;
        session->qp_hint = handle + 1;
        session->qps[handle] = qp;
        return (int)handle;
    }
    return -ENOMEM;
}

static bool take_number(struct qp *qp)
{
    struct sluice_engine *engine = qp->session->engine;

    if (engine->qp_free_count == 0)
        return false;
    qp->slot = engine->qp_free[engine->qp_free_head];
    qp->counters = counters_of_qp(engine, qp->slot);
    if (!qp->counters)
        return false;
    engine->qp_free_head = (engine->qp_free_head + 1) % SLUICE_MAX_QPS;
    engine->qp_free_count--;
    /* 24 bits: a generation of 1..63 above the slot, so that 0 and 1 stay the special QPs. One that a NIC gave is left out. */
    for (uint32_t tries = 0; tries < GENERATIONS; tries++) {
        uint8_t generation = (uint8_t)(engine->qp_generations[qp->slot] % GENERATIONS + 1);

        engine->qp_generations[qp->slot] = generation;
        qp->qp_num = (uint32_t)generation << 18 | qp->slot;
        if (!engine->nic_qps || !engine->nic_qps[qp->qp_num])
            break;
    }
    engine->qps[qp->slot] = qp;
    return true;
}

static void give_number(struct qp *qp)
{
    struct sluice_engine *engine = qp->session->engine;

    engine->qps[qp->slot] = NULL;
    engine->qp_free[(engine->qp_free_head + engine->qp_free_count++) % SLUICE_MAX_QPS] = qp->slot;
}

/* Checks the request, and finds what it names. */
static int find_objects(struct qp *qp, const struct sluice_create_qp_request *request)
{
    struct session *session = qp->session;
    const struct sluice_qp_cap *cap = &request->cap;

    qp->type = request->qp_type;
    if (qp->type == IBV_QPT_XRC_RECV) {
        struct opened_xrcd *opened = xrcd_find(session, request->xrcd);

        if (!opened)
            return -EINVAL;
        qp->xrcd = opened->xrcd;
        qp->tenant = qp->xrcd->tenant;
        return 0;
    }
    qp->opcodes = opcodes_of(qp->type);
    if (!qp->opcodes)
        return -EOPNOTSUPP;
    if (cap->max_send_wr > SLUICE_MAX_WR || cap->max_recv_wr > SLUICE_MAX_WR ||
        cap->max_send_sge > SLUICE_MAX_SGE || cap->max_recv_sge > SLUICE_MAX_SGE ||
        cap->max_inline_data > SLUICE_MAX_INLINE)
        return -EINVAL;
    qp->pd = pd_find(session, request->pd);
    qp->send_cq = cq_find(session, request->send_cq);
    if (!qp->pd || !qp->send_cq)
        return -EINVAL;
    qp->tenant = qp->pd->context->tenant;
    if (qp->send_cq->context->tenant != qp->tenant)
        return -EINVAL;
    if (qp->type == IBV_QPT_XRC_SEND)
        return 0;
    qp->recv_cq = cq_find(session, request->recv_cq);
    qp->srq = request->srq ? srq_find(session, request->srq) : NULL;
    if (!qp->recv_cq || (request->srq && (!qp->srq || qp->srq->xrcd)))
        return -EINVAL;
    return qp->recv_cq->context->tenant == qp->tenant && (!qp->srq || qp->srq->pd->context->tenant == qp->tenant)
               ? 0
               : -EINVAL;
}

static void lay_out(struct qp *qp, const struct sluice_qp_cap *asked)
{
    struct sluice_qp_cap *cap = &qp->attr.cap;

    if (qp->type == IBV_QPT_XRC_RECV)
        return;
    *cap = *asked;
    if (qp->srq || qp->type == IBV_QPT_XRC_SEND)
        cap->max_recv_wr = cap->max_recv_sge = 0;
    qp->sq.entries = queue_entries(cap->max_send_wr);
    qp->rq.entries = queue_entries(cap->max_recv_wr);
    qp->sq.stride = send_stride(cap);
    qp->rq.stride = queue_receive_stride(cap->max_recv_sge);
    cap->max_send_wr = qp->sq.entries;
    cap->max_recv_wr = qp->rq.entries;
    cap->max_inline_data = qp->sq.stride - (uint32_t)sizeof(struct sluice_wqe);
    qp->size = sizeof(struct sluice_qp_shared) + (uint64_t)qp->sq.entries * qp->sq.stride +
               (uint64_t)qp->rq.entries * qp->rq.stride;
}

/* What a NIC has, of the types that there are. */
static bool has_twin(const struct qp *qp)
{
    /* Made while there was none, a PD has no part in it. */
    if (!qp->pd || !qp->pd->nic)
        return false;
    const struct nic *nic = nic_of_pd(qp->pd);

    if (nic->lost)
        return false;
    if (qp->type == IBV_QPT_UD)
        return nic->attr.max_srq > 0;
    return (qp->type == IBV_QPT_RC || qp->type == IBV_QPT_UC) && (!qp->srq || (nic->attr.max_srq > 0 && qp->srq->pd->nic));
}

/* Its place in the segment, its handle, its number with its counters, and its timer: all of them, or none and an error. */
static int take_resources(struct qp *qp, const struct sluice_create_qp_request *request)
{
    struct session *session = qp->session;
    int64_t offset = qp->size ? session_take_part(session, qp->size) : 0;

    if (offset < 0)
        return (int)offset;
    qp->offset = (uint64_t)offset;
    int error = timers_reserve(&session->engine->timers);

    if (error)
        goto no_timer;
    if (!take_number(qp)) {
        error = -ENOMEM;
        goto no_number;
    }
    if (has_twin(qp) && (error = nic_qp_create(qp)))
        goto no_twin;
    int handle = qp->xrcd ? qp_share_add(qp, session, xrcd_find(session, request->xrcd)) : qp_take_handle(session, qp);

    if (handle >= 0) {
        qp->handle = (uint32_t)handle;
        return 0;
    }
    error = handle;
    nic_qp_destroy(qp);
no_twin:
    give_number(qp);
no_number:
    timers_release(&session->engine->timers);
no_timer:
    if (qp->size)
        session_give_part(session, qp->offset, qp->size);
    return error;
}

static void set_up_queues(struct qp *qp)
{
    qp->shared = (struct sluice_qp_shared *)(qp->session->segment.base + qp->offset);
    qp->sq.shared = &qp->shared->sq;
    qp->rq.shared = &qp->shared->rq;
    qp->sq.ring = (uint8_t *)(qp->shared + 1);
    qp->rq.ring = qp->sq.ring + (uint64_t)qp->sq.entries * qp->sq.stride;
    store_relaxed(&qp->sq.shared->armed, 1);
}

static void set_up_counters(struct qp *qp)
{
    qp->counters->qp_num = qp->qp_num;
    qp->counters->tenant = qp->tenant->number;
    qp->counters->session = qp->session->number;
}

/* Counts it as a user of what it uses, by 1 or -1. */
static void use_objects(struct qp *qp, int by)
{
    if (qp->pd)
        qp->pd->users += (uint32_t)by;
    if (qp->send_cq)
        qp->send_cq->users += (uint32_t)by;
    if (qp->recv_cq)
        qp->recv_cq->users += (uint32_t)by;
    if (qp->srq)
        qp->srq->users += (uint32_t)by;
    qp->tenant->counters->qps += (uint64_t)by;
}

int qp_create(struct session *session, const struct sluice_create_qp_request *request,
              struct sluice_create_qp_reply *reply)
{
    struct qp *qp = aligned_alloc(64, (sizeof(*qp) + 63) & ~63ul);

    if (!qp)
        return -ENOMEM;
    memset(qp, 0, sizeof(*qp));
    qp->session = session;
    qp->sq_sig_all = request->sq_sig_all != 0;
    qp->peer_tenant = -1;
    requester_init(qp);
    list_init(&qp->link);
    claim_init(&qp->claim);
    list_init(&qp->windows);
    list_init(&qp->parcels);
    list_init(&qp->groups);
    list_init(&qp->shares);
    list_init(&qp->in_xrcd);
    int error = find_objects(qp, request);

    if (!error && !tenant_may_have(qp->tenant, SLUICE_LIMIT_QPS, qp->tenant->counters->qps, 1, qp->tenant->shape.max_qps))
        error = -ENOMEM;
    if (!error && !holding_take(qp->tenant, HOLDING_QPS))
        error = -ENOMEM;
    if (!error) {
        lay_out(qp, &request->cap);
        error = take_resources(qp, request);
        if (error)
            holding_give(qp->tenant, HOLDING_QPS);
    }
    if (error) {
        free(qp);
        return error;
    }
    if (qp->size)
        set_up_queues(qp);
    set_up_counters(qp);
    use_objects(qp, 1);
    if (qp->xrcd)
        list_append(&qp->xrcd->qps, &qp->in_xrcd);

    reply->handle = qp->handle;
    reply->qp_num = qp->qp_num;
    reply->cap = qp->attr.cap;
    reply->sq_entries = qp->sq.entries;
    reply->rq_entries = qp->rq.entries;
    reply->sq_stride = qp->sq.stride;
    reply->rq_stride = qp->rq.stride;
    reply->opcodes = qp->opcodes;
    reply->offset = qp->offset;
    reply->sq_offset = qp->offset + sizeof(struct sluice_qp_shared);
    reply->rq_offset = reply->sq_offset + (uint64_t)qp->sq.entries * qp->sq.stride;
    return 0;
}

void qp_free(struct qp *qp)
{
    qp_deactivate(qp);
    qp_disconnect(qp);
    multicast_detach_all(qp);
    mws_of_qp(qp);
    list_remove(&qp->in_xrcd);
    timers_release(&qp->session->engine->timers);
    nic_qp_destroy(qp);
    /* Not before: what the NIC still had for it has arrived meanwhile. */
    relay_free(qp);
    fence_forget(qp->session->engine, qp->fence);
    parcels_drop(qp);
    give_number(qp);
    use_objects(qp, -1);
    holding_give(qp->tenant, HOLDING_QPS);
    qp->counters->qp_num = 0;
    if (qp->size) {
        qp->session->qps[qp->handle] = NULL;
        session_give_part(qp->session, qp->offset, qp->size);
    }
    free(qp);
}

int qp_close(struct session *session, uint32_t handle)
{
    struct qp *qp = session->qps[handle];

    if (qp->group_count)
        return -EBUSY;
    if (qp->xrcd)
        qp_share_close(qp, session, handle);
    else
        qp_free(qp);
    return 0;
}

struct qp *qp_lookup(struct sluice_engine *engine, uint32_t qp_num)
{
    /* Beyond 24 bits there are none, and ids of other things (transport/trunk.c). */
    if (engine->nic_qps && qp_num < NIC_NUMBERS && engine->nic_qps[qp_num])
        return engine->nic_qps[qp_num];
    struct qp *qp = engine->qps[qp_num & (SLUICE_MAX_QPS - 1)];

    return qp && qp->qp_num == qp_num ? qp : NULL;
}

struct qp *qp_behind(const struct device *device, uint32_t qp_num)
{
    struct qp *qp = qp_lookup(device->engine, qp_num);

    /* Another NIC's number may be that of somebody else behind this one. */
    return qp && (!qp->twin || nic_of(qp) == device->nic) ? qp : NULL;
}

struct context *qp_context(const struct qp *qp, const struct session *session, uint32_t handle)
{
    return qp->pd ? qp->pd->context : qp_share_find(qp, session, handle)->opened->context;
}

void qp_async_event(struct qp *qp, uint32_t event_type)
{
    if (qp->pd && !qp->session->broken)
        context_event(qp->pd->context, event_type, qp->qp_num);
    for (struct list *link = qp->shares.next; link != &qp->shares; link = link->next) {
        const struct qp_share *share = list_entry(link, struct qp_share, link);

        if (!share->session->broken)
            context_event(share->opened->context, event_type, qp->qp_num);
    }
}
