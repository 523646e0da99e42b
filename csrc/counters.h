/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The counters file (struct sluice_counters_header in engine.h), mapped. It is sparse,
 * and on a file system that may be full: a store to a page that can't be had is a
 * SIGBUS. So room for a row is taken before the row is used.
 */
#ifndef SLUICE_COUNTERS_H
#define SLUICE_COUNTERS_H

#include <stdint.h>

struct sluice_engine;
struct sluice_tenant_counters;
struct sluice_group_counters;
struct sluice_qp_counters;

/* fd: of the file. qps: slots, from the first, that have room. */
struct counters {
    int fd;
    uint8_t *place;
    uint32_t qps;
};

/* Makes the file (truncated if it is there), or memory where path is NULL, with its header. -errno: ENOSPC, and those of open(2). */
int counters_open(struct sluice_engine *engine, const char *path);
/* Before counters_open too. */
void counters_close(struct sluice_engine *engine);

/* Rows, all zero. NULL: there is no room. */
struct sluice_tenant_counters *counters_of_tenant(struct sluice_engine *engine, uint32_t number);
struct sluice_group_counters *counters_of_group(struct sluice_engine *engine, uint32_t number);
struct sluice_qp_counters *counters_of_qp(struct sluice_engine *engine, uint32_t slot);

#endif
