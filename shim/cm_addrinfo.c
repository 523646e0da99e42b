/* SPDX-License-Identifier: Apache-2.0 */
/* Names and services: man rdma_getaddrinfo. */
#include <errno.h>
#include <netdb.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include "cm.h"
#include "objects.h"

static bool is_datagram(int qp_type)
{
    return qp_type == IBV_QPT_UD;
}

static int protocol_of(const struct rdma_addrinfo *hints)
{
    switch (hints->ai_port_space) {
    case RDMA_PS_TCP:
        return IPPROTO_TCP;
    case RDMA_PS_UDP:
    case RDMA_PS_IPOIB:
        return IPPROTO_UDP;
    case RDMA_PS_IB:
        return hints->ai_qp_type ? (is_datagram(hints->ai_qp_type) ? IPPROTO_UDP : IPPROTO_TCP) : 0;
    default:
        return 0;
    }
}

static struct addrinfo host_hints(const struct rdma_addrinfo *hints)
{
    struct addrinfo plain = {.ai_protocol = protocol_of(hints)};

    /* InfiniBand's own addresses are found by IP's. */
    if (hints->ai_family != AF_IB)
        plain.ai_family = hints->ai_family;
    if (hints->ai_flags & RAI_PASSIVE)
        plain.ai_flags |= AI_PASSIVE;
    if (hints->ai_flags & RAI_NUMERICHOST)
        plain.ai_flags |= AI_NUMERICHOST;
    if (hints->ai_qp_type)
        plain.ai_socktype = is_datagram(hints->ai_qp_type) ? SOCK_DGRAM : SOCK_STREAM;
    return plain;
}

/* 0, or -1 with errno. */
static int copy_address(struct sockaddr **to, socklen_t *to_length, const struct sockaddr *from, socklen_t length)
{
    *to = malloc(length);
    if (!*to)
        return -1;
    memcpy(*to, from, length);
    *to_length = length;
    return 0;
}

static int from_host(struct rdma_addrinfo *to, const struct rdma_addrinfo *hints, const struct addrinfo *from)
{
    bool datagram = from->ai_socktype == SOCK_DGRAM || from->ai_protocol == IPPROTO_UDP;
    bool passive = hints->ai_flags & RAI_PASSIVE;
    char **name = passive ? &to->ai_src_canonname : &to->ai_dst_canonname;

    to->ai_flags = passive ? RAI_PASSIVE : 0;
    to->ai_family = from->ai_family;
    to->ai_qp_type = hints->ai_qp_type ? hints->ai_qp_type : datagram ? IBV_QPT_UD : IBV_QPT_RC;
    to->ai_port_space = hints->ai_port_space ? hints->ai_port_space : datagram ? RDMA_PS_UDP : RDMA_PS_TCP;
    if (from->ai_canonname)
        *name = strdup(from->ai_canonname);
    return passive ? copy_address(&to->ai_src_addr, &to->ai_src_len, from->ai_addr, from->ai_addrlen)
                   : copy_address(&to->ai_dst_addr, &to->ai_dst_len, from->ai_addr, from->ai_addrlen);
}

/* 0, -1 with errno, or one of getaddrinfo's codes. */
static int resolve(const char *node, const char *service, const struct rdma_addrinfo *hints,
                   struct rdma_addrinfo *to)
{
    struct addrinfo plain = host_hints(hints), *found;
    int error = getaddrinfo(node, service, &plain, &found);

    if (error)
        return error;
    error = from_host(to, hints, found);
    freeaddrinfo(found);
    return error;
}

static int from_hints(struct rdma_addrinfo *to, const struct rdma_addrinfo *hints)
{
    to->ai_flags = hints->ai_flags;
    to->ai_family = hints->ai_family;
    to->ai_qp_type = hints->ai_qp_type;
    to->ai_port_space = hints->ai_port_space;
    return hints->ai_dst_len
               ? copy_address(&to->ai_dst_addr, &to->ai_dst_len, hints->ai_dst_addr, hints->ai_dst_len)
               : 0;
}

