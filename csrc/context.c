/* SPDX-License-Identifier: Apache-2.0 */
#include "context.h"

#include <errno.h>
#include <stdlib.h>
#include <unistd.h>

#include "session.h"
#include "tenant.h"

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

void context_shut(struct context *context)
{
    if (context->fd < 0)
        return;
    close(context->fd);
    tenant_give_files(context->session->tenant, 1);
    context->fd = -1;
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

void context_event(const struct context *context, uint32_t event_type, uint32_t element)
{
    struct sluice_async_event event = {.event_type = event_type, .element = element};

    if (context->fd >= 0 && write(context->fd, &event, sizeof(event)) < 0)
        return; /* the application has left 8,000 events unread */
}
