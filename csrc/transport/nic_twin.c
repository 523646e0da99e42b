/* SPDX-License-Identifier: Apache-2.0 */
/* What a QP has on the NIC: a QP of the same type and PD, that goes through the same states. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "../atomic.h"
#include "../clock.h"
#include "../nic_pool.h"
#include "../nic_srq.h"
#include "../session.h"
#include "nic.h"

/* How long a NIC may take to give back what a failed QP had; it was removed, or is broken, after that. */
#define DRAIN_NS (2 * NS_PER_SECOND)
/* How often to ask whether an empty send queue is drained, which it is at once. */
enum { DRAIN_LOOKS = 1000 };
/* How many QP numbers that other NICs gave as well are passed over at a stretch. */
enum { NUMBERS_AT_ONCE = 64 };
/* A send queue that a device refuses is tried half as deep, down to this. */
enum { LEAST_SENDS = 16 };

/* ---- made and destroyed ----------------------------------------------------- */

/* Where its receives are: on the twin itself, on that of its SRQ, or, for datagrams, with the engine. */
static int take_receives(struct nic *nic, struct qp *qp, struct nic_qp *twin, struct ibv_qp_init_attr *attr)
{
    int error;

    if (qp->type == IBV_QPT_UD) {
        if ((error = nic_pool_join(qp->pd)))
            return error;
        twin->pool = qp->pd->pool;
        attr->srq = twin->pool->srq;
        attr->recv_cq = twin->pool->cq->cq;
        return 0;
    }
    if (qp->srq) {
        if ((error = nic_srq_join(qp->srq)))
            return error;
        twin->srq = qp->srq->nic;
        attr->srq = twin->srq->twin;
        attr->recv_cq = twin->srq->cq->cq;
        return 0;
    }
    twin->receives = qp->rq.entries ? qp->rq.entries : 1;
    attr->cap.max_recv_wr = twin->receives;
    attr->cap.max_recv_sge = qp->attr.cap.max_recv_sge ? qp->attr.cap.max_recv_sge : 1;
    twin->recv_cq = nic_take_cq(nic, twin->receives, false);
    if (!twin->recv_cq)
        return errno ? -errno : -ENOMEM;
    attr->recv_cq = twin->recv_cq->cq;
    return 0;
}

static void take_number(struct qp *qp, struct nic_qp *twin)
{
    qp->qp_num = twin->qp->qp_num & (NIC_NUMBERS - 1);
    qp->session->engine->nic_qps[qp->qp_num] = qp;
}

/*
 * NICs number their QPs each for itself, and all from the same numbers on; a node's are told apart by number. One that is taken
 * is kept from being given again until another is found; NICs give numbers in turn, and go on where they were. -EAGAIN: after
 * many in vain, for the worker to see to others meanwhile.
 */
static int create(struct nic *nic, struct qp *qp, struct nic_qp *twin, const struct ibv_qp_init_attr *attr)
{
    struct ibv_qp *taken[NUMBERS_AT_ONCE];
    uint32_t count = 0;
    int error = 0;

    while (!twin->qp && !error) {
        struct ibv_qp_init_attr own = *attr; /* which the device writes to */

        errno = 0;
        struct ibv_qp *one = nic->call.ibv_create_qp(qp->pd->nic, &own);

        if (!one) {
            error = errno ? -errno : -ENOMEM;
        } else if (!qp_lookup(qp->session->engine, one->qp_num & (NIC_NUMBERS - 1))) {
            twin->qp = one;
        } else {
            taken[count++] = one;
            error = count == NUMBERS_AT_ONCE ? -EAGAIN : 0;
        }
    }
    while (count)
        nic->call.ibv_destroy_qp(taken[--count]);
    return error;
}

/*
 * How deep a send queue may be depends on how long its requests can be, as no attribute of a device's says (mlx5 counts 64-byte
 * blocks). Behind a shallower one what doesn't fit waits in the tenant's own.
 */
