/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The receiving end of a stream (stream.h): what has come by it, and when its sender may send that much again.
 *
 * Whatever comes is placed at once or lost. What it took of the link is owed to the sender as credit, and giving that back
 * is work of the receiving tenant's, in its turns and by guarantee, weight and ceilings, as reading from a
 * connection is (tcp.h): so all senders together send as much as the shaper here grants that tenant, a window each ahead
 * of it at most, and are held back beyond it.
 *
 * What nobody takes, as no member of the group is here, none of them may have it, or no such QP was ever
 * here, is given back slowly, INFLOW_LOST bytes every INFLOW_LOST_NS for all of a trunk: who sends into the void
 * fills nobody's link.
 */
#ifndef SLUICE_INFLOW_H
#define SLUICE_INFLOW_H

#include "../node.h"
#include "stream.h"

#define INFLOW_LOST_NS 10000000ull

enum {
    INFLOW_LOST = 8192,       /* more than the longest datagram */
    INFLOW_GRANT_LEAST = 8192 /* bytes that are worth a frame while more is owed */
};

struct inflow {
    struct chore chore;     /* of tenant's, while there is one */
    struct trunk *trunk;
    uint32_t id;            /* the stream's */
    uint32_t owed;          /* bytes that came and weren't granted again */
    uint32_t granted;       /* bytes that were, and the sender isn't told */
    struct tenant *tenant;  /* in whose turns the rest is granted; NULL: nobody's */
    uint32_t last;          /* number of the tenant that something came for last, */
    uint64_t incarnation;   /* and which one of that number it was */
    uint64_t ns;            /* of the engine's, that tenant wasn't charged for yet */
    struct list granting;   /* in inflows->granting, while the sender is to be told */
    struct list lost;       /* in inflows->lost, while something is owed in nobody's turns */
};

/* All of a trunk's. */
struct inflows {
    struct inflow **of[SLUICE_MAX_TENANTS]; /* by the sender's tenant: NULL, or STREAM_SLOTS of them or NULL */
    struct list granting, lost;
    uint32_t owing;    /* inflows that owe something */
    uint64_t said;     /* ns: when the sender was last told anything */
    uint32_t start, end; /* of what is being written */
    uint32_t datagram_ns; /* what one has cost of late */
    struct timer timer;
    struct grant_frame frames[64];
};

void inflows_init(struct inflows *inflows);
/* The connection is over: nothing is owed any more. */
void inflows_end(struct trunk *trunk);
/* Tells the sender what is granted. Where it is gone, reading tells: what it said before comes first. */
void inflows_write(struct trunk *trunk);
/* The tenant goes: what is owed for it is nobody's. */
void inflows_forget(struct tenant *tenant);

/* NULL: none has such a number, or there is no memory. */
struct inflow *inflow_find(struct trunk *trunk, uint32_t id);
/* Whether the sender has the credit for so many bytes: one that sends more is none of ours. */
static inline bool inflow_may_come(const struct inflow *inflow, uint32_t bytes)
{
    return inflow->owed + inflow->granted + bytes <= STREAM_WINDOW;
}
/* So many bytes came for a tenant, whether it took them or not; NULL: for one that isn't known, or nobody. */
void inflow_came(struct inflow *inflow, uint32_t bytes, struct tenant *tenant);
/* So many bytes came that their receivers were charged for. */
void inflow_paid(struct inflow *inflow, uint32_t bytes);

#endif
