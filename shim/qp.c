/* SPDX-License-Identifier: Apache-2.0 */
/* Queue pairs: man ibv_create_qp, ibv_modify_qp, ibv_query_qp. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "atomic.h"
#include "objects.h"
#include "session.h"

struct shim_qp *qps[SLUICE_SESSION_QPS];
pthread_mutex_t objects_lock = PTHREAD_MUTEX_INITIALIZER;

struct shim_qp *qp_by_number(uint32_t qp_num)
{
    for (uint32_t handle = 0; handle < SLUICE_SESSION_QPS; handle++)
        if (qps[handle] && qps[handle]->base.qp.qp_num == qp_num)
            return qps[handle];
    return NULL;
}

static void queue_init(struct shim_queue *queue, struct sluice_queue_shared *shared, uint64_t ring, uint32_t entries,
                       uint32_t stride, uint32_t max_sge)
{
    queue->shared = shared;
    queue->ring = session.segment + ring;
    queue->entries = entries;
    queue->stride = stride;
    queue->limit = entries;
    queue->max_sge = max_sge;
}

static struct shim_qp *create(struct ibv_pd *pd, struct ibv_qp_init_attr *attr)
{
    struct sluice_create_qp_request request;
    struct sluice_create_qp_reply reply;

    if (!attr->send_cq || !attr->recv_cq || attr->srq) {
        errno = attr->srq ? EOPNOTSUPP : EINVAL;
        return NULL;
    }
    struct shim_qp *qp = calloc(1, sizeof(*qp));

    if (!qp)
        return NULL;
    memset(&request, 0, sizeof(request));
    request.pd = ((struct shim_pd *)pd)->handle;
    request.send_cq = to_cq(attr->send_cq)->handle;
    request.recv_cq = to_cq(attr->recv_cq)->handle;
    request.qp_type = attr->qp_type;
    request.sq_sig_all = attr->sq_sig_all != 0;
    request.cap = (struct sluice_qp_cap){
        .max_send_wr = attr->cap.max_send_wr,
        .max_recv_wr = attr->cap.max_recv_wr,
        .max_send_sge = attr->cap.max_send_sge,
        .max_recv_sge = attr->cap.max_recv_sge,
        .max_inline_data = attr->cap.max_inline_data,
    };
    int error = session_call(SLUICE_OP_CREATE_QP, &request, sizeof(request), &reply, sizeof(reply));

    if (error) {
        free(qp);
        errno = error;
        return NULL;
    }
    struct ibv_qp *public = &qp->base.qp;

    public->context = pd->context;
    public->qp_context = attr->qp_context;
    public->pd = pd;
    public->send_cq = attr->send_cq;
    public->recv_cq = attr->recv_cq;
    public->handle = reply.handle;
    public->qp_num = reply.qp_num;
    public->state = IBV_QPS_RESET;
    public->qp_type = attr->qp_type;
    pthread_mutex_init(&public->mutex, NULL);
    pthread_cond_init(&public->cond, NULL);

    qp->handle = reply.handle;
    qp->shared = (struct sluice_qp_shared *)(session.segment + reply.offset);
    qp->max_inline = reply.cap.max_inline_data;
    queue_init(&qp->sq, &qp->shared->sq, reply.sq_offset, reply.sq_entries, reply.sq_stride, reply.cap.max_send_sge);
    queue_init(&qp->rq, &qp->shared->rq, reply.rq_offset, reply.rq_entries, reply.rq_stride, reply.cap.max_recv_sge);

    attr->cap.max_send_wr = reply.cap.max_send_wr;
    attr->cap.max_recv_wr = reply.cap.max_recv_wr;
    attr->cap.max_send_sge = reply.cap.max_send_sge;
    attr->cap.max_recv_sge = reply.cap.max_recv_sge;
    attr->cap.max_inline_data = reply.cap.max_inline_data;
    qp->init = *attr;

    pthread_mutex_lock(&objects_lock);
    qps[qp->handle] = qp;
    pthread_mutex_unlock(&objects_lock);
    return qp;
}

EXPORT struct ibv_qp *ibv_create_qp(struct ibv_pd *pd, struct ibv_qp_init_attr *attr)
{
    return (struct ibv_qp *)create(pd, attr);
}

struct ibv_qp *shim_create_qp_ex(struct ibv_context *context, struct ibv_qp_init_attr_ex *attr)
{
    const uint64_t known = IBV_QP_EX_WITH_RDMA_WRITE | IBV_QP_EX_WITH_RDMA_WRITE_WITH_IMM | IBV_QP_EX_WITH_SEND |
                           IBV_QP_EX_WITH_SEND_WITH_IMM | IBV_QP_EX_WITH_RDMA_READ |
                           IBV_QP_EX_WITH_ATOMIC_CMP_AND_SWP | IBV_QP_EX_WITH_ATOMIC_FETCH_AND_ADD;
    struct ibv_qp_init_attr plain;

    (void)context;
    if (!(attr->comp_mask & IBV_QP_INIT_ATTR_PD)) {
        errno = EINVAL;
        return NULL;
    }
    if ((attr->comp_mask & ~(uint32_t)(IBV_QP_INIT_ATTR_PD | IBV_QP_INIT_ATTR_SEND_OPS_FLAGS)) ||
        ((attr->comp_mask & IBV_QP_INIT_ATTR_SEND_OPS_FLAGS) && (attr->send_ops_flags & ~known))) {
        errno = EOPNOTSUPP;
        return NULL;
    }
    /* The extended structure begins with the members of the plain one. */
    memcpy(&plain, attr, sizeof(plain));
    struct shim_qp *qp = create(attr->pd, &plain);

    if (!qp)
        return NULL;
    attr->cap = plain.cap;
    if (attr->comp_mask & IBV_QP_INIT_ATTR_SEND_OPS_FLAGS) {
        qp->extended = true;
        wr_init(qp);
    }
    return &qp->base.qp;
}

