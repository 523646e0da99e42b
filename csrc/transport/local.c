/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Both ends of the connection live on this node: the worker copies once, from
 * the one application's memory into the other's. What a wire would do with
 * packets and acknowledgements happens here in one call, so a completion means:
 * placed, and visible.
 */
#include <infiniband/verbs.h>

#include "../mw.h"
#include "../relay.h"
#include "../spans.h"
#include "../srq.h"
#include "../xrc.h"
#include "transport.h"

/* Who answers a message: the QP at the other end, and where it takes receives and checks keys. */
struct responder {
    struct qp *qp;
    struct srq *srq; /* NULL: its own receive queue */
    struct pd *pd;
};

/* ---- who is at the other end ------------------------------------------- */

/*
 * The peer, where both name each other: number, and the tenant behind the GID.
 * So nobody can send to a QP that wasn't connected to him.
 */
static struct qp *find_peer(struct qp *qp)
{
    struct qp *peer = qp->peer;

    if (peer)
        return peer;
    peer = qp_lookup(qp->session->engine, qp->attr.dest_qp_num);
    if (!peer || !qp_can_respond(peer) || peer->session->broken || peer->transport != &transport_local ||
        !qp_types_fit(qp->type, peer->type) || peer->attr.dest_qp_num != qp->qp_num ||
        (int32_t)peer->tenant->first->number != qp->peer_tenant ||
        (int32_t)qp->tenant->first->number != peer->peer_tenant)
        return NULL;
    qp->peer = peer;
    return peer;
}

static int local_connect(struct qp *qp)
{
    struct qp *other = qp_lookup(qp->session->engine, qp->attr.dest_qp_num);

    if (other && other->wait == QP_WAIT_PEER && other->attr.dest_qp_num == qp->qp_num)
        qp_activate(other);
    return 0;
}

static void local_disconnect(struct qp *qp)
{
    struct qp *other = qp_lookup(qp->session->engine, qp->attr.dest_qp_num);

    qp->peer = NULL;
    if (!other || other->peer != qp)
        return;
    other->peer = NULL;
    /* It waits for a receive that won't come: let it find out that nobody is there. */
    if (other->wait == QP_WAIT_RECEIVE)
        qp_activate(other);
}

static void local_receive_posted(struct qp *qp)
{
    struct qp *other = qp_lookup(qp->session->engine, qp->attr.dest_qp_num);

    if (other && other->peer == qp && other->wait == QP_WAIT_RECEIVE)
        qp_activate(other);
}

static bool takes_receive(uint8_t opcode)
{
    return opcode == IBV_WR_SEND || opcode == IBV_WR_SEND_WITH_IMM || opcode == IBV_WR_SEND_WITH_INV ||
           opcode == IBV_WR_RDMA_WRITE_WITH_IMM;
}

/* ---- messages ---------------------------------------------------------- */

/* The responder refuses: its QP breaks with an event, and nothing was written. Unreliable ones say nothing. */
static enum progress refuse(struct qp *qp, struct qp *peer, uint32_t *status, uint32_t requester_status)
{
    uint32_t event = requester_status == IBV_WC_REM_INV_REQ_ERR ? IBV_EVENT_QP_REQ_ERR : IBV_EVENT_QP_ACCESS_ERR;

    if (qp_is_unreliable(qp))
        return PROGRESS_DROPPED;
    *status = requester_status;
    if (peer == qp) /* connected to itself: it breaks as the requester, after its completion */
        qp_async_event(qp, event);
    else
        qp_fatal(peer, event);
    return PROGRESS_FAILED;
}

/* The receive at hand can't take the message: the responder's own error, without an event. */
static enum progress spoil(struct qp *qp, struct qp *peer, uint32_t receive_status, uint32_t *status,
                           uint32_t requester_status)
{
    bool unreliable = qp_is_unreliable(qp);

    *status = requester_status;
    qp_complete_receive(peer, receive_status, IBV_WC_RECV, 0, 0, 0, false);
    if (peer != qp || unreliable)
        qp_error(peer);
    return unreliable ? PROGRESS_DROPPED : PROGRESS_FAILED;
}

