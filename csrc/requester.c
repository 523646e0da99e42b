/* SPDX-License-Identifier: Apache-2.0 */
#include "requester.h"

#include <infiniband/verbs.h>
#include <string.h>

#include "ah.h"
#include "atomic.h"
#include "clock.h"
#include "relay.h"
#include "session.h"
#include "srq.h"
#include "tenant.h"
#include "transport/transport.h"
#include "turn.h"
#include "worker.h"

/* Operations that bring something back: max_rd_atomic is about these (IBTA 11.2.5.2). */
#define ANSWERED_OPCODES \
    (1u << IBV_WR_RDMA_READ | 1u << IBV_WR_ATOMIC_CMP_AND_SWP | 1u << IBV_WR_ATOMIC_FETCH_AND_ADD)

/* Messages: how far ahead WQEs are fetched. */
enum { WQES_AHEAD = 2 };

#define COPY_PATIENCE_NS (2 * NS_PER_SECOND)

static void on_timer(struct timer *timer);

void requester_init(struct qp *qp)
{
    qp->timer.fire = on_timer;
}

/* ---- scheduling -------------------------------------------------------- */

/* Out of whatever it waits in. */
static void take_out(struct qp *qp)
{
    timer_cancel(&qp->session->engine->timers, &qp->timer);
    qp->wait = QP_WAIT_NOTHING;
    list_remove(&qp->link);
    if (qp->claim.lane) {
        claim_cancel(&qp->claim);
        tenant_waits_less(qp->tenant);
    }
}

void qp_activate(struct qp *qp)
{
    enum flow flow = turn_flow(qp);

    take_out(qp);
    list_append(&qp->tenant->active[flow], &qp->link);
    tenant_works(qp->tenant, flow);
}

void qp_deactivate(struct qp *qp)
{
    take_out(qp);
    relay_drop(qp);
}

