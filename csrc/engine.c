/* SPDX-License-Identifier: Apache-2.0 */
#define _GNU_SOURCE
#include "engine.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <unistd.h>

#include "account.h"
#include "clock.h"
#include "closing.h"
#include "copy.h"
#include "counters.h"
#include "device.h"
#include "ending.h"
#include "gate.h"
#include "mr.h"
#include "multicast.h"
#include "net.h"
#include "nic.h"
#include "node.h"
#include "reach.h"
#include "session.h"
#include "tenant.h"
#include "transport/trunk.h"
#include "window.h"
#include "worker.h"

enum { PAGE = 4096 };

/* Sparse: a table of everything there may be costs only what is used of it. */
static void *sparse(size_t size)
{
    void *place = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

    return place == MAP_FAILED ? NULL : place;
}

/*
 * Tenants read this page to learn whether the engine sleeps, and must not be able
 * to write it: they could make it deaf for the others. Our own mapping is made
 * first; the seal then refuses every later writable one, whoever opens the file
 * again through /proc.
 */
static int open_page(struct sluice_engine *engine)
{
    engine->page_fd = memfd_create("sluice-engine", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (engine->page_fd < 0 || ftruncate(engine->page_fd, PAGE))
        return -errno;
    void *place = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, engine->page_fd, 0);

    if (place == MAP_FAILED)
        return -errno;
    engine->page = place;
    engine->page->abi_version = SLUICE_ABI_VERSION;
    if (fcntl(engine->page_fd, F_ADD_SEALS, F_SEAL_FUTURE_WRITE | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL))
        return -errno;
    return 0;
}

int sluice_engine_open(const char *counters_path, struct sluice_engine **out)
{
    struct sluice_engine *engine = calloc(1, sizeof(*engine));
    int error = -ENOMEM;

    if (!engine)
        return -ENOMEM;
    engine->page_fd = engine->events.fd = engine->counters.fd = -1;
    engine->now = clock_now();
    list_init(&engine->watched);
    list_init(&engine->notify);
    list_init(&engine->ending);
    list_init(&engine->nics);
    engine->tenants = sparse(SLUICE_MAX_TENANTS * sizeof(*engine->tenants));
    engine->tenant_groups = sparse(SLUICE_MAX_GROUPS * sizeof(*engine->tenant_groups));
    engine->sessions = sparse(SLUICE_MAX_SESSIONS * sizeof(*engine->sessions));
    engine->live = sparse(SLUICE_MAX_SESSIONS * sizeof(*engine->live));
    engine->qps = sparse(SLUICE_MAX_QPS * sizeof(*engine->qps));
    engine->qp_generations = sparse(SLUICE_MAX_QPS);
    engine->qp_free = sparse(SLUICE_MAX_QPS * sizeof(*engine->qp_free));
    engine->srqs = sparse((SLUICE_MAX_SRQN + 1) * sizeof(*engine->srqs));
    engine->groups = sparse(GROUP_BUCKETS * sizeof(*engine->groups));
    engine->trunks = sparse(SLUICE_MAX_NODES * sizeof(*engine->trunks));
    engine->mrs = sparse(MR_MAX * sizeof(*engine->mrs));
    engine->events.ring = sparse(ENGINE_EVENTS * sizeof(*engine->events.ring));
    if (!engine->tenants || !engine->sessions || !engine->live || !engine->qps || !engine->qp_generations ||
        !engine->qp_free || !engine->srqs || !engine->groups || !engine->tenant_groups || !engine->trunks || !engine->mrs || !engine->events.ring)
        goto fail;
    for (uint32_t slot = 0; slot < SLUICE_MAX_QPS; slot++)
        engine->qp_free[slot] = slot;
    for (uint32_t i = 0; i < GROUP_BUCKETS; i++)
        list_init(&engine->groups[i]);
    engine->qp_free_count = SLUICE_MAX_QPS;
    engine->mr_used = 1; /* entry 0 ends the list of free ones, and key 0 is nobody's */
    if (getrandom(&engine->random, sizeof(engine->random), 0) != sizeof(engine->random)) {
        error = -errno;
        goto fail;
    }
    engine->random |= 1;
    engine->events.fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (engine->events.fd < 0) {
        error = -errno;
        goto fail;
    }
    copy_init();
    if ((error = device_add(engine)) || (error = windows_open()) || (error = gid_hash_seed()) || (error = net_open(engine)) ||
        (error = counters_open(engine, counters_path)) || (error = open_page(engine)) || (error = port_open(engine)) ||
        (error = worker_start(engine)))
        goto fail;
    *out = engine;
    return 0;

fail:
    sluice_engine_close(engine);
    return error;
}

uint64_t engine_random(struct sluice_engine *engine)
{
    /* xorshift64, Marsaglia 2003; seeded from getrandom */
    uint64_t x = engine->random;

    x ^= x << 13;
    x ^= x >> 7;
    x ^= x << 17;
    return engine->random = x;
}

