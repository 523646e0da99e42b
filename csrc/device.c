/* SPDX-License-Identifier: Apache-2.0 */
#include "device.h"

#include <errno.h>
#include <stdlib.h>

#include "account.h"
#include "nic.h"
#include "tenant.h"

/* Engine time by which a device that rested comes behind the others. */
#define DEVICE_CREDIT_NS 50000ull

int device_add(struct sluice_engine *engine)
{
    if (engine->device_count == SLUICE_MAX_DEVICES)
        return -EAGAIN;
    struct device *device = calloc(1, sizeof(*device));

    if (!device)
        return -ENOMEM;
    device->engine = engine;
    device->number = engine->device_count;
    int error = account_init(&device->account, device, NULL);

    if (error) {
        free(device);
        return error;
    }
    engine->devices[engine->device_count++] = device;
    device_set(device, device->shaper.capacity, false);
    return (int)device->number;
}

struct device *device_find(struct sluice_engine *engine, uint32_t number)
{
    return number < engine->device_count ? engine->devices[number] : NULL;
}

void device_free(struct device *device)
{
    nic_close(device);
    nic_keys_free(device);
    account_free(&device->account);
    free(device);
}

void tenants_refresh(struct sluice_engine *engine)
{
    for (uint32_t number = 0; number < SLUICE_MAX_TENANTS; number++)
        if (engine->tenants[number])
            tenant_refresh(engine->tenants[number]);
}

void device_set(struct device *device, uint64_t capacity, bool wire)
{
    struct sluice_engine *engine = device->engine;
    uint64_t whole = 0;

    device->capacity = capacity;
    for (uint32_t number = 0; number < engine->device_count; number++)
        whole += engine->devices[number]->capacity;
    for (uint32_t number = 0; number < engine->device_count; number++) {
        struct device *one = engine->devices[number];

        shaper_set_device(&one->shaper, one->capacity, whole, one == device ? wire : one->shaper.wire);
        lane_open(&one->account.lanes[FLOW_EGRESS]);
        lane_open(&one->account.lanes[FLOW_INGRESS]);
    }
    /* Guarantees are shares of the whole. */
    for (uint32_t number = 0; number < SLUICE_MAX_TENANTS; number++)
        if (engine->tenants[number])
            account_set_share(&engine->tenants[number]->account, &engine->tenants[number]->shape.share);
    for (uint32_t number = 0; number < SLUICE_MAX_GROUPS; number++)
        if (engine->tenant_groups[number])
            account_set_share(&engine->tenant_groups[number]->account, &engine->tenant_groups[number]->share);
    tenants_refresh(engine);
}

static bool next_due(struct sluice_engine *engine, struct turn *turn)
{
    uint64_t earliest = 0;
    bool found = false;

    for (uint32_t number = 0; number < engine->device_count; number++) {
        struct shaper *shaper = &engine->devices[number]->shaper;
        struct turn due;
        uint64_t deadline;

        if (!shaper->working || !shaper_next_due(shaper, engine->now, &due, &deadline) ||
            (found && deadline >= earliest))
            continue;
        *turn = due;
        earliest = deadline;
        found = true;
    }
    return found;
}

bool devices_next(struct sluice_engine *engine, struct turn *turn)
{
    uint32_t asked = 0;

    if (engine->device_count == 1)
        return shaper_next(&engine->devices[0]->shaper, engine->now, turn);
    if (next_due(engine, turn))
        return true;
    for (;;) {
        struct device *least = NULL;

        for (uint32_t number = 0; number < engine->device_count; number++) {
            struct device *device = engine->devices[number];

            if (device->shaper.working && !(asked >> number & 1) && (!least || device->used_ns < least->used_ns))
                least = device;
        }
        if (!least)
            return false;
        if (shaper_next(&least->shaper, engine->now, turn))
            return true;
        asked |= 1u << least->number;
    }
}

void device_charge(struct device *device, const struct turn *turn, uint64_t ns)
{
    struct sluice_engine *engine = device->engine;
    uint64_t most = 0;

    if (engine->device_count == 1 || turn->guaranteed)
        return;
    for (uint32_t number = 0; number < engine->device_count; number++)
        most = engine->devices[number]->used_ns > most ? engine->devices[number]->used_ns : most;
    if (most > DEVICE_CREDIT_NS && device->used_ns < most - DEVICE_CREDIT_NS)
        device->used_ns = most - DEVICE_CREDIT_NS;
    device->used_ns += ns;
}
