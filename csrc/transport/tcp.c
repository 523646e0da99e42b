/* SPDX-License-Identifier: Apache-2.0 */
/* Connections come, break and go (tcp.h). */
#include "tcp.h"

#include <errno.h>
#include <infiniband/verbs.h>
#include <linux/sockios.h>
#include <stdlib.h>
#include <sys/ioctl.h>

#include "../clock.h"
#include "../relay.h"
#include "../srq.h"
#include "../tenant.h"

/*
 * The least time after which a peer counts as gone. A QP may ask for microseconds; TCP's own
 * retransmission, by which a single lost packet is repaired, takes 200 ms.
 */
#define PATIENCE_NS (NS_PER_SECOND / 2)
/* For a router that lives, as its kernel says, but doesn't answer. */
#define ROUTER_PATIENCE_NS (30 * NS_PER_SECOND)
/* How long unreliable messages wait for a connection. */
#define UNREACHABLE_NS (3 * NS_PER_SECOND)
/* How often the socket is asked whether its bytes move, at least. */
#define LOOK_NS (NS_PER_SECOND / 10)

static struct tcp_endpoint *endpoint_of(struct qp *qp)
{
    return qp->wire;
}

static bool waits_for_peer(const struct tcp_endpoint *endpoint)
{
    const struct qp *qp = endpoint->qp;

    return qp->completed != qp->sq.head || qp->message.active;
}

/* ---- nobody answers --------------------------------------------------------- */

/* IBTA 9.7.6.1.3: 4.096 us * 2^timeout a try. UINT64_MAX: for ever. */
static uint64_t patience(const struct qp *qp)
{
    if (qp->attr.timeout == 0)
        return UINT64_MAX;
    uint64_t limit = (qp->attr.retry_cnt + 1ull) * (4096ull << qp->attr.timeout);

    return limit > PATIENCE_NS ? limit : PATIENCE_NS;
}

/* More bytes than before have come to the peer's kernel: a long message is on its way. */
static bool bytes_arrive(struct tcp_endpoint *endpoint)
{
    int unsent = 0;

    if (endpoint->socket.fd < 0 || ioctl(endpoint->socket.fd, SIOCOUTQ, &unsent))
        return false;
    uint64_t arrived = endpoint->written - (uint64_t)unsent;
    bool more = arrived != endpoint->arrived;

    endpoint->arrived = arrived;
    return more;
}

/*
 * Something has come that isn't read yet, as this end's own ceilings hold it back, or its worker had no core: the peer
 * lives. Not where a request waits for a receive; that may be for ever. Nor is it a greeting yet: that isn't held back.
 */
static bool has_unread(const struct tcp_endpoint *endpoint)
{
    int unread = 0;

    return endpoint->greeted && endpoint->receiving != TCP_HOLD && endpoint->receiving != TCP_STOPPED &&
           ioctl(endpoint->socket.fd, FIONREAD, &unread) == 0 && unread > 0;
}

bool tcp_unreachable(const struct tcp_endpoint *endpoint)
{
    return !endpoint->greeted && endpoint->timer.place &&
           endpoint->qp->session->engine->now - endpoint->heard >= UNREACHABLE_NS;
}

/*
 * Its kernel takes what comes, and its router says nothing. One that is only slow, on
 * a machine with too much to do, is waited for longer than a wire.
 */
static bool gives_up(const struct tcp_endpoint *endpoint, uint64_t limit)
{
    uint64_t silent = endpoint->qp->session->engine->now - endpoint->heard;

    return silent >= ROUTER_PATIENCE_NS && silent >= limit;
}

void tcp_watch(struct tcp_endpoint *endpoint)
{
    struct sluice_engine *engine = endpoint->qp->session->engine;

    if (endpoint->timer.place)
        return;
    tcp_heard(endpoint);
    timer_set(&engine->timers, &endpoint->timer, engine->now + LOOK_NS);
}

static uint64_t earlier(uint64_t a, uint64_t b)
{
    return a < b ? a : b;
}

/*
 * This look comes late, as the worker had no core, or its process was stopped: what is unread since, and what has
 * arrived, is known from now on only, and the peer was not asked meanwhile. That time is no silence of its.
 */
