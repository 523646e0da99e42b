/* SPDX-License-Identifier: Apache-2.0 */
#include "ending.h"

#include <errno.h>
#include <unistd.h>

#include "ah.h"
#include "context.h"
#include "cq.h"
#include "memory.h"
#include "mr.h"
#include "multicast.h"
#include "qp.h"
#include "session.h"
#include "srq.h"
#include "tenant.h"
#include "xrc.h"

/*
 * Objects that are destroyed at once, so that few need no turns, and in a turn; free handles, and keys of other contexts, that
 * are passed over instead of one.
 */
enum { OBJECTS_AT_ONCE = 64, OBJECTS_OF_TURN = 16, HANDLES_OF_OBJECT = 4096, KEYS_OF_OBJECT = 64 };

/* Each destroys what is next of its kind. False: there is no more. */
typedef bool phase(struct session *session, const struct context *context, uint32_t *next);

static bool end_qp(struct session *session, const struct context *context, uint32_t *next)
{
    for (uint32_t looked = 0; *next < SLUICE_SESSION_QPS && looked < HANDLES_OF_OBJECT; looked++) {
        uint32_t handle = (*next)++;
        struct qp *qp = session->qps[handle];

        if (!qp || (context && qp_context(qp, session, handle) != context))
            continue;
        multicast_detach_all(qp);
        qp_close(session, handle);
        return true;
    }
    return *next < SLUICE_SESSION_QPS;
}

static bool end_srq(struct session *session, const struct context *context, uint32_t *next)
{
    for (uint32_t looked = 0; *next < SLUICE_SESSION_SRQS && looked < HANDLES_OF_OBJECT; looked++) {
        struct srq *srq = session->srqs[(*next)++];

        if (!srq || (context && (srq->pd->context != context || srq->users)))
            continue;
        srq_free(srq);
        return true;
    }
    return *next < SLUICE_SESSION_SRQS;
}

static bool end_xrcd(struct session *session, const struct context *context, uint32_t *next)
{
    (void)next;
    for (struct list *link = session->xrcds.next; link != &session->xrcds; link = link->next) {
        struct opened_xrcd *opened = list_entry(link, struct opened_xrcd, link);

        if (context && (opened->context != context || opened->users))
            continue;
        xrcd_end(opened);
        return true;
    }
    return false;
}

static bool end_ah(struct session *session, const struct context *context, uint32_t *next)
{
    for (uint32_t looked = 0; session->ah_count && *next < SLUICE_SESSION_AHS && looked < HANDLES_OF_OBJECT; looked++) {
        uint32_t handle = (*next)++;
        struct ah *ah = ah_find(session, handle);

        if (!ah || (context && ah->pd->context != context))
            continue;
        ah_destroy(session, handle);
        return true;
    }
    return session->ah_count && *next < SLUICE_SESSION_AHS;
}

/*
 * Lists are gone through once, by as many entries as there are at first: who isn't meant goes to the end. Others may be made
 * and destroyed meanwhile, by the mailbox.
 */
static struct list *next_of(struct list *list, uint32_t count, uint32_t *next)
{
    if (list_empty(list) || *next >= count)
        return NULL;
    struct list *link = list_take(list);

    list_append(list, link);
    return link;
}

void ending_loses(struct session *session, const struct mr *mr)
{
    struct ending *ending = &session->ending;

    /* One that was passed over, maybe: if not, one is looked at twice. */
    if (ending->context && ending->next && mr->pd->context != ending->context)
        ending->next--;
}

static bool end_key(struct session *session, struct list *keys, uint32_t count, const struct context *context,
                    uint32_t *next)
{
    for (uint32_t looked = 0; looked < KEYS_OF_OBJECT; looked++) {
        struct list *link = next_of(keys, count, next);

        if (!link)
            return false;
        struct mr *mr = list_entry(link, struct mr, link);

        if (context && mr->pd->context != context) {
            (*next)++;
            continue;
        }
        mr_free(session->engine, mr);
        return true;
    }
    return true;
}

static bool end_window(struct session *session, const struct context *context, uint32_t *next)
{
    return end_key(session, &session->mws, session->mw_count, context, next);
}

static bool end_region(struct session *session, const struct context *context, uint32_t *next)
{
    return end_key(session, &session->mrs, session->mr_count, context, next);
}

static bool end_memory(struct session *session, const struct context *context, uint32_t *next)
{
    (void)next;
    if (context || list_empty(&session->memories))
        return false;
    memory_free(list_entry(session->memories.next, struct memory, link));
    return true;
}

