/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Payload from and to memory that only its own process reaches, such as stacks (../reach.h). What is
 * sent is fetched piece by piece, each a frame of its own; what comes is stored piece by piece, and nothing is
 * read meanwhile; atomics are performed by the same thread. A process that never answers holds up its own
 * connection and no other.
 */
#include <stdlib.h>

#include "tcp.h"

enum piece_state { PIECE_UNDERWAY, PIECE_CARRIED, PIECE_FAILED };
enum piece_purpose { PIECE_FETCH, PIECE_STORE, PIECE_ATOMIC };

/* While it is under way it is the thread's, but for qp and state. */
struct tcp_piece {
    struct errand errand;
    struct qp *qp; /* NULL: given up */
    enum piece_state state;
    enum piece_purpose purpose;
    uint64_t address;
    uint32_t msn, offset; /* PIECE_FETCH: which message's, and where in it */
    uint32_t length;
    struct sluice_atomic operands;
    bool compare;
    uint64_t original;
    uint8_t buffer[TCP_PIECE];
};

static bool carry(const struct reach *reach, struct errand *errand)
{
    struct tcp_piece *piece = list_entry(errand, struct tcp_piece, errand);

    switch (piece->purpose) {
    case PIECE_FETCH:
        return reach_read(reach, piece->address, piece->buffer, piece->length);
    case PIECE_STORE:
        return reach_write(reach, piece->address, piece->buffer, piece->length);
    default:
        return reach_atomic(reach, piece->address, &piece->operands, piece->compare, &piece->original);
    }
}

static void done(struct errand *errand, bool carried)
{
    struct tcp_piece *piece = list_entry(errand, struct tcp_piece, errand);
    struct qp *qp = piece->qp;

    if (!qp) {
        free(piece);
        return;
    }
    struct tcp_endpoint *endpoint = qp->wire;

    piece->state = carried ? PIECE_CARRIED : PIECE_FAILED;
    if (piece == endpoint->request_piece) {
        if (qp->wait == QP_WAIT_TRANSPORT)
            qp_activate(qp);
        return;
    }
    if (piece != endpoint->answer_piece)
        endpoint->socket.readable = true;
    if (endpoint->socket.fd >= 0)
        net_wake(qp->session->engine->net, &endpoint->socket);
}

static struct tcp_piece *piece_new(struct qp *qp, enum piece_purpose purpose)
{
    struct tcp_piece *piece = malloc(sizeof(*piece));

    if (!piece)
        return NULL;
    piece->errand = (struct errand){.carry = carry, .done = done};
    list_init(&piece->errand.link);
    piece->qp = qp;
    piece->purpose = purpose;
    return piece;
}

static void give_up(struct tcp_piece **place)
{
    struct tcp_piece *piece = *place;

    *place = NULL;
    if (!piece)
        return;
    if (piece->state == PIECE_UNDERWAY) {
        errand_keep(piece->qp->session->engine, &piece->errand);
        piece->qp = NULL;
    } else {
        free(piece);
    }
}

/* False: too much of its tenant's hangs. */
static bool start(struct tcp_piece *piece, const struct span *span, uint32_t offset)
{
    struct reach *reach = span->memory->reach;

    if (!reach_has_room(piece->qp->session->engine, reach))
        return false;
    piece->address = span->address + offset;
    piece->state = PIECE_UNDERWAY;
    reach_send(reach, &piece->errand);
    return true;
}

/* As much of [*offset, *offset + *length) as lies in one span; *offset becomes that in it. */
static const struct span *stretch(const struct spans *spans, uint32_t *offset, uint32_t *length)
{
    struct spans_walk walk = spans_walk(spans, *offset);
    const struct span *span = walk_span(&walk);

    *offset = walk.offset;
    if (*length > span->length - walk.offset)
        *length = span->length - walk.offset;
    if (span_in_process(span) && *length > TCP_PIECE)
        *length = TCP_PIECE;
    return span;
}

/* ---- what is sent ----------------------------------------------------------- */

