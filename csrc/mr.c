/* SPDX-License-Identifier: Apache-2.0 */
#include "mr.h"

#include <errno.h>
#include <infiniband/verbs.h>

/* What a region may grant; relaxed ordering changes nothing here, as all is ordered. */
#define MR_ACCESS                                                                                          \
    (IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_WRITE | IBV_ACCESS_REMOTE_READ | IBV_ACCESS_REMOTE_ATOMIC | \
     IBV_ACCESS_MW_BIND | IBV_ACCESS_RELAXED_ORDERING)

static uint64_t next_random(struct sluice_engine *engine)
{
    /* xorshift64, Marsaglia 2003; seeded from getrandom */
    uint64_t x = engine->mr_random;

    x ^= x << 13;
    x ^= x >> 7;
    x ^= x << 17;
    return engine->mr_random = x;
}

static struct pd *find_pd(struct session *session, uint32_t handle)
{
    for (struct list *link = session->pds.next; link != &session->pds; link = link->next) {
        struct pd *pd = list_entry(link, struct pd, link);

        if (pd->handle == handle)
            return pd;
    }
    return NULL;
}

static int reg_mr(struct session *session, struct sluice_command *command)
{
    struct sluice_engine *engine = session->engine;
    struct tenant *tenant = session->tenant;
    struct pd *pd = find_pd(session, command->pd);
    uint64_t length = command->length;
    uint32_t index;

    if (!pd || length == 0 || (command->access & ~(uint32_t)MR_ACCESS))
        return EINVAL;
    if ((command->access & (IBV_ACCESS_REMOTE_WRITE | IBV_ACCESS_REMOTE_ATOMIC)) &&
        !(command->access & IBV_ACCESS_LOCAL_WRITE))
        return EINVAL;
    if (length > ARENA_SIZE || command->addr > ARENA_SIZE - length || command->iova > UINT64_MAX - length)
        return EINVAL;
    if ((tenant->shape.max_mrs && tenant->counters->mrs >= tenant->shape.max_mrs) ||
        (tenant->shape.max_mr_bytes &&
         (length > tenant->shape.max_mr_bytes ||
          tenant->counters->mr_bytes > tenant->shape.max_mr_bytes - length)))
        return ENOMEM;

    if (engine->mr_free) {
        index = engine->mr_free;
        engine->mr_free = engine->mrs[index].next_free;
    } else if (engine->mr_used < MR_MAX) {
        index = engine->mr_used++;
    } else {
        return ENOMEM;
    }
    struct mr *mr = &engine->mrs[index];

    *mr = (struct mr){
        .key = index << MR_VARIANT_BITS | (uint32_t)(next_random(engine) >> (64 - MR_VARIANT_BITS)),
        .access = command->access,
        .pd = pd,
        .iova = command->iova,
        .length = length,
        .offset = command->addr - command->iova,
    };
    list_init(&mr->link);
    list_append(&session->mrs, &mr->link);
    pd->users++;
    tenant->counters->mrs++;
    tenant->counters->mr_bytes += length;
    command->key = mr->key;
    return 0;
}

static int dereg_mr(struct session *session, uint32_t key)
{
    struct mr *mr = &session->engine->mrs[key >> MR_VARIANT_BITS];

    if (key == 0 || mr->key != key || mr->pd->session != session)
        return EINVAL;
    mr_free(session->engine, mr);
    return 0;
}

void mr_free(struct sluice_engine *engine, struct mr *mr)
{
    struct sluice_tenant_counters *counters = mr->pd->session->tenant->counters;

    counters->mrs--;
    counters->mr_bytes -= mr->length;
    mr->pd->users--;
    list_remove(&mr->link);
    mr->key = 0;
    mr->next_free = engine->mr_free;
    engine->mr_free = (uint32_t)(mr - engine->mrs);
}

void mr_command(struct session *session, struct sluice_command *command)
{
    switch (command->op) {
    case SLUICE_COMMAND_REG_MR:
        command->status = reg_mr(session, command);
        break;
    case SLUICE_COMMAND_DEREG_MR:
        command->status = dereg_mr(session, command->key);
        break;
    default:
        command->status = EINVAL;
    }
}
