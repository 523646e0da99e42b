/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The sending end of what one tenant's datagrams are to one tenant on another node: how many bytes of them may be on
 * their way. Nobody else's wait behind them, and nobody's on this node fill the receiver's link beyond what its
 * router has granted.
 *
 * A stream begins with a credit of STREAM_WINDOW bytes. What is sent takes from it, and the receiver's router gives it
 * back when its tenant has a turn for that (inflow.h): credit-based flow control (Kung, Blackwell, Chapman, SIGCOMM
 * 1994), for each stream by itself. QPs whose datagram finds no credit wait, in order.
 *
 * Address handles share a stream by tenant and destination. When the last of them is gone the stream stays until all of its
 * credit is back, so that making handles anew brings none. There are STREAM_SLOTS - 1 at most of a tenant's on a
 * trunk, of which none is taken from another tenant.
 *
 * What is sent to groups has a credit of each tenant's own on each trunk, and doesn't wait: without credit it is lost.
 */
#ifndef SLUICE_STREAM_H
#define SLUICE_STREAM_H

#include "../node.h"

enum {
    STREAM_WINDOW = 1 << 17, /* bytes of frames */
    STREAM_SLOTS = 256,      /* of a tenant's, on a trunk */
    STREAM_GROUPS = 0        /* the slot of what is sent to groups */
};

/* What names a stream between the two routers. */
static inline uint32_t stream_id(uint32_t tenant, uint32_t slot)
{
    return tenant * STREAM_SLOTS + slot;
}

/* On the wire, against the direction of the datagrams; little-endian. bytes 0: a sign of life. */
struct grant_frame {
    uint32_t stream;
    uint32_t bytes;
};

_Static_assert(sizeof(struct grant_frame) == 8, "the wire's layout");

struct stream {
    struct trunk *trunk;
    uint32_t id;
    uint8_t gid[16];     /* where it leads */
    uint32_t users;      /* address handles */
    uint32_t credit;     /* bytes that may be sent */
    struct list waiting; /* QPs that find too little of it */
    struct list held;    /* in streams->held, while some may wait: that is time its tenant waits for its peer */
};

/* All of a trunk's. */
struct streams {
    struct stream **of[SLUICE_MAX_TENANTS];   /* by tenant: NULL, or STREAM_SLOTS of them or NULL */
    uint32_t groups[SLUICE_MAX_TENANTS];      /* by tenant: credit for what is sent to groups */
    struct list held;
};

void streams_init(struct streams *streams);
void streams_free(struct streams *streams);
/* A new connection: all credit is there again. */
void streams_begin(struct streams *streams);
/* A QP waits for credit of this one. */
void stream_hold(struct stream *stream);
/* Whoever waits looks again. */
void streams_let_go(struct streams *streams);
/* Whether anybody waits. */
bool streams_waited_for(struct streams *streams);
/* The peer has granted. Numbers that no peer says are passed over. */
void streams_granted(struct streams *streams, const struct grant_frame *grant);

/* The stream of a tenant (the first, by its number) to this GID, for one more user. -ENOMEM: there can't be one more. */
int stream_get(struct trunk *trunk, uint32_t tenant, const uint8_t gid[16], struct stream **out);
void stream_put(struct stream *stream);

#endif