void qp_wait_for_rate(struct qp *qp)
{
    list_remove(&qp->link);
    qp->wait = QP_WAIT_RATE;
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

/* A WQE is done with, the oldest that wasn't. wqe: its copy. */
static void complete(struct qp *qp, const struct sluice_wqe *wqe, uint32_t status, uint32_t byte_len)
{
    qp->completed++;
    if (status == IBV_WC_SUCCESS && !(wqe->flags & SLUICE_WQE_SIGNALED) && !qp->sq_sig_all)
        return;
    if (status != IBV_WC_SUCCESS && status != IBV_WC_WR_FLUSH_ERR)
        qp->counters->errors++;
    struct sluice_cqe cqe = {
        .wr_id = wqe->wr_id,
        .status = status,
        .opcode = completion_opcode(wqe->opcode),
        .byte_len = byte_len,
        .qp_num = qp->qp_num,
        .qp = qp->handle,
        .tail = qp->completed,
    };
    cq_push(qp->send_cq, &cqe, false);
}

void qp_complete_send(struct qp *qp, uint32_t status)
{
    qp->message.active = false;
    qp->sq.head++;
    complete(qp, qp->message.wqe, status, qp->message.total);
}

void qp_complete_oldest(struct qp *qp, uint32_t status, uint32_t byte_len)
{
    struct sluice_wqe wqe;

    if (qp->completed == qp->sq.head) {
        qp_complete_send(qp, status);
        return;
    }
    /* The slot is still the engine's; what a tenant writes there nevertheless is its own loss. */
    copy_once(&wqe, queue_slot_at(&qp->sq, qp->completed), sizeof(wqe));
    complete(qp, &wqe, status, byte_len);
    /* All that was begun before SQD is done now (IBTA 10.3.1.5). */
    if (qp->state == IBV_QPS_SQD && qp->completed == qp->sq.head && !qp->message.active)
        qp_next_message(qp);
}

void qp_sent(struct qp *qp)
{
    qp->message.active = false;
    qp->sq.head++;
}

void qp_flush_sends(struct qp *qp)
{
    struct session *session = qp->session;
    struct queue *queue = &qp->sq;

    while (qp->completed != queue->head && !session->broken)
        qp_complete_oldest(qp, IBV_WC_WR_FLUSH_ERR, 0);
    if (qp->message.active)
        qp_complete_send(qp, IBV_WC_WR_FLUSH_ERR);
    if (queue->entries == 0)
        return;
    /* What is there now: who goes on posting meanwhile would keep the worker here for ever. */
    uint32_t left = queue_waiting(session, queue);
    /* Not in SQE: from there the application goes on to RTS, where what is left would be sent. */
    bool more = left > FLUSHED_AT_ONCE && qp->state == IBV_QPS_ERR;

    for (left = more ? FLUSHED_AT_ONCE : left; left && !session->broken; left--) {
        qp->message.wqe = (struct sluice_wqe *)qp->message.bytes;
        copy_once(qp->message.bytes, queue_slot(queue), sizeof(struct sluice_wqe));
        qp->message.total = 0;
        qp_complete_send(qp, IBV_WC_WR_FLUSH_ERR);
    }
    if (!session->broken && (more || !queue_arm(session, queue)) && !session->broken)
        session_ring_again(session, qp->handle);
}

/* ---- taking WQEs from shared memory ------------------------------------ */

bool qp_reads(const struct qp *qp)
{
    const struct sluice_wqe *wqe = qp->message.wqe;

    if (!qp->message.active) {
        /* Only of a WQE that is posted: what an empty slot holds is being written, or of a message long done. */
        if (qp->sq.entries == 0 ||
            (qp->sq.seen == qp->sq.head && load_acquire(&qp->sq.shared->producer) == qp->sq.head))
            return false;
        wqe = (const struct sluice_wqe *)queue_slot(&qp->sq);
    }
    return load_relaxed(&wqe->opcode) == IBV_WR_RDMA_READ;
}

bool qp_copy_message(struct qp *qp, uint32_t index, struct message *message)
{
    const uint8_t *slot = queue_slot_at(&qp->sq, index);
    const struct sluice_wqe *wqe = (const struct sluice_wqe *)message->bytes;
    uint32_t size = sizeof(*wqe);

    copy_once(message->bytes, slot, SLUICE_BLOCK);
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
    if (wqe->opcode > IBV_WR_SEND_WITH_INV || !(qp->opcodes >> wqe->opcode & 1) || size > qp->sq.stride ||
        wqe->num_sge > SLUICE_MAX_SGE ||
        ((wqe->flags & SLUICE_WQE_INLINE) && wqe->opcode > IBV_WR_SEND_WITH_IMM &&
         wqe->opcode != IBV_WR_SEND_WITH_INV)) {
        session_break(qp->session, "a send queue holds a WQE that no shim writes");
        return false;
    }
    if (size > SLUICE_BLOCK)
        copy_once(message->bytes + SLUICE_BLOCK, slot + SLUICE_BLOCK, size - SLUICE_BLOCK);
    /* Nothing of a message that was given up goes into this one. */
    if (__builtin_expect(qp->relay != NULL, 0))
        relay_drop(qp);
    message->active = true;
    message->moved = 0;
    message->total = 0;
    message->performed = false;
    message->dropped = false;
    return true;
}

/* ---- what next ----------------------------------------------------------- */

/* IBTA table 45: the RNR NAK timer field, in units of 10 us. */
uint64_t qp_rnr_ns(uint32_t field)
{
    static const uint32_t units[32] = {65536, 1,   2,   3,   4,   6,    8,    12,   16,   24,   32,
                                       48,    64,  96,  128, 192, 256,  384,  512,  768,  1024, 1536,
                                       2048,  3072, 4096, 6144, 8192, 12288, 16384, 24576, 32768, 49152};

    return units[field & 31] * 10000ull;
}

static void fail(struct qp *qp, uint32_t status)
{
    qp_complete_send(qp, status);
    if (qp_is_unreliable(qp))
        qp_send_error(qp);
    else
        qp_error(qp);
}

/* For somebody who may never answer. */
static void wait_with_timeout(struct qp *qp, enum qp_wait why)
{
    struct sluice_engine *engine = qp->session->engine;
    /* IBTA 9.7.6.1.3: 4.096 us * 2^timeout a try. */
    uint64_t patience = (qp->attr.retry_cnt + 1ull) * (4096ull << qp->attr.timeout);

    /* That is for a wire; a thread that shares a core may take longer. */
    if (why == QP_WAIT_COPY && patience < COPY_PATIENCE_NS)
        patience = COPY_PATIENCE_NS;
    list_remove(&qp->link);
    qp->wait = why;
    /* Its own memory is its application's again when the message is over: it isn't before the thread is done. */
    if (why == QP_WAIT_COPY && relay_is_own(qp))
        return;
    if (qp->attr.timeout) /* 0 waits for ever */
        timer_set(&engine->timers, &qp->timer, engine->now + patience);
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
        timer_set(&engine->timers, &qp->timer, engine->now + qp_rnr_ns(qp->peer->attr.min_rnr_timer));
    }
    /* With 7 (for ever) no timer is needed: posting a receive rings. */
    list_remove(&qp->link);
    qp->wait = QP_WAIT_RECEIVE;
    if (qp->lacking)
        list_append(&qp->lacking->waiting, &qp->link);
}

