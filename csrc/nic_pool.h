/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Room for datagrams that come by the NIC, one for a PD: a UD QP hears neighbours, other nodes and hosts behind the NIC
 * from one receive queue, so its receives stay with the engine, and what the NIC brings is copied once more, into them.
 * What finds no room is lost, as at any receiver that is too slow.
 */
#ifndef SLUICE_NIC_POOL_H
#define SLUICE_NIC_POOL_H

#include <infiniband/verbs.h>

#include "nic.h"

enum { POOL_DATAGRAMS = 256, POOL_STRIDE = SLUICE_GRH + SLUICE_MTU };

struct nic_pool {
    struct ibv_srq *srq;
    struct ibv_mr *mr;
    struct nic_cq *cq;
    uint8_t *memory; /* POOL_DATAGRAMS of POOL_STRIDE bytes each */
    uint32_t users;  /* UD QPs with a twin */
};

/* A UD QP of the PD is to have a twin. 0 or -errno. */
int nic_pool_join(struct pd *pd);
void nic_pool_leave(struct pd *pd);

static inline uint8_t *nic_pool_at(const struct nic_pool *pool, uint64_t place)
{
    return pool->memory + place * POOL_STRIDE;
}

/* The place is free for the next datagram. */
void nic_pool_post(const struct nic_pool *pool, uint64_t place);

#endif
