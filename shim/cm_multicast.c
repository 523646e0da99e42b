/* SPDX-License-Identifier: Apache-2.0 */
/* Multicast groups of datagram ids: man rdma_join_multicast, rdma_leave_multicast. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "cm.h"
#include "objects.h"
#include "session.h"

static void unlink_group(struct cm_id *id, struct cm_group *group)
{
    pthread_mutex_lock(&id->lock);
    for (struct cm_group **at = &id->groups; *at; at = &(*at)->next) {
        if (*at == group) {
            *at = group->next;
            break;
        }
    }
    pthread_mutex_unlock(&id->lock);
}

static int join(struct rdma_cm_id *public, const struct sockaddr *addr, uint32_t join_flags, void *context)
{
    struct cm_id *id = to_cm_id(public);
    socklen_t length = cm_address_length(addr);
    struct cm_group *group = length ? calloc(1, sizeof(*group)) : NULL;
    struct sluice_handle_reply reply;

    if (!group)
        return cm_result(length ? ENOMEM : EINVAL);
    group->id = id;
    group->context = context;
    group->send_only = join_flags == RDMA_MC_JOIN_FLAG_SENDONLY_FULLMEMBER;
    memcpy(&group->addr, addr, length);

    struct sluice_cm_join_request request = {
        .uid = (uintptr_t)group,
        .handle = id->handle,
        .join_flags = join_flags,
    };

    cm_address_to_abi(&request.addr, addr);
    /* Another thread may read the event before we have the answer. */
    pthread_mutex_lock(&id->lock);
    group->next = id->groups;
    id->groups = group;
    pthread_mutex_unlock(&id->lock);
    int error = session_call(SLUICE_OP_CM_JOIN, &request, sizeof(request), &reply, sizeof(reply));

    if (error) {
        unlink_group(id, group);
        free(group);
        return cm_result(error);
    }
    group->handle = reply.handle;
    return cm_complete(public);
}

EXPORT int rdma_join_multicast(struct rdma_cm_id *id, struct sockaddr *addr, void *context)
{
    return join(id, addr, RDMA_MC_JOIN_FLAG_FULLMEMBER, context);
}

EXPORT int rdma_join_multicast_ex(struct rdma_cm_id *id, struct rdma_cm_join_mc_attr_ex *attr, void *context)
{
    const uint32_t needed = RDMA_CM_JOIN_MC_ATTR_ADDRESS | RDMA_CM_JOIN_MC_ATTR_JOIN_FLAGS;

    if (attr->comp_mask >= RDMA_CM_JOIN_MC_ATTR_RESERVED)
        return cm_result(ENOTSUP);
    if ((attr->comp_mask & needed) != needed || attr->join_flags >= RDMA_MC_JOIN_FLAG_RESERVED)
        return cm_result(EINVAL);
    return join(id, attr->addr, attr->join_flags, context);
}

EXPORT int rdma_leave_multicast(struct rdma_cm_id *public, struct sockaddr *addr)
{
    struct cm_id *id = to_cm_id(public);
    socklen_t length = cm_address_length(addr);
    struct cm_group *group;
    struct sluice_cm_events_reply reply;

    if (!length)
        return cm_result(EINVAL);
    pthread_mutex_lock(&id->lock);
    for (group = id->groups; group; group = group->next)
        if (memcmp(&group->addr, addr, length) == 0)
            break;
    pthread_mutex_unlock(&id->lock);
    if (!group)
        return cm_result(EADDRNOTAVAIL);
    unlink_group(id, group);
    if (public->qp && !group->send_only)
        ibv_detach_mcast(public->qp, &group->gid, 0);

    struct sluice_handle_request request = {.handle = group->handle};
    int error = session_call(SLUICE_OP_CM_LEAVE, &request, sizeof(request), &reply, sizeof(reply));

    if (!error) {
        cm_channel_drain(public->channel, reply.surplus);
        cm_id_wait(id, &group->events_acked, reply.events);
    }
    free(group);
    return cm_result(error);
}
