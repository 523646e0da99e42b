/* SPDX-License-Identifier: Apache-2.0 */
#include "shaper.h"

#include <stddef.h>
#include <string.h>

#include "clock.h"

/* A turn moves virtual time by its cost * VIRTUAL / weight, so that weights of 1 to 10,000 keep their precision. */
#define VIRTUAL 10000ull
/*
 * Virtual time is modulo 2^64, and moves by 10,000 a ns at most: who was away for
 * this long is put where the others are, long before the comparison turns.
 */
#define VIRTUAL_FORGOTTEN_NS (60 * NS_PER_SECOND)
/* One turn takes less: nobody who comes back is further ahead. */
#define VIRTUAL_AHEAD_NS 1000000ull
/* Engine time by which a flow that rested comes behind the others. */
#define FLOW_CREDIT_NS 50000ull
/* How much of a guarantee that wasn't wanted is kept for later, and of one that was while the device had no room. */
#define FLOOR_LAG_NS 2000000ull
#define FLOOR_HELD_NS NS_PER_SECOND
/* Bytes in a guarantee's turn, for its deadline. */
#define FLOOR_QUANTUM 65536u

static void update(struct entity *entity, enum flow flow);

static void set_wants(struct entity *entity, enum flow flow, bool wants)
{
    entity->wants[flow] = wants;
    if (!wants && flow < DIRECTIONS)
        bucket_rest(&entity->ceiling[flow], entity->shaper->now);
}

static uint64_t advance_now(struct shaper *shaper, uint64_t now)
{
    if (now > shaper->now)
        shaper->now = now;
    return shaper->now;
}

/* ---- when an entity may go --------------------------------------------- */

static inline void look_at(const struct bucket *bucket, enum sluice_limit limit, uint64_t *when, enum sluice_limit *by)
{
    if (bucket->rate && bucket_at(bucket) > *when) {
        *when = bucket_at(bucket);
        *by = limit;
    }
}

/* Returns the time; up to now: at once. */
static inline uint64_t may_go_at(const struct entity *entity, enum flow flow, enum sluice_limit *by)
{
    uint64_t when = entity->shaper->now;

    if (flow < DIRECTIONS)
        look_at(&entity->ceiling[flow], flow == FLOW_EGRESS ? SLUICE_LIMIT_EGRESS : SLUICE_LIMIT_INGRESS, &when, by);
    if (flow == FLOW_CONTROL)
        look_at(&entity->verbs, SLUICE_LIMIT_VERBS, &when, by);
    else if (flow >= DIRECTIONS || !entity->chores[flow])
        look_at(&entity->operations, SLUICE_LIMIT_OPERATIONS, &when, by);
    look_at(&entity->time, SLUICE_LIMIT_ENGINE, &when, by);
    return when;
}

/* ---- guarantees -------------------------------------------------------- */

static void floor_leave(struct entity *entity, enum flow flow)
{
    if (flow >= DIRECTIONS)
        return;
    struct floor *floor = &entity->floor[flow];

    list_remove(&floor->parked);
    heap_remove(floor->due ? &entity->shaper->due[flow] : &entity->shaper->waiting[flow], &floor->node);
    floor->due = false;
}

static void floor_enter(struct entity *entity, enum flow flow)
{
    if (flow >= DIRECTIONS || entity->floor[flow].bucket.rate == 0)
        return;
    struct floor *floor = &entity->floor[flow];
    struct shaper *shaper = entity->shaper;
    uint64_t oldest = shaper->now > floor->bucket.lag_ns ? shaper->now - floor->bucket.lag_ns : 0;

    if (floor->bucket.tat < oldest)
        floor->bucket.tat = oldest;
    heap_insert(&shaper->waiting[flow], &floor->node, floor->bucket.tat);
}

/* It is wanted from now on, or has been since it was held. */
static void floor_wanted(struct entity *entity, enum flow flow)
{
    if (flow >= DIRECTIONS)
        return;
    struct floor *floor = &entity->floor[flow];
    uint64_t held = floor->held_since && floor->held_since < entity->shaper->now ? entity->shaper->now - floor->held_since : 0;

    floor->bucket.lag_ns = FLOOR_LAG_NS + (held < FLOOR_HELD_NS ? held : FLOOR_HELD_NS);
    floor->held_since = 0;
}

