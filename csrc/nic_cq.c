/* SPDX-License-Identifier: Apache-2.0 */
/* The engine's completion queues on the NIC. */
#include <errno.h>
#include <stdlib.h>

#include "nic.h"

static struct nic_cq *create(struct nic *nic, uint32_t entries, bool sends)
{
    struct nic_cq *cq = calloc(1, sizeof(*cq));

    if (!cq) {
        errno = ENOMEM;
        return NULL;
    }
    cq->cq = nic->call.ibv_create_cq(nic->context, (int)entries, cq, nic->channel, 0);
    if (!cq->cq) {
        free(cq);
        return NULL;
    }
    cq->entries = entries;
    list_init(&cq->link);
    cq->sends = sends;
    list_append(&nic->cqs, &cq->link);
    return cq;
}

struct nic_cq *nic_take_cq(struct nic *nic, uint32_t completions, bool sends)
{
    for (struct list *link = nic->cqs.next; link != &nic->cqs; link = link->next) {
        struct nic_cq *cq = list_entry(link, struct nic_cq, link);

        if (cq->sends == sends && completions <= cq->entries - cq->taken) {
            cq->taken += completions;
            return cq;
        }
    }
    uint32_t entries = completions > NIC_CQ ? completions : NIC_CQ;

    if (entries > (uint32_t)nic->attr.max_cqe)
        entries = (uint32_t)nic->attr.max_cqe;
    if (completions > entries) {
        errno = EINVAL;
        return NULL;
    }
    struct nic_cq *cq = create(nic, entries, sends);

    if (cq)
        cq->taken = completions;
    return cq;
}

struct nic_cq *nic_make_cq(struct nic *nic, uint32_t completions)
{
    struct nic_cq *cq = create(nic, completions, false);

    if (cq)
        cq->taken = cq->entries;
    return cq;
}

void nic_give_cq(struct nic *nic, struct nic_cq *cq, uint32_t completions)
{
    cq->taken -= completions;
    if (cq->taken)
        return;
    list_remove(&cq->link);
    nic->call.ibv_destroy_cq(cq->cq);
    free(cq);
}

static bool wants_arming(const struct nic *nic, const struct nic_cq *cq)
{
    return !cq->armed && (!cq->sends || nic->outstanding);
}

static bool is_unarmed(const struct nic *nic)
{
    for (const struct list *link = nic->cqs.next; link != &nic->cqs; link = link->next)
        if (wants_arming(nic, list_entry(link, struct nic_cq, link)))
            return true;
    return false;
}

bool nic_unarmed(const struct sluice_engine *engine)
{
    for (const struct list *link = engine->nics.next; link != &engine->nics; link = link->next)
        if (is_unarmed(list_entry(link, struct nic, link)))
            return true;
    return false;
}

static bool arm(struct nic *nic)
{
    for (struct list *link = nic->cqs.next; link != &nic->cqs; link = link->next) {
        struct nic_cq *cq = list_entry(link, struct nic_cq, link);

        if (!wants_arming(nic, cq))
            continue;
        if (ibv_req_notify_cq(cq->cq, 0))
            return false;
        cq->armed = true;
    }
    return true;
}

bool nic_arm(struct sluice_engine *engine)
{
    bool now = false;

    for (struct list *link = engine->nics.next; link != &engine->nics; link = link->next) {
        struct nic *nic = list_entry(link, struct nic, link);

        if (!is_unarmed(nic))
            continue;
        if (!arm(nic))
            return false;
        now = true;
    }
    return !now || nic_serve(engine) == 0;
}
