/* SPDX-License-Identifier: Apache-2.0 */
#include "cq.h"

#include <errno.h>
#include <infiniband/verbs.h>
#include <stdlib.h>

#include "atomic.h"
#include "clock.h"
#include "context.h"
#include "holdings.h"
#include "qp.h"
#include "session.h"
#include "srq.h"
#include "tenant.h"

/* CQEs that are copied in a turn, to and from pages that may have to be made. */
enum { COPIED_AT_ONCE = 256 };

#define BAD_CONSUMER "a completion queue's consumer index is ahead of what was produced"

static uint64_t ring_size(uint32_t entries)
{
    return (uint64_t)entries * sizeof(struct sluice_cqe);
}

static uint32_t entries_for(uint32_t cqe)
{
    uint32_t entries = 1;

    while (entries < cqe)
        entries *= 2;
    return entries;
}

static uint32_t go_on_resizing(struct chore *chore, uint32_t bytes);

/* Free, and the longest unused. There is one. */
static uint32_t take_handle(struct session *session)
{
    uint32_t handle = session->cq_hint;

    while (handle == 0 || session->cqs[handle])
        handle = (handle + 1) % SLUICE_SESSION_CQS;
    session->cq_hint = (handle + 1) % SLUICE_SESSION_CQS;
    return handle;
}

int cq_create(struct session *session, const struct sluice_create_cq_request *request,
              struct sluice_create_cq_reply *reply)
{
    struct context *context = context_find(session, request->context);
    struct channel *channel = NULL;

    if (!context || request->cqe == 0 || request->cqe > SLUICE_MAX_CQE ||
        (request->flags & ~(uint32_t)SLUICE_CQ_IGNORE_OVERRUN))
        return -EINVAL;
    uint32_t entries = entries_for(request->cqe);

    if (session->cq_count == SLUICE_SESSION_CQS - 1)
        return -ENOMEM;
    if (!tenant_may_have(context->tenant, SLUICE_LIMIT_CQS, context->tenant->counters->cqs, 1,
                         context->tenant->shape.max_cqs))
        return -ENOMEM;
    if (request->channel) {
        for (struct list *link = session->channels.next; link != &session->channels; link = link->next)
            if (list_entry(link, struct channel, link)->handle == request->channel)
                channel = list_entry(link, struct channel, link);
        if (!channel)
            return -EINVAL;
    }

    if (!holding_take(context->tenant, HOLDING_CQS))
        return -ENOMEM;
    struct cq *cq = calloc(1, sizeof(*cq));

    if (!cq) {
        holding_give(context->tenant, HOLDING_CQS);
        return -ENOMEM;
    }
    /* Apart, so that the ring can be exchanged while the consumer's words stay where they are. */
    int64_t offset = session_take_part(session, sizeof(struct sluice_cq_shared));
    int64_t ring = offset < 0 ? offset : session_take_part(session, ring_size(entries));

    if (ring < 0) {
        if (offset >= 0)
            session_give_part(session, (uint64_t)offset, sizeof(struct sluice_cq_shared));
        holding_give(context->tenant, HOLDING_CQS);
        free(cq);
        return (int)ring;
    }
    *cq = (struct cq){
        .session = session,
        .handle = take_handle(session),
        .entries = entries,
        .ignore_overrun = request->flags & SLUICE_CQ_IGNORE_OVERRUN,
        .offset = (uint64_t)offset,
        .ring_offset = (uint64_t)ring,
        .shared = (struct sluice_cq_shared *)(session->segment.base + offset),
        .ring = (struct sluice_cqe *)(session->segment.base + ring),
        .context = context,
        .channel = channel,
    };
    list_init(&cq->notify);
    cq->resizing.run = go_on_resizing;
    list_init(&cq->resizing.link);
    session->cqs[cq->handle] = cq;
    session->cq_count++;
    context->cqs++;
    if (channel)
        channel->users++;
    context->tenant->counters->cqs++;
    reply->handle = cq->handle;
    reply->cqe = entries;
    reply->offset = cq->offset;
    reply->ring = cq->ring_offset;
    return 0;
}

