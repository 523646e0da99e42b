/* SPDX-License-Identifier: Apache-2.0 */
#include "qp.h"

#include <errno.h>
#include <infiniband/verbs.h>
#include <stdlib.h>
#include <string.h>

#include "atomic.h"
#include "mw.h"
#include "transport/transport.h"
#include "worker.h"

static void on_timer(struct timer *timer);

static uint32_t power_of_two(uint32_t count)
{
    uint32_t power = 1;

    if (count == 0)
        return 0;
    while (power < count)
        power *= 2;
    return power;
}

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

static bool take_numbers(struct session *session, struct qp *qp)
{
    struct sluice_engine *engine = session->engine;

    if (engine->qp_free_count == 0)
        return false;
    for (uint32_t i = 0; i < SLUICE_SESSION_QPS; i++) {
        uint32_t handle = (session->qp_hint + i) % SLUICE_SESSION_QPS;

        if (session->qps[handle])
            continue;
        session->qp_hint = handle + 1;
        qp->handle = handle;
        qp->slot = engine->qp_free[engine->qp_free_head];
        engine->qp_free_head = (engine->qp_free_head + 1) % SLUICE_MAX_QPS;
        engine->qp_free_count--;
        /* 24 bits: a generation of 1..63 above the slot, so that 0 and 1 stay the special QPs. */
        uint8_t generation = (uint8_t)(engine->qp_generations[qp->slot] % 63 + 1);

        engine->qp_generations[qp->slot] = generation;
        qp->qp_num = (uint32_t)generation << 18 | qp->slot;
        session->qps[handle] = qp;
        engine->qps[qp->slot] = qp;
        return true;
    }
    return false;
}

static void give_numbers(struct qp *qp)
{
    struct sluice_engine *engine = qp->session->engine;

    qp->session->qps[qp->handle] = NULL;
    engine->qps[qp->slot] = NULL;
    engine->qp_free[(engine->qp_free_head + engine->qp_free_count++) % SLUICE_MAX_QPS] = qp->slot;
}

static int check_request(struct session *session, const struct sluice_create_qp_request *request)
{
    const struct sluice_qp_cap *cap = &request->cap;

    if (request->qp_type != IBV_QPT_RC)
        return -EOPNOTSUPP;
    if (cap->max_send_wr > SLUICE_MAX_WR || cap->max_recv_wr > SLUICE_MAX_WR ||
        cap->max_send_sge > SLUICE_MAX_SGE || cap->max_recv_sge > SLUICE_MAX_SGE ||
        cap->max_inline_data > SLUICE_MAX_INLINE)
        return -EINVAL;
    if (!cq_find(session, request->send_cq) || !cq_find(session, request->recv_cq))
        return -EINVAL;
    return 0;
}

static void lay_out(struct qp *qp, const struct sluice_qp_cap *asked)
{
    struct sluice_qp_cap *cap = &qp->attr.cap;

    *cap = *asked;
    qp->sq.entries = power_of_two(asked->max_send_wr);
    qp->rq.entries = power_of_two(asked->max_recv_wr);
    qp->sq.stride = send_stride(asked);
    qp->rq.stride = (uint32_t)(sizeof(struct sluice_recv_wqe) + asked->max_recv_sge * sizeof(struct sluice_sge));
    cap->max_send_wr = qp->sq.entries;
    cap->max_recv_wr = qp->rq.entries;
    cap->max_inline_data = qp->sq.stride - (uint32_t)sizeof(struct sluice_wqe);
    qp->size = sizeof(struct sluice_qp_shared) + (uint64_t)qp->sq.entries * qp->sq.stride +
               (uint64_t)qp->rq.entries * qp->rq.stride;
}

int qp_create(struct session *session, const struct sluice_create_qp_request *request,
              struct sluice_create_qp_reply *reply)
{
    struct sluice_engine *engine = session->engine;
    struct pd *pd = NULL;
    int error = check_request(session, request);

    if (error)
        return error;
    for (struct list *link = session->pds.next; link != &session->pds; link = link->next)
        if (list_entry(link, struct pd, link)->handle == request->pd)
            pd = list_entry(link, struct pd, link);
    if (!pd)
        return -EINVAL;

