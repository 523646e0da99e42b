/* SPDX-License-Identifier: Apache-2.0 */
/* The requester of the tcp transport: what its peer says, and what completes by it. */
#include <infiniband/verbs.h>

#include "tcp.h"

/* ---- completing ------------------------------------------------------------- */

/* The oldest WQE that isn't completed: what the shim wrote there, for what it is worth. */
static uint8_t oldest_opcode(const struct qp *qp)
{
    return ((const struct sluice_wqe *)queue_slot_at(&qp->sq, qp->completed))->opcode;
}

static void complete(struct tcp_endpoint *endpoint, uint32_t byte_len)
{
    struct qp *qp = endpoint->qp;

    endpoint->rnr = false;
    if (qp->completed == qp->sq.head) /* the message that is being sent: answered before sending was told */
        endpoint->whole = false;
    qp_complete_oldest(qp, IBV_WC_SUCCESS, byte_len);
}

void tcp_acknowledge(struct tcp_endpoint *endpoint, uint32_t msn)
{
    struct qp *qp = endpoint->qp;

    if ((int32_t)(msn - endpoint->acknowledged) > 0)
        endpoint->acknowledged = msn;
    while (!endpoint->dead && qp->completed != qp->sq.head &&
           (int32_t)(endpoint->acknowledged - (qp->completed - endpoint->base)) > 0 &&
           !tcp_wants_answer(oldest_opcode(qp)))
        complete(endpoint, 0);
}

void tcp_fail(struct tcp_endpoint *endpoint, uint32_t status)
{
    struct qp *qp = endpoint->qp;

    qp_complete_oldest(qp, status, 0);
    qp_error(qp);
}

/* ---- answers that came ------------------------------------------------------- */

/* Copies the WQE that an answer belongs to. False: none waits for this one. */
static bool take_answered(struct tcp_endpoint *endpoint, struct message *message, uint8_t kind)
{
    struct qp *qp = endpoint->qp;
    uint32_t index = endpoint->base + endpoint->frame.msn;

    tcp_acknowledge(endpoint, endpoint->frame.msn);
    if (endpoint->dead || qp->completed != index || (index == qp->sq.head && !qp->message.active) ||
        !qp_copy_message(qp, index, message))
        return false;
    return (kind == TCP_READ_ANSWER) == (message->wqe->opcode == IBV_WR_RDMA_READ) &&
           tcp_wants_answer(message->wqe->opcode);
}

/* Where the payload of an answer belongs. */
static bool place_answer(struct tcp_endpoint *endpoint, struct spans *spans, struct message *message)
{
    struct qp *qp = endpoint->qp;

    if (!take_answered(endpoint, message, endpoint->frame.kind))
        return false;
    spans_clear(spans);
    if (!spans_add_sges(spans, qp->pd, message->sges, message->wqe->num_sge, IBV_ACCESS_LOCAL_WRITE) ||
        spans->total < (uint64_t)endpoint->frame.offset + endpoint->frame.length) {
        tcp_fail(endpoint, IBV_WC_LOC_PROT_ERR);
        return false;
    }
    return true;
}

static bool begin_read_answer(struct tcp_endpoint *endpoint)
{
    const struct tcp_frame *frame = &endpoint->frame;
    struct message message;

    if (!take_answered(endpoint, &message, frame->kind))
        return false;
    return frame->offset == endpoint->answer_offset;
}

bool tcp_end_answer(struct tcp_endpoint *endpoint)
{
    struct qp *qp = endpoint->qp;
    const struct tcp_frame *frame = &endpoint->frame;

    if (frame->kind == TCP_READ_ANSWER) {
        endpoint->answer_offset = frame->offset + frame->length;
        qp->counters->rx_bytes += frame->length;
        qp->tenant->counters->rx_bytes += frame->length;
        if (endpoint->parts && (frame->flags & TCP_LAST))
            endpoint->parts--;
        if (endpoint->answer_offset < frame->total)
            return true;
        qp->counters->reads++;
        qp->tenant->counters->reads++;
    } else {
        struct message message;
        struct spans spans;

        if (!place_answer(endpoint, &spans, &message))
            return false;
        /* In a process it was stored as it came. */
        if (!spans.by_process && !spans_put(&spans, 0, &endpoint->operands[0], sizeof(uint64_t))) {
            tcp_fail(endpoint, IBV_WC_LOC_PROT_ERR);
            return false;
        }
        qp->counters->atomics++;
        qp->tenant->counters->atomics++;
        if (endpoint->parts)
            endpoint->parts--;
    }
    endpoint->answer_offset = 0;
    if (endpoint->answered)
        endpoint->answered--;
    complete(endpoint, frame->total);
    if (!endpoint->dead)
        tcp_acknowledge(endpoint, endpoint->acknowledged);
    return !endpoint->dead;
}

