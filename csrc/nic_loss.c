/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A NIC that was removed, or is about to be: all that tenants have there, and nothing of other devices, is given up, so that whatever they posted
 * completes and the kernel can let the device go. What was made in its time stays without a twin: such
 * PDs have no part in a NIC that comes later, their keys open nothing any more.
 */
#include "ah.h"
#include "mr.h"
#include "nic.h"
#include "qp.h"
#include "transport/nic.h"
#include "worker.h"

static void lose_qp(struct qp *qp)
{
    if (qp->twin->draining)
        qp_drained(qp);
    else if (qp->twin->connected)
        qp_error(qp);
    nic_qp_destroy(qp);
}

static void lose_keys(const struct nic *nic, struct list *keys)
{
    for (struct list *link = keys->next; link != keys; link = link->next) {
        struct mr *mr = list_entry(link, struct mr, link);

        if (nic_of_pd(mr->pd) != nic)
            continue;
        if (mr->kind == MR_REGION)
            nic_dereg_mr(mr);
        else
            nic_dealloc_mw(mr);
    }
}

static void lose_session(const struct nic *nic, struct session *session)
{
    for (uint32_t handle = 0; handle < SLUICE_SESSION_QPS; handle++)
        if (session->qps[handle] && session->qps[handle]->twin && nic_of(session->qps[handle]) == nic)
            lose_qp(session->qps[handle]);
    for (uint32_t handle = 1, left = session->ah_count; left; handle++)
        if (session->ahs[handle]) {
            left--;
            if (nic_of_pd(session->ahs[handle]->pd) == nic)
                ah_lose_nic(session->ahs[handle]);
        }
    lose_keys(nic, &session->mws);
    lose_keys(nic, &session->mrs);
    for (struct list *link = session->pds.next; link != &session->pds; link = link->next)
        if (nic_of_pd(list_entry(link, struct pd, link)) == nic)
            nic_dealloc_pd(list_entry(link, struct pd, link));
}

void sluice_nic_close(struct sluice_engine *engine, uint32_t number)
{
    worker_enter(engine);
    struct device *device = device_find(engine, number);
    struct nic *nic = device ? device->nic : NULL;

    if (nic) {
        nic->lost = true;
        registrar_wait(nic);
        for (uint32_t i = 0; i < engine->live_count; i++)
            lose_session(nic, engine->live[i]);
        nic_close(device);
    }
    worker_leave(engine);
}
