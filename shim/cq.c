/* SPDX-License-Identifier: Apache-2.0 */
/* Completion queues: man ibv_create_cq, ibv_poll_cq, ibv_req_notify_cq. */
#include <errno.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>

#include "atomic.h"
#include "objects.h"
#include "session.h"

static struct shim_cq *cqs;

void spinlock_wait(struct spinlock *lock)
{
    for (unsigned turn = 1; atomic_flag_test_and_set_explicit(&lock->taken, memory_order_acquire); turn++) {
        spin_hint();
        /* The holder may have lost its core to us. */
        if (turn % 64 == 0)
            sched_yield();
    }
}

struct shim_cq *cq_by_handle(uint32_t handle)
{
    struct shim_cq *cq = cqs;

    while (cq && cq->handle != handle)
        cq = cq->next;
    return cq;
}

void cqs_fork_child(void)
{
    cqs = NULL;
}

void cqs_forget_context(struct ibv_context *context)
{
    pthread_mutex_lock(&objects_lock);
    for (struct shim_cq **link = &cqs; *link;)
        if ((*link)->cq.context == context)
            *link = (*link)->next;
        else
            link = &(*link)->next;
    pthread_mutex_unlock(&objects_lock);
}

static struct shim_cq *create(struct ibv_context *context, uint32_t cqe, void *cq_context,
                              struct ibv_comp_channel *channel, uint32_t comp_vector, uint32_t flags)
{
    struct sluice_create_cq_request request = {
        .cqe = cqe,
        .channel = channel ? ((struct shim_channel *)channel)->handle : 0,
        .context = to_context(context)->handle,
    };
    struct sluice_create_cq_reply reply;

    if (cqe == 0 || cqe > SLUICE_MAX_CQE || comp_vector >= (uint32_t)context->num_comp_vectors) {
        errno = EINVAL;
        return NULL;
    }
    struct shim_cq *cq = calloc(1, sizeof(*cq));

    if (!cq)
        return NULL;
    if (flags & IBV_CREATE_CQ_ATTR_IGNORE_OVERRUN)
        request.flags |= SLUICE_CQ_IGNORE_OVERRUN;
    int error = session_call(SLUICE_OP_CREATE_CQ, &request, sizeof(request), &reply, sizeof(reply));

    if (error) {
        free(cq);
        errno = error;
        return NULL;
    }
    struct ibv_cq *public = (struct ibv_cq *)cq;

    public->context = context;
    public->channel = channel;
    public->cq_context = cq_context;
    public->handle = reply.handle;
    public->cqe = (int)reply.cqe;
    pthread_mutex_init(&public->mutex, NULL);
    pthread_cond_init(&public->cond, NULL);
    cq->handle = reply.handle;
    cq->entries = reply.cqe;
    cq->shared = (struct sluice_cq_shared *)(session.segment + reply.offset);
    cq->ring = (struct sluice_cqe *)(session.segment + reply.ring);
    cq->unlocked = flags & IBV_CREATE_CQ_ATTR_SINGLE_THREADED;
    cq->ignore_overrun = flags & IBV_CREATE_CQ_ATTR_IGNORE_OVERRUN;

    pthread_mutex_lock(&objects_lock);
    cq->next = cqs;
    cqs = cq;
    if (channel) {
        ((struct shim_channel *)channel)->users++;
        channel->refcnt++;
    }
    pthread_mutex_unlock(&objects_lock);
    return cq;
}

EXPORT struct ibv_cq *ibv_create_cq(struct ibv_context *context, int cqe, void *cq_context,
                                    struct ibv_comp_channel *channel, int comp_vector)
{
    if (cqe < 1 || comp_vector < 0) {
        errno = EINVAL;
        return NULL;
    }
    return (struct ibv_cq *)create(context, (uint32_t)cqe, cq_context, channel, (uint32_t)comp_vector, 0);
}

struct ibv_cq_ex *shim_create_cq_ex(struct ibv_context *context, struct ibv_cq_init_attr_ex *attr)
{
    const uint64_t known = IBV_WC_EX_WITH_BYTE_LEN | IBV_WC_EX_WITH_IMM | IBV_WC_EX_WITH_QP_NUM |
                           IBV_WC_EX_WITH_SRC_QP | IBV_WC_EX_WITH_SLID | IBV_WC_EX_WITH_SL |
                           IBV_WC_EX_WITH_DLID_PATH_BITS | IBV_WC_EX_WITH_COMPLETION_TIMESTAMP |
                           IBV_WC_EX_WITH_COMPLETION_TIMESTAMP_WALLCLOCK;

