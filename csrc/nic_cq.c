/* SPDX-License-Identifier: Apache-2.0 */
/* The engine's completion queues on the NIC. */
#include <errno.h>
#include <stdlib.h>

#include "nic.h"

static struct nic_cq *create(struct nic *nic, uint32_t entries)
{
    struct nic_cq *cq = calloc(1, sizeof(*cq));

    if (!cq) {
        errno = ENOMEM;
        return NULL;
    }
    cq->cq = nic->call.ibv_create_cq(nic->context, (int)entries, NULL, nic->channel, 0);
    if (!cq->cq) {
        free(cq);
        return NULL;
    }
    cq->entries = entries;
    list_init(&cq->link);
    list_append(&nic->cqs, &cq->link);
    nic->armed = false;
    return cq;
}

struct nic_cq *nic_take_cq(struct nic *nic, uint32_t completions)
{
    for (struct list *link = nic->cqs.next; link != &nic->cqs; link = link->next) {
        struct nic_cq *cq = list_entry(link, struct nic_cq, link);

        if (completions <= cq->entries - cq->taken) {
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
    struct nic_cq *cq = create(nic, entries);

    if (cq)
        cq->taken = completions;
    return cq;
}

struct nic_cq *nic_make_cq(struct nic *nic, uint32_t completions)
{
    struct nic_cq *cq = create(nic, completions);

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

static bool is_unarmed(const struct nic *nic)
{
    return !nic->armed && !list_empty(&nic->cqs);
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
    for (struct list *link = nic->cqs.next; link != &nic->cqs; link = link->next)
        if (ibv_req_notify_cq(list_entry(link, struct nic_cq, link)->cq, 0))
            return false;
    nic->armed = true;
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
