/* SPDX-License-Identifier: Apache-2.0 */
#include "srq.h"

#include <errno.h>
#include <infiniband/verbs.h>
#include <stdlib.h>
#include <string.h>

#include "atomic.h"
#include "context.h"
#include "cq.h"
#include "holdings.h"
#include "nic_srq.h"
#include "qp.h"
#include "session.h"
#include "transport/tcp.h"
#include "xrc.h"

/* A receive that the NIC gave back. */
struct returned {
    uint64_t wr_id;
    uint32_t num_sge;
    struct sluice_sge sges[SLUICE_MAX_SGE];
};

static int take_handle(struct session *session, struct srq *srq)
{
    for (uint32_t i = 0; i < SLUICE_SESSION_SRQS; i++) {
        uint32_t handle = (session->srq_hint + i) % SLUICE_SESSION_SRQS;

        if (handle == 0 || session->srqs[handle])
            continue;
        session->srq_hint = handle + 1;
        session->srqs[handle] = srq;
        srq->handle = handle;
        return 0;
    }
    return -ENOMEM;
}

static int take_number(struct srq *srq)
{
    struct sluice_engine *engine = srq->session->engine;

    if (srq->pd->context->tenant->xrc_srqs == TENANT_XRC_SRQS)
        return -ENOMEM;
    for (uint32_t i = 0; i <= SLUICE_MAX_SRQN; i++) {
        uint32_t number = (engine->srq_hint + i) & SLUICE_MAX_SRQN;

        if (number == 0 || engine->srqs[number])
            continue;
        engine->srq_hint = number + 1;
        engine->srqs[number] = srq;
        srq->number = number;
        srq->pd->context->tenant->xrc_srqs++;
        return 0;
    }
    return -ENOMEM;
}

static void give_number(struct srq *srq)
{
    if (srq->number == 0)
        return;
    srq->session->engine->srqs[srq->number] = NULL;
    srq->pd->context->tenant->xrc_srqs--;
}

/* What the request names, checked. */
static int find_objects(struct srq *srq, const struct sluice_create_srq_request *request)
{
    if (request->max_wr == 0 || request->max_wr > SLUICE_MAX_WR || request->max_sge > SLUICE_MAX_SGE ||
        request->limit > request->max_wr)
        return -EINVAL;
    srq->pd = pd_find(srq->session, request->pd);
    if (!srq->pd)
        return -EINVAL;
    if (request->xrcd == 0)
        return 0;
    srq->opened = xrcd_find(srq->session, request->xrcd);
    srq->cq = cq_find(srq->session, request->cq);
    if (!srq->opened || !srq->cq || srq->opened->context->tenant != srq->pd->context->tenant ||
        srq->cq->context->tenant != srq->pd->context->tenant)
        return -EINVAL;
    srq->xrcd = srq->opened->xrcd;
    return 0;
}

int srq_create(struct session *session, const struct sluice_create_srq_request *request,
               struct sluice_create_srq_reply *reply)
{
    struct srq *srq = calloc(1, sizeof(*srq));
    int64_t offset = 0;
    bool held = false;

    if (!srq)
        return -ENOMEM;
    srq->session = session;
    list_init(&srq->held);
    list_init(&srq->waiting);
    int error = find_objects(srq, request);

    if (!error && !holding_take(session->tenant, HOLDING_SRQS))
        error = -ENOMEM;
    else if (!error)
        held = true;
    if (!error) {
        srq->max_sge = request->max_sge;
        srq->limit = request->limit;
        srq->queue.entries = queue_entries(request->max_wr);
        srq->queue.stride = queue_receive_stride(request->max_sge);
        srq->size = sizeof(*srq->shared) + (uint64_t)srq->queue.entries * srq->queue.stride;
        offset = session_take_part(session, srq->size);
        error = offset < 0 ? (int)offset : 0;
    }
    if (error) {
        if (held)
            holding_give(session->tenant, HOLDING_SRQS);
        free(srq);
        return error;
    }
    srq->offset = (uint64_t)offset;
    error = take_handle(session, srq);
    if (!error && srq->xrcd && (error = take_number(srq)))
        session->srqs[srq->handle] = NULL;
    if (error) {
        session_give_part(session, srq->offset, srq->size);
        holding_give(session->tenant, HOLDING_SRQS);
        free(srq);
        return error;
    }
    srq->shared = (struct sluice_srq_shared *)(session->segment.base + srq->offset);
    srq->queue.shared = &srq->shared->queue;
    srq->queue.ring = (uint8_t *)(srq->shared + 1);
    srq->pd->users++;
    if (srq->xrcd) {
        srq->cq->users++;
        srq->opened->users++;
    }
    reply->handle = srq->handle;
    reply->srq_num = srq->number;
    reply->max_wr = srq->queue.entries;
    reply->max_sge = srq->max_sge;
    reply->stride = srq->queue.stride;
    reply->offset = srq->offset;
    return 0;
}

