/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The queue before the other end's ceiling: QPs of any tenant whose next bytes
 * would go to (or be read from) somebody whose bucket is in debt. Incast waits
 * here, each tenant in its own line, so that one with many QPs gets no more than
 * one with a single QP. Who waits holds nothing: the sender's other QPs go on, and
 * so do all other tenants.
 *
 * Guarantees come first, as in shaper.h: the receiver's that is due longest, as the
 * ceiling is its side's; then the sender's. The rest goes by the senders' weights.
 *
 * One is let go at a time, and another LANE_PATIENCE_NS later where the first has
 * not taken what the bucket earned: so a thousand that wait cost no more than one,
 * and one that is stopped elsewhere holds up nobody for long.
 */
#ifndef SLUICE_LANE_H
#define SLUICE_LANE_H

#include "bucket.h"
#include "heap.h"
#include "list.h"
#include "timer.h"

#define LANE_PATIENCE_NS 20000ull

/* Whose guarantee a claim may go by. */
enum lane_side { LANE_RECEIVER, LANE_SENDER, LANE_SIDES };

/* What lane_due_at says of a side without a guarantee. */
#define LANE_NEVER UINT64_MAX

struct claim;

/* When (ns) a guarantee is due by which a claim that waits may go; up to now: it is. */
typedef uint64_t lane_due_at(const struct claim *claim, enum lane_side side);

struct lane {
    struct heap heads;   /* the first claim of each tenant that waits */
    struct heap guaranteed[LANE_SIDES]; /* those of them with a guarantee, by when it was due last they were asked */
    uint64_t clock;      /* virtual time: key of the last one let go */
    struct timer timer;
    struct timers *timers;
    const struct bucket *bucket;
    void (*let_go)(struct claim *claim);
    uint64_t (*now)(const struct lane *lane);
    lane_due_at *due_at;
};

/* A QP's place in a lane. */
struct claim {
    struct lane *lane;     /* waits there */
    struct lane *pass;     /* was let go from there and may pass it once */
    struct heap_node node; /* set for the first of its tenant's line */
    struct heap_node guaranteed[LANE_SIDES];
    struct list line;      /* ring of the tenant's claims here */
    struct list tenant;    /* of a first one: in the list of its tenant's firsts */
    uint32_t weight;
};

/* -ENOMEM. */
int lane_init(struct lane *lane, struct timers *timers, const struct bucket *bucket,
              void (*let_go)(struct claim *claim), uint64_t (*now)(const struct lane *lane), lane_due_at *due_at);
void lane_free(struct lane *lane);

void claim_init(struct claim *claim);
/* firsts: the list of the tenant's first claims. */
void claim_wait(struct claim *claim, struct lane *lane, struct list *firsts, uint32_t weight);
/* Harmless where it doesn't wait. */
void claim_cancel(struct claim *claim);

/* Whether a claim must wait: others were here before it, and it was not let go. */
static inline bool lane_blocked(const struct lane *lane, const struct claim *claim)
{
    return lane->heads.least && claim->pass != lane;
}

/* The bucket was charged: who waits is let go when it has earned that. */
void lane_charged(struct lane *lane);
/* All may ask again: the ceiling was changed. */
void lane_open(struct lane *lane);

#endif
