/* SPDX-License-Identifier: Apache-2.0 */
/* Guarantees, weights, ceilings and groups, in virtual time. */
#include "simulation.h"

#include "check.h"
#include "clock.h"
#include "heap.h"
#include "shaper.h"

#define GBPS 1000000000ull
#define MS 1000000ull
#define KIB 1024u

enum { EGRESS = SLUICE_EGRESS, INGRESS = SLUICE_INGRESS };

static struct sluice_share share(uint64_t min, uint64_t max, uint64_t weight)
{
    return (struct sluice_share){.min_bps = {min, min}, .max_bps = {max, max}, .weight = weight};
}

static int add(struct simulation *simulation, int group, uint64_t min, uint64_t max, uint64_t weight)
{
    struct sluice_share of_tenant = share(min, max, weight);

    return simulation_tenant(simulation, group, &of_tenant, 0, 0);
}

static double rate(const struct simulation *simulation, int tenant, uint32_t direction, uint64_t ns)
{
    return 8e9 * (double)simulation_bytes(simulation, tenant, direction) / (double)ns;
}

static bool near(double value, double expected, double part)
{
    return value > expected * (1 - part) && value < expected * (1 + part);
}

static void a_heap_gives_the_least(void)
{
    enum { COUNT = 1000 };
    static struct heap_node nodes[COUNT];
    struct heap heap = {0};
    uint64_t random = 88172645463325252ull, last = 0;

    /* Keys around the point where they start over. */
    for (uint32_t i = 0; i < COUNT; i++) {
        random ^= random << 13, random ^= random >> 7, random ^= random << 17;
        heap_insert(&heap, &nodes[i], random % 10000 - 5000);
    }
    for (uint32_t i = 0; i < COUNT; i += 3)
        heap_move(&heap, &nodes[i], nodes[i].key + 77);
    for (uint32_t i = 0; i < COUNT; i += 7)
        heap_remove(&heap, &nodes[i]);
    uint32_t left = 0;

    for (; heap.least; left++) {
        CHECK(left == 0 || !key_before(heap.least->key, last));
        last = heap.least->key;
        heap_remove(&heap, heap.least);
    }
    CHECK(left == COUNT - (COUNT + 6) / 7);
}

static void weights_share_the_engine(void)
{
    struct simulation *simulation = simulation_open(8, 50 * GBPS, 0, 100 * GBPS, 1000);
    int one = add(simulation, -1, 0, 0, 100), two = add(simulation, -1, 0, 0, 200), four = add(simulation, -1, 0, 0, 400);

    simulation_demand(simulation, one, EGRESS, 64 * KIB, 100);
    simulation_demand(simulation, two, INGRESS, 64 * KIB, 100);
    simulation_demand(simulation, four, EGRESS, 64 * KIB, 100);
    simulation_run(simulation, 100 * MS);
    double unit = (double)simulation_bytes(simulation, one, EGRESS);

    CHECK(near((double)simulation_bytes(simulation, two, INGRESS), 2 * unit, 0.01));
    CHECK(near((double)simulation_bytes(simulation, four, EGRESS), 4 * unit, 0.01));
    CHECK(simulation_idle_mistakes(simulation) == 0);
    simulation_close(simulation);
}

static void costly_messages_cost_their_sender(void)
{
    struct simulation *simulation = simulation_open(8, 50 * GBPS, 0, 100 * GBPS, 1000);
    int cheap = add(simulation, -1, 0, 0, 100), costly = add(simulation, -1, 0, 0, 100);

    simulation_demand(simulation, cheap, EGRESS, 64 * KIB, 100);
    simulation_demand(simulation, costly, EGRESS, 8, 2000);
    simulation_run(simulation, 100 * MS);
    CHECK(near((double)simulation_engine_ns(simulation, cheap), 50e6, 0.01));
    CHECK(near((double)simulation_engine_ns(simulation, costly), 50e6, 0.01));
    simulation_close(simulation);
}

