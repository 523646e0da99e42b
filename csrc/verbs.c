/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the control plane calls for the verbs of a tenant's processes: sessions and their objects. Each call enters
 * (worker.h), finds what it is about, has it done, and leaves.
 */
#include "engine.h"

#include <errno.h>
#include <infiniband/verbs.h>
#include <string.h>

#include "ah.h"
#include "atomic.h"
#include "context.h"
#include "cq.h"
#include "device.h"
#include "ending.h"
#include "memory.h"
#include "mr.h"
#include "multicast.h"
#include "nic.h"
#include "node.h"
#include "qp.h"
#include "session.h"
#include "srq.h"
#include "tenant.h"
#include "transport/nic.h"
#include "transport/tcp.h"
#include "transport/transport.h"
#include "transport/trunk.h"
#include "worker.h"
#include "xrc.h"

/* How often to go on past QP numbers that other NICs gave (transport/nic_twin.c). */
enum { NUMBER_TRIES = 64 };

int sluice_session_open(struct sluice_engine *engine, uint32_t number, struct sluice_session_files *files)
{
    worker_enter(engine);
    struct tenant *tenant = tenant_find(engine, number);
    int result = tenant && tenant->first == tenant ? session_open(tenant, files) : -EINVAL;

    worker_leave(engine);
    return result;
}

/* Enters, and leaves again where there is no such session. */
static struct session *enter_session(struct sluice_engine *engine, uint32_t number)
{
    worker_enter(engine);
    struct session *session = number < SLUICE_MAX_SESSIONS ? engine->sessions[number] : NULL;

    if (session && session->ending.is_session)
        session = NULL;
    if (!session)
        worker_leave(engine);
    return session;
}

/* The same for one of its QPs. */
static struct qp *enter_qp(struct sluice_engine *engine, uint32_t number, uint32_t handle)
{
    struct session *session = enter_session(engine, number);
    struct qp *qp = session && handle < SLUICE_SESSION_QPS ? session->qps[handle] : NULL;

    if (session && !qp)
        worker_leave(engine);
    return qp;
}

int sluice_session_close(struct sluice_engine *engine, uint32_t number)
{
    struct session *session = enter_session(engine, number);

    if (!session)
        return -EINVAL;
    struct tenant *tenant = session->tenant;

    ending_close_session(session);
    worker_leave_for(engine, tenant);
    return 0;
}

int sluice_session_async_event(struct sluice_engine *engine, uint32_t number, uint32_t device, uint32_t event_type,
                               uint32_t element)
{
    struct session *session = enter_session(engine, number);

    if (!session)
        return -EINVAL;
    for (struct list *link = session->contexts.next; link != &session->contexts; link = link->next) {
        struct context *context = list_entry(link, struct context, link);

        if (context->tenant->account.device->number == device)
            context_event(context, event_type, element);
    }
    worker_leave_for(engine, session->tenant);
    return 0;
}

int sluice_context_open(struct sluice_engine *engine, uint32_t number, uint32_t device, int *read_fd)
{
    struct session *session = enter_session(engine, number);

    if (!session)
        return -EINVAL;
    int result = context_open(session, device, read_fd);

    worker_leave_for(engine, session->tenant);
    return result;
}

int sluice_context_close(struct sluice_engine *engine, uint32_t number, uint32_t handle)
{
    struct session *session = enter_session(engine, number);

    if (!session)
        return -EINVAL;
    int result = ending_close_context(session, handle);

    worker_leave_for(engine, session->tenant);
    return result;
}

int sluice_pd_alloc(struct sluice_engine *engine, uint32_t number, uint32_t context)
{
    struct session *session = enter_session(engine, number);

    if (!session)
        return -EINVAL;
    int result = pd_alloc(session, context);

    worker_leave_for(engine, session->tenant);
    return result;
}

int sluice_pd_dealloc(struct sluice_engine *engine, uint32_t number, uint32_t handle)
{
    struct session *session = enter_session(engine, number);

    if (!session)
        return -EINVAL;
    int result = pd_dealloc(session, handle);

    worker_leave_for(engine, session->tenant);
    return result;
}