    struct qp *qp = aligned_alloc(64, (sizeof(*qp) + 63) & ~63ul);

    if (!qp)
        return -ENOMEM;
    memset(qp, 0, sizeof(*qp));
    qp->session = session;
    qp->tenant = session->tenant;
    qp->pd = pd;
    qp->send_cq = cq_find(session, request->send_cq);
    qp->recv_cq = cq_find(session, request->recv_cq);
    qp->sq_sig_all = request->sq_sig_all != 0;
    qp->peer_tenant = -1;
    qp->timer.fire = on_timer;
    list_init(&qp->link);
    list_init(&qp->windows);
    lay_out(qp, &request->cap);
    int64_t offset = segment_take(&session->segment, qp->size);

    if (offset < 0) {
        free(qp);
        return (int)offset;
    }
    qp->offset = (uint64_t)offset;
    error = timers_reserve(&engine->timers);
    if (!error && !take_numbers(session, qp)) {
        timers_release(&engine->timers);
        error = -ENOMEM;
    }
    if (error) {
        segment_give(&session->segment, qp->offset, qp->size);
        free(qp);
        return error;
    }

    qp->shared = (struct sluice_qp_shared *)(session->segment.base + qp->offset);
    qp->sq.shared = &qp->shared->sq;
    qp->rq.shared = &qp->shared->rq;
    qp->sq.ring = (uint8_t *)(qp->shared + 1);
    qp->rq.ring = qp->sq.ring + (uint64_t)qp->sq.entries * qp->sq.stride;
    store_relaxed(&qp->sq.shared->armed, 1);

    qp->counters = (struct sluice_qp_counters *)(engine->counters + engine->header->qps_offset +
                                                  qp->slot * sizeof(*qp->counters));
    memset(qp->counters, 0, sizeof(*qp->counters));
    qp->counters->qp_num = qp->qp_num;
    qp->counters->tenant = qp->tenant->number;
    qp->counters->session = session->number;
    if (engine->header->qps <= qp->slot)
        engine->header->qps = qp->slot + 1;

    pd->users++;
    qp->send_cq->users++;
    qp->recv_cq->users++;
    qp->tenant->counters->qps++;

    reply->handle = qp->handle;
    reply->qp_num = qp->qp_num;
    reply->cap = qp->attr.cap;
    reply->sq_entries = qp->sq.entries;
    reply->rq_entries = qp->rq.entries;
    reply->sq_stride = qp->sq.stride;
    reply->rq_stride = qp->rq.stride;
    reply->offset = qp->offset;
    reply->sq_offset = qp->offset + sizeof(struct sluice_qp_shared);
    reply->rq_offset = reply->sq_offset + (uint64_t)qp->sq.entries * qp->sq.stride;
    return 0;
}

static void disconnect(struct qp *qp)
{
    if (qp->transport)
        qp->transport->disconnect(qp);
    qp->transport = NULL;
}

void qp_free(struct qp *qp)
{
    qp_deactivate(qp);
    disconnect(qp);
    mws_of_qp(qp);
    timers_release(&qp->session->engine->timers);
    give_numbers(qp);
    qp->pd->users--;
    qp->send_cq->users--;
    qp->recv_cq->users--;
    qp->tenant->counters->qps--;
    qp->counters->qp_num = 0;
    segment_give(&qp->session->segment, qp->offset, qp->size);
    free(qp);
}

struct qp *qp_lookup(struct sluice_engine *engine, uint32_t qp_num)
{
    struct qp *qp = engine->qps[qp_num & (SLUICE_MAX_QPS - 1)];

    return qp && qp->qp_num == qp_num ? qp : NULL;
}

/* ---- scheduling -------------------------------------------------------- */

void qp_activate(struct qp *qp)
{
    struct tenant *tenant = qp->tenant;

    timer_cancel(&qp->session->engine->timers, &qp->timer);
    qp->wait = QP_WAIT_NOTHING;
    qp->idle_since = 0;
    list_remove(&qp->link);
    list_append(&tenant->active, &qp->link);
    if (list_unlinked(&tenant->turn))
        list_append(&tenant->engine->turns, &tenant->turn);
}