static int create_as_deep_as_may_be(struct nic *nic, struct qp *qp, struct nic_qp *twin, struct ibv_qp_init_attr *attr)
{
    int error = create(nic, qp, twin, attr);

    while ((error == -EINVAL || error == -ENOMEM) && twin->sends > LEAST_SENDS) {
        uint32_t fewer = twin->sends / 2;

        nic_give_cq(nic, twin->send_cq, twin->sends - fewer);
        twin->sends = attr->cap.max_send_wr = fewer;
        error = create(nic, qp, twin, attr);
    }
    return error;
}

static int make(struct nic *nic, struct qp *qp, struct nic_qp *twin)
{
    struct ibv_qp_init_attr attr = {
        .qp_type = (enum ibv_qp_type)qp->type,
        .sq_sig_all = 1,
        .cap = {.max_send_wr = qp->sq.entries ? qp->sq.entries : 1,
                .max_send_sge = qp->attr.cap.max_send_sge ? qp->attr.cap.max_send_sge : 1,
                .max_inline_data = qp->attr.cap.max_inline_data},
    };

    twin->sends = attr.cap.max_send_wr;
    uint32_t entries = 1;

    while (entries < twin->sends)
        entries *= 2;
    twin->ring_mask = entries - 1;
    twin->ring = calloc(entries, sizeof(*twin->ring));
    if (!twin->ring)
        return -ENOMEM;
    errno = 0;
    twin->send_cq = nic_take_cq(nic, twin->sends, true);
    if (!twin->send_cq)
        return errno ? -errno : -ENOMEM;
    attr.send_cq = twin->send_cq->cq;
    int error = take_receives(nic, qp, twin, &attr);

    if (error)
        return error;
    error = create_as_deep_as_may_be(nic, qp, twin, &attr);
    if (!error)
        take_number(qp, twin);
    return error;
}

/* Destroying a QP, or resetting it, drops completions that nobody has taken: receives of its SRQ would be lost. */
static void take_shared(struct nic *nic, const struct nic_qp *twin)
{
    if (twin->srq)
        nic_poll_cq(nic, twin->srq->cq);
    if (twin->pool)
        nic_poll_cq(nic, twin->pool->cq);
}

static void unmake(struct nic *nic, struct qp *qp, struct nic_qp *twin)
{
    if (twin->qp) {
        take_shared(nic, twin);
        nic->call.ibv_destroy_qp(twin->qp);
    }
    if (twin->pool)
        nic_pool_leave(qp->pd);
    if (twin->srq)
        nic_srq_leave(qp->srq);
    if (twin->recv_cq)
        nic_give_cq(nic, twin->recv_cq, twin->receives);
    if (twin->send_cq)
        nic_give_cq(nic, twin->send_cq, twin->sends);
    free(twin->ring);
    free(twin);
}

static void on_timer(struct timer *timer);

int nic_qp_create(struct qp *qp)
{
    struct sluice_engine *engine = qp->session->engine;
    struct nic_qp *twin = calloc(1, sizeof(*twin));
    int error = twin ? timers_reserve(&engine->timers) : -ENOMEM;

    if (error) {
        free(twin);
        return error;
    }
    twin->owner = qp;
    twin->timer.fire = on_timer;
    list_init(&twin->blocked);
    list_init(&twin->ending);
    error = make(nic_of(qp), qp, twin);
    if (error) {
        timers_release(&engine->timers);
        unmake(nic_of(qp), qp, twin);
        return error;
    }
    qp->twin = twin;
    return 0;
}

void nic_qp_destroy(struct qp *qp)
{
    struct sluice_engine *engine = qp->session->engine;
    struct nic_qp *twin = qp->twin;

    if (!twin)
        return;
    engine->nic_qps[qp->qp_num] = NULL;
    timer_cancel(&engine->timers, &twin->timer);
    timers_release(&engine->timers);
    list_remove(&twin->blocked);
    list_remove(&twin->ending);
    unmake(nic_of(qp), qp, twin);
    qp->twin = NULL;
}

/* ---- states ----------------------------------------------------------------- */