int sluice_channel_create(struct sluice_engine *engine, uint32_t number, int *read_fd)
{
    struct session *session = enter_session(engine, number);

    if (!session)
        return -EINVAL;
    int result = channel_create(session, read_fd);

    worker_leave_for(engine, session->tenant);
    return result;
}

int sluice_channel_destroy(struct sluice_engine *engine, uint32_t number, uint32_t handle)
{
    struct session *session = enter_session(engine, number);

    if (!session)
        return -EINVAL;
    int result = channel_destroy(session, handle);

    worker_leave_for(engine, session->tenant);
    return result;
}

int sluice_cq_create(struct sluice_engine *engine, uint32_t number, const struct sluice_create_cq_request *request,
                     struct sluice_create_cq_reply *reply)
{
    struct session *session = enter_session(engine, number);

    if (!session)
        return -EINVAL;
    int result = cq_create(session, request, reply);

    worker_leave_for(engine, session->tenant);
    return result;
}

int sluice_cq_destroy(struct sluice_engine *engine, uint32_t number, uint32_t handle)
{
    struct session *session = enter_session(engine, number);

    if (!session)
        return -EINVAL;
    struct cq *cq = cq_find(session, handle);
    int result = !cq ? -EINVAL : cq->users ? -EBUSY : 0;

    if (result == 0)
        cq_free(cq);
    worker_leave_for(engine, session->tenant);
    return result;
}

int sluice_cq_resize(struct sluice_engine *engine, uint32_t number, const struct sluice_resize_cq_request *request,
                     struct sluice_resize_cq_reply *reply)
{
    struct session *session = enter_session(engine, number);

    if (!session)
        return -EINVAL;
    struct cq *cq = cq_find(session, request->handle);
    int result = cq ? cq_resize(cq, request, reply) : -EINVAL;

    worker_leave_for(engine, session->tenant);
    return result;
}

int sluice_memory_open_file(struct sluice_engine *engine, uint32_t number, int fd, int writable)
{
    struct session *session = enter_session(engine, number);

    if (!session)
        return -EINVAL;
    int result = memory_open_file(session, fd, writable);

    worker_leave(engine);
    return result;
}

int sluice_memory_open_process(struct sluice_engine *engine, uint32_t number, int fd)
{
    struct session *session = enter_session(engine, number);

    if (!session)
        return -EINVAL;
    int result = memory_open_process(session, fd);

    worker_leave(engine);
    return result;
}

int sluice_memory_close(struct sluice_engine *engine, uint32_t number, uint32_t handle)
{
    struct session *session = enter_session(engine, number);

    if (!session)
        return -EINVAL;
    int result = memory_close(session, handle);

    worker_leave(engine);
    return result;
}

int sluice_qp_create(struct sluice_engine *engine, uint32_t number, const struct sluice_create_qp_request *request,
                     struct sluice_create_qp_reply *reply)
{
    int result = -EAGAIN;

    for (uint32_t tries = 0; result == -EAGAIN && tries < NUMBER_TRIES; tries++) {
        struct session *session = enter_session(engine, number);

        if (!session)
            return -EINVAL;
        result = session->broken ? -EIO : qp_create(session, request, reply);
        worker_leave_for(engine, session->tenant);
    }
    return result == -EAGAIN ? -ENOMEM : result;
}

int sluice_qp_open(struct sluice_engine *engine, uint32_t number, const struct sluice_open_qp_request *request,
                   struct sluice_create_qp_reply *reply)
{
    struct session *session = enter_session(engine, number);

    if (!session)
        return -EINVAL;
    int result = session->broken ? -EIO : qp_open(session, request, reply);

    worker_leave(engine);
    return result;
}

int sluice_qp_destroy(struct sluice_engine *engine, uint32_t number, uint32_t handle)
{
    struct qp *qp = enter_qp(engine, number, handle);

    if (!qp)
        return -EINVAL;
    struct tenant *tenant = qp->tenant;
    int result = qp_close(engine->sessions[number], handle);

    worker_leave_for(engine, tenant);
    return result;
}