    uint32_t flags = attr->comp_mask & IBV_CQ_INIT_ATTR_MASK_FLAGS ? attr->flags : 0;

    if (attr->wc_flags & ~known) {
        errno = EOPNOTSUPP;
        return NULL;
    }
    if ((attr->comp_mask & ~(uint32_t)(IBV_CQ_INIT_ATTR_MASK_FLAGS | IBV_CQ_INIT_ATTR_MASK_PD)) ||
        (flags & ~(uint32_t)(IBV_CREATE_CQ_ATTR_SINGLE_THREADED | IBV_CREATE_CQ_ATTR_IGNORE_OVERRUN))) {
        errno = EINVAL;
        return NULL;
    }
    struct shim_cq *cq = create(context, attr->cqe, attr->cq_context, attr->channel, attr->comp_vector, flags);

    if (!cq)
        return NULL;
    cq_ex_init(cq, (uint32_t)attr->wc_flags);
    return &cq->cq;
}

EXPORT int ibv_destroy_cq(struct ibv_cq *public)
{
    struct shim_cq *cq = to_cq(public);
    int error = session_call_handle(SLUICE_OP_DESTROY_CQ, cq->handle, NULL);

    if (error)
        return error;
    pthread_mutex_lock(&objects_lock);
    for (struct shim_cq **link = &cqs; *link; link = &(*link)->next)
        if (*link == cq) {
            *link = cq->next;
            break;
        }
    if (public->channel) {
        ((struct shim_channel *)public->channel)->users--;
        public->channel->refcnt--;
    }
    pthread_mutex_unlock(&objects_lock);
    /* Nobody can be given an event of it any more; those who were must have acknowledged. */
    events_wait(&cq->comp_events_given, &public->comp_events_completed);
    events_wait(&cq->async_events_given, &public->async_events_completed);
    free(cq);
    return 0;
}

/*
 * Where overruns are ignored, the engine may be a turn or more ahead: then what
 * was overwritten is lost, and polling goes on with what is there.
 */
static bool skip_overwritten(struct shim_cq *cq, uint32_t turn)
{
    uint32_t ahead = turn - (cq->consumer / cq->entries + 1);

    if (!cq->ignore_overrun || turn == 0 || ahead > UINT32_MAX / 2)
        return false;
    cq->consumer += ahead * cq->entries;
    return true;
}

struct sluice_cqe *cq_next(struct shim_cq *cq)
{
    for (;;) {
        struct sluice_cqe *cqe = &cq->ring[cq->consumer & (cq->entries - 1)];

        /* Pairs with the engine's release: the rest of the CQE, and the data it speaks of, are there. */
        uint32_t turn = load_acquire(&cqe->turn);

        if (turn != cq->consumer / cq->entries + 1 && !skip_overwritten(cq, turn))
            return NULL;
        cq->consumer++;
        /* Dropped: see cq_forget_qp. */
        if (cqe->qp_num == 0)
            continue;
        /* Its slot is free already, and with XRC its QP may be another process's. */
        if (cqe->queue == SLUICE_CQE_SRQ)
            return cqe;
        struct shim_qp *qp = cqe->qp < SLUICE_SESSION_QPS ? load_relaxed(&qps[cqe->qp]) : NULL;

        if (!qp || qp->base.qp.qp_num != cqe->qp_num)
            continue;
        store_relaxed(cqe->queue == SLUICE_CQE_RECEIVE ? &qp->rq.tail : &qp->sq.tail, cqe->tail);
        return cqe;
    }
}

/* Does it to each CQE of a QP that is there and not polled yet. */
static void with_cqes(struct shim_cq *cq, uint32_t qp_num, void (*change)(struct sluice_cqe *cqe))
{
    cq_lock(cq);
    for (uint32_t i = cq->consumer;; i++) {
        struct sluice_cqe *cqe = &cq->ring[i & (cq->entries - 1)];

        if (i - cq->consumer == cq->entries || load_acquire(&cqe->turn) != i / cq->entries + 1)
            break;
        if (cqe->qp_num == qp_num)
            change(cqe);
    }
    cq_unlock(cq);
}

