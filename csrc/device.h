/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Devices: each has a shaper of its own, with the tenants that were given the device.
 * They share the worker. A guarantee that is due goes first, whichever device it is on, the
 * earliest deadline before others: their shares of the engine are parts of what all devices
 * carry together. What is left devices share evenly, those that have work.
 */
#ifndef SLUICE_DEVICE_H
#define SLUICE_DEVICE_H

#include "node.h"

struct device {
    struct account account; /* the top of its hierarchy */
    struct shaper shaper;
    struct sluice_engine *engine;
    uint32_t number;
    uint64_t capacity; /* bits per second, each direction */
    uint64_t used_ns;  /* of the engine, by who wasn't due */
    struct nic *nic;   /* behind it; or NULL */
    uint32_t *nic_keys; /* NIC_NUMBERS, by a key's index: entries of mrs whose key is the NIC's; or NULL */
};

/* Returns its number or a negative errno. -EAGAIN: there are as many as may be. */
int device_add(struct sluice_engine *engine);
void device_free(struct device *device);
/* By its number, or NULL. */
struct device *device_find(struct sluice_engine *engine, uint32_t number);
void device_set(struct device *device, uint64_t capacity, bool wire);
/* What tenants keep of the ceilings above them. */
void tenants_refresh(struct sluice_engine *engine);

/* Who is next, on any device. False: nobody may go now. */
bool devices_next(struct sluice_engine *engine, struct turn *turn);
/* Engine time that a turn took. */
void device_charge(struct device *device, const struct turn *turn, uint64_t ns);

/* How many kinds of work there are, all tenants together. */
static inline uint32_t devices_working(const struct sluice_engine *engine)
{
    uint32_t working = 0;

    for (uint32_t number = 0; number < engine->device_count; number++)
        working += engine->devices[number]->shaper.working;
    return working;
}

#endif
