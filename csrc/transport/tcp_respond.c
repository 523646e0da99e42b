/* SPDX-License-Identifier: Apache-2.0 */
/* The responder of the tcp transport: requests are checked and executed in their order. */
#include <infiniband/verbs.h>

#include "../mw.h"
#include "../srq.h"
#include "../xrc.h"
#include "tcp.h"

static bool takes_receive(uint8_t kind)
{
    return kind == TCP_WRITE_IMM || kind == TCP_SEND || kind == TCP_SEND_IMM || kind == TCP_SEND_INV;
}

static bool is_atomic(uint8_t kind)
{
    return kind == TCP_COMPARE_SWAP || kind == TCP_FETCH_ADD;
}

/* Where the request at hand takes receives and checks keys. False: there is no such SRQ. */
static bool find_responder(const struct tcp_endpoint *endpoint, struct srq **srq, struct pd **pd)
{
    const struct qp *qp = endpoint->qp;
    const struct tcp_frame *frame = &endpoint->frame;

    *srq = qp->srq;
    *pd = qp->pd;
    return !qp->xrcd || xrc_responder(qp, frame->srqn, frame->rkey, takes_receive(frame->kind), srq, pd);
}

/* Nobody hears of a failure on an unreliable connection: the message is lost. */
static void discard(struct tcp_endpoint *endpoint)
{
    endpoint->receiving = TCP_DISCARD;
    endpoint->lost_msn = endpoint->frame.msn;
    endpoint->losing = true;
}

static bool queue_answer(struct tcp_endpoint *endpoint, struct tcp_answer answer)
{
    uint32_t room = answer.kind == TCP_NAK ? TCP_ANSWERS + 1 : TCP_ANSWERS;

    if (endpoint->answers_count >= room)
        return false;
    endpoint->answers[(endpoint->answers_head + endpoint->answers_count++) % (TCP_ANSWERS + 1)] = answer;
    return true;
}

void tcp_refuse(struct tcp_endpoint *endpoint, uint32_t status, uint32_t event)
{
    if (qp_is_unreliable(endpoint->qp)) {
        discard(endpoint);
        return;
    }
    /* All before it is answered first; nothing behind it is looked at. */
    queue_answer(endpoint, (struct tcp_answer){.kind = TCP_NAK, .msn = endpoint->frame.msn, .value = status});
    endpoint->failed = true;
    endpoint->event = event;
    endpoint->receiving = TCP_DISCARD;
    endpoint->left = UINT32_MAX;
}

static void refuse_access(struct tcp_endpoint *endpoint, uint32_t status)
{
    tcp_refuse(endpoint, status,
               status == IBV_WC_REM_INV_REQ_ERR ? IBV_EVENT_QP_REQ_ERR : IBV_EVENT_QP_ACCESS_ERR);
}

/* The receive at hand can't take the message: the responder's own error, without an event. */
static void spoil(struct tcp_endpoint *endpoint, uint32_t receive_status, uint32_t requester_status)
{
    struct qp *qp = endpoint->qp;

    qp_complete_receive(qp, receive_status, IBV_WC_RECV, 0, 0, 0, false);
    if (endpoint->dead)
        return;
    if (qp_is_unreliable(qp))
        qp_error(qp);
    else
        tcp_refuse(endpoint, requester_status, 0);
}

void tcp_no_memory(struct tcp_endpoint *endpoint)
{
    if (endpoint->receiving != TCP_PAYLOAD)
        return;
    if (endpoint->frame.kind == TCP_READ_ANSWER)
        tcp_fail(endpoint, IBV_WC_LOC_PROT_ERR);
    else if (endpoint->frame.kind == TCP_WRITE || endpoint->frame.kind == TCP_WRITE_IMM)
        refuse_access(endpoint, IBV_WC_REM_OP_ERR);
    else
        spoil(endpoint, IBV_WC_LOC_PROT_ERR, IBV_WC_REM_OP_ERR);
}

static bool remote(struct tcp_endpoint *endpoint, uint32_t access, struct spans *spans)
{
    struct qp *qp = endpoint->qp;
    const struct tcp_frame *frame = &endpoint->frame;
    struct srq *srq;
    struct pd *pd;

    return (qp->attr.qp_access_flags & access) && find_responder(endpoint, &srq, &pd) && (pd || !frame->total) &&
           spans_set_remote(spans, qp, pd, frame->rkey, frame->addr, frame->total, access);
}

