/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Verbs that rdma-core got after release 44 (IBVERBS_1.15 to 1.18). Their structures
 * are declared here, since the headers that we are built with may not have them;
 * <infiniband/verbs.h> stays out, since it may.
 */
#include <errno.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <unistd.h>

#define EXPORT __attribute__((visibility("default")))

#pragma GCC diagnostic ignored "-Wunused-parameter"

struct ibv_context;
struct ibv_pd;
struct ibv_mr;
struct ibv_dm;
struct ibv_dmah;
struct ibv_qp;
struct ibv_comp_cntr;

/* An application holds it as a handle. */
struct ibv_buf {
    struct ibv_pd *pd;
    char *addr;
    size_t size;
};

struct ibv_mr_init_attr {
    size_t length;
    int access;
    uint64_t comp_mask;
    uint64_t iova;
    void *addr;
    int fd;
    uint64_t fd_offset;
    struct ibv_dmah *dmah;
    struct ibv_buf *buf;
};

enum { MASK_IOVA = 1, MASK_ADDR = 2, MASK_FD = 4, MASK_FD_OFFSET = 8, MASK_DMAH = 16, MASK_BUF = 32 };

struct ibv_mr *ibv_reg_mr_iova2(struct ibv_pd *pd, void *addr, size_t length, uint64_t iova, unsigned int access);
struct ibv_mr *ibv_reg_dmabuf_mr(struct ibv_pd *pd, uint64_t offset, size_t length, uint64_t iova, int fd,
                                 int access);

static void *refuse(int error)
{
    errno = error;
    return NULL;
}

/* Bytes of a buffer (ibv_alloc_buf), asked for in the PD that it was made for. */
static bool is_within(const struct ibv_buf *buf, const struct ibv_pd *pd, const char *addr, size_t length)
{
    return buf->pd == pd && addr >= buf->addr && length <= buf->size && (size_t)(addr - buf->addr) <= buf->size - length;
}

EXPORT struct ibv_mr *ibv_reg_mr_ex(struct ibv_pd *pd, struct ibv_mr_init_attr *attr)
{
    uint64_t mask = attr->comp_mask;
    uint64_t iova = mask & MASK_IOVA ? attr->iova : (uintptr_t)attr->addr;

    if ((mask & MASK_BUF) && (!(mask & MASK_ADDR) || (mask & (MASK_FD | MASK_FD_OFFSET)) ||
                              !is_within(attr->buf, pd, attr->addr, attr->length)))
        return refuse(EINVAL);
    if (mask & ~(uint64_t)(MASK_IOVA | MASK_ADDR | MASK_FD | MASK_FD_OFFSET | MASK_BUF))
        return refuse(EOPNOTSUPP);
    if (mask & MASK_FD) {
        if ((mask & MASK_ADDR) || !(mask & MASK_FD_OFFSET) || !(mask & MASK_IOVA))
            return refuse(EINVAL);
        return ibv_reg_dmabuf_mr(pd, attr->fd_offset, attr->length, attr->iova, attr->fd, attr->access);
    }
    if (!(mask & MASK_ADDR) || (mask & MASK_FD_OFFSET))
        return refuse(EINVAL);
    return ibv_reg_mr_iova2(pd, attr->addr, attr->length, iova, (unsigned int)attr->access);
}

/* ---- buffers: ordinary memory on pages of its own ----------------------- */

EXPORT void *ibv_alloc_buf(struct ibv_pd *pd, size_t size, struct ibv_buf **out)
{
    struct ibv_buf *buf = calloc(1, sizeof(*buf));
    void *addr = NULL;
    int error = buf ? posix_memalign(&addr, (size_t)sysconf(_SC_PAGESIZE), size) : ENOMEM;

    if (error) {
        free(buf);
        return refuse(error);
    }
    *buf = (struct ibv_buf){.pd = pd, .addr = addr, .size = size};
    *out = buf;
    return addr;
}

EXPORT void ibv_free_buf(struct ibv_buf *buf)
{
    free(buf->addr);
    free(buf);
}

EXPORT struct ibv_mr *ibv_reg_buf_mr(struct ibv_pd *pd, struct ibv_buf *buf, void *addr, size_t length, int access)
{
    if (!is_within(buf, pd, addr, length))
        return refuse(EINVAL);
    return ibv_reg_mr_iova2(pd, addr, length, (uintptr_t)addr, (unsigned int)access);
}

EXPORT int ibv_export_buf_dmabuf_fd(struct ibv_buf *buf)
{
    errno = ENODATA; /* none stands behind it */
    return -1;
}

/* ---- hints for DMA, device memory, completion counters: there are none -- */

EXPORT struct ibv_dmah *ibv_alloc_dmah(struct ibv_context *context, void *attr)
{
    return refuse(EOPNOTSUPP);
}

EXPORT int ibv_dealloc_dmah(struct ibv_dmah *dmah)
{
    return EOPNOTSUPP;
}

EXPORT int ibv_dm_export_dmabuf_fd(struct ibv_dm *dm)
{
    errno = EOPNOTSUPP;
    return -1;
}

EXPORT int _ibv_query_comp_cntr_caps(struct ibv_context *context, void *caps, size_t caps_size)
{
    return EOPNOTSUPP;
}

EXPORT struct ibv_comp_cntr *ibv_create_comp_cntr(struct ibv_context *context, void *attr)
{
    return refuse(EOPNOTSUPP);
}

EXPORT int ibv_destroy_comp_cntr(struct ibv_comp_cntr *counter)
{
    return EOPNOTSUPP;
}

EXPORT int ibv_set_comp_cntr(struct ibv_comp_cntr *counter, uint64_t value)
{
    return EOPNOTSUPP;
}

EXPORT int ibv_set_err_comp_cntr(struct ibv_comp_cntr *counter, uint64_t value)
{
    return EOPNOTSUPP;
}

EXPORT int ibv_inc_comp_cntr(struct ibv_comp_cntr *counter, uint64_t amount)
{
    return EOPNOTSUPP;
}

EXPORT int ibv_inc_err_comp_cntr(struct ibv_comp_cntr *counter, uint64_t amount)
{
    return EOPNOTSUPP;
}

EXPORT int ibv_read_comp_cntr(struct ibv_comp_cntr *counter, uint64_t *value)
{
    return EOPNOTSUPP;
}

EXPORT int ibv_read_err_comp_cntr(struct ibv_comp_cntr *counter, uint64_t *value)
{
    return EOPNOTSUPP;
}

EXPORT int ibv_qp_attach_comp_cntr(struct ibv_qp *qp, struct ibv_comp_cntr *counter, void *attr)
{
    return EOPNOTSUPP;
}