static enum progress local_error(uint32_t *status, uint32_t requester_status)
{
    *status = requester_status;
    return PROGRESS_FAILED;
}

/* The local end of the message: the gather list of what is sent, or the scatter list of what is read. */
static bool resolve_local(struct qp *qp, uint32_t access, struct spans *spans)
{
    struct message *message = &qp->message;

    spans->count = 0;
    spans->total = 0;
    spans->by_process = false;
    if (message->wqe->flags & SLUICE_WQE_INLINE) {
        spans_add_host(spans, message->inline_data, message->wqe->inline_length);
        return true;
    }
    return spans_add_sges(spans, qp->pd, message->sges, message->wqe->num_sge, access);
}

/* Resolves what is sent, and checks its length. False: *status says why. */
static bool resolve_payload(struct qp *qp, struct spans *src, uint32_t *status)
{
    *status = IBV_WC_LOC_PROT_ERR;
    if (!resolve_local(qp, 0, src))
        return false;
    *status = IBV_WC_LOC_LEN_ERR;
    if (src->total > 1u << 31)
        return false;
    qp->message.total = (uint32_t)src->total;
    return true;
}

static bool resolve_remote(const struct responder *to, const struct sluice_wqe *wqe, uint32_t length, uint32_t access,
                           struct spans *spans)
{
    if (!(to->qp->attr.qp_access_flags & access))
        return false;
    if (!to->pd && length) /* XRC, and nobody has the key */
        return false;
    return spans_set_remote(spans, to->qp, to->pd, wqe->rkey, wqe->remote_addr, length, access);
}

static void count_sent(struct qp *qp, struct qp *peer, uint32_t bytes)
{
    qp->counters->tx_bytes += bytes;
    qp->tenant->counters->tx_bytes += bytes;
    peer->counters->rx_bytes += bytes;
    peer->tenant->counters->rx_bytes += bytes;
}

/*
 * Moves the next bytes of qp's message, which was resolved. False: memory could not
 * be had.
 */
static bool move(struct qp *qp, const struct spans *dst, const struct spans *src, uint32_t budget)
{
    struct message *message = &qp->message;
    uint32_t before = message->moved, left = message->total - before;
    uint32_t end = before + (left < budget ? left : budget);
    uint32_t reached = __builtin_expect(dst->by_process | src->by_process, 0)
                           ? relay_copy(qp, dst, src, before, end)
                           : spans_copy(qp->session->engine, dst, src, before, end);

    if (reached > end)
        return false;
    message->moved = reached;
    return true;
}

/* The same, and counts them for sender and receiver. */
static bool advance(struct qp *qp, const struct spans *dst, const struct spans *src, uint32_t budget,
                    struct qp *sender, struct qp *receiver)
{
    uint32_t before = qp->message.moved;

    if (!move(qp, dst, src, budget))
        return false;
    count_sent(sender, receiver, qp->message.moved - before);
    return true;
}

/*
 * A message that consumes a receive takes it before its first byte. PROGRESS_DONE:
 * it has one; else what to say.
 */
static enum progress begin_receive(struct qp *qp, const struct responder *to)
{
    struct message *message = &qp->message;
    struct receive *receive = &to->qp->receive;

    if (receive->active && receive->srq == to->srq)
        return PROGRESS_DONE;
    if (receive->active) /* begun by a message that was broken off, for another SRQ than this one's */
        qp_complete_receive(to->qp, IBV_WC_WR_FLUSH_ERR, IBV_WC_RECV, 0, 0, 0, false);
    /* The peer was reset and came back in the middle: then from the start, or not at all. */
    if (message->moved && qp_is_unreliable(qp))
        return PROGRESS_DROPPED;
    message->moved = 0;
    if (qp_take_receive(to->qp, to->srq, false))
        return PROGRESS_DONE;
    bool reliable = !qp_is_unreliable(qp);
    bool naps = reliable && moderation_naps(&qp->receiving, qp->session->engine, qp->sq.head);

