/* SPDX-License-Identifier: Apache-2.0 */
/* Who waits for the ceiling at the other end: in turn by tenant, by guarantees and weight, and without holding anybody up. */
#include "lane.h"

#include <stddef.h>

#include "check.h"
#include "clock.h"

enum { TENANTS = 3, QPS = 40, CHUNK = 1000 };

struct waiter {
    struct claim claim;
    int tenant;
    bool stuck; /* does nothing with what it is let go for */
};

static uint64_t now;
static struct bucket bucket;
static struct timers timers;
static struct lane lane;
static struct list firsts[TENANTS];
static uint32_t weights[TENANTS];
static struct bucket floors[TENANTS][LANE_SIDES]; /* of whom each tenant sends to, and of its own sending */
static struct waiter waiters[TENANTS][QPS];
static uint64_t served[TENANTS], let_go_count;
static bool again; /* who was served waits again */

static uint64_t lane_now(const struct lane *of)
{
    (void)of;
    return now;
}

static uint64_t due_at(const struct claim *claim, enum lane_side side)
{
    const struct waiter *waiter = (const struct waiter *)((const char *)claim - offsetof(struct waiter, claim));
    const struct bucket *floor = &floors[waiter->tenant][side];

    return floor->rate ? floor->tat : LANE_NEVER;
}

static void guarantee(int tenant, enum lane_side side, uint64_t bytes_per_second)
{
    bucket_set(&floors[tenant][side], BUCKET_BYTES, bytes_per_second * 8, 10 * CHUNK, now);
}

static void wait(struct waiter *waiter)
{
    claim_wait(&waiter->claim, &lane, &firsts[waiter->tenant], weights[waiter->tenant]);
}

/* What a QP does when its turn comes. */
static void let_go(struct claim *claim)
{
    struct waiter *waiter = (struct waiter *)((char *)claim - offsetof(struct waiter, claim));

    let_go_count++;
    CHECK(!lane_blocked(&lane, claim));
    if (waiter->stuck)
        return;
    claim->pass = NULL;
    for (uint32_t side = 0; side < LANE_SIDES; side++)
        if (bucket_ready(&floors[waiter->tenant][side], now))
            bucket_take(&floors[waiter->tenant][side], CHUNK, true, now);
    served[waiter->tenant] += CHUNK;
    bucket_take(&bucket, CHUNK, true, now);
    lane_charged(&lane);
    if (again)
        wait(waiter);
}

static void start(void)
{
    now = NS_PER_SECOND;
    bucket_set(&bucket, BUCKET_BYTES, 80000000, 10 * CHUNK, now); /* 10 bytes a us */
    CHECK(lane_init(&lane, &timers, &bucket, let_go, lane_now, due_at) == 0);
    let_go_count = 0;
    again = true;
    for (int tenant = 0; tenant < TENANTS; tenant++) {
        list_init(&firsts[tenant]);
        weights[tenant] = 100;
        served[tenant] = 0;
        for (uint32_t side = 0; side < LANE_SIDES; side++)
            guarantee(tenant, side, 0);
        for (int qp = 0; qp < QPS; qp++) {
            waiters[tenant][qp] = (struct waiter){.tenant = tenant};
            claim_init(&waiters[tenant][qp].claim);
        }
    }
    bucket_take(&bucket, 20 * CHUNK, true, now);
}

static void run(uint64_t ns)
{
    for (uint64_t end = now + ns; now < end; now = timers_next(&timers) < end ? timers_next(&timers) : end)
        timers_run(&timers, now);
}

static void finish(void)
{
    again = false;
    lane_free(&lane);
    for (int tenant = 0; tenant < TENANTS; tenant++)
        CHECK(list_empty(&firsts[tenant]));
}

static bool near(uint64_t value, uint64_t expected)
{
    return value * 100 >= expected * 97 && value * 100 <= expected * 103;
}

