/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The requester of the tcp transport: WQEs become frames. Small messages of one turn
 * are gathered and share a system call (tcp_flush); where the socket takes only some of them,
 * the send queue's head goes back to the first that it didn't take, as nothing is
 * lost by reading a WQE once more.
 */
#include <errno.h>
#include <infiniband/verbs.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>

#include "../mw.h"
#include "tcp.h"

/* Each span may lie in two windows. */
enum { BATCH_IOVS = TCP_BATCH * 2 + 2 * SLUICE_MAX_SGE };

/* One frame of the batch. */
struct batched {
    uint32_t index;  /* of its WQE in the send queue */
    uint32_t from, to; /* of the message: what moved before and after */
    uint32_t start;  /* where it begins, bytes from the batch's first */
    struct tcp_frame frame;
};

struct tcp_batch {
    struct tcp_endpoint *endpoint; /* whose; NULL: empty */
    uint32_t lead; /* bytes of an acknowledgement before the first frame, or 0 */
    uint32_t told; /* what the peer was told before that */
    uint32_t count, length;
    uint32_t iov_count;
    bool pointers; /* some lead to tenants' memory: no window may be mapped before they are used */
    struct batched frames[TCP_BATCH];
    struct iovec iov[BATCH_IOVS];
    uint32_t copied; /* bytes used of copies */
    uint8_t copies[TCP_BATCH * (sizeof(struct tcp_frame) + SLUICE_MAX_INLINE)];
};

struct tcp_batch *tcp_batch_new(void)
{
    return calloc(1, sizeof(struct tcp_batch));
}

static bool is_local(uint8_t opcode)
{
    return opcode == IBV_WR_BIND_MW || opcode == IBV_WR_LOCAL_INV;
}

static uint8_t kind_of(uint8_t opcode)
{
    static const uint8_t kinds[] = {
        [IBV_WR_RDMA_WRITE] = TCP_WRITE,
        [IBV_WR_RDMA_WRITE_WITH_IMM] = TCP_WRITE_IMM,
        [IBV_WR_SEND] = TCP_SEND,
        [IBV_WR_SEND_WITH_IMM] = TCP_SEND_IMM,
        [IBV_WR_SEND_WITH_INV] = TCP_SEND_INV,
        [IBV_WR_RDMA_READ] = TCP_READ,
        [IBV_WR_ATOMIC_CMP_AND_SWP] = TCP_COMPARE_SWAP,
        [IBV_WR_ATOMIC_FETCH_AND_ADD] = TCP_FETCH_ADD,
    };

    return opcode < sizeof(kinds) ? kinds[opcode] : 0;
}

/* ---- the batch --------------------------------------------------------------- */

static void count_frame(struct qp *qp, const struct batched *one)
{
    const struct tcp_frame *frame = &one->frame;

    if (frame->kind > TCP_SEND_INV)
        return;
    qp->counters->tx_bytes += frame->length;
    qp->tenant->counters->tx_bytes += frame->length;
    if (one->to == frame->total) {
        qp->counters->tx_messages++;
        qp->tenant->counters->tx_messages++;
    }
}

/* Takes back what was noted of a frame that the socket didn't take. */
static void forget_frame(struct tcp_endpoint *endpoint, const struct batched *one)
{
    if (one->frame.kind < TCP_READ)
        return;
    endpoint->parts--;
    if (one->to == one->frame.total)
        endpoint->answered--;
}

/* The send queue's head goes back to a frame of which taken bytes are in the socket. */
static void go_back(struct tcp_endpoint *endpoint, const struct batched *one, uint32_t taken)
{
    struct qp *qp = endpoint->qp;
    struct message *message = &qp->message;

    qp->sq.head = one->index;
    message->active = false;
    if ((!taken && !one->from) || !qp_copy_message(qp, one->index, message))
        return;
    message->total = one->frame.total;
    message->moved = taken ? one->to : one->from;
    if (!taken)
        return;
    endpoint->whole = one->to == one->frame.total;
    endpoint->source = TCP_REQUEST;
    memcpy(endpoint->header, &one->frame, sizeof(one->frame));
    endpoint->sending_header = taken < sizeof(one->frame) ? (uint32_t)sizeof(one->frame) - taken : 0;
    endpoint->sending = one->frame.length - (taken - ((uint32_t)sizeof(one->frame) - endpoint->sending_header));
}