void qp_deactivate(struct qp *qp)
{
    timer_cancel(&qp->session->engine->timers, &qp->timer);
    qp->wait = QP_WAIT_NOTHING;
    list_remove(&qp->link);
}

/* ---- completions ------------------------------------------------------- */

static uint32_t completion_opcode(uint8_t wr_opcode)
{
    static const uint32_t opcodes[] = {
        [IBV_WR_RDMA_WRITE] = IBV_WC_RDMA_WRITE,
        [IBV_WR_RDMA_WRITE_WITH_IMM] = IBV_WC_RDMA_WRITE,
        [IBV_WR_SEND] = IBV_WC_SEND,
        [IBV_WR_SEND_WITH_IMM] = IBV_WC_SEND,
        [IBV_WR_RDMA_READ] = IBV_WC_RDMA_READ,
        [IBV_WR_ATOMIC_CMP_AND_SWP] = IBV_WC_COMP_SWAP,
        [IBV_WR_ATOMIC_FETCH_AND_ADD] = IBV_WC_FETCH_ADD,
        [IBV_WR_LOCAL_INV] = IBV_WC_LOCAL_INV,
        [IBV_WR_BIND_MW] = IBV_WC_BIND_MW,
        [IBV_WR_SEND_WITH_INV] = IBV_WC_SEND,
    };

    return wr_opcode < sizeof(opcodes) / sizeof(*opcodes) ? opcodes[wr_opcode] : IBV_WC_SEND;
}

/* The WQE at the head is done with. */
static void complete_send(struct qp *qp, uint32_t status)
{
    const struct sluice_wqe *wqe = qp->message.wqe;

    qp->message.active = false;
    qp->sq.head++;
    if (status == IBV_WC_SUCCESS && !(wqe->flags & SLUICE_WQE_SIGNALED) && !qp->sq_sig_all)
        return;
    if (status != IBV_WC_SUCCESS && status != IBV_WC_WR_FLUSH_ERR)
        qp->counters->errors++;
    struct sluice_cqe cqe = {
        .wr_id = wqe->wr_id,
        .status = status,
        .opcode = completion_opcode(wqe->opcode),
        .byte_len = qp->message.total,
        .qp_num = qp->qp_num,
        .qp = qp->handle,
        .tail = qp->sq.head,
    };
    cq_push(qp->send_cq, &cqe, false);
}

void qp_complete_receive(struct qp *qp, uint32_t status, uint32_t opcode, uint32_t byte_len,
                         uint32_t wc_flags, uint32_t imm_data, bool solicited)
{
    struct sluice_cqe cqe = {
        .wr_id = qp->receive.wr_id,
        .status = status,
        .opcode = opcode,
        .byte_len = byte_len,
        .imm_data = imm_data,
        .wc_flags = wc_flags,
        .qp_num = qp->qp_num,
        .src_qp = qp->attr.dest_qp_num,
        .qp = qp->handle,
        .tail = qp->rq.head,
        .is_recv = 1,
    };

    qp->receive.active = false;
    if (status != IBV_WC_SUCCESS && status != IBV_WC_WR_FLUSH_ERR)
        qp->counters->errors++;
    cq_push(qp->recv_cq, &cqe, solicited);
}

/* ---- taking WQEs from shared memory ------------------------------------ */

/*
 * WRs that wait in the queue. The shim's index is checked here, once: it can't be
 * ahead by more than the ring holds.
 */
static uint32_t queue_waiting(struct qp *qp, struct queue *queue)
{
    /* Pairs with the shim's release: WQEs up to producer are whole. */
    uint32_t producer = load_acquire(&queue->shared->producer);

    if (producer - queue->head > queue->entries) {
        session_break(qp->session, "a queue's producer index is ahead by more than the queue holds");
        return 0;
    }
    queue->seen = producer;
    return producer - queue->head;
}

/*
 * The queue was found empty: ask for the doorbell. False where something came in
 * meanwhile, which the caller must handle itself.
 */
