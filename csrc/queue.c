/* SPDX-License-Identifier: Apache-2.0 */
#include "queue.h"

#include "atomic.h"

uint32_t queue_entries(uint32_t count)
{
    uint32_t power = 1;

    if (count == 0)
        return 0;
    while (power < count)
        power *= 2;
    return power;
}

uint32_t queue_receive_stride(uint32_t max_sge)
{
    return (uint32_t)(sizeof(struct sluice_recv_wqe) + max_sge * sizeof(struct sluice_sge));
}

uint32_t queue_waiting(struct session *session, struct queue *queue)
{
    /* Pairs with the shim's release: WQEs up to producer are whole. */
    uint32_t producer = load_acquire(&queue->shared->producer);

    if (producer - queue->head > queue->entries) {
        session_break(session, "a queue's producer index is ahead by more than the queue holds");
        return 0;
    }
    queue->seen = producer;
    return producer - queue->head;
}

bool queue_arm(struct session *session, struct queue *queue)
{
    store_relaxed(&queue->shared->armed, 1);
    /* Pairs with the shim's fence between producer and armed. */
    full_fence();
    if (queue_waiting(session, queue) == 0)
        return true;
    store_relaxed(&queue->shared->armed, 0);
    return false;
}

bool queue_take_receive(struct session *session, struct queue *queue, uint32_t max_sge, bool arm,
                        struct receive *receive)
{
    if (queue->entries == 0)
        return false;
    if (queue->head == queue->seen && queue_waiting(session, queue) == 0 &&
        (session->broken || !arm || queue_arm(session, queue)))
        return false;
    if (session->broken)
        return false;

    const struct sluice_recv_wqe *slot = (const struct sluice_recv_wqe *)queue_slot(queue);
    uint32_t num_sge = load_relaxed(&slot->num_sge);

    if (num_sge > max_sge) {
        session_break(session, "a receive queue holds a WQE that no shim writes");
        return false;
    }
    receive->wr_id = slot->wr_id;
    receive->num_sge = num_sge;
    copy_once(receive->sges, slot + 1, num_sge * sizeof(struct sluice_sge));
    receive->active = true;
    queue->head++;
    return true;
}