static void leave_out(struct tcp_endpoint *endpoint, uint64_t late)
{
    uint64_t now = endpoint->qp->session->engine->now;

    endpoint->heard = earlier(endpoint->heard + late, now);
    endpoint->progress = earlier(endpoint->progress + late, now);
    if (endpoint->rnr && endpoint->rnr_until != UINT64_MAX)
        endpoint->rnr_until += late;
}

static void on_timer(struct timer *timer)
{
    struct tcp_endpoint *endpoint = list_entry(timer, struct tcp_endpoint, timer);
    struct sluice_engine *engine = endpoint->qp->session->engine;
    uint64_t limit = patience(endpoint->qp);

    if (!waits_for_peer(endpoint)) {
        /* Between a connection's end and the requester's next turn it still does: its patience goes on. */
        if (endpoint->put_back)
            timer_set(&engine->timers, timer, engine->now + LOOK_NS);
        endpoint->put_back = false;
        return;
    }
    if (engine->now - timer->when > LOOK_NS)
        leave_out(endpoint, engine->now - timer->when);
    if (tcp_stores_answer(endpoint) ||
        (endpoint->qp->wait == QP_WAIT_COPY && relay_underway(endpoint->qp) && relay_is_own(endpoint->qp))) {
        /* Of this end's own process: its application has no use for an end of the message before that. */
        tcp_heard(endpoint);
        timer_set(&engine->timers, timer, engine->now + LOOK_NS);
        return;
    }
    if (endpoint->rnr && endpoint->greeted) {
        /* It lives, and waits. Set again by what ends the waiting. */
        if (endpoint->rnr_until != UINT64_MAX && endpoint->rnr_until <= engine->now) {
            tcp_fail(endpoint, IBV_WC_RNR_RETRY_EXC_ERR);
            return;
        }
        tcp_heard(endpoint);
    } else if (has_unread(endpoint)) {
        tcp_heard(endpoint);
        /* The beginning of something long is no sign of life twice. */
        tcp_read_what_came(endpoint);
    } else if ((endpoint->greeted || engine->now - endpoint->heard < limit) && bytes_arrive(endpoint)) {
        /* A greeting, too, but not one after the other for ever. */
        endpoint->progress = engine->now;
    }
    if (qp_is_unreliable(endpoint->qp)) {
        timer_set(&engine->timers, timer, engine->now + LOOK_NS);
        if (tcp_unreachable(endpoint) && endpoint->qp->wait == QP_WAIT_TRANSPORT)
            qp_activate(endpoint->qp);
        return;
    }
    uint64_t silent = engine->now - endpoint->progress;

    if (limit != UINT64_MAX && (silent >= limit || gives_up(endpoint, limit))) {
        tcp_fail(endpoint, IBV_WC_RETRY_EXC_ERR);
        return;
    }
    if (silent >= limit / 4 && endpoint->greeted) {
        endpoint->acknowledge = true;
        net_wake(engine->net, &endpoint->socket);
    }
    uint64_t next = engine->now + LOOK_NS;

    if (endpoint->rnr && endpoint->rnr_until < next)
        next = endpoint->rnr_until;
    timer_set(&engine->timers, timer, next);
}

static void on_hold_over(struct timer *timer)
{
    struct tcp_endpoint *endpoint = list_entry(timer, struct tcp_endpoint, hold);

    if (endpoint->told == endpoint->expected || endpoint->socket.fd < 0)
        return;
    endpoint->prompt = 0;
    net_wake(endpoint->qp->session->engine->net, &endpoint->socket);
}

/* ---- the responder's turns ----------------------------------------------------- */

bool tcp_admitted(struct tcp_endpoint *endpoint, uint32_t direction)
{
    struct tcp_grant *grant = &endpoint->grants[direction];

    if (grant->left)
        return true;
    if (endpoint->dead)
        return false;
    tenant_add_chore(endpoint->qp->tenant, direction, &grant->chore);
    return false;
}

void tcp_charge(struct tcp_endpoint *endpoint, uint32_t direction, uint32_t bytes)
{
    struct tcp_grant *grant = &endpoint->grants[direction];

    grant->left = bytes < grant->left ? grant->left - bytes : 0;
    grant->moved += bytes;
}