static bool queue_arm(struct qp *qp, struct queue *queue)
{
    store_relaxed(&queue->shared->armed, 1);
    /* Pairs with the shim's fence between producer and armed. */
    full_fence();
    if (queue_waiting(qp, queue) == 0)
        return true;
    store_relaxed(&queue->shared->armed, 0);
    return false;
}

static const uint8_t *queue_slot(const struct queue *queue)
{
    return queue->ring + (uint64_t)(queue->head & (queue->entries - 1)) * queue->stride;
}

/* Copies the WQE at the head and checks the copy. False: garbage, the session is broken now. */
static bool take_message(struct qp *qp)
{
    struct message *message = &qp->message;
    const uint8_t *slot = queue_slot(&qp->sq);
    const struct sluice_wqe *wqe = (const struct sluice_wqe *)message->bytes;
    uint32_t size = sizeof(*wqe);

    memcpy(message->bytes, slot, SLUICE_BLOCK);
    message->wqe = (struct sluice_wqe *)message->bytes;
    message->sges = (struct sluice_sge *)(message->bytes + size);
    message->inline_data = message->bytes + size;
    message->atomic = (struct sluice_atomic *)(message->bytes + size);
    message->bind = (struct sluice_bind *)(message->bytes + size);

    if (wqe->opcode == IBV_WR_ATOMIC_CMP_AND_SWP || wqe->opcode == IBV_WR_ATOMIC_FETCH_AND_ADD) {
        size += (uint32_t)sizeof(struct sluice_atomic);
        message->sges = (struct sluice_sge *)(message->bytes + size);
    } else if (wqe->opcode == IBV_WR_BIND_MW) {
        size += (uint32_t)sizeof(struct sluice_bind);
    }
    if (wqe->flags & SLUICE_WQE_INLINE)
        size += wqe->inline_length;
    else
        size += wqe->num_sge * (uint32_t)sizeof(struct sluice_sge);
    if (wqe->opcode > IBV_WR_SEND_WITH_INV || size > qp->sq.stride ||
        wqe->num_sge > SLUICE_MAX_SGE ||
        ((wqe->flags & SLUICE_WQE_INLINE) && wqe->opcode > IBV_WR_SEND_WITH_IMM &&
         wqe->opcode != IBV_WR_SEND_WITH_INV)) {
        session_break(qp->session, "a send queue holds a WQE that no shim writes");
        return false;
    }
    if (size > SLUICE_BLOCK)
        memcpy(message->bytes + SLUICE_BLOCK, slot + SLUICE_BLOCK, size - SLUICE_BLOCK);
    message->active = true;
    message->moved = 0;
    message->total = 0;
    return true;
}

bool qp_take_receive(struct qp *qp)
{
    struct queue *queue = &qp->rq;

    if (queue->entries == 0)
        return false;
    if (queue->head == queue->seen && queue_waiting(qp, queue) == 0 &&
        (qp->session->broken || queue_arm(qp, queue)))
        return false;
    if (qp->session->broken)
        return false;

    const struct sluice_recv_wqe *slot = (const struct sluice_recv_wqe *)queue_slot(queue);
    uint32_t num_sge = load_relaxed(&slot->num_sge);

    if (num_sge > qp->attr.cap.max_recv_sge) {
        session_break(qp->session, "a receive queue holds a WQE that no shim writes");
        return false;
    }
    qp->receive.wr_id = slot->wr_id;
    qp->receive.num_sge = num_sge;
    memcpy(qp->receive.sges, slot + 1, num_sge * sizeof(struct sluice_sge));
    qp->receive.active = true;
    queue->head++;
    return true;
}

/* ---- errors ------------------------------------------------------------ */

static void publish_state(struct qp *qp, uint32_t state)
{
    qp->state = state;
    qp->attr.qp_state = state;
    qp->counters->state = state;
    store_release(&qp->shared->state, state);
}

static void flush_sends(struct qp *qp)
{
    struct queue *queue = &qp->sq;

    if (qp->message.active)
        complete_send(qp, IBV_WC_WR_FLUSH_ERR);
    if (queue->entries == 0)
        return;
    do {
        while (queue_waiting(qp, queue) && !qp->session->broken) {
            const struct sluice_wqe *slot = (const struct sluice_wqe *)queue_slot(queue);

            qp->message.wqe = (struct sluice_wqe *)qp->message.bytes;
            memcpy(qp->message.bytes, slot, sizeof(*slot));
            qp->message.total = 0;
            complete_send(qp, IBV_WC_WR_FLUSH_ERR);
        }
    } while (!qp->session->broken && !queue_arm(qp, queue));
}

