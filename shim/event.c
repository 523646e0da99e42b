/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Completion channels and async events: man ibv_get_cq_event, ibv_get_async_event.
 * Both are sockets that the router sends to, so poll, epoll and O_NONBLOCK work as
 * on the real descriptors.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <unistd.h>

#include "objects.h"
#include "session.h"

static pthread_mutex_t events_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t events_changed = PTHREAD_COND_INITIALIZER;

void events_given(uint32_t *counter)
{
    pthread_mutex_lock(&events_lock);
    (*counter)++;
    pthread_mutex_unlock(&events_lock);
}

void events_acked(uint32_t *counter, uint32_t count)
{
    pthread_mutex_lock(&events_lock);
    *counter += count;
    pthread_cond_broadcast(&events_changed);
    pthread_mutex_unlock(&events_lock);
}

void events_wait(const uint32_t *given, const uint32_t *acked)
{
    pthread_mutex_lock(&events_lock);
    while (*given != *acked)
        pthread_cond_wait(&events_changed, &events_lock);
    pthread_mutex_unlock(&events_lock);
}

void events_fork_prepare(void)
{
    pthread_mutex_lock(&events_lock);
}

void events_fork_parent(void)
{
    pthread_mutex_unlock(&events_lock);
}

void events_fork_child(void)
{
    pthread_mutex_init(&events_lock, NULL);
    pthread_cond_init(&events_changed, NULL);
}

/* Each is a packet: sent whole and read whole. */
static int read_event(int fd, void *event, size_t size)
{
    ssize_t got = read(fd, event, size);

    if (got == (ssize_t)size)
        return 0;
    if (got >= 0)
        errno = EIO; /* the router is gone */
    return -1;
}

/* ---- completion channels ----------------------------------------------- */

EXPORT struct ibv_comp_channel *ibv_create_comp_channel(struct ibv_context *context)
{
    struct shim_channel *channel = calloc(1, sizeof(*channel));
    struct sluice_handle_request request = {0};
    struct sluice_handle_reply reply;

    if (!channel)
        return NULL;
    int error = session_call_fd(SLUICE_OP_CREATE_CHANNEL, &request, sizeof(request), &reply, sizeof(reply),
                                &channel->channel.fd);

    if (error) {
        free(channel);
        errno = error;
        return NULL;
    }
    channel->channel.context = context;
    channel->handle = reply.handle;
    return &channel->channel;
}

EXPORT int ibv_destroy_comp_channel(struct ibv_comp_channel *public)
{
    struct shim_channel *channel = (struct shim_channel *)public;
    int error;

    pthread_mutex_lock(&objects_lock);
    error = channel->users ? EBUSY : 0;
    pthread_mutex_unlock(&objects_lock);
    if (!error)
        error = session_call_handle(SLUICE_OP_DESTROY_CHANNEL, channel->handle, NULL);
    if (error)
        return error;
    close(public->fd);
    free(channel);
    return 0;
}

EXPORT int ibv_get_cq_event(struct ibv_comp_channel *channel, struct ibv_cq **cq, void **cq_context)
{
    for (;;) {
        struct sluice_comp_event event;

        if (read_event(channel->fd, &event, sizeof(event)))
            return -1;
        pthread_mutex_lock(&objects_lock);
        struct shim_cq *found = cq_by_handle(event.cq);

        if (found)
            events_given(&found->comp_events_given);
        pthread_mutex_unlock(&objects_lock);
        if (!found)
            continue; /* destroyed since the event was written */
        *cq = (struct ibv_cq *)found;
        *cq_context = (*cq)->cq_context;
        return 0;
    }
}

EXPORT void ibv_ack_cq_events(struct ibv_cq *cq, unsigned int count)
{
    events_acked(&cq->comp_events_completed, count);
}

/* ---- async events ------------------------------------------------------ */

static bool is_cq_event(enum ibv_event_type type)
{
    return type == IBV_EVENT_CQ_ERR;
}

static bool is_srq_event(enum ibv_event_type type)
{
    return type == IBV_EVENT_SRQ_ERR || type == IBV_EVENT_SRQ_LIMIT_REACHED;
}

static bool is_qp_event(enum ibv_event_type type)
{
    switch (type) {
    case IBV_EVENT_QP_FATAL:
    case IBV_EVENT_QP_REQ_ERR:
    case IBV_EVENT_QP_ACCESS_ERR:
    case IBV_EVENT_COMM_EST:
    case IBV_EVENT_SQ_DRAINED:
    case IBV_EVENT_PATH_MIG:
    case IBV_EVENT_PATH_MIG_ERR:
    case IBV_EVENT_QP_LAST_WQE_REACHED:
        return true;
    default:
        return false;
    }
}

/* Finds the element; false where it is destroyed by now. */
static bool resolve(const struct sluice_async_event *from, struct ibv_async_event *to)
{
    bool found = true;

    to->event_type = from->event_type;
    pthread_mutex_lock(&objects_lock);
    if (is_cq_event(to->event_type)) {
        struct shim_cq *cq = cq_by_handle(from->element);

        found = cq != NULL;
        to->element.cq = (struct ibv_cq *)cq;
        if (found)
            events_given(&cq->async_events_given);
    } else if (is_srq_event(to->event_type)) {
        struct shim_srq *srq = srq_by_handle(from->element);

        found = srq != NULL;
        to->element.srq = (struct ibv_srq *)srq;
        if (found)
            events_given(&srq->async_events_given);
    } else if (is_qp_event(to->event_type)) {
        struct shim_qp *qp = qp_by_number(from->element);

        found = qp != NULL;
        to->element.qp = (struct ibv_qp *)qp;
        if (found)
            events_given(&qp->async_events_given);
    } else {
        to->element.port_num = (int)from->element;
    }
    pthread_mutex_unlock(&objects_lock);
    return found;
}

EXPORT int ibv_get_async_event(struct ibv_context *context, struct ibv_async_event *event)
{
    struct sluice_async_event raw;

    do {
        if (read_event(context->async_fd, &raw, sizeof(raw))) {
            /* As the kernel does when a device is unplugged: the event, and then no more. */
            if (errno != EIO || atomic_exchange(&to_context(context)->failed, true))
                return -1;
            *event = (struct ibv_async_event){.event_type = IBV_EVENT_DEVICE_FATAL};
            return 0;
        }
    } while (!resolve(&raw, event));
    return 0;
}

EXPORT void ibv_ack_async_event(struct ibv_async_event *event)
{
    if (is_cq_event(event->event_type))
        events_acked(&event->element.cq->async_events_completed, 1);
    else if (is_srq_event(event->event_type))
        events_acked(&event->element.srq->events_completed, 1);
    else if (is_qp_event(event->event_type))
        events_acked(&event->element.qp->events_completed, 1);
}