    if (reliable && !naps && qp_take_receive(to->qp, to->srq, true))
        return PROGRESS_DONE;
    if (to->qp->session->broken || (to->srq && to->srq->session->broken))
        return PROGRESS_NO_PEER;
    qp->lacking = to->srq;
    return naps ? PROGRESS_NAP : PROGRESS_NO_RECEIVE;
}

static void count_message(struct qp *qp, struct qp *peer)
{
    qp->counters->tx_messages++;
    qp->tenant->counters->tx_messages++;
    peer->counters->rx_messages++;
    peer->tenant->counters->rx_messages++;
}

static enum progress send_write(struct qp *qp, const struct responder *to, uint32_t budget, uint32_t *status)
{
    struct message *message = &qp->message;
    const struct sluice_wqe *wqe = message->wqe;
    bool immediate = wqe->opcode == IBV_WR_RDMA_WRITE_WITH_IMM;
    struct spans src, dst;

    if (!resolve_payload(qp, &src, status))
        return PROGRESS_FAILED;
    if (!to->qp)
        return PROGRESS_NO_PEER;
    if (!resolve_remote(to, wqe, message->total, IBV_ACCESS_REMOTE_WRITE, &dst))
        return refuse(qp, to->qp, status, IBV_WC_REM_ACCESS_ERR);
    if (immediate) {
        enum progress begun = begin_receive(qp, to);

        if (begun != PROGRESS_DONE)
            return begun;
    }
    if (!advance(qp, &dst, &src, budget, qp, to->qp))
        return refuse(qp, to->qp, status, IBV_WC_REM_OP_ERR);
    if (message->moved < message->total)
        return PROGRESS_MORE;
    count_message(qp, to->qp);
    if (immediate)
        qp_complete_receive(to->qp, IBV_WC_SUCCESS, IBV_WC_RECV_RDMA_WITH_IMM, message->total, IBV_WC_WITH_IMM,
                            wqe->imm_data, wqe->flags & SLUICE_WQE_SOLICITED);
    return PROGRESS_DONE;
}

static enum progress send_send(struct qp *qp, const struct responder *to, uint32_t budget, uint32_t *status)
{
    struct message *message = &qp->message;
    const struct sluice_wqe *wqe = message->wqe;
    struct spans src, dst = {.count = 0};

    if (!resolve_payload(qp, &src, status))
        return PROGRESS_FAILED;
    if (!to->qp)
        return PROGRESS_NO_PEER;
    enum progress begun = begin_receive(qp, to);

    if (begun != PROGRESS_DONE)
        return begun;
    const struct receive *receive = &to->qp->receive;

    /* The receive's own faults end the responder's QP; the requester hears of an operation error. */
    if (!spans_add_sges(&dst, receive->pd, receive->sges, receive->num_sge, IBV_ACCESS_LOCAL_WRITE))
        return spoil(qp, to->qp, IBV_WC_LOC_PROT_ERR, status, IBV_WC_REM_OP_ERR);
    if (dst.total < src.total) {
        /* Unreliable: the message is lost, the receive is there for the next one (IBTA 9.8.3.3, class D). */
        if (qp_is_unreliable(qp))
            return PROGRESS_DROPPED;
        return spoil(qp, to->qp, IBV_WC_LOC_LEN_ERR, status, IBV_WC_REM_INV_REQ_ERR);
    }
    if (!advance(qp, &dst, &src, budget, qp, to->qp))
        return spoil(qp, to->qp, IBV_WC_LOC_PROT_ERR, status, IBV_WC_REM_OP_ERR);
    if (message->moved < message->total)
        return PROGRESS_MORE;
    uint32_t wc_flags = 0;

