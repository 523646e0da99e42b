/* SPDX-License-Identifier: Apache-2.0 */
#include "lane.h"

#include <stddef.h>

/* A turn of weight 100 moves its tenant by this; weights go up to 10,000. */
#define LANE_TURN 1000000ull

static void let_one_go(struct lane *lane)
{
    if (!lane->heads.least)
        return;
    struct claim *claim = heap_entry(lane->heads.least, struct claim, node);

    lane->clock = claim->node.key;
    claim_cancel(claim);
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
        let_one_go(lane);
    schedule(lane, now + LANE_PATIENCE_NS);
}

int lane_init(struct lane *lane, struct timers *timers, const struct bucket *bucket,
              void (*let_go)(struct claim *claim), uint64_t (*now)(const struct lane *lane))
{
    *lane = (struct lane){.timers = timers, .bucket = bucket, .let_go = let_go, .now = now};
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
    heap_insert(&lane->heads, &claim->node, lane->clock + LANE_TURN / weight);
    if (!lane->timer.place)
        schedule(lane, 0);
}

void claim_cancel(struct claim *claim)
{
    struct lane *lane = claim->lane;

    if (!lane)
        return;
    claim->lane = NULL;
    if (heap_has(&claim->node)) {
        uint64_t key = claim->node.key;

        heap_remove(&lane->heads, &claim->node);
        if (!list_empty(&claim->line)) {
            struct claim *next = list_entry(claim->line.next, struct claim, line);

            /* Takes this one's place, in the lane and among its tenant's. */
            heap_insert(&lane->heads, &next->node, key + LANE_TURN / next->weight);
            list_append(&claim->tenant, &next->tenant);
        }
        list_remove(&claim->tenant);
    }
    list_remove(&claim->line);
}

void lane_charged(struct lane *lane)
{
    if (lane->heads.least)
        schedule(lane, 0);
}

void lane_open(struct lane *lane)
{
    while (lane->heads.least)
        let_one_go(lane);
}
