/* SPDX-License-Identifier: Apache-2.0 */
/* What a connection writes: the rest of a frame that the socket didn't take, and what the responder owes. */
#include <errno.h>
#include <infiniband/verbs.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>

#include "tcp.h"

enum { ZEROES = 4096, IOVS = 64 };

static const uint8_t zeroes[ZEROES];

/* Appends spans' bytes [offset, offset + length) as far as there is room. False: memory could not be had. */
static bool add_spans(struct iovec *iov, uint32_t *count, const struct spans *spans, uint32_t offset, uint32_t length)
{
    return spans_gather(spans, offset, length, iov, count, IOVS) != UINT32_MAX;
}

/* Bytes that the socket took; -2: memory could not be read. */
static int64_t write_some(struct tcp_endpoint *endpoint, struct iovec *iov, uint32_t count)
{
    struct msghdr header = {.msg_iov = iov, .msg_iovlen = count};
    ssize_t result = sendmsg(endpoint->socket.fd, &header, MSG_DONTWAIT | MSG_NOSIGNAL);

    if (result >= 0) {
        size_t wanted = 0;

        for (uint32_t i = 0; i < count; i++)
            wanted += iov[i].iov_len;
        /* The kernel tells when there is room again, as it had less than was asked for. */
        if ((size_t)result < wanted)
            endpoint->socket.writable = false;
        endpoint->written += (uint64_t)result;
        return result;
    }
    if (errno == EFAULT)
        return -2;
    if (errno != EAGAIN && errno != EINTR)
        tcp_broken(endpoint);
    endpoint->socket.writable = false;
    return 0;
}

/* Notes what was taken of header and payload. */
static void took(struct tcp_endpoint *endpoint, uint32_t bytes)
{
    uint32_t of_header = bytes < endpoint->sending_header ? bytes : endpoint->sending_header;

    endpoint->sending_header -= of_header;
    endpoint->sending -= bytes - of_header;
    if (endpoint->sending_header || endpoint->sending)
        return;
    endpoint->source = TCP_NOTHING;
    if (endpoint->outgoing)
        tcp_fetched_sent(endpoint);
}

bool tcp_write_frame(struct tcp_endpoint *endpoint, enum tcp_source source, const struct tcp_frame *frame,
                     const struct spans *spans, uint32_t offset)
{
    struct iovec iov[IOVS] = {{.iov_base = (void *)frame, .iov_len = sizeof(*frame)}};
    uint32_t count = 1;
    bool had = !frame->length || add_spans(iov, &count, spans, offset, frame->length);
    int64_t result = had ? write_some(endpoint, iov, count) : -2;

    if (result == -2) {
        endpoint->fault = true;
        endpoint->fault_msn = frame->msn;
    }
    if (result < 0)
        return false;
    memcpy(endpoint->header, frame, sizeof(*frame));
    endpoint->source = source;
    endpoint->sending_header = sizeof(*frame);
    endpoint->sending = frame->length;
    took(endpoint, (uint32_t)result);
    return true;
}

/* What qp->message sends. */
static bool request_spans(struct qp *qp, struct spans *spans)
{
    struct message *message = &qp->message;

    spans_clear(spans);
    if (message->wqe->opcode == IBV_WR_ATOMIC_CMP_AND_SWP || message->wqe->opcode == IBV_WR_ATOMIC_FETCH_AND_ADD) {
        spans_add_host(spans, message->atomic, sizeof(*message->atomic));
        return true;
    }
    if (message->wqe->flags & SLUICE_WQE_INLINE) {
        spans_add_host(spans, message->inline_data, message->wqe->inline_length);
        return true;
    }
    return spans_add_sges(spans, qp->pd, message->sges, message->wqe->num_sge, 0);
}

static bool answer_spans(struct tcp_endpoint *endpoint, struct tcp_answer *answer, struct spans *spans)
{
    if (answer->kind == TCP_READ_ANSWER)
        return tcp_readable(endpoint, answer->srqn, answer->rkey, answer->addr, answer->total, spans);
    spans_clear(spans);
    spans_add_host(spans, &answer->value, sizeof(answer->value));
    return true;
}

