/* SPDX-License-Identifier: Apache-2.0 */
/* Multicast groups: man ibv_attach_mcast. */
#include <string.h>

#include "objects.h"
#include "session.h"

/* lid: RoCE has none, so any is right. */
static int call(uint16_t op, struct ibv_qp *qp, const union ibv_gid *gid)
{
    struct sluice_mcast_request request = {.handle = to_qp(qp)->handle};
    struct sluice_handle_reply reply;

    memcpy(request.gid, gid->raw, sizeof(request.gid));
    return session_call(op, &request, sizeof(request), &reply, sizeof(reply));
}

EXPORT int ibv_attach_mcast(struct ibv_qp *qp, const union ibv_gid *gid, uint16_t lid)
{
    (void)lid;
    return call(SLUICE_OP_ATTACH_MCAST, qp, gid);
}

EXPORT int ibv_detach_mcast(struct ibv_qp *qp, const union ibv_gid *gid, uint16_t lid)
{
    (void)lid;
    return call(SLUICE_OP_DETACH_MCAST, qp, gid);
}
