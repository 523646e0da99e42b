/* SPDX-License-Identifier: Apache-2.0 */
/* Several devices share one worker: in virtual time, with leaves that always want to send. */
#include "device.h"

#include <stdlib.h>
#include <string.h>

#include "check.h"
#include "clock.h"
#include "tenant.h"

#define GBPS 1000000000ull
/* What the worker carries. */
#define ENGINE_BPS (40 * GBPS)
/* Simulated. */
#define LONG_NS (200 * 1000000ull)

enum { PIECE = 1 << 16, LEAVES = 3 };

static struct sluice_engine *engine;
static struct entity leaves[LEAVES];
static uint64_t throttled[LEAVES][SLUICE_LIMITS], bytes[LEAVES];
static uint32_t leaf_count;

static void set_up(uint32_t devices, const uint64_t *capacities, bool wire)
{
    engine = calloc(1, sizeof(*engine));
    engine->tenants = calloc(SLUICE_MAX_TENANTS, sizeof(*engine->tenants));
    engine->tenant_groups = calloc(SLUICE_MAX_GROUPS, sizeof(*engine->tenant_groups));
    CHECK(engine->tenants && engine->tenant_groups);
    engine->now = 1000000000;
    for (uint32_t number = 0; number < devices; number++) {
        CHECK(device_add(engine) == (int)number);
        device_set(engine->devices[number], capacities[number], wire);
    }
    leaf_count = 0;
    memset(bytes, 0, sizeof(bytes));
}

static void tear_down(void)
{
    for (uint32_t i = 0; i < leaf_count; i++)
        entity_free(&leaves[i]);
    while (engine->device_count)
        device_free(engine->devices[--engine->device_count]);
    timers_free(&engine->timers);
    free(engine->tenants);
    free(engine->tenant_groups);
    free(engine);
}

static void add_leaf(uint32_t device, uint64_t min)
{
    struct sluice_share share = {.min_bps = {min, min}};
    struct entity *leaf = &leaves[leaf_count];

    CHECK(entity_init(leaf, &engine->devices[device]->shaper, NULL, throttled[leaf_count]) == 0);
    leaf_count++;
    entity_set_share(leaf, &share);
    entity_set_work(leaf, FLOW_EGRESS, true);
}

static void run(void)
{
    for (uint64_t end = engine->now + LONG_NS; engine->now < end;) {
        struct turn turn;

        timers_run(&engine->timers, engine->now);
        if (!devices_next(engine, &turn)) {
            uint64_t next = timers_next(&engine->timers);

            CHECK(next > engine->now);
            engine->now = next;
            continue;
        }
        uint64_t ns = PIECE * 8 * NS_PER_SECOND / ENGINE_BPS;

        bytes[turn.leaf - leaves] += PIECE;
        engine->now += ns;
        shaper_charge(turn.leaf->shaper, &turn, PIECE, 1, ns, engine->now);
        for (uint32_t number = 0; number < engine->device_count; number++)
            if (&engine->devices[number]->shaper == turn.leaf->shaper)
                device_charge(engine->devices[number], &turn, ns);
    }
}

static double rate(uint32_t leaf)
{
    return 8e9 * (double)bytes[leaf] / (double)LONG_NS;
}

static bool near(double value, double expected)
{
    return value > expected * 0.98 && value < expected * 1.02;
}

static void without_guarantees_devices_share_evenly(void)
{
    set_up(2, (uint64_t[]){20 * GBPS, 20 * GBPS}, false);
    add_leaf(0, 0);
    add_leaf(0, 0);
    add_leaf(1, 0);
    run();
    CHECK(near(rate(0), 10e9) && near(rate(1), 10e9) && near(rate(2), 20e9));
    tear_down();
}

static void a_guarantee_holds_against_another_device(void)
{
    set_up(2, (uint64_t[]){30 * GBPS, 10 * GBPS}, false);
    add_leaf(0, 28 * GBPS);
    add_leaf(0, 0);
    add_leaf(1, 8 * GBPS);
    run();
    CHECK(rate(0) >= 0.98 * 28e9 && rate(2) >= 0.98 * 8e9);
    CHECK(rate(0) + rate(1) + rate(2) > 0.98 * (double)ENGINE_BPS);
    tear_down();
}

static void a_full_wire_stops_its_own_device_only(void)
{
    set_up(3, (uint64_t[]){2 * GBPS, 5 * GBPS, 100 * GBPS}, true);
    for (uint32_t device = 0; device < 3; device++)
        add_leaf(device, 0);
    run();
    CHECK(near(rate(0), 2e9) && near(rate(1), 5e9) && near(rate(2), 33e9));
    tear_down();
}

static void one_that_rested_saves_nothing(void)
{
    set_up(2, (uint64_t[]){20 * GBPS, 20 * GBPS}, false);
    add_leaf(0, 0);
    run();
    CHECK(near(rate(0), 40e9));
    memset(bytes, 0, sizeof(bytes));
    add_leaf(1, 0);
    run();
    CHECK(near(rate(0), 20e9) && near(rate(1), 20e9));
    tear_down();
}

int main(void)
{
    RUN(without_guarantees_devices_share_evenly);
    RUN(a_guarantee_holds_against_another_device);
    RUN(a_full_wire_stops_its_own_device_only);
    RUN(one_that_rested_saves_nothing);
    return 0;
}
