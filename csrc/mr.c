/* SPDX-License-Identifier: Apache-2.0 */
#include "mr.h"

#include <errno.h>
#include <infiniband/verbs.h>

#include "context.h"
#include "ending.h"
#include "holdings.h"
#include "memory.h"
#include "mw.h"
#include "nic.h"
#include "session.h"
#include "tenant.h"

/* What a region may grant. Relaxed ordering is the NIC's; what the engine copies is in order all the same. */
#define MR_ACCESS                                                                                          \
    (IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_WRITE | IBV_ACCESS_REMOTE_READ | IBV_ACCESS_REMOTE_ATOMIC | \
     IBV_ACCESS_MW_BIND | IBV_ACCESS_ZERO_BASED | IBV_ACCESS_RELAXED_ORDERING)

static bool access_fits(uint32_t access)
{
    if (access & ~(uint32_t)MR_ACCESS)
        return false;
    /* IBTA 10.6.3.1: who may write from afar may write locally. */
    return !(access & (IBV_ACCESS_REMOTE_WRITE | IBV_ACCESS_REMOTE_ATOMIC)) || (access & IBV_ACCESS_LOCAL_WRITE);
}

static bool range_fits(const struct memory *memory, const struct sluice_command *command, uint32_t access)
{
    return command->length && memory_holds(memory, command->addr, command->length, access) &&
           command->iova <= UINT64_MAX - command->length;
}

/* Whether the tenant may have this many bytes more, and, where more is 1, one region or window more. */
static bool within_limits(struct tenant *tenant, uint32_t more, uint64_t bytes)
{
    const struct sluice_shape *shape = &tenant->shape;
    const struct sluice_tenant_counters *now = tenant->counters;

    return tenant_may_have(tenant, SLUICE_LIMIT_MRS, now->mrs + now->mws, more, shape->max_mrs) &&
           tenant_may_have(tenant, SLUICE_LIMIT_MR_BYTES, now->mr_bytes, bytes, shape->max_mr_bytes);
}

struct mr *mr_take(struct pd *pd, enum mr_kind kind)
{
    struct sluice_engine *engine = pd->session->engine;
    struct tenant *tenant = pd->context->tenant;
    uint32_t index;

    /* There is one for whoever may have one more. */
    if (!holding_take(tenant, HOLDING_KEYS))
        return NULL;
    if (engine->mr_free) {
        index = engine->mr_free;
        engine->mr_free = engine->mrs[index].next_free;
    } else {
        index = engine->mr_used++;
    }
    struct mr *mr = &engine->mrs[index];
    uint32_t variants = 1u << MR_VARIANT_BITS;
    /* Any but the one before. */
    uint32_t step = (uint32_t)(engine_random(engine) >> 32) % (variants - 1) + 1;
    uint32_t variant = (mr->last_key + step) & (variants - 1);

    *mr = (struct mr){.key = index << MR_VARIANT_BITS | variant, .pd = pd, .kind = (uint8_t)kind};
    list_init(&mr->link);
    list_init(&mr->qp_link);
    list_append(kind == MR_REGION ? &pd->session->mrs : &pd->session->mws, &mr->link);
    pd->users++;
    if (kind == MR_REGION) {
        tenant->counters->mrs++;
        pd->session->mr_count++;
    } else {
        tenant->counters->mws++;
        pd->session->mw_count++;
    }
    return mr;
}

/* Says where the region lies. */
static void place(struct mr *mr, struct memory *memory, const struct sluice_command *command)
{
    struct sluice_tenant_counters *counters = mr->pd->context->tenant->counters;

    memory->users++;
    if (mr->memory)
        mr->memory->users--;
    counters->mr_bytes += command->length - mr->length;
    mr->memory = memory;
    mr->iova = command->iova;
    mr->length = command->length;
    mr->offset = command->addr - command->iova;
}