EXPORT struct ibv_qp_ex *ibv_qp_to_qp_ex(struct ibv_qp *qp)
{
    return to_qp(qp)->extended ? &to_qp(qp)->base.ex : NULL;
}

static void forget_completions(struct ibv_qp *public)
{
    cq_forget_qp(to_cq(public->send_cq), public->qp_num);
    if (public->recv_cq != public->send_cq)
        cq_forget_qp(to_cq(public->recv_cq), public->qp_num);
}

EXPORT int ibv_destroy_qp(struct ibv_qp *public)
{
    struct shim_qp *qp = to_qp(public);
    int error = session_call_handle(SLUICE_OP_DESTROY_QP, qp->handle, NULL);

    if (error)
        return error;
    pthread_mutex_lock(&objects_lock);
    qps[qp->handle] = NULL;
    pthread_mutex_unlock(&objects_lock);
    forget_completions(public);
    events_wait(&qp->async_events_given, &public->events_completed);
    free(qp);
    return 0;
}

static void attr_to_abi(struct sluice_qp_attr *to, const struct ibv_qp_attr *from)
{
    *to = (struct sluice_qp_attr){
        .qp_state = from->qp_state,
        .cur_qp_state = from->cur_qp_state,
        .path_mtu = from->path_mtu,
        .path_mig_state = from->path_mig_state,
        .qkey = from->qkey,
        .rq_psn = from->rq_psn,
        .sq_psn = from->sq_psn,
        .dest_qp_num = from->dest_qp_num,
        .qp_access_flags = (uint32_t)from->qp_access_flags,
        .pkey_index = from->pkey_index,
        .en_sqd_async_notify = from->en_sqd_async_notify,
        .max_rd_atomic = from->max_rd_atomic,
        .max_dest_rd_atomic = from->max_dest_rd_atomic,
        .min_rnr_timer = from->min_rnr_timer,
        .port_num = from->port_num,
        .timeout = from->timeout,
        .retry_cnt = from->retry_cnt,
        .rnr_retry = from->rnr_retry,
        .rate_limit = from->rate_limit,
        .ah = {
            .flow_label = from->ah_attr.grh.flow_label,
            .sgid_index = from->ah_attr.grh.sgid_index,
            .hop_limit = from->ah_attr.grh.hop_limit,
            .traffic_class = from->ah_attr.grh.traffic_class,
            .dlid = from->ah_attr.dlid,
            .sl = from->ah_attr.sl,
            .src_path_bits = from->ah_attr.src_path_bits,
            .static_rate = from->ah_attr.static_rate,
            .is_global = from->ah_attr.is_global,
            .port_num = from->ah_attr.port_num,
        },
    };
    memcpy(to->ah.dgid, from->ah_attr.grh.dgid.raw, sizeof(to->ah.dgid));
}

