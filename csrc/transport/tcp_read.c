/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a connection reads. Headers, and payload of some hundred bytes, come through
 * the endpoint's buffer, many in one system call. Longer payload is read to its place, by a call whose last
 * piece is the buffer again: the end of this payload, and the header that follows.
 */
#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>

#include "tcp.h"

enum { IOVS = 32 };
/* Of a long payload, so much at least is waited for before it is read: half of the longest frame. */
enum { AT_ONCE = TCP_FRAME_MAX / 2 };

static bool is_request(const struct tcp_frame *frame)
{
    return frame->kind >= TCP_WRITE && frame->kind <= TCP_FETCH_ADD;
}

bool tcp_stores_answer(const struct tcp_endpoint *endpoint)
{
    return endpoint->receiving == TCP_STORE && !is_request(&endpoint->frame);
}

/* All frames: what no peer sends. */
static bool frame_fits(const struct tcp_endpoint *endpoint, const struct tcp_frame *frame)
{
    return frame->kind >= TCP_HELLO && frame->kind < TCP_KINDS && (frame->kind == TCP_HELLO) != endpoint->greeted &&
           frame->length <= (frame->kind == TCP_READ ? 0 : TCP_FRAME_MAX) && frame->total <= 1u << 31 && frame->offset <= frame->total &&
           frame->length <= (frame->kind == TCP_COMPARE_SWAP || frame->kind == TCP_FETCH_ADD
                                 ? sizeof(endpoint->operands)
                                 : frame->total - frame->offset);
}

/* The payload has come whole. */
static bool end_frame(struct tcp_endpoint *endpoint)
{
    bool discarded = endpoint->receiving == TCP_DISCARD;

    if (discarded && endpoint->failed) {
        /* Nothing behind a NAK is looked at, however much there is. */
        endpoint->left = UINT32_MAX;
        return true;
    }
    endpoint->receiving = TCP_HEADER;
    if (discarded)
        return true;
    return is_request(&endpoint->frame) ? tcp_end_request(endpoint) : tcp_end_answer(endpoint);
}

static bool has_end(const struct tcp_frame *frame)
{
    return is_request(frame) || frame->kind == TCP_READ_ANSWER || frame->kind == TCP_ATOMIC_ANSWER;
}

static bool begin_frame(struct tcp_endpoint *endpoint)
{
    endpoint->left = endpoint->frame.length;
    endpoint->receiving = TCP_PAYLOAD;
    if (!(is_request(&endpoint->frame) ? tcp_begin_request(endpoint) : tcp_begin_answer(endpoint)))
        return false;
    if (endpoint->receiving == TCP_HOLD || endpoint->receiving == TCP_STOPPED)
        return true;
    if (!has_end(&endpoint->frame)) {
        endpoint->receiving = TCP_HEADER;
        return endpoint->frame.length == 0;
    }
    return endpoint->left || end_frame(endpoint);
}

/* Where the frame's payload belongs. */
static bool place(struct tcp_endpoint *endpoint, struct spans *spans)
{
    switch (endpoint->frame.kind) {
    case TCP_ATOMIC_ANSWER:
        if (!tcp_place_answer(endpoint, spans))
            return false;
        if (spans->by_process)
            return true;
        /* To its place as one word, when it is whole. */
        __attribute__((fallthrough));
    case TCP_COMPARE_SWAP:
    case TCP_FETCH_ADD:
        spans_clear(spans);
        spans_add_host(spans, endpoint->operands, sizeof(endpoint->operands));
        return true;
    case TCP_READ_ANSWER:
        return tcp_place_answer(endpoint, spans);
    default:
        return tcp_place(endpoint, spans);
    }
}

static uint32_t payload_offset(const struct tcp_endpoint *endpoint)
{
    uint32_t done = endpoint->frame.length - endpoint->left;

    return endpoint->frame.kind == TCP_COMPARE_SWAP || endpoint->frame.kind == TCP_FETCH_ADD ||
                   endpoint->frame.kind == TCP_ATOMIC_ANSWER
               ? done
               : endpoint->frame.offset + done;
}

/* Payload out of the buffer to its place, *length bytes of it at most. False: memory could not be had. */
static bool store(struct tcp_endpoint *endpoint, const struct spans *spans, uint32_t *length)
{
    const uint8_t *from = endpoint->buffer + endpoint->start;
    uint32_t offset = payload_offset(endpoint);

    if (__builtin_expect(spans->by_process, 0)) {
        uint8_t *buffer;

        switch (tcp_prepare_store(endpoint, spans, offset, length, &buffer)) {
        case TCP_SEEN:
            break;
        case TCP_FETCHED:
            memcpy(buffer, from, *length);
            return tcp_store(endpoint, spans, offset, *length);
        default:
            return false;
        }
    }
    return spans_put(spans, offset, from, *length);
}

