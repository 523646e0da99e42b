/* SPDX-License-Identifier: Apache-2.0 */
/*
 * rdma_cm as the shim sees it: what stands behind the objects of <rdma/rdma_cma.h>.
 * State lives in the router (router/sluice/control/cm); here are the ids that
 * applications hold, the events they were given, and the steps that the library takes
 * for them: moving a QP through its states, blocking where an id has no channel of its
 * own.
 */
#ifndef SLUICE_SHIM_CM_H
#define SLUICE_SHIM_CM_H

#include <pthread.h>
#include <rdma/rdma_cma.h>
#include <stdbool.h>

#include "abi.h"

/* Of enum rdma_cm_event_type, which older headers end before. */
enum { CM_EVENT_ADDRINFO_RESOLVED = 16, CM_EVENT_ADDRINFO_ERROR, CM_EVENT_USER };

struct cm_channel {
    struct rdma_event_channel channel;
    uint32_t handle;
    unsigned readers; /* threads that wait for an event; guarded, as destroyed, by a lock of cm_event.c */
    bool destroyed;
};

struct cm_group {
    struct cm_group *next;
    struct cm_id *id;
    void *context;
    uint32_t handle;
    uint32_t events_acked; /* guarded by the id's lock */
    union ibv_gid gid;
    bool send_only;
    struct sockaddr_storage addr;
};

struct cm_id {
    struct rdma_cm_id id;
    uint32_t handle;
    bool synchronous;    /* the channel is its own; calls block */
    bool holds_device;
    bool connect_failed; /* the application was told; no event contradicts it */
    uint8_t initiator_depth, responder_resources;
    struct ibv_ece local_ece, remote_ece;
    bool resolving;                        /* rdma_resolve_addrinfo; guarded by lock, as its result */
    struct rdma_addrinfo *resolved;
    struct ibv_qp_init_attr *qp_init_attr; /* of a listening endpoint: for the QPs of requests */
    void *connect;                         /* rdma_addrinfo's connection data */
    size_t connect_len;
    pthread_mutex_t lock;
    pthread_cond_t changed;
    uint32_t events_acked;   /* guarded by lock, as the groups */
    struct cm_group *groups;
};

struct cm_event {
    struct rdma_cm_event event;
    struct cm_id *about;    /* whom acknowledging counts for: of a request the listening id */
    struct cm_group *group;
    uint8_t private_data[SLUICE_CM_PRIVATE_DATA];
};

static inline struct cm_id *to_cm_id(struct rdma_cm_id *id)
{
    return (struct cm_id *)id;
}

static inline struct cm_channel *to_cm_channel(struct rdma_event_channel *channel)
{
    return (struct cm_channel *)channel;
}

/* errno and -1, or 0. */
int cm_result(int error);

/* Makes sure that there is a router. 0, or -1 with errno ENODEV. */
int cm_open(void);

/* A request with one number about an id; 0 or errno. */
int cm_ask(uint16_t op, struct rdma_cm_id *id, uint32_t value);

/* The object behind an id of either side. channel NULL: one of its own. NULL with errno. */
struct cm_id *cm_id_new(struct rdma_event_channel *channel, void *context, enum rdma_port_space ps,
                        enum ibv_qp_type qp_type);
void cm_id_free(struct cm_id *id);
int cm_create_id(struct rdma_event_channel *channel, struct rdma_cm_id **id, void *context, enum rdma_port_space ps,
                 enum ibv_qp_type qp_type);
/* Waits until the application has acknowledged so many events about it. */
void cm_id_wait(struct cm_id *id, const uint32_t *acked, uint32_t events);
/* Takes bytes out of a channel whose events are no more, as many as are there. */
void cm_channel_drain(const struct rdma_event_channel *channel, uint32_t surplus);

/* Takes over what the router knows of the two ends. 0, or -1 with errno: no device, no memory. */
int cm_set_route(struct cm_id *id, const struct sluice_cm_route *route);

/* Puts an event of the application's, or the library's, into the id's channel. 0, or -1 with errno. */
int cm_write_event(struct rdma_cm_id *id, uint32_t event, int status, uint64_t arg);

/* A synchronous id waits for the next event and returns its status as -1 and errno; others return 0. */
int cm_complete(struct rdma_cm_id *id);

/* Addresses. cm_address_length: 0 for families that rdma_cm doesn't have. */
socklen_t cm_address_length(const struct sockaddr *address);
void cm_address_to_abi(struct sluice_cm_addr *to, const struct sockaddr *from);
void cm_address_from_abi(struct sockaddr_storage *to, const struct sluice_cm_addr *from);

/* A device that ids share, context and PD, becomes this one's. 0, or -1 with errno. */
int cm_device_get(struct rdma_cm_id *id, uint32_t number);
void cm_device_put(const struct rdma_cm_id *id);
/* Of the id's device. NULL with errno. */
struct ibv_xrcd *cm_device_xrcd(const struct rdma_cm_id *id);
/* 0: it has none yet. */
uint8_t cm_device_max_reads(const struct rdma_cm_id *id);

/* QP transitions, for ids that have a QP; 0, or -1 with errno. depth: RDMA_MAX_*: as the CM says. */
int cm_modify_rtr(struct rdma_cm_id *id, uint8_t responder_resources);
int cm_modify_rts(struct rdma_cm_id *id, uint8_t initiator_depth);
int cm_modify_err(struct rdma_cm_id *id);
/* The active side has its reply: RTR, RTS, and word to the peer. */
int cm_finish_connect(struct cm_id *id);

#endif
