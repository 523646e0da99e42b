/* SPDX-License-Identifier: Apache-2.0 */
/* Endpoints: an id with all that goes with it, made in one call. man rdma_create_ep, rdma_get_request. */
#include <errno.h>
#include <rdma/rdma_verbs.h>
#include <stdlib.h>
#include <string.h>

#include "cm.h"
#include "objects.h"

enum { RESOLVE_MS = 2000 };

static int open_passive(struct rdma_cm_id *id, struct rdma_addrinfo *res, struct ibv_pd *pd,
                        struct ibv_qp_init_attr *attr)
{
    if (rdma_bind_addr(id, res->ai_src_addr))
        return -1;
    if (pd)
        id->pd = pd;
    if (attr) {
        struct ibv_qp_init_attr *kept = malloc(sizeof(*kept));

        if (!kept)
            return -1;
        *kept = *attr;
        kept->qp_type = res->ai_qp_type;
        to_cm_id(id)->qp_init_attr = kept;
    }
    return 0;
}

static int open_active(struct rdma_cm_id *id, struct rdma_addrinfo *res, struct ibv_pd *pd,
                       struct ibv_qp_init_attr *attr)
{
    if (rdma_resolve_addr(id, res->ai_src_addr, res->ai_dst_addr, RESOLVE_MS) || rdma_resolve_route(id, RESOLVE_MS))
        return -1;
    if (attr) {
        attr->qp_type = res->ai_qp_type;
        if (rdma_create_qp(id, pd, attr))
            return -1;
    }
    if (res->ai_connect_len) {
        struct cm_id *private = to_cm_id(id);

        private->connect = malloc(res->ai_connect_len);
        if (!private->connect)
            return -1;
        memcpy(private->connect, res->ai_connect, res->ai_connect_len);
        private->connect_len = res->ai_connect_len;
    }
    return 0;
}

EXPORT int rdma_create_ep(struct rdma_cm_id **id, struct rdma_addrinfo *res, struct ibv_pd *pd,
                          struct ibv_qp_init_attr *attr)
{
    struct rdma_cm_id *made;

    if (cm_create_id(NULL, &made, NULL, res->ai_port_space, res->ai_qp_type))
        return -1;
    if (res->ai_flags & RAI_PASSIVE ? open_passive(made, res, pd, attr) : open_active(made, res, pd, attr)) {
        int error = errno;

        rdma_destroy_ep(made);
        return cm_result(error);
    }
    *id = made;
    return 0;
}

EXPORT void rdma_destroy_ep(struct rdma_cm_id *id)
{
    if (id->qp)
        rdma_destroy_qp(id);
    if (id->srq)
        rdma_destroy_srq(id);
    rdma_destroy_id(id);
}

/* errno for an event that isn't a request. */
static int why_not(const struct rdma_cm_event *event)
{
    if (event->event == RDMA_CM_EVENT_REJECTED)
        return ECONNREFUSED;
    if (event->status)
        return event->status < 0 ? -event->status : event->status;
    return event->event == RDMA_CM_EVENT_CONNECT_REQUEST ? 0 : EINVAL;
}

EXPORT int rdma_get_request(struct rdma_cm_id *listen, struct rdma_cm_id **id)
{
    struct cm_id *private = to_cm_id(listen);
    struct rdma_cm_event *event;

    if (!private->synchronous)
        return cm_result(EINVAL);
    if (listen->event) {
        rdma_ack_cm_event(listen->event);
        listen->event = NULL;
    }
    if (rdma_get_cm_event(listen->channel, &event))
        return -1;
    int error = why_not(event);

    if (!error && private->qp_init_attr) {
        struct ibv_qp_init_attr attr = *private->qp_init_attr;

        error = rdma_create_qp(event->id, listen->pd, &attr) ? errno : 0;
    }
    if (error) {
        listen->event = event;
        return cm_result(error);
    }
    *id = event->id;
    (*id)->event = event;
    return 0;
}
