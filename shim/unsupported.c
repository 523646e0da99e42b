/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The rest of the public surface. It has to be here, or a call with our objects
 * would reach the real library, which takes them for its own. Each answers as a
 * driver does that lacks the feature.
 */
#include <errno.h>
#include <infiniband/verbs.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>

#include "objects.h"

/* What stands behind the descriptors of our devices: /dev/null. */
enum { NULL_MAJOR = 1, NULL_MINOR = 3 };

#define NO_OBJECT               \
    do {                        \
        errno = EOPNOTSUPP;     \
        return NULL;            \
    } while (0)

#pragma GCC diagnostic ignored "-Wunused-parameter"

/* Another process's context has come as a descriptor: of a device (cmd_fd, device.c), of another one, or of nothing. */
EXPORT struct ibv_context *ibv_import_device(int cmd_fd)
{
    struct stat about;

    if (fstat(cmd_fd, &about) || !S_ISCHR(about.st_mode))
        errno = EINVAL;
    else
        errno = about.st_rdev == makedev(NULL_MAJOR, NULL_MINOR) ? EOPNOTSUPP : ENODEV;
    return NULL;
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
    return EOPNOTSUPP;
}

EXPORT int ibv_set_ece(struct ibv_qp *qp, struct ibv_ece *ece)
{
    return EOPNOTSUPP;
}

/* Newer than the headers: what is asked, and the answer to RETURN_CAPS. */
enum { RETURN_CAPS = 1, DEVICE_ONLY = 2, WHOLE_MESSAGE = 1, ALIGNED_128_BYTES = 2 };

/*
 * Writes land in increasing order, the last bytes last (csrc/copy.h): that is what this asks. Of a NIC nobody knows it,
 * and where there is one, which its GIDs tell, a QP may come to be on it later.
 */
EXPORT int ibv_query_qp_data_in_order(struct ibv_qp *qp, enum ibv_wr_opcode op, uint32_t flags)
{
    union ibv_gid of_nic;

    if ((flags & ~(uint32_t)(RETURN_CAPS | DEVICE_ONLY)) || !ibv_query_gid(qp->context, 1, 1, &of_nic))
        return 0;
    return flags & RETURN_CAPS ? WHOLE_MESSAGE | ALIGNED_128_BYTES : 1;
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
