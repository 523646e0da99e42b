/* SPDX-License-Identifier: Apache-2.0 */
/* A tenant on one device: who is metered and shaped (node.h). */
#ifndef SLUICE_TENANT_H
#define SLUICE_TENANT_H

#include "node.h"

struct qp;

/*
 * first: the tenant on its first device, where this is a further one; else NULL. Returns its number or a negative
 * errno. -EINVAL: no such group on this device; -EEXIST: it has the device already.
 */
int tenant_add(struct device *device, struct tenant *first, const struct sluice_shape *shape);
/* It has no sessions, contexts and further devices any more. */
void tenant_free(struct tenant *tenant);

static inline struct tenant *tenant_find(const struct sluice_engine *engine, uint32_t number)
{
    struct tenant *tenant = number < SLUICE_MAX_TENANTS ? engine->tenants[number] : NULL;

    return tenant && !tenant->ending ? tenant : NULL;
}

/*
 * It is nobody any more; what it still has are sessions that end (ending.h), with which it goes: tenants_settle. -EBUSY: others.
 */
int tenant_remove(struct tenant *tenant);
void tenants_settle(struct sluice_engine *engine);

/* New limits, at once: who waits for the old rate is asked again. -EINVAL: no such group. */
int tenant_shape(struct tenant *tenant, const struct sluice_shape *shape);
/* The device's ceiling or its group's has changed. */
void tenant_refresh(struct tenant *tenant);

/* Work of this kind is in tenant->active. */
static inline void tenant_works(struct tenant *tenant, enum flow flow)
{
    if (!tenant->account.entity.wants[flow])
        entity_set_work(&tenant->account.entity, flow, true);
}

/* Harmless where it waits already. */
void tenant_add_chore(struct tenant *tenant, uint32_t direction, struct chore *chore);
/* Harmless where it doesn't wait. */
void tenant_drop_chore(struct tenant *tenant, uint32_t direction, struct chore *chore);

/* What a verb takes of the engine beyond what is done at once, in turns of FLOW_CONTROL. Harmless where it waits already. */
void tenant_add_task(struct tenant *tenant, struct chore *task);

/* Engine time that was spent for it outside of its turns; it ended now. */
void tenant_charge_time(struct tenant *tenant, uint64_t ns);

/* Takes a control verb from the tenant's rate. Returns 0, or the ns to wait (a second at most) where it is used up. */
int64_t tenant_take_verb(struct tenant *tenant);

/* A QP of the tenant's waits for the ceiling of another. */
void tenant_waits(struct tenant *tenant, struct claim *claim, struct lane *lane);
/* One of its streams of datagrams waits for what the receiver's router grants. */
void tenant_waits_for_grant(struct tenant *tenant);
/* One of these does no more: QPs, and streams. */
void tenant_waits_less(struct tenant *tenant);
void tenant_has_grant(struct tenant *tenant);

/* Whether the tenant may have one more object (or bytes) of which it has so many. Counts a refusal. */
bool tenant_may_have(struct tenant *tenant, enum sluice_limit limit, uint64_t has, uint64_t more, uint64_t max);
/* Counts one of whatever else. */
void tenant_refused(struct tenant *tenant, enum sluice_limit limit);

/*
 * The router's open files that a tenant's objects are: sessions, contexts, channels, files that it passed, connections of its
 * QPs. A tenant gets a part of what the router may have open, so that none is short of them through another. False: no more
 * (EMFILE).
 */
enum { FILES_OF_TENANT = 16384, FILES_OF_SESSION = 4 /* segment, arena, its socket, its pidfd */ };
bool tenant_take_files(struct tenant *tenant, uint32_t count);
void tenant_give_files(struct tenant *tenant, uint32_t count);

#endif
