/* SPDX-License-Identifier: Apache-2.0 */
#include "holdings.h"

#include "mr.h"
#include "tenant.h"

/* How many there may be on the node, and which limit is said to refuse more. */
static const struct {
    uint32_t all;
    enum sluice_limit limit;
} kinds[HOLDINGS] = {
    [HOLDING_QPS] = {SLUICE_MAX_QPS, SLUICE_LIMIT_QPS},
    [HOLDING_KEYS] = {MR_MAX - 1, SLUICE_LIMIT_MRS}, /* entry 0 is nobody's */
    [HOLDING_CQS] = {4 * SLUICE_SESSION_CQS, SLUICE_LIMIT_CQS},
    [HOLDING_PDS] = {64 * SLUICE_SESSION_PDS, SLUICE_LIMIT_OBJECTS},
    [HOLDING_SRQS] = {64 * SLUICE_SESSION_SRQS, SLUICE_LIMIT_OBJECTS},
    [HOLDING_AHS] = {16 * SLUICE_SESSION_AHS, SLUICE_LIMIT_OBJECTS},
};

_Static_assert(SLUICE_TENANT_MRS == MR_MAX / 4, "what is reported is what one gets");
_Static_assert(SLUICE_SESSION_QPS <= SLUICE_MAX_QPS / 4, "what is reported can be had");

bool holding_take(struct tenant *tenant, enum holding what)
{
    uint32_t *has = &tenant->first->holds[what], *all = &tenant->engine->held[what];

    if (*has >= (kinds[what].all - *all) / 3) {
        tenant_refused(tenant, kinds[what].limit);
        return false;
    }
    ++*has;
    ++*all;
    return true;
}

void holding_give(struct tenant *tenant, enum holding what)
{
    tenant->first->holds[what]--;
    tenant->engine->held[what]--;
}
