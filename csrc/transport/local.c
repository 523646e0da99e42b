/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Both ends of the connection live on this node: the worker copies once, from
 * the one application's memory into the other's. What a wire would do with
 * packets and acknowledgements happens here in one call, so a completion means:
 * placed, and visible.
 */
#include <infiniband/verbs.h>
#include <string.h>

#include "../atomic.h"
#include "../copy.h"
#include "../mw.h"
#include "../worker.h"
#include "transport.h"

/* A piece of memory that was checked: an address in what an MR lies in, or the WQE's own bytes. */
struct span {
    struct memory *memory; /* NULL: host */
    uint64_t address;
    uint8_t *host;
    uint32_t length;
};

struct spans {
    uint32_t count;
    uint64_t total;
    struct span list[SLUICE_MAX_SGE];
};

/* Resolves a scatter/gather list of a QP's own memory. False: a key or a range doesn't fit. */
static bool resolve_sges(struct qp *qp, const struct sluice_sge *sges, uint32_t num_sge, uint32_t access,
                         struct spans *spans)
{
    spans->count = 0;
    spans->total = 0;
    for (uint32_t i = 0; i < num_sge; i++) {
        if (sges[i].length == 0)
            continue;
        const struct mr *mr =
            mr_find(qp->session->engine, sges[i].lkey, qp->pd, sges[i].addr, sges[i].length,
                    access | MR_LOCAL);

        if (!mr)
            return false;
        spans->list[spans->count++] = (struct span){
            .memory = mr->memory, .address = sges[i].addr + mr->offset, .length = sges[i].length};
        spans->total += sges[i].length;
    }
    return true;
}

/* Resolves what the requester named of the responder's memory. A length of 0 needs no key (IBTA 9.7.5.1.4). */
static bool resolve_remote(struct qp *peer, const struct sluice_wqe *wqe, uint32_t length, uint32_t access,
                           struct spans *spans)
{
    spans->count = 0;
    spans->total = length;
    if (!(peer->attr.qp_access_flags & access))
        return false;
    if (length == 0)
        return true;
    const struct mr *mr = mr_find(peer->session->engine, wqe->rkey, peer->pd, wqe->remote_addr, length, access);

    if (!mr || (mr->qp && mr->qp != peer))
        return false;
    spans->list[spans->count++] = (struct span){
        .memory = mr->memory, .address = wqe->remote_addr + mr->offset, .length = length};
    return true;
}

/* Where the next byte lies and how many follow it there. NULL: the engine can't see it. */
static uint8_t *span_at(const struct span *span, uint32_t offset, uint32_t *length)
{
    *length = span->length - offset;
    if (!span->memory)
        return span->host + offset;
    uint64_t address = span->address + offset;
    uint64_t to_window_end = WINDOW_SIZE - (address & (WINDOW_SIZE - 1));

    if (*length > to_window_end)
        *length = (uint32_t)to_window_end;
    return arena_at(&span->memory->view, address);
}

/*
 * Copies bytes [offset, end) of both lists, piece by piece; ends early, after a
 * piece, where the worker is called. Returns where it ended, or end + 1 where
 * memory could not be had.
 */
static uint32_t copy_spans(const struct sluice_engine *engine, const struct spans *dst, const struct spans *src,
                           uint32_t offset, uint32_t end)
{
    uint32_t to = 0, from = 0, to_offset = offset, from_offset = offset, look = offset + WORK_PIECE;

    while (offset < end) {
        while (to_offset >= dst->list[to].length)
            to_offset -= dst->list[to++].length;
        while (from_offset >= src->list[from].length)
            from_offset -= src->list[from++].length;
        uint32_t length, from_length;
        uint8_t *target = span_at(&dst->list[to], to_offset, &length);
        const uint8_t *source = span_at(&src->list[from], from_offset, &from_length);

        if (!target || !source)
            return end + 1;
        if (length > end - offset)
            length = end - offset;
        if (length > from_length)
            length = from_length;
        if (length > WORK_PIECE)
            length = WORK_PIECE;
        copy_ordered(target, source, length);
        offset += length;
        to_offset += length;
        from_offset += length;
        if (offset >= look && offset < end) {
            if (worker_called(engine))
                break;
            look = offset + WORK_PIECE;
        }
    }
    if (__builtin_expect(window_fault, 0)) {
        windows_repair();
        return end + 1;
    }
    return offset;
}

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
        peer->attr.dest_qp_num != qp->qp_num || (int32_t)peer->tenant->number != qp->peer_tenant ||
        (int32_t)qp->tenant->number != peer->peer_tenant)
        return NULL;
    qp->peer = peer;
    return peer;
}

