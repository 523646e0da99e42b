/* SPDX-License-Identifier: Apache-2.0 */
#include "mw.h"

#include <infiniband/verbs.h>

#include "relay.h"

void mw_unbind(struct mr *window)
{
    if (window->region)
        window->region->windows--;
    window->region = NULL;
    window->qp = NULL;
    window->memory = NULL;
    window->access = 0;
    window->length = 0;
    list_remove(&window->qp_link);
}

void mws_of_qp(struct qp *qp)
{
    while (!list_empty(&qp->windows))
        mw_unbind(list_entry(qp->windows.next, struct mr, qp_link));
}

/* IBTA 10.6.7.2: what a window may grant of a region. */
static bool may_bind(const struct mr *region, const struct sluice_bind *bind, uint64_t addr)
{
    if (!(region->access & IBV_ACCESS_MW_BIND) || region->zero_based)
        return false;
    if ((bind->access & (IBV_ACCESS_REMOTE_WRITE | IBV_ACCESS_REMOTE_ATOMIC)) &&
        !(region->access & IBV_ACCESS_LOCAL_WRITE))
        return false;
    return addr >= region->iova && bind->length <= region->length &&
           addr - region->iova <= region->length - bind->length;
}

static bool bind_window(struct qp *qp, struct mr *window, uint32_t new_key, uint32_t lkey, uint64_t addr,
                        const struct sluice_bind *bind)
{
    const uint32_t granted = IBV_ACCESS_REMOTE_WRITE | IBV_ACCESS_REMOTE_READ | IBV_ACCESS_REMOTE_ATOMIC;
    /* Applications write LOCAL_WRITE as they do for regions: there is nothing local about a window, it grants nothing. */
    const uint32_t known = granted | IBV_ACCESS_ZERO_BASED | IBV_ACCESS_LOCAL_WRITE;
    bool type_2 = window->kind == MR_WINDOW_TYPE_2;
    bool zero_based = bind->access & IBV_ACCESS_ZERO_BASED;

    if (window->pd != qp->pd || (bind->access & ~known))
        return false;
    /* A window of type 2 is invalidated by its own operations only; one of type 1 has no zero base. */
    if (type_2 ? window->region != NULL || bind->length == 0 : zero_based)
        return false;
    if (bind->length) {
        struct mr *region = mr_at(qp->pd, lkey);

        if (!region || region->kind != MR_REGION || region->pd != qp->pd || !may_bind(region, bind, addr))
            return false;
        mw_unbind(window);
        window->region = region;
        region->windows++;
        window->iova = zero_based ? 0 : addr;
        window->length = bind->length;
        window->offset = addr + region->offset - window->iova;
        window->memory = region->memory;
        window->access = (bind->access & granted) | (region->access & MR_BY_PROCESS);
        window->zero_based = zero_based;
        if (type_2) {
            window->qp = qp;
            list_append(&qp->windows, &window->qp_link);
        }
    } else {
        mw_unbind(window);
    }
    window->key = new_key;
    return true;
}

bool mw_invalidate(struct qp *qp, uint32_t key)
{
    struct mr *window = qp->pd ? mr_at(qp->pd, key) : NULL;

    if (!window || window->kind != MR_WINDOW_TYPE_2 || window->pd != qp->pd || (window->qp && window->qp != qp))
        return false;
    mw_unbind(window);
    return true;
}

struct mr *mw_named(struct qp *qp)
{
    uint32_t key = qp->message.wqe->rkey;
    struct mr *window = mr_entry_but_tag(qp->pd, key);

    /* All but the tag is the window's own. */
    if (window->key == 0 || window->kind == MR_REGION || ((window->key ^ key) & ~(uint32_t)MR_TAG))
        return NULL;
    return window;
}

uint32_t mw_execute(struct qp *qp)
{
    const struct sluice_wqe *wqe = qp->message.wqe;

    if (wqe->opcode == IBV_WR_LOCAL_INV)
        return mw_invalidate(qp, wqe->imm_data) ? IBV_WC_SUCCESS : IBV_WC_LOC_QP_OP_ERR;

    struct mr *window = mw_named(qp);

    if (!window || !bind_window(qp, window, wqe->rkey, wqe->imm_data, wqe->remote_addr, qp->message.bind))
        return IBV_WC_MW_BIND_ERR;
    return IBV_WC_SUCCESS;
}

enum progress mw_send(struct qp *qp, uint32_t *status)
{
    struct mr *window = qp->message.wqe->opcode == IBV_WR_BIND_MW ? mw_named(qp) : NULL;

    *status = IBV_WC_SUCCESS;
    if (!window) {
        *status = mw_execute(qp);
    } else if (window->kind == MR_WINDOW_TYPE_1 && window->pd == qp->pd && (window->access & MR_BY_PROCESS)) {
        /* The old key ends first. */
        mw_unbind(window);
    }
    if (*status != IBV_WC_SUCCESS)
        return PROGRESS_FAILED;
    if (relay_fence(qp) == RELAYED_LATER)
        return PROGRESS_MORE;
    if (window)
        *status = mw_execute(qp);
    return *status == IBV_WC_SUCCESS ? PROGRESS_DONE : PROGRESS_FAILED;
}