static void guarantees_come_first_and_the_rest_goes_by_weight(void)
{
    struct simulation *simulation = simulation_open(8, 100 * GBPS, 1, 1000 * GBPS, 1000);
    int guaranteed = add(simulation, -1, 60 * GBPS, 0, 100), other = add(simulation, -1, 0, 0, 300);

    simulation_demand(simulation, guaranteed, EGRESS, 64 * KIB, 100);
    simulation_demand(simulation, other, EGRESS, 64 * KIB, 100);
    simulation_run(simulation, 200 * MS);
    CHECK(near(rate(simulation, guaranteed, EGRESS, 200 * MS), 70e9, 0.01)); /* 60 and a quarter of the rest */
    CHECK(near(rate(simulation, other, EGRESS, 200 * MS), 30e9, 0.01));
    CHECK(simulation_device_excess(simulation, EGRESS) <= simulation_device_burst(simulation, EGRESS));
    simulation_close(simulation);
}

static void a_guarantee_holds_against_costly_messages(void)
{
    struct simulation *simulation = simulation_open(64, 50 * GBPS, 0, 100 * GBPS, 1000);
    int victim = add(simulation, -1, 20 * GBPS, 0, 1);

    simulation_demand(simulation, victim, EGRESS, 64 * KIB, 100);
    for (int i = 0; i < 50; i++)
        simulation_demand(simulation, add(simulation, -1, 0, 0, 10000), EGRESS, 8, 500);
    simulation_run(simulation, 100 * MS);
    CHECK(rate(simulation, victim, EGRESS, 100 * MS) >= 20e9);
    CHECK(simulation_lag(simulation, victim, EGRESS) <= 2 * 65536);
    simulation_close(simulation);
}

/*
 * A device of 100 Mbit/s that carries 65, from a queue of 1 MiB: tenants whose messages find no room there are without work until
 * half of it is gone, as with a NIC.
 */
static void a_guarantee_holds_on_a_device_that_carries_less(void)
{
    enum { VICTIM, HOG, TENANTS, CHUNK = 64 * KIB, ROOM = 16 };
    const uint64_t mbps = 1000000, end = 20 * NS_PER_SECOND, takes = 8ull * CHUNK * NS_PER_SECOND / (65 * mbps);
    static struct timers timers;
    static struct shaper shaper;
    static struct entity device, tenants[TENANTS];
    static uint64_t throttled_ns[TENANTS][SLUICE_LIMITS];
    const struct sluice_share shares[TENANTS] = {share(60 * mbps, 0, 100), share(0, 0, 100)};
    uint64_t now = 1000, done = 0, held_since[TENANTS] = {0}, carried[TENANTS] = {0};
    struct entity *queue[ROOM];
    uint32_t first = 0, last = 0;

    CHECK(shaper_init(&shaper, &device, &timers, now) == 0);
    shaper_set_device(&shaper, 100 * mbps, 100 * mbps, true);
    for (int i = 0; i < TENANTS; i++) {
        CHECK(entity_init(&tenants[i], &shaper, NULL, throttled_ns[i]) == 0);
        entity_set_share(&tenants[i], &shares[i]);
        entity_set_work(&tenants[i], FLOW_EGRESS, true);
    }
    while (now < end) {
        struct turn turn;

        timers_run(&timers, now);
        for (; first != last && done <= now; done += takes)
            carried[queue[first++ % ROOM] - tenants] += CHUNK;
        for (int i = 0; i < TENANTS && last - first <= ROOM / 2; i++)
            if (held_since[i]) {
                entity_was_held(&tenants[i], FLOW_EGRESS, held_since[i]);
                entity_set_work(&tenants[i], FLOW_EGRESS, true);
                held_since[i] = 0;
            }
        if (!shaper_next(&shaper, now, &turn)) {
            uint64_t next = timers_next(&timers);

            now = first != last && done < next ? done : next;
        } else if (last - first == ROOM) {
            held_since[turn.leaf - tenants] = now;
            entity_set_work(turn.leaf, FLOW_EGRESS, false);
        } else {
            if (first == last)
                done = now + takes;
            queue[last++ % ROOM] = turn.leaf;
            now += 1000;
            shaper_charge(&shaper, &turn, CHUNK, 1, 1000, now);
        }
    }
    CHECK(8e9 * (double)carried[VICTIM] / (double)end > 0.99 * 60e6);
    CHECK(near(8e9 * (double)(carried[VICTIM] + carried[HOG]) / (double)end, 65e6, 0.01));
    for (int i = 0; i < TENANTS; i++)
        entity_free(&tenants[i]);
    entity_free(&device);
    timers_free(&timers);
}

