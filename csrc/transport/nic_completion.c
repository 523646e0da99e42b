/* SPDX-License-Identifier: Apache-2.0 */
/* Completions of the NIC become those of tenants. */
#include <errno.h>

#include "../atomic.h"
#include "../cq.h"
#include "../mw.h"
#include "../nic_pool.h"
#include "../nic_srq.h"
#include "../session.h"
#include "../tenant.h"
#include "../turn.h"
#include "nic.h"

enum { POLL = 32, ROUNDS = 8 };

/* A pause of an application that moves much is shorter. */
#define CARRIES_NS 20000000ull

static void wake(struct tenant *tenant)
{
    struct list woken;

    list_remove(&tenant->in_blocked);
    list_init(&woken);
    list_splice(&woken, &tenant->grounded);
    while (!list_empty(&woken)) {
        struct nic_qp *twin = list_entry(list_take(&woken), struct nic_qp, blocked);
        struct qp *qp = twin->owner;

        if (qp->wait != QP_WAIT_TRANSPORT)
            continue;
        entity_was_held(&qp->tenant->account.entity, turn_flow(qp), twin->blocked_since);
        qp_activate(qp);
    }
}

void nic_wake_blocked(struct nic *nic)
{
    if (nic->flying <= NIC_FLIGHT / 2)
        while (!list_empty(&nic->blocked))
            wake(list_entry(nic->blocked.next, struct tenant, in_blocked));
}

void nic_wake_grounded(struct tenant *tenant)
{
    if (!list_empty(&tenant->grounded) && tenant->flying <= NIC_SHARE / 2)
        wake(tenant);
}

static void complete_send(struct qp *qp, const struct ibv_wc *wc)
{
    struct nic_qp *twin = qp->twin;
    struct nic_request request;

    if (twin->completed == twin->posted)
        return;
    request = twin->ring[twin->completed++ & twin->ring_mask];
    nic_of(qp)->outstanding -= twin->completed == twin->posted;
    nic_of(qp)->flying -= request.bytes;
    qp->tenant->flying -= request.bytes;
    nic_wake_grounded(qp->tenant);
    /* A message ends with its last request, or with the first that failed. */
    if (request.index == qp->completed && (request.last || wc->status != IBV_WC_SUCCESS))
        qp_complete_oldest(qp, wc->status, request.brought);
    if (wc->status == IBV_WC_SUCCESS && qp->wait == QP_WAIT_TRANSPORT && list_unlinked(&twin->blocked))
        qp_activate(qp);
}

/* All but whose it is, and where it leads. */
static struct sluice_cqe describe_receive(const struct qp *qp, const struct ibv_wc *wc)
{
    bool good = wc->status == IBV_WC_SUCCESS;

    return (struct sluice_cqe){
        .status = wc->status,
        .opcode = good ? wc->opcode : IBV_WC_RECV,
        .vendor_err = wc->vendor_err,
        .byte_len = good ? wc->byte_len : 0,
        .imm_data = good ? wc->imm_data : 0,
        .wc_flags = good ? wc->wc_flags : 0,
        .qp_num = qp->qp_num,
        .src_qp = qp->attr.dest_qp_num,
        .qp = qp->handle,
    };
}

static void push_receive(struct qp *qp, const struct sluice_cqe *cqe)
{
    if (cqe->status == IBV_WC_SUCCESS) {
        qp->counters->rx_messages++;
        qp->counters->rx_bytes += cqe->byte_len;
        qp->tenant->counters->rx_messages++;
        qp->tenant->counters->rx_bytes += cqe->byte_len;
        if (cqe->wc_flags & IBV_WC_WITH_INV)
            mw_invalidate(qp, cqe->imm_data);
        if (qp->state == IBV_QPS_RTR)
            qp_establish(qp);
    } else if (cqe->status != IBV_WC_WR_FLUSH_ERR) {
        qp->counters->errors++;
    }
    /* The NIC doesn't say whether the message was solicited: who waits is woken by each. */
    cq_push(qp->recv_cq, cqe, true);
}

