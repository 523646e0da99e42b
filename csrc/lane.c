/* SPDX-License-Identifier: Apache-2.0 */
#include "lane.h"

#include <stddef.h>

/* A turn of weight 100 moves its tenant by this; weights go up to 10,000. */
#define LANE_TURN 1000000ull

/* Guarantees found to be due later than they were, at a time: of many that share one, each says so by itself. */
enum { LANE_LOOKS = 16 };

/* It became the first of its tenant's. */
static void enter(struct lane *lane, struct claim *claim, uint64_t key)
{
    heap_insert(&lane->heads, &claim->node, key);
    for (uint32_t side = 0; side < LANE_SIDES; side++) {
        uint64_t due = lane->due_at(claim, side);

        if (due != LANE_NEVER)
            heap_insert(&lane->guaranteed[side], &claim->guaranteed[side], due);
    }
}

static void leave(struct lane *lane, struct claim *claim)
{
    heap_remove(&lane->heads, &claim->node);
    for (uint32_t side = 0; side < LANE_SIDES; side++)
        heap_remove(&lane->guaranteed[side], &claim->guaranteed[side]);
}

/* Whose guarantee is due, or NULL. */
static struct claim *most_urgent(struct lane *lane, enum lane_side side, uint64_t now)
{
    struct heap *heap = &lane->guaranteed[side];

    for (uint32_t i = 0; i < LANE_LOOKS && heap->least && heap->least->key <= now; i++) {
        struct heap_node *node = heap->least;
        struct claim *claim = (struct claim *)((char *)(node - side) - offsetof(struct claim, guaranteed));
        uint64_t due = lane->due_at(claim, side);

        if (due <= now)
            return claim;
        if (due == LANE_NEVER)
            heap_remove(heap, node);
        else
            heap_move(heap, node, due);
    }
    return NULL;
}

/* Takes it out; its tenant's next comes to the place behind, or to its own where a guarantee paid. */
static void take_out(struct claim *claim, bool paid)
{
    struct lane *lane = claim->lane;

    claim->lane = NULL;
    if (heap_has(&claim->node)) {
        uint64_t key = claim->node.key;

        leave(lane, claim);
        if (!list_empty(&claim->line)) {
            struct claim *next = list_entry(claim->line.next, struct claim, line);

            enter(lane, next, paid ? key : key + LANE_TURN / next->weight);
            list_append(&claim->tenant, &next->tenant);
        }
        list_remove(&claim->tenant);
    }
    list_remove(&claim->line);
}

static void let_one_go(struct lane *lane, uint64_t now)
{
    if (!lane->heads.least)
        return;
    struct claim *claim = NULL;

    for (uint32_t side = 0; side < LANE_SIDES && !claim; side++)
        claim = most_urgent(lane, side, now);
    bool paid = claim != NULL;

    if (!paid) {
        claim = heap_entry(lane->heads.least, struct claim, node);
        lane->clock = claim->node.key;
    }
    take_out(claim, paid);
    claim->pass = lane;
    lane->let_go(claim);
}

static void schedule(struct lane *lane, uint64_t earliest)
{
    uint64_t ready = bucket_at(lane->bucket);

    if (lane->heads.least)
        timer_set(lane->timers, &lane->timer, ready > earliest ? ready : earliest);
    else
        timer_cancel(lane->timers, &lane->timer);
}

static void on_timer(struct timer *timer)
{
    struct lane *lane = list_entry(timer, struct lane, timer);
    uint64_t now = lane->now(lane);

    if (bucket_ready(lane->bucket, now))
        let_one_go(lane, now);
    schedule(lane, now + LANE_PATIENCE_NS);
}

int lane_init(struct lane *lane, struct timers *timers, const struct bucket *bucket,
              void (*let_go)(struct claim *claim), uint64_t (*now)(const struct lane *lane), lane_due_at *due_at)
{
    *lane = (struct lane){.timers = timers, .bucket = bucket, .let_go = let_go, .now = now, .due_at = due_at};
    lane->timer.fire = on_timer;
    return timers_reserve(timers);
}

void lane_free(struct lane *lane)
{
    lane_open(lane);
    timer_cancel(lane->timers, &lane->timer);
    timers_release(lane->timers);
}

void claim_init(struct claim *claim)
{
    *claim = (struct claim){.weight = 1};
    list_init(&claim->line);
    list_init(&claim->tenant);
}

void claim_wait(struct claim *claim, struct lane *lane, struct list *firsts, uint32_t weight)
{
    claim->lane = lane;
    claim->pass = NULL;
    claim->weight = weight;
    for (struct list *link = firsts->next; link != firsts; link = link->next) {
        struct claim *first = list_entry(link, struct claim, tenant);

        if (first->lane == lane) {
            list_append(&first->line, &claim->line);
            return;
        }
    }
    list_append(firsts, &claim->tenant);
    enter(lane, claim, lane->clock + LANE_TURN / weight);
    if (!lane->timer.place)
        schedule(lane, 0);
}

void claim_cancel(struct claim *claim)
{
    if (claim->lane)
        take_out(claim, false);
}

void lane_charged(struct lane *lane)
{
    if (lane->heads.least)
        schedule(lane, 0);
}

void lane_open(struct lane *lane)
{
    while (lane->heads.least)
        let_one_go(lane, lane->now(lane));
}