/* Its own costly messages eat its guarantee: it can't have more of the engine than was promised. */
static void a_guarantee_is_no_weapon(void)
{
    struct simulation *simulation = simulation_open(8, 50 * GBPS, 0, 100 * GBPS, 1000);
    int attacker = add(simulation, -1, 25 * GBPS, 0, 100), other = add(simulation, -1, 0, 0, 100);

    simulation_demand(simulation, attacker, EGRESS, 8, 5000);
    simulation_demand(simulation, other, EGRESS, 64 * KIB, 100);
    simulation_run(simulation, 100 * MS);
    /* Half of it is guaranteed, a quarter is its share of the rest. */
    CHECK(near((double)simulation_engine_ns(simulation, attacker), 75e6, 0.02));
    CHECK(near((double)simulation_engine_ns(simulation, other), 25e6, 0.02));
    simulation_close(simulation);
}

static void groups_share_and_keep_their_ceiling(void)
{
    struct simulation *simulation = simulation_open(16, 100 * GBPS, 1, 1000 * GBPS, 1000);
    struct sluice_share team_share = share(0, 30 * GBPS, 100), rest_share = share(0, 0, 100);
    int team = simulation_group(simulation, &team_share), rest = simulation_group(simulation, &rest_share);
    int a = add(simulation, team, 10 * GBPS, 0, 100), b = add(simulation, team, 0, 0, 300);
    int c = add(simulation, rest, 0, 0, 100), d = add(simulation, rest, 0, 20 * GBPS, 100);

    for (int tenant = a; tenant <= d; tenant++)
        simulation_demand(simulation, tenant, EGRESS, 64 * KIB, 100);
    simulation_run(simulation, 200 * MS);
    double of_a = rate(simulation, a, EGRESS, 200 * MS), of_b = rate(simulation, b, EGRESS, 200 * MS);

    CHECK(near(of_a + of_b, 30e9, 0.01));
    CHECK(near(of_a, 15e9, 0.02) && near(of_b, 15e9, 0.02)); /* 10, and a quarter of 20 */
    CHECK(near(rate(simulation, d, EGRESS, 200 * MS), 20e9, 0.01));
    CHECK(near(rate(simulation, c, EGRESS, 200 * MS), 50e9, 0.01));
    CHECK(simulation_group_excess(simulation, team, EGRESS) <= simulation_group_burst(simulation, team, EGRESS));
    CHECK(simulation_excess(simulation, d, EGRESS) <= simulation_burst(simulation, d, EGRESS));
    CHECK(simulation_idle_mistakes(simulation) == 0);
    simulation_close(simulation);
}

static void a_groups_guarantee_is_its_tenants(void)
{
    struct simulation *simulation = simulation_open(16, 100 * GBPS, 1, 1000 * GBPS, 1000);
    struct sluice_share team_share = share(50 * GBPS, 0, 1);
    int team = simulation_group(simulation, &team_share);
    int a = add(simulation, team, 0, 0, 100), b = add(simulation, team, 0, 0, 100);
    int other = add(simulation, -1, 0, 0, 10000);

    simulation_demand(simulation, a, EGRESS, 64 * KIB, 100);
    simulation_demand(simulation, b, EGRESS, 64 * KIB, 100);
    simulation_demand(simulation, other, EGRESS, 64 * KIB, 100);
    simulation_run(simulation, 200 * MS);
    CHECK(near(rate(simulation, a, EGRESS, 200 * MS), 25e9, 0.01));
    CHECK(near(rate(simulation, b, EGRESS, 200 * MS), 25e9, 0.01));
    simulation_close(simulation);
}