static void complete_receive(struct qp *qp, const struct ibv_wc *wc)
{
    struct nic_qp *twin = qp->twin;
    struct sluice_cqe cqe = describe_receive(qp, wc);

    if (twin->received == qp->rq.head)
        return;
    /* The slot is the shim's again only when this completion was polled. */
    cqe.wr_id = ((const struct sluice_recv_wqe *)queue_slot_at(&qp->rq, twin->received++))->wr_id;
    cqe.tail = twin->received;
    cqe.queue = SLUICE_CQE_RECEIVE;
    push_receive(qp, &cqe);
}

/* A QP that failed goes to ERR, one that has all back leaves the NIC. */
static void follow(struct qp *qp, const struct ibv_wc *wc)
{
    if (qp->session->broken || !qp->twin->connected)
        return;
    if (wc->status != IBV_WC_SUCCESS && qp->state != IBV_QPS_ERR)
        qp_error(qp);
    else if (qp->twin->draining && nic_drained(qp) && qp->twin->recv_cq)
        qp_drained(qp);
    else if (qp->twin->draining && nic_drained(qp) && list_unlinked(&qp->twin->ending))
        list_append(&nic_of(qp)->ending, &qp->twin->ending);
}

/* Whose it is; NULL: nobody's any more. */
static struct qp *qp_of(const struct nic *nic, const struct ibv_wc *wc)
{
    struct qp *qp = nic->device->engine->nic_qps[wc->qp_num & (NIC_NUMBERS - 1)];

    return qp && nic_of(qp) == nic ? qp : NULL;
}

static void handle(struct nic *nic, const struct ibv_wc *wc)
{
    struct qp *qp = qp_of(nic, wc);
    struct nic_qp *twin = qp ? qp->twin : NULL;

    if (!twin || !twin->connected || wc->wr_id >> NIC_TAG_SHIFT != twin->tag || qp->session->broken)
        return;
    if (wc->wr_id & NIC_RECEIVE)
        complete_receive(qp, wc);
    else
        complete_send(qp, wc);
    follow(qp, wc);
}

/* A receive of an SRQ: the SRQ knows whose it was. */
static void handle_shared(struct nic *nic, struct nic_srq *of, const struct ibv_wc *wc)
{
    struct qp *qp = qp_of(nic, wc);
    struct srq *srq = of->owner;
    uint64_t wr_id;

    if (!nic_srq_completed(of, wc, &wr_id))
        return;
    if (qp && qp->twin && qp->twin->connected && qp->srq == srq && !qp->session->broken) {
        struct sluice_cqe cqe = describe_receive(qp, wc);

        cqe.wr_id = wr_id;
        cqe.tail = srq->handle;
        cqe.queue = SLUICE_CQE_SRQ;
        push_receive(qp, &cqe);
        follow(qp, wc);
    }
    if (srq->session->broken)
        return;
    srq_check_limit(srq);
    nic_srq_fill(srq);
}

static void handle_datagram(struct nic *nic, struct nic_pool *pool, const struct ibv_wc *wc)
{
    struct qp *qp = qp_of(nic, wc);

    if (wc->wr_id >= POOL_DATAGRAMS)
        return;
    if (wc->status == IBV_WC_SUCCESS && qp && qp->twin && qp->twin->connected && qp->twin->pool == pool)
        nic_datagram_arrived(qp, wc, nic_pool_at(pool, wc->wr_id));
    nic_pool_post(pool, wc->wr_id);
}

static uint32_t poll_sends(struct nic *nic)
{
    uint32_t found = 0;

    for (struct list *link = nic->cqs.next; link != &nic->cqs; link = link->next) {
        struct nic_cq *cq = list_entry(link, struct nic_cq, link);

        found += cq->sends ? nic_poll_cq(nic, cq) : 0;
    }
    return found;
}