static struct entity *closed_above(struct entity *entity, enum flow flow)
{
    for (struct entity *above = entity->parent; above && above->parent; above = above->parent)
        if (!heap_has(&above->node[flow]))
            return above;
    return NULL;
}

/* The most urgent guarantee that can be served, or NULL. */
static struct entity *most_urgent(struct shaper *shaper, enum flow flow, uint64_t *deadline)
{
    struct heap *waiting = &shaper->waiting[flow], *due = &shaper->due[flow];

    while (waiting->least && waiting->least->key <= shaper->now) {
        struct floor *floor = heap_entry(waiting->least, struct floor, node);
        uint64_t since = floor->node.key;

        heap_remove(waiting, &floor->node);
        heap_insert(due, &floor->node, since + floor->quantum_ns);
        floor->due = true;
    }
    while (due->least) {
        struct floor *floor = heap_entry(due->least, struct floor, node);
        struct entity *entity = (struct entity *)((char *)(floor - flow) - offsetof(struct entity, floor));
        struct entity *closed = closed_above(entity, flow);

        if (!closed) {
            *deadline = floor->node.key;
            return entity;
        }
        floor_leave(entity, flow);
        list_append(&closed->parked[flow], &floor->parked);
    }
    return NULL;
}

/* ---- weights ----------------------------------------------------------- */

/* Which virtual time a flow goes by: one for all, as they share the engine; or each its own, as they have a wire. */
static uint32_t time_of(const struct shaper *shaper, enum flow flow)
{
    return shaper->wire ? (uint32_t)flow : 0;
}

static bool rests(const struct entity *entity, uint32_t time)
{
    for (uint32_t flow = 0; flow < FLOWS; flow++)
        if (time_of(entity->shaper, flow) == time && heap_has(&entity->node[flow]))
            return false;
    return true;
}

static uint64_t virtual_cost(const struct entity *entity, uint64_t ns)
{
    return ns * VIRTUAL / entity->weight;
}

/* Who rested comes to where the others are, or nearly. */
static void catch_up(struct entity *entity, uint32_t time)
{
    uint64_t now = entity->shaper->now, clock = entity->parent->virtual_clock[time];
    uint64_t first = clock - virtual_cost(entity, SHAPER_CREDIT_NS);
    uint64_t last = clock + virtual_cost(entity, VIRTUAL_AHEAD_NS);
    uint64_t *mine = &entity->virtual_time[time];

    if (!rests(entity, time))
        return;
    if (now - entity->rests_since[time] > VIRTUAL_FORGOTTEN_NS || key_before(*mine, first))
        *mine = first;
    else if (key_before(last, *mine))
        *mine = last;
}

static void enter(struct entity *entity, enum flow flow)
{
    uint32_t time = time_of(entity->shaper, flow);

    catch_up(entity, time);
    heap_insert(&entity->parent->children[flow], &entity->node[flow], entity->virtual_time[time]);
    floor_wanted(entity, flow);
    floor_enter(entity, flow);
}

static void leave(struct entity *entity, enum flow flow)
{
    heap_remove(&entity->parent->children[flow], &entity->node[flow]);
    floor_leave(entity, flow);
    entity->rests_since[time_of(entity->shaper, flow)] = entity->shaper->now;
}

static void unpark(struct entity *entity, enum flow flow)
{
    if (flow >= DIRECTIONS)
        return;
    while (!list_empty(&entity->parked[flow])) {
        struct floor *floor = list_entry(list_take(&entity->parked[flow]), struct floor, parked);

        floor_enter((struct entity *)((char *)(floor - flow) - offsetof(struct entity, floor)), flow);
    }
}

