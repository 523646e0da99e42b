/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A descriptor on which an application is told of events: a completion channel's, or
 * a context's of async events. Each event is a packet of a socket that goes one way
 * (man 7 unix, SOCK_SEQPACKET).
 *
 * Not a pipe: in many kernels (6.1 is one) whoever reads it holds its lock while the
 * pages that it reads into are made, which may be never (man userfaultfd), and who
 * writes to it, or closes it, waits for that lock whatever O_NONBLOCK says. A sender to a socket takes no lock that
 * a reader holds while it copies.
 *
 * It holds some 80 events. What finds no room waits at its owner, which is
 * called when there may be some.
 */
#ifndef SLUICE_EVENT_CHANNEL_H
#define SLUICE_EVENT_CHANNEL_H

#include <stdbool.h>
#include <stddef.h>

#include "timer.h"

struct sluice_engine;

struct event_channel {
    int fd; /* -1: closed */
    bool full; /* until its owner is called */
    struct sluice_engine *engine;
    struct timer retry;
    uint64_t pause_ns;
    void (*has_room)(struct event_channel *channel); /* perhaps */
};

/* *read_fd: the application's end, the caller's. Returns 0 or a negative errno. */
int event_channel_open(struct event_channel *channel, struct sluice_engine *engine,
                       void (*has_room)(struct event_channel *channel), int *read_fd);
/* Harmless where it is closed. */
void event_channel_close(struct event_channel *channel);
/* False: there is no room. True where nobody reads any more. */
bool event_channel_send(struct event_channel *channel, const void *event, size_t size);

#endif
