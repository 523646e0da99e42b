/* SPDX-License-Identifier: Apache-2.0 */
#define _GNU_SOURCE
#include "relay.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <unistd.h>

#include "atomic.h"
#include "futex.h"
#include "qp.h"
#include "spans.h"

/* Outlives the engine where a thread still hangs: whoever leaves last frees it. */
struct port {
    pthread_mutex_t lock;
    struct list done;
    uint32_t rung;
    uint32_t users; /* the engine and the threads */
    struct sluice_engine_page *page; /* NULL: the engine is closed */
};

struct reach {
    struct port *port;
    uint32_t *threads; /* of the tenant */
    int mem;
    bool closing;
    pthread_mutex_t lock;
    pthread_cond_t changed;
    struct list queue;
};

/* Hanging threads count on, also when their tenant is removed and its number taken by another. */
static uint32_t threads[SLUICE_MAX_TENANTS];

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

static void port_leave(struct port *port)
{
    pthread_mutex_lock(&port->lock);
    bool last = --port->users == 0;

    while (!port->page && !list_empty(&port->done))
        free(list_entry(list_take(&port->done), struct relay, link));
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

static void port_put(struct port *port, struct relay *relay, enum relay_state result)
{
    relay->result = result;
    pthread_mutex_lock(&port->lock);
    list_append(&port->done, &relay->link);
    if (port->page) {
        exchange(&port->rung, 1);
        full_fence();
        if (load_relaxed(&port->page->parked)) {
            /* Cleared first, so that a worker which is only about to sleep doesn't. */
            exchange(&port->page->parked, 0);
            futex_wake(&port->page->parked);
        }
    }
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
        struct relay *relay = list_entry(list_take(&done), struct relay, link);

        if (!relay->qp) {
            free(relay);
            continue;
        }
        relay->state = relay->result;
        if (relay->qp->wait == QP_WAIT_COPY)
            qp_activate(relay->qp);
    }
}

/* ---- the thread -------------------------------------------------------- */

static bool copy_all(const struct reach *reach, struct relay *relay, uint32_t from, uint32_t to)
{
    while (from < to) {
        off_t at = (off_t)(relay->address + from);
        ssize_t done = relay->store ? pwrite(reach->mem, relay->buffer + from, to - from, at)
                                    : pread(reach->mem, relay->buffer + from, to - from, at);

        if (done <= 0)
            return false;
        from += (uint32_t)done;
    }
    return true;
}

static bool carry(const struct reach *reach, struct relay *relay)
{
    /* Applications poll on the last bytes: they come last. */
    uint32_t tail = relay->store && relay->length > 8 ? 8 : 0;

    if (!copy_all(reach, relay, 0, relay->length - tail))
        return false;
    release_fence();
    return copy_all(reach, relay, relay->length - tail, relay->length);
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
        struct relay *relay = list_entry(list_take(&reach->queue), struct relay, link);

        pthread_mutex_unlock(&reach->lock);
        port_put(reach->port, relay, !carry(reach, relay) ? RELAY_FAILED : relay->store ? RELAY_STORED : RELAY_FETCHED);
        pthread_mutex_lock(&reach->lock);
    }
    while (!list_empty(&reach->queue))
        port_put(reach->port, list_entry(list_take(&reach->queue), struct relay, link), RELAY_FAILED);
    pthread_mutex_unlock(&reach->lock);
    close(reach->mem);
    __atomic_fetch_sub(reach->threads, 1, __ATOMIC_RELAXED);
    port_leave(reach->port);
    pthread_mutex_destroy(&reach->lock);
    pthread_cond_destroy(&reach->changed);
    free(reach);
    return NULL;
}

int reach_open(struct tenant *tenant, int mem, struct reach **out)
{
    uint32_t *count = &threads[tenant->number];
    struct reach *reach = calloc(1, sizeof(*reach));
    pthread_attr_t attributes;
    pthread_t thread;
    sigset_t all, before;

    if (!reach)
        return -ENOMEM;
    if (__atomic_fetch_add(count, 1, __ATOMIC_RELAXED) >= RELAY_THREADS) {
        __atomic_fetch_sub(count, 1, __ATOMIC_RELAXED);
        free(reach);
        return -EAGAIN;
    }
    reach->port = tenant->engine->port;
    reach->threads = count;
    reach->mem = mem;
    pthread_mutex_init(&reach->lock, NULL);
    pthread_cond_init(&reach->changed, NULL);
    list_init(&reach->queue);
    pthread_mutex_lock(&reach->port->lock);
    reach->port->users++;
    pthread_mutex_unlock(&reach->port->lock);

    pthread_attr_init(&attributes);
    pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int error = pthread_create(&thread, &attributes, work, reach);

    pthread_sigmask(SIG_SETMASK, &before, NULL);
    pthread_attr_destroy(&attributes);
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
}

