/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The worker's sockets: which of them have something to do, and how the worker
 * sleeps on them and on its futex at once.
 *
 * Sockets are watched by epoll, edge-triggered. Sleeping is io_uring's: one request
 * waits for the futex word (Linux 6.7), one for the epoll descriptor, and one
 * system call sleeps on both. An older kernel, or a seccomp profile that forbids
 * io_uring, as those of container runtimes do, leaves a thread of its own that waits
 * for epoll and wakes the futex (lookout.h): a second wake-up for what comes while the
 * worker sleeps. As long as there is no connection nothing of this is used, and the
 * worker sleeps on the futex alone.
 */
#ifndef SLUICE_NET_H
#define SLUICE_NET_H

#include "list.h"
#include "node.h"

/* A socket that the worker serves. Its owner keeps it in memory until net_remove. */
struct net_socket {
    int fd;         /* -1: none */
    bool readable;  /* since the last look; the owner clears them when the kernel has no more */
    bool writable;
    bool hung_up;   /* the other side has closed */
    struct list ready; /* in engine->net->ready while there may be something to do */
    uint32_t id;    /* what finds the owner again: a QP's number, or trunk.h */
    /* It may have something to do: writes, reads, and wakes itself while it isn't done. */
    void (*serve)(struct sluice_engine *engine, struct net_socket *socket);
};

struct net {
    int epoll;
    struct list ready;
    struct list dead; /* struct tcp_endpoint */
    uint32_t sockets;
    bool watches;    /* something else that may wake the worker: a NIC */
    uint64_t looked; /* ns: when epoll was last asked */
    uint64_t served; /* ns: when a socket last had something to do */
    struct uring *uring;
    struct lookout *lookout; /* in its place */
    struct tcp_batch *batch;
    struct {
        int fd;
        uint64_t until;
    } closing[64]; /* connections whose last frame is still on its way */
    uint32_t closing_next, lingering;
};

int net_open(struct sluice_engine *engine);
void net_close(struct sluice_engine *engine);

/* The socket becomes non-blocking. -errno. */
int net_add(struct sluice_engine *engine, struct net_socket *socket, int fd);
/* Wakes a sleeping worker while it is readable. -errno. */
int net_watch(struct sluice_engine *engine, int fd);
/* Forgets it; closes it, or lets what was written arrive first (linger). */
void net_remove(struct sluice_engine *engine, struct net_socket *socket, bool linger);

/* There may be something to do for it: it is served in the next round. */
static inline void net_wake(struct net *net, struct net_socket *socket)
{
    if (list_unlinked(&socket->ready))
        list_append(&net->ready, &socket->ready);
}

/* Asks the kernel what has happened, unless it was asked just now, and serves who is ready. */
void net_serve(struct sluice_engine *engine);

/* Before net_sleep, while the worker still owns the engine. True: nothing can wake it for a socket, so it naps. */
bool net_prepare(struct sluice_engine *engine, uint32_t *word);
/*
 * Sleeps until the word isn't value, a descriptor has something, or the deadline (CLOCK_MONOTONIC ns). False: no descriptor has
 * become readable, as far as is known.
 */
bool net_sleep(struct sluice_engine *engine, uint32_t *word, uint32_t value, uint64_t deadline, bool naps);

#endif
