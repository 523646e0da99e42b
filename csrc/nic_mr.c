/* SPDX-License-Identifier: Apache-2.0 */
/* What peers reach a tenant's memory by: its regions and windows, on the NIC. */
#include <errno.h>

#include "mr.h"
#include "nic.h"

static uint32_t *key_entry(const struct pd *pd, uint32_t key)
{
    return &pd->nic_keys[key >> NIC_KEY_TAG];
}

static void take_key(struct mr *mr, uint32_t key)
{
    mr->key = key;
    *key_entry(mr->pd, key) = (uint32_t)(mr - mr->pd->session->engine->mrs);
}

int nic_adopt_mr(struct mr *mr, struct ibv_mr *twin)
{
    if (!twin)
        return 0;
    /* One key for both uses, as all devices known have it; else peers could not be told of it. */
    if ((twin->rkey && twin->rkey != twin->lkey) || *key_entry(mr->pd, twin->lkey)) {
        nic_of_pd(mr->pd)->call.ibv_dereg_mr(twin);
        return -EOPNOTSUPP;
    }
    nic_dereg_mr(mr);
    mr->nic = twin;
    take_key(mr, twin->lkey);
    return 0;
}

void nic_dereg_mr(struct mr *mr)
{
    if (!mr->nic)
        return;
    *key_entry(mr->pd, mr->nic->lkey) = 0;
    nic_of_pd(mr->pd)->call.ibv_dereg_mr(mr->nic);
    mr->nic = NULL;
}

int nic_alloc_mw(struct mr *window)
{
    if (!window->pd->nic)
        return 0;
    errno = 0;
    struct ibv_mw *twin =
        ibv_alloc_mw(window->pd->nic, window->kind == MR_WINDOW_TYPE_1 ? IBV_MW_TYPE_1 : IBV_MW_TYPE_2);

    if (!twin)
        return errno == ENOMEM || errno == EAGAIN ? -errno : 0;
    if (*key_entry(window->pd, twin->rkey)) {
        ibv_dealloc_mw(twin);
        return -ENOMEM;
    }
    window->nic_window = twin;
    take_key(window, twin->rkey);
    return 0;
}

void nic_dealloc_mw(struct mr *window)
{
    if (!window->nic_window)
        return;
    *key_entry(window->pd, window->key) = 0;
    ibv_dealloc_mw(window->nic_window);
    window->nic_window = NULL;
}
