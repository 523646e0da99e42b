/* SPDX-License-Identifier: Apache-2.0 */
/* Shared receive queues: man ibv_create_srq, ibv_create_srq_ex, ibv_modify_srq, ibv_post_srq_recv. */
#include <errno.h>
#include <stdlib.h>

#include "atomic.h"
#include "memory.h"
#include "objects.h"
#include "session.h"

static struct shim_srq *srqs;

void srqs_fork_child(void)
{
    srqs = NULL;
}

static struct shim_srq *self(struct ibv_srq *srq)
{
    return (struct shim_srq *)srq;
}

struct shim_srq *srq_by_handle(uint32_t handle)
{
    struct shim_srq *srq = srqs;

    while (srq && srq->handle != handle)
        srq = srq->next;
    return srq;
}

/* xrcd and cq: for XRC, else NULL. */
static struct ibv_srq *create(struct ibv_context *context, struct ibv_pd *pd, struct ibv_xrcd *xrcd, struct ibv_cq *cq,
                              void *srq_context, struct ibv_srq_attr *attr)
{
    struct sluice_create_srq_request request = {
        .pd = ((struct shim_pd *)pd)->handle,
        .max_wr = attr->max_wr,
        .max_sge = attr->max_sge,
        .xrcd = xrcd ? ((struct shim_xrcd *)xrcd)->handle : 0,
        .cq = cq ? to_cq(cq)->handle : 0,
    };
    struct sluice_create_srq_reply reply;
    struct shim_srq *srq = calloc(1, sizeof(*srq));

    if (!srq)
        return NULL;
    int error = session_call(SLUICE_OP_CREATE_SRQ, &request, sizeof(request), &reply, sizeof(reply));

    if (error) {
        free(srq);
        errno = error;
        return NULL;
    }
    srq->srq.context = context;
    srq->srq.srq_context = srq_context;
    srq->srq.pd = pd;
    srq->srq.handle = reply.handle;
    pthread_mutex_init(&srq->srq.mutex, NULL);
    pthread_cond_init(&srq->srq.cond, NULL);
    srq->handle = reply.handle;
    srq->number = reply.srq_num;
    srq->cq = cq;
    srq->shared = (struct sluice_srq_shared *)(session.segment + reply.offset);
    srq->queue = (struct shim_queue){
        .shared = &srq->shared->queue,
        .ring = (uint8_t *)(srq->shared + 1),
        .entries = reply.max_wr,
        .limit = reply.max_wr,
        .stride = reply.stride,
        .max_sge = reply.max_sge,
    };
    attr->max_wr = reply.max_wr;
    attr->max_sge = reply.max_sge;
    pthread_mutex_lock(&objects_lock);
    srq->next = srqs;
    srqs = srq;
    pthread_mutex_unlock(&objects_lock);
    return &srq->srq;
}

void srqs_forget_context(struct ibv_context *context)
{
    pthread_mutex_lock(&objects_lock);
    for (struct shim_srq **link = &srqs; *link;)
        if ((*link)->srq.context == context)
            *link = (*link)->next;
        else
            link = &(*link)->next;
    pthread_mutex_unlock(&objects_lock);
}

EXPORT struct ibv_srq *ibv_create_srq(struct ibv_pd *pd, struct ibv_srq_init_attr *attr)
{
    return create(pd->context, pd, NULL, NULL, attr->srq_context, &attr->attr);
}

struct ibv_srq *shim_create_srq_ex(struct ibv_context *context, struct ibv_srq_init_attr_ex *attr)
{
    const uint32_t known =
        IBV_SRQ_INIT_ATTR_TYPE | IBV_SRQ_INIT_ATTR_PD | IBV_SRQ_INIT_ATTR_XRCD | IBV_SRQ_INIT_ATTR_CQ;
    bool xrc = (attr->comp_mask & IBV_SRQ_INIT_ATTR_TYPE) && attr->srq_type == IBV_SRQT_XRC;
    const uint32_t needed = xrc ? known : IBV_SRQ_INIT_ATTR_PD;

    if (attr->comp_mask & ~known || ((attr->comp_mask & IBV_SRQ_INIT_ATTR_TYPE) && attr->srq_type > IBV_SRQT_XRC)) {
        errno = EOPNOTSUPP;
        return NULL;
    }
    if ((attr->comp_mask & needed) != needed) {
        errno = EINVAL;
        return NULL;
    }
    return create(context, attr->pd, xrc ? attr->xrcd : NULL, xrc ? attr->cq : NULL, attr->srq_context, &attr->attr);
}

EXPORT int ibv_modify_srq(struct ibv_srq *public, struct ibv_srq_attr *attr, int attr_mask)
{
    struct sluice_modify_srq_request request = {.handle = self(public)->handle, .limit = attr->srq_limit};
    struct sluice_handle_reply reply;

    /* IBV_SRQ_MAX_WR: as a device without IBV_DEVICE_SRQ_RESIZE. */
    if (attr_mask & ~IBV_SRQ_LIMIT)
        return EINVAL;
    if (!attr_mask)
        return 0;
    return session_call(SLUICE_OP_MODIFY_SRQ, &request, sizeof(request), &reply, sizeof(reply));
}

EXPORT int ibv_query_srq(struct ibv_srq *public, struct ibv_srq_attr *attr)
{
    struct sluice_handle_request request = {.handle = self(public)->handle};
    struct sluice_srq_reply reply;
    int error = session_call(SLUICE_OP_QUERY_SRQ, &request, sizeof(request), &reply, sizeof(reply));

    if (!error)
        *attr = (struct ibv_srq_attr){.max_wr = reply.max_wr, .max_sge = reply.max_sge, .srq_limit = reply.limit};
    return error;
}

EXPORT int ibv_destroy_srq(struct ibv_srq *public)
{
    struct shim_srq *srq = self(public);
    int error = session_call_handle(SLUICE_OP_DESTROY_SRQ, srq->handle, NULL);

    if (error)
        return error;
    pthread_mutex_lock(&objects_lock);
    for (struct shim_srq **link = &srqs; *link; link = &(*link)->next)
        if (*link == srq) {
            *link = srq->next;
            break;
        }
    pthread_mutex_unlock(&objects_lock);
    memory_settle();
    events_wait(&srq->async_events_given, &public->events_completed);
    free(srq);
    return 0;
}

int shim_get_srq_num(struct ibv_srq *srq, uint32_t *srq_num)
{
    if (!self(srq)->number)
        return EINVAL;
    *srq_num = self(srq)->number;
    return 0;
}

/* The engine's consumer is asked only where the queue seems full. */
static bool is_full(struct shim_srq *srq)
{
    struct shim_queue *queue = &srq->queue;

    if (queue->producer - queue->tail < queue->limit)
        return false;
    /* Pairs with the engine's release: it has copied what was in the slots before. */
    queue->tail = load_acquire(&srq->shared->consumer);
    return queue->producer - queue->tail >= queue->limit;
}

int shim_post_srq_recv(struct ibv_srq *public, struct ibv_recv_wr *wr, struct ibv_recv_wr **bad_wr)
{
    struct shim_srq *srq = self(public);
    struct shim_queue *queue = &srq->queue;
    int error = 0;

    spinlock_lock(&queue->lock);
    uint32_t before = queue->producer;

    for (; wr; wr = wr->next) {
        error = is_full(srq) ? ENOMEM : queue_write_receive(queue, wr);
        if (error)
            break;
        queue->producer++;
    }
    if (queue->producer != before && queue_publish(queue))
        session_ring_srq(srq->handle);
    spinlock_unlock(&queue->lock);
    if (error)
        *bad_wr = wr;
    return error;
}
