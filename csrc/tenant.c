/* SPDX-License-Identifier: Apache-2.0 */
#include "tenant.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

#include "account.h"
#include "clock.h"
#include "closing.h"
#include "device.h"
#include "gate.h"
#include "neighbours.h"
#include "transport/inflow.h"

/* What a turn is taken to cost before one was measured. */
enum { MESSAGE_NS = 200, KIB_NS = 64 };

/* Both it and the tenant as a whole know of it from here on. */
static void join_first(struct tenant *tenant, struct tenant *first)
{
    tenant->first = first;
    first->on[tenant->account.device->number] = tenant;
    if (tenant != first)
        first->others++;
}

static void leave_first(struct tenant *tenant)
{
    if (tenant->ending)
        return;
    tenant->first->on[tenant->account.device->number] = NULL;
    if (tenant != tenant->first)
        tenant->first->others--;
}

int tenant_add(struct device *device, struct tenant *first, const struct sluice_shape *shape)
{
    struct sluice_engine *engine = device->engine;

    if (first && first->on[device->number])
        return -EEXIST;
    for (uint32_t number = 0; number < SLUICE_MAX_TENANTS; number++) {
        if (engine->tenants[number])
            continue;
        struct tenant *tenant = calloc(1, sizeof(*tenant));

        if (!tenant)
            return -ENOMEM;
        tenant->engine = engine;
        tenant->number = number;
        tenant->message_ns = MESSAGE_NS;
        tenant->kib_ns = KIB_NS;
        for (uint32_t flow = 0; flow < FLOWS; flow++)
            list_init(&tenant->active[flow]);
        for (uint32_t direction = 0; direction < DIRECTIONS; direction++)
            list_init(&tenant->chores[direction]);
        list_init(&tenant->firsts);
        list_init(&tenant->asking);
        list_init(&tenant->grounded);
        list_init(&tenant->in_blocked);
        list_init(&tenant->in_ending);
        tenant->counters = counters_of_tenant(engine, number);
        if (!tenant->counters) {
            free(tenant);
            return -ENOSPC;
        }
        tenant->counters->device = device->number;
        int error = account_init(&tenant->account, device, tenant->counters->throttled_ns);

        if (error) {
            free(tenant);
            return error;
        }
        tenant->incarnation = ++engine->incarnations;
        list_init(&tenant->xrcds);
        join_first(tenant, first ? first : tenant);
        engine->tenants[number] = tenant;
        error = tenant_shape(tenant, shape);
        if (error) {
            tenant_free(tenant);
            return error;
        }
        return (int)number;
    }
    return -EAGAIN;
}

static void join(struct tenant *tenant, struct tenant_group *group)
{
    if (tenant->group)
        tenant->group->counters->tenants = --tenant->group->tenants;
    tenant->group = group;
    if (group)
        group->counters->tenants = ++group->tenants;
}

void tenant_free(struct tenant *tenant)
{
    join(tenant, NULL);
    leave_first(tenant);
    neighbours_free(tenant);
    inflows_forget(tenant);
    list_remove(&tenant->in_blocked);
    list_remove(&tenant->in_ending);
    account_free(&tenant->account);
    tenant->engine->tenants[tenant->number] = NULL;
    neighbours_forget(tenant->engine, tenant->number);
    gate_forget_tenant(tenant->engine, tenant->number);
    free(tenant);
}

static bool is_used(const struct tenant *tenant)
{
    return tenant->session_count || tenant->ending_contexts;
}

int tenant_remove(struct tenant *tenant)
{
    const struct sluice_shape none = {0};

    if (tenant->others || tenant->contexts || tenant->session_count != tenant->ending_sessions)
        return -EBUSY;
    if (!is_used(tenant)) {
        tenant_free(tenant);
        return 0;
    }
    leave_first(tenant);
    tenant->ending = true;
    memset(tenant->gid, 0, sizeof(tenant->gid));
    tenant_shape(tenant, &none);
    list_append(&tenant->engine->ending, &tenant->in_ending);
    return 0;
}

void tenants_settle(struct sluice_engine *engine)
{
    for (struct list *link = engine->ending.next, *next; link != &engine->ending; link = next) {
        struct tenant *tenant = list_entry(link, struct tenant, in_ending);

        next = link->next;
        if (!is_used(tenant))
            tenant_free(tenant);
    }
}

void tenant_refresh(struct tenant *tenant)
{
    const struct bucket *ceiling = entity_ceiling(&tenant->account.entity, FLOW_EGRESS);

    /* A burst that nobody asked for makes good the worker's delays, which a NIC has none of. */
    tenant->pace = (struct pace){0};
    if (ceiling)
        tenant->pace = (struct pace){ceiling->rate, ceiling->peaked ? 0 : bucket_burst(ceiling)};
    tenant->told_apart = false;
    for (uint32_t direction = 0; direction < DIRECTIONS; direction++) {
        tenant->limited[direction] = entity_limited(&tenant->account.entity, direction);
        tenant->chunk[direction] = entity_chunk(&tenant->account.entity, direction);
        tenant->told_apart |= tenant->limited[direction] || tenant->shape.share.min_bps[direction] ||
                              (tenant->group && tenant->group->share.min_bps[direction]);
    }
}