static void end_resizing(struct cq *cq)
{
    session_give_part(cq->session, cq->from_offset, ring_size(cq->from_entries));
    cq->from = NULL;
}

/* The next part of what waited when the ring was exchanged. False: that was the last. */
static bool copy_some(struct cq *cq)
{
    /* Whatever a tenant has scribbled there goes back to itself. */
    for (uint32_t n = 0; n < COPIED_AT_ONCE && cq->copied != cq->copied_end; n++) {
        uint32_t i = cq->copied++;
        struct sluice_cqe *to = &cq->ring[i & (cq->entries - 1)];

        /* Where overruns are ignored, a later one has its place by now. */
        if (cq->produced - i > cq->entries)
            continue;
        *to = cq->from[i & (cq->from_entries - 1)];
        store_release(&to->turn, i / cq->entries + 1);
    }
    if (cq->copied != cq->copied_end)
        return true;
    end_resizing(cq);
    return false;
}

int cq_resize(struct cq *cq, const struct sluice_resize_cq_request *request, struct sluice_resize_cq_reply *reply)
{
    struct session *session = cq->session;

    if (cq->from) {
        session->awaited = true;
        return -EINPROGRESS;
    }
    if (cq->resized) {
        cq->resized = false;
        reply->cqe = cq->entries;
        reply->ring = cq->ring_offset;
        return 0;
    }
    if (request->cqe == 0 || request->cqe > SLUICE_MAX_CQE)
        return -EINVAL;
    uint32_t entries = entries_for(request->cqe);
    uint32_t consumer = load_acquire(&cq->shared->consumer);
    uint32_t waiting = cq->produced - consumer;

    if (cq->ignore_overrun && waiting > cq->entries)
        waiting = cq->entries;
    if (waiting > cq->entries) {
        session_break(session, BAD_CONSUMER);
        return -EIO;
    }
    if (waiting > request->cqe)
        return -EINVAL;
    int64_t offset = session_take_part(session, ring_size(entries));

    if (offset < 0)
        return (int)offset;
    cq->from = cq->ring;
    cq->from_offset = cq->ring_offset;
    cq->from_entries = cq->entries;
    cq->copied = cq->produced - waiting;
    cq->copied_end = cq->produced;
    cq->ring = (struct sluice_cqe *)(session->segment.base + offset);
    cq->ring_offset = (uint64_t)offset;
    cq->entries = entries;
    cq->consumer = consumer;
    if (copy_some(cq)) {
        session->awaited = true;
        tenant_add_task(session->tenant, &cq->resizing);
        return -EINPROGRESS;
    }
    reply->cqe = entries;
    reply->ring = cq->ring_offset;
    return 0;
}

static uint32_t go_on_resizing(struct chore *chore, uint32_t bytes)
{
    struct cq *cq = list_entry(chore, struct cq, resizing);

    (void)bytes;
    if (copy_some(cq)) {
        tenant_add_task(cq->session->tenant, chore);
        return 0;
    }
    cq->resized = true;
    session_goes_on(cq->session);
    return 0;
}

void cq_free(struct cq *cq)
{
    if (cq->channel)
        cq->channel->users--;
    cq->context->tenant->counters->cqs--;
    session_give_part(cq->session, cq->offset, sizeof(struct sluice_cq_shared));
    session_give_part(cq->session, cq->ring_offset, ring_size(cq->entries));
    if (cq->from)
        end_resizing(cq);
    list_remove(&cq->resizing.link);
    list_remove(&cq->notify);
    cq->session->cqs[cq->handle] = NULL;
    cq->session->cq_count--;
    cq->context->cqs--;
    holding_give(cq->context->tenant, HOLDING_CQS);
    free(cq);
}

struct cq *cq_find(struct session *session, uint32_t handle)
{
    return handle < SLUICE_SESSION_CQS ? session->cqs[handle] : NULL;
}

