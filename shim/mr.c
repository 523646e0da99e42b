/* SPDX-License-Identifier: Apache-2.0 */
/* Memory regions: man ibv_reg_mr, ibv_rereg_mr. */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>

#include "arena.h"
#include "memory.h"
#include "objects.h"
#include "session.h"

enum {
    GRANTED = IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_WRITE | IBV_ACCESS_REMOTE_READ | IBV_ACCESS_REMOTE_ATOMIC |
              IBV_ACCESS_MW_BIND | IBV_ACCESS_ZERO_BASED | IBV_ACCESS_RELAXED_ORDERING,
    /* What says only how memory may be reached fastest changes nothing here, but for the order in which a NIC may write. */
    HINTS = IBV_ACCESS_HUGETLB | (IBV_ACCESS_OPTIONAL_RANGE & ~IBV_ACCESS_RELAXED_ORDERING),
};

static bool may_be_written(unsigned access)
{
    return access & (IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_WRITE | IBV_ACCESS_REMOTE_ATOMIC | IBV_ACCESS_MW_BIND);
}

/* The engine checks as well; here it is so that memory isn't moved for a request that can only fail. */
static int check(size_t length, unsigned access)
{
    /* As a device without on-demand paging: before the length, which is SIZE_MAX for an implicit region. */
    if (access & IBV_ACCESS_ON_DEMAND)
        return EOPNOTSUPP;
    if (length == 0 || (access & ~(unsigned)(GRANTED | HINTS)))
        return EINVAL;
    /* IBTA 10.6.3.1: who may write from afar may write locally. */
    if ((access & (IBV_ACCESS_REMOTE_WRITE | IBV_ACCESS_REMOTE_ATOMIC)) && !(access & IBV_ACCESS_LOCAL_WRITE))
        return EINVAL;
    return 0;
}

/* The region doesn't lie there any more. */
static void leave(uint32_t memory, void *addr, size_t length)
{
    if (memory)
        memory_release(memory);
    else
        sluice_arena_retire(addr, length);
}

/*
 * A NIC's registration pins every page: those that aren't there yet are made here, by who is charged for them. The
 * router makes none. Kernels before 5.14 can't say so in one call.
 */
static int populate(const void *addr, size_t length, bool writable)
{
    enum { PAGE = 4096, POPULATE_READ = 22, POPULATE_WRITE = 23 /* MADV_*, linux/mman.h */ };
    uintptr_t start = (uintptr_t)addr & ~(uintptr_t)(PAGE - 1), end = ((uintptr_t)addr + length + PAGE - 1) & ~(uintptr_t)(PAGE - 1);
    int saved = errno, error = 0;

    if (session_pins() && madvise((void *)start, end - start, writable ? POPULATE_WRITE : POPULATE_READ))
        error = errno;
    errno = saved;
    return error == EINVAL ? 0 : error;
}

/* Brings the memory where the engine reaches it, and says in the command where that is. */
static int locate(struct sluice_command *command, void *addr, size_t length, uint64_t iova, unsigned access)
{
    bool writable = may_be_written(access);
    int error = sluice_arena_adopt(addr, length, writable);

    command->memory = 0;
    command->addr = (uintptr_t)addr;
    command->length = length;
    command->iova = access & IBV_ACCESS_ZERO_BASED ? 0 : iova;
    if (error == EOPNOTSUPP)
        error = memory_reach((uintptr_t)addr, length, writable, &command->memory, &command->addr);
    if (error)
        return error;
    error = populate(addr, length, writable);
    /* What doesn't lie in the arena may be of a kind that a NIC has no part in. */
    if (!error || command->memory)
        return 0;
    leave(command->memory, addr, length);
    return error;
}

/* Registers what was located, or leaves it again. */
static struct ibv_mr *register_located(struct ibv_pd *pd, void *addr, struct sluice_command *command)
{
    struct shim_mr *mr = calloc(1, sizeof(*mr));
    int error = mr ? session_command(command) : ENOMEM;

    if (error) {
        leave(command->memory, addr, command->length);
        free(mr);
        errno = error;
        return NULL;
    }
    mr->mr = (struct ibv_mr){
        .context = pd->context,
        .pd = pd,
        .addr = addr,
        .length = command->length,
        .handle = command->key,
        .lkey = command->key,
        .rkey = command->key,
    };
    mr->pd = command->pd;
    mr->access = command->access;
    mr->memory = command->memory;
    mr->iova = command->iova;
    return &mr->mr;
}