void nic_address(const struct nic *nic, const struct sluice_ah_attr *from, struct ibv_ah_attr *to)
{
    *to = (struct ibv_ah_attr){
        .grh = {.flow_label = from->flow_label,
                .sgid_index = from->sgid_index < nic->gids ? nic->gid_index[from->sgid_index] : 0,
                .hop_limit = (uint8_t)from->hop_limit,
                .traffic_class = (uint8_t)from->traffic_class},
        .sl = (uint8_t)from->sl,
        .static_rate = (uint8_t)from->static_rate,
        .is_global = 1,
        .port_num = nic->port,
    };
    memcpy(to->grh.dgid.raw, from->dgid, sizeof(from->dgid));
}

static int to_init(struct nic *nic, const struct qp *qp)
{
    struct ibv_qp_attr attr = {.qp_state = IBV_QPS_INIT,
                               .port_num = nic->port,
                               .qkey = qp->attr.qkey,
                               .qp_access_flags = qp->attr.qp_access_flags};
    int mask = IBV_QP_STATE | IBV_QP_PKEY_INDEX | IBV_QP_PORT;

    mask |= qp->type == IBV_QPT_UD ? IBV_QP_QKEY : IBV_QP_ACCESS_FLAGS;
    return nic->call.ibv_modify_qp(qp->twin->qp, &attr, mask);
}

static int to_rtr(struct nic *nic, const struct qp *qp)
{
    struct ibv_qp_attr attr = {.qp_state = IBV_QPS_RTR,
                               .path_mtu = (enum ibv_mtu)qp->attr.path_mtu,
                               .dest_qp_num = qp->attr.dest_qp_num,
                               .rq_psn = qp->attr.rq_psn & 0xffffff,
                               .max_dest_rd_atomic = (uint8_t)qp->attr.max_dest_rd_atomic,
                               .min_rnr_timer = (uint8_t)qp->attr.min_rnr_timer};
    int mask = IBV_QP_STATE;

    if (qp->type != IBV_QPT_UD)
        mask |= IBV_QP_AV | IBV_QP_PATH_MTU | IBV_QP_DEST_QPN | IBV_QP_RQ_PSN;
    if (qp->type == IBV_QPT_RC)
        mask |= IBV_QP_MAX_DEST_RD_ATOMIC | IBV_QP_MIN_RNR_TIMER;
    if (qp->type != IBV_QPT_UD)
        nic_address(nic, &qp->attr.ah, &attr.ah_attr);
    return nic->call.ibv_modify_qp(qp->twin->qp, &attr, mask);
}

static int to_rts(struct nic *nic, const struct qp *qp, const struct sluice_qp_attr *now, uint32_t asked)
{
    struct ibv_qp_attr attr = {.qp_state = IBV_QPS_RTS,
                               .sq_psn = now->sq_psn & 0xffffff,
                               .timeout = (uint8_t)now->timeout,
                               .retry_cnt = (uint8_t)now->retry_cnt,
                               .rnr_retry = (uint8_t)now->rnr_retry,
                               .max_rd_atomic = (uint8_t)now->max_rd_atomic,
                               .qp_access_flags = now->qp_access_flags,
                               .min_rnr_timer = (uint8_t)now->min_rnr_timer};
    int mask = IBV_QP_STATE | IBV_QP_SQ_PSN | (int)(asked & (IBV_QP_ACCESS_FLAGS | IBV_QP_MIN_RNR_TIMER));

    if (qp->type == IBV_QPT_RC)
        mask |= IBV_QP_TIMEOUT | IBV_QP_RETRY_CNT | IBV_QP_RNR_RETRY | IBV_QP_MAX_QP_RD_ATOMIC;
    return nic->call.ibv_modify_qp(qp->twin->qp, &attr, mask);
}

/* One that has waited to be named back. */
static void wake_neighbour(const struct qp *qp)
{
    struct qp *other = qp_behind(qp->twin->behind, qp->attr.dest_qp_num);

    if (other && other->wait == QP_WAIT_PEER && other->attr.dest_qp_num == qp->qp_num)
        qp_activate(other);
}