EXPORT int rdma_getaddrinfo(const char *node, const char *service, const struct rdma_addrinfo *hints,
                            struct rdma_addrinfo **res)
{
    static const struct rdma_addrinfo none;

    if (!node && !service && !hints)
        return cm_result(EINVAL);
    if (cm_open())
        return -1;
    struct rdma_addrinfo *made = calloc(1, sizeof(*made));

    if (!made)
        return cm_result(ENOMEM);
    if (!hints)
        hints = &none;
    int result = node || service ? resolve(node, service, hints, made) : from_hints(made, hints);

    if (!result && !made->ai_src_len && hints->ai_src_len)
        result = copy_address(&made->ai_src_addr, &made->ai_src_len, hints->ai_src_addr, hints->ai_src_len);
    if (result) {
        rdma_freeaddrinfo(made);
        return result;
    }
    *res = made;
    return 0;
}

/* ---- the same, told by an event: rdma-core 60 and newer ------------------ */

enum { BY_SA = 0x10, BY_DNS = 0x20 }; /* RAI_SA, RAI_DNS */

static int resolve_for(struct cm_id *id, const char *node, const char *service, const struct rdma_addrinfo *hints)
{
    struct rdma_addrinfo *found;
    int flags = hints ? hints->ai_flags : 0;

    if ((flags & BY_SA) && (node || (flags & BY_DNS)))
        return cm_result(EOPNOTSUPP);
    if (flags & BY_SA) /* an Ethernet has no subnet administrator to ask */
        return cm_result(service ? EOPNOTSUPP : EINVAL);
    int result = rdma_getaddrinfo(node, service, hints, &found);

    if (result)
        return result > 0 ? cm_result(result) : result;
    pthread_mutex_lock(&id->lock);
    id->resolved = found;
    pthread_mutex_unlock(&id->lock);
    if (cm_write_event(&id->id, CM_EVENT_ADDRINFO_RESOLVED, 0, 0) == 0)
        return cm_complete(&id->id);
    pthread_mutex_lock(&id->lock);
    id->resolved = NULL;
    pthread_mutex_unlock(&id->lock);
    rdma_freeaddrinfo(found);
    return -1;
}

EXPORT int rdma_resolve_addrinfo(struct rdma_cm_id *public, const char *node, const char *service,
                                 const struct rdma_addrinfo *hints)
{
    struct cm_id *id = to_cm_id(public);

    if (!id)
        return cm_result(EINVAL);
    pthread_mutex_lock(&id->lock);
    bool busy = id->resolving;

    id->resolving = true;
    pthread_mutex_unlock(&id->lock);
    if (busy)
        return cm_result(EBUSY);
    int result = resolve_for(id, node, service, hints);

    if (result) {
        pthread_mutex_lock(&id->lock);
        id->resolving = false;
        pthread_mutex_unlock(&id->lock);
    }
    return result;
}

EXPORT int rdma_query_addrinfo(struct rdma_cm_id *public, struct rdma_addrinfo **info)
{
    struct cm_id *id = to_cm_id(public);

    if (!id || !info)
        return cm_result(EINVAL);
    pthread_mutex_lock(&id->lock);
    struct rdma_addrinfo *found = id->resolving ? id->resolved : NULL;

    if (found) {
        id->resolved = NULL;
        id->resolving = false;
        *info = found;
    }
    pthread_mutex_unlock(&id->lock);
    return found ? 0 : cm_result(ENOENT);
}

EXPORT void rdma_freeaddrinfo(struct rdma_addrinfo *res)
{
    while (res) {
        struct rdma_addrinfo *next = res->ai_next;

        free(res->ai_connect);
        free(res->ai_route);
        free(res->ai_src_canonname);
        free(res->ai_dst_canonname);
        free(res->ai_src_addr);
        free(res->ai_dst_addr);
        free(res);
        res = next;
    }
}