int sluice_qp_attach(struct sluice_engine *engine, uint32_t number, uint32_t handle, const uint8_t *gid)
{
    struct qp *qp = enter_qp(engine, number, handle);

    if (!qp)
        return -EINVAL;
    int result = multicast_attach(qp, gid);

    worker_leave(engine);
    return result;
}

int sluice_qp_detach(struct sluice_engine *engine, uint32_t number, uint32_t handle, const uint8_t *gid)
{
    struct qp *qp = enter_qp(engine, number, handle);

    if (!qp)
        return -EINVAL;
    int result = multicast_detach(qp, gid);

    worker_leave(engine);
    return result;
}

int sluice_pd_device(struct sluice_engine *engine, uint32_t number, uint32_t handle)
{
    struct session *session = enter_session(engine, number);

    if (!session)
        return -EINVAL;
    const struct pd *pd = pd_find(session, handle);
    int device = pd ? (int)pd->context->tenant->account.device->number : -EINVAL;

    worker_leave(engine);
    return device;
}

int sluice_qp_device(struct sluice_engine *engine, uint32_t number, uint32_t handle)
{
    struct qp *qp = enter_qp(engine, number, handle);

    if (!qp)
        return -EINVAL;
    int device = (int)qp->tenant->account.device->number;

    worker_leave(engine);
    return device;
}

int sluice_qp_type(struct sluice_engine *engine, uint32_t number, uint32_t handle)
{
    struct qp *qp = enter_qp(engine, number, handle);

    if (!qp)
        return -EINVAL;
    int type = (int)qp->type;

    worker_leave(engine);
    return type;
}

int sluice_srq_create(struct sluice_engine *engine, uint32_t number, const struct sluice_create_srq_request *request,
                      struct sluice_create_srq_reply *reply)
{
    struct session *session = enter_session(engine, number);

    if (!session)
        return -EINVAL;
    int result = session->broken ? -EIO : srq_create(session, request, reply);

    worker_leave(engine);
    return result;
}

/* Enters, and leaves again where there is no such SRQ. */
static struct srq *enter_srq(struct sluice_engine *engine, uint32_t number, uint32_t handle)
{
    struct session *session = enter_session(engine, number);
    struct srq *srq = session ? srq_find(session, handle) : NULL;

    if (session && !srq)
        worker_leave(engine);
    return srq;
}

int sluice_srq_destroy(struct sluice_engine *engine, uint32_t number, uint32_t handle)
{
    struct srq *srq = enter_srq(engine, number, handle);

    if (!srq)
        return -EINVAL;
    int result = srq->users ? -EBUSY : 0;

    if (result == 0)
        srq_free(srq);
    worker_leave(engine);
    return result;
}

int sluice_srq_set_limit(struct sluice_engine *engine, uint32_t number, uint32_t handle, uint32_t limit)
{
    struct srq *srq = enter_srq(engine, number, handle);

    if (!srq)
        return -EINVAL;
    int result = srq_set_limit(srq, limit);

    worker_leave(engine);
    return result;
}

int sluice_srq_query(struct sluice_engine *engine, uint32_t number, uint32_t handle, struct sluice_srq_reply *reply)
{
    struct srq *srq = enter_srq(engine, number, handle);

    if (!srq)
        return -EINVAL;
    reply->max_wr = srq->queue.entries;
    reply->max_sge = srq->max_sge;
    reply->limit = srq->limit;
    worker_leave(engine);
    return 0;
}

int sluice_ah_create(struct sluice_engine *engine, uint32_t number, const struct sluice_create_ah_request *request,
                     const uint8_t *sgid, int32_t peer_tenant)
{
    struct session *session = enter_session(engine, number);

    if (!session)
        return -EINVAL;
    int result = ah_create(session, request, sgid, &transport_local, peer_tenant);

    worker_leave(engine);
    return result;
}

int sluice_ah_destroy(struct sluice_engine *engine, uint32_t number, uint32_t handle)
{
    struct session *session = enter_session(engine, number);

    if (!session)
        return -EINVAL;
    int result = ah_destroy(session, handle);

    worker_leave(engine);
    return result;
}