/* Puts an entity where it belongs: away, behind a timer, or among those that may go. */
static void update(struct entity *entity, enum flow flow)
{
    struct shaper *shaper = entity->shaper;

    if (!entity->parent)
        return;
    enum sluice_limit by = SLUICE_LIMIT_EGRESS;
    uint64_t when = entity->wants[flow] ? may_go_at(entity, flow, &by) : 0;
    bool closed = when > shaper->now, goes = entity->wants[flow] && !closed;

    /* It is where it belongs, as after nearly every charge. */
    if (!closed && entity->closed_since[flow] == 0 && goes == heap_has(&entity->node[flow]))
        return;
    if (entity->closed_since[flow]) {
        entity->throttled_ns[entity->closed_by[flow]] += shaper->now - entity->closed_since[flow];
        entity->closed_since[flow] = 0;
    }
    if (closed) {
        entity->closed_by[flow] = by;
        entity->closed_since[flow] = shaper->now;
        if (entity->timer[flow].when != when || !entity->timer[flow].place)
            timer_set(shaper->timers, &entity->timer[flow], when);
    } else {
        timer_cancel(shaper->timers, &entity->timer[flow]);
    }
    if (goes == heap_has(&entity->node[flow]))
        return;
    if (goes) {
        enter(entity, flow);
        unpark(entity, flow);
    } else {
        leave(entity, flow);
    }
    struct entity *parent = entity->parent;
    bool wanted = parent->wants[flow];

    set_wants(parent, flow, parent->children[flow].least != NULL);
    if (parent->wants[flow] != wanted)
        update(parent, flow);
}

static void update_all(struct entity *entity)
{
    for (uint32_t flow = 0; flow < FLOWS; flow++)
        update(entity, flow);
}

/* Sets what update() looks at, whatever else the timer stands for. */
static void on_timer(struct timer *timer, uint32_t flow)
{
    struct entity *entity = (struct entity *)((char *)(timer - flow) - offsetof(struct entity, timer));

    advance_now(entity->shaper, timer->when);
    update(entity, flow);
}

static void on_egress(struct timer *timer)
{
    on_timer(timer, FLOW_EGRESS);
}

static void on_ingress(struct timer *timer)
{
    on_timer(timer, FLOW_INGRESS);
}

static void on_free(struct timer *timer)
{
    on_timer(timer, FLOW_FREE);
}

static void on_control(struct timer *timer)
{
    on_timer(timer, FLOW_CONTROL);
}

/* ---- entities ---------------------------------------------------------- */

int entity_init(struct entity *entity, struct shaper *shaper, struct entity *parent, uint64_t *throttled_ns)
{
    static void (*const fire[FLOWS])(struct timer *) = {on_egress, on_ingress, on_free, on_control};

    memset(entity, 0, sizeof(*entity));
    entity->shaper = shaper;
    entity->parent = entity == shaper->device ? NULL : parent ? parent : shaper->device;
    entity->throttled_ns = throttled_ns;
    entity->weight = SLUICE_WEIGHT_DEFAULT;
    for (uint32_t flow = 0; flow < FLOWS; flow++)
        entity->rests_since[flow] = shaper->now;
    for (uint32_t direction = 0; direction < DIRECTIONS; direction++) {
        list_init(&entity->parked[direction]);
        list_init(&entity->floor[direction].parked);
        bucket_set(&entity->ceiling[direction], BUCKET_BYTES, 0, 0, shaper->now);
    }
    for (uint32_t flow = 0; flow < FLOWS; flow++) {
        int error = timers_reserve(shaper->timers);

        if (error) {
            while (flow--)
                timers_release(shaper->timers);
            return error;
        }
        entity->timer[flow].fire = fire[flow];
    }
    return 0;
}

void entity_free(struct entity *entity)
{
    for (uint32_t flow = 0; flow < FLOWS; flow++) {
        entity_set_work(entity, flow, false);
        timer_cancel(entity->shaper->timers, &entity->timer[flow]);
        timers_release(entity->shaper->timers);
    }
}

void entity_set_work(struct entity *leaf, enum flow flow, bool has_work)
{
    if (leaf->wants[flow] == has_work)
        return;
    set_wants(leaf, flow, has_work);
    leaf->shaper->working += has_work ? 1 : -1u;
    update(leaf, flow);
}