/* Whether there is room, after asking the shim how far it has polled. */
static bool has_room(struct cq *cq)
{
    cq->consumer = load_acquire(&cq->shared->consumer);
    if (cq->produced - cq->consumer > cq->entries) {
        session_break(cq->session, BAD_CONSUMER);
        return false;
    }
    return cq->produced - cq->consumer < cq->entries;
}

static void overrun(struct cq *cq)
{
    cq->overrun = true;
    context_event(cq->context, IBV_EVENT_CQ_ERR, cq->handle);
    qps_of_dead_cq(cq);
    srqs_of_dead_cq(cq);
}

void cq_push(struct cq *cq, const struct sluice_cqe *cqe, bool solicited)
{
    if (cq->session->broken || cq->overrun)
        return;
    if (__builtin_expect(cq->produced - cq->consumer >= cq->entries, 0) && !cq->ignore_overrun && !has_room(cq)) {
        if (!cq->session->broken)
            overrun(cq);
        return;
    }
    struct sluice_cqe *slot = &cq->ring[cq->produced & (cq->entries - 1)];
    /* A power of two, which the compiler doesn't know: a division would be the slowest of all this. */
    uint32_t turn = (cq->produced >> __builtin_ctz(cq->entries)) + 1;

    cq->session->engine->delivered = true;
    /* All but turn; then turn with release: who sees it sees the rest, and all data before. */
    slot->wr_id = cqe->wr_id;
    slot->status = cqe->status;
    slot->opcode = cqe->opcode;
    slot->vendor_err = cqe->vendor_err;
    slot->byte_len = cqe->byte_len;
    slot->imm_data = cqe->imm_data;
    slot->wc_flags = cqe->wc_flags;
    slot->qp_num = cqe->qp_num;
    slot->src_qp = cqe->src_qp;
    slot->qp = cqe->qp;
    slot->tail = cqe->tail;
    slot->timestamp = cq->session->engine->now;
    slot->queue = cqe->queue;
    store_release(&slot->turn, turn);
    cq->produced++;
    cq->context->tenant->counters->completions++;
    if (cqe->status != IBV_WC_SUCCESS && cqe->status != IBV_WC_WR_FLUSH_ERR)
        cq->context->tenant->counters->errors++;

    cq->solicited |= solicited || cqe->status != IBV_WC_SUCCESS;
    if (cq->channel && list_unlinked(&cq->notify))
        list_append(&cq->session->engine->notify, &cq->notify);
}

void cq_notify_all(struct sluice_engine *engine)
{
    if (list_empty(&engine->notify))
        return;
    /*
     * Pairs with the fence in req_notify_cq: either the shim's extra poll sees our
     * CQE, or we see that it armed. One fence serves the whole batch.
     */
    full_fence();
    while (!list_empty(&engine->notify)) {
        struct cq *cq = list_entry(list_take(&engine->notify), struct cq, notify);
        uint32_t arm = load_relaxed(&cq->shared->arm);

        if (arm != SLUICE_CQ_ARM_NEXT && !(arm == SLUICE_CQ_ARM_SOLICITED && cq->solicited)) {
            /* A solicited CQE that came before arming doesn't count for a later one. */
            cq->solicited = false;
            continue;
        }
        /* Polled already when it armed: it asked for what comes after. */
        if (load_relaxed(&cq->shared->armed_at) == cq->produced)
            continue;
        struct sluice_comp_event event = {.cq = cq->handle};

        /* First: who is told may arm at once. */
        store_relaxed(&cq->shared->arm, SLUICE_CQ_UNARMED);
        if (event_channel_send(&cq->channel->events, &event, sizeof(event))) {
            cq->solicited = false;
        } else {
            /* Armed as before, unless it was armed meanwhile: it is told when there is room. */
            replace(&cq->shared->arm, (uint32_t)SLUICE_CQ_UNARMED, arm);
            list_append(&cq->channel->late, &cq->notify);
        }
        /* Telling costs as much as many messages, and is its own tenant's expense. */
        uint64_t start = engine->now;

        engine->now = clock_now();
        tenant_charge_time(cq->context->tenant, engine->now - start);
    }
}
