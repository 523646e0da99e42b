/* SPDX-License-Identifier: Apache-2.0 */
/* Protection domains: man ibv_alloc_pd. */
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
    error = session_call_handle(SLUICE_OP_ALLOC_PD, 0, &pd->handle);
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
    int error = session_call_handle(SLUICE_OP_DEALLOC_PD, ((struct shim_pd *)public)->handle, NULL);

    if (!error)
        free(public);
    return error;
}