void entity_was_held(struct entity *leaf, enum flow flow, uint64_t since)
{
    if (flow >= DIRECTIONS)
        return;
    for (struct entity *entity = leaf; entity->parent && !heap_has(&entity->node[flow]); entity = entity->parent)
        entity->floor[flow].held_since = since;
}

void entity_set_chores(struct entity *leaf, uint32_t direction, bool has_chores)
{
    if (leaf->chores[direction] == has_chores)
        return;
    leaf->chores[direction] = has_chores;
    if (leaf->wants[direction] && leaf->operations.rate)
        update(leaf, direction);
}

uint32_t entity_working(const struct entity *leaf)
{
    uint32_t count = 0;

    for (uint32_t flow = 0; flow < FLOWS; flow++)
        count += leaf->wants[flow];
    return count;
}

void entity_set_parent(struct entity *entity, struct entity *parent)
{
    bool wants[FLOWS];

    parent = parent ? parent : entity->shaper->device;
    if (entity->parent == parent)
        return;
    memcpy(wants, entity->wants, sizeof(wants));
    for (uint32_t flow = 0; flow < FLOWS; flow++)
        entity_set_work(entity, flow, false);
    entity->parent = parent;
    memcpy(entity->virtual_time, parent->virtual_clock, sizeof(entity->virtual_time));
    for (uint32_t flow = 0; flow < FLOWS; flow++)
        entity_set_work(entity, flow, wants[flow]);
}

static void set_floor(struct entity *entity, enum flow flow, uint64_t rate)
{
    struct floor *floor = &entity->floor[flow];
    struct shaper *shaper = entity->shaper;

    bucket_set(&floor->bucket, BUCKET_BYTES, rate, 0, shaper->now);
    floor->time_cost = 0;
    if (rate == 0)
        return;
    floor->bucket.lag_ns = FLOOR_LAG_NS;
    floor->held_since = 0;
    floor->bucket.peaked = false;
    floor->time_cost = (uint64_t)(((unsigned __int128)shaper->capacity << 16) / rate);
    floor->quantum_ns = (uint64_t)((unsigned __int128)floor->bucket.ns_per_unit * FLOOR_QUANTUM >> 32);
}

void entity_set_share(struct entity *entity, const struct sluice_share *share)
{
    bool went[FLOWS];

    /* Away and back, as weights and the device may have changed what its place stands for. */
    for (uint32_t flow = 0; flow < FLOWS; flow++) {
        went[flow] = heap_has(&entity->node[flow]);
        if (went[flow])
            leave(entity, flow);
    }
    entity->weight = share->weight ? (uint32_t)share->weight : SLUICE_WEIGHT_DEFAULT;
    for (uint32_t direction = 0; direction < DIRECTIONS; direction++) {
        bucket_set(&entity->ceiling[direction], BUCKET_BYTES, share->max_bps[direction], share->burst[direction],
                   entity->shaper->now);
        set_floor(entity, direction, share->min_bps[direction]);
    }
    for (uint32_t flow = 0; flow < FLOWS; flow++)
        if (went[flow])
            enter(entity, flow);
    update_all(entity);
}

void entity_set_limits(struct entity *entity, uint64_t operations, uint64_t verbs, uint64_t engine_ns)
{
    uint64_t now = entity->shaper->now;

    bucket_set(&entity->operations, BUCKET_OPERATIONS, operations, 0, now);
    bucket_set(&entity->verbs, BUCKET_OPERATIONS, verbs, 0, now);
    bucket_set(&entity->time, BUCKET_TIME, engine_ns, 0, now);
    update_all(entity);
}

int shaper_init(struct shaper *shaper, struct entity *device, struct timers *timers, uint64_t now)
{
    memset(shaper, 0, sizeof(*shaper));
    shaper->timers = timers;
    shaper->device = device;
    shaper->now = now;
    shaper->capacity = 100 * NS_PER_SECOND;
    return entity_init(device, shaper, NULL, shaper->device_throttled_ns);
}