static void flush_receives(struct qp *qp)
{
    struct queue *queue = &qp->rq;

    if (qp->receive.active)
        qp_complete_receive(qp, IBV_WC_WR_FLUSH_ERR, IBV_WC_RECV, 0, 0, 0, false);
    if (queue->entries == 0)
        return;
    do {
        while (queue_waiting(qp, queue) && !qp->session->broken) {
            const struct sluice_recv_wqe *slot = (const struct sluice_recv_wqe *)queue_slot(queue);

            qp->receive.wr_id = slot->wr_id;
            queue->head++;
            qp_complete_receive(qp, IBV_WC_WR_FLUSH_ERR, IBV_WC_RECV, 0, 0, 0, false);
        }
    } while (!qp->session->broken && !queue_arm(qp, queue));
}

void qp_error(struct qp *qp)
{
    if (qp->state == IBV_QPS_ERR)
        return;
    qp_deactivate(qp);
    disconnect(qp);
    publish_state(qp, IBV_QPS_ERR);
    if (qp->session->broken)
        return;
    flush_sends(qp);
    flush_receives(qp);
}

void qp_fatal(struct qp *qp, uint32_t event_type)
{
    if (qp->state == IBV_QPS_ERR)
        return;
    qp_error(qp);
    session_async_event(qp->session, event_type, qp->qp_num);
}

void qps_of_dead_cq(struct cq *cq)
{
    for (uint32_t handle = 0; handle < SLUICE_SESSION_QPS; handle++) {
        struct qp *qp = cq->session->qps[handle];

        if (qp && (qp->send_cq == cq || qp->recv_cq == cq))
            qp_fatal(qp, IBV_EVENT_QP_FATAL);
    }
}

/* ---- the requester ----------------------------------------------------- */

/* IBTA table 45: the RNR NAK timer field, in units of 10 us. */
static uint64_t rnr_ns(uint32_t field)
{
    static const uint32_t units[32] = {65536, 1,   2,   3,   4,   6,    8,    12,   16,   24,   32,
                                       48,    64,  96,  128, 192, 256,  384,  512,  768,  1024, 1536,
                                       2048,  3072, 4096, 6144, 8192, 12288, 16384, 24576, 32768, 49152};

    return units[field & 31] * 10000ull;
}

static void fail(struct qp *qp, uint32_t status)
{
    complete_send(qp, status);
    qp_error(qp);
}

static void wait_for_peer(struct qp *qp)
{
    struct sluice_engine *engine = qp->session->engine;

    list_remove(&qp->link);
    qp->wait = QP_WAIT_PEER;
    /* IBTA 9.7.6.1.3: 4.096 us * 2^timeout a try; 0 waits for ever. */
    if (qp->attr.timeout)
        timer_set(&engine->timers, &qp->timer,
                  engine->now + (qp->attr.retry_cnt + 1ull) * (4096ull << qp->attr.timeout));
}

static void wait_for_receive(struct qp *qp)
{
    struct sluice_engine *engine = qp->session->engine;

    qp->tenant->counters->rnr_naks++;
    if (qp->attr.rnr_retry != 7) {
        if (qp->rnr_left == 0) {
            fail(qp, IBV_WC_RNR_RETRY_EXC_ERR);
            return;
        }
        qp->rnr_left--;
        timer_set(&engine->timers, &qp->timer, engine->now + rnr_ns(qp->peer->attr.min_rnr_timer));
    }
    /* With 7 (for ever) no timer is needed: posting a receive rings. */
    list_remove(&qp->link);
    qp->wait = QP_WAIT_RECEIVE;
}

