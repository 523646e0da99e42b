/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A turn: what the worker does for one tenant before it asks again who is next.
 * Among several a turn lasts some microseconds, whatever the work costs; alone
 * it is long, for what lies between two turns costs up to a tenth of a copy that
 * stays in the cache, but it ends after each piece where the worker is called.
 */
#ifndef SLUICE_TURN_H
#define SLUICE_TURN_H

#include "node.h"

enum { TURN_SHARED = 1 << 16, TURN_PIECE = 1 << 18, TURN_ALONE = 1 << 20 }; /* bytes */

/* What a QP may do in a turn, and what it did. */
struct allowance {
    enum flow flow;
    uint32_t messages, bytes; /* may */
    uint32_t tries;           /* messages begun or gone on with */
    uint32_t operations;      /* messages done with */
    uint32_t moved;           /* bytes */
    struct tenant *peer;      /* who is at the other end; NULL: nobody, or not of this node */
    uint32_t peer_moved[DIRECTIONS]; /* of these bytes: by the peer's direction */
    bool admitted[DIRECTIONS]; /* the peer's ceilings were asked, or it has none */
    bool more;                /* the QP goes on to send, or waits to */
};

/* False: nobody may go now. engine->now is the end of the turn. */
bool turn_take(struct sluice_engine *engine);

/* Where the QP's next message belongs: its tenant's flow. */
enum flow turn_flow(const struct qp *qp);
/* Who is at the other end of the message at hand. NULL: nobody, several, or not of this node. */
struct tenant *turn_destination(const struct qp *qp);
/*
 * Whether the ceilings at the other end, of its direction, let the QP's message go on. False: the QP
 * waits for them, and is active again when they do.
 */
bool turn_admits(struct allowance *allowance, struct qp *qp, uint32_t direction);

#endif