/* The answer at hand can't be had. */
static bool spoil_answer(struct tcp_endpoint *endpoint, struct tcp_answer *answer, uint32_t status)
{
    answer->kind = TCP_NAK;
    answer->value = status;
    endpoint->failed = true;
    endpoint->event = IBV_EVENT_QP_ACCESS_ERR;
    return true;
}

/* The rest of a frame. False: the connection is gone. */
static bool finish_frame(struct tcp_endpoint *endpoint)
{
    struct iovec iov[IOVS] = {{.iov_base = endpoint->header + sizeof(struct tcp_frame) - endpoint->sending_header,
                               .iov_len = endpoint->sending_header}};
    uint32_t count = endpoint->sending_header ? 1 : 0;
    struct tcp_answer *answer = &endpoint->answers[endpoint->answers_head];
    struct qp *qp = endpoint->qp;
    const struct tcp_frame *frame = (const struct tcp_frame *)endpoint->header;
    struct spans spans;
    bool had = true;

    if (endpoint->sending && endpoint->outgoing) {
        iov[count++] = (struct iovec){.iov_base = (void *)tcp_fetched(endpoint, frame->length - endpoint->sending),
                                      .iov_len = endpoint->sending};
    } else if (endpoint->sending && endpoint->source == TCP_REQUEST) {
        uint32_t end = frame->kind > TCP_READ ? frame->length : frame->offset + frame->length;

        had = qp->message.active && request_spans(qp, &spans) && spans.total >= end &&
              add_spans(iov, &count, &spans, end - endpoint->sending, endpoint->sending);
    } else if (endpoint->sending && endpoint->source == TCP_ANSWER) {
        had = answer_spans(endpoint, answer, &spans) &&
              add_spans(iov, &count, &spans, answer->kind == TCP_READ_ANSWER ? answer->offset - endpoint->sending : 0,
                        endpoint->sending);
    }
    if (endpoint->sending && endpoint->source == TCP_ZEROES)
        for (uint32_t placed = 0; count < IOVS && placed < endpoint->sending; placed += ZEROES)
            iov[count++] = (struct iovec){
                .iov_base = (void *)zeroes,
                .iov_len = endpoint->sending - placed < ZEROES ? endpoint->sending - placed : ZEROES};
    int64_t result = had ? write_some(endpoint, iov, count) : -2;

    if (result == -2 && endpoint->source == TCP_ANSWER) {
        /* The frame has promised these bytes. What follows it says that they are none. */
        endpoint->source = TCP_ZEROES;
        return spoil_answer(endpoint, answer, IBV_WC_REM_OP_ERR);
    }
    if (result == -2) {
        /* A request that promised what its memory doesn't give: only breaking off takes it back. */
        endpoint->fault = true;
        endpoint->fault_msn = ((const struct tcp_frame *)endpoint->header)->msn;
        tcp_lost(endpoint);
        return false;
    }
    took(endpoint, (uint32_t)result);
    return true;
}

static bool write_control(struct tcp_endpoint *endpoint, uint8_t kind, uint32_t msn, uint32_t imm)
{
    struct tcp_frame frame = {.kind = kind, .msn = msn, .imm = imm, .total = kind == TCP_HELLO ? SLUICE_TCP_VERSION : 0};

    return tcp_write_frame(endpoint, TCP_CONTROL, &frame, NULL, 0);
}

/* What goes of a READ's answer in one frame: as of a WRITE, all that the turn has. */
static uint32_t answer_part(const struct tcp_endpoint *endpoint, uint32_t left)
{
    uint32_t most = endpoint->grants[FLOW_EGRESS].left;

    if (most > TCP_FRAME_MAX)
        most = TCP_FRAME_MAX;
    return left < most ? left : most;
}