/* The acknowledgement before the batch is not in the socket, or not all of it. */
static void unsay(struct tcp_endpoint *endpoint, const struct tcp_batch *batch, uint32_t taken)
{
    if (!taken) {
        endpoint->told = batch->told;
        return;
    }
    memcpy(endpoint->header, batch->copies, batch->lead);
    endpoint->source = TCP_CONTROL;
    endpoint->sending_header = batch->lead - taken;
    endpoint->sending = 0;
}

static void flush_batch(struct tcp_endpoint *endpoint, const struct tcp_batch *batch)
{
    struct qp *qp = endpoint->qp;
    struct msghdr header = {.msg_iov = (struct iovec *)batch->iov, .msg_iovlen = batch->iov_count};
    ssize_t result = sendmsg(endpoint->socket.fd, &header, MSG_DONTWAIT | MSG_NOSIGNAL);
    uint32_t taken = result < 0 ? 0 : (uint32_t)result;

    if (result < 0 && errno != EAGAIN && errno != EINTR && errno != EFAULT)
        tcp_broken(endpoint);
    endpoint->written += taken;
    if (taken < batch->length)
        endpoint->socket.writable = false;
    uint32_t i = 0;

    if (taken < batch->lead)
        unsay(endpoint, batch, taken);
    for (; i < batch->count; i++) {
        uint32_t end = i + 1 < batch->count ? batch->frames[i + 1].start : batch->length;

        if (end > taken)
            break;
        count_frame(qp, &batch->frames[i]);
    }
    if (i == batch->count)
        return;
    uint32_t part = taken > batch->frames[i].start ? taken - batch->frames[i].start : 0;

    for (uint32_t j = part ? i + 1 : i; j < batch->count; j++)
        forget_frame(endpoint, &batch->frames[j]);
    if (part)
        count_frame(qp, &batch->frames[i]);
    if (result < 0 && errno == EFAULT) {
        /* Memory of the first of them: its turn comes to fail. */
        endpoint->fault = true;
        endpoint->fault_msn = batch->frames[i].frame.msn;
        endpoint->socket.writable = true;
    }
    go_back(endpoint, &batch->frames[i], part);
    /* It may have found its queue empty and gone to rest. */
    if (qp->state == IBV_QPS_RTS)
        qp_activate(qp);
}

void tcp_flush(struct qp *qp)
{
    struct tcp_batch *batch = qp->session->engine->net->batch;
    struct tcp_endpoint *endpoint = batch->endpoint;

    batch->endpoint = NULL;
    if (endpoint && !endpoint->dead && endpoint->socket.fd >= 0)
        flush_batch(endpoint, batch);
    endpoint = qp->wire;
    if (endpoint && endpoint->caught_up) {
        endpoint->caught_up = false;
        tcp_acknowledge(endpoint, endpoint->acknowledged);
    }
}
static struct iovec *next_iov(struct tcp_batch *batch)
{
    return &batch->iov[batch->iov_count++];
}

/* Appends bytes to the batch's own; adjoining ones share an iovec. False: memory could not be had. */
static bool add_copied(struct tcp_batch *batch, const void *bytes, uint32_t length)
{
    uint8_t *place = batch->copies + batch->copied;
    struct iovec *last = batch->iov_count ? &batch->iov[batch->iov_count - 1] : NULL;

    memcpy(place, bytes, length);
    batch->copied += length;
    batch->length += length;
    if (last && (uint8_t *)last->iov_base + last->iov_len == place)
        last->iov_len += length;
    else
        *next_iov(batch) = (struct iovec){.iov_base = place, .iov_len = length};
    return true;
}