uint32_t nic_poll_cq(struct nic *nic, struct nic_cq *cq)
{
    struct ibv_wc wcs[POLL];
    uint32_t rounds = 0, found = 0;
    int count;

    nic->polling++;
    do {
        count = ibv_poll_cq(cq->cq, POLL, wcs);
        /* What is received may answer what was sent: the tenant, who may have one CQ for both, sees that this was done first. */
        if (count > 0 && !cq->sends)
            found += poll_sends(nic);
        for (int i = 0; i < count; i++)
            if (cq->pool)
                handle_datagram(nic, cq->pool, &wcs[i]);
            else if (cq->srq)
                handle_shared(nic, cq->srq, &wcs[i]);
            else
                handle(nic, &wcs[i]);
        found += count > 0 ? (uint32_t)count : 0;
        cq->told |= count > 0 && cq->armed;
    } while (count == POLL && ++rounds < ROUNDS);
    if (--nic->polling == 0)
        while (!list_empty(&nic->ending))
            qp_drained(list_entry(list_take(&nic->ending), struct nic_qp, ending)->owner);
    return found;
}

/* Takes so many events, if there are, which the channel would tell of again and again. */
static void take_events(struct nic *nic, uint32_t count)
{
    struct ibv_cq *cq;
    void *context;

    for (; count && nic->call.ibv_get_cq_event(nic->channel, &cq, &context) == 0; count--) {
        nic->call.ibv_ack_cq_events(cq, 1);
        ((struct nic_cq *)context)->armed = false;
    }
}

/* Completions of sends, and of receives where they are wanted. */
static uint32_t serve(struct nic *nic, bool receives)
{
    uint32_t found = 0, events = 0;

    for (struct list *link = nic->cqs.next; link != &nic->cqs; link = link->next) {
        struct nic_cq *cq = list_entry(link, struct nic_cq, link);

        if (receives || cq->sends)
            found += nic_poll_cq(nic, cq);
    }
    for (struct list *link = nic->cqs.next; link != &nic->cqs; link = link->next) {
        struct nic_cq *cq = list_entry(link, struct nic_cq, link);

        events += cq->told;
        cq->told = false;
    }
    /* One that is written later than its completion was found wakes who sleeps then. */
    if (events == 0 && nic->woken)
        events = 1;
    take_events(nic, events);
    nic->woken = false;
    if (found) {
        nic->heard = nic->device->engine->now;
        nic_wake_blocked(nic);
    }
    return found;
}

static uint32_t serve_all(struct nic *nic)
{
    if (load_relaxed(&nic->registrar.rung))
        registrar_collect(nic);
    return serve(nic, true);
}

uint32_t nic_serve(struct sluice_engine *engine)
{
    uint32_t found = 0;

    for (struct list *link = engine->nics.next; link != &engine->nics; link = link->next)
        found += serve_all(list_entry(link, struct nic, link));
    return found;
}

bool nic_carries(const struct sluice_engine *engine)
{
    for (const struct list *link = engine->nics.next; link != &engine->nics; link = link->next) {
        const struct nic *nic = list_entry(link, struct nic, link);

        if (nic->software && (nic->outstanding || engine->now - nic->heard < CARRIES_NS))
            return true;
    }
    return false;
}

uint32_t nic_serve_sends(struct sluice_engine *engine)
{
    uint32_t found = 0;

    for (struct list *link = engine->nics.next; link != &engine->nics; link = link->next) {
        struct nic *nic = list_entry(link, struct nic, link);

        found += nic->outstanding ? serve(nic, false) : 0;
    }
    return found;
}

void nic_woken(struct sluice_engine *engine)
{
    for (struct list *link = engine->nics.next; link != &engine->nics; link = link->next)
        list_entry(link, struct nic, link)->woken = true;
}

bool nic_rung(const struct sluice_engine *engine)
{
    for (const struct list *link = engine->nics.next; link != &engine->nics; link = link->next)
        if (load_relaxed(&list_entry(link, struct nic, link)->registrar.rung))
            return true;
    return false;
}

bool nic_lingers(const struct sluice_engine *engine)
{
    for (const struct list *link = engine->nics.next; engine->linger && link != &engine->nics; link = link->next) {
        const struct nic *nic = list_entry(link, struct nic, link);

        if (nic->connected && engine->now - nic->heard < engine->linger)
            return true;
    }
    return false;
}