/* The answer at the head is written: its frame, and another if it is long. False: the
 * connection is gone, or memory has yet to come. */
static bool write_answer(struct tcp_endpoint *endpoint)
{
    struct tcp_answer *answer = &endpoint->answers[endpoint->answers_head];
    struct qp *qp = endpoint->qp;
    uint32_t left = answer->end - answer->offset;
    struct tcp_frame frame = {.kind = answer->kind, .msn = answer->msn, .total = answer->total};
    struct spans spans;

    if (answer->kind == TCP_NAK) {
        frame.imm = (uint32_t)answer->value;
        if (!tcp_write_frame(endpoint, TCP_CONTROL, &frame, NULL, 0))
            return false;
        endpoint->receiving = TCP_STOPPED;
        endpoint->answers_count = 0;
        return true;
    }
    frame.length = answer->kind == TCP_READ_ANSWER ? answer_part(endpoint, left) : (uint32_t)sizeof(answer->value);
    if (!answer_spans(endpoint, answer, &spans))
        return spoil_answer(endpoint, answer, IBV_WC_REM_ACCESS_ERR);
    enum tcp_reach reach = TCP_SEEN;

    if (__builtin_expect(spans.by_process, 0) && frame.length)
        reach = tcp_fetch(endpoint, &endpoint->answer_piece, answer->msn, &spans, answer->offset, &frame.length);
    if (reach == TCP_LATER)
        return false;
    if (reach == TCP_UNREACHED)
        return spoil_answer(endpoint, answer, IBV_WC_REM_OP_ERR);
    frame.offset = answer->offset;
    frame.flags = answer->kind == TCP_ATOMIC_ANSWER || left == frame.length ? TCP_LAST : 0;
    bool fault = endpoint->fault;
    bool written = reach == TCP_FETCHED
                       ? tcp_write_fetched(endpoint, TCP_ANSWER, &frame, endpoint->answer_piece)
                       : tcp_write_frame(endpoint, TCP_ANSWER, &frame, &spans,
                                         answer->kind == TCP_READ_ANSWER ? answer->offset : 0);

    if (!written) {
        if (endpoint->socket.fd < 0)
            return false;
        /* The fault is the responder's, not that of a request. */
        endpoint->fault = fault;
        return spoil_answer(endpoint, answer, IBV_WC_REM_ACCESS_ERR);
    }
    answer->begun = frame.flags & TCP_LAST;
    answer->offset += frame.length;
    if (answer->kind == TCP_READ_ANSWER) {
        tcp_charge(endpoint, FLOW_EGRESS, frame.length);
        qp->counters->tx_bytes += frame.length;
        qp->tenant->counters->tx_bytes += frame.length;
    }
    return true;
}

/* The answer at the head is done with once all of it is in the socket. */
static void pass_answer(struct tcp_endpoint *endpoint)
{
    const struct tcp_answer *answer = &endpoint->answers[endpoint->answers_head];

    if (endpoint->source != TCP_NOTHING || !endpoint->answers_count || answer->kind == TCP_NAK || !answer->begun)
        return;
    bool whole = answer->kind != TCP_READ_ANSWER || answer->end == answer->total;

    /* An answer acknowledges. */
    if (whole && (int32_t)(answer->msn + 1 - endpoint->told) > 0)
        endpoint->told = answer->msn + 1;
    endpoint->answers_head = (endpoint->answers_head + 1) % (TCP_ANSWERS + 1);
    endpoint->answers_count--;
}

/* ---- acknowledgements --------------------------------------------------------- */

/* How long one waits for a request to go with; what such a request follows within counts as prompt. */
#define HOLD_NS 50000ull

void tcp_follows(struct tcp_endpoint *endpoint)
{
    if (!endpoint->unanswered)
        return;
    endpoint->unanswered = false;
    if (endpoint->qp->session->engine->now - endpoint->executed > HOLD_NS)
        endpoint->prompt = 0;
    else if (endpoint->prompt < TCP_PROMPT)
        endpoint->prompt++;
}

