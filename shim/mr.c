/* SPDX-License-Identifier: Apache-2.0 */
/* Memory regions: man ibv_reg_mr. */
#include <errno.h>
#include <stdlib.h>

#include "arena.h"
#include "objects.h"
#include "session.h"

enum {
    GRANTED = IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_WRITE | IBV_ACCESS_REMOTE_READ | IBV_ACCESS_REMOTE_ATOMIC |
              IBV_ACCESS_MW_BIND,
    LACKING = IBV_ACCESS_ON_DEMAND | IBV_ACCESS_ZERO_BASED | IBV_ACCESS_HUGETLB,
};

static bool may_be_written(unsigned access)
{
    return access & (IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_WRITE | IBV_ACCESS_REMOTE_ATOMIC | IBV_ACCESS_MW_BIND);
}

/* The engine checks as well; here it is so that memory isn't moved for a request that can only fail. */
static int check(size_t length, unsigned access)
{
    if (length == 0)
        return EINVAL;
    if (access & LACKING)
        return EOPNOTSUPP;
    if (access & ~(unsigned)GRANTED)
        return EINVAL;
    /* IBTA 10.6.3.1: who may write from afar may write locally. */
    if ((access & (IBV_ACCESS_REMOTE_WRITE | IBV_ACCESS_REMOTE_ATOMIC)) && !(access & IBV_ACCESS_LOCAL_WRITE))
        return EINVAL;
    return 0;
}

static struct ibv_mr *reg_mr(struct ibv_pd *pd, void *addr, size_t length, uint64_t iova, unsigned access)
{
    struct sluice_command command = {
        .op = SLUICE_COMMAND_REG_MR,
        .pd = ((struct shim_pd *)pd)->handle,
        /* Optional ones may be ignored, that is what they are. */
        .access = access & ~(unsigned)IBV_ACCESS_OPTIONAL_RANGE,
        .addr = (uintptr_t)addr,
        .length = length,
        .iova = iova,
    };
    int error = check(length, command.access);
    struct shim_mr *mr = error ? NULL : calloc(1, sizeof(*mr));

    if (!error && !mr)
        return NULL;
    if (!error)
        error = sluice_arena_adopt(addr, length, may_be_written(command.access));
    if (!error) {
        error = session_command(&command);
        if (error)
            sluice_arena_retire(addr, length);
    }
    if (error) {
        free(mr);
        errno = error;
        return NULL;
    }
    mr->mr = (struct ibv_mr){
        .context = pd->context,
        .pd = pd,
        .addr = addr,
        .length = length,
        .handle = command.key,
        .lkey = command.key,
        .rkey = command.key,
    };
    return &mr->mr;
}

/* verbs.h makes macros of the first two. */
#undef ibv_reg_mr
EXPORT struct ibv_mr *ibv_reg_mr(struct ibv_pd *pd, void *addr, size_t length, int access)
{
    return reg_mr(pd, addr, length, (uintptr_t)addr, (unsigned)access);
}

#undef ibv_reg_mr_iova
EXPORT struct ibv_mr *ibv_reg_mr_iova(struct ibv_pd *pd, void *addr, size_t length, uint64_t iova, int access)
{
    return reg_mr(pd, addr, length, iova, (unsigned)access);
}

EXPORT struct ibv_mr *ibv_reg_mr_iova2(struct ibv_pd *pd, void *addr, size_t length, uint64_t iova,
                                       unsigned int access)
{
    return reg_mr(pd, addr, length, iova, access);
}

EXPORT int ibv_dereg_mr(struct ibv_mr *mr)
{
    struct sluice_command command = {.op = SLUICE_COMMAND_DEREG_MR, .key = mr->lkey};
    int error = session_command(&command);

    if (error)
        return error;
    sluice_arena_retire(mr->addr, mr->length);
    free(mr);
    return 0;
}