int tenant_shape(struct tenant *tenant, const struct sluice_shape *shape)
{
    struct sluice_engine *engine = tenant->engine;
    struct tenant_group *group = NULL;

    if (shape->group) {
        group = shape->group <= SLUICE_MAX_GROUPS ? engine->tenant_groups[shape->group - 1] : NULL;
        if (!group || group->account.device != tenant->account.device)
            return -EINVAL;
    }
    tenant->shape = *shape;
    memcpy(tenant->counters->min_bps, shape->share.min_bps, sizeof(shape->share.min_bps));
    memcpy(tenant->counters->max_bps, shape->share.max_bps, sizeof(shape->share.max_bps));
    join(tenant, group);
    entity_set_parent(&tenant->account.entity, group ? &group->account.entity : NULL);
    account_set_share(&tenant->account, &shape->share);
    entity_set_limits(&tenant->account.entity, shape->max_operations, shape->max_verbs, shape->max_engine_ns);
    tenant_refresh(tenant);
    return 0;
}

void tenant_add_chore(struct tenant *tenant, uint32_t direction, struct chore *chore)
{
    if (!list_unlinked(&chore->link))
        return;
    list_append(&tenant->chores[direction], &chore->link);
    entity_set_chores(&tenant->account.entity, direction, true);
    tenant_works(tenant, direction);
}

void tenant_add_task(struct tenant *tenant, struct chore *task)
{
    if (!list_unlinked(&task->link))
        return;
    list_append(&tenant->active[FLOW_CONTROL], &task->link);
    tenant_works(tenant, FLOW_CONTROL);
}

void tenant_drop_chore(struct tenant *tenant, uint32_t direction, struct chore *chore)
{
    list_remove(&chore->link);
    entity_set_chores(&tenant->account.entity, direction, !list_empty(&tenant->chores[direction]));
}

void tenant_charge_time(struct tenant *tenant, uint64_t ns)
{
    tenant->counters->engine_ns += ns;
    entity_charge_time(&tenant->account.entity, ns, tenant->engine->now);
}

int64_t tenant_take_verb(struct tenant *tenant)
{
    uint64_t now = tenant->engine->now;
    struct bucket *verbs = &tenant->account.entity.verbs;

    if (!bucket_ready(verbs, now)) {
        uint64_t wait = bucket_at(verbs) - now;

        wait = wait < NS_PER_SECOND ? wait : NS_PER_SECOND;
        tenant->counters->throttled_ns[SLUICE_LIMIT_VERBS] += wait;
        return (int64_t)wait;
    }
    tenant->counters->verbs++;
    bucket_take(verbs, 1, false, now);
    return 0;
}

static void begin_waiting(struct tenant *tenant)
{
    if (list_empty(&tenant->firsts) && tenant->held == 0)
        tenant->waits_since = tenant->engine->now;
}

void tenant_waits(struct tenant *tenant, struct claim *claim, struct lane *lane)
{
    begin_waiting(tenant);
    claim_wait(claim, lane, &tenant->firsts, tenant->account.entity.weight);
}

void tenant_waits_less(struct tenant *tenant)
{
    if (tenant->waits_since == 0 || !list_empty(&tenant->firsts) || tenant->held)
        return;
    tenant->counters->throttled_ns[SLUICE_LIMIT_PEER] += tenant->engine->now - tenant->waits_since;
    tenant->waits_since = 0;
}

void tenant_waits_for_grant(struct tenant *tenant)
{
    begin_waiting(tenant);
    tenant->held++;
}

void tenant_has_grant(struct tenant *tenant)
{
    tenant->held--;
    tenant_waits_less(tenant);
}

void tenant_refused(struct tenant *tenant, enum sluice_limit limit)
{
    tenant->counters->refused[limit]++;
    tenant->counters->last_refused = limit + 1;
}

bool tenant_may_have(struct tenant *tenant, enum sluice_limit limit, uint64_t has, uint64_t more, uint64_t max)
{
    if (max == 0 || more == 0 || (has <= max && more <= max - has))
        return true;
    tenant_refused(tenant, limit);
    return false;
}

/* An eighth of what the router may have open, which it has raised as far as it may (man getrlimit). */
static uint32_t most_files(void)
{
    struct rlimit limit;
    rlim_t most = FILES_OF_TENANT;

    if (getrlimit(RLIMIT_NOFILE, &limit) == 0 && limit.rlim_cur / 8 < most)
        most = limit.rlim_cur / 8;
    return (uint32_t)most;
}

bool tenant_take_files(struct tenant *tenant, uint32_t count)
{
    uint64_t has = tenant->files + closing_count(tenant->number);

    if (!tenant_may_have(tenant, SLUICE_LIMIT_FILES, has, count, most_files()))
        return false;
    tenant->files += count;
    return true;
}

void tenant_give_files(struct tenant *tenant, uint32_t count)
{
    tenant->files -= count;
}