bool tcp_readable(struct tcp_endpoint *endpoint, uint16_t srqn, uint32_t rkey, uint64_t addr, uint32_t total,
                  struct spans *spans)
{
    struct qp *qp = endpoint->qp;
    struct pd *pd = qp->pd;
    struct srq *srq;

    return (qp->attr.qp_access_flags & IBV_ACCESS_REMOTE_READ) &&
           (!qp->xrcd || xrc_responder(qp, srqn, rkey, false, &srq, &pd)) && (pd || !total) &&
           spans_set_remote(spans, qp, pd, rkey, addr, total, IBV_ACCESS_REMOTE_READ);
}

bool tcp_place(struct tcp_endpoint *endpoint, struct spans *spans)
{
    struct qp *qp = endpoint->qp;
    const struct receive *receive = &qp->receive;

    if (endpoint->frame.kind == TCP_WRITE || endpoint->frame.kind == TCP_WRITE_IMM) {
        if (remote(endpoint, IBV_ACCESS_REMOTE_WRITE, spans))
            return true;
        refuse_access(endpoint, IBV_WC_REM_ACCESS_ERR);
        return false;
    }
    spans_clear(spans);
    if (!receive->active)
        return false;
    if (!spans_add_sges(spans, receive->pd, receive->sges, receive->num_sge, IBV_ACCESS_LOCAL_WRITE)) {
        spoil(endpoint, IBV_WC_LOC_PROT_ERR, IBV_WC_REM_OP_ERR);
        return false;
    }
    if (spans->total < endpoint->frame.total) {
        /* Unreliable: the message is lost, the receive is there for the next one (IBTA 9.8.3.3, class D). */
        if (qp_is_unreliable(qp))
            discard(endpoint);
        else
            spoil(endpoint, IBV_WC_LOC_LEN_ERR, IBV_WC_REM_INV_REQ_ERR);
        return false;
    }
    return true;
}

/* ---- begin ----------------------------------------------------------------- */

/* Waits for a receive, and reads nothing meanwhile. */
static void hold(struct tcp_endpoint *endpoint, struct srq *srq)
{
    endpoint->receiving = TCP_HOLD;
    endpoint->rnr_due = true;
    if (srq)
        list_append(&srq->held, &endpoint->held);
}

/* A message that was executed before a connection broke. */
static bool begin_again(struct tcp_endpoint *endpoint)
{
    const struct tcp_frame *frame = &endpoint->frame;

    if (frame->kind == TCP_READ || is_atomic(frame->kind))
        return true;
    endpoint->receiving = TCP_DISCARD;
    return true;
}

static bool begin_message(struct tcp_endpoint *endpoint)
{
    struct qp *qp = endpoint->qp;
    const struct tcp_frame *frame = &endpoint->frame;
    struct spans spans;
    struct srq *srq;
    struct pd *pd;

    if (!find_responder(endpoint, &srq, &pd)) {
        refuse_access(endpoint, IBV_WC_REM_INV_REQ_ERR);
        return true;
    }
    if (frame->kind == TCP_WRITE || frame->kind == TCP_WRITE_IMM) {
        if (!remote(endpoint, IBV_ACCESS_REMOTE_WRITE, &spans)) {
            refuse_access(endpoint, IBV_WC_REM_ACCESS_ERR);
            return true;
        }
    }
    /* Begun by a message that was broken off, for another SRQ than this one's. */
    if (takes_receive(frame->kind) && qp->receive.active && qp->receive.srq != srq) {
        qp_complete_receive(qp, IBV_WC_WR_FLUSH_ERR, IBV_WC_RECV, 0, 0, 0, false);
        if (endpoint->dead)
            return false;
    }
    if (takes_receive(frame->kind) && !qp->receive.active) {
        if (frame->offset)
            return false;
        if (!qp_take_receive(qp, srq, !qp_is_unreliable(qp))) {
            if (endpoint->dead)
                return false;
            if (qp_is_unreliable(qp))
                discard(endpoint);
            else
                hold(endpoint, srq);
            return true;
        }
    }
    if (takes_receive(frame->kind) && frame->kind != TCP_WRITE_IMM)
        return tcp_place(endpoint, &spans) || (!endpoint->dead && endpoint->receiving != TCP_PAYLOAD);
    return true;
}