static void wait_for_rate(struct qp *qp, struct lane_shaper *lane)
{
    struct sluice_engine *engine = qp->session->engine;

    list_remove(&qp->link);
    qp->wait = QP_WAIT_RATE;
    if (list_empty(&lane->waiting))
        lane->waiting_since = engine->now;
    list_append(&lane->waiting, &qp->link);
    timer_set(&engine->timers, &lane->timer, lane->bucket.tat);
}

static void on_timer(struct timer *timer)
{
    struct qp *qp = list_entry(timer, struct qp, timer);

    if (qp->wait == QP_WAIT_PEER)
        fail(qp, IBV_WC_RETRY_EXC_ERR);
    else
        qp_activate(qp);
}

/* Nothing to send. False: stay active, for something may come at once or has come. */
static bool rest(struct qp *qp)
{
    struct sluice_engine *engine = qp->session->engine;

    if (engine->linger) {
        /* A core to spare: watch the queue for a while, so that the next post needs no doorbell. */
        if (qp->idle_since == 0)
            qp->idle_since = engine->now;
        if (engine->now - qp->idle_since < engine->linger)
            return false;
    }
    return queue_arm(qp, &qp->sq);
}

/* Decides what next after the transport has spoken. True: this QP may go on in this turn. */
static bool proceed(struct qp *qp, enum progress progress, uint32_t status)
{
    if (qp->state == IBV_QPS_ERR) /* broke meanwhile, by a dead CQ for instance: the message is flushed */
        return false;
    switch (progress) {
    case PROGRESS_DONE:
        qp->rnr_left = qp->attr.rnr_retry;
        complete_send(qp, IBV_WC_SUCCESS);
        return true;
    case PROGRESS_MORE:
        return true;
    case PROGRESS_NO_PEER:
        wait_for_peer(qp);
        return false;
    case PROGRESS_NO_RECEIVE:
        wait_for_receive(qp);
        return false;
    case PROGRESS_FAILED:
        fail(qp, status);
        return false;
    }
    return false;
}

static bool next_message(struct qp *qp)
{
    if (qp->state != IBV_QPS_RTS) {
        qp_deactivate(qp);
        if (qp->state == IBV_QPS_SQD && !qp->drained_told) {
            qp->drained_told = true;
            if (qp->attr.en_sqd_async_notify)
                session_async_event(qp->session, IBV_EVENT_SQ_DRAINED, qp->qp_num);
        }
        return false;
    }
    if (qp->sq.head == qp->sq.seen && queue_waiting(qp, &qp->sq) == 0) {
        if (!qp->session->broken && rest(qp) && !qp->session->broken)
            qp_deactivate(qp);
        return false;
    }
    qp->idle_since = 0;
    return take_message(qp);
}

void qp_send(struct qp *qp, uint32_t budget, uint32_t *spent)
{
    struct sluice_engine *engine = qp->session->engine;
    enum { BATCH = 64 };
    uint32_t next_look = WORK_PIECE;

    for (uint32_t turn = 0; turn < BATCH && *spent < budget; turn++) {
        if (*spent >= next_look) {
            if (worker_called(engine))
                return;
            next_look = *spent + WORK_PIECE;
        }
        if (!qp->message.active && !next_message(qp))
            return;

        bool is_read = qp->message.wqe->opcode == IBV_WR_RDMA_READ;
        struct lane_shaper *lane = is_read ? &qp->tenant->ingress : &qp->tenant->egress;

        if (!bucket_ready(&lane->bucket, engine->now)) {
            wait_for_rate(qp, lane);
            return;
        }
        uint32_t status = IBV_WC_SUCCESS;
        uint32_t before = qp->message.moved;
        uint32_t left = budget - *spent;
        enum progress progress =
            qp->transport->send(qp, left < lane->bucket.chunk ? left : lane->bucket.chunk, &status);
        uint32_t bytes = qp->message.moved - before;

        bucket_take(&lane->bucket, bytes, engine->now);
        *spent += bytes;
        if (qp->session->broken || !proceed(qp, progress, status))
            return;
    }
}

void qp_ring(struct qp *qp)
{
    if (qp->state == IBV_QPS_ERR) {
        flush_sends(qp);
        flush_receives(qp);
        return;
    }
    if (qp->state == IBV_QPS_RTS && qp->wait == QP_WAIT_NOTHING && list_unlinked(&qp->link))
        qp_activate(qp);
    if (qp->transport)
        qp->transport->receive_posted(qp);
}