    if (wqe->opcode == IBV_WR_SEND_WITH_IMM)
        wc_flags = IBV_WC_WITH_IMM;
    if (wqe->opcode == IBV_WR_SEND_WITH_INV) {
        /* IBTA 9.9.3, class J: the data is there, and yet the connection ends. */
        if (!mw_invalidate(to->qp, wqe->imm_data))
            return spoil(qp, to->qp, IBV_WC_REM_INV_REQ_ERR, status, IBV_WC_REM_ACCESS_ERR);
        wc_flags = IBV_WC_WITH_INV;
    }
    count_message(qp, to->qp);
    qp_complete_receive(to->qp, IBV_WC_SUCCESS, IBV_WC_RECV, message->total, wc_flags, wc_flags ? wqe->imm_data : 0,
                        wqe->flags & SLUICE_WQE_SOLICITED);
    return PROGRESS_DONE;
}

static enum progress send_read(struct qp *qp, const struct responder *to, uint32_t budget, uint32_t *status)
{
    struct message *message = &qp->message;
    struct spans src, dst;

    if (!resolve_local(qp, IBV_ACCESS_LOCAL_WRITE, &dst))
        return local_error(status, IBV_WC_LOC_PROT_ERR);
    if (dst.total > 1u << 31)
        return local_error(status, IBV_WC_LOC_LEN_ERR);
    message->total = (uint32_t)dst.total;
    if (!to->qp->attr.max_dest_rd_atomic)
        return refuse(qp, to->qp, status, IBV_WC_REM_INV_REQ_ERR);
    if (!resolve_remote(to, message->wqe, message->total, IBV_ACCESS_REMOTE_READ, &src))
        return refuse(qp, to->qp, status, IBV_WC_REM_ACCESS_ERR);

    if (!advance(qp, &dst, &src, budget, to->qp, qp))
        return refuse(qp, to->qp, status, IBV_WC_REM_OP_ERR);
    if (message->moved < message->total)
        return PROGRESS_MORE;
    qp->counters->reads++;
    qp->tenant->counters->reads++;
    return PROGRESS_DONE;
}

/* The same of a word in a process: atomic against other atomics, as IBV_ATOMIC_HCA says, not against its CPUs. */
static enum progress perform_by_thread(struct qp *qp, const struct responder *to, const struct span *target,
                                       uint32_t *status)
{
    if (target->address & 7)
        return refuse(qp, to->qp, status, IBV_WC_REM_INV_REQ_ERR);
    switch (relay_atomic(qp, target)) {
    case RELAYED_DONE:
        qp->message.performed = true;
        return PROGRESS_DONE;
    case RELAYED_LATER:
        return PROGRESS_MORE;
    default:
        return refuse(qp, to->qp, status, IBV_WC_REM_OP_ERR);
    }
}

/* The atomic itself, of the word behind the key. PROGRESS_DONE: message.original is what was there. */
static enum progress perform_atomic(struct qp *qp, const struct responder *to, uint32_t *status)
{
    struct message *message = &qp->message;
    const struct sluice_wqe *wqe = message->wqe;
    struct spans target;
    uint64_t original;

    if ((wqe->remote_addr & 7) || !to->qp->attr.max_dest_rd_atomic)
        return refuse(qp, to->qp, status, IBV_WC_REM_INV_REQ_ERR);
    if (!resolve_remote(to, wqe, sizeof(original), IBV_ACCESS_REMOTE_ATOMIC, &target))
        return refuse(qp, to->qp, status, IBV_WC_REM_ACCESS_ERR);
    if (__builtin_expect(target.by_process, 0))
        return perform_by_thread(qp, to, &target.list[0], status);
    uint32_t length;
    uint64_t *word = (uint64_t *)span_at(&target.list[0], 0, &length);

