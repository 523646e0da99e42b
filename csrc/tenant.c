/* SPDX-License-Identifier: Apache-2.0 */
#include "tenant.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "qp.h"

/* The next bytes are allowed: all who wait may ask again, in the order in which they came. */
static void release(struct lane_shaper *lane)
{
    struct tenant *tenant = lane->tenant;
    struct list waiting;

    if (list_empty(&lane->waiting))
        return;
    tenant->counters->throttled_ns += tenant->engine->now - lane->waiting_since;
    list_init(&waiting);
    list_splice(&waiting, &lane->waiting);
    while (!list_empty(&waiting)) {
        struct qp *qp = list_entry(list_take(&waiting), struct qp, link);

        qp_activate(qp);
    }
}

static void on_timer(struct timer *timer)
{
    release(list_entry(timer, struct lane_shaper, timer));
}

static void lane_init(struct lane_shaper *lane, struct tenant *tenant)
{
    list_init(&lane->waiting);
    lane->timer.fire = on_timer;
    lane->tenant = tenant;
}

int tenant_add(struct sluice_engine *engine, const struct sluice_shape *shape)
{
    for (uint32_t number = 0; number < SLUICE_MAX_TENANTS; number++) {
        if (engine->tenants[number])
            continue;
        struct tenant *tenant = calloc(1, sizeof(*tenant));

        if (!tenant)
            return -ENOMEM;
        /* One for each lane; after this, setting a timer can't fail. */
        int error = timers_reserve(&engine->timers);

        if (!error && (error = timers_reserve(&engine->timers)))
            timers_release(&engine->timers);
        if (error) {
            free(tenant);
            return error;
        }
        tenant->engine = engine;
        tenant->number = number;
        tenant->incarnation = ++engine->incarnations;
        list_init(&tenant->xrcds);
        list_init(&tenant->active);
        list_init(&tenant->turn);
        lane_init(&tenant->egress, tenant);
        lane_init(&tenant->ingress, tenant);
        tenant->counters = (struct sluice_tenant_counters *)(engine->counters + engine->header->tenants_offset) + number;
        memset(tenant->counters, 0, sizeof(*tenant->counters));
        engine->tenants[number] = tenant;
        tenant_shape(tenant, shape);
        return (int)number;
    }
    return -EAGAIN;
}

void tenant_free(struct tenant *tenant)
{
    struct sluice_engine *engine = tenant->engine;

    timer_cancel(&engine->timers, &tenant->egress.timer);
    timer_cancel(&engine->timers, &tenant->ingress.timer);
    timers_release(&engine->timers);
    timers_release(&engine->timers);
    list_remove(&tenant->turn);
    engine->tenants[tenant->number] = NULL;
    free(tenant);
}

void tenant_shape(struct tenant *tenant, const struct sluice_shape *shape)
{
    struct sluice_engine *engine = tenant->engine;

    tenant->shape = *shape;
    tenant->counters->max_bps = shape->max_bps;
    bucket_set(&tenant->egress.bucket, shape->max_bps, shape->burst, engine->now);
    bucket_set(&tenant->ingress.bucket, shape->max_bps, shape->burst, engine->now);
    timer_cancel(&engine->timers, &tenant->egress.timer);
    timer_cancel(&engine->timers, &tenant->ingress.timer);
    release(&tenant->egress);
    release(&tenant->ingress);
}