/* The same of a message's payload; longer ones aren't copied, unless their memory can't be seen all at once. */
static bool add_payload(struct tcp_batch *batch, const struct spans *spans, uint32_t offset, uint32_t length)
{
    struct spans_walk walk = spans_walk(spans, offset);

    if (length > TCP_COPY && spans->list[0].memory) {
        uint32_t before = batch->iov_count;
        uint32_t gathered = spans_gather(spans, offset, length, batch->iov, &batch->iov_count, BATCH_IOVS);

        if (gathered == UINT32_MAX)
            return false;
        if (gathered == length) {
            batch->pointers = true;
            batch->length += length;
            return true;
        }
        batch->iov_count = before;
    }
    while (length) {
        uint32_t piece;
        uint8_t *at = walk_at(&walk, &piece);

        if (!at)
            return false;
        if (piece > length)
            piece = length;
        add_copied(batch, at, piece);
        if (__builtin_expect(window_fault, 0))
            break;
        walk.offset += piece;
        length -= piece;
    }
    if (__builtin_expect(window_fault, 0)) {
        windows_repair();
        return false;
    }
    return true;
}

/* ---- sending ----------------------------------------------------------------- */

static bool gathered(const struct qp *qp)
{
    return qp->session->engine->net->batch->endpoint;
}

/* Hands over what is gathered; the QP then looks anew at what its head is. */
static enum progress flush_first(struct qp *qp)
{
    tcp_flush(qp);
    return PROGRESS_NEXT;
}

/* What is before it completes first, and then it fails. */
static enum progress fail_in_turn(struct tcp_endpoint *endpoint, uint32_t *status, uint32_t requester_status)
{
    struct qp *qp = endpoint->qp;

    if (gathered(qp))
        return flush_first(qp);
    if (qp->completed != qp->sq.head)
        return PROGRESS_BLOCKED;
    *status = requester_status;
    return PROGRESS_FAILED;
}

static bool resolve(struct qp *qp, struct spans *spans, uint32_t *status)
{
    struct message *message = &qp->message;
    uint8_t opcode = message->wqe->opcode;

    spans_clear(spans);
    *status = IBV_WC_LOC_PROT_ERR;
    if (message->wqe->flags & SLUICE_WQE_INLINE)
        spans_add_host(spans, message->inline_data, message->wqe->inline_length);
    else if (!spans_add_sges(spans, qp->pd, message->sges, message->wqe->num_sge,
                             tcp_wants_answer(opcode) ? IBV_ACCESS_LOCAL_WRITE : 0))
        return false;
    *status = IBV_WC_LOC_LEN_ERR;
    if (spans->total > 1u << 31)
        return false;
    if (tcp_wants_answer(opcode) && opcode != IBV_WR_RDMA_READ && spans->total != sizeof(uint64_t))
        return false;
    message->total = (uint32_t)spans->total;
    return true;
}

static struct tcp_frame make_frame(const struct tcp_endpoint *endpoint, uint32_t part)
{
    const struct message *message = &endpoint->qp->message;
    const struct sluice_wqe *wqe = message->wqe;
    struct tcp_frame frame = {
        .kind = kind_of(wqe->opcode),
        .flags = wqe->flags & SLUICE_WQE_SOLICITED ? TCP_SOLICITED : 0,
        .srqn = endpoint->qp->type == IBV_QPT_XRC_SEND ? wqe->remote_srqn : 0,
        .msn = endpoint->qp->sq.head - endpoint->base,
        .length = part,
        .total = message->total,
        .offset = message->moved,
        .imm = wqe->imm_data,
        .rkey = wqe->rkey,
        .addr = wqe->remote_addr,
    };

    if (frame.kind == TCP_READ) {
        frame.part = part;
        frame.length = 0;
    } else if (frame.kind > TCP_READ) {
        frame.length = sizeof(endpoint->operands);
    }
    return frame;
}

/* Notes that the message is in the socket, or as good as. */
static enum progress sent(struct tcp_endpoint *endpoint)
{
    struct qp *qp = endpoint->qp;
    uint32_t msn = qp->sq.head - endpoint->base;

    endpoint->whole = false;
    /* Acknowledged already, as it waited here: completed once the head has passed it. */
    endpoint->caught_up |= (int32_t)(endpoint->acknowledged - msn) > 0;
    if (qp_is_unreliable(qp))
        return PROGRESS_DONE;
    tcp_watch(endpoint);
    return PROGRESS_SENT;
}