void shaper_set_device(struct shaper *shaper, uint64_t capacity, uint64_t whole, bool wire)
{
    shaper->capacity = whole;
    shaper->wire = wire;
    for (uint32_t direction = 0; direction < DIRECTIONS; direction++)
        bucket_set(&shaper->device->ceiling[direction], BUCKET_BYTES, wire ? capacity : 0, 0, shaper->now);
}

/* ---- decisions --------------------------------------------------------- */

/* The device's own ceiling stops everybody of a direction: a timer looks again. */
static bool device_ready(struct shaper *shaper, enum flow flow)
{
    struct entity *device = shaper->device;

    if (flow >= DIRECTIONS || bucket_ready(&device->ceiling[flow], shaper->now))
        return true;
    if (device->children[flow].least)
        timer_set(shaper->timers, &device->timer[flow], bucket_at(&device->ceiling[flow]));
    return false;
}

static struct entity *of_node(const struct heap_node *node, enum flow flow)
{
    return (struct entity *)((char *)(node - flow) - offsetof(struct entity, node));
}

static struct entity *first_child(struct entity *entity, enum flow flow)
{
    struct heap_node *least = entity->children[flow].least;
    uint64_t *clock = &entity->virtual_clock[time_of(entity->shaper, flow)];

    if (key_before(*clock, least->key))
        *clock = least->key;
    return of_node(least, flow);
}

static struct entity *leaf_below(struct entity *entity, enum flow flow)
{
    while (entity->children[flow].least)
        entity = first_child(entity, flow);
    return entity;
}

/* The flows in which somebody may go. */
static void look_at_flows(struct shaper *shaper, bool ready[FLOWS])
{
    for (uint32_t flow = 0; flow < FLOWS; flow++)
        ready[flow] = shaper->device->children[flow].least && device_ready(shaper, flow);
}

static bool next_due(struct shaper *shaper, const bool ready[FLOWS], struct turn *turn, uint64_t *earliest)
{
    struct entity *urgent = NULL;

    for (uint32_t flow = 0; flow < DIRECTIONS; flow++) {
        uint64_t deadline;
        struct entity *entity = ready[flow] ? most_urgent(shaper, flow, &deadline) : NULL;

        if (entity && (!urgent || deadline < *earliest)) {
            urgent = entity;
            *earliest = deadline;
            turn->flow = flow;
        }
    }
    if (!urgent)
        return false;
    turn->guaranteed = urgent;
    turn->leaf = leaf_below(urgent, turn->flow);
    return true;
}

bool shaper_next_due(struct shaper *shaper, uint64_t now, struct turn *turn, uint64_t *deadline)
{
    bool ready[FLOWS];

    advance_now(shaper, now);
    look_at_flows(shaper, ready);
    return next_due(shaper, ready, turn, deadline);
}

bool shaper_next(struct shaper *shaper, uint64_t now, struct turn *turn)
{
    struct entity *device = shaper->device;
    uint64_t least = 0, deadline;
    bool ready[FLOWS], found = false;

    advance_now(shaper, now);
    look_at_flows(shaper, ready);
    if (next_due(shaper, ready, turn, &deadline))
        return true;
    for (uint32_t i = 1; i <= FLOWS; i++) {
        uint32_t flow = (shaper->last + i) % FLOWS;
        uint64_t key = !ready[flow] ? 0 : shaper->wire ? shaper->used_ns[flow] : device->children[flow].least->key;

        if (!ready[flow] || (found && !key_before(key, least)))
            continue;
        least = key;
        turn->flow = flow;
        found = true;
    }
    if (!found)
        return false;
    shaper->last = turn->flow;
    turn->guaranteed = NULL;
    turn->leaf = leaf_below(device, turn->flow);
    return true;
}

struct entity *shaper_guess(const struct turn *turn)
{
    const struct heap_node *node = &turn->leaf->node[turn->flow];
    struct entity *entity = NULL;

    /* It left in its turn, and still points to where it was. */
    if (!heap_has(node))
        return NULL;
    /* Who goes by its weight is the least of its heap. The next one is just below; right is never alone. */
    const struct heap_node *next = node->right && key_before(node->right->key, node->left->key) ? node->right : node->left;