static void wake_waiting(struct srq *srq)
{
    struct list woken;

    list_init(&woken);
    while (!list_empty(&srq->held))
        tcp_resume(list_entry(list_take(&srq->held), struct tcp_endpoint, held));
    list_splice(&woken, &srq->waiting);
    while (!list_empty(&woken))
        qp_activate(list_entry(list_take(&woken), struct qp, link));
}

void srq_free(struct srq *srq)
{
    struct session *session = srq->session;

    give_number(srq);
    if (srq->xrcd) {
        xrcd_forget_srq(srq->xrcd, srq);
        srq->cq->users--;
        srq->opened->users--;
    }
    /* They look for it again, and don't find it. */
    wake_waiting(srq);
    srq->pd->users--;
    free(srq->returned);
    session->srqs[srq->handle] = NULL;
    session_give_part(session, srq->offset, srq->size);
    holding_give(session->tenant, HOLDING_SRQS);
    free(srq);
}

struct srq *srq_find(struct session *session, uint32_t handle)
{
    return handle < SLUICE_SESSION_SRQS ? session->srqs[handle] : NULL;
}

struct srq *srq_lookup(struct sluice_engine *engine, uint32_t number)
{
    return number <= SLUICE_MAX_SRQN ? engine->srqs[number] : NULL;
}

int srq_set_limit(struct srq *srq, uint32_t limit)
{
    if (limit > srq->queue.entries)
        return -EINVAL;
    srq->limit = limit;
    return 0;
}

/* Once for each time it was armed, when a message is served (or isn't) with fewer WRs left than the limit. */
void srq_check_limit(struct srq *srq)
{
    if (srq->limit == 0)
        return;
    uint32_t left = queue_waiting(srq->session, &srq->queue) + srq->returned_count - srq->returned_next;

    left += srq->nic ? srq->nic->out : 0;
    if (left >= srq->limit || srq->session->broken)
        return;
    srq->limit = 0;
    context_event(srq->pd->context, IBV_EVENT_SRQ_LIMIT_REACHED, srq->handle);
}

void srq_give_back(struct srq *srq, uint64_t wr_id, const struct sluice_sge *sges, uint32_t num_sge)
{
    struct returned *all = srq->returned;

    /* More than the queue holds were never taken from it. */
    if (!all)
        all = calloc(2ul * srq->queue.entries, sizeof(*all));
    if (!all || srq->returned_count == 2 * srq->queue.entries)
        return;
    srq->returned = all;
    all[srq->returned_count] = (struct returned){.wr_id = wr_id, .num_sge = num_sge};
    memcpy(all[srq->returned_count++].sges, sges, num_sge * sizeof(*sges));
    if (!list_empty(&srq->waiting) || !list_empty(&srq->held))
        wake_waiting(srq);
}

static bool take_returned(struct srq *srq, struct receive *receive)
{
    if (!srq->returned)
        return false;
    const struct returned *next = &srq->returned[srq->returned_next++];

    receive->wr_id = next->wr_id;
    receive->num_sge = next->num_sge;
    memcpy(receive->sges, next->sges, next->num_sge * sizeof(*next->sges));
    receive->active = true;
    if (srq->returned_next == srq->returned_count) {
        free(srq->returned);
        srq->returned = NULL;
        srq->returned_count = srq->returned_next = 0;
    }
    return true;
}

bool srq_lend(struct srq *srq, bool arm, struct receive *receive)
{
    bool taken =
        take_returned(srq, receive) || queue_take_receive(srq->session, &srq->queue, srq->max_sge, arm, receive);

    if (taken) {
        receive->pd = srq->pd;
        receive->srq = srq;
        /* Pairs with the shim's acquire: the slot was copied before it is used again. */
        store_release(&srq->shared->consumer, srq->queue.head);
        /*
         * Whoever found a receive at the second look of queue_arm has taken the doorbell
         * from those who wait: they look for themselves.
         */
        if (!list_empty(&srq->waiting))
            wake_waiting(srq);
    }
    return taken && !srq->session->broken;
}

bool srq_take(struct srq *srq, bool arm, struct receive *receive)
{
    bool taken = srq_lend(srq, arm, receive);

    srq_check_limit(srq);
    return taken && !srq->session->broken;
}

void srqs_of_dead_cq(struct cq *cq)
{
    for (uint32_t handle = 0; handle < SLUICE_SESSION_SRQS; handle++) {
        struct srq *srq = cq->session->srqs[handle];

        if (srq && srq->cq == cq)
            context_event(srq->pd->context, IBV_EVENT_SRQ_ERR, handle);
    }
}

void srq_ring(struct srq *srq)
{
    wake_waiting(srq);
    if (srq->nic)
        nic_srq_fill(srq);
}
