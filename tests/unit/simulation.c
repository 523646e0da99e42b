/* SPDX-License-Identifier: Apache-2.0 */
#include "simulation.h"

#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include "clock.h"
#include "shaper.h"

enum { GROUPS = 64, TURN_BYTES = 65536, TURN_NS = 5000 };

/*
 * The largest rise of bytes - rate * time above any earlier value of it: in 2^-20
 * bytes, so that it is exact enough for years.
 */
struct window {
    uint64_t rate, last;
    __int128 level, lowest, highest_rise, highest, deepest_fall;
};

struct party {
    struct entity entity;
    uint64_t throttled_ns[SLUICE_LIMITS];
    struct window above[DIRECTIONS]; /* the ceiling */
    struct window peak[DIRECTIONS];  /* as far above it as a bucket goes to make good a delay */
    struct window below[DIRECTIONS]; /* the guarantee */
    uint32_t message_bytes[DIRECTIONS], message_ns[DIRECTIONS];
    uint64_t bytes[DIRECTIONS], operations, engine_ns, last_turn, longest_wait;
    uint64_t sent[DIRECTIONS]; /* of the message at hand */
};

struct simulation {
    struct timers timers;
    struct shaper shaper;
    struct party device, groups[GROUPS], *tenants;
    uint32_t group_count, tenant_count;
    uint64_t now, engine_bps, idle_moments, idle_mistakes, turns;
};

static void window_start(struct window *window, uint64_t rate, uint64_t now)
{
    *window = (struct window){.rate = rate, .last = now};
}

static void window_pass(struct window *window, uint64_t now)
{
    if (now > window->last)
        window->level -= ((__int128)window->rate * (now - window->last) << 20) / (8 * (__int128)NS_PER_SECOND);
    window->last = now;
    if (window->level < window->lowest)
        window->lowest = window->level;
    if (window->highest - window->level > window->deepest_fall)
        window->deepest_fall = window->highest - window->level;
}

static void window_add(struct window *window, uint64_t bytes, uint64_t now)
{
    window_pass(window, now);
    window->level += (__int128)bytes << 20;
    if (window->level - window->lowest > window->highest_rise)
        window->highest_rise = window->level - window->lowest;
    if (window->level > window->highest)
        window->highest = window->level;
}

static uint64_t bytes_of(__int128 fixed)
{
    return (uint64_t)(fixed >> 20);
}

static void watch(struct party *party, const struct sluice_share *share, uint64_t now)
{
    for (uint32_t direction = 0; direction < DIRECTIONS; direction++) {
        window_start(&party->above[direction], share ? share->max_bps[direction] : party->above[direction].rate, now);
        window_start(&party->peak[direction], party->above[direction].rate * BUCKET_PEAK_FAR / (BUCKET_PEAK_FAR - 1), now);
        window_start(&party->below[direction], share ? share->min_bps[direction] : party->below[direction].rate, now);
        party->bytes[direction] = 0;
    }
    party->operations = party->engine_ns = party->longest_wait = 0;
    party->last_turn = now;
    memset(party->throttled_ns, 0, sizeof(party->throttled_ns));
}

struct simulation *simulation_open(uint32_t tenants, uint64_t capacity_bps, uint32_t wire, uint64_t engine_bps,
                                   uint64_t start)
{
    struct simulation *simulation = calloc(1, sizeof(*simulation));

    if (!simulation)
        return NULL;
    simulation->now = start;
    simulation->engine_bps = engine_bps;
    simulation->tenants = calloc(tenants, sizeof(*simulation->tenants));
    if (!simulation->tenants || shaper_init(&simulation->shaper, &simulation->device.entity, &simulation->timers, start)) {
        free(simulation->tenants);
        free(simulation);
        return NULL;
    }
    shaper_set_device(&simulation->shaper, capacity_bps, capacity_bps, wire);
    struct sluice_share device = {.max_bps = {wire ? capacity_bps : 0, wire ? capacity_bps : 0}};

    watch(&simulation->device, &device, start);
    return simulation;
}

void simulation_close(struct simulation *simulation)
{
    for (uint32_t i = 0; i < simulation->tenant_count; i++)
        entity_free(&simulation->tenants[i].entity);
    for (uint32_t i = 0; i < simulation->group_count; i++)
        entity_free(&simulation->groups[i].entity);
    entity_free(&simulation->device.entity);
    timers_free(&simulation->timers);
    free(simulation->tenants);
    free(simulation);
}