static void grant(struct mr *mr, uint32_t access)
{
    mr->access = (access & ~(uint32_t)IBV_ACCESS_ZERO_BASED) | MR_LOCAL |
                 (mr->memory->kind == SLUICE_MEMORY_PROCESS ? MR_BY_PROCESS : 0);
    mr->zero_based = access & IBV_ACCESS_ZERO_BASED;
}

/* No errnos: somebody answers later; success, once nothing is under way any more to where a key led. */
enum { LATER = -1, FENCED = -2 };

/* The end of REG_MR and REREG_MR: an errno, or LATER. */
static int register_on_nic(struct mr *mr, struct pd *pd, uint32_t access, const struct mr *before,
                           struct sluice_command *command)
{
    int error;

    if (registration_begin(mr, pd, access, before, command, &error) != REGISTERED_NOW)
        return LATER;
    if (!error)
        command->key = mr->key;
    return -error;
}

static int reg_mr(struct session *session, struct sluice_command *command)
{
    struct pd *pd = pd_find(session, command->pd);
    struct memory *memory = memory_find(session, command->memory);

    if (!pd || !memory || !access_fits(command->access) || !range_fits(memory, command, command->access))
        return EINVAL;
    struct mr *mr = within_limits(pd->context->tenant, 1, command->length) ? mr_take(pd, MR_REGION) : NULL;

    if (!mr)
        return ENOMEM;
    place(mr, memory, command);
    grant(mr, command->access);
    return register_on_nic(mr, pd, command->access, NULL, command);
}

/*
 * The session's own region that a command names, which is of the PD that it names, or to be of it: keys are those of the
 * PD's device. NULL: there is none.
 */
static struct mr *find_region(struct session *session, const struct sluice_command *command, bool moves)
{
    struct pd *pd = pd_find(session, command->pd);
    struct mr *mr = pd ? mr_at(pd, command->key) : NULL;

    return mr && mr->pd->session == session && mr->kind == MR_REGION && (moves || mr->pd == pd) ? mr : NULL;
}

static int dereg_mr(struct session *session, const struct sluice_command *command)
{
    struct mr *mr = find_region(session, command, false);

    if (!mr)
        return EINVAL;
    if (mr->windows)
        return EBUSY;
    bool by_process = mr->access & MR_BY_PROCESS;

    mr_free(session->engine, mr);
    return by_process ? FENCED : 0;
}

void mr_put_back(struct mr *mr, const struct mr *before)
{
    before->memory->users++;
    mr->memory->users--;
    mr->pd->context->tenant->counters->mr_bytes += before->length - mr->length;
    mr->memory = before->memory;
    mr->iova = before->iova;
    mr->length = before->length;
    mr->offset = before->offset;
    mr->access = before->access;
    mr->zero_based = before->zero_based;
}

void mr_move(struct mr *mr, struct pd *pd)
{
    mr->pd->users--;
    pd->users++;
    mr->pd = pd;
}

/* All or nothing: what is refused leaves the region as it was. A region with a twin on the NIC gets another key. */
static int rereg_mr(struct session *session, struct sluice_command *command)
{
    uint32_t flags = command->flags;
    struct mr *mr = find_region(session, command, flags & IBV_REREG_MR_CHANGE_PD);
    struct pd *pd = pd_find(session, command->pd);

    if (!mr || flags == 0 || (flags & ~(uint32_t)IBV_REREG_MR_FLAGS_SUPPORTED) ||
        pd->context->tenant != mr->pd->context->tenant)
        return EINVAL;
    uint32_t old_access = (mr->access & ~(uint32_t)(MR_LOCAL | MR_BY_PROCESS)) | (mr->zero_based ? IBV_ACCESS_ZERO_BASED : 0);
    uint32_t access = flags & IBV_REREG_MR_CHANGE_ACCESS ? command->access : old_access;
    struct memory *memory = mr->memory;
    const struct mr before = *mr;

    if (!access_fits(access))
        return EINVAL;
    if (mr->windows)
        return EBUSY;
    if (flags & IBV_REREG_MR_CHANGE_TRANSLATION) {
        memory = memory_find(session, command->memory);
        if (!memory || !range_fits(memory, command, access))
            return EINVAL;
        if (command->length > mr->length &&
            !within_limits(pd->context->tenant, 0, command->length - mr->length))
            return ENOMEM;
        place(mr, memory, command);
    } else if (!memory_holds(memory, mr->iova + mr->offset, mr->length, access)) {
        return EINVAL;
    }
    grant(mr, access);
    int result = register_on_nic(mr, pd, access, &before, command);

    return result == 0 && (before.access & MR_BY_PROCESS) ? FENCED : result;
}

