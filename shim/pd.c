/* SPDX-License-Identifier: Apache-2.0 */
/* Protection domains, thread and parent domains: man ibv_alloc_pd, ibv_alloc_td, ibv_alloc_parent_domain. */
#include <errno.h>
#include <stdlib.h>

#include "objects.h"
#include "session.h"

EXPORT struct ibv_pd *ibv_alloc_pd(struct ibv_context *context)
{
    struct shim_pd *pd = calloc(1, sizeof(*pd));
    int error;

    if (!pd)
        return NULL;
    error = session_call_handle(SLUICE_OP_ALLOC_PD, to_context(context)->handle, &pd->handle);
    if (error) {
        free(pd);
        errno = error;
        return NULL;
    }
    pd->pd.context = context;
    pd->pd.handle = pd->handle;
    return &pd->pd;
}

EXPORT int ibv_dealloc_pd(struct ibv_pd *public)
{
    struct shim_pd *pd = (struct shim_pd *)public;
    int error = 0;

    if (atomic_load(&pd->domains))
        return EBUSY;
    if (pd->parent)
        atomic_fetch_sub(&pd->parent->domains, 1);
    else
        error = session_call_handle(SLUICE_OP_DEALLOC_PD, pd->handle, NULL);
    if (!error)
        free(pd);
    return error;
}

/* A promise of the application's to use what is made with it from one thread: nothing has to change for that. */
struct ibv_td *shim_alloc_td(struct ibv_context *context, struct ibv_td_init_attr *attr)
{
    struct ibv_td *td;

    if (attr->comp_mask) {
        errno = EINVAL;
        return NULL;
    }
    td = calloc(1, sizeof(*td));
    if (td)
        td->context = context;
    return td;
}

int shim_dealloc_td(struct ibv_td *td)
{
    free(td);
    return 0;
}

/* The PD under another pointer. Its allocators are for what a driver allocates: the router does that here. */
struct ibv_pd *shim_alloc_parent_domain(struct ibv_context *context, struct ibv_parent_domain_init_attr *attr)
{
    const uint32_t known = IBV_PARENT_DOMAIN_INIT_ATTR_ALLOCATORS | IBV_PARENT_DOMAIN_INIT_ATTR_PD_CONTEXT;
    struct shim_pd *domain, *parent = (struct shim_pd *)attr->pd;

    if (!parent || (attr->comp_mask & ~known)) {
        errno = EINVAL;
        return NULL;
    }
    domain = calloc(1, sizeof(*domain));
    if (!domain)
        return NULL;
    domain->parent = parent;
    atomic_fetch_add(&parent->domains, 1);
    domain->handle = parent->handle;
    domain->pd = (struct ibv_pd){.context = context, .handle = parent->handle};
    return &domain->pd;
}