int simulation_group(struct simulation *simulation, const struct sluice_share *share)
{
    struct party *group = &simulation->groups[simulation->group_count];

    if (entity_init(&group->entity, &simulation->shaper, NULL, group->throttled_ns))
        abort();
    entity_set_share(&group->entity, share);
    watch(group, share, simulation->now);
    return (int)simulation->group_count++;
}

int simulation_tenant(struct simulation *simulation, int group, const struct sluice_share *share,
                      uint64_t max_operations, uint64_t max_engine_ns)
{
    struct party *tenant = &simulation->tenants[simulation->tenant_count];
    struct entity *parent = group < 0 ? NULL : &simulation->groups[group].entity;

    if (entity_init(&tenant->entity, &simulation->shaper, parent, tenant->throttled_ns))
        abort();
    entity_set_share(&tenant->entity, share);
    entity_set_limits(&tenant->entity, max_operations, 0, max_engine_ns);
    watch(tenant, share, simulation->now);
    return (int)simulation->tenant_count++;
}

void simulation_share(struct simulation *simulation, int tenant, const struct sluice_share *share)
{
    entity_set_share(&simulation->tenants[tenant].entity, share);
    watch(&simulation->tenants[tenant], share, simulation->now);
}

void simulation_demand(struct simulation *simulation, int number, uint32_t direction, uint32_t bytes,
                       uint32_t message_ns)
{
    struct party *tenant = &simulation->tenants[number];

    tenant->message_bytes[direction] = bytes;
    tenant->message_ns[direction] = message_ns;
    tenant->last_turn = simulation->now;
    window_start(&tenant->below[direction], tenant->below[direction].rate, simulation->now);
    entity_set_work(&tenant->entity, direction, bytes != 0);
}

static bool may_go(const struct party *tenant, uint32_t direction, uint64_t now)
{
    if (!bucket_ready(&tenant->entity.operations, now) || !bucket_ready(&tenant->entity.time, now))
        return false;
    for (const struct entity *entity = &tenant->entity; entity; entity = entity->parent)
        if (!bucket_ready(&entity->ceiling[direction], now))
            return false;
    return true;
}

/* Nobody was chosen: so nobody may be there who could have gone. Among thousands, a sample of these moments. */
static void check_idle(struct simulation *simulation)
{
    if (simulation->idle_moments++ % (1 + simulation->tenant_count / 16))
        return;
    for (uint32_t i = 0; i < simulation->tenant_count; i++)
        for (uint32_t direction = 0; direction < DIRECTIONS; direction++)
            if (simulation->tenants[i].message_bytes[direction] &&
                may_go(&simulation->tenants[i], direction, simulation->now))
                simulation->idle_mistakes++;
}

static void take_turn(struct simulation *simulation, const struct turn *turn)
{
    struct party *tenant = list_entry(turn->leaf, struct party, entity);
    uint32_t direction = turn->flow;
    uint32_t size = tenant->message_bytes[direction], chunk = entity_chunk(turn->leaf, direction);
    uint64_t room = chunk < TURN_BYTES ? chunk : TURN_BYTES, operations = 0, bytes = 0, ns = 0;
    uint64_t most = tenant->entity.operations.rate ? tenant->entity.operations.chunk : 64;

    if (simulation->now - tenant->last_turn > tenant->longest_wait)
        tenant->longest_wait = simulation->now - tenant->last_turn;
    while (bytes < room && operations < most && ns < TURN_NS) {
        uint64_t left = size - tenant->sent[direction], piece = left < room - bytes ? left : room - bytes;

        if (tenant->sent[direction] == 0)
            ns += tenant->message_ns[direction];
        bytes += piece;
        ns += piece * 8 * NS_PER_SECOND / simulation->engine_bps;
        tenant->sent[direction] += piece;
        if (tenant->sent[direction] >= size) {
            tenant->sent[direction] = 0;
            operations++;
        }
    }
    for (struct entity *entity = turn->leaf; entity; entity = entity->parent)
        window_add(&list_entry(entity, struct party, entity)->above[direction], bytes, simulation->now);
    window_add(&tenant->peak[direction], bytes, simulation->now);
    ns += ns == 0;
    simulation->now += ns;
    simulation->turns++;
    window_add(&tenant->below[direction], bytes, simulation->now);
    tenant->bytes[direction] += bytes;
    tenant->operations += operations;
    tenant->engine_ns += ns;
    tenant->last_turn = simulation->now;
    shaper_charge(&simulation->shaper, turn, bytes, operations, ns, simulation->now);
}

