/* SPDX-License-Identifier: Apache-2.0 */
#include "context.h"

#include <errno.h>
#include <stdlib.h>
#include <unistd.h>

#include "ah.h"
#include "cq.h"
#include "mr.h"
#include "multicast.h"
#include "qp.h"
#include "session.h"
#include "srq.h"
#include "tenant.h"
#include "xrc.h"

int context_open(struct session *session, uint32_t device, int *read_fd)
{
    struct tenant *tenant = device < SLUICE_MAX_DEVICES ? session->tenant->on[device] : NULL;

    if (!tenant)
        return -ENODEV;
    if (session->context_count == SESSION_CONTEXTS)
        return -EMFILE;
    if (!tenant_take_files(session->tenant, 1))
        return -EMFILE;
    struct context *context = calloc(1, sizeof(*context));
    int error = context ? pipe_open(read_fd, &context->fd) : -ENOMEM;

    if (error) {
        tenant_give_files(session->tenant, 1);
        free(context);
        return error;
    }
    context->session = session;
    context->tenant = tenant;
    tenant->contexts++;
    context->handle = session->next_handle++;
    list_init(&context->link);
    list_append(&session->contexts, &context->link);
    session->context_count++;
    return (int)context->handle;
}

struct context *context_find(struct session *session, uint32_t handle)
{
    for (struct list *link = session->contexts.next; link != &session->contexts; link = link->next) {
        struct context *context = list_entry(link, struct context, link);

        if (context->handle == handle && context->fd >= 0)
            return context;
    }
    return NULL;
}

void context_free(struct context *context)
{
    if (context->fd >= 0) {
        close(context->fd);
        tenant_give_files(context->session->tenant, 1);
    }
    list_remove(&context->link);
    context->tenant->contexts--;
    free(context);
}

void context_event(const struct context *context, uint32_t event_type, uint32_t element)
{
    struct sluice_async_event event = {.event_type = event_type, .element = element};

    if (context->fd >= 0 && write(context->fd, &event, sizeof(event)) < 0)
        return; /* the application has left 8,000 events unread */
}

/* ---- closing ----------------------------------------------------------- */

static void destroy_queues(struct session *session, const struct context *context)
{
    for (uint32_t handle = 0; handle < SLUICE_SESSION_QPS; handle++) {
        struct qp *qp = session->qps[handle];

        if (!qp || qp_context(qp, session, handle) != context)
            continue;
        multicast_detach_all(qp);
        qp_close(session, handle);
    }
    for (uint32_t handle = 0; handle < SLUICE_SESSION_SRQS; handle++) {
        struct srq *srq = session->srqs[handle];

        if (srq && srq->pd->context == context && srq->users == 0)
            srq_free(srq);
    }
}

static void destroy_keys(struct session *session, struct list *keys, const struct context *context)
{
    for (struct list *link = keys->next, *next; link != keys; link = next) {
        struct mr *mr = list_entry(link, struct mr, link);

        next = link->next;
        if (mr->pd->context == context)
            mr_free(session->engine, mr);
    }
}

/* What is left has users: objects of another context, which no application makes. */
static bool destroy_rest(struct session *session, const struct context *context)
{
    bool empty = true;

    for (struct list *link = session->xrcds.next, *next; link != &session->xrcds; link = next) {
        struct opened_xrcd *opened = list_entry(link, struct opened_xrcd, link);

        next = link->next;
        if (opened->context == context && xrcd_close(session, opened->handle))
            empty = false;
    }
    for (struct list *link = session->cqs.next, *next; link != &session->cqs; link = next) {
        struct cq *cq = list_entry(link, struct cq, link);

        next = link->next;
        if (cq->context != context)
            continue;
        if (cq->users)
            empty = false;
        else
            cq_free(cq);
    }
    for (struct list *link = session->pds.next, *next; link != &session->pds; link = next) {
        struct pd *pd = list_entry(link, struct pd, link);

        next = link->next;
        if (pd->context == context && pd_dealloc(session, pd->handle))
            empty = false;
    }
    return empty;
}

int context_close(struct session *session, uint32_t handle)
{
    struct context *context = context_find(session, handle);

    if (!context)
        return -EINVAL;
    destroy_queues(session, context);
    ah_free_of(session, context);
    destroy_keys(session, &session->mws, context);
    destroy_keys(session, &session->mrs, context);
    bool empty = destroy_rest(session, context);

    close(context->fd);
    tenant_give_files(session->tenant, 1);
    context->fd = -1;
    if (empty) {
        session->context_count--;
        context_free(context);
    }
    return 0;
}
