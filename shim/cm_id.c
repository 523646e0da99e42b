/* SPDX-License-Identifier: Apache-2.0 */
/* rdma_cm ids: man rdma_create_id, rdma_destroy_id, rdma_migrate_id, rdma_set_option. */
#include "cm.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "objects.h"
#include "session.h"

int cm_result(int error)
{
    if (!error)
        return 0;
    errno = error;
    return -1;
}

int cm_open(void)
{
    return cm_result(session_open() ? ENODEV : 0);
}

int cm_ask(uint16_t op, struct rdma_cm_id *id, uint32_t value)
{
    struct sluice_cm_value_request request = {.handle = to_cm_id(id)->handle, .value = value};
    struct sluice_handle_reply reply;

    return session_call(op, &request, sizeof(request), &reply, sizeof(reply));
}

struct cm_id *cm_id_new(struct rdma_event_channel *channel, void *context, enum rdma_port_space ps,
                        enum ibv_qp_type qp_type)
{
    struct cm_id *id = calloc(1, sizeof(*id));

    if (!id)
        return NULL;
    id->id.context = context;
    id->id.ps = ps;
    id->id.qp_type = qp_type;
    id->synchronous = !channel;
    id->id.channel = channel ? channel : rdma_create_event_channel();
    if (!id->id.channel) {
        free(id);
        return NULL;
    }
    pthread_mutex_init(&id->lock, NULL);
    pthread_cond_init(&id->changed, NULL);
    return id;
}

void cm_id_free(struct cm_id *id)
{
    if (id->holds_device)
        cm_device_put(&id->id);
    if (id->synchronous)
        rdma_destroy_event_channel(id->id.channel);
    pthread_cond_destroy(&id->changed);
    pthread_mutex_destroy(&id->lock);
    free(id->id.route.path_rec);
    rdma_freeaddrinfo(id->resolved);
    free(id->connect);
    free(id->qp_init_attr);
    free(id);
}

int cm_create_id(struct rdma_event_channel *channel, struct rdma_cm_id **public, void *context,
                 enum rdma_port_space ps, enum ibv_qp_type qp_type)
{
    struct sluice_handle_reply reply;

    if (cm_open())
        return -1;
    struct cm_id *id = cm_id_new(channel, context, ps, qp_type);

    if (!id)
        return -1;
    struct sluice_cm_create_id_request request = {
        .uid = (uintptr_t)id,
        .channel = to_cm_channel(id->id.channel)->handle,
        .port_space = ps,
        .qp_type = qp_type,
    };
    int error = session_call(SLUICE_OP_CM_CREATE_ID, &request, sizeof(request), &reply, sizeof(reply));

    if (error) {
        cm_id_free(id);
        return cm_result(error);
    }
    id->handle = reply.handle;
    *public = &id->id;
    return 0;
}

EXPORT int rdma_create_id(struct rdma_event_channel *channel, struct rdma_cm_id **id, void *context,
                          enum rdma_port_space ps)
{
    bool datagram = ps == RDMA_PS_UDP || ps == RDMA_PS_IPOIB;

    return cm_create_id(channel, id, context, ps, datagram ? IBV_QPT_UD : IBV_QPT_RC);
}

void cm_id_wait(struct cm_id *id, const uint32_t *acked, uint32_t events)
{
    pthread_mutex_lock(&id->lock);
    while (*acked < events)
        pthread_cond_wait(&id->changed, &id->lock);
    pthread_mutex_unlock(&id->lock);
}

EXPORT int rdma_destroy_id(struct rdma_cm_id *public)
{
    struct cm_id *id = to_cm_id(public);
    struct sluice_handle_request request = {.handle = id->handle};
    struct sluice_cm_events_reply reply = {0};
    int error = session_call(SLUICE_OP_CM_DESTROY_ID, &request, sizeof(request), &reply, sizeof(reply));

    /* Without a router there is nothing to wait for, and the application's memory is still to be freed. */
    if (error && error != EIO)
        return cm_result(error);
    if (!error)
        cm_channel_drain(public->channel, reply.surplus);
    if (public->event)
        rdma_ack_cm_event(public->event);
    if (!error)
        cm_id_wait(id, &id->events_acked, reply.events);
    while (id->groups) {
        struct cm_group *group = id->groups;

        id->groups = group->next;
        free(group);
    }
    cm_id_free(id);
    return 0;
}

EXPORT int rdma_migrate_id(struct rdma_cm_id *public, struct rdma_event_channel *channel)
{
    struct cm_id *id = to_cm_id(public);
    bool synchronous = !channel;

    if (synchronous && id->synchronous)
        return cm_result(EINVAL);
    if (synchronous) {
        channel = rdma_create_event_channel();
        if (!channel)
            return -1;
    }
    struct sluice_cm_value_request request = {.handle = id->handle, .value = to_cm_channel(channel)->handle};
    struct sluice_cm_events_reply reply;
    int error = session_call(SLUICE_OP_CM_MIGRATE_ID, &request, sizeof(request), &reply, sizeof(reply));

    if (error) {
        if (synchronous)
            rdma_destroy_event_channel(channel);
        return cm_result(error);
    }
    cm_channel_drain(public->channel, reply.surplus);
    if (id->synchronous) {
        if (public->event) {
            rdma_ack_cm_event(public->event);
            public->event = NULL;
        }
        rdma_destroy_event_channel(public->channel);
    }
    id->synchronous = synchronous;
    public->channel = channel;
    /* What was read from the old channel belongs to it: the application has seen the last of it when this returns. */
    cm_id_wait(id, &id->events_acked, reply.events);
    return 0;
}

EXPORT int rdma_set_option(struct rdma_cm_id *id, int level, int optname, void *optval, size_t optlen)
{
    struct sluice_cm_option_request request = {
        .handle = to_cm_id(id)->handle,
        .level = (uint32_t)level,
        .optname = (uint32_t)optname,
        .optlen = optlen < UINT32_MAX ? (uint32_t)optlen : UINT32_MAX,
    };
    struct sluice_handle_reply reply;

    /* In the kernel's order: the value is read first. */
    if (optlen && !optval)
        return cm_result(EFAULT);
    if (level == RDMA_OPTION_IB)
        return cm_result(optname == RDMA_OPTION_IB_PATH ? EINVAL : ENOSYS); /* paths are the router's to choose */
    if (optlen)
        memcpy(request.optval, optval, optlen < sizeof(request.optval) ? optlen : sizeof(request.optval));
    return cm_result(session_call(SLUICE_OP_CM_SET_OPTION, &request, sizeof(request), &reply, sizeof(reply)));
}