static bool end_cq(struct session *session, const struct context *context, uint32_t *next)
{
    for (uint32_t looked = 0; session->cq_count && *next < SLUICE_SESSION_CQS && looked < HANDLES_OF_OBJECT; looked++) {
        struct cq *cq = cq_find(session, (*next)++);

        if (!cq || (context && (cq->context != context || cq->users)))
            continue;
        cq_free(cq);
        return true;
    }
    return session->cq_count && *next < SLUICE_SESSION_CQS;
}

static bool end_channel(struct session *session, const struct context *context, uint32_t *next)
{
    (void)next;
    if (context || list_empty(&session->channels))
        return false;
    channel_destroy(session, list_entry(session->channels.next, struct channel, link)->handle);
    return true;
}

static bool end_pd(struct session *session, const struct context *context, uint32_t *next)
{
    struct list *link = next_of(&session->pds, session->pd_count, next);

    if (!link)
        return false;
    struct pd *pd = list_entry(link, struct pd, link);

    if ((context && pd->context != context) || pd_free(pd))
        (*next)++;
    return true;
}

/* Of a context itself: what is left has users, objects of another context, which no application makes. */
static bool end_context(struct session *session, const struct context *context, uint32_t *next)
{
    (void)next;
    if (context || list_empty(&session->contexts))
        return false;
    context_free(list_entry(session->contexts.next, struct context, link));
    return true;
}

static phase *const phases[] = {end_qp,     end_srq, end_xrcd,    end_ah, end_window, end_region,
                                end_memory, end_cq,  end_channel, end_pd, end_context};

enum { PHASES = sizeof(phases) / sizeof(*phases) };

/* Destroys so much of it. False: all is. */
static bool go_on(struct session *session, uint32_t most)
{
    struct ending *ending = &session->ending;

    for (uint32_t objects = 0; objects < most; objects++) {
        while (!phases[ending->phase](session, ending->context, &ending->next)) {
            ending->next = 0;
            if (++ending->phase == PHASES)
                return false;
        }
    }
    return true;
}

static bool has_objects(const struct session *session, const struct context *context)
{
    for (const struct list *link = session->pds.next; link != &session->pds; link = link->next)
        if (list_entry(link, struct pd, link)->context == context)
            return true;
    for (const struct list *link = session->xrcds.next; link != &session->xrcds; link = link->next)
        if (list_entry(link, struct opened_xrcd, link)->context == context)
            return true;
    return context->cqs > 0;
}

static void finish_context(struct session *session)
{
    struct context *context = session->ending.context;

    session->ending.context = NULL;
    if (has_objects(session, context))
        return;
    session->context_count--;
    context_free(context);
}

static uint32_t run(struct chore *chore, uint32_t bytes)
{
    struct session *session = list_entry(chore, struct session, ending.chore);

    (void)bytes;
    if (go_on(session, OBJECTS_OF_TURN)) {
        tenant_add_task(session->tenant, chore);
    } else if (session->ending.context) {
        finish_context(session);
        session_goes_on(session);
    } else {
        session_free(session);
    }
    return 0;
}

void ending_init(struct session *session)
{
    session->ending.chore.run = run;
    list_init(&session->ending.chore.link);
}

int ending_close_context(struct session *session, uint32_t handle)
{
    struct ending *ending = &session->ending;

    if (ending->context) {
        session->awaited = true;
        return -EINPROGRESS;
    }
    if (ending->handle && ending->handle == handle) {
        ending->handle = 0;
        return 0;
    }
    struct context *context = context_find(session, handle);

    if (!context)
        return -EINVAL;
    context_shut(context);
    ending->context = context;
    ending->phase = ending->next = 0;
    ending->handle = 0;
    if (go_on(session, OBJECTS_AT_ONCE)) {
        ending->handle = handle;
        session->awaited = true;
        tenant_add_task(session->tenant, &ending->chore);
        return -EINPROGRESS;
    }
    finish_context(session);
    return 0;
}

static void begin(struct session *session)
{
    session->ending.is_session = true;
    session->broken = true;
    session->segment.ending = true;
    session->tenant->ending_sessions++;
    for (struct list *link = session->contexts.next; link != &session->contexts; link = link->next) {
        struct tenant *tenant = list_entry(link, struct context, link)->tenant;

        tenant->contexts--;
        tenant->ending_contexts++;
    }
    list_remove(&session->command.link);
    list_remove(&session->cleaning.link);
    list_remove(&session->ending.chore.link);
    session->ending.context = NULL;
    session->ending.phase = session->ending.next = 0;
}

void ending_close_session(struct session *session)
{
    begin(session);
    if (go_on(session, OBJECTS_AT_ONCE))
        tenant_add_task(session->tenant, &session->ending.chore);
    else
        session_free(session);
}

void ending_free_session(struct session *session)
{
    if (!session->ending.is_session)
        begin(session);
    list_remove(&session->ending.chore.link);
    while (go_on(session, OBJECTS_AT_ONCE))
        ;
    session_free(session);
}
