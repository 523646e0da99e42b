/* SPDX-License-Identifier: Apache-2.0 */
/* The two ends of an id: man rdma_bind_addr, rdma_resolve_addr, rdma_resolve_route, rdma_listen. */
#include <arpa/inet.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "cm.h"
#include "objects.h"
#include "session.h"

enum { DEFAULT_PKEY = 0xffff, SELECT_EXACTLY = 2, RATE_100_GBPS = 16, HOP_LIMIT = 64 };

socklen_t cm_address_length(const struct sockaddr *address)
{
    if (!address)
        return 0;
    switch (address->sa_family) {
    case AF_INET:
        return sizeof(struct sockaddr_in);
    case AF_INET6:
        return sizeof(struct sockaddr_in6);
    default:
        return 0;
    }
}

void cm_address_to_abi(struct sluice_cm_addr *to, const struct sockaddr *from)
{
    memset(to, 0, sizeof(*to));
    if (!from)
        return;
    to->family = from->sa_family;
    if (from->sa_family == AF_INET) {
        const struct sockaddr_in *in = (const struct sockaddr_in *)from;

        to->port = in->sin_port;
        memcpy(to->addr, &in->sin_addr, sizeof(in->sin_addr));
    } else if (from->sa_family == AF_INET6) {
        const struct sockaddr_in6 *in6 = (const struct sockaddr_in6 *)from;

        to->port = in6->sin6_port;
        to->scope_id = in6->sin6_scope_id;
        memcpy(to->addr, &in6->sin6_addr, sizeof(in6->sin6_addr));
    }
}

void cm_address_from_abi(struct sockaddr_storage *to, const struct sluice_cm_addr *from)
{
    memset(to, 0, sizeof(*to));
    if (from->family == AF_INET) {
        struct sockaddr_in *in = (struct sockaddr_in *)to;

        in->sin_family = AF_INET;
        in->sin_port = from->port;
        memcpy(&in->sin_addr, from->addr, sizeof(in->sin_addr));
    } else if (from->family == AF_INET6) {
        struct sockaddr_in6 *in6 = (struct sockaddr_in6 *)to;

        in6->sin6_family = AF_INET6;
        in6->sin6_port = from->port;
        in6->sin6_scope_id = from->scope_id;
        memcpy(&in6->sin6_addr, from->addr, sizeof(in6->sin6_addr));
    }
}

static int set_path(struct rdma_route *route, const struct sluice_cm_route *from)
{
    if (!route->path_rec) {
        route->path_rec = calloc(1, sizeof(*route->path_rec));
        if (!route->path_rec)
            return -1;
    }
    *route->path_rec = (struct ibv_sa_path_rec){
        .dgid = route->addr.addr.ibaddr.dgid,
        .sgid = route->addr.addr.ibaddr.sgid,
        .hop_limit = HOP_LIMIT,
        .traffic_class = (uint8_t)from->traffic_class,
        .reversible = 1,
        .numb_path = 1,
        .pkey = htons(DEFAULT_PKEY),
        .mtu_selector = SELECT_EXACTLY,
        .mtu = IBV_MTU_4096,
        .rate_selector = SELECT_EXACTLY,
        .rate = RATE_100_GBPS,
        .packet_life_time_selector = SELECT_EXACTLY,
        .packet_life_time = (uint8_t)from->packet_life_time,
    };
    route->num_paths = 1;
    return 0;
}

int cm_set_route(struct cm_id *id, const struct sluice_cm_route *from)
{
    struct rdma_route *route = &id->id.route;

    cm_address_from_abi(&route->addr.src_storage, &from->src);
    if (from->dst.family)
        cm_address_from_abi(&route->addr.dst_storage, &from->dst);
    if (!from->bound)
        return 0;
    if (!id->holds_device) {
        if (cm_device_get(&id->id, from->bound - 1))
            return -1;
        id->holds_device = true;
        id->id.port_num = 1;
        route->addr.addr.ibaddr.pkey = htons(DEFAULT_PKEY);
    }
    memcpy(route->addr.addr.ibaddr.sgid.raw, from->sgid, sizeof(from->sgid));
    memcpy(route->addr.addr.ibaddr.dgid.raw, from->dgid, sizeof(from->dgid));
    return from->paths ? set_path(route, from) : 0;
}

/* Addresses of InfiniBand's own kind lead to InfiniBand devices only. */
static bool is_infiniband(const struct sockaddr *address)
{
    return address && address->sa_family == AF_IB;
}

EXPORT int rdma_bind_addr(struct rdma_cm_id *id, struct sockaddr *addr)
{
    struct sluice_cm_address_request request = {.handle = to_cm_id(id)->handle};
    struct sluice_cm_route_reply reply;

    if (is_infiniband(addr))
        return cm_result(id->route.addr.src_addr.sa_family ? EINVAL : ENODEV);
    if (!cm_address_length(addr))
        return cm_result(EINVAL);
    cm_address_to_abi(&request.src, addr);
    int error = session_call(SLUICE_OP_CM_BIND, &request, sizeof(request), &reply, sizeof(reply));

    return error ? cm_result(error) : cm_set_route(to_cm_id(id), &reply.route);
}

EXPORT int rdma_resolve_addr(struct rdma_cm_id *id, struct sockaddr *src_addr, struct sockaddr *dst_addr,
                             int timeout_ms)
{
    struct sluice_cm_address_request request = {.handle = to_cm_id(id)->handle, .timeout_ms = (uint32_t)timeout_ms};
    struct sluice_handle_reply reply;
    bool bound = id->route.addr.src_addr.sa_family;

    if (!bound && (is_infiniband(src_addr) || (is_infiniband(dst_addr) && !src_addr)))
        return cm_result(ENODEV);
    if (!cm_address_length(dst_addr) || (src_addr && !cm_address_length(src_addr)))
        return cm_result(EINVAL);
    cm_address_to_abi(&request.src, src_addr);
    cm_address_to_abi(&request.dst, dst_addr);
    int error = session_call(SLUICE_OP_CM_RESOLVE_ADDR, &request, sizeof(request), &reply, sizeof(reply));

    if (error)
        return cm_result(error);
    memcpy(&id->route.addr.dst_storage, dst_addr, cm_address_length(dst_addr));
    return cm_complete(id);
}

EXPORT int rdma_resolve_route(struct rdma_cm_id *id, int timeout_ms)
{
    int error = cm_ask(SLUICE_OP_CM_RESOLVE_ROUTE, id, (uint32_t)timeout_ms);

    return error ? cm_result(error) : cm_complete(id);
}

EXPORT int rdma_listen(struct rdma_cm_id *id, int backlog)
{
    struct sluice_cm_value_request request = {.handle = to_cm_id(id)->handle, .value = (uint32_t)backlog};
    struct sluice_cm_route_reply reply;
    int error = session_call(SLUICE_OP_CM_LISTEN, &request, sizeof(request), &reply, sizeof(reply));

    return error ? cm_result(error) : cm_set_route(to_cm_id(id), &reply.route);
}

static __be16 port_of(const struct sockaddr *address)
{
    struct sluice_cm_addr plain;

    cm_address_to_abi(&plain, address);
    return plain.port;
}

EXPORT __be16 rdma_get_src_port(struct rdma_cm_id *id)
{
    return port_of(&id->route.addr.src_addr);
}

EXPORT __be16 rdma_get_dst_port(struct rdma_cm_id *id)
{
    return port_of(&id->route.addr.dst_addr);
}