static void unmap(void *place, size_t size)
{
    if (place)
        munmap(place, size);
}

void sluice_engine_close(struct sluice_engine *engine)
{
    worker_stop(engine);
    while (engine->live_count)
        ending_free_session(engine->live[0]);
    tenants_settle(engine);
    /* Further devices before the first. */
    for (uint32_t i = 0; engine->tenants && i < SLUICE_MAX_TENANTS; i++)
        if (engine->tenants[i] && engine->tenants[i]->first != engine->tenants[i])
            tenant_free(engine->tenants[i]);
    for (uint32_t i = 0; engine->tenants && i < SLUICE_MAX_TENANTS; i++)
        if (engine->tenants[i])
            tenant_free(engine->tenants[i]);
    for (uint32_t i = 0; engine->tenant_groups && i < SLUICE_MAX_GROUPS; i++)
        if (engine->tenant_groups[i])
            tenant_group_free(engine->tenant_groups[i]);
    gate_free(engine);
    while (engine->device_count)
        device_free(engine->devices[--engine->device_count]);
    port_close(engine);
    trunks_free(engine);
    net_close(engine);
    timers_free(&engine->timers);
    unmap(engine->tenants, SLUICE_MAX_TENANTS * sizeof(*engine->tenants));
    unmap(engine->tenant_groups, SLUICE_MAX_GROUPS * sizeof(*engine->tenant_groups));
    unmap(engine->sessions, SLUICE_MAX_SESSIONS * sizeof(*engine->sessions));
    unmap(engine->live, SLUICE_MAX_SESSIONS * sizeof(*engine->live));
    unmap(engine->qps, SLUICE_MAX_QPS * sizeof(*engine->qps));
    unmap(engine->qp_generations, SLUICE_MAX_QPS);
    unmap(engine->qp_free, SLUICE_MAX_QPS * sizeof(*engine->qp_free));
    unmap(engine->srqs, (SLUICE_MAX_SRQN + 1) * sizeof(*engine->srqs));
    unmap(engine->groups, GROUP_BUCKETS * sizeof(*engine->groups));
    unmap(engine->nic_qps, NIC_NUMBERS * sizeof(*engine->nic_qps));
    unmap(engine->trunks, SLUICE_MAX_NODES * sizeof(*engine->trunks));
    unmap(engine->mrs, MR_MAX * sizeof(*engine->mrs));
    unmap(engine->events.ring, ENGINE_EVENTS * sizeof(*engine->events.ring));
    counters_close(engine);
    unmap(engine->page, PAGE);
    if (engine->page_fd >= 0)
        close(engine->page_fd);
    if (engine->events.fd >= 0)
        close(engine->events.fd);
    closing_wait();
    free(engine);
}

/* ---- events ------------------------------------------------------------ */

int sluice_engine_event_fd(struct sluice_engine *engine)
{
    return engine->events.fd;
}

int sluice_engine_next_event(struct sluice_engine *engine, struct sluice_engine_event *event)
{
    int found = 0;

    worker_enter(engine);
    if (engine->events.count) {
        *event = engine->events.ring[engine->events.head];
        engine->events.head = (engine->events.head + 1) % ENGINE_EVENTS;
        engine->events.count--;
        found = 1;
        if (event->kind == SLUICE_EVENT_AH_UNRESOLVED && engine->sessions[event->session])
            engine->sessions[event->session]->asking = false;
    } else {
        eventfd_t ignored;

        /* Emptied while nobody can add one. */
        if (eventfd_read(engine->events.fd, &ignored))
            found = 0;
    }
    worker_leave(engine);
    return found;
}

/* ---- the machine ------------------------------------------------------- */

uint64_t sluice_measure_copy(void)
{
    enum { SIZE = 64 << 20, CHUNK = 1 << 16, SLICES = 10, SLICE_NS = 5000000 };
    uint8_t *place = sparse(2 * (size_t)SIZE);
    uint64_t offset = 0, best = 0;

    if (!place)
        return 0;
    copy_init();
    memset(place, 1, 2 * (size_t)SIZE);
    /* The best of some slices: others that run on the core now won't always. */
    for (uint32_t slice = 0; slice < SLICES; slice++) {
        uint64_t bytes = 0, start = clock_now(), now = start;

        while (now - start < SLICE_NS) {
            copy_ordered(place + SIZE + offset, place + offset, CHUNK);
            bytes += CHUNK;
            offset = (offset + CHUNK) % SIZE;
            now = clock_now();
        }
        uint64_t rate = (uint64_t)((unsigned __int128)bytes * 8 * NS_PER_SECOND / (now - start));

        if (rate > best)
            best = rate;
    }
    unmap(place, 2 * (size_t)SIZE);
    return best;
}
