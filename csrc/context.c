/* SPDX-License-Identifier: Apache-2.0 */
#include "context.h"

#include <errno.h>
#include <stdlib.h>

#include "session.h"
#include "tenant.h"

/* Events that wait for room, at most. */
enum { LATE = 8192 };

static void send_late(struct event_channel *events)
{
    struct context *context = list_entry(events, struct context, events);

    while (context->late_count && event_channel_send(events, &context->late[context->late_first], sizeof(context->late[0]))) {
        context->late_first = (context->late_first + 1) % LATE;
        context->late_count--;
    }
}

static void keep(struct context *context, const struct sluice_async_event *event)
{
    if (!context->late)
        context->late = calloc(LATE, sizeof(*context->late));
    if (!context->late || context->late_count == LATE)
        return;
    context->late[(context->late_first + context->late_count++) % LATE] = *event;
}

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
    int error = context ? event_channel_open(&context->events, session->engine, send_late, read_fd) : -ENOMEM;

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

        if (context->handle == handle && context->events.fd >= 0)
            return context;
    }
    return NULL;
}

void context_shut(struct context *context)
{
    if (context->events.fd < 0)
        return;
    event_channel_close(&context->events);
    tenant_give_files(context->session->tenant, 1);
    free(context->late);
    context->late = NULL;
    context->late_count = 0;
}

void context_free(struct context *context)
{
    context_shut(context);
    list_remove(&context->link);
    if (context->session->ending.is_session)
        context->tenant->ending_contexts--;
    else
        context->tenant->contexts--;
    free(context);
}

void context_event(struct context *context, uint32_t event_type, uint32_t element)
{
    struct sluice_async_event event = {.event_type = event_type, .element = element};

    if (context->events.fd < 0)
        return;
    /* In their order. */
    if (context->late_count || !event_channel_send(&context->events, &event, sizeof(event)))
        keep(context, &event);
}
