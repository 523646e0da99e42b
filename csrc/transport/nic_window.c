/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Memory windows of QPs whose peer is behind the NIC: a bind is the engine's, for QPs of this node that may use the
 * window as well (type 1), and the NIC's. Whether a window of type 2 is free to be bound only the NIC knows, since the peer may
 * have invalidated it.
 */
#include "../mw.h"
#include "nic.h"

enum { TAG = 0xff };

bool nic_describe_bind(struct qp *qp, struct ibv_send_wr *wr)
{
    const struct sluice_wqe *wqe = qp->message.wqe;
    const struct sluice_bind *bind = qp->message.bind;
    static struct ibv_mr nothing; /* what a bind of no bytes is to, whose mr libraries read all the same */
    struct mr *window = mw_named(qp), *region = mr_at(qp->pd, wqe->imm_data);

    if (!window || !window->nic_window || window->pd != qp->pd || (bind->length && (!region || !region->nic)))
        return false;
    if (window->kind == MR_WINDOW_TYPE_2)
        mw_unbind(window);
    if (mw_execute(qp) != IBV_WC_SUCCESS)
        return false;
    wr->imm_data = 0;
    wr->bind_mw.mw = window->nic_window;
    wr->bind_mw.rkey = wqe->rkey;
    wr->bind_mw.bind_info = (struct ibv_mw_bind_info){
        .mr = bind->length ? region->nic : &nothing,
        .addr = wqe->remote_addr,
        .length = bind->length,
        .mw_access_flags = bind->access,
    };
    return true;
}

int nic_post_bind(struct ibv_qp *qp, struct ibv_send_wr *wr)
{
    struct ibv_mw *window = wr->bind_mw.mw;
    struct ibv_send_wr *refused;
    uint32_t key = wr->bind_mw.rkey;
    int error = ibv_post_send(qp, wr, &refused);

    /* Some libraries bind type 1 by a verb of its own only, which chooses the tag: the one after the present one. */
    if (error && window->type == IBV_MW_TYPE_1) {
        struct ibv_mw_bind bind = {
            .wr_id = wr->wr_id, .send_flags = wr->send_flags, .bind_info = wr->bind_mw.bind_info};

        window->rkey = (key & ~(uint32_t)TAG) | ((key - 1) & TAG);
        error = ibv_bind_mw(qp, window, &bind);
    }
    if (!error)
        window->rkey = key;
    return error;
}
