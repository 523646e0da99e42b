/* SPDX-License-Identifier: Apache-2.0 */
/* Completion queues and the channels that announce them. */
#ifndef SLUICE_CQ_H
#define SLUICE_CQ_H

#include "node.h"

struct cq {
    struct session *session;
    uint32_t handle;
    uint32_t entries;  /* power of two */
    uint32_t produced; /* running free */
    uint32_t consumer; /* as last read from the shim, checked */
    uint32_t users;    /* QPs */
    bool ignore_overrun;
    bool overrun;      /* lost a CQE: dead, as IBTA 11.6.3.1 has it */
    bool solicited;    /* a CQE since the last notification was solicited or an error */
    uint64_t offset, ring_offset; /* in the segment */
    struct sluice_cq_shared *shared;
    struct sluice_cqe *ring;
    struct context *context;
    struct channel *channel; /* or NULL */
    struct list notify;      /* in engine->notify */
    struct chore resizing;
    struct sluice_cqe *from; /* resizing: the ring before, of from_entries at from_offset; else NULL */
    uint64_t from_offset;
    uint32_t from_entries;
    uint32_t copied, copied_end; /* running free: what of it comes next, and where it ends */
    bool resized;            /* what was -EINPROGRESS is done */
};

/* Returns 0 or a negative errno; *reply gets all but its header. */
int cq_create(struct session *session, const struct sluice_create_cq_request *request,
              struct sluice_create_cq_reply *reply);
/*
 * Moves what waits to a ring of another size. -EINVAL: it doesn't fit; -EINPROGRESS: it takes more than a turn, what comes
 * meanwhile is in the other ring; *reply as above.
 */
int cq_resize(struct cq *cq, const struct sluice_resize_cq_request *request, struct sluice_resize_cq_reply *reply);
void cq_free(struct cq *cq);
struct cq *cq_find(struct session *session, uint32_t handle);

/*
 * Appends a CQE; turn and timestamp are filled in. Where the queue is full the
 * CQE is lost, the CQ dead and the application told (IBV_EVENT_CQ_ERR); or the
 * oldest is lost, where the application has asked for that.
 */
void cq_push(struct cq *cq, const struct sluice_cqe *cqe, bool solicited);

/* Tells the channels of all CQs that got CQEs and were armed. Once after a batch of work. */
void cq_notify_all(struct sluice_engine *engine);

#endif
