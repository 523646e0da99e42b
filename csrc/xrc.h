/* SPDX-License-Identifier: Apache-2.0 */
/*
 * XRC domains (IBTA annex A14): what ties a tenant's XRC_RECV QPs to the SRQs that
 * their messages may name. Processes of one tenant meet in a domain by a file's
 * inode; an XRC_RECV QP lives as long as any of them has it open.
 */
#ifndef SLUICE_XRC_H
#define SLUICE_XRC_H

#include "node.h"

enum { TENANT_XRCDS = 4096 };

struct xrcd {
    struct tenant *tenant;
    bool has_inode;
    uint64_t dev, ino;
    uint32_t opens;
    struct list qps;  /* XRC_RECV QPs: qp->in_xrcd */
    struct list link; /* tenant->xrcds */
};

/* A session's handle of a domain. */
struct opened_xrcd {
    struct xrcd *xrcd;
    struct context *context;
    uint32_t handle;
    uint32_t users; /* SRQs and QPs made through it */
    struct list link;
};

/* One session's handle of an XRC_RECV QP. */
struct qp_share {
    struct session *session;
    struct opened_xrcd *opened;
    uint32_t handle;
    struct list link; /* qp->shares */
};

/*
 * Returns the handle. has_inode: a domain that others find by dev and ino; create,
 * exclusive: O_CREAT, O_EXCL. -EAGAIN: there is none and create isn't set (as the
 * kernel's uverbs); -EINVAL: there is one and exclusive is.
 */
int xrcd_open(struct session *session, uint32_t context, bool has_inode, uint64_t dev, uint64_t ino, bool create,
              bool exclusive);
/* -EBUSY while SRQs or QPs made through this handle exist. */
int xrcd_close(struct session *session, uint32_t handle);
struct opened_xrcd *xrcd_find(struct session *session, uint32_t handle);

/* Whether the session has it open. */
bool xrcd_is_open_in(const struct xrcd *xrcd, struct session *session);

/* Closes it, whoever uses it: its session or context ends. */
void xrcd_end(struct opened_xrcd *opened);

/* The SRQ is about to go: receives that were taken from it are dropped. */
void xrcd_forget_srq(struct xrcd *xrcd, struct srq *srq);

/* The session's handle of the QP. */
struct qp_share *qp_share_find(const struct qp *qp, const struct session *session, uint32_t handle);
/* The session has the QP under a handle from now on. */
int qp_share_add(struct qp *qp, struct session *session, struct opened_xrcd *opened);
/* It closes the handle: frees the QP with the last one. */
void qp_share_close(struct qp *qp, struct session *session, uint32_t handle);
/* Opens a QP of a domain that exists. */
int qp_open(struct session *session, const struct sluice_open_qp_request *request, struct sluice_create_qp_reply *reply);

/*
 * Where an XRC message to qp (XRC_RECV) goes: the SRQ that it names, where that is of
 * the domain and alive; its PD checks the keys. What takes no receive needs no SRQ: then
 * the key's own PD does, where its process has the domain open; *pd is NULL where nobody has the
 * key. False: there is no such SRQ, and the message needs one.
 */
bool xrc_responder(const struct qp *qp, uint32_t srqn, uint32_t rkey, bool takes_receive, struct srq **srq,
                   struct pd **pd);

#endif
