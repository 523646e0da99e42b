/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Receives of a tenant's SRQ that are on the NIC. The SRQ stays the engine's: what its ring holds is posted to a twin
 * while QPs of it are connected by the NIC, all of it, or half of its room where other QPs take receives of it as well.
 * What the NIC still has when the last of its QPs is destroyed is the SRQ's again, before what was posted later.
 */
#ifndef SLUICE_NIC_SRQ_H
#define SLUICE_NIC_SRQ_H

#include <infiniband/verbs.h>

#include "nic.h"
#include "srq.h"

struct nic_srq {
    struct srq *owner;
    struct ibv_srq *twin;
    struct nic_cq *cq;
    uint32_t entries;   /* that the twin has */
    uint32_t out;       /* receives there */
    uint32_t users;     /* QPs with a twin of this SRQ's */
    uint32_t connected; /* of them, by the NIC */
    uint32_t stride;    /* bytes of a copy */
    uint64_t taken;     /* receives so far: their order */
    uint8_t *copies;    /* entries of them: struct held, then the SGEs */
    uint32_t *free;     /* places of copies that hold nothing */
};

/* A QP of the SRQ is to have a twin: makes the SRQ's where there is none. 0 or -errno. */
int nic_srq_join(struct srq *srq);
/* That QP is no more. */
void nic_srq_leave(struct srq *srq);

void nic_srq_connect(struct srq *srq);
void nic_srq_disconnect(struct srq *srq);

/* Posts to the twin what there is, as far as it goes. */
void nic_srq_fill(struct srq *srq);

/* A receive came back: *wr_id is the tenant's. False: none that is known. */
bool nic_srq_completed(struct nic_srq *of, const struct ibv_wc *wc, uint64_t *wr_id);

#endif