static void serve(struct sluice_engine *engine, struct net_socket *socket);

static uint32_t take_turn(struct tcp_endpoint *endpoint, uint32_t direction, uint32_t bytes)
{
    struct sluice_engine *engine = endpoint->qp->session->engine;
    struct tcp_grant *grant = &endpoint->grants[direction];

    /* A requester that is held back hears that somebody is there, before it gives up. */
    if (endpoint->qp->tenant->limited[direction] && engine->now - endpoint->spoke >= PATIENCE_NS / 4) {
        endpoint->spoke = engine->now;
        endpoint->acknowledge = true;
    }
    grant->left = bytes;
    grant->moved = 0;
    serve(engine, &endpoint->socket);
    grant->left = 0;
    return grant->moved;
}

static uint32_t take(struct chore *chore, uint32_t bytes)
{
    return take_turn(list_entry(chore, struct tcp_endpoint, grants[FLOW_INGRESS].chore), FLOW_INGRESS, bytes);
}

static uint32_t give(struct chore *chore, uint32_t bytes)
{
    return take_turn(list_entry(chore, struct tcp_endpoint, grants[FLOW_EGRESS].chore), FLOW_EGRESS, bytes);
}

static void init_grant(struct tcp_grant *grant, uint32_t (*run)(struct chore *chore, uint32_t bytes))
{
    *grant = (struct tcp_grant){.chore.run = run};
    list_init(&grant->chore.link);
}

static void drop_chores(struct tcp_endpoint *endpoint)
{
    for (uint32_t direction = 0; direction < DIRECTIONS; direction++) {
        tenant_drop_chore(endpoint->qp->tenant, direction, &endpoint->grants[direction].chore);
        endpoint->grants[direction].left = 0;
    }
}

/* ---- a connection ----------------------------------------------------------- */

static void stop_holding(struct tcp_endpoint *endpoint)
{
    list_remove(&endpoint->held);
    endpoint->receiving = TCP_HEADER;
}

static void drop(struct tcp_endpoint *endpoint)
{
    struct qp *qp = endpoint->qp;

    net_remove(qp->session->engine, &endpoint->socket, false);
    drop_chores(endpoint);
    endpoint->greeted = endpoint->hello_due = false;
    endpoint->source = TCP_NOTHING;
    endpoint->sending = endpoint->sending_header = 0;
    endpoint->start = endpoint->end = endpoint->left = 0;
    stop_holding(endpoint);
    tcp_give_up_pieces(endpoint);
    /* The responder's side: what wasn't answered is asked for again. */
    endpoint->answers_count = 0;
    endpoint->rnr_due = endpoint->acknowledge = endpoint->losing = false;
    endpoint->told = endpoint->expected;
    endpoint->unanswered = false;
    endpoint->prompt = 0;
    /* The requester's: the send queue still holds all that isn't completed. */
    endpoint->answered = endpoint->parts = endpoint->answer_offset = 0;
    endpoint->whole = endpoint->rnr = false;
    if (qp_is_unreliable(qp)) {
        if (qp->message.active && qp->message.moved)
            qp->message.dropped = true;
    } else {
        endpoint->put_back = waits_for_peer(endpoint);
        qp->sq.head = qp->completed;
        qp->message.active = false;
    }
    /* Whoever looked at the message for an answer has dropped what it was waiting for. */
    if (qp->wait == QP_WAIT_TRANSPORT || (qp->wait == QP_WAIT_COPY && !relay_underway(qp)))
        qp_activate(qp);
    else if (!qp->session->broken)
        qp_ring(qp);
}

void tcp_lost(struct tcp_endpoint *endpoint)
{
    drop(endpoint);
    if (!endpoint->dead)
        engine_tell_qp(endpoint->qp, SLUICE_EVENT_QP_DISCONNECTED);
}

int tcp_attach(struct qp *qp, int fd)
{
    struct tcp_endpoint *endpoint = endpoint_of(qp);

    if (!endpoint || qp->transport != &transport_tcp)
        return -ENOTCONN;
    if (endpoint->socket.fd >= 0)
        drop(endpoint);
    endpoint->written = endpoint->arrived = 0;
    endpoint->low = 1;
    endpoint->hello_due = true;
    return net_add(qp->session->engine, &endpoint->socket, fd);
}