/* Whether what is in the batch must go before this frame. */
static bool is_full(const struct tcp_batch *batch, const struct tcp_frame *frame, const struct spans *spans)
{
    return batch->count == TCP_BATCH || batch->iov_count + 1 + 2 * spans->count > BATCH_IOVS ||
           batch->copied + sizeof(*frame) + frame->length > sizeof(batch->copies) ||
           (batch->pointers && frame->kind < TCP_READ && !spans_seen(spans));
}

/* What is due to be acknowledged goes first. */
static void begin_batch(struct tcp_endpoint *endpoint, struct tcp_batch *batch)
{
    struct tcp_frame frame;

    batch->told = endpoint->told;
    batch->lead = 0;
    tcp_follows(endpoint);
    if (tcp_take_acknowledgement(endpoint, &frame)) {
        add_copied(batch, &frame, sizeof(frame));
        batch->lead = sizeof(frame);
    }
}

static enum progress send_batched(struct tcp_endpoint *endpoint, const struct tcp_frame *frame, uint32_t part,
                                  const struct spans *spans, uint32_t *status)
{
    struct qp *qp = endpoint->qp;
    struct message *message = &qp->message;
    struct tcp_batch *batch = qp->session->engine->net->batch;

    if (batch->endpoint && is_full(batch, frame, spans))
        return flush_first(qp);
    if (!batch->endpoint) {
        batch->count = batch->length = batch->iov_count = batch->copied = 0;
        batch->pointers = false;
        batch->endpoint = endpoint;
        begin_batch(endpoint, batch);
    }
    uint32_t iovs = batch->iov_count, copied = batch->copied, length = batch->length;
    size_t last = iovs ? batch->iov[iovs - 1].iov_len : 0;
    bool had = add_copied(batch, frame, sizeof(*frame));

    if (frame->kind > TCP_READ) {
        const uint64_t operands[2] = {message->atomic->compare_add, message->atomic->swap};

        add_copied(batch, operands, sizeof(operands));
    } else if (had && frame->length) {
        had = add_payload(batch, spans, frame->offset, frame->length);
    }
    if (!had) {
        batch->iov_count = iovs;
        if (iovs)
            batch->iov[iovs - 1].iov_len = last;
        batch->copied = copied;
        batch->length = length;
        endpoint->fault = true;
        endpoint->fault_msn = frame->msn;
        return fail_in_turn(endpoint, status, IBV_WC_LOC_PROT_ERR);
    }
    batch->frames[batch->count++] = (struct batched){
        .index = qp->sq.head, .from = message->moved, .to = message->moved + part, .start = length, .frame = *frame};
    message->moved += part;
    if (frame->kind >= TCP_READ)
        endpoint->parts++;
    if (message->moved < message->total)
        return PROGRESS_MORE;
    if (frame->kind >= TCP_READ)
        endpoint->answered++;
    return sent(endpoint);
}

/* spans: NULL where the payload was fetched. */
static enum progress send_directly(struct tcp_endpoint *endpoint, const struct tcp_frame *frame,
                                   const struct spans *spans, uint32_t *status)
{
    struct qp *qp = endpoint->qp;
    struct message *message = &qp->message;
    uint32_t offset = message->moved;

    if (gathered(qp))
        return flush_first(qp);
    message->moved += frame->length;
    endpoint->whole = message->moved == message->total;
    if (!(spans ? tcp_write_frame(endpoint, TCP_REQUEST, frame, spans, offset)
                : tcp_write_fetched(endpoint, TCP_REQUEST, frame, endpoint->request_piece))) {
        if (endpoint->socket.fd < 0)
            return PROGRESS_BLOCKED;
        /* Its memory can't be read, and nothing of it is on its way. */
        message->moved = offset;
        endpoint->whole = false;
        return fail_in_turn(endpoint, status, IBV_WC_LOC_PROT_ERR);
    }
    count_frame(qp, &(struct batched){.to = message->moved, .frame = *frame});
    tcp_watch(endpoint);
    if (endpoint->source != TCP_NOTHING)
        return PROGRESS_BLOCKED;
    return endpoint->whole ? sent(endpoint) : PROGRESS_MORE;
}

