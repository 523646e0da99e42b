/* SPDX-License-Identifier: Apache-2.0 */
#define _GNU_SOURCE
#include "reach.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <unistd.h>

#include "atomic.h"
#include "tenant.h"
#include "worker.h"

/* Outlives the engine where a thread still hangs: whoever leaves last frees it. */
struct port {
    pthread_mutex_t lock;
    struct list done;
    uint32_t rung;
    uint32_t users; /* the engine and the threads */
    struct sluice_engine_page *page; /* NULL: the engine is closed */
    uint32_t kept[SLUICE_MAX_TENANTS], left[SLUICE_MAX_TENANTS]; /* errands; the worker's alone */
};

struct reach {
    struct port *port;
    uint32_t tenant; /* its number */
    uint32_t users;  /* who opened it, the thread, and errands until they are back: whoever leaves last frees it */
    uint32_t underway; /* errands; the worker's alone */
    int mem;
    bool closing;
    pthread_mutex_t lock;
    pthread_cond_t changed;
    struct list queue;
};

/* By tenant. Hanging threads count on, and keep their lock, also when their tenant is removed and its number taken by another. */
static uint32_t threads[SLUICE_MAX_TENANTS];
static pthread_mutex_t words[SLUICE_MAX_TENANTS] = {[0 ... SLUICE_MAX_TENANTS - 1] = PTHREAD_MUTEX_INITIALIZER};

/* ---- the port ---------------------------------------------------------- */

int port_open(struct sluice_engine *engine)
{
    struct port *port = calloc(1, sizeof(*port));

    if (!port)
        return -ENOMEM;
    pthread_mutex_init(&port->lock, NULL);
    list_init(&port->done);
    port->users = 1;
    port->page = engine->page;
    engine->port = port;
    return 0;
}

static void reach_leave(struct reach *reach)
{
    if (__atomic_fetch_sub(&reach->users, 1, __ATOMIC_ACQ_REL) != 1)
        return;
    pthread_mutex_destroy(&reach->lock);
    pthread_cond_destroy(&reach->changed);
    free(reach);
}

static void port_leave(struct port *port)
{
    pthread_mutex_lock(&port->lock);
    bool last = --port->users == 0;

    while (!port->page && !list_empty(&port->done)) {
        struct errand *errand = list_entry(list_take(&port->done), struct errand, link);

        reach_leave(errand->reach);
        free(errand);
    }
    pthread_mutex_unlock(&port->lock);
    if (!last)
        return;
    pthread_mutex_destroy(&port->lock);
    free(port);
}

void port_close(struct sluice_engine *engine)
{
    struct port *port = engine->port;

    if (!port)
        return;
    pthread_mutex_lock(&port->lock);
    port->page = NULL;
    pthread_mutex_unlock(&port->lock);
    port_leave(port);
    engine->port = NULL;
}

bool port_rung(const struct sluice_engine *engine)
{
    return load_relaxed(&engine->port->rung);
}

static void port_put(struct port *port, struct errand *errand, bool carried)
{
    errand->carried = carried;
    pthread_mutex_lock(&port->lock);
    list_append(&port->done, &errand->link);
    if (port->page)
        worker_ring(port->page, &port->rung);
    pthread_mutex_unlock(&port->lock);
}

void port_collect(struct sluice_engine *engine)
{
    struct port *port = engine->port;
    struct list done;

    list_init(&done);
    pthread_mutex_lock(&port->lock);
    store_relaxed(&port->rung, 0);
    list_splice(&done, &port->done);
    pthread_mutex_unlock(&port->lock);
    while (!list_empty(&done)) {
        struct errand *errand = list_entry(list_take(&done), struct errand, link);

        if (errand->count)
            --*errand->count;
        errand->count = NULL;
        errand->reach->underway--;
        reach_leave(errand->reach);
        errand->done(errand, errand->carried);
    }
}

void errand_keep(struct sluice_engine *engine, struct errand *errand)
{
    errand->count = &engine->port->kept[errand->tenant];
    ++*errand->count;
}

void errand_leave(struct sluice_engine *engine, struct errand *errand)
{
    errand->count = &engine->port->left[errand->tenant];
    ++*errand->count;
}

bool reach_has_room(const struct sluice_engine *engine, const struct reach *reach)
{
    return engine->port->kept[reach->tenant] < REACH_KEPT;
}

bool reach_may_wait(const struct sluice_engine *engine, const struct reach *reach)
{
    return engine->port->left[reach->tenant] < REACH_KEPT;
}

/* ---- the thread -------------------------------------------------------- */

static bool write_all(const struct reach *reach, uint64_t address, const uint8_t *bytes, uint32_t length)
{
    while (length) {
        ssize_t done = pwrite(reach->mem, bytes, length, (off_t)address);

        if (done <= 0)
            return false;
        address += (uint64_t)done;
        bytes += done;
        length -= (uint32_t)done;
    }
    return true;
}

