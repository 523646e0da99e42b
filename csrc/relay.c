/* SPDX-License-Identifier: Apache-2.0 */
#include "relay.h"

#include <infiniband/verbs.h>
#include <stdlib.h>

#include "spans.h"

/* ---- the thread's -------------------------------------------------------- */

static bool carry(const struct reach *reach, struct errand *errand)
{
    struct relay *relay = list_entry(errand, struct relay, errand);

    switch (relay->purpose) {
    case RELAY_FETCHED:
        return reach_read(reach, relay->address, relay->buffer, relay->length);
    case RELAY_STORED:
        return reach_write(reach, relay->address, relay->buffer, relay->length);
    case RELAY_FENCED:
        return true;
    default:
        return reach_atomic(reach, relay->address, &relay->atomic.operands, relay->atomic.compare, &relay->atomic.original);
    }
}

static void done(struct errand *errand, bool carried)
{
    struct relay *relay = list_entry(errand, struct relay, errand);

    if (!relay->qp) {
        free(relay);
        return;
    }
    relay->state = carried ? relay->purpose : RELAY_FAILED;
    if (relay->qp->wait == QP_WAIT_COPY)
        qp_activate(relay->qp);
}

/* ---- the worker's -------------------------------------------------------- */

/* The piece at the relay's address; its QP waits from now. False: too much of its tenant's hangs. */
static bool start(struct reach *reach, struct relay *relay, enum relay_state purpose)
{
    const struct sluice_engine *engine = relay->qp->session->engine;

    if (purpose == RELAY_FENCED ? !reach_may_wait(engine, reach) : !reach_has_room(engine, reach))
        return false;
    relay->state = RELAY_UNDERWAY;
    relay->purpose = purpose;
    relay->own = reach == relay->qp->session->reach;
    reach_send(reach, &relay->errand);
    return true;
}

/* The QP's relay, made where it has none. NULL: no memory. */
static struct relay *relay_of(struct qp *qp)
{
    if (!qp->relay) {
        qp->relay = malloc(sizeof(*qp->relay));
        if (!qp->relay)
            return NULL;
        qp->relay->errand = (struct errand){.carry = carry, .done = done};
        list_init(&qp->relay->errand.link);
        qp->relay->qp = qp;
        qp->relay->state = RELAY_IDLE;
        qp->relay->offset = qp->relay->gathered = 0;
    }
    return qp->relay;
}

static uint32_t least(uint32_t a, uint32_t b)
{
    return a < b ? a : b;
}

uint32_t relay_copy(struct qp *qp, const struct spans *dst, const struct spans *src, uint32_t offset, uint32_t end)
{
    struct sluice_engine *engine = qp->session->engine;
    struct relay *relay = relay_of(qp);

    if (offset == end)
        return end;
    if (!relay)
        return end + 1;
    struct spans_walk into = spans_walk(dst, offset), out_of = spans_walk(src, offset);
    const struct span *to = walk_span(&into), *from = walk_span(&out_of);
    uint32_t length =
        least(least(to->length - into.offset, from->length - out_of.offset), least(end - offset, RELAY_PIECE));
    struct span buffer = {.host = relay->buffer, .length = RELAY_PIECE};
    struct spans source, target;

    if (relay->state == RELAY_UNDERWAY)
        return offset;
    /* The message began anew. */
    if (relay->offset != offset)
        relay->state = RELAY_IDLE;
    if (relay->state == RELAY_FAILED || relay->state == RELAY_STORED) {
        bool stored = relay->state == RELAY_STORED;

        relay->state = RELAY_IDLE;
        return stored && relay->length <= end - offset ? offset + relay->length : end + 1;
    }
    bool fetched = relay->state == RELAY_FETCHED;

    if (fetched)
        length = least(length, relay->length);
    relay->state = RELAY_IDLE;
    relay->offset = offset;
    relay->length = length;
    if (span_in_process(from) && !fetched) {
        relay->address = from->address + out_of.offset;
        return start(from->memory->reach, relay, RELAY_FETCHED) ? offset : end + 1;
    }
    if (fetched)
        spans_set_part(&source, &buffer, 0, length);
    else
        spans_set_part(&source, from, out_of.offset, length);
    if (span_in_process(to)) {
        spans_set_part(&target, &buffer, 0, length);
        if (!fetched && spans_copy_all(engine, &target, &source) > length)
            return end + 1;
        relay->address = to->address + into.offset;
        return start(to->memory->reach, relay, RELAY_STORED) ? offset : end + 1;
    }
    spans_set_part(&target, to, into.offset, length);
    return spans_copy_all(engine, &target, &source) > length ? end + 1 : offset + length;
}

enum relayed relay_gather(struct qp *qp, struct spans *data)
{
    struct relay *relay = relay_of(qp);
    uint32_t total = (uint32_t)data->total;

    if (!relay || data->total > SLUICE_MTU)
        return RELAYED_FAILED;
    struct spans whole = {.count = 0};

    spans_add_host(&whole, relay->datagram, total);
    while (relay->gathered < total) {
        uint32_t reached = relay_copy(qp, &whole, data, relay->gathered, total);

        if (reached > total) {
            relay->gathered = 0;
            return RELAYED_FAILED;
        }
        if (relay_underway(qp))
            return RELAYED_LATER;
        relay->gathered = reached;
    }
    *data = whole;
    return RELAYED_DONE;
}

enum relayed relay_atomic(struct qp *qp, const struct span *target)
{
    struct relay *relay = relay_of(qp);

    if (!relay)
        return RELAYED_FAILED;
    if (relay->state == RELAY_UNDERWAY)
        return RELAYED_LATER;
    enum relay_state state = relay->state;

    relay->state = RELAY_IDLE;
    if (state == RELAY_PERFORMED) {
        qp->message.original = relay->atomic.original;
        return RELAYED_DONE;
    }
    if (state == RELAY_FAILED)
        return RELAYED_FAILED;
    relay->address = target->address;
    relay->atomic.compare = qp->message.wqe->opcode == IBV_WR_ATOMIC_CMP_AND_SWP;
    relay->atomic.operands = *qp->message.atomic;
    return start(target->memory->reach, relay, RELAY_PERFORMED) ? RELAYED_LATER : RELAYED_FAILED;
}

enum relayed relay_fence(struct qp *qp)
{
    struct reach *reach = qp->session->reach;
    struct relay *relay = qp->relay;

    if (relay && relay->state == RELAY_UNDERWAY)
        return RELAYED_LATER;
    /* One that failed did so behind all that was before it, as well. */
    if (relay && relay->state != RELAY_IDLE && relay->purpose == RELAY_FENCED) {
        relay->state = RELAY_IDLE;
        return RELAYED_DONE;
    }
    if (!reach || !reach_busy(reach) || !(relay = relay_of(qp)))
        return RELAYED_DONE;
    return start(reach, relay, RELAY_FENCED) ? RELAYED_LATER : RELAYED_DONE;
}

void relay_drop(struct qp *qp)
{
    struct relay *relay = qp->relay;

    if (!relay)
        return;
    if (relay->state == RELAY_UNDERWAY) {
        relay->qp = NULL;
        qp->relay = NULL;
        if (relay->purpose == RELAY_FENCED)
            errand_leave(qp->session->engine, &relay->errand);
        else
            errand_keep(qp->session->engine, &relay->errand);
        return;
    }
    relay->state = RELAY_IDLE;
    relay->gathered = 0;
}

void relay_free(struct qp *qp)
{
    relay_drop(qp);
    free(qp->relay);
    qp->relay = NULL;
}
