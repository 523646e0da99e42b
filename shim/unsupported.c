/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The rest of the public surface. It has to be here, or a call with our objects
 * would reach the real library, which takes them for its own. Each answers as a
 * driver does that lacks the feature.
 */
#include <errno.h>
#include <infiniband/verbs.h>
#include <string.h>

#include "objects.h"

#define NO_OBJECT               \
    do {                        \
        errno = EOPNOTSUPP;     \
        return NULL;            \
    } while (0)

#pragma GCC diagnostic ignored "-Wunused-parameter"

EXPORT struct ibv_context *ibv_import_device(int cmd_fd)
{
    NO_OBJECT;
}

EXPORT struct ibv_pd *ibv_import_pd(struct ibv_context *context, uint32_t handle)
{
    NO_OBJECT;
}

EXPORT void ibv_unimport_pd(struct ibv_pd *pd)
{
}

EXPORT struct ibv_mr *ibv_import_mr(struct ibv_pd *pd, uint32_t handle)
{
    NO_OBJECT;
}

EXPORT void ibv_unimport_mr(struct ibv_mr *mr)
{
}

EXPORT struct ibv_dm *ibv_import_dm(struct ibv_context *context, uint32_t handle)
{
    NO_OBJECT;
}

EXPORT void ibv_unimport_dm(struct ibv_dm *dm)
{
}

/* Enhanced connection establishment: no options to negotiate. */
EXPORT int ibv_query_ece(struct ibv_qp *qp, struct ibv_ece *ece)
{
    memset(ece, 0, sizeof(*ece));
    return EOPNOTSUPP;
}

EXPORT int ibv_set_ece(struct ibv_qp *qp, struct ibv_ece *ece)
{
    return ece->vendor_id ? EOPNOTSUPP : 0;
}

/* Writes land in increasing order, the last bytes last (csrc/copy.h): that is what this asks. */
EXPORT int ibv_query_qp_data_in_order(struct ibv_qp *qp, enum ibv_wr_opcode op, uint32_t flags)
{
    return flags ? 0 : 1;
}

EXPORT int ibv_resolve_eth_l2_from_gid(struct ibv_context *context, struct ibv_ah_attr *attr, uint8_t mac[6],
                                       uint16_t *vid)
{
    return EOPNOTSUPP;
}

/* A forked child gets a private view of registered memory by itself (arena.h). */
EXPORT int ibv_fork_init(void)
{
    return 0;
}

EXPORT enum ibv_fork_status ibv_is_fork_initialized(void)
{
    return IBV_FORK_UNNEEDED;
}

EXPORT int ibv_dontfork_range(void *base, size_t size)
{
    return 0;
}

EXPORT int ibv_dofork_range(void *base, size_t size)
{
    return 0;
}