static void local_connect(struct qp *qp)
{
    struct qp *other = qp_lookup(qp->session->engine, qp->attr.dest_qp_num);

    if (other && other->wait == QP_WAIT_PEER && other->attr.dest_qp_num == qp->qp_num)
        qp_activate(other);
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

/* ---- messages ---------------------------------------------------------- */

/* The responder refuses: its QP breaks with an event, and nothing was written. */
static enum progress refuse(struct qp *qp, struct qp *peer, uint32_t *status, uint32_t requester_status)
{
    uint32_t event = requester_status == IBV_WC_REM_INV_REQ_ERR ? IBV_EVENT_QP_REQ_ERR : IBV_EVENT_QP_ACCESS_ERR;

    *status = requester_status;
    if (peer == qp) /* connected to itself: it breaks as the requester, after its completion */
        session_async_event(qp->session, event, qp->qp_num);
    else
        qp_fatal(peer, event);
    return PROGRESS_FAILED;
}

/* The receive at hand can't take the message: the responder's own error, without an event. */
static enum progress spoil(struct qp *qp, struct qp *peer, uint32_t receive_status, uint32_t *status,
                           uint32_t requester_status)
{
    *status = requester_status;
    qp_complete_receive(peer, receive_status, IBV_WC_RECV, 0, 0, 0, false);
    if (peer != qp)
        qp_error(peer);
    return PROGRESS_FAILED;
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

    if (message->wqe->flags & SLUICE_WQE_INLINE) {
        spans->count = message->wqe->inline_length ? 1 : 0;
        spans->total = message->wqe->inline_length;
        spans->list[0] = (struct span){.host = message->inline_data, .length = message->wqe->inline_length};
        return true;
    }
    return resolve_sges(qp, message->sges, message->wqe->num_sge, access, spans);
}

static void count_sent(struct qp *qp, struct qp *peer, uint32_t bytes)
{
    qp->counters->tx_bytes += bytes;
    qp->tenant->counters->tx_bytes += bytes;
    peer->counters->rx_bytes += bytes;
    peer->tenant->counters->rx_bytes += bytes;
}

/*
 * Moves the next bytes of a message that was resolved, and counts them for sender
 * and receiver. False: memory could not be had.
 */
static bool advance(struct message *message, const struct spans *dst, const struct spans *src, uint32_t budget,
                    struct qp *sender, struct qp *receiver)
{
    uint32_t before = message->moved, left = message->total - before;
    uint32_t end = before + (left < budget ? left : budget);
    uint32_t reached = copy_spans(sender->session->engine, dst, src, before, end);

    if (reached > end)
        return false;
    message->moved = reached;
    count_sent(sender, receiver, reached - before);
    return true;
}

/* A message that consumes a receive takes it before its first byte. False: none is posted. */
static bool begin_receive(struct message *message, struct qp *peer)
{
    if (peer->receive.active)
        return true;
    /* Also where the peer was reset and came back in the middle: then from the start. */
    message->moved = 0;
    return qp_take_receive(peer);
}

static void count_message(struct qp *qp, struct qp *peer)
{
    qp->counters->tx_messages++;
    qp->tenant->counters->tx_messages++;
    peer->counters->rx_messages++;
    peer->tenant->counters->rx_messages++;
}

static enum progress send_write(struct qp *qp, struct qp *peer, uint32_t budget, uint32_t *status)
{
    struct message *message = &qp->message;
    const struct sluice_wqe *wqe = message->wqe;
    bool immediate = wqe->opcode == IBV_WR_RDMA_WRITE_WITH_IMM;
    struct spans src, dst;

    if (!resolve_local(qp, 0, &src))
        return local_error(status, IBV_WC_LOC_PROT_ERR);
    if (src.total > 1u << 31)
        return local_error(status, IBV_WC_LOC_LEN_ERR);
    message->total = (uint32_t)src.total;
    if (!resolve_remote(peer, wqe, message->total, IBV_ACCESS_REMOTE_WRITE, &dst))
        return refuse(qp, peer, status, IBV_WC_REM_ACCESS_ERR);
    if (immediate && !begin_receive(message, peer))
        return peer->session->broken ? PROGRESS_NO_PEER : PROGRESS_NO_RECEIVE;

    if (!advance(message, &dst, &src, budget, qp, peer))
        return refuse(qp, peer, status, IBV_WC_REM_OP_ERR);
    if (message->moved < message->total)
        return PROGRESS_MORE;
    count_message(qp, peer);
    if (immediate)
        qp_complete_receive(peer, IBV_WC_SUCCESS, IBV_WC_RECV_RDMA_WITH_IMM, message->total, IBV_WC_WITH_IMM,
                            wqe->imm_data, wqe->flags & SLUICE_WQE_SOLICITED);
    return PROGRESS_DONE;
}

static enum progress send_send(struct qp *qp, struct qp *peer, uint32_t budget, uint32_t *status)
{
    struct message *message = &qp->message;
    const struct sluice_wqe *wqe = message->wqe;
    struct spans src, dst;

    if (!resolve_local(qp, 0, &src))
        return local_error(status, IBV_WC_LOC_PROT_ERR);
    if (src.total > 1u << 31)
        return local_error(status, IBV_WC_LOC_LEN_ERR);
    message->total = (uint32_t)src.total;
    if (!begin_receive(message, peer))
        return peer->session->broken ? PROGRESS_NO_PEER : PROGRESS_NO_RECEIVE;

    /* The receive's own faults end the responder's QP; the requester hears of an operation error. */
    if (!resolve_sges(peer, peer->receive.sges, peer->receive.num_sge, IBV_ACCESS_LOCAL_WRITE, &dst))
        return spoil(qp, peer, IBV_WC_LOC_PROT_ERR, status, IBV_WC_REM_OP_ERR);
    if (dst.total < src.total)
        return spoil(qp, peer, IBV_WC_LOC_LEN_ERR, status, IBV_WC_REM_INV_REQ_ERR);

    if (!advance(message, &dst, &src, budget, qp, peer))
        return spoil(qp, peer, IBV_WC_LOC_PROT_ERR, status, IBV_WC_REM_OP_ERR);
    if (message->moved < message->total)
        return PROGRESS_MORE;
    uint32_t wc_flags = 0;

    if (wqe->opcode == IBV_WR_SEND_WITH_IMM)
        wc_flags = IBV_WC_WITH_IMM;
    if (wqe->opcode == IBV_WR_SEND_WITH_INV) {
        /* IBTA 9.9.3, class J: the data is there, and yet the connection ends. */
        if (!mw_invalidate(peer, wqe->imm_data))
            return spoil(qp, peer, IBV_WC_REM_INV_REQ_ERR, status, IBV_WC_REM_ACCESS_ERR);
        wc_flags = IBV_WC_WITH_INV;
    }
    count_message(qp, peer);
    qp_complete_receive(peer, IBV_WC_SUCCESS, IBV_WC_RECV, message->total, wc_flags, wc_flags ? wqe->imm_data : 0,
                        wqe->flags & SLUICE_WQE_SOLICITED);
    return PROGRESS_DONE;
}

static enum progress send_read(struct qp *qp, struct qp *peer, uint32_t budget, uint32_t *status)
{
    struct message *message = &qp->message;
    struct spans src, dst;

    if (!resolve_local(qp, IBV_ACCESS_LOCAL_WRITE, &dst))
        return local_error(status, IBV_WC_LOC_PROT_ERR);
    if (dst.total > 1u << 31)
        return local_error(status, IBV_WC_LOC_LEN_ERR);
    message->total = (uint32_t)dst.total;
    if (!resolve_remote(peer, message->wqe, message->total, IBV_ACCESS_REMOTE_READ, &src))
        return refuse(qp, peer, status, IBV_WC_REM_ACCESS_ERR);

    if (!advance(message, &dst, &src, budget, peer, qp))
        return refuse(qp, peer, status, IBV_WC_REM_OP_ERR);
    if (message->moved < message->total)
        return PROGRESS_MORE;
    qp->counters->reads++;
    qp->tenant->counters->reads++;
    return PROGRESS_DONE;
}

static enum progress send_atomic(struct qp *qp, struct qp *peer, uint32_t *status)
{
    struct message *message = &qp->message;
    const struct sluice_wqe *wqe = message->wqe;
    struct spans dst, target;
    uint64_t original;

    if (!resolve_local(qp, IBV_ACCESS_LOCAL_WRITE, &dst))
        return local_error(status, IBV_WC_LOC_PROT_ERR);
    if (dst.total != sizeof(original))
        return local_error(status, IBV_WC_LOC_LEN_ERR);
    message->total = sizeof(original);
    if (wqe->remote_addr & 7)
        return refuse(qp, peer, status, IBV_WC_REM_INV_REQ_ERR);
    if (!resolve_remote(peer, wqe, sizeof(original), IBV_ACCESS_REMOTE_ATOMIC, &target))
        return refuse(qp, peer, status, IBV_WC_REM_ACCESS_ERR);
    uint32_t length;
    uint64_t *word = (uint64_t *)span_at(&target.list[0], 0, &length);

    /* An MR whose iova is not aligned like its memory: the word itself must be. */
    if (!word || ((uintptr_t)word & 7))
        return refuse(qp, peer, status, word ? IBV_WC_REM_INV_REQ_ERR : IBV_WC_REM_OP_ERR);

    /* The responder's CPUs may use the same word: a real atomic, not a copy. */
    if (wqe->opcode == IBV_WR_ATOMIC_FETCH_AND_ADD) {
        original = __atomic_fetch_add(word, message->atomic->compare_add, __ATOMIC_SEQ_CST);
    } else {
        original = message->atomic->compare_add;
        __atomic_compare_exchange_n(word, &original, message->atomic->swap, false, __ATOMIC_SEQ_CST,
                                    __ATOMIC_SEQ_CST);
    }
    struct spans src = {
        .count = 1,
        .total = sizeof(original),
        .list = {{.host = (uint8_t *)&original, .length = sizeof(original)}},
    };

    if (copy_spans(qp->session->engine, &dst, &src, 0, sizeof(original)) > sizeof(original))
        return refuse(qp, peer, status, IBV_WC_REM_OP_ERR);
    message->moved = sizeof(original);
    qp->counters->atomics++;
    qp->tenant->counters->atomics++;
    return PROGRESS_DONE;
}

static enum progress local_send(struct qp *qp, uint32_t budget, uint32_t *status)
{
    uint8_t opcode = qp->message.wqe->opcode;

    if (opcode == IBV_WR_BIND_MW || opcode == IBV_WR_LOCAL_INV) {
        *status = mw_execute(qp);
        return *status == IBV_WC_SUCCESS ? PROGRESS_DONE : PROGRESS_FAILED;
    }
    struct qp *peer = find_peer(qp);

    if (!peer)
        return PROGRESS_NO_PEER;
    switch (qp->message.wqe->opcode) {
    case IBV_WR_RDMA_WRITE:
    case IBV_WR_RDMA_WRITE_WITH_IMM:
        return send_write(qp, peer, budget, status);
    case IBV_WR_SEND:
    case IBV_WR_SEND_WITH_IMM:
    case IBV_WR_SEND_WITH_INV:
        return send_send(qp, peer, budget, status);
    case IBV_WR_RDMA_READ:
        return send_read(qp, peer, budget, status);
    case IBV_WR_ATOMIC_CMP_AND_SWP:
    case IBV_WR_ATOMIC_FETCH_AND_ADD:
        return send_atomic(qp, peer, status);
    default:
        return local_error(status, IBV_WC_LOC_QP_OP_ERR);
    }
}

const struct transport transport_local = {
    .name = "local",
    .send = local_send,
    .connect = local_connect,
    .disconnect = local_disconnect,
    .receive_posted = local_receive_posted,
};
