/* SPDX-License-Identifier: Apache-2.0 */
#include "nic_pool.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/mman.h>

static void release(struct nic *nic, struct nic_pool *pool)
{
    if (pool->srq)
        nic->call.ibv_destroy_srq(pool->srq);
    if (pool->cq)
        nic_give_cq(nic, pool->cq, pool->cq->entries);
    if (pool->mr)
        nic->call.ibv_dereg_mr(pool->mr);
    if (pool->memory)
        munmap(pool->memory, POOL_DATAGRAMS * POOL_STRIDE);
    free(pool);
}

void nic_pool_post(const struct nic_pool *pool, uint64_t place)
{
    struct ibv_sge sge = {(uintptr_t)nic_pool_at(pool, place), POOL_STRIDE, pool->mr->lkey};
    struct ibv_recv_wr wr = {.wr_id = place, .sg_list = &sge, .num_sge = 1}, *refused;

    /* Each place is there at most once: the SRQ has room for it. */
    (void)ibv_post_srq_recv(pool->srq, &wr, &refused);
}

static int create(struct nic *nic, struct pd *pd, struct nic_pool *pool)
{
    struct ibv_srq_init_attr attr = {.attr = {.max_wr = POOL_DATAGRAMS, .max_sge = 1}};
    void *memory = mmap(NULL, POOL_DATAGRAMS * POOL_STRIDE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    if (memory == MAP_FAILED)
        return -ENOMEM;
    pool->memory = memory;
    errno = 0;
    pool->mr = nic->call.ibv_reg_mr_iova2(pd->nic, memory, POOL_DATAGRAMS * POOL_STRIDE, (uintptr_t)memory,
                                          IBV_ACCESS_LOCAL_WRITE);
    pool->cq = pool->mr ? nic_make_cq(nic, POOL_DATAGRAMS) : NULL;
    pool->srq = pool->cq ? nic->call.ibv_create_srq(pd->nic, &attr) : NULL;
    if (!pool->srq)
        return errno ? -errno : -ENOMEM;
    pool->cq->pool = pool;
    for (uint32_t place = 0; place < POOL_DATAGRAMS; place++)
        nic_pool_post(pool, place);
    return 0;
}

int nic_pool_join(struct pd *pd)
{
    struct nic *nic = nic_of_pd(pd);

    if (!pd->pool) {
        struct nic_pool *pool = calloc(1, sizeof(*pool));
        int error = pool ? create(nic, pd, pool) : -ENOMEM;

        if (error) {
            if (pool)
                release(nic, pool);
            return error;
        }
        pd->pool = pool;
    }
    pd->pool->users++;
    return 0;
}

void nic_pool_leave(struct pd *pd)
{
    if (!pd->pool || --pd->pool->users)
        return;
    release(nic_of_pd(pd), pd->pool);
    pd->pool = NULL;
}
