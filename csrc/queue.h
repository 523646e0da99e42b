/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Queues of WRs in shared memory, as the engine sees them: the shim raises
 * producer, the engine's own head follows. The other side of shim/post.c.
 */
#ifndef SLUICE_QUEUE_H
#define SLUICE_QUEUE_H

#include <stdbool.h>

#include "node.h"

struct queue {
    struct sluice_queue_shared *shared;
    uint8_t *ring;
    uint32_t entries; /* power of two; 0: no such queue */
    uint32_t stride;  /* bytes */
    uint32_t head;    /* WRs taken */
    uint32_t seen;    /* producer as last read, checked */
};

/* The receive that an arriving message fills: a private, checked copy of its WQE. */
struct receive {
    bool active;
    uint64_t wr_id;
    uint32_t src_qp;
    uint32_t num_sge;
    struct pd *pd;   /* whose keys the SGEs name */
    struct cq *cq;   /* where it completes */
    struct srq *srq; /* where it comes from; NULL: the QP's own receive queue */
    struct sluice_sge sges[SLUICE_MAX_SGE];
};

/* The least power of two that is no smaller; 0 stays 0. count is at most 2^31. */
uint32_t queue_entries(uint32_t count);

/* Bytes from one receive WQE to the next. */
uint32_t queue_receive_stride(uint32_t max_sge);

/*
 * WRs that wait in the queue. The shim's index is checked here, once: it can't be
 * ahead by more than the ring holds, or the session is broken.
 */
uint32_t queue_waiting(struct session *session, struct queue *queue);

/*
 * The queue was found empty: ask for the doorbell. False where something came in
 * meanwhile, which the caller must handle itself.
 */
bool queue_arm(struct session *session, struct queue *queue);

/*
 * Takes the receive at the head; *receive gets its copy, all but pd, cq and srq.
 * False: none is posted (the doorbell will ring where arm is true), or the session
 * is broken.
 */
bool queue_take_receive(struct session *session, struct queue *queue, uint32_t max_sge, bool arm,
                        struct receive *receive);

static inline const uint8_t *queue_slot_at(const struct queue *queue, uint32_t index)
{
    return queue->ring + (uint64_t)(index & (queue->entries - 1)) * queue->stride;
}

static inline const uint8_t *queue_slot(const struct queue *queue)
{
    return queue_slot_at(queue, queue->head);
}

#endif