/* Without a doorbell: looks again by itself (moderation.h). */
static void nap(struct qp *qp, enum qp_wait why)
{
    struct sluice_engine *engine = qp->session->engine;

    list_remove(&qp->link);
    qp->wait = why;
    timer_set(&engine->timers, &qp->timer, engine->now + MODERATION_NS);
}

/* Nothing to send. False: stay as it is now, for something may come at once or has come. */
static bool rest(struct qp *qp)
{
    struct sluice_engine *engine = qp->session->engine;

    /* Over a wire, what it costs to be woken is little beside the rest, and a batch that waits is late. */
    if (qp->transport == &transport_local && moderation_naps(&qp->posting, engine, qp->sq.head)) {
        nap(qp, QP_WAIT_POST);
        return false;
    }
    if (engine->linger) {
        /* A core to spare: watch the queue for a while, so that the next post needs no doorbell. */
        qp->idle_since = engine->now;
        list_remove(&qp->link);
        list_append(&engine->watched, &qp->link);
        qp->wait = QP_WAIT_POST;
        return false;
    }
    return queue_arm(qp->session, &qp->sq);
}

/* Enough of looking: whoever posts next rings. */
static void end_watch(struct qp *qp)
{
    if (queue_arm(qp->session, &qp->sq))
        qp_deactivate(qp);
    else if (!qp->session->broken)
        qp_activate(qp);
}

void qp_watch(struct qp *qp)
{
    struct sluice_engine *engine = qp->session->engine;

    if (load_relaxed(&qp->sq.shared->producer) != qp->sq.head)
        qp_activate(qp);
    else if (engine->now - qp->idle_since >= engine->linger)
        end_watch(qp);
}

static void on_timer(struct timer *timer)
{
    struct qp *qp = list_entry(timer, struct qp, timer);

    if (qp->wait == QP_WAIT_PEER || qp->wait == QP_WAIT_COPY)
        fail(qp, IBV_WC_RETRY_EXC_ERR);
    else if (qp->wait == QP_WAIT_POST)
        end_watch(qp);
    else
        qp_activate(qp);
}

static void drop(struct qp *qp)
{
    qp->message.dropped = true;
    qp->counters->drops++;
    qp->tenant->counters->drops++;
}

/* What nobody takes is sent all the same: it takes its time and its share of the rate. */
static enum progress send_to_nowhere(struct qp *qp, uint32_t budget)
{
    struct message *message = &qp->message;
    uint32_t left = message->total - message->moved, bytes = left < budget ? left : budget;

