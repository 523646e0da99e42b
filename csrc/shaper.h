/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Who may go next on one device: the hierarchy device -> group -> tenant. (A tenant's QPs
 * take turns; that is tenant.c's. Which of several devices is next is device.c's.) What is
 * shared is the engine's time and, where the device has a rate of its own, its wire. Three
 * rules, in this order:
 *
 * 1. Ceilings. Each entity has a bucket for each direction, and a tenant buckets
 *    for operations, verbs and the engine's time. A turn is charged to the whole
 *    way up, and nobody has a turn while a bucket on the way is in debt. As such a
 *    bucket lets burst + rate * T through in every window T (bucket.h), so does
 *    the entity.
 *
 * 2. Guarantees. A tenant whose guarantee is due goes first, the one with the
 *    earliest deadline before others. This is the real-time criterion of HFSC
 *    (Stoica, Zhang, Ng, SIGCOMM 1997) with straight service curves. Its cost in a
 *    turn of b bytes and t ns is what moves its curve most: b at the guaranteed
 *    rate, or t at the share of the engine that the rate is of the capacity. So
 *    all guarantees together ask for sum(rate)/capacity <= 1 of the engine (the
 *    control plane refuses more), and earliest deadline first then meets every
 *    deadline (Liu and Layland 1973), late by at most one turn, which can't be
 *    interrupted. A costly message eats its own sender's guarantee.
 *
 * 3. Weights. Who isn't due shares by start-time fair queueing (Goyal, Vin, Cheng
 *    1996) at each level of the hierarchy: least virtual time first, and a turn
 *    moves it by cost / weight. For any two that always want to go, service per
 *    weight differs by at most one turn of each, whatever others do and however
 *    the capacity varies. The cost is the engine's time; where the device has a
 *    wire, whose directions are full each by itself, it is the wire's time if that
 *    is more (the dominant resource: Ghodsi et al. 2012), each direction has
 *    virtual times of its own, and directions share the engine evenly. What a
 *    guarantee paid for doesn't count here: only the rest is shared by weight. Who
 *    rested comes back at most SHAPER_CREDIT_NS behind the others, enough for a
 *    small message to go first, too little to matter.
 *
 * Work conserving: as long as someone has work whose buckets are all ready,
 * shaper_next finds someone. A decision costs O(log entities).
 *
 * Reads no clock and knows nothing of QPs: now is given, so that simulations run
 * this very code.
 */
#ifndef SLUICE_SHAPER_H
#define SLUICE_SHAPER_H

#include "bucket.h"
#include "engine.h"
#include "heap.h"
#include "list.h"
#include "timer.h"

#define SHAPER_CREDIT_NS 50000ull

/* Kinds of work, each with limits of its own. */
enum flow {
    FLOW_EGRESS,  /* SEND, WRITE, atomics: bytes leave */
    FLOW_INGRESS, /* READ: bytes arrive */
    DIRECTIONS,
    FLOW_FREE = DIRECTIONS, /* bytes that no rate limits (scope: wire) */
    FLOW_CONTROL, /* verbs that the engine carries out */
    FLOWS
};

/* A guarantee in one direction. */
struct floor {
    struct bucket bucket;    /* rate 0: none; tat: since when the next byte is due */
    uint64_t time_cost;      /* ns of the curve per ns of the engine, 16 fractional bits */
    uint64_t quantum_ns;     /* from due to the deadline */
    struct heap_node node;   /* in shaper->waiting or shaper->due */
    struct list parked;      /* due, but the group's ceiling is reached */
    uint64_t held_since;     /* entity_was_held; 0: it wasn't */
    bool due;
};

struct entity {
    struct shaper *shaper;
    struct entity *parent; /* NULL: the device itself */
    uint32_t weight;
    struct bucket ceiling[DIRECTIONS], operations, verbs, time;
    struct floor floor[DIRECTIONS];

    bool wants[FLOWS];             /* a leaf with work; an inner one whose children want */
    bool chores[DIRECTIONS];      /* a leaf: some of it is others' operations, which its own rate doesn't hold up */
    struct heap_node node[FLOWS];  /* in the parent's children: wants, and may */
    struct timer timer[FLOWS];     /* wants, and may again then */
    enum sluice_limit closed_by[FLOWS];
    uint64_t closed_since[FLOWS];  /* 0: isn't closed */
    uint64_t *throttled_ns;        /* by enum sluice_limit */

    /* By time_of() the flow. */
    uint64_t virtual_time[FLOWS];
    uint64_t rests_since[FLOWS];   /* ns; meaningful while in none of these heaps of the parent's */
    uint64_t virtual_clock[FLOWS]; /* of the children */

    struct heap children[FLOWS];
    struct list parked[DIRECTIONS]; /* floors of tenants below, while this is closed */
};