/* ---- states ------------------------------------------------------------ */

static void apply(struct qp *qp, const struct sluice_qp_attr *attr, uint32_t mask)
{
    struct sluice_qp_attr *now = &qp->attr;

#define APPLY(bit, field)        \
    do {                         \
        if (mask & (bit))        \
            now->field = attr->field; \
    } while (0)
    APPLY(IBV_QP_EN_SQD_ASYNC_NOTIFY, en_sqd_async_notify);
    APPLY(IBV_QP_ACCESS_FLAGS, qp_access_flags);
    APPLY(IBV_QP_PKEY_INDEX, pkey_index);
    APPLY(IBV_QP_PORT, port_num);
    APPLY(IBV_QP_QKEY, qkey);
    APPLY(IBV_QP_AV, ah);
    APPLY(IBV_QP_PATH_MTU, path_mtu);
    APPLY(IBV_QP_TIMEOUT, timeout);
    APPLY(IBV_QP_RETRY_CNT, retry_cnt);
    APPLY(IBV_QP_RNR_RETRY, rnr_retry);
    APPLY(IBV_QP_RQ_PSN, rq_psn);
    APPLY(IBV_QP_MAX_QP_RD_ATOMIC, max_rd_atomic);
    APPLY(IBV_QP_MIN_RNR_TIMER, min_rnr_timer);
    APPLY(IBV_QP_SQ_PSN, sq_psn);
    APPLY(IBV_QP_MAX_DEST_RD_ATOMIC, max_dest_rd_atomic);
    APPLY(IBV_QP_DEST_QPN, dest_qp_num);
    APPLY(IBV_QP_RATE_LIMIT, rate_limit);
#undef APPLY
    if (mask & IBV_QP_RNR_RETRY)
        qp->rnr_left = attr->rnr_retry;
}

static void reset(struct qp *qp)
{
    struct sluice_qp_cap cap = qp->attr.cap;

    qp_deactivate(qp);
    disconnect(qp);
    mws_of_qp(qp);
    /* Everything posted is forgotten; the shim does the same with its side. */
    qp->message.active = false;
    qp->receive.active = false;
    qp->sq.head = qp->sq.seen = load_acquire(&qp->sq.shared->producer);
    qp->rq.head = qp->rq.seen = load_acquire(&qp->rq.shared->producer);
    store_relaxed(&qp->sq.shared->armed, 1);
    store_relaxed(&qp->rq.shared->armed, 0);
    qp->peer_tenant = -1;
    memset(&qp->attr, 0, sizeof(qp->attr));
    qp->attr.cap = cap;
    publish_state(qp, IBV_QPS_RESET);
}

int qp_modify(struct qp *qp, const struct sluice_qp_attr *attr, uint32_t attr_mask,
              const struct transport *transport, int32_t peer_tenant)
{
    uint32_t from = qp->state;

    apply(qp, attr, attr_mask);
    if (!(attr_mask & IBV_QP_STATE) || (attr->qp_state == from && from != IBV_QPS_RESET))
        return 0;
    switch (attr->qp_state) {
    case IBV_QPS_RESET:
        reset(qp);
        break;
    case IBV_QPS_INIT:
        publish_state(qp, IBV_QPS_INIT);
        break;
    case IBV_QPS_RTR:
        qp->transport = transport;
        qp->peer_tenant = peer_tenant;
        qp->counters->peer_qp_num = qp->attr.dest_qp_num;
        publish_state(qp, IBV_QPS_RTR);
        if (transport)
            transport->connect(qp);
        break;
    case IBV_QPS_RTS:
        publish_state(qp, IBV_QPS_RTS);
        qp_ring(qp);
        break;
    case IBV_QPS_SQD:
        qp->drained_told = false;
        publish_state(qp, IBV_QPS_SQD);
        if (!qp->message.active)
            next_message(qp);
        break;
    case IBV_QPS_ERR:
        qp_error(qp);
        break;
    default:
        return -EINVAL;
    }
    return 0;
}