    for (; next; next = entity->children[turn->flow].least)
        entity = of_node(next, turn->flow);
    return entity;
}

/* Moves the virtual time of everyone from the leaf up to the child of top. */
static void charge_weights(struct entity *leaf, const struct entity *top, enum flow flow, uint64_t cost_ns)
{
    uint32_t time = time_of(leaf->shaper, flow);

    for (struct entity *entity = leaf; entity != top && entity->parent; entity = entity->parent) {
        entity->virtual_time[time] += virtual_cost(entity, cost_ns);
        for (uint32_t other = 0; other < FLOWS; other++)
            if (time_of(leaf->shaper, other) == time && heap_has(&entity->node[other]))
                heap_move(&entity->parent->children[other], &entity->node[other], entity->virtual_time[time]);
    }
}

/* Directions that have wires of their own share the engine evenly; one that rested saves nothing. */
static void charge_flow(struct shaper *shaper, enum flow flow, uint64_t ns)
{
    uint64_t most = 0;

    for (uint32_t other = 0; other < FLOWS; other++)
        most = shaper->used_ns[other] > most ? shaper->used_ns[other] : most;
    if (most > FLOW_CREDIT_NS && shaper->used_ns[flow] < most - FLOW_CREDIT_NS)
        shaper->used_ns[flow] = most - FLOW_CREDIT_NS;
    shaper->used_ns[flow] += ns;
}

static void charge_floor(struct entity *entity, enum flow flow, uint64_t bytes, uint64_t ns)
{
    struct floor *floor = &entity->floor[flow];
    unsigned __int128 cost = (unsigned __int128)floor->bucket.ns_per_unit * bytes;
    unsigned __int128 time = (unsigned __int128)floor->time_cost * ns << 16;
    bool served = heap_has(&floor->node);

    floor_leave(entity, flow);
    bucket_take_cost(&floor->bucket, cost > time ? cost : time, false, entity->shaper->now);
    if (served)
        floor_enter(entity, flow);
}

/* The buckets of a leaf that all its flows share. */
static void charge_leaf(struct entity *leaf, uint64_t operations, uint64_t ns)
{
    uint64_t now = leaf->shaper->now;

    if (leaf->operations.rate == 0 && leaf->time.rate == 0)
        return;
    bool more = entity_working(leaf) != 0;

    bucket_take(&leaf->operations, operations, more, now);
    bucket_take(&leaf->time, ns, more, now);
    if (bucket_ready(&leaf->operations, now) && bucket_ready(&leaf->time, now))
        return;
    for (uint32_t flow = 0; flow < FLOWS; flow++)
        if (leaf->wants[flow])
            update(leaf, flow);
}

/* more: others want more of them than is told by what it has to do itself. */
static void charge_ceilings(struct entity *entity, uint32_t direction, uint64_t bytes, bool more)
{
    for (; entity; entity = entity->parent) {
        if (entity->ceiling[direction].rate == 0)
            continue;
        bucket_take(&entity->ceiling[direction], bytes, more || entity->wants[direction], entity->shaper->now);
        /* Else it is where it belongs: what is taken opens nothing. */
        if (!bucket_ready(&entity->ceiling[direction], entity->shaper->now))
            update(entity, direction);
    }
}

void shaper_charge(struct shaper *shaper, const struct turn *turn, uint64_t bytes, uint64_t operations, uint64_t ns,
                   uint64_t now)
{
    struct entity *leaf = turn->leaf;
    enum flow flow = turn->flow;
    uint64_t cost = ns;

    advance_now(shaper, now);
    if (shaper->wire && flow < DIRECTIONS) {
        uint64_t on_wire = (uint64_t)((unsigned __int128)shaper->device->ceiling[flow].ns_per_unit * bytes >> 32);

        cost = on_wire > ns ? on_wire : ns;
    }
    charge_weights(leaf, turn->guaranteed, flow, cost);
    if (shaper->wire)
        charge_flow(shaper, flow, ns);
    if (turn->guaranteed)
        charge_floor(turn->guaranteed, flow, bytes, ns);
    if (flow == FLOW_CONTROL) {
        bucket_take(&leaf->verbs, operations, leaf->wants[flow], shaper->now);
        if (leaf->verbs.rate)
            update(leaf, flow);
        operations = 0;
    }
    if (flow < DIRECTIONS)
        charge_ceilings(leaf, flow, bytes, false);
    charge_leaf(leaf, operations, ns);
}

