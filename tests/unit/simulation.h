/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The engine's own shaper in virtual time: tenants with endless demand, an engine
 * of a given speed, and the worst that any observer could have seen. The C tests
 * link it, and Python loads it for properties (test_shaper.py).
 *
 * Python reads this header through cffi as well.
 */
#ifndef SLUICE_SIMULATION_H
#define SLUICE_SIMULATION_H

#ifndef SLUICE_CDEF
#include "engine.h"
#endif

struct simulation;

/* engine_bps: how fast the engine copies. start: ns. NULL: no memory. */
struct simulation *simulation_open(uint32_t tenants, uint64_t capacity_bps, uint32_t wire, uint64_t engine_bps,
                                   uint64_t start);
void simulation_close(struct simulation *simulation);

/* Return the number, from 0. group -1: none. */
int simulation_group(struct simulation *simulation, const struct sluice_share *share);
int simulation_tenant(struct simulation *simulation, int group, const struct sluice_share *share,
                      uint64_t max_operations, uint64_t max_engine_ns);
void simulation_share(struct simulation *simulation, int tenant, const struct sluice_share *share);

/*
 * From now on the tenant always has messages of this size to send in this
 * direction; each costs the engine message_ns besides the copying. 0 bytes: none.
 */
void simulation_demand(struct simulation *simulation, int tenant, uint32_t direction, uint32_t bytes,
                       uint32_t message_ns);

void simulation_run(struct simulation *simulation, uint64_t ns);
/* The clock jumps; backwards as well. */
void simulation_step(struct simulation *simulation, int64_t ns);

/* Since simulation_reset. */
uint64_t simulation_bytes(const struct simulation *simulation, int tenant, uint32_t direction);
uint64_t simulation_operations(const struct simulation *simulation, int tenant);
uint64_t simulation_engine_ns(const struct simulation *simulation, int tenant);
uint64_t simulation_throttled_ns(const struct simulation *simulation, int tenant);
/* The largest of bytes(s, t) - max * (t - s) over all windows: to be no more than simulation_burst. */
uint64_t simulation_excess(const struct simulation *simulation, int tenant, uint32_t direction);
/* The same of what makes good a delay, where no burst was asked for: bytes(s, t) - 4/3 * max * (t - s). */
uint64_t simulation_peak_excess(const struct simulation *simulation, int tenant, uint32_t direction);
uint64_t simulation_group_excess(const struct simulation *simulation, int group, uint32_t direction);
uint64_t simulation_device_excess(const struct simulation *simulation, uint32_t direction);
uint64_t simulation_burst(const struct simulation *simulation, int tenant, uint32_t direction);
uint64_t simulation_group_burst(const struct simulation *simulation, int group, uint32_t direction);
uint64_t simulation_device_burst(const struct simulation *simulation, uint32_t direction);
/* The largest of min * (t - s) - bytes(s, t): how far it was behind its guarantee, in bytes. */
uint64_t simulation_lag(const struct simulation *simulation, int tenant, uint32_t direction);
/* The longest wait between two turns, ns. */
uint64_t simulation_longest_wait(const struct simulation *simulation, int tenant);
/* How often nobody was chosen although somebody wanted to go and was allowed to. To be 0. */
uint64_t simulation_idle_mistakes(const struct simulation *simulation);
uint64_t simulation_turns(const struct simulation *simulation);

void simulation_reset(struct simulation *simulation);

#endif