static void many_qps_get_no_more_than_one(void)
{
    start();
    for (int qp = 0; qp < QPS; qp++)
        wait(&waiters[0][qp]);
    wait(&waiters[1][0]);
    run(NS_PER_SECOND);
    CHECK(near(served[0], 5000000) && near(served[1], 5000000));
    finish();
}

static void weights_count(void)
{
    start();
    weights[1] = 300;
    wait(&waiters[0][0]);
    wait(&waiters[0][1]);
    wait(&waiters[1][0]);
    wait(&waiters[1][1]);
    run(NS_PER_SECOND);
    CHECK(near(served[0], 2500000) && near(served[1], 7500000));
    finish();
}

/* A guarantee at either end comes before the greatest weight, however many QPs that has; the rest is shared by weight. */
static void guarantee_comes_first(enum lane_side side)
{
    start();
    weights[0] = 10000;
    guarantee(1, side, 6000000);
    for (int qp = 0; qp < QPS; qp++)
        wait(&waiters[0][qp]);
    wait(&waiters[1][0]);
    wait(&waiters[2][0]);
    run(NS_PER_SECOND);
    CHECK(near(served[1], 6000000 + 4000000 / 102) && near(served[0], 4000000ull * 100 / 102));
    CHECK(served[2] * 102 > 4000000 * 9 / 10);
    finish();
}

static void guarantees_come_first(void)
{
    guarantee_comes_first(LANE_RECEIVER);
    guarantee_comes_first(LANE_SENDER);
}

/* Whatever senders are promised elsewhere, what is promised at the ceiling's side is kept. */
static void receivers_come_before_senders(void)
{
    start();
    guarantee(0, LANE_SENDER, 9000000);
    guarantee(1, LANE_RECEIVER, 6000000);
    wait(&waiters[0][0]);
    wait(&waiters[1][0]);
    wait(&waiters[2][0]);
    run(NS_PER_SECOND);
    CHECK(near(served[0], 4000000) && near(served[1], 6000000));
    finish();
}

/* One that is stopped elsewhere costs the others LANE_PATIENCE_NS, not its own wait. */
static void who_is_stuck_holds_up_nobody(void)
{
    start();
    waiters[0][0].stuck = true;
    wait(&waiters[0][0]);
    wait(&waiters[1][0]);
    run(NS_PER_SECOND);
    CHECK(near(served[1], 10000000));
    finish();
}

static void newcomers_queue_behind(void)
{
    start();
    wait(&waiters[0][0]);
    CHECK(lane_blocked(&lane, &waiters[1][0].claim));
    claim_cancel(&waiters[0][0].claim);
    CHECK(!lane_blocked(&lane, &waiters[1][0].claim));
    finish();
}

/* The first of a tenant's line goes: the next one takes its place. */
static void leaving_from_anywhere(void)
{
    start();
    for (int qp = 0; qp < QPS; qp++)
        wait(&waiters[0][qp]);
    for (int qp = 0; qp < QPS; qp += 3)
        claim_cancel(&waiters[0][qp].claim);
    again = false;
    run(NS_PER_SECOND);
    CHECK(served[0] == (QPS - (QPS + 2) / 3) * CHUNK && list_empty(&firsts[0]) && !lane.heads.least);
    finish();
}

static void a_changed_ceiling_lets_all_ask_again(void)
{
    start();
    again = false;
    for (int qp = 0; qp < QPS; qp++)
        wait(&waiters[qp % TENANTS][qp]);
    lane_open(&lane);
    CHECK(let_go_count == QPS && !lane.heads.least);
    finish();
}

int main(void)
{
    RUN(many_qps_get_no_more_than_one);
    RUN(weights_count);
    RUN(guarantees_come_first);
    RUN(receivers_come_before_senders);
    RUN(who_is_stuck_holds_up_nobody);
    RUN(newcomers_queue_behind);
    RUN(leaving_from_anywhere);
    RUN(a_changed_ceiling_lets_all_ask_again);
    timers_free(&timers);
    return 0;
}