    /* An MR whose iova is not aligned like its memory: the word itself must be. */
    if (!word || ((uintptr_t)word & 7))
        return refuse(qp, to->qp, status, word ? IBV_WC_REM_INV_REQ_ERR : IBV_WC_REM_OP_ERR);

    /* The responder's CPUs may use the same word: a real atomic, not a copy. */
    if (wqe->opcode == IBV_WR_ATOMIC_FETCH_AND_ADD) {
        original = __atomic_fetch_add(word, message->atomic->compare_add, __ATOMIC_SEQ_CST);
    } else {
        original = message->atomic->compare_add;
        __atomic_compare_exchange_n(word, &original, message->atomic->swap, false, __ATOMIC_SEQ_CST,
                                    __ATOMIC_SEQ_CST);
    }
    message->original = original;
    message->performed = true;
    return PROGRESS_DONE;
}

static enum progress send_atomic(struct qp *qp, const struct responder *to, uint32_t *status)
{
    struct message *message = &qp->message;
    struct spans dst, src = {.count = 0};

    if (!resolve_local(qp, IBV_ACCESS_LOCAL_WRITE, &dst))
        return local_error(status, IBV_WC_LOC_PROT_ERR);
    if (dst.total != sizeof(message->original))
        return local_error(status, IBV_WC_LOC_LEN_ERR);
    message->total = sizeof(message->original);
    if (!message->performed) {
        enum progress performed = perform_atomic(qp, to, status);

        if (performed != PROGRESS_DONE)
            return performed;
    }
    spans_add_host(&src, &message->original, sizeof(message->original));
    if (!move(qp, &dst, &src, sizeof(message->original)))
        return refuse(qp, to->qp, status, IBV_WC_REM_OP_ERR);
    if (message->moved < message->total)
        return PROGRESS_MORE;
    qp->counters->atomics++;
    qp->tenant->counters->atomics++;
    return PROGRESS_DONE;
}

static enum progress local_send(struct qp *qp, uint32_t budget, uint32_t *status)
{
    uint8_t opcode = qp->message.wqe->opcode;

    if (opcode == IBV_WR_BIND_MW || opcode == IBV_WR_LOCAL_INV)
        return mw_send(qp, status);
    struct qp *peer = find_peer(qp);
    struct responder to = {.qp = peer};

    if (peer) {
        to.srq = peer->srq;
        to.pd = peer->pd;
        if (__builtin_expect(peer->state == IBV_QPS_RTR, 0))
            qp_establish(peer);
        if (qp->type == IBV_QPT_XRC_SEND && !xrc_responder(peer, qp->message.wqe->remote_srqn, qp->message.wqe->rkey,
                                                           takes_receive(opcode), &to.srq, &to.pd))
            return refuse(qp, peer, status, IBV_WC_REM_INV_REQ_ERR);
    } else if (!qp_is_unreliable(qp)) {
        return PROGRESS_NO_PEER;
    }
    switch (opcode) {
    case IBV_WR_RDMA_WRITE:
    case IBV_WR_RDMA_WRITE_WITH_IMM:
        return send_write(qp, &to, budget, status);
    case IBV_WR_SEND:
    case IBV_WR_SEND_WITH_IMM:
    case IBV_WR_SEND_WITH_INV:
        return send_send(qp, &to, budget, status);
    case IBV_WR_RDMA_READ:
        return send_read(qp, &to, budget, status);
    case IBV_WR_ATOMIC_CMP_AND_SWP:
    case IBV_WR_ATOMIC_FETCH_AND_ADD:
        return send_atomic(qp, &to, status);
    default:
        return local_error(status, IBV_WC_LOC_QP_OP_ERR);
    }
}

const struct transport transport_local = {
    .name = "local",
    .send = local_send,
    .send_datagram = local_send_datagram,
    .connect = local_connect,
    .disconnect = local_disconnect,
    .receive_posted = local_receive_posted,
};