bool tcp_take_acknowledgement(struct tcp_endpoint *endpoint, struct tcp_frame *frame)
{
    if (endpoint->told == endpoint->expected || endpoint->rnr_due)
        return false;
    timer_cancel(&endpoint->qp->session->engine->timers, &endpoint->hold);
    *frame = (struct tcp_frame){.kind = TCP_ACK, .msn = endpoint->expected};
    endpoint->told = endpoint->expected;
    endpoint->acknowledge = false;
    return true;
}

/*
 * In a ping-pong the answer is a request of this QP's own, within microseconds: one packet, one system call
 * and one wake-up less each way if the acknowledgement goes with it. Where it doesn't come, the acknowledgement
 * goes alone, and those that follow at once again.
 */
static bool holds(struct tcp_endpoint *endpoint)
{
    struct timers *timers = &endpoint->qp->session->engine->timers;

    if (endpoint->prompt < TCP_PROMPT || endpoint->expected - endpoint->told != 1 || !endpoint->unanswered) {
        timer_cancel(timers, &endpoint->hold);
        return false;
    }
    if (!endpoint->hold.place)
        timer_set(timers, &endpoint->hold, endpoint->executed + HOLD_NS);
    return true;
}

void tcp_say_last(struct tcp_endpoint *endpoint)
{
    if (endpoint->socket.fd < 0 || !endpoint->greeted || endpoint->told == endpoint->expected ||
        endpoint->source != TCP_NOTHING || !endpoint->socket.writable)
        return;
    endpoint->told = endpoint->expected;
    write_control(endpoint, TCP_ACK, endpoint->expected, 0);
}

/*
 * Whether an acknowledgement says what its requester has a use for: not of a READ or atomic, nor of what follows it, before
 * its answer, which says as much.
 */
static bool untold(const struct tcp_endpoint *endpoint)
{
    if (endpoint->answers_count)
        return (int32_t)(endpoint->answers[endpoint->answers_head].msn - endpoint->told) > 0;
    return endpoint->told != endpoint->expected;
}

/* The next frame that is due. False: there is none, or the connection is gone. */
static bool write_next(struct tcp_endpoint *endpoint)
{
    if (endpoint->hello_due) {
        endpoint->hello_due = false;
        return write_control(endpoint, TCP_HELLO, endpoint->expected, endpoint->qp->type);
    }
    if (!endpoint->greeted)
        return false;
    /* A READ's data wait for the tenant's turn. */
    if (endpoint->answers_count && (endpoint->answers[endpoint->answers_head].kind != TCP_READ_ANSWER ||
                                    tcp_admitted(endpoint, FLOW_EGRESS)))
        return write_answer(endpoint);
    if (endpoint->rnr_due) {
        endpoint->rnr_due = false;
        endpoint->told = endpoint->expected;
        return write_control(endpoint, TCP_RNR, endpoint->expected, endpoint->qp->attr.min_rnr_timer);
    }
    if (endpoint->acknowledge || (untold(endpoint) && !holds(endpoint))) {
        endpoint->acknowledge = false;
        endpoint->told = endpoint->expected;
        return write_control(endpoint, TCP_ACK, endpoint->expected, 0);
    }
    return false;
}

bool tcp_write(struct tcp_endpoint *endpoint)
{
    struct qp *qp = endpoint->qp;

    while (endpoint->socket.writable) {
        if (endpoint->source != TCP_NOTHING) {
            if (!finish_frame(endpoint))
                return false;
        } else if (endpoint->receiving == TCP_STOPPED) {
            /* The NAK is on its way: now the QP may end. */
            if (endpoint->event)
                qp_fatal(qp, endpoint->event);
            else
                qp_error(qp);
            return false;
        } else if (!write_next(endpoint)) {
            return endpoint->socket.fd >= 0;
        }
        pass_answer(endpoint);
    }
    return true;
}