static void operations_and_engine_time_have_ceilings(void)
{
    struct simulation *simulation = simulation_open(8, 50 * GBPS, 0, 100 * GBPS, 1000);
    struct sluice_share none = share(0, 0, 0);
    int few = simulation_tenant(simulation, -1, &none, 10000, 0);
    int slow = simulation_tenant(simulation, -1, &none, 0, NS_PER_SECOND / 10);

    simulation_demand(simulation, few, EGRESS, 8, 100);
    simulation_demand(simulation, slow, EGRESS, 8, 100);
    simulation_run(simulation, NS_PER_SECOND);
    CHECK(near((double)simulation_operations(simulation, few), 10000, 0.01));
    CHECK(near((double)simulation_engine_ns(simulation, slow), 100e6, 0.02));
    CHECK(simulation_throttled_ns(simulation, few) > NS_PER_SECOND * 9 / 10);
    simulation_close(simulation);
}

static void who_rests_saves_nothing_and_loses_nothing(void)
{
    struct simulation *simulation = simulation_open(8, 50 * GBPS, 0, 100 * GBPS, 1000);
    int steady = add(simulation, -1, 0, 0, 100), fitful = add(simulation, -1, 0, 0, 100);

    simulation_demand(simulation, steady, EGRESS, 64 * KIB, 100);
    simulation_run(simulation, 50 * MS);
    simulation_reset(simulation);
    simulation_demand(simulation, fitful, EGRESS, 64 * KIB, 100);
    simulation_run(simulation, 10 * MS);
    CHECK(near((double)simulation_engine_ns(simulation, fitful), 5e6, 0.02));
    CHECK(simulation_longest_wait(simulation, fitful) < 20000);
    simulation_close(simulation);
}

/* However many of them there are, and whatever they have queued: each is in the way for a turn, not for a message. */
static void small_messages_wait_for_turns_not_for_large_ones(void)
{
    enum { HOGS = 7, LARGE = 8 << 20 };
    struct simulation *simulation = simulation_open(HOGS + 1, 50 * GBPS, 0, 100 * GBPS, 1000);

    for (uint32_t i = 0; i < HOGS; i++)
        simulation_demand(simulation, add(simulation, -1, 0, 0, 100), EGRESS, LARGE, 100);
    int small = add(simulation, -1, 0, 0, 100);

    simulation_run(simulation, 50 * MS);
    simulation_demand(simulation, small, EGRESS, 8, 100);
    simulation_run(simulation, 50 * MS);
    CHECK(simulation_longest_wait(simulation, small) < 8ull * LARGE * NS_PER_SECOND / (100 * GBPS));
    simulation_close(simulation);
}

static void decades_and_clock_steps(void)
{
    uint64_t starts[] = {MS, 40ull * 365 * 86400 * NS_PER_SECOND, 250ull * 365 * 86400 * NS_PER_SECOND};

    for (uint32_t i = 0; i < 3; i++) {
        struct simulation *simulation = simulation_open(8, 10 * GBPS, 1, 100 * GBPS, starts[i]);
        int a = add(simulation, -1, 2 * GBPS, 5 * GBPS, 1), b = add(simulation, -1, 0, 0, 10000);

        simulation_demand(simulation, a, EGRESS, 64 * KIB, 100);
        simulation_demand(simulation, b, EGRESS, 64 * KIB, 100);
        for (int64_t step = -2; step < 8; step++) {
            simulation_step(simulation, step < 0 ? step * 1000 : step * 30 * 86400 * (int64_t)NS_PER_SECOND);
            simulation_run(simulation, MS);
            simulation_reset(simulation);
            simulation_run(simulation, 50 * MS);
            /* Meanwhile the device makes good what it missed in the step. */
            CHECK(rate(simulation, a, EGRESS, 50 * MS) >= 1.98e9 && rate(simulation, a, EGRESS, 50 * MS) <= 5.1e9);
            CHECK(rate(simulation, b, EGRESS, 50 * MS) >= 7.8e9 && rate(simulation, b, EGRESS, 50 * MS) <= 10e9 * BUCKET_PEAK_FAR / (BUCKET_PEAK_FAR - 1) - 1.98e9);
        }
        simulation_close(simulation);
    }
}