    message->moved += bytes;
    qp->counters->tx_bytes += bytes;
    qp->tenant->counters->tx_bytes += bytes;
    if (message->moved < message->total)
        return PROGRESS_MORE;
    qp->counters->tx_messages++;
    qp->tenant->counters->tx_messages++;
    return PROGRESS_DONE;
}

/* Decides what next after the transport has spoken. True: this QP may go on in this turn. */
static bool proceed(struct qp *qp, enum progress progress, uint32_t status)
{
    if (qp->state == IBV_QPS_ERR) /* broke meanwhile, by a dead CQ for instance: the message is flushed */
        return false;
    /* Nobody tells a requester of an unreliable service: its message counts as sent. */
    if (qp->type == IBV_QPT_UC && (progress == PROGRESS_NO_PEER || progress == PROGRESS_NO_RECEIVE)) {
        drop(qp);
        return true;
    }
    switch (progress) {
    case PROGRESS_DONE:
        qp->rnr_left = qp->attr.rnr_retry;
        qp_complete_send(qp, IBV_WC_SUCCESS);
        return true;
    case PROGRESS_MORE:
        if (__builtin_expect(!relay_underway(qp), 1))
            return true;
        wait_with_timeout(qp, QP_WAIT_COPY);
        return false;
    case PROGRESS_NEXT:
        return true;
    case PROGRESS_SENT:
        qp_sent(qp);
        return true;
    case PROGRESS_BLOCKED:
        list_remove(&qp->link);
        qp->wait = QP_WAIT_TRANSPORT;
        if (qp->line)
            list_append(qp->line, &qp->link);
        qp->line = NULL;
        return false;
    case PROGRESS_DROPPED:
        drop(qp);
        return true;
    case PROGRESS_NO_PEER:
        wait_with_timeout(qp, QP_WAIT_PEER);
        return false;
    case PROGRESS_NO_RECEIVE:
        wait_for_receive(qp);
        return false;
    case PROGRESS_NAP:
        nap(qp, QP_WAIT_RECEIVE);
        return false;
    case PROGRESS_FAILED:
        fail(qp, status);
        return false;
    }
    return false;
}

/* Another core wrote it, and has it in its cache: asked for now, it is in this one's when its turn comes. */
static void fetch_ahead(const struct queue *queue)
{
    /* Not one that may be written just now. */
    if (queue->seen - queue->head > WQES_AHEAD)
        __builtin_prefetch(queue_slot_at(queue, queue->head + WQES_AHEAD));
}

bool qp_next_message(struct qp *qp)
{
    if (qp->state != IBV_QPS_RTS) {
        qp_deactivate(qp);
        if (qp->state == IBV_QPS_SQD && !qp->drained_told && qp->completed == qp->sq.head) {
            qp->drained_told = true;
            if (qp->attr.en_sqd_async_notify)
                qp_async_event(qp, IBV_EVENT_SQ_DRAINED);
        }
        return false;
    }
    if (qp->sq.head == qp->sq.seen && queue_waiting(qp->session, &qp->sq) == 0) {
        if (!qp->session->broken && rest(qp) && !qp->session->broken)
            qp_deactivate(qp);
        return false;
    }
    fetch_ahead(&qp->sq);
    return qp_copy_message(qp, qp->sq.head, &qp->message);
}

/* The AH that a UD message names. NULL: none of this PD. */
static struct ah *find_ah(struct qp *qp)
{
    struct ah *ah = ah_find(qp->session, qp->message.wqe->ah);

    return ah && ah->pd == qp->pd ? ah : NULL;
}

/* Has the transport carry out the next part of the message. */
static enum progress carry_out(struct qp *qp, uint32_t budget, uint32_t *status)
{
    struct message *message = &qp->message;