static void serve(struct sluice_engine *engine, struct net_socket *socket)
{
    struct tcp_endpoint *endpoint = list_entry(socket, struct tcp_endpoint, socket);
    struct qp *qp = endpoint->qp;

    (void)engine;
    /* What waits for a receive waits for nobody any more. */
    if (socket->hung_up && endpoint->receiving == TCP_HOLD) {
        tcp_lost(endpoint);
        return;
    }
    /* Both may end the QP, and the connection with it. */
    if (socket->fd < 0 || (socket->readable && !tcp_read(endpoint)) || !tcp_write(endpoint))
        return;
    if (qp->wait == QP_WAIT_TRANSPORT && endpoint->greeted && !endpoint->rnr && socket->writable &&
        endpoint->source == TCP_NOTHING)
        qp_activate(qp);
}

/* ---- what the QP says ------------------------------------------------------- */

static int tcp_connect(struct qp *qp)
{
    struct sluice_engine *engine = qp->session->engine;

    /* For its socket, whenever that comes. */
    if (!tenant_take_files(qp->tenant->first, 1))
        return -ENOMEM;
    struct tcp_endpoint *endpoint = calloc(1, sizeof(*endpoint));
    int error = endpoint ? timers_reserve(&engine->timers) : -ENOMEM;

    if (!error && (error = timers_reserve(&engine->timers)))
        timers_release(&engine->timers);
    if (error) {
        tenant_give_files(qp->tenant->first, 1);
        free(endpoint);
        return error;
    }
    endpoint->qp = qp;
    endpoint->base = qp->sq.head;
    endpoint->timer.fire = on_timer;
    endpoint->hold.fire = on_hold_over;
    endpoint->socket.fd = -1;
    endpoint->socket.id = qp->qp_num;
    endpoint->socket.serve = serve;
    list_init(&endpoint->socket.ready);
    list_init(&endpoint->held);
    init_grant(&endpoint->grants[FLOW_INGRESS], take);
    init_grant(&endpoint->grants[FLOW_EGRESS], give);
    qp->completed = qp->sq.head;
    qp->wire = endpoint;
    return 0;
}

static void tcp_disconnect(struct qp *qp)
{
    struct sluice_engine *engine = qp->session->engine;
    struct tcp_endpoint *endpoint = endpoint_of(qp);

    if (!endpoint)
        return;
    tcp_say_last(endpoint);
    list_remove(&endpoint->held);
    drop_chores(endpoint);
    timer_cancel(&engine->timers, &endpoint->timer);
    timer_cancel(&engine->timers, &endpoint->hold);
    timers_release(&engine->timers);
    timers_release(&engine->timers);
    net_remove(engine, &endpoint->socket, endpoint->failed);
    tenant_give_files(qp->tenant->first, 1);
    tcp_give_up_pieces(endpoint);
    tcp_give_up_atomic(endpoint);
    qp->wire = NULL;
    /* Whoever called into the QP may still hold it: freed before the next round. */
    endpoint->dead = true;
    list_append(&engine->net->dead, &endpoint->held);
}

void tcp_bury(struct net *net)
{
    while (!list_empty(&net->dead))
        free(list_entry(list_take(&net->dead), struct tcp_endpoint, held));
}

void tcp_resume(struct tcp_endpoint *endpoint)
{
    list_remove(&endpoint->held);
    if (endpoint->receiving != TCP_HOLD)
        return;
    endpoint->socket.readable = true;
    net_wake(endpoint->qp->session->engine->net, &endpoint->socket);
}

static void tcp_receive_posted(struct qp *qp)
{
    struct tcp_endpoint *endpoint = endpoint_of(qp);

    if (endpoint && endpoint->receiving == TCP_HOLD)
        tcp_resume(endpoint);
}

const struct transport transport_tcp = {
    .name = "tcp",
    .send = tcp_send,
    .send_datagram = trunk_send_datagram,
    .flush = tcp_flush,
    .connect = tcp_connect,
    .disconnect = tcp_disconnect,
    .receive_posted = tcp_receive_posted,
};