/* Ten thousand tenants in a hundred groups' worth of shares: all at once, and each gets what it should. */
static void ten_thousand_tenants(void)
{
    enum { TENANTS = 10000, TEAMS = 50 };
    struct simulation *simulation = simulation_open(TENANTS, 100 * GBPS, 1, 1000 * GBPS, 1000);
    int teams[TEAMS];

    for (int i = 0; i < TEAMS; i++) {
        struct sluice_share team = share(0, i % 5 == 0 ? GBPS : 0, 10000);

        teams[i] = simulation_group(simulation, &team);
    }
    for (int i = 0; i < TENANTS; i++) {
        /* A third has 6 Mb/s guaranteed (20 Gb/s in all), a seventh a ceiling of 8 Mb/s. */
        int tenant = add(simulation, i % 2 ? teams[i / 2 % TEAMS] : -1, i % 3 == 0 ? 6000000 : 0,
                         i % 7 == 0 ? 8000000 : 0, i % 4 == 0 ? 400 : 100);

        simulation_demand(simulation, tenant, i % 5 == 0 ? INGRESS : EGRESS, 4096, 100);
    }
    simulation_run(simulation, 200 * MS);
    simulation_reset(simulation);
    simulation_run(simulation, NS_PER_SECOND);
    CHECK(simulation_idle_mistakes(simulation) == 0);
    for (int i = 0; i < TENANTS; i++) {
        uint32_t direction = i % 5 == 0 ? INGRESS : EGRESS;

        CHECK(simulation_bytes(simulation, i, direction) > 0);
        CHECK(simulation_excess(simulation, i, direction) <= simulation_burst(simulation, i, direction));
        if (i % 3 == 0)
            CHECK(near(rate(simulation, i, direction, NS_PER_SECOND), 6e6, 0.05) ||
                  rate(simulation, i, direction, NS_PER_SECOND) > 6e6);
    }
    for (int i = 0; i < TEAMS; i++)
        CHECK(simulation_group_excess(simulation, teams[i], EGRESS) <= simulation_group_burst(simulation, teams[i], EGRESS));
    CHECK(simulation_device_excess(simulation, EGRESS) <= simulation_device_burst(simulation, EGRESS));
    simulation_close(simulation);
}

/* What a decision costs grows no faster than the logarithm: printed, and bounded with much room. */
static void decisions_cost_a_logarithm(void)
{
    double ns[3];
    int counts[3] = {1, 100, 10000};

    for (int i = 0; i < 3; i++) {
        struct simulation *simulation = simulation_open(10000, 100 * GBPS, 0, 1000 * GBPS, 1000);

        for (int tenant = 0; tenant < counts[i]; tenant++)
            simulation_demand(simulation, add(simulation, -1, 100000, 0, 100), EGRESS, 4096, 1000);
        simulation_run(simulation, 100 * MS);
        simulation_reset(simulation);
        uint64_t start = clock_now();

        simulation_run(simulation, 200 * MS);
        ns[i] = (double)(clock_now() - start) / (double)simulation_turns(simulation);
        simulation_close(simulation);
    }
    printf("a decision and a turn of the simulation: %.0f ns with 1 tenant, %.0f with 100, %.0f with 10,000\n", ns[0], ns[1],
           ns[2]);
}

int main(void)
{
    RUN(a_heap_gives_the_least);
    RUN(weights_share_the_engine);
    RUN(costly_messages_cost_their_sender);
    RUN(guarantees_come_first_and_the_rest_goes_by_weight);
    RUN(a_guarantee_holds_against_costly_messages);
    RUN(a_guarantee_holds_on_a_device_that_carries_less);
    RUN(a_guarantee_is_no_weapon);
    RUN(groups_share_and_keep_their_ceiling);
    RUN(a_groups_guarantee_is_its_tenants);
    RUN(operations_and_engine_time_have_ceilings);
    RUN(who_rests_saves_nothing_and_loses_nothing);
    RUN(small_messages_wait_for_turns_not_for_large_ones);
    RUN(decades_and_clock_steps);
    RUN(ten_thousand_tenants);
    RUN(decisions_cost_a_logarithm);
    return 0;
}