int nic_connect(struct qp *qp)
{
    struct nic *nic = nic_of(qp);
    struct nic_qp *twin = qp->twin;
    int error = to_init(nic, qp);

    if (error)
        return -error;
    twin->tag = ++nic->tags;
    twin->posted = twin->completed = 0;
    twin->stuck = false;
    twin->pace = (struct pace){0};
    twin->received = qp->rq.head;
    qp->completed = qp->sq.head;
    twin->connected = true;
    nic->connected++;
    if (twin->srq)
        nic_srq_connect(qp->srq);
    else
        nic_post_receives(qp);
    /* The NIC drops what comes before its receive, where a reliable connection asks to send again. */
    store_relaxed(&qp->shared->prompt, qp->type == IBV_QPT_UC && !twin->srq);
    error = to_rtr(nic, qp);
    /* The engine sends nothing before it is in RTS itself; datagrams need no more than this. */
    if (!error && qp->type == IBV_QPT_UD)
        error = to_rts(nic, qp, &qp->attr, 0);
    if (!error && qp->type != IBV_QPT_UD && twin->behind)
        wake_neighbour(qp);
    return -error;
}

static void forget(struct nic *nic, struct nic_qp *twin)
{
    nic->outstanding -= twin->completed != twin->posted;
    for (; twin->completed != twin->posted; twin->completed++) {
        nic->flying -= twin->ring[twin->completed & twin->ring_mask].bytes;
        twin->owner->tenant->flying -= twin->ring[twin->completed & twin->ring_mask].bytes;
    }
    list_remove(&twin->blocked);
}

void nic_disconnect(struct qp *qp)
{
    struct nic *nic = nic_of(qp);
    struct nic_qp *twin = qp->twin;
    struct ibv_qp_attr attr = {.qp_state = IBV_QPS_RESET};

    if (!twin->connected)
        return;
    if (!nic->polling)
        take_shared(nic, twin);
    /* One of what came may have ended it. */
    if (!twin->connected)
        return;
    list_remove(&twin->ending);
    twin->connected = twin->draining = false;
    store_relaxed(&qp->shared->prompt, 0);
    nic->connected--;
    if (twin->srq)
        nic_srq_disconnect(qp->srq);
    timer_cancel(&qp->session->engine->timers, &twin->timer);
    forget(nic, twin);
    twin->tag = 0;
    /* Receives that did not come back are the queue's again, to be flushed. */
    if (twin->recv_cq)
        qp->rq.head = twin->received;
    nic->call.ibv_modify_qp(twin->qp, &attr, IBV_QP_STATE);
    nic_wake_blocked(nic);
    nic_wake_grounded(qp->tenant);
}

bool nic_drained(const struct qp *qp)
{
    const struct nic_qp *twin = qp->twin;

    return twin->posted == twin->completed && (!twin->recv_cq || twin->received == qp->rq.head);
}

bool nic_drain(struct qp *qp)
{
    struct sluice_engine *engine = qp->session->engine;
    struct nic *nic = nic_of(qp);
    struct nic_qp *twin = qp->twin;
    struct ibv_qp_attr attr = {.qp_state = IBV_QPS_ERR};

    if (!twin->connected || nic->lost || nic->call.ibv_modify_qp(twin->qp, &attr, IBV_QP_STATE))
        return false;
    if (nic_drained(qp) && (twin->recv_cq || !nic->polling))
        return false;
    twin->draining = true;
    store_relaxed(&qp->shared->prompt, 0);
    if (nic_drained(qp))
        list_append(&nic->ending, &twin->ending);
    timer_set(&engine->timers, &twin->timer, engine->now + DRAIN_NS);
    return true;
}

static void on_timer(struct timer *timer)
{
    qp_drained(list_entry(timer, struct nic_qp, timer)->owner);
}

/*
 * What a QP may change in SQD only. SQD is otherwise the engine's own: the twin stays in RTS, and gets nothing. So it is
 * empty here, and goes to SQD and back at once.
 */
