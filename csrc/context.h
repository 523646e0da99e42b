/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Contexts: what ibv_open_device gives. Async events about an object go to the
 * context in which it was made, so that two libraries of one process don't take
 * each other's.
 */
#ifndef SLUICE_CONTEXT_H
#define SLUICE_CONTEXT_H

#include "node.h"

enum { SESSION_CONTEXTS = 256 };

struct context {
    uint32_t handle;
    struct session *session;
    struct tenant *tenant; /* on the context's device */
    struct event_channel events; /* closed: something that others use is still its own */
    /* Events that found no room there: a ring, made for the first of them. */
    struct sluice_async_event *late;
    uint32_t late_first, late_count;
    uint32_t cqs; /* made in it */
    struct list link;
};

/* Returns the handle or a negative errno. *read_fd is the caller's. -ENODEV: the tenant hasn't this device. */
int context_open(struct session *session, uint32_t device, int *read_fd);
/* It is found no more, and told of nothing. */
void context_shut(struct context *context);
/* All its objects are gone. */
void context_free(struct context *context);
/* One that is open, or NULL. */
struct context *context_find(struct session *session, uint32_t handle);

/* Async event to the application; lost only where it has left 8,192 unread, or there is no memory for them. */
void context_event(struct context *context, uint32_t event_type, uint32_t element);

#endif
