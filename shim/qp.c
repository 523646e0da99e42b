/* SPDX-License-Identifier: Apache-2.0 */
/* Queue pairs: man ibv_create_qp, ibv_modify_qp, ibv_query_qp. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "atomic.h"
#include "memory.h"
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

void qps_forget_context(struct ibv_context *context)
{
    pthread_mutex_lock(&objects_lock);
    for (uint32_t handle = 0; handle < SLUICE_SESSION_QPS; handle++)
        if (qps[handle] && qps[handle]->base.qp.context == context)
            store_relaxed(&qps[handle], NULL);
    pthread_mutex_unlock(&objects_lock);
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

/* Which CQs and SRQs a type has: what it doesn't have is ignored, as the kernel's uverbs do. */
static int check_objects(struct ibv_qp_init_attr *attr)
{
    switch (attr->qp_type) {
    case IBV_QPT_RC:
    case IBV_QPT_UC:
    case IBV_QPT_UD:
        return attr->send_cq && attr->recv_cq && !(attr->srq && ((struct shim_srq *)attr->srq)->cq) ? 0 : EINVAL;
    case IBV_QPT_XRC_SEND:
        attr->recv_cq = NULL;
        attr->srq = NULL;
        return attr->send_cq ? 0 : EINVAL;
    case IBV_QPT_XRC_RECV:
        attr->send_cq = attr->recv_cq = NULL;
        attr->srq = NULL;
        return 0;
    case IBV_QPT_RAW_PACKET:
    case IBV_QPT_DRIVER:
        return EOPNOTSUPP;
    default:
        return EINVAL;
    }
}

static void fill_in(struct shim_qp *qp, const struct sluice_create_qp_reply *reply)
{
    /* What an XRC_RECV QP has instead of queues: nothing can be posted. */
    static struct sluice_qp_shared none = {.state = IBV_QPS_RESET};
    struct ibv_qp *public = &qp->base.qp;

    public->handle = reply->handle;
    public->qp_num = reply->qp_num;
    public->state = IBV_QPS_RESET;
    pthread_mutex_init(&public->mutex, NULL);
    pthread_cond_init(&public->cond, NULL);
    qp->handle = reply->handle;
    qp->opcodes = reply->opcodes;
    if (public->qp_type == IBV_QPT_XRC_RECV) {
        qp->shared = &none;
    } else {
        qp->shared = (struct sluice_qp_shared *)(session.segment + reply->offset);
        qp->max_inline = reply->cap.max_inline_data;
        queue_init(&qp->sq, &qp->shared->sq, reply->sq_offset, reply->sq_entries, reply->sq_stride,
                   reply->cap.max_send_sge);
        queue_init(&qp->rq, &qp->shared->rq, reply->rq_offset, reply->rq_entries, reply->rq_stride,
                   reply->cap.max_recv_sge);
    }
    pthread_mutex_lock(&objects_lock);
    qps[qp->handle] = qp;
    pthread_mutex_unlock(&objects_lock);
}

/* xrcd: XRC_RECV only, instead of a PD. */
static struct shim_qp *create(struct ibv_context *context, struct ibv_pd *pd, struct ibv_xrcd *xrcd,
                              struct ibv_qp_init_attr *attr)
{
    struct sluice_create_qp_request request;
    struct sluice_create_qp_reply reply;
    int error = check_objects(attr);

    if (error) {
        errno = error;
        return NULL;
    }
    struct shim_qp *qp = calloc(1, sizeof(*qp));

    if (!qp)
        return NULL;
    memset(&request, 0, sizeof(request));
    request.pd = pd ? ((struct shim_pd *)pd)->handle : 0;
    request.send_cq = attr->send_cq ? to_cq(attr->send_cq)->handle : 0;
    request.recv_cq = attr->recv_cq ? to_cq(attr->recv_cq)->handle : 0;
    request.srq = attr->srq ? ((struct shim_srq *)attr->srq)->handle : 0;
    request.xrcd = xrcd ? ((struct shim_xrcd *)xrcd)->handle : 0;
    request.qp_type = attr->qp_type;
    request.sq_sig_all = attr->sq_sig_all != 0;
    request.cap = (struct sluice_qp_cap){
        .max_send_wr = attr->cap.max_send_wr,
        .max_recv_wr = attr->recv_cq && !attr->srq ? attr->cap.max_recv_wr : 0,
        .max_send_sge = attr->cap.max_send_sge,
        .max_recv_sge = attr->recv_cq && !attr->srq ? attr->cap.max_recv_sge : 0,
        .max_inline_data = attr->cap.max_inline_data,
    };
    error = session_call(SLUICE_OP_CREATE_QP, &request, sizeof(request), &reply, sizeof(reply));
    if (error) {
        free(qp);
        errno = error;
        return NULL;
    }
    attr->cap.max_send_wr = reply.cap.max_send_wr;
    attr->cap.max_recv_wr = reply.cap.max_recv_wr;
    attr->cap.max_send_sge = reply.cap.max_send_sge;
    attr->cap.max_recv_sge = reply.cap.max_recv_sge;
    attr->cap.max_inline_data = reply.cap.max_inline_data;
    qp->init = *attr;
    qp->base.qp.context = context;
    qp->base.qp.qp_context = attr->qp_context;
    qp->base.qp.pd = pd;
    qp->base.qp.send_cq = attr->send_cq;
    qp->base.qp.recv_cq = attr->recv_cq;
    qp->base.qp.srq = attr->srq;
    qp->base.qp.qp_type = attr->qp_type;
    fill_in(qp, &reply);
    return qp;
}

