/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Memory windows (IBTA 10.6.7): a remote key to a part of an MR, which the
 * application binds and unbinds on a send queue. Type 1 belongs to the PD; type 2
 * (2B) belongs to the QP that bound it, and is invalidated before it is bound anew.
 */
#ifndef SLUICE_MW_H
#define SLUICE_MW_H

#include "mr.h"
#include "qp.h"
#include "transport/transport.h"

/* Carries out IBV_WR_BIND_MW or IBV_WR_LOCAL_INV of qp->message. Returns enum ibv_wc_status. */
uint32_t mw_execute(struct qp *qp);

/*
 * The same as struct transport's send, and not done before nothing is under way any more to where an ended key led. PROGRESS_MORE:
 * something is, and the QP waits (relay.h).
 */
enum progress mw_send(struct qp *qp, uint32_t *status);

/* The window that qp->message names, whatever tag it has now. NULL: there is none. */
struct mr *mw_named(struct qp *qp);

/* What a SEND_WITH_INV names at the responder. False: there is no such window that it may invalidate. */
bool mw_invalidate(struct qp *qp, uint32_t key);

/* Ends what a window grants; harmless for one that isn't bound. */
void mw_unbind(struct mr *window);

/* Windows of type 2 end with the connection of their QP. */
void mws_of_qp(struct qp *qp);

#endif
