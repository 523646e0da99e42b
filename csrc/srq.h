/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Shared receive queues (IBTA 10.2.9): many QPs take receives from one queue. An
 * SRQ for XRC belongs to an XRC domain, has a number that the sender names in each
 * WR, and a CQ of its own.
 */
#ifndef SLUICE_SRQ_H
#define SLUICE_SRQ_H

#include "queue.h"

enum { TENANT_XRC_SRQS = 4096 }; /* numbers that one tenant may have of the node's 65,535 */

struct srq {
    struct session *session;
    struct pd *pd;
    struct xrcd *xrcd; /* NULL: not for XRC */
    struct cq *cq;     /* XRC only */
    struct opened_xrcd *opened;
    uint32_t handle;
    uint32_t number; /* XRC only, else 0 */
    uint32_t max_sge;
    uint32_t limit;  /* an event when fewer WRs wait; 0: not armed */
    uint32_t users;  /* QPs */
    uint32_t others; /* of them, connected otherwise than by the NIC */
    struct nic_srq *nic; /* receives that the NIC has (nic_srq.h), or NULL */
    struct returned *returned; /* receives that it gave back: they come first */
    uint32_t returned_count, returned_next;
    struct queue queue;
    struct sluice_srq_shared *shared;
    struct list held;    /* struct tcp_endpoint: connections whose message found no receive here */
    struct list waiting; /* requesters whose message found no receive here */
    uint64_t offset, size;
};

int srq_create(struct session *session, const struct sluice_create_srq_request *request,
               struct sluice_create_srq_reply *reply);
void srq_free(struct srq *srq);

/* The SRQ with this handle, or NULL. */
struct srq *srq_find(struct session *session, uint32_t handle);
/* The XRC SRQ with this number, or NULL. */
struct srq *srq_lookup(struct sluice_engine *engine, uint32_t number);

/* limit must not be more than the queue holds (-EINVAL). */
int srq_set_limit(struct srq *srq, uint32_t limit);

/*
 * The next receive; false where there is none. arm: then the doorbell rings when
 * one is posted, and all in waiting go on.
 */
bool srq_take(struct srq *srq, bool arm, struct receive *receive);

/* The same for one that waits elsewhere: it isn't served yet. */
bool srq_lend(struct srq *srq, bool arm, struct receive *receive);

/* A receive that was taken is there again, before all that the ring holds and behind what was given back before. */
void srq_give_back(struct srq *srq, uint64_t wr_id, const struct sluice_sge *sges, uint32_t num_sge);

/* Fewer receives may be left than the limit that was set. */
void srq_check_limit(struct srq *srq);

/* The CQ of XRC SRQs died: the application is told. */
void srqs_of_dead_cq(struct cq *cq);

/* Its doorbell rang. */
void srq_ring(struct srq *srq);

#endif