void simulation_run(struct simulation *simulation, uint64_t ns)
{
    uint64_t end = simulation->now + ns;

    while (simulation->now < end) {
        struct turn turn;

        timers_run(&simulation->timers, simulation->now);
        if (shaper_next(&simulation->shaper, simulation->now, &turn)) {
            take_turn(simulation, &turn);
            continue;
        }
        check_idle(simulation);
        uint64_t next = timers_next(&simulation->timers);

        simulation->now = next > end ? end : next > simulation->now ? next : simulation->now + 1;
    }
    for (uint32_t i = 0; i < simulation->tenant_count; i++)
        for (uint32_t direction = 0; direction < DIRECTIONS; direction++)
            window_pass(&simulation->tenants[i].below[direction], simulation->now);
}

void simulation_step(struct simulation *simulation, int64_t ns)
{
    simulation->now += (uint64_t)ns;
}

uint64_t simulation_bytes(const struct simulation *simulation, int tenant, uint32_t direction)
{
    return simulation->tenants[tenant].bytes[direction];
}

uint64_t simulation_operations(const struct simulation *simulation, int tenant)
{
    return simulation->tenants[tenant].operations;
}

uint64_t simulation_engine_ns(const struct simulation *simulation, int tenant)
{
    return simulation->tenants[tenant].engine_ns;
}

uint64_t simulation_throttled_ns(const struct simulation *simulation, int tenant)
{
    uint64_t sum = 0;

    for (uint32_t limit = 0; limit < SLUICE_LIMITS; limit++)
        sum += simulation->tenants[tenant].throttled_ns[limit];
    return sum;
}

static uint64_t excess(const struct party *party, uint32_t direction)
{
    return party->above[direction].rate ? bytes_of(party->above[direction].highest_rise) : 0;
}

uint64_t simulation_excess(const struct simulation *simulation, int tenant, uint32_t direction)
{
    return excess(&simulation->tenants[tenant], direction);
}

uint64_t simulation_peak_excess(const struct simulation *simulation, int tenant, uint32_t direction)
{
    return bytes_of(simulation->tenants[tenant].peak[direction].highest_rise);
}

uint64_t simulation_group_excess(const struct simulation *simulation, int group, uint32_t direction)
{
    return excess(&simulation->groups[group], direction);
}

uint64_t simulation_device_excess(const struct simulation *simulation, uint32_t direction)
{
    return excess(&simulation->device, direction);
}

uint64_t simulation_burst(const struct simulation *simulation, int tenant, uint32_t direction)
{
    return bucket_burst(&simulation->tenants[tenant].entity.ceiling[direction]);
}

uint64_t simulation_group_burst(const struct simulation *simulation, int group, uint32_t direction)
{
    return bucket_burst(&simulation->groups[group].entity.ceiling[direction]);
}

uint64_t simulation_device_burst(const struct simulation *simulation, uint32_t direction)
{
    return bucket_burst(&simulation->device.entity.ceiling[direction]);
}

uint64_t simulation_lag(const struct simulation *simulation, int tenant, uint32_t direction)
{
    return bytes_of(simulation->tenants[tenant].below[direction].deepest_fall);
}

uint64_t simulation_longest_wait(const struct simulation *simulation, int tenant)
{
    const struct party *party = &simulation->tenants[tenant];
    uint64_t last = simulation->now - party->last_turn;

    return last > party->longest_wait ? last : party->longest_wait;
}

uint64_t simulation_idle_mistakes(const struct simulation *simulation)
{
    return simulation->idle_mistakes;
}

uint64_t simulation_turns(const struct simulation *simulation)
{
    return simulation->turns;
}

void simulation_reset(struct simulation *simulation)
{
    simulation->idle_mistakes = simulation->turns = 0;
    watch(&simulation->device, NULL, simulation->now);
    for (uint32_t i = 0; i < simulation->group_count; i++)
        watch(&simulation->groups[i], NULL, simulation->now);
    for (uint32_t i = 0; i < simulation->tenant_count; i++)
        watch(&simulation->tenants[i], NULL, simulation->now);
}
