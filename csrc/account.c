/* SPDX-License-Identifier: Apache-2.0 */
#include "account.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "device.h"
#include "qp.h"
#include "tenant.h"
#include "turn.h"

static struct qp *of_claim(const struct claim *claim)
{
    return (struct qp *)((char *)claim - offsetof(struct qp, claim));
}

static void let_go(struct claim *claim)
{
    struct qp *qp = of_claim(claim);

    tenant_waits_less(qp->tenant);
    qp_activate(qp);
}

static uint64_t egress_now(const struct lane *lane)
{
    return list_entry(lane, struct account, lanes[FLOW_EGRESS])->engine->now;
}

static uint64_t ingress_now(const struct lane *lane)
{
    return list_entry(lane, struct account, lanes[FLOW_INGRESS])->engine->now;
}

/*
 * What is guaranteed below the lane's account: to a tenant or group before their device's or group's ceiling. What a
 * sender is guaranteed binds its device, not the other end's tenant or group.
 */
static uint64_t due_at(const struct claim *claim, const struct account *account, enum lane_side side, uint32_t direction)
{
    const struct qp *qp = of_claim(claim);
    const struct tenant *tenant = side == LANE_RECEIVER ? turn_destination(qp) : qp->tenant;

    if (!tenant || (side == LANE_SENDER && account != &tenant->account.device->account))
        return LANE_NEVER;
    return entity_due_at(&tenant->account.entity, &account->entity, side == LANE_RECEIVER ? direction : !direction);
}

static uint64_t egress_due_at(const struct claim *claim, enum lane_side side)
{
    return due_at(claim, list_entry(claim->lane, struct account, lanes[FLOW_EGRESS]), side, FLOW_EGRESS);
}

static uint64_t ingress_due_at(const struct claim *claim, enum lane_side side)
{
    return due_at(claim, list_entry(claim->lane, struct account, lanes[FLOW_INGRESS]), side, FLOW_INGRESS);
}

int account_init(struct account *account, struct device *device, uint64_t *throttled_ns)
{
    struct sluice_engine *engine = device->engine;
    struct entity *entity = &account->entity;
    int error = account == &device->account ? shaper_init(&device->shaper, entity, &engine->timers, engine->now)
                                            : entity_init(entity, &device->shaper, NULL, throttled_ns);

    if (error)
        return error;
    account->engine = engine;
    account->device = device;
    error = lane_init(&account->lanes[0], &engine->timers, &entity->ceiling[0], let_go, egress_now, egress_due_at);
    if (!error && (error = lane_init(&account->lanes[1], &engine->timers, &entity->ceiling[1], let_go, ingress_now, ingress_due_at)))
        lane_free(&account->lanes[0]);
    if (error)
        entity_free(entity);
    return error;
}

void account_free(struct account *account)
{
    lane_free(&account->lanes[FLOW_EGRESS]);
    lane_free(&account->lanes[FLOW_INGRESS]);
    entity_free(&account->entity);
}

void account_set_share(struct account *account, const struct sluice_share *share)
{
    entity_set_share(&account->entity, share);
    lane_open(&account->lanes[FLOW_EGRESS]);
    lane_open(&account->lanes[FLOW_INGRESS]);
}

static struct account *above(struct account *account)
{
    return account->entity.parent ? list_entry(account->entity.parent, struct account, entity) : NULL;
}

struct lane *account_lane(struct account *account, uint32_t direction, const struct claim *claim)
{
    for (; account; account = above(account)) {
        struct lane *lane = &account->lanes[direction];

        if (!bucket_ready(lane->bucket, account->engine->now) || lane_blocked(lane, claim))
            return lane;
    }
    return NULL;
}

void account_charge(struct account *account, uint32_t direction, uint64_t bytes, bool more)
{
    entity_charge_bytes(&account->entity, direction, bytes, more, account->engine->now);
    for (; account; account = above(account))
        lane_charged(&account->lanes[direction]);
}

/* ---- groups ------------------------------------------------------------ */

int tenant_group_add(struct device *device, const struct sluice_share *share)
{
    struct sluice_engine *engine = device->engine;

    for (uint32_t number = 0; number < SLUICE_MAX_GROUPS; number++) {
        if (engine->tenant_groups[number])
            continue;
        struct tenant_group *group = calloc(1, sizeof(*group));

        if (!group)
            return -ENOMEM;
        group->number = number;
        group->counters = counters_of_group(engine, number);
        if (!group->counters) {
            free(group);
            return -ENOSPC;
        }
        int error = account_init(&group->account, device, group->counters->throttled_ns);

        if (error) {
            free(group);
            return error;
        }
        engine->tenant_groups[number] = group;
        tenant_group_shape(group, share);
        return (int)number;
    }
    return -EAGAIN;
}

void tenant_group_free(struct tenant_group *group)
{
    group->account.engine->tenant_groups[group->number] = NULL;
    account_free(&group->account);
    free(group);
}

void tenant_group_shape(struct tenant_group *group, const struct sluice_share *share)
{
    group->share = *share;
    memcpy(group->counters->min_bps, share->min_bps, sizeof(share->min_bps));
    memcpy(group->counters->max_bps, share->max_bps, sizeof(share->max_bps));
    account_set_share(&group->account, share);
    tenants_refresh(group->account.engine);
}