struct shaper {
    struct timers *timers;
    uint64_t now; /* never runs backwards */
    uint64_t capacity; /* bits per second, each direction, of all devices together; what guarantees are a share of */
    bool wire;    /* the device has a ceiling of its own */
    struct entity *device;
    struct heap waiting[DIRECTIONS], due[DIRECTIONS]; /* floors of those that want and may */
    uint64_t used_ns[FLOWS]; /* of the engine, where each flow has a wire of its own */
    uint32_t working; /* kinds of work that leaves have */
    uint32_t last;    /* flow of the last turn: where two are level it is the other's */
    uint64_t device_throttled_ns[SLUICE_LIMITS];
};

/* A decision: whose turn, and on which account. */
struct turn {
    struct entity *leaf;
    struct entity *guaranteed; /* whose guarantee pays: leaf, its group, or NULL */
    enum flow flow;
};

/* device: the top of the hierarchy, which this makes. -ENOMEM. */
int shaper_init(struct shaper *shaper, struct entity *device, struct timers *timers, uint64_t now);
/*
 * capacity: the device's, bits per second, not 0. wire: also limit the sum to it. whole: what the engine carries, for
 * all devices together. Guarantees must be set again.
 */
void shaper_set_device(struct shaper *shaper, uint64_t capacity, uint64_t whole, bool wire);

/* throttled_ns: room for SLUICE_LIMITS words of counters. parent NULL: the device. -ENOMEM. */
int entity_init(struct entity *entity, struct shaper *shaper, struct entity *parent, uint64_t *throttled_ns);
/* It has no children and no work. */
void entity_free(struct entity *entity);
void entity_set_parent(struct entity *entity, struct entity *parent);
/* Rates as in struct sluice_share. Takes effect at once. */
void entity_set_share(struct entity *entity, const struct sluice_share *share);
/* Per second; 0: no limit. engine_ns: nanoseconds of the engine's time. */
void entity_set_limits(struct entity *entity, uint64_t operations, uint64_t verbs, uint64_t engine_ns);

/* Whether a leaf has work of this kind. */
void entity_set_work(struct entity *leaf, enum flow flow, bool has_work);
/*
 * All the while since then a leaf that has no work had some, which the device had no room for: what its guarantee was due
 * meanwhile is due when the work is set.
 */
void entity_was_held(struct entity *leaf, enum flow flow, uint64_t since);
/* Whether some of it is others' operations. */
void entity_set_chores(struct entity *leaf, uint32_t direction, bool has_chores);
/* Kinds of work that a leaf has. */
uint32_t entity_working(const struct entity *leaf);

/* False: nobody may go now; timers say when to ask again. */
bool shaper_next(struct shaper *shaper, uint64_t now, struct turn *turn);
/* Only on account of a guarantee that is due: the most urgent one. *deadline: ns. */
bool shaper_next_due(struct shaper *shaper, uint64_t now, struct turn *turn, uint64_t *deadline);
/* Who is likely to go after the turn; a guess, only to have its state in a cache by then. NULL: the same, or nobody. */
struct entity *shaper_guess(const struct turn *turn);
/* What the turn took, ended now. */
void shaper_charge(struct shaper *shaper, const struct turn *turn, uint64_t bytes, uint64_t operations, uint64_t ns,
                   uint64_t now);
/* The engine's time spent for a leaf outside of its turns. */
void entity_charge_time(struct entity *leaf, uint64_t ns, uint64_t now);

/*
 * The other end of a message: the direction is the other one. Returns who on the
 * way up is in debt, or NULL.
 */
struct entity *entity_closed(struct entity *entity, uint32_t direction, uint64_t now);
/* Whose guarantee is due on the way up: the nearest one's, or NULL. */
struct entity *entity_due(struct entity *entity, uint32_t direction, uint64_t now);
/* Since or from when (ns) a guarantee on the way up is due, before top; UINT64_MAX: there is none. */
uint64_t entity_due_at(const struct entity *entity, const struct entity *top, uint32_t direction);
/*
 * What comes unasked, and is lost where it isn't taken at once, in a direction that is a wire: whether the leaf may take
 * it now, before those who wait for a turn. What it took of the wire is also charged by entity_charge_bytes.
 */
bool entity_takes(struct entity *leaf, uint32_t direction, uint64_t now);
void entity_took(struct entity *leaf, uint32_t direction, uint64_t bytes, uint64_t now);
/* A guarantee that is due pays for it as well. more: whoever sent, or reads, goes on to (bucket.h). */
void entity_charge_bytes(struct entity *entity, uint32_t direction, uint64_t bytes, bool more, uint64_t now);

/* Whether any ceiling on the way up limits this direction, and the least chunk. */
bool entity_limited(const struct entity *entity, uint32_t direction);
uint32_t entity_chunk(const struct entity *entity, uint32_t direction);
/* The lowest ceiling on the way up, the device's own left out. NULL: there is none. */
const struct bucket *entity_ceiling(const struct entity *entity, uint32_t direction);

#endif
