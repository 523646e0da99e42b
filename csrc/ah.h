/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Address handles: where a UD message goes. The control plane resolves the GID when
 * the AH is made; a WQE carries the AH's handle, which is looked up for each message.
 */
#ifndef SLUICE_AH_H
#define SLUICE_AH_H

#include "node.h"

struct transport;

struct ah {
    struct pd *pd;
    uint32_t handle;
    const struct transport *transport;
    uint32_t peer;                     /* unicast: the number of the tenant that has the GID */
    uint64_t incarnation;              /* of that tenant: the number may be another one's by now */
    struct group *group;               /* multicast */
    struct stream *stream;             /* to another node (transport/stream.h); then peer is nobody */
    uint64_t asked;                    /* ns: when the control plane was last asked where it leads */
    struct ibv_ah *nic;                /* by the NIC */
    const struct device *behind;       /* by the GID of its NIC, behind which this node's tenants are too; or NULL */
    bool severed;                      /* nothing goes there any more */
    struct sluice_ah_attr attr;
    uint8_t sgid[16];
};

/* Returns the handle. peer_tenant: who has the GID; -1: nobody, or it is a multicast GID. */
int ah_create(struct session *session, const struct sluice_create_ah_request *request, const uint8_t sgid[16],
              const struct transport *transport, int32_t peer_tenant);
/* -1: nobody. */
void ah_set_peer(struct ah *ah, int32_t peer_tenant);
/* By this trunk, or NULL: to no other node. -ENOMEM: its tenant has led to as many tenants of that node as it may. */
int ah_set_trunk(struct ah *ah, struct trunk *trunk);
/* It leads nowhere, as its destination wasn't known, or has gone: the control plane is asked, once in a while. */
void ah_ask(struct ah *ah);
int ah_destroy(struct session *session, uint32_t handle);
/* It leads to where the NIC finds its GID. behind: that GID is the NIC's of this device, or NULL. -errno of the device's. */
int ah_by_nic(struct ah *ah, const struct device *behind);
/* The NIC is gone. */
void ah_lose_nic(struct ah *ah);

/* NULL: there is none with this handle. */
static inline struct ah *ah_find(const struct session *session, uint32_t handle)
{
    return handle < SLUICE_SESSION_AHS ? session->ahs[handle] : NULL;
}

/* The tenant, as a whole, that a unicast AH leads to; NULL where nobody has the GID: what is sent there is lost. */
static inline struct tenant *ah_tenant(const struct sluice_engine *engine, const struct ah *ah)
{
    struct tenant *tenant = ah->peer < SLUICE_MAX_TENANTS ? engine->tenants[ah->peer] : NULL;

    return tenant && tenant->incarnation == ah->incarnation ? tenant : NULL;
}

#endif