enum tcp_reach tcp_fetch(struct tcp_endpoint *endpoint, struct tcp_piece **place, uint32_t msn,
                         const struct spans *spans, uint32_t offset, uint32_t *length)
{
    uint32_t within = offset;
    const struct span *span = stretch(spans, &within, length);

    if (!span_in_process(span))
        return TCP_SEEN;
    /* Of a message that was given up. */
    if (*place && ((*place)->msn != msn || (*place)->offset != offset))
        give_up(place);
    if (!*place) {
        struct tcp_piece *piece = piece_new(endpoint->qp, PIECE_FETCH);

        if (!piece)
            return TCP_UNREACHED;
        piece->msn = msn;
        piece->offset = offset;
        piece->length = *length;
        if (!start(piece, span, within)) {
            free(piece);
            return TCP_UNREACHED;
        }
        *place = piece;
    }
    if ((*place)->state == PIECE_UNDERWAY)
        return TCP_LATER;
    if ((*place)->state == PIECE_FAILED) {
        give_up(place);
        return TCP_UNREACHED;
    }
    if (*length > (*place)->length)
        *length = (*place)->length;
    return TCP_FETCHED;
}

bool tcp_write_fetched(struct tcp_endpoint *endpoint, enum tcp_source source, const struct tcp_frame *frame,
                       struct tcp_piece *piece)
{
    struct spans spans;

    spans_clear(&spans);
    spans_add_host(&spans, piece->buffer, frame->length);
    endpoint->outgoing = piece;
    return tcp_write_frame(endpoint, source, frame, &spans, 0);
}

const uint8_t *tcp_fetched(const struct tcp_endpoint *endpoint, uint32_t offset)
{
    return endpoint->outgoing->buffer + offset;
}

void tcp_fetched_sent(struct tcp_endpoint *endpoint)
{
    bool request = endpoint->outgoing == endpoint->request_piece;

    endpoint->outgoing = NULL;
    give_up(request ? &endpoint->request_piece : &endpoint->answer_piece);
}

/* ---- what comes -------------------------------------------------------------- */

enum tcp_reach tcp_prepare_store(struct tcp_endpoint *endpoint, const struct spans *spans, uint32_t offset,
                                 uint32_t *length, uint8_t **buffer)
{
    if (!span_in_process(stretch(spans, &offset, length)))
        return TCP_SEEN;
    endpoint->incoming = piece_new(endpoint->qp, PIECE_STORE);
    if (!endpoint->incoming)
        return TCP_UNREACHED;
    /* Not sent yet: its buffer is filled first. */
    endpoint->incoming->state = PIECE_CARRIED;
    *buffer = endpoint->incoming->buffer;
    return TCP_FETCHED;
}

bool tcp_store(struct tcp_endpoint *endpoint, const struct spans *spans, uint32_t offset, uint32_t length)
{
    const struct span *span = stretch(spans, &offset, &length);

    endpoint->incoming->length = length;
    if (length && start(endpoint->incoming, span, offset)) {
        endpoint->receiving = TCP_STORE;
        return true;
    }
    give_up(&endpoint->incoming);
    return false;
}

bool tcp_start_atomic(struct tcp_endpoint *endpoint, const struct span *word)
{
    struct tcp_piece *piece = endpoint->atomic;

    if (!piece) {
        piece = piece_new(endpoint->qp, PIECE_ATOMIC);
        if (!piece)
            return false;
        piece->compare = endpoint->frame.kind == TCP_COMPARE_SWAP;
        piece->operands = (struct sluice_atomic){.compare_add = endpoint->operands[0], .swap = endpoint->operands[1]};
        if (!start(piece, word, 0)) {
            free(piece);
            return false;
        }
        endpoint->atomic = piece;
    }
    endpoint->receiving = TCP_STORE;
    /* One that is asked for again may be done already. */
    if (piece->state != PIECE_UNDERWAY) {
        endpoint->socket.readable = true;
        net_wake(endpoint->qp->session->engine->net, &endpoint->socket);
    }
    return true;
}

enum tcp_reach tcp_stored(struct tcp_endpoint *endpoint, bool *atomic, uint64_t *original)
{
    struct tcp_piece **place = endpoint->incoming ? &endpoint->incoming : &endpoint->atomic;
    const struct tcp_piece *piece = *place;

    if (piece->state == PIECE_UNDERWAY)
        return TCP_LATER;
    enum tcp_reach result = piece->state == PIECE_CARRIED ? TCP_FETCHED : TCP_UNREACHED;

    *atomic = piece->purpose == PIECE_ATOMIC;
    *original = piece->original;
    endpoint->receiving = TCP_PAYLOAD;
    give_up(place);
    return result;
}

void tcp_give_up_pieces(struct tcp_endpoint *endpoint)
{
    endpoint->outgoing = NULL;
    give_up(&endpoint->request_piece);
    give_up(&endpoint->answer_piece);
    give_up(&endpoint->incoming);
}

void tcp_give_up_atomic(struct tcp_endpoint *endpoint)
{
    give_up(&endpoint->atomic);
}