int sluice_ah_sever(struct sluice_engine *engine, uint32_t number, uint32_t handle)
{
    struct session *session = enter_session(engine, number);

    if (!session)
        return -EINVAL;
    struct ah *ah = ah_find(session, handle);

    if (ah) {
        ah->severed = true;
        ah->peer = SLUICE_MAX_TENANTS;
        ah_set_trunk(ah, NULL);
    }
    worker_leave(engine);
    return ah ? 0 : -EINVAL;
}

int sluice_ah_lead(struct sluice_engine *engine, uint32_t number, uint32_t handle, int32_t peer_tenant, int32_t trunk)
{
    struct session *session = enter_session(engine, number);

    if (!session)
        return -EINVAL;
    struct ah *ah = ah_find(session, handle);
    struct trunk *by = trunk < 0 ? NULL : trunk_find(engine, (uint32_t)trunk);
    int result = ah && !ah->group && (trunk < 0 || by) ? ah_set_trunk(ah, by) : -EINVAL;

    if (result == 0) {
        ah->transport = by ? &transport_tcp : &transport_local;
        ah_set_peer(ah, peer_tenant);
    }
    worker_leave(engine);
    return result;
}

int sluice_ah_by_nic(struct sluice_engine *engine, uint32_t number, uint32_t handle, int32_t behind)
{
    struct session *session = enter_session(engine, number);

    if (!session)
        return -EINVAL;
    struct ah *ah = ah_find(session, handle);
    int result = ah && !ah->group ? ah_by_nic(ah, behind < 0 ? NULL : device_find(engine, (uint32_t)behind)) : -EINVAL;

    worker_leave_for(engine, session->tenant);
    return result;
}

int sluice_trunk_open(struct sluice_engine *engine)
{
    worker_enter(engine);
    int result = trunk_open(engine);

    worker_leave(engine);
    return result;
}

int sluice_trunk_connect(struct sluice_engine *engine, uint32_t number, int fd)
{
    worker_enter(engine);
    struct trunk *trunk = trunk_find(engine, number);
    int result = trunk ? trunk_connect(trunk, fd) : -EINVAL;

    worker_leave(engine);
    return result;
}

int sluice_trunk_accept(struct sluice_engine *engine, uint32_t number, int fd)
{
    worker_enter(engine);
    struct trunk *trunk = trunk_find(engine, number);
    int result = trunk ? trunk_accept(trunk, fd) : -EINVAL;

    worker_leave(engine);
    return result;
}

int sluice_xrcd_open(struct sluice_engine *engine, uint32_t number, uint32_t context, int has_inode, uint64_t dev,
                     uint64_t ino, uint32_t flags)
{
    struct session *session = enter_session(engine, number);

    if (!session)
        return -EINVAL;
    int result = xrcd_open(session, context, has_inode, dev, ino, flags & SLUICE_XRCD_CREATE,
                           flags & SLUICE_XRCD_EXCL);

    worker_leave(engine);
    return result;
}

int sluice_xrcd_close(struct sluice_engine *engine, uint32_t number, uint32_t handle)
{
    struct session *session = enter_session(engine, number);

    if (!session)
        return -EINVAL;
    int result = xrcd_close(session, handle);

    worker_leave(engine);
    return result;
}

int sluice_qp_modify(struct sluice_engine *engine, uint32_t number, uint32_t handle,
                     const struct sluice_qp_attr *attr, uint32_t attr_mask, uint32_t transport, int32_t peer_tenant,
                     struct sluice_qp_attr *now)
{
    struct qp *qp = enter_qp(engine, number, handle);

    if (!qp)
        return -EINVAL;
    /* Who is on no node is looked for here, and not found. */
    const struct transport *over = &transport_local;
    int result = -EOPNOTSUPP;