bool tcp_begin_request(struct tcp_endpoint *endpoint)
{
    struct qp *qp = endpoint->qp;
    const struct tcp_frame *frame = &endpoint->frame;

    if (!qp_can_respond(qp) || qp->type == IBV_QPT_XRC_SEND)
        return false;
    if (qp->state == IBV_QPS_RTR)
        qp_establish(qp);
    if ((int32_t)(frame->msn - endpoint->expected) < 0)
        return begin_again(endpoint);
    if (endpoint->losing) {
        if (endpoint->lost_msn == frame->msn) {
            endpoint->receiving = TCP_DISCARD;
            return true;
        }
        endpoint->losing = false;
    }
    if (frame->kind == TCP_READ || is_atomic(frame->kind))
        return true;
    return begin_message(endpoint);
}

bool tcp_continue_request(struct tcp_endpoint *endpoint)
{
    list_remove(&endpoint->held);
    endpoint->receiving = TCP_PAYLOAD;
    /* Once is enough to have said it. */
    bool due = endpoint->rnr_due;

    if (!begin_message(endpoint))
        return false;
    if (endpoint->receiving == TCP_HOLD) {
        endpoint->rnr_due = due;
        return true;
    }
    endpoint->rnr_due = false;
    endpoint->acknowledge |= !due;
    if (endpoint->receiving == TCP_PAYLOAD && endpoint->left == 0) {
        endpoint->receiving = TCP_HEADER;
        return tcp_end_request(endpoint);
    }
    return true;
}

/* ---- end ------------------------------------------------------------------- */

static void executed(struct tcp_endpoint *endpoint)
{
    if ((int32_t)(endpoint->frame.msn + 1 - endpoint->expected) > 0)
        endpoint->expected = endpoint->frame.msn + 1;
    /* The one before had no answer either. */
    if (endpoint->unanswered)
        endpoint->prompt = 0;
    endpoint->unanswered = true;
    endpoint->executed = endpoint->qp->session->engine->now;
    endpoint->qp->session->engine->delivered = true;
    /* Nobody waits to hear of it. */
    if (qp_is_unreliable(endpoint->qp))
        endpoint->told = endpoint->expected;
}

static void count_received(struct tcp_endpoint *endpoint)
{
    struct qp *qp = endpoint->qp;
    const struct tcp_frame *frame = &endpoint->frame;

    qp->counters->rx_bytes += frame->length;
    qp->tenant->counters->rx_bytes += frame->length;
    if (frame->offset + frame->length < frame->total)
        return;
    qp->counters->rx_messages++;
    qp->tenant->counters->rx_messages++;
}

static bool end_read(struct tcp_endpoint *endpoint)
{
    const struct tcp_frame *frame = &endpoint->frame;
    struct spans spans;

    if (frame->part > frame->total - frame->offset)
        return false;
    if (!endpoint->qp->attr.max_dest_rd_atomic)
        refuse_access(endpoint, IBV_WC_REM_INV_REQ_ERR);
    else if (!tcp_readable(endpoint, frame->srqn, frame->rkey, frame->addr, frame->total, &spans))
        refuse_access(endpoint, IBV_WC_REM_ACCESS_ERR);
    if (endpoint->receiving != TCP_HEADER)
        return true;
    if (frame->offset + frame->part == frame->total)
        executed(endpoint);
    return queue_answer(endpoint, (struct tcp_answer){.kind = TCP_READ_ANSWER,
                                                      .msn = frame->msn,
                                                      .total = frame->total,
                                                      .offset = frame->offset,
                                                      .end = frame->offset + frame->part,
                                                      .srqn = frame->srqn,
                                                      .rkey = frame->rkey,
                                                      .addr = frame->addr});
}

static bool replayed(const struct tcp_endpoint *endpoint, uint32_t msn, uint64_t *value)
{
    for (uint32_t i = 1; i <= TCP_ANSWERS && i <= endpoint->replay_count; i++) {
        uint32_t place = (endpoint->replay_count - i) % TCP_ANSWERS;

        if (endpoint->replay[place].msn == msn) {
            *value = endpoint->replay[place].value;
            return true;
        }
    }
    return false;
}

static void remember(struct tcp_endpoint *endpoint, uint64_t value)
{
    endpoint->replay[endpoint->replay_count % TCP_ANSWERS].msn = endpoint->frame.msn;
    endpoint->replay[endpoint->replay_count++ % TCP_ANSWERS].value = value;
}