/* Payload out of the buffer. */
static bool take_payload(struct tcp_endpoint *endpoint)
{
    uint32_t length = endpoint->end - endpoint->start;
    struct spans spans;

    if (length > endpoint->left)
        length = endpoint->left;
    if (endpoint->receiving == TCP_PAYLOAD && length) {
        if (!place(endpoint, &spans)) {
            if (endpoint->dead || endpoint->receiving == TCP_PAYLOAD)
                return false;
        } else if (!store(endpoint, &spans, &length)) {
            tcp_no_memory(endpoint);
            if (endpoint->dead)
                return false;
        }
    }
    if (is_request(&endpoint->frame))
        tcp_charge(endpoint, FLOW_INGRESS, length);
    endpoint->start += length;
    endpoint->left -= length;
    return endpoint->left || endpoint->receiving == TCP_STORE || end_frame(endpoint);
}

static bool stopped(const struct tcp_endpoint *endpoint)
{
    return endpoint->receiving == TCP_HOLD || endpoint->receiving == TCP_STORE || endpoint->receiving == TCP_STOPPED;
}

/* Works off what the buffer holds. */
static bool parse(struct tcp_endpoint *endpoint)
{
    while (!endpoint->dead && endpoint->socket.fd >= 0) {
        uint32_t has = endpoint->end - endpoint->start;

        if (stopped(endpoint))
            break;
        if (endpoint->receiving == TCP_HEADER) {
            if (has < sizeof(endpoint->frame))
                break;
            memcpy(&endpoint->frame, endpoint->buffer + endpoint->start, sizeof(endpoint->frame));
            endpoint->start += (uint32_t)sizeof(endpoint->frame);
            if (!frame_fits(endpoint, &endpoint->frame) || !begin_frame(endpoint))
                return false;
        } else {
            if (has == 0)
                break;
            if (!take_payload(endpoint))
                return false;
        }
    }
    return !endpoint->dead && endpoint->socket.fd >= 0;
}

/* Bytes read; 0: none now; -1: the connection is over; -2: memory could not be written. */
static int64_t read_some(struct tcp_endpoint *endpoint, struct iovec *iov, uint32_t count, size_t wanted)
{
    struct msghdr header = {.msg_iov = iov, .msg_iovlen = count};
    ssize_t result = recvmsg(endpoint->socket.fd, &header, MSG_DONTWAIT);

    if (result > 0) {
        /* Who has never greeted as a peer does (of another version, say) isn't the one that is waited for. */
        if (endpoint->greeted)
            tcp_heard(endpoint);
        /* Less than asked for: there is no more, and epoll tells of what comes. */
        if ((size_t)result < wanted)
            endpoint->socket.readable = false;
        return result;
    }
    if (result < 0 && errno == EFAULT)
        return -2;
    if (result < 0 && (errno == EAGAIN || errno == EINTR)) {
        endpoint->socket.readable = false;
        return 0;
    }
    return -1;
}

static int64_t discard(struct tcp_endpoint *endpoint)
{
    struct iovec iov = {.iov_base = endpoint->buffer,
                        .iov_len = endpoint->left < sizeof(endpoint->buffer) ? endpoint->left : sizeof(endpoint->buffer)};
    int64_t result = read_some(endpoint, &iov, 1, iov.iov_len);

    if (result > 0)
        endpoint->left -= (uint32_t)result;
    return result;
}

/* Reads payload into a buffer, and has it stored from there. */
static int64_t read_for_process(struct tcp_endpoint *endpoint, const struct spans *spans, uint8_t *buffer,
                                uint32_t length)
{
    uint32_t offset = payload_offset(endpoint);
    struct iovec iov = {.iov_base = buffer, .iov_len = length};
    int64_t result = read_some(endpoint, &iov, 1, length);
    uint32_t bytes = result > 0 ? (uint32_t)result : 0;

    if (is_request(&endpoint->frame))
        tcp_charge(endpoint, FLOW_INGRESS, bytes);
    endpoint->left -= bytes;
    return tcp_store(endpoint, spans, offset, bytes) || !bytes ? result : -2;
}

/* Reads payload to its place. Returns as read_some. */
static int64_t read_bulk(struct tcp_endpoint *endpoint)
{
    struct iovec iov[IOVS + 1];
    struct spans spans;
    uint32_t count = 0, direct = endpoint->left - TCP_HOLD_BACK, offset = payload_offset(endpoint);

    if (endpoint->receiving == TCP_DISCARD)
        return discard(endpoint);
    if (!place(endpoint, &spans))
        return endpoint->dead || endpoint->receiving == TCP_PAYLOAD ? -1 : 0;
    /* What comes for a READ was charged when it was asked for. */
    bool charged = is_request(&endpoint->frame);
    uint32_t most = charged && endpoint->grants[FLOW_INGRESS].left < direct ? endpoint->grants[FLOW_INGRESS].left : direct;

    if (__builtin_expect(spans.by_process, 0)) {
        uint8_t *buffer;

        switch (tcp_prepare_store(endpoint, &spans, offset, &most, &buffer)) {
        case TCP_SEEN:
            break;
        case TCP_FETCHED:
            return read_for_process(endpoint, &spans, buffer, most);
        default:
            return -2;
        }
    }
    uint32_t places = spans_gather(&spans, offset, most, iov, &count, IOVS), wanted = places;

    if (places == UINT32_MAX)
        return -2;
    if (wanted == direct) {
        /* The end of the payload, and the next header. */
        iov[count].iov_base = endpoint->buffer;
        iov[count++].iov_len = TCP_HOLD_BACK + sizeof(struct tcp_frame);
        wanted += TCP_HOLD_BACK + (uint32_t)sizeof(struct tcp_frame);
    }
    int64_t result = read_some(endpoint, iov, count, wanted);

    if (result > 0) {
        uint32_t placed = result < places ? (uint32_t)result : places;

        if (charged)
            tcp_charge(endpoint, FLOW_INGRESS, placed);
        endpoint->left -= placed;
        endpoint->start = 0;
        endpoint->end = (uint32_t)result - placed;
    }
    return result;
}