    if (transport == SLUICE_TRANSPORT_NIC || (qp->type == IBV_QPT_UD && qp->twin))
        over = &transport_nic;
    else if (transport == SLUICE_TRANSPORT_TCP)
        over = &transport_tcp;
    if (transport == SLUICE_TRANSPORT_NIC && qp->twin && (attr_mask & IBV_QP_STATE) && attr->qp_state == IBV_QPS_RTR)
        qp->twin->behind = peer_tenant < 0 ? NULL : device_find(engine, (uint32_t)peer_tenant);
    if (over != &transport_nic || qp->twin)
        result = qp_modify(qp, attr, attr_mask, over,
                           transport == SLUICE_TRANSPORT_LOCAL ? peer_tenant : -1);

    *now = qp->attr;
    worker_leave_for(engine, qp->tenant);
    return result;
}

int sluice_qp_connect(struct sluice_engine *engine, uint32_t number, uint32_t handle, int fd)
{
    struct qp *qp = enter_qp(engine, number, handle);

    if (!qp)
        return -EINVAL;
    int result = tcp_attach(qp, fd);

    worker_leave(engine);
    return result;
}

int sluice_qp_tenant(struct sluice_engine *engine, uint32_t qp_num, uint32_t number)
{
    worker_enter(engine);
    const struct device *device = device_find(engine, number);
    const struct qp *qp = device ? qp_behind(device, qp_num) : NULL;
    int result = qp && !qp->session->broken ? (int)qp->tenant->first->number : -ENOENT;

    worker_leave(engine);
    return result;
}

int sluice_qp_shares_receives(struct sluice_engine *engine, uint32_t number, uint32_t handle, uint32_t peer_num)
{
    struct qp *qp = enter_qp(engine, number, handle);

    if (!qp)
        return -EINVAL;
    const struct qp *peer = qp_lookup(engine, peer_num);
    int result = peer && qp->twin && peer->twin && nic_of(qp) == nic_of(peer) && (qp->srq || peer->srq);

    worker_leave(engine);
    return result;
}

int sluice_qp_holder(struct sluice_engine *engine, uint32_t qp_num, uint32_t *session, uint32_t *handle)
{
    worker_enter(engine);
    const struct qp *qp = qp_lookup(engine, qp_num);
    int result = qp ? 0 : -ENOENT;

    if (qp) {
        *session = qp->session->number;
        *handle = qp->handle;
    }
    worker_leave(engine);
    return result;
}

int sluice_qp_unread(struct sluice_engine *engine, uint32_t tenant, uint32_t qp_num, int first, uint32_t *mark)
{
    worker_enter(engine);
    const struct qp *qp = qp_lookup(engine, qp_num);
    bool known = qp && qp->recv_cq && qp->tenant->first->number == tenant && !qp->session->broken;

    if (known && first)
        *mark = qp->recv_cq->produced;
    /* What a tenant claims to have polled is its own affair. */
    int unread = known && (int32_t)(*mark - load_acquire(&qp->recv_cq->shared->consumer)) > 0;

    worker_leave(engine);
    return unread;
}

int sluice_qp_number(struct sluice_engine *engine, uint32_t number, uint32_t handle)
{
    struct qp *qp = enter_qp(engine, number, handle);

    if (!qp)
        return -EINVAL;
    int result = (int)qp->qp_num;

    worker_leave(engine);
    return result;
}

int sluice_qp_fail(struct sluice_engine *engine, uint32_t number, uint32_t handle)
{
    struct qp *qp = enter_qp(engine, number, handle);

    if (!qp)
        return -EINVAL;
    qp_fatal(qp, IBV_EVENT_QP_FATAL);
    worker_leave(engine);
    return 0;
}

int sluice_qp_query(struct sluice_engine *engine, uint32_t number, uint32_t handle, struct sluice_qp_attr *now)
{
    struct qp *qp = enter_qp(engine, number, handle);

    if (!qp)
        return -EINVAL;
    nic_qp_check(qp);
    *now = qp->attr;
    now->qp_state = now->cur_qp_state = qp->state;
    now->sq_draining = qp->state == 4 /* IBV_QPS_SQD */ && (qp->message.active || qp->completed != qp->sq.head);
    worker_leave_for(engine, qp->tenant);
    return 0;
}