    if (message->dropped)
        return send_to_nowhere(qp, budget);
    if (qp->type == IBV_QPT_UD) {
        message->ah = find_ah(qp);
        /* Done at once, and so not before what a NIC still has. */
        if (qp->completed != qp->sq.head && (!message->ah || message->ah->transport != &transport_nic))
            return PROGRESS_BLOCKED;
        if (message->ah)
            return message->ah->transport->send_datagram(qp, status);
    } else if (qp->transport->flush || qp->attr.max_rd_atomic || !(ANSWERED_OPCODES >> message->wqe->opcode & 1)) {
        return qp->transport->send(qp, budget, status);
    }
    *status = IBV_WC_LOC_QP_OP_ERR;
    return PROGRESS_FAILED;
}

/* Mostly they were asked by a message before it in this turn. */
static bool is_admitted(struct allowance *allowance, struct qp *qp, uint32_t direction)
{
    return (qp->peer && qp->peer->tenant == allowance->peer && allowance->admitted[direction]) ||
           turn_admits(allowance, qp, direction);
}

static void send_messages(struct qp *qp, struct allowance *allowance)
{
    uint32_t next_look = TURN_PIECE;
    int right = -1; /* the last message, which was a READ (1) or not (0), belongs to this turn, and so do all like it */

    for (; allowance->tries < allowance->messages && allowance->moved < allowance->bytes; allowance->tries++) {
        if (allowance->moved >= next_look) {
            if (worker_called(qp->session->engine))
                return;
            next_look = allowance->moved + TURN_PIECE;
        }
        if (!qp->message.active && !qp_next_message(qp))
            return;
        bool reads = qp->message.wqe->opcode == IBV_WR_RDMA_READ;
        uint32_t peer_direction = reads ? FLOW_EGRESS : FLOW_INGRESS;

        if (reads != right && turn_flow(qp) != allowance->flow) {
            qp_activate(qp);
            return;
        }
        right = reads;
        if (!is_admitted(allowance, qp, peer_direction))
            return;
        uint32_t status = IBV_WC_SUCCESS;
        uint32_t before = qp->message.moved;
        enum progress progress = carry_out(qp, allowance->bytes - allowance->moved, &status);
        /* A message that lost its receiver on the way has begun again. */
        uint32_t bytes = progress == PROGRESS_NEXT ? 0 : qp->message.moved - (qp->message.moved < before ? 0 : before);

        allowance->moved += bytes;
        allowance->operations += progress == PROGRESS_DONE || progress == PROGRESS_SENT;
        if (!allowance->peer && qp->peer) /* found just now */
            allowance->peer = qp->peer->tenant;
        if (allowance->peer)
            allowance->peer_moved[peer_direction] += bytes;
        if (qp->session->broken || !proceed(qp, progress, status))
            return;
    }
}

void qp_send(struct qp *qp, struct allowance *allowance)
{
    send_messages(qp, allowance);
    if (qp->transport && qp->transport->flush)
        qp->transport->flush(qp);
}

void qp_ring(struct qp *qp)
{
    /* What failed is not all back yet: it comes first. */
    if (qp->state == IBV_QPS_ERR && (qp->transport || qp->fence))
        return;
    if (qp->state == IBV_QPS_ERR || qp->state == IBV_QPS_SQE) {
        uint64_t start = clock_now();

        qp_flush_sends(qp);
        if (qp->state == IBV_QPS_ERR)
            qp_flush_receives(qp);
        /* Outside of turns: who posts to what failed pays for it all the same. */
        tenant_charge_time(qp->tenant, clock_now() - start);
    }
    if (qp->state == IBV_QPS_ERR)
        return;
    if (qp->state == IBV_QPS_RTS && qp->sq.entries && qp->wait == QP_WAIT_NOTHING && list_unlinked(&qp->link))
        qp_activate(qp);
    if (qp->transport)
        qp->transport->receive_posted(qp);
}

