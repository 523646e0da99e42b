/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the control plane calls of devices, groups and tenants: each call enters (worker.h), finds what it is about, has
 * it done, and leaves.
 */
#include "engine.h"

#include <errno.h>
#include <string.h>

#include "account.h"
#include "device.h"
#include "gate.h"
#include "neighbours.h"
#include "node.h"
#include "tenant.h"
#include "worker.h"

/* ---- tenants ----------------------------------------------------------- */

int sluice_tenant_add(struct sluice_engine *engine, uint32_t number, int32_t of, const struct sluice_shape *shape)
{
    worker_enter(engine);
    struct device *device = device_find(engine, number);
    struct tenant *first = of < 0 ? NULL : tenant_find(engine, (uint32_t)of);
    int result = -EINVAL;

    if (!device)
        result = -ENODEV;
    else if (of < 0 || (first && first->first == first))
        result = tenant_add(device, first, shape);
    worker_leave(engine);
    return result;
}

int sluice_tenant_address(struct sluice_engine *engine, uint32_t number, const uint8_t *gid)
{
    worker_enter(engine);
    struct tenant *tenant = tenant_find(engine, number);

    if (tenant)
        memcpy(tenant->gid, gid, sizeof(tenant->gid));
    worker_leave(engine);
    return tenant ? 0 : -EINVAL;
}

int sluice_neighbour_admit(struct sluice_engine *engine, uint32_t number, uint32_t peer, int admitted)
{
    worker_enter(engine);
    struct tenant *tenant = tenant_find(engine, number);
    int result = tenant && peer < SLUICE_MAX_TENANTS ? neighbour_admit(tenant, peer, admitted) : -EINVAL;

    worker_leave(engine);
    return result;
}

int sluice_gate_close(struct sluice_engine *engine)
{
    worker_enter(engine);
    int result = gate_close(engine);

    worker_leave(engine);
    return result;
}

int sluice_gate_admit(struct sluice_engine *engine, const uint8_t *sender, int32_t trunk, uint32_t tenant, int admitted)
{
    worker_enter(engine);
    int result = gate_admit(engine, sender, trunk, tenant, admitted);

    worker_leave(engine);
    return result;
}

void sluice_gate_forget(struct sluice_engine *engine, const uint8_t *sender)
{
    worker_enter(engine);
    gate_forget(engine, sender);
    worker_leave(engine);
}

int sluice_tenant_remove(struct sluice_engine *engine, uint32_t number)
{
    int result = -EINVAL;

    worker_enter(engine);
    struct tenant *tenant = tenant_find(engine, number);

    if (tenant) {
        result = tenant_remove(tenant);
    }
    worker_leave(engine);
    return result;
}

int sluice_tenant_shape(struct sluice_engine *engine, uint32_t number, const struct sluice_shape *shape)
{
    worker_enter(engine);
    struct tenant *tenant = tenant_find(engine, number);
    int result = tenant ? tenant_shape(tenant, shape) : -EINVAL;

    worker_leave(engine);
    return result;
}

int64_t sluice_tenant_verb(struct sluice_engine *engine, uint32_t number)
{
    int64_t wait = 0;

    worker_enter(engine);
    struct tenant *tenant = tenant_find(engine, number);

    if (tenant)
        wait = tenant_take_verb(tenant);
    worker_leave(engine);
    return tenant ? wait : -EINVAL;
}

/* ---- groups and devices ------------------------------------------------ */

int sluice_group_add(struct sluice_engine *engine, uint32_t number, const struct sluice_share *share)
{
    worker_enter(engine);
    struct device *device = device_find(engine, number);
    int result = device ? tenant_group_add(device, share) : -ENODEV;

    worker_leave(engine);
    return result;
}

static struct tenant_group *find_group(struct sluice_engine *engine, uint32_t number)
{
    return number < SLUICE_MAX_GROUPS ? engine->tenant_groups[number] : NULL;
}

int sluice_group_remove(struct sluice_engine *engine, uint32_t number)
{
    worker_enter(engine);
    struct tenant_group *group = find_group(engine, number);
    int result = !group ? -EINVAL : group->tenants ? -EBUSY : 0;

    if (result == 0)
        tenant_group_free(group);
    worker_leave(engine);
    return result;
}

int sluice_group_shape(struct sluice_engine *engine, uint32_t number, const struct sluice_share *share)
{
    worker_enter(engine);
    struct tenant_group *group = find_group(engine, number);

    if (group)
        tenant_group_shape(group, share);
    worker_leave(engine);
    return group ? 0 : -EINVAL;
}

int sluice_device_add(struct sluice_engine *engine)
{
    worker_enter(engine);
    int result = device_add(engine);

    worker_leave(engine);
    return result;
}

int sluice_device_shape(struct sluice_engine *engine, uint32_t number, uint64_t capacity_bps, uint32_t wire)
{
    if (capacity_bps == 0)
        return -EINVAL;
    worker_enter(engine);
    struct device *device = device_find(engine, number);

    if (device)
        device_set(device, capacity_bps, wire != 0);
    worker_leave(engine);
    return device ? 0 : -ENODEV;
}