static bool may_read(struct tcp_endpoint *endpoint)
{
    return !endpoint->greeted || tcp_admitted(endpoint, FLOW_INGRESS);
}

static int64_t fill_buffer(struct tcp_endpoint *endpoint)
{
    if (endpoint->start) {
        memmove(endpoint->buffer, endpoint->buffer + endpoint->start, endpoint->end - endpoint->start);
        endpoint->end -= endpoint->start;
        endpoint->start = 0;
    }
    /* A greeting alone comes without its tenant's turn. */
    uint32_t room = endpoint->greeted ? sizeof(endpoint->buffer) : sizeof(endpoint->frame);
    struct iovec iov = {.iov_base = endpoint->buffer + endpoint->end, .iov_len = room - endpoint->end};
    int64_t result = read_some(endpoint, &iov, 1, iov.iov_len);

    if (result > 0)
        endpoint->end += (uint32_t)result;
    return result;
}

/* What was on its way into a process is there, or never will be. */
static bool go_on_after_store(struct tcp_endpoint *endpoint)
{
    uint64_t original;
    bool atomic;
    enum tcp_reach reach = tcp_stored(endpoint, &atomic, &original);

    if (reach == TCP_LATER)
        return true;
    if (atomic)
        return tcp_atomic_performed(endpoint, reach == TCP_UNREACHED, original);
    if (reach == TCP_UNREACHED) {
        tcp_no_memory(endpoint);
        return !endpoint->dead;
    }
    return endpoint->left || end_frame(endpoint);
}

/*
 * How much must have come before the kernel tells of it. In the middle of a payload that is what comes for certain, or a
 * good part of it: not each packet wakes the worker. Waking it is the sender's work where both share a machine, and
 * what each wake-up moves is copied at one go.
 */
static void await_payload(struct tcp_endpoint *endpoint)
{
    uint32_t left = endpoint->receiving == TCP_PAYLOAD && endpoint->left > TCP_BULK ? endpoint->left : 1;
    int low = left < AT_ONCE ? (int)left : AT_ONCE;

    if (low == endpoint->low)
        return;
    /* The kernel looks anew at what is there. */
    if (setsockopt(endpoint->socket.fd, SOL_SOCKET, SO_RCVLOWAT, &low, sizeof(low)) == 0)
        endpoint->low = low;
}

void tcp_read_what_came(struct tcp_endpoint *endpoint)
{
    if (endpoint->low == 1 || endpoint->receiving != TCP_PAYLOAD)
        return;
    endpoint->socket.readable = true;
    net_wake(endpoint->qp->session->engine->net, &endpoint->socket);
}

bool tcp_read(struct tcp_endpoint *endpoint)
{
    uint32_t bytes = 0, visit;

    if (endpoint->receiving == TCP_HOLD && !tcp_continue_request(endpoint))
        goto over;
    if (endpoint->receiving == TCP_STORE && !go_on_after_store(endpoint))
        goto over;
    if (!may_read(endpoint))
        return true;
    /* Not all that comes is charged: answers were when they were asked for. */
    visit = endpoint->grants[FLOW_INGRESS].left > TCP_VISIT ? endpoint->grants[FLOW_INGRESS].left : TCP_VISIT;
    if (!stopped(endpoint) && endpoint->start != endpoint->end && !parse(endpoint))
        goto over;
    while (!endpoint->dead && endpoint->socket.readable && !stopped(endpoint) && bytes < visit) {
        if (!may_read(endpoint))
            return true;
        bool bulk = endpoint->receiving != TCP_HEADER && endpoint->start == endpoint->end && endpoint->left > TCP_BULK;
        int64_t result = bulk ? read_bulk(endpoint) : fill_buffer(endpoint);

        if (result == -1)
            goto over;
        if (result == -2) {
            tcp_no_memory(endpoint);
            continue;
        }
        bytes += (uint32_t)result;
        if (!parse(endpoint))
            goto over;
    }
    if (endpoint->dead)
        return false;
    if (stopped(endpoint))
        return true;
    if (endpoint->socket.readable)
        net_wake(endpoint->qp->session->engine->net, &endpoint->socket);
    else
        await_payload(endpoint);
    return true;

over:
    if (!endpoint->dead)
        tcp_lost(endpoint);
    return false;
}