static bool on_hello(struct tcp_endpoint *endpoint)
{
    struct qp *qp = endpoint->qp;
    const struct tcp_frame *frame = &endpoint->frame;

    /* It has executed all that it said it has, and nothing that we never sent. What it never saw counts not: local
     * operations, and unreliable messages. */
    if (endpoint->greeted || !qp_types_fit(qp->type, frame->imm) || frame->total != SLUICE_TCP_VERSION || (int32_t)(frame->msn - endpoint->known) < 0 ||
        (int32_t)(frame->msn - endpoint->most) > 0)
        return false;
    endpoint->greeted = true;
    tcp_heard(endpoint);
    endpoint->known = frame->msn;
    /* Acknowledged when it is passed again: the queue's head was put back. */
    endpoint->acknowledged = frame->msn;
    return true;
}

/* Something was asked for: only then may the peer say that it failed, or must wait. */
static bool is_outstanding(const struct qp *qp)
{
    return qp->completed != qp->sq.head || qp->message.active;
}

static bool on_rnr(struct tcp_endpoint *endpoint)
{
    struct qp *qp = endpoint->qp;

    tcp_acknowledge(endpoint, endpoint->frame.msn);
    if (endpoint->dead || endpoint->rnr)
        return !endpoint->dead;
    if (!is_outstanding(qp))
        return false;
    qp->tenant->counters->rnr_naks++;
    endpoint->rnr = true;
    endpoint->rnr_until = UINT64_MAX;
    if (qp->attr.rnr_retry == 7)
        return true;
    if (qp->attr.rnr_retry == 0) {
        tcp_fail(endpoint, IBV_WC_RNR_RETRY_EXC_ERR);
        return false;
    }
    struct sluice_engine *engine = qp->session->engine;

    endpoint->rnr_until = engine->now + qp->attr.rnr_retry * qp_rnr_ns(endpoint->frame.imm);
    tcp_watch(endpoint);
    if (endpoint->timer.when > endpoint->rnr_until)
        timer_set(&engine->timers, &endpoint->timer, endpoint->rnr_until);
    return true;
}

static bool on_nak(struct tcp_endpoint *endpoint)
{
    const struct tcp_frame *frame = &endpoint->frame;

    tcp_acknowledge(endpoint, frame->msn);
    if (endpoint->dead || frame->imm == IBV_WC_SUCCESS || frame->imm > IBV_WC_GENERAL_ERR ||
        endpoint->qp->completed != endpoint->base + frame->msn || !is_outstanding(endpoint->qp))
        return false;
    tcp_fail(endpoint, frame->imm);
    return false;
}

bool tcp_begin_answer(struct tcp_endpoint *endpoint)
{
    /* Of an XRC_RECV QP nobody has anything to answer. */
    if (!endpoint->qp->sq.entries && endpoint->frame.kind != TCP_HELLO && endpoint->frame.kind != TCP_ACK)
        return false;
    switch (endpoint->frame.kind) {
    case TCP_HELLO:
        return on_hello(endpoint);
    case TCP_ACK:
        endpoint->rnr = false;
        tcp_acknowledge(endpoint, endpoint->frame.msn);
        return !endpoint->dead;
    case TCP_RNR:
        return on_rnr(endpoint);
    case TCP_NAK:
        return on_nak(endpoint);
    case TCP_READ_ANSWER:
        return begin_read_answer(endpoint);
    default: /* TCP_ATOMIC_ANSWER */
        return endpoint->frame.length == sizeof(uint64_t);
    }
}

bool tcp_place_answer(struct tcp_endpoint *endpoint, struct spans *spans)
{
    struct message message;

    return place_answer(endpoint, spans, &message);
}