EXPORT struct ibv_qp *ibv_create_qp(struct ibv_pd *pd, struct ibv_qp_init_attr *attr)
{
    if (attr->qp_type == IBV_QPT_XRC_RECV) { /* it is made in a domain, by ibv_create_qp_ex */
        errno = EINVAL;
        return NULL;
    }
    return (struct ibv_qp *)create(pd->context, pd, NULL, attr);
}

/* The ibv_wr_* functions that a type has (man ibv_wr_post). */
static uint64_t send_ops_of(enum ibv_qp_type type)
{
    const uint64_t send = IBV_QP_EX_WITH_SEND | IBV_QP_EX_WITH_SEND_WITH_IMM;
    const uint64_t write = IBV_QP_EX_WITH_RDMA_WRITE | IBV_QP_EX_WITH_RDMA_WRITE_WITH_IMM;
    const uint64_t local = IBV_QP_EX_WITH_LOCAL_INV | IBV_QP_EX_WITH_BIND_MW;

    switch (type) {
    case IBV_QPT_RC:
    case IBV_QPT_XRC_SEND:
        return send | write | local | IBV_QP_EX_WITH_SEND_WITH_INV | IBV_QP_EX_WITH_RDMA_READ |
               IBV_QP_EX_WITH_ATOMIC_CMP_AND_SWP | IBV_QP_EX_WITH_ATOMIC_FETCH_AND_ADD;
    case IBV_QPT_UC:
        return send | write | local;
    case IBV_QPT_UD:
        return send;
    default:
        return 0;
    }
}

static int check_extended(const struct ibv_qp_init_attr_ex *attr)
{
    const uint32_t known = IBV_QP_INIT_ATTR_PD | IBV_QP_INIT_ATTR_XRCD | IBV_QP_INIT_ATTR_SEND_OPS_FLAGS |
                           IBV_QP_INIT_ATTR_CREATE_FLAGS;
    bool target = attr->qp_type == IBV_QPT_XRC_RECV;

    if ((attr->comp_mask & ~known) || ((attr->comp_mask & IBV_QP_INIT_ATTR_CREATE_FLAGS) && attr->create_flags))
        return EOPNOTSUPP;
    if (!(attr->comp_mask & (uint32_t)(target ? IBV_QP_INIT_ATTR_XRCD : IBV_QP_INIT_ATTR_PD)))
        return EINVAL;
    if ((attr->comp_mask & IBV_QP_INIT_ATTR_SEND_OPS_FLAGS) && (attr->send_ops_flags & ~send_ops_of(attr->qp_type)))
        return EOPNOTSUPP;
    return 0;
}

struct ibv_qp *shim_create_qp_ex(struct ibv_context *context, struct ibv_qp_init_attr_ex *attr)
{
    struct ibv_qp_init_attr plain;
    bool target = attr->qp_type == IBV_QPT_XRC_RECV;
    int error = check_extended(attr);

    if (error) {
        errno = error;
        return NULL;
    }
    /* The extended structure begins with the members of the plain one. */
    memcpy(&plain, attr, sizeof(plain));
    struct shim_qp *qp = create(context, target ? NULL : attr->pd, target ? attr->xrcd : NULL, &plain);

    if (!qp)
        return NULL;
    attr->cap = plain.cap;
    if (attr->comp_mask & IBV_QP_INIT_ATTR_SEND_OPS_FLAGS) {
        qp->extended = true;
        wr_init(qp);
    }
    return &qp->base.qp;
}

struct ibv_qp *shim_open_qp(struct ibv_context *context, struct ibv_qp_open_attr *attr)
{
    const uint32_t needed = IBV_QP_OPEN_ATTR_NUM | IBV_QP_OPEN_ATTR_XRCD | IBV_QP_OPEN_ATTR_TYPE;
    struct sluice_open_qp_request request = {.qp_num = attr->qp_num};
    struct sluice_create_qp_reply reply;