void entity_charge_time(struct entity *leaf, uint64_t ns, uint64_t now)
{
    advance_now(leaf->shaper, now);
    charge_weights(leaf, NULL, FLOW_CONTROL, ns);
    charge_leaf(leaf, 0, ns);
}

struct entity *entity_closed(struct entity *entity, uint32_t direction, uint64_t now)
{
    for (; entity; entity = entity->parent)
        if (!bucket_ready(&entity->ceiling[direction], now))
            return entity;
    return NULL;
}

struct entity *entity_due(struct entity *entity, uint32_t direction, uint64_t now)
{
    for (; entity; entity = entity->parent)
        if (entity->floor[direction].bucket.rate && entity->floor[direction].bucket.tat <= now)
            return entity;
    return NULL;
}

uint64_t entity_due_at(const struct entity *entity, const struct entity *top, uint32_t direction)
{
    uint64_t earliest = UINT64_MAX;

    for (; entity && entity != top; entity = entity->parent) {
        const struct bucket *floor = &entity->floor[direction].bucket;

        if (floor->rate && floor->tat < earliest)
            earliest = floor->tat;
    }
    return earliest;
}

bool entity_takes(struct entity *leaf, uint32_t direction, uint64_t now)
{
    struct shaper *shaper = leaf->shaper;
    uint32_t time = time_of(shaper, direction);
    uint64_t deadline;

    advance_now(shaper, now);
    if (entity_closed(leaf, direction, shaper->now))
        return false;
    if (!shaper->wire || entity_due(leaf, direction, shaper->now))
        return true;
    if (most_urgent(shaper, direction, &deadline))
        return false;
    for (struct entity *entity = leaf; entity->parent; entity = entity->parent) {
        const struct heap_node *first = entity->parent->children[direction].least;

        catch_up(entity, time);
        if (first && key_before(first->key, entity->virtual_time[time]))
            return false;
    }
    return true;
}

void entity_took(struct entity *leaf, uint32_t direction, uint64_t bytes, uint64_t now)
{
    struct shaper *shaper = leaf->shaper;

    advance_now(shaper, now);
    if (shaper->wire)
        charge_weights(leaf, entity_due(leaf, direction, shaper->now), direction,
                       (uint64_t)((unsigned __int128)shaper->device->ceiling[direction].ns_per_unit * bytes >> 32));
}

void entity_charge_bytes(struct entity *entity, uint32_t direction, uint64_t bytes, bool more, uint64_t now)
{
    advance_now(entity->shaper, now);
    struct entity *due = entity_due(entity, direction, entity->shaper->now);

    if (due && list_unlinked(&due->floor[direction].parked))
        charge_floor(due, direction, bytes, 0);
    else if (due)
        bucket_take(&due->floor[direction].bucket, bytes, false, entity->shaper->now);
    charge_ceilings(entity, direction, bytes, more);
}

bool entity_limited(const struct entity *entity, uint32_t direction)
{
    for (; entity; entity = entity->parent)
        if (entity->ceiling[direction].rate)
            return true;
    return false;
}

const struct bucket *entity_ceiling(const struct entity *entity, uint32_t direction)
{
    const struct bucket *least = NULL;

    for (; entity->parent; entity = entity->parent) {
        const struct bucket *ceiling = &entity->ceiling[direction];

        if (ceiling->rate && (!least || ceiling->rate < least->rate))
            least = ceiling;
    }
    return least;
}

uint32_t entity_chunk(const struct entity *entity, uint32_t direction)
{
    uint32_t chunk = BUCKET_BYTES_MOST;

    for (; entity; entity = entity->parent)
        if (entity->ceiling[direction].chunk < chunk)
            chunk = entity->ceiling[direction].chunk;
    return chunk;
}