static struct ibv_mr *reg_mr(struct ibv_pd *pd, void *addr, size_t length, uint64_t iova, unsigned access)
{
    struct sluice_command command = {
        .op = SLUICE_COMMAND_REG_MR,
        .pd = ((struct shim_pd *)pd)->handle,
        .access = access & ~(unsigned)HINTS,
    };
    int error = check(length, access);

    if (!error)
        error = locate(&command, addr, length, iova, access);
    if (error) {
        errno = error;
        return NULL;
    }
    return register_located(pd, addr, &command);
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
    struct sluice_command command = {
        .op = SLUICE_COMMAND_DEREG_MR, .pd = ((struct shim_mr *)mr)->pd, .key = mr->lkey};
    int error = session_command(&command);

    if (error)
        return error;
    leave(((struct shim_mr *)mr)->memory, mr->addr, mr->length);
    free(mr);
    return 0;
}

EXPORT int ibv_rereg_mr(struct ibv_mr *public, int flags, struct ibv_pd *pd, void *addr, size_t length, int access)
{
    struct shim_mr *mr = (struct shim_mr *)public;
    unsigned wanted = flags & IBV_REREG_MR_CHANGE_ACCESS ? (unsigned)access : mr->access;
    struct sluice_command command = {
        .op = SLUICE_COMMAND_REREG_MR,
        .pd = mr->pd,
        .key = public->lkey,
        .flags = (uint32_t)flags,
        .access = wanted & ~(unsigned)HINTS,
    };
    bool moves = flags & IBV_REREG_MR_CHANGE_TRANSLATION, located = false;
    int error = 0;

    if ((flags & ~IBV_REREG_MR_FLAGS_SUPPORTED) || (moves && (!addr || !length)) ||
        (access && !(flags & IBV_REREG_MR_CHANGE_ACCESS)) || ((flags & IBV_REREG_MR_CHANGE_PD) && !pd)) {
        errno = EINVAL;
        return IBV_REREG_MR_ERR_INPUT;
    }
    if (flags & IBV_REREG_MR_CHANGE_PD)
        command.pd = ((struct shim_pd *)pd)->handle;
    if (flags & (IBV_REREG_MR_CHANGE_TRANSLATION | IBV_REREG_MR_CHANGE_ACCESS)) {
        if (!moves) {
            addr = public->addr;
            length = public->length;
        }
        error = check(length, wanted);
        if (!error)
            error = locate(&command, addr, length, moves ? (uintptr_t)addr : mr->iova, wanted);
        located = !error;
        /* The place may be another with other rights, though the addresses stay. */
        if (located && command.memory != mr->memory)
            command.flags |= IBV_REREG_MR_CHANGE_TRANSLATION;
    }
    if (!error)
        error = session_command(&command);
    if (error) {
        if (located)
            leave(command.memory, addr, length);
        errno = error;
        return IBV_REREG_MR_ERR_CMD;
    }
    public->lkey = public->rkey = command.key;
    if (flags & IBV_REREG_MR_CHANGE_PD)
        public->pd = pd;
    mr->pd = command.pd;
    if (located) {
        leave(mr->memory, public->addr, public->length);
        mr->memory = command.memory;
        if (moves)
            mr->iova = command.iova;
        public->addr = addr;
        public->length = length;
    }
    mr->access = command.access;
    return 0;
}

EXPORT struct ibv_mr *ibv_reg_dmabuf_mr(struct ibv_pd *pd, uint64_t offset, size_t length, uint64_t iova, int fd,
                                        int access)
{
    struct sluice_open_memory_request request = {
        .kind = SLUICE_MEMORY_DMABUF, .writable = may_be_written((unsigned)access), .length = length};
    struct sluice_handle_reply reply;
    struct sluice_command command = {
        .op = SLUICE_COMMAND_REG_MR,
        .pd = ((struct shim_pd *)pd)->handle,
        .access = (unsigned)access & ~(unsigned)HINTS,
        .addr = offset,
        .length = length,
        .iova = iova,
    };
    /* Applications ask with a bad descriptor whether there is such a thing: not before what they ask is answered. */
    bool exists = fcntl(fd, F_GETFD) >= 0;
    int error = check(length, (unsigned)access);

    if (access & (IBV_ACCESS_MW_BIND | IBV_ACCESS_ZERO_BASED))
        error = EINVAL;
    request.has_descriptor = exists;
    if (!error)
        error = session_call_with(SLUICE_OP_OPEN_MEMORY, &request, sizeof(request), &reply, sizeof(reply),
                                  exists ? fd : -1);
    if (error) {
        errno = error;
        return NULL;
    }
    command.memory = reply.handle;
    return register_located(pd, NULL, &command);
}
