/* SPDX-License-Identifier: Apache-2.0 */
#include "fence.h"

#include <stdlib.h>

struct fence {
    struct errand errand;
    void (*over)(void *owner);
    void *owner; /* NULL: forgotten */
};

static bool carry(const struct reach *reach, struct errand *errand)
{
    (void)reach;
    (void)errand;
    return true;
}

static void done(struct errand *errand, bool carried)
{
    struct fence *fence = list_entry(errand, struct fence, errand);

    (void)carried;
    if (fence->owner)
        fence->over(fence->owner);
    free(fence);
}

struct fence *fence_send(struct sluice_engine *engine, struct reach *reach, void (*over)(void *owner), void *owner)
{
    bool due = reach && reach_busy(reach) && reach_may_wait(engine, reach);
    struct fence *fence = due ? calloc(1, sizeof(*fence)) : NULL;

    if (!fence)
        return NULL;
    fence->errand = (struct errand){.carry = carry, .done = done};
    fence->over = over;
    fence->owner = owner;
    list_init(&fence->errand.link);
    reach_send(reach, &fence->errand);
    return fence;
}

void fence_forget(struct sluice_engine *engine, struct fence *fence)
{
    if (!fence)
        return;
    fence->owner = NULL;
    errand_leave(engine, &fence->errand);
}