/* ---- a QP's piece ------------------------------------------------------ */

/* The piece at the relay's address; its QP waits from now. */
static void start(struct reach *reach, struct relay *relay, bool store)
{
    relay->state = RELAY_UNDERWAY;
    relay->store = store;
    pthread_mutex_lock(&reach->lock);
    list_append(&reach->queue, &relay->link);
    pthread_cond_signal(&reach->changed);
    pthread_mutex_unlock(&reach->lock);
}

/* The QP's relay, made where it has none. NULL: no memory. */
static struct relay *relay_of(struct qp *qp)
{
    if (!qp->relay) {
        qp->relay = malloc(sizeof(*qp->relay));
        if (!qp->relay)
            return NULL;
        list_init(&qp->relay->link);
        qp->relay->qp = qp;
        qp->relay->state = RELAY_IDLE;
    }
    return qp->relay;
}

/* The span in which offset lies; *offset becomes the one in it. */
static const struct span *span_of(const struct spans *spans, uint32_t *offset)
{
    const struct span *span = spans->list;

    while (*offset >= span->length)
        *offset -= span++->length;
    return span;
}

static bool in_process(const struct span *span)
{
    return span->memory && span->memory->kind == SLUICE_MEMORY_PROCESS;
}

/* A part of a span, as a list of its own. */
static void take_part(struct spans *spans, const struct span *span, uint32_t offset, uint32_t length)
{
    *spans = (struct spans){.count = 1, .total = length};
    spans->list[0] = (struct span){.memory = span->memory,
                                   .address = span->address + offset,
                                   .host = span->host ? span->host + offset : NULL,
                                   .length = length};
}

static uint32_t least(uint32_t a, uint32_t b)
{
    return a < b ? a : b;
}

uint32_t relay_copy(struct qp *qp, const struct spans *dst, const struct spans *src, uint32_t offset, uint32_t end)
{
    struct sluice_engine *engine = qp->session->engine;
    struct relay *relay = relay_of(qp);
    uint32_t to_offset = offset, from_offset = offset;

    if (offset == end)
        return end;
    if (!relay)
        return end + 1;
    const struct span *to = span_of(dst, &to_offset), *from = span_of(src, &from_offset);
    uint32_t length = least(least(to->length - to_offset, from->length - from_offset), least(end - offset, RELAY_PIECE));
    struct span buffer = {.host = relay->buffer, .length = RELAY_PIECE};
    struct spans source, target;

    /* The message began anew. */
    if (relay->offset != offset)
        relay->state = RELAY_IDLE;
    if (relay->state == RELAY_FAILED || relay->state == RELAY_STORED) {
        bool stored = relay->state == RELAY_STORED;

        relay->state = RELAY_IDLE;
        return stored && relay->length <= end - offset ? offset + relay->length : end + 1;
    }
    bool fetched = relay->state == RELAY_FETCHED;

    if (fetched)
        length = least(length, relay->length);
    relay->state = RELAY_IDLE;
    relay->offset = offset;
    relay->length = length;
    if (in_process(from) && !fetched) {
        relay->address = from->address + from_offset;
        start(from->memory->reach, relay, false);
        return offset;
    }
    if (fetched)
        take_part(&source, &buffer, 0, length);
    else
        take_part(&source, from, from_offset, length);
    if (in_process(to)) {
        take_part(&target, &buffer, 0, length);
        if (!fetched && spans_copy_all(engine, &target, &source) > length)
            return end + 1;
        relay->address = to->address + to_offset;
        start(to->memory->reach, relay, true);
        return offset;
    }
    take_part(&target, to, to_offset, length);
    return spans_copy_all(engine, &target, &source) > length ? end + 1 : offset + length;
}

void relay_drop(struct qp *qp)
{
    struct relay *relay = qp->relay;

    if (!relay)
        return;
    if (relay->state == RELAY_UNDERWAY) {
        relay->qp = NULL;
        qp->relay = NULL;
        return;
    }
    relay->state = RELAY_IDLE;
}

void relay_free(struct qp *qp)
{
    relay_drop(qp);
    free(qp->relay);
    qp->relay = NULL;
}
