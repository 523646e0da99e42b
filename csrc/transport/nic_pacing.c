/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Ceilings in hardware: a NIC that can pace a QP (ibv_modify_qp_rate_limit) is told the ceiling of the QP's tenant. What the
 * shaper lets go, a chunk at a time, then leaves the NIC at that rate and not at the port's. The shaper goes on as without: a ceiling is for
 * all QPs of a tenant or a group together, over all transports, which a NIC's limit of one QP can't be.
 *
 * The NIC's rate is above the ceiling by the same part as a bucket's peak: at the very rate, what it rounds off would pile up
 * before it, where it counts as in flight and keeps others waiting.
 */
#include "../tenant.h"
#include "nic.h"

enum { KILO = 1000 };

void nic_learn_pacing(struct nic *nic)
{
    struct verbs_context *extended = verbs_get_ctx_op(nic->context, query_device_ex);
    struct ibv_device_attr_ex attr = {.comp_mask = 0};

    nic->pacing = (struct ibv_packet_pacing_caps){0};
    if (extended && verbs_get_ctx_op(nic->context, modify_qp_rate_limit) &&
        extended->query_device_ex(nic->context, NULL, &attr, sizeof(attr)) == 0 && attr.packet_pacing_caps.qp_rate_limit_max)
        nic->pacing = attr.packet_pacing_caps;
}

/* kbit/s; 0: none, or none that the NIC has. */
static uint32_t rate_for(const struct nic *nic, uint64_t ceiling)
{
    unsigned __int128 rate = ((unsigned __int128)ceiling * BUCKET_PEAK / (BUCKET_PEAK - 1) + KILO - 1) / KILO;

    return rate < nic->pacing.qp_rate_limit_min || rate > nic->pacing.qp_rate_limit_max ? 0 : (uint32_t)rate;
}

/* Without a limit, or, where none can be lifted (bnxt_re), the highest that there is. */
static void lift(const struct nic *nic, struct nic_qp *twin)
{
    struct ibv_qp_rate_limit_attr limit = {.rate_limit = 0};

    if (ibv_modify_qp_rate_limit(twin->qp, &limit) == 0)
        return;
    limit.rate_limit = nic->pacing.qp_rate_limit_max;
    ibv_modify_qp_rate_limit(twin->qp, &limit);
}

void nic_pace(struct qp *qp)
{
    const struct nic *nic = nic_of(qp);
    struct nic_qp *twin = qp->twin;
    struct ibv_qp_rate_limit_attr limit = {.rate_limit = rate_for(nic, qp->tenant->pace.rate)};
    bool paced = twin->pace.rate != 0;

    /* Refused or not, it is not asked again before the ceiling changes. */
    twin->pace = qp->tenant->pace;
    if (!(nic->pacing.supported_qpts >> qp->type & 1) || (limit.rate_limit == 0 && !paced))
        return;
    if (limit.rate_limit == 0) {
        lift(nic, twin);
        return;
    }
    if (twin->pace.burst)
        limit.max_burst_sz = twin->pace.burst < UINT32_MAX ? (uint32_t)twin->pace.burst : UINT32_MAX;
    int error = ibv_modify_qp_rate_limit(twin->qp, &limit);

    /* Not all that pace take a burst (mlx5 says so to its own provider only, bnxt_re takes none): then by their own. */
    if (error && limit.max_burst_sz) {
        limit.max_burst_sz = 0;
        error = ibv_modify_qp_rate_limit(twin->qp, &limit);
    }
    /* No room for one more rate: then without, rather than at the rate of before. */
    if (error)
        lift(nic, twin);
}