static void attr_from_abi(struct ibv_qp_attr *to, const struct sluice_qp_attr *from)
{
    *to = (struct ibv_qp_attr){
        .qp_state = from->qp_state,
        .cur_qp_state = from->qp_state,
        .path_mtu = from->path_mtu,
        .path_mig_state = from->path_mig_state,
        .qkey = from->qkey,
        .rq_psn = from->rq_psn,
        .sq_psn = from->sq_psn,
        .dest_qp_num = from->dest_qp_num,
        .qp_access_flags = from->qp_access_flags,
        .pkey_index = (uint16_t)from->pkey_index,
        .en_sqd_async_notify = (uint8_t)from->en_sqd_async_notify,
        .sq_draining = (uint8_t)from->sq_draining,
        .max_rd_atomic = (uint8_t)from->max_rd_atomic,
        .max_dest_rd_atomic = (uint8_t)from->max_dest_rd_atomic,
        .min_rnr_timer = (uint8_t)from->min_rnr_timer,
        .port_num = (uint8_t)from->port_num,
        .timeout = (uint8_t)from->timeout,
        .retry_cnt = (uint8_t)from->retry_cnt,
        .rnr_retry = (uint8_t)from->rnr_retry,
        .rate_limit = from->rate_limit,
        .cap = {
            .max_send_wr = from->cap.max_send_wr,
            .max_recv_wr = from->cap.max_recv_wr,
            .max_send_sge = from->cap.max_send_sge,
            .max_recv_sge = from->cap.max_recv_sge,
            .max_inline_data = from->cap.max_inline_data,
        },
        .ah_attr = {
            .grh = {
                .flow_label = from->ah.flow_label,
                .sgid_index = (uint8_t)from->ah.sgid_index,
                .hop_limit = (uint8_t)from->ah.hop_limit,
                .traffic_class = (uint8_t)from->ah.traffic_class,
            },
            .dlid = (uint16_t)from->ah.dlid,
            .sl = (uint8_t)from->ah.sl,
            .src_path_bits = (uint8_t)from->ah.src_path_bits,
            .static_rate = (uint8_t)from->ah.static_rate,
            .is_global = (uint8_t)from->ah.is_global,
            .port_num = (uint8_t)from->ah.port_num,
        },
    };
    memcpy(to->ah_attr.grh.dgid.raw, from->ah.dgid, sizeof(from->ah.dgid));
}

/* The engine has forgotten what was posted; so do we. */
static void restart(struct shim_qp *qp)
{
    forget_completions(&qp->base.qp);
    store_relaxed(&qp->sq.tail, qp->sq.producer);
    store_relaxed(&qp->rq.tail, qp->rq.producer);
}

EXPORT int ibv_modify_qp(struct ibv_qp *public, struct ibv_qp_attr *attr, int attr_mask)
{
    struct shim_qp *qp = to_qp(public);
    struct sluice_modify_qp_request request = {.handle = qp->handle, .attr_mask = (uint32_t)attr_mask};
    struct sluice_qp_reply reply;

    attr_to_abi(&request.attr, attr);
    int error = session_call(SLUICE_OP_MODIFY_QP, &request, sizeof(request), &reply, sizeof(reply));

    if (error)
        return error;
    if (attr_mask & IBV_QP_STATE) {
        public->state = attr->qp_state;
        if (attr->qp_state == IBV_QPS_RESET)
            restart(qp);
    }
    return 0;
}

EXPORT int ibv_query_qp(struct ibv_qp *public, struct ibv_qp_attr *attr, int attr_mask,
                        struct ibv_qp_init_attr *init_attr)
{
    struct shim_qp *qp = to_qp(public);
    struct sluice_handle_request request = {.handle = qp->handle};
    struct sluice_qp_reply reply;

    (void)attr_mask; /* all attributes are given, as the manual page allows */
    int error = session_call(SLUICE_OP_QUERY_QP, &request, sizeof(request), &reply, sizeof(reply));

    if (error)
        return error;
    attr_from_abi(attr, &reply.attr);
    *init_attr = qp->init;
    public->state = attr->qp_state;
    return 0;
}