static void drop(struct sluice_cqe *cqe)
{
    cqe->qp_num = 0;
}

void cq_forget_qp(struct shim_cq *cq, uint32_t qp_num)
{
    with_cqes(cq, qp_num, drop);
}

/* As that of an SRQ: there is no slot of a queue to free. */
static void orphan(struct sluice_cqe *cqe)
{
    cqe->queue = SLUICE_CQE_SRQ;
}

void cq_orphan_qp(struct shim_cq *cq, uint32_t qp_num)
{
    with_cqes(cq, qp_num, orphan);
}

bool cq_is_lost(struct shim_cq *cq)
{
    /* Asking is a system call: once in so many polls, which is under a millisecond for who spins. */
    enum { POLLS = 1 << 14 };

    return ++cq->empty % POLLS == 0 && session_lost();
}

void cq_give_way(const struct shim_cq *cq)
{
    /* A system call, which takes as long as some of them. */
    enum { POLLS = 64 };

    if (load_relaxed(&cq->empty) % POLLS == 0 && session_gives_way())
        sched_yield();
}

int shim_poll_cq(struct ibv_cq *public, int num_entries, struct ibv_wc *wc)
{
    struct shim_cq *cq = to_cq(public);
    int count = 0;

    cq_lock(cq);
    uint32_t before = cq->consumer;

    while (count < num_entries) {
        const struct sluice_cqe *cqe = cq_next(cq);

        if (!cqe)
            break;
        wc[count++] = (struct ibv_wc){
            .wr_id = cqe->wr_id,
            .status = cqe->status,
            .opcode = cqe->opcode,
            .vendor_err = cqe->vendor_err,
            .byte_len = cqe->byte_len,
            .imm_data = cqe->imm_data,
            .qp_num = cqe->qp_num,
            .src_qp = cqe->src_qp,
            .wc_flags = cqe->wc_flags,
            .sl = cqe_sl(cqe),
        };
    }
    if (cq->consumer != before)
        store_release(&cq->shared->consumer, cq->consumer);
    else if (__builtin_expect(cq_is_lost(cq), 0))
        count = -1;
    cq_unlock(cq);
    if (count == 0)
        cq_give_way(cq);
    return count;
}

int shim_req_notify_cq(struct ibv_cq *public, int solicited_only)
{
    struct shim_cq *cq = to_cq(public);

    /* Stands until the event: an older arming may still owe one. */
    if (load_relaxed(&cq->shared->arm) == SLUICE_CQ_UNARMED)
        store_relaxed(&cq->shared->armed_at, load_relaxed(&cq->consumer));
    /* Next completion is the stronger wish: it isn't weakened by a later one for solicited ones (IBTA 11.4.2.2). */
    if (solicited_only) {
        uint32_t unarmed = SLUICE_CQ_UNARMED;

        __atomic_compare_exchange_n(&cq->shared->arm, &unarmed, (uint32_t)SLUICE_CQ_ARM_SOLICITED, false,
                                    __ATOMIC_SEQ_CST, __ATOMIC_RELAXED);
    } else {
        exchange(&cq->shared->arm, (uint32_t)SLUICE_CQ_ARM_NEXT);
    }
    /* Pairs with cq_notify_all: the caller's next poll sees the CQE, or the engine sees that we armed. */
    full_fence();
    return 0;
}

EXPORT int ibv_resize_cq(struct ibv_cq *public, int cqe)
{
    struct shim_cq *cq = to_cq(public);
    struct sluice_resize_cq_request request = {.handle = cq->handle, .cqe = (uint32_t)cqe};
    struct sluice_resize_cq_reply reply;

    if (cqe < 1 || cqe > SLUICE_MAX_CQE)
        return EINVAL;
    /* Who polls meanwhile waits; what the engine completes after the exchange is in the new ring. */
    cq_lock(cq);
    store_release(&cq->shared->consumer, cq->consumer);
    int error = session_call(SLUICE_OP_RESIZE_CQ, &request, sizeof(request), &reply, sizeof(reply));

    if (!error) {
        cq->ring = (struct sluice_cqe *)(session.segment + reply.ring);
        cq->entries = reply.cqe;
        public->cqe = (int)reply.cqe;
    }
    cq_unlock(cq);
    return error;
}
