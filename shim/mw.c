/* SPDX-License-Identifier: Apache-2.0 */
/* Memory windows: man ibv_alloc_mw, ibv_bind_mw. Windows of type 2 are bound by WRs (post.c). */
#include <errno.h>
#include <stdlib.h>

#include "clock.h"
#include "objects.h"
#include "session.h"

enum { TAG = 0xff };

struct ibv_mw *shim_alloc_mw(struct ibv_pd *pd, enum ibv_mw_type type)
{
    struct sluice_command command = {
        .op = SLUICE_COMMAND_ALLOC_MW, .pd = ((struct shim_pd *)pd)->handle, .flags = type};
    struct shim_mw *mw = calloc(1, sizeof(*mw));

    if (!mw)
        return NULL;
    int error = session_command(&command);

    if (error) {
        free(mw);
        errno = error;
        return NULL;
    }
    mw->pd = command.pd;
    mw->mw = (struct ibv_mw){
        .context = pd->context, .pd = pd, .rkey = command.key, .handle = command.key, .type = type};
    return &mw->mw;
}

int shim_dealloc_mw(struct ibv_mw *mw)
{
    struct sluice_command command = {
        .op = SLUICE_COMMAND_DEALLOC_MW, .pd = ((struct shim_mw *)mw)->pd, .key = mw->handle};
    int error = session_command(&command);

    if (!error)
        free(mw);
    return error;
}

/* Any tag but the present one: who has the old key should not guess the new one at once. */
static uint32_t next_rkey(uint32_t rkey)
{
    uint32_t step = (uint32_t)((clock_now() * 0x9e3779b97f4a7c15ull) >> 32) % TAG + 1;

    return (rkey & ~(uint32_t)TAG) | ((rkey + step) & TAG);
}

int shim_bind_mw(struct ibv_qp *qp, struct ibv_mw *mw, struct ibv_mw_bind *bind)
{
    struct ibv_send_wr *bad, wr = {
        .wr_id = bind->wr_id,
        .opcode = IBV_WR_BIND_MW,
        .send_flags = bind->send_flags & (IBV_SEND_SIGNALED | IBV_SEND_FENCE),
        .bind_mw = {.mw = mw, .rkey = next_rkey(mw->rkey), .bind_info = bind->bind_info},
    };

    if (mw->pd != qp->pd)
        return EPERM;
    /* What the manual page excludes for type 1. */
    if (bind->bind_info.mw_access_flags & IBV_ACCESS_ZERO_BASED)
        return EINVAL;
    int error = shim_post_send(qp, &wr, &bad);

    if (!error)
        mw->rkey = wr.bind_mw.rkey;
    return error;
}