    if ((attr->comp_mask & needed) != needed || attr->comp_mask >= IBV_QP_OPEN_ATTR_RESERVED ||
        attr->qp_type != IBV_QPT_XRC_RECV) {
        errno = EINVAL;
        return NULL;
    }
    struct shim_qp *qp = calloc(1, sizeof(*qp));

    if (!qp)
        return NULL;
    request.xrcd = ((struct shim_xrcd *)attr->xrcd)->handle;
    int error = session_call(SLUICE_OP_OPEN_QP, &request, sizeof(request), &reply, sizeof(reply));

    if (error) {
        free(qp);
        errno = error;
        return NULL;
    }
    qp->base.qp.context = context;
    qp->base.qp.qp_context = attr->comp_mask & IBV_QP_OPEN_ATTR_CONTEXT ? attr->qp_context : NULL;
    qp->base.qp.qp_type = IBV_QPT_XRC_RECV;
    qp->init.qp_type = IBV_QPT_XRC_RECV;
    qp->init.qp_context = qp->base.qp.qp_context;
    fill_in(qp, &reply);
    return &qp->base.qp;
}

EXPORT struct ibv_qp_ex *ibv_qp_to_qp_ex(struct ibv_qp *qp)
{
    return to_qp(qp)->extended ? &to_qp(qp)->base.ex : NULL;
}

static void with_completions(struct ibv_qp *public, void (*change)(struct shim_cq *cq, uint32_t qp_num))
{
    if (public->send_cq)
        change(to_cq(public->send_cq), public->qp_num);
    if (public->recv_cq && public->recv_cq != public->send_cq)
        change(to_cq(public->recv_cq), public->qp_num);
}

/* A forked child may still hold its parent's QPs, whose handles may be those of its own. */
static bool is_stale(const struct shim_qp *qp)
{
    return qps[qp->handle] != qp;
}

EXPORT int ibv_destroy_qp(struct ibv_qp *public)
{
    struct shim_qp *qp = to_qp(public);
    int error = is_stale(qp) ? EINVAL : session_call_handle(SLUICE_OP_DESTROY_QP, qp->handle, NULL);

    if (error)
        return error;
    pthread_mutex_lock(&objects_lock);
    qps[qp->handle] = NULL;
    pthread_mutex_unlock(&objects_lock);
    with_completions(public, cq_orphan_qp);
    memory_settle();
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
    };
    ah_attr_to_abi(&to->ah, &from->ah_attr);
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
    };
    ah_attr_from_abi(&to->ah_attr, &from->ah);
}

/* The engine has forgotten what was posted; so do we. */
static void restart(struct shim_qp *qp)
{
    with_completions(&qp->base.qp, cq_forget_qp);
    store_relaxed(&qp->sq.tail, qp->sq.producer);
    store_relaxed(&qp->rq.tail, qp->rq.producer);
}

/* Rate limits and what came after them are not of every device (rdma-core: libibverbs/cmd.c). */
static bool is_lacking(int attr_mask)
{
    return attr_mask & ~(IBV_QP_RATE_LIMIT - 1);
}

EXPORT int ibv_modify_qp(struct ibv_qp *public, struct ibv_qp_attr *attr, int attr_mask)
{
    struct shim_qp *qp = to_qp(public);
    struct sluice_modify_qp_request request = {.handle = qp->handle, .attr_mask = (uint32_t)attr_mask};
    struct sluice_qp_reply reply;

    if (is_lacking(attr_mask))
        return EOPNOTSUPP;
    attr_to_abi(&request.attr, attr);
    int error = is_stale(qp) ? EINVAL : session_call(SLUICE_OP_MODIFY_QP, &request, sizeof(request), &reply, sizeof(reply));

    if (error)
        return error;
    if (attr_mask & IBV_QP_STATE) {
        public->state = attr->qp_state;
        if (attr->qp_state == IBV_QPS_RESET) {
            restart(qp);
            memory_settle();
        }
    }
    return 0;
}

EXPORT int ibv_query_qp(struct ibv_qp *public, struct ibv_qp_attr *attr, int attr_mask,
                        struct ibv_qp_init_attr *init_attr)
{
    struct shim_qp *qp = to_qp(public);
    struct sluice_handle_request request = {.handle = qp->handle};
    struct sluice_qp_reply reply;

    if (is_lacking(attr_mask))
        return EOPNOTSUPP;
    /* All others are given, as the manual page allows. */
    int error = is_stale(qp) ? EINVAL : session_call(SLUICE_OP_QUERY_QP, &request, sizeof(request), &reply, sizeof(reply));

    if (error)
        return error;
    attr_from_abi(attr, &reply.attr);
    *init_attr = qp->init;
    public->state = attr->qp_state;
    return 0;
}