static int alloc_mw(struct session *session, struct sluice_command *command)
{
    struct pd *pd = pd_find(session, command->pd);

    if (!pd || (command->flags != IBV_MW_TYPE_1 && command->flags != IBV_MW_TYPE_2))
        return EINVAL;
    struct mr *mr = within_limits(pd->context->tenant, 1, 0)
                        ? mr_take(pd, command->flags == IBV_MW_TYPE_1 ? MR_WINDOW_TYPE_1 : MR_WINDOW_TYPE_2)
                        : NULL;

    if (!mr)
        return ENOMEM;
    int error = nic_alloc_mw(mr);

    if (error) {
        mr_free(session->engine, mr);
        return -error;
    }
    command->key = mr->key;
    return 0;
}

static int dealloc_mw(struct session *session, const struct sluice_command *command)
{
    struct pd *pd = pd_find(session, command->pd);
    uint32_t key = command->key;

    if (!pd)
        return EINVAL;
    struct mr *mr = mr_entry_but_tag(pd, key);

    /* The tag may have been changed by a bind that is under way. */
    if (mr->key == 0 || mr->kind == MR_REGION || ((mr->key ^ key) & ~(uint32_t)MR_TAG) || mr->pd != pd)
        return EINVAL;
    bool by_process = mr->access & MR_BY_PROCESS;

    mr_free(session->engine, mr);
    return by_process ? FENCED : 0;
}

void mr_free(struct sluice_engine *engine, struct mr *mr)
{
    struct sluice_tenant_counters *counters = mr->pd->context->tenant->counters;

    if (mr->kind == MR_REGION) {
        counters->mrs--;
        mr->pd->session->mr_count--;
        counters->mr_bytes -= mr->length;
        if (mr->memory)
            mr->memory->users--;
    } else {
        mw_unbind(mr);
        nic_dealloc_mw(mr);
        counters->mws--;
        mr->pd->session->mw_count--;
    }
    if (mr->pd->session->registration && mr->pd->session->registration->mr == mr)
        registration_abandon(mr->pd->session);
    ending_loses(mr->pd->session, mr);
    nic_dereg_mr(mr);
    holding_give(mr->pd->context->tenant, HOLDING_KEYS);
    mr->pd->users--;
    list_remove(&mr->link);
    mr->last_key = mr->key;
    mr->key = 0;
    mr->next_free = engine->mr_free;
    engine->mr_free = (uint32_t)(mr - engine->mrs);
}

enum answered mr_command(struct session *session, struct sluice_command *command)
{
    switch (command->op) {
    case SLUICE_COMMAND_REG_MR:
        command->status = reg_mr(session, command);
        break;
    case SLUICE_COMMAND_DEREG_MR:
        command->status = dereg_mr(session, command);
        break;
    case SLUICE_COMMAND_REREG_MR:
        command->status = rereg_mr(session, command);
        break;
    case SLUICE_COMMAND_ALLOC_MW:
        command->status = alloc_mw(session, command);
        break;
    case SLUICE_COMMAND_DEALLOC_MW:
        command->status = dealloc_mw(session, command);
        break;
    case SLUICE_COMMAND_FENCE:
        command->status = FENCED;
        break;
    default:
        command->status = EINVAL;
    }
    if (command->status == LATER)
        return ANSWERED_LATER;
    if (command->status != FENCED)
        return ANSWERED;
    command->status = 0;
    return ANSWERED_FENCED;
}