/* Executes it, or refuses, or has a thread do it. */
static bool execute_atomic(struct tcp_endpoint *endpoint, uint64_t *value)
{
    const struct tcp_frame *frame = &endpoint->frame;
    struct spans spans;
    uint32_t length;

    if ((frame->addr & 7) || frame->total != sizeof(*value) || !endpoint->qp->attr.max_dest_rd_atomic) {
        refuse_access(endpoint, IBV_WC_REM_INV_REQ_ERR);
        return false;
    }
    if (!remote(endpoint, IBV_ACCESS_REMOTE_ATOMIC, &spans)) {
        refuse_access(endpoint, IBV_WC_REM_ACCESS_ERR);
        return false;
    }
    if (__builtin_expect(spans.by_process, 0)) {
        /* Atomic against other atomics, as IBV_ATOMIC_HCA says, not against the process's CPUs. */
        if (spans.list[0].address & 7)
            refuse_access(endpoint, IBV_WC_REM_INV_REQ_ERR);
        else if (!tcp_start_atomic(endpoint, &spans.list[0]))
            refuse_access(endpoint, IBV_WC_REM_OP_ERR);
        return false;
    }
    uint64_t *word = (uint64_t *)span_at(&spans.list[0], 0, &length);

    /* An MR whose iova is not aligned like its memory: the word itself must be. */
    if (!word || ((uintptr_t)word & 7)) {
        refuse_access(endpoint, word ? IBV_WC_REM_INV_REQ_ERR : IBV_WC_REM_OP_ERR);
        return false;
    }
    if (frame->kind == TCP_FETCH_ADD) {
        *value = __atomic_fetch_add(word, endpoint->operands[0], __ATOMIC_SEQ_CST);
    } else {
        *value = endpoint->operands[0];
        __atomic_compare_exchange_n(word, value, endpoint->operands[1], false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
    }
    if (window_fault) {
        windows_repair();
        refuse_access(endpoint, IBV_WC_REM_OP_ERR);
        return false;
    }
    remember(endpoint, *value);
    return true;
}

static bool answer_atomic(struct tcp_endpoint *endpoint, uint64_t value)
{
    executed(endpoint);
    return queue_answer(endpoint, (struct tcp_answer){.kind = TCP_ATOMIC_ANSWER,
                                                      .msn = endpoint->frame.msn,
                                                      .total = sizeof(value),
                                                      .value = value});
}

bool tcp_atomic_performed(struct tcp_endpoint *endpoint, bool failed, uint64_t original)
{
    if (failed) {
        refuse_access(endpoint, IBV_WC_REM_OP_ERR);
        return true;
    }
    endpoint->receiving = TCP_HEADER;
    remember(endpoint, original);
    return answer_atomic(endpoint, original);
}

static bool end_atomic(struct tcp_endpoint *endpoint)
{
    const struct tcp_frame *frame = &endpoint->frame;
    bool again = (int32_t)(frame->msn - endpoint->expected) < 0;
    uint64_t value;

    if (frame->length != sizeof(endpoint->operands))
        return false;
    if (again) {
        if (!replayed(endpoint, frame->msn, &value))
            return false;
    } else if (!execute_atomic(endpoint, &value)) {
        return true;
    }
    return answer_atomic(endpoint, value);
}

static bool end_receive(struct tcp_endpoint *endpoint)
{
    struct qp *qp = endpoint->qp;
    const struct tcp_frame *frame = &endpoint->frame;
    uint32_t opcode = frame->kind == TCP_WRITE_IMM ? IBV_WC_RECV_RDMA_WITH_IMM : IBV_WC_RECV;
    uint32_t wc_flags = frame->kind == TCP_SEND ? 0 : IBV_WC_WITH_IMM;

    if (!qp->receive.active)
        return false;
    if (frame->kind == TCP_SEND_INV) {
        wc_flags = IBV_WC_WITH_INV;
        if (!mw_invalidate(qp, frame->imm)) {
            spoil(endpoint, IBV_WC_REM_INV_REQ_ERR, IBV_WC_REM_ACCESS_ERR);
            return !endpoint->dead;
        }
    }
    executed(endpoint);
    qp_complete_receive(qp, IBV_WC_SUCCESS, opcode, frame->total, wc_flags, wc_flags ? frame->imm : 0,
                        frame->flags & TCP_SOLICITED);
    return !endpoint->dead;
}

bool tcp_end_request(struct tcp_endpoint *endpoint)
{
    const struct tcp_frame *frame = &endpoint->frame;

    if (frame->kind == TCP_READ)
        return end_read(endpoint);
    if (is_atomic(frame->kind))
        return end_atomic(endpoint);
    count_received(endpoint);
    if (frame->offset + frame->length < frame->total)
        return true;
    if (takes_receive(frame->kind))
        return end_receive(endpoint);
    executed(endpoint);
    return true;
}
