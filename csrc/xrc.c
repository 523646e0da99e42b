/* SPDX-License-Identifier: Apache-2.0 */
#include "xrc.h"

#include <errno.h>
#include <infiniband/verbs.h>
#include <stdlib.h>

#include "context.h"
#include "device.h"
#include "qp.h"
#include "srq.h"

/* ---- domains ----------------------------------------------------------- */

static struct xrcd *find_inode(struct tenant *tenant, uint64_t dev, uint64_t ino)
{
    for (struct list *link = tenant->xrcds.next; link != &tenant->xrcds; link = link->next) {
        struct xrcd *xrcd = list_entry(link, struct xrcd, link);

        if (xrcd->has_inode && xrcd->dev == dev && xrcd->ino == ino)
            return xrcd;
    }
    return NULL;
}

int xrcd_open(struct session *session, uint32_t context, bool has_inode, uint64_t dev, uint64_t ino, bool create,
              bool exclusive)
{
    struct context *of = context_find(session, context);

    if (!of)
        return -EINVAL;
    struct tenant *tenant = of->tenant;
    struct xrcd *xrcd = has_inode ? find_inode(tenant, dev, ino) : NULL;

    if (has_inode && !xrcd && !create)
        return -EAGAIN;
    if (xrcd && create && exclusive)
        return -EINVAL;
    if (tenant->xrcd_opens == TENANT_XRCDS)
        return -ENOMEM;
    struct opened_xrcd *opened = calloc(1, sizeof(*opened));

    if (!opened)
        return -ENOMEM;
    if (!xrcd) {
        xrcd = calloc(1, sizeof(*xrcd));
        if (!xrcd) {
            free(opened);
            return -ENOMEM;
        }
        *xrcd = (struct xrcd){.tenant = tenant, .has_inode = has_inode, .dev = dev, .ino = ino};
        list_init(&xrcd->qps);
        list_init(&xrcd->link);
        list_append(&tenant->xrcds, &xrcd->link);
    }
    xrcd->opens++;
    tenant->xrcd_opens++;
    opened->xrcd = xrcd;
    opened->context = of;
    opened->handle = session->next_handle++;
    list_init(&opened->link);
    list_append(&session->xrcds, &opened->link);
    return (int)opened->handle;
}

struct opened_xrcd *xrcd_find(struct session *session, uint32_t handle)
{
    for (struct list *link = session->xrcds.next; link != &session->xrcds; link = link->next)
        if (list_entry(link, struct opened_xrcd, link)->handle == handle)
            return list_entry(link, struct opened_xrcd, link);
    return NULL;
}

bool xrcd_is_open_in(const struct xrcd *xrcd, struct session *session)
{
    for (struct list *link = session->xrcds.next; link != &session->xrcds; link = link->next)
        if (list_entry(link, struct opened_xrcd, link)->xrcd == xrcd)
            return true;
    return false;
}

void xrcd_end(struct opened_xrcd *opened)
{
    struct xrcd *xrcd = opened->xrcd;

    list_remove(&opened->link);
    free(opened);
    xrcd->tenant->xrcd_opens--;
    /* Whoever had SRQs or QPs in it had it open. */
    if (--xrcd->opens == 0) {
        list_remove(&xrcd->link);
        free(xrcd);
    }
}

int xrcd_close(struct session *session, uint32_t handle)
{
    struct opened_xrcd *opened = xrcd_find(session, handle);

    if (!opened)
        return -EINVAL;
    if (opened->users)
        return -EBUSY;
    xrcd_end(opened);
    return 0;
}

void xrcd_forget_srq(struct xrcd *xrcd, struct srq *srq)
{
    for (struct list *link = xrcd->qps.next; link != &xrcd->qps; link = link->next) {
        struct qp *qp = list_entry(link, struct qp, in_xrcd);

        if (qp->receive.srq == srq) {
            qp->receive.active = false;
            qp->receive.srq = NULL;
        }
    }
}

bool xrc_responder(const struct qp *qp, uint32_t srqn, uint32_t rkey, bool takes_receive, struct srq **srq,
                   struct pd **pd)
{
    struct sluice_engine *engine = qp->session->engine;
    struct srq *named = srq_lookup(engine, srqn);

    *srq = NULL;
    *pd = NULL;
    if (named && named->xrcd == qp->xrcd && !named->session->broken && !named->cq->overrun) {
        *srq = named;
        *pd = named->pd;
        return true;
    }
    if (takes_receive)
        return false;
    const struct mr *mr = mr_entry(engine, qp->tenant->account.device->nic_keys, rkey);

    if (rkey && mr->key == rkey && xrcd_is_open_in(qp->xrcd, mr->pd->session))
        *pd = mr->pd;
    return true;
}

/* ---- XRC_RECV QPs ------------------------------------------------------ */

int qp_share_add(struct qp *qp, struct session *session, struct opened_xrcd *opened)
{
    struct qp_share *share = calloc(1, sizeof(*share));

    if (!share)
        return -ENOMEM;
    int handle = qp_take_handle(session, qp);

    if (handle < 0) {
        free(share);
        return handle;
    }
    *share = (struct qp_share){.session = session, .opened = opened, .handle = (uint32_t)handle};
    list_init(&share->link);
    list_append(&qp->shares, &share->link);
    opened->users++;
    return handle;
}

struct qp_share *qp_share_find(const struct qp *qp, const struct session *session, uint32_t handle)
{
    for (struct list *link = qp->shares.next; link != &qp->shares; link = link->next) {
        struct qp_share *share = list_entry(link, struct qp_share, link);

        if (share->session == session && share->handle == handle)
            return share;
    }
    return NULL;
}

void qp_share_close(struct qp *qp, struct session *session, uint32_t handle)
{
    struct qp_share *share = qp_share_find(qp, session, handle);

    share->opened->users--;
    list_remove(&share->link);
    session->qps[handle] = NULL;
    free(share);
    if (list_empty(&qp->shares)) {
        qp_free(qp);
        return;
    }
    /* It stays with one of those who still have it. */
    share = list_entry(qp->shares.next, struct qp_share, link);
    qp->session = share->session;
    qp->handle = share->handle;
    qp->counters->session = share->session->number;
}

int qp_open(struct session *session, const struct sluice_open_qp_request *request, struct sluice_create_qp_reply *reply)
{
    struct opened_xrcd *opened = xrcd_find(session, request->xrcd);
    struct qp *qp = qp_lookup(session->engine, request->qp_num);

    if (!opened || !qp || qp->type != IBV_QPT_XRC_RECV || qp->xrcd != opened->xrcd)
        return -EINVAL;
    int handle = qp_share_add(qp, session, opened);

    if (handle < 0)
        return handle;
    reply->handle = (uint32_t)handle;
    reply->qp_num = qp->qp_num;
    reply->cap = qp->attr.cap;
    return 0;
}
