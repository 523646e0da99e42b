/* SPDX-License-Identifier: Apache-2.0 */
/* XRC domains: man ibv_open_xrcd. Their QPs and SRQs are in qp.c and srq.c. */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/stat.h>

#include "objects.h"
#include "session.h"

struct ibv_xrcd *shim_open_xrcd(struct ibv_context *context, struct ibv_xrcd_init_attr *attr)
{
    const uint32_t needed = IBV_XRCD_INIT_ATTR_FD | IBV_XRCD_INIT_ATTR_OFLAGS;
    struct sluice_open_xrcd_request request = {.fd = attr->fd, .context = to_context(context)->handle};
    struct sluice_handle_reply reply;
    struct stat status;

    if (attr->comp_mask >= IBV_XRCD_INIT_ATTR_RESERVED) {
        errno = EOPNOTSUPP;
        return NULL;
    }
    if ((attr->comp_mask & needed) != needed || (attr->oflags & ~(O_CREAT | O_EXCL)) || attr->fd < -1) {
        errno = EINVAL;
        return NULL;
    }
    if (attr->fd >= 0) {
        if (fstat(attr->fd, &status))
            return NULL;
        request.dev = status.st_dev;
        request.ino = status.st_ino;
    }
    request.oflags = (attr->oflags & O_CREAT ? SLUICE_XRCD_CREATE : 0u) | (attr->oflags & O_EXCL ? SLUICE_XRCD_EXCL : 0u);
    struct shim_xrcd *xrcd = calloc(1, sizeof(*xrcd));

    if (!xrcd)
        return NULL;
    int error = session_call(SLUICE_OP_OPEN_XRCD, &request, sizeof(request), &reply, sizeof(reply));

    if (error) {
        free(xrcd);
        errno = error;
        return NULL;
    }
    xrcd->xrcd.context = context;
    xrcd->handle = reply.handle;
    return &xrcd->xrcd;
}

int shim_close_xrcd(struct ibv_xrcd *xrcd)
{
    int error = session_call_handle(SLUICE_OP_CLOSE_XRCD, ((struct shim_xrcd *)xrcd)->handle, NULL);

    if (!error)
        free(xrcd);
    return error;
}