bool reach_write(const struct reach *reach, uint64_t address, const uint8_t *bytes, uint32_t length)
{
    /* Applications poll on the last bytes: they come last. */
    uint32_t tail = length > 8 ? 8 : 0, before = length - tail;

    if (!write_all(reach, address, bytes, before))
        return false;
    release_fence();
    return write_all(reach, address + before, bytes + before, tail);
}

bool reach_read(const struct reach *reach, uint64_t address, uint8_t *bytes, uint32_t length)
{
    while (length) {
        ssize_t done = pread(reach->mem, bytes, length, (off_t)address);

        if (done <= 0)
            return false;
        address += (uint64_t)done;
        bytes += done;
        length -= (uint32_t)done;
    }
    return true;
}

bool reach_atomic(const struct reach *reach, uint64_t address, const struct sluice_atomic *operands, bool compare,
                  uint64_t *original)
{
    uint64_t word;

    /* A page that never comes is waited for here, where nobody else waits. */
    if (!reach_read(reach, address, (uint8_t *)&word, sizeof(word)))
        return false;
    pthread_mutex_lock(&words[reach->tenant]);
    bool had = reach_read(reach, address, (uint8_t *)&word, sizeof(word));
    uint64_t next = !compare ? word + operands->compare_add : word == operands->compare_add ? operands->swap : word;

    if (had && next != word)
        had = reach_write(reach, address, (const uint8_t *)&next, sizeof(next));
    pthread_mutex_unlock(&words[reach->tenant]);
    *original = word;
    return had;
}

static void *work(void *argument)
{
    struct reach *reach = argument;

    pthread_setname_np(pthread_self(), "sluice-relay");
    pthread_mutex_lock(&reach->lock);
    for (;;) {
        while (!reach->closing && list_empty(&reach->queue))
            pthread_cond_wait(&reach->changed, &reach->lock);
        if (reach->closing)
            break;
        struct errand *errand = list_entry(list_take(&reach->queue), struct errand, link);

        pthread_mutex_unlock(&reach->lock);
        port_put(reach->port, errand, errand->carry(reach, errand));
        pthread_mutex_lock(&reach->lock);
    }
    while (!list_empty(&reach->queue))
        port_put(reach->port, list_entry(list_take(&reach->queue), struct errand, link), false);
    pthread_mutex_unlock(&reach->lock);
    close(reach->mem);
    __atomic_fetch_sub(&threads[reach->tenant], 1, __ATOMIC_RELAXED);
    port_leave(reach->port);
    reach_leave(reach);
    return NULL;
}

int reach_open(struct tenant *tenant, int mem, struct reach **out)
{
    uint32_t *count = &threads[tenant->number];
    struct reach *reach = calloc(1, sizeof(*reach));

    if (!reach)
        return -ENOMEM;
    if (__atomic_fetch_add(count, 1, __ATOMIC_RELAXED) >= REACH_THREADS) {
        __atomic_fetch_sub(count, 1, __ATOMIC_RELAXED);
        free(reach);
        return -EAGAIN;
    }
    reach->port = tenant->engine->port;
    reach->tenant = tenant->number;
    reach->users = 2;
    reach->mem = mem;
    pthread_mutex_init(&reach->lock, NULL);
    pthread_cond_init(&reach->changed, NULL);
    list_init(&reach->queue);
    pthread_mutex_lock(&reach->port->lock);
    reach->port->users++;
    pthread_mutex_unlock(&reach->port->lock);

    int error = worker_spawn(work, reach);

    if (error) {
        __atomic_fetch_sub(count, 1, __ATOMIC_RELAXED);
        port_leave(reach->port);
        pthread_mutex_destroy(&reach->lock);
        pthread_cond_destroy(&reach->changed);
        free(reach);
        return -error;
    }
    *out = reach;
    return 0;
}

void reach_close(struct reach *reach)
{
    pthread_mutex_lock(&reach->lock);
    reach->closing = true;
    pthread_cond_signal(&reach->changed);
    pthread_mutex_unlock(&reach->lock);
    reach_leave(reach);
}

void reach_send(struct reach *reach, struct errand *errand)
{
    errand->tenant = reach->tenant;
    errand->reach = reach;
    reach->underway++;
    __atomic_fetch_add(&reach->users, 1, __ATOMIC_RELAXED);
    pthread_mutex_lock(&reach->lock);
    list_append(&reach->queue, &errand->link);
    pthread_cond_signal(&reach->changed);
    pthread_mutex_unlock(&reach->lock);
}

bool reach_busy(const struct reach *reach)
{
    return reach->underway;
}