/* A message of which some lies in a process: the part that has to be fetched, or one before or behind that. */
static enum progress send_from_process(struct tcp_endpoint *endpoint, const struct spans *spans, uint32_t part,
                                   uint32_t *status)
{
    struct qp *qp = endpoint->qp;
    uint32_t msn = qp->sq.head - endpoint->base;

    if (gathered(qp))
        return flush_first(qp);
    enum tcp_reach reach = tcp_fetch(endpoint, &endpoint->request_piece, msn, spans, qp->message.moved, &part);

    if (reach == TCP_LATER) {
        tcp_watch(endpoint);
        return PROGRESS_BLOCKED;
    }
    if (reach == TCP_UNREACHED) {
        endpoint->fault = true;
        endpoint->fault_msn = msn;
        return fail_in_turn(endpoint, status, IBV_WC_LOC_PROT_ERR);
    }
    struct tcp_frame frame = make_frame(endpoint, part);

    return send_directly(endpoint, &frame, reach == TCP_SEEN ? spans : NULL, status);
}

static enum progress send_local(struct tcp_endpoint *endpoint, uint32_t *status)
{
    struct qp *qp = endpoint->qp;

    if (gathered(qp))
        return flush_first(qp);
    if (qp->completed != qp->sq.head)
        return PROGRESS_BLOCKED;
    return mw_send(qp, status);
}

enum progress tcp_send(struct qp *qp, uint32_t budget, uint32_t *status)
{
    struct tcp_endpoint *endpoint = qp->wire;
    struct message *message = &qp->message;
    const struct sluice_wqe *wqe = message->wqe;
    uint32_t msn = qp->sq.head - endpoint->base, total = message->total;
    struct spans spans;

    if (endpoint->whole && endpoint->source == TCP_NOTHING)
        return sent(endpoint);
    if (is_local(wqe->opcode))
        return send_local(endpoint, status);
    if (!resolve(qp, &spans, status))
        return fail_in_turn(endpoint, status, *status);
    /* Read once more after the head went back to it (go_back), it may be another: what moved needn't lie in it. */
    if (message->moved && message->total != total) {
        session_break(qp->session, "a WQE was changed while its message was sent");
        return PROGRESS_BLOCKED;
    }
    if (endpoint->fault && endpoint->fault_msn == msn)
        return fail_in_turn(endpoint, status, IBV_WC_LOC_PROT_ERR);
    if (!endpoint->greeted && qp_is_unreliable(qp) && tcp_unreachable(endpoint))
        return PROGRESS_NO_PEER;
    if (tcp_wants_answer(wqe->opcode) && !qp->attr.max_rd_atomic)
        return fail_in_turn(endpoint, status, IBV_WC_LOC_QP_OP_ERR);
    if (!endpoint->greeted || endpoint->hello_due || endpoint->rnr || endpoint->source != TCP_NOTHING ||
        !endpoint->socket.writable || endpoint->parts >= TCP_ANSWERS - 1 || ((wqe->flags & SLUICE_WQE_FENCE) && endpoint->answered) ||
        (tcp_wants_answer(wqe->opcode) && message->moved == 0 && endpoint->answered >= qp->attr.max_rd_atomic)) {
        tcp_watch(endpoint);
        return PROGRESS_BLOCKED;
    }
    /* Executed before the connection broke: its acknowledgement came with the greeting. */
    if ((int32_t)(endpoint->known - msn) > 0 && !tcp_wants_answer(wqe->opcode)) {
        if (gathered(qp))
            return flush_first(qp);
        message->moved = message->total;
        return sent(endpoint);
    }
    uint32_t left = message->total - message->moved, part = left < budget ? left : budget;

    if (part > TCP_FRAME_MAX)
        part = TCP_FRAME_MAX;
    if (tcp_wants_answer(wqe->opcode) && wqe->opcode != IBV_WR_RDMA_READ)
        part = message->total;
    if ((int32_t)(msn + 1 - endpoint->most) > 0)
        endpoint->most = msn + 1;
    if (__builtin_expect(spans.by_process, 0) && !tcp_wants_answer(wqe->opcode))
        return send_from_process(endpoint, &spans, part, status);
    struct tcp_frame frame = make_frame(endpoint, part);

    if (frame.length <= TCP_BATCHED && !qp_is_unreliable(qp))
        return send_batched(endpoint, &frame, part, &spans, status);
    return send_directly(endpoint, &frame, &spans, status);
}