static int change_in_sqd(struct nic *nic, const struct qp *qp, const struct sluice_qp_attr *to, uint32_t mask)
{
    struct nic_qp *twin = qp->twin;
    struct ibv_qp_attr attr = {.qp_state = IBV_QPS_SQD}, now;
    struct ibv_qp_init_attr init;
    int error = nic->call.ibv_modify_qp(twin->qp, &attr, IBV_QP_STATE);

    for (int look = 0; !error && look < DRAIN_LOOKS; look++) {
        error = nic->call.ibv_query_qp(twin->qp, &now, IBV_QP_STATE, &init);
        if (!error && (now.qp_state != IBV_QPS_SQD || !now.sq_draining))
            break;
    }
    if (!error) {
        attr = (struct ibv_qp_attr){.qp_state = IBV_QPS_SQD,
                                    .timeout = (uint8_t)to->timeout,
                                    .retry_cnt = (uint8_t)to->retry_cnt,
                                    .rnr_retry = (uint8_t)to->rnr_retry,
                                    .max_rd_atomic = (uint8_t)to->max_rd_atomic,
                                    .max_dest_rd_atomic = (uint8_t)to->max_dest_rd_atomic,
                                    .min_rnr_timer = (uint8_t)to->min_rnr_timer,
                                    .qp_access_flags = to->qp_access_flags};
        nic_address(nic, &to->ah, &attr.ah_attr);
        error = nic->call.ibv_modify_qp(twin->qp, &attr, (int)mask | IBV_QP_STATE);
    }
    attr = (struct ibv_qp_attr){.qp_state = IBV_QPS_RTS};
    int back = nic->call.ibv_modify_qp(twin->qp, &attr, IBV_QP_STATE);

    return error ? error : back;
}

int nic_modify(struct qp *qp, const struct sluice_qp_attr *attr, uint32_t mask)
{
    const uint32_t sqd = IBV_QP_AV | IBV_QP_TIMEOUT | IBV_QP_RETRY_CNT | IBV_QP_RNR_RETRY | IBV_QP_MAX_QP_RD_ATOMIC |
                         IBV_QP_MAX_DEST_RD_ATOMIC;
    struct nic *nic = nic_of(qp);

    if (qp->type == IBV_QPT_UD) {
        struct ibv_qp_attr change = {.qkey = attr->qkey};

        return mask & IBV_QP_QKEY ? -nic->call.ibv_modify_qp(qp->twin->qp, &change, IBV_QP_QKEY) : 0;
    }
    if ((mask & IBV_QP_STATE) && qp->state == IBV_QPS_RTR && attr->qp_state == IBV_QPS_RTS)
        return -to_rts(nic, qp, attr, mask);
    if (mask & sqd) {
        /* Another path may lead to another network. */
        if ((mask & IBV_QP_AV) && attr->ah.sgid_index >= nic->gids)
            return -EINVAL;
        /* What was begun before SQD comes first (IBTA 10.3.1.5). */
        if (qp->completed != qp->sq.head || qp->message.active)
            return -EBUSY;
        return -change_in_sqd(nic, qp, attr, mask & (sqd | IBV_QP_ACCESS_FLAGS | IBV_QP_MIN_RNR_TIMER));
    }
    struct ibv_qp_attr change = {.qp_access_flags = attr->qp_access_flags,
                                 .min_rnr_timer = (uint8_t)attr->min_rnr_timer};
    int bits = (int)(mask & (IBV_QP_ACCESS_FLAGS | IBV_QP_MIN_RNR_TIMER));

    return bits ? -nic->call.ibv_modify_qp(qp->twin->qp, &change, bits) : 0;
}

void nic_qp_check(struct qp *qp)
{
    struct ibv_qp_attr attr;
    struct ibv_qp_init_attr init;

    if (qp->twin && qp->twin->connected && qp_can_respond(qp) &&
        nic_of(qp)->call.ibv_query_qp(qp->twin->qp, &attr, IBV_QP_STATE, &init) == 0 && attr.qp_state == IBV_QPS_ERR)
        qp_error(qp);
}
